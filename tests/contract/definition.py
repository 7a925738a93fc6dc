"""What a spec means: its interpreter in float64, beside an optimizer that does the same."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from optdsl import driver
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.program import Program
from tests.contract.subjects import Options, assert_close, inputs


@functools.cache
def program(name: str) -> Program:
    """The typed program of a shipped spec."""
    return driver.check_path(driver.locate(name)).require()


class Definition:
    """The interpreter of a spec, fed with what an optimizer is given."""

    def __init__(self, name: str, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.keys = [hyper.name for hyper in type(optimizer)._hypers]
        groups = [
            Group([_array(p) for p in group["params"]], self.options(group))
            for group in optimizer.param_groups
        ]
        self.interpreter = Interpreter(program(name), groups)

    def options(self, group: Options) -> Options:
        """The hyperparameters of a group as plain numbers."""
        return {key: float(x) if isinstance(x := group[key], torch.Tensor) else x for key in self.keys}

    def step(self, number: int) -> None:
        """The step that the optimizer is about to take, or has taken, with the gradients that are there."""
        groups = self.optimizer.param_groups
        for held, group in zip(self.interpreter.hypers, groups, strict=True):
            held.update(self.options(group))
        sign = [-1.0 if group["maximize"] else 1.0 for group in groups]
        grads = [[_array(p.grad, s) for p in group["params"]] for group, s in zip(groups, sign, strict=True)]
        flat = inputs(self.optimizer, number).get("inputs", {})
        given = {
            key: float(found)
            if isinstance(found, torch.Tensor)
            else [list(map(_array, part)) for part in self._split(found)]
            for key, found in flat.items()
        }
        self.interpreter.step(grads, given)

    def _split(self, tensors: Sequence[Any]) -> list[Sequence[Any]]:
        parts, first = [], 0
        for group in self.optimizer.param_groups:
            parts.append(tensors[first : first + len(group["params"])])
            first += len(group["params"])
        return parts

    def assert_followed(self, what: str) -> None:
        """The optimizer has the parameters and states of the definition, and has counted the same steps."""
        for g, group in enumerate(self.optimizer.param_groups):
            for n, p in enumerate(group["params"]):
                where = f"{what}, parameter {n} of group {g}"
                want = torch.from_numpy(self.interpreter.params[g][n].copy())
                assert_close(p.detach(), want.reshape(p.shape), where)
                state = self.optimizer.state.get(p, {})
                assert int(state.get("step", 0)) == self.interpreter.steps[g][n], where
                for key, value in self.interpreter.states[g][n].items():
                    if key in state:
                        wanted = torch.as_tensor(np.array(value, np.float64))
                        assert_close(state[key].double(), wanted.reshape(state[key].shape), f"{where}, {key}")


def _array(x: Any, factor: float = 1.0) -> Any:
    return None if x is None else factor * x.detach().to(torch.float64).numpy().copy()
