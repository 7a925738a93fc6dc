"""Steps of a program as Python over stacked tensors, K models at once.

A function of generated code is a list of calls `op(a, b, out=c)`: every intermediate value has a buffer that it
shares with others, so that a step allocates nothing. The text holds names of the table below and names with numbers (`v3`,
`h0`), whatever a program's own names and numbers are: those come in as arguments.

There are two forms. In the flat one all tensors of a model lie in one row of a [K, P] array; a value per tensor is
[K, S], one per group [K, 1]. It takes programs that do not look at the shape of a tensor. In the other one a function
does one tensor of all models: [K, R, C] per element, [K, R, 1] per row, [K, 1, C] per column, [K, 1, 1] for the rest;
it is a generator that gives its part of a reduction over several tensors and is sent the whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optdsl.core.ops import CORE, STATIC_FACTS, Rule
from optdsl.core.record import record
from optdsl.core.types import ELEMENT, Kind, Level, Type
from optdsl.ir.expr import Call, Const, Expr, Literal, Var, call, const, is_joint, walk
from optdsl.ir.program import Assign, Program
from optdsl.passes.evaluate import Unknown, host_value


class Unsupported(Exception):
    """A program does something that stacked models cannot do."""


def _sqrt(x: Tensor, out: Tensor) -> None:
    # by numpy: torch hands roots to MKL, which takes six times as long where many numbers are zero
    np.sqrt(x.numpy(), out=out.numpy())


def _spread(x: Tensor, sizes: tuple[int, ...], out: Tensor) -> None:
    """An entry per tensor to all elements of the tensor."""
    torch.cat([x[:, i : i + 1].expand(-1, size) for i, size in enumerate(sizes)], 1, out=out)


def _by_tensor(reduce: Callable[..., Tensor]) -> Callable[..., None]:
    def run(x: Tensor, sizes: tuple[int, ...], out: Tensor) -> None:
        torch.stack([reduce(part, 1) for part in x.split(sizes, 1)], 1, out=out)

    return run


def _over(reduce: Callable[..., Tensor], *dims: int) -> Callable[..., None]:
    def run(x: Tensor, out: Tensor) -> None:
        reduce(x, dims, True, out=out)

    return run


def _part(op: str) -> Callable[[Tensor, Any], Tensor]:
    reduce = {"reduce_sum": torch.sum, "reduce_max": torch.amax, "reduce_min": torch.amin}[op]

    def run(x: Tensor, shape: Any) -> Tensor:
        # a value per row of a tensor with one column comes as [K, R, 1] already; one per tensor counts once
        return reduce(x.reshape(x.shape[0], -1), 1)

    return run


def _newton_schulz(x: Tensor, steps: Tensor, out: Tensor) -> None:
    from optdsl.ir.numpy_ops import NEWTON_SCHULZ, NEWTON_SCHULZ_EPS

    a, b, c = NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(NEWTON_SCHULZ_EPS)
    for _ in range(int(steps)):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    out.copy_(x.mT if tall else x)


_REDUCE: dict[str, Callable[..., Tensor]] = {
    "reduce_sum": torch.sum,
    "reduce_mean": torch.mean,
    "reduce_max": torch.amax,
    "reduce_min": torch.amin,
}
#: Core operators, element by element: (operands, out).
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "mod": torch.remainder,
    "pow": torch.pow,
    "neg": torch.neg,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "select": torch.where,
    "min": torch.minimum,
    "max": torch.maximum,
    "abs": torch.abs,
    "sign": torch.sign,
    "sqrt": _sqrt,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "atan2": torch.atan2,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "isfinite": lambda x, out: out.copy_(torch.isfinite(x)),
    "nan_to_num": torch.nan_to_num,
}
#: Operators that generated code cannot call, with what a person is told. Together with the tables here these are all.
REFUSED = {
    "reduce_kth_largest": "it ranks entries",
    **dict.fromkeys(("normal", "uniform", "rademacher", "bernoulli"), "it draws random numbers"),
}
#: All that generated code calls, by the names it has there.
_NAMESPACE: dict[str, Any] = {
    **{f"op_{name}": function for name, function in _ELEMENTWISE.items()},
    **{f"each_{name}": _by_tensor(function) for name, function in _REDUCE.items()},
    **{f"tensor_{name}": _over(function, 1, 2) for name, function in _REDUCE.items()},
    **{f"rows_{name}": _over(function, 2) for name, function in _REDUCE.items()},
    **{f"cols_{name}": _over(function, 1) for name, function in _REDUCE.items()},
    **{f"all_{name}": _over(function, 1) for name, function in _REDUCE.items()},
    **{f"part_{name}": _part(name) for name in _REDUCE if name != "reduce_mean"},
    "copy": lambda x, out: out.copy_(x),
    "spread": _spread,
    "op_matmul": torch.matmul,
    "op_transpose": lambda x, out: out.copy_(x.mT),
    "op_newton_schulz": _newton_schulz,
    "__builtins__": {},
}
SPELLED = frozenset({*_ELEMENTWISE, *_REDUCE, *REFUSED, "matmul", "transpose", "newton_schulz", "broadcast"})
#: Calls that may write over an operand.
_SAFE = frozenset({*(f"op_{name}" for name in _ELEMENTWISE), "copy"})

#: A buffer: the name of its level, and whether it holds truth values.
Slot = tuple[str, bool]


@record
class Function:
    """Generated code. It is called with (p, g, h, s, o, w, sizes): parameter and gradient, host values, the states of
    `reads`, where to write `writes`, buffers, and the sizes of the tensors.

    `host` are the expressions of the host values that it takes, `joints` how each thing that it yields is reduced:
    (operator, site, level name of what is reduced).
    """

    text: str
    host: tuple[Expr, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    buffers: tuple[Slot, ...]
    joint: bool

    def bind(self) -> Callable[..., Any]:
        """The function itself."""
        names = dict(_NAMESPACE)
        exec(_compiled(self.text), names)
        bound: Callable[..., Any] = names["f"]
        return bound


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> CodeType:
    return compile(text, "<stacked step>", "exec")


def looks_at_shapes(program: Program) -> bool:
    """Whether a program needs the second form: it reads facts of a tensor, lines or matrices."""
    inits = [state.init for state in program.kept if state.init is not None]
    nodes = [*program.nodes(), *(node for init in inits for node in walk(init))]
    if program.view is not None:
        nodes += program.view.nodes()
    for node in nodes:
        if node.type.level is Level.ARRAY and node.type.shape != ELEMENT:
            return True
        if isinstance(node, Var) and node.name in STATIC_FACTS:
            return True
        if isinstance(node, Call) and CORE[node.op].rule in (Rule.MATMUL, Rule.TRANSPOSE, Rule.MATRIX):
            return True
    return False


@record(frozen=False)
class _Value:
    """What generated code computes in one call: into buffer `slot`, or into output `target`."""

    call: str
    args: tuple[str, ...]
    slot: Slot
    last: int = -1  # the last call that reads it
    target: str | None = None
    name: str = ""


class Printer:
    """Prints functions of one program for one setting.

    `known` are the values of what is settled: options, facts of the tensor in the second form.
    """

    def __init__(self, program: Program, known: Mapping[str, Literal], flat: bool) -> None:
        self.known, self.flat = known, flat
        self.states = {s.name: s for s in program.states}
        self.use(program)

    def use(self, program: Program) -> None:
        """Goes on with another body: that of the step, or of what is evaluated."""
        self.body = program.body
        self.definitions = {a.name: a.expr for a in program.body}
        self._settled: dict[int, Literal | None] = {}

    # ---- what is settled ---------------------------------------------------------------------------------

    def settled(self, expr: Expr) -> Literal | None:
        """The value of a host expression that nothing can change any more, or None."""
        key = id(expr)
        if key not in self._settled:
            try:
                self._settled[key] = host_value(expr, self.known, self.definitions)
            except Unknown:
                self._settled[key] = None
        return self._settled[key]

    def taken(self, expr: Expr) -> Expr:
        """`expr` without choices that are settled, and without names for another value."""
        while True:
            if isinstance(expr, Call) and expr.op == "select" and expr.args[0].type.is_host:
                value = self.settled(expr.args[0])
                if value is None:
                    return expr
                side = expr.args[1] if value else expr.args[2]
                if not expr.type.is_host and side.type.level_name != expr.type.level_name:
                    return call("broadcast", side, over=expr.type.level_name)
                expr = side
            elif isinstance(expr, Var) and not expr.type.is_host and expr.name in self.definitions:
                found = self.taken(self.definitions[expr.name])
                if found.type != expr.type:
                    return expr
                expr = found
                if not isinstance(expr, Var) or expr.name not in self.definitions:
                    return expr
            else:
                return expr

    def reached(self, assign: Assign) -> bool:
        """False when the guard of an assignment can never hold."""
        for condition, wanted in assign.guard:
            value = self.settled(condition)
            if value is not None and bool(value) is not wanted:
                return False
        return True

    def needed(self, roots: list[Expr]) -> set[Expr]:
        """The nodes above the host that these values need."""
        found: set[Expr] = set()
        stack = list(roots)
        while stack:
            node = self.taken(stack.pop())
            if node in found or node.type.is_host:
                continue
            found.add(node)
            if isinstance(node, Var) and node.name in self.definitions:
                stack.append(self.definitions[node.name])
            else:
                stack += node.args
        return found

    def reading(self, roots: list[Expr]) -> set[str]:
        """Names of the states, and `p` and `g`, that these values need."""
        nodes = self.needed(roots)
        return {node.name for node in nodes if isinstance(node, Var) and node.name not in self.definitions}

    def joint_roots(self) -> list[Expr]:
        """The joint reductions that a tensor takes part in, needed or not: all that its branches reach."""
        roots: list[Expr] = []
        for assign in self.body:
            if not any(is_joint(node) for node in walk(assign.expr)) or not self.reached(assign):
                continue
            conditions = [condition for condition, _ in assign.guard]
            stack = [assign.expr]
            while stack:
                node = self.taken(stack.pop())
                if is_joint(node):
                    roots.append(node)
                if isinstance(node, Call) and node.op == "select" and node.args[0].type.is_host:
                    conditions.append(node.args[0])
                stack += node.args
            if any(self.settled(c) is None and self.depends_on_facts(c) for c in conditions):
                raise Unsupported("tensors of different shapes take part in a joint reduction in different steps")
        return roots

    def depends_on_facts(self, expr: Expr) -> bool:
        """Whether a host value differs between tensors."""
        names = set(expr.reads)
        while True:
            more = set().union(*(self.definitions[n].reads for n in names if n in self.definitions)) - names
            if not more:
                return bool(names & STATIC_FACTS)
            names |= more

    # ---- functions ---------------------------------------------------------------------------------------

    def function(self, roots: Mapping[str, tuple[Expr, Type]], own: frozenset[str] = frozenset()) -> Function:
        """A function that writes each of `roots`, a value and the type it is kept in, to the output of its name.

        An output in `own` is the very memory of the input of that name.
        """
        return _Writer(self, roots, own).run()


class _Writer:
    def __init__(self, printer: Printer, roots: Mapping[str, tuple[Expr, Type]], own: frozenset[str]) -> None:
        self.printer, self.flat, self.roots, self.own = printer, printer.flat, roots, own
        self.values: list[_Value] = []
        self.made: dict[Expr, str] = {}
        self.spread: dict[str, str] = {}  # values per tensor that there are for each element, too
        self.by_name: dict[str, _Value] = {}
        self.host: dict[Expr, str] = {}
        self.inputs: dict[str, str] = {"p": "p", "g": "g"}
        self.last: dict[str, int] = {}  # last call that reads an input
        self.joint = False

    def run(self) -> Function:
        printer = self.printer
        exprs = [expr for expr, _ in self.roots.values()]
        if not self.flat:
            exprs += printer.joint_roots()
        wanted = printer.needed(exprs)
        for assign in printer.body:  # in their order, which keeps the recursion below shallow
            if printer.taken(assign.expr) in wanted:
                self.value(assign.expr)
        if not self.flat:
            for expr in exprs[len(self.roots) :]:
                self.value(expr)
        ends: dict[str, str] = {}
        for name, (expr, type_) in self.roots.items():
            ends[name] = self.kept(name, expr, type_)
        text, buffers = self.allocate(ends)
        reads = tuple(name for name in self.inputs if name not in ("p", "g"))
        return Function(text, tuple(self.host), reads, tuple(self.roots), buffers, self.joint)

    def kept(self, name: str, expr: Expr, type_: Type) -> str:
        """The name of a value to put into an output, at the level of the output."""
        expr = self.printer.taken(expr)
        text = self.at(expr, type_.level_name)
        other = text in self.inputs.values() and text != self.inputs.get(name)
        if other and text != "g" and any(self.inputs.get(o) == text for o in self.own):
            # this input is written to before the outputs are filled in
            return self.add("copy", (text,), (type_.level_name, False))
        return text

    # ---- values ------------------------------------------------------------------------------------------

    def value(self, expr: Expr) -> str:
        """The name of a value above the host, or of a host value."""
        expr = self.printer.taken(expr)
        if expr.type.is_host:
            return self.host_name(expr)
        name = self.made.get(expr)
        if name is None:
            name = self.made[expr] = self.compute(expr)
        return name

    def host_name(self, expr: Expr) -> str:
        name = self.host.get(expr)
        if name is None:
            name = self.host[expr] = f"h{len(self.host)}"
        return name

    def compute(self, expr: Expr) -> str:
        if isinstance(expr, Var):
            if expr.name in self.printer.definitions:
                source = self.printer.definitions[expr.name]
                return self.at(source, expr.type.level_name)
            if expr.name not in self.inputs:
                state = self.printer.states.get(expr.name)
                if state is None or state.given:
                    raise Unsupported(f"`{expr.name}` is not known")
                self.inputs[expr.name] = f"s{len(self.inputs) - 2}"
            return self.inputs[expr.name]
        assert isinstance(expr, Call), expr
        if expr.op in REFUSED:
            raise Unsupported(REFUSED[expr.op])
        level, truth = expr.type.level_name, expr.type.kind is Kind.BOOL
        rule = CORE[expr.op].rule
        if rule is Rule.REDUCE:
            return self.reduce(expr)
        if rule is Rule.BROADCAST:
            name = self.at(expr.args[0], level)
            return name if name in self.spread.values() else self.add("copy", (name,), (level, truth))
        if expr.op == "select" and expr.args[1:] == (const(1.0), const(0.0)):
            return self.add("copy", (self.at(expr.args[0], level),), (level, False))
        if expr.op == "pow" and isinstance(expr.args[1], Const) and expr.args[1].value == 2:
            base = self.at(expr.args[0], level)
            return self.add("op_mul", (base, base), (level, False))
        if rule is Rule.ELEMENTWISE:
            args = tuple(self.at(arg, level) for arg in expr.args)
        else:
            args = tuple(map(self.value, expr.args))
        return self.add(f"op_{expr.op}", args, (level, truth))

    def reduce(self, expr: Call) -> str:
        """A reduction."""
        (x,) = expr.args
        level = expr.type.level_name
        if not is_joint(expr):
            name = self.value(x)
            if self.flat:
                return self.add(f"each_{expr.op}", (name, "sizes"), (level, False))
            return self.add(f"{expr.attr}_{expr.op}", (name,), (level, False))
        self.joint = True
        name = self.value(x)
        if self.flat:
            return self.add(f"all_{expr.op}", (name,), (level, False))
        kind = "sum" if expr.op == "reduce_mean" else expr.op.removeprefix("reduce_")
        key = (expr.op, expr.site)
        return self.add(f"part_reduce_{kind}", (name, f"{key!r}"), (level, False))

    def at(self, expr: Expr, level: str) -> str:
        """The name of a value where one of `level` is wanted: in the flat form one per tensor has to be spread."""
        expr = self.printer.taken(expr)
        name = self.value(expr)
        if not (self.flat and level == "element" and expr.type.level is Level.TENSOR):
            return name
        wide = self.spread.get(name)
        if wide is None:
            wide = self.spread[name] = self.add(
                "spread", (name, "sizes"), (level, expr.type.kind is Kind.BOOL)
            )
        return wide

    def add(self, call: str, args: tuple[str, ...], slot: Slot) -> str:
        number = len(self.values)
        value = _Value(call, args, slot, name=f"v{number}")
        for arg in args:
            self.read(arg, number)
        self.values.append(value)
        self.by_name[value.name] = value
        return value.name

    def read(self, name: str, number: int) -> None:
        if name in self.by_name:
            self.by_name[name].last = number
        else:
            self.last[name] = number

    # ---- buffers -----------------------------------------------------------------------------------------

    def allocate(self, ends: Mapping[str, str]) -> tuple[str, tuple[Slot, ...]]:
        """The text, with a place for every value."""
        end = len(self.values)
        outputs = {name: f"o{number}" for number, name in enumerate(self.roots)}
        for name, value in ends.items():
            if value != self.inputs.get(name) or name not in self.own:
                self.read(value, end)
        for name, value in ends.items():
            found = self.by_name.get(value)
            if found is None or found.target is not None:
                continue
            _, type_ = self.roots[name]
            if found.slot != (type_.level_name, False):
                continue
            number = int(value[1:])
            if name in self.own and name in self.inputs:
                last = self.last.get(self.inputs[name], -1)
                if last > number or (last == number and found.call not in _SAFE):
                    continue
            found.target = name
        free: dict[Slot, list[str]] = {}
        buffers: list[Slot] = []
        places: dict[str, str] = {}
        lines: list[str] = []
        for number, value in enumerate(self.values):
            args = [places.get(arg, arg) for arg in value.args]
            dying = [
                a for a in dict.fromkeys(value.args) if a in self.by_name and self.by_name[a].last == number
            ]
            gone = [self.by_name[a] for a in dying if self.by_name[a].target is None]
            if value.call in _SAFE:
                for item in gone:
                    free.setdefault(item.slot, []).append(places[item.name])
            if value.target is not None:
                place = outputs[value.target]
            elif free.get(value.slot):
                place = free[value.slot].pop()
            else:
                place = f"w{len(buffers)}"
                buffers.append(value.slot)
            if value.call not in _SAFE:
                for item in gone:
                    free.setdefault(item.slot, []).append(places[item.name])
            places[value.name] = place
            lines.append(self.line(value, args, place))
            if value.last < 0 and value.target is None:
                free.setdefault(value.slot, []).append(place)
        for name, value in ends.items():
            source = places.get(value, value)
            if source != outputs[name] and not (name in self.own and value == self.inputs.get(name)):
                lines.append(f"copy({source}, out={outputs[name]})")
        return self.wrapped(lines, outputs, buffers), tuple(buffers)

    def line(self, value: _Value, args: list[str], place: str) -> str:
        if value.call.startswith("part_"):
            return f"copy((yield {value.call}({args[0]}, None), {args[0]}, {args[1]}), out={place})"
        return f"{value.call}({', '.join(args)}, out={place})"

    def wrapped(self, lines: list[str], outputs: Mapping[str, str], buffers: list[Slot]) -> str:
        states = [name for source, name in self.inputs.items() if source not in ("p", "g")]
        heads = [("h", list(self.host.values())), ("s", states), ("o", list(outputs.values()))]
        heads.append(("w", [f"w{number}" for number in range(len(buffers))]))
        unpacked = [f"{', '.join(names)}, = {source}" for source, names in heads if names]
        body = [*unpacked, *lines] or ["pass"]
        return "def f(p, g, h, s, o, w, sizes):\n" + "".join(f" {line}\n" for line in body)


def states_needed(printers: Iterable[Printer], program: Program) -> set[str]:
    """The states above the host that the parameters of some tensor, now or later, depend on."""
    view = program.view
    found: set[str] = set()
    wanted: set[str] = {"p"}
    while wanted - found:
        found |= wanted
        for printer in printers:
            roots = [program.results[name] for name in found if name in program.results]
            wanted |= printer.reading(roots if printer.flat else roots + printer.joint_roots())
            if view is not None and "p" in view.results:
                printer.use(view)
                wanted |= printer.reading([view.results["p"]])
                printer.use(program)
    return {state.name for state in program.kept if state.name in found}


def shape_of(level: str, k: int, sizes: tuple[int, int], flat: bool) -> tuple[int, ...]:
    """The shape of a value of a level for `k` models. `sizes`: (P, S) in the flat form, else (R, C)."""
    if flat:
        return (k, {"element": sizes[0], "tensor": sizes[1]}.get(level, 1))
    by_name = {"rows": sizes[0], "cols": sizes[1], "1": 1}
    lines = {"element": "rows, cols", "rows": "rows, 1", "cols": "1, cols"}.get(level, level).split(", ")
    return (k, 1, 1) if len(lines) == 1 else (k, by_name[lines[0]], by_name[lines[1]])
