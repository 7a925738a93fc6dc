"""An explanation for a terminal, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from optdsl.analysis import equations
from optdsl.analysis.account import Account, SweepAccount
from optdsl.analysis.explain import PARAMETERS, Explanation, PlanFor
from optdsl.analysis.prose import cell, code
from optdsl.analysis.symbols import printable
from optdsl.ir.expr import HostValue
from optdsl.ir.program import number
from optdsl.passes.schedule import OVERWRITE

_HOW = "give --bandwidth 4.3TB/s, or --measure to measure this machine"
_PER = {"element": "parameter", "rows": "row", "cols": "column", "host": "tensor (on the host)"}


def terminal(found: Explanation) -> str:
    """All of it, for a terminal."""
    program = found.program
    summary = printable(program.doc.split("\n")[0])
    lines = [program.name + (f": {summary}" if summary else "")]
    lines += ["", "Step", *_indented(equations.unicode(program).splitlines())]
    if found.states:
        total = f"{_figure(found.state_bytes)} bytes of state per parameter"
        lines += ["", f"States: {total}", *_indented(_columns(_states(found)))]
    else:
        lines += ["", "States: none"]
    if found.no_plan is not None:
        return "\n".join([*lines, "", f"There is no plan: {found.no_plan}.", "", *_messages(found)]) + "\n"
    lines += ["", f"Plan for {_setting(found)}"]
    lines += _indented(_wrapped("with ", _options(found.hypers)))
    lines += _indented(_wrapped("so that ", [printable(text) for text in found.conditions]))
    lines += _indented(_plan(found, found.usual))
    others = [plan for plan in found.plans if plan is not found.usual]
    if others:
        lines += ["", "Other plans while training", *_indented(_other(plan) for plan in others)]
    lines += ["", *_messages(found)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _indented(lines: Iterable[str]) -> list[str]:
    return ["    " + line if line else "" for line in lines]


def _columns(rows: Sequence[Sequence[str]], gap: str = "  ") -> list[str]:
    """Lines with columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [all(_is_number(row[k]) for row in rows[1:]) for k in range(len(widths))]
    return [
        gap.join(x.rjust(w) if r else x.ljust(w) for x, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]


def _is_number(text: str) -> bool:
    return text.replace(".", "").replace("e-", "").isdigit()


def _wrapped(head: str, items: Sequence[str], width: int = 92) -> list[str]:
    """Items with commas between them, in lines of a width."""
    lines: list[str] = []
    line = head
    for k, item in enumerate(items):
        piece = item + ("," if k < len(items) - 1 else "")
        if len(line) + len(piece) > width and line.strip() != head.strip():
            lines.append(line.rstrip())
            line = " " * len(head)
        line += piece + " "
    return [*lines, line.rstrip()] if items else []


def _figure(value: float) -> str:
    """A number of bytes with at most three digits behind zeros."""
    return f"{value:.3g}" if value < 100 and value != int(value) else f"{value:.0f}"


def _setting(found: Explanation) -> str:
    setting = found.setting
    shape = "×".join(map(str, setting.shape)) or "no dimensions"
    notes = [setting.dtype, f"shape {shape}"]
    if setting.mode == OVERWRITE:
        notes.append("the gradient may be overwritten")
    elif setting.overwrite_grad:
        notes.append(f"--overwrite-grad does nothing for {setting.dtype}, which cannot hold what is computed")
    return ", ".join(notes)


def _options(hypers: Mapping[str, HostValue]) -> list[str]:
    return [f"{name}={_value(value)}" for name, value in hypers.items()]


def _value(value: HostValue) -> str:
    if isinstance(value, tuple):
        shown = [*map(number, value[:8]), *([f"... {len(value)} numbers"] if len(value) > 8 else [])]
        return f"[{', '.join(shown)}]"
    return printable(value) if isinstance(value, str) else number(value)


def _states(found: Explanation) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("name", "key", "one per", "dtype", "bytes per parameter")]
    for state in found.states:
        per = _PER.get(state.level, state.level)
        rows.append((state.name, printable(state.key), per, state.dtype, _figure(state.per_parameter)))
    return rows


_COLLECTIVES = {"sum": "all_reduce (sum)", "max": "all_reduce (max)", "gather": "all_gather"}


