"""Plans as C for the CPU, and what the generated class says about them."""

from optdsl.backends.cpu.emit import NAME, emit, plans, supports

__all__ = ["NAME", "emit", "plans", "supports"]
