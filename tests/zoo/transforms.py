"""Transforms around optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import Arrays, rule
from tests.zoo.schedules import adam


def rmsprop_direction(
    *, lr: float, alpha: float, eps: float, weight_decay: float, momentum: float
) -> Callable[[Any, Any], Any]:
    """What torch.optim.RMSprop subtracts, given a parameter and a gradient."""
    found: dict[str, Any] = {"v": 0.0, "b": 0.0}

    def direction(p: Any, g: Any) -> Any:
        g = g + weight_decay * p
        found["v"] = alpha * found["v"] + (1 - alpha) * g**2
        found["b"] = momentum * found["b"] + g / (np.sqrt(found["v"]) + eps)
        return lr * found["b"]

    return direction


RMSPROP = {"lr": 0.03, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.7}


@rule("cautious_rmsprop", {}, {"min_share": 0.4, **RMSPROP})
def cautious_rmsprop(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    min_share: float = 1e-3,
) -> Iterator[Any]:
    """Liang et al. 2024, with the share of kept entries at least min_share, as their C-AdamW."""
    direction = rmsprop_direction(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)
    for g in grads:
        u = direction(p, g)
        kept = np.sign(u) * np.sign(g) == 1
        share = max(np.count_nonzero(kept) / kept.size, min_share)
        p = p - np.where(kept, u, 0.0) / share
        yield p


@rule("trust_ratio_rmsprop", {}, {"max_norm": 1.5, **RMSPROP})
def trust_ratio_rmsprop(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    max_norm: float = np.inf,
) -> Iterator[Any]:
    """You et al. 2020, algorithm 2 with RMSprop's ratio: p - lr phi(|p|) r / |r|, and plain where a norm is 0."""
    direction = rmsprop_direction(lr=1.0, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)
    for g in grads:
        r = direction(p, g)
        size, length = min(max_norm, np.sqrt(np.sum(p * p))), np.sqrt(np.sum(r * r))
        p = p - lr * (size / length if size > 0 and length > 0 else 1.0) * r
        yield p


NORMAL = {"lr": 0.1, "momentum": 0.6, "weight_decay": 0.2}


@rule(
    "normalized_sgd",
    {},
    {"norm_eps": 0.1, **NORMAL},
    {"of": "tensor", **NORMAL},
    {"of": "rows", **NORMAL},
    joint=True,
)
def normalized_sgd(
    start: Arrays,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    of: str = "all",
    norm_eps: float = 0.0,
) -> Iterator[Arrays]:
    """Hazan, Levy and Shalev-Shwartz 2015, algorithm 1, with decay and heavy-ball momentum."""
    p, buffer = start, {name: np.zeros_like(x) for name, x in start.items()}
    for g in grads:
        total = np.sqrt(sum(np.sum(x**2) for x in g.values()))
        p = {name: (1 - lr * weight_decay) * x for name, x in p.items()}
        for name, x in g.items():
            rows = x.reshape(len(x) if x.ndim and of == "rows" else 1, -1)
            norms = np.full((1, 1), total) if of == "all" else np.linalg.norm(rows, axis=1, keepdims=True)
            norms = norms + norm_eps
            unit = (rows / np.where(norms > 0, norms, 1)).reshape(x.shape)
            buffer[name] = momentum * buffer[name] + unit
            p[name] = p[name] - lr * buffer[name]
        yield p


@rule(
    "noisy_adam",
    {"given_noise": True},
    {
        "given_noise": True,
        "eta": 0.3,
        "gamma": 0.8,
        "lr": 0.02,
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.1,
    },
    inputs=("xi",),
)
def noisy_adam(
    p: Any,
    grads: Any,
    *,
    xi: Any,
    given_noise: bool = False,
    eta: float = 0.01,
    gamma: float = 0.55,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Neelakantan et al. 2015, section 3: variance eta / (1 + t)^gamma, t from 0."""
    assert given_noise
    noisy = [g + np.sqrt(eta / (1 + t) ** gamma) * xi[t] for t, g in enumerate(grads)]
    return adam(p, noisy, lambda k: lr, betas=betas, eps=eps, weight_decay=weight_decay)
