"""Triton kernels on tensors of the CPU, in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SWITCH = "TRITON_INTERPRET"
HERE = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HERE, reason="Triton is not installed")


@contextmanager
def interpreted() -> Iterator[None]:
    """Asks for the interpreter. What is imported of Triton for the first time in here works there for good."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def _swap_once() -> None:
    """Lets the interpreter put its own functions in place of those of a module of Triton once a launch.

    It does so again in every call of a function of a kernel, to no effect but that a launch takes twice as long.
    """
    from triton import language
    from triton.runtime import interpreter

    swap: Any = interpreter._patch_lang
    done: list[Any] = []  # the modules that a function of this launch has seen

    def swapped(function: Any) -> Any:
        seen = [x for x in function.__globals__.values() if x is language or x is language.core]
        if done and all(module in done for module in seen):
            return None  # who calls a function has no use for it
        scope, first = swap(function), not done
        done.extend(seen)
        if first:  # that of the launch, which is closed behind it
            close = scope.restore

            def restore() -> None:
                done.clear()
                close()

            scope.restore = restore
        return scope

    interpreter._patch_lang = swapped


if HERE:
    with interpreted():
        import optdsl.runtime.triton.batch  # noqa: F401
    _swap_once()
