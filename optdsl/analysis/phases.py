"""Which plans a setting follows, and in which steps: the conditions of a program settled for one kind of tensor.

Conditions on options and fixed facts leave one branch. Those that change while training leave several, the *phases*;
when each is followed is found by computing the conditions for the first steps and, where they depend on nothing
but the number of the step, for later ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from optdsl.analysis.account import BYTES, WORK, Account, account, computed_in, widths
from optdsl.analysis.setting import Setting
from optdsl.core.record import record
from optdsl.ir.expr import Expr, HostValue, variables
from optdsl.ir.plan import Plan
from optdsl.ir.program import Program
from optdsl.passes.evaluate import Unknown, host_value
from optdsl.passes.library import settings
from optdsl.passes.schedule import schedule
from optdsl.passes.specialise import Leaf, Split, Tree

#: Steps that are looked at one by one.
FIRST = 1000
#: Later steps are looked at as far as this.
_FAR = 10**12

#: Steps from .. to, both included; None: without end, as far as is known.
Range = tuple[int, int | None]
Decisions = tuple[tuple[Expr, bool], ...]


@record
class Phase:
    """A plan and when it is followed.

    `conditions` are those that change while training, with what they must be. `ranges` are the steps, as far as
    they were looked at, of which `of_first` are among the first FIRST. They are `known` if no later step follows
    another plan than they say.
    """

    conditions: Decisions
    ranges: tuple[Range, ...]
    of_first: int
    known: bool
    plan: Plan
    account: Account


@record
class Phases:
    """The phases of a setting, in the order in which they begin; `conditions` are those that the setting settles."""

    conditions: Decisions
    phases: tuple[Phase, ...]

    @property
    def usual(self) -> Phase:
        """The phase that most of the first steps are in."""
        return max(self.phases, key=lambda phase: phase.of_first)


class Planner:
    """Finds the phases of a program, already simplified, for one setting after another."""

    def __init__(self, program: Program) -> None:
        """Raises TooManyBranches, Unsupported."""
        self.original = program
        self.program, self.library, self.tree = settings(program)
        self.plans: dict[tuple[int, str], Plan] = {}

    def phases(self, setting: Setting) -> Phases:
        """Raises ValueError for options that the program does not take, Unsupported where a step has no plan."""
        hypers = setting.hypers(self.program)
        sizes = {**widths(self.original, setting.dtype), WORK: BYTES[computed_in(setting.dtype)]}
        timeline = _Timeline(self.program, self.tree, {**hypers, **setting.facts})
        found = []
        for leaf, conditions, ranges, count in timeline.leaves():
            plan = self.plan(leaf, setting.mode)
            found.append(
                Phase(
                    conditions,
                    ranges,
                    count,
                    timeline.direct or len(timeline.reached) < 2,
                    plan,
                    account(plan, sizes),
                )
            )
        return Phases(timeline.settled, tuple(found))

    def plan(self, leaf: Leaf, mode: str) -> Plan:
        """The plan of a leaf of the tree."""
        key = (id(leaf), mode)
        if key not in self.plans:
            self.plans[key] = schedule(leaf, mode, self.library)
        return self.plans[key]


class _Timeline:
    """The leaves that the steps of one tensor follow. `known` are hyperparameters and fixed facts."""

    def __init__(self, program: Program, tree: Tree, known: Mapping[str, HostValue]) -> None:
        self.known = known
        self.hosts = {state.name: state for state in program.states if state.type.is_host}
        settled: list[tuple[Expr, bool]] = []
        while isinstance(tree, Split) and tree.static:
            taken = bool(host_value(tree.condition, known, _definitions(tree.program)))
            settled.append((tree.condition, taken))
            tree = tree.then if taken else tree.other
        self.tree = tree
        self.settled = tuple(settled)
        self.definitions = _definitions(program if isinstance(tree, Leaf) else tree.program)
        self.results = tree.program.results
        self.reached: dict[int, tuple[Leaf, Decisions]] = {}
        #: Whether all conditions can be computed for any step without the steps before it.
        self.direct = not self._recursive()

    def _recursive(self) -> bool:
        """Whether a condition reads a host state whose new value depends on a host state."""
        read = set().union(*(self._inputs(condition) for condition in _conditions(self.tree)))
        changed = read & self.hosts.keys() & self.results.keys()
        return any(self._inputs(self.results[name]) & self.hosts.keys() for name in changed)

    def _inputs(self, expr: Expr) -> set[str]:
        """The inputs that a host expression depends on."""
        queue = list(variables(expr))
        seen = set(queue)
        while queue:
            definition = self.definitions.get(queue.pop())
            if definition is not None:
                new = variables(definition) - seen
                seen |= new
                queue += new
        return seen - self.definitions.keys()

    # ---- steps ------------------------------------------------------------------------------------------

    def leaves(self) -> Iterator[tuple[Leaf, Decisions, tuple[Range, ...], int]]:
        """Every leaf that some step follows, its conditions, its steps, and how many of the first ones."""
        if isinstance(self.tree, Leaf):
            yield self.tree, (), ((1, None),), FIRST
            return
        steps = [self._reach(leaf) for leaf in self._first()]
        ranges: dict[int, list[Range]] = {}
        begin = 1
        for step, mark in enumerate(steps, 1):
            if step == FIRST or steps[step] != mark:
                ranges.setdefault(mark, []).append((begin, step))
                begin = step + 1
        if self.direct:
            self._later(steps[-1], ranges)
        last = max(ranges, key=lambda mark: ranges[mark][-1][1] or 0)
        ranges[last][-1] = (ranges[last][-1][0], None)
        for mark, found in ranges.items():
            leaf, conditions = self.reached[mark]
            yield leaf, conditions, tuple(found), steps.count(mark)

    def _reach(self, found: tuple[Leaf, Decisions]) -> int:
        self.reached[id(found[0])] = found
        return id(found[0])

    def _first(self) -> Iterator[tuple[Leaf, Decisions]]:
        """The leaves of the first steps, one by one."""
        states = self._begin()
        for t in range(1, FIRST + 1):
            leaf, decisions = self._leaf(t, states)
            yield leaf, decisions
            states = self._next(t, states, leaf.program)

    def _begin(self) -> dict[str, HostValue]:
        """The host states in front of the first step."""
        states: dict[str, HostValue] = {}
        for state in self.hosts.values():
            if state.init is not None:
                with contextlib.suppress(Unknown):
                    states[state.name] = host_value(state.init, self.known, {})
        return states

    def _next(self, t: int, states: Mapping[str, HostValue], program: Program) -> dict[str, HostValue]:
        """The host states behind step t; one that cannot be known is left out."""
        definitions = _definitions(program)
        known = self._environment(t, states)
        new = {}
        for name in self.hosts:
            with contextlib.suppress(Unknown):
                if name in program.results:
                    new[name] = host_value(program.results[name], known, definitions)
                elif name in states:
                    new[name] = states[name]
        return new

    def _environment(self, t: int, states: Mapping[str, HostValue]) -> dict[str, HostValue]:
        return {**self.known, **states, "t": float(t), "first_step": t == 1}

    def _leaf(self, t: int, states: Mapping[str, HostValue]) -> tuple[Leaf, Decisions]:
        """The leaf that step t follows."""
        tree, decisions = self.tree, []
        known = self._environment(t, states)
        while isinstance(tree, Split):
            try:
                taken = bool(host_value(tree.condition, known, _definitions(tree.program)))
            except Unknown:
                taken = self.direct = False
            if not tree.static:
                decisions.append((tree.condition, taken))
            tree = tree.then if taken else tree.other
        return tree, tuple(decisions)

    def _later(self, mark: int, ranges: dict[int, list[Range]]) -> None:
        """Adds the steps behind FIRST, where the plan changes now and then at most."""

        def at(t: int) -> int:
            states = self._next(t - 1, self._begin(), self.tree.program)
            return self._reach(self._leaf(t, states))

        if sum(map(len, ranges.values())) > FIRST // 20:
            return  # it changes all the time
        step = FIRST
        while step < _FAR:
            probe = min(_FAR, step + step // 4)
            found = at(probe)
            if found != mark:
                change = _change(at, step, probe)
                begin, _ = ranges[mark][-1]
                ranges[mark][-1] = (begin, change - 1)
                mark = at(change)
                ranges.setdefault(mark, []).append((change, change))
                step = change
            else:
                begin, _ = ranges[mark][-1]
                ranges[mark][-1] = (begin, probe)
                step = probe


def _change(at: Callable[[int], int], low: int, high: int) -> int:
    """The first step behind `low` that follows another plan, if there is one change up to `high`."""
    before = at(low)
    while high - low > 1:
        middle = (low + high) // 2
        if at(middle) == before:
            low = middle
        else:
            high = middle
    return high


def _definitions(program: Program) -> dict[str, Expr]:
    return {assign.name: assign.expr for assign in program.body}


def _conditions(tree: Tree) -> Iterator[Expr]:
    if isinstance(tree, Split):
        yield tree.condition
        yield from _conditions(tree.then)
        yield from _conditions(tree.other)


__all__ = ["FIRST", "Phase", "Phases", "Planner", "Range"]
