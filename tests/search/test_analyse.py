"""Effects, the filters, the stress gate, and what a sieve remembers."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from optdsl.search.space import (
    REASONS,
    Bounds,
    Genome,
    Sieve,
    Space,
    analyse,
    digest,
    effect,
    live,
    start,
    stress,
    structure,
)
from optdsl.search.space.analyse import _same_edges
from optdsl.search.space.probe import moves
from tests import fuzz
from tests.search.genomes import WIDE, probes, small, spec, starts

#: The program that the search behind Lion found, statement for statement (Chen et al. 2023, arXiv:2302.06675), with
#: interp(x, y, a) = (1 - a) x + a y written out, and clip(x, y) as clip(x, -y, y).
RAW_LION = """
    g = clip(g, -lr, lr)
    m = clip(m, -lr, lr)
    v845 = sqrt(0.6270633339881897)
    v968 = sign(v)
    v968 = v - v
    g = asin(g)
    m = (1 - 0.8999999761581421) * g + 0.8999999761581421 * v
    v1 = m * m
    v = (1 - 1.109133005142212) * g + 1.109133005142212 * m
    v845 = tanh(v845)
    rate = lr * 0.0002171761734643951
    change = m * rate
    v1 = sqrt(v1)
    change = change / v1
    wd = rate * 0.4601978361606598
    v1 = v1 ^ 2
    wd = wd * p
    m = (exp(change) + exp(-change)) / 2
    rest = tan(1.4572199583053589)
    change = change + wd
    rest = cos(v845)
    p = p - change
"""
#: The same without the two statements that people took out because they cost nothing.
BARE_LION = RAW_LION.replace("    g = clip(g, -lr, lr)\n", "").replace("    g = asin(g)\n", "")
#: Lion with the constants that follow.
LION = """
    p = p * (1 - lr * scale * weight_decay)
    p = p - lr * scale * sign(beta1 * m + (1 - beta1) * g)
    m = beta2 * m + (1 - beta2) * g
"""
LION_HYPER = f"""
    beta1 = 0.8999999761581421 in [0, 1)
    beta2 = {0.8999999761581421 * 1.109133005142212!r} in [0, 1)
    scale = 0.0002171761734643951 in [0, inf)
    weight_decay = 0.4601978361606598 in [0, inf)
