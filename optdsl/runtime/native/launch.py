"""A step by native kernels: tables of the tensors of each group, filled and run.

A table is made when something is not as it was in the last step: a parameter, a state, an option that changes the
kernel, a step count. In an ordinary step only its addresses are filled in again, by one call that also checks that
every tensor is still what the table says, and the kernel runs by one call more.
"""

import ctypes
import math
import operator
import struct
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.checks import with_plain_options
from optdsl.runtime.groups import GroupStep
from optdsl.runtime.native.build import BuildError, Library, driver, library
from optdsl.runtime.native.spec import Kernel, Native
from optdsl.runtime.states import (
    Facts,
    State,
    as_real,
    compute_dtype,
    create_state,
    facts_of,
    opened,
    state_dtype,
    state_shape,
)

_CPU = torch.device("cpu")
#: How a dtype is called in kernel.h, and its code and bits in DLPack.
_TYPES = {
    torch.float32: ("f32", 2 << 8 | 32),
    torch.float64: ("f64", 2 << 8 | 64),
    torch.float16: ("f16", 2 << 8 | 16),
    torch.bfloat16: ("bf16", 4 << 8 | 16),
}
_COMPLEX = (torch.complex64, torch.complex128)
#: Elements in a chunk: small enough for the cache, large enough to hide what a chunk costs.
_CHUNK = 16384
#: Chunks of a tensor whose columns are reduced: each keeps a partial result for every column.
_COLUMN_CHUNKS = 64
#: Cells of a row in front of the arrays; see kernel.h.
_ARRAYS = 17
(
    _N, _ROWS, _COLS, _CHUNK_CELL, _CHUNKS, _BEFORE, _SLOTS, _VALUES, _FOLDED, _PARTIALS, _SHARED, _KEPT_ROWS,
    _KEPT_COLS, _COL_PARTIALS, _INDEX, _SEED, _STEP,
) = range(_ARRAYS)  # fmt: skip

ParamState = dict[str, Any]
Cells = ctypes.Array[ctypes.c_int64]


def _export() -> int:
    """The address of the function by which torch describes a tensor to C. Raises BuildError."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        raise BuildError("native kernels need torch 2.10 or later, which has DLPack's C exchange interface")
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # version, older interface, allocator, managed_from, managed_to, dltensor_from
    return int((ctypes.c_int64 * 6).from_address(pointer(capsule, b"dlpack_exchange_api"))[5])


def eligible(p: Tensor, grad: Tensor) -> bool:
    """Whether a parameter and its gradient are such as native kernels take."""
    if not p.is_cpu or (p.dtype not in _TYPES and p.dtype not in _COMPLEX) or p.layout is not torch.strided:
        return False
    plain = Tensor.__torch_dispatch__
    if any(getattr(type(x), "__torch_dispatch__", plain) is not plain for x in (p, grad)):
        return False
    return (
        grad.is_cpu
        and grad.layout is torch.strided
        and grad.dtype in (_COMPLEX if p.is_complex() else _TYPES)
    )


def _usable(state: ParamState, specs: Sequence[State], p: Tensor) -> bool:
    """Whether the step count and the states of `p`, as far as there are any, are what they should be."""
    step = state.get("step")
    if not isinstance(step, Tensor) or step.numel() != 1 or step.is_complex():
        return False
    count = float(step)
    if not count.is_integer() or (step.dtype is not torch.float32 and abs(count) >= 1 << 24):
        return False
    return all(_fitting(spec, state[spec.key], p) for spec in specs if state.get(spec.key) is not None)


def _fitting(spec: State, held: Any, p: Tensor) -> bool:
    """Whether what is kept as a state of `p` is one: of its size, and for one per element of its shape."""
    if not isinstance(held, Tensor) or held.layout is not torch.strided:
        return False
    shape = state_shape(spec.level, p.shape)
    if spec.level == "element":
        return held.shape == shape and held.is_complex() == p.is_complex()
    return held.numel() == math.prod(shape) and not held.is_complex()


#: What tells that a tensor is still such as its stand-in was made for.
Form = tuple[Any, ...]


def _form(x: Any) -> Form | None:
    if not isinstance(x, Tensor) or x.layout is not torch.strided:
        return None
    return type(x), x.dtype, x.shape, x.stride(), x.device, x.is_neg(), x.is_conj(), x.data_ptr() % 16


def _dense(x: Tensor) -> bool:
    """Whether the elements of `x` fill its memory without gap or overlap, in some order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


