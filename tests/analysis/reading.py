"""Reads expressions back from the notations: a tree for a text, by the rules that `notation.py` promises."""

from __future__ import annotations

import json
import re
from typing import Any, TypeAlias

from optdsl.analysis.notation import Notation, is_truth
from optdsl.analysis.plain import Unicode
from optdsl.core.ops import CORE, Rule
from optdsl.ir.expr import Const, Expr, Var

#: ("num", 2.0), ("var", "m"), ("add", a, b), ("reduce_sum", over, x)...
Tree: TypeAlias = tuple[Any, ...]
Token: TypeAlias = tuple[str, str]

_RAISED = dict(
    zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", "0123456789+−abcdefghijklmnoprstuvwxyz", strict=True)
)
_LOW = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SIGNS = {
    **{"\\leftarrow": "←", "\\leq": "≤", "\\geq": "≥", "\\neq": "≠", "\\cdot": "·", "\\times": "×", "-": "−"},
    **{"\\text{ and }": "and", "\\text{ or }": "or", "\\text{not }": "not", "\\infty": "∞"},
    **{"\\lvert": "|", "\\rvert": "|", "\\lVert": "‖", "\\rVert": "‖", "\\\\": "\\\\", "\\top": "⊤"},
    **{"\\lfloor": "⌊", "\\rfloor": "⌋", "\\lceil": "⌈", "\\rceil": "⌉", "\\text{if }": "if"},
    **{"\\text{otherwise}": "otherwise", "\\frac": "frac", "\\sqrt": "√"},
    **{"\\begin{cases}": "cases", "\\end{cases}": "end"},
    **{sign: sign for sign in "+/·×−(),=≠<≤>≥|‖⌊⌋⌈⌉√^{}&∞[]"},
    **{sign: sign for sign in ("if", "else", "and", "or", "not")},
}
_RELATIONS = {"<": "lt", "≤": "le", ">": "gt", "≥": "ge", "=": "eq", "≠": "ne"}


def tree(expr: Expr, to: Notation) -> Tree:
    """What reading `expr` back must give."""
    if isinstance(expr, Const):
        value = expr.value
        if isinstance(value, str):
            return ("str", value)
        if isinstance(value, bool) or value != value:
            return ("word", str(value).lower())
        number = ("num", abs(float(value)))
        return ("neg", number) if str(value).startswith("-") else number
    if isinstance(expr, Var):
        name = to.names.get(expr.name, expr.name)
        return ("eq", ("var", "t"), ("num", 1.0)) if name == "first_step" else ("var", name)
    if is_truth(expr):
        return ("truth", tree(expr.args[0], to))
    if expr.op == "not" and isinstance(expr.args[0], Var) and expr.args[0].name == "first_step":
        return ("ne", ("var", "t"), ("num", 1.0))
    args = tuple(tree(arg, to) for arg in expr.args)
    if CORE[expr.op].rule is Rule.REDUCE:
        return (expr.op, expr.attr, *args)
    if CORE[expr.op].rule is Rule.RANDOM:
        return (expr.op, str(expr.attr) if to.streams else "", *args)
    if expr.op == "broadcast":
        return (expr.op, str(expr.attr).replace(", ", "_"), *args)
    return (expr.op, *args)


def read(text: str, to: Notation) -> Tree:
    """The expression that `text` shows."""
    reader = _Reader(_tokens(text, to), to)
    found = reader.select()
    assert reader.next == ("end of text", ""), f"{reader.next} is left of {text}"
    return found


