"""Warnings: what is never used."""

from __future__ import annotations

import pytest

from tests.check.helpers import check, found, only, program, spec

LR = "lr = 0.1"


def test_a_warning_leaves_the_program() -> None:
    checked = check(spec("p = p - g", LR))
    assert checked.program is not None
    assert checked.errors == ()


def test_unused_hyperparameters() -> None:
    assert found(spec("p = p - g", LR)) == [("W0701", 3)]
    only(spec("p = p - a * g", "betas = (a: 0.9, b: 0.99)"), "W0701", "b")
    program(spec("p = p - h * g", "h = 1.0", name="Inner") + spec("use Inner(h = lr)", LR))
    program(spec("p = p - m", LR, "m = lr"))
    program(spec("repeat n:\n    p = p - g", "n = 2 in [1, 4]"))


def test_unused_states() -> None:
    only(spec("p = p - g", state="m = 0"), "W0702", "m")
    program(spec("p = p - g\nm = g", state="m = 0"))
    program(spec("p = p - m", state="m = g"))


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("x = g\np = p - g", 3),
        ("x = 1\np = p - g", 3),
        ("x = g\nx = 2 * g\np = p - x", 3),
        ("x = g\np = p - x\nx = 2 * g", 5),
        ("if on:\n    x = g\nelse:\n    x = p\np = p - g\nif not on:\n    p = p + 1", None),
        ("repeat 3:\n    x = g\np = p - g", 4),
        ("x = normal()\np = p - g", 3),
    ],
)
def test_unused_variables(step: str, line: int | None) -> None:
    if line is None:
        codes = [code for code, _ in found(spec(step, "on = true"))]
        assert codes == ["W0703", "W0703"]
    else:
        assert found(spec(step)) == [("W0703", line)]


@pytest.mark.parametrize(
    "step",
    [
        "x = g\nif t > 1:\n    x = 2 * x\np = p - x",
        "x = g\nif t > 1:\n    x = p\np = p - x",
        "repeat 3:\n    x = g\n    p = p - x",
        "x = g\nrepeat 3:\n    x = 2 * x\np = p - x",
        "x = t\nif x > 3:\n    p = p - g",
        "x = 2\nevery x:\n    p = p - g",
        "x = g\np = p - norm(x) * g",
        "g = 2 * g\np = p - g",
    ],
)
def test_used_variables(step: str) -> None:
    program(spec(step))


def test_variables_of_a_used_spec_are_its_own_business() -> None:
    inner = spec("x = g\nx = 2 * x\np = p - x", name="Inner")
    program(inner + spec("x = 0.5\nuse Inner()\np = p - x"))
    assert found(spec("p = p - g", name="Inner") + spec("x = 0.5\nuse Inner()")) == [("W0703", 6)]


def test_a_step_that_leaves_the_parameter() -> None:
    only(spec("m = m + g", state="m = 0"), "W0704", "T")
    assert not check(spec("g = 2 * g", kind="transform")).diagnostics


def test_no_warnings_beside_errors() -> None:
    assert found(spec("x = nothing", LR, "m = 0")) == [("E0301", 7)]
