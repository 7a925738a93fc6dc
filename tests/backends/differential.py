"""Compiled programs against the interpreter, step by step, with tolerances that follow from the program itself.

A `Way` makes an optimizer class of a program and says with which flags and where it runs; backends plug in here.
All ways and the interpreter start every step from the same numbers: after a step has been compared, what the
interpreter left is put back into each optimizer, rounded to the type that the optimizer keeps it in.

A number of a compiled program is right if it is within a few units in the last place of the interpreter's. Where
one is not, the interpreter runs the step again: with small changes to every input and to the result of every
operator, the signs of zeros among them, with operators as libraries simplify them, with sums and factors in
another order, and in a wider type. How far these runs differ from the first is how far rounding, the association of
products and the range of the type may carry; four times that is allowed. Where some of them are finite and others
not, nothing can be said, and the number is only counted. Infinities and nan must be the same where all runs have
them.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

from optdsl.backends.torch import emit
from optdsl.core.types import Kind, Level
from optdsl.ir.expr import Call, Expr, call, transform, variables
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.numpy_ops import NEWTON_SCHULZ, NEWTON_SCHULZ_EPS, NUMPY
from optdsl.ir.program import Hyper, Program, State
from optdsl.passes.simplify import simplify

Array: TypeAlias = npt.NDArray[Any]
Made = TypeVar("Made")
#: Where a number is kept: the key of a state or "p", its group, its parameter (None for one of the group).
Place: TypeAlias = tuple[str, int, int | None]
#: Flat arrays, as wide as the interpreter's.
Values: TypeAlias = dict[Place, Array]

#: The type in which parameters of a type are updated.
COMPUTE = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.bfloat16: np.dtype(np.float32),
    torch.float16: np.dtype(np.float32),
}
WIDER = {np.dtype(np.float64): np.dtype(np.longdouble), np.dtype(np.float32): np.dtype(np.float64)}
#: Units in the last place that any operator may be off by, and by how many the perturbed runs are.
ULPS = 4
#: How many times the spread of the perturbed runs is allowed.
FACTOR = 4
#: How many other runs are made, and how many if something is still wrong.
RUNS = (4, 8, 60)
#: A number counts as checked tightly if this share of it, or less, is allowed for rounding.
TIGHT = 1e-2

HOSTILE = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-310, -1e-40, 1e30, -1e30, 1e-30, 1.0, -1.0)
Shapes: TypeAlias = tuple[tuple[tuple[int, ...], ...], ...]
#: The shapes of the parameters, by group. The sizes 0, 1, 7, 31 and 1023 leave a rest for vectors of any width.
SHAPES: Shapes = (
    ((), (7,), (0,), (3, 4)),
    ((2, 3, 2, 2), (5, 1), (33, 31)),
    ((3, 4), (31,)),
)


class Mismatch(AssertionError):
    """A compiled program and the interpreter disagree."""


# ---- ways ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way to run a program: the class `build` makes of it, made with `flags`, on `device`, where a step may take
    this many of torch's threads (None: as many as there are).
    """

    name: str
    build: Callable[[Program], type[torch.optim.Optimizer]]
    flags: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    threads: int | None = None


def source(program: Program) -> str:
    """The file that the torch backend makes of a program."""
    return emit(simplify(program), "random.opt", "0" * 64)


def load(text: str, name: str) -> Any:
    """The class `name` of the generated file `text`."""
    module: dict[str, Any] = {"__name__": "generated"}
    exec(compile(text, "<generated>", "exec"), module)
    return module[name]


def remembered(make: Callable[[Program], Made]) -> Callable[[Program], Made]:
    """`make`, which remembers what it made of the last few programs."""
    last: deque[tuple[Program, Made]] = deque(maxlen=4)

    @functools.wraps(make)
    def run(program: Program) -> Made:
        for known, found in last:
            if known is program:
                return found
        last.append((program, make(program)))
        return last[-1][1]

    return run


@remembered
def torch_class(program: Program) -> Any:
    """The class that the torch backend makes of a program."""
    return load(source(program), program.name)


@remembered
def as_written(program: Program) -> Any:
    """The class that the torch backend makes of a program that is not simplified."""
    return load(emit(program, "random.opt", "0" * 64), program.name)


