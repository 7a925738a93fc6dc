"""Logical lines to a syntax tree. Mistakes are reported and skipped, so that each gets its own message."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Span
from optdsl.lang.grammar import LineError, Token, Tree, parse_line
from optdsl.lang.source import LogicalLine, Source

#: An expression may be this deep, a block this deep, and this many branches may be tried one after the other
#: until it is reached: later stages recurse over all three.
MAX_DEPTH = 120
MAX_BLOCKS = 16
MAX_BRANCHES = 60
#: A section may declare this much.
MAX_DECLARATIONS = 250
#: Whole numbers are what fits into 64 bits everywhere.
MAX_INT = 2**63 - 1

_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
_BINARY = {"+": "add", "-": "sub", "*": "mul", "/": "div", "@": "matmul"}
_BLOCKS = ("if_", "elif_", "else_", "every", "repeat")


def parse(source: Source) -> syn.File:
    """The syntax tree of a file. Problems are in `source.report`; what does not parse is left out."""
    return _Parser(source).file()


class _Parser:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.report = source.report
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

    # ---- top level ------------------------------------------------------------------------------------

    def file(self) -> syn.File:
        imports: list[syn.Import] = []
        defs: list[syn.Def] = []
        specs: list[syn.Spec] = []
        edition = 1
        while (line := self.peek()) is not None:
            self.at += 1
            if line.indent:
                self.report("E0105", line.whole, "unexpected indentation", "this line belongs to no block")
                continue
            tree = self.tree("top", line)
            if tree is None:
                self.skip_block(line)
                continue
            match tree.data:
                case "edition":
                    edition = 1 if _token(tree, 0) == "1" else 0
                    if edition != 1 or specs or defs or imports:
                        self.report(
                            "E0108", line.whole, "the only edition is `edition 1`, as the first line", ""
                        )
                case "import_":
                    imports.append(syn.Import(_text(_token(tree, 0)), line.whole))
                case "def_":
                    found = self.definition(tree, line)
                    if found:
                        defs.append(found)
                case _:
                    specs.append(self.spec(tree, line))
        if not specs and not defs and not self.report.failed:
            self.report(
                "E0109",
                Span.of_line(1),
                "there is no `optimizer`, `transform` or `def` in this file",
                "start with `optimizer NAME:`; `optdsl new NAME` writes a first one",
            )
        return syn.File(
            self.source.path, tuple(imports), tuple(defs), tuple(specs), edition, tuple(self.source.lines)
        )

    def definition(self, tree: Tree[Token], line: LogicalLine) -> syn.Def | None:
        name, *rest = tree.children
        body_tree = rest.pop() if isinstance(rest[-1], Tree) or rest[-1] is None else None
        parameters = tuple((str(p), self.span(line, p)) for p in rest if isinstance(p, Token))
        assert isinstance(name, Token)
        body = self.body(body_tree if isinstance(body_tree, Tree) else None, line, 1)
        return syn.Def(str(name), self.span(line, name), parameters, body, line.whole)

    def spec(self, tree: Tree[Token], line: LogicalLine) -> syn.Spec:
        token = tree.children[0]
        assert isinstance(token, Token)
        doc, cite = "", ""
        hypers: list[syn.HyperSyntax] = []
        states: list[syn.StateSyntax] = []
        steps: list[syn.StepSyntax] = []
        uses: list[syn.Use] = []
        seen: dict[str, int] = {}
        whole = True
        for member in self.block(line):
            found = self.tree("member", member)
            whole = whole and found is not None
            if found is None:
                self.skip_block(member)
                continue
            section = str(found.data)
            if section in ("doc", "cite", "hyper_section", "state_section", "step", "step_otherwise"):
                if section in seen:
                    self.report(
                        "E0106",
                        member.whole,
                        f"`{section.split('_')[0]}` is given twice (first on line {seen[section]})",
                        "merge the two",
                    )
                seen.setdefault(section, member.line)
            match section:
                case "doc":
                    doc = _doc(_token(found, 0))
                case "cite":
                    cite = _text(_token(found, 0))
                case "hyper_section":
                    hypers += self.hypers(member)
                case "state_section":
                    states += self.states(member)
                case "use_member":
                    uses.append(self.use(found.children[0], member))
                    if steps:
                        self.report(
                            "E0103",
                            member.whole,
                            "`use` behind `step:`",
                            "write it inside the step, or before it",
                        )
                case _:
                    steps.append(self.step(found, member))
        if whole or steps:  # else the step may be in what did not parse
            self.check_steps(steps, line, str(tree.data), bool(uses))
        return syn.Spec(
            str(tree.data),
            str(token),
            self.span(line, token),
            doc,
            cite,
            tuple(hypers),
            tuple(states),
            tuple(uses),
            tuple(steps),
            line.whole,
        )

    def check_steps(self, steps: list[syn.StepSyntax], line: LogicalLine, kind: str, uses: bool) -> None:
        if not steps and not uses:
            self.report(
                "E0107", line.whole, f"this {kind} has no step", "add `step:` with at least one assignment"
            )
            return
        plain = [s for s in steps if s.condition is None and not s.otherwise]
        if len(steps) > 1 and plain:
            self.report(
                "E0106",
                plain[0].span,
                "`step:` beside `step when`",
                "use `step otherwise:` for all other shapes",
            )
        if len(steps) > MAX_BRANCHES:
            self.report(
                "E0008", steps[MAX_BRANCHES].span, f"more than {MAX_BRANCHES} kinds of step", "merge some"
            )
            del steps[MAX_BRANCHES:]
        for index, step in enumerate(steps):
            if step.otherwise and (index == 0 or index != len(steps) - 1):
                self.report("E0103", step.span, "`step otherwise` must come last, after a `step when`", "")

    # ---- declarations ---------------------------------------------------------------------------------

    def hypers(self, section: LogicalLine) -> list[syn.HyperSyntax]:
        found = []
        for line in self.section(section):
            tree = self.tree("hyper", line)
            if tree is not None:
                found.append(self.hyper(tree, line))
        return found

    def states(self, section: LogicalLine) -> list[syn.StateSyntax]:
        found = []
        for line in self.section(section):
            tree = self.tree("state", line)
            if tree is not None:
                found.append(self.state(tree, line))
        return found

    def section(self, header: LogicalLine) -> Iterator[LogicalLine]:
        if not self.has_block(header):
            self.report(
                "E0104", header.whole, f"`{header.text}` has no lines", "indent its lines, or remove it"
            )
        for count, line in enumerate(self.block(header)):
            if count == MAX_DECLARATIONS:
                message = f"more than {MAX_DECLARATIONS} lines in `{header.text}`"
                self.report("E0003", line.whole, message, "is this the right file?")
            if count < MAX_DECLARATIONS:
                yield line
            if self.has_block(line):
                following = self.peek()
                assert following is not None
                self.report("E0105", following.whole, "unexpected indentation", "a declaration is one line")
                self.skip_block(line)

    def hyper(self, tree: Tree[Token], line: LogicalLine) -> syn.HyperSyntax:
        name, value, range_, doc = tree.children
        assert isinstance(name, Token)
        assert isinstance(value, Tree)
        parts: tuple[tuple[str, syn.LiteralValue, Span], ...] = ()
        default: syn.LiteralValue | None = None
        if value.data == "parts":
            parts = tuple(
                (
                    str(part.children[0]),
                    self.literal(part.children[1], line),
                    self.span(line, part.children[0]),
                )
                for part in value.children
                if isinstance(part, Tree)
            )
        else:
            default = self.literal(value, line)
        interval: syn.IntervalSyntax | syn.ChoicesSyntax | None = None
        if isinstance(range_, Tree):
            span = self.span(line, range_)
            if range_.data == "choices":
                interval = syn.ChoicesSyntax(
                    tuple(_text(c) for c in range_.children if isinstance(c, Token)), span
                )
            else:
                left, low, high, right = range_.children
                ends = self.signed(low, line), self.signed(high, line)
                interval = syn.IntervalSyntax(*ends, left == "(", right == ")", span)
        return syn.HyperSyntax(
            str(name),
            self.span(line, name),
            default,
            self.span(line, value),
            parts,
            interval,
            _text(doc) if isinstance(doc, Token) else "",
            line.whole,
        )

    def state(self, tree: Tree[Token], line: LogicalLine) -> syn.StateSyntax:
        name, *rest = tree.children
        *levels, init, key, stored = rest
        named = [level for level in levels if isinstance(level, Token)]
        assert isinstance(name, Token)

        def token_span(token: object) -> Span:
            return self.span(line, token) if isinstance(token, Token) else line.whole

        level_span = line.whole
        if named:
            first, last = token_span(named[0]), token_span(named[-1])
            level_span = Span(first.line, first.column, last.end_line, last.end_column)
        return syn.StateSyntax(
            str(name),
            self.span(line, name),
            ", ".join(map(str, named)) or None,
            level_span,
            self.expression(init, line) if init is not None else None,
            str(key) if key is not None else None,
            token_span(key),
            str(stored) if stored is not None else None,
            token_span(stored),
            line.whole,
        )

    def step(self, tree: Tree[Token], line: LogicalLine) -> syn.StepSyntax:
        condition = self.expression(tree.children[0], line) if tree.data == "step_when" else None
        body = self.body(None, line, 1)
        return syn.StepSyntax(condition, tree.data == "step_otherwise", body, line.whole)

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
        bindings = []
        for argument in arguments:
            if isinstance(argument, Tree):
                target, *values = argument.children
                expressions = tuple(self.expression(value, line) for value in values)
                bindings.append((str(target), expressions, self.span(line, argument)))
        gradient = None
        if with_name is not None:
            gradient = (str(with_name), self.expression(with_value, line), self.span(line, with_name))
        return syn.Use(
            str(name),
            self.span(line, name),
            tuple(bindings),
            str(alias) if alias is not None else None,
            gradient,
            line.whole,
        )

    # ---- expressions ----------------------------------------------------------------------------------

    def span(self, line: LogicalLine, node: object) -> Span:
        if isinstance(node, Token):
            return line.span(node.line or 1, node.column or 1, node.end_line or 1, node.end_column or 2)
        assert isinstance(node, Tree)
        meta = node.meta
        if meta.empty:
            return line.whole
        return line.span(meta.line, meta.column, meta.end_line, meta.end_column)

    def number(self, text: str, span: Span) -> int | float:
        """The value of a number, with a message when there is none."""
        if not text.lstrip("+-").isdigit():
            value = float(text)
            if math.isinf(value) and "inf" not in text:
                self.report(
                    "E0101", span, "this number is too large for a float", "write `inf` if that is meant"
                )
            return value
        if len(text) > 20 or abs(int(text)) > MAX_INT:
            self.report(
                "E0101", span, "this whole number does not fit into 64 bits", "write it as a float: `1e30`"
            )
            return 0
        return int(text)

    def signed(self, node: object, line: LogicalLine) -> int | float:
        """A number with its sign."""
        assert isinstance(node, Tree)
        return self.number("".join(map(str, node.children)), self.span(line, node))

    def literal(self, node: object, line: LogicalLine) -> syn.LiteralValue:
        assert isinstance(node, Tree)
        last = _token(node, -1)
        match last.type:
            case "TRUE" | "FALSE":
                return last.type == "TRUE"
            case "STRING":
                return _text(last)
        return self.signed(node, line)

    def expression(self, node: object, line: LogicalLine) -> syn.Expression:
        assert isinstance(node, Tree)
        span = self.span(line, node)
        children = node.children

        def sub(index: int) -> syn.Expression:
            return self.expression(children[index], line)

        match node.data:
            case "int" | "float":
                return syn.Number(self.number(str(children[0]), span), span)
            case "true" | "false":
                return syn.Bool(node.data == "true", span)
            case "string":
                return syn.String(_text(children[0]), span)
            case "name":
                return syn.Name(str(children[0]), span)
            case "paren":
                return sub(0)
            case "unary":
                value = sub(1)
                if str(children[0]) == "+":
                    return value
                if isinstance(value, syn.Number):
                    return syn.Number(-value.value, span)
                return syn.Operation("neg", (value,), span)
            case "binary":
                return syn.Operation(_BINARY[str(children[1])], (sub(0), sub(2)), span)
            case "pow":
                return syn.Operation("pow", (sub(0), sub(1)), span)
            case "transpose":
                return syn.Operation("transpose", (sub(0),), span)
            case "not_":
                return syn.Operation("not", (sub(0),), span)
            case "and_" | "or_":
                return syn.Operation(str(node.data)[:-1], (sub(0), sub(1)), span)
            case "comparison":
                ops = tuple(_COMPARE[str(c)] for c in children[1::2])
                return syn.Compare(ops, tuple(self.expression(c, line) for c in children[::2]), span)
            case "if_else":
                return syn.IfElse(sub(1), sub(0), sub(2), span)
            case "call":
                return self.call(node, line, span)
            case other:
                raise AssertionError(other)

    def call(self, node: Tree[Token], line: LogicalLine, span: Span) -> syn.Expression:
        function, *arguments = node.children
        args: list[syn.Expression] = []
        keywords: list[tuple[str, syn.Expression]] = []
        for argument in arguments:
            if argument is None:
                continue
            if isinstance(argument, Tree) and argument.data == "keyword":
                keywords.append((str(argument.children[0]), self.expression(argument.children[1], line)))
            else:
                if keywords:
                    self.report(
                        "E0101", self.span(line, argument), "a positional argument behind a keyword", ""
                    )
                args.append(self.expression(argument, line))
        return syn.CallSyntax(str(function), tuple(args), tuple(keywords), span, self.span(line, function))


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


def _token(tree: Tree[Token], index: int) -> Token:
    token = tree.children[index]
    assert isinstance(token, Token)
    return token


def _text(token: object) -> str:
    """The value of a string."""
    return _unescape(string_body(str(token)))


def string_body(text: str) -> str:
    """What stands between the quotes of a string."""
    return text[3:-3] if text.startswith('"""') and len(text) >= 6 else text[1:-1]


def _unescape(body: str) -> str:
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


def _doc(token: Token) -> str:
    """The text of a docstring."""
    return _unescape("\n".join(doc_lines(string_body(str(token))))).strip()
