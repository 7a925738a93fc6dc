"""The statements of a step as lines of mathematics, whatever the notation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from optdsl.analysis.notation import Notation, draws, negation
from optdsl.analysis.symbols import Symbol
from optdsl.core.ops import FACTS
from optdsl.core.record import record
from optdsl.ir.expr import Expr, Var, variables
from optdsl.ir.program import Program
from optdsl.ir.structure import Branch, Set, Statement, structure

N = TypeVar("N", bound=Notation)


@record
class Line:
    """One line: an assignment of `values` to `targets` (`kind` is "set"), or "if", "elif" or "else", with the
    condition as the only value.
    """

    depth: int
    kind: str
    values: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


@record
class Step(Generic[N]):
    """The step of a program in a notation."""

    notation: N
    lines: tuple[Line, ...]


def step(
    program: Program,
    notation: Callable[[Mapping[str, Symbol], Mapping[str, str], bool], N],
    symbols: Callable[[Iterable[str]], dict[str, Symbol]],
) -> Step[N]:
    """The step of `program`, written by `notation` with the names that `symbols` gives."""
    structured = structure(program, reserved=FACTS)
    named = ("p", "g", *FACTS, *(h.name for h in program.hypers), *(s.name for s in program.states))
    left = _leaves(structured.results, structured.names)
    expressions = [*_expressions(structured.body), *left.values()]
    to = notation(
        symbols((*named, *structured.names.values())),
        structured.names,
        sum(map(draws, expressions)) > 1,
    )
    lines = [*_lines(structured.body, to, 0), *_leave(left, to)]
    return Step(to, tuple(lines or [Line(0, "set", ("p",), ("p",))]))


def _expressions(body: list[Statement]) -> Iterator[Expr]:
    for item in body:
        if isinstance(item, Set):
            yield item.expr
        else:
            yield item.condition
            yield from _expressions(item.then)
            yield from _expressions(item.other)


def _lines(body: list[Statement], to: Notation, depth: int) -> Iterator[Line]:
    for item in body:
        if isinstance(item, Set):
            yield Line(depth, "set", (to.text(item.expr),), (to.variable(item.target).text,))
        else:
            yield from _branch(item, to, depth, "if")


def _branch(branch: Branch, to: Notation, depth: int, word: str) -> Iterator[Line]:
    then = list(_lines(branch.then, to, depth + 1))
    other = list(_lines(branch.other, to, depth + 1))
    if then:
        yield Line(depth, word, (to.text(branch.condition),))
        yield from then
        only = branch.other[0] if len(branch.other) == 1 else None
        if isinstance(only, Branch):
            yield from _branch(only, to, depth, "elif")
        elif other:
            yield Line(depth, "else")
            yield from other
    elif other:
        yield Line(depth, word, (to.text(negation(branch.condition)),))
        yield from other


def _leaves(results: Mapping[str, Expr], names: Mapping[str, str]) -> dict[str, Expr]:
    """The results that do not stand under their names yet."""
    return {
        name: value
        for name, value in results.items()
        if not (isinstance(value, Var) and names.get(value.name) == name)
    }


def _leave(left: Mapping[str, Expr], to: Notation) -> Iterator[Line]:
    """Assignments that leave each result under its name; one for all of them where one reads another."""
    reads = {name: {to.names.get(v, v) for v in variables(value)} for name, value in left.items()}
    written = [(to.variable(name).text, to.text(value)) for name, value in left.items()]
    if any(name in read for name in left for other, read in reads.items() if other != name):
        yield Line(0, "set", tuple(value for _, value in written), tuple(name for name, _ in written))
    else:
        yield from (Line(0, "set", (value,), (name,)) for name, value in written)
