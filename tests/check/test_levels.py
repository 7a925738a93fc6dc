"""Levels and shapes: joins, reductions, matrices, and what a state may keep."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from optdsl.check import check_text
from optdsl.ir.text import to_opt
from tests.check.helpers import check, only, program, run, same, spec

HYPER = 'h = 0.5\nk = 2 in [1, 4]\non = true\nmode = "a" in {"a", "b"}'
USE_ALL = '\nif on and k > 1 and mode == "a":\n    p = p - h * g'
#: A value at each level, from coarse to fine.
VALUES = {
    "const": "2",
    "host": "h",
    "group": "norm(g, over=group)",
    "tensor": "norm(g)",
    "rows": "mean(g, over=rows)",
    "cols": "mean(g, over=cols)",
    "element": "g",
    "rows, rows": "g @ g'",
    "cols, cols": "g' @ g",
    "cols, rows": "g'",
    "axes": "gram(g)",
}
ORDER = ["const", "host", "group", "tensor", "rows", "cols", "element"]


def level(value: str) -> str:
    """The level the checker finds for an expression."""
    built = check(spec(f"x = {value}\nout = 1" + USE_ALL, HYPER))
    assert built.program is not None, built.diagnostics[0].render()
    return next(a for a in built.program.body if a.source == "x").expr.type.level_name


@pytest.mark.parametrize("name", VALUES)
def test_every_level_can_be_made(name: str) -> None:
    assert level(VALUES[name]) == name


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations_with_replacement(ORDER, 2)))
def test_a_join_is_as_fine_as_its_parts(a: str, b: str) -> None:
    joined = "element" if {a, b} == {"rows", "cols"} else ORDER[max(ORDER.index(a), ORDER.index(b))]
    assert level(f"{VALUES[a]} + {VALUES[b]}") == joined
    assert level(f"max({VALUES[b]}, {VALUES[a]})") == joined
    assert level(f"{VALUES[a]} < {VALUES[b]}") == joined
    assert level(f"where({VALUES[a]} > 1, {VALUES[b]}, 0)") == joined


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("rows, rows", "cols, cols"),
        ("rows, rows", "element"),
        ("cols, cols", "element"),
        ("cols, rows", "element"),
        *(("axes", other) for other in ("rows", "cols", "element", "rows, rows", "cols, cols", "cols, rows")),
        ("cols, rows", "rows, rows"),
        ("cols, rows", "rows"),
        ("cols, cols", "rows"),
        ("rows, rows", "cols"),
    ],
)
def test_shapes_that_do_not_join(a: str, b: str) -> None:
    message = only(spec(f"x = {VALUES[a]} + {VALUES[b]}\np = p - x", HYPER), "E0405")
    assert f"`{VALUES[a]}`" in message.message
    assert f"`{VALUES[b]}`" in message.message


@pytest.mark.parametrize(
    ("a", "b", "joined"),
    [
        ("rows, rows", "rows", "rows, rows"),
        ("cols, cols", "cols", "cols, cols"),
        ("cols, rows", "host", "cols, rows"),
    ],
)
def test_shapes_that_join(a: str, b: str, joined: str) -> None:
    assert level(f"{VALUES[a]} * ({VALUES[b]})") == joined


@pytest.mark.parametrize(
    "reduction", ["sum", "mean", "norm", "norm1", "norm_inf", "rms", "min", "max", "var", "count"]
)
@pytest.mark.parametrize(
    ("over", "reduced"),
    [("tensor", "tensor"), ("rows", "rows"), ("cols", "cols"), ("group", "group"), ("all", "group")],
)
def test_reductions_of_elements(reduction: str, over: str, reduced: str) -> None:
    assert level(f"{reduction}(g, over={over})") == reduced


def test_reductions_of_coarser_values() -> None:
    assert level("sum(mean(g, over=rows))") == "tensor"
    assert level("sum(mean(g, over=cols))") == "tensor"
    assert level("sum(mean(g, over=rows), over=cols)") == "tensor"
    assert level("sum(mean(g, over=cols), over=rows)") == "tensor"
    assert level("max(norm(g), over=all)") == "group"
    assert level("sum(g @ g', over=rows)") == "rows"
    assert level("dot(g, p)") == "tensor"
    assert level("sum(g > 0)") == "tensor"
    assert level("max(h, 1)") == "host"


@pytest.mark.parametrize("name", ["const", "host", "group"])
@pytest.mark.parametrize("over", ["tensor", "rows", "cols", "group", "all"])
def test_single_numbers_are_not_reduced(name: str, over: str) -> None:
    message = only(spec(f"x = sum({VALUES[name]}, over={over})\np = p - x * g" + USE_ALL, HYPER), "E0403")
    assert f"`{VALUES[name]}`" in message.message


@pytest.mark.parametrize("over", ["tensor", "rows", "cols"])
def test_a_number_per_tensor_is_reduced_over_several_tensors_only(over: str) -> None:
    assert "over=group" in only(spec(f"x = sum(norm(g), over={over})\np = p - x"), "E0403", "norm(g)").help


def test_rows_and_columns_are_reduced_once() -> None:
    only(spec("r = mean(g, over=rows)\np = p - sum(r, over=rows)"), "E0405", "r")
    only(spec("c = mean(g, over=cols)\np = p - sum(c, over=cols)"), "E0405", "c")


def test_what_is_reduced_over_filters_has_one_value_per_element() -> None:
    for name in ("sum", "mean", "norm", "max", "var", "count"):
        assert level(f"{name}(g, over=filter)") == "element"
    assert level("sum(mean(g, over=filter), over=rows)") == "rows"
    only(spec("r = mean(g, over=rows)\np = p - sum(r, over=filter)"), "E0405", "r")
    only(spec("p = p - sum(g @ g', over=filter)"), "E0405", "g @ g'")
    only(spec("p = p - sum(norm(g), over=filter)"), "E0403", "norm(g)")


def test_matrices() -> None:
    assert level("(g @ g') @ g") == "element"
    assert level("g @ (g' @ g)") == "element"
    assert level("newton_schulz(g)") == "element"
    assert level("newton_schulz(g @ g', k)") == "rows, rows"
    assert level("g''") == "element"
    assert "cols is not rows" in only(spec("p = p - g @ g"), "E0405", "g @ g").message
    only(spec("p = p - g @ 2"), "E0405", "2")
    only(spec("p = p - norm(g) @ g"), "E0405", "norm(g)")
    only(spec("p = p - newton_schulz(norm(g))"), "E0405", "norm(g)")
    only(spec("p = p - newton_schulz(mean(g, over=rows))"), "E0405")
    only(spec("p = p - newton_schulz(g, 5.0)"), "E0406", "5.0")
    only(spec("p = p - newton_schulz(g, norm(g))"), "E0406", "norm(g)")
    only(spec("p = p - g'"), "E0405", "p - g'")
    only(spec("g = g @ g'\np = p - g"), "E0405", "g @ g'")
    only(spec("p = p - g\nupdate = g @ g'"), "E0405", "g @ g'")
    only(spec("p = p - bernoulli(g @ g')"), "E0405", "g @ g'")


def test_families_of_matrices() -> None:
    assert level("gram(g) / 2 + h * identity()") == "axes"
    assert level("norm(g) * gram(g) + norm(g, over=group) * identity()") == "axes"
    assert level("where(gram(g) > 0, gram(g), 0)") == "axes"
    assert level("matrix_power(gram(g), -1 / (2 * ndim), h)") == "axes"
    assert level("along_axes(gram(g), g)") == "element"
    assert level("max(gram(g))") == "tensor"
    help = "`gram(x)` and `identity()` make them"
    assert only(spec("p = p - along_axes(g, g)"), "E0405", "g").help == help
    assert only(spec("p = p - along_axes(g @ g', g)"), "E0405", "g @ g'").help == help
    only(spec("p = p - along_axes(gram(g), mean(g, over=rows))"), "E0405", "mean(g, over=rows)")
    only(spec("p = p - along_axes(gram(g), 2)"), "E0405", "2")
    only(spec("p = p - along_axes(gram(norm(g)), g)"), "E0405", "norm(g)")
    only(spec("p = p - along_axes(matrix_power(2, 1, 1), g)"), "E0405", "2")
    assert "exponent" in only(spec("x = matrix_power(gram(g), norm(g), 1)\np = p - sum(x)"), "E0406").message
    assert (
        "eigenvalue" in only(spec("x = matrix_power(gram(g), 1, norm(g))\np = p - sum(x)"), "E0406").message
    )
    only(spec("p = p - sum(gram(g)')"), "E0405", "gram(g)")
    assert "along_axes" in only(spec("p = p - gram(g) @ g"), "E0405").help
    assert "along_axes" in only(spec("p = p - gram(g) @ identity()"), "E0405").help
    assert "along_axes" in only(spec("p = p - gram(g) * g"), "E0405").help
    only(spec("x = sum(gram(g), over=rows)\np = p - x * g"), "E0405")
    only(spec("x = sum(gram(g), over=cols)\np = p - x * g"), "E0405")
    only(spec("p = p - bernoulli(gram(g))"), "E0405", "gram(g)")
    only(spec("p = p - newton_schulz(gram(g))"), "E0405", "gram(g)")
    only(spec("p = p - gram(g)"), "E0405")


def test_states_with_a_matrix_for_each_axis() -> None:
    program(
        spec(
            "s = 0.9 * s + gram(g)\np = p - along_axes(s, g)",
            state="s [axes] = h * identity()",
            hyper="h = 0.5",
        )
    )
    only(spec("s = g\np = p - along_axes(s, g)", state="s [axes] = 0"), "E0402")
    only(spec("s = gram(g)\np = p - s", state="s = 0"), "E0402")


# ---- states ----------------------------------------------------------------------------------------------

STATES = ["host", "group", "tensor", "rows", "cols", "element"]


@pytest.mark.parametrize(("state", "value"), list(itertools.product(STATES, ORDER)))
def test_what_a_state_keeps(state: str, value: str) -> None:
    text = spec(f"s = {VALUES[value]}" + USE_ALL, HYPER, f"s [{state}] = 0")
    finer = ORDER.index(value) > ORDER.index(state) or (state, value) == ("cols", "rows")
    if not finer:
        assert program(text).state("s").type.level_name == state
        return
    message = only(text, "E0402", VALUES[value])
    assert message.message.startswith(
        "`s` keeps one" if state != "host" else "`s` keeps a number known on the host"
    )
    assert ("without brackets" if value == "element" else f"`s [{value}]`") in message.help


def test_the_message_says_which_part_is_too_fine() -> None:
    text = spec("u = 2 * g\nd = d + norm(p) + h * u\np = p - d", "h = 1.0", "d [tensor] = 0")
    message = only(text, "E0402", "d + norm(p) + h * u")
    assert message.help.splitlines()[0] == "`u` is one value per element: line 7 computes it from `g`"
    text = spec("d = d + norm(p)\np = p - d * g", "", "d [host] = 0")
    assert only(text, "E0402").help.splitlines()[0] == "`norm(p)` is one number per tensor"
    text = spec("r = m\np = p - r", "", "m = 0\nr [rows] = 0")
    assert only(text, "E0402").help.splitlines()[0] == "`m` is one value per element: it is a state"
    assert "over=rows" in only(text, "E0402").help


def test_a_condition_is_kept_as_a_number() -> None:
    built = program(spec("m = g > 0\np = p - m", state="m = 0"))
    assert built.results["m"].type.kind.value == "float"
    assert same(run(spec("m = g > 0\np = p - m", state="m = 0")), run(spec("p = p - (1 if g > 0 else 0)")))
    init = program(spec("m = m + 0.0\np = p - m", state="m = g > 0")).state("m").init
    assert init is not None
    assert init.type.kind.value != "bool"


def test_initial_values() -> None:
    built = program(
        spec("p = p - m * n * r", "h = 2.0", "m = g\nn = p * h + numel\nr [rows] = mean(p, over=rows)")
    )
    assert [s.init is not None and s.init.type.level_name for s in built.states] == [
        "element",
        "element",
        "rows",
    ]
    helper = "def twice(x):\n    y = x + x\n    return y * x\n"
    built = program(helper + spec("p = p - m", state="m = twice(p + 1)"))
    assert np.array_equal(
        run(helper + spec("p = p - m", state="m = twice(p + 1)"), 1)[0][0],
        run(spec("p = p - (p + 1 + (p + 1)) * (p + 1)"), 1)[0][0],
    )
    message = only(spec("p = p - m", state="m [tensor] = g"), "E0402", "g")
    assert "it is the gradient" in message.help
    only(spec("p = p - m - n", state="m = 0\nn = m"), "E0408", "m")
    only(spec("p = p - m - n", state="m = n\nn = 0"), "E0408", "n")
    only(spec("p = p - m", state="m = m"), "E0408", "m")
    only(spec("p = p - m", state="m = normal()"), "E0408")
    only(spec("p = p - m", state="m = norm(g, over=all)"), "E0408")
    only(spec("p = p - m", state='m = "l2"'), "E0404")
    only(spec("p = p - m", state="m = nothing"), "E0301", "nothing")
    only(spec("x = g\np = p - m - x", state="m = x"), "E0305", "x")


def test_an_initial_value_stays_small() -> None:
    body = "".join(f"    x{n + 1} = x{n} * y{n} + 1\n    y{n + 1} = y{n} * x{n} - 1\n" for n in range(30))
    helper = f"def f(x0, y0):\n{body}    return x30 + y30\n"
    only(helper + spec("p = p - m", state="m = f(p, g)"), "E0601")


def test_states_with_wrong_declarations_are_one_mistake() -> None:
    only(spec("d = d + norm(g)\nif d > 1:\n    p = p - d", state="d [tensors] = 0"), "E0206", "tensors")
    only(spec("d = d + norm(g)\np = p - d * g", state="d = 0 stored q9"), "E0207", "q9")
    only(spec("p = p - s", state="s [rows, tensor] = 0"), "E0206")


def test_matrix_states() -> None:
    text = spec(
        "l = l + g @ g'\nr = r + g' @ g\np = p - l @ g @ r", state="l [rows, rows] = 0\nr [cols, cols] = 0"
    )
    assert [s.type.level_name for s in program(text).states] == ["rows, rows", "cols, cols"]
    assert program(spec("p = p - m", state="m [rows, cols] = 0")).state("m").type.is_element


# ---- kinds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "marked"),
    [
        ("x = mode + 1", "mode"),
        ("x = -mode", "mode"),
        ("x = norm(mode)", "mode"),
        ("x = exp(mode)", "mode"),
        ("x = mode < 1", "mode"),
        ("x = mode == 1", "mode == 1"),
        ('x = mode == "c"', '"c"'),
        ('x = "c" == mode', '"c"'),
        ('x = mode != "A"', '"A"'),
        ('x = h == "a"', 'h == "a"'),
        ("x = mode", "mode"),
        ('x = "a"', '"a"'),
        ("x = h if on else mode", "mode"),
        ("x = not h", "h"),
        ("x = on and h", "h"),
        ("x = h or on", "h"),
        ("x = g if h else p", "h"),
        ("x = where(h, g, p)", "h"),
        ("x = lerp(mode, g, 0.5)", "mode"),
        ("x = lerp(g, mode, 0.5)", "mode"),
        ("x = clip(g, 0, mode)", "mode"),
        ("x = bernoulli(mode)", "mode"),
        ("x = mode @ g", "mode"),
        ("g = mode", "mode"),
        ("p = mode", "mode"),
    ],
)
def test_operands_of_the_wrong_kind(line: str, marked: str) -> None:
    message = only(
        spec(line + "\np = p - g" + ("\np = p - x" if line[0] == "x" else "") + USE_ALL, HYPER),
        "E0404",
        marked,
    )
    assert message.help


def test_choices_are_compared_with_what_they_may_be() -> None:
    message = only(
        spec('if mode == "tow":\n    p = p - g', 'mode = "one" in {"one", "two"}'), "E0404", '"tow"'
    )
    assert message.help == "did you mean `two`?"
    program(
        spec(
            'if mode == "two" or mode != other:\n    p = p - g',
            'mode = "one" in {"one", "two"}\nother = "one" in {"one"}',
        )
    )


def test_conditions_count_as_numbers_in_arithmetic() -> None:
    assert same(run(spec("p = p - (g > 0) * 2")), run(spec("p = p - (2 if g > 0 else 0)")))
    assert same(run(spec("p = p - mean(g > 0)")), run(spec("p = p - count(g > 0) / numel")))


def test_chained_comparisons() -> None:
    assert same(
        run(spec("p = p - (-1 < g + p <= 0.5)")), run(spec("x = g + p\np = p - (-1 < x and x <= 0.5)"))
    )


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("d [rows] = 0 delay 3", "one value per row"),
        ("d delay 3", "no initial value"),
        ("d = 0 delay 0", "neither a whole number from 1"),
        ("d = 0 delay lr", "neither a whole number from 1"),
        ("d = 0 delay t", "neither a whole number from 1"),
        ("d = 0 delay few", "may be less than 1"),
        ("d = 0 delay first", "neither a whole number from 1"),
    ],
)
def test_delays_that_a_state_cannot_have(state: str, said: str) -> None:
    hyper = "lr = 0.1 in [0, inf)\nfew = 2 in [0, 9]\npair = (first: 1, second: 2) in [1, 9]"
    step = f"d = {'mean(g, over=rows)' if 'rows' in state else 'g'}\np = p - lr * few * first * second * d"
    message = only(spec(step, hyper, state), "E0210")
    assert re.search(said, message.message)


def test_levels_of_inputs() -> None:
    text = "optimizer T:\n    input x{level}\n    step:\n        p = p - x * g\n"
    for level, wanted in (("", "element"), (" [element]", "element"), (" [group]", "group")):
        made = program(text.format(level=level))
        assert [(s.given, s.type.level_name) for s in made.states] == [(True, wanted)]
        again = check_text(to_opt(made)).require()
        assert again.states == made.states
    for level in ("tensor", "host", "rows", "all"):
        message = only(text.format(level=f" [{level}]"), "E0206", level)
        assert "`[group]` is one number for all" in message.help
    branch = "optimizer T:\n    input x [group]\n    step:\n        if x > 0: p = p - g\n"
    assert "one number per parameter group" in only(branch, "E0401", "x > 0").message
    head = "optimizer T:\n    input x [group]\n    state:\n        d [host] = 0\n"
    only(head + "    step:\n        d = x\n        p = p - d * g\n", "E0402", "x")
