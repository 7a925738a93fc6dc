"""The command line: every command in a process of its own, as a person or a script meets it."""

import ast
import hashlib
import itertools
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time

import pytest

from optdsl import __version__, driver
from optdsl.cli import _parser, main
from optdsl.lang.diagnostics import CODES
from tests.support import BAD, NAMES, PLAIN, ROOT, SHIPPED, TRANSFORM, command, environment, files, good

COMMANDS = ("check", "compile", "fmt", "show", "list", "new", "bench", "explain")
UGLY = PLAIN.replace("p = p - lr * g", "p=p-lr*g")


@pytest.fixture
def folder(tmp_path):
    """Three specs: without mistakes, with two of them, and a transform."""
    (tmp_path / "plain.opt").write_text(PLAIN)
    (tmp_path / "bad.opt").write_text(BAD)
    (tmp_path / "halve.opt").write_text(TRANSFORM)
    return tmp_path


@pytest.fixture
def here(folder, monkeypatch):
    """The same as the current folder, for commands run in this process."""
    monkeypatch.chdir(folder)
    return folder


# ---- help and usage --------------------------------------------------------------------------------------


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in COMMANDS)


def test_help_lists_the_commands_and_examples(tmp_path):
    out = good(command("--help", cwd=tmp_path))
    assert all(f"    {name} " in out for name in COMMANDS)
    assert "examples:" in out


def commands_in(text):
    """The command lines of the examples in a help text."""
    lines = text.split("examples:\n")[1].splitlines()
    return [shlex.split(line.split("   ")[0]) for line in (line.strip() for line in lines) if line]


