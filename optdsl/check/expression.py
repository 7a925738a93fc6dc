"""Typed expressions from syntax: names and operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from optdsl.check.faults import choice_operands, fault_of
from optdsl.check.library import Library
from optdsl.check.names import OTHER_NAMES, closest, shown
from optdsl.check.scope import POISON, Builder, Declared, Scope, Undefined, is_simple
from optdsl.check.update import Movements
from optdsl.check.why import Why
from optdsl.core import types as ty
from optdsl.core.ops import BUILTINS, CONSTANTS, FACTS
from optdsl.core.record import field, record
from optdsl.ir.expr import Const, Expr, TypeFault, Var, call, const, var
from optdsl.ir.program import Assign
from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Span


@record(frozen=False)
class View:
    """What the blocks `eval:` of a composition say so far: assignments, and what stands for `p`."""

    body: list[Assign]
    p: Expr


@record(frozen=False)
class Session:
    """The check of one spec and all it uses."""

    library: Library
    builder: Builder = field(default_factory=Builder)
    declared: Declared = field(default_factory=Declared)
    movements: Movements = field(init=False)
    instances: int = 0
    view: View | None = None
    at: Span | None = None  # the statement of the outermost step that is being walked

    def __post_init__(self) -> None:
        """Gives `p` and `g` their first values."""
        self.movements = Movements(self.builder)
        self.builder.values[(0, "g")] = var("g", ty.element())


class Expressions(ABC):
    """Checks expressions of one scope, adding assignments for what must be named to the builder."""

    def __init__(self, session: Session, scope: Scope) -> None:
        self.session = session
        self.builder = session.builder
        self.movements = session.movements
        self.scope = scope
        self.initial = False  # in the initial value of a state
        self.types: dict[int, Expr] = {}
        self.why = Why(self.builder, self.types, scope.file.file.lines, scope.file.path)

    def report(self, code: str, span: Span, message: str, *help: str) -> None:
        """A message, unless the parser has one on the same text; each non-empty `help` is a line of it."""
        if any(message.code < "E02" and message.span == span for message in self.scope.file.report.found):
            return
        note = self.scope.note if code.startswith("E04") else ""  # it may depend on the values given
        lines = [line for line in (*help, note) if line]
        self.scope.file.report(code, span, message, "\n".join(lines))

    def named(self, source: str, expr: Expr, span: Span) -> Expr:
        """`expr` itself if it is a name or a number, else a new value that holds it."""
        return expr if is_simple(expr) else self.assigned(source, expr, span)

    def assigned(self, source: str, expr: Expr, span: Span) -> Expr:
        """A new value that holds `expr`."""
        return self.builder.assign(source, expr, span.line, self.scope.file.path)

    # ---- expressions ------------------------------------------------------------------------------------

    def check(self, node: syn.Expression) -> Expr:
        """The typed expression, or POISON after a message."""
        self.builder.work()
        result = self.types[id(node)] = self._check(node)
        return result

    def _check(self, node: syn.Expression) -> Expr:
        match node:
            case syn.Number(value) | syn.Bool(value) | syn.String(value):
                return const(value)
            case syn.Name(name, span):
                return self.name(name, span)
            case syn.Operation(op, args):
                return self.operator(op, args, node)
            case syn.Compare(ops, args):
                return self.compare(ops, args, node)
            case syn.IfElse(condition, then, other):
                return self.operator("select", (condition, then, other), node)
            case syn.CallSyntax():
                return self.function(node)
            case syn.ListSyntax():
                raise AssertionError("a list stands in a binding alone")

    def operator(self, op: str, args: tuple[syn.Expression, ...], node: syn.Expression) -> Expr:
        """An operator applied to checked operands."""
        values = [self.check(arg) for arg in args]
        return self.call(op, values, node, list(zip(values, args, strict=True)))

    def call(
        self,
        op: str,
        args: Sequence[Expr],
        node: syn.Expression,
        parts: Sequence[tuple[Expr, syn.Expression]],
        over: str | None = None,
        site: int | None = None,
    ) -> Expr:
        """A core operator, with a message when it does not take the arguments.

        `parts` are the operands as they are written, so that the message can point at the guilty one.
        """
        if any(arg is POISON for arg in args):
            return POISON
        self.builder.work()
        try:
            return call(op, *args, over=over, site=site)
        except TypeFault as error:
            only = parts[0][1] if len(parts) == 1 else None
            written = [next((part for value, part in parts if value is arg), only) for arg in args]
            texts = [self.why.text(part) if part is not None else "this" for part in written]
            types, index = [arg.type for arg in args], error.argument
            if op in ("eq", "ne", "select") and (choices := choice_operands(types)):
                index = choices[0] if op == "select" else None  # of a comparison, neither is the guilty one
            guilty = written[index] if index is not None else None
            code, message, help = fault_of(op, types, texts, index, over, str(error))
            because = self.why(guilty, lambda type_: type_.is_host) if guilty and code == "E0406" else ""
            self.report(code, (guilty or node).span, message, because, help)
            return POISON

    @abstractmethod
    def function(self, node: syn.CallSyntax) -> Expr:
        """A call of a built-in or of a `def`."""

    # ---- names ----------------------------------------------------------------------------------------

    def name(self, name: str, span: Span) -> Expr:
        """The value of a name, or POISON after a message."""
        found = self.lookup(name, span)
        if found is None:
            self.unknown(name, span)
            # one message per name is enough
            found = self.builder.values[(self.scope.number, name)] = POISON
        elif isinstance(found, Var):
            self.builder.reads.add(found.name)
        return found

    def lookup(self, name: str, span: Span) -> Expr | None:
        """The value of a name, POISON after a message, or None when there is no such name."""
        scope, instance = self.scope, self.scope.instance
        if instance and (name in scope.hypers or name in instance.state_types):
            instance.used.add(name)
        if name in scope.hypers:
            return scope.hypers[name]
        slot = (scope.number, name)
        if instance and name == "p":
            slot = (0, "p")
        elif instance and name == "g":
            slot = (scope.gradient, "g")
        elif instance and name == "update":
            return self.update(span)
        if slot in self.builder.values:
            value = self.builder.values[slot]
            return self.undefined(name, value, span) if isinstance(value, Undefined) else value
        if name in CONSTANTS:
            return const(CONSTANTS[name])
        if name in FACTS and instance:
            return fact(name)
        return None

    def undefined(self, name: str, value: Undefined, span: Span) -> Expr:
        """Reports a name that has a value on some paths only."""
        if self.initial:
            what = "input" if (self.scope.number, name) in self.builder.inputs else "state"
            message = f"an initial value cannot depend on the {what} `{name}`"
            self.report(
                "E0408", span, message, "it may use `p`, `g`, hyperparameters and facts such as `rows`"
            )
        elif name not in self.scope.file.lost:
            is_state = self.scope.instance is not None and name in self.scope.instance.state_types
            if is_state:
                help = f"declare it with an initial value, as in `{name} = 0`"
            else:
                help = value.help or f"line {value.line} assigns it; assign it on every path, or once before"
            self.report(
                "E0308" if is_state else "E0305", span, f"`{shown(name)}` has no value {value.reason}", help
            )
        return POISON

    def unknown(self, name: str, span: Span) -> None:
        """Reports a name that means nothing here, unless that follows from another mistake."""
        scope, text = self.scope, shown(name)
        if name in scope.file.lost:
            return
        if name in BUILTINS or name in scope.file.defs:
            self.report("E0309", span, f"`{text}` is a function, not a value", f"call it: `{text}(...)`")
            return
        if scope.instance is None:
            where = " in this function, which sees nothing but its parameters"
            help = closest(name, self.known()) if name not in (*FACTS, "p", "g", "update") else ""
            self.report("E0301", span, f"unknown name `{text}`{where}", help or f"make `{text}` a parameter")
            return
        for hyper in scope.instance.spec.hypers:
            if hyper.name == name and hyper.parts:
                parts = " or ".join(f"`{part}`" for part, _, _ in hyper.parts)
                self.report("E0404", span, f"`{text}` is a tuple, not a number", f"use its parts: {parts}")
                return
        if name in scope.instance.assigned:
            line = scope.instance.assigned[name]
            help = "assign it above, or declare it under `state:` to keep it from step to step"
            if line > span.line:
                message = f"`{text}` has no value yet: line {line}, further down, is the first to assign it"
            elif line == span.line:
                message = f"`{text}` has no value yet when this line reads it"
            else:
                message = f"`{text}` has no value on this path: line {line} assigns it on another one"
                help = "assign it on this path too, or once before"
            self.report("E0305", span, message, help)
            return
        help = OTHER_NAMES.get(name) or closest(name, self.known())
        help = help or f"declare it under `hyper:` or `state:`, or assign it first: `{text} = ...`"
        self.report("E0301", span, f"unknown name `{text}`", help)

    def known(self) -> set[str]:
        """Names that may be read here, for suggestions."""
        names = {name for scope, name in self.builder.values if scope == self.scope.number}
        names |= set(self.scope.hypers) | set(CONSTANTS)
        if self.scope.instance:
            names |= set(FACTS) | {"p", "g"}
        return names

    def update(self, span: Span) -> Expr:
        """What the last movement of `p` subtracted from it."""
        if self.initial:
            self.report("E0408", span, "an initial value cannot depend on `update`", "use `p` or `g`")
            return POISON
        if self.movements.p is POISON:
            return POISON
        if self.movements.value is None:
            if not self.scope.file.lost:
                message = "there is no update yet: nothing above this line moves `p`"
                self.report("E0506", span, message, "`use` an optimizer above it")
            self.movements.p = POISON
            return POISON
        return self.movements.read()

    # ---- comparisons ------------------------------------------------------------------------------------

    def compare(self, ops: tuple[str, ...], args: tuple[syn.Expression, ...], node: syn.Expression) -> Expr:
        """`a < b <= c` as `a < b and b <= c`, with b computed once."""
        values = [self.check(arg) for arg in args]
        values[1:-1] = [self.named("between", value, node.span) for value in values[1:-1]]
        parts = list(zip(values, args, strict=True))
        result: Expr | None = None
        for index, op in enumerate(ops):
            pair = values[index : index + 2]
            if not self.is_choice_known(pair, args[index : index + 2]):
                return POISON
            link = self.call(op, pair, node, parts)
            result = link if result is None else self.call("and", [result, link], node, [])
        assert result is not None
        return result

    def is_choice_known(self, pair: list[Expr], nodes: tuple[syn.Expression, ...]) -> bool:
        """False after a message when a choice is compared with a value it can never have."""
        for mine, other, node in ((pair[0], pair[1], nodes[1]), (pair[1], pair[0], nodes[0])):
            if not (isinstance(mine, Var) and isinstance(other, Const) and isinstance(other.value, str)):
                continue
            hyper = self.builder.hypers.get(mine.name)
            choices = hyper.choices if hyper else ()
            if choices and other.value not in choices:
                listed = ", ".join(f'"{shown(choice)}"' for choice in choices)
                message = f'`{mine.name}` is never "{shown(other.value)}"'
                help = closest(other.value, choices) or f"it is one of {listed}"
                self.report("E0404", node.span, message, help)
                return False
        return True


def fact(name: str) -> Expr:
    """The expression for a fact such as `t`."""
    return var(name, ty.host(FACTS[name]))
