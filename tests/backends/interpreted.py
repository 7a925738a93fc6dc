"""Triton kernels on tensors of the CPU, in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

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


if HERE:
    with interpreted():
        import optdsl.runtime.triton.batch  # noqa: F401
