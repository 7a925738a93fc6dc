"""What an evaluation of the search costs: stacked training runs beside a loop with torch.optim, and building a rule.

    python benchmarks/search.py [--task digits_mlp/small] [--models 32 64 128] [--rounds 5] [--json FILE]
    python benchmarks/search.py --admit [small large] [--json FILE]

One thread, processor time (what a core does in a second, whoever else uses the machine); peers take turns, figures
are medians over the rounds. A run is the whole training of one model: data at hand, validation at four checkpoints.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optdsl.analysis.bench.machine import facts
from optdsl.resources import write_bytes
from optdsl.search import tasks
from optdsl.search.evaluate import tune
from optdsl.search.evaluate.stacked import Stacked
from optdsl.search.evaluate.train import train
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


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="digits_mlp/small", help="default: digits_mlp/small")
    parser.add_argument("--models", type=int, nargs="+", default=[32, 64, 128], help="default: 32 64 128")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--admit", nargs="*", choices=tasks.SIZES, metavar="SIZE", help="test tasks instead")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": facts()}
    if options.admit is not None:
        report["admission"] = admit(options.admit or list(tasks.SIZES))
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
