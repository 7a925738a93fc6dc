"""What `optdsl bench` does not compare: methods with each other, errors, and the time that compiling takes.

    python benchmarks/cpu_goals.py [--json FILE] [--seconds S]

- LAMB (two sweeps; no joint norm) beside AdamW (one sweep), both by their native kernels, where the gradient may be
  overwritten and where not; 10M elements in one tensor and in 40.
- All-bfloat16 AdamW beside torch's fused kernel.
- The error of 200 steps of AdamW in float32 against float64, beside that of torch's fused kernel.
- CPU time of `optdsl compile` of one spec in a cold process.

Peers take turns; a ratio is the median over the rounds, its spread the interquartile range in percent.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import optdsl
from optdsl.analysis.bench.machine import facts
from optdsl.analysis.bench.rounds import quartiles
from optdsl.resources import write_bytes

ADAMW, LAMB = optdsl.load("adamw"), optdsl.load("lamb")
#: LAMB without the joint norm of all gradients, which is a third sweep.
OPTIONS: dict[str, Any] = {"weight_decay": 0.01, "max_grad_norm": math.inf}


def parameters(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Parameters with gradients, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        p = torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        p.grad = torch.randn(shape, generator=generator).to(dtype)
        made.append(p)
    return made


def race(
    peers: Mapping[str, Callable[[], Any]], reference: str, seconds: float
) -> dict[str, dict[str, float]]:
    """Median time of each peer in ms, its median ratio to the reference and the spread of that ratio."""
    for step in peers.values():
        step()
        step()
    rounds: list[dict[str, float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(rounds) < 7:
        now = {}
        for name, step in peers.items():
            start = time.perf_counter()
            step()
            now[name] = time.perf_counter() - start
        rounds.append(now)
    found = {}
    for name in peers:
        low, middle, high = quartiles([r[name] / r[reference] for r in rounds])
        found[name] = {
            "ms": round(statistics.median(r[name] for r in rounds) * 1e3, 3),
            "ratio": round(middle, 3),
            "spread_percent": round((high - low) / middle * 100, 1),
            "rounds": len(rounds),
        }
    return found


def two_sweeps(shapes: Sequence[tuple[int, ...]], seconds: float) -> dict[str, dict[str, float]]:
    """LAMB beside AdamW."""
    return race(
        {
            "AdamW": ADAMW(parameters(shapes, torch.float32), fused=True).step,
            "LAMB": LAMB(parameters(shapes, torch.float32), fused=True, **OPTIONS).step,
            "LAMB, gradient overwritten": LAMB(
                parameters(shapes, torch.float32), fused=True, overwrite_grad=True, **OPTIONS
            ).step,
        },
        "AdamW",
        seconds,
    )


def bfloat16(seconds: float) -> dict[str, dict[str, float]]:
    """All-bfloat16 AdamW beside torch's."""
    shapes = [(10_000_000,)]
    return race(
        {
            "torch fused": torch.optim.AdamW(parameters(shapes, torch.bfloat16), fused=True).step,
            "own native": ADAMW(parameters(shapes, torch.bfloat16), fused=True).step,
        },
        "torch fused",
        seconds,
    )


def errors(steps: int = 200) -> dict[str, dict[str, float]]:
    """Mean and largest error of a parameter after some steps in float32, against the same steps in float64."""

    def trained(cls: Any, dtype: torch.dtype, **flags: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        p = torch.nn.Parameter(torch.randn(100_000, generator=generator).to(dtype))
        optimizer = cls([p], lr=1e-3, weight_decay=0.1, **flags)
        for _ in range(steps):
            p.grad = torch.randn(100_000, generator=generator).to(dtype)
            optimizer.step()
        return p.detach().double()

    exact = trained(torch.optim.AdamW, torch.float64, foreach=False)
    found = {}
    for name, cls in (("torch fused", torch.optim.AdamW), ("own native", ADAMW)):
        error = (trained(cls, torch.float32, fused=True) - exact).abs()
        found[name] = {"mean": float(error.mean()), "max": float(error.max())}
    found["ratio"] = {k: round(found["own native"][k] / found["torch fused"][k], 3) for k in ("mean", "max")}
    return found


def compilation(names: Sequence[str], repeat: int = 7) -> dict[str, int]:
    """Least CPU time in ms of `optdsl compile` of one spec in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            spec = optdsl.driver.shipped_specs()[name]
            times = []
            for _ in range(repeat):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                command = [sys.executable, "-m", "optdsl", "compile", str(spec), "-o", folder, "-q"]
                subprocess.run(command, check=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            found[name] = round(min(times) * 1e3)
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each comparison (default: 8)")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": facts()}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = {
            "LAMB beside AdamW, one tensor of 10M": two_sweeps([(10_000_000,)], options.seconds),
            "LAMB beside AdamW, 40 tensors of 250k": two_sweeps([(500, 500)] * 40, options.seconds),
            "all-bfloat16 AdamW, one tensor of 10M": bfloat16(options.seconds),
        }
        report[f"{threads} threads"] = found
        for title, rows in found.items():
            print(f"{title}, {threads} thread{'s' * (threads > 1)}")
            for name, row in rows.items():
                print(
                    f"  {name:28}{row['ms']:10.3f} ms   x {row['ratio']:.3f}"
                    f"   spread {row['spread_percent']:.1f} %   {row['rounds']} rounds"
                )
    report["errors"] = errors()
    print(f"errors of 200 steps of AdamW in float32: {json.dumps(report['errors'])}")
    report["compile_ms"] = compilation(("adamw", "lion", "lamb", "adabelief", "sgd"))
    print(f"CPU time of `optdsl compile`, ms: {json.dumps(report['compile_ms'])}")
    if options.json:
        write_bytes(options.json, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
