"""Expressions computed on samples: as the device does it, and to many digits."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optdsl.ir.expr import Call, Const, Expr
from optdsl.passes.algebra.region import region


def run(root: Expr, leaves: Mapping[Expr, Any], dtype: Any = None) -> Any:
    """`root` operation by operation: host values in double, others in `dtype` (float32)."""
    dtype = np.float32 if dtype is None else dtype
    n = next(iter(leaves.values())).shape
    values: dict[Expr, Any] = dict(leaves)
    for node in _computed(root, leaves):
        if isinstance(node, Const):
            values[node] = np.full(n, float(node.value))
        else:
            assert isinstance(node, Call)
            args = [values[arg] for arg in node.args]
            if not node.type.is_host:
                args = [arg.astype(dtype) for arg in args]
            values[node] = _apply(node.op, args)
    return values[root].astype(dtype)


def _computed(root: Expr, leaves: Mapping[Expr, Any]) -> list[Expr]:
    """The nodes between `leaves` and `root`, operands first. A new form may compute more on the host."""
    found: list[Expr] = []
    seen: set[Expr] = set(leaves)
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            found.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))
    return found


def _apply(op: str, args: list[Any]) -> Any:
    """One operator. Those that libraries round differently are rounded well, so that all machines agree."""
    simple = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
        "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt,
    }  # fmt: skip
    if op in simple:
        return simple[op](*args)
    if op == "pow" and args[1].size and np.all(args[1] == 2):
        return args[0] * args[0]
    function = {"exp": np.exp, "log": np.log, "pow": np.power}[op]
    return function(*(arg.astype(np.float64) for arg in args)).astype(args[0].dtype)


def reference(root: Expr, leaves: Mapping[Expr, Any], asked: Any, bits: int) -> tuple[Any, Any, Any]:
    """(high, low, known): `root` in `bits` bits as the sum of two doubles, for the samples that are asked."""
    lib = importlib.import_module("mpmath.libmp")
    operators = _exact_operators(lib, bits)
    nodes = list(region(root))
    place = {node: i for i, node in enumerate(nodes)}
    steps: list[tuple[Callable[..., Any], list[int]] | list[float] | Any] = []
    for node in nodes:
        if node in leaves:
            steps.append(leaves[node].tolist())
        elif isinstance(node, Call):
            steps.append((operators[node.op], [place[arg] for arg in node.args]))
        else:
            assert isinstance(node, Const)
            steps.append(lib.from_float(float(node.value)))
    high, low = np.zeros(asked.shape), np.zeros(asked.shape)
    known = np.zeros(asked.shape, bool)
    inputs = [(i, step) for i, step in enumerate(steps) if isinstance(step, list)]
    work = [(i, *step) for i, step in enumerate(steps) if callable(step[0])]
    values = list(steps)
    for sample in asked.nonzero()[0].tolist():
        for i, column in inputs:
            values[i] = lib.from_float(column[sample])
        try:
            for i, function, args in work:
                if len(args) == 2:
                    values[i] = function(values[args[0]], values[args[1]])
                else:
                    values[i] = function(values[args[0]])
            result = values[-1]
            first = high[sample] = lib.to_float(result)
            if math.isfinite(first):
                low[sample] = lib.to_float(lib.mpf_sub(result, lib.from_float(first), bits, "n"))
            known[sample] = True
        except (ZeroDivisionError, ValueError, OverflowError):
            continue
    return high, low, known


def _exact_operators(lib: Any, bits: int) -> dict[str, Callable[..., Any]]:
    """The operators on raw numbers of mpmath, in `bits` bits. They raise where a result is not finite."""
    largest = lib.from_int(2**17)

    def exp(x: Any) -> Any:
        if lib.mpf_gt(lib.mpf_abs(x), largest):
            if lib.mpf_sign(x) > 0:
                raise OverflowError
            x = lib.mpf_neg(largest)
        return lib.mpf_exp(x, bits, "n")

    def log(x: Any) -> Any:
        if lib.mpf_sign(x) <= 0:
            raise ValueError
        return lib.mpf_log(x, bits, "n")

    def power(x: Any, y: Any) -> Any:
        exponent = lib.to_float(y)
        if exponent == int(exponent):
            return lib.mpf_pow_int(x, int(exponent), bits, "n")
        if lib.mpf_sign(x) == 0:
            return lib.mpf_div(lib.fone, x, bits, "n") if exponent < 0 else x
        return lib.mpf_pow(x, y, bits, "n")

    return {
        "add": lambda a, b: lib.mpf_add(a, b, bits, "n"),
        "sub": lambda a, b: lib.mpf_sub(a, b, bits, "n"),
        "mul": lambda a, b: lib.mpf_mul(a, b, bits, "n"),
        "div": lambda a, b: lib.mpf_div(a, b, bits, "n"),
        "neg": lib.mpf_neg,
        "abs": lib.mpf_abs,
        "sqrt": lambda a: lib.mpf_sqrt(a, bits, "n"),
        "exp": exp,
        "log": log,
        "pow": power,
    }


def ulp(value: Any) -> Any:
    """The distance of float32 numbers near `value`, a double."""
    exponent = np.frexp(np.where(np.isfinite(value), np.abs(value), 1.0))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, -126) - 23)
