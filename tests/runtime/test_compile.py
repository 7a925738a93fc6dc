"""torch.compile of a function that trains: the step is left as it is, and nothing is compiled anew for it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import optdsl
from optdsl.runtime import step_in_backward
from tests.support import COMPILER

WAYS = [
    pytest.param({}, id="native", marks=pytest.mark.skipif(COMPILER is None, reason="no C compiler `cc`")),
    pytest.param({"foreach": True}, id="foreach"),
    pytest.param({"foreach": False}, id="loop"),
]


@pytest.mark.parametrize("flags", WAYS)
@pytest.mark.parametrize("make", ["ordinary", "in backward"])
def test_a_compiled_function_that_trains(make: str, flags: dict[str, Any]) -> None:
    """Forward, backward and step in one, under a scheduler: the weights of the plain function, bit for bit."""
    # not at the top: it imports Triton, which the tests in its interpreter must be the first to do
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    plain = copy.deepcopy(model)
    cls, options = optdsl.load("adamw"), {"lr": 0.01, "weight_decay": 0.1, **flags}
    other = cls(plain.parameters(), **options)
    if make == "ordinary":
        optimizer = cls(model.parameters(), **options)
    else:
        optimizer = step_in_backward(model, cls, **options)
    schedulers = [lr_scheduler.ExponentialLR(x, 0.8) for x in (optimizer, other)]

    def train(model: nn.Module, optimizer: Any, x: Tensor) -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    compiled = torch.compile(train, backend="aot_eager")
    x = torch.randn(6, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a profiler that it leaves out
        for number in range(5):
            with torch._dynamo.config.patch(error_on_recompile=number > 1):
                compiled(model, optimizer, x)
            train(plain, other, x)
            for scheduler in schedulers:
                scheduler.step()
            if number == 1:  # the first call may be unlike the others
                seen = copy.deepcopy((dict(counters["frames"]), dict(counters["stats"])))
    assert seen == (dict(counters["frames"]), dict(counters["stats"]))
    assert seen[1]["unique_graphs"] == 1  # that of the model
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