def _tokens(text: str, to: Notation) -> list[Token]:
    plain = isinstance(to, Unicode)
    symbols = {symbol.text: name for name, symbol in to.symbols.items()}
    functions = {}
    for op, name in to.FUNCTIONS.items():
        functions.setdefault(name, op)
    alternatives = {
        "num": r"[0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?"
        if plain
        else r"10\^\{-?[0-9]+\}|[0-9.]+(?:\\mathrm\{e\}\{[+-]\}[0-9]+)?",
        "str": r'"(?:[^"\\]|\\.)*"' if plain else r'(?:\\text\{"\}|\\text\{"(?:[^}]|\}\\_\\text\{)*"\})',
        "word": r"(?:true|false|nan)(?![A-Za-z0-9_])" if plain else r"\\mathrm\{(?:true|false|nan)\}",
        "function": f"(?:{_any(functions)})"
        + (r"(?:_\w+|[₀-₉]+)?(?=\()" if plain else r"(?:_\{(?:[^{}]|\{[^{}]*\})*\})?(?= ?\\left\(|\()"),
        "raised": f"[{''.join(_RAISED)}]+" if plain else r"(?!)",
        "transposed": "ᵀ" if plain else r"\^\{\\top\}",
        "below": "(?<=‖)(?:_[A-Za-z_]+|_∞|[₀-₉]+)" if plain else r"(?<=\\rVert)_\{(?:[^{}]|\{[^{}]*\})*\}",
        "skip": r"\s+|\\left(?![a-z])|\\left(?=\\)|\\right(?![a-z])|\\right(?=\\)",
        "sign": _any(_SIGNS) if not plain else "(?:if|else|and|or|not)(?= )|[^\\w\\s]",
        "var": f"(?:{_any(symbols)})(?![A-Za-z0-9_])" if plain else f"(?:{_any(symbols)})(?![A-Za-z])",
    }
    order = ("skip", "num", "str", "word", "function", "below", "raised", "transposed", "var", "sign")
    pattern = re.compile("|".join(f"(?P<{kind}>{alternatives[kind]})" for kind in order))
    tokens: list[Token] = []
    place = 0
    while place < len(text):
        found = pattern.match(text, place)
        assert found is not None, f"cannot read {text[place:]!r} in {text}"
        place = found.end()
        kind, value = str(found.lastgroup), found[0]
        if kind == "sign":
            tokens.append((_SIGNS[value], value))
        elif kind == "var":
            tokens.append(("var", symbols[value]))
        elif kind != "skip":
            tokens.append((kind, value.replace("}\\_\\text{", "_") if kind == "str" else value))
    return [*tokens, ("end of text", "")]


def _any(texts: Any) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


