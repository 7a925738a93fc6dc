"""`use`: bindings, names, gradients, initial values, and `update` in all its places."""

from __future__ import annotations

import numpy as np
import pytest

from optdsl import driver
from tests.check.helpers import check, found, only, program, run, same, spec

LR = "lr = 0.1 in (0, inf)"
INNER = spec("m = mu * m + g\np = p - lr * m", f"{LR}\nmu = 0.9 in [0, 1)", "m = 0 as buf", name="Inner")
BETAS = """
optimizer Adamish:
    hyper:
        lr = 0.1 in (0, inf)
        betas = (beta1: 0.9, beta2: 0.99) in [0, 1)
    state:
        m = 0
        v = 0
    step:
        m = lerp(g, m, beta1)
        v = lerp(g^2, v, beta2)
        p = p - lr * m / (sqrt(v) + 1e-3)
"""
HALVE = spec("update = 0.5 * update", name="Halve", kind="transform")
CLIP = spec("g = g * min(1, c / norm(g))", "c = 0.3 in (0, inf)", name="Clip", kind="transform")


def hypers(text: str) -> dict[str, object]:
    return {h.name: h.default for h in program(text).hypers}


def keys(text: str) -> list[str]:
    return [state.key for state in program(text).states]


# ---- the same as by hand ---------------------------------------------------------------------------------


def test_a_used_optimizer_is_that_optimizer() -> None:
    used = INNER + spec("", uses="use Inner()")
    assert same(run(used), run(INNER))
    assert hypers(used) == {"lr": 0.1, "mu": 0.9}
    assert keys(used) == ["buf"]


def test_a_transform_above_changes_the_gradient() -> None:
    used = INNER + CLIP + spec("", uses="use Clip(c = 0.2)\nuse Inner()")
    by_hand = spec("g = g * min(1, 0.2 / norm(g))\nm = 0.9 * m + g\np = p - 0.1 * m", state="m = 0")
    assert same(run(used), run(by_hand))
    assert hypers(used) == {"c": 0.2, "lr": 0.1, "mu": 0.9}


def test_uses_run_in_front_of_the_step() -> None:
    text = INNER + spec("p = p * 0.5", uses="use Inner()")
    assert same(run(text), run(spec("m = 0.9 * m + g\np = p - 0.1 * m\np = p * 0.5", state="m = 0")))


def test_a_used_optimizer_has_a_gradient_of_its_own() -> None:
    scaled = spec("g = 2 * g\np = p - g", name="Inner")
    text = scaled + spec("use Inner()\np = p - g")
    assert same(run(text), run(spec("p = p - 2 * g\np = p - g")))


def test_a_transform_shares_the_gradient() -> None:
    text = CLIP + spec("use Clip()\np = p - g")
    assert same(run(text), run(spec("g = g * min(1, 0.3 / norm(g))\np = p - g")))


def test_with_g_feeds_another_gradient() -> None:
    text = INNER + spec("use Inner() with g = sign(g)\np = p - 0.01 * g")
    by_hand = spec("m = 0.9 * m + sign(g)\np = p - 0.1 * m\np = p - 0.01 * g", state="m = 0")
    assert same(run(text), run(by_hand))


def test_states_of_a_spec_used_in_a_branch_are_kept() -> None:
    text = INNER + "optimizer T:\n    step when ndim >= 2:\n        use Inner()\n"
    text += "    step otherwise:\n        use Inner() as other\n"
    assert same(run(text), run(INNER))
    assert set(program(text).results) == {"p", "m", "other_m"}


def test_a_spec_used_now_and_then_keeps_its_states_in_between() -> None:
    text = INNER + spec("every 2:\n    use Inner()")
    by_hand = spec("every 2:\n    m = 0.9 * m + g\n    p = p - 0.1 * m", state="m = 0")
    assert same(run(text, 5), run(by_hand, 5))


def test_uses_nest() -> None:
    text = INNER + spec("", name="Mid", uses="use Inner(mu = 0.5)") + spec("", uses="use Mid()")
    assert same(run(text), run(INNER, hypers={"mu": 0.5}))