@remembered
def parts_class(program: Program) -> Any:
    """The same, but its steps are those of parts of tensors, each of which is all there is."""

    class Parts(torch_class(program)):  # type: ignore[misc]
        def _advance_by(self, groups: Any, states: Any) -> None:
            for group in groups:
                group.meets = self._shards == "reduced"
            super()._advance_by(groups, states)

    return Parts


LOOP = Way("loop", torch_class, {"foreach": False})
FOREACH = Way("foreach", torch_class, {"foreach": True})
PARTS = Way("parts", parts_class, {"foreach": True})
DIFFERENTIABLE = Way("differentiable", torch_class, {"differentiable": True})
CAPTURABLE = (
    Way("capturable loop", torch_class, {"foreach": False, "capturable": True}),
    Way("capturable foreach", torch_class, {"foreach": True, "capturable": True}),
)
AS_WRITTEN = (
    Way("loop, not simplified", as_written, {"foreach": False}),
    Way("foreach, not simplified", as_written, {"foreach": True}),
)


# ---- problems -----------------------------------------------------------------------------------------------


@dataclass
class Problem:
    """What a program is run on. `grads` has for each step a gradient (or None) for each parameter of each group.

    `rates` gives the learning rate of each group for the steps at which it changes.
    """

    dtype: torch.dtype
    params: list[list[torch.Tensor]]
    hypers: list[dict[str, Any]]
    grads: list[list[list[torch.Tensor | None]]]
    rates: dict[int, list[float]] = field(default_factory=dict)
    maximize: bool = False
    seed: int = 0


def problem(
    program: Program,
    rng: np.random.Generator,
    dtype: torch.dtype,
    steps: int = 4,
    hostile: float = 0.0,
    shapes: Shapes = SHAPES,
) -> Problem:
    """Parameters of many shapes and layouts in three groups with different hyperparameters.

    Some parameters get their first gradient late, some have none at times; `hostile` is the share of hostile
    numbers in the gradients.
    """
    params = [[_laid_out(_tensor(rng, shape, dtype), rng) for shape in group] for group in shapes]
    grads: list[list[list[torch.Tensor | None]]] = []
    for step in range(steps):
        now: list[list[torch.Tensor | None]] = []
        for number, group in enumerate(params):
            of_group: list[torch.Tensor | None] = []
            for index, p in enumerate(group):
                late = index == len(group) - 1 and step < number
                grad = None if late or rng.random() < 0.1 else _tensor(rng, tuple(p.shape), dtype, hostile)
                if grad is not None and rng.random() < 0.3:
                    grad = _laid_out(grad, rng)
                of_group.append(grad)
            now.append(of_group)
        grads.append(now)
    rates = {}
    has_rate = any(hyper.argument == "lr" for hyper in program.hypers)
    if steps > 2 and has_rate and not any("lr" in variables(c) for c in conditions(program)):
        rates = {2: [float(rng.choice((0.0, 1e-3, 0.5))) for _ in shapes]}
    hypers = [arguments(program, rng) for _ in shapes]
    return Problem(dtype, params, hypers, grads, rates, bool(rng.random() < 0.2), int(rng.integers(2**63)))


def conditions(program: Program) -> Iterator[Any]:
    """Every condition known on the host."""
    for assign in program.body:
        yield from (condition for condition, _ in assign.guard)
    for node in program.nodes():
        if isinstance(node, Call) and node.op == "select" and node.args[0].type.is_host:
            yield node.args[0]


def _tensor(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, hostile: float = 0.0
) -> torch.Tensor:
    ordinary = rng.normal(size=shape) * 10.0 ** rng.integers(-2, 2, size=shape)
    values = np.where(rng.random(shape) < hostile, rng.choice(HOSTILE, size=shape), ordinary)
    return torch.from_numpy(np.asarray(values)).to(dtype)


