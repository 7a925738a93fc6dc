"""`update`: what the last movement of `p` subtracts from it, across branches.

A movement `p = p - x` has the update `x`; so has every sum that starts from `p`, such as `p + a - b` with the
update `b - a`. Any other movement has the difference of `p` before and after it. Naming the update of a
movement that is already in the step splits that assignment in two.
"""

from __future__ import annotations

from typing import TypeAlias

from optdsl.check.scope import POISON, Builder, Undefined, is_simple
from optdsl.core import types as ty
from optdsl.core.record import record
from optdsl.ir.expr import Call, Expr, Var, call, const, var
from optdsl.ir.program import Assign


@record
class Update:
    """`name` is the assignment `p = ...`, `base` the `p` before it, `amount` what it subtracts if it says."""

    name: str
    base: Expr
    amount: Expr | None


@record
class UpdateMerge:
    """Different updates on two sides of a branch; None where `p` was never moved, and still is `before`.

    `name` is the assignment that joins `p`.
    """

    name: str
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
        self.p = var("p", ty.element())
        self._known: dict[str, tuple[Expr, Expr]] = {}

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
            self.p = self.builder.assign("p", expr, line, path)
            self.value = Update(self.builder.body[-1].name, before, _subtracted(expr, before))

    def join(self, condition: Expr, then: UpdateValue, other: UpdateValue, before: Expr) -> None:
        """Sets the update where two branches meet; `before` is `p` in front of them."""
        self.value = then
        if then is not other and isinstance(self.p, Var):
            self.value = UpdateMerge(self.p.name, condition, then, other, before)

    def read(self) -> Expr:
        """The update, as a name or a number."""
        return self._resolve(self.value)[1]

    def rewrite(self, amount: Expr, line: int, path: str) -> None:
        """`update = amount`: moves `p` from where it was before its last movement."""
        base, _ = self._resolve(self.value)
        new = self.builder.assign("update", amount, line, path)
        self.p = base
        self.move(call("sub", base, new), line, path)

    def _resolve(self, value: UpdateValue) -> tuple[Expr, Expr]:
        """(base, amount) of a movement, both as names or numbers."""
        assert value is not None
        if value.name not in self._known:
            self._known[value.name] = self._of(value) if isinstance(value, Update) else self._merged(value)
        return self._known[value.name]

    def _of(self, value: Update) -> tuple[Expr, Expr]:
        """Names the amount, in front of the assignment of `p` or, when derived from it, behind it."""
        if value.amount is not None and is_simple(value.amount):
            return value.base, value.amount
        body = self.builder.body
        index = next(i for i, a in enumerate(body) if a.name == value.name)
        moved = body[index]
        if value.amount is None:
            return value.base, self._insert(index + 1, "update", call("sub", value.base, moved.var), moved)
        amount = self._insert(index, "update", value.amount, moved)
        body[index + 1] = Assign(moved.name, "p", call("sub", value.base, amount), moved.guard, moved.line)
        return value.base, amount

    def _merged(self, value: UpdateMerge) -> tuple[Expr, Expr]:
        """Joins the amounts of two sides, right behind the join of `p`."""
        sides = [
            (value.before, const(0.0)) if side is None else self._resolve(side)
            for side in (value.then, value.other)
        ]
        index = next(i for i, a in enumerate(self.builder.body) if a.name == value.name)
        moved = self.builder.body[index]
        joined = []
        for source, a, b in zip(("p", "update"), *sides, strict=True):
            if a is not b:
                index += 1
                a = self._insert(index, source, call("select", value.condition, a, b), moved)
            joined.append(a)
        base, amount = joined
        return base, amount

    def _insert(self, index: int, source: str, expr: Expr, beside: Assign) -> Expr:
        """A new value at a place of the step, computed whenever `beside` is."""
        builder = self.builder
        builder.work()
        name = builder.version(source, beside.line, builder.origins[beside.name].path)
        builder.body.insert(index, Assign(name, source, expr, beside.guard, beside.line))
        builder.definitions[name] = expr
        return var(name, expr.type)


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
