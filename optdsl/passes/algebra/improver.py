"""The pass over a bloated program: which expressions are looked at, in which order, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping

from optdsl.ir.expr import Expr, rebuild, transform, walk
from optdsl.ir.program import Assign, Program
from optdsl.passes.algebra.bloat import bloated
from optdsl.passes.algebra.host import Host
from optdsl.passes.algebra.inline import Inline
from optdsl.passes.algebra.judge import Judge
from optdsl.passes.algebra.proposer import Proposer
from optdsl.passes.algebra.region import largest, region, replaced, sizes_of
from optdsl.passes.cost import cost, expression_cost
from optdsl.passes.intervals import Intervals
from optdsl.passes.simplify import drop_dead, simplify

_MAX_ROUNDS = 8
_MAX_WRITTEN = 10_000  # nodes of a step that is looked at as a whole


class OutOfTime(Exception):
    """The budget is spent."""


class Improver:
    """Improves one program, as far as its budget goes."""

    def __init__(self, program: Program, deadline: float, max_nodes: int, finite_only: bool) -> None:
        self.program = program
        self.max_nodes = max_nodes
        self.finite_only = finite_only
        self.host = Host(program)
        self.proposer = Proposer(Intervals(program), self.check_time)
        self.deadline = deadline
        self.memo: dict[Expr, Expr] = {}

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def check_time(self) -> None:
        if self.late:
            raise OutOfTime

    def run(self) -> Program:
        best = self.program
        for _ in range(_MAX_ROUNDS):
            self.each()
            if _written_size(self.program) <= _MAX_WRITTEN:
                self.together()
                if self.program is not best:
                    # what has become equal gets one name, what is only a name goes
                    self.program = simplify(self.program, exact_only=True)
            if not cost(self.program) < cost(best):
                break
            best = self.program
        return best

    def replace(self, name: str, expr: Expr) -> None:
        body = tuple(
            Assign(a.name, a.source, expr, a.guard, a.line) if a.name == name else a
            for a in self.program.body
        )
        self.program = self.program.with_body(body, self.program.results)

    def each(self) -> None:
        """Every assignment by itself."""
        for assign in self.program.body:
            expr = self.expression(assign.expr)
            if expr is not assign.expr:
                self.replace(assign.name, expr)

    def together(self) -> None:
        """Assignments with those that only they read."""
        inline = Inline(self.program)
        for name in [assign.name for assign in reversed(self.program.body)]:
            assign = inline.definitions.get(name)
            if assign is None or self.late:
                continue
            values: dict[str, Expr] = {}
            inlined = inline(assign, values)
            if inlined is assign.expr:
                continue
            expr = self.expression(inlined)
            if expr is not inlined:
                self.replace(name, _named(expr, values, inline))
                self.program = drop_dead(self.program)
                inline = Inline(self.program)

    def expression(self, expr: Expr) -> Expr:
        """`expr` with its parts improved, those below first."""
        if self.late:
            return expr
        roots = largest(expr, self.max_nodes)
        if not roots:
            return expr
        done: dict[int, Expr] = {}
        for node in walk(expr):
            new = rebuild(node, tuple(done[id(arg)] for arg in node.args))
            if id(node) in roots and not self.late:
                new = self.region(new)
            done[id(node)] = new
        return done[id(expr)]

    def region(self, root: Expr) -> Expr:
        """The cheapest accurate form of `root` that was found."""
        if root not in self.memo:
            self.memo[root] = self.search(root)
        return self.memo[root]

    def search(self, root: Expr) -> Expr:
        if not any(bloated(node) for node in region(root)):
            return root
        judge = Judge(root, self.host, self.finite_only)
        best, tried = root, set[Expr]()
        try:
            for _ in range(_MAX_ROUNDS):
                better = self.round(best, judge, tried)
                if better is None:
                    break
                best = better
        except OutOfTime:
            pass  # what was found before stands
        return best

    def round(self, best: Expr, judge: Judge, tried: set[Expr]) -> Expr | None:
        """A better form of `best`: of the whole if there is one, else of a bloated node, largest first."""
        sizes = sizes_of(best)
        nodes = [n for n in region(best) if n is best or bloated(n)]
        nodes.sort(key=lambda n: -sizes[id(n)][0])
        for node in nodes:
            if node in tried:
                continue
            tried.add(node)
            self.check_time()
            now = expression_cost([best]).device_key
            forms: list[tuple[tuple[int, ...], int, Expr]] = []
            for form in self.proposer.proposals(node):
                whole = replaced(best, node, form)
                price = expression_cost([whole]).device_key
                if whole.type == best.type and price < now:
                    forms.append((price, len(forms), whole))
            for _, _, whole in sorted(forms, key=lambda form: form[:2]):
                self.check_time()
                if judge.accepts(whole):
                    return whole
        return None


def _written_size(program: Program) -> float:
    """The number of nodes in the step if a shared node counts each time it is used."""
    sizes: dict[int, float] = {}
    total = 0.0
    for assign in program.body:
        for node in walk(assign.expr):
            sizes[id(node)] = 1.0 + sum(sizes[id(arg)] for arg in node.args)
        total += sizes[id(assign.expr)]
    return total


def _named(expr: Expr, values: Mapping[str, Expr], inline: Inline) -> Expr:
    """`expr` with values that survived called by their names again, the last ones first."""
    for name, made in reversed(inline.definitions.items()):
        if name in values:
            for form in (inline(made), made.expr):
                expr = transform(expr, lambda n, f=form, v=made.var: v if n is f else n)  # type: ignore[misc]
    return expr
