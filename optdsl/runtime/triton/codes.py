"""Arrays that are kept in codes, in Triton: what optdsl/runtime/storage.py says, for a block of elements.

An array in codes of 8 bits is one of tl.uint8, in codes of 4 bits one of tl.int8. The cell of its scales holds the
address of float32 numbers, the next one that of a table: 256 values, 256 bounds (the largest number that belongs to
an entry), and for every bucket of numbers with the same sign, exponent and upper 8 bits of the mantissa the first
entry in it, of which one bucket has two at most.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from optdsl.runtime.storage import Bits, Code
from optdsl.runtime.triton.library import div, load, store

#: Buckets of numbers of one sign: magnitudes below 2^-24 are in the first, 1 is in the last.
_BUCKETS = 24 * 256 + 1
BUCKETS = tl.constexpr(_BUCKETS)
FIRST_BUCKET = tl.constexpr(103 << 8)
PER_SCALE = tl.constexpr(256)


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


def type_of(code: Code | Bits) -> Any:
    """The type by which a kernel knows an array in these codes."""
    if isinstance(code, Bits):
        return tl.int16 if code.bits == 32 else tl.uint16
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
        low = tl.load(tl.load(cell).to(tl.pointer_type(tl.int16)) + i, mask=live, other=0).to(tl.int32)
        bits = (tl.load(pointer + i, mask=live, other=0).to(tl.int32) << 16) + low
        return bits.to(tl.float32, bitcast=True)
    elif pointer.dtype.element_ty == tl.uint16:
        low = tl.load(tl.load(cell).to(tl.pointer_type(tl.int8)) + i, mask=live, other=0).to(tl.int32)
        bits = (tl.load(pointer + i, mask=live, other=0).to(tl.int32) << 16) + (low << 8)
        return bits.to(tl.float32, bitcast=True)
    else:
        return load(pointer + i, live, MASKED, REAL)


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
        tl.store(tl.load(cell).to(tl.pointer_type(tl.int16)) + i, low.to(tl.int16), mask=live)
    elif pointer.dtype.element_ty == tl.uint16:
        high, low = _halves(x)
        tl.store(pointer + i, high.to(tl.uint16), mask=live)
        short = tl.minimum((low + 128) >> 8, 127)
        tl.store(tl.load(cell).to(tl.pointer_type(tl.int8)) + i, short.to(tl.int8), mask=live)
    else:
        store(pointer + i, x, live, MASKED)


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
