"""The interpreter: a small, slow program that DEFINES what a typed program means.

Every backend and every pass is held to it. How it sees things:

- A parameter of any shape is an R x C matrix: R is its first dimension (1 if it has none), C the product of
  the others. Values per element, row and column are arrays of shape (R, C), (R, 1) and (1, C); those per
  tensor and per group have shape (1, 1). A family of matrices, one for each axis of the parameter, is an array of
  shape (A, 1), A the sum of the squares of all dimensions: one matrix behind the other. All of them are in
  `dtype` (float64 is the definition; in float32 every operation is done in float32), truth values in
  `np.bool_`.
- Host values are float64 numbers whatever `dtype` is, ints among them; they are rounded to `dtype` where they
  meet an array. Choices are strings, lists float64 arrays.
- A parameter's own step count `t` is 1 when it first gets a gradient. All its states, used or not, are
  initialised then, with its `p` and `g` of that step. A group-level state is initialised by the first
  parameter of the group that takes part in any step.
- An assignment runs only if its guard holds, and a `select` on a host condition evaluates only the side that
  is taken. Nothing else is skipped.
- At a joint reduction a tensor waits. Whenever all wait (or are done), the lowest site at which one waits is
  served: the tensors that wait there (of one group, for `over=group`) are reduced together. Partial results
  per tensor are in `dtype` and meet in float64, in the order of the parameters. Empty tensors contribute
  nothing.
- All tensors read a group-level state as it was before the step. What is kept is the value of the tensor with
  the largest `t`, the first one among ties, of those whose branches assign that state.
- Nothing is stored before all tensors have finished the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optdsl.core.ops import CORE, Rule
from optdsl.core.record import field, record
from optdsl.core.types import Dim, Kind, Level, Shape, Type, element
from optdsl.ir.expr import Call, Const, Expr, Var, is_joint, is_random
from optdsl.ir.numpy_ops import NUMPY, Array
from optdsl.ir.program import Program, State

#: A host value (np.float64, bool or str), or an array with two dimensions.
Value: TypeAlias = Any

_AXES: dict[str, int | None] = {"tensor": None, "rows": 1, "cols": 0}


class Uncomputed(Exception):
    """A value is read that no assignment has computed in this step: the program is not valid."""


@record(frozen=False)
class Group:
    """A parameter group. `hypers` holds constructor arguments (a tuple for one with parts); those not given
    have their defaults.
    """

    params: Sequence[npt.ArrayLike]
    hypers: dict[str, Any] = field(default_factory=dict)


@record
class _Joint:
    """What a tensor waits for: the joint reduction `op` of the values `x` of all who come to `site`.

    `more` are its other operands, of which those of the first tensor count.
    """

    op: str
    over: str
    site: int
    x: Array
    more: tuple[Value, ...] = ()


class Interpreter:
    """Runs a program on numpy arrays.

    `params`, `states` and `steps` are lists of lists: by group, by parameter. A parameter keeps its shape,
    and so does a state per element; with a delay of n there are n of these in one array, and step t has to do
    with the one at (t - 1) mod n; one per row, per column or with matrices of its own is two-dimensional,
    one per tensor or group is 0-dim, one of the host is a number. States are in dictionaries by their keys,
    those of groups in `group_states`. `hypers` holds the constructor arguments of each group. All these may
    be changed between steps.

    `perturb` is applied to the result of every operator above the host, draws excepted: a test that makes
    small changes there learns how far rounding may carry.
    """

    def __init__(
        self,
        program: Program,
        groups: Sequence[Group],
        dtype: npt.DTypeLike = np.float64,
        seed: int = 0,
        perturb: Callable[[Array], Array] | None = None,
    ) -> None:
        self.program = program
        self.dtype = np.dtype(dtype)
        self.seed = seed
        self.perturb = perturb
        self.hypers = [dict(group.hypers) for group in groups]
        with np.errstate(all="ignore"):
            self.params = [[np.array(p, self.dtype) for p in group.params] for group in groups]
        self.states: list[list[dict[str, Value]]] = [[{} for _ in group.params] for group in groups]
        self.steps = [[0 for _ in group.params] for group in groups]
        self.group_states: list[dict[str, Value]] = [{} for _ in groups]

    def step(
        self,
        grads: Sequence[Sequence[npt.ArrayLike | None]],
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """One step. `grads` holds a gradient for each parameter of each group; None leaves it untouched.

        `inputs` holds the same of each input, by its key, or a number of one at the level of groups. One that is not
        given must not be read. Raises Uncomputed.
        """
        numbers = {s.key for s in self.program.inputs if not s.type.is_element}
        with np.errstate(all="ignore"):
            runs: list[_TensorStep] = []
            index = 0
            for group, (params, given) in enumerate(zip(self.params, grads, strict=True)):
                fresh: dict[str, Value] = {}
                for number, (_, grad) in enumerate(zip(params, given, strict=True)):
                    if grad is not None:
                        g = np.asarray(grad, self.dtype)
                        given_here = {
                            key: np.asarray(x, self.dtype)
                            for key, found in (inputs or {}).items()
                            if (x := found if key in numbers else found[group][number]) is not None
                        }
                        runs.append(_TensorStep(self, group, number, index, g, fresh, given_here))
                    index += 1
            _drive(runs)
            for run in runs:
                run.store()
            for group, kept in enumerate(self.group_states):
                members = [run for run in runs if run.group == group]
                for state in self.program.kept:
                    if state.type.level is Level.GROUP and members:
                        writers = [run for run in members if run.assigns(state)] or members
                        max(writers, key=lambda run: run.t).keep(state, kept)

    def view(self) -> list[list[Array]]:
        """What stands for the parameters while the model is evaluated, as `eval:` says; changes nothing.

        That of a parameter which never took a step is the parameter itself.
        """
        found = [[p.copy() for p in params] for params in self.params]
        program = self.program.view
        if program is None:
            return found
        steps, self.program = self.program, program
        try:
            with np.errstate(all="ignore"):
                for group, params in enumerate(self.params):
                    for number, p in enumerate(params):
                        if self.steps[group][number]:
                            run = _TensorStep(self, group, number, 0, None, {}, {})
                            _drive([run])
                            new = run.conform(run.results.get("p", run.environment["p"]), element())
                            found[group][number] = new.reshape(p.shape).copy()
        finally:
            self.program = steps
        return found


def hyper_values(program: Program, given: Mapping[str, Any]) -> dict[str, Value]:
    """The value of every hyperparameter. `given` are constructor arguments. Raises ValueError."""
    parts: dict[str, list[str]] = {}
    for hyper in program.hypers:
        parts.setdefault(hyper.argument, []).append(hyper.name)
    if unknown := sorted(set(given) - set(parts)):
        raise ValueError(f"{program.name} takes no argument {unknown[0]}")
    values: dict[str, Value] = {}
    for hyper in program.hypers:
        value = hyper.default
        if hyper.argument in given:
            value = given[hyper.argument]
            if hyper.is_part:
                names = parts[hyper.argument]
                if len(given[hyper.argument]) != len(names):
                    raise ValueError(f"{hyper.argument} is a tuple of {len(names)}")
                value = given[hyper.argument][names.index(hyper.name)]
        values[hyper.name] = _on_host(value, hyper.kind)
    return values


def _on_host(value: Any, kind: Kind) -> Value:
    """A number, truth value, string or list of numbers as a host value.

    An int is a float64 without -0; beyond all floats it is an infinity.
    """
    if kind is Kind.CHOICE:
        return str(value)
    if kind is Kind.LIST:
        return np.array(value, np.float64)
    if kind is Kind.BOOL:
        return bool(value)
    try:
        return np.float64(value) + (0.0 if kind is Kind.INT else -0.0)
    except OverflowError:
        return np.float64(math.inf if value > 0 else -math.inf)


def _is_lazy(node: Expr) -> bool:
    """True for a choice on a host condition, of which only the taken side is evaluated."""
    return isinstance(node, Call) and node.op == "select" and node.args[0].type.is_host


class _TensorStep:
    """One step of one parameter. `t` counts it, `index` is the parameter's place in the optimizer.

    `fresh` is shared by the members of a group: the group-level states that are new in this step. `inputs` are
    given beside the gradient. Between two steps there is no gradient, and `t` counts the last step.
    """

    def __init__(
        self,
        owner: Interpreter,
        group: int,
        number: int,
        index: int,
        g: Array | None,
        fresh: dict[str, Value],
        inputs: Mapping[str, Array],
    ) -> None:
        self.owner, self.group, self.number, self.index, self.fresh = owner, group, number, index, fresh
        self.p: Array = owner.params[group][number]
        elements = {s.key: inputs.get(s.key) for s in owner.program.inputs if s.type.is_element}
        for what, x in {"gradient": g, **elements}.items():
            if x is not None and x.shape != self.p.shape:
                raise ValueError(f"the {what} has shape {x.shape}, its parameter {self.p.shape}")
        self.before: int = owner.steps[group][number]
        self.t = self.before + (g is not None)
        shape = self.p.shape
        rows, cols = shape[0] if shape else 1, math.prod(shape[1:])
        self.sizes = {Dim.ONE: 1, Dim.R: rows, Dim.C: cols, Dim.A: sum(d * d for d in shape)}
        facts = {"t": self.t, "ndim": len(shape), "numel": self.p.size, "rows": rows, "cols": cols}
        self.environment: dict[str, Value] = {
            "p": self.p.reshape(rows, cols),
            **({} if g is None else {"g": g.reshape(rows, cols)}),
            "first_step": self.t == 1,
            **{name: np.float64(value) for name, value in facts.items()},
            **hyper_values(owner.program, owner.hypers[group]),
        }
        self.definitions = {assign.name: assign.expr for assign in owner.program.body}
        self.values: dict[int, Value] = {}
        self.results: dict[str, Value] = {}
        self.inputs = inputs
        self.coroutine = self.run()

    def run(self) -> Generator[_Joint, Array, None]:
        """The whole step: yields the joint reductions it waits for, is sent their values."""
        program, environment = self.owner.program, self.environment
        for state in program.states:
            held = self.inputs if state.given else self.held(state)
            if state.key in held:
                value = held[state.key]
                if state.delay is not None:
                    value = value[self.before % len(value)]
                value = value if state.type.is_host else self.matrix(value, state.type)
                environment[state.name] = self.conform(value, state.type)
            elif state.init is not None:
                value = self.conform((yield from self.evaluate(state.init)), state.type)
                if state.type.level is Level.GROUP:
                    value = self.fresh.setdefault(state.key, value)
                environment[state.name] = value
        for assign in program.body:
            for condition, wanted in assign.guard:
                if (yield from self.evaluate(condition)) != wanted:
                    break
            else:
                environment[assign.name] = yield from self.evaluate(assign.expr)
        for name, expr in program.results.items():
            self.results[name] = yield from self.evaluate(expr)

    # ---- expressions ------------------------------------------------------------------------------------

    def evaluate(self, root: Expr) -> Generator[_Joint, Array, Value]:
        """The value of an expression; each node is evaluated once per step, operands before users."""
        values, stack = self.values, [root]
        while stack:
            node = stack[-1]
            missing = [arg for arg in self.operands(node) if id(arg) not in values]
            if missing and id(node) not in values:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            if id(node) in values:
                continue
            if is_joint(node):
                values[id(node)] = self.perturbed(node, (yield self.request(node)))
            else:
                values[id(node)] = self.perturbed(node, self.apply(node))
        return values[id(root)]

    def operands(self, node: Expr) -> tuple[Expr, ...]:
        """What must be evaluated before `node`, as far as is known now."""
        if not _is_lazy(node):
            return node.args
        if id(node.args[0]) not in self.values:
            return node.args[:1]
        return (self.taken(node),)

    def taken(self, node: Expr) -> Expr:
        """The side of a lazy choice that its condition, which is evaluated already, selects."""
        condition, then, other = node.args
        return then if self.values[id(condition)] else other

    def apply(self, node: Expr) -> Value:
        """The value of a node whose operands are evaluated."""
        values = self.values
        if isinstance(node, Const):
            return _on_host(node.value, node.type.kind)
        if isinstance(node, Var):
            if node.name not in self.environment:
                raise Uncomputed(f"{self.owner.program.name}: `{node.name}` is read before it has a value")
            return self.environment[node.name]
        if _is_lazy(node):
            return self.conform(values[id(self.taken(node))], node.type)
        function, rule = NUMPY[node.op], CORE[node.op].rule
        args = [values[id(arg)] for arg in node.args]
        if rule is Rule.RANDOM:
            size = self.p.size
            spread = [np.broadcast_to(arg, self.shape(node.type.shape)).reshape(size) for arg in args]
            drawn = function(self.owner.seed, self.t, self.index, node.attr, size, *spread)
            return self.conform(drawn.reshape(self.shape(node.type.shape)), node.type)
        if not node.type.is_host:
            args = [self.rounded(arg) for arg in args]
        if rule is Rule.REDUCE and node.attr == "filter":
            return self.conform(self.over_filters(function, *args), node.type)
        if rule is Rule.REDUCE:
            args.append(_AXES[str(node.attr)])
        elif rule is Rule.AXES:
            args = [self.p.shape, *args]
        return self.conform(function(*args), node.type)

    def over_filters(self, function: Callable[..., Array], x: Array, *more: Value) -> Array:
        """A reduction over the dimensions behind the first two; every entry gets that of its own."""
        if not x.size:
            return x
        filters = x.reshape(-1, math.prod(self.p.shape[2:]))
        return np.broadcast_to(function(filters, *more, 1), filters.shape).reshape(x.shape)

    def request(self, node: Expr) -> _Joint:
        """The joint reduction `node`."""
        assert isinstance(node, Call)
        assert node.site is not None
        x, *more = (self.values[id(arg)] for arg in node.args)
        return _Joint(node.op, str(node.attr), node.site, x, tuple(more))

    def perturbed(self, node: Expr, value: Value) -> Value:
        """`value`, changed if a test wants so."""
        perturb = self.owner.perturb
        inexact = isinstance(node, Call) and not (_is_lazy(node) or is_random(node) or node.type.is_host)
        if perturb is None or not inexact or node.type.kind is Kind.BOOL:
            return value
        return self.conform(perturb(value), node.type)

    def shape(self, shape: Shape) -> tuple[int, int]:
        """A symbolic shape in numbers."""
        return self.sizes[shape[0]], self.sizes[shape[1]]

    def rounded(self, value: Value) -> Array:
        """A host value or an array, as operators above the host take it."""
        array = np.asarray(value)
        return array if array.dtype == np.bool_ else array.astype(self.owner.dtype, copy=False)

    def conform(self, value: Value, type_: Type) -> Value:
        """`value` as a value of this type: its kind, its float type, its shape."""
        if type_.is_host:
            return _on_host(value, type_.kind)
        dtype = np.dtype(np.bool_) if type_.kind is Kind.BOOL else self.owner.dtype
        return np.broadcast_to(np.asarray(value).astype(dtype), self.shape(type_.shape))

    # ---- states -----------------------------------------------------------------------------------------

    def held(self, state: State) -> dict[str, Value]:
        """The dictionary in which a state is kept."""
        owner = self.owner
        if state.type.level is Level.GROUP:
            return owner.group_states[self.group]
        return owner.states[self.group][self.number]

    def matrix(self, held: npt.ArrayLike, type_: Type) -> Array:
        """An array as it is kept between steps, in its two-dimensional form."""
        return np.asarray(held).reshape(self.shape(type_.shape))

    def store(self) -> None:
        """Keeps what the step leaves behind, but for the states of the group."""
        owner = self.owner
        owner.steps[self.group][self.number] = self.t
        for state in owner.program.kept:
            if state.type.level is not Level.GROUP:
                self.keep(state, self.held(state))
        if "p" in self.results:
            new = self.conform(self.results["p"], element())
            owner.params[self.group][self.number] = new.reshape(self.p.shape).copy()

    def keep(self, state: State, kept: dict[str, Value]) -> None:
        """Puts what the step leaves in a state, if it has a value at all, into `kept`."""
        if state.name not in self.results and state.name not in self.environment:
            return
        value = self.results.get(state.name, self.environment.get(state.name))
        value = self.conform(value, state.type)
        if not state.type.is_host:
            shape = self.p.shape if state.type.is_element else value.shape
            value = value.reshape(shape if state.type.level is Level.ARRAY else ()).copy()
        if state.delay is not None:
            count = int(self.environment[state.delay]) if isinstance(state.delay, str) else state.delay
            first = self.environment[state.name].reshape(self.p.shape)
            ring = np.stack(kept.get(state.key, [first] * count))
            ring[self.before % count] = value
            value = ring
        kept[state.key] = value

    def assigns(self, state: State) -> bool:
        """True when the branches that were taken give `state` a value, even if it is the same number."""
        node: Expr | None = self.owner.program.results.get(state.name)
        while node is not None:
            if _is_lazy(node):
                node = self.taken(node)
            elif not isinstance(node, Var):
                return True
            elif node.name == state.name:
                return False
            else:
                node = self.definitions.get(node.name)
                if node is None or not (_is_lazy(node) or isinstance(node, Var)):
                    return True
        return False


def _drive(runs: Sequence[_TensorStep]) -> None:
    """Runs all tensors to the end of the step, from one joint reduction to the next."""
    waiting: dict[int, _Joint] = {}

    def resume(number: int, value: Array | None) -> None:
        try:
            coroutine = runs[number].coroutine
            waiting[number] = next(coroutine) if value is None else coroutine.send(value)
        except StopIteration:
            waiting.pop(number, None)

    for number in range(len(runs)):
        resume(number, None)
    while waiting:
        site = min(request.site for request in waiting.values())
        meetings: dict[int | None, list[int]] = {}
        for number, request in waiting.items():
            if request.site == site:
                meeting = runs[number].group if request.over == "group" else None
                meetings.setdefault(meeting, []).append(number)
        for numbers in meetings.values():
            first = waiting[numbers[0]]
            together = reduce_jointly(first.op, [waiting[number].x for number in numbers], *first.more)
            for number in numbers:
                resume(number, together.astype(runs[number].owner.dtype))


def reduce_jointly(op: str, arrays: Sequence[Array], *more: Value) -> Array:
    """One (1, 1) float64 array for the arrays of several tensors: partial results first, then these.

    `more` are the other operands of `op`.
    """
    if op == "reduce_kth_largest":
        return np.asarray(NUMPY[op](np.concatenate([x.ravel().astype(np.float64) for x in arrays]), *more))
    if op == "reduce_mean":
        return np.asarray(reduce_jointly("reduce_sum", arrays) / sum(x.size for x in arrays))
    partials = [NUMPY[op](x).astype(np.float64) for x in arrays if x.size]
    return np.asarray(NUMPY[op](np.array(partials, np.float64).reshape(1, -1)))
