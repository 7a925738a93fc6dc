"""A branch-free program as a plan: how many sweeps, what each reads, computes and writes.

Every value gets a *time*, the number of sweeps that must be over before it can be computed. Values of one time at
element level are fused into one sweep. A value that a later sweep needs again is read back if it was stored there
anyway (a new state), and computed anew from its inputs if not; a state may be stored as soon as it is known, or
later, when its old value is still needed; a reduction may be formed in a later sweep than it could be, which may go
over its operands anyway. Of all choices the one that moves the fewest bytes is taken, and of
those the one with the fewest operations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from optdsl.core.ops import CORE, Rule
from optdsl.core.record import record
from optdsl.core.types import COLS, ELEMENT, ROWS, Kind, Level, Type, host
from optdsl.ir.expr import Call, Const, Expr, Var, as_number, call, const, is_joint, var, variables, walk
from optdsl.ir.plan import Array, Handover, Loop, Place, Plan, Reduction, Sweep, Value
from optdsl.ir.program import Program
from optdsl.passes.evaluate import evaluate
from optdsl.passes.library import Library, Unsupported
from optdsl.passes.specialise import Leaf, inline_host

#: How the parameter's storage bears on the schedule.
EXACT, NARROW, OVERWRITE = "exact", "narrow", "overwrite"
MODES = (EXACT, NARROW, OVERWRITE)


def schedule(leaf: Leaf, mode: str = EXACT, library: Library | None = None) -> Plan:
    """The plan of a branch-free program, of a method with a part that is left to `library`.

    `mode` is EXACT where an array holds what is stored in it, NARROW where storing rounds (bfloat16), so that a
    stored value cannot be read back as what was computed, and OVERWRITE where the gradient may be used as
    scratch memory. Raises Unsupported.
    """
    return _Scheduler(_Flat(leaf, library), mode).plan()


def _reciprocal(expr: Expr) -> Expr:
    """One over a number of the host."""
    whole = call("div", 1.0, expr)
    if isinstance(expr, Const):
        folded = evaluate("div", (1.0, expr.value), False)
        return whole if folded is None else const(folded)
    return whole


def _inputs(program: Program) -> list[str]:
    return [*(h.name for h in program.hypers), *(s.name for s in program.states)]


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


class _Flat:
    """The program with every value at one place: operands that live elsewhere have names of their own."""

    def __init__(self, leaf: Leaf, library: Library | None) -> None:
        self.program: Program = inline_host(leaf.program)
        self.library = library if library is not None and _reads(self.program, library) else None
        self.vector = leaf.vector
        self.values: dict[str, Value] = {}
        self.slots: dict[int, Expr] = {}
        self.slot_exprs: list[Expr] = []
        self.memo: dict[tuple[int, Place], Expr] = {}
        self.alive: list[Expr] = []
        self.count = 0
        taken = {
            name.partition(".")[0] for name in (*(a.name for a in self.program.body), *_inputs(self.program))
        }
        self.part, self.slot_name = (_unused(name, taken) for name in ("part", "slot"))
        self.arrays = self._arrays()
        self.results: dict[str, Expr] = {}
        #: For each value that is the k-th largest of the entries of several tensors the array that has these.
        self.ranked: dict[str, str] = {}
        self.host = {a.name for a in self.program.body if a.expr.type.is_host}
        for assign in self.program.body:
            if not assign.expr.type.is_host:
                self.assign(assign.name, assign.expr)
        states = {s.name: s for s in self.program.states}
        self.host_states: list[tuple[str, Expr]] = []
        #: What the library is handed: for each of its inputs an array in `results`, or a value.
        self.handed: dict[str, str] = {}
        for name, expr in self.program.results.items():
            if isinstance(expr, Var) and expr.name == name:
                continue
            if library is not None and name in library.inputs:
                if self.library is not None and variables(expr):
                    self.hand(name, expr)
            elif name in states and states[name].type.is_host:
                self.host_states.append((name, expr))
            else:
                self.results[name] = self.at(expr, self.arrays[name].place)

    def _arrays(self) -> dict[str, Array]:
        arrays = {name: Array(name, "", Place.ELEMENT) for name in ("p", "g")}
        works = () if self.library is None else (*self.library.inputs, *self.library.outputs)
        for state in self.program.states:
            if not state.type.is_host:
                place = self.place(state.type)
                group = state.type.level is Level.GROUP
                work = state.name in works
                arrays[state.name] = Array(state.name, state.key, place, group, state.given, work)
        return arrays

    def hand(self, name: str, expr: Expr) -> None:
        """Leaves a value in memory for the library: one per element in an array, others where they are kept."""
        place = self.arrays[name].place
        held = self.at(expr, place)
        if place is Place.ELEMENT:
            self.results[name] = held
            self.handed[name] = name
            return
        if not isinstance(held, Var) or held.name not in self.values:
            held = self.name(held, place, expr.type)
        assert isinstance(held, Var)
        self.handed[name] = held.name

    def place(self, type_: Type) -> Place:
        """Where values of a type live."""
        if type_.is_host:
            return Place.HOST
        if type_.level < Level.ARRAY:
            return Place.SCALAR
        if type_.shape == ELEMENT:
            return Place.ELEMENT
        if type_.shape == ROWS:
            return Place.ELEMENT if self.vector else Place.ROWS
        if type_.shape == COLS:
            return Place.SCALAR if self.vector else Place.COLS
        raise Unsupported("it works on matrices")

    def assign(self, name: str, expr: Expr) -> None:
        """Takes over an assignment of the program."""
        place = self.place(expr.type)
        if isinstance(expr, Call) and CORE[expr.op].rule is Rule.REDUCE:
            reduced = self.reduce(expr, name)
            if isinstance(reduced, Var) and reduced.name == name:
                return
            self.values[name] = Value(name, place, expr.type.kind, reduced)
            return
        self.values[name] = Value(name, place, expr.type.kind, self.inner(expr, place))

    def name(self, expr: Expr, place: Place, type_: Type) -> Expr:
        """A value of its own for `expr`, which is lowered already."""
        self.count += 1
        name = f"{self.part}.{self.count}"
        self.values[name] = Value(name, place, type_.kind, expr)
        return var(name, type_)

    def at(self, expr: Expr, place: Place) -> Expr:
        """`expr` as an operand of something at `place`."""
        key = (id(expr), place)
        if key not in self.memo:
            self.alive.append(expr)
            self.memo[key] = self._at(expr, place)
        return self.memo[key]

    def _at(self, expr: Expr, place: Place) -> Expr:
        own = self.place(expr.type)
        if isinstance(expr, Const):
            return expr
        if own is Place.HOST:
            return self.slot(expr)
        if isinstance(expr, Var):
            return expr
        if expr.op == "broadcast":
            return self.at(expr.args[0], place)
        if CORE[expr.op].rule is Rule.REDUCE:
            return self.reduce(expr, None)
        if CORE[expr.op].rule is Rule.RANDOM:
            return self.name(self.inner(expr, own), own, expr.type)
        if own is not place:
            return self.name(self.inner(expr, own), own, expr.type)
        return self.inner(expr, place)

    def inner(self, expr: Expr, place: Place) -> Expr:
        """`expr`, which lives at `place`, with operands that live there too or have names."""
        if not isinstance(expr, Call):
            return self._at(expr, place)
        if CORE[expr.op].rule in (Rule.MATMUL, Rule.TRANSPOSE, Rule.MATRIX):
            raise Unsupported("it works on matrices")
        if expr.op == "broadcast":
            return self.at(expr.args[0], place)
        if expr.op == "div" and expr.args[1].type.is_host:
            # a division takes as long as ten products; the reciprocal is formed in double precision, once
            factors = (self.at(expr.args[0], place), self.at(_reciprocal(expr.args[1]), place))
            return Call("mul", factors, None, None, expr.type)
        args = tuple(self.at(arg, place) for arg in expr.args)
        if CORE[expr.op].rule is Rule.RANDOM:
            return call(expr.op, *args, site=expr.attr)  # type: ignore[arg-type]
        return Call(expr.op, args, expr.attr, expr.site, expr.type)

    def slot(self, expr: Expr) -> Expr:
        """A number of the host."""
        if id(expr) not in self.slots:
            self.slots[id(expr)] = var(f"{self.slot_name}.{len(self.slot_exprs)}", host(expr.type.kind))
            self.slot_exprs.append(expr)
        return self.slots[id(expr)]

    def reduce(self, expr: Call, name: str | None) -> Expr:
        """A reduction, as a value of its own unless a row is an element."""
        if len(expr.args) > 1:
            return self.rank(expr, name)
        operand, over = expr.args[0], str(expr.attr)
        at = self.place(operand.type)
        if at is Place.HOST:
            raise AssertionError("a number of the host is not reduced")
        if self.vector and over == "rows":
            return self.at(operand, at)
        if self.vector and over == "cols":
            over = "tensor"
            if at is Place.SCALAR:
                return self.at(operand, at)
        if self.vector and over == "tensor" and at is Place.SCALAR:
            return self.at(operand, at)
        if name is None:
            self.count += 1
            name = f"{self.part}.{self.count}"
        reduction = Reduction(
            expr.op.removeprefix("reduce_"), over, at, expr.site if is_joint(expr) else None
        )
        self.values[name] = Value(name, self.place(expr.type), Kind.FLOAT, self.at(operand, at), reduction)
        return var(name, expr.type)

    def rank(self, expr: Call, name: str | None) -> Expr:
        """The k-th largest of the entries of several tensors, which are left in memory for when they meet."""
        operand, k = expr.args
        if self.place(operand.type) is not Place.ELEMENT:
            raise Unsupported("it ranks values that are not per element")
        if name is None:
            self.count += 1
            name = f"{self.part}.{self.count}"
        held = _unused(f"ranked{len(self.ranked)}", self.arrays.keys() | self.values.keys())
        self.arrays[held] = Array(held, held, Place.ELEMENT, work=True)
        self.results[held] = self.at(as_number(operand), Place.ELEMENT)
        self.ranked[name] = held
        reduction = Reduction("kth_largest", str(expr.attr), Place.SCALAR, expr.site, held)
        self.values[name] = Value(name, Place.SCALAR, Kind.FLOAT, self.at(k, Place.SCALAR), reduction)
        return var(name, expr.type)


def _reads(program: Program, library: Library) -> bool:
    """Whether a branch of a program needs what the library makes, which may be a state of its own."""
    if library.kept:
        return True
    need: set[str] = set()
    for name, expr in program.results.items():
        if name not in library.inputs:
            need |= variables(expr)
    for assign in reversed(program.body):
        if assign.name in need or any(is_joint(node) for node in walk(assign.expr)):
            need |= variables(assign.expr)
    return bool(need & set(library.outputs))


@record
class _Choice:
    """The sweep in which each written element array is stored, and the value that goes over the gradient."""

    stores: Mapping[str, int]
    scratch: tuple[str, int] | None = None


#: More ways than this to delay reductions are not all tried.
_MAX_DELAYS = 64
#: Of more single changes than this no two are tried together; nothing new is tried after so many plans.
_MAX_MOVES, _MAX_PLANS = 24, 2000
#: Where there are more ways than this to store arrays, each is tried in the first and the last possible sweep alone.
_MAX_STORES = 64


def _ends(sweeps: Sequence[int]) -> list[int]:
    """The first and the last of them."""
    return sorted({*sweeps[:1], *sweeps[-1:]})


@record
class _Fixed:
    """What a sweep has whatever is stored when: for each value the loop in which it can be computed, the reductions
    over elements by that loop, the rows that are computed and the last loop that one of them waits for, and the rest
    of the sweep. `row_reads` are rows that are read outside of loops.
    """

    phases: Mapping[str, int]
    reduces: Mapping[int, list[Value]]
    rows: list[Value]
    here: set[str]
    end: int
    row_reduces: tuple[Value, ...]
    row_stores: tuple[tuple[str, Expr], ...]
    row_reads: set[str]
    kept: tuple[str, ...]


class _Infeasible(Exception):
    pass


class _Scheduler:
    def __init__(self, flat: _Flat, mode: str) -> None:
        self.flat = flat
        self.mode = mode
        self.built = 0
        self.values = self._live()
        self.elements = {
            name: expr for name, expr in flat.results.items() if flat.arrays[name].place is Place.ELEMENT
        }
        self.order = {name: i for i, name in enumerate([*flat.arrays, *self.values])}
        self.set_times({})
        self.count = self._count()

    def _live(self) -> dict[str, Value]:
        """Values that some result needs, in order, and joint reductions: all tensors that reach one take part."""
        need = set().union(*(variables(e) for e in self.flat.results.values()), self.flat.handed.values())
        need |= {v.name for v in self.flat.values.values() if v.reduction is not None and v.reduction.joint}
        live: list[Value] = []
        for value in reversed(self.flat.values.values()):
            if value.name in need:
                live.append(value)
                need |= variables(value.expr)
        return {value.name: value for value in reversed(live)}

    # ---- times ------------------------------------------------------------------------------------------

    def set_times(self, delayed: Mapping[str, int]) -> None:
        """Works out when each value can be computed; `delayed` reductions are formed in these sweeps."""
        #: Sweeps that are over when the value is computed, and the sweep in which a reduction is formed.
        self.time: dict[str, int] = {}
        self.formed: dict[str, int] = {}
        #: By what a choice says about it, a sweep and how many arrays it reads and writes; None if it cannot be.
        self.made: dict[object, tuple[Sweep, int] | None] = {}
        #: What every choice has in common: of each sweep, what it leaves of rows, and the plan around the sweeps.
        self.fixed: dict[int, _Fixed] = {}
        self.crossings: dict[int, set[str]] = {}
        self.frame: Callable[[tuple[Sweep, ...]], Plan] | None = None
        #: The sweep behind which the library runs.
        self.handover = -1
        library = self.flat.library
        joint = 0
        for value in self.values.values():
            if library is not None and variables(value.expr) & set(library.outputs):
                self._hand_over(library)
            now = self.at(value.expr)
            if value.reduction is not None:
                now = max(now, delayed.get(value.name, 0))
                if value.name in self.flat.ranked:
                    now = max(now, self.at(self.elements[self.flat.ranked[value.name]]))
                if value.reduction.joint:
                    # joint sites are formed in the order of the program, in every branch alike: tensors in
                    # different branches wait for each other
                    joint = now = max(now, joint)
                self.formed[value.name] = now
            self.time[value.name] = now + self._sweeps(value)
        if library is not None:
            self._hand_over(library)

    def _hand_over(self, library: Library) -> None:
        """Finds out when the library can run, unless that is known."""
        if self.handover >= 0:
            return
        times = [0]
        for held in self.flat.handed.values():
            if held in self.values:
                times.append(self.time.get(held, 0) + (self.values[held].place is Place.ROWS))
            else:
                times.append(self.at(self.elements[held]) + 1)
        self.handover = max(times)
        self.time.update(dict.fromkeys(library.outputs, self.handover + 1))

    @staticmethod
    def _sweeps(value: Value) -> bool:
        """True for a reduction that is formed in a sweep and finished behind it."""
        found = value.reduction
        return found is not None and (
            found.joint or (found.operand in (Place.ELEMENT, Place.ROWS) and value.place is not Place.ROWS)
        )

    def at(self, expr: Expr) -> int:
        """The time of an expression over values."""
        return max((self.time.get(name, 0) for name in variables(expr)), default=0)

    def _count(self) -> int:
        """How many sweeps there are."""
        ends = [self.at(expr) for expr in self.elements.values()]
        ends += [self.formed[v.name] for v in self.values.values() if self._sweeps(v)]
        ends += [self.time[v.name] for v in self.values.values() if v.place is Place.ROWS]
        ends += [self.at(e) for n, e in self.flat.results.items() if self.flat.arrays[n].place is Place.ROWS]
        if self.flat.library is not None:
            ends.append(self.handover)
        return max(ends, default=-1) + 1

    def _slack(self) -> dict[str, range]:
        """Reductions that may be formed in a later sweep without making more sweeps, and in which."""
        latest = dict.fromkeys(self.values, self.count)
        for value in self.values.values():
            if value.place in (Place.ELEMENT, Place.ROWS):
                latest[value.name] = self.count - 1
        for name, expr in self.flat.results.items():
            if self.flat.arrays[name].place in (Place.ELEMENT, Place.ROWS):  # stored in a sweep
                latest.update({n: min(latest[n], self.count - 1) for n in variables(expr) if n in latest})
        for name, held in self.flat.handed.items():
            if held in self.values:
                end = self.handover - (self.values[held].place is Place.ROWS)
                latest[held] = min(latest[held], end)
            else:
                end = self.handover - 1
                latest.update({n: min(latest[n], end) for n in variables(self.elements[name]) if n in latest})
        joint = self.count  # the latest sweep of the joint reduction behind
        slack: dict[str, range] = {}
        for value in reversed(self.values.values()):
            end = latest[value.name] - self._sweeps(value)
            if value.reduction is not None and value.reduction.joint:
                joint = end = min(end, joint)
            reads = variables(value.expr)
            if value.name in self.flat.ranked:
                reads = reads | variables(self.elements[self.flat.ranked[value.name]])
            for name in reads:
                if name in latest:
                    latest[name] = min(latest[name], end)
            forms = self._sweeps(value) or value.place is Place.ROWS
            if value.reduction is not None and forms and end > self.formed[value.name]:
                slack[value.name] = range(self.formed[value.name], end + 1)
        return dict(reversed(slack.items()))

    # ---- choices ----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """The best plan."""
        slack = self._slack()
        best = self.best({})
        if math.prod(map(len, slack.values())) <= _MAX_DELAYS:
            for chosen in itertools.product(*slack.values()):
                best = min(best, self.best(dict(zip(slack, chosen, strict=True))), key=_first)
            return best[1]
        for start in ({}, {name: sweeps[-1] for name, sweeps in slack.items()}):
            best = min(best, self.descend(start, slack), key=_first)
        return best[1]

    def descend(self, start: Mapping[str, int], slack: Mapping[str, range]) -> tuple[tuple[int, ...], Plan]:
        """What becomes of a choice of delays if one or two at a time are changed for the better."""
        moves = [(move,) for name, sweeps in slack.items() for move in ((name, sweep) for sweep in sweeps)]
        few = moves if len(moves) <= _MAX_MOVES else []
        pairs = [(*a, *b) for a, b in itertools.combinations(few, 2) if a[0][0] != b[0][0]]
        delayed, best = dict(start), self.best(start)
        better = True
        while better:
            better = False
            for move in (*moves, *pairs):
                if self.built > _MAX_PLANS:
                    return best
                found = self.best({**delayed, **dict(move)})
                if found[0] < best[0]:
                    delayed, best, better = {**delayed, **dict(move)}, found, True
        return best

    def best(self, delayed: Mapping[str, int]) -> tuple[tuple[int, ...], Plan]:
        """The best plan with these reductions delayed, and what it is judged by."""
        self.set_times(delayed)
        best: tuple[tuple[int, ...], Plan] | None = None
        plain: dict[str, int] | None = None
        for choice in self.choices():
            self.built += 1
            if choice.scratch is None:
                plain = None
            elif plain is not None and plain.get(choice.scratch[0], -1) <= choice.scratch[1]:
                continue  # nothing computes it anew, so that it would be stored for nothing
            try:
                sweeps, streams = self.build(choice)
            except _Infeasible:
                continue
            if choice.scratch is None and self.mode == OVERWRITE:
                plain = {
                    v.name: k for k, sweep in enumerate(sweeps) for loop in sweep.loops for v in loop.body
                }
            if best is None or streams <= best[0][0]:
                plan = self.around(sweeps)
                key = (streams, _weight(plan), sum(choice.stores.values()))
                if best is None or key < best[0]:
                    best = (key, plan)
        assert best is not None, "storing everything in the last sweep is always possible"
        return best

    def choices(self) -> Iterable[_Choice]:
        """When to store what, for the present times."""
        last = self.count - 1
        names = list(self.elements)
        options: list[Sequence[int]]
        # what torch works on is stored at once, and as it is
        first = {name: self.at(self.elements[name]) for name in names}
        handed = {*self.flat.handed, *self.flat.ranked.values()}
        options = [(first[n],) if n in handed else range(first[n], last + 1) for n in names]
        many = math.prod(map(len, options)) > _MAX_STORES
        if self.mode == NARROW:
            options = [o if n in handed else (last,) for n, o in zip(names, options, strict=True)]
        elif many or len(names) > 5:
            options = [_ends(o) for o in options]
        for stores in itertools.product(*options):
            chosen = dict(zip(names, stores, strict=True))
            yield _Choice(chosen)
            if self.mode == OVERWRITE:
                for name in self._crossing_elements():
                    sweeps = range(self.time[name], last)
                    for k in _ends(sweeps) if many else sweeps:
                        yield _Choice(chosen, (name, k))

    def _crossing_elements(self) -> list[str]:
        """Values per element that something computed, formed or stored in a later sweep may read."""
        found: set[str] = set()
        for value in self.values.values():
            now = self.formed.get(value.name, self.time[value.name] if value.place is Place.ELEMENT else 0)
            found |= {n for n in variables(value.expr) if n in self.values and self.time[n] < now}
        for expr in self.elements.values():
            found |= {n for n in variables(expr) if n in self.values and self.time[n] < self.count - 1}
        return [
            n for n, v in self.values.items()
            if n in found and v.place is Place.ELEMENT and v.kind is Kind.FLOAT and v.draw is None
        ]  # fmt: skip

    # ---- one plan ---------------------------------------------------------------------------------------

    def build(self, choice: _Choice) -> tuple[tuple[Sweep, ...], int]:
        """The sweeps of a choice, and how many arrays they read and write.

        Raises _Infeasible where an array is needed that is gone.
        """
        if any(self.at(self.elements[name]) > k for name, k in choice.stores.items()):
            raise _Infeasible
        made = [self.sweep(k, choice) for k in range(self.count)]
        return tuple(sweep for sweep, _ in made), sum(streams for _, streams in made)

    def around(self, sweeps: tuple[Sweep, ...]) -> Plan:
        """The plan that has these sweeps."""
        if self.frame is None:
            self.frame = self._around()
        return self.frame(sweeps)

    def _around(self) -> Callable[[tuple[Sweep, ...]], Plan]:
        scalars = tuple(
            tuple(
                v for v in self.values.values()
                if v.place in (Place.SCALAR, Place.COLS) and self.time[v.name] == k
            )
            for k in range(self.count + 1)
        )  # fmt: skip
        stores = tuple(
            (name, expr) for name, expr in self.flat.results.items()
            if self.flat.arrays[name].place in (Place.SCALAR, Place.COLS)
        )  # fmt: skip
        used = {"p", "g", *self.flat.results}
        for expr in (*self.flat.results.values(), *(v.expr for v in self.values.values())):
            used |= variables(expr)
        arrays = tuple(a for a in self.flat.arrays.values() if a.name in used)
        lines = (Place.ROWS, Place.COLS)
        rows = any(v.place in lines for v in self.values.values()) or any(a.place in lines for a in arrays)
        slots = list(self.flat.slot_exprs)
        if any(v.draw is not None for v in self.values.values()):
            slots.append(var("t", host(Kind.INT)))
        handover = self._handover(used)
        return lambda sweeps: Plan(
            tuple(slots), tuple(self.flat.host_states), arrays, sweeps, scalars, stores,
            rows, self.flat.vector, self.flat.slot_name, handover,
        )  # fmt: skip

    def _handover(self, used: set[str]) -> Handover | None:
        """Where the library comes in; `used` are the arrays of the plan."""
        library = self.flat.library
        if library is None:
            return None
        outputs = tuple(name for name in library.outputs if name in used)
        return Handover(self.handover, tuple(self.flat.handed.items()), outputs, library.kept)

    def sweep(self, k: int, choice: _Choice) -> tuple[Sweep, int]:
        """Sweep k of a choice, and how many arrays it reads and writes. Raises _Infeasible."""
        key = (
            k,
            tuple((s > k) - (s < k) for s in choice.stores.values()),
            choice.scratch and (choice.scratch[0], (choice.scratch[1] > k) - (choice.scratch[1] < k)),
        )
        if key not in self.made:
            self.made[key] = None
            sweep = self._sweep(k, choice)
            self.made[key] = sweep, len(sweep.reads) + len(sweep.writes)
        found = self.made[key]
        if found is None:
            raise _Infeasible
        return found

    def _sweep(self, k: int, choice: _Choice) -> Sweep:
        stored, lost = self._memory(k, choice)
        stores = [(name, expr) for name, expr in self.elements.items() if choice.stores[name] == k]
        if choice.scratch is not None and choice.scratch[1] == k:
            value = self.values[choice.scratch[0]]
            stores.append(("g", var(value.name, _element(value))))
        fixed = self._fixed(k)
        phases = fixed.phases
        last = max([0, *(self._phase_of(e, phases) for _, e in stores), *fixed.reduces])
        loops = []
        row_reads = set(fixed.row_reads)
        for j in range(last + 1):
            out = stores if j == last else []
            loop, rows = self.loop(fixed.reduces.get(j, []), out, stored, lost)
            row_reads |= rows
            loops.append(loop)
        if fixed.end > last + 1:
            raise AssertionError("a row is reduced after the last loop")
        lines = tuple(tuple(v for v in fixed.rows if phases[v.name] == j) for j in range(last + 2))
        row_loads = tuple((name, name) for name in self._ordered(row_reads - fixed.here))
        return Sweep(tuple(loops), lines, row_loads, fixed.row_reduces, fixed.row_stores, fixed.kept)

    def _fixed(self, k: int) -> _Fixed:
        """What sweep k has whatever is stored when."""
        if k in self.fixed:
            return self.fixed[k]
        phases: dict[str, int] = {}
        for value in self.values.values():
            phases[value.name] = self._phase(value, phases, k)
        reduces: dict[int, list[Value]] = {}
        row_reduces: list[Value] = []
        for value in self.values.values():
            if value.reduction is not None and self.formed[value.name] == k:
                if value.reduction.operand is Place.ELEMENT:
                    reduces.setdefault(self._phase_of(value.expr, phases), []).append(value)
                elif value.reduction.operand is Place.ROWS:
                    row_reduces.append(value)
        rows = [v for v in self.values.values() if v.place is Place.ROWS and self.time[v.name] == k]
        row_stores = [
            (name, expr) for name, expr in self.flat.results.items()
            if k == self.count - 1 and self.flat.arrays[name].place is Place.ROWS
        ]  # fmt: skip
        read = [*(v.expr for v in (*rows, *row_reduces)), *(expr for _, expr in row_stores)]
        here = {v.name for v in rows}
        self.fixed[k] = _Fixed(
            phases, reduces, rows, here, max((phases[v.name] for v in rows), default=0),
            tuple(row_reduces), tuple(row_stores), set().union(*map(self._row_names, read)),
            tuple(sorted(here & self._crossing(k))),
        )  # fmt: skip
        return self.fixed[k]

    def _crossing(self, k: int) -> set[str]:
        """Row values of sweep k that something later reads."""
        if k not in self.crossings:
            self.crossings[k] = self._read_behind(k)
        return self.crossings[k]

    def _read_behind(self, k: int) -> set[str]:
        names: set[str] = set()
        for value in self.values.values():
            if self.time[value.name] > k or value.place is Place.ELEMENT:
                names |= self._row_names(value.expr)
        for expr in self.flat.results.values():
            names |= self._row_names(expr)
        names |= {n for n in self.flat.handed.values() if self._place(n) is Place.ROWS}
        return names if k < self.count - 1 else set()

    def _row_names(self, expr: Expr) -> set[str]:
        """Row values and row states that an expression reads."""
        return {n for n in variables(expr) if self._place(n) is Place.ROWS}

    def _place(self, name: str) -> Place:
        if name in self.values:
            return self.values[name].place
        if name in self.flat.arrays:
            return self.flat.arrays[name].place
        return Place.HOST

    def _ordered(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self.order.__getitem__)

    def _memory(self, k: int, choice: _Choice) -> tuple[dict[str, str], set[str]]:
        """Values that arrays hold when sweep k begins, and arrays whose first contents are gone."""
        stored: dict[str, str] = {}
        lost: set[str] = set()
        for name, sweep in choice.stores.items():
            if sweep < k:
                lost.add(name)
                expr = self.elements[name]
                if isinstance(expr, Var):
                    stored[expr.name] = name
        if choice.scratch is not None and choice.scratch[1] < k:
            if "g" in lost:
                raise _Infeasible
            lost.add("g")
            stored[choice.scratch[0]] = "g"
        return stored, lost

    def _phase(self, value: Value, phases: Mapping[str, int], k: int) -> int:
        """The loop of sweep k in front of which (a row) or in which (an element) a value can be computed."""
        if value.place is Place.ROWS and self.time[value.name] != k:
            return 0
        inner = self._phase_of(value.expr, phases)
        found = value.reduction
        if value.place is Place.ROWS and found is not None and found.operand is Place.ELEMENT:
            return inner + 1
        return inner if value.place in (Place.ROWS, Place.ELEMENT) else 0

    @staticmethod
    def _phase_of(expr: Expr, phases: Mapping[str, int]) -> int:
        return max((phases.get(name, 0) for name in variables(expr)), default=0)

    def loop(
        self,
        reduces: list[Value],
        stores: list[tuple[str, Expr]],
        stored: Mapping[str, str],
        lost: set[str],
    ) -> tuple[Loop, set[str]]:
        """A loop that forms these reductions and stores these arrays, and the row values that it reads."""
        need: set[str] = set()
        for value in reduces:
            need |= variables(value.expr)
        for _, expr in stores:
            need |= variables(expr)
        loads: dict[str, str] = {}
        body: list[Value] = []
        for value in reversed(self.values.values()):
            if value.name not in need or value.place is not Place.ELEMENT:
                continue
            if value.name in stored:
                loads[value.name] = stored[value.name]
                continue
            body.append(value)
            need |= variables(value.expr)
        for name, array in self.flat.arrays.items():
            if name not in need or array.place is not Place.ELEMENT:
                continue
            if name in stored:
                loads[name] = stored[name]
            elif name in lost:
                raise _Infeasible
            else:
                loads[name] = name
        rows = {n for n in need if self._place(n) is Place.ROWS}
        order = self._ordered(loads)
        return (
            Loop(tuple((n, loads[n]) for n in order), tuple(reversed(body)), tuple(reduces), tuple(stores)),
            rows,
        )


def _first(pair: tuple[tuple[int, ...], Plan]) -> tuple[int, ...]:
    return pair[0]


def _element(value: Value) -> Type:
    return Type(value.kind, Level.ARRAY, ELEMENT)


def _weight(plan: Plan) -> int:
    """Operations per element, by what they cost."""
    flops = plan.flops
    slow = {"div": 4, "sqrt": 4, "function": 20, "random": 30}
    return sum(count * slow.get(kind, 1) for kind, count in flops.items())
