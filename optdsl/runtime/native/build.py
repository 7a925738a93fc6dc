"""From C files to loaded libraries: the system compiler, and a cache of what it made.

The driver, which runs kernels, is built once; kernels are then small, and quick to build.

A library in the cache is named by a hash of everything that it depends on (the source, the headers, the flags, the
compiler, the processor) and by a hash of its own bytes, so that a damaged one is never loaded. It is built in a
folder of its own and moved to its place, so that processes which build the same one do not disturb each other.
"""

import contextlib
import ctypes
import functools
import glob
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

_HERE = Path(__file__).parent
_HEADERS = ("table.h", "philox.h", "kernel.h", "codes.h")
#: Seconds after which a compiler is taken to hang.
TIMEOUT = 120
#: Bytes that a build has room for where a compiler is at fault if it fails.
_ROOM = 1 << 20
#: How the folder of a build is called, and after how many seconds nobody builds in it any more.
_WORK, _ABANDONED = ".build-", 86400

#: Loops are marked for the vectoriser; what higher levels add costs as much time as all the rest and gains nothing.
_FLAGS = (
    *("-x", "c", "-std=gnu11", "-w", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-O1", "-ftree-vectorize", "-fno-math-errno", "-fno-trapping-math"),
)
#: Functions for which the C library may have vector variants; only kernels that call one ask for them.
_LIBRARY = re.compile(r"\b(exp|expm1|log|log1p|sin|cos|tan|asin|acos|atan|tanh|erf|pow|atan2)_\(")


class BuildError(Exception):
    """There is no compiler, or it failed; the message says what to do."""


class Driver:
    """What runs kernels: `run` and `known` release the interpreter's lock, `gather` and `same` hold it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and AttributeError for a library that is none."""
        free, held = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        self.run = free.optdsl_run
        self.run.argtypes, self.run.restype = [ctypes.c_void_p], None
        self.known = free.optdsl_known
        self.known.argtypes, self.known.restype = [ctypes.c_void_p], ctypes.c_int
        self.gather = held.optdsl_gather
        objects = [ctypes.py_object] * 4
        self.gather.argtypes, self.gather.restype = [*objects, ctypes.c_void_p], ctypes.c_int
        self.same = held.optdsl_same
        self.same.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_int64]
        self.same.restype = ctypes.c_int


class Library:
    """The kernels of one unit. `kernels` is the address of a table of their addresses."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and ValueError for a library that is none."""
        self._library = ctypes.CDLL(str(path))
        self.kernels = (ctypes.c_void_p * 1).in_dll(self._library, "optdsl_kernels")

    def kernel(self, number: int) -> int:
        """The address of a kernel."""
        address = ctypes.addressof(self.kernels) + number * ctypes.sizeof(ctypes.c_void_p)
        return int(ctypes.c_void_p.from_address(address).value or 0)


Opened = TypeVar("Opened", bound=Driver | Library)
_LOADED: dict[str, Any] = {}
_LOCK = threading.Lock()


def driver() -> Driver:
    """What runs kernels. Raises BuildError."""
    with _LOCK:
        if "driver" not in _LOADED:
            text = _own("driver.c")
            dynamic = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
            variants = [
                [*machine, *threads, *dynamic]
                for threads in (["-fopenmp"], [])
                for machine in (_native(), [])
            ]
            _LOADED["driver"] = _load(text, "driver", [], variants, Driver)
        found: Driver = _LOADED["driver"]
        return found


