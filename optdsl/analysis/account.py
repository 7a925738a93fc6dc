"""What a plan moves and computes, per parameter: the numbers, from the plan and from how wide each array is stored.

Counted are the arrays with a number for every parameter. Values per row, column, tensor and group are few beside
them. A store is counted as the bytes that it stores, whether or not a processor reads the line before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from optdsl.backends.cpu.printer import LIBRARY, SCALAR_ONLY
from optdsl.core.record import field, record
from optdsl.core.storage import BLOCK, FORMATS, is_code
from optdsl.ir.expr import Call, Expr, walk
from optdsl.ir.plan import KINDS, Loop, Place, Plan, Sweep, multiplications
from optdsl.ir.program import Program

#: Bytes of a number, by the name of its type; of codes, with their share of a scale.
BYTES: dict[str, float] = {
    **{name: size + 4 / BLOCK if is_code(name) else int(size) for name, size in FORMATS.items()},
    "f64": 8,
}


def computed_in(dtype: str) -> str:
    """The type in which parameters of this type are updated, and states that are not per parameter are kept."""
    return "f64" if dtype == "f64" else "f32"


def widths(program: Program, dtype: str) -> dict[str, float]:
    """Bytes of one number of `p`, `g` and each state above the host, for parameters of this type.

    As in torch, the gradient and a state per parameter are stored as the parameter is.
    """
    found = {"p": BYTES[dtype], "g": BYTES[dtype]}
    for state in program.states:
        if not state.type.is_host:
            usual = dtype if state.type.is_element else computed_in(dtype)
            found[state.name] = BYTES[state.stored or usual]
    return found


#: Under which name the widths of an account have that of arrays that are there during a step only.
WORK = "work array"


@record
class SweepAccount:
    """One sweep.

    `reads` and `writes` are the arrays that it reads and writes, in the order of the table, each once: a row that
    is gone through again is in the cache. `bytes_read` and `bytes_written` are theirs, `bytes_loaded` and
    `bytes_stored` what the instructions move, which is more where a row is gone through again.

    `barrier` is what happens behind it: "tensor" if the tensor must be finished before it goes on, "joint" if all
    tensors meet, "library" if torch computes the arrays `handed` from what is there, None if nothing does.
    `library` and `scalar` count the operations, by name, that a vector function of the C library computes, and
    those that stay scalar.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    bytes_read: float
    bytes_written: float
    bytes_loaded: float
    bytes_stored: float
    loops: int
    barrier: str | None
    operations: Mapping[str, int]
    library: Mapping[str, int]
    scalar: Mapping[str, int]
    handed: tuple[str, ...] = ()


@record
class Account:
    """All sweeps of a plan. Bytes and operations are per parameter.

    `least_read` and `least_written` are the lower bound: each array once. `cached_read` and `cached_written`
    are what goes from and to memory if a tensor stays in the cache between sweeps that no joint barrier parts:
    each array then moves once in front of each, and what is written before it is read is not read from memory.
    `state` are the bytes of the states with a number for every parameter that the plan knows of.
    """

    sweeps: tuple[SweepAccount, ...]
    launches: int
    least_read: float
    least_written: float
    cached_read: float
    cached_written: float
    state: float
    widths: Mapping[str, float] = field(hash=False)

    @property
    def read(self) -> float:
        """Bytes read."""
        return sum(sweep.bytes_read for sweep in self.sweeps)

    @property
    def written(self) -> float:
        """Bytes written."""
        return sum(sweep.bytes_written for sweep in self.sweeps)

    @property
    def moved(self) -> float:
        """Bytes read and written."""
        return self.read + self.written

    @property
    def least(self) -> float:
        """The fewest bytes that any plan moves."""
        return self.least_read + self.least_written

    @property
    def cached(self) -> float:
        """Bytes from and to memory if a tensor stays in the cache between its sweeps."""
        return self.cached_read + self.cached_written

    @property
    def touched(self) -> float:
        """Bytes that the instructions of the kernel load and store."""
        return sum(sweep.bytes_loaded + sweep.bytes_stored for sweep in self.sweeps)

    @property
    def operations(self) -> dict[str, int]:
        """Operations by kind, all of KINDS."""
        return {kind: sum(sweep.operations[kind] for sweep in self.sweeps) for kind in KINDS}

    @property
    def library(self) -> dict[str, int]:
        """Operations by name that a vector function of the C library computes."""
        return _sum(sweep.library for sweep in self.sweeps)

    @property
    def scalar(self) -> dict[str, int]:
        """Operations by name for which there is neither a vector instruction nor such a function."""
        return _sum(sweep.scalar for sweep in self.sweeps)

    @property
    def intensity(self) -> float:
        """Operations per byte moved, each operation counting as one."""
        return sum(self.operations.values()) / self.moved if self.moved else 0.0


