"""The file of a spec: header, docstring, declarations, constructor, update functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from optdsl import __version__
from optdsl.backends.layout import docstring, without_strings
from optdsl.backends.native import Native
from optdsl.backends.revision import REVISION
from optdsl.backends.templates import render
from optdsl.backends.torch.body import RESERVED, Body, mentions_whole, nodes, printers, used_inputs
from optdsl.backends.torch.printer import Printer, python_literal
from optdsl.core.ops import AXES_OPERANDS, FACTS, STATIC_FACTS
from optdsl.core.storage import AT_RANDOM
from optdsl.core.types import ELEMENT, Kind, Level
from optdsl.ir.expr import Call, Const, Expr, call, const, variables
from optdsl.ir.program import Hyper, Program, State, is_static, number
from optdsl.ir.text import to_opt
from optdsl.passes import shards
from optdsl.passes.intervals import divides_by_lr
from optdsl.passes.lower import lower
from optdsl.passes.rules import rewrite
from optdsl.passes.signs import never_negative
from optdsl.passes.simplify import substitute

NAME = "torch"

_FLAGS = (
    "foreach: bool | None = None",
    "maximize: bool = False",
    "capturable: bool = False",
    "differentiable: bool = False",
    "fused: bool | None = None",
    "overwrite_grad: bool = False",
    "store: str | dict[str, str] | None = None",
    "seed: int | None = None",
)


def supports(program: Program) -> str | None:
    """None, or the reason why this backend cannot emit `program`. The torch backend takes everything."""
    return None


def emit(program: Program, source: str, digest: str, native: Native | None = None) -> str:
    """The Python file for `program` (simplified, not lowered) that comes from the spec file `source`.

    `native` is what backends for kernels make of the program, if any is asked for.
    """
    return _Module(program, source, digest, native).text()


def python_names(program: Program) -> dict[str, str]:
    """What the hyperparameters are called in the file of a program."""
    mangled = {h.name: f"{h.name}_" for h in program.hypers if h.name in RESERVED}
    return {h.name: mangled.get(h.name, h.name) for h in program.hypers}


class _Module:
    def __init__(
        self, program: Program, source: str, digest: str, native: Native | None, library: bool = False
    ) -> None:
        self.native = native
        self.original = program
        self.program = lower(program)
        self.source, self.digest = source, digest
        self.body = Body(self.program, library)
        self.printers = printers(self.program, self.body)
        self.view = None if self.program.view is None else Body(self.program.view)
        #: How tensors that are cut among processes take a step, and that step if it is one of its own.
        self.way = shards.way(program)
        self.meeting = Body(shards.meeting(program), meets=True) if self.way == "reduced" else None
        #: The step, and what `eval:` says.
        self.bodies = [self.body] if self.view is None else [self.body, self.view]
        self.definitions = {a.name: a.expr for a in self.program.body}
        self.dynamic = {s.name for s in self.program.states}

    def text(self) -> str:
        functions = [
            self.live(),
            *self.wanted(),
            *self.initial(),
            self.update("loop"),
            self.update("foreach"),
            *self.sharded(),
        ]
        functions += self.viewed()
        declarations = self.declarations()
        if self.native is not None and self.native.reason is not None:
            declarations.append(f"_no_kernels = {quoted(self.native.reason)}")
        elif self.native is not None:
            declarations += self.native.declarations
            functions.append(list(self.native.function))
            if self.native.library is not None:
                functions.append(
                    _Module(self.native.library, self.source, self.digest, None, library=True).left()
                )
        code = "\n".join([*declarations, *self.arguments(), *(line for f in functions for line in f)])
        view = {
            "version": __version__,
            "source": re.sub(r"[^\w.+-]", "_", Path(self.source).name),
            "digest": self.digest,
            "revision": REVISION,
            "module_docstring": f'"""The optimizer `{self.program.name}`."""',
            "imports": self.imports(code),
            "name": self.program.name,
            "docstring": docstring(self.documentation()),
            "declarations": declarations,
            "arguments": self.arguments(),
            "constructor": self.constructor(),
            "functions": functions,
        }
        return render(Path(__file__).parent, "module.py.jinja", view)

    def imports(self, code: str) -> list[str]:
        """Import lines for what the code mentions."""
        code = without_strings(code)
        names = ["Facts", "Joint", "Kernel", "Native", "axes", "foreach", "host"]
        names += ["as_matrix", "broadcast", "fit", "like", "newton_schulz", "over_filters"]
        names += [
            f"{over}_{kind}"
            for over in ("row", "col", "tensor")
            for kind in ("sum", "mean", "max", "min", "kth_largest")
        ]
        used = {*names} & {*re.findall(r"\w+", code)} | {"Hyper", "Optimizer", "Facts"}
        if self.program.states:
            used.add("State")
        lines = ["import math"] if re.search(r"\bmath\.", code) else []
        abstract = ["Generator"] * bool(re.search(r"\bGenerator\b", code))
        abstract += ["Sequence"] * any(h.kind is Kind.LIST for h in self.program.hypers)
        lines += [f"from collections.abc import {', '.join(abstract)}"] if abstract else []
        lines += ["from typing import Any", ""]
        if re.search(r"\btorch\.", code):
            lines.append("import torch")
        lines += ["from torch import Tensor", "from torch.optim.optimizer import ParamsT", ""]
        order = sorted(used, key=lambda n: (not n[0].isupper(), n))
        listed = f"from optdsl.runtime import {', '.join(order)}"
        return [*lines, listed]

    # ---- documentation ----

    def documentation(self) -> str:
        """Equations, arguments and citation."""
        program = self.program
        parts = [program.doc.strip() or f"The method {program.name}."]
        text = to_opt(replace(self.original, doc="")).split("\n    step:\n", 1)[1].rstrip("\n")
        step, _, view = text.partition("\n    eval:\n")
        parts.append("One step (`p` parameter, `g` gradient, `t` this parameter's step count from 1)::")
        parts.append("\n".join(line[4:] for line in step.rstrip("\n").split("\n")))
        if view:
            parts.append("While the model is evaluated (between `eval()` and `train()`)::")
            parts.append("\n".join(line[4:] for line in view.split("\n")))
        if program.inputs:
            rows = []
            for state in program.inputs:
                text = " ".join(state.doc.split())
                if not state.type.is_element:
                    text += " (one number)" if text else "one number"
                rows.append(f"    {state.key}: {text or 'one value per element'}")
            what = "tensors" if all(state.type.is_element for state in program.inputs) else "..."
            parts.append(f"Given as `step(inputs={{name: {what}}})`:\n" + "\n".join(rows))
        if program.kept:
            rows = []
            for state in program.kept:
                place = "" if state.type.is_element else f", one per [{state.type.level_name}]"
                kept = "" if state.name == state.key else f", kept as `{state.key}`"
                rows.append(f"    {state.name}: state{place}{kept}")
            parts.append("State:\n" + "\n".join(rows))
        rows = ["    params: parameters or parameter groups to optimize, plain or named"]
        rows += [self.argument_doc(argument) for argument in self.argument_names()]
        rows += [
            "    foreach: update lists of tensors together (default: on CUDA, where there are no kernels)",
            "    maximize: move along the gradient instead of against it",
            "    capturable: keep step counts on the device, so that a CUDA graph can hold the step",
            "    differentiable: keep the autograd graph through the step",
            *self.fused_doc(),
        ]
        if not any(s.type.is_element for s in program.kept):
            rows.append("    store: no effect on states, of which there are none per element")
        else:
            rows.append("    store: format of states per element, such as bf16 or q8, for all or by key")
        drawn = "the random numbers" if self.seeded else "rounding at random, where `store` asks for it"
        rows.append(f"    seed: seed of {drawn}, a whole number from 0 (default 0)")
        parts.append("Args:\n" + "\n".join(rows))
        if program.cite:
            parts.append(f"Reference: {program.cite}")
        return "\n\n".join(parts)

    def fused_doc(self) -> list[str]:
        """What the flags about kernels mean for this class."""
        if self.native is None or self.native.reason is not None:
            return [
                "    fused: not available here; None or False",
                "    overwrite_grad: no effect here",
            ]
        return [
            "    fused: run native kernels (default: where there are some, unless `foreach` is set)",
            "    overwrite_grad: let kernels use the memory of gradients, which then hold no gradients any more",
        ]

    @property
    def seeded(self) -> bool:
        """Whether the seed matters as the class is: for draws of the rule, or for states rounded at random."""
        return bool(self.program.draws) or any(state.stored == AT_RANDOM for state in self.program.kept)

    def argument_names(self) -> list[str]:
        return list(dict.fromkeys(h.argument for h in self.program.hypers))

    def parts(self, argument: str) -> list[Hyper]:
        return [h for h in self.program.hypers if h.argument == argument]

    def argument_doc(self, argument: str) -> str:
        group = self.parts(argument)
        first = group[0]
        text = " ".join(first.doc.split()) or first.argument.replace("_", " ")
        if first.is_part:
            text += f" ({', '.join(h.name for h in group)})"
        within = ""
        if len({h.interval for h in group}) > 1:
            within = ", in " + " and ".join("any" if h.interval is None else str(h.interval) for h in group)
        elif first.interval is not None:
            within = f", in {first.interval}"
        elif first.kind is Kind.CHOICE:
            within = ", one of " + ", ".join(f'"{c}"' for c in first.choices)
        default = ", ".join(_shown(h.default) for h in group)
        return f"    {argument}: {text}{within} (default {f'({default})' if first.is_part else default})"

    # ---- declarations ----------------------------------------------------------------------------

    def declarations(self) -> list[str]:
        program = self.program
        lines = ["_hypers = ("]
        for argument in self.argument_names():
            group = self.parts(argument)
            first = group[0]
            fields = [quoted(argument), quoted(first.number_kind.value)]
            if len({h.interval for h in group}) > 1:
                own = ["" if h.interval is None else str(h.interval) for h in group]
                fields.append(f"intervals={listed(own)}")
            elif first.interval is not None:
                fields.append(quoted(str(first.interval)))
            if first.is_part:
                fields.append(f"parts={listed(h.name for h in group)}")
            if first.kind is Kind.CHOICE:
                fields.append(f"choices={listed(first.choices)}")
            if first.kind is Kind.LIST:
                fields.append("many=True")
            lines.append(f"    Hyper({', '.join(fields)}),")
        lines.append(")")
        if program.states:
            lines.append("_states = (")
            positive = never_negative(self.original)
            lines += [f"    {_state(s, program, positive)}," for s in program.states]
            lines.append(")")
        facts = self.bucket_facts()
        if facts:
            lines.append(f"_bucket_facts = {listed(facts)}")
        if not self.elementwise():
            lines.append("_elementwise = False")
        if program.draws:
            lines.append("_random = True")
        lines.append(f"_shards = {quoted(self.way)}")
        view = program.view
        if view is not None and shards.needs_whole(view.expressions()):
            lines.append("_view_shards = False")
        if shards.needs_whole(s.init for s in program.states if s.init is not None):
            lines.append("_starts_from_reductions = True")
        reason = self.not_capturable()
        if reason:
            lines.append(f"_not_capturable = {quoted(reason)}")
        elif self.steered_by_lr():
            lines.append("_branches_on_lr = True")
        if divides_by_lr(program):
            lines.append("_divides_by_lr = True")
        if any(s.init is not None and "g" in variables(s.init) for s in program.states):
            lines.append("_starts_from_gradient = True")
        if program.joint:
            lines.append("_joint = True")
        if program.joint:
            lines.append("_foreach_inplace = False")
        return lines

    def bucket_facts(self) -> tuple[str, ...]:
        """Facts that host values or branches read."""
        used = used_inputs(self.program)
        for state in self.program.states:
            if state.type.is_host and state.init is not None:
                used |= variables(state.init)
        return tuple(name for name in FACTS if name in used and name in STATIC_FACTS)

    def elementwise(self) -> bool:
        """False when the step looks at rows, columns, filters or matrices."""
        if self.body.matrices or any(
            s.type.level is Level.ARRAY and s.type.shape != ELEMENT for s in self.program.states
        ):
            return False
        calls = [n for n in nodes(self.program) if isinstance(n, Call)]
        return not any(n.attr in ("rows", "cols", "filter") or n.op in AXES_OPERANDS for n in calls)

    def conditions(self) -> list[Expr]:
        """What the host branches on."""
        conditions = [c for a in self.program.body for c, _ in a.guard]
        for node in self.program.nodes():
            if isinstance(node, Call) and node.op == "select" and node.args[0].type.is_host:
                conditions.append(node.args[0])
        return conditions

    def steered_by_lr(self) -> bool:
        """Whether the host branches on the learning rate, which may be in a tensor of a device."""
        return any("lr" in variables(_inlined(condition, self.body)) for condition in self.conditions())

    def not_capturable(self) -> str | None:
        """Why the step cannot be recorded: a branch that the host takes by what only the device knows."""
        conditions = self.conditions()
        if not all(is_static(c, self.definitions, self.dynamic) for c in conditions):
            return "its step branches on the step count"
        counts = [n.args[1] for n in self.program.nodes() if isinstance(n, Call) and n.op == "newton_schulz"]
        if not all(is_static(count, self.definitions, self.dynamic) for count in counts):
            return "its step repeats something as often as the step count says"
        if any(isinstance(n, Call) and n.op == "matrix_power" for n in self.program.nodes()):
            return "it finds eigenvalues, for which the host waits"
        if any(state.delay is not None for state in self.program.states):
            return "it finds delayed states by the step count"
        return "it draws random numbers by the step count" if self.program.draws else None

    def arguments(self) -> list[str]:
        """Parameters of the constructor after `params`."""
        lines = []
        for argument in self.argument_names():
            group = self.parts(argument)
            kind = {Kind.FLOAT: "float", Kind.INT: "int", Kind.BOOL: "bool", Kind.CHOICE: "str"}[
                group[0].number_kind
            ]
            default = ", ".join(python_literal(h.default) for h in group)
            if group[0].is_part:
                kind, default = (
                    f"tuple[{', '.join([kind] * len(group))}]",
                    f"({default}{',' * (len(group) == 1)})",
                )
            elif group[0].kind is Kind.LIST:
                kind = f"Sequence[{kind}]"
            elif argument == "lr":
                kind = "float | Tensor"
            lines.append(f"{argument}: {kind} = {default},")
        lines.append("*,")
        return [*lines, *(f"{flag}," for flag in _FLAGS)]

    def constructor(self) -> list[str]:
        lines = ["super().__init__(", "    params,", "    {"]
        lines += [f"        {quoted(name)}: {name}," for name in self.argument_names()]
        lines.append("    },")
        lines += [f"    {flag}={flag}," for flag in (flag.partition(":")[0] for flag in _FLAGS)]
        return [*lines, ")"]

    # ---- functions -------------------------------------------------------------------------------

    def live(self) -> list[str]:
        """`_live`: which states the branches taken use."""
        head = ["@staticmethod", "def _live(group: dict[str, Any], facts: Facts) -> tuple[str, ...]:"]
        conditions = {s.name: self.condition(s.name, self.is_static) for s in self.program.states}
        used: set[str] = set()
        for condition in conditions.values():
            used |= variables(condition) if condition is not None else set()
        lines = self.unpack(used, t=False)
        printer = Printer(self.body.names, self.printers["loop"].intervals, False, False)
        always = [s.key for s in self.program.states if conditions[s.name] is None]
        doc = '"""Keys of the states that the branches taken use."""'
        if len(always) == len(self.program.states):
            return [*head, f"    {doc}", f"    return {listed(always)}"]
        lines.append(f"keys: tuple[str, ...] = {listed(always)}")
        for state in self.program.states:
            condition = conditions[state.name]
            if condition is not None:
                lines += [f"if {printer.text(condition)}:", f"    keys += ({quoted(state.key)},)"]
        return [*head, f"    {doc}", *("    " + line for line in [*lines, "return keys"])]

    def wanted(self) -> Iterable[list[str]]:
        """`_wanted`: which inputs this step reads, where there are any."""
        program = self.program
        if not program.inputs:
            return
        conditions = {s.name: self.condition(s.name, self.is_counted) for s in program.inputs}
        used = set[str]().union(*(variables(c) for c in conditions.values() if c is not None))
        always = [s.key for s in program.inputs if conditions[s.name] is None]
        printer = Printer(self.body.names, self.printers["loop"].intervals, False, False)
        lines = [*self.unpack(used), f"keys: tuple[str, ...] = {listed(always)}"]
        for state in program.inputs:
            condition = conditions[state.name]
            if condition is not None:
                lines += [f"if {printer.text(condition)}:", f"    keys += ({quoted(state.key)},)"]
        yield [
            "@staticmethod",
            "def _wanted(group: dict[str, Any], t: Any, facts: Facts) -> tuple[str, ...]:",
            '    """Keys of the inputs that this step reads."""',
            *("    " + line for line in [*lines, "return keys"]),
        ]

    def is_static(self, condition: Expr, body: Body) -> bool:
        """Whether a condition is one of hypers and fixed facts."""
        return is_static(condition, {a.name: a.expr for a in body.program.body}, self.dynamic)

    def is_counted(self, condition: Expr, body: Body) -> bool:
        """The same, where the step count may be read too."""
        return not variables(_inlined(condition, body)) & self.dynamic

    def condition(self, state: str, knows: Callable[[Expr, Body], bool]) -> Expr | None:
        """When a state is used, by conditions of which this can tell; None for always."""
        paths: list[list[tuple[Expr, bool]]] = []
        for body in self.bodies:
            for path in body.reach[state]:
                known = [(_inlined(c, body), w) for c, w in path if knows(c, body)]
                if not known:
                    return None
                paths.append(known)
        result: Expr = const(False)
        for index, needed in enumerate(_distinct(paths)):
            each = [rewrite(c if w else call("not", c)) for c, w in needed]
            joined = each[0]
            for condition in each[1:]:
                joined = call("and", joined, condition)
            result = joined if index == 0 else call("or", result, joined)
        return result

    def initial(self) -> Iterable[list[str]]:
        """`_initial`, when some state does not start at 0."""
        rows = [s for s in self.program.states if s.init is not None and not _is_zero(s.init)]
        if not rows:
            return
        yield [
            "@staticmethod",
            "def _initial(",
            "    key: str, p: Tensor, g: Tensor, group: dict[str, Any], facts: Facts",
            ") -> float | Tensor:",
            '    """The value of a state before the first step that uses it."""',
            *("    " + line for line in self.initial_body(rows)),
        ]

    def initial_body(self, rows: list[State]) -> list[str]:
        lines: list[str] = []
        printer = Printer(self.body.names, self.printers["loop"].intervals, self.body.matrices, False)
        for state in rows:
            assert state.init is not None
            # a parameter's states begin in its first step
            init = rewrite(substitute(state.init, {"t": const(1), "first_step": const(True)}))
            if self.body.matrices and state.type.is_element and not init.type.is_element:
                init = call("broadcast", init, over="element") if init.type.level is Level.ARRAY else init
            inner = self.unpack(variables(init), t=False)
            result = f"return {printer.text(init)}"
            whole = mentions_whole([result])
            if self.body.matrices:
                read = variables(init) | ({"p"} if whole else set())
                inner += ["shaped = p"] * ("shaped" in result)
                inner += [f"{n} = as_matrix({n})" for n in ("p", "g") if n in read]
            lines.append(f"if key == {quoted(state.key)}:")
            lines += ["    " + line for line in [*inner, *["whole = p"] * whole, result]]
        return [*lines, "return 0.0"]

    def unpack(self, used: Collection[str], t: bool = True, body: Body | None = None) -> list[str]:
        """Lines that take hypers and facts out of `group` and `facts`."""
        lines, names = [], (body or self.body).names
        for argument in self.argument_names():
            group = self.parts(argument)
            if not any(h.name in used for h in group):
                continue
            targets = [names[h.name] if h.name in used else "_" for h in group]
            target = ", ".join(targets) + ("," if len(group) == 1 and group[0].is_part else "")
            lines.append(f"{target} = group[{quoted(argument)}]")
        for name in FACTS:
            if name in used and name in STATIC_FACTS:
                lines.append(f"{name} = facts.{name}")
        return lines

    def update(self, form: str) -> list[str]:
        """`_update` or `_update_foreach`."""
        listed = form == "foreach"
        name = "_update_foreach" if listed else "_update"
        tensor = "list[Tensor]" if listed else "Tensor"
        result = f"Generator[Joint, Tensor, {tensor}]" if self.program.joint else tensor
        doc = "The same for a list of parameters." if listed else "One step of one parameter; its new value."
        used = used_inputs(self.program)
        lines = self.unpack(used) + self.body.lines(self.printers[form])
        return [
            "@staticmethod",
            f"def {name}(",
            f"    p: {tensor},",
            f"    g: {tensor},",
            "    state: dict[str, Any],",
            "    group: dict[str, Any],",
            "    t: Any,",
            "    facts: Facts,",
            "    random: Any,",
            f") -> {result}:",
            f'    """{doc}"""',
            *("    " + line if line else "" for line in lines),
        ]

    def left(self) -> list[str]:
        """`_library`, for a program that kernels leave to torch."""
        lines = self.unpack(used_inputs(self.program)) + self.body.lines(self.printers["foreach"])
        return [
            "@staticmethod",
            "def _library(",
            "    p: list[Tensor], state: dict[str, Any], group: dict[str, Any], t: Any, facts: Facts",
            ") -> None:",
            '    """What kernels leave to torch; `state` is what they hand over, and what they get."""',
            *("    " + line if line else "" for line in lines),
        ]

    def sharded(self) -> Iterable[list[str]]:
        """`_update_sharded`, where reductions are put together by processes."""
        if self.meeting is None:
            return
        program = self.meeting.program
        printer = printers(program, self.meeting)["foreach"]
        lines = self.unpack(used_inputs(program), body=self.meeting) + self.meeting.lines(printer)
        yield [
            "@staticmethod",
            "def _update_sharded(",
            "    p: list[Tensor],",
            "    g: list[Tensor],",
            "    state: dict[str, Any],",
            "    group: dict[str, Any],",
            "    t: Any,",
            "    facts: Facts,",
            "    random: Any,",
            ") -> Generator[Joint | tuple[Joint, ...], Any, list[Tensor]]:",
            '    """The same for parts of tensors, whose reductions other processes have a share in."""',
            *("    " + line if line else "" for line in lines),
        ]

    def viewed(self) -> Iterable[list[str]]:
        """`_view`, for a program with `eval:`."""
        if self.view is None:
            return
        program = self.view.program
        printer = printers(program, self.view)["loop"]
        lines = self.unpack(used_inputs(program), body=self.view) + self.view.lines(printer)
        yield [
            "@staticmethod",
            "def _view(",
            "    p: Tensor, state: dict[str, Any], group: dict[str, Any], t: Any, facts: Facts",
            ") -> Tensor:",
            '    """What stands for a parameter while the model is evaluated."""',
            *("    " + line if line else "" for line in lines),
        ]


def _inlined(expr: Expr, body: Body) -> Expr:
    """A host value by hypers, facts and states alone."""
    definitions = {a.name: a.expr for a in body.program.body}
    while variables(expr) & definitions.keys():
        expr = substitute(expr, definitions)
    return expr


def _state(state: State, program: Program, positive: Collection[str]) -> str:
    more = f", stored={quoted(state.stored)}" if state.stored else ""
    if state.delay is not None:
        delay = state.delay
        more += f", delay={quoted(program.hyper(delay).argument) if isinstance(delay, str) else delay}"
    more += ", given=True" if state.given else ""
    more += ", positive=True" if state.name in positive and state.type.is_element else ""
    return f"State({quoted(state.key)}, {quoted(state.type.level_name)}{more})"


def quoted(text: str) -> str:
    """A string literal, in double quotes where that needs no escape."""
    plain = repr(text)
    return f'"{plain[1:-1]}"' if plain.startswith("'") and '"' not in text else plain


def listed(texts: Iterable[str]) -> str:
    """A tuple of string literals."""
    items = [quoted(text) for text in texts]
    return f"({', '.join(items)}{',' * (len(items) == 1)})"


def _shown(value: object) -> str:
    """A default as the docstring shows it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return repr(value)
    assert isinstance(value, float | int)
    return number(value)


def _is_zero(expr: Expr) -> bool:
    return isinstance(expr, Const) and repr(expr.value) in ("0", "0.0")


def _distinct(paths: list[list[tuple[Expr, bool]]]) -> list[list[tuple[Expr, bool]]]:
    found: list[list[tuple[Expr, bool]]] = []
    for path in paths:
        if path not in found:
            found.append(path)
    return found
