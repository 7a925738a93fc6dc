"""Methods of online convex optimization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import Arrays, rule


@rule("ftrl", {}, {"lr": 0.3, "beta": 0.5, "l1": 0.4, "l2": 0.7}, {"lr": 0.3, "beta": 0.0})
def ftrl(
    p: Any, grads: Any, *, lr: float = 0.1, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0
) -> Iterator[Any]:
    """McMahan et al. 2013, algorithm 1, coordinate by coordinate."""
    shape, w = p.shape, list(p.ravel())
    z, n = [0.0] * len(w), [0.0] * len(w)
    for g in grads:
        for i, gi in enumerate(g.ravel()):
            sigma = ((n[i] + gi**2) ** 0.5 - n[i] ** 0.5) / lr
            z[i] += gi - sigma * w[i]
            n[i] += gi**2
            if abs(z[i]) <= l1:
                w[i] = 0.0
            else:
                w[i] = -(z[i] - np.sign(z[i]) * l1) / ((beta + n[i] ** 0.5) / lr + l2)
        yield np.array(w).reshape(shape)


@rule("rda", {}, {"gamma": 3.0, "l1": 0.1, "rho": 0.05})
def rda(p: Any, grads: Any, *, gamma: float = 1.0, l1: float = 0.0, rho: float = 0.0) -> Iterator[Any]:
    """Xiao 2010, algorithm 2 (enhanced l1-RDA)."""
    for t in range(1, len(grads) + 1):
        mean = np.mean(grads[:t], axis=0)
        threshold = l1 + gamma * rho / np.sqrt(t)
        shrunk = np.where(np.abs(mean) <= threshold, 0.0, mean - threshold * np.sign(mean))
        yield -np.sqrt(t) / gamma * shrunk


@rule("dual_averaging", {}, {"lr": 0.7}, {"lr": 0.3, "adaptive": True, "eps": 1e-2})
def dual_averaging(
    p: Any, grads: Any, *, lr: float = 0.1, adaptive: bool = False, eps: float = 1e-10
) -> Iterator[Any]:
    """Nesterov 2009 with beta_t = sqrt(t) / lr; Duchi et al. 2011, the primal-dual form for `adaptive`."""
    for t in range(1, len(grads) + 1):
        scale = np.sqrt(np.sum(np.square(grads[:t]), axis=0)) + eps if adaptive else np.sqrt(t)
        yield p - lr * np.sum(grads[:t], axis=0) / scale


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
