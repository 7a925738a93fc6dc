"""Winsorised gradients, of any number of samples as the language reference says, and of eight by a transform.

Both against the definition, entry by entry.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from tests.support import needs_compiler

DOCS = Path(__file__).resolve().parents[2] / "docs" / "language.md"
SEED = 20261129


def winsorised(samples: np.ndarray, c: float) -> np.ndarray:
    """Each entry clipped to the percentiles of its nearest ranks, and summed over the samples."""
    n, found = len(samples), np.zeros(samples.shape[1:])
    for place in np.ndindex(found.shape):
        values = samples[(slice(None), *place)]
        ranked = sorted(values)
        low, high = ranked[round(c * (n - 1))], ranked[round((1 - c) * (n - 1))]
        found[place] = sum(min(max(x, low), high) for x in values)
    return found


@pytest.mark.parametrize("c", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("shape", [(), (4,), (3, 2)])
def test_the_lines_of_the_reference(c: float, shape: tuple[int, ...]) -> None:
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "clamp" in block
    )
    given = np.random.default_rng(SEED).standard_normal((8, *shape))
    p = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    exec(code, {"torch": torch, "samples": torch.from_numpy(given), "p": p, "c": c})
    optdsl.load("sgd")([p], lr=1.0).step()
    np.testing.assert_allclose(-p.detach().numpy(), winsorised(given, c), rtol=1e-12, err_msg=f"seed {SEED}")
    if c == 0.0:
        np.testing.assert_allclose(-p.detach().numpy(), given.sum(0), rtol=1e-12)


@pytest.mark.parametrize(
    "flags",
    [{"foreach": False}, {"foreach": True}, pytest.param({"fused": True}, marks=needs_compiler)],
    ids=str,
)
@pytest.mark.parametrize("c", [0.0, 0.1, 0.2, 0.3, 0.5])
def test_the_transform(c: float, flags: dict[str, Any]) -> None:
    """Around AdamW as well as around SGD; some gradients are equal, some of either sign of 0, one is infinite."""
    random = np.random.default_rng(SEED)
    start = random.standard_normal((5, 7))
    for cls in (optdsl.load("winsorised_sgd"), optdsl.load("adamw", with_="winsorise")):
        plain = optdsl.load("sgd" if "SGD" in cls.__name__ else "adamw")
        p, q = (torch.nn.Parameter(torch.from_numpy(start.copy())) for _ in "pq")
        ours = cls([p], lr=0.1, weight_decay=0.1, c=c, **flags)
        theirs = plain([q], lr=0.1, weight_decay=0.1, foreach=False)
        for _ in range(3):
            samples = np.round(8 * random.standard_normal((8, 5, 7))) / 8  # their sums are exact in any order
            samples[random.random(samples.shape) < 0.1] = -0.0
            samples[3, 0, 0] = np.inf if c > 0.1 else 7.0
            p.grad = torch.full_like(p, 3.0)
            ours.step(inputs={f"s{n}": [torch.from_numpy(x.copy())] for n, x in enumerate(samples, 1)})
            q.grad = torch.from_numpy(winsorised(samples, c))
            theirs.step()
            np.testing.assert_allclose(
                p.detach().numpy(), q.detach().numpy(), rtol=1e-12, err_msg=f"seed {SEED}"
            )
