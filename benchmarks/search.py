"""What an evaluation of the search costs: stacked training runs beside a loop with torch.optim, and building a rule.

    python benchmarks/search.py [--task digits_mlp/small] [--models 32 64 128] [--rounds 5] [--json FILE]
    python benchmarks/search.py --admit [small large] [--json FILE]
    python benchmarks/search.py --space 0 1 2 [--candidates 1500] [--programs 8] [--json FILE]
    python benchmarks/search.py --pairs 10000 [--seed 0] [--minutes 60] [--json FILE]

One thread, processor time (what a core does in a second, whoever else uses the machine); peers take turns, figures
are medians over the rounds. A run is the whole training of one model: data at hand, validation at four checkpoints.

`--space` searches once for each seed, from AdamW and with the least training there can be. It counts candidates that
filters and memory answer; those that were taken for another one and do something else on numbers of its own; and the
statements that the simplifier removes from the better half of what was found, for nothing, and as the funnel does it,
where half a percent of loss is allowed; what that costs on tasks of the validation split, where nothing is trained
for it; and whether the spec of what is left does the same and stays as it is when simplified again.

`--pairs` makes programs by changes to shipped methods until memory has taken so many for another one that is written
differently, and counts those that do something else than that one on 16 probes of their own, in double precision:
about 25 minutes for 10,000.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from optdsl.analysis.bench.machine import facts
from optdsl.check import check_text
from optdsl.resources import write_bytes
from optdsl.search import tasks
from optdsl.search.engine import Engine, Settings
from optdsl.search.evaluate import tune
from optdsl.search.evaluate.stacked import Stacked
from optdsl.search.evaluate.train import train
from optdsl.search.funnel import Funnel, Proof
from optdsl.search.jobs import Inline
from optdsl.search.results import mean_ratio
from optdsl.search.simplify import simplify
from optdsl.search.space import (
    Genome,
    Sieve,
    Space,
    digest,
    effect,
    live,
    settle,
    shipped,
    start,
    structure,
    to_spec,
    tunable,
)
from optdsl.search.space.probe import Probes, moves
from optdsl.search.store import Store
from optdsl.search.tasks import Task, admission

#: Two rules are something else that are further apart than this.
FAR = 1e-3
#: So many of the last new programs of `--pairs` are changed on.
PARENTS = 300
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


def apart(one: Genome, other: Genome, given: Sequence[Probes] = ()) -> float:
    """How far two rules are apart, relative to the steps of a probe: the largest over probes, and infinite where only
    one of them is finite. Probes are those of `referees` where none are given.

    Learning rates are in units of the length of the first step that moves anything, as it is or where steps are
    short: two that do the same with a multiple of the learning rate are one to a search, which tunes it, but a bound
    on steps hides the multiple where it cuts.
    """
    found = math.inf
    for slow in (1.0, 1e-4):
        if found > FAR:
            found = min(found, max(_apart(one, other, probes, slow) for probes in given or referees()))
    return found


def _apart(one: Genome, other: Genome, probes: Probes, slow: float) -> float:
    with np.errstate(all="ignore"):
        pair = []
        for genome in (one, other):
            slowed = replace(probes, lr=probes.lr * slow)
            sizes = np.sqrt(np.mean(moves(genome, slowed) ** 2, axis=(2, 3, 4)))
            lengths = np.median(sizes / np.ravel(slowed.lr), axis=1)
            scale = next((x for x in lengths if x > 0 and np.isfinite(x)), 1.0)
            pair.append(moves(genome, replace(probes, lr=probes.lr / scale)))
        a, b = pair
        fine = np.isfinite(a) & np.isfinite(b)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return math.inf
        far = np.where(fine, a - b, 0.0)
        size = np.sqrt(np.sum(np.where(fine, a, 0.0) ** 2, axis=(0, 2, 3, 4)))
        return float((np.sqrt(np.sum(far**2, axis=(0, 2, 3, 4))) / np.maximum(size, 1e-300)).max())


def searched(seed: int, candidates: int, folder: Path) -> Engine:
    """A search that has tried so many candidates."""
    name = "regression/small"
    effort = tune.Effort(4, 3, tuning=(0,), fresh=(1000, 1001, 1002, 1003), checkpoints=2, steps=30)
    settings = Settings(("adamw",), (name,), seed=seed, effort=effort)
    engine = Engine(settings, Store(folder / f"{seed}.db"), Inline(), [start("adamw")], [tasks.task(name)])
    while engine.sieve.counts["all"] < candidates:
        engine.search(evaluations=len(engine.members) + 25)
    return engine


def merges(engine: Engine) -> list[tuple[Genome, Genome]]:
    """Candidates of a search that memory has answered by what they do, each with the one that it was taken for."""
    tried = list(engine.store.candidates(("start", "child"), refused=True))
    by_hash = {c.hash: c.genome for c in tried if c.known is None and c.reason is None}
    return [
        (c.genome, by_hash[c.known])
        for c in tried
        if c.known in by_hash and c.known != c.hash and c.structure != structure(by_hash[c.known])
    ]


def shortened(engine: Engine, programs: int) -> list[dict[str, Any]]:
    """The better half of what was found, each structure once, through the end of the funnel: statements as they are,
    simplified, and as the winner has them; what the last step has done to the loss (the logarithm of the ratio) on
    validation tasks; and whether the result is the same when simplified again, and as a spec.
    """
    names = tuple(tasks.names("validation", "small"))
    funnel = Funnel(engine, Proof((), names, ()))
    ranked = engine.ranked()
    found = []
    for member in Random(engine.settings.seed).sample(ranked[: len(ranked) // 2], programs):
        whole = engine.store.candidate(funnel._new("finalist", member.genome, member.candidate.id))
        made = funnel._shortened(whole)
        if made is None:  # stress breaks it with the constants that were tuned
            continue
        short = engine.store.candidate(made).genome
        measured = funnel.measure("validation", [whole.id, made], names, constants=False)
        again = live(settle(check_text(to_spec(short, "Found", "Found."), "found.opt").require()))
        found.append(
            {
                "statements": len(whole.genome.body), "exact": len(simplify(whole.genome).body),
                "short": len(short.body), "loss": mean_ratio(measured[made], measured[whole.id]),
                "idempotent": digest(simplify(short)) == digest(short),
                "spec": effect(again).same(effect(short)),
            }
        )  # fmt: skip
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
            merged = merges(engine)
            wrong = [pair for pair in merged if apart(*pair) > FAR]
            made = shortened(engine, programs)
            engine.store.close()
        before, exact, short = (sum(row[name] for row in made) for name in ("statements", "exact", "short"))
        row = {
            "seed": seed, "candidates": counts["all"], "answered": 1 - counts["new"] / counts["all"],
            "counts": dict(counts), "merged": len(merged), "wrong": [list(map(str, pair)) for pair in wrong],
            "seconds": cpu, "exact": 1 - exact / before, "short": 1 - short / before, "programs": made,
            "changed": statistics.median(abs(math.expm1(x["loss"])) for x in made),
        }  # fmt: skip
        rows.append(row)
        stay, specs, more = (
            sum(found)
            for found in zip(
                *((x["idempotent"], x["spec"], abs(x["loss"]) > 0.005) for x in made), strict=True
            )
        )
        print(
            f"seed {seed}: {row['answered']:.1%} of {counts['all']} candidates answered without training; "
            f"{len(wrong)} of {len(merged)} merged ones are something else; {cpu:.0f} s\n"
            f"  of {len(made)} programs, {row['exact']:.0%} of the statements removed, {row['short']:.0%} with half "
            f"a percent of loss; validation changed by {row['changed']:.2%} in the median, by more than half a "
            f"percent in {more}; {stay} stay as they are when simplified again, {specs} are the same as specs",
            flush=True,
        )
    return rows


def pairs(wanted: int, seed: int, minutes: float) -> dict[str, Any]:
    """Programs that memory takes for another one, which was written differently: how many of them are not.

    They are compared as they were made, and those that differ once more in the simplified form that a search trains.
    """
    rng, sieve = Random(seed), Sieve(by_structure=True)
    genomes = [g for g in shipped().genomes.values() if sieve.bounds.excess(live(tunable(g))) is None]
    drawn = Space(sieve.bounds, genomes)
    known = [(genome, sieve.sift(genome)) for genome in drawn.starts]
    first = {a.hash: (genome, a) for genome, a in known if not (a.reason or a.known)}
    parents = list(drawn.starts)
    asked, counts, apart_ = set[tuple[Genome, Genome]](), Counter[str](), list[dict[str, Any]]()
    begin = time.process_time()

    def told() -> str:
        wrong = [row["kind"] for row in apart_ if row["simplified"] > FAR]
        return (
            f"{sum(counts.values())} pairs, {counts['form']} by their simplified form and {counts['effect']} by what "
            f"they do: {len(wrong)} are something else, and {len(apart_) - len(wrong)} before they are simplified; "
            f"{sieve.counts['all']} programs in {time.process_time() - begin:.0f} s"
        )

    while sum(counts.values()) < wanted and time.process_time() - begin < 60 * minutes:
        # from the starts again and again: what is only changed on grows to the bounds
        made = rng.choice(drawn.starts if rng.random() < 0.2 else parents)
        while True:
            made, _ = drawn.changed(rng, made)
            if rng.random() >= drawn.more:
                break
        found = sieve.sift(made)
        if found.reason is not None:
            continue
        if found.known is None:
            first[found.hash] = made, found
            parents.append(found.genome)
            if len(parents) > PARENTS:
                parents.pop(rng.randrange(PARENTS))
            continue
        other, before = first[found.known]
        constants = found.structure == before.structure and found.hash != found.known  # a search tunes them
        if constants or made == other or (made, other) in asked:
            continue
        asked.add((made, other))
        kind = "form" if found.hash == found.known else "effect"
        probes = (referee(10**6 * (seed + 1) + sum(counts.values()), 16, 12, (2, 6, 5)),)
        counts[kind] += 1
        far = apart(made, other, probes)
        if far > FAR:
            simplified = apart(found.genome, before.genome, probes)
            apart_.append(
                {"kind": kind, "apart": far, "simplified": simplified, "one": str(made), "other": str(other)}
            )
            print(
                f"{far:.2g} apart, simplified {simplified:.2g}, by {kind}:\n{made}\n\n{other}\n", flush=True
            )
        if sum(counts.values()) % 1000 == 0:
            print(told(), flush=True)
    print(told())
    return {
        "seed": seed, "pairs": sum(counts.values()), "counts": dict(counts),
        "apart": [{k: None if v == math.inf else v for k, v in row.items()} for row in apart_],
        "wrong": sum(row["simplified"] > FAR for row in apart_), "programs": sieve.counts["all"],
        "seconds": time.process_time() - begin,
    }  # fmt: skip


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
    parser.add_argument(
        "--pairs", type=int, metavar="N", help="programs that memory takes for others instead"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pairs, default: 0")
    parser.add_argument("--minutes", type=float, default=60.0, help="the most for the pairs, default: 60")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": facts()}
    if options.admit is not None:
        report["admission"] = admit(options.admit or list(tasks.SIZES))
    elif options.space:
        report["space"] = space(options.space, options.candidates, options.programs)
    elif options.pairs:
        report["pairs"] = pairs(options.pairs, options.seed, options.minutes)
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
