"""A plan: one branch-free step as sweeps over the elements of a tensor, and what is computed between them.

    scalars 0, sweep 0, scalars 1, sweep 1, ..., scalars n

A *sweep* loads arrays, computes, reduces and stores; it is one loop over the elements, or, for a rule with values
per row, one loop over rows with loops over the elements of a row in it. Between two sweeps the reductions of the
first are finished, and values per tensor, per group and per column are computed. Where a reduction goes over
several tensors, all of them meet there (a joint barrier); elsewhere a tensor goes on alone.

Backends see plans only. Every value has a name and a place; operands of an expression are variables: values,
`p`, `g`, states, facts, or *slots*, numbers that the host hands over for each step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum

from optdsl.core.ops import CORE, Rule
from optdsl.core.record import record
from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Const, Expr, walk


class Place(Enum):
    """Where a value lives, coarse to fine."""

    HOST = "host"
    SCALAR = "scalar"  # one per tensor or group
    COLS = "cols"
    ROWS = "rows"
    ELEMENT = "element"


@record
class Array:
    """Something in memory that a step reads or writes: `p`, `g`, or a state by its name.

    `key` is its key in `state_dict`, empty for `p` and `g`. A state at SCALAR place is one of a tensor, unless
    `group`. One that is `given` is an input, which is not kept; one that is `work` is there during the step only, for
    what kernels and the library hand to each other, in the type that is computed in.
    """

    name: str
    key: str
    place: Place
    group: bool = False
    given: bool = False
    work: bool = False


@record
class Reduction:
    """`kind` (sum, mean, max, min) of the operand at `operand`, over `over`; `site` of a joint one.

    A joint one may be the "kth_largest" of what is in the array `entries`; its operand is then k.
    """

    kind: str
    over: str
    operand: Place
    site: int | None = None
    entries: str = ""

    @property
    def joint(self) -> bool:
        """True when it goes over several tensors."""
        return self.site is not None


@record
class Value:
    """`name = expr` at `place`; with `reduction`, the reduction of `expr`, which lives at the operand's place."""

    name: str
    place: Place
    kind: Kind
    expr: Expr
    reduction: Reduction | None = None

    @property
    def draw(self) -> Call | None:
        """The random draw that the value is, or None."""
        expr = self.expr
        return expr if isinstance(expr, Call) and CORE[expr.op].rule is Rule.RANDOM else None


@record
class Loop:
    """One loop over elements.

    `loads` are pairs (value, array): the value is what the array now holds. `reduces` are reductions whose
    operands are elements. `stores` are pairs (array, value): the array is left holding it.
    """

    loads: tuple[tuple[str, str], ...]
    body: tuple[Value, ...]
    reduces: tuple[Value, ...]
    stores: tuple[tuple[str, Expr], ...]