def _laid_out(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """`x` in another memory layout, at times: transposed, channels last, every other number of a larger one."""
    layout = rng.integers(4)
    if layout == 1 and x.dim() == 2:
        return x.t().contiguous().t()
    if layout == 1 and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == 2 and x.dim() >= 1:
        wide = torch.zeros((*x.shape, 2), dtype=x.dtype)[..., 0]
        wide.copy_(x)
        return wide
    return x


def arguments(program: Program, rng: np.random.Generator, tame: bool = False) -> dict[str, Any]:
    """Constructor arguments that differ from the defaults at times."""
    given: dict[str, Any] = {}
    for argument in dict.fromkeys(h.argument for h in program.hypers):
        parts = [h for h in program.hypers if h.argument == argument]
        if rng.random() < 0.7:
            values = [_setting(h, rng, tame) for h in parts]
            given[argument] = tuple(values) if parts[0].is_part else values[0]
    return given


def _setting(hyper: Hyper, rng: np.random.Generator, tame: bool) -> Any:
    if hyper.kind is Kind.CHOICE:
        return str(rng.choice(hyper.choices))
    if hyper.kind is Kind.BOOL:
        return bool(rng.integers(2))
    if isinstance(hyper.default, tuple):
        one = replace(hyper, kind=hyper.number_kind, default=hyper.default[0])
        return [_setting(one, rng, tame) for _ in range(rng.integers(1, 5))]
    whole = hyper.kind is Kind.INT
    candidates: list[Any] = [0, 1, 2, 3, 5, 7] if whole else [0.0, 1e-3, 0.01, 0.5, 0.9, 0.999, 1.0, 2.0]
    if not tame and not whole:
        candidates += [1e-30, -1.0, math.inf]
    fitting = [c for c in candidates if hyper.interval is None or c in hyper.interval]
    return fitting[rng.integers(len(fitting))] if fitting else hyper.default


def inputs_of(program: Program, grads: Sequence[Sequence[Array | None]]) -> dict[str, Any]:
    """What a step is given beside gradients: for every input the gradients' numbers in the other order, or the first
    number of them all.
    """
    flipped = [[None if g is None else np.flip(g) for g in group] for group in grads]
    first = next((g.ravel()[0] for group in grads for g in group if g is not None and g.size), 0.5)
    return {state.key: flipped if state.type.is_element else first for state in program.inputs}


def _flipped(x: torch.Tensor) -> torch.Tensor:
    return x.detach().flip(tuple(range(x.dim()))) if x.dim() else x.detach().clone()


# ---- the interpreter ----------------------------------------------------------------------------------------


def storage(place: Place, program: Program, dtype: torch.dtype) -> torch.dtype:
    """The type in which a number is kept between steps."""
    compute = torch.float64 if COMPUTE[dtype] == np.float64 else torch.float32
    if place[0] == "p":
        return dtype
    state = next(s for s in program.states if s.key == place[0])
    if state.type.level is Level.HOST:
        return torch.float64
    return dtype if state.type.is_element else compute


def rounded(values: Array, dtype: torch.dtype) -> Array:
    """`values` rounded to `dtype`, in float64."""
    with np.errstate(all="ignore"):
        if dtype is torch.float32:
            return values.astype(np.float32).astype(np.float64)
        wide = torch.from_numpy(values.astype(np.float64))
        if dtype in (torch.bfloat16, torch.float16):
            wide = wide.float()  # as a compiled program has it; two roundings
        return np.asarray(wide.to(dtype).double().numpy())


class Reference:
    """The interpreter on a problem, with what it keeps rounded as an optimizer keeps it."""

    def __init__(self, program: Program, problem: Problem) -> None:
        self.program, self.problem = program, problem
        self.machine = self.fresh(COMPUTE[problem.dtype])

    def fresh(self, dtype: npt.DTypeLike, program: Program | None = None) -> Interpreter:
        params = [[_numpy(p) for p in group] for group in self.problem.params]
        groups = [Group(p, dict(h)) for p, h in zip(params, self.problem.hypers, strict=True)]
        return Interpreter(program or self.program, groups, dtype, self.problem.seed)

    def grads(self, step: int) -> list[list[Array | None]]:
        sign = -1 if self.problem.maximize else 1
        return [
            [None if g is None else sign * _numpy(g) for g in group] for group in self.problem.grads[step]
        ]

    def begin(self, step: int) -> None:
        """Sets the learning rates of a step."""
        for group, rate in enumerate(self.problem.rates.get(step, ())):
            self.machine.hypers[group]["lr"] = rate

    def run(self, machine: Interpreter, grads: Sequence[Sequence[Array | None]]) -> None:
        """One step of `machine`. New states are kept, and so rounded, before they are used."""
        if self.problem.dtype in (torch.bfloat16, torch.float16):
            starting = self.copied(machine, machine.dtype, self.program.with_body((), {}))
            starting.perturb = machine.perturb
            starting.step(grads, inputs_of(self.program, grads))
            new = {place: x for place, x in values(starting).items() if place[0] != "p"}
            self.restore(machine, new)
            if machine.perturb is not None:
                self.restore(machine, {x: machine.perturb(rounded(new[x], torch.float32)) for x in new})
        sign = -1 if self.problem.maximize else 1
        told = [[None if g is None else sign * g for g in group] for group in grads]
        machine.step(grads, inputs_of(self.program, told))

    def copied(
        self, machine: Interpreter, dtype: npt.DTypeLike, program: Program | None = None
    ) -> Interpreter:
        """Another interpreter in the same place."""
        other = self.fresh(dtype, program)
        other.hypers = [dict(h) for h in machine.hypers]
        other.steps = [list(steps) for steps in machine.steps]
        other.params = [[p.astype(dtype) for p in group] for group in machine.params]
        other.states = [[dict(states) for states in group] for group in machine.states]
        other.group_states = [dict(states) for states in machine.group_states]
        return other

    def restore(self, machine: Interpreter, new: Values) -> None:
        """Sets what is kept, rounded to the type in which it is kept."""
        for place, flat in new.items():
            key, group, index = place
            exact = rounded(flat, storage(place, self.program, self.problem.dtype))
            if key == "p":
                assert index is not None
                shape = machine.params[group][index].shape
                machine.params[group][index] = exact.astype(machine.dtype).reshape(shape)
                continue
            kept = machine.group_states[group] if index is None else machine.states[group][index]
            state = next(s for s in self.program.states if s.key == key)
            if state.type.is_host:
                kept[key] = np.float64(exact[0])
            else:
                kept[key] = exact.astype(machine.dtype).reshape(self.shape(state, group, index))

    def shape(self, state: State, group: int, index: int | None) -> tuple[int, ...]:
        if state.type.level is not Level.ARRAY:
            return ()
        assert index is not None
        whole = tuple(self.problem.params[group][index].shape)
        if state.type.is_element:
            return whole if state.delay is None else (int(state.delay), *whole)
        sizes = {"1": 1, "rows": whole[0] if whole else 1, "cols": math.prod(whole[1:])}
        sizes["axes"] = sum(d * d for d in whole)
        return tuple(sizes[dim.value] for dim in state.type.shape)

    # ---- runs that differ ----

    def shaken(self, before: Interpreter, step: int, seed: int) -> Values:
        """What the step leaves when its inputs and the result of every operator are a little off.

        With an odd seed zeros have any sign, operators are those of `OTHERWISE`, and sums are taken in any order;
        with every second of these the changes are of one unit only, or none, and with every fourth there are none, so
        that 1e30 and -1e30 may cancel.
        """
        rng = np.random.default_rng(seed)
        limits = np.finfo(before.dtype)
        units = (0,) if seed % 8 == 7 else (-1, 0, 1) if seed % 4 == 3 else (-ULPS, ULPS)

        def off(x: Array) -> Array:
            by = rng.choice(units, np.shape(x)).astype(x.dtype)
            moved = x + by * (np.abs(x) * limits.eps + limits.smallest_subnormal)
            return np.where((x == 0) | ~np.isfinite(x), x, moved)

        def computed(x: Array) -> Array:
            signs = rng.choice((-1.0, 1.0), np.shape(x)) if seed % 2 else x
            return np.where(x == 0, np.copysign(x, signs), off(x))

        machine = self.copied(before, before.dtype)
        machine.perturb = computed
        with np.errstate(all="ignore"):
            for group, params in enumerate(machine.params):
                machine.params[group] = [off(p) for p in params]
                for states in machine.states[group]:
                    states |= {k: off(v) for k, v in states.items() if isinstance(v, np.ndarray)}
            grads = [[None if g is None else off(g) for g in group] for group in self.grads(step)]
        operators = dict(NUMPY)
        if seed % 2:
            operators |= OTHERWISE | {name: functools.partial(f, rng) for name, f in UNORDERED.items()}
        with mock.patch.dict(NUMPY, {name: _on_host(f, rng) for name, f in operators.items()}):
            self.run(machine, grads)
        return values(machine)

    def others(self, before: Interpreter, step: int) -> Iterator[Values]:
        """What the step leaves in a wider type, and with factors on the host in other places."""
        largest = float(np.finfo(before.dtype).max)
        machine = self.copied(before, WIDER[before.dtype])
        with mock.patch.dict(NUMPY, nan_to_num=lambda x: np.nan_to_num(x, posinf=largest, neginf=-largest)):
            self.run(machine, self.grads(step))
        yield values(machine)
        for program in moved(self.program):
            machine = self.copied(before, before.dtype, program)
            self.run(machine, self.grads(step))
            yield values(machine)


@remembered
def moved(program: Program) -> tuple[Program, ...]:
    """The program simplified, with factors on the host next to their neighbours, and far from them."""
    simple = simplify(program)
    return tuple(
        simple.with_body(
            tuple(replace(a, expr=transform(a.expr, change)) for a in simple.body),
            {name: transform(expr, change) for name, expr in simple.results.items()},
        )
        for change in (_inward, _outward)
    )


def _inward(node: Expr) -> Expr:
    """`s * (y * z)` as `s * y * z`, for s on the host; so for a quotient."""
    match node:
        case Call("mul", (s, Call("mul" | "div" as op, (y, z)))) if s.type.is_host and not y.type.is_host:
            return call(op, call("mul", s, y), z)
    return node


def _outward(node: Expr) -> Expr:
    """`s * y * z` as `s * (y * z)`, for s on the host; so for a quotient."""
    match node:
        case Call("mul" | "div" as op, (Call("mul", (s, y)), z)) if s.type.is_host and not z.type.is_host:
            return call("mul", s, call(op, y, z))
    return node


def _on_host(function: Callable[..., Any], rng: np.random.Generator) -> Callable[..., Any]:
    """An operator whose results on the host, whole numbers aside, are a few units off.

    So is `pow`, of which C libraries and numpy give neighbouring numbers: of 0.999^7 the nearest and the second
    nearest. In `2 / (1 - b) - 1 - 2 * t * b^t / (1 - b^t)`, which for small t nearly cancels, the difference
    grows to 5e-12 of the result. What some operators give on the host is an array without dimensions.
    """

    def run(*args: Any) -> Any:
        found = function(*args)
        if np.ndim(found) or np.asarray(found).dtype.kind != "f" or found == np.floor(found):
            return found
        return found * (1 + rng.integers(-ULPS, ULPS + 1) * np.finfo(np.float64).eps)

    return run


def _sum(rng: np.random.Generator, x: Array, axis: int | None = None) -> Array:
    """A sum that takes number after number, or pairs, then pairs of these, in any order.

    Of 1e30, 1 and -1e30 it is 1 or 0; where there are many small numbers, pairs mostly leave 0.
    """
    if x.size == 0:
        return np.asarray(_REDUCE_SUM(x, axis))
    flat, along = (x.reshape(-1, 1), 0) if axis is None else (x, axis)
    left = rng.permutation(flat, along)
    if rng.integers(2):
        while (size := left.shape[along]) > 1:
            some, others, rest = np.split(left, (size // 2, size // 2 * 2), along)
            left = np.concatenate((some + others, rest), along)
    return np.asarray(np.cumsum(left, along).take([-1], along))


def _mean(rng: np.random.Generator, x: Array, axis: int | None = None) -> Array:
    """The mean by such a sum."""
    return np.asarray(_sum(rng, x, axis) / x.dtype.type(x.size if axis is None else x.shape[axis]))


def _matmul(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """`matmul` by such sums, without fused multiply-add, which lets a product pass that is infinite by itself."""
    order = rng.permutation(len(y))
    return np.asarray(np.sum(x[:, order, np.newaxis] * y[np.newaxis, order, :], axis=1))


def _newton_schulz(rng: np.random.Generator, x: Array, steps: Any) -> Array:
    """`newton_schulz` by such sums: a norm that is a little off scales all of the matrix."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / np.maximum(np.sqrt(_sum(rng, x * x)), x.dtype.type(NEWTON_SCHULZ_EPS))
    for _ in range(int(steps) if np.isfinite(steps) else 0):
        gram = _matmul(rng, x, x.T)
        x = a * x + _matmul(rng, b * gram + c * _matmul(rng, gram, gram), x)
    return x.T if tall else x


def _gram(rng: np.random.Generator, shape: tuple[int, ...], x: Array) -> Array:
    """`gram` by such sums."""
    found = [np.zeros(0, x.dtype)]
    for axis, size in enumerate(shape):
        slices = np.moveaxis(x.reshape(shape), axis, 0).reshape(size, math.prod(shape) // size if size else 1)
        found.append(_matmul(rng, slices, slices.T).ravel())
    return np.concatenate(found).reshape(-1, 1)


def _along_axes(rng: np.random.Generator, shape: tuple[int, ...], family: Array, x: Array) -> Array:
    """`along_axes` by such sums, with the axes in any order."""
    y, ends = x.reshape(shape), np.cumsum([0, *(d * d for d in shape)])
    for axis in rng.permutation(len(shape)):
        size = shape[axis]
        matrix = family[ends[axis] : ends[axis + 1]].reshape(size, size)
        y = np.moveaxis(y, axis, 0)
        others = y.shape[1:]
        y = _matmul(rng, matrix, y.reshape(size, math.prod(others))).reshape(size, *others)
        y = np.moveaxis(y, 0, axis)
    return y.reshape(x.shape)


def _matrix_power(
    rng: np.random.Generator, shape: tuple[int, ...], family: Array, exponent: Any, least: Any
) -> Array:
    """`matrix_power` of a matrix that is a little off, itself a little off: both by units of the largest entry.

    That much every decomposition may be off, in small entries, too.
    """

    def off(family: Array) -> Array:
        end = 0
        moved = family.copy()
        for size in shape:
            matrix = family[end : end + size * size].reshape(size, size)
            by = rng.uniform(-ULPS, ULPS, (size, size)) * np.finfo(family.dtype).eps
            noise = (by + by.T) / 2 * np.max(np.abs(matrix), initial=0.0)
            moved[end : end + size * size] = (matrix + noise.astype(family.dtype)).reshape(-1, 1)
            end += size * size
        return moved

    return off(_MATRIX_POWER(shape, off(family), exponent, least))


def _mod(x: Array, y: Array) -> Array:
    """`mod` as vector libraries have it: nan where the quotient nearly overflows."""
    return np.where(np.abs(x / y) < 1e-8 * np.finfo(np.result_type(x, y)).max, np.mod(x, y), np.nan)


_POW, _REDUCE_SUM, _MATRIX_POWER = NUMPY["pow"], NUMPY["reduce_sum"], NUMPY["matrix_power"]


def _pow(x: Array, y: Array) -> Array:
    """`pow` by roots and reciprocals, as libraries take some exponents."""
    special = [(-2, 1 / (x * x)), (0.5, np.sqrt(x)), (-0.5, 1 / np.sqrt(x))]
    return np.asarray(np.select([y == e for e, _ in special], [r for _, r in special], _POW(x, y)))


#: What operators may give instead: torch divides by a number and a number by a tensor with a reciprocal.
OTHERWISE = {"mod": _mod, "pow": _pow, "div": lambda x, y: x * (1 / y)}
#: Operators that leave open in which order they add. They take a generator first.
UNORDERED = {
    **{"reduce_sum": _sum, "reduce_mean": _mean, "matmul": _matmul, "newton_schulz": _newton_schulz},
    **{"gram": _gram, "along_axes": _along_axes, "matrix_power": _matrix_power},
}


def _numpy(x: torch.Tensor) -> Array:
    return np.asarray(x.detach().double().numpy())


def values(machine: Interpreter) -> Values:
    """What an interpreter keeps."""
    found: Values = {}
    for group, params in enumerate(machine.params):
        for key, value in machine.group_states[group].items():
            found[key, group, None] = np.ravel(np.asarray(value))
        for index, p in enumerate(params):
            found["p", group, index] = p.ravel()
            for key, value in machine.states[group][index].items():
                found[key, group, index] = np.ravel(np.asarray(value))
    return found


# ---- compiled programs --------------------------------------------------------------------------------------


class Compiled:
    """An optimizer made in one way, on a problem."""

    def __init__(self, way: Way, program: Program, problem: Problem) -> None:
        self.way, self.program, self.problem = way, program, problem
        # autograd may follow into a parameter only if nobody has asked for its gradient
        follows = not way.flags.get("differentiable", False)
        self.params = [
            [_like(p, way.device).requires_grad_(follows) for p in group] for group in problem.params
        ]
        groups = [{"params": p, **h} for p, h in zip(self.params, problem.hypers, strict=True)]
        flags: dict[str, Any] = {**way.flags, "maximize": problem.maximize}
        cls = way.build(program)
        if "seed" in inspect.signature(cls).parameters:
            flags["seed"] = problem.seed
        self.optimizer = cls(groups, **flags)

    def step(self, step: int) -> None:
        """One step. Raises Mismatch if a gradient is changed."""
        given: list[tuple[torch.Tensor, torch.Tensor]] = []
        for group, rate in enumerate(self.problem.rates.get(step, ())):
            self.optimizer.param_groups[group]["lr"] = rate
        for params, grads in zip(self.params, self.problem.grads[step], strict=True):
            for p, g in zip(params, grads, strict=True):
                p.grad = None if g is None else _like(g, self.way.device)
                if g is not None:
                    given.append((p.grad, g))  # type: ignore[arg-type]
        grads = [p.grad for group in self.params for p in group]
        first = next((g.reshape(-1)[0] for g in grads if g is not None and g.numel()), 0.5)
        inputs = {
            state.key: [None if g is None else _like(_flipped(g), self.way.device) for g in grads]
            if state.type.is_element
            else first
            for state in self.program.inputs
        }
        with _threads(self.way.threads or torch.get_num_threads()):
            self.optimizer.step(**({"inputs": inputs} if inputs else {}))
        for held, g in given:
            if not torch.equal(held.cpu().nan_to_num(7.0), g.nan_to_num(7.0)):
                raise Mismatch("the step changed a gradient")

    def tensors(self) -> dict[Place, torch.Tensor]:
        """What the optimizer keeps, by place."""
        found: dict[Place, torch.Tensor] = {}
        for number, (group, params) in enumerate(zip(self.optimizer.param_groups, self.params, strict=True)):
            for state in self.program.states:
                if state.type.level is Level.GROUP and isinstance(group.get(state.key), torch.Tensor):
                    found[state.key, number, None] = group[state.key]
            for index, p in enumerate(params):
                found["p", number, index] = p
                for state in self.program.states:
                    if state.key in self.optimizer.state.get(p, {}):
                        found[state.key, number, index] = self.optimizer.state[p][state.key]
        return found

    def restore(self, new: Values) -> None:
        """Puts numbers into the tensors that the optimizer keeps."""
        with torch.no_grad():
            for place, tensor in self.tensors().items():
                if place in new:
                    tensor.copy_(torch.from_numpy(new[place].astype(np.float64)).reshape(tensor.shape))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sets how many threads torch takes."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def _like(x: torch.Tensor, device: str) -> torch.Tensor:
    """A copy of `x` on `device` that has its strides."""
    size = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    copy = torch.zeros(size, dtype=x.dtype, device=device).as_strided(x.shape, x.stride())
    copy.copy_(x)
    return copy.detach()


# ---- comparison ---------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """How many numbers were checked, and how: equal to a few units, within the spread of a tight or of a wide one,
    or not at all because the perturbed runs disagree about being finite. `odd` counts infinities and nans.
    """

    close: int = 0
    tight: int = 0
    wide: int = 0
    unclear: int = 0
    odd: int = 0

    def __add__(self, other: Tally) -> Tally:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Tally(*(a + b for a, b in pairs))

    @property
    def share(self) -> float:
        """Of the finite numbers, the share that was checked tightly."""
        finite = self.close + self.tight + self.wide + self.unclear
        return (self.close + self.tight) / max(finite, 1)


def run(program: Program, problem: Problem, ways: Sequence[Way], rng: np.random.Generator) -> Tally:
    """Compares all ways with the interpreter after each step of a problem. Raises Mismatch."""
    reference = Reference(program, problem)
    compiled = [Compiled(way, program, problem) for way in ways]
    tally = Tally()
    for step in range(len(problem.grads)):
        reference.begin(step)
        before = values(reference.machine)
        runs = Runs(reference, step)
        reference.run(reference.machine, reference.grads(step))
        after = values(reference.machine)
        for one in compiled:
            one.step(step)
            tally += compare(one, step, before, after, runs)
        # what is no number any more would stay so: at times it begins anew
        if rng.random() < 0.7:
            hosts = {state.key for state in program.states if state.type.is_host}
            after = {
                # what the parameters had in common, they have in common
                place: _healed(x, np.full(x.shape, 0.5) if place[0] in hosts else rng.normal(size=x.shape))
                for place, x in after.items()
            }
        reference.restore(reference.machine, after)
        settled = values(reference.machine)
        for one in compiled:
            one.restore(settled)
    return tally


def _healed(x: Array, instead: Array) -> Array:
    return np.where(np.isfinite(x) & (np.abs(x) < 1e6), x, instead).astype(x.dtype)


class Runs:
    """The other runs of a step, made when they are first asked for."""

    def __init__(self, reference: Reference, step: int) -> None:
        self.reference, self.step = reference, step
        self.before = reference.copied(reference.machine, reference.machine.dtype)
        self.made: list[Values] = []

    def get(self, count: int) -> list[Values]:
        """At least `count` runs."""
        if not self.made:
            self.made = list(self.reference.others(self.before, self.step))
        while len(self.made) < count:
            self.made.append(self.reference.shaken(self.before, self.step, len(self.made)))
        return self.made


def compare(one: Compiled, step: int, before: Values, after: Values, runs: Runs) -> Tally:
    """Holds what an optimizer keeps after a step against what the interpreter keeps."""
    tally = Tally()
    tensors = one.tensors()
    for place, want in after.items():
        where = f"{one.way.name}, step {step + 1}: {place[0]} of group {place[1]}, parameter {place[2]}"
        if place not in tensors:
            # a state that no branch uses is not there; then nothing happens to it
            if place in before and not np.array_equal(before[place], want, equal_nan=True):
                raise Mismatch(f"{where} is missing; it should have become {want}")
            continue
        tensor = tensors[place]
        kept = storage(place, one.program, one.problem.dtype)
        if tensor.dtype != kept:
            raise Mismatch(f"{where} is kept as {tensor.dtype}, not {kept}")
        got = _numpy(tensor.cpu()).ravel()
        if got.shape != want.shape:
            raise Mismatch(f"{where} has {got.size} numbers, not {want.size}")
        for count in RUNS:
            found = _compare(got, want.astype(np.float64), kept, lambda n=count, x=place: _of(runs.get(n), x))
            if isinstance(found, Tally):
                break
        else:
            raise Mismatch(f"{where}, {found}")
        tally += found
    return tally


def _of(runs: Sequence[Values], place: Place) -> Array:
    return np.array([run[place].astype(np.longdouble) for run in runs])


def _compare(got: Array, want: Array, kept: torch.dtype, again: Callable[[], Array]) -> Tally | str:
    """How `got` was checked, or what is wrong with it. `again` gives what other runs have in place of `want`."""
    limits = np.finfo(np.float64 if kept is torch.float64 else np.float32)
    with np.errstate(all="ignore"):
        allowed = ULPS * (float(limits.eps) * np.abs(want) + float(limits.smallest_subnormal))
        close = _between(got, want, allowed, kept)
        odd = ~np.isfinite(want)
        if close.all():
            return Tally(close=int((~odd).sum()), odd=int(odd.sum()))
        others = again()
        # a number that is finite in a wider type only is infinite
        others = np.where(np.abs(others) > float(limits.max), np.sign(others) * np.inf, others)
        unclear = (np.isfinite(others) == odd).any(0) | (odd & ~_same(others, want)).any(0)
        spread = np.where(odd, 0.0, np.abs(others - want).max(0).astype(np.float64))
        allowed = allowed + FACTOR * np.nan_to_num(spread)
        bad = ~(_between(got, want, allowed, kept) | unclear)
        if bad.any():
            at = int(np.argmax(bad))
            return (
                f"entry {at} of {got.size}: {got[at]!r} should be {want[at]!r}, give or take {allowed[at]:.3g}; "
                f"other runs gave {others[:6, at].astype(float)}"
            )
        tight = allowed <= TIGHT * np.abs(want)
        rest = ~close & ~odd & ~unclear
        return Tally(
            close=int((close & ~odd).sum()),
            tight=int((rest & tight).sum()),
            wide=int((rest & ~tight).sum()),
            unclear=int((unclear & ~close).sum()),
            odd=int((odd & (close | ~unclear)).sum()),
        )


def _same(x: Array, y: Array) -> Array:
    return np.asarray((x == y) | (np.isnan(x) & np.isnan(y)))


def _between(got: Array, want: Array, allowed: Array, kept: torch.dtype) -> Array:
    """Whether numbers are what is kept of something within `allowed` of `want`."""
    low, high = rounded(want - allowed, kept), rounded(want + allowed, kept)
    return np.asarray(_same(got, rounded(want, kept)) | ((low <= got) & (got <= high)))
