"""Calls: built-ins and their keywords, `def`, `return`, recursion and its bounds."""

from __future__ import annotations

import time

import pytest

from optdsl.check import check_text
from optdsl.core.ops import AXES_OPERANDS, BUILTINS
from tests.check.helpers import check, found, only, program, run, same, spec

# ---- built-ins


@pytest.mark.parametrize("name", BUILTINS)
def test_every_built_in_takes_its_arguments(name: str) -> None:
    row = BUILTINS[name]
    special = {("where", 0): "g > 0", ("newton_schulz", 1): "5", ("kth_largest", 1): "5"}
    special |= {("matrix_power", 0): "gram(g)", ("matrix_power", 1): "0.5", ("matrix_power", 2): "1e-3"}
    special |= {("along_axes", 0): "gram(g)"}
    for count in {row.arity[0], row.arity[1]}:
        args = ", ".join(special.get((name, n), "g") for n in range(count))
        family = AXES_OPERANDS.get(name, ((), ""))[1] == "axes"
        program(spec(f"p = p - along_axes({name}({args}), g)" if family else f"p = p - {name}({args})"))
    for count in {row.arity[0] - 1, row.arity[1] + 1} - {-1}:
        message = only(spec(f"p = p - {name}({', '.join(['g'] * count)})"), "E0303")
        assert message.help == f"it is written `{row.signature}`"


@pytest.mark.parametrize("name", [name for name in BUILTINS if BUILTINS[name].reduction])
def test_places_to_reduce_over(name: str) -> None:
    args = "g, 3" if name == "kth_largest" else ", ".join(["g"] * BUILTINS[name].arity[0])
    for over in ("tensor", "rows", "cols", "group", "all"):
        program(spec(f"p = p - {name}({args}, over={over})"))
    assert only(spec(f"p = p - {name}({args}, over=row)"), "E0407", "row").help == "did you mean `rows`?"
    assert "`all`" in only(spec(f"p = p - {name}({args}, over=2)"), "E0407", "2").help
    only(spec(f"p = p - {name}({args}, over=nothing)"), "E0407", "nothing")
    only(spec(f"p = p - {name}({args}, over=rows, over=cols)"), "E0304")
    only(spec(f"p = p - {name}({args}, dim=rows)"), "E0304", "rows")


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("sqrt(g, over=rows)", "E0304"),
        ("min(g, p, over=rows)", "E0304"),
        ("normal(stream=-1)", "E0406"),
        ("normal(stream=2048)", "E0406"),
        ("normal(stream=t)", "E0406"),
        ("normal(stream=1.0)", "E0406"),
        ("normal(seed=1)", "E0304"),
        ("norm(g, stream=1)", "E0304"),
    ],
)
def test_keywords(call: str, code: str) -> None:
    only(spec(f"p = p - {call}"), code)


def test_draws_have_streams_of_their_own() -> None:
    draws = [
        a.expr
        for a in program(
            spec("x = normal()\ny = normal()\nz = normal(stream=9)\nw = normal()\np = p - x - y - z - w")
        ).body[:4]
    ]
    assert [getattr(draw, "attr", None) for draw in draws] == [0, 1, 9, 10]
    only(spec("repeat 100:\n    x = normal()\n    repeat 100:\n        p = p - x * uniform()"), "E0601")


def test_joint_reductions_have_sites_of_their_own() -> None:
    body = program(spec("x = norm(g, over=all)\ny = norm(g, over=all)\np = p - x * y * g")).body
    assert body[0].expr is not body[1].expr


# ---- functions

EMA = "def ema(x, y, beta): return beta * x + (1 - beta) * y\n"


def test_a_function_is_put_in_place() -> None:
    by_hand = spec("m = 0.9 * m + (1 - 0.9) * g\np = p - m", state="m = 0")
    assert same(run(EMA + spec("m = ema(m, g, 0.9)\np = p - m", state="m = 0")), run(by_hand))
    assert same(run(EMA + spec("m = ema(beta=0.9, y=g, x=m)\np = p - m", state="m = 0")), run(by_hand))
    assert same(run(EMA + spec("m = ema(m, g, beta=0.9)\np = p - m", state="m = 0")), run(by_hand))


def test_statements_in_a_function() -> None:
    text = """
def f(x, n, on):
    y = x
    repeat n:
        y = y * x
    if on:
        y = 2 * y
    else:
        z = y
        y = z
    x = y
    return x + 1
"""
    hyper = "n = 2 in [1, 4]\non = true"
    assert same(
        run(text + spec("x = g\np = p - f(g, n, on) + x", hyper)), run(spec("p = p - 2 * g^3 - 1 + g"))
    )
    assert same(run(text + spec("p = p - f(g, 3, false)")), run(spec("p = p - g^4 - 1")))


def test_an_argument_is_computed_once() -> None:
    body = program("def square_of(x): return x * x\n" + spec("p = p - square_of(g + 1)")).body
    assert [a.source for a in body] == ["x", "p"]


def test_a_function_sees_its_parameters_only() -> None:
    for name in ("p", "g", "t", "lr", "m", "update", "rows"):
        text = f"def f(x): return x * {name}\n" + spec("m = g\np = p - lr * f(m)", "lr = 0.1", "m = 0")
        message = only(text, "E0301", name)
        assert message.span.line == 1
        assert message.help == f"make `{name}` a parameter"
    assert (
        only("def f(first): return frist\n" + spec("p = p - f(g)"), "E0301").help == "did you mean `first`?"
    )
    program("def f(x): return pi * x\n" + spec("p = p - f(g)"))


def test_functions_call_functions() -> None:
    text = "def a(x): return b(x) + 1\ndef b(x): return 2 * x\n" + spec("p = p - a(g)")
    assert same(run(text), run(spec("p = p - 2 * g - 1")))


