"""A step by native kernels: tables of the tensors of each group, filled and run.

A table is made when something is not as it was in the last step: a parameter, a state, an option that changes the
kernel, a step count. In an ordinary step only its addresses are filled in again, by one call that also checks that
every tensor is still what the table says, and the kernel runs by one call more.
"""

import ctypes
import functools
import importlib
import operator
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.checks import with_plain_options
from optdsl.runtime.groups import GroupStep
from optdsl.runtime.native.batch import Batch, Cells, CpuBatch
from optdsl.runtime.native.build import BuildError, driver
from optdsl.runtime.native.joint import stages
from optdsl.runtime.native.rows import (
    CPU,
    GPUS,
    OTHERS,
    TYPES,
    ParamState,
    Row,
    dense,
    eligible,
    form_of,
    in_memory,
    laid_out,
    placed,
    type_of,
    usable,
)
from optdsl.runtime.native.spec import Kernel, Native
from optdsl.runtime.states import (
    Facts,
    State,
    as_real,
    create_coded,
    create_state,
    facts_about,
    kept,
    opened,
    state_dtype,
    turn,
)
from optdsl.runtime.storage import AT_RANDOM, LOW, SCALES, Code, Half, Split, code


@functools.cache
def triton_batch() -> type[Batch]:
    """What runs kernels of Triton. Raises BuildError."""
    try:
        module = importlib.import_module("optdsl.runtime.triton.batch")
    except ImportError as error:
        raise BuildError(f"Triton cannot be imported ({error}); `pip install triton` installs it") from None
    except AttributeError as error:  # one that is too old lacks functions
        raise BuildError(
            f"this Triton cannot be used ({error}); `pip install -U triton` updates it"
        ) from None
    batch: type[Batch] = module.TritonBatch
    return batch


