"""Logical lines to a syntax tree. Mistakes are reported and skipped, so that each gets its own message."""

from __future__ import annotations

from collections.abc import Iterator

from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Span
from optdsl.lang.expressions import token_at
from optdsl.lang.grammar import Token, Tree
from optdsl.lang.source import LogicalLine, Source
from optdsl.lang.statements import MAX_BRANCHES, StatementReader
from optdsl.lang.strings import docstring_value, string_value

#: A section may declare this much.
MAX_DECLARATIONS = 250


def parse(source: Source) -> syn.File:
    """The syntax tree of a file. Problems are in `source.report`; what does not parse is left out."""
    return _Parser(source).file()


class _Parser(StatementReader):
    """Files, specs and declarations."""

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
                    edition = 1 if token_at(tree, 0) == "1" else 0
                    if edition != 1 or specs or defs or imports:
                        self.report(
                            "E0108", line.whole, "the only edition is `edition 1`, as the first line", ""
                        )
                case "import_":
                    imports.append(syn.Import(string_value(token_at(tree, 0)), line.whole))
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
        inputs: list[syn.InputSyntax] = []
        view: syn.StepSyntax | None = None
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
            if section not in ("input_member", "use_member", "step_when"):
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
                    doc = docstring_value(token_at(found, 0))
                case "cite":
                    cite = string_value(token_at(found, 0))
                case "hyper_section":
                    hypers += self.hypers(member)
                case "state_section":
                    states += self.states(member)
                case "input_member":
                    inputs.append(self.input(found, member))
                case "eval":
                    view = syn.StepSyntax(None, False, self.body(None, member, 1), member.whole)
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
            tuple(inputs),
            tuple(uses),
            tuple(steps),
            view,
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
        default: syn.LiteralValue | syn.ListSyntax | None = None
        common = self.range(range_, line)
        ranges: list[syn.IntervalSyntax | syn.ChoicesSyntax | None] = []
        if value.data == "parts":
            trees = [part for part in value.children if isinstance(part, Tree)]
            parts = tuple(
                (
                    str(part.children[0]),
                    self.literal(part.children[1], line),
                    self.span(line, part.children[0]),
                )
                for part in trees
            )
            ranges = [self.range(part.children[2], line) or common for part in trees]
        elif value.data == "list":
            default = self.listed(value, line)
        else:
            default = self.literal(value, line)
        return syn.HyperSyntax(
            str(name),
            self.span(line, name),
            default,
            self.span(line, value),
            parts,
            tuple(ranges),
            common,
            string_value(doc) if isinstance(doc, Token) else "",
            line.whole,
        )

    def range(self, tree: object, line: LogicalLine) -> syn.IntervalSyntax | syn.ChoicesSyntax | None:
        """What stands behind `in`, or None where nothing does."""
        if not isinstance(tree, Tree):
            return None
        span = self.span(line, tree)
        if tree.data == "choices":
            return syn.ChoicesSyntax(
                tuple(string_value(c) for c in tree.children if isinstance(c, Token)), span
            )
        left, low, high, right = tree.children
        ends = self.signed(low, line), self.signed(high, line)
        return syn.IntervalSyntax(*ends, left == "(", right == ")", span)

    def state(self, tree: Tree[Token], line: LogicalLine) -> syn.StateSyntax:
        name, *rest = tree.children
        *levels, init, key, stored, delay = rest
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
            self.expression(delay, line) if delay is not None else None,
            line.whole,
        )

    def input(self, tree: Tree[Token], line: LogicalLine) -> syn.InputSyntax:
        name, level, doc = tree.children
        assert isinstance(name, Token)
        text = string_value(doc) if isinstance(doc, Token) else ""
        named = str(level) if isinstance(level, Token) else None
        level_span = self.span(line, level) if named else line.whole
        return syn.InputSyntax(str(name), self.span(line, name), named, level_span, text, line.whole)

    def step(self, tree: Tree[Token], line: LogicalLine) -> syn.StepSyntax:
        condition = self.expression(tree.children[0], line) if tree.data == "step_when" else None
        body = self.body(None, line, 1)
        return syn.StepSyntax(condition, tree.data == "step_otherwise", body, line.whole)
