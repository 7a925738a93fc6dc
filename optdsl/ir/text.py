"""Text forms of a program: `.opt` text that parses back to it, and a listing of the typed program."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from optdsl.core.ops import CONSTANTS, CORE, FACTS, Rule
from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Const, Expr, HostValue, Var, variables
from optdsl.ir.plan import Plan, Value
from optdsl.ir.program import Hyper, Interval, Program, number
from optdsl.ir.structure import Set, Statement, Structured, fresh, structure

#: Binding strength of what an operator prints as; an operand that binds less is put in parentheses.
_STRENGTH = {
    "select": 1, "or": 2, "and": 3, "not": 4,
    "lt": 5, "le": 5, "gt": 5, "ge": 5, "eq": 5, "ne": 5,
    "add": 6, "sub": 6, "mul": 7, "div": 7, "matmul": 7, "neg": 8, "pow": 9, "transpose": 10,
}  # fmt: skip
_ATOM = 11
#: Names that a variable of the printed text cannot have, or that would begin another statement.
_RESERVED = frozenset(
    {"update", "true", "false", *FACTS, *CONSTANTS, "and", "or", "not"}
    | {"if", "elif", "else", "every", "repeat", "return", "use"}
)


def literal(value: HostValue) -> str:
    """A literal as the language writes it; parses back to the same value."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value != value:
        return "(inf - inf)"
    return repr(value)


def quote(text: str) -> str:
    """`text` as a string literal of the language."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # a file has one kind of line end
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def expression(expr: Expr, names: dict[str, str]) -> str:
    """`expr` in the language, with values called by `names`."""
    return _print(expr, names)[0]


def _print(expr: Expr, names: dict[str, str]) -> tuple[str, int]:
    """(text, binding strength)."""
    value = _signed(expr)
    if value is not None:
        if value != value:
            return "inf - inf", _STRENGTH["sub"]
        text = literal(value)
        return text, _STRENGTH["neg"] if text.startswith("-") else _ATOM
    if isinstance(expr, Var):
        return names.get(expr.name, expr.name), _ATOM
    assert isinstance(expr, Call)
    op = expr.op
    row = CORE[op]
    if op == "select":
        condition, then, other = (_print(arg, names) for arg in expr.args)
        return f"{_wrap(then, 2)} if {_wrap(condition, 2)} else {_wrap(other, 1)}", 1
    if op == "neg":
        inner = _wrap(_print(expr.args[0], names), 9)
        return f"-{inner}", 8
    if op == "transpose":
        return f"{_wrap(_print(expr.args[0], names), 10)}'", 10
    if op == "not":
        return f"not {_wrap(_print(expr.args[0], names), 4)}", 4
    if row.symbol:
        strength = _STRENGTH[op]
        left, right = (_print(arg, names) for arg in expr.args)
        if op == "pow":
            # the exponent is a unary: `x^-2` needs no parentheses, `x^(y^2)` neither, but a sum does
            return f"{_wrap(left, 10)}^{_wrap(right, 8)}", 9
        # comparisons chain, so both sides of one must bind tighter
        chained = 1 if CORE[op].result == "bool" and op not in ("and", "or") else 0
        return f"{_wrap(left, strength + chained)} {row.symbol} {_wrap(right, strength + 1)}", strength
    arguments = [expression(arg, names) for arg in expr.args]
    if op == "entry":
        return f"{arguments[0]}[{arguments[1]}]", _ATOM
    if op == "count_upto":
        return f"count({arguments[0]} <= {_wrap(_print(expr.args[1], names), 6)})", _ATOM
    if row.rule is Rule.REDUCE and expr.attr != "tensor":
        arguments.append(f"over={expr.attr}")
    if row.rule is Rule.RANDOM:
        arguments.append(f"stream={expr.attr}")
    return f"{op.removeprefix('reduce_')}({', '.join(arguments)})", _ATOM


def _signed(expr: Expr) -> float | int | bool | str | None:
    """The value of a literal, or of the negation of one: the language does not tell `-(2)` from `-2`."""
    if isinstance(expr, Const):
        return expr.value
    if isinstance(expr, Call) and expr.op == "neg":
        number = _signed(expr.args[0])
        if number is not None and number == number:
            assert not isinstance(number, str)
            return -number
    return None


def _wrap(printed: tuple[str, int], least: int) -> str:
    text, strength = printed
    return text if strength >= least else f"({text})"


def to_opt(program: Program) -> str:
    """`program` as a formatted spec. Parsing it gives the same program again."""
    lines = [f"optimizer {program.name}:"]
    lines += _docstring(program.doc)
    if program.cite:
        lines.append(f"    cite: {quote(program.cite)}")
    if program.hypers:
        lines += ["", "    hyper:"] + ["        " + text for text in _hypers(program.hypers)]
    if program.inputs:
        lines.append("")
        for state in program.inputs:
            level = "" if state.type.is_element else f" [{state.type.level_name}]"
            lines.append(f"    input {state.name}{level}" + (f" {quote(state.doc)}" if state.doc else ""))
    if program.kept:
        lines += ["", "    state:"]
        for state in program.kept:
            name = state.name
            level = "" if state.type.is_element else f" [{state.type.level_name}]"
            init = "" if state.init is None else f" = {expression(state.init, {})}"
            key = "" if state.key == name else f" as {state.key}"
            stored = f" stored {state.stored}" if state.stored else ""
            delay = "" if state.delay is None else f" delay {state.delay}"
            lines.append(f"        {name}{level}{init}{key}{stored}{delay}")
    lines += ["", "    step:", *_block(program)]
    if program.view is not None:
        lines += ["", "    eval:", *_block(program.view)]
    return "\n".join(lines) + "\n"


def _block(program: Program) -> list[str]:
    """The lines of a step."""
    structured = structure(program, reserved=_RESERVED)
    body = _statements(structured.body, structured.names, "        ")
    body += [f"        {line}" for line in _leave(structured)]
    return body or ["        p = p"]


def _leave(structured: Structured) -> list[str]:
    """Assignments, all at once in effect, that leave each result under its name."""
    names = dict(structured.names)
    left = {
        n: v for n, v in structured.results.items() if not (isinstance(v, Var) and names.get(v.name) == n)
    }
    taken = _RESERVED | set(names.values())
    lines = []
    while left:
        reads = {n: {names.get(v, v) for v in variables(value)} for n, value in left.items()}
        free = [n for n in left if not any(n in read for other, read in reads.items() if other != n)]
        if not free:  # a circle: what the first name holds goes elsewhere
            name = next(iter(left))
            spare = fresh(name, taken)
            taken |= {spare}
            lines.append(f"{spare} = {name}")
            names = {value: spare if variable == name else variable for value, variable in names.items()}
            free = [name]
        lines.append(f"{free[0]} = {expression(left.pop(free[0]), names)}")
    return lines


def _docstring(doc: str) -> list[str]:
    """The lines of a docstring: `doc` without blanks at the ends of its lines, which the language drops."""
    lines = doc.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    text = "\n".join(line.rstrip(" \t\f") for line in lines).strip()
    if not text:
        return []
    text = text.replace("\\", "\\\\").replace("\t", "\\t")
    # three quotes would end the docstring, and so would one that stands before its end
    text = re.sub(r'"{3,}|"+\Z', lambda found: '\\"' * len(found[0]), text)
    first, *rest = text.split("\n")
    if any(rest) and all(line.startswith(" ") for line in rest if line):
        # behind the quotes, the first line would not show that the others are indented
        return ['    """', *(line and f"    {line}" for line in (first, *rest)), '    """']
    shown = [f'    """{first}', *(line and f"    {line}" for line in rest)]
    return [*shown[:-1], shown[-1] + '"""']


