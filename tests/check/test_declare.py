"""Hyperparameters: kinds, intervals, choices, tuples."""

from __future__ import annotations

import math

import pytest

from optdsl.core.types import Kind
from optdsl.ir.text import to_opt
from tests.check.helpers import only, program, spec


def hyper(line: str, step: str = "p = p - h * g") -> str:
    return spec(step, line)


@pytest.mark.parametrize(
    ("default", "kind", "value"),
    [
        ("10", Kind.INT, 10),
        ("-3", Kind.INT, -3),
        ("1e-3", Kind.FLOAT, 1e-3),
        ("10.", Kind.FLOAT, 10.0),
        ("inf", Kind.FLOAT, math.inf),
        ("-inf", Kind.FLOAT, -math.inf),
        ("false", Kind.BOOL, False),
    ],
)
def test_the_default_decides_the_kind(default: str, kind: Kind, value: object) -> None:
    (found,) = program(hyper(f"h = {default}")).hypers
    assert (found.kind, found.default) == (kind, value)


@pytest.mark.parametrize(
    ("line", "code", "marked"),
    [
        ("h = 0.0 in (0, 1)", "E0203", "0.0"),
        ("h = 1.0 in [0, 1)", "E0203", "1.0"),
        ("h = 5 in [10, 20]", "E0203", "5"),
        ("h = -1e-3 in [0, inf)", "E0203", "-1e-3"),
        ("h = inf in [0, inf)", "E0203", "inf"),
        ("h = 0.5 in (1, 0)", "E0204", "(1, 0)"),
        ("h = 1.0 in (1, 1]", "E0204", "(1, 1]"),
        ("h = 1.0 in [1, 1)", "E0204", "[1, 1)"),
        ("h = 0 in [0, 1)", "E0205", "[0, 1)"),
        ("h = 1 in (0, 1.5)", "E0205", "(0, 1.5)"),
        ("h = 1 in (0.2, 0.8)", "E0205", "(0.2, 0.8)"),
        ("h = 1 in [1, inf]", "E0205", "[1, inf]"),
        ("h = 1 in [-inf, 9]", "E0205", "[-inf, 9]"),
        ("h = true in [0, 1]", "E0205", "[0, 1]"),
        ('h = 1.0 in {"a", "b"}', "E0205", '{"a", "b"}'),
        ("h = (a: 1.0, b: 2)", "E0209", "(a: 1.0, b: 2)"),
        ("h = (a: true, b: 2.0)", "E0209", "(a: true, b: 2.0)"),
        ("h = (a: true, b: false)", "E0209", "(a: true, b: false)"),
        ("h = (a: 0.5, b: 2.0) in [0, 1)", "E0203", "b"),
        ("h = (a: 1, b: 0) in [0, 1)", "E0205", "[0, 1)"),
        ("h = (a: 0.5 in (0, 1), b: 0.5 in (1, 2))", "E0203", "b"),
        ("h = (a: 0.5 in (1, 2), b: 0.5) in (0, 1)", "E0203", "a"),
        ("h = (a: 0.5 in (0, 1), b: 1.5) in (2, 1)", "E0204", "(2, 1)"),
        ("h = (a: 1 in (0, 1), b: 3)", "E0205", "(0, 1)"),
    ],
)
def test_mistakes(line: str, code: str, marked: str) -> None:
    step = "p = p - a * b * g" if "a:" in line else "p = p - h * g"
    assert only(hyper(line, step), code, marked).help


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('h = "a"', "E0205"),
        ('h = "c" in {"a", "b"}', "E0203"),
        ('h = "a" in [0, 1]', "E0205"),
    ],
)
def test_choices(line: str, code: str) -> None:
    only(hyper(line, 'if h == "a":\n    p = p - g'), code)


def test_a_choice_and_its_values() -> None:
    (found,) = program(hyper('h = "a" in {"a", "b", "a"}', 'if h == "a":\n    p = p - g')).hypers
    assert (found.kind, found.choices) == (Kind.CHOICE, ("a", "b"))


def test_intervals_that_are_fine() -> None:
    for line in (
        "h = 1.0 in [1, 1]",
        "h = 1 in [0, 1]",
        "h = 0 in (-1, 2)",
        "h = 3 in (2.5, 4.5)",
        "h = 2 in [1, inf)",
    ):
        program(hyper(line))


def test_a_tuple() -> None:
    built = program(hyper('betas = (a: 0.9, b: 0.99) in [0, 1) "decay rates"', "p = p - a * b * g"))
    assert [(h.name, h.argument, h.doc) for h in built.hypers] == [
        ("a", "betas", "decay rates"),
        ("b", "betas", "decay rates"),
    ]


def test_a_tuple_whose_parts_have_ranges_of_their_own() -> None:
    """A part has its own, or else that of all."""
    line = "h = (a: 0.5 in (0, 1), b: 1.5 in (1, inf), c: 7.0) in [0, 9]"
    built = program(hyper(line, "p = p - a * b * c * g"))
    assert [str(h.interval) for h in built.hypers] == ["(0, 1)", "(1, inf)", "[0, 9]"]
    assert [h.argument for h in built.hypers] == ["h"] * 3
    built = program(hyper("h = (a: 0.5 in (0, 1), b: 1.5)", "p = p - a * b * g"))
    assert [h.interval for h in built.hypers][1] is None
    assert to_opt(program(to_opt(built))) == to_opt(built)


def test_choices_are_no_parts() -> None:
    """A class would not take its own defaults."""
    parts = '(a: "x" in {"x", "y"}, b: "y" in {"y"})'
    only(hyper(f"h = {parts}", "if a == b:\n    p = p - g"), "E0209", parts)


def test_a_hyperparameter_with_a_mistake_can_be_used() -> None:
    only(hyper("h = 2.0 in [0, 1)", "if h > 1:\n    p = p - h * g"), "E0203")
    only(hyper("params = 2.0", "p = p - params * g"), "E0202")
    only(hyper("p = 2.0", "p = p - g"), "E0202")
