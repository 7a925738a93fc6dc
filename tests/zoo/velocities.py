"""Methods that step along sums and averages of gradients, without scaling coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import rule


@rule(
    "qhm",
    {},
    {"lr": 0.03, "momentum": 0.9, "nu": 0.6, "weight_decay": 0.1},
    {"weight_decay_type": "direct", "weight_decay": 0.2},
)
def qhm(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.999,
    nu: float = 0.7,
    weight_decay: float = 0.0,
    weight_decay_type: str = "grad",
) -> Iterator[Any]:
    """Ma and Yarats 2019, arXiv:1810.06801, equations 3 and 4."""
    average = np.zeros_like(p)
    for g in grads:
        if weight_decay_type == "direct":
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        average = momentum * average + (1 - momentum) * g
        p = p - lr * (1 - nu) * g - lr * nu * average
        yield p


@rule("aggmo", {}, {"lr": 3e-3, "betas": (0.3, 0.8, 0.95), "weight_decay": 0.1})
def aggmo(
    p: Any, grads: Any, *, lr: float = 1e-3, betas: Any = (0.0, 0.9, 0.99), weight_decay: float = 0.0
) -> Iterator[Any]:
    """Lucas et al. 2019, arXiv:1804.00325, equation 2."""
    velocities = [np.zeros_like(p) for _ in betas]
    for g in grads:
        g = g + weight_decay * p
        velocities = [beta * v - g for beta, v in zip(betas, velocities, strict=True)]
        p = p + lr * sum(velocities) / len(betas)
        yield p


@rule(
    "pid",
    {},
    {
        "lr": 3e-4,
        "momentum": 0.9,
        "dampening": 0.2,
        "weight_decay": 0.1,
        "integral": 3.0,
        "derivative": 7.0,
    },
    {"momentum": 0.5, "keep_first": True},
)
def pid(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    integral: float = 5.0,
    derivative: float = 10.0,
    keep_first: bool = False,
) -> Iterator[Any]:
    """An et al. 2018, as the authors' pid.py: no change in step 1, and the first gradient is not remembered."""
    total = change = before = None
    for g in grads:
        g = g + weight_decay * p
        step = g
        if momentum:
            if total is None:
                total, change = g, np.zeros_like(g)
                before = g if keep_first else np.zeros_like(g)
            else:
                total = momentum * total + (1 - dampening) * g
                change = momentum * change + (1 - momentum) * (g - before)
                before = g
            step = g + integral * total + derivative * change
        p = p - lr * step
        yield p


@rule(
    "madgrad",
    {},
    {"lr": 0.03, "momentum": 0.7, "weight_decay": 0.1, "eps": 1e-3},
    {"momentum": 0.0},
    {"decouple_decay": True, "weight_decay": 0.2},
    {"eps": 0.0, "lr": 0.03},
)
def madgrad(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    decouple_decay: bool = False,
) -> Iterator[Any]:
    """Defazio and Jelassi 2022, arXiv:2101.11075, algorithm 1; eps and decay as in the authors' package."""
    start, total, squares = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for k, g in enumerate(grads):
        old = p
        if not decouple_decay:
            g = g + weight_decay * p
        weight = (lr + eps) * math.sqrt(k + 1)
        total = total + weight * g
        squares = squares + weight * g * g
        root = np.cbrt(squares) + eps
        z = start - np.divide(total, root, out=np.zeros_like(p), where=root != 0)
        p = momentum * p + (1 - momentum) * z
        if decouple_decay:
            p = p - (lr + eps) * weight_decay * old
        yield p


