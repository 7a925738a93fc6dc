"""Forms that statement-by-statement backends need: joint reductions and lazy choices as assignments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from optdsl.core.types import Level
from optdsl.ir.expr import Call, Expr, Var, call, is_joint, rebuild, transform, walk
from optdsl.ir.program import Assign, Guard, Program
from optdsl.ir.structure import is_join


def lower(program: Program, named: Callable[[Expr], bool] = is_joint) -> Program:
    """`program` with every joint reduction (or whatever is `named`) assigned to a name, and every choice on a host
    condition between array values as a branch, so that the side not taken costs nothing.
    """
    return _Lowering(program, named).run()


class _Lowering:
    def __init__(self, program: Program, named: Callable[[Expr], bool]) -> None:
        self.program = program
        self.named = named
        self.body: list[Assign] = []
        self.count = 0

    def run(self) -> Program:
        guards = {a.name: a.guard for a in self.program.body}
        for assign in self.program.body:
            expr = assign.expr
            if is_join(assign, guards):
                # its sides are computed under their conditions already, but for what is left to do with them
                condition, *arms = expr.args
                sides = zip(arms, (True, False), strict=True)
                arms = [self.side(a, w, expr, condition, assign) for a, w in sides]
                expr = call("select", condition, *arms)
            elif isinstance(expr, Call) and _is_costly_choice(expr):
                expr = self.choice(expr, assign.guard, assign.line, assign.source, self.left_alone(assign))
            else:
                expr = self.expr(expr, assign.guard, assign.line)
            self.body.append(Assign(assign.name, assign.source, expr, assign.guard, assign.line))
        results = {name: self.expr(value, (), 0) for name, value in self.program.results.items()}
        states = tuple(
            state if state.init is None else replace(state, init=transform(state.init, _level))
            for state in self.program.states
        )
        view = self.program.view and replace(lower(self.program.view), states=states)
        return replace(self.program, states=states, body=tuple(self.body), results=results, view=view)

    def side(self, arm: Expr, wanted: bool, joined: Expr, condition: Expr, assign: Assign) -> Expr:
        """What a branch gives to the join `assign`, at the level of the join."""
        guard = (*assign.guard, (condition, wanted))
        value = self.expr(arm, guard, assign.line)
        lifted = _lifted(value, joined)
        return value if lifted is value else self.name(assign.source, lifted, guard, assign.line)

    def name(self, source: str, expr: Expr, guard: Guard, line: int) -> Expr:
        self.count += 1
        made = Assign(f"{source}.low{self.count}", source, expr, guard, line)
        self.body.append(made)
        return made.var

    def expr(self, expr: Expr, guard: Guard, line: int) -> Expr:
        """`expr` with what must be named replaced by names."""
        if not any(self.named(n) or _is_costly_choice(n) for n in walk(expr)):
            return expr
        if isinstance(expr, Call) and _is_costly_choice(expr):
            return self.choice(expr, guard, line)
        assert isinstance(expr, Call)
        result = rebuild(expr, tuple(self.expr(arg, guard, line) for arg in expr.args))
        if self.named(result):
            return self.name("joint" if is_joint(result) else "reduced", result, guard, line)
        return result

    def left_alone(self, assign: Assign) -> str | None:
        """The state, if any, that ends as what is assigned, and is left as it was by one side of that choice."""
        states = {s.name for s in self.program.states if s.delay is None}
        for name, value in self.program.results.items():
            if (
                name in states
                and value == assign.var
                and any(
                    isinstance(arm, Var) and arm.name == name and _lifted(arm, assign.expr) is arm
                    for arm in assign.expr.args[1:]
                )
            ):
                return name
        return None

    def choice(
        self, expr: Call, guard: Guard, line: int, source: str = "chosen", alone: str | None = None
    ) -> Expr:
        """`a if c else b` as a branch: each side that costs something is computed under its condition.

        A side that leaves a state `alone` is not even a copy of it, which would be a use of the state.
        """
        condition, *arms = expr.args
        values: list[Expr] = []
        for arm, wanted in zip(arms, (True, False), strict=True):
            if alone is not None and isinstance(arm, Var) and arm.name == alone:
                values.append(arm)
                continue
            inner = (*guard, (condition, wanted))
            value = _lifted(self.expr(arm, inner, line), expr)
            known = alone is None and isinstance(value, Var) and any(a.name == value.name for a in self.body)
            if not known and not value.type.is_host:
                value = self.name(source, value, inner, line)
            values.append(value)
        return call("select", condition, *values)


def _lifted(value: Expr, whole: Expr) -> Expr:
    """`value` at the level of `whole`, one of whose sides it is: a number becomes a tensor if one is due."""
    if whole.type.is_host or (value.type.level, value.type.shape) == (whole.type.level, whole.type.shape):
        return value
    return call("broadcast", value, over=whole.type.level_name)


def _level(node: Expr) -> Expr:
    """A lazy choice with both sides at its own level."""
    if not (isinstance(node, Call) and node.op == "select" and node.args[0].type.is_host):
        return node
    condition, *arms = node.args
    return rebuild(node, (condition, *(_lifted(arm, node) for arm in arms)))


def _is_costly_choice(node: Expr) -> bool:
    """A lazy choice whose sides are more than host arithmetic or values at hand."""
    if not (isinstance(node, Call) and node.op == "select" and node.args[0].type.is_host):
        return False
    if any(_lifted(arm, node) is not arm for arm in node.args[1:]):
        return True
    arms = [arm for arm in node.args[1:] if arm.type.level > Level.HOST]
    return any(not (isinstance(arm, Var) and "." in arm.name) for arm in arms)
