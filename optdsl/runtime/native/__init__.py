"""Native kernels: what a class says of them, how they are built, how a step runs them."""

from optdsl.runtime.native.build import BuildError
from optdsl.runtime.native.spec import Kernel, Native

__all__ = ["BuildError", "Kernel", "Native"]
