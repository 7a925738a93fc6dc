"""The Triton kernels, in Triton's interpreter, against ours: random programs, the settings of the shipped specs.

How a number is held against the interpreter's is told in `tests.backends.differential`. OPTDSL_FUZZ multiplies the
number of programs, OPTDSL_SEED moves to others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from optdsl.check import check_path
from optdsl.ir import random as definition
from tests.backends.differential import Shapes, Tally, Way, problem
from tests.backends.interpreted import interpreted, needs_triton
from tests.backends.native import NoKernels, all_kernels, triton_class
from tests.backends.test_native_random import draws
from tests.backends.test_torch_random import held, made
from tests.fuzz import count
from tests.support import FEW_PATHS, needs_compiler

pytestmark = [needs_compiler, needs_triton]
BATCH = 5
#: The interpreter cuts numbers off that it makes bfloat16.
DTYPES = (torch.float32, torch.float64, torch.float16)
FIRST = int(os.environ.get("OPTDSL_SEED", "0")) * 1_000_000
#: Few and small tensors, but one of more than a chunk: the interpreter is slow.
SHAPES: Shapes = (((), (7,), (0,), (3, 4)), ((2, 3, 2), (5, 1), (33, 32)), ((3, 4),))
#: Steps counted by the host, and on the device.
WAYS = (Way("triton", triton_class), Way("triton, counting", triton_class, {"fused": True}))


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    """Runs the kernels in Triton's interpreter."""
    with interpreted():
        yield


@pytest.mark.parametrize("batch", range(-(-count(60) // BATCH)))
def test_random_programs(batch: int) -> None:
    tally, done, seed = Tally(), 0, FIRST + 1000 * batch + 500
    while done < BATCH:
        seed += 1
        program = made(seed)
        try:
            way = WAYS[seed % 2] if all_kernels(triton_class(program)) else WAYS[0]
        except NoKernels:
            continue
        hostile = (0.0, 0.0, 0.2, 0.8)[seed // 4 % 4]
        given = problem(program, np.random.default_rng(seed), DTYPES[seed % 3], 3, hostile, SHAPES)
        tally += held(program, seed, given, [way])
        done += 1
    print(tally, tally.share)
    assert tally.share > 0.97, f"too little was checked: {tally}"


@pytest.mark.parametrize("path", FEW_PATHS, ids=lambda path: path.stem)
def test_shipped_specs(path: Path) -> None:
    """Random settings of every shipped spec, in every type."""
    program = check_path(path).require()
    tally = Tally()
    for seed in (0, 4):
        given = problem(
            program, np.random.default_rng(seed), DTYPES[seed % 3], 3, 0.1 if seed > 2 else 0.0, SHAPES
        )
        tally += held(program, seed, given, [WAYS[seed // 3 if all_kernels(triton_class(program)) else 0]])
    assert tally.share > 0.97, f"too little was checked: {tally}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (7,), (1023,), (3, 1025)])
def test_random_numbers_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    p = [torch.nn.Parameter(torch.zeros(2, dtype=dtype)), torch.nn.Parameter(torch.zeros(shape, dtype=dtype))]
    for x in p:
        x.grad = torch.ones_like(x)
    seed = 2**63 + 12345
    optimizer = triton_class(draws())(p, seed=seed)
    for t in (1, 2, 3):
        optimizer.step()
        state, n = optimizer.state[p[1]], p[1].numel()
        expected = {
            "a": definition.normal(seed, t, 1, 0, n),
            "b": definition.uniform(seed, t, 1, 1, n),
            "c": definition.rademacher(seed, t, 1, 2, n),
            "d": definition.bernoulli(seed, t, 1, 3, n, 0.3),
        }
        for key, want in expected.items():
            got = state[key].double().numpy().reshape(-1)
            np.testing.assert_array_equal(got, want, err_msg=f"{key} in step {t}")
