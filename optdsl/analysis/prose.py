"""Text of a spec in a page of Markdown: shown as it is, never taken for markup, except for `code`."""

from __future__ import annotations

import re

from optdsl.analysis.symbols import printable

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPAN = re.compile(r"(?<!`)`([^`]*[^`\s][^`]*)`(?!`)")


def code(text: str) -> str:
    """`text` in a code span that may stand in a table; nothing for nothing."""
    text = " ".join(printable(" ".join(text.split())).split())
    if not text:
        return ""
    # a span ends at as many backticks as it began with
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")


def prose(text: str) -> str:
    """`text` on one line."""
    text = printable(" ".join(text.split()))
    parts = _SPAN.split(text)  # every second one is code
    shown = "".join(f"`{part}`" if index % 2 else _escape(part) for index, part in enumerate(parts))
    # at the beginning of a line these make lists, headings and rules
    return re.sub(r"^([-+=]|[0-9]+(?=[.)]))", _block, shown)


def cell(text: str) -> str:
    """`text` in a cell of a table, where a bar ends the cell even in code."""
    return re.sub(r"(?<!\\)\|", "\\|", prose(text))


def paragraphs(text: str) -> list[str]:
    """The paragraphs of `text`, a line each."""
    found = re.split(r"\n[ \t]*(?:\n[ \t]*)+", text.replace("\r\n", "\n").replace("\r", "\n"))
    return [prose(paragraph) for paragraph in found if paragraph.strip()]


def _escape(text: str) -> str:
    return re.sub(r"[\\`*_{}\[\]#$~|!&<>]", lambda found: _ENTITIES.get(found[0]) or "\\" + found[0], text)


def _block(found: re.Match[str]) -> str:
    # a number at the beginning keeps its digits: its dot is what is escaped
    return f"\\{found[0]}" if not found[0].isdigit() else found[0] + "\\"
