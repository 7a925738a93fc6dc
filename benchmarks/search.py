"""What an evaluation of the search costs: stacked training runs beside a loop with torch.optim, and building a rule.

    python benchmarks/search.py [--task digits_mlp/small] [--models 32 64 128] [--rounds 5] [--json FILE]
    python benchmarks/search.py --admit [small large] [--json FILE]
    python benchmarks/search.py --space 0 1 2 [--candidates 1500] [--programs 8] [--json FILE]

One thread, processor time (what a core does in a second, whoever else uses the machine); peers take turns, figures
are medians over the rounds. A run is the whole training of one model: data at hand, validation at four checkpoints.

`--space` searches once for each seed, from AdamW and with the least training there can be. It counts candidates that
filters and memory answer; those that were taken for another one and do something else on numbers of its own; and the
statements that the simplifier removes from the better half of what was found, for nothing, and where half a percent
of loss is allowed.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from optdsl.analysis.bench.machine import facts
from optdsl.ir.program import Program
from optdsl.resources import write_bytes
from optdsl.search import tasks
from optdsl.search.engine import Engine, Settings
from optdsl.search.evaluate import tune
from optdsl.search.evaluate.stacked import Stacked
from optdsl.search.evaluate.train import train
from optdsl.search.funnel import TOLERATED, TRIALS
from optdsl.search.jobs import Inline
from optdsl.search.simplify import simplify
from optdsl.search.space import Genome, express, live, of_program, start, stress, structure
from optdsl.search.space.probe import Probes, moves
from optdsl.search.store import Store
from optdsl.search.tasks import Task, admission

RULES = ("sgd", "adamw", "lion", "adabelief", "lamb", "adafactor")
SEEDS = 8


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def eager(task: Task, runs: int) -> None:
    """The same training as one writes it: a model at a time, torch.optim, a schedule, autograd."""
    for seed in range(runs):
        leaves = [x.clone().requires_grad_() for x in task.layout.views(task.init(seed)[None])]
        optimizer = torch.optim.AdamW(leaves, lr=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=task.steps)
        data = task.batches(seed, task.steps)
        for step in range(task.steps):
            optimizer.zero_grad()
            task.losses(leaves, tuple(x[step : step + 1] for x in data)).sum().backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % (task.steps // 4) == 0:
                task.validate(leaves)


def stacked_run(name: str, task: Task, models: int) -> Callable[[], Any]:
    """A call that trains so many models with a shipped method."""
    stacked = Stacked(tune.rule(name), task.layout, ("lr",), {"weight_decay": 0.01})
    rates = np.repeat(0.02 * 2.0 ** -np.arange(models // SEEDS), SEEDS)
    seeds = list(range(SEEDS)) * (models // SEEDS)
    return lambda: train(stacked, task, {"lr": rates}, seeds)


def building(name: str, task: Task) -> float:
    """Seconds from a program to functions that can be called, the code compiled anew."""
    from optdsl.search.evaluate import code

    program = tune.rule(name)

    def build() -> None:
        code._compiled.cache_clear()
        stacked = Stacked(program, task.layout, ("lr",))
        for block in stacked.blocks:
            block.step.bind()

    build()
    return statistics.median(seconds(build) for _ in range(200))


def admit(sizes: list[str]) -> dict[str, Any]:
    """The table of `optdsl.search.tasks.admission`: which tasks can tell ten known rules apart."""
    found: list[admission.Admission] = []
    for size in sizes:
        for name in tasks.names(size=size):
            row = admission.admit(tasks.task(name), found)
            found.append(row)
            print(
                f"{name:24} spread {row.spread:.3f} ({row.errors:.1f} se)  best loss {row.floor:.3f}  "
                f"{row.rows} predictions  {row.seconds:.2f} s  "
                f"{'; '.join(row.reasons) or 'admitted'}\n    {' '.join(row.ranking)}",
                flush=True,
            )
    return {row.task: {name: getattr(row, name) for name in row.__dataclass_fields__} for row in found}


def referee(seed: int, count: int, steps: int, shape: tuple[int, int, int]) -> Probes:
    """Numbers unlike those of the product."""
    rng = np.random.default_rng(seed)
    whole = (count, *shape)
    size, stays = 10 ** rng.uniform(-3, 1.5, (count, 1, 1, 1)), rng.uniform(0, 1, (count, 1, 1, 1))
    noise = rng.normal(size=(steps, *whole)) + stays * rng.normal(size=whole)
    p = 10 ** rng.uniform(-2, 0.7, (count, 1, 1, 1)) * rng.normal(size=whole)
    return Probes(
        p, size * 10 ** rng.uniform(-1, 0.5, whole) * noise, 10 ** rng.uniform(-4, -1, (count, 1, 1, 1))
    )


@functools.cache
def referees() -> tuple[Probes, ...]:
    """Many entries, vectors, small matrices, large ones."""
    return (
        referee(101, 16, 24, (2, 32, 32)), referee(102, 16, 24, (2, 9, 1)), referee(103, 24, 16, (2, 6, 5)),
        referee(104, 8, 8, (2, 64, 64)),
    )  # fmt: skip


def apart(one: Genome, other: Genome) -> float:
    """How far two rules are apart, relative to the steps of a probe: the largest over probes, and infinite where only
    one of them is finite. Learning rates are in units of the length of the first step.
    """
    found = 0.0
    for probes in referees():
        with np.errstate(all="ignore"):
            pair = []
            for genome in (one, other):
                first = np.sqrt(
                    np.mean(moves(genome, replace(probes, g=probes.g[:1]))[0] ** 2, axis=(1, 2, 3))
                )
                length = float(np.median(first / np.ravel(probes.lr)))
                scale = length if np.isfinite(length) and length > 0 else 1.0
                pair.append(moves(genome, replace(probes, lr=probes.lr / scale)))
            a, b = pair
            fine = np.isfinite(a) & np.isfinite(b)
            if not np.array_equal(np.isfinite(a), np.isfinite(b)):
                return float("inf")
            far = np.where(fine, a - b, 0.0)
            size = np.sqrt(np.sum(np.where(fine, a, 0.0) ** 2, axis=(0, 2, 3, 4)))
            found = max(
                found, float((np.sqrt(np.sum(far**2, axis=(0, 2, 3, 4))) / np.maximum(size, 1e-300)).max())
            )
    return found


def searched(seed: int, candidates: int, folder: Path) -> Engine:
    """A search that has tried so many candidates."""
    name = "regression/small"
    effort = tune.Effort(4, 3, tuning=(0,), fresh=(1000, 1001, 1002, 1003), checkpoints=2, steps=30)
    settings = Settings(("adamw",), (name,), seed=seed, effort=effort)
    engine = Engine(settings, Store(folder / f"{seed}.db"), Inline(), [start("adamw")], [tasks.task(name)])
    while engine.sieve.counts["all"] < candidates:
        engine.search(evaluations=len(engine.members) + 25)
    return engine


def shortened(engine: Engine, programs: int) -> list[tuple[int, int, int]]:
    """Statements of the better half of what was found, each structure once: as they are, simplified, and simplified
    with half a percent of loss.
    """
    task, effort = engine.tasks[0], engine.settings.effort
    ranked = engine.ranked()
    some = Random(engine.settings.seed).sample(ranked[: len(ranked) // 2], programs)
    found = []
    for member in some:
        exact = simplify(live(member.genome))
        base, tried = tune.tune(express(exact), task, effort), 0

        def as_good(program: Program, base: tune.Tuned = base) -> bool:
            nonlocal tried
            if tried == TRIALS or stress(of_program(program)):
                return False
            tried += 1
            made = tune.tune(program, task, effort, middle=base.length)
            return not made.dead and float(np.mean(tune.log_ratios(made, base))) <= TOLERATED

        short = simplify(exact, as_good)
        found.append((len(member.genome.body), len(exact.body), len(short.body)))
    return found


def space(seeds: list[int], candidates: int, programs: int) -> list[dict[str, Any]]:
    """The filters, the memory and the simplifier, for each seed."""
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.process_time()
            engine = searched(seed, candidates, Path(folder))
            cpu = time.process_time() - begin
            counts = engine.sieve.counts
            tried = list(engine.store.candidates(("start", "child"), refused=True))
            by_hash = {c.hash: c.genome for c in tried if c.known is None and c.reason is None}
            merged = [
                (c.genome, by_hash[c.known])
                for c in tried
                if c.known in by_hash and c.known != c.hash and c.structure != structure(by_hash[c.known])
            ]
            wrong = sum(apart(*pair) > 1e-3 for pair in merged)
            sizes = np.array(shortened(engine, programs))
            engine.store.close()
        before, exact, short = map(int, sizes.sum(0))
        row = {
            "seed": seed, "candidates": counts["all"], "answered": 1 - counts["new"] / counts["all"],
            "counts": dict(counts), "merged": len(merged), "wrong": wrong, "seconds": cpu,
            "exact": 1 - exact / before, "short": 1 - short / before, "programs": programs,
        }  # fmt: skip
        rows.append(row)
        print(
            f"seed {seed}: {row['answered']:.1%} of {counts['all']} candidates answered without training; {wrong} of "
            f"{len(merged)} merged ones are something else; of {programs} programs, {row['exact']:.0%} of the "
            f"statements removed, {row['short']:.0%} with half a percent of loss; {cpu:.0f} s",
            flush=True,
        )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="digits_mlp/small", help="default: digits_mlp/small")
    parser.add_argument("--models", type=int, nargs="+", default=[32, 64, 128], help="default: 32 64 128")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--admit", nargs="*", choices=tasks.SIZES, metavar="SIZE", help="test tasks instead")
    parser.add_argument("--space", nargs="+", type=int, metavar="SEED", help="filters and simplifier instead")
    parser.add_argument("--candidates", type=int, default=1500, help="of each search, default: 1500")
    parser.add_argument("--programs", type=int, default=8, help="to simplify, of each search, default: 8")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": facts()}
    if options.admit is not None:
        report["admission"] = admit(options.admit or list(tasks.SIZES))
    elif options.space:
        report["space"] = space(options.space, options.candidates, options.programs)
    else:
        measure(report, tasks.task(options.task), options.models, options.rounds)
    if options.json:
        write_bytes(options.json, (json.dumps(report, indent=1) + "\n").encode())


def measure(report: dict[str, Any], task: Task, models: list[int], rounds: int) -> None:
    """Measures, prints, and puts the figures into the report."""
    report["task"] = task.name
    cases = {f"{name} K={k}": (stacked_run(name, task, k), k) for k in models for name in RULES}
    cases["eager torch, AdamW"] = (lambda: eager(task, 4), 4)
    for work, _ in cases.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (work, runs) in cases.items():
            times[name].append(runs / seconds(work))
    rates = {name: statistics.median(found) for name, found in times.items()}
    base = rates["eager torch, AdamW"]
    print(f"{task.name}: training runs a second and core")
    for name, rate in rates.items():
        print(f"  {name:24}{rate:8.0f}   x {rate / base:.1f}")
    report["runs_per_second"] = {name: round(rate, 1) for name, rate in rates.items()}

    print("milliseconds to build a rule")
    report["build_ms"] = {}
    for name in RULES:
        report["build_ms"][name] = round(1e3 * building(name, task), 3)
        print(f"  {name:24}{report['build_ms'][name]:8.2f}")

    print(f"processor seconds of K = {admission.MODELS} runs of AdamW")
    report["seconds"] = {}
    for name in tasks.names(size="small"):
        report["seconds"][name] = round(admission.cost(tasks.task(name)), 3)
        print(f"  {name:24}{report['seconds'][name]:8.2f}")

    effort = tune.Effort()
    report["tune_seconds"] = {}
    print(f"processor seconds to tune AdamW, {effort.configurations} configurations")
    for name in tasks.names("search", "small"):
        work = functools.partial(tune.tune, tune.rule("adamw"), tasks.task(name), effort)
        work()
        report["tune_seconds"][name] = round(statistics.median(seconds(work) for _ in range(3)), 3)
        print(f"  {name:24}{report['tune_seconds'][name]:8.2f}")


if __name__ == "__main__":
    main()
