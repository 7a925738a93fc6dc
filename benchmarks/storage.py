"""The time of a step with states in few bits, beside the same method's own step with states in float32.

    python benchmarks/storage.py [--threads 1 2] [--sizes 10m gpt2] [--seconds 6] [--only CASE ...] [--json FILE]

AdamW with both moments in a format, Lion and SGD with their one, Adan with its four, and AdamW on bfloat16 parameters
with the bits that they lack beside them; all by native kernels, on one tensor of 10 million numbers or on the 148 of
GPT-2 small. The two take turns in one process; a ratio is the median over the rounds, its spread the interquartile
range in percent. Beside it stand the ratio of the time that the processor was at work, which other processes hardly
bear on, and that of the shortest steps. Gradients are such as make blocks of all scales.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import optdsl
from optdsl.analysis.bench.cases import CASES as BENCHED
from optdsl.analysis.bench.cases import Shape
from optdsl.analysis.bench.machine import facts
from optdsl.analysis.bench.rounds import quartiles
from optdsl.resources import write_bytes

#: Tensors by name.
SIZES: dict[str, tuple[Shape, ...]] = {"10m": ((10_000_000,),), "gpt2": BENCHED["gpt2"].shapes}
#: What is compared: the method, `store`, and whether parameters are in bfloat16.
CASES: dict[str, tuple[str, Any, bool]] = {
    **{
        f"adamw {name}": ("adamw", name, False)
        for name in ("q8", "q8_linear", "q8_sqrt", "q4", "q4_linear", "bf16")
    },
    **{f"adamw {name}": ("adamw", {"p": name}, True) for name in ("bf16+16", "bf16+8")},
    **{f"lion {name}": ("lion", name, False) for name in ("q8", "q4")},
    **{f"{method} q8": (method, "q8", False) for method in ("adan", "sgd")},
}
#: Options of methods that keep no state without.
OPTIONS: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}


def stepper(method: str, store: Any, short: bool, shapes: Sequence[Shape]) -> Callable[[], Any]:
    """A step of a method, the same numbers in every call."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if short else torch.float32
    params = []
    for shape in shapes:
        numbers = math.prod(shape)
        p = torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        size = torch.randn(-(-numbers // 64), generator=generator).exp().repeat_interleave(64)[:numbers]
        p.grad = (torch.randn(shape, generator=generator) * size.view(shape)).to(dtype)
        params.append(p)
    options = {} if store is None else {"store": store}
    rule: Any = optdsl.load(method)
    optimizer = rule(params, lr=1e-3, weight_decay=0.01, fused=True, **OPTIONS.get(method, {}), **options)
    step: Callable[[], Any] = optimizer.step
    return step


def compare(case: tuple[str, Any, bool], shapes: Sequence[Shape], seconds: float) -> dict[str, float]:
    """Median times in ns a number, the median ratio and its spread, and ratios of other measures."""
    method, store, short = case
    numbers = sum(map(math.prod, shapes))
    own, other = stepper(method, None, False, shapes), stepper(method, store, short, shapes)
    for _ in range(3):
        own()
        other()
    rounds: list[tuple[float, float]] = []
    busy = [0.0, 0.0]
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(rounds) < 7:
        times = []
        for k, step in enumerate((own, other)):
            start, worked = time.perf_counter(), time.process_time()
            step()
            times.append((time.perf_counter() - start) / numbers * 1e9)
            busy[k] += time.process_time() - worked
        rounds.append((times[0], times[1]))
    low, middle, high = quartiles([b / a for a, b in rounds])
    return {
        "float32_ns": round(statistics.median(a for a, _ in rounds), 3),
        "ns": round(statistics.median(b for _, b in rounds), 3),
        "ratio": round(middle, 3),
        "spread_percent": round((high - low) / middle * 100, 1),
        "processor_ratio": round(busy[1] / busy[0], 3),
        "shortest_ratio": round(min(b for _, b in rounds) / min(a for a, _ in rounds), 3),
        "rounds": len(rounds),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["10m"], help="default: 10m")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each comparison (default: 6)")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": facts()}
    print(
        "ns a number of the step in float32 and of the other; ratio of times, its spread, of work, of the shortest"
    )
    for threads, size in itertools.product(options.threads, options.sizes):
        torch.set_num_threads(threads)
        found = report[f"{threads} threads, {size}"] = {}
        for name in options.only or CASES:
            row = found[name] = compare(CASES[name], SIZES[size], options.seconds)
            print(
                f"{threads} thread{'s' * (threads > 1):1} {size:4} {name:16}{row['float32_ns']:8.3f}{row['ns']:8.3f}"
                f"   x {row['ratio']:.3f}   spread {row['spread_percent']:4.1f} %"
                f"   work x {row['processor_ratio']:.3f}   shortest x {row['shortest_ratio']:.3f}"
                f"   {row['rounds']} rounds",
                flush=True,
            )
    if options.json:
        write_bytes(options.json, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
