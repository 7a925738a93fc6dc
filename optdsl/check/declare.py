"""Hyperparameters of a spec: declared, checked, and given new defaults."""

from __future__ import annotations

import math
from dataclasses import replace

from optdsl.check.names import LANGUAGE_NAMES, check_name, shown
from optdsl.check.ranges import whole_range
from optdsl.core.types import Kind
from optdsl.ir.expr import HostValue
from optdsl.ir.program import Hyper, Interval, number
from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Reporter, Span


def hypers_of(spec: syn.Spec, report: Reporter) -> list[Hyper]:
    """The hyperparameters a spec declares. Those with mistakes are repaired so that checking can go on."""
    found: list[Hyper] = []
    lines: dict[str, int] = {}
    for item in spec.hypers:
        only: HostValue | None
        fine = True
        if isinstance(item.default, syn.ListSyntax):
            numbers = numbers_of(item.default, item.name, report)
            only, fine = numbers or (0.0,), bool(numbers)
        else:
            only = item.default
        rows = item.parts or ((item.name, only, item.name_span),)
        names = [(item.name, item.name_span)] + [(name, span) for name, _, span in item.parts]
        for name, span in names:
            fine &= check_name(name, span, report, "part" if span is not item.name_span else "hyperparameter")
            if name in lines:
                message = f"`{shown(name)}` is already declared on line {lines[name]}"
                report("E0201", span, message, "rename one of them")
                fine = False
            lines[name] = item.span.line
        kinds = sorted({kind_of(default).value for _, default, _ in rows})
        if len(kinds) > 1:
            message = f"the parts of `{shown(item.name)}` are {' and '.join(kinds)}"
            report("E0209", item.default_span, message, "write them alike, as in `(a: 1.0, b: 0.5)`")
            fine = False
        elif item.parts and kinds[0] not in ("int", "float"):
            message = f"the parts of `{shown(item.name)}` are no numbers, but each a {kinds[0]}"
            report("E0209", item.default_span, message, "write each on a line of its own")
            fine = False
        for (name, default, span), allowed in zip(rows, item.ranges or (item.range,), strict=True):
            assert default is not None
            kind = kind_of(default)
            interval, choices = _range(item, allowed, default, report) if len(kinds) == 1 else (None, ())
            hyper = Hyper(name, item.name, kind, default, interval, choices, item.doc)
            if fine:
                _check_default(hyper, span if item.parts else item.default_span, report)
            if name not in LANGUAGE_NAMES and all(name != other.name for other in found):
                found.append(hyper)
    return found


def numbers_of(node: syn.ListSyntax, name: str, report: Reporter) -> tuple[float, ...]:
    """The numbers of a list, all ints or all floats; none after a message (E0209)."""
    kinds = sorted({kind_of(value).value for value in node.values})
    if len(kinds) == 1 and kinds[0] in ("int", "float"):
        return tuple(value for value in node.values if not isinstance(value, str))
    message = f"the list `{shown(name)}` holds {' and '.join(f'{kind}s' for kind in kinds)}"
    report("E0209", node.span, message, "a list holds numbers, all written alike: `[30, 60]` or `[1.0, 0.5]`")
    return ()


def kind_of(value: HostValue | None) -> Kind:
    """The kind a literal has."""
    match value:
        case tuple():
            return Kind.LIST
        case bool():
            return Kind.BOOL
        case int():
            return Kind.INT
        case str():
            return Kind.CHOICE
    return Kind.FLOAT


def literal_value(node: syn.Expression) -> syn.LiteralValue | None:
    """The value of a literal, or None for any other expression."""
    match node:
        case syn.Number(value) | syn.Bool(value) | syn.String(value):
            return value
        case syn.Name("inf"):
            return math.inf
        case syn.Operation("neg", (syn.Name("inf"),)):
            return -math.inf
    return None


