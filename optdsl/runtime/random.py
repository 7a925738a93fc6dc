"""The random numbers of the language, in torch.

This docstring is the definition that every backend follows bit for bit; `optdsl/ir/random.py` is the same
definition as plain numpy, and decides where this text is unclear.

**Contract.**  A draw is a pure function of five integers: the seed, the step, the tensor, the element and the
draw site.  It does not depend on the device, the memory layout, the number of threads, the order of
evaluation, or on what was drawn before.  There is no generator state to save.

======== ================= ==============================================================
seed     [0, 2^64)         one per optimizer
t        [0, 2^32)         the step
index    [0, 2^20)         the tensor, its position among the parameters of the optimizer
site     [0, 2^12)         the place in the spec where the random function is called
e        [0, 2^66)         the element: its row-major (logical) index in the tensor
======== ================= ==============================================================

**Words.**  The generator is Philox4x32-10 of J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel
random numbers: as easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405.  Four neighbouring elements share a
block: element e takes word (e mod 4) of the block b = floor(e / 4), computed with::

    key     = (seed mod 2^32, floor(seed / 2^32))
    counter = (b mod 2^32, floor(b / 2^32), index + 2^20 * site, t)

Different (e, index, site, t) in the ranges above give different (counter, word) pairs, so two draws of one
seed never share bits.  One round of Philox maps the counter (c0, c1, c2, c3) and the key (k0, k1) to::

    (hi(0xCD9E8D57 * c2) ^ c1 ^ k0,  lo(0xCD9E8D57 * c2),
     hi(0xD2511F53 * c0) ^ c3 ^ k1,  lo(0xD2511F53 * c0))

with hi and lo the upper and lower 32 bits of the 64-bit product.  Ten rounds are done; between rounds k0
grows by 0x9E3779B9 and k1 by 0xBB67AE85, modulo 2^32.

**Values.**  Let w be the word of the element, an unsigned 32-bit integer.  Every value is a float32, made by
integer operations and by float32 + - * / that are each rounded to nearest even (IEEE 754): no library
function, no fused multiply-add (C: -ffp-contract=off; Triton: enable_fp_fusion=False and div_rn), nothing
denormal, infinite or nan.

* uniform     = floor(w / 2^8) * 2^-24, exactly.
* rademacher  = +1 if w >= 2^31, else -1.
* bernoulli(q) = 1 if uniform < float32(q), else 0.  q <= 0 and nan never give 1; q >= 1 always does.
* normal: the standard normal quantile of (w + 1/2) / 2^32, by these operations, "f32" rounding an integer to
  float32::

    a = w if w < 2^31 else 2^32 - 1 - w         31 bits; the tail probability is p = (a + 1/2) / 2^32
    x = (f32(2^31 - 1 - a) + 0.5) * 2^-31       1 - 2p
    s = ((f32(a) + 0.5) * 2^-31) * (1 + x)      2p (2 - 2p) = 1 - x^2, in [2^-31, 1]
    i = the bits of s as an integer
    k = (i - 0x3F3504F3) >> 23                  arithmetic shift: s = 2^k m, sqrt(1/2) <= m < sqrt(2)
    m = the float32 with the bits i - (k << 23)
    f = m - 1
    y = f32(-k) - f * LOG2(f)                   -log2(s)
    z = x * (P(y) / Q(y))                       sqrt(2) erfinv(x)
    normal = z if w >= 2^31 else -z

  LOG2, P and Q are the polynomials of `_PHILOX_LOG2`, `_PHILOX_PROBIT_P` and `_PHILOX_PROBIT_Q` (lowest power
  first), by Horner's rule from the highest coefficient: r = r * v + c, one rounding for the product and one
  for the sum.  The coefficients are minimax fits, made for this use.  Over all 2^32 words the relative error
  against the exact quantile is below 5.2e-7.  Words w and 2^32 - 1 - w give -z and z, no word gives 0, and
  the values reach 6.338 on either side.

* halves = floor(w / 2^16), an integer: the bits by which `optdsl.runtime.storage` rounds what is kept in bfloat16.
  The language gives its draws sites below 2^11. Rounding takes those from the top: 4095 for the parameter, 4094 - k
  for the k-th of the states per element.

**Types.**  A tensor of float32 gets these values; one of float64 the same values, converted; one of a
narrower type the same values rounded to nearest (where a uniform may become 1).

This file needs only torch, and may be pasted into another file as it stands.
"""

from collections.abc import Callable

import torch


def _philox_coefficients(hexadecimals: str) -> tuple[float, ...]:
    """Numbers that float32 holds exactly, lowest power first."""
    return tuple(float.fromhex(c) for c in hexadecimals.split())


