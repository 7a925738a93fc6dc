"""The native kernels against the interpreter: random programs, the settings of the shipped specs, random numbers.

How a number is held against the interpreter's is told in `tests.backends.differential`. OPTDSL_FUZZ multiplies the
number of programs, OPTDSL_SEED moves to others.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from optdsl.check import check_path, check_text
from optdsl.ir import random as definition
from optdsl.ir.program import Program
from tests.backends.differential import Tally, Way, problem
from tests.backends.native import NoKernels, all_kernels, native_class
from tests.backends.test_torch_random import held, made
from tests.fuzz import count
from tests.support import FEW_PATHS, PICKED, SHIPPED

BATCH = 25
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FIRST = int(os.environ.get("OPTDSL_SEED", "0")) * 1_000_000


def native(program: Program, threads: int) -> Way:
    """Kernels on this many threads, wherever there are some."""
    flags = {"fused": True} if all_kernels(native_class(program)) else {}
    return Way(f"native, {threads} threads", native_class, flags, threads=threads)


def why_not(program: Program) -> str | None:
    """None, or why there are no kernels for a program."""
    try:
        native_class(program)
    except NoKernels as reason:
        return str(reason)
    return None


BETWEEN = (
    "tensors meet between its matrix products",
    "tensors meet beside its matrix products",
    "random numbers are drawn between its matrix products",
    "it ranks values that are not per element",
)
TOO_MANY = "its options and branches multiply to too many kernels"


@pytest.mark.parametrize("batch", range(-(-count(500) // BATCH)))
def test_random_programs(batch: int) -> None:
    """Each batch takes programs until BATCH of them have kernels; those without say why."""
    tally, done, seed = Tally(), 0, FIRST + 1000 * batch
    while done < BATCH:
        seed += 1
        program = made(seed)
        reason = why_not(program)
        if reason is not None:
            assert reason in (*BETWEEN, TOO_MANY), seed
            continue
        hostile = (0.0, 0.0, 0.2, 0.8)[seed // 4 % 4]
        given = problem(program, np.random.default_rng(seed), DTYPES[seed % 4], 3, hostile)
        tally += held(program, seed, given, [native(program, 1 + seed % 3)])
        done += 1
    print(tally, tally.share)
    assert tally.share > 0.97, f"too little was checked: {tally}"


@pytest.mark.parametrize("path", FEW_PATHS, ids=lambda path: path.stem)
def test_shipped_specs(path: Path) -> None:
    """Random settings of every shipped spec, in every type."""
    program = check_path(path).require()
    tally = Tally()
    for seed in range(6):
        dtype = DTYPES[seed % 4]
        given = problem(program, np.random.default_rng(seed), dtype, 4, 0.1 if seed > 2 else 0.0)
        tally += held(program, seed, given, [native(program, 1 + seed % 3)])
    assert tally.share > 0.97, f"too little was checked: {tally}"


def test_kernels_for_every_shipped_spec() -> None:
    for path in SHIPPED:
        if path.stem in PICKED:
            native_class(check_path(path).require())


DRAWS = """
optimizer Draws:
    state:
        a = 0
        b = 0
        c = 0
        d = 0
    step:
        a = normal(stream=0)
        b = uniform(stream=1)
        c = rademacher(stream=2)
        d = bernoulli(0.3, stream=3)
        p = p - 0 * g
"""


def draws() -> Program:
    """Four states that are drawn anew in every step."""
    return check_text(DRAWS).require()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (1023,), (3, 1025), (65537,)])
def test_random_numbers_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    p = [torch.nn.Parameter(torch.zeros(2, dtype=dtype)), torch.nn.Parameter(torch.zeros(shape, dtype=dtype))]
    for x in p:
        x.grad = torch.ones_like(x)
    seed = 2**63 + 12345
    optimizer = native_class(draws())(p, seed=seed, fused=True)
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
            np.testing.assert_array_equal(
                state[key].double().numpy().reshape(-1), want, err_msg=f"{key} in step {t}"
            )
