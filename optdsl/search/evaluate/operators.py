"""What generated code calls: every core operator over stacked tensors, into memory that is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optdsl.core.ops import AXES_OPERANDS
from optdsl.ir.numpy_ops import NEWTON_SCHULZ, NEWTON_SCHULZ_EPS


def _sqrt(x: Tensor, out: Tensor) -> None:
    # by numpy: torch hands roots to MKL, which takes six times as long where many numbers are zero
    np.sqrt(x.numpy(), out=out.numpy())


def _spread(x: Tensor, sizes: tuple[int, ...], out: Tensor) -> None:
    """An entry per tensor to all elements of the tensor."""
    torch.cat([x[:, i : i + 1].expand(-1, size) for i, size in enumerate(sizes)], 1, out=out)


def _by_tensor(reduce: Callable[..., Tensor]) -> Callable[..., None]:
    def run(x: Tensor, sizes: tuple[int, ...], out: Tensor) -> None:
        torch.stack([reduce(part, 1) for part in x.split(sizes, 1)], 1, out=out)

    return run


def _over(reduce: Callable[..., Tensor], *dims: int) -> Callable[..., None]:
    def run(x: Tensor, out: Tensor) -> None:
        reduce(x, dims, True, out=out)

    return run


def _part(op: str) -> Callable[[Tensor], Tensor]:
    """What one tensor contributes to a joint reduction: a number for each model."""
    reduce: Callable[..., Tensor] = REDUCTIONS[op]

    def run(x: Tensor) -> Tensor:
        return reduce(x.reshape(x.shape[0], -1), 1)

    return run


def _newton_schulz(x: Tensor, steps: Tensor, out: Tensor) -> None:
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(NEWTON_SCHULZ_EPS)
    for _ in range(int(steps)):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    out.copy_(x.mT if tall else x)


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "reduce_sum": torch.sum,
    "reduce_mean": torch.mean,
    "reduce_max": torch.amax,
    "reduce_min": torch.amin,
}
#: Core operators, element by element: (operands, out).
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "mod": torch.remainder,
    "pow": torch.pow,
    "neg": torch.neg,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "select": torch.where,
    "min": torch.minimum,
    "max": torch.maximum,
    "abs": torch.abs,
    "sign": torch.sign,
    "sqrt": _sqrt,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "atan2": torch.atan2,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "isfinite": lambda x, out: out.copy_(torch.isfinite(x)),
    "nan_to_num": torch.nan_to_num,
}
#: Operators that generated code cannot call, with what a person is told. Together with the tables here these are all.
REFUSED = {
    "reduce_kth_largest": "it ranks entries",
    **dict.fromkeys(("entry", "count_upto"), "it reads a list"),
    **dict.fromkeys(AXES_OPERANDS, "it has a matrix for each axis"),
    **dict.fromkeys(("normal", "uniform", "rademacher", "bernoulli"), "it draws random numbers"),
}
#: All that generated code calls, by the names it has there.
NAMESPACE: dict[str, Any] = {
    **{f"op_{name}": function for name, function in ELEMENTWISE.items()},
    **{f"each_{name}": _by_tensor(function) for name, function in REDUCTIONS.items()},
    **{f"tensor_{name}": _over(function, 1, 2) for name, function in REDUCTIONS.items()},
    **{f"rows_{name}": _over(function, 2) for name, function in REDUCTIONS.items()},
    **{f"cols_{name}": _over(function, 1) for name, function in REDUCTIONS.items()},
    **{f"all_{name}": _over(function, 1) for name, function in REDUCTIONS.items()},
    **{f"part_{name}": _part(name) for name in REDUCTIONS if name != "reduce_mean"},
    "copy": lambda x, out: out.copy_(x),
    "spread": _spread,
    "op_matmul": torch.matmul,
    "op_transpose": lambda x, out: out.copy_(x.mT),
    "op_newton_schulz": _newton_schulz,
    "__builtins__": {},
}
SPELLED = frozenset(
    {*ELEMENTWISE, *REDUCTIONS, *REFUSED, "matmul", "transpose", "newton_schulz", "broadcast"}
)
#: Calls that may write over an operand.
SAFE = frozenset({*(f"op_{name}" for name in ELEMENTWISE), "copy"})
