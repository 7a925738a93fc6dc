"""Arithmetic on the numbers of the host: Python floats, and 0-dim tensors in their place.

What is known before a step runs (hyperparameters, the step count, what is made of them) is computed here, in
double precision and with the results of IEEE 754 and C: nothing raises. 1/0 is inf, 0/0 and sqrt(-1) are nan,
log(0) is -inf, exp(1000) is inf, 0^0 is 1, (-8)^(1/3) is nan. Where an option is a tensor (`capturable`,
`differentiable`), the same functions take it and give a tensor; a number beside a tensor takes its dtype.

`abs_`, `sign`, `minimum`, `maximum`, `clamp`, `mod` and `where` of ints give an int, all other functions
floats. `+ - *` and comparisons need no function.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Scalar = float | Tensor


class Elsewhere:
    """The base of what stands for a number that only a device knows and is no tensor, see triton/notes.py."""

    __slots__ = ()


#: What stands in the place of a number that the host does not have.
_THERE = (Tensor, Elsewhere)


def _real(x: float) -> float:
    """`x` as a float; an int beyond the range of floats becomes an infinity."""
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def _apply(scalar: Callable[[float], float], tensor: Callable[[Tensor], Tensor], x: Scalar) -> Scalar:
    """A function of one number: outside its domain nan, beyond the range inf."""
    if isinstance(x, _THERE):
        return tensor(x)
    try:
        return scalar(_real(x))
    except ValueError:
        return math.nan
    except OverflowError:
        return math.inf


def _pair(x: Scalar, y: Scalar) -> tuple[Tensor, Tensor]:
    """Both as tensors, when one of them is one: by a fill, which a CUDA graph can record."""
    if isinstance(x, _THERE):
        return x, y if isinstance(y, _THERE) else torch.full_like(x, y)
    assert isinstance(y, _THERE)
    return torch.full_like(y, x), y


def div(x: Scalar, y: Scalar) -> Scalar:
    """x / y."""
    if isinstance(x, _THERE) or isinstance(y, _THERE):
        return torch.div(*_pair(x, y))  # by a number torch would multiply with its reciprocal
    a, b = _real(x), _real(y)
    if b != 0.0:
        return a / b
    if a == 0.0 or math.isnan(a):
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def mod(x: Scalar, y: Scalar) -> Scalar:
    """Remainder of x / y with the sign of y; nan for y = 0."""
    if isinstance(x, _THERE) or isinstance(y, _THERE):
        return x % y
    try:
        return x % y
    except (ZeroDivisionError, OverflowError):
        return math.nan


def pow_(x: Scalar, y: Scalar) -> Scalar:
    """x to the power y."""
    if isinstance(x, _THERE):
        return torch.pow(*_pair(x, y))  # for some numbers as exponents torch would take roots, wrong at -0
    if isinstance(y, _THERE):
        return torch.pow(x, y)
    a, b = _real(x), _real(y)
    odd = math.isfinite(b) and math.fmod(b, 2.0) in (1.0, -1.0)
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0.0 and odd else math.inf
    except ValueError:  # a zero to a negative power, or a negative number to a fraction
        if a != 0.0:
            return math.nan
        return math.copysign(math.inf, a) if odd else math.inf


def abs_(x: Scalar) -> Scalar:
    """|x|."""
    return x.abs() if isinstance(x, _THERE) else abs(x)


def square(x: Scalar) -> Scalar:
    """x * x."""
    return x * x


def sqrt(x: Scalar) -> Scalar:
    """Square root."""
    return _apply(math.sqrt, torch.sqrt, x)


def rsqrt(x: Scalar) -> Scalar:
    """1 / sqrt(x)."""
    return div(1.0, sqrt(x))


def exp(x: Scalar) -> Scalar:
    """e^x."""
    return _apply(math.exp, torch.exp, x)


def expm1(x: Scalar) -> Scalar:
    """e^x - 1, accurate near 0."""
    return _apply(math.expm1, torch.expm1, x)


def log(x: Scalar) -> Scalar:
    """Natural logarithm."""
    return _apply(lambda a: -math.inf if a == 0.0 else math.log(a), torch.log, x)


def log1p(x: Scalar) -> Scalar:
    """log(1 + x), accurate near 0."""
    return _apply(lambda a: -math.inf if a == -1.0 else math.log1p(a), torch.log1p, x)


def sin(x: Scalar) -> Scalar:
    """Sine."""
    return _apply(math.sin, torch.sin, x)


def cos(x: Scalar) -> Scalar:
    """Cosine."""
    return _apply(math.cos, torch.cos, x)


def tan(x: Scalar) -> Scalar:
    """Tangent."""
    return _apply(math.tan, torch.tan, x)


def asin(x: Scalar) -> Scalar:
    """Arc sine."""
    return _apply(math.asin, torch.asin, x)


def acos(x: Scalar) -> Scalar:
    """Arc cosine."""
    return _apply(math.acos, torch.acos, x)


def atan(x: Scalar) -> Scalar:
    """Arc tangent."""
    return _apply(math.atan, torch.atan, x)


def atan2(y: Scalar, x: Scalar) -> Scalar:
    """Angle of the point (x, y)."""
    if isinstance(y, _THERE) or isinstance(x, _THERE):
        return torch.atan2(*_pair(y, x))
    return math.atan2(_real(y), _real(x))


def tanh(x: Scalar) -> Scalar:
    """Hyperbolic tangent."""
    return _apply(math.tanh, torch.tanh, x)


def erf(x: Scalar) -> Scalar:
    """Error function."""
    return _apply(math.erf, torch.erf, x)


def sigmoid(x: Scalar) -> Scalar:
    """1 / (1 + e^-x)."""
    if isinstance(x, _THERE):
        return torch.sigmoid(x)
    return div(1.0, 1.0 + exp(-_real(x)))


def softplus(x: Scalar) -> Scalar:
    """log(1 + e^x), without overflow."""
    return maximum(x, 0.0) + log1p(exp(-abs_(x)))


def floor(x: Scalar) -> Scalar:
    """Largest whole number not above x, as a float."""
    return _apply(lambda a: float(math.floor(a)) if math.isfinite(a) else a, torch.floor, x)


def ceil(x: Scalar) -> Scalar:
    """Smallest whole number not below x, as a float."""
    return _apply(lambda a: float(math.ceil(a)) if math.isfinite(a) else a, torch.ceil, x)


def round_(x: Scalar) -> Scalar:
    """Nearest whole number, halves to even, as a float."""
    return _apply(lambda a: float(round(a)) if math.isfinite(a) else a, torch.round, x)


def sign(x: Scalar) -> Scalar:
    """-1, 0 or 1; 0 for nan, as torch has it."""
    if isinstance(x, _THERE):
        return torch.sign(x)
    sign = (x > 0) - (x < 0)
    return sign if isinstance(x, int) else float(sign)


def minimum(x: Scalar, y: Scalar) -> Scalar:
    """The smaller of two numbers; nan if one of them is nan."""
    if isinstance(x, _THERE) or isinstance(y, _THERE):
        return torch.minimum(*_pair(x, y))
    return x if x != x or x <= y else y


def maximum(x: Scalar, y: Scalar) -> Scalar:
    """The larger of two numbers; nan if one of them is nan."""
    if isinstance(x, _THERE) or isinstance(y, _THERE):
        return torch.maximum(*_pair(x, y))
    return x if x != x or x >= y else y


def clamp(x: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """min(max(x, low), high)."""
    return minimum(maximum(x, low), high)


def lerp(a: Scalar, b: Scalar, weight: Scalar) -> Scalar:
    """a + weight * (b - a)."""
    return a + weight * (b - a)


def where(condition: bool | Tensor, a: Scalar, b: Scalar) -> Scalar:
    """`a` where the condition holds, else `b`."""
    if not isinstance(condition, _THERE):
        return a if condition else b
    if not (isinstance(a, _THERE) or isinstance(b, _THERE)):
        a = torch.full_like(condition, a, dtype=torch.float64)
    return torch.where(condition, *_pair(a, b))


def entry(values: Sequence[float], i: Scalar) -> Scalar:
    """Entry i of a list, which counts from 1: i rounded down, the first below it and the last above; nan for nan."""
    if isinstance(i, _THERE):
        index = torch.nan_to_num(i.floor(), nan=1.0).clamp(1.0, float(len(values))).to(torch.int64)
        # an index in brackets would wait for the device, where it is one number
        return torch.where(i.isnan(), math.nan, torch.take(_on_device(values, i.device), index - 1))
    if i != i:
        return math.nan
    return float(values[int(min(max(i, 1), len(values))) - 1])


def count_upto(values: Sequence[float], x: Scalar) -> Scalar:
    """How many numbers of a list are at most x."""
    if isinstance(x, _THERE):
        return (_on_device(values, x.device) <= x.unsqueeze(-1)).sum(-1).to(torch.float64)
    return sum(value <= x for value in values)


#: Lists that steps on a device have asked for lately, with their numbers there: a CUDA graph cannot record the copy.
#: What a graph was captured with stays, as the graph reads it in every replay.
_COPIES: OrderedDict[tuple[int, torch.device], tuple[Sequence[float], Tensor]] = OrderedDict()
_CAPTURED: dict[tuple[int, torch.device], tuple[Sequence[float], Tensor]] = {}


def _on_device(values: Sequence[float], device: torch.device) -> Tensor:
    """The numbers of a list as a tensor, copied once as long as the list is the same object."""
    key = id(values), device
    known = _COPIES.get(key)
    if known is None or known[0] is not values:
        known = _COPIES[key] = values, torch.tensor(values, dtype=torch.float64, device=device)
        while len(_COPIES) > 64:
            _COPIES.popitem(last=False)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _CAPTURED[key] = known
    return known[1]


def isfinite(x: Scalar) -> bool | Tensor:
    """False for nan and the infinities."""
    return torch.isfinite(x) if isinstance(x, _THERE) else math.isfinite(_real(x))


def nan_to_num(x: Scalar) -> Scalar:
    """0 for nan, the largest finite number of its sign for an infinity."""
    if isinstance(x, _THERE):
        return torch.nan_to_num(x)
    a = _real(x)
    largest = 1.7976931348623157e308
    return 0.0 if math.isnan(a) else max(-largest, min(largest, a))


def logical_and(x: bool | Tensor, y: bool | Tensor) -> bool | Tensor:
    """Both hold."""
    return x & y


def logical_or(x: bool | Tensor, y: bool | Tensor) -> bool | Tensor:
    """One of them holds, or both."""
    return x | y


def logical_not(x: bool | Tensor) -> bool | Tensor:
    """It does not hold."""
    return torch.logical_not(x) if isinstance(x, _THERE) else not x
