"""The first step of the native path in a process of its own, so that nothing is built or loaded yet.

    python -m optdsl.analysis.bench.fresh SPEC OPTIONS

prints the seconds that making the optimizer and its first step take; OPTIONS are a JSON object. What torch
itself loads at a first step is loaded before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMEOUT = 120


def first_steps(spec: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds with an empty and with a filled cache of builds, or under `missing` why there are none."""
    root = str(Path(__file__).resolve().parents[3])
    words = [sys.executable, "-m", "optdsl.analysis.bench.fresh", str(spec), json.dumps(dict(options))]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="optdsl-bench-") as cache:
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "OPTDSL_CACHE": cache, "PYTHONPATH": path}
        for name in ("empty_cache_s", "filled_cache_s"):
            try:
                run = subprocess.run(
                    words, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
                )
                if run.returncode:
                    return {"missing": (run.stderr.strip().splitlines() or ["it failed"])[-1]}
                found[name] = float(run.stdout.split()[-1])
            except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
                return {"missing": str(error)}
    return found


def main(spec: str, options: str) -> None:
    """Prints the seconds."""
    import torch

    from optdsl import driver

    warnings.simplefilter("ignore")
    cls = driver.load(Path(spec))
    known = json.loads(options)

    def step(**flags: Any) -> float:
        p = torch.nn.Parameter(torch.ones(1000))
        p.grad = torch.ones(1000)
        start = time.perf_counter()
        cls([p], **known, **flags).step()
        return time.perf_counter() - start

    step(foreach=False, fused=False)
    print(step(fused=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
