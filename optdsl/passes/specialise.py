"""A program as a tree of branch-free programs: one per setting of the options and facts, one per turn of the step.

A condition known on the host that guards, or chooses between, values above the host decides what a kernel looks
like; here each such condition is settled both ways. Conditions on hyperparameters and fixed facts come first: what
they leave is a *setting*, for which a kernel is built once. Conditions that change while training (a first step,
a rectification that starts later) come below them. Host values keep their own branches: the host computes them
anew in every step anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from optdsl.core.record import record
from optdsl.core.types import Dim, Kind, Level, host
from optdsl.ir.expr import (
    Call,
    Const,
    Expr,
    Literal,
    Var,
    call,
    const,
    is_joint,
    transform,
    var,
    variables,
    walk,
)
from optdsl.ir.program import Assign, Program, is_static
from optdsl.passes.evaluate import Unknown, host_value
from optdsl.passes.rules import rewrite
from optdsl.passes.simplify import drop_dead, propagate, settle

#: More branch-free programs than this are not made of one program.
MAX_LEAVES = 128


class TooManyBranches(Exception):
    """The conditions of a program multiply to more than MAX_LEAVES branch-free programs."""


@record
class Leaf:
    """A program without branches above the host.

    `setting` are the decisions on options and fixed facts. `vector` says that the tensors have one column, so that
    a row is an element and a column is the whole tensor.
    """

    program: Program
    setting: tuple[tuple[Expr, bool], ...]
    vector: bool = False


@record
class Split:
    """Where `condition` holds it is `then`, else `other`. `static`: settled by options and fixed facts.

    `program` is what has not been settled yet at this point.
    """

    program: Program
    condition: Expr
    then: Tree
    other: Tree
    static: bool


Tree: TypeAlias = Leaf | Split


def specialise(program: Program) -> Tree:
    """The tree of `program` (simplified, not lowered). Raises TooManyBranches."""
    return _finished(_Specialiser(program).tree(program, ()))


def _finished(tree: Tree) -> Tree:
    """`tree` with its leaves settled and trimmed, which is done only when it is known that they are few enough."""
    if isinstance(tree, Leaf):
        return replace(tree, program=trimmed(settled(tree.program)))
    return replace(tree, then=_finished(tree.then), other=_finished(tree.other))


def leaves(tree: Tree) -> Iterator[Leaf]:
    """The leaves of a tree, from left to right."""
    if isinstance(tree, Leaf):
        yield tree
    else:
        yield from leaves(tree.then)
        yield from leaves(tree.other)


class _Specialiser:
    def __init__(self, program: Program) -> None:
        self.definitions = {a.name: a.expr for a in program.body}
        self.stored = {s.name for s in program.states}
        self.count = 0

    def static(self, condition: Expr) -> bool:
        return is_static(condition, self.definitions, self.stored)

    def tree(self, program: Program, setting: tuple[tuple[Expr, bool], ...]) -> Tree:
        conditions = dict.fromkeys(_structural(program, self.static))
        condition = next(filter(self.static, conditions), None)
        if condition is not None:
            then, other = (
                self.tree(decide(program, condition, w), (*setting, (condition, w))) for w in (True, False)
            )
            return Split(program, condition, then, other, static=True)
        decided = (ONE_COLUMN, True) in setting or (ONE_COLUMN, False) in setting
        if not decided and _has_lines(program):
            then, other = (self.tree(program, (*setting, (ONE_COLUMN, w))) for w in (True, False))
            return Split(program, ONE_COLUMN, then, other, static=True)
        if conditions:
            first = next(iter(conditions))
            then, other = (self.tree(decide(program, first, w), setting) for w in (True, False))
            return Split(program, first, then, other, static=False)
        self.count += 1
        if self.count > MAX_LEAVES:
            raise TooManyBranches
        return Leaf(program, setting, (ONE_COLUMN, True) in setting)


#: Whether a tensor has at most one column.
ONE_COLUMN = call("eq", var("cols", host(Kind.INT)), 1)


def settled(program: Program) -> Program:
    """`program` with copies propagated, and without choices of the host between a value and itself."""

    def visit(node: Expr) -> Expr:
        same = isinstance(node, Call) and node.op == "select" and node.args[1] is node.args[2]
        return node.args[1] if same and node.type.is_host else node

    while True:
        program = propagate(program)
        body = tuple(
            replace(a, expr=transform(a.expr, visit)) if a.expr.type.is_host else a for a in program.body
        )
        if all(new.expr is old.expr for new, old in zip(body, program.body, strict=True)):
            return program
        program = program.with_body(body, program.results)


def trimmed(program: Program) -> Program:
    """`program` without what neither a result nor a joint reduction needs.

    A tensor takes part in a joint reduction that its branches reach, whether it needs the result or not.
    """
    joint = [a for a in program.body if any(map(is_joint, walk(a.expr)))]
    results = {**program.results, **{f"{a.name} kept": a.var for a in joint}}
    kept = drop_dead(program.with_body(program.body, results))
    return program.with_body(kept.body, program.results)


def at(program: Program, options: Mapping[str, Literal]) -> tuple[Program, tuple[Expr, ...]]:
    """`program` (simplified) with every branch settled that these options decide, and the conditions of those left.

    `options` has a value for every hyperparameter. What is left depends on the tensor, or on the step.
    """
    specialiser = _Specialiser(program)
    while True:
        left = tuple(dict.fromkeys(_structural(program, specialiser.static)))
        for condition in left:
            with contextlib.suppress(Unknown):
                value = host_value(condition, options, specialiser.definitions)
                program = decide(program, condition, bool(value))
                break
        else:
            return trimmed(settled(inline_host(program))), left


def _has_lines(program: Program) -> bool:
    """True when some value has an entry per row or per column."""
    return any(
        node.type.level is Level.ARRAY and Dim.ONE in node.type.shape for node in program.nodes()
    ) or any(isinstance(node, Call) and node.attr in ("rows", "cols") for node in program.nodes())


def _structural(program: Program, is_fixed: Callable[[Expr], bool]) -> Iterator[Expr]:
    """The conditions known on the host on which values above the host depend, outer ones first; and those fixed by
    options and facts that decide whether a host-level state is used.
    """
    for assign in program.body:
        if not assign.expr.type.is_host:
            yield from (condition for condition, _ in assign.guard)
            yield from _choices(assign.expr)
    for expr in program.results.values():
        if not expr.type.is_host:
            yield from _choices(expr)
    stored = {s.name for s in program.states if s.type.is_host}
    if not stored:
        return
    reads = set(stored)  # names of host values that depend on a stored one
    for assign in program.body:
        if assign.expr.type.is_host and variables(assign.expr) & reads:
            reads.add(assign.name)
            yield from (condition for condition, _ in assign.guard if is_fixed(condition))
    for expr in (*(a.expr for a in program.body), *program.results.values()):
        for node in walk(expr):
            if (
                isinstance(node, Call)
                and node.op == "select"
                and is_fixed(node.args[0])
                and variables(node) & reads
            ):
                yield node.args[0]


def _choices(expr: Expr) -> Iterator[Expr]:
    for node in reversed(list(walk(expr))):
        if (
            isinstance(node, Call)
            and node.op == "select"
            and not node.type.is_host
            and node.args[0].type.is_host
        ):
            yield node.args[0]


def decide(program: Program, condition: Expr, value: bool) -> Program:
    """`program` where `condition` has this value, with what that leaves without use in branches removed."""
    memo: dict[int, Expr] = {}
    alive: list[Expr] = []
    excluded = _excluded(condition) if value else lambda node: False

    def visit(node: Expr) -> Expr:
        if node is condition:
            return const(value)
        if isinstance(node, Call) and node.type.is_host and excluded(node):
            return const(False)
        if isinstance(node, Call):
            if node.op == "select" and isinstance(node.args[0], Const):
                return lifted(node.args[1] if node.args[0].value else node.args[2], node)
            if node.op in ("and", "or", "not"):
                return rewrite(node, exact_only=True)
        return node

    def changed(expr: Expr) -> Expr:
        if not condition.reads <= expr.reads:
            return expr
        alive.append(transform(expr, visit, memo))
        return alive[-1]

    body = tuple(
        Assign(a.name, a.source, changed(a.expr), tuple((changed(c), w) for c, w in a.guard), a.line)
        for a in program.body
    )
    return settle(program.with_body(body, {name: changed(e) for name, e in program.results.items()}))


def lifted(value: Expr, whole: Expr) -> Expr:
    """`value` at the level of `whole`, one of whose sides it is."""
    if whole.type.is_host or (value.type.level, value.type.shape) == (whole.type.level, whole.type.shape):
        return value
    return call("broadcast", value, over=whole.type.level_name)


def _excluded(condition: Expr) -> Callable[[Call], bool]:
    """What cannot hold beside `condition`: that a choice has another value than the one it has."""
    match condition:
        case Call("eq", (Var() as choice, Const() as known)) if choice.type.kind is Kind.CHOICE:
            return lambda node: (
                node.op == "eq" and node.args[0] is choice and isinstance(node.args[1], Const)
                and node.args[1] is not known
            )  # fmt: skip
    return lambda node: False


def inline_host(program: Program) -> Program:
    """`program` with host values that only a branch computes written out where they are read.

    A choice between host values is lazy, so this keeps what is not needed from being computed.
    """
    guarded = {a.name: a.expr for a in program.body if a.guard and a.expr.type.is_host}
    if not guarded:
        return program

    def visit(node: Expr) -> Expr:
        return (
            transform(guarded[node.name], visit) if isinstance(node, Var) and node.name in guarded else node
        )

    body = tuple(replace(a, expr=transform(a.expr, visit)) for a in program.body if a.name not in guarded)
    return program.with_body(body, {n: transform(e, visit) for n, e in program.results.items()})
