"""Names: what a step and a function see, what may be declared, and what is said about the rest."""

from __future__ import annotations

import keyword

import pytest

from tests.check.helpers import check, found, only, program, run, same, spec

STEP = "p = p - lr * g"
LR = "lr = 0.1 in (0, inf)"


# ---- what is seen ----------------------------------------------------------------------------------------


def test_what_a_step_sees() -> None:
    program(
        spec(
            "x = p + g + t + ndim + numel + rows + cols + pi + first_step + lr + m\np = x\nm = x", LR, "m = 0"
        )
    )
    only(spec("x = x + 1\np = p - x"), "E0305", "x")


def test_values_change_line_by_line() -> None:
    assert same(run(spec("x = g\nx = 2 * x\nx = x + 1\np = p - x")), run(spec("p = p - (2 * g + 1)")))
    assert same(run(spec("p = p - g\np = p - p * 0.1")), run(spec("p = 0.9 * (p - g)")))
    assert same(run(spec("g = 2 * g\ng = g + 1\np = p - g")), run(spec("p = p - (2 * g + 1)")))


@pytest.mark.parametrize(
    ("step", "marked", "help"),
    [
        ("p = p - weight_dcay * g", "weight_dcay", "did you mean `weight_decay`?"),
        ("p = p - Weight_Decay * g", "Weight_Decay", "did you mean `weight_decay`?"),
        ("p = p - exp_agv", "exp_agv", "did you mean `exp_avg`?"),
        ("local = g\np = p - locl", "locl", "did you mean `local`?"),
        ("p = p - G", "G", "did you mean `g`?"),
        ("p = p - grad", "grad", "the gradient is called `g`"),
        ("p = p - theta * g", "theta", "the parameter is called `p`"),
        ("p = p - step * g", "step", "the number of the step is called `t`"),
        ("p = p - g * (True and false)", "True", "write `true`"),
        ("p = p - g / row", "row", "did you mean `rows`?"),
        ("p = p - zzz * g", "zzz", "declare it under `hyper:` or `state:`, or assign it first: `zzz = ...`"),
    ],
)
def test_unknown_names(step: str, marked: str, help: str) -> None:
    text = spec(step + "\nexp_avg = exp_avg + g * weight_decay", "weight_decay = 0.0", "exp_avg = 0")
    message = only(text, "E0301", marked)
    assert message.message == f"unknown name `{marked}`"
    assert message.help == help


@pytest.mark.parametrize(
    ("call", "help"),
    [
        ("sqr(g)", "did you mean `sqrt`?"),
        ("Norm(g)", "did you mean `norm`?"),
        ("emma(g)", "did you mean `ema`?"),
        ("clamp(g, 0, 1)", "write `clip(x, low, high)`"),
        ("std(g)", "write `sqrt(var(x))`"),
        ("qqq(g)", "define it with `def`, or import it"),
        ("__import__(g)", "define it with `def`, or import it"),
    ],
)
def test_unknown_functions(call: str, help: str) -> None:
    text = "def ema(x, y): return x + y\n" + spec(f"p = p - {call}")
    message = only(text, "E0302", call.split("(")[0])
    assert message.help == help


def test_values_are_not_functions_and_functions_no_values() -> None:
    assert only(spec("p = p - lr(g)", LR), "E0302", "lr").help == "to multiply, write `lr * (...)`"
    only(spec("p = p - g(2)"), "E0302", "g")
    only(spec("p = p - t(2)"), "E0302", "t")
    only(spec("x = g\np = p - x(2)"), "E0302", "x")
    assert only(spec("p = p - sqrt"), "E0309", "sqrt").help == "call it: `sqrt(...)`"
    only("def f(x): return x\n" + spec("p = p - f"), "E0309", "f")


def test_a_local_may_be_called_like_a_function() -> None:
    assert same(run(spec("norm = norm(g)\np = p - norm * norm(p)")), run(spec("p = p - norm(g) * norm(p)")))


def test_tuples_are_used_by_their_parts() -> None:
    text = spec("p = p - betas * g + b1 + b2", "betas = (b1: 0.9, b2: 0.99)")
    message = only(text, "E0404", "betas")
    assert message.help == "use its parts: `b1` or `b2`"


def test_a_name_is_reported_once() -> None:
    assert found(spec("x = lrr * g\ny = lrr + x\np = p - lrr * y")) == [("E0301", 3)]


# ---- what may be declared --------------------------------------------------------------------------------

RESERVED = ["p", "g", "t", "update", "ndim", "numel", "rows", "cols", "first_step", "pi", "inf"]
HOSTILE = ["__import__", "_x", "__class__", "x" * 61, "x" * 3000, *sorted(keyword.kwlist)]
#: Words of the language itself do not get as far as the checker.
WORDS = {
    "if",
    "else",
    "elif",
    "and",
    "or",
    "not",
    "in",
    "as",
    "with",
    "import",
    "return",
    "def",
    "true",
    "false",
}


