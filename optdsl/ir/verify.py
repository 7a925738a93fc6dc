"""What is legal in a typed program; tests run this after every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NoReturn, TypeAlias

from optdsl.core.ops import CORE, FACTS, OVERS, Rule
from optdsl.core.types import SCALAR, STATE_LEVELS, Kind, Level, Type, broadcasts_into, element, host
from optdsl.ir.expr import Call, Const, Expr, TypeFault, Var, call, const, is_joint, is_random, var, walk
from optdsl.ir.program import Guard, Program
from optdsl.ir.text import show

#: Conditions that hold where an expression is evaluated.
Known: TypeAlias = frozenset[tuple[Expr, bool]]

MAX_STREAMS = 4096  # sites of random draws, see optdsl/ir/random.py


class Invalid(Exception):
    """A program that breaks a rule: a mistake in the compiler, made by `stage`, not one of its user."""

    def __init__(self, stage: str, reason: str, text: str) -> None:
        super().__init__(f"after {stage}: {reason}\n\n{text}")
        self.stage = stage
        self.reason = reason


def verify(program: Program, stage: str = "check") -> Program:
    """Returns `program` if it keeps these rules, and raises `Invalid` with the name of the stage if not.

    - Names are unique: hyperparameters, states, their keys, assignments (which carry a version, `m.1`).
    - Nodes are interned, their types follow from their operands, reductions and draws have their attributes,
      and a joint site belongs to one reduction.
    - Inputs have the types that their declarations say. A state without an initial value is not read. A delay is a
      number from 1, or a hyperparameter that is an int from 1, of a state per element with an initial value.
    - A guard is a list of conditions known on the host.
    - A value is read only after its assignment, and only where every condition of its guard is known to hold:
      by the guard of the reader, or by a choice on a host condition in whose side it stands.
    - What is left in `p` and in states fits there; so do initial values, which read `p`, `g`, facts and
      hyperparameters only, and neither draw nor reduce over several tensors.
    - A view leaves something in `p` only, and has no gradient, draw or reduction over several tensors.
    """
    _Verifier(program, stage).run()
    if program.view is not None:
        view = program.view
        if (view.hypers, view.states) != (program.hypers, program.states) or set(view.results) != {"p"}:
            raise Invalid(stage, "a view has other declarations, or leaves more than `p`", show(program))
        for node in view.nodes():
            if is_joint(node) or is_random(node) or (isinstance(node, Var) and node.name in _unseen(view)):
                raise Invalid(
                    stage, "a view draws, reduces over several tensors or sees a gradient", show(program)
                )
        verify(view, f"{stage} (eval)")
    return program


def _unseen(view: Program) -> set[str]:
    """What there is only during a step."""
    return {"g", *(state.name for state in view.inputs)}


def implied(known: Known, condition: Expr, wanted: bool) -> bool:
    """True when `condition` certainly has the value `wanted` where `known` holds."""
    if (condition, wanted) in known:
        return True
    match condition:
        case Const(value):
            return value is wanted
        case Call("not", (inner,)):
            return implied(known, inner, not wanted)
        case Call("and" | "or" as op, (left, right)):
            both = implied(known, left, wanted), implied(known, right, wanted)
            return all(both) if wanted is (op == "and") else any(both)
    return False


def learned(condition: Expr, wanted: bool) -> Known:
    """What is known to hold where `condition` has the value `wanted`."""
    facts = {(condition, wanted)}
    match condition:
        case Call("not", (inner,)):
            facts |= learned(inner, not wanted)
        case Call("and" | "or" as op, (left, right)) if wanted is (op == "and"):
            facts |= learned(left, wanted) | learned(right, wanted)
    return frozenset(facts)


class _Verifier:
    def __init__(self, program: Program, stage: str) -> None:
        self.program = program
        self.stage = stage
        self.inputs: dict[str, Type] = {"p": element(), "g": element()}
        self.inputs |= {name: host(kind) for name, kind in FACTS.items()}
        self.inputs |= {hyper.name: host(hyper.kind) for hyper in program.hypers}
        self.assigned: dict[str, tuple[Type, Guard]] = {}
        self.sites: dict[int, Expr] = {}
        self.sound: set[Expr] = set()
        self.visited: set[tuple[Expr, Known]] = set()

    def fail(self, reason: str) -> NoReturn:
        try:
            text = show(self.program)
        except Exception as error:  # a program that breaks the rules may well break its printer
            text = f"(the program cannot be printed: {error!r})"
        raise Invalid(self.stage, reason, text)

    def run(self) -> None:
        program = self.program
        self.declarations()
        for state in program.states:
            if state.init is not None:
                self.reads(state.init, frozenset(), f"the initial value of `{state.name}`")
                for node in walk(state.init):
                    if is_joint(node) or is_random(node):
                        self.fail(
                            f"the initial value of `{state.name}` draws or reduces over several tensors"
                        )
        self.inputs |= {state.name: state.type for state in program.states}
        for assign in program.body:
            where = f"`{assign.name}`"
            known: Known = frozenset()
            for condition, wanted in assign.guard:
                self.reads(condition, known, f"the guard of {where}")
                if condition.type.kind is not Kind.BOOL or not condition.type.is_host:
                    self.fail(f"the guard of {where} has the type {condition.type}")
                known |= learned(condition, wanted)
            self.reads(assign.expr, known, where)
            if "." not in assign.name:
                self.fail(f"{where} is assigned, but its name carries no version")
            if assign.name in self.assigned:
                self.fail(f"{where} is assigned twice")
            self.assigned[assign.name] = (assign.expr.type, assign.guard)
        for name, expr in program.results.items():
            self.reads(expr, frozenset(), f"what is left in `{name}`")
        self.kept()

    # ---- declarations and results -----------------------------------------------------------------------

    def declarations(self) -> None:
        program = self.program
        names = [hyper.name for hyper in program.hypers] + [state.name for state in program.states]
        self.unique("name", [*FACTS, "p", "g"], names)
        self.unique("key", {hyper.argument for hyper in program.hypers}, [s.key for s in program.states])
        for hyper in program.hypers:
            if isinstance(hyper.default, tuple):
                fine = hyper.kind is Kind.LIST and {type(x) for x in hyper.default} in ({int}, {float})
            else:
                fine = const(hyper.default).type.kind is hyper.kind
            if not fine:
                self.fail(f"the default of `{hyper.name}` is {hyper.default!r}, not a {hyper.kind.value}")
        for state in program.states:
            if (state.type.level, state.type.shape) not in STATE_LEVELS.values():
                self.fail(f"the state `{state.name}` has the type {state.type}")
            inputs = (element(), Type(Kind.FLOAT, Level.GROUP))
            if state.given and (state.init is not None or state.type not in inputs):
                self.fail(f"the input `{state.name}` has an initial value, or the type {state.type}")
            if state.init is not None:
                self.fits(state.init, state.type, f"the initial value of `{state.name}`")

    def unique(self, what: str, taken: Iterable[str], names: list[str]) -> None:
        for name, count in Counter([*taken, *names]).items():
            if count > 1:
                self.fail(f"the {what} `{name}` is declared twice")

    def kept(self) -> None:
        targets = {"p": element()} | {state.name: state.type for state in self.program.kept}
        for name, expr in self.program.results.items():
            if name not in targets:
                self.fail(f"something is left in `{name}`, which is neither `p` nor a state")
            self.fits(expr, targets[name], f"what is left in `{name}`")

    def fits(self, value: Expr, target: Type, where: str) -> None:
        finer = value.type.level > target.level or not broadcasts_into(value.type.shape, target.shape)
        if finer or not value.type.kind.computed:
            self.fail(f"{where} has the type {value.type} and must fit {target}")

    # ---- expressions ------------------------------------------------------------------------------------

    def reads(self, root: Expr, known: Known, where: str) -> None:
        """Checks an expression that is evaluated where `known` holds."""
        stack = [(root, known)]
        while stack:
            item = stack.pop()
            if item in self.visited:
                continue
            self.visited.add(item)
            node, known = item
            if node not in self.sound:
                self.node(node, where)
                self.sound.add(node)
            if isinstance(node, Var):
                self.variable(node, known, where)
            elif isinstance(node, Call) and node.op == "select" and node.args[0].type.is_host:
                condition, then, other = node.args
                stack += [
                    (condition, known),
                    (then, known | learned(condition, True)),
                    (other, known | learned(condition, False)),
                ]
            else:
                stack += [(arg, known) for arg in node.args]

    def variable(self, node: Var, known: Known, where: str) -> None:
        """Checks that a named value is there to be read."""
        if node.name in self.inputs:
            declared = self.inputs[node.name]
            if any(s.name == node.name and s.init is None and not s.given for s in self.program.states):
                self.fail(f"{where} reads the state `{node.name}`, which has no initial value")
        elif node.name in self.assigned:
            declared, guard = self.assigned[node.name]
            for condition, wanted in guard:
                if not implied(known, condition, wanted):
                    self.fail(f"{where} reads `{node.name}`, which is not computed on every way there")
        elif any(assign.name == node.name for assign in self.program.body):
            self.fail(f"{where} reads `{node.name}` before it is assigned")
        else:
            self.fail(f"{where} reads `{node.name}`, which does not exist")
        if node.type != declared:
            self.fail(f"{where} reads `{node.name}` as {node.type}, but it is {declared}")

    def node(self, node: Expr, where: str) -> None:
        """Checks one node by itself."""
        if (node.type.shape == SCALAR) is (node.type.level is Level.ARRAY):
            self.fail(f"{where} has a value of level {node.type.level.name} and shape {node.type.shape}")
        match node:
            case Const():
                again: Expr = const(node.value)
            case Var():
                again = var(node.name, node.type)
            case Call():
                again = self.again(node, where)
        if again.type != node.type:
            self.fail(f"{where} has a value of type {node.type} that must be {again.type}")
        if again is not node:
            self.fail(f"{where} has a value that was not built by `const`, `var` or `call`: {node!r}")

    def again(self, node: Call, where: str) -> Expr:
        """The node built anew from its operands."""
        row = CORE.get(node.op)
        if row is None:
            self.fail(f"{where} calls `{node.op}`, which is no core operator")
        joint = node.attr in ("group", "all")
        if row.rule is Rule.REDUCE:
            fine = node.attr in OVERS and (isinstance(node.site, int) if joint else node.site is None)
        elif row.rule is Rule.RANDOM:
            fine = isinstance(node.attr, int) and 0 <= node.attr < MAX_STREAMS and node.site is None
        elif row.rule is Rule.BROADCAST:
            fine = node.attr in STATE_LEVELS and node.site is None
        else:
            fine = node.attr is None and node.site is None
        if not fine:
            self.fail(f"{where} calls `{node.op}` with the attributes {node.attr!r} and {node.site!r}")
        if node.site is not None and self.sites.setdefault(node.site, node) is not node:
            self.fail(f"{where} reduces at site {node.site}, where another reduction stands")
        over = node.attr if isinstance(node.attr, str) else None
        site = node.attr if isinstance(node.attr, int) else node.site
        try:
            return call(node.op, *node.args, over=over, site=site)
        except TypeFault as fault:
            self.fail(f"{where} calls `{node.op}`: {fault}")
