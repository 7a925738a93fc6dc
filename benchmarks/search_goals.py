"""What takes searches of its own to say: what evolution is worth beside simpler arms, and what it repairs.

    python benchmarks/search_goals.py arms [--seeds 0 1 2 3 4] [--seconds 150] [--workers 2] [--json FILE]
    python benchmarks/search_goals.py repairs [root ...] [--arm tuning] [--seeds 0 1 2 3 4] [--seconds 180] ...

`arms`: from AdamW on the tasks of the search split, each arm for as many seconds. The best of eight finalists on
fresh seeds is what an arm has found (the start, where none is better), and is tuned on tasks that no arm has seen:
the same ones ten times as large, and both sizes of the validation split. All arms have the same seeds there, and so
has AdamW as it was first tuned. Evolution is ahead where its mean log loss over these tasks is lower.

`repairs`: from a rule with a flaw, until the best candidate is as good as a rule without it, or for so many seconds.
Where it seems so on seeds of the search, both are tuned anew with the same number of configurations, on seeds that no
attempt before has had; only that counts. The attempts are part of the time. With `--arm tuning` it is told what
constants alone repair.

Seconds are those of one processor core, whoever else uses the machine. `--workers` are processes that do one search
each.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optdsl.analysis.bench.machine import facts
from optdsl.core.record import record
from optdsl.resources import write_bytes
from optdsl.search import tasks
from optdsl.search.engine import ARMS, Engine, Settings
from optdsl.search.evaluate.tune import Effort, Tuned, log_ratios, tune
from optdsl.search.funnel import EFFORTS, Funnel, Proof, proof
from optdsl.search.jobs import Inline
from optdsl.search.results import mean_ratio, percent
from optdsl.search.simplify import simplify
from optdsl.search.space import Genome, express, live, start, tunable
from optdsl.search.statistics import compare, wilcoxon
from optdsl.search.store import Store
from optdsl.search.tasks import Task
from optdsl.search.tasks.base import Batch, generator_of, of
from optdsl.search.tasks.generated import Regression

Row = dict[str, Any]


def search(engine: Engine, seconds: float, done: Callable[[], bool] = lambda: False) -> float:
    """Searches for so many seconds of a core, or until it is done. Returns the seconds that it took."""
    begin = time.process_time()
    while not engine.members or (time.process_time() - begin < seconds and not done()):
        engine.search(evaluations=len(engine.members) + 1)
    return time.process_time() - begin


# ---- arms -------------------------------------------------------------------------------------------------


def arm(
    name: str,
    seed: int,
    seconds: float,
    names: Sequence[str],
    meta: Proof,
    efforts: Mapping[str, Effort] | None = None,
) -> Row:
    """What an arm has found, and its log losses on the meta tasks; without any search where it is called "start"."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "run.db") as store:
        known = [tasks.task(n) for n in names]
        settings = Settings(("adamw",), tuple(names), arm="evolution" if name == "start" else name, seed=seed)
        engine = Engine(settings, store, Inline(), [start("adamw")], known)
        spent = search(engine, 0 if name == "start" else seconds)
        funnel = Funnel(engine, meta, efforts=efforts)
        first = chosen = funnel._base(engine.members[0])
        finalists = funnel._finalists(engine.members[0])
        scores = {first: 0.0, **funnel._compared("fresh", finalists, first, names)}
        chosen = min(scores, key=lambda i: (scores[i], i))
        found = {
            **funnel.measure("large", [chosen], meta.large)[chosen],
            **funnel.measure("validation", [chosen], meta.validation)[chosen],
        }
        assert engine.best is not None
        return {
            "arm": name, "seed": seed, "seconds": spent, "evaluations": len(engine.members),
            "search": engine.best.score, "fresh": scores[chosen], "finalists": len(finalists),
            "rule": str(store.candidate(chosen).genome), "logs": {n: t.logs.tolist() for n, t in found.items()},
        }  # fmt: skip


def arms(
    seeds: Sequence[int],
    seconds: float,
    workers: int,
    names: Sequence[str],
    meta: Proof,
    efforts: Mapping[str, Effort] | None = None,
) -> Row:
    """Each arm for each seed, and evolution beside the others, seed by seed."""
    jobs = [(name, seed, seconds, names, meta, efforts) for seed in seeds for name in (*ARMS, "start")]
    rows, won = list[Row](), list[Row]()
    for row in done(arm, jobs, workers):
        rows.append(row)
        about = f"{row['evaluations']} evaluations in {row['seconds']:.0f} s"
        print(
            f"seed {row['seed']} {row['arm']:9} {about}: {percent(row['search'])} in the search, "
            f"{percent(row['fresh'])} on fresh seeds",
            flush=True,
        )
        if row["arm"] == "start":
            won.append(against(row["seed"], {r["arm"]: r["logs"] for r in rows if r["seed"] == row["seed"]}))
    ahead, sure = (sum(row[what] for row in won) for what in ("ahead", "sure"))
    print(
        f"evolution is ahead of both other arms in {ahead} of {len(seeds)} repeats, with both intervals in {sure}"
    )
    return {"tasks": list(names), "meta": [*meta.large, *meta.validation], "rows": rows, "evolution": won}


