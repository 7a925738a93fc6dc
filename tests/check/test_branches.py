"""Branches and loops: conditions, names on one side, `every`, `repeat`, `step when`."""

from __future__ import annotations

import numpy as np
import pytest

from optdsl.core.types import ELEMENT
from optdsl.ir.text import to_opt
from tests.check.helpers import found, only, program, run, same, spec

ON = "on = true\noff = false"
USE = "\nif on and off:\n    p = p - 1"


# ---- conditions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "condition",
    [
        "on",
        "not on",
        "t > 3",
        "first_step",
        "ndim >= 2 and on",
        "h > 0",
        "0 < h <= 1",
        'mode == "a"',
        "k > 0",
        "true",
    ],
)
def test_conditions_known_on_the_host(condition: str) -> None:
    hyper = 'on = true\nh = 0.5\nmode = "a" in {"a", "b"}'
    rest = '\nk = k + h\nif on and mode == "b":\n    p = p - k'
    program(spec(f"if {condition}:\n    p = p - g{rest}", hyper, "k [host] = 1"))


@pytest.mark.parametrize(
    ("condition", "because"),
    [
        ("g > 0", "`g` is one value per element: it is the gradient"),
        ("p > 0", "`p` is one value per element: it is the parameter"),
        ("m > 0", "`m` is one value per element: it is a state"),
        ("norm(g) > 1", "`norm(g)` is one number per tensor"),
        ("n > 1", "`n` is one number per tensor: line 5 computes it from `g`"),
        ("n > norm(g, over=all)", "`n` is one number per tensor: line 5 computes it from `g`"),
        ("norm(g, over=all) > t", "`norm(g, over=all)` is one number per parameter group"),
        ("mean(g, over=rows) > 1", "`mean(g, over=rows)` is one value per row"),
        ("t > 1 and -g < 1", "`g` is one value per element: it is the gradient"),
        ("(g if t > 1 else p) > 0", "`g` is one value per element: it is the gradient"),
        ("u > 0", "`u` is one value per element: line 7 computes it from `m`"),
    ],
)
def test_conditions_of_a_tensor(condition: str, because: str) -> None:
    lines = "n = norm(g)\nif t > 1:\n    u = m\nelse:\n    u = 1\nx = u + n\n"
    message = only(
        spec(f"{lines}if {condition}:\n    p = p - g\np = p - x\nm = g", state="m = 0"), "E0401", condition
    )
    assert message.help.splitlines() == [because, "`a if condition else b` chooses between values"]


@pytest.mark.parametrize(
    ("condition", "noun"), [("h", "number"), ("t", "number"), ("g", "number"), ("mode", "choice")]
)
def test_conditions_that_are_none(condition: str, noun: str) -> None:
    text = spec(f"if {condition}:\n    p = p - g\np = p * h", 'h = 0.5\nmode = "a" in {"a", "b"}')
    assert only(text, "E0404", condition).message == f"`{condition}` is a {noun}, not a condition"


def test_a_condition_that_is_wrong_is_one_mistake() -> None:
    step = "if nothing > 1:\n    x = g\n    p = p - x\nelse:\n    y = g\np = p - x - y\nm = m + x"
    step += "\nif m > 1:\n    p = p - 1"
    assert [code for code, _ in found(spec(step, state="m = 0"))] == ["E0301"]


# ---- names on one side -----------------------------------------------------------------------------------


def test_both_sides() -> None:
    text = spec("if on:\n    x = g\nelse:\n    x = p\np = p - x" + USE, ON)
    assert same(run(text), run(spec("p = p - g")))
    assert same(run(text, hypers={"on": False}), run(spec("p = p - p")))


def test_one_side_keeps_what_was_before() -> None:
    text = spec("x = p\nif on:\n    x = g\np = p - x" + USE, ON)
    assert same(run(text), run(spec("p = p - g")))
    assert same(run(text, hypers={"on": False}), run(spec("p = p - p")))
    text = spec("if on:\n    m = m + g\np = p - m" + USE, ON, "m = 1")
    assert same(run(text, hypers={"on": False}), run(spec("p = p - 1")))


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("if on:\n    x = g\np = p - x", "unless `on` holds"),
        ("if on:\n    p = p - g\nelse:\n    x = g\np = p - x", "if `on` holds"),
        ("if on:\n    x = g\nelif off:\n    x = p\np = p - x", "unless `off` holds"),
        ("if on:\n    if off:\n        x = g\nelse:\n    x = p\np = p - x", "unless `off` holds"),
        ("every 2:\n    x = g\np = p - x", "in the steps that `every 2:` skips"),
        ("repeat n:\n    x = g\np = p - x", "unless `n` is more than 0"),
        ("if (on and\n  (off or t > 2)):\n    x = g\np = p - x", "unless its condition holds"),
    ],
)
def test_names_assigned_on_one_side(step: str, reason: str) -> None:
    text = spec(step + "\nrepeat n:\n    p = p - g" + USE, ON + "\nn = 2 in [0, 3]")
    message = only(text, "E0305", "x")
    assert message.message.startswith("`x` has no value ")
    assert reason in message.message
    line = 1 + next(i for i, line in enumerate(text.splitlines()) if "x = " in line)
    assert f"line {line} assigns it" in message.help


