"""Methods that keep what they know of a matrix in its rows and columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


def rms(x: Any) -> float:
    """The root of the mean square."""
    return math.sqrt(np.mean(np.square(x)))


def sides(x: Any) -> tuple[Any, Any]:
    """The means over rows and columns of a tensor seen as a matrix."""
    matrix = x.reshape(x.shape[0], -1)
    return matrix.mean(axis=1), matrix.mean(axis=0)


def outer(r: Any, c: Any, shape: tuple[int, ...]) -> Any:
    """The matrix of products, in a tensor's shape."""
    return np.outer(r, c).reshape(shape)


@rule(
    "adafactor",
    {},
    {"lr": 0.3, "beta2_decay": -0.6, "eps": (1e-4, 0.02), "d": 1.3, "weight_decay": 0.1},
)
def adafactor(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: Any = (1.1920929e-7, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5, with the floors of torch.optim.Adafactor."""
    r = c = v = np.zeros(())
    for t, g in enumerate(grads, 1):
        keep = 1 - t**beta2_decay
        alpha = max(eps[1], rms(p)) * min(lr, 1 / math.sqrt(t))
        if g.ndim > 1:
            row, col = sides(g * g)
            r, c = keep * r + (1 - keep) * row, keep * c + (1 - keep) * col
            v = outer(r, c, g.shape) / max(np.mean(r), eps[0])
        else:
            v = keep * v + (1 - keep) * g * g
        u = g / np.maximum(np.sqrt(v), eps[0])
        p = p - lr * weight_decay * p - alpha * u / max(1.0, rms(u) / d)
        yield p


@rule(
    "adafactor_hf",
    {},
    {
        "lr": 3e-3,
        "eps": (1e-6, 0.02),
        "clip_threshold": 0.7,
        "decay_rate": -0.6,
        "beta1": 0.8,
        "weight_decay": 0.1,
        "relative_step": False,
    },
    {"warmup_init": True, "weight_decay": 0.1},
    {"scale_parameter": False, "relative_step": False},
)
def adafactor_hf(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    eps: Any = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float = 0.0,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> Iterator[Any]:
    """Shazeer and Stern 2018, arXiv:1804.04235, in the order of transformers.optimization.Adafactor."""
    r = c = v = np.zeros(())
    m = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        rate = lr
        if relative_step:
            rate = min(1e-6 * t if warmup_init else 1e-2, 1 / math.sqrt(t))
        if scale_parameter:
            rate = rate * max(eps[1], rms(p))
        keep = 1 - math.pow(t, decay_rate)
        square = g * g + eps[0]
        if g.ndim > 1:
            row, col = sides(square)
            r, c = keep * r + (1 - keep) * row, keep * c + (1 - keep) * col
            u = g / np.sqrt(outer(r / np.mean(r), c, g.shape))
        else:
            v = keep * v + (1 - keep) * square
            u = g / np.sqrt(v)
        step = rate * u / max(1.0, rms(u) / clip_threshold)
        if beta1:
            m = beta1 * m + (1 - beta1) * step
            step = m
        p = p - rate * weight_decay * p - step
        yield p


@rule(
    "came",
    {},
    {
        "lr": 3e-3,
        "eps": (1e-6, 1e-3),
        "clip_threshold": 0.7,
        "betas": (0.8, 0.95, 0.9),
        "weight_decay": 0.1,
    },
)
def came(
    p: Any,
    grads: Any,
    *,
    lr: float = 2e-4,
    eps: Any = (1e-30, 1e-16),
    clip_threshold: float = 1.0,
    betas: Any = (0.9, 0.999, 0.9999),
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Luo et al. 2023, arXiv:2307.02047, algorithm 2; vectors as in the authors' CAME.py."""
    m = np.zeros_like(p)
    v = r = c = residue_r = residue_c = np.zeros(())
    for g in grads:
        square = g * g + eps[0]
        if g.ndim > 1:
            row, col = sides(square)
            r = betas[1] * r + (1 - betas[1]) * row
            c = betas[1] * c + (1 - betas[1]) * col
            u = g / np.sqrt(outer(r, c, g.shape) / np.mean(r))
        else:
            v = betas[1] * v + (1 - betas[1]) * square
            u = g / np.sqrt(v)
        u = u / max(1.0, rms(u) / clip_threshold)
        m = betas[0] * m + (1 - betas[0]) * u
        step = m
        if g.ndim > 1:
            row, col = sides((u - m) ** 2 + eps[1])
            residue_r = betas[2] * residue_r + (1 - betas[2]) * row
            residue_c = betas[2] * residue_c + (1 - betas[2]) * col
            step = m / np.sqrt(outer(residue_r, residue_c, g.shape) / np.mean(residue_r))
        p = p - lr * weight_decay * p - lr * step
        yield p


@rule(
    "sm3",
    {},
    {"lr": 0.03, "momentum": 0.8, "beta": 0.9, "eps": 1e-3},
    {"momentum": 0.5},
)
def sm3(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.1,
    momentum: float = 0.0,
    beta: float = 0.0,
    eps: float = 1e-30,
) -> Iterator[Any]:
    """Anil et al. 2019, arXiv:1901.11150, SM3-II with the cover of rows and columns; a vector covers itself."""
    p = p.copy()
    shape = (p.shape[0], p.size // p.shape[0]) if p.ndim > 1 else (p.size, 1)
    rows, cols, m = np.zeros(shape[0]), np.zeros(shape[1]), np.zeros(p.shape)
    for g in grads:
        slopes = g.reshape(shape)
        new_rows, new_cols, u = np.zeros_like(rows), np.zeros_like(cols), np.zeros(shape)
        for i, j in np.ndindex(shape):
            old = min(rows[i], cols[j]) if p.ndim > 1 else rows[i]
            nu = beta * old + (1 - beta) * slopes[i, j] ** 2 if beta else old + slopes[i, j] ** 2
            new_rows[i], new_cols[j] = max(new_rows[i], nu), max(new_cols[j], nu)
            u[i, j] = slopes[i, j] / math.sqrt(nu + eps)
        rows, cols = np.maximum(rows, new_rows), np.maximum(cols, new_cols)
        d = u.reshape(p.shape)
        m = momentum * m + (1 - momentum) * d if momentum else d
        p = p - lr * m
        yield p


@rule(
    "adalomo",
    {},
    {
        "lr": 0.03,
        "eps": (1e-6, 0.02),
        "clip_threshold": 0.7,
        "decay_rate": -0.6,
        "clip_grad_norm": 2.5,
        "clip_grad_value": 0.8,
        "weight_decay": 0.1,
    },
    {"clip_grad_value": 0.5},
    joint=True,
)
def adalomo(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    eps: Any = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Lv et al. 2023, arXiv:2310.10195, algorithm 1, with the clips and scales of the authors' adalomo.py."""
    zero = dict.fromkeys(p, np.zeros(()))
    r, c, v = dict(zero), dict(zero), dict(zero)
    for t, g in enumerate(grads, 1):
        keep = 1 - math.pow(t, decay_rate)
        norm = math.sqrt(sum(float(np.sum(x * x)) for x in g.values()))
        for k in p:
            d = g[k]
            if clip_grad_value is not None:
                d = np.minimum(np.maximum(d, -clip_grad_value), clip_grad_value)
            if clip_grad_norm is not None:
                d = d * min(1.0, clip_grad_norm / (norm + 1e-6))
            square = d * d + eps[0]
            if d.ndim > 1:
                row, col = sides(square)
                r[k], c[k] = keep * r[k] + (1 - keep) * row, keep * c[k] + (1 - keep) * col
                u = d / np.sqrt(outer(r[k] / np.mean(r[k]), c[k], d.shape))
            else:
                v[k] = keep * v[k] + (1 - keep) * square
                u = d / np.sqrt(v[k])
            rate = lr * max(eps[1], rms(p[k]))
            p[k] = p[k] * (1 - rate * weight_decay) - rate * u / max(1.0, rms(u) / clip_threshold)
        yield p
