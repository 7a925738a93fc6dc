"""Lists of numbers as hyperparameters: what they may be, what they are asked, how they are passed on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optdsl.check import check_text
from optdsl.core.types import Kind
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.program import Program
from optdsl.ir.text import show, to_opt
from optdsl.passes.simplify import simplify
from tests.check.helpers import check, only, program, spec


def rate(expression: str, hyper: str, steps: int = 1, **given: object) -> list[float]:
    """What an expression of the host is in the first steps."""
    made = program(spec(f"p = p - ({expression})", hyper))
    found: list[list[float]] = []
    for each in (made, simplify(made), check_text(to_opt(made)).require()):
        machine = Interpreter(each, [Group([np.zeros(2)], dict(given))])
        found.append([])
        for _ in range(steps):
            before = machine.params[0][0]
            machine.step([[np.zeros(2)]])
            found[-1].append(float((before - machine.params[0][0])[0]))
    assert found[0] == found[1] == found[2]
    return found[0]


@pytest.mark.parametrize(
    ("default", "value", "kind"),
    [
        ("[30, 60]", (30, 60), Kind.INT),
        ("[1.0, -0.5, inf]", (1.0, -0.5, math.inf), Kind.FLOAT),
        ("[2,]", (2,), Kind.INT),
    ],
)
def test_a_list_holds_ints_or_floats(default: str, value: tuple[float, ...], kind: Kind) -> None:
    (found,) = program(spec("p = p - h[t] * g", f"h = {default}")).hypers
    assert (found.kind, found.default, found.number_kind) == (Kind.LIST, value, kind)
    assert {type(x) for x in found.default} == {int if kind is Kind.INT else float}


def test_an_entry_counts_from_1_and_stays_in_the_list() -> None:
    assert rate("h[t]", "h = [4.0, 2.0, 1.0]", 5) == [4, 2, 1, 1, 1]
    assert rate("h[t - 3]", "h = [4.0, 2.0, 1.0]", 5) == [4, 4, 4, 4, 2]
    assert rate("h[t / 2]", "h = [4.0, 2.0]", 5) == [4, 4, 4, 2, 2], "rounded down"
    assert rate("h[inf] + h[-inf]", "h = [4.0, 2.0]") == [6]
    assert rate("3 if h[inf - inf] != h[inf - inf] else 0", "h = [4.0, 2.0]") == [3], "nan"


def test_a_count_is_of_what_is_at_most_a_number() -> None:
    assert rate("count(h <= t)", "h = [2, 4, 4]", 5) == [0, 1, 1, 3, 3]
    assert rate("count(t >= h)", "h = [2, 4, 4]", 5) == [0, 1, 1, 3, 3]
    assert rate("count(h <= inf)", "h = [2, 4, 4]") == [3]
    assert rate("count(h <= inf - inf)", "h = [2, 4, 4]") == [0]


def test_the_user_says_how_long_a_list_is() -> None:
    assert rate("h[t]", "h = [1.0]", 3, h=[3.0, 2.0]) == [3, 2, 2]


def test_a_list_goes_through_functions_and_uses() -> None:
    text = (
        "def at(values, i): return values[i] * count(values <= 1)\n"
        + spec("p = p - at(inner, t) * g", "inner = [1.0, 0.5]", name="Inner")
        + spec("use Inner(inner = own)", "own = [2.0, 0.25] in [0, inf)")
    )
    made = program(text)
    assert [h.name for h in made.hypers] == ["own"]
    assert "own[t] * count(own <= 1)" in show(made)


def test_a_use_gives_a_list_another_default() -> None:
    inner = spec("p = p - h[t] * g", "h = [1.0] in [0, 1]", name="Inner")
    assert program(inner + spec("use Inner(h = [1, 0.5])".replace("1,", "1.0,"))).hypers[0].default == (
        1.0,
        0.5,
    )
    assert program(inner + spec("use Inner(h = [1, 0])")).hypers[0].default == (1.0, 0.0)
    only(inner + spec("use Inner(h = [0.5, 2.0])"), "E0203", "h = [0.5, 2.0]")
    only(inner + spec("use Inner(h = [0.5, 2])"), "E0209", "h = [0.5, 2]")
    only(inner + spec("use Inner(h = 1.0)"), "E0404", "1.0")
    only(inner + spec("use Inner(fixed h = [1.0])"), "E0509", "fixed h = [1.0]")
    ints = spec("p = p - h[t] * g", "h = [1]", name="Inner")
    only(ints + spec("use Inner(h = [0.5])"), "E0404", "h = [0.5]")
    plain = spec("p = p - h * g", "h = 1.0", name="Inner")
    assert "list" in only(plain + spec("use Inner(h = [0.5])"), "E0404", "h = [0.5]").message


@pytest.mark.parametrize(
    ("line", "code", "marked"),
    [
        ("h = [0.5, 2.0] in [0, 1]", "E0203", "[0.5, 2.0]"),
        ("h = [1, 2.0]", "E0209", "[1, 2.0]"),
        ("h = [true]", "E0209", "[true]"),
        ('h = ["a"]', "E0209", '["a"]'),
        ('h = [1.0] in {"a"}', "E0205", '{"a"}'),
    ],
)
def test_mistakes_in_declarations(line: str, code: str, marked: str) -> None:
    assert only(spec("p = p - h[t] * g", line), code, marked).help


@pytest.mark.parametrize(
    ("step", "code", "marked"),
    [
        ("p = p - h * g", "E0404", "h"),
        ("p = p - sum(h) * g", "E0404", "h"),
        ("p = p - max(h, 1) * g", "E0404", "h"),
        ("p = p - (h <= t) * g", "E0404", "h"),
        ("p = p - (h == h) * g", "E0404", "h"),
        ("p = p - g if h else p", "E0404", "h"),
        ("x = h", "E0404", "h"),
        ("g = h", "E0404", "h"),
        ("p = p - count(h) * g", "E0404", "h"),
        ("p = p - count(h < t) * g", "E0404", "h < t"),
        ("p = p - count(t <= h) * g", "E0404", "t <= h"),
        ("p = p - count(h <= norm(g)) * g", "E0406", "norm(g)"),
        ("p = p - count(h <= h) * g", "E0404", "h"),
        ("p = p - h[norm(g)] * g", "E0406", "norm(g)"),
        ("p = p - h[g] * g", "E0406", "g"),
        ("p = p - h[h] * g", "E0404", "h"),
        ("p = p - t[1] * g", "E0404", "t"),
        ("p = p - g[1]", "E0404", "g"),
    ],
)
def test_mistakes_in_steps(step: str, code: str, marked: str) -> None:
    text = spec(f"{step}\np = p - h[1] * g", "h = [1.0, 2.0]")
    messages = [m for m in check(text).diagnostics if m.is_error]
    assert [m.code for m in messages] == [code], "\n".join(m.render() for m in messages)
    (message,) = messages
    start, end = message.span.column - 1, message.span.end_column - 1
    assert message.source_line[start:end] == marked
    assert message.help


def test_a_list_is_no_number_of_steps() -> None:
    for line in ("repeat h: p = p - g", "every h: p = p - g"):
        assert [m.code for m in check(spec(line, "h = [1, 2]")).diagnostics if m.is_error], line


def test_what_a_listing_says() -> None:
    made: Program = program(spec("p = p - h[t]^count(k <= t) * g", "h = [1.0] in [0, inf)\nk = [2, 3]"))
    assert "hyper h: list = [1.0] in [0, inf)" in show(made)
    assert "h = [1.0] in [0, inf)" in to_opt(made)
    assert "k = [2, 3]" in to_opt(made)
    assert "h[t]^count(k <= t)" in to_opt(made)