@pytest.mark.parametrize("name", [*RESERVED, *sorted(set(HOSTILE) - WORDS)])
@pytest.mark.parametrize(
    "text",
    [
        "optimizer T:\n    hyper:\n        {} = 0.1\n    step:\n        p = p - g\n",
        "optimizer T:\n    hyper:\n        betas = ({}: 0.1, o: 0.2)\n    step:\n        p = p - o * g\n",
        "optimizer T:\n    state:\n        {} = 0\n    step:\n        p = p - g\n",
        "optimizer T:\n    state:\n        m = 0 as {}\n    step:\n        p = p - m\n        m = g\n",
        "optimizer {}:\n    step:\n        p = p - g\n",
        "def {}(x): return x\noptimizer T:\n    step:\n        p = p - g\n",
    ],
    ids=["hyper", "part", "state", "key", "spec", "function"],
)
def test_names_that_cannot_be_declared(name: str, text: str) -> None:
    messages = [m for m in check(text.format(name)).diagnostics if m.is_error]
    assert len(messages) == 1
    assert messages[0].code in ("E0202", "E0101", "E0103")
    assert name in RESERVED or name in keyword.kwlist or messages[0].code == "E0202"
    assert len(messages[0].render()) < 600


@pytest.mark.parametrize(
    "name",
    [
        *("params", "self", "foreach", "maximize", "capturable", "seed", "param_names"),
        *("store", "overwrite_grad", "train_mode", "initial_lr"),
    ],
)
def test_names_that_every_optimizer_has(name: str) -> None:
    text = spec(f"p = p - {name} * g", f"{name} = 0.1")
    assert "generated optimizer" in only(text, "E0202", name).message
    program(spec(f"{name} = 2 * g\np = p - {name}"))


@pytest.mark.parametrize(
    "name", ["step", "params", "param_names", "store", "p_low", "train_value", "m_absmax", "absmax"]
)
def test_keys_that_are_taken(name: str) -> None:
    only(spec("p = p - m\nm = m + g", state=f"m = 0 as {name}"), "E0202", name)
    only(spec(f"p = p - {name}\n{name} = {name} + g", state=f"{name} = 0"), "E0202", name)
    program(spec(f"p = p - {name}\n{name} = {name} + g", state=f"{name} = 0 as buf"))


@pytest.mark.parametrize("name", ["p_low", "train_value", "m_absmax"])
def test_inputs_are_not_called_like_what_is_kept(name: str) -> None:
    text = f"optimizer T:\n    input {name}\n    step:\n        p = p - {name} * g\n"
    assert "cannot name an input" in only(text, "E0202", name).message


@pytest.mark.parametrize("name", ["__import__", "_x", "lambda", "class", "x" * 61, "true"])
def test_names_that_cannot_be_assigned(name: str) -> None:
    only(spec(f"{name} = 2 * g\np = p - g"), "E0202", name)
    if name != "true":
        only(spec(f"{name} = 2 * g\np = p - {name}"), "E0202", name)


@pytest.mark.parametrize("name", ["t", "rows", "first_step", "pi", "inf"])
def test_facts_and_constants_cannot_be_assigned(name: str) -> None:
    only(spec(f"{name} = 2\np = p - {name} * g"), "E0307", name)


def test_hyperparameters_cannot_be_assigned() -> None:
    message = only(spec("lr = lr / t\n" + STEP, LR), "E0306", "lr")
    assert "`lr [host] = ...`" in message.help


def test_names_are_declared_once() -> None:
    assert only(spec("p = p - a * g", "a = 0.1\na = 0.2"), "E0201").span.line == 4
    only(spec("p = p - a * b * g", "betas = (a: 0.1, a: 0.2)\nb = 1.0"), "E0201")
    only(spec("p = p - betas * g", "betas = (betas: 0.1)"), "E0201")
    only(spec("p = p - a", state="a = 0\na = 1"), "E0201")
    message = only(spec("a = a + g\np = p - a", "a = 0.1", "a = 0"), "E0201")
    assert message.message == "`a` is already declared as a hyperparameter"
    only(spec("p = p - g") + spec("p = p + g"), "E0201", "T")
    only("def f(x): return x\ndef f(y): return y\n" + spec("p = p - f(g)"), "E0201", "f")
    only("def f(x, x): return x\n" + spec("p = p - f(g, g)"), "E0201", "x")
    only("def T(x): return x\n" + spec("p = p - T(g)"), "E0201", "T")


def test_built_in_functions_cannot_be_redefined() -> None:
    assert "built-in" in only("def norm(x): return x\n" + spec("p = p - g"), "E0202", "norm").message


def test_parameters_may_be_called_as_in_the_step() -> None:
    text = "def decayed(p, g, t): return g + p / t\n" + spec("p = p - decayed(p, g, t)")
    assert same(run(text), run(spec("p = p - (g + p / t)")))
    only("def f(pi): return pi\n" + spec("p = p - f(g)"), "E0202", "pi")
    only("def f(__x): return __x\n" + spec("p = p - f(g)"), "E0202", "__x")
