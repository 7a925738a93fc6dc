"""One step, cut into units: the tensors that one call of the update function takes.

A unit is a single parameter (the for-loop path) or a bucket of parameters that agree in everything which
the host must know to update them (the foreach path). It opens its tensors (casts, complex as real pairs),
calls the update, and stores what comes back. A unit touches parameters, states and steps only when it
stores, except for what a foreach update does in place.
"""

import math
import operator
from collections.abc import Collection, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.groups import GroupStep, overwrite
from optdsl.runtime.joint import JointTask
from optdsl.runtime.random import Random
from optdsl.runtime.shards import Layout, ParamState, level_of
from optdsl.runtime.states import (
    Facts,
    compute_dtype,
    create_coded,
    create_state,
    kept,
    opened,
    replaced,
    state_shape,
    turn,
)
from optdsl.runtime.storage import AT_RANDOM, LOW, SCALES, Coded, Packed, Rounded, Split, code


class Unit:
    """Parameters that are updated by one call, from opening them to storing their new values.

    `p`, `g` and `state` are what the update is given: tensors in a `Single`, lists in a `Bucket`.
    """

    __slots__ = (
        *("_fresh", "_handed", "_held", "dtype", "facts", "g", "grads", "group", "indices", "kept_p", "keys"),
        *("layouts", "p", "params", "state", "states", "t", "whole"),
    )
    p: Any
    g: Any

    def __init__(self, group: GroupStep, t: int | Tensor, facts: Facts, keys: Sequence[str]) -> None:
        self.group = group
        self.t = t
        self.facts = facts
        self.keys = keys
        self.indices: list[int] = []
        self.params: list[Tensor] = []
        # What the parameters are parts of; whether the update gets them whole all the same.
        self.layouts: list[Layout | None] = []
        self.whole = group.rule._shards == "whole" and bool(group.layouts)
        # The parameters as they are kept.
        self.kept_p: list[Any] = []
        self.grads: list[Tensor] = []
        self.states: list[ParamState] = []
        self.state: dict[str, Any] = {}
        # What the update was given for every state, and what is kept of every state but the group-level ones.
        self._handed: dict[str, Any] = {}
        self._held: dict[str, list[Any]] = {}
        self._fresh: list[tuple[ParamState, str, Tensor]] = []

    def add(self, index: int, p: Tensor, grad: Tensor, state: ParamState) -> None:
        """Puts a parameter into the unit; `index` is its position in the optimizer."""
        self.dtype = compute_dtype(p.dtype)
        self.indices.append(index)
        self.params.append(p)
        self.layouts.append(self.group.layouts.get(p))
        self.grads.append(grad)
        self.states.append(state)
        held: Any = self.group.held_p(p, state)
        if self.group.form_of(p) == AT_RANDOM:
            held = self._rounded(len(self.kept_p), "p", p)
        self.kept_p.append(held)
        if isinstance(held, Split) and state.get(LOW) is not held.low:
            self._fresh.append((state, LOW, held.low))

    def open(self) -> None:
        """Makes `p`, `g` and `state`. New states are made, but not yet kept."""
        raise NotImplementedError

    def call(self) -> Any:
        """Runs the update function (for a joint rule: makes the generator)."""
        raise NotImplementedError

    def task(self) -> JointTask:
        """The running update of a joint rule."""
        layouts = None if self.whole else self.layouts
        return JointTask(
            self.call(), self.group.number, self.indices, self.dtype, self.params[0].device, layouts
        )

    def store(self, result: Any, states: MutableMapping[Tensor, ParamState]) -> None:
        """Keeps the new parameters, which the update returned, and the new states, and counts the step."""
        raise NotImplementedError

    def _hold(self, number: int, key: str, p: Tensor, g: Tensor) -> Tensor | Packed:
        """The state of one parameter as it is kept; a new one if it has none."""
        param, group = self.params[number], self.group
        spec = kept(group.rule._specs[key], group.group, param)
        state = self.states[number]
        held: Tensor | None = state.get(key)
        if held is None:
            value = self._begin(number, key, p, g)
            if spec.in_codes:
                made = create_coded(spec, param, value)
                self._fresh += [(state, key, made.codes), (state, key + SCALES, made.scales)]
                return made
            on_host = spec.level == "host" and not group.capturable
            shape = self.group.shape(param) if level_of(group.rule, key) is None else None
            held = create_state(spec, torch.empty((), device="cpu") if on_host else param, value, shape)
            self._fresh.append((state, key, held))
        elif spec.in_codes:
            table = code(str(spec.stored), spec.positive, param.device)
            return Coded(held, state[key + SCALES], table, param.shape)
        elif (
            group.capturable and held.device != param.device
        ):  # a host-level state made before the flag was set
            held = state[key] = held.to(param.device)
        if spec.delay is not None:
            held = turn(spec, held, int(self.t) - 1)
        return self._rounded(number, key, held) if spec.at_random else held

    def _begin(self, number: int, key: str, p: Tensor, g: Tensor) -> float | Tensor:
        """With what a state begins, where the update gets `p` and `g`."""
        rule, param, layout = self.group.rule, self.params[number], self.layouts[number]
        gathered = layout is not None and rule._starts_from_reductions and not self.whole
        if layout is not None and gathered:
            p, g = layout.whole(p, "element"), layout.whole(g, "element")
        value = rule._initial(key, p, g, self.group.options(param.device), self.group.facts(param))
        return self._part(number, key, value) if gathered or self.whole else value

    def _part(self, number: int, key: str, value: Any) -> Any:
        """What belongs to this process of a parameter ("p") or state, of which all is given."""
        layout, level = self.layouts[number], level_of(self.group.rule, key)
        if layout is None or level is None or not isinstance(value, Tensor):
            return value
        ends = (2,) if self.params[number].is_complex() else ()
        shape = (*state_shape(level, layout.shape), *ends)
        value = value.reshape(shape) if value.numel() == math.prod(shape) else value.expand(shape)
        return layout.part(value, level)

    def _mine(self, number: int, key: str, value: Any) -> Any:
        """What this process keeps of what an update has made."""
        return self._part(number, key, value) if self.whole else value

    def _rounded(self, number: int, key: str, held: Tensor) -> Rounded:
        """A parameter, or a state of one, that is rounded at random."""
        return Rounded(held, self._random(number, held), self.group.rule._sites[key])

    def _given(self, key: str) -> list[Tensor | None]:
        """An input of each parameter as the update gets it; None where it was not given."""
        given = [self.group.given(key, p) for p in self.params]
        return [None if x is None else self._opened(number, key, x) for number, x in enumerate(given)]

    def _opened(self, number: int, key: str, held: Tensor | Packed) -> Tensor:
        """A parameter, its gradient ("p") or a state as the rule sees it."""
        x = held.open(self.dtype) if isinstance(held, Packed) else opened(held, self.dtype)
        if not self.whole:
            return x
        layout, level = self.layouts[number], level_of(self.group.rule, key)
        return x if layout is None or level is None else layout.whole(x, level)

    def _number(self, held: Any) -> Any:
        """A host-level state as the update gets it."""
        return held if self.group.capturable or self.group.differentiable else held.item()

    def _draws(self, number: int, x: Tensor) -> Random | None:
        """The random numbers of one parameter, whose opened form is `x`."""
        return self._random(number, x, self.whole) if self.group.rule._random else None

    def _random(self, number: int, x: Tensor, whole: bool = False) -> Random:
        """The random numbers of one parameter, for tensors like `x`, which is a part unless `whole`."""
        layout, part = self.layouts[number], None
        if layout is not None and not whole:
            ends = x.shape[len(layout.shape) :]  # a complex number is a pair
            part = torch.Size((*layout.shape, *ends)), (*layout.offsets, *(0 for _ in ends))
        seed, index = self.group.group["seed"], self.indices[number]
        return Random(seed, self.t, index, x.shape, x.dtype, x.device, part)

    def _commit(self, states: MutableMapping[Tensor, ParamState]) -> None:
        """Keeps the new states, which need not have their final values yet."""
        for state, key, held in self._fresh:
            state[key] = held
        for p, state in zip(self.params, self.states, strict=True):
            if states.get(p) is not state:
                states[p] = state


