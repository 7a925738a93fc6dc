"""How much memory a step takes beside parameters, gradients and states: as the docs say, by two measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import optdsl
from tests.support import COMPILER, most_memory

native = pytest.mark.skipif(COMPILER is None, reason="no C compiler `cc`")
#: Of methods, how many times the bytes of all parameters a step by foreach operations takes.
FOREACH = {"sgd": 1, "lion": 1, "adamw": 1, "lamb": 6}


def ready(cls: Any, shapes: list[tuple[int, ...]], **options: Any) -> tuple[Any, int]:
    """An optimizer that has taken two steps, and the bytes of its parameters."""
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = cls(params, weight_decay=0.1, **options)
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    optimizer.step()
    return optimizer, sum(p.nbytes for p in params)


def resident(call: Callable[[], Any]) -> int:
    """By how many bytes a call makes the memory of this process grow for a time."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")
    except OSError as error:
        pytest.skip(f"the peak of the process cannot be had: {error}")

    def now(name: str) -> int:
        lines = status.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    before = now("VmRSS")
    call()
    return now("VmHWM") - before


@native
@pytest.mark.parametrize("name", FOREACH)
def test_kernels_take_none(name: str) -> None:
    """But for a number, maybe; the tables of the kernels were made in the first step."""
    optimizer, _ = ready(optdsl.load(name), [(64, 512), (1000,), ()])
    assert most_memory(optimizer.step) < 64
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.param_groups[0]["maximize"] = True
    assert most_memory(optimizer.step) < 64


@native
def test_products_of_matrices_take_lists() -> None:
    """Of all matrices at a time."""
    optimizer, size = ready(optdsl.load("muon"), [(128, 128)] * 3)
    assert most_memory(optimizer.step) == pytest.approx(5 * size, rel=0.01)


@pytest.mark.parametrize("name", FOREACH)
def test_foreach_operations_take_lists(name: str) -> None:
    optimizer, size = ready(optdsl.load(name), [(64, 512), (20000,)], foreach=True)
    assert most_memory(optimizer.step) == pytest.approx(FOREACH[name] * size, rel=0.01, abs=1024)


def test_it_is_no_more_than_the_optimizer_of_torch() -> None:
    ours, theirs = (
        ready(cls, [(64, 512), (20000,)], foreach=True)[0]
        for cls in (optdsl.load("adamw"), torch.optim.AdamW)
    )
    assert most_memory(ours.step) <= 1.01 * most_memory(theirs.step)


@native
@pytest.mark.parametrize("store", [None, "q8"])
def test_the_process_does_not_grow(store: str | None) -> None:
    """What the C code itself would take from the system is seen here; one list of foreach operations is."""
    options = {"store": store} if store else {}
    optimizer, size = ready(optdsl.load("adamw"), [(4096, 4096)], **options)
    assert resident(optimizer.step) < 0.05 * size
    optimizer, size = ready(optdsl.load("adamw"), [(4096, 4096)], foreach=True)
    assert resident(optimizer.step) > 0.9 * size
