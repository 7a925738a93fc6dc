"""The one module that knows jinja2. Templates place finished lines; no logic, types or naming in them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any


@functools.cache
def _environment(folder: Path) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # nothing is escaped: the view hands over finished source lines, with every string already quoted
    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(folder: Path, template: str, view: dict[str, Any]) -> str:
    """The template `folder/template` filled with `view`."""
    return str(_environment(folder).get_template(template).render(**view))
