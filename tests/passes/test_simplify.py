"""The simplifier: the same bits where it says so, the same up to rounding elsewhere, and never more work."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optdsl.check import check_text
from optdsl.core import types as ty
from optdsl.core.types import Kind, Level
from optdsl.ir.expr import Call, Const, Expr, Var, as_number, call, const, is_joint, transform, var, walk
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.numpy_ops import NUMPY
from optdsl.ir.program import Assign, Hyper, Program, State
from optdsl.ir.text import expression
from optdsl.ir.verify import verify
from optdsl.passes.cost import cost
from optdsl.passes.evaluate import evaluate
from optdsl.passes.lower import lower
from optdsl.passes.rules import RULES, rewrite
from optdsl.passes.simplify import apply_rules, drop_dead, meet, propagate, settle, share, simplify
from tests import fuzz

Pass = Callable[[Program], Program]

PASSES: dict[str, Pass] = {
    "rules": lambda program: apply_rules(program, exact_only=True),
    "settle": settle,
    "propagate": propagate,
    "drop_dead": drop_dead,
    "meet": meet,
    "share": share,
}
BY_NAME = {rule.name: rule for rule in RULES}

P, G = var("p", ty.element()), var("g", ty.element())
FLAG = Hyper("flag", "flag", Kind.BOOL, True)
FLAGGED = var("flag", ty.host(Kind.BOOL))

# ---- random programs --------------------------------------------------------------------------------------


def dtype_of(seed: int) -> type[np.floating]:
    return np.float32 if seed % 3 == 0 else np.float64


def options_of(seed: int) -> dict[str, Any]:
    """In which precision and for which parameters programs run."""
    dtype = np.float32 if seed % 3 == 0 else np.float64
    return {"steps": 2, "dtype": dtype, "shapes": fuzz.shapes(seed)}


def assert_same(seed: int, before: Program, after: Program) -> None:
    """Both programs leave the same bits."""
    with fuzz.about(seed, before, after):
        if before.body != after.body or before.results != after.results:
            options = options_of(seed)
            left = fuzz.run(before, seed, fuzz.hostile, **options)
            fuzz.assert_same_bits(left, fuzz.run(after, seed, fuzz.hostile, **options))


def test_exact_simplification_keeps_every_bit() -> None:
    for seed, program in fuzz.programs(300):
        with fuzz.about(seed, program):
            short = verify(simplify(program, exact_only=True), "simplify")
        assert_same(seed, program, short)


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_alone_keeps_every_bit(name: str) -> None:
    for seed, program in fuzz.programs(60):
        with fuzz.about(seed, program):
            changed = verify(PASSES[name](program), name)
            assert cost(changed).device_key <= cost(program).device_key
        assert_same(seed, program, changed)


def test_passes_in_any_order_make_valid_programs() -> None:
    orders = list(itertools.permutations(PASSES, 3))
    for seed, program in fuzz.programs(150):
        order = orders[seed % len(orders)]
        changed = program
        for name in order:
            with fuzz.about(seed, changed):
                changed = verify(PASSES[name](changed), " then ".join(order))


def test_full_simplification_agrees_up_to_rounding() -> None:
    """The tolerance comes from the program itself: from runs in which every operation is off by some ulps."""
    compared = 0
    for seed, program in fuzz.programs(400):
        with fuzz.about(seed, program):
            exact, full = simplify(program, exact_only=True), verify(simplify(program), "simplify")
        if full.body == exact.body and full.results == exact.results:
            continue
        compared += 1
        options = options_of(seed) | {"numbers": (fuzz.ordinary, fuzz.hostile)[compared % 2]}
        with fuzz.about(seed, exact, full):
            before = fuzz.run(exact, seed, **options)
            spreads = fuzz.spread(exact, seed, 3, **options)
            fuzz.assert_agree(before, fuzz.run(full, seed, **options), spreads)
    assert compared >= 10


def test_simplification_is_idempotent_and_never_adds_work() -> None:
    for seed, program in fuzz.programs(300):
        for exact_only in (True, False):
            short = simplify(program, exact_only)
            with fuzz.about(seed, program, short):
                assert simplify(short, exact_only) == short
                assert cost(short).device_key <= cost(program).device_key
                counts = operations(short), operations(program)
                for level in (Level.ARRAY, Level.TENSOR, Level.GROUP):
                    assert counts[0][level] <= counts[1][level], level.name
                if exact_only:
                    assert counts[0][Level.HOST] <= counts[1][Level.HOST]


def operations(program: Program) -> Counter[Level]:
    """How many operators each level has; one that occurs twice in an assignment counts once."""
    found: Counter[Level] = Counter()
    for expr in [assign.expr for assign in drop_dead(program).body] + list(program.results.values()):
        found.update(node.type.level for node in walk(expr) if isinstance(node, Call))
    return found


def test_names_stay_unique_however_often_it_runs() -> None:
    """Names of shared values must not collide with those that an earlier round left."""
    for seed, program in fuzz.programs(60):
        changed = program
        with fuzz.about(seed, program):
            for name in itertools.islice(itertools.cycle(("share", "propagate", "rules", "drop_dead")), 12):
                changed = verify(PASSES[name](changed), name)


def test_lowering_means_the_same() -> None:
    for seed, program in fuzz.programs(100):
        for each in (program, simplify(program)):
            with fuzz.about(seed, each):
                low = verify(lower(each), "lower")
                for assign in low.body:
                    assert not [n for n in walk(assign.expr) if is_joint(n) and n is not assign.expr]
            assert_same(seed, each, low)


# ---- rules ------------------------------------------------------------------------------------------------

HEAD = """
optimizer T:
    hyper:
        h = 0.3
        k = 1.7
        n = 3 in [1, 9]
        flag = true
        mode = "a" in {"a", "b"}
    state:
        m = p * g
        r [rows] = mean(g, over=rows)
        s [tensor] = mean(p)
        q [host] = 0.25
    step:
