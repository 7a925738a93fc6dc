"""THE table: core operators, the built-in functions that lower to them, and the facts of a tensor.

A *core operator* is what backends spell; the set is small and closed, and a test checks that every
backend's table is total. A *built-in* is one row that lowers to core operators; adding one is one entry
here plus one test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

from optdsl.core.record import record
from optdsl.core.types import Kind


class Rule(Enum):
    """How an operator's type follows from its arguments'."""

    ELEMENTWISE = "elementwise"  # join of levels and shapes
    REDUCE = "reduce"  # attribute `over`; a second argument is one number, the same for the group
    RANDOM = "random"  # element; attribute `site`
    MATMUL = "matmul"
    TRANSPOSE = "transpose"
    BROADCAST = "broadcast"  # to the level that attribute `over` names
    MATRIX = "matrix"  # same shape as the first argument, which must be a matrix
    LIST = "list"  # of a list and a number known on the host
    AXES = "axes"  # makes or takes a matrix for each axis of the tensor; operands have the types of `AXES_OPERANDS`


@record
class CoreOp:
    """One core operator.

    `result` is the kind of the result: "float", "int", "bool", or "same" (int when all arguments are int).
    `takes` is the kind of every argument: "number" (a bool counts as 0 or 1), "bool" or "any".
    `flops` is the weight of the operator in the cost report.
    """

    name: str
    arity: int
    rule: Rule = Rule.ELEMENTWISE
    result: str = "float"
    takes: str = "number"
    symbol: str | None = None
    flops: int = 1


def _table(*ops: CoreOp) -> dict[str, CoreOp]:
    return {op.name: op for op in ops}


CORE: dict[str, CoreOp] = _table(
    CoreOp("add", 2, result="same", symbol="+"),
    CoreOp("sub", 2, result="same", symbol="-"),
    CoreOp("mul", 2, result="same", symbol="*"),
    CoreOp("div", 2, symbol="/", flops=4),
    CoreOp("mod", 2, result="same", flops=4),
    CoreOp("pow", 2, symbol="^", flops=20),
    CoreOp("neg", 1, result="same", symbol="-"),
    CoreOp("lt", 2, result="bool", symbol="<"),
    CoreOp("le", 2, result="bool", symbol="<="),
    CoreOp("gt", 2, result="bool", symbol=">"),
    CoreOp("ge", 2, result="bool", symbol=">="),
    CoreOp("eq", 2, result="bool", takes="any", symbol="=="),
    CoreOp("ne", 2, result="bool", takes="any", symbol="!="),
    CoreOp("and", 2, result="bool", takes="bool", symbol="and"),
    CoreOp("or", 2, result="bool", takes="bool", symbol="or"),
    CoreOp("not", 1, result="bool", takes="bool", symbol="not"),
    CoreOp("select", 3, result="same", takes="any"),
    CoreOp("min", 2, result="same"),
    CoreOp("max", 2, result="same"),
    CoreOp("abs", 1, result="same"),
    CoreOp("sign", 1, result="same"),
    CoreOp("sqrt", 1, flops=4),
    CoreOp("exp", 1, flops=20),
    CoreOp("expm1", 1, flops=20),
    CoreOp("log", 1, flops=20),
    CoreOp("log1p", 1, flops=20),
    CoreOp("sin", 1, flops=20),
    CoreOp("cos", 1, flops=20),
    CoreOp("tan", 1, flops=20),
    CoreOp("asin", 1, flops=20),
    CoreOp("acos", 1, flops=20),
    CoreOp("atan", 1, flops=20),
    CoreOp("atan2", 2, flops=20),
    CoreOp("tanh", 1, flops=20),
    CoreOp("erf", 1, flops=20),
    CoreOp("floor", 1),
    CoreOp("ceil", 1),
    CoreOp("round", 1),
    CoreOp("isfinite", 1, result="bool"),
    CoreOp("nan_to_num", 1),
    CoreOp("broadcast", 1, Rule.BROADCAST, result="same", takes="any", flops=0),
    CoreOp("reduce_sum", 1, Rule.REDUCE),
    CoreOp("reduce_mean", 1, Rule.REDUCE),
    CoreOp("reduce_max", 1, Rule.REDUCE),
    CoreOp("reduce_min", 1, Rule.REDUCE),
    CoreOp("reduce_kth_largest", 2, Rule.REDUCE, flops=20),
    CoreOp("normal", 0, Rule.RANDOM, flops=40),
    CoreOp("uniform", 0, Rule.RANDOM, flops=30),
    CoreOp("rademacher", 0, Rule.RANDOM, flops=30),
    CoreOp("bernoulli", 1, Rule.RANDOM, flops=30),
    CoreOp("matmul", 2, Rule.MATMUL, symbol="@"),
    CoreOp("transpose", 1, Rule.TRANSPOSE, symbol="'"),
    CoreOp("newton_schulz", 2, Rule.MATRIX),
    CoreOp("entry", 2, Rule.LIST, takes="any"),
    CoreOp("count_upto", 2, Rule.LIST, result="int", takes="any"),
    CoreOp("identity", 0, Rule.AXES),
    CoreOp("gram", 1, Rule.AXES),
    CoreOp("matrix_power", 3, Rule.AXES),
    CoreOp("along_axes", 2, Rule.AXES),
)

#: Where the operands of operators with Rule.AXES live, and the result.
AXES_OPERANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "identity": ((), "axes"),
    "gram": (("element",), "axes"),
    "matrix_power": (("axes", "host", "host"), "axes"),
    "along_axes": (("axes", "element"), "element"),
}

#: Where a reduction may end. The level of the result is the name, `all` counting as `group`; over a `filter`, the
#: dimensions behind the first two, every entry gets the result of its own.
OVERS = ("tensor", "rows", "cols", "filter", "group", "all")
DEFAULT_OVER = "tensor"

#: Named numbers of the language.
CONSTANTS: dict[str, float] = {"pi": math.pi, "inf": math.inf}

#: Host-known facts of a parameter tensor, and of its step. `t` is 1 in a parameter's first step.
FACTS: dict[str, Kind] = {
    "t": Kind.INT,
    "ndim": Kind.INT,
    "numel": Kind.INT,
    "rows": Kind.INT,
    "cols": Kind.INT,
    "first_step": Kind.BOOL,
}
#: Facts that never change while training: a branch on them is taken when a kernel is chosen.
STATIC_FACTS = frozenset({"ndim", "numel", "rows", "cols"})


#: Builds a core expression: `call(op, args, **attributes)`; arguments may be Python numbers.
Make = Callable[..., Any]


@record
class Builtin:
    """A function of the language.

    `lower(make, args, over)` returns the expression the call stands for. `arity` is (fewest, most)
    positional arguments. `reduction` says whether the call takes `over=...`; `both` marks `min` and `max`,
    which are reductions when they get one argument; `repeats` that the first argument occurs more than once
    in the lowered form, so that it must be a name or a number before.
    """

    name: str
    arity: tuple[int, int]
    lower: Callable[[Make, list[Any], str], Any]
    signature: str
    doc: str
    reduction: bool = False
    both: bool = False
    repeats: bool = False


def _core(op: str) -> Callable[[Make, list[Any], str], Any]:
    return lambda make, args, over: make(op, *args)


def _fold(op: str) -> Callable[[Make, list[Any], str], Any]:
    def lower(make: Make, args: list[Any], over: str) -> Any:
        if len(args) == 1:
            return make("reduce_" + op, args[0], over=over)
        result = args[0]
        for arg in args[1:]:
            result = make(op, result, arg)
        return result

    return lower


def _softplus(make: Make, args: list[Any], over: str) -> Any:
    x = args[0]
    return make("add", make("max", x, 0.0), make("log1p", make("exp", make("neg", make("abs", x)))))


def _lerp(make: Make, args: list[Any], over: str) -> Any:
    a, b, weight = args
    return make("add", a, make("mul", weight, make("sub", b, a)))


def _var(make: Make, args: list[Any], over: str) -> Any:
    centred = make("sub", args[0], make("reduce_mean", args[0], over=over))
    return make("reduce_mean", _square_of(make, centred), over=over)


def _square_of(make: Make, x: Any) -> Any:
    return make("pow", x, 2)


def _count(make: Make, x: Any, over: str) -> Any:
    return make("reduce_sum", make("select", make("ne", x, 0), 1.0, 0.0), over=over)


def _functions(*rows: Builtin) -> dict[str, Builtin]:
    return {row.name: row for row in rows}


def _unary(name: str, doc: str) -> Builtin:
    return Builtin(name, (1, 1), _core(name), f"{name}(x)", doc)


def _reduce(name: str, doc: str, lower: Callable[[Make, Any, str], Any]) -> Builtin:
    return Builtin(
        name,
        (1, 1),
        lambda make, args, over: lower(make, args[0], over),
        f"{name}(x, over=tensor)",
        doc,
        reduction=True,
    )


BUILTINS: dict[str, Builtin] = _functions(
    _unary("abs", "absolute value"),
    _unary("sign", "-1, 0 or 1; 0 for 0, -0.0 and nan"),
    _unary("sqrt", "square root"),
    Builtin(
        "rsqrt",
        (1, 1),
        lambda make, args, over: make("div", 1.0, make("sqrt", args[0])),
        "rsqrt(x)",
        "1 / sqrt(x)",
    ),
    _unary("exp", "exponential"),
    _unary("log", "natural logarithm"),
    _unary("log1p", "log(1 + x), accurate near 0"),
    _unary("expm1", "exp(x) - 1, accurate near 0"),
    _unary("sin", "sine"),
    _unary("cos", "cosine"),
    _unary("tan", "tangent"),
    _unary("asin", "arc sine"),
    _unary("acos", "arc cosine"),
    _unary("atan", "arc tangent"),
    Builtin("atan2", (2, 2), _core("atan2"), "atan2(y, x)", "angle of the point (x, y)"),
    _unary("tanh", "hyperbolic tangent"),
    Builtin(
        "sigmoid",
        (1, 1),
        lambda make, args, over: make("div", 1.0, make("add", 1.0, make("exp", make("neg", args[0])))),
        "sigmoid(x)",
        "1 / (1 + exp(-x))",
    ),
    Builtin("softplus", (1, 1), _softplus, "softplus(x)", "log(1 + exp(x)), without overflow", repeats=True),
    _unary("erf", "error function"),
    _unary("floor", "largest whole number not above x"),
    _unary("ceil", "smallest whole number not below x"),
    _unary("round", "nearest whole number, halves to even"),
    Builtin("mod", (2, 2), _core("mod"), "mod(x, y)", "remainder with the sign of y"),
    Builtin(
        "min",
        (1, 8),
        _fold("min"),
        "min(x, y, ...) or min(x, over=tensor)",
        "smallest; nan wins",
        reduction=True,
        both=True,
    ),
    Builtin(
        "max",
        (1, 8),
        _fold("max"),
        "max(x, y, ...) or max(x, over=tensor)",
        "largest; nan wins",
        reduction=True,
        both=True,
    ),
    Builtin(
        "clip",
        (3, 3),
        lambda make, args, over: make("min", make("max", args[0], args[1]), args[2]),
        "clip(x, low, high)",
        "min(max(x, low), high)",
    ),
    Builtin("lerp", (3, 3), _lerp, "lerp(a, b, weight)", "a + weight * (b - a)", repeats=True),
    Builtin(
        "where", (3, 3), _core("select"), "where(condition, a, b)", "a where the condition holds, else b"
    ),
    _unary("isfinite", "true unless x is infinite or nan"),
    _unary("nan_to_num", "nan becomes 0, an infinity the largest finite number of its sign"),
    Builtin("pow", (2, 2), _core("pow"), "pow(x, y)", "x ^ y"),
    Builtin("square", (1, 1), lambda make, args, over: _square_of(make, args[0]), "square(x)", "x^2"),
    _reduce("sum", "sum", lambda make, x, over: make("reduce_sum", x, over=over)),
    _reduce("mean", "arithmetic mean", lambda make, x, over: make("reduce_mean", x, over=over)),
    _reduce(
        "norm",
        "2-norm, sqrt(sum(x^2))",
        lambda make, x, over: make("sqrt", make("reduce_sum", _square_of(make, x), over=over)),
    ),
    _reduce(
        "norm1", "sum of absolute values", lambda make, x, over: make("reduce_sum", make("abs", x), over=over)
    ),
    _reduce(
        "norm_inf",
        "largest absolute value",
        lambda make, x, over: make("reduce_max", make("abs", x), over=over),
    ),
    _reduce(
        "rms",
        "root of the mean square",
        lambda make, x, over: make("sqrt", make("reduce_mean", _square_of(make, x), over=over)),
    ),
    Builtin(
        "dot",
        (2, 2),
        lambda make, args, over: make("reduce_sum", make("mul", args[0], args[1]), over=over),
        "dot(x, y, over=tensor)",
        "sum(x * y)",
        reduction=True,
    ),
    Builtin(
        "var",
        (1, 1),
        _var,
        "var(x, over=tensor)",
        "mean of the squared deviation from the mean (divides by the count)",
        reduction=True,
        repeats=True,
    ),
    _reduce(
        "count",
        "how many entries are true or non-zero",
        _count,
    ),
    Builtin(
        "kth_largest",
        (2, 2),
        lambda make, args, over: make("reduce_kth_largest", *args, over=over),
        "kth_largest(x, k, over=tensor)",
        "the k-th of the entries, largest first, nan before all; inf for k < 1, -inf for k beyond their number",
        reduction=True,
    ),
    Builtin("normal", (0, 0), _core("normal"), "normal()", "standard normal draws, one per element"),
    Builtin("uniform", (0, 0), _core("uniform"), "uniform()", "uniform draws from [0, 1), one per element"),
    Builtin(
        "rademacher", (0, 0), _core("rademacher"), "rademacher()", "-1 or 1 with equal chance, per element"
    ),
    Builtin("bernoulli", (1, 1), _core("bernoulli"), "bernoulli(q)", "1 with chance q, else 0, per element"),
    Builtin(
        "newton_schulz",
        (1, 2),
        lambda make, args, over: make("newton_schulz", args[0], args[1] if len(args) > 1 else 5),
        "newton_schulz(x, steps=5)",
        "orthogonalises a matrix by the quintic Newton-Schulz iteration of Muon",
    ),
    Builtin(
        "identity", (0, 0), _core("identity"), "identity()", "an identity matrix for each axis of the tensor"
    ),
    Builtin(
        "gram", (1, 1), _core("gram"), "gram(x)", "for each axis, the products of the slices of x across it"
    ),
    Builtin(
        "matrix_power",
        (3, 3),
        _core("matrix_power"),
        "matrix_power(S, exponent, least)",
        "powers of symmetric matrices, all eigenvalues of one raised alike until the smallest is at least `least`",
    ),
    Builtin(
        "along_axes",
        (2, 2),
        _core("along_axes"),
        "along_axes(P, x)",
        "x multiplied along each axis by the matrix for that axis",
    ),
)
