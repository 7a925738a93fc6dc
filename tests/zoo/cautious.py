"""Adam whose direction, or part of it, is decided by the signs of the gradient, or whose step is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule

_OTHERS = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


def _moments(p: Any, grads: Any, betas: Any) -> Iterator[tuple[Any, Any, Any, float, float]]:
    """Gradients with Adam's moments of them and their bias corrections."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        yield g, m, v, 1 - betas[0] ** t, 1 - betas[1] ** t


@rule("grams", {}, _OTHERS, {**_OTHERS, "correct_bias": False})
def grams(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
) -> Iterator[Any]:
    """Cao, Li and Song 2024, arXiv:2412.17107; Gunale0926/Grams, grams.py at f91a375daa."""
    for g, m, v, c1, c2 in _moments(p, grads, betas):
        p = p - lr * weight_decay * p
        size = np.abs(m / (np.sqrt(v) + eps))
        if correct_bias:
            size = size * np.sqrt(c2) / c1
        p = p - lr * size * np.sign(g)
        yield p


@rule("cautious_adamw", {}, _OTHERS, {**_OTHERS, "correct_bias": False})
def cautious_adamw(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
) -> Iterator[Any]:
    """Liang et al. 2024, arXiv:2411.16085; kyleliang919/C-Optim, c_adamw.py at 2c0517c4db, loop."""
    for g, m, v, c1, c2 in _moments(p, grads, betas):
        p = p - lr * weight_decay * p
        rate = lr * np.sqrt(c2) / c1 if correct_bias else lr
        mask = np.where(m * g > 0, 1.0, 0.0)
        mask = mask / max(np.mean(mask), 1e-3)
        p = p - rate * (m * mask) / (np.sqrt(v) + eps)
        yield p


@rule("exadam", {}, _OTHERS)
def exadam(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Adly 2024, arXiv:2412.20302; AhmedMostafa16/EXAdam, exadam.py at 989d7b6c74."""
    for g, m, v, c1, c2 in _moments(p, grads, betas):
        p = p - lr * weight_decay * p
        d1 = 1 + v / (v + eps) * (1 - c2)
        d2 = 1 + m * m / (m * m + eps) * (1 - c1)
        m_tilde, v_tilde, g_tilde = m / c1 * d1, v / c2 * d2, g / c1 * d1
        p = p - lr * (m_tilde + g_tilde) / (np.sqrt(v_tilde) + eps)
        yield p


@rule("adamod", {}, {**_OTHERS, "beta3": 0.8})
def adamod(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    beta3: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Ding et al. 2019, arXiv:1910.12249; lancopku/AdaMod, adamod.py at d86640797b."""
    average = np.zeros_like(p)
    for _, m, v, c1, c2 in _moments(p, grads, betas):
        p = p - lr * weight_decay * p
        size = lr * np.sqrt(c2) / (c1 * (np.sqrt(v) + eps))
        average = average + (1 - beta3) * (size - average)
        p = p - np.where(size < average, size, average) * m
        yield p
