"""Core operators on Python numbers, with IEEE semantics: what constant folding computes.

`host_value` computes a number of the host from what its inputs are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Const, Expr, HostValue, Literal, Var

_INF, _NAN = math.inf, math.nan


def _guarded(function: Callable[..., float]) -> Callable[..., float]:
    """`function` with domain errors as nan and overflow as inf."""

    def run(*args: float) -> float:
        try:
            result = function(*map(float, args))
        except ValueError:
            return _NAN
        except OverflowError:
            return _INF
        return _NAN if isinstance(result, complex) else result

    return run


def _div(a: float, b: float) -> float:
    a, b = float(a), float(b)
    if b != 0:
        return a / b
    if a == 0 or a != a:
        return _NAN
    return math.copysign(_INF, a) * math.copysign(1.0, b)


def _log(x: float) -> float:
    return -_INF if x == 0 else math.log(x)


def _log1p(x: float) -> float:
    return -_INF if x == -1 else math.log1p(x)


def _pow(a: float, b: float) -> float:
    odd = b % 2 == 1
    try:
        return math.pow(a, b)
    except ValueError:
        if a != 0:
            return _NAN
        return math.copysign(_INF, a) if odd else _INF
    except OverflowError:
        return -_INF if a < 0 and odd else _INF


def _mod(a: Any, b: Any) -> Any:
    if b == 0 or a in (_INF, -_INF):
        return _NAN
    return a % b


def _extreme(pick: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def run(a: Any, b: Any) -> Any:
        if a != a or b != b:
            return _NAN
        # which zero comes out of two is left open
        return None if a == b == 0 and math.copysign(1.0, a) != math.copysign(1.0, b) else pick(a, b)

    return run


def _round(function: Callable[[float], int]) -> Callable[[float], float]:
    # a number that is rounded to 0 keeps its sign
    return lambda x: math.copysign(function(x), x) if math.isfinite(x) else float(x)


def _nan_to_num(x: float) -> float:
    if x != x:
        return 0.0
    return max(min(float(x), 1.7976931348623157e308), -1.7976931348623157e308)


def _entry(values: tuple[float, ...], i: float) -> float:
    return _NAN if i != i else float(values[int(min(max(i, 1), len(values))) - 1])


NUMBERS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _div,
    "mod": _mod,
    "pow": _pow,
    "neg": lambda a: -a,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": lambda a: not a,
    "min": _extreme(min),
    "max": _extreme(max),
    "abs": abs,
    "sign": lambda x: (x > 0) - (x < 0),
    "sqrt": _guarded(math.sqrt),
    "exp": _guarded(math.exp),
    "expm1": _guarded(math.expm1),
    "log": _guarded(_log),
    "log1p": _guarded(_log1p),
    "sin": _guarded(math.sin),
    "cos": _guarded(math.cos),
    "tan": _guarded(math.tan),
    "asin": _guarded(math.asin),
    "acos": _guarded(math.acos),
    "atan": _guarded(math.atan),
    "atan2": _guarded(math.atan2),
    "tanh": _guarded(math.tanh),
    "erf": _guarded(math.erf),
    "floor": _round(math.floor),
    "ceil": _round(math.ceil),
    "round": _round(round),
    "isfinite": math.isfinite,
    "nan_to_num": _nan_to_num,
    "entry": _entry,
    "count_upto": lambda values, x: sum(value <= x for value in values),
}

#: A folded integer larger than this would not survive a 64-bit backend.
MAX_INT = 2**53


def evaluate(op: str, args: tuple[Literal, ...], kind_is_int: bool) -> Literal | None:
    """The value of `op` on literals, or None when it cannot be folded."""
    function = NUMBERS.get(op)
    if function is None:
        return None
    value = function(*args)
    if value is None or isinstance(value, bool):
        return value
    if kind_is_int:
        if not isinstance(value, int) or abs(value) > MAX_INT:
            return None
        # the meaning of an int is a float64, so that it may be -0.0, which no literal int is
        return None if value == 0 and math.copysign(1.0, function(*map(float, args))) < 0 else value
    return float(value)


class Unknown(Exception):
    """A value is needed that has no value yet: a state without an initial value, say."""


def host_value(root: Expr, known: Mapping[str, HostValue], definitions: Mapping[str, Expr]) -> HostValue:
    """The value of a host expression: a float, a truth value, a choice or a list.

    `known` are the values of inputs, `definitions` the expressions of other names. As in the interpreter, ints are
    floats without -0.0, and only that side of a choice is computed that is taken. Raises Unknown.
    """
    values: dict[int, HostValue] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        missing = [arg for arg in _operands(node, values, known, definitions) if id(arg) not in values]
        if missing and id(node) not in values:
            stack += reversed(missing)
            continue
        stack.pop()
        if id(node) not in values:
            values[id(node)] = _plain(_apply(node, values, known, definitions), node.type.kind)
    return values[id(root)]


def _operands(
    node: Expr,
    values: Mapping[int, HostValue],
    known: Mapping[str, HostValue],
    definitions: Mapping[str, Expr],
) -> tuple[Expr, ...]:
    """What must be known before `node`, as far as can be told now."""
    if isinstance(node, Var):
        if node.name in known:
            return ()
        if node.name not in definitions:
            raise Unknown(node.name)
        return (definitions[node.name],)
    if isinstance(node, Call) and node.op == "select":
        condition, then, other = node.args
        if id(condition) not in values:
            return (condition,)
        return (then if values[id(condition)] else other,)
    return node.args


def _apply(
    node: Expr,
    values: Mapping[int, HostValue],
    known: Mapping[str, HostValue],
    definitions: Mapping[str, Expr],
) -> HostValue:
    if isinstance(node, Const):
        return node.value
    if isinstance(node, Var):
        return known[node.name] if node.name in known else values[id(definitions[node.name])]
    if node.op == "select":
        condition, then, other = node.args
        return values[id(then if values[id(condition)] else other)]
    value = NUMBERS[node.op](*(values[id(arg)] for arg in node.args))
    return 0.0 if value is None else value  # either zero


def _plain(value: HostValue, kind: Kind) -> HostValue:
    if isinstance(value, bool | str | tuple):
        return value
    try:
        return float(value) + (0.0 if kind is Kind.INT else -0.0)
    except OverflowError:
        return _INF if value > 0 else -_INF
