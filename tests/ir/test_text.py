"""A program printed as a spec: it parses, prints the same again, and means the same."""

from __future__ import annotations

import itertools
import math
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optdsl.check import check_path, check_text
from optdsl.core import types as ty
from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Const, Expr, call, const, var
from optdsl.ir.program import Assign, Hyper, Interval, Program, State
from optdsl.ir.text import expression, literal, quote, show, to_opt
from optdsl.ir.verify import verify
from optdsl.passes.simplify import simplify
from optdsl.search.generate import WILD, random_expr, random_program
from tests import fuzz

Options = dict[str, Any]

SPECS = sorted(Path(__file__).resolve().parents[2].glob("specs/*.opt"))

P, G = var("p", ty.element()), var("g", ty.element())
T = var("t", ty.host(Kind.INT))
LR = Hyper("lr", "lr", Kind.FLOAT, 0.1, Interval(0, math.inf))
FLAG = Hyper("flag", "flag", Kind.BOOL, True)
FLAGGED = var("flag", ty.host(Kind.BOOL))


def reread(program: Program) -> Program:
    """`program` from its text; the text is a fixed point."""
    text = to_opt(program)
    checked = check_text(text)
    assert not checked.errors, f"{checked.errors[0]}\n{text}"
    again = verify(checked.require(), "printing and parsing")
    assert to_opt(again) == text, f"{text}\n{to_opt(again)}"
    return again


# ---- whole programs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("simplified", [False, True], ids=["as written", "simplified"])
@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_shipped_specs_survive(path: Path, simplified: bool) -> None:
    program = check_path(path).require()
    if simplified:
        program = simplify(program)
    again = reread(program)
    assert again.hypers == program.hypers
    assert again.states == program.states
    assert (again.name, again.doc, again.cite) == (program.name, program.doc, program.cite)
    for seed, numbers in itertools.product(range(3), (fuzz.ordinary, fuzz.hostile)):
        with fuzz.about(seed, program, again):
            fuzz.assert_same_bits(fuzz.run(program, seed, numbers), fuzz.run(again, seed, numbers))


def test_random_programs_survive() -> None:
    for seed, program in fuzz.programs(500):
        with fuzz.about(seed, program):
            again = reread(program)
            assert again.hypers == program.hypers
            assert [(s.name, s.key, s.type) for s in again.states] == [
                (s.name, s.key, s.type) for s in program.states
            ]
            options: Options = {"steps": 2, "shapes": fuzz.shapes(seed)}
            before = fuzz.run(program, seed, fuzz.hostile, **options)
            fuzz.assert_same_bits(before, fuzz.run(again, seed, fuzz.hostile, **options))


def test_simplified_random_programs_survive() -> None:
    """These read old values, and have copies, joins and dead branches removed."""
    for seed, program in fuzz.programs(250):
        short = simplify(program)
        with fuzz.about(seed, program, short):
            again = reread(short)
            if seed % 3 == 0:
                options: Options = {"steps": 2, "shapes": fuzz.shapes(seed)}
                before = fuzz.run(short, seed, fuzz.hostile, **options)
                fuzz.assert_same_bits(before, fuzz.run(again, seed, fuzz.hostile, **options))
            reread(simplify(again))


def test_listings_are_stable() -> None:
    for seed, program in fuzz.programs(50):
        with fuzz.about(seed, program):
            assert show(program) == show(fuzz.program(seed))
            assert program.digest() == fuzz.program(seed).digest()


# ---- hostile text -----------------------------------------------------------------------------------------

PIECES = (
    *('"', '""', '"""', '""""', '"""""', "'", "'''", "\\", "\\\\", "\\n", "\\t", '\\"', "\n", "\n\n", "\r\n"),
    *("\n    ", "\n  x", "{", "}", "{{", "}}", "{%", "%}", "#", "$", "%s", "`", "é", "λ", "😀", "\ufeff"),
    *("\u2028", "\x0b", "\x0c", "\x85", "\u00a0", "\x00", "\t", " ", "a", "b c", "\r", "//", "optimizer X:"),
)


def hostile_texts(count: int) -> list[str]:
    rng = random.Random(5)
    return [*PIECES, *("".join(rng.choices(PIECES, k=rng.randrange(1, 8))) for _ in range(count))]


