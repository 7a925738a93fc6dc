"""Arrays that are kept in codes, in Triton: what optdsl/runtime/storage.py says, for a block of elements.

An array in codes of 8 bits is one of tl.uint8, in codes of 4 bits one of tl.int8. One in bfloat16 is one of tl.int16
with 16 bits beside it, of tl.uint16 with 8 bits, of tl.uint32 with what is left, and of tl.int32 if it is rounded at
random. The cell of the latter holds the address of the step number, in type REAL, and the next one the site and, from
bit 12 on, how many cells the first one is behind the beginning of the row.

For codes, the cell of the scales holds the address of float32 numbers, the next one that of a table: 256 values, 256
bounds (the largest number that belongs to an entry), and for every bucket of numbers with the same sign, exponent and
upper 8 bits of the mantissa the first entry in it, of which one bucket has two at most.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from optdsl.runtime.storage import AT_RANDOM, Code, Half
from optdsl.runtime.triton.library import INDEX, SEED, div, load, philox, store

#: Buckets of numbers of one sign: magnitudes below 2^-24 are in the first, 1 is in the last.
_BUCKETS = 24 * 256 + 1
BUCKETS = tl.constexpr(_BUCKETS)
FIRST_BUCKET = tl.constexpr(103 << 8)
PER_SCALE = tl.constexpr(256)
#: The smallest normal number of float32.
SMALLEST = tl.constexpr(2.0**-126)


@functools.cache
def table_of(code: Code) -> Tensor:
    """A table of codes as it is read here, on its device."""
    values, bounds = code.values.cpu(), code.bounds.cpu()
    table = torch.full((512 + 2 * _BUCKETS,), float("inf"), dtype=torch.float32)
    table[: len(values)] = values
    table[256 : 256 + len(bounds)] = bounds
    table = table.view(torch.int32)
    bits = (torch.arange(_BUCKETS, dtype=torch.int32) + (103 << 8)) << 15
    low = bits.view(torch.float32).clone()
    low[0] = 0.0
    high = ((bits + (1 << 15)) - 1).view(torch.float32)
    first = torch.cat((torch.bucketize(low, bounds), torch.bucketize(-high, bounds)))
    last = torch.cat((torch.bucketize(high, bounds), torch.bucketize(-low, bounds)))
    assert int((last - first).max()) <= 1
    table[512:] = first.to(torch.int32)
    return table.to(code.values.device)


_FORMS = {AT_RANDOM: tl.int32, "bf16+16": tl.int16, "bf16+8": tl.uint16, "bf16+kahan": tl.uint32}


def type_of(code: Code | Half) -> Any:
    """The type by which a kernel knows an array that is kept so."""
    if isinstance(code, Half):
        return _FORMS[code.form]
    return tl.uint8 if code.bits == 8 else tl.int8


@triton.jit
def read(pointer, cell, i, live, MASKED: tl.constexpr, REAL: tl.constexpr):
    """The numbers of elements `i` of an array; `cell` is that of its scales, for one in codes."""
    if pointer.dtype.element_ty == tl.uint8:
        return _scaled(tl.load(pointer + i, mask=live, other=0).to(tl.int32), cell, i, live, REAL)
    elif pointer.dtype.element_ty == tl.int8:
        pairs = tl.load(pointer + i // 2, mask=live, other=0).to(tl.int32)
        return _scaled((pairs >> ((i % 2) * 4).to(tl.int32)) & 15, cell, i, live, REAL)
    elif pointer.dtype.element_ty == tl.int16:
        low = tl.load(_beside(cell, tl.int16) + i, mask=live, other=0).to(tl.int32)
        return _with_low(tl.load(pointer + i, mask=live, other=0).to(tl.int32), low)
    elif pointer.dtype.element_ty == tl.uint16:
        low = tl.load(_beside(cell, tl.int8) + i, mask=live, other=0).to(tl.int32)
        return _with_low(tl.load(pointer + i, mask=live, other=0).to(tl.int32), low << 8)
    elif pointer.dtype.element_ty == tl.int32:
        return _wide(pointer, i, live, MASKED).to(REAL)
    elif pointer.dtype.element_ty == tl.uint32:
        high = _wide(pointer, i, live, MASKED)
        low = _wide(_beside(cell, tl.uint16), i, live, MASKED)
        size = tl.abs(high)
        fits = tl.abs(low) * 256.0 <= tl.where(size < SMALLEST, SMALLEST, size)
        return tl.where((low != 0.0) & fits, high + low, high)  # -0 stays, and so does what another has left
    else:
        return load(pointer + i, live, MASKED, REAL)


@triton.jit
def _with_low(high, low):
    """Bits of bfloat16 with what they lack, unless that would change the sign of 0 or make nan of an infinity."""
    lost = (((high & 0x7FFF) == 0) & (low < 0)) | (((high & 0x7F80) == 0x7F80) & (low > 0))
    return ((high << 16) + tl.where(lost, 0, low)).to(tl.float32, bitcast=True)


@triton.jit
def _beside(cell, T: tl.constexpr):
    """What a parameter has beside it, at an address that is a multiple of 16."""
    return tl.multiple_of(tl.load(cell).to(tl.pointer_type(T)), 16)


@triton.jit
def _wide(address, i, live, MASKED: tl.constexpr):
    """Numbers in bfloat16, by their bits: the interpreter has none."""
    pointer = address.to(tl.pointer_type(tl.uint16)) + i
    if MASKED:
        return (tl.load(pointer, mask=live, other=0).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return (tl.load(pointer).to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _store_half(address, i, half, live, MASKED: tl.constexpr):
    """Stores the bits of numbers in bfloat16."""
    store(address.to(tl.pointer_type(tl.uint16)) + i, half, live, MASKED)


@triton.jit
def _scaled(codes, cell, i, live, REAL: tl.constexpr):
    scales = tl.load(cell).to(tl.pointer_type(tl.float32))
    table = tl.load(cell + 1).to(tl.pointer_type(tl.float32))
    scale = tl.load(scales + i // PER_SCALE, mask=live, other=0.0)
    return tl.load(table + codes).to(REAL) * scale.to(REAL)


@triton.jit
def write(pointer, cell, chunk, n, i, x, live, MASKED: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr):
    """Keeps the numbers of all elements `i` of a chunk; `n` is the length of the array."""
    if pointer.dtype.element_ty == tl.uint8:
        codes = _coded(cell, chunk, n, x, live, REAL, BLOCK)
        tl.store(pointer + i, codes.to(tl.uint8), mask=live)
    elif pointer.dtype.element_ty == tl.int8:
        codes = tl.where(live, _coded(cell, chunk, n, x, live, REAL, BLOCK), 0)
        low, high = tl.split(tl.reshape(codes, [BLOCK // 2, 2]))
        pair = chunk * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
        tl.store(pointer + pair, (low | (high << 4)).to(tl.int8), mask=2 * pair < n)
    elif pointer.dtype.element_ty == tl.int16:
        high, low = _halves(x)
        tl.store(pointer + i, high.to(tl.int16), mask=live)
        tl.store(_beside(cell, tl.int16) + i, low.to(tl.int16), mask=live)
    elif pointer.dtype.element_ty == tl.uint16:
        high, low = _halves(x)
        tl.store(pointer + i, high.to(tl.uint16), mask=live)
        short = tl.minimum((low + 128) >> 8, 127)
        tl.store(_beside(cell, tl.int8) + i, short.to(tl.int8), mask=live)
    elif pointer.dtype.element_ty == tl.int32:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        sum_ = bits + (_words(cell, chunk, REAL, BLOCK) >> 16)
        half = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, sum_ >> 16)
        _store_half(pointer, i, half, live, MASKED)
    elif pointer.dtype.element_ty == tl.uint32:
        high = _nearest(x)
        left = x - (high << 16).to(tl.float32, bitcast=True)
        low = tl.where((high & 0x7F80) == 0x7F80, 0, _nearest(left))
        _store_half(pointer, i, high, live, MASKED)
        _store_half(_beside(cell, tl.uint16), i, low, live, MASKED)
    else:
        store(pointer + i, x, live, MASKED)


@triton.jit
def _nearest(x):
    """The bits of the nearest bfloat16 to float32 numbers, the even one of two; a whole number."""
    bits = x.to(tl.uint32, bitcast=True)
    near = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, near)


@triton.jit
def _words(cell, chunk, REAL: tl.constexpr, BLOCK: tl.constexpr):
    """The random words of the elements of a chunk, for an array whose cell this is: each block of four once."""
    where = tl.load(cell + 1)
    row = cell - (where >> 12)
    step = tl.load(tl.load(cell).to(tl.pointer_type(REAL)))
    block = chunk * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    third = tl.load(row + INDEX) + (where & 4095) * 1048576
    a, b, c, d = philox(tl.load(row + SEED), step, third, block)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK])


@triton.jit
def _halves(x):
    """The nearest bfloat16, and what the bits of a number are above those of it, as whole numbers."""
    bits = tl.where(x == x, x, float("nan")).to(tl.int32, bitcast=True)
    bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC00000, bits)
    high = (bits + 0x8000) >> 16
    return high, bits - (high << 16)


@triton.jit
def _coded(cell, chunk, n, x, live, REAL: tl.constexpr, BLOCK: tl.constexpr):
    """The codes of a block; their scales are kept here."""
    rows = tl.reshape(tl.where(live, x, 0.0), [BLOCK // PER_SCALE, PER_SCALE])
    odd = tl.max((rows != rows).to(tl.int32), 1)
    most = tl.max(tl.where(rows == rows, tl.abs(rows), 0.0), 1)
    scale = tl.where(odd > 0, float("nan"), most).to(tl.float32)
    block = chunk * (BLOCK // PER_SCALE) + tl.arange(0, BLOCK // PER_SCALE)
    scales = tl.load(cell).to(tl.pointer_type(tl.float32))
    tl.store(scales + block, scale, mask=block * PER_SCALE < n)
    part = tl.reshape(div(rows, tl.reshape(scale, [BLOCK // PER_SCALE, 1]).to(REAL)), [BLOCK]).to(tl.float32)
    part = tl.where(part == part, part, 0.0)
    table = tl.load(cell + 1)
    bits = part.to(tl.int32, bitcast=True)
    bucket = ((bits & 0x7FFFFFFF) >> 15) - FIRST_BUCKET
    bucket = tl.minimum(tl.maximum(bucket, 0), BUCKETS - 1) + tl.where(bits < 0, BUCKETS, 0)
    found = tl.load(table.to(tl.pointer_type(tl.int32)) + 512 + bucket)
    bound = tl.load(table.to(tl.pointer_type(tl.float32)) + 256 + found)
    return found + (part > bound).to(tl.int32)
