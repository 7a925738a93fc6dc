"""The one layout of a spec: its spaces, blank lines and columns; never its meaning or its comments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass

from optdsl.core.record import record
from optdsl.lang.diagnostics import Span, SpecError
from optdsl.lang.grammar import Token, tokens_of
from optdsl.lang.parser import parse
from optdsl.lang.source import Comment, LogicalLine, Source, split
from optdsl.lang.strings import doc_lines, string_body
from optdsl.lang.syntax import File

INDENT = " " * 4

_OPENERS = frozenset({"LPAR", "LSQB", "LBRACE", "OPEN"})
_CLOSERS = frozenset({"RPAR", "RSQB", "RBRACE", "CLOSE"})
#: What a value may end with; a sign behind anything else belongs to what follows it.
_VALUE_ENDS = _CLOSERS | {"NAME", "INT", "FLOAT", "INF", "TRUE", "FALSE", "STRING", "QUOTE"}
#: Nothing stands between these and what is in front of them.
_TIGHT = _CLOSERS | {"COMMA", "COLON", "QUOTE", "CIRCUMFLEX"}
#: How the lines of a block are read, by the first token of the line that opens it.
_BLOCKS = {
    "OPTIMIZER": "member",
    "TRANSFORM": "member",
    "HYPER": "hyper",
    "STATE": "state",
}


class FormatterError(Exception):
    """A mistake in the formatter: its result would mean something else. Not one of the person's."""


def format_text(text: str, path: str) -> str:
    """`text` in the one layout. Raises SpecError when it does not parse."""
    source = split(text, path)
    before = parse(source)
    if source.report.failed:
        raise SpecError(source.report.sorted())
    result = "".join(f"{line}\n" for line in _lines(_elements(source)))
    again = split(result, path)
    after = parse(again)
    if again.report.failed and all(d.code == "E0003" for d in again.report.found):
        raise SpecError(again.report.sorted())  # only the blanks of the layout make it too large
    same = not again.report.failed and outline(before) == outline(after)
    if not same or [c.text.rstrip() for c in source.comments] != [c.text for c in again.comments]:
        raise FormatterError(f"formatting {path} would change what it means; please report this")
    return result


def outline(node: object) -> object:
    """A syntax tree as nested tuples without places, so that two of them can be compared."""
    if isinstance(node, Span):
        return None
    if isinstance(node, tuple):
        return tuple(map(outline, node))
    if is_dataclass(node) and not isinstance(node, type):
        skipped = ("path", "lines") if isinstance(node, File) else ()
        parts = (outline(getattr(node, f.name)) for f in fields(node) if f.name not in skipped)
        return (type(node).__name__, *parts)
    return (type(node).__name__, repr(node))


# ---- elements: logical lines and the comments between them ----------------------------------------------


@record(frozen=False)
class _Element:
    """A logical line or a comment of its own: where it stood, how deep it belongs, how it is laid out.

    `head` is the type of its first token, `kind` what it was read as; both are empty for a comment. The doc
    of a hyperparameter is kept apart from `lines`, so that those of a block can be aligned.
    """

    start: int
    end: int
    depth: int
    lines: list[str]
    kind: str = ""
    head: str = ""
    doc: str = ""
    comment: str = ""
    simple: bool = False  # a line that opens no block


def _elements(source: Source) -> list[_Element]:
    """The file from top to bottom."""
    elements: list[_Element] = []
    open_blocks: list[tuple[int, str]] = []  # of each open line: its indentation, how lines below are read
    comments = _Comments(source.comments)
    for line in source.logical:
        levels = [indent for indent, _ in open_blocks]
        while open_blocks and line.indent <= open_blocks[-1][0]:
            open_blocks.pop()
        depth = len(open_blocks)
        elements += _own_lines(comments.before(line.line), levels, depth)
        kind = open_blocks[-1][1] if open_blocks else "top"
        element = _element(line, kind, depth, comments.before(line.end_line + 1))
        elements.append(element)
        open_blocks.append((line.indent, _BLOCKS.get(element.head, "statement")))
    elements += _own_lines(comments.before(None), [indent for indent, _ in open_blocks], 0)
    return elements


