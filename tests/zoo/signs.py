"""Methods that step by signs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


@rule("lion", {}, {"lr": 3e-3, "betas": (0.8, 0.95), "weight_decay": 0.1})
def lion(
    p: Any, grads: Any, *, lr: float = 1e-4, betas: Any = (0.9, 0.99), weight_decay: float = 0.0
) -> Iterator[Any]:
    """Chen et al. 2023, arXiv:2302.06675, algorithm 2."""
    m = np.zeros_like(p)
    for g in grads:
        c = betas[0] * m + (1 - betas[0]) * g
        p = p - lr * (np.sign(c) + weight_decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
        yield p
