"""The bodies of the update functions: states loaded where they are used, statements, states stored."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import takewhile

from optdsl.backends.layout import assignment
from optdsl.backends.torch.printer import Printer
from optdsl.core.ops import CORE, FACTS, Rule
from optdsl.core.record import field, record
from optdsl.core.types import AXES, COLS, ELEMENT, ROWS, Level, Type, element
from optdsl.ir.expr import Call, Expr, Var, call, var, variables, walk
from optdsl.ir.program import Guard, Program
from optdsl.ir.structure import Branch, Set, Statement, Structured, statements, structure
from optdsl.ir.verify import Known
from optdsl.passes.intervals import Intervals
from optdsl.passes.shards import is_reduction

#: Python names that a variable of the step must not take.
RESERVED = frozenset(
    [
        *keyword.kwlist,
        *keyword.softkwlist,
        *("state", "group", "facts", "random", "host", "foreach", "torch", "math", "Tensor", "Joint", "Any"),
        *("zip", "len", "r", "q", "x", "y", "z", "t", "self", "key", "keys", "shaped", "whole", "broadcast"),
        *("as_matrix", "axes", "fit", "like", "newton_schulz", "over_filters"),
        *(
            f"{over}_{kind}"
            for over in ("row", "col", "tensor")
            for kind in ("sum", "mean", "max", "min", "kth_largest")
        ),
        *FACTS,
    ]
)


def uses_matrices(program: Program) -> bool:
    """True when the step sees a tensor as a matrix, so that every array is handled with two dimensions."""
    plain = (ROWS, COLS, ELEMENT, AXES)
    if any(s.type.level is Level.ARRAY and s.type.shape not in plain for s in program.states):
        return True
    return any(
        CORE[node.op].rule in (Rule.MATMUL, Rule.TRANSPOSE, Rule.MATRIX)
        for node in nodes(program)
        if isinstance(node, Call)
    )


def nodes(program: Program) -> Iterator[Expr]:
    """Every node of the step and of the initial values."""
    yield from program.nodes()
    for state in program.states:
        if state.init is not None:
            yield from walk(state.init)


@record(frozen=False)
class Arm:
    """A list of statements with what is loaded in front of it and stored behind it.

    `above` are the arms around it, from the outermost on, and itself; `first` and `last` number arms in the
    order in which they begin and end.
    """

    body: list[Statement]
    path: tuple[tuple[Expr, bool], ...] = ()
    above: tuple[Arm, ...] = ()
    first: int = 0
    last: int = 0
    loads: list[str] = field(default_factory=list)
    stores: list[tuple[str, Expr]] = field(default_factory=list)


class Body:
    """Statements of one program with the places of loads and stores worked out.

    `reach` maps each state to the paths (conditions) under which it is loaded or stored. Those of a `library` program
    are matrices, and it leaves no parameter.
    """

    def __init__(self, program: Program, library: bool = False, meets: bool = False) -> None:
        """`meets`: every reduction is assigned to a name, and asked for; see `optdsl.passes.shards`."""
        self.program = program
        self.library = library
        self.meets = meets
        mangle = {name: f"{name}_" for name in inputs(program) if name in RESERVED}
        self.structured: Structured = structure(program, RESERVED, mangle)
        self.names = self.structured.names
        self.matrices = uses_matrices(program)
        self.joint = program.joint or meets
        self.arms: dict[int, Arm] = {}
        self.root = self._index(self.structured.body, (), ())
        self.reach: dict[str, list[tuple[tuple[Expr, bool], ...]]] = {s.name: [] for s in program.states}
        for state in program.states:
            if state.name in program.results:
                self._place_store(state.name)
        self.passed = self._passed_on()
        for state in program.states:
            self._place_load(state.name)

    def _index(
        self, body: list[Statement], path: tuple[tuple[Expr, bool], ...], above: tuple[Arm, ...]
    ) -> Arm:
        arm = Arm(body, path, first=len(self.arms))
        arm.above = (*above, arm)
        self.arms[id(body)] = arm
        for item in body:
            if isinstance(item, Branch):
                self._index(item.then, (*path, (item.condition, True)), arm.above)
                self._index(item.other, (*path, (item.condition, False)), arm.above)
        arm.last = len(self.arms) - 1
        return arm

    # ---- loads ------------------------------------------------------------------------------------------

    def _place_load(self, state: str) -> None:
        """Loads a state at the start of each innermost arm that reads it."""
        arms = self._readers(self.root, state)
        stores = [arm for arm in self.arms.values() if any(name == state for name, _ in arm.stores)]
        if any(_stored_before(store, load) for store in stores for load in arms):
            levels = zip(*(a.above for a in arms), strict=False)
            common = takewhile(lambda same: all(x is same[0] for x in same), levels)
            arms = [list(common)[-1][0]]
        for arm in arms:
            arm.loads.append(state)
            self.reach[state].append(arm.path)

    def _passed_on(self) -> set[tuple[Guard, str]]:
        """States that a join passes on because one of its branches leaves them alone, with the join's guard.

        The variable must then hold the state in front of the branches, if the joined value is read at all.
        """
        spelled = {s.value for s in statements(self.structured.body) if is_lazy(s.expr)}
        joins = {a.name: a for a in self.program.body if is_lazy(a.expr) and a.name not in spelled}
        found: set[tuple[Guard, str]] = set()
        stack = list(self._reads())
        seen = set(stack)
        while stack:
            name, known = stack.pop()
            if name not in joins:
                continue
            join = joins[name]
            condition, *sides = join.expr.args
            for side, wanted in zip(sides, (True, False), strict=True):
                implicit = isinstance(side, Var) and self.names.get(side.name) == self.names[name]
                if not implicit or (condition, not wanted) in known:
                    continue
                assert isinstance(side, Var)
                found.add((join.guard, side.name))
                inner = (side.name, known | {(condition, wanted)})
                if inner not in seen:
                    seen.add(inner)
                    stack.append(inner)
        return found

    def _reads(self) -> Iterator[tuple[str, Known]]:
        """Every value that a statement, a store or the end of the step reads, with what is known there."""
        yield from reads(self.program.results.get("p", var("p", element())))
        for arm in self.arms.values():
            known = frozenset(arm.path)
            for _, value in arm.stores:
                yield from reads(value, known)
            for item in arm.body:
                yield from reads(item.expr if isinstance(item, Set) else item.condition, known)

    def _readers(self, arm: Arm, state: str) -> list[Arm]:
        """The innermost arms, from `arm` on, whose statements read `state`."""
        found: list[Arm] = []
        if any(state in variables(value) for _, value in arm.stores):
            return [arm]
        if arm is self.root and state in variables(self.program.results.get("p", var("p", element()))):
            return [arm]
        for item in arm.body:
            if isinstance(item, Set):
                if state in variables(item.expr):
                    return [arm]
                continue
            if state in variables(item.condition) or (arm.path, state) in self.passed:
                return [arm]
            sides = [self.arms[id(side)] for side in (item.then, item.other)]
            readers = [self._readers(side, state) for side in sides]
            if readers == [[sides[0]], [sides[1]]]:  # read whichever side is taken
                return [arm]
            found += readers[0] + readers[1]
        return found

    # ---- stores -----------------------------------------------------------------------------------------

    def _place_store(self, state: str) -> None:
        value = self.program.results[state]
        if isinstance(value, Var) and self._push_store(self.root, state, value):
            return
        self._store(self.root, state, value)

    def _store(self, arm: Arm, state: str, value: Expr) -> None:
        self.reach[state].append(arm.path)
        arm.stores.append((state, value))

    def _push_store(self, arm: Arm, state: str, value: Var) -> bool:
        """Stores a joined value in the branches that change the state, if one of them leaves it alone."""
        made = next((a for a in self.program.body if a.name == value.name), None)
        if made is None or not self._leaves_alone(value, state):
            return False
        condition, *sides = made.expr.args
        branches = [b for b in arm.body if isinstance(b, Branch) and b.condition is condition]
        # of several branches on one condition, the last one in front of the join
        order = {a.name: number for number, a in enumerate(self.program.body)}
        inside = [[order[s.value] for s in statements([*b.then, *b.other])] for b in branches]
        here = order[value.name]
        before = [b for b, numbers in zip(branches, inside, strict=True) if numbers and numbers[0] <= here]
        if not before:
            return False
        branch = before[-1]
        for side, body in zip(sides, (branch.then, branch.other), strict=True):
            if isinstance(side, Var) and side.name == state:
                continue
            inner = self.arms[id(body)]
            if not (isinstance(side, Var) and self._push_store(inner, state, side)):
                self._store(inner, state, side)
        return True

    def _leaves_alone(self, value: Var, state: str) -> bool:
        """True when `value` joins branches of which one keeps the stored state."""
        made = next((a for a in self.program.body if a.name == value.name), None)
        if made is None or not is_lazy(made.expr):
            return False
        return any(
            isinstance(side, Var) and (side.name == state or self._leaves_alone(side, state))
            for side in made.expr.args[1:]
        )

    # ---- lines ------------------------------------------------------------------------------------------

    def lines(self, printer: Printer) -> list[str]:
        """The statements as Python lines, ending with the return of the new parameter if there is one."""
        lines = self._arm(self.root, printer)
        if not self.library:
            value = self.program.results.get("p", var("p", element()))
            lines.append(f"return {self._whole(value, 'shaped', printer)}")
        whole = mentions_whole(lines)
        return self._prologue(printer, whole, lines) + ["whole = p"] * whole + lines

    def _prologue(self, printer: Printer, whole: bool, body: list[str]) -> list[str]:
        """Arrays as matrices, for a step that multiplies them."""
        if not self.matrices:
            return []
        read = used_inputs(self.program) | ({"p"} if whole else set())
        lines = ["shaped = p"] if any("shaped" in line for line in body) else []
        for name in ("p", "g"):
            if name in read:
                matrix = f"[as_matrix(x) for x in {name}]" if printer.foreach else f"as_matrix({name})"
                lines.append(f"{name} = {matrix}")
        return lines

    def _whole(self, value: Expr, target: str, printer: Printer) -> str:
        """`value` as what is stored: a list in the foreach form, in the shape of `target` for matrices."""
        text = printer.text(value)
        if printer.foreach and not printer.is_list(value):
            return f"[{text}] * len(whole)"
        if self.library or not self._reshapes(value.type):
            return text
        if printer.foreach:
            return f"[like(x, y) for x, y in zip({text}, {target}, strict=True)]"
        return f"like({text}, {target})"

    def _reshapes(self, type_: Type) -> bool:
        """True for arrays that the step sees as matrices and that are kept in another shape."""
        return self.matrices and type_.level is Level.ARRAY and type_.shape != AXES

    def _arm(self, arm: Arm, printer: Printer) -> list[str]:
        lines = [self._load(state, printer) for state in arm.loads]
        for item in self._met(arm.body):
            if isinstance(item, list):
                lines += printer.meeting(item)
                continue
            if isinstance(item, Set):
                printer.overwritable = self._overwritable(item)
                text = printer.text(item.expr)
                lines += assignment(item.target, text) if text != item.target else []
                printer.overwritable = frozenset()
                continue
            lines += self._branch(item, printer)
        for state, value in arm.stores:
            lines += self._store_lines(state, value, printer)
        return lines

    def _met(self, body: list[Statement]) -> Iterator[Statement | list[Set]]:
        """Statements, those in a list which are reductions that meet at once."""
        met: list[Set] = []
        for item in body:
            asked = item if self.meets and isinstance(item, Set) and is_reduction(item.expr) else None
            if met and (asked is None or not variables(asked.expr).isdisjoint(each.value for each in met)):
                yield met
                met = []
            if asked is None:
                yield item
            else:
                met.append(asked)
        if met:
            yield met

    @cached_property
    def _uses(self) -> Counter[str]:
        """How often each value is read, by the step and as a result."""
        return Counter(name for expr in self.program.expressions() for name in occurrences(expr))

    @cached_property
    def _shared(self) -> set[str]:
        """Values that another list may share its tensors with: read as they are, or through a view."""
        found = {expr.name for expr in self.program.expressions() if isinstance(expr, Var)}
        for node in self.program.nodes():
            if is_lazy(node) or (isinstance(node, Call) and node.op in ("broadcast", "transpose")):
                found |= {arg.name for arg in node.args if isinstance(arg, Var)}
        return found

    @cached_property
    def _made(self) -> dict[str, Expr]:
        return {a.name: a.expr for a in self.program.body}

    def _single(self, name: str) -> bool:
        """True for a computed value that is read once, so that its list has no other owner."""
        made = self._made.get(name)
        if not isinstance(made, Call) or self._uses[name] != 1 or made.op in ("broadcast", "transpose"):
            return False
        if made.op == "select" and made.args[0].type.is_host:  # one of two lists
            return all(isinstance(arm, Var) and self._single(arm.name) for arm in made.args[1:])
        return True

    def _overwritable(self, item: Set) -> frozenset[str]:
        """Lists that the foreach form of a statement may overwrite: what is read here for the last time.

        That is the stored value of what the statement assigns, and values that are read nowhere else. A
        joint step must leave everything alone until all tensors are done.
        """
        if self.matrices or self.joint:
            return frozenset()
        found = set()
        for name, count in Counter(occurrences(item.expr)).items():
            if count > 1 or name in self._shared or name == "g":
                continue
            own = name in ("p", *(s.name for s in self.program.states)) and self.names[name] == item.target
            if own or self._single(name):
                found.add(name)
        return frozenset(found)

    def _branch(self, branch: Branch, printer: Printer) -> list[str]:
        then = self._arm(self.arms[id(branch.then)], printer)
        other = self._arm(self.arms[id(branch.other)], printer)
        condition = branch.condition
        if not then:
            then, other, condition = other, [], call("not", condition)
        if not then:
            return []
        lines = [f"if {printer.text(condition)}:", *("    " + line for line in then)]
        if other:
            nested = branch.other[0] if len(branch.other) == 1 else None
            arm = self.arms[id(branch.other)]
            if isinstance(nested, Branch) and not arm.loads and not arm.stores and other[0].startswith("if "):
                return [*lines, "el" + other[0], *other[1:]]
            lines += ["else:", *("    " + line for line in other)]
        return lines

    def _load(self, name: str, printer: Printer) -> str:
        state = self.program.state(name)
        source = f'state["{state.key}"]'
        if self._reshapes(state.type):
            source = f"[as_matrix(x) for x in {source}]" if printer.foreach else f"as_matrix({source})"
        return f"{self.names[name]} = {source}"

    def _store_lines(self, name: str, value: Expr, printer: Printer) -> list[str]:
        state = self.program.state(name)
        target = f'state["{state.key}"]'
        if state.type.level < Level.TENSOR:
            return assignment(target, printer.text(value))
        return assignment(target, self._whole(value, target, printer))


def mentions_whole(lines: list[str]) -> bool:
    """True when lines of code use the name that printers give to the parameter as it was."""
    return any(re.search(r"\bwhole\b", line) for line in lines)


def _stored_before(store: Arm, load: Arm) -> bool:
    """True when what ends one arm may come before what begins the other."""
    exclusive = any((condition, not wanted) in load.path for condition, wanted in store.path)
    return store.last < load.first and not exclusive


def is_lazy(expr: Expr) -> bool:
    """True for a choice on a condition that the host knows."""
    return isinstance(expr, Call) and expr.op == "select" and expr.args[0].type.is_host


def reads(expr: Expr, known: Known = frozenset()) -> Iterator[tuple[str, Known]]:
    """Names of the values that `expr` reads, with the conditions under which it does."""
    if isinstance(expr, Var):
        yield expr.name, known
    elif is_lazy(expr):
        condition, then, other = expr.args
        yield from reads(condition, known)
        yield from reads(then, known | {(condition, True)})
        yield from reads(other, known | {(condition, False)})
    else:
        for arg in expr.args:
            yield from reads(arg, known)


def occurrences(expr: Expr) -> Iterator[str]:
    """Names of the values that `expr` reads, each as often as it is read."""
    counts: Counter[int] = Counter({id(expr): 1})
    for node in reversed(list(walk(expr))):  # users before operands
        for arg in node.args:
            counts[id(arg)] += counts[id(node)]
        if isinstance(node, Var):
            yield from [node.name] * min(counts[id(node)], 2)


def inputs(program: Program) -> set[str]:
    """Names of hyperparameters and states."""
    return {h.name for h in program.hypers} | {s.name for s in program.states}


def used_inputs(program: Program) -> set[str]:
    """Names that the step reads."""
    names: set[str] = set()
    for expr in program.expressions():
        names |= variables(expr)
    return names


def printers(program: Program, body: Body) -> Mapping[str, Printer]:
    """The printers of the for-loop and the foreach form."""
    intervals = Intervals(program)
    return {
        "loop": Printer(body.names, intervals, body.matrices, foreach=False),
        "foreach": Printer(body.names, intervals, body.matrices, foreach=True, like="whole[0]"),
    }