class _Comments:
    """The comments of a file, taken in order."""

    def __init__(self, comments: list[Comment]) -> None:
        self.comments = comments
        self.at = 0

    def before(self, line: int | None) -> list[Comment]:
        """Those not taken yet that stand above `line`; all of them for None."""
        start = self.at
        while self.at < len(self.comments) and (line is None or self.comments[self.at].line < line):
            self.at += 1
        return self.comments[start : self.at]


def _own_lines(comments: list[Comment], levels: list[int], below: int) -> Iterator[_Element]:
    """Comments between two lines: those indented deeper than the line below end the blocks above it.

    `levels` are the indentations of the line above and of those it stands in, `below` the depth of the next.
    """
    depth = max(below, len(levels) - 1)
    for comment in comments:
        inside = sum(level < comment.column for level in levels) - 1
        depth = max(below, min(depth, inside))
        yield _Element(comment.line, comment.line, depth, [INDENT * depth + comment.text.rstrip()])


def _element(line: LogicalLine, kind: str, depth: int, comments: list[Comment]) -> _Element:
    """One logical line, laid out."""
    tokens = tokens_of(kind, line.text)
    inner = {c.line - line.line + 1: c for c in comments}  # a physical line has one comment at most
    last = inner.pop(line.end_line - line.line + 1, None)
    element = _Element(line.line, line.end_line, depth, [], kind, tokens[0].type)
    element.comment = last.text.rstrip() if last else ""
    element.simple = tokens[-1].type != "COLON"
    if len(tokens) == 1 and tokens[0].startswith('"""'):
        element.lines = _docstring(tokens[0], INDENT * depth)
        return element
    if kind == "hyper" and tokens[-1].type == "STRING" and tokens[-2].type != "EQUAL":
        element.doc = str(tokens.pop())
    element.lines = _Layout(tokens, inner, INDENT * depth).lines()
    return element


def _docstring(token: Token, indent: str) -> list[str]:
    """A docstring with its text moved to `indent`."""
    first, *rest = texts = doc_lines(string_body(token))
    lines = [f'{indent}"""{first}', *(f"{indent}{line}" if line else "" for line in rest)]
    if rest and not rest[-1]:
        lines[-1] = indent
    elif texts[-1].endswith('"') or _ends_in_escape(texts[-1]):
        lines[-1] += " "  # else the closing quotes would be read together with it
    lines[-1] += '"""'
    return lines


def _ends_in_escape(text: str) -> bool:
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


# ---- one logical line -----------------------------------------------------------------------------------


