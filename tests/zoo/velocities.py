"""Methods that step along sums and averages of gradients, without scaling coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


@rule(
    "qhm",
    {},
    {"lr": 0.03, "momentum": 0.9, "nu": 0.6, "weight_decay": 0.1},
    {"weight_decay_type": "direct", "weight_decay": 0.2},
)
def qhm(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.999,
    nu: float = 0.7,
    weight_decay: float = 0.0,
    weight_decay_type: str = "grad",
) -> Iterator[Any]:
    """Ma and Yarats 2019, arXiv:1810.06801, equations 3 and 4."""
    average = np.zeros_like(p)
    for g in grads:
        if weight_decay_type == "direct":
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        average = momentum * average + (1 - momentum) * g
        p = p - lr * (1 - nu) * g - lr * nu * average
        yield p


@rule("aggmo", {}, {"lr": 3e-3, "betas": (0.3, 0.8, 0.95), "weight_decay": 0.1})
def aggmo(
    p: Any, grads: Any, *, lr: float = 1e-3, betas: Any = (0.0, 0.9, 0.99), weight_decay: float = 0.0
) -> Iterator[Any]:
    """Lucas et al. 2019, arXiv:1804.00325, equation 2."""
    velocities = [np.zeros_like(p) for _ in betas]
    for g in grads:
        g = g + weight_decay * p
        velocities = [beta * v - g for beta, v in zip(betas, velocities, strict=True)]
        p = p + lr * sum(velocities) / len(betas)
        yield p


@rule(
    "pid",
    {},
    {
        "lr": 3e-4,
        "momentum": 0.9,
        "dampening": 0.2,
        "weight_decay": 0.1,
        "integral": 3.0,
        "derivative": 7.0,
    },
    {"momentum": 0.5, "keep_first": True},
)
def pid(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    integral: float = 5.0,
    derivative: float = 10.0,
    keep_first: bool = False,
) -> Iterator[Any]:
    """An et al. 2018, as the authors' pid.py: no change in step 1, and the first gradient is not remembered."""
    total = change = before = None
    for g in grads:
        g = g + weight_decay * p
        step = g
        if momentum:
            if total is None:
                total, change = g, np.zeros_like(g)
                before = g if keep_first else np.zeros_like(g)
            else:
                total = momentum * total + (1 - dampening) * g
                change = momentum * change + (1 - momentum) * (g - before)
                before = g
            step = g + integral * total + derivative * change
        p = p - lr * step
        yield p


@rule(
    "madgrad",
    {},
    {"lr": 0.03, "momentum": 0.7, "weight_decay": 0.1, "eps": 1e-3},
    {"momentum": 0.0},
    {"decouple_decay": True, "weight_decay": 0.2},
    {"eps": 0.0, "lr": 0.03},
)
def madgrad(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    decouple_decay: bool = False,
) -> Iterator[Any]:
    """Defazio and Jelassi 2022, arXiv:2101.11075, algorithm 1; eps and decay as in the authors' package."""
    start, total, squares = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for k, g in enumerate(grads):
        old = p
        if not decouple_decay:
            g = g + weight_decay * p
        weight = (lr + eps) * math.sqrt(k + 1)
        total = total + weight * g
        squares = squares + weight * g * g
        root = np.cbrt(squares) + eps
        z = start - np.divide(total, root, out=np.zeros_like(p), where=root != 0)
        p = momentum * p + (1 - momentum) * z
        if decouple_decay:
            p = p - (lr + eps) * weight_decay * old
        yield p


@rule(
    "mirror_madgrad",
    {},
    {"lr": 0.03, "momentum": 0.7, "weight_decay": 0.1, "eps": 1e-3},
    {"decouple_decay": True, "weight_decay": 0.2},
)
def mirror_madgrad(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 0.0,
    decouple_decay: bool = False,
) -> Iterator[Any]:
    """The authors' mirror_madgrad.py, with the sum of squares written out instead of rescaled."""
    z = p.copy()
    squares = np.zeros_like(p)
    for k, g in enumerate(grads, 1):
        if decouple_decay:
            z = z - (lr + eps) * weight_decay * z
        else:
            g = g + weight_decay * p
        squares = squares + math.sqrt(k) * g * g
        root = np.cbrt(squares / math.sqrt(k)) + eps
        z = z - (lr + eps) * np.cbrt(k) * np.divide(g, root, out=np.zeros_like(p), where=root != 0)
        p = momentum * p + (1 - momentum) * z
        yield p