@pytest.mark.parametrize(
    ("text", "circle"),
    [
        ("def a(x): return a(x)\n", "a -> a"),
        ("def a(x): return b(x)\ndef b(x): return 1 + a(x)\n", "a -> b -> a"),
        ("def a(x): return b(x)\ndef b(x): return b(x)\n", "b -> b"),
    ],
)
def test_recursion(text: str, circle: str) -> None:
    messages = check(text + spec("p = p - a(g)")).diagnostics
    assert {m.code for m in messages} == {"E0505"}
    assert len({m.span for m in messages}) == len(messages) == 1 or circle == "a -> b -> a"
    assert circle in " ".join(m.message for m in messages)


@pytest.mark.parametrize(
    ("call", "code", "help"),
    [
        ("ema(g)", "E0303", "its parameters are `x`, `y`, `beta`"),
        ("ema(g, g, g, g)", "E0303", "its parameters are `x`, `y`, `beta`"),
        ("ema(g, y=g)", "E0303", "its parameters are `x`, `y`, `beta`"),
        ("ema(g, g, bta=1)", "E0304", "did you mean `beta`?"),
        ("ema(g, g, over=rows)", "E0304", "its parameters are `x`, `y`, `beta`"),
        ("ema(g, g, x=1)", "E0304", "remove one of them"),
        ("ema(g, beta=1, beta=2)", "E0304", "remove one of them"),
        ("none(1)", "E0303", "it has no parameters"),
    ],
)
def test_arguments(call: str, code: str, help: str) -> None:
    text = EMA + "def none(): return 1.0\n" + spec(f"p = p - {call}")
    assert help in only(text, code).help.splitlines() or call.endswith("over=rows)")


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("    y = x\n", "E0507", 1),
        ("    if x > 0:\n        return x\n    return 2 * x\n", "E0507", 3),
        ("    return x\n    y = x\n    return y\n", "E0507", 2),
        ("    every 2:\n        x = 1\n    return x\n", "E0103", 2),
        ("    use T()\n    return x\n", "E0103", 2),
        ("    p = x\n    return x\n", "E0307", 2),
        ("    update = x\n    return x\n", "E0307", 2),
        ("    y = nothing\n    return y\n", "E0301", 2),
    ],
)
@pytest.mark.parametrize("called", [True, False])
def test_bodies_of_functions(body: str, code: str, line: int, called: bool) -> None:
    text = f"def f(x):\n{body}" + spec("p = p - f(t)" if called else "p = p - g")
    assert found(text) == [(code, line)]


def test_a_function_that_is_not_called_is_not_judged_by_its_types() -> None:
    text = (
        "def f(x, n, on):\n    repeat n:\n        x = norm(x)\n    if on:\n        x = 1\n    return x @ x\n"
    )
    program(text + spec("p = p - g"))
    assert check(text).kind == "library"
    assert not check(text).diagnostics


def test_what_depends_on_the_call_names_the_call() -> None:
    text = "def unit(x): return x / norm(x)\ndef twice(y): return unit(y)\n" + spec(
        "h = t\np = p - g * twice(h)"
    )
    message = only(text, "E0403", "x")
    assert message.span.line == 1
    assert message.help.splitlines()[1:] == ["`unit` is called on line 2", "`twice` is called on line 6"]


def test_a_return_in_a_step() -> None:
    only(spec("p = p - g\nreturn p"), "E0103", "return p")


# ---- bounds


def quick(text: str, code: str) -> None:
    times = []
    for _ in range(2):
        start = time.process_time()
        messages = check_text(text, "t.opt").diagnostics
        times.append(time.process_time() - start)
    assert min(times) < 1.5  # one second on an idle machine
    assert {message.code for message in messages} == {code}
    assert len(messages) == 1


def test_calls_that_multiply() -> None:
    defs = "def f0(x): return x * x\n"
    defs += "".join(f"def f{n}(x): return f{n - 1}(x) + f{n - 1}(x)\n" for n in range(1, 20))
    quick(defs + spec("p = p - f19(g)"), "E0601")


def test_calls_that_go_deep() -> None:
    defs = "def f0(x): return x + 1\n"
    defs += "".join(f"def f{n}(x): return f{n - 1}(x) + 1\n" for n in range(1, 40))
    assert {code for code, _ in found(defs + spec("p = p - f39(g)"))} == {"E0008"}
    defs = "def f0(x): return x + 1\n"
    terms = "1 + (" * 30
    defs += "".join(f"def f{n}(x): return {terms}f{n - 1}(x){')' * 30}\n" for n in range(1, 15))
    assert {code for code, _ in found(defs + spec("p = p - f14(g)"))} <= {"E0008"}


def test_loops_that_multiply() -> None:
    for body in ("p = p - g", "x = 1", "if on:\n    p = p - g"):
        loops = body
        for _ in range(4):
            loops = "repeat 256:\n" + "\n".join("    " + line for line in loops.splitlines())
        used = "\np = p - g\nif on:\n    p = p - 1"
        quick(spec(loops + used, "on = true"), "E0601")


def test_loops_of_a_hyperparameter_that_multiply() -> None:
    body = "p = p - g"
    for _ in range(3):
        body = "repeat n:\n" + "\n".join("    " + line for line in body.splitlines())
    quick(spec(body, "n = 2 in [0, 256]"), "E0601")
    program(spec("repeat n:\n    p = p - g", "n = 2 in [0, 256]"))


def test_deep_results_get_names() -> None:
    defs = "def f0(x): return x + 1\n"
    defs += "".join(f"def f{n}(x): return {'1 + (' * 8}f{n - 1}(x){')' * 8}\n" for n in range(1, 24))
    program(defs + spec("p = p - f23(g)"))