# ---- bindings --------------------------------------------------------------------------------------------


def test_a_literal_is_a_new_default() -> None:
    text = INNER + spec("", uses="use Inner(lr = 0.2, mu = 0)")
    assert hypers(text) == {"lr": 0.2, "mu": 0.0}
    assert isinstance(hypers(text)["mu"], float)


def test_an_expression_replaces_the_hyperparameter() -> None:
    text = INNER + spec("use Inner(lr = lr / sqrt(t))", LR)
    assert hypers(text) == {"lr": 0.1, "mu": 0.9}
    assert same(run(text), run(spec("m = 0.9 * m + g\np = p - 0.1 / sqrt(t) * m", state="m = 0")))


def test_a_hyperparameter_is_passed_on() -> None:
    text = INNER + spec("use Inner(lr = lr)", LR)
    assert hypers(text) == {"lr": 0.1, "mu": 0.9}
    assert same(run(text, hypers={"lr": 0.3}), run(INNER, hypers={"lr": 0.3}))


def test_a_float_may_be_bound_to_a_value_per_element() -> None:
    text = INNER + spec("use Inner(lr = 0.1 * abs(p))")
    assert same(run(text), run(spec("m = 0.9 * m + g\np = p - 0.1 * abs(p) * m", state="m = 0")))


def test_a_tuple_is_passed_on_whole() -> None:
    own = f"{LR}\nbetas = (a: 0.5, b: 0.6) in [0, 1)"
    text = BETAS + spec("use Adamish(lr = lr, betas = betas)", own)
    assert [(h.name, h.argument) for h in program(text).hypers] == [
        ("lr", "lr"),
        ("a", "betas"),
        ("b", "betas"),
    ]
    assert same(run(text), run(BETAS, hypers={"betas": (0.5, 0.6)}))


def test_a_tuple_is_bound_to_values() -> None:
    text = BETAS + spec("use Adamish(betas = (0.5, 0.6))")
    assert hypers(text) == {"lr": 0.1, "beta1": 0.5, "beta2": 0.6}
    assert same(run(text), run(BETAS, hypers={"betas": (0.5, 0.6)}))


def test_a_tuple_bound_in_part_falls_apart() -> None:
    text = BETAS + spec("use Adamish(betas = (0.5, 1 - lr))", LR)
    built = program(BETAS + spec("use Adamish(lr = lr, betas = (0.5, 1 - lr))", LR))
    assert [(h.name, h.argument) for h in built.hypers] == [("lr", "lr"), ("beta1", "beta1")]
    assert same(run(text), run(BETAS, hypers={"betas": (0.5, 0.9)}))


def test_a_part_is_bound_by_itself() -> None:
    text = BETAS + spec("use Adamish(beta2 = 0.5)")
    assert hypers(text) == {"lr": 0.1, "beta1": 0.9, "beta2": 0.5}
    assert [h.argument for h in program(text).hypers] == ["lr", "betas", "betas"]


def test_a_fixed_hyperparameter_is_no_argument() -> None:
    text = BETAS + spec("use Adamish(fixed betas = (0.5, 0.6), fixed lr = 1)")
    assert hypers(text) == {}
    assert same(run(text), run(BETAS, hypers={"betas": (0.5, 0.6), "lr": 1.0}))
    text = BETAS + spec("use Adamish(fixed beta2 = 0.6)")
    assert [(h.name, h.argument) for h in program(text).hypers] == [("lr", "lr"), ("beta1", "beta1")]


def test_what_is_fixed_settles_branches_and_states() -> None:
    inner = spec(
        'if mode == "heavy":\n    m = 0.9 * m + g\n    p = p - m\nelse:\n    repeat n: p = p - g',
        'mode = "heavy" in {"heavy", "plain"}\nn = 2 in [1, 4]',
        "m = 0",
        name="Inner",
    )
    text = inner + spec('use Inner(fixed mode = "plain", fixed n = 3)')
    made = driver.simplify(program(text))
    assert (made.hypers, made.states) == ((), ())
    assert same(run(text), run(spec("p = p - g\np = p - g\np = p - g")))
    text = inner + spec('use Inner(fixed mode = "heavy")')
    assert [state.name for state in driver.simplify(program(text)).states] == ["m"]


