"""Gradients that are all 0, or very small, in the first steps: nothing becomes nan in float32, whatever the path."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

import optdsl
from tests.backends.interpreted import interpreted, needs_triton
from tests.contract.subjects import inputs
from tests.support import NAMES, needs_compiler

#: Methods that divide by what the first gradients amount to, as their authors' code does; their specs say so.
NAN = {"adai", "dadapt_sgd", "sgd_sai"}
SHAPES = ((4, 5), (3, 2, 2, 2), (7,), ())
SEED = 20261129


def trained(name: str, dtype: torch.dtype, scales: list[float], **options: Any) -> list[torch.Tensor]:
    """Parameters after steps with gradients of these sizes."""
    random = torch.Generator().manual_seed(SEED)
    params = [
        torch.nn.Parameter(0.1 * torch.rand(shape, generator=random).to(dtype) + 0.01) for shape in SHAPES
    ]
    optimizer = optdsl.load(name)(params, **options)
    for number, scale in enumerate(scales):
        for p in params:
            p.grad = scale * torch.randn(p.shape, generator=random).to(dtype)
        optimizer.step(**inputs(optimizer, number))
    return params


@pytest.mark.parametrize("name", NAMES)
def test_zeros_first(name: str) -> None:
    """A gradient of zeros, then one that is not."""
    params = trained(name, torch.float32, [0.0, 1.0], foreach=False)
    assert all(torch.isfinite(p).all() for p in params) == (name not in NAN)


@pytest.mark.parametrize(
    "path",
    [
        "loop",
        "foreach",
        pytest.param("kernels", marks=needs_compiler),
        pytest.param("triton", marks=[needs_compiler, needs_triton]),
    ],
)
@pytest.mark.parametrize("scales", [[0.0, 0.0, 1.0], [1e-15, 1e-12, 1e-18], [1e15, 1.0]], ids=str)
@pytest.mark.parametrize("name", ["adafactor_hf", "adalomo", "came", "adams"])
def test_float32_is_near_float64(name: str, scales: list[float], path: str) -> None:
    """Products of squares of small gradients would be 0 in float32."""
    options: dict[str, Any] = {"weight_decay": 0.1, "lr": 1e-2}
    flags: dict[str, Any] = {"loop": {"foreach": False}, "foreach": {"foreach": True}}.get(path, {})
    with interpreted() if path == "triton" else contextlib.nullcontext():
        measured = trained(name, torch.float32, scales, **options, **flags)
    wanted = trained(name, torch.float64, scales, **options, foreach=False)
    for p, q in zip(measured, wanted, strict=True):
        torch.testing.assert_close(
            p.double(), q, rtol=1e-4, atol=1e-6, msg=lambda text: f"seed {SEED}: {text}"
        )
