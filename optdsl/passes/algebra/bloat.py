"""A cheap test, without sympy, whether algebra may make a program cheaper. Ordinary programs are told by it alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from optdsl.core.record import record
from optdsl.ir.expr import Call, Const, Expr, walk
from optdsl.ir.program import Program
from optdsl.passes.algebra.inline import Inline
from optdsl.passes.algebra.region import exponent_of, is_inner, largest, region


def is_bloated(program: Program, max_nodes: int) -> bool:
    """True when algebra may make some expression of `program` cheaper, alone or with those that only it reads.

    `max_nodes` is the size of the largest expression that is taken as a whole.
    """
    return any(_flagged(expr, max_nodes) for expr in _forms(program))


def _forms(program: Program) -> Iterator[Expr]:
    """The expressions that algebra would look at."""
    inline = Inline(program)
    for assign in program.body:
        yield assign.expr
        inlined = inline(assign)
        if inlined is not assign.expr:
            yield inlined


def _flagged(expr: Expr, max_nodes: int) -> bool:
    """True when some part of `expr` that algebra can take is bloated."""
    if not any(is_inner(node) for node in walk(expr)):
        return False
    roots = largest(expr, max_nodes)
    return any(
        bloated(node) for root in walk(expr) if id(root) in roots for node in region(root) if is_inner(node)
    )


def bloated(node: Expr) -> bool:
    """A cheap test whether algebra may make `node` itself cheaper; its operands are not asked.

    Tuned to leave ordinary forms alone: moving averages, `lerp`, decay as `p - lr * decay * p`, squares,
    `m / (1 - beta^t) / (sqrt(v) + eps)`.
    """
    if not isinstance(node, Call) or not is_inner(node) or node.type.is_host:
        return False
    if node.op in ("add", "sub"):
        return _bloated_sum(node)
    if node.op in ("mul", "div"):
        return _bloated_product(node)
    return _undone(node)


def _undone(node: Call) -> bool:
    """A function of a function that undoes it, or merges with it."""
    match node.op, node.args[0]:
        case "exp", Call("log"):
            return True
        case "exp", Call("mul" | "div", args):
            return any(isinstance(arg, Call) and arg.op == "log" for arg in args)
        case "log", Call("exp" | "pow" | "sqrt"):
            return True
        case (("pow" | "sqrt"), Call("pow" | "sqrt" | "exp")):
            return True
        case "pow", Call("abs"):
            exponent = exponent_of(node.args[1])
            return exponent is not None and exponent % 2 == 0
        case "abs", Call("sqrt" | "exp" | "abs"):
            return True
        case "abs", Call("pow", (_, exponent)):
            value = exponent_of(exponent)
            return value is not None and value % 2 == 0
        case "neg", Call("neg"):
            return True
    return False


def _factors(node: Expr, power: float = 1.0) -> Iterator[tuple[Expr, float]]:
    """(base, exponent) of every factor of a product, each as often as it is written."""
    match node:
        case Call("mul", (a, b)) if is_inner(node):
            yield from _factors(a, power)
            yield from _factors(b, power)
        case Call("div", (a, b)) if is_inner(node):
            yield from _factors(a, power)
            yield from _factors(b, -power)
        case Call("neg", (a,)) if is_inner(node):
            yield from _factors(a, power)
        case Call("sqrt", (a,)) if is_inner(node):
            yield a, power / 2
        case Call("pow", (a, b)) if is_inner(node):
            exponent = exponent_of(b)
            assert exponent is not None
            yield a, power * exponent
        case _:
            yield node, power


def _bloated_product(node: Expr) -> bool:
    powers: dict[Expr, list[float]] = defaultdict(list)
    literals = exponentials = 0
    for base, power in _factors(node):
        if isinstance(base, Const):
            literals += 1
        elif isinstance(base, Call) and base.op == "exp" and not base.type.is_host:
            exponentials += 1
            powers[base].append(power)
        elif not base.type.is_host:
            powers[base].append(power)
    if literals >= 2 or exponentials >= 2:
        return True
    return any(
        len(found) >= 2 and (_merge(found) or (isinstance(base, Call) and base.op == "abs"))
        for base, found in powers.items()
    )


def _merge(powers: list[float]) -> bool:
    """True when the product of these powers of one base is better written as one power."""
    if min(powers) < 0 < max(powers) or sum(not p.is_integer() for p in powers) >= 2:
        return True
    whole = [int(abs(p)) for p in powers if p.is_integer()]
    apart = sum(map(_multiplications, whole)) + len(whole) - 1
    return apart > _multiplications(sum(whole))


def _multiplications(n: int) -> int:
    return n.bit_length() + n.bit_count() - 2 if n else 0


@record
class _Term:
    """One term of a sum: what stands beside the device factors, and whether it had to be multiplied out."""

    bare: bool
    named: bool  # some host value other than a literal is a factor
    spread: bool


def _bloated_sum(node: Expr) -> bool:
    literals = 0
    terms: dict[Any, list[_Term]] = defaultdict(list)
    for key, term in _terms(node, _Term(True, False, False)):
        if key is None:
            literals += not term.spread
        else:
            terms[key].append(term)
    return literals >= 2 or any(map(_like, terms.values()))


def _like(terms: list[_Term]) -> bool:
    """True when terms with the same device factors are worth adding up."""
    if len(terms) != 2:
        return len(terms) > 2
    if any(term.spread for term in terms):
        return False  # a + w * (b - a)
    # p - lr * decay * p
    return not (any(term.bare for term in terms) and any(term.named for term in terms))


def _terms(node: Expr, so_far: _Term) -> Iterator[tuple[Any, _Term]]:
    """(key of the device factors, term) for every term of a sum; host factors are multiplied out.

    The key is None for literals. Terms of host values alone are left out.
    """
    stack = [(node, so_far)]
    while stack:
        item, term = stack.pop()
        if isinstance(item, Call) and is_inner(item) and item.op in ("add", "sub", "neg"):
            if item.type.is_host:
                continue
            stack.extend((arg, term) for arg in reversed(item.args))
            continue
        bare, named = term.bare, term.named
        device: defaultdict[Expr, float] = defaultdict(float)
        for base, power in _factors(item):
            if base.type.is_host:
                bare = False
                named |= not isinstance(base, Const)
            else:
                device[base] += power
        if not device:
            if isinstance(item, Const):
                yield None, term
            continue
        only = next(iter(device))
        whole = len(device) == 1 and device[only] == 1
        if whole and isinstance(only, Call) and only.op in ("add", "sub") and is_inner(only):
            stack.append((only, _Term(bare, named, term.spread or only is not item)))
            continue
        yield frozenset(device.items()), _Term(bare, named, term.spread)
