"""Values of what the host knows, for the samples on which two forms are compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Const, Expr, Var
from optdsl.ir.numpy_ops import NUMPY
from optdsl.ir.program import Program
from optdsl.passes.algebra.hostile import spread


class Host:
    """Random values of what is known on the host: hyperparameters inside their intervals, their defaults and
    (where closed) the ends of the intervals; facts of a tensor; and what is computed from these, in double.

    Hyperparameters that are not bounded stay below 10^4, and above 10^-10 from the ends of their intervals.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.definitions = {a.name: a.expr for a in program.body if a.expr.type.is_host}

    def sample(self, wanted: Iterable[Expr], n: int, rng: Any, edges: int = 0) -> dict[Expr, Any]:
        """Arrays of `n` values for each of the host expressions `wanted`.

        In the last `edges` of them, most hyperparameters are at an end of their interval, and `t` is 1.
        """
        names = self._inputs(n, rng, np.arange(n) >= n - edges)
        memo: dict[Expr, Any] = {}
        return {node: self._value(node, names, memo, n, rng) for node in wanted}

    def _inputs(self, n: int, rng: Any, edge: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        usual = (rng.random(n) < 0.3) & ~edge
        for hyper in self.program.hypers:
            match hyper.kind:
                case Kind.BOOL:
                    drawn = rng.random(n) < 0.5
                case Kind.CHOICE:
                    drawn = rng.choice(np.array(hyper.choices or (hyper.default,)), n)
                case Kind.LIST:  # one list for all samples
                    values[hyper.name] = self._within(
                        hyper.interval, hyper.number_kind, 4, rng, np.zeros(4, bool)
                    )
                    continue
                case _:
                    drawn = self._within(hyper.interval, hyper.kind, n, rng, edge)
            values[hyper.name] = np.where(usual, hyper.default, drawn)
        t = np.where((rng.random(n) < 0.25) | edge, 1.0, np.floor(10 ** rng.uniform(0, 6, n)))
        rows, cols = (np.floor(10 ** rng.uniform(0, 4, n)) for _ in range(2))
        ndim = rng.integers(0, 5, n).astype(np.float64)
        return values | {
            "t": t, "first_step": t == 1, "rows": rows, "cols": cols, "numel": rows * cols, "ndim": ndim
        }  # fmt: skip

    def _within(self, interval: Any, kind: Kind, n: int, rng: Any, edge: Any) -> Any:
        low = -math.inf if interval is None else interval.low
        high = math.inf if interval is None else interval.high
        small = 10 ** rng.uniform(-10, 0, n)
        large = 10 ** rng.uniform(-10, 4, n)
        if math.isfinite(low) and math.isfinite(high):
            small = np.where(rng.random(n) < 0.3, rng.uniform(0.001, 0.999, n), small * 0.999)
            near_low, near_high = low + (high - low) * small, high - (high - low) * small
        elif math.isfinite(low):
            near_low = near_high = low + large
        elif math.isfinite(high):
            near_low = near_high = high - large
        else:
            near_low, near_high = large, -large
        drawn = np.where(rng.random(n) < 0.5, near_low, near_high)
        if interval is not None:
            if math.isfinite(low) and not interval.low_open:
                drawn = np.where(rng.random(n) < np.where(edge, 0.6, 0.1), low, drawn)
            if math.isfinite(high) and not interval.high_open:
                drawn = np.where(rng.random(n) < np.where(edge, 0.4, 0.1), high, drawn)
        if kind is Kind.INT:
            drawn = np.clip(np.round(drawn), math.ceil(low) if math.isfinite(low) else low, high)
        return drawn

    def _value(self, root: Expr, names: dict[str, Any], memo: dict[Expr, Any], n: int, rng: Any) -> Any:

        stack = [root]
        while stack:
            node = stack[-1]
            if node in memo:
                stack.pop()
                continue
            needed = node.args
            if isinstance(node, Var) and node.name in self.definitions:
                needed = (self.definitions[node.name],)
            missing = [arg for arg in needed if arg not in memo]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            match node:
                case Const(value):
                    memo[node] = value if isinstance(value, bool | str) else np.full(n, float(value))
                case Var(name) if name in self.definitions:
                    memo[node] = memo[needed[0]]
                case Var(name):
                    if name not in names:  # a state of the host
                        names[name] = spread(rng, -10, 4, n) * (rng.random(n) > 0.1)
                    memo[node] = names[name]
                case Call(op):
                    with np.errstate(all="ignore"):
                        value = NUMPY[op](*(memo[arg] for arg in node.args))
                    memo[node] = value if node.type.kind is Kind.BOOL else np.asarray(value, np.float64)
        return memo[root]