def library(source: Path | None, sha256: str, unit: int, real: str, types: Sequence[str]) -> Library:
    """The library with the kernels of `unit` of a C file, for arithmetic in `real` and arrays stored as `types`.

    `source` is the file, of which `sha256` is the hash. Raises BuildError.
    """
    if source is None:
        raise BuildError("the class does not come from a file, beside which its kernels would be")
    try:
        text = source.read_bytes()
    except OSError as error:
        raise BuildError(f"cannot read {source}: {error.strerror}; compile its spec again") from error
    if hashlib.sha256(text).hexdigest() != sha256:
        raise BuildError(f"{source} is not the file that belongs to the class; compile its spec again")
    settings = [f"-DUNIT={unit}", f"-DREAL={real}", *(f"-DT{i}={t}" for i, t in enumerate(types))]
    quick = hashlib.sha256(b"\0".join([text, *(s.encode() for s in settings)])).hexdigest()
    with _LOCK:
        found = _LOADED.get(quick)
        if found is None:
            variants = list(_variants(text.decode(errors="replace")))
            found = _LOADED[quick] = _load(text, source.stem, settings, variants, Library)
        kernels: Library = found
        return kernels


def _own(name: str) -> bytes:
    """A file of this package. Raises BuildError."""
    try:
        return (_HERE / name).read_bytes()
    except OSError as error:
        raise BuildError(f"cannot read {_HERE / name}: {error.strerror}; install optdsl again") from error


def _load(
    text: bytes, name: str, settings: list[str], variants: list[list[str]], opened: type[Opened]
) -> Opened:
    """The library from the cache, or a new one. Raises BuildError."""
    compiler = _compiler()
    key = hashlib.sha256()
    for part in (text, *map(_own, _HEADERS)):
        key.update(hashlib.sha256(part).digest())
    key.update(repr((_FLAGS, settings, variants, compiler, _version(compiler), _processor())).encode())
    stem = f"{name[:40]}-{key.hexdigest()[:24]}"
    try:
        folder = cache_folder()
        found = _kept(folder, stem, opened)
        if found is not None:
            return found
        try:
            return _build(text, compiler, settings, variants, folder, stem, opened)
        except OSError:  # it cannot be written to, or nothing in it may be executed
            return _build(text, compiler, settings, variants, _private_folder(), stem, opened)
    except OSError as error:
        raise BuildError(
            f"kernels cannot be built: {error}; the variable OPTDSL_CACHE names a folder"
        ) from error


def _kept(folder: Path, stem: str, opened: type[Opened]) -> Opened | None:
    """The library from the cache; what is damaged is removed."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{glob.escape(stem)}-*.so"):
            # it may be of another machine that shares the folder
            with contextlib.suppress(OSError, AttributeError, ValueError):
                if path.stem.endswith(_digest(path)):
                    return opened(path)
                path.unlink()
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _build(
    text: bytes,
    compiler: list[str],
    settings: list[str],
    variants: list[list[str]],
    folder: Path,
    stem: str,
    opened: type[Opened],
) -> Opened:
    """Compiles into `folder`. Raises OSError if that cannot be done there, and BuildError."""
    folder.mkdir(parents=True, exist_ok=True)
    _clean(folder)
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=folder))
    made = work / "kernel.so"
    refused: OSError | None = None
    try:
        (work / "kernel.c").write_bytes(text)
        for flags in variants:
            command = [*compiler, *_FLAGS, *settings, f"-I{_HERE}", *flags, str(work / "kernel.c")]
            command += ["-o", str(made), "-lm", *(["-lmvec"] if "-DVECTOR_MATH" in flags else [])]
            complaint = _compile(command, work)
            if complaint is None and not (made.is_file() and made.stat().st_size):
                complaint = "nothing, but it made no library"
            if complaint is None:
                try:
                    found = opened(made)
                except OSError as error:
                    refused = error
                except (AttributeError, ValueError) as error:
                    complaint = str(error)
                else:
                    with contextlib.suppress(OSError):  # it is loaded, so it need not be kept
                        os.replace(made, folder / f"{stem}-{_digest(made)}.so")
                    return found
            else:  # a full disk fails the compiler, and leaves no room for what it says of that
                (work / "room").write_bytes(bytes(_ROOM))
        if refused is not None:
            raise OSError(f"what the compiler made is not loaded: {_without(work, str(refused))}")
        said = _without(work, str(complaint))
        raise BuildError(
            f"the compiler `{shlex.join(compiler)}` failed; the variable CC names another. It said:\n{said}"
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _without(work: Path, text: str) -> str:
    """Without the name of a folder that is gone, so that the same reason has the same text."""
    return text.replace(f"{work}{os.sep}", "")


def _clean(folder: Path) -> None:
    """Removes what builds left behind that were killed."""
    for path in folder.glob(f"{_WORK}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Has Ctrl-C come when this is over: a process that is begun would be left alone by it."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield  # no exception comes here
        return
    came: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda *what: came.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            usual(*came[0])


def _compile(command: list[str], work: Path) -> str | None:
    """None, or what the compiler says is wrong. Raises BuildError if it hangs, and OSError."""
    process = None
    with open(work / "log", "w+b") as log:
        try:
            with _interrupted_afterwards():
                # a session of its own: what it starts is ended with it
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={**os.environ, "TMPDIR": str(work)},
                )
            status = process.wait(TIMEOUT)
        except BaseException as error:
            if process is None:
                if isinstance(error, OSError):
                    return str(error)
                raise
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                name = shlex.join(command[:1])
                raise BuildError(
                    f"the compiler `{name}` gave no result in {TIMEOUT} s; the variable CC names another"
                ) from error
            raise
        if status == 0:
            return None
        log.seek(0)
        return _first_lines(log.read(65536).decode(errors="replace")) or f"exit status {status}"


def _first_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:5])


def _native() -> list[str]:
    """The flag for all instructions that this machine has."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    return ["-march=native"] if x86 else ["-mcpu=native"]