@pytest.mark.parametrize("name", ("", *COMMANDS))
def test_the_examples_of_every_help_text_are_right(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    examples = commands_in(capsys.readouterr().out)
    assert examples
    for program, *words in examples:
        assert program == "optdsl"
        words = words[: words.index("<")] if "<" in words else words
        words = words[: words.index(">")] if ">" in words else words
        assert _parser().parse_args(words).run
        assert name in ("", words[0])


def test_the_commands_of_the_readme_exist():
    readme = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"`optdsl {name}" in readme, name


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"optdsl {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["check"],
        ["compile"],
        ["compile", "--nope", "adamw"],
        ["compile", "adamw", "--backend", "jax"],
        ["check", "adamw", "--format", "xml"],
        ["show", "adamw", "--stage", "nope"],
        ["fmt"],
        ["new"],
        ["explain"],
        ["bench"],
        ["bench", "adamw", "--threads", "0"],
        ["bench", "adamw", "--threads", "1,x"],
        ["bench", "adamw", "--dtype", "f16"],
        ["bench", "adamw", "--repeat", "-1"],
        ["bench", "adamw", "--time-limit", "nan"],
    ],
)
def test_wrong_usage(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("usage: optdsl")


# ---- check -----------------------------------------------------------------------------------------------


def test_check_without_mistakes(folder):
    run = command("check", "plain.opt", "adamw", cwd=folder)
    assert good(run) == "2 specs without mistakes\n"
    assert run.stderr == ""
    assert good(command("check", "plain.opt", cwd=folder)) == "1 spec without mistakes\n"


def test_check_tells_every_mistake(folder):
    run = command("check", ".", cwd=folder)
    assert (run.returncode, run.stdout) == (1, "")
    assert "error[E0301]" in run.stderr
    assert "--> bad.opt:6:22" in run.stderr
    assert "p = p - lr * grad\n" in run.stderr
    assert "^^^^\n" in run.stderr
    assert run.stderr.endswith("2 errors\n")


def test_check_as_json(folder):
    run = command("check", ".", "--format", "json", cwd=folder)
    assert (run.returncode, run.stderr) == (1, "")
    first, second = json.loads(run.stdout)
    assert first == {
        "code": "E0301",
        "severity": "error",
        "path": "bad.opt",
        "line": 6,
        "column": 22,
        "end_line": 6,
        "end_column": 26,
        "message": first["message"],
        "help": first["help"],
    }
    assert (second["code"], second["line"]) == ("E0301", 7)
    assert json.loads(good(command("check", "plain.opt", "--format", "json", cwd=folder))) == []


def test_warnings_are_no_failure(folder):
    (folder / "odd.opt").write_text(PLAIN.replace("    step:", "        mu = 0.5 in [0, 1)\n\n    step:"))
    run = command("check", "odd.opt", cwd=folder)
    assert good(run) == "1 spec without mistakes\n"
    assert "warning[W0701]" in run.stderr
    (found,) = json.loads(good(command("check", "odd.opt", "--format", "json", cwd=folder)))
    assert found["severity"] == "warning"


@pytest.mark.parametrize("verb", ["check", "compile", "show", "fmt"])
@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.opt", "missing.opt`"), ("amsgard", "`amsgard`")],
)
def test_what_is_not_there(here, verb, name, message, capsys):
    assert main([verb, name]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("optdsl: there is no ")
    assert message in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["check", "compile"])
def test_a_folder_without_specs(here, verb, capsys):
    (here / "empty").mkdir()
    assert main([verb, "empty"]) == 2
    assert capsys.readouterr().err == "optdsl: there is no .opt file in empty\n"


@pytest.mark.parametrize(
    ("content", "code"), [(b"\xff\xfe", "E0002"), (b"#" * 300_000, "E0003"), (b"", "E0109")]
)
def test_files_that_are_no_specs(here, content, code, capsys):
    (here / "odd.opt").write_bytes(content)
    for verb in ("check", "compile", "show"):
        assert main([verb, "odd.opt"]) == 1
        said = capsys.readouterr()
        assert f"error[{code}]" in said.err
        assert said.out == ""


# ---- compile ---------------------------------------------------------------------------------------------


def test_compile_writes_beside_the_spec_and_says_so(folder):
    run = command("compile", "plain.opt", cwd=folder)
    assert good(run) == "plain.opt -> plain.py, plain.c, plain.triton.py (Plain)\n"
    assert run.stderr == ""
    assert "class Plain(Optimizer):" in (folder / "plain.py").read_text()
    assert "optdsl_run" not in (folder / "plain.py").read_text()
    assert '#include "kernel.h"' in (folder / "plain.c").read_text()


def test_compile_says_why_there_are_no_kernels(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    update = "lr * newton_schulz(normal() * newton_schulz(g, 3), 3)"
    (folder / "spectral.opt").write_text(PLAIN.replace("lr * g", update))
    assert main(["compile", "spectral.opt"]) == 0
    why = "random numbers are drawn between its matrix products"
    said = f"spectral.opt -> spectral.py (Plain, without native kernels: {why})\n"
    assert capsys.readouterr().out == said
    assert main(["compile", "spectral.opt", "--backend", "torch"]) == 0
    assert capsys.readouterr().out == "spectral.opt -> spectral.py (Plain)\n"
    assert "spectral.c" not in files(folder)
    assert main(["show", "spectral.opt", "--stage", "cpu"]) == 0
    assert capsys.readouterr().out == f"/* no native kernels: {why} */\n"


def test_one_bad_spec_does_not_stop_the_others(folder):
    run = command("compile", ".", "-o", "out", cwd=folder)
    assert run.returncode == 1
    assert sorted(run.stdout.splitlines()) == [
        "halve.opt: transform, used by other specs; nothing to write",
        "plain.opt -> out/plain.py, out/plain.c, out/plain.triton.py (Plain)",
    ]
    assert run.stderr.endswith("2 errors\n")
    assert files(folder / "out") == {"plain.py", "plain.c", "plain.triton.py"}


def test_quiet_prints_messages_only(folder):
    run = command("compile", ".", "-o", "out", "-q", cwd=folder)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.endswith("2 errors\n")


def test_compile_as_json(folder):
    run = command("compile", ".", "-o", "out", "--format", "json", cwd=folder)
    assert (run.returncode, run.stderr) == (1, "")
    assert [found["code"] for found in json.loads(run.stdout)] == ["E0301", "E0301"]
    assert files(folder / "out") == {"plain.py", "plain.c", "plain.triton.py"}
    run = command("compile", "plain.opt", "halve.opt", "--format", "json", cwd=folder)
    assert json.loads(good(run)) == []


def test_compile_a_shipped_spec(here, capsys):
    assert main(["compile", "adamw"]) == 2
    assert "say with -o where to write" in capsys.readouterr().err
    assert main(["compile", "AdamW", "plain.opt", "-o", "."]) == 0
    for name in ("adamw.py", "adamw.c", "adamw.triton.py"):
        assert (here / name).read_text() == (ROOT / "generated" / name).read_text()
    assert (here / "plain.py").is_file()


@pytest.mark.parametrize(
    ("backends", "made"),
    [
        ("torch", {"lion.py"}),
        ("cpu", {"lion.py", "lion.c"}),
        ("triton", {"lion.py", "lion.triton.py"}),
        ("triton cpu torch", {"lion.py", "lion.c", "lion.triton.py"}),
    ],
)
def test_compile_for_chosen_backends(tmp_path, backends, made, capsys):
    words = [word for backend in backends.split() for word in ("--backend", backend)]
    assert main(["compile", "lion", "-o", str(tmp_path), *words]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert files(tmp_path) == made
    same = (tmp_path / "lion.py").read_text() == (ROOT / "generated" / "lion.py").read_text()
    assert same is (len(made) == 3)


def test_compile_standalone(here, capsys):
    assert main(["compile", "plain.opt", "--standalone", "--backend", "cpu"]) == 2
    assert "a standalone file has no native kernels" in capsys.readouterr().err
    assert "plain.py" not in files(here)
    assert main(["compile", "plain.opt", "--standalone"]) == 0
    assert "plain.c" not in files(here)
    text = (here / "plain.py").read_text()
    assert "import optdsl" not in text
    assert "from optdsl" not in text
    ast.parse(text)


def test_a_standalone_file_cannot_use_a_name_twice(here, capsys):
    (here / "unit.opt").write_text(PLAIN.replace("Plain", "Unit"))
    assert main(["compile", "unit.opt"]) == 0
    (here / "unit.py").unlink()
    (here / "unit.c").unlink()
    (here / "unit.triton.py").unlink()
    assert main(["compile", "unit.opt", "--standalone"]) == 2
    assert "uses `Unit` for something else" in capsys.readouterr().err
    assert not files(here) & {"unit.py", "unit.c", "unit.triton.py"}


def test_a_place_that_cannot_be_written(here, capsys):
    assert main(["compile", "plain.opt", "-o", "plain.opt"]) == 2
    assert capsys.readouterr().err == "optdsl: plain.opt: not a folder\n"
    assert (here / "plain.opt").read_text() == PLAIN


def test_names_that_the_terminal_cannot_show(tmp_path):
    odd = tmp_path / os.fsdecode(b"odd\xff.opt")
    try:
        odd.write_text(PLAIN)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    run = command("compile", ".", cwd=tmp_path, LC_ALL="C.UTF-8", PYTHONUTF8="1")
    assert good(run) == "odd\\udcff.opt -> odd_.py, odd_.c, odd_.triton.py (Plain)\n"
    (tmp_path / "größe.opt").write_text(PLAIN)
    run = command("compile", "größe.opt", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert good(run) == "gr\\xf6\\xdfe.opt -> gr__e.py, gr__e.c, gr__e.triton.py (Plain)\n"


# ---- fmt -------------------------------------------------------------------------------------------------


def test_fmt_changes_what_is_not_laid_out(folder):
    (folder / "ugly.opt").write_text(UGLY)
    (folder / "sub").mkdir()
    (folder / "sub" / "ugly.opt").write_text(UGLY)
    before = (folder / "plain.opt").stat().st_mtime_ns
    assert good(command("fmt", ".", cwd=folder)) == "formatted sub/ugly.opt\nformatted ugly.opt\n"
    assert (folder / "ugly.opt").read_text() == (folder / "sub" / "ugly.opt").read_text() == PLAIN
    assert (folder / "plain.opt").stat().st_mtime_ns == before
    assert good(command("fmt", ".", cwd=folder)) == ""


def test_fmt_check_changes_nothing(folder):
    (folder / "ugly.opt").write_text(UGLY)
    run = command("fmt", ".", "--check", cwd=folder)
    assert (run.returncode, run.stdout, run.stderr) == (1, "would format ugly.opt\n", "")
    assert (folder / "ugly.opt").read_text() == UGLY
    assert good(command("fmt", "--check", "plain.opt", cwd=folder)) == ""


def test_fmt_goes_on_after_a_file_that_does_not_parse(folder):
    (folder / "apart.opt").write_text("optimizer\n")
    (folder / "ugly.opt").write_text(UGLY)
    run = command("fmt", ".", cwd=folder)
    assert (run.returncode, run.stdout) == (1, "formatted ugly.opt\n")
    assert "apart.opt:1:10" in run.stderr
    assert (folder / "apart.opt").read_text() == "optimizer\n"
    assert (folder / "ugly.opt").read_text() == PLAIN


def fmt_of(data, *words):
    """Exit code, output and messages of `optdsl fmt -` with `data` as its input."""
    run = subprocess.run(
        [sys.executable, "-m", "optdsl", "fmt", "-", *words],
        input=data,
        capture_output=True,
        cwd=ROOT,
        env=environment(PYTHONIOENCODING="ascii"),
        check=False,
    )
    return run.returncode, run.stdout, run.stderr.decode()


def test_fmt_from_standard_input_to_standard_output():
    assert fmt_of(UGLY.encode()) == (0, PLAIN.encode(), "")
    umlaut = PLAIN.replace("Plain descent", "Größe")
    assert fmt_of(umlaut.replace("\n", "\r\n").encode("utf-8-sig")) == (0, umlaut.encode(), "")
    assert fmt_of(UGLY.encode(), "--check") == (1, b"", "")
    assert fmt_of(PLAIN.encode(), "--check") == (0, b"", "")
    code, out, said = fmt_of(b"optimizer\n")
    assert (code, out) == (1, b"")
    assert "--> <stdin>:1:10" in said
    for data, told in (
        (b"# x\n \xff", "error[E0002]: byte 0xff is not valid UTF-8\n --> <stdin>:2:2\n"),
        (b"#" * 70000, "error[E0003]: the file is larger than 64 KiB\n --> <stdin>:1:1\n"),
    ):
        code, out, said = fmt_of(data)
        assert (code, out) == (1, b"")
        assert said.startswith(told)


def test_the_shipped_specs_are_formatted(capsys):
    assert main(["fmt", "--check", str(ROOT / "specs")]) == 0
    assert capsys.readouterr().out == ""


# ---- show, list, new, explain ----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", driver.STAGES)
def test_show(stage, capsys):
    assert main(["show", "lion", "--stage", stage]) == 0
    assert capsys.readouterr().out == driver.show(driver.locate("lion"), stage)


def test_show_gives_the_torch_file_by_default(here, capsys):
    assert main(["show", "AdamW"]) == 0
    shown = capsys.readouterr().out
    assert main(["compile", "adamw", "-o", "out", "--backend", "torch", "-q"]) == 0
    assert shown == (here / "out" / "adamw.py").read_text()
    assert main(["show", "plain.opt"]) == 0
    assert "class Plain" in capsys.readouterr().out
    for name, code in (("bad.opt", "E0301"), ("halve.opt", "E0109")):
        assert main(["show", name]) == 1
        said = capsys.readouterr()
        assert (said.out, f"error[{code}]" in said.err) == ("", True)


def test_list(tmp_path, capsys):
    lines = good(command("list", cwd=tmp_path)).splitlines()
    head = ["NAME", "CLASS", "STATES", "BYTES", "MOVED", "SWEEPS", "SOURCE", "WHAT", "IT", "IS"]
    assert lines[0].split() == head
    assert [line.split()[0] for line in lines[1:]] == NAMES
    (adamw,) = (line.split(None, 6) for line in lines if line.startswith("adamw "))
    assert adamw[:6] == ["adamw", "AdamW", "2", "8", "28", "1"]
    assert adamw[6].startswith("Loshchilov and Hutter 2019")
    assert "Adam with decoupled weight decay" in adamw[6]
    page = good(command("list", "--markdown", cwd=tmp_path))
    assert page == (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8"), "run `make generate`"
    assert "As pytorch\\_optimizer's Tiger." in page  # escaped once
    assert main(["list", "--names"]) == 0
    assert capsys.readouterr().out.split() == NAMES == [path.stem for path in SHIPPED]


@pytest.mark.parametrize(
    ("name", "file", "title"),
    [
        ("my_method", "my_method.opt", "MyMethod"),
        ("AdamX.opt", "AdamX.opt", "AdamX"),
        ("sub/my-own", "sub/my_own.opt", "MyOwn"),
    ],
)
def test_new_writes_a_spec_that_compiles_and_is_formatted(here, name, file, title, capsys):
    (here / "sub").mkdir()
    assert main(["new", name]) == 0
    assert file in capsys.readouterr().out
    assert f"optimizer {title}:" in (here / file).read_text()
    assert main(["fmt", "--check", file]) == 0
    assert main(["compile", file, "-o", "out"]) == 0
    assert capsys.readouterr().err == ""


def test_new_never_overwrites(here, capsys):
    (here / "mine.opt").write_text("my work\n")
    assert main(["new", "mine"]) == 2
    assert capsys.readouterr().err == "optdsl: mine.opt exists already; nothing was changed\n"
    assert (here / "mine.opt").read_text() == "my work\n"
    (here / "link.opt").symlink_to("nowhere.opt")
    assert main(["new", "link"]) == 2
    assert not (here / "nowhere.opt").exists()


@pytest.mark.parametrize("name", ["", "1st", "a b", "größe", "x;y", "..", "a\nb", "-", "true", "None.opt"])
def test_new_refuses_what_is_no_name(here, name, capsys):
    before = files(here)
    assert main(["new", "--", name]) == 2
    assert "is not a name" in capsys.readouterr().err
    assert files(here) == before


def test_new_in_a_folder_that_is_not_there(here, capsys):
    assert main(["new", "nowhere/mine"]) == 2
    assert capsys.readouterr().err == "optdsl: nowhere/mine.opt: No such file or directory\n"


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(code, capsys):
    assert main(["explain", code.lower()]) == 0
    page = capsys.readouterr().out
    assert code in page
    assert CODES[code] in page
    assert page.endswith("\n")


def test_explain_all_and_unknown_codes(capsys):
    assert main(["explain", "all"]) == 0
    assert capsys.readouterr().out == "".join(f"{code}  {title}\n" for code, title in CODES.items())
    assert main(["explain", "E0399"]) == 2
    assert "no code `E0399`; did you mean `E03" in capsys.readouterr().err
    assert main(["explain", "../../x"]) == 2
    assert "`optdsl explain all` lists them" in capsys.readouterr().err


# ---- colours ---------------------------------------------------------------------------------------------


def on_a_terminal(*words, cwd, **changes):
    """Exit code and everything printed by a command whose output and messages go to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "optdsl", *words],
        cwd=cwd,
        env=environment(**changes),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as run:
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            seen += data
    os.close(ours)
    return run.returncode, seen.decode()


@pytest.mark.parametrize(
    ("changes", "colours"),
    [
        ({"NO_COLOR": None, "TERM": "xterm"}, True),
        ({"NO_COLOR": "", "TERM": "xterm"}, True),
        ({"NO_COLOR": "1", "TERM": "xterm"}, False),
        ({"NO_COLOR": None, "TERM": "dumb"}, False),
    ],
)
def test_colours_on_a_terminal(folder, changes, colours):
    code, seen = on_a_terminal("check", "bad.opt", cwd=folder, **changes)
    assert code == 1
    assert "2 errors" in seen
    assert ("\x1b[1;31merror[E0301]\x1b[0m" in seen) is colours
    assert ("\x1b" in seen) is colours


def test_no_colours_elsewhere(folder):
    run = command("check", "bad.opt", cwd=folder, NO_COLOR=None, TERM="xterm", FORCE_COLOR="1")
    assert "\x1b" not in run.stdout + run.stderr


def test_progress_is_shown_on_a_terminal_only(folder):
    code, seen = on_a_terminal("compile", "plain.opt", "halve.opt", "-o", "out", cwd=folder)
    assert code == 0
    assert seen.startswith("\r\x1b[Kplain.opt\r\x1b[Khalve.opt\r\x1b[K")
    assert "\x1b" not in on_a_terminal("compile", "plain.opt", cwd=folder)[1]
    assert "\x1b" not in on_a_terminal("compile", "plain.opt", "halve.opt", "-q", cwd=folder)[1]
    assert command("compile", "plain.opt", "halve.opt", cwd=folder).stderr == ""


@pytest.mark.parametrize("stage", driver.STAGES)
def test_texts_of_a_spec_do_not_steer_a_terminal(folder, stage):
    (folder / "plain.opt").write_text(PLAIN.replace("learning rate", "\x1b[31mred\u202e"))
    code, seen = on_a_terminal("show", "plain.opt", "--stage", stage, cwd=folder)
    assert code == 0
    assert all(ch.isprintable() or ch in "\r\n" for ch in seen)


# ---- interruption and pipes ------------------------------------------------------------------------------


def interrupted(words, cwd, ready):
    """A command that gets SIGINT as soon as `ready()` holds."""
    run = subprocess.Popen(
        [sys.executable, "-m", "optdsl", *words],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 30
    while not ready(run) and time.monotonic() < until:
        time.sleep(0.01)
    assert run.poll() is None, run.communicate()
    run.send_signal(signal.SIGINT)
    out, said = run.communicate(timeout=30)
    return run.returncode, out, said


def test_an_interrupted_compile_leaves_whole_files(tmp_path):
    adamw = driver.locate("adamw").read_text()
    for number in range(3000):
        (tmp_path / f"spec{number:04}.opt").write_text(adamw)
    out = tmp_path / "out"
    code, printed, said = interrupted(
        ["compile", ".", "-o", "out"], tmp_path, lambda run: any(out.glob("*.py"))
    )
    assert (code, printed) == (130, "")
    assert said == "interrupted; finished files are complete, others are as they were\n"
    written = sorted(out.iterdir())
    assert 0 < len(written) < 9000
    classes = [path for path in written if path.suffixes == [".py"]]
    assert {path.stem for path in written if path.suffix == ".c"} == {path.stem for path in classes}
    assert len(written) == 3 * len(classes)
    for path in (classes[0], classes[-1]):
        ast.parse(path.read_text())
        for end in (".c", ".triton.py"):
            assert hashlib.sha256(path.with_suffix(end).read_bytes()).hexdigest() in path.read_text()


def test_an_interrupted_read(tmp_path):
    pipe = tmp_path / "slow.opt"
    os.mkfifo(pipe)
    opened = []

    def reading(run):
        opened.append(os.open(pipe, os.O_WRONLY))  # waits for the reader
        return True

    code, printed, said = interrupted(["check", "slow.opt"], tmp_path, reading)
    os.close(*opened)
    assert (code, printed) == (130, "")
    assert said.startswith("interrupted")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    # the list takes long to make, so that it is tried once
    [("list", ""), *itertools.product(("show adamw", "--help", "compile --help", "explain all"), ("", "1"))],
)
def test_a_reader_that_has_seen_enough(words, unbuffered, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-m", "optdsl", *words.split()],
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED=unbuffered),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    run.stdout.close()  # before the first write
    said = run.stderr.read()
    run.stderr.close()
    # argparse itself does not mind, but in Python before 3.11.3
    quiet = unbuffered and "--help" in words and sys.version_info >= (3, 11, 3)
    assert (run.wait(), said) == (0 if quiet else 128 + signal.SIGPIPE, b"")
