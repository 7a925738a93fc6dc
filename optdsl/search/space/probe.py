"""What a genome does to numbers: all probes at once, in numpy and double precision, as the interpreter defines it.

A probe is an optimizer of its own over two tensors. Arrays are (probe, tensor, row, column), with 1 for what a value
does not have: a number per tensor is (n, 2, 1, 1), one for the parameter group (n, 1, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optdsl.core import types as ty
from optdsl.core.ops import FACTS
from optdsl.core.record import record
from optdsl.core.types import LEVELS, Dim, Level, Type
from optdsl.ir.numpy_ops import Array
from optdsl.passes.evaluate import NUMBERS
from optdsl.search.space.genome import AXES, LR, OPS, Genome, Ref, Statement, type_of, typed

#: Tensors of a probe, and rows and columns of each.
SHAPE = (2, 3, 4)


@record(eq=False)
class Probes:
    """Parameters (n, 2, rows, cols), gradients (steps, n, 2, rows, cols), learning rates (n, 1, 1, 1) or one of all.

    Steps are counted from 1, or from 1 + `later` (n, 1, 1, 1), different in each probe.
    """

    p: Array
    g: Array
    lr: Array | float
    later: Array | None = None

    def count(self, step: int) -> Any:
        """The number `t` of a step, the first of which is step 0."""
        return step + 1.0 if self.later is None else self.later + (step + 1.0)


def _choose(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


#: Operators on numbers of the host, where that is much quicker than numpy.
_SCALAR = {
    **{n: f for n, f in NUMBERS.items() if n not in ("min", "max")},
    "select": _choose,
    "mix": OPS["mix"].numpy,
}


class Run:
    """Steps of a genome on probes. What only hyperparameters go into is computed once.

    `values` are those of hyperparameters, if not the defaults. Use it under `np.errstate(all="ignore")`.
    """

    def __init__(
        self,
        genome: Genome,
        probes: Probes,
        values: Mapping[str, float] | None = None,
        types: Mapping[str, Type] | None = None,
    ) -> None:
        self.shape = probes.p.shape
        types = typed(genome) if types is None else types
        rows, cols = self.shape[2:]
        facts = {"t": 0.0, "ndim": 2.0, "numel": float(rows * cols), "rows": float(rows), "cols": float(cols)}
        self.places: dict[str, int] = {}
        self.values: list[Any] = []
        for name in FACTS:
            self.put(name, facts.get(name, False))
        self.put("p", probes.p)
        self.put("g", probes.g[0])
        for h in genome.hypers:
            self.put(h.name, probes.lr if h.name == LR else float((values or {}).get(h.name, h.one)))
        for slot in genome.states:
            init = self.values[self.place(slot.init)]
            fine = type_of(slot.init, types) == types[slot.name]
            self.put(slot.name, init if fine else self.spread(init, types[slot.name]))
        varying = {"p", "g", "t", "first_step", *(slot.name for slot in genome.states)}
        arrays = self.arrays(genome, probes, types)
        # a place for the result, the function, and up to three places of arguments
        self.code: list[tuple[int, Callable[..., Any], int, int, int]] = []
        for s in genome.body:
            reads = [a for a in s.args if isinstance(a, str)]
            args = tuple(map(self.place, s.args))
            function = self.function(s) if s.name in arrays else _SCALAR[s.op]
            if varying.isdisjoint(reads):
                self.put(s.name, function(*(self.values[a] for a in args)))
            else:
                varying.add(s.name)
                a, b, c = (*args, -1, -1)[:3]
                self.code.append((self.put(s.name, None), function, a, b, c))
        # every result is read before any is kept
        self.moves: list[tuple[int, int, Type | None]] = []
        for name, ref in genome.results:
            found, wanted = type_of(ref, types), types[name]
            same = (found.level, found.shape) == (wanted.level, wanted.shape)
            self.moves.append((self.places[name], self.place(ref), None if same else wanted))
        self.t, self.first = self.places["t"], self.places["first_step"]
        self.p, self.g = self.places["p"], self.places["g"]

    def put(self, name: str, value: Any) -> int:
        """A new place that holds `value`."""
        self.values.append(value)
        self.places[name] = len(self.values) - 1
        return len(self.values) - 1

    def place(self, ref: Ref) -> int:
        """Where an argument is held."""
        if isinstance(ref, str):
            return self.places[ref]
        name = repr(ref)
        if name not in self.places:
            self.put(name, ref if isinstance(ref, bool) else float(ref))
        return self.places[name]

    def arrays(self, genome: Genome, probes: Probes, types: Mapping[str, Type]) -> set[str]:
        """Names of what is not one number for all probes."""
        found = {n for n, type_ in types.items() if not type_.is_host}
        found |= {LR} if isinstance(probes.lr, np.ndarray) else set()
        found |= {"t", "first_step"} if probes.later is not None else set()
        found |= {s.name for s in genome.states if s.init in found}
        while True:
            found |= {s.name for s in genome.body if s.op not in _SCALAR}
            for s in genome.body:
                if not found.isdisjoint(s.args):
                    found.add(s.name)
            more = {name for name, ref in genome.results if ref in found} - found
            if not more:
                return found
            found |= more

    def spread(self, value: Any, type_: Type) -> Any:
        """`value` with an entry for each that its type has."""
        if type_.is_host:
            return value
        _, tensors, rows, cols = self.shape
        r, c = type_.shape
        wide = (
            1,
            1 if type_.level is Level.GROUP else tensors,
            rows if r is Dim.R else 1,
            cols if c is Dim.C else 1,
        )
        return np.broadcast_to(value, np.broadcast_shapes(np.shape(value), wide))

    def function(self, s: Statement) -> Callable[..., Any]:
        """What a statement computes, of its arguments."""
        row = OPS[s.op]
        if row.reduces:
            axes, reduce = AXES[s.over or "tensor"], row.numpy
            return lambda x: reduce(x, axes)
        if s.op == "broadcast":
            type_ = Type(ty.Kind.FLOAT, *LEVELS[s.over or ""])
            return lambda x: self.spread(x, type_)
        return row.numpy

    def step(self, t: Any, g: Array) -> Any:
        """Step `t`, a float or one for each probe: returns what is left in `p`."""
        values = self.values
        values[self.t], values[self.first], values[self.g] = t, t == 1, g
        for out, f, a, b, c in self.code:
            if b < 0:
                values[out] = f(values[a])
            elif c < 0:
                values[out] = f(values[a], values[b])
            else:
                values[out] = f(values[a], values[b], values[c])
        left = [
            values[ref] if type_ is None else self.spread(values[ref], type_) for _, ref, type_ in self.moves
        ]
        for (place, _, _), value in zip(self.moves, left, strict=True):
            values[place] = value
        return values[self.p]


def moves(genome: Genome, probes: Probes, values: Mapping[str, float] | None = None) -> Array:
    """How far each step moves each entry: (steps, n, 2, rows, cols)."""
    found = np.empty_like(probes.g)
    with np.errstate(all="ignore"):
        run = Run(genome, probes, values)
        before = probes.p
        for n, g in enumerate(probes.g):
            after = run.step(probes.count(n), g)
            np.subtract(after, before, out=found[n])
            before = after
    return found


def trace(genome: Genome, probes: Probes) -> dict[str, Array]:
    """What every value is in every step: (steps, n, 2, rows, cols), with 1 for what it does not have."""
    found: dict[str, list[Any]] = {}
    with np.errstate(all="ignore"):
        run = Run(genome, probes)
        fixed = {"p", "g", *(s.name for s in genome.states)}
        for n, g in enumerate(probes.g):
            before = {name: run.values[run.places[name]] for name in fixed - {"g"}}
            run.step(probes.count(n), g)
            now = {name: run.values[place] for name, place in run.places.items() if name not in before}
            for name, value in {**before, **now}.items():
                found.setdefault(name, []).append(value)
    return {name: _stacked(values) for name, values in found.items()}


def _stacked(values: list[Any]) -> Array:
    """The values of all steps in one array of five dimensions."""
    wide = [np.asarray(v, np.float64) for v in values]
    shape = np.broadcast_shapes((1, 1, 1, 1), *(v.shape for v in wide))
    return np.stack([np.broadcast_to(v, shape) for v in wide])
