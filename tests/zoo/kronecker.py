"""Methods with a matrix for each axis of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule

_LETTERS = "abcdefg"


def _outer(g: Any, axis: int) -> Any:
    """The products of the slices of a tensor across an axis."""
    one = _LETTERS[: g.ndim]
    return np.einsum(f"{one},{one.replace(one[axis], 'z')}->{one[axis]}z", g, g)


def _root(matrix: Any, order: int) -> Any:
    """matrix^(-1/order), by singular values."""
    left, values, right = np.linalg.svd(matrix)
    return left @ np.diag(values ** (-1 / order)) @ right


def _preconditioned(g: Any, roots: Any) -> Any:
    for axis, root in enumerate(roots):
        one = _LETTERS[: g.ndim]
        g = np.einsum(f"{one},{one[axis]}z->{one.replace(one[axis], 'z')}", g, root)
    return g


@rule(
    "shampoo",
    {"matrix_eps": 0.1},
    {
        **{"lr": 0.02, "momentum": 0.6, "weight_decay": 0.1, "matrix_eps": 0.5},
        "preconditioning_compute_steps": 3,
    },
)
def shampoo(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    preconditioning_compute_steps: int = 1,
    matrix_eps: float = 1e-6,
) -> Iterator[Any]:
    """Gupta et al. 2018, algorithm 2; pytorch_optimizer 4.1.0, shampoo.py."""
    sums = [matrix_eps * np.eye(n) for n in p.shape]
    roots = [np.zeros((n, n)) for n in p.shape]
    last = None
    for t, g in enumerate(grads, 1):
        if momentum > 0:
            g = (1 - momentum) * g + momentum * (g if last is None else last)
        g = g + weight_decay * p
        sums = [s + _outer(g, axis) for axis, s in enumerate(sums)]
        if t % preconditioning_compute_steps == 0:
            roots = [_root(s, 2 * p.ndim) for s in sums]
        last = _preconditioned(g, roots)
        p = p - lr * last
        yield p


@rule(
    "distributed_shampoo",
    {"epsilon": 0.1},
    {"betas": (0.8, 0.9), "epsilon": 0.1, "precondition_frequency": 3, "weight_decay": 0.2, "lr": 0.02},
    {
        **{"betas": (0.8, 0.9), "epsilon": 0.1, "precondition_frequency": 2, "start_preconditioning_step": 5},
        **{"grafting": "adam", "grafting_beta2": 0.9, "grafting_epsilon": 1e-2, "weight_decay": 0.1},
    },
)
def distributed_shampoo(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.01,
    betas: Any = (0.9, 1.0),
    epsilon: float = 1e-12,
    weight_decay: float = 0.0,
    precondition_frequency: int = 1,
    start_preconditioning_step: int = -1,
    grafting: str = "none",
    grafting_beta2: float = 0.999,
    grafting_epsilon: float = 1e-8,
) -> Iterator[Any]:
    """Shi et al. 2023, algorithm 2; facebookresearch/optimizers, distributed_shampoo at f606606611.

    There a smallest eigenvalue below epsilon lifts all; it never is, but for rounding.
    """
    start = precondition_frequency if start_preconditioning_step == -1 else start_preconditioning_step
    sums = [np.zeros((n, n)) for n in p.shape]
    roots: list[Any] = []
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        weight = 1.0 if betas[1] == 1 else 1 - betas[1]
        sums = [betas[1] * s + weight * _outer(g, axis) for axis, s in enumerate(sums)]
        if t == start or (t > start and t % precondition_frequency == 0):
            total = 1.0 if betas[1] == 1 else 1 - betas[1] ** t
            roots = [_root(s / total + epsilon * np.eye(len(s)), 2 * p.ndim) for s in sums]
        m = m + (1 - betas[0]) * (g - m)
        v = v + (1 - grafting_beta2) * (g * g - v)
        average = m / (1 - betas[0] ** t)
        adam = average / (np.sqrt(v / (1 - grafting_beta2**t)) + grafting_epsilon)
        if t < start:
            u = adam if grafting == "adam" else average
        else:
            u = _preconditioned(average, roots)
            if grafting == "adam":
                u = u * np.linalg.norm(adam) / (np.linalg.norm(u) + 1e-16)
        p = p - lr * weight_decay * p - lr * u
        yield p
