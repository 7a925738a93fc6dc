"""Methods that keep an average of the iterates: here what the parameters do, in test_averages.py the average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.zoo.rules import rule
from tests.zoo.schedules import adam, sgd


@rule(
    "ema_adamw",
    {},
    {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2, "decay": 0.7},
    {"bias_correction": True, "warm_up": True},
)
def ema_adamw(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    **average: Any,
) -> Iterator[Any]:
    """AdamW; the average does not act on it."""
    return adam(p, grads, lambda k: lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True)


@rule(
    "swa_sgd",
    {},
    {"lr": 0.02, "swa_lr": 0.05, "swa_start": 6, "swa_freq": 2, "momentum": 0.8, "weight_decay": 0.1},
)
def swa_sgd(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    swa_lr: float | None = None,
    swa_start: int = 10,
    swa_freq: int = 5,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """torchcontrib.optim.SWA around torch.optim.SGD: the rate is set before the step, by the old count."""
    rates = [lr if swa_lr is None or count < swa_start else swa_lr for count in range(len(grads))]
    return sgd(p, grads, rates.__getitem__, momentum=momentum, weight_decay=weight_decay, nesterov=False)


@rule("polyak_sgd", {}, {"lr": 0.1, "alpha": 0.7, "momentum": 0.8, "weight_decay": 0.1, "gamma": 3.0})
def polyak_sgd(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    alpha: float = 0.5,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    **average: Any,
) -> Iterator[Any]:
    """Steps gamma_t = gamma t^-alpha, as in Polyak and Juditsky 1992."""
    return sgd(
        p,
        grads,
        lambda k: lr * (k + 1) ** -alpha,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=False,
    )
