"""What a step of a tensor that is cut among processes has to put together, and where.

Every value per element is computed where the element is. A reduction is computed in part by every process, and the
parts meet: reductions that can be formed at the same time meet at once (a *meeting*), those of all tensors together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from optdsl.core.ops import CORE, Rule
from optdsl.core.types import COLS, ELEMENT, ROWS, Level
from optdsl.ir.expr import Call, Expr, is_joint, variables, walk
from optdsl.ir.program import Assign, Guard, Program
from optdsl.passes.lower import lower


def is_reduction(node: Expr) -> bool:
    """True when `node` is itself a reduction, over a tensor or over several."""
    return isinstance(node, Call) and CORE[node.op].rule is Rule.REDUCE


def way(program: Program) -> str:
    """How a step is taken by tensors that are cut among processes.

    "local": each process with what it has, but for one reduction over several tensors. "reduced": several reductions,
    or some over a tensor, are put together. "whole": every process gets whole tensors, as matrices are multiplied, or
    entries of a tensor ranked, or filters reduced.
    """
    sites: set[int | None] = set()
    for node in program.nodes():
        if _multiplies(node):
            return "whole"
        if isinstance(node, Call) and is_reduction(node):
            if node.op == "reduce_kth_largest" and not is_joint(node):
                return "whole"
            sites |= {node.site} if is_joint(node) else {None, -1}
    plain = (ROWS, COLS, ELEMENT)
    if any(s.type.level is Level.ARRAY and s.type.shape not in plain for s in program.states):
        return "whole"
    return "reduced" if len(sites) > 1 else "local"


def needs_whole(exprs: Iterable[Expr]) -> bool:
    """True when something is reduced, or seen as a matrix."""
    return any(is_reduction(node) or _multiplies(node) for expr in exprs for node in walk(expr))


def _multiplies(node: Expr) -> bool:
    matrices = (Rule.MATMUL, Rule.TRANSPOSE, Rule.MATRIX, Rule.AXES)
    return isinstance(node, Call) and (CORE[node.op].rule in matrices or node.attr == "filter")


def meeting(program: Program) -> Program:
    """`program` with every reduction assigned to a name, behind as many others as can be formed without it.

    Branches stay what they are; within one, and outside of all, reductions that do not wait for each other stand next
    to each other.
    """
    program = lower(program, is_reduction)
    return replace(program, body=tuple(_arranged(program.body, 0)[0]))


def _arranged(body: Sequence[Assign], level: int) -> tuple[list[Assign], int]:
    """Assignments that agree in their first `level` conditions in a new order, and how often something meets there.

    The depth of a value is how often something meets before it can be computed; the lowest comes first.
    """
    depths: dict[str, int] = {}
    units: list[tuple[int, bool, list[Assign]]] = []
    for unit in _units(body, level):
        reads = frozenset[str]().union(*(_reads(assign) for assign in unit))
        depth = max((depths.get(name, 0) for name in reads), default=0)
        met = len(unit) == 1 and is_reduction(unit[0].expr)
        last = depth + met
        if len(unit) > 1 or len(unit[0].guard) > level:
            inside = [assign for assign in unit if len(assign.guard) > level]
            sides = [[a for a in inside if a.guard[level][1] is wanted] for wanted in (True, False)]
            arms = [_arranged(side, level + 1) for side in sides]
            last += max(count for _, count in arms)
            unit = [*arms[0][0], *arms[1][0], *(assign for assign in unit if len(assign.guard) == level)]
        units.append((depth, met, unit))
        depths |= {assign.name: last for assign in unit}
    units.sort(key=lambda unit: unit[:2])
    return [assign for _, _, unit in units for assign in unit], max(depths.values(), default=0)


def _units(body: Sequence[Assign], level: int) -> Iterator[list[Assign]]:
    """Single assignments, and branches with the choices behind them that may join their sides.

    Another branch on the same condition belongs to one, unless it reads what a choice joins.
    """
    index = 0
    while index < len(body):
        unit = [body[index]]
        index += 1
        if len(unit[0].guard) > level:
            condition = unit[0].guard[level][0]
            joined: set[str] = set()
            while index < len(body):
                assign = body[index]
                if _chooses(assign, condition, level):
                    joined.add(assign.name)
                elif not _in_branch(assign, condition, level) or not joined.isdisjoint(_reads(assign)):
                    break
                unit.append(assign)
                index += 1
        yield unit


def _in_branch(assign: Assign, condition: Expr, level: int) -> bool:
    return len(assign.guard) > level and assign.guard[level][0] is condition


def _chooses(assign: Assign, condition: Expr, level: int) -> bool:
    expr = assign.expr
    chooses = isinstance(expr, Call) and expr.op == "select" and expr.args[0] is condition
    return chooses and len(assign.guard) == level


def _reads(assign: Assign) -> frozenset[str]:
    return variables(assign.expr).union(*(variables(condition) for condition, _ in assign.guard))


def meetings(program: Program) -> list[tuple[Guard, list[Call]]]:
    """Of what `meeting` makes: the reductions that meet at once, in order, and the conditions under which they do."""
    found: list[tuple[Guard, list[Call]]] = []
    behind: tuple[Guard, set[str]] | None = None
    for assign in program.body:
        if not (isinstance(assign.expr, Call) and is_reduction(assign.expr)):
            behind = None
            continue
        if behind is None or behind[0] != assign.guard or not behind[1].isdisjoint(variables(assign.expr)):
            found.append((assign.guard, []))
            behind = assign.guard, set()
        found[-1][1].append(assign.expr)
        behind[1].add(assign.name)
    return found
