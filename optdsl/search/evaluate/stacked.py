"""A program as a step of K models at once, whose parameters are the rows of one [K, P] array.

`Stacked` is the program made ready for tensors of given shapes; `Run` takes steps with it. Which hyperparameters are
to differ between the models is said when it is made: all others are settled, and branches on them cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optdsl.core.record import record
from optdsl.core.types import AXES, Kind, Level, element
from optdsl.ir.expr import Const, Literal
from optdsl.ir.program import Program, State
from optdsl.search.evaluate.code import Function
from optdsl.search.evaluate.host import Tables, columns_of
from optdsl.search.evaluate.printer import (
    Printer,
    Unsupported,
    looks_at_shapes,
    shape_of,
    states_needed,
)
from optdsl.search.tasks.layout import Layout


@record
class _Block:
    """Consecutive parameters that one function takes at a time: all of them, or those of one tensor.

    `lines` are (P, S) in the flat form, else rows and columns; `sizes` the elements of its tensors; `facts` what host
    values may read.
    """

    place: slice
    lines: tuple[int, int]
    sizes: tuple[int, ...]
    facts: Mapping[str, int]
    begin: Function | None
    step: Function
    view: Function | None


class Stacked:
    """A program for models of one layout.

    `varied` names the hyperparameters that may differ between models, `values` gives others another value than their
    default. Raises Unsupported for what no stacked model can do, and ValueError for a name that is none of a
    hyperparameter.
    """

    def __init__(
        self,
        program: Program,
        layout: Layout,
        varied: Collection[str] = (),
        values: Mapping[str, Literal] | None = None,
    ) -> None:
        self.program, self.layout = program, layout
        if unknown := {*varied, *(values or {})} - {h.name for h in program.hypers}:
            raise ValueError(f"`{min(unknown)}` is no hyperparameter of {program.name}")
        for hyper in program.hypers:
            if hyper.name in varied and hyper.kind is not Kind.FLOAT:
                raise Unsupported(f"`{hyper.name}` is no number that could differ between models")
        if any(hyper.kind is Kind.LIST for hyper in program.hypers):
            raise Unsupported("a hyperparameter is a list")
        if program.inputs:
            raise Unsupported("a step is given more than a gradient")
        if any(state.type.shape == AXES for state in program.states):
            raise Unsupported("it has a matrix for each axis")
        if any(state.stored for state in program.kept):
            raise Unsupported("a state is kept in another format")
        self.varied = frozenset(varied)
        defaults = {h.name: h.one for h in program.hypers if h.name not in self.varied}
        self.settled = {**defaults, **{n: v for n, v in (values or {}).items() if n in defaults}}
        self.flat = not looks_at_shapes(program)
        places = list(self._places())
        printers = {
            tuple(facts.items()): Printer(program, {**self.settled, **facts}, self.flat)
            for *_, facts in places
        }
        live = states_needed(printers.values(), program)
        self.states = tuple(s for s in program.kept if s.name in live and not s.type.is_host)
        self.blocks: list[_Block] = []
        made: dict[Any, tuple[Function | None, Function, Function | None]] = {}
        # a state of the group is what the first tensor leaves in it that assigns it at all
        open_groups = [s.name for s in self.states if s.type.level is Level.GROUP]
        for place, lines, sizes, facts in places:
            key = (tuple(facts.items()), tuple(open_groups), not self.blocks)
            if key not in made:
                made[key] = self._functions(printers[key[0]], open_groups, first=not self.blocks)
            begin, step, view = made[key]
            open_groups = [name for name in open_groups if name not in step.writes]
            self.blocks.append(_Block(place, lines, sizes, facts, begin, step, view))

    def _places(self) -> Iterable[tuple[slice, tuple[int, int], tuple[int, ...], dict[str, int]]]:
        if self.flat:
            sizes = self.layout.sizes
            yield slice(0, self.layout.total), (self.layout.total, len(sizes)), sizes, {}
            return
        for place, shape in zip(self.layout.slices(), self.layout.shapes, strict=True):
            rows, cols = shape[0] if shape else 1, math.prod(shape[1:])
            facts = {"ndim": len(shape), "numel": rows * cols, "rows": rows, "cols": cols}
            yield place, (rows, cols), (rows * cols,), facts

    def _functions(
        self, printer: Printer, groups: Collection[str], first: bool
    ) -> tuple[Function | None, Function, Function | None]:
        """Functions that begin states, take a step, and make what is evaluated. `groups` are the states of the group
        that are left to this tensor; the `first` one begins them all.
        """
        program = self.program
        roots = {"p": (program.results["p"], element())} if "p" in program.results else {}
        for state in self.states:
            if self._moves(printer, state) and (state.type.level is not Level.GROUP or state.name in groups):
                roots[state.name] = (program.results[state.name], state.type)
        # a state of the group is read by all tensors as it was before
        own = {n for n in roots if n == "p" or self.flat or program.state(n).type.level is not Level.GROUP}
        step = printer.function(roots, frozenset(own))
        mine = (s for s in self.states if first or s.type.level is not Level.GROUP)
        inits = {s.name: (s.init, s.type) for s in mine if s.init is not None}
        begins = {name: init for name, init in inits.items() if not isinstance(init[0], Const)}
        begin = printer.function(begins) if begins else None
        view = None
        if program.view is not None and "p" in program.view.results:
            printer.use(program.view)
            view = printer.function({"p": (program.view.results["p"], element())})
            printer.use(program)
        return begin, step, view

    def _moves(self, printer: Printer, state: State) -> bool:
        """False for a state that the branches taken leave as it is."""
        if state.name not in self.program.results:
            return False
        result = printer.taken(self.program.results[state.name])
        return getattr(result, "name", None) != state.name

    def run(self, p: Tensor, columns: Mapping[str, npt.ArrayLike], steps: int) -> Run:
        """Begins a run of at most `steps` steps with the parameters `p`, which it changes: [K, P] in float32, or 64.

        `columns` has a value for each hyperparameter of `varied`: one number, one for each model, or an array that
        broadcasts to [steps, K].
        """
        return Run(self, p, columns, steps)


class Run:
    """K models on their way. `p` are their parameters."""

    def __init__(self, stacked: Stacked, p: Tensor, columns: Mapping[str, npt.ArrayLike], steps: int) -> None:
        self.stacked, self.p, self.steps = stacked, p, steps
        self.t = 0
        known: dict[str, Any] = dict(stacked.settled)
        if missing := stacked.varied - set(columns):
            raise ValueError(f"`{min(missing)}` has no values")
        for name in stacked.varied:
            known[name] = self._column(np.asarray(columns[name], np.float64))
        self.tables = [Tables(stacked.program, {**known, **block.facts}, steps) for block in stacked.blocks]
        self.host = [self._host(*pair) for pair in zip(stacked.blocks, self.tables, strict=True)]
        self.rows: npt.NDArray[np.int64] = np.arange(p.shape[0])
        self.states: list[dict[str, list[Tensor]]] = []  # by block, with one tensor for each step of a delay
        self.new_groups: dict[str, Tensor] = {}
        self._functions = [self._bound(block) for block in stacked.blocks]
        self._prepare()

    def _column(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """[1 or steps, 1 or K]; equal numbers are one number, which is quicker."""
        values = values.reshape(1, -1) if values.ndim < 2 else values
        return values[:, :1] if (values == values[:, :1]).all() else values

    def _bound(self, block: _Block) -> dict[str, Callable[..., Any]]:
        found = {"begin": block.begin, "step": block.step, "view": block.view}
        return {name: function.bind() for name, function in found.items() if function is not None}

    def _host(self, block: _Block, tables: Tables) -> dict[str, list[npt.NDArray[Any]]]:
        found = {"step": [tables.table(e) for e in block.step.host]}
        if block.begin is not None:
            found["begin"] = [tables.table(e)[:1] for e in block.begin.host]
        if block.view is not None:
            found["view"] = [tables.behind(e) for e in block.view.host]
        return found

    def _prepare(self) -> None:
        """Buffers, views and columns for the models that are left."""
        dims = 2 if self.stacked.flat else 3
        k, dtype = self.p.shape[0], self.p.dtype
        self._columns: list[dict[str, list[tuple[Tensor, ...]]]] = []
        self._buffers: list[dict[str, tuple[Tensor, ...]]] = []
        self._p: list[Tensor] = []
        memory: dict[Any, Tensor] = {}
        for block, host in zip(self.stacked.blocks, self.host, strict=True):
            functions = {"begin": block.begin, "step": block.step, "view": block.view}
            columns, buffers = {}, {}
            for what, function in functions.items():
                if function is None:
                    continue
                picked = [x if x.shape[1] == 1 else x[:, self.rows] for x in host[what]]
                columns[what] = columns_of(picked, 1 if what == "begin" else self.steps, dtype, dims)
                # with joint reductions all tensors are on their way at the same time
                apart = function.joint and not self.stacked.flat
                mine: list[Tensor] = []
                for level, truth in function.buffers:
                    shape = shape_of(level, k, block.lines, self.stacked.flat)
                    kind = torch.bool if truth else dtype
                    number = sum((x.shape, x.dtype) == (shape, kind) for x in mine)
                    key = (shape, kind, number, id(block) if apart else 0)
                    mine.append(memory.setdefault(key, torch.empty(shape, dtype=kind)))
                buffers[what] = tuple(mine)
            self._columns.append(columns)
            self._buffers.append(buffers)
            self._p.append(self._part(self.p, block))

    def _part(self, flat: Tensor, block: _Block) -> Tensor:
        """The parameters of a block, as its functions take them."""
        if self.stacked.flat:
            return flat
        return flat[:, block.place].view(flat.shape[0], *block.lines)

    def step(self, g: Tensor) -> None:
        """One step of all models with the gradients `g`, [K, P], which it leaves alone."""
        with torch.no_grad(), np.errstate(all="ignore"):
            if self.t == 0:
                self._begin(g)
            self._call("step", g, None)
            for name, value in self.new_groups.items():
                self.states[0][name][0].copy_(value)
            self.t += 1

    def view(self) -> Tensor:
        """What stands for the parameters while the models are evaluated, [K, P]."""
        if not self.t or self.stacked.program.view is None:
            return self.p
        out = self.p.clone()
        with torch.no_grad(), np.errstate(all="ignore"):
            self._call("view", None, out)
        return out

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these of the models only, by their present places."""
        index = torch.as_tensor(rows)
        self.p = self.p.index_select(0, index)
        self.rows = self.rows[index.numpy()]
        self.new_groups = {name: value.index_select(0, index) for name, value in self.new_groups.items()}
        shared: dict[int, Tensor] = {}
        for held in self.states:
            for name, ring in held.items():
                held[name] = [shared.setdefault(id(x), x.index_select(0, index)) for x in ring]
        self._prepare()

    def _begin(self, g: Tensor) -> None:
        stacked, k, dtype = self.stacked, self.p.shape[0], self.p.dtype
        groups: dict[str, list[Tensor]] = {}
        for block in stacked.blocks:
            held: dict[str, list[Tensor]] = {}
            for state in stacked.states:
                if state.name in groups:
                    held[state.name] = groups[state.name]
                    continue
                shape = shape_of(state.type.level_name, k, block.lines, stacked.flat)
                value = float(state.init.value) if isinstance(state.init, Const) else 0.0
                held[state.name] = [torch.full(shape, value, dtype=dtype) for _ in range(self._delay(state))]
                if state.type.level is Level.GROUP:
                    groups[state.name] = held[state.name]
                    if not stacked.flat and any(state.name in b.step.writes for b in stacked.blocks):
                        self.new_groups[state.name] = torch.empty(shape, dtype=dtype)
            self.states.append(held)
        self._call("begin", g, None)
        for held in self.states:
            for ring in held.values():
                for later in ring[1:]:
                    later.copy_(ring[0])

    def _delay(self, state: State) -> int:
        if state.delay is None:
            return 1
        return int(self.stacked.settled[state.delay]) if isinstance(state.delay, str) else state.delay

    def _call(self, what: str, g: Tensor | None, out: Tensor | None) -> None:
        waiting: list[tuple[int, Any, Any]] = []
        for number, block in enumerate(self.stacked.blocks):
            function = {"begin": block.begin, "step": block.step, "view": block.view}[what]
            if function is None:
                continue
            p = self._p[number]
            held = self.states[number]
            s = tuple(self._slot(held[name]) for name in function.reads)
            outputs = []
            for name in function.writes:
                if name == "p":
                    outputs.append(p if out is None else self._part(out, block))
                elif what == "step" and name in self.new_groups:
                    outputs.append(self.new_groups[name])
                else:
                    outputs.append(self._slot(held[name]))
            h = self._columns[number][what][self.t if what == "step" else self.t - 1 if what == "view" else 0]
            part = None if g is None else self._part(g, block)
            w = self._buffers[number][what]
            made = self._functions[number][what](p, part, h, s, tuple(outputs), w, block.sizes)
            if made is not None:
                waiting.append((number, made, next(made, None)))
        if waiting:
            _drive(waiting)

    def _slot(self, ring: list[Tensor]) -> Tensor:
        return ring[self.t % len(ring)]


def _drive(waiting: list[tuple[int, Any, Any]]) -> None:
    """Runs the tensors of all models from one joint reduction to the next, the lowest site first."""
    waiting = [item for item in waiting if item[2] is not None]
    while waiting:
        site = min(request[2][1] for _, _, request in waiting)
        here = [item for item in waiting if item[2][2][1] == site]
        op = here[0][2][2][0]
        parts = torch.stack([request[0].double() for _, _, request in here])
        if op in ("reduce_sum", "reduce_mean"):
            whole = parts.sum(0)
            if op == "reduce_mean":
                whole = whole / sum(request[1][0].numel() for _, _, request in here)
        else:
            whole = parts.amax(0) if op == "reduce_max" else parts.amin(0)
        value = whole.to(here[0][2][0].dtype).reshape(-1, 1, 1)
        rest = [item for item in waiting if item[2][2][1] != site]
        for number, made, _ in here:
            try:
                rest.append((number, made, made.send(value)))
            except StopIteration:
                continue
        waiting = rest
