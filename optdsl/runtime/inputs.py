"""What a step is given beside gradients, and what stands for a parameter while the model is evaluated."""

import numbers as number_types
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.groups import GroupStep
from optdsl.runtime.states import State, compute_dtype, facts_about, kept, opened, turn
from optdsl.runtime.storage import SCALES, Coded, Packed, code

#: Tensors for parameters, or one number, by the name of an input: see `Optimizer.step`.
Inputs = Mapping[str, Mapping[Tensor, Tensor] | Sequence[Tensor | None] | Tensor | float]
#: Types in which an input is read as it is.
_TAKEN = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.complex64, torch.complex128),
)


def take(groups: Sequence[GroupStep], inputs: Inputs, states: MutableMapping[Tensor, dict[str, Any]]) -> None:
    """Checks what a step is given, and hands it to its groups. Changes nothing else. Raises as `step` does."""
    rule = groups[0].rule
    name, known = type(rule).__name__, ", ".join(map(repr, rule._inputs))
    params = [p for group in groups for p in group.group["params"]]
    found: dict[str, dict[Tensor, Tensor]] = {}
    numbers: dict[str, Tensor] = {}
    if not isinstance(inputs, Mapping):
        raise ValueError(
            f"{name}: `inputs` is a mapping from names to what is given, not a {type(inputs).__name__}; "
            + (f"its inputs are {known}" if known else "it takes none")
        )
    for key, given in inputs.items():
        if key not in rule._inputs:
            has = f"its inputs are {known}" if known else "it takes none"
            raise ValueError(f"{name} has no input {key!r}: {has}")
        if rule._specs[key].level == "group":
            numbers[key] = _number(name, key, given)
            continue
        if isinstance(given, Tensor | float | int):
            raise ValueError(
                f"{name}: the input {key!r} has a value for each element: give it a tensor per parameter"
            )
        if isinstance(given, Mapping):
            pairs: list[tuple[Tensor, Tensor | None]] = list(given.items())
        else:
            if len(given) != len(params):
                raise ValueError(
                    f"{name}: the input {key!r} has {len(given)} entries for {len(params)} parameters; give None for "
                    "one without a gradient, or a mapping from parameters to tensors"
                )
            pairs = list(zip(params, given, strict=True))
        found[key] = {p: _fitting(name, key, p, x) for p, x in pairs if x is not None}
    for group in groups:
        group.inputs, group.numbers = found, numbers
        for p in group.group["params"]:
            if p.grad is None:
                continue
            state = states.get(p)
            t: Any = 1
            if state:
                t = state["step"].to(torch.float64) + 1.0 if group.capturable else int(state["step"]) + 1
            for key in rule._wanted(group.options(p.device), t, facts_about(p)):
                if rule._specs[key].level == "group":
                    if key not in numbers:
                        raise RuntimeError(
                            f"{name}: this step needs the input {key!r}, one number; pass it as "
                            f"`step(inputs={{{key!r}: ...}})`"
                        )
                elif p not in found.get(key, {}):
                    raise RuntimeError(
                        f"{name}: this step needs the input {key!r} for each parameter that has a gradient; pass it "
                        f"as `step(inputs={{{key!r}: [...]}})`"
                    )


def _number(name: str, key: str, x: Any) -> Tensor:
    """An input that is one number, as a 0-dim tensor without a graph. Raises ValueError for anything else."""
    if isinstance(x, Tensor):
        if x.numel() == 1 and not x.is_complex() and x.layout is torch.strided:
            return x.detach().reshape(())
        raise ValueError(
            f"{name}: the input {key!r} is one number, not a tensor of {x.dtype}, shape {tuple(x.shape)}"
        )
    if isinstance(x, number_types.Real) and not isinstance(x, bool):
        return torch.tensor(float(x), dtype=torch.float64)
    raise ValueError(f"{name}: the input {key!r} is one number, not {x!r}")


def _fitting(name: str, key: str, p: Tensor, x: Any) -> Tensor:
    """An input without a graph behind it. Raises ValueError for one that does not fit its parameter."""
    if not isinstance(x, Tensor) or x.shape != p.shape or x.device != p.device:
        what = f"a tensor of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else repr(x)
        raise ValueError(
            f"{name}: the input {key!r} of a parameter of shape {tuple(p.shape)} on {p.device} is {what}"
        )
    if x.layout is not torch.strided:
        raise ValueError(
            f"{name}: the input {key!r} is sparse; `to_dense()` makes a tensor that can be taken"
        )
    if x.is_complex() != p.is_complex() or not (x.is_complex() or x.is_floating_point()):
        raise ValueError(f"{name}: the input {key!r} is {x.dtype} for a parameter of {p.dtype}")
    taken: Tensor = x if x.dtype in _TAKEN else x.to(p.dtype)
    return taken.detach() if taken.requires_grad else taken


def _opened(spec: State, p: Tensor, state: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """A state as the rule sees it."""
    held: Tensor = state[spec.key]
    if spec.delay is not None:  # what the next step is to read
        held = turn(spec, held, int(state["step"].item()))
    if not spec.in_codes:
        return opened(held, dtype)
    table = code(str(spec.stored), spec.positive, p.device)
    return Coded(held, state[spec.key + SCALES], table, p.shape).open(dtype)


def view_of(group: GroupStep, p: Tensor, state: Mapping[str, Any]) -> Tensor:
    """What stands for a parameter that has taken a step."""
    rule, dtype, facts = group.rule, compute_dtype(p.dtype), group.facts(p)
    options = group.options(p.device)
    held = group.held_p(p.detach(), state)
    opened_p = held.open(dtype) if isinstance(held, Packed) else opened(held, dtype)
    values: dict[str, Any] = {}
    for key in rule._live(options, facts):
        spec = kept(rule._specs[key], group.group, p)
        if spec.given:  # no view reads one
            continue
        if spec.level == "group":
            values[key] = group.read(spec, opened_p, opened_p, group.shape(p))
        elif key in state:
            held = state[key]
            host = spec.level == "host" and not group.capturable
            values[key] = held.item() if host else _opened(spec, p, state, dtype)
    t = state["step"].to(torch.float64) if group.capturable else int(state["step"].item())
    value: Tensor = rule._view(opened_p, values, options, t, facts)
    return value.clone() if value is opened_p else value
