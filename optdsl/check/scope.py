"""What the checker knows while it walks a step: values of names, the guard, the assignments so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from optdsl.check.library import Loaded
from optdsl.core import types as ty
from optdsl.core.record import field, record
from optdsl.core.types import Kind, Type
from optdsl.ir.expr import Call, Const, Expr, Var, var
from optdsl.ir.program import Assign, Guard, Hyper, State
from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Span

#: Bounds on what one step may grow to, and on the work of checking it.
MAX_ASSIGNMENTS = 3_000
MAX_WORK = 40_000
#: All specs and functions of a file together.
MAX_FILE_WORK = 2 * MAX_WORK

#: Stands for a value that could not be computed because of a mistake already reported.
POISON = var("<poison>", ty.const(Kind.FLOAT))

Slot: TypeAlias = tuple[int, str]
Value: TypeAlias = "Expr | Undefined"


@record
class Undefined:
    """A name that has a value on some paths only; `reason` completes "has no value ...".

    `then` and `other` are its values where `condition` is known to hold or not to hold. `kept` is what a
    state is left with at the end of the step; `line` is where the name is assigned. `help` says what to do, where
    that is not to assign the name on every path.
    """

    reason: str
    line: int = 0
    condition: Expr | None = None
    then: Value | None = None
    other: Value | None = None
    kept: Expr | None = None
    help: str = ""

    def settle(self, facts: Mapping[Expr, bool]) -> Value:
        """The value where these conditions are known."""
        wanted = facts.get(self.condition) if self.condition is not None else None
        side = None if wanted is None else self.then if wanted else self.other
        if side is None:
            return self
        return side.settle(facts) if isinstance(side, Undefined) else side


@record
class Origin:
    """Where a value was made: the name it has in the file, and the place."""

    source: str
    path: str
    line: int


class TooLarge(Exception):
    """The step, or the work of checking it, grew beyond a bound; says which."""


@record(frozen=False)
class Builder:
    """Collects assignments. `values` maps (scope, name) to the value a name has now.

    `reads` holds the values that a name in the spec stood for, `joined` what a value of joined branches is
    made of; together they tell which variables are never used. `stored` holds what each state was before
    the step, `of_state` the later values of states, `inputs` what the step is given.
    """

    body: list[Assign] = field(default_factory=list)
    guard: Guard = ()
    values: dict[Slot, Value] = field(default_factory=dict)
    definitions: dict[str, Expr] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    reads: set[str] = field(default_factory=set)
    joined: dict[str, tuple[Expr, ...]] = field(default_factory=dict)
    stored: dict[Slot, Var] = field(default_factory=dict)
    of_state: set[str] = field(default_factory=set)
    inputs: dict[Slot, Var] = field(default_factory=dict)
    hypers: dict[str, Hyper] = field(default_factory=dict)
    loops: int = 0
    sites: int = 0
    streams: int = 0
    _versions: dict[str, int] = field(default_factory=dict)
    _scopes: int = 0
    spent: int = 0

    def new_scope(self) -> int:
        """A fresh scope number."""
        self._scopes += 1
        return self._scopes

    def close_scope(self, number: int) -> None:
        """Forgets the names of a scope, but not its states."""
        for slot in [slot for slot in self.values if slot[0] == number and slot not in self.stored]:
            del self.values[slot]

    def work(self, amount: int = 1) -> None:
        """Counts work. Raises TooLarge when it is too much."""
        self.spent += amount
        if self.spent > MAX_WORK:
            raise TooLarge("this grows so large that checking it takes too long")

    def version(self, source: str, line: int, path: str) -> str:
        """A fresh name for a value of `source`."""
        count = self._versions[source] = self._versions.get(source, 0) + 1
        name = f"{source}.{count}"
        self.origins[name] = Origin(source, path, line)
        return name

    def assign(self, source: str, expr: Expr, line: int, path: str) -> Expr:
        """Adds `source = expr` and returns the new value."""
        if expr is POISON:
            return POISON
        if len(self.body) >= MAX_ASSIGNMENTS:
            raise TooLarge(f"this step grows to more than {MAX_ASSIGNMENTS} assignments")
        name = self.version(source, line, path)
        self.body.append(Assign(name, source, expr, self.guard, line))
        self.definitions[name] = expr
        return var(name, expr.type)

    def assign_slot(self, slot: Slot, expr: Expr, line: int, path: str) -> Expr:
        """A new value for a name of a scope; a state keeps its name in the program."""
        state = self.stored.get(slot)
        value = self.assign(state.name if state else slot[1], expr, line, path)
        if state and isinstance(value, Var) and value is not POISON:
            self.of_state.add(value.name)
            self.origins[value.name] = Origin(slot[1], path, line)
        return value

    def all_reads(self) -> set[str]:
        """The values in `reads`, and the sides of branches that they may come from."""
        read: set[str] = set()
        stack = list(self.reads)
        while stack:
            name = stack.pop()
            if name not in read:
                read.add(name)
                stack += [side.name for side in self.joined.get(name, ()) if isinstance(side, Var)]
        return read

    def branch(self, condition: Expr, wanted: bool) -> None:
        """Enters a branch: names that have a value under its condition get it."""
        self.guard = (*self.guard, (condition, wanted))
        facts: dict[Expr, bool] = {}
        for known, value in self.guard:
            facts |= implied(known, value)
        for slot, found in self.values.items():
            if isinstance(found, Undefined):
                self.values[slot] = found.settle(facts)

    def leave(self) -> None:
        """Leaves the innermost branch."""
        self.guard = self.guard[:-1]


def implied(condition: Expr, value: bool) -> dict[Expr, bool]:
    """What is known when `condition` has this truth value."""
    facts = {condition: value}
    if isinstance(condition, Call):
        if condition.op == "not":
            facts |= implied(condition.args[0], not value)
        elif condition.op == ("and" if value else "or"):
            for part in condition.args:
                facts |= implied(part, value)
    return facts


def is_simple(expr: Expr) -> bool:
    """True for a name or a number."""
    return isinstance(expr, Const | Var)


@record(frozen=False)
class Instance:
    """One spec in a composition; the outermost one is the program itself.

    `used` collects the names of hyperparameters and states that something read or assigned, `made` the
    values that each assignment makes, by its id. A type of None in `state_types` stands for a state whose
    declaration is wrong. `assigned` is the first line that assigns a name. `circle` holds the specs around
    this one and itself.
    """

    spec: syn.Spec
    prefix: str
    use_span: Span
    use_file: Loaded
    used: set[str] = field(default_factory=set)
    state_types: dict[str, Type | None] = field(default_factory=dict)
    assigned: dict[str, int] = field(default_factory=dict)
    made: dict[int, list[str]] = field(default_factory=dict)
    circle: tuple[syn.Spec, ...] = ()


@record(frozen=False)
class Scope:
    """Where names of one spec or one inlined function are looked up.

    `hypers` maps the names of hyperparameters (and of bound ones) to values; locals live in the builder
    under `number`, the gradient under `gradient`. `instance` is None inside a function. `note` says what
    brought the walk into this file.
    """

    number: int
    file: Loaded
    hypers: dict[str, Expr] = field(default_factory=dict)
    instance: Instance | None = None
    gradient: int = 0
    functions: tuple[str, ...] = ()
    note: str = ""


@record(frozen=False)
class Declared:
    """What the finished program declares: shared by all instances of a composition."""

    hypers: list[Hyper] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    slots: dict[str, Slot] = field(default_factory=dict)

    def hyper_names(self) -> set[str]:
        """Constructor arguments and names of parts."""
        return {h.name for h in self.hypers} | {h.argument for h in self.hypers}

    def names(self) -> set[str]:
        """Every input name of the program."""
        return self.hyper_names() | {s.name for s in self.states}
