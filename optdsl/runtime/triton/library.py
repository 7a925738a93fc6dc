"""What generated Triton kernels are made of: the cells of a table, number types, elementary operations, random words.

Everything here is compiled into the kernels. `REAL` is the type that is computed in (float32 or float64). Divisions
and roots are rounded correctly in both. Functions are those of the device's own library, of which Triton's
interpreter has none; numpy's stand in there.
"""

import triton
import triton.language as tl

from optdsl.runtime.triton.functions import (
    acos,
    asin,
    atan,
    atan2,
    ceil,
    cos,
    erf,
    exp,
    expm1,
    floor,
    fmod,
    log,
    log1p,
    pow_,
    rint,
    sin,
    tan,
    tanh,
)  # fmt: skip

#: The cells of a row, as in native/table.h; SLOTS holds the address of the numbers of this step in type REAL.
N = tl.constexpr(0)
ROWS = tl.constexpr(1)
COLS = tl.constexpr(2)
CHUNK = tl.constexpr(3)
CHUNKS = tl.constexpr(4)
SLOTS = tl.constexpr(6)
VALUES = tl.constexpr(7)
FOLDED = tl.constexpr(8)
PARTIALS = tl.constexpr(9)
SHARED = tl.constexpr(10)
KEPT_ROWS = tl.constexpr(11)
KEPT_COLS = tl.constexpr(12)
COL_PARTIALS = tl.constexpr(13)
INDEX = tl.constexpr(14)
SEED = tl.constexpr(15)
CODED = tl.constexpr(17)
ARRAYS = tl.constexpr(18)

# ---- memory --------------------------------------------------------------------------------------------


@triton.jit
def place(table, chunks, gradients, WIDTH: tl.constexpr):
    """The row of the table that this program works on, where its gradient is, and the number of the chunk."""
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(chunks + 2 * program).to(tl.int64)
    chunk = tl.load(chunks + 2 * program + 1).to(tl.int64)
    return table + row * WIDTH, gradients + row, chunk


@triton.jit
def length(cell, skip, GUARD: tl.constexpr):
    """A number of elements or rows, or none where the step is to be skipped."""
    count = tl.load(cell)
    if GUARD:
        count = tl.where(tl.load(skip) != 0.0, 0, count)
    return count


@triton.jit
def going(skip, GUARD: tl.constexpr):
    """Whether the step is not to be skipped."""
    go = tl.full((), True, tl.int1)
    if GUARD:
        go = tl.where(tl.load(skip) != 0.0, tl.full((), False, tl.int1), go)
    return go


@triton.jit
def at(cell, T: tl.constexpr, ITEMS: tl.constexpr):
    """The array whose address is in a cell; ITEMS elements of it at a time lie at an address that suits them (0: only
    one does)."""
    pointer = tl.load(cell).to(tl.pointer_type(T))
    if ITEMS * T.primitive_bitwidth >= 128:
        pointer = tl.multiple_of(pointer, 16)
    elif ITEMS * T.primitive_bitwidth == 64:
        pointer = tl.multiple_of(pointer, 8)
    return pointer


@triton.jit
def load(pointer, live, MASKED: tl.constexpr, REAL: tl.constexpr):
    """Numbers in the type that is computed in."""
    if MASKED:
        return tl.load(pointer, mask=live, other=0.0).to(REAL)
    else:
        return tl.load(pointer).to(REAL)


@triton.jit
def store(pointer, x, live, MASKED: tl.constexpr):
    """Rounds to nearest even to the type of the array."""
    if MASKED:
        tl.store(pointer, x.to(pointer.dtype.element_ty), mask=live)
    else:
        tl.store(pointer, x.to(pointer.dtype.element_ty))


# ---- reductions ----------------------------------------------------------------------------------------


@triton.jit
def counted(x, live, START: tl.constexpr, MASKED: tl.constexpr):
    """`x` with numbers that change no reduction where no element is."""
    if MASKED:
        return tl.where(live, x, START)
    else:
        return x


@triton.jit
def total(x):
    """Sum of a block."""
    return tl.sum(x, 0)


@triton.jit
def largest(x):
    """Maximum of a block; nan wins."""
    found = tl.max(tl.where(x == x, x, float("-inf")), 0)
    return tl.where(tl.max((x != x).to(tl.int32), 0) > 0, float("nan"), found)