def _variants(text: str) -> Iterator[list[str]]:
    """Flags to try, best first: what a compiler or a C library does not have is left out one by one."""
    # random numbers are defined by operations that are each rounded
    exact = ["-ffp-contract=off"] if "draw_(" in text else []
    vectors = [["-DVECTOR_MATH"], []] if _LIBRARY.search(text) and sys.platform == "linux" else [[]]
    for loops in (["-fopenmp-simd"], []):
        for machine in (_native(), []):
            for vector in vectors:
                yield [*machine, *loops, *exact, *vector]


def _compiler() -> list[str]:
    """The command of the C compiler: `$CC`, or `cc`, `gcc` or `clang`. Raises BuildError."""
    chosen = os.environ.get("CC", "").strip()
    if chosen:
        try:
            command = shlex.split(chosen)
        except ValueError as error:
            raise BuildError(f"the variable CC is `{chosen}`, which is no command: {error}") from error
        if shutil.which(command[0]) is None:
            raise BuildError(f"there is no compiler `{command[0]}`, which the variable CC names")
        return command
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BuildError("there is no C compiler; install gcc or clang, or name one by the variable CC")


def _version(compiler: list[str]) -> list[str]:
    """What identifies a compiler, and what it calls as in `ccache gcc`: place, size and time of change."""
    found = []
    for place in filter(None, map(shutil.which, compiler)):
        place = os.path.realpath(place)
        with contextlib.suppress(OSError):
            facts = os.stat(place)
            place = f"{place} {facts.st_size} {facts.st_mtime_ns}"
        found.append(place)
    return found


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
    """Where libraries are kept: in `$OPTDSL_CACHE`, else in `optdsl` in the user's cache directory.

    In a folder of this process for a user without a home. Raises OSError.
    """
    chosen = os.environ.get("OPTDSL_CACHE")
    if chosen:
        return Path(chosen).absolute() / "native"
    base, home = os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~")
    if not base and not os.path.isabs(home):
        return _private_folder()
    return Path(base or os.path.join(home, ".cache")).absolute() / "optdsl" / "native"


@functools.cache
def _private_folder() -> Path:
    """A folder for libraries that lasts as long as the process. Raises OSError."""
    import atexit

    folder, owner = tempfile.mkdtemp(prefix="optdsl-native-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a fork
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)
