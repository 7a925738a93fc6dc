"""States in few bits: codes of 8 or 4 bits with a scale for each block of 256 numbers.

A number x of a block is kept as the code of the entry that is nearest to x / s, where s is the largest magnitude in
the block and the entries are those of a table, sorted; halfway between two it is the lower one. What comes back is
entry * s. Blocks follow the order of indices. Tensors of fewer than 4096 numbers are kept in float32.

Tables (8 bits have 256 entries, 4 bits 16), signed or, for states that are never negative, unsigned:

- `q8`: the dynamic map of Dettmers et al. 2022 (8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861):
  decades from 1e-7 to 1, each with twice as many entries as the one below, evenly spread. Entries as bitsandbytes
  has them.
- `q8_linear`, `q4_linear`: evenly spread. Unsigned ones leave out 0 (Li et al. 2023, Memory Efficient Optimizers with
  4-bit States, arXiv:2309.01507): a small second moment that became 0 would make a step without bound.
- `q8_sqrt`, `q4`: squares of these.

`bf16_sr` is bfloat16 that is rounded at random (see `rounded`). Parameters in bfloat16 may be rounded so, too, or
have what they lack beside them: `bf16+16`, `bf16+8`, `bf16+kahan` (see `Split`).
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.random import Random

#: bfloat16 that is rounded at random.
AT_RANDOM = "bf16_sr"
#: Formats that are types of torch, and those that are codes, with their bits.
FLOATS = {
    "f32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    AT_RANDOM: torch.bfloat16,
}
CODES = {"q8": 8, "q8_linear": 8, "q8_sqrt": 8, "q4": 4, "q4_linear": 4}
#: Those that an optimizer may be asked for; in f64 are states of float64 parameters.
FORMATS = (*(name for name in FLOATS if name != "f64"), *CODES)
#: Numbers that share a scale, and how many a tensor must have to be kept in codes.
BLOCK = 256
LEAST = 4096
#: What is behind the key of a state of codes in the key of its scales.
SCALES = "_absmax"


@dataclass(frozen=True)
class Half:
    """How a kernel knows an array in bfloat16 that is more than that: by the form, one of `SPLITS` or `AT_RANDOM`.

    `site` is where an array that is rounded at random draws.
    """

    form: str
    site: int = 0


@dataclass(frozen=True, eq=False)
class Code:
    """A table, for one device: `values` in float32, and `bounds[j]`, the largest float32 that belongs to entry j."""

    bits: int
    values: Tensor
    bounds: Tensor
    name: str
    positive: bool

    @property
    def zero(self) -> int:
        """The entry from which those of larger numbers count up, and those of negative ones down."""
        if self.positive:
            return 0
        return 127 if self.name == "q8" else 2 ** (self.bits - 1)


@functools.cache
def code(name: str, positive: bool, device: torch.device) -> Code:
    """The table of a format of codes; `positive` for numbers that are never negative."""
    bits = CODES[name]
    values = torch.tensor(_dynamic(positive) if name == "q8" else _spread(name, bits, positive))
    low, high = values[:-1].double(), values[1:].double()
    middle = (low + high) / 2  # exact
    bounds = middle.float()
    bounds = torch.where(bounds.double() > middle, torch.nextafter(bounds, torch.tensor(-math.inf)), bounds)
    return Code(bits, values.to(device), bounds.to(device), name, positive)


def _dynamic(positive: bool) -> list[float]:
    values = [0.0, 1.0]
    for decade in range(7):
        items = 2 ** (decade + positive)
        edges = torch.linspace(0.1, 1.0, items + 1, dtype=torch.float32, device="cpu")
        found = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)).tolist()
        values += found if positive else [*found, *(-x for x in found)]
    return sorted(values)


def _spread(name: str, bits: int, positive: bool) -> list[float]:
    if positive:
        even = [(k + 1) / 2**bits for k in range(2**bits)]
    else:
        most = 2 ** (bits - 1) - 1
        even = [-1.0, *((k - most) / most for k in range(2 * most + 1))]
        even[0] = -(most + 1) / most  # a code that nothing gets
    if name.endswith("linear"):
        return even
    return [math.copysign(x * x, x) for x in even]


def _blocks(flat: Tensor) -> Tensor:
    missing = -flat.numel() % BLOCK
    return torch.nn.functional.pad(flat, (0, missing)).view(-1, BLOCK)


def encode(x: Tensor, table: Code) -> tuple[Tensor, Tensor]:
    """Codes, of the shape of x or, where two share a byte, flat; and the scale of each block, in float32."""
    blocks = _blocks(x.detach().reshape(-1))
    scales = blocks.abs().amax(1).float()
    part = (blocks / scales.to(blocks.dtype).unsqueeze(1)).float()
    found = torch.bucketize(part.nan_to_num(nan=0.0), table.bounds).to(torch.uint8)
    if table.bits == 4:
        found.view(-1)[x.numel() :] = 0
        pairs = found.view(-1, 2)
        return (pairs[:, 0] | pairs[:, 1] << 4)[: (x.numel() + 1) // 2], scales
    return found.view(-1)[: x.numel()].view(x.shape), scales


def decode(codes: Tensor, scales: Tensor, table: Code, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The numbers that codes stand for."""
    flat = codes.reshape(-1)
    if table.bits == 4:
        flat = torch.stack((flat & 15, flat >> 4), 1).view(-1)
    numel = math.prod(shape)
    values = table.values[flat[:numel].long()].to(dtype)
    return (_blocks(values) * scales.to(dtype).unsqueeze(1)).view(-1)[:numel].view(shape)


