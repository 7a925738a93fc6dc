"""The simplifier: local rules, copies, common subexpressions, dead code, to a fixed point.

What the person wrote is what is compiled, except for named rules (`optdsl.passes.rules`). Algebra by sympy
is a separate, guarded step (`optdsl.passes.algebra`) that only bloated programs need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from optdsl.core.types import Level
from optdsl.ir.expr import Call, Const, Expr, Var, is_joint, rebuild, transform, var, variables
from optdsl.ir.program import Assign, Guard, Program
from optdsl.ir.structure import fresh
from optdsl.passes.rules import rewrite

MAX_ROUNDS = 20


def simplify(program: Program, exact_only: bool = False) -> Program:
    """`program` with fewer operations and the same results up to rounding (bit for bit if `exact_only`)."""
    for _ in range(MAX_ROUNDS):
        before = (program.body, program.results)
        program = apply_rules(program, exact_only)
        program = propagate(program)
        program = drop_dead(program)
        program = meet(program)
        program = share(program)
        if _same(before[0], program.body) and dict(before[1]) == dict(program.results):
            break
    if program.view is not None:
        program = replace(program, view=simplify(program.view, exact_only))
    return program


def _same(a: tuple[Assign, ...], b: tuple[Assign, ...]) -> bool:
    return len(a) == len(b) and all(x == y for x, y in zip(a, b, strict=True))


def _map(program: Program, change: Callable[[Expr], Expr]) -> Program:
    """Applies `change(expr)` to every expression of the step. Names follow when their type changes."""
    retyped: dict[str, Expr] = {}
    alive: list[Expr] = []  # `change` may remember nodes by their ids

    def changed(expr: Expr) -> Expr:
        alive.append(substitute(expr, retyped))
        return change(alive[-1])

    body: list[Assign] = []
    for assign in program.body:
        guard = tuple((changed(c), w) for c, w in assign.guard)
        body.append(Assign(assign.name, assign.source, changed(assign.expr), guard, assign.line))
        if body[-1].expr.type != assign.expr.type:
            retyped[assign.name] = body[-1].var
    results = {name: changed(expr) for name, expr in program.results.items()}
    return program.with_body(tuple(body), results)


def apply_rules(program: Program, exact_only: bool = False) -> Program:
    """Applies the local rules everywhere, and settles branches whose condition is a literal."""
    memo: dict[int, Expr] = {}
    program = _map(program, lambda e: transform(e, lambda n: rewrite(n, exact_only), memo))
    # as the rules have it in choices, and so in the joins of these branches
    body = [replace(a, guard=tuple(_positive(c, w) for c, w in a.guard)) for a in program.body]
    return settle(program.with_body(tuple(body), program.results))


def settle(program: Program) -> Program:
    """Takes branches whose condition is a literal, and drops those on the other side of it.

    A choice between values of different types stays, as nothing else says that the one is as fine as the
    other; then so does what it reads on the side not taken.
    """
    read = set().union(*map(variables, program.results.values()))
    body: list[Assign] = []
    for assign in reversed(program.body):
        guard = assign.guard
        if all(c.value is w for c, w in guard if isinstance(c, Const)):
            guard = tuple((c, w) for c, w in guard if not isinstance(c, Const))
        elif assign.name not in read:
            continue
        body.append(Assign(assign.name, assign.source, assign.expr, guard, assign.line))
        read |= variables(assign.expr).union(*(variables(c) for c, _ in guard))
    return program.with_body(tuple(reversed(body)), program.results)


def _positive(condition: Expr, wanted: bool) -> tuple[Expr, bool]:
    """`not c` as c with the other value wanted."""
    while isinstance(condition, Call) and condition.op == "not":
        condition, wanted = condition.args[0], not wanted
    return condition, wanted


def substitute(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """`expr` with the named values replaced."""
    if not values.keys() & variables(expr):
        return expr
    return transform(expr, lambda n: values.get(n.name, n) if isinstance(n, Var) else n)


def propagate(program: Program) -> Program:
    """Replaces names that only stand for another name or a number."""
    values: dict[str, Expr] = {}
    for assign in program.body:
        expr = substitute(assign.expr, values)
        # a changed type (an int that becomes a float state) is a conversion, not a copy
        if isinstance(expr, Const | Var):
            values[assign.name] = expr
    if not values:
        return program
    kept = program.with_body(tuple(a for a in program.body if a.name not in values), program.results)
    return _map(kept, lambda e: substitute(e, values))


def drop_dead(program: Program) -> Program:
    """Removes assignments that no result needs."""
    live: set[str] = set()
    for expr in program.results.values():
        live |= variables(expr)
    kept: list[Assign] = []
    for assign in reversed(program.body):
        if assign.name in live:
            kept.append(assign)
            live |= variables(assign.expr)
            for condition, _ in assign.guard:
                live |= variables(condition)
    return program.with_body(tuple(reversed(kept)), program.results)


def drop_unused(program: Program) -> Program:
    """Forgets states that no step reads or changes, as when a switch is fixed; what a step is given stays."""
    results = {n: x for n, x in program.results.items() if not (isinstance(x, Var) and x.name == n)}
    program = program.with_body(program.body, results)
    expressions = [*program.expressions(), *(program.view.expressions() if program.view else ())]
    used = set(results).union(*map(variables, expressions))
    states = tuple(state for state in program.states if state.given or state.name in used)
    view = program.view and replace(program.view, states=states)
    return replace(program, states=states, view=view)


# ---- common subexpressions --------------------------------------------------------------------------------


def meet(program: Program) -> Program:
    """Gives joint reductions of one value one site, so that they can be shared.

    The tensors that reach a site are reduced together: two sites are one only if the same tensors reach both,
    which is certain only under the same guard.
    """
    sites: dict[tuple[str, tuple[Expr, ...], str | int | None, Guard], Expr] = {}
    merged: dict[Expr, Expr] = {}
    for assign in program.body:
        for node in _evaluated(assign.expr):
            if isinstance(node, Call) and is_joint(node):
                kept = sites.setdefault((node.op, node.args, node.attr, assign.guard), node)
                if kept is not node:
                    merged[node] = kept
    if not merged:
        return program
    return _map(program, lambda e: transform(e, lambda n: merged.get(n, n)))


def _evaluated(root: Expr) -> Iterator[Expr]:
    """The nodes that are evaluated whatever the conditions of choices, in some order."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack += node.args[:1] if isinstance(node, Call) and _is_lazy(node) else node.args


