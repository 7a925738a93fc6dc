"""The shipped methods, compiled: `from optdsl.zoo import AdamW`.

Each class lives in its generated file, `optdsl.zoo.adamw` for the spec `adamw`.
"""

from __future__ import annotations

import functools
import importlib
import re
from typing import Any

from optdsl.resources import data_dir

# the generated files are the modules of this package
__path__ = [str(data_dir("generated"))]


@functools.cache
def _classes() -> dict[str, str]:
    """Module of every shipped class, from the `__all__` lines of the generated files."""
    found = {}
    for path in sorted(data_dir("generated").glob("*.py")):
        match = re.search(r'^__all__ = \["(\w+)"\]$', path.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            found[match[1]] = path.stem
    return found


def __getattr__(name: str) -> Any:
    classes = _classes()
    if name == "__all__":
        return sorted(classes)
    if name not in classes:
        from optdsl.lang.diagnostics import nearest

        help = nearest(name, classes)
        raise AttributeError(f"optdsl.zoo has no optimizer {name!r}" + (f"; {help}" if help else ""))
    value = getattr(importlib.import_module(f"{__name__}.{classes[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_classes())