def account(plan: Plan, widths: Mapping[str, float]) -> Account:
    """The account of a plan whose arrays have numbers of these widths in bytes, with WORK where it has such."""
    works = {array.name: widths[WORK] for array in plan.arrays if array.work}
    widths = {**{name: width for name, width in widths.items() if name != WORK}, **works}
    order = {array.name: index for index, array in enumerate(plan.arrays)}

    def size(names: Iterable[str]) -> float:
        return sum(widths[name] for name in names)

    def sorted_(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(names, key=order.__getitem__))

    sweeps = []
    for k, sweep in enumerate(plan.sweeps):
        named = Counter(node.op for node in _operations(sweep))
        operations = sweep.flops()
        sweeps.append(
            SweepAccount(
                sorted_(sweep.reads),
                sorted_(sweep.writes),
                size(sweep.reads),
                size(sweep.writes),
                size(array for loop in sweep.loops for array in {array for _, array in loop.loads}),
                size(array for loop in sweep.loops for array, _ in loop.stores),
                sum(map(_is_loop, sweep.loops)),
                _barrier(plan, k),
                {kind: operations[kind] for kind in KINDS},
                {name: named[name] for name in sorted(LIBRARY) if named[name]},
                {name: named[name] for name in sorted(SCALAR_ONLY) if named[name]},
                plan.library.outputs if plan.library is not None and plan.library.sweep == k else (),
            )
        )
    reads, writes = plan.bound
    cached_read, cached_written = _cached(plan)
    kept = [a for a in plan.arrays if a.key and not a.given and not a.work]
    state = size(a.name for a in kept if a.place is Place.ELEMENT)
    return Account(
        tuple(sweeps),
        plan.launches,
        size(reads),
        size(writes),
        size(cached_read),
        size(cached_written),
        state,
        dict(widths),
    )


def _cached(plan: Plan) -> tuple[list[str], list[str]]:
    """Arrays that come from memory, and those that go there, in each run of sweeps without a joint barrier."""
    come: list[str] = []
    go: list[str] = []
    read: set[str] = set()
    written: set[str] = set()
    for joint, (reads, writes) in zip(plan.joints, plan.traffic, strict=True):
        read |= reads - written
        written |= writes
        if joint:
            come, go = [*come, *read], [*go, *written]
            read, written = set(), set()
    return [*come, *read], [*go, *written]


def _barrier(plan: Plan, k: int) -> str | None:
    if plan.joints[k]:
        return "joint"
    if plan.library is not None and plan.library.sweep == k:
        return "library"
    return "tensor" if k < len(plan.sweeps) - 1 or finished(plan, k) else None


def finished(plan: Plan, k: int) -> list[str]:
    """Names of the reductions of a tensor or its columns that sweep k forms and that end behind it."""
    formed = {value.name for value in plan.sweeps[k].reduces}
    return [
        v.name for v in plan.scalars[k + 1]
        if v.reduction is not None and (v.name in formed or v.reduction.joint)
    ]  # fmt: skip


def _is_loop(loop: Loop) -> bool:
    return bool(loop.loads or loop.body or loop.reduces or loop.stores)


def _operations(sweep: Sweep) -> Iterator[Call]:
    """The operations of the loops over elements, in names of the table of operators, apart from products."""
    for loop in sweep.loops:
        exprs: list[Expr] = [value.expr for value in (*loop.body, *loop.reduces)]
        for expr in (*exprs, *(expr for _, expr in loop.stores)):
            for node in walk(expr):
                if isinstance(node, Call) and not multiplications(node):
                    yield node


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


__all__ = ["BYTES", "Account", "SweepAccount", "account", "computed_in", "finished", "widths"]