def interpreted() -> bool:
    """Whether Triton's interpreter is asked for: kernels of Triton then run on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _export() -> int:
    """The address of the function by which torch describes a tensor to C. Raises BuildError."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        raise BuildError("native kernels need torch 2.10 or later, which has DLPack's C exchange interface")
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # version, older interface, allocator, managed_from, managed_to, dltensor_from
    return int((ctypes.c_int64 * 6).from_address(pointer(capsule, b"dlpack_exchange_api"))[5])


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
            kept_so = (*row.types, *row.codes)
            mark = (native.modes[row.leaf][mode], mode, row.p.device, row.aligned(), row.real, *kept_so)
            batches.setdefault(mark, []).append(row)
        self.signature = signature(group)
        self.batches: list[Batch] = []
        for mark, members in batches.items():
            self.batches.append(batch_class(native, mark[2])(group, native, mark[0], members))
            self.mode_of.append(mark[1])
        self.staged = [row for row in rows if row.staged]
        #: For each input that needs no stand-in: its row and key, its cell in the table, what its tensor is like.
        self.takers = [row for row in rows if row.given]
        self.given: list[tuple[Row, str, ctypes.c_int64, Any]] = []
        self.absent = [(row, key) for row in rows for key in row.absent]
        #: For each delayed state its batch and position there, its key, and its cell in the table.
        self.turning: list[tuple[Batch, int, str, ctypes.c_int64]] = []
        self._entries(group, export)

    def _entries(self, group: GroupStep, export: int) -> None:
        params = group.group["params"]
        where = {id(row): (b, i) for b, batch in enumerate(self.batches) for i, row in enumerate(batch.rows)}
        of = {id(row.p): row for row in self.rows}
        flat: list[int] = []
        counts: list[int] = []
        self._layouts: list[Cells] = []
        for number, p in enumerate(params):
            row = None if number in self.skipped else of.get(id(p))
            if row is None:
                counts.append(-1 if number in self.skipped else 0)
                continue
            b, i = where[id(row)]
            batch = self.batches[b]
            sizes, strides = row.layout()
            self._layouts.append((ctypes.c_int64 * (1 + 2 * len(sizes)))(len(sizes), *sizes, *strides))
            layout = ctypes.addressof(self._layouts[-1])
            places = list(batch.places(i))
            elements = {0, 1} | {
                2 + k for k, (_, kind) in enumerate(placed(batch.kernel)) if kind == "element"
            }
            held = [key for key, _ in placed(batch.kernel)]
            count = 0
            for k, (place, tensor) in enumerate(zip(places, row.tensors, strict=True)):
                if 0 <= k - 2 < len(held) and held[k - 2] in row.rings:
                    self.turning.append((batch, i, held[k - 2], ctypes.c_int64.from_address(place)))
                    continue
                if 0 <= k - 2 < len(held) and held[k - 2] in row.given:
                    assert tensor is not None
                    self._give(row, held[k - 2], place, tensor)
                    continue
                count += 1
                shape = row.p if tensor is None else tensor
                type_ = row.types[1] if tensor is None else type_of(tensor)
                number = OTHERS.get(type_) or next(n for name, n in TYPES.values() if name == type_)
                owner = 0 if tensor is None else id(tensor)
                # torch tells C that pinned memory is the CPU's, and Python that it is the GPU's
                kind, index = (1, 0) if shape.device.type == "cpu" else shape.__dlpack_device__()
                device = int(kind) | int(index) << 32
                flat += [
                    owner,
                    place,
                    shape.numel(),
                    number,
                    device,
                    layout if k in elements and type_ not in OTHERS else 0,
                ]
            counts.append(count)
        self._flat = (ctypes.c_int64 * max(len(flat), 1))(*flat)
        self._known = (ctypes.c_int64 * max(len(params), 1))(*map(id, params))
        self._counts = (ctypes.c_int64 * max(len(params), 1))(*counts)
        self._keep = list(params)
        addresses = [ctypes.addressof(x) for x in (self._flat, self._known, self._counts)]
        self._arguments = (ctypes.c_int64 * 5)(export, *addresses, len(params))
        self._call = ctypes.addressof(self._arguments)

    def _give(self, row: Row, key: str, place: int, tensor: Tensor) -> None:
        """Notes where the address of an input goes; one with a stand-in keeps the address of that."""
        cell = ctypes.c_int64.from_address(place)
        cell.value = tensor.data_ptr()
        if tensor is row.given[key]:
            self.given.append((row, key, cell, form_of(tensor)))

    def gather(self, group: GroupStep) -> bool:
        """Fills the addresses; False if a parameter, gradient or state is not what the table is made for."""
        if not self.batches or self.signature != signature(group):
            return False
        for row in self.takers:
            for key in row.given:
                found = group.given(key, row.p)
                if found is None:
                    return False
                row.given[key] = found
        if any(group.given(key, row.p) is not None for row, key in self.absent):
            return False
        for row, key, cell, form in self.given:
            found = row.given[key]
            if form_of(found) != form:
                return False
            cell.value = found.data_ptr()
        for row in self.staged:
            if any(form_of(row.original(key)) != form for _, key, form in row.staged):
                return False
        for batch, position, key, cell in self.turning:
            row = batch.rows[position]
            ring = row.rings[key]
            if row.state.get(key) is not ring:
                return False
            spec = kept(group.rule._specs[key], group.group, row.p)
            cell.value = turn(spec, ring, batch.cohorts[batch.cohort_of[position]].t - 1).data_ptr()
        params = group.group["params"]
        listed = params if type(params) is list else list(params)
        return not self.batches[0].driver.gather(listed, "grad", "is_neg", None, self._call)

    def idle(self, group: GroupStep, takes: Callable[[Tensor], bool]) -> bool:
        """Whether there is still nothing for kernels to do, where there was nothing; `takes` tells of a parameter
        with a gradient whether they take it.
        """
        params = group.group["params"]
        if self.signature != signature(group) or len(params) != len(self._keep):
            return False
        given = {number for number, p in enumerate(params) if p.grad is not None}
        return (
            given == self.skipped
            and all(map(operator.is_, params, self._keep))
            and not any(takes(params[number]) for number in given)
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
                if key != "g" and key not in row.given:
                    target = row.original(key).detach()
                    target.copy_(torch.view_as_complex(stand_in) if target.is_complex() else stand_in)


#: Reductions of a chunk, and arrays, at most of a kernel with arrays in codes; as in codes.h.
WIDEST, MOST_ARRAYS = 64, 14


class Absent(BuildError):
    """A class has no kernels for a device, as nobody asked for them."""


def batch_class(native: Native, device: torch.device) -> type[Batch]:
    """What runs the kernels of a class on a device. Raises BuildError with the reason where nothing does."""
    if device.type in GPUS or (device.type == "cpu" and native.triton and interpreted()):
        if not native.triton:
            raise Absent("it was compiled without the backend `triton`, which has the kernels for GPUs")
        return triton_batch()
    if device.type == "cpu":
        if not native.c:
            raise Absent("it was compiled without the backend `cpu`, which has the kernels for the CPU")
        return CpuBatch
    raise Absent(f"there are no kernels for the device `{device.type}`")


def counts_on_device(native: Native, device: torch.device) -> bool:
    """Whether kernels for a device can count steps there, and what fills their tables can be had."""
    try:
        _export()
        driver()
        return batch_class(native, device) is not CpuBatch
    except BuildError:
        return False


def _mode(group: GroupStep, row: Row) -> int:
    """Which variant of a kernel with several sweeps a parameter takes: see `Native.modes`."""
    exact = "f64" if row.real is torch.float64 else "f32"
    if any(type_ != exact for n, type_ in enumerate(row.types) if n != 1) or any(row.codes):
        return 1
    overwrite = group.group.get("overwrite_grad", False) and row.types[1] == exact
    return 2 if overwrite and row.tensors[1] is None else 0


class Launcher:
    """The native part of the steps of one optimizer; holds nothing but what can be made again.

    It does not hold the optimizer, which is then freed as soon as nobody has it; `rule` is its class.
    """

    def __init__(self, rule: Any, native: Native) -> None:
        self.rule = rule
        self.native = native
        self.export = 0
        #: Why there are no kernels, and why there are none on a kind of device that could have some.
        self.failure = ""
        self.lacking: dict[str, str] = {}
        self.tables: dict[int, Table] = {}
        self._known: Any = None
        self._known_address = 0
        self._known_refs: list[Any] = []
        self._count = 0
        #: Batches with joint reductions, each with its group's number, and the order in which they run and meet.
        self._stages: tuple[list[tuple[int, Batch]], list[Any]] | None = None
        #: Batches that this step has prepared, whether they run or not.
        self._prepared: list[Batch] = []

    def step(
        self, groups: Sequence[GroupStep], firsts: Sequence[int], states: MutableMapping[Tensor, ParamState]
    ) -> list[set[int] | None] | None:
        """Takes the step of all parameters that native kernels take.

        Returns for each group the positions in it of the parameters that are left, None for all; or None, with
        `failure` set and no parameter changed, where there are no kernels.
        """
        try:
            return self._step(groups, firsts, states)
        finally:
            while self._prepared:
                vars(self._prepared.pop()).pop("group", None)  # which holds the optimizer

    def _step(
        self, groups: Sequence[GroupStep], firsts: Sequence[int], states: MutableMapping[Tensor, ParamState]
    ) -> list[set[int] | None] | None:
        """The same; batches that were prepared have their groups from then on."""
        try:
            tables = self.current(groups, firsts, states)
        except BuildError as error:
            self.failure = str(error)
            return None
        active = [(group, table) for group, table in zip(groups, tables, strict=True) if table and table.rows]
        if any(group.skip is not None or group.scale is not None for group in groups):
            _check_scaling(self.rule, tables, active)
        if self.rule._joint and any(table is None or table.skipped for table in tables):
            self._stages = None
            return [None] * len(groups)
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
        made, had = False, None
        for group, first in zip(groups, firsts, strict=True):
            if not group.native:
                tables.append(None)
                continue
            table = self.tables.get(group.number)
            if table is None or table.first != first:
                fits = False
            elif not table.batches:
                fits = table.idle(group, functools.partial(self._takes, group))
            else:
                fits = same and table.gather(group) and self._prepare(table, group)
            if table is None or not fits:
                had = set(states) if had is None else had
                try:
                    # what is made here is written to in later steps, in whatever mode they run
                    with torch.inference_mode(False), torch.no_grad():
                        table = self._make(group, first, states)
                except RuntimeError:  # the step is not taken, so states that began with it are none
                    for p in [p for p in states if p not in had]:
                        del states[p]
                    self.tables.clear()
                    raise
                self.tables[group.number] = table
                made = True
                if table.batches and not (table.gather(group) and self._prepare(table, group)):
                    raise AssertionError("a table that was just made does not fit its tensors")
            tables.append(table)
        if made and not (self._known is not None and self._same(states)):
            self._remember(states)
        return tables

    def _prepare(self, table: Table, group: GroupStep) -> bool:
        if table.staged:
            table.stage_in()
        known: dict[bool, Mapping[str, Any]] = {}
        for batch, mode in zip(table.batches, table.mode_of, strict=True):
            options = known.get(batch.counts_here)
            if options is None:
                options = known[batch.counts_here] = _options(group, batch.counts_here)
            self._prepared.append(batch)
            if not batch.prepare(group, options, self.native, mode) or not batch.known():
                return False
            if batch.kernel.groups:
                self._read_groups(batch, group)
        return True

    def _read_groups(self, batch: Batch, group: GroupStep) -> None:
        """Gives the kernel the group-level states and inputs."""
        row = batch.rows[0]
        for number, key in enumerate(batch.kernel.groups):
            spec = group.rule._specs[key]
            p = g = torch.empty((), dtype=row.real, device=row.p.device)
            if not spec.given and not isinstance(
                group.group.get(key), Tensor
            ):  # it begins, maybe as what they say
                p, g = self._opened(row, group)
            held = group.read(spec, p, g, row.p.shape)
            batch.shared[len(batch.kernel.joints) + number] = held

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
                        f"{name}: `fused=True` requires all the params to be floating point Tensors, dense ones of "
                        "float32, float64, bfloat16 or float16 on the CPU or a GPU of CUDA or ROCm, and so are their "
                        f"gradients; parameter {first + number} is a {kind} of {p.dtype} on {p.device}"
                    )
                skipped.add(number)
                continue
            counts_here = self._counts_here(group, p)
            if counts_here is None:
                skipped.add(number)
                continue
            state = states.get(p)
            counter = p.device if counts_here else CPU
            if not state:
                state = {"step": torch.zeros((), dtype=torch.float32, device=counter)}
            facts = facts_about(p)
            options = _options(group, counts_here)
            keys = live.get(facts)
            if keys is None:
                keys = live[facts] = tuple(group.rule._live(options, facts))
            given = [key for key in keys if group.rule._specs[key].given]
            keys = tuple(key for key in keys if key not in given)
            specs = [
                kept(group.rule._specs[key], group.group, p)
                for key in keys
                if group.rule._specs[key].level != "group"
            ]
            # the loop takes what is odd, or says what is wrong with it; so for a parameter that is named twice
            if id(p) in seen or not usable(state, specs, p, counts_here):
                skipped.add(number)
                continue
            seen.add(id(p))
            for key in ("step", *(spec.key for spec in specs if spec.level == "host")):
                if key in state and state[key].device != counter:  # a flag was set after the state was made
                    state[key] = state[key].to(counter)
            row = Row(first + number, p, state, counts_here)
            if (reason := self._unfit(group, p, specs)) is not None:
                if group.group["fused"]:
                    raise RuntimeError(_no_kernel(group, first + number, p, reason))
                skipped.add(number)
                continue
            new = not states.get(p) or any(key not in state for key in keys)
            row.given = {key: x for key in given if (x := group.given(key, p)) is not None}
            if not self._complete(row, group, keys, options):
                if group.group["fused"]:
                    reason = self.native.lacking or "what it leaves to torch is not for complex numbers"
                    raise RuntimeError(_no_kernel(group, first + number, p, reason))
                skipped.add(number)
                continue
            if new:
                fresh.append((p, state))
            rows.append(row)
        if rows and not self.export:
            self.export = _export()
        if group.rule._joint and skipped:
            return Table(group, self.native, [], skipped, first, self.export)
        table = Table(group, self.native, rows, skipped, first, self.export)
        for p, state in fresh:
            states[p] = state
        return table

    def _takes(self, group: GroupStep, p: Tensor) -> bool:
        """Whether kernels take a parameter that has a gradient."""
        assert p.grad is not None
        return eligible(p, p.grad) and self._counts_here(group, p) is not None

    def _counts_here(self, group: GroupStep, p: Tensor) -> bool | None:
        """Whether the device of a parameter counts its steps, as its kernels want it; None if it has no kernels."""
        device = p.device
        try:
            batch = batch_class(self.native, device)
        except Absent as reason:
            if group.group["fused"]:
                raise RuntimeError(f"{type(group.rule).__name__} has no fused kernel: {reason}") from None
            return None
        except BuildError as reason:
            if device.type == "cpu":
                raise
            self.lacking[device.type] = str(reason)
            group.kernels_missing = True
            return None
        if batch is CpuBatch:
            return None if group.capturable and not group.group["fused"] else False
        wanted = group.capturable or bool(group.group["fused"])
        return wanted and group.rule._not_capturable is None

    def _unfit(self, group: GroupStep, p: Tensor, specs: Sequence[State]) -> str | None:
        """Why no kernel takes a parameter and its states as they are kept, None if nothing stands in the way."""
        packed = any(spec.in_codes or spec.at_random for spec in specs) or group.form_of(p) is not None
        if packed and not self._takes_codes():
            return "its kernels take no numbers in codes, rounded at random or with something beside them"
        if any(spec.delay is not None for spec in specs) and (p.is_complex() or not p.is_contiguous()):
            return "with a delayed state, kernels take real parameters that are contiguous"
        return None

    def _takes_codes(self) -> bool:
        """Whether the kernels can have arrays in codes: they go by elements, from block to block."""
        return not any(
            kernel.by_rows or kernel.width > WIDEST or len(kernel.arrays) > MOST_ARRAYS
            for kernel in self.native.kernels
        )

    def _complete(
        self, row: Row, group: GroupStep, keys: tuple[str, ...], options: Mapping[str, Any]
    ) -> bool:
        """Makes missing states, and finds the plan and the tensors of a row. False if the plan has no kernel."""
        rule, p, state = group.rule, row.p, row.state
        made: ParamState = {}
        hosts: dict[str, float] = {}
        for key in keys:
            spec = kept(rule._specs[key], group.group, p)
            if spec.level == "group":
                if not isinstance(
                    group.group.get(key), Tensor
                ):  # it begins now, though a kernel may not read it yet
                    group.read(spec, *self._opened(row, group), p.shape)
                continue
            held = state.get(key)
            if held is None:
                given = group.options_on(p.device) if row.counts_here else options
                value = rule._initial(key, *self._opened(row, group), given, row.facts)
                if spec.in_codes:
                    whole = create_coded(spec, p, value)
                    made[key], made[key + SCALES] = whole.codes, whole.scales
                    continue
                like = torch.empty((), device=state["step"].device) if spec.level == "host" else p
                held = made[key] = create_state(spec, like, value)
            if spec.level == "host":
                hosts[key] = 0.0 if row.counts_here else held.item()
        row.leaf, _, _ = rule._kernel(options, row.t, row.facts, hosts)
        # all kernels of one plan have the same states
        number = self.native.modes[row.leaf][0]
        if number < 0:
            return False
        kernel = self.native.kernels[number]
        if kernel.library is not None and p.is_complex():
            return False
        row.hosts = tuple(hosts[key] for key in kernel.host_states)
        state.update(made)
        self._arrange(row, kernel, group)
        return True

    def _arrange(self, row: Row, kernel: Kernel, group: GroupStep) -> None:
        """The tensors of a row, with stand-ins for those that a kernel cannot take as they are."""
        p, state = row.p, row.state
        grad = p.grad
        assert grad is not None
        forms = self._forms(group, p, kernel)
        split = group.held_p(p, state)
        if isinstance(split, Split):
            if split.low.data_ptr() % 16:  # kernels count on that
                split = replace(split, low=split.low.clone())
            state[LOW] = split.low
        anyhow = self.rule._elementwise and not self.rule._random and not forms and not kernel.works
        direct = not p.is_complex() and (p.is_contiguous() or (anyhow and dense(p)))
        strides = p.stride() if direct else None

        def arranged(
            tensor: Tensor, key: str, like: bool, dtype: torch.dtype | None, device: torch.device = p.device
        ) -> Tensor | None:
            wanted = tensor.dtype if dtype is None else dtype
            fits = (
                not tensor.is_complex()
                and tensor.dtype is wanted
                and tensor.device == device
                and in_memory(tensor)
            )
            if fits and (laid_out(tensor, strides) if like else tensor.is_contiguous()):
                return tensor
            real = as_real(tensor.detach().resolve_conj().resolve_neg()) if tensor.is_complex() else tensor
            kind = real.dtype if dtype is None else dtype
            if like and strides is not None:
                stand_in = torch.empty_strided(real.shape, strides, dtype=kind, device=device)
            else:
                stand_in = torch.empty(real.shape, dtype=kind, device=device)
            row.staged.append((stand_in, key, form_of(tensor)))
            return stand_in

        first = arranged(p, "p", True, None)
        gradient = arranged(grad, "g", True, None)
        row.tensors = [first, None if gradient is grad else gradient]
        row.types = [type_of(x) for x in (first, gradient) if x is not None]
        exact = "f64" if row.real is torch.float64 else "f32"
        if "p" in forms:
            row.types[0] = exact
        row.given = {key: x for key, x in row.given.items() if key in dict(placed(kernel))}
        works = dict(kernel.works)
        for key, place in placed(kernel):
            if key in works:
                row.tensors.append(row.work(key, works[key]))
                row.types.append(exact)
                continue
            spec = self.rule._specs[key]
            held = row.original(key) if key in row.given or not spec.given else p
            if isinstance(forms.get(key), Code):
                row.tensors.append(held)
                row.types.append(exact)
                continue
            if spec.given and key not in row.given:
                row.absent.append(key)
                row.tensors.append(first)
                row.types.append(row.types[0])
                continue
            if spec.delay is not None:
                row.rings[key] = held
                tensor: Tensor | None = turn(kept(spec, group.group, p), held, 0)
            elif place == "element" and spec.level == "element":
                tensor = arranged(held, key, True, None)
            else:
                tensor = arranged(held, key, False, row.real)
            assert tensor is not None
            row.tensors.append(tensor)
            # one that is kept per row or column is in the type that is computed in
            row.types.append(exact if key in forms else type_of(tensor))
        # group-level states have a cell, which is not used
        types = iter(row.types[2:])
        row.types[2:] = [next(types) if place else exact for _, place in kernel.arrays]
        counter = state["step"].device
        row.tensors.append(arranged(state["step"], "step", False, torch.float32, counter))
        for key in kernel.host_states:
            dtype = state_dtype(self.rule._specs[key], p)
            row.tensors.append(arranged(state[key], key, False, dtype, counter))
        row.codes = [forms.get(key) for key in ("p", "g", *(key for key, _ in kernel.arrays))]
        if isinstance(split, Split):
            row.tensors.append(arranged(split.low, LOW, False, split.low.dtype))
        row.tensors += [state[key + SCALES] for key, form in forms.items() if isinstance(form, Code)]

    @staticmethod
    def _forms(group: GroupStep, p: Tensor, kernel: Kernel) -> dict[str, Code | Half]:
        """How the parameter ("p") and states are kept that are not kept as numbers, in the order of the arrays."""
        sites = group.rule._sites
        found: dict[str, Code | Half] = {}
        if (form := group.form_of(p)) is not None:
            found["p"] = Half(form, sites["p"] if form == AT_RANDOM else 0)
        works = dict(kernel.works)
        for key, _ in placed(kernel):
            if key in works:
                continue
            spec = kept(group.rule._specs[key], group.group, p)
            if spec.in_codes:
                found[key] = code(str(spec.stored), spec.positive, p.device)
            elif spec.at_random:
                found[key] = Half(AT_RANDOM, sites[key])
        return found

    # ---- joint reductions -------------------------------------------------------------------------------

    def _run_jointly(self, batches: Sequence[tuple[GroupStep, Batch]], threads: int) -> None:
        """Runs all batches from one joint barrier to the next."""
        order = [(group.number, batch) for group, batch in batches]
        if self._stages is None or self._stages[0] != order:
            self._stages = order, list(stages(order))
        for stretches, meetings in self._stages[1]:
            for batch, start, stop in stretches:
                batch.run(start, stop, threads)
            for meeting in meetings:
                meeting.hold()


