"""Messages to the person who wrote a spec: code, place, what is wrong, what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable

from optdsl.core.record import record

#: Every code with its one-line meaning. `optdsl explain CODE` prints the page of a code, which holds an
#: example that provokes it; the tests compile each example.
CODES: dict[str, str] = {
    "E0001": "the file cannot be read",
    "E0002": "the file is not UTF-8 text",
    "E0003": "the file is too large",
    "E0004": "a tab in the indentation",
    "E0005": "inconsistent indentation",
    "E0006": "a string that does not end",
    "E0007": "brackets that do not match",
    "E0008": "nested too deeply",
    "E0009": "a line that is too long",
    "E0101": "unexpected text",
    "E0102": "a character the language does not have",
    "E0103": "a line in the wrong place",
    "E0104": "a block without contents",
    "E0105": "an unexpected indented block",
    "E0106": "a section given twice",
    "E0107": "a spec without a step",
    "E0108": "an unknown edition",
    "E0109": "no optimizer in the file",
    "E0201": "a name declared twice",
    "E0202": "a reserved name",
    "E0203": "a default outside its own interval",
    "E0204": "an interval that holds no number",
    "E0205": "a range that does not fit its hyperparameter",
    "E0206": "an unknown level",
    "E0207": "a format that a state cannot be stored in",
    "E0208": "two states with the same key",
    "E0209": "parts of a tuple of different types",
    "E0210": "a delay that a state cannot have",
    "E0301": "an unknown name",
    "E0302": "an unknown function",
    "E0303": "the wrong number of arguments",
    "E0304": "an unknown keyword argument",
    "E0305": "a name that may have no value yet",
    "E0306": "an assignment to a hyperparameter",
    "E0307": "an assignment to something that cannot be assigned",
    "E0308": "a state read before it has a value",
    "E0309": "a function used as a value",
    "E0401": "a condition that is not known on the host",
    "E0402": "a value too fine for the state it is stored in",
    "E0403": "a reduction over a single number",
    "E0404": "operands of the wrong kind",
    "E0405": "shapes that do not fit together",
    "E0406": "a count that is not a whole number known in advance",
    "E0407": "an unknown place to reduce over",
    "E0408": "an initial value that is not known before the first step",
    "E0501": "an unknown spec",
    "E0502": "an import that cannot be read",
    "E0503": "an import or use that goes in a circle",
    "E0504": "a hyperparameter that the used spec does not have",
    "E0505": "a function that calls itself",
    "E0506": "`update` before there is one",
    "E0507": "a function without a final return",
    "E0508": "a name that composition makes ambiguous",
    "E0509": "a binding that `use` cannot make",
    "E0510": "something that `eval:` cannot do",
    "E0601": "a step that grows too large",
    "E0602": "a loop that is too long",
    "W0701": "a hyperparameter that is never used",
    "W0702": "a state that is never used",
    "W0703": "a variable that is never used",
    "W0704": "a step that never moves the parameter",
}


@record
class Span:
    """A stretch of text: 1-based line and column of its start, and of the first character after it."""

    line: int
    column: int
    end_line: int
    end_column: int

    @staticmethod
    def of_line(line: int) -> Span:
        """The whole of a line."""
        return Span(line, 1, line, 1)


@record
class Diagnostic:
    """One message. `source_line` is the text of the line it points into, without its newline."""

    code: str
    path: str
    span: Span
    message: str
    help: str = ""
    source_line: str = ""

    @property
    def is_error(self) -> bool:
        """False for a warning."""
        return self.code.startswith("E")

    def render(self, color: bool = False) -> str:
        """The message as text for a terminal."""
        paint = _ANSI if color else _PLAIN
        word = "error" if self.is_error else "warning"
        tone = "red" if self.is_error else "yellow"
        message = paint(": " + _printable(self.message), "bold")
        head = paint(f"{word}[{self.code}]", tone) + message
        at = f"{_printable(self.path)}:{self.span.line}:{self.span.column}"
        number = str(self.span.line)
        margin = " " * len(number)
        bar = paint("|", "blue")
        lines = [head, f"{margin}{paint('-->', 'blue')} {at}"]
        if self.source_line.strip():
            text, caret = self._excerpt()
            lines += [f"{margin} {bar}", f"{paint(number, 'blue')} {bar} {text}"]
            lines.append(f"{margin} {bar} {paint(caret, tone)}")
        lines += [
            f"{margin} {paint('=', 'blue')} help: {_printable(line)}" for line in self.help.splitlines()
        ]
        return "\n".join(lines)

    def _excerpt(self) -> tuple[str, str]:
        """The source line and its caret line, cut to a window when the line is very long."""
        text = "".join(ch if ch.isprintable() else " " for ch in self.source_line)
        start = self.span.column - 1
        end = self.span.end_column - 1 if self.span.end_line == self.span.line else len(text)
        end = max(min(end, len(text)), start + 1)
        if len(text) > 120:
            left = max(0, start - 40)
            text = (
                ("..." if left else "") + text[left : left + 110] + ("..." if left + 110 < len(text) else "")
            )
            shift = left - (3 if left else 0)
            start, end = start - shift, min(end - shift, len(text))
        return text.rstrip(), " " * start + "^" * max(1, end - start)

    def as_json(self) -> dict[str, object]:
        """The message for editors: 1-based lines and columns, the end exclusive."""
        return {
            "code": self.code,
            "severity": "error" if self.is_error else "warning",
            "path": self.path,
            "line": self.span.line,
            "column": self.span.column,
            "end_line": self.span.end_line,
            "end_column": self.span.end_column,
            "message": self.message,
            "help": self.help,
        }


def _printable(text: str) -> str:
    """`text` without what a terminal would obey: a spec may come from a stranger."""
    return "".join(ch if ch.isprintable() else f"\\u{ord(ch):04x}" for ch in text)


def _PLAIN(text: str, tone: str) -> str:
    return text


def _ANSI(text: str, tone: str) -> str:
    code = {"red": "1;31", "yellow": "1;33", "blue": "1;34", "bold": "1"}[tone]
    return f"\x1b[{code}m{text}\x1b[0m"


class SpecError(Exception):
    """A spec has mistakes. `diagnostics` holds every message, warnings included."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n\n".join(d.render() for d in self.diagnostics if d.is_error))


