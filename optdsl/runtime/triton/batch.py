"""Rows whose kernel is made of Triton functions: a copy of the table on the device, and the launches of a step.

Nothing here waits for the device. What changes from step to step (the addresses of gradients, the numbers of the
host) goes over in one small copy, and only if it has changed. Where steps are counted on the device (`capturable`,
`fused=True`), the numbers are computed there too, so that a CUDA graph can hold the step and an overflow that the
device has found can leave everything as it was.
"""

import ctypes
import functools
import hashlib
import importlib.util
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from optdsl.runtime.groups import GroupStep
from optdsl.runtime.native.batch import ARRAYS, SLOTS, Batch, numbers_of
from optdsl.runtime.native.build import BuildError
from optdsl.runtime.native.rows import CPU, Cohort, Row
from optdsl.runtime.native.spec import Native
from optdsl.runtime.states import fit
from optdsl.runtime.storage import Code, Half
from optdsl.runtime.triton import counting, numbers
from optdsl.runtime.triton.codes import table_of, type_of
from optdsl.runtime.triton.functions import INTERPRETED, quiet
from optdsl.runtime.triton.notes import Notes, Symbol, Unwritten

_TYPES = {"f32": tl.float32, "f64": tl.float64, "bf16": tl.bfloat16, "f16": tl.float16}
_HALVES = (tl.bfloat16, tl.float16)
#: Elements that one program takes, and lanes that fold partial results.
BLOCK = 1024
#: The lowest bytes of addresses at which a thread can load 16 bytes at a time.
_ALIGNED = bytes(range(0, 256, 16))


class _NoKernel(ctypes.Structure):
    """A kernel without sweeps, as in table.h: the driver checks and ends steps by it, and runs nothing."""

    _fields_ = (
        *(
            (name, ctypes.c_int)
            for name in ("sweeps", "arrays", "slots", "host_states", "width", "by_rows", "real")
        ),
        *((name, ctypes.c_void_p) for name in ("reads", "writes", "sweep", "scalars", "columns", "folds")),
    )


@functools.cache
def load(path: Path | None, sha256: str) -> ModuleType:
    """The module of a file of kernels whose bytes have this hash. Raises BuildError."""
    if path is None:
        raise BuildError("the class does not come from a file, beside which its kernels would lie")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror or error}; compile the spec again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BuildError(f"{path} was not made together with the class; compile the spec again")
    name = f"optdsl_kernels_{sha256[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where the JIT looks for the source
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise BuildError(f"{path} cannot be imported: {error}") from error
    return module


#: How kernels are compiled. A fused multiply-add would round once where the rule rounds twice, and functions of
#: NVIDIA's library would take the smallest numbers for 0.
OPTIONS = {"enable_fp_fusion": False}
if not INTERPRETED and not torch.version.hip:
    OPTIONS["enable_reflect_ftz"] = False


