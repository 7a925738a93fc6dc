"""Triton kernels of the shipped methods, compiled for GPUs that need not be there: what the machine code does.

Every function is compiled for each target as it would be for float32 on it, those of three methods also for other
types. Expected of all: no stack, no spills. Of passes over elements: each array is loaded and stored in the main
path by 128 bits at a time, as often as the plan says. Of those that reduce nothing: 64 registers at most, no shared
memory, nothing in double precision.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.backends.interpreted import SWITCH, needs_triton
from tests.support import CORE, PICKED, ROOT, good, python

pytestmark = needs_triton
TARGETS = ("sm_80", "sm_90", "gfx942")
#: With OPTDSL_FULL all that the other tests take, else those with forms of their own.
AHEAD = PICKED if os.environ.get("OPTDSL_FULL") else [name for name in PICKED if name in CORE]
#: Methods with long files first, so that the groups take about the same time.
BY_LENGTH = sorted(AHEAD, key=lambda name: -len((ROOT / "generated" / f"{name}.triton.py").read_text()))
GROUPS = [tuple(BY_LENGTH[first::4]) for first in range(4)]
#: What every target is tried with; the others are compiled for sm_90.
EVERYWHERE = ("adamw", "sm3", *(["lamb"] if os.environ.get("OPTDSL_FULL") else []))
SAMPLE = ("adamw", "lion", "signsgd")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled kernels are kept; TRITON_CACHE_DIR keeps them for the next run."""
    given = os.environ.get("TRITON_CACHE_DIR")
    return Path(given) if given else tmp_path_factory.mktemp("triton")


def results(names: list[str], kept: Path) -> list[tuple[dict[str, object], dict[str, int]]]:
    """What came of the functions of `method:target:types`."""
    run = python("-m", "tests.backends.ahead", *names, cwd=ROOT, TRITON_CACHE_DIR=str(kept), **{SWITCH: None})
    return [(line["job"], line["found"]) for line in map(json.loads, good(run).splitlines())]


def complaints(job: dict[str, object], found: dict[str, int]) -> list[str]:
    """What is not as it should be."""
    wrong = [f"{name} {found[name]}" for name in ("stack", "spills") if found[name]]
    loads, stores = job["loads"], job["stores"]
    assert isinstance(loads, int)
    assert isinstance(stores, int)
    if str(job["function"]).startswith("pass") and not job["by_rows"]:
        bits = {"f32": 1, "bf16": 1, "f64": 2}.get(str(job["types"]))
        if bits is not None:
            least, most = bits * loads, (bits * loads if job["target"] != "gfx942" else 99)
            if not least <= found["wide_loads"] <= most or found["wide_stores"] != bits * stores:
                wrong.append(
                    f"{found['wide_loads']} wide loads of {loads}, {found['wide_stores']} stores of {stores}"
                )
        if not job["reduces"]:
            wrong += [f"shared {found['shared']}"] if found["shared"] else []
            if job["types"] == "f32":
                wrong += [f"registers {found['registers']}"] if found["registers"] > 64 else []
            if job["types"] != "f64" and not job["scalars"]:
                wrong += [f"doubles {found['doubles']}"] if found["doubles"] else []
    return [f"{job['method']} {job['function']} {job['target']} {job['types']}: {what}" for what in wrong]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("methods", GROUPS, ids=lambda methods: methods[0])
def test_machine_code(methods: tuple[str, ...], target: str, kept: Path) -> None:
    chosen = [n for n in methods if n in EVERYWHERE or target == "sm_90"]
    if not chosen:
        return
    found = results([f"{method}:{target}:f32" for method in chosen], kept)
    assert {job["method"] for job, _ in found} == set(chosen)
    assert [c for job, what in found for c in complaints(job, what)] == []


@pytest.mark.parametrize("types", ["bf16", "mixed", "f64", "rounded", "kahan"])
def test_other_types(types: str, kept: Path) -> None:
    """bfloat16 throughout, bfloat16 with states in float32, float64; bfloat16 rounded at random, or with what is left
    beside the parameter.
    """
    found = results([f"{method}:sm_90:{types}" for method in SAMPLE], kept)
    assert [c for job, what in found for c in complaints(job, what)] == []


def test_random_programs(kept: Path) -> None:
    """What the interpreter takes, a compiler need not: it wants to know the type of everything."""
    found = results(["random:sm_90:f32:100:105"], kept)
    assert len({job["method"] for job, _ in found}) > 2
    # functions of NVIDIA's library keep large angles on a stack, in many registers, in double precision
    library = ("registers", "stack", "spills", "doubles")
    # and Triton may compute random words as they suit their rounds, not as arrays are loaded
    wrong = [
        complaint
        for job, what in found
        for complaint in complaints(job, what)
        if not any(word in complaint for word in (*library, *(["shared"] if job["draws"] else [])))
    ]
    assert wrong == []