def with_one_line_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def test_hostile_docs_and_citations_survive() -> None:
    base = random_program(random.Random(3), size=2)
    for text in hostile_texts(fuzz.count(600)):
        program = replace(base, doc=text, cite=text)
        again = reread(program)
        # blanks at the ends of lines, and around a docstring, are not part of it
        lines = [line.rstrip(" \t\f") for line in with_one_line_end(text).split("\n")]
        assert again.doc == "\n".join(lines).strip(), repr(text)
        assert again.cite == with_one_line_end(text), repr(text)


def test_hostile_texts_in_declarations_survive() -> None:
    base = random_program(random.Random(3), size=2)
    for text in hostile_texts(fuzz.count(200)):
        text = with_one_line_end(text)
        choices = (text, "plain", "", text + "x")
        mode = Hyper("hostile", "hostile", Kind.CHOICE, text, None, choices, text)
        number = Hyper("number", "number", Kind.FLOAT, 0.5, None, (), text)
        condition = call("eq", var("hostile", ty.host(Kind.CHOICE)), const(text))
        body = (
            Assign("u.1", "u", P, ((condition, True),)),
            Assign("u.2", "u", G, ((condition, False),)),
            Assign("u.3", "u", call("select", condition, var("u.1", ty.element()), var("u.2", ty.element()))),
        )
        program = replace(base, hypers=(mode, number), states=(), body=body, results={"p": body[2].var})
        again = reread(verify(program))
        assert again.hypers == program.hypers, repr(text)
        fuzz.assert_same_bits(fuzz.run(program, 1, steps=1), fuzz.run(again, 1, steps=1))


def test_a_text_with_quotes_is_one_string() -> None:
    assert quote('say "hi"\n\\ok\t{{x}}') == '"say \\"hi\\"\\n\\\\ok\\t{{x}}"'
    assert quote("a\r\nb\rc") == '"a\\nb\\nc"'


# ---- declarations -----------------------------------------------------------------------------------------

FLOATS = (0.0, -0.0, 1.0, -1.5, 1e-8, 5e-324, 1e22, 1e16, 123456789.0, 1.7976931348623157e308, 0.1)


@pytest.mark.parametrize("value", [*FLOATS, math.inf, -math.inf])
def test_defaults_survive(value: float) -> None:
    program = step(hypers=(LR, Hyper("h", "h", Kind.FLOAT, value)))
    (_, hyper) = reread(program).hypers
    assert const(hyper.default) is const(value)


@pytest.mark.parametrize("low, high", [(-math.inf, math.inf), (0, 1), (-3, 7), (1e-8, 1e30), (0.25, 2**53)])
@pytest.mark.parametrize("ends", list(itertools.product([False, True], repeat=2)))
def test_intervals_survive(low: float, high: float, ends: tuple[bool, bool]) -> None:
    inside = 0.5 if high == 1 else 1.0
    program = step(hypers=(LR, Hyper("h", "h", Kind.FLOAT, inside, Interval(low, high, *ends))))
    assert reread(program).hypers == program.hypers


def test_an_interval_may_end_at_a_negative_zero() -> None:
    program = step(hypers=(LR, Hyper("h", "h", Kind.FLOAT, 0.5, Interval(-0.0, 1))))
    assert reread(program).hypers == program.hypers


def test_tuples_survive() -> None:
    interval = Interval(0, 1, high_open=True)
    hypers = (
        *(Hyper(f"beta{n}", "betas", Kind.FLOAT, n / 10, interval, (), "decay rates") for n in (1, 2, 3)),
        *(Hyper(f"n{n}", "ns", Kind.INT, n, None) for n in (1, 2)),
    )
    program = step(hypers=(LR, *hypers))
    assert reread(program).hypers == program.hypers


@pytest.mark.parametrize("level", ty.STATE_LEVELS)
def test_states_survive(level: str) -> None:
    type_ = ty.Type(Kind.FLOAT, *ty.STATE_LEVELS[level])
    states = (
        State("m", "exp_avg", type_, const(0)),
        State("v", "v", type_, call("select", FLAGGED, 1.0, call("neg", var("lr", ty.host())))),
        State("w", "last", type_, None),
    )
    body = (Assign("w.1", "w", const(1.0)),)
    program = step(hypers=(LR, FLAG), states=states, body=body, results={"w": body[0].var})
    assert reread(program).states == states


# ---- expressions ------------------------------------------------------------------------------------------


