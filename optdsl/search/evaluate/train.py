"""K training runs at once: one program, one task, as many learning rates, constants and seeds as there are rows.

That a run diverges is an outcome, not an error: its loss is infinite from there on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optdsl.core.record import record
from optdsl.search.evaluate.stacked import Stacked
from optdsl.search.tasks import Task

Floats = npt.NDArray[np.float64]

#: A run whose loss is this many times what it began with has diverged.
BLOWN = 1e4


@record
class Hurdle:
    """What a run must have reached to go on: at each checkpoint, a share of what the incumbent had gained by then.

    `start` is the loss that the incumbent began with, `curve` its losses at the checkpoints.
    """

    start: float
    curve: tuple[float, ...]
    share: float = 0.4

    def limit(self, checkpoint: int) -> float:
        """The largest loss to go on with."""
        gained = self.start - self.curve[checkpoint]
        return self.start - self.share * gained if gained > 0 else np.inf


@record
class Runs:
    """What became of K runs. Losses are those of validation.

    `start` [K] before the first step; `curve` [K, checkpoints], nan behind a run's end; `final` [K], infinite for a
    run that diverged, and the last loss seen of one that was stopped; `diverged` [K]; `stopped` [K], the checkpoint
    at which a run was stopped by the hurdle, or -1. `steps` were taken in all, summed over runs.
    """

    start: Floats
    curve: Floats
    final: Floats
    diverged: npt.NDArray[np.bool_]
    stopped: npt.NDArray[np.int64]
    steps: int


@functools.lru_cache(maxsize=16)
def _data(task: Task, seeds: tuple[int, ...], steps: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The minibatches of some seeds: tensors [steps, seeds, ...]."""
    by_seed = [task.batches(seed, steps) for seed in seeds]
    stacked = [torch.stack(parts, 1) for parts in zip(*by_seed, strict=True)]
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in stacked)


@functools.lru_cache(maxsize=64)
def _begin(task: Task, seeds: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Floats]:
    """The initial parameters of some seeds, [seeds, P], and their losses."""
    p = torch.stack([task.init(seed) for seed in seeds]).to(dtype)
    return p, _validate(task, p)


def train(
    stacked: Stacked,
    task: Task,
    columns: Mapping[str, npt.ArrayLike],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    checkpoints: int = 4,
    hurdle: Hurdle | None = None,
    dtype: torch.dtype = torch.float32,
) -> Runs:
    """Trains a model for each of `seeds`, with its entry in each of `columns`.

    The learning rate, if it is one of the columns, is multiplied with the schedule of the task. Validation is at
    `checkpoints` places at equal distances, the last one the end. Rows that diverge or miss the hurdle end there.
    """
    steps = task.steps if steps is None else steps
    unique = tuple(dict.fromkeys(seeds))
    places = torch.tensor([unique.index(seed) for seed in seeds])
    data = _data(task, unique, steps, dtype)
    columns = dict(columns)
    if "lr" in columns:
        rates = np.array([[task.rate(t, steps)] for t in range(1, steps + 1)])
        columns["lr"] = rates * np.asarray(columns["lr"], np.float64).reshape(1, -1)
    begin, losses = _begin(task, unique, dtype)
    run = stacked.run(begin.index_select(0, places), columns, steps)
    k = len(seeds)
    found = Runs(
        start=losses[places.numpy()],
        curve=np.full((k, checkpoints), np.nan),
        final=np.full(k, np.inf),
        diverged=np.zeros(k, np.bool_),
        stopped=np.full(k, -1),
        steps=0,
    )
    ends = [round(steps * (number + 1) / checkpoints) for number in range(checkpoints)]
    taken, done = 0, 0
    leaves, gradient = _leaves(task, run.p)
    for checkpoint, end in enumerate(ends):
        for step in range(done, end):
            batch = tuple(x[step].index_select(0, places) for x in data)
            task.gradient(leaves, batch, gradient)
            run.step(gradient)
        taken += (end - done) * len(run.rows)
        done = end
        losses = _validate(task, run.view())
        rows = run.rows
        found.curve[rows, checkpoint] = losses
        blown = ~(losses <= BLOWN * found.start[rows])
        found.diverged[rows[blown]] = True
        found.final[rows] = np.where(blown, np.inf, losses)
        if checkpoint == checkpoints - 1:
            break
        missed = (
            np.zeros(len(rows), np.bool_) if hurdle is None else ~blown & (losses > hurdle.limit(checkpoint))
        )
        found.stopped[rows[missed]] = checkpoint
        going = np.flatnonzero(~(blown | missed))
        if not len(going):
            break
        if len(going) < len(rows):
            run.keep(going.tolist())
            places = places[torch.from_numpy(going)]
            leaves, gradient = _leaves(task, run.p)
    return Runs(found.start, found.curve, found.final, found.diverged, found.stopped, taken)


def _leaves(task: Task, p: Tensor) -> tuple[list[Tensor], Tensor]:
    """Tensors of the models, in the memory of `p`, for autograd; and memory for their gradients."""
    leaves = [view.detach().requires_grad_() for view in task.layout.views(p)]
    return leaves, torch.empty_like(p)


def _validate(task: Task, p: Tensor) -> Floats:
    """Losses on the rows of validation, [K], a few models at a time so that memory stays small."""
    found = [task.validate(task.layout.views(part)) for part in p.split(16)]
    losses: Floats = torch.cat(found).double().numpy()
    return losses
