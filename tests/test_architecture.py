"""Imports point one way, heavy libraries have one door each, and `import optdsl` opens none of them."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import optdsl

PACKAGE = Path(optdsl.__file__).resolve().parent

# Each unit (a package or module directly in optdsl/) imports only itself and units in rows above its own.
ORDER: tuple[frozenset[str], ...] = (
    frozenset({"resources"}),
    frozenset({"core"}),
    frozenset({"lang"}),
    frozenset({"ir"}),
    frozenset({"check", "passes", "runtime"}),
    frozenset({"backends", "compose"}),
    frozenset({"driver"}),
    frozenset({"zoo", "analysis"}),
    frozenset({"search"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
# These stand alone: the standard library, themselves and the libraries named here.
ALONE = {"runtime": {"torch", "triton"}, "resources": set[str]()}

# The one module that may import each library.
DOORS = {
    "lark": "lang/grammar.py",
    "sympy": "passes/algebra/proposer.py",
    "jinja2": "backends/templates.py",
}
# What the package gives lazily, by the unit that holds it; __version__ belongs to none.
LAZY = {"load": "driver", "compile": "driver"}


@dataclass(frozen=True)
class Import:
    """One imported dotted name, such as optdsl.lang.source.Source, and the line that asks for it."""

    name: str
    line: int


def imports(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every import in `source`, those inside functions and by import_module("...") included."""
    parent = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name, node.lineno) for alias in names)
            case ast.ImportFrom(module=origin, names=names, level=level):
                start = parent.split(".")[: len(parent.split(".")) - (level - 1)] if level else []
                base = ".".join([*start, *([origin] if origin else [])])
                yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(name, node.lineno)


def row(unit: str) -> int:
    """The row of ORDER that holds `unit`, or -1."""
    return next((number for number, units in enumerate(ORDER) if unit in units), -1)


def complaint(path: str, found: Import) -> str | None:
    """What is wrong with an import in the file `path` (relative to optdsl/), or None."""
    unit = path.split("/")[0].removesuffix(".py")
    top, _, rest = found.name.partition(".")
    if top in DOORS and path != DOORS[top]:
        return f"only optdsl/{DOORS[top]} imports {top}"
    if unit in ALONE and top != "optdsl" and top not in sys.stdlib_module_names | ALONE[unit]:
        return f"{unit} imports {found.name}: it stands alone"
    if top != "optdsl" or rest == "__version__":
        return None
    if not rest:
        return "a bare `import optdsl` hides what is used: import from the module that defines it"
    target = rest.split(".")[0]
    target = LAZY.get(target, target)
    if row(unit) < 0:
        return f"{unit} has no place in ORDER"
    if row(target) < 0:
        return f"{target} has no place in ORDER"
    if target != unit and (unit in ALONE or row(target) >= row(unit)):
        return f"{unit} imports {target}"
    return None


def test_imports_point_one_way() -> None:
    complaints = []
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        if path == "__init__.py" or path.startswith("_data/"):
            continue
        module = ".".join(["optdsl", *path.removesuffix(".py").removesuffix("/__init__").split("/")])
        for found in imports(file.read_text("utf-8"), module, is_package=file.name == "__init__.py"):
            if message := complaint(path, found):
                complaints.append(f"optdsl/{path}:{found.line}: {message}")
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/types.py", "from optdsl.lang import source"),
        ("core/types.py", "def later():\n    from optdsl.lang.source import Source"),
        ("core/types.py", "from ..ir import expr"),
        ("core/types.py", "from optdsl import load"),
        ("core/types.py", "import optdsl"),
        ("lang/checker.py", "import optdsl.ir.expr"),
        ("passes/fold.py", "from optdsl.backends import printer"),
        ("backends/printer.py", "from optdsl.driver import load"),
        ("ir/program.py", "from optdsl.runtime import host"),
        ("driver.py", "from optdsl.cli import main"),
        ("driver.py", "from optdsl import zoo"),
        ("analysis/cost.py", "from optdsl.search import store"),
        ("runtime/base.py", "import numpy as np"),
        ("runtime/base.py", "from optdsl.core import ops"),
        ("runtime/base.py", "from ..core import ops"),
        ("resources.py", "import torch"),
        ("lang/parser.py", "from lark import Lark"),
        ("passes/fold.py", "import importlib\nimportlib.import_module('sympy')"),
        ("backends/torch/emit.py", "from jinja2 import Environment"),
        ("newcomer.py", "from optdsl.core import types"),
        ("cli.py", "from optdsl.newcomer import thing"),
    ],
)
def test_wrong_imports_are_found(path: str, source: str) -> None:
    module = ".".join(["optdsl", *path.removesuffix(".py").split("/")])
    assert any(complaint(path, found) for found in imports(source, module))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/ops.py", "from .types import Level\nimport math"),
        ("lang/grammar.py", "import lark\nfrom optdsl.resources import data_dir"),
        ("passes/algebra/proposer.py", "import sympy\nfrom optdsl.ir.expr import Expr"),
        ("backends/torch/emit.py", "from ..printer import text\nfrom optdsl import __version__"),
        (
            "runtime/base.py",
            "import torch\nfrom optdsl.runtime.random import Random\nfrom .random import Random",
        ),
        ("cli.py", "from optdsl import driver, zoo\nfrom optdsl import load"),
    ],
)
def test_right_imports_pass(path: str, source: str) -> None:
    module = ".".join(["optdsl", *path.removesuffix(".py").split("/")])
    assert [complaint(path, found) for found in imports(source, module) if complaint(path, found)] == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        "import optdsl\n"
        "assert {'load', 'compile', 'zoo', '__version__'} <= set(dir(optdsl))\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "sympy", "triton", "lark", "jinja2", "numpy"}
    assert heavy.isdisjoint(json.loads(run.stdout))


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'optdsl' has no attribute 'lod'"):
        _ = optdsl.lod  # type: ignore[attr-defined]
