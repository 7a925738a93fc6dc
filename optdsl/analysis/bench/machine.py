"""The machine: what it is, how much memory is free, and how fast it moves memory in place."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from optdsl import __version__
from optdsl.analysis.bench.rounds import quartiles

#: Of the array that the yardstick streams through: larger than any cache.
ELEMENTS = 40_000_000
ONE_ARRAY = "x.mul_(c)"
FIVE_STREAMS = "3 reads, 2 writes"


def facts() -> dict[str, Any]:
    """What a reader of the figures must know of the machine and the software."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": _compiler(),
        "optdsl": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _compiler() -> str | None:
    """The first line of what the C compiler says of itself."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        try:
            run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.SubprocessError):
            continue
        if run.returncode == 0 and run.stdout:
            return run.stdout.splitlines()[0]
    return None


def free_bytes() -> int | None:
    """Memory that can be had without swapping, or None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


class Yardstick:
    """A stream through one large array in place: 8 bytes for each of its elements."""

    def __init__(self, elements: int = ELEMENTS) -> None:
        self.x = torch.ones(elements)
        self.bytes = 8 * elements

    def turn(self, steps: int) -> float:
        """Seconds of one pass of `steps`."""
        start = time.perf_counter()
        for _ in range(steps):
            self.x.mul_(1.0)
        return (time.perf_counter() - start) / steps


def bandwidth(elements: int = ELEMENTS) -> dict[str, float]:
    """Bytes a second that this machine moves in place, by yardstick, with torch's present number of threads."""
    found = {ONE_ARRAY: _speed(8 * elements, _mul(elements))}
    if hasattr(torch, "_fused_sgd_"):
        part = max(1, elements // 2)
        found[FIVE_STREAMS] = _speed(20 * part, _five_streams(part))
    return found


def _speed(moved: int, kernel: Callable[[], object], repeat: int = 11) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        kernel()
        times.append(time.perf_counter() - start)
    return moved / quartiles(times[2:])[1]


def _mul(elements: int) -> Callable[[], object]:
    x = torch.ones(elements)
    return lambda: x.mul_(1.0)


def _five_streams(elements: int) -> Callable[[], object]:
    """SGD with momentum in torch's own kernel, the nearest to the streams of Adam that torch has beside Adam."""
    p, g, buffer = torch.zeros(elements), torch.zeros(elements), torch.zeros(elements)
    options: dict[str, Any] = {"weight_decay": 0.0, "momentum": 0.9, "lr": 1e-3, "dampening": 0.0}
    options |= {"nesterov": False, "maximize": False, "is_first_step": False}
    return lambda: torch._fused_sgd_([p], [g], [buffer], **options)


__all__ = ["ELEMENTS", "FIVE_STREAMS", "ONE_ARRAY", "Yardstick", "bandwidth", "facts", "free_bytes"]
