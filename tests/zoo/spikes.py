"""Adam on gradients with spikes, and with resets of the moments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule

_OTHERS = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


@rule(
    "spam",
    {},
    {**_OTHERS, "warmup_steps": 3, "threshold": 2.0, "DeltaT": 5, "grad_accu_steps": 2},
    {**_OTHERS, "warmup_steps": 9, "threshold": 2.0, "DeltaT": 6, "grad_accu_steps": 0},
    {**_OTHERS, "correct_bias": False, "DeltaT": 4},
)
def spam(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
    warmup_steps: int = 150,
    threshold: float = 5000.0,
    DeltaT: int = 500,
    grad_accu_steps: int = 20,
) -> Iterator[Any]:
    """Huang et al. 2025, arXiv:2501.06842; TianjinYellow/SPAM-Optimizer, SPAM.py at e8185fbe69, without masks."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    counter = warmup_steps + 1
    for t, g in enumerate(grads, 1):
        scale = 1.0
        if counter < warmup_steps:
            scale = 1 - 0.99 * (1 + math.cos(math.pi * counter / (warmup_steps + 1))) / 2
        if t % DeltaT == 0:
            m, v = np.zeros_like(p), np.zeros_like(p)
        if t >= grad_accu_steps and t % DeltaT >= grad_accu_steps:
            g = np.where(g * g > threshold * v, np.sign(g) * np.sqrt(threshold * v), g)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        u = m / (np.sqrt(v) + eps)
        if correct_bias:
            u = u * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        p = p - lr * scale * u
        p = p - lr * weight_decay * p
        counter = 0 if (t + 1) % DeltaT == 0 else counter + 1
        yield p


@rule(
    "stable_spam",
    {},
    {**_OTHERS, "gamma1": 0.6, "gamma2": 0.8, "gamma3": 0.9, "update_proj_gap": 5},
    {**_OTHERS, "gamma1": -1, "amsgrad": True, "total_T": 10, "eta_min": 0.3, "update_proj_gap": 4},
)
def stable_spam(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    gamma1: float = 0.7,
    gamma2: float = 0.9,
    gamma3: float = 0.999,
    total_T: float | None = None,
    eta_min: float = 0.5,
    update_proj_gap: int = 1000,
) -> Iterator[Any]:
    """Huang et al. 2025, arXiv:2502.17055; TianjinYellow/StableSPAM, stablespam.py at 6a66da1ea7."""
    m, v, v_max = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    largest = norm = square = 0.0
    count = 0
    for t, g in enumerate(grads, 1):
        scale = 1.0
        if total_T is not None:
            scale = eta_min + (1 - eta_min) * 0.5 * (1 + math.cos(math.pi * t / (total_T + 1)))
        beta, gamma = betas[0] * scale, (betas[0] if gamma1 == -1 else gamma1) * scale
        count += 1
        p = p - lr * weight_decay * p
        top = float(np.max(np.abs(g)))
        largest = gamma3 * largest + (1 - gamma3) * top
        allowed = largest / (1 - gamma3**count)
        g = np.array([x / top * allowed if abs(x) > allowed else x for x in g.ravel()]).reshape(g.shape)
        size = math.sqrt(float(np.sum(g * g)))
        norm = gamma * norm + (1 - gamma) * size
        square = gamma2 * square + (1 - gamma2) * size**2
        wanted = norm / (1 - gamma**count) / (math.sqrt(square / (1 - gamma2**count)) + eps)
        if size > 0:
            g = g / size * wanted
        if t % update_proj_gap == 0:
            count = 1
        m = beta * m + (1 - beta) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        v_max = np.maximum(v_max, v)
        root = np.sqrt((v_max if amsgrad else v) / (1 - betas[1] ** count)) + eps
        p = p - lr * m / (1 - beta**count) / root
        if t % update_proj_gap == 0:
            m, v = np.zeros_like(p), np.zeros_like(p)
        yield p
