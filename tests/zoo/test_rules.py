"""Shipped methods against the same rules written in numpy, on every path."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from tests.backends.interpreted import interpreted, needs_triton
from tests.support import needs_compiler
from tests.zoo.rules import RULES, Arrays, Problem, Rule, problem

for _path in sorted(Path(__file__).parent.glob("*.py")):
    if not _path.stem.startswith("test_"):
        importlib.import_module(f"tests.zoo.{_path.stem}")

#: Every rule in every setting by the loop and by the kernels of the CPU; by the others in turns, or with OPTDSL_FULL.
FULL = bool(os.environ.get("OPTDSL_FULL"))
TURNS = {"loop": 1, "kernels": 1, "foreach": 3, "triton": 12}
MARKS = {"kernels": [needs_compiler], "triton": [needs_compiler, needs_triton]}
SETTINGS = [(rule, number) for rule in RULES for number in range(len(rule.settings))]
CASES = [
    pytest.param(
        rule, rule.settings[number], path, id=f"{rule.spec}-{number}-{path}", marks=MARKS.get(path, [])
    )
    for path, turn in TURNS.items()
    for index, (rule, number) in enumerate(SETTINGS)
    if FULL or index % turn == 0
]
FLAGS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "kernels": {},
    "triton": {},
}
SEED = 20261129


def trajectory(rule: Rule, found: Problem, setting: dict[str, Any], path: str) -> list[Arrays]:
    """The parameters after each step of the shipped class."""
    params = {name: torch.nn.Parameter(torch.from_numpy(found.start[name].copy())) for name in rule.tensors}
    optimizer = optdsl.load(rule.spec)(list(params.values()), **setting, **FLAGS[path])
    steps = []
    for step, g in enumerate(found.grads):
        for name, p in params.items():
            p.grad = torch.from_numpy(g[name].copy())
        inputs: dict[str, Any] = {
            key: [torch.from_numpy(found.inputs[key][step][name].copy()) for name in params]
            for key in rule.inputs
        } | {key: torch.tensor(found.numbers[key][step], dtype=torch.float64) for key in rule.numbers}
        optimizer.step(**({"inputs": inputs} if inputs else {}))
        steps.append({name: p.detach().numpy().copy() for name, p in params.items()})
    return steps


@pytest.mark.parametrize(("rule", "setting", "path"), CASES)
def test_same_as_the_rule_in_numpy(rule: Rule, setting: dict[str, Any], path: str) -> None:
    """In float64, every tensor after every step, relative to max(1, |expected|)."""
    found = problem(SEED, rule.inputs, rule.numbers)
    wanted = rule.run(found, setting)
    with interpreted() if path == "triton" else contextlib.nullcontext():
        measured = trajectory(rule, found, setting, path)
    assert any(np.any(wanted[-1][k] != found.start[k]) for k in rule.tensors), "nothing moves"
    for step, (mine, theirs) in enumerate(zip(measured, wanted, strict=True), 1):
        for name in rule.tensors:
            error = np.max(np.abs(mine[name] - theirs[name]) / np.maximum(1, np.abs(theirs[name])))
            assert error <= 1e-10, f"seed {SEED}, step {step}, {name}: off by {error:.3g}"
