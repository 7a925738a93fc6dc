"""The base of the generated classes: a `torch.optim.Optimizer` that runs a `Rule`."""

import contextlib
import importlib
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import is_, itemgetter
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from optdsl.runtime.checks import (
    Hyper,
    check,
    check_flags,
    check_seed,
    check_store,
    has_tensor,
    with_plain_options,
)
from optdsl.runtime.groups import GroupStep
from optdsl.runtime.inputs import Inputs, take, view_of
from optdsl.runtime.joint import drive
from optdsl.runtime.rule import Rule
from optdsl.runtime.shards import Parts, check_alone, check_shards, local_kernels, resharded
from optdsl.runtime.states import (
    TRAINED,
    State,
    as_real,
    compute_dtype,
    create_coded,
    facts_about,
    group_prototype,
    kept,
    restored,
    sharded,
    turn,
)
from optdsl.runtime.storage import BLOCK, CODES, LOW, SCALES, SPLITS, Coded, code
from optdsl.runtime.units import Cohorts, Unit, gather

_FLAGS = ("maximize", "foreach", "capturable", "differentiable", "fused", "overwrite_grad", "store")
# Refuses to be captured in a CUDA graph without `capturable`.
_HEALTH_CHECK = "_accelerator_graph_capture_health_check"
if not hasattr(torch.optim.Optimizer, _HEALTH_CHECK):
    _HEALTH_CHECK = "_cuda_graph_capture_health_check"


class _AsSaved:
    """Wraps a tensor of a state dict, so that `torch.optim.Optimizer` does not cast it; `store` is its group's."""

    def __init__(self, value: Tensor, store: Any = None) -> None:
        self.value = value
        self.store = store


def _without_autocast() -> contextlib.AbstractContextManager[Any]:
    """Where autocast would multiply the matrices of a step in fewer bits, what turns it off."""
    on = [kind for kind in ("cpu", "cuda", "xpu", "mps") if torch.is_autocast_enabled(kind)]
    if not on:
        return _NOTHING
    stack = contextlib.ExitStack()
    for kind in on:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


_NOTHING = contextlib.nullcontext()


class _Kernels:
    """Classes whose native kernels cannot be built in this process; each reason is told once."""

    missing: ClassVar[dict[type, str]] = {}
    told: ClassVar[set[str]] = set()

    @classmethod
    def lack(cls, rule: type, reason: str) -> None:
        """Notes that the kernels of a class cannot be had."""
        cls.missing[rule] = reason
        cls.tell(reason)

    @classmethod
    def tell(cls, reason: str) -> None:
        """Warns once of each reason; the warning points at who called `step`."""
        if reason in cls.told:
            return
        cls.told.add(reason)
        frame, level = inspect.currentframe(), 1
        while frame is not None and frame.f_globals.get("__name__", "").startswith(
            ("torch.", "optdsl.runtime.")
        ):
            frame, level = frame.f_back, level + 1
        warnings.warn(
            "optdsl runs without native kernels, several times slower; `fused=False` asks for none, and gives no "
            f"warning. The reason: {reason}",
            RuntimeWarning,
            stacklevel=level,
        )


def _wants_kernels(group: GroupStep) -> bool:
    """Whether the flags of a group ask for native kernels, or leave the choice."""
    flags = group.group
    if group.layouts and not local_kernels(group.rule, flags):
        return False
    if flags["fused"] is None:
        return flags["foreach"] is None and not group.differentiable
    return bool(flags["fused"])