@rule(
    "mirror_madgrad",
    {},
    {"lr": 0.03, "momentum": 0.7, "weight_decay": 0.1, "eps": 1e-3},
    {"decouple_decay": True, "weight_decay": 0.2},
)
def mirror_madgrad(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 0.0,
    decouple_decay: bool = False,
) -> Iterator[Any]:
    """The authors' mirror_madgrad.py, with the sum of squares written out instead of rescaled."""
    z = p.copy()
    squares = np.zeros_like(p)
    for k, g in enumerate(grads, 1):
        if decouple_decay:
            z = z - (lr + eps) * weight_decay * z
        else:
            g = g + weight_decay * p
        squares = squares + math.sqrt(k) * g * g
        root = np.cbrt(squares / math.sqrt(k)) + eps
        z = z - (lr + eps) * np.cbrt(k) * np.divide(g, root, out=np.zeros_like(p), where=root != 0)
        p = momentum * p + (1 - momentum) * z
        yield p


@rule(
    "pnm",
    {},
    {"lr": 0.03, "betas": (0.8, 0.7), "weight_decay": 0.1},
    {"decoupled": False, "weight_decay": 0.2},
)
def pnm(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    betas: Any = (0.9, 1.0),
    weight_decay: float = 0.0,
    decoupled: bool = True,
) -> Iterator[Any]:
    """Xie et al. 2021, arXiv:2103.17182, algorithm 2: the two momenta change places after each step."""
    newer, older = np.zeros_like(p), np.zeros_like(p)
    keep = betas[0] ** 2
    for g in grads:
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        newer = keep * newer + (1 - keep) * g
        p = p - lr * ((1 + betas[1]) * newer - betas[1] * older) / math.hypot(1 + betas[1], betas[1])
        newer, older = older, newer
        yield p


def after_momentum(buffer: Any, g: Any, momentum: float, dampening: float, nesterov: bool) -> tuple[Any, Any]:
    """The buffer and the direction of SGD as in torch; there is no buffer before the first step."""
    if momentum == 0:
        return buffer, g
    buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
    return buffer, (g + momentum * buffer if nesterov else buffer)


