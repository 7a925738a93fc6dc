"""What a store says of a run: scores, ranks, what became of candidates, and how held-out tasks decided."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optdsl.core.record import record
from optdsl.search.evaluate.tune import Tuned, log_ratios
from optdsl.search.objectives import LOSS, MOVED, OBJECTIVES, STATES, Costs, better, costs, undominated
from optdsl.search.statistics import Comparison, compare, holm
from optdsl.search.store import Candidate, Evaluation, Store

#: p-values below this are significant.
LEVEL = 0.05
#: The stages of the funnel, in their order, and what each is about.
STAGES = {"fresh": "fresh seeds", "large": "larger tasks", "validation": "validation tasks"}


@record
class Tested:
    """A winner on the held-out tasks: against each rival, with p-values corrected for all of these at once."""

    against: Mapping[str, Comparison]
    corrected: Mapping[tuple[str, str], float]
    better: bool
    text: str


def mean_ratio(rule: Mapping[str, Tuned], other: Mapping[str, Tuned]) -> float:
    """Mean over tasks and seeds of log(loss / loss of the other); infinite where something failed."""
    if set(rule) != set(other) or not rule:
        return math.inf
    return statistics.fmean(float((rule[name].logs - other[name].logs).mean()) for name in other)


def percent(score: float) -> str:
    """A mean log ratio as a change of the loss: -0.105 is `-10.0 %`."""
    return f"{100 * math.expm1(score):+.1f} %" if math.isfinite(score) else "failed"


def held_out(winner: Mapping[str, Tuned], rivals: Mapping[str, Mapping[str, Tuned]]) -> Tested:
    """What the held-out tasks say. A winner is better if it is so overall than every rival, with the interval on one
    side, and significantly worse than none on any task. It is not where it failed on a task that a rival has done.
    """
    against = {
        name: compare({task: log_ratios(winner[task], found[task]) for task in winner if task in found})
        for name, found in rivals.items()
        if winner.keys() & found.keys()
    }
    pairs = [(name, task) for name, found in against.items() for task in found.tasks]
    corrected = dict(zip(pairs, holm([against[n].tasks[t].p for n, t in pairs]), strict=True))

    def worse(name: str) -> list[str]:
        tasks = against[name].tasks
        return [t for t, found in tasks.items() if found.mean > 0 and corrected[name, t] < LEVEL]

    failed = [t for t in dict.fromkeys(t for found in rivals.values() for t in found) if t not in winner]
    beaten = [n for n, found in against.items() if found.overall.high < 0 and not worse(n) and not failed]
    lines = []
    for name, found in against.items():
        overall = found.overall
        ends = f"95 % interval {percent(overall.low)} to {percent(overall.high)}"
        losses = f"; significantly worse on {', '.join(worse(name))}" if worse(name) else ""
        gaps = [t for t in winner if t not in rivals[name]]
        losses += f"; {name} failed on {', '.join(gaps)}, which does not count" if gaps else ""
        lines.append(f"Loss against {name}: {percent(overall.mean)} ({ends}){losses}.")
    if failed:
        lines.append(f"The winner failed on {', '.join(failed)}.")
    better = len(beaten) == len(rivals)
    if better:
        head = "The winner is better than every rule that it was compared with on the held-out tasks."
    else:
        ahead = [n for n, found in against.items() if found.overall.low > 0]
        others = [n for n in rivals if n not in beaten and n not in ahead]
        parts = [f"is worse than {_and(ahead)}"] if ahead else []
        parts += [f"is not shown to be better than {_and(others)}"] if others else []
        rest = f", but is better than {_and(beaten)}" if beaten else ""
        head = f"On the held-out tasks the winner {' and '.join(parts)}{rest}."
    return Tested(against, corrected, better, "\n".join([head, *lines]))


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


@record
class Scored:
    """A candidate of the search, its score, the bytes that a step of it moves, and how long it took to evaluate."""

    candidate: Candidate
    score: float
    moved: float | None
    seconds: float


def measured(store: Store, stage: str) -> dict[int, dict[str, Tuned]]:
    """What was measured at a stage: by candidate and task."""
    found: dict[int, dict[str, Tuned]] = collections.defaultdict(dict)
    for e in store.evaluations(stage):
        if e.tuned is not None:
            found[e.candidate][e.task] = e.tuned
    return dict(found)


def scored(store: Store) -> list[Scored]:
    """The evaluated candidates of the search, in order."""
    results: dict[int, list[Evaluation]] = collections.defaultdict(list)
    for e in store.evaluations("search"):
        results[e.candidate].append(e)
    tasks = set(store.settings["tasks"])
    rows, first = [], None
    for candidate in store.candidates(("start", "child", "refined")):
        if candidate.id not in results:
            continue
        found = results[candidate.id]
        mine = {e.task: e.tuned for e in found if e.tuned is not None}
        first = first or mine
        whole = set(mine) == tasks and not any(t.dead for t in mine.values())
        score, seconds = mean_ratio(mine, first) if whole else math.inf, sum(e.seconds for e in found)
        rows.append(Scored(candidate, score, found[-1].moved, seconds))
    return rows


def best(rows: Sequence[Scored]) -> Scored | None:
    """The one with the best score, or None where nothing could be trained."""
    found = min(rows, key=lambda r: (r.score, r.candidate.id), default=None)
    return None if found is None or not math.isfinite(found.score) else found


def progress(rows: Sequence[Scored]) -> list[tuple[float, Scored | None]]:
    """After each evaluation: the seconds that all of them have taken, and the best so far."""
    spent, leader, found = 0.0, None, []
    for row in rows:
        spent += row.seconds
        if math.isfinite(row.score) and (leader is None or row.score < leader.score):
            leader = row
        found.append((spent, leader))
    return found


def pareto(rows: Sequence[Scored]) -> list[Scored]:
    """Those that no other one beats in score, bytes of states and bytes moved at once, best score first."""
    return undominated(
        (row for row in rows if math.isfinite(row.score)),
        lambda row: costs(OBJECTIVES, row.score, row.candidate.genome.bytes_per_parameter(), row.moved),
    )


def lineage(store: Store, id: int) -> list[Candidate]:
    """A candidate and its ancestors by the first parent, the oldest first."""
    found = [store.candidate(id)]
    while (parent := found[-1].parent) is not None:
        found.append(store.candidate(parent))
    return found[::-1]


def objectives(store: Store) -> tuple[str, ...]:
    """What is to be small."""
    return tuple(store.settings.get("objectives", [LOSS]))  # stores have it where it is not loss alone


def costs_of(store: Store, id: int, score: float, wanted: Sequence[str] | None = None) -> Costs:
    """What of a candidate behind the search is to be small, or what is `wanted` of it, with this score."""
    states = store.candidate(id).genome.bytes_per_parameter()
    found = (e.moved for stage in ("fresh", "held-out") for e in store.evaluations(stage, id))
    return costs(
        objectives(store) if wanted is None else wanted,
        score,
        states,
        next((x for x in found if x is not None), None),
    )


#: How sizes are called.
_SIZES = {STATES: "States of the winner", MOVED: "Moved by a step of the winner"}


def sizes(store: Store, winner: int, start: int) -> list[str]:
    """What a winner needs beside the start, where that was to be small, too."""
    wanted = [name for name in objectives(store) if name != LOSS]
    both = [costs_of(store, id, 0.0, wanted) for id in (winner, start)]
    return [
        f"{_SIZES[name]}: {mine:g} bytes per parameter, of the start {other:g}."
        for name, mine, other in zip(wanted, *both, strict=True)
    ]


def why(store: Store) -> str:
    """What is to be said where a table has no rows."""
    verdict = store.noted("verdict")
    if verdict is not None:
        return "There is no winner." if verdict["winner"] is None else "This was not measured."
    return "The search is not finished." if store.phase == "search" else "The tests are not finished."


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def finalists(store: Store) -> dict[int, tuple[dict[str, float], str]]:
    """The finalists: the mean log ratio to the start at each stage that they came to, and what became of them."""
    verdict, base = store.noted("verdict"), store.noted("base")
    by_stage = {stage: measured(store, stage) for stage in STAGES}
    by_stage = {stage: found for stage, found in by_stage.items() if base in found}
    scores = {
        id: {stage: mean_ratio(found[id], found[base]) for stage, found in by_stage.items() if id in found}
        for id in store.noted("finalists") or []
    }
    stages = list(by_stage)
    over = stages if verdict else stages[:-1]  # the last one may be under way
    winner = verdict and verdict["winner"]
    origin = None if winner is None else store.candidate(winner).parent
    wanted, start = objectives(store), costs_of(store, base, 0.0) if scores else ()
    made = {}
    for id, mine in scores.items():
        found = {stage: costs_of(store, id, score) for stage, score in mine.items()}
        out = next((s for s in over if s in found and not better(wanted, found[s], start)), None)
        if out is not None:
            ended = f"{OUT} {STAGES[out]}"
        elif id == origin:
            ended = "the winner"
        elif any(stage not in mine for stage in stages):
            ended = f"others were better on {STAGES[list(mine)[-1]]}" if mine else "failed"
        elif verdict is None:
            ended = ""
        else:  # the best of those that are left are tried first
            last = stages[-1]
            first = origin is None or found[last] < costs_of(store, origin, scores[origin][last])
            ended = "stress breaks it" if first else "another one was better"
        made[id] = mine, ended
    return made


#: What became of a finalist that was no better than the start, but for where.
#: What became of a finalist that went no further; behind it stands where.
OUT = "out: no better than the start on"


def tested(store: Store) -> tuple[int, Tested] | None:
    """The winner and what the held-out tasks said of it, made anew from what was measured."""
    verdict = store.noted("verdict")
    found = measured(store, "held-out")
    if verdict is None or verdict["winner"] is None or verdict["winner"] not in found:
        return None
    winner = verdict["winner"]
    rivals = [store.noted("base"), *(store.noted("baselines") or [])]
    by_name = {store.candidate(id).name or "the start": found.get(id, {}) for id in rivals}
    result = held_out(found[winner], by_name)
    return winner, replace(result, text="\n".join([result.text, *sizes(store, winner, rivals[0])]))


def curves(store: Store) -> dict[str, dict[str, list[float]]]:
    """Mean losses on each held-out task, by rule, the winner first: before the first step, and at the checkpoints."""
    found, verdict = measured(store, "held-out"), store.noted("verdict")
    winner = None if verdict is None else verdict["winner"]
    if winner not in found:
        return {}
    made: dict[str, dict[str, list[float]]] = {}
    for id in sorted(found, key=lambda i: (i != winner, i)):
        name = "winner" if id == winner else store.candidate(id).name or "the start"
        for task, tuned in found[id].items():
            losses = [statistics.fmean(tuned.starts), *tuned.curve]
            if tuned.curve and all(map(math.isfinite, losses)):
                made.setdefault(task, {})[name] = losses
    return made


def chosen(store: Store, rows: Sequence[Scored]) -> int | None:
    """What the lineage is told of: the winner, or the best of the search while there is none."""
    verdict = store.noted("verdict")
    if verdict is not None and verdict["winner"] is not None:
        return int(verdict["winner"])
    top = best(rows)
    return None if top is None else top.candidate.id


def steps(store: Store, id: int) -> list[list[Candidate]]:
    """The lineage of a candidate, each with those behind it that were tuned on and not changed."""
    found: list[list[Candidate]] = []
    for c in lineage(store, id):
        if found and c.kind == "refined":
            found[-1].append(c)
        else:
            found.append([c])
    return found