def written(value: HostValue) -> str:
    """A literal as the language writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(number, value))}]"
    return f'"{shown(value)}"' if isinstance(value, str) else number(value)


def _range(
    item: syn.HyperSyntax,
    allowed: syn.IntervalSyntax | syn.ChoicesSyntax | None,
    default: HostValue,
    report: Reporter,
) -> tuple[Interval | None, tuple[str, ...]]:
    """What `in ...` allows, or nothing after a message."""
    kind, name = kind_of(default), shown(item.name)
    match allowed:
        case syn.ChoicesSyntax(values, span):
            if kind is not Kind.CHOICE:
                message = f"`{name}` is {article(kind)}, so it has no choices"
                report("E0205", span, message, 'a choice has a string as its default: `"l2"`')
                return None, ()
            return None, tuple(dict.fromkeys(values))
        case syn.IntervalSyntax(span=span):
            return _interval(allowed, kind, name, written(default), report), ()
    if kind is Kind.CHOICE:
        message = f"the choice `{name}` does not say what it may be"
        report("E0205", item.default_span, message, f"list the values: `in {{{written(default)}, ...}}`")
        return None, (str(default),)
    return None, ()


def _interval(
    syntax: syn.IntervalSyntax, kind: Kind, name: str, default: str, report: Reporter
) -> Interval | None:
    interval = Interval(syntax.low, syntax.high, syntax.low_open, syntax.high_open)
    if not kind.numeric and kind is not Kind.LIST:
        message = f"`{name}` is {article(kind)}; an interval is for numbers"
        report("E0205", syntax.span, message, "remove the interval")
        return None
    if interval.low > interval.high:
        report("E0204", syntax.span, f"no number lies in {interval}", "write the lower end first")
        return None
    if interval.low == interval.high and (interval.low_open or interval.high_open):
        report("E0204", syntax.span, f"no number lies in {interval}", "`[` and `]` include the ends")
        return None
    if kind is Kind.INT:
        low, high = whole_range(interval)
        if low >= high:
            left = f"only {number(low)}" if low == high else "no whole number"
            message = f"`{name}` is an int, since its default is `{default}`, and {interval} holds {left}"
            report("E0205", syntax.span, message, f"for a float write the default as `{default}.0`")
            return None
        ends = {
            "low_open": interval.low_open or math.isinf(low),
            "high_open": interval.high_open or math.isinf(high),
        }
        if (finite := replace(interval, **ends)) != interval:
            message = f"`{name}` is an int, since its default is `{default}`, and no int is infinite"
            report(
                "E0205", syntax.span, message, f"write {finite}, or for a float the default as `{default}.0`"
            )
            return finite
    return interval


def article(kind: Kind) -> str:
    """`an int`, `a float`..."""
    return f"an {kind.value}" if kind is Kind.INT else f"a {kind.value}"


def _check_default(hyper: Hyper, span: Span, report: Reporter, what: str = "default") -> bool:
    """False after a message (E0203) when a hyperparameter may not have its default."""
    name, default = shown(hyper.name), hyper.default
    for value in default if isinstance(default, tuple) else (default,):
        if hyper.interval is not None and not isinstance(value, str) and value not in hyper.interval:
            message = f"the {what} {number(value)} of `{name}` is not in {hyper.interval}"
            report("E0203", span, message, f"change the {what} or the interval")
            return False
    if hyper.kind is Kind.CHOICE and hyper.choices and default not in hyper.choices:
        listed = ", ".join(written(choice) for choice in hyper.choices)
        message = f"the {what} {written(default)} of `{name}` is not one of {listed}"
        report("E0203", span, message, f"change the {what}, or add it to the choices")
        return False
    return True


def with_default(
    hyper: Hyper, value: HostValue, span: Span, report: Reporter, what: str = "default"
) -> Hyper:
    """`hyper` with another default (or value: `what`), given in a `use`; reports one that does not fit."""
    kind = kind_of(value)
    if hyper.kind is Kind.FLOAT and kind is Kind.INT:
        assert isinstance(value, int)
        value, kind = float(value), Kind.FLOAT
    if isinstance(value, tuple) and isinstance(hyper.default, tuple):
        if hyper.number_kind is Kind.FLOAT:
            value = tuple(map(float, value))
        elif isinstance(value[0], float):
            message = f"`{shown(hyper.name)}` is a list of ints, {written(value)} holds floats"
            report("E0404", span, message, f"its default is `{written(hyper.default)}`")
            return hyper
    if kind is not hyper.kind:
        message = f"`{shown(hyper.name)}` is {article(hyper.kind)}, {written(value)} is {article(kind)}"
        report("E0404", span, message, f"its default is `{written(hyper.default)}`")
        return hyper
    changed = replace(hyper, default=value)
    return changed if _check_default(changed, span, report, what) else hyper
