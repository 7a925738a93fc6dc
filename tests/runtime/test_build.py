"""How native kernels are built: the cache, compilers of every kind and none, and what happens without kernels."""

import fnmatch
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch

import optdsl
from optdsl.runtime import optimizer as optimizer_module
from optdsl.runtime.native import build
from tests.support import files, good

SGD, ADAMW, DIFFGRAD = (optdsl.load(name) for name in ("sgd", "adamw", "diffgrad"))
REAL = 'exec cc "$@"'  # what a script does in the end that stands in for the compiler


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A process that has built nothing yet, with a cache of its own."""
    monkeypatch.setattr(build, "_LOADED", {})
    monkeypatch.setattr(optimizer_module._Kernels, "missing", {})
    monkeypatch.setattr(optimizer_module._Kernels, "told", set())
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "native"


def kept(cache):
    """The libraries in the cache: what runs kernels, and kernels. Nothing else is there."""
    found = sorted(cache.iterdir()) if cache.is_dir() else []
    assert all(path.suffix == ".so" for path in found), found
    return found


def names(cache):
    """What the libraries in the cache are called, up to the hashes."""
    return [path.name.split("-")[0] for path in kept(cache)]


def only(which, *lines):
    """Lines of a script that are run when the driver is compiled, or when kernels are."""
    return [
        f'case "$*" in *-DUNIT=*) of=kernels;; *) of=driver;; esac; if [ $of = {which} ]; then',
        *lines,
        "fi",
    ]


#: Each of the two libraries that a first step needs, and what is in the cache while the other is built.
EACH = pytest.mark.parametrize("which, before", [("driver", []), ("kernels", ["driver"])], ids=str)


def script(path, *lines):
    """An executable shell script."""
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return str(path)


def trained(cls=SGD, steps=2, sizes=(3, 70000), **flags):
    """Parameters after some steps; large enough for several threads to take part."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
    optimizer = cls(params, lr=0.1, **flags)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in params]


def with_kernels(cls=SGD, **flags):
    """Trains with kernels and holds the result against the loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(cls, **flags)
        assert "driver" in build._LOADED
        assert len(build._LOADED) > 1
        torch.testing.assert_close(
            found, trained(cls, fused=False, foreach=False, **flags), rtol=1e-6, atol=1e-7
        )


def without_kernels(match, cls=SGD, loaded=(), **flags):
    """Trains where no kernels can be had: one warning, which points at the caller of `step`, and the foreach path."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = trained(cls, fused=False, foreach=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = trained(cls, **flags)
        again = trained(cls, **flags)
        other = trained(ADAMW)
    assert list(build._LOADED) == list(loaded)
    assert [w.category for w in told] == [RuntimeWarning]
    message = str(told[0].message)
    assert message.startswith(
        "optdsl runs without native kernels, several times slower; `fused=False` asks for none"
    )
    assert match in message
    assert told[0].filename == __file__
    assert Path(__file__).read_text().splitlines()[told[0].lineno - 1].strip() == "optimizer.step()"
    for result in (found, again):
        assert all(map(torch.equal, result, expected))
    assert all(map(torch.equal, other, trained(ADAMW, fused=False, foreach=True)))
    return message


# --- the cache ---


def test_a_library_is_built_once(cache):
    with_kernels()
    first = [(path, path.stat().st_mtime_ns) for path in kept(cache)]
    assert names(cache) == ["driver", "sgd"]
    build._LOADED.clear()
    with_kernels()
    assert [(path, path.stat().st_mtime_ns) for path in kept(cache)] == first
    with_kernels(ADAMW)
    assert names(cache) == ["adamw", "driver", "sgd"]
    assert set(first) < {(path, path.stat().st_mtime_ns) for path in kept(cache)}


_BUILD = """
import hashlib, importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("build", sys.argv[1])
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
source = Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
digest = hashlib.sha256(source.read_bytes()).hexdigest()
print(build.driver(), build.library(source, digest, int(sys.argv[3]), "float", ["f32", "f32"]))
"""