def step(
    hypers: tuple[Hyper, ...] = (LR, FLAG),
    states: tuple[State, ...] = (),
    body: tuple[Assign, ...] = (),
    results: dict[str, Expr] | None = None,
) -> Program:
    return verify(Program("Test", "", "", hypers, states, body, results or {}))


def of(expr: Expr) -> Program:
    """A program that leaves `expr` in a local, of whatever level."""
    body = (Assign("u.1", "u", expr),)
    return step(body=body)


def parsed(expr: Expr) -> Expr:
    """What the text of `expr` means."""
    (assign,) = (a for a in reread(of(expr)).body if a.source == "u")
    return assign.expr


OPERANDS: list[Expr] = [
    P,
    call("add", P, G),
    call("sub", P, G),
    call("mul", P, G),
    call("div", P, G),
    call("neg", P),
    call("pow", P, G),
    call("min", P, G),
    call("transpose", call("transpose", P)),
    call("matmul", P, call("matmul", call("transpose", P), G)),
    call("select", FLAGGED, P, G),
    call("select", call("lt", P, G), P, G),
    const(2.0),
    const(-2.0),
    const(3),
    const(-3),
    const(math.inf),
]
CONDITIONS: list[Expr] = [
    FLAGGED,
    call("lt", P, G),
    call("eq", P, G),
    call("and", FLAGGED, call("lt", P, G)),
    call("or", FLAGGED, call("lt", P, G)),
    call("not", FLAGGED),
    call("not", call("not", call("lt", P, G))),
    call("select", FLAGGED, call("lt", P, G), FLAGGED),
    call("isfinite", P),
    const(True),
]


def test_operators_keep_their_operands() -> None:
    """Every pair of operators, nested in either place, reads back as the very same expression."""
    binary = ("add", "sub", "mul", "div", "pow", "mod", "min", "atan2", "lt", "ge", "eq", "ne")
    for op, (a, b) in itertools.product(binary, itertools.product(OPERANDS, repeat=2)):
        expr = call(op, a, b)
        assert parsed(expr) is expr, expression(expr, {})


def test_conditions_keep_their_operands() -> None:
    for op, (a, b) in itertools.product(("and", "or", "eq", "ne"), itertools.product(CONDITIONS, repeat=2)):
        expr = call(op, a, b)
        assert parsed(expr) is expr, expression(expr, {})
    for a in CONDITIONS:
        assert parsed(call("not", a)) is call("not", a)
        for x, y in itertools.product(OPERANDS, repeat=2):
            expr = call("select", a, x, y)
            assert parsed(expr) is expr, expression(expr, {})


def test_unary_operators_keep_their_operands() -> None:
    for op in ("abs", "sign", "sqrt", "isfinite", "transpose"):
        for a in OPERANDS:
            expr = call(op, a)
            assert parsed(expr) is expr, expression(expr, {})
    for a in OPERANDS:
        if not isinstance(a, Const):
            assert parsed(call("neg", a)) is call("neg", a)


def test_a_negated_literal_is_a_negative_literal() -> None:
    for value in (2.0, 3, 0.0, math.inf, 1e-8):
        one, two = call("neg", const(value)), call("neg", call("neg", const(value)))
        assert expression(one, {}) == literal(-value)
        assert expression(two, {}) == literal(value)
        fuzz.assert_same_bits(fuzz.run(left(one), 0), fuzz.run(reread(left(one)), 0))
        assert expression(call("pow", one, P), {}) == f"({literal(-value)})^p"


def left(expr: Expr) -> Program:
    """A program that leaves `expr` times `p` in `p`."""
    body = (Assign("p.1", "p", call("mul", P, expr)),)
    return step(body=body, results={"p": body[0].var})


def test_nan_has_a_text() -> None:
    nan = const(math.nan)
    for expr in (nan, call("neg", nan), call("mul", 2.0, nan), call("pow", nan, P), call("sub", P, nan)):
        fuzz.assert_same_bits(fuzz.run(left(expr), 0), fuzz.run(reread(left(expr)), 0))


def test_literals_read_back_as_themselves() -> None:
    rng = random.Random(0)
    values: list[float] = [*FLOATS]
    values += [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(fuzz.count(300))]
    values += [float(rng.randrange(10**n)) for n in range(1, 25)]
    for value in values:
        if math.isfinite(value):
            assert parsed(const(value)) is const(value), value.hex()
    for whole in (0, 1, -1, 10**15, 2**53, -(2**53)):
        assert parsed(const(whole)) is const(whole)