class Reporter:
    """Collects messages of one file. Keeps at most `limit` errors, and one per code and place."""

    def __init__(self, path: str, lines: list[str], limit: int = 50) -> None:
        self.path = path
        self.lines = lines
        self.limit = limit
        self.found: list[Diagnostic] = []
        self._seen: set[tuple[str, Span]] = set()

    def __call__(self, code: str, span: Span, message: str, help: str = "") -> None:
        """Records a message."""
        assert code in CODES, code
        if (code, span) in self._seen or self.full:
            return
        self._seen.add((code, span))
        line = self.lines[span.line - 1] if 0 < span.line <= len(self.lines) else ""
        self.found.append(Diagnostic(code, self.path, span, message, help, line))

    @property
    def full(self) -> bool:
        """True when there are so many messages that further ones are dropped."""
        return len(self.found) >= self.limit

    @property
    def failed(self) -> bool:
        """True when an error was recorded."""
        return any(d.is_error for d in self.found)

    def sorted(self) -> list[Diagnostic]:
        """The messages in the order of the file."""
        return sorted(self.found, key=lambda d: (d.path, d.span.line, d.span.column))


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for the known name most like `name`, or an empty string."""
    import difflib  # only a mistake needs it

    found = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)
    return f"did you mean `{found[0]}`?" if found else ""


def to_json(diagnostics: Iterable[Diagnostic]) -> str:
    """All messages as one JSON array."""
    return json.dumps([d.as_json() for d in diagnostics], indent=2)