def test_a_hyperparameter_may_be_called_fixed() -> None:
    inner = spec("p = p - fixed * g", "fixed = 0.1", name="Inner")
    assert hypers(inner + spec("use Inner(fixed = 0.2)")) == {"fixed": 0.2}
    assert hypers(inner + spec("use Inner(fixed fixed = 0.2)")) == {}


@pytest.mark.parametrize(
    ("binding", "code", "marked"),
    [
        ("fixed lr = -1.0", "E0203", "-1.0"),
        ("fixed betas = (0.9, 1.0)", "E0203", "1.0"),
        ("fixed lr = true", "E0404", "true"),
        ("fixed lr = own", "E0509", "own"),
        ("fixed lr = 0.1, lr = 0.2", "E0509", "lr = 0.2"),
        ("fixed learn = 0.1", "E0504", "fixed learn = 0.1"),
        ("fixed betas = 0.9", "E0303", "fixed betas = 0.9"),
    ],
)
def test_what_cannot_be_fixed(binding: str, code: str, marked: str) -> None:
    message = only(BETAS + spec(f"use Adamish({binding})\np = p * own", "own = 0.1"), code, marked)
    assert message.help
    assert "default" not in message.message


def test_a_choice_is_passed_on() -> None:
    inner = spec(
        'if mode == "l2":\n    g = g + 0.1 * p\np = p - g', 'mode = "l2" in {"l2", "none"}', name="Inner"
    )
    text = inner + spec("use Inner(mode = mode)", 'mode = "none" in {"none", "l2"}')
    assert same(run(text), run(inner, hypers={"mode": "none"}))
    text = inner + spec("use Inner(mode = mode)", 'mode = "none" in {"none", "decoupled"}')
    assert '"decoupled", which' in only(text, "E0509", "mode").message


@pytest.mark.parametrize(
    ("binding", "code", "marked"),
    [
        ("learn = 0.1", "E0504", "learn = 0.1"),
        ("lr = 0.1, lr = 0.2", "E0509", "lr = 0.2"),
        ("beta1 = 0.1, betas = (0.1, 0.2)", "E0509", "betas = (0.1, 0.2)"),
        ("betas = 0.9", "E0303", "betas = 0.9"),
        ("betas = (0.9, 0.9, 0.9)", "E0303", "betas = (0.9, 0.9, 0.9)"),
        ("betas = own", "E0303", "betas = own"),
        ("betas = three", "E0303", "betas = three"),
        ("betas = nothing", "E0301", "nothing"),
        ("lr = (0.1, 0.2)", "E0303", "lr = (0.1, 0.2)"),
        ("lr = three", "E0404", "three"),
        ("lr = nothing", "E0301", "nothing"),
        ("lr = -1.0", "E0203", "-1.0"),
        ("betas = (0.9, 1.0)", "E0203", "1.0"),
        ("lr = true", "E0404", "true"),
        ('lr = "l2"', "E0404", '"l2"'),
        ("lr = own > 0", "E0509", "own > 0"),
    ],
)
def test_bindings_that_cannot_be_made(binding: str, code: str, marked: str) -> None:
    own = "own = 0.1\nthree = (a: 0.1, b: 0.2, c: 0.3)"
    text = BETAS + spec(f"use Adamish({binding})\np = p * own * a * b * c", own)
    only(text, code, marked)


def test_what_the_host_must_know_is_bound_to_what_it_knows() -> None:
    inner = spec("if on:\n    repeat n:\n        p = p - g", "on = true\nn = 2 in [1, 4]", name="Inner")
    message = only(inner + spec("use Inner(on = norm(g) > 1)"), "E0509", "norm(g) > 1")
    assert "one number per tensor" in message.message
    only(inner + spec("use Inner(n = 2.0)"), "E0404", "2.0")
    only(inner + spec("use Inner(n = t / 2)"), "E0509", "t / 2")
    text = inner + spec("use Inner(on = t > 1, n = min(t, 3))")
    assert same(run(text), run(spec("if t > 1:\n    repeat min(t, 3):\n        p = p - g")))


