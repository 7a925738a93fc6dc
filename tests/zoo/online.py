"""Methods of online convex optimization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import Arrays, rule


@rule("subgradient", {}, {"lr": 0.5, "power": 0.8}, {"lr": 0.01, "normalize": False}, joint=True)
def subgradient(
    start: Arrays, grads: Any, *, lr: float = 0.1, power: float = 0.5, normalize: bool = True
) -> Iterator[Arrays]:
    """Shor 1985, section 2.1, with steps lr t^-power."""
    x = start
    for t, g in enumerate(grads, 1):
        length = sum(float(np.sum(y * y)) for y in g.values()) ** 0.5 if normalize else 1.0
        if length > 0:
            x = {name: x[name] - lr * t**-power * g[name] / length for name in x}
        yield x
