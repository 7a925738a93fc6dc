"""Where the values of a plan live in the memory that its kernel has: cells and columns, counted from 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optdsl.core.types import Kind
from optdsl.ir.expr import variables
from optdsl.ir.plan import Array, Place, Plan, Sweep


class Cells:
    """The layout of one plan, which the host and every language of kernels go by.

    `arrays` are those of all kernels of its unit, which fixes their cells in the table; `host_states` is the number
    of host-level states behind them.
    """

    def __init__(self, plan: Plan, arrays: Sequence[Array], host_states: int) -> None:
        self.plan = plan
        self.host_states = host_states
        self.cell = {array.name: index for index, array in enumerate(arrays)}
        self.arrays = {array.name: array for array in arrays}
        self.width_of_unit = len(arrays)
        self.values = {v.name: v for v in plan.values()}
        scalars = [v for values in plan.scalars for v in values]
        #: Where values per tensor, columns and rows are kept, and joint reductions and group-level states.
        self.scalar_cell = _numbered(v.name for v in scalars if v.place is Place.SCALAR)
        self.column_cell = _numbered(v.name for v in scalars if v.place is Place.COLS)
        self.row_cell = _numbered(dict.fromkeys(n for s in plan.sweeps for n in s.kept))
        self.joint_cell = _numbered(v.name for v in scalars if v.reduction is not None and v.reduction.joint)
        self.group_cell = _numbered(a.name for a in plan.arrays if a.group)
        self.by_rows = plan.rows
        self.column_reductions = [
            [
                v for v in plan.scalars[k + 1]
                if v.place is Place.COLS and v.reduction is not None and v.reduction.operand is Place.ELEMENT
            ]
            for k in range(len(plan.sweeps))
        ]  # fmt: skip

    # ---- sizes ------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Reductions per chunk, at most."""
        return max((len(self.plan.closing(k)) for k in range(len(self.plan.sweeps))), default=0)

    @property
    def column_width(self) -> int:
        """Column reductions per chunk, at most."""
        return max((len(found) for found in self.column_reductions), default=0)

    # ---- reading --------------------------------------------------------------------------------

    def is_slot(self, name: str) -> bool:
        """True for a number of the host."""
        return name.startswith(self.plan.slot_name + ".")

    def place(self, name: str) -> Place:
        if name in self.values:
            return self.values[name].place
        return self.arrays[name].place if name in self.arrays else Place.HOST

    def kind(self, name: str) -> Kind:
        return self.values[name].kind if name in self.values else Kind.FLOAT

    def read_in(self, sweep: Sweep) -> set[str]:
        names: set[str] = set()
        for loop in sweep.loops:
            for value in (*loop.body, *loop.reduces):
                names |= variables(value.expr)
            for _, expr in loop.stores:
                names |= variables(expr)
        for line in (*sweep.lines, sweep.row_reduces):
            for value in line:
                names |= variables(value.expr)
        for _, expr in sweep.row_stores:
            names |= variables(expr)
        return names


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names)}
