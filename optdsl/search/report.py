"""A report of a search from its store: text for a terminal, or one page of HTML that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from optdsl.search.evaluate.tune import Tuned
from optdsl.search.export import spec
from optdsl.search.store import Candidate, Store
from optdsl.search.summary import (
    Scored,
    Table,
    chosen,
    lineage,
    measured,
    pareto,
    percent,
    scored,
    tables,
    tested,
)

_WIDTH, _HEIGHT = 640, 240
_COLOURS = ("#b3261e", "#1f6feb", "#2f7d32", "#8a5a00", "#6f42c1", "#57606a")


def verdict(store: Store) -> str:
    """What came of it, in words."""
    found = store.noted("verdict")
    if found is None:
        return "The search is not finished: nothing here is tested yet."
    again = tested(store)
    return str(found["text"]) if again is None else again[1].text


def text(store: Store, titles: Iterable[str] = ()) -> str:
    """The tables (those with these titles, if some are given) in columns, and the verdict."""
    wanted = set(titles)
    parts = [_columns(table) for table in tables(store) if not wanted or table.title in wanted]
    return "\n\n".join([*parts, verdict(store)]) + "\n"


def _columns(table: Table) -> str:
    rows = [tuple(map(_shown, row)) for row in (table.head, *table.rows)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(table.head))]
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
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; font-size: 13px; }
td, th { border-bottom: 1px solid #d0d7de; padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top; }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; } svg { max-width: 100%; height: auto; }
.note { color: #57606a; font-size: 13px; } .verdict { border-left: 4px solid #57606a; padding: .3rem 1rem; }
.wide { overflow-x: auto; }
"""


def page(store: Store) -> str:
    """The report as HTML. It depends on what is in the store alone."""
    rows = scored(store)
    found = {table.title: _table(table) for table in tables(store)}
    verdict_ = "".join(f"<p>{_esc(line)}</p>" for line in verdict(store).split("\n"))
    parts = [f"<h1>Search from {_esc(', '.join(store.settings['starts']))}</h1>"]
    parts += [f'<div class="verdict">{verdict_}</div>', found.pop("Run", "")]
    parts += ["<h2>Course of the search</h2>", _course(rows)]
    curves = _curves(store)
    id = chosen(store, rows)
    if id is not None:
        candidate = store.candidate(id)
        parts += [f"<h2>{'Winner' if candidate.kind == 'winner' else 'Best so far'}</h2>"]
        parts += [
            f"<pre>{_esc(spec(store, candidate))}</pre>",
            "<h2>Family tree</h2>",
            _tree(store, id, rows),
        ]
    for title, table in found.items():
        parts += [table, _scatter(rows) if title == "Pareto front" else ""]
    parts += ["<h2>Training curves on held-out tasks</h2>", *curves] if curves else []
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>optdsl search</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _esc(text: object) -> str:
    return html.escape(str(text), quote=True)


