"""What searches have done, in a file of SQLite or a database of PostgreSQL: runs side by side, each with its
settings, candidates, evaluations, generations, events.

A run is that of its settings. Rows are only added, in one transaction for each thing that the search has decided: a
program that is killed leaves what it had decided, and a search goes on from there. One program at a time writes a
run, others write other runs, any number may read.

Everything but clock times depends on the settings and the seed alone. Tables of reports are made from here.
The SQL is what SQLite and PostgreSQL have in common; numbers that may be infinite are in JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from optdsl.core.record import record
from optdsl.core.types import Kind
from optdsl.ir.program import Hyper, Interval
from optdsl.search.database import Mismatch, connect
from optdsl.search.evaluate.tune import Tuned
from optdsl.search.space.genome import Genome, Ref, Slot, Statement

#: Of the tables. Those of form 1 had one run; they can be read.
SCHEMA = 2

_TABLES = (
    """CREATE TABLE run (
    number INTEGER PRIMARY KEY, "schema" INTEGER NOT NULL, settings TEXT NOT NULL, versions TEXT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL, phase TEXT NOT NULL)""",
    """CREATE TABLE candidates (
    run INTEGER NOT NULL REFERENCES run (number), id INTEGER NOT NULL, place INTEGER NOT NULL, kind TEXT NOT NULL,
    name TEXT NOT NULL, genome TEXT NOT NULL, parent INTEGER, other INTEGER, mutations TEXT NOT NULL, reason TEXT,
    known TEXT, hash TEXT NOT NULL, structure TEXT NOT NULL, statements INTEGER NOT NULL, states INTEGER NOT NULL,
    bytes INTEGER NOT NULL, PRIMARY KEY (run, id), FOREIGN KEY (run, parent) REFERENCES candidates (run, id),
    FOREIGN KEY (run, other) REFERENCES candidates (run, id))""",
    "CREATE INDEX candidates_kind ON candidates (run, kind)",
    """CREATE TABLE evaluations (
    run INTEGER NOT NULL, number INTEGER NOT NULL, stage TEXT NOT NULL, candidate INTEGER NOT NULL,
    task TEXT NOT NULL, outcome TEXT NOT NULL, tuned TEXT NOT NULL, effort TEXT NOT NULL, moved DOUBLE PRECISION,
    seconds DOUBLE PRECISION NOT NULL, PRIMARY KEY (run, number), UNIQUE (run, stage, candidate, task),
    FOREIGN KEY (run, candidate) REFERENCES candidates (run, id))""",
    """CREATE TABLE generations (
    run INTEGER NOT NULL REFERENCES run (number), number INTEGER NOT NULL, evaluations INTEGER NOT NULL,
    best DOUBLE PRECISION, median DOUBLE PRECISION, restarts INTEGER NOT NULL, PRIMARY KEY (run, number))""",
    """CREATE TABLE notes (
    run INTEGER NOT NULL REFERENCES run (number), name TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (run, name))""",
    """CREATE TABLE events (
    run INTEGER NOT NULL REFERENCES run (number), number INTEGER NOT NULL, time DOUBLE PRECISION NOT NULL,
    kind TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (run, number))""",
)
#: Tables of form 1, which SQLite alone had, as those of today: views that hide them from one connection.
_FORM_1 = {
    "run": 'SELECT one AS number, "schema", settings, versions, seconds, phase FROM main.run',
    "evaluations": "SELECT 1 AS run, rowid AS number, * FROM main.evaluations",
    **{
        name: f"SELECT 1 AS run, * FROM main.{name}"
        for name in ("candidates", "generations", "notes", "events")
    },
}
#: What the next row of a run is numbered.
_NEXT = "(SELECT COALESCE(MAX(number) + 1, 0) FROM {} WHERE run = ?)"


@record
class Candidate:
    """A genome that was looked at. `place` is its number among those that are evaluated, or that of the one that was
    evaluated in the place of refused ones.

    `kind` is "start", "child" or "refined" (its parent, tuned on) in the search, "finalist", "trial", "winner",
    "ablation" or "baseline" behind it. `reason` is why it was refused (see `REASONS` of the space), `known` the hash
    of the one whose effect it has. `hash` and `structure` are of the live genome, "" where a filter in front of them
    had the answer.
    """

    id: int
    place: int
    kind: str
    name: str
    genome: Genome
    parent: int | None = None
    other: int | None = None
    mutations: tuple[str, ...] = ()
    reason: str | None = None
    known: str | None = None
    hash: str = ""
    structure: str = ""


@record
class Evaluation:
    """One candidate on one task, at one stage of the search. `outcome` is "done", or what became of the job else.

    `tuned` is None unless it is done. `effort` says by which seeds and how many configurations. `moved` are the bytes
    that a step reads and writes per parameter, or None where no plan is known.
    """

    stage: str
    candidate: int
    task: str
    outcome: str
    tuned: Tuned | None
    effort: Mapping[str, Any]
    moved: float | None = None
    seconds: float = 0.0


@record
class Generation:
    """State of a search after some evaluations: best and median score of the population, restarts so far."""

    number: int
    evaluations: int
    best: float | None
    median: float | None
    restarts: int


class Store:
    """What is at a path, or at postgresql://user@host/name; made if there is none, unless it is only read.

    A writer begins a run; a reader gets the last one, or number `run`. Use it as a context, or call `close`.
    Raises OSError (FileNotFoundError, ConnectionError), ValueError, and Mismatch for what is no store.
    """

    def __init__(
        self, address: str | os.PathLike[str], *, write: bool = True, run: int | None = None
    ) -> None:
        self.run: int | None = None
        self._db = connect(address, write)
        self.name = self._db.name
        try:
            self._open(write, run)
        except self._db.error as error:
            self.close()
            raise Mismatch(f"{self.name} is no store of a search: {error}") from None
        except BaseException:
            self.close()
            raise

    def _open(self, write: bool, run: int | None) -> None:
        if write:
            with self._db.alone():
                if not self._db.has("run"):
                    for table in _TABLES:
                        self._db.execute(table)
        elif not self._db.has("run"):
            raise FileNotFoundError(f"there is no store in {self.name}")
        form = self._db.execute('SELECT MAX("schema") FROM run').fetchone()[0]
        if form == 1 and not write:
            for name, query in _FORM_1.items():
                self._db.execute(f"CREATE TEMP VIEW {name} AS {query}")
        elif form == 1:
            raise Mismatch(
                f"{self.name} was written by an earlier version of optdsl: it can be reported, but not gone on with"
            )
        elif form not in (None, SCHEMA):
            raise Mismatch(f"{self.name} was written by another version of optdsl (form {form})")
        if not write:
            numbers = [number for number, *_ in self.runs()]
            if run is not None and run not in numbers:
                raise Mismatch(f"{self.name} has no run {run}, but {', '.join(map(str, numbers)) or 'none'}")
            self.run = run if run is not None else max(numbers, default=None)

    def __enter__(self) -> Store:
        """The store itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Ends the connection, and lets others write the run."""
        self._db.close()

    def together(self) -> contextlib.AbstractContextManager[None]:
        """All that is written within is there, or none of it."""
        return self._db.together()

    # ---- runs ---------------------------------------------------------------------------------------------

    def begin(self, settings: Mapping[str, Any], versions: Mapping[str, str]) -> bool:
        """Takes up the run of these settings; True for a new one. Raises Mismatch where another program is at it."""
        now = json.loads(json.dumps(settings))
        with self._db.alone():
            known = {number: found for number, found, _ in self.runs()}
            run = next((number for number, found in known.items() if found == now), None)
            new = run is None
            if run is None:
                run = max(known, default=0) + 1
                self._db.execute(
                    "INSERT INTO run VALUES (?, ?, ?, ?, 0, ?)",
                    (run, SCHEMA, json.dumps(settings), json.dumps(versions), "search"),
                )
        if not self._db.hold(run):
            raise Mismatch(f"run {run} of {self.name} is being written by another search")
        self.run = run
        return new

    def runs(self) -> list[tuple[int, dict[str, Any], str]]:
        """Number, settings and phase of each run, in the order in which they were begun."""
        rows = self._db.execute("SELECT number, settings, phase FROM run ORDER BY number")
        return [(number, json.loads(settings), phase) for number, settings, phase in rows]

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was begun with. Raises Mismatch where nothing was begun."""
        return dict(json.loads(self._run("settings")))

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what matters to its numbers."""
        return dict(json.loads(self._run("versions")))

    @property
    def seconds(self) -> float:
        """How long the search has worked, all calls together."""
        return float(self._run("seconds"))

    @property
    def phase(self) -> str:
        """What is being done: "search", "funnel" or "finished"."""
        return str(self._run("phase"))

    @property
    def _number(self) -> int:
        if self.run is None:
            raise Mismatch(f"{self.name} holds no run yet")
        return self.run

    def _run(self, column: str) -> Any:
        return self._db.execute(f"SELECT {column} FROM run WHERE number = ?", (self._number,)).fetchone()[0]

    def enter(self, phase: str) -> None:
        """The next phase begins."""
        self._db.execute("UPDATE run SET phase = ? WHERE number = ?", (phase, self._number))

    def spend(self, seconds: float) -> None:
        """Adds to the time that the search has worked."""
        self._db.execute("UPDATE run SET seconds = seconds + ? WHERE number = ?", (seconds, self._number))

    # ---- candidates and evaluations -----------------------------------------------------------------------

    def add(self, candidates: Iterable[Candidate]) -> None:
        """New candidates."""
        rows = [
            (self._number, c.id, c.place, c.kind, c.name, encode(c.genome), c.parent, c.other,
             json.dumps(c.mutations), c.reason, c.known, c.hash, c.structure, len(c.genome.body),
             len(c.genome.states), c.genome.bytes_per_parameter())
            for c in candidates
        ]  # fmt: skip
        self._db.executemany(f"INSERT INTO candidates VALUES ({_marks(16)})", rows)

    def candidates(self, kinds: Sequence[str] = (), *, refused: bool = False) -> Iterator[Candidate]:
        """Those of some kinds (all without), in order; with those that were not evaluated if `refused`."""
        query = f"SELECT {_COLUMNS} FROM candidates WHERE run = ?"
        query += f" AND kind IN ({_marks(len(kinds))})" if kinds else ""
        query += "" if refused else " AND reason IS NULL AND known IS NULL"
        for row in self._db.execute(f"{query} ORDER BY id", (self._number, *kinds)):
            yield _candidate(row)

    def candidate(self, id: int) -> Candidate:
        """One of them. Raises KeyError."""
        query = f"SELECT {_COLUMNS} FROM candidates WHERE run = ? AND id = ?"
        row = self._db.execute(query, (self._number, id)).fetchone()
        if row is None:
            raise KeyError(id)
        return _candidate(row)

    def next_id(self) -> int:
        """The number of the next candidate."""
        query = "SELECT COALESCE(MAX(id) + 1, 0) FROM candidates WHERE run = ?"
        return int(self._db.execute(query, (self._number,)).fetchone()[0])

    def verdicts(self) -> dict[str, int]:
        """How many candidates of the search each filter has answered; "known" from memory, "new" were evaluated."""
        query = (
            "SELECT COALESCE(reason, CASE WHEN known IS NULL THEN 'new' ELSE 'known' END) AS verdict, COUNT(*) "
            "FROM candidates WHERE run = ? AND kind IN ('start', 'child', 'refined') GROUP BY 1"
        )
        found = self._db.execute(query, (self._number,)).fetchall()
        return dict(
            sorted(found, key=lambda row: (-row[1], row[0]))
        )  # databases do not agree how text is sorted

    def evaluated(self, evaluations: Iterable[Evaluation]) -> None:
        """New evaluations."""
        run = self._number
        self._db.executemany(
            f"INSERT INTO evaluations VALUES (?, {_NEXT.format('evaluations')}, {_marks(8)})",
            [
                (
                    *(run, run, e.stage, e.candidate, e.task, e.outcome, _tuned_text(e.tuned)),
                    *(json.dumps(e.effort), e.moved, e.seconds),
                )
                for e in evaluations
            ],
        )

    def evaluations(self, stage: str, candidate: int | None = None) -> list[Evaluation]:
        """Those of a stage, in the order in which they were written; of one candidate, if that is given."""
        query = "SELECT stage, candidate, task, outcome, tuned, effort, moved, seconds FROM evaluations"
        query, values = f"{query} WHERE run = ? AND stage = ?", [self._number, stage]
        if candidate is not None:
            query, values = f"{query} AND candidate = ?", [*values, candidate]
        return [
            Evaluation(s, c, t, o, _tuned(tuned), json.loads(effort), moved, seconds)
            for s, c, t, o, tuned, effort, moved, seconds in self._db.execute(
                f"{query} ORDER BY number", values
            )
        ]

    def stages(self) -> list[str]:
        """The stages that have evaluations."""
        query = "SELECT DISTINCT stage FROM evaluations WHERE run = ?"
        return [row[0] for row in self._db.execute(query, (self._number,))]

    # ---- what else there is to tell -----------------------------------------------------------------------

    def generation(self, found: Generation) -> None:
        """A generation has ended."""
        row = (self._number, found.number, found.evaluations, found.best, found.median, found.restarts)
        self._db.execute(
            f"INSERT INTO generations VALUES ({_marks(6)}) ON CONFLICT (run, number) DO NOTHING", row
        )

    def generations(self) -> list[Generation]:
        """All of them."""
        query = "SELECT number, evaluations, best, median, restarts FROM generations WHERE run = ? ORDER BY number"
        return [Generation(*row) for row in self._db.execute(query, (self._number,))]

    def note(self, name: str, value: Any) -> None:
        """A decision that what follows rests on, as JSON. It is made once."""
        self._db.execute("INSERT INTO notes VALUES (?, ?, ?)", (self._number, name, json.dumps(value)))

    def noted(self, name: str) -> Any:
        """What was noted, or None."""
        query = "SELECT value FROM notes WHERE run = ? AND name = ?"
        row = self._db.execute(query, (self._number, name)).fetchone()
        return None if row is None else json.loads(row[0])

    def event(self, kind: str, text: str) -> None:
        """Something that happened, with the time of the clock."""
        text = text.replace("\0", "\\0")  # which PostgreSQL has no place for
        self._db.execute(
            f"INSERT INTO events VALUES (?, {_NEXT.format('events')}, ?, ?, ?)",
            (self._number, self._number, time.time(), kind, text),
        )

    def events(self) -> list[tuple[float, str, str]]:
        """Time, kind and text of each."""
        query = "SELECT time, kind, text FROM events WHERE run = ? ORDER BY number"
        return self._db.execute(query, (self._number,)).fetchall()


_COLUMNS = "id, place, kind, name, genome, parent, other, mutations, reason, known, hash, structure"


def _marks(count: int) -> str:
    return ", ".join("?" * count)


# ---- genomes and results as text --------------------------------------------------------------------------


def encode(genome: Genome) -> str:
    """A genome as JSON, from which `decode` makes the same one, to the last bit of its numbers."""
    return json.dumps(
        {
            "hypers": [
                [h.name, h.argument, h.kind.value, h.default, _ends(h.interval), h.doc] for h in genome.hypers
            ],
            "states": [[s.name, s.level, s.init, s.key] for s in genome.states],
            "body": [[s.name, s.op, list(s.args), s.over] for s in genome.body],
            "results": [list(pair) for pair in genome.results],
        }
    )


def decode(text: str) -> Genome:
    """The inverse of `encode`."""
    found = json.loads(text)
    hypers = tuple(
        Hyper(name, argument, Kind(kind), default, None if ends is None else Interval(*ends), doc=doc)
        for name, argument, kind, default, ends, doc in found["hypers"]
    )
    results: tuple[tuple[str, Ref], ...] = tuple((name, ref) for name, ref in found["results"])
    return Genome(
        hypers,
        tuple(Slot(*parts) for parts in found["states"]),
        tuple(Statement(name, op, tuple(args), over) for name, op, args, over in found["body"]),
        results,
    )


def _ends(interval: Interval | None) -> list[Any] | None:
    return None if interval is None else [interval.low, interval.high, interval.low_open, interval.high_open]


def _candidate(row: Sequence[Any]) -> Candidate:
    id, place, kind, name, genome, parent, other, mutations, reason, known, hash, structure = row
    made = decode(genome)
    return Candidate(
        id,
        place,
        kind,
        name,
        made,
        parent,
        other,
        tuple(json.loads(mutations)),
        reason,
        known,
        hash,
        structure,
    )


_FIELDS = tuple(Tuned.__dataclass_fields__)


def _tuned_text(tuned: Tuned | None) -> str:
    return "null" if tuned is None else json.dumps({name: getattr(tuned, name) for name in _FIELDS})


def _tuned(text: str) -> Tuned | None:
    found = json.loads(text)
    if found is None:
        return None
    lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    return Tuned(**{**found, **lists})


__all__ = ["Candidate", "Evaluation", "Generation", "Mismatch", "Store", "decode", "encode"]
