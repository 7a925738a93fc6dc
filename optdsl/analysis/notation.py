"""Expressions as mathematics: what is common to characters of a terminal and to LaTeX.

The notation can be read back: parentheses stand where the tree of the expression asks for them and nowhere
else. A product is written without a sign, binding tighter than `/`, where its factors can be told apart so;
else with `·`, as strong as `/`. Sums, products and quotients group to the left.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from optdsl.analysis.symbols import Symbol
from optdsl.core.ops import CORE, DEFAULT_OVER, Rule
from optdsl.core.record import record
from optdsl.ir.expr import Call, Const, Expr, Literal, Var, call, const, is_random, walk
from optdsl.ir.program import number

#: Binding strengths. A piece stands without parentheses where one as strong as itself, or weaker, is wanted.
SELECT, OR, AND, NOT, COMPARE, ADD, MUL, PRODUCT, NEG, POW, ATOM = range(1, 12)


@record
class Piece:
    """An expression as text. `head` and `tail` tell what it begins and ends with, as far as a product cares:
    "word", "number", "minus", "bar", "function", "fraction" or nothing special; "open" is the end of a sum or a
    root that could be taken to reach over what follows.
    """

    text: str
    strength: int = ATOM
    head: str = ""
    tail: str = ""


def draws(expr: Expr) -> int:
    """How often a random draw is written in an expression."""
    times: dict[Expr, int] = {expr: 1}
    count = 0
    for node in reversed(list(walk(expr))):  # users before operands
        count += times[node] if is_random(node) else 0
        for arg in node.args:
            times[arg] = times.get(arg, 0) + times[node]
    return count


def is_truth(expr: Expr) -> bool:
    """True for a truth value that counts as 1 or 0."""
    return isinstance(expr, Call) and expr.op == "select" and expr.args[1:] == (const(1.0), const(0.0))


class Notation(ABC):
    """One way to write expressions. `symbols` spells the variables, `names` maps values to variables.

    Random draws show the number of their stream if `streams`: draws of one stream are the same numbers.
    """

    MINUS: ClassVar[str]
    DOT: ClassVar[str]
    TIMES: ClassVar[str]
    INFINITY: ClassVar[str]
    AND: ClassVar[str]
    OR: ClassVar[str]
    NOT: ClassVar[str]
    RELATIONS: ClassVar[Mapping[str, str]]
    #: Names of what is written as a function, by operator; `rms` and `norm` among them.
    FUNCTIONS: ClassVar[Mapping[str, str]]
    #: The delimiters of `abs` and `norm`, and what to look for to find one of them in a text.
    BARS: ClassVar[Mapping[str, tuple[str, str]]]
    BAR: ClassVar[re.Pattern[str]]

    def __init__(self, symbols: Mapping[str, Symbol], names: Mapping[str, str], streams: bool) -> None:
        self.symbols = symbols
        self.names = names
        self.streams = streams
        self.done: dict[Expr, Piece] = {}

    # ---- what differs -------------------------------------------------------------------------------------

    @abstractmethod
    def enclose(self, text: str, left: str = "(", right: str = ")") -> str:
        """`text` in delimiters."""

    @abstractmethod
    def below(self, name: str) -> str:
        """A word or a number as a subscript."""

    @abstractmethod
    def positive(self, value: float) -> Piece:
        """A finite number without sign."""

    @abstractmethod
    def word(self, text: str) -> str:
        """`true`, `false`, `nan`."""

    @abstractmethod
    def choice(self, text: str) -> str:
        """A string."""

    @abstractmethod
    def quotient(self, a: Piece, b: Piece) -> Piece:
        """`a / b`."""

    @abstractmethod
    def power(self, a: Piece, b: Piece) -> Piece:
        """`a ^ b`."""

    @abstractmethod
    def root(self, a: Piece) -> Piece:
        """The square root."""

    @abstractmethod
    def transposed(self, a: Piece) -> Piece:
        """The transpose."""

    @abstractmethod
    def cases(self, values: Sequence[tuple[Piece, Piece]], other: Piece) -> Piece:
        """The value of the first (value, condition) whose condition holds, else `other`."""

    @abstractmethod
    def draw(self, op: str, args: str, below: str) -> Piece:
        """A random draw."""

    # ---- what does not --------------------------------------------------------------------------------------

    def piece(self, expr: Expr) -> Piece:
        """An expression."""
        for node in walk(expr):
            if node not in self.done:
                self.done[node] = self._piece(node)
        return self.done[expr]

    def text(self, expr: Expr) -> str:
        """An expression, as text."""
        return self.piece(expr).text

    def variable(self, name: str) -> Piece:
        """A variable."""
        symbol = self.symbols[name]
        edge = "word" if symbol.word else ""
        return Piece(symbol.text, ATOM, edge, edge)

    def wrap(self, piece: Piece, least: int) -> Piece:
        """`piece`, in parentheses if it binds less than `least`."""
        return piece if piece.strength >= least else Piece(self.enclose(piece.text))

    def right(self, piece: Piece, least: int) -> Piece:
        """The same for a right operand: a minus behind another sign is hard to read."""
        return self.wrap(replace(piece, strength=0) if piece.head == "minus" else piece, least)

    def function(self, name: str, args: str) -> Piece:
        """A function of what `args` is the text of."""
        return Piece(self.FUNCTIONS[name] + self.enclose(args), ATOM, "function")

    def bars(self, name: str, text: str, below: str = "") -> Piece:
        """Absolute value (`abs`) or norm (`norm`): by name where bars would stand in bars."""
        if self.BAR.search(text):
            return Piece(self.FUNCTIONS[name] + below + self.enclose(text), ATOM, "function")
        return Piece(self.enclose(text, *self.BARS[name]) + below, ATOM, "bar", "word" if below else "bar")

    def over(self, node: Call) -> str:
        """The subscript of a reduction: where it ends, unless that is a tensor."""
        return "" if node.attr == DEFAULT_OVER else self.below(str(node.attr).replace(", ", "_"))

    def _piece(self, node: Expr) -> Piece:
        if isinstance(node, Const):
            return self.literal(node.value)
        if isinstance(node, Var):
            if node.name == "first_step":
                return self.compare("eq", self.variable("t"), self.positive(1))
            return self.variable(self.names.get(node.name, node.name))
        rule = RULES.get(node.op)
        if rule is not None:
            return rule(self, node)
        if CORE[node.op].rule is Rule.RANDOM:
            args = ", ".join([self.done[arg].text for arg in node.args])
            return self.draw(node.op, args, self.below(str(node.attr)) if self.streams else "")
        below = self.over(node) if node.op == "broadcast" or CORE[node.op].rule is Rule.REDUCE else ""
        args = ", ".join(self.done[arg].text for arg in node.args)
        return Piece(self.FUNCTIONS[node.op] + below + self.enclose(args), ATOM, "function")

    def literal(self, value: Literal) -> Piece:
        """A number, truth value or choice."""
        if isinstance(value, str):
            return Piece(self.choice(value))
        if isinstance(value, bool) or value != value:
            return Piece(self.word(number(value)), ATOM, "word", "word")
        if math.copysign(1, value) < 0:
            return self.negated(self.literal(-value))
        if math.isinf(value):
            return Piece(self.INFINITY, ATOM, "number", "number")
        return self.positive(value)

    def negated(self, a: Piece) -> Piece:
        """`-a`."""
        a = self.wrap(a, POW)
        return Piece(self.MINUS + a.text, NEG, "minus", a.tail)

    def compare(self, op: str, a: Piece, b: Piece) -> Piece:
        """A comparison."""
        a, b = self.wrap(a, ADD), self.wrap(b, ADD)
        return Piece(f"{a.text} {self.RELATIONS[op]} {b.text}", COMPARE, a.head, b.tail)

    def infix(self, sign: str, a: Piece, b: Piece, strength: int, above: int | None = None) -> Piece:
        """`a sign b`, grouping to the left."""
        a, b = self.wrap(a, strength), self.right(b, strength + 1 if above is None else above)
        return Piece(f"{a.text} {sign} {b.text}", strength, a.head, b.tail)

    def product(self, a: Piece, b: Piece) -> Piece:
        """`a b` where that can be read, else `a · b`."""
        left, right = self.wrap(a, MUL), self.right(b, POW)
        apart = (
            left.strength < PRODUCT
            or left.tail in ("word", "open")
            or right.head in ("word", "number")
            or (left.tail, right.head) in (("bar", "bar"), ("number", "fraction"))
        )
        if apart:
            return self.infix(self.DOT, left, right, MUL, POW)
        return Piece(f"{left.text} {right.text}", PRODUCT, left.head, right.tail)


def _infix(sign: str, strength: int, above: int | None = None) -> Callable[[Notation, Call], Piece]:
    def rule(to: Notation, node: Call) -> Piece:
        a, b = (to.done[arg] for arg in node.args)
        return to.infix(getattr(to, sign, sign), a, b, strength, above)

    return rule


def _not(to: Notation, node: Call) -> Piece:
    arg = node.args[0]
    if isinstance(arg, Var) and arg.name == "first_step":
        return to.compare("ne", to.variable("t"), to.positive(1))
    return Piece(f"{to.NOT} {to.wrap(to.done[arg], POW).text}", NOT)


def _select(to: Notation, node: Call) -> Piece:
    if is_truth(node):
        return to.function("truth", to.done[node.args[0]].text)
    values = []
    rest: Expr = node
    while isinstance(rest, Call) and rest.op == "select" and not is_truth(rest):
        condition, then, rest = rest.args
        values.append((to.done[then], to.done[condition]))
    return to.cases(values, to.done[rest])


def _extreme(to: Notation, node: Call) -> Piece:
    first, *rest = node.args
    while isinstance(first, Call) and first.op == node.op:
        first, *more = first.args
        rest = [*more, *rest]
    return to.function(node.op, ", ".join(to.done[arg].text for arg in (first, *rest)))


def _root(to: Notation, node: Call) -> Piece:
    inner = node.args[0]
    if isinstance(inner, Call) and inner.op in ("reduce_sum", "reduce_mean"):
        power = inner.args[0]
        if isinstance(power, Call) and power.op == "pow" and power.args[1] in (const(2), const(2.0)):
            x = to.done[power.args[0]].text
            if inner.op == "reduce_sum":
                return to.bars("norm", x, to.over(inner))
            return Piece(to.FUNCTIONS["rms"] + to.over(inner) + to.enclose(x), ATOM, "function")
    return to.root(to.done[inner])


def _reduced(to: Notation, node: Call) -> Piece:
    """A sum or a maximum: that of absolute values in a tensor is a norm."""
    inner = node.args[0]
    if isinstance(inner, Call) and inner.op == "abs" and node.attr == DEFAULT_OVER:
        below = to.below("1") if node.op == "reduce_sum" else to.below("inf")
        return to.bars("norm", to.done[inner.args[0]].text, below)
    text = to.FUNCTIONS[node.op] + to.over(node) + to.enclose(to.done[inner].text)
    return Piece(text, ATOM, "function") if node.op == "reduce_max" else Piece(text, POW, "function", "open")


def _entry(to: Notation, node: Call) -> Piece:
    values, i = (to.done[arg] for arg in node.args)
    return Piece(values.text + to.enclose(i.text, "[", "]"), ATOM, values.head)


def _counted(to: Notation, node: Call) -> Piece:
    return to.function("count_upto", to.compare("le", *(to.done[arg] for arg in node.args)).text)


def _compare(to: Notation, node: Call) -> Piece:
    return to.compare(node.op, *(to.done[arg] for arg in node.args))


#: How operators are written that are not written as functions.
RULES: Mapping[str, Callable[[Notation, Call], Piece]] = {
    "add": _infix("+", ADD),
    "sub": _infix("MINUS", ADD),
    "mul": lambda to, node: to.product(*(to.done[arg] for arg in node.args)),
    "div": lambda to, node: to.quotient(*(to.done[arg] for arg in node.args)),
    "matmul": _infix("TIMES", MUL, POW),
    "pow": lambda to, node: to.power(*(to.done[arg] for arg in node.args)),
    "neg": lambda to, node: to.negated(to.done[node.args[0]]),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), _compare),
    "and": _infix("AND", AND),
    "or": _infix("OR", OR),
    "not": _not,
    "select": _select,
    "min": _extreme,
    "max": _extreme,
    "abs": lambda to, node: to.bars("abs", to.done[node.args[0]].text),
    "sqrt": _root,
    "floor": lambda to, node: Piece(to.enclose(to.done[node.args[0]].text, "⌊", "⌋")),
    "ceil": lambda to, node: Piece(to.enclose(to.done[node.args[0]].text, "⌈", "⌉")),
    "reduce_sum": _reduced,
    "reduce_max": _reduced,
    "transpose": lambda to, node: to.transposed(to.done[node.args[0]]),
    "entry": _entry,
    "count_upto": _counted,
}


def negation(condition: Expr) -> Expr:
    """`not condition`, as a person would ask it."""
    if isinstance(condition, Call) and condition.op == "not":
        return condition.args[0]
    if isinstance(condition, Call) and condition.op in ("eq", "ne"):
        return call("ne" if condition.op == "eq" else "eq", *condition.args)
    return call("not", condition)
