"""Which tasks can tell rules apart: by test, not by taste.

Ten known rules are tuned on a task and measured on fresh seeds. It is admitted if

- the spread of the rules is more than 5 paired standard errors, and more than 1 %. The best and the worst rule do not
  count: one that fails altogether, or a lucky one, does not make a task tell the others apart;
- the best loss is above 1e-3, so that logarithms of losses do not run away;
- validation is on at least 400 predictions;
- K = 64 runs take half a second at most (of a small task);
- no task admitted before ranks the rules in the same order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

import numpy as np

from optdsl.core.record import record
from optdsl.search.evaluate.stacked import Stacked
from optdsl.search.evaluate.train import train
from optdsl.search.evaluate.tune import Effort, Tuned, log_ratios, rule, tune
from optdsl.search.statistics import standard_error
from optdsl.search.tasks import SIZES, Task

#: The known rules: shipped methods of different kinds.
RULES = ("sgd", "heavy_ball", "nag", "adamw", "nadamw", "rmsprop", "adagrad", "lion", "signsgd", "adabelief")
SPREAD, LEAST, FLOOR, ROWS, SECONDS, MODELS = 5.0, 0.01, 1e-3, 400, 0.5, 64


@record
class Admission:
    """What was measured. `ranking` are the rules from best to worst, `scores` their mean log losses in that order.

    `spread` is the mean paired difference between the second and the last but one, `errors` the same in standard
    errors; `floor` the best mean loss; `seconds` of processor time for K = MODELS; `reasons` why it is not admitted.
    """

    task: str
    ranking: tuple[str, ...]
    scores: tuple[float, ...]
    spread: float
    errors: float
    floor: float
    rows: int
    seconds: float
    reasons: tuple[str, ...]

    @property
    def admitted(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


def admit(
    task: Task, before: Iterable[Admission] = (), effort: Effort | None = None, rules: Sequence[str] = RULES
) -> Admission:
    """Tests a task; `before` are results of other tasks."""
    effort = effort or Effort(configurations=12, fresh=tuple(range(1000, 1020)))
    tuned = {name: tune(rule(name), task, effort, names=()) for name in rules}
    ranking = sorted(tuned, key=lambda name: float(tuned[name].logs.mean()))
    spread, errors = _spread(tuned[ranking[1]], tuned[ranking[-2]])
    floor = min(float(np.mean(found.losses)) for found in tuned.values())
    rows = task.predictions
    seconds = cost(task)
    reasons = []
    if not errors > SPREAD:
        reasons.append(f"rules differ by {errors:.1f} standard errors")
    if not spread > LEAST:
        reasons.append(f"rules differ by {100 * spread:.1f} %")
    if not floor > FLOOR:
        reasons.append(f"the best loss is {floor:.2g}")
    if rows < ROWS:
        reasons.append(f"validation is on {rows} predictions")
    if task.size == SIZES[0] and seconds > SECONDS:
        reasons.append(f"{MODELS} runs take {seconds:.2f} s")
    same = [other.task for other in before if other.admitted and other.ranking == tuple(ranking)]
    reasons += [f"ranks the rules as {name} does" for name in same]
    scores = tuple(float(tuned[name].logs.mean()) for name in ranking)
    return Admission(task.name, tuple(ranking), scores, spread, errors, floor, rows, seconds, tuple(reasons))


def _spread(better: Tuned, worse: Tuned) -> tuple[float, float]:
    """Mean difference of log losses over pairs of runs, and the same in standard errors."""
    differences = log_ratios(worse, better)
    error = standard_error(differences)
    return float(differences.mean()), float(differences.mean()) / error if error else math.inf


def cost(task: Task, name: str = "adamw", models: int = MODELS) -> float:
    """Processor seconds of `models` runs at once, data at hand: the least of three times."""
    stacked = Stacked(rule(name), task.layout, ("lr",))
    seeds = list(range(8)) * (models // 8)
    rates = np.repeat(2.0 ** -np.arange(6, 6 + models // 8), 8)
    times = []
    for _ in range(4):
        begin = time.process_time()
        train(stacked, task, {"lr": rates}, seeds)
        times.append(time.process_time() - begin)
    return min(times[1:])