class _Reader:
    """Recursive descent; each method reads what binds at least as strongly as its name says."""

    def __init__(self, tokens: list[Token], to: Notation) -> None:
        self.tokens = tokens
        self.to = to
        self.barred = False

    @property
    def next(self) -> Token:
        return self.tokens[0]

    def take(self, *kinds: str) -> str:
        kind, value = self.tokens.pop(0)
        assert not kinds or kind in kinds, f"{kind} {value!r} instead of {kinds}"
        return value

    def accept(self, *kinds: str) -> str | None:
        kind = self.next[0]
        if kind not in kinds:
            return None
        self.take()
        return kind

    def select(self) -> Tree:
        if self.accept("cases"):
            rows = []
            while True:
                value = self.select()
                self.take("&")
                if self.accept("otherwise"):
                    self.take("end")
                    break
                self.take("if")
                rows.append((self.either(), value))
                self.take("\\\\")
            for condition, then in reversed(rows):
                value = ("select", condition, then, value)
            return value
        then = self.either()
        if self.accept("if"):
            condition = self.either()
            self.take("else")
            return ("select", condition, then, self.select())
        return then

    def either(self) -> Tree:
        found = self.both()
        while self.accept("or"):
            found = ("or", found, self.both())
        return found

    def both(self) -> Tree:
        found = self.negation()
        while self.accept("and"):
            found = ("and", found, self.negation())
        return found

    def negation(self) -> Tree:
        return ("not", self.power()) if self.accept("not") else self.comparison()

    def comparison(self) -> Tree:
        left = self.sum()
        sign = self.accept(*_RELATIONS)
        return (_RELATIONS[sign], left, self.sum()) if sign else left

    def sum(self) -> Tree:
        found = self.product()
        while sign := self.accept("+", "−"):
            found = ("add" if sign == "+" else "sub", found, self.product())
        return found

    def product(self) -> Tree:
        found = self.juxtaposed()
        while sign := self.accept("·", "/", "×"):
            found = ({"·": "mul", "/": "div", "×": "matmul"}[sign], found, self.power())
        return found

    def juxtaposed(self) -> Tree:
        found: Tree = ("neg", self.power()) if self.accept("−") else self.power()
        while self.begins():
            found = ("mul", found, self.power())
        return found

    def begins(self) -> bool:
        kind = self.next[0]
        if kind in "|‖":
            return not self.barred
        return kind in ("num", "word", "str", "function", "var", "(", "√", "⌊", "⌈", "frac", "∞")

    def power(self) -> Tree:
        if isinstance(self.to, Unicode) and self.accept("√"):
            return ("sqrt", self.atom())
        base = self.atom()
        match self.next[0]:
            case "raised":
                text = "".join(_RAISED[ch] for ch in self.take())
                return ("pow", base, read(text, self.to))
            case "transposed":
                self.take()
                return ("transpose", base)
            case "^":
                self.take()
                return ("pow", base, self.group() if self.next[0] == "{" else self.atom())
        return base

    def group(self) -> Tree:
        self.take("{")
        barred, self.barred = self.barred, False
        found = self.select()
        self.barred = barred
        self.take("}")
        return found

    def atom(self) -> Tree:
        kind, value = self.tokens.pop(0)
        match kind:
            case "num":
                value = value.replace("\\mathrm{e}", "e").replace("10^", "1e")
                return ("num", float(value.replace("{", "").replace("}", "")))
            case "∞":
                return ("num", float("inf"))
            case "word":
                return ("word", value.removeprefix("\\mathrm{").removesuffix("}"))
            case "str":
                return ("str", json.loads(value) if value.startswith('"') else value[7:-2])
            case "var":
                found: Tree = ("var", value)
                return ("entry", found, *self.inside("]")) if self.accept("[") else found
            case "frac":
                return ("div", self.group(), self.group())
            case "√":
                return ("sqrt", self.group())
            case "(":
                return self.inside(")")[0]
            case "⌊":
                return ("floor", *self.inside("⌋"))
            case "⌈":
                return ("ceil", *self.inside("⌉"))
            case "|" | "‖":
                return self.bars(kind)
            case "function":
                return self.function(value)
        raise AssertionError(f"{kind} {value!r} begins nothing")

    def inside(self, end: str) -> list[Tree]:
        barred, self.barred = self.barred, False
        found = [] if self.next[0] == end else [self.select()]
        while self.accept(","):
            found.append(self.select())
        self.barred = barred
        self.take(end)
        return found

    def bars(self, bar: str) -> Tree:
        # LaTeX tells left from right, and `left` stands for that here
        self.barred = True
        inner = self.select()
        self.barred = False
        self.take(bar)
        return ("abs", inner) if bar == "|" else self.norm(inner)

    def norm(self, x: Tree, below: str = "") -> Tree:
        if self.next[0] == "below":
            below = self.take()
        below = _plain(below)
        if below in ("1", "∞"):
            return ("reduce_sum" if below == "1" else "reduce_max", "tensor", ("abs", x))
        return ("sqrt", ("reduce_sum", below or "tensor", ("pow", x, ("num", 2.0))))

    def function(self, text: str) -> Tree:
        names = self.to.FUNCTIONS
        op = max((op for op in names if text.startswith(names[op])), key=lambda op: len(names[op]))
        below = _plain(text.removeprefix(names[op]))
        self.take("(")
        args = self.inside(")")
        if op in ("max", "min", "reduce_max", "reduce_min"):
            op = op.removeprefix("reduce_")
            if len(args) == 1:
                return ("reduce_" + op, below or "tensor", *args)
            found = args[0]
            for arg in args[1:]:
                found = (op, found, arg)
            return found
        if op == "count_upto":
            [(_, values, bound)] = args
            return (op, values, bound)
        if op == "rms":
            return ("sqrt", ("reduce_mean", below or "tensor", ("pow", args[0], ("num", 2.0))))
        if op == "norm":
            return self.norm(args[0], below)
        if op in ("normal", "uniform"):
            return (op, below)
        if op in ("rademacher", "bernoulli", "broadcast"):
            return (op, below, *args)
        if op in ("reduce_sum", "reduce_mean", "reduce_kth_largest"):
            return (op, below or "tensor", *args)
        return (op, *args)


def _plain(below: str) -> str:
    """A subscript without what makes it one."""
    below = below.translate(_LOW).removeprefix("_").replace("\\mathrm", "").replace("\\infty", "∞")
    return below.replace("{", "").replace("}", "").replace("\\_", "_")