"""


def program_of(step: str) -> Program:
    text = HEAD + textwrap.indent(textwrap.dedent(step).strip(), " " * 8) + "\n"
    return verify(check_text(text).require())


def expression_of(text: str) -> Expr:
    """The expression that `text` stands for."""
    program = program_of(f"u = {text}\np = p + g")
    return next(assign.expr for assign in program.body if assign.source == "u")


#: (rule, before, after): what each rule does alone.
MATCHES = [
    ("fold", "2.0 + 3.0", "5.0"),
    ("fold", "2 * 3 - 1", "5"),
    ("fold", "7 / 2", "3.5"),
    ("fold", "1 / 0.0", "inf"),
    ("fold", "-1 / 0.0", "-inf"),
    ("fold", "1 / -0.0", "-inf"),
    ("fold", "0.0 / 0", "inf - inf"),
    ("fold", "sqrt(-1.0)", "inf - inf"),
    ("fold", "sqrt(-0.0)", "-0.0"),
    ("fold", "ceil(-0.3)", "-0.0"),
    ("fold", "round(-0.5)", "-0.0"),
    ("fold", "floor(-0.0)", "-0.0"),
    ("fold", "round(2.5)", "2.0"),
    ("fold", "floor(inf)", "inf"),
    ("fold", "abs(-3)", "3"),
    ("fold", "sign(-0.0)", "0.0"),
    ("fold", "sign(-7)", "-1"),
    ("fold", "max(inf, inf - inf)", "inf - inf"),
    ("fold", "min(2, 3.5)", "2.0"),
    ("fold", "nan_to_num(inf)", "1.7976931348623157e+308"),
    ("fold", "nan_to_num(inf - inf)", "0.0"),
    ("fold", "isfinite(inf)", "false"),
    ("fold", "2 < 3 and 1.5 != 1", "true"),
    ("fold", "not (inf - inf == inf - inf)", "true"),
    ("fold", '"a" == "b"', "false"),
    ("fold", "g * (2 + 3)", "g * 5"),
    ("fold_functions", "exp(0.0)", "1.0"),
    ("fold_functions", "log(0.0)", "-inf"),
    ("fold_functions", "log(-1.0)", "inf - inf"),
    ("fold_functions", "log1p(-1.0)", "-inf"),
    ("fold_functions", "exp(1e4)", "inf"),
    ("fold_functions", "2^10", "1024.0"),
    ("fold_functions", "0.0^-1", "inf"),
    ("fold_functions", "(-0.0)^-1", "-inf"),
    ("fold_functions", "(-0.0)^-2", "inf"),
    ("fold_functions", "(-10.0)^401", "-inf"),
    ("fold_functions", "(-8.0)^0.5", "inf - inf"),
    ("fold_functions", "mod(-7, 3)", "2"),
    ("fold_functions", "mod(7.5, -2)", "-0.5"),
    ("neutral", "g * 1", "g"),
    ("neutral", "1.0 * g", "g"),
    ("neutral", "g / 1", "g"),
    ("neutral", "g^1.0", "g"),
    ("neutral", "g - 0", "g"),
    ("neutral", "g - 0.0", "g"),
    ("neutral", "g + -0.0", "g"),
    ("neutral", "h * 1", "h"),
    ("signs", "-(-g)", "g"),
    ("signs", "p - -g", "p + g"),
    ("signs", "p + -g", "p - g"),
    ("signs", "g * -1", "-g"),
    ("signs", "-1.0 * g", "-g"),
    ("signs", "-p * -g", "p * g"),
    ("signs", "abs(-g)", "abs(g)"),
    ("signs", "abs(abs(g))", "abs(g)"),
    ("signs", "(-g)^2", "g^2"),
    ("signs", "abs(g)^2", "g^2"),
    ("idempotent", "min(g, g)", "g"),
    ("idempotent", "max(r, r)", "r"),
    ("idempotent", "flag and flag", "flag"),
    ("idempotent", "p > g or p > g", "p > g"),
    ("idempotent", "floor(floor(g))", "floor(g)"),
    ("idempotent", "round(round(g))", "round(g)"),
    ("idempotent", "ceil(ceil(g))", "ceil(g)"),
    ("idempotent", "sign(sign(g))", "sign(g)"),
    ("logic", "not not flag", "flag"),
    ("logic", "not n == 3", "n != 3"),
    ("logic", "not p != g", "p == g"),
    ("logic", "flag and true", "flag"),
    ("logic", "true and p > g", "p > g"),
    ("logic", "flag and false", "false"),
    ("logic", "flag or true", "true"),
    ("logic", "false or p > g", "p > g"),
    ("logic", "p if true else g", "p"),
    ("logic", "p if false else g", "g"),
    ("logic", "h if true else 2.0", "h"),
    ("logic", "h if false else 2.0", "2.0"),
    ("logic", "h if false else 2", "2.0"),
    ("logic", "g if flag else g", "g"),
    ("logic", "p if not flag else g", "g if flag else p"),
    ("logic", "p if not p > g else g", "g if p > g else p"),
    ("gather_host", "h * g * k", "h * k * g"),
    ("gather_host", "g * h * k", "h * k * g"),
    ("gather_host", "k * (g * h)", "h * k * g"),
    ("gather_host", "h * g / k", "h / k * g"),
    ("gather_host", "g / h / k", "g / (h * k)"),
    ("gather_host", "g / h * k", "g * (k / h)"),
    ("gather_host", "2 * s * h", "2 * h * s"),
]


def alone(name: str) -> Callable[[Expr], Expr]:
    """One rule, applied to a node."""

    def visit(node: Expr) -> Expr:
        changed = BY_NAME[name].apply(node) if isinstance(node, Call) else None
        return node if changed is None else changed

    return visit


@pytest.mark.parametrize("name, before, after", MATCHES)
def test_a_rule_alone(name: str, before: str, after: str) -> None:
    expr = found = expression_of(before)
    for _ in range(5):
        found = transform(found, alone(name))
    assert expression(found, {}) == after
    assert found.type.kind is expr.type.kind
    if not expr.type.is_host:
        assert found.type == expr.type
    compare(expr, found, BY_NAME[name].exact)


#: What is true of real numbers and not of IEEE ones, or not of the type.
KEPT = [
    *("g - g", "g * 0", "0 * g", "g * 0.0", "g / g", "g + 0", "g + 0.0", "0 + g", "0.0 - g", "g^0"),
    *("-0.0 - g", "-(p - g)", "sqrt(g^2)", "sqrt(g)^2", "exp(log(abs(g)))", "1 / (1 / g)", "p + g - g"),
    *("p * g / g", "(p + g) + m", "p + (g + m)", "max(min(g, p), g)", "g * 2.0 * 0.5", "abs(g)^3", "(-g)^3"),
    *("abs(sqrt(g))", "sign(abs(g))", "not p < g", "not p >= g", "p < p", "p == p", "p != p", "min(g, inf)"),
    *("isfinite(abs(g))", "p if p == p else g", "floor(ceil(g))", "nan_to_num(nan_to_num(g))", "n * 1.0"),
    *("n / 1", "n^1", "n - 0.0", "n + -0.0", "sum(g * 0)", "mean(g - g)", "sqrt(abs(g) / 1e300)"),
]


@pytest.mark.parametrize("text", KEPT)
def test_what_no_exact_rule_touches(text: str) -> None:
    expr = expression_of(text)
    assert transform(expr, lambda node: rewrite(node, exact_only=True)) is expr


#: Nothing finer may become a plain literal or a value of a coarser level: a reduction counts entries.
TYPED = [
    "sum(1.0 if p > g and false else 0.0)",
    "sum(1.0 if p > g or true else 0.0)",
    "sum(h if true else g)",
    "sum(2 if true else g)",
    "sum(r if true else g)",
    "mean(s if false else r)",
    "(r if true else g) @ (g' @ g)",
    "count(p > g and false)",
    "n if true else h",
    "3 if true else h",
]


@pytest.mark.parametrize("text", TYPED)
def test_settled_choices_keep_their_place(text: str) -> None:
    expr = expression_of(text)
    found = transform(expr, lambda node: rewrite(node))
    assert found.type.kind is expr.type.kind
    compare(expr, found, exact=True)


def test_every_rule_has_cases() -> None:
    assert {name for name, _, _ in MATCHES} == set(BY_NAME)


def hostile_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Two matrices in which every pair of hostile numbers occurs."""
    numbers = np.array([*fuzz.HOSTILE, 0.1, -2.5, 3.0, 1e15 + 0.3, -7.5, 1e-8])
    return np.meshgrid(numbers, numbers)


