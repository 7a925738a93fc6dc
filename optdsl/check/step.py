"""The statements of a step and of a function: assignments, and which line may stand where."""

from __future__ import annotations

from abc import abstractmethod

from optdsl.check.branches import Branches
from optdsl.check.faults import LIST_HELP
from optdsl.check.names import check_name, shown
from optdsl.check.scope import POISON
from optdsl.check.why import describe
from optdsl.core import types as ty
from optdsl.core.ops import CONSTANTS, FACTS
from optdsl.core.types import Kind, Level, Type
from optdsl.ir.expr import Expr, as_number
from optdsl.lang import syntax as syn


class Statements(Branches):
    """Walks statements in one scope."""

    @abstractmethod
    def use(self, node: syn.Use) -> None:
        """`use NAME(...)` in a step."""

    def statement(self, node: syn.Statement) -> None:
        """One statement."""
        self.builder.work()
        if self.scope.file.report.full:  # nothing that follows would be shown
            return
        if self.scope.instance and len(self.scope.instance.circle) == 1 and not self.builder.loops:
            self.session.at = node.span
        match node:
            case syn.AssignSyntax():
                self.assign(node)
            case syn.If(condition, then, other):
                self.fork(condition, lambda: self.block(then), lambda: self.block(other))
            case syn.Every():
                self.every(node)
            case syn.Repeat():
                self.repeat(node)
            case syn.Use() if self.scope.instance is None:
                self.report("E0103", node.span, "a function cannot `use` a spec", "write it in the step")
            case syn.Use() if self.builder.loops:
                message = "`use` cannot stand in a `repeat`: each repetition would have states of its own"
                self.report("E0103", node.span, message, "write it in front of the loop")
                self.movements.p = POISON
            case syn.Use():
                self.use(node)
            case syn.Return(_, span) if self.scope.instance:
                help = "assign to `p` or to a state instead"
                self.report("E0103", span, "`return` belongs at the end of a `def`", help)
            case syn.Return(_, span):
                help = "assign to a name on both sides of the branch, and return that"
                self.report("E0507", span, "`return` before the end of the function", help)

    # ---- assignments ------------------------------------------------------------------------------------

    def assign(self, node: syn.AssignSyntax) -> None:
        """`name = value`."""
        value, name, slot = self.check(node.value), node.name, (self.scope.number, node.name)
        instance = self.scope.instance
        if not self.is_assignable(node):
            return
        if value is not POISON and not value.type.kind.computed:
            help = 'compare it where it is needed, as in `mode == "l2"`'
            if value.type.kind is Kind.LIST:
                help = LIST_HELP
            self.report("E0404", node.value.span, f"a {value.type.kind.value} cannot be assigned", help)
            value = POISON
        if instance and name in ("p", "g", "update"):
            self.assign_flow(name, value, node)
            return
        if instance and name in instance.state_types:
            instance.used.add(name)
            value = self.state_value(name, value, instance.state_types[name], node.value)
        count = len(self.builder.body)
        line, path = node.span.line, self.scope.file.path
        self.builder.values[slot] = self.builder.assign_slot(slot, value, line, path)
        if instance and len(self.builder.body) > count:
            instance.made.setdefault(id(node), []).append(self.builder.body[-1].name)

    def is_assignable(self, node: syn.AssignSyntax) -> bool:
        """False after a message when `node.name` cannot be assigned."""
        name, span, text = node.name, node.name_span, shown(node.name)
        if name in self.scope.hypers:
            help = f"use another name, or keep the value under `state:` as `{text} [host] = ...`"
            self.report("E0306", span, f"`{text}` is a hyperparameter; a step cannot change it", help)
            return False
        if (self.scope.number, name) in self.builder.inputs:
            message = f"`{text}` is an input, which a step is given and cannot assign"
            self.report("E0307", span, message, "use another name")
            return False
        if self.scope.instance and (name in FACTS or name in CONSTANTS):
            message = f"`{text}` is given to the step and cannot be assigned"
            self.report("E0307", span, message, "use another name")
            return False
        if self.scope.instance is None and name in ("p", "g", "update"):
            help = "return the value, and assign it in the step"
            self.report("E0307", span, f"a function cannot assign `{text}`", help)
            return False
        if not check_name(name, span, self.scope.file.report, "variable"):
            self.builder.values[(self.scope.number, name)] = POISON
            return False
        return True

    def state_value(self, name: str, value: Expr, type_: Type | None, node: syn.Expression) -> Expr:
        """`value` as a state keeps it; POISON after a message when it cannot."""
        if value is POISON or type_ is None:
            return POISON
        if fits(value.type, type_):
            return as_number(value)
        message = f"`{name}` keeps {describe(type_)}, this is {describe(value.type)}"
        because = self.why(node, lambda other: fits(other, type_))
        self.report("E0402", node.span, message, because, remedy(name, value.type, type_))
        return POISON

    def assign_flow(self, name: str, value: Expr, node: syn.AssignSyntax) -> None:
        """An assignment to `p`, `g` or `update`: one value per element."""
        line, path = node.span.line, self.scope.file.path
        if value is not POISON:
            value = as_number(value)
            if not ty.broadcasts_into(value.type.shape, ty.ELEMENT):
                message = f"`{name}` has one value per element, this is {describe(value.type)}"
                because = self.why(node.value, lambda type_: ty.broadcasts_into(type_.shape, ty.ELEMENT))
                self.report("E0405", node.value.span, message, because, "multiply or reduce it to that shape")
                value = POISON
        if name == "g":
            self.builder.values[(self.scope.gradient, "g")] = self.builder.assign("g", value, line, path)
        elif name == "p":
            self.movements.move(value, line, path)
        elif self.update(node.name_span) is not POISON:
            if value is POISON:
                self.movements.p = POISON
            else:
                self.movements.rewrite(value, line, path)

    # ---- functions --------------------------------------------------------------------------------------

    def function_body(self, definition: syn.Def) -> Expr:
        """The value a `def` returns."""
        if not definition.body:  # the parser has said so
            return POISON
        *body, last = definition.body
        self.block(tuple(body))
        if isinstance(last, syn.Return):
            return self.check(last.value)
        self.statement(last)
        if "return" not in self.scope.file.lost:
            message = f"`{shown(definition.name)}` does not end with a return"
            self.report("E0507", definition.name_span, message, "its last line must be `return value`")
        return POISON


def fits(value: Type, target: Type) -> bool:
    """True when a value of one type can be kept where the other is declared."""
    return value.level <= target.level and ty.broadcasts_into(value.shape, target.shape)


def remedy(name: str, value: Type, target: Type) -> str:
    """What to do about a value that is too fine for the state `name`."""
    ways = {
        Level.HOST: "compute it from hyperparameters, facts and other host states",
        Level.GROUP: "reduce it with `over=group`",
        Level.TENSOR: "reduce it, as in `mean(x)`",
    }
    declared = "without brackets" if value.is_element else f"as `{name} [{value.level_name}]`"
    way = ways.get(target.level)
    if target.shape in (ty.ROWS, ty.COLS) and value.is_element:
        way = f"reduce it with `over={target.level_name}`"
    return f"{way}, or declare the state {declared}" if way else f"declare the state {declared}"
