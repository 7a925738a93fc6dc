"""Methods that sample from a distribution. The noise is an input here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule

GIVEN = {"given_noise": True}
OTHER = {"lr": 0.02, "temperature": 0.3, "weight_decay": 0.2, **GIVEN}


def langevin(
    p: Any, grads: Any, xi: Any, *, lr: float, temperature: float, weight_decay: float
) -> Iterator[Any]:
    """Welling and Teh 2011, equation 4, with a step size of 2 lr."""
    epsilon = 2 * lr
    for g, noise in zip(grads, xi, strict=True):
        drift = -(g + weight_decay * p) * epsilon / 2
        p = p + drift + np.sqrt(temperature) * np.sqrt(epsilon) * noise
        yield p


@rule("sgld_swa", GIVEN, {"swa_start": 3, "swa_freq": 2, **OTHER}, inputs=("xi",))
def sgld_swa(
    p: Any,
    grads: Any,
    *,
    xi: Any,
    lr: float = 1e-3,
    temperature: float = 1.0,
    weight_decay: float = 0.0,
    given_noise: bool = False,
    **average: Any,
) -> Iterator[Any]:
    """The average does not act on the chain."""
    assert given_noise
    return langevin(p, grads, xi, lr=lr, temperature=temperature, weight_decay=weight_decay)


@rule("psgld", GIVEN, {"alpha": 0.9, "eps": 1e-2, **OTHER}, inputs=("xi",))
def psgld(
    p: Any,
    grads: Any,
    *,
    xi: Any,
    lr: float = 1e-3,
    alpha: float = 0.99,
    eps: float = 1e-5,
    temperature: float = 1.0,
    weight_decay: float = 0.0,
    given_noise: bool = False,
) -> Iterator[Any]:
    """Li et al. 2016, algorithm 1 without Gamma; with a temperature."""
    assert given_noise
    v = np.zeros_like(p)
    for g, noise in zip(grads, xi, strict=True):
        g = g + weight_decay * p
        v = alpha * v + (1 - alpha) * g * g
        preconditioner = 1 / (eps + np.sqrt(v))
        variance = 2 * lr * preconditioner * temperature
        p = p - lr * preconditioner * g + noise * np.sqrt(variance)
        yield p


@rule("sghmc", GIVEN, {"friction": 0.3, **OTHER}, inputs=("xi",))
def sghmc(
    p: Any,
    grads: Any,
    *,
    xi: Any,
    lr: float = 1e-4,
    friction: float = 0.1,
    temperature: float = 1.0,
    weight_decay: float = 0.0,
    given_noise: bool = False,
) -> Iterator[Any]:
    """Chen, Fox and Guestrin 2014, equation 15 with beta hat 0: v += -lr grad - alpha v + N(0, 2 alpha lr)."""
    assert given_noise
    v = np.zeros_like(p)
    for g, noise in zip(grads, xi, strict=True):
        change = -lr * (g + weight_decay * p) - friction * v
        p, v = (
            p + v + change + noise * (2 * friction * lr * temperature) ** 0.5,
            v + change + noise * (2 * friction * lr * temperature) ** 0.5,
        )
        yield p


@rule("csgld", GIVEN, {"period": 5, "explore": 0.3, **OTHER}, inputs=("xi",))
def csgld(
    p: Any,
    grads: Any,
    *,
    xi: Any,
    lr: float = 1e-2,
    period: int = 1000,
    explore: float = 0.5,
    temperature: float = 1.0,
    weight_decay: float = 0.0,
    given_noise: bool = False,
) -> Iterator[Any]:
    """Zhang et al. 2020, algorithm 1 and equation 1, k from 1."""
    assert given_noise
    for k, (g, noise) in enumerate(zip(grads, xi, strict=True), 1):
        r = (k - 1) % period / period
        alpha = lr / 2 * (np.cos(np.pi * r) + 1)
        p = p - alpha * (g + weight_decay * p)
        if r >= explore:
            p = p + noise * np.sqrt(2 * alpha) * np.sqrt(temperature)
        yield p