def test_no_hyperparameters_to_bind() -> None:
    text = spec("p = p - g", name="Bare") + spec("use Bare(lr = 1)")
    assert only(text, "E0504").help == "it has none"


# ---- names -----------------------------------------------------------------------------------------------


def test_a_taken_name_gets_the_name_of_its_spec_in_front() -> None:
    text = INNER + BETAS + spec("p = p - lr * g", LR, uses="use Inner()\nuse Adamish()")
    assert [h.name for h in program(text).hypers] == ["lr", "inner_lr", "mu", "adamish_lr", "beta1", "beta2"]
    assert [(s.name, s.key) for s in program(text).states] == [("m", "buf"), ("adamish_m", "m"), ("v", "v")]


def test_a_prefix_can_be_chosen() -> None:
    text = INNER + spec("", uses="use Inner()\nuse Inner() as slow")
    assert list(hypers(text)) == ["lr", "mu", "slow_lr", "slow_mu"]
    assert keys(text) == ["buf", "slow_buf"]
    text = INNER + spec("", uses="use Inner()\nuse Inner()\nuse Inner()")
    message = only(text, "E0508", "Inner")
    assert message.span.line == text.rstrip().count("\n") + 1
    assert "inner_lr" in message.message
    assert "as NAME" in message.help


def test_a_tuple_is_renamed_whole() -> None:
    own = f"{LR}\nbetas = (beta: 0.1, gamma: 0.2)"
    text = BETAS + spec("use Adamish(lr = lr)\np = p * beta * gamma", own)
    names = [(h.name, h.argument) for h in program(text).hypers]
    assert names[3:] == [("adamish_beta1", "adamish_betas"), ("adamish_beta2", "adamish_betas")]


def test_locals_of_a_used_spec_are_its_own() -> None:
    inner = spec("u = 2 * g\np = p - u", name="Inner")
    assert same(run(inner + spec("u = 0.1 * g\nuse Inner()\np = p - u")), run(spec("p = p - 2.1 * g")))
    only(inner + spec("use Inner()\np = p - u"), "E0301", "u")


def test_a_used_spec_does_not_see_its_user() -> None:
    text = spec("p = p - lr * g", name="Inner") + spec("use Inner()\np = p - lr * g", LR)
    assert only(text, "E0301", "lr").span.line == 3


def test_states_of_two_specs_never_share_a_key() -> None:
    text = INNER + spec(
        "use Inner()\nbuf = buf + g\nm = m + g\np = p - buf - m", state="buf = 0\nm = 0 as inner_buf"
    )
    assert keys(text) == ["buf", "inner_buf", "inner_buf_2"]


def test_the_key_of_a_state_is_no_hyperparameter() -> None:
    message = only(spec("s = s + g\np = p - lr * s", LR, "s = 0 as lr"), "E0208", "lr")
    assert "hyperparameter" in message.message
    text = INNER + spec("use Inner()\ns = s + g\np = p - s", state="s = 0 as mu")
    assert list(hypers(text)) == ["lr", "inner_mu"]


def test_a_prefix_makes_no_name_that_every_optimizer_has() -> None:
    """Schedulers keep the rate that they began with as `initial_lr`."""
    text = INNER + spec("p = p - lr * g", LR, uses="use Inner() as initial")
    message = only(text, "E0508", "Inner")
    assert "`initial_lr`, which every optimizer has already" in message.message
    inner = spec("value = value + g\np = p - value", state="value = 0", name="Inner")
    text = inner + spec("p = p - value\nvalue = value + g", state="value = 0", uses="use Inner() as train")
    assert keys(text) == ["value", "train_value_2"]


