"""Makes a genome that a search has found as short as it can be without doing something else.

Statements are dropped or replaced by one of what is there, constants are rounded. A change stays if the steps are the
same on all probes, ordinary ones and those of the stress gate (where the original gives numbers at all: what was nan
may become a number), or if the caller says that it costs nothing. A step that has become longer or shorter by one
factor is the same for another default of the learning rate.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from optdsl.core.record import record
from optdsl.core.types import Kind, Level, Type, element
from optdsl.ir.numpy_ops import Array
from optdsl.ir.program import Hyper, Interval, Program
from optdsl.search.space.analyse import longest, ordinary, strained
from optdsl.search.space.canonical import live
from optdsl.search.space.draft import named, place
from optdsl.search.space.genome import LR, OPS, Fault, Genome, Ref, Statement, express, typed
from optdsl.search.space.probe import Probes, moves, trace

#: Agreement of two steps, relative to the size of the step (rms), and absolute.
TOLERANCE, FLOOR = 1e-7, 1e-13
#: What may stand for a statement: one operator on one value.
_ONE = ("sign", "abs", "neg")

Score = Callable[[Program], bool]


@record(eq=False)
class Behaviour:
    """What a genome does on the probes of the effect and of the stress gate: (steps, n, 2, rows, cols) each.

    `lr` is the default of the learning rate for which it does that.
    """

    ordinary: Array
    strained: Array
    lr: float

    def kept_by(self, genome: Genome) -> Genome | None:
        """`genome` where it does the same wherever this is finite, maybe with another learning rate by default."""
        found = _moves(genome, ordinary(), self.lr)
        if not _same(self.ordinary, found):
            factor = _factor(self.ordinary[0], found[0])
            made = None if factor is None else _with(genome, {LR: factor * rate(genome)})
            if made is None or not _same(self.ordinary, _moves(made, ordinary(), self.lr)):
                return None
            genome = made
        return genome if _same(self.strained, _moves(genome, strained(), self.lr)) else None


def behaviour(genome: Genome, lr: float | None = None) -> Behaviour:
    """The behaviour of a genome, where probes have their learning rates for the default `lr` (its own if None)."""
    lr = rate(genome) if lr is None else lr
    return Behaviour(_moves(genome, ordinary(), lr), _moves(genome, strained(), lr), lr)


def _moves(genome: Genome, probes: Probes, lr: float) -> Array:
    """The moves on probes whose learning rates are meant for the default `lr`."""
    ratio = rate(genome) / lr if lr else 1.0
    return moves(genome, probes if ratio == 1 else replace(probes, lr=probes.lr * ratio))


def rate(genome: Genome) -> float:
    """The default of the learning rate, which is the first hyperparameter."""
    return float(genome.hypers[0].one)


def _with(genome: Genome, values: Mapping[str, float]) -> Genome | None:
    """`genome` with other defaults, or None where one of them is not in its interval."""
    inside = [h.interval is None or values[h.name] in h.interval for h in genome.hypers if h.name in values]
    return genome.with_values(values) if all(inside) else None


def _factor(a: Array, b: Array) -> float | None:
    """The positive number other than 1 that all of `a` are as multiples of `b`, or None."""
    some = np.abs(b) > 1e-3 * np.abs(b).max(axis=(1, 2, 3), keepdims=True)
    if not (np.isfinite(a).all() and np.isfinite(b).all() and some.any()):
        return None
    ratios = a[some] / b[some]
    factor = float(f"{np.median(ratios):.12g}")
    near = np.abs(ratios - factor) <= 1e-6 * abs(factor)
    return factor if factor > 0 and factor != 1 and near.all() else None


def _same(a: Array, b: Array) -> bool:
    """Whether moves agree, each held against the longest so far."""
    known = np.isfinite(a)
    size = np.sqrt(np.mean(np.where(known, a, 0.0) ** 2, axis=(2, 3, 4), keepdims=True))
    with np.errstate(all="ignore"):
        near = np.abs(a - b) <= TOLERANCE * longest(size) + FLOOR
    return bool((near | ~known).all())


def simplify(genome: Genome, score: Score | None = None) -> Genome:
    """A genome with fewer statements, and rounder constants, that does the same. Once more, it changes nothing.

    Where `score` is given it is asked about what does something else: it gets the typed program, and says whether
    that is as good. Every program it accepts is the standard for what follows.
    """
    genome = live(genome)
    target = behaviour(genome)
    looked, asked = set[Genome](), set[Genome]()

    def better(
        candidates: Iterator[Genome], accepted: Callable[[Genome], Genome | None], known: set[Genome]
    ) -> Genome | None:
        """What is accepted of the first of the candidates that is smaller, not known yet, and accepted at all."""
        for candidate in candidates:
            try:
                small = live(candidate)
            except Fault:
                continue
            if small not in known and _cost(small) < _cost(genome):
                known.add(small)
                if (found := accepted(small)) is not None:
                    return found
        return None

    while True:
        while (found := better(_shorter(genome), target.kept_by, looked)) is not None:
            genome = found
        if score is None:
            return genome
        found = better(_bolder(genome), lambda small: small if score(express(small)) else None, asked)
        if found is None:
            return genome
        genome, target = found, behaviour(found)
        looked.clear()


def _cost(genome: Genome) -> tuple[int, ...]:
    """What is made smaller, first things first: statements, states, hyperparameters and literals, reads of other
    statements, digits of defaults.
    """
    names = {s.name for s in genome.body}
    reads = sum(a in names for s in genome.body for a in s.args)
    numbers = {
        a for s in genome.body for a in s.args if isinstance(a, float) and a not in (0.0, 1.0, 2.0, -1.0)
    }
    digits = sum(_digits(h) for h in genome.hypers if h.name != LR)
    return len(genome.body), len(genome.states), len(genome.hypers) + len(numbers), reads, digits


def _digits(h: Hyper) -> int:
    """How many digits it takes to write the default of a hyperparameter, or its distance from 1."""
    if not isinstance(h.one, float) or not math.isfinite(h.one):
        return 0
    return min(_length(h.one), _length(round(1 - h.one, 15)))


def _length(value: float) -> int:
    digits = f"{abs(value):.15e}".split("e")[0].replace(".", "").rstrip("0")
    return len(digits)


def _spots(genome: Genome) -> list[tuple[Statement, list[str]]]:
    """Each statement, the last first, and what may be read in its place."""
    names = ["p", "g", *(s.name for s in genome.states), *(h.name for h in genome.hypers)]
    return [(s, names + [x.name for x in genome.body[:n]]) for n, s in enumerate(genome.body)][::-1]


def _bolder(genome: Genome) -> Iterator[Genome]:
    """Candidates that may do something else: one of its operands for a statement, rounder constants, a state less."""
    types = typed(genome)
    for s, _ in _spots(genome):
        for ref in (a for a in s.args if isinstance(a, str) and place(types[a]) == place(types[s.name])):
            yield replaced(genome, s.name, ref)
    yield from _stateless(genome, types)
    for h in genome.hypers:
        for value in _rounder(h):
            hypers = tuple(replace(x, default=value) if x is h else x for x in genome.hypers)
            yield replace(genome, hypers=hypers)


def _stateless(genome: Genome, types: Mapping[str, Type]) -> Iterator[Genome]:
    """Candidates with something else in the place of a state."""
    for state in genome.states:
        others = [n for n in ("g", "p", *(x.name for x in genome.states)) if n != state.name]
        stands: list[Ref] = [n for n in others if place(types[n]) == place(types[state.name])]
        for ref in (state.init, *stands):
            made = replaced(genome, state.name, ref)
            states = tuple(x for x in made.states if x.name != state.name)
            yield replace(made, states=states, results=tuple(r for r in made.results if r[0] != state.name))


def _shorter(genome: Genome) -> Iterator[Genome]:
    """Candidates that may do the same, the boldest first."""
    types = typed(genome)
    yield from _bolder(genome)
    for s, _ in _spots(genome):
        numbers: list[Ref] = [0.0, 1.0] if types[s.name].kind.numeric else [False, True]
        for ref in numbers:
            yield replaced(genome, s.name, ref)
    yield from _folded(genome)
    yield from _absorbed(genome)
    yield from _equal(genome, types)
    for h in genome.hypers:
        same = [x.name for x in genome.hypers if x is not h and x.name != LR and x.one == h.one]
        instead: list[Ref] = [] if h.name == LR else [*same, 0.0, 1.0]
        for ref in instead:
            yield replaced(genome, h.name, ref)


def _folded(genome: Genome) -> Iterator[Genome]:
    """Candidates with a number in the place of a statement that depends on constants alone."""
    fixed = {h.name for h in genome.hypers if h.name != LR}
    values: dict[str, Array] = {}
    for s in genome.body:
        if all(not isinstance(a, str) or a in fixed for a in s.args):
            fixed.add(s.name)
            values = values or trace(genome, ordinary())
            value = float(values[s.name].flat[0])
            # a negative is written with a sign
            if OPS[s.op].takes == "number" and s.op != "neg" and math.isfinite(value):
                name = named("c", genome.taken())
                hyper = Hyper(name, name, Kind.FLOAT, value, Interval(0.0, math.inf) if value > 0 else None)
                made = replaced(genome, s.name, name)
                yield replace(made, hypers=(*made.hypers, hyper))


def _absorbed(genome: Genome) -> Iterator[Genome]:
    """Candidates without a constant factor, which goes into the learning rate; what that is multiplied by elsewhere,
    such as a weight decay, has it taken out again.
    """
    values = {h.name: float(h.one) for h in genome.hypers if h.name != LR}
    reads = Counter(a for s in genome.body for a in s.args)
    rates = [a for s in genome.body if s.op == "mul" and LR in s.args for a in s.args]
    decays = [a for a in rates if a in values and reads[a] == 1]
    for s in genome.body:
        if s.op not in ("mul", "div"):
            continue
        for x, c in (s.args, s.args[::-1]) if s.op == "mul" else (s.args,):
            factor = values.get(c) if isinstance(c, str) else float(c)
            if factor is None or factor <= 0 or not isinstance(x, str):
                continue
            factor = factor if s.op == "mul" else 1 / factor
            for decay in decays:
                if decay not in s.args:
                    new = {LR: rate(genome) * factor, decay: values[decay] / factor}
                    made = _with(replaced(genome, s.name, x), new)
                    if made is not None:
                        yield made


def _equal(genome: Genome, types: Mapping[str, Type]) -> Iterator[Genome]:
    """Candidates in which a statement gets the values that it has, on ordinary probes, in another way: as another
    value, its sign, magnitude or negative, as a number of the tensor times a sign, as an average of two values.
    """
    seen = trace(genome, ordinary())
    for s, readable in _spots(genome):
        value = seen[s.name]
        if not (types[s.name].kind.numeric and np.isfinite(value).all()):
            continue
        for x in (n for n in readable if place(types[n]) == place(types[s.name])):
            if x not in s.args and _equals(value, seen[x]):
                yield replaced(genome, s.name, x)
            for op in _ONE:
                if (op, (x,)) != (s.op, s.args) and _equals(value, OPS[op].numpy(seen[x])):
                    yield _instead(genome, s, replace(s, op=op, args=(x,), over=None))
        if types[s.name] != element():
            continue
        alike = [n for n in readable if types[n] == element()]
        factors = [n for n in readable if types[n].kind.numeric and types[n].level < Level.ARRAY]
        for x in alike:
            if s.op == "mul" and f"sign {x}" in s.args:
                continue
            sign = OPS["sign"].numpy(seen[x])
            for factor in factors:
                if _equals(value, _times(seen[factor], sign)):
                    yield _instead(
                        genome,
                        s,
                        Statement(f"sign {x}", "sign", (x,)),
                        replace(s, op="mul", args=(factor, f"sign {x}"), over=None),
                    )
        if s.op not in ("add", "sub", "mix"):
            continue
        for x, y in itertools.combinations(alike, 2):
            a, b = np.broadcast_to(seen[x], value.shape), np.broadcast_to(seen[y], value.shape)
            w = _weight(value, a, b)
            if w is None:
                continue
            if w < 0.5:
                x, y, w = y, x, round(1 - w, 15)
            name = next((h.name for h in genome.hypers if h.one == w), None) or named("c", genome.taken())
            made = _instead(genome, s, replace(s, op="mix", args=(name, x, y), over=None))
            if all(h.name != name for h in genome.hypers):
                made = replace(
                    made, hypers=(*made.hypers, Hyper(name, name, Kind.FLOAT, w, Interval(0.0, 1.0)))
                )
            yield made


def _times(a: Array, b: Array) -> Array:
    with np.errstate(all="ignore"):
        return a * b


def _equals(a: Array, b: Array) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.abs(a - b).max() <= 1e-9 * np.abs(a).max())


def _weight(value: Array, x: Array, y: Array) -> float | None:
    """w with value = w x + (1 - w) y everywhere and w between 0 and 1, or None."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    # what is small counts as much as what is large
    scale = np.abs(x) + np.abs(y) + np.abs(value) + 1e-300
    d, e = ((x - y) / scale).ravel(), ((value - y) / scale).ravel()
    if d @ d < 1e-6:
        return None
    w = float(d @ e / (d @ d))
    fits = float(np.abs(e - w * d).max()) < 1e-12
    return round(w, 15) if fits and 0 < w < 1 else None


