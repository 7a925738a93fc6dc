"""Composition: a spec and all it uses become one step with one list of hyperparameters and states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

from optdsl.check.declare import article, hypers_of, literal_value, numbers_of, with_default
from optdsl.check.expression import Session, View
from optdsl.check.library import Loaded
from optdsl.check.names import TORCH_NAMES, check_name, closest, shown, snake_case
from optdsl.check.scope import POISON, Instance, Scope, TooLarge, Undefined
from optdsl.check.states import States
from optdsl.check.why import describe
from optdsl.core import types as ty
from optdsl.core.types import Kind
from optdsl.ir.expr import Expr, HostValue, Var, as_number, call, const, is_joint, is_random, var, walk
from optdsl.ir.program import Assign, Hyper
from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Span

MAX_USE_DEPTH = 12
MAX_INSTANCES = 60

#: A new default for a hyperparameter of a used spec, and where it is given.
Given: TypeAlias = tuple[HostValue, Span]


class Composer(States):
    """Walks one spec of a composition."""

    def run(self, hypers: list[Hyper], bindings: dict[str, Expr], defaults: dict[str, Given]) -> None:
        """Declares the spec and walks its step. `bindings` are hypers given by expressions."""
        instance = self.scope.instance
        assert instance is not None
        self.session.instances += 1
        if self.session.instances > MAX_INSTANCES:
            raise TooLarge(f"this step uses more than {MAX_INSTANCES} specs")
        self.declare_hypers(instance, hypers, bindings, defaults)
        self.declare_states(instance)
        for use in instance.spec.uses:
            self.statement(use)
        self.steps(instance.spec.steps)
        self.check_first_step(instance)
        if instance.spec.view is not None:
            self.view(instance, instance.spec.view)

    # ---- hyperparameters ----------------------------------------------------------------------------------

    def declare_hypers(
        self,
        instance: Instance,
        hypers: list[Hyper],
        bindings: dict[str, Expr],
        defaults: dict[str, Given],
    ) -> None:
        """Adds the hyperparameters that are not bound; a name that is taken gets the prefix of the spec."""
        declared = self.session.declared
        taken = declared.names() | {state.key for state in declared.states}
        for argument in dict.fromkeys(h.argument for h in hypers):
            group = [h for h in hypers if h.argument == argument]
            free = [h for h in group if h.name not in bindings]
            if len(free) < len(group):  # a tuple that is bound in part: what is left are plain arguments
                free = [replace(h, argument=h.name) for h in free]
            names = {h.name for h in free} | {h.argument for h in free}
            front = f"{instance.prefix}_" if instance.prefix and names & taken else ""
            called = {front + name for name in names}
            clash = called & taken or (called & TORCH_NAMES if front else set())
            if clash:
                message = f"two hyperparameters would be called `{shown(min(clash))}`"
                if clash <= TORCH_NAMES:
                    message = (
                        f"a hyperparameter would be called `{min(clash)}`, which every optimizer has already"
                    )
                help = "give the ones of this spec a prefix of their own: `use ... as NAME`"
                instance.use_file.report("E0508", instance.use_span, message, help)
                self.scope.hypers |= {h.name: POISON for h in free}
                continue
            for hyper in free:
                name = hyper.name
                hyper = replace(hyper, name=front + name, argument=front + hyper.argument)
                if name in defaults:
                    hyper = with_default(hyper, *defaults[name], instance.use_file.report)
                declared.hypers.append(hyper)
                self.builder.hypers[hyper.name] = hyper
                self.scope.hypers[name] = var(hyper.name, ty.host(hyper.kind))
        self.scope.hypers |= bindings

    # ---- eval -------------------------------------------------------------------------------------------

    def view(self, instance: Instance, block: syn.StepSyntax) -> None:
        """Walks `eval:`, which sees what is there between two steps, as a step of its own.

        What used specs say comes first. Where a spec is used in a branch, so is its view.
        """
        builder, session, guard = self.builder, self.session, self.builder.guard
        view = session.view or View([], var("p", ty.element()))
        values, moved, count = dict(builder.values), self.movements.value, len(builder.body)
        before = view.p
        for slot, state in builder.stored.items():
            builder.values[slot] = state
        for slot in [slot for slot in builder.values if slot[1] == "g" or slot in builder.inputs]:
            builder.values[slot] = Undefined("in `eval:`, where there is no gradient")
        self.movements.p, self.movements.value = before, None
        for place in self.out_of_place(block.body):
            message = (
                "`eval:` computes what stands for `p` between steps; it uses no other spec and keeps nothing"
            )
            self.report("E0510", place, message, "assign `p`, and names of its own")
        self.block(block.body)
        after = self.movements.p
        for condition, wanted in reversed(guard):
            sides = (after, before) if wanted else (before, after)
            if after is not POISON and condition is not POISON:
                builder.leave()
                line, path = block.span.line, self.scope.file.path
                after = builder.assign("p", call("select", condition, *sides), line, path)
        builder.guard = guard
        added = builder.body[count:]
        del builder.body[count:]
        builder.values, self.movements.value = values, moved
        if any(is_joint(node) or is_random(node) for a in added for node in walk(a.expr)):
            message = "`eval:` cannot reduce over several tensors or draw random numbers"
            self.report("E0510", block.span, message, "keep what it needs in a state")
            return
        if after is POISON:
            return
        needed = self.needed(added, {a.name for a in view.body}, block.span)
        session.view = View([*view.body, *needed, *added], after)

    def out_of_place(self, statements: tuple[syn.Statement, ...]) -> Iterator[Span]:
        """Places of statements that `eval:` cannot have: uses of specs, assignments to what is kept."""
        instance = self.scope.instance
        assert instance is not None
        for node in statements:
            match node:
                case syn.AssignSyntax(name, span) if name in instance.state_types or name in ("g", "update"):
                    yield span
                case syn.Use(_, span) | syn.Every(_, _, _, span):
                    yield span
                case syn.If(_, then, other):
                    yield from self.out_of_place((*then, *other))
                case syn.Repeat(_, body):
                    yield from self.out_of_place(body)

    def needed(self, added: list[Assign], known: set[str], span: Span) -> list[Assign]:
        """What a view reads of the step: conditions of branches, hyperparameters bound to expressions."""
        steps = {assign.name: assign for assign in self.builder.body}
        stored = {state.name for state in self.session.declared.states}
        known = known | {assign.name for assign in added}
        need: set[str] = set()
        for assign in [*reversed(added), *reversed(self.builder.body)]:
            if assign.name in need or assign in added:
                reads = set(assign.expr.reads).union(*(c.reads for c, _ in assign.guard))
                if assign not in added and (not assign.expr.type.is_host or reads & stored):
                    message = f"`eval:` cannot see `{assign.source}`, which only a step computes"
                    self.report("E0510", span, message, "it sees `p`, states, hyperparameters and facts")
                    return []
                need |= (reads & steps.keys()) - known
        return [assign for assign in self.builder.body if assign.name in need]

    # ---- use --------------------------------------------------------------------------------------------

    def use(self, node: syn.Use) -> None:
        """`use NAME(...)`."""
        found = self.found(node)
        if found is None:
            self.movements.p = POISON
            return
        (spec, file), around = found, self.scope.instance
        assert around is not None
        hypers = hypers_of(spec, file.report)
        bindings, defaults = self.bind(node, spec, {h.name: h for h in hypers})
        gradient = self.gradient(node, spec)
        prefix = node.alias or snake_case(spec.name)
        inner = Instance(spec, prefix, node.name_span, self.scope.file, circle=(*around.circle, spec))
        inner.assigned = assigned_lines(spec)
        note = self.note_for(spec.name, file, "used", node.span)
        scope = Scope(self.builder.new_scope(), file, instance=inner, gradient=gradient, note=note)
        Composer(self.session, scope).run(hypers, bindings, defaults)
        self.builder.close_scope(scope.number)
        if gradient != self.scope.gradient:
            self.builder.close_scope(gradient)

    def found(self, node: syn.Use) -> tuple[syn.Spec, Loaded] | None:
        """The spec to use, or None after a message."""
        around, name = self.scope.instance, shown(node.name)
        assert around is not None
        if node.alias is not None and not check_name(node.alias, node.span, self.scope.file.report, "prefix"):
            return None
        found = self.session.library.spec(node.name, node.name_span, self.scope.file)
        if found is None:
            return None
        spec, file = found
        chain = [id(other) for other in around.circle]
        if id(spec) in chain:
            circle = around.circle[chain.index(id(spec)) :]
            if self.session.library.is_new_circle(circle):
                names = " -> ".join(shown(other.name) for other in [*circle, spec])
                message = f"`use` goes in a circle: {names}"
                self.report("E0503", node.name_span, message, "a spec cannot contain itself")
            return None
        if len(around.circle) > MAX_USE_DEPTH:
            message = f"specs use each other more than {MAX_USE_DEPTH} deep here"
            self.report("E0008", node.name_span, message, "use fewer of them, one after the other")
            return None
        if file.report.failed and file is not self.scope.file:
            return None  # its own messages say why
        rewrites = spec.kind == "transform" and mentions_update(spec)
        if rewrites and self.movements.value is None and self.movements.p is not POISON:
            if not self.scope.file.lost:
                message = f"`{name}` changes `update`, but nothing above this line moves `p`"
                self.report("E0506", node.name_span, message, "`use` an optimizer above it")
            return None
        return found

    def gradient(self, node: syn.Use, spec: syn.Spec) -> int:
        """The scope whose `g` the used spec sees: a transform's is ours, an optimizer gets a copy."""
        builder, own = self.builder, self.scope.gradient
        if node.gradient is None and spec.kind == "transform":
            return own
        value = builder.values[(own, "g")]
        if node.gradient is not None:
            value = self.given_gradient(node, spec, *node.gradient)
            if spec.kind == "transform":
                return own
        scope = builder.new_scope()
        builder.values[(scope, "g")] = value
        return scope

    def given_gradient(
        self, node: syn.Use, spec: syn.Spec, name: str, expression: syn.Expression, span: Span
    ) -> Expr:
        """The value of `with g = ...`."""
        if name != "g":
            self.report("E0509", span, f"`with {shown(name)}`: only `g` can be given", "write `with g = ...`")
        elif spec.kind == "transform":
            message = f"`{shown(spec.name)}` is a transform, which changes `g` itself"
            self.report("E0509", span, message, "assign `g` on the line above, and leave `with` out")
        value = self.check(expression)
        if value is POISON:
            return POISON
        if not value.type.kind.computed or not ty.broadcasts_into(value.type.shape, ty.ELEMENT):
            what = describe(value.type) if value.type.kind.computed else article(value.type.kind)
            message = f"a gradient has one value per element, this is {what}"
            self.report(
                "E0405", expression.span, message, self.why(expression, lambda type_: type_.is_element)
            )
            return POISON
        return self.named("g", as_number(value), node.span)

    # ---- bindings ---------------------------------------------------------------------------------------

    def bind(
        self, node: syn.Use, spec: syn.Spec, hypers: dict[str, Hyper]
    ) -> tuple[dict[str, Expr], dict[str, Given]]:
        """Hypers of `spec` given by expressions, and those given new defaults."""
        names: dict[str, tuple[str, ...]] = {}
        for item in spec.hypers:
            parts = tuple(name for name, _, _ in item.parts)
            names |= {item.name: parts or (item.name,)} | {part: (part,) for part in parts}
        bindings: dict[str, Expr] = {}
        defaults: dict[str, Given] = {}
        for index, (name, values, span) in enumerate(node.bindings):
            if name not in names:
                has = ", ".join(f"`{item.name}`" for item in spec.hypers)
                help = closest(name, names) or (f"it has {has}" if has else "it has none")
                message = f"`{shown(spec.name)}` has no hyperparameter `{shown(name)}`"
                self.report("E0504", span, message, help)
                continue
            for target, value in self.pairs(name, names[name], values, span):
                if target in bindings or target in defaults:
                    self.report("E0509", span, f"`{shown(target)}` is given twice", "remove one of them")
                    continue
                literal: HostValue | None
                if isinstance(value, syn.ListSyntax):
                    literal = numbers_of(value, target, self.scope.file.report)
                    if not literal:
                        continue
                else:
                    literal = literal_value(value)
                if index in node.fixed:
                    bindings[target] = self.fixed(hypers.get(target), literal, value)
                elif literal is not None:
                    defaults[target] = (literal, value.span)
                elif target in hypers:
                    bindings[target] = self.bound(hypers[target], self.check(value), value)
        return bindings, defaults

    def pairs(
        self, name: str, targets: tuple[str, ...], values: tuple[syn.Expression, ...], span: Span
    ) -> list[tuple[str, syn.Expression]]:
        """Each part of a hyperparameter with its value; empty after a message."""
        instance = self.scope.instance
        assert instance is not None
        if len(values) == len(targets):
            return list(zip(targets, values, strict=True))
        got = len(values)
        if got == 1 and isinstance(values[0], syn.Name):
            given = values[0]
            tuples = {hyper.name: hyper.parts for hyper in instance.spec.hypers if hyper.parts}
            if given.id in tuples:  # our own tuple, passed on whole
                got = len(tuples[given.id])
                if got == len(targets):
                    names = [syn.Name(part, given.span) for part, _, _ in tuples[given.id]]
                    return list(zip(targets, names, strict=True))
            elif self.name(given.id, given.span) is POISON:
                return []
        wanted = f"{len(targets)} values" if len(targets) > 1 else "one value"
        parts = ", ".join(f"`{target}`" for target in targets)
        help = f"its parts are {parts}" if len(targets) > 1 else "write `name = value`"
        self.report("E0303", span, f"`{shown(name)}` takes {wanted}, got {got}", help)
        return []

    def fixed(self, hyper: Hyper | None, value: HostValue | None, node: syn.Expression) -> Expr:
        """The constant that a hyperparameter of a used spec becomes; POISON after a message."""
        if hyper is None:  # said where it is declared
            return POISON
        name = shown(hyper.name)
        if value is None:
            message = f"`fixed {name}` is for a value as it is written, such as `0.9`"
            self.report(
                "E0509", node.span, message, "leave `fixed` out: what is tied to an expression is no argument"
            )
            return POISON
        if isinstance(value, tuple):
            message = f"the list `{name}` cannot be fixed"
            self.report(
                "E0509", node.span, message, f"declare a list under `hyper:`, and tie `{name}` to that"
            )
            return POISON
        made = with_default(hyper, value, node.span, self.scope.file.report, "value")
        assert not isinstance(made.default, tuple)
        return const(made.default)

    def bound(self, hyper: Hyper, value: Expr, node: syn.Expression) -> Expr:
        """The value that a hyperparameter of a used spec is bound to; POISON after a message."""
        if value is POISON:
            return POISON
        name, text, kind = shown(hyper.name), self.why.text(node), value.type.kind
        if kind is not hyper.kind and not (kind is Kind.INT and hyper.kind is Kind.FLOAT):
            message = f"`{name}` is {article(hyper.kind)}, {text} is {article(kind)}"
            self.report("E0509", node.span, message, "give it a value of its own kind")
            return POISON
        if hyper.kind is not Kind.FLOAT and not value.type.is_host:
            because = self.why(node, lambda type_: type_.is_host)
            message = f"`{name}` is {article(hyper.kind)}, which must be known on the host; "
            self.report("E0509", node.span, message + f"{text} is {describe(value.type)}", because)
            return POISON
        if hyper.kind is not Kind.CHOICE:
            return self.named(hyper.name, value, node.span)
        own = self.builder.hypers.get(value.name) if isinstance(value, Var) else None
        for choice in own.choices if own else ():
            if choice not in hyper.choices:
                message = f'{text} may be "{shown(choice)}", which `{name}` may not'
                listed = ", ".join(f'"{shown(other)}"' for other in hyper.choices)
                self.report("E0509", node.span, message, f"it is one of {listed}")
                return POISON
        return value