@pytest.mark.parametrize("alias", ["__import__", "class", "x" * 100, "p"])
def test_hostile_prefixes(alias: str) -> None:
    assert len(only(INNER + spec("", uses=f"use Inner() as {alias}"), "E0202").message) < 200


# ---- which spec ------------------------------------------------------------------------------------------


def test_circles() -> None:
    assert "T -> T" in only(spec("use T()"), "E0503", "T").message
    text = spec("use B()", name="A") + spec("use A()", name="B")
    assert "A -> B -> A" in only(text, "E0503", "A").message


def test_an_unknown_spec_is_one_mistake() -> None:
    message = only(HALVE + spec("use Innr()\nupdate = 2 * update\nuse Halve()") + INNER, "E0501", "Innr")
    assert message.help == "did you mean `Inner`?"
    only(spec("use inner()") + INNER, "E0501", "inner")


def test_use_stands_in_steps_only() -> None:
    only("def f(x):\n    use Inner()\n    return x\n" + INNER, "E0103")
    message = only(INNER + spec("repeat 2:\n    use Inner()"), "E0103", "use Inner()")
    assert "states of its own" in message.message


def test_too_many_specs() -> None:
    levels = [spec("use L0() as a\nuse L0() as b", name="L1"), spec("p = p - g", name="L0")]
    for n in range(2, 9):
        levels.append(spec(f"use L{n - 1}()\nuse L{n - 1}()", name=f"L{n}"))
    assert "specs" in only("".join(levels), "E0601").message
    chain = spec("p = p - g", name="L0") + "".join(
        spec(f"use L{n - 1}()", name=f"L{n}") for n in range(1, 16)
    )
    assert {code for code, _ in found(chain)} == {"E0008"}


# ---- gradients given -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "marked"),
    [
        ("use Inner() with h = g", "E0509", "h"),
        ("use Clip() with g = 2 * g", "E0509", "g"),
        ("use Inner() with g = nothing", "E0301", "nothing"),
        ("use Inner() with g = g @ g'", "E0405", "g @ g'"),
        ('use Inner() with g = "l2"', "E0405", '"l2"'),
    ],
)
def test_gradients_that_cannot_be_given(line: str, code: str, marked: str) -> None:
    only(INNER + CLIP + spec(f"{line}\np = p - 0.1 * g"), code, marked)


# ---- initial values of used specs ------------------------------------------------------------------------

FROM_G = spec("m = 0.5 * m + g\np = p - m", state="m = g", name="FromG")
FROM_P = spec("z = z - 0.1 * g\np = lerp(p, z, 0.5)", state="z = p", name="FromP")


def test_a_state_starts_from_the_gradient_that_its_spec_sees() -> None:
    by_hand = spec("g = 2 * g\nif first_step:\n    m = g\nm = 0.5 * m + g\np = p - m", state="m = 0")
    assert same(run(FROM_G + spec("g = 2 * g\nuse FromG()")), run(by_hand))
    assert same(run(FROM_G + spec("use FromG() with g = 2 * g")), run(by_hand))
    assert same(run(FROM_G + spec("use FromG()")), run(FROM_G))


def test_a_state_starts_from_the_parameter_as_it_is_before_the_step() -> None:
    by_hand = spec("p = 0.9 * p\nz = z - 0.1 * g\np = lerp(p, z, 0.5)", state="z = p")
    assert same(run(FROM_P + spec("p = 0.9 * p\nuse FromP()")), run(by_hand))


def test_a_state_starts_from_the_first_step_wherever_its_spec_is_used() -> None:
    text = FROM_G + spec("g = 2 * g\nevery 2 offset 1:\n    use FromG()")
    by_hand = spec("g = 2 * g\nevery 2 offset 1:\n    m = 0.5 * m + g\n    p = p - m", state="m = 2 * g")
    assert same(run(text), run(by_hand))