def _statements(body: list[Statement], names: dict[str, str], indent: str) -> list[str]:
    lines: list[str] = []
    for item in body:
        if isinstance(item, Set):
            lines.append(f"{indent}{item.target} = {expression(item.expr, names)}")
            continue
        condition = expression(item.condition, names)
        then = _statements(item.then, names, indent + "    ")
        other = _statements(item.other, names, indent + "    ")
        if then:
            lines += [f"{indent}if {condition}:", *then]
            if other and len(item.other) == 1 and other[0].lstrip().startswith("if "):
                chained = _statements(item.other, names, indent)
                lines += [f"{indent}el{chained[0].lstrip()}", *chained[1:]]
            elif other:
                lines += [f"{indent}else:", *other]
        elif other:
            negated = _wrap(_print(item.condition, names), _STRENGTH["not"])
            lines += [f"{indent}if not {negated}:", *other]
    return lines


def _hypers(hypers: tuple[Hyper, ...]) -> list[str]:
    lines = []
    for argument in dict.fromkeys(h.argument for h in hypers):
        group = [h for h in hypers if h.argument == argument]
        first = group[0]
        default = literal(first.default)
        alike = len({h.interval for h in group}) == 1
        if first.is_part:
            own = [
                f" in {_interval(h.interval)}" if h.interval is not None and not alike else "" for h in group
            ]
            pairs = zip(group, own, strict=True)
            default = "(" + ", ".join(f"{h.name}: {literal(h.default)}{range_}" for h, range_ in pairs) + ")"
        range_ = ""
        if first.interval is not None and alike:
            range_ = f" in {_interval(first.interval)}"
        elif first.kind is Kind.CHOICE:
            range_ = " in {" + ", ".join(map(quote, first.choices)) + "}"
        doc = f"  {quote(first.doc)}" if first.doc else ""
        lines.append(f"{argument} = {default}{range_}{doc}")
    return lines


