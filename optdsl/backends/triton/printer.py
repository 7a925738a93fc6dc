"""Expressions over the values of a plan in Triton's Python."""

from __future__ import annotations

import math
from collections.abc import Callable

from optdsl.backends.cpu.printer import identifier
from optdsl.ir.expr import Call, Const, Expr, Literal, Var

#: Binding strength in Python.
_COMPARE, _SUM, _PRODUCT, _UNARY, _ATOM = range(5)

_INFIX = {
    "add": ("+", _SUM), "sub": ("-", _SUM), "mul": ("*", _PRODUCT),
    "lt": ("<", _COMPARE), "le": ("<=", _COMPARE), "gt": (">", _COMPARE), "ge": (">=", _COMPARE),
    "eq": ("==", _COMPARE), "ne": ("!=", _COMPARE),
}  # fmt: skip
#: Operators whose function in optdsl.runtime.triton.library has another name.
_FUNCTIONS = {
    "abs": "magnitude", "round": "rint", "isfinite": "finite", "min": "lesser", "max": "greater", "not": "negated",
    "and": "both", "or": "either", "mod": "remainder",
    **{
        name: name
        for name in (
            *("sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "atan2"),
            *("tanh", "erf", "floor", "ceil", "div", "select", "sign", "nan_to_num"),
        )
    },
}  # fmt: skip
#: What the plan or the emitter takes care of itself.
_ELSEWHERE = frozenset(
    {"broadcast", "reduce_sum", "reduce_mean", "reduce_max", "reduce_min"}
    | {"normal", "uniform", "rademacher", "bernoulli"}
)
#: Every core operator the backend spells; a test holds this against the table of operators.
SPELLED = frozenset({*_INFIX, *_FUNCTIONS, "neg", "pow"}) | _ELSEWHERE


def literal(value: Literal) -> str:
    """A number, in the type that is computed in."""
    if isinstance(value, bool):
        return "True" if value else "False"
    assert not isinstance(value, str)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    text = repr(number) if math.isfinite(number) else f'float("{number}")'
    return f"number({text}, REAL)"


def expression(expr: Expr, read: Callable[[Var], str]) -> str:
    """`expr` in Triton's Python; `read` spells a variable."""
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
            # Python chains comparisons
            left, right = (strength, strength + 1) if strength >= _SUM else (_SUM, _SUM)
            return f"{self.wrap(args[0], left)} {symbol} {self.wrap(args[1], right)}", strength
        if op == "neg":
            return f"-{self.wrap(args[0], _ATOM)}", _UNARY
        if op == "pow":
            return self.power(*args), _ATOM
        return f"{_FUNCTIONS[op]}({', '.join(self.print(arg)[0] for arg in args)})", _ATOM

    def power(self, base: Expr, exponent: Expr) -> str:
        text = self.print(base)[0]
        if isinstance(exponent, Const) and not isinstance(exponent.value, bool):
            match exponent.value:
                case 2:
                    return f"square({text})"
                case 3:
                    return f"cube({text})"
                case 4:
                    return f"square(square({text}))"
        return f"power({text}, {self.print(exponent)[0]})"


__all__ = ["SPELLED", "expression", "identifier", "literal"]
