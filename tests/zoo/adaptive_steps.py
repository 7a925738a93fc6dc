"""Methods that scale each coordinate by an average of squared gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


@rule(
    "adabound",
    {},
    {
        "lr": 3e-3,
        "betas": (0.8, 0.97),
        "final_lr": 0.03,
        "gamma": 0.2,
        "eps": 1e-5,
        "weight_decay": 0.1,
    },
    {"amsbound": True, "gamma": 0.02, "weight_decay": 0.05},
)
def adabound(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    final_lr: float = 0.1,
    gamma: float = 1e-3,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsbound: bool = False,
) -> Iterator[Any]:
    """Luo et al. 2019, arXiv:1902.09843, algorithms 2 and 3, with the corrections of the authors' package."""
    m, v, largest = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * p
        m = m * betas[0] + g * (1 - betas[0])
        v = v * betas[1] + g * g * (1 - betas[1])
        largest = np.maximum(largest, v)
        size = lr / (1 - betas[0] ** t) * math.sqrt(1 - betas[1] ** t)
        size = size / (np.sqrt(largest if amsbound else v) + eps)
        low = final_lr - final_lr / (1 + gamma * t)
        high = final_lr + final_lr / (gamma * t)
        p = p - np.minimum(np.maximum(size, low), high) * m
        yield p