class Single(Unit):
    """One parameter. The update modifies nothing in place, so all that is new is another tensor."""

    __slots__ = ()

    def open(self) -> None:
        """Makes `p`, `g` and `state`."""
        group = self.group
        self.p = p = self._opened(0, "p", self.kept_p[0])
        self.g = g = self._opened(0, "p", self.grads[0])
        if group.maximize:
            self.g = g = -g
        if group.differentiable:  # the parameter itself is written to, which must not disturb backward
            self.p = p = p.clone()
        for key in self.keys:
            spec = group.rule._specs[key]
            if spec.level == "group":
                shape, layout = group.shape(self.params[0]), None if self.whole else self.layouts[0]
                self._handed[key] = group.read(spec, p, g, shape, layout)
                continue
            if spec.given:
                self._handed[key] = self._given(key)[0]
                continue
            held = self._hold(0, key, p, g)
            self._held[key] = [held]
            self._handed[key] = self._number(held) if spec.level == "host" else self._opened(0, key, held)
        self.state = dict(self._handed)

    def call(self) -> Any:
        """Runs the update function."""
        rule, options, draws = self.group.rule, self.group.options(self.p.device), self._draws(0, self.p)
        return rule._update(self.p, self.g, self.state, options, self.t, self.facts, draws)

    def store(self, result: Any, states: MutableMapping[Tensor, ParamState]) -> None:
        """Copies what is new into parameter and states; if `differentiable`, replaces the states."""
        self._commit(states)
        writes: list[tuple[Any, Tensor | float]] = []
        if result is not self.p:
            writes.append((self.kept_p[0], self._mine(0, "p", result)))
        for key, old in self._handed.items():
            new = self.state[key]
            if new is old or self.group.rule._specs[key].given:
                continue
            if key not in self._held:
                self.group.candidates.append((self.indices[0], key, self.t, new))
            elif self.group.differentiable:
                self._replace(key, new)
            else:
                writes.append((self._held[key][0], self._mine(0, key, new)))
        if self.group.differentiable and writes:
            self.params[0].copy_(replaced(self.params[0], result))
        else:
            overwrite(writes)
        self.states[0]["step"].add_(1.0)

    def _replace(self, key: str, new: Any) -> None:
        """Puts a new tensor in the place of a state; autograd follows."""
        value, old = replaced(self._held[key][0], new), self.states[0][key]
        if self.group.rule._specs[key].delay is not None:
            place = torch.tensor([(int(self.t) - 1) % len(old)], device=old.device)
            value = old.index_copy(0, place, value.unsqueeze(0))
        self.states[0][key] = value


