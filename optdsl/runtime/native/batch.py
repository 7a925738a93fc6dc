"""Rows that one kernel takes: the table that it reads, and how it runs on the CPU."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from optdsl.runtime.groups import GroupStep
from optdsl.runtime.native.build import Library, driver, library
from optdsl.runtime.native.codes import table_of
from optdsl.runtime.native.rows import CPU, Cohort, Row
from optdsl.runtime.native.spec import Native
from optdsl.runtime.states import Facts, state_shape
from optdsl.runtime.storage import AT_RANDOM, Code, Half

#: Cells of a row in front of the arrays; see kernel.h.
ARRAYS = 18
(
    N, ROWS, COLS, CHUNK_CELL, CHUNKS, BEFORE, SLOTS, VALUES, FOLDED, PARTIALS, SHARED, KEPT_ROWS,
    KEPT_COLS, COL_PARTIALS, INDEX, SEED, STEP, CODED,
) = range(ARRAYS)  # fmt: skip

Cells = ctypes.Array[ctypes.c_int64]


def numbers_of(
    group: GroupStep, options: Mapping[str, Any], t: Any, facts: Facts, state: dict[str, Any]
) -> tuple[int, tuple[Any, ...], tuple[Any, ...]] | None:
    """The plan of a step, the numbers that its kernel takes and the new host states.

    None if an option was changed, and now there is a host state that is not among these.
    """
    try:
        found: tuple[int, tuple[Any, ...], tuple[Any, ...]] = group.rule._kernel(options, t, facts, state)
    except KeyError as missing:
        if missing.args[0] in state or missing.args[0] not in group.rule._specs:
            raise
        return None
    return found


class Batch:
    """Rows that one kernel takes: the table, and the memory that the kernel needs between its passes.

    The table lies in the memory of the host, where the driver fills and checks it; kernels for a device have a copy.
    """

    #: Elements in a chunk, or in its rows.
    chunk: int
    #: Chunks of a tensor whose columns are reduced, at most: each keeps a partial result for every column.
    column_chunks: ClassVar[int] = 64

    def __init__(self, group: GroupStep, native: Native, number: int, rows: list[Row]) -> None:
        """Raises BuildError."""
        self.number, self.rows = number, rows
        self.kernel = kernel = native.kernels[number]
        self.device = rows[0].p.device
        self.counts_here = rows[0].counts_here
        self.driver = driver()
        #: The first cell behind arrays and host states: scales and tables of arrays in codes.
        self.behind = ARRAYS + 2 + len(kernel.arrays) + len(kernel.host_states)
        #: The tables of arrays in codes, by their numbers.
        self.codes = {number: code for number, code in enumerate(rows[0].codes) if code is not None}
        #: Which of these arrays are rounded at random, and which have something beside them.
        self.rounded = [n for n, x in self.codes.items() if isinstance(x, Half) and x.form == AT_RANDOM]
        self.beside = [n for n in self.codes if n not in self.rounded]
        self.width = self.behind + (2 * (2 + len(kernel.arrays)) if self.codes else 0)
        #: The rows, of 64-bit cells, and the same memory as a tensor.
        self.table: Cells = (ctypes.c_int64 * (len(rows) * self.width))()
        self.address = ctypes.addressof(self.table)
        self.cells = torch.frombuffer(self.table, dtype=torch.int64).view(len(rows), self.width)
        self._gather_cohorts(group)
        self._memory = self._fill(group)
        self.arguments = (ctypes.c_int64 * 7)(
            self._kernel(group, native),
            self.address,
            len(rows),
            self.width,
            0,
            kernel.sweeps,
            1,
        )
        self.call = ctypes.addressof(self.arguments)

    def _kernel(self, group: GroupStep, native: Native) -> int:
        """The address of the kernel as the driver wants it. Raises BuildError."""
        raise NotImplementedError

    def run(self, first: int, last: int, threads: int) -> None:
        """Sweeps first .. last - 1; beyond the last sweep, what ends the step too."""
        raise NotImplementedError

    def run_library(self) -> None:
        """What the kernel leaves to torch: takes what it has left in memory, and puts there what comes of it."""
        assert self.kernel.library is not None
        _, inputs, outputs, own = self.kernel.library
        for members, t, hosts, cohort in self.alike():
            rows = [self.rows[i] for i in members]
            state: dict[str, Any] = dict(zip(cohort.names, hosts, strict=True))
            for key, kind, number in inputs:
                held = [self._handed(i, key, kind, number) for i in members]
                state[key] = held[0] if kind == "group" else held
            for key in outputs:
                state[key] = [row.works[key] for row in rows]
            for key in own:
                if key in rows[0].state:
                    state[key] = [row.state[key] for row in rows]
            one = rows[0].p.new_empty((), dtype=rows[0].real)
            like = [one.expand(row.p.shape) for row in rows]
            self.group.rule._library(like, state, self.options(), t, cohort.facts)
            for key in outputs:
                for row, new in zip(rows, state[key], strict=True):
                    work = row.works[key]
                    work.copy_(new.reshape(work.shape) if new.numel() == work.numel() else new)
            for key in own:
                for row, new in zip(rows, state.get(key, ()), strict=False):
                    self._keep(row.state[key], new)

    def _keep(self, held: Tensor, new: Tensor) -> None:
        """Leaves a state of the library as it is from now on."""
        if new is not held:
            held.copy_(new)

    def alike(self) -> Iterator[tuple[list[int], Any, Sequence[Any], Cohort]]:
        """Positions of rows for which the host has the same numbers: their step count and host states."""
        for number, cohort in enumerate(self.cohorts):
            members = [i for i, owner in enumerate(self.cohort_of) if owner == number]
            yield members, cohort.t, cohort.hosts, cohort

    def options(self) -> Mapping[str, Any]:
        """The options as an update gets them."""
        return self.group.options(self.device)

    def _handed(self, position: int, key: str, kind: str, number: int) -> Tensor:
        """What the kernel hands over of one tensor, in the shape of a state."""
        row = self.rows[position]
        if kind == "array":
            return row.works[key]
        if kind in ("value", "group"):
            return self.values[position, number].to(row.real)
        memory = self.kept_rows[position] if kind == "row" else self.kept_cols[position]
        size = row.facts.rows if kind == "row" else row.facts.cols
        shape = state_shape("rows" if kind == "row" else "cols", row.p.shape)
        return memory[number * size : (number + 1) * size].view(shape)

    def _gather_cohorts(self, group: GroupStep) -> None:
        """The cohorts, and in the table where their numbers are."""
        found: dict[Any, int] = {}
        names = group.rule._bucket_facts
        firsts: list[Row] = []
        #: The cohort of each row.
        self.cohort_of: list[int] = []
        for row in self.rows:
            mark = (row.t, row.hosts, *(getattr(row.facts, name) for name in names))
            if mark not in found:
                found[mark] = len(firsts)
                firsts.append(row)
            self.cohort_of.append(found[mark])
        size = 1 + self.kernel.slots + 2 * len(self.kernel.host_states) + 1
        #: The numbers of each cohort: the sign of the gradient, the slots, host states as they become and as they
        #: were, the number of the step before.
        self.numbers = torch.zeros(len(firsts), size, dtype=torch.float64, device=CPU)
        self.cohorts = [
            Cohort(row, self.kernel.host_states, size, numbers.data_ptr())
            for row, numbers in zip(firsts, self.numbers, strict=True)
        ]
        for position, number in enumerate(self.cohort_of):
            self.table[position * self.width + SLOTS] = self.numbers[number].data_ptr()

    def _fill(self, group: GroupStep) -> list[Any]:
        """Everything in the table but slots and the addresses of tensors; returns the memory it refers to."""
        kernel, memory, before = self.kernel, [], 0
        #: Values that are kept per row and per column of each tensor.
        self.kept_rows: list[Tensor] = []
        self.kept_cols: list[Tensor] = []

        def space(count: int, dtype: torch.dtype = torch.float64) -> int:
            memory.append(torch.zeros(count, dtype=dtype, device=self.device))
            return int(memory[-1].data_ptr())

        def each(count: int) -> torch.Tensor:
            return torch.zeros(len(self.rows), max(count, 1), dtype=torch.float64, device=self.device)

        shared = len(kernel.joints) + len(kernel.groups)
        self.shared = torch.zeros(shared, dtype=torch.float64, device=self.device)
        self.values, self.folded = each(kernel.values + len(kernel.groups)), each(kernel.width)
        values, folded = self.values.data_ptr(), self.folded.data_ptr()
        seed = group.group.get("seed", 0)
        for position, row in enumerate(self.rows):
            facts, n = row.facts, row.numel
            rows, cols = facts.rows, facts.cols
            if kernel.by_rows:
                chunk = max(1, self.chunk // max(cols, 1))
                if kernel.column_width:
                    chunk = max(chunk, -(-rows // self.column_chunks))
                chunks = -(-rows // chunk)
            else:
                chunk, chunks = self.chunk, -(-n // self.chunk)
            cells = {
                N: n,
                ROWS: rows,
                COLS: cols,
                CHUNK_CELL: chunk,
                CHUNKS: chunks,
                BEFORE: before,
                VALUES: values + 8 * position * self.values.shape[1],
                FOLDED: folded + 8 * position * self.folded.shape[1],
                PARTIALS: space(chunks * kernel.width),
                SHARED: self.shared.data_ptr(),
                KEPT_ROWS: space(rows * kernel.rows, row.real),
                KEPT_COLS: space(cols * kernel.columns, row.real),
                COL_PARTIALS: space(chunks * cols * kernel.column_width),
                INDEX: row.index,
                SEED: seed - (1 << 64) if seed >= 1 << 63 else seed,
            }
            self.kept_rows.append(memory[-3])
            self.kept_cols.append(memory[-2])
            for number, code in self.codes.items():
                cells[CODED] = cells.get(CODED, 0) | 1 << number
                cells[self.behind + 2 * number + 1] = self._table_of(number, code)
            for cell, value in cells.items():
                self.table[position * self.width + cell] = value
            before += n
        return memory

    def _table_of(self, number: int, code: Code | Half) -> int:
        """What the kernels want to know of array `number`: the address of its table of codes."""
        raise NotImplementedError

    def places(self, position: int) -> Iterator[int]:
        """Where the driver puts the addresses of a row, in the order of `Row.tensors`."""
        kernel, start = self.kernel, self.address + 8 * position * self.width
        yield start + 8 * ARRAYS
        yield start + 8 * (ARRAYS + 1)
        for number, (_, place) in enumerate(kernel.arrays):
            if place:
                yield start + 8 * (ARRAYS + 2 + number)
        yield start + 8 * STEP
        for number in range(len(kernel.host_states)):
            yield start + 8 * (ARRAYS + 2 + len(kernel.arrays) + number)
        for number in self.beside:
            yield start + 8 * (self.behind + 2 * number)

    def prepare(self, group: GroupStep, options: Mapping[str, Any], native: Native, mode: int) -> bool:
        """Puts the numbers of this step in place; False if a cohort needs another kernel now."""
        self.group = group
        sign = -1.0 if group.maximize else 1.0
        for cohort in self.cohorts:
            state = dict(zip(cohort.names, cohort.hosts, strict=True)) if cohort.names else {}
            asked = numbers_of(group, options, cohort.t, cohort.facts, state)
            if asked is None:
                return False
            leaf, slots, new = asked
            if leaf != cohort.leaf and native.modes[leaf][mode] != self.number:
                return False
            cohort.leaf = leaf
            cohort.fill(sign, slots, new)
        return True

    def known(self) -> bool:
        """Whether step counts and host states are those that `prepare` went by."""
        return bool(self.driver.known(self.call))

    def finish(self, group: GroupStep) -> None:
        """What is left to do behind the last sweep: group-level states, and the next step count."""
        kernel = self.kernel
        if kernel.written_groups:
            largest = max(cohort.t for cohort in self.cohorts)
            cohort = next(cohort for cohort in self.cohorts if cohort.t == largest)
            position = next(i for i, row in enumerate(self.rows) if row.index == cohort.index)
            for key in kernel.written_groups:
                cell = kernel.values + kernel.groups.index(key)
                # a copy, which stays where it is: the step of a device may not have come to it yet
                group.candidates.append((cohort.index, key, largest, self.values[position, cell].clone()))
        for cohort in self.cohorts:
            cohort.advance()


class CpuBatch(Batch):
    """Rows whose kernel is native code."""

    #: Small enough for the cache, large enough to hide what a chunk costs.
    chunk = 16384

    def _kernel(self, group: GroupStep, native: Native) -> int:
        rows, unit = self.rows, self.kernel.unit
        real = "double" if rows[0].real is torch.float64 else "float"
        source = native.path(group.rule, native.c)
        self.library: Library = library(source, native.c_sha256, unit, real, rows[0].types)
        return self.library.kernel(self.kernel.number)

    def _table_of(self, number: int, code: Code | Half) -> int:
        return ctypes.addressof(table_of(code))

    def run(self, first: int, last: int, threads: int) -> None:
        """Sweeps first .. last - 1; beyond the last sweep, what ends the step too."""
        library = self.kernel.library
        if library is not None and first <= library[0] < last:
            self._run(first, library[0] + 1, threads)
            self.run_library()
            first = library[0] + 1
        self._run(first, last, threads)

    def _run(self, first: int, last: int, threads: int) -> None:
        if first < last:
            arguments = self.arguments
            arguments[4], arguments[5], arguments[6] = first, last, threads
            self.driver.run(self.call)