def started(**changes):
    """A process that builds the driver and the plain kernel of SGD when told to; torch takes too long to import."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _BUILD,
            build.__file__,
            SGD._native.path(SGD, SGD._native.c),
            str(SGD._native.kernels[-1].unit),
        ],
        env={**os.environ, **changes},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def begin(process):
    process.stdin.write("\n")
    process.stdin.flush()


def finished(process):
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_two_processes_build_the_same_at_once(tmp_path, cache):
    slow = script(tmp_path / "slow", f"echo >> {tmp_path}/runs", "sleep 0.5", REAL)
    processes = [started(CC=slow) for _ in range(2)]
    for process in processes:
        begin(process)
    for process in processes:
        printed = good(finished(process))
        assert "Driver" in printed
        assert "Library" in printed
    assert len((tmp_path / "runs").read_text()) == 4
    assert names(cache) == ["driver", "sgd"]


@EACH
def test_an_interrupted_build_leaves_nothing(tmp_path, cache, which, before):
    hang = ["sleep 1000 &", f"echo $! > {tmp_path}/pid", f"> {tmp_path}/begun", "wait"]
    endless = script(tmp_path / "endless", *only(which, *hang), REAL)
    process = started(CC=endless)
    begin(process)
    wait_for((tmp_path / "begun").exists)
    process.send_signal(signal.SIGINT)
    run = finished(process)
    assert run.returncode != 0
    assert "KeyboardInterrupt" in run.stderr
    assert names(cache) == before
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))
    with_kernels()


def test_interrupted_while_a_compiler_begins(tmp_path, monkeypatch):
    begin, begun = subprocess.Popen, []

    def interrupted(*args, **settings):
        begun.append(begin(*args, **settings))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # the exception would come here
        return begun[0]

    monkeypatch.setattr(build.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build._compile(["sleep", "1000"], tmp_path)
    assert begun[0].returncode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@EACH
def test_a_killed_build_disturbs_nobody(tmp_path, cache, which, before):
    hang = [f"echo $$ > {tmp_path}/pid", f"> {tmp_path}/begun", "exec sleep 1000"]
    endless = script(tmp_path / "endless", *only(which, *hang), REAL)
    process = started(CC=endless)
    begin(process)
    wait_for((tmp_path / "begun").exists)
    process.kill()
    finished(process)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert len(files(cache)) == len(before) + 1
    with_kernels()
    left = sorted(name.split("-")[0] for name in files(cache))
    # by another compiler: what the killed one has finished stays
    assert left == sorted([".build", *before, "driver", "sgd"])


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid):
    """Whether a process runs; one that has ended and that nobody asked for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@EACH
