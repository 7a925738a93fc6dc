"""Classes with native kernels, made of programs in memory."""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from optdsl.backends import cpu
from optdsl.backends import torch as torch_backend
from optdsl.ir.program import Program
from optdsl.passes.simplify import simplify
from tests.backends.differential import Way

_FOLDER = Path(tempfile.mkdtemp(prefix="optdsl-tests-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


class NoKernels(Exception):
    """The backend has no kernels for a program."""


def native_class(program: Program, simplified: bool = True) -> Any:
    """The class of a program, with native kernels. Raises NoKernels."""
    program = simplify(program) if simplified else program
    names = torch_backend.python_names(program)
    digest = hashlib.sha256(f"{program.digest()} {simplified}".encode()).hexdigest()[:16]
    module = f"native_{digest}"
    if module not in sys.modules:
        made = cpu.emit(program, "random.opt", "0" * 64, module, names)
        if made.reason is not None:
            raise NoKernels(made.reason)
        (_FOLDER / f"{module}.c").write_text(made.source)
        path = _FOLDER / f"{module}.py"
        path.write_text(torch_backend.emit(program, "random.opt", "0" * 64, made))
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    return getattr(sys.modules[module], program.name)


NATIVE = Way("native", native_class, {"fused": True})
