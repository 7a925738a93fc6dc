"""The one module that knows jinja2. Templates place finished lines; no logic, types or naming in them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from pathlib import Path
from typing import Any

from optdsl import __version__
from optdsl.resources import cache_dir, write_bytes

#: How templates are read. Nothing is escaped: the view hands over finished source lines, with every string quoted.
_SYNTAX: dict[str, Any] = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
    "autoescape": False,
}


@functools.cache
def _environment(folder: Path) -> Any:
    import jinja2

    release = hashlib.sha256(f"{__version__} {sys.version_info} {_SYNTAX}".encode()).hexdigest()[:16]

    class Kept(jinja2.BytecodeCache):
        """Compiled templates, kept between runs: compiling them takes longer than filling them in.

        What is kept holds the hash of its template and the version of jinja2's code; if these are not as they should
        be, or nothing of use is found, the template is compiled anew.
        """

        def load_bytecode(self, bucket: Any) -> None:
            with contextlib.suppress(Exception):
                bucket.bytecode_from_string(self.place(bucket).read_bytes())

        def dump_bytecode(self, bucket: Any) -> None:
            with contextlib.suppress(OSError):
                write_bytes(self.place(bucket), bucket.bytecode_to_string())

        def place(self, bucket: Any) -> Path:
            return cache_dir() / f"template-{release}-{bucket.key[:16]}.bytecode"

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        bytecode_cache=Kept(),
        **_SYNTAX,
    )


def render(folder: Path, template: str, view: dict[str, Any]) -> str:
    """The template `folder/template` filled with `view`."""
    return str(_environment(folder).get_template(template).render(**view))