def test_interrupted_while_loading(monkeypatch, cache, which, before):
    def interrupted(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, {"driver": "Driver", "kernels": "Library"}[which], interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained()
    assert names(cache) == before
    assert list(build._LOADED) == before
    with_kernels()


@EACH
@pytest.mark.parametrize("damage", ["half", "empty", "text", "one bit", "folder"])
def test_what_is_damaged_is_replaced(cache, damage, which, before):
    with_kernels()
    path, other = sorted(kept(cache), key=lambda path: path.name.startswith("driver") != (which == "driver"))
    stamp = other.stat().st_mtime_ns
    sound = path.read_bytes()
    path.unlink()  # it is loaded in this process, and writing into it would break that
    if damage == "folder":
        path.mkdir()
    else:
        middle = len(sound) // 2
        flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
        path.write_bytes(
            {"half": sound[:middle], "empty": b"", "text": b"no library\n", "one bit": flipped}[damage]
        )
    build._LOADED.clear()
    with_kernels()
    if damage != "folder":
        assert path.read_bytes() == sound
        assert names(cache) == ["driver", "sgd"]
    assert other.stat().st_mtime_ns == stamp


def test_sound_files_that_cannot_be_loaded_are_left(cache, monkeypatch):
    """Machines that share a home directory may have different C libraries."""
    with_kernels()
    there = kept(cache)
    refused = []

    def foreign(whole):
        def opened(place):
            if place in there:
                refused.append(place)
                raise OSError("version `GLIBC_9.99' not found")
            return whole(place)

        return opened

    for name in ("Driver", "Library"):
        monkeypatch.setattr(build, name, foreign(getattr(build, name)))
    build._LOADED.clear()
    with_kernels()
    assert refused == there
    assert kept(cache) == there


def test_leftovers_of_killed_builds(cache):
    cache.mkdir(parents=True)
    old, new = cache / ".build-old", cache / ".build-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "kernel.so").write_bytes(b"half of")
    os.utime(old, (time.time() - 90000,) * 2)
    with_kernels()
    assert not old.exists()
    assert new.exists()
    assert len(files(cache)) == 3


@pytest.fixture
def stems(monkeypatch):
    """A function that tells the name which the library of a kernel would have in the cache."""
    found = []

    def known(folder, stem, opened):
        found.append(stem)
        return object()

    monkeypatch.setattr(build, "_kept", known)

    def stem(text=b"", settings=("-DUNIT=0",), variants=((),)):
        build._load(text, "name", list(settings), list(map(list, variants)), build.Library)
        return found[-1]

    stem.found = found
    return stem


def test_the_name_depends_on_everything(stems, monkeypatch, tmp_path):
    seen = [stems()]
    assert stems() == seen[0]

    def differs(**options):
        seen.append(stems(**options))
        assert seen.count(seen[-1]) == 1

    differs(text=b"/* another source */")
    differs(settings=("-DUNIT=1",))
    differs(variants=(("-g",),))
    one = script(tmp_path / "one", REAL)
    monkeypatch.setenv("CC", one)
    differs()
    monkeypatch.setenv("CC", script(tmp_path / "two", REAL))
    differs()
    monkeypatch.setenv("CC", f"{one} -O0")
    differs()
    monkeypatch.setenv("CC", f"env {one}")
    differs()
    script(tmp_path / "one", "# a newer one", REAL)
    differs()
    with monkeypatch.context() as patch:
        patch.setattr(build, "_FLAGS", (*build._FLAGS, "-g"))
        differs()
    with monkeypatch.context() as patch:
        patch.setattr(build, "_processor", lambda: "another")
        differs()


def test_the_names_depend_on_what_is_included(stems, monkeypatch, tmp_path):
    """The driver and kernels of another version are others, if they changed."""
    path = Path(SGD._native.path(SGD, SGD._native.c))
    included = ("driver.c", "table.h", "philox.h", "codes.h", "kernel.h")
    for name in included:
        (tmp_path / name).write_bytes((build._HERE / name).read_bytes())

    def both():
        build._LOADED.clear()
        build.driver()
        build.library(path, SGD._native.c_sha256, 0, "float", ["f32"] * 3)
        assert [stem.rpartition("-")[0] for stem in stems.found[-2:]] == ["driver", "sgd"]
        return stems.found[-2:]

    seen = both()
    monkeypatch.setattr(build, "_HERE", tmp_path)
    assert both() == seen  # wherever it is installed
    for name in included:
        with open(tmp_path / name, "a") as file:
            file.write("/* changed */\n")
        new = both()
        if name != "kernel.h":
            assert new[0] not in seen
        if name != "driver.c":
            assert new[1] not in seen
        else:
            assert new[1] in seen
        seen += new


# --- places that cannot be written to ---


def test_a_cache_below_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "file" / "cache"))
    with_kernels()


@pytest.mark.parametrize("problem", ["write", "read", "load", "move", "full"])
def test_a_cache_that_refuses(monkeypatch, cache, problem):
    """No permission to write or to look, a file system from which nothing is executed, one that is full at the end,
    or for what the compiler writes and says.
    """
    inside = str(cache.parent)

    def refusing(whole, argument):
        def run(*args, **kwargs):
            place = kwargs.get("dir", "") if argument is None else args[argument]
            if str(place).startswith(inside):
                raise PermissionError(13, "Permission denied", str(place))
            return whole(*args, **kwargs)

        return run

    if problem == "write":
        monkeypatch.setattr(build.tempfile, "mkdtemp", refusing(tempfile.mkdtemp, None))
    elif problem == "read":
        for name in ("glob", "is_file", "stat", "exists", "iterdir", "mkdir"):
            monkeypatch.setattr(Path, name, refusing(getattr(Path, name), 0))
    elif problem == "load":
        for name in ("Library", "Driver"):
            monkeypatch.setattr(build, name, refusing(getattr(build, name), 0))
    elif problem == "move":
        monkeypatch.setattr(build.os, "replace", refusing(os.replace, 1))
    else:
        compiled, written = build._compile, Path.write_bytes

        def compile_(command, work):
            return "exit status 1" if str(work).startswith(inside) else compiled(command, work)

        def write(path, data):
            if str(path).startswith(inside) and len(data) > 1 << 19:
                raise OSError(28, "No space left on device", str(path))
            return written(path, data)

        monkeypatch.setattr(build, "_compile", compile_)
        monkeypatch.setattr(Path, "write_bytes", write)
    with_kernels()
    monkeypatch.undo()
    assert not kept(cache)


