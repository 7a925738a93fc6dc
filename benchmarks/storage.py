"""The time of a step with states in few bits, beside the same method's own step with states in float32.

    python benchmarks/storage.py [--threads 1 2] [--numbers 10000000] [--seconds 6] [--only q8 ...] [--json FILE]

AdamW with both moments in a format, Lion with its one, and AdamW on bfloat16 parameters with the bits that they lack
beside them; all by native kernels. The two take turns in one process; a ratio is the median over the rounds, its
spread the interquartile range in percent. Gradients are such as make blocks of all scales.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import optdsl
from optdsl.analysis.bench.machine import facts
from optdsl.analysis.bench.rounds import quartiles
from optdsl.resources import write_bytes

#: What is compared: the method, `store`, and whether parameters are in bfloat16.
CASES: dict[str, tuple[str, Any, bool]] = {
    **{
        f"adamw {name}": ("adamw", name, False)
        for name in ("q8", "q8_linear", "q8_sqrt", "q4", "q4_linear", "bf16")
    },
    **{f"adamw {name}": ("adamw", {"p": name}, True) for name in ("bf16+16", "bf16+8")},
    **{f"lion {name}": ("lion", name, False) for name in ("q8", "q4")},
}


def stepper(method: str, store: Any, short: bool, numbers: int) -> Callable[[], Any]:
    """A step of a method on one tensor, the same numbers in every call."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(
        torch.randn(numbers, generator=generator).to(torch.bfloat16 if short else torch.float32)
    )
    size = torch.randn(-(-numbers // 64), generator=generator).exp().repeat_interleave(64)[:numbers]
    p.grad = (torch.randn(numbers, generator=generator) * size).to(p.dtype)
    options = {} if store is None else {"store": store}
    optimizer = optdsl.load(method)([p], lr=1e-3, weight_decay=0.01, fused=True, **options)
    return optimizer.step


def compare(case: tuple[str, Any, bool], numbers: int, seconds: float) -> dict[str, float]:
    """Median times in ns a number, the median ratio and its spread."""
    method, store, short = case
    own, other = stepper(method, None, False, numbers), stepper(method, store, short, numbers)
    for _ in range(3):
        own()
        other()
    rounds: list[tuple[float, float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(rounds) < 7:
        times = []
        for step in (own, other):
            start = time.perf_counter()
            step()
            times.append((time.perf_counter() - start) / numbers * 1e9)
        rounds.append((times[0], times[1]))
    low, middle, high = quartiles([b / a for a, b in rounds])
    return {
        "float32_ns": round(statistics.median(a for a, _ in rounds), 3),
        "ns": round(statistics.median(b for _, b in rounds), 3),
        "ratio": round(middle, 3),
        "spread_percent": round((high - low) / middle * 100, 1),
        "rounds": len(rounds),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--numbers", type=int, default=10_000_000, help="in the tensor (default: 10 million)")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each comparison (default: 6)")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": facts()}
    print("ns a number of the step in float32 and of the other, ratio, spread")
    for threads in options.threads:
        torch.set_num_threads(threads)
        found = report[f"{threads} threads"] = {}
        for name in options.only or CASES:
            row = found[name] = compare(CASES[name], options.numbers, options.seconds)
            print(
                f"{threads} thread{'s' * (threads > 1):1} {name:16}{row['float32_ns']:8.3f}{row['ns']:8.3f}"
                f"   x {row['ratio']:.3f}   spread {row['spread_percent']:.1f} %   {row['rounds']} rounds",
                flush=True,
            )
    if options.json:
        write_bytes(options.json, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