def _messages(found: Explanation) -> list[str]:
    """What a step of a sharded model communicates."""
    if not found.messages:
        return [_sent(found)]
    return [_sent(found), *_indented(_columns([_heads(found), *_collectives(found)]))]


def _sent(found: Explanation) -> str:
    if not found.messages:
        return "Sharded: a step communicates nothing"
    count = len(found.messages)
    notes = {
        "each tensor is gathered by itself" if each.kind == "gather" else "all tensors in one"
        for each in found.messages
    }
    return f"Sharded by rows: {count} message{'s' * (count > 1)} in a step, {', '.join(sorted(notes))}"


def _heads(found: Explanation) -> tuple[str, str, str]:
    return "collective", f"bytes for {'×'.join(map(str, found.setting.shape)) or 'no dimensions'}", "of"


def _collectives(found: Explanation) -> list[tuple[str, str, str]]:
    """A row for each message, or for several of the same kind behind each other."""
    rows = []
    for each, same in groupby(found.messages):
        count = len(list(same))
        text = ", ".join(map(printable, each.of)) + (f" ({count} times)" if count > 1 else "")
        condition = f", if {printable(each.condition)}" if each.condition else ""
        rows.append((_COLLECTIVES[each.kind], str(each.bytes), text + condition))
    return rows


# ---- plans ------------------------------------------------------------------------------------------------


def _plan(found: Explanation, plan: PlanFor) -> list[str]:
    numbers = plan.account
    lines = []
    if plan.condition:
        lines.append(f"in {plan.when}: {plan.condition}")
    if not numbers.sweeps:
        return [*lines, "", "nothing is done per parameter"]
    return [*lines, "", *_sweeps(plan), "", *_columns(_totals(found, numbers))]


def _sweeps(plan: PlanFor) -> list[str]:
    numbers = plan.account
    rows = [("sweep", "reads", "bytes", "writes", "bytes")]
    for k, sweep in enumerate(numbers.sweeps, 1):
        reads, writes = " ".join(sweep.reads) or "-", " ".join(sweep.writes) or "-"
        rows.append((str(k), reads, str(sweep.bytes_read), writes, str(sweep.bytes_written)))
    lines = _columns(rows)
    table = [lines[0]]
    for line, sweep, reductions in zip(lines[1:], numbers.sweeps, plan.reductions, strict=True):
        table.append(line)
        text = ", ".join(text for _, _, text in reductions)
        if sweep.loops > 1:
            table.append(f"       goes through each row {sweep.loops} times, from the cache but once")
        if sweep.handed:
            table.append(f"       torch computes {' '.join(sweep.handed)}; what it moves is not counted")
        if sweep.barrier == "joint":
            table.append(f"       all tensors meet: {text}")
        elif sweep.barrier == "tensor":
            table.append(
                f"       the tensor is finished: {text}" if text else "       the tensor is finished"
            )
    return table


def _totals(found: Explanation, numbers: Account) -> list[tuple[str, str]]:
    rows = [("bytes per parameter", _bytes(numbers))]
    rows.append(
        ("least possible", f"{numbers.least}: {numbers.least_read} read, {numbers.least_written} written")
    )
    if len(numbers.sweeps) > 1:
        note = f"{numbers.cached}, if a tensor stays in the cache from sweep to sweep"
        rows.append(("with the cache", note))
    rows.append(("launches", str(numbers.launches)))
    rows.append(("operations", _operations(numbers)))
    rows.append(("per byte", f"{numbers.intensity:.3g} operations"))
    rows.append(("vectorised", _vectors(numbers)))
    rows.append(("time", _time(found, numbers)))
    return rows


def _bytes(numbers: Account) -> str:
    text = f"{numbers.moved}: {numbers.read} read, {numbers.written} written"
    if numbers.moved > numbers.least:
        text += f" ({numbers.moved / numbers.least:.2f} times the least)"
    return text


def _operations(numbers: Account) -> str:
    kinds = [f"{count} {kind}" for kind, count in numbers.operations.items() if count]
    return f"{sum(numbers.operations.values())}: {', '.join(kinds)}" if kinds else "none"


