"""One parameter group in one step: its flags, its options as the update gets them, its group-level states."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _default_to_fused_or_foreach

from optdsl.runtime.checks import with_plain_options
from optdsl.runtime.rule import Rule
from optdsl.runtime.states import (
    Facts,
    State,
    as_real,
    create_state,
    facts_of,
    fit,
    group_prototype,
    kept,
    replaced,
)
from optdsl.runtime.storage import AT_RANDOM, LOW, SPLITS, Packed, Split


class GroupStep:
    """What the units of one group share during one step.

    Every unit reads a group-level state as it was before the step; `settle` stores the new one.
    """

    def __init__(self, rule: Rule, number: int, group: dict[str, Any], tensor_options: Sequence[str]) -> None:
        self.rule = rule
        self.number = number
        self.group = group
        #: The group itself, and what parts of tensors are parts of, where `group` has parts in their place.
        self.original = group
        self.layouts: Mapping[Tensor, Any] = {}
        #: Whether reductions are asked for, as other processes have a share in them.
        self.meets = False
        self.maximize = bool(group["maximize"])
        self.capturable = bool(group["capturable"])
        self.differentiable = bool(group["differentiable"])
        self.tensor_options = tensor_options
        #: Whether native kernels take what they can, and whether there is none though they should.
        self.native = False
        self.kernels_missing = False
        #: What torch.amp.GradScaler hands over: by what gradients are too large, and what is not 0 to skip the step.
        self.scale: Tensor | None = None
        self.skip: Tensor | None = None
        #: What the step is given beside gradients: for each key a tensor for each parameter, or one number.
        self.inputs: Mapping[str, Mapping[Tensor, Tensor]] = {}
        self.numbers: Mapping[str, Tensor] = {}
        #: Values of group-level states that are left: (index of the parameter, key, t, value).
        self.candidates: list[tuple[int, str, int | Tensor, Tensor]] = []
        self._views: dict[torch.device, Mapping[str, Any]] = {}
        self._shared: dict[str, Tensor] = {}
        self._writes: dict[str, tuple[Any, Any]] = {}

    def take_parts(self, params: list[Tensor], layouts: Mapping[Tensor, Any]) -> None:
        """Puts parts of tensors in place of the parameters."""
        self.group = {**self.original, "params": params}
        self.layouts = layouts
        self.meets = self.rule._shards == "reduced"

    def leave_parts(self) -> None:
        """Goes back to the parameters; group-level states stay."""
        for spec in self.rule._states:
            if spec.level == "group" and spec.key in self.group:
                self.original[spec.key] = self.group[spec.key]
        self.group, self.layouts, self.meets = self.original, {}, False

    def shape(self, p: Tensor) -> torch.Size:
        """The shape of a parameter, of the whole where it is a part."""
        layout = self.layouts.get(p)
        shape: torch.Size = p.shape if layout is None else layout.shape
        return shape

    def facts(self, p: Tensor) -> Facts:
        """What the host knows of a parameter, of the whole where it is a part."""
        facts = facts_of(self.shape(p))
        return facts._replace(numel=2 * facts.numel) if p.is_complex() else facts

    def options(self, device: torch.device) -> Mapping[str, Any]:
        """The group as an update on this device gets it."""
        if not self.tensor_options:
            return self.group
        view = self._views.get(device)
        if view is None:
            names, flags = self.tensor_options, (self.capturable, self.differentiable)
            view = self._views[device] = with_plain_options(self.group, names, *flags, device)
        return view

    def options_on(self, device: torch.device) -> Mapping[str, Any]:
        """The group as an update on a device that counts steps gets it."""
        if not self.tensor_options:
            return self.group
        return with_plain_options(self.group, self.tensor_options, True, False, device)

    def form_of(self, p: Tensor) -> str | None:
        """In which format a parameter is kept, None for as it is."""
        store = self.group.get("store")
        return store.get("p") if isinstance(store, Mapping) and p.dtype is torch.bfloat16 else None

    def rounds(self, p: Tensor) -> bool:
        """Whether a parameter or a state of it may be rounded at random."""
        specs = self.rule._states
        return self.form_of(p) == AT_RANDOM or any(kept(spec, self.group, p).at_random for spec in specs)

    def held_p(self, p: Tensor, state: Mapping[str, Any]) -> Tensor | Split:
        """A parameter as it is kept: with what it lacks, if its group says so.

        That is in its state, or else new and not in it yet.
        """
        form = self.form_of(p)
        if form not in SPLITS:
            return p
        low = state.get(LOW)
        if low is None or low.dtype is not SPLITS[form]:
            made = Split(p, torch.zeros_like(p, dtype=SPLITS[form], requires_grad=False))
            if low is not None and low.dtype in SPLITS.values():
                made.put_low(Split(p, low).open(torch.float32))
            return made
        return Split(p, low)

    def given(self, key: str, p: Tensor) -> Tensor | None:
        """An input of one parameter; None where it was not given, as this step does not read it."""
        return self.inputs.get(key, {}).get(p)

    def foreach(self, params: list[Tensor]) -> bool:
        """Whether to take the foreach path: as the user said, else as torch would."""
        wanted = self.group["foreach"]
        if self.kernels_missing:
            wanted = True
        if wanted is None and self.group["fused"] is None and params and params[0].device.type != "cpu":
            wanted = _default_to_fused_or_foreach(params, self.differentiable, use_fused=False)[1]
        if wanted and self.differentiable:
            raise AssertionError("_foreach ops don't support autograd")
        return bool(wanted)

    def count(self, p: Tensor, state: dict[str, Any]) -> int | Tensor:
        """The number of the step that is being taken for this parameter."""
        counter: Tensor = state["step"]
        if not self.capturable:
            return int(counter.item()) + 1
        if counter.device != p.device:  # the flag was set after the state was made
            counter = state["step"] = counter.to(p.device)
        return counter.to(torch.float64) + 1.0

    def read(self, spec: State, p: Tensor, g: Tensor, shape: torch.Size, layout: Any = None) -> Tensor:
        """A group-level state for an update that is given `p` and `g`; `shape` is the parameter's own.

        An input at this level is a number of the step; where it was not given, as this step does not read it, nan.
        With a `layout`, `p` and `g` are parts.
        """
        if spec.given:
            return self.numbers.get(spec.key, p.new_tensor(math.nan)).to(device=p.device, dtype=p.dtype)
        held = self._shared.get(spec.key)
        if held is None:
            held = self.group.get(spec.key)
            if not isinstance(held, Tensor):
                value: Any = held
                if value is None:
                    if layout is not None and self.rule._starts_from_reductions:
                        p, g = layout.whole(p, "element"), layout.whole(g, "element")
                    value = self.rule._initial(spec.key, p, g, self.options(p.device), facts_of(shape))
                held = create_state(spec, group_prototype(self.group["params"]), value)
            self._shared[spec.key] = held
        return held.to(device=p.device, dtype=p.dtype)

    def write(self, key: str, t: int | Tensor, value: Any) -> None:
        """Takes a unit's new value of a group-level state; the first of those with the largest t stays."""
        if key not in self._writes:
            self._writes[key] = (t, value)
            return
        best_t, best = self._writes[key]
        if isinstance(t, Tensor):  # the counts are on the device, so the choice is made there
            t = t.to(best_t.device)
            value = value.to(best_t.device) if isinstance(value, Tensor) else value
            self._writes[key] = (torch.maximum(t, best_t), torch.where(t > best_t, value, best))
        elif t > best_t:
            self._writes[key] = (t, value)

    def settle(self) -> None:
        """Stores the group-level states in the group."""
        if not self.candidates and not self._shared:
            return
        for _, key, t, value in sorted(self.candidates, key=lambda candidate: candidate[:2]):
            self.write(key, t, value)
        self.group.update(self._shared)
        for key, (_, value) in self._writes.items():
            if self.differentiable:
                self.group[key] = replaced(self._shared[key], value)
        if not self.differentiable:
            overwrite([(self._shared[key], value) for key, (_, value) in self._writes.items()])


