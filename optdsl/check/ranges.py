"""The smallest and largest value that a whole number known on the host can have."""

from __future__ import annotations

import math
from collections.abc import Mapping

from optdsl.ir.expr import Call, Const, Expr
from optdsl.ir.program import Hyper, Interval

Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
_FACTS: dict[str, Range] = {
    "t": (1, math.inf),
    **dict.fromkeys(("ndim", "numel", "rows", "cols"), (0, math.inf)),
}


def whole_range(interval: Interval) -> Range:
    """The smallest and the largest whole number in an interval; infinite where it has no end."""
    low, high = interval.low, interval.high
    if math.isfinite(low):
        low = math.floor(low) + 1 if interval.low_open else math.ceil(low)
    if math.isfinite(high):
        high = math.ceil(high) - 1 if interval.high_open else math.floor(high)
    return low, high


def range_of(
    expr: Expr, hypers: Mapping[str, Hyper], definitions: Mapping[str, Expr], depth: int = 40
) -> Range:
    """Bounds of an int, as far as they follow from the intervals of `hypers` and from `definitions`."""
    if isinstance(expr, Const):
        return ANY if isinstance(expr.value, str) else (expr.value, expr.value)
    if depth == 0:
        return ANY
    if not isinstance(expr, Call):
        if expr.name in definitions:
            return range_of(definitions[expr.name], hypers, definitions, depth - 1)
        if expr.name in hypers:
            interval = hypers[expr.name].interval
            return whole_range(interval) if interval else ANY
        return _FACTS.get(expr.name, ANY)
    args = [range_of(arg, hypers, definitions, depth - 1) for arg in expr.args]
    match expr.op, args:
        case "neg", [(low, high)]:
            return -high, -low
        case "add", [(a, b), (c, d)]:
            return a + c, b + d
        case "sub", [(a, b), (c, d)]:
            return a - d, b - c
        case "mul", [(a, b), (c, d)]:
            products = [0.0 if 0 in (x, y) else x * y for x in (a, b) for y in (c, d)]
            return min(products), max(products)
        case "min", [(a, b), (c, d)]:
            return min(a, c), min(b, d)
        case "max", [(a, b), (c, d)]:
            return max(a, c), max(b, d)
        case "select", [_, (a, b), (c, d)]:
            return min(a, c), max(b, d)
        case "mod", [_, (c, d)] if c > 0:
            return 0, d - 1
    return ANY