class Bucket(Unit):
    """Parameters for one foreach update, which may work in place: then what is new is where it belongs."""

    __slots__ = ("_handed_p", "_private", "_versions")

    def open(self) -> None:
        """Makes `p`, `g` and `state`."""
        group, rule = self.group, self.group.rule
        # A joint update may fail after one of its units has begun to work in place, so these get copies.
        self._private = rule._joint and rule._foreach_inplace
        #: By keys, what tells whether that has been written to which was decoded for the update.
        self._versions: dict[str, list[int | None]] = {}
        self._handed_p = self._open("p", self.kept_p)
        self.g = [self._opened(number, "p", x) for number, x in enumerate(self.grads)]
        if group.maximize:
            self.g = list(torch._foreach_neg(self.g))
        self.p = list(self._handed_p)
        for key in self.keys:
            spec = rule._specs[key]
            if spec.level == "group":
                shape, layout = group.shape(self.params[0]), None if self.whole else self.layouts[0]
                self._handed[key] = group.read(spec, self.p[0], self.g[0], shape, layout)
                continue
            if spec.given:
                self._handed[key] = self._given(key)
                continue
            pairs = enumerate(zip(self.p, self.g, strict=True))
            held = self._held[key] = [self._hold(number, key, p, g) for number, (p, g) in pairs]
            self._handed[key] = self._number(held[0]) if spec.level == "host" else self._open(key, held)
        self.state = {key: list(x) if isinstance(x, list) else x for key, x in self._handed.items()}

    def _open(self, key: str, stored: Sequence[Any]) -> list[Tensor]:
        """Parameters or states as the rule sees them; copies of them if the unit must not work in place."""
        tensors = [self._opened(number, key, x) for number, x in enumerate(stored)]
        self._versions[key] = [
            x._version if isinstance(y, Coded) and not x.is_inference() else None
            for x, y in zip(tensors, stored, strict=True)
        ]
        if not self._private:
            return tensors
        return [
            x.clone() if isinstance(y, Tensor) and x.dtype is y.dtype.to_real() else x
            for x, y in zip(tensors, stored, strict=True)
        ]

    def call(self) -> Any:
        """Runs the foreach update function."""
        rule, options = self.group.rule, self.group.options(self.p[0].device)
        draws = [self._draws(number, x) for number, x in enumerate(self.p)] if rule._random else None
        update = rule._update_sharded if self.group.meets else rule._update_foreach
        return update(self.p, self.g, self.state, options, self.t, self.facts, draws)

    def store(self, result: Any, states: MutableMapping[Tensor, ParamState]) -> None:
        """Copies what is new, and was not put there by the update itself, into the parameters and states."""
        self._commit(states)
        writes = self._changed("p", self.kept_p, self._handed_p, result)
        for key, old in self._handed.items():
            new = self.state[key]
            if self.group.rule._specs[key].given:
                continue
            if isinstance(old, list):
                writes += self._changed(key, self._held[key], old, new)
            elif new is not old and key in self._held:
                writes += [(held, new) for held in self._held[key]]
            elif new is not old:
                self.group.candidates.append((self.indices[0], key, self.t, new))
        overwrite(writes, foreach=True)
        counters = [state["step"] for state in self.states]
        if counters[0].is_cpu:  # a tensor is made once here, and once for every counter from a number
            torch._foreach_add_(counters, torch.ones((), device="cpu"), alpha=1.0)
        else:
            torch._foreach_add_(counters, 1.0)

    def _changed(
        self, key: str, stored: Sequence[Any], handed: Sequence[Tensor], new: Sequence[Any]
    ) -> list[tuple[Any, Tensor | float]]:
        """Pairs of kept tensors and their new values, where these are not in the kept tensors already.

        What is in codes and was left alone stays as it is: codes of what codes stand for may be others.
        """
        inplace = self.group.rule._foreach_inplace and not self.group.meets
        private = self._private or self.whole
        pairs: list[tuple[Any, Tensor | float]] = []
        each = zip(stored, handed, new, self._versions[key], strict=True)
        for number, (target, old, value, version) in enumerate(each):
            written = private or _apart(old, target) if version is None else old._version != version
            if value is not old or (inplace and written):
                pairs.append((target, self._mine(number, key, value)))
        return pairs


