"""Assignments that are read once, put into the one that reads them: bloat is often spread over several."""

from __future__ import annotations

from collections import Counter

from optdsl.ir.expr import Expr, Var, variables, walk
from optdsl.ir.program import Assign, Program
from optdsl.passes.algebra.region import is_inner
from optdsl.passes.simplify import substitute


class Inline:
    """Puts assignments that are read in one other assignment only, under the same guard, into that one."""

    def __init__(self, program: Program) -> None:
        self.definitions = {assign.name: assign for assign in program.body}
        self.readers: Counter[str] = Counter()
        for assign in program.body:
            self.readers.update(variables(assign.expr))
            for condition, _ in assign.guard:
                self.readers.update(dict.fromkeys(variables(condition), 2))
        for expr in program.results.values():
            self.readers.update(dict.fromkeys(variables(expr), 2))

    def __call__(self, assign: Assign, values: dict[str, Expr] | None = None) -> Expr:
        """The expression of `assign` with such values in place; `values` collects them by name."""
        values = {} if values is None else values
        expr = assign.expr
        for _ in range(len(self.definitions)):
            found = {}
            for root in walk(expr):
                if is_inner(root) and not root.type.is_host:
                    for arg in root.args:
                        if isinstance(arg, Var) and self.fits(arg, assign):
                            found[arg.name] = self.definitions[arg.name].expr
            if not found or len(values) > 200:
                break
            values |= found
            expr = substitute(expr, found)
        return expr

    def fits(self, name: Var, reader: Assign) -> bool:
        made = self.definitions.get(name.name)
        return (
            made is not None
            and self.readers[name.name] == 1
            and made.guard == reader.guard
            and is_inner(made.expr)
            and not made.expr.type.is_host
        )
