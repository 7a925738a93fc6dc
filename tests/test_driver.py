"""The pipeline's front door: files out of specs, classes out of specs, and every stage between."""

import ast
import copy
import importlib.util
import io
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import optdsl
from optdsl import driver, zoo
from optdsl.check import check_text
from optdsl.driver import SpecWarning, locate, module_name
from optdsl.lang.diagnostics import SpecError
from tests.support import (
    BAD,
    NAMES,
    PICKED,
    PLAIN,
    ROOT,
    SHIPPED,
    TRANSFORM,
    class_of,
    command,
    files,
    good,
    module_of,
    python,
    unwritable,
)

GENERATED = ROOT / "generated"


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """A cache folder of the test's own, not made yet."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    monkeypatch.setenv("OPTDSL_CACHE", str(folder))
    for name in [name for name in sys.modules if name.startswith("optdsl_spec_")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.opt"
    path.write_text(PLAIN)
    return path


def stepped(optimizer, value=1.0, grad=0.5):
    """A parameter after one step of an optimizer that is made by `optimizer(params)`."""
    p = torch.nn.Parameter(torch.tensor([value]))
    p.grad = torch.tensor([grad])
    optimizer([p]).step()
    return p.item()


def contents(folder):
    """The bytes of every file in a folder, but of what Python keeps there."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "__pycache__"}


# ---- compile ----------------------------------------------------------------------------------------------


def test_a_file_becomes_two_files_beside_it(plain):
    (done,) = optdsl.compile(plain)
    assert done.path == plain
    assert done.files == tuple(map(plain.with_suffix, (".py", ".c", ".triton.py")))
    assert done.diagnostics == ()
    assert done.no_kernels is None
    assert done.checked.program.name == "Plain"
    assert stepped(class_of(module_of(done.files[0]))) == pytest.approx(0.995)


@pytest.mark.parametrize("form", [str, Path, lambda path: [path], lambda path: (p for p in [str(path)])])
def test_a_path_may_come_in_any_form(plain, tmp_path, form):
    (done,) = optdsl.compile(form(plain), out=str(tmp_path / "new" / "folders"))
    folder = tmp_path / "new" / "folders"
    assert done.files == tuple(folder / f"plain{end}" for end in (".py", ".c", ".triton.py"))
    assert files(folder) == {"plain.py", "plain.c", "plain.triton.py"}


@pytest.mark.parametrize(
    ("backends", "standalone", "made"),
    [
        (["torch"], False, {"plain.py"}),
        ((), False, {"plain.py"}),
        (["cpu"], False, {"plain.py", "plain.c"}),
        (("cpu", "torch"), False, {"plain.py", "plain.c"}),
        (driver.BACKENDS, True, {"plain.py"}),
    ],
)
def test_backends(plain, tmp_path, backends, standalone, made):
    out = tmp_path / "out"
    (done,) = optdsl.compile(plain, out, backends, standalone=standalone)
    assert files(out) == {path.name for path in done.files} == made
    cls = class_of(module_of(done.files[0]))
    assert stepped(cls) == pytest.approx(0.995)
    assert "fused:" in cls.__doc__
    if "plain.c" in made:
        assert stepped(lambda params: cls(params, fused=True)) == pytest.approx(0.995)
        return
    assert cls._native is None
    assert cls([torch.nn.Parameter(torch.ones(1))], fused=False).defaults["fused"] is False
    with pytest.raises(
        RuntimeError, match=r"^Plain has no fused kernel: it was compiled for .* 'torch' alone$"
    ):
        cls([torch.nn.Parameter(torch.ones(1))], fused=True)


