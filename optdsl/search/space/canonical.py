"""One form for all programs that differ in order, names, copies and dead code only: what is left is live.

`live` removes what no later step's result needs, over any number of steps: a state that only feeds itself, or
that the next step overwrites unread, is gone with what computes it. It assumes the best and takes back what does
not hold: that a state which begins with a number keeps it, and that states which begin alike stay alike. What is
still assumed when nothing has to be taken back any more holds in every step, by induction. The local rules are true
of finite numbers.

`digest` and `structure` are hashes that do not depend on names and order: one with the values of hyperparameters,
bit for bit, and one without them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from hashlib import blake2b

from optdsl.core.ops import CORE
from optdsl.core.types import Type
from optdsl.passes.evaluate import evaluate
from optdsl.search.space.genome import (
    LR,
    OPS,
    Genome,
    Ref,
    Slot,
    Statement,
    result_type,
    type_of,
    typed,
)


def live(genome: Genome) -> Genome:
    """The part of `genome` on which the parameters depend, without repetitions; statements are called x1, x2..."""
    leaves = genome.leaves
    # what each state is taken for: itself, another one that is always the same, or a number
    known: dict[str, Ref] = {}
    values = {h.name for h in genome.hypers if h.name != LR}
    first: dict[tuple[object, ...], str] = {}
    for s in genome.states:
        stays = s.init in values and leaves.get(s.name, s.name) == s.name
        if stays or not isinstance(s.init, str):
            known[s.name] = s.init
        else:
            known[s.name] = first.setdefault((s.level, s.init), s.name)
    types = typed(genome)
    while True:
        body, refs = _numbered(genome, known, types)
        after = {s.name: _resolved(leaves.get(s.name, s.name), refs, known) for s in genome.states}
        again = _taken_back(genome.states, known, after)
        if again == known:
            break
        known = again
    results = [("p", _resolved(leaves.get("p", "p"), refs, known))]
    results += [(s.name, after[s.name]) for s in genome.states if known[s.name] == s.name]
    return _needed(genome, body, dict(results))


def _taken_back(
    states: tuple[Slot, ...], known: Mapping[str, Ref], after: Mapping[str, Ref]
) -> dict[str, Ref]:
    """`known` without what a step would not keep."""
    found: dict[str, Ref] = {}
    groups: dict[tuple[object, ...], str] = {}
    for s in states:
        taken = known[s.name]
        if not isinstance(taken, str) and same(after[s.name], taken):
            found[s.name] = taken
            continue
        if isinstance(taken, str) and taken not in known:
            found[s.name] = taken  # a hyperparameter that it begins with and keeps
            continue
        # states taken for one stay one if the step leaves one value in them
        begins = (s.level, bits(s.init)) if not isinstance(taken, str) else (taken,)
        found[s.name] = groups.setdefault((*begins, bits(after[s.name])), s.name)
    return found


def same(a: Ref, b: Ref) -> bool:
    """True for the same name, and for equal numbers."""
    if isinstance(a, str) or isinstance(b, str):
        return a == b and isinstance(a, str) is isinstance(b, str)
    return a == b or (a != a and b != b)


def bits(ref: Ref) -> object:
    """A key for an argument: names as they are, numbers by their bits (an int as the float that it means)."""
    if isinstance(ref, str | bool):
        return ref if isinstance(ref, str) else f"#{ref}"
    return struct.pack("<d", ref)


def _resolved(ref: Ref, refs: Mapping[str, Ref], known: Mapping[str, Ref]) -> Ref:
    if not isinstance(ref, str):
        return ref
    return refs.get(ref, known.get(ref, ref))


#: Reductions of what is one number everywhere to that number.
_SAME_OF_SAME = ("reduce_mean", "reduce_max", "reduce_min")


def _counts(op: str, over: str | None) -> bool:
    """True for a reduction that depends on how many entries there are: of a tensor, or of each of several."""
    return op in ("reduce_sum", "norm") or (over in ("group", "all") and op in ("reduce_mean", "rms"))


def _numbered(
    genome: Genome, known: Mapping[str, Ref], types: Mapping[str, Type]
) -> tuple[list[Statement], dict[str, Ref]]:
    """The statements after local rules, each value once, and what stands for each name."""
    refs: dict[str, Ref] = {}
    numbers: dict[tuple[object, ...], str] = {}
    body: list[Statement] = []
    made: dict[str, Statement] = {}
    # some types become coarser, which matters to reductions alone
    now = dict(types) if any(OPS[s.op].reduces for s in genome.body) else None
    for s in genome.body:
        op, args = s.op, tuple(_resolved(a, refs, known) for a in s.args)
        while isinstance(found := _rule(op, args, made), tuple):
            op, args = found
        type_ = None
        if found is None and now is not None:
            type_ = result_type(op, s.over, tuple(type_of(a, now) for a in args))
            if OPS[op].reduces:
                before = type_of(s.args[0], types)
                if type_ is None and (op in _SAME_OF_SAME or _zero(args[0])):
                    found = args[0]  # what is to be reduced has become known as one number
                elif type_ is None or (_counts(op, s.over) and type_of(args[0], now) != before):
                    wide = Statement(f"{s.name} wide", "broadcast", args, before.level_name)
                    body.append(wide)
                    now[wide.name], args, type_ = before, (wide.name,), types[s.name]
        if found is not None:
            refs[s.name] = found
            continue
        keys = [bits(a) for a in args]
        if OPS[op].commutes:
            keys.sort(key=repr)
        key = (op, s.over, *keys)
        if key in numbers:
            refs[s.name] = numbers[key]
            continue
        numbers[key] = s.name
        body.append(s if (op, args) == (s.op, s.args) else Statement(s.name, op, args, s.over))
        made[s.name] = body[-1]
        if now is not None and type_ is not None:
            now[s.name] = type_
    return body, refs


def _zero(ref: Ref) -> bool:
    return not isinstance(ref, str) and ref == 0


def _one(ref: Ref) -> bool:
    return not isinstance(ref, str) and ref == 1


def _rule(
    op: str, args: tuple[Ref, ...], made: Mapping[str, Statement]
) -> Ref | tuple[str, tuple[Ref, ...]] | None:
    """What `op(args)` is in another form: an argument or a number, or operator and arguments; None for itself.

    Levels may become coarser: what is the same for all elements is then known as that.
    """
    if not any(isinstance(a, str) for a in args):
        return _folded(op, args)
    a = args[0]
    b = args[1] if len(args) > 1 else a
    twice = len(args) == 2 and same(a, b)
    match op:
        case "add":
            if _zero(a):
                return b
            if _zero(b):
                return a
        case "sub":
            if _zero(b):
                return a
            if twice:
                return 0.0
            if _zero(a):
                return "neg", (b,)
        case "mul":
            if _zero(a) or _zero(b):
                return 0.0
            if _one(a):
                return b
            if _one(b):
                return a
            if twice:
                return "pow", (a, 2)
        case "div":
            if _one(b):
                return a
            if _zero(a):
                return 0.0
            if twice:
                return 1.0
        case "pow":
            if _one(b):
                return a
            if _zero(b):
                return 1.0
            inner = _made(a, made)
            if inner is not None and inner.op in ("abs", "neg") and b == 2:
                return "pow", (inner.args[0], 2)
        case "neg":
            inner = _made(a, made)
            if inner is not None and inner.op == "neg":
                return inner.args[0]
        case "abs":
            inner = _made(a, made)
            if inner is not None and inner.op in ("abs", "neg"):
                return a if inner.op == "abs" else ("abs", inner.args)
        case "sqrt":
            inner = _made(a, made)
            if inner is not None and inner.op == "pow" and same(inner.args[1], 2):
                return "abs", (inner.args[0],)
        case "sign" | "floor" | "ceil" | "round":
            inner = _made(a, made)
            if inner is not None and inner.op == op:
                return a
        case "min" | "max" | "and" | "or":
            if twice:
                return a
        case "mix":
            w, x, y = args
            if _one(w) or same(x, y):
                return x
            if _zero(w):
                return y
            if _zero(y):
                return "mul", (w, x)
            if not isinstance(w, str) and _zero(x):
                return "mul", (1 - w, y)
        case "select":
            c, x, y = args
            if isinstance(c, bool):
                return x if c else y
            if same(x, y):
                return x
        case "broadcast":
            return a
    return None


def _made(ref: Ref, made: Mapping[str, Statement]) -> Statement | None:
    return made.get(ref) if isinstance(ref, str) else None


def _folded(op: str, args: tuple[Ref, ...]) -> Ref | None:
    """The number that an operator gives on numbers."""
    if op == "mix":
        w, x, y = (float(a) for a in args)
        return w * x + (1 - w) * y
    if op == "select":
        return args[1] if args[0] else args[2]
    if op == "broadcast":
        return args[0]
    whole = all(isinstance(a, int) and not isinstance(a, bool) for a in args)
    found = evaluate(op, args, whole and op in CORE and CORE[op].result == "same")
    return None if isinstance(found, str) or (found is not None and not math.isfinite(found)) else found


def _needed(genome: Genome, body: list[Statement], results: dict[str, Ref]) -> Genome:
    """What `p` needs, over any number of steps."""
    by_name = {s.name: s for s in body}
    needed: set[str] = set()
    stack: list[Ref] = [results["p"]]
    while stack:
        ref = stack.pop()
        if not isinstance(ref, str) or ref in needed:
            continue
        needed.add(ref)
        if ref in by_name:
            stack += by_name[ref].args
        elif ref in results:
            stack.append(results[ref])
    kept = tuple(s for s in genome.states if s.name in needed)
    needed |= {s.init for s in kept if isinstance(s.init, str)}
    taken = {LR, *(h.name for h in genome.hypers), *(s.name for s in kept)}
    names: dict[str, str] = {}
    for s in body:
        if s.name in needed:
            number = len(names) + 1
            while f"x{number}" in taken:
                number += 1
            names[s.name] = f"x{number}"
            taken.add(names[s.name])

    def new(ref: Ref) -> Ref:
        return names.get(ref, ref) if isinstance(ref, str) else ref

    statements = tuple(
        Statement(names[s.name], s.op, tuple(map(new, s.args)), s.over) for s in body if s.name in names
    )
    hypers = tuple(h for h in genome.hypers if h.name == LR or h.name in needed)
    left = [("p", new(results["p"])), *((s.name, new(results[s.name])) for s in kept)]
    return Genome(hypers, kept, statements, tuple((n, ref) for n, ref in left if n != ref))


# ---- hashes -----------------------------------------------------------------------------------------------


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"\0".join(parts), digest_size=12).digest()


def digest(genome: Genome) -> str:
    """A hash of a live genome, values of hyperparameters included: the same under other names and in other orders."""
    exact = {h.name: b"lr" if h.name == LR else b"=" + struct.pack("<d", h.one) for h in genome.hypers}
    return _refined(genome, exact)["p"].hex()


def structure(genome: Genome) -> str:
    """A hash of a live genome but for the values of its hyperparameters: only which of them are one counts."""
    anonymous = {h.name: b"lr" if h.name == LR else b"c" for h in genome.hypers}
    return _serial(genome, _refined(genome, anonymous)).hex()


def _refined(genome: Genome, hypers: Mapping[str, bytes]) -> dict[str, bytes]:
    """A hash of every value, and of what is left in `p` and states, after enough rounds to tell all states apart."""

    def of(ref: Ref, values: Mapping[str, bytes]) -> bytes:
        if isinstance(ref, str):
            return values.get(ref) or ref.encode()
        return b"%d" % ref if isinstance(ref, bool) else b"#" + struct.pack("<d", ref)

    values = dict(hypers)
    leaves = genome.leaves
    states = {s.name: _digest(b"state", s.level.encode(), of(s.init, values)) for s in genome.states}
    varies = set(states)
    fixed: dict[str, bytes] = {}
    for count in range(len(states) + 1):
        values = {**hypers, **states, **fixed}
        for s in genome.body:
            if s.name in fixed:
                continue
            parts = [of(a, values) for a in s.args]
            if OPS[s.op].commutes:
                parts.sort()
            values[s.name] = _digest(s.op.encode(), (s.over or "").encode(), *parts)
            if count == 0:
                if varies.isdisjoint(a for a in s.args if isinstance(a, str)):
                    fixed[s.name] = values[s.name]
                else:
                    varies.add(s.name)
        states = {n: _digest(states[n], of(leaves.get(n, n), values)) for n in states}
    values["p"] = _digest(b"p", of(leaves.get("p", "p"), {**values, **states}))
    return values | {f"{n}'": h for n, h in states.items()}


def _serial(genome: Genome, values: Mapping[str, bytes]) -> bytes:
    """A hash of the genome as it is read from `p` on, with states and hyperparameters numbered as they are met."""
    by_name = {s.name: s for s in genome.body}
    leaves = genome.leaves
    numbers: dict[str, bytes] = {}
    states = {s.name: s for s in genome.states}
    named = {h.name for h in genome.hypers if h.name != LR} | set(states)
    text: list[bytes] = []
    waiting: list[str] = []

    def visit(ref: Ref) -> None:
        if not isinstance(ref, str):
            text.append(b"#" + struct.pack("<d", ref))
            return
        if ref in numbers:
            text.append(numbers[ref])
            return
        if ref in named or ref in by_name:
            numbers[ref] = b"@%d" % len(numbers)
        if ref not in by_name:
            text.append(numbers.get(ref) or ref.encode())
            if ref in states:
                waiting.append(ref)
            return
        s = by_name[ref]
        text.append(f"({s.op} {s.over or ''}".encode())
        args = s.args
        if OPS[s.op].commutes:
            args = tuple(
                sorted(
                    args,
                    key=lambda a: (
                        values.get(a, a.encode()) if isinstance(a, str) else bytes(str(bits(a)), "ascii")
                    ),
                )
            )
        for a in args:
            visit(a)
        text.append(b")")

    visit(leaves.get("p", "p"))
    while waiting:
        name = waiting.pop(0)
        text.append(f"{states[name].level}".encode())
        visit(states[name].init)
        visit(leaves.get(name, name))
    return _digest(*text)
