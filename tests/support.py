"""What several test modules share: commands in processes of their own, small specs, modules from files."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "specs").glob("*.opt"))
NAMES = [path.stem for path in SHIPPED]
#: Methods that every test of all of them takes: those with forms of their own, in options, levels and reductions.
CORE = (
    *(
        "adabelief",
        "adadelta",
        "adagrad",
        "adagradnorm",
        "adam",
        "adamax",
        "adamw",
        "asgd",
        "diffgrad",
        "lamb",
    ),
    *("lars", "lion", "nadam", "orthograd", "radam", "rmsprop", "rprop", "sgd", "signsgd"),
    *("schedule_free_adamw", "adafactor", "came", "sm3", "dog", "sgd_multistep"),
)


def _with(text: str) -> frozenset[str]:
    """The shipped methods in whose generated class this text stands."""
    files = {name: ROOT / "generated" / f"{name}.py" for name in NAMES}
    return frozenset(n for n, path in files.items() if path.is_file() and text in path.read_text("utf-8"))


#: Methods that are given more than gradients; tests of their own feed them.
WITH_INPUTS = _with("given=True")
#: Methods without kernels, for whatever reason.
WITHOUT_KERNELS = _with("_no_kernels =")


def lacking(cls: Any, options: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """A class like `cls` that has no kernel for tensors of this shape with these options."""
    from dataclasses import replace

    import torch

    from optdsl.runtime.states import facts_of

    group = {**cls([torch.nn.Parameter(torch.zeros(shape))]).defaults, **options}
    leaf, _, _ = cls._kernel(group, 1, facts_of(torch.Size(shape)), {})
    modes = list(cls._native.modes)
    modes[leaf] = (-1, -1, -1)
    native = replace(cls._native, modes=tuple(modes), lacking="nobody wrote one")
    return type(cls.__name__, (cls,), {"_native": native})


def _picked() -> list[str]:
    """CORE and every eighth of the others, or with OPTDSL_FULL all: what takes time is tried on these.

    Left out are those that the tests of all methods do not fit: with inputs or random numbers, without kernels or a
    learning rate, without an effect in the first step.
    """
    odd = {
        *WITH_INPUTS,
        *WITHOUT_KERNELS,
        *_with("_random = True"),
        "extra_sgd",
        "extra_adam",
        "rm3",
        "adashift",
        "adopt",
    }
    others = [name for name in NAMES if name not in CORE]
    taken = others if os.environ.get("OPTDSL_FULL") else others[::8]
    return sorted({*CORE, *taken} & _with('Hyper("lr"') - odd)


PICKED = _picked()
PICKED_PATHS = [path for path in SHIPPED if path.stem in PICKED]
#: Fewer of them, for what takes longest.
FEW_PATHS = [path for path in PICKED_PATHS if path.stem in CORE or os.environ.get("OPTDSL_FULL")]

#: The C compiler, or None.
COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler `cc`")

#: A spec without mistakes and one with two of them.
PLAIN = '''optimizer Plain:
    """Plain descent."""

    hyper:
        lr = 1e-2 in [0, inf)  "learning rate"

    step:
        p = p - lr * g
'''
BAD = """optimizer Bad:
    hyper:
        lr = 1e-2 in [0, inf)

    step:
        p = p - lr * grad
        q = momentum
"""
TRANSFORM = """transform Halve:
    step:
        g = 0.5 * g
"""


def environment(**changes: str | None) -> dict[str, str]:
    """The variables of this process, with the checkout importable and no colours; None removes one."""
    found = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **changes}
    return {name: value for name, value in found.items() if value is not None}


def python(*words: str | Path, cwd: Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Runs Python with `words` and returns what became of it; `changes` are to the environment."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=False,
    )


def command(*words: str | Path, cwd: Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Runs the command line."""
    return python("-m", "optdsl", *words, cwd=cwd, **changes)


def good(run: subprocess.CompletedProcess[str]) -> str:
    """What a run printed; fails with everything it said unless it exited with 0."""
    assert run.returncode == 0, f"exit {run.returncode}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def module_of(path: Path, name: str = "compiled_for_a_test") -> ModuleType:
    """The module in the file at `path`."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def class_of(module: ModuleType) -> Any:
    """The optimizer of a generated module."""
    return getattr(module, module.__all__[0])


def files(folder: Path) -> set[str]:
    """Names of everything in a folder, hidden things included."""
    return {path.name for path in folder.iterdir()}


@contextlib.contextmanager
def unwritable() -> Iterator[Path]:
    """A folder in which this process may read but not write, though it may run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def most_memory(call: Callable[[], Any]) -> int:
    """The most bytes of tensors on the CPU that `call` has at a time beyond what there was before it."""
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    found = profile.profiler.kineto_results.events()
    events = sorted((e for e in found if e.name() == "[memory]"), key=lambda event: event.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return most
