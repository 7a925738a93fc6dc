"""The shipped methods in a table: what each keeps, and what a step of it costs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optdsl import __version__, driver
from optdsl.analysis.explain import explain
from optdsl.analysis.prose import cell, code
from optdsl.analysis.setting import Setting
from optdsl.check import check_path
from optdsl.core.record import record
from optdsl.resources import cache_dir, data_dir, write_bytes

#: A file in the cache.
_KEPT = "zoo.json"
#: Author and year at the head of a citation.
_SOURCE = re.compile(r"(.{1,60}?[^\d](?:19|20)\d\d)\b")


@record
class Entry:
    """One method. Bytes are per parameter, for float32 and default options; None without a plan.

    `inputs` are what its steps are given beside gradients, `view` tells whether it has one for evaluation.
    """

    name: str
    cls: str
    summary: str
    cite: str
    states: tuple[str, ...]
    state_bytes: float
    moved: float | None
    sweeps: int | None
    launches: int | None
    inputs: tuple[str, ...]
    view: bool

    @property
    def source(self) -> str:
        """Author and year."""
        found = _SOURCE.match(self.cite)
        return found[1] if found else self.cite[:40]


def entry(name: str, path: Path) -> Entry:
    """The entry of a shipped spec. Raises SpecError."""
    program = check_path(path).require()
    found = explain(program, driver.simplify(program), Setting())
    usual = found.usual.account if found.plans else None
    return Entry(
        name,
        program.name,
        program.doc.split("\n")[0],
        program.cite,
        tuple(state.key for state in found.states),
        found.state_bytes,
        usual.moved if usual else None,
        len(usual.sweeps) if usual else None,
        usual.launches if usual else None,
        tuple(state.key for state in program.inputs),
        program.view is not None,
    )


def kept() -> list[Entry] | None:
    """All entries as `keep` left them, if no file has changed that has to do with them."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found: Any = json.loads((cache_dir() / _KEPT).read_text("utf-8"))
        if found["state"] == _state():
            lists = (
                {**e, "states": tuple(e["states"]), "inputs": tuple(e["inputs"])} for e in found["entries"]
            )
            return [Entry(**e) for e in lists]
    return None


def keep(entries: Sequence[Entry]) -> None:
    """Keeps all entries for the next time; where there is no place for them, they are made again."""
    made = {"state": _state(), "entries": [dataclasses.asdict(e) for e in entries]}
    with contextlib.suppress(OSError):
        write_bytes(cache_dir() / _KEPT, json.dumps(made).encode())


def _state() -> str:
    """Tells whether the compiler or a spec is another than it was."""
    package = Path(__file__).parent.parent
    files = sorted(
        [*package.rglob("*.py"), *data_dir("grammar").rglob("*.lark"), *data_dir("specs").rglob("*.opt")]
    )
    said = [f"{f} {(s := f.stat()).st_size} {s.st_mtime_ns}" for f in files]
    return hashlib.sha256("\n".join([__version__, *said]).encode()).hexdigest()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def terminal(entries: Sequence[Entry]) -> str:
    """The table in columns."""
    rows = [("NAME", "CLASS", "STATES", "BYTES", "MOVED", "SWEEPS", "SOURCE", "WHAT IT IS")]
    for e in entries:
        numbers = (str(len(e.states)), _number(e.state_bytes), _number(e.moved), _number(e.sweeps))
        rows.append((e.name, e.cls, *numbers, e.source, e.summary))
    widths = [max(len(row[i]) for row in rows) for i in range(7)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row[:7], widths, strict=True)), row[7]]) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"


_HEAD = """# The zoo

{count} methods ship with optdsl. This page is made by `optdsl list --markdown`.

Bytes are per parameter, with float32 parameters of 1024 x 1024 and default options: of the states that are kept, and
moved (read and written) by a usual step of the fused kernels. Sweeps are passes over a tensor, launches those over
all tensors: more than one where all tensors meet in a joint reduction. A method without a plan runs by torch's
operations alone.

| name | class | what it is | states | bytes | moved | sweeps | launches | source |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def markdown(entries: Sequence[Entry]) -> str:
    """The table as a page."""
    lines = []
    for e in entries:
        more = f" Takes {', '.join(map(code, e.inputs))}." if e.inputs else ""
        more += " Has a view for evaluation." if e.view else ""
        columns = (
            code(e.name),
            code(e.cls),
            cell(e.summary) + more,
            " ".join(map(code, e.states)) or "-",
            *(_number(x) for x in (e.state_bytes, e.moved, e.sweeps, e.launches)),
            cell(e.cite),
        )
        lines.append(f"| {' | '.join(columns)} |")
    return _HEAD.format(count=len(entries)) + "\n".join(lines) + "\n"
