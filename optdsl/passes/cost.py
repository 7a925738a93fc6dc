"""What a step costs: weighted operations by the level at which they run, and the arrays that it touches.

The weights are those of the table of core operators. A node that occurs several times in one assignment
counts once, as it is one object; an assignment that no result needs counts nothing. Branches count as if all
were taken, so a cost is an upper bound, and two costs compare two forms of one method, not two methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields

from optdsl.core.ops import CORE, Rule
from optdsl.core.record import record
from optdsl.core.types import AXES, Dim, Level, Type
from optdsl.ir.expr import Call, Const, Expr, Var, walk
from optdsl.ir.program import Program
from optdsl.passes.simplify import drop_dead

#: Powers up to this one are multiplications: x^2, x^3 = x * x^2, x^4 = (x^2)^2...
MAX_INT_POWER = 8
#: Matrix products in one step of the iteration of `newton_schulz`, and its number of steps if not a literal.
_PRODUCTS_PER_STEP = 3
_USUAL_STEPS = 5
#: What operators on families count as: a product for each axis, of which there are two, and tens for eigenvalues.
_PRODUCTS = {"identity": 0, "gram": 2, "along_axes": 2, "matrix_power": 50}


@record
class Cost:
    """Weighted operations of one step of one tensor.

    `element` counts those done per element, `matrix` per entry of other matrices (rows by rows, axes...), `row` and
    `col` per row and column, `tensor`, `group` and `host` once. `products` are matrix products, `reductions`
    finished sums, means and extremes (the work of forming them counts where their operand lives), `draws`
    random arrays. `reads` and `writes` are the element-sized arrays that come in and are left behind.
    """

    products: int = 0
    element: int = 0
    matrix: int = 0
    row: int = 0
    col: int = 0
    tensor: int = 0
    group: int = 0
    host: int = 0
    reductions: int = 0
    draws: int = 0
    reads: int = 0
    writes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def device_key(self) -> tuple[int, ...]:
        """Orders costs by what the device does: see `key`."""
        return (
            self.products,
            self.element + self.matrix,
            self.reductions,
            self.row + self.col,
            self.tensor + self.group,
        )

    @property
    def key(self) -> tuple[int, ...]:
        """Orders costs. Matrix products, hundreds of operations per element, come first; then operations per
        element dominate, and coarser levels only break ties.
        """
        return (*self.device_key, self.host)

    @property
    def arrays(self) -> int:
        """Element-sized arrays read or written: the least traffic of a step, in units of the parameter."""
        return self.reads + self.writes

    def __lt__(self, other: Cost) -> bool:
        return self.key < other.key


def weight(node: Expr) -> int:
    """Weighted operations of `node` alone, per entry of the array it works on."""
    if not isinstance(node, Call):
        return 0
    row = CORE[node.op]
    if row.rule in (Rule.MATMUL, Rule.MATRIX, Rule.TRANSPOSE, Rule.AXES):
        return 0  # products are counted by themselves, a transpose is a way to read
    if node.op == "pow":
        exponent = node.args[1]
        if isinstance(exponent, Const) and exponent.value in range(1, MAX_INT_POWER + 1):
            n = int(exponent.value)
            return n.bit_length() + n.bit_count() - 2  # squarings and multiplications
    return row.flops


def expression_cost(exprs: Iterable[Expr]) -> Cost:
    """The operations of these expressions, evaluated together: a node that they share counts once."""
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    for expr in exprs:
        for node in walk(expr):
            if id(node) not in seen:
                seen.add(id(node))
                if isinstance(node, Call):
                    _count(node, counts)
    return Cost(**counts)


def cost(program: Program) -> Cost:
    """What one step of `program` costs. Assignments that no result needs are free."""
    live = drop_dead(program)
    total = Cost()
    for assign in live.body:
        total += expression_cost([assign.expr, *(condition for condition, _ in assign.guard)])
    total += expression_cost(live.results.values())
    return total + Cost(reads=_reads(live), writes=_writes(live))


def _count(node: Call, counts: Counter[str]) -> None:
    """Adds what `node` itself costs to the fields of a Cost."""
    rule = CORE[node.op].rule
    if rule is Rule.MATMUL:
        counts["products"] += 1
    elif rule is Rule.AXES:
        counts["products"] += _PRODUCTS[node.op]
    elif rule is Rule.MATRIX:
        match node.args[1]:
            case Const(int() as steps):
                counts["products"] += _PRODUCTS_PER_STEP * steps
            case _:
                counts["products"] += _PRODUCTS_PER_STEP * _USUAL_STEPS
    else:
        # a reduction works where its operand lives
        counts[_place(node.args[0].type if rule is Rule.REDUCE else node.type)] += weight(node)
        counts["reductions"] += rule is Rule.REDUCE
        counts["draws"] += rule is Rule.RANDOM


def _place(type_: Type) -> str:
    """The field of a Cost for work on a value of this type."""
    if type_.is_element:
        return "element"
    if type_.level is Level.ARRAY:
        if Dim.ONE not in type_.shape or type_.shape == AXES:
            return "matrix"
        return "row" if Dim.R in type_.shape else "col"
    return {Level.TENSOR: "tensor", Level.GROUP: "group"}.get(type_.level, "host")


def _reads(program: Program) -> int:
    """Element-sized inputs that the step reads."""
    made = {assign.name for assign in program.body}
    nodes = {node for node in program.nodes() if isinstance(node, Var) and node.type.is_element}
    return sum(node.name not in made for node in nodes)


def _writes(program: Program) -> int:
    """Element-sized results: the parameter, and states of its size."""
    states = {state.name: state.type for state in program.states}
    return sum(name == "p" or (name in states and states[name].is_element) for name in program.results)


__all__ = ["Cost", "cost", "expression_cost", "weight"]
