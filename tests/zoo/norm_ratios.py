"""Methods whose steps are relative to the norms of tensors or of their rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule
from tests.zoo.velocities import after_momentum


def length(x: Any) -> float:
    """The 2-norm of a tensor."""
    return math.sqrt(np.sum(x * x))


@rule("fromage", {}, {"lr": 0.1, "p_bound": 1.01})
def fromage(p: Any, grads: Any, *, lr: float = 1e-2, p_bound: float | None = None) -> Iterator[Any]:
    """Bernstein et al. 2020, arXiv:2002.03432, algorithm 1, with the bound of the authors' fromage.py."""
    largest = math.inf if p_bound is None else p_bound * length(p)
    for g in grads:
        if length(p) > 0 and length(g) > 0:
            g = g / length(g) * length(p)
        p = (p - lr * g) / math.sqrt(1 + lr * lr)
        if length(p) > largest:
            p = p / length(p) * largest
        yield p


@rule("nero", {}, {"lr": 0.1, "beta": 0.9}, {"constraints": False, "lr": 0.03})
def nero(
    p: Any, grads: Any, *, lr: float = 1e-2, beta: float = 0.999, constraints: bool = True
) -> Iterator[Any]:
    """Liu et al. 2021, arXiv:2102.07227, algorithm 1, row by row; vectors have rows of one entry, unconstrained."""
    shape = p.shape
    rows = p.reshape(shape[0], -1) if p.ndim > 1 else p.reshape(-1, 1)
    constraints = constraints and p.ndim > 1

    def constrained(rows: Any) -> Any:
        out = [row - np.mean(row) for row in rows]
        return np.stack([row / length(row) for row in out]) if constraints else rows

    rows = constrained(rows)
    scale = np.mean([length(row) for row in rows])
    averages = np.zeros(len(rows))
    for t, g in enumerate(grads, 1):
        new = []
        for i, (row, slope) in enumerate(zip(rows, g.reshape(rows.shape), strict=True)):
            averages[i] = beta * averages[i] + (1 - beta) * length(slope) ** 2
            root = math.sqrt(averages[i] / (1 - beta**t))
            new.append(row - lr * scale * slope / root if root else row)
        rows = constrained(np.stack(new))
        yield rows.reshape(shape)


@rule(
    "larc",
    {},
    {"lr": 0.03, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1, "trust_coefficient": 0.01},
    {
        "lr": 0.5,
        "clip": False,
        "eps": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.2,
    },
)
def larc(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    trust_coefficient: float = 0.02,
    clip: bool = True,
    eps: float = 1e-8,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """You et al. 2017, arXiv:1708.03888, in the form of apex.parallel.LARC around torch's SGD."""
    buffer = None
    for g in grads:
        if length(p) != 0 and length(g) != 0:
            local = trust_coefficient * length(p) / (length(g) + weight_decay * length(p) + eps)
            g = (min(local, lr) / lr if clip else local) * (g + weight_decay * p)
        buffer, d = after_momentum(buffer, g, momentum, dampening, nesterov)
        p = p - lr * d
        yield p


@rule(
    "sgd_agc",
    {},
    {
        "lr": 0.03,
        "clip_factor": 0.2,
        "agc_eps": 1.7,
        "momentum": 0.8,
        "dampening": 0.3,
        "weight_decay": 0.1,
    },
    {"momentum": 0.9, "nesterov": True, "clip_factor": 0.5},
)
def sgd_agc(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    clip_factor: float = 0.01,
    agc_eps: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Iterator[Any]:
    """Brock et al. 2021, arXiv:2102.06171, equation 3, with the floors of the authors' code, then torch's SGD."""
    shape = p.shape
    units = (shape[0], -1) if p.ndim > 1 else (1, -1)
    buffer = None
    for g in grads:
        slopes = []
        for row, slope in zip(p.reshape(units), g.reshape(units), strict=True):
            limit = clip_factor * max(length(row), agc_eps)
            slopes.append(limit * slope / max(length(slope), 1e-6) if length(slope) > limit else slope)
        d = np.stack(slopes).reshape(shape) + weight_decay * p
        buffer, d = after_momentum(buffer, d, momentum, dampening, nesterov)
        p = p - lr * d
        yield p
