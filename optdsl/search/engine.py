"""Regularised evolution of specs: the oldest die, the best of a few have children, children inherit what was tuned.

    with Store("run.db") as store, Pool(2) as pool:
        engine = Engine(Settings(("adamw",), ("digits_mlp/small",)), store, pool)
        engine.search(evaluations=500)

What is proposed as number n depends on the seed, on n, and on the results up to n - `ahead`: neither the number of
workers nor their speed changes it, nor does an interruption: what the store holds is played again.
"""

from __future__ import annotations

import collections
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from optdsl.core.record import field, record
from optdsl.search.evaluate.tune import Effort, Tuned
from optdsl.search.jobs import Assessed, Begin, Executor, assess
from optdsl.search.objectives import LOSS, OBJECTIVES, Costs, beats, check, costs, undominated
from optdsl.search.pool import Outcome
from optdsl.search.results import percent
from optdsl.search.space import (
    CHANGES,
    Analysis,
    Bounds,
    Genome,
    Sieve,
    Space,
    digest,
    express,
    live,
    tunable,
)
from optdsl.search.space.genome import LR
from optdsl.search.store import Candidate, Evaluation, Generation, Store
from optdsl.search.tasks import Task

#: Draws for one proposal; then a parent is tuned once more.
DRAWS = 300
#: Evaluations between two rows of generations.
GENERATION = 50
#: A child that is worse than its parent by so much (in log loss) on a task is not tried on the others.
GIVE_UP = 0.5
#: Scores that differ by less are equal, and the smaller rule is the better one.
STEP = 0.0025


@record
class Arm:
    """How candidates come about: `selects` says whether what was found guides what follows, `refines` how often a
    parent is tuned on instead of changed.
    """

    selects: bool
    refines: float
    about: str


ARMS: dict[str, Arm] = {
    "evolution": Arm(True, 0.15, "children of the best"),
    "random": Arm(False, 0.0, "random changes of the start, nothing learnt from what was found"),
    "tuning": Arm(True, 1.0, "constants and learning rate of the start alone"),
}


