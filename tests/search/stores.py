"""Stores as searches leave them, written row by row: large ones in no time, with any ending."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from optdsl.search.engine import Settings
from optdsl.search.evaluate.tune import Effort, Tuned
from optdsl.search.funnel import EFFORTS
from optdsl.search.results import held_out, measured
from optdsl.search.space import Space, live, start, structure, tunable
from optdsl.search.space.canonical import digest
from optdsl.search.store import Candidate, Evaluation, Generation, Store
from tests.search.genomes import spec

TASKS = ("digits_mlp/small", "regression/small", "factorisation/small")
VALIDATION = ("embedding/small", "softmax/small")
HELD_OUT = ("mixture/small", "conv/small", "recurrent/small", "embedding_large/small")
ENDINGS = ("better", "worse", "nothing", "tests", "search", "empty")
#: A name that would do harm if a page took it for more than text.
HOSTILE = (
    "</title></pre><script>document.title = 'taken'; fetch('https://outside.invalid/a')</script>"
    '<img src=\'https://outside.invalid/b.png\' onerror=\'document.title = "taken"\'>"""\x1b[31m\u202e'
)


#: What a search has found, made short: a rule with reductions over all tensors and two states.
FOUND = spec(
    """
    u = sqrt(sum(g^2, over=all))
    d = g / (u if u > 0 else 1)
    a = d^2
    m = beta1 * m + (1 - beta1) * d
    b = lr * m / (sqrt((beta3 * v + (1 - beta3) * a) / (1 - beta2^t)) + eps)
    v = beta4 * v + (1 - beta4) * a
    p = p * (1 - lr * weight_decay) - b
    """,
    "m = 0\nv = 0",
    "\n".join(
        [
            "beta1 = 0.354 in [0, 1)", "beta2 = 0.99926 in [0, 1)", "beta3 = 0.99054 in [0, 1)",
            "beta4 = 0.99593 in [0, 1)", "eps = 2.476e-4 in [0, inf)", "weight_decay = 0.01 in [0, inf)",
        ]
    ),
)  # fmt: skip


