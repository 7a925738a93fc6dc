"""Every core operator against closed forms in plain Python, on ordinary and on hostile values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest

from optdsl.core import types as ty
from optdsl.core.ops import CORE, Rule
from optdsl.core.types import Kind, Level, Type
from optdsl.ir import random
from optdsl.ir.expr import Expr, call, const, var
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.numpy_ops import NUMPY
from optdsl.ir.program import Assign, Hyper, Program, State

INF, NAN = math.inf, math.nan
P, G = var("p", ty.element()), var("g", ty.element())
X, Y = var("x", ty.host()), var("y", ty.host())
SHAPES = [(3, 4), (2, 3, 2), (5,), (), (1, 6), (6, 1), (0,), (0, 3), (3, 0), (2, 0, 4)]


def program_of(expr: Expr, level: Type | None = None) -> Program:
    """A step that leaves `expr` in the state `out`."""
    state = State("out", "out", level or expr.type.with_kind(Kind.FLOAT), const(0.0))
    assign = Assign("out.1", "out", expr)
    hypers = tuple(Hyper(name, name, Kind.FLOAT, 0.0) for name in ("x", "y"))
    return Program("T", "", "", hypers, (state,), (assign,), {"out": assign.var})


def value_of(expr: Expr, p: object, g: object, dtype: type = np.float64, seed: int = 0) -> np.ndarray:
    """`expr` above the host level, in the first step of a parameter."""
    machine = Interpreter(program_of(expr), [Group([np.asarray(p)])], dtype, seed)
    machine.step([[np.asarray(g)]])
    where = machine.group_states[0] if expr.type.level is Level.GROUP else machine.states[0][0]
    return np.asarray(where["out"])


def host_value(op: str, *args: float) -> float:
    """A core operator on hyperparameters."""
    expr = call(op, *(X, Y)[: len(args)])
    program = program_of(expr, ty.host())
    machine = Interpreter(program, [Group([0.0], dict(zip("xy", args, strict=False)))])
    machine.step([[0.0]])
    value = machine.states[0][0]["out"]
    assert isinstance(value, float)
    return value


def same(a: float, b: float, ulps: float = 0.0, eps: float = 2.0**-52) -> bool:
    """Equal up to `ulps`; nan equals nan; zeros must have the same sign."""
    if a != a or b != b:
        return a != a and b != b
    if a == 0 and b == 0:
        return math.copysign(1, a) == math.copysign(1, b)
    return a == b or abs(a - b) <= ulps * eps * max(abs(a), abs(b))


UNARY: dict[str, Callable[[float], float]] = {
    "neg": lambda x: -x,
    "abs": math.fabs,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "sqrt": lambda x: math.sqrt(x) if x >= 0 else NAN,
    "exp": math.exp,
    "expm1": math.expm1,
    "log": lambda x: math.log(x) if x > 0 else NAN,
    "log1p": lambda x: math.log1p(x) if x > -1 else -INF if x == -1 else NAN,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": lambda x: math.asin(x) if abs(x) <= 1 else NAN,
    "acos": lambda x: math.acos(x) if abs(x) <= 1 else NAN,
    "atan": math.atan,
    "tanh": math.tanh,
    "erf": math.erf,
    "floor": lambda x: float(math.floor(x)) or math.copysign(0.0, x),
    "ceil": lambda x: float(math.ceil(x)) or math.copysign(0.0, x),
    "round": lambda x: float(round(x)) or math.copysign(0.0, x),
    "isfinite": lambda x: float(math.isfinite(x)),
    "nan_to_num": lambda x: x,
}
BINARY: dict[str, Callable[[float, float], float]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "mod": lambda x, y: x % y,
    "pow": lambda x, y: math.pow(x, y) if x > 0 or y.is_integer() else NAN,
    "lt": lambda x, y: float(x < y),
    "le": lambda x, y: float(x <= y),
    "gt": lambda x, y: float(x > y),
    "ge": lambda x, y: float(x >= y),
    "eq": lambda x, y: float(x == y),
    "ne": lambda x, y: float(x != y),
    "min": min,
    "max": max,
    "atan2": math.atan2,
}
#: Operators whose value is rounded at most once by IEEE 754; the others are good to a few units.
EXACT = {"add", "sub", "mul", "div", "sqrt", "neg", "abs", "min", "max", "sign", "floor", "ceil", "round"}
#: (operator, operands, value)
HOSTILE: list[tuple[str, tuple[float, ...], float]] = [
    ("div", (1.0, 0.0), INF),
    ("div", (1.0, -0.0), -INF),
    ("div", (-1.0, 0.0), -INF),
    ("div", (0.0, 0.0), NAN),
    ("div", (INF, INF), NAN),
    ("add", (INF, -INF), NAN),
    ("sub", (INF, INF), NAN),
    ("mul", (0.0, INF), NAN),
    ("mul", (1e300, 1e300), INF),
    ("mul", (1e-300, 1e-300), 0.0),
    ("neg", (0.0,), -0.0),
    ("abs", (-0.0,), 0.0),
    ("abs", (-INF,), INF),
    ("sign", (NAN,), 0.0),
    ("sign", (-0.0,), 0.0),
    ("sign", (0.0,), 0.0),
    ("sign", (-INF,), -1.0),
    ("sqrt", (-1.0,), NAN),
    ("sqrt", (-0.0,), -0.0),
    ("sqrt", (INF,), INF),
    ("exp", (1000.0,), INF),
    ("exp", (-1000.0,), 0.0),
    ("exp", (-INF,), 0.0),
    ("expm1", (-INF,), -1.0),
    ("expm1", (1000.0,), INF),
    ("log", (0.0,), -INF),
    ("log", (-1.0,), NAN),
    ("log", (INF,), INF),
    ("log1p", (-1.0,), -INF),
    ("log1p", (-2.0,), NAN),
    ("sin", (INF,), NAN),
    ("cos", (-INF,), NAN),
    ("tan", (INF,), NAN),
    ("asin", (2.0,), NAN),
    ("acos", (-2.0,), NAN),
    ("atan", (INF,), math.pi / 2),
    ("atan2", (0.0, -1.0), math.pi),
    ("atan2", (-0.0, -1.0), -math.pi),
    ("tanh", (INF,), 1.0),
    ("erf", (-INF,), -1.0),
    ("erf", (NAN,), NAN),
    ("floor", (-0.5,), -1.0),
    ("floor", (INF,), INF),
    ("ceil", (1.2,), 2.0),
    ("ceil", (NAN,), NAN),
    ("round", (0.5,), 0.0),
    ("round", (1.5,), 2.0),
    ("round", (2.5,), 2.0),
    ("round", (-2.5,), -2.0),
    ("round", (-INF,), -INF),
    ("isfinite", (INF,), 0.0),
    ("isfinite", (NAN,), 0.0),
    ("isfinite", (1.0,), 1.0),
    ("nan_to_num", (NAN,), 0.0),
    ("mod", (5.0, 0.0), NAN),
    ("mod", (INF, 2.0), NAN),
    ("mod", (-7.0, 3.0), 2.0),
    ("mod", (7.0, -3.0), -2.0),
    ("mod", (-7.0, -3.0), -1.0),
    ("mod", (5.0, INF), 5.0),
    ("pow", (0.0, 0.0), 1.0),
    ("pow", (NAN, 0.0), 1.0),
    ("pow", (1.0, NAN), 1.0),
    ("pow", (-8.0, 1.0 / 3.0), NAN),
    ("pow", (-2.0, 3.0), -8.0),
    ("pow", (-2.0, -1.0), -0.5),
    ("pow", (0.0, -1.0), INF),
    ("pow", (-0.0, -1.0), -INF),
    ("pow", (0.0, -0.5), INF),
    ("pow", (10.0, 400.0), INF),
    ("pow", (-10.0, 401.0), -INF),
    ("pow", (-INF, 2.0), INF),
    ("pow", (NAN, 2.0), NAN),
    ("min", (NAN, 1.0), NAN),
    ("min", (1.0, NAN), NAN),
    ("max", (NAN, 1.0), NAN),
    ("max", (1.0, NAN), NAN),
    ("max", (-INF, 1.0), 1.0),
    ("lt", (NAN, 1.0), 0.0),
    ("ge", (NAN, NAN), 0.0),
    ("eq", (NAN, NAN), 0.0),
    ("ne", (NAN, NAN), 1.0),
    ("eq", (0.0, -0.0), 1.0),
]


def test_the_table_is_total() -> None:
    assert set(NUMPY) == set(CORE)


def test_every_elementwise_operator_has_a_closed_form_here() -> None:
    elementwise = {name for name, op in CORE.items() if op.rule is Rule.ELEMENTWISE}
    assert {*UNARY, *BINARY, "and", "or", "not", "select"} == elementwise


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("op", [*UNARY, *BINARY])
def test_elementwise(op: str, dtype: type, rng: np.random.Generator) -> None:
    scale = 0.99 if op in ("asin", "acos") else 5.0
    x, y = (rng.uniform(-scale, scale, (6, 8)).astype(dtype) for _ in range(2))
    x[0], y[1], y[2, :3], x[3] = np.round(x[0]), np.round(y[1]), x[2, :3], np.abs(x[3])
    if op == "pow":
        y[4] = 2
    x[x == 0] = y[y == 0] = 1  # zeros are among the hostile values
    if op in UNARY:
        got = value_of(call(op, P), x, y, dtype)
        wanted = [UNARY[op](float(a)) for a in x.flat]
        on_host = [host_value(op, a) for a in x.flat]
    else:
        got = value_of(call(op, P, G), x, y, dtype)
        wanted = [BINARY[op](float(a), float(b)) for a, b in zip(x.flat, y.flat, strict=True)]
        on_host = [host_value(op, a, b) for a, b in zip(x.flat, y.flat, strict=True)]
    assert got.dtype == dtype
    # in float32 the operation itself is in float32, so its error is one of float32
    eps = float(np.finfo(dtype).eps)
    ulps = 0.5 if op in EXACT else 4.0
    for a, b in zip(got.flat, wanted, strict=True):
        cancelled = op in ("sin", "cos", "tan", "mod") and abs(a - b) < 8 * eps
        assert same(float(a), b, ulps, eps) or cancelled, (op, a, b)
    for a, b in zip(on_host, wanted, strict=True):
        assert same(a, b, 0.0 if op in EXACT else 4.0), (op, a, b)


@pytest.mark.parametrize(("op", "args", "wanted"), HOSTILE)
def test_hostile_values(op: str, args: tuple[float, ...], wanted: float) -> None:
    ulps = 1.0 if "atan" in op else 0.0
    assert same(host_value(op, *args), wanted, ulps)
    for dtype in (np.float64, np.float32):
        got = value_of(call(op, *(P, G)[: len(args)]), args[:1], args[-1:], dtype)
        assert same(float(got[0]), wanted, ulps, float(np.finfo(dtype).eps))


def test_the_square_is_a_product() -> None:
    x = np.random.default_rng(1).normal(size=1000)
    assert np.array_equal(value_of(call("pow", P, 2), x, x), x * x)
    x32 = x.astype(np.float32)
    assert np.array_equal(value_of(call("pow", P, 2), x32, x32, np.float32), x32 * x32)


def test_the_largest_finite_number_is_that_of_the_float_type() -> None:
    x = [INF, -INF, NAN, 3.0]
    for dtype in (np.float64, np.float32):
        largest = np.finfo(dtype).max
        assert value_of(call("nan_to_num", P), x, x, dtype).tolist() == [largest, -largest, 0.0, 3.0]
    assert host_value("nan_to_num", INF) == np.finfo(np.float64).max


def test_logic_and_choices_between_values() -> None:
    x, y = np.array([1.0, -1.0, 1.0, -1.0]), np.array([1.0, 1.0, -1.0, -1.0])
    a, b = call("gt", P, 0.0), call("gt", G, 0.0)
    assert value_of(call("and", a, b), x, y).tolist() == [1, 0, 0, 0]
    assert value_of(call("or", a, b), x, y).tolist() == [1, 1, 1, 0]
    assert value_of(call("not", a), x, y).tolist() == [0, 1, 0, 1]
    assert value_of(call("select", a, P, 7.0), x, y).tolist() == [1, 7, 1, 7]
    assert value_of(call("select", a, a, b), x, y).tolist() == [1, 1, 1, 0]
    assert value_of(call("add", a, b), x, y).tolist() == [2, 1, 1, 0]
    # the side that is not taken does no harm
    assert value_of(call("select", a, call("sqrt", P), 0.0), x, y).tolist() == [1, 0, 1, 0]


def test_host_numbers_are_rounded_once_where_they_meet_an_array() -> None:
    x = np.array([3.0], np.float32)
    got = value_of(call("mul", P, call("sub", 1.0, 0.9)), x, x, np.float32)
    assert got[0] == np.float32(3) * np.float32(1.0 - 0.9)
    assert value_of(call("gt", P, 1e-60), [1e-30], [0.0], np.float32).tolist() == [1]
    assert value_of(call("mul", P, 1e300), [1.0], [0.0], np.float32).tolist() == [INF]


# ---- reductions -------------------------------------------------------------------------------------------

EMPTY = {"reduce_sum": 0.0, "reduce_mean": NAN, "reduce_max": -INF, "reduce_min": INF}


def reduced(op: str, entries: list[float]) -> float:
    if not entries:
        return EMPTY[op]
    if op == "reduce_sum":
        return math.fsum(entries)
    if op == "reduce_mean":
        return math.fsum(entries) / len(entries)
    return max(entries) if op == "reduce_max" else min(entries)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", EMPTY)
def test_reductions(op: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    g = rng.normal(size=shape)
    rows, cols = shape[0] if shape else 1, math.prod(shape[1:])
    matrix = g.reshape(rows, cols)
    whole = value_of(call(op, G, over="tensor"), g, g)
    assert whole.shape == ()
    np.testing.assert_allclose(whole, reduced(op, g.ravel().tolist()), rtol=1e-13)
    for over in ("group", "all"):
        joint = value_of(call(op, G, over=over, site=0), g, g)
        assert joint.shape == ()
        np.testing.assert_allclose(joint, whole, rtol=1e-13)
    by_row = value_of(call(op, G, over="rows"), g, g)
    by_col = value_of(call(op, G, over="cols"), g, g)
    assert by_row.shape == (rows, 1)
    assert by_col.shape == (1, cols)
    for i in range(rows):
        np.testing.assert_allclose(by_row[i, 0], reduced(op, matrix[i].tolist()), rtol=1e-13)
    for j in range(cols):
        np.testing.assert_allclose(by_col[0, j], reduced(op, matrix[:, j].tolist()), rtol=1e-13)
    # a value per row or column has as many entries as there are rows or columns
    twice = value_of(call(op, call(op, G, over="rows"), over="tensor"), g, g)
    np.testing.assert_allclose(twice, reduced(op, by_row.ravel().tolist()), rtol=1e-13)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 2, 2), (2, 3, 0), (0, 3, 2)])
@pytest.mark.parametrize("op", EMPTY)
def test_reductions_over_filters(op: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    g = np.asarray(rng.normal(size=shape))
    found = value_of(call(op, G, over="filter"), g, g)
    wanted = g.copy()
    for index in np.ndindex(*shape[:2]) if len(shape) > 2 and g.size else ():
        wanted[index] = reduced(op, g[index].ravel().tolist())
    np.testing.assert_allclose(found.reshape(shape), wanted, rtol=1e-13)


def test_reductions_of_hostile_values() -> None:
    x = [1.0, NAN, INF]
    for op in EMPTY:
        assert np.isnan(value_of(call(op, P, over="tensor"), x, x))
    assert value_of(call("reduce_sum", P, over="tensor"), [INF, 1.0], [0, 0]) == INF
    assert np.isnan(value_of(call("reduce_sum", P, over="tensor"), [INF, -INF], [0, 0]))
    overflow = value_of(call("reduce_sum", call("pow", P, 2), over="tensor"), [1e30], [0], np.float32)
    assert overflow == INF


def test_the_kth_largest(rng: np.random.Generator) -> None:
    g = np.array([[3.0, NAN, 1.0, 3.0], [-INF, 2.0, INF, 0.0]])
    wanted = [INF, NAN, INF, 3.0, 3.0, 2.0, 1.0, 0.0, -INF, -INF]
    for k, want in enumerate(wanted):
        for over, site in (("tensor", None), ("group", 0), ("all", 0)):
            np.testing.assert_equal(
                float(value_of(call("reduce_kth_largest", G, k, over=over, site=site), g, g)), want
            )
    by_row = value_of(call("reduce_kth_largest", G, 2.5, over="rows"), g, g)
    np.testing.assert_array_equal(by_row, [[3.0], [2.0]])
    by_col = value_of(call("reduce_kth_largest", G, 2, over="cols"), g, g)
    np.testing.assert_array_equal(by_col, [[-INF, 2.0, 1.0, 0.0]])
    for k, want in ((NAN, INF), (INF, -INF), (-1, INF), (9, -INF)):
        assert float(value_of(call("reduce_kth_largest", G, k, over="tensor"), g, g)) == want


# ---- draws ------------------------------------------------------------------------------------------------


def test_draws_are_those_of_the_definition() -> None:
    programs = {op: program_of(call(op, site=3), ty.element()) for op in ("normal", "uniform", "rademacher")}
    programs["bernoulli"] = program_of(call("bernoulli", call("abs", P), site=3), ty.element())
    params = [np.full((2, 3), 0.3), np.full((4,), 0.6), np.full((), 0.5)]
    for op, program in programs.items():
        machine = Interpreter(program, [Group(params[:1]), Group(params[1:])], seed=77)
        machine.step([[params[0]], [None, params[2]]])
        machine.step([[params[0]], [params[1], params[2]]])
        for t, index, group, number in ((2, 0, 0, 0), (1, 1, 1, 0), (2, 2, 1, 1)):
            p = params[index]
            chance = [p.ravel()] if op == "bernoulli" else []
            wanted = getattr(random, op)(77, t, index, 3, p.size, *chance).reshape(p.shape)
            assert np.array_equal(machine.states[group][number]["out"], wanted)


def test_the_chance_of_a_draw_may_be_a_number_or_one_per_row() -> None:
    assert np.array_equal(
        value_of(call("bernoulli", 0.4, site=0), np.zeros((3, 4)), np.zeros((3, 4)), seed=5).ravel(),
        random.bernoulli(5, 1, 0, 0, 12, 0.4),
    )
    rows = call("reduce_mean", P, over="rows")
    p = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert value_of(call("bernoulli", rows, site=0), p, p).tolist() == [[0, 0], [1, 1]]
    assert value_of(call("normal", site=0), np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)


# ---- matrices ---------------------------------------------------------------------------------------------


def test_products_and_transposes(rng: np.random.Generator) -> None:
    p, g = rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 3, 2))
    a, b = p.reshape(2, 6), g.reshape(2, 6)
    np.testing.assert_allclose(value_of(call("matmul", P, call("transpose", G)), p, g), a @ b.T)
    np.testing.assert_allclose(value_of(call("matmul", call("transpose", P), G), p, g), a.T @ b)
    assert np.array_equal(value_of(call("transpose", P), p, g), a.T)
    rows = call("reduce_sum", P, over="rows")
    dot = call("matmul", call("transpose", rows), rows)
    assert dot.type == Type(Kind.FLOAT, Level.TENSOR)
    np.testing.assert_allclose(value_of(dot, p, g), np.sum(a.sum(1) ** 2))
    assert call("transpose", call("reduce_sum", P, over="cols")).type.shape == (ty.Dim.C, ty.Dim.ONE)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 3), (3, 1), (4, 2, 3)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_newton_schulz(shape: tuple[int, ...], dtype: type, rng: np.random.Generator) -> None:
    p = rng.normal(size=shape)
    matrix = p.reshape(shape[0], -1)
    got = value_of(call("newton_schulz", P, 5), p, p, dtype).reshape(matrix.shape)
    assert got.dtype == dtype
    # the iteration acts on the singular values alone: s <- a s + b s^3 + c s^5
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt(np.sum(s**2))
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    np.testing.assert_allclose(got, u @ np.diag(s) @ v, atol=1e-13 if dtype is np.float64 else 1e-5)


AXES_SHAPES = [(), (4,), (3, 4), (2, 3, 2), (0,), (0, 3), (2, 0, 4)]


def families(column: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The matrices of a family that a state holds."""
    assert column.shape == (sum(d * d for d in shape), 1)
    ends = np.cumsum([0, *(d * d for d in shape)])
    return [column[a : a + d * d].reshape(d, d) for a, d in zip(ends, shape, strict=False)]


