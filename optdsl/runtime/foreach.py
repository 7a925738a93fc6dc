"""Arithmetic on lists of tensors, one entry per parameter, for the foreach path of generated code.

An operand is a list of tensors, or one number (or 0-dim tensor) for all of them. A trailing underscore marks
the variant that overwrites its first operand, which must be a list no one else holds. torch's fused list
operations are used where torch has one; everything else runs tensor by tensor.
"""

import builtins
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.ops import broadcast as _broadcast
from optdsl.runtime.states import fit as _fit

#: A list of tensors, or one number or 0-dim tensor for all.
Operand = Any


def _listed(x: Any) -> bool:
    return isinstance(x, list | tuple)


def each(function: Callable[..., Tensor], *operands: Any) -> list[Tensor]:
    """`function` of the entries of `operands`, tensor by tensor; what is no list is the same for all."""
    count = next(len(x) for x in operands if _listed(x))
    return [function(*(x[i] if _listed(x) else x for x in operands)) for i in range(count)]


def _elementwise(name: str, plain: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A unary operation and its overwriting variant."""
    fused, fused_ = getattr(torch, f"_foreach_{name}"), getattr(torch, f"_foreach_{name}_")

    def run(x: Operand) -> list[Tensor]:
        return list(fused(x))

    def run_(x: Operand) -> Any:
        fused_(x)
        return x

    return run, run_


abs, abs_ = _elementwise("abs", torch.abs)
acos, acos_ = _elementwise("acos", torch.acos)
asin, asin_ = _elementwise("asin", torch.asin)
atan, atan_ = _elementwise("atan", torch.atan)
ceil, ceil_ = _elementwise("ceil", torch.ceil)
cos, cos_ = _elementwise("cos", torch.cos)
erf, erf_ = _elementwise("erf", torch.erf)
exp, exp_ = _elementwise("exp", torch.exp)
expm1, expm1_ = _elementwise("expm1", torch.expm1)
floor, floor_ = _elementwise("floor", torch.floor)
log, log_ = _elementwise("log", torch.log)
log1p, log1p_ = _elementwise("log1p", torch.log1p)
neg, neg_ = _elementwise("neg", torch.neg)
round, round_ = _elementwise("round", torch.round)
sign, sign_ = _elementwise("sign", torch.sign)
sin, sin_ = _elementwise("sin", torch.sin)
sqrt, sqrt_ = _elementwise("sqrt", torch.sqrt)
tan, tan_ = _elementwise("tan", torch.tan)
tanh, tanh_ = _elementwise("tanh", torch.tanh)


def add(x: Operand, y: Operand) -> list[Tensor]:
    """x + y."""
    if not _listed(x):
        x, y = y, x
    return list(torch._foreach_add(x, y))


def add_(x: Operand, y: Operand) -> Any:
    """x + y, in x."""
    torch._foreach_add_(x, y)
    return x


#: The largest number that torch converts to float32; of infinities it makes infinities.
_LARGEST = torch.finfo(torch.float32).max


def _plain_number(x: Any) -> bool:
    """True for what torch's list operations take as a number."""
    return isinstance(x, float | int) and not _LARGEST < builtins.abs(x) < math.inf


def add_scaled(x: Operand, y: Operand, alpha: Any) -> list[Tensor]:
    """x + alpha * y."""
    if _plain_number(alpha):
        return list(torch._foreach_add(x, y, alpha=alpha))
    return list(torch._foreach_add(x, mul(y, alpha)))


def add_scaled_(x: Operand, y: Operand, alpha: Any) -> Any:
    """x + alpha * y, in x."""
    if _plain_number(alpha):
        torch._foreach_add_(x, y, alpha=alpha)
    else:
        torch._foreach_add_(x, mul(y, alpha))
    return x


def sub(x: Operand, y: Operand) -> list[Tensor]:
    """x - y."""
    if _listed(x) and (_listed(y) or _plain_number(y)):
        return list(torch._foreach_sub(x, y))
    return each(operator.sub, x, y)


def sub_(x: Operand, y: Operand) -> Any:
    """x - y, in x."""
    if _listed(y) or _plain_number(y):
        torch._foreach_sub_(x, y)
        return x
    return each(operator.isub, x, y)


def mul(x: Operand, y: Operand) -> list[Tensor]:
    """x * y."""
    if not _listed(x):
        x, y = y, x
    return list(torch._foreach_mul(x, y))


def mul_(x: Operand, y: Operand) -> Any:
    """x * y, in x."""
    torch._foreach_mul_(x, y)
    return x


def div(x: Operand, y: Operand) -> list[Tensor]:
    """x / y."""
    if _listed(x):
        return list(torch._foreach_div(x, y))
    return each(operator.truediv, x, y)


def div_(x: Operand, y: Operand) -> Any:
    """x / y, in x."""
    torch._foreach_div_(x, y)
    return x


def addcmul(x: Operand, y: Operand, z: Operand, value: Any) -> list[Tensor]:
    """x + value * y * z."""
    if _plain_number(value):
        return list(torch._foreach_addcmul(x, y, z, value=value))
    return add(mul_(mul(y, z), value), x)


def addcmul_(x: list[Tensor], y: Operand, z: Operand, value: Any) -> Any:
    """x + value * y * z, in x."""
    if _plain_number(value):
        torch._foreach_addcmul_(x, y, z, value=value)
        return x
    return add_(x, mul_(mul(y, z), value))


def addcdiv(x: Operand, y: Operand, z: Operand, value: Any) -> list[Tensor]:
    """x + value * y / z."""
    if _plain_number(value):
        return list(torch._foreach_addcdiv(x, y, z, value=value))
    return add(mul_(div(y, z), value), x)


def addcdiv_(x: list[Tensor], y: Operand, z: Operand, value: Any) -> Any:
    """x + value * y / z, in x."""
    if _plain_number(value):
        torch._foreach_addcdiv_(x, y, z, value=value)
        return x
    return add_(x, mul_(div(y, z), value))


def square(x: Operand) -> list[Tensor]:
    """x * x."""
    return list(torch._foreach_mul(x, x))


def power(x: Operand, y: Operand) -> list[Tensor]:
    """x to the power y."""
    if _listed(x) and (_listed(y) or _plain_number(y)):
        return list(torch._foreach_pow(x, y))
    return each(torch.pow, x, y)


def minimum(x: Operand, y: Operand) -> list[Tensor]:
    """The smaller of x and y; nan wins."""
    if not _listed(x):
        x, y = y, x
    if _listed(y) or not isinstance(y, Tensor):
        return list(torch._foreach_minimum(x, _fit(y, x[0])))
    return each(torch.minimum, x, y)


def maximum(x: Operand, y: Operand) -> list[Tensor]:
    """The larger of x and y; nan wins."""
    if not _listed(x):
        x, y = y, x
    if _listed(y) or not isinstance(y, Tensor):
        return list(torch._foreach_maximum(x, _fit(y, x[0])))
    return each(torch.maximum, x, y)


def _tensors(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """A function of tensors, tensor by tensor."""

    def run(*operands: Operand) -> list[Tensor]:
        return each(function, *operands)

    return run


lt = _tensors(operator.lt)
le = _tensors(operator.le)
gt = _tensors(operator.gt)
ge = _tensors(operator.ge)
eq = _tensors(operator.eq)
ne = _tensors(operator.ne)
logical_and = _tensors(operator.and_)
logical_or = _tensors(operator.or_)
logical_not = _tensors(torch.logical_not)
isfinite = _tensors(torch.isfinite)
nan_to_num = _tensors(torch.nan_to_num)
remainder = _tensors(torch.remainder)
matmul = _tensors(torch.matmul)


def broadcast(x: Operand, level: str, like: Sequence[Tensor]) -> list[Tensor]:
    """`x` with an entry for each one that the parameters `like` have at `level`."""
    return each(_broadcast, x, level, like)


def where(condition: Operand, x: Operand, y: Operand, like: Sequence[Tensor]) -> list[Tensor]:
    """x where the condition holds, else y; numbers in the dtype of `like`."""
    if not isinstance(x, Tensor) and not _listed(x):
        x = like[0].new_full((), _fit(x, like[0]))
    return each(torch.where, condition, x, _fit(y, like[0]))


def indicator(condition: Operand, like: Sequence[Tensor]) -> list[Tensor]:
    """1 where the condition holds, else 0, in the dtype of `like`."""
    return each(Tensor.to, condition, like[0].dtype)


def atan2(y: Operand, x: Operand, like: Sequence[Tensor]) -> list[Tensor]:
    """The angle of the point (x, y)."""
    sides = (
        z if isinstance(z, Tensor) or _listed(z) else like[0].new_full((), _fit(z, like[0])) for z in (y, x)
    )
    return each(torch.atan2, *sides)