@triton.jit
def smallest(x):
    """Minimum of a block; nan wins."""
    found = tl.min(tl.where(x == x, x, float("inf")), 0)
    return tl.where(tl.max((x != x).to(tl.int32), 0) > 0, float("nan"), found)


@triton.jit
def fold_sum(partials, count, stride, BLOCK: tl.constexpr):
    """Sum of the partial results of the chunks, in an order that only their number decides."""
    all_ = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        c = start + tl.arange(0, BLOCK)
        all_ += tl.load(partials + c * stride, mask=c < count, other=0.0)
    return tl.sum(all_, 0)


@triton.jit
def fold_max(partials, count, stride, BLOCK: tl.constexpr):
    """Maximum of the partial results of the chunks."""
    all_ = tl.full([BLOCK], float("-inf"), tl.float64)
    for start in range(0, count, BLOCK):
        c = start + tl.arange(0, BLOCK)
        all_ = greater(all_, tl.load(partials + c * stride, mask=c < count, other=float("-inf")))
    return largest(all_)


@triton.jit
def fold_min(partials, count, stride, BLOCK: tl.constexpr):
    """Minimum of the partial results of the chunks."""
    all_ = tl.full([BLOCK], float("inf"), tl.float64)
    for start in range(0, count, BLOCK):
        c = start + tl.arange(0, BLOCK)
        all_ = lesser(all_, tl.load(partials + c * stride, mask=c < count, other=float("inf")))
    return smallest(all_)


# ---- operations ----------------------------------------------------------------------------------------


@triton.jit
def number(value: tl.constexpr, REAL: tl.constexpr):
    """A literal, rounded to the type that is computed in; beyond its range an infinity."""
    return tl.full((), value, tl.float64).to(REAL)


@triton.jit
def div(x, y):
    """x / y."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def sqrt(x):
    """Square root."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def square(x):
    """x * x."""
    return x * x


@triton.jit
def cube(x):
    """x * x * x."""
    return x * x * x


@triton.jit
def magnitude(x):
    """|x|."""
    return tl.abs(x)


@triton.jit
def lesser(x, y):
    """The lesser of two; nan wins."""
    x, y = tl.broadcast(x, y)
    return tl.where((x < y) | (x != x), x, y)


@triton.jit
def greater(x, y):
    """The greater of two; nan wins."""
    x, y = tl.broadcast(x, y)
    return tl.where((x > y) | (x != x), x, y)


@triton.jit
def sign(x):
    """1, -1, or 0 for zeros and nan."""
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0)).to(x.dtype)


@triton.jit
def both(x, y):
    """x and y. Triton's interpreter has no `&` of a condition for all elements and one for each."""
    return tl.where(x, y, False)


@triton.jit
def either(x, y):
    """x or y."""
    return tl.where(x, True, y)


@triton.jit
def negated(x):
    """Not x."""
    return x == 0


@triton.jit
def select(condition, x, y):
    """x where the condition holds, else y."""
    return tl.where(condition, x, y)


@triton.jit
def _limit(x):
    if x.dtype == tl.float32:
        return tl.full((), 3.4028234663852886e38, tl.float32)
    else:
        return tl.full((), 1.7976931348623157e308, tl.float64)


@triton.jit
def finite(x):
    """Neither nan nor an infinity."""
    return tl.abs(x) <= _limit(x)


@triton.jit
def nan_to_num(x):
    """0 for nan, the largest number for an infinity."""
    limit = _limit(x)
    x = tl.where(x != x, 0.0, x)
    x = tl.where(x > limit, limit, x)
    return tl.where(x < -limit, -limit, x)


@triton.jit
def power(x, y):
    """x to the power y."""
    x, y = tl.broadcast(x, y.to(x.dtype))
    return pow_(x, y)


@triton.jit
def remainder(x, y):
    """Remainder of x / y with the sign of y."""
    x, y = tl.broadcast(x, y)
    r = fmod(x, y)
    zero = tl.where(_negative(y), -0.0, 0.0).to(x.dtype)
    moved = tl.where((r < 0.0) != (y < 0.0), r + y, r)
    return tl.where(r == 0.0, zero, moved)