def launch(function: Any, programs: int, arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
    """Runs a Triton function once for each program."""
    with quiet():
        function[(programs,)](*arguments, **OPTIONS, **settings)


def in_type(real: torch.dtype) -> Any:
    """A type that is computed in as Triton has it."""
    return tl.float64 if real is torch.float64 else tl.float32


def shape_of_pass(types: Sequence[Any], widest: int | None, lanes: int) -> tuple[dict[str, int], int]:
    """Elements of a block and warps that share them, and how many of them a thread loads at a time.

    `types` are those of the arrays that are loaded. A thread loads 16 bytes of the widest of them, so that all are in
    registers in the same way. `widest` is the number of columns at most, for a kernel that goes by rows, whose
    elements begin anywhere; `lanes` are the threads of a warp.
    """
    if widest is not None:
        # no load is wide, so that many threads with few elements are best
        block = min(BLOCK // 2, max(64, 1 << (max(widest, 1) - 1).bit_length()))
        return {"BLOCK": block, "num_warps": max(1, block // (lanes * 2))}, 0
    items = 8 if all(type_.primitive_bitwidth == 16 for type_ in types) else 4
    return {"BLOCK": BLOCK, "num_warps": BLOCK // (lanes * items)}, items


def registers_of_pass(types: Sequence[Any], widest: int | None) -> dict[str, int]:
    """The registers that a thread may take, which NVIDIA's assembler is told: left to choose, it sometimes spills
    two or three in order to run more warps at a time.
    """
    if widest is not None:
        return {}
    few = len(types) <= 11 and tl.float32 in types and all(t in (tl.float32, *_HALVES) for t in types)
    return {"maxnreg": 64 if few else 128}


#: The same for what is computed per tensor between passes.
REGISTERS_BETWEEN = {"maxnreg": 128}


#: The cohort and column under which it is known which sign all gradients get.
_SIGN = 0, 0
#: A function, programs, arguments and settings.
_Launched = tuple[Any, int, tuple[Any, ...], Mapping[str, Any]]


class TritonBatch(Batch):
    """Rows whose kernel is made of Triton functions."""

    chunk = BLOCK

    def __init__(self, group: GroupStep, native: Native, number: int, rows: list[Row]) -> None:
        """Raises BuildError."""
        if native.kernels[number].by_rows:
            self.chunk = 4 * BLOCK
        super().__init__(group, native, number, rows)
        #: Inputs come with each step and may lie elsewhere then, and so do delayed states.
        self.takes_inputs = any(row.given or row.rings for row in rows)
        module = load(native.path(group.rule, native.triton), native.triton_sha256)
        functions = self.kernel.passes, self.kernel.between
        self.passes, self.between = (
            [getattr(module, n) if n else None for n in names] for names in functions
        )
        self.real = in_type(rows[0].real)
        self.types = {f"T{cell}": _TYPES[name] for cell, name in enumerate(rows[0].types)}
        self.types |= {f"T{cell}": type_of(code) for cell, code in self.codes.items()}
        self._shape()
        self._allocate()

    def _kernel(self, group: GroupStep, native: Native) -> int:
        nothing = ctypes.c_void_p()
        counts = (0, 2 + len(self.kernel.arrays), self.kernel.slots, len(self.kernel.host_states), 0, 0, 0)
        null = ctypes.addressof(nothing)
        #: Kept, as the driver reads it.
        self._nothing = nothing, _NoKernel(*counts, *[null] * 6)
        return ctypes.addressof(self._nothing[1])

    def _table_of(self, number: int, code: Code | Half) -> int:
        if isinstance(code, Code):
            return table_of(code).data_ptr()
        return code.site | (self.behind + 2 * number) << 12

    def _shape(self) -> None:
        """Block sizes and warps."""
        places = ["element", "element", *(place for _, place in self.kernel.arrays)]
        types = [
            type_ for type_, place in zip(self.types.values(), places, strict=True) if place == "element"
        ]
        widest = max(row.facts.cols for row in self.rows) if self.kernel.by_rows else None
        self.settings = {"REAL": self.real, "GUARD": False, "WIDTH": self.width}
        self.of_pass, self.items = shape_of_pass(types, widest, 64 if torch.version.hip else 32)
        if not INTERPRETED and not torch.version.hip:
            self.of_pass |= registers_of_pass(types, widest)
        self.of_between = {"BLOCK": BLOCK, "num_warps": 4}
        if not INTERPRETED and not torch.version.hip:
            self.of_between |= REGISTERS_BETWEEN
        #: What is launched is compiled with, once it is known.
        self.known_settings: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        #: What is launched when no step can be skipped, by sweeps and whether all addresses are multiples of 16.
        self.known_launches: dict[tuple[int, int, bool], list[_Launched]] = {}

    def _allocate(self) -> None:
        """What the device has of the table: rows, chunks, addresses of gradients, numbers."""
        count = len(self.rows)
        chunks = self.cells[:, 4].clone()
        starts = torch.cumsum(chunks, 0) - chunks
        row = torch.repeat_interleave(torch.arange(count, device=CPU), chunks)
        chunk = torch.arange(len(row), device=CPU) - starts[row]
        self.chunks = self._sent(torch.stack((row, chunk), 1).to(torch.int32))
        self.programs = len(row)
        # behind the numbers of the kernel the step, if something is rounded at random
        self.numbers_of_row = 1 + self.kernel.slots + bool(self.rounded)
        real = self.rows[0].real
        sets = count if self.counts_here else len(self.cohorts)
        size = sets * self.numbers_of_row * real.itemsize
        # addresses of gradients, then numbers, in one piece of memory so that one copy brings both
        self.changing = torch.zeros(8 * count + size, dtype=torch.uint8, device=self.device)
        self.gradients = self.changing[: 8 * count].view(torch.int64)
        self.slots = self.changing[8 * count :].view(real).view(sets, self.numbers_of_row)
        self.rows_here = torch.zeros(count, self.width, dtype=torch.int64, device=self.device)
        owners = torch.tensor(range(count) if self.counts_here else self.cohort_of, device=CPU)
        self.slots_at = self.slots.data_ptr() + owners * (self.numbers_of_row * real.itemsize)
        #: Addresses of parameters, and what changes as the device is to have it, in one piece of memory.
        self.moving = torch.zeros(8 * count + self.changing.numel(), dtype=torch.uint8, device=CPU)
        self.moving_at = self.moving.data_ptr()
        self.parameters_here = self.moving[: 8 * count].view(torch.int64)
        changing = self.gradients if self.counts_here else self.changing
        self.changing_here = self.moving[8 * count :][: 8 * count if self.counts_here else None].view(
            changing.dtype
        )
        self.changing_there = changing
        #: The numbers of the host, and where they go in the type that is computed in.
        kept = 1 + self.kernel.slots
        self.numbers_kept = self.numbers[:, :kept], self.numbers[:, -1]
        made = self.moving[16 * count :].view(real).view(sets, self.numbers_of_row)
        self.numbers_made = made[:, :kept], made[:, -1]
        #: What the device has: addresses of parameters and inputs, and what changes.
        self.sent = self.sent_changing = b""
        #: Pinned memory that captured graphs copy from, and some to be had while one is captured.
        self.captured: list[Tensor] = []
        self.spares: list[Tensor] = []
        self.states_aligned = all(row.aligned() for row in self.rows)
        if self.counts_here:
            self.counts = torch.zeros(count, dtype=torch.float64, device=self.device)
            self.columns = self.slots.unbind(1)
            self.program_of = self._sent(torch.tensor(self.cohort_of, device=CPU))
            words = numbers.HEAD + self.kernel.slots
            self.programs_here = torch.zeros(len(self.cohorts), words, dtype=torch.int64, device=self.device)
            self.of_numbers = {
                "REAL": self.real,
                "SLOTS": self.kernel.slots,
                "WORDS": words,
                "PITCH": self.numbers_of_row,
                "REGISTERS": numbers.REGISTERS,
                "ROWS": numbers.ROWS,
                "num_warps": 4,
            }
            #: The options that the programs are written for, and how many operations they have, None for no programs.
            self.programs_of: list[Any] = []
            self.operations: int | None = None
            #: The numbers in the columns, by cohort and column, where one and the same is there for all rows.
            self.put: dict[tuple[int, int], Any] = {}
            hosts = len(self.kernel.host_states)
            self.hosts = torch.zeros(hosts, count, dtype=torch.float64, device=self.device)
            self.members = [
                self._sent(torch.tensor([i for i, c in enumerate(self.cohort_of) if c == number], device=CPU))
                for number in range(len(self.cohorts))
            ]

    # ---- copies -------------------------------------------------------------------------------------------

    def _sent(self, data: Tensor) -> Tensor:
        """A copy on the device."""
        made = torch.empty_like(data, device=self.device)
        self._copy(made, data)
        return made

    def _copy(self, target: Tensor, data: Tensor) -> None:
        """Copies from the host without waiting: from pinned memory, which torch keeps until the copy is over."""
        if self.device.type == "cpu":
            target.copy_(data)
            return
        capturing = self._capturing()
        if not data.is_pinned():
            pinned = self._spare_for(data) if capturing else None
            if pinned is None:
                pinned = torch.empty(data.shape, dtype=data.dtype, device=CPU, pin_memory=True)
            data = pinned.copy_(data)
        target.copy_(data, non_blocking=True)
        if capturing:
            self.captured.append(data)  # the graph copies from there whenever it runs

    def _capturing(self) -> bool:
        return self.device.type != "cpu" and torch.cuda.is_current_stream_capturing()

    def _spare_for(self, data: Tensor) -> Tensor | None:
        """Pinned memory that was made beforehand: while a graph is captured, it may not be had."""
        for number, spare in enumerate(self.spares):
            if spare.shape == data.shape:
                return self.spares.pop(number)
        return None

    def _provide(self) -> None:
        """Makes pinned memory for the copies of one step that is captured, unless there is some."""
        for shape in ((len(self.rows), self.width), (len(self.rows),)):
            if not any(spare.shape == shape for spare in self.spares):
                self.spares.append(torch.empty(shape, dtype=torch.int64, device=CPU, pin_memory=True))

    def send(self) -> None:
        """Brings the device what has changed since the last step.

        A graph that is captured gets all of it, as other steps may come before it runs; and what it says has not
        happened yet, so that the next step brings all of it again. The graph goes on using this table, which is kept
        for as long as the optimizer is there.
        """
        if self._capturing():
            self.sent = self.sent_changing = b""
            kept = self.group.rule.__dict__.setdefault("_captured", [])
            if self not in kept:
                kept.append(self)
            try:
                self._send()
            finally:
                self.sent = self.sent_changing = b""
        else:
            self._send()

    def _send(self) -> None:
        half = 8 * len(self.rows)
        addresses = ctypes.string_at(self.moving_at, half)
        if self.takes_inputs:
            addresses += ctypes.string_at(self.address, 8 * len(self.table))
        moved = addresses != self.sent
        if moved:
            rows = self.cells.clone()
            rows[:, SLOTS] = self.slots_at
            rows[:, ARRAYS] = self.parameters_here
            for number in self.rounded:
                rows[:, self.behind + 2 * number] = (
                    self.slots_at + (1 + self.kernel.slots) * self.slots.itemsize
                )
            self._copy(self.rows_here, rows)
            self.sent = addresses
        if not self.counts_here:
            self.numbers_made[0].copy_(self.numbers_kept[0])
            if self.rounded:
                self.numbers_made[1].copy_(self.numbers_kept[1] + 1.0)
        changing = ctypes.string_at(self.moving_at + half, self.changing_here.nbytes)
        if moved or changing != self.sent_changing:
            self._copy(self.changing_there, self.changing_here)
            self.sent_changing = changing
            # the lowest bytes, those of multiples of 16 left out
            odd = (addresses[:half:8] + changing[:half:8]).translate(None, _ALIGNED)
            self.aligned = self.states_aligned and not odd
        if self.counts_here and self.group.capturable and self.device.type != "cpu" and not self._capturing():
            self._provide()

    def places(self, position: int) -> Iterator[int]:
        """Where the driver puts the addresses of a row: those of the parameter and its gradient, which may move, lie
        apart.
        """
        apart = self.moving_at + 8 * position
        yield apart
        yield apart + 8 * len(self.rows)
        yield from islice(super().places(position), 2, None)

    # ---- steps --------------------------------------------------------------------------------------------

    def prepare(self, group: GroupStep, options: Mapping[str, Any], native: Native, mode: int) -> bool:
        """Puts the numbers of this step in place, unless they are counted on the device; False if a cohort needs
        another kernel now.
        """
        self.skip = None if group.skip is None else group.skip.to(self.device)
        self.settings["GUARD"] = group.skip is not None
        self.group = group
        if not self.counts_here:
            return super().prepare(group, options, native, mode)
        for cohort in self.cohorts:
            state = dict.fromkeys(cohort.names, 0.0)
            asked = numbers_of(group, options, 1, cohort.facts, state)
            if asked is None:
                return False
            leaf = asked[0]
            if leaf != cohort.leaf and native.modes[leaf][mode] != self.number:
                return False
            cohort.leaf = leaf
        return True

    def known(self) -> bool:
        """Whether step counts and host states are those that `prepare` went by; it goes by none of the device."""
        return self.counts_here or super().known()

    def run(self, first: int, last: int, threads: int) -> None:
        """Sweeps first .. last - 1; beyond the last sweep, what ends the step too."""
        with self._on_device():
            if first == 0:
                self.send()
                if self.counts_here:
                    self._count()
            for function, programs, arguments, settings in self._launches(first, last):
                if function is None:
                    self.run_library()
                else:
                    launch(function, programs, arguments, settings)
        if last > self.kernel.sweeps:
            if self.counts_here:
                self._keep_hosts()
            else:
                self.arguments[4], self.arguments[5], self.arguments[6] = 0, 1, 1
                self.driver.run(self.call)

    def alike(self) -> Iterator[tuple[list[int], Any, Sequence[Any], Cohort]]:
        """Positions of rows for which the host has the same numbers; where the device counts, each is by itself."""
        if not self.counts_here:
            yield from super().alike()
            return
        for position, number in enumerate(self.cohort_of):
            hosts = [values[position] for values in self.hosts]
            yield [position], self.counts[position], hosts, self.cohorts[number]

    def options(self) -> Mapping[str, Any]:
        """The options as an update gets them."""
        return self.group.options_on(self.device) if self.counts_here else super().options()

    def _keep(self, held: Tensor, new: Tensor) -> None:
        """Leaves a state of the library as it is from now on, unless the step is skipped."""
        super()._keep(held, new if self.skip is None else torch.where(self.skip != 0, held, new))

    def _on_device(self) -> AbstractContextManager[Any]:
        if self.device.type == "cpu":
            return nullcontext()
        return torch.cuda.device(self.device)

    def _launches(self, first: int, last: int) -> list[_Launched]:
        """What `run` launches, in order: functions, how many programs of each, arguments and settings; a function
        that is None is what the kernel leaves to torch.
        """
        mark = first, last, self.aligned
        found = self.known_launches.get(mark) if self.skip is None else None
        if found is None:
            found = list(self._find_launches(first, last))
            if self.skip is None:
                self.known_launches[mark] = found
        return found

    def _find_launches(self, first: int, last: int) -> Iterator[_Launched]:
        sweeps, library = self.kernel.sweeps, self.kernel.library
        for k in range(first, min(last, sweeps)):
            yield from self._between(k, fold=k > first, compute=True)
            if self.programs and self.passes[k] is not None:
                arguments = (self.rows_here, self.chunks, self.gradients, self.skip)
                yield self.passes[k], self.programs, arguments, self._pass_settings(k, self.aligned)
            if library is not None and library[0] == k:
                yield None, 0, (), {}
        yield from self._between(min(last, sweeps), fold=last > first, compute=last > sweeps)

    def _pass_settings(self, k: int, aligned: bool) -> Mapping[str, Any]:
        """What a pass is compiled with."""
        known = self.known_settings.get((k, aligned, self.skip is None))
        if known is None:
            function: Any = self.passes[k]
            names = function.arg_names
            known = {**self.settings, **self.of_pass, "ITEMS": self.items if aligned else 0}
            known.update((name, type_) for name, type_ in self.types.items() if name in names)
            self.known_settings[k, aligned, self.skip is None] = known
        return known

    def _between(self, k: int, fold: bool, compute: bool) -> Iterator[_Launched]:
        function = self.between[k]
        if function is None or not (fold or compute):
            return
        mark = "between", fold, compute, self.skip is None
        settings = self.known_settings.get(mark)
        if settings is None:
            settings = {**self.settings, **self.of_between, "FOLD": fold, "COMPUTE": compute}
            self.known_settings[mark] = settings
        yield function, len(self.rows), (self.rows_here, self.skip), settings

    # ---- steps counted on the device ----------------------------------------------------------------------

    def _count(self) -> None:
        """Counts the step, and computes its numbers."""
        hosts = len(self.kernel.host_states)
        arguments = (self.rows_here, self.counts, self.hosts, self.skip, len(self.rows))
        launch(counting.count, len(self.rows), arguments, self._counting_settings())
        if self.captured:  # a graph may have run in between, which put there what it was captured with
            self.put.clear()
        sign: float | Tensor = -1.0 if self.group.maximize else 1.0
        if self.group.scale is not None:
            sign = sign / self.group.scale.to(self.device, torch.float64)
        self._put(*_SIGN, sign, None)
        if self.rounded:
            self.columns[-1].copy_(self.counts)
        self.new_hosts = self.hosts.clone() if hosts else self.hosts
        if not self._computed():
            self._compute()

    def _computed(self) -> bool:
        """Has one program compute the numbers, and says whether there is one.

        None knows tensors among the options, or host-level states; and a graph shall go on with the numbers that it
        was captured with.
        """
        group = self.group
        if group.tensor_options or self.kernel.host_states or self.captured:
            return False
        values = [group.group[hyper.name] for hyper in group.rule._hypers]
        known = self.programs_of
        if len(known) != len(values) or not all(map(operator.is_, known, values)):
            self.operations = self._write_programs()
            self.programs_of = values
        if self.operations is None:
            return False
        self.put = {place: value for place, value in self.put.items() if place == _SIGN}
        rows = len(self.rows)
        arguments = (self.programs_here, self.program_of, self.counts, self.slots, rows, self.operations)
        launch(numbers.compute, -(-rows // numbers.ROWS), arguments, self.of_numbers)
        return True

    def _write_programs(self) -> int | None:
        """Sends the programs of all cohorts; how many operations the longest has, None if there are none."""
        data, longest = bytearray(), 0
        try:
            for cohort in self.cohorts:
                notes = Notes()
                _, slots, _ = self.group.rule._kernel(self.group.group, Symbol(notes, 0), cohort.facts, {})
                words, count = numbers.written(notes, slots)
                data += words
                longest = max(longest, count)
        except Unwritten:
            return None
        self._copy(self.programs_here, torch.frombuffer(data, dtype=torch.int64).view_as(self.programs_here))
        return longest

    def _compute(self) -> None:
        """Computes the numbers by torch."""
        hosts = len(self.kernel.host_states)
        options = self.group.options_on(self.device)
        alone = len(self.cohorts) == 1
        for number, (cohort, rows) in enumerate(zip(self.cohorts, self.members, strict=True)):
            members = None if alone else rows
            t = self.counts if alone else self.counts[rows]
            old: dict[str, Any] = {}
            if hosts:
                for name, values in zip(cohort.names, self.hosts, strict=True):
                    old[name] = values if alone else values[rows]
            _, slots, new = self.group.rule._kernel(options, t, cohort.facts, old)
            for column, value in enumerate(slots, 1):
                self._put(number, column, value, members)
            for row, value in enumerate(new):
                _put(self.new_hosts[row], members, value)

    def _put(self, cohort: int, column: int, value: Any, members: Tensor | None) -> None:
        """Writes a number to a column, for the rows of a cohort, unless it is there."""
        if isinstance(value, Tensor):
            self.put.pop((cohort, column), None)
        elif value and self.put.get((cohort, column)) == value:  # two zeros may differ in their signs
            return
        else:
            self.put[cohort, column] = value
        _put(self.columns[column], members, value)

    def _counting_settings(self) -> Mapping[str, Any]:
        """What `count` and `keep` are compiled with."""
        mark = "counting", self.skip is None
        settings = self.known_settings.get(mark)
        if settings is None:
            first, hosts = ARRAYS + 2 + len(self.kernel.arrays), len(self.kernel.host_states)
            known = {name: value for name, value in self.settings.items() if name != "REAL"}
            settings = self.known_settings[mark] = {**known, "FIRST": first, "HOSTS": hosts}
        return settings

    def _keep_hosts(self) -> None:
        """Leaves the host-level states as they are from now on."""
        if self.kernel.host_states:
            arguments = (self.rows_here, self.new_hosts, self.skip, len(self.rows))
            with self._on_device():
                launch(counting.keep, len(self.rows), arguments, self._counting_settings())

    def finish(self, group: GroupStep) -> None:
        """What is left to do behind the last sweep: group-level states, and the next step count."""
        if not self.counts_here:
            super().finish(group)
            return
        kernel = self.kernel
        if kernel.written_groups:
            t, position = self.counts.max(0)
            for key in kernel.written_groups:
                number = kernel.groups.index(key)
                # an index that is a tensor of no dimension would be waited for
                column = self.values[:, kernel.values + number]
                value = column.index_select(0, position.reshape(1)).reshape(())
                if self.skip is not None:
                    value = torch.where(self.skip != 0, self.shared[len(kernel.joints) + number], value)
                group.candidates.append((self.rows[0].index, key, t, value))


def _put(target: Tensor, members: Tensor | None, value: Any) -> None:
    """Writes a number, or one for each, to some entries."""
    if isinstance(value, Tensor):
        if members is None:
            target.copy_(value)
        else:
            target[members] = value.to(target.dtype)
    elif members is None:
        target.fill_(fit(value, target))
    else:
        target.index_fill_(0, members, fit(value, target))


#: What launches a function; benchmarks and tests may put something else in its place.
Launch = Callable[[Any, int, tuple[Any, ...], Mapping[str, Any]], None]
__all__ = ["BLOCK", "Launch", "TritonBatch", "in_type", "launch", "load"]
