"""The torch backend against the interpreter: random programs, and every setting of the shipped specs.

How a number is held against the interpreter's, and how wide a tolerance may be, is told in
`tests.backends.differential`. OPTDSL_FUZZ multiplies the number of programs.
"""

from __future__ import annotations

import math
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from optdsl.check import check_path
from optdsl.ir.program import Program
from optdsl.ir.text import show
from optdsl.search.generate import TAME, WILD, random_program
from tests.backends.differential import FOREACH, LOOP, Tally, problem, run, source
from tests.support import SHIPPED

FUZZ = float(os.environ.get("OPTDSL_FUZZ", "1"))
BATCH = 10
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def held(program: Program, seed: int, dtype: torch.dtype, hostile: float, steps: int = 4) -> Tally:
    """Runs a program on both paths; a failure shows all that is needed to see it again."""
    rng = np.random.default_rng(seed)
    try:
        return run(program, problem(program, rng, dtype, steps, hostile), (LOOP, FOREACH), rng)
    except Exception as error:
        told = f"seed {seed}, {dtype}, hostile {hostile}\n{show(program)}"
        try:
            told += source(program)
        except Exception as broken:  # what broke the run may be that it cannot be emitted
            told += repr(broken)
        raise AssertionError(f"{error}\n{told}") from error


@pytest.mark.parametrize("batch", range(math.ceil(500 * FUZZ / BATCH)))
def test_random_programs(batch: int) -> None:
    """Every fourth program in each dtype, every second with hostile numbers among its gradients."""
    tally = Tally()
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        weights = WILD if seed % 3 == 0 else TAME
        program = random_program(random.Random(seed), size=8, weights=weights)
        tally += held(program, seed, DTYPES[seed % 4], 0.2 if seed % 2 else 0.0, steps=3)
    print(tally, tally.share)
    assert tally.share > 0.5, f"too little was checked: {tally}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_specs(path: Path, dtype: torch.dtype) -> None:
    """Three groups with random settings each time, tame gradients and hostile ones."""
    program = check_path(path).require()
    tally = Tally()
    for number in range(3):
        seed = zlib.crc32(f"{path.stem} {number}".encode())
        tally += held(program, seed, dtype, 0.05 * number)
    assert tally.share > 0.9, f"too little was checked: {tally}"