@rule(
    "yogi",
    {},
    {
        "lr": 3e-3,
        "betas": (0.8, 0.95),
        "eps": 1e-2,
        "initial_accumulator": 0.05,
        "weight_decay": 0.1,
    },
)
def yogi(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-3,
    initial_accumulator: float = 1e-6,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Zaheer et al. 2018, algorithm 2, bias corrected and started as torch_optimizer's Yogi."""
    m, v = np.full_like(p, initial_accumulator), np.full_like(p, initial_accumulator)
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        square = g * g
        change = (1 - betas[1]) * square
        v = np.where(v > square, v - change, np.where(v < square, v + change, v))
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
        yield p


@rule(
    "qhadam",
    {},
    {
        "lr": 3e-3,
        "betas": (0.8, 0.95),
        "nus": (0.7, 0.9),
        "weight_decay": 0.1,
        "eps": 1e-5,
    },
    {"nus": (0.8, 1.0), "decouple_weight_decay": True, "weight_decay": 0.2},
)
def qhadam(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    nus: Any = (1.0, 1.0),
    weight_decay: float = 0.0,
    decouple_weight_decay: bool = False,
    eps: float = 1e-8,
) -> Iterator[Any]:
    """Ma and Yarats 2019, arXiv:1810.06801, equations of section 4: Adam's corrected moments, mixed."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        if decouple_weight_decay:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        top = (1 - nus[0]) * g + nus[0] * m / (1 - betas[0] ** t)
        bottom = (1 - nus[1]) * g**2 + nus[1] * v / (1 - betas[1] ** t)
        p = p - lr * top / (np.sqrt(bottom) + eps)
        yield p


def half_lives(start: float, end: float, share: float) -> float:
    """The decay whose half-life lies this share of the way between those of two others."""
    lives = [math.log(0.5) / math.log(beta + 1e-8) - 1 for beta in (start, end)]
    return float(math.pow(0.5, 1 / ((1 - share) * lives[0] + share * lives[1] + 1)))


@rule(
    "ademamix",
    {},
    {
        "lr": 3e-3,
        "betas": (0.8, 0.95, 0.99),
        "alpha": 4.0,
        "beta3_warmup": 9,
        "alpha_warmup": 6,
        "eps": 1e-5,
        "weight_decay": 0.1,
    },
)
def ademamix(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999, 0.9999),
    alpha: float = 2.0,
    beta3_warmup: int = 0,
    alpha_warmup: int = 0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Pagliardini et al. 2024, arXiv:2409.03137, algorithm 1 with the schedulers of the authors' code."""
    fast, slow, v = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        weight, decay = alpha, betas[2]
        if t < alpha_warmup:
            weight = t / alpha_warmup * alpha
        if t < beta3_warmup:
            decay = half_lives(betas[0], betas[2], t / beta3_warmup)
        fast = betas[0] * fast + (1 - betas[0]) * g
        slow = decay * slow + (1 - decay) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        root = np.sqrt(v / (1 - betas[1] ** t)) + eps
        update = (fast / (1 - betas[0] ** t) + weight * slow) / root
        p = p - lr * update - lr * weight_decay * p
        yield p


@rule(
    "simplified_ademamix",
    {},
    {
        "lr": 3e-4,
        "betas": (0.97, 0.9),
        "alpha": 3.0,
        "beta1_warmup": 8,
        "min_beta1": 0.7,
        "eps": 1e-4,
        "weight_decay": 0.1,
    },
    {"bias_correction1": True, "beta1_warmup": 5},
    {"bias_correction2": False, "eps": 1e-3},
)
def simplified_ademamix(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.99, 0.95),
    alpha: float = 0.0,
    beta1_warmup: int = 0,
    min_beta1: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    bias_correction1: bool = False,
    bias_correction2: bool = True,
) -> Iterator[Any]:
    """Morwani et al. 2025, arXiv:2502.02431, with sums of weights kept as the authors' code does."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    weights = squares = 0.0
    for t, g in enumerate(grads, 1):
        beta = half_lives(min_beta1, betas[0], t / beta1_warmup) if t < beta1_warmup else betas[0]
        m = beta * m + g
        weights = beta * weights + 1
        v = betas[1] * v + (1 - betas[1]) * g**2
        squares = betas[1] * squares + (1 - betas[1])
        update = (alpha * g + m) / (np.sqrt(v) + eps * math.sqrt(squares))
        if bias_correction1:
            update = update / weights
        if bias_correction2:
            update = update * math.sqrt(squares)
        p = p - lr * (update + weight_decay * p)
        yield p


@rule(
    "mars",
    {},
    {
        "lr": 1e-2,
        "betas": (0.8, 0.9),
        "eps": 1e-5,
        "weight_decay": 0.1,
        "gamma": 0.1,
        "lr_1d_factor": 0.5,
        "betas_1d": (0.7, 0.85),
        "weight_decay_1d": 0.2,
    },
    {"mars_type": "mars-lion", "weight_decay": 0.1},
    {"amsgrad": True, "optimize_1d": True, "weight_decay": 0.1},
    {"mars_type": "mars-lion", "amsgrad": True, "optimize_1d": True},
)
def mars(
    p: Any,
    grads: Any,
    *,
    lr: float = 3e-3,
    betas: Any = (0.95, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    gamma: float = 0.025,
    mars_type: str = "mars-adamw",
    optimize_1d: bool = False,
    lr_1d_factor: float = 1.0,
    betas_1d: Any = (0.9, 0.95),
    weight_decay_1d: float = 0.1,
) -> Iterator[Any]:
    """Yuan et al. 2024, arXiv:2411.10438, algorithms 2 and 3 in the form with the previous gradient."""
    plain = p.ndim != 2 and not optimize_1d
    if plain:
        lr, betas, weight_decay, mars_type = lr * lr_1d_factor, betas_1d, weight_decay_1d, "mars-adamw"
    previous, m, v, largest = (np.zeros_like(p) for _ in range(4))
    for t, g in enumerate(grads, 1):
        c = g
        if not plain:
            c = g + gamma * (betas[0] / (1 - betas[0])) * (g - previous)
            length = np.sqrt(np.sum(c**2))
            c = c / length if length > 1 else c
        previous = g
        m = betas[0] * m + (1 - betas[0]) * c
        if mars_type == "mars-lion":
            update = np.sign(m)
        else:
            v = betas[1] * v + (1 - betas[1]) * c**2
            largest = np.maximum(largest, v) if amsgrad else v
            update = m / (1 - betas[0] ** t) / (np.sqrt(largest / (1 - betas[1] ** t)) + eps)
        p = p - lr * update - lr * weight_decay * p
        yield p


@rule(
    "padam",
    {},
    {
        "lr": 0.03,
        "betas": (0.8, 0.95),
        "eps": 1e-4,
        "weight_decay": 0.1,
        "partial": 0.125,
        "amsgrad": False,
    },
)
def padam(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.1,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = True,
    partial: float = 0.25,
) -> Iterator[Any]:
    """Chen et al. 2020, arXiv:1806.06763, algorithm 1, bias corrected as the authors' Padam.py."""
    m, v, largest = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v) if amsgrad else v
        rate = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        p = p - rate * m / np.power(np.sqrt(largest) + eps, 2 * partial)
        yield p