def share(program: Program) -> Program:
    """Computes each repeated array, tensor or group expression once.

    An expression is shared from where it is first evaluated to every place whose guard implies that one;
    the lazy arms of a choice on a host condition are left alone.
    """
    repeated = _repeated(program)
    if not repeated:
        return program
    taken = {a.source for a in program.body} | {s.name for s in program.states} | {"p", "g"}
    taken |= {h.name for h in program.hypers}
    known: dict[int, list[tuple[Guard, Expr]]] = {}
    body: list[Assign] = []

    def shared(node: Expr, assign: Assign) -> Expr:
        if not isinstance(node, Call):
            return node
        for guard, value in known.get(id(node), []):
            if assign.guard[: len(guard)] == guard:
                return value
        if _is_lazy(node):
            return rebuild(node, (shared(node.args[0], assign), *node.args[1:]))
        result = rebuild(node, tuple(shared(arg, assign) for arg in node.args))
        if (id(node), assign.guard) in repeated:
            if node is not assign.expr:
                # a name of its own: two shared values need not have one shape
                source = fresh("shared", taken) if "shared" in taken else "shared"
                taken.add(source)
                name = f"{source}.1"
                body.append(Assign(name, source, result, assign.guard, assign.line))
                result = var(name, node.type)
                known.setdefault(id(node), []).append((assign.guard, result))
            else:
                known.setdefault(id(node), []).append((assign.guard, assign.var))
        return result

    for assign in program.body:
        expr = shared(assign.expr, assign)
        body.append(Assign(assign.name, assign.source, expr, assign.guard, assign.line))
    return program.with_body(tuple(body), program.results)


def _repeated(program: Program) -> set[tuple[int, Guard]]:
    """Nodes worth a name, each with the guard of the place where it is first evaluated."""
    homes: dict[int, list[Guard]] = {}
    repeated: set[tuple[int, Guard]] = set()

    def visit(node: Expr, guard: Guard) -> None:
        if not isinstance(node, Call):
            return
        if node.type.level >= Level.GROUP:  # host arithmetic is cheap and reads better where it stands
            for home in homes.get(id(node), []):
                if guard[: len(home)] == home:
                    repeated.add((id(node), home))
                    return
            homes.setdefault(id(node), []).append(guard)
        for arg in node.args[:1] if _is_lazy(node) else node.args:
            visit(arg, guard)

    for assign in program.body:
        visit(assign.expr, assign.guard)
    return repeated


def _is_lazy(node: Call) -> bool:
    return node.op == "select" and node.args[0].type.is_host
