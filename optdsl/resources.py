"""Files: where the grammar, the shipped specs and what comes of them lie, and how files are written."""

import contextlib
import os
import stat
import threading
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
    """Writes a file under a temporary name and renames it, so that no reader ever sees half of it.

    A file that is there keeps its permissions; where `path` is a link, what it points to is replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # the start of the name will do: the whole, with more behind it, may be longer than a name can be
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
