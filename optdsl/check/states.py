"""States of a spec: their names, keys, levels and initial values."""

from __future__ import annotations

from optdsl.check.expression import fact
from optdsl.check.names import BESIDE, LANGUAGE_NAMES, TORCH_NAMES, check_name, closest, shown
from optdsl.check.ranges import whole_range
from optdsl.check.scope import POISON, Instance, Undefined
from optdsl.check.step import Statements, fits, remedy
from optdsl.check.why import describe
from optdsl.core import types as ty
from optdsl.core.storage import FORMATS, is_code
from optdsl.core.types import Kind, Type
from optdsl.ir.expr import (
    Const,
    Expr,
    Var,
    as_number,
    call,
    const,
    is_joint,
    is_random,
    transform,
    var,
    variables,
    walk,
)
from optdsl.ir.program import State, is_static
from optdsl.lang import syntax as syn

#: An initial value may have this many operators.
MAX_INITIAL = 1_000


class States(Statements):
    """Declares the states of one spec."""

    def declare_states(self, instance: Instance) -> None:
        """Gives every state of the spec a name, a key and its first value in this step."""
        lines: dict[str, int] = {}
        for given in instance.spec.inputs:
            if self.is_new(given, lines, instance, "input"):
                self.declare_input(given, instance)
        for item in instance.spec.states:
            name = item.name
            if not self.is_new(item, lines, instance, "state"):
                continue
            type_ = instance.state_types[name] = self.state_type(item)
            self.check_stored(item, type_)
            delay = self.delay(item, type_)
            self.builder.values[(self.scope.number, name)] = POISON
            if type_ is not None:
                self.declare_state(item, type_, instance, delay)

    def check_stored(self, item: syn.StateSyntax, type_: Type | None) -> None:
        """Reports a format that there is not, or that a state of this level cannot have."""
        if item.stored is None or type_ is None:
            return
        text, listed = shown(item.stored), ", ".join(FORMATS)
        if item.stored not in FORMATS:
            message = f"there is no format `{text}` to store a state in"
            self.report(
                "E0207", item.stored_span, message, closest(item.stored, FORMATS) or f"one of {listed}"
            )
        elif not type_.is_element:
            message = f"`stored {text}`: `{shown(item.name)}` keeps {describe(type_)}"
            self.report("E0207", item.stored_span, message, "remove it: such a state takes little memory")

    def delay(self, item: syn.StateSyntax, type_: Type | None) -> int | str | None:
        """The delay of a state, None for none or after a message."""
        if item.delay is None or type_ is None:
            return None
        name, span = shown(item.name), item.delay.span
        if not type_.is_element:
            message = f"`{name}` keeps {describe(type_)}; a delay is for one value per element"
            self.report("E0210", span, message, "remove it")
            return None
        if item.init is None:
            message = f"`{name}` has no initial value, which the first steps read"
            self.report("E0210", span, message, f"write it, as in `{name} = 0 delay ...`")
            return None
        if item.stored is not None and is_code(item.stored):
            message = f"`{name}` is kept for several steps, which codes are not for"
            self.report("E0210", span, message, f"remove `stored {shown(item.stored)}`, or store it as bf16")
            return None
        value = self.check(item.delay)
        if value is POISON:
            return None
        if isinstance(value, Const) and type(value.value) is int and value.value >= 1:
            return value.value
        hyper = self.builder.hypers.get(value.name) if isinstance(value, Var) else None
        text = self.why.text(item.delay)
        if hyper is None or hyper.kind is not Kind.INT or hyper.is_part:
            message = f"{text} is neither a whole number from 1 nor a hyperparameter that is an int"
            help = "an int is written without a point, as in `keep = 3 in [1, inf)`"
            self.report("E0210", span, message, help)
        elif hyper.interval is None or whole_range(hyper.interval)[0] < 1:
            self.report(
                "E0210", span, f"{text} may be less than 1", "give it an interval, as in `in [1, inf)`"
            )
        else:
            return hyper.name
        return None

    def is_new(
        self, item: syn.StateSyntax | syn.InputSyntax, lines: dict[str, int], instance: Instance, what: str
    ) -> bool:
        """Whether a declaration has a name that can be used and is not taken; `lines` are those of others."""
        name = item.name
        fine = check_name(name, item.name_span, self.scope.file.report, what)
        if name in lines or name in self.scope.hypers:
            where = f"on line {lines[name]}" if name in lines else "as a hyperparameter"
            message = f"`{shown(name)}` is already declared {where}"
            self.report("E0201", item.name_span, message, "rename one of them")
            if name not in lines:  # it may be used as either
                self.scope.hypers.pop(name)
                instance.state_types[name] = None
                self.builder.values[(self.scope.number, name)] = POISON
            return False
        lines[name] = item.span.line
        if name in LANGUAGE_NAMES:
            return False
        if not fine:
            instance.state_types[name] = None
            self.builder.values[(self.scope.number, name)] = POISON
        return fine

    def declare_input(self, item: syn.InputSyntax, instance: Instance) -> None:
        """Adds what each step is given under a name."""
        declared, slot = self.session.declared, (self.scope.number, item.name)
        name = free_name(item.name, instance.prefix, declared.names() | {s.key for s in declared.states})
        type_ = ty.element()
        if item.level == "group":
            type_ = Type(Kind.FLOAT, ty.Level.GROUP)
        elif item.level not in (None, "element"):
            message = f"an input cannot be one value per [{shown(str(item.level))}]"
            help = "`[group]` is one number for all parameters; without brackets it is one value per element"
            self.report("E0206", item.level_span, message, help)
        instance.state_types[item.name] = type_
        declared.states.append(State(name, name, type_, None, given=True, doc=item.doc))
        self.builder.values[slot] = self.builder.inputs[slot] = var(name, type_)

    def declare_state(
        self, item: syn.StateSyntax, type_: Type, instance: Instance, delay: int | str | None
    ) -> None:
        """Adds one state to the program."""
        declared, builder, slot = self.session.declared, self.builder, (self.scope.number, item.name)
        init = self.initial_value(item, type_)
        pure = init if init is None else self.from_inputs(init)
        key = self.state_key(item, instance)
        name = free_name(item.name, instance.prefix, declared.names())
        first = const(0) if init is not None and pure is None else pure
        declared.states.append(State(name, key, type_, first, stored=item.stored, delay=delay))
        declared.slots[name] = slot
        state = builder.values[slot] = builder.stored[slot] = var(name, type_)
        if init is None:
            reason, first = (
                "in a parameter's first step",
                fact("first_step") if self.is_always_run() else None,
            )
            builder.values[slot] = Undefined(reason, item.span.line, first, None, state, state)
        elif pure is None and delay is not None:
            message = f"the initial value of `{shown(item.name)}` is not known before the step"
            where = item.delay.span if item.delay else item.span
            self.report("E0210", where, message, "start it from a constant: several steps read it")
        elif pure is None:
            self.start_here(item, init, instance)

    def from_inputs(self, value: Expr) -> Expr | None:
        """An initial value of a used spec in terms of the program's inputs; None when it cannot be had so.

        The `p`, `g` and hyperparameters that the used spec is given may be values of the step.
        """
        definitions = self.builder.definitions
        wanted, stack = set[str](), [value]
        while stack:
            for name in variables(stack.pop()) - wanted:
                wanted.add(name)
                stack += [definitions[name]] if name in definitions else []
        if any(state.name in wanted for state in self.session.declared.states):
            return None
        known: dict[str, Expr] = {}
        for name in [name for name in definitions if name in wanted]:
            known[name] = _replaced(definitions[name], known)
            if _size(known[name]) > MAX_INITIAL:
                return None
        value = _replaced(value, known)
        impure = any(is_random(node) or is_joint(node) for node in walk(value))
        return None if impure or _size(value) > MAX_INITIAL else as_number(value)

    def start_here(self, item: syn.StateSyntax, value: Expr, instance: Instance) -> None:
        """Gives a state of a used spec its initial value in the step, when only the step knows it."""
        if not self.is_always_run():
            message = f"the initial value of `{item.name}` in `{instance.spec.name}` cannot be known before"
            message += " the first step here"
            instance.use_file.report("E0408", instance.use_span, message, "move this line out of its branch")
            return
        slot, path = (self.scope.number, item.name), self.scope.file.path
        value = call("select", fact("first_step"), value, self.builder.stored[slot])
        self.builder.values[slot] = self.builder.assign_slot(slot, value, item.span.line, path)

    def is_always_run(self) -> bool:
        """True when this place runs in every step of a parameter, or in none."""
        names = [state.name for state in self.session.declared.states]
        definitions = self.builder.definitions
        return all(is_static(condition, definitions, names) for condition, _ in self.builder.guard)

    def check_first_step(self, instance: Instance) -> None:
        """Reports states without an initial value that later steps read but the first may not assign."""
        for item in instance.spec.states:
            slot = (self.scope.number, item.name)
            value, stored = self.builder.values.get(slot), self.builder.stored.get(slot)
            if not isinstance(value, Undefined) or stored is None:
                continue
            value = value.settle({fact("first_step"): True})
            if isinstance(value, Undefined) and stored.name in self.builder.all_reads():
                message = (
                    f"`{item.name}` is read in later steps, but a first step may leave it without a value"
                )
                help = f"declare it with an initial value, as in `{item.name} = 0`"
                self.report("E0308", item.name_span, message, help)

    def hide_states(self) -> None:
        """Makes every state unreadable, as it is for an initial value."""
        instance = self.scope.instance
        assert instance is not None
        names = [item.name for item in instance.spec.states] + [item.name for item in instance.spec.inputs]
        for name in names:
            self.builder.values[(self.scope.number, name)] = Undefined("before the first step")

    def state_type(self, item: syn.StateSyntax) -> Type | None:
        """The type a state is declared with, or None after a message."""
        if item.level is None:
            return ty.element()
        found = ty.parse_level(item.level)
        if found is not None:
            return Type(Kind.FLOAT, *found)
        message = f"there is no level [{shown(item.level)}]"
        levels = ", ".join(f"[{name}]" for name in ty.STATE_LEVELS)
        self.report(
            "E0206", item.level_span, message, closest(item.level, ty.STATE_LEVELS) or f"one of {levels}"
        )
        return None

    # ---- initial values ---------------------------------------------------------------------------------

    def initial_value(self, item: syn.StateSyntax, type_: Type) -> Expr | None:
        """The value before the first step, from what the step holds where it starts; 0 after a message."""
        if item.init is None:
            return None
        builder = self.builder
        values, count = dict(builder.values), len(builder.body)
        self.hide_states()
        builder.values[(0, "p")] = var(
            "p", ty.element()
        )  # as it is before the step, wherever the state is declared
        self.initial = True
        value = self.check(item.init)
        self.initial = False
        added = builder.body[count:]
        del builder.body[count:]
        builder.values = values
        known: dict[str, Expr] = {}
        for assign in added:
            known[assign.name] = _replaced(assign.expr, known)
        value = _replaced(value, known)
        return as_number(value) if self.is_initial(item, value, type_) else const(0)

    def is_initial(self, item: syn.StateSyntax, value: Expr, type_: Type) -> bool:
        """False after a message when a state cannot start from `value`."""
        assert item.init is not None
        span = item.init.span
        if value is POISON:
            return False
        if not value.type.kind.computed:
            message = f"{self.why.text(item.init)} is a {value.type.kind.value}; a state is a number"
            self.report("E0404", span, message, "start from 0")
        elif any(is_random(node) for node in walk(value)):
            self.report(
                "E0408", span, "an initial value cannot be drawn", "draw it in the step: `if first_step:`"
            )
        elif any(is_joint(node) for node in walk(value)):
            message = "an initial value cannot reduce over several tensors"
            self.report("E0408", span, message, "compute it in the step: `if first_step:`")
        elif not fits(value.type, type_):
            message = f"`{item.name}` keeps {describe(type_)}; its initial value is {describe(value.type)}"
            because = self.why(item.init, lambda other: fits(other, type_))
            self.report("E0402", span, message, because, remedy(item.name, value.type, type_))
        elif _size(value) > MAX_INITIAL:
            self.report("E0601", span, "this initial value grows too large", "call fewer functions in it")
        else:
            return True
        return False

    # ---- keys -------------------------------------------------------------------------------------------

    def state_key(self, item: syn.StateSyntax, instance: Instance) -> str:
        """The name of a state in `state_dict`."""
        declared, report = self.session.declared, self.scope.file.report
        key, span = (item.key, item.key_span) if item.key else (item.name, item.name_span)
        owners = dict.fromkeys(declared.hyper_names(), "a hyperparameter")
        owners |= {state.key: f"the state `{state.name}`" for state in declared.states}
        if check_name(key, span, report, "key") and key in owners and not instance.prefix:
            message = f"the key `{shown(key)}` is taken by {owners[key]}"
            self.report("E0208", span, message, "give this state a key of its own: `as NAME`")
        return free_name(key, instance.prefix, {*owners, *TORCH_NAMES, *BESIDE})


def free_name(name: str, prefix: str, taken: set[str]) -> str:
    """`name`, `prefix_name`, or one of these with a number: the first that is not taken."""
    base = f"{prefix}_{name}" if prefix else name
    if name not in taken:
        return name
    candidate, count = base, 1
    while candidate in taken:
        count += 1
        candidate = f"{base}_{count}"
    return candidate


def _replaced(value: Expr, known: dict[str, Expr]) -> Expr:
    """`value` with names replaced by what they stand for."""
    return transform(value, lambda node: known.get(node.name, node) if isinstance(node, Var) else node)


def _size(expr: Expr) -> int:
    """How many nodes an expression has when it is written out."""
    sizes: dict[int, int] = {}
    for node in walk(expr):
        sizes[id(node)] = 1 + sum(sizes[id(arg)] for arg in node.args)
    return sizes[id(expr)]
