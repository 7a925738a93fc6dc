"""What the random functions of the language mean, in numpy.

`normal`, `uniform`, `rademacher` and `bernoulli` draw for one tensor of one step at one draw site, for the
element indices 0 .. n-1, and return float64 arrays that hold exact float32 values.  Every backend must give
these values bit for bit.  The definition in words, with the reasons, is the module docstring of
`optdsl/runtime/random.py`; this module is the same thing as short code, written to be read, not to be fast.

Source of the generator: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy
as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405 (Philox4x32 with 10 rounds).
"""

import numpy as np
import numpy.typing as npt

UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Counter = tuple[UInt32Array, UInt32Array, UInt32Array, UInt32Array]


def _float32s(hexadecimals: str) -> tuple[np.float32, ...]:
    return tuple(np.float32(float.fromhex(c)) for c in hexadecimals.split())


# Coefficients, lowest power first; each is a float32 written exactly.
# log2(1 + f) = f * LOG2(f) on [sqrt(1/2) - 1, sqrt(2) - 1], absolute error below 4.9e-8.
LOG2 = _float32s(
    "0x1.715472p+0 -0x1.7155b8p-1 0x1.ec7b3ep-2 -0x1.70bafap-2 "
    "0x1.259920p-2 -0x1.001186p-2 0x1.e50b3ap-3 -0x1.2a6292p-3"
)
# sqrt(2) * erfinv(x) / x = PROBIT_P(y) / PROBIT_Q(y) for y = -log2(1 - x^2) in [0, 31], relative error
# below 1.2e-7.
PROBIT_P = _float32s("0x1.40d934p+0 0x1.41069ep-2 0x1.616be6p-5 0x1.03086ep-8 0x1.e35c68p-13 0x1.3a82a2p-18")
PROBIT_Q = _float32s("0x1.000000p+0 0x1.194a84p-4 0x1.0121fep-6 0x1.8d9136p-11 0x1.48a8aep-15 0x1.5aa072p-23")


def philox4x32_10(counter: Counter, key: tuple[int, int]) -> Counter:
    """Ten rounds of Philox4x32 (Salmon et al. 2011): four uint32 counter words in, four random words out.

    `counter`: four uint32 arrays of one shape; `key`: two integers in [0, 2^32).
    """
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c2 = (p1 >> half) ^ c1 ^ np.uint64(k0), (p0 >> half) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & low, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0.astype(np.uint32), c1.astype(np.uint32), c2.astype(np.uint32), c3.astype(np.uint32)


def words_at(seed: int, t: int, index: int, site: int, elements: UInt64Array) -> UInt32Array:
    """The random word of each element: word `e % 4` of the Philox block of `e // 4`.

    `seed` in [0, 2^64), step `t` in [0, 2^32), tensor `index` in [0, 2^20), draw `site` in [0, 2^12);
    `elements`: uint64 row-major element indices, any shape.  Returns uint32 of that shape.
    """
    for name, value, bits in (("seed", seed, 64), ("t", t, 32), ("index", index, 20), ("site", site, 12)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"random: {name} must be in [0, 2^{bits}), got {value}")
    block = elements >> np.uint64(2)
    counter = (
        block.astype(np.uint32),  # modulo 2^32
        (block >> np.uint64(32)).astype(np.uint32),
        np.full(block.shape, index + 2**20 * site, np.uint32),
        np.full(block.shape, t, np.uint32),
    )
    four = np.stack(philox4x32_10(counter, (seed % 2**32, seed // 2**32)), axis=-1)
    lane = (elements & np.uint64(3)).astype(np.int64)
    picked: UInt32Array = np.take_along_axis(four, lane[..., np.newaxis], axis=-1)[..., 0]
    return picked


def words(seed: int, t: int, index: int, site: int, n: int) -> UInt32Array:
    """The random words of elements 0 .. n-1, a uint32 array of length n.  Arguments as for `words_at`."""
    return words_at(seed, t, index, site, np.arange(n, dtype=np.uint64))


def _polynomial(coefficients: tuple[np.float32, ...], x: Float32Array) -> Float32Array:
    """Horner's rule in float32: every step a rounded product, then a rounded sum (no fused multiply-add)."""
    value = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def uniform_from_words(w: UInt32Array) -> Float32Array:
    """floor(w / 2^8) / 2^24, exact in float32: the multiples of 2^-24 in [0, 1), all equally likely."""
    return (w >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def normal_from_words(w: UInt32Array) -> Float32Array:
    """The standard normal quantile of (w + 1/2) / 2^32, in the float32 operations that define it.

    With a = min(w, 2^32 - 1 - w) the tail probability is p = (a + 1/2) / 2^32 < 1/2.  Then x = 1 - 2p and
    |z| = sqrt(2) * erfinv(x) = x * R(y), y = -log2(1 - x^2).
    """
    half, one, scale = np.float32(0.5), np.float32(1), np.float32(2.0**-31)
    upper = w >= np.uint32(2**31)
    a = np.where(upper, ~w, w)  # 31 bits: the distance from the nearer end of the line of words
    x = ((np.uint32(2**31 - 1) - a).astype(np.float32) + half) * scale  # 1 - 2p
    s = ((a.astype(np.float32) + half) * scale) * (one + x)  # 2p * (2 - 2p) = 1 - x^2
    bits = s.view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)  # s = 2^exponent * m, m in [sqrt(1/2), sqrt(2))
    f = (bits - (exponent << np.int32(23))).view(np.float32) - one
    y = (-exponent).astype(np.float32) - f * _polynomial(LOG2, f)
    z = x * (_polynomial(PROBIT_P, y) / _polynomial(PROBIT_Q, y))
    return np.where(upper, z, -z)


def uniform(seed: int, t: int, index: int, site: int, n: int) -> Float64Array:
    """n values of `uniform()`, in [0, 1): float64 of shape (n,), exact float32 values."""
    return uniform_from_words(words(seed, t, index, site, n)).astype(np.float64)


def normal(seed: int, t: int, index: int, site: int, n: int) -> Float64Array:
    """n values of `normal()`, mean 0, variance 1, |z| < 6.34: float64 of shape (n,), exact float32 values."""
    return normal_from_words(words(seed, t, index, site, n)).astype(np.float64)


def rademacher(seed: int, t: int, index: int, site: int, n: int) -> Float64Array:
    """n values of `rademacher()`, +1 where the top bit of the word is set, else -1: float64 of shape (n,)."""
    return np.where(words(seed, t, index, site, n) >= np.uint32(2**31), 1.0, -1.0)


def bernoulli(seed: int, t: int, index: int, site: int, n: int, q: npt.ArrayLike) -> Float64Array:
    """n values of `bernoulli(q)`, 1 where uniform < q and 0 elsewhere: float64 of shape (n,).

    `q`: a number, or an array that broadcasts to (n,); rounded to float32 before the comparison.  q <= 0 and
    q = nan never give 1, q >= 1 always does.
    """
    with np.errstate(over="ignore"):
        limit = np.asarray(q, np.float64).astype(np.float32)
    u = uniform_from_words(words(seed, t, index, site, n))
    return (u < np.broadcast_to(limit, (n,))).astype(np.float64)