def _instead(genome: Genome, s: Statement, *others: Statement) -> Genome:
    """`genome` with other statements in the place of one."""
    at = genome.body.index(s)
    known = {x.name for x in genome.body[:at]}
    return replace(
        genome, body=(*genome.body[:at], *(x for x in others if x.name not in known), *genome.body[at + 1 :])
    )


def replaced(genome: Genome, name: str, ref: Ref) -> Genome:
    """`genome` where `ref` is read in place of `name`."""

    def new(a: Ref) -> Ref:
        return ref if a == name and isinstance(a, str) else a

    body = tuple(replace(s, args=tuple(map(new, s.args))) for s in genome.body if s.name != name)
    states = tuple(replace(s, init=new(s.init)) for s in genome.states)
    return replace(genome, body=body, states=states, results=tuple((n, new(r)) for n, r in genome.results))


def _rounder(h: Hyper) -> Iterator[float]:
    """Defaults with fewer digits, fewest first: of the number, or of its distance from 1."""
    value = h.one
    if h.name == LR or not isinstance(value, float) or not math.isfinite(value) or value == 0:
        return
    for digits in (1, 2, 3):
        near = {float(f"{value:.{digits - 1}e}"), round(1 - float(f"{1 - value:.{digits - 1}e}"), 15)}
        for new in sorted(near):
            if (
                new != value
                and (h.interval is None or new in h.interval)
                and abs(new - value) < 0.5 * abs(value)
            ):
                yield new
