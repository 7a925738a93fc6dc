"""Strings and docstrings of the language: what stands between the quotes, and what it means."""

from __future__ import annotations

import re


def string_value(token: object) -> str:
    """The value of a string."""
    return unescape(string_body(str(token)))


def string_body(text: str) -> str:
    """What stands between the quotes of a string."""
    return text[3:-3] if text.startswith('"""') and len(text) >= 6 else text[1:-1]


def unescape(body: str) -> str:
    r"""`\"`, `\\`, `\n` and `\t` are escapes, other backslashes stay."""
    escapes = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda m: escapes.get(m[1], m[0]), body, flags=re.DOTALL)


def doc_lines(body: str) -> list[str]:
    """The lines of a docstring as written, without their common indentation and without blanks at their ends.

    The first line stands behind the quotes and does not count for the indentation.
    """
    first, *rest = (line.rstrip(" \t\f") for line in body.split("\n"))
    rest = [line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4) + line.lstrip(" \t") for line in rest]
    margin = min((len(line) - len(line.lstrip(" ")) for line in rest if line), default=0)
    return [first.lstrip(" \t\f"), *(line[margin:] for line in rest)]


def docstring_value(token: object) -> str:
    """The text of a docstring."""
    return unescape("\n".join(doc_lines(string_body(str(token))))).strip()