def test_a_spec_without_kernels_says_why(tmp_path, cache):
    path = tmp_path / "plain.opt"
    path.write_text(PLAIN.replace("lr * g", "lr * newton_schulz(uniform() * newton_schulz(g, 3), 3)"))
    (done,) = optdsl.compile(path)
    assert done.files == (tmp_path / "plain.py",)
    why = "random numbers are drawn between its matrix products"
    assert done.no_kernels == why
    for stage, text in (
        ("plan", f"no plan: {why}\n"),
        ("cpu", f"/* no native kernels: {why} */\n"),
    ):
        assert driver.show(path, stage) == text
    for cls in (class_of(module_of(done.files[0])), optdsl.load(path), optdsl.load(path, backend="cpu")):
        assert stepped(cls) != 1
        with pytest.raises(RuntimeError, match=f"^Plain has no fused kernel: {why}$"):
            cls([torch.nn.Parameter(torch.ones(1))], fused=True)
    assert optdsl.compile(path, backends=["torch"])[0].no_kernels is None


def test_a_folder_stands_for_the_specs_right_in_it(plain, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "inner.opt").write_text(PLAIN)
    (tmp_path / "halve.opt").write_text(TRANSFORM)
    (tmp_path / "notes.txt").write_text("nothing")
    out = tmp_path / "out"
    halve, done = optdsl.compile(tmp_path, out=out)
    assert (halve.files, halve.checked.kind, halve.diagnostics) == ((), "transform", ())
    assert done.files == tuple(out / f"plain{end}" for end in (".py", ".c", ".triton.py"))
    assert files(out) == {"plain.py", "plain.c", "plain.triton.py"}


def test_a_spec_with_mistakes_writes_nothing_and_stops_no_other(plain, tmp_path):
    (tmp_path / "bad.opt").write_text(BAD)
    (tmp_path / "bad.py").write_text("# of an earlier run\n")
    bad, done = optdsl.compile(tmp_path)
    assert bad.files == ()
    assert [d.code for d in bad.checked.errors] == ["E0301", "E0301"]
    assert repr(bad) == f"<Compiled {tmp_path / 'bad.opt'}: nothing written, 2 errors>"
    assert (tmp_path / "bad.py").read_text() == "# of an earlier run\n"
    assert done.files[0].is_file()


def test_a_spec_that_is_not_there_is_a_message(tmp_path):
    (missing,) = optdsl.compile(tmp_path / "missing.opt")
    assert [d.code for d in missing.checked.errors] == ["E0001"]
    assert files(tmp_path) == set()


def test_progress_is_told_before_each(plain, tmp_path):
    (tmp_path / "bad.opt").write_text(BAD)
    told = []
    optdsl.compile(tmp_path, progress=lambda path: told.append((path.name, (tmp_path / "plain.py").exists())))
    assert told == [("bad.opt", False), ("plain.opt", False)]


def test_an_unknown_backend_is_refused(plain):
    with pytest.raises(ValueError, match="no backend `torhc`; did you mean `torch`"):
        optdsl.compile(plain, backends=["torhc"])
    assert files(plain.parent) == {"plain.opt"}
    for name in ("plain.opt", "adamw"):
        with pytest.raises(ValueError, match="no backend `jax`; available: torch, cpu"):
            optdsl.load(plain.with_name(name) if "." in name else name, backend="jax")
    with pytest.raises(ValueError, match="no backend `jax`"):
        optdsl.compile([], backends=["jax"])


def test_two_specs_never_become_one_file(tmp_path):
    for name in ("a-b", "a_b"):
        (tmp_path / f"{name}.opt").write_text(PLAIN)
    with pytest.raises(ValueError, match=r"a-b\.opt and .*a_b\.opt would both become .*a_b\.py"):
        optdsl.compile(tmp_path)
    assert files(tmp_path) == {"a-b.opt", "a_b.opt"}


