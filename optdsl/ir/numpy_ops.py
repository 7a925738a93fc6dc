"""What every core operator computes, in numpy: one row per operator, total over the table of core operators.

Rows take numpy scalars or arrays that broadcast, all of one float type, and follow IEEE 754 and C where those
say something: 1/0 is inf, 0/0 and sqrt(-1) are nan, log(0) is -inf, 0^0 is 1, (-8)^(1/3) is nan. Nothing
raises; call them under `np.errstate(all="ignore")`, which also keeps them from warning.

- `min` and `max` give nan when an operand is nan; which zero they give for 0 and -0 is left open.
- The sign of nan and of either zero is +0.
- `round` goes to even at halves. `mod` has the sign of its second operand, and is nan where that is 0.
- `pow(x, 2)` is `x * x`, exactly.
- `nan_to_num` gives the largest finite number of the float type of its operand.
- A reduction of nothing is 0 (sum), nan (mean), -inf (max, k-th largest) or inf (min).
- The entry of a list goes by a number rounded down, counts from 1 and stays in the list; that of nan is nan.
- A family of matrices, one for each axis of a tensor, is a column of their entries, one matrix behind the other, each
  row by row. `matrix_power` sees the lower triangles only, and gives a matrix of nan for one that is not finite.
- The k-th largest goes by k rounded down: inf where that is less than 1 or nan, -inf beyond the number of
  entries. nan is larger than all numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optdsl.ir import random

Array: TypeAlias = npt.NDArray[Any]

#: Coefficients and smallest norm of the quintic iteration of Muon.
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
NEWTON_SCHULZ_EPS = 1e-7


def _pow(x: Any, y: Any) -> Any:
    return np.where(y == 2, x * x, np.power(x, y))


def _sign(x: Any) -> Any:
    return np.where(np.isnan(x), 0, np.sign(x))


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _reduction(function: Callable[..., Any], empty: float) -> Callable[..., Array]:
    """A reduction of an array over one axis (None: over all), which keeps its dimensions."""

    def reduce(x: Array, axis: int | None = None) -> Array:
        if (x.size if axis is None else x.shape[axis]) == 0:
            x = np.full([1 if axis in (None, i) else n for i, n in enumerate(x.shape)], empty, x.dtype)
        return np.asarray(function(x, axis=axis, keepdims=True))

    return reduce


def _kth_largest(x: Array, k: Any, axis: int | None = None) -> Array:
    """Entry k of those along an axis (None: of all), sorted from the largest down; keeps the dimensions."""
    if axis is None:
        x, axis = x.reshape(1, -1), 1
    rank = float(np.asarray(k).reshape(()))
    count = x.shape[axis]
    if not 1 <= rank < count + 1:
        shape = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
        return np.full(shape, -math.inf if rank >= 1 else math.inf, x.dtype)
    return np.take(np.sort(x, axis=axis), [count - math.floor(rank)], axis=axis)


def _newton_schulz(x: Array, steps: Any) -> Array:
    """`steps` (rounded down) times X <- a X + (b A + c A^2) X with A = X X', in the float type of `x`."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / np.maximum(np.sqrt(np.sum(x * x)), NEWTON_SCHULZ_EPS)
    for _ in range(int(steps) if np.isfinite(steps) else 0):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x


def _entry(values: Array, i: Any) -> Any:
    """Entry i, rounded down, of a list with one dimension: the first for i < 1, the last for i beyond its length."""
    index = np.clip(np.floor(np.nan_to_num(i)), 1, len(values)).astype(np.int64)
    return np.where(np.isnan(i), math.nan, values[index - 1])


def _count_upto(values: Array, x: Any) -> Any:
    """How many numbers of a list with one dimension are at most x."""
    return np.sum(values <= np.asarray(x)[..., None], axis=-1)


def _matrices(family: Array, shape: tuple[int, ...]) -> list[Array]:
    """The matrices of a family for a tensor of this shape."""
    ends = np.cumsum([d * d for d in shape])
    return [
        part.reshape(d, d) for part, d in zip(np.split(family.ravel(), ends[:-1]), shape, strict=bool(shape))
    ]


def _family(matrices: Sequence[Array], dtype: Any) -> Array:
    """The family of these matrices."""
    return (
        np.concatenate([np.zeros(0), *(matrix.ravel() for matrix in matrices)]).astype(dtype).reshape(-1, 1)
    )


def _identity(shape: tuple[int, ...]) -> Array:
    return _family([np.eye(d) for d in shape], np.float64)


def _gram(shape: tuple[int, ...], x: Array) -> Array:
    x = x.reshape(shape)
    others = [[j for j in range(len(shape)) if j != k] for k in range(len(shape))]
    return _family([np.tensordot(x, x, (axes, axes)) for axes in others], x.dtype)


def _matrix_power(shape: tuple[int, ...], family: Array, exponent: Any, least: Any) -> Array:
    """Q (L + s I)^exponent Q' for the matrices Q L Q', where s is what the smallest of L lacks of `least`, or 0."""
    found = []
    for matrix in _matrices(family, shape):
        power = np.full_like(matrix, math.nan)
        if matrix.size and np.isfinite(matrix).all():
            # numpy has no decompositions in wider types than double precision
            values, vectors = np.linalg.eigh(matrix.astype(np.float64) if matrix.itemsize > 8 else matrix)
            values = np.maximum(values + np.maximum(least - values[0], 0), least)
            power = (vectors * np.power(values, exponent)) @ vectors.T
        found.append(power)
    return _family(found, family.dtype)


def _along_axes(shape: tuple[int, ...], family: Array, x: Array) -> Array:
    rows_by_cols, x = x.shape, x.reshape(shape)
    for matrix in _matrices(family, shape):  # the first axis goes, and comes back as the last
        x = np.tensordot(x, matrix, (0, 1))
    return x.reshape(rows_by_cols)


#: Elementwise operators take their operands; reductions take (x, axis) or (x, k, axis); draws take (seed, t,
#: index of the tensor, site, number of elements) and then their operands; matrix operators take their operands, those
#: of lists too, those on families the shape of the parameter before them.
NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "mod": np.mod,
    "pow": _pow,
    "neg": np.negative,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": operator.eq,  # choices are strings
    "ne": operator.ne,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "select": np.where,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "sign": _sign,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "tanh": np.tanh,
    "erf": _erf,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "isfinite": np.isfinite,
    "nan_to_num": np.nan_to_num,
    "broadcast": lambda x: x,  # the interpreter gives every value the shape of its type
    "reduce_sum": _reduction(np.sum, 0.0),
    "reduce_mean": _reduction(np.mean, math.nan),
    "reduce_max": _reduction(np.max, -math.inf),
    "reduce_min": _reduction(np.min, math.inf),
    "reduce_kth_largest": _kth_largest,
    "normal": random.normal,
    "uniform": random.uniform,
    "rademacher": random.rademacher,
    "bernoulli": random.bernoulli,
    "matmul": np.matmul,
    "transpose": np.transpose,
    "newton_schulz": _newton_schulz,
    "entry": _entry,
    "count_upto": _count_upto,
    "identity": _identity,
    "gram": _gram,
    "matrix_power": _matrix_power,
    "along_axes": _along_axes,
}
