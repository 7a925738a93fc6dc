"""Reading a spec: bytes to logical lines.

A logical line is one declaration or statement: physical lines are joined inside brackets and docstrings,
comments are blanked out. Everything is bounded here (size, nesting, length), so that later stages may
recurse.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from optdsl.core.record import record
from optdsl.lang.diagnostics import Diagnostic, Reporter, Span, SpecError

MAX_BYTES = 64 * 1024
MAX_LINES = 5_000
MAX_NESTING = 60
MAX_LOGICAL_LINE = 4_000  # characters other than blanks, so that laying it out differently changes nothing

# Possessive repetition is for single characters: that of a group is wrong in Python 3.11.0 to 3.11.2.
_DOC = r'(?P<doc>"""[^\\"]*+(?:(?:\\.|"(?!""))[^\\"]*+)*""")|'
_REST = (
    r'(?P<string>"(?!"")[^\\"\n]*+(?:\\[^\n][^\\"\n]*+)*")'
    r'|(?P<unterminated>"""|")'
    r"|(?P<comment>\#[^\n]*)"
    r"|(?P<open>[(\[{])"
    r"|(?P<close>[)\]}])"
    r"|(?P<newline>\n)"
    r'|(?P<other>[^"\#()\[\]{}\n]+)'
)
_TOKEN = re.compile(_DOC + _REST, re.DOTALL)
_TOKEN_WITHOUT_DOC = re.compile(_REST, re.DOTALL)
#: The blanks of the language. Others (U+00A0...) are characters it does not have.
_BLANKS = " \t\f"
_STARTS_STATEMENT = re.compile(
    r"[ ]*(?:[A-Za-z_]\w*[ ]*=(?!=)"
    r"|(?:if|elif|else|every|repeat|use|step|state|hyper|optimizer|transform|def)\b)"
)
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_HELP_LARGE = "a method fits into a few dozen lines; is this the right file?"
_TOO_LARGE = (f"the file is larger than {MAX_BYTES // 1024} KiB", _HELP_LARGE)


@record
class LogicalLine:
    """`text` starts at column `indent + 1` of line `line`; comments in it are blanked, newlines kept.

    `broken` marks a line that already got its message: it holds its place in its block and says no more.
    """

    line: int
    indent: int
    text: str
    broken: bool = False

    @property
    def end_line(self) -> int:
        """The last physical line of it."""
        return self.line + self.text.count("\n")

    def span(self, line: int, column: int, end_line: int, end_column: int) -> Span:
        """A span given relative to `text` (1-based) as a span of the file."""
        shift = self.indent
        return Span(
            self.line + line - 1,
            column + (shift if line == 1 else 0),
            self.line + end_line - 1,
            end_column + (shift if end_line == 1 else 0),
        )

    @property
    def whole(self) -> Span:
        """The span of the first physical line of it."""
        first = self.text.split("\n", 1)[0].rstrip()
        return Span(self.line, self.indent + 1, self.line, self.indent + 1 + max(1, len(first)))


@record
class Comment:
    """A comment; `own_line` tells one that stands alone from one behind code."""

    line: int
    column: int
    text: str
    own_line: bool


@record(frozen=False)
class Source:
    """The text of one spec, cut into logical lines."""

    path: str
    text: str
    lines: list[str]
    logical: list[LogicalLine]
    comments: list[Comment]
    report: Reporter


def read_text(path: str | Path) -> str:
    """The text of a spec. Raises SpecError (E0001, E0002, E0003) with the file and what to do."""
    try:
        with open(path, "rb") as file:
            return read_open(file, str(path))
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        help = "check the path and its permissions"
        raise _unread(path, "E0001", f"cannot read `{path}`: {reason}", help) from None