def against(seed: int, logs: Mapping[str, Mapping[str, Sequence[float]]]) -> Row:
    """Evolution beside the other arms and the start on the meta tasks, in pairs."""
    row: Row = {"seed": seed}
    ours = logs["evolution"]
    for name, theirs in logs.items():
        if name == "evolution":
            continue
        both = {n: [a - b for a, b in zip(ours[n], theirs[n], strict=True)] for n in ours}
        found = compare(both)
        row[name] = {"mean": found.overall.mean, "low": found.overall.low, "high": found.overall.high,
                     "worse": found.losses(), "better": found.gains()}  # fmt: skip
        print(
            f"  evolution against {name:7} {percent(found.overall.mean):>8}  ({percent(found.overall.low)} to "
            f"{percent(found.overall.high)}); significantly better on {len(found.gains())}, worse on "
            f"{len(found.losses())} of {len(both)} meta tasks",
            flush=True,
        )
    others = [row[name] for name in ARMS if name != "evolution"]
    row["ahead"] = all(x["mean"] < 0 for x in others)
    row["sure"] = all(x["high"] < 0 for x in others)
    return row


# ---- repairs ----------------------------------------------------------------------------------------------


class Noise(Regression):
    """The task of the search with one row in a batch."""

    family = "noise"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.batch = 1


class Steep(Regression):
    """Features of very different size, each as important as the others, and little noise."""

    family = "steep"
    turned, smallest, noise, length, rows_in_batch = False, -2.0, 0.1, 100, 16

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.steps, self.batch = self.length, self.rows_in_batch

    @functools.cached_property
    def problem(self) -> tuple[Tensor, Tensor]:
        generator = generator_of(10**9, 0)
        turn, _ = torch.linalg.qr(torch.randn(self.features, self.features, generator=generator))
        turn = turn if self.turned else torch.eye(self.features)
        sizes = torch.logspace(0, self.smallest, self.features).sqrt().unsqueeze(1)
        meaning = torch.randn(self.features, self.outputs, generator=generator) / self.features**0.5
        return sizes * turn, turn.T @ (meaning / (sizes**0.5 if self.turned else sizes))

    def rows(self, generator: torch.Generator, *count: int) -> Batch:
        mix, teacher = self.problem
        x = torch.randn(*count, self.features, generator=generator) @ mix
        return x, x @ teacher + self.noise * torch.randn(*count, self.outputs, generator=generator)


class Valley(Steep):
    """The same, a thousand times steeper, turned so that no weight has a size of its own, and with larger batches."""

    family = "valley"
    turned, smallest, noise, length, rows_in_batch = True, -3.0, 0.02, 200, 128


@record
class Repair:
    """A rule with a flaw, one without, and how much worse than that one is good enough."""

    start: Callable[[], Genome]
    target: Callable[[], Genome]
    tasks: Callable[[], list[Task]]
    margin: float
    about: str


def _adam(**options: float) -> Callable[[], Genome]:
    return lambda: start("adamw", **options)


def _small(*kinds: type[Task]) -> Callable[[], list[Task]]:
    return lambda: [of(kind, "small") for kind in kinds]


_PLAIN = _adam(beta1=0.0, beta2=0.99)
REPAIRS = {
    "root": Repair(
        lambda: start(Path(__file__).with_name("rootless.opt")), _adam(),
        lambda: [tasks.task(n) for n in ("digits_mlp/small", "regression/small")], 0.005,
        "AdamW without its root to AdamW",
    ),
    "noise": Repair(
        lambda: start("rmsprop", weight_decay=0.01), _adam(), _small(Noise), 0.005,
        "RMSprop to AdamW where noise is large",
    ),
    "momentum": Repair(
        _PLAIN, _adam(), _small(Valley), 0.05, "RMSprop with bias correction to AdamW in a turned valley",
    ),
    "scale": Repair(
        lambda: start("sgd", weight_decay=0.01), _PLAIN, _small(Steep), 0.02,
        "SGD to RMSprop with bias correction where features differ in size",
    ),
}  # fmt: skip


