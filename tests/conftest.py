"""Fixtures for all tests: recorded trajectories of other people's optimizers, and seeded random numbers."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Reference:
    """The recorded runs. An entry of the index says what was run; `index.json` and the notes say how."""

    path: Path

    def entry(self, optimizer: str, setting: str, dtype: str = "float64") -> dict[str, Any]:
        index = json.loads((self.path / "golden" / "index.json").read_text())
        for entry in index["entries"]:
            if (entry["optimizer"], entry["setting"], entry["dtype"]) == (optimizer, setting, dtype):
                return dict(entry)
        raise KeyError((optimizer, setting, dtype))

    def problem(self, entry: dict[str, Any]) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
        """The initial parameters of a run, and the gradients of each of its steps."""
        with np.load(self.path / "golden" / "problem.npz") as data:
            init = [data[f"init.{name}"] for name in entry["keys"]]
            grads = [data[f"{entry['gradients']}.{name}"] for name in entry["keys"]]
        return init, [list(step) for step in zip(*grads, strict=True)]

    def trajectory(self, entry: dict[str, Any]) -> list[list[np.ndarray]]:
        """The parameters before the first step, and after each step."""
        with np.load(self.path / "golden" / entry["file"]) as data:
            return [list(step) for step in zip(*(data[key] for key in entry["keys"].values()), strict=True)]


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The recorded runs, from OPTDSL_REFERENCE or shared/reference beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "reference"
    path = Path(os.environ.get("OPTDSL_REFERENCE", beside))
    if not (path / "golden" / "index.json").is_file():
        pytest.skip(f"no recorded runs in {path}; set OPTDSL_REFERENCE")
    return Reference(path)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers from OPTDSL_SEED, or 0; the seed is printed when a test fails."""
    seed = int(os.environ.get("OPTDSL_SEED", "0"))
    print(f"OPTDSL_SEED={seed}")
    return np.random.default_rng(seed)
