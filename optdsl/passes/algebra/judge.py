"""Whether another form of an expression is as accurate as the original."""

from __future__ import annotations

from typing import Any

import numpy as np

from optdsl.core.record import record
from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Expr
from optdsl.passes.algebra.arithmetic import reference, run, ulp
from optdsl.passes.algebra.host import Host
from optdsl.passes.algebra.hostile import hostile, spread
from optdsl.passes.algebra.region import is_inner, literal_of, region


@record(frozen=False)
class _Samples:
    """Inputs and what the original makes of them: `value` in float32; `high + low` in many digits, where
    `exact` says that it is known (None: not computed yet). `finite` marks samples with finite inputs only.
    """

    leaves: dict[Expr, Any]
    value: Any
    finite: Any
    high: Any = None
    low: Any = None
    exact: Any = None


class Judge:
    """Says whether another form of `root` is as accurate as `root` itself.

    There are two kinds of inputs. On a fixed battery of hostile ones the error may exceed that of the
    original by 2 ulp in no sample. Then inputs are sought for which some sum, of the original or of the other
    form, cancels. There rounding alone decides how far off a result is, and the original may be right by
    chance; so its own error is twice the largest among inputs that differ in the last bits.
    """

    PRECISION = 640  # bits; the exponents of float32 span 277
    PAIRS = 12  # sums, each with a leaf, for which inputs are sought that make its terms cancel
    WIDTH = 16  # starting points of each search
    STEPS = (-2000, -40, -17, -7, -3, -2, -1, 0, 0, 1, 2, 3, 5, 9, 40, 300)  # neighbours of a root, in ulp
    TOLERANCE = 2.0  # ulp

    def __init__(self, root: Expr, host: Host, finite_only: bool) -> None:
        self.root = root
        self.host = host
        self.finite_only = finite_only
        self.leaves = [n for n in region(root) if not is_inner(n) and literal_of(n) is None]
        self.samples: _Samples | None = None
        self.cancelling: dict[Expr, _Samples | None] = {}
        self.verdicts: dict[Expr, bool] = {root: True}

    def accepts(self, form: Expr) -> bool:
        """True when `form` may stand for `root`."""
        if form not in self.verdicts:
            with np.errstate(all="ignore"):
                self.verdicts[form] = self._accepts(form)
        return self.verdicts[form]

    def _accepts(self, form: Expr) -> bool:
        if self.samples is None:
            self.samples = self._prepared(self._battery(np.random.default_rng(1)))
        if not self._compare(self.samples, form):
            return False
        for expr in (self.root, form):
            if expr not in self.cancelling:
                leaves = self._cancelling(expr, np.random.default_rng(2))
                self.cancelling[expr] = self._prepared(leaves) if leaves else None
            samples = self.cancelling[expr]
            if samples is not None and not self._compare(samples, form, len(self.STEPS)):
                return False
        return True

    def _compare(self, samples: _Samples, form: Expr, group: int = 1) -> bool:
        """True when `form` does well in all samples; `group` of them in a row are neighbours."""
        asked = samples.finite if self.finite_only else np.ones_like(samples.finite)
        old, new = samples.value.astype(np.float64), run(form, samples.leaves).astype(np.float64)
        if not np.all(self._same_class(old, new) | ~asked):
            return False
        self._measure(samples)
        high = np.where(samples.exact, samples.high, old)
        low = np.where(samples.exact, samples.low, 0.0)
        slack = self.TOLERANCE * ulp(high)
        before = np.abs((old - high) - low)
        after = np.abs((new - high) - low)
        before = np.where(np.isfinite(old) & ~np.isnan(before), before, 0.0)
        if group > 1:
            before = np.repeat(2 * before.reshape(-1, group).max(1), group)
        close = after <= before + slack * (1 + 1e-9)
        return bool(np.all(close | ~np.isfinite(old) | ~asked))

    def _same_class(self, old: Any, new: Any) -> Any:
        """Where two values are both finite, both nan, or the same infinity."""
        same = np.where(np.isfinite(old), np.isfinite(new), (old == new) | (np.isnan(old) & np.isnan(new)))
        if not self.finite_only:
            # the sign of a zero tells in a later division
            same &= (old != 0) | (new != 0) | (np.signbit(old) == np.signbit(new))
        return same

    def _prepared(self, leaves: dict[Expr, Any]) -> _Samples:
        value = run(self.root, leaves)
        finite = np.ones(value.shape, bool)
        for array in leaves.values():
            finite &= np.isfinite(array)
        return _Samples(leaves, value, finite)

    def _measure(self, samples: _Samples) -> None:
        """Computes the exact values, which takes by far the most time, if they are not known yet."""
        if samples.exact is None:
            asked = samples.finite & np.isfinite(samples.value)
            samples.high, samples.low, samples.exact = reference(
                self.root, samples.leaves, asked, self.PRECISION
            )

    # ---- inputs -----------------------------------------------------------------------------------------

    def _battery(self, rng: Any) -> dict[Expr, Any]:
        device = [leaf for leaf in self.leaves if not leaf.type.is_host]
        arrays, special = hostile(len(device), rng)
        leaves = {leaf: np.ascontiguousarray(arrays[i]) for i, leaf in enumerate(device)}
        return leaves | self._host_leaves(arrays.shape[1], rng, special)

    def _host_leaves(self, n: int, rng: Any, edges: int = 0) -> dict[Expr, Any]:
        wanted = [leaf for leaf in self.leaves if leaf.type.is_host]
        drawn = self.host.sample(wanted, n, rng, edges)
        return {leaf: np.asarray(values, np.float64) for leaf, values in drawn.items()}

    def _cancelling(self, expr: Expr, rng: Any) -> dict[Expr, Any]:
        """Inputs for which the terms of some sum in `expr` nearly cancel, found by bisection."""
        sums = [n for n in region(expr) if is_inner(n) and n.args and not n.type.is_host and _is_sum(n)]
        pairs = []
        for node in sums:
            inside = set(region(node))
            pairs += [(node, leaf) for leaf in self.leaves if leaf in inside and not leaf.type.is_host]
        if len(pairs) > self.PAIRS:
            pairs = [pairs[i * len(pairs) // self.PAIRS] for i in range(self.PAIRS)]
        width, found = self.WIDTH, []
        device = [leaf for leaf in self.leaves if not leaf.type.is_host]
        grid = np.concatenate([-(10.0 ** np.arange(6, -7, -1)), [0.0], 10.0 ** np.arange(-6, 7)])
        for node, leaf in pairs:
            start = {leaf: np.repeat(spread(rng, -2, 2, width), grid.size) for leaf in device}
            host = self._host_leaves(width, rng)
            start |= {leaf: np.repeat(v, grid.size) for leaf, v in host.items()}
            start[leaf] = np.tile(grid, width)
            signs = np.sign(run(node, start, np.float64)).reshape(width, grid.size)
            turns = (signs[:, :-1] * signs[:, 1:] < 0) & np.isfinite(signs[:, 1:])
            where, place = turns.any(1).nonzero()[0], turns.argmax(1)
            if not where.size:
                continue
            at = {k: v.reshape(width, grid.size)[where, 0] for k, v in start.items()}
            left, right = grid[place[where]], grid[place[where] + 1]
            sign = signs[where, place[where]]
            for _ in range(60):
                middle = (left + right) / 2
                stays = np.sign(run(node, at | {leaf: middle}, np.float64)) == sign
                left, right = np.where(stays, middle, left), np.where(stays, right, middle)
            near = left.astype(np.float32)
            steps = np.array(self.STEPS)
            batch = {}
            for key, value in (at | {leaf: near}).items():
                values = np.repeat(value[:, None], steps.size, axis=1)
                if key.type.is_host:
                    if key.type.kind is Kind.FLOAT:
                        values = values * (1 - rng.integers(0, 17, values.shape) * 2.0**-25)
                else:
                    moved = steps if key is leaf else rng.integers(-2, 3, values.shape)
                    values = (values * (1 + moved * 2.0**-23)).astype(np.float32)
                batch[key] = values.ravel()
            found.append(batch)
        if not found:
            return {}
        return {leaf: np.concatenate([batch[leaf] for batch in found]) for leaf in self.leaves}


def _is_sum(node: Expr) -> bool:
    return isinstance(node, Call) and node.op in ("add", "sub")
