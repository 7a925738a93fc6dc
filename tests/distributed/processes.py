"""Several processes on this machine that talk by gloo, each running one function; one that hangs is a failure."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run(job: str, count: int, *arguments: Any, timeout: float = 120) -> list[Any]:
    """What `count` processes make of a function `job` of `tests.distributed.jobs`, in order of their ranks.

    The arguments and results are what JSON takes. Raises AssertionError with what the processes wrote when one fails,
    or when they are not done after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-W", "ignore", "-m", "tests.distributed.processes", folder, str(count), job]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        logs = [open(Path(folder, f"log{rank}"), "w+") for rank in range(count)]  # noqa: SIM115
        found = [
            subprocess.Popen(
                [*words, str(rank), json.dumps(arguments)],
                cwd=ROOT,
                env=environment,
                stdout=logs[rank],
                stderr=subprocess.STDOUT,
            )
            for rank in range(count)
        ]
        late = False
        try:
            for process in found:
                process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            for process in found:
                process.kill()
                process.wait()
        texts = []
        for rank, log in enumerate(logs):
            log.seek(0)
            texts.append(f"--- rank {rank}, exit status {found[rank].returncode}\n{log.read()[-3000:]}")
            log.close()
        assert not late, f"not done after {timeout} s:\n" + "\n".join(texts)
        assert all(process.returncode == 0 for process in found), "\n".join(texts)
        return [json.loads(Path(folder, f"result{rank}").read_text()) for rank in range(count)]


def _main(folder: str, count: str, job: str, rank: str, arguments: str) -> None:
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=int(rank),
        world_size=int(count),
        timeout=timedelta(seconds=60),
    )
    function = getattr(importlib.import_module("tests.distributed.jobs"), job)
    result = function(*json.loads(arguments))
    Path(folder, f"result{rank}").write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
