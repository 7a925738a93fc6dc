"""Flat guarded assignments back to nested branches and reusable names, for printing and for emission.

The result is what a person would write: `if` blocks instead of guards, one variable that changes instead of
versions, and no explicit join where both branches already leave the value under the same name. Names are
found by simulation: start with the names of the spec; whenever a value would be overwritten before its last
use, the overwriting one gets a name of its own, and the simulation starts again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as Set_
from typing import TypeAlias

from optdsl.core.record import field, record
from optdsl.ir.expr import Call, Const, Expr, Var, variables
from optdsl.ir.program import Assign, Guard, Program


@record(frozen=False)
class Set:
    """`target = expr`; `value` is the SSA name it computes, `line` its line in the spec."""

    target: str
    value: str
    expr: Expr
    line: int = 0


@record(frozen=False)
class Branch:
    """`if condition: then else: other`."""

    condition: Expr
    then: list[Statement] = field(default_factory=list)
    other: list[Statement] = field(default_factory=list)


Statement: TypeAlias = Set | Branch


@record(frozen=False)
class Structured:
    """`names` maps SSA names and inputs to variables; `results` says which variable holds each result."""

    body: list[Statement]
    names: dict[str, str]
    results: dict[str, Expr]


@record
class _Either:
    """What a variable holds after a branch whose sides leave different values in it (None: nothing)."""

    condition: Expr
    then: Held
    other: Held


Held: TypeAlias = str | _Either | None


def _under(held: Held, condition: Expr, wanted: bool) -> Held:
    """What is held where `condition` has the value `wanted`."""
    if not isinstance(held, _Either):
        return held
    if held.condition is condition:
        return _under(held.then if wanted else held.other, condition, wanted)
    then, other = (_under(side, condition, wanted) for side in (held.then, held.other))
    return then if then == other else _Either(held.condition, then, other)


def _values(held: Held) -> Iterator[str]:
    """The values that may be held."""
    if isinstance(held, _Either):
        yield from _values(held.then)
        yield from _values(held.other)
    elif held is not None:
        yield held


@record
class _Conflict(Exception):
    """`value` must not be stored under its present name."""

    value: str


def structure(
    program: Program, reserved: Iterable[str] = (), mangle: Mapping[str, str] | None = None
) -> Structured:
    """The step of `program` as nested statements.

    Variables never take a name from `reserved` nor the name of an input, except that new versions of a
    state, of `p` and of `g` may take over its name. `mangle` renames inputs.
    """
    inputs = {"p", "g", *(h.name for h in program.hypers), *(s.name for s in program.states)}
    names = {name: name for name in inputs} | dict(mangle or {})
    states = {s.name for s in program.states}
    taken = set(reserved) | set(names.values())
    own = {"p", "g"} | states
    called = {source: source for source in own}
    for assign in program.body:
        source = assign.source
        if source not in called:
            called[source] = fresh(source, taken | set(called.values())) if source in taken else source
        names[assign.name] = names[source] if source in own else called[source]
    by_name = {a.name: a for a in program.body}
    guards = {a.name: a.guard for a in program.body}
    limit = 2 * len(program.body) + 1
    for _ in range(limit):
        try:
            return _Simulation(program, names).run()
        except _Conflict as conflict:
            old = names[conflict.value]
            new = fresh(old.rstrip("0123456789").rstrip("_") or old, taken | set(names.values()))
            for value in _web(conflict.value, by_name, guards):
                if names[value] == old:
                    names[value] = new
    raise AssertionError("naming did not settle")


def fresh(source: str, used: Set_[str]) -> str:
    """A name made from `source` that is not in `used`."""
    count = 1
    while f"{source}_{count}" in used:
        count += 1
    return f"{source}_{count}"


def _web(value: str, by_name: Mapping[str, Assign], guards: Mapping[str, Guard]) -> Iterator[str]:
    """`value` and, when it joins branches, the values of the branches that it joins."""
    yield value
    if is_join(by_name[value], guards):
        depth = len(by_name[value].guard)
        for arm in by_name[value].expr.args[1:]:
            if isinstance(arm, Var) and len(guards.get(arm.name, ())) > depth:
                yield from _web(arm.name, by_name, guards)


def is_join(assign: Assign, guards: Mapping[str, Guard]) -> bool:
    """True when `assign` joins values of two branches, rather than choosing between two values at hand."""
    if not _is_choice(assign):
        return False
    condition, *arms = assign.expr.args
    for arm, wanted in zip(arms, (True, False), strict=True):
        branch = (*assign.guard, (condition, wanted))
        if any(guards.get(name, ())[: len(branch)] == branch for name in variables(arm)):
            return True
    return False


def _is_choice(assign: Assign) -> bool:
    """True for `select` on a condition known on the host."""
    expr = assign.expr
    return isinstance(expr, Call) and expr.op == "select" and expr.args[0].type.is_host


class _Simulation:
    """Builds the statements while tracking which value each variable holds."""

    def __init__(self, program: Program, names: dict[str, str]) -> None:
        self.program = program
        self.names = names
        self.guards = {a.name: a.guard for a in program.body}
        self.holds: dict[str, Held] = {
            variable: value for value, variable in names.items() if "." not in value
        }

    def run(self) -> Structured:
        body = self.block(list(self.program.body), 0)
        results = dict(self.program.results)
        for name, expr in results.items():
            for read in sorted(variables(expr)):
                self.read(read, self.holds)
            assert name in self.names
        return Structured(body, dict(self.names), results)

    def read(self, value: str, holds: Mapping[str, Held]) -> None:
        """Raises _Conflict unless the variable of `value` holds it."""
        variable = self.names.get(value)
        if variable is None:  # a fact
            return
        held = holds.get(variable)
        # what only one side of a branch has left may be read where the condition of that side is known to hold
        if set(_values(held)) == {value}:
            return
        # inputs stay where they are; of two assigned values the later one moves out of the way
        others = [other for other in _values(held) if other != value and other in self.guards]
        raise _Conflict(others[0] if others else value)

    def block(self, assigns: list[Assign], depth: int) -> list[Statement]:
        """Statements for assignments whose guards agree in their first `depth` conditions."""
        statements: list[Statement] = []
        index = 0
        while index < len(assigns):
            assign = assigns[index]
            if len(assign.guard) == depth:
                if not is_join(assign, self.guards):
                    self.set(assign, statements)
                    index += 1
                    continue
                condition = assign.expr.args[0]
                run: list[Assign] = []
            else:
                condition = assign.guard[depth][0]
                run = []
            while index < len(assigns) and len(assigns[index].guard) > depth:
                if assigns[index].guard[depth][0] is not condition:
                    break
                run.append(assigns[index])
                index += 1
            joins = self.joins(assigns, index, condition, depth)
            index += len(joins)
            statements.append(self.branch(condition, run, joins, depth))
        return statements

    def joins(self, assigns: list[Assign], start: int, condition: Expr, depth: int) -> list[Assign]:
        """The assignments from `start` on that end a branch on `condition`. A choice between two values at
        hand that stands among joins, or right behind the branch, is one more.
        """
        choices: list[Assign] = []
        for assign in assigns[start:]:
            if len(assign.guard) != depth or not _is_choice(assign) or assign.expr.args[0] is not condition:
                break
            choices.append(assign)
        while choices and not is_join(choices[-1], self.guards):
            if all(isinstance(arm, Const | Var) for arm in choices[-1].expr.args[1:]):
                break
            choices.pop()
        return choices

    def set(self, assign: Assign, statements: list[Statement]) -> None:
        for name in sorted(variables(assign.expr)):
            self.read(name, self.holds)
        target = self.names[assign.name]
        self.holds[target] = assign.name
        statements.append(Set(target, assign.name, assign.expr, assign.line))

    def branch(self, condition: Expr, run: list[Assign], joins: list[Assign], depth: int) -> Branch:
        for name in sorted(variables(condition)):
            self.read(name, self.holds)
        before = self.holds
        arms: list[list[Statement]] = []
        after: list[dict[str, Held]] = []
        for wanted in (True, False):
            self.holds = {name: _under(held, condition, wanted) for name, held in before.items()}
            arm = self.block([a for a in run if a.guard[depth][1] is wanted], depth + 1)
            self.copies(joins, wanted, arm)
            arms.append(arm)
            after.append(self.holds)
        then, other = after
        self.holds = {}
        for name in dict.fromkeys([*then, *other]):
            a, b = then.get(name), other.get(name)
            self.holds[name] = a if a == b else _Either(condition, a, b)
        for join in joins:
            target = self.names[join.name]
            if then.get(target) != join.name or other.get(target) != join.name:
                raise _Conflict(join.name)
            self.holds[target] = join.name
        return Branch(condition, *arms)

    def copies(self, joins: list[Assign], wanted: bool, arm: list[Statement]) -> None:
        """Ends an arm: each joined value must stand under the name of its join."""
        done: dict[str, Held] = {}
        for join in joins:
            value = join.expr.args[1 if wanted else 2]
            target = self.names[join.name]
            if target in done:
                raise _Conflict(join.name)
            for name in sorted(variables(value)):
                self.read(name, self.holds)
            if not (isinstance(value, Var) and self.names.get(value.name) == target):
                arm.append(Set(target, join.name, value, join.line))
                self.holds[target] = join.name
            done[target] = join.name
        # only now: until the last copy, a variable that needed none is still read as the value it had
        self.holds |= done


def statements(body: list[Statement]) -> Iterator[Set]:
    """Every `Set` of nested statements, in order."""
    for item in body:
        if isinstance(item, Set):
            yield item
        else:
            yield from statements(item.then)
            yield from statements(item.other)
