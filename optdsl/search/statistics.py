"""Whether one rule is better than another, from paired differences on several tasks with several seeds.

A difference is log(loss of a rule / loss of the other) for one task and seed: below 0 where the rule is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from optdsl.core.record import record

Floats = npt.NDArray[np.float64]


@record
class Estimate:
    """A mean with the ends of its confidence interval."""

    mean: float
    low: float
    high: float


@record
class OnTask:
    """One task: the mean difference over seeds, its standard error, the p-value of Wilcoxon's test and that p-value
    after Holm's correction for the number of tasks.
    """

    mean: float
    error: float
    p: float
    corrected: float


@record
class Comparison:
    """Two rules on several tasks. `overall` is the mean over tasks of the mean over seeds."""

    overall: Estimate
    tasks: Mapping[str, OnTask]

    def losses(self, level: float = 0.05) -> list[str]:
        """The tasks on which the rule is significantly worse."""
        return [name for name, found in self.tasks.items() if found.mean > 0 and found.corrected < level]

    def gains(self, level: float = 0.05) -> list[str]:
        """The tasks on which the rule is significantly better."""
        return [name for name, found in self.tasks.items() if found.mean < 0 and found.corrected < level]

    @property
    def better(self) -> bool:
        """Better overall, and on no task significantly worse."""
        return self.overall.high < 0 and not self.losses()


def compare(
    differences: Mapping[str, npt.ArrayLike], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Comparison:
    """What paired differences, an array over seeds for each task, say. Raises ValueError as `bootstrap`."""
    arrays = _arrays(differences)
    overall = bootstrap(arrays, confidence=confidence, draws=draws, seed=seed)
    p = {name: wilcoxon(x) for name, x in arrays.items()}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    tasks = {
        name: OnTask(float(x.mean()), standard_error(x), p[name], corrected[name])
        for name, x in arrays.items()
    }
    return Comparison(overall, tasks)


def bootstrap(
    differences: Mapping[str, npt.ArrayLike], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Estimate:
    """The mean over tasks of the mean over seeds, with its interval by the percentiles of a hierarchical bootstrap:
    tasks are drawn with replacement, then seeds within each that is drawn.

    The same task drawn twice gets seeds of its own each time. Raises ValueError where there is nothing, or something
    that is not finite.
    """
    arrays = list(_arrays(differences).values())
    generator = np.random.default_rng(seed)
    tasks = generator.integers(len(arrays), size=(draws, len(arrays)))
    means = np.empty(tasks.shape)
    for number, x in enumerate(arrays):
        places = np.nonzero(tasks == number)
        picked = generator.integers(len(x), size=(len(places[0]), len(x)))
        means[places] = x[picked].mean(1)
    low, high = np.quantile(means.mean(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(np.mean([x.mean() for x in arrays])), float(low), float(high))


def wilcoxon(differences: npt.ArrayLike) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test of differences about 0.

    Exact for at most 50 differences without ties and zeros, else by the normal approximation; zeros count half to
    each side (Pratt). 1 where all are 0.
    """
    x = np.asarray(differences, np.float64)
    if not len(x) or not np.isfinite(x).all():
        raise ValueError("there are no differences, or some are not finite")
    if not x.any():
        return 1.0
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("this test is in scipy: pip install optdsl[search]") from error
    sizes = np.abs(x)
    exact = len(x) <= 50 and len(np.unique(sizes)) == len(x) and sizes.all()
    method = "exact" if exact else "asymptotic"
    return float(stats.wilcoxon(x, zero_method="pratt", method=method).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction: reject those below the level, and errors in the family are as rare
    as it says. In the order of `p`.
    """
    corrected = [0.0] * len(p)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = largest
    return corrected


def standard_error(x: npt.ArrayLike) -> float:
    """Of the mean of a sample; infinite for one number."""
    values = np.asarray(x, np.float64)
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def _arrays(differences: Mapping[str, npt.ArrayLike]) -> dict[str, Floats]:
    arrays = {name: np.asarray(x, np.float64).reshape(-1) for name, x in differences.items()}
    if not arrays or not all(len(x) and np.isfinite(x).all() for x in arrays.values()):
        raise ValueError("there are no differences for a task, or some are not finite")
    return arrays
