"""Broken and hostile specs: every one is answered with messages, in time, and never with a traceback.

`OPTDSL_FUZZ=10` makes ten times as many mutants.
"""

import functools
import gc
import os
import random
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from optdsl.check import check_path, check_text
from optdsl.lang.diagnostics import CODES, Diagnostic, SpecError, to_json
from optdsl.lang.formatter import format_text
from optdsl.lang.source import MAX_BYTES

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "lang" / "corpus"
SEEDS = [
    path.read_text("utf-8") for path in [*sorted(CORPUS.glob("*.opt")), *sorted(ROOT.glob("specs/*.opt"))[:6]]
]

BATCHES = 8
MUTANTS = int(500 * float(os.environ.get("OPTDSL_FUZZ", "1")))
# ---- what must hold of every answer ------------------------------------------------------------------------


def examine(found: tuple[Diagnostic, ...]) -> None:
    """Messages are well made: known codes, real places, nothing that a terminal obeys."""
    for message in found:
        assert message.code in CODES
        assert message.message
        assert message.span.line >= 1
        assert message.span.column >= 1
        assert (message.span.end_line, message.span.end_column) >= (message.span.line, message.span.column)
        assert all(ch.isprintable() or ch == "\n" for ch in message.render())
        message.render(color=True)
    to_json(found)


@functools.cache
def limit() -> float:
    """Seconds of this process for one answer: 1.5, or more where a plain spec takes more than 10 ms."""
    text = (CORPUS / "branches.opt").read_text("utf-8")
    spent = []
    for _ in range(10):
        start = time.process_time()
        check_text(text)
        spent.append(time.process_time() - start)
    return max(1.5, 150 * min(spent))


def timed(what: str, call: Callable[[], T]) -> T:
    """What `call` gives. It must be quick in one of three attempts: the machine may be busy."""
    for _ in range(3):
        gc.freeze()  # the collector passes over what other tests left, however much: that is not this call's time
        start = time.process_time()
        result = call()
        spent = time.process_time() - start
        gc.unfreeze()
        if spent < limit():
            return result
    raise AssertionError(f"{what} took {spent:.2f} s")


def layout_of(text: str) -> tuple[str | None, tuple[Diagnostic, ...]]:
    """The layout of a text, or the messages instead of one."""
    try:
        return format_text(text, "fuzz.opt"), ()
    except SpecError as error:
        return None, error.diagnostics


def answers(text: str, directory: Path | None = None) -> tuple[list[str], str | None]:
    """The codes of the messages about `text`, and its layout if it has one; within the limits."""
    checked = timed("checking", lambda: check_text(text, "fuzz.opt", directory))
    examine(checked.diagnostics)
    assert checked.program is None or not checked.errors
    layout, found = timed("formatting", lambda: layout_of(text))
    examine(found)
    assert found or layout is not None
    return [d.code for d in checked.diagnostics], layout


# ---- mutants -----------------------------------------------------------------------------------------------

TOKEN = re.compile(r'"""|"(?:[^"\\\n]|\\.)*"|[\d.]+(?:e-?\d+)?|\w+|[<>=!]=|\n *|\S')
WORDS = re.findall(
    r"\S+",
    """
    edition import optimizer transform def cite hyper state step when otherwise use in as stored if elif
    else every offset repeat return with and or not true false inf p g t update lr m x norm sum over all rows
    0 1 2.5 1e-3 1e999 99999999999999999999 -1 + - * / ^ @ ' < <= == != = : , ( ) [ ]
    { } "a" # . ; ** && ! % ` \\
    """,
)
BRACKETS = [*"()[]{}\"'", '"""', "(((((", "))"]
ODD = [*"\0\r\t\f\v\u00a0\u2028\ufeff\ud800éλ²٣中😀", "\r\n", "\x1b[31m"]

Mutation = Callable[[str, random.Random], str]


def flip_bytes(text: str, r: random.Random) -> str:
    data = bytearray(text.encode("utf-8", "replace"))
    for _ in range(r.randint(1, 4)):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    return data.decode("utf-8", "replace" if r.random() < 0.5 else "surrogateescape")


