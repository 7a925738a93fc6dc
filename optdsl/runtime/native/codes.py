"""Tables of codes as codes.h has them: the nearest entry of every bucket of numbers, and straight pieces."""

import ctypes
import functools
import struct
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.storage import AT_RANDOM, Code, Half

#: As in codes.h: the bits of the least magnitude that is told apart, the buckets of one sign.
_LOWEST, _BUCKETS = 0x33800000, 3104
#: Numbers of a piece of an exponent or two: 1.0 is in the last of these.
_PLACES, _LAST = 16, 63

#: Bytes in a line of the cache.
_LINE = 64

#: MARGIN of codes.h.
_MARGIN = 8 / 65536

#: What codes.h calls the forms of an array in bfloat16.
_FORMS = {AT_RANDOM: 16, "bf16+8": 24, "bf16+16": 32, "bf16+kahan": 33}

#: With y > from, y is near entry (of magnitudes) floor(y * factor + shift), at most top.
Piece = tuple[float, float, float, float]


@functools.cache
def table_of(code: Code | Half) -> Any:
    """A table of codes as in codes.h, where it stays; for a form of an array in bfloat16 its head alone."""
    if isinstance(code, Half):
        return ctypes.create_string_buffer(struct.pack("2q", _FORMS[code.form], code.site))
    values = torch.zeros(256)
    values[: len(code.values)] = code.values
    root, even = code.name in ("q8_sqrt", "q4"), code.name != "q8"
    most = 2**code.bits - 1 if code.positive else 2 ** (code.bits - 1) - 1
    if even:
        # entries are multiples of 1 / count, or squares of these; the first is 0 but for positive ones
        count = float(most + code.positive)
        steps = count * count
        least = (1.0 if code.positive else 0.3) / (steps if root else count)
        half = -0.5 if code.positive else 0.5
        split, columns = [0] * _PLACES, [[1.0 if root else count] * _PLACES, [half] * _PLACES]
        top = [float(most)] * _PLACES
    else:
        steps, least = 0.0, 2.0**-29
        split, *columns, top = _placed(_pieces(code))
    # the base makes the entry the upper bits, see encode_wide_
    base = 256.0 if code.positive else 128.0
    factor, shift = columns[0], [x + base + _MARGIN for x in columns[1]]
    tops = (torch.tensor(top) + base + 0.5).view(torch.int32).to(torch.int64) << code.positive
    return _aligned(
        struct.pack("5q2f16x", code.bits, code.zero, root, not even, code.positive, steps, least)
        + struct.pack("16i32f16I", *split, *factor, *shift, *tops.tolist())
        + values.numpy().tobytes()
        + values.view(torch.uint8).view(256, 4).T.contiguous().numpy().tobytes()
        + _buckets(code.bounds.cpu()).numpy().tobytes()
    )


def _aligned(content: bytes) -> Any:
    """A buffer with this content that starts where a line of the cache does."""
    memory = ctypes.create_string_buffer(len(content) + _LINE - 1)
    found = (ctypes.c_char * len(content)).from_buffer(memory, -ctypes.addressof(memory) % _LINE)
    found.raw = content
    return found


def _buckets(bounds: Tensor) -> Tensor:
    """`bucket` of codes.h."""

    def number(key: Tensor) -> Tensor:
        bits = (key ^ key >> 63) + _LOWEST
        x = bits.to(torch.int32).view(torch.float32)
        return torch.where(key < 0, -x, x)

    keys = torch.arange(-_BUCKETS, _BUCKETS) << 16
    first, last = (torch.bucketize(number(keys + low), bounds) for low in (0, 0xFFFF))
    assert int((last - first).max()) <= 1
    at = bounds[first.clamp(max=len(bounds) - 1)]
    bits = at.abs().view(torch.int32).to(torch.int64) - _LOWEST
    key = torch.where(at < 0, ~bits, bits)
    return (first << 16 | torch.where(last > first, 0xFFFF - (key & 0xFFFF), 0)).to(torch.int32)


def _pieces(code: Code) -> list[Piece]:
    """The pieces of the dynamic map.

    A piece starts where its line and the one before are at a whole number, or in the midst of what belongs to an
    entry: so an error of a number near there is not overlooked.
    """
    values = [float(x) for x in code.values[code.zero :]]
    bounds = [float(x) for x in code.bounds[code.zero :]]

    def line(start: float, k: int, top: int) -> Piece:
        """Through the bounds of entries k - 1 and k."""
        slope = 1 / (bounds[k] - bounds[k - 1])
        return (start, slope, k - bounds[k - 1] * slope, float(top))

    pieces = [line(-1.0, 1, 1)]
    if code.positive:
        pieces.append(line(2.0**-21, 2, 2))
    for decade in range(1, 7):
        items = 2 ** (decade + code.positive)
        start = items - code.positive
        shift, top = start - items / 9, float(start + items - 1)
        pieces.append((bounds[start - 1] * (1 + 1e-6), items * 10.0 ** (6 - decade) / 0.9, shift, top))
    last = len(values) - 1
    slope = 0.9 / (bounds[last - 1] - values[last - 1])
    return [*pieces, (values[last - 1], slope, last - bounds[last - 1] * slope, float(last))]


def _placed(pieces: list[Piece]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Split, factors, shifts and tops by place."""
    bits = [struct.unpack("i", struct.pack("f", max(start, 0.0)))[0] for start, *_ in pieces]
    split, found = [0] * _PLACES, [pieces[0]] * _PLACES
    for place in range(_LAST - _PLACES + 2, _LAST + 2):
        found[place % _PLACES] = [p for p, b in zip(pieces, bits, strict=True) if b <= place << 24][-1]
        inside = [b for b in bits if place << 24 < b < place + 1 << 24]
        assert len(inside) <= 1
        split[place % _PLACES] = ((place + 1 << 24) - inside[0]) if inside else 0
    _, factors, shifts, tops = map(list, zip(*found, strict=True))
    return split, factors, shifts, tops
