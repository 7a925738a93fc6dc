"""What `optdsl search` does."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch

from optdsl import __version__, driver
from optdsl.core.record import record
from optdsl.search import cluster, report, tasks
from optdsl.search import live as views
from optdsl.search.engine import Engine, Settings
from optdsl.search.export import export
from optdsl.search.funnel import Funnel, proof
from optdsl.search.objectives import LOSS
from optdsl.search.pool import Limits, Pool
from optdsl.search.space import Bounds, Genome, Refused, live, start, tunable
from optdsl.search.store import Store

#: Of a budget, what the funnel and the tests get: this share, but no more than so many seconds. How much they train
#: does not depend on the length of the search.
SHARE, MOST = 0.4, 900.0
#: From a budget of so many seconds, or so many evaluations, on tasks of both sizes are used.
LONG, MANY = 600.0, 1000
_SHOWN = (
    "What became of proposed candidates", "Best structures of the search", "Pareto front", "Funnel",
    "Held-out tasks: overall", "Held-out tasks: each", "Ablations", "Lineage", "Events", "In short",
)  # fmt: skip


@record
class Request:
    """What was asked for. `budget` is in seconds; exactly one of it and `evaluations` is given.

    `executor` is "local" or "dask", `scheduler` the address of a cluster that is running; `workers` None is one.
    """

    starts: Sequence[str]
    tasks: Sequence[str]
    store: str
    seed: int = 0
    arm: str = "evolution"
    workers: int | None = None
    executor: str = "local"
    scheduler: str | None = None
    population: int = 100
    ahead: int = 8
    objectives: Sequence[str] = (LOSS,)
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


def for_search(budget: float) -> float:
    """Of so many seconds, those of the search itself."""
    return budget - min(SHARE * budget, MOST)


def search(request: Request) -> bool:
    """Searches, or goes on, and prints a report; False where Ctrl-C ended it. Raises ValueError."""
    for name in ("scipy", "sklearn"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"a search needs {name}: pip install optdsl[search]")
    genomes = [_start(name) for name in request.starts]
    chosen = list(dict.fromkeys(tasks.task(name) for name in request.tasks or tasks.names("search", "small")))
    names = tuple(task.name for task in chosen)
    settings = Settings(
        tuple(request.starts), names, arm=request.arm, seed=request.seed, population=request.population,
        ahead=request.ahead, objectives=tuple(request.objectives),
    )  # fmt: skip
    executor = _executor(request)
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
                executor() as workers,
                views.view() as tick,
            ):
                engine = Engine(settings, store, workers, genomes, chosen, versions)
                others = len(store.runs()) - 1
                if others:
                    print(f"run {store.run} of {store.name}, beside {others} more", file=sys.stderr)
                if store.phase == "search":
                    budget = None if request.budget is None else for_search(request.budget)
                    engine.search(evaluations=request.evaluations, seconds=budget, tick=tick)
                if request.proof:
                    if store.noted("both sizes") is None:
                        store.note("both sizes", both)
                    Funnel(engine, proof(names, store.noted("both sizes")), tick=tick).run()
        except KeyboardInterrupt:
            finished = False
        if store.run is None:
            print("interrupted before it began")
            return False
        print(report.text(store, _SHOWN), end="")
        if not finished:
            print("interrupted: the same command goes on from here")
        elif store.phase == "finished":
            chosen_run = f" --run {store.run}" if len(store.runs()) > 1 else ""
            print(
                f"everything is in {store.name}: `optdsl search report {store.name}{chosen_run} -o report.html`"
            )
    return finished


def _executor(request: Request) -> Callable[[], Pool | cluster.Cluster]:
    """What makes the workers; what is wrong with a request is told before anything is made."""
    limits, preload = Limits(seconds=600.0), ["optdsl.search.jobs"]
    # there are never more jobs at a time, so that another process would only take memory
    workers = min(request.workers or 1, max(request.ahead, len(request.starts)))
    if request.executor == "local":
        if request.scheduler is not None:
            raise ValueError("`--scheduler` goes with `--executor dask`")
        return lambda: Pool(workers, limits, preload)
    scheduler = cluster.scheduler(request.scheduler)
    if scheduler is not None and request.workers is not None:
        raise ValueError(f"`--workers` are for this machine alone: a search takes all those of {scheduler}")
    return lambda: cluster.Cluster(workers, scheduler, limits, preload)


def _start(name: str) -> Genome:
    path, bounds = Path(name), Bounds()
    try:
        genome = start(path if path.is_file() else driver.locate(name))
    except Refused as reason:
        raise ValueError(f"a search cannot start from `{name}`: it {reason}") from None
    if excess := bounds.excess(live(tunable(genome))):
        raise ValueError(f"a search cannot start from `{name}`: it has {bounds.limit(excess)}")
    return genome


def write_report(store: str, out: Path | None, run: int | None = None) -> None:
    """The report of a run, the last one of the store without: as text, or as a page in the file `out`."""
    with Store(store, write=False, run=run) as found:
        if out is None:
            print(report.text(found), end="")
            return
        driver.write(out, report.page(found))
        print(f"{found.name} -> {out}")


def write_specs(store: str, folder: Path, run: int | None = None) -> None:
    """The winners of a run as specs."""
    with Store(store, write=False, run=run) as found:
        for made in export(found, folder):
            print(f"{found.name} -> {made}")
