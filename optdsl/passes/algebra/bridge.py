"""Expressions as sympy has them. Sympy itself is handed over by `proposer`, which alone imports it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from optdsl.ir.expr import Call, Expr
from optdsl.passes.algebra.region import MAX_EXPONENT, is_inner, literal_of, region, sizes_of
from optdsl.passes.intervals import Intervals


class Unspeakable(Exception):
    """Something that has no counterpart on the other side."""


class Bridge:
    """From nodes to sympy. Literals that are not simple numbers become symbols, so that a constant
    keeps its value to the last bit, and what is made of several is rounded once.
    """

    MAX_OPERAND = 30  # nodes below a function; beyond, its value is a symbol

    def __init__(self, sympy: Any, intervals: Intervals) -> None:
        self.sympy = sympy
        self.intervals = intervals
        self.memo: dict[Expr, Any] = {}
        self.leaves: dict[Any, Expr] = {}
        self.values: dict[Any, Fraction] = {}
        self.order: dict[Any, int] = {}

    def forth(self, root: Expr) -> Any:
        """`root` in sympy. Raises Unspeakable."""
        sizes = sizes_of(root)
        for node in region(root):
            if node not in self.memo:
                big = sizes[id(node)][0] > self.MAX_OPERAND and node is not root
                self.memo[node] = self._leaf(node) if big and _is_function(node) else self._forth(node)
        return self.memo[root]

    def _forth(self, node: Expr) -> Any:
        sympy = self.sympy
        if not is_inner(node):
            literal = literal_of(node)
            if literal is None:
                return self._leaf(node)
            number = Fraction(literal)
            if abs(number.numerator) <= 4096 and number.denominator <= 4096:
                return sympy.Rational(number.numerator, number.denominator)
            symbol = self._literal(abs(number))
            return symbol if number > 0 else -symbol
        assert isinstance(node, Call)
        args = [self.memo[arg] for arg in node.args if arg in self.memo]
        match node.op, args:
            case "add", (a, b):
                result = a + b
            case "sub", (a, b):
                result = a - b
            case "mul", (a, b):
                result = a * b
            case "div", (a, b):
                result = a / b
            case "neg", (a,):
                result = -a
            case (("abs" | "log"), (a,)) if a.has(sympy.Add, sympy.log):
                # sympy would look for its sign, or for real and imaginary parts
                return self._leaf(node)
            case "abs", (a,):
                result = sympy.Abs(a)
            case "sqrt", (a,):
                result = sympy.sqrt(a)
            case "exp", (a,):
                result = sympy.exp(a)
            case "log", (a,):
                result = sympy.log(a)
            case "pow", (a, b):
                if a.is_Number and abs(a) > 10**6:
                    raise Unspeakable
                result = a**b
            case _:
                raise AssertionError(node.op)
        if result.has(sympy.nan, sympy.oo, sympy.zoo, sympy.I, -sympy.oo):
            raise Unspeakable
        return result

    def _leaf(self, node: Expr) -> Any:
        assumptions = {"real": True}
        if node.type.is_host:
            known = self.intervals.of(node)
            if known.low > 0 or (known.low == 0 and known.low_open):
                assumptions["positive"] = True
        elif isinstance(node, Call) and node.op in ("abs", "sqrt", "exp"):
            assumptions["nonnegative"] = True
        symbol = self.sympy.Symbol(f"x{len(self.order)}", **assumptions)
        self.order[symbol] = len(self.order)
        self.leaves[symbol] = node
        return symbol

    def _literal(self, value: Fraction) -> Any:
        for symbol, known in self.values.items():
            if known == value:
                return symbol
        symbol = self.sympy.Symbol(f"c{len(self.values)}", positive=True)
        self.order[symbol] = len(self.order)
        self.values[symbol] = value
        return symbol

    def gathered(self, form: Any) -> Any:
        """`form` multiplied out, with the host factors of like terms added up."""
        device = [symbol for symbol, leaf in self.leaves.items() if not leaf.type.is_host]
        sums: dict[Any, Any] = {}
        for term in self.sympy.Add.make_args(self.sympy.expand(form)):
            host, rest = term.as_independent(*device, as_Add=False)
            sums[rest] = sums.get(rest, 0) + host
        return self.sympy.Add(*(host * rest for rest, host in sums.items()))

    def place(self, form: Any) -> tuple[int, Any]:
        """Sorts operands by where their leaves first occur."""
        first = min((self.order[s] for s in form.free_symbols), default=-1)
        return first, self.sympy.default_sort_key(form)

    def literal(self, form: Any) -> Fraction | None:
        """The exact value of a form without leaves, as far as it is rational."""
        if form.is_Rational:
            return Fraction(int(form.p), int(form.q))
        if form in self.values:
            return self.values[form]
        if form.is_Pow and form.exp.is_Integer and abs(form.exp) <= MAX_EXPONENT:
            base = self.literal(form.base)
            return None if base is None else base ** int(form.exp)
        if form.is_Mul or form.is_Add:
            values = [self.literal(arg) for arg in form.args]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                return math.prod(known, start=Fraction(1)) if form.is_Mul else sum(known, Fraction(0))
        return None


def _is_function(node: Expr) -> bool:
    return is_inner(node) and isinstance(node, Call) and node.op in ("abs", "sqrt", "exp", "log", "pow")
