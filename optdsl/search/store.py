"""What a search has done, in one SQLite file: settings, candidates, evaluations, generations, events.

Rows are only added, in one transaction for each thing that the search has decided: a program that is killed leaves
what it had decided, and a search goes on from there. One program writes at a time, any number may read.

Everything but clock times depends on the settings and the seed alone. Tables of reports are made from here.
The SQL is what SQLite and PostgreSQL have in common; numbers that may be infinite are in JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optdsl.core.record import record
from optdsl.core.types import Kind
from optdsl.ir.program import Hyper, Interval
from optdsl.search.evaluate.tune import Tuned
from optdsl.search.space.genome import Genome, Ref, Slot, Statement

#: Of the tables. A store of another one is not read.
SCHEMA = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS run (
    one INTEGER PRIMARY KEY CHECK (one = 1), "schema" INTEGER NOT NULL, settings TEXT NOT NULL,
    versions TEXT NOT NULL, seconds DOUBLE PRECISION NOT NULL, phase TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS candidates (
    id INTEGER PRIMARY KEY, place INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, genome TEXT NOT NULL,
    parent INTEGER REFERENCES candidates (id), other INTEGER REFERENCES candidates (id), mutations TEXT NOT NULL,
    reason TEXT, known TEXT, hash TEXT NOT NULL, structure TEXT NOT NULL,
    statements INTEGER NOT NULL, states INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS candidates_kind ON candidates (kind);
CREATE TABLE IF NOT EXISTS evaluations (
    stage TEXT NOT NULL, candidate INTEGER NOT NULL REFERENCES candidates (id), task TEXT NOT NULL,
    outcome TEXT NOT NULL, tuned TEXT NOT NULL, effort TEXT NOT NULL, moved DOUBLE PRECISION,
    seconds DOUBLE PRECISION NOT NULL, PRIMARY KEY (stage, candidate, task));
CREATE TABLE IF NOT EXISTS generations (
    number INTEGER PRIMARY KEY, evaluations INTEGER NOT NULL, best DOUBLE PRECISION, median DOUBLE PRECISION,
    restarts INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, time DOUBLE PRECISION NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
"""


