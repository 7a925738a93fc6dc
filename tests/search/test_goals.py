"""What goals are measured with: the referee of merged programs, arms beside each other, and repairs."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from optdsl.search.evaluate.tune import Effort
from optdsl.search.funnel import EFFORTS, Proof
from tests.search.genomes import spec

TINY = Effort(4, 3, tuning=(0,), fresh=(1, 2, 3, 4, 5, 6), steps=20)


def script(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    found = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measures() -> ModuleType:
    return script("search")


@pytest.fixture(scope="module")
def goals() -> ModuleType:
    return script("search_goals")


LATE = "p = p - lr * m\nm = 0.5 * m + {} * g"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("p = p - lr * g", "p = p - 7 * lr * g", True),  # a search tunes the learning rate
        (
            "p = p - min(lr * g, 0.9)",
            "p = p - min(97 * lr * g, 0.9)",
            True,
        ),  # where a bound hides the multiple
        (LATE.format("1"), LATE.format("3"), True),  # where the first step moves nothing
        ("p = p - lr * sign(g)", "p = p - lr * g / abs(g)", True),
        ("p = p - lr * g", "p = p - lr * g * (1 + 0.01 * abs(g))", False),
        ("p = p - min(lr * g, 0.9)", "p = p - min(lr * g, 0.8)", False),
        ("p = p - lr * g / norm(g)", "p = p - lr * g / norm(g, over=all)", False),
        ("p = p - lr * g", "p = p - lr * g - 0.01 * lr * p", False),
    ],
)
def test_the_referee_tells_programs_apart(measures: ModuleType, one: str, other: str, same: bool) -> None:
    state = "m = 0" if "m =" in one else ""
    a, b = spec(one, state), spec(other, state)
    given = (measures.referee(5, 16, 12, (2, 6, 5)),)
    for found in (measures.apart(a, b), measures.apart(b, a), measures.apart(a, b, given)):
        assert (found <= measures.FAR) == same, found


def test_pairs_are_of_programs_that_are_written_differently(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def apart(one: object, other: object, given: object) -> float:
        asked.append((str(one), str(other)))
        # the third pair differs, as it was made and simplified; the fifth as it was made alone
        return 1.0 if len(asked) in (3, 4, 6) else 0.0

    monkeypatch.setattr(measures, "apart", apart)
    found = measures.pairs(12, 3, 5.0)
    assert found["pairs"] == sum(found["counts"].values()) == 12
    made = [pair for n, pair in enumerate(asked) if n not in (3, 6)]
    assert len(set(made)) == 12
    assert all(one != other for one, other in made)
    assert [(row["one"], row["other"]) for row in found["apart"]] == [asked[2], asked[5]]
    assert [row["simplified"] for row in found["apart"]] == [1.0, 0.0]
    assert found["wrong"] == 1


def test_arms_are_compared_on_tasks_that_they_have_not_seen(
    goals: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    names, meta = ["regression/small"], Proof(("factorisation/small",), ("deep_linear/small",), ())
    found = goals.arms([5], 0.5, 1, names, meta, dict.fromkeys(EFFORTS, TINY))
    assert [row["arm"] for row in found["rows"]] == ["evolution", "random", "tuning", "start"]
    assert [row["evaluations"] > 1 for row in found["rows"]] == [True, True, True, False]
    logs = {row["arm"]: row["logs"] for row in found["rows"]}
    assert all(list(x) == ["factorisation/small", "deep_linear/small"] for x in logs.values())
    (row,) = found["evolution"]
    for other in ("random", "tuning", "start"):
        mean = np.mean([np.subtract(logs["evolution"][n], logs[other][n]).mean() for n in logs[other]])
        assert row[other]["mean"] == pytest.approx(mean)
    assert row["ahead"] == (max(row[other]["mean"] for other in ("random", "tuning")) < 0)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"evolution is ahead of both other arms in {int(row['ahead'])} of 1 repeats")


def test_a_repair_is_confirmed_on_seeds_that_the_search_has_not_seen(goals: ModuleType) -> None:
    """From RMSprop with bias correction, which lacks momentum, three times the loss and more; constants do not do."""
    effort = Effort(8, 5, tuning=(0, 1), fresh=(2, 3, 4, 5, 6, 7))
    found = goals.repaired("momentum", 7, 30.0, "evolution", effort)
    assert found["repaired"], found
    assert found["score"] <= math.log(1.05)
    assert found["start"] > math.log(2)
    assert found["attempts"] >= 1
    assert "state" in found["rule"]
    alone = goals.repaired("momentum", 7, 0.5, "tuning", effort)
    assert not alone["repaired"], alone
    assert alone["score"] > math.log(1.05)


@pytest.mark.parametrize(
    ("name", "options"),
    [("search", ("--pairs", "--space", "--admit")), ("search_goals", ("arms", "repairs", "--arm", "root"))],
)
def test_help_names_what_there_is(
    name: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(option in told for option in options)
