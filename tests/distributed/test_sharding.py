"""Models that are cut among processes take the steps of whole ones: methods, models, checkpoints, refusals."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest

from tests.distributed.processes import run
from tests.support import NAMES, needs_compiler

pytestmark = pytest.mark.xdist_group("distributed")

#: One of each kind: without reductions, over a tensor, over rows and columns, over all, by matrices, at random, ...
SOME = [
    *("adamw", "schedule_free_adamw", "adashift", "sophia_h", "sgld"),
    *("lamb", "adafactor", "adamp", "came", "sm3", "nero", "prodigy", "dog", "clipped_sgd"),
    *("muon", "lion_k", "adam_coord_clip", "distributed_shampoo", "sps"),
]
DECAY = {"lr": 0.01, "weight_decay": 0.1}
#: Sizes of whole tensors, the mean of a state's initial value over one, and numbers in rows.
FACTS = """optimizer Sizes:
    hyper:
        lr = 1e-2 in [0, inf)
    state:
        start = p - mean(p)
        r [rows] = mean(g, over=rows)
    step:
        p = p - lr * (g + 0.1 * start + r) / sqrt(numel) - lr * p / rows
"""
LIMITS = {"float64": 1e-12, "float32": 1e-6}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What two processes make of all jobs of this file, in order of their ranks."""
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    facts = tmp_path_factory.mktemp("specs") / "facts.opt"
    facts.write_text(FACTS)
    jobs = {
        "float64": ("zoo", SOME, "float64", 0, False),
        "float32": ("zoo", SOME, "float32", 0, False),
        "columns": ("zoo", ["adafactor", "came", "sgld", "sm3"], "float64", 1, False),
        "fsdp2": ("fsdp2", "lamb", DECAY),
        "fsdp2 by kernels": ("fsdp2", "adamw", DECAY),
        "checkpoint": ("checkpoint", folder, "came", DECAY),
        "evaluation": ("evaluation", "ema_adamw", DECAY),
        "ddp": ("ddp", "lamb", DECAY, False),
        "zero": ("ddp", "adafactor", DECAY, True),
        "zero, all tensors": ("refused", "ddp", "lamb", DECAY, True),
        "zero, draws": ("refused", "ddp", "sgld", {"lr": 0.01}, True),
        "fsdp1": ("fsdp1", "adamw", DECAY, False),
        "fsdp1, views": ("fsdp1", "adamw", DECAY, True),
        "fsdp1, reductions": ("refused", "fsdp1", "adafactor", DECAY, False),
        "fsdp1, reductions of views": ("refused", "fsdp1", "lamb", DECAY, True),
        "fsdp1, facts": ("refused", "fsdp1", str(facts), {}, False),
        "facts": ("fsdp2", str(facts), {}),
        "fused": ("refused", "fsdp2_fused", "lamb", DECAY),
        "messages": (
            "messages",
            ["adamw", "lamb", "adafactor", "adamp", "prodigy", "muon", "adam_coord_clip"],
        ),
        "together": ("together",),
        "lazy": ("lazy",),
        "with more bits": ("stored", "adamw", "bfloat16", {"p": "bf16+16"}),
        "rounded at random": ("stored", "adamw", "bfloat16", {"p": "bf16_sr", "exp_avg": "bf16_sr"}),
        "reductions, more bits": ("stored", "lamb", "bfloat16", {"p": "bf16+8"}),
        "complex": ("stored", "lamb", "complex128", None),
        "complex draws": ("stored", "noisy_adam", "complex128", None),
        "capturable": ("capturable", "lamb"),
    }
    found = run("several", 2, jobs, timeout=300)
    return {name: [each[name] for each in found] for name in jobs}


def held(found: dict[str, list[Any]], dtype: str) -> None:
    """Parameters, their ways and states of every spec are within the limits."""
    for spec, values in found.items():
        assert isinstance(values[0], float), f"{spec}: {values[0]}"
        parameters, way, states = values
        assert parameters <= LIMITS[dtype], (spec, values)
        assert states <= 10 * LIMITS[dtype], (spec, values)
        assert dtype == "float32" or way <= 1e-10, (spec, values)


@pytest.mark.parametrize("job", ["float64", "float32", "columns"])
def test_parts_take_the_steps_of_whole_tensors(job: str, seen: dict[str, list[Any]]) -> None:
    for found in seen[job]:
        held(found, "float32" if job == "float32" else "float64")


@pytest.mark.parametrize("job", ["ddp", "zero", "fsdp1", "fsdp1, views"])
def test_models(job: str, seen: dict[str, list[Any]]) -> None:
    assert max(seen[job]) <= 1e-12


@pytest.mark.parametrize("job", ["fsdp2", "facts", pytest.param("fsdp2 by kernels", marks=needs_compiler)])
def test_fully_shard(job: str, seen: dict[str, list[Any]]) -> None:
    """Kernels take parts where no number of another process is needed."""
    for off, by_kernels, same_tables in seen[job]:
        assert off <= 1e-12
        assert by_kernels == same_tables == (job == "fsdp2 by kernels")