@record
class Sweep:
    """Loops over the elements of a row, in front of and behind each what is computed per row.

    `lines[j]` stands in front of `loops[j]`, the last of `lines` behind all loops. `row_loads` are pairs (value,
    array or kept row value), `row_reduces` reductions of row values, `row_stores` row states, `kept` row values
    that a later sweep reads. A sweep without rows has one loop and empty lines.
    """

    loops: tuple[Loop, ...]
    lines: tuple[tuple[Value, ...], ...] = ((), ())
    row_loads: tuple[tuple[str, str], ...] = ()
    row_reduces: tuple[Value, ...] = ()
    row_stores: tuple[tuple[str, Expr], ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def reads(self) -> frozenset[str]:
        """Element-sized arrays that are read."""
        return frozenset(array for loop in self.loops for _, array in loop.loads)

    @property
    def writes(self) -> frozenset[str]:
        """Element-sized arrays that are written."""
        return frozenset(array for loop in self.loops for array, _ in loop.stores)

    @property
    def reduces(self) -> tuple[Value, ...]:
        """Reductions that end behind the sweep (not those over rows)."""
        found = [v for loop in self.loops for v in loop.reduces if v.place is not Place.ROWS]
        return (*found, *self.row_reduces)

    def flops(self) -> Counter[str]:
        """Operations per element, by kind: see KINDS."""
        counts: Counter[str] = Counter()
        for loop in self.loops:
            for value in loop.body:
                _count(value.expr, counts)
            for _, expr in loop.stores:
                _count(expr, counts)
            for value in loop.reduces:
                _count(value.expr, counts)
                counts[
                    "compare" if value.reduction and value.reduction.kind in ("max", "min") else "add"
                ] += 1
        return counts


@record
class Handover:
    """Behind sweep `sweep`, for which nothing of it is needed, the library program runs.

    `inputs` are pairs (state of the library program, the array or value that holds it), `outputs` arrays that it
    fills, `kept` states of the method that it alone reads and leaves.
    """

    sweep: int
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    kept: tuple[str, ...] = ()


#: The kinds of operations: sums, products, quotients, roots, comparisons (with choices, signs and extremes),
#: roundings to whole numbers, functions, random draws.
KINDS = ("add", "mul", "div", "sqrt", "compare", "round", "function", "random")
_FLOPS = {
    "add": "add", "sub": "add", "neg": "add", "mul": "mul", "div": "div", "sqrt": "sqrt",
    "abs": "compare", "sign": "compare", "select": "compare", "min": "compare", "max": "compare",
    "lt": "compare", "le": "compare", "gt": "compare", "ge": "compare", "eq": "compare", "ne": "compare",
    "and": "compare", "or": "compare", "not": "compare", "isfinite": "compare", "nan_to_num": "compare",
    "floor": "round", "ceil": "round", "round": "round",
}  # fmt: skip


def _count(expr: Expr, counts: Counter[str]) -> None:
    for node in walk(expr):
        if not isinstance(node, Call) or node.op == "broadcast":
            continue
        if CORE[node.op].rule is Rule.RANDOM:
            counts["random"] += 1
        elif products := multiplications(node):
            counts["mul"] += products
        else:
            counts[_FLOPS.get(node.op, "function")] += 1


def multiplications(node: Call) -> int:
    """How many multiplications a power is, 0 for one that is a function and for all else."""
    if node.op != "pow" or not isinstance(node.args[1], Const) or isinstance(node.args[1].value, bool | str):
        return 0
    products: dict[float, int] = {2: 1, 3: 2, 4: 2}
    return products.get(node.args[1].value, 0)


@record
class Plan:
    """One branch-free step of one tensor.

    `slots` are the numbers that the host hands over; `host_states` what it leaves in host-level states.
    `scalars[k]` are the values at SCALAR and COLS places computed in front of sweep k (the last: behind all).
    `scalar_stores` are states per tensor, per group and per column, stored at the end. `joints` tells for each
    sweep whether all tensors meet behind it. `vector`: the tensors have one column. Slot
    number k is the variable `slot_name.k`. `library` says where the library comes in, None if it does not.
    """

    slots: tuple[Expr, ...]
    host_states: tuple[tuple[str, Expr], ...]
    arrays: tuple[Array, ...]
    sweeps: tuple[Sweep, ...]
    scalars: tuple[tuple[Value, ...], ...]
    scalar_stores: tuple[tuple[str, Expr], ...]
    rows: bool = False
    vector: bool = False
    slot_name: str = "slot"
    library: Handover | None = None

    @property
    def draws(self) -> bool:
        """True when random numbers are drawn; the step count is then the last slot."""
        return any(value.draw is not None for value in self.values())

    @property
    def joints(self) -> tuple[bool, ...]:
        """For each sweep, whether all tensors meet behind it."""
        return tuple(
            any(v.reduction is not None and v.reduction.joint for v in self.closing(k))
            for k in range(len(self.sweeps))
        )

    def closing(self, sweep: int) -> tuple[Value, ...]:
        """The reductions to one number that are formed in a sweep and finished behind it.

        A joint one may have an operand per tensor or column; it is then formed in front of the sweep.
        """
        return tuple(
            v for v in self.scalars[sweep + 1]
            if v.place is Place.SCALAR and v.reduction is not None
            and (v.reduction.joint or v.reduction.operand in (Place.ELEMENT, Place.ROWS))
        )  # fmt: skip

    @property
    def launches(self) -> int:
        """Passes over all tensors: one more than there are joint barriers in front of another sweep."""
        halts = list(self.joints[:-1])
        if self.library is not None and self.library.sweep < len(halts):
            halts[self.library.sweep] = True
        return 1 + sum(halts) if self.sweeps else 0

    def array(self, name: str) -> Array:
        """The array `name`. Raises KeyError."""
        for array in self.arrays:
            if array.name == name:
                return array
        raise KeyError(name)

    def values(self) -> Iterator[Value]:
        """Every value, where it is computed (several times for one that is computed anew)."""
        for k, scalars in enumerate(self.scalars):
            yield from scalars
            if k < len(self.sweeps):
                sweep = self.sweeps[k]
                for loop in sweep.loops:
                    yield from loop.body
                    yield from loop.reduces
                for line in sweep.lines:
                    yield from line
                yield from sweep.row_reduces

    @property
    def traffic(self) -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
        """Element-sized arrays read and written by each sweep."""
        return tuple((sweep.reads, sweep.writes) for sweep in self.sweeps)

    @property
    def streams(self) -> int:
        """Element-sized arrays read or written, over all sweeps: bytes per element when each has one width."""
        return sum(len(reads) + len(writes) for reads, writes in self.traffic)

    @property
    def bound(self) -> tuple[frozenset[str], frozenset[str]]:
        """Arrays that any schedule must read and write: each once. Their bytes are the lower bound."""
        reads: set[str] = set()
        writes: set[str] = set()
        for sweep_reads, sweep_writes in self.traffic:
            reads |= sweep_reads - writes  # what is read back need not be
            writes |= sweep_writes
        return frozenset(reads), frozenset(writes - {"g"})

    @property
    def flops(self) -> Counter[str]:
        """Operations per element, by kind."""
        total: Counter[str] = Counter()
        for sweep in self.sweeps:
            total += sweep.flops()
        return total
