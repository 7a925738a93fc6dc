"""What `optdsl search` does."""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch

from optdsl import __version__, driver
from optdsl.core.record import record
from optdsl.search import live, report, tasks
from optdsl.search.engine import Engine, Settings
from optdsl.search.export import export
from optdsl.search.funnel import Funnel, proof
from optdsl.search.pool import Limits, Pool
from optdsl.search.space import Genome, Refused, start
from optdsl.search.store import Store

#: The share of a budget that the search gets; the funnel and the tests get the rest.
SHARE = 0.6
#: From a budget of so many seconds, or so many evaluations, on tasks of both sizes are used.
LONG, MANY = 600.0, 1000
_SHOWN = (
    "What became of proposed candidates", "Best structures of the search", "Pareto front", "Funnel",
    "Held-out tasks: overall", "Held-out tasks: each", "Ablations", "Lineage", "Events", "In short",
)  # fmt: skip


@record
class Request:
    """What was asked for. `budget` is in seconds; exactly one of it and `evaluations` is given."""

    starts: Sequence[str]
    tasks: Sequence[str]
    store: Path
    seed: int = 0
    arm: str = "evolution"
    workers: int = 1
    population: int = 100
    budget: float | None = None
    evaluations: int | None = None
    sizes: str | None = None
    proof: bool = True


def seconds(text: str) -> float:
    """A time such as `90s`, `30m`, `2h`. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text.strip())
    number = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not number > 0:
        raise ValueError(f"`{text}` is no time: write 90s, 30m or 2h")
    return number


def search(request: Request) -> bool:
    """Searches, or goes on, and prints a report; False where Ctrl-C ended it. Raises ValueError."""
    for name in ("scipy", "sklearn"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"a search needs {name}: pip install optdsl[search]")
    genomes = [_start(name) for name in request.starts]
    chosen = list(dict.fromkeys(tasks.task(name) for name in request.tasks or tasks.names("search", "small")))
    names = tuple(task.name for task in chosen)
    settings = Settings(
        tuple(request.starts), names, arm=request.arm, seed=request.seed, population=request.population
    )
    both = request.sizes == "both"
    if request.sizes is None:
        both = (request.budget or 0) >= LONG or (request.evaluations or 0) >= MANY
    versions = {
        "optdsl": __version__, "torch": torch.__version__, "numpy": numpy.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
    finished = True
    with Store(request.store) as store:
        try:
            with (
                Pool(request.workers, Limits(seconds=600.0), ["optdsl.search.jobs"]) as pool,
                live.view() as tick,
            ):
                engine = Engine(settings, store, pool, genomes, chosen, versions)
                if store.phase == "search":
                    budget = None if request.budget is None else SHARE * request.budget
                    engine.search(evaluations=request.evaluations, seconds=budget, tick=tick)
                if request.proof:
                    if store.noted("both sizes") is None:
                        store.note("both sizes", both)
                    Funnel(engine, proof(names, store.noted("both sizes")), tick=tick).run()
        except KeyboardInterrupt:
            finished = False
        print(report.text(store, _SHOWN), end="")
        if not finished:
            print("interrupted: the same command goes on from here")
        elif store.phase == "finished":
            print(f"everything is in {request.store}: `optdsl search report {request.store} -o report.html`")
    return finished


def _start(name: str) -> Genome:
    path = Path(name)
    try:
        return start(path if path.is_file() else driver.locate(name))
    except Refused as reason:
        raise ValueError(f"a search cannot start from `{name}`: it {reason}") from None


def write_report(path: Path, out: Path | None) -> None:
    """The report of a store: as text, or as a page in the file `out`."""
    with Store(path, write=False) as store:
        if out is None:
            print(report.text(store), end="")
            return
        driver.write(out, report.page(store))
        print(f"{path} -> {out}")


def write_specs(path: Path, folder: Path) -> None:
    """The winners of a store as specs."""
    with Store(path, write=False) as store:
        for made in export(store, folder):
            print(f"{path} -> {made}")
