"""Expressions in characters of a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from optdsl.analysis.notation import ATOM, MUL, OR, POW, SELECT, Notation, Piece
from optdsl.analysis.symbols import printable, subscript, superscript
from optdsl.ir.program import number

_AS_THEY_ARE = (
    *("min", "max", "sign", "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan"),
    *("atan2", "tanh", "erf", "round", "mod", "isfinite", "nan_to_num", "broadcast", "rms", "norm", "abs"),
    *("identity", "gram", "matrix_power", "along_axes"),
)


class Unicode(Notation):
    """`β₁ m + (1 − β₁) g`."""

    MINUS = "−"
    DOT = "·"
    TIMES = "×"
    INFINITY = "∞"
    AND = "and"
    OR = "or"
    NOT = "not"
    RELATIONS: ClassVar[Mapping[str, str]] = {
        "lt": "<",
        "le": "≤",
        "gt": ">",
        "ge": "≥",
        "eq": "=",
        "ne": "≠",
    }
    FUNCTIONS: ClassVar[Mapping[str, str]] = {name: name for name in _AS_THEY_ARE} | {
        **{"reduce_sum": "Σ", "reduce_mean": "mean", "reduce_max": "max", "reduce_min": "min"},
        **{"reduce_kth_largest": "kth_largest", "newton_schulz": "NewtonSchulz", "truth": "𝟙"},
        "count_upto": "count",
        **{"normal": "𝒩", "uniform": "𝒰", "rademacher": "Rademacher", "bernoulli": "Bernoulli"},
    }

    BARS: ClassVar[Mapping[str, tuple[str, str]]] = {"abs": ("|", "|"), "norm": ("‖", "‖")}
    BAR = re.compile("[|‖]")

    def enclose(self, text: str, left: str = "(", right: str = ")") -> str:
        """`text` in delimiters."""
        return left + text + right

    def below(self, name: str) -> str:
        """A word or a number as a subscript."""
        return {"inf": "_∞"}.get(name) or (subscript(name) if name.isdigit() else f"_{name}")

    def positive(self, value: float) -> Piece:
        """A finite number without sign."""
        return Piece(number(value), ATOM, "number", "number")

    def word(self, text: str) -> str:
        """`true`, `false`, `nan`."""
        return text

    def choice(self, text: str) -> str:
        """A string."""
        return json.dumps(printable(text), ensure_ascii=False)

    def quotient(self, a: Piece, b: Piece) -> Piece:
        """`a / b`."""
        return self.infix("/", a, b, MUL, POW)

    def power(self, a: Piece, b: Piece) -> Piece:
        """`a²`, or `a^(...)` where the exponent cannot be raised."""
        base = self.wrap(a, ATOM)
        raised = superscript(b.text)
        if raised is not None:
            return Piece(base.text + raised, POW, base.head)
        exponent = self.wrap(b, ATOM)
        return Piece(f"{base.text}^{exponent.text}", POW, base.head, exponent.tail)

    def root(self, a: Piece) -> Piece:
        """The square root."""
        if a.strength == ATOM and a.tail == a.head == "" and not a.text.startswith("("):
            return Piece(f"√{a.text}", POW, "", "open")
        return Piece(f"√({a.text})", POW)

    def transposed(self, a: Piece) -> Piece:
        """The transpose."""
        base = self.wrap(a, ATOM)
        return Piece(f"{base.text}ᵀ", POW, base.head)

    def cases(self, values: Sequence[tuple[Piece, Piece]], other: Piece) -> Piece:
        """`a if x else b`."""
        parts = [f"{self.wrap(v, OR).text} if {self.wrap(c, OR).text} else " for v, c in values]
        return Piece("".join(parts) + other.text, SELECT)

    def draw(self, op: str, args: str, below: str) -> Piece:
        """A random draw."""
        args = args or ("" if op == "rademacher" else "0, 1")
        return Piece(self.FUNCTIONS[op] + below + self.enclose(args), ATOM, "function")
