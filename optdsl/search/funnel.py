"""From the best candidates of a search to a rule that is believed, or to none.

Candidates are compared with the start of the search, pair by pair: on fresh seeds of the tasks that they were found
on, then on larger tasks, then on tasks of the validation split. Whoever is no better than the start there is out.
What is left is made short, passes the stress gate, and is ablated. The held-out tasks are touched once, at the end,
beside known rules with as many configurations.

Every result goes into the store as it comes, and every decision follows from those: an interruption costs what was
being measured.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optdsl.check import check_text
from optdsl.core.record import record
from optdsl.ir.program import Program
from optdsl.search import tasks as known
from optdsl.search.engine import Engine, Member, Tick, front
from optdsl.search.evaluate.tune import LENGTH, Effort, Tuned
from optdsl.search.jobs import Begin, assess
from optdsl.search.objectives import TOLERATED, better
from optdsl.search.results import costs_of, held_out, mean_ratio, sizes
from optdsl.search.simplify import replaced, simplify
from optdsl.search.space import (
    Genome,
    Sieve,
    digest,
    express,
    live,
    of_program,
    settle,
    start,
    stress,
    structure,
    tunable,
    typed,
)
from optdsl.search.space.draft import place
from optdsl.search.space.genome import LR
from optdsl.search.store import Candidate, Evaluation
from optdsl.search.tasks import Task

#: How many candidates are tried on fresh seeds, and how many of these go on.
FINALISTS, SURVIVORS = 8, 3
#: So many changes that are none of meaning are tried on a winner.
TRIALS = 80
#: Of longer rules only so many statements are ablated.
ABLATED = 30
#: Known rules that a winner is compared with on the held-out tasks.
BASELINES = ("adamw", "lion", "sgd with momentum")
#: Seeds and configurations of each stage; those of no two stages are the same.
EFFORTS = {
    "fresh": Effort(16, 5, tuning=(2000, 2001, 2002), fresh=tuple(range(2100, 2112))),
    "large": Effort(12, 5, tuning=(3000, 3001), fresh=tuple(range(3100, 3106))),
    "validation": Effort(24, 5, tuning=(4000, 4001, 4002), fresh=tuple(range(4100, 4112))),
    "simplify": Effort(7, 3, tuning=(5000, 5001), fresh=tuple(range(5100, 5108))),
    "confirm": Effort(7, 3, tuning=(5200, 5201), fresh=tuple(range(5300, 5308))),
    "ablation": Effort(7, 3, tuning=(6000, 6001), fresh=tuple(range(6100, 6112))),
    "held-out": Effort(24, 5, tuning=(7000, 7001, 7002), fresh=tuple(range(7100, 7120))),
}

_SGD = '''optimizer SgdMomentum:
    """SGD with momentum, as torch has it."""

    hyper:
        lr = 1e-2 in [0, inf)
        momentum = 0.9 in [0, 1)
        weight_decay = 0.01 in [0, inf)

    state:
        m = 0

    step:
        m = momentum * m + g + weight_decay * p
        p = p - lr * m
'''


@record
class Proof:
    """What survivors are judged on: names of tasks."""

    large: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]


def proof(search: Sequence[str], both_sizes: bool) -> Proof:
    """The tasks behind those of a search: the same at the larger size, and the other splits at one size or both."""
    large = (
        [f"{name.partition('/')[0]}/large" for name in search if name.endswith("/small")]
        if both_sizes
        else []
    )
    size = None if both_sizes else "small"
    used = {name.partition("/")[0] for name in search}

    def others(split: str) -> tuple[str, ...]:
        return tuple(n for n in known.names(split, size) if n.partition("/")[0] not in used)

    return Proof(tuple(large), others("validation"), others("held-out"))


def baseline(name: str) -> Genome:
    """A known rule, its weight decay on."""
    if name == "sgd with momentum":
        return settle(check_text(_SGD, "sgd.opt").require())
    return start(name, weight_decay=0.01)


class Funnel:
    """The end of a search. `find` makes tasks of names."""

    def __init__(
        self,
        engine: Engine,
        tasks: Proof,
        find: Callable[[str], Task] = known.task,
        tick: Tick | None = None,
        efforts: Mapping[str, Effort] | None = None,
    ) -> None:
        self.engine, self.store, self.executor = engine, engine.store, engine.executor
        self.tasks, self.find, self.tick = tasks, find, tick
        self.efforts = {**EFFORTS, **(efforts or {})}

    def run(self) -> dict[str, Any]:
        """Goes through all stages; what was decided before is kept. Returns the verdict, as the store has it."""
        if (verdict := self.store.noted("verdict")) is not None:
            return dict(verdict)
        if self.store.phase == "search":
            self.store.enter("funnel")
        verdict = self._run()
        with self.store.together():
            self.store.note("verdict", verdict)
            self.store.event("verdict", verdict["text"])
            self.store.enter("finished")
        return verdict

    def _run(self) -> dict[str, Any]:
        base = self.engine.members[0]
        first = self._base(base)
        finalists = self._decided("finalists", lambda: self._finalists(base))
        if not finalists:
            return _null("no candidate scored better than the start in the search")
        search = self.engine.settings.tasks
        scores = self._compared("fresh", finalists, first, search)
        left = self._better(finalists, scores, first)[:SURVIVORS]
        if not left:
            return _null("no candidate is better than the start on fresh seeds: what the search saw was luck")
        for stage, names in (("large", self.tasks.large), ("validation", self.tasks.validation)):
            if not names:
                continue
            scores = self._compared(stage, left, first, names)
            left = self._better(left, scores, first)
            if not left:
                where = "larger tasks" if stage == "large" else "tasks of other kinds"
                return _null(
                    f"no candidate that was better on fresh seeds is better than the start on {where}"
                )
        for chosen in left:
            winner = self._shortened(self.store.candidate(chosen))
            if winner is not None:
                return self._tested(winner, base, first)
        return _null("no candidate passes the stress gate with the constants that were tuned")

    # ---- who goes on --------------------------------------------------------------------------------------

    def _better(self, ids: Sequence[int], scores: Mapping[int, float], first: int) -> list[int]:
        """Those that are better than the start, the best first."""
        found = {i: costs_of(self.store, i, scores[i]) for i in ids}
        start = costs_of(self.store, first, 0.0)
        left = [i for i in ids if better(self.engine.settings.objectives, found[i], start)]
        return sorted(left, key=lambda i: (found[i], i))

    def _finalists(self, base: Member) -> list[int]:
        """The best of each structure and of the Pareto front, of those that stress does not break once tuned."""
        wanted, found = self.engine.settings.objectives, list[int]()
        start = base.costs(wanted)
        ranked = [m for m in self.engine.ranked() if m is not base and better(wanted, m.costs(wanted), start)]
        ranked.sort(key=lambda m: (m.costs(wanted), m.rank))
        for member in [*ranked[: FINALISTS - 2], *front(ranked), *ranked[FINALISTS - 2 :]]:
            if len(found) == FINALISTS:
                break
            if member.candidate.id in {self.store.candidate(i).parent for i in found}:
                continue
            if reason := stress(live(member.genome)):
                self.store.event(
                    "stress", f"candidate {member.candidate.id} is out, with tuned constants: {reason}"
                )
                continue
            made = self._new("finalist", member.genome, member.candidate.id)
            found.append(made)
        return list(dict.fromkeys(found))

    def _base(self, base: Member) -> int:
        """The start with the constants that it was tuned to."""
        return int(self._decided("base", lambda: self._new("base", base.genome, base.candidate.id)))

    def _decided(self, name: str, decide: Callable[[], Any]) -> Any:
        """A decision that is made once; with what it writes it is there, or not at all."""
        found = self.store.noted(name)
        if found is None:
            with self.store.together():
                found = decide()
                self.store.note(name, found)
        return found

    def _new(
        self, kind: str, genome: Genome, parent: int | None, name: str = "", changes: Iterable[str] = ()
    ) -> int:
        small = live(genome)
        id = self.store.next_id()
        made = Candidate(
            id,
            -1,
            kind,
            name,
            small,
            parent,
            None,
            tuple(changes),
            None,
            None,
            digest(small),
            structure(small),
        )
        self.store.add([made])
        return id

    def _compared(self, stage: str, ids: Sequence[int], first: int, names: Sequence[str]) -> dict[int, float]:
        """Mean log ratio to the start of each."""
        found = self.measure(stage, [first, *ids], names)
        return {i: mean_ratio(found[i], found[first]) for i in ids}

    # ---- measuring ----------------------------------------------------------------------------------------

    def measure(
        self, stage: str, ids: Sequence[int], names: Sequence[str], *, constants: bool = True
    ) -> dict[int, dict[str, Tuned]]:
        """Every candidate on every task, by the effort of a stage: from the store, or now."""
        effort = self.efforts[stage]
        wanted = [(i, name) for i in ids for name in names]
        done = {(e.candidate, e.task): e.tuned for e in self.store.evaluations(stage)}
        todo = [pair for pair in wanted if pair not in done]
        jobs: dict[int, tuple[int, str]] = {}
        progress = self.engine.progress
        written = time.monotonic()
        while todo or jobs:
            while todo and len(jobs) < self.engine.settings.ahead:
                id, name = todo.pop(0)
                program = express(self.store.candidate(id).genome)
                begin = {name: Begin(length=self._length(id))}
                task, seed = self.find(name), self.engine.settings.seed
                tuned = None if constants else ()
                jobs[self.executor.submit(assess, program, (task,), effort, seed, begin, tuned)] = (id, name)
            progress.phase = stage
            progress.text = f"{len(wanted) - len(todo) - len(jobs)} of {len(wanted)}"
            if self.tick is not None:
                self.tick(progress)
            item = self.executor.next(0.5)
            if item is None or item[0] not in jobs:  # the search may have left some behind
                continue
            id, name = jobs.pop(item[0])
            outcome = item[1]
            found = outcome.value if outcome.kind == "done" else None
            tuned_ = found.tuned[0] if found else None
            with self.store.together():
                row = Evaluation(
                    stage, id, name, outcome.kind, tuned_, _told(effort, constants), found and found.moved,
                    outcome.seconds,
                )  # fmt: skip
                self.store.evaluated([row])
                self.store.spend(time.monotonic() - written)
            written = time.monotonic()
            done[id, name] = tuned_
        return {i: {n: t for n in names if (t := done[i, n]) is not None} for i in ids}

    def _length(self, id: int) -> float:
        """The length of a step that was best where a candidate, or the one that it comes from, was searched."""
        at: int | None = id
        while at is not None:
            lengths = [e.tuned.length for e in self.store.evaluations("search", at) if e.tuned is not None]
            if lengths:
                return statistics.median_low(lengths)
            at = self.store.candidate(at).parent
        return LENGTH

    # ---- the winner ---------------------------------------------------------------------------------------

    def _shortened(self, winner: Candidate) -> int | None:
        """The winner, as short as it can be: its candidate, or None where stress breaks it."""
        names = self.engine.settings.tasks
        exact = simplify(winner.genome)

        def trial(genome: Genome) -> int:
            small = live(genome)
            for other in self.store.candidates(("trial",)):
                if other.genome == small and other.parent == winner.id:
                    return other.id
            with self.store.together():
                return self._new("trial", small, winner.id)

        # the best of many that hardly differ was lucky: whatever seems as good has to be so on other seeds, too
        stages, first = ("simplify", "confirm"), trial(exact)
        whole = {stage: self.measure(stage, [first], names, constants=False)[first] for stage in stages}
        tried = 0

        def as_good(program: Program) -> bool:
            nonlocal tried
            genome = of_program(program)
            if tried == TRIALS or stress(genome):
                return False
            tried += 1
            id, ratios = trial(genome), list[float]()
            for stage in stages:
                found = self.measure(stage, [id], names, constants=False)[id]
                ratios.append(mean_ratio(found, whole[stage]))
                if statistics.fmean(ratios) > TOLERATED:
                    return False
            return True

        short = simplify(exact, as_good)
        for genome in (short, exact, winner.genome):
            if stress(live(genome)) is None:
                name = f"winner of {winner.id}"
                return int(self._decided(name, functools.partial(self._new, "winner", genome, winner.id)))
        return None

    def _ablations(self, winner: int) -> dict[str, Any]:
        """Candidates without one statement each, an operand in its place; and those that the filters refuse."""
        genome = self.store.candidate(winner).genome
        sieve = Sieve(self.engine.settings.bounds)
        tried, refused = list[int](), list[tuple[str, str]]()
        for what, other in ablated(genome)[:ABLATED]:
            analysis = sieve.sift(other)
            if analysis.reason is not None:
                refused.append((what, analysis.reason))
            elif analysis.known is None:
                tried.append(self._new("ablation", analysis.genome, winner, changes=(what,)))
        return {"tried": tried, "refused": refused}

    def _tested(self, winner: int, base: Member, first: int) -> dict[str, Any]:
        """Ablations, then the held-out tasks."""
        others = self._decided("ablations", lambda: self._ablations(winner))
        self.measure("ablation", [winner, *others["tried"]], self.engine.settings.tasks, constants=False)
        if not self.tasks.held_out:
            return _null("there are no held-out tasks to test a winner on", winner)
        rivals = self._decided(
            "baselines", lambda: [self._new("baseline", tunable(baseline(n)), None, n) for n in BASELINES]
        )
        ids = [winner, first, *rivals]
        measured = self.measure("held-out", ids, self.tasks.held_out)
        found = held_out(measured[winner], {self.called(i): measured[i] for i in ids[1:]})
        text = "\n".join([found.text, *sizes(self.store, winner, first)])
        return {"winner": winner, "better": found.better, "text": text}

    def called(self, id: int) -> str:
        """What a rival is called."""
        return self.store.candidate(id).name or "the start"


def _told(effort: Effort, constants: bool) -> dict[str, Any]:
    return {
        "configurations": effort.configurations, "tuning": list(effort.tuning), "fresh": list(effort.fresh),
        "constants": constants,
    }  # fmt: skip


def _null(why: str, winner: int | None = None) -> dict[str, Any]:
    return {"winner": winner, "better": False, "text": f"Nothing worth shipping was found: {why}."}


def ablated(genome: Genome) -> list[tuple[str, Genome]]:
    """What is left of a genome without one of its statements, for each one that an operand can stand for.

    Not without its learning rate: that is no part of what a rule is.
    """
    types = typed(genome)
    found = []
    for s in genome.body:
        for ref in dict.fromkeys(a for a in s.args if isinstance(a, str)):
            if place(types[ref]) == place(types[s.name]):
                over = f", over={s.over}" if s.over else ""
                what = f"{s.name} = {s.op}({', '.join(map(str, s.args))}{over}) becomes {ref}"
                found.append((what, live(replaced(genome, s.name, ref))))
    return [(what, other) for what, other in found if any(LR in s.args for s in other.body)]
