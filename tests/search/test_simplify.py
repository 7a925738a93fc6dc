"""Winners become short specs that do the same."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import optdsl
from optdsl.check import check_text
from optdsl.ir.program import Program
from optdsl.lang.diagnostics import SpecError
from optdsl.lang.formatter import format_text
from optdsl.search.simplify import behaviour, rate, simplify
from optdsl.search.space import Genome, Sieve, digest, effect, live, settle, to_spec
from optdsl.search.space.draft import tunable
from optdsl.search.space.probe import Probes, moves
from tests import fuzz
from tests.search.genomes import probes, small, spec, starts, walk
from tests.search.test_analyse import BARE_LION, LION, LION_HYPER, raw_lion


def again(text: str) -> Genome:
    """The live genome of a spec."""
    return live(settle(check_text(text, "again.opt").require()))


# ---- simplifier -------------------------------------------------------------------------------------------


def test_raw_lion_becomes_lion() -> None:
    found = simplify(raw_lion(BARE_LION))
    lion = live(spec(LION, "m = 0", LION_HYPER))
    assert len(found.body) <= len(lion.body)
    assert [s.op for s in found.body].count("mix") == 2
    assert "sign" in {s.op for s in found.body}
    text = to_spec(found, "Lion", "Found again.")
    assert "sign(beta1 * v + (1 - beta1) * g)" in text
    assert "v = beta2 * v + (1 - beta2) * g" in text
    betas = {h.name: h.default for h in again(text).hypers}
    assert betas["beta1"] == pytest.approx(0.9, abs=1e-3)
    assert betas["beta2"] == pytest.approx(0.99822, abs=1e-5)


@pytest.mark.parametrize(
    ("step", "short"),
    [
        ("p = p - lr * min(max(g, -1e9), 1e9)", "p = p - lr * g"),
        ("p = p - lr * g / (1 + 1e-14)", "p = p - lr * g"),
        (
            "m = 0.5 * m + g\nu = tanh(m) * 1e-12\np = p - lr * (sign(m) + u)",
            "m = 0.5 * m + g\np = p - lr * sign(m)",
        ),
        (
            "m = 0.3 * m + 0.7 * g\np = p - lr * (m / sqrt(m * m))",
            "m = 0.3 * m + 0.7 * g\np = p - lr * sign(m)",
        ),
        ("p = p - lr * where(g > 0, g, -(abs(g)))", "p = p - lr * g"),
    ],
)
def test_what_does_nothing_goes(step: str, short: str) -> None:
    whole, wanted = spec(step), live(spec(short))
    found = simplify(whole)
    assert len(found.body) <= len(wanted.body), str(found)
    assert effect(found).same(effect(wanted))


@pytest.mark.parametrize(
    ("step", "statements", "lr"),
    [
        ("p = p - lr * g / 0.8", 2, 1.25e-3),
        ("p = p - lr * (3 * (g / (1 + abs(g))))", 5, 3e-3),
        ("u = lr * g\np = p - u\np = p - u", 2, 2e-3),
        ("p = p * (1 - lr * 0.1) - lr * (4 * sign(g))", 6, 4e-3),
        ("p = p - lr * 2 * g / sqrt(1 - 0.75)", 2, 4e-3),
        ("p = p - lr * g / (abs(g) + sqrt(1 - 0.99))", 5, 1e-3),
    ],
)
def test_what_only_constants_go_into_is_one_and_factors_are_part_of_the_learning_rate(
    step: str, statements: int, lr: float
) -> None:
    whole = live(tunable(spec(step, "")))
    found = simplify(whole)
    assert len(found.body) == statements, str(found)
    assert rate(found) == pytest.approx(lr, rel=1e-11)
    a, b = moves(whole, probes(5, lr=1e-3)), moves(found, probes(5, lr=rate(found)))
    np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-12)
    assert simplify(found) == found


def test_what_is_left_of_an_average_that_hardly_averages_goes() -> None:
    """Though it is all there is where gradients are zero; a weight of a thousandth is no trifle."""
    for weight, states in (("1e-11", 0), ("1e-3", 1)):
        whole = spec(f"m = {weight} * m + (1 - {weight}) * g\np = p - lr * m / (abs(g) + 1)")
        assert len(simplify(whole).states) == states


def test_what_matters_stays() -> None:
    for step in (
        "p = p - lr * min(max(g, -50), 50)",  # no ordinary gradient is so large
        "p = p - lr * g / (norm(g) + 1e-8)",
        "m = 0.9 * m + (1 - 0.9) * g\nv = 0.99 * v + (1 - 0.99) * g^2\np = p - lr * m / (sqrt(v) + 1e-4)",
        "p = p * (1 - lr * 0.01) - lr * sign(g)",
        "p = p - lr * (1 if t < 40 else 0.5) * g",
    ):
        whole = live(spec(step, "m = 0\nv = 0"))
        assert len(simplify(whole).body) == len(whole.body), step


def test_shipped_methods_keep_their_effect() -> None:
    for genome in small("adamw", "lion", "nadam", "lamb", "rprop"):
        found = simplify(genome)
        assert len(found.body) <= len(genome.body)
        assert effect(found).same(effect(genome))


def test_simplifying_is_idempotent_and_keeps_the_effect() -> None:
    removed = before = 0
    for seed in fuzz.seeds(2):
        sieve = Sieve()
        accepted = [f.genome for _, child in walk(seed, 150) if (f := sieve.sift(child)).reason is None]
        for genome in accepted[-6:]:
            found = simplify(genome)
            before, removed = before + len(genome.body), removed + len(genome.body) - len(found.body)
            assert simplify(found) == found, f"seed {seed}\n{genome}"
            # as far as the simplifier looks: steps agree where the original has numbers
            a, b = behaviour(genome), behaviour(found, rate(genome))
            size = np.sqrt(np.mean(a.ordinary**2, axis=(2, 3, 4), keepdims=True))
            known = np.isfinite(a.ordinary)
            near = np.abs(a.ordinary - b.ordinary) <= 1e-5 * np.maximum(size, 1e-8)
            assert (near | ~known).all(), f"seed {seed}\n{genome}\n\n{found}"
    assert removed


def test_a_score_lets_more_go() -> None:
    seen: list[Program] = []

    def score(program: Program) -> bool:
        """Whatever still descends along some average of gradients is as good."""
        seen.append(program)
        genome = live(settle(program))
        found = Sieve().sift(genome)
        return found.reason is None and len(genome.states) == 1

    genome = raw_lion()
    exact = simplify(genome)
    found = simplify(genome, score)
    assert len(found.body) < len(exact.body) - 3
    assert len(found.states) == 1
    assert seen
    assert simplify(found, score) == found
    assert simplify(genome, lambda program: False).body  # nothing is better than what does the same


def test_constants_are_rounded_where_that_costs_nothing() -> None:
    def between(program: Program) -> bool:
        return len(program.body) == 4 and any(0.3 < float(h.default) < 0.6 for h in program.hypers)

    genome = live(spec("p = p - lr * (g + c * p)", "", "c = 0.4601978361606598 in [0, inf)"))
    assert simplify(genome) == genome
    found = simplify(genome, between)
    assert found.hypers[1].default == 0.5


# ---- specs ------------------------------------------------------------------------------------------------


def test_specs_of_shipped_methods_do_the_same() -> None:
    for name, genome in starts().genomes.items():
        text = to_spec(genome, "Found", "Written anew.", "Nobody 2026")
        assert format_text(text, "found.opt") == text
        assert effect(again(text)).same(effect(live(genome))), f"{name}\n{text}"


def test_specs_of_random_genomes_do_the_same() -> None:
    for seed in fuzz.seeds(3):
        for _, genome in walk(seed, 40):
            text = to_spec(genome, "Found", "Made by chance.")
            other = again(text)
            assert effect(other).same(effect(genome)), f"seed {seed}\n{genome}\n\n{text}"
            literals = [a for s in other.body for a in s.args if isinstance(a, float)]
            assert set(literals) <= {0.0, 1.0, 2.0, -1.0}, "constants have names"


def test_a_spec_reads_well() -> None:
    genome = spec(
        """u = 0.95 * m + (1 - 0.95) * g
        s1 = 0.999 * s1 + (1 - 0.999) * g^2
        m = 0.9 * m + (1 - 0.9) * g
        p = p - lr * (u / (sqrt(s1) + 1e-9) + 0.125 * p)""",
        "m = 0\ns1 = 0",
    )
    assert (
        to_spec(genome, "Found", "What it does.", "Nobody 2026, Nowhere")
        == '''\
optimizer Found:
    """What it does."""
    cite: "Nobody 2026, Nowhere"

    hyper:
        lr = 0.001 in [0, inf)
        beta1 = 0.95 in [0, 1)
        beta2 = 0.999 in [0, 1)
        beta3 = 0.9 in [0, 1)
        eps = 1e-09 in [0, inf)
        weight_decay = 0.125 in [0, inf)

    state:
        m = 0
        v = 0

    step:
        v = beta2 * v + (1 - beta2) * g^2
        u = (beta1 * m + (1 - beta1) * g) / (sqrt(v) + eps) + weight_decay * p
        m = beta3 * m + (1 - beta3) * g
        p = p - lr * u
'''
    )


def test_a_name_that_cannot_be() -> None:
    with pytest.raises(SpecError):
        to_spec(small("lion")[0], "not a name", "")


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_a_winner_compiles_and_steps_as_its_genome(tmp_path: Path, backend: str) -> None:
    sieve = Sieve()
    genomes = [
        f.genome for _, child in walk(9, 60) if (f := sieve.sift(child)).reason is None and f.known is None
    ][-3:]
    assert len(genomes) == 3
    for number, genome in enumerate(genomes):
        path = tmp_path / f"winner{number}.opt"
        path.write_text(to_spec(genome, f"Winner{number}", "Found."))
        made = optdsl.load(path, backend)
        rng = np.random.default_rng(number)
        p, g = 0.5 * rng.normal(size=(1, 2, 3, 4)), rng.normal(size=(6, 1, 2, 3, 4))
        expected = p + np.cumsum(moves(genome, Probes(p, g, 1e-2)), axis=0)
        params = [torch.nn.Parameter(torch.tensor(x)) for x in p[0]]
        optimizer = made(params, lr=1e-2)
        for step in range(6):
            for param, grad in zip(params, g[step, 0], strict=True):
                param.grad = torch.tensor(grad)
            optimizer.step()
            for param, wanted in zip(params, expected[step, 0], strict=True):
                torch.testing.assert_close(param.detach(), torch.tensor(wanted), rtol=1e-9, atol=1e-11)


def test_hashes_survive_a_spec() -> None:
    for genome in small():
        assert digest(again(to_spec(genome, "Found", ""))) == digest(genome)
    genome = replace(
        small("lion")[0],
        hypers=tuple(
            replace(h, default=math.nextafter(float(h.default), 1)) for h in small("lion")[0].hypers
        ),
    )
    assert digest(again(to_spec(genome, "Found", ""))) == digest(genome), (
        "numbers are written to the last bit"
    )
