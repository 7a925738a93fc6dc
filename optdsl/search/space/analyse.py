"""What is known of a genome before anything is trained: its live part, hashes, its effect, or why it is refused.

`analyse` looks at one genome by itself. A `Sieve` remembers: it answers a genome that is one of those before it,
under other names or by its effect, from memory, and counts what each filter catches.

The effect is what steps do to parameters on fixed probes, in double precision: two genomes have the same one if they
agree on all of them but for rounding, and on many more. The stress gate then asks whether a rule can be trusted
beyond ordinary numbers; its limits leave room for every shipped method.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from optdsl.core.record import field, record
from optdsl.core.types import Type
from optdsl.ir.numpy_ops import Array
from optdsl.search.space.canonical import digest, live, structure
from optdsl.search.space.genome import Fault, Genome, typed
from optdsl.search.space.mutate import Bounds
from optdsl.search.space.probe import SHAPE, Probes, Run

#: Why a genome is refused, in the order in which it is asked.
REASONS: dict[str, str] = {
    "typing": "an operator or a state gets what it cannot take",
    "statements": "more live statements than the bounds allow",
    "states": "more live states than the bounds allow",
    "bytes": "more bytes of state per parameter than the bounds allow",
    "levels": "values per row or column, say, where the bounds have none",
    "blind": "the gradient has no part in it",
    "not finite": "infinities or nan on ordinary numbers",
    "no movement": "parameters stay where they are",
    "constant": "every parameter moves alike, whatever its gradient",
    "overflow": "infinities or nan under gradients times 1e-4 or 1e4",
    "zero gradient": "infinities or nan where gradients are zero, in some entries, some steps or from some step on",
    "explodes": "steps grow faster than gradients do, or as these vanish",
    "vanishes": "steps shrink faster than gradients do, or as these grow",
    "jumps": "steps are as large as the parameters themselves",
    "uphill": "steps go up, or across, where the gradient is positive or where it is negative",
    "cancels": "steps undo each other, and do not add up though gradients have a part that stays",
    "turns": "steps under gradients times 1e4 point elsewhere",
    "spikes": "single steps are far longer than the others",
    "drifts": "steps, or what is kept, grow while gradients are zero",
    "diverges": "steps grow and grow, or have all but stopped, after ten times as many",
}

#: Steps of the effect, and how many of its 16 probes are ordinary: two count steps from LATER on, four have tiny and
#: huge gradients.
STEPS, ORDINARY = 5, 10
LATER = (300.0, 30000.0)
#: Agreement of two effects, relative to the size of steps, and absolute. Training in float32 keeps less of a step.
TOLERANCE, FLOOR = 1e-6, 1e-13
#: How often an interval is halved to find where a step turns, how far from there steps are compared (parts of the
#: whole interval), and how far they may be apart, relative to their size.
BISECTIONS, BESIDE, EDGE = 22, (-1e-2, -3e-4, -1e-5, 1e-5, 3e-4, 1e-2), 1e-5
#: Steps of the stress gate, and of these the last one with gradients in the row that loses them; half way from there.
LONG, QUIET, HALF = 64, 24, 44
#: After so many steps a rule that is far off is given up.
EARLY = 10


def _probes(
    seed: int, steps: int, usual: int, shape: tuple[int, int, int], large: float = 0.5, fast: float = -1.0
) -> Probes:
    """Parameters from 0.03 to 10 ** `large`, gradients from 1e-3 to 10, a part of which stays, entries of one tensor
    ten times apart and more, learning rates from 1e-4 to 10 ** `fast`: whatever bends or cuts does so somewhere.
    Behind these `usual` probes come one each that counts its steps from LATER on, and two each with gradients of
    about 1e-4 and of about 1e4.
    """
    rng = np.random.default_rng(seed)
    sizes = [*np.logspace(-3, 1, usual), 0.1, 1.0, 1e-4, 2e-4, 1e4, 3e4]
    count = len(sizes)
    whole, scale = (count, *shape), np.array(sizes).reshape(-1, 1, 1, 1)
    p = 10 ** rng.uniform(-1.5, large, (count, 1, 1, 1)) * rng.normal(size=whole)
    entries, stays = 10 ** rng.uniform(-1.5, 0.5, whole), rng.normal(size=whole)
    g = scale * entries * (rng.normal(size=(steps, *whole)) + 0.5 * stays)
    lr = rng.permutation(np.logspace(-4, fast, count)).reshape(-1, 1, 1, 1)
    later = np.zeros((count, 1, 1, 1))
    later[usual : usual + len(LATER), 0, 0, 0] = LATER
    return Probes(p, g, lr, later)


@cache
def ordinary() -> Probes:
    """The probes of the effect."""
    return _probes(20230213, STEPS, ORDINARY, SHAPE)


@cache
def more() -> tuple[Probes, ...]:
    """What two genomes are compared on that have one effect: more probes and steps, larger parameters, larger
    tensors, and tiny ones, of which all entries may be alike in something.
    """
    return (
        _probes(20230215, 8, 42, (2, 8, 8), 1.0),
        _probes(20230216, 8, 90, (2, 1, 2)),
        _probes(20230219, 5, 6, (2, 32, 32), 1.0),
    )


@cache
def fast() -> Probes:
    """Learning rates up to 126, for what is cut off or bent only where these are large, or steps are as long as
    parameters. None is the inverse of a round weight decay, at which a sign is up to rounding.
    """
    return _probes(20230224, 6, 26, SHAPE, 0.5, 2.1)


@cache
def _crossed() -> tuple[Probes, Array]:
    """Probes, and for every entry another gradient of the last step but one: of the other sign, mostly far larger."""
    probes = _probes(20230217, 3, 58, SHAPE, 1.5)
    rng = np.random.default_rng(20230218)
    return probes, -probes.g[-2] * 10 ** rng.uniform(-0.5, 4.0, probes.p.shape)


@cache
def _weights(size: int) -> Array:
    return np.random.default_rng(7).normal(size=size)


@cache
def strained() -> Probes:
    """The rows of the stress gate, one sequence of gradients: as it is, times 1e-4, times 1e4, zero behind step
    QUIET, always zero in every third entry, zero in four of five places and in one tensor at first.
    """
    rng = np.random.default_rng(20230214)
    base = rng.normal(size=(LONG, *SHAPE)) + 0.5 * rng.normal(size=SHAPE)
    quiet, dead = base.copy(), base * (np.arange(math.prod(SHAPE)).reshape(SHAPE) % 3 != 0)
    quiet[QUIET:] = 0
    rare = base * (rng.random((LONG, *SHAPE)) < 0.2)
    rare[:5, 1] = 0
    g = np.stack([base, 1e-4 * base, 1e4 * base, quiet, dead, rare], 1)
    p = np.broadcast_to(0.5 * rng.normal(size=SHAPE), g.shape[1:])
    return Probes(p.copy(), g, 1e-3)


# ---- the effect -------------------------------------------------------------------------------------------


@record(eq=False)
class Effect:
    """What each step does on each probe: a projection and the size (rms) of the move, (steps, probes) each."""

    projection: Array
    size: Array

    def same(self, other: Effect) -> bool:
        """True when the two agree but for rounding; what is not finite agrees with what is not finite.

        A step is held against the longest up to it: what is left of an average that follows its input to a hundred
        millionth is nothing, even where gradients have stopped.
        """
        a, b = np.isfinite(self.size), np.isfinite(other.size)
        if not np.array_equal(a, b):
            return False
        margin = TOLERANCE * longest(np.where(a, np.maximum(self.size, other.size), 0.0))[a] + FLOOR
        return bool(
            (np.abs(self.size[a] - other.size[a]) <= margin).all()
            and (np.abs(self.projection[a] - other.projection[a]) <= 4 * margin).all()
        )

    @property
    def cell(self) -> tuple[float, float]:
        """Two numbers that are nearly equal for equal effects, in units of the width of a cell."""
        size, projection = self.size[:, :ORDINARY], self.projection[:, :ORDINARY]
        with np.errstate(all="ignore"):
            a = float(np.log(size + 1e-7).mean())
            b = float((projection / (size + 1e-7)).mean())
        return (a * 1e3, b * 1e3) if math.isfinite(a) and math.isfinite(b) else (0.0, 0.0)


def longest(size: Array) -> Array:
    """The longest step so far, for every step (the first axis). For others, the first of all, which may be far
    longer, counts as much as the longest of these.
    """
    found = np.maximum.accumulate(np.concatenate([np.minimum(size[:1], size[1:].max(axis=0)), size[1:]]))
    found[0] = size[0]
    return found


def effect(
    genome: Genome, types: Mapping[str, Type] | None = None, values: Mapping[str, float] | None = None
) -> Effect:
    """The effect of a genome, with the defaults of its hyperparameters or other `values`."""
    return _effect(genome, ordinary(), types, values)[0]


def _effect(
    genome: Genome,
    probes: Probes,
    types: Mapping[str, Type] | None = None,
    values: Mapping[str, float] | None = None,
) -> tuple[Effect, Array]:
    """The effect on some probes, and the moves of the last step."""
    projection, size = np.empty((2, *probes.g.shape[:2]))
    with np.errstate(all="ignore"):
        run = Run(genome, probes, values, types)
        before, whole = probes.p, np.empty_like(probes.p)
        move = whole.reshape(len(whole), -1)
        weights = _weights(move.shape[1])
        for n, g in enumerate(probes.g):
            after = run.step(probes.count(n), g)
            np.subtract(after, before, out=whole)
            before = after
            projection[n] = move @ weights
            size[n] = np.sqrt(np.einsum("ij,ij->i", move, move) / move.shape[1])
    return Effect(projection, size), move


class _Last:
    """The last two steps of a genome on `_crossed` as a function of the first of these gradients."""

    def __init__(self, analysis: Analysis) -> None:
        self.probes = _slowed(_crossed()[0], analysis.length)
        self.run = Run(analysis.genome, self.probes)
        for n, g in enumerate(self.probes.g[:-2]):
            self.run.step(self.probes.count(n), g)
        self.before = list(self.run.values)

    def moves(self, g: Array) -> Array:
        """Both moves of every entry, (2, n, 2, rows, cols)."""
        run, count = self.run, len(self.probes.g)
        run.values = list(self.before)
        places = [run.values[run.p]]
        for n, gradient in ((count - 2, g), (count - 1, self.probes.g[-1])):
            places.append(run.step(self.probes.count(n), gradient))
        return np.stack([np.broadcast_to(b - a, g.shape) for a, b in itertools.pairwise(places)])


def _same_edges(one: Analysis, other: Analysis) -> bool:
    """Whether two genomes of one effect decide alike: where the step of one of them turns, so does that of the other.

    What a sign or a bound hides is seen only close to where it changes, which numbers drawn at random hardly ever
    are. So gradients are moved to such places by bisection, and both are compared beside these: each entry to where
    it turns itself, and all of a probe at once to where one of them does, for what reductions hold together.
    """
    with np.errstate(all="ignore"):
        probes, end = _crossed()
        begin = probes.g[-2]
        span = np.abs(begin) + np.abs(end)
        count = len(begin)
        one_of_each = np.arange(count) * math.prod(SHAPE) + np.arange(count) % math.prod(SHAPE)
        pair = _Last(one), _Last(other)
        for (a, b), step, together in itertools.product((pair, pair[::-1]), (0, 1), (False, True)):
            low, high = begin, end
            first, last = a.moves(low)[step], a.moves(high)[step]
            for _ in range(BISECTIONS):
                middle = 0.5 * (low + high)
                found = a.moves(middle)[step]
                near = np.abs(found - first) <= np.abs(found - last)
                if together:
                    near = near.reshape(-1)[one_of_each].reshape(-1, 1, 1, 1)
                low, high = np.where(near, middle, low), np.where(near, high, middle)
            for beside in BESIDE:
                g = low + beside * span
                if not _close(a.moves(g), b.moves(g)):
                    return False
    return True


def _close(a: Array, b: Array) -> bool:
    """Whether moves are the same in every entry, as far as rounding lets one say so near an edge."""
    fine = np.isfinite(a)
    if not np.array_equal(fine, np.isfinite(b)):
        return False
    a, b = np.where(fine, a, 0.0), np.where(fine, b, 0.0)
    size = np.sqrt(np.mean(a * a, axis=(2, 3, 4), keepdims=True))
    return bool((np.abs(a - b) <= EDGE * size + FLOOR).all())


def _plain(found: Effect, last: Array) -> str | None:
    """What is wrong with a rule on ordinary numbers."""
    size = found.size[:, :ORDINARY]
    if not np.isfinite(size).all():
        return "not finite"
    if not (size[1:] > FLOOR).any(axis=0).all():
        return "no movement"
    last = last[:ORDINARY]
    spread = np.abs(last - last[:, :1]).max(axis=1)
    return "constant" if (spread <= 1e-9 * np.abs(last).max(axis=1)).all() else None


# ---- the stress gate --------------------------------------------------------------------------------------

#: The limits, and beside each the most (or least) that a shipped method needs.
GROWTH = 2e4  # of steps, from gradients as they are to 1e4 times as large: 1e4 (SGD)
SHRINKING = 1e-3  # the same, at least: 0.98
TINY = 5e-5  # of steps, from gradients as they are to 1e-4 times as large, at least: 1e-4 (SGD)
INVERSE = 5e3  # the same, at most: 2.3e3 (KATE)
JUMP = 0.5  # of steps at the learning rate 1e-3, over the size of parameters, at most: 0.07 (Rprop)
DOWN = 0.05  # cosine of steps and of descent, of entries with positive and with negative gradients, at least: 0.2
SUM = 0.12  # length of the sum of half of the steps over the sum of their lengths, at least: 0.24 (optimistic SGD)
ALONG = 0.4  # cosine of steps and of those under 1e4 times as large gradients, at least: 0.59 (on a ball)
SPIKE = 100.0  # longest over median step: 41 (KATE)
MORE_SPIKE = 10.0  # the same under 1e4 times as large gradients, over that: 1.8
RARE_SPIKE = 100.0  # longest step where gradients are rare or missing, over the longest elsewhere: 2.5
DRIFT = (
    3.0  # steps and states at the end of 40 steps without gradients, over the start: 2.7 (counters), but for
)
SLOWING = (
    0.85  # what grows in the second half by at most this part of its growth in the first: 0.79 (counters)
)
LATE = 300.0  # steps in the last quarter, over those in the first: 35 (Rprop)
STOPPED = 1e-4  # the same, at least: 0.03


def stress(
    genome: Genome, types: Mapping[str, Type] | None = None, values: Mapping[str, float] | None = None
) -> str | None:
    """What is wrong with a rule beyond ordinary numbers (a key of REASONS), or None.

    The first step may do anything finite: some methods bring parameters where their own account of them is.
    """
    probes = strained()
    moves = np.empty_like(probes.g)
    kept: list[Array] = []
    with np.errstate(all="ignore"):
        run = Run(genome, probes, values, types)
        places = [run.places[s.name] for s in genome.states]
        before = probes.p
        for n, g in enumerate(probes.g):
            after = run.step(probes.count(n), g)
            np.subtract(after, before, out=moves[n])
            before = after
            if n == EARLY and (reason := _early(moves[: EARLY + 1])):
                return reason
            if n in (QUIET, HALF, LONG - 1):
                kept.append(np.array([_largest(run.values[place]) for place in places]))
        return _verdict(moves, kept)


def _drifts(size: Array) -> bool:
    """Whether something grows exponentially; `size` is how large it is at the start, half way, and at the end."""
    start, half, end = map(float, size)
    if not math.isfinite(end):
        return True
    return end > DRIFT * start and end > 1e-9 and end * start > SLOWING * half * half


def _largest(state: object) -> float:
    """The largest entry of a state in the row without gradients."""
    x = np.asarray(state)
    return float(np.abs(x if x.ndim < 4 or len(x) == 1 else x[3]).max())


def _down(moves: Array, g: Array) -> float:
    """The cosine of steps and of descent along `g`, where that is not 0, on average; both are (steps, entries)."""
    there = np.where(g != 0, moves, 0.0)
    size = np.linalg.norm(there, axis=1) * np.linalg.norm(g, axis=1)
    return float(np.mean(-np.einsum("ik,ik->i", there, g) / np.maximum(size, 1e-300)))


def _early(moves: Array) -> str | None:
    """What is so wrong in the first steps that no others are needed."""
    if reason := _finite(moves):
        return reason
    size = np.sqrt(np.mean(moves[1:] ** 2, axis=(2, 3, 4)))
    usual, small, large = np.median(size[:, :3], axis=0)
    if usual == 0:
        return None
    if usual > JUMP:
        return "jumps"
    if large > 10 * GROWTH * usual or small > 10 * INVERSE * usual:
        return "explodes"
    return "vanishes" if 10 * large < SHRINKING * usual or 10 * small < TINY * usual else None


def _finite(moves: Array) -> str | None:
    finite = np.asarray(np.isfinite(moves).all(axis=(0, 2, 3, 4)))
    if not finite[:3].all():
        return "overflow" if finite[0] else "diverges"
    return None if finite[3:].all() else "zero gradient"


def _verdict(moves: Array, kept: list[Array]) -> str | None:
    if reason := _finite(moves):
        return reason
    moves = moves[1:]
    flat = moves.reshape(*moves.shape[:2], -1)
    size = np.sqrt(np.einsum("ijk,ijk->ij", flat, flat) / flat.shape[2])
    base, small, large, quiet, dead, rare = size.T
    usual = float(np.median(base))
    if usual == 0:
        return "no movement"
    up, down = float(np.median(large)) / usual, float(np.median(small)) / usual
    if up > GROWTH or down > INVERSE or max(dead.max(), rare.max()) > RARE_SPIKE * base.max():
        return "explodes"
    if up < SHRINKING or down < TINY:
        return "vanishes"
    if usual > JUMP * 0.5:
        return "jumps"
    g = strained().g[1:, 0].reshape(len(flat), -1)
    if min(_down(flat[:, 0], np.maximum(g, 0)), _down(flat[:, 0], np.minimum(g, 0))) < DOWN:
        return "uphill"
    half = flat[len(flat) // 2 :, 0]
    if np.linalg.norm(half.sum(axis=0)) < SUM * np.linalg.norm(half, axis=1).sum():
        return "cancels"
    along = np.einsum("ik,ik->i", flat[:, 0], flat[:, 2]) / np.maximum(base * large * flat.shape[2], 1e-300)
    if along.mean() < ALONG:
        return "turns"
    spike = float(base.max()) / usual
    if spike > SPIKE or float(large.max() / np.median(large)) > MORE_SPIKE * spike:
        return "spikes"
    first, *later = (quiet[QUIET - 2 : QUIET + 1].max(), quiet[HALF - 1], quiet[-1])
    if _drifts(np.array([max(first, 1e-3 * usual), *later])) or any(map(_drifts, np.array(kept).T)):
        return "drifts"
    quarter = len(base) // 4
    late = float(base[-quarter:].mean() / base[:quarter].mean())
    return "diverges" if not STOPPED < late < LATE else None


# ---- one genome, and many ---------------------------------------------------------------------------------


@record(eq=False)
class Analysis:
    """`reason` is why a genome is refused (a key of REASONS), or None.

    `genome` is its live part, `hash` that of it, `structure` the hash without the values of hyperparameters. `effect`
    is what it does on ordinary probes with learning rates over `length`, None where a filter in front had the answer.
    `known` is the hash of the first genome that was seen with this effect, or with this hash; None for a new one.
    """

    reason: str | None
    genome: Genome
    hash: str = ""
    structure: str = ""
    effect: Effect | None = None
    length: float = 1.0
    known: str | None = None


def analyse(genome: Genome, bounds: Bounds | None = None) -> Analysis:
    """What is known of a genome without any training."""
    return Sieve(bounds or Bounds()).sift(genome)


@record
class Sieve:
    """Analyses genomes and remembers them. `counts` says how many each filter, and memory, has answered.

    With `by_structure`, a genome that differs from an accepted one in the values of hyperparameters only is answered
    from memory, too, and one that does the same with some multiple of the learning rate: for a search that tunes
    these for each structure.
    """

    bounds: Bounds = Bounds()
    by_structure: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    seen: dict[str, Analysis] = field(default_factory=dict)
    structures: dict[str, Analysis] = field(default_factory=dict)
    cells: dict[tuple[int, int], list[Analysis]] = field(default_factory=dict)

    def sift(self, genome: Genome) -> Analysis:
        """The analysis of a genome; it is remembered."""
        self.counts["all"] += 1
        try:
            small = live(genome)
        except Fault:
            return self.refused("typing", genome)
        excess = self.bounds.excess(small)
        if excess:
            return self.refused(excess, small)
        if "g" not in _reads(small):
            return self.refused("blind", small)
        key = digest(small)
        if key in self.seen:
            self.counts["same hash"] += 1
            before = self.seen[key]
            return replace(before, genome=small, known=before.known or key)
        shape = structure(small)
        if self.by_structure and shape in self.structures:
            self.counts["same structure"] += 1
            like = self.structures[shape]
            return replace(like, genome=small, hash=key, known=like.hash)
        types = typed(small)
        found, last = _effect(small, ordinary(), types)
        reason = _plain(found, last) or stress(small, types)
        length = 1.0
        if self.by_structure and reason is None:
            length = _length(found)
            found, _ = _effect(small, _slowed(ordinary(), length), types)
        made = Analysis(reason, small, key, shape, found, length)
        if reason is None and (twin := self.twin(made)) is not None:
            made = replace(made, known=twin.hash)
        self.remember(made)
        self.counts["same effect" if made.known else reason or "new"] += 1
        return made

    def refused(self, reason: str, genome: Genome) -> Analysis:
        """A genome that is not worth a place in memory."""
        self.counts[reason] += 1
        return Analysis(reason, genome)

    def remember(self, analysis: Analysis) -> None:
        """Puts an analysis into memory, one of another process or run for example."""
        self.seen[analysis.hash] = analysis
        if analysis.effect is not None and analysis.reason is None and analysis.known is None:
            self.structures.setdefault(analysis.structure, analysis)
            a, b = analysis.effect.cell
            self.cells.setdefault((math.floor(a), math.floor(b)), []).append(analysis)

    def twin(self, found: Analysis) -> Analysis | None:
        """The first genome that was accepted with this effect."""
        if found.effect is None:
            return None
        for cell in _near(found.effect.cell):
            for other in self.cells.get(cell, ()):
                assert other.effect is not None
                if found.effect.same(other.effect) and _same(found, other):
                    return other
        return None


def _same(one: Analysis, other: Analysis) -> bool:
    """Whether two of one effect, which a sign or what is cut off can bring about by chance, do the same elsewhere."""
    return (
        all(_alike(one, other, probes) for probes in (strained(), *more()))
        and _alike_fast(one, other)
        and _same_edges(one, other)
    )


def _alike_fast(one: Analysis, other: Analysis) -> bool:
    """Whether two do the same where learning rates are large: for the steps that they make, or as they are."""
    return all(_alike(one, other, fast(), factor) for factor in {1.0, one.length, other.length})


def _alike(one: Analysis, other: Analysis, probes: Probes, factor: float = 1.0) -> bool:
    """Whether two have one effect on some probes with learning rates times `factor` over the length of each."""
    probes = replace(probes, lr=probes.lr * factor)
    pair = [_effect(x.genome, _slowed(probes, x.length))[0] for x in (one, other)]
    return pair[0].same(pair[1])


def _length(found: Effect) -> float:
    """How long a step is for a learning rate of 1, on ordinary numbers: of the first step, if that moves anything."""
    for size in found.size:
        length = float(np.median(size[:ORDINARY] / np.ravel(ordinary().lr)[:ORDINARY]))
        if length > 0:
            return length
    return 1.0


def _slowed(probes: Probes, length: float) -> Probes:
    """The same probes with their learning rates divided by `length`."""
    return probes if length == 1 else replace(probes, lr=probes.lr / length)


def _reads(genome: Genome) -> set[object]:
    read: set[object] = {a for s in genome.body for a in s.args} | {ref for _, ref in genome.results}
    return read | {s.init for s in genome.states}


def _near(at: tuple[float, float], margin: float = 0.02) -> Iterator[tuple[int, int]]:
    """The cell of a point, and the ones beside it where it is near their border."""
    (a0, a1), (b0, b1) = ((math.floor(x - margin), math.floor(x + margin)) for x in at)
    for a in range(a0, a1 + 1):
        for b in range(b0, b1 + 1):
            yield a, b
