"""Plans as Triton kernels for GPUs."""

from optdsl.backends.triton.emit import NAME, emit

__all__ = ["NAME", "emit"]