def test_a_spec_given_twice_is_compiled_once(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(optdsl.compile([plain, plain, tmp_path, "plain.opt"], out=tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("adam", "adam"),
        ("my-method 2", "my_method_2"),
        ("2nd", "_2nd"),
        ("class", "class_"),
        ("naïve", "na_ve"),
        ("a.b", "a_b"),
        ("..", "__"),
        ('x"; import os', "x___import_os"),
        ("a\nb", "a_b"),
        ("１", "_"),
    ],
)
def test_module_names(stem, name):
    assert module_name(Path(f"{stem}.opt")) == name
    assert name.isidentifier()


def test_long_file_names(tmp_path, cache):
    path = tmp_path / f"{'x' * 240}.opt"
    path.write_text(PLAIN)
    (done,) = optdsl.compile(path)
    assert [file.name for file in done.files] == [f"{'x' * 240}{end}" for end in (".py", ".c", ".triton.py")]
    assert stepped(optdsl.load(path)) == pytest.approx(0.995)


# ---- how files are written -------------------------------------------------------------------------------


def test_an_unchanged_file_is_left_alone(plain):
    (done,) = optdsl.compile(plain)
    for file in done.files:
        os.utime(file, (1, 1))
    optdsl.compile(plain)
    assert [file.stat().st_mtime for file in done.files] == [1, 1, 1]
    plain.write_text(PLAIN.replace("1e-2", "2e-2"))
    optdsl.compile(plain)
    assert all(file.stat().st_mtime > 1 for file in done.files)


@pytest.mark.parametrize(
    ("function", "number", "kept"),
    [
        *(
            ("replace", n, kept)
            for n in (1, 2, 3)
            for kept in ((), ("plain.py",), ("plain.c",), ("plain.py", "plain.c", "plain.triton.py"))
        ),
        ("chmod", 1, ("plain.py",)),  # only a file that is there has permissions to keep
        ("chmod", 1, ("plain.c",)),
        ("chmod", 3, ("plain.py", "plain.c", "plain.triton.py")),
    ],
)
@pytest.mark.parametrize(
    "problem", [OSError(28, "No space left on device", "a temporary name"), KeyboardInterrupt()]
)
def test_a_failing_write_leaves_all_old_files(plain, tmp_path, monkeypatch, function, number, problem, kept):
    """Whichever of the files it is that cannot be put in place."""
    for name in kept:
        (tmp_path / name).write_text(f"old {name}")
    calls, real = [], getattr(os, function)

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise problem
        real(*arguments)

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(problem), match=r"|No space left on device: '.*plain\.(py|c|triton\.py)'"):
        optdsl.compile(plain)
    assert files(tmp_path) == {"plain.opt", *kept}
    for name in kept:
        assert (tmp_path / name).read_text() == f"old {name}"


def test_a_write_that_breaks_off_leaves_the_old_file(plain, tmp_path):
    targets = [tmp_path / "plain.py", tmp_path / "plain.c"]
    for target in targets:
        target.write_text("old")
    script = (
        "import resource, signal, sys\n"
        "from optdsl import driver\n"
        "driver.compile(sys.argv[1], out='elsewhere')\n"  # what is kept between runs is written by now
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "driver.compile(sys.argv[1])\n"
    )
    run = python("-c", script, plain, cwd=tmp_path, PYTHONDONTWRITEBYTECODE="1")
    assert run.returncode == 1
    assert re.search(r"OSError: \[Errno \d+\] File too large: '.*plain\.(py|c|triton\.py)'\n$", run.stderr), (
        run.stderr
    )
    assert [target.read_text() for target in targets] == ["old", "old"]
    assert files(tmp_path) == {"plain.opt", "plain.py", "plain.c", "elsewhere"}


def test_a_file_keeps_its_permissions_and_a_link_stays_one(plain, tmp_path):
    target = tmp_path / "real" / "file.py"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "plain.py").symlink_to(target)
    optdsl.compile(plain)
    assert (tmp_path / "plain.py").is_symlink()
    assert "class Plain" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o640
    assert files(target.parent) == {"file.py"}


def test_a_new_file_has_the_permissions_of_new_files(plain, tmp_path):
    (tmp_path / "other").write_text("")
    (done,) = optdsl.compile(plain)
    assert done.files[0].stat().st_mode == (tmp_path / "other").stat().st_mode


WRITER = """
import sys
from pathlib import Path
from optdsl import driver
for number in range(150):
    driver.write(Path(sys.argv[1]), sys.argv[2] * (1 + number % 2) * 20000 + "end")
"""


