"""Random numbers: Philox against its published answers, torch against numpy, values against mathematics."""

import ast
import math
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

from optdsl.ir import random as meaning
from optdsl.runtime import random as runtime
from optdsl.runtime.random import Random

CPU = torch.device("cpu")
TOP = 2**32 - 1
DEVICES = [CPU] + ([torch.device("cuda")] if torch.cuda.is_available() else [])

# Random123 1.14, examples/kat_vectors, "philox4x32 10": counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((TOP, TOP, TOP, TOP), (TOP, TOP), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

# seed, t, index, site: ordinary ones, every range's last value, and each word of the counter and key alone.
POINTS = [
    (0, 0, 0, 0),
    (1, 2, 3, 4),
    (2**64 - 1, TOP, 2**20 - 1, 2**12 - 1),
    (2**32, 0, 0, 0),
    (2**63, 1, 0, 0),
    (0, 2**31, 0, 0),
    (0, 1, 2**19, 0),
    (0, 1, 0, 2**11),
    (0xDEADBEEF12345678, 1_000_000, 4096, 77),
]

# Draws of seed 1, step 2, tensor 3, site 4.
PINNED_WORDS = [4106017982, 2680156382, 1334866520, 1033963896, 3291257349]
PINNED_NORMALS = ["0x1.b4c40ap+0", "0x1.43a5f0p-2", "-0x1.f96faep-2", "-0x1.686964p-1", "0x1.74167ep-1"]
PINNED_UNIFORMS = ["0x1.e979b8p-1", "0x1.3f7fe0p-1", "0x1.3e41c8p-2", "0x1.ed0848p-3", "0x1.885934p-1"]

# The largest relative error of normal over all 2^32 words, 5.149e-7, is at this one (found with
# scipy.special.ndtri).
WORST = 682013

# Where normal splits off an exponent at a mantissa of just sqrt(1/2).
SPLIT_WORDS = [2967871, 23859106, 47989334, 97101557, 199036201, 420865904, 985273824]


def scalar_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 in Python's integers, the third opinion."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for round_ in range(10):
        a, b = divmod(0xD2511F53 * c0, 2**32), divmod(0xCD9E8D57 * c2, 2**32)
        r0, r1 = (k0 + round_ * 0x9E3779B9) % 2**32, (k1 + round_ * 0xBB67AE85) % 2**32
        c0, c1, c2, c3 = b[0] ^ c1 ^ r0, b[1], a[0] ^ c3 ^ r1, a[1]
    return c0, c1, c2, c3


