"""What there is to tell of a search, from its store alone: tables, curves, the lineage of the winner, the verdict."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping, Sequence

from optdsl.core.record import record
from optdsl.search.evaluate.tune import Tuned, log_ratios
from optdsl.search.space import REASONS
from optdsl.search.statistics import Comparison, compare, holm
from optdsl.search.store import Candidate, Store

#: p-values below this are significant.
LEVEL = 0.05
#: The stages of the funnel, in their order, and what each is about.
STAGES = {"fresh": "fresh seeds", "large": "larger tasks", "validation": "validation tasks"}


@record
class Table:
    """Rows of text under a head. `note` says what the numbers are."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


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
    side, and significantly worse than none on any task.
    """
    against = {
        name: compare({task: log_ratios(winner[task], found[task]) for task in winner if task in found})
        for name, found in rivals.items()
    }
    pairs = [(name, task) for name, found in against.items() for task in found.tasks]
    corrected = dict(zip(pairs, holm([against[n].tasks[t].p for n, t in pairs]), strict=True))

    def worse(name: str) -> list[str]:
        tasks = against[name].tasks
        return [t for t, found in tasks.items() if found.mean > 0 and corrected[name, t] < LEVEL]

    beaten = [n for n, found in against.items() if found.overall.high < 0 and not worse(n)]
    lines = []
    for name, found in against.items():
        overall = found.overall
        ends = f"95 % interval {percent(overall.low)} to {percent(overall.high)}"
        losses = f"; significantly worse on {', '.join(worse(name))}" if worse(name) else ""
        lines.append(f"Loss against {name}: {percent(overall.mean)} ({ends}){losses}.")
    better = len(beaten) == len(against)
    if better:
        head = "The winner is better than every rule that it was compared with on the held-out tasks."
    elif beaten:
        others = [n for n in against if n not in beaten]
        head = f"On the held-out tasks the winner is better than {_and(beaten)}, but not than {_and(others)}."
    else:
        head = "On the held-out tasks the winner is better than none of the rules that it was compared with."
    return Tested(against, corrected, better, "\n".join([head, *lines]))


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


# ---- from the store ---------------------------------------------------------------------------------------


@record
class Scored:
    """A candidate of the search, its score, and the bytes that a step of it moves."""

    candidate: Candidate
    score: float
    moved: float | None


def measured(store: Store, stage: str) -> dict[int, dict[str, Tuned]]:
    """What was measured at a stage: by candidate and task."""
    found: dict[int, dict[str, Tuned]] = collections.defaultdict(dict)
    for e in store.evaluations(stage):
        if e.tuned is not None:
            found[e.candidate][e.task] = e.tuned
    return dict(found)


def scored(store: Store) -> list[Scored]:
    """The evaluated candidates of the search, in order."""
    moved = {e.candidate: e.moved for e in store.evaluations("search")}
    found = measured(store, "search")
    tasks = set(store.settings["tasks"])
    rows, first = [], None
    for candidate in store.candidates(("start", "child", "refined")):
        if candidate.id not in moved:
            continue
        mine = found.get(candidate.id, {})
        first = first or mine
        whole = set(mine) == tasks and not any(t.dead for t in mine.values())
        rows.append(Scored(candidate, mean_ratio(mine, first) if whole else math.inf, moved[candidate.id]))
    return rows


def pareto(rows: Sequence[Scored]) -> list[Scored]:
    """Those that no other one beats in score, bytes of states and bytes moved at once, best score first."""

    def costs(row: Scored) -> tuple[float, float, float]:
        moved = math.inf if row.moved is None else row.moved
        return row.score, row.candidate.genome.bytes_per_parameter(), moved

    found: list[Scored] = []
    for row in sorted((r for r in rows if math.isfinite(r.score)), key=costs):
        mine = costs(row)
        if not any(all(a <= b for a, b in zip(costs(other), mine, strict=True)) for other in found):
            found.append(row)
    return found


def lineage(store: Store, id: int) -> list[Candidate]:
    """A candidate and its ancestors by the first parent, the oldest first."""
    found = [store.candidate(id)]
    while (parent := found[-1].parent) is not None:
        found.append(store.candidate(parent))
    return found[::-1]


def tables(store: Store) -> list[Table]:
    """All tables that there is something for."""
    rows = scored(store)
    made = [_run(store, rows), _filters(store), _best(rows), _front(rows), _funnel(store, rows)]
    made += [*_tested(store), _ablations(store), _lineage(store, rows), _events(store)]
    return [table for table in made if table.rows]


def _run(store: Store, rows: Sequence[Scored]) -> Table:
    settings = store.settings
    seconds = store.seconds
    told = [
        ("arm", settings["arm"]),
        ("starts", ", ".join(settings["starts"])),
        ("tasks", ", ".join(settings["tasks"])),
        ("seed", str(settings["seed"])),
        ("evaluations", f"{len(rows)} in the search"),
        ("time", f"{seconds:.0f} s in all"),
        ("phase", store.phase),
        *((name, value) for name, value in store.versions.items()),
    ]
    return Table("Run", ("what", "value"), tuple(told))


def _filters(store: Store) -> Table:
    counts = store.verdicts()
    total = sum(counts.values())
    about = {"new": "evaluated, or to be", "known": "does what one before it does", **REASONS}
    rows = [(v, str(n), f"{100 * n / total:.1f} %", about.get(v, "")) for v, n in counts.items()]
    return Table("What became of proposed candidates", ("verdict", "count", "share", "meaning"), tuple(rows))


def _line(row: Scored) -> tuple[str, ...]:
    genome = row.candidate.genome
    moved = "-" if row.moved is None else f"{row.moved:.4g}"
    size = str(len(genome.body)), str(len(genome.states)), str(genome.bytes_per_parameter()), moved
    return (str(row.candidate.id), row.candidate.kind, percent(row.score), *size)


_HEAD = ("candidate", "kind", "search score", "statements", "states", "state bytes", "moved bytes")


def _best(rows: Sequence[Scored]) -> Table:
    seen: dict[str, Scored] = {}
    for row in sorted(rows, key=lambda r: (r.score, r.candidate.id)):
        if math.isfinite(row.score):
            seen.setdefault(row.candidate.structure, row)
    note = "Loss against the start as it was first tuned, on seeds of the search; not to be believed yet."
    return Table("Best structures of the search", _HEAD, tuple(map(_line, list(seen.values())[:10])), note)


def _front(rows: Sequence[Scored]) -> Table:
    note = (
        "No other candidate is as good in loss, state bytes and moved bytes at once. Bytes are per parameter."
    )
    return Table("Pareto front", _HEAD, tuple(map(_line, pareto(rows))), note)


def _funnel(store: Store, rows: Sequence[Scored]) -> Table:
    ids = store.noted("finalists") or []
    base = store.noted("base")
    search = {row.candidate.id: row.score for row in rows}
    by_stage = {stage: measured(store, stage) for stage in STAGES}
    by_stage = {stage: found for stage, found in by_stage.items() if found}
    made = []
    for id in ids:
        candidate = store.candidate(id)
        line = [str(id), str(candidate.parent), percent(search.get(candidate.parent or 0, math.inf))]
        for found in by_stage.values():
            line.append(percent(mean_ratio(found[id], found[base])) if id in found and base in found else "-")
        made.append(tuple(line))
    head = ("finalist", "candidate", "search score", *(STAGES[stage] for stage in by_stage))
    note = (
        "Loss against the start, both tuned alike. What the search saw and fresh seeds do not show was luck."
    )
    return Table("Funnel", head, tuple(made), note)


def tested(store: Store) -> tuple[int, Tested] | None:
    """The winner and what the held-out tasks said of it, made anew from what was measured."""
    verdict = store.noted("verdict")
    found = measured(store, "held-out")
    if verdict is None or verdict["winner"] is None or verdict["winner"] not in found:
        return None
    winner = verdict["winner"]
    names = {id: store.candidate(id).name or "the start" for id in sorted(found) if id != winner}
    base = store.noted("base")
    order = [base, *(id for id in names if id != base)]
    return winner, held_out(found[winner], {names[id]: found[id] for id in order})


def _tested(store: Store) -> list[Table]:
    both = tested(store)
    if both is None:
        return []
    winner, result = both
    overall = [
        (name, percent(c.overall.mean), f"{percent(c.overall.low)} to {percent(c.overall.high)}")
        for name, c in result.against.items()
    ]
    rows = [
        (
            name,
            task,
            percent(on.mean),
            f"{on.error:.3f}",
            f"{on.p:.2g}",
            f"{result.corrected[name, task]:.2g}",
        )
        for name, c in result.against.items()
        for task, on in c.tasks.items()
    ]
    losses = measured(store, "held-out")
    names = {id: store.candidate(id).name or "the start" for id in losses}
    names[winner] = "winner"
    effort = next(e.effort for e in store.evaluations("held-out"))
    raw = [
        (
            names[id], task, f"{math.exp(float(t.logs.mean())):.4g}", str(t.diverged), str(t.configurations),
            f"{t.values['lr']:.3g}", "at the end of its grid" if t.edge else "",
        )
        for id, found in losses.items()
        for task, t in found.items()
    ]  # fmt: skip
    seeds = len(effort["fresh"])
    note = f"Loss of the winner against each rule. {seeds} paired seeds, hierarchical bootstrap over tasks and seeds."
    return [
        Table("Held-out tasks: overall", ("against", "loss", "95 % interval"), tuple(overall), note),
        Table(
            "Held-out tasks: each",
            ("against", "task", "loss", "standard error of the log", "p (Wilcoxon)", "p (Holm)"),
            tuple(rows),
        ),
        Table(
            "Held-out tasks: losses",
            ("rule", "task", "loss", "diverged", "configurations", "learning rate", "note"),
            tuple(sorted(raw)),
            "Geometric means over seeds, with the best of as many configurations for each rule.",
        ),
    ]


def _ablations(store: Store) -> Table:
    found, noted = measured(store, "ablation"), store.noted("ablations") or {"tried": [], "refused": []}
    rows = []
    for candidate in map(store.candidate, noted["tried"]):
        mine, whole = found.get(candidate.id, {}), found.get(candidate.parent or 0, {})
        if mine and set(mine) == set(whole):
            overall = compare({task: log_ratios(mine[task], whole[task]) for task in whole}).overall
            ends = f"{percent(overall.low)} to {percent(overall.high)}"
            rows.append((*candidate.mutations, percent(overall.mean), ends))
    rows += [(what, "refused", reason) for what, reason in noted["refused"]]
    note = "Loss against the winner on tasks of the search, with seeds of their own, the learning rate tuned anew."
    return Table("Ablations", ("change", "loss", "95 % interval"), tuple(rows), note)


def chosen(store: Store, rows: Sequence[Scored]) -> int | None:
    """What the lineage is told of: the winner, or the best of the search while there is none."""
    verdict = store.noted("verdict")
    if verdict is not None and verdict["winner"] is not None:
        return int(verdict["winner"])
    best = min(rows, key=lambda r: (r.score, r.candidate.id), default=None)
    return None if best is None or not math.isfinite(best.score) else best.candidate.id


def _lineage(store: Store, rows: Sequence[Scored]) -> Table:
    id = chosen(store, rows)
    if id is None:
        return Table("Lineage", (), ())
    scores = {row.candidate.id: row.score for row in rows}
    made = []
    for c in lineage(store, id):
        score = percent(scores[c.id]) if c.id in scores else ""
        crossed = f"with {c.other}" if c.other is not None else ""
        how = " ".join([*c.mutations, crossed]).strip()
        made.append((str(c.id), c.kind, how or c.name, str(len(c.genome.body)), score))
    return Table("Lineage", ("candidate", "kind", "change", "statements", "search score"), tuple(made))


def _events(store: Store) -> Table:
    # times are the clock's, and would make reports of the same search differ
    rows = [(kind, text) for _, kind, text in store.events() if kind != "best"]
    return Table("Events", ("kind", "what"), tuple(rows[-50:]))