def test_no_reader_sees_half_a_file(tmp_path):
    target = tmp_path / "shared.py"
    target.write_text("end")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, target, letter], cwd=ROOT) for letter in "abcd"
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        text = target.read_text()
        assert text.endswith("end"), len(text)
        assert text == "end" or text == text[0] * (len(text) - 3) + "end"
        seen.add((text[0], len(text)))
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0]
    assert len(seen) > 1
    assert files(tmp_path) == {"shared.py"}


def few(folder):
    """The specs in a folder that tests of all methods pick."""
    return [f"{folder}/{name}.opt" for name in PICKED]


def generated_few():
    """What is generated of them."""
    return {name: data for name, data in contents(GENERATED).items() if name.partition(".")[0] in PICKED}


def test_two_processes_compile_the_same_at_once(tmp_path):
    out = tmp_path / "out"
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "optdsl", "compile", *few(ROOT / "specs"), "-o", out, "-q"],
            cwd=ROOT,
            env={**os.environ, "OPTDSL_CACHE": str(tmp_path / "cache")},
        )
        for _ in range(3)
    ]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert contents(out) == generated_few()


def test_a_folder_without_permission_is_a_clear_error(plain):
    optdsl.compile(plain)  # loads what is needed, while this process may read everything
    with unwritable() as folder:
        with pytest.raises(PermissionError) as caught:
            driver.write(folder / "plain.py", "text")
        assert caught.value.filename == str(folder / "plain.py")
        with pytest.raises(PermissionError) as caught:
            driver.write(folder / "deeper" / "plain.py", "text")
        assert caught.value.filename == str(folder / "deeper" / "plain.py")
    assert isinstance(caught.value, OSError)


