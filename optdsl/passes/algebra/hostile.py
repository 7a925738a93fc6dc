"""Values of tensors on which a careless form goes wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def spread(rng: Any, low: float, high: float, shape: Any) -> Any:
    """Log-uniform magnitudes of both signs."""
    return rng.choice([-1.0, 1.0], shape) * 10 ** rng.uniform(low, high, shape)


def hostile(count: int, rng: Any) -> tuple[Any, int]:
    """Inputs for `count` leaves, float32, a column per sample, and how many at the end are special values."""
    # not the largest number itself, where rounding would decide what overflows
    top, least = 0.9 * float(np.finfo(np.float32).max), 2.0**-149
    positive = np.array([0.0, 1.0, math.inf, top, least, 2.0**-126, 1e-30, 1e20, 0.5, 3.0])
    special = np.concatenate([positive, -positive, [math.nan]])
    eps = 2.0**-23

    def alone(others: Any, values: Any) -> Any:
        """One leaf takes `values`, in turn."""
        which = np.arange(others.shape[1]) % max(count, 1)
        others[which, np.arange(others.shape[1])] = values
        return others

    def family(n: int) -> Any:
        one = spread(rng, -3, 3, n)
        ratio = rng.choice([1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 1.0, -1.0], (count, n))
        return one * ratio * (1 + eps * rng.integers(-4, 5, (count, n)))

    parts = [
        spread(rng, -3, 3, (count, 128)),
        spread(rng, -45, 38.5, (count, 96)),
        np.abs(spread(rng, -6, 6, (count, 48))),
        family(128),
        1 + eps * rng.integers(-64, 65, (count, 24)),
        rng.choice([-1.0, 1.0], (count, 24)) * (1 + spread(rng, -7, -1, (count, 24))),
        spread(rng, -45, -20, (count, 32)),
        spread(rng, 30, 38.5, (count, 32)),
        spread(rng, -1.5, 0, (count, 64)) * top,
        alone(spread(rng, -2, 2, (count, 48)), spread(rng, -1, 0, 48) * top),
        alone(spread(rng, -2, 2, (count, 48)), spread(rng, 18, 20, 48)),
        alone(spread(rng, -6, 6, (count, 32)), spread(rng, 20, 38, 32)),
        alone(spread(rng, -2, 2, (count, 32)), spread(rng, -45, -30, 32)),
    ]
    specials = [rng.choice(special, (count, 160))]
    if count == 2:
        a, b = np.meshgrid(special, special)
        specials.append(np.stack([a.ravel(), b.ravel()]))
    for leaf in range(min(count, 8)):
        around = spread(rng, -2, 2, (count, special.size))
        around[leaf] = special
        specials.append(around)
    # twice: with usual hyperparameters, and with those at the ends of their intervals
    last = np.concatenate(specials, axis=1)
    return np.concatenate([*parts, last, last], axis=1).astype(np.float32), last.shape[1]