@rule(
    "laprop",
    {},
    {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.02},
    {"amsgrad": True, "fixed_decay": False, "weight_decay": 0.1},
)
def laprop(
    p: Any,
    grads: Any,
    *,
    lr: float = 4e-4,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-15,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    fixed_decay: bool = True,
) -> Iterator[Any]:
    """Ziyin et al. 2020, arXiv:2002.04839, algorithm 1; decay as in the authors' laprop.py."""
    m, v, largest = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v) if amsgrad else v
        u = g / (np.sqrt(largest / (1 - betas[1] ** t)) + eps)
        m = betas[0] * m + (1 - betas[0]) * u
        p = p - lr * m / (1 - betas[0] ** t)
        p = p - weight_decay * (1 if fixed_decay else lr) * p
        yield p


@rule(
    "adopt",
    {},
    {
        "lr": 3e-3,
        "betas": (0.8, 0.95),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "clip_exp": 1 / 3,
    },
    {"decoupled": True, "weight_decay": 0.1, "clip_exp": None},
)
def adopt(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.9999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    clip_exp: float | None = 0.25,
) -> Iterator[Any]:
    """Taniguchi et al. 2024, arXiv:2411.02853, algorithm 2 with clipping; step 1 gives only the second moment."""
    m = np.zeros_like(p)
    v = None
    for k, g in enumerate(grads):
        if weight_decay and not decoupled:
            g = g + weight_decay * p
        if v is None:
            v = g * g
        else:
            if decoupled:
                p = p - lr * weight_decay * p
            u = g / np.maximum(np.sqrt(v), eps)
            if clip_exp is not None:
                u = np.clip(u, -(k**clip_exp), k**clip_exp)
            m = betas[0] * m + (1 - betas[0]) * u
            p = p - lr * m
            v = betas[1] * v + (1 - betas[1]) * g * g
        yield p


@rule(
    "stableadamw",
    {},
    {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
)
def stableadamw(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.99),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
) -> Iterator[Any]:
    """Wortsman et al. 2023, arXiv:2304.13013, algorithm 2: AdamW's corrected moments, rate divided by the RMS."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        ratio = math.sqrt(np.mean(g**2 / np.maximum(v_hat, eps**2)))
        rate = lr / max(1.0, ratio)
        p = p - rate * (weight_decay * p + m_hat / (np.sqrt(v_hat) + eps))
        yield p


@rule(
    "novograd",
    {},
    {
        "lr": 3e-3,
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "grad_averaging": True,
    },
    {"amsgrad": True, "decoupled_decay": True, "weight_decay": 0.1},
)
def novograd(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.95, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_averaging: bool = False,
    amsgrad: bool = False,
    decoupled_decay: bool = False,
) -> Iterator[Any]:
    """Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1, with the options of NVIDIA's code and of timm."""
    m = np.zeros_like(p)
    v = largest = 0.0
    for g in grads:
        squared = float(np.sum(g * g))
        v = squared if v == 0 else betas[1] * v + (1 - betas[1]) * squared
        largest = max(largest, v)
        u = g / (math.sqrt(largest if amsgrad else v) + eps)
        if decoupled_decay:
            p = p - lr * weight_decay * p
        else:
            u = u + weight_decay * p
        if grad_averaging:
            u = u * (1 - betas[0])
        m = betas[0] * m + u
        p = p - lr * m
        yield p


