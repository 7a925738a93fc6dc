"""Files: where the grammar, the shipped specs and what comes of them lie, and how files are written."""

import contextlib
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Kind = Literal["grammar", "specs", "generated"]

_PACKAGE = Path(__file__).resolve().parent


def data_dir(kind: Kind) -> Path:
    """The folder of `kind`: inside the package when installed from a wheel, beside it in a checkout."""
    if kind not in ("grammar", "specs", "generated"):
        raise ValueError(f"no data of kind {kind!r}: it is one of grammar, specs and generated")
    places = (_PACKAGE / "_data" / kind, _PACKAGE.parent / kind)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"optdsl's {kind} folder is missing; looked for {places[0]} and {places[1]}. "
        "The installation is incomplete: install optdsl again."
    )


def cache_dir() -> Path:
    """Where work is kept between runs: `$OPTDSL_CACHE`, else `optdsl` in the user's cache directory."""
    chosen = os.environ.get("OPTDSL_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "optdsl"


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file as a whole or not at all; as `write_together`."""
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Writes files that belong together under temporary names, and renames them when all are complete.

    So no reader ever sees half of one, and what goes wrong leaves all as they were. A file that is there keeps its
    permissions; where a path is a link, what it points to is replaced. Raises OSError with the path in question.
    """
    # path as it was given, file under its temporary name, file to be replaced, what that held
    parts: list[tuple[Path, Path, Path, bytes | None]] = []
    at, complete = Path(), False
    try:
        for at, data in files.items():
            target = Path(os.path.realpath(at))
            target.parent.mkdir(parents=True, exist_ok=True)
            # the start of the name will do: the whole, with more behind it, may be longer than a name can be
            unique = f"{os.getpid()}-{threading.get_ident()}-{len(parts)}"
            temporary = target.with_name(f".{target.name[:40]}.{unique}")
            before = target.read_bytes() if len(files) > 1 and target.is_file() else None
            parts.append((at, temporary, target, before))
            with open(temporary, "xb") as file:
                file.write(data)
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        complete = True
        for path, temporary, target, _ in parts:
            at = path
            os.replace(temporary, target)
    except BaseException as problem:
        left = [temporary for _, temporary, _, _ in parts if temporary.exists()]
        for temporary in left:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        for _, temporary, target, before in parts:
            if complete and left and temporary not in left:
                _put_back(target, before)
        if isinstance(problem, OSError):  # it may name the temporary file
            raise OSError(problem.errno, problem.strerror or str(problem), str(at)) from None
        raise


def _put_back(path: Path, data: bytes | None) -> None:
    """Leaves a file as it was, as far as that can be done."""
    with contextlib.suppress(OSError):
        if data is None:
            path.unlink()
        else:
            write_bytes(path, data)
