"""What `optdsl bench` does: measures, prints tables as they come, writes files."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from optdsl.analysis.bench import report as show
from optdsl.analysis.bench.peers import Method
from optdsl.analysis.bench.results import Measurement, Report
from optdsl.analysis.bench.run import Listener, Settings, bench
from optdsl.resources import write_bytes


def run(
    methods: Sequence[Method],
    settings: Settings,
    out: Path | None = None,
    json_file: Path | None = None,
    plot: bool = True,
) -> Report:
    """Measures and prints; writes `bench.json` and a picture of every method to `out`, JSON to `json_file`.

    A KeyboardInterrupt is raised again after what was measured so far is printed and written (no pictures).
    """
    for folder in (out, json_file and json_file.parent):  # an error now, not after all the work
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    if json_file is not None and json_file.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(json_file))
    screen = _Screen()
    report = Report()
    try:
        bench(methods, settings, report, Listener(screen.started, screen.done, screen.progress))
    finally:
        screen.clear()
        if report.measurements:
            screen.end(report)
            for target in (json_file, out and out / "bench.json"):
                if target is not None:
                    write_bytes(target, show.to_json(report).encode())
                    print(f"{target} written")
    if out is not None and plot:
        for method in methods:
            try:
                data = show.plot(report, method.name)
            except show.NoMatplotlib:
                print("no picture: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
                break
            if data is not None:
                target = out / f"bench-{method.name}.png"
                write_bytes(target, data)
                print(f"{target} written")
    return report


class _Screen:
    """Prints tables to standard output, and on a terminal the progress to standard error."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def clear(self) -> None:
        """Removes the line of progress."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def progress(self, text: str) -> None:
        """Shows what is being done."""
        if self.live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def started(self, report: Report) -> None:
        """Prints what is known of the machine."""
        self.clear()
        print(show.header(report), flush=True)

    def done(self, measurement: Measurement) -> None:
        """Prints the table of one measurement."""
        self.clear()
        print(f"\n{show.table(measurement)}", flush=True)

    def end(self, report: Report) -> None:
        """Prints what follows from several measurements."""
        text = show.closing(report)
        if text:
            print(f"\n{text}")
        if report.interrupted:
            print("\ninterrupted: this is what was measured so far")


__all__ = ["run"]