def test_a_file_in_place_of_the_folder_is_a_clear_error(plain, tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(NotADirectoryError, match=r"not a folder: '.*/file'"):
        optdsl.compile(plain, out=tmp_path / "file")
    (tmp_path / "plain.py").mkdir()
    with pytest.raises(IsADirectoryError, match=r"plain\.py'"):
        optdsl.compile(plain)
    assert files(tmp_path) == {"file", "plain.opt", "plain.py"}
    (tmp_path / "plain.py").rmdir()
    (tmp_path / "plain.c").mkdir()
    with pytest.raises(IsADirectoryError, match=r"plain\.c'"):
        optdsl.compile(plain)
    assert files(tmp_path) == {"file", "plain.opt", "plain.c"}


# ---- files that do not belong together -------------------------------------------------------------------


def other_kernels(folder):
    """Compiles another version of the spec, of which only the C file arrives in `folder`."""
    (folder / "other").mkdir()
    (folder / "other" / "plain.opt").write_text(PLAIN.replace("lr * g", "2 * lr * g"))
    optdsl.compile(folder / "other" / "plain.opt")
    (folder / "plain.c").write_bytes((folder / "other" / "plain.c").read_bytes())


def test_a_c_file_that_does_not_belong_to_the_class_is_not_used(plain, tmp_path):
    (done,) = optdsl.compile(plain)
    other_kernels(tmp_path)
    cls = class_of(module_of(done.files[0], "plain_with_other_kernels"))
    message = r"plain\.c is not the file that belongs to the class; compile its spec again"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        assert stepped(cls) == pytest.approx(0.995)
    assert caught[0].filename == __file__
    assert stepped(lambda params: cls(params, fused=False)) == pytest.approx(0.995)
    optdsl.compile(plain)
    cls = class_of(module_of(done.files[0], "plain_compiled_again"))
    assert stepped(lambda params: cls(params, fused=True)) == pytest.approx(0.995)


@pytest.mark.parametrize(
    "change", [lambda c: c.unlink(), lambda c: c.write_bytes(b""), lambda c: c.write_bytes(b"\xff")]
)
def test_a_c_file_that_is_gone_or_damaged_is_told(plain, change):
    (done,) = optdsl.compile(plain)
    change(done.files[1])
    cls = class_of(module_of(done.files[0], "plain_without_kernels"))
    with pytest.warns(RuntimeWarning, match=r"plain\.c.*; compile its spec again"):
        assert stepped(cls) == pytest.approx(0.995)


def test_the_c_file_is_found_wherever_the_class_is(plain, tmp_path):
    """In a module that nobody registered, and for a class derived in another folder."""
    (done,) = optdsl.compile(plain)
    spec = importlib.util.spec_from_file_location("never_registered", done.files[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Derived(module.Plain):
        pass

    for cls in (module.Plain, Derived):
        assert stepped(lambda params, cls=cls: cls(params, fused=True)) == pytest.approx(0.995)


def test_a_class_that_comes_from_no_file_has_no_kernels(plain):
    space = {"__name__": "from_no_file"}
    exec(driver.emit(driver.check_path(plain).require(), plain)["plain.py"], space)
    with pytest.warns(RuntimeWarning, match="the class does not come from a file"):
        assert stepped(space["Plain"]) == pytest.approx(0.995)


# ---- the same bytes every time ---------------------------------------------------------------------------


def test_generated_files_are_what_the_compiler_makes_of_the_specs(tmp_path):
    done = optdsl.compile(ROOT / "specs", out=tmp_path)
    assert [result.diagnostics for result in done] == [()] * len(SHIPPED)
    made, kept = contents(tmp_path), contents(GENERATED)
    assert made.keys() == kept.keys(), "run `make generate`"
    for name, data in made.items():
        assert data.decode() == kept[name].decode(), "run `make generate`"


@pytest.mark.parametrize("form", ["relative", "absolute", "roundabout"])
def test_bytes_depend_on_neither_hash_seed_nor_folder_nor_path(tmp_path, form):
    seed, cwd, specs = {
        "relative": ("1", ROOT, few("specs")),
        "absolute": ("2", tmp_path, [str(ROOT / "specs")]),
        "roundabout": ("3", ROOT / "tests", few("../optdsl/../specs")),
    }[form]
    whole = form == "absolute"
    out = tmp_path / "out"
    good(command("compile", *specs, "-o", out, "-q", cwd=cwd, PYTHONHASHSEED=seed))
    again = tmp_path / "again"
    good(command("compile", *specs, "-o", again, "-q", "--standalone", cwd=cwd, PYTHONHASHSEED=seed))
    assert contents(out) == (contents(GENERATED) if whole else generated_few())
    assert files(again) == {f"{name}.py" for name in (NAMES if whole else PICKED)}
    (other,) = optdsl.compile(locate("adamw"), out=tmp_path / "here", standalone=True)
    assert other.files[0].read_bytes() == (again / "adamw.py").read_bytes()


def test_where_a_spec_lies_does_not_matter(tmp_path):
    texts = []
    for folder in ("one", "another"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "plain.opt").write_text(PLAIN)
        (done,) = optdsl.compile(tmp_path / folder)
        texts.append([file.read_text() for file in done.files])
    assert texts[0] == texts[1]


# ---- load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICKED)
def test_a_name_gives_the_class_of_the_zoo(name):
    loaded = optdsl.load(name)
    assert loaded is getattr(zoo, loaded.__name__)
    assert loaded.__module__ == f"optdsl.zoo.{name}"
    assert loaded is optdsl.load(ROOT / "specs" / f"{name}.opt")


@pytest.mark.parametrize("name", ["adamw", "AdamW", "ADAMW", Path("adamw")])
def test_names_are_found_in_any_case(name):
    assert optdsl.load(name) is zoo.AdamW


def test_a_path_relative_or_absolute_gives_the_same_class(plain, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    loaded = [optdsl.load(form) for form in ("plain.opt", "./plain.opt", str(plain), plain)]
    assert all(item is loaded[0] for item in loaded)
    assert stepped(loaded[0]) == pytest.approx(0.995)
    assert len(list(cache.glob("optdsl_spec_plain_*"))) == 1


def test_a_changed_spec_gives_a_new_class(plain, cache):
    before = optdsl.load(plain)
    plain.write_text(PLAIN.replace("lr * g", "2 * lr * g"))
    after = optdsl.load(plain)
    assert after is not before
    assert (stepped(before), stepped(after)) == (pytest.approx(0.995), pytest.approx(0.99))
    plain.write_text(PLAIN)
    assert optdsl.load(plain) is before


def test_a_changed_import_gives_a_new_class(tmp_path, cache):
    (tmp_path / "rules.opt").write_text("def scaled(x): return 1.0 * x\n")
    spec = tmp_path / "using.opt"
    spec.write_text('import "rules.opt"\n\n' + PLAIN.replace("lr * g", "lr * scaled(g)"))
    before = optdsl.load(spec)
    (tmp_path / "rules.opt").write_text("def scaled(x): return 3.0 * x\n")
    assert stepped(before) == pytest.approx(0.995)
    assert stepped(optdsl.load(spec)) == pytest.approx(0.985)


def test_a_copy_of_a_shipped_spec_is_compiled(tmp_path, cache):
    copied = tmp_path / "adamw.opt"
    copied.write_bytes(locate("adamw").read_bytes())
    assert optdsl.load(copied) is not zoo.AdamW
    assert stepped(optdsl.load(copied)) == stepped(zoo.AdamW)


def test_a_generated_file_of_another_revision_is_not_used(monkeypatch, cache):
    monkeypatch.setattr("optdsl.backends.revision.REVISION", 999)
    loaded = optdsl.load("adamw")
    assert loaded is not zoo.AdamW
    assert stepped(loaded) == stepped(zoo.AdamW)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rmsporp", "there is no shipped spec `rmsporp`; did you mean `rmsprop`?"),
        ("Lin", "there is no shipped spec `Lin`; did you mean `lion`?"),
        ("zzzz", "`optdsl list` shows the shipped ones"),
        ("", "there is no shipped spec ``"),
        ("nowhere.opt", "there is no spec at `nowhere.opt`"),
        ("folder/adamw", "there is no spec at `folder/adamw`"),
        ("nul\0.opt", "there is no spec at"),
    ],
)
def test_unknown_names_and_paths(name, message):
    with pytest.raises(FileNotFoundError) as caught:
        optdsl.load(name)
    assert message in str(caught.value)


def test_a_folder_is_no_spec(tmp_path):
    (tmp_path / "mine.opt").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no spec at `.*mine\.opt`, which is a folder"):
        optdsl.load(tmp_path / "mine.opt")


def test_a_spec_with_mistakes_raises_all_of_them_and_writes_nothing(tmp_path, cache):
    (tmp_path / "bad.opt").write_text(BAD)
    with pytest.raises(SpecError) as caught:
        optdsl.load(tmp_path / "bad.opt")
    assert [d.code for d in caught.value.diagnostics] == ["E0301", "E0301"]
    assert "bad.opt:6:22" in str(caught.value)
    assert not list(cache.glob("optdsl_spec_*"))


@pytest.mark.parametrize("text", [TRANSFORM, "def half(x): return 0.5 * x\n"])
def test_a_spec_without_an_optimizer_says_so(tmp_path, cache, text):
    (tmp_path / "halve.opt").write_text(text)
    with pytest.raises(SpecError, match="no optimizer"):
        optdsl.load(tmp_path / "halve.opt")
    with pytest.raises(SpecError, match="E0109"):
        driver.show(tmp_path / "halve.opt", "program")


def test_what_looks_like_a_mistake_is_a_warning(tmp_path, cache):
    path = tmp_path / "odd.opt"
    path.write_text(PLAIN.replace("    step:", "        mu = 0.5 in [0, 1)\n\n    step:"))
    with pytest.warns(SpecWarning, match="W0701") as caught:
        optdsl.load(path)
    assert caught[0].filename == __file__


def test_a_cache_that_cannot_be_made_is_done_without(plain, tmp_path, monkeypatch, cache):
    (tmp_path / "file").write_text("old")
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "file" / "cache"))
    loaded = optdsl.load(plain)
    assert stepped(loaded) == pytest.approx(0.995)
    assert optdsl.load(plain) is loaded
    assert files(tmp_path) == {"file", "plain.opt"}


