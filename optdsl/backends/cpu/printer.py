"""Expressions over the values of a plan as C."""

from __future__ import annotations

import math
from collections.abc import Callable

from optdsl.core.ops import AXES_OPERANDS
from optdsl.ir.expr import Call, Const, Expr, Literal, Var

#: Binding strength in C.
_TERNARY, _OR, _AND, _COMPARE, _SUM, _PRODUCT, _UNARY, _ATOM = range(8)

_INFIX = {
    "add": ("+", _SUM), "sub": ("-", _SUM), "mul": ("*", _PRODUCT), "div": ("/", _PRODUCT),
    "lt": ("<", _COMPARE), "le": ("<=", _COMPARE), "gt": (">", _COMPARE), "ge": (">=", _COMPARE),
    "eq": ("==", _COMPARE), "ne": ("!=", _COMPARE), "and": ("&", _AND), "or": ("|", _OR),
}  # fmt: skip
_FUNCTIONS = {
    "abs": "fabs_", "round": "rint_", "isfinite": "finite_",
    **{
        name: f"{name}_"
        for name in (
            *("sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "atan2"),
            *("tanh", "erf", "floor", "ceil", "min", "max", "sign", "nan_to_num", "mod"),
        )
    },
}  # fmt: skip
#: Operators that no vector instruction and no vector function of the C library computes.
SCALAR_ONLY = frozenset({"mod"})
#: Operators that a vector function of the C library computes, where it has one (see kernel.h).
LIBRARY = frozenset(
    {
        "exp",
        "expm1",
        "log",
        "log1p",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "tanh",
        "erf",
        "pow",
        "atan2",
    }
)
#: What the plan or the emitter takes care of itself.
_ELSEWHERE = frozenset(
    {"broadcast", "reduce_sum", "reduce_mean", "reduce_max", "reduce_min"}
    | {"normal", "uniform", "rademacher", "bernoulli"}
)
#: Operators that programs for this backend may not have.
UNSUPPORTED = frozenset({"matmul", "transpose", "newton_schulz", "reduce_kth_largest", *AXES_OPERANDS})
#: Every core operator the backend spells; a test holds this against the table of operators.
SPELLED = frozenset({*_INFIX, *_FUNCTIONS, "neg", "not", "select", "pow"}) | _ELSEWHERE


def identifier(name: str) -> str:
    """The C name of a value: `m.1` is `m_1`, an input `m` is `m_0`. No name of kernel.h ends like that."""
    source, _, version = name.partition(".")
    made = f"{source}_{version or '0'}"
    assert made.isascii(), name
    assert made.isidentifier(), name
    return made


def literal(value: Literal) -> str:
    """A number in the type that is computed in."""
    if isinstance(value, bool):
        return "1" if value else "0"
    assert not isinstance(value, str)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if math.isinf(number):
        return "C(INFINITY)" if number > 0 else "C(-INFINITY)"
    return "C(NAN)" if number != number else f"C({number!r})"


def expression(expr: Expr, read: Callable[[Var], str]) -> str:
    """`expr` in C; `read` spells a variable."""
    return _Printer(read).print(expr)[0]


class _Printer:
    def __init__(self, read: Callable[[Var], str]) -> None:
        self.read = read

    def wrap(self, expr: Expr, least: int) -> str:
        text, strength = self.print(expr)
        return text if strength >= least else f"({text})"

    def print(self, expr: Expr) -> tuple[str, int]:
        """(source, binding strength)."""
        if isinstance(expr, Const):
            return literal(expr.value), _ATOM
        if isinstance(expr, Var):
            return self.read(expr), _ATOM
        return self.call(expr)

    def call(self, expr: Call) -> tuple[str, int]:
        op, args = expr.op, expr.args
        if op in _INFIX:
            symbol, strength = _INFIX[op]
            # comparisons do not associate, and logic reads better with what it joins in brackets
            left, right = strength, strength + 1
            if strength <= _COMPARE:
                left = right = _COMPARE + 1
            return f"{self.wrap(args[0], left)} {symbol} {self.wrap(args[1], right)}", strength
        if op == "neg":
            return f"-{self.wrap(args[0], _ATOM)}", _UNARY
        if op == "not":
            return f"!{self.wrap(args[0], _ATOM)}", _UNARY
        if op == "select":
            condition, then, other = (self.wrap(arg, _OR) for arg in args)
            return f"{condition} ? {then} : {other}", _TERNARY
        if op == "pow":
            return self.power(*args), _ATOM
        return f"{_FUNCTIONS[op]}({', '.join(self.print(arg)[0] for arg in args)})", _ATOM

    def power(self, base: Expr, exponent: Expr) -> str:
        text = self.print(base)[0]
        if isinstance(exponent, Const) and not isinstance(exponent.value, bool):
            match exponent.value:
                case 2:
                    return f"square_({text})"
                case 3:
                    return f"cube_({text})"
                case 4:
                    return f"square_(square_({text}))"
        return f"pow_({text}, {self.print(exponent)[0]})"
