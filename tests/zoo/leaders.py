"""Methods that follow from sums over all steps: regularized leaders, dual averaging, bets and distances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


@rule(
    "ftrl",
    {},
    {"lr": 0.1, "beta": 1.0, "lambda_1": 0.4, "lambda_2": 0.3},
    {"lr": 0.05, "lambda_1": 1.0},
)
def ftrl(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    beta: float = 0.0,
    lambda_1: float = 0.0,
    lambda_2: float = 0.0,
) -> Iterator[Any]:
    """McMahan et al. 2013, algorithm 1, coordinate by coordinate."""
    p = p.copy()
    z, n = np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        for i in np.ndindex(p.shape):
            sigma = (math.sqrt(n[i] + g[i] ** 2) - math.sqrt(n[i])) / lr
            z[i] += g[i] - sigma * p[i]
            n[i] += g[i] ** 2
            if abs(z[i]) <= lambda_1:
                p[i] = 0
            else:
                shrunk = z[i] - math.copysign(lambda_1, z[i])
                p[i] = -shrunk / ((beta + math.sqrt(n[i])) / lr + lambda_2)
        yield p


@rule("ftml", {}, {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1})
def ftml(
    p: Any,
    grads: Any,
    *,
    lr: float = 2.5e-3,
    betas: Any = (0.6, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Zheng and Kwok 2017, algorithm 1."""
    v, d, z = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * p
        v = betas[1] * v + (1 - betas[1]) * g**2
        before = d
        d = (1 - betas[0] ** t) / lr * (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        sigma = d - betas[0] * before
        z = betas[0] * z + (1 - betas[0]) * g - sigma * p
        p = -z / d
        yield p


@rule(
    "adagrad_da",
    {},
    {
        "lr": 0.1,
        "initial_gradient_squared_accumulator_value": 0.5,
        "l1_regularization_strength": 0.1,
        "l2_regularization_strength": 0.2,
    },
)
def adagrad_da(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    initial_gradient_squared_accumulator_value: float = 0.1,
    l1_regularization_strength: float = 0.0,
    l2_regularization_strength: float = 0.0,
) -> Iterator[Any]:
    """Duchi et al. 2011, equation 24 with sums for means, as the kernel ApplyAdagradDA of TensorFlow."""
    total = np.zeros_like(p)
    squares = np.full_like(p, initial_gradient_squared_accumulator_value)
    for t, g in enumerate(grads, 1):
        total, squares = total + g, squares + g**2
        limit = l1_regularization_strength * t
        shrunk = np.where(total > limit, total - limit, np.where(total < -limit, total + limit, 0.0))
        p = -lr * shrunk / (np.sqrt(squares) + lr * l2_regularization_strength * t)
        yield p


@rule("dual_averaging", {}, {"lr": 0.1})
def dual_averaging(p: Any, grads: Any, *, lr: float = 1e-2) -> Iterator[Any]:
    """Nesterov 2009, equation 2.14 with the prox-function |x - x0|^2 / 2 and beta = sqrt(t) / lr."""
    for t in range(1, len(grads) + 1):
        yield p - lr * sum(grads[:t]) / math.sqrt(t)


@rule("rda", {}, {"gamma": 4.0, "lambda_1": 0.3})
def rda(p: Any, grads: Any, *, gamma: float = 10.0, lambda_1: float = 1e-3) -> Iterator[Any]:
    """Xiao 2010, equation 10, weight by weight."""
    for t in range(1, len(grads) + 1):
        mean = np.mean(grads[:t], axis=0)
        p = np.zeros_like(mean)
        for i in np.ndindex(mean.shape):
            if abs(mean[i]) > lambda_1:
                p[i] = -math.sqrt(t) / gamma * (mean[i] - lambda_1 * np.sign(mean[i]))
        yield p


@rule("cocob", {}, {"alpha": 3.0, "eps": 1e-3})
def cocob(p: Any, grads: Any, *, alpha: float = 100.0, eps: float = 1e-8) -> Iterator[Any]:
    """Orabona and Tommasi 2017, arXiv:1705.07795, algorithm 2."""
    start = p
    scale, gains, total, theta = np.full_like(p, eps), np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        scale = np.maximum(scale, np.abs(g))
        total = total + np.abs(g)
        gains = np.maximum(gains - (p - start) * g, 0)
        theta = theta - g
        p = start + theta / (scale * np.maximum(total + scale, alpha * scale)) * (scale + gains)
        yield p


@rule(
    "dog",
    {},
    {"reps_rel": 1e-3, "lr": 0.7, "weight_decay": 0.1, "eps": 0.5},
    {"init_eta": 0.01, "weight_decay": 0.2},
    joint=True,
)
def dog(
    p: Any,
    grads: Any,
    *,
    reps_rel: float = 1e-6,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    init_eta: float | None = None,
) -> Iterator[Any]:
    """Ivgi et al. 2023, arXiv:2302.12022, equation 1 over all tensors, with the first step of the authors' dog.py."""
    start = np.concatenate([x.ravel() for x in p.values()])
    distance = 0.0 if init_eta is not None else reps_rel * (1 + np.linalg.norm(start))
    total = eps
    for t, g in enumerate(grads, 1):
        flat = np.concatenate([x.ravel() for x in p.values()])
        d = {k: g[k] + weight_decay * p[k] for k in p}
        total += sum(float(np.sum(x**2)) for x in d.values())
        distance = max(distance, float(np.linalg.norm(flat - start)))
        eta = lr * distance / math.sqrt(total)
        if t == 1 and init_eta is not None:
            eta = init_eta
        p = {k: p[k] - eta * d[k] for k in p}
        yield p


@rule(
    "l_dog",
    {},
    {"reps_rel": 1e-3, "lr": 0.7, "weight_decay": 0.1, "eps": 0.5},
    {"init_eta": 0.01, "weight_decay": 0.2},
)
def l_dog(p: Any, grads: Any, **options: Any) -> Iterator[Any]:
    """Ivgi et al. 2023, arXiv:2302.12022, section 3.4: DoG tensor by tensor."""
    for step in dog({"it": p}, [{"it": g} for g in grads], **options):
        yield step["it"]


@rule("dowg", {}, {"eps": 0.02}, joint=True)
def dowg(p: Any, grads: Any, *, eps: float = 1e-4) -> Iterator[Any]:
    """Khaled et al. 2023, arXiv:2305.16284, algorithm 1; eps as in the authors' dowg.py."""
    start = p
    squared, total = eps, 0.0
    for g in grads:
        squared = max(squared, sum(float(np.sum((p[k] - start[k]) ** 2)) for k in p))
        total += squared * sum(float(np.sum(x**2)) for x in g.values())
        p = {k: p[k] - squared / (math.sqrt(total) + eps) * g[k] for k in p}
        yield p