def compare(before: Expr, after: Expr, exact: bool) -> None:
    """Both expressions on all pairs of hostile numbers, in both precisions."""
    left, right = (_measured(expr) for expr in (before, after))
    p, g = hostile_pairs()
    for dtype in (np.float64, np.float32):
        outcomes = []
        for program in (left, right):
            interpreter = Interpreter(program, [Group([p])], dtype)
            for _ in range(2):
                with np.errstate(all="ignore"):
                    interpreter.params = [[p.astype(dtype)]]
                    interpreter.step([[g.astype(dtype)]])
            outcomes.append(interpreter.params[0][0])
        if exact:
            assert fuzz.same_bits(*outcomes), f"{outcomes[0]}\n{outcomes[1]}"
        else:
            one, two = outcomes
            usual, info = np.isfinite(one), np.finfo(dtype)
            assert np.allclose(one[usual], two[usual], rtol=4 * info.eps, atol=info.tiny)
            assert (np.isnan(one) == np.isnan(two)).all()


def _measured(expr: Expr) -> Program:
    """A program that leaves `expr` in `p`."""
    base = program_of("p = p + g")
    value = as_number(expr)
    if not ty.broadcasts_into(value.type.shape, ty.ELEMENT):
        value = call("transpose", value)
    made = Assign("p.1", "p", value)
    return verify(base.with_body((made,), {"p": made.var}))


