"""Plans as C for the CPU."""

from optdsl.backends.cpu.emit import NAME, emit

__all__ = ["NAME", "emit"]
