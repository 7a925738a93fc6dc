"""A small evaluator of plans in numpy: what a step leaves behind when it is done sweep by sweep, in memory.

It shares no code with the C emitter, nor with the scheduler. Arrays are overwritten when the plan says so, values
per element are gone when their loop ends, values per row when their sweep ends unless they are kept; so a plan
that reads what is not there any more fails here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optdsl.check import check_path, check_text
from optdsl.core.ops import CORE, Rule
from optdsl.core.types import Dim, Kind, Level
from optdsl.driver import simplify
from optdsl.ir.expr import Call, Const, Expr, Var, call, transform
from optdsl.ir.interpret import Group, Interpreter, hyper_values
from optdsl.ir.numpy_ops import NUMPY
from optdsl.ir.plan import Place, Plan, Value
from optdsl.ir.program import Assign, Program
from optdsl.passes.library import settings
from optdsl.passes.schedule import EXACT, schedule
from optdsl.passes.specialise import Leaf, Split, Tree
from tests.support import ROOT

Array: TypeAlias = npt.NDArray[Any]
#: What a store leaves of a value in the array of this name: the value, or what a narrower type holds of it.
Rounding: TypeAlias = Callable[[str, Array], Array]

_SIZES = {
    Place.SCALAR: (Dim.ONE, Dim.ONE),
    Place.COLS: (Dim.ONE, Dim.C),
    Place.ROWS: (Dim.R, Dim.ONE),
    Place.ELEMENT: (Dim.R, Dim.C),
}
_AXES = {Place.SCALAR: None, Place.COLS: 0, Place.ROWS: 1}


def program(step: str, hyper: str = "", state: str = "m = 0") -> Program:
    """The program of a small spec, as it is compiled."""
    blocks = {"hyper": f"lr = 1e-3 in [0, inf)\n{textwrap.dedent(hyper)}", "state": state, "step": step}
    lines = ["optimizer T:"]
    for name, text in blocks.items():
        if text.strip():
            lines += [f"    {name}:", textwrap.indent(textwrap.dedent(text).strip("\n"), " " * 8)]
    return simplify(check_text("\n".join(lines) + "\n").require())


def shipped(name: str) -> Program:
    """The program of a shipped spec, as it is compiled."""
    return simplify(check_path(ROOT / "specs" / f"{name}.opt").require())


def reciprocals(found: Program) -> Program:
    """The program as plans compute it: a number of the host that divides is a factor, one over it."""

    def visit(node: Expr) -> Expr:
        if (
            isinstance(node, Call)
            and node.op == "div"
            and not node.type.is_host
            and node.args[1].type.is_host
        ):
            return Call("mul", (node.args[0], call("div", 1.0, node.args[1])), None, None, node.type)
        return node

    body = tuple(Assign(a.name, a.source, transform(a.expr, visit), a.guard, a.line) for a in found.body)
    return found.with_body(body, {name: transform(expr, visit) for name, expr in found.results.items()})


def settled(expr: Expr, known: Mapping[str, Any], definitions: Mapping[str, Expr]) -> Any:
    """The value of a host expression, in float64; only the side of a choice that is taken is looked at."""
    if isinstance(expr, Const):
        return expr.value if isinstance(expr.value, str | bool) else _number(expr.value)
    if isinstance(expr, Var):
        if expr.name in known:
            return known[expr.name]
        return _as(settled(definitions[expr.name], known, definitions), expr.type.kind)
    if expr.op == "select":
        condition, then, other = expr.args
        side = then if settled(condition, known, definitions) else other
        return _as(settled(side, known, definitions), expr.type.kind)
    return _as(NUMPY[expr.op](*(settled(arg, known, definitions) for arg in expr.args)), expr.type.kind)


def _number(value: float) -> np.float64:
    try:
        return np.float64(value)
    except OverflowError:
        return np.float64(np.inf if value > 0 else -np.inf)


def _as(value: Any, kind: Kind) -> Any:
    if kind in (Kind.BOOL, Kind.CHOICE):
        return bool(value) if kind is Kind.BOOL else value
    return np.float64(value) + (0.0 if kind is Kind.INT else -0.0)


def leaf_of(tree: Tree, known: Mapping[str, Any]) -> Leaf:
    """The leaf that a step follows."""
    with np.errstate(all="ignore"):
        while isinstance(tree, Split):
            definitions = {a.name: a.expr for a in tree.program.body}
            tree = tree.then if settled(tree.condition, known, definitions) else tree.other
    return tree


def tensor_known(owner: Interpreter, group: int, place: int) -> dict[str, Any]:
    """What the host knows of a tensor in front of its next step. Host states that it has not got are made."""
    p, states, program = owner.params[group][place], owner.states[group][place], owner.program
    rows, cols = p.shape[0] if p.ndim else 1, int(np.prod(p.shape[1:]))
    t = owner.steps[group][place] + 1
    facts = {"t": t, "ndim": p.ndim, "numel": p.size, "rows": rows, "cols": cols}
    known: dict[str, Any] = {
        **hyper_values(program, owner.hypers[group]),
        **{name: np.float64(value) for name, value in facts.items()},
        "first_step": t == 1,
    }
    for state in program.states:
        if state.type.is_host and state.key in states:
            known[state.name] = states[state.key]
        elif state.type.is_host and state.init is not None:
            with np.errstate(all="ignore"):
                known[state.name] = _as(settled(state.init, known, {}), state.type.kind)
    return known


class TensorStep:
    """One step of one tensor by its plan. `memory` holds `p`, `g` and the states as two-dimensional arrays."""

    def __init__(
        self,
        plan: Plan,
        memory: dict[str, Array],
        slots: Sequence[Any],
        rounding: Rounding,
        stream: tuple[int, int],
        library: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    ) -> None:
        self.plan, self.memory, self.rounding, self.stream = plan, memory, rounding, stream
        self.library = library
        #: Of a ranking that waits for other tensors, k.
        self.rank: Array = np.zeros(())
        self.sizes = {Dim.ONE: 1, Dim.R: memory["p"].shape[0], Dim.C: memory["p"].shape[1]}
        self.slots = {f"{plan.slot_name}.{k}": value for k, value in enumerate(slots)}
        self.scalars: dict[str, Array] = {}
        self.kept: dict[str, Array] = {}
        self.left: dict[str, Array] = {}
        #: Names of arrays in the order in which they are stored.
        self.stored: list[str] = []

    def run(self) -> Generator[tuple[Value, Array], Array, None]:
        """The whole step: yields each joint reduction with its operands, is sent its value."""
        plan = self.plan
        formed: dict[str, Array] = {}
        for k in range(len(plan.sweeps) + 1):
            for value in plan.scalars[k]:
                if value.name in formed:
                    self.scalars[value.name] = formed[value.name]
                elif value.reduction is not None:
                    operand = self.evaluate(value.expr, {}, value.reduction.operand)
                    self.scalars[value.name] = self.reduced(value, operand)
                else:
                    self.scalars[value.name] = self.evaluate(value.expr, {}, value.place)
            if k == len(plan.sweeps):
                break
            early = {
                v.name: self.evaluate(v.expr, {}, v.reduction.operand)
                for v in plan.closing(k)
                if v.reduction is not None and v.reduction.operand in (Place.SCALAR, Place.COLS)
            }
            operands = {**early, **self.sweep(k)}
            if plan.library is not None and plan.library.sweep == k:
                self.hand_over()
            formed = {}
            joint = [v for v in plan.closing(k) if v.reduction is not None and v.reduction.joint]
            for value in sorted(joint, key=_site):
                operand = operands[value.name]
                if value.reduction is not None and value.reduction.entries:
                    self.rank, operand = operand, self.memory[value.reduction.entries]
                formed[value.name] = yield value, operand
            for value in plan.scalars[k + 1]:
                if value.name in operands and value.name not in formed:
                    formed[value.name] = self.reduced(value, operands[value.name])
        new = {name: self.evaluate(expr, {}, plan.array(name).place) for name, expr in plan.scalar_stores}
        for name, value in new.items():
            if plan.array(name).group:
                self.left[name] = value
            else:
                self.memory[name] = value

    def hand_over(self) -> None:
        """Has the library compute what it is there for."""
        assert self.plan.library is not None
        there = {**self.memory, **self.kept, **self.scalars}
        made = self.library({name: there[held] for name, held in self.plan.library.inputs})
        self.memory.update({name: made[name] for name in self.plan.library.outputs})

    def sweep(self, k: int) -> dict[str, Array]:
        """Does sweep k; returns the operands of the reductions that end behind it."""
        sweep = self.plan.sweeps[k]
        rows = {name: self.kept[at] if at in self.kept else self.memory[at] for name, at in sweep.row_loads}
        operands: dict[str, Array] = {}
        stores: list[tuple[str, Array]] = []
        for j, line in enumerate(sweep.lines):
            for value in line:
                if value.reduction is not None:
                    rows[value.name] = self.reduced(value, operands.pop(value.name))
                else:
                    rows[value.name] = self.evaluate(value.expr, rows, Place.ROWS)
            if j == len(sweep.loops):
                break
            loop = sweep.loops[j]
            local = {**rows, **{name: self.memory[array] for name, array in loop.loads}}
            for value in loop.body:
                local[value.name] = self.evaluate(value.expr, local, Place.ELEMENT)
            for value in loop.reduces:
                operands[value.name] = self.evaluate(value.expr, local, Place.ELEMENT)
            stores += [(array, self.evaluate(expr, local, Place.ELEMENT)) for array, expr in loop.stores]
        for value in sweep.row_reduces:
            operands[value.name] = self.evaluate(value.expr, rows, Place.ROWS)
        new = {array: self.evaluate(expr, rows, Place.ROWS) for array, expr in sweep.row_stores}
        self.memory.update(new)
        for array, value in stores:
            self.stored.append(array)
            self.memory[array] = self.rounding(array, value)
        self.kept.update({name: rows[name] for name in sweep.kept})
        return operands

    def reduced(self, value: Value, operand: Array) -> Array:
        """A reduction of one tensor."""
        assert value.reduction is not None
        found = NUMPY[f"reduce_{value.reduction.kind}"](operand, _AXES[value.place])
        return self.shaped(found, value.place, value.kind)

    def shaped(self, value: Array, place: Place, kind: Kind = Kind.FLOAT) -> Array:
        rows, cols = _SIZES[place]
        dtype = np.bool_ if kind is Kind.BOOL else np.float64
        return np.broadcast_to(np.asarray(value).astype(dtype), (self.sizes[rows], self.sizes[cols]))

    def evaluate(self, root: Expr, local: Mapping[str, Array], place: Place) -> Array:
        """An expression at a place, from what is there."""

        def value(expr: Expr) -> Any:
            if isinstance(expr, Const):
                return expr.value if isinstance(expr.value, bool) else _number(float(expr.value))
            if isinstance(expr, Var):
                return self.read(expr.name, local)
            args = [value(arg) for arg in expr.args]
            if CORE[expr.op].rule is Rule.RANDOM:
                index, seed = self.stream
                size = self.sizes[Dim.R] * self.sizes[Dim.C]
                spread = [self.shaped(arg, Place.ELEMENT).reshape(size) for arg in args]
                step = int(self.slots[f"{self.plan.slot_name}.{len(self.slots) - 1}"])
                drawn = NUMPY[expr.op](seed, step, index, expr.attr, size, *spread)
                return drawn.reshape(self.sizes[Dim.R], self.sizes[Dim.C])
            found = NUMPY[expr.op](*map(np.asarray, args))
            return found.astype(np.bool_ if expr.type.kind is Kind.BOOL else np.float64)

        return self.shaped(value(root), place, root.type.kind)

    def read(self, name: str, local: Mapping[str, Array]) -> Any:
        if name in local:
            return local[name]
        if name in self.slots:
            return self.slots[name]
        if name in self.scalars:
            return self.scalars[name]
        assert self.plan.array(name).place in (Place.SCALAR, Place.COLS), f"{name} is not there"
        return self.memory[name]


def _site(value: Value) -> int:
    assert value.reduction is not None
    assert value.reduction.site is not None
    return value.reduction.site


class Plans(Interpreter):
    """Steps by plans, to be used like the interpreter."""

    def __init__(
        self,
        program: Program,
        groups: Sequence[Group],
        seed: int = 0,
        mode: str = EXACT,
        rounding: Rounding = lambda name, value: value,
    ) -> None:
        """Raises Unsupported, TooManyBranches."""
        super().__init__(program, groups, np.float64, seed)
        self.groups, self.mode, self.rounding = groups, mode, rounding
        self.kernels, self.library, self.tree = settings(program)
        self.known: dict[int, tuple[Leaf, Plan]] = {}

    def plan(self, leaf: Leaf) -> Plan:
        if id(leaf) not in self.known:
            self.known[id(leaf)] = leaf, schedule(leaf, self.mode, self.library)
        return self.known[id(leaf)][1]

    def step(self, grads: Sequence[Sequence[npt.ArrayLike | None]]) -> None:
        with np.errstate(all="ignore"):
            self._begin(grads)
            runs = []
            index = 0
            for number, (params, given) in enumerate(zip(self.params, grads, strict=True)):
                for place, grad in enumerate(given):
                    if grad is not None:
                        runs.append(_Run(self, number, place, index, np.asarray(grad, np.float64)))
                    index += 1
                assert len(params) == len(given)
            _together(runs)
            for run in runs:
                run.store()
            for number, kept in enumerate(self.group_states):
                for state in self.program.states:
                    writers = [r for r in runs if r.group == number and state.name in r.tensor.left]
                    if state.type.level is Level.GROUP and writers:
                        last = max(writers, key=lambda r: r.t)
                        kept[state.key] = last.tensor.left[state.name].reshape(()).copy()

    def _begin(self, grads: Sequence[Sequence[npt.ArrayLike | None]]) -> None:
        """Makes the states of tensors that take their first step, as the interpreter does."""
        twin = Interpreter(self.program.with_body((), {}), self.groups, np.float64, self.seed)
        twin.params, twin.states, twin.group_states = self.params, self.states, self.group_states
        twin.steps = [list(steps) for steps in self.steps]
        twin.step(grads)


class _Run:
    """One tensor in one step of `Plans`."""

    def __init__(self, owner: Plans, group: int, place: int, index: int, g: Array) -> None:
        self.owner, self.group, self.place = owner, group, place
        p = owner.params[group][place]
        shape = p.shape
        rows, cols = shape[0] if shape else 1, int(np.prod(shape[1:]))
        self.t = owner.steps[group][place] + 1
        states = owner.states[group][place]
        known = tensor_known(owner, group, place)
        leaf = leaf_of(owner.tree, known)
        self.plan = plan = owner.plan(leaf)
        definitions = {a.name: a.expr for a in leaf.program.body}
        self.new = {n: settled(e, known, definitions) for n, e in plan.host_states}
        slots = [settled(expr, known, definitions) for expr in plan.slots]
        memory: dict[str, Array] = {"p": p.reshape(rows, cols), "g": g.reshape(rows, cols)}
        for state in owner.kernels.states:
            held = owner.group_states[group] if state.type.level is Level.GROUP else states
            if not state.type.is_host and state.key in held:
                sizes = {Dim.ONE: 1, Dim.R: rows, Dim.C: cols}
                kept = (
                    held[state.key]
                    if state.delay is None
                    else held[state.key][(self.t - 1) % int(state.delay)]
                )
                memory[state.name] = np.asarray(kept).reshape([sizes[d] for d in state.type.shape])
        self.before = dict(memory)
        #: States that are the library's, as it leaves them.
        self.own: dict[str, Array] = {}
        self.tensor = TensorStep(plan, memory, slots, owner.rounding, (index, owner.seed), self.library)
        self.steps = self.tensor.run()

    def library(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """What the library makes of these, as the interpreter computes it."""
        owner, found = self.owner, self.owner.library
        assert found is not None
        p = owner.params[self.group][self.place]
        states = tuple(replace(state, given=False) for state in found.program.states)
        program = reciprocals(replace(found.program, states=states))
        runner = Interpreter(program, [Group([p], owner.hypers[self.group])])
        runner.steps[0][0] = self.t - 1
        runner.states[0][0].update(
            {k: x for k, x in owner.states[self.group][self.place].items() if not isinstance(x, np.ndarray)}
        )
        own = [state.key for state in states if state.name in found.kept]
        held = owner.states[self.group][self.place]
        runner.states[0][0].update({key: held[key] for key in own if key in held})
        for state in states:
            if state.name in inputs:
                kept = inputs[state.name]
                kept = kept.reshape(p.shape) if state.type.is_element else kept
                kept = kept if state.type.level is Level.ARRAY else kept.reshape(())
                at = runner.group_states[0] if state.type.level is Level.GROUP else runner.states[0][0]
                at[state.key] = kept
        runner.step([[np.zeros_like(p)]])
        made = {state.name: runner.states[0][0][state.key] for state in states if state.name in found.outputs}
        self.own = {key: runner.states[0][0][key] for key in own if key in runner.states[0][0]}
        rows, cols = self.before["p"].shape
        sizes = {Dim.ONE: 1, Dim.R: rows, Dim.C: cols}
        filled = [state for state in states if state.name in found.outputs]
        shapes = {state.name: [sizes[d] for d in state.type.shape] for state in filled}
        return {name: np.asarray(x).reshape(shapes[name]) for name, x in made.items()}

    def store(self) -> None:
        owner, memory = self.owner, self.tensor.memory
        owner.steps[self.group][self.place] = self.t
        p = owner.params[self.group][self.place]
        states = owner.states[self.group][self.place]
        for state in owner.program.states:
            if state.key in self.own:
                states[state.key] = self.own[state.key]
            elif state.name in self.new:
                states[state.key] = self.new[state.name]
            elif state.name in memory and state.type.level is not Level.GROUP:
                value = memory[state.name]
                if value is not self.before.get(state.name):
                    shape = p.shape if state.type.is_element else value.shape
                    shape = shape if state.type.level is Level.ARRAY else ()
                    new = value.reshape(shape).copy()
                    if state.delay is not None:
                        ring = states[state.key].copy()
                        ring[(self.t - 1) % int(state.delay)] = new
                        new = ring
                    states[state.key] = new
        owner.params[self.group][self.place] = memory["p"].reshape(p.shape).copy()
        if self.owner.mode != "overwrite":
            assert memory["g"] is self.before["g"], "the gradient is not the plan's to write"


def _together(runs: Sequence[_Run]) -> None:
    """Runs all tensors to the end of the step; those that wait at the lowest site meet."""
    waiting: dict[int, tuple[Value, Array]] = {}

    def resume(number: int, value: Array | None) -> None:
        try:
            steps = runs[number].steps
            waiting[number] = next(steps) if value is None else steps.send(value)
        except StopIteration:
            waiting.pop(number, None)

    for number in range(len(runs)):
        resume(number, None)
    while waiting:
        site = min(_site(value) for value, _ in waiting.values())
        meetings: dict[int | None, list[int]] = {}
        for number, (value, _) in waiting.items():
            if _site(value) == site:
                assert value.reduction is not None
                group = runs[number].group if value.reduction.over == "group" else None
                meetings.setdefault(group, []).append(number)
        for numbers in meetings.values():
            found = waiting[numbers[0]][0].reduction
            assert found is not None
            operands = [waiting[number][1] for number in numbers]
            if found.entries:
                every = np.concatenate([x.reshape(-1) for x in operands])
                k = runs[numbers[0]].tensor.rank.item()
                together = np.asarray(NUMPY["reduce_kth_largest"](every, k))
            else:
                together = _jointly(found.kind, operands)
            for number in numbers:
                resume(number, together)


def _jointly(kind: str, arrays: Sequence[Array]) -> Array:
    if kind == "mean":
        return np.asarray(_jointly("sum", arrays) / np.float64(sum(x.size for x in arrays)))
    function = NUMPY[f"reduce_{kind}"]
    partials = [function(x).item() for x in arrays if x.size]
    return np.asarray(function(np.array(partials, np.float64).reshape(1, -1)))


__all__ = ["Plans", "Rounding", "TensorStep", "leaf_of", "reciprocals", "settled", "tensor_known"]
