"""Trees of expressions and literals to syntax."""

from __future__ import annotations

import math

from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Span
from optdsl.lang.grammar import Token, Tree
from optdsl.lang.source import LogicalLine, Source
from optdsl.lang.strings import string_value

#: Whole numbers are what fits into 64 bits everywhere.
MAX_INT = 2**63 - 1

_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
_BINARY = {"+": "add", "-": "sub", "*": "mul", "/": "div", "@": "matmul"}


class ExpressionReader:
    """Reads the trees that the grammar makes of expressions; places are those of the file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.report = source.report

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
        last = token_at(node, -1)
        match last.type:
            case "TRUE" | "FALSE":
                return last.type == "TRUE"
            case "STRING":
                return string_value(last)
        return self.signed(node, line)

    def listed(self, node: Tree[Token], line: LogicalLine) -> syn.ListSyntax:
        """The literals of a list."""
        values = tuple(self.literal(child, line) for child in node.children if isinstance(child, Tree))
        return syn.ListSyntax(values, self.span(line, node))

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
                return syn.String(string_value(children[0]), span)
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
            case "entry":
                return syn.Operation("entry", (sub(0), sub(1)), span)
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


def token_at(tree: Tree[Token], index: int) -> Token:
    """A child that is a token."""
    token = tree.children[index]
    assert isinstance(token, Token)
    return token