"""


def raw_lion(step: str = RAW_LION) -> Genome:
    return spec(step, "m = 0\nv = 0")


def lion(front: str = "") -> Genome:
    # the raw program decays p after its update, in one sum: as Lion does up to the product of two small numbers
    step = f"{front}\nu = sign(beta1 * m + (1 - beta1) * g)\nm = beta2 * m + (1 - beta2) * g\n"
    return spec(step + "p = p - lr * scale * (u + weight_decay * p)", "m = 0", LION_HYPER)


def test_raw_lion_is_lion() -> None:
    bare, whole = raw_lion(BARE_LION), raw_lion()
    assert len(whole.body) >= 20
    assert [s.name for s in live(whole).states] == ["v"]
    assert effect(live(bare)).same(effect(live(lion())))
    assert effect(live(whole)).same(effect(live(lion("g = asin(clip(g, -lr, lr))"))))
    assert not effect(live(bare)).same(effect(live(whole)))
    other = spec(LION, "m = 0", LION_HYPER.replace("0.8999999761581421 in", "0.95 in"))
    assert not effect(live(other)).same(effect(live(bare)))


def test_what_raw_lion_does_where_gradients_are_zero() -> None:
    assert analyse(raw_lion(BARE_LION)).reason == "zero gradient", "0 / sqrt(0 * 0)"
    assert analyse(lion()).reason is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("p = p - lr * (m + g)", "p = (p - lr * g) - lr * m"),
        ("p = p - lr * g / sqrt(g * g + 1e-30)", "p = p - lr * sign(g)"),
        ("p = p - lr * (g * g - m * m)", "p = p - lr * ((g - m) * (g + m))"),
        ("p = p - lr * exp(log(abs(g) + 1))", "p = p - lr * (1 + abs(g))"),
        ("p = p - lr * max(g, -g)", "p = p - lr * abs(g)"),
        ("p = p - lr * tanh(g)", "p = p - lr * (1 - 2 / (exp(2 * g) + 1))"),
    ],
)
def test_one_effect_by_other_means(one: str, other: str) -> None:
    a, b = (live(spec(f"m = 0.5 * m + g\n{step}")) for step in (one, other))
    assert digest(a) != digest(b)
    assert effect(a).same(effect(b))
    assert effect(b).same(effect(a))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("p = p - lr * clip(m, -5, 5)", "p = p - lr * m"),  # what bends far out
        ("p = p - lr * m / (abs(m) + 1e-6)", "p = p - lr * sign(m)"),
        ("p = p - (lr if t < 200 else 0.5 * lr) * m", "p = p - lr * m"),  # what happens later
        ("p = p - lr * min(1, t / 20000) * m * 20000", "p = p - lr * t * m"),
        ("p = p - lr * m / norm(m)", "p = p - lr * m / norm(m, over=all)"),
        ("p = p - lr * m / rms(m, over=rows)", "p = p - lr * m / rms(m, over=cols)"),
        ("p = p - lr * m - 1e-6 * lr * p", "p = p - lr * m"),
    ],
)
def test_other_effects(one: str, other: str) -> None:
    a, b = (live(spec(f"m = 0.5 * m + g\n{step}")) for step in (one, other))
    assert not effect(a).same(effect(b))


def test_no_two_programs_with_one_effect_differ_elsewhere() -> None:
    """Whatever a sieve takes for one does the same on other probes, over more steps."""
    given = probes(77, count=12, steps=16)
    merged = 0
    for seed in fuzz.seeds(3):
        rng, sieve, space = Random(seed), Sieve(), Space(Bounds(), small())
        accepted = {a.hash: a for a in map(sieve.sift, space.starts)}
        for _ in range(200):
            found = sieve.sift(space.mutate(rng, rng.choice(list(accepted.values())).genome))
            if found.reason is not None:
                continue
            if found.known is None:
                accepted[found.hash] = found
            elif found.known != found.hash:
                merged += 1
                a, b = moves(accepted[found.known].genome, given), moves(found.genome, given)
                far = np.sqrt(((a - b) ** 2).sum(axis=(0, 2, 3, 4)) / (a**2).sum(axis=(0, 2, 3, 4)))
                assert (far < 1e-3).all(), f"seed {seed}\n{accepted[found.known].genome}\n\n{found.genome}"
    assert merged >= 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (  # thresholds that are a few ten thousandths apart, inside of a sign that is kept
            "u = sign(0.9 * m + 0.1 * p)\nm = sign(g + (0.9973 * m + (1 - 0.9973) * g))\np = p * (1 - 1e-4) - lr * u",
            "u = sign(0.9 * m + 0.1 * p)\nm = sign(g + (0.9976 * m + (1 - 0.9976) * g))\np = p * (1 - 1e-4) - lr * u",
        ),
        (  # gradients below a hundred millionth are the only ones that are not cut off
            "p = p * (1 - lr * 0.01) - clip(lr ^ (1 - 0.9^t) * g / 2e-8, -0.22 * lr, 0.22 * lr)",
            "p = p * (1 - lr * 0.01) - clip(lr ^ (1 - 0.92^t) * g / 2e-8, -0.22 * lr, 0.22 * lr)",
        ),
        (  # the arc tangent of what is small already, in an average of which the sign counts
            "u = clip(g * min(1, lr / norm(g, over=all)), -0.2, 0.2)\np = p - lr * sign(0.2 * m + 0.8 * u)\n"
            "m = 1e-3 * m + (1 - 1e-3) * u",
            "u = atan(clip(g * min(1, lr / norm(g, over=all)), -0.2, 0.2))\np = p - lr * sign(0.2 * m + 0.8 * u)\n"
            "m = 1e-3 * m + (1 - 1e-3) * u",
        ),
    ],
)
def test_what_a_sign_hides_tells_programs_apart(one: str, other: str) -> None:
    """Each pair agrees on every probe; the second is found where its decisions change, and is itself again."""
    sieve = Sieve(WIDE)
    first, second = sieve.sift(spec(one)), sieve.sift(spec(other))
    assert (first.reason, second.reason) == (None, None)
    assert first.effect is not None
    assert second.effect is not None
    assert first.effect.same(second.effect)
    assert second.known is None
    assert not _same_edges(first, second)
    assert _same_edges(first, first)


# ---- filters ----------------------------------------------------------------------------------------------

MINES = {
    "sine below a division": ("v = 0.99 * v + (1 - 0.99) * g^2\np = p - lr * m / (sin(sqrt(v)) + 1e-8)", "explodes"),
    "slow sine below a division": ("v = 0.999 * v + 0.001 * g^2\np = p - lr * m / (sin(sqrt(v)) + 1e-8)", "turns"),
    "root without eps": ("v = 0.99 * v + (1 - 0.99) * g^2\np = p - lr * m / sqrt(v)", "zero gradient"),
    "inverse without eps": ("p = p - lr / g", "zero gradient"),
    "norm without eps": ("p = p - lr * g / norm(g)", "zero gradient"),
    "norm of an average without eps": ("p = p - lr * m / norm(m)", "zero gradient"),
    "logarithm of a square": ("v = 0.99 * v + 0.01 * g^2\np = p - lr * m * log(v)", "zero gradient"),
    "exponential": ("p = p - lr * sign(g) * exp(abs(g))", "overflow"),
    "exponential of an average": ("p = p - lr * (exp(m) - exp(-m))", "overflow"),
    "falling exponential": ("p = p - lr * m * exp(-g)", "overflow"),
    "interpolation beyond 1": ("v = 1.109 * v + (1 - 1.109) * g\np = p - lr * (g + v)", None),
    "a little beyond 1": ("v = 1.04 * v - 0.04 * g\np = p - lr * (g - v)", "drifts"),
    "beyond 1 behind a sign": ("v = 1.109 * v + 0.109 * g\np = p - lr * sign(v)", "drifts"),
    "slow over quick average": (
        "m = 0.99 * m + 0.01 * g\nv = 0.8 * v + 0.2 * g^2\np = p - lr * m / (sqrt(v) + 1e-12)",
        "drifts",
    ),
    "cube": ("p = p - lr * g^3", "explodes"),
    "cube root of a cube of averages": ("p = p - lr * m / (g^2 + 1e-8)", "vanishes"),
    "tangent": ("p = p - lr * tan(m)", "turns"),
    "division by parameters": ("p = p - lr * g / p", None),
}  # fmt: skip


@pytest.mark.parametrize("name", MINES)
def test_landmines_are_caught(name: str) -> None:
    step, reason = MINES[name]
    average = "" if "m = " in step else "m = 0.9 * m + 0.1 * g\n"
    found = analyse(spec(average + step, "m = 0\nv = 0"), WIDE)
    assert found.reason is not None
    if reason is not None:
        assert found.reason == reason


def test_interpolation_beyond_1_of_an_average_is_none() -> None:
    """What raw Lion keeps: 1.109 times an average, less a part of the gradient, has the weight 0.998."""
    assert (
        analyse(spec("m = 0.9 * m + 0.1 * g\nm = 1.109 * m - 0.109 * g\np = p - lr * sign(m)")).reason is None
    )


def test_no_shipped_method_is_rejected() -> None:
    for name, genome in starts().genomes.items():
        found = analyse(genome, WIDE)
        assert found.reason is None, name
        assert stress(live(genome)) is None, name


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("p = p - lr * p", "blind"),
        ("p = p - lr * sign(m * 0 + p)\nm = g", "blind"),
        ("p = p - lr * log(g)", "not finite"),
        ("p = p - lr * g / (m - m)\nm = g", "not finite"),
        ("p = p - lr * max(0, g - 1e6)", "no movement"),
        ("p = p - lr * (g^2 >= 0)", "constant"),
        ("p = p - lr * mean(g, over=all)", "constant"),
        ("p = g", "jumps"),
        ("p = p + lr * g", "uphill"),
        ("p = p - lr * abs(g)", "uphill"),
        ("p = 2e-4 * p - lr * g", "cancels"),  # what was learnt is thrown away in each step
        ("p = p - lr * (g - m)\nm = g", "cancels"),
        ("p = p - lr * g * 1e-3 * exp(t / 8)", "diverges"),
        ("p = p - lr * g * (t < 45)", "diverges"),
        ("p = p - lr * g * (1 + 1000 * (mod(t, 30) == 0))", "spikes"),
    ],
)
def test_reasons(step: str, reason: str) -> None:
    found = analyse(spec(step))
    assert found.reason == reason
    assert REASONS[reason]


def test_bounds() -> None:
    adamw = start("adamw")
    assert analyse(adamw).reason is None
    assert analyse(adamw, Bounds(statements=17)).reason == "statements"
    assert analyse(adamw, Bounds(states=1)).reason == "states"
    assert analyse(adamw, Bounds(bytes=7)).reason == "bytes"
    rows = spec("p = p - lr * g / (norm(g, over=rows) + 1e-8)", state="")
    assert analyse(rows).reason == "levels"
    assert analyse(rows, WIDE).reason is None
    assert analyse(start("novograd"), Bounds(bytes=4)).reason is None, "a number per tensor takes no memory"


def test_what_is_not_well_typed_is_answered() -> None:
    from dataclasses import replace

    (lion,) = small("lion")
    broken = replace(lion, results=(("p", "nothing"),))
    assert analyse(broken).reason == "typing"


def test_other_values_of_hyperparameters() -> None:
    (adamw,) = small("adamw")
    assert stress(adamw) is None
    assert stress(adamw, values={"beta1": 0.99, "beta2": 0.8}) == "drifts"
    assert not effect(adamw).same(effect(adamw, values={"beta1": 0.5}))
    assert effect(adamw).same(effect(adamw, values={"beta1": 0.9}))


# ---- memory -----------------------------------------------------------------------------------------------


def test_a_sieve_answers_from_memory_and_counts() -> None:
    sieve = Sieve(WIDE)
    first = sieve.sift(start("adam"))
    assert (first.reason, first.known) == (None, None)
    again = sieve.sift(start("adam"))
    assert again.known == first.hash == again.hash
    bias = "m = 0.9 * m + 0.1 * g\nv = 0.999 * v + 0.001 * g^2\n"
    rest = "p = p - lr / (1 - 0.9^t) * m / (sqrt(v) / sqrt(1 - 0.999^t) + 1e-8)"
    other = sieve.sift(
        spec(bias + rest.replace("lr / (1 - 0.9^t) * m /", "m / (1 - 0.9^t) * lr /"), "m = 0\nv = 0")
    )
    assert other.hash != first.hash
    assert other.known == first.hash
    assert sieve.sift(spec("p = p - lr * exp(g)")).reason == "overflow"
    assert sieve.sift(spec("p = p - lr * exp(g)")).reason == "overflow"
    assert dict(sieve.counts) == {"all": 5, "new": 1, "same hash": 2, "same effect": 1, "overflow": 1}


def test_the_same_effect_does_not_excuse_a_landmine() -> None:
    sieve = Sieve()
    assert sieve.sift(lion()).reason is None
    assert sieve.sift(raw_lion(BARE_LION)).reason == "zero gradient"
    other = Sieve()
    assert other.sift(raw_lion(BARE_LION)).reason == "zero gradient"
    found = other.sift(lion())
    assert (found.reason, found.known) == (None, None)


def test_memory_can_be_filled_from_outside() -> None:
    first, second = Sieve(WIDE), Sieve(WIDE)
    for name in ("adamw", "lion", "sgd"):
        second.remember(first.sift(start(name)))
    assert second.sift(start("lion")).known == digest(live(start("lion")))
    assert second.sift(spec("p = p - 1 * (lr * g)", state="")).known == digest(live(start("sgd")))


def test_a_multiple_of_the_learning_rate_is_no_other_rule_where_that_is_tuned() -> None:
    average = "m = 0.9 * m + (1 - 0.9) * g\nv = 0.99 * v + (1 - 0.99) * g^2\n"
    step = "p = p - lr * m / (sqrt(v) + 1e-6)"
    others = (step.replace("lr", "3 * lr"), step.replace("m /", "m / 0.7 /"), step + "\n" + step)
    for tuned in (False, True):
        sieve = Sieve(by_structure=tuned)
        first = sieve.sift(spec(average + step, "m = 0\nv = 0"))
        for other in others:
            found = sieve.sift(spec(average + other, "m = 0\nv = 0"))
            assert found.reason is None
            assert found.known == (first.hash if tuned else None), other
    assert sieve.sift(spec(average + step.replace("m /", "g /"), "m = 0\nv = 0")).known is None


def test_structures_can_be_remembered_instead() -> None:
    space = Space(Bounds(), small("adamw"), weights={"constant": 1.0})
    plain, tuned = Sieve(), Sieve(by_structure=True)
    rng = Random(3)
    first = [sieve.sift(space.starts[0]) for sieve in (plain, tuned)]
    for _ in range(20):
        child = space.mutate(rng, space.starts[0])
        assert structure(child) == first[0].structure
        assert plain.sift(child).hash != first[0].hash
        assert tuned.sift(child).known == first[1].hash
    assert tuned.counts["same structure"] == 20
    assert plain.counts["same structure"] == 0


#: A rule whose steps are 200 times its learning rate, so that usual ones are far below 1.
LONG = "m = beta * m + (1 - beta) * g\np = p - lr * (0.1 * p + 200 * {factor} * m / (abs(m) + 1e-6))"


@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ("max(1, lr * c)", "c * max(1, lr)", False),
        ("c * max(1, lr)", "max(1, lr * c)", False),
        ("c * max(1, lr)", "c", False),
        ("c * max(1, lr)", "(c + c) * max(lr, 1) / 2", True),
    ],
)
def test_rules_that_differ_for_large_learning_rates_only_are_two(
    first: str, second: str, merged: bool, long: bool
) -> None:
    """`max(1, lr * c)` and `c * max(1, lr)` are both one constant where learning rates are below 1 and 1 / c."""
    step, hyper = LONG if long else LONG.replace("200 * ", ""), "beta = 0.9 in [0, 1)\nc = 0.5 in [0, inf)"
    one, other = (live(spec(step.format(factor=factor), "m = 0", hyper)) for factor in (first, second))
    sieve = Sieve(WIDE, by_structure=True)
    assert sieve.sift(one).reason is None
    found = sieve.sift(other)
    assert (found.reason, found.known) == (None, digest(one) if merged else None)