def test_a_cache_that_cannot_be_written_is_done_without(plain, monkeypatch, cache):
    cache.mkdir()
    write_together = driver.write_together

    def refuse(data):
        for path in data:
            if path.is_relative_to(cache):
                raise PermissionError(13, "Permission denied", str(path))
        write_together(data)

    monkeypatch.setattr(driver, "write_together", refuse)
    loaded = optdsl.load(plain)
    assert stepped(lambda params: loaded(params, fused=False)) == pytest.approx(0.995)
    assert files(cache) == set()
    assert stepped(lambda params: loaded(params, fused=True)) == pytest.approx(0.995)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "chosen"))
    assert driver.cache_dir() == tmp_path / "chosen"
    monkeypatch.setenv("OPTDSL_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert driver.cache_dir() == tmp_path / "xdg" / "optdsl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert driver.cache_dir() == tmp_path / "home" / ".cache" / "optdsl"


def test_a_damaged_file_in_the_cache_is_replaced(plain, cache):
    optdsl.load(plain)
    (folder,) = cache.glob("optdsl_spec_plain_*")
    before = contents(folder)
    (folder / "plain.py").write_text("raise AssertionError")
    (folder / "plain.c").write_text("#error")
    sys.modules.pop(folder.name)
    assert stepped(optdsl.load(plain)) == pytest.approx(0.995)
    assert contents(folder) == before


def test_threads_get_one_class(plain, cache):
    plain.write_text(PLAIN.replace("Plain", "Threaded"))
    start, found = threading.Barrier(6), []

    def work():
        start.wait()
        found.append(optdsl.load(plain))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


# ---- the zoo ---------------------------------------------------------------------------------------------


def test_the_zoo_holds_a_class_for_every_spec():
    classes = [optdsl.load(name).__name__ for name in NAMES]
    assert dir(zoo) == sorted(classes)
    assert {"AdamW", "SGD", "Lion", "RMSprop"} <= set(dir(zoo))
    assert all(issubclass(getattr(zoo, name), torch.optim.Optimizer) for name in classes)


def test_ways_to_import_from_the_zoo(tmp_path):
    script = (
        "from optdsl.zoo import AdamW\n"
        "from optdsl.zoo.adamw import AdamW as same\n"
        "import optdsl\n"
        "assert AdamW is same is optdsl.zoo.AdamW is optdsl.load('adamw')\n"
        "space = {}\n"
        "exec('from optdsl.zoo import *', space)\n"
        "space.pop('__builtins__')\n"
        "assert sorted(space) == dir(optdsl.zoo), space\n"
        "assert optdsl.zoo.adamw.AdamW is AdamW\n"
    )
    good(python("-c", script, cwd=tmp_path))


def test_an_unknown_optimizer_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no optimizer 'AdmaW'; did you mean `AdamW`"):
        _ = zoo.AdmaW
    with pytest.raises(AttributeError, match=r"no optimizer 'Qqqq'$"):
        _ = zoo.Qqqq
    with pytest.raises(ImportError, match="cannot import name 'Qqqq'"):
        from optdsl.zoo import Qqqq  # noqa: F401
    assert not hasattr(zoo, "__wrapped__")


def shipped_optimizer(name, params=None):
    """An optimizer of a shipped class that has taken two steps, and its parameters."""
    if params is None:
        generator = torch.Generator().manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), ())]
    optimizer = optdsl.load(name)(params, lr=0.01)
    advance(optimizer, 0)
    return optimizer


