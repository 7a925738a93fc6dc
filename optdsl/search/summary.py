"""What there is to tell of a search, from its store alone: tables, curves, the lineage of the winner, the verdict."""

from __future__ import annotations

import collections
import itertools
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optdsl.core.record import record
from optdsl.search.evaluate.tune import Tuned, log_ratios
from optdsl.search.objectives import LOSS, MOVED, OBJECTIVES, STATES, Costs, better, costs, undominated
from optdsl.search.space import REASONS
from optdsl.search.statistics import Comparison, Estimate, compare, holm, standard_error
from optdsl.search.store import Candidate, Evaluation, Store

#: p-values below this are significant.
LEVEL = 0.05
#: The stages of the funnel, in their order, and what each is about.
STAGES = {"fresh": "fresh seeds", "large": "larger tasks", "validation": "validation tasks"}


@record
class Table:
    """Rows of text under a head. `note` says what the numbers are, or why there are no rows.

    `estimates` are the log ratios behind the rows, for a picture of them: none, or one or None for each row.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    estimates: tuple[Estimate | None, ...] = ()


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


# ---- from the store ---------------------------------------------------------------------------------------


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


def tables(store: Store, rows: Sequence[Scored] | None = None) -> list[Table]:
    """All tables, those without rows, too, but for other runs, which are told of where there are some.

    `rows` are those of `scored`, if they are known.
    """
    rows = scored(store) if rows is None else rows
    made = [_run(store, rows), _commands(store, rows), _seeds(store, rows), _filters(store), _course(rows)]
    made += [_best(rows), _front(rows), _on_tasks(store, rows), _lineage(store, rows), _funnel(store, rows)]
    made += [*_tested(store), _ablations(store), _events(store), _short(store, rows)]
    made = [
        table if table.rows else replace(table, note=_EMPTY.get(table.title) or why(store)) for table in made
    ]
    return [_runs(store), *made] if len(store.runs()) > 1 else made


#: What is said of tables without rows that do not wait for a winner or the end of the search.
_EMPTY = {
    **dict.fromkeys(("Course of the search", "Tasks of the search"), "Nothing is evaluated yet."),
    **dict.fromkeys(
        ("Best structures of the search", "Pareto front", "Lineage"), "Nothing is evaluated yet."
    ),
    "What became of proposed candidates": "Nothing is proposed yet.",
    "Events": "Nothing out of the ordinary.",
}


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def _short(store: Store, rows: Sequence[Scored]) -> Table:
    """The few numbers that tell most."""
    counts = store.verdicts()
    total = sum(counts.values())
    answered = total - counts.get("new", 0)
    told = [
        ("proposed", f"{total} candidates, {100 * answered / max(1, total):.0f} % answered without training"),
        (
            "evaluated",
            f"{len(rows)} in {duration(sum(row.seconds for row in rows))} of work of all workers together",
        ),
    ]
    top, fresh, base = best(rows), measured(store, "fresh"), store.noted("base")
    if top is not None:
        chance = (
            f"(candidate {top.candidate.id}, the best of {len(rows)} by these very seeds, part of it by luck)"
        )
        told.append(("best of the search", f"{percent(top.score)} {chance}"))
    again = [mean_ratio(found, fresh[base]) for id, found in fresh.items() if id != base and base in fresh]
    if again:
        told.append(("best on fresh seeds", f"{percent(min(again))}, of {len(again)} finalists"))
    if again and store.noted("verdict") is not None:
        told.append(("refused", _refused(store, rows)))
    both = tested(store)
    if both is not None:
        for name, found in both[1].against.items():
            on = found.overall
            told.append(
                (f"held-out, against {name}", f"{percent(on.mean)} ({percent(on.low)} to {percent(on.high)})")
            )
        for line in sizes(store, both[0], store.noted("base")):
            what, _, value = line.rstrip(".").partition(": ")
            told.append((_lower(what), value))
    else:
        told.append(("held-out", f"nothing: {_lower(why(store))}"))
    return Table("In short", ("what", "value"), tuple(told), "Changes of the loss: below 0 is better.")


def _lower(text: str) -> str:
    return text[0].lower() + text[1:].rstrip(".")


def _runs(store: Store) -> Table:
    """What else is in the store."""
    rows = []
    for number, settings, phase in store.runs():
        told = f"{number} (this one)" if number == store.run else str(number)
        rows.append((told, settings["arm"], ", ".join(settings["starts"]), str(settings["seed"]), phase))
    head = ("run", "arm", "starts", "seed", "phase")
    return Table("Runs in this store", head, tuple(rows))


def _run(store: Store, rows: Sequence[Scored]) -> Table:
    settings = store.settings
    seconds = store.seconds
    told = [
        ("arm", settings["arm"]),
        ("starts", ", ".join(settings["starts"])),
        ("tasks", ", ".join(settings["tasks"])),
        ("objectives", ", ".join(objectives(store))),
        ("seed", str(settings["seed"])),
        ("population", str(settings["population"])),
        ("evaluations", f"{len(rows)} in the search"),
        ("time", f"{duration(seconds)} in all, tests included, while something worked"),
        ("phase", store.phase),
        *((name, value) for name, value in store.versions.items()),
    ]
    return Table("Run", ("what", "value"), tuple(told))


def _commands(store: Store, rows: Sequence[Scored]) -> Table:
    """What makes the same store again, and what there is to do with it."""
    settings, both = store.settings, store.noted("both sizes")
    words = ["optdsl", "search", *(word for start in settings["starts"] for word in ("--from", start))]
    words += [
        "--tasks",
        ",".join(settings["tasks"]),
        "--arm",
        settings["arm"],
        "--seed",
        str(settings["seed"]),
    ]
    words += ["--population", str(settings["population"]), "--evaluations", str(max(1, len(rows)))]
    if settings.get("ahead", 8) != 8:  # stores of the first form had no other number
        words += ["--ahead", str(settings["ahead"])]
    if objectives(store) != (LOSS,):
        words += ["--objectives", ",".join(objectives(store))]
    words += ["--no-proof"] if both is None else ["--sizes", "both" if both else "small"]
    run = f" --run {store.run}" if len(store.runs()) > 1 else ""
    told = [
        ("the same search", shlex.join([*words, "--store", "again.db"])),
        ("all of these tables", f"optdsl search report run.db{run}"),
        ("this page", f"optdsl search report run.db{run} -o report.html"),
        ("what was found, as specs", f"optdsl search export run.db{run} -o found/"),
    ]
    note = (
        "The same results need the same versions and kind of machine, however many workers. run.db is this store. "
        "A search begun in Python may have settings that the command does not."
    )
    return Table("Commands", ("for", "command"), tuple(told), note)


def _seeds(store: Store, rows: Sequence[Scored]) -> Table:
    """What each stage was measured with."""
    settings = store.settings
    effort = settings["effort"]
    told = [
        ("search", len(rows), settings["tasks"], effort["configurations"], effort["tuning"], effort["fresh"])
    ]
    for stage, about in {
        **STAGES,
        "simplify": "shortening",
        "confirm": "shortening, once more",
        "ablation": "ablations",
        "held-out": "held-out",
    }.items():
        found = store.evaluations(stage)
        if found:
            e, tasks = found[0].effort, list(dict.fromkeys(x.task for x in found))
            ids = {x.candidate for x in found}
            told.append((about, len(ids), tasks, e["configurations"], e["tuning"], e["fresh"]))
    made = [
        (about, str(count), ", ".join(tasks), str(tried), _numbers(tuning), _numbers(fresh))
        for about, count, tasks, tried, tuning, fresh in told
    ]
    head = ("stage", "candidates", "tasks", "configurations", "tuned on seeds", "measured on seeds")
    note = "Each candidate gets as many configurations as any other of its stage. No stage has the seeds of another."
    return Table("Seeds and effort", head, tuple(made), note)


def _numbers(values: Sequence[int]) -> str:
    """Whole numbers, neighbours as a range."""
    parts = []
    for _, run in itertools.groupby(enumerate(values), lambda pair: pair[1] - pair[0]):
        found = [value for _, value in run]
        parts.append(str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}")
    return ", ".join(parts)


def _filters(store: Store) -> Table:
    counts = store.verdicts()
    total = sum(counts.values())
    about = {"new": "evaluated, or to be", "known": "does what one before it does", **REASONS}
    rows = [(v, str(n), f"{100 * n / total:.1f} %", about.get(v, "")) for v, n in counts.items()]
    return Table("What became of proposed candidates", ("verdict", "count", "share", "meaning"), tuple(rows))


def _course(rows: Sequence[Scored]) -> Table:
    """The best after 1, 2, 5, 10, ... evaluations and at the end."""
    found = progress(rows)
    marks = [m * 10**e for e in range(12) for m in (1, 2, 5)]
    made = []
    for number in dict.fromkeys([*(m for m in marks if m < len(found)), len(found)][: len(found)]):
        spent, leader = found[number - 1]
        what = ("-", "-") if leader is None else (percent(leader.score), str(leader.candidate.id))
        made.append((str(number), duration(spent), *what))
    note = "The work is that of all workers together. Loss against the start as it was first tuned."
    return Table(
        "Course of the search", ("evaluations", "work", "best so far", "candidate"), tuple(made), note
    )


def _on_tasks(store: Store, rows: Sequence[Scored]) -> Table:
    """What the start and the best one reached on each task of the search."""
    top = best(rows)
    head = ("task", "loss of the start", "of the best", "change", "standard error of the log")
    if top is None:
        return Table("Tasks of the search", head, ())
    first, found = (
        {e.task: e.tuned for e in store.evaluations("search", row.candidate.id) if e.tuned is not None}
        for row in (rows[0], top)
    )
    made = []
    for task, tuned in found.items():
        ratios = log_ratios(tuned, first[task])
        losses = (f"{math.exp(float(t.logs.mean())):.4g}" for t in (first[task], tuned))
        made.append((task, *losses, percent(float(ratios.mean())), f"{standard_error(ratios):.3f}"))
    note = (
        f"The start and candidate {top.candidate.id}, the best of {len(rows)} by these very numbers: too good to be "
        "believed. Geometric means over seeds."
    )
    return Table("Tasks of the search", head, tuple(made), note)


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
    search = {row.candidate.id: row.score for row in rows}
    found = finalists(store)
    stages = [stage for stage in STAGES if any(stage in scores for scores, _ in found.values())]
    made = []
    for id, (scores, ended) in found.items():
        parent = store.candidate(id).parent
        line = [percent(scores[stage]) if stage in scores else "-" for stage in stages]
        made.append((str(id), str(parent), percent(search.get(parent or 0, math.inf)), *line, ended))
    head = (
        "finalist",
        "candidate",
        "search score",
        *(STAGES[stage] for stage in stages),
        "what became of it",
    )
    note = (
        "Loss against the start, both tuned alike. What the search saw and fresh seeds do not show was luck."
    )
    return Table("Funnel", head, tuple(made), note)


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
            ended = f"{_OUT} {STAGES[out]}"
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
_OUT = "out: no better than the start on"


def _refused(store: Store, rows: Sequence[Scored]) -> str:
    """How many finalists looked better than the start and were not, and the one that looked best of these."""
    found = finalists(store)
    search = {row.candidate.id: row.score for row in rows}
    out = [
        (search.get(store.candidate(id).parent or 0, math.inf), id)
        for id, (_, ended) in found.items()
        if ended.startswith(_OUT)
    ]
    if not out:
        return f"none of {len(found)} finalists: all that were tested on were better than the start"
    score, id = min(out)
    stage, last = list(found[id][0].items())[-1]
    return (
        f"{len(out)} of {len(found)} finalists; one looked like {percent(score)} in the search (candidate "
        f"{store.candidate(id).parent}) and is {percent(last)} on {STAGES[stage]}"
    )


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


def _tested(store: Store) -> list[Table]:
    heads = {
        "overall": ("against", "loss", "95 % interval"),
        "each": ("against", "task", "loss", "standard error of the log", "p (Wilcoxon)", "p (Holm)"),
        "losses": ("rule", "task", "loss", "diverged", "configurations", "learning rate", "note"),
        "curves": ("rule", "task", "before"),
    }
    both = tested(store)
    if both is None:
        return [Table(f"Held-out tasks: {name}", head, ()) for name, head in heads.items()]
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
    courses = [
        (name, task, *(f"{loss:.4g}" for loss in losses))
        for task, by_rule in curves(store).items()
        for name, losses in by_rule.items()
    ]
    last = max((len(row) for row in courses), default=3) - 3
    heads["curves"] += tuple(f"{100 * n / last:.0f} % of the steps" for n in range(1, last + 1))
    seeds = len(effort["fresh"])
    estimates = tuple(c.overall for c in result.against.values())
    notes = {
        "overall": f"Loss of the winner against each rule. {seeds} paired seeds, hierarchical bootstrap over tasks "
        "and seeds. The start is tuned from the constants that were best for it in the search, known rules from "
        "those they are known with.",
        "each": "Loss of the winner against each rule. Wilcoxon's test of the paired seeds, and Holm's correction "
        "over all of these rows.",
        "losses": "Geometric means over seeds, with the best of as many configurations for each rule.",
        "curves": "Mean validation losses of the seeds that did not diverge.",
    }
    made: dict[str, Sequence[tuple[str, ...]]] = {
        "overall": overall, "each": rows, "losses": sorted(raw), "curves": courses,
    }  # fmt: skip
    return [
        Table(
            f"Held-out tasks: {name}", head, tuple(made[name]), notes[name],
            estimates if name == "overall" else (),
        )
        for name, head in heads.items()
    ]  # fmt: skip


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


def _ablations(store: Store) -> Table:
    """The statements of the winner, and what it is without each."""
    head = ("statement", "becomes", "loss", "95 % interval")
    noted, verdict = store.noted("ablations"), store.noted("verdict")
    if noted is None or verdict is None or verdict["winner"] is None:
        return Table("Ablations", head, ())
    found = measured(store, "ablation")
    results: dict[str, list[tuple[str, str, str, Estimate | None]]] = collections.defaultdict(list)
    for candidate in map(store.candidate, noted["tried"]):
        mine, whole = found.get(candidate.id, {}), found.get(candidate.parent or 0, {})
        statement, _, becomes = candidate.mutations[0].rpartition(" becomes ")
        if mine and set(mine) == set(whole):
            overall = compare({task: log_ratios(mine[task], whole[task]) for task in whole}).overall
            ends = f"{percent(overall.low)} to {percent(overall.high)}"
            results[statement].append((becomes, percent(overall.mean), ends, overall))
        else:
            results[statement].append((becomes, "failed", "", None))
    for what, reason in noted["refused"]:
        statement, _, becomes = what.rpartition(" becomes ")
        results[statement].append((becomes, f"refused: {reason}", "", None))
    rows, estimates = list[tuple[str, ...]](), list[Estimate | None]()
    for line in str(store.candidate(verdict["winner"]).genome).split("\n"):
        for becomes, loss, ends, estimate in results.get(line, [("", "", "", None)]):
            rows.append((line, becomes, loss, ends))
            estimates.append(estimate)
    note = (
        "The winner statement by statement (its spec has names of its own), and its loss without one, an operand in "
        "its place: above 0 the statement is needed, about 0 it does nothing. On tasks of the search, with seeds of "
        "their own, the learning rate tuned anew. The filters refuse what cannot be trained."
    )
    return Table("Ablations", head, tuple(rows), note, tuple(estimates))


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


def _lineage(store: Store, rows: Sequence[Scored]) -> Table:
    head = ("candidate", "kind", "change", "times tuned on", "statements", "search score")
    id = chosen(store, rows)
    if id is None:
        return Table("Lineage", head, ())
    scores = {row.candidate.id: row.score for row in rows}
    made = []
    for run in steps(store, id):
        first, last = run[0], run[-1]
        score = percent(scores[last.id]) if last.id in scores else ""
        crossed = f"with {first.other}" if first.other is not None else ""
        how = " ".join([*first.mutations, crossed]).strip() or first.name or _KINDS.get(first.kind, "")
        tuned = str(len(run) - 1) if len(run) > 1 else ""
        made.append((str(last.id), first.kind, how, tuned, str(len(last.genome.body)), score))
    note = (
        "From the start down by the first parents, with the number of the other one after a cross. A candidate that "
        "is tuned on keeps its statements. Scores are those that the search saw, too good for what it chose."
    )
    return Table("Lineage", head, tuple(made), note)


#: What is done to candidates behind the search.
_KINDS = {"finalist": "measured on fresh seeds", "winner": "made short"}


def _events(store: Store) -> Table:
    # times are the clock's, and would make reports of the same search differ; other tables have the rest
    rows = [(kind, text) for _, kind, text in store.events() if kind not in ("best", "verdict")]
    return Table("Events", ("kind", "what"), tuple(rows[-50:]))
