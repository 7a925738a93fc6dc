"""A server of PostgreSQL of our own, for as long as some tests take."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

USER, PASSWORD = "searcher", "s3cret"


def _binary(name: str) -> str | None:
    return shutil.which(name) or max(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), default=None)


@contextmanager
def server() -> Iterator[str]:
    """The address of one, with a password in it, on a port of this machine alone."""
    pytest.importorskip("psycopg", reason="psycopg is missing: pip install optdsl[postgres]")
    initdb, postgres = _binary("initdb"), _binary("postgres")
    if initdb is None or postgres is None:
        pytest.skip("there is no PostgreSQL here")
    folder = Path(tempfile.mkdtemp(prefix="optdsl-postgres-"))
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # which PostgreSQL refuses to be
        import pwd

        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    data = folder / "data"
    made = subprocess.run(
        [initdb, "-D", data, "-U", USER, "--pwfile", folder / "password", "-A", "scram-sha-256", "--no-sync"],
        capture_output=True, text=True, check=False, cwd=folder, **user,
    )  # fmt: skip
    try:
        if made.returncode:
            pytest.fail(f"initdb: {made.stderr}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = ["-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
        with (folder / "log").open("w") as log, subprocess.Popen(
            [postgres, *arguments], stderr=log, cwd=folder, **user
        ) as running:  # fmt: skip
            try:
                address = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"
                _wait(address, folder / "log", running)
                yield address
            finally:
                running.send_signal(signal.SIGQUIT)  # at once: nothing is kept
                running.wait(30)
    finally:
        shutil.rmtree(folder)


def _wait(address: str, log: Path, running: subprocess.Popen[bytes]) -> None:
    import psycopg

    for _ in range(300):
        try:
            psycopg.connect(address).close()
            return
        except psycopg.OperationalError:
            if running.poll() is not None:
                break
            time.sleep(0.1)
    pytest.fail(f"PostgreSQL does not come up: {log.read_text()}")


@contextmanager
def database(address: str, name: str) -> Iterator[str]:
    """The address of a new, empty database."""
    import psycopg

    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield address.rpartition("/")[0] + "/" + name
