"""Bytes that kernels move, counted while they run, against the account of their plan."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from optdsl import driver
from optdsl.analysis.phases import Planner
from optdsl.analysis.setting import Setting
from optdsl.check import check_path
from optdsl.runtime.native import build
from tests.support import PICKED

#: Loads and stores as in kernel.h, which also count their bytes.
COUNTING = """
__attribute__((visibility("default"))) long long counted[2];
#define LOAD(type, x) (counted[0] += sizeof(type), CAT(load_, type)(x))
#define STORE(type, x) (counted[1] += sizeof(type), CAT(store_, type)(x))
"""
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
#: More than one chunk; a vector; a filter bank; few numbers.
SHAPES = ((130, 257), (33,), (3, 2, 2, 2), (7, 1), (1, 1))

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in PICKED),
    ("adamw", {"amsgrad": True}),
    ("adabelief", {"amsgrad": True, "rectify": False}),
    ("adabelief", {"degenerated_to_sgd": False, "weight_decouple": False}),
    ("adagradnorm", {"momentum": 0.9}),
    ("adagradnorm", {"b0": 1.0}),
    ("asgd", {"t0": 1.0}),
    ("diffgrad", {"reused_gradient": True}),
    ("lamb", {"max_grad_norm": float("inf")}),
    ("lamb", {"weight_decay": 0.0}),
    ("lars", {"weight_decay": 0.1, "momentum": 0.9}),
    ("lars", {"eta": 1e-3}),
    ("orthograd", {"momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"centered": True, "momentum": 0.9}),
    ("sgd", {"momentum": 0.9}),
]


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Kernels are built with counting loads and stores; the fixture gives what was counted since it was asked."""
    header = tmp_path / "counting.h"
    header.write_text(COUNTING)
    run = build.driver()
    plain = [flag for flag in build._FLAGS if not flag.startswith(("-O", "-ftree"))]
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_FLAGS", (*plain, "-O0", "-include", str(header)))
    monkeypatch.setattr(build, "_variants", lambda text: [[]])
    loaded: dict[str, Any] = {"driver": run}
    monkeypatch.setattr(build, "_LOADED", loaded)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def counted() -> tuple[int, int]:
        """Bytes loaded and stored since the last call."""
        loads = stores = 0
        for name, library in loaded.items():
            if name != "driver":
                cells = (ctypes.c_longlong * 2).in_dll(library._library, "counted")
                loads, stores = loads + cells[0], stores + cells[1]
                cells[0] = cells[1] = 0
        return loads, stores

    yield counted
    torch.set_num_threads(threads)


def stepped(
    name: str, options: dict[str, Any], dtype: str, counters: Any, shapes: Any, overwrite: bool = False
) -> None:
    """Makes some steps, and compares the bytes of each with the accounts of the plans."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, dtype=DTYPES[dtype])) for shape in shapes]
    made = driver.load(name)(params, **options, fused=True, overwrite_grad=overwrite)  # type: ignore[call-arg]
    program = driver.simplify(check_path(driver.locate(name)).require())
    planner = Planner(program)
    phases = {
        shape: planner.phases(Setting(options, shape, dtype, overwrite_grad=overwrite)).phases
        for shape in shapes
    }
    for step in range(1, 8):
        for p in params:
            p.grad = torch.randn_like(p)
        made.step()
        loads = stores = 0
        for p in params:
            (phase,) = (
                phase
                for phase in phases[tuple(p.shape)]
                if any(first <= step and (last is None or step <= last) for first, last in phase.ranges)
            )
            loads += p.numel() * sum(sweep.bytes_loaded for sweep in phase.account.sweeps)
            stores += p.numel() * sum(sweep.bytes_stored for sweep in phase.account.sweeps)
            assert loads + stores >= p.numel() * phase.account.moved
        assert counters() == (loads, stores), f"step {step}"


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_step_touches_the_bytes_of_its_plan(name: str, options: dict[str, Any], counters: Any) -> None:
    stepped(name, options, "f32", counters, SHAPES)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f64"])
@pytest.mark.parametrize("name", ["adamw", "adagradnorm", "lamb", "orthograd"])
def test_in_other_types(name: str, dtype: str, counters: Any) -> None:
    stepped(name, {}, dtype, counters, SHAPES)


@pytest.mark.parametrize("name", ["lamb", "orthograd", "adamw"])
def test_with_a_gradient_that_may_be_overwritten(name: str, counters: Any) -> None:
    stepped(name, {}, "f32", counters, SHAPES, overwrite=True)
    stepped(name, {}, "bf16", counters, SHAPES[:2], overwrite=True)
