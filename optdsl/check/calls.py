"""Calls: built-ins lowered to core operators, and functions of the spec, which are inlined."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from optdsl.check.expression import Expressions
from optdsl.check.library import Loaded
from optdsl.check.names import OTHER_FUNCTIONS, closest, shown
from optdsl.check.scope import POISON, Scope, TooLarge
from optdsl.core.ops import BUILTINS, CORE, DEFAULT_OVER, OVERS, Builtin, Rule
from optdsl.core.types import Kind
from optdsl.ir.expr import Expr, Var, const, walk
from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Span

#: How deep functions may call each other.
MAX_INLINE = 24
#: A deeper expression, made by functions that call functions, gets a name.
MAX_EXPRESSION = 200
#: Draws have a number below this.
MAX_STREAMS = 2048  # of 4096 sites; the upper ones are for rounding, see optdsl/runtime/random.py


class Calls(Expressions):
    """Checks calls."""

    @abstractmethod
    def function_body(self, definition: syn.Def) -> Expr:
        """The value a function returns; `self` is a walker of the function's own scope."""

    def function(self, node: syn.CallSyntax) -> Expr:
        """A call of a built-in or of a `def`."""
        name, file = node.function, self.scope.file
        if name in file.defs:
            return self.inline(node, *file.defs[name])
        if name == "count" and (found := self.counted(node)) is not None:
            return found
        if name in BUILTINS:
            return self.builtin(node, BUILTINS[name])
        for arg in node.args:
            self.check(arg)
        if name in file.lost:
            return POISON
        if name in self.known():
            message = f"`{shown(name)}` is a value, not a function"
            self.report("E0302", node.function_span, message, f"to multiply, write `{shown(name)} * (...)`")
            return POISON
        if file.complete:  # else it may come from the import that failed
            help = OTHER_FUNCTIONS.get(name) or closest(name, [*BUILTINS, *file.defs])
            help = help or "define it with `def`, or import it"
            self.report("E0302", node.function_span, f"unknown function `{shown(name)}`", help)
        return POISON

    def counted(self, node: syn.CallSyntax) -> Expr | None:
        """`count(list <= x)`: how many numbers of a list are at most x; None for a count of something else."""
        match node:
            case syn.CallSyntax(_, (syn.Compare((op,), (left, right)) as inside,), ()):
                pass
            case _:
                return None
        values, bound, wanted = (left, right, "le") if self.is_list(left) else (right, left, "ge")
        if not self.is_list(values):
            return None
        if op != wanted:
            message = f"`count` cannot count {self.why.text(inside)}"
            self.report(
                "E0404",
                inside.span,
                message,
                "of a list, `count(milestones <= t)` counts what is at most `t`",
            )
            return POISON
        return self.operator("count_upto", (values, bound), node)

    def is_list(self, node: syn.Expression) -> bool:
        """True for the name of a list."""
        if not isinstance(node, syn.Name):
            return False
        found = self.scope.hypers.get(node.id) or self.builder.values.get((self.scope.number, node.id))
        return isinstance(found, Var) and found.type.kind is Kind.LIST

    def is_repeated(self, node: syn.CallSyntax) -> bool:
        """True after a message when a keyword is given twice."""
        counts = Counter(key for key, _ in node.keywords)
        for key, value in node.keywords:
            if counts[key] > 1:
                self.report("E0304", value.span, f"`{shown(key)}` is given twice", "remove one of them")
                return True
        return False

    # ---- built-ins ----------------------------------------------------------------------------------------

    def builtin(self, node: syn.CallSyntax, row: Builtin) -> Expr:
        """Lowers a built-in to core operators."""
        keywords = self.keywords(node, row)
        args = [self.check(arg) for arg in node.args]
        written = f"it is written `{row.signature}`"
        low, high = row.arity
        if not low <= len(args) <= high:
            wanted = str(low) if low == high else f"{low} to {high}"
            noun = "argument" if wanted == "1" else "arguments"
            self.report("E0303", node.span, f"`{row.name}` takes {wanted} {noun}, got {len(args)}", written)
            return POISON
        if keywords is None or any(arg is POISON for arg in args):
            return POISON
        over, stream = keywords
        if row.both and len(args) > 1 and node.keywords:
            message = f"`{row.name}` of several values reduces nothing, so it takes no `over`"
            self.report("E0304", node.span, message, written)
            return POISON
        if row.name == "newton_schulz" and len(args) > 1 and not self.is_count(args[1], node.args[1]):
            return POISON
        if row.repeats:
            args = [self.named(f"{row.name}_arg", arg, node.span) for arg in args]
        result: Expr = row.lower(_Maker(self, node, args, stream), args, over)
        return result

    def is_count(self, value: Expr, node: syn.Expression) -> bool:
        """False after a message when a number of steps is not a whole number known on the host."""
        if value.type.is_host and value.type.kind is Kind.INT:
            return True
        message = f"{self.why.text(node)} is not a whole number known on the host"
        because = self.why(node, lambda type_: type_.is_host) if not value.type.is_host else ""
        help = f"it is a {value.type.kind.value}: an int is written without a point, as in `5`"
        self.report("E0406", node.span, message, because or help)
        return False

    def keywords(self, node: syn.CallSyntax, row: Builtin) -> tuple[str, int | None] | None:
        """(over, stream) of a call of a built-in, or None after a message."""
        over, stream, fine = DEFAULT_OVER, None, not self.is_repeated(node)
        for key, value in node.keywords if fine else ():
            if key == "over" and row.reduction:
                if isinstance(value, syn.Name) and value.id in OVERS:
                    over = value.id
                    continue
                places = ", ".join(f"`{place}`" for place in OVERS)
                message = f"{self.why.text(value)} is not a place to reduce over"
                suggestion = closest(value.id, OVERS) if isinstance(value, syn.Name) else ""
                self.report("E0407", value.span, message, suggestion or f"the places are {places}")
            elif key == "stream" and CORE.get(row.name) and CORE[row.name].rule is Rule.RANDOM:
                number = value.value if isinstance(value, syn.Number) else None
                if isinstance(number, int) and 0 <= number < MAX_STREAMS:
                    stream = number
                    continue
                message = (
                    f"`stream` is a whole number from 0 to {MAX_STREAMS - 1}, not {self.why.text(value)}"
                )
                self.report(
                    "E0406", value.span, message, "leave it out, and each draw has a stream of its own"
                )
            else:
                message = f"`{row.name}` has no keyword `{shown(key)}`"
                self.report("E0304", value.span, message, f"it is written `{row.signature}`")
            fine = False
        return (over, stream) if fine else None

    # ---- functions ----------------------------------------------------------------------------------------

    def inline(self, node: syn.CallSyntax, definition: syn.Def, home: Loaded) -> Expr:
        """The value of a call of a `def`."""
        name, around = definition.name, self.scope.functions
        if name in around:
            circle = " -> ".join([*around[around.index(name) :], name])
            message = f"`{shown(name)}` calls itself: {circle}"
            self.report("E0505", node.function_span, message, "a loop is written `repeat n:`")
            return POISON
        if len(around) >= MAX_INLINE:
            message = f"functions call each other more than {MAX_INLINE} deep here"
            self.report("E0008", node.function_span, message, "call fewer of them, one after the other")
            return POISON
        bound = self.arguments(node, definition)
        if bound is None:
            return POISON
        note = self.note_for(name, home, "called", node.span)
        scope = Scope(self.builder.new_scope(), home, functions=(*around, name), note=note)
        for key, value in bound.items():
            self.builder.values[(scope.number, key)] = self.named(key, value, node.span)
        result = type(self)(self.session, scope).function_body(definition)
        self.builder.close_scope(scope.number)
        return self.named(name, result, node.span) if _depth(result) > MAX_EXPRESSION else result

    def note_for(self, name: str, home: Loaded, verb: str, span: Span) -> str:
        """What messages from inside a function or spec of the file `home` end with: how it is reached."""
        file = "" if home is self.scope.file else f" of {Path(self.scope.file.path).name}"
        outermost = self.scope.note.splitlines()[-1:]
        return "\n".join([f"`{shown(name)}` is {verb} on line {span.line}{file}", *outermost])

    def arguments(self, node: syn.CallSyntax, definition: syn.Def) -> dict[str, Expr] | None:
        """The arguments of a call by parameter, or None after a message."""
        args = [self.check(arg) for arg in node.args]
        named = {key: self.check(value) for key, value in node.keywords}
        if self.is_repeated(node):
            return None
        name, parameters = shown(definition.name), [parameter for parameter, _ in definition.parameters]
        listed = ", ".join(f"`{parameter}`" for parameter in parameters)
        has = f"its parameters are {listed}" if parameters else "it has no parameters"
        for key, value in node.keywords:
            if key not in parameters:
                help = closest(key, parameters) or has
                self.report("E0304", value.span, f"`{name}` has no parameter `{shown(key)}`", help)
                return None
            if key in parameters[: len(args)]:
                message = f"`{name}` is given `{shown(key)}` twice, by place and by name"
                self.report("E0304", value.span, message, "remove one of them")
                return None
        if len(set(parameters)) < len(parameters):  # said where it is defined
            return None
        bound = dict(zip(parameters, args, strict=False)) | named
        if len(args) > len(parameters) or len(bound) != len(parameters):
            noun = "argument" if len(parameters) == 1 else "arguments"
            message = f"`{name}` takes {len(parameters)} {noun}, got {len(args) + len(named)}"
            self.report("E0303", node.span, message, has)
            return None
        return bound


class _Maker:
    """Builds the core expressions of one built-in, with the sites of joint reductions and draws."""

    def __init__(self, owner: Calls, node: syn.CallSyntax, args: Sequence[Expr], stream: int | None) -> None:
        self.owner, self.node, self.stream = owner, node, stream
        self.parts = list(zip(args, node.args, strict=True))

    def __call__(self, op: str, *args: Expr | float | int, over: str | None = None) -> Expr:
        builder = self.owner.builder
        nodes = [const(arg) if isinstance(arg, float | int) else arg for arg in args]
        site = None
        if over in ("group", "all"):
            site = builder.sites
            builder.sites += 1
        elif CORE[op].rule is Rule.RANDOM:
            site = builder.streams if self.stream is None else self.stream
            builder.streams = max(builder.streams, site + 1)
            if site >= MAX_STREAMS:
                raise TooLarge(f"this step draws more than {MAX_STREAMS} times")
        return self.owner.call(op, nodes, self.node, self.parts, over=over, site=site)


def _depth(expr: Expr) -> int:
    """How deep an expression is."""
    depths: dict[int, int] = {}
    for node in walk(expr):
        depths[id(node)] = 1 + max((depths[id(arg)] for arg in node.args), default=0)
    return depths[id(expr)]