@rule(
    "adai",
    {},
    {"lr": 0.03, "betas": (0.2, 0.9), "eps": 0.01, "weight_decay": 0.1},
    {"lr": 0.03, "decoupled": True, "weight_decay": 0.2},
    joint=True,
)
def adai(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.1, 0.99),
    eps: float = 1e-3,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Iterator[Any]:
    """Xie et al. 2022, arXiv:2006.15815, algorithm 2: the mean is over the coordinates of all tensors."""
    m = {k: np.zeros_like(x) for k, x in p.items()}
    v = {k: np.zeros_like(x) for k, x in p.items()}
    product = {k: np.ones_like(x) for k, x in p.items()}
    for t, g in enumerate(grads, 1):
        if decoupled:
            p = {k: x - lr * weight_decay * x for k, x in p.items()}
        else:
            g = {k: g[k] + weight_decay * p[k] for k in p}
        v = {k: betas[1] * v[k] + (1 - betas[1]) * g[k] ** 2 for k in p}
        hats = {k: v[k] / (1 - betas[1] ** t) for k in p}
        mean = np.mean(np.concatenate([x.ravel() for x in hats.values()]))
        for k in p:
            beta = np.minimum(np.maximum(1 - betas[0] * hats[k] / mean, 0), 1 - eps)
            product[k] = product[k] * beta
            m[k] = beta * m[k] + (1 - beta) * g[k]
            p[k] = p[k] - lr * m[k] / (1 - product[k])
        yield p


@rule("msvag", {}, {"lr": 0.03, "beta": 0.7})
def msvag(p: Any, grads: Any, *, lr: float = 1e-2, beta: float = 0.9) -> Iterator[Any]:
    """Balles and Hennig 2018, arXiv:1705.07774, algorithm 1, with the guards of the authors' code."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m, v = beta * m + (1 - beta) * g, beta * v + (1 - beta) * g**2
        mean, square = m / (1 - beta**t), v / (1 - beta**t)
        rho = min(0.999, (1 - beta) * (1 + beta**t) / ((1 + beta) * (1 - beta**t)))
        spread = rho * (square - mean**2) / (1 - rho)
        for i in np.ndindex(p.shape):
            if mean[i] != 0:
                share = float(np.clip(mean[i] ** 2 / (mean[i] ** 2 + spread[i]), 0, 1))
                p = p.copy()
                p[i] -= lr * share * mean[i]
        yield p


@rule(
    "avagrad",
    {},
    {"lr": 0.3, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 0.05},
    {"decoupled": True, "weight_decay": 0.1},
    joint=True,
)
def avagrad(
    p: Any,
    grads: Any,
    *,
    lr: float = 0.1,
    betas: Any = (0.9, 0.999),
    weight_decay: float = 0.0,
    eps: float = 0.1,
    decoupled: bool = False,
) -> Iterator[Any]:
    """Savarese et al. 2021, arXiv:1912.01823, as the authors' optimizers.py computes the factor."""
    m = {k: np.zeros_like(x) for k, x in p.items()}
    v = {k: np.zeros_like(x) for k, x in p.items()}
    count = sum(x.size for x in p.values())
    gamma = math.nan
    for t, g in enumerate(grads, 1):
        squared = 0.0
        for k in p:
            d = g[k] if decoupled else g[k] + weight_decay * p[k]
            m[k] = betas[0] * m[k] + (1 - betas[0]) * d
            if t > 1:
                if decoupled:
                    p[k] = p[k] - lr * weight_decay * p[k]
                root = np.sqrt(v[k] / (1 - betas[1] ** (t - 1))) + eps
                p[k] = p[k] - lr * gamma / (1 - betas[0] ** t) * m[k] / root
            squared += float(np.sum((np.sqrt(v[k] / (1 - betas[1] ** t)) + eps) ** -2.0))
            v[k] = betas[1] * v[k] + (1 - betas[1]) * d**2
        gamma = math.sqrt(count / squared)
        yield p


