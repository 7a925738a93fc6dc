"""How many messages there are: one for each mistake, none for what follows from it; the same each time."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optdsl.check import check_text
from optdsl.ir.verify import verify
from optdsl.lang.diagnostics import CODES
from optdsl.lang.explain import page
from optdsl.resources import data_dir
from tests.check.helpers import check, found, spec

FIVE = """\
optimizer Five:
    hyper:
        lr = 0.0 in (0, inf)
        beta = 0.9 in [0, 1)
    state:
        m = 0
        d [tensor] = 1
    step:
        m = bta * m + g
        beta = d / 2
        if norm(g) > 1:
            g = g / norm(g)
        p = p - lr * sqr(m) / d * beta
"""


def test_five_mistakes_are_five_messages() -> None:
    assert found(FIVE) == [("E0203", 3), ("E0301", 9), ("E0306", 10), ("E0401", 11), ("E0302", 13)]


@pytest.mark.parametrize(
    ("step", "help"),
    [
        ("p = p \u2212 lr * g", "write `-`"),
        ("p = p - lr \u00d7 g", "write `*`"),
        ("p = p - lr * g / \u221alr", "write `sqrt(x)`"),
        ("p = p - lr * g\u00b2", "write `x^2`"),
        ("p \u2190 p - lr * g", "write `=`"),
        ("p = p - \u03b7 * g", "write `eta`"),
        ("p = p - \u0394 * g", "write `Delta`"),
        ("p = p -\u00a0lr * g", "write an ordinary blank"),
        ("p = p - lr * g\u00e9", "names are ASCII letters, digits and underscores"),
    ],
)
def test_what_is_pasted_from_a_paper(step: str, help: str) -> None:
    """Of such a character the message says how it is written here."""
    (message,) = check(f"optimizer A:\n    hyper:\n        lr = 0.1\n    step:\n        {step}\n").diagnostics
    assert (message.code, message.help) == ("E0102", help)


@pytest.mark.parametrize(
    ("wrong", "right", "help"),
    [
        ("optimiser A:", "optimizer A:", "did you mean `optimizer`?"),
        ("    Hyper:", "    hyper:", "did you mean `hyper`?"),
        ("    steps:", "    step:", "did you mean `step`?"),
        ("amsgrad = True", "amsgrad = true", "did you mean `true`?"),
        (
            "betas = (0.9, 0.99)",
            "betas = (beta1: 0.9, beta2: 0.99)",
            "the parts of a tuple have names, as in",
        ),
        ("lr * g when", "lr * g if", "expected "),
    ],
)
def test_a_word_that_is_nearly_one_of_the_language(wrong: str, right: str, help: str) -> None:
    text = """\
optimizer A:
    hyper:
        lr = 0.1 in [0, inf)
        betas = (beta1: 0.9, beta2: 0.99)
        amsgrad = true
    step:
        p = p - lr * g if beta1 < beta2 or amsgrad else p
"""
    assert not check(text).diagnostics
    assert right in text
    message = next(m for m in check(text.replace(right, wrong)).diagnostics if m.code == "E0101")
    assert message.help.startswith(help)


def test_five_mistakes_of_all_stages() -> None:
    text = """\