def advance(optimizer, first):
    """Two more steps; returns copies of the parameters."""
    params = optimizer.param_groups[0]["params"]
    for number in (first, first + 1):
        generator = torch.Generator().manual_seed(100 + number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in params]


CONTINUE = """
import pickle, sys
import torch
sys.path.insert(0, sys.argv[1])
from tests.test_driver import advance
with open("optimizers.pkl", "rb") as file:
    optimizers = pickle.load(file)
assert "optdsl.check" not in sys.modules or True
torch.save({name: advance(optimizer, 2) for name, optimizer in optimizers.items()}, "after.pt")
"""


def test_pickled_optimizers_go_on_in_another_process(tmp_path):
    optimizers = {name: shipped_optimizer(name) for name in PICKED}
    (tmp_path / "optimizers.pkl").write_bytes(pickle.dumps(optimizers))
    good(python("-c", CONTINUE, ROOT, cwd=tmp_path))
    after = torch.load(tmp_path / "after.pt")
    for name, optimizer in optimizers.items():
        for mine, other in zip(advance(optimizer, 2), after[name], strict=True):
            assert torch.equal(mine, other), name


@pytest.mark.parametrize("name", PICKED)
def test_copies_and_checkpoints_go_on_alike(name):
    optimizer = shipped_optimizer(name)
    copied = copy.deepcopy(optimizer)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    params = copy.deepcopy(optimizer.param_groups[0]["params"])
    fresh = optdsl.load(name)(params)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    results = [advance(item, 2) for item in (optimizer, copied, fresh)]
    for each in zip(*results, strict=True):
        assert torch.equal(each[0], each[1])
        assert torch.equal(each[0], each[2])


