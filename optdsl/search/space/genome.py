"""The form of a method that a search changes: straight-line statements of one operator each.

A genome means what the typed program means that `express` makes of it; `of_program` goes the other way. Arguments
are names or literal numbers, so that a statement can be taken out, put in or moved without counting anything anew:

    m = mix(beta1, m, g)           x1 = mix("beta1", "m", "g"), and the state m becomes x1
    p = p - lr * sign(m)           x2 = sign("x1"), x3 = mul("lr", x2), x4 = sub("p", x3), and p becomes x4

A name stands for one value (SSA): `m` is what the step before left, `x1` what this one leaves. Everything is plain
strings, numbers and tuples: a genome can be pickled, hashed and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from optdsl.core import types as ty
from optdsl.core.ops import CORE, FACTS, CoreOp, Rule
from optdsl.core.record import record
from optdsl.core.types import STATE_LEVELS, Dim, Kind, Type
from optdsl.ir.expr import Call, Const, Expr, Literal, TypeFault, Var, call, const, var
from optdsl.ir.numpy_ops import NUMPY, Array
from optdsl.ir.program import Assign, Hyper, Program, State

#: What a statement reads: a name, or a number.
Ref: TypeAlias = str | float | int | bool
Make: TypeAlias = Callable[..., Expr]

LR = "lr"


class Fault(Exception):
    """A genome that is not well typed. `what` is the statement or the result that is wrong."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not well typed")
        self.what = what


class Refused(Exception):
    """A program that no genome stands for; the text says what there is in it."""


@record
class Op:
    """An operator of a statement.

    `lower(make, args, over)` is what it means in core operators, `numpy` the same in numpy (reductions take the
    array and its axes).
    """

    name: str
    arity: int
    lower: Callable[[Make, Sequence[Any], str | None], Expr]
    numpy: Callable[..., Any]
    takes: str = "number"
    commutes: bool = False
    reduces: bool = False


def _core(row: CoreOp) -> Op:
    lower = lambda make, args, over: make(row.name, *args, over=over)  # noqa: E731
    commutes = row.name in ("add", "mul", "min", "max", "eq", "ne", "and", "or")
    reduces = row.rule is Rule.REDUCE
    numpy = _REDUCTIONS[row.name] if reduces else _QUICK.get(row.name, NUMPY[row.name])
    return Op(row.name, row.arity, lower, numpy, row.takes, commutes, reduces)


def _mix(w: Any, x: Any, y: Any) -> Any:
    return w * x + (1 - w) * y


def _pow(x: Any, y: Any) -> Any:
    """As the table of numpy has it but for the last place of squares by an exponent that is not a number."""
    return x * x if isinstance(y, int | float) and y == 2 else np.power(x, y)


def _sign(x: Any) -> Any:
    found = np.sign(x)
    return np.where(np.isnan(found), 0.0, found) if np.isnan(np.sum(found)) else found


_QUICK: dict[str, Callable[..., Any]] = {"pow": _pow, "sign": _sign, "div": np.true_divide}
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_sum": lambda x, axis: np.add.reduce(x, axis, keepdims=True),
    "reduce_mean": lambda x, axis: np.add.reduce(x, axis, keepdims=True) / _count(x, axis),
    "reduce_max": lambda x, axis: np.maximum.reduce(x, axis, keepdims=True),
    "reduce_min": lambda x, axis: np.minimum.reduce(x, axis, keepdims=True),
}


def _count(x: Array, axis: tuple[int, ...]) -> int:
    count = 1
    for a in axis:
        count *= x.shape[a]
    return count


def _norm(kind: str) -> Callable[..., Any]:
    return lambda x, axis: np.sqrt(_REDUCTIONS[kind](x * x, axis))


def _lower_norm(kind: str) -> Callable[[Make, Sequence[Any], str | None], Expr]:
    return lambda make, args, over: make("sqrt", make(kind, make("pow", args[0], 2), over=over))


def _lower_mix(make: Make, args: Sequence[Any], over: str | None) -> Expr:
    w, x, y = args
    return make("add", make("mul", w, x), make("mul", make("sub", 1, w), y))


def _usable(row: CoreOp) -> bool:
    return row.rule in (Rule.ELEMENTWISE, Rule.REDUCE, Rule.BROADCAST) and row.name != "reduce_kth_largest"


