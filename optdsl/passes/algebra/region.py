"""What algebra sees of an expression: arithmetic on floats down to the leaves, which are all else."""

from __future__ import annotations

import math
from collections.abc import Iterator

from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Const, Expr, rebuild, walk

#: Operators that algebra sees through, on values of the device and on host values. All else is a leaf.
_DEVICE_OPS = frozenset({"add", "sub", "mul", "div", "neg", "abs", "sqrt", "exp", "log", "pow"})
_HOST_OPS = frozenset({"add", "sub", "mul", "neg"})
MAX_EXPONENT = 16
_MAX_DEPTH = 40


def exponent_of(node: Expr) -> float | None:
    """The value of a literal that may be an exponent: a multiple of 1/16 that is not large."""
    value = literal_of(node)
    if value is None or abs(value) > MAX_EXPONENT or not (16.0 * value).is_integer():
        return None
    return float(value)


def literal_of(node: Expr) -> float | None:
    """The value of a finite literal number: an int or a float, whichever it is."""
    if not isinstance(node, Const) or node.type.kind not in (Kind.INT, Kind.FLOAT):
        return None
    assert isinstance(node.value, int | float)
    return node.value if math.isfinite(node.value) else None


def is_inner(node: Expr) -> bool:
    """True when algebra sees through `node` to its operands."""
    if not isinstance(node, Call) or node.type.kind is not Kind.FLOAT:
        return False
    if node.type.is_host:
        return node.op in _HOST_OPS
    if node.op == "pow":
        return exponent_of(node.args[1]) is not None and not isinstance(node.args[0], Const)
    return node.op in _DEVICE_OPS


def region(root: Expr) -> Iterator[Expr]:
    """The nodes that algebra sees from `root`: inner nodes and leaves, operands first, each once."""
    seen: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            if is_inner(node):
                stack.extend((arg, False) for arg in reversed(node.args))


def sizes_of(root: Expr) -> dict[int, tuple[int, int]]:
    """(size as a tree, depth) of every node below `root`, as far as algebra sees from that node."""
    sizes: dict[int, tuple[int, int]] = {}
    for node in walk(root):
        below = [sizes[id(arg)] for arg in node.args] if is_inner(node) else []
        sizes[id(node)] = (1 + sum(s for s, _ in below), 1 + max((d for _, d in below), default=0))
    return sizes


def largest(expr: Expr, max_nodes: int) -> set[int]:
    """Largest nodes of `expr` that algebra can take as a whole: device arithmetic within the size limits."""
    sizes = sizes_of(expr)

    def fits(node: Expr) -> bool:
        size, depth = sizes[id(node)]
        return is_inner(node) and not node.type.is_host and size <= max_nodes and depth <= _MAX_DEPTH

    found = {id(expr)} if fits(expr) else set()
    for node in walk(expr):
        if not fits(node):
            found |= {id(arg) for arg in node.args if fits(arg)}
    return found


def replaced(root: Expr, old: Expr, new: Expr) -> Expr:
    """`root` with the inner node `old` replaced by `new`."""
    done: dict[Expr, Expr] = {}
    for node in region(root):
        if node is old:
            done[node] = new
        else:
            done[node] = rebuild(node, tuple(done[arg] for arg in node.args)) if is_inner(node) else node
    return done[root]