def overwrite(writes: Sequence[tuple[Tensor | Packed, Tensor | float]], foreach: bool = False) -> None:
    """Copies the second of each pair into the first, as if all were read before any is written.

    So two states may have exchanged their tensors, and a state may have become the old parameter. The second
    is a number or a tensor of any dtype, with complex numbers as real pairs.
    """
    for target, value in writes:  # what these read is still there
        if isinstance(target, Packed):
            target.put(value)
    writes = [(target, value) for target, value in writes if not isinstance(target, Packed)]
    if not writes:
        return
    targets = [as_real(target) for target, _ in writes if isinstance(target, Tensor)]
    sources = [source for _, source in writes]
    if len(writes) > 1:
        owners = {target.data_ptr(): number for number, target in enumerate(targets)}
        for number, source in enumerate(sources):
            if isinstance(source, Tensor) and owners.get(source.data_ptr(), number) != number:
                sources[number] = source.clone()
    tensors = [source for source in sources if isinstance(source, Tensor)]
    if foreach and len(tensors) == len(targets) and not targets[0].is_cpu:
        torch._foreach_copy_(targets, tensors)
        return
    for target, source in zip(targets, sources, strict=True):
        if not isinstance(source, Tensor):
            target.fill_(fit(source, target))
            continue
        target.copy_(source)