def test_folding_computes_what_the_interpreter_computes() -> None:
    numbers: list[float | int] = [*fuzz.HOSTILE, 0, 1, -1, 2, 3, -7, 0.5, -0.5, 2.5, 1e15, 2**53]
    exact = [name for name in NUMPY if name in SAME_BITS]
    with np.errstate(all="ignore"):
        for op in exact:
            arity = call_arity(op)
            for args in itertools.product(numbers, repeat=arity):
                node = call(op, *args)
                found = BY_NAME["fold"].apply(node)
                if found is None:
                    assert node.type.kind is Kind.INT or op in ("min", "max"), (op, args)
                    continue
                assert isinstance(found, Const)
                assert found.type.kind is node.type.kind, (op, args)
                wanted = np.asarray(NUMPY[op](*map(np.float64, args)))
                got = np.asarray(found.value)
                if wanted.dtype.kind == "f":
                    got = got.astype(np.float64)
                assert fuzz.same_bits(wanted, got), (op, args, wanted, found.value)


SAME_BITS = {
    *("add", "sub", "mul", "div", "neg", "lt", "le", "gt", "ge", "eq", "ne", "min", "max", "abs", "sign"),
    *("sqrt", "floor", "ceil", "round", "isfinite", "nan_to_num"),
}


def call_arity(op: str) -> int:
    from optdsl.core.ops import CORE

    return CORE[op].arity


