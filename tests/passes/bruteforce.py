"""The cheapest way to do the step of a plan, by trying everything: which sweep forms each reduction, which stores
each array, what is read back and what computed anew, what goes over the gradient.

It knows of a plan only its values, its arrays and what is to be left behind, not its sweeps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from optdsl.ir.expr import Expr, Var, variables
from optdsl.ir.plan import Place, Plan, Value
from optdsl.passes.schedule import NARROW, OVERWRITE

Stores = dict[str, int]


class TooMany(Exception):
    """There is too much to try."""


class Problem:
    """What a plan does, without the way in which it does it."""

    def __init__(self, plan: Plan, mode: str) -> None:
        self.plan, self.mode = plan, mode
        self.values = {v.name: v for v in plan.values()}
        loops = [loop for sweep in plan.sweeps for loop in sweep.loops]
        self.elements = {array: expr for loop in loops for array, expr in loop.stores if array != "g"}
        self.rows = {array: expr for sweep in plan.sweeps for array, expr in sweep.row_stores}
        self.memory = {a.name for a in plan.arrays if a.place is Place.ELEMENT}
        self.order = self._sorted()
        self.sweeps = self.needed(self.times({}))

    def _sorted(self) -> list[Value]:
        """Operands before users."""
        done: dict[str, Value] = {}

        def visit(value: Value) -> None:
            if value.name not in done:
                for name in variables(value.expr):
                    if name in self.values:
                        visit(self.values[name])
                done[value.name] = value

        # joint reductions are formed in the order of their sites
        joint = [v for v in self.values.values() if v.reduction is not None and v.reduction.joint]
        for value in (*sorted(joint, key=lambda v: v.reduction.site), *self.values.values()):  # type: ignore
            visit(value)
        return list(done.values())

    @staticmethod
    def ends(value: Value) -> bool:
        """Whether a sweep, or a row in a sweep, must be over before the value is there."""
        found = value.reduction
        return found is not None and (found.joint or found.operand in (Place.ELEMENT, Place.ROWS))

    def times(self, formed: Mapping[str, int]) -> tuple[Stores, Stores]:
        """The sweep in front of which (in which) each value is there, and in which each reduction is formed."""
        time: Stores = {}
        where: Stores = {}
        joint = 0
        for value in self.order:
            now = self.at(value.expr, time)
            if self.ends(value):
                now = max(now, formed.get(value.name, 0))
                if value.reduction is not None and value.reduction.joint:
                    joint = now = max(now, joint)
                where[value.name] = now
                now += value.place is not Place.ROWS
            time[value.name] = now
        return time, where

    @staticmethod
    def at(expr: Expr, time: Stores) -> int:
        return max((time.get(name, 0) for name in variables(expr)), default=0)

    def needed(self, times: tuple[Stores, Stores]) -> int:
        """How many sweeps these times take."""
        time, formed = times
        ends = [self.at(expr, time) for expr in (*self.elements.values(), *self.rows.values())]
        ends += [time[name] for name in time if self.values[name].place is Place.ROWS]
        return max([*ends, *formed.values()], default=-1) + 1

    # ---- everything -------------------------------------------------------------------------------------

    def cheapest(self, limit: int = 20_000) -> int:
        """The fewest arrays read and written, over all sweeps. Raises TooMany."""
        ends = [v.name for v in self.order if self.ends(v)]
        first = self.times({})[1]
        options = [range(first[name], self.sweeps) for name in ends]
        schedules = {}
        if math.prod(map(len, options)) > limit:
            raise TooMany
        for chosen in itertools.product(*options):
            times = self.times(dict(zip(ends, chosen, strict=True)))
            if self.needed(times) == self.sweeps:
                schedules[tuple(times[1].items())] = times
        best: int | None = None
        for times in schedules.values():
            for stores, scratch in self.choices(times[0], limit // len(schedules)):
                cost = self.cost(times, stores, scratch)
                if cost is not None and (best is None or cost < best):
                    best = cost
        assert best is not None
        return best

    def choices(self, time: Stores, limit: int) -> Iterator[tuple[Stores, tuple[str, int] | None]]:
        last = self.sweeps - 1
        options = [range(self.at(expr, time), last + 1) for expr in self.elements.values()]
        if self.mode == NARROW:
            options = [range(last, last + 1) for _ in options]
        scratch: list[tuple[str, int] | None] = [None]
        if self.mode == OVERWRITE:
            scratch += [
                (v.name, k) for v in self.order if v.place is Place.ELEMENT for k in range(time[v.name], last)
            ]
        if math.prod(map(len, options)) * len(scratch) > limit:
            raise TooMany
        for stores in itertools.product(*options):
            for each in scratch:
                yield dict(zip(self.elements, stores, strict=True)), each

    def cost(
        self, times: tuple[Stores, Stores], stores: Stores, scratch: tuple[str, int] | None
    ) -> int | None:
        """Arrays read and written, or None where something is needed that is gone."""
        total = len(stores) + (scratch is not None)
        for k in range(self.sweeps):
            gone = {name for name, sweep in stores.items() if sweep < k}
            held = {
                expr.name: name
                for name, expr in self.elements.items()
                if name in gone and isinstance(expr, Var)
            }
            if scratch is not None and scratch[1] < k:
                gone.add("g")
                held[scratch[0]] = "g"
            reads = self.reads(self.wanted(k, times, stores, scratch), held, gone)
            if reads is None:
                return None
            total += reads
        return total

    def wanted(
        self, k: int, times: tuple[Stores, Stores], stores: Stores, scratch: tuple[str, int] | None
    ) -> set[str]:
        """Names of element values and arrays that sweep k reads in the first place."""
        time, formed = times
        need: set[str] = set()
        for name, sweep in formed.items():
            if sweep == k:
                need |= variables(self.values[name].expr)
        for value in self.order:  # values per row are computed in their sweep, and kept if need be
            if value.place is Place.ROWS and time[value.name] == k:
                need |= variables(value.expr)
        for array, sweep in stores.items():
            if sweep == k:
                need |= variables(self.elements[array])
        if scratch is not None and scratch[1] == k:
            need.add(scratch[0])
        return {n for n in need if n in self.memory or self.is_element(n)}

    def is_element(self, name: str) -> bool:
        return name in self.values and self.values[name].place is Place.ELEMENT

    def reads(self, wanted: set[str], held: Mapping[str, str], gone: set[str]) -> int | None:
        """The fewest arrays from which `wanted` can be had."""
        best: int | None = None
        for size in range(len(held) + 1):
            for back in itertools.combinations(held.items(), size):
                old, new = self.inputs(wanted, dict(back))
                if not old & gone and (best is None or len(old | new) < best):
                    best = len(old | new)
        return best

    def inputs(self, wanted: set[str], back: Mapping[str, str]) -> tuple[set[str], set[str]]:
        """Arrays that are read as they were, and as they are, if the values in `back` come from memory."""
        arrays: set[str] = set()
        now: set[str] = set()
        queue, seen = list(wanted), set(wanted)
        while queue:
            name = queue.pop()
            if name in back:
                now.add(back[name])
            elif name in self.memory:
                arrays.add(name)
            elif self.is_element(name):
                new = variables(self.values[name].expr) - seen
                seen |= new
                queue += new
        return arrays, now


__all__ = ["Problem", "TooMany"]