def _table(table: Table) -> str:
    head = "".join(f"<th>{_esc(cell)}</th>" for cell in table.head)
    rows = "\n".join("<tr>" + "".join(f"<td>{_esc(c)}</td>" for c in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{_esc(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{_esc(table.title)}</h2>{note}<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


class _Plot:
    """Points and lines in a frame of linear axes."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], x: str, y: str) -> None:
        self.x0, self.x1 = _range(xs)
        self.y0, self.y1 = _range(ys)
        left, bottom = 60, _HEIGHT - 40
        self.parts = [
            f'<rect x="{left}" y="10" width="{_WIDTH - left - 10}" height="{bottom - 10}" fill="none" '
            'stroke="#d0d7de"/>',
            f'<text x="{(_WIDTH + left) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{_esc(x)}</text>',
            f'<text x="14" y="{bottom / 2:.0f}" text-anchor="middle" transform="rotate(-90 14 {bottom / 2:.0f})">'
            f"{_esc(y)}</text>",
        ]
        for n in range(3):
            at = self.y0 + (self.y1 - self.y0) * n / 2
            self.parts.append(
                f'<text x="{left - 5}" y="{self.at(0, at)[1] + 4:.1f}" text-anchor="end">{at:.3g}</text>'
            )
            at = self.x0 + (self.x1 - self.x0) * n / 2
            self.parts.append(
                f'<text x="{self.at(at, 0)[0]:.1f}" y="{bottom + 15}" text-anchor="middle">{at:.4g}</text>'
            )

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies on the picture."""
        across = 60 + (_WIDTH - 70) * (x - self.x0) / (self.x1 - self.x0)
        return across, (_HEIGHT - 40) - (_HEIGHT - 50) * (y - self.y0) / (self.y1 - self.y0)

    def dots(self, points: Iterable[tuple[float, float, str]], colour: str, radius: float = 2) -> None:
        """Circles, each with a text that shows under the pointer."""
        for x, y, told in points:
            a, b = self.at(x, y)
            self.parts.append(
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius}" fill="{colour}"><title>{_esc(told)}</title></circle>'
            )

    def line(self, points: Iterable[tuple[float, float]], colour: str) -> None:
        """A line through points."""
        path = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')

    def legend(self, number: int, text: str, colour: str) -> None:
        """One line of the legend."""
        self.parts.append(
            f'<text x="{_WIDTH - 18}" y="{26 + 15 * number}" text-anchor="end" fill="{colour}">{_esc(text)}</text>'
        )

    def svg(self) -> str:
        """The picture."""
        return _svg(_WIDTH, _HEIGHT, self.parts)


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    inner = "\n".join(parts)
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
    return f'<svg {size} font-size="11" role="img">\n{inner}\n</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(low) or 1.0
    return low - margin, high + margin


def _course(rows: Sequence[Scored]) -> str:
    """Every score, those far off at the edge, and the best so far."""
    finite = [(n, row) for n, row in enumerate(rows, 1) if math.isfinite(row.score)]
    if not finite:
        return ""
    best, path = math.inf, []
    top = max(0.3, -2 * min(row.score for _, row in finite))
    for n, row in finite:
        best = min(best, row.score)
        path.append((float(n), 100 * math.expm1(best)))
    points = [
        (float(n), 100 * math.expm1(min(r.score, top)), f"{r.candidate.id}: {percent(r.score)}")
        for n, r in finite
    ]
    plot = _Plot(
        [1.0, float(len(rows))], [y for _, y, _ in points], "evaluations", "loss against the start, %"
    )
    plot.dots(points, "#8c959f", 1.6)
    plot.line(path, _COLOURS[0])
    plot.legend(0, "best so far", _COLOURS[0])
    return plot.svg()


def _scatter(rows: Sequence[Scored]) -> str:
    """Score and bytes moved, those of the front in colour."""
    finite = [row for row in rows if math.isfinite(row.score) and row.moved is not None and row.score < 0.5]
    if not finite:
        return ""

    def point(row: Scored) -> tuple[float, float, str]:
        told = f"{row.candidate.id}: {percent(row.score)}, {row.moved:g} bytes"
        return float(row.moved or 0), 100 * math.expm1(row.score), told

    points = [point(row) for row in finite]
    plot = _Plot(
        [p[0] for p in points],
        [p[1] for p in points],
        "bytes moved per parameter",
        "loss against the start, %",
    )
    plot.dots(points, "#8c959f")
    plot.dots([point(row) for row in pareto(rows) if row in finite], _COLOURS[0], 4)
    return plot.svg()


def _curves(store: Store) -> list[str]:
    """Mean validation losses at the checkpoints on each held-out task."""
    found, verdict_ = measured(store, "held-out"), store.noted("verdict")
    winner = None if verdict_ is None else verdict_["winner"]
    tasks = list(dict.fromkeys(task for by_task in found.values() for task in by_task))
    made = []
    for task in tasks:
        lines: list[tuple[str, Tuned]] = []
        for id, by_task in sorted(found.items(), key=lambda item: item[0] != winner):
            if task in by_task and all(map(math.isfinite, by_task[task].curve)) and by_task[task].curve:
                name = "winner" if id == winner else store.candidate(id).name or "the start"
                lines.append((name, by_task[task]))
        if not lines:
            continue
        values = [y for _, t in lines for y in t.curve]
        count = max(len(t.curve) for _, t in lines)
        plot = _Plot([1.0, float(count)], values, f"checkpoint on {task}", "loss")
        for n, (name, t) in enumerate(lines):
            colour = _COLOURS[n % len(_COLOURS)]
            plot.line([(float(k), y) for k, y in enumerate(t.curve, 1)], colour)
            plot.legend(n, name, colour)
        made.append(plot.svg())
    return made


def _tree(store: Store, id: int, rows: Sequence[Scored]) -> str:
    """The winner and its ancestors from top to bottom; other parents beside the children that they had a part in."""
    scores = {row.candidate.id: row.score for row in rows}
    line = lineage(store, id)
    parts: list[str] = []

    def box(c: Candidate, x: int, y: int, colour: str) -> None:
        score = f", {percent(scores[c.id])}" if c.id in scores else ""
        how = ", ".join(c.mutations) or c.name or c.kind
        parts.append(
            f'<rect x="{x}" y="{y}" width="250" height="34" rx="4" fill="#fff" stroke="{colour}"/>'
            f'<text x="{x + 8}" y="{y + 14}">{_esc(f"{c.id}: {c.kind}{score}")}</text>'
            f'<text x="{x + 8}" y="{y + 27}" fill="#57606a">{_esc(how[:44])}</text>'
        )

    for n, c in enumerate(line):
        y = 10 + 52 * n
        if n:
            parts.append(f'<line x1="135" y1="{y - 18}" x2="135" y2="{y}" stroke="#57606a"/>')
        box(c, 10, y, _COLOURS[0] if c.id == id else _COLOURS[1])
        if c.other is not None:
            parts.append(
                f'<line x1="260" y1="{y + 17}" x2="330" y2="{y + 17}" stroke="#57606a" stroke-dasharray="4"/>'
            )
            box(store.candidate(c.other), 330, y, "#8c959f")
    return _svg(600, 52 * len(line) + 10, parts)
