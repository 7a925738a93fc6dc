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

#: MARGIN of codes.h, and its shapes.
_MARGIN = 8
_EVEN, _SQUARES, _PIECES, _FEW = range(4)
#: `steps` and `least` of a shape of few entries: so y * steps + least has 32 places, none of them with two bounds.
_STRETCH = 0.93, 0.065

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
    shape = {"q8": _PIECES, "q8_sqrt": _SQUARES, "q4": _FEW}.get(code.name, _EVEN)
    steps, least, split = 0.0, 2.0**-29, [0] * _PLACES
    columns, top = [[0.0] * _PLACES] * 2, [0.0] * _PLACES
    if shape == _FEW:
        steps, least = _STRETCH
        split = _carries(code, steps, least)
    elif shape == _PIECES:
        split, *columns, top = _placed(_pieces(code), 0.0 if code.positive else least)
    else:
        # entries are multiples of 1 / count, or squares of these; the first is 0 but for positive ones
        most = 2**code.bits - 1 if code.positive else 2 ** (code.bits - 1) - 1
        count = float(most + code.positive)
        steps = count * count
        least = (1.0 if code.positive else 0.3) / (steps if shape == _SQUARES else count)
        half = -0.5 if code.positive else 0.5
        columns = [[count] * _PLACES, [half] * _PLACES]
    # the base makes k the upper bits, see step_
    base = 256.0 if code.positive else 128.0
    factor, shift = columns[0], [x + base + _MARGIN / 65536 for x in columns[1]]
    tops = (torch.tensor(top) + base + 0.5).view(torch.int32).to(torch.int64) << code.positive
    return _aligned(
        struct.pack("4q2f24x", code.bits, code.zero, shape, code.positive, steps, least)
        + struct.pack("32I32f16I", *split, *[0] * (32 - len(split)), *factor, *shift, *tops.tolist())
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


def _placed(pieces: list[Piece], added: float) -> tuple[list[int], list[float], list[float], list[float]]:
    """Split, factors, shifts and tops by place, of y + added."""
    bits = [_bits(max(start + added, 0.0)) for start, *_ in pieces]
    split, found = [0] * _PLACES, [pieces[0]] * _PLACES
    for place in range(_LAST - _PLACES + 2, _LAST + 2):
        found[place % _PLACES] = [p for p, b in zip(pieces, bits, strict=True) if b <= place << 24][-1]
        inside = [b for b in bits if place << 24 < b < place + 1 << 24]
        assert len(inside) <= 1
        split[place % _PLACES] = ((place + 1 << 24) - inside[0]) if inside else 0
    _, factors, shifts, tops = map(list, zip(*found, strict=True))
    return split, factors, [s - f * added for s, f in zip(shifts, factors, strict=True)], tops


def _carries(code: Code, steps: float, least: float) -> list[int]:
    """Split of a shape of few entries: what makes a carry into bit 24 for the larger ones of each place."""
    bounds = [_bits(float(x) * steps + least) for x in code.bounds[code.zero :]]
    split = [0] * 32
    first, last = _bits(least) >> 20, _bits(steps + least) >> 20
    assert last - first < 32
    for place in range(first, last + 1):
        # 16 more, for upper bits that are not taken for lower ones that are too close to call
        below = sum(b < place << 20 for b in bounds) + 16
        inside = [b for b in bounds if place << 20 <= b < place + 1 << 20]
        assert len(inside) <= 1
        assert all(_MARGIN < b % 2**20 < 2**20 - _MARGIN for b in inside)
        start = ((below + 1) << 24) - inside[0] + _MARGIN if inside else (below << 24) - (place << 20)
        split[place % 32] = start % 2**32
    return split


def _bits(x: float) -> int:
    """Of a float32 number."""
    return int(struct.unpack("i", struct.pack("f", x))[0])
