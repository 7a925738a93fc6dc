"""Layout of generated Python: lines of bounded length, docstrings that cannot be broken out of."""

from __future__ import annotations

import re

WIDTH = 84


def assignment(target: str, value: str) -> list[str]:
    """`target = value`, broken over several lines at the outermost brackets when it is long."""
    line = f"{target} = {value}"
    if len(line) <= WIDTH:
        return [line]
    if value.startswith("yield "):
        return [line]
    parts = split_call(value)
    if parts is None:
        return [f"{target} = (", f"    {value}", ")"]
    head, arguments = parts
    return [f"{target} = {head}(", *_arguments(arguments), ")"]


def _arguments(arguments: list[str]) -> list[str]:
    lines: list[str] = []
    for argument in arguments:
        parts = split_call(argument) if len(argument) + 5 > WIDTH else None
        if parts is None:
            lines.append(f"    {argument},")
        else:
            head, inner = parts
            lines += [f"    {head}(", *("    " + line for line in _arguments(inner)), "    ),"]
    return lines


#: A string literal, or a character outside of one.
_PIECE = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|.""", re.DOTALL)


def without_strings(code: str) -> str:
    """`code` with every string literal left out."""
    return "".join(found[0] for found in _PIECE.finditer(code) if found[0][0] not in "'\"")


def split_call(text: str) -> tuple[str, list[str]] | None:
    """(function, arguments) when `text` is one call, else None."""
    open_at = text.find("(")
    if (
        open_at <= 0
        or not text.endswith(")")
        or not text[:open_at].replace("_", "").replace(".", "").isalnum()
    ):
        return None
    depth, start, arguments = 0, open_at + 1, []
    for found in _PIECE.finditer(text, open_at):
        letter, index = found[0], found.start()
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if depth == 0 and index + 1 < len(text):
                return None  # something follows the call
        elif letter == "," and depth == 1:
            arguments.append(text[start:index].strip())
            start = index + 1
    arguments.append(text[start:-1].strip())
    return text[:open_at], [argument for argument in arguments if argument]


def docstring(text: str, indent: str = "    ") -> list[str]:
    """A docstring with the contents `text`, whatever characters it holds."""
    safe = "\n".join(_printable(line) for line in text.strip().split("\n"))
    # a quote stays as it is where no other follows it and the text goes on
    safe = re.sub(r'\\|"(?="|\Z)', lambda found: "\\" + found[0], safe)
    lines = safe.split("\n")
    first = f'{indent}"""{lines[0]}'
    if len(lines) == 1:
        return [first + '"""']
    rest = [f"{indent}{line}".rstrip() for line in lines[1:]]
    return [first, *rest, f'{indent}"""']


def _printable(line: str) -> str:
    """`line` with control characters and exotic spaces replaced."""
    return "".join(ch if ch.isprintable() else " " for ch in line.expandtabs(4))