class Row:
    """One parameter in a table: its tensors, those that stand in for one that a kernel cannot take."""

    __slots__ = (
        "facts",
        "hosts",
        "index",
        "leaf",
        "numel",
        "p",
        "real",
        "staged",
        "state",
        "t",
        "tensors",
        "types",
    )

    def __init__(self, index: int, p: Tensor, state: ParamState) -> None:
        self.index = index
        self.p = p
        self.state = state
        self.facts = facts_of(p.shape)
        self.real = compute_dtype(p.dtype)
        self.numel = p.numel() * (2 if p.is_complex() else 1)
        self.t = int(state["step"].item()) + 1
        self.hosts: tuple[float, ...] = ()
        self.leaf = 0
        #: What the table refers to: the parameter, None for the gradient, states, the step count, host states.
        self.tensors: list[Tensor | None] = []
        self.types: list[str] = []
        #: (stand-in, key or "p" or "g", form of the tensor itself) of each tensor that is copied in and out.
        self.staged: list[tuple[Tensor, str, Form | None]] = []

    def layout(self) -> tuple[Sequence[int], Sequence[int]]:
        """Sizes and strides of the tensors that have a number for every element."""
        if self.tensors[0] is self.p:
            return self.p.shape, self.p.stride()
        sizes = (*self.p.shape, 2) if self.p.is_complex() else tuple(self.p.shape)
        return sizes, [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]

    def original(self, key: str) -> Any:
        """The tensor that has a stand-in."""
        return self.p if key == "p" else self.p.grad if key == "g" else self.state.get(key)


class Cohort:
    """Parameters of a batch that share their step count, host states and the facts that count."""

    __slots__ = ("buffer", "facts", "hosts", "index", "leaf", "names", "new", "pack", "t")

    def __init__(self, row: Row, names: Sequence[str], slots: int) -> None:
        self.t, self.hosts, self.facts, self.leaf, self.index = (
            row.t,
            row.hosts,
            row.facts,
            row.leaf,
            row.index,
        )
        self.names = names
        self.new: tuple[float, ...] = ()
        size = 1 + slots + 2 * len(row.hosts) + 1
        self.pack = struct.Struct(f"{size}d").pack_into
        self.buffer = (ctypes.c_double * size)()

    def fill(self, sign: float, slots: tuple[float, ...], new: tuple[float, ...]) -> None:
        """Puts the numbers of this step where the kernel finds them."""
        self.new = new
        numbers = (sign, *slots, *new, *self.hosts, self.t - 1)
        try:
            self.pack(self.buffer, 0, *numbers)
        except (OverflowError, struct.error):  # an int beyond all floats, or a number of another type
            self.pack(self.buffer, 0, *map(_float, numbers))

    def advance(self) -> None:
        """Notes that the step is over."""
        self.t += 1
        self.hosts = tuple(map(_float, self.new))


def _float(x: Any) -> float:
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


