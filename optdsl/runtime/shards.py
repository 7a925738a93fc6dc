"""Parameters that are cut among processes (DTensors, as of FSDP2): what this process has of them, as plain tensors.

A step sees local parts. A `Layout` knows the whole tensor: its facts, which elements are here, and the processes with
which a reduction is to be completed. States per element, row or column are kept as DTensors, too, so that a state
dict can be saved and resharded; what is one number per tensor is the same everywhere, and a plain tensor.
"""

import functools
import math
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.groups import GroupStep
from optdsl.runtime.states import TRAINED, Facts, State, facts_of, kept, shape_of, sharded, sharded_type
from optdsl.runtime.storage import CODES, LOW

ParamState = dict[str, Any]
#: A partial result, "sum" or "max", and the groups of processes that have the others.
Part = tuple[Tensor, str, Sequence[Any]]


class Layout:
    """How one tensor is cut: `shape` is that of the whole, `cuts` a process group and a dimension per cut."""

    def __init__(
        self, mesh: Any, placements: tuple[Any, ...], shape: torch.Size, stride: tuple[int, ...]
    ) -> None:
        self.mesh = mesh
        self.placements = placements
        self.shape = shape
        self.stride = stride
        self.facts: Facts = facts_of(shape)
        self.cuts = tuple(
            (mesh.get_group(number), dim)
            for number, placement in enumerate(placements)
            if (dim := _cut(placement)) is not None and mesh.size(number) > 1
        )

    def groups(self, of: str, over: str) -> tuple[Any, ...]:
        """With which processes a reduction of values at level `of` is to be completed, one group behind the other."""
        dims = self._dims(of) & self._dims({"rows": "cols", "cols": "rows"}.get(over, "element"))
        return tuple(group for group, dim in self.cuts if dim in dims)

    def _dims(self, level: str) -> set[int]:
        """Dimensions of the tensor in which values at a level have more than one entry."""
        ndim = len(self.shape)
        dims = {"element": range(ndim), "rows": range(min(1, ndim)), "cols": range(1, ndim)}
        return set(dims.get(level, ()))

    def count(self, of: str, over: str) -> int:
        """How many entries of values at level `of` one number over `over` is made of."""
        dims = self._dims(of) & self._dims({"rows": "cols", "cols": "rows"}.get(over, "element"))
        return math.prod(self.shape[dim] for dim in dims)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where the part of this process begins, in each dimension."""
        sizes, begins = list(self.shape), [0] * len(self.shape)
        for number, placement in enumerate(self.placements):
            if _cut(placement) is not None:
                # as torch.chunk cuts: the last parts may be smaller, or empty
                part = -(-sizes[placement.dim] // self.mesh.size(number))
                begin = min(sizes[placement.dim], part * self.mesh.get_local_rank(number))
                begins[placement.dim] += begin
                sizes[placement.dim] = min(part, sizes[placement.dim] - begin)
        return tuple(begins)

    def placed(self, level: str, delayed: bool = False) -> tuple[Any, ...]:
        """Placements of values at a level: as the tensor is cut, in the dimensions that they have."""
        from torch.distributed.tensor import Replicate, Shard

        dims = self._dims(level)
        return tuple(
            Replicate() if _cut(placement) not in dims else Shard(placement.dim + 1) if delayed else placement
            for placement in self.placements
        )

    def kept(self, x: Tensor, level: str, shape: Sequence[int], delayed: bool = False) -> Any:
        """The DTensor of which `x` is the part of this process; `shape` is that of the whole."""
        from torch.distributed.tensor import DTensor

        same = level == "element" and tuple(shape) == tuple(self.shape)
        stride = self.stride if same and not x.is_contiguous() else _contiguous(shape)
        placements = self.placed(level, delayed)
        return DTensor.from_local(
            x, self.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
        )

    def whole(self, x: Tensor, level: str) -> Tensor:
        """All parts of values at a level, gathered; every process of the mesh has to ask for them."""
        if not self.groups(level, "tensor"):
            return x
        ends = x.shape[len(self.shape) :]  # a complex number is a pair
        shape = [size if dim in self._dims(level) else 1 for dim, size in enumerate(self.shape)]
        found: Tensor = self.kept(x.contiguous(), level, (*shape, *ends)).full_tensor()
        return found

    def part(self, x: Tensor, level: str) -> Tensor:
        """What this process has of values at a level of which all are given."""
        from torch.distributed.tensor import DTensor, Replicate

        if not self.groups(level, "tensor"):
            return x
        everywhere = DTensor.from_local(x, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        found: Tensor = everywhere.redistribute(self.mesh, self.placed(level)).to_local()
        return found


def _cut(placement: Any) -> int | None:
    """The dimension that is cut, None for copies; `is_shard` does not know of all ways to cut."""
    return getattr(placement, "dim", None)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(max(size, 1) for size in shape[dim + 1 :]) for dim in range(len(shape)))


def layout_of(p: Any, known: Layout | None = None) -> Layout:
    """The layout of a DTensor; `known` if that is it."""
    mesh, placements = p.device_mesh, tuple(p.placements)
    if known is not None and known.mesh is mesh and known.placements == placements and known.shape == p.shape:
        return known
    return Layout(mesh, placements, p.shape, p.stride())


def complete(parts: Sequence[Part]) -> list[Tensor]:
    """Puts partial results together.

    All tensors of one group, kind and device go in one message, in the widest of their dtypes. A nan wins.
    """
    from torch import distributed

    values = [value for value, _, _ in parts]
    for depth in range(max((len(groups) for _, _, groups in parts), default=0)):
        messages: dict[Any, list[int]] = {}
        for number, (value, kind, groups) in enumerate(parts):
            if depth < len(groups):
                messages.setdefault((groups[depth], kind, value.device), []).append(number)
        for (group, kind, _), numbers in messages.items():
            dtype = functools.reduce(torch.promote_types, (values[number].dtype for number in numbers))
            flat = torch.cat([values[number].to(dtype).reshape(-1) for number in numbers])
            if kind == "sum":
                distributed.all_reduce(flat, distributed.ReduceOp.SUM, group=group)
            else:  # what is the larger of a number and nan is left open there
                bad = flat.isnan()
                both = torch.cat([flat.masked_fill(bad, -math.inf), bad.to(dtype)])
                distributed.all_reduce(both, distributed.ReduceOp.MAX, group=group)
                flat, bad = both[: len(flat)], both[len(flat) :] > 0
                flat = flat.masked_fill(bad, math.nan)
            pieces = flat.split([values[number].numel() for number in numbers])
            for number, piece in zip(numbers, pieces, strict=True):
                values[number] = piece.reshape(values[number].shape)
    return values


# ---- what cannot be done -----------------------------------------------------------------------------------


def check_shards(rule: Any, group: Mapping[str, Any]) -> None:
    """Raises RuntimeError for parameters that are cut among processes in a way which the rule cannot take."""
    name = type(rule).__name__
    for p in group["params"]:
        if sharded(p):
            reason = _why_not(rule, group, p)
            if reason is not None:
                raise RuntimeError(f"{name} does not support sharded parameters: {reason}")
        elif getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False):
            reason = _why_not_flat(rule, group, p)
            if reason is not None:
                raise RuntimeError(
                    f"{name} does not support flat parameters of FullyShardedDataParallel: {reason}; "
                    "fully_shard keeps tensors apart, and is supported"
                )


def check_alone(rule: Any, group: Mapping[str, Any]) -> None:
    """Raises RuntimeError for a rule that must see all parameters in an optimizer of a ZeroRedundancyOptimizer.

    That gives each process an optimizer of whole tensors, but of some of them only, and does not say so: what is
    being made is to be found among the callers.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    reason = _why_not_some(rule, group)
    if module is None or reason is None:
        return
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if isinstance(frame.f_locals.get("self"), module.ZeroRedundancyOptimizer):
            raise RuntimeError(f"{type(rule).__name__} does not support ZeroRedundancyOptimizer: {reason}")