def _check_scaling(
    rule: Any, tables: Sequence[Table | None], active: Sequence[tuple[GroupStep, Table]]
) -> None:
    """Raises RuntimeError, before anything is changed, unless all can be skipped by what a device finds."""
    batches = [batch for _, table in active for batch in table.batches]
    if any(table is None or table.skipped for table in tables) or not all(b.counts_here for b in batches):
        raise RuntimeError(
            f"{rule.__name__}: a parameter or a state is not such as the kernels take, and only they take the "
            "scaling of gradients back; use `fused=False`, with which the scaler does it"
        )


def _no_kernel(group: GroupStep, number: int, p: Tensor, reason: str) -> str:
    """What `fused=True` says of a parameter that no kernel takes."""
    return (
        f"{type(group.rule).__name__} has no fused kernel for parameter {number}, of shape {tuple(p.shape)}, with "
        f"these options: {reason}"
    )


def signature(group: GroupStep) -> tuple[Any, ...]:
    """Options that a table depends on, apart from those that `_kernel` reads."""
    options = group.group
    return options.get("overwrite_grad"), options.get("seed"), options["fused"], options.get("store")


def _options(group: GroupStep, counts_here: bool) -> Mapping[str, Any]:
    """The options as plain numbers.

    Where steps are counted on a device, which nothing waits for, any number stands for a tensor: no branch depends on
    it.
    """
    names = group.tensor_options
    if not names:
        return group.group
    if not counts_here:
        return with_plain_options(group.group, names, False, False, CPU)

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        return 0.5 if isinstance(value, Tensor) else value

    return {**group.group, **{name: plain(group.group[name]) for name in names}}
