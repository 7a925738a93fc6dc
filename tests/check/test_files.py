"""Several files: `import`, `use` of specs beside a spec, and messages that point into the right file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from optdsl.check import check_path
from optdsl.lang.diagnostics import Diagnostic
from optdsl.resources import data_dir
from tests.check.helpers import spec

EMA = "def ema(x, y, beta): return beta * x + (1 - beta) * y\n"
USES_EMA = spec("m = ema(m, g, 0.9)\np = p - m", state="m = 0")
INNER = spec("p = p - lr * g", "lr = 0.1 in (0, inf)", name="Inner")


def write(folder: Path, **files: str) -> Path:
    """Writes files; double underscores in a name are slashes. Returns the folder."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".opt")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="utf-8")
    return folder


def messages(path: Path) -> list[tuple[str, str, int]]:
    """File, code and line of every message."""
    return [(Path(m.path).stem, m.code, m.span.line) for m in check_path(path).diagnostics]


def one(path: Path, code: str) -> Diagnostic:
    (message,) = check_path(path).diagnostics
    assert message.code == code
    return message


# ---- import


def test_functions_are_imported(tmp_path: Path) -> None:
    write(tmp_path, lib__common=EMA, main='import "lib/common.opt"\n' + USES_EMA)
    assert check_path(tmp_path / "main.opt").require().name == "T"


def test_imports_resolve_beside_the_importing_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        lib__common='import "more.opt"\ndef twice(x): return two() * x\n',
        lib__more="def two(): return 2.0\n",
        main='import "lib/common.opt"\n' + spec("p = p - twice(g)"),
    )
    assert messages(tmp_path / "main.opt") == []


def test_what_a_file_imports_stays_its_own(tmp_path: Path) -> None:
    write(
        tmp_path,
        a='import "b.opt"\ndef f(x): return x\n',
        b=EMA,
        main='import "a.opt"\n' + USES_EMA,
    )
    assert messages(tmp_path / "main.opt") == [("main", "E0302", 6)]


def test_own_functions_win(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="def f(x): return x\n",
        main='import "a.opt"\ndef f(x): return 2 * x\n' + spec("p = p - f(g)"),
    )
    body = check_path(tmp_path / "main.opt").require().body
    assert [a.line for a in body] == [5]
    assert "2" in str(body[0].expr)


def test_two_imports_with_one_name(tmp_path: Path) -> None:
    write(tmp_path, a=EMA, b=EMA, main='import "a.opt"\nimport "a.opt"\nimport "b.opt"\n' + USES_EMA)
    message = one(tmp_path / "main.opt", "E0508")
    assert message.message == "`ema` is in `a.opt` and in `b.opt`"
    assert message.span.line == 3


@pytest.mark.parametrize(
    "path",
    [
        "../secret.opt",
        "/etc/passwd",
        "lib/../../secret.opt",
        "missing.opt",
        "",
        ".",
        "lib",
        "x" * 3000,
        "a\\u0000b",
        "~",
    ],
)
def test_imports_that_are_not_followed(tmp_path: Path, path: str) -> None:
    write(tmp_path, secret="def ema(x, y, z): return x\n", in__main=f'import "{path}"\n' + USES_EMA)
    write(tmp_path, in__lib__x="")
    message = one(tmp_path / "in" / "main.opt", "E0502")
    assert message.span.line == 1
    assert len(message.render()) < 800


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("schedules.opt", "lib/schedules.opt"),
        ("lib/schedules", "lib/schedules.opt"),
        ("schedules", "lib/schedules.opt"),
        ("mine", "mine.opt"),
    ],
)
def test_an_import_without_its_folder_or_ending(tmp_path: Path, path: str, meant: str) -> None:
    write(tmp_path, mine=EMA, main=f'import "{path}"\n' + USES_EMA)
    assert one(tmp_path / "main.opt", "E0502").help == f"did you mean `{meant}`?"


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    write(
        tmp_path,
        secret=EMA + INNER,
        in__main='import "link.opt"\n' + USES_EMA,
        in__user=spec("", uses="use Inner()"),
    )
    os.symlink(tmp_path / "secret.opt", tmp_path / "in" / "link.opt")
    os.symlink(tmp_path / "secret.opt", tmp_path / "in" / "inner.opt")
    assert one(tmp_path / "in" / "main.opt", "E0502")
    assert one(tmp_path / "in" / "user.opt", "E0501")


