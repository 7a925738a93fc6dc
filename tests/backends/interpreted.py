"""Triton kernels on tensors of the CPU, in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH = "TRITON_INTERPRET"


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


with interpreted():
    import optdsl.runtime.triton.batch  # noqa: F401