# ---- show ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICKED)
def test_every_stage_of_every_spec_can_be_shown(name):
    path = locate(name)
    shown = {stage: driver.show(path, stage) for stage in driver.STAGES}
    assert all(text.endswith("\n") and text.strip() for text in shown.values())
    title = optdsl.load(name).__name__
    assert f"name: {title!r}" in shown["syntax"]
    assert "optimizer" in shown["syntax"]
    for stage in ("program", "simplified", "lowered"):
        assert shown[stage].startswith(f"program {title}\n")
    again = check_text(shown["opt"])
    assert again.errors == ()
    assert driver.show(path, "program").count("\n") == shown["program"].count("\n")
    assert (
        shown["torch"]
        == driver.emit(driver.simplify(driver.check_path(path).require()), path, ["torch"])[f"{name}.py"]
    )
    ast.parse(shown["torch"])
    assert shown["cpu"] == (GENERATED / f"{name}.c").read_text()
    assert shown["plan"].startswith("plan when ")


def test_the_syntax_of_a_spec_without_an_optimizer_can_be_shown(tmp_path):
    path = tmp_path / "halve.opt"
    path.write_text(TRANSFORM)
    assert "kind: 'transform'" in driver.show(path, "syntax")


def test_a_spec_with_mistakes_cannot_be_shown(tmp_path):
    path = tmp_path / "bad.opt"
    path.write_text(BAD)
    assert "Bad" in driver.show(path, "syntax")
    for stage in driver.STAGES[1:]:
        with pytest.raises(SpecError, match="E0301"):
            driver.show(path, stage)
    path.write_text("optimizer Bad\n")
    with pytest.raises(SpecError, match="E0101"):
        driver.show(path, "syntax")


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="no stage `troch`; did you mean `torch`"):
        driver.show(locate("sgd"), "troch")


# ---- a process that compiles -----------------------------------------------------------------------------

MODULES = """
import json, sys
from optdsl.cli import main
assert main(sys.argv[1:]) == 0
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("name", PICKED)
def test_compiling_loads_nothing_heavy(name, tmp_path):
    run = python("-c", MODULES, "compile", name, "-o", tmp_path, "-q", cwd=tmp_path)
    loaded = set(json.loads(good(run)))
    assert loaded.isdisjoint({"torch", "triton", "numpy", "sympy"})


def test_a_cold_compile_is_quick(tmp_path, capsys):
    """At most 0.15 s of CPU time; the limit here leaves room for a busy machine."""
    (tmp_path / "one.opt").write_bytes(locate("adamw").read_bytes())
    kept = {"OPTDSL_CACHE": str(tmp_path / "cache"), "PYTHONPYCACHEPREFIX": str(tmp_path / "pyc")}
    times = []
    for _ in range(4):  # the first fills the caches
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = command("compile", "one.opt", cwd=tmp_path, PYTHONDONTWRITEBYTECODE=None, **kept)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        good(run)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    with capsys.disabled():
        print(f"\nCPU time of `optdsl compile one.opt`: {min(times[1:]):.3f} s, first run {times[0]:.3f} s")
    assert min(times[1:]) < 0.3
