"""Triton kernels of the shipped methods, compiled for GPUs that need not be there: what the machine code does.

What is expected of it is in `machine_code.complaints`. The record `machine_code.jsonl` says what came of every method
for every target; it has to be of the functions as they are, and some are compiled again to see that it is true. Three
methods are compiled for types other than float32, too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.backends import machine_code
from tests.backends.interpreted import SWITCH, needs_triton
from tests.support import NAMES, PICKED, ROOT, WITHOUT_KERNELS, good, python

pytestmark = needs_triton
#: With OPTDSL_FULL many, else those of each sort: elements, sums by tensors, rows, sums by groups.
AGAIN = PICKED if os.environ.get("OPTDSL_FULL") else ["adamw", "lamb", "sm3", "dog"]
SAMPLE = ("adamw", "lion", "signsgd")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled kernels are kept; TRITON_CACHE_DIR keeps them for the next run."""
    given = os.environ.get("TRITON_CACHE_DIR")
    return Path(given) if given else tmp_path_factory.mktemp("triton")


def results(names: list[str], kept: Path) -> list[tuple[dict[str, Any], dict[str, int]]]:
    """What came of the functions of `method:target:types`."""
    run = python("-m", "tests.backends.ahead", *names, cwd=ROOT, TRITON_CACHE_DIR=str(kept), **{SWITCH: None})
    return [(line["job"], line["found"]) for line in map(json.loads, good(run).splitlines())]


def test_record_is_of_all() -> None:
    """Every method with kernels, for every target, as its functions are now."""
    import triton

    known = machine_code.record()
    versions = {line["triton"] for line in known.values()}
    if versions != {triton.__version__}:
        pytest.skip(f"the record is of Triton {', '.join(sorted(versions))}, this is {triton.__version__}")
    assert {method for method, _ in known} == set(NAMES) - WITHOUT_KERNELS
    run = python("-m", "tests.backends.machine_code", "--stale", cwd=ROOT, **{SWITCH: None})
    assert run.returncode == 0, (
        f"not in the record as they are now: {run.stdout or run.stderr}; run `make ahead`"
    )


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_record_is_true(target: str, kept: Path) -> None:
    methods = AGAIN if target == "sm_90" else AGAIN[:2]
    found = results([f"{method}:{target}:f32" for method in methods], kept)
    assert [c for job, what in found for c in machine_code.complaints(job, what)] == []
    known = machine_code.record()
    for method in methods:
        lines = [{"job": job, "found": what} for job, what in found if job["method"] == method]
        assert machine_code.summary(lines).items() <= known[method, target].items(), method


@pytest.mark.parametrize("types", ["bf16", "mixed", "f64", "rounded", "kahan"])
def test_other_types(types: str, kept: Path) -> None:
    """bfloat16 throughout, bfloat16 with states in float32, float64; bfloat16 rounded at random, or with what is left
    beside the parameter.
    """
    found = results([f"{method}:sm_90:{types}" for method in SAMPLE], kept)
    assert [c for job, what in found for c in machine_code.complaints(job, what)] == []


def test_counting_on_a_device(kept: Path) -> None:
    """What counts steps and computes their numbers there belongs to no method."""
    targets = ("sm_80", "sm_90", "gfx942")
    names = [f"counting:{target}:{types}" for target in targets for types in ("f32", "f64")]
    found = results(names, kept)
    assert {job["function"] for job, _ in found} == {"count", "keep", "compute"}
    assert [c for job, what in found for c in machine_code.complaints(job, what)] == []
    assert max(what["registers"] for _, what in found) < 255  # all there are


def test_random_programs(kept: Path) -> None:
    """What the interpreter takes, a compiler need not: it wants to know the type of everything."""
    found = results(["random:sm_90:f32:101:103", "random:sm_90:f32:104:106"], kept)
    assert len({job["method"] for job, _ in found}) > 2
    # functions of NVIDIA's library keep large angles on a stack, in many registers, in double precision
    library = ("registers", "stack", "spills", "doubles")
    # and Triton may compute random words as they suit their rounds, not as arrays are loaded
    wrong = [
        complaint
        for job, what in found
        for complaint in machine_code.complaints(job, what)
        if not any(word in complaint for word in (*library, *(["shared"] if job["draws"] else [])))
    ]
    assert wrong == []
