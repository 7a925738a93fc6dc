"""The rules of shipped methods, written again in numpy from their papers, and the problem they are run on.

A module of this folder holds generators like

    @rule("lion", {}, {"lr": 3e-3, "weight_decay": 0.1})
    def lion(p, grads, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        m = np.zeros_like(p)
        for g in grads:
            ...
            yield p

The settings are options given to both sides; where they say nothing the defaults of the two must agree. A rule gets
one tensor and yields it after each step, or, if `joint`, dictionaries of all of them. What a spec declares as `input`
is passed by its name, as a sequence like `grads`, or for one number a step (`numbers`) as a sequence of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SHAPES: dict[str, tuple[int, ...]] = {
    "vec": (7,),
    "mat": (4, 5),
    "tall": (6, 3),
    "conv": (3, 2, 2, 2),
    "bias": (3,),
    "scal": (),
}
STEPS = 14
Arrays = dict[str, np.ndarray]


@dataclass
class Rule:
    """A rule, the settings it is tried with, whether it sees all tensors, and its inputs beyond gradients."""

    spec: str
    function: Callable[..., Iterator[Any]]
    settings: tuple[dict[str, Any], ...]
    joint: bool
    inputs: tuple[str, ...]
    tensors: tuple[str, ...]
    numbers: tuple[str, ...]

    def run(self, problem: Problem, setting: Mapping[str, Any]) -> list[Arrays]:
        """The parameters after each step."""
        start = {name: problem.start[name].copy() for name in self.tensors}
        setting = {**setting, **{name: problem.numbers[name] for name in self.numbers}}
        given = {
            name: [{k: x[k] for k in self.tensors} for x in problem.inputs[name]] for name in self.inputs
        }
        grads = [{k: x[k] for k in self.tensors} for x in problem.grads]
        if self.joint:
            found = self.function(start, grads, **given, **setting)
            return [{k: np.array(x) for k, x in step.items()} for step in found]
        steps: list[Arrays] = [{} for _ in grads]
        for name in self.tensors:
            mine = {k: [x[name] for x in xs] for k, xs in given.items()}
            found = self.function(start[name], [g[name] for g in grads], **mine, **setting)
            for step, p in zip(steps, found, strict=True):
                step[name] = np.array(p)
        return steps


@dataclass
class Problem:
    """Initial values, and for each step a gradient and other inputs of each tensor, and numbers."""

    start: Arrays
    grads: list[Arrays]
    inputs: dict[str, list[Arrays]]
    numbers: dict[str, list[float]]


def problem(seed: int, inputs: tuple[str, ...] = (), numbers: tuple[str, ...] = ()) -> Problem:
    """Gradients with a spike, with very small ones, with zeros here and there, and a step without any."""
    random = np.random.default_rng(seed)
    start = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    grads: list[Arrays] = []
    for step in range(1, STEPS + 1):
        scale = {5: 0.0, 8: 1e3, 11: 1e-10}.get(step, 1.0)
        g = {name: np.asarray(scale * random.standard_normal(shape)) for name, shape in SHAPES.items()}
        if step == 3:
            g = {name: np.where(random.random(x.shape) < 0.3, 0.0, x) for name, x in g.items()}
        grads.append(g)
    others = {
        name: [
            {k: np.asarray(random.standard_normal(shape)) for k, shape in SHAPES.items()}
            for _ in range(STEPS)
        ]
        for name in inputs
    }
    return Problem(start, grads, others, {name: random.standard_normal(STEPS).tolist() for name in numbers})


RULES: list[Rule] = []


def rule(
    spec: str,
    *settings: dict[str, Any],
    joint: bool = False,
    inputs: tuple[str, ...] = (),
    tensors: tuple[str, ...] = tuple(SHAPES),
    numbers: tuple[str, ...] = (),
) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]]:
    """Registers a rule for the shipped spec of this name."""

    def register(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        RULES.append(Rule(spec, function, settings, joint, inputs, tensors, numbers))
        return function

    return register
