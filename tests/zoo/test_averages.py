"""What `eval()` puts into the parameters, against the same averages in numpy, and the way back."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from tests.backends.interpreted import interpreted, needs_triton
from tests.support import needs_compiler
from tests.zoo.rules import STEPS, problem
from tests.zoo.test_rules import FLAGS, SEED

Path = list[np.ndarray]


def ema(path: Path, *, decay: float = 0.999, bias_correction: bool = False, warm_up: bool = False) -> Path:
    """torch's get_ema_avg_fn, which starts as a copy, or sums with weights that add up to 1."""
    found, weights = [], np.zeros(0)
    for n in range(1, len(path) + 1):
        keep = min(decay, (1 + n) / (10 + n)) if warm_up else decay
        first = n == 1 and not bias_correction
        weights = np.append(weights * keep, 1 if first else 1 - keep)
        found.append(sum(w * p for w, p in zip(weights / weights.sum(), path, strict=False)))
    return found


def swa(path: Path, *, swa_start: int = 10, swa_freq: int = 5) -> Path:
    """The plain mean of what was collected, and the parameters before there is anything."""
    found, kept = [], []
    for n, p in enumerate(path, 1):
        if n > swa_start and n % swa_freq == 0:
            kept.append(p)
        found.append(np.mean(kept, axis=0) if kept else p)
    return found


def polyak(path: Path, *, start: int = 0, gamma: float = 0.0) -> Path:
    """Shamir and Zhang 2013, section 4: weight (1 + gamma) / (n + gamma) for the n-th."""
    found = []
    for n, p in enumerate(path, 1 - start):
        share = (1 + gamma) / (n + gamma) if n > 1 else 1.0
        found.append(p if n < 2 else (1 - share) * found[-1] + share * p)
    return found


CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("ema_adamw", ema, {}),
    ("ema_adamw", ema, {"decay": 0.7, "warm_up": True}),
    ("ema_adamw", ema, {"decay": 0.7, "bias_correction": True}),
    ("ema_adamw", ema, {"bias_correction": True, "warm_up": True}),
    ("swa_sgd", swa, {}),
    ("swa_sgd", swa, {"swa_start": 4, "swa_freq": 3}),
    ("polyak_sgd", polyak, {}),
    ("polyak_sgd", polyak, {"start": 3, "gamma": 2.5}),
]


@pytest.mark.parametrize(
    "path",
    [
        "loop",
        "foreach",
        pytest.param("kernels", marks=needs_compiler),
        pytest.param("triton", marks=[needs_compiler, needs_triton]),
    ],
)
@pytest.mark.parametrize(("spec", "average", "setting"), CASES)
def test_average(spec: str, average: Any, setting: dict[str, Any], path: str) -> None:
    """After every step; `train()` restores every bit."""
    given = problem(SEED)
    params = {name: torch.nn.Parameter(torch.from_numpy(x.copy())) for name, x in given.start.items()}
    train: dict[str, Path] = {name: [] for name in params}
    measured: dict[str, Path] = {name: [] for name in params}
    with interpreted() if path == "triton" else contextlib.nullcontext():
        optimizer = optdsl.load(spec)(list(params.values()), lr=0.01, **setting, **FLAGS[path])
        for g in given.grads:
            for name, p in params.items():
                p.grad = torch.from_numpy(g[name].copy())
            optimizer.step()
            now = {name: p.detach().clone() for name, p in params.items()}
            optimizer.eval()
            for name, p in params.items():
                train[name].append(now[name].numpy())
                measured[name].append(p.detach().numpy().copy())
            optimizer.train()
            assert all(torch.equal(now[name], p) for name, p in params.items())
    for name in params:
        for step, (mine, theirs) in enumerate(
            zip(measured[name], average(train[name], **setting), strict=True), 1
        ):
            error = np.max(np.abs(mine - theirs) / np.maximum(1, np.abs(theirs)))
            assert error <= 1e-10, f"seed {SEED}, step {step} of {STEPS}, {name}: off by {error:.3g}"