def _vectors(numbers: Account) -> str:
    parts = []
    if numbers.library:
        parts.append(f"{_named(numbers.library)} by functions of the C library (libmvec)")
    if numbers.scalar:
        parts.append(f"{_named(numbers.scalar)} not at all")
    return ", ".join([*parts, "all else by instructions"]) if parts else "all by instructions"


def _named(counts: Mapping[str, int]) -> str:
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())


def _time(found: Explanation, numbers: Account) -> str:
    total = found.seconds(numbers.moved)
    if total is None or found.bandwidth is None:
        return _HOW
    from optdsl.analysis.bench.report import seconds

    text = f"{seconds(total)} for {PARAMETERS:.0e} parameters".replace("1e+09", "10⁹")
    speed = found.bandwidth.bytes_per_s
    text += f" at {speed / 1e12:.3g} TB/s" if speed >= 1e12 else f" at {speed / 1e9:.3g} GB/s"
    cached = found.seconds(numbers.cached)
    if cached is not None and numbers.cached < numbers.moved:
        text += f"; {seconds(cached)} with the cache"
    return text if found.bandwidth.source == "given" else f"{text}, measured on this machine"


def _other(plan: PlanFor) -> str:
    numbers = plan.account
    traffic = "; then ".join(_traffic(sweep) for sweep in numbers.sweeps) or "nothing per parameter"
    return f"{plan.when}, {plan.condition}: {numbers.moved} bytes, {traffic}"


def _traffic(sweep: SweepAccount) -> str:
    return f"reads {' '.join(sweep.reads) or 'nothing'}, writes {' '.join(sweep.writes) or 'nothing'}"


# ---- Markdown ---------------------------------------------------------------------------------------------


def markdown(found: Explanation) -> str:
    """A page: what `optdsl.analysis.equations` says of the program, and its plans."""
    blocks = [equations.markdown(found.program).rstrip("\n"), "## Cost"]
    if found.no_plan is not None:
        blocks.append(f"There is no plan: {cell(found.no_plan)}.")
        return "\n\n".join([*blocks, *_messages_page(found)]) + "\n"
    options = ", ".join(code(text) for text in _options(found.hypers))
    blocks.append(f"For {cell(_setting(found))}{', ' if options else ''}{options}.")
    state = f"{_figure(found.state_bytes)} bytes of state per parameter."
    if found.states:
        rows = [(code(n), code(k), per, dtype, size) for n, k, per, dtype, size in _states(found)[1:]]
        blocks += [state, _table(("name", "key", "one per", "dtype", "bytes per parameter"), rows)]
    else:
        blocks.append("It keeps no state.")
    for plan in found.plans:
        if plan.condition:
            blocks.append(f"### {plan.when[0].upper()}{plan.when[1:]}: {cell(plan.condition)}")
        blocks.append(_sweep_table(plan))
        blocks.append(_table(("per parameter", ""), _totals(found, plan.account)))
    return "\n\n".join([*blocks, *_messages_page(found)]) + "\n"


def _messages_page(found: Explanation) -> list[str]:
    if not found.messages:
        return [_sent(found) + "."]
    rows = [(name, size, cell(text)) for name, size, text in _collectives(found)]
    return [_sent(found) + ".", _table(_heads(found), rows)]


_BEHIND = {"joint": "all tensors meet", "tensor": "the tensor is finished", "library": "", None: ""}


def _sweep_table(plan: PlanFor) -> str:
    rows = []
    for k, (sweep, reductions) in enumerate(zip(plan.account.sweeps, plan.reductions, strict=True), 1):
        behind = _BEHIND[sweep.barrier]
        if sweep.handed:
            behind = f"torch computes {' '.join(map(code, sweep.handed))}{behind and ', '}{behind}"
        text = ", ".join(cell(text) for _, _, text in reductions)
        reads, writes = (" ".join(map(code, names)) for names in (sweep.reads, sweep.writes))
        rows.append(
            (
                str(k),
                reads,
                str(sweep.bytes_read),
                writes,
                str(sweep.bytes_written),
                f"{behind}{': ' if text else ''}{text}",
            )
        )
    return _table(("sweep", "reads", "bytes", "writes", "bytes", "then"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = ["markdown", "terminal"]
