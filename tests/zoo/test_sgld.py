"""The noise of Langevin dynamics: its mean, its variance, and that of the sample it leads to."""

from __future__ import annotations

import torch

import optdsl

SEED = 20261129


def test_noise_without_gradient() -> None:
    """One step from zero: a normal number of variance 2 lr T for each weight, within five standard errors."""
    n, lr, temperature = 40_000, 0.03, 0.7
    p = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))
    optimizer = optdsl.load("sgld")([p], lr=lr, temperature=temperature, seed=SEED)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    z = p.detach() / (2 * lr * temperature) ** 0.5
    assert abs(z.mean()) < 5 / n**0.5, f"seed {SEED}"
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5, f"seed {SEED}"


def test_sample_of_a_quadratic() -> None:
    """Weights under |p|^2 / 2 reach the stationary variance T / (1 - lr / 2) of the discretised dynamics."""
    n, lr, temperature = 20_000, 0.2, 1.5
    p = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))
    optimizer = optdsl.load("sgld")([p], lr=lr, temperature=temperature, seed=SEED)
    for _ in range(60):
        p.grad = p.detach().clone()
        optimizer.step()
    wanted = temperature / (1 - lr / 2)
    assert abs(p.detach().var() / wanted - 1) < 5 * (2 / n) ** 0.5, f"seed {SEED}"
