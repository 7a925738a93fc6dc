"""A report of a search from its store: text for a terminal, or one page of HTML that needs nothing else."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence

from optdsl.search.export import spec
from optdsl.search.pictures import COLOURS, Plot, esc, intervals, legend
from optdsl.search.results import (
    STAGES,
    Scored,
    best,
    chosen,
    curves,
    lineage,
    mean_ratio,
    measured,
    pareto,
    percent,
    progress,
    scored,
    tested,
)
from optdsl.search.store import Candidate, Store
from optdsl.search.summary import Table, tables


def verdict(store: Store) -> str:
    """What came of it, in words."""
    found = store.noted("verdict")
    if found is None:
        if store.phase == "search":
            return "The search is not finished: nothing here is tested yet."
        return "The tests are not finished: there is no verdict yet."
    again = tested(store)
    return str(found["text"]) if again is None else again[1].text


def text(store: Store, titles: Iterable[str] = ()) -> str:
    """The tables (those with these titles, if some are given) in columns, and the verdict last."""
    wanted = set(titles)
    parts = [_columns(table) for table in tables(store) if not wanted or table.title in wanted]
    return "\n\n".join([*parts, verdict(store)]) + "\n"


def _columns(table: Table) -> str:
    rows = [tuple(map(_shown, row)) for row in (table.head, *table.rows)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(table.head))]
    if not table.rows:
        return f"{table.title}\n  none: {table.note}"
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [table.title, *(f"  {line}" for line in lines), *([f"  {table.note}"] if table.note else [])]
    )


def _shown(text: str) -> str:
    """Names must not steer a terminal."""
    line = text.replace("\n", " ")
    return line if line.isprintable() else line.encode("unicode_escape").decode()


# ---- the page ---------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1f2328; --soft: #59636e; --line: #d0d7de; --card: #f6f8fa;
  --cloud: #a3acb6; --c0: #b3261e; --c1: #0a5fd0; --c2: #1f7a33; --c3: #8a5a00; --c4: #6f42c1; --c5: #00707a; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d;
  --card: #161b22; --cloud: #5b6570; --c0: #ff7b72; --c1: #79b8ff; --c2: #56d364; --c3: #e3b341; --c4: #d2a8ff;
  --c5: #56d4dd; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--back); overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: .3rem 0 .8rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
a { color: var(--c1); } nav { margin-top: .8rem; } nav a { margin-right: .9rem; white-space: nowrap; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
td, th { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td { max-width: 30rem; } td.n, th.n { text-align: right; } td.n, td.s { white-space: nowrap; max-width: none; }
td svg { display: block; max-width: none; }
pre, .wide { overflow-x: auto; } pre { background: var(--card); padding: .8rem; font-size: 13px; line-height: 1.4; }
.note { color: var(--soft); font-size: 13px; margin: .2rem 0 .5rem; max-width: 48rem; }
.verdict { border-left: 4px solid var(--soft); padding: .1rem 1rem; } .good { border-color: var(--c2); }
.verdict p { margin: .3rem 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 1rem; }
figure { margin: .6rem 0; } figcaption { font-size: 13px; color: var(--soft); }
svg { max-width: 100%; height: auto; font-size: 13px; fill: var(--soft); }
.axis, .grid { stroke: var(--soft); fill: none; } .grid { stroke: var(--line); }
.cloud { stroke: var(--cloud); stroke-width: 3; stroke-linecap: round; fill: none; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .soft { --c: var(--cloud); }
circle { fill: var(--c); } .line, .dashed { stroke: var(--c); stroke-width: 2; fill: none; }
.dashed { stroke-dasharray: 4 3; stroke-width: 1.5; }
.key { white-space: nowrap; margin-right: .6rem; } .key::before { content: "\\25CF\\A0"; color: var(--c); }
"""
#: Nothing from elsewhere and no script, even if a name in the store should ask for one.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(store: Store) -> str:
    """The report as HTML. It depends on what is in the store alone."""
    rows = scored(store)
    found: dict[str, Table | str] = {table.title: table for table in tables(store, rows)}
    first, *more = verdict(store).split("\n")
    settings = store.settings
    starts = ", ".join(settings["starts"])
    told = f"Search from {starts}, arm {settings['arm']}, seed {settings['seed']}"
    noted = store.noted("verdict") or {"better": False}
    sections = {
        "In short": "",
        "Held-out tasks": _curves(store),
        "The rule": _rule(store, rows),
        "Family tree": _family(store, rows),
        "Course of the search": _course(rows),
        "Pareto front": _scatter(rows),
        "Funnel": _stages(store, rows),
        "What became of proposed candidates": "",
        "Run": "",
        "Events": "",
    }
    parts = [f'<header><p class="note">{esc(told)}</p>', f"<h1>{esc(first)}</h1>"]
    lines = "".join(f"<p>{_prose(line)}</p>" for line in [*more, _caution(store)])
    parts += [f'<div class="verdict{" good" if noted["better"] else ""}">{lines}</div>']
    links = "\n".join(f'<a href="#{_anchor(title)}">{esc(title)}</a>' for title in sections)
    parts += [f"<nav>{links}</nav></header>"]
    for title, pictures in sections.items():
        names = _PLACES.get(title, ("", title))
        inner = _inner(title, [found.pop(name, "") if name else pictures for name in names])
        parts.append(
            f'<section id="{_anchor(title)}"><h2>{esc(title)}</h2>\n' + "\n".join(inner) + "\n</section>"
        )
    assert not found, found.keys()
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{esc(told)}</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


