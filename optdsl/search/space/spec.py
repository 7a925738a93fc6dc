"""A genome as a spec that a person can read: constants and states with names, short lines, in the standard layout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from optdsl.check import check_text
from optdsl.core.types import element
from optdsl.ir.expr import Expr, call, const, var, walk
from optdsl.ir.program import Assign, Hyper, Interval, Program, State
from optdsl.ir.text import to_opt
from optdsl.lang.formatter import format_text
from optdsl.search.space.canonical import live
from optdsl.search.space.draft import tunable
from optdsl.search.space.genome import LR, OPS, Genome, Make, Ref, Statement, express, inputs, renamed

#: An expression of more nodes than this gets a name.
_LONG = 16
_LETTERS = ("u", "d", "a", "b", "c", "e", "f", "h", "k", "l", "n", "q", "r", "w", "x", "y")


def to_spec(genome: Genome, name: str, doc: str, cite: str = "") -> str:
    """The text of the spec `name` for the live part of a genome.

    Its constants are hyperparameters, called for what they do where that is plain. Raises SpecError where `name`
    cannot be the name of an optimizer.
    """
    genome = named(_anonymous(tunable(live(genome))))
    text = format_text(to_opt(_readable(genome, name, doc, cite)), f"{name}.opt")
    check_text(text, f"{name}.opt").require()
    return text


def _anonymous(genome: Genome) -> Genome:
    """`genome` without what another spec has said of its parts: they may have become something else."""
    hypers = tuple(h if h.name == LR else replace(h, doc="") for h in genome.hypers)
    return replace(genome, hypers=hypers, states=tuple(replace(s, key="") for s in genome.states))


def named(genome: Genome) -> Genome:
    """`genome` with hyperparameters and states called for what they do; names that specs have given are kept."""
    order = [LR, *(a for s in genome.body for a in s.args), *(ref for _, ref in genome.results)]
    order += [s.init for s in genome.states]
    genome = replace(genome, hypers=tuple(sorted(genome.hypers, key=lambda h: order.index(h.name))))
    made = {h.name for h in genome.hypers if _counted(h.name, "c")}
    states = {s.name for s in genome.states if _counted(s.name, "s")}
    taken = genome.taken() - made - states
    names: dict[str, str] = {}
    roles = _roles(genome)
    for h in genome.hypers:
        if h.name in made:
            role = roles.get(h.name, "c")
            names[h.name] = _free(role, taken, always=role in ("beta", "c"))
    by_name = {s.name: s for s in genome.body}
    leaves = genome.leaves
    for slot in genome.states:
        if slot.name in states:
            update = by_name.get(str(leaves.get(slot.name)))
            names[slot.name] = _free(_called(slot.name, update, by_name), taken)
    found = renamed(genome, names)
    shares = {s.args[0] for s in found.body if s.op == "mix"}
    return replace(
        found,
        hypers=tuple(replace(h, argument=h.name, interval=_range(h, h.name in shares)) for h in found.hypers),
        states=tuple(
            replace(s, key=names.get(o.name, s.key)) for s, o in zip(found.states, genome.states, strict=True)
        ),
    )


def _range(h: Hyper, share: bool) -> Interval | None:
    """The interval that the spec declares: that of a share leaves out the end at which nothing is ever learnt."""
    if share and h.interval is not None and h.interval.high == 1.0 and float(h.one) < 1:
        return Interval(h.interval.low, 1.0, h.interval.low_open, True)
    if h.interval is not None and math.isinf(h.interval.high) and math.isfinite(float(h.one)):
        return Interval(h.interval.low, h.interval.high, h.interval.low_open, True)
    return h.interval


def _counted(name: str, stem: str) -> bool:
    return name.startswith(stem) and name[len(stem) :].isdigit()


def _free(stem: str, taken: set[str], always: bool = False) -> str:
    """`stem`, or with a number from 1 on, whichever is free; it is taken then."""
    number = 1 if always else 0
    while (name := f"{stem}{number}" if number else stem) in taken:
        number += 1
    taken.add(name)
    return name


def _roles(genome: Genome) -> dict[str, str]:
    """What hyperparameters do: decays of averages, small numbers below a division, decay of weights."""
    roles: dict[str, str] = {}
    below = {s.args[1] for s in genome.body if s.op == "div"}
    products = {s.name: s for s in genome.body if s.op == "mul"}
    hypers = {h.name: h for h in genome.hypers if h.name != LR}
    for s in genome.body:
        for k, a in enumerate(s.args):
            if a not in hypers:
                continue
            other = s.args[1 - k] if len(s.args) == 2 else None
            if s.op == "mix" and k == 0:
                roles.setdefault(str(a), "beta")
            elif s.op in ("add", "max") and s.name in below and float(hypers[str(a)].one) < 1e-2:
                roles.setdefault(str(a), "eps")
            elif s.op == "mul" and (other == "p" or (other == LR and _meets(s.name, products))):
                roles.setdefault(str(a), "weight_decay")
    return roles


def _meets(name: str, products: dict[str, Statement]) -> bool:
    return any(set(s.args) == {name, "p"} for s in products.values())


def _called(name: str, update: Statement | None, by_name: dict[str, Statement]) -> str:
    """A name for a state, by what it follows: `v` for squares, `m` for another average, `past`, `s` for the rest."""
    if update is None:
        return "past"
    if update.op != "mix":
        return "s"
    followed = [a for a in update.args[1:] if a != name]
    square = any(
        (s := by_name.get(str(a))) is not None and s.op == "pow" and s.args[1] == 2 for a in followed
    )
    return "v" if square else "m"


def _readable(genome: Genome, name: str, doc: str, cite: str) -> Program:
    """The program of a genome with what is read once written where it is read."""
    plain = express(genome, name, doc, cite)
    leaves = genome.leaves
    results = {ref: n for n, ref in reversed(genome.results) if isinstance(ref, str)}
    uses = Counter(a for s in genome.body for a in s.args if isinstance(a, str))
    uses.update(ref for ref in leaves.values() if isinstance(ref, str))
    weighs = {s.args[0] for s in genome.body if s.op == "mix"}
    values: dict[str, Expr] = {n: var(n, type_) for n, type_ in inputs(genome).items()}
    taken, sites = set(values) | {s.name for s in genome.states}, iter(range(len(genome.body)))
    letters = iter(
        [x for x in _LETTERS if x not in taken] + [f"u{n}" for n in range(1, 1000) if f"u{n}" not in taken]
    )
    body: list[Assign] = []

    def make(op: str, *args: Any, over: str | None = None) -> Expr:
        joint = over in ("group", "all") and OPS[op].reduces
        return call(op, *args, over=over, site=next(sites) if joint else None)

    def value(ref: Ref) -> Expr:
        return values[ref] if isinstance(ref, str) else const(ref)

    for s in genome.body:
        lower = _spread if s.op == "broadcast" else OPS[s.op].lower
        expr = lower(make, list(map(value, s.args)), s.over)
        own = results.get(s.name)
        once = uses[s.name] == 1 and own is None and s.name not in weighs
        if once and sum(1 for _ in walk(expr)) <= _LONG:
            values[s.name] = expr
            continue
        source = own or next(letters)
        body.append(Assign(f"{source}.1", source, expr))
        values[s.name] = body[-1].var
    states = tuple(State(s.name, s.key or s.name, s.type, s.init) for s in plain.states)
    left = {n: value(ref) for n, ref in leaves.items()}
    return replace(plain, states=states, body=tuple(_late(body)), results=left)


def _spread(make: Make, args: Sequence[Any], over: str | None) -> Expr:
    """A value at a finer level, for which the language has no word of its own."""
    p = var("p", element())
    everywhere = make("select", make("eq", p, p), args[0], args[0])
    return everywhere if over == "element" else make("reduce_max", everywhere, over=over)


def _late(body: list[Assign]) -> list[Assign]:
    """`body` in an order in which `p` and states are read before they are assigned, where there is one."""
    left, found = list(body), list[Assign]()
    while left:
        waiting = {a.name for a in left}
        ready = [a for a in left if waiting.isdisjoint(a.expr.reads)]
        read = {a.name: set().union(*(b.expr.reads for b in left if b is not a)) for a in ready}
        chosen = next((a for a in ready if a.source not in read[a.name]), ready[0])
        left.remove(chosen)
        found.append(chosen)
    return found