@rule(
    "sgdw",
    {},
    {"lr": 0.03, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2},
)
def sgdw(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Iterator[Any]:
    """Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 1, with torch's momentum."""
    buffer = None
    for g in grads:
        buffer, d = after_momentum(buffer, g, momentum, dampening, nesterov)
        p = p - lr * weight_decay * p - lr * d
        yield p


@rule(
    "accsgd",
    {},
    {"lr": 3e-3, "kappa": 50.0, "xi": 4.0, "small_const": 0.5, "weight_decay": 0.1},
)
def accsgd(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    kappa: float = 1000.0,
    xi: float = 10.0,
    small_const: float = 0.7,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Kidambi et al. 2018, arXiv:1803.05591, algorithm 3."""
    average = p
    alpha = 1 - small_const**2 * xi / kappa
    for g in grads:
        g = g + weight_decay * p
        average = alpha * average + (1 - alpha) * (p - kappa * lr / small_const * g)
        p = (
            small_const / (small_const + 1 - alpha) * (p - lr * g)
            + (1 - alpha) / (small_const + 1 - alpha) * average
        )
        yield p


@rule("heavy_ball", {}, {"lr": 0.03, "momentum": 0.7, "weight_decay": 0.1})
def heavy_ball(
    p: Any, grads: Any, *, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
) -> Iterator[Any]:
    """Polyak 1964, equation 9: the displacement is kept, not the point before."""
    moved = np.zeros_like(p)
    for g in grads:
        moved = momentum * moved - lr * g - lr * weight_decay * p
        p = p + moved
        yield p


@rule(
    "nag",
    {},
    {"lr": 0.03, "momentum": 0.7, "weight_decay": 0.1},
    {"lr": 0.03, "schedule": True},
)
def nag(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    schedule: bool = False,
    weight_decay: float = 0.0,
) -> Iterator[Any]:
    """Nesterov 1983: points x, extrapolated points y; the constant form is torch's nesterov with a velocity."""
    x, y = p, p
    for k, g in enumerate(grads):
        before, x = x, y - lr * (g + weight_decay * y)
        beta = k / (k + 3) if schedule else momentum
        y = (1 + beta) * x - beta * before
        yield y


@rule("gravity", {"alpha": 0.0}, {"lr": 0.03, "alpha": 0.0, "beta": 0.7})
def gravity(p: Any, grads: Any, *, lr: float = 0.1, alpha: float = 0.01, beta: float = 0.9) -> Iterator[Any]:
    """Bahrami and Pouriyan Zadeh 2021, arXiv:2101.09192, algorithm 1, without the noise it starts with."""
    assert alpha == 0
    v = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        weight = (1 + beta * t) / (2 + t)
        largest = np.max(np.abs(g))
        zeta = g / (1 + g**2 * largest**2)
        v = weight * v + (1 - weight) * zeta
        p = p - lr * v
        yield p


@rule(
    "nsgd",
    {},
    {"lr": 0.1, "momentum": 0.7},
    {"momentum": 0.0, "per_tensor": True},
    joint=True,
)
def nsgd(
    p: Any, grads: Any, *, lr: float = 1e-2, momentum: float = 0.9, per_tensor: bool = False
) -> Iterator[Any]:
    """Cutkosky and Mehta 2020, arXiv:2002.03305, equations 1 and 2; nothing moves along a zero average."""
    m = {k: np.zeros_like(x) for k, x in p.items()}
    for g in grads:
        m = {k: momentum * m[k] + (1 - momentum) * g[k] for k in p}
        lengths = {k: math.sqrt(np.sum(x * x)) for k, x in m.items()}
        if not per_tensor:
            lengths = dict.fromkeys(p, math.hypot(*lengths.values()))
        p = {k: x - lr * m[k] / lengths[k] if lengths[k] > 0 else x for k, x in p.items()}
        yield p


def joint_norm(g: Any) -> float:
    """The 2-norm of all tensors together."""
    return math.sqrt(sum(float(np.sum(x * x)) for x in g.values()))


@rule(
    "clipped_sgd",
    {},
    {"lr": 0.03, "max_norm": 2.5, "momentum": 0.8, "dampening": 0.2, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    joint=True,
)
def clipped_sgd(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    max_norm: float = 1.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Iterator[Any]:
    """torch's clip_grad_norm_ over all tensors, then its SGD."""
    buffers: dict[str, Any] = dict.fromkeys(p)
    for g in grads:
        scale = min(1.0, max_norm / (joint_norm(g) + 1e-6))
        for k in p:
            d = scale * g[k] + weight_decay * p[k]
            buffers[k], d = after_momentum(buffers[k], d, momentum, dampening, nesterov)
            p[k] = p[k] - lr * d
        yield p


@rule(
    "lomo",
    {},
    {"lr": 0.03, "clip_grad_norm": 2.5, "clip_grad_value": 0.6},
    {"clip_grad_value": 0.5},
    joint=True,
)
def lomo(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
) -> Iterator[Any]:
    """Lv et al. 2023, arXiv:2306.09782, as lomo.py: the norm is that of the gradients before either clip."""
    for g in grads:
        norm = joint_norm(g)
        for k in p:
            d = g[k]
            if clip_grad_value is not None:
                d = np.minimum(np.maximum(d, -clip_grad_value), clip_grad_value)
            if clip_grad_norm is not None:
                d = d * min(1.0, clip_grad_norm / (norm + 1e-6))
            p[k] = p[k] - lr * d
        yield p


@rule("sgld", {"temperature": 0.0}, {"lr": 0.03, "temperature": 0.0, "weight_decay": 0.1})
def sgld(
    p: Any, grads: Any, *, lr: float = 1e-3, temperature: float = 1.0, weight_decay: float = 0.0
) -> Iterator[Any]:
    """Welling and Teh 2011, equation 4 without its noise, which tests/zoo/test_sgld.py looks at."""
    assert temperature == 0
    for g in grads:
        p = p - lr * g - lr * weight_decay * p
        yield p


@rule(
    "rprop_plus",
    {},
    {"lr": 0.03, "etas": (0.6, 1.3), "step_sizes": (0.01, 0.05)},
)
def rprop_plus(
    p: Any, grads: Any, *, lr: float = 1e-2, etas: Any = (0.5, 1.2), step_sizes: Any = (1e-6, 50.0)
) -> Iterator[Any]:
    """Igel and Huesken 2003, algorithm 1, weight by weight."""
    size, moved, before = np.full_like(p, lr), np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        p, before = p.copy(), before.copy()
        for i in np.ndindex(p.shape):
            agreement = before[i] * g[i]
            if agreement < 0:
                size[i] = max(size[i] * etas[0], step_sizes[0])
                moved[i] = -moved[i]
                before[i] = 0
            else:
                if agreement > 0:
                    size[i] = size[i] * etas[1]
                size[i] = min(max(size[i], step_sizes[0]), step_sizes[1])
                moved[i] = -np.sign(g[i]) * size[i]
                before[i] = g[i]
            p[i] += moved[i]
        yield p


@rule(
    "sgds",
    {},
    {"lr": 0.03, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2},
)
def sgds(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Iterator[Any]:
    """Xie et al. 2020, arXiv:2011.11152, algorithm 2: decay as strong as the steps that momentum adds up to."""
    buffer = None
    for g in grads:
        buffer, d = after_momentum(buffer, g, momentum, dampening, nesterov)
        p = p - lr * (1 - dampening) / (1 - momentum) * weight_decay * p - lr * d
        yield p


@rule(
    "sgd_sai",
    {},
    {"lr": 0.03, "momentum": 0.7, "eps": 0.1, "weight_decay": 0.1},
    joint=True,
)
def sgd_sai(
    p: Any,
    grads: Any,
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Iterator[Any]:
    """Xu et al. 2024, arXiv:2412.11768, algorithm 1, with ratios as in the authors' sgd_sai.py 1.0.4."""
    ratios = {}
    for k, g in grads[0].items():
        spread = np.std(g, ddof=1) if g.size > 1 else 0.0
        ratios[k] = math.sqrt(np.sum(g * g)) / (spread + eps)
    m = dict(grads[0])
    for t, g in enumerate(grads, 1):
        for k in p:
            m[k] = m[k] if t == 1 else momentum * m[k] + (1 - momentum) * g[k]
            p[k] = p[k] - lr * weight_decay * p[k] - lr * ratios[k] / max(ratios.values()) * m[k]
        yield p


@rule(
    "a2grad",
    {},
    {"beta": 3.0, "lips": 5.0},
    {"variant": "inc", "beta": 0.5},
    {"variant": "exp", "rho": 0.3, "beta": 2.0, "lips": 4.0},
)
def a2grad(
    p: Any,
    grads: Any,
    *,
    beta: float = 10.0,
    lips: float = 10.0,
    rho: float = 0.5,
    variant: str = "uni",
) -> Iterator[Any]:
    """Deng et al. 2018, arXiv:1810.00553, algorithm 2 and equations 23 to 25, as the authors' optimizers.py."""
    x, alpha = p, 1.0
    v = average = 0.0
    for k, g in enumerate(grads):
        delta = g - np.mean(grads[: k + 1], axis=0)
        squared = float(np.sum(delta * delta))
        if variant == "uni":
            v = v + squared
        elif variant == "inc":
            v = (k / (k + 1)) ** 2 * v + squared
        else:
            average = rho * average + (1 - rho) * squared if k else squared
            v = max(v, average)
        h = math.sqrt(v * (k + 1)) if variant == "exp" else math.sqrt(v)
        step = g / (2 * lips / (k + 1) + beta * h)
        x = x - step
        new = 2 / (k + 3)
        p = (1 - new) * (p - alpha * step) + new * x
        alpha = new
        yield p
