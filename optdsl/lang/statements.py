"""Logical lines to statements. A line that does not parse gets its message and is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Span
from optdsl.lang.expressions import ExpressionReader
from optdsl.lang.grammar import LineError, Token, Tree, parse_line
from optdsl.lang.source import LogicalLine, Source

#: An expression may be this deep, a block this deep, and this many branches may be tried one after the other
#: until it is reached: later stages recurse over all three.
MAX_DEPTH = 120
MAX_BLOCKS = 16
MAX_BRANCHES = 60

_BLOCKS = ("if_", "elif_", "else_", "every", "repeat")


class StatementReader(ExpressionReader):
    """Walks the logical lines of a file; `at` is the next one."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.lines = source.logical
        self.at = 0

    # ---- lines and blocks -----------------------------------------------------------------------------

    def peek(self) -> LogicalLine | None:
        return self.lines[self.at] if self.at < len(self.lines) else None

    def tree(self, start: str, line: LogicalLine) -> Tree[Token] | None:
        """The line's tree, or None after a message."""
        if line.broken or self.report.full:
            return None
        try:
            tree = parse_line(start, line.text)
        except LineError as error:
            code, message, help = error.code, error.message, error.help
            other = self.misplaced(start, line) if len(line.text) < 500 else None
            if other:
                code, message, help = "E0103", *other
                self.report(code, line.whole, message, help)
                return None
            span = line.span(error.line, error.column, error.line, error.column + error.length)
            self.report(code, span, message, help)
            return None
        if _depth(tree) > MAX_DEPTH:
            self.report("E0008", line.whole, "this expression is nested too deeply", "name parts of it")
            return None
        return tree

    def misplaced(self, start: str, line: LogicalLine) -> tuple[str, str] | None:
        """Message and help when the line would be right elsewhere."""
        homes = {
            "statement": "belongs into a `step:` block",
            "member": "belongs into an `optimizer` or `transform`",
            "top": "belongs to the top level of the file, without indentation",
        }
        for other, home in homes.items():
            if other == start:
                continue
            try:
                found = parse_line(other, line.text)
            except LineError:
                continue
            if start in ("hyper", "state") and found.data in ("assign", "statement"):
                return None  # a declaration with a mistake in it, rather than a statement
            return f"this line {home}", "check its indentation and the block it stands in"
        return None

    def block(self, parent: LogicalLine) -> Iterator[LogicalLine]:
        """The lines of the block below `parent`; the caller advances over nested blocks itself."""
        first = self.peek()
        if first is None or first.indent <= parent.indent:
            return
        indent = first.indent
        while (line := self.peek()) is not None and line.indent > parent.indent:
            if line.indent > indent:
                self.report(
                    "E0105", line.whole, "unexpected indentation", f"this block starts {indent} columns in"
                )
                self.skip_deeper(indent)
                continue
            if line.indent < indent:
                self.report(
                    "E0005",
                    line.whole,
                    f"indented by {line.indent} columns, between its block ({indent}) and the one around",
                    f"indent it by {indent} columns",
                )
            self.at += 1
            yield line

    def skip_deeper(self, indent: int) -> None:
        while (line := self.peek()) is not None and line.indent > indent:
            self.at += 1

    def skip_block(self, parent: LogicalLine) -> None:
        self.skip_deeper(parent.indent)

    def has_block(self, line: LogicalLine) -> bool:
        following = self.peek()
        return following is not None and following.indent > line.indent

    # ---- statements -----------------------------------------------------------------------------------

    def body(
        self, inline: Tree[Token] | None, line: LogicalLine, depth: int, tried: int = 0
    ) -> tuple[syn.Statement, ...]:
        """The statements after a colon: on the same line, or as the block below.

        `depth` counts the blocks around, `tried` the branches that were not taken on the way here.
        """
        if inline is not None:
            if self.has_block(line):
                following = self.peek()
                assert following is not None
                self.report(
                    "E0105", following.whole, "unexpected indentation", "the block stands on one line already"
                )
                self.skip_block(line)
            statement = self.simple(inline, line)
            return (statement,) if statement else ()
        if not self.has_block(line):
            self.report(
                "E0104", line.whole, "nothing follows this line", "indent the statements that belong to it"
            )
            return ()
        if depth > MAX_BLOCKS:
            self.report(
                "E0008", line.whole, f"blocks nested more than {MAX_BLOCKS} deep", "move parts into a `def`"
            )
            self.skip_block(line)
            return ()
        statements: list[syn.Statement] = []
        branches: list[tuple[str, syn.Expression | None, tuple[syn.Statement, ...], Span]] = []

        def flush() -> None:
            if branches:
                statements.append(_nest(branches))
                branches.clear()

        for item in self.block(line):
            tree = self.tree("statement", item)
            if tree is None:
                flush()
                self.skip_block(item)
                continue
            kind = str(tree.data)
            if kind in ("elif_", "else_") and (not branches or branches[-1][0] == "else_"):
                self.report(
                    "E0103", item.whole, f"`{kind[:-1]}` without an `if` above it", "check its indentation"
                )
                self.skip_block(item)
                continue
            if kind not in ("elif_", "else_"):
                flush()
            if kind in _BLOCKS:
                inner = tree.children[-1]
                before = tried + len(branches)
                if before == MAX_BRANCHES:
                    message = f"more than {MAX_BRANCHES} branches to get here"
                    self.report("E0008", item.whole, message, "move parts into a `def`")
                if before >= MAX_BRANCHES:
                    self.skip_block(item)
                    branches.append((kind, None, (), item.whole))
                    continue
                nested = self.body(inner if isinstance(inner, Tree) else None, item, depth + 1, before)
                if kind in ("if_", "elif_", "else_"):
                    condition = None if kind == "else_" else self.expression(tree.children[0], item)
                    branches.append((kind, condition, nested, item.whole))
                elif kind == "every":
                    offset = tree.children[1]
                    statements.append(
                        syn.Every(
                            self.expression(tree.children[0], item),
                            self.expression(offset, item) if offset is not None else None,
                            nested,
                            item.whole,
                        )
                    )
                else:
                    statements.append(syn.Repeat(self.expression(tree.children[0], item), nested, item.whole))
                continue
            if kind != "doc":
                statement = self.simple(tree.children[0] if kind == "statement" else tree, item)
                if statement:
                    statements.append(statement)
            if self.has_block(item):
                following = self.peek()
                assert following is not None
                self.report(
                    "E0105", following.whole, "unexpected indentation", "the line above opens no block"
                )
                self.skip_block(item)
        flush()
        return tuple(statements)

    def simple(self, tree: object, line: LogicalLine) -> syn.Statement | None:
        assert isinstance(tree, Tree)
        match tree.data:
            case "assign":
                name = tree.children[0]
                value = self.expression(tree.children[1], line)
                return syn.AssignSyntax(str(name), self.span(line, name), value, line.whole)
            case "return_":
                return syn.Return(self.expression(tree.children[0], line), line.whole)
            case _:
                return self.use(tree.children[0], line)

    def use(self, tree: object, line: LogicalLine) -> syn.Use:
        assert isinstance(tree, Tree)
        name, *arguments, alias, with_name, with_value = tree.children
        bindings: list[tuple[str, tuple[syn.Expression, ...], Span]] = []
        fixed: list[int] = []
        for argument in arguments:
            if isinstance(argument, Tree):
                target, *values = argument.children
                assert isinstance(target, Tree)
                if len(target.children) == 2:
                    fixed.append(len(bindings))
                if argument.data == "list_argument":
                    value = self.listed(Tree("list", values), line)
                    given: tuple[syn.Expression, ...] = (replace(value, span=self.span(line, argument)),)
                else:
                    given = tuple(self.expression(value, line) for value in values if value is not None)
                bindings.append((str(target.children[-1]), given, self.span(line, argument)))
        gradient = None
        if with_name is not None:
            gradient = (str(with_name), self.expression(with_value, line), self.span(line, with_name))
        return syn.Use(
            str(name),
            self.span(line, name),
            tuple(bindings),
            tuple(fixed),
            str(alias) if alias is not None else None,
            gradient,
            line.whole,
        )


def _nest(
    branches: list[tuple[str, syn.Expression | None, tuple[syn.Statement, ...], Span]],
) -> syn.Statement:
    """`if / elif / else` as nested `If`s."""
    other: tuple[syn.Statement, ...] = ()
    for _, condition, body, span in reversed(branches):
        other = body if condition is None else (syn.If(condition, body, other, span),)
    return other[0]


def _depth(tree: Tree[Token]) -> int:
    """Depth of a tree, without recursion."""
    deepest, stack = 0, [(tree, 1)]
    while stack:
        node, depth = stack.pop()
        deepest = max(deepest, depth)
        stack += [(child, depth + 1) for child in node.children if isinstance(child, Tree)]
    return deepest
