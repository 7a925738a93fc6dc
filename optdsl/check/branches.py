"""Branches and loops: `if`, `step when`, `every`, `repeat`, and what names stand for where paths meet."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

from optdsl.check.calls import Calls
from optdsl.check.expression import fact
from optdsl.check.faults import LIST_HELP
from optdsl.check.ranges import range_of
from optdsl.check.scope import POISON, Slot, Undefined, Value
from optdsl.check.update import UpdateValue
from optdsl.check.why import describe
from optdsl.core import types as ty
from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Const, Expr, Var, call, const, walk
from optdsl.ir.program import number
from optdsl.lang import syntax as syn

MAX_REPEAT = 256
#: A condition of up to this many nodes is written out wherever it is needed; a larger one gets a name.
MAX_CONDITION = 8


class Branches(Calls):
    """Walks statements that choose or repeat."""

    @abstractmethod
    def statement(self, node: syn.Statement) -> None:
        """One statement."""

    def block(self, statements: tuple[syn.Statement, ...]) -> None:
        """A list of statements."""
        for statement in statements:
            self.statement(statement)

    # ---- conditions -------------------------------------------------------------------------------------

    def condition(self, node: syn.Expression) -> Expr:
        """A condition known on the host, or POISON after a message."""
        value = self.check(node)
        if value is POISON:
            return POISON
        if value.type.kind is not Kind.BOOL:
            kind = value.type.kind
            help = {Kind.CHOICE: 'compare it, as in `mode == "l2"`', Kind.LIST: LIST_HELP}.get(
                kind, "compare it with something: `x > 0`"
            )
            message = (
                f"{self.why.text(node)} is a {'number' if kind.computed else kind.value}, not a condition"
            )
            self.report("E0404", node.span, message, help)
            return POISON
        if not value.type.is_host:
            message = f"this condition is {describe(value.type)}; `if` needs one that is known on the host"
            because = self.why(node, lambda type_: type_.is_host)
            self.report(
                "E0401", node.span, message, because, "`a if condition else b` chooses between values"
            )
            return POISON
        if sum(1 for _ in walk(value)) > MAX_CONDITION:
            return self.assigned("condition", value, node.span)
        return value

    def steps(self, steps: tuple[syn.StepSyntax, ...]) -> None:
        """`step:`, or a chain of `step when ... / step otherwise`."""
        if not steps:
            return
        first, *rest = steps
        if first.condition is None:
            self.block(first.body)
        else:
            self.fork(first.condition, lambda: self.block(first.body), lambda: self.steps(tuple(rest)))

    def fork(self, condition: syn.Expression, then: Callable[[], None], other: Callable[[], None]) -> None:
        """`if condition: then else: other`."""
        text = self.why.text(condition)
        text = "its condition" if text == "this" else text
        self.branches(
            self.condition(condition), then, other, condition, f"if {text} holds", f"unless {text} holds"
        )

    # ---- where paths meet -------------------------------------------------------------------------------

    def branches(
        self,
        condition: Expr,
        then: Callable[[], None],
        other: Callable[[], None],
        node: syn.Expression,
        if_then: str,
        if_other: str,
    ) -> None:
        """Walks both sides of a condition and joins what they leave.

        `if_then` and `if_other` complete "has no value ..." for a name that has none on that side.
        """
        builder, movements = self.builder, self.movements
        guard = const(True) if condition is POISON else condition
        before, p, moved = builder.values, movements.p, movements.value
        sides: list[tuple[dict[Slot, Value], dict[Slot, Value]]] = []
        updates: list[UpdateValue] = []
        for wanted, walk_side in ((True, then), (False, other)):
            builder.values, movements.value = dict(before), moved
            builder.branch(guard, wanted)
            entered = dict(builder.values)
            walk_side()
            builder.leave()
            sides.append((entered, builder.values))
            updates.append(movements.value)
        (entered, values), (other_entered, other_values) = sides
        builder.work(len(values) // 8)
        builder.values = {}
        for slot in dict.fromkeys([*values, *other_values]):
            # a state that a side declares, by `use`, is what it was before the step on the other one
            state = builder.stored.get(slot)
            a, b = values.get(slot, state), other_values.get(slot, state)
            if a is not None and a is entered.get(slot) and b is other_entered.get(slot):
                builder.values[slot] = before[slot]  # neither side assigned it
            elif condition is POISON or a is POISON or b is POISON:
                builder.values[slot] = POISON
            elif a is None or b is None or isinstance(a, Undefined) or isinstance(b, Undefined):
                reason = if_then if a is None or isinstance(a, Undefined) else if_other
                builder.values[slot] = self.partial(guard, slot, a, b, reason, node)
            else:
                builder.values[slot] = self.join(guard, slot, a, b, node)
        movements.join(guard, updates[0], updates[1], p)

    def join(self, condition: Expr, slot: Slot, a: Expr, b: Expr, node: syn.Expression) -> Value:
        """One value for a name that has a value on both sides; none if their shapes do not fit together."""
        if a is b:
            return a
        try:
            ty.join([a.type, b.type])
        except ty.ShapeError:
            kinds = f"it is {describe(a.type)} on one side, {describe(b.type)} on the other"
            reason = f"behind the branch on line {node.span.line}: {kinds}"
            return Undefined(reason, node.span.line, *_sides(condition, a, b), help="use two names")
        value, path = call("select", condition, a, b), self.scope.file.path
        joined = self.builder.assign_slot(slot, value, node.span.line, path)
        assert isinstance(joined, Var)
        self.builder.joined[joined.name] = (a, b)
        return joined

    def partial(
        self, condition: Expr, slot: Slot, a: Value | None, b: Value | None, reason: str, node: syn.Expression
    ) -> Undefined:
        """What a name is that has a value on one side at most."""
        kept = [side.kept if isinstance(side, Undefined) else side for side in (a, b)]
        for side in (a, b):
            reason = side.reason if isinstance(side, Undefined) else reason
        both: Expr | None = None
        if kept[0] is not None and kept[1] is not None:  # a state, which keeps something in any case
            joined = self.join(condition, slot, kept[0], kept[1], node)
            assert not isinstance(joined, Undefined)  # all that a state is given fits its own shape
            both = joined
        line = 0
        for side in (a, b):
            if isinstance(side, Undefined):
                line = line or side.line
            elif isinstance(side, Var) and side.name in self.builder.origins:
                line = line or self.builder.origins[side.name].line
        return Undefined(reason, line, *_sides(condition, a, b), both)

    # ---- loops ------------------------------------------------------------------------------------------

    def every(self, node: syn.Every) -> None:
        """`every k offset j:`."""
        if not self.scope.instance:
            help = "write it in the step, around the call"
            self.report("E0103", node.span, "`every` needs `t`, which a function does not see", help)
            return
        period = self.count(node.period, "period", 1)
        offset = self.count(node.offset, "offset", 0) if node.offset is not None else const(0)
        if isinstance(period, Const) and isinstance(offset, Const) and node.offset is not None:
            every, start = int(period.value), int(offset.value)
            if start >= every:
                message = (
                    f"`every {every} offset {start}` never runs: the offset counts from 0 to {every - 1}"
                )
                self.report("E0406", node.offset.span, message, "choose a smaller offset")
                offset = POISON
        condition: Expr = POISON
        if period is not POISON and offset is not POISON:
            condition = call("eq", call("mod", call("sub", fact("t"), 1), period), offset)
        text = self.why.text(node.period).strip("`")
        skipped = f"in the steps that `every {'...' if text == 'this' else text}:` skips"
        self.branches(condition, lambda: self.block(node.body), lambda: None, node.period, "", skipped)

    def count(self, node: syn.Expression, what: str, least: int) -> Expr:
        """A whole number known on the host that is `least` or more, or POISON after a message."""
        value = self.check(node)
        if value is POISON or not self.is_count(value, node):
            return POISON
        low, high = range_of(value, self.builder.hypers, self.builder.definitions)
        if low >= least:
            return value
        text = self.why.text(node)
        if high < least:
            message, help = f"the {what} is {text}, and must be {least} or more", f"write {least} or more"
        else:
            message = f"the {what} {text} may be {'negative' if least == 0 else 'less than 1'}"
            help = f"give its hyperparameter an interval such as `in [{least}, {MAX_REPEAT}]`"
        self.report("E0406", node.span, message, help)
        return POISON

    def repeat(self, node: syn.Repeat) -> None:
        """`repeat n:`, unrolled; for a hyperparameter up to the upper end of its interval."""
        value = self.count(node.count, "number of repetitions", 0)
        low, high = range_of(value, self.builder.hypers, self.builder.definitions)
        if value is not POISON and high < 1:
            message = f"{self.why.text(node.count)} repetitions never run"
            self.report("E0406", node.count.span, message, "write 1 or more, or remove the loop")
        elif value is not POISON and high > MAX_REPEAT:
            self.report("E0602", node.count.span, *self.too_many(node.count, low, high))
        if value is POISON or not 1 <= high <= MAX_REPEAT:
            low = high = 1  # look for mistakes in the block
        else:
            value = self.named("count", value, node.span)
        self.builder.loops += 1
        found = self.scope.file.report.found
        mistakes = len(found)
        for index in range(int(high)):
            if len(found) > mistakes:
                break
            if index < low:
                self.block(node.body)
                continue
            text = self.why.text(node.count)
            self.branches(
                call("gt", value, index),
                lambda: self.block(node.body),
                lambda: None,
                node.count,
                "",
                f"unless {text} is more than {index}",
            )
        self.builder.loops -= 1

    def too_many(self, node: syn.Expression, low: float, high: float) -> tuple[str, str]:
        """Message and remedy for a loop without a small enough bound."""
        text = self.why.text(node)
        if low == high:
            return f"{number(high)} repetitions are too many", f"a loop is unrolled, up to {MAX_REPEAT} times"
        help = f"give its hyperparameter an interval such as `in [1, {MAX_REPEAT}]`"
        if math.isinf(high):
            return f"nothing says how large {text} may be", help
        return f"{text} may be as large as {number(high)}", help


def _sides(condition: Expr, a: Value | None, b: Value | None) -> tuple[Expr, Value | None, Value | None]:
    """A condition that is no negation, and what holds where it does and where it does not."""
    while isinstance(condition, Call) and condition.op == "not":
        condition, a, b = condition.args[0], b, a
    return condition, a, b