def scalar_word(seed: int, t: int, index: int, site: int, e: int) -> int:
    block = e // 4
    counter = (block % 2**32, block // 2**32, site * 2**20 + index, t)
    return scalar_philox(counter, (seed % 2**32, seed // 2**32))[e % 4]


def drawer(
    seed: int = 1,
    t: int = 1,
    index: int = 0,
    shape: tuple[int, ...] = (1000,),
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Random:
    return Random(seed, t, index, torch.Size(shape), dtype, device)


def same_bits(a: torch.Tensor, b: np.ndarray) -> bool:
    """Equal as float32, the sign of zero included."""
    assert a.dtype == torch.float32
    bits = b.astype(np.float32)
    assert np.array_equal(bits.astype(np.float64), b, equal_nan=True)  # b holds float32 values
    return np.array_equal(a.cpu().numpy().view(np.int32), bits.view(np.int32))


def edge_words() -> np.ndarray:
    """Words around every power of two, the ends and the middle, `SPLIT_WORDS`, and 100,000 others."""
    near = [(p + d) % 2**32 for p in (2**k for k in range(33)) for d in range(-40, 41)]
    near += SPLIT_WORDS
    near += [TOP - w for w in near]
    others = np.random.default_rng(7).integers(0, 2**32, 100_000, dtype=np.uint64)
    return np.concatenate([np.array(near, np.uint64), others]).astype(np.uint32)


# The generator


@pytest.mark.parametrize("counter, key, answer", KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (np.array([c], np.uint32) for c in counter)
    assert tuple(int(w[0]) for w in meaning.philox4x32_10((c0, c1, c2, c3), key)) == answer
    assert runtime._philox_4x32_10(*counter, *key) == answer
    for device in DEVICES:
        t0, t1, t2, t3 = (torch.tensor([c], dtype=torch.int64, device=device) for c in counter)
        assert tuple(int(w) for w in runtime._philox_4x32_10(t0, t1, t2, t3, *key)) == answer
    assert scalar_philox(counter, key) == answer


@pytest.mark.parametrize("multiplier", [0xD2511F53, 0xCD9E8D57])
def test_the_product_is_exact_and_stays_in_64_bits(multiplier: int) -> None:
    xs = [0, 1, 2, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**31 + 1, TOP - 1, TOP]
    xs += [int(x) for x in np.random.default_rng(1).integers(0, 2**32, 1000)]
    high, low = runtime._philox_mulhilo(multiplier, torch.tensor(xs))
    assert isinstance(high, torch.Tensor)
    assert isinstance(low, torch.Tensor)
    assert [(h, lo) for h, lo in zip(high.tolist(), low.tolist(), strict=True)] == [
        divmod(multiplier * x, 2**32) for x in xs
    ]
    assert all(-(2**63) <= x * (multiplier - 2**32) < 2**63 for x in xs)


@pytest.mark.parametrize("point", POINTS)
def test_words_of_the_first_elements(point: tuple[int, int, int, int]) -> None:
    expected = [scalar_word(*point, e) for e in range(11)]
    assert meaning.words(*point, 11).tolist() == expected
    assert runtime._philox_words(*point, 0, 11, CPU).tolist() == expected


@pytest.mark.parametrize("first", [2**31 - 8, 2**32 - 8, 2**34 - 8, 2**34, 2**40 + 12, 2**60])
def test_words_of_far_elements(first: int) -> None:
    point = POINTS[-1]
    expected = [scalar_word(*point, first + e) for e in range(8)]
    assert meaning.words_at(*point, np.arange(first, first + 8, dtype=np.uint64)).tolist() == expected
    assert runtime._philox_words(*point, first, 8, CPU).tolist() == expected


def test_different_places_use_different_counters() -> None:
    # The counter is (block low, block high, index + 2^20 site, t); the corners of the ranges and their
    # neighbours, and every single changed bit, must give different words.
    elements = [0, 4, 2**34 - 4]
    ts = [0, 1, 2**31, TOP]
    indices = [0, 1, 2**19, 2**20 - 1]
    sites = [0, 1, 2**11, 2**12 - 1]
    seen = {
        tuple(scalar_word(9, t, i, s, e + lane) for lane in range(4))
        for t, i, s, e in product(ts, indices, sites, elements)
    }
    assert len(seen) == len(elements) * len(ts) * len(indices) * len(sites)
    drawn = {
        tuple(runtime._philox_words(9, t, i, s, e, 4, CPU).tolist())
        for t, i, s, e in product(ts, indices, sites, elements)
    }
    assert drawn == seen


@pytest.mark.parametrize(
    "seed, t, index, site",
    [
        (-1, 0, 0, 0),
        (2**64, 0, 0, 0),
        (0, -1, 0, 0),
        (0, 2**32, 0, 0),
        (0, 0, -1, 0),
        (0, 0, 2**20, 0),
        (0, 0, 0, -1),
        (0, 0, 0, 2**12),
    ],
)
def test_out_of_range_is_refused(seed: int, t: int, index: int, site: int) -> None:
    with pytest.raises(ValueError, match="must be in"):
        meaning.normal(seed, t, index, site, 1)
    with pytest.raises(ValueError, match="must be in"):
        drawer(seed, t, index).normal(site)


# torch against numpy


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("point", POINTS)
def test_torch_draws_what_numpy_draws(point: tuple[int, int, int, int], device: torch.device) -> None:
    seed, t, index, site = point
    for n in (1, 2, 3, 4, 5, 7, 8, 4097):
        d = drawer(seed, t, index, (n,), device=device)
        assert same_bits(d.normal(site), meaning.normal(*point, n))
        assert same_bits(d.uniform(site), meaning.uniform(*point, n))
        assert same_bits(d.rademacher(site), meaning.rademacher(*point, n))
        for q in (0.0, 0.1, 0.5, 1.0):
            assert same_bits(d.bernoulli(q, site), meaning.bernoulli(*point, n, q))


def test_torch_draws_what_numpy_draws_at_random_places() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        seed = int(rng.integers(0, 2**64, dtype=np.uint64))
        t, index, site, n = (int(rng.integers(0, high)) for high in (2**32, 2**20, 2**12, 300))
        d = drawer(seed, t, index, (n,))
        assert same_bits(d.normal(site), meaning.normal(seed, t, index, site, n))
        assert same_bits(d.uniform(site), meaning.uniform(seed, t, index, site, n))
        q = rng.random(n)
        assert same_bits(
            d.bernoulli(torch.from_numpy(q), site), meaning.bernoulli(seed, t, index, site, n, q)
        )


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_torch_computes_what_numpy_computes_from_edge_words(device: torch.device) -> None:
    w = edge_words()
    words = torch.from_numpy(w.astype(np.int64)).to(device)
    assert same_bits(runtime._philox_normal(words), meaning.normal_from_words(w).astype(np.float64))
    assert same_bits(runtime._philox_uniform(words), meaning.uniform_from_words(w).astype(np.float64))
    assert same_bits(runtime._philox_rademacher(words), np.where(w >= 2**31, 1.0, -1.0))


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_tensor_drawn_in_pieces(device: torch.device) -> None:
    n = 3 * 2**19 + 5
    assert same_bits(drawer(5, 6, 7, (n,), device=device).normal(8), meaning.normal(5, 6, 7, 8, n))


def test_the_constants_are_float32_and_the_same() -> None:
    pairs = [
        (meaning.LOG2, runtime._PHILOX_LOG2),
        (meaning.PROBIT_P, runtime._PHILOX_PROBIT_P),
        (meaning.PROBIT_Q, runtime._PHILOX_PROBIT_Q),
    ]
    for ours, theirs in pairs:
        assert [float(c) for c in ours] == list(theirs)


def test_pinned_values() -> None:
    # A change here changes every seeded run of every generated optimizer.
    assert meaning.words(1, 2, 3, 4, 5).tolist() == PINNED_WORDS
    assert meaning.normal(1, 2, 3, 4, 5).tolist() == [float.fromhex(x) for x in PINNED_NORMALS]
    assert meaning.uniform(1, 2, 3, 4, 5).tolist() == [float.fromhex(x) for x in PINNED_UNIFORMS]


# Shapes, types, state


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (3, 5, 7), (2, 3, 4, 5), (1, 1)])
def test_elements_are_numbered_row_major(shape: tuple[int, ...]) -> None:
    n = math.prod(shape)
    d = drawer(11, 12, 13, shape)
    for out, expected in (
        (d.normal(14), meaning.normal(11, 12, 13, 14, n)),
        (d.uniform(14), meaning.uniform(11, 12, 13, 14, n)),
        (d.rademacher(14), meaning.rademacher(11, 12, 13, 14, n)),
        (d.bernoulli(0.25, 14), meaning.bernoulli(11, 12, 13, 14, n, 0.25)),
    ):
        assert out.shape == shape
        assert out.is_contiguous()
        assert same_bits(out, expected.reshape(shape))


def test_memory_layout_does_not_matter() -> None:
    plain = torch.zeros(4, 6)
    layouts = [plain, torch.zeros(6, 4).t(), torch.zeros(8, 12)[::2, ::2], torch.zeros(1, 6).expand(4, 6)]
    drawn = [drawer(1, 2, 3, tuple(p.shape)).normal(0) + p for p in layouts]
    for one, other in pairwise(drawn):
        assert torch.equal(one, other)
    image = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    expected = meaning.normal(1, 2, 3, 0, image.numel()).reshape(2, 3, 4, 5)
    assert same_bits((image + drawer(1, 2, 3, (2, 3, 4, 5)).normal(0)).contiguous(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_get_the_float32_values_converted(dtype: torch.dtype) -> None:
    d, other = drawer(3, 4, 5), drawer(3, 4, 5, dtype=dtype)
    for draw in ("normal", "uniform", "rademacher"):
        out = getattr(other, draw)(6)
        assert out.dtype == dtype
        assert torch.equal(out, getattr(d, draw)(6).to(dtype))
    # the comparison is made in float32 whatever the type
    assert torch.equal(other.bernoulli(0.3, 6), d.bernoulli(0.3, 6).to(dtype))
    assert other.bernoulli(0.3, 6).dtype == dtype


def test_nothing_outside_decides_the_values() -> None:
    expected = drawer(1, 2, 3, (300_000,)).normal(4)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(3)
    try:
        d = drawer(1, 2, 3, (300_000,))
        d.uniform(0)
        d.bernoulli(0.5, 0)
        assert torch.equal(d.normal(4), expected)
        assert torch.equal(d.normal(4), expected)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_runtime_file_stands_alone() -> None:
    source = Path(runtime.__file__).read_text()
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module))
    assert imported == {"torch", "collections.abc"}
    pasted: dict[str, object] = {}
    exec(compile(source, "pasted.py", "exec"), pasted)
    names = {n for n in pasted if not n.startswith("__")} - {"torch", "Callable", "Random"}
    assert all(n.lower().startswith("_philox") for n in names)
    one = pasted["Random"](1, 2, 3, torch.Size((9,)), torch.float32, CPU)  # type: ignore[operator]
    assert torch.equal(one.normal(4), drawer(1, 2, 3, (9,)).normal(4))


# bernoulli


def test_bernoulli_at_the_ends() -> None:
    d = drawer(1, 2, 3, (10_000,))
    for q in (0.0, -0.0, -1.0, -math.inf, math.nan, 1e-46):
        assert not d.bernoulli(q, 0).any()
        assert not d.bernoulli(torch.tensor(q, dtype=torch.float64), 0).any()
        assert not meaning.bernoulli(1, 2, 3, 0, 10_000, q).any()
    for q in (1.0, 2.0, 1e300, math.inf, 1 - 2.0**-30):
        assert d.bernoulli(q, 0).all()
        assert d.bernoulli(torch.tensor(q, dtype=torch.float64), 0).all()
        assert meaning.bernoulli(1, 2, 3, 0, 10_000, q).all()
    assert d.bernoulli(True, 0).all()


def test_bernoulli_rounds_q_to_float32_and_compares_strictly() -> None:
    u = meaning.uniform(1, 2, 3, 0, 1000)
    d = drawer(1, 2, 3, (1000,))
    for q, expected in (
        (u, 0.0),  # u < u
        (u + 2.0**-24, 1.0),
        (u * (1 - 2.0**-40), 0.0),  # rounds back to u
        (u * (1 + 2.0**-40), 0.0),
        (np.nextafter(u.astype(np.float32), np.float32(2)), 1.0),
    ):
        keep = u > 0.01  # u * 2^-40 is below half a unit in the last place
        assert (meaning.bernoulli(1, 2, 3, 0, 1000, q)[keep] == expected).all()
        assert (d.bernoulli(torch.from_numpy(np.asarray(q)), 0).numpy()[keep] == expected).all()

    one = float(u[7])
    assert meaning.bernoulli(1, 2, 3, 0, 1000, one)[7] == 0
    assert d.bernoulli(one, 0)[7] == 0
    assert d.bernoulli(one + 2.0**-24, 0)[7] == 1


def test_bernoulli_broadcasts_q() -> None:
    d = drawer(1, 2, 3, (4, 6))
    rows = torch.tensor([[0.0], [1.0], [0.5], [0.25]])
    assert torch.equal(d.bernoulli(rows, 0), d.bernoulli(rows.expand(4, 6), 0))
    u = d.uniform(0)
    assert torch.equal(d.bernoulli(rows, 0), (u < rows).float())
    assert torch.equal(d.bernoulli(torch.tensor(0.5), 0), d.bernoulli(0.5, 0))
    assert torch.equal(d.bernoulli(torch.tensor(0.5, dtype=torch.bfloat16), 0), d.bernoulli(0.5, 0))
    assert torch.equal(d.bernoulli(torch.tensor([0.5]), 0), d.bernoulli(0.5, 0))
    for shape in ((2, 4, 6), (4, 5), (1, 1, 1)):
        with pytest.raises((ValueError, RuntimeError)):
            d.bernoulli(torch.full(shape, 0.5), 0)


@pytest.mark.parametrize("q", [0.001, 0.1, 0.5, 0.9])
def test_bernoulli_frequency(q: float) -> None:
    n = 1_000_000
    ones = drawer(8, 1, 0, (n,)).bernoulli(q, 3)
    assert set(ones.unique().tolist()) == {0.0, 1.0}
    assert abs(float(ones.double().mean()) - q) < 4 * math.sqrt(q * (1 - q) / n)


# Values and distributions


def test_uniform_is_the_top_24_bits() -> None:
    w = edge_words()
    u = meaning.uniform_from_words(w)
    assert u.dtype == np.float32
    assert [float(x) for x in u[:2000]] == [int(x) // 256 / 2**24 for x in w[:2000]]
    assert u.min() == 0
    assert u.max() == 1 - 2.0**-24


def test_normal_is_the_quantile_of_its_word() -> None:
    w = np.concatenate([edge_words(), np.array([WORST], np.uint32)])
    z = meaning.normal_from_words(w).astype(np.float64)
    normal = NormalDist()
    exact = np.array([normal.inv_cdf((int(x) + 0.5) / 2**32) for x in w])
    assert np.abs(z / exact - 1).max() < 5.2e-7


def test_normal_is_odd_finite_and_reaches_far() -> None:
    w = edge_words()
    z = meaning.normal_from_words(w)
    assert np.isfinite(z).all()
    assert np.array_equal(meaning.normal_from_words(~w), -z)
    assert np.array_equal(z > 0, w >= 2**31)  # the sign is the top bit, and 0 does not occur
    assert 6.33 < z.max() < 6.34
    assert -6.34 < z.min() < -6.33
    middle = meaning.normal_from_words(np.array([2**31 - 1, 2**31], np.uint32))
    assert middle == pytest.approx(np.array([-1, 1]) * math.sqrt(2 * math.pi) * 2.0**-33, rel=1e-6)


def test_normal_moments() -> None:
    n = 2_000_000
    z = drawer(1234, 5, 6, (n,), torch.float64).normal(7)
    # mean and standard deviation of z^k: E z^k and sqrt((E z^2k - (E z^k)^2) / n)
    for k, mean, second in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105), (6, 15, 10395)):
        assert abs(float((z**k).mean()) - mean) < 4 * math.sqrt((second - mean**2) / n), k
    for sigmas in (1, 2, 3, 4):
        p = math.erfc(sigmas / math.sqrt(2))
        assert abs(float((z.abs() > sigmas).double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_uniform_moments_and_rademacher_balance() -> None:
    n = 2_000_000
    d = drawer(4321, 5, 6, (n,), torch.float64)
    u = d.uniform(7)
    for k in (1, 2, 3):
        mean, second = 1 / (k + 1), 1 / (2 * k + 1)
        assert abs(float((u**k).mean()) - mean) < 4 * math.sqrt((second - mean**2) / n)
    r = d.rademacher(8)
    assert set(r.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(r.mean())) < 4 / math.sqrt(n)


def kolmogorov_smirnov(values: np.ndarray, cdf: Callable[[float], float]) -> float:
    """sqrt(n) times the largest distance of the values' distribution from `cdf`; above 1.95 once in 1000."""
    n = len(values)
    p = np.array([cdf(x) for x in np.sort(values).tolist()])
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * float(max(np.abs(p - steps[1:]).max(), np.abs(p - steps[:-1]).max()))


@pytest.mark.parametrize("point", POINTS[:4])
def test_distributions(point: tuple[int, int, int, int]) -> None:
    def normal_cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    assert kolmogorov_smirnov(meaning.normal(*point, 100_000), normal_cdf) < 1.95
    assert kolmogorov_smirnov(meaning.uniform(*point, 100_000), lambda x: x) < 1.95


def test_every_bit_of_every_lane_is_balanced() -> None:
    n = 400_000
    w = meaning.words(77, 1, 0, 0, n).reshape(-1, 4)
    for bit in range(32):
        ones = ((w >> np.uint32(bit)) & np.uint32(1)).mean(axis=0)
        assert (np.abs(ones - 0.5) < 4.5 * 0.5 / math.sqrt(n / 4)).all()


def test_neighbouring_draws_are_independent() -> None:
    n = 100_000
    places = [(1, 1, 0, 0), (2, 1, 0, 0), (2**32 + 1, 1, 0, 0), (1, 2, 0, 0), (1, 1, 1, 0), (1, 1, 0, 1)]
    draws = {place: meaning.normal(*place, n) for place in places}
    names = list(draws)
    for i, one in enumerate(names):
        for other in names[:i]:
            for f in (np.asarray, np.square, np.abs):
                r = np.corrcoef(f(draws[one]), f(draws[other]))[0, 1]
                assert abs(r) < 4.5 / math.sqrt(n), (one, other)
    z = draws[names[0]]
    for lag in (1, 2, 3, 4, 5, 8, 16, 1024):
        for f in (np.asarray, np.square):
            assert abs(np.corrcoef(f(z[lag:]), f(z[:-lag]))[0, 1]) < 4.5 / math.sqrt(n)


def test_steps_of_one_element_are_a_random_sequence() -> None:
    # What one parameter sees over a run: few elements, many steps.
    steps = 5_000
    z = np.stack([drawer(6, t, 2, (4,)).normal(1).numpy() for t in range(1, steps + 1)]).astype(np.float64)
    assert (np.abs(z.mean(axis=0)) < 4 / math.sqrt(steps)).all()
    assert (np.abs((z**2).mean(axis=0) - 1) < 4 * math.sqrt(2 / steps)).all()
    for lane in range(4):
        assert abs(np.corrcoef(z[1:, lane], z[:-1, lane])[0, 1]) < 4.5 / math.sqrt(steps)
    off = np.corrcoef(z.T) - np.eye(4)
    assert (np.abs(off) < 4.5 / math.sqrt(steps)).all()