def repaired(
    name: str, seed: int, seconds: float, by: str = "evolution", effort: Effort = EFFORTS["held-out"]
) -> Row:
    """One search for a repair: whether it has come to it, after how long, and what it has found."""
    repair = REPAIRS[name]
    known = repair.tasks()
    flawed, target = repair.start(), repair.target()
    settings = Settings((name,), tuple(t.name for t in known), arm=by, seed=seed)
    searched = _tuned(target, known, settings.effort)  # on the seeds of the search
    row: Row = {"repair": name, "seed": seed, "arm": by, "attempts": 0, "repaired": False}

    def attempt() -> bool:
        """The best candidate beside the target, on seeds of this attempt."""
        assert engine.best is not None
        count = len(effort.fresh)
        at = 10_000 + 1000 * row["attempts"]
        anew = replace(effort, tuning=tuple(range(at, at + len(effort.tuning))),
                       fresh=tuple(range(at + 100, at + 100 + count)))  # fmt: skip
        best, wanted, base = (_tuned(x, known, anew) for x in (engine.best.genome, target, flawed))
        score = mean_ratio(best, wanted)
        against_start = [x for n in best for x in log_ratios(best[n], base[n])]
        row.update(
            attempts=row["attempts"] + 1, candidate=engine.best.candidate.id, score=score,
            repaired=score <= math.log1p(repair.margin), start=mean_ratio(base, wanted), p=wilcoxon(against_start),
            rule=str(simplify(live(engine.best.genome))),
        )  # fmt: skip
        return bool(row["repaired"])

    def seems() -> bool:
        best = engine.best
        if best is None or best.candidate.id == row.get("candidate"):
            return False
        return mean_ratio(best.tuned, searched) <= math.log1p(repair.margin) and attempt()

    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "run.db") as store:
        engine = Engine(settings, store, Inline(), [flawed], known)
        row["seconds"] = search(engine, seconds, seems)
        assert engine.best is not None
        if not row["repaired"] and engine.best.candidate.id != row.get("candidate"):
            attempt()  # for the record: the time is over
            row["late"] = row["repaired"]
            row["repaired"] = False
        row["evaluations"] = len(engine.members)
    return row


def _tuned(genome: Genome, known: Iterable[Task], effort: Effort) -> dict[str, Tuned]:
    program = express(live(tunable(genome)))
    return {task.name: tune(program, task, effort) for task in known}


def repairs(names: Sequence[str], seeds: Sequence[int], seconds: float, workers: int, by: str) -> Row:
    """Each repair for each seed."""
    rows = []
    jobs = [(name, seed, seconds, by) for name, seed in itertools.product(names, seeds)]
    for row in done(repaired, jobs, workers):
        rows.append(row)
        how = "repaired" if row["repaired"] else "not repaired"
        print(
            f"{row['repair']:9} seed {row['seed']} {how} after {row['seconds']:.0f} s, {row['evaluations']} "
            f"evaluations: {percent(row['score'])} against the target, as the start {percent(row['start'])}; "
            f"{row['attempts']} attempts",
            flush=True,
        )
    for name in names:
        mine = [row for row in rows if row["repair"] == name]
        times = [row["seconds"] for row in mine if row["repaired"]]
        median = f", in {statistics.median(times):.0f} s in the median" if times else ""
        print(
            f"{REPAIRS[name].about}, to {REPAIRS[name].margin:.1%}: {len(times)} of {len(mine)}{median}",
            flush=True,
        )
    return {"arm": by, "seconds": seconds, "rows": rows}


# ---- both -------------------------------------------------------------------------------------------------


def done(work: Callable[..., Row], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterable[Row]:
    """The results of jobs in their order, each by one of so many processes; by this one where that is all."""
    if workers == 1:
        torch.set_num_threads(1)
        yield from itertools.starmap(work, jobs)
        return
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawned, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(work, *zip(*jobs, strict=True))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("arms", "repairs"))
    parser.add_argument("names", nargs="*", metavar="REPAIR", help=f"{', '.join(REPAIRS)}; default: all")
    parser.add_argument("--arm", choices=ARMS, default="evolution", help="of repairs, default: evolution")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument(
        "--seconds", type=float, help="of each search, default: 150 for an arm, 180 for a repair"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, default: 1")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if wrong := [n for n in options.names if options.what == "arms" or n not in REPAIRS]:
        parser.error(f"there is no repair {', '.join(wrong)}")
    report: Row = {"machine": facts()}
    if options.what == "arms":
        names = tasks.names("search", "small")
        report["arms"] = arms(
            options.seeds, options.seconds or 150, options.workers, names, proof(names, True)
        )
    else:
        names = options.names or list(REPAIRS)
        report["repairs"] = repairs(
            names, options.seeds, options.seconds or 180, options.workers, options.arm
        )
    if options.json:
        write_bytes(options.json, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