def _why_not_some(rule: Any, group: Mapping[str, Any]) -> str | None:
    """Why a rule must see all tensors, or None."""
    if rule._joint:
        return "it reduces over all tensors, of which each process has only some"
    if rule._random or _rounds(rule, group):
        return "it draws at random by the position of a tensor among all, which a process does not know"
    return None


def _why_not(rule: Any, group: Mapping[str, Any], p: Any) -> str | None:
    """Why a DTensor cannot take a step, or None."""
    if rule._shards is None:
        return "it was compiled by an older version of optdsl; compile it again"
    if not rule._view_shards:
        return "what `eval:` says needs whole tensors"
    if group["differentiable"]:
        return "not with `differentiable`"
    if group["fused"] and not local_kernels(rule, group):
        return f"`fused=True` is for rules without reductions or draws, and {_what(rule) or 'it draws'}"
    for spec in rule._states:
        found = kept(spec, group, p)
        if found.stored in CODES:
            return f"the state {spec.key!r} is kept in codes, whose scales are for blocks of a whole tensor"
    if p.device_mesh.get_coordinate() is None:
        return "this process has no part of one"
    for placement in p.placements:
        if _cut(placement) is None and not placement.is_replicate():
            return f"one is placed as {placement!r}"
        if _cut(placement) is not None and type(placement).__name__ != "Shard":
            # which elements a process has is for torch alone to know
            if rule._random or _rounds(rule, group):
                return (
                    f"it draws at random for each element, of which not all are told apart in {placement!r}"
                )
            if any(spec.delay is not None for spec in rule._states):
                return f"it delays states, and one is placed as {placement!r}"
    return None


