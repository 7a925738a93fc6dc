"""The one module that knows lark: turns a logical line into a lark tree or a `LineError`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import re
import sys
import unicodedata

import lark
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken
from lark.lexer import PatternRE, PatternStr, TerminalDef

from optdsl import __version__
from optdsl.lang.diagnostics import nearest
from optdsl.resources import cache_dir, data_dir, write_bytes

__all__ = ["LineError", "Token", "Tree", "parse_line", "tokens_of"]

STARTS = ["top", "member", "hyper", "state", "statement"]

#: What follows a keyword, as a pattern.
_WHOLE_WORD = r"(?![A-Za-z0-9_])"
#: How a terminal is called in a message.
_WORDS = {
    "NAME": "a name",
    "INT": "a number",
    "FLOAT": "a number",
    "INF": "`inf`",
    "STRING": "a string",
    "SIGN": "`+` or `-`",
    "MUL": "`*`, `/` or `@`",
    "COMPARE": "a comparison",
    "OPEN": "`(` or `[`",
    "CLOSE": "`)` or `]`",
    "TRUE": "`true`",
    "FALSE": "`false`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "EQUAL": "`=`",
    "CIRCUMFLEX": "`^`",
    "QUOTE": "`'`",
    "$END": "the end of the line",
}
#: Those of them that are words of the language, as all that are not among them.
_KEYWORDS = {"INF", "TRUE", "FALSE"}
#: What other languages write, and what this one writes instead.
_HINTS = {
    "**": "write a power as `x^2`",
    "+=": "write it out: `m = m + ...`",
    "-=": "write it out: `p = p - ...`",
    "*=": "write it out: `p = p * ...`",
    "/=": "write it out: `v = v / ...`",
    "&&": "write `and`",
    "||": "write `or`",
    "!": "write `not`",
    "%": "write `mod(x, y)`",
    "&": "write `and`",
    "|": "write `or` (or `abs(x)` for |x|)",
    ";": "one statement per line",
    "==": "`=` assigns, `==` compares",
}
#: Signs that are pasted from papers and word processors, and how this language writes them.
_SIGNS = {
    **dict.fromkeys("−–—‐", "write `-`"),
    **dict.fromkeys("×·⋅∗⊙∘", "write `*`"),
    **dict.fromkeys("÷∕⁄", "write `/`"),
    **dict.fromkeys("“”„‘", 'write `"`'),
    **dict.fromkeys("’′⊤", "the transpose of `x` is `x'`"),
    **dict.fromkeys("←≔", "write `=`"),
    **dict.fromkeys("\u00a0\u2009\u202f\u3000", "write an ordinary blank"),
    "≤": "write `<=`",
    "≥": "write `>=`",
    "≠": "write `!=`",
    "√": "write `sqrt(x)`",
    "²": "write `x^2`",
    "³": "write `x^3`",
    "∞": "write `inf`",
    "‖": "write `norm(x)`",
}
_GREEK = re.compile("GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)")


class LineError(Exception):
    """A line does not parse. Place is relative to the line's text, 1-based, end exclusive."""

    def __init__(self, line: int, column: int, length: int, code: str, message: str, help: str) -> None:
        super().__init__(message)
        self.line, self.column, self.length = line, column, length
        self.code, self.message, self.help = code, message, help


@functools.cache
def _parser() -> Lark:
    """The parser; building its tables takes longer than parsing a spec, so they are kept between runs."""
    text = (data_dir("grammar") / "optdsl.lark").read_text(encoding="utf-8")
    versions = f"{__version__} {lark.__version__} {sys.version_info}"
    key = hashlib.sha256(f"{text}{versions}{_WHOLE_WORD}".encode()).hexdigest()[:16]
    kept = cache_dir() / f"grammar-{key}.tables"
    # whatever is wrong with the kept tables, building them anew is the answer
    with contextlib.suppress(Exception), open(kept, "rb") as file:
        return Lark.load(file)
    parser = Lark(
        text,
        parser="lalr",
        start=STARTS,
        propagate_positions=True,
        maybe_placeholders=True,
        edit_terminals=_whole_words,
    )
    with contextlib.suppress(OSError):
        tables = io.BytesIO()
        parser.save(tables)
        write_bytes(kept, tables.getvalue())
    return parser