def _apart(opened: Tensor, kept: Any) -> bool:
    """Whether what an update was given is a copy of what is kept."""
    return isinstance(kept, Packed) or opened.dtype is not kept.dtype.to_real()


def gather(
    group: GroupStep,
    first: int,
    states: MutableMapping[Tensor, ParamState],
    cohorts: "Cohorts",
    only: Collection[int] | None = None,
) -> list[Unit]:
    """The units of a group in the order of their first parameters; `first` is the index of its first one.

    `only` are the positions in the group of the parameters to take.
    """
    rule, name = group.rule, type(group.rule).__name__
    live: dict[Facts, tuple[str, ...]] = {}
    found: list[tuple[int, Tensor, Tensor, ParamState, bool]] = []
    for index, p in enumerate(group.group["params"], first):
        grad = p.grad
        if grad is None or (only is not None and index - first not in only):
            continue
        if grad.layout is not torch.strided:
            raise RuntimeError(f"{name} does not support sparse gradients")
        if not rule._elementwise and p.is_complex():
            raise RuntimeError(f"{name} does not support complex parameters")
        state = states.get(p)
        if is_new := not state:
            counter = torch.zeros((), dtype=torch.float32, device=p.device if group.capturable else "cpu")
            state = {"step": counter}
        elif (
            "step" not in state
        ):  # somebody put states there; torch.optim.SGD counts no steps, but took one at least
            state["step"] = torch.ones((), device=p.device if group.capturable else "cpu")
        found.append((index, p, grad, state, is_new))
    many = group.meets or group.foreach([p for _, p, _, _, _ in found])
    bucket_facts = operator.attrgetter(*rule._bucket_facts) if rule._bucket_facts else lambda facts: ()
    units: list[Unit] = []
    buckets: dict[Any, Unit] = {}
    now = object()
    for index, p, grad, state, is_new in found:
        facts = group.facts(p)
        keys = live.get(facts)
        if keys is None:
            keys = live[facts] = tuple(rule._live(group.options(p.device), facts))
        if not many:
            unit: Unit = Single(group, group.count(p, state), facts, keys)
            units.append(unit)
        else:
            hosts = [key for key in keys if rule._specs[key].level == "host"]
            t: int | Tensor | None = None
            if group.capturable:
                shared: Any = cohorts.tag(p, state, is_new, now, hosts)
            else:
                t = group.count(p, state)
                shared = (t, *(state[key].item() if key in state else None for key in hosts))
            mark = (p.device, p.dtype, shared, bucket_facts(facts), keys)
            if mark not in buckets:
                t = group.count(p, state) if t is None else t
                buckets[mark] = Bucket(group, t, facts, keys)
                units.append(buckets[mark])
            unit = buckets[mark]
        unit.add(index, p, grad, state)
    return units


class Cohorts:
    """Which parameters share their step count and host states, where the host cannot read these (capturable).

    They do if they did when last read, or were new in the same step, and took part in the same steps since.
    The replay of a captured graph advances all parameters of the graph alike; two graphs of one optimizer
    that hold different parameters need `foreach=False`, and so does whoever edits `state["step"]` by hand.
    """

    def __init__(self) -> None:
        self._tags: dict[Tensor, object] = {}

    @property
    def known(self) -> bool:
        """Whether anything is known of any parameter."""
        return bool(self._tags)

    def tag(
        self, p: Tensor, state: ParamState, is_new: bool, now: object, host_keys: Sequence[str]
    ) -> object:
        """Equal for parameters that may share a bucket; `now` identifies the current step."""
        tag = self._tags.get(p)
        if tag is None:
            known: object
            if is_new:
                known = now
            elif p.is_cuda and torch.cuda.is_current_stream_capturing():
                known = object()  # nothing can be read now: a bucket of its own
            else:
                hosts = tuple(state[key].item() if key in state else None for key in host_keys)
                known = (now, state["step"].item(), hosts)
            tag = self._tags[p] = known
        return tag

    def advance(self, params: Sequence[Tensor]) -> None:
        """Notes that these parameters, which share what they are tagged with, took a step."""
        if self._tags:
            tag = object()
            self._tags.update((p, tag) for p in params if p in self._tags)