def _why_not_flat(rule: Any, group: Mapping[str, Any], p: Tensor) -> str | None:
    """Why a flat parameter, which hides where tensors begin and end, cannot take a step, or None."""
    if rule._shards is None:
        return "it was compiled by an older version of optdsl; compile it again"
    if found := _what(rule):
        return found
    if rule._bucket_facts:
        return f"it asks for {', '.join(rule._bucket_facts)} of each tensor"
    if rule._random or _rounds(rule, group):
        return "it draws at random for each element of a tensor"
    return None


def _what(rule: Any) -> str | None:
    """What a rule needs of a tensor beyond its elements, or None."""
    if rule._shards == "whole":
        return "it needs whole tensors"
    if rule._joint:
        return "it reduces over several tensors"
    return "it reduces over tensors, rows or columns" if rule._shards == "reduced" else None


def _rounds(rule: Any, group: Mapping[str, Any]) -> bool:
    """Whether a parameter or a state may be rounded at random."""
    store = group.get("store")
    formats = [spec.stored for spec in rule._states]
    formats += store.values() if isinstance(store, Mapping) else [store]
    return "bf16_sr" in formats


def local_kernels(rule: Any, group: Mapping[str, Any]) -> bool:
    """Whether native kernels do the right thing with parts of tensors that know nothing of the whole."""
    if _what(rule) is not None or rule._random or _rounds(rule, group):
        return False
    return set(rule._bucket_facts) <= {"ndim"}


# ---- a step ------------------------------------------------------------------------------------------------


class Parts:
    """The local parts of the sharded parameters of one optimizer, and their states as steps see them."""

    def __init__(self) -> None:
        self.states: dict[Tensor, ParamState] = {}
        self.layouts: dict[Tensor, Layout] = {}

    def enter(
        self, groups: Sequence[GroupStep], states: Mapping[Tensor, ParamState], gradients: bool = True
    ) -> bool:
        """Puts local parts in place of sharded parameters, their gradients, states and inputs; False without any."""
        types = {kind for group in groups for kind in set(map(type, group.group["params"]))}
        if not any(map(sharded_type, types)):
            self.states, self.layouts = {}, {}
            return False
        seen: dict[Tensor, ParamState] = {}
        grads: list[tuple[Tensor, Tensor | None]] = []
        entered: list[tuple[GroupStep, list[Tensor], dict[Tensor, Layout], Any]] = []
        for group in groups:
            params = [local(p) if sharded(p) else p for p in group.group["params"]]
            layouts: dict[Tensor, Layout] = {}
            inputs: dict[str, dict[Tensor, Tensor]] = {key: {} for key in group.inputs}
            for p, part in zip(group.group["params"], params, strict=True):
                if state := states.get(p):
                    seen[part] = state if part is p else self._seen(part, state)
                if part is not p:
                    layouts[part] = self.layouts[part] = layout_of(p, self.layouts.get(part))
                    grads.append((part, _gradient(group.rule, p) if gradients else None))
                for key, given in group.inputs.items():
                    if p in given:
                        inputs[key][part] = _given(group.rule, key, p, given[p])
            entered.append((group, params, layouts, inputs))
        for group, params, layouts, group.inputs in entered:
            group.take_parts(params, layouts)
        for part, grad in grads:
            part.grad = grad
        # of these the kernels ask whether they are still the same objects
        for part in [part for part in self.states if part not in seen]:
            del self.states[part]
        current = {part for part, _ in grads}
        for part in [part for part in self.layouts if part not in current]:
            del self.layouts[part]
        self.states.update(seen)
        return True

    def _seen(self, part: Tensor, state: ParamState) -> ParamState:
        """The state of a sharded parameter as plain tensors; the same object as long as there is one."""
        known = self.states.get(part)
        if known is None or known.keys() != state.keys():
            known = {}
        for key, value in state.items():
            plain = local(value) if sharded(value) else value
            if known.get(key) is not plain:
                known[key] = plain
        return known

    def leave(self, groups: Sequence[GroupStep], states: MutableMapping[Tensor, ParamState]) -> None:
        """Keeps what is new; every group has its parameters again."""
        changed: list[Tensor] = []
        for group in groups:
            originals = group.original["params"]
            for p, part in zip(originals, group.group["params"], strict=True):
                layout = group.layouts.get(part)
                state = self.states.get(part)
                if layout is None:
                    if state is not None and states.get(p) is not state:
                        states[p] = state
                    continue
                if part.grad is not None:
                    part.grad = None
                    changed.append(p)
                if state is not None:
                    self._keep(group, p, layout, state, states)
            group.leave_parts()
        torch.autograd.graph.increment_version(changed)

    def _keep(
        self,
        group: GroupStep,
        p: Tensor,
        layout: Layout,
        state: ParamState,
        states: MutableMapping[Tensor, ParamState],
    ) -> None:
        """Keeps the new states of one parameter as DTensors."""
        held = states.get(p)
        if held is None:
            held = states[p] = {}
        for key, value in state.items():
            old = held.get(key)
            if (local(old) if sharded(old) else old) is value:
                continue
            level = level_of(group.rule, key)
            if level is None:
                held[key] = value
                continue
            held[key] = placed(group.rule._specs.get(key), group.original, p, layout, value, level)
            state[key] = local(held[key])


