"""Methods that lower the variance of gradients, by transport, second gradients, Hessian products or medians."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.zoo.rules import Arrays, rule


def joint_norm(tensors: Arrays) -> float:
    """The 2-norm of all together."""
    return float(np.linalg.norm(np.concatenate([np.ravel(x) for x in tensors.values()])))


@rule("npg_igt", {}, {"lr": 0.7, "power": 0.5}, joint=True)
def npg_igt(start: Arrays, grads: Any, *, lr: float = 0.1, power: float = 0.8) -> Iterator[Arrays]:
    """Fatkhullin et al. 2023, algorithm 1, t from 0: yields the point at which the next gradient is wanted."""

    def eta(t: int) -> float:
        return (2 / (t + 2)) ** power

    x = start
    d = {name: np.zeros_like(p) for name, p in x.items()}
    for t, g in enumerate(grads):
        d = {name: (1 - eta(t)) * d[name] + eta(t) * g[name] for name in d}
        length = joint_norm(d)
        new = {name: x[name] - 2 * lr / (t + 2) * d[name] / length for name in x}
        ahead = (1 - eta(t + 1)) / eta(t + 1)
        yield {name: new[name] + ahead * (new[name] - x[name]) for name in x}
        x = new


@rule("nigt", {}, {"lr": 0.1, "momentum": 0.6}, joint=True)
def nigt(start: Arrays, grads: Any, *, lr: float = 1e-3, momentum: float = 0.9) -> Iterator[Arrays]:
    """Cutkosky and Mehta 2020, algorithm 2: yields the point at which the next gradient is wanted."""
    w, m = start, dict(grads[0])
    for number, g in enumerate(grads):
        if number:
            m = {name: momentum * m[name] + (1 - momentum) * g[name] for name in m}
        length = joint_norm(m)
        new = {name: w[name] - lr * m[name] / length for name in w}
        yield {name: new[name] + momentum / (1 - momentum) * (new[name] - w[name]) for name in w}
        w = new


@rule("harpg", {}, {"lr": 0.7, "normalize": True}, joint=True, inputs=("hv",))
def harpg(
    start: Arrays, grads: Any, *, hv: Any, lr: float = 0.1, normalize: bool = False
) -> Iterator[Arrays]:
    """Fatkhullin et al. 2023, algorithm 2, t from 0."""
    x = start
    d = {name: np.zeros_like(p) for name, p in x.items()}
    for t, (g, v) in enumerate(zip(grads, hv, strict=True)):
        eta = 2 / (t + 2)
        d = {name: (1 - eta) * (d[name] + v[name]) + eta * g[name] for name in d}
        rate = lr * eta / joint_norm(d) if normalize else lr * eta**0.5
        x = {name: x[name] - rate * d[name] for name in x}
        yield x


@rule("storm", {}, {"k": 0.5, "w": 2.0, "c": 3.0}, joint=True, inputs=("g2",))
def storm(
    start: Arrays, grads: Any, *, g2: Any, k: float = 0.1, w: float = 0.1, c: float = 100.0
) -> Iterator[Arrays]:
    """Cutkosky and Orabona 2019, algorithm 1; a is at most 1."""
    x, norms = start, [joint_norm(g) for g in grads]
    d = dict(grads[0])
    for t, g in enumerate(grads):
        if t > 0:
            before = k / (w + sum(n**2 for n in norms[:t])) ** (1 / 3)
            a = min(1.0, c * before**2)
            d = {name: g[name] + (1 - a) * (d[name] - g2[t][name]) for name in d}
        eta = k / (w + sum(n**2 for n in norms[: t + 1])) ** (1 / 3)
        x = {name: x[name] - eta * d[name] for name in x}
        yield x


@rule("storm_google", {}, {"lr": 0.5, "g_max": 0.3, "momentum": 3.0, "eta": 2.0}, inputs=("g2",))
def storm_google(
    p: Any,
    grads: Any,
    *,
    g2: Any,
    lr: float = 1.0,
    g_max: float = 0.01,
    momentum: float = 100.0,
    eta: float = 10.0,
) -> Iterator[Any]:
    """google-research storm_optimizer.py; the first previous point is the first point."""
    squares, estimate, largest = np.full_like(p, g_max**3), np.zeros_like(p), g_max
    for t, g in enumerate(grads):
        largest = max(largest, float(np.linalg.norm(np.ravel(g))))
        squares = squares + np.abs(g) ** 2
        rate = lr * (eta + squares) ** (-1 / 3)
        beta = np.minimum(1.0, momentum * rate**2)
        estimate = g + (1 - beta) * (estimate - (g if t == 0 else g2[t]))
        estimate = np.minimum(np.maximum(estimate, -largest), largest)
        p = p - rate * estimate
        yield p


@rule("rm3", {}, {"lr": 0.1, "weight_decay": 0.2})
def rm3(p: Any, grads: Any, *, lr: float = 1e-2, weight_decay: float = 0.0) -> Iterator[Any]:
    """Zielinski et al. 2020, section 2: the median of the last three gradients, when there are three."""
    for t in range(len(grads)):
        if t >= 2:
            p = p - lr * (np.median(grads[t - 2 : t + 1], axis=0) + weight_decay * p)
        yield p


@rule("storm_plus", {}, {"lr": 0.3}, joint=True, inputs=("g2",))
def storm_plus(start: Arrays, grads: Any, *, g2: Any, lr: float = 1.0) -> Iterator[Arrays]:
    """Levy, Kavis and Cevher 2021, algorithm 1 with equations 7 and 8."""
    x, d = start, dict(grads[0])
    squares = [joint_norm(g) ** 2 for g in grads]
    parts: list[float] = []
    for t, g in enumerate(grads):
        a_now, a_next = ((1 + sum(squares[:n])) ** (-2 / 3) for n in (t, t + 1))
        if t > 0:
            d = {name: g[name] + (1 - a_now) * (d[name] - g2[t][name]) for name in d}
        parts.append(joint_norm(d) ** 2 / a_next)
        x = {name: x[name] - lr * sum(parts) ** (-1 / 3) * d[name] for name in x}
        yield x
