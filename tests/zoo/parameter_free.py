"""Methods that estimate their learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


def _zeros(params: Any) -> Any:
    return {k: np.zeros_like(p) for k, p in params.items()}


_ADAM = {"lr": 0.7, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "d0": 1e-2}


@rule(
    "dadapt_adam",
    {},
    {**_ADAM, "growth_rate": 1.2},
    {**_ADAM, "decouple": True, "use_bias_correction": True},
    joint=True,
)
def dadapt_adam(
    params: Any,
    grads: Any,
    *,
    lr: float = 1.0,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = False,
    use_bias_correction: bool = False,
    d0: float = 1e-6,
    growth_rate: float = math.inf,
) -> Iterator[Any]:
    """Defazio and Mishchenko 2023, arXiv:2301.07733; dadaptation 3.2, dadapt_adam.py."""
    m, v, s = _zeros(params), _zeros(params), _zeros(params)
    d, weighted, root = d0, 0.0, math.sqrt(betas[1])
    for k, step in enumerate(grads):
        dlr = d * lr
        if use_bias_correction:
            dlr *= math.sqrt(1 - betas[1] ** (k + 1)) / (1 - betas[0] ** (k + 1))
        inner = total = 0.0
        for name, raw in step.items():
            g = raw if decouple else raw + weight_decay * params[name]
            inner += dlr * float(np.sum(g * (s[name] / (np.sqrt(v[name]) + eps))))
            m[name] = betas[0] * m[name] + dlr * (1 - betas[0]) * g
            v[name] = betas[1] * v[name] + (1 - betas[1]) * g * g
            s[name] = root * s[name] + dlr * (1 - root) * g
            total += float(np.sum(np.abs(s[name])))
        weighted = root * weighted + (1 - root) * inner
        if total > 0:
            d = max(d, min(weighted / ((1 - root) * total), d * growth_rate))
            for name, p in params.items():
                kept = p - weight_decay * dlr * p if decouple else p
                params[name] = kept - m[name] / (np.sqrt(v[name]) + eps)
        yield params


@rule(
    "dadapt_sgd",
    {},
    {"lr": 0.7, "momentum": 0.8, "weight_decay": 0.1, "d0": 1e-2, "growth_rate": 1.3},
    joint=True,
)
def dadapt_sgd(
    params: Any,
    grads: Any,
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    growth_rate: float = math.inf,
) -> Iterator[Any]:
    """Defazio and Mishchenko 2023, arXiv:2301.07733; dadaptation 3.2, dadapt_sgd.py."""
    start = {k: p.copy() for k, p in params.items()}
    s = _zeros(params)
    d, weighted = d0, 0.0
    first = math.sqrt(sum(float(np.sum(g * g)) for g in grads[0].values()))
    for step in grads:
        dlr = d * lr / first
        square = 0.0
        for name, raw in step.items():
            g = raw + weight_decay * params[name]
            weighted += dlr * float(np.sum(g * s[name]))
            s[name] = s[name] + dlr * g
            square += float(np.sum(s[name] ** 2))
        d = max(d, min(2 * weighted / math.sqrt(square), d * growth_rate))
        for name, p in params.items():
            z = start[name] - s[name]
            params[name] = p + (1 - momentum) * (z - p)
        yield params


@rule("dadapt_lion", {}, {"lr": 0.7, "betas": (0.8, 0.95), "weight_decay": 0.1, "d0": 1e-2}, joint=True)
def dadapt_lion(
    params: Any,
    grads: Any,
    *,
    lr: float = 1.0,
    betas: Any = (0.9, 0.99),
    weight_decay: float = 0.0,
    d0: float = 1e-6,
) -> Iterator[Any]:
    """Defazio and Mishchenko 2023, arXiv:2301.07733; dadaptation 3.2, dadapt_lion.py."""
    m, s = _zeros(params), _zeros(params)
    d, weighted, root = d0, 0.0, math.sqrt(betas[1])
    for step in grads:
        dlr = d * lr
        inner = total = 0.0
        for name, g in step.items():
            u = np.sign(betas[0] * m[name] + (1 - betas[0]) * g)
            params[name] = (1 - dlr * weight_decay) * params[name] - dlr * u
            m[name] = betas[1] * m[name] + (1 - betas[1]) * dlr * g
            inner += dlr * float(np.sum(u * s[name]))
            s[name] = root * s[name] + (1 - root) * dlr * u
            total += float(np.sum(np.abs(s[name])))
        weighted = root * weighted + (1 - root) * inner
        if total > 0:
            d = max(d, weighted / ((1 - root) * total))
        yield params


_PRODIGY = {**_ADAM, "beta3": 0.9, "d_coef": 1.5}


@rule(
    "prodigy",
    {},
    {**_PRODIGY, "growth_rate": 1.1},
    {**_PRODIGY, "decouple": False, "safeguard_warmup": True},
    {"use_bias_correction": True, "weight_decay": 0.1, "d0": 1e-2},
    joint=True,
)
def prodigy(
    params: Any,
    grads: Any,
    *,
    lr: float = 1.0,
    betas: Any = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    growth_rate: float = math.inf,
) -> Iterator[Any]:
    """Mishchenko and Defazio 2024, arXiv:2306.06101; prodigyopt 1.1.2, prodigy.py."""
    start = {k: p.copy() for k, p in params.items()}
    m, v, s = _zeros(params), _zeros(params), _zeros(params)
    if beta3 is None:
        beta3 = math.sqrt(betas[1])
    d = d_max = d0
    numerator = 0.0
    for k, step in enumerate(grads):
        dlr = d * lr
        if use_bias_correction:
            dlr *= math.sqrt(1 - betas[1] ** (k + 1)) / (1 - betas[0] ** (k + 1))
        numerator *= beta3
        denominator = 0.0
        for name, raw in step.items():
            g = raw if decouple else raw + weight_decay * params[name]
            numerator += d / d0 * dlr * float(np.sum(g * (start[name] - params[name])))
            m[name] = betas[0] * m[name] + d * (1 - betas[0]) * g
            v[name] = betas[1] * v[name] + d * d * (1 - betas[1]) * g * g
            s[name] = beta3 * s[name] + d / d0 * (d if safeguard_warmup else dlr) * g
            denominator += float(np.sum(np.abs(s[name])))
        if denominator > 0:
            d_hat = d_coef * numerator / denominator
            if d == d0:
                d = max(d, d_hat)
            d_max = max(d_max, d_hat)
            d = min(d_max, d * growth_rate)
            for name, p in params.items():
                kept = p - weight_decay * dlr * p if decouple else p
                params[name] = kept - dlr * m[name] / (np.sqrt(v[name]) + d * eps)
        yield params
