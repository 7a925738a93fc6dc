"""Proximal and projected methods, and conditional gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import Arrays, rule


def soft(x: Any, threshold: float) -> Any:
    """Soft thresholding."""
    return np.where(x > threshold, x - threshold, np.where(x < -threshold, x + threshold, 0.0))


def accelerated(p: Any, grads: Any, step: Any) -> Iterator[Any]:
    """Beck and Teboulle 2009, the sequence y of FISTA for `step(y, g)`."""
    x, y, t = p, p, 1.0
    for g in grads:
        new = step(y, g)
        larger = (1 + np.sqrt(1 + 4 * t**2)) / 2
        y = new + (t - 1) / larger * (new - x)
        x, t = new, larger
        yield y


@rule("ista", {}, {"lr": 0.1, "l1": 0.8, "l2": 0.5})
def ista(p: Any, grads: Any, *, lr: float = 1e-2, l1: float = 1e-3, l2: float = 0.0) -> Iterator[Any]:
    """Beck and Teboulle 2009, equation 1.4."""
    for g in grads:
        p = soft(p - lr * g, lr * l1) / (1 + lr * l2)
        yield p


@rule("fista", {}, {"lr": 0.1, "l1": 0.8, "l2": 0.5})
def fista(p: Any, grads: Any, *, lr: float = 1e-2, l1: float = 1e-3, l2: float = 0.0) -> Iterator[Any]:
    """Beck and Teboulle 2009, section 4."""
    return accelerated(p, grads, lambda y, g: soft(y - lr * g, lr * l1) / (1 + lr * l2))


@rule(
    "group_lasso",
    {},
    {"lr": 0.1, "penalty": 0.8},
    {"lr": 0.1, "penalty": 0.8, "rowwise": False},
    {"lr": 0.1, "penalty": 0.8, "fista": True},
)
def group_lasso(
    p: Any, grads: Any, *, lr: float = 1e-2, penalty: float = 1e-3, rowwise: bool = True, fista: bool = False
) -> Iterator[Any]:
    """Yuan and Lin 2006: groups lose penalty * sqrt(size) of their norms, at most all of them."""

    def step(y: Any, g: Any) -> Any:
        moved = y - lr * g
        rows = moved.reshape(len(moved) if moved.ndim and rowwise else 1, -1)
        kept = []
        for row in rows:
            length, least = np.linalg.norm(row), lr * penalty * np.sqrt(row.size)
            kept.append(row * (length - least) / length if length > least else 0 * row)
        return np.array(kept).reshape(y.shape)

    def plain() -> Iterator[Any]:
        x = p
        for g in grads:
            x = step(x, g)
            yield x

    return accelerated(p, grads, step) if fista else plain()


def onto_simplex(x: Any, total: float) -> Any:
    """Duchi et al. 2008, figure 1: by sorting."""
    u = np.sort(x.ravel())[::-1]
    sums = np.cumsum(u)
    rho = max(j for j in range(u.size) if u[j] - (sums[j] - total) / (j + 1) > 0)
    return np.maximum(x - (sums[rho] - total) / (rho + 1), 0)


@rule(
    "projected_sgd",
    {},
    {"lr": 0.1, "size": 0.8},
    {"lr": 0.1, "size": 0.7, "rowwise": True},
    {"lr": 0.1, "onto": "box", "size": 0.6},
    {"lr": 0.1, "onto": "l1", "size": 2.0},
    {"lr": 0.1, "onto": "simplex", "size": 1.5},
)
def projected_sgd(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    onto: str = "l2",
    size: float = 1.0,
    rowwise: bool = False,
) -> Iterator[Any]:
    """A step along the gradient and a Euclidean projection."""
    for g in grads:
        p = p - lr * g
        if onto == "box":
            p = np.minimum(np.maximum(p, -size), size)
        elif onto == "l2":
            rows = p.reshape(len(p) if rowwise and p.ndim else 1, -1)
            p = np.array([r * size / max(size, np.linalg.norm(r)) for r in rows]).reshape(p.shape)
        elif onto == "l1":
            if np.abs(p).sum() > size:
                p = np.sign(p) * onto_simplex(np.abs(p), size)
        else:
            p = onto_simplex(p, size)
        yield p


@rule(
    "frank_wolfe",
    {},
    {"radius": 2.0, "lr": 0.5, "momentum": 0.7},
    {"radius": 2.0, "ball": "l2"},
    {"radius": 2.0, "ball": "linf"},
)
def frank_wolfe(
    p: Any, grads: Any, *, radius: float = 1.0, ball: str = "l1", lr: float = 1.0, momentum: float = 0.0
) -> Iterator[Any]:
    """Jaggi 2013, algorithm 1, t from 0; a gradient of 0 is least at the mean of all vertices, 0."""
    m: Any = None
    for t, g in enumerate(grads):
        m = g if m is None else momentum * m + (1 - momentum) * g
        vertex = np.zeros_like(p)
        if ball == "l1" and np.any(m):
            at = np.unravel_index(np.argmax(np.abs(m)), m.shape)
            vertex[at] = -radius * np.sign(m[at])
        elif ball == "l2" and np.any(m):
            vertex = -radius * m / np.linalg.norm(m)
        elif ball == "linf":
            vertex = -radius * np.sign(m)
        gamma = lr * 2 / (t + 2)
        p = (1 - gamma) * p + gamma * vertex
        yield p


@rule("frank_wolfe_spectral", {}, {"radius": 2.0, "power": 0.3}, tensors=("mat", "tall"))
def frank_wolfe_spectral(p: Any, grads: Any, *, radius: float = 1.0, power: float = 0.5) -> Iterator[Any]:
    """Xue and Lau 2021 with rho = (t + 1)^-power and gamma = 2 / (t + 3), t from 0; the polar factor by an SVD."""
    mean = np.zeros_like(p)
    for t, g in enumerate(grads):
        rho, gamma = (t + 1) ** -power, 2 / (t + 3)
        mean = (1 - rho) * mean + rho * g
        u, _, v = np.linalg.svd(-mean, full_matrices=False)
        p = (1 - gamma) * p + gamma * radius * u @ v
        yield p


@rule(
    "wgsef_sgd",
    {},
    {"lr": 0.1, "strength": 3.0, "k": 2.5},
    {"lr": 0.1, "strength": 2.0, "k": 7.0, "weighted": True},
)
def wgsef_sgd(
    p: Any, grads: Any, *, lr: float = 1e-2, strength: float = 0.1, k: float = 1.0, weighted: bool = False
) -> Iterator[Any]:
    """Refael et al. 2022, with groups that are rows: eta by bisection on its logarithm."""
    lam = lr * strength
    for g in grads:
        rows = (p - lr * g).reshape(len(p) if p.ndim else 1, -1)
        weight = rows.shape[1] if weighted else 1
        norms = np.sqrt((rows**2).sum(axis=1))

        def chosen(log_eta: float, norms: Any = norms, weight: float = weight) -> Any:
            return np.clip(norms / np.sqrt(np.exp(log_eta) * weight) - lam, 0, 1)

        if weight * np.count_nonzero(norms) <= k:
            u = (norms > 0).astype(float)
        else:
            low, high = -80.0, 80.0
            for _ in range(200):
                middle = (low + high) / 2
                low, high = (middle, high) if weight * chosen(middle).sum() > k else (low, middle)
            u = chosen(low)
        p = (rows * (u / (lam + u))[:, None]).reshape(p.shape)
        yield p


@rule(
    "agvm_sgd",
    {},
    {"lr": 0.05, "momentum": 0.6, "weight_decay": 0.1, "interval": 3, "start": 2, "decay": 0.8, "high": 1.1},
    {"lr": 0.05, "interval": 1, "start": 0, "anchor": True},
    joint=True,
    inputs=("a", "b"),
)
def agvm_sgd(
    initial: Arrays,
    grads: Any,
    *,
    a: Any,
    b: Any,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    interval: int = 5,
    start: int = 500,
    decay: float = 0.97,
    high: float = 10.0,
    anchor: bool = False,
) -> Iterator[Arrays]:
    """Sense-X/AGVM with one group of modules; without an anchor its gradients are 0, and torch's cosine too."""
    p, buffers, factor = initial, {}, 1.0
    for t, g in enumerate(grads):
        if t >= start and (t - start) % interval == 0:
            one, two = (np.concatenate([np.ravel(x) for x in y[t].values()]) for y in (a, b))
            own = 1 - one @ two / (np.linalg.norm(one) * np.linalg.norm(two))
            ratio = ((own if anchor else 1.0) + 1e-6) / (own + 1e-6)
            factor = decay * factor + (1 - decay) * np.sqrt(np.clip(ratio, 0.5, high))
        full = {name: g[name] + weight_decay * p[name] for name in p}
        buffers = {name: momentum * buffers[name] + full[name] for name in p} if buffers else full
        p = {name: p[name] - lr * (factor if t >= start else 1) * buffers[name] for name in p}
        yield p


@rule("prox_adam", {}, {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2, "l1": 0.7, "l2": 0.4})
def prox_adam(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    l1: float = 1e-4,
    l2: float = 0.0,
) -> Iterator[Any]:
    """Yun, Lozano and Yang 2020: the least of m x + d (x - p)^2 / (2 lr) + l1 |x| + l2 x^2 / 2."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        d = (np.sqrt(v / (1 - betas[1] ** t)) + eps) / lr
        slope = m / (1 - betas[0] ** t) - d * p
        p = np.where(
            slope < -l1, -(slope + l1) / (d + l2), np.where(slope > l1, -(slope - l1) / (d + l2), 0.0)
        )
        yield p
