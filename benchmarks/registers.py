"""What Triton's compiler makes of a spec's kernels for a device that need not be there: registers, vector widths.

For all specs in float32 `python -m tests.backends.machine_code --table` has it already.

    python benchmarks/registers.py > registers.txt
    python benchmarks/registers.py --target sm_80 --types bf16 adamw lion
    python benchmarks/registers.py --functions lamb

A line per method and kind of function: `elements` runs over tensors as they lie, `rows` by their rows and columns,
`sums` adds partial sums up and computes what a group has one of. Registers, stack, spills (bytes) and shared memory
(bytes) are the most that any of them takes; loads and stores of elements are counted over all. Takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.backends.machine_code import kind, summary, table  # noqa: E402
from tests.support import NAMES, WITHOUT_KERNELS  # noqa: E402


def compiled(names: list[str], target: str, types: str) -> list[dict[str, Any]]:
    """What `tests.backends.ahead` says of each function of the methods `names`."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    jobs = [f"{name}:{target}:{types}" for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.ahead", *jobs],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods (default: all that have kernels)")
    parser.add_argument("--target", default="sm_90", choices=["sm_80", "sm_90", "gfx942"])
    parser.add_argument("--types", default="f32", choices=["f32", "bf16", "mixed", "f64"])
    parser.add_argument("--functions", action="store_true", help="a line per function")
    args = parser.parse_args()
    names = args.names or [n for n in NAMES if n not in WITHOUT_KERNELS]
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda k: compiled(names[k::workers], args.target, args.types), range(workers))
        rows = [row for part in parts for row in part]
    print(f"Triton {triton.__version__}, {args.target}, {args.types}, {len(names)} methods\n")
    of = (lambda job: job["function"]) if args.functions else kind
    methods = {row["job"]["method"]: [] for row in rows}
    for row in rows:
        methods[row["job"]["method"]].append(row)
    print(table((method, summary(part, of)) for method, part in sorted(methods.items())))


if __name__ == "__main__":
    main()
