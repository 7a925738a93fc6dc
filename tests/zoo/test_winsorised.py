"""What the language reference says of winsorised gradients, against the definition entry by entry."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import optdsl

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