def _tokens(change: Callable[[list[str], int, random.Random], None]) -> Mutation:
    def mutate(text: str, r: random.Random) -> str:
        pieces = re.split(f"({TOKEN.pattern})", text)
        for _ in range(r.randint(1, 3) if len(pieces) > 1 else 0):
            change(pieces, r.randrange(len(pieces) // 2) * 2 + 1, r)
        return "".join(pieces)

    return mutate


def _lines(change: Callable[[list[str], int, random.Random], None]) -> Mutation:
    def mutate(text: str, r: random.Random) -> str:
        lines = text.split("\n")
        for _ in range(r.randint(1, 2)):
            change(lines, r.randrange(len(lines)), r)
        return "\n".join(lines)

    return mutate


def _swap(items: list[str], at: int, r: random.Random) -> None:
    other = r.randrange(len(items) // 2) * 2 + 1
    items[at], items[other] = items[other], items[at]


def _set(items: list[str], at: int, value: str) -> None:
    items[at] = value


def _move(items: list[str], at: int, r: random.Random) -> None:
    items.insert(r.randrange(len(items)), items.pop(at))


def _indent(items: list[str], at: int, r: random.Random) -> None:
    for index in range(at, min(len(items), at + r.randint(1, 5))):
        margin = r.choice(["", " ", "  ", "    ", "        ", "\t", "  \t", " " * 40])
        items[index] = margin + (items[index].lstrip() if r.random() < 0.5 else items[index])


def _join(items: list[str], at: int, r: random.Random) -> None:
    if at:
        items[at - 1] += " " + items.pop(at).strip()


def _insert(text: str, r: random.Random, what: list[str]) -> str:
    for _ in range(r.randint(1, 3)):
        at = r.randrange(len(text) + 1)
        text = text[:at] + r.choice(what) + text[at:]
    return text


def truncate(text: str, r: random.Random) -> str:
    at = r.randrange(len(text))
    return text[:at] if r.random() < 0.7 else text[at:]


def splice(text: str, r: random.Random) -> str:
    other = r.choice(SEEDS)
    return text[: r.randrange(len(text))] + other[r.randrange(len(other)) :]


MUTATIONS: dict[str, Mutation] = {
    "flip bytes": flip_bytes,
    "swap tokens": _tokens(_swap),
    "delete tokens": _tokens(lambda items, at, r: _set(items, at, "")),
    "duplicate tokens": _tokens(lambda items, at, r: _set(items, at, f"{items[at]} {items[at]}")),
    "replace tokens": _tokens(lambda items, at, r: _set(items, at, r.choice(WORDS))),
    "insert tokens": _tokens(lambda items, at, r: _set(items, at, f"{items[at]} {r.choice(WORDS)} ")),
    "borrow tokens": _tokens(lambda items, at, r: _set(items, at, r.choice(TOKEN.findall(r.choice(SEEDS))))),
    "move lines": _lines(_move),
    "repeat lines": _lines(lambda items, at, r: items.insert(at, items[at])),
    "delete lines": _lines(lambda items, at, r: _set(items, at, "")),
    "borrow lines": _lines(lambda items, at, r: items.insert(at, r.choice(r.choice(SEEDS).split("\n")))),
    "indent lines": _lines(_indent),
    "join lines": _lines(_join),
    "insert brackets": lambda text, r: _insert(text, r, BRACKETS),
    "insert odd characters": lambda text, r: _insert(text, r, ODD),
    "truncate": truncate,
    "splice": splice,
}


def mutant(seed: int) -> tuple[str, str]:
    """What was done, and the text."""
    r = random.Random(seed)
    text, done = r.choice(SEEDS), []
    for _ in range(r.choice([1, 1, 1, 2, 2, 3, 5])):
        name = r.choice(sorted(MUTATIONS))
        done.append(name)
        text = MUTATIONS[name](text, r) or " "
    return ", ".join(done), text


@pytest.mark.parametrize("batch", range(BATCHES))
def test_mutants_are_answered_with_messages(batch: int) -> None:
    for seed in range(batch * MUTANTS, (batch + 1) * MUTANTS):
        done, text = mutant(seed)
        try:
            _, layout = answers(text, CORPUS if seed % 2 else None)
            assert layout is None or format_text(layout, "fuzz.opt") == layout, (
                "the layout has another layout"
            )
        except Exception:
            pytest.fail(f"seed {seed} ({done}):\n{traceback.format_exc()}\n{text!r}")


def test_enough_mutants_are_still_specs() -> None:
    layouts = 0
    for seed in range(300):
        try:
            format_text(mutant(seed)[1], "fuzz.opt")
            layouts += 1
        except SpecError:
            pass
    assert 20 < layouts < 270


# ---- hostile texts -----------------------------------------------------------------------------------------

STEP = "optimizer A:\n    step:\n        "
HYPER = "optimizer A:\n    hyper:\n        "
SPEC = STEP + "p = p - g\n"


def nested_blocks(count: int, header: str) -> str:
    lines = [" " * (8 + index) + header for index in range(count)]
    return "optimizer A:\n    step:\n" + "\n".join([*lines, " " * (8 + count) + "p = p - g\n"])


def calling(count: int, body: str) -> str:
    """A chain of functions; `{}` in the body is a call of the one before."""
    defs = [f"def f{i}(x): return " + body.replace("{}", f"f{i - 1}(x)") for i in range(1, count)]
    return "\n".join(["def f0(x): return x", *defs, f"{STEP}p = p - f{count - 1}(g)\n"])


HOSTILE: dict[str, tuple[str, set[str]]] = {
    "10 MB": ("x = 1\n" * 1_700_000, {"E0003"}),
    "just too large": (SPEC + "#" * MAX_BYTES, {"E0003"}),
    "just too large in UTF-8": (SPEC + "#" + "é" * (MAX_BYTES // 2), {"E0003"}),
    "large enough": (SPEC + "#" * (MAX_BYTES - len(SPEC)), set()),
    "10,000 brackets": (f"{STEP}p = {'(' * 10_000}g{')' * 10_000}\n", {"E0008"}),
    "10,000 open brackets": (f"{STEP}p = {'(' * 10_000}g\n", {"E0008"}),
    "10,000 open brackets on lines of their own": (STEP + "p = " + "(\n" * 10_000, {"E0008"}),
    "10,000 closing brackets": (f"{STEP}p = g{')' * 10_000}\n", {"E0007"}),
    "60 brackets": (f"{STEP}p = {'(' * 60}g{')' * 60}\n", set()),
    "10,000 minus": (f"{STEP}p = {'-' * 10_000}g\n", {"E0009"}),
    "3,000 minus": (f"{STEP}p = {'-' * 3_000}g\n", {"E0008"}),
    "10,000 not": (f"{STEP}p = {'not ' * 10_000}g\n", {"E0009"}),
    "1,000 not": (f"{STEP}p = {'not ' * 1_000}g\n", {"E0008"}),
    "10,000 powers": (f"{STEP}p = g{'^g' * 10_000}\n", {"E0009"}),
    "1,500 powers": (f"{STEP}p = g{'^g' * 1_500}\n", {"E0008"}),
    "10,000 ternaries": (f"{STEP}p = {'g if t > 1 else ' * 10_000}g\n", {"E0003"}),
    "300 ternaries": (f"{STEP}p = {'g if t>1 else ' * 300}g\n", {"E0008"}),
    "10,000 transposes": (f"{STEP}p = g{chr(39) * 10_000}\n", {"E0009"}),
    "1,500 transposes": (f"{STEP}p = g{chr(39) * 1_500}\n", {"E0008"}),
    "1,500 terms": (f"{STEP}p = g{'+g' * 1_500}\n", {"E0008"}),
    "1,500 terms and a mistake": (f"{STEP}p = g{'^g' * 1_500}^^g\n", {"E0101"}),
    "15 long lines": (STEP + f"p = g{'+g-g' * 950}\n        " * 15, {"E0008"}),
    "15 long lines with mistakes": (STEP + f"p = g{'+g-g' * 950}*^\n        " * 15, {"E0101"}),
    "800 mistakes": (
        STEP + "p = f(g, b, x) * f(g, b, x) * f(g, b, x) * f(g, b, x) * ^\n        " * 800,
        {"E0101"},
    ),
    "many arguments": (f"{STEP}p = max(g{', g' * 1_300})\n", {"E0601", "E0008", "E0009", "E0303"}),
    "a billion repetitions": (f"{STEP}repeat 1000000000: p = p - g\n", {"E0602"}),
    "too many repetitions for 64 bits": (f"{STEP}repeat {'9' * 3_000}: p = p - g\n", {"E0101"}),
    "repetitions in repetitions": (nested_blocks(12, "repeat 256:"), {"E0601"}),
    "repetitions in repetitions of a mistake": (
        nested_blocks(12, "repeat 256:") + " " * 20 + "p = q\n",
        {"E0601", "E0301"},
    ),
    "repetitions of a hyperparameter": (
        HYPER + "n = 3 in [1, 256]\n" + nested_blocks(12, "repeat n:").removeprefix("optimizer A:\n"),
        {"E0601"},
    ),
    "100,000 lines": ("x = 1\n" * 100_000, {"E0003"}),
    "100,000 blank lines": (SPEC + "\n" * 100_000, {"E0003"}),
    "60,000 blank lines": (SPEC + "\n" * 60_000, set()),
    "60,000 lines in brackets": (f"{STEP}p = (g{chr(10) * 60_000})\n", set()),
    "60,000 lines in open brackets": (f"{STEP}p = (g{chr(10) * 60_000}\n", {"E0007"}),
    "30,000 comments": (SPEC + "#\n" * 30_000, set()),
    "6,000 lines of a function": ("def f():\n" + " a=1\n" * 6_000 + " return a\n", {"E0003", "E0601"}),
    "a line of 1 MB": ("x" * 1_000_000, {"E0003"}),
    "a line of 60 kB": ("x" * 60_000, {"E0009"}),
    "a string of 60 kB": (f'optimizer A:\n    cite: "{"x" * 60_000}"\n    step:\n        p = g\n', {"E0009"}),
    "words of 3,000 letters": ((("w" * 3_000) + " !\n") * 20, {"E0101"}),
    "a number of 3,000 digits": (f"{STEP}p = p - {'9' * 3_000} * g\n", {"E0101"}),
    "a float of 3,000 digits": (f"{STEP}p = p - 1e{'9' * 3_000} * g\n", {"E0101"}),
    "a default of 3,000 digits": (f"{HYPER}a = {'9' * 3_000}\n    step:\n        p = a * g\n", {"E0101"}),
    "an edition of 3,000 digits": (f"edition {'9' * 3_000}\n{SPEC}", {"E0108"}),
    "a stream of 19 digits": (f"{STEP}p = p - normal(stream=9223372036854775807)\n", {"E0406"}),
    "powers of powers": (f"{STEP}p = p - 9^9^9^9^9^9 * 99999999^99999999 * g\n", set()),
    "divisions by zero": (f"{STEP}p = p - (1/0 + 0^-1 + mod(1, 0) + inf - inf + 0 * inf) * g\n", set()),
    "100 blocks": (nested_blocks(100, "if t > 1:"), {"E0008"}),
    "15 blocks": (nested_blocks(15, "if t > 1:"), set()),
    "300 sections": ("optimizer A:\n" + "".join(" " * (i + 4) + "step:\n" for i in range(300)), {"E0103"}),
    "one column more each line": ("".join(" " * i + "x = 1\n" for i in range(350)), {"E0103", "E0105"}),
    "one column less each line": (
        "optimizer A:\n" + "".join(" " * (350 - i) + "x = 1\n" for i in range(349)),
        {"E0005"},
    ),
    "an indentation of 60,000": (
        f"optimizer A:\n{' ' * 60_000}step:\n    p = g\n",
        {"E0104", "E0105", "E0103"},
    ),
    "1,000 elif": (STEP + "if t > 1: p = g\n" + "        elif t > 2: p = g\n" * 1_000, {"E0008"}),
    "1,000 shapes": ("optimizer A:\n" + "    step when t > 1:\n        p = g\n" * 1_000, {"E0008"}),
    "2,000 hyperparameters": (
        HYPER + "".join(f"a{i} = 1\n        " for i in range(2_000)) + SPEC[12:],
        {"E0003"},
    ),
    "2,000 states": (
        HYPER.replace("hyper", "state") + "".join(f"a{i} = 1\n        " for i in range(2_000)),
        {"E0003"},
    ),
    "2,000 functions": ("".join(f"def f{i}(x): return y\n" for i in range(2_000)), {"E0301"}),
    "1,000 optimizers": ("".join(f"optimizer A{i}:\n  step:\n    p=p-g\n" for i in range(1_000)), set()),
    "1,000 long loops": (
        "".join(f"optimizer A{i}:\n  step:\n    repeat 256: p=p-g/g\n" for i in range(1_000)),
        {"E0601"},
    ),
    "functions that double": (calling(24, "{} + {}"), {"E0601"}),
    "functions that double, called often": (
        calling(15, "{} + {}") + "".join(f"def q{i}(x): return f14(x)\n" for i in range(900)),
        {"E0601"},
    ),
    "deep functions": (calling(24, "-" * 100 + "{}"), {"E0008"}),
    "deep arguments": (calling(24, "abs(" * 50 + "{}" + ")" * 50), {"E0008"}),
    "specs that double": (
        "".join(f"transform A{i}:\n    use A{i + 1}()\n    use A{i + 1}()\n" for i in range(11))
        + "transform A11:\n    step:\n        g = g\n",
        {"E0601"},
    ),
    "a function that calls itself": ("def f(x): return f(x)\n", {"E0505"}),
    "a spec that uses itself": ("optimizer A:\n    use A()\n", {"E0503"}),
    "a file that imports itself": ('import "fuzz.opt"\n' + SPEC, {"E0502"}),
    "imports from elsewhere": (
        'import "/etc/passwd"\nimport "../../x.opt"\nimport "\\0"\n' + SPEC,
        {"E0502"},
    ),
    "a tab": ("optimizer A:\n\tstep:\n\t\tp = p - g\n", {"E0004"}),
    "tabs and spaces": ("optimizer A:\n    step:\n    \tp = p - g\n        p = p - g\n", {"E0004"}),
    "tabs behind code": (SPEC.replace(" = ", "\t=\t"), set()),
    "a byte order mark": ("\ufeff" + SPEC, set()),
    "two byte order marks": ("\ufeff\ufeff" + SPEC, {"E0102"}),
    "a null character": (SPEC.replace("- g", "- \0g"), {"E0102"}),
    "half a character": (SPEC.replace("- g", "- \ud800"), {"E0102"}),
    "other blanks": (SPEC.replace("        p", "\u00a0\u00a0p"), {"E0102"}),
    "other digits": (SPEC.replace("- g", "- ٣"), {"E0102"}),
    "other line ends": (SPEC.replace("\n", "\u2028"), {"E0102"}),
    "a terminal sequence": (SPEC.replace("- g", "- \x1b[31mg"), {"E0007"}),
    "a terminal sequence in a string": (f'{STEP}p = p - "\x1b[31m" * * g\n', {"E0101"}),
    "returns only": (SPEC.replace("\n", "\r"), set()),
    "nothing": ("", {"E0109"}),
    "blanks": ("  \n\t\n\f", {"E0109"}),
    "comments only": ("# a\n# b", {"E0109"}),
    "an open docstring": ('optimizer A:\n    """Text\n    step:\n        p = p - g\n', {"E0006"}),
    "an open string": ('optimizer A:\n    cite: "Text\n    step:\n        p = p - g\n', {"E0006"}),
    "a string over two lines": (
        'optimizer A:\n    cite: "a\\\nb"\n    step:\n        p = p - g\n',
        {"E0006"},
    ),
    "15,000 open docstrings": ('\\"""\n' * 12_000, {"E0006"}),
    "30,000 quotes": ('"' * 30_001, {"E0006", "E0009"}),
    "words that begin like keywords": (
        f"{STEP}information = g\n        true_g = information\n        p = p - true_g\n",
        set(),
    ),
    "keywords without blanks": (f"{STEP}p = g ift > 1 else g\n", {"E0101"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts(name: str) -> None:
    text, wanted = HOSTILE[name]
    codes, _ = answers(text)
    assert codes == [] if not wanted else wanted & set(codes), codes
    assert len(codes) <= 120
    if wanted:
        assert any(code.startswith("E") for code in codes)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"x" * 10_000_000, "E0003"),
        (SPEC.encode() + b"# \xff\n", "E0002"),
        (SPEC.encode("utf-16"), "E0002"),
        (b"\xef\xbb\xbf" + SPEC.encode(), None),
        (SPEC.replace("\n", "\r\n").encode(), None),
        (SPEC.replace("\n", "\r").encode(), None),
        (SPEC.encode() + b"# \xed\xa0\x80", "E0002"),
        (b"\0" * 1_000, "E0102"),
        (random.Random(20261129).randbytes(1_000) + b"\xff", "E0002"),
        (b"", "E0109"),
    ],
    ids=[
        "large",
        "no UTF-8",
        "UTF-16",
        "byte order mark",
        "CR LF",
        "CR",
        "surrogate",
        "zeros",
        "noise",
        "empty",
    ],
)
def test_hostile_files(data: bytes, code: str | None, tmp_path: Path) -> None:
    path = tmp_path / "hostile.opt"
    path.write_bytes(data)
    checked = timed("checking", lambda: check_path(path))
    examine(checked.diagnostics)
    assert [d.code for d in checked.diagnostics][:1] == ([code] if code else [])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    loop = tmp_path / "loop.opt"
    loop.symlink_to(loop)
    for path in (
        tmp_path,
        tmp_path / "missing.opt",
        tmp_path / ("x" * 5_000),
        loop,
        Path("a\0b.opt"),
        Path("/dev/zero"),
    ):
        (message,) = check_path(path).diagnostics
        assert message.code == ("E0003" if path == Path("/dev/zero") else "E0001")
        examine((message,))


def test_files_that_import_each_other(tmp_path: Path) -> None:
    for index in range(120):
        (tmp_path / f"f{index}.opt").write_text(
            f'import "f{index + 1}.opt"\nimport "f{index // 2}.opt"\n{SPEC}'
        )
    codes = {d.code for d in check_path(tmp_path / "f0.opt").diagnostics}
    assert codes & {"E0502", "E0503"}