def test_reductions_and_draws_keep_what_they_are() -> None:
    for op, over in itertools.product(("sum", "mean", "max", "min"), ("tensor", "rows", "cols")):
        expr = call("reduce_" + op, call("mul", P, G), over=over)
        assert parsed(expr) is expr
    for over in ("group", "all"):
        found = parsed(call("reduce_sum", P, over=over, site=7))
        assert isinstance(found, Call)
        assert (found.op, found.attr, found.args) == ("reduce_sum", over, (P,))
    for op in ("normal", "uniform", "rademacher"):
        assert parsed(call(op, site=2047)) is call(op, site=2047)
    assert parsed(call("bernoulli", var("lr", ty.host()), site=3)) is call(
        "bernoulli", var("lr", ty.host()), site=3
    )
    assert parsed(call("newton_schulz", P, 4)) is call("newton_schulz", P, 4)


def test_random_expressions_read_back() -> None:
    for seed in fuzz.seeds(200):
        available = fuzz.everything()
        expr = random_expr(random.Random(seed), available, ty.element(), 6, WILD)
        states = [v for v in available.values if getattr(v, "name", "").startswith("s_")]
        hypers = (
            *(LR, FLAG, Hyper("k", "k", Kind.INT, 2)),
            Hyper("mode", "mode", Kind.CHOICE, "a", None, ("a", "b")),
            Hyper("values", "values", Kind.LIST, (2.0, 0.5)),
        )
        declared = tuple(State(v.name, v.name, v.type, const(0.5)) for v in states)  # type: ignore[union-attr]
        body = (Assign("p.1", "p", expr),)
        program = step(hypers, declared, body, {"p": body[0].var})
        with fuzz.about(seed, program):
            again = reread(program)
            before = fuzz.run(program, seed, fuzz.hostile, steps=1)
            fuzz.assert_same_bits(before, fuzz.run(again, seed, fuzz.hostile, steps=1))


# ---- statements -------------------------------------------------------------------------------------------


def program_of(text: str) -> Program:
    return check_text(text).require()


def same_meaning(program: Program) -> str:
    """The text of a program, once it is known to mean the same."""
    again = reread(verify(program))
    for seed in range(3):
        fuzz.assert_same_bits(fuzz.run(program, seed), fuzz.run(again, seed))
    return to_opt(program).partition("    step:\n")[2]


def states(*names: str) -> tuple[State, ...]:
    return tuple(State(name, name, ty.element(), const(float(index))) for index, name in enumerate(names))


def test_results_are_left_all_at_once() -> None:
    """States that change places, in circles of two and three, and one that goes to two others."""

    def lines(**results: Expr) -> list[str]:
        text = same_meaning(step(states=states("m", "v", "w"), results=results))
        return [line.strip() for line in text.splitlines()]

    m, v, w = (var(name, ty.element()) for name in ("m", "v", "w"))
    assert lines(m=v, v=m, p=w) == ["p = w", "m_1 = m", "m = v", "v = m_1"]
    assert lines(m=v, v=w, w=m) == ["m_1 = m", "m = v", "v = w", "w = m_1"]
    assert lines(m=G, v=m, w=m, p=m) == ["v = m", "w = m", "p = m", "m = g"]
    assert lines(p=m, m=P, v=P) == ["v = p", "p_1 = p", "p = m", "m = p_1"]
    assert lines(m=call("neg", v), v=call("mul", m, 2.0)) == ["m_1 = m", "m = -v", "v = m_1 * 2.0"]


def test_results_may_be_other_values_than_the_last() -> None:
    body = (
        Assign("m.1", "m", call("add", P, G)),
        Assign("m.2", "m", call("mul", var("m.1", ty.element()), 2.0)),
    )
    program = step(states=states("m"), body=body, results={"m": body[0].var, "p": body[1].var})
    assert [line.strip() for line in same_meaning(program).splitlines()] == [
        "m = p + g",
        "m_1 = m * 2.0",
        "p = m_1",
    ]


def test_an_old_value_is_kept_under_another_name() -> None:
    body = (
        Assign("m.1", "m", call("add", var("m", ty.element()), G)),
        Assign("p.1", "p", call("sub", P, var("m", ty.element()))),
    )
    program = step(states=states("m"), body=body, results={"m": body[0].var, "p": body[1].var})
    assert "m_1 = m + g" in same_meaning(program)