def _whole_words(terminal: TerminalDef) -> None:
    """Keywords match whole words only: `information` does not begin with `inf`."""
    pattern = terminal.pattern
    if isinstance(pattern, PatternStr) and pattern.value.isalpha():
        terminal.pattern = PatternRE(pattern.value + _WHOLE_WORD)
        terminal.priority = max(terminal.priority, 1)


def parse_line(start: str, text: str) -> Tree[Token]:
    """The tree of `text` read as a `start` (one of STARTS). Raises LineError."""
    try:
        return _parser().parse(text, start=start)
    except UnexpectedInput as error:
        raise _line_error(error, text) from None


def tokens_of(start: str, text: str) -> list[Token]:
    """Every token of a line that parses, those that its tree leaves out included."""
    tokens = list(_parser().parse_interactive(text, start=start).iter_parse())
    return [token for token in tokens if token.type != "$END"]


def _line_error(error: UnexpectedInput, text: str) -> LineError:
    position = error.pos_in_stream if isinstance(error.pos_in_stream, int) else len(text)
    for wrong, hint in _HINTS.items():
        # an operator of another language may be cut in two by ours, as `*` and `*`
        starts = [i for i in range(max(0, position - 1), position + 1) if text.startswith(wrong, i)]
        if starts and (len(wrong) > 1 or starts[0] == position):
            line, column = _place(text, starts[0])
            return LineError(line, column, len(wrong), "E0101", f"unexpected `{wrong}`", hint)
    if isinstance(error, UnexpectedCharacters):
        line, column = _place(text, position)
        found = text[position]
        if found.isprintable() and found.isascii():
            return LineError(
                line, column, 1, "E0101", f"unexpected `{found}`", _expected(error.allowed or ())
            )
        shown = f"`{found}`" if found.isprintable() else f"U+{ord(found):04X}"
        return LineError(line, column, 1, "E0102", f"the language has no character {shown}", _spelled(found))
    accepts = _accepted(error)
    if isinstance(error, UnexpectedEOF) or (
        isinstance(error, UnexpectedToken) and error.token.type == "$END"
    ):
        line, column = _place(text, len(text))
        return LineError(line, column, 1, "E0101", "the line ends too early", _expected(accepts))
    assert isinstance(error, UnexpectedToken)
    token = error.token
    line, column = _place(text, position)
    first = str(token).split("\n", 1)[0]
    shown = first if len(first) <= 60 and first == str(token) else first[:57] + "..."
    help = _expected(accepts)
    if token.type == "NAME":
        keywords = [name.lower() for name in accepts if name in _KEYWORDS or name not in _WORDS]
        help = nearest(shown.lower(), keywords) or help
    elif accepts == {"NAME"} and re.fullmatch(r"\s*\w+\s*=\s*\(\s*", text[:position]):
        help = "the parts of a tuple have names, as in `betas = (beta1: 0.9, beta2: 0.999)`"
    return LineError(line, column, max(1, len(first)), "E0101", f"unexpected `{shown}`", help)


def _spelled(found: str) -> str:
    """How a character that the language does not have is written in it."""
    if letter := _GREEK.fullmatch(unicodedata.name(found, "")):
        return f"write `{letter[2].lower() if letter[1] == 'SMALL' else letter[2].title()}`"
    return _SIGNS.get(found, "names are ASCII letters, digits and underscores")


def _accepted(error: UnexpectedInput) -> set[str]:
    if isinstance(error, UnexpectedToken):
        try:
            return (
                set(error.interactive_parser.accepts()) if error.interactive_parser else set(error.expected)
            )
        except (AttributeError, KeyError):
            return set(error.expected)
    return set()


def _expected(terminals: object) -> str:
    names = set(terminals) if isinstance(terminals, set | frozenset | list | tuple) else set()
    if len(names) > 12:  # anything of an expression: the list would not help
        operand = {"NAME", "INT", "LPAR"} <= names
        return "expected a value" if operand else "expected an operator or the end of the line"
    words = sorted({_WORDS.get(name, f"`{name.lower()}`") for name in names})
    if not words:
        return ""
    return "expected " + (words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1])


def _place(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1