def test_names_assigned_elsewhere() -> None:
    assert "further down" in only(spec("p = p - x\nx = g\ng = x"), "E0305", "x").message
    text = spec("if on:\n    x = g\nelse:\n    p = p - x\np = p - g" + USE, ON)
    assert "on another one" in only(text, "E0305", "x").message
    assert "declare it under `state:`" in only(spec("repeat 3:\n    p = p - x\n    x = g"), "E0305", "x").help


def test_the_same_condition_again() -> None:
    text = spec("if on:\n    x = g\np = 0.9 * p\nif on:\n    p = p - x" + USE, ON)
    assert same(run(text), run(spec("p = 0.9 * p - g")))
    assert same(run(text, hypers={"on": False}), run(spec("p = 0.9 * p")))
    program(spec("if on:\n    x = g\nif not on:\n    p = p + 1\nelse:\n    p = p - x" + USE, ON))
    program(spec("if on:\n    x = g\nif on and off:\n    p = p - x" + USE, ON))
    program(spec("if not (on or off):\n    p = p - 1\nelse:\n    x = g\nif on or off:\n    p = p - x", ON))
    program(spec("if on:\n    if off:\n        x = g\nif off and on:\n    p = p - x" + USE, ON))
    only(spec("if on:\n    x = g\nif off:\n    p = p - x" + USE, ON), "E0305", "x")
    only(spec("if on:\n    x = g\nif on or off:\n    p = p - x" + USE, ON), "E0305", "x")
    only(spec("if on:\n    x = g\nelse:\n    p = p + x" + USE, ON), "E0305", "x")


def test_a_name_may_differ_in_level() -> None:
    built = program(spec("if on:\n    x = g\nelse:\n    x = 0\np = p - x" + USE, ON))
    assert next(a for a in built.body if a.name == "x.3").expr.type.shape == ELEMENT


GRAMS = """if on:
    x = g @ g'
    u = x @ g
else:
    x = g' @ g
    u = g @ x
"""


def test_a_name_may_hold_two_kinds_of_matrices() -> None:
    """One on each side of a branch, and then it has a value where the side is known."""
    two = GRAMS.replace("x = g'", "y = g'").replace("g @ x", "g @ y")
    again = "if on:\n    p = p - norm(x) * u\n"
    negated, after = (x.replace("if on", "if not on") for x in (GRAMS, two))
    for text, other in (
        (GRAMS, two),
        (GRAMS + again, two + again),
        (negated + again, after + again.replace("x", "y")),
    ):
        for on in (True, False):
            found, wanted = (run(spec(x + "p = p - u" + USE, ON), hypers={"on": on}) for x in (text, other))
            assert same(found, wanted)
    loop = "repeat 3:\n" + "".join(f"    {line}\n" for line in GRAMS.splitlines()) + "    g = u / norm(u)\n"
    built = program(spec(loop + "p = p - u" + USE, ON))
    assert same(run(to_opt(built)), run(spec(loop + "p = p - u" + USE, ON)))
    text = spec(GRAMS + "p = p - norm(x) * u" + USE, ON)
    message = only(text, "E0305", "x")
    kinds = "a matrix of rows by rows on one side, a matrix of cols by cols on the other"
    line = text.split("\n").index("        if on:") + 1
    assert message.message == f"`x` has no value behind the branch on line {line}: it is {kinds}"
    assert message.help == "use two names"