def test_an_installation_without_its_files(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "_HERE", tmp_path)
    without_kernels("driver.c: No such file or directory; install optdsl again")


def test_no_place_at_all(monkeypatch, tmp_path):
    def nowhere(*args, **kwargs):
        raise FileNotFoundError(2, "No usable temporary directory found")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "mkdtemp", nowhere)
    build._private_folder.cache_clear()
    message = without_kernels("kernels cannot be built")
    assert "No usable temporary directory" in message
    assert "OPTDSL_CACHE names a folder" in message


def test_a_user_without_a_home(monkeypatch, tmp_path):
    import pwd

    def nobody(uid):
        raise KeyError(uid)

    for name in ("HOME", "OPTDSL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    with_kernels()
    assert not files(tmp_path)


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert build.cache_folder() == tmp_path / "cache" / "native"
    monkeypatch.delenv("OPTDSL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.cache_folder() == tmp_path / "xdg" / "optdsl" / "native"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / ".cache" / "optdsl" / "native"


# --- compilers ---


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    without_kernels("there is no C compiler; install gcc or clang, or name one by the variable CC")


def test_a_compiler_that_is_not_there(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    without_kernels("there is no compiler `no-such-compiler`, which the variable CC names")


def test_a_name_that_is_no_command(monkeypatch):
    monkeypatch.setenv("CC", "gcc '-O2")
    without_kernels("the variable CC is `gcc '-O2`, which is no command")


def test_a_compiler_that_fails(monkeypatch, tmp_path, cache):
    monkeypatch.setenv("CC", script(tmp_path / "bad", "echo out of licences >&2", "exit 1"))
    message = without_kernels("the variable CC names another. It said:\nout of licences", fused=True)
    assert str(tmp_path / "bad") in message
    assert not kept(cache)


def test_a_compiler_that_fails_for_kernels(monkeypatch, tmp_path, cache):
    lines = only("kernels", "echo out of licences >&2", "exit 1")
    monkeypatch.setenv("CC", script(tmp_path / "bad", *lines, REAL))
    without_kernels("the variable CC names another. It said:\nout of licences", loaded=["driver"])
    assert names(cache) == ["driver"]


def test_a_compiler_without_headers(monkeypatch, cache):
    """The reason is the same for all classes, whichever folder the source was in."""
    monkeypatch.setenv("CC", "cc -nostdinc")
    message = without_kernels("It said:\nkernel.c:")
    assert ".build-" not in message
    assert not kept(cache)


@EACH
def test_a_compiler_that_makes_another_library(monkeypatch, tmp_path, cache, which, before):
    found = 'while [ "$1" != -o ]; do shift; done'
    lines = found, 'echo "int x;" | cc -shared -fPIC -x c - -o "$2"', "exit $?"
    monkeypatch.setenv("CC", script(tmp_path / "vain", *only(which, *lines), REAL))
    message = without_kernels("undefined symbol: optdsl_", loaded=before)
    assert ".build-" not in message
    assert names(cache) == before


@pytest.mark.parametrize(
    "lines", [["exit 3"], ["exit 0"], ['while [ "$1" != -o ]; do shift; done', '> "$2"']]
)
def test_a_compiler_that_says_and_makes_nothing(monkeypatch, tmp_path, cache, lines):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", script(tmp_path / "mute", *lines))
    without_kernels("exit status 3" if lines == ["exit 3"] else "made no library")
    assert not kept(cache)


def test_a_compiler_for_another_machine(monkeypatch, tmp_path, cache):
    lines = 'while [ "$1" != -o ]; do shift; done', 'echo "not for you" > "$2"'
    monkeypatch.setenv("CC", script(tmp_path / "cross", *lines))
    without_kernels("kernels cannot be built: what the compiler made is not loaded: ")
    assert not kept(cache)


def test_a_compiler_that_cannot_be_run(monkeypatch, tmp_path):
    (tmp_path / "data").write_bytes(b"\x00\x01\x02")
    (tmp_path / "data").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "data"))
    without_kernels("Exec format error")


def test_a_compiler_that_hangs(monkeypatch, tmp_path, cache):
    """What it started hangs with it, and is ended with it."""
    monkeypatch.setattr(build, "TIMEOUT", 0.5)
    monkeypatch.setenv("CC", script(tmp_path / "stuck", "sleep 1000 &", f"echo $! > {tmp_path}/pid", "wait"))
    start = time.monotonic()
    without_kernels("stuck` gave no result in 0.5 s")
    assert time.monotonic() - start < 20
    assert not kept(cache)
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))  # it dies a moment after it is told to


