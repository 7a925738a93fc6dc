"""What a search shows of itself while it works: a panel in a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from optdsl.search.engine import Progress, Tick
from optdsl.search.results import percent

#: Seconds between two lines where there is no terminal.
EVERY = 10.0


@contextlib.contextmanager
def view(to: TextIO | None = None) -> Iterator[Tick]:
    """Gives what shows the progress."""
    out = sys.stderr if to is None else to
    if not out.isatty():
        yield _lines(out)
        return
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        print("for a live view: pip install optdsl[search]", file=out)
        yield _lines(out)
        return
    with Live(console=Console(file=out), refresh_per_second=4, transient=True) as live:
        yield lambda progress: live.update(_panel(progress))


def line(progress: Progress) -> str:
    """The progress in one line."""
    if progress.phase != "search":
        return f"{progress.phase}: {progress.text} measured"
    rate = progress.here / progress.seconds if progress.seconds else 0.0
    best = progress.best
    told = (
        f"best {percent(best.score)} (candidate {best.candidate.id})" if best is not None else "no result yet"
    )
    counts = progress.counts
    proposed, new = counts.get("all", 0), counts.get("new", 0)
    text = f"search: {progress.evaluations} evaluations, {rate:.2f} a second; {told}; "
    return text + f"{proposed} proposed, {proposed - new} answered by filters; {progress.restarts} restarts"


def _lines(out: TextIO) -> Tick:
    last: tuple[str, float] = ("", -1e9)

    def tick(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if progress.phase != last[0] or now - last[1] >= EVERY:
            last = (progress.phase, now)
            print(line(progress), file=out, flush=True)

    return tick


def _panel(progress: Progress) -> Any:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for part in line(progress).split("; "):
        name, _, value = part.partition(": ")
        grid.add_row(Text(name if value else ""), Text(value or name))
    filters = sorted(((n, reason) for reason, n in progress.counts.items() if reason != "all"), reverse=True)[
        :6
    ]
    grid.add_row(Text("filters"), Text(", ".join(f"{reason} {n}" for n, reason in filters)))
    if progress.best is not None:
        grid.add_row(Text("best"), Text(str(progress.best.genome)))
    return Panel(grid, title="optdsl search")