def test_the_locals_of_two_functions_have_one_name() -> None:
    """Where both are put in place, in two branches, the printed text gives their matrices one name."""
    functions = (
        "def f(x):\n    s = x' @ x\n    return x @ s\n\ndef h(x):\n    s = x @ x'\n    return s @ x\n\n"
    )
    text = functions + spec("if on:\n    x = f(g)\nelse:\n    x = h(g)\np = p - x" + USE, ON)
    printed = to_opt(program(text))
    assert printed.count(" s = ") == 2
    assert to_opt(program(printed)) == printed
    assert same(run(printed), run(text))


def test_choices_stay_what_they_are_in_branches() -> None:
    text = 'def f(x, mode):\n    y = x\n    if mode == "a":\n        y = 2 * x\n    return y\n'
    hyper = 'mode = "a" in {"a", "b"}'
    assert same(run(text + spec("p = p - f(g, mode)", hyper)), run(spec("p = p - 2 * g")))
    assert same(run(text + spec('p = p - f(g, "b")')), run(spec("p = p - g")))


# ---- states without an initial value ---------------------------------------------------------------------


def test_a_state_assigned_before_it_is_read() -> None:
    assert program(spec("m = g\np = p - m", state="m")).state("m").init is None


def test_a_state_that_the_first_step_assigns() -> None:
    text = spec("if first_step:\n    m = g\nelse:\n    m = 0.9 * m + g\np = p - m", state="m")
    by_hand = spec("m = 0.9 * m + g\np = p - m", state="m = 0")
    assert same(run(text), run(by_hand))
    text = spec("if not first_step:\n    m = 0.9 * m + g\nelse:\n    m = g\np = p - m", state="m")
    assert same(run(text), run(by_hand))
    text = spec("if first_step:\n    m = 0\nm = 0.9 * m + g\np = p - m", state="m")
    assert same(run(text), run(by_hand))


def test_a_state_assigned_now_and_then_is_kept() -> None:
    text = spec("p = p - g\nif t > 2:\n    m = g\n    p = p - m" + USE, ON, "m")
    assert "m" in program(text).results
    text = spec("if on:\n    m = g\n    p = p - m" + USE, ON, "m")
    assert same(run(text), run(spec("p = p - g")))


@pytest.mark.parametrize(
    "step",
    [
        "m = 0.9 * m + g\np = p - m",
        "if on:\n    m = g\np = p - m" + USE,
        "every 2:\n    m = g\np = p - m",
        "if first_step:\n    p = p - g\nelse:\n    p = p - m\nm = m + g",
        "if t > 1:\n    m = 0.9 * m + g\nelse:\n    m = g\np = p - m",
    ],
)
def test_a_state_read_too_early(step: str) -> None:
    message = only(
        spec(step, ON if "on" in step.replace("one", "") and USE in step else "", "m"), "E0308", "m"
    )
    assert "`m = 0`" in message.help


def test_a_first_step_that_forgets_a_state() -> None:
    text = spec("if first_step:\n    if on:\n        m = g\nelse:\n    p = p - m\n    m = g" + USE, ON, "m")
    message = only(text, "E0308", "m")
    assert "a first step may leave it without a value" in message.message


# ---- every -----------------------------------------------------------------------------------------------


def test_every() -> None:
    text = spec("every 3:\n    m = g\np = p - m", state="m = 0")
    by_hand = spec("if mod(t - 1, 3) == 0:\n    m = g\np = p - m", state="m = 0")
    assert same(run(text, 5), run(by_hand, 5))
    text = spec("every k offset 1:\n    m = g\np = p - m", "k = 3 in [2, 9]", "m = 0")
    by_hand = spec("if t == 2 or t == 5:\n    m = g\np = p - m", state="m = 0")
    assert same(run(text, 6), run(by_hand, 6))


@pytest.mark.parametrize(
    ("line", "marked"),
    [
        ("every 0:", "0"),
        ("every -2:", "-2"),
        ("every 2.0:", "2.0"),
        ("every h:", "h"),
        ("every norm(g):", "norm(g)"),
        ("every k:", "k"),
        ("every k - 1:", "k - 1"),
        ("every 3 offset 3:", "3"),
        ("every 3 offset -1:", "-1"),
        ("every 3 offset k - 2:", "k - 2"),
        ("every true:", "true"),
    ],
)
def test_periods_that_are_none(line: str, marked: str) -> None:
    hyper = "h = 0.5\nk = 3 in [0, inf)"
    text = spec(f"{line}\n    m = g\np = p - m - h * k", hyper, "m = 0")
    assert only(text, "E0406", marked).help


