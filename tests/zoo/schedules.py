"""Methods with a schedule of the learning rate, or one that depends on the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from tests.zoo.rules import rule


def adam(
    p: Any,
    grads: Any,
    rate: Callable[[int], float],
    *,
    betas: Any,
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Iterator[Any]:
    """Adam, as in Kingma and Ba 2015, with a learning rate for every step, counted from 0."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for k, g in enumerate(grads):
        lr = rate(k)
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** (k + 1))) / (np.sqrt(v / (1 - betas[1] ** (k + 1))) + eps)
        yield p


def sgd(
    p: Any, grads: Any, rate: Callable[[int], float], *, momentum: float, weight_decay: float, nesterov: bool
) -> Iterator[Any]:
    """torch.optim.SGD with a learning rate for every step, counted from 0."""
    buffer = None
    for k, g in enumerate(grads):
        g = g + weight_decay * p
        buffer = g if buffer is None else momentum * buffer + g
        p = p - rate(k) * (g + momentum * buffer if nesterov else buffer)
        yield p


@rule(
    "adamw_cosine",
    {},
    {"lr": 0.02, "warmup_steps": 3, "total_steps": 9, "final": 0.1, "betas": (0.8, 0.9), "eps": 1e-3},
    {"lr": 0.02, "total_steps": 12, "weight_decay": 0.2},
)
def adamw_cosine(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    warmup_steps: int = 0,
    total_steps: int = 10000,
    final: float = 0.0,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Iterator[Any]:
    """Transformers' get_cosine_with_min_lr_schedule_with_warmup, which stays at the end here."""

    def rate(k: int) -> float:
        if k < warmup_steps:
            return lr * k / warmup_steps
        if k >= total_steps:
            return lr * final
        wave = math.cos(math.pi * (k - warmup_steps) / (total_steps - warmup_steps))
        return lr * (0.5 * (1 + wave) * (1 - final) + final)

    return adam(p, grads, rate, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True)


@rule(
    "adamw_linear",
    {},
    {"lr": 0.02, "warmup_steps": 4, "total_steps": 11, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2},
)
def adamw_linear(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    warmup_steps: int = 0,
    total_steps: int = 10000,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Iterator[Any]:
    """Transformers' get_linear_schedule_with_warmup."""

    def rate(k: int) -> float:
        if k < warmup_steps:
            return lr * k / warmup_steps
        return lr * max(0.0, (total_steps - k) / (total_steps - warmup_steps))

    return adam(p, grads, rate, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True)


@rule(
    "adamw_wsd",
    {},
    {"lr": 0.02, "warmup_steps": 2, "stable_steps": 4, "decay_steps": 5, "final": 0.1, "weight_decay": 0.2},
    {"lr": 0.02, "stable_steps": 3, "decay_steps": 8, "power": 0.5, "betas": (0.8, 0.9), "eps": 1e-3},
)
def adamw_wsd(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    warmup_steps: int = 0,
    stable_steps: int = 9000,
    decay_steps: int = 1000,
    power: float = 1.0,
    final: float = 0.0,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Iterator[Any]:
    """Transformers' get_wsd_schedule with a linear warm-up, and "linear" or "1-sqrt" for the decay."""

    def rate(k: int) -> float:
        if k < warmup_steps:
            return lr * k / warmup_steps
        k -= warmup_steps + stable_steps
        if k < 0:
            return lr
        if k >= decay_steps:
            return lr * final
        return lr * ((1 - (k / decay_steps) ** power) * (1 - final) + final)

    return adam(p, grads, rate, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True)


@rule(
    "adam_inverse_sqrt",
    {},
    {"lr": 0.02, "warmup_steps": 4, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2},
)
def adam_inverse_sqrt(
    p: Any,
    grads: Any,
    *,
    lr: float = 7e-4,
    warmup_steps: int = 4000,
    betas: Any = (0.9, 0.98),
    eps: float = 1e-9,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Vaswani et al. 2017, section 5.3, with d^-0.5 such that the largest rate is lr."""

    def rate(k: int) -> float:
        scale = lr * warmup_steps**0.5
        return scale * min((k + 1) ** -0.5, (k + 1) * warmup_steps**-1.5)

    return adam(p, grads, rate, betas=betas, eps=eps, weight_decay=weight_decay)


@rule(
    "adam_sqrt_scaling",
    {},
    {"lr": 0.01, "batch_size": 96, "base_batch_size": 32, "eps": 1e-2, "weight_decay": 0.1},
    {"lr": 0.01, "batch_size": 64, "base_batch_size": 16, "betas": (0.7, 0.9)},
)
def adam_sqrt_scaling(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    batch_size: int = 256,
    base_batch_size: int = 256,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Malladi et al. 2022, definition 5.2; a beta that would fall below 0 is 0."""
    kappa = batch_size / base_batch_size
    scaled = [max(0.0, 1 - kappa * (1 - beta)) for beta in betas]
    return adam(
        p,
        grads,
        lambda k: lr * kappa**0.5,
        betas=scaled,
        eps=eps / kappa**0.5,
        weight_decay=weight_decay,
    )


@rule("sgd_step_decay", {}, {"lr": 0.05, "step_size": 4, "gamma": 0.5, "momentum": 0.8, "weight_decay": 0.1})
def sgd_step_decay(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.1,
    step_size: int = 1000,
    gamma: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """torch.optim.lr_scheduler.StepLR."""
    rates = [lr]
    for k in range(1, len(grads)):
        rates.append(rates[-1] * (gamma if k % step_size == 0 else 1))
    return sgd(p, grads, rates.__getitem__, momentum=momentum, weight_decay=weight_decay, nesterov=False)


@rule(
    "sgd_polynomial",
    {},
    {"lr": 0.05, "warmup_steps": 3, "total_steps": 10, "power": 2.0, "momentum": 0.8, "weight_decay": 0.1},
    {"lr": 0.05, "total_steps": 20, "final": 0.2, "nesterov": True},
)
def sgd_polynomial(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    warmup_steps: int = 0,
    total_steps: int = 10000,
    power: float = 0.9,
    final: float = 0.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Iterator[Any]:
    """Transformers' get_polynomial_decay_schedule_with_warmup, with `final` for lr_end / lr."""

    def rate(k: int) -> float:
        if k < warmup_steps:
            return lr * k / warmup_steps
        if k > total_steps:
            return lr * final
        rest = 1 - (k - warmup_steps) / (total_steps - warmup_steps)
        return (lr - lr * final) * rest**power + lr * final

    return sgd(p, grads, rate, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


@rule(
    "sgd_linear_scaling",
    {},
    {"lr": 0.01, "batch_size": 96, "base_batch_size": 32, "warmup_steps": 5, "weight_decay": 0.1},
    {"lr": 0.01, "batch_size": 8, "base_batch_size": 32, "momentum": 0.5, "nesterov": True},
)
def sgd_linear_scaling(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.1,
    batch_size: int = 256,
    base_batch_size: int = 256,
    warmup_steps: int = 0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Iterator[Any]:
    """Goyal et al. 2017, section 2.2: a constant increment per step until k * lr is reached."""
    large = lr * batch_size / base_batch_size

    def rate(k: int) -> float:
        return lr + (large - lr) * (k + 1) / warmup_steps if k + 1 < warmup_steps else large

    return sgd(p, grads, rate, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


@rule(
    "sgd_warm_restarts",
    {},
    {"lr": 0.1, "period": 4, "final": 0.1, "momentum": 0.7, "weight_decay": 0.1, "nesterov": True},
)
def sgd_warm_restarts(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.05,
    period: int = 1000,
    final: float = 0.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Iterator[Any]:
    """Loshchilov and Hutter 2017, equation 5, with periods of one length."""
    least, rates = final * lr, []
    while len(rates) < len(grads):
        rates += [least + (lr - least) / 2 * (1 + math.cos(math.pi * k / period)) for k in range(period)]
    return sgd(p, grads, rates.__getitem__, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


@rule(
    "sgd_one_cycle",
    {},
    {
        "lr": 0.2,
        "total_steps": 14,
        "pct_start": 0.4,
        "div_factor": 10.0,
        "final_div_factor": 50.0,
        "base_momentum": 0.5,
        "max_momentum": 0.8,
        "weight_decay": 0.1,
    },
)
def sgd_one_cycle(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.1,
    total_steps: int = 10000,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """torch.optim.SGD under torch.optim.lr_scheduler.OneCycleLR itself, which sets rate and momentum."""
    q = torch.nn.Parameter(torch.from_numpy(np.array(p)))
    optimizer = torch.optim.SGD([q], lr=lr, momentum=0.9, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=total_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )
    for number, g in enumerate(grads, 1):
        q.grad = torch.from_numpy(np.array(g))
        optimizer.step()
        if number < total_steps:
            scheduler.step()
        yield q.detach().numpy().copy()


@rule(
    "sgd_multistep",
    {},
    {
        "lr": 0.05,
        "milestones": (4, 9, 9, 12),
        "gamma": 0.3,
        "momentum": 0.5,
        "weight_decay": 0.1,
        "nesterov": True,
    },
    {"lr": 0.05, "milestones": [3], "momentum": 0.0},
)
def sgd_multistep(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.1,
    milestones: Any = (32000, 48000),
    gamma: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
) -> Iterator[Any]:
    """torch.optim.SGD under torch.optim.lr_scheduler.MultiStepLR itself."""
    q = torch.nn.Parameter(torch.from_numpy(np.array(p)))
    optimizer = torch.optim.SGD([q], lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma)
    for g in grads:
        q.grad = torch.from_numpy(np.array(g))
        optimizer.step()
        scheduler.step()
        yield q.detach().numpy().copy()


@rule(
    "adamw_refined",
    {},
    {
        "lr": 0.02,
        "schedule": [0.2, 1.0, 0.7, 0.4, 0.0],
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.2,
    },
)
def adamw_refined(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    schedule: Any = (1.0,),
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Iterator[Any]:
    """A factor for each step, the last one for those behind it."""

    def rate(k: int) -> float:
        return float(lr * schedule[min(k, len(schedule) - 1)])

    return adam(p, grads, rate, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True)


@rule(
    "sps",
    {},
    {"lr": 0.05, "loss_star": -0.5, "c": 0.2, "eps": 1e-3},
    {"lr": math.inf, "c": 1.0, "eps": 1e-2},
    joint=True,
    numbers=("loss",),
)
def sps(
    p: Any,
    grads: Any,
    *,
    loss: Any,
    lr: float = 1.0,
    loss_star: float = 0.0,
    c: float = 0.5,
    eps: float = 1e-8,
) -> Iterator[Any]:
    """Loizou et al. 2021, equation 3 (SPS_max), with the eps of the authors' package."""
    for g, value in zip(grads, loss, strict=True):
        norm2 = sum(float(np.sum(x * x)) for x in g.values())
        size = min((value - loss_star) / (c * norm2 + eps), lr)
        p = {name: x - size * g[name] for name, x in p.items()}
        yield p