#: The tables of a section, with "" where its pictures go; without an entry they are above the one of its title.
_PLACES = {
    "Held-out tasks": (
        "Held-out tasks: overall", "", "Held-out tasks: each", "Held-out tasks: losses", "Held-out tasks: curves",
    ),
    "The rule": ("", "Ablations"),
    "Family tree": ("", "Lineage"),
    "Course of the search": ("", "Course of the search", "Tasks of the search"),
    "Pareto front": ("", "Pareto front", "Best structures of the search"),
    "Run": ("Run", "Runs in this store", "Seeds and effort", "Commands"),
}  # fmt: skip


def _inner(title: str, parts: Sequence[Table | str]) -> list[str]:
    """Pictures and tables of a section. Of those without rows it is said together why there is nothing."""
    made = [part if isinstance(part, str) else _table(part, title) for part in parts]
    made = [part for part in made if part]
    missing: dict[str, list[str]] = {}
    for part in parts:
        if isinstance(part, Table) and not part.rows:
            missing.setdefault(part.note, []).append(part.title)
    alone = not made and len(missing) == 1
    for note, names in missing.items():
        told = note if alone else f"{', '.join(names)}: {note[0].lower()}{note[1:]}"
        made.append(f'<p class="note">{esc(told)}</p>')
    return made


def _prose(text: str) -> str:
    """Text in which no percent sign is alone on a line."""
    return esc(text).replace(" %", "&nbsp;%")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _caution(store: Store) -> str:
    """What the verdict rests on, and how far it goes."""
    found = [e for e in store.evaluations("held-out") if e.tuned is not None]
    small = "All tasks are small: nothing is claimed of large models."
    if tested(store) is None:
        return f"The held-out tasks were not touched. {small}" if not found else small
    tasks, effort = len({e.task for e in found}), found[0].effort
    return (
        f"Held-out tasks that the search never saw: {tasks}, each with {len(effort['fresh'])} paired seeds, and "
        f"{effort['configurations']} configurations for every rule. {small}"
    )


_NUMBER = re.compile(r"(?:[+-]?[0-9.]+(?:e[+-]?[0-9]+)?(?: (?:%|s|min|h))?|-|failed|)")


