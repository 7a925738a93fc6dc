"""Lookahead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule

_SGD = {"lr": 3e-3, "momentum": 0.8, "weight_decay": 0.1, "la_steps": 3, "la_alpha": 0.4}


@rule(
    "lookahead_sgd",
    {},
    {**_SGD, "dampening": 0.2, "pullback_momentum": "reset"},
    {**_SGD, "nesterov": True, "pullback_momentum": "pullback"},
    {**_SGD, "pullback_momentum": "mix"},
)
def lookahead_sgd(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    la_steps: int = 5,
    la_alpha: float = 0.8,
    pullback_momentum: str = "none",
) -> Iterator[Any]:
    """Zhang et al. 2019, arXiv:1907.08610; michaelrzhang/lookahead, lookahead_pytorch.py at c4fd85f73c.

    There the copy of the buffer is changed with the buffer, once it is the same object.
    """
    slow, buf, cached = p.copy(), None, np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * p
        buf = g.copy() if buf is None else momentum * buf + (1 - dampening) * g
        p = p - lr * (g + momentum * buf if nesterov else buf)
        if t % la_steps == 0:
            slow = slow + la_alpha * (p - slow)
            p = slow.copy()
            if pullback_momentum == "reset":
                buf = np.zeros_like(p)
            elif pullback_momentum == "pullback":
                if t > la_steps:
                    cached = la_alpha * buf
                buf = la_alpha * buf + (1 - la_alpha) * cached
            elif pullback_momentum == "mix":
                buf = la_alpha * buf + (1 - la_alpha) * cached
                cached = buf
        yield p


_ADAM = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "la_steps": 3, "la_alpha": 0.4}


@rule("lookahead_adam", {}, _ADAM, {**_ADAM, "amsgrad": True, "decoupled_weight_decay": True})
def lookahead_adam(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
    la_steps: int = 5,
    la_alpha: float = 0.8,
) -> Iterator[Any]:
    """Zhang et al. 2019, arXiv:1907.08610, around torch.optim.Adam."""
    slow = p.copy()
    m, v, v_max = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        if decoupled_weight_decay:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        v_max = np.maximum(v_max, v)
        root = np.sqrt((v_max if amsgrad else v) / (1 - betas[1] ** t)) + eps
        p = p - lr * m / (1 - betas[0] ** t) / root
        if t % la_steps == 0:
            slow = slow + la_alpha * (p - slow)
            p = slow.copy()
        yield p
