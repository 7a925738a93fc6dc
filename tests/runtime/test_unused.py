"""States that only the branch not taken uses take no memory, however that branch uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from optdsl.check import check_text
from optdsl.ir.interpret import Group, Interpreter
from tests.support import needs_compiler

#: What stands in front of the branches, in that for `look`, and in the other one.
BRANCHES = {
    "a copy": ("", "p = p - lr * old\n            old = m", "p = p - lr * m"),
    "a copy of the gradient": ("", "p = p - lr * old\n            old = g", "p = p - lr * m"),
    "a new value": ("", "old = max(old, m)\n            p = p - lr * old", "p = p - lr * m"),
    "a number": ("", "p = p - lr * (m + old)\n            old = 1", "p = p - lr * m"),
    "another state": ("before = m", "p = p - lr * old\n            old = before", "p = p - lr * m"),
    "itself": ("", "p = p - lr * old\n            old = m", "p = p - lr * m\n            old = old"),
    "read in front": ("was = old", "p = p - lr * (m + was)\n            old = m", "p = p - lr * m"),
}
SPEC = """
optimizer Looking:
    hyper:
        lr = 0.1 in [0, inf)
        weight_decay = 0.1 in [0, inf)
        look = false
    state:
        m = 0
        old = 0.5
    step:
        {front}
        m = 0.9 * m + g + weight_decay * p
        if look:
            {then}
        else:
            {other}
"""
PATHS = [{"foreach": False}, {"foreach": True}, pytest.param({"fused": True}, marks=needs_compiler)]


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("flags", PATHS, ids=str)
def test_states_of_the_branch_that_is_taken(tmp_path: Path, branches: str, flags: dict[str, Any]) -> None:
    """And the parameters are those of the interpreter, on each side, and when the option changes in between."""
    front, then, other = BRANCHES[branches]
    text = SPEC.format(front=front, then=then, other=other)
    (tmp_path / "looking.opt").write_text(text)
    cls = optdsl.load(tmp_path / "looking.opt")
    for looks in ([True] * 3, [False] * 3, [False, True, True, False, True]):
        p = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
        optimizer = cls([p], look=looks[0], **flags)
        machine = Interpreter(check_text(text).require(), [Group([np.ones((3, 2))])])
        for number, look in enumerate(looks):
            optimizer.param_groups[0]["look"] = machine.hypers[0]["look"] = look
            g = np.random.default_rng(number).standard_normal((3, 2))
            p.grad = torch.from_numpy(g.copy())
            optimizer.step()
            machine.step([[g]])
            np.testing.assert_allclose(
                p.detach().numpy(), machine.params[0][0], rtol=1e-12, err_msg=str(looks)
            )
        assert set(optimizer.state[p]) == {"step", "m", *(["old"] if any(looks) else [])}, looks