def test_an_input_is_read_after_a_branch_that_gave_its_name_away() -> None:
    guard = ((FLAGGED, True),)
    m = var("m", ty.element())
    body = (
        Assign("m.1", "m", call("add", m, 1.0), guard),
        Assign("p.1", "p", call("sub", P, var("m.1", ty.element())), guard),
        Assign("p.2", "p", call("select", FLAGGED, var("p.1", ty.element()), P)),
        Assign("p.3", "p", call("mul", var("p.2", ty.element()), m)),
    )
    same_meaning(step(states=states("m"), body=body, results={"p": body[3].var}))


def test_a_branch_may_read_what_an_equal_one_left() -> None:
    first = call("eq", T, 1)
    guard = ((first, True),)
    u = var("u.1", ty.element())
    body = (
        Assign("u.1", "u", call("add", P, G), guard),
        Assign("p.1", "p", call("sub", P, G)),
        Assign("p.2", "p", call("mul", var("p.1", ty.element()), u), guard),
        Assign("p.3", "p", call("select", first, var("p.2", ty.element()), var("p.1", ty.element()))),
    )
    text = same_meaning(step(body=body, results={"p": body[3].var}))
    assert text.count("if t == 1:") == 2


def test_choices_among_joins_belong_to_the_branch() -> None:
    guard = ((FLAGGED, False),)
    m1 = var("m.1", ty.element())
    body = (
        Assign("m.1", "m", call("add", P, G), guard),
        Assign("p.1", "p", call("select", FLAGGED, P, G)),
        Assign("m.2", "m", call("select", FLAGGED, var("m", ty.element()), m1)),
    )
    program = step(states=states("m"), body=body, results={"m": body[2].var, "p": body[1].var})
    text = same_meaning(program)
    assert text.count("if not flag:") == 1
    assert "else" not in text


def test_a_choice_that_computes_something_keeps_its_line() -> None:
    program = program_of("""
optimizer T:
    hyper:
        flag = true
    state:
        m = 0
    step:
        if flag:
            p = p - g
        m = exp(g) if flag else m
        p = p * m
""")
    assert "        m = exp(g) if flag else m\n" in same_meaning(program)


def test_a_truth_value_may_meet_a_number() -> None:
    program = program_of("""
optimizer T:
    hyper:
        flag = true
    step:
        if flag:
            x = p > g
        else:
            x = g
        p = p - 0.1 * x
""")
    same_meaning(program)
    same_meaning(simplify(program))


def test_elif_chains_are_printed_as_such() -> None:
    program = program_of("""
optimizer T:
    step:
        if t == 1:
            p = p - g
        elif t == 2:
            p = p + g
        elif ndim > 1:
            p = p * g
        else:
            p = g
""")
    text = same_meaning(program)
    assert text.count("elif") == 2
    assert text.count("else") == 1


def test_words_of_the_language_are_no_names_of_variables() -> None:
    program = program_of("""
def f(repeat, use, return1): return repeat * repeat + use + return1
def h(offset):
    every_ = offset + 1
    return every_ * every_
optimizer T:
    hyper:
        when = 1.0
    state:
        stored = 0
    step:
        stored = f(p + g, g * 2, h(g + 1)) * when
        p = stored - h(p * when)
""")
    same_meaning(program)
    same_meaning(simplify(program))
    for word in ("if", "every", "repeat", "use", "return", "update", "not", "t", "inf", "true"):
        first = Assign(f"{word}.1", word, call("add", P, G))
        second = Assign("p.1", "p", call("mul", first.var, 2.0))
        same_meaning(step(body=(first, second), results={"p": second.var}))


def test_names_of_locals_give_way_to_inputs() -> None:
    """A pass may make a local with the name of a hyperparameter or a state."""
    m = var("m", ty.element())
    body = (
        Assign("lr.1", "lr", call("add", P, G)),
        Assign("p.1", "p", call("mul", var("lr.1", ty.element()), var("lr", ty.host()))),
        Assign("p.2", "p", call("mul", var("p.1", ty.element()), m)),
    )
    text = same_meaning(step(states=states("m"), body=body, results={"p": body[2].var}))
    assert "lr_1 = p + g" in text