def test_an_import_that_fails_is_one_mistake(tmp_path: Path) -> None:
    write(tmp_path, main='import "nothing.opt"\n' + USES_EMA + spec("", name="B", uses="use Other()"))
    assert messages(tmp_path / "main.opt") == [("main", "E0502", 1)]
    (tmp_path / "nothing.opt").write_bytes(b"\xff\xfe")
    assert "not valid UTF-8" in one(tmp_path / "main.opt", "E0502").message


def test_imports_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, a='import "b.opt"\n' + EMA, b='import "a.opt"\ndef f(x): return ema(x, x, 1)\n')
    message = one(tmp_path / "a.opt", "E0503")
    assert message.message == "these files import each other: a.opt -> b.opt -> a.opt"
    assert Path(message.path).name == "b.opt"
    write(tmp_path, c='import "c.opt"\n' + EMA)
    assert "c.opt -> c.opt" in one(tmp_path / "c.opt", "E0503").message


def test_a_diamond_is_no_circle(tmp_path: Path) -> None:
    write(
        tmp_path,
        base=EMA,
        a='import "base.opt"\ndef f(x): return ema(x, x, 0.5)\n',
        b='import "base.opt"\ndef h(x): return ema(x, x, 0.5)\n',
        main='import "a.opt"\nimport "b.opt"\nimport "base.opt"\n'
        + spec("p = p - f(g) - h(g) - ema(g, g, 0.5)"),
    )
    assert messages(tmp_path / "main.opt") == []


def test_many_files(tmp_path: Path) -> None:
    files = {f"f{n}": f'import "f{n + 1}.opt"\ndef a{n}(x): return x\n' for n in range(150)}
    write(tmp_path, **files, f150="def b(x): return x\n")
    assert "more than 100 files" in one(tmp_path / "f0.opt", "E0502").message


# ---- use


@pytest.mark.parametrize("name", ["inner", "Inner", "in_ner", "lib__inner"])
def test_specs_are_found_by_their_file(tmp_path: Path, name: str) -> None:
    write(tmp_path, **{name: INNER}, main=spec("", uses="use Inner()"))
    assert check_path(tmp_path / "main.opt").require().hyper("lr").default == 0.1


def test_specs_of_imported_files_are_used(tmp_path: Path) -> None:
    write(tmp_path, other=INNER, main='import "other.opt"\n' + spec("", uses="use Inner()"))
    assert messages(tmp_path / "main.opt") == []


def test_specs_beside_come_before_shipped_ones(tmp_path: Path) -> None:
    write(tmp_path, adamw=INNER.replace("Inner", "AdamW"), main=spec("", uses="use AdamW()"))
    assert [h.name for h in check_path(tmp_path / "main.opt").require().hypers] == ["lr"]


def test_every_shipped_spec_can_be_used(tmp_path: Path) -> None:
    for path in sorted(data_dir("specs").rglob("*.opt")):
        checked = check_path(path)
        assert checked.diagnostics == ()
        if checked.program is None:
            continue
        use = f"use {checked.program.name}()"
        write(tmp_path, main=f'import "{path.relative_to(data_dir("specs"))}"\n' + spec("", uses=use))
        used = check_path(tmp_path / "main.opt")
        assert used.diagnostics == ()
        assert used.require().hypers == checked.program.hypers


