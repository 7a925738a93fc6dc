"""What kernels leave to a library of linear algebra: matrix products, ranks of entries, long searches per tensor.

Kernels go over the elements of a tensor. A value that is no sum over them (a product of matrices, the k-th largest
entry) is computed by torch between two sweeps instead, from what the sweeps in front of it left in memory. All such
values of a step are computed at one place: with everything that lies between two of them, they are a *library
program*, whose states are what it is handed and what it hands back. The rest is a program for kernels, to which these
are states too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from optdsl.core.ops import CORE, Rule
from optdsl.core.record import record
from optdsl.core.types import COLS, ELEMENT, ROWS, Kind, Level, Type
from optdsl.ir.expr import (
    Call,
    Const,
    Expr,
    Var,
    as_number,
    call,
    const,
    is_joint,
    is_random,
    rebuild,
    transform,
    var,
    variables,
    walk,
)
from optdsl.ir.program import Assign, Guard, Program, State
from optdsl.passes.simplify import drop_dead, substitute
from optdsl.passes.specialise import TooManyBranches, Tree, specialise


class Unsupported(Exception):
    """The program, or a branch of it, has no plan; the message says why, in words for its author."""


@record
class Library:
    """What is left to the library: a program whose states are `inputs` and `outputs`, `kept` and host-level ones.

    `kept` are states of the method that are matrices of their own, which kernels have nothing to do with.
    """

    program: Program
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kept: tuple[str, ...] = ()


_MATRIX = (Rule.MATMUL, Rule.TRANSPOSE, Rule.MATRIX, Rule.AXES)


def divide(program: Program, searches: bool = False) -> tuple[Program, Library | None]:
    """A simplified program as one for kernels and one for the library; None for one that needs no library.

    With `searches` the repetitions of `repeat n` for an n that the user sets are left to the library too. Raises
    Unsupported.
    """
    program = _named(program)
    region = _region(program, _searched if searches else lambda assign: False)
    matrices = {s.name for s in program.states if _is_matrix(s.type)}
    if not region and all(program.results.get(n, v) is v for n, v in _stored(program, matrices)):
        states = tuple(s for s in program.states if s.name not in matrices)
        results = {n: e for n, e in program.results.items() if n not in matrices}
        return replace(program, states=states, results=results), None
    return _Divider(program, region).divided()


def _stored(program: Program, names: Iterable[str]) -> list[tuple[str, Var]]:
    """States of these names as they are read."""
    return [(s.name, var(s.name, s.type)) for s in program.states if s.name in names]


def settings(program: Program) -> tuple[Program, Library | None, Tree]:
    """A simplified program as `divide` divides it, and the tree of settings of what is for kernels.

    Raises Unsupported; TooManyBranches if there are too many even if repetitions are left to the library.
    """
    kernels, library = divide(program)
    try:
        return kernels, library, specialise(kernels)
    except TooManyBranches:
        kernels, library = divide(program, searches=True)
        if library is None:
            raise
        return kernels, library, specialise(kernels)


def _beyond(expr: Expr) -> bool:
    """Whether kernels cannot compute a node from its operands."""
    if isinstance(expr, Call):
        if expr.op == "reduce_kth_largest":
            return not is_joint(expr)  # where tensors meet they are reduced by torch anyway
        if (
            CORE[expr.op].rule in _MATRIX
            or expr.attr == "filter"
            or any(_is_matrix(a.type) for a in expr.args)
        ):
            return True
    return _is_matrix(expr.type)


def _is_matrix(type_: Type) -> bool:
    """Whether values of a type have neither an entry per element, row or column of a tensor nor one in all."""
    return type_.level is Level.ARRAY and type_.shape not in (ELEMENT, ROWS, COLS)


def _searched(assign: Assign) -> bool:
    """Whether a value is one of a repetition that the user may leave out."""

    def optional(condition: Expr) -> bool:
        match condition:
            case Call("gt", (Var() as count, Const())):
                return count.type.kind is Kind.INT
        return False

    return not assign.expr.type.is_host and any(optional(condition) for condition, _ in assign.guard)


def _named(program: Program) -> Program:
    """`program` with names for what is beyond kernels, where it is an operand of something that is not."""
    taken = {a.name.partition(".")[0] for a in program.body} | {s.name for s in program.states}
    part = _unused_prefix("part", taken | {h.name for h in program.hypers})
    body: list[Assign] = []

    def named(expr: Expr, guard: Guard, line: int, whole: bool) -> Expr:
        def visit(node: Expr) -> Expr:
            if _beyond(node) or not isinstance(node, Call):
                return node
            return rebuild(node, tuple(name(arg) for arg in node.args))

        def name(node: Expr) -> Expr:
            if not isinstance(node, Call) or not _beyond(node):
                return node
            body.append(Assign(f"{part}.{len(body) + 1}", part, node, guard, line))
            return body[-1].var

        changed = transform(expr, visit)
        return name(changed) if whole else changed

    for a in program.body:
        expr = named(a.expr, a.guard, a.line, False)
        body.append(replace(a, expr=expr))
    results = {n: named(e, (), 0, True) for n, e in program.results.items()}
    return program.with_body(tuple(body), results)


def _unused_prefix(name: str, taken: Iterable[str]) -> str:
    """`name`, made longer until no name in `taken` begins with it."""
    while any(other.startswith(name) for other in taken):
        name += "_"
    return name


def _region(program: Program, also: Callable[[Assign], bool]) -> set[str]:
    """The values that are left to the library: those beyond kernels, and all between two of them."""
    values = [a for a in program.body if not a.expr.type.is_host]
    reads = {a.name: variables(a.expr) for a in values}
    region = {a.name for a in values if any(map(_beyond, walk(a.expr))) or also(a)}
    below, above = set(region), set(region)
    for a in values:
        if reads[a.name] & below:
            below.add(a.name)
    for a in reversed(values):
        if a.name in above:
            above |= reads[a.name] & reads.keys()
    region |= below & above

    def outputs(region: set[str]) -> int:
        read = set().union(*(reads[a.name] for a in values if a.name not in region))
        return len(region & read.union(*map(variables, program.results.values())))

    for a in values:  # what only follows from the region, if no more than before is handed back then
        own = [n for n in walk(a.expr) if isinstance(n, Var) and not n.type.is_host]
        pure = not any(is_joint(n) or is_random(n) for n in walk(a.expr))
        follows = a.name not in region and own and pure and all(n.name in region for n in own)
        if follows and outputs(region | {a.name}) <= outputs(region):
            region.add(a.name)
    return region


class _Divider:
    def __init__(self, program: Program, region: set[str]) -> None:
        self.program, self.region = program, region
        names = {a.name.partition(".")[0] for a in program.body}
        names |= {h.name for h in program.hypers} | {h.argument for h in program.hypers}
        names |= {s.name for s in program.states} | {s.key for s in program.states}
        self.work = _unused_prefix("work", names)
        self.guards: dict[str, Guard] = {a.name: a.guard for a in program.body}
        self.body: list[Assign] = []  # of the program for kernels
        self.states: list[State] = []
        #: What each value that is handed over is called on the other side.
        self.handed: dict[Expr, Expr] = {}
        self.operands: dict[tuple[Expr, Guard], Expr] = {}
        self.inputs: dict[str, Expr] = {}
        #: Of each array that is handed over the guards under which it is read.
        self.readers: dict[Expr, list[Guard]] = {}

    def divided(self) -> tuple[Program, Library]:
        program, region = self.program, self.region
        inside: list[Assign] = []
        for a in program.body:
            if a.expr.type.is_host:
                self.body.append(a)
                inside.append(a)
            elif a.name in region:
                if any(is_joint(node) for node in walk(a.expr)):
                    raise Unsupported("tensors meet between its matrix products")
                if any(is_random(node) for node in walk(a.expr)):
                    raise Unsupported("random numbers are drawn between its matrix products")
                inside.append(replace(a, expr=self.closed(a.expr, a)))
            else:
                self.body.append(a)
        for array, guards in self.readers.items():
            if all(guards):
                (name,) = variables(self.handed[array])
                self.inputs[name] = _wherever((((_any(guards)), True),), self.inputs[name])
        given = len(self.states)
        kept = [s for s in program.states if _is_matrix(s.type)]
        own = {s.name: program.results[s.name] for s in kept if s.name in program.results}
        others = {n: e for n, e in program.results.items() if n not in own}
        read = set().union(*(variables(a.expr) for a in self.body), *map(variables, others.values()))
        results: dict[str, Expr] = dict(own)
        outputs: dict[str, Expr] = {}
        for a in list(inside):
            if a.name in region & read:
                state = self.state(a.var, given=True)
                made: Expr = a.var
                if any(
                    _joins(b.expr, a.name) for b in inside
                ):  # where branches meet, its variable is another's
                    copy = Assign(f"{state.name}.1", state.name, a.var, a.guard, a.line)
                    inside.insert(inside.index(a) + 1, copy)
                    made = copy.var
                results[state.name] = _wherever(a.guard, as_number(made))
                outputs[a.name] = self.handed[a.var]
        kernels = program.with_body(
            tuple(replace(a, expr=substitute(a.expr, outputs)) for a in self.body),
            {n: substitute(e, outputs) for n, e in others.items()} | self.inputs,
        )
        plain = tuple(s for s in program.states if s not in kept)
        kernels = replace(kernels, states=(*plain, *self.states), view=None)
        hosts = tuple(s for s in program.states if s.type.is_host or s in kept)
        written = [replace(s, given=False) for s in self.states[given:]]
        library = replace(
            program, states=(*hosts, *(replace(s, given=True) for s in self.states[:given]), *written),
            body=tuple(inside), results=results, view=None,
        )  # fmt: skip
        names = [s.name for s in self.states]
        return self.ordered(drop_dead(kernels)), Library(
            drop_dead(library), tuple(names[:given]), tuple(names[given:]), tuple(s.name for s in kept)
        )

    def closed(self, expr: Expr, home: Assign) -> Expr:
        """`expr` over values of the library: the largest parts of it that kernels can compute are handed over."""
        if expr.type.is_host:
            return expr
        if isinstance(expr, Var):
            ours = expr.name in self.region or _is_matrix(expr.type)
            if ours:
                return expr
            if expr.name not in self.guards:  # an array, which may not be there where nothing reads it
                self.readers.setdefault(expr, []).append(home.guard)
            return self.input(expr, self.guards.get(expr.name, ()))
        ours = any(_beyond(n) or (isinstance(n, Var) and n.name in self.region) for n in walk(expr))
        if ours or _of_one(expr):
            assert isinstance(expr, Call)
            return rebuild(expr, tuple(self.closed(arg, home) for arg in expr.args))
        key = (expr, home.guard)
        if key not in self.operands:
            operand = Assign(f"{self.work}.{len(self.body)}", self.work, expr, home.guard, home.line)
            self.body.append(operand)
            self.operands[key] = self.input(operand.var, home.guard)
        return self.operands[key]

    def input(self, value: Var, guard: Guard) -> Expr:
        """What a value of the kernels is called in the library."""
        if value not in self.handed:
            state = self.state(value, given=False)
            number = as_number(value)
            if number is not value:
                self.body.append(Assign(f"{self.work}.{len(self.body)}", self.work, number, guard))
                number = self.body[-1].var
            self.inputs[state.name] = _wherever(guard, number)
        return self.handed[value]

    def state(self, value: Var, given: bool) -> State:
        """Memory for a value that is handed over."""
        name = f"{self.work}{len(self.states)}"
        kind = value.type.with_kind(Kind.FLOAT)
        self.states.append(State(name, name, kind, None, given))
        handed: Expr = var(name, kind)
        self.handed[value] = call("ne", handed, 0.0) if value.type.kind is Kind.BOOL else handed
        return self.states[-1]

    def ordered(self, program: Program) -> Program:
        """`program` with what is handed to the library in front of what follows from it."""
        need = set().union(*map(variables, self.inputs.values()))
        for a in reversed(program.body):
            if a.name in need:
                need |= variables(a.expr).union(*(variables(c) for c, _ in a.guard))
        first = [a for a in program.body if a.name in need or a.expr.type.is_host]
        rest = [a for a in program.body if not (a.name in need or a.expr.type.is_host)]
        joint = [a.name for a in program.body if any(map(is_joint, walk(a.expr)))]
        if joint != [a.name for a in (*first, *rest) if a.name in joint]:
            raise Unsupported("tensors meet beside its matrix products")
        return program.with_body((*first, *rest), program.results)


def _of_one(expr: Expr) -> bool:
    """Whether an expression computes something from one array, entry by entry: then that array may be handed over."""
    nodes = list(walk(expr))
    arrays = {node for node in nodes if isinstance(node, Var) and not node.type.is_host}
    reduced = any(isinstance(node, Call) and CORE[node.op].rule is Rule.REDUCE for node in nodes)
    return len(arrays) == 1 and not reduced and all(a.type.shape == expr.type.shape for a in arrays)


def _any(guards: Iterable[Guard]) -> Expr:
    """That one of these guards holds."""
    found: Expr | None = None
    for guard in dict.fromkeys(guards):
        every: Expr | None = None
        for condition, wanted in guard:
            each = condition if wanted else call("not", condition)
            every = each if every is None else call("and", every, each)
        assert every is not None
        found = every if found is None else call("or", found, every)
    assert found is not None
    return found


def _joins(expr: Expr, name: str) -> bool:
    """Whether an expression chooses, by a condition of the host, between this value and another."""
    return isinstance(expr, Call) and expr.op == "select" and expr.args[0].type.is_host and name in expr.reads


def _wherever(guard: Guard, value: Expr) -> Expr:
    """`value` where its guard holds; elsewhere nobody reads it."""
    other: Expr = const(0.0)
    if value.type.level > Level.HOST:
        other = call("broadcast", other, over=value.type.level_name)
    for condition, wanted in reversed(guard):
        value = call("select", condition, *((value, other) if wanted else (other, value)))
    return value
