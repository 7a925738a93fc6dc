"""Winners of a search as specs: formatted, with where they come from and what speaks for them in their docstrings."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from optdsl import driver
from optdsl.search.evaluate.tune import Tuned
from optdsl.search.results import STAGES, Scored, mean_ratio, measured, percent, scored, steps, tested
from optdsl.search.space import to_spec
from optdsl.search.store import Candidate, Store

#: Of a line of a docstring, without what the spec indents it by.
_WIDTH = 96


def export(store: Store, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the winner, or where there is none the finalists that are better than the start on fresh seeds.

    Their docstrings say which of both they are. Returns the files. Raises ValueError where nothing came so far.
    """
    fresh, base = measured(store, "fresh"), store.noted("base")
    winners = list(store.candidates(("winner",)))
    verdict = store.noted("verdict")
    if verdict is not None and verdict["winner"] is not None:
        winners = [c for c in winners if c.id == verdict["winner"]]
    if not winners:
        winners = [
            c
            for c in store.candidates(("finalist",))
            if c.id in fresh and base in fresh and mean_ratio(fresh[c.id], fresh[base]) < 0
        ]
    if not winners:
        raise ValueError(
            f"{store.name} has nothing to export: no candidate was better than the start on fresh seeds"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = scored(store)
    made = []
    for candidate in winners:
        path = folder / f"found_{candidate.id}.opt"
        driver.write(path, spec(store, candidate, rows))
        made.append(path)
    return made


def spec(store: Store, candidate: Candidate, rows: Sequence[Scored]) -> str:
    """The text of one spec. `rows` are those of `scored`."""
    lines = [
        f"Found by a search from {' and '.join(store.settings['starts'])}.",
        "",
        *evidence(store, candidate),
    ]
    scores = {row.candidate.id: row.score for row in rows}
    changes = [run for run in steps(store, candidate.id) if run[0].mutations]
    if changes:
        lines += ["", "How it came about, with the loss against the start that the search saw:"]
        for first, *more in changes:
            how = ", ".join([*first.mutations, *([f"with {first.other}"] if first.other is not None else [])])
            last = (more or [first])[-1].id
            lines.append(
                f"  {last}: {how}, {percent(scores[last])}" if last in scores else f"  {last}: {how}"
            )
    doc = [
        part
        for line in map(_plain, lines)
        for part in textwrap.wrap(line, _WIDTH, subsequent_indent="    " * line.startswith(" ")) or [""]
    ]
    return to_spec(candidate.genome, f"Found{candidate.id}", "\n".join(doc))


def _plain(text: str) -> str:
    """Text that no docstring ends at."""
    return "".join(c for c in text if c.isprintable()).replace("\\", "/").replace('"', "'")


def evidence(store: Store, candidate: Candidate) -> list[str]:
    """What was measured of a candidate, or of the finalist that it was made of: one line each."""
    both = tested(store)
    if both is not None and both[0] == candidate.id:
        return both[1].text.split("\n")
    lines = ["It is not tested on held-out tasks."]
    base = store.noted("base")
    for stage, about in STAGES.items():
        found: dict[int, dict[str, Tuned]] = measured(store, stage)
        id = next((i for i in (candidate.id, candidate.parent) if i in found), None)
        if id is not None and base in found:
            lines.append(f"Loss against the start, {about}: {percent(mean_ratio(found[id], found[base]))}.")
    return lines
