"""Gradient centralization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


def _central(x: Any, conv_only: bool) -> Any:
    """Less its mean over all axes but the first, if there are such."""
    if x.ndim <= (3 if conv_only else 1):
        return x
    return x - x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)


_SGD = {"lr": 3e-3, "momentum": 0.8, "weight_decay": 0.1}


@rule("sgd_gc", {}, {**_SGD, "dampening": 0.2}, {**_SGD, "nesterov": True, "gc_conv_only": True})
def sgd_gc(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    gc_conv_only: bool = False,
) -> Iterator[Any]:
    """Yong et al. 2020, arXiv:2004.01461; Yonghongwei/Gradient-Centralization, SGD.py at ed2a608ccd."""
    buf = None
    for g in grads:
        d = _central(g + weight_decay * p, gc_conv_only)
        buf = d if buf is None else momentum * buf + (1 - dampening) * d
        p = p - lr * (d + momentum * buf if nesterov else buf)
        yield p


_ADAM = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


@rule(
    "adam_gc",
    {},
    {**_ADAM, "amsgrad": True},
    {**_ADAM, "gc_loc": True},
    {**_ADAM, "gc_conv_only": True},
    {**_ADAM, "gc_loc": True, "gc_conv_only": True},
)
def adam_gc(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    gc_conv_only: bool = False,
    gc_loc: bool = False,
) -> Iterator[Any]:
    """Yong et al. 2020, arXiv:2004.01461; Yonghongwei/Gradient-Centralization, Adam.py at ed2a608ccd."""
    m, v, v_max = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, raw in enumerate(grads, 1):
        g = raw + weight_decay * p
        if gc_loc:
            g = _central(g, gc_conv_only)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        v_max = np.maximum(v_max, v)
        u = m / (np.sqrt((v_max if amsgrad else v) / (1 - betas[1] ** t)) + eps)
        if not gc_loc:
            u = _central(u, gc_conv_only)
        p = p - lr / (1 - betas[0] ** t) * u
        yield p