@pytest.mark.parametrize("shape", AXES_SHAPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_matrix_for_each_axis(shape: tuple[int, ...], dtype: type, rng: np.random.Generator) -> None:
    p, g = rng.normal(size=shape), rng.normal(size=shape)
    close = functools.partial(np.testing.assert_allclose, atol=1e-12 if dtype is np.float64 else 1e-4)
    gram, one = call("gram", P), "abc"[: len(shape)]
    wanted = [np.einsum(f"{one},{one.replace(k, 'z')}->{k}z", p, p) for k in one]
    found = value_of(gram, p, g, dtype)
    assert found.dtype == dtype
    for mine, theirs in zip(families(found, shape), wanted, strict=True):
        close(mine, theirs)
    for mine, d in zip(families(value_of(call("identity"), p, g, dtype), shape), shape, strict=True):
        assert np.array_equal(mine, np.eye(d))
    raised = call("add", gram, call("identity"))
    for order in (1, 4):
        roots = families(value_of(call("matrix_power", raised, -1.0 / order, 0.1), p, g, dtype), shape)
        for mine, theirs in zip(roots, wanted, strict=True):
            close(np.linalg.matrix_power(mine, order) @ (theirs + np.eye(len(theirs))), np.eye(len(theirs)))
    product = g
    for k, matrix in zip(one, wanted, strict=True):
        product = np.einsum(f"{one},z{k}->{one.replace(k, 'z')}", product, matrix)
    got = value_of(call("along_axes", gram, G), p, g, dtype)
    assert got.shape == shape
    close(got, product, rtol=1e-10 if dtype is np.float64 else 1e-3)


def test_powers_of_degenerate_matrices() -> None:
    family = call("sub", call("gram", P), call("mul", 2.0, call("identity")))
    power = call("matrix_power", family, -0.5, 1.0)
    # gram is diag(9, 0), less 2 is diag(7, -2); all go up by 3
    got = families(value_of(power, [3.0, 0.0], [0.0, 0.0]), (2,))[0]
    np.testing.assert_allclose(got, np.diag([10**-0.5, 1.0]), atol=1e-15)
    assert np.isnan(value_of(power, [NAN, 1.0], [0.0, 0.0])).all()
    assert np.isnan(value_of(power, [INF, 1.0], [0.0, 0.0])).all()
    assert np.isnan(value_of(call("matrix_power", family, -0.5, -9.0), [3.0, 0.0], [0.0, 0.0])).any()


def test_newton_schulz_of_degenerate_matrices() -> None:
    ortho = call("newton_schulz", P, 3)
    assert np.array_equal(value_of(ortho, np.zeros((2, 3)), np.zeros((2, 3))), np.zeros((2, 3)))
    assert value_of(ortho, np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)
    assert np.isnan(value_of(ortho, [[NAN, 1.0], [1.0, 1.0]], np.zeros((2, 2)))).all()
    tiny = value_of(call("newton_schulz", P, 0), [[1e-9, 0.0]], [[0.0, 0.0]])
    np.testing.assert_allclose(tiny, [[1e-2, 0.0]])
