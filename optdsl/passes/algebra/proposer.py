"""The one module that imports sympy, for a bloated expression only: other forms of it, good or bad."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import sympy

from optdsl.ir.expr import Expr
from optdsl.passes.algebra.bridge import Bridge, Unspeakable
from optdsl.passes.algebra.writer import Writer, factors_of
from optdsl.passes.intervals import Intervals


class Proposer:
    """Asks sympy for other forms of a node.

    Left out of sympy is what may not end: `simplify` and all that calls it. Sums are multiplied out, and
    polynomials factored, only while they are small.
    """

    MAX_TERMS = 48
    MAX_SYMBOLS = 7
    MAX_DEGREE = 8

    def __init__(self, intervals: Intervals, check_time: Callable[[], None]) -> None:
        self.intervals = intervals
        self.check_time = check_time

    def proposals(self, node: Expr) -> Iterator[Expr]:
        """Different forms of `node`, whatever they cost and however inaccurate they are."""
        bridge = Bridge(sympy, self.intervals)
        seen = {node}
        for form in self._forms(node, bridge):
            for late in (False, True):
                try:
                    expr = Writer(bridge, late).write(form)
                except (Unspeakable, OverflowError, RecursionError):
                    break
                if expr not in seen:
                    seen.add(expr)
                    yield expr

    def _forms(self, node: Expr, bridge: Bridge) -> Iterator[Any]:
        """Sympy expressions equal to `node`, where all is finite."""
        try:
            whole = bridge.forth(node)
        except (Unspeakable, RecursionError):
            return
        seen = set[Any]()
        todo: list[tuple[Any, bool]] = [(whole, True)]
        while todo:
            form, first = todo.pop(0)
            if form in seen:
                continue
            seen.add(form)
            yield form
            if not first:
                continue
            steps: list[Callable[[Any], Any]] = [
                sympy.powsimp, sympy.powdenest, sympy.factor_terms, sympy.gcd_terms
            ]  # fmt: skip
            if self._terms(form) <= self.MAX_TERMS:
                steps += [bridge.gathered, lambda e: sympy.factor_terms(bridge.gathered(e))]
                steps += [lambda e: sympy.powsimp(sympy.expand(e))]
                if self._is_small(form):
                    steps += [sympy.together, sympy.cancel, sympy.factor]
            for step in steps:
                self.check_time()
                try:
                    todo.append((step(form), False))
                except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
                    continue  # sympy could not: there is no such form
                except RecursionError:
                    continue

    def _terms(self, form: Any) -> int:
        """An upper bound on the number of terms of any part of `form`, multiplied out."""
        worst = 1
        counts: dict[Any, int] = {}
        for part in sympy.postorder_traversal(form):
            inner = [counts[arg] for arg in part.args]
            count = 1
            if part.is_Add:
                count = sum(inner)
            elif part.is_Mul:
                count = math.prod(inner)
            elif part.is_Pow and part.exp.is_Rational:
                n = min(math.ceil(abs(part.exp)), 64)
                count = math.comb(counts[part.base] + n - 1, n)
            counts[part] = min(count, 10**6)
            worst = max(worst, counts[part])
        return worst

    def _is_small(self, form: Any) -> bool:
        """True when factors and common divisors of the polynomials in `form` are found soon."""
        if len(form.free_symbols) > self.MAX_SYMBOLS:
            return False
        return all(degree <= self.MAX_DEGREE for degree in self._degrees(form).values())

    def _degrees(self, form: Any) -> dict[Any, int]:
        """A bound on the degree of each part of `form`, numerators and denominators together."""
        degrees: dict[Any, int] = {}
        for part in sympy.postorder_traversal(form):
            inner = [degrees[arg] for arg in part.args]
            degree = 1
            if part.is_Number:
                degree = 0
            elif part.is_Add:
                # over a common denominator the degrees of denominators add up
                whole = all(not f.is_Pow or f.exp.is_positive for t in part.args for f in factors_of(t))
                degree = max(inner) if whole else sum(inner)
            elif part.is_Mul:
                degree = sum(inner)
            elif part.is_Pow and part.exp.is_Rational:
                n, d = part.exp.as_numer_denom()
                degree = degrees[part.base] * min(abs(int(n)), 1000) if d == 1 else min(abs(int(n)), 1000)
            degrees[part] = degree
        return degrees