@rule(
    "adapnm",
    {},
    {
        "lr": 3e-3,
        "betas": (0.8, 0.95, 0.7),
        "eps": 1e-5,
        "weight_decay": 0.1,
        "amsgrad": False,
    },
    {"decoupled": False, "weight_decay": 0.2},
)
def adapnm(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999, 1.0),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = True,
    decoupled: bool = True,
) -> Iterator[Any]:
    """Xie et al. 2021, arXiv:2103.17182, algorithm 3: the two momenta change places after each step."""
    newer, older = np.zeros_like(p), np.zeros_like(p)
    v, largest = np.zeros_like(p), np.zeros_like(p)
    keep = betas[0] ** 2
    for t, g in enumerate(grads, 1):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        newer = keep * newer + (1 - keep) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v) if amsgrad else v
        root = np.sqrt(largest / (1 - betas[1] ** t)) + eps
        mixed = (1 + betas[2]) * newer - betas[2] * older
        mixed = mixed / math.hypot(1 + betas[2], betas[2])
        p = p - lr / (1 - betas[0] ** t) * mixed / root
        newer, older = older, newer
        yield p


@rule(
    "adamnorm",
    {},
    {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "r": 0.7},
    {"amsgrad": True, "weight_decouple": True, "weight_decay": 0.1, "eps": 1e-4},
    {"weight_decouple": True, "fixed_decay": True, "weight_decay": 0.02},
)
def adamnorm(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    weight_decouple: bool = False,
    fixed_decay: bool = False,
    r: float = 0.95,
) -> Iterator[Any]:
    """Dubey et al. 2023, arXiv:2210.06364, algorithm 2; eps enters the state as in the authors' AdamNorm.py."""
    m, v, largest = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    average = 0.0
    for t, g in enumerate(grads, 1):
        if not weight_decouple:
            g = g + weight_decay * p
        else:
            p = p - weight_decay * (1 if fixed_decay else lr) * p
        length = math.sqrt(np.sum(g * g))
        average = r * average + (1 - r) * length
        longer = g * (average / length) if length and average > length else g
        m = betas[0] * m + (1 - betas[0]) * longer
        v = betas[1] * v + (1 - betas[1]) * g**2
        if amsgrad:
            largest = np.maximum(largest, v) + eps
            used = largest
        else:
            v = v + eps
            used = v
        p = p - lr * m / (1 - betas[0] ** t) / (np.sqrt(used / (1 - betas[1] ** t)) + eps)
        yield p


@rule(
    "adam_atan2",
    {},
    {"lr": 3e-3, "betas": (0.8, 0.95), "weight_decay": 0.05, "a": 2.0, "b": 0.5},
)
def adam_atan2(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-4,
    betas: Any = (0.9, 0.99),
    weight_decay: float = 0.0,
    a: float = 1.27,
    b: float = 1.0,
) -> Iterator[Any]:
    """Everett et al. 2024, arXiv:2407.05872, section 4.4, with decay that the first learning rate does not scale."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        p = p - weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - a * lr * np.arctan2(m_hat, b * np.sqrt(v_hat))
        yield p


@rule("kate", {}, {"lr": 0.03, "eta": 0.2, "eps": 1e-3})
def kate(p: Any, grads: Any, *, lr: float = 1e-3, eta: float = 0.9, eps: float = 1e-8) -> Iterator[Any]:
    """Choudhury et al. 2024, arXiv:2403.02648, algorithm 1; eps as in the authors' optimizers.py."""
    total, m = np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        total = total + g * g
        floor = total + eps
        m = m + g * g * (eta + 1 / floor)
        p = p - lr * np.sqrt(m) / floor * g
        yield p