def test_a_period_may_be_computed() -> None:
    program(spec("every max(k, 1):\n    m = g\np = p - m", "k = 3", "m = 0"))
    program(spec("every 2 * k + 1:\n    m = g\np = p - m", "k = 3 in [0, 9]", "m = 0"))
    program(spec("n = k * 2\nevery n:\n    m = g\np = p - m", "k = 3 in [1, 9]", "m = 0"))
    program(spec("every t:\n    m = g\np = p - m", state="m = 0"))


# ---- repeat ----------------------------------------------------------------------------------------------


def test_repeat() -> None:
    assert same(run(spec("repeat 3:\n    p = p - 0.1 * g * p")), run(spec("p = p - 0.1 * g * p\n" * 3)))
    text = spec("x = g\nrepeat n:\n    x = x * x\np = p - x", "n = 3 in [0, 4]")
    for n in range(5):
        by_hand = spec(f"p = p - g^{2**n}")
        assert same(run(text, hypers={"n": n}), run(by_hand))
    assert len(program(text).body) == 2 + 2 * 4


def test_repetitions_that_always_run_are_not_in_a_branch() -> None:
    text = spec("repeat n:\n    x = g\np = p - x", "n = 3 in [2, 4]")
    assert [len(a.guard) for a in program(text).body if a.source == "x"] == [0, 0, 1, 0, 1, 0]


def test_loops_nest() -> None:
    text = spec(
        "x = g\nrepeat 2:\n    repeat k:\n        x = x + 1\n    x = 2 * x\np = p - x", "k = 1 in [0, 2]"
    )
    assert same(run(text, hypers={"k": 2}), run(spec("p = p - (2 * (2 * (g + 2) + 2))")))


@pytest.mark.parametrize(
    ("line", "code", "marked"),
    [
        ("repeat 0:", "E0406", "0"),
        ("repeat -1:", "E0406", "-1"),
        ("repeat 2.0:", "E0406", "2.0"),
        ("repeat h:", "E0406", "h"),
        ("repeat norm(g):", "E0406", "norm(g)"),
        ("repeat k - 5:", "E0406", "k - 5"),
        ("repeat 257:", "E0602", "257"),
        ("repeat 1000000000000:", "E0602", "1000000000000"),
        ("repeat m:", "E0602", "m"),
        ("repeat t:", "E0602", "t"),
        ("repeat 100 * k:", "E0602", "100 * k"),
        ("repeat nothing:", "E0301", "nothing"),
    ],
)
def test_counts_that_are_none(line: str, code: str, marked: str) -> None:
    hyper = "h = 0.5\nk = 3 in [1, 9]\nm = 2 in [1, inf)"
    message = only(spec(f"{line}\n    p = p - g\np = p - h * k * m", hyper), code, marked)
    assert message.help or code == "E0301"


def test_a_mistake_in_a_loop_is_one_message() -> None:
    assert found(spec("repeat 200:\n    repeat 200:\n        p = p - nothing")) == [("E0301", 5)]
    assert found(spec("repeat nothing:\n    p = p - neither")) == [("E0301", 3), ("E0301", 4)]


# ---- step when -------------------------------------------------------------------------------------------


def test_steps_by_shape() -> None:
    text = "optimizer T:\n    step when ndim >= 2:\n        p = p - g\n"
    text += "    step when numel > 4:\n        p = p - 2 * g\n"
    text += "    step otherwise:\n        p = p - 3 * g\n"
    by_hand = spec("p = p - (g if ndim >= 2 else 2 * g if numel > 4 else 3 * g)")
    shapes = [(2, 2), (5,), (3,), ()]
    assert same(run(text, shapes=shapes), run(by_hand, shapes=shapes))


def test_steps_that_leave_some_tensors_alone() -> None:
    text = "optimizer T:\n    step when ndim >= 2:\n        p = p - g\n"
    assert same(run(text), run(spec("p = p - (g if ndim >= 2 else 0)")))


def test_a_condition_of_a_step_is_known_on_the_host() -> None:
    text = "optimizer T:\n    step when norm(g) > 1:\n        p = p - g\n"
    assert "`norm(g)` is one number per tensor" in only(text, "E0401", "norm(g) > 1").help


def test_a_long_condition_gets_a_name() -> None:
    condition = " and ".join(f"h > {n}" for n in range(5))
    text = spec(f"if {condition}:\n    p = p - g\nelse:\n    p = p + g", "h = 3.5")
    assert [a.source for a in program(text).body] == ["condition", "p", "p", "p"]
    assert np.allclose(run(text, 1)[0][0], run(spec("p = p + g"), 1)[0][0])
