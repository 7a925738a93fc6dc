"""Interval arithmetic on host values: proves that a denominator is not 0, that a base is not negative."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from optdsl.ir.expr import Call, Const, Expr, Var
from optdsl.ir.program import Interval, Program

ANYTHING = Interval(-math.inf, math.inf)
#: What the facts of a tensor may be. `t` counts from 1; sizes may be 0.
_FACTS = {
    "t": Interval(1, math.inf, high_open=True),
    "ndim": Interval(0, 64),
    "numel": Interval(0, 2.0**53),
    "rows": Interval(0, 2.0**53),
    "cols": Interval(0, 2.0**53),
}


class Intervals:
    """The interval of host expressions of one program. Assumes hyperparameters inside their intervals.

    Unless all are as the constructor takes them (`at_first`), a learning rate may be 0 though its interval leaves
    that out: a scheduler may turn it down.
    """

    def __init__(self, program: Program, at_first: bool = False) -> None:
        self.inputs: dict[str, Interval] = dict(_FACTS)
        for hyper in program.hypers:
            if hyper.interval is not None:
                closed = hyper.name == "lr" and hyper.interval.low == 0 and not at_first
                self.inputs[hyper.name] = (
                    replace(hyper.interval, low_open=False) if closed else hyper.interval
                )
        self.definitions: Mapping[str, Expr] = {a.name: a.expr for a in program.body}
        self._memo: dict[int, Interval] = {}

    def of(self, expr: Expr) -> Interval:
        """An interval that holds every value of `expr` (nan aside)."""
        if id(expr) not in self._memo:
            self._memo[id(expr)] = ANYTHING  # whatever recursion meets before this is known
            self._memo[id(expr)] = self._of(expr)
        return self._memo[id(expr)]

    def never_zero(self, expr: Expr) -> bool:
        """True when `expr` cannot be 0."""
        return 0 not in self.of(expr)

    def _of(self, expr: Expr) -> Interval:
        if isinstance(expr, Const):
            if isinstance(expr.value, bool | str) or expr.value != expr.value:
                return ANYTHING
            return Interval(expr.value, expr.value)
        if isinstance(expr, Var):
            if expr.name in self.definitions:
                return self.of(self.definitions[expr.name])
            return self.inputs.get(expr.name, ANYTHING)
        return self._call(expr)

    def _call(self, expr: Call) -> Interval:
        args = [self.of(arg) for arg in expr.args]
        match expr.op, args:
            case "neg", [a]:
                return _neg(a)
            case "add", [a, b]:
                return _add(a, b)
            case "sub", [a, b]:
                return _add(a, _neg(b))
            case "mul", [a, b] if a.low >= 0 and b.low >= 0:
                low_open = _positive(a) and _positive(b) and (a.low_open or b.low_open or a.low * b.low == 0)
                return Interval(_times(a.low, b.low), _times(a.high, b.high), low_open)
            case "pow", [base, exponent] if base.low >= 0 and base.high <= 1 and exponent.low >= 1:
                # b^e <= b on [0, 1] for e >= 1
                return Interval(0.0, base.high, False, base.high_open)
            case "pow", [base, _] if base.low >= 0:
                return Interval(0.0, math.inf)
            case "sqrt", [a] if a.low >= 0:
                return Interval(math.sqrt(a.low), math.sqrt(a.high), a.low_open)
            case (("sqrt" | "exp" | "abs"), [_]):
                return Interval(0.0, math.inf)
            case "max", [a, b]:
                low = max(a, b, key=lambda i: (i.low, i.low_open))
                return Interval(low.low, max(a.high, b.high), low.low_open)
            case "min", [a, b]:
                high = min(a, b, key=lambda i: (i.high, not i.high_open))
                return Interval(min(a.low, b.low), high.high, False, high.high_open)
            case "entry", [values, _]:
                return values
            case "count_upto", [_, _]:
                return Interval(0.0, math.inf)
        return ANYTHING


def divides_by_lr(program: Program) -> bool:
    """Whether a step divides by a host value that is 0 where a scheduler turns the learning rate down to 0, and at no
    learning rate that the constructor takes.
    """
    first, later = Intervals(program, at_first=True), Intervals(program)
    found: set[Expr] = set()
    waiting = list(program.expressions())
    while waiting:
        expr = waiting.pop()
        if not isinstance(expr, Call) or expr in found:
            continue
        found.add(expr)
        waiting += expr.args
        if expr.op == "div" and any(
            first.never_zero(factor) and not later.never_zero(factor)
            for factor in _factors(expr.args[1], first.definitions)
        ):
            return True
    return False


def _factors(expr: Expr, definitions: Mapping[str, Expr]) -> Iterator[Expr]:
    """The host values that make an expression 0 where they are."""
    if expr.type.is_host:
        yield expr
    elif isinstance(expr, Var) and expr.name in definitions:
        yield from _factors(definitions[expr.name], definitions)
    elif isinstance(expr, Call) and expr.op == "mul":
        for arg in expr.args:
            yield from _factors(arg, definitions)


def _positive(a: Interval) -> bool:
    return a.low > 0 or (a.low == 0 and a.low_open)


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _neg(a: Interval) -> Interval:
    return Interval(-a.high, -a.low, a.high_open, a.low_open)


def _add(a: Interval, b: Interval) -> Interval:
    low, high = a.low + b.low, a.high + b.high
    if low != low or high != high:
        return ANYTHING
    return Interval(low, high, a.low_open or b.low_open, a.high_open or b.high_open)
