"""What the torch backend costs: a step beside torch.optim's own class, and the compilation of a spec.

    python benchmarks/torch_backend.py            print a table
    python benchmarks/torch_backend.py --json results.json

Times are ratios to the named peer in the same run: ours and theirs alternate, medians are compared, and the
spread is the middle half of the ratios of neighbouring pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import optdsl

CASES = {
    "one tensor of 1M": [(1000, 1000)],
    "100 tensors of 10k": [(100, 100)] * 100,
    "1000 tensors of 1k": [(1000,)] * 1000,
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("AdamW", {"weight_decay": 0.1}),
    "sgd": ("SGD", {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop": ("RMSprop", {"weight_decay": 0.1}),
}


def stepper(cls: Any, shapes: list[tuple[int, ...]], options: dict[str, Any]) -> Callable[[], None]:
    """A function that makes one step of a fresh optimizer."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer = cls(params, **options)
    return lambda: optimizer.step()


def ratio(ours: Callable[[], None], theirs: Callable[[], None], seconds: float) -> dict[str, float]:
    """Median time of both and of the ratio, measured alternately."""
    for _ in range(3):
        ours()
        theirs()
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(pairs) < 7:
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        pairs.append((middle - start, time.perf_counter() - middle))
    ratios = sorted(a / b for a, b in pairs)
    quarter = statistics.quantiles(ratios, n=4)
    return {
        "ours_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "peer_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "low": quarter[0],
        "high": quarter[2],
        "pairs": len(pairs),
    }


def compile_cpu_seconds(runs: int = 5) -> list[float]:
    """CPU time of `optdsl compile adamw` in a cold process, sorted."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-m", "optdsl", "compile", "adamw", "-o", folder, "-q"], check=True
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return sorted(found)


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--seconds", type=float, default=1.5, help="per comparison (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"torch {torch.__version__}, {options.threads} thread(s), {platform.machine()}")
    print(f"{'method':9}{'path':9}{'case':21}{'ours ms':>9}{'torch ms':>10}{'ratio':>7}   middle half")
    for name, (peer, settings) in METHODS.items():
        for path, foreach in (("loop", False), ("foreach", True)):
            for case, shapes in CASES.items():
                flags = {**settings, "foreach": foreach}
                ours = stepper(optdsl.load(name), shapes, flags)
                row = ratio(ours, stepper(getattr(torch.optim, peer), shapes, flags), options.seconds)
                rows.append({"method": name, "path": path, "case": case, **row})
                print(
                    f"{name:9}{path:9}{case:21}{row['ours_ms']:9.2f}{row['peer_ms']:10.2f}"
                    f"{row['ratio']:7.2f}   {row['low']:.2f} to {row['high']:.2f}"
                )
    cpu = compile_cpu_seconds()
    print(
        f"cold compile of one spec: {cpu[0]:.3f} s of CPU time at best, median {statistics.median(cpu):.3f} s"
    )
    if options.json:
        text = json.dumps({"torch": torch.__version__, "compile_cpu_s": cpu, "steps": rows}, indent=1)
        temporary = options.json.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text + "\n")
        temporary.replace(options.json)


if __name__ == "__main__":
    main()