@triton.jit
def _negative(x):
    """Whether the sign bit is set."""
    if x.dtype == tl.float32:
        return x.to(tl.int32, bitcast=True) < 0
    else:
        return x.to(tl.int64, bitcast=True) < 0


# ---- random words: Philox4x32-10, a block of four words for four neighbouring elements -----------------


@triton.jit
def philox(seed, step, third, block):
    """The four random words of each block of four elements; `third` is the tensor and 2^20 times the site."""
    low = block.to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, low, high, zero + third.to(tl.uint32), zero + step.to(tl.uint32))


@triton.jit
def words(seed, step, tensor, SITE: tl.constexpr, element):
    """The random word of each element."""
    a, b, c, d = philox(seed, step, tensor + SITE * 1048576, element >> 2)
    lane = element & 3
    return tl.where(lane == 0, a, tl.where(lane == 1, b, tl.where(lane == 2, c, d)))


@triton.jit
def _uniform(word):
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def uniform(word, REAL: tl.constexpr):
    """Uniform in [0, 1)."""
    return _uniform(word).to(REAL)


@triton.jit
def rademacher(word, REAL: tl.constexpr):
    """1 or -1."""
    return tl.where(word >= 2147483648, 1.0, -1.0).to(REAL)


@triton.jit
def bernoulli(word, q, REAL: tl.constexpr):
    """1 with probability q, else 0."""
    return tl.where(_uniform(word) < q.to(tl.float32), 1.0, 0.0).to(REAL)


@triton.jit
def normal(word, REAL: tl.constexpr):
    """Standard normal: as optdsl.ir.random, every operation rounded to float32."""
    upper = word >= 2147483648
    a = tl.where(upper, word ^ 4294967295, word).to(tl.int32)
    x = ((2147483647 - a).to(tl.float32) + 0.5) * 4.656612873077393e-10
    s = ((a.to(tl.float32) + 0.5) * 4.656612873077393e-10) * (1.0 + x)
    i = s.to(tl.int32, bitcast=True)
    k = (i - 0x3F3504F3) >> 23
    f = (i - (k << 23)).to(tl.float32, bitcast=True) - 1.0
    poly = f * -0.14569582045078278 + 0.23683781921863556
    poly = poly * f + -0.2500668466091156
    poly = poly * f + 0.28671693801879883
    poly = poly * f + -0.3600882589817047
    poly = poly * f + 0.4809388816356659
    poly = poly * f + -0.7213571071624756
    poly = poly * f + 1.4426947832107544
    y = (-k).to(tl.float32) - f * poly
    p = y * 4.686568445322337e-06 + 0.0002304844674654305
    p = p * y + 0.003952528815716505
    p = p * y + 0.04314227029681206
    p = p * y + 0.3135018050670624
    p = p * y + 1.2533142566680908
    q = y * 1.6141065373176389e-07 + 3.917919457308017e-05
    q = q * y + 0.0007582993130199611
    q = q * y + 0.015694139525294304
    q = q * y + 0.06867457926273346
    q = q * y + 1.0
    z = x * tl.div_rn(p, q)
    return tl.where(upper, z, -z).to(REAL)


__all__ = [
    "ARRAYS",
    "CHUNK",
    "CHUNKS",
    "COLS",
    "COL_PARTIALS",
    "FOLDED",
    "INDEX",
    "KEPT_COLS",
    "KEPT_ROWS",
    "PARTIALS",
    "ROWS",
    "SEED",
    "SHARED",
    "SLOTS",
    "VALUES",
    "N",
    "acos",
    "asin",
    "at",
    "atan",
    "atan2",
    "bernoulli",
    "both",
    "ceil",
    "cos",
    "counted",
    "cube",
    "div",
    "either",
    "erf",
    "exp",
    "expm1",
    "finite",
    "floor",
    "fold_max",
    "fold_min",
    "fold_sum",
    "going",
    "greater",
    "largest",
    "length",
    "lesser",
    "load",
    "log",
    "log1p",
    "magnitude",
    "nan_to_num",
    "negated",
    "normal",
    "number",
    "place",
    "power",
    "rademacher",
    "remainder",
    "rint",
    "select",
    "sign",
    "sin",
    "smallest",
    "sqrt",
    "square",
    "store",
    "tan",
    "tanh",
    "total",
    "uniform",
    "words",
]  # fmt: skip
