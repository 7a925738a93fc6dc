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


@rule(
    "cautious_lion",
    {},
    {"lr": 3e-3, "betas": (0.8, 0.95), "weight_decay": 0.1},
)
def cautious_lion(
    p: Any, grads: Any, *, lr: float = 1e-4, betas: Any = (0.95, 0.98), weight_decay: float = 0.0
) -> Iterator[Any]:
    """Liang et al. 2024, arXiv:2411.16085; kyleliang919/C-Optim, c_lion.py at 2c0517c4db."""
    m = np.zeros_like(p)
    for g in grads:
        u = np.sign(betas[0] * m + (1 - betas[0]) * g)
        mask = (u * g > 0).astype(p.dtype)
        mask *= p.size / (mask.sum() + 1)
        p = (1 - lr * weight_decay) * p
        p = p - lr * u * mask
        m = betas[1] * m + (1 - betas[1]) * g
        yield p


_KAPPAS = ({"kappa": kappa} for kappa in ("l2", "lp", "soft", "huber"))


@rule(
    "lion_k",
    {},
    *({"lr": 3e-3, "betas": (0.8, 0.95), "weight_decay": 0.1, "power": 1.7, "e": 0.2, **k} for k in _KAPPAS),
)
def lion_k(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-4,
    betas: Any = (0.9, 0.99),
    weight_decay: float = 0.0,
    kappa: str = "l1",
    power: float = 1.5,
    e: float = 0.1,
) -> Iterator[Any]:
    """Chen et al. 2023, arXiv:2310.05898, with an explicit decay: the gradients of its table of convex functions."""
    a = np.zeros_like(p)  # the paper's m: an average of -g
    for g in grads:
        c = betas[0] * a - (1 - betas[0]) * g
        if not c.any():
            grad = np.zeros_like(c)
        elif kappa == "l2":
            grad = c / np.linalg.norm(c.ravel())
        elif kappa == "lp":
            size = np.linalg.norm(c.ravel(), ord=power)
            grad = np.sign(c) * np.abs(c) ** (power - 1) / size ** (power - 1)
        elif kappa == "soft":
            grad = np.where(np.abs(c) > e, np.sign(c), 0)
        elif kappa == "huber":
            grad = np.where(np.abs(c) <= e, c / e, np.sign(c))
        else:
            grad = np.sign(c)
        p = p + lr * (grad - weight_decay * p)
        a = betas[1] * a - (1 - betas[1]) * g
        yield p


@rule(
    "signsgd",
    {},
    {"momentum": 0.0, "lr": 2e-3, "weight_decay": 0.1},
    {"momentum": 0.7, "lr": 2e-3, "weight_decay": 0.1},
    {"momentum": 0.7, "lr": 2e-3, "weight_decay": 0.1, "weight_decouple": False},
)
def signum(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weight_decouple: bool = True,
) -> Iterator[Any]:
    """Bernstein et al. 2018, arXiv:1802.04434: algorithm 2 (Signum), and with momentum 0 algorithm 1 (signSGD)."""
    m = np.zeros_like(p)
    for g in grads:
        if weight_decouple:
            decay = lr * weight_decay * p
        else:
            decay = np.zeros_like(p)
            g = g + weight_decay * p
        m = (1 - momentum) * g + momentum * m
        p = p - decay - lr * np.sign(m)
        yield p


@rule(
    "tiger",
    {},
    {"lr": 3e-3, "beta": 0.8, "weight_decay": 0.2},
    {"lr": 3e-3, "beta": 0.8, "weight_decay": 0.02, "fixed_decay": True},
    {"lr": 3e-3, "beta": 0.8, "weight_decay": 0.2, "weight_decouple": False},
)
def tiger(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    beta: float = 0.965,
    weight_decay: float = 0.01,
    weight_decouple: bool = True,
    fixed_decay: bool = False,
) -> Iterator[Any]:
    """pytorch_optimizer 4.1.0, Tiger."""
    m = np.zeros_like(p)
    for g in grads:
        if weight_decouple:
            p = p - weight_decay * (1 if fixed_decay else lr) * p
        else:
            g = g + weight_decay * p
        m = beta * m + (1 - beta) * g
        p = p - lr * np.sign(m)
        yield p


_KINDS = ("matrix", "bias", "gamma", "embedding")


@rule("tiger_rms", {}, *({"lr": 3e-3, "beta": 0.8, "weight_decay": 0.2, "kind": kind} for kind in _KINDS))
def tiger_rms(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    beta: float = 0.965,
    weight_decay: float = 0.01,
    kind: str = "matrix",
) -> Iterator[Any]:
    """bojone/tiger, tiger.py at 43fb6b699f, dense branch."""
    m = np.zeros_like(p)
    for g in grads:
        rate: Any = lr
        decay = weight_decay
        if kind in ("bias", "gamma"):
            rate, decay = lr / 2, 0.0
        elif kind == "embedding":
            axes = tuple(range(1, p.ndim))
            rate = lr * np.sqrt(np.mean(p * p, axis=axes, keepdims=True))
        else:
            rate = lr * np.sqrt(np.mean(p * p))
        m = beta * m + (1 - beta) * g
        p = p - rate * (np.sign(m) + decay * p)
        yield p