class Mismatch(ValueError):
    """A store that cannot be gone on with: of other settings, another form, or in use."""


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
    """The file at `path`; made if there is none, unless it is only read. Use it as a context, or call `close`.

    Raises FileNotFoundError, and Mismatch for what is no store or is written by another program now.
    """

    def __init__(self, path: str | os.PathLike[str], *, write: bool = True) -> None:
        self.path = Path(path)
        if not write and not self.path.is_file():
            raise FileNotFoundError(f"there is no store `{self.path}`")
        self._guard = _only_writer(self.path) if write else None
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            if write:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.executescript(_TABLES)
            found = self._db.execute('SELECT "schema" FROM run').fetchone()
        except sqlite3.DatabaseError as error:
            self.close()
            raise Mismatch(f"{self.path} is no store of a search: {error}") from None
        if found is not None and found[0] != SCHEMA:
            self.close()
            raise Mismatch(f"{self.path} was written by another version of optdsl (form {found[0]})")

    def __enter__(self) -> Store:
        """The store itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes the file, and lets others write."""
        if db := getattr(self, "_db", None):
            db.close()
        if self._guard is not None:
            with contextlib.suppress(OSError):
                # while it is held: another program could hold it by then
                _guard_of(self.path).unlink(missing_ok=True)
            self._guard.close()
            self._guard = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All that is written within is there, or none of it."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # ---- the run ------------------------------------------------------------------------------------------

    def begin(self, settings: Mapping[str, Any], versions: Mapping[str, str]) -> bool:
        """Settles what the run is; True for a new one. Raises Mismatch where other settings are in the store."""
        row = self._db.execute("SELECT settings FROM run").fetchone()
        if row is None:
            self._db.execute(
                "INSERT INTO run VALUES (1, ?, ?, ?, 0, ?)",
                (SCHEMA, json.dumps(settings), json.dumps(versions), "search"),
            )
            return True
        before, now = json.loads(row[0]), json.loads(json.dumps(settings))
        other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if other:
            told = "; ".join(
                f"{name} {_short(before.get(name))}, not {_short(now.get(name))}" for name in other
            )
            raise Mismatch(f"{self.path} is of a search with other settings: {told}")
        return False

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

    def _run(self, column: str) -> Any:
        row = self._db.execute(f"SELECT {column} FROM run").fetchone()
        if row is None:
            raise Mismatch(f"{self.path} holds no run yet")
        return row[0]

    def enter(self, phase: str) -> None:
        """The next phase begins."""
        self._db.execute("UPDATE run SET phase = ?", (phase,))

    def spend(self, seconds: float) -> None:
        """Adds to the time that the search has worked."""
        self._db.execute("UPDATE run SET seconds = seconds + ?", (seconds,))

    # ---- candidates and evaluations -----------------------------------------------------------------------

    def add(self, candidates: Iterable[Candidate]) -> None:
        """New candidates."""
        rows = [
            (c.id, c.place, c.kind, c.name, encode(c.genome), c.parent, c.other, json.dumps(c.mutations), c.reason,
             c.known, c.hash, c.structure, len(c.genome.body), len(c.genome.states), c.genome.bytes_per_parameter())
            for c in candidates
        ]  # fmt: skip
        marks = ", ".join("?" * 15)
        self._db.executemany(f"INSERT INTO candidates VALUES ({marks})", rows)

    def candidates(self, kinds: Sequence[str] = (), *, refused: bool = False) -> Iterator[Candidate]:
        """Those of some kinds (all without), in order; with those that were not evaluated if `refused`."""
        marks = ", ".join("?" * len(kinds))
        where = [f"kind IN ({marks})"] if kinds else []
        where += [] if refused else ["reason IS NULL", "known IS NULL"]
        clause = f" WHERE {' AND '.join(where)}" if where else ""
        columns = "id, place, kind, name, genome, parent, other, mutations, reason, known, hash, structure"
        for row in self._db.execute(f"SELECT {columns} FROM candidates{clause} ORDER BY id", tuple(kinds)):
            yield _candidate(row)

    def candidate(self, id: int) -> Candidate:
        """One of them. Raises KeyError."""
        columns = "id, place, kind, name, genome, parent, other, mutations, reason, known, hash, structure"
        row = self._db.execute(f"SELECT {columns} FROM candidates WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise KeyError(id)
        return _candidate(row)

    def next_id(self) -> int:
        """The number of the next candidate."""
        return int(self._db.execute("SELECT COALESCE(MAX(id) + 1, 0) FROM candidates").fetchone()[0])

    def verdicts(self) -> dict[str, int]:
        """How many candidates of the search each filter has answered; "known" from memory, "new" were evaluated."""
        query = (
            "SELECT COALESCE(reason, CASE WHEN known IS NULL THEN 'new' ELSE 'known' END) AS verdict, COUNT(*) "
            "FROM candidates WHERE kind IN ('start', 'child', 'refined') GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        return dict(self._db.execute(query).fetchall())

    def evaluated(self, evaluations: Iterable[Evaluation]) -> None:
        """New evaluations."""
        self._db.executemany(
            "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(e.stage, e.candidate, e.task, e.outcome, _tuned_text(e.tuned), json.dumps(e.effort)),
                    *(e.moved, e.seconds),
                )
                for e in evaluations
            ],
        )

    def evaluations(self, stage: str, candidate: int | None = None) -> list[Evaluation]:
        """Those of a stage, in the order in which they were written; of one candidate, if that is given."""
        query = "SELECT * FROM evaluations WHERE stage = ?"
        values: list[str | int] = [stage]
        if candidate is not None:
            query, values = f"{query} AND candidate = ?", [stage, candidate]
        return [
            Evaluation(s, c, t, o, _tuned(tuned), json.loads(effort), moved, seconds)
            for s, c, t, o, tuned, effort, moved, seconds in self._db.execute(
                f"{query} ORDER BY rowid", values
            )
        ]

    def stages(self) -> list[str]:
        """The stages that have evaluations."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT stage FROM evaluations")]

    # ---- what else there is to tell -----------------------------------------------------------------------

    def generation(self, found: Generation) -> None:
        """A generation has ended."""
        row = (found.number, found.evaluations, found.best, found.median, found.restarts)
        self._db.execute(
            "INSERT INTO generations VALUES (?, ?, ?, ?, ?) ON CONFLICT (number) DO NOTHING", row
        )

    def generations(self) -> list[Generation]:
        """All of them."""
        query = "SELECT number, evaluations, best, median, restarts FROM generations ORDER BY number"
        return [Generation(*row) for row in self._db.execute(query)]

    def note(self, name: str, value: Any) -> None:
        """A decision that what follows rests on, as JSON. It is made once."""
        self._db.execute("INSERT INTO notes VALUES (?, ?)", (name, json.dumps(value)))

    def noted(self, name: str) -> Any:
        """What was noted, or None."""
        row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def event(self, kind: str, text: str) -> None:
        """Something that happened, with the time of the clock."""
        self._db.execute(
            "INSERT INTO events SELECT COALESCE(MAX(number) + 1, 0), ?, ?, ? FROM events",
            (time.time(), kind, text),
        )

    def events(self) -> list[tuple[float, str, str]]:
        """Time, kind and text of each."""
        return self._db.execute("SELECT time, kind, text FROM events ORDER BY number").fetchall()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _guard_of(path: Path) -> Path:
    return path.with_name(path.name + "-writer")


def _only_writer(path: Path) -> sqlite3.Connection:
    """Holds what only one program can hold, and what the end of that program lets go, whatever ends it."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder `{path.parent}`")
    guard = sqlite3.connect(_guard_of(path), isolation_level=None, timeout=0.0)
    try:
        guard.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        guard.close()
        raise Mismatch(f"{path} is being written by another search") from None
    return guard


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
