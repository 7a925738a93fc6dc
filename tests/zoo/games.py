"""Methods for games and saddle points, and for the simplex."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


def sgd_direction(*, lr: float, momentum: float, weight_decay: float) -> Callable[[Any, Any], Any]:
    """What torch.optim.SGD subtracts, given a parameter and a gradient."""
    buffer: list[Any] = []

    def direction(p: Any, g: Any) -> Any:
        g = g + weight_decay * p
        buffer[:] = [momentum * buffer[0] + g if buffer else g]
        return lr * buffer[0]

    return direction


def adam_direction(*, lr: float, betas: Any, eps: float) -> Callable[[Any, Any], Any]:
    """What Adam subtracts with eps inside the bias correction: lr sqrt(bc2) / bc1 * m / (sqrt(v) + eps)."""
    found: dict[str, Any] = {"t": 0, "m": 0.0, "v": 0.0}

    def direction(p: Any, g: Any) -> Any:
        found["t"] += 1
        found["m"] = betas[0] * found["m"] + (1 - betas[0]) * g
        found["v"] = betas[1] * found["v"] + (1 - betas[1]) * g * g
        bc1, bc2 = (1 - beta ** found["t"] for beta in betas)
        return lr * bc2**0.5 / bc1 * found["m"] / (np.sqrt(found["v"]) + eps)

    return direction


def optimistic(p: Any, grads: Any, direction: Callable[[Any, Any], Any]) -> Iterator[Any]:
    """Daskalakis et al. 2018, algorithm 1."""
    last = np.zeros_like(p)
    for g in grads:
        u = direction(p, g)
        p, last = p - 2 * u + last, u
        yield p


def extrapolating(p: Any, grads: Any, direction: Callable[[Any, Any], Any]) -> Iterator[Any]:
    """Gidel et al. 2019, algorithms 3 and 4: `extrapolation` and `step` by turns."""
    x = p
    for number, g in enumerate(grads):
        u = direction(p, g)
        p = x - u
        if number % 2:
            x = p
        yield p


SGD = {"lr": 0.05, "momentum": 0.6, "weight_decay": 0.1}
ADAM = {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-2}


@rule("optimistic_sgd", {}, SGD)
def optimistic_sgd(
    p: Any, grads: Any, *, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0
) -> Iterator[Any]:
    """OMD around SGD."""
    return optimistic(p, grads, sgd_direction(lr=lr, momentum=momentum, weight_decay=weight_decay))


@rule("extra_sgd", {}, SGD)
def extra_sgd(
    p: Any, grads: Any, *, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0
) -> Iterator[Any]:
    """ExtraSGD."""
    return extrapolating(p, grads, sgd_direction(lr=lr, momentum=momentum, weight_decay=weight_decay))


@rule("optimistic_adam", {}, ADAM)
def optimistic_adam(
    p: Any, grads: Any, *, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-8
) -> Iterator[Any]:
    """OptimisticAdam."""
    return optimistic(p, grads, adam_direction(lr=lr, betas=betas, eps=eps))


@rule("extra_adam", {}, ADAM)
def extra_adam(
    p: Any, grads: Any, *, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-8
) -> Iterator[Any]:
    """ExtraAdam."""
    return extrapolating(p, grads, adam_direction(lr=lr, betas=betas, eps=eps))


@rule(
    "exponentiated_gradient",
    {},
    {"lr": 0.5, "rowwise": True},
    {"lr": 0.3, "optimistic": True},
    {"lr": 0.3, "optimistic": True, "rowwise": True},
)
def exponentiated_gradient(
    p: Any, grads: Any, *, lr: float = 0.1, rowwise: bool = False, optimistic: bool = False
) -> Iterator[Any]:
    """Entropic mirror descent by logarithms of weights, and the optimistic form with two sequences."""

    def moved(x: Any, g: Any) -> Any:
        rows = x.reshape(x.shape[0] if x.ndim else 1, -1) if rowwise else x.reshape(1, -1)
        steps = -lr * g.reshape(rows.shape)
        new = np.empty_like(rows)
        for i in range(len(rows)):
            logs = np.log(np.abs(rows[i]), where=rows[i] != 0, out=np.full(rows.shape[1], -np.inf)) + steps[i]
            weights = np.sign(rows[i]) * np.exp(logs - logs.max())
            new[i] = weights / weights.sum()
        return new.reshape(x.shape)

    y = p
    for g in grads:
        y = moved(y, g)
        yield moved(y, g) if optimistic else y