# log2(1 + f) / f for sqrt(1/2) <= 1 + f < sqrt(2); the absolute error of the logarithm is below 4.9e-8.
_PHILOX_LOG2 = _philox_coefficients(
    "0x1.715472p+0 -0x1.7155b8p-1 0x1.ec7b3ep-2 -0x1.70bafap-2 "
    "0x1.259920p-2 -0x1.001186p-2 0x1.e50b3ap-3 -0x1.2a6292p-3"
)
# sqrt(2) * erfinv(x) / x = P(y) / Q(y) for y = -log2(1 - x^2) in [0, 31]; the relative error is below 1.2e-7.
_PHILOX_PROBIT_P = _philox_coefficients(
    "0x1.40d934p+0 0x1.41069ep-2 0x1.616be6p-5 0x1.03086ep-8 0x1.e35c68p-13 0x1.3a82a2p-18"
)
_PHILOX_PROBIT_Q = _philox_coefficients(
    "0x1.000000p+0 0x1.194a84p-4 0x1.0121fep-6 0x1.8d9136p-11 0x1.48a8aep-15 0x1.5aa072p-23"
)

# A word of a counter: a 32-bit unsigned number as a Python int, or an int64 tensor of them.
_PhiloxWord = int | torch.Tensor


def _philox_mulhilo(multiplier: int, x: _PhiloxWord) -> tuple[_PhiloxWord, _PhiloxWord]:
    """The upper and the lower 32 bits of multiplier * x, both below 2^32 and multiplier >= 2^31.

    The product is taken with multiplier - 2^32, so that it cannot overflow a signed 64-bit integer; the
    2^32 * x left out is added to the upper half.
    """
    p = x * (multiplier - 0x100000000)
    return (p >> 32) + x, p & 0xFFFFFFFF


def _philox_4x32_10(
    c0: _PhiloxWord, c1: _PhiloxWord, c2: _PhiloxWord, c3: _PhiloxWord, k0: int, k1: int
) -> tuple[_PhiloxWord, _PhiloxWord, _PhiloxWord, _PhiloxWord]:
    """Ten rounds of Philox4x32 (Salmon et al. 2011) on the counter (c0, c1, c2, c3) with the key (k0, k1)."""
    for _ in range(10):
        hi0, lo0 = _philox_mulhilo(0xD2511F53, c0)
        hi1, lo1 = _philox_mulhilo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _philox_words(
    seed: int, t: _PhiloxWord, index: int, site: int, first: int, count: int, device: torch.device
) -> torch.Tensor:
    """The words of the elements first .. first + count - 1: int64 of shape (count,), values in [0, 2^32).

    `first` is a multiple of 4, and no multiple of 2^34 lies strictly inside the range.
    """
    blocks = (count + 3) >> 2
    low, high = (first >> 2) & 0xFFFFFFFF, first >> 34
    four = _philox_4x32_10(
        torch.arange(low, low + blocks, dtype=torch.int64, device=device),
        high,
        index + (site << 20),
        t,
        seed & 0xFFFFFFFF,
        seed >> 32,
    )
    words = torch.empty((blocks, 4), dtype=torch.int64, device=device)
    for lane in range(4):
        words[:, lane] = four[lane]
    return words.view(-1)[:count]


def _philox_uniform(w: torch.Tensor) -> torch.Tensor:
    """uniform: float32 in [0, 1) from int64 words, same shape."""
    return (w >> 8).to(torch.float32).mul_(2.0**-24)


def _philox_rademacher(w: torch.Tensor) -> torch.Tensor:
    """rademacher: float32 -1 or +1 from int64 words, same shape."""
    return (w >> 31).to(torch.float32).mul_(2.0).sub_(1.0)