#: Every operator that a statement may have: core operators, and a few that people think of as one.
OPS: dict[str, Op] = {
    **{row.name: _core(row) for row in CORE.values() if _usable(row)},
    "mix": Op("mix", 3, _lower_mix, _mix),
    "norm": Op("norm", 1, _lower_norm("reduce_sum"), _norm("reduce_sum"), reduces=True),
    "rms": Op("rms", 1, _lower_norm("reduce_mean"), _norm("reduce_mean"), reduces=True),
}
#: Axes of (probe, tensor, row, column) that reductions run along.
AXES = {"tensor": (2, 3), "rows": (3,), "cols": (2,), "group": (1, 2, 3), "all": (1, 2, 3)}


@record
class Statement:
    """`name = op(args)`. `over` is where a reduction ends, or where a broadcast goes."""

    name: str
    op: str
    args: tuple[Ref, ...]
    over: str | None = None


@record
class Slot:
    """A number, vector or tensor kept between steps: at `level` (as the language names it), at first `init`, which is
    a literal, `p`, `g` or a hyperparameter. `key` is its name in a state dict.
    """

    name: str
    level: str
    init: Ref
    key: str = ""


@record
class Genome:
    """One method. `results` says what the step leaves in `p` and in each state that it changes."""

    hypers: tuple[Hyper, ...]
    states: tuple[Slot, ...]
    body: tuple[Statement, ...]
    results: tuple[tuple[str, Ref], ...]

    @property
    def leaves(self) -> dict[str, Ref]:
        """`results` by name."""
        return dict(self.results)

    def with_values(self, values: Mapping[str, float]) -> Genome:
        """The same with other defaults of hyperparameters, such as have been found by tuning."""
        hypers = tuple(replace(h, default=values.get(h.name, h.one)) for h in self.hypers)
        return replace(self, hypers=hypers)

    def bytes_per_parameter(self) -> int:
        """Memory of the states per element, in float32."""
        return 4 * sum(state.level == "element" for state in self.states)

    def taken(self) -> set[str]:
        """Every name that is in use."""
        names = {"p", "g", *FACTS, *(h.name for h in self.hypers), *(s.name for s in self.states)}
        return names | {s.name for s in self.body}

    def __str__(self) -> str:
        lines = [f"{h.name} = {h.one!r}" for h in self.hypers]
        lines += [f"state {s.name} [{s.level}] = {s.init}" for s in self.states]
        for s in self.body:
            over = f", over={s.over}" if s.over else ""
            lines.append(f"{s.name} = {s.op}({', '.join(map(str, s.args))}{over})")
        return "\n".join([*lines, *(f"leaves {name} = {ref}" for name, ref in self.results)])


# ---- types ------------------------------------------------------------------------------------------------

_FIXED: dict[str, Type] = {
    "p": ty.element(),
    "g": ty.element(),
    **{name: ty.host(kind) for name, kind in FACTS.items()},
}
_LITERAL = {bool: ty.const(Kind.BOOL), int: ty.const(Kind.INT), float: ty.const(Kind.FLOAT)}
_SLOT = {name: Type(Kind.FLOAT, *place) for name, place in STATE_LEVELS.items() if "," not in name}


@cache
def result_type(op: str, over: str | None, types: tuple[Type, ...]) -> Type | None:
    """The type of `op` on values of these types, or None where it does not take them.

    A truth value is no number here: where it counts as one, a `select` says so.
    """
    row = OPS[op]
    if len(types) != row.arity:
        return None
    kinds = [t.kind for t in types]
    if row.takes == "number" and Kind.BOOL in kinds:
        return None
    values = kinds[1:] if op == "select" else kinds
    if row.takes == "any" and Kind.BOOL in values and set(values) != {Kind.BOOL}:
        return None

    def make(name: str, *args: Any, over: str | None = None) -> Expr:
        return call(name, *args, over=over, site=0 if over in ("group", "all") else None)

    try:
        made = row.lower(make, [var(f"a{n}", t) for n, t in enumerate(types)], over)
    except TypeFault:
        return None
    return made.type


def inputs(genome: Genome) -> dict[str, Type]:
    """The types of what a step starts from."""
    found = dict(_FIXED)
    found.update((h.name, ty.host(h.kind)) for h in genome.hypers)
    found.update((s.name, _SLOT[s.level]) for s in genome.states)
    return found


def type_of(ref: Ref, types: Mapping[str, Type]) -> Type:
    """The type of an argument."""
    return types[ref] if isinstance(ref, str) else _LITERAL[type(ref)]