@record
class Settings:
    """What a search is, but for when it ends.

    `starts` name specs. A restart comes after `patience` evaluations without a better candidate; `elites` is how
    often a parent comes from the archive. `effort` is spent on each candidate. `changes` are the kinds of changes
    with their weights; constants are none of them, they are tuned in every evaluation. `ahead` are proposed before
    the first of them has a result: more workers than that have nothing to do. `objectives` are what is to be small,
    the most important first.
    """

    starts: tuple[str, ...]
    tasks: tuple[str, ...]
    arm: str = "evolution"
    seed: int = 0
    population: int = 100
    tournament: int = 6
    patience: int = 300
    crossing: float = 0.15
    elites: float = 0.1
    ahead: int = 8
    bounds: Bounds = Bounds()
    changes: tuple[tuple[str, float], ...] = tuple((k, w) for k, w in CHANGES.items() if k != "constant")
    effort: Effort = Effort(configurations=16, coarse=3, tuning=(0, 1), fresh=tuple(range(1000, 1006)))
    objectives: tuple[str, ...] = (LOSS,)

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be."""
        if self.arm not in ARMS:
            raise ValueError(f"there is no arm `{self.arm}`: {', '.join(ARMS)}")
        if not (self.starts and self.tasks):
            raise ValueError("a search needs a start and a task")
        if self.seed < 0:
            raise ValueError(f"a seed is not negative, as {self.seed} is")
        if self.ahead < 1:
            raise ValueError("at least one candidate is proposed ahead")
        if self.population < 2 or self.tournament < 1:
            raise ValueError("a population has at least two members, a tournament one")
        check(self.objectives)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""

        def value(x: Any) -> Any:
            if hasattr(x, "__dataclass_fields__"):
                return {name: value(getattr(x, name)) for name in x.__dataclass_fields__}
            return list(x) if isinstance(x, tuple) else x

        made = {name: value(getattr(self, name)) for name in self.__dataclass_fields__}
        if self.objectives == (LOSS,):  # as stores have it from before there was a choice
            del made["objectives"]
        return made


@record(eq=False)
class Member:
    """An evaluated candidate: `score` is the mean over tasks of log(loss / loss of the first start), infinite where
    it failed or was given up. `genome` has what was tuned as its defaults.
    """

    candidate: Candidate
    genome: Genome
    score: float
    tuned: Mapping[str, Tuned]
    moved: float | None

    @property
    def rank(self) -> tuple[float, ...]:
        """What the lower is the better: score, then memory, traffic, length, age."""
        coarse = math.floor(self.score / STEP) if math.isfinite(self.score) else math.inf
        size = self.genome.bytes_per_parameter(), self.moved or math.inf, len(self.genome.body)
        return (coarse, *size, self.candidate.id)

    def costs(self, objectives: Sequence[str]) -> Costs:
        """What of it is to be small. Scores that hardly differ are the same."""
        return costs(objectives, self.rank[0] * STEP, self.genome.bytes_per_parameter(), self.moved)

    @property
    def cell(self) -> tuple[int, int]:
        """Its place in the archive: statements, by threes, and states."""
        return len(self.genome.body) // 3, len(self.genome.states)


@record(frozen=False, eq=False)
class Progress:
    """What a live view shows. `seconds` are of this call."""

    evaluations: int = 0
    restarts: int = 0
    best: Member | None = None
    seconds: float = 0.0
    here: int = 0
    phase: str = "search"
    text: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


Tick = Callable[[Progress], None]


class Engine:
    """A search in a store, by an executor.

    `genomes` are the starts, `tasks` those of the settings, in their order. Raises Mismatch where the store is of
    another search, ValueError for starts beyond the bounds.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        executor: Executor,
        genomes: Sequence[Genome],
        tasks: Sequence[Task],
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.settings, self.store, self.executor, self.tasks = settings, store, executor, tuple(tasks)
        self.arm = ARMS[settings.arm]
        self.space = Space(settings.bounds, genomes, dict(settings.changes))
        self.sieve = Sieve(settings.bounds, by_structure=True)
        self.members: list[Member] = []
        self.population: collections.deque[Member] = collections.deque()
        self.archive: dict[tuple[int, int], Member] = {}
        self.proposed: list[Candidate] = []
        self.best: Member | None = None
        self.stale = self.restarts = 0
        self.submitted = 0
        self.waiting: dict[int, int] = {}  # job: place
        self.outcomes: dict[int, Outcome] = {}
        self.progress = Progress(counts=self.sieve.counts)
        known = {"genomes": [digest(live(tunable(genome))) for genome in genomes]}
        store.begin({**settings.plain(), **known}, versions or {})
        self._replay()

    # ---- the loop -----------------------------------------------------------------------------------------

    def search(
        self, *, evaluations: int | None = None, seconds: float | None = None, tick: Tick | None = None
    ) -> None:
        """Goes on until so many candidates are evaluated, or the search has worked for so long, all calls together.

        The first start is evaluated however short that is: all else is measured against it. `tick` is called about
        twice a second. Raises ValueError where the first start fails.
        """
        begin, before, here = time.monotonic(), self.store.seconds, len(self.members)
        written = begin
        while evaluations is None or len(self.members) < evaluations:
            now = time.monotonic()
            if seconds is not None and self.members and before + now - begin >= seconds:
                break
            self._propose()
            last = len(self.proposed) if evaluations is None else min(evaluations, len(self.proposed))
            for place in range(self.submitted, last):
                self.waiting[self._submit(self.proposed[place])] = place
                self.submitted = place + 1
            place = len(self.members)
            if place in self.outcomes:
                now = time.monotonic()
                candidate, outcome = self.proposed[place], self.outcomes.pop(place)
                found = self._results(candidate, outcome)
                with self.store.together():
                    self.store.evaluated(found)
                    self.store.spend(now - written)
                    if outcome.kind != "done":
                        self.store.event(
                            "failure", f"candidate {candidate.id}: {outcome.kind} {outcome.text[-300:]}"
                        )
                    self._take(candidate, found, told=True)
                written = now
            elif (item := self.executor.next(0.5)) is not None:
                self.outcomes[self.waiting.pop(item[0])] = item[1]
            self.progress.seconds, self.progress.here = time.monotonic() - begin, len(self.members) - here
            if tick is not None:
                tick(self.progress)

    def _propose(self) -> None:
        """Fills what may be proposed with the results that are there."""
        starts = len(self.space.starts)
        while len(self.proposed) < starts:
            place = len(self.proposed)
            genome, name = self.space.starts[place], self.settings.starts[place]
            analysis = self.sieve.sift(genome)
            # a start is evaluated whatever the filters say of it
            made = Candidate(
                self.store.next_id(), place, "start", name, genome,
                hash=digest(genome), structure=analysis.structure,
            )  # fmt: skip
            with self.store.together():
                self.store.add([made])
            self.proposed.append(made)
        while len(self.members) >= starts and len(self.proposed) < len(self.members) + self.settings.ahead:
            place = len(self.proposed)
            tried = self._drawn(Random(f"{self.settings.seed}/{place}"), place)
            with self.store.together():
                self.store.add(tried)
            self.proposed.append(tried[-1])

    def _drawn(self, rng: Random, place: int) -> list[Candidate]:
        """Candidates that the filters have answered, and one that is new."""
        tried: list[Candidate] = []
        first = self.store.next_id()
        for draw in range(DRAWS + 1):
            parent = self._parent(rng)
            made = Candidate(first + draw, place, "child", "", parent.genome, parent.candidate.id)
            if draw == DRAWS or rng.random() < self.arm.refines:
                same = parent.candidate
                return [*tried, replace(made, kind="refined", hash=same.hash, structure=same.structure)]
            genome, changes = parent.genome, tuple[str, ...]()
            if self.arm.selects and len(self.population) > 1 and rng.random() < self.settings.crossing:
                other = self._parent(rng)
                genome, changes = self.space.cross(rng, genome, other.genome), ("cross",)
                made = replace(made, other=other.candidate.id)
            else:
                genome, changes = self.space.child(rng, genome)
                while not self.arm.selects and rng.random() < 0.7:
                    genome, more = self.space.child(rng, genome)
                    changes += more
            analysis = self.sieve.sift(genome)
            made = replace(
                made, genome=analysis.genome, mutations=changes, reason=analysis.reason, known=analysis.known,
                hash=analysis.hash, structure=analysis.structure,
            )  # fmt: skip
            tried.append(made)
            if made.reason is None and made.known is None:
                return tried
        raise AssertionError("the last draw is always taken")

    def _parent(self, rng: Random) -> Member:
        """One of the starts; where the arm selects, the best of a few, or one of the archive."""
        if not self.arm.selects or not self.population:
            return rng.choice(self.members[: len(self.space.starts)])
        if self.archive and rng.random() < self.settings.elites:
            return self.archive[rng.choice(sorted(self.archive))]
        some = [rng.choice(self.population) for _ in range(self.settings.tournament)]
        if len(self.settings.objectives) == 1:
            return min(some, key=lambda m: m.rank)
        found = [m.costs(self.settings.objectives) for m in some]
        beaten = [sum(beats(other, mine) for other in found) for mine in found]
        return rng.choice([m for m, count in zip(some, beaten, strict=True) if count == min(beaten)])

    def _submit(self, candidate: Candidate) -> int:
        """The job of a candidate. It begins where its parent ended."""
        begin: dict[str, Begin] = {}
        if candidate.parent is not None:
            parent = next(m for m in reversed(self.members) if m.candidate.id == candidate.parent)
            same = {h.name: h.default for h in parent.genome.hypers}
            for task, tuned in parent.tuned.items():
                # a constant that the change has left alone has the value that was best on this task
                values = {
                    h.name: tuned.values[h.name]
                    for h in candidate.genome.hypers
                    if h.name in tuned.values and h.name != LR and h.default == same.get(h.name)
                }
                hurdle = self.members[0].tuned[task].hurdle()
                begin[task] = Begin(values, tuned.length, hurdle, float(tuned.logs.mean()) + GIVE_UP)
        seed = self.settings.seed * 2**32 + candidate.place
        program = express(candidate.genome)
        return self.executor.submit(assess, program, self.tasks, self.settings.effort, seed, begin)

    def _results(self, candidate: Candidate, outcome: Outcome) -> list[Evaluation]:
        effort = {"configurations": self.settings.effort.configurations}
        if outcome.kind != "done":
            task = self.tasks[0].name
            return [
                Evaluation("search", candidate.id, task, outcome.kind, None, effort, None, outcome.seconds)
            ]
        found: Assessed = outcome.value
        share = outcome.seconds / len(found.tuned)
        return [
            Evaluation("search", candidate.id, tuned.task, "done", tuned, effort, found.moved, share)
            for tuned in found.tuned
        ]

    # ---- results ------------------------------------------------------------------------------------------

    def _take(self, candidate: Candidate, found: Sequence[Evaluation], told: bool) -> None:
        """One more result. It is the only thing that changes what is proposed. `told`: it is written as well."""
        tuned = {e.task: e.tuned for e in found if e.tuned is not None}
        score = math.inf
        complete = len(tuned) == len(self.tasks) and not any(t.dead for t in tuned.values())
        if complete:
            first = self.members[0].tuned if self.members else tuned
            score = statistics.fmean(float((t.logs - first[task].logs).mean()) for task, t in tuned.items())
        elif not self.members:
            why = found[-1].outcome
            if why == "done":
                why = "no step moves a parameter, or the first ones are not finite"
            raise ValueError(f"`{candidate.name}` cannot be trained on {found[-1].task}: {why}")
        genome = candidate.genome.with_values(middle(tuned.values())) if complete else candidate.genome
        member = Member(candidate, genome, score, tuned, found[0].moved)
        self.members.append(member)
        self.stale += 1
        if complete:
            self.population.append(member)
            if len(self.population) > self.settings.population:
                self.population.popleft()
            if member.cell not in self.archive or member.rank < self.archive[member.cell].rank:
                self.archive[member.cell] = member
            mine, objectives = member.costs(self.settings.objectives), self.settings.objectives
            before = (m.costs(objectives) for m in self.members[:-1]) if len(objectives) > 1 else ()
            if before and not any(c == mine or beats(c, mine) for c in before):
                self.stale = 0
            if self.best is None or member.rank < self.best.rank:
                self.best, self.stale = member, 0
                if told and candidate.kind != "start":
                    self.store.event(
                        "best", f"candidate {candidate.id}: {percent(score)} after {len(self.members)}"
                    )
        if self.stale >= self.settings.patience:
            self._restart(told)
        count = len(self.members)
        if count % GENERATION == 0 and told:
            scores = [m.score for m in self.population]
            median = statistics.median(scores) if scores else None
            best = self.best.score if self.best else None
            self.store.generation(Generation(count // GENERATION, count, best, median, self.restarts))
        self.progress.evaluations, self.progress.restarts, self.progress.best = (
            count,
            self.restarts,
            self.best,
        )

    def _restart(self, told: bool) -> None:
        """A new population: of the starts alone, and every second time of the best of the archive, too."""
        self.stale = 0
        self.restarts += 1
        self.population.clear()
        self.population.extend(m for m in self.members[: len(self.space.starts)] if math.isfinite(m.score))
        if self.restarts % 2 == 0:
            self.population.extend(self.archive[cell] for cell in sorted(self.archive))
        if told:
            self.store.event("restart", f"number {self.restarts} after {len(self.members)} evaluations")

    def _replay(self) -> None:
        """Brings everything to where the store says that the search was."""
        results: dict[int, list[Evaluation]] = collections.defaultdict(list)
        for evaluation in self.store.evaluations("search"):
            results[evaluation.candidate].append(evaluation)
        for candidate in self.store.candidates(("start", "child", "refined"), refused=True):
            if candidate.kind != "refined":
                self._remember(candidate)
            if candidate.reason is None and candidate.known is None:
                self.proposed.append(candidate)
        for candidate in self.proposed:
            if candidate.id not in results:
                break
            self._take(candidate, results[candidate.id], told=False)
        self.submitted = len(self.members)

    def _remember(self, candidate: Candidate) -> None:
        """What the sieve knew of a candidate. Only what was new, or like another one, takes long to find out."""
        sieve = self.sieve
        if candidate.reason is None:
            sieve.sift(candidate.genome)
            return
        sieve.counts["all"] += 1
        sieve.counts[candidate.reason] += 1
        if candidate.hash and candidate.hash not in sieve.seen:
            sieve.remember(Analysis(candidate.reason, candidate.genome, candidate.hash, candidate.structure))

    def ranked(self) -> list[Member]:
        """The best candidate of each structure, best first, whatever else than loss is to be small."""
        found: dict[str, Member] = {}
        for member in sorted(self.members, key=lambda m: m.rank):
            if math.isfinite(member.score):
                found.setdefault(member.candidate.structure, member)
        return list(found.values())


def middle(found: Any) -> dict[str, float]:
    """The lower median over tasks of each value that was tuned."""
    by_name: dict[str, list[float]] = collections.defaultdict(list)
    for tuned in found:
        for name, value in tuned.values.items():
            by_name[name].append(value)
    return {name: statistics.median_low(values) for name, values in by_name.items()}


def front(members: Sequence[Member]) -> list[Member]:
    """Those that no other one beats in score, bytes of states and bytes moved at once, best score first."""
    return undominated(members, lambda m: costs(OBJECTIVES, m.score, m.genome.bytes_per_parameter(), m.moved))
