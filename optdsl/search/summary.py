"""What there is to tell of a search, from its store alone, in tables."""

from __future__ import annotations

import collections
import itertools
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace

from optdsl.core.record import record
from optdsl.search.evaluate.tune import log_ratios
from optdsl.search.objectives import LOSS
from optdsl.search.results import (
    OUT,
    STAGES,
    Scored,
    best,
    chosen,
    curves,
    duration,
    finalists,
    mean_ratio,
    measured,
    objectives,
    pareto,
    percent,
    progress,
    scored,
    sizes,
    steps,
    tested,
    why,
)
from optdsl.search.space import REASONS
from optdsl.search.statistics import Estimate, compare, standard_error
from optdsl.search.store import Store


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


def _refused(store: Store, rows: Sequence[Scored]) -> str:
    """How many finalists looked better than the start and were not, and the one that looked best of these."""
    found = finalists(store)
    search = {row.candidate.id: row.score for row in rows}
    out = [
        (search.get(store.candidate(id).parent or 0, math.inf), id)
        for id, (_, ended) in found.items()
        if ended.startswith(OUT)
    ]
    if not out:
        return f"none of {len(found)} finalists: all that were tested on were better than the start"
    score, id = min(out)
    stage, last = list(found[id][0].items())[-1]
    return (
        f"{len(out)} of {len(found)} finalists; one looked like {percent(score)} in the search (candidate "
        f"{store.candidate(id).parent}) and is {percent(last)} on {STAGES[stage]}"
    )


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