def test_large_ints_are_not_folded() -> None:
    assert evaluate("mul", (2**40, 2**40), True) is None
    assert evaluate("add", (2**53, 1), True) is None
    assert evaluate("neg", (0,), True) is None  # an int 0 has no sign, a value of kind int may
    assert evaluate("mul", (0, -3), True) is None
    assert evaluate("sub", (3, 3), True) == 0


def test_extreme_literals_are_not_gathered() -> None:
    """Their product may overflow where the steps do not."""
    for text in ("1e300 * (1e300 * g)", "g / 1e-200 / 1e-200", "1e-30 * g * 1e30", "h * (1e200 * g)"):
        expr = expression_of(text)
        assert transform(expr, alone("gather_host")) is expr


# ---- branches ---------------------------------------------------------------------------------------------


def names(program: Program) -> list[str]:
    return [assign.name for assign in program.body]


def test_branches_on_literals_are_settled() -> None:
    program = program_of("""
        if 2 < 3:
            u = g
        else:
            u = p
        if flag and false:
            p = p * u
        if not true or flag:
            p = p - u
    """)
    short = simplify(program)
    assert [assign.guard for assign in short.body] == [((FLAGGED, True),), ()]
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(short, 0))


@pytest.mark.parametrize("value", ["0", "h", "mean(g)", "1.5", "r", "n", "p > g"])
@pytest.mark.parametrize("wanted", ["true", "false"])
def test_a_settled_branch_may_join_values_of_different_places(value: str, wanted: str) -> None:
    """The side that is taken may be coarser than the join; nothing may then read what is gone."""
    program = program_of(f"""
        if {wanted}:
            u = {value}
        else:
            u = g
        p = p - sum(u) - u
        m = m + u
    """)
    for short in (simplify(program), simplify(program, exact_only=True), apply_rules(program)):
        verify(short, "settling")
        fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(short, 0))


def test_a_setting_can_be_put_in_and_settled() -> None:
    """What a backend does for each setting of the switches: the switch becomes a literal."""
    program = program_of("""
        if flag:
            u = 0
        else:
            u = m
        if mode == "a":
            u = u + g
        p = p - h * u
    """)
    for flag, mode in itertools.product((True, False), ("a", "b")):
        values = {"flag": const(flag), "mode": const(mode)}

        def put(node: Expr, values: dict[str, Const] = values) -> Expr:
            return values.get(node.name, node) if isinstance(node, Var) else node

        body = tuple(
            Assign(
                a.name, a.source, transform(a.expr, put), tuple((transform(c, put), w) for c, w in a.guard)
            )
            for a in program.body
        )
        special = simplify(program.with_body(body, program.results))
        verify(special, "specialising")
        set_to = replace(
            program,
            hypers=tuple(
                replace(h, default=values[h.name].value) if h.name in values else h for h in program.hypers
            ),
        )
        one_group = [fuzz.SHAPES[0]]
        fuzz.assert_same_bits(fuzz.run(set_to, 0, shapes=one_group), fuzz.run(special, 0, shapes=one_group))


def test_negated_conditions_are_turned_in_guards_and_joins_alike() -> None:
    program = program_of("""
        if not flag:
            u = g
            m = m + u
        else:
            u = p
        p = p - u
    """)
    short = simplify(program)
    assert {condition for a in short.body for condition, _ in a.guard} <= {FLAGGED}
    joins = [a.expr for a in short.body if isinstance(a.expr, Call) and a.expr.op == "select"]
    assert joins
    assert all(join.args[0] is FLAGGED for join in joins)
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(short, 0))


