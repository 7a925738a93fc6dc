"""Methods that keep steps from lengthening weights that are scale-free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


def _cosine(x: Any, y: Any, eps: float) -> float:
    return abs(float(x @ y)) / (max(math.sqrt(x @ x), eps) * max(math.sqrt(y @ y), eps))


def _projected(p: Any, g: Any, u: Any, eps: float, delta: float, wd_ratio: float) -> tuple[Any, float]:
    """The update without its part along the weights, where it is to go, and the factor of the decay."""
    if p.ndim < 2:
        return u, 1.0
    for shape in ((p.shape[0], -1), (1, -1)):
        w, d, out = p.reshape(shape), g.reshape(shape), u.reshape(shape).copy()
        if max(_cosine(a, b, eps) for a, b in zip(w, d, strict=True)) < delta / math.sqrt(w.shape[1]):
            for i, row in enumerate(w):
                unit = row / (math.sqrt(row @ row) + eps)
                out[i] = out[i] - unit * (unit @ out[i])
            return out.reshape(p.shape), wd_ratio
    return u, 1.0


@rule(
    "adamp",
    {},
    {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.2, "delta": 0.7, "wd_ratio": 0.3},
    {"nesterov": True, "delta": 0.5, "weight_decay": 0.2},
)
def adamp(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
) -> Iterator[Any]:
    """Heo et al. 2021, arXiv:2006.08217; clovaai/AdamP, adamp.py at 7f6f0383ff."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        top = betas[0] * m + (1 - betas[0]) * g if nesterov else m
        u = top / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        u, ratio = _projected(p, g, u, eps, delta, wd_ratio)
        p = p - lr * weight_decay * ratio * p
        p = p - lr / (1 - betas[0] ** t) * u
        yield p


_MOMENTUM = {"lr": 3e-3, "momentum": 0.8, "weight_decay": 0.2, "delta": 0.7, "wd_ratio": 0.3, "eps": 1e-4}


@rule("sgdp", {}, {**_MOMENTUM, "dampening": 0.1}, {**_MOMENTUM, "nesterov": True})
def sgdp(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    eps: float = 1e-8,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
) -> Iterator[Any]:
    """Heo et al. 2021, arXiv:2006.08217; clovaai/AdamP, sgdp.py at 7f6f0383ff.

    Without Nesterov's variant the projection works in place, on the buffer itself.
    """
    buf = np.zeros_like(p)
    for g in grads:
        buf = momentum * buf + (1 - dampening) * g
        if nesterov:
            u, ratio = _projected(p, g, g + momentum * buf, eps, delta, wd_ratio)
        else:
            u, ratio = _projected(p, g, buf, eps, delta, wd_ratio)
            buf = u
        p = p - lr * weight_decay * ratio / (1 - momentum) * p
        p = p - lr * u
        yield p
