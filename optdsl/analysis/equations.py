"""The equations of a program: for a terminal, in LaTeX, and with all that belongs to them in Markdown.

They say what the spec says, in its order and with its parentheses; `←` gives a name a new value. A truth value
that counts as a number is 𝟙(...). Reductions are over a tensor unless a subscript says over what. Random draws
with different subscripts are different, with the same subscript the same.
"""

from __future__ import annotations

from optdsl.analysis.plain import Unicode
from optdsl.analysis.prose import cell, code, paragraphs, prose
from optdsl.analysis.steps import Line, Step, step
from optdsl.analysis.symbols import latex_symbols, unicode_symbols
from optdsl.analysis.tex import Latex
from optdsl.core.types import Kind
from optdsl.ir.program import Hyper, Program, number
from optdsl.ir.text import literal, quote


def unicode(program: Program) -> str:
    """The step of `program` in characters of a terminal, one assignment a line."""
    lines = []
    for line in step(program, Unicode, unicode_symbols).lines:
        match line.kind:
            case "set":
                text = f"{', '.join(line.targets)} ← {', '.join(line.values)}"
            case "else":
                text = "else:"
            case word:
                text = f"{word} {line.values[0]}:"
        lines.append("    " * line.depth + text)
    return "\n".join(lines) + "\n"


def latex(program: Program) -> str:
    """The step of `program` as displayed mathematics, in an `aligned` environment (of amsmath)."""
    return "\\[\n" + _aligned(_latex(program)) + "\n\\]\n"


def markdown(program: Program) -> str:
    """A page about `program`: what its documentation says, its hyperparameters, states, step and citation."""
    written = _latex(program)
    blocks = [f"# {prose(program.name)}", *paragraphs(program.doc)]
    if program.hypers:
        rows = [_hyper(hyper, written.notation) for hyper in program.hypers]
        blocks += ["## Hyperparameters", _table(("name", "symbol", "default", "range", "meaning"), rows)]
    if program.inputs:
        rows = [
            (code(s.key), f"${written.notation.variable(s.name).text}$", s.type.level_name, prose(s.doc))
            for s in program.inputs
        ]
        blocks += ["## Input", _table(("name", "symbol", "one value per", "meaning"), rows)]
    if program.kept:
        rows = []
        for state in program.kept:
            init = "" if state.init is None else f"${written.notation.text(state.init)}$"
            symbol = f"${written.notation.variable(state.name).text}$"
            rows.append((code(state.name), symbol, state.type.level_name, init, code(state.key)))
        blocks += ["## State", _table(("name", "symbol", "one value per", "starts at", "key"), rows)]
    blocks += ["## Step", f"$$\n{_aligned(written)}\n$$"]
    if program.cite:
        blocks += ["## Reference", *paragraphs(program.cite)]
    return "\n\n".join(blocks) + "\n"


def _latex(program: Program) -> Step[Latex]:
    return step(program, Latex, latex_symbols)


def _aligned(written: Step[Latex]) -> str:
    rows = ["& " + "\\quad " * line.depth + _row(line) for line in written.lines]
    return "\n".join(("\\begin{aligned}", " \\\\\n".join(rows), "\\end{aligned}"))


def _row(line: Line) -> str:
    match line.kind:
        case "set":
            return f"{', '.join(line.targets)} \\leftarrow {', '.join(line.values)}"
        case "else":
            return "\\text{else}"
        case "elif":
            return f"\\text{{else if }} {line.values[0]}"
    return f"\\text{{if }} {line.values[0]}"


def _hyper(hyper: Hyper, to: Latex) -> tuple[str, ...]:
    default = number(hyper.default) if isinstance(hyper.default, float | int) else literal(hyper.default)
    range_ = "" if hyper.interval is None else str(hyper.interval)
    if hyper.kind is Kind.CHOICE:
        range_ = ", ".join(map(quote, hyper.choices))
    of = f" in {code(hyper.argument)}" if hyper.is_part else ""
    symbol = f"${to.variable(hyper.name).text}$"
    return code(hyper.name) + of, symbol, code(default), code(range_), cell(hyper.doc)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
