"""The kernels of a program, whatever language they are in, and the lines by which its Python class feeds them."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from optdsl.backends.cells import Cells
from optdsl.backends.layout import WIDTH, assignment
from optdsl.backends.torch.emit import quoted
from optdsl.backends.torch.printer import Printer
from optdsl.core.ops import FACTS, STATIC_FACTS
from optdsl.core.record import record
from optdsl.core.types import Level
from optdsl.ir.expr import Expr, var, variables
from optdsl.ir.plan import Array, Place, Plan
from optdsl.ir.program import Program
from optdsl.passes.intervals import Intervals
from optdsl.passes.library import Library, Unsupported, settings
from optdsl.passes.schedule import EXACT, MODES, schedule
from optdsl.passes.simplify import drop_dead
from optdsl.passes.specialise import Leaf, Split, TooManyBranches, Tree, decide, inline_host, leaves


class NoKernels(Exception):
    """The reason why a program has no kernels."""


@record
class Functions:
    """The functions of one kernel: one for each sweep, and in front of each and behind the last ("" for none)."""

    passes: tuple[str, ...]
    between: tuple[str, ...]


@record
class Source:
    """A file of kernels. `field` is what the class calls it; `functions` are those of each kernel, by its number,
    where a kernel is not found by its number alone.
    """

    field: str
    file: str
    text: str
    functions: tuple[Functions, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the bytes of the file: a class takes no kernels but those that were made with it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def plans(program: Program) -> list[tuple[tuple[tuple[Expr, bool], ...], Plan | str]]:
    """The plan of every branch, or why it has none, with the conditions that lead there. Raises NoKernels."""
    divided = _plans(program)
    tree, found, lacking = divided.tree, divided.plans, divided.lacking

    def walk(
        tree: Tree, path: tuple[tuple[Expr, bool], ...]
    ) -> list[tuple[tuple[tuple[Expr, bool], ...], Plan | str]]:
        if isinstance(tree, Leaf):
            return [(path, found[id(tree)][0] if id(tree) in found else lacking[id(tree)])]
        then, other = (tree.condition, True), (tree.condition, False)
        return walk(tree.then, (*path, then)) + walk(tree.other, (*path, other))

    return walk(tree, ())


@record
class _Plans:
    """`program` is what kernels do, `library` what they leave to torch. By the identity of each leaf of the tree of
    settings, `plans` has its plans in the order of MODES, or `lacking` says why it has none.
    """

    program: Program
    library: Library | None
    tree: Tree
    plans: dict[int, list[Plan]]
    lacking: dict[int, str]


def _plans(program: Program) -> _Plans:
    """The plans of all settings and branches. Raises NoKernels if none has any."""
    try:
        kernels, library, tree = settings(program)
    except TooManyBranches:
        raise NoKernels("its options and branches multiply to too many kernels") from None
    except Unsupported as reason:
        raise NoKernels(str(reason)) from None
    plans: dict[int, list[Plan]] = {}
    lacking: dict[int, str] = {}
    for leaf in leaves(tree):
        try:
            exact = schedule(leaf, EXACT, library)
            others = MODES[1:] if len(exact.sweeps) > 1 else ()
            modes = [exact, *(schedule(leaf, mode, library) for mode in others)]
            modes += [exact] * (len(MODES) - len(modes))
            plans[id(leaf)] = [exact if mode.sweeps == exact.sweeps else mode for mode in modes]
        except Unsupported as reason:
            lacking[id(leaf)] = str(reason)
    if not plans:
        raise NoKernels(next(iter(lacking.values())))
    return _Plans(kernels, library, tree, plans, lacking)


@record(frozen=False)
class Unit:
    """Kernels that share their table, and are compiled together: those of one setting in one mode."""

    number: int
    arrays: list[Array]
    cells: list[Cells]


class Kernels:
    """All kernels of a program (simplified, not lowered)."""

    def __init__(self, program: Program, names: Mapping[str, str]) -> None:
        """`names` maps hyperparameters to the names they have in Python. Raises NoKernels."""
        found = _plans(program)
        self.program, self.library, self.tree, self.plans = (
            found.program,
            found.library,
            found.tree,
            found.plans,
        )
        #: Why some settings or branches have no kernels, "" if all have.
        self.lacking = " or ".join(dict.fromkeys(found.lacking.values()))
        self.leaves = list(leaves(self.tree))
        self.number = {id(leaf): index for index, leaf in enumerate(self.leaves)}
        self.names = self._names(names)
        self.printer = Printer(self.names, Intervals(self.program), False, False)
        self.units: list[Unit] = []
        #: For each leaf, by its identity, the host-level states that its setting reads or writes.
        self.hosts: dict[int, list[str]] = {}
        #: For each leaf the number of its kernel in each mode, -1 for none.
        self.kernels: list[list[int]] = [
            [] if id(leaf) in self.plans else [-1] * len(MODES) for leaf in self.leaves
        ]
        #: Every kernel with its unit, in the order in which they are numbered.
        self.cells: list[tuple[Unit, Cells]] = []
        self._gather()

    def _names(self, names: Mapping[str, str]) -> dict[str, str]:
        """Python names of hyperparameters, host states and host values."""
        made = {h.name: names[h.name] for h in self.program.hypers}
        taken = set(made.values()) | set(FACTS) | {"group", "facts", "state", "host", "math"}
        hosts = [s.name for s in self.program.states if s.type.is_host]
        for leaf in self.leaves:
            hosts += [a.name for a in leaf.program.body if a.expr.type.is_host]
        hosts += [a.name for a in self.program.body if a.expr.type.is_host]
        for name in dict.fromkeys(hosts):
            plain, _, version = name.partition(".")
            new = f"{plain}_{version or 'old'}"
            while new in taken:
                new += "_"
            taken.add(new)
            made[name] = new
        return made

    def _gather(self) -> None:
        """Sorts the plans of all leaves into units."""
        settings: dict[tuple[tuple[Expr, bool], ...], list[Leaf]] = {}
        for leaf in self.leaves:
            if id(leaf) in self.plans:
                settings.setdefault(leaf.setting, []).append(leaf)
        read = {
            id(leaf): self._host_reads(leaf, path)
            for leaf, path in _paths(tree=self.tree)
            if id(leaf) in self.plans
        }
        for members in settings.values():
            together = set().union(*(read[id(leaf)] for leaf in members))
            hosts = [s.name for s in self.program.states if s.name in together]
            self.hosts.update({id(leaf): hosts for leaf in members})
            known: list[tuple[list[Plan], int]] = []
            for mode in range(len(MODES)):
                plans = [self.plans[id(leaf)][mode] for leaf in members]
                first = next((start for same, start in known if all(map(_is, same, plans))), None)
                if first is None:
                    first = len(self.cells)
                    known.append((plans, first))
                    self._unit(plans, len(hosts))
                for offset, leaf in enumerate(members):
                    self.kernels[self.number[id(leaf)]].append(first + offset)

    def _host_reads(self, leaf: Leaf, path: list[Expr]) -> set[str]:
        """Host-level states that a plan, or the way to it, reads or writes."""
        plan = self.plans[id(leaf)][0]
        need = {name for name, _ in plan.host_states}
        for read in (*plan.slots, *(expr for _, expr in plan.host_states), *path):
            need |= variables(read)
        if plan.library is not None and self.library is not None:
            left = self.library.program
            for condition, value in leaf.setting:
                left = decide(left, condition, value)
            need |= set().union(*map(variables, drop_dead(left).expressions()))
        definitions = {a.name: a.expr for a in (*self.program.body, *leaf.program.body)}
        queue = list(need)
        while queue:
            expr = definitions.get(queue.pop())
            if expr is not None and expr.type.is_host:
                queue += variables(expr) - need
                need |= variables(expr)
        return {s.name for s in self.program.states if s.type.is_host and s.name in need}

    def _unit(self, plans: list[Plan], hosts: int) -> None:
        used = {a.name: a for plan in plans for a in plan.arrays}
        order = dict.fromkeys(["p", "g", *(s.name for s in self.program.states), *used])
        arrays = [used[name] for name in order if name in used]
        unit = Unit(len(self.units), arrays, [Cells(plan, arrays, hosts) for plan in plans])
        self.units.append(unit)
        self.cells += [(unit, cells) for cells in unit.cells]

    # ---- Python -----------------------------------------------------------------------------------------

    def declarations(self, sources: Sequence[Source]) -> list[str]:
        """The attribute `_native` of the class, whose kernels are in these files."""
        functions = next((source.functions for source in sources if source.functions), None)
        lines = ["_native = Native("]
        for source in sources:
            lines += [
                f"    {source.field}={_spelled(source.file)},",
                f'    {source.field}_sha256="{source.sha256}",',
            ]
        lines.append("    kernels=(")
        for number, (unit, cells) in enumerate(self.cells):
            named = functions[number] if functions else None
            lines += ["        " + line for line in self.kernel(unit, cells, named)]
        lines.append("    ),")
        modes = [tuple(numbers) for numbers in self.kernels]
        lines.append("    modes=(")
        lines += [f"        {mode}," for mode in modes]
        lines.append("    ),")
        if self.lacking:
            lines.append(f"    lacking={quoted(self.lacking)},")
        return [*lines, ")"]

    def kernel(self, unit: Unit, cells: Cells, named: Functions | None) -> list[str]:
        plan = cells.plan
        states = [a for a in unit.arrays if a.key]
        fields = [
            f"unit={unit.number}",
            f"number={unit.cells.index(cells)}",
            f"arrays={_tuple((a.key, '' if a.group else a.place.value) for a in states)}",
            f"slots={len(plan.slots)}",
            f"sweeps={len(plan.sweeps)}",
        ]
        hosts = self.keys_of(cells)
        optional = {
            "host_states": (_tuple(hosts), hosts),
            "groups": (_tuple(plan.array(n).key for n in cells.group_cell), cells.group_cell),
            "written_groups": (
                _tuple(plan.array(n).key for n, _ in plan.scalar_stores if plan.array(n).group),
                [n for n, _ in plan.scalar_stores if plan.array(n).group],
            ),
            "joints": (self.joints(cells), cells.joint_cell),
            "ranked": (self.ranked(cells), self.ranked(cells) != "()"),
            "values": (str(len(cells.scalar_cell)), cells.scalar_cell),
            "width": (str(cells.width), cells.width),
            "rows": (str(len(cells.row_cell)), cells.row_cell),
            "columns": (str(len(cells.column_cell)), cells.column_cell),
            "column_width": (str(cells.column_width), cells.column_width),
            "by_rows": ("True", cells.by_rows),
            "draws": ("True", plan.draws),
            "works": (_tuple(self.works(unit)), self.works(unit)),
            "library": (_spelled(self.handover(cells)), plan.library),
            "passes": (_spelled(named.passes) if named else "", named),
            "between": (_spelled(named.between) if named else "", named),
        }
        fields += [f"{name}={value}" for name, (value, wanted) in optional.items() if wanted]
        return _call("Kernel", fields)

    def works(self, unit: Unit) -> tuple[tuple[str, str], ...]:
        """The arrays of the table that are there during a step only, with their levels."""
        levels = {state.name: state.type.level_name for state in self.program.states}
        return tuple((a.key, levels.get(a.name, "element")) for a in unit.arrays if a.work)

    def handover(self, cells: Cells) -> tuple[object, ...]:
        """Where the library comes in: the sweep, for each of its inputs where it is kept, its outputs, its states."""
        plan = cells.plan
        if plan.library is None:
            return ()
        inputs: list[tuple[str, str, int]] = []
        for name, held in plan.library.inputs:
            if held in cells.cell:
                inputs.append((name, "array", cells.cell[held]))
            elif cells.place(held) is Place.SCALAR:
                group = self.program.state(name).type.level is Level.GROUP
                inputs.append((name, "group" if group else "value", cells.scalar_cell[held]))
            elif cells.place(held) is Place.ROWS:
                inputs.append((name, "row", cells.row_cell[held]))
            else:
                inputs.append((name, "column", cells.column_cell[held]))
        assert self.library is not None
        kept = tuple(self.library.program.state(name).key for name in plan.library.kept)
        return plan.library.sweep, tuple(inputs), plan.library.outputs, kept

    def keys_of(self, cells: Cells) -> list[str]:
        """Keys of the host-level states of a kernel."""
        position = next(i for i, (_, other) in enumerate(self.cells) if other is cells)
        leaf = next(
            leaf for leaf, numbers in zip(self.leaves, self.kernels, strict=True) if position in numbers
        )
        return [self.program.state(name).key for name in self.hosts[id(leaf)]]

    def joints(self, cells: Cells) -> str:
        """For each joint reduction: sweep, number of the partial result, site, over, kind, what it counts."""
        rows = []
        for k in range(len(cells.plan.sweeps)):
            for number, value in enumerate(cells.plan.closing(k)):
                found = value.reduction
                if found is not None and found.joint:
                    rows.append((k, number, found.site, found.over, found.kind, found.operand.value))
        return _tuple(rows)

    def ranked(self, cells: Cells) -> str:
        """The joint reductions that rank entries: site, and the array that has them."""
        found = (
            v.reduction for v in cells.values.values() if v.reduction is not None and v.reduction.entries
        )
        return _tuple((reduction.site, reduction.entries) for reduction in found)

    def function(self) -> list[str]:
        """`_kernel`: which leaf a step is, its slots and its new host states."""
        body = self.branch(self.tree, frozenset())
        return [
            "@staticmethod",
            "def _kernel(",
            "    group: dict[str, Any], t: Any, facts: Facts, state: dict[str, Any]",
            ") -> tuple[int, tuple[Any, ...], tuple[Any, ...]]:",
            '    """Which plan this step follows, the numbers that its kernel takes, the new host states."""',
            *("    " + line for line in body),
        ]

    def branch(self, tree: Tree, known: frozenset[str]) -> list[str]:
        if isinstance(tree, Leaf):
            if id(tree) not in self.plans:
                return [f"return {self.number[id(tree)]}, (), ()  # no kernel"]
            plan = self.plans[id(tree)][0]
            new = dict(plan.host_states)
            states = [self.program.state(name) for name in self.hosts[id(tree)]]
            hosts = [new.get(s.name, var(s.name, s.type)) for s in states]
            lines, known = self.definitions(tree.program, [*plan.slots, *hosts], known)
            slots = [self.printer.text(expr) for expr in plan.slots]
            text = [f"{self.number[id(tree)]},", f"({_items(slots)}),"]
            text.append(f"({_items([self.printer.text(expr) for expr in hosts])}),")
            line = "return " + " ".join(text).rstrip(",")
            if len(line) <= WIDTH:
                return [*lines, line]
            return [*lines, "return (", *_wrapped(text[0]), *_wrapped_tuple(slots), "    " + text[2], ")"]
        assert isinstance(tree, Split)
        lines, known = self.definitions(inline_host(tree.program), [tree.condition], known)
        then, other = self.branch(tree.then, known), self.branch(tree.other, known)
        condition = self.printer.text(tree.condition)
        return [*lines, f"if {condition}:", *("    " + line for line in then), *other]

    def definitions(
        self, program: Program, exprs: list[Expr], known: frozenset[str]
    ) -> tuple[list[str], frozenset[str]]:
        """Lines that compute what these host expressions read and that is not known yet."""
        need = set().union(*map(variables, exprs)) if exprs else set()
        steps = []
        for assign in reversed(program.body):
            if assign.name in need and assign.name not in known and assign.expr.type.is_host:
                steps.append(assign)
                need |= variables(assign.expr)
        lines = self.unpack(need - known)
        for state in self.program.states:
            if state.type.is_host and state.name in need - known:
                lines.append(f"{self.names[state.name]} = state[{quoted(state.key)}]")
        for step in reversed(steps):
            lines += assignment(self.names[step.name], self.printer.text(step.expr))
        return lines, known | need

    def unpack(self, need: set[str]) -> list[str]:
        """Lines that take hyperparameters and facts out of `group` and `facts`."""
        lines = []
        for argument in dict.fromkeys(h.argument for h in self.program.hypers):
            parts = [h for h in self.program.hypers if h.argument == argument]
            if any(h.name in need for h in parts):
                target = ", ".join(self.names[h.name] if h.name in need else "_" for h in parts)
                comma = "," if len(parts) == 1 and parts[0].is_part else ""
                lines.append(f"{target}{comma} = group[{quoted(argument)}]")
        return lines + [f"{name} = facts.{name}" for name in FACTS if name in need and name in STATIC_FACTS]


def _paths(tree: Tree, path: tuple[Expr, ...] = ()) -> Iterator[tuple[Leaf, list[Expr]]]:
    """Every leaf with the conditions that lead to it."""
    if isinstance(tree, Leaf):
        yield tree, list(path)
    else:
        yield from _paths(tree.then, (*path, tree.condition))
        yield from _paths(tree.other, (*path, tree.condition))


def _is(a: Plan, b: Plan) -> bool:
    return a is b


def in_comment(text: str) -> str:
    """`text` without anything that could end a comment, a docstring or a line."""
    return re.sub(r"[^\w.+-]", "_", text)


def _tuple(items: Iterable[object]) -> str:
    return _spelled(tuple(items))


def _spelled(item: object) -> str:
    if isinstance(item, tuple):
        return f"({', '.join(map(_spelled, item))}{',' * (len(item) == 1)})"
    return quoted(item) if isinstance(item, str) else repr(item)


def _items(texts: list[str]) -> str:
    return ", ".join(texts) + "," * (len(texts) == 1)


def _call(name: str, fields: list[str]) -> list[str]:
    line = f"{name}({', '.join(fields)}),"
    if len(line) <= WIDTH - 8:
        return [line]
    return [f"{name}(", *(f"    {line}" for field in fields for line in _field(field)), "),"]


def _field(text: str) -> list[str]:
    """A field, with the entries of a long tuple in lines of their own."""
    name, _, value = text.partition("=")
    if len(text) <= WIDTH - 24 or not value.startswith("("):
        return [f"{text},"]
    return [f"{name}=(", *(f"    {_spelled(item)}," for item in ast.literal_eval(value)), "),"]


def _wrapped(text: str) -> list[str]:
    return ["    " + text]


def _wrapped_tuple(texts: list[str]) -> list[str]:
    return ["    (", *(f"        {text}," for text in texts), "    ),"]
