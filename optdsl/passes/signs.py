"""Which states are never negative: they are kept in codes that need no sign."""

from __future__ import annotations

from optdsl.ir.expr import Call, Const, Expr, Var
from optdsl.ir.program import Program
from optdsl.passes.intervals import Intervals


def never_negative(program: Program) -> frozenset[str]:
    """The states that begin at no negative number and that no step leaves at one (nan aside).

    By induction: those that are assumed not to be negative must be left so by a step that assumes it.
    """
    assumed = {s.name for s in program.kept if s.init is not None}
    while True:
        proof = _Proof(program, assumed)
        kept = {
            state.name
            for state in program.kept
            if state.name in assumed
            and state.init is not None
            and proof.holds(state.init)
            and proof.holds(program.results.get(state.name, state.init))
        }
        if kept == assumed:
            return frozenset(kept)
        assumed = kept


class _Proof:
    def __init__(self, program: Program, states: set[str]) -> None:
        self.definitions = {a.name: a.expr for a in program.body}
        self.states = states
        self.intervals = Intervals(program)
        self.known: dict[Expr, bool] = {}

    def holds(self, expr: Expr) -> bool:
        """Whether this proves that an expression is not negative."""
        if expr not in self.known:
            self.known[expr] = False
            self.known[expr] = self._holds(expr)
        return self.known[expr]

    def _holds(self, expr: Expr) -> bool:
        if expr.type.is_host:
            return self.intervals.of(expr).low >= 0
        match expr:
            case Const(value):
                return not isinstance(value, str) and value >= 0
            case Var(name):
                if name in self.definitions:
                    return self.holds(self.definitions[name])
                return name in self.states
            case Call("sqrt" | "abs" | "exp" | "sigmoid" | "square" | "rsqrt"):
                return True
            case Call("mul" | "div", (a, b)):
                return a is b or (self.holds(a) and self.holds(b))
            case Call("add" | "min" | "atan2", (a, b)):
                return self.holds(a) and self.holds(b)
            case Call("max", (a, b)):
                return self.holds(a) or self.holds(b)
            case Call("pow", (a, b)):
                even = isinstance(b, Const) and not isinstance(b.value, str) and b.value % 2 == 0
                return even or self.holds(a)
            case Call("select", (_, a, b)):
                return self.holds(a) and self.holds(b)
            case Call("reduce_sum" | "reduce_mean" | "reduce_max" | "reduce_min" | "broadcast", (a,)):
                return self.holds(a)
        return False