def typed(genome: Genome) -> dict[str, Type]:
    """The type of every value. Raises Fault."""
    types = inputs(genome)
    for s in genome.body:
        try:
            found = result_type(s.op, s.over, tuple(type_of(a, types) for a in s.args))
        except KeyError:
            raise Fault(s.name) from None
        if found is None or s.name in types:
            raise Fault(s.name)
        types[s.name] = found
    targets = {"p": _FIXED["p"], **{s.name: _SLOT[s.level] for s in genome.states}}
    for name, ref in genome.results:
        known = not isinstance(ref, str) or ref in types
        if name not in targets or not known or not fits(type_of(ref, types), targets[name]):
            raise Fault(name)
    return types


def fits(found: Type, target: Type) -> bool:
    """True where a value may be kept in a state of the type `target`."""
    return (
        found.kind is not Kind.BOOL
        and found.level <= target.level
        and ty.broadcasts_into(found.shape, target.shape)
    )


# ---- genome to program ------------------------------------------------------------------------------------


def express(genome: Genome, name: str = "Found", doc: str = "", cite: str = "") -> Program:
    """The typed program that a genome stands for: branch-free, an assignment per statement.

    Its hyperparameters are those of the genome, `lr` first.
    """
    values: dict[str, Expr] = {name: var(name, type_) for name, type_ in inputs(genome).items()}
    sites = iter(range(len(genome.body)))

    def make(op: str, *args: Any, over: str | None = None) -> Expr:
        joint = over in ("group", "all") and OPS[op].reduces
        return call(op, *args, over=over, site=next(sites) if joint else None)

    def value(ref: Ref) -> Expr:
        return values[ref] if isinstance(ref, str) else const(ref)

    body = []
    for s in genome.body:
        assign = Assign(f"{s.name}.1", s.name, OPS[s.op].lower(make, list(map(value, s.args)), s.over))
        body.append(assign)
        values[s.name] = assign.var
    states = tuple(State(s.name, s.key or s.name, _SLOT[s.level], value(s.init)) for s in genome.states)
    results = {name: value(ref) for name, ref in genome.results}
    return Program(name, doc, cite, genome.hypers, states, tuple(body), results)


# ---- program to genome ------------------------------------------------------------------------------------


def of_program(program: Program) -> Genome:
    """The genome of a program without branches above the host. Raises Refused with what stands in the way.

    Values are pure, so that a guard on a host value is only left out.
    """
    refuse(program)
    for node in program.nodes():
        _look(node)
    slots = tuple(map(_slot, program.kept))
    # each its own argument: a search drops, adds and changes them one by one
    numeric = [replace(h, argument=h.name) for h in program.hypers if h.kind.numeric]
    flat = Flat({"p", "g", *FACTS, *(h.name for h in program.hypers), *(s.name for s in slots)})
    flat.names.update((h.name, h.one) for h in program.hypers if isinstance(h.one, bool))
    for assign in program.body:
        if assign.guard and not assign.expr.type.is_host:
            raise Refused("has branches that change from step to step")
        flat.names[assign.name] = flat.ref(assign.expr)
    results = [(name, flat.ref(expr)) for name, expr in program.results.items()]
    numeric.sort(key=lambda h: h.name != LR)
    return Genome(tuple(numeric), slots, tuple(flat.body), tuple(results))


def refuse(program: Program) -> None:
    """Raises Refused for what no genome has, whatever the options."""
    if program.inputs:
        raise Refused(f"takes `{program.inputs[0].name}` beside the gradient")
    if listed := [h.name for h in program.hypers if h.kind is Kind.LIST]:
        raise Refused(f"has a list, `{listed[0]}`")
    if program.view is not None:
        raise Refused("evaluates at other weights than it trains")
    if all(h.name != LR or h.kind is not Kind.FLOAT for h in program.hypers):
        raise Refused("has no learning rate `lr`")
    for state in program.kept:
        if state.delay is not None or state.stored is not None:
            raise Refused(f"keeps `{state.name}` with a delay or in a format of its own")


def _whole(shape: ty.Shape) -> bool:
    """True for the shapes of a value per element, row, column or tensor."""
    return shape[0] is not Dim.C and shape[1] is not Dim.R


