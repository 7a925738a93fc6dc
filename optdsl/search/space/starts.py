"""Shipped methods as genomes, to start a search from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from optdsl.core.record import record
from optdsl.driver import locate, program_of, shipped_specs
from optdsl.ir.expr import Literal, const
from optdsl.ir.program import Program
from optdsl.ir.text import expression
from optdsl.passes.simplify import simplify, substitute
from optdsl.passes.specialise import at
from optdsl.search.space.genome import Genome, Refused, of_program, refuse

#: Methods that are no start, whatever the options.
_NO_START = {"exponentiated_gradient": "is for parameters on a simplex"}


def start(path_or_name: str | os.PathLike[str], **options: Literal) -> Genome:
    """The genome of a spec with these options, and its defaults for the others.

    Raises Refused for one whose step is not branch-free then, or has what no genome has; FileNotFoundError,
    SpecError and KeyError (an option that it does not have).
    """
    path = locate(path_or_name)
    if path.stem in _NO_START:
        raise Refused(_NO_START[path.stem])
    program, _ = program_of(path)
    return settle(program, options)


def settle(program: Program, options: Mapping[str, Literal] | None = None) -> Genome:
    """The genome of a checked program with these options. Raises as `start`."""
    refuse(program)
    values = {h.name: h.one for h in program.hypers}
    for name, value in (options or {}).items():
        values[name] = float(value) if isinstance(values[name], float) else value
    hypers = tuple(replace(h, default=values[h.name]) for h in program.hypers)
    program = simplify(program)
    settled, left = at(program, values)
    if left:
        raise Refused(f"has a branch on `{expression(left[0], {})}`")
    chosen = {h.name: const(h.one) for h in hypers if not h.kind.numeric}
    settled = simplify(
        settled.with_body(
            tuple(replace(a, expr=substitute(a.expr, chosen)) for a in settled.body),
            {name: substitute(expr, chosen) for name, expr in settled.results.items()},
        )
    )
    return of_program(replace(settled, hypers=hypers))


@record
class Starts:
    """The shipped methods that can be started from, and why the others cannot, by name."""

    genomes: Mapping[str, Genome]
    refused: Mapping[str, str]


def shipped() -> Starts:
    """Every shipped method with its defaults."""
    genomes: dict[str, Genome] = {}
    refused: dict[str, str] = {}
    for name in shipped_specs():
        try:
            genomes[name] = start(name)
        except Refused as reason:
            refused[name] = str(reason)
    return Starts(genomes, refused)