def _philox_polynomial(coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    """Horner's rule in float32, one rounding for each product and each sum."""
    value = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        value.add_(c).mul_(x)
    return value.add_(coefficients[0])


def _philox_normal(w: torch.Tensor) -> torch.Tensor:
    """normal: float32 from int64 words, same shape.  The operations are those of the module docstring."""
    a = torch.minimum(w, w ^ 0xFFFFFFFF)
    x = (a ^ 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    s = a.to(torch.float32).add_(0.5).mul_(2.0**-31).mul_(x + 1.0)
    i = s.view(torch.int32)
    k = (i - 0x3F3504F3) >> 23
    f = (i - (k << 23)).view(torch.float32).sub_(1.0)
    y = k.neg_().to(torch.float32).sub_(_philox_polynomial(_PHILOX_LOG2, f).mul_(f))
    ratio = _philox_polynomial(_PHILOX_PROBIT_P, y).div_(_philox_polynomial(_PHILOX_PROBIT_Q, y))
    z = x.mul_(ratio)
    return torch.where(w > 0x7FFFFFFF, z, z.neg())


class Random:
    """The random numbers of one tensor at one step; the module docstring defines their values.

    `seed` in [0, 2^64); step `t` in [0, 2^32), as a 0-dim tensor on `device` where the host does not know it;
    `index` of the tensor among the parameters in [0, 2^20);
    `shape`, `dtype` and `device` of the tensors to return.  `part`, for a part of a tensor: the shape of the whole
    and where the part begins in each dimension; every element gets what it gets in the whole.  Every method takes the
    draw `site` in [0, 2^12) and returns a new contiguous tensor; called again it returns the same values.
    """

    def __init__(
        self,
        seed: int,
        t: int | torch.Tensor,
        index: int,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        part: tuple[torch.Size, tuple[int, ...]] | None = None,
    ) -> None:
        known = 0 if isinstance(t, torch.Tensor) else t  # what is on a device is not waited for
        for name, value, bits in (("seed", seed, 64), ("t", known, 32), ("index", index, 20)):
            if not 0 <= value < 1 << bits:
                raise ValueError(f"random: {name} must be in [0, 2^{bits}), got {value}")
        self.seed = int(seed)
        self.t = t.to(torch.int64) if isinstance(t, torch.Tensor) else int(t)
        self.index = int(index)
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.device = torch.device(device)
        self.part = part

    def _words(self, site: int, first: int, count: int) -> torch.Tensor:
        """The words of `count` elements from `first` on, as they follow each other in the tensor to return."""
        if self.part is None:
            return _philox_words(self.seed, self.t, self.index, site, first, count, self.device)
        whole, begins = self.part
        here = torch.arange(first, first + count, dtype=torch.int64, device=self.device)
        e = torch.zeros_like(here)
        stride = 1
        for size, length, begin in zip(reversed(self.shape), reversed(whole), reversed(begins), strict=True):
            e += (here % size + begin) * stride
            here //= size
            stride *= length
        block = e >> 2
        four = _philox_4x32_10(
            block & 0xFFFFFFFF,
            block >> 32,
            self.index + (site << 20),
            self.t,
            self.seed & 0xFFFFFFFF,
            self.seed >> 32,
        )
        words = torch.stack([torch.as_tensor(word).expand_as(e) for word in four])
        return words.gather(0, (e & 3).unsqueeze(0)).squeeze(0)

    def _draw(
        self, site: int, values: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """`values` of the words of every element, converted to `dtype`, of shape `shape`.

        Done in pieces, to bound the memory for the int64 words (and, on a CPU, to stay within its cache).
        """
        if not 0 <= site < 1 << 12:
            raise ValueError(f"random: site must be in [0, 2^12), got {site}")
        n = self.shape.numel()
        piece = 1 << (19 if self.device.type == "cpu" else 24)
        out = torch.empty(n, dtype=dtype, device=self.device)
        for first in range(0, n, piece):
            count = min(piece, n - first)
            w = self._words(site, first, count)
            out[first : first + count] = values(w)
        return out.view(self.shape)

    def normal(self, site: int) -> torch.Tensor:
        """Standard normal values, |z| < 6.34; `shape`, `dtype`, `device` of this object."""
        return self._draw(site, _philox_normal, self.dtype)

    def uniform(self, site: int) -> torch.Tensor:
        """Multiples of 2^-24 in [0, 1), all equally likely; `shape`, `dtype`, `device` of this object."""
        return self._draw(site, _philox_uniform, self.dtype)

    def rademacher(self, site: int) -> torch.Tensor:
        """-1 or +1 with equal chance; `shape`, `dtype`, `device` of this object."""
        return self._draw(site, _philox_rademacher, self.dtype)

    def halves(self, site: int) -> torch.Tensor:
        """The upper 16 bits of each word: int32 in [0, 2^16), of `shape` and on `device` of this object."""
        return self._draw(site, lambda w: w >> 16, torch.int32)

    def bernoulli(self, q: float | torch.Tensor, site: int) -> torch.Tensor:
        """1 with probability q, else 0; `shape`, `dtype`, `device` of this object.

        `q`: a number, or a tensor that broadcasts to `shape`; rounded to float32 and compared to a uniform.
        """
        if isinstance(q, torch.Tensor):
            if torch.broadcast_shapes(q.shape, self.shape) != self.shape:
                raise ValueError(f"random: q of shape {tuple(q.shape)} does not fit {tuple(self.shape)}")
            ones = self._draw(site, _philox_uniform, torch.float32) < q.to(torch.float32)
        else:
            limit = torch.tensor(q, dtype=torch.float32, device="cpu").item()
            ones = self._draw(site, _philox_uniform, torch.float32) < limit
        return ones.to(self.dtype)
