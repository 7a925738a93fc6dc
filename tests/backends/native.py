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

from optdsl.backends import torch as torch_backend
from optdsl.backends.native import native
from optdsl.ir.program import Program
from optdsl.passes.simplify import simplify
from tests.backends.differential import Way

_FOLDER = Path(tempfile.mkdtemp(prefix="optdsl-tests-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


class NoKernels(Exception):
    """The backend has no kernels for a program."""


def _class(program: Program, simplified: bool, backend: str) -> Any:
    """The class of a program, with the kernels of a backend. Raises NoKernels."""
    program = simplify(program) if simplified else program
    names = torch_backend.python_names(program)
    digest = hashlib.sha256(f"{program.digest()} {simplified}".encode()).hexdigest()[:16]
    module = f"{backend}_{digest}"
    if module not in sys.modules:
        made = native(program, "random.opt", "0" * 64, module, names, [backend])
        if made.reason is not None:
            raise NoKernels(made.reason)
        for source in made.sources:
            (_FOLDER / source.file).write_text(source.text)
        path = _FOLDER / f"{module}.py"
        path.write_text(torch_backend.emit(program, "random.opt", "0" * 64, made))
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    return getattr(sys.modules[module], program.name)


def all_kernels(cls: Any) -> bool:
    """Whether every branch of a class has kernels for all layouts of parameters, so that they may be demanded."""
    return not cls._native.lacking and all(spec.delay is None for spec in cls._states)


def native_class(program: Program, simplified: bool = True) -> Any:
    """The class of a program, with native kernels for the CPU. Raises NoKernels."""
    return _class(program, simplified, "cpu")


def triton_class(program: Program, simplified: bool = True) -> Any:
    """The class of a program, with Triton kernels. Raises NoKernels."""
    return _class(program, simplified, "triton")


NATIVE = Way("native", native_class, {"fused": True})
