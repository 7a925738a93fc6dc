"""Tables of the Triton backend agree with what they stand for, and its files are laid out as caches need it."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from optdsl.backends.cpu import printer as c_printer
from optdsl.backends.triton import printer
from optdsl.backends.triton.emit import LIBRARY as OFFERED
from optdsl.core.ops import CORE, Rule
from optdsl.runtime.native import batch
from tests.backends.interpreted import HERE, needs_triton
from tests.support import NAMES, ROOT, WITHOUT_KERNELS

LIBRARY = importlib.import_module("optdsl.runtime.triton.library") if HERE else None
HEADER = 7


@pytest.mark.parametrize("spelled", [printer.SPELLED, c_printer.SPELLED], ids=["triton", "cpu"])
def test_the_printers_spell_every_operator(spelled: frozenset[str]) -> None:
    """But those on matrices, which kernels do not have, and those on lists, which are for the host."""
    assert {op for op, row in CORE.items() if row.rule is not Rule.LIST} == spelled | c_printer.UNSUPPORTED


@needs_triton
def test_the_library_has_what_the_emitter_may_import() -> None:
    assert LIBRARY is not None
    assert set(LIBRARY.__all__) == OFFERED
    assert all(hasattr(LIBRARY, name) for name in OFFERED)


@needs_triton
@pytest.mark.parametrize("name", sorted(name for name in OFFERED if name.isupper()))
def test_cells_are_those_of_the_table(name: str) -> None:
    """The same in the library, on the host and in table.h."""
    assert LIBRARY is not None
    here = getattr(batch, "CHUNK_CELL" if name == "CHUNK" else name)
    header = (ROOT / "optdsl" / "runtime" / "native" / "table.h").read_text()
    cells = re.findall(r"^    (\w+)\b", header[header.index("enum {") :], re.MULTILINE)
    assert getattr(LIBRARY, name).value == here == cells.index(name)


WITH_KERNELS = [name for name in NAMES if name not in WITHOUT_KERNELS]


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_the_header_has_a_fixed_height(name: str) -> None:
    """Triton keeps kernels by the line at which a function stands, too."""
    lines = (ROOT / "generated" / f"{name}.triton.py").read_text().split("\n")
    more = lines[HEADER].startswith("from optdsl.runtime.triton.codes import ")
    assert lines[HEADER + more].startswith("from optdsl.runtime.triton.library import ")
    assert lines[HEADER + more + 3].startswith("# of kernel")
    assert lines[HEADER + more + 4] == "@triton.jit"


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_every_function_is_of_a_kernel_and_the_other_way_round(name: str) -> None:
    module = ast.parse((ROOT / "generated" / f"{name}.triton.py").read_text())
    functions = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    cls = importlib.import_module(f"optdsl.zoo.{name}")
    native = getattr(cls, cls.__all__[0])._native
    named = {f for kernel in native.kernels for f in (*kernel.passes, *kernel.between) if f}
    assert {f.removesuffix("_chunk") for f in functions} == named
    for kernel in native.kernels:
        assert len(kernel.passes) == kernel.sweeps == len(kernel.between) - 1


def test_files_lie_beside_their_class() -> None:
    assert {path.name for path in Path(ROOT / "generated").glob("*.triton.py")} == {
        f"{n}.triton.py" for n in WITH_KERNELS
    }
