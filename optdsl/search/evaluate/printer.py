"""Steps of a program as Python over stacked tensors, K models at once.

A function of generated code is a list of calls `op(a, b, out=c)`: every intermediate value has a buffer that it
shares with others, so that a step allocates nothing.

There are two forms. In the flat one all tensors of a model lie in one row of a [K, P] array; a value per tensor is
[K, S], one per group [K, 1]. It takes programs that do not look at the shape of a tensor. In the other one a function
does one tensor of all models: [K, R, C] per element, [K, R, 1] per row, [K, 1, C] per column, [K, 1, 1] for the rest;
it is a generator that gives its part of a reduction over several tensors and is sent the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from optdsl.core.ops import CORE, STATIC_FACTS, Rule
from optdsl.core.types import ELEMENT, Kind, Level, Type
from optdsl.ir.expr import Call, Const, Expr, Literal, Var, call, is_joint, walk
from optdsl.ir.program import Assign, Program
from optdsl.passes.evaluate import Unknown, host_value
from optdsl.search.evaluate.code import Function, Output, Slot, Value, write
from optdsl.search.evaluate.operators import REFUSED


class Unsupported(Exception):
    """A program does something that stacked models cannot do."""


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
        self._settled: dict[Expr, Literal | None] = {}
        self._taken: dict[Expr, Expr] = {}

    # ---- what is settled ---------------------------------------------------------------------------------

    def settled(self, expr: Expr) -> Literal | None:
        """The value of a host expression that nothing can change any more, or None."""
        if expr not in self._settled:
            try:
                value = host_value(expr, self.known, self.definitions)
                self._settled[expr] = None if isinstance(value, tuple) else value
            except Unknown:
                self._settled[expr] = None
        return self._settled[expr]

    def taken(self, expr: Expr) -> Expr:
        """`expr` without choices that are settled, and without names for another value."""
        found = self._taken.get(expr)
        if found is None:
            found = self._taken[expr] = self._take(expr)
        return found

    def _take(self, expr: Expr) -> Expr:
        if isinstance(expr, Call) and expr.op == "select" and expr.args[0].type.is_host:
            value = self.settled(expr.args[0])
            if value is None:
                return expr
            side, type_ = expr.args[1] if value else expr.args[2], expr.type
            if not type_.is_host and (side.type.level, side.type.shape) != (type_.level, type_.shape):
                return call("broadcast", side, over=type_.level_name)
            return self.taken(side)
        if isinstance(expr, Var) and not expr.type.is_host and expr.name in self.definitions:
            found = self.taken(self.definitions[expr.name])
            return found if found.type == expr.type else expr
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
        return [root for assign in self.body for root in self.joints(assign)]

    def joints(self, assign: Assign) -> list[Expr]:
        """Those of one assignment, operands before users: the order in which the interpreter comes to them."""
        if not any(is_joint(node) for node in walk(assign.expr)) or not self.reached(assign):
            return []
        conditions = [condition for condition, _ in assign.guard]
        roots: list[Expr] = []
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
        return roots[::-1]

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
        self.values: dict[str, Value] = {}
        self.made: dict[Expr, str] = {}
        self.spread: dict[str, str] = {}  # values per tensor that there are for each element, too
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
            elif (
                not self.flat
            ):  # nothing needs its joint reductions, but tensors meet in the order of the program
                for root in printer.joints(assign):
                    self.value(root)
        outputs = [
            Output(
                name,
                self.kept(name, expr, type_),
                type_.level_name,
                self.inputs.get(name) if name in self.own else None,
            )
            for name, (expr, type_) in self.roots.items()
        ]
        reads = tuple(name for name in self.inputs if name not in ("p", "g"))
        text, buffers = write(self.values, outputs, self.last, len(self.host), len(reads))
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
        if expr.attr == "filter":
            raise Unsupported("it reduces over filters")
        level, truth = expr.type.level_name, expr.type.kind is Kind.BOOL
        rule = CORE[expr.op].rule
        if rule is Rule.REDUCE:
            return self.reduce(expr)
        if rule is Rule.BROADCAST:
            name = self.at(expr.args[0], level)
            return name if name in self.spread.values() else self.add("copy", (name,), (level, truth))
        if expr.op == "select" and [getattr(x, "value", None) for x in expr.args[1:]] == [1.0, 0.0]:
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
        for arg in args:
            if arg in self.values:
                self.values[arg].last = number
            else:
                self.last[arg] = number
        name = f"v{number}"
        self.values[name] = Value(call, args, slot)
        return name


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