optimizer Five:
    hyper:
        lr = 0.1 in (0, inf
        beta = 0.9 in [0, 1)
    state:
        m = 0
    step:
        m = beta * m +* g
        u = lerp(m, g)
        if g > 0:
            u = 2 * u
        p = p - lr * u - nothing
"""
    assert found(text) == [("E0007", 3), ("E0101", 8), ("E0303", 9), ("E0401", 10), ("E0301", 12)]


@pytest.mark.parametrize(
    "text",
    [
        # a line that does not parse declares nothing, and nothing is said about what it would have declared
        spec("p = p - lr * beta * g", "lr = 0.1 in (0, inf\nbeta = 0.9"),
        spec("p = p - lr * g", "lr := 0.1"),
        spec("p = p - lr * g", "lr = 0.1 in 0..1"),
        spec("p = p - b1 * b2 * g", "betas = (b1: 0.9, b2: 0.99"),
        spec("m = m + g\np = p - m", state="m = = 0"),
        spec("m = m + g\np = p - m", state="m [tensor = 0"),
        spec("x = 2 ** g\np = p - x"),
        spec("x := g\nif x == x:\n    p = p - g"),
        spec("x = g +\np = p - x\nupdate = 2 * update"),
        spec("p = p -\nupdate = 2 * update"),
        spec("if t > :\n    x = g\np = p - x"),
        spec("if t > 1:\n    x = g g\nelse:\n    x = p\np = p - x"),
        spec("x = g\n    y = p\n    z = y\np = p - x - y - z"),
        spec('x = "unfinished\np = p - x'),
        "def f(x) return x\n" + spec("p = p - f(g)"),
        "def f(x):\n    return x +\n" + spec("p = p - f(g)"),
        "def f(x):\n    y = (x\n    return y\n" + spec("p = p - f(g)"),
        "transform Half\n    step:\n        g = g / 2\n" + spec("p = p - g", uses="use Half()"),
        spec("p = p - g", uses="use AdamW(lr = )") + "",
        # what a wrong declaration declares is there nevertheless
        spec("m = m + g\np = p - m * norm(m)", state="m [what] = 0"),
        spec("m = m + norm(g)\nif m > 1:\n    p = p - m", state="m [hst] = 0"),
        spec("m = m + g\np = p - m", state="m = nothing"),
        spec("m = m + g\np = p - m", state="m = g @ g"),
        spec("if h > 1:\n    p = p - h * g", "h = 2.0 in [3, 1]"),
        spec('if h == "l2":\n    p = p - g', 'h = "l2"'),
        spec("p = p - a * b * g", "t = (a: 0.1, b: 0.2)"),
        spec("p = p - t * g", "t = 0.1"),
        spec("m = m + g\np = p - m", "m = 0.1", "m = 0"),
        # a value that could not be computed makes no other wrong
        spec("x = nothing\ny = norm(x) @ x\nif y > 1:\n    z = y\np = p - z\nm = y", state="m [tensor] = 0"),
        spec("x = g @ g\ny = x + 1\nn = norm(y)\nd = y\np = p - n * y", state="d [tensor] = 0"),
        spec("repeat nothing:\n    x = g\np = p - x"),
        spec("every nothing:\n    m = g\np = p - m", state="m = 0"),
        spec("m = norm(g)\nx = m + d\nd = g\ny = d * x\np = p - y * g", state="m = 0\nd [tensor] = 0"),
        spec("p = p - nothing\nupdate = 2 * update\np = p - update"),
        spec("g = nothing\nx = g * 2\np = p - x"),
        spec("_x = g\np = p - _x"),
        # a spec or function that is wrong or missing is one mistake
        spec("use Nothing(lr = 0.1)\nupdate = 2 * update\np = p - update"),
        spec("use Nothing() with g = 2 * g\np = 0.9 * p"),
        spec("use AdamW(lr = nothing)\nupdate = 2 * update"),
        spec("use AdamW(what = 1)\nupdate = 2 * update"),
        'import "nothing.opt"\n' + spec("use Other()\np = p - f(g) - h(g)"),
        "def f(x): return nothing(x)\n" + spec("x = f(g)\ny = f(f(x))\np = p - x - y"),
        "def f(x): return x\n" + spec("x = f(g, g)\nif x > 0:\n    p = p - x"),
        "def f(x):\n    y = x\n" + spec("x = f(g)\np = p - x"),
    ],
)
def test_one_mistake_is_one_message(text: str) -> None:
    messages = check(text).diagnostics
    assert len(messages) == 1, "\n".join(m.render() for m in messages)


def test_messages_come_in_the_order_of_the_file() -> None:
    places = [(m.span.line, m.span.column) for m in check(FIVE).diagnostics]
    assert places == sorted(places)


def test_messages_do_not_depend_on_hashes(tmp_path: Path) -> None:
    text = spec(
        "p = p - lrr * sqqrt(g) + bta\nuse AdmW(lrr = 1)\nx = norm(g, over=row)", "lr = 0.1\nbeta = 0.1"
    )
    (tmp_path / "main.opt").write_text(text)
    script = "import sys; from optdsl.check import check_path\n"
    script += "for m in check_path(sys.argv[1]).diagnostics: print(m.render())"
    outputs = set()
    for seed in ("0", "1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "main.opt")],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1
    assert outputs.pop().count("error[") == 5


# ---- whatever the text

SOURCES = [path.read_text("utf-8") for path in sorted(data_dir("specs").rglob("*.opt"))]
SOURCES += [text for code in CODES for text in re.findall(r"```opt\n(.*?)```", page(code), re.DOTALL)]
TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
WORDS = [
    "if ",
    "every ",
    "repeat ",
    "use ",
    "update",
    "p",
    "g",
    "t",
    "first_step",
    "norm(",
    "over=all",
    "@",
    "'",
]
WORDS += [
    "(",
    ")",
    "[",
    "]",
    ",",
    ":",
    "=",
    "true",
    "ndim",
    "[host]",
    " as ",
    "else:",
    "return ",
    '"l2"',
    "^",
    "/",
]
WORDS += [
    "use AdamW()",
    " with g = g",
    "step",
    "state",
    "hyper",
    " not ",
    " and ",
    " in ",
    "{",
    "\n    ",
    "def f(x):",
]


def mangled(rng: random.Random) -> str:
    """A spec with some words replaced, removed, added or exchanged."""
    tokens = TOKEN.findall(rng.choice(SOURCES))
    others = TOKEN.findall(rng.choice(SOURCES))
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        place = rng.randrange(len(tokens))
        match rng.randrange(5):
            case 0:
                tokens[place] = rng.choice(others)
            case 1:
                tokens[place] = rng.choice(WORDS)
            case 2:
                tokens.insert(place, rng.choice(WORDS))
            case 3:
                tokens[place] = ""
            case 4:
                other = rng.randrange(len(tokens))
                tokens[place], tokens[other] = tokens[other], tokens[place]
    return "".join(tokens)


@pytest.mark.parametrize("seed", range(8))
def test_any_text_is_answered(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        text = mangled(rng)
        checked = check_text(text, "t.opt")
        for message in checked.diagnostics:
            assert message.code in CODES
            assert message.render()
        if checked.program is not None:
            verify(checked.program)
        elif checked.kind == "optimizer":
            assert checked.errors, text


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"optimizer T{n}:\n    step:\n        p = p - g\n" for n in range(1000)),
        "".join(f"optimizer T{n}:\n    use Foo{n}()\n" for n in range(1000)),
        "".join(f"optimizer T{n}:\n    use AdamW()\n" for n in range(1000)),
        "optimizer T:\n    step:\n" + "        p = p - g\n" * 2500,
        "".join(f"def f{n}(x): return x * {n}\n" for n in range(1500)),
        spec("\n".join(f"p = p - name{n}" for n in range(1500))),
        spec("\n".join(f"if on:\n    x{n} = g" for n in range(1000)), "on = true"),
        spec("p = p - g\n" + "\n".join("if on:\n    update = update * 2" for _ in range(500)), "on = true"),
        spec("p = p - g", "\n".join(f"h{n} = {n}" for n in range(1500))),
        spec("p = p - g", "", "\n".join(f"m{n} = {n}" for n in range(1500))),
        spec("p = p - " + "x" * 3000),
    ],
    ids=[
        "specs",
        "unknown uses",
        "uses",
        "lines",
        "defs",
        "unknown names",
        "ifs",
        "updates",
        "hypers",
        "states",
        "name",
    ],
)
def test_answers_are_quick(text: str) -> None:
    times = []
    for _ in range(2):
        start = time.process_time()
        messages = check_text(text, "t.opt").diagnostics
        times.append(time.process_time() - start)
    assert min(times) < 1.5  # one second on an idle machine
    assert sum(len(message.render()) for message in messages) < 50_000