class Writer:
    """Writes one store. A candidate's `quality` is the log ratio of its losses to those of the start."""

    def __init__(self, store: Store, seed: int, name: str) -> None:
        self.store, self.rng, self.noise = store, Random(seed), np.random.default_rng(seed)
        self.settings = Settings((name,), TASKS, seed=seed)
        self.name = name
        self.ids = 0

    def tuned(
        self, task: str, quality: float, effort: Effort, values: Mapping[str, float], diverged: int = 0
    ) -> Tuned:
        count = len(effort.fresh)
        shared = np.random.default_rng(len(task)).normal(0, 0.1, count)  # seeds are paired
        logs = math.log(0.05 * len(task)) + quality + shared + self.noise.normal(0, 0.02, count)
        losses = np.exp(logs)
        losses[:diverged] = math.inf
        first = 2.5
        last = float(np.exp(logs).mean())
        curve = tuple(
            first * (last / first) ** (n / effort.checkpoints) for n in range(1, effort.checkpoints + 1)
        )
        return Tuned(
            task,
            values,
            float(logs.mean()),
            tuple(map(float, losses)),
            (first,) * count,
            curve,
            effort.configurations,
            4000,
        )

    def measure(
        self,
        stage: str,
        id: int,
        tasks: Sequence[str],
        quality: float,
        effort: Effort,
        moved: float | None = None,
    ) -> None:
        genome = self.store.candidate(id).genome
        values = {h.name: float(h.one) for h in genome.hypers}
        told = {
            "configurations": effort.configurations, "tuning": list(effort.tuning), "fresh": list(effort.fresh),
        }  # fmt: skip
        rows = [
            Evaluation(stage, id, task, "done", self.tuned(task, quality, effort, values), told, moved, 0.7)
            for task in tasks
        ]
        self.store.evaluated(rows)

    def add(self, kind: str, genome: Any, parent: int | None = None, place: int = -1, **more: Any) -> int:
        small = live(genome)
        made = Candidate(
            self.ids, place, kind, more.pop("name", ""), small, parent,
            hash=digest(small), structure=structure(small), **more,
        )  # fmt: skip
        self.store.add([made])
        self.ids += 1
        return made.id

    def search(self, evaluations: int) -> int:
        """The search; returns the best candidate."""
        genome = tunable(start("adamw", weight_decay=0.01))
        space = Space(self.settings.bounds, [genome])
        pool = [(self.add("start", genome, place=0, name=self.name), 0.0)]
        self.measure("search", 0, TASKS, 0.0, self.settings.effort, 32.0)
        for place in range(1, evaluations):
            if self.rng.random() < 0.4:
                refused = self.store.candidate(pool[-1][0])
                self.add(
                    "child",
                    refused.genome,
                    refused.id,
                    place,
                    reason=self.rng.choice(("jumps", "uphill", "blind")),
                )
            parent, quality = self.rng.choice(pool[-6:])
            before = self.store.candidate(parent).genome
            other, kind, changes = None, "child", ("insert", "argument")[: self.rng.randrange(1, 3)]
            if self.rng.random() < 0.2:
                kind, made, changes = "refined", before, ()
            elif self.rng.random() < 0.3:
                other = self.rng.choice(pool)[0]
                made, changes = space.cross(self.rng, before, self.store.candidate(other).genome), ("cross",)
            else:
                made, _ = space.child(self.rng, before)
            id = self.add(kind, made, parent, place, other=other, mutations=changes)
            if self.rng.random() < 0.05:
                self.store.evaluated([Evaluation("search", id, TASKS[0], "time", None, {}, None, 9.0)])
                continue
            worth = quality + self.rng.gauss(0.01, 0.02) + (self.rng.random() < 0.2) * self.rng.random()
            size = made.bytes_per_parameter()
            self.measure("search", id, TASKS, worth, self.settings.effort, float(2 * size + 12))
            if worth < quality:
                pool.append((id, worth))
            if place % 50 == 0:
                self.store.generation(Generation(place // 50, place, worth, worth + 0.01, 0))
        self.store.event("restart", f"number 1 after {evaluations // 2} evaluations")
        self.store.event("failure", f"candidate 3: error {self.name}")
        return pool[-1][0]


def written(path: Path, ending: str, evaluations: int = 150, seed: int = 7, name: str = "adamw") -> Path:
    """A store with one of the `ENDINGS`."""
    with Store(path) as store:
        to = Writer(store, seed, name)
        store.begin({**to.settings.plain(), "genomes": ["-"]}, {"optdsl": "0.1.0", "torch": "2.13.0"})
        if ending != "empty":
            top = to.search(evaluations)
            store.spend(1234.5)
            if ending != "search":
                _funnel(to, top, ending)
    return path


def _funnel(to: Writer, top: int, ending: str) -> None:
    store = to.store
    store.enter("funnel")
    store.note("both sizes", False)
    base = to.add("base", store.candidate(0).genome, 0)
    store.note("base", base)
    line = [top, *(c.id for c in store.candidates(("child",)) if c.id != top)][:5]
    finalists = [to.add("finalist", store.candidate(id).genome, id) for id in line]
    store.note("finalists", finalists)
    gain = 0.02 if ending == "nothing" else -0.1
    for n, id in enumerate([base, *finalists]):
        to.measure("fresh", id, TASKS, 0.0 if id == base else gain + 0.04 * n, EFFORTS["fresh"])
    if ending == "tests":
        return
    if ending == "nothing":
        text = "Nothing worth shipping was found: no candidate is better than the start on fresh seeds."
        _end(store, {"winner": None, "better": False, "text": text})
        return
    for id in (base, *finalists[:2]):
        to.measure("validation", id, VALIDATION, 0.0 if id == base else gain, EFFORTS["validation"])
    winner = to.add("winner", FOUND, finalists[0])
    whole = store.candidate(winner).genome
    lines = [line for line in str(whole).split("\n") if line.startswith("x")]
    tried = [to.add("ablation", FOUND, winner, mutations=(f"{line} becomes p",)) for line in lines[:6]]
    for n, id in enumerate([winner, *tried]):
        to.measure("ablation", id, TASKS, gain + 0.04 * n, EFFORTS["ablation"])
    store.note("ablations", {"tried": tried, "refused": [(f"{lines[-1]} becomes p", "explodes")]})
    names = ("adamw", "lion", "sgd with momentum")
    rivals = [to.add("baseline", store.candidate(0).genome, name=name) for name in names]
    store.note("baselines", rivals)
    for id in (winner, base, *rivals):
        worth = gain if id == winner else 0.05 * (id - base) / 50
        if ending == "worse" and id == rivals[0]:
            worth = 2 * gain
        to.measure("held-out", id, HELD_OUT, worth, EFFORTS["held-out"])
    found = measured(store, "held-out")
    called = dict(zip((base, *rivals), ("the start", *names), strict=True))
    tested = held_out(found[winner], {called[id]: found[id] for id in called})
    _end(store, {"winner": winner, "better": tested.better, "text": tested.text})


def _end(store: Store, verdict: Mapping[str, Any]) -> None:
    store.note("verdict", verdict)
    store.event("verdict", verdict["text"])
    store.enter("finished")
