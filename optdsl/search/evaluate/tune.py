"""How good a rule is on a task once its learning rate and its constants are tuned.

Every rule gets the same number of configurations. They are chosen on one set of seeds, and what the best of them is
worth is then measured on fresh ones: the best of many noisy numbers is better than it will ever be again. Rules are
compared in pairs, with the same data and the same initial values.

Learning rates of different rules are not comparable, but the lengths of their steps are. A short probe says how long
a step is for a learning rate of 1; the grid is one of lengths, by factors of 4, extended until the best is not at its
end, then by factors of 2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from optdsl.core.record import record
from optdsl.core.types import Kind
from optdsl.ir.program import Hyper, Program
from optdsl.search.evaluate.printer import Unsupported
from optdsl.search.evaluate.stacked import Stacked
from optdsl.search.evaluate.train import Floats, Hurdle, Runs, train
from optdsl.search.tasks import Task, task

#: Lengths of a step, root mean square over all parameters, in the middle of the first grid.
LENGTH = 2.0**-6
#: A run that diverged counts as one that ends with this many times the loss that it began with.
CEILING = 4.0
_FLOOR = 1e-12
_PROBE = 1e-6  # learning rate of the probe


@record
class Effort:
    """How much a rule is tuned, and how it is measured.

    `configurations` are tried in all, each on the `tuning` seeds; `coarse` of them are the first grid of learning
    rates. `spread` is the standard deviation of the binary logarithm of a constant's change. `fresh` seeds tell what
    the chosen configuration is worth. `steps` stand in for those of the task.
    """

    configurations: int = 24
    coarse: int = 5
    spread: float = 1.0
    tuning: tuple[int, ...] = (0, 1, 2)
    fresh: tuple[int, ...] = tuple(range(1000, 1008))
    checkpoints: int = 4
    steps: int | None = None


@record
class Tuned:
    """A tuned rule. `losses` are those of validation on the fresh seeds, infinite where a run diverged.

    `values` are the learning rate and constants chosen, `tuning` the mean log loss by which they were. `edge` says
    that the best learning rate is still at the end of its grid. `dead`: no step moves anything, or the first ones are
    not finite; nothing else was tried then. `length` is that of a step (see `unit`) with what was chosen. `starts`
    are the losses before the first step, `curve` the mean losses at the checkpoints of the fresh runs that did not
    diverge. `configurations` were tried, with `steps` steps in all.
    """

    task: str
    values: Mapping[str, float]
    tuning: float
    losses: tuple[float, ...]
    starts: tuple[float, ...]
    curve: tuple[float, ...]
    configurations: int
    steps: int
    edge: bool = False
    dead: bool = False
    length: float = LENGTH

    @property
    def logs(self) -> Floats:
        """The logarithm of the loss of each fresh seed; a run that diverged counts as CEILING says."""
        return log_losses(np.asarray(self.losses), np.asarray(self.starts))

    @property
    def diverged(self) -> int:
        """How many of the fresh runs diverged."""
        return sum(not math.isfinite(loss) for loss in self.losses)

    def hurdle(self, share: float = 0.4) -> Hurdle | None:
        """What others have to reach to be tuned on: the curve of this rule. None if this one diverged."""
        if self.dead or not all(map(math.isfinite, self.curve)):
            return None
        return Hurdle(float(np.mean(self.starts)), self.curve, share)


def log_losses(final: Floats, start: Floats) -> Floats:
    """Logarithms of losses; what diverged counts as CEILING times the loss at the start."""
    found: Floats = np.log(np.clip(np.nan_to_num(final, nan=np.inf), _FLOOR, CEILING * start))
    return found


def log_ratios(rule: Tuned, other: Tuned) -> Floats:
    """log(loss of `rule` / loss of `other`) for each fresh seed: below 0 where `rule` is better.

    Raises ValueError for results that are no pairs.
    """
    if rule.task != other.task or len(rule.losses) != len(other.losses):
        raise ValueError("these were not measured on the same task and seeds")
    found: Floats = rule.logs - other.logs
    return found


def constants(program: Program) -> tuple[str, ...]:
    """The hyperparameters, the learning rate apart, that can be tuned: numbers that are neither 0 nor infinite."""
    return tuple(
        h.name
        for h in program.hypers
        if h.kind is Kind.FLOAT and h.name != "lr" and h.one != 0 and math.isfinite(float(h.one))
    )


def moved(hyper: Hyper, value: float, factor: Floats) -> Floats:
    """A constant multiplied by factors; one below 1 that may not reach 1 goes by its distance from 1.

    What would leave the interval of the constant stays `value`.
    """
    interval = hyper.interval
    decay = interval is not None and interval.high == 1 and 0.5 <= value < 1
    new = 1 - (1 - value) * factor if decay else value * factor
    inside = [interval is None or float(x) in interval for x in new]
    found: Floats = np.where(inside, new, value)
    return found


def unit(
    stacked: Stacked, problem: Task, values: Mapping[str, float], seeds: Sequence[int] = (0, 1)
) -> float:
    """Root mean square of the parameters' change in a step, divided by the learning rate: the mean of 4 steps.

    In double precision, with so small a learning rate that the loss is hardly changed.
    """
    steps = 4
    p = torch.stack([problem.init(seed) for seed in seeds]).double()
    columns = {name: value for name, value in values.items() if name in stacked.varied} | {"lr": _PROBE}
    run = stacked.run(p, columns, steps)
    data = [problem.batches(seed, steps) for seed in seeds]
    total = torch.zeros(len(seeds), dtype=torch.float64)
    for step in range(steps):
        batch = tuple(torch.stack([x[step] for x in parts]) for parts in zip(*data, strict=True))
        batch = tuple(x.double() if x.is_floating_point() else x for x in batch)
        leaves = [view.detach().requires_grad_() for view in problem.layout.views(run.p)]
        gradient = torch.empty_like(run.p)
        problem.gradient(leaves, batch, gradient)
        before = run.view().clone()
        run.step(gradient)
        total += (run.view() - before).square().mean(1).sqrt()
    return float((total / (steps * _PROBE)).median())


class _Search:
    """Configurations tried so far: their values and mean log losses on the tuning seeds."""

    def __init__(
        self, program: Program, problem: Task, effort: Effort, names: tuple[str, ...], hurdle: Hurdle | None
    ) -> None:
        self.problem, self.effort, self.hurdle = problem, effort, hurdle
        self.names = ("lr", *names)
        self.stacked = Stacked(program, problem.layout, self.names)
        self.tried: list[dict[str, float]] = []
        self.scores: list[float] = []
        self.steps = 0

    @property
    def left(self) -> int:
        """Configurations that may still be tried."""
        return self.effort.configurations - len(self.tried)

    def run(
        self, configurations: Sequence[Mapping[str, float]], seeds: Sequence[int], hurdle: Hurdle | None
    ) -> Runs:
        """Trains each configuration with each seed, a row for each: seeds within configurations."""
        columns = {name: np.repeat([c[name] for c in configurations], len(seeds)) for name in self.names}
        runs = train(
            self.stacked,
            self.problem,
            columns,
            list(seeds) * len(configurations),
            steps=self.effort.steps,
            checkpoints=self.effort.checkpoints,
            hurdle=hurdle,
        )
        self.steps += runs.steps
        return runs

    def attempt(self, configurations: Sequence[dict[str, float]]) -> None:
        """Tries these, as many as may be."""
        configurations = list(configurations[: self.left])
        if configurations:
            runs = self.run(configurations, self.effort.tuning, self.hurdle)
            logs = log_losses(runs.final, runs.start).reshape(len(configurations), -1)
            self.tried += configurations
            self.scores += logs.mean(1).tolist()

    @property
    def best(self) -> int:
        """The place of the best of those tried; of several that are the same (all diverged), the slowest."""
        return min(range(len(self.tried)), key=lambda i: (self.scores[i], self.tried[i]["lr"]))


def tune(
    program: Program,
    problem: Task,
    effort: Effort,
    *,
    seed: int = 0,
    start: Mapping[str, float] | None = None,
    names: Sequence[str] | None = None,
    hurdle: Hurdle | None = None,
    middle: float = LENGTH,
    near: bool = False,
) -> Tuned:
    """Tunes a rule on a task, and measures it on fresh seeds.

    `start` are the values of constants to begin with, where these are not the defaults; `names` the constants that
    are tuned (all by default, see `constants`), others keep theirs. `seed` is of the random changes of constants.
    `middle` is the length of a step in the middle of the first grid: that of a similar rule, say. `near` says that
    this and `start` are good already: the first changes of constants go with the first grid, which saves time.
    Rows that miss the `hurdle` while tuning are stopped. Raises Unsupported.
    """
    if all(h.name != "lr" for h in program.hypers):
        raise Unsupported("there is no learning rate `lr` to tune")
    names = constants(program) if names is None else tuple(names)
    values = {name: float((start or {}).get(name, program.hyper(name).one)) for name in names}
    search = _Search(program, problem, effort, names, hurdle)
    length = unit(search.stacked, problem, values)
    if not (math.isfinite(length) and length > 0):
        nothing = (math.inf,) * len(effort.fresh)
        ones = (1.0,) * len(effort.fresh)
        return Tuned(problem.name, values, math.inf, nothing, ones, (), 0, 0, dead=True)
    changes: list[dict[str, float]] = []
    if near and names:
        generator = np.random.default_rng([seed, 0])
        about = {**values, "lr": middle / length}
        changes = _changed(search, program, names, generator, (search.left - effort.coarse) // 2, 1.0, about)
    edge = _rates(search, values, middle / length, changes)
    if changes:
        search.attempt(
            _changed(search, program, names, generator, search.left, 0.5, search.tried[search.best])
        )
    elif names:
        _constants(search, program, names, seed)
    else:
        _halves(search)
    chosen = search.tried[search.best]
    runs = search.run([chosen], effort.fresh, None)
    fine = ~runs.diverged
    length = chosen["lr"] * unit(search.stacked, problem, chosen)
    curve = runs.curve[fine].mean(0) if fine.any() else np.full(effort.checkpoints, np.inf)
    return Tuned(
        task=problem.name,
        values=chosen,
        tuning=search.scores[search.best],
        losses=tuple(runs.final.tolist()),
        starts=tuple(runs.start.tolist()),
        curve=tuple(curve.tolist()),
        configurations=len(search.tried),
        steps=search.steps,
        edge=edge,
        length=length if math.isfinite(length) and length > 0 else LENGTH,
    )


def _rates(
    search: _Search, values: Mapping[str, float], middle: float, others: Sequence[dict[str, float]] = ()
) -> bool:
    """Learning rates by factors of 4, more of them at an end that is best. Returns whether one still is.

    `others`, whose learning rates are about the middle one, are tried with the first of them.
    """
    count = search.effort.coarse
    low, high = -(count // 2), count - count // 2 - 1
    exponents = list(range(low, high + 1))
    search.attempt([*({**values, "lr": middle * 4.0**e} for e in exponents), *others])
    exponents += [0] * len(others)
    while True:
        best = exponents[search.best]
        if best not in (low, high):
            return False
        if search.left <= search.effort.configurations // 3:
            return True
        more = [low - 2, low - 1] if best == low else [high + 1, high + 2]
        low, high = min(low, *more), max(high, *more)
        taken = more[: search.left]
        search.attempt([{**values, "lr": middle * 4.0**e} for e in taken])
        exponents += taken


def _halves(search: _Search) -> None:
    """The learning rates between those of the grid, about the best, and on until all are used up."""
    factor = 2.0
    while search.left > 0:
        best = search.tried[search.best]
        search.attempt([{**best, "lr": best["lr"] * factor}, {**best, "lr": best["lr"] / factor}])
        factor **= 0.5


def _constants(search: _Search, program: Program, names: Sequence[str], seed: int) -> None:
    """What is left goes to random changes of constants and learning rate, in two rounds, each about the best so far;
    with the first one go the learning rates between those of the grid.
    """
    generator = np.random.default_rng([seed, len(search.tried)])
    best = search.tried[search.best]
    between = [{**best, "lr": best["lr"] * factor} for factor in (2.0, 0.5)]
    count = max(0, search.left - len(between)) // 2
    search.attempt([*between, *_changed(search, program, names, generator, count, 1.0, best)])
    search.attempt(_changed(search, program, names, generator, search.left, 0.5, search.tried[search.best]))


def _changed(
    search: _Search,
    program: Program,
    names: Sequence[str],
    generator: np.random.Generator,
    count: int,
    share: float,
    best: Mapping[str, float],
) -> list[dict[str, float]]:
    """Configurations about the best, by `share` of the spread for constants, half of that for the learning rate."""
    spread = share * search.effort.spread
    columns = {
        name: moved(program.hyper(name), best[name], 2.0 ** (spread * generator.standard_normal(count)))
        for name in names
    }
    columns["lr"] = best["lr"] * 2.0 ** (0.5 * spread * generator.standard_normal(count))
    return [{name: float(values[i]) for name, values in columns.items()} for i in range(count)]


@functools.cache
def rule(name: str) -> Program:
    """The simplified program of a shipped method."""
    from optdsl.driver import locate, program_of, simplify

    program, _ = program_of(locate(name))
    return simplify(program)


@functools.lru_cache(maxsize=1024)
def baseline(problem: str, effort: Effort, seed: int = 0, name: str = "adamw") -> Tuned:
    """AdamW (or another shipped method) on a task, tuned as much as anything it is compared with."""
    return tune(rule(name), task(problem), effort, seed=seed)