def test_checkpoints(seen: dict[str, list[Any]]) -> None:
    for found in seen["checkpoint"]:
        assert list(found) == ["cut to cut", "cut to whole", "whole to cut"]
        assert max(found.values()) <= 1e-12, found


def test_evaluation(seen: dict[str, list[Any]]) -> None:
    for found in seen["evaluation"]:
        assert max(found) <= 1e-12, found


@pytest.mark.parametrize(
    ("job", "limit"),
    [
        ("with more bits", 0),
        ("rounded at random", 0),
        ("reductions, more bits", 0),
        ("complex", 1e-12),
        ("complex draws", 1e-12),
        ("capturable", 1e-12),
    ],
)
def test_formats(job: str, limit: float, seen: dict[str, list[Any]]) -> None:
    """What is kept otherwise than as numbers of the parameter's type, and steps that a device counts."""
    for found in seen[job]:
        assert max(found) <= limit, found


def test_gradients_elsewhere_or_nowhere(seen: dict[str, list[Any]]) -> None:
    """Sums that are still to be formed, copies, none; beside parameters that every process has."""
    for found in seen["lazy"]:
        assert max(found) <= 1e-12, found


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ("zero, all tensors", "Lamb does not support ZeroRedundancyOptimizer: it reduces over all tensors"),
        ("zero, draws", "SGLD does not support ZeroRedundancyOptimizer: it draws at random"),
        (
            "fsdp1, reductions",
            "Adafactor does not support flat parameters of FullySharded.*reduces over tensors",
        ),
        (
            "fsdp1, reductions of views",
            "Lamb does not support flat parameters of FullySharded.*several tensors",
        ),
        ("fsdp1, facts", "Sizes does not support flat parameters of FullySharded.*: it asks for numel, rows"),
        ("fused", "Lamb does not support sharded parameters: `fused=True`.*it reduces over several tensors"),
    ],
)
def test_what_cannot_be_done_says_so_when_made(job: str, reason: str, seen: dict[str, list[Any]]) -> None:
    for found in seen[job]:
        assert re.search(reason, found), found


def test_messages_are_those_that_explain_tells(seen: dict[str, list[Any]]) -> None:
    counts = seen["messages"][0]
    assert seen["messages"][1] == counts
    assert {spec: sent for spec, (sent, _) in counts.items()} == {
        "adamw": 0,
        "lamb": 2,
        "adafactor": 4,
        "adamp": 2,
        "prodigy": 1,
        "muon": 3,
        "adam_coord_clip": 0,
    }
    for spec, (sent, told) in counts.items():
        assert sent == told, spec


def test_put_together(seen: dict[str, list[Any]]) -> None:
    """A nan wins, sums keep the widest type, and what is complete already is left alone."""
    wanted = ["4.0", "[1.0, -inf, 3.0]", "[nan, 2.0]", repr(1 + 2.0**-29), "[]", "7.0"]
    assert seen["together"] == [wanted, wanted]


def test_a_process_that_hangs_is_a_failure() -> None:
    with pytest.raises(AssertionError, match=r"not done after 12 s:(.|\n)*rank 1"):
        run("hang", 2, timeout=12)


# ---- all methods, in two and four processes -----------------------------------------------------------------


#: Types, the dimension that is cut, and whether all settings that tests/zoo has are tried, or the last.
CUTS = {"rows": ("float64", 0, True), "float32": ("float32", 0, False), "columns": ("float64", 1, True)}


@functools.cache
def zoo(count: int) -> list[dict[str, dict[str, list[Any]]]]:
    """What so many processes make of every shipped spec, cut in every way, in order of their ranks.

    With many processes one setting of a method has its columns cut: four take four times as long as one.
    """
    jobs = {
        cut: ("zoo", NAMES, dtype, dim, every and (dim == 0 or count == 2))
        for cut, (dtype, dim, every) in CUTS.items()
    }
    return run("several", count, jobs, timeout=3600)


@pytest.mark.contract
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", NAMES)
def test_parts_of_tensors_take_the_steps_of_whole_ones(name: str, cut: str, count: int) -> None:
    """As without processes, with nothing refused."""
    for found in zoo(count):
        held({name: found[cut][name]}, CUTS[cut][0])


@pytest.mark.contract
@pytest.mark.parametrize("spec", ["adafactor", "lamb", "sgld", "muon", "sm3"])
def test_meshes(spec: str) -> None:
    options = {"lr": 0.01} if spec in ("sgld", "sm3") else DECAY
    for found in run("meshes", 4, spec, "float64", options, ["mat", "tall", "conv"], timeout=300):
        held(found, "float64")


@pytest.mark.contract
@pytest.mark.parametrize("spec", ["adamw", "adafactor", "lamb", "muon"])
def test_tensor_parallel(spec: str) -> None:
    """Cut by tensor parallelism, and what that left by fully_shard: parts of parts, in another order."""
    assert max(run("tensor_parallel", 4, spec, DECAY, timeout=300)) <= 1e-12


@pytest.mark.contract
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("start", range(0, 200, 50))
def test_random_programs(start: int, count: int) -> None:
    """Programs nobody wrote, which reduce and multiply whatever there is."""
    for bad, seen in run("programs", count, start, 50, timeout=1800):
        assert not bad
        assert min(seen.values()) > 0, seen
