"""What the host knows of all steps of a run, for all models at once, before the run begins.

Host values depend on hyperparameters, the step count and states of the host, never on gradients. So they are tables:
an entry per step and per model, computed in double precision by the definitions of `optdsl.ir.numpy_ops` and rounded
once, as a compiled class does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optdsl.core.types import Kind
from optdsl.ir.expr import Const, Expr, Var
from optdsl.ir.numpy_ops import NUMPY, Array
from optdsl.ir.program import Program


class Tables:
    """Tables of host values of one program. `known` has the values of inputs: an array that broadcasts to
    [steps, models], a number, a truth value or a choice.
    """

    def __init__(self, program: Program, known: Mapping[str, Any], steps: int) -> None:
        self.program, self.steps = program, steps
        t = np.arange(1.0, steps + 1)[:, np.newaxis]
        self.known = {**known, "t": t, "first_step": t == 1}
        self.definitions = _host_definitions(program)
        self.states = [s for s in program.kept if s.type.is_host]
        self._values: dict[Expr, Any] = {}
        #: What states of the host hold before each step and, in the last entry, behind the last one.
        self.held: dict[str, Array] = {}
        if self.states:
            self._run()

    def table(self, expr: Expr) -> Array:
        """Values of a host expression, an array that broadcasts to [steps, models]."""
        with np.errstate(all="ignore"):
            found = np.asarray(_evaluate(expr, self.known | self._before(), self._values, self.definitions))
        return found if found.ndim == 2 else found.reshape(1, 1)

    def behind(self, expr: Expr) -> Array:
        """Values of an expression of what is evaluated between steps: it reads states as the last step left them."""
        assert self.program.view is not None
        known = self.known | {name: values[1:] for name, values in self.held.items()}
        with np.errstate(all="ignore"):
            found = np.asarray(_evaluate(expr, known, {}, _host_definitions(self.program.view)))
        return found if found.ndim == 2 else found.reshape(1, 1)

    def _before(self) -> dict[str, Array]:
        return {name: values[:-1] for name, values in self.held.items()}

    def _run(self) -> None:
        """Steps the states of the host, which need what the step before left in them."""
        columns = max((np.shape(v)[1] for v in self.known.values() if np.ndim(v) == 2), default=1)
        moving = {name: v for name, v in self.known.items() if np.ndim(v) == 2 and np.shape(v)[0] > 1}
        held = {s.name: np.zeros((self.steps + 1, columns)) for s in self.states}
        with np.errstate(all="ignore"):
            for state in self.states:
                if state.init is not None:
                    first = self.known | {name: v[:1] for name, v in moving.items()}
                    held[state.name][0] = np.reshape(_evaluate(state.init, first, {}, {}), -1)
            for step in range(self.steps):
                known = self.known | {name: v[step : step + 1] for name, v in moving.items()}
                known |= {name: values[step : step + 1] for name, values in held.items()}
                memo: dict[Expr, Any] = {}
                for state in self.states:
                    if state.name in self.program.results:
                        value = _evaluate(self.program.results[state.name], known, memo, self.definitions)
                        held[state.name][step + 1] = np.reshape(value, -1)
                    else:
                        held[state.name][step + 1] = held[state.name][step]
        self.held = held


def _host_definitions(program: Program) -> dict[str, Expr]:
    """What names of a body stand for, those of host values."""
    return {a.name: a.expr for a in program.body if a.expr.type.is_host}


def _evaluate(
    root: Expr, known: Mapping[str, Any], memo: dict[Expr, Any], definitions: Mapping[str, Expr]
) -> Any:
    """The value of a host expression from those of inputs."""
    stack = [root]
    while stack:
        node = stack[-1]
        if node in memo:
            stack.pop()
            continue
        below: tuple[Expr, ...] = node.args
        if isinstance(node, Var) and node.name not in known:
            below = (definitions[node.name],)
        if missing := [arg for arg in below if arg not in memo]:
            stack += missing
            continue
        stack.pop()
        if isinstance(node, Const):
            memo[node] = node.value if isinstance(node.value, bool | str) else np.float64(node.value)
        elif isinstance(node, Var):
            memo[node] = memo[below[0]] if below else known[node.name]
        else:
            memo[node] = NUMPY[node.op](*(memo[arg] for arg in below))
        if node.type.kind is Kind.INT:
            memo[node] = memo[node] + 0.0  # no int is -0.0
    return memo[root]


def columns_of(
    tables: Sequence[Array], steps: int, dtype: torch.dtype, dims: int
) -> list[tuple[Tensor, ...]]:
    """For each step a tensor of each table: [K, 1] (or more axes, `dims` in all), or 0-dim where it is one number for
    all models.
    """
    by_table: list[Sequence[Tensor]] = []
    for table in tables:
        kind = torch.bool if table.dtype == np.bool_ else dtype
        with np.errstate(all="ignore"):
            # by numpy, which rounds what is too large to infinity
            rounded = (
                table
                if kind is torch.bool
                else table.astype(np.float32 if dtype is torch.float32 else np.float64)
            )
        values = torch.from_numpy(np.ascontiguousarray(rounded))
        values = values[:, 0] if values.shape[1] == 1 else values.reshape(*values.shape, *(1,) * (dims - 1))
        by_table.append(values.unbind(0) if len(values) == steps else [values[0]] * steps)
    return list(zip(*by_table, strict=True)) if by_table else [()] * steps
