"""Reads the pages of the error codes; `python tests/lang/update_pages.py` renders their messages anew."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from optdsl.check import Checked, check_path, check_text
from optdsl.lang.diagnostics import CODES
from optdsl.lang.explain import PAGES, page

FORM = re.compile(
    r"# (?P<code>[EW]\d{4}): (?P<title>.+)\n\n"
    r"(?P<prose>.+?)\n\n"
    r"## Example\n\n"
    r"```(?P<kind>opt|sh|text)\n(?P<example>.*?\n)```\n\n"
    r"```text\n(?P<rendering>.*?)```\n\n"
    r"## Corrected\n\n"
    r"```opt\n(?P<corrected>.*?\n)```\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Page:
    """The parts of a page. `example` is text for a reader when `kind` is not "opt"."""

    code: str
    title: str
    prose: str
    kind: str
    example: str
    rendering: str
    corrected: str


def read(code: str) -> Page:
    """The page of a code. Raises ValueError when it is not laid out as all are."""
    match = FORM.fullmatch(page(code))
    if match is None:
        raise ValueError(f"the page of {code} has another form")
    return Page(**match.groupdict())


def missing_file() -> Checked:
    return check_path("missing.opt")


def latin_text() -> Checked:
    Path("latin1.opt").write_bytes(b'optimizer Plain:\n    """caf\351"""\n')
    return check_path("latin1.opt")


def large_file() -> Checked:
    Path("large.opt").write_text("#" * 300_000)
    return check_path("large.opt")


def long_line() -> Checked:
    return check_text(
        "optimizer Plain:\n    step:\n        p = p - (g" + " + g" * 2_000 + ")\n", "example.opt"
    )


#: How the examples that are no text of a spec are made, in an empty folder.
MADE: dict[str, Callable[[], Checked]] = {
    "E0001": missing_file,
    "E0002": latin_text,
    "E0003": large_file,
    "E0009": long_line,
}


def check(found: Page) -> Checked:
    """The outcome of a page's example."""
    if found.kind == "opt":
        return check_text(found.example, "example.opt")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        return MADE[found.code]()


def rendered(checked: Checked) -> str:
    """The messages as the page shows them."""
    return "\n\n".join(message.render() for message in checked.diagnostics) + "\n"


def main() -> int:
    """Renders the messages of all pages, and says which pages are wrong nevertheless."""
    wrong = 0
    for code in CODES:
        found, text = read(code), page(code)
        checked = check(found)
        start, end = FORM.fullmatch(text).span("rendering")  # type: ignore[union-attr]
        (PAGES / f"{code}.md").write_text(text[:start] + rendered(checked) + text[end:], encoding="utf-8")
        codes = [message.code for message in checked.diagnostics]
        left = [message.code for message in check_text(found.corrected, "example.opt").diagnostics]
        if set(codes) != {code} or left:
            wrong += 1
            print(f"{code}: the example gives {codes}, the corrected version {left}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
