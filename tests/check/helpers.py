"""Short specs, their messages, and what their programs compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import numpy as np

from optdsl.check import Checked, check_text
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.program import Program
from optdsl.ir.verify import verify
from optdsl.lang.diagnostics import Diagnostic


def spec(
    step: str, hyper: str = "", state: str = "", name: str = "T", kind: str = "optimizer", uses: str = ""
) -> str:
    """A spec from the lines of its sections."""
    text = f"{kind} {name}:\n"
    for section, lines in (("hyper", hyper), ("state", state), ("", uses), ("step", step)):
        if lines:
            body = dedent(lines).strip("\n")
            text += indent(f"{section}:\n{indent(body, '    ')}" if section else body, "    ") + "\n"
    return text


def check(text: str, directory: Path | None = None) -> Checked:
    """The outcome for a text, the same each time."""
    checked = check_text(dedent(text), "t.opt", directory)
    again = check_text(dedent(text), "t.opt", directory)
    assert checked.diagnostics == again.diagnostics
    return checked


def found(text: str, directory: Path | None = None) -> list[tuple[str, int]]:
    """Code and line of every message."""
    return [(message.code, message.span.line) for message in check(text, directory).diagnostics]


def only(text: str, code: str, marked: str | None = None, directory: Path | None = None) -> Diagnostic:
    """The one message of a text. `marked` is the text it points at."""
    messages = check(text, directory).diagnostics
    assert [message.code for message in messages] == [code], "\n".join(m.render() for m in messages)
    (message,) = messages
    assert message.message
    if marked is not None:
        span = message.span
        assert message.source_line[span.column - 1 : span.end_column - 1] == marked
    return message


def program(text: str, directory: Path | None = None) -> Program:
    """The program of a text that has neither mistakes nor warnings."""
    checked = check(text, directory)
    assert not checked.diagnostics, "\n".join(m.render() for m in checked.diagnostics)
    return verify(checked.require())


def run(
    text: str,
    steps: int = 3,
    shapes: Sequence[tuple[int, ...]] = ((3, 2), (4,)),
    hypers: Mapping[str, Any] | None = None,
    directory: Path | None = None,
) -> list[list[np.ndarray]]:
    """The parameters after each step, with gradients that are the same in every call."""
    rng = np.random.default_rng(0)
    group = Group([rng.normal(size=shape) for shape in shapes], dict(hypers or {}))
    interpreter = Interpreter(program(text, directory), [group])
    trajectory = []
    for _ in range(steps):
        interpreter.step([[rng.normal(size=shape) for shape in shapes]])
        trajectory.append([p.copy() for p in interpreter.params[0]])
    return trajectory


def same(a: list[list[np.ndarray]], b: list[list[np.ndarray]]) -> bool:
    """True when two trajectories agree up to rounding, and are finite."""
    return all(
        np.isfinite(x).all() and np.allclose(x, y, rtol=1e-12, atol=1e-12)
        for xs, ys in zip(a, b, strict=True)
        for x, y in zip(xs, ys, strict=True)
    )
