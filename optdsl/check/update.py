"""`update`: what the last movement of `p` subtracts from it, across branches.

A movement `p = p - x` has the update `x`; so has every sum that starts from `p`, such as `p + a - b` with the
update `b - a`. Any other movement has the difference of `p` before and after it. Naming the update of a
movement that is already in the step splits that assignment in two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from optdsl.check.scope import POISON, Builder, Undefined, is_simple
from optdsl.core import types as ty
from optdsl.ir.expr import Call, Expr, call, const, var
from optdsl.ir.program import Assign


@dataclass(frozen=True, slots=True)
class Update:
    """`name` is the assignment `p = ...`, `base` the `p` before it, `amount` what it subtracts if it says."""

    name: str
    base: Expr
    amount: Expr | None


@dataclass(frozen=True, slots=True)
class UpdateMerge:
    """Different updates on two sides of a branch; None where `p` was never moved, and still is `before`."""

    condition: Expr
    then: UpdateValue
    other: UpdateValue
    before: Expr


UpdateValue: TypeAlias = Update | UpdateMerge | None


class Movements:
    """Moves `p` and remembers the last update. `value` is saved and joined around branches."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.value: UpdateValue = None
        self._amounts: dict[str, Expr] = {}
        self.p = var("p", ty.element())

    @property
    def p(self) -> Expr:
        """The parameter as it is now; POISON after a mistake."""
        value = self.builder.values[(0, "p")]
        assert not isinstance(value, Undefined)
        return value

    @p.setter
    def p(self, value: Expr) -> None:
        self.builder.values[(0, "p")] = value

    def move(self, expr: Expr, line: int, path: str) -> None:
        """`p = expr`."""
        before = self.p
        self.p = POISON
        if before is not POISON and expr is not POISON:
            after = self.p = self.builder.assign("p", expr, line, path)
            self.value = Update(self.builder.body[-1].name, before, _subtracted(expr, before))
            assert after is not POISON

    def read(self, line: int, path: str) -> Expr:
        """The update, as a name or a number."""
        return self._resolved(line, path)[1]

    def rewrite(self, amount: Expr, line: int, path: str) -> None:
        """`update = amount`: moves `p` from where it was before its last movement."""
        base, _ = self._resolved(line, path)
        new = self.builder.assign("update", amount, line, path)
        self.p = base
        self.move(call("sub", base, new), line, path)

    def joined(self, condition: Expr, then: UpdateValue, other: UpdateValue, before: Expr) -> UpdateValue:
        """The update where two branches meet; `before` is `p` in front of them."""
        return then if then is other else UpdateMerge(condition, then, other, before)

    def _resolved(self, line: int, path: str) -> tuple[Expr, Expr]:
        """(base, amount) of the last movement of `p`; they keep these names from here on."""
        base, amount = self._resolve(self.value, line, path)
        self.value = Update("", base, amount)
        return base, amount

    def _resolve(self, value: UpdateValue, line: int, path: str) -> tuple[Expr, Expr]:
        """(base, amount) of a movement, both as names."""
        assert value is not None
        if isinstance(value, Update):
            return value.base, self._named_amount(value)
        (base, amount), (other_base, other_amount) = (
            (value.before, const(0.0)) if side is None else self._resolve(side, line, path)
            for side in (value.then, value.other)
        )
        if base is not other_base:
            base = self.builder.assign("p", call("select", value.condition, base, other_base), line, path)
        if amount is not other_amount:
            joined = call("select", value.condition, amount, other_amount)
            amount = self.builder.assign("update", joined, line, path)
        return base, amount

    def _named_amount(self, value: Update) -> Expr:
        """Gives the amount a name, in front of the assignment of `p` or, when derived from it, behind it."""
        if value.amount is not None and is_simple(value.amount):
            return value.amount
        if value.name in self._amounts:
            return self._amounts[value.name]
        body = self.builder.body
        index = next(i for i, a in enumerate(body) if a.name == value.name)
        moved = body[index]
        path = self.builder.origins[moved.name].path
        name = self.builder.version("update", moved.line, path)
        derived = value.amount is None
        expr = call("sub", value.base, moved.var) if value.amount is None else value.amount
        amount = var(name, expr.type)
        self.builder.definitions[name] = expr
        body.insert(index + derived, Assign(name, "update", expr, moved.guard, moved.line))
        if not derived:
            body[index + 1] = Assign(
                moved.name, "p", call("sub", value.base, amount), moved.guard, moved.line
            )
        self._amounts[value.name] = amount
        return amount


def _subtracted(expr: Expr, base: Expr) -> Expr | None:
    """What a sum that starts from `base` subtracts from it, or None for any other expression."""
    if not isinstance(expr, Call) or expr.op not in ("add", "sub"):
        return None
    first, second = expr.args
    if first is base:
        return second if expr.op == "sub" else call("neg", second)
    inner = _subtracted(first, base)
    if inner is not None:
        return call("add" if expr.op == "sub" else "sub", inner, second)
    if expr.op == "add" and second is base:
        return call("neg", first)
    return None