def test_a_state_that_only_the_step_knows_how_to_start() -> None:
    outer = "n = n + norm(g)\ng = g / n"
    text = FROM_G + spec(
        f"{outer}\nif ndim > 1:\n    use FromG()\nelse:\n    use FromG()", state="n [tensor] = 1"
    )
    by_hand = f"{outer}\nif first_step:\n    m = g\nm = 0.5 * m + g\np = p - m"
    assert same(run(text), run(spec(by_hand, state="n [tensor] = 1\nm = 0")))
    message = only(
        FROM_G + spec(f"{outer}\nevery 2:\n    use FromG()", state="n [tensor] = 1"), "E0408", "FromG"
    )
    assert "`m`" in message.message
    drawn = "g = g * (1 + norm(g, over=all))"
    by_hand = f"{drawn}\nif first_step:\n    m = g\nm = 0.5 * m + g\np = p - m"
    assert same(run(FROM_G + spec(f"{drawn}\nuse FromG()")), run(spec(by_hand, state="m = 0")))


def test_a_state_starts_from_a_bound_hyperparameter() -> None:
    inner = spec("v = v + lr\np = p - v * g", "lr = 0.1", "v = lr", name="Inner")
    by_hand = spec("rate = 0.5 * lr\nv = v + rate\np = p - v * g", LR, "v = 0.5 * lr")
    assert same(run(inner + spec("use Inner(lr = 0.5 * lr)", LR)), run(by_hand))
    assert same(run(inner + spec("every 1:\n    use Inner(lr = 0.5 * lr)", LR)), run(by_hand))
    by_hand = spec("n = norm(g)\nv = v + n\np = p - v * g", state="v = norm(g)")
    text = inner.replace("v = lr", "v [tensor] = lr") + spec("n = norm(g)\nuse Inner(lr = n)")
    assert same(run(text), run(by_hand))


# ---- update ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "by_hand"),
    [
        ("p = p - a\nupdate = 2 * update", "p = p - 2 * a"),
        ("p = p + a\nupdate = 2 * update", "p = p + 2 * a"),
        ("p = a + p\nupdate = 2 * update", "p = p + 2 * a"),
        ("p = p - a - b\nupdate = 2 * update", "p = p - 2 * (a + b)"),
        ("p = p - a + b\nupdate = 2 * update", "p = p - 2 * (a - b)"),
        ("p = p + a + b\nupdate = 2 * update", "p = p + 2 * (a + b)"),
        ("p = 0.5 * p\nupdate = 3 * update", "p = p - 1.5 * p"),
        ("p = a - p\nupdate = 2 * update", "p = p - 2 * (2 * p - a)"),
        ("p = lerp(p, a, 0.5)\nupdate = 2 * update", "p = a"),
        ("p = p\nupdate = update + a", "p = p - a"),
        ("p = a\nupdate = 0 * update", "p = p"),
        ("p = p - a\np = p - b\nupdate = 2 * update", "p = p - a - 2 * b"),
        ("p = 0.5 * p\np = p - b\nupdate = 2 * update", "p = 0.5 * p - 2 * b"),
        ("p = p - a\nupdate = 2 * update\nupdate = update + b", "p = p - 2 * a - b"),
        ("p = p - a\nx = update\np = p - b\nupdate = update + x", "p = p - a - b - a"),
        ("p = p - a\nupdate = 2 * update\np = p - b\nupdate = 3 * update", "p = p - 2 * a - 3 * b"),
        ("p = p - a\nif flag:\n    update = 2 * update", "p = p - (2 * a if flag else a)"),
        (
            "p = p - a\nif not flag:\n    update = 2 * update\nupdate = 3 * update",
            "p = p - 3 * (a if flag else 2 * a)",
        ),
        (
            "if flag:\n    p = p - a\nelse:\n    p = p - b\nupdate = 2 * update",
            "p = p - 2 * (a if flag else b)",
        ),
        ("if flag:\n    p = p - a\nelse:\n    p = p - a\nupdate = 2 * update", "p = p - 2 * a"),
        ("if flag:\n    p = p - a\nupdate = 2 * update", "p = p - (2 * a if flag else 0)"),
        ("if not flag:\n    p = p - a\nupdate = update + b", "p = p - b - (0 if flag else a)"),
        ("p = p - b\nif flag:\n    p = p - a\nupdate = 2 * update", "p = p - (b + 2 * a if flag else 2 * b)"),
        (
            "if flag:\n    p = p - a\nelse:\n    if t > 1:\n        p = p - b\nupdate = 2 * update",
            "p = p - 2 * (a if flag else b if t > 1 else 0 * a)",
        ),
        (
            "if flag:\n    p = p - a\n    update = 2 * update\nelse:\n    p = p - a\nupdate = update / 2",
            "p = p - (a if flag else a / 2)",
        ),
        ("every 2:\n    p = p - a\nupdate = 2 * update", "p = p - (2 * a if mod(t, 2) == 1 else 0 * a)"),
        ("repeat 3:\n    p = p - a\nupdate = 2 * update", "p = p - 4 * a"),
        ("repeat n:\n    p = p - a\nupdate = 2 * update", "p = p - (n + 1) * a"),
        ("repeat 2:\n    p = p - a\n    update = 2 * update", "p = p - 4 * a"),
        ("p = p - a\nupdate = update > 0", "p = p - (1 if a > 0 else 0)"),
        ("p = p - (g > 0)\nupdate = 2 * update", "p = p - (2 if g > 0 else 0)"),
        ("p = p - a\nupdate = 1", "p = p - 1"),
    ],
)
@pytest.mark.parametrize("flag", [True, False])
def test_update(step: str, by_hand: str, flag: bool) -> None:
    hyper = "flag = true\nn = 2 in [1, 3]"
    lines = "a = 0.1 * g\nb = 0.01 * sin(g)\n"

    def result(text: str) -> list[list[np.ndarray]]:
        uses_all = "\nif flag and n > 2:\n    p = p - a - b"
        return run(spec(lines + text + uses_all, hyper), hypers={"flag": flag})

    assert same(result(step), result(by_hand))