def _table(table: Table, section: str) -> str:
    if not table.rows:
        return ""
    title = f"<h3>{esc(table.title)}</h3>" if table.title != section else ""
    note = f'<p class="note">{esc(table.note)}</p>' if table.note else ""
    right = [all(_NUMBER.fullmatch(row[n]) for row in table.rows) for n in range(len(table.head))]
    short = [
        head == "command" or all(len(row[n]) < 25 for row in table.rows) for n, head in enumerate(table.head)
    ]
    names = ["n" if number else "s" if line else "" for number, line in zip(right, short, strict=True)]
    kinds = [f' class="{name}"' if name else "" for name in names]
    head = "".join(f"<th{kind}>{esc(cell)}</th>" for kind, cell in zip(kinds, table.head, strict=True))
    pictures = [""] * len(table.rows)
    if any(table.estimates):
        ends, drawn = intervals(table.estimates)
        head += f"<th>from {esc(ends)}, with a line at 0</th>"
        pictures = [f"<td>{picture}</td>" for picture in drawn]
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{_prose(c)}</td>" for kind, c in zip(kinds, row, strict=True))
        + picture
        + "</tr>"
        for row, picture in zip(table.rows, pictures, strict=True)
    )
    return (
        f'{title}{note}<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


# ---- its pictures -----------------------------------------------------------------------------------------

_LOSS = "loss against the start, %"


def _figures(plots: Sequence[tuple[str, Plot]], told: str) -> str:
    """Pictures side by side, each with its caption, and what is told of all of them."""
    drawn = "".join(
        f"<figure><figcaption>{esc(about)}</figcaption>{plot.svg()}</figure>" for about, plot in plots
    )
    return f'<div class="pictures">{drawn}</div><p class="note">{told}</p>'


def _top(rows: Sequence[Scored]) -> float:
    """The largest change of the loss, in percent, that pictures show: as far above the start as the best is below."""
    return max(5.0, *(-100 * math.expm1(row.score) for row in rows if math.isfinite(row.score)))


def _height(score: float, top: float) -> float:
    return min(100 * math.expm1(score), top) if math.isfinite(score) else top


def _course(rows: Sequence[Scored]) -> str:
    """Every score and the best so far, against evaluations and against time."""
    if best(rows) is None:
        return ""
    top = _top(rows)
    found = progress(rows)
    spent = found[-1][0]
    scale, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if spent >= 2 * s), (1, "s"))
    plots = []
    for about, axis, xs in (
        ("Best so far against evaluations", "evaluations", [float(n) for n in range(1, len(rows) + 1)]),
        ("Best so far against time", f"work of all workers together, {unit}", [s / scale for s, _ in found]),
    ):
        if not xs[-1]:
            continue  # times are not known of what was not measured in processes of its own
        heights = [_height(row.score, top) for row in rows]
        plot = Plot(about, [0.0, xs[-1]], [*heights, 0.0], axis, _LOSS)
        plot.cloud(zip(xs, heights, strict=True))
        plot.level(0.0)
        path: list[tuple[float, float]] = []
        for x, (_, leader) in zip(xs, found, strict=True):
            if leader is not None:
                y = 100 * math.expm1(leader.score)
                path += (
                    [(x, path[-1][1]), (x, y)] if path and path[-1][1] != y else [(x, y)] if not path else []
                )
        path.append((xs[-1], path[-1][1]))
        plot.line(path, COLOURS[0])
        plots.append((about, plot))
    far = sum(not row.score <= math.log1p(top / 100) for row in rows)
    told = f"Dashed: the start. {far} of {len(rows)} candidates are worse by more than {top:.3g} % or failed: they "
    told += "are at the upper edge. The seeds are those that the search chose by."
    return _figures(plots, legend({"best so far": COLOURS[0], "a candidate": "soft"}) + esc(told))


def _scatter(rows: Sequence[Scored]) -> str:
    """Scores and bytes, those of the front in colour."""
    finite = [row for row in rows if math.isfinite(row.score) and row.moved is not None]
    if not finite:
        return ""
    top = _top(rows)
    shown = [row for row in finite if 100 * math.expm1(row.score) <= top]
    front = [row for row in pareto(rows) if row in shown]
    plots = []
    for about, axis in (
        ("Loss and memory", "bytes of states per parameter"),
        ("Loss and traffic", "bytes that a step moves per parameter"),
    ):
        states = about == "Loss and memory"

        def point(row: Scored, states: bool = states) -> tuple[float, float]:
            size = row.candidate.genome.bytes_per_parameter() if states else row.moved
            return float(size or 0), 100 * math.expm1(row.score)

        points = [point(row) for row in shown]
        plot = Plot(about, [x for x, _ in points], [y for _, y in points], axis, _LOSS)
        plot.cloud(points)
        plot.dots(
            ((*point(row), f"candidate {row.candidate.id}: {percent(row.score)}") for row in front),
            COLOURS[0],
        )
        plots.append((about, plot))
    keys = legend({"on the front of loss, memory and traffic": COLOURS[0], "a candidate": "soft"})
    left = len(finite) - len(shown)
    return _figures(
        plots, keys + f"{left} that are worse than the start by more than {top:.3g} % are left out."
    )


def _curves(store: Store) -> str:
    """Mean validation losses at the checkpoints on each held-out task."""
    plots = []
    colours: dict[str, str] = {}
    for task, by_rule in curves(store).items():
        every = [y for losses in by_rule.values() for y in losses]
        count = max(map(len, by_rule.values())) - 1
        plot = Plot(task, [0.0, 100.0], every, "share of the steps, %", "validation loss", log=min(every) > 0)
        for name, losses in reversed(by_rule.items()):
            colour = colours.setdefault(name, "")
            colours[name] = colour or COLOURS[list(by_rule).index(name) % len(COLOURS)]
            plot.line([(100 * n / count, y) for n, y in enumerate(losses)], colours[name])
        plots.append((task, plot))
    if not plots:
        return ""
    return _figures(
        plots, legend(dict(reversed(colours.items()))) + "Means over seeds; the axes are logarithmic."
    )