def read_open(file: BinaryIO, path: str) -> str:
    """The text of a spec in a file that is open; `path` is for messages. Raises SpecError (E0002, E0003), OSError."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _unread(path, "E0003", *_TOO_LARGE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"byte 0x{data[error.start]:02x} is not valid UTF-8"
        raise _unread(path, "E0002", message, "save the file as UTF-8", line, column) from None


def _unread(
    path: str | Path, code: str, message: str, help: str, line: int = 1, column: int = 1
) -> SpecError:
    return SpecError([Diagnostic(code, str(path), Span(line, column, line, column + 1), message, help)])


def split(text: str, path: str) -> Source:
    """Cuts `text` into logical lines; problems go to `report` of the result."""
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        report = Reporter(path, [])
        report("E0003", Span(1, 1, 1, 2), *_TOO_LARGE)
        return Source(path, "", [], [], [], report)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    report = Reporter(path, lines)
    scanner = _Scanner(text, lines, report)
    scanner.run()
    return Source(path, text, lines, scanner.logical, scanner.comments, report)


class _Scanner:
    """One pass over the characters; `pieces` is the logical line being collected."""

    def __init__(self, text: str, lines: list[str], report: Reporter) -> None:
        self.text = text
        self.lines = lines
        self.report = report
        self.logical: list[LogicalLine] = []
        self.comments: list[Comment] = []
        self.pieces: list[str] = []
        self.start_line = 1
        self.line = 1
        self.line_start = 0
        self.brackets: list[tuple[str, Span]] = []
        self.broken = False
        self.pattern = _TOKEN

    def run(self) -> None:
        position = 0
        while position < len(self.text) and len(self.logical) <= MAX_LINES:
            match = self.pattern.match(self.text, position)
            assert match is not None
            position = self.token(match)
        self.close_brackets()
        self.finish()

    def token(self, match: re.Match[str]) -> int:
        """Takes one token; returns where the next one starts."""
        text, kind = match.group(), match.lastgroup
        span = self.here(match.start(), len(text) if "\n" not in text else 1)
        match kind:
            case "comment":
                own = not self.text[self.line_start : match.start()].strip()
                self.comments.append(Comment(span.line, span.column, text, own))
                self.pieces.append(" " * len(text))
            case "unterminated":
                self.report("E0006", span, "this string does not end", f"close it with {text}")
                if text == '"""':  # then neither does any other behind it: look for its end once only
                    self.pattern = _TOKEN_WITHOUT_DOC
                end = self.text.find("\n", match.start())
                end = len(self.text) if end < 0 else end
                self.broken = True  # nothing sensible can be said about the rest of this line
                self.brackets.clear()
                return end
            case "open":
                self.open(text, span)
            case "close":
                self.close(text, span)
            case "newline":
                self.newline(match.end())
            case _:
                self.pieces.append(text)
        if kind == "doc":
            self.line += text.count("\n")
            if "\n" in text:
                self.line_start = match.start() + text.rfind("\n") + 1
        return match.end()

    def here(self, offset: int, length: int) -> Span:
        column = offset - self.line_start + 1
        return Span(self.line, column, self.line, column + length)

    def open(self, text: str, span: Span) -> None:
        self.brackets.append((text, span))
        if len(self.brackets) > MAX_NESTING and not self.broken:
            self.broken = True
            self.report("E0008", span, f"brackets nested more than {MAX_NESTING} deep", "name parts of it")
        self.pieces.append(text)

    def close(self, text: str, span: Span) -> None:
        self.pieces.append(text)
        if not self.brackets:
            self.report("E0007", span, f"`{text}` closes nothing", "remove it or add its opening bracket")
            self.pieces[-1] = " "
            return
        opened, where = self.brackets.pop()
        # an interval such as [0, 1) mixes its ends on purpose
        if _PAIRS[opened] != text and "{" + "}" not in opened + text and {opened, text} & {"{", "}"}:
            self.report("E0007", span, f"`{text}` does not match `{opened}` on line {where.line}", "")

    def newline(self, end: int) -> None:
        self.line += 1
        self.line_start = end
        if self.brackets:
            following = self.lines[self.line - 1] if self.line <= len(self.lines) else ""
            indent = len(following) - len(following.lstrip(" "))
            if not (_STARTS_STATEMENT.match(following) and indent <= self.indent()):
                self.pieces.append("\n")
                return
            self.close_brackets()
        self.finish()

    def indent(self) -> int:
        """How far in the logical line being collected starts, a tab counting as far as it reaches."""
        first = self.pieces[0] if self.pieces else ""
        return len(first[: len(first) - len(first.lstrip(" \t"))].expandtabs(4))

    def close_brackets(self) -> None:
        if self.brackets and not self.broken:
            opened, span = self.brackets[0]
            self.report("E0007", span, f"`{opened}` is never closed", f"add the missing `{_PAIRS[opened]}`")
            self.broken = True
        self.brackets.clear()

    def finish(self) -> None:
        """Ends the logical line being collected."""
        text, indent, broken = "".join(self.pieces), self.indent(), self.broken
        start, self.start_line = self.start_line, self.line
        self.pieces, self.broken = [], False
        code = text.strip(_BLANKS + "\n")
        if not code and not broken:
            return
        if len(self.logical) >= MAX_LINES:
            self.report(
                "E0003", Span.of_line(start), f"the file has more than {MAX_LINES} lines of code", _HELP_LARGE
            )
            self.logical.append(LogicalLine(start, indent, "", broken=True))
            return
        margin = len(text) - len(text.lstrip(" \t"))
        if "\t" in text[:margin]:
            self.report(
                "E0004",
                Span(start, 1, start, margin + 1),
                "a tab in the indentation",
                "indent with four spaces",
            )
        if not broken and len("".join(code.split())) > MAX_LOGICAL_LINE:
            message = f"more than {MAX_LOGICAL_LINE} characters in one line"
            self.report("E0009", Span(start, margin + 1, start, margin + 2), message, "name parts of it")
            broken = True
        self.logical.append(LogicalLine(start, indent, "" if broken else code, broken))