class _Layout:
    """The tokens of one logical line, with the line breaks the person made inside brackets."""

    def __init__(self, tokens: Sequence[Token], comments: dict[int, Comment], indent: str) -> None:
        self.tokens = tokens
        self.comments = comments
        self.indent = indent
        self.done: list[str] = []
        self.current = indent
        self.brackets: list[
            tuple[int, bool]
        ] = []  # of each: the line it opened on, is it that of `use NAME(`

    def lines(self) -> list[str]:
        """The physical lines."""
        previous: Token | None = None
        tight = False
        for index, token in enumerate(self.tokens):
            if token.type in _CLOSERS:
                broken = previous is not None and self.break_before(token, previous)
                if broken:
                    self.current = self.margin(self.closers(index))
                self.brackets.pop()
            elif previous is not None and self.break_before(token, previous):
                pass
            elif previous is not None and not tight and self.spaced(token, previous):
                self.current += " "
            *above, self.current = f"{self.current}{token}".split("\n")
            self.done += above
            unary = token.type == "SIGN" and (previous is None or previous.type not in _VALUE_ENDS)
            tight = unary or token.type == "CIRCUMFLEX" or token.type in _OPENERS
            if token.type in _OPENERS:
                of_use = index >= 2 and self.tokens[index - 2].type == "USE"
                self.brackets.append((len(self.done), of_use))
            previous = token
        return [*self.done, self.current]

    def break_before(self, token: Token, previous: Token) -> bool:
        """Ends the physical line where the person did; with it go the comments up to `token`."""
        assert token.line is not None
        assert previous.end_line is not None
        if token.line == previous.end_line:
            return False
        margin = self.margin()
        for number in range(previous.end_line, token.line):
            comment = self.comments.get(number)
            if comment is None:
                continue
            text = comment.text.rstrip()
            if comment.own_line:
                self.done.append(self.current)
                self.current = margin + text
            else:
                self.current += f"  {text}"
        self.done.append(self.current)
        self.current = margin
        return True

    def closers(self, index: int) -> int:
        """How many brackets close before anything else does on the line that starts with this token."""
        count = 1
        for previous, token in zip(self.tokens[index:], self.tokens[index + 1 :], strict=False):
            if token.type not in _CLOSERS or token.line != previous.end_line:
                break
            count += 1
        return count

    def margin(self, closing: int = 0) -> str:
        """The indentation of a line that starts here: one more for every line with a bracket still open."""
        return self.indent + INDENT * len({line for line, _ in self.brackets[: len(self.brackets) - closing]})

    def spaced(self, token: Token, previous: Token) -> bool:
        """Whether a space stands between two tokens of a line."""
        if token.type in _TIGHT or (token.type == "LPAR" and previous.type == "NAME"):
            return False
        if token.type == "LSQB" and previous.type in _VALUE_ENDS:  # an entry of a list, unless it is a level
            first, *rest = self.tokens
            return previous is first or (first.type == "INPUT" and previous is rest[0])
        if "EQUAL" in (token.type, previous.type):
            return not self.brackets or self.brackets[-1][1]
        return True


# ---- blank lines and columns ------------------------------------------------------------------------------


def _lines(elements: list[_Element]) -> Iterator[str]:
    """The text of the file."""
    blanks = _blank_lines(elements)
    columns = _doc_columns(elements)
    for index, element in enumerate(elements):
        yield from [""] * blanks[index]
        *above, last = element.lines
        if element.doc:
            last = last.ljust(columns[index]) + element.doc
        yield from above
        yield f"{last}  {element.comment}" if element.comment else last


def _blank_lines(elements: list[_Element]) -> list[int]:
    """How many blank lines stand before each element: as the person had it, with the bounds of the layout."""
    blanks = [0] * len(elements)
    siblings: dict[int, _Element] = {}  # the last code at each depth
    group = 0  # where the comments that belong to the next line of code begin
    for index, element in enumerate(elements):
        if not index:
            siblings[element.depth] = element
            continue
        above = elements[index - 1]
        had = element.start - above.end - 1
        opens = bool(above.kind) and element.depth > above.depth
        blanks[index] = 0 if opens else min(had, 1)
        if above.kind or above.depth != element.depth:
            group = index
        if not element.kind:
            continue
        for depth in [depth for depth in siblings if depth > element.depth]:
            del siblings[depth]
        sibling = siblings.get(element.depth)
        if sibling is not None and sibling.kind and group:
            blanks[group] = _between(sibling, element, blanks[group])
        siblings[element.depth] = element
    return blanks


def _between(first: _Element, second: _Element, had: int) -> int:
    """How many blank lines stand between two lines of one block."""
    if second.kind == "top":
        headers = {first.head, second.head} <= {"EDITION", "IMPORT"}
        one_liners = first.head == second.head == "DEF" and first.simple and second.simple
        return had if headers or (one_liners and not had) else 2
    if second.kind == "member":
        sections = not (first.simple and second.simple)
        return 1 if sections else had
    return had


def _doc_columns(elements: list[_Element]) -> dict[int, int]:
    """The column at which the doc of each hyperparameter starts, by index: one per block."""
    columns: dict[int, int] = {}
    block: list[int] = []
    for index, element in [*enumerate(elements), (len(elements), None)]:
        if element is not None and element.kind == "hyper":
            block.append(index)
        elif element is None or element.kind:
            width = max((len(elements[i].lines[-1]) for i in block), default=0)
            columns.update(dict.fromkeys(block, width + 2))
            block = []
    return columns
