"""What backends for kernels contribute to the class that the torch backend emits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from optdsl.core.record import record

if TYPE_CHECKING:
    from optdsl.backends.kernels import Source
    from optdsl.ir.program import Program

#: The backends for kernels.
NAMES = ("cpu", "triton")


@record
class Native:
    """The files of the kernels, and lines for the body of the Python class.

    `reason` says why there are no kernels; the other fields are then empty. `library` is what the kernels leave to
    torch, None if there is nothing.
    """

    reason: str | None = None
    sources: tuple[Source, ...] = ()
    declarations: tuple[str, ...] = ()
    function: tuple[str, ...] = ()
    library: Program | None = None


def native(
    program: Program,
    source: str,
    digest: str,
    module: str,
    names: Mapping[str, str],
    backends: Collection[str],
) -> Native:
    """The kernels that these backends make of a program, simplified and not lowered, from the spec file `source`.

    `module` is the name of the generated files, `names` maps hyperparameters to the names they have in Python.
    """
    from optdsl.backends.kernels import Kernels, NoKernels

    try:
        kernels = Kernels(program, names)
    except NoKernels as reason:
        return Native(str(reason))
    sources = []
    if "cpu" in backends:
        from optdsl.backends.cpu import emit as emit_c

        sources.append(emit_c(kernels, source, digest, module))
    if "triton" in backends:
        from optdsl.backends.triton import emit as emit_triton

        sources.append(emit_triton(kernels, source, digest, module))
    declarations = kernels.declarations(sources)
    library = None if kernels.library is None else kernels.library.program
    return Native(None, tuple(sources), tuple(declarations), tuple(kernels.function()), library)
