"""The C file of a spec."""

from __future__ import annotations

from pathlib import Path

from optdsl import __version__
from optdsl.backends.cpu.kernel import KernelText
from optdsl.backends.kernels import Kernels, Source, Unit, in_comment
from optdsl.backends.revision import REVISION
from optdsl.backends.templates import render

NAME = "cpu"


def emit(kernels: Kernels, source: str, digest: str, module: str) -> Source:
    """The C file of the kernels of a program that comes from the spec file `source`.

    `module` is the name of the generated files.
    """
    view = {
        "version": __version__,
        "source": in_comment(source),
        "digest": digest,
        "revision": REVISION,
        "name": in_comment(kernels.program.name),
        "units": [{"number": u.number, "lines": _lines(u)} for u in kernels.units],
    }
    return Source("c", f"{module}.c", render(Path(__file__).parent, "kernels.c.jinja", view))


def _lines(unit: Unit) -> list[str]:
    names = [in_comment(array.key or array.name) for array in unit.arrays]
    legend = ", ".join(f"{index} {name}" for index, name in enumerate(names))
    lines = [f"/* Arrays: {legend} */"]
    texts = [KernelText(cells, number) for number, cells in enumerate(unit.cells)]
    for text in texts:
        lines += text.lines()
    pointers = ", ".join(f"&{text.name}" for text in texts)
    return [*lines, f"EXPORT const Kernel *const optdsl_kernels[] = {{{pointers}}};"]