def _interval(interval: Interval) -> str:
    # an end at -0.0 is one at 0
    return str(replace(interval, low=interval.low or 0, high=interval.high or 0))


def show(program: Program) -> str:
    """A listing of the typed program: every assignment with its type and guard. Stable, for reading and diffs."""
    lines = [f"program {program.name}"]
    for hyper in program.hypers:
        range_ = f" in {hyper.interval}" if hyper.interval else ""
        if hyper.choices:
            range_ = " in {" + ", ".join(map(quote, hyper.choices)) + "}"
        of = f" of {hyper.argument}" if hyper.is_part else ""
        lines.append(f"  hyper {hyper.name}{of}: {hyper.kind.value} = {literal(hyper.default)}{range_}")
    for state in program.states:
        if state.given:
            lines.append(f"  input {state.name}: {state.type} as {quote(state.key)} {quote(state.doc)}")
            continue
        init = "none" if state.init is None else expression(state.init, {})
        stored = f" stored {state.stored}" if state.stored else ""
        delay = "" if state.delay is None else f" delay {state.delay}"
        lines.append(f"  state {state.name}: {state.type} = {init} as {quote(state.key)}{stored}{delay}")
    lines += _listing(program)
    if program.view is not None:
        lines += ["  in evaluation", *_listing(program.view)]
    return "\n".join(lines) + "\n"


def _listing(program: Program) -> list[str]:
    """The assignments of a step, and what it leaves."""
    lines = []
    for assign in program.body:
        guard = " and ".join(
            expression(condition, {}) if wanted else f"not ({expression(condition, {})})"
            for condition, wanted in assign.guard
        )
        suffix = f"  when {guard}" if guard else ""
        lines.append(f"  {assign.name}: {assign.expr.type} = {expression(assign.expr, {})}{suffix}")
    for name, value in program.results.items():
        lines.append(f"  leaves {name} = {expression(value, {})}")
    return lines


__all__ = ["expression", "literal", "number", "quote", "show", "to_opt"]


def show_plan(conditions: Sequence[tuple[Expr, bool]], plan: Plan | str) -> str:
    """A plan as text: under which conditions it is followed, and what its sweeps do; or why there is none."""
    when = (
        " and ".join(expression(c, {}) if w else f"not ({expression(c, {})})" for c, w in conditions)
        or "always"
    )
    if isinstance(plan, str):
        return f"no plan when {when}: {plan}\n"
    lines = [f"plan when {when}"]
    lines += [f"    {plan.slot_name}.{k} = {expression(slot, {})}" for k, slot in enumerate(plan.slots)]
    lines += [f"    {name} = {expression(expr, {})}" for name, expr in plan.host_states]

    def value(v: Value, indent: str) -> str:
        if v.reduction is None:
            return f"{indent}{v.name} = {expression(v.expr, {})}"
        operand = expression(v.expr, {})
        if v.reduction.entries:
            operand = f"{v.reduction.entries}, {operand}"
        return f"{indent}{v.name} = {v.reduction.kind}({operand}, over={v.reduction.over})"

    for k, scalars in enumerate(plan.scalars):
        lines += [value(v, "    ") for v in scalars]
        if k == len(plan.sweeps):
            break
        sweep = plan.sweeps[k]
        reads, writes = (" ".join(sorted(x)) or "nothing" for x in (sweep.reads, sweep.writes))
        lines.append(f"    sweep {k}: reads {reads}; writes {writes}")
        for j, line in enumerate(sweep.lines):
            lines += [value(v, "      row ") for v in line]
            if j < len(sweep.loops):
                loop = sweep.loops[j]
                lines += [value(v, "        ") for v in loop.body]
                lines += [f"        reduce {v.name}: {expression(v.expr, {})}" for v in loop.reduces]
                lines += [f"        store {array} = {expression(expr, {})}" for array, expr in loop.stores]
        if plan.library is not None and plan.library.sweep == k:
            taken = ", ".join(held for _, held in plan.library.inputs)
            lines.append(f"    torch computes {', '.join(plan.library.outputs)} from {taken or 'nothing'}")
        if plan.joints[k]:
            lines.append("    all tensors meet")
    lines += [f"    store {name} = {expression(expr, {})}" for name, expr in plan.scalar_stores]
    return "\n".join(lines) + "\n"