def build(session: Session, spec: syn.Spec, file: Loaded) -> Instance:
    """Walks a spec as a program of its own."""
    instance = Instance(spec, "", spec.name_span, file, assigned=assigned_lines(spec), circle=(spec,))
    scope = Scope(session.builder.new_scope(), file, instance=instance)
    Composer(session, scope).run(hypers_of(spec, file.report), {}, {})
    return instance


def check_function(session: Session, definition: syn.Def, file: Loaded) -> None:
    """Looks for mistakes in a function that do not depend on how it is called."""
    scope = Scope(session.builder.new_scope(), file, functions=(definition.name,))
    for parameter, _ in definition.parameters:
        session.builder.values[(scope.number, parameter)] = POISON
    Composer(session, scope).function_body(definition)


def assignments(node: object) -> list[syn.AssignSyntax]:
    """Every assignment of a step, in order."""
    match node:
        case syn.AssignSyntax():
            return [node]
        case syn.Spec():
            return assignments(node.steps)
        case syn.StepSyntax() | syn.Every() | syn.Repeat():
            return assignments(node.body)
        case syn.If():
            return assignments(node.then) + assignments(node.other)
        case tuple():
            return [found for item in node for found in assignments(item)]
    return []


def uses(node: object) -> list[syn.Use]:
    """Every `use` of a spec, in order."""
    match node:
        case syn.Use():
            return [node]
        case syn.Spec():
            return uses(node.uses) + uses(node.steps)
        case syn.StepSyntax() | syn.Every() | syn.Repeat():
            return uses(node.body)
        case syn.If():
            return uses(node.then) + uses(node.other)
        case tuple():
            return [found for item in node for found in uses(item)]
    return []


def assigned_lines(spec: syn.Spec) -> dict[str, int]:
    """The first line that assigns each name."""
    return {node.name: node.span.line for node in reversed(assignments(spec))}


def mentions_update(node: object) -> bool:
    """True when a syntax tree reads or assigns `update`."""
    match node:
        case syn.Name():
            return node.id == "update"
        case syn.AssignSyntax() if node.name == "update":
            return True
        case tuple():
            return any(map(mentions_update, node))
    return any(mentions_update(getattr(node, name)) for name in getattr(node, "__dataclass_fields__", ()))