def test_update_of_a_used_optimizer() -> None:
    text = INNER + HALVE + spec("", uses="use Inner()\nuse Halve()")
    assert same(run(text), run(spec("m = 0.9 * m + g\np = p - 0.05 * m", state="m = 0")))
    text = INNER + HALVE + spec("", uses="use Inner()\nuse Halve()\nuse Halve()")
    assert same(run(text), run(spec("m = 0.9 * m + g\np = p - 0.025 * m", state="m = 0")))


def test_update_names_the_subtrahend_itself() -> None:
    body = program(spec("p = p - 0.1 * g\nupdate = update * (update * g > 0)")).body
    assert [a.name for a in body] == ["update.1", "p.1", "update.2", "p.2"]
    body = program(spec("u = 0.1 * g\np = p - u\nupdate = 2 * update")).body
    assert [a.name for a in body] == ["u.1", "p.1", "update.1", "p.2"]


def test_update_before_there_is_one() -> None:
    assert only(spec("update = 2 * update\np = p - g"), "E0506", "update").span.column == 22
    only(spec("x = norm(update)\np = p - x * g"), "E0506", "update")
    only(spec("update = g"), "E0506", "update")
    message = only(INNER + HALVE + spec("", uses="use Halve()\nuse Inner()"), "E0506", "Halve")
    assert message.span.line == found(INNER + HALVE + spec("", uses="use Halve()\nuse Inner()"))[0][1]


def test_a_transform_of_a_transform_of_update() -> None:
    outer = spec("", name="Outer", kind="transform", uses="use Halve()")
    assert not check(HALVE + outer).diagnostics
    text = INNER + HALVE + outer + spec("", uses="use Inner()\nuse Outer()")
    assert same(run(text), run(spec("m = 0.9 * m + g\np = p - 0.05 * m", state="m = 0")))


def test_update_is_unknown_to_functions_and_initial_values() -> None:
    only("def f(x): return x * update\n" + spec("p = p - f(g)"), "E0301", "update")
    only(spec("p = p - m\nm = m + g", state="m = update"), "E0408", "update")
