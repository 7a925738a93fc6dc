"""Local rewrite rules, each with a name and marked exact or rounding.

An *exact* rule gives the same bits for every input, nan, infinities and signed zeros included. A *rounding*
rule gives the same real number, computed with fewer or cheaper operations; results differ by rounding only.
Rules that are true of real numbers but not of IEEE numbers (`x - x`, `x * 0`, `x + 0` for -0.0) are absent.
"""

from __future__ import annotations

from collections.abc import Callable

from optdsl.core.record import record
from optdsl.core.types import Kind
from optdsl.core.types import const as const_type
from optdsl.ir.expr import Call, Const, Expr, call, const, walk
from optdsl.passes.evaluate import evaluate


@record
class Rule:
    """`apply(node)` returns what the node becomes, or None when the rule does not match."""

    name: str
    exact: bool
    apply: Callable[[Call], Expr | None]


def _is(node: Expr, value: float) -> bool:
    """True for a literal number equal to `value` (0 matches 0 and 0.0, not -0.0)."""
    if not isinstance(node, Const) or isinstance(node.value, bool | str):
        return False
    return node.value == value and str(float(node.value)) == str(float(value))


def _keeps_type(node: Call, replacement: Expr) -> Expr | None:
    """A neutral operand may go only if what remains has the type of the whole."""
    return replacement if replacement.type == node.type else None


def _on_host(node: Call, literal: Expr) -> Expr | None:
    """A literal may stand for a host value of its kind. It is no array, which a reduction could ask for."""
    return literal if node.type.is_host and literal.type == const_type(node.type.kind) else None


#: Operators that IEEE 754 rounds correctly, or that do not round: the same bits on every machine.
_EXACT = frozenset(
    [
        *("add", "sub", "mul", "div", "neg", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"),
        *("min", "max", "abs", "sign", "sqrt", "floor", "ceil", "round", "isfinite", "nan_to_num"),
    ]
)


def _fold(node: Call) -> Expr | None:
    return _folded(node) if node.op in _EXACT else None


def _fold_functions(node: Call) -> Expr | None:
    return None if node.op in _EXACT else _folded(node)


def _folded(node: Call) -> Expr | None:
    values = tuple(arg.value for arg in node.args if isinstance(arg, Const))
    if len(values) != len(node.args) or not values:
        return None
    value = evaluate(node.op, values, node.type.kind is Kind.INT)
    return None if value is None else const(value)


def _neutral(node: Call) -> Expr | None:
    match node.op, node.args:
        case "mul", (a, b) if _is(b, 1):
            return _keeps_type(node, a)
        case "mul", (a, b) if _is(a, 1):
            return _keeps_type(node, b)
        case (("div" | "pow"), (a, b)) if _is(b, 1):
            return _keeps_type(node, a)
        case "sub", (a, b) if _is(b, 0):
            return _keeps_type(node, a)
        case "add", (a, b) if _is(b, -0.0):
            return _keeps_type(node, a)
    return None


def _signs(node: Call) -> Expr | None:
    match node.op, node.args:
        case "neg", (Call("neg", (a,)),):
            return a
        case "sub", (a, Call("neg", (b,))):
            return call("add", a, b)
        case "add", (a, Call("neg", (b,))):
            return call("sub", a, b)
        case "mul", (a, b) if _is(b, -1) and a.type == node.type:
            return call("neg", a)
        case "mul", (a, b) if _is(a, -1) and b.type == node.type:
            return call("neg", b)
        case "mul", (Call("neg", (a,)), Call("neg", (b,))):
            return call("mul", a, b)
        case "abs", (Call("neg" | "abs", (a,)),):
            return call("abs", a)
        case "pow", (Call("neg" | "abs", (a,)), b) if _is(b, 2):
            return call("pow", a, b)
    return None


def _idempotent(node: Call) -> Expr | None:
    match node.op, node.args:
        case (("min" | "max" | "and" | "or"), (a, b)) if a is b:
            return a
        case (("sign" | "floor" | "ceil" | "round"), (Call(inner, _) as a,)) if inner == node.op:
            return a
    return None


def _logic(node: Call) -> Expr | None:
    match node.op, node.args:
        case "not", (Call("not", (a,)),):
            return a
        case "not", (Call("eq", (a, b)),):
            return call("ne", a, b)
        case "not", (Call("ne", (a, b)),):
            return call("eq", a, b)
        case "and", (a, Const(value)) | (Const(value), a):
            return a if value else _on_host(node, const(False))
        case "or", (a, Const(value)) | (Const(value), a):
            return _on_host(node, const(True)) if value else a
        case "select", (Const(value), a, b):
            taken = a if value else b
            if isinstance(taken, Const) and node.type.kind is Kind.FLOAT:
                taken = const(float(taken.value))
            return _keeps_type(node, taken) or _on_host(node, taken)
        case "select", (_, a, b) if a is b:
            return _keeps_type(node, a)
        case "select", (Call("not", (c,)), a, b):
            return call("select", c, b, a)
    return None


def _moderate(node: Expr) -> bool:
    """True unless a literal in `node` is out of the ordinary."""
    numbers = [n.value for n in walk(node) if isinstance(n, Const) and not isinstance(n.value, bool | str)]
    return all(value == 0 or 1e-18 <= abs(value) <= 1e18 for value in numbers)


def _gather_host(node: Call) -> Expr | None:
    """`(h1 * x) * h2` -> `(h1 * h2) * x`: host factors are combined once, on the host, in double."""
    if node.op not in ("mul", "div") or node.type.is_host:
        return None
    left, right = node.args
    if node.op == "mul" and left.type.is_host:
        left, right = right, left
    if not right.type.is_host or not isinstance(left, Call) or left.op not in ("mul", "div"):
        return None
    a, b = left.args
    if not all(_moderate(factor) for factor in (a, b, right) if factor.type.is_host):
        return None  # the product of the two might overflow where the steps do not
    if left.op == "mul" and a.type.is_host and not b.type.is_host:
        return call("mul", call(node.op, a, right), b)
    if left.op == "mul" and b.type.is_host and not a.type.is_host:
        return call("mul", call(node.op, b, right), a)
    if left.op == "div" and b.type.is_host and not a.type.is_host:
        if node.op == "mul":
            return call("mul", a, call("div", right, b))
        return call("div", a, call("mul", b, right))
    return None


RULES: tuple[Rule, ...] = (
    Rule("fold", True, _fold),
    Rule("fold_functions", False, _fold_functions),
    Rule("neutral", True, _neutral),
    Rule("signs", True, _signs),
    Rule("idempotent", True, _idempotent),
    Rule("logic", True, _logic),
    Rule("gather_host", False, _gather_host),
)


def rewrite(node: Expr, exact_only: bool = False) -> Expr:
    """`node` after every rule that matches at its root, repeated until none does."""
    rules = [rule for rule in RULES if rule.exact or not exact_only]
    for _ in range(100):
        if not isinstance(node, Call):
            return node
        for rule in rules:
            changed = rule.apply(node)
            if changed is not None and changed is not node:
                node = changed
                break
        else:
            return node
    return node
