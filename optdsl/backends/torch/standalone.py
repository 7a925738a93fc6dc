"""One file that needs torch alone: the runtime's source goes into the generated file."""

from __future__ import annotations

import ast
import builtins
import functools
import io
import re
import tokenize
from collections.abc import Set
from pathlib import Path

#: Modules that generated code and the runtime use as a namespace, `host.sqrt(x)`: their names are prefixed.
NAMESPACES = ("host", "foreach", "axes")


def standalone(text: str) -> str:
    """The generated file `text` with the runtime in place of the import of it."""
    runtime, outside, defined = _runtime()
    head, docstring, own_imports, rest = _split(text)
    imports = {*outside, *own_imports, "from types import SimpleNamespace"}
    _check_free(rest, defined | {re.split(r"\W", line)[-1] for line in imports})
    ordered = sorted(
        imports, key=lambda line: (line.startswith("from torch") or line.startswith("import torch"), line)
    )
    return (
        f"{head}{docstring}\n\nfrom __future__ import annotations\n\n"
        + "\n".join(ordered)
        + f"\n\n{_all(rest)}\n\n\n{runtime}\n\n# ---- the method {'-' * 84}\n\n\n{_class(rest)}"
    )


@functools.cache
def _runtime() -> tuple[str, frozenset[str], frozenset[str]]:
    """The runtime as the text of one module, the imports it needs, the names it defines."""
    folder = Path(__file__).parents[2] / "runtime"
    imports: set[str] = set()
    sections: list[str] = []
    defined: dict[str, str] = {}
    for module in _order(folder):
        source = (folder / f"{module}.py").read_text(encoding="utf-8")
        body, outside = _without_imports(source)
        imports.update(outside)
        names = _top_level(body)
        # an imported name is the same in every module; what a namespace defines itself gets a name of its own
        renamed = _aliases(source)
        if module in NAMESPACES:
            renamed |= {name: f"_{module}_{name.lstrip('_')}" for name in names}
        body = _rename(body, renamed)
        if module in NAMESPACES:
            public = sorted(name for name in names if not name.startswith("_"))
            body += f"\n\n{module} = SimpleNamespace(\n"
            body += "".join(f"    {name}={renamed[name]},\n" for name in public) + ")\n"
            names = {module, *(renamed[name] for name in names)}
        for name in names:
            if name in defined:
                raise AssertionError(f"runtime modules {defined[name]} and {module} both define {name}")
            defined[name] = module
        sections.append(
            f"# ---- optdsl.runtime.{module} " + "-" * (80 - len(module)) + "\n\n" + body.strip() + "\n"
        )
    return "\n\n".join(sections), frozenset(imports), frozenset(defined)


def _order(folder: Path) -> list[str]:
    """The runtime's modules, each behind those it imports."""
    needs: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.py")):
        if path.stem == "__init__":
            continue
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "optdsl.runtime":
                found |= {alias.name for alias in node.names}
            elif (
                isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("optdsl.runtime.")
            ):
                found.add(node.module.rsplit(".", 1)[1])
        needs[path.stem] = found
    ordered: list[str] = []
    while needs:
        ready = sorted(name for name, found in needs.items() if found <= set(ordered))
        if not ready:
            raise AssertionError(f"runtime modules import each other: {sorted(needs)}")
        ordered += ready
        for name in ready:
            del needs[name]
    return ordered


def _without_imports(source: str) -> tuple[str, list[str]]:
    """`source` without docstring and top-level imports, and the imports of other packages."""
    tree = ast.parse(source)
    lines = source.split("\n")
    outside: list[str] = []
    drop: set[int] = set()
    for index, node in enumerate(tree.body):
        is_doc = index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_doc or isinstance(node, ast.Import | ast.ImportFrom):
            drop.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("optdsl", "__future__")):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            outside += _single(node)
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in drop), outside


def _aliases(source: str) -> dict[str, str]:
    """What a module of the runtime calls things of the others, where that is not their name."""
    found: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optdsl"):
            found.update({alias.asname: alias.name for alias in node.names if alias.asname})
    return found


def _single(node: ast.Import | ast.ImportFrom) -> list[str]:
    """An import as one line per name."""
    start = f"from {node.module} import " if isinstance(node, ast.ImportFrom) else "import "
    return [start + alias.name + (f" as {alias.asname}" if alias.asname else "") for alias in node.names]


def _top_level(source: str) -> set[str]:
    """Names that a module defines."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                names |= {item.id for item in ast.walk(target) if isinstance(item, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names - {"__all__"}


def _rename(source: str, names: dict[str, str]) -> str:
    """`source` with its own top-level names replaced; attributes and strings stay."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    lines = source.split("\n")
    for index in range(len(tokens) - 1, -1, -1):
        token = tokens[index]
        if token.type != tokenize.NAME or token.string not in names:
            continue
        if index and tokens[index - 1].string == ".":
            continue
        row, column = token.start
        line = lines[row - 1]
        lines[row - 1] = line[:column] + names[token.string] + line[token.end[1] :]
    return "\n".join(lines)


def _split(text: str) -> tuple[str, str, list[str], str]:
    """(header comments, docstring, imports of other packages, the rest) of a generated file."""
    match = re.match(r'((?:#[^\n]*\n)+)(""".*?""")\n', text, re.DOTALL)
    assert match is not None
    body, outside = _without_imports(text[match.end() :])
    return match[1], match[2], outside, body.lstrip("\n")


def _check_free(rest: str, taken: Set[str]) -> None:
    """Raises ValueError when the class has the name of something that the runtime uses."""
    name = _all(rest).split('"')[1]
    if name in taken or hasattr(builtins, name):
        raise ValueError(
            f"a standalone file uses `{name}` for something else; give the optimizer another name"
        )


def _all(rest: str) -> str:
    return rest.split("\n", 1)[0]


def _class(rest: str) -> str:
    return rest.split("\n", 1)[1].lstrip("\n")