def test_a_spec_in_a_file_of_another_name_is_imported(tmp_path: Path) -> None:
    write(tmp_path, lib__others=INNER, main=spec("", uses="use Inner()"))
    message = one(tmp_path / "main.opt", "E0501")
    assert 'write `import "lib/others.opt"` above' in message.help
    write(tmp_path, main='import "lib/others.opt"\n' + spec("", uses="use Inner()"))
    assert messages(tmp_path / "main.opt") == []


def test_the_nearest_spec_is_named(tmp_path: Path) -> None:
    write(tmp_path, my_method=INNER.replace("Inner", "MyMethod"), main=spec("", uses="use MyMthod()"))
    assert one(tmp_path / "main.opt", "E0501").help == "did you mean `MyMethod`?"
    write(tmp_path, main=spec("", uses="use mymethod()"))
    assert one(tmp_path / "main.opt", "E0501").help == "did you mean `MyMethod`?"


# ---- where messages point


def test_mistakes_of_other_files_point_into_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        common="def f(x): return x + nothing\n",
        inner=spec("p = p - lrr * g", "lr = 0.1", name="Inner"),
        syntax=spec("p = p -* g", name="Syntax"),
        main='import "common.opt"\n' + spec("use Inner()\np = p - f(g)") + spec("use Syntax()", name="U"),
    )
    assert sorted(messages(tmp_path / "main.opt")) == [
        ("common", "E0301", 1),
        ("inner", "E0301", 5),
        ("syntax", "E0101", 3),
    ]


def test_a_file_with_mistakes_used_twice_has_them_once(tmp_path: Path) -> None:
    inner = spec("p = p - nothing", name="Inner")
    write(tmp_path, inner=inner, main=spec("use Inner()\nuse Inner()\nupdate = 2 * update"))
    assert messages(tmp_path / "main.opt") == [("inner", "E0301", 3)]


def test_the_binding_is_named_where_it_does_not_fit(tmp_path: Path) -> None:
    inner = spec("if lr > 0:\n    p = p - lr * g", "lr = 0.1", name="Inner")
    write(tmp_path, inner=inner, main=spec("n = norm(g)\nuse Inner(lr = 0.1 / n)"))
    message = one(tmp_path / "main.opt", "E0401")
    assert Path(message.path).name == "inner.opt"
    assert (
        message.help.splitlines()[0]
        == "`lr` is one number per tensor: line 4 of main.opt computes it from `n`"
    )
    assert message.help.splitlines()[-1] == "`Inner` is used on line 4 of main.opt"


def test_the_call_is_named_where_an_argument_does_not_fit(tmp_path: Path) -> None:
    write(
        tmp_path,
        common="def unit(x): return x / norm(x)\n",
        main='import "common.opt"\n' + spec("p = p - unit(t) * g"),
    )
    message = one(tmp_path / "main.opt", "E0403")
    assert (Path(message.path).name, message.span.line) == ("common.opt", 1)
    assert message.help.splitlines()[-1] == "`unit` is called on line 4 of main.opt"


def test_names_of_other_files_are_checked(tmp_path: Path) -> None:
    write(tmp_path, common="def norm(x): return x\n", main='import "common.opt"\n' + spec("p = p - g"))
    assert messages(tmp_path / "main.opt") == [("common", "E0202", 1)]


# ---- paths


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    os.symlink(tmp_path / "loop.opt", tmp_path / "loop.opt")
    for path in (tmp_path, tmp_path / "none.opt", tmp_path / "loop.opt", "a\0b", "x" * 5000, ""):
        checked = check_path(path)
        assert [m.code for m in checked.diagnostics] == ["E0001"]
        assert len(checked.diagnostics[0].message) < 6000


def test_one_of_several_optimizers(tmp_path: Path) -> None:
    write(tmp_path, main=spec("p = p - g", name="A") + spec("p = p - 2 * g", name="B"))
    path = tmp_path / "main.opt"
    assert check_path(path).require().name == "B"
    assert check_path(path, "A").require().name == "A"
    checked = check_path(path, "Bb")
    assert [(m.code, m.help) for m in checked.diagnostics] == [("E0501", "did you mean `B`?")]
    assert checked.program is None