class Optimizer(Rule, torch.optim.Optimizer):
    """Base of all generated optimizers.

    A generated class declares and defines what `Rule` lists; its constructor names its options and passes
    them on. Everything that a user sets lives in `defaults` and `param_groups`; what else is kept on an
    instance may be lost at any time. Group-level states are 0-dim tensors in the parameter groups.
    """

    #: What takes steps in backward (`step_in_backward`), or None; a copy of an optimizer has none.
    _in_backward: Any = None

    def __init__(
        self,
        params: ParamsT,
        options: Mapping[str, Any],
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        overwrite_grad: bool = False,
        store: str | Mapping[str, str] | None = None,
        seed: int | None = None,
    ) -> None:
        """Checks the options and flags; `options` are those of `_hypers`.

        `seed` is that of groups without one of their own that draw or round at random; None is 0.
        """
        self._forget()
        defaults = {
            **options,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "overwrite_grad": overwrite_grad,
            "store": store,
        }
        if seed is not None:
            defaults["seed"] = seed
        self._check_group(defaults)
        check_alone(self, defaults)
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Drops what is remembered between steps for speed alone."""
        #: Options of each group as they were last checked, and the names of those that hold tensors.
        self._checked: dict[int, tuple[tuple[Any, ...], tuple[str, ...], Any]] = {}
        self._options_in: Callable[[Mapping[str, Any]], tuple[Any, ...]]
        self._options_in = itemgetter(*(hyper.name for hyper in self._hypers), *_FLAGS)
        self._cohorts = Cohorts()
        self._launcher: Any = None
        self._parts = Parts()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `step` itself undoes the scaling of gradients and skips on overflow: `torch.amp.GradScaler` asks.

        That takes steps that are counted on the device, by kernels that take every tensor.
        """
        if self._native is None or self._native.lacking:
            return False
        if self._not_capturable is not None or self._starts_from_gradient:
            return False
        if type(self) in _Kernels.missing:
            return False
        launch = importlib.import_module("optdsl.runtime.native.launch")
        if any(
            sharded(p) and not local_kernels(self, group)
            for group in self.param_groups
            for p in group["params"]
        ):
            return False
        return all(
            (group["fused"] or (group["fused"] is None and group["foreach"] is None and group["capturable"]))
            and not group["differentiable"]
            and all(launch.counts_on_device(self._native, p.device) for p in group["params"])
            for group in self.param_groups
        )

    def _why_not_fused(self) -> str | None:
        """None, or why there are no native kernels."""
        return self._no_kernels if self._native is None else None

    def _why_not_captured(self, group: Mapping[str, Any]) -> str | None:
        """None, or why a step with these options cannot be captured."""
        if self._branches_on_lr and isinstance(group["lr"], Tensor):
            return "its step branches on the learning rate, which is in a tensor"
        return self._not_capturable

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises unless the options and flags of a group are allowed; puts the options into kept form."""
        for hyper in self._hypers:
            group[hyper.name] = check(hyper, group[hyper.name])
        check_flags(type(self).__name__, group, self._why_not_captured(group), self._why_not_fused())
        check_store(self, group)
        check_seed(self, group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, after checking the options that it sets itself."""
        if isinstance(param_group, dict):
            group = {**self.defaults, **param_group}
            self._check_group(group)
            param_group.update({name: group[name] for name in self.defaults if name in param_group})
            if "seed" in group:
                param_group["seed"] = group["seed"]
        super().add_param_group(param_group)
        try:
            check_shards(self, self.param_groups[-1])
            if self._in_backward is not None:
                self._in_backward.attend()
        except RuntimeError:
            self.param_groups.pop()
            raise

    def _check_changed(self, hyper: Hyper, value: Any) -> Any:
        """Raises unless a step can be taken with what an option is now; returns it as the group should keep it."""
        if hyper.name != "lr" or not self._divides_by_lr:
            return check(hyper, value, changed=True)
        try:
            return check(hyper, value)
        except ValueError as error:
            raise ValueError(
                f"{error}; {type(self).__name__} divides by it, so that a schedule must begin and end above 0"
            ) from None

    def _tensor_options(self, number: int, group: dict[str, Any]) -> tuple[str, ...]:
        """Checks the options that changed since the last step; names those that hold tensors."""
        values = self._options_in(group)
        known = self._checked.get(number)
        if known is not None and all(map(is_, values, known[0])) and group["store"] == known[2]:
            names = known[1]
            if names and not (group["capturable"] or group["differentiable"]):  # they are read anyway
                for hyper in self._hypers:
                    if hyper.name in names:
                        self._check_changed(hyper, group[hyper.name])
            return names
        changed = set()
        for position, hyper in enumerate(self._hypers):
            if known is None or values[position] is not known[0][position]:
                group[hyper.name] = self._check_changed(hyper, values[position])
                changed.add(hyper.name)
        check_flags(type(self).__name__, group, self._why_not_captured(group), self._why_not_fused())
        check_store(self, group)
        check_seed(self, group)
        check_shards(self, group)
        if known is not None and known[2] != group["store"] and any(map(self.state.get, group["params"])):
            raise ValueError(
                f"{type(self).__name__}: `store` was changed, but states are kept in the old formats already; make a "
                "new optimizer with the new `store`, and load this one's state dict into it"
            )
        for spec in self._states:
            for p in group["params"] if spec.delay in changed else ():
                if (held := self.state.get(p, {}).get(spec.key)) is not None:
                    turn(kept(spec, group, p), held, 0)  # raises if it was kept for another delay
        names = tuple(hyper.name for hyper in self._hypers if has_tensor(group[hyper.name]))
        store = group["store"]  # a dict may be changed where it is
        self._checked[number] = (
            self._options_in(group),
            names,
            dict(store) if isinstance(store, dict) else store,
        )
        return names

    @overload
    def step(self, closure: None = None, *, inputs: Inputs | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, inputs: Inputs | None = None) -> float: ...

    @_disable_dynamo
    def step(
        self, closure: Callable[[], float] | None = None, *, inputs: Inputs | None = None
    ) -> float | None:
        """Performs one optimization step.

        Args:
            closure: re-evaluates the model and returns the loss, which this method then returns.
            inputs: what the rule needs beside gradients, by name: a tensor for each parameter, as a list in the order
                of `param_groups` (None for a parameter without a gradient) or as a mapping from parameters. Each has
                the shape of its parameter. One that is a number for all (such as a loss) is a number or a tensor of
                one element.

        Raises:
            RuntimeError: an input that this step needs is missing, or the optimizer is in `eval()`.
            ValueError: an input is unknown or does not fit its parameter.
        """
        self._check_step()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = self._divides_by_lr and not self.state
        with (
            torch.set_grad_enabled(self.defaults["differentiable"]),
            _without_autocast(),
            self._standing_still() if first else _NOTHING,
        ):
            if self._scaled_on_host():
                self._advance_unscaled(inputs)
            else:
                self._advance(inputs)
        return loss

    @contextlib.contextmanager
    def _standing_still(self) -> Iterator[None]:
        """Lets a first step without any learning rate or gradient make states, where the rule divides by the rate.

        `torch.distributed.checkpoint` takes such a step to learn which states there are, and means to move nothing.
        """
        rates = [group["lr"] for group in self.param_groups]
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(map(float, rates)) or any(p.grad.any() for p in params):
            yield
            return
        before = [p.detach().clone() for p in params]
        try:
            for group in self.param_groups:
                group["lr"] = self.defaults["lr"]
            yield
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
            for p, old in zip(params, before, strict=True):
                p.copy_(old)
                if LOW in self.state.get(p, {}):
                    self.state[p][LOW].zero_()

    def _check_step(self) -> None:
        """Raises RuntimeError unless a step can be taken now."""
        getattr(self, _HEALTH_CHECK)()
        if self._viewing:
            raise RuntimeError(
                f"{type(self).__name__} is in eval(): its parameters hold what stands for them in evaluation; "
                "call `optimizer.train()` before `step()`"
            )

    def _step_alone(self, p: Tensor, place: Any) -> None:
        """The step of one parameter, for a rule that sees each by itself; `place` is where it is among all."""
        self._check_step()
        options = self.param_groups[place.number]
        names = self._tensor_options(place.number, options)
        group = GroupStep(self, place.number, {**options, "params": [p]}, names)
        states = {p: self.state[p]} if p in self.state else {}
        if self._inputs:
            take([group], {}, states)
        others = self._launcher, self._cohorts
        self._launcher, self._cohorts = place.launcher, place.cohorts
        try:
            with torch.no_grad(), _without_autocast():
                self._advance_by([group], states, [place.index])
        finally:
            place.launcher, place.cohorts = self._launcher, self._cohorts
            self._launcher, self._cohorts = others
            self.state.update(states)

    def _scaled_on_host(self) -> bool:
        """Whether a step by kernels is given what torch.amp.GradScaler hands over, where the host counts steps."""
        if getattr(self, "found_inf", None) is None and getattr(self, "grad_scale", None) is None:
            return False
        if self._native is None or not any(group["fused"] for group in self.param_groups):
            return False
        if importlib.import_module("optdsl.runtime.native.launch").interpreted():
            return False
        return all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])

    def _advance_unscaled(self, inputs: Inputs | None) -> None:
        """Takes the step with gradients that are not scaled, which last as long; no step at all after an overflow."""
        handed: dict[str, Any] = {}
        for name in ("found_inf", "grad_scale"):
            if name in vars(self):
                handed[name] = vars(self).pop(name)
        skip, scale = handed.get("found_inf"), handed.get("grad_scale")
        held = [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        try:
            if skip is not None and skip.item():
                return
            if scale is not None:
                for p, grad in held:
                    p.grad = grad / scale.item()
            self._advance(inputs)
        finally:
            for p, grad in held:
                p.grad = grad
            vars(self).update(handed)

    def _advance(self, inputs: Inputs | None = None) -> None:
        """Updates every parameter that has a gradient."""
        groups = [
            GroupStep(self, number, options, self._tensor_options(number, options))
            for number, options in enumerate(self.param_groups)
        ]
        if self._inputs or inputs:
            take(groups, inputs or {}, self.state)
        if not self._parts.enter(groups, self.state):
            self._advance_by(groups, self.state)
            return
        try:
            self._advance_by(groups, self._parts.states)
        finally:
            self._parts.leave(groups, self.state)

    def _advance_by(
        self,
        groups: Sequence[GroupStep],
        states: dict[Tensor, dict[str, Any]],
        firsts: Sequence[int] | None = None,
    ) -> None:
        """The step of all groups, whose parameters have these states.

        `firsts` are the places of their first parameters among all; those of all groups if not given.
        """
        if firsts is None:
            firsts = list(accumulate((len(group.group["params"]) for group in groups[:-1]), initial=0))
        left = self._launch(groups, firsts, states)
        joint = self._joint or any(group.meets for group in groups)
        waiting: list[Unit] = []
        for group, first, only in zip(groups, firsts, left, strict=False):
            units = gather(group, first, states, self._cohorts, only) if only is None or only else []
            if joint:
                waiting += units
                continue
            for unit in units:
                unit.open()
                self._store(unit, unit.call(), states)
            group.settle()
        if joint:
            for unit in waiting:
                unit.open()
            for unit, result in zip(waiting, drive([unit.task() for unit in waiting]), strict=True):
                self._store(unit, result, states)
            for group in groups:
                group.settle()

    # ---- evaluation ---------------------------------------------------------------------------------------

    @property
    def _viewing(self) -> bool:
        """Whether something stands for the parameters now."""
        return self._view is not None and any(not g.get("train_mode", True) for g in self.param_groups)

    @torch.no_grad()
    def eval(self) -> None:
        """Puts into the parameters what stands for them while the model is evaluated, as the rule's `eval:` says.

        `train()` brings back what they were, bit for bit; until then `step()` is refused. A state dict that is saved
        in between goes on in between. Does nothing for a rule without `eval:`, or where it is done already.
        """
        if self._view is None or self._viewing:
            return
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for number, options in enumerate(self.param_groups):
            group = GroupStep(self, number, options, self._tensor_options(number, options))
            self._parts.enter([group], self.state, gradients=False)
            states = self._parts.states if group.layouts else self.state
            try:
                for p, part in zip(options["params"], group.group["params"], strict=True):
                    if states.get(part):
                        found.append((p, part, view_of(group, part, states[part])))
            finally:
                group.leave_parts()
        for p, part, value in found:
            self.state[p][TRAINED] = p.detach().clone(memory_format=torch.preserve_format)
            as_real(part.detach()).copy_(value)
        for options in self.param_groups:
            options["train_mode"] = False

    @torch.no_grad()
    def train(self, mode: bool = True) -> None:
        """Brings the parameters back to what `eval()` found; `train(False)` is `eval()`."""
        if not mode:
            self.eval()
            return
        if not self._viewing:
            return
        for options in self.param_groups:
            for p in options["params"]:
                held = self.state[p].pop(TRAINED, None) if p in self.state else None
                if held is not None:
                    p.detach().copy_(held)
            options["train_mode"] = True

    # ---- kernels ------------------------------------------------------------------------------------------

    def _launch(
        self, groups: Sequence[GroupStep], firsts: Sequence[int], states: dict[Tensor, dict[str, Any]]
    ) -> Sequence[Collection[int] | None]:
        """Runs native kernels where they are wanted and can be had.

        Returns for each group the positions of the parameters that are left, None for all.
        """
        everything = [None] * len(groups)
        if self._native is None or not any(map(_wants_kernels, groups)):
            return everything
        skip, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        for group in groups:
            group.native = _wants_kernels(group)
            group.skip, group.scale = skip, scale
        launcher = self._launcher
        if launcher is None and type(self) not in _Kernels.missing:
            native = importlib.import_module("optdsl.runtime.native.launch")
            launcher = self._launcher = native.Launcher(type(self), self._native)
        if launcher is not None:
            left: Sequence[Collection[int] | None] | None = launcher.step(groups, firsts, states)
            for reason in launcher.lacking.values():
                _Kernels.tell(reason)
            if left is not None:
                if self._cohorts.known:  # of steps under `capturable`
                    self._cohorts = Cohorts()
                return left
            self._launcher = None
            _Kernels.lack(type(self), launcher.failure)
        if skip is not None or scale is not None:
            raise RuntimeError(
                f"{type(self).__name__} has no kernels ({_Kernels.missing[type(self)]}), and only they take the "
                "scaling of gradients back; use `fused=False`, with which the scaler does it"
            )
        for group in groups:
            group.kernels_missing = group.native
        return everything

    def _store(self, unit: Unit, result: Any, states: dict[Tensor, dict[str, Any]]) -> None:
        """Keeps the result of one unit."""
        unit.store(result, states)
        self._cohorts.advance(unit.params)

    def state_dict(self) -> dict[str, Any]:
        """The state dict; `store` of a group that has states in codes says which, even if the class itself does."""
        found = super().state_dict()
        usual = {spec.key: spec.stored for spec in self._states if spec.in_codes}
        for group in found["param_groups"] if usual else ():
            if not isinstance(group["store"], str):
                group["store"] = {**usual, **(group["store"] or {})}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class, or of the class of the same method in torch.optim.

        States return in the dtype in which this class keeps them, bit for bit if they were saved so, and
        share no memory with `state_dict`. Options which the state dict lacks, or holds as None where a value is
        needed, stay as they are.

        Raises:
            ValueError: the state dict is not one of these parameters: it has other groups, lacks a state, holds one
                of another shape or kind, or an option that is not allowed. Nothing is changed then.
        """
        state, groups = self.state, self.param_groups
        # The last of the hooks that see the state dict before torch takes it.
        handle = self.register_load_state_dict_pre_hook(_as_saved)
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            self.state, self.param_groups = state, groups
            self._forget()
            raise
        finally:
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes a loaded or unpickled state, and fills in what an older version did not have."""
        super().__setstate__(state)
        self._forget()
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if parameter.default is not parameter.empty and name != "seed":
                self.defaults.setdefault(name, parameter.default)
        first = 0
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            check_seed(self, group)
            if group["params"]:
                like = group_prototype(group["params"])
                for spec in self._states:
                    if spec.level == "group" and not spec.given and group.get(spec.key) is not None:
                        group[spec.key] = restored(spec.key, spec, group[spec.key], like, False)
            for number, p in enumerate(group["params"], first):
                if self.state.get(p):
                    try:
                        self._restore(p, self.state[p], group)
                    except ValueError as error:
                        raise ValueError(f"parameter {number}: {error}") from None
            first += len(group["params"])

    def _restore(self, p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Brings the loaded state of one parameter into the form in which `step` keeps it."""
        capturable = bool(group["capturable"])
        if LOW in state:
            self._restore_low(p, state, group)
        for key in [key for key in state if key + SCALES in state and key in self._specs]:
            self._restore_coded(p, state, key, kept(self._specs[key], group, p))
        for key, value in list(state.items()):
            spec = self._specs.get(key)
            spec = spec and kept(spec, group, p)
            if value is None:  # torch.optim.SGD notes so that it has no buffer
                del state[key]
            elif spec is not None and spec.in_codes:
                if key + SCALES not in state:
                    given = torch.as_tensor(value.value if isinstance(value, _AsSaved) else value)
                    _check_scales(key, given)
                    usual = replace(spec, stored="f64" if p.dtype is torch.float64 else "f32")
                    made = create_coded(spec, p, restored(key, usual, given, p, capturable))
                    state[key], state[key + SCALES] = made.codes, made.scales
            elif isinstance(value, _AsSaved):
                if spec is not None:
                    _check_scales(key, value.value)
                state[key] = restored(key, spec, value.value, p, capturable)
            elif not isinstance(value, Tensor) and (key == "step" or spec is not None):
                state[key] = restored(key, spec, value, p, capturable)
        for key, value in state.items():
            state[key] = resharded(self, group, p, key, value)
        if state and "step" not in state:  # torch.optim.SGD counts no steps, but took one at least
            state["step"] = restored("step", None, 1.0, p, capturable)

    def _restore_coded(self, p: Tensor, state: dict[str, Any], key: str, spec: State) -> None:
        """A loaded state in codes: as it is if this class keeps it so, else what the codes stand for."""
        codes: Any = state[key]
        scales: Any = state[key + SCALES]
        name = spec.stored  # of a copy, which has the formats of its group
        if isinstance(codes, _AsSaved):
            store, codes, scales = codes.store, codes.value, scales.value
            named = store.get(key) if isinstance(store, Mapping) else store
            name = named or self._specs[key].stored or name
        if name not in CODES:
            raise ValueError(
                f"state {key!r} of the loaded state dict is in codes, but its group says {name!r}"
            )
        table = code(name, spec.positive, p.device)
        if codes.dtype is not torch.uint8 or not scales.is_floating_point():
            raise ValueError(
                f"state {key!r} of the loaded state dict has codes of {codes.dtype} and scales of {scales.dtype}, "
                "not of torch.uint8 and torch.float32"
            )
        numbers = p.numel() if table.bits == 8 else (p.numel() + 1) // 2
        other = table.bits == 8 and codes.squeeze().shape != p.squeeze().shape
        if other or codes.numel() != numbers or scales.numel() != -(-p.numel() // BLOCK):
            raise ValueError(
                f"state {key!r} of the loaded state dict has {codes.numel()} codes of shape {tuple(codes.shape)} and "
                f"{scales.numel()} scales, but this parameter of shape {tuple(p.shape)} needs {numbers} and "
                f"{-(-p.numel() // BLOCK)}"
            )
        held = Coded(
            codes.detach().to(p.device).reshape(p.shape if table.bits == 8 else (numbers,)).clone(),
            scales.detach().to(p.device, torch.float32).reshape(-1).clone(),
            table,
            p.shape,
        )
        if name == spec.stored:
            state[key], state[key + SCALES] = held.codes, held.scales
        else:
            del state[key + SCALES]
            state[key] = _AsSaved(held.open(compute_dtype(p.dtype)))

    def _restore_low(self, p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """What is loaded beside a parameter, if it is kept so here; its form is changed by the next step."""
        low: Any = state.pop(LOW)
        low = low.value if isinstance(low, _AsSaved) else low
        store = group.get("store")
        form = store.get("p") if isinstance(store, Mapping) else None
        if form not in SPLITS or p.dtype is not torch.bfloat16:
            return
        if not isinstance(low, Tensor) or low.dtype not in SPLITS.values() or low.shape != p.shape:
            what = f"of {low.dtype}, shape {tuple(low.shape)}" if isinstance(low, Tensor) else repr(low)
            raise ValueError(
                f"{LOW!r} of the loaded state dict is {what}; beside this parameter is a tensor of shape "
                f"{tuple(p.shape)}"
            )
        state[LOW] = low.detach().to(p.device).clone()


def _check_scales(key: str, value: Tensor) -> None:
    """Raises ValueError for codes without scales."""
    if isinstance(value, Tensor) and value.dtype is torch.uint8:
        raise ValueError(
            f"state {key!r} of the loaded state dict is in codes, but has no {key + SCALES!r} beside it"
        )


def _as_saved(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict whose tensors torch passes on as they are, and whose groups have all options.

    Not every class has fused kernels, and some cannot be captured, so these two flags may be dropped.
    """
    known = {number: group.get("store") for group in state_dict["param_groups"] for number in group["params"]}
    state = {
        number: {
            key: _AsSaved(value, known[number]) if isinstance(value, Tensor) else value
            for key, value in entry.items()
        }
        if number in known and isinstance(entry, dict)
        else entry
        for number, entry in state_dict["state"].items()
    }
    groups = list(state_dict["param_groups"])
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(
            f"loaded state dict has a different number of parameter groups: {len(groups)}, and here are "
            f"{len(optimizer.param_groups)}"
        )
    for number, current in enumerate(optimizer.param_groups):
        if len(groups[number]["params"]) != len(current["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group: "
                f"group {number} has {len(groups[number]['params'])} parameters, and here {len(current['params'])}"
            )
        options = {name: current[name] for name in (*optimizer.defaults, "seed") if name in current}
        saved = groups[number]
        groups[number] = {**options, **saved}
        if "store" in options:  # states that are loaded are brought into the formats of this optimizer
            groups[number]["store"] = options["store"]
        if groups[number]["fused"] and getattr(optimizer, "_native", None) is None:
            groups[number]["fused"] = None
        if isinstance(optimizer, Optimizer):
            if optimizer._not_capturable is not None:
                groups[number]["capturable"] = False
            _check_loaded(optimizer, number, saved, groups[number], state_dict["state"])
    return {**state_dict, "state": state, "param_groups": groups}


def _check_loaded(
    optimizer: Optimizer,
    number: int,
    saved: Mapping[str, Any],
    group: dict[str, Any],
    states: Mapping[Any, Any],
) -> None:
    """Raises ValueError unless a loaded group has what its options call for; `saved` is it before it got all options.

    A group that lacks options is of an older version, whose branches are not known, and may lack states.
    """
    current = optimizer.param_groups[number]
    for hyper in optimizer._hypers:
        value = group[hyper.name]
        if hyper.parts and isinstance(
            value, tuple | list
        ):  # torch leaves to a later time what it has None for
            pairs = zip(value, current[hyper.name], strict=False)
            value = tuple(own if part is None else part for part, own in pairs) if None in value else value
        elif value is None:
            value = current[hyper.name]
        try:
            group[hyper.name] = check(hyper, value, changed=True)
        except (TypeError, ValueError) as error:
            raise ValueError(f"group {number} of the loaded state dict: {error}") from None
    if not all(hyper.name in saved for hyper in optimizer._hypers):
        return
    names = [hyper.name for hyper in optimizer._hypers if has_tensor(group[hyper.name])]
    options = with_plain_options(group, names, False, False, torch.device("cpu"))
    for name, p in zip(saved["params"], current["params"], strict=True):
        entry = states.get(name)
        if not isinstance(entry, dict) or not any(value is not None for value in entry.values()):
            continue
        specs = [optimizer._specs[key] for key in optimizer._live(options, facts_about(p))]
        needed = [spec.key for spec in specs if not spec.given and spec.level != "group"]
        # torch.optim.SGD counts no steps
        missing = [] if set(entry) == {"momentum_buffer"} else ["step"]
        missing = [key for key in (*missing, *needed) if entry.get(key) is None]
        if missing:
            listed = ", ".join(map(repr, missing))
            raise ValueError(f"the loaded state dict lacks {listed} in the state of parameter {name}")
        for spec in specs:
            if spec.level == "group" and not spec.given and group.get(spec.key) is None:
                raise ValueError(f"the loaded state dict lacks {spec.key!r} in its group {number}")
