"""What a store is kept in: a file of SQLite, or a database of PostgreSQL, for several hosts.

Both take the same SQL, with `?` for values; what differs is here: how to connect, which tables there are, who waits
for whom, and how one program alone holds a run. What holds it is let go when that program ends, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

#: Seconds that a writer waits for another one of the same file, which may be deciding something.
PATIENCE = 300.0
#: Of PostgreSQL: where the tables are, and the number under which this program's locks are known.
_SCHEMA, _LOCKS = "optdsl", 0x0D51
#: A host that is gone without a word lets go of its runs after a minute and a half. What an address says comes first.
_CONNECTION = {
    "connect_timeout": 10, "application_name": "optdsl",
    "keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 3,
}  # fmt: skip
#: Results of SQLite that are of the machine, not of what a file holds: a right is missing, the disk is full.
_MACHINE = {
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
}  # fmt: skip
_SESSION = "SET tcp_keepalives_idle = 60; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"


class Mismatch(ValueError):
    """A store that cannot be used so: it is none, of another form, without the run that is asked for, or in use."""


class Rows(Protocol):
    """What a query gives."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """One row after the other."""


class Database(Protocol):
    """A connection. `name` is for messages, without a password; `error` is what it raises for SQL that fails."""

    name: str
    error: type[Exception]

    def execute(self, query: str, values: Sequence[Any] = ()) -> Rows:
        """One statement; a transaction of its own unless one is open."""

    def executemany(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """One statement with one row of values after the other."""

    def together(self) -> contextlib.AbstractContextManager[None]:
        """A transaction."""

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """A transaction that no other program has one like at the same time."""

    def has(self, table: str) -> bool:
        """Whether there is such a table."""

    def hold(self, run: int) -> bool:
        """Holds a run until `let_go`; False where another connection does."""

    def let_go(self) -> None:
        """Holds no run any more."""

    def close(self) -> None:
        """Lets go, and ends the connection."""


def connect(address: str | os.PathLike[str], write: bool) -> Database:
    """The database at a path or at postgresql://user@host/name; a file is made if it is written and there is none.

    Raises OSError (FileNotFoundError, ConnectionError, what the machine refuses), ValueError.
    """
    if isinstance(address, str) and address.startswith(("postgresql://", "postgres://")):
        return Postgres(address, write)
    if isinstance(address, str) and "://" in address:  # what follows may hold a password
        scheme = address.partition("://")[0]
        raise ValueError(f"a store is a file, or postgresql://user@host/database, and not {scheme}://...")
    return Sqlite(Path(address), write)


def _number(path: Path) -> int | None:
    """What tells a file from others that were or will be in its place."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