def _stages(store: Store, rows: Sequence[Scored]) -> str:
    """The scores of finalists from stage to stage."""
    base, ids = store.noted("base"), store.noted("finalists") or []
    search = {row.candidate.id: row.score for row in rows}
    stages = [measured(store, stage) for stage in STAGES]
    names = ["search", *(("fresh", "larger", "validation")[n] for n, found in enumerate(stages) if found)]
    stages = [found for found in stages if base in found]
    lines: dict[int, list[float]] = {}
    for id in ids:
        scores = [search.get(store.candidate(id).parent or 0, math.inf)]
        scores += [mean_ratio(found[id], found[base]) for found in stages if id in found]
        lines[id] = list(itertools.takewhile(math.isfinite, scores))
    lines = {id: scores for id, scores in lines.items() if scores}
    if not lines or len(names) < 2:
        return ""
    winner = chosen(store, rows)
    origin = None if winner is None else store.candidate(winner).parent
    heights = [100 * math.expm1(score) for scores in lines.values() for score in scores]
    about = "Finalists from stage to stage"
    plot = Plot(about, (), [*heights, 0.0], "stage", _LOSS, names=names)
    plot.level(0.0)
    for id, scores in sorted(lines.items(), key=lambda item: item[0] == origin):
        colour = COLOURS[0] if id == origin else COLOURS[1]
        points = [(float(n), 100 * math.expm1(score)) for n, score in enumerate(scores)]
        plot.line(points, colour)
        plot.dots(((x, y, f"finalist {id}: {y:+.1f} %") for x, y in points), colour)
    keys = {"what became the winner": COLOURS[0]} if origin in lines else {}
    told = "Dashed: the start. What a line rises by on fresh seeds was luck; where it ends, the finalist was out."
    return _figures([(about, plot)], legend({**keys, "a finalist": COLOURS[1]}) + esc(told))


def _rule(store: Store, rows: Sequence[Scored]) -> str:
    """The spec of the winner, or of the best so far."""
    id = chosen(store, rows)
    if id is None:
        return '<p class="note">Nothing could be trained yet.</p>'
    candidate = store.candidate(id)
    told = "The winner, as optdsl search export writes it."
    if candidate.kind != "winner":
        told = (
            f"There is no winner. This is candidate {id}, which has the best score of the search: no result."
        )
    return f'<p class="note">{esc(told)}</p><pre>{esc(spec(store, candidate, rows))}</pre>'


def _family(store: Store, rows: Sequence[Scored]) -> str:
    """All ancestors of the winner, or of the best so far, by when they came and what they scored."""
    id = chosen(store, rows)
    if id is None:
        return ""
    places = {row.candidate.id: (float(n), row.score) for n, row in enumerate(rows, 1)}
    line = [c.id for c in lineage(store, id) if c.id in places]
    family: dict[int, Candidate] = {}
    todo = line[-1:]
    while todo:
        c = store.candidate(todo.pop())
        if c.id not in family:
            family[c.id] = c
            todo += [i for i in (c.parent, c.other) if i is not None]
    top = _top(rows)
    points = {i: (places[i][0], _height(places[i][1], top)) for i in family if i in places}
    about = "All ancestors, by when they came and what they scored"
    plot = Plot(about, [x for x, _ in points.values()], [y for _, y in points.values()], "evaluations", _LOSS)
    for c in family.values():
        for parent, kind in ((c.parent, "line"), (c.other, "dashed")):
            if parent in points and c.id in points:
                first = kind == "line" and c.id in line
                plot.line([points[parent], points[c.id]], COLOURS[0] if first else COLOURS[1], kind)
    for i in sorted(points, key=lambda i: i in line):
        c = family[i]
        how = ", ".join(c.mutations) or c.name or c.kind
        told = f"{i}: {how}, {percent(places[i][1])}"
        plot.dots([(*points[i], told)], COLOURS[0] if i in line else COLOURS[1])
    who = "winner" if store.candidate(id).kind == "winner" else "best so far"
    others = {"other ancestors": COLOURS[1]} if len(points) > len(line) else {}
    keys = legend({f"the line of the {who}": COLOURS[0], **others})
    told = f"{len(points)} candidates, scored by the search. "
    told += "Dashed lines lead to those of which a part was taken." if others else ""
    return _figures([(about, plot)], keys + esc(told))