def placed(
    spec: State | None, group: Mapping[str, Any], p: Tensor, layout: Layout, value: Tensor, level: str
) -> Any:
    """The DTensor of a state of which this process has `value`."""
    spec = kept(spec, group, p) if spec is not None else State("", "element")
    delayed = spec.delay is not None
    return layout.kept(value, level, shape_of(spec, p.shape), delayed)


def resharded(rule: Any, group: Mapping[str, Any], p: Any, key: str, value: Any) -> Any:
    """A loaded state of which the whole is given, or parts as another run had them, as this parameter has it."""
    if not isinstance(value, Tensor):
        return value
    whole: Any = value
    level = level_of(rule, key)
    if not sharded(p) or level is None:
        return whole.full_tensor() if sharded(whole) else whole
    from torch.distributed.tensor import DTensor, Replicate

    spec = rule._specs.get(key)
    mesh = p.device_mesh
    placements = layout_of(p).placed(level, spec is not None and kept(spec, group, p).delay is not None)
    if sharded(whole) and whole.device_mesh != mesh:
        whole = whole.full_tensor()
    if not sharded(whole):
        whole = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(mesh, placements)


def level_of(rule: Any, key: str) -> str | None:
    """At which level a part of a state dict is cut as its parameter is; None for what is the same everywhere."""
    if key in ("p", LOW, TRAINED):
        return "element"
    spec = rule._specs.get(key)
    return spec.level if spec is not None and spec.level in ("element", "rows", "cols") else None


def local(x: Any) -> Tensor:
    """What this process has of a DTensor: the same object each time, which `to_local` does not promise."""
    found: Tensor = x._local_tensor
    if hasattr(found, "wait"):  # it is still on its way
        found = found.wait()
    return found


def _gradient(rule: Any, p: Any) -> Tensor | None:
    """The part of the gradient that belongs to the part of the parameter. Raises RuntimeError."""
    grad: Any = p.grad
    if grad is None:
        return None
    name = type(rule).__name__
    if not sharded(grad):
        raise RuntimeError(f"{name}: the gradient of a sharded parameter is a plain tensor")
    return _placed_as(name, "gradient", p, grad)


def _given(rule: Any, key: str, p: Any, x: Any) -> Any:
    """The part of an input that belongs to the part of a parameter. Raises ValueError."""
    if not sharded(p):
        return x
    name = type(rule).__name__
    if not sharded(x):
        raise ValueError(f"{name}: the input {key!r} of a sharded parameter is a plain tensor")
    return _placed_as(name, f"input {key!r}", p, x)


def _placed_as(name: str, what: str, p: Any, x: Any) -> Tensor:
    """The part of a DTensor that belongs to the part of a parameter, wherever it is now."""
    if x.device_mesh != p.device_mesh:
        raise RuntimeError(f"{name}: the {what} of a sharded parameter is on another mesh: {x.device_mesh}")
    if tuple(x.placements) != tuple(p.placements):
        x = x.redistribute(p.device_mesh, p.placements)
    return local(x)
