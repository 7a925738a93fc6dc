"""Intervals and tests against closed forms and scipy."""

import itertools
import math

import numpy as np
import pytest

from optdsl.search import statistics
from optdsl.search.statistics import bootstrap, compare, holm, standard_error, wilcoxon

scipy_stats = pytest.importorskip("scipy.stats")


def test_the_bootstrap_of_one_task_is_the_interval_of_a_mean(rng: np.random.Generator) -> None:
    x = rng.normal(0.3, 2.0, 400)
    found = bootstrap({"a": x})
    assert found.mean == pytest.approx(x.mean())
    half = 1.96 * x.std() / math.sqrt(len(x))
    assert found.low == pytest.approx(x.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.05 * half)


def test_the_bootstrap_has_both_sources_of_variance(rng: np.random.Generator) -> None:
    """Var = (variance between task means + mean variance of the mean over seeds) / tasks."""
    tasks = {str(i): rng.normal(rng.normal(0, 0.5), 1.5, 10) for i in range(40)}
    means = np.array([x.mean() for x in tasks.values()])
    within = np.mean([x.var() / len(x) for x in tasks.values()])
    expected = math.sqrt((means.var() + within) / len(means))
    found = bootstrap(tasks, draws=20_000)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(expected, rel=0.04)
    # seeds alone, or tasks alone, would give less
    assert expected > 1.1 * math.sqrt(means.var() / len(means))


def test_the_bootstrap_covers_the_truth_as_often_as_it_says(rng: np.random.Generator) -> None:
    hits = 0
    for number in range(200):
        tasks = {str(i): rng.normal(rng.normal(0, 0.3), 1.0, 10) for i in range(12)}
        found = bootstrap(tasks, draws=500, seed=number)
        hits += found.low <= 0 <= found.high
    assert 170 <= hits <= 199


def test_the_bootstrap_gives_the_same_again() -> None:
    x = {"a": [0.1, -0.3, 0.2], "b": [0.0, 1.0]}
    assert bootstrap(x, seed=3) == bootstrap(x, seed=3)
    assert bootstrap(x, seed=3) != bootstrap(x, seed=4)


@pytest.mark.parametrize("bad", [{}, {"a": []}, {"a": [1.0, math.inf]}, {"a": [1.0], "b": [math.nan]}])
def test_nothing_and_infinities_are_refused(bad: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="no differences"):
        bootstrap(bad)


@pytest.mark.parametrize("n", [1, 5, 12])
def test_wilcoxon_of_equal_signs_is_two_in_two_to_the_n(n: int) -> None:
    assert wilcoxon(np.arange(1.0, n + 1)) == pytest.approx(min(1.0, 2 * 0.5**n))


def test_wilcoxon_is_what_all_signs_say(rng: np.random.Generator) -> None:
    """Against the definition: the share of the 2^n signs whose rank sum is as far from the middle."""
    x = rng.normal(0.4, 1.0, 9)
    ranks = np.argsort(np.argsort(np.abs(x))) + 1
    middle = ranks.sum() / 2
    seen = abs(ranks[x > 0].sum() - middle)
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s)
        for signs in itertools.product((0, 1), repeat=9)
    ]
    share = np.mean([abs(total - middle) >= seen for total in sums])
    assert wilcoxon(x) == pytest.approx(share)


def test_wilcoxon_with_ties_and_zeros(rng: np.random.Generator) -> None:
    assert wilcoxon(np.zeros(8)) == 1.0
    x = np.round(rng.normal(0.5, 1.0, 30), 1)
    expected = scipy_stats.wilcoxon(x, zero_method="pratt", method="asymptotic").pvalue
    assert wilcoxon(x) == pytest.approx(expected)
    with pytest.raises(ValueError, match="not finite"):
        wilcoxon([1.0, math.nan])


def test_holm_by_hand() -> None:
    # 4 x 0.01, 3 x 0.015 = 0.045, 2 x 0.02 = 0.04 is not below that, 1 x 0.9
    assert holm([0.02, 0.01, 0.9, 0.015]) == pytest.approx([0.045, 0.04, 0.9, 0.045])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_errors_of_the_family(rng: np.random.Generator) -> None:
    p = rng.uniform(size=(4000, 6))
    errors = np.mean([min(holm(list(row))) < 0.05 for row in p])
    assert errors == pytest.approx(0.05, abs=0.012)


def test_standard_error() -> None:
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3 / 4))
    assert standard_error([1.0]) == math.inf


def test_a_comparison_says_better_only_without_a_loss(rng: np.random.Generator) -> None:
    noise = {name: rng.normal(0, 0.02, 20) for name in "abcdef"}
    better = compare({name: x - 0.05 for name, x in noise.items()})
    assert better.better
    assert better.gains() == list("abcdef")
    assert better.tasks["a"].corrected >= better.tasks["a"].p
    mixed = compare({name: x + (0.03 if name == "c" else -0.2) for name, x in noise.items()})
    assert mixed.overall.high < 0
    assert mixed.losses() == ["c"]
    assert not mixed.better
    nothing = compare(noise)
    assert not nothing.better
    assert nothing.overall.low < 0 < nothing.overall.high


def test_scipy_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(ImportError, match=r"optdsl\[search\]"):
        statistics.wilcoxon([1.0, 2.0])