class Batch:
    """Rows that one kernel takes: the table, and the memory that the kernel needs between its passes."""

    def __init__(self, group: GroupStep, native: Native, number: int, rows: list[Row]) -> None:
        """Raises BuildError."""
        self.number, self.rows = number, rows
        self.kernel = kernel = native.kernels[number]
        real = "double" if rows[0].real is torch.float64 else "float"
        source = native.path(group.rule)
        self.driver = driver()
        self.library: Library = library(source, native.sha256, kernel.unit, real, rows[0].types)
        self.width = _ARRAYS + 2 + len(kernel.arrays) + len(kernel.host_states)
        self.table: Cells = (ctypes.c_int64 * (len(rows) * self.width))()
        self.cohorts = self._cohorts(group)
        self._memory = self._fill(group)
        address = ctypes.addressof(self.table)
        self.arguments = (ctypes.c_int64 * 7)(
            self.library.kernel(kernel.number), address, len(rows), self.width, 0, kernel.sweeps, 1
        )
        self.call = ctypes.addressof(self.arguments)

    def _cohorts(self, group: GroupStep) -> list[Cohort]:
        """The cohorts, and in the table where their numbers are."""
        found: dict[Any, Cohort] = {}
        names = group.rule._bucket_facts
        for position, row in enumerate(self.rows):
            mark = (row.t, row.hosts, *(getattr(row.facts, name) for name in names))
            if mark not in found:
                found[mark] = Cohort(row, self.kernel.host_states, self.kernel.slots)
            self.table[position * self.width + _SLOTS] = ctypes.addressof(found[mark].buffer)
        return list(found.values())

    def _fill(self, group: GroupStep) -> list[Any]:
        """Everything in the table but slots and the addresses of tensors; returns the memory it refers to."""
        kernel, memory, before = self.kernel, [], 0

        def space(count: int, dtype: torch.dtype = torch.float64) -> int:
            if not count:
                return 0
            memory.append(torch.zeros(count, dtype=dtype, device=_CPU))
            return int(memory[-1].data_ptr())

        folded = max(kernel.width, 1)
        values = kernel.values + len(kernel.groups)
        self.shared = torch.zeros(len(kernel.joints) + len(kernel.groups), dtype=torch.float64, device=_CPU)
        self.values = torch.zeros(len(self.rows), max(values, 1), dtype=torch.float64, device=_CPU)
        self.folded = torch.zeros(len(self.rows), folded, dtype=torch.float64, device=_CPU)
        seed = group.group.get("seed", 0)
        for position, row in enumerate(self.rows):
            facts, n = row.facts, row.numel
            rows, cols = facts.rows, facts.cols
            if kernel.by_rows:
                chunk = max(1, _CHUNK // max(cols, 1))
                if kernel.column_width:
                    chunk = max(chunk, -(-rows // _COLUMN_CHUNKS))
                chunks = -(-rows // chunk)
            else:
                chunk, chunks = _CHUNK, -(-n // _CHUNK)
            cells = {
                _N: n,
                _ROWS: rows,
                _COLS: cols,
                _CHUNK_CELL: chunk,
                _CHUNKS: chunks,
                _BEFORE: before,
                _VALUES: self.values[position].data_ptr(),
                _FOLDED: self.folded[position].data_ptr(),
                _PARTIALS: space(chunks * kernel.width),
                _SHARED: self.shared.data_ptr(),
                _KEPT_ROWS: space(rows * kernel.rows, row.real),
                _KEPT_COLS: space(cols * kernel.columns, row.real),
                _COL_PARTIALS: space(chunks * cols * kernel.column_width),
                _INDEX: row.index,
                _SEED: seed - (1 << 64) if seed >= 1 << 63 else seed,
            }
            for cell, value in cells.items():
                self.table[position * self.width + cell] = value
            before += n
        return memory

    def cells(self, position: int) -> Iterator[int]:
        """The cells of the addresses in a row, in the order of `Row.tensors`."""
        kernel, start = self.kernel, position * self.width
        yield start + _ARRAYS
        yield start + _ARRAYS + 1
        for number, (_, place) in enumerate(kernel.arrays):
            if place:
                yield start + _ARRAYS + 2 + number
        yield start + _STEP
        for number in range(len(kernel.host_states)):
            yield start + _ARRAYS + 2 + len(kernel.arrays) + number

    def prepare(self, group: GroupStep, options: Mapping[str, Any], native: Native, mode: int) -> bool:
        """Puts the numbers of this step in place; False if a cohort needs another kernel now."""
        sign = -1.0 if group.maximize else 1.0
        for cohort in self.cohorts:
            state = dict(zip(cohort.names, cohort.hosts, strict=True)) if cohort.names else {}
            leaf, slots, new = group.rule._kernel(options, cohort.t, cohort.facts, state)
            if leaf != cohort.leaf and native.modes[leaf][mode] != self.number:
                return False
            cohort.leaf = leaf
            cohort.fill(sign, slots, new)
        return True

    def known(self) -> bool:
        """Whether step counts and host states are those that `prepare` went by."""
        return bool(self.driver.known(self.call))

    def run(self, first: int, last: int, threads: int) -> None:
        """Sweeps first .. last - 1."""
        arguments = self.arguments
        arguments[4], arguments[5], arguments[6] = first, last, threads
        self.driver.run(self.call)

    def finish(self, group: GroupStep) -> None:
        """What is left to do behind the last sweep: group-level states, and the next step count."""
        kernel = self.kernel
        if kernel.written_groups:
            largest = max(cohort.t for cohort in self.cohorts)
            cohort = next(cohort for cohort in self.cohorts if cohort.t == largest)
            position = next(i for i, row in enumerate(self.rows) if row.index == cohort.index)
            for key in kernel.written_groups:
                cell = kernel.values + kernel.groups.index(key)
                group.candidates.append((cohort.index, key, largest, float(self.values[position, cell])))
        for cohort in self.cohorts:
            cohort.advance()


class Table:
    """The batches of one group, and the entries by which they are filled and checked."""

    def __init__(
        self, group: GroupStep, native: Native, rows: list[Row], skipped: set[int], first: int, export: int
    ) -> None:
        """`first` is the position of the group's first parameter among all, `skipped` are positions in the group of
        parameters with a gradient that no kernel takes.
        """
        self.first = first
        self.skipped = skipped
        self.rows = rows
        self.params = [row.p for row in rows]
        batches: dict[Any, list[Row]] = {}
        self.mode_of: list[int] = []
        for row in rows:
            mode = _mode(group, row)
            mark = (native.modes[row.leaf][mode], mode, row.real, *row.types)
            batches.setdefault(mark, []).append(row)
        self.signature = signature(group)
        self.batches: list[Batch] = []
        for mark, members in batches.items():
            self.batches.append(Batch(group, native, mark[0], members))
            self.mode_of.append(mark[1])
        self.staged = [row for row in rows if row.staged]
        self._entries(group, export)

    def _entries(self, group: GroupStep, export: int) -> None:
        params = group.group["params"]
        place = {id(row): (b, i) for b, batch in enumerate(self.batches) for i, row in enumerate(batch.rows)}
        at = {id(row.p): row for row in self.rows}
        flat: list[int] = []
        counts: list[int] = []
        self._layouts: list[Cells] = []
        for number, p in enumerate(params):
            row = None if number in self.skipped else at.get(id(p))
            if row is None:
                counts.append(-1 if number in self.skipped else 0)
                continue
            b, i = place[id(row)]
            batch = self.batches[b]
            address = ctypes.addressof(batch.table)
            sizes, strides = row.layout()
            self._layouts.append((ctypes.c_int64 * (1 + 2 * len(sizes)))(len(sizes), *sizes, *strides))
            layout = ctypes.addressof(self._layouts[-1])
            cells = list(batch.cells(i))
            elements = {0, 1} | {
                2 + k for k, (_, kind) in enumerate(_placed(batch.kernel)) if kind == "element"
            }
            for k, (cell, tensor) in enumerate(zip(cells, row.tensors, strict=True)):
                shape = row.p if tensor is None else tensor
                type_ = row.types[1] if tensor is None else _type_of(tensor)
                code = next(code for name, code in _TYPES.values() if name == type_)
                owner = 0 if tensor is None else id(tensor)
                flat += [owner, address + 8 * cell, shape.numel(), code, layout if k in elements else 0]
            counts.append(len(cells))
        self._flat = (ctypes.c_int64 * max(len(flat), 1))(*flat)
        self._known = (ctypes.c_int64 * max(len(params), 1))(*map(id, params))
        self._counts = (ctypes.c_int64 * max(len(params), 1))(*counts)
        self._keep = list(params)
        addresses = [ctypes.addressof(x) for x in (self._flat, self._known, self._counts)]
        self._arguments = (ctypes.c_int64 * 5)(export, *addresses, len(params))
        self._call = ctypes.addressof(self._arguments)

    def gather(self, group: GroupStep) -> bool:
        """Fills the addresses; False if a parameter, gradient or state is not what the table is made for."""
        if not self.batches or self.signature != signature(group):
            return False
        for row in self.staged:
            if any(_form(row.original(key)) != form for _, key, form in row.staged):
                return False
        params = group.group["params"]
        listed = params if type(params) is list else list(params)
        return not self.batches[0].driver.gather(listed, "grad", "is_neg", None, self._call)

    def idle(self, group: GroupStep) -> bool:
        """Whether there is still nothing for kernels to do, where there was nothing."""
        params = group.group["params"]
        if self.signature != signature(group) or len(params) != len(self._keep):
            return False
        given = {number for number, p in enumerate(params) if p.grad is not None}
        return (
            given == self.skipped
            and all(map(operator.is_, params, self._keep))
            and not any(eligible(params[number], params[number].grad) for number in given)
        )

    def stage_in(self) -> None:
        """Copies what a kernel cannot take into what stands in for it."""
        for row in self.staged:
            for stand_in, key, _ in row.staged:
                source = row.original(key).detach()
                if source.is_complex():
                    source = torch.view_as_real(source.resolve_conj().resolve_neg())
                stand_in.copy_(source)

    def stage_out(self) -> None:
        """Copies results back."""
        for row in self.staged:
            for stand_in, key, _ in row.staged:
                if key != "g":
                    target = row.original(key).detach()
                    target.copy_(torch.view_as_complex(stand_in) if target.is_complex() else stand_in)


def _placed(kernel: Kernel) -> list[tuple[str, str]]:
    return [(key, place) for key, place in kernel.arrays if place]


def _type_of(tensor: Tensor) -> str:
    return _TYPES[tensor.dtype][0]


def _mode(group: GroupStep, row: Row) -> int:
    """Which variant of a kernel with several sweeps a parameter takes: see `Native.modes`."""
    exact = "f64" if row.real is torch.float64 else "f32"
    if any(type_ != exact for n, type_ in enumerate(row.types) if n != 1):
        return 1
    overwrite = group.group.get("overwrite_grad", False) and row.types[1] == exact
    return 2 if overwrite and row.tensors[1] is None else 0


class Launcher:
    """The native part of the steps of one optimizer; holds nothing but what can be made again."""

    def __init__(self, rule: Any, native: Native) -> None:
        self.rule = rule
        self.native = native
        self.export = 0
        #: Why there are no kernels.
        self.failure = ""
        self.tables: dict[int, Table] = {}
        self._known: Any = None
        self._known_address = 0
        self._known_refs: list[Any] = []
        self._count = 0

    def step(
        self, groups: Sequence[GroupStep], firsts: Sequence[int], states: MutableMapping[Tensor, ParamState]
    ) -> list[set[int] | None] | None:
        """Takes the step of all parameters that native kernels take.

        Returns for each group the positions in it of the parameters that are left, None for all; or None, with
        `failure` set and no parameter changed, where there are no kernels.
        """
        try:
            tables = self.current(groups, firsts, states)
        except BuildError as error:
            self.failure = str(error)
            return None
        if self.rule._joint and any(table is None or table.skipped for table in tables):
            return [None] * len(groups)
        active = [(group, table) for group, table in zip(groups, tables, strict=True) if table and table.rows]
        threads = torch.get_num_threads()
        batches = [(group, batch) for group, table in active for batch in table.batches]
        if self.rule._joint:
            self._run_jointly(batches, threads)
        else:
            for _, batch in batches:
                batch.run(0, batch.kernel.sweeps + 1, threads)
        for group, table in active:
            if table.staged:
                table.stage_out()
            for batch in table.batches:
                batch.finish(group)
            torch.autograd.graph.increment_version(table.params)
            if 2 in table.mode_of:  # gradients were written to
                torch.autograd.graph.increment_version(
                    [row.p.grad for row in table.rows if row.p.grad is not None]
                )
        return [None if table is None else table.skipped for table in tables]

    # ---- tables -----------------------------------------------------------------------------------------

    def current(
        self, groups: Sequence[GroupStep], firsts: Sequence[int], states: MutableMapping[Tensor, ParamState]
    ) -> list[Table | None]:
        """The tables of this step, filled; None for a group that does not want kernels."""
        same = self._known is not None and self._same(states)
        tables: list[Table | None] = []
        made = False
        for group, first in zip(groups, firsts, strict=True):
            if not group.native:
                tables.append(None)
                continue
            options = _options(group)
            table = self.tables.get(group.number)
            if table is None or table.first != first:
                fits = False
            elif not table.batches:
                fits = table.idle(group)
            else:
                fits = same and table.gather(group) and self._prepare(table, group, options)
            if table is None or not fits:
                table = self.tables[group.number] = self._make(group, first, states, options)
                made = True
                if table.batches and not (table.gather(group) and self._prepare(table, group, options)):
                    raise AssertionError("a table that was just made does not fit its tensors")
            tables.append(table)
        if made and not (self._known is not None and self._same(states)):
            self._remember(states)
        return tables

    def _prepare(self, table: Table, group: GroupStep, options: Mapping[str, Any]) -> bool:
        if table.staged:
            table.stage_in()
        for batch, mode in zip(table.batches, table.mode_of, strict=True):
            if not batch.prepare(group, options, self.native, mode) or not batch.known():
                return False
            if batch.kernel.groups:
                self._read_groups(batch, group)
        return True

    def _read_groups(self, batch: Batch, group: GroupStep) -> None:
        """Gives the kernel the group-level states."""
        row = batch.rows[0]
        for number, key in enumerate(batch.kernel.groups):
            p = g = torch.empty((), dtype=row.real, device=_CPU)
            if not isinstance(group.group.get(key), Tensor):  # it begins, maybe as what they say
                p, g = self._opened(row, group)
            held = group.read(group.rule._specs[key], p, g, row.p.shape)
            batch.shared[len(batch.kernel.joints) + number] = held.item()

    @staticmethod
    def _opened(row: Row, group: GroupStep) -> tuple[Tensor, Tensor]:
        """The parameter and its gradient as initial values read them."""
        assert row.p.grad is not None
        p, g = (opened(x.detach().resolve_conj(), row.real) for x in (row.p, row.p.grad))
        return p, -g if group.maximize else g

    def _same(self, states: MutableMapping[Tensor, ParamState]) -> bool:
        """Whether every state is the object that it was."""
        for table in self.tables.values():
            if table.batches:
                return not table.batches[0].driver.same(states, self._known_address, self._count)
        return False

    def _remember(self, states: MutableMapping[Tensor, ParamState]) -> None:
        flat: list[int] = []
        refs: list[Any] = []
        for key, state in states.items():
            flat += [id(key), id(state), len(state), *map(id, state.values())]
            refs += [key, state, *state.values()]
        self._known = (ctypes.c_int64 * max(len(flat), 1))(*flat)
        self._known_address = ctypes.addressof(self._known)
        self._known_refs = refs
        self._count = len(states)

    def _make(
        self,
        group: GroupStep,
        first: int,
        states: MutableMapping[Tensor, ParamState],
        options: Mapping[str, Any],
    ) -> Table:
        rows: list[Row] = []
        skipped: set[int] = set()
        live: dict[Facts, tuple[str, ...]] = {}
        fresh: list[tuple[Tensor, ParamState]] = []
        seen: set[int] = set()
        for number, p in enumerate(group.group["params"]):
            if p.grad is None:
                continue
            name, kind = type(group.rule).__name__, type(p).__name__
            if p.grad.layout is not torch.strided:
                raise RuntimeError(f"{name} does not support sparse gradients")
            if p.is_complex() and not group.rule._elementwise:
                raise RuntimeError(f"{name} does not support complex parameters")
            if not eligible(p, p.grad):
                if group.group["fused"]:
                    raise RuntimeError(
                        f"{name}: `fused=True` needs dense parameters and gradients of float32, float64, bfloat16 or "
                        f"float16 on the CPU; parameter {first + number} is a {kind} of {p.dtype} on {p.device}"
                    )
                skipped.add(number)
                continue
            state = states.get(p)
            if not state:
                state = {"step": torch.zeros((), dtype=torch.float32, device=_CPU)}
            facts = facts_of(p.shape)
            keys = live.get(facts)
            if keys is None:
                keys = live[facts] = tuple(group.rule._live(options, facts))
            specs = [group.rule._specs[key] for key in keys if group.rule._specs[key].level != "group"]
            # the loop takes what is odd, or says what is wrong with it; so for a parameter that is named twice
            if id(p) in seen or not _usable(state, specs, p):
                skipped.add(number)
                continue
            seen.add(id(p))
            row = Row(first + number, p, state)
            if any(key not in state for key in keys) or not states.get(p):
                fresh.append((p, state))
            self._complete(row, group, keys, options)
            rows.append(row)
        if rows and not self.export:
            self.export = _export()
        if group.rule._joint and skipped:
            return Table(group, self.native, [], skipped, first, self.export)
        table = Table(group, self.native, rows, skipped, first, self.export)
        for p, state in fresh:
            states[p] = state
        return table

    def _complete(
        self, row: Row, group: GroupStep, keys: tuple[str, ...], options: Mapping[str, Any]
    ) -> None:
        """Makes missing states, and finds the plan and the tensors of a row."""
        rule, p, state = group.rule, row.p, row.state
        made: ParamState = {}
        hosts: dict[str, float] = {}
        for key in keys:
            spec = rule._specs[key]
            if spec.level == "group":
                continue
            held = state.get(key)
            if held is None:
                value = rule._initial(key, *self._opened(row, group), options, row.facts)
                like = torch.empty((), device=_CPU) if spec.level == "host" else p
                held = made[key] = create_state(spec, like, value)
            if spec.level == "host":
                hosts[key] = held.item()
        row.leaf, _, _ = rule._kernel(options, row.t, row.facts, hosts)
        # all kernels of one plan have the same states
        kernel = self.native.kernels[self.native.modes[row.leaf][0]]
        row.hosts = tuple(hosts[key] for key in kernel.host_states)
        state.update(made)
        self._arrange(row, kernel)

    def _arrange(self, row: Row, kernel: Kernel) -> None:
        """The tensors of a row, with stand-ins for those that a kernel cannot take as they are."""
        p, state = row.p, row.state
        grad = p.grad
        assert grad is not None
        anyhow = self.rule._elementwise and not self.rule._random
        direct = not p.is_complex() and (p.is_contiguous() or (anyhow and _dense(p)))
        strides = p.stride() if direct else None

        def arranged(tensor: Tensor, key: str, like: bool, dtype: torch.dtype | None) -> Tensor | None:
            wanted = tensor.dtype if dtype is None else dtype
            fits = not tensor.is_complex() and tensor.dtype is wanted and tensor.is_cpu and _in_memory(tensor)
            if fits and (_laid_out(tensor, strides) if like else tensor.is_contiguous()):
                return tensor
            real = as_real(tensor.detach().resolve_conj().resolve_neg()) if tensor.is_complex() else tensor
            kind = real.dtype if dtype is None else dtype
            if like and strides is not None:
                stand_in = torch.empty_strided(real.shape, strides, dtype=kind, device=_CPU)
            else:
                stand_in = torch.empty(real.shape, dtype=kind, device=_CPU)
            row.staged.append((stand_in, key, _form(tensor)))
            return stand_in

        first = arranged(p, "p", True, None)
        gradient = arranged(grad, "g", True, None)
        row.tensors = [first, None if gradient is grad else gradient]
        row.types = [_type_of(x) for x in (first, gradient) if x is not None]
        for key, place in _placed(kernel):
            spec, held = self.rule._specs[key], state[key]
            if place == "element" and spec.level == "element":
                tensor = arranged(held, key, True, None)
            else:
                tensor = arranged(held, key, False, row.real)
            assert tensor is not None
            row.tensors.append(tensor)
            # one that is kept per row or column is in the type that is computed in
            row.types.append(_type_of(tensor))
        # group-level states have a cell, which is not used
        types = iter(row.types[2:])
        exact = "f64" if row.real is torch.float64 else "f32"
        row.types[2:] = [next(types) if place else exact for _, place in kernel.arrays]
        row.tensors.append(arranged(state["step"], "step", False, torch.float32))
        for key in kernel.host_states:
            row.tensors.append(arranged(state[key], key, False, state_dtype(self.rule._specs[key], p)))

    # ---- joint reductions -------------------------------------------------------------------------------

    @staticmethod
    def _run_jointly(batches: Sequence[tuple[GroupStep, Batch]], threads: int) -> None:
        """Runs all batches from one joint barrier to the next.

        All batches whose kernels reach a site are reduced together there, lowest site first.
        """
        position = [0] * len(batches)
        waiting: list[list[tuple[int, int, int, str, str, str]]] = [[] for _ in batches]

        def advance(number: int) -> None:
            batch = batches[number][1]
            start, joints = position[number], batch.kernel.joints
            stop = min((j[0] + 1 for j in joints if j[0] >= start), default=batch.kernel.sweeps + 1)
            batch.run(start, stop, threads)
            position[number] = stop
            waiting[number] = [j for j in joints if j[0] == stop - 1]

        for number in range(len(batches)):
            advance(number)
        while any(waiting):
            site = min(joint[2] for joints in waiting for joint in joints)
            _meet(batches, waiting, site)
            for number, joints in enumerate(waiting):
                if any(j[2] == site for j in joints):
                    waiting[number] = [j for j in joints if j[2] != site]
                    if not waiting[number]:
                        advance(number)


def _meet(
    batches: Sequence[tuple[GroupStep, Batch]],
    waiting: Sequence[Sequence[tuple[int, int, int, str, str, str]]],
    site: int,
) -> None:
    """Reduces what all batches have at `site`, and gives each the result."""
    meetings: dict[int | None, list[tuple[Batch, tuple[int, int, int, str, str, str]]]] = {}
    for (group, batch), joints in zip(batches, waiting, strict=True):
        for joint in joints:
            if joint[2] == site:
                meetings.setdefault(group.number if joint[3] == "group" else None, []).append((batch, joint))
    for parties in meetings.values():
        kind = parties[0][1][4]
        entries: list[tuple[int, float, int]] = []
        for batch, joint in parties:
            partials = batch.folded[:, joint[1]].tolist()
            for row, partial in zip(batch.rows, partials, strict=True):
                count = {"element": row.numel, "rows": row.facts.rows, "cols": row.facts.cols}.get(
                    joint[5], 1
                )
                if count:
                    entries.append((row.index, partial, count))
        entries.sort()
        value = _together(kind, entries)
        for batch, joint in parties:
            batch.shared[batch.kernel.joints.index(joint)] = value


def _together(kind: str, entries: Sequence[tuple[int, float, int]]) -> float:
    partials = [partial for _, partial, _ in entries]
    if kind in ("max", "min"):
        if any(map(math.isnan, partials)):
            return math.nan
        return max(partials, default=-math.inf) if kind == "max" else min(partials, default=math.inf)
    total = 0.0
    for partial in partials:
        total += partial
    if kind == "sum":
        return total
    count = sum(count for _, _, count in entries)
    return total / count if count else math.nan


def signature(group: GroupStep) -> tuple[Any, ...]:
    """Options that a table depends on, apart from those that `_kernel` reads."""
    return group.group.get("overwrite_grad"), group.group.get("seed"), group.group["fused"]


def _in_memory(x: Tensor) -> bool:
    """Whether the numbers of `x` are in memory as they are, at addresses that suit their type."""
    return not (x.is_neg() or x._is_zerotensor() or x.data_ptr() % x.element_size())


def _laid_out(x: Tensor, strides: tuple[int, ...] | None) -> bool:
    """Whether the elements of `x` lie in these strides, or without gaps in the order of their indices."""
    if strides is None:
        return x.is_contiguous()
    return (
        x.stride() == strides
        or all(a == b or size == 1 for a, b, size in zip(x.stride(), strides, x.shape, strict=True))
        or (x.numel() == 0)
    )


def _options(group: GroupStep) -> Mapping[str, Any]:
    """The options as plain numbers."""
    names = group.tensor_options
    return with_plain_options(group.group, names, False, False, _CPU) if names else group.group
