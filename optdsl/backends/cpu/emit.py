"""The C file of a spec, and the lines by which its Python class finds and feeds the kernels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from optdsl import __version__
from optdsl.backends.cpu.kernel import KernelText
from optdsl.backends.layout import WIDTH, assignment
from optdsl.backends.native import Native
from optdsl.backends.revision import REVISION
from optdsl.backends.templates import render
from optdsl.backends.torch.emit import quoted
from optdsl.backends.torch.printer import Printer
from optdsl.core.ops import FACTS, STATIC_FACTS
from optdsl.core.record import record
from optdsl.ir.expr import Expr, var, variables
from optdsl.ir.plan import Array, Plan
from optdsl.ir.program import Program
from optdsl.passes.intervals import Intervals
from optdsl.passes.schedule import EXACT, MODES, Unsupported, schedule
from optdsl.passes.specialise import Leaf, Split, TooManyBranches, Tree, inline_host, leaves, specialise

NAME = "cpu"


def supports(program: Program) -> str | None:
    """None, or the reason why this backend has no kernels for `program`."""
    return _plans(program)[2]


def emit(program: Program, source: str, digest: str, module: str, names: Mapping[str, str]) -> Native:
    """Kernels for `program` (simplified, not lowered), which comes from the spec file `source`.

    `module` is the name of the generated files, `names` maps hyperparameters to the names they have in Python.
    """
    tree, plans, reason = _plans(program)
    if tree is None:
        return Native(reason)
    return _Emitter(program, source, digest, module, names, tree, plans).native()


def plans(program: Program) -> tuple[list[tuple[tuple[tuple[Expr, bool], ...], Plan]], str | None]:
    """The plan of every branch with the conditions that lead there, and None; or none and why there is none."""
    tree, found, reason = _plans(program)
    if tree is None:
        return [], reason

    def walk(
        tree: Tree, path: tuple[tuple[Expr, bool], ...]
    ) -> list[tuple[tuple[tuple[Expr, bool], ...], Plan]]:
        if isinstance(tree, Leaf):
            return [(path, found[id(tree)][0])]
        then, other = (tree.condition, True), (tree.condition, False)
        return walk(tree.then, (*path, then)) + walk(tree.other, (*path, other))

    return walk(tree, ()), None


def _plans(program: Program) -> tuple[Tree | None, dict[int, list[Plan]], str | None]:
    """The tree of settings and, by the identity of each leaf, its plans in the order of MODES."""
    try:
        tree = specialise(program)
        plans = {}
        for leaf in leaves(tree):
            exact = schedule(leaf, EXACT)
            modes = [exact] + [schedule(leaf, m) if len(exact.sweeps) > 1 else exact for m in MODES[1:]]
            plans[id(leaf)] = [exact if mode.sweeps == exact.sweeps else mode for mode in modes]
        return tree, plans, None
    except TooManyBranches:
        return None, {}, "its options and branches multiply to too many kernels"
    except Unsupported as reason:
        return None, {}, str(reason)


@record(frozen=False)
class _Unit:
    """Kernels that are compiled together: those of one setting in one mode."""

    number: int
    arrays: list[Array]
    texts: list[KernelText]


class _Emitter:
    def __init__(
        self,
        program: Program,
        source: str,
        digest: str,
        module: str,
        names: Mapping[str, str],
        tree: Tree,
        plans: dict[int, list[Plan]],
    ) -> None:
        self.program, self.source, self.digest, self.module = program, source, digest, module
        self.tree, self.plans = tree, plans
        self.leaves = list(leaves(tree))
        self.number = {id(leaf): index for index, leaf in enumerate(self.leaves)}
        self.names = self._names(names)
        self.printer = Printer(self.names, Intervals(program), False, False, numbers=True)
        self.units: list[_Unit] = []
        #: For each leaf, by its identity, the host-level states that its setting reads or writes.
        self.hosts: dict[int, list[str]] = {}
        #: For each leaf the number of its kernel in each mode.
        self.kernels: list[list[int]] = [[] for _ in self.leaves]
        self.texts: list[tuple[_Unit, KernelText]] = []
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
            settings.setdefault(leaf.setting, []).append(leaf)
        read = {id(leaf): self._host_reads(leaf, path) for leaf, path in _paths(tree=self.tree)}
        for members in settings.values():
            together = set().union(*(read[id(leaf)] for leaf in members))
            hosts = [s.name for s in self.program.states if s.name in together]
            self.hosts.update({id(leaf): hosts for leaf in members})
            known: list[tuple[list[Plan], int]] = []
            for mode in range(len(MODES)):
                plans = [self.plans[id(leaf)][mode] for leaf in members]
                first = next((start for same, start in known if all(map(_is, same, plans))), None)
                if first is None:
                    first = len(self.texts)
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
        order = ["p", "g", *(s.name for s in self.program.states)]
        arrays = [used[name] for name in order if name in used]
        unit = _Unit(len(self.units), arrays, [])
        self.units.append(unit)
        for number, plan in enumerate(plans):
            text = KernelText(plan, number, arrays, hosts)
            unit.texts.append(text)
            self.texts.append((unit, text))

    # ---- C ----------------------------------------------------------------------------------------------

    def native(self) -> Native:
        """Both files' parts."""
        view = {
            "version": __version__,
            "source": _in_comment(Path(self.source).name),
            "digest": self.digest,
            "revision": REVISION,
            "name": _in_comment(self.program.name),
            "units": [{"number": u.number, "lines": self.unit_lines(u)} for u in self.units],
        }
        source = render(Path(__file__).parent, "kernels.c.jinja", view)
        return Native(None, source, tuple(self.declarations(source)), tuple(self.function()))

    def unit_lines(self, unit: _Unit) -> list[str]:
        lines: list[str] = []
        names = [_in_comment(array.key or array.name) for array in unit.arrays]
        legend = ", ".join(f"{index} {name}" for index, name in enumerate(names))
        lines.append(f"/* Arrays: {legend} */")
        for text in unit.texts:
            lines += text.lines()
        pointers = ", ".join(f"&{text.name}" for text in unit.texts)
        return [*lines, f"EXPORT const Kernel *const optdsl_kernels[] = {{{pointers}}};"]

    # ---- Python -----------------------------------------------------------------------------------------

    def declarations(self, source: str) -> list[str]:
        """The attribute `_native` of the class; `source` is the text of the C file."""
        lines = ["_native = Native("]
        lines.append(f'    "{self.module}.c",')
        lines.append(f'    sha256="{hashlib.sha256(source.encode()).hexdigest()}",')
        lines.append("    kernels=(")
        for unit, text in self.texts:
            lines += ["        " + line for line in self.kernel(unit, text)]
        lines.append("    ),")
        modes = [tuple(numbers) for numbers in self.kernels]
        lines.append("    modes=(")
        lines += [f"        {mode}," for mode in modes]
        lines += ["    ),", ")"]
        return lines

    def kernel(self, unit: _Unit, text: KernelText) -> list[str]:
        plan = text.plan
        states = [a for a in unit.arrays if a.key]
        fields = [
            f"unit={unit.number}",
            f"number={unit.texts.index(text)}",
            f"arrays={_tuple((a.key, '' if a.group else a.place.value) for a in states)}",
            f"slots={len(plan.slots)}",
            f"sweeps={len(plan.sweeps)}",
        ]
        hosts = self.keys_of(text)
        optional = {
            "host_states": (_tuple(hosts), hosts),
            "groups": (_tuple(plan.array(n).key for n in text.group_cell), text.group_cell),
            "written_groups": (
                _tuple(plan.array(n).key for n, _ in plan.scalar_stores if plan.array(n).group),
                [n for n, _ in plan.scalar_stores if plan.array(n).group],
            ),
            "joints": (self.joints(text), text.joint_cell),
            "values": (str(len(text.scalar_cell)), text.scalar_cell),
            "width": (str(text.width), text.width),
            "rows": (str(len(text.row_cell)), text.row_cell),
            "columns": (str(len(text.column_cell)), text.column_cell),
            "column_width": (str(text.column_width), text.column_width),
            "by_rows": ("True", text.by_rows),
            "draws": ("True", plan.draws),
        }
        fields += [f"{name}={value}" for name, (value, wanted) in optional.items() if wanted]
        return _call("Kernel", fields)

    def keys_of(self, text: KernelText) -> list[str]:
        """Keys of the host-level states of a kernel."""
        position = next(i for i, (_, other) in enumerate(self.texts) if other is text)
        leaf = next(
            leaf for leaf, numbers in zip(self.leaves, self.kernels, strict=True) if position in numbers
        )
        return [self.program.state(name).key for name in self.hosts[id(leaf)]]

    def joints(self, text: KernelText) -> str:
        """For each joint reduction: sweep, number of the partial result, site, over, kind, what it counts."""
        rows = []
        for k in range(len(text.plan.sweeps)):
            for number, value in enumerate(text.plan.closing(k)):
                found = value.reduction
                if found is not None and found.joint:
                    rows.append((k, number, found.site, found.over, found.kind, found.operand.value))
        return _tuple(rows)

    def function(self) -> list[str]:
        """`_kernel`: which leaf a step is, its slots and its new host states."""
        body = self.branch(self.tree, frozenset())
        return [
            "@staticmethod",
            "def _kernel(",
            "    group: dict[str, Any], t: int, facts: Facts, state: dict[str, float]",
            ") -> tuple[int, tuple[float, ...], tuple[float, ...]]:",
            '    """Which plan this step follows, the numbers that its kernel takes, the new host states."""',
            *("    " + line for line in body),
        ]

    def branch(self, tree: Tree, known: frozenset[str]) -> list[str]:
        if isinstance(tree, Leaf):
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


def _in_comment(text: str) -> str:
    """`text` without anything that could end a comment or a line."""
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
    return [f"{name}(", *(f"    {field}," for field in fields), "),"]


def _wrapped(text: str) -> list[str]:
    return ["    " + text]


def _wrapped_tuple(texts: list[str]) -> list[str]:
    return ["    (", *(f"        {text}," for text in texts), "    ),"]
