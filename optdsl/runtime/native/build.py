"""From a C file to a loaded library: the system compiler, and a cache of what it made.

The key of a library in the cache is everything that it depends on: the source, the headers, the flags, the
compiler and its version, the processor. A library is built under a temporary name and renamed, so that no process
ever loads half of one, and processes that build the same one at the same time do not disturb each other.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

_HERE = Path(__file__).parent
_HEADERS = ("kernel.h", "gather.h")
#: Seconds after which a compiler is taken to hang.
TIMEOUT = 120

#: Loops are marked for the vectoriser; what higher levels add costs as much time as all the rest and gains nothing.
_FLAGS = (
    *("-x", "c", "-std=gnu11", "-w", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-O1", "-ftree-vectorize", "-fno-math-errno", "-fno-trapping-math"),
)
#: Functions for which the C library may have vector variants; only kernels that call one ask for them.
_LIBRARY = re.compile(r"\b(exp|expm1|log|log1p|sin|cos|tan|asin|acos|atan|tanh|erf|pow|atan2)_\(")


class BuildError(Exception):
    """There is no compiler, or it failed; the message says what to do."""


class Library:
    """A loaded library: `run` and `known` release the interpreter's lock, `gather` and `same` hold it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        free, held = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        self.run = free.optdsl_run
        self.run.argtypes, self.run.restype = [ctypes.c_void_p], None
        self.known = free.optdsl_known
        self.known.argtypes, self.known.restype = [ctypes.c_void_p], ctypes.c_int
        self.gather = held.optdsl_gather
        objects = [ctypes.py_object] * 3
        self.gather.argtypes, self.gather.restype = [*objects, ctypes.c_void_p], ctypes.c_int
        self.same = held.optdsl_same
        self.same.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_int64]
        self.same.restype = ctypes.c_int


_LOADED: dict[str, Library] = {}
_LOCK = threading.Lock()


def library(source: Path, unit: int, real: str, types: Sequence[str]) -> Library:
    """The library with the kernels of `unit` of a C file, for arithmetic in `real` and arrays stored as `types`.

    Raises BuildError.
    """
    try:
        text = source.read_bytes()
    except OSError as error:
        raise BuildError(f"cannot read {source}: {error.strerror}; compile its spec again") from error
    settings = [f"-DUNIT={unit}", f"-DREAL={real}", *(f"-DT{i}={t}" for i, t in enumerate(types))]
    quick = hashlib.sha256(b"\0".join([text, *(s.encode() for s in settings)])).hexdigest()
    with _LOCK:
        found = _LOADED.get(quick)
        if found is None:
            found = _LOADED[quick] = _load(text, source.stem, settings)
        return found


def _load(text: bytes, name: str, settings: list[str]) -> Library:
    """The library from the cache, or a new one."""
    compiler = _compiler()
    variants = list(_variants(text.decode()))
    folder = cache_folder()
    key = hashlib.sha256()
    for part in (text, *((_HERE / header).read_bytes() for header in _HEADERS)):
        key.update(hashlib.sha256(part).digest())
    key.update(repr((settings, variants, compiler, _version(compiler), _processor())).encode())
    path = folder / f"{name[:40]}-{key.hexdigest()[:24]}.so"
    if path.is_file():
        with contextlib.suppress(OSError):  # damaged: it is made anew
            return Library(path)
    return _build(text, compiler, settings, variants, path)


def _build(
    text: bytes, compiler: list[str], settings: list[str], variants: list[list[str]], path: Path
) -> Library:
    """Compiles into `path`, or, where that cannot be written, into a folder of this process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=path.parent))
    except OSError:
        path = _private_folder() / path.name
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=path.parent))
    try:
        (work / "kernel.c").write_bytes(text)
        error = ""
        for flags in variants:
            command = [*compiler, *_FLAGS, *settings, f"-I{_HERE}", *flags]
            command = [*command, str(work / "kernel.c"), "-o", str(work / "kernel.so"), "-lm"]
            if "-DVECTOR_MATH" in flags:
                command.append("-lmvec")
            found = _compile(command)
            if found is None:
                try:
                    Library(work / "kernel.so")
                except (OSError, AttributeError) as problem:
                    found = str(problem)
                else:
                    os.replace(work / "kernel.so", path)
                    return Library(path)
            error = error or found
        raise BuildError(f"the compiler `{shlex.join(compiler)}` failed: {_first_lines(error)}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _compile(command: list[str]) -> str | None:
    """None, or what the compiler says is wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"no result after {TIMEOUT} s"
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr or f"exit status {done.returncode}")


def _first_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:5])


def _variants(text: str) -> Iterator[list[str]]:
    """Flags to try, best first: what a compiler or a C library does not have is left out one by one."""
    native = (
        ["-march=native"] if platform.machine().lower() in ("x86_64", "amd64", "i686") else ["-mcpu=native"]
    )
    # random numbers are defined by operations that are each rounded
    exact = ["-ffp-contract=off"] if "draw_(" in text else []
    vectors = [["-DVECTOR_MATH"], []] if _LIBRARY.search(text) and sys.platform == "linux" else [[]]
    dynamic = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    for threads in (["-fopenmp"], ["-fopenmp-simd"], []):
        for machine in (native, []):
            for vector in vectors:
                yield [*machine, *threads, *exact, *vector, *dynamic]


def _compiler() -> list[str]:
    """The command of the C compiler: `$CC`, or `cc`, `gcc` or `clang`. Raises BuildError."""
    chosen = os.environ.get("CC", "").strip()
    if chosen:
        command = shlex.split(chosen)
        if shutil.which(command[0]) is None:
            raise BuildError(f"there is no compiler `{command[0]}`, which the variable CC names")
        return command
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BuildError("there is no C compiler; install gcc or clang, or name one by the variable CC")


def _version(compiler: list[str]) -> str:
    """What identifies a compiler: where it is, its size and when it was changed."""
    place = os.path.realpath(shutil.which(compiler[0]) or compiler[0])
    with contextlib.suppress(OSError):
        facts = os.stat(place)
        return f"{place} {facts.st_size} {facts.st_mtime_ns}"
    return place


@functools.cache
def _processor() -> str:
    """What identifies the processor for which `native` code is made."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
        lines: list[str] = []
        for line in file:
            if not line.strip() and lines:
                break
            if line.startswith(wanted):
                lines.append(line.strip())
        return "\n".join(lines) + platform.machine()
    return f"{platform.machine()} {platform.processor()}"


def cache_folder() -> Path:
    """Where libraries are kept: in `$OPTDSL_CACHE`, else in `optdsl` in the user's cache directory."""
    chosen = os.environ.get("OPTDSL_CACHE")
    if chosen:
        return Path(chosen) / "native"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "optdsl" / "native"


@functools.cache
def _private_folder() -> Path:
    """A folder for libraries that lasts as long as the process."""
    import atexit

    folder = tempfile.mkdtemp(prefix="optdsl-native-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
