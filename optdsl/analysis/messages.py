"""What the processes of a sharded model tell each other in one step: see `optdsl.passes.shards`.

Counted for tensors that are cut along their first dimension, as `fully_shard` does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from optdsl.analysis.account import BYTES, computed_in
from optdsl.analysis.setting import Setting
from optdsl.core.record import record
from optdsl.core.types import Dim, Level
from optdsl.ir.expr import Call, Expr, HostValue, Var, is_joint, transform, variables
from optdsl.ir.program import Guard, Program
from optdsl.passes.evaluate import Unknown, host_value
from optdsl.passes.lower import lower
from optdsl.passes.shards import meeting, meetings, way

#: A longer expression is not shown.
_WIDE = 60


@record
class Message:
    """One collective for all tensors of a group of processes: "sum" or "max" of what they have, or "gather".

    `condition` must hold, in words; empty if it is always sent. `of` says what is put together, `bytes` what a tensor
    of the setting adds to it: what each process gives in a reduction, and has in the end when values are gathered.
    """

    kind: str
    condition: str
    of: tuple[str, ...]
    bytes: int


def messages(
    program: Program,
    setting: Setting,
    hypers: Mapping[str, HostValue],
    text: Callable[[Expr], str],
    decision: Callable[[Expr, bool], str],
) -> tuple[Message, ...]:
    """The messages of a step of a program, already simplified, in order; `text` and `decision` are words for them."""
    known = {**hypers, **setting.facts}
    how = way(program)
    if how == "reduced":
        met = meeting(program)
        groups = meetings(met)
    else:
        met = lower(program)
        groups = [(guard, [each]) for guard, several in meetings(met) for each in several]
    definitions = {assign.name: assign.expr for assign in met.body}
    shared = {
        assign.name: assign.expr for assign in met.body if re.fullmatch(r"shared(_\d+)?", assign.source)
    }
    found = _gathered(program, setting, known) if how == "whole" else []
    for guard, reductions in groups:
        condition = _condition(guard, known, definitions, decision)
        if condition is None:
            continue
        if how == "whole":  # over several tensors, of which every process has got all
            continue
        sent = [each for each in reductions if _is_cut(each)]
        width = 8 if any(map(is_joint, sent)) else int(BYTES[computed_in(setting.dtype)])
        for kind, ops in (("sum", ("sum", "mean")), ("max", ("max", "min")), ("gather", ("kth_largest",))):
            mine = [each for each in sent if each.op.removeprefix("reduce_") in ops]
            if mine:
                entries = sum(_entries(each, setting) for each in mine)
                # beside each number for a maximum goes whether it is nan
                size = {"sum": width, "max": 2 * width, "gather": int(BYTES[computed_in(setting.dtype)])}[
                    kind
                ]
                texts = (_worded(each, shared, text) for each in mine)
                found.append(Message(kind, condition, tuple(dict.fromkeys(texts)), entries * size))
    return tuple(found)


def _read(program: Program, known: Mapping[str, HostValue]) -> frozenset[str]:
    """What a step reads, as far as the setting tells."""
    definitions = {assign.name: assign.expr for assign in program.body}

    def holds(condition: Expr, wanted: bool) -> bool:
        try:
            return bool(host_value(condition, known, definitions)) is wanted
        except Unknown:
            return True

    def settled(expr: Expr) -> Expr:
        while isinstance(expr, Call) and expr.op == "select" and expr.args[0].type.is_host:
            condition, then, other = expr.args
            sides = [side for side, wanted in ((then, True), (other, False)) if holds(condition, wanted)]
            if len(sides) > 1:
                break
            expr = sides[0]
        return expr

    taken = [a.expr for a in program.body if all(holds(condition, wanted) for condition, wanted in a.guard)]
    left = {name: settled(expr) for name, expr in program.results.items()}
    exprs = [settled(expr) for expr in taken if not _passes_on(settled(expr), program)]
    exprs += [expr for name, expr in left.items() if not (isinstance(expr, Var) and expr.name == name)]
    return frozenset[str]().union(*map(variables, exprs))


def _passes_on(expr: Expr, program: Program) -> bool:
    """Whether a value is a state as it was."""
    return isinstance(expr, Var) and any(state.name == expr.name for state in program.states)


def _gathered(program: Program, setting: Setting, known: Mapping[str, HostValue]) -> list[Message]:
    """A message for each array that is gathered."""
    width = int(BYTES[computed_in(setting.dtype)])
    rows, size = setting.facts["rows"], setting.facts["numel"]
    read = _read(program, known)
    arrays = {"p": size, "g": size}
    for state in program.states:
        if (
            state.type.level is Level.ARRAY
            and state.type.shape[0] is Dim.R
            and Dim.R is not state.type.shape[1]
        ):
            arrays[state.name] = size if state.type.is_element else rows
    return [Message("gather", "", (name,), int(n) * width) for name, n in arrays.items() if name in read]


def _worded(reduction: Call, shared: Mapping[str, Expr], text: Callable[[Expr], str]) -> str:
    """A reduction in words; what only the compiler has a name for is written out."""

    def visit(node: Expr) -> Expr:
        return transform(shared[node.name], visit) if isinstance(node, Var) and node.name in shared else node

    found = text(transform(reduction, visit))
    over = f"{reduction.op.removeprefix('reduce_')} over {reduction.attr}"
    return found if len(found) <= _WIDE else over


def _is_cut(reduction: Call) -> bool:
    """Whether rows on other processes have a share in a reduction."""
    return reduction.args[0].type.shape[0] is Dim.R and reduction.attr != "rows"


def _entries(reduction: Call, setting: Setting) -> int:
    """How many numbers a process gives for one tensor."""
    if reduction.op == "reduce_kth_largest":
        return int(setting.facts["numel"])
    return int(setting.facts["cols"]) if reduction.attr == "cols" else 1


def _condition(
    guard: Guard,
    known: Mapping[str, HostValue],
    definitions: Mapping[str, Expr],
    decision: Callable[[Expr, bool], str],
) -> str | None:
    """What else must hold, in words; None where the setting says that it does not."""
    words = []
    for condition, wanted in guard:
        try:
            if bool(host_value(condition, known, definitions)) is not wanted:
                return None
        except Unknown:
            words.append(decision(condition, wanted))
    return " and ".join(words)


__all__ = ["Message", "messages"]
