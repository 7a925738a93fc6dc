"""Expressions in LaTeX mathematics (that of amsmath, which KaTeX and MathJax know too)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from optdsl.analysis.notation import ATOM, OR, POW, SELECT, Notation, Piece
from optdsl.analysis.symbols import latex_text, latex_word
from optdsl.ir.program import number

_DELIMITERS = {"⌊": "\\lfloor", "⌋": "\\rfloor", "⌈": "\\lceil", "⌉": "\\rceil"}
#: What is written by its name in upright letters.
_UPRIGHT = (
    *("sign", "expm1", "log1p", "atan2", "erf", "round", "mod", "isfinite", "broadcast"),
    *("rms", "abs", "norm", "identity", "gram"),
)
#: What stands higher than a line.
_TALL = re.compile(r"\\(frac|sum|sqrt|begin|left)\b")


class Latex(Notation):
    r"""`\beta_{1} m + (1 - \beta_{1}) g`."""

    MINUS = "-"
    DOT = "\\cdot"
    TIMES = "\\times"
    INFINITY = "\\infty"
    AND = "\\text{ and }"
    OR = "\\text{ or }"
    NOT = "\\text{not }"
    RELATIONS: ClassVar[Mapping[str, str]] = {
        **{"lt": "<", "le": "\\leq", "gt": ">", "ge": "\\geq", "eq": "=", "ne": "\\neq"},
    }
    FUNCTIONS: ClassVar[Mapping[str, str]] = {
        **{name: f"\\{name}" for name in ("min", "max", "exp", "log", "sin", "cos", "tan", "tanh")},
        **{f"a{name}": f"\\arc{name}" for name in ("sin", "cos", "tan")},
        **{name: f"\\operatorname{{{name}}}" for name in _UPRIGHT},
        "nan_to_num": "\\operatorname{nan\\_to\\_num}",
        **{"reduce_sum": "\\sum", "reduce_mean": "\\operatorname{mean}"},
        **{"reduce_max": "\\max", "reduce_min": "\\min"},
        "count_upto": "\\operatorname{count}",
        "reduce_kth_largest": "\\operatorname{kth\\_largest}",
        "matrix_power": "\\operatorname{matrix\\_power}",
        "along_axes": "\\operatorname{along\\_axes}",
        **{"newton_schulz": "\\operatorname{NewtonSchulz}", "truth": "\\mathbf{1}"},
        **{"normal": "\\mathcal{N}", "uniform": "\\mathcal{U}"},
        **{"rademacher": "\\operatorname{Rademacher}", "bernoulli": "\\operatorname{Bernoulli}"},
    }
    BARS: ClassVar[Mapping[str, tuple[str, str]]] = {
        **{"abs": ("\\lvert", "\\rvert"), "norm": ("\\lVert", "\\rVert")},
    }
    BAR = re.compile(r"\\l[vV]ert\b")

    def enclose(self, text: str, left: str = "(", right: str = ")") -> str:
        """`text` in delimiters as high as it is."""
        left, right = _DELIMITERS.get(left, left), _DELIMITERS.get(right, right)
        if _TALL.search(text):
            return f"\\left{left} {text} \\right{right}"
        return f"{left}{text}{right}" if left == "(" else f"{left} {text} {right}"

    def below(self, name: str) -> str:
        """A word or a number as a subscript."""
        return "_{\\infty}" if name == "inf" else f"_{{{name if name.isdigit() else latex_word(name)}}}"

    def positive(self, value: float) -> Piece:
        """A finite number without sign."""
        text = number(value)
        mantissa, e, exponent = text.partition("e")
        if not e:
            return Piece(text, ATOM, "number", "number")
        if mantissa == "1":
            return Piece(f"10^{{{int(exponent)}}}", POW, "number", "number")
        return Piece(f"{mantissa}\\mathrm{{e}}{{{exponent[0]}}}{exponent[1:]}", ATOM, "number", "number")

    def word(self, text: str) -> str:
        """`true`, `false`, `nan`."""
        return latex_word(text)

    def choice(self, text: str) -> str:
        """A string."""
        return latex_text(f'"{text}"')

    def quotient(self, a: Piece, b: Piece) -> Piece:
        """A fraction."""
        return Piece(f"\\frac{{{a.text}}}{{{b.text}}}", POW, "fraction", "fraction")

    def power(self, a: Piece, b: Piece) -> Piece:
        """`a^{b}`."""
        base = self.wrap(a, ATOM)
        return Piece(f"{base.text}^{{{b.text}}}", POW, base.head)

    def root(self, a: Piece) -> Piece:
        """The square root."""
        return Piece(f"\\sqrt{{{a.text}}}")

    def transposed(self, a: Piece) -> Piece:
        """The transpose."""
        base = self.wrap(a, ATOM)
        return Piece(f"{base.text}^{{\\top}}", POW, base.head)

    def cases(self, values: Sequence[tuple[Piece, Piece]], other: Piece) -> Piece:
        """One row a value."""
        rows = [
            f"{value.text} & \\text{{if }} {self.wrap(condition, OR).text}" for value, condition in values
        ]
        rows.append(f"{other.text} & \\text{{otherwise}}")
        return Piece(" ".join(("\\begin{cases}", " \\\\ ".join(rows), "\\end{cases}")), SELECT)

    def draw(self, op: str, args: str, below: str) -> Piece:
        """A random draw."""
        args = args or ("" if op == "rademacher" else "0, 1")
        return Piece(self.FUNCTIONS[op] + below + self.enclose(args), ATOM, "function")