def test_a_type_that_changes_reaches_the_readers() -> None:
    """`flag and false` is known on the host; the literal it becomes is a constant."""
    program = program_of("""
        c = flag and false
        d = c or false
        x = h if d else 2.0
        p = p - x * g
    """)
    for name, one in PASSES.items():
        changed = program
        for _ in range(4):
            changed = verify(one(changed), name)
    short = simplify(program)
    assert [expression(a.expr, {}) for a in short.body] == ["p - 2.0 * g"]


# ---- common subexpressions --------------------------------------------------------------------------------


def joint(over: str, site: int, x: Expr = G) -> Call:
    return call("reduce_sum", x, over=over, site=site)


def joints(program: Program) -> Counter[str]:
    """How often joint reductions are evaluated, by what they reduce."""
    found: Counter[str] = Counter()
    for assign in program.body:
        found.update(expression(node, {}) for node in walk(assign.expr) if is_joint(node))
    return found


def test_a_joint_reduction_is_computed_once() -> None:
    program = program_of("""
        a = norm(g, over=all)
        p = p - g / norm(g, over=all)
        m = m + sum(g^2, over=all) * rms(g, over=group) / (rms(g, over=group) + a)
    """)
    short = simplify(program)
    verify(short, "share")
    assert set(joints(short).values()) == {1}
    assert sum(joints(short).values()) == 2
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(short, 0))


def test_joint_reductions_inside_joint_reductions_are_computed_once() -> None:
    program = program_of("""
        a = sum((g / norm(g, over=all))^2, over=all)
        b = sum((g / norm(g, over=all))^2, over=all)
        p = p - (a + 2 * b) * g
    """)
    short = simplify(program)
    assert sum(joints(short).values()) == 2
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(short, 0))


def test_joint_reductions_of_other_tensors_stay_apart() -> None:
    """Under a condition on the tensor fewer of them meet: that is another sum."""
    program = program_of("""
        a = sum(g, over=all)
        if ndim >= 2:
            p = p - sum(g, over=all) * g
            m = m + sum(g, over=all)
        p = p - a
    """)
    short = simplify(program)
    assert sum(joints(short).values()) == 2
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(short, 0))
    inner = [a.guard for a in short.body if any(is_joint(n) for n in walk(a.expr))]
    assert sorted(map(len, inner)) == [0, 1]


def test_joint_reductions_in_sides_of_choices_stay_where_they_are() -> None:
    program = program_of("""
        a = sum(g, over=all) if ndim >= 2 else 0.0
        p = p - g * sum(g, over=all) - a
    """)
    short = simplify(program)
    assert sum(joints(short).values()) == 2
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(short, 0))


def test_no_random_program_computes_a_joint_reduction_twice() -> None:
    for seed, program in fuzz.programs(200):
        short = simplify(program)
        with fuzz.about(seed, program, short):
            seen: Counter[tuple[object, ...]] = Counter()
            for assign in short.body:
                stack: list[Expr] = [assign.expr]
                while stack:
                    node = stack.pop()
                    lazy = isinstance(node, Call) and node.op == "select" and node.args[0].type.is_host
                    stack += node.args[:1] if lazy else node.args
                    if is_joint(node):
                        assert isinstance(node, Call)
                        seen[node.op, node.args, node.attr, assign.guard] += 1
            assert set(seen.values()) <= {1}


def shared(program: Program) -> list[Assign]:
    return [assign for assign in program.body if assign.source.startswith("shared")]


def test_what_is_repeated_is_computed_once() -> None:
    program = program_of("""
        p = p - exp(g * g) * sqrt(exp(g * g))
        m = exp(g * g) + mean(g)
        s = mean(g)
    """)
    found = share(program)
    made = [expression(a.expr, {}) for a in shared(found)]
    assert made == ["exp(g * g)", "mean(g)"]
    assert share(drop_dead(propagate(found))) == drop_dead(propagate(found))


def test_an_assigned_value_is_shared_under_its_name() -> None:
    program = program_of("""
        u = exp(g)
        p = p - exp(g) * u
    """)
    found = share(program)
    assert not shared(found)
    assert [expression(a.expr, {}) for a in found.body] == ["exp(g)", "p - u.1 * u.1"]