class Packed:
    """Numbers that are kept otherwise than as a tensor of them."""

    def open(self, dtype: torch.dtype) -> Tensor:
        """The numbers, in memory of their own."""
        raise NotImplementedError

    def put(self, value: Any) -> None:
        """Keeps a tensor, or the same number everywhere."""
        raise NotImplementedError


def _single(value: Any, like: Tensor) -> Tensor:
    """A tensor, or the same number everywhere, in float32 and the shape of `like`."""
    if not isinstance(value, Tensor):
        value = torch.full((), float(value), dtype=torch.float64, device=like.device)
    single: Tensor = value.detach().to(torch.float32)
    return single.expand(like.shape)


#: Formats of parameters in bfloat16 with something beside them, and its type; the key of it in the state.
SPLITS = {"bf16+16": torch.int16, "bf16+8": torch.int8, "bf16+kahan": torch.bfloat16}
LOW = "p_low"


@dataclass(frozen=True, eq=False)
class Split(Packed):
    """A parameter in bfloat16 with what it lacks beside it, so that small steps are not lost.

    - `low` in int16 or int8: the parameter is the nearest bfloat16 (of two, that of the larger magnitude), `low` what
      the bits of the float32 number are above its own: all 16, or the upper 8 of them.
    - `low` in bfloat16: the parameter is the nearest bfloat16 (of two, the even one), `low` the nearest one to what
      the float32 number is more, or 0 if that is not finite.

    Who writes to the parameter between steps leaves `low` behind: where it cannot belong to the parameter that is
    there now, it counts as 0.
    """

    high: Tensor
    low: Tensor

    @property
    def form(self) -> str:
        """Its format."""
        return next(form for form, dtype in SPLITS.items() if dtype is self.low.dtype)

    def open(self, dtype: torch.dtype) -> Tensor:
        """The numbers, in memory of their own."""
        high = self.high.detach()
        if self.low.dtype is torch.bfloat16:  # a sum would make 0 of -0
            wide, low = high.float(), self.low.float()
            fits = (low != 0) & (low.abs() * 256 <= wide.abs().clamp(min=2.0**-126))
            return torch.where(fits, wide + low, wide).to(dtype)
        bits = high.view(torch.int16).to(torch.int32)
        low = self.low.to(torch.int32) << (0 if self.low.dtype is torch.int16 else 8)
        # it would change the sign of 0, or make nan of an infinity
        lost = ((bits & 0x7FFF) == 0) & (low < 0) | ((bits & 0x7F80) == 0x7F80) & (low > 0)
        return ((bits << 16) + low.masked_fill(lost, 0)).view(torch.float32).to(dtype)

    def put(self, value: Any) -> None:
        """Keeps a tensor, or the same number everywhere."""
        x = _single(value, self.low)
        if self.low.dtype is torch.bfloat16:
            high = x.to(torch.bfloat16)
        else:
            x = torch.where(x == x, x, math.nan)
            high = ((x.view(torch.int32) + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16)
        self.high.detach().copy_(high)
        self.put_low(x)

    def put_low(self, x: Tensor) -> None:
        """Keeps what numbers in float32 are above the parameter, which is near them."""
        high = self.high.detach()
        if self.low.dtype is torch.bfloat16:
            self.low.copy_((x - high.float()).nan_to_num(0.0, 0.0, 0.0))
            return
        low = x.view(torch.int32) - (high.view(torch.int16).to(torch.int32) << 16)
        if self.low.dtype is torch.int8:
            low = (low + 128) >> 8
        few = torch.iinfo(self.low.dtype)
        self.low.copy_(low.clamp(few.min, few.max))


def rounded(x: Tensor, bits: Tensor) -> Tensor:
    """Numbers in float32 as bfloat16, rounded by `bits` from 0 to 2^16 - 1, in int32: one for each number.

    They are added to the 16 bits that are then cut off. If all are equally likely, a number becomes one of its two
    neighbours, on average itself, and one that is a bfloat16 always itself; beyond the largest one there is infinity.
    """
    found = torch.where(x == x, x.view(torch.int32) + bits, 0x7FC00000) >> 16
    return found.to(torch.int16).view(torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Rounded(Packed):
    """A tensor in bfloat16 that is rounded at random, by the numbers that `random` has for this step at `site`."""

    held: Tensor
    random: Random
    site: int

    def open(self, dtype: torch.dtype) -> Tensor:
        """The numbers, in memory of their own."""
        return self.held.detach().to(dtype)

    def put(self, value: Any) -> None:
        """Keeps a tensor, or the same number everywhere."""
        self.held.detach().copy_(rounded(_single(value, self.held), self.random.halves(self.site)))


@dataclass(frozen=True, eq=False)
class Coded(Packed):
    """A state that is kept in codes: the tensors that hold it, and the shape of its parameter."""

    codes: Tensor
    scales: Tensor
    table: Code
    shape: torch.Size

    @property
    def device(self) -> torch.device:
        """Where it is kept."""
        return self.codes.device

    def open(self, dtype: torch.dtype) -> Tensor:
        """Its numbers, in memory of their own, whose `_version` tells whether they are written to."""
        with torch.inference_mode(False), torch.no_grad():
            return decode(self.codes, self.scales, self.table, self.shape, dtype)

    def put(self, value: Any) -> None:
        """Keeps a tensor, or the same number everywhere."""
        if not isinstance(value, Tensor):
            value = torch.full(self.shape, float(value), dtype=torch.float32, device=self.device)
        codes, scales = encode(value.expand(self.shape), self.table)
        self.codes.copy_(codes)
        self.scales.copy_(scales)


def coded(name: str, positive: bool, p: Tensor) -> Coded:
    """A new state of zeros of the shape of p."""
    table = code(name, positive, p.device)
    numel = p.numel()
    codes = torch.empty(
        p.shape if table.bits == 8 else ((numel + 1) // 2,), dtype=torch.uint8, device=p.device
    )
    scales = torch.empty(-(-numel // BLOCK), dtype=torch.float32, device=p.device)
    made = Coded(codes, scales, table, p.shape)
    made.put(torch.zeros(p.shape, dtype=torch.float32, device=p.device))
    return made