def _look(node: Expr) -> None:
    """Raises Refused for a node that no statement stands for."""
    if not isinstance(node, Call):
        return
    rule = CORE[node.op].rule
    if rule is Rule.RANDOM:
        raise Refused("draws random numbers")
    if rule in (Rule.MATMUL, Rule.TRANSPOSE, Rule.MATRIX, Rule.AXES) or not _whole(node.type.shape):
        raise Refused("works on matrices")
    if node.op not in OPS:
        raise Refused("ranks entries")
    if node.attr == "filter":
        raise Refused("reduces over filters")
    if node.op == "select" and not node.type.is_host and node.args[0].type.is_host:
        raise Refused("has branches that change from step to step")


def _slot(state: State) -> Slot:
    level = state.type.level_name
    if "," in level:
        raise Refused("works on matrices")
    match state.init:
        case None:
            init: Ref = 0.0  # it is assigned before it is read
        case Const(value):
            init = _number(value)
        case Var(name):
            init = name
        case _:
            raise Refused(f"begins `{state.name}` with more than a number, `p`, `g` or an option")
    return Slot(state.name, level, init, state.key)


def _number(value: Literal) -> Ref:
    if isinstance(value, str):
        raise Refused(f"asks for the choice {value!r}")
    return value


class Flat:
    """Expressions as statements, each operator once. `names` says what names of the program stand for now."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.body: list[Statement] = []
        self.refs: dict[Expr, Ref] = {}
        self.names: dict[str, Ref] = {}
        self.taken = set(taken)

    def ref(self, root: Expr) -> Ref:
        """What stands for an expression. Raises Refused."""
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.refs:
                stack.pop()
                continue
            match node:
                case Const(value):
                    self.refs[node] = _number(value)
                case Var(name):
                    if node.type.kind is Kind.CHOICE:
                        raise Refused(f"asks for the choice `{name}`")
                    self.refs[node] = self.names.get(name, name)
                case Call():
                    op, args, over = _recognised(node)
                    missing = [a for a in args if a not in self.refs]
                    if missing:
                        stack.extend(reversed(missing))
                        continue
                    self.refs[node] = self.add(op, tuple(self.refs[a] for a in args), over)
        return self.refs[root]

    def add(self, op: str, args: tuple[Ref, ...], over: str | None) -> str:
        name = fresh("x", self.taken)
        self.taken.add(name)
        self.body.append(Statement(name, op, args, over))
        return name


def fresh(stem: str, taken: Iterable[str]) -> str:
    """The first of `stem1`, `stem2`... that is not taken."""
    number = 1
    while f"{stem}{number}" in taken:
        number += 1
    return f"{stem}{number}"


def _recognised(node: Call) -> tuple[str, tuple[Expr, ...], str | None]:
    """Operator, operands and attribute of a node; of a pattern of several operators, if it is one of those in OPS."""
    over = node.attr if isinstance(node.attr, str) else None
    match node:
        case Call("add", (Call("mul", (w, x)), Call("mul", (Call("sub", (Const(1), v)), y)))) if v is w:
            return "mix", (w, x, y), None
        case Call("add", (Call("mul", (Const(float(a)) as v, x)), Call("mul", (Const(float(b)) as w, y)))):
            # the larger weight first, as for a decay
            if b > a == 1 - b:
                return "mix", (w, y, x), None
            if b == 1 - a:
                return "mix", (v, x, y), None
        case Call(
            "sqrt", (Call("reduce_sum" | "reduce_mean" as kind, (Call("pow", (x, Const(2))),)) as inner,)
        ):
            return ("norm" if kind == "reduce_sum" else "rms"), (x,), str(inner.attr)
    return node.op, node.args, over


def renamed(genome: Genome, names: Mapping[str, str]) -> Genome:
    """`genome` with other names."""

    def new(ref: Ref) -> Ref:
        return names.get(ref, ref) if isinstance(ref, str) else ref

    return Genome(
        tuple(replace(h, name=names.get(h.name, h.name)) for h in genome.hypers),
        tuple(replace(s, name=names.get(s.name, s.name), init=new(s.init)) for s in genome.states),
        tuple(
            Statement(names.get(s.name, s.name), s.op, tuple(map(new, s.args)), s.over) for s in genome.body
        ),
        tuple((names.get(name, name), new(ref)) for name, ref in genome.results),
    )


__all__ = [
    "AXES", "LR", "OPS", "Fault", "Flat", "Genome", "Op", "Ref", "Refused", "Slot", "Statement",
    "express", "fits", "fresh", "inputs", "of_program", "refuse", "renamed", "result_type", "type_of", "typed",
]  # fmt: skip