def test_sharing_respects_guards() -> None:
    program = program_of("""
        if flag:
            p = p - exp(g)
        else:
            p = p + exp(g)
        if t > 1:
            m = exp(g) + cos(g)
            if flag:
                m = m * cos(g)
        r = mean(exp(p * 2), over=rows)
    """)
    found = share(program)
    verify(found, "share")
    homes = [(expression(a.expr, {}), len(a.guard)) for a in shared(found)]
    # `exp(g)` has three readers, no two of which are certain to run together
    assert homes == [("cos(g)", 1)]
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(found, 0))


def test_sharing_leaves_the_sides_of_lazy_choices_alone() -> None:
    program = program_of("""
        u = exp(g) if flag else 0.0
        v = exp(g) if mode == "a" else sin(g)
        p = p - u * v * (sin(g) if t > 3 else 1.0)
    """)
    assert share(program) is program or share(program).body == program.body
    once = program_of("""
        u = exp(g) if flag else 0.0
        p = p - u * cos(exp(g))
    """)
    assert not shared(share(once))
    eager = program_of("p = p - (exp(g) if p > 0 else 1.0) * (exp(g) if g > 0 else 2.0)")
    assert [expression(a.expr, {}) for a in shared(share(eager))] == ["exp(g)"]


def test_what_was_computed_before_a_lazy_choice_is_not_moved_into_it() -> None:
    program = program_of("""
        u = exp(g)
        v = exp(g) if flag else 0.0
        p = p - u * v
    """)
    found = share(program)
    verify(found, "share")
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(found, 0))


def test_equal_draws_are_one_and_different_ones_stay_apart() -> None:
    program = program_of("p = p - normal(stream=1) * normal(stream=1) - normal(stream=2)")
    found = simplify(program)
    draws = [n for a in found.body for n in walk(a.expr) if isinstance(n, Call) and n.op == "normal"]
    assert [node.attr for node in draws] == [1, 2]
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(found, 0))


def test_host_arithmetic_stays_where_it_stands() -> None:
    program = program_of("p = p * (1 - h^t) - g / (1 - h^t)")
    assert share(program) is program


def test_shared_values_get_names_of_their_own() -> None:
    state = State("shared", "shared", ty.Type(Kind.FLOAT, Level.TENSOR), const(1.0))
    hyper = Hyper("shared_1", "shared_1", Kind.FLOAT, 2.0)
    base = program_of("p = p - exp(g) * exp(g) + sin(p) * sin(p)")
    program = verify(replace(base, states=(state,), hypers=(hyper,)))
    found = verify(share(program), "share")
    assert [a.name for a in shared(found)] == ["shared_2.1", "shared_3.1"]
    assert names(share(found)) == names(found)


# ---- copies and dead code ---------------------------------------------------------------------------------


def test_copies_and_dead_code_go() -> None:
    program = program_of("""
        a = g
        b = a
        c = b * 2
        d = exp(c)
        if flag:
            e = b
        else:
            e = p
        p = p - e
    """)
    short = simplify(program)
    assert [expression(a.expr, {}) for a in short.body] == ["g if flag else p", "p - e.3"]
    assert names(drop_dead(program)) == [n for n in names(program) if n[0] not in "cd"]


def test_conditions_keep_what_they_read_alive() -> None:
    program = program_of("""
        c = h + n * t > 3 and n * n * n * n > h
        if c:
            p = p - g
    """)
    assert "c.1" in names(drop_dead(program))


def test_results_that_are_copies_follow() -> None:
    program = program_of("""
        u = m
        m = g
        r = mean(u, over=rows) if false else r
        p = u
    """)
    short = simplify(program)
    assert short.results["p"] is var("m", ty.element())
    assert short.results["m"] is G
    fuzz.assert_same_bits(fuzz.run(program, 0), fuzz.run(short, 0))


def test_nothing_to_do_is_nothing_done() -> None:
    program = program_of("""
        m = h * m + (1 - h) * g
        p = p - k * m
    """)
    assert simplify(program) == program
    for name, one in PASSES.items():
        assert one(program) == program, name
    assert math.isfinite(sum(cost(program).key))