@rule("nadamw", {}, {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1})
def nadamw(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Iterator[Any]:
    """Dahl et al. 2023, arXiv:2306.07179, the NAdamW of AlgoPerf: the average is taken once more, for the step."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        ahead = (betas[0] * m + (1 - betas[0]) * g) / (1 - betas[0] ** t)
        p = (1 - lr * weight_decay) * p - lr * ahead / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        yield p


@rule(
    "rmsprop_tf",
    {},
    {
        "lr": 3e-3,
        "alpha": 0.8,
        "eps": 1e-3,
        "weight_decay": 0.1,
        "momentum": 0.7,
        "centered": True,
        "lr_in_momentum": False,
    },
    {"momentum": 0.9, "decoupled_decay": True, "weight_decay": 0.2},
)
def rmsprop_tf(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    alpha: float = 0.9,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    decoupled_decay: bool = False,
    lr_in_momentum: bool = True,
) -> Iterator[Any]:
    """TensorFlow's RMSPropOptimizer: mean square ms from 1, mom = momentum mom + lr g / sqrt(ms + eps)."""
    square, mean, moved = np.ones_like(p), np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        if decoupled_decay:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        square = alpha * square + (1 - alpha) * g * g
        mean = alpha * mean + (1 - alpha) * g
        spread = square - mean * mean if centered else square
        moved = momentum * moved + (lr if lr_in_momentum else 1) * g / np.sqrt(spread + eps)
        p = p - (moved if lr_in_momentum else lr * moved)
        yield p


@rule(
    "ranger",
    {},
    {
        "lr": 3e-3,
        "alpha": 0.3,
        "k": 4,
        "n_sma_threshold": 6,
        "betas": (0.8, 0.95),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "gc_conv_only": True,
    },
    {"use_gc": False, "betas": (0.9, 0.99)},
)
def ranger(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    alpha: float = 0.5,
    k: int = 6,
    n_sma_threshold: int = 5,
    betas: Any = (0.95, 0.999),
    eps: float = 1e-5,
    weight_decay: float = 0.0,
    use_gc: bool = True,
    gc_conv_only: bool = False,
) -> Iterator[Any]:
    """Liu et al. 2020, arXiv:1908.03265, algorithm 2, in the order of Wright's ranger.py (version 20.4.11)."""
    m, v, slow = np.zeros_like(p), np.zeros_like(p), p
    longest = 2 / (1 - betas[1]) - 1
    for t, g in enumerate(grads, 1):
        if use_gc and g.ndim > (3 if gc_conv_only else 1):
            g = g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        u = m / (1 - betas[0] ** t)
        length = longest - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
        if length > n_sma_threshold:
            r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            u = u * math.sqrt(r) * math.sqrt(1 - betas[1] ** t) / (np.sqrt(v) + eps)
        p = p - lr * weight_decay * p
        p = p - lr * u
        if t % k == 0:
            slow = (1 - alpha) * slow + alpha * p
            p = slow
        yield p


@rule(
    "bert_adam",
    {},
    {"lr": 3e-3, "b1": 0.8, "b2": 0.95, "e": 1e-4, "weight_decay": 0.1, "max_grad_norm": 2.5},
    {"max_grad_norm": 0.0},
)
def bert_adam(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    e: float = 1e-6,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
) -> Iterator[Any]:
    """BertAdam of pytorch-pretrained-bert: clip_grad_norm_ of each tensor, moments without bias correction."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        if max_grad_norm:
            scale = max_grad_norm / (math.sqrt(np.sum(g * g)) + 1e-6)
            g = g * scale if scale < 1 else g
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - lr * weight_decay * p - lr * m / (np.sqrt(v) + e)
        yield p


@rule(
    "grokfast_adamw",
    {},
    {
        "lr": 3e-3,
        "alpha": 0.9,
        "lamb": 5.0,
        "betas": (0.8, 0.95),
        "eps": 1e-5,
        "weight_decay": 0.1,
    },
)
def grokfast_adamw(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    alpha: float = 0.98,
    lamb: float = 2.0,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Iterator[Any]:
    """Lee et al. 2024, arXiv:2405.20233, algorithm 2 (gradfilter_ema), then torch's AdamW."""
    m, v, slow = np.zeros_like(p), np.zeros_like(p), grads[0]
    for t, g in enumerate(grads, 1):
        slow = g + alpha * (slow - g)
        g = g + lamb * slow
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * weight_decay * p - lr * m_hat / (np.sqrt(v_hat) + eps)
        yield p


@rule(
    "svag",
    {},
    {"lr": 0.03, "beta": 0.7},
)
def svag(p: Any, grads: Any, *, lr: float = 1e-2, beta: float = 0.9) -> Iterator[Any]:
    """Balles and Hennig 2018, arXiv:1705.07774, section 4.2, with the moments and guards of the authors' code."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m, v = beta * m + (1 - beta) * g, beta * v + (1 - beta) * g**2
        mean, square = m / (1 - beta**t), v / (1 - beta**t)
        rho = min(0.999, (1 - beta) * (1 + beta**t) / ((1 + beta) * (1 - beta**t)))
        spread = (square - mean**2) / (1 - rho)
        total = np.where(mean == 0, 1.0, mean**2 + spread)
        share = np.where(mean == 0, 0.0, mean**2 / total)
        p = p - lr * np.minimum(np.maximum(share, 0), 1) * g
        yield p


@rule(
    "apollo",
    {},
    {
        "lr": 0.3,
        "beta": 0.8,
        "eps": 1e-2,
        "warmup": 4,
        "init_lr": 0.02,
        "weight_decay": 0.1,
        "rebound": "belief",
        "weight_decay_type": "stable",
    },
    {"warmup": 0, "lr": 0.1, "weight_decay": 0.2, "weight_decay_type": "decoupled"},
    {"warmup": 6, "weight_decay": 0.2},
)
def apollo(
    p: Any,
    grads: Any,
    *,
    lr: float = 1.0,
    beta: float = 0.9,
    eps: float = 1e-4,
    rebound: str = "constant",
    warmup: int = 100,
    init_lr: float = 0.01,
    weight_decay: float = 0.0,
    weight_decay_type: str = "L2",
) -> Iterator[Any]:
    """Ma 2020, arXiv:2009.13586, algorithm 1, with the bounds and decays of the authors' apollo.py."""
    m, curvature, moved = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        rate = lr if t > warmup else init_lr + (t - 1) / warmup * (lr - init_lr)
        if weight_decay_type == "L2":
            g = g + weight_decay * p
        share = (1 - beta) / (1 - beta**t)
        before, m = m, (1 - share) * m + share * g
        surprise = np.max(np.abs(g - before))
        length = float(np.sum(moved**4)) ** 0.25 + eps
        unit = moved / length
        secant = share * np.sum((g - before) / length * unit) + np.sum(curvature * unit**2)
        curvature = curvature - secant * unit**2
        bounded = np.maximum(np.abs(curvature), 1.0)
        if rebound == "belief":
            bounded = np.maximum(np.abs(curvature), surprise) + eps / share
        moved = m / bounded
        if weight_decay_type == "decoupled":
            moved = moved + weight_decay * p
        if weight_decay_type == "stable":
            moved = moved + weight_decay / np.mean(bounded) * p
        p = p - rate * moved
        yield p


@rule(
    "tadam",
    {},
    {"lr": 3e-3, "k_dof": 3.0, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
    {"amsgrad": 0.9, "k_dof": 0.5},
    {"k_dof": None},
)
def tadam(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    k_dof: float | None = 1.0,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: float = 0.0,
) -> Iterator[Any]:
    """Ilboudo et al. 2020, arXiv:2003.00179, algorithm 1; `amsgrad` may decay as in the authors' tadam.py."""
    m, v, largest = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    total = betas[0] / (1 - betas[0])
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * p
        if k_dof is None:
            m = betas[0] * m + (1 - betas[0]) * g
        else:
            nu = k_dof * p.size
            weight = (nu + p.size) / (nu + np.sum((g - m) ** 2 / (v + eps)))
            m = (total * m + weight * g) / (total + weight)
            total = (2 * betas[0] - 1) / betas[0] * total + weight
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(amsgrad * largest, v)
        v_hat = (largest if amsgrad else v) / (1 - betas[1] ** t)
        p = p - lr * m / (1 - betas[0] ** t) / (np.sqrt(v_hat) + eps)
        yield p


@rule("ano", {}, {"lr": 3e-3, "betas": (0.8, 0.9), "weight_decay": 0.1, "eps": 1e-3})
def ano(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-4,
    betas: Any = (0.92, 0.99),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
) -> Iterator[Any]:
    """Kegreisz 2025, arXiv:2508.18258, algorithm 1, with eps where the authors' ano.py has it."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        square = g * g
        v = betas[1] * v + (1 - betas[1]) * np.where(square > v, square, np.where(square < v, -square, 0))
        p = p - lr * weight_decay * p
        p = p - lr * np.sign(m) * np.abs(g) / np.sqrt(v / (1 - betas[1] ** t) + eps)
        yield p


@rule(
    "bcos",
    {},
    {"lr": 0.01, "beta": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.2, "decouple_wd": False},
    {"mode": "g", "lr": 3e-3, "decouple_wd": False},
    {"mode": "m", "beta2": 0.95},
    {"mode": "m"},
)
def bcos(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    beta: float = 0.9,
    beta2: float | None = None,
    eps: float = 1e-6,
    weight_decay: float = 0.1,
    mode: str = "c",
    decouple_wd: bool = True,
) -> Iterator[Any]:
    """Jiang and Xiao 2025, arXiv:2507.08963, algorithms 2 and 3; averages start as in the authors' bcos.py."""
    m, v = grads[0], grads[0] ** 2
    for g in grads:
        if decouple_wd:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        before, m = m, beta * m + (1 - beta) * g
        if mode == "c":
            keep = 2 * beta - beta**2 if beta2 is None else beta2
            d, v = m, keep * before**2 + (1 - keep) * g**2
        else:
            keep = beta if beta2 is None else beta2
            d = g if mode == "g" else m
            v = keep * v + (1 - keep) * d**2
        p = p - lr * d / (np.sqrt(v) + eps)
        yield p


@rule(
    "adams",
    {},
    {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1},
    {"amsgrad": True, "weight_decay": 0.1},
    joint=True,
)
def adams(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    amsgrad: bool = False,
) -> Iterator[Any]:
    """Xie et al. 2020, arXiv:2011.11152, algorithm 4: the mean is over the coordinates of all tensors."""
    m = {k: np.zeros_like(x) for k, x in p.items()}
    v = {k: np.zeros_like(x) for k, x in p.items()}
    used = dict(v)
    for t, g in enumerate(grads, 1):
        m = {k: betas[0] * m[k] + (1 - betas[0]) * g[k] for k in p}
        v = {k: betas[1] * v[k] + (1 - betas[1]) * g[k] ** 2 for k in p}
        used = {k: np.maximum(used[k], v[k]) if amsgrad else v[k] for k in p}
        hats = {k: used[k] / (1 - betas[1] ** t) for k in p}
        mean = np.mean(np.concatenate([x.ravel() for x in hats.values()]))
        for k in p:
            p[k] = p[k] - lr * weight_decay / math.sqrt(mean) * p[k]
            p[k] = p[k] - lr * m[k] / (1 - betas[0] ** t) / (np.sqrt(hats[k]) + eps)
        yield p