def test_a_compiler_with_arguments(monkeypatch):
    monkeypatch.setenv("CC", "env cc -O0")
    with_kernels()


def test_an_empty_name_is_none(monkeypatch):
    monkeypatch.setenv("CC", " ")
    with_kernels()


REJECTED = {
    "threads": ["-fopenmp"],
    "loops": ["-fopenmp-simd"],
    "OpenMP": ["-fopenmp*"],
    "machine": ["-march=*", "-mcpu=*"],
    "vectors": ["-lmvec"],
    "all": ["-fopenmp*", "-march=*", "-mcpu=*", "-lmvec"],
}


@pytest.mark.parametrize("patterns", REJECTED.values(), ids=REJECTED)
def test_flags_that_a_compiler_does_not_know(monkeypatch, tmp_path, cache, patterns):
    """It is done without those, but with all others."""
    known = [f'case "$word" in {p}) echo "no option $word" >&2; exit 1;; esac' for p in patterns]
    log = tmp_path / "log"
    lines = 'for word in "$@"; do', *known, "done", f'echo "$@" >> {log}', REAL
    monkeypatch.setenv("CC", script(tmp_path / "old", *lines))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for cls in (SGD, DIFFGRAD):  # one pass; functions of the C library
                with_kernels(cls)
    finally:
        torch.set_num_threads(threads)
    assert names(cache) == ["diffgrad", "driver", "sgd"]
    driver, sgd, diffgrad = (line.split() for line in log.read_text().splitlines())
    for flag, used in (
        ("-fopenmp", [driver]),
        ("-fopenmp-simd", [sgd, diffgrad]),
        (*build._native(), [driver, sgd, diffgrad]),
        *([("-lmvec", [diffgrad])] if sys.platform == "linux" else []),
    ):
        taken = not any(fnmatch.fnmatch(flag, pattern) for pattern in patterns)
        assert [words for words in (driver, sgd, diffgrad) if flag in words] == (used if taken else [])


# --- the warning ---


def test_none_is_given_to_who_asks_for_none(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for flags in ({"fused": False}, {"foreach": True}, {"foreach": False}, {"capturable": True}):
            trained(ADAMW, **flags)
    assert not optimizer_module._Kernels.missing


def test_it_points_at_the_caller_behind_wrappers(monkeypatch):
    """A scheduler wraps `step`, and a closure calls back."""
    monkeypatch.setenv("PATH", "")
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = SGD([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.register_step_pre_hook(lambda *args: None)

    def closure():
        p.grad = torch.ones(3)
        return 1.0

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer.step(closure)  # here
    scheduler.step()
    assert len(told) == 1
    assert told[0].filename == __file__
    assert Path(__file__).read_text().splitlines()[told[0].lineno - 1].endswith("# here")


def test_as_an_error_it_changes_nothing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = SGD([p], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="without native kernels"):
            optimizer.step()
        assert torch.equal(p, torch.ones(3))
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.9))


def test_a_torch_without_the_exchange_interface(monkeypatch):
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    without_kernels("native kernels need torch 2.10 or later")


def test_reasons_differ(monkeypatch, tmp_path):
    """Each reason is told once; a class that has its kernels keeps them."""
    with_kernels(ADAMW)
    monkeypatch.setenv("CC", "no-such-compiler")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trained(SGD)
        monkeypatch.setenv("CC", "nor-this-one")
        trained(DIFFGRAD)
        trained(ADAMW)
    assert ["no-such" in str(w.message) for w in told] == [True, False]
    assert set(optimizer_module._Kernels.missing) == {SGD, DIFFGRAD}
