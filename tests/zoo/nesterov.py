"""Adam with Nesterov momentum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule

_OTHERS = {"lr": 3e-3, "betas": (0.9, 0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}


@rule("adan", {}, _OTHERS, {**_OTHERS, "no_prox": True}, {**_OTHERS, "max_grad_norm": 0.5}, joint=True)
def adan(
    params: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
    no_prox: bool = False,
) -> Iterator[Any]:
    """Xie et al. 2022, arXiv:2208.06677; sail-sg/Adan, adan.py at 2c65beaf40."""
    beta1, beta2, beta3 = betas
    m, d, n, before = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(4))
    for t, step in enumerate(grads, 1):
        factor = 1.0
        if max_grad_norm > 0:
            joint = np.sqrt(sum(np.sum(g * g) for g in step.values()))
            factor = min(1.0, max_grad_norm / (joint + eps))
        for k, raw in step.items():
            g = factor * raw
            diff = np.zeros_like(g) if t == 1 else g - before[k]
            before[k] = g
            m[k] = beta1 * m[k] + (1 - beta1) * g
            d[k] = beta2 * d[k] + (1 - beta2) * diff
            n[k] = beta3 * n[k] + (1 - beta3) * (g + beta2 * diff) ** 2
            rate = lr / (np.sqrt(n[k] / (1 - beta3**t)) + eps)
            u = rate * (m[k] / (1 - beta1**t) + beta2 * d[k] / (1 - beta2**t))
            if no_prox:
                params[k] = params[k] - lr * weight_decay * params[k] - u
            else:
                params[k] = (params[k] - u) / (1 + lr * weight_decay)
        yield params
