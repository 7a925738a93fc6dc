"""Methods that make matrices orthogonal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule

_MUON = (3.4445, -4.775, 2.0315)


def _polynomial(matrix: Any, coefficients: Any, steps: int) -> Any:
    """The odd polynomial a x + b x^3 + c x^5 of the singular values, again and again."""
    a, b, c = coefficients
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return left @ np.diag(values) @ right


@rule(
    "muon",
    {},
    {"lr": 3e-3, "weight_decay": 0.1, "momentum": 0.8, "adam_lr": 2e-3, "betas": (0.8, 0.95), "eps": 1e-3},
    {"use_muon": False, "weight_decay": 0.1},
)
def muon(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.02,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    use_muon: bool = True,
    adam_lr: float = 3e-4,
    betas: Any = (0.9, 0.95),
    eps: float = 1e-10,
) -> Iterator[Any]:
    """Jordan et al. 2024; KellerJordan/Muon, muon.py at 857d1adc15, without rounding to bfloat16."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        if use_muon and p.ndim >= 2:
            m = m + (1 - momentum) * (g - m)
            u = (g + momentum * (m - g)).reshape(p.shape[0], -1)
            o = _polynomial(u / (np.linalg.norm(u) + 1e-7), _MUON, 5).reshape(p.shape)
            o = o * math.sqrt(max(1, p.shape[-2] / p.shape[-1]))
            p = p - lr * weight_decay * p
            p = p - lr * o
        else:
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g * g
            u = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
            p = p - adam_lr * weight_decay * p
            p = p - adam_lr * u
        yield p


_TORCH = {"lr": 3e-3, "weight_decay": 0.2, "momentum": 0.8, "ns_steps": 3, "eps": 1e-3}


@rule(
    "muon_torch",
    {},
    {**_TORCH, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
    {**_TORCH, "ns_coefficients": (1.5, -0.5, 0.0)},
    tensors=("mat", "tall"),
)
def muon_torch(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: Any = _MUON,
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str = "original",
) -> Iterator[Any]:
    """torch.optim.Muon of torch 2.13, without rounding to bfloat16."""
    m = np.zeros_like(p)
    rows, cols = p.shape
    ratio = (
        0.2 * math.sqrt(max(rows, cols)) if adjust_lr_fn == "match_rms_adamw" else max(1, rows / cols) ** 0.5
    )
    for g in grads:
        m = m + (1 - momentum) * (g - m)
        u = g + momentum * (m - g) if nesterov else m
        o = _polynomial(u / max(np.linalg.norm(u), eps), ns_coefficients, ns_steps)
        p = p - lr * weight_decay * p
        p = p - lr * ratio * o
        yield p
