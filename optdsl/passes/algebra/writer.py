"""From sympy back to nodes: in which order to add and multiply, and what to compute early."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from optdsl.ir.expr import Call, Const, Expr, call, const
from optdsl.passes.algebra.bridge import Bridge, Unspeakable
from optdsl.passes.algebra.region import literal_of
from optdsl.passes.cost import MAX_INT_POWER
from optdsl.passes.rules import rewrite


class Writer:
    """Writes expressions of sympy as nodes.

    What is known early is computed first, but host factors come last if `late`.
    """

    def __init__(self, bridge: Bridge, late: bool) -> None:
        self.bridge = bridge
        self.late = late
        self.memo: dict[Any, Expr] = {}

    def write(self, form: Any) -> Expr:
        """A node for `form`. Raises Unspeakable, and OverflowError when a literal would be infinite."""
        if form not in self.memo:
            self.memo[form] = self._write(form)
        return self.memo[form]

    def _write(self, form: Any) -> Expr:
        sympy = self.bridge.sympy
        literal = self.bridge.literal(form)
        if literal is not None:
            return _rounded(literal)
        if form in self.bridge.leaves:
            return self.bridge.leaves[form]
        if form.is_Add:
            return self._sum(form)
        if form.is_Mul or form.is_Pow:
            return self._product(form)
        for function, op in ((sympy.exp, "exp"), (sympy.log, "log"), (sympy.Abs, "abs")):
            if isinstance(form, function):
                return _made(op, self.write(form.args[0]))
        raise Unspeakable(str(form))

    def _sum(self, form: Any) -> Expr:
        """Literals are added exactly; host values before others."""
        constant = Fraction(0)
        host: list[tuple[bool, Expr]] = []
        device: list[tuple[bool, Expr]] = []
        for term in sorted(form.args, key=self.bridge.place):
            literal = self.bridge.literal(term)
            if literal is not None:
                constant += literal
                continue
            negative = self._scale(term) < 0
            node = self.write(-term if negative else term)
            (host if node.type.is_host else device).append((negative, node))
        if constant:
            host.append((constant < 0, _rounded(abs(constant))))
        if host and device:
            total = _added(host)
            match total:
                case Call("neg", (inner,)):
                    device.append((True, inner))
                case Const(value) if isinstance(value, float | int) and value < 0:
                    device.append((True, const(-value)))
                case _:
                    device.append((False, total))
            return _added(device)
        return _added(host or device)

    def _scale(self, term: Any) -> Fraction:
        """The literal factor of a term."""
        scale = Fraction(1)
        for factor in factors_of(term):
            scale *= self.bridge.literal(factor) or 1
        return scale

    def _product(self, form: Any) -> Expr:
        """(literals and host factors) * coarse factors * fine factors / (the same of the denominator)."""
        scale = Fraction(1)
        above: list[Expr] = []
        below: list[Expr] = []
        host_above: list[Expr] = []
        host_below: list[Expr] = []
        for factor in sorted(factors_of(form), key=self.bridge.place):
            literal = self.bridge.literal(factor)
            if literal is not None:
                scale *= literal
                continue
            base, exponent = (factor.base, factor.exp) if factor.is_Pow else (factor, self.bridge.sympy.S.One)
            if not exponent.is_Rational:
                raise Unspeakable(str(form))
            power = Fraction(int(exponent.p), int(exponent.q))
            for node in _powers(self.write(base), abs(power)):
                if node.type.is_host:
                    (host_above if power > 0 else host_below).append(node)
                else:
                    (above if power > 0 else below).append(node)
        factor = self._host(scale, host_above, host_below)
        if not above and not below:
            return factor
        above.sort(key=lambda node: node.type.level)
        below.sort(key=lambda node: node.type.level)
        negative = isinstance(factor, Const) and literal_of(factor) == -1
        unit = negative or (isinstance(factor, Const) and literal_of(factor) == 1)
        if not unit and (not self.late or not above):
            above.insert(0, factor)
        result = _multiplied(above) if above else const(1.0)
        if below:
            result = _made("div", result, _multiplied(below))
        if not unit and factor not in above:
            result = _made("mul", result, factor)
        return _made("neg", result) if negative else result

    def _host(self, scale: Fraction, above: list[Expr], below: list[Expr]) -> Expr:
        """The factor known on the host."""
        if scale == 0:
            raise Unspeakable
        if above and abs(scale) != 1:
            above = [_rounded(scale), *above]
        result = _multiplied(above) if above else _rounded(scale)
        if below:
            result = _made("div", result, _multiplied(below))
        return _made("neg", result) if above and scale == -1 else result


def _made(op: str, *args: Expr | float) -> Expr:
    """The operator applied to `args`, after the exact local rules."""
    return rewrite(call(op, *args), exact_only=True)


def _rounded(value: Fraction) -> Const:
    """The literal nearest to `value`. Raises OverflowError."""
    rounded = value.numerator / value.denominator
    if value and not rounded:
        raise OverflowError
    return const(rounded)


def _added(terms: Iterable[tuple[bool, Expr]]) -> Expr:
    """The sum of (negative, term), a positive one first."""
    ordered = sorted(terms, key=lambda term: term[0])
    first_positive = ordered[0]
    rest = list(terms)
    rest.remove(first_positive)
    negative, result = first_positive
    for minus, term in rest:
        result = _made("sub" if minus is not negative else "add", result, term)
    return _made("neg", result) if negative else result


def _multiplied(factors: list[Expr]) -> Expr:
    result = factors[0]
    for factor in factors[1:]:
        result = _made("mul", result, factor)
    return result


def _powers(base: Expr, power: Fraction) -> list[Expr]:
    """Factors whose product is `base ^ power`, for a positive power."""
    whole, rest = divmod(power, 1)
    if whole > MAX_INT_POWER or rest not in (0, Fraction(1, 2)):
        return [_made("pow", base, power.numerator / power.denominator if rest else int(power))]
    factors = [base if whole == 1 else _made("pow", base, int(whole))] if whole else []
    return factors + ([_made("sqrt", base)] if rest else [])


def factors_of(term: Any) -> tuple[Any, ...]:
    """The factors of a term of sympy's."""
    return tuple(term.args) if term.is_Mul else (term,)