class Sqlite:
    """A file. Writers wait for each other; a run is held by a lock on a file beside it."""

    error: type[Exception] = sqlite3.DatabaseError

    def __init__(self, path: Path, write: bool) -> None:
        if write and not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder `{path.parent}`")
        if not write and not path.is_file():
            raise FileNotFoundError(f"there is no store `{path}`")
        self.name = str(path)
        self._path = path
        self._guard: tuple[Path, sqlite3.Connection] | None = None
        with self._told():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)
        if write:
            try:
                with self._told():
                    self._use_wal()
                    self._db.execute("PRAGMA synchronous = NORMAL")
            except sqlite3.DatabaseError as error:
                self._db.close()
                raise Mismatch(f"{path} is no store of a search: {error}") from None
            except OSError:
                self._db.close()
                raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What the machine refuses is an OSError that names the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _MACHINE:
                raise
            raise OSError(f"the store {self.name} cannot be used: {error}") from None

    def _use_wal(self) -> None:
        """Has changes written ahead. A new file that another process is changing to that, too, is not waited for by
        SQLite, whatever its timeout.
        """
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def execute(self, query: str, values: Sequence[Any] = ()) -> Rows:
        """One statement."""
        with self._told():
            return self._db.execute(query, values)

    def executemany(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """One statement, many times."""
        with self._told():
            self._db.executemany(query, rows)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A transaction."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk, say, has ended it already
                self._db.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """A transaction: there is one at a time in a file."""
        return self.together()

    def has(self, table: str) -> bool:
        """Whether there is such a table."""
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return self.execute(query, (table,)).fetchone() is not None

    def hold(self, run: int) -> bool:
        """Holds a run."""
        self.let_go()
        path = self._path.with_name(f"{self._path.name}-writer{run}")
        while True:
            before = _number(path)
            with self._told():
                guard = sqlite3.connect(path, isolation_level=None, timeout=0.0)
            try:
                guard.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError:
                guard.close()
                return False
            if before is not None and before == _number(path):
                self._guard = path, guard
                return True
            guard.close()  # of a new file, or of one that who held it has removed: others may hold the next one

    def let_go(self) -> None:
        """Holds no run any more."""
        if self._guard is None:
            return
        path, guard = self._guard
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # while it is held: another program could hold it by then
        guard.close()
        self._guard = None

    def close(self) -> None:
        """Lets go, and closes the file."""
        self.let_go()
        self._db.close()


class Postgres:
    """A database. Its tables are in a schema of their own; a run is held by a lock of the connection."""

    error: type[Exception]

    def __init__(self, address: str, write: bool) -> None:
        try:
            import psycopg
        except ImportError:
            raise ValueError("a store in PostgreSQL needs psycopg: pip install optdsl[postgres]") from None
        self.error = psycopg.Error
        self._lost = psycopg.OperationalError, psycopg.InterfaceError
        parts = _parts(address)
        self._then = ": the same command goes on from here" if write else ""
        self.name = _named(parts)
        try:
            self._db = psycopg.connect(**{**_CONNECTION, **parts}, autocommit=True)
        except psycopg.Error as error:
            raise ConnectionError(f"{self.name}: {_hidden(str(error), parts)}") from None
        try:
            self._db.execute(_SESSION)
            self._db.execute(f"SET search_path TO {_SCHEMA}")
            if not write:
                self._db.execute("SET default_transaction_read_only TO on")
            elif not self._db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (_SCHEMA,)).fetchone():
                with self.alone():
                    self._db.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
        except BaseException:
            self._db.close()
            raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A connection that is lost is what the person at the other end can do something about."""
        try:
            yield
        except self._lost as error:
            if not self._db.closed:
                raise
            why = " ".join(str(error).split())
            raise ConnectionError(f"{self.name} cannot be reached any more ({why}){self._then}") from None

    def execute(self, query: str, values: Sequence[Any] = ()) -> Rows:
        """One statement."""
        with self._told():
            rows: Rows = self._db.execute(query.replace("?", "%s"), values)
            return rows

    def executemany(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """One statement, many times."""
        with self._told():
            self._db.cursor().executemany(query.replace("?", "%s"), rows)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A transaction."""
        with self._told(), self._db.transaction():
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A transaction with a lock."""
        with self.together():
            self._db.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCKS,))
            yield

    def has(self, table: str) -> bool:
        """Whether there is such a table."""
        row = self.execute("SELECT to_regclass(?)", (f"{_SCHEMA}.{table}",)).fetchone()
        return row[0] is not None

    def hold(self, run: int) -> bool:
        """Holds a run. The server takes a moment to see that a program is gone."""
        self.let_go()
        for _ in range(20):
            if self.execute("SELECT pg_try_advisory_lock(?, ?)", (_LOCKS, run)).fetchone()[0]:
                return True
            time.sleep(0.1)
        return False

    def let_go(self) -> None:
        """Holds no run any more."""
        self.execute("SELECT pg_advisory_unlock_all()")

    def close(self) -> None:
        """Ends the connection, and with it what it holds."""
        self._db.close()


def _parts(address: str) -> dict[str, Any]:
    """What an address says. Raises ValueError without a word of it: part of a password may be in any part of one."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts: dict[str, Any] = conninfo_to_dict(address)
    except ProgrammingError:
        parts = {"port": ""}
    places = f"{parts.get('host', '')}{parts.get('dbname', '')}"
    if not str(parts.get("port", "0")).replace(",", "").isdigit() or "@" in places:
        raise ValueError(
            "that is no address of a database: write postgresql://user@host/name, with %40 for @, %3A for : and "
            "%2F for / in names and passwords"
        )
    return parts


def _named(parts: dict[str, Any]) -> str:
    """An address as it may be printed."""
    user = f"{parts['user']}@" if "user" in parts else ""
    host = str(parts.get("host", ""))
    port = f":{parts['port']}" if "port" in parts else ""
    host = "" if host.startswith("/") else host + port
    return f"postgresql://{user}{host}/{parts.get('dbname', '')}"


def _hidden(text: str, parts: dict[str, Any]) -> str:
    """A message of the other side on one line, whatever it repeats."""
    line = " ".join(text.split())
    for key in ("password", "sslpassword"):
        if parts.get(key):
            line = line.replace(str(parts[key]), "***")
    return line
