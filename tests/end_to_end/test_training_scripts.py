"""One training script, run with a class of torch.optim and with the compiled one of the same method."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

import optdsl
from tests.contract.test_training import SCHEDULERS, advance
from tests.support import COMPILER

METHODS = {
    "adamw": {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True},
    "sgd": {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "nesterov": True},
    "rmsprop": {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.5},
}
TORCH = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
WAYS = [
    pytest.param({}, id="native", marks=pytest.mark.skipif(COMPILER is None, reason="no C compiler `cc`")),
    pytest.param({"foreach": True}, id="foreach"),
]


class Script:
    """Trains a small network: gradients of two batches, clipped, a schedule, two averages of the weights."""

    def __init__(self, cls: Any, schedule: Any, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
        weights = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = cls([{"params": weights}, {"params": others, "weight_decay": 0.01}], **options)
        self.schedule = schedule(self.optimizer)
        self.mean = swa_utils.AveragedModel(self.model)
        self.decayed = swa_utils.AveragedModel(
            self.model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.8), use_buffers=True
        )

    def run(self, first: int, last: int) -> None:
        """Steps first .. last - 1; the fifth begins on averaged weights, which are copied in."""
        for number in range(first, last):
            for batch in range(2):
                x = torch.randn(6, 5, generator=torch.Generator().manual_seed(2 * number + batch)).double()
                nn.functional.mse_loss(self.model(x).squeeze(1), x.sin().sum(1)).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=number % 2 == 0)
            advance(self.schedule)
            self.mean.update_parameters(self.model)
            self.decayed.update_parameters(self.model)
            if number == 4:
                self.model.load_state_dict(self.decayed.module.state_dict())

    def parts(self) -> list[Any]:
        return [self.model, self.optimizer, self.schedule, self.mean, self.decayed]

    def tensors(self) -> list[Tensor]:
        """All weights and averages of weights."""
        return [
            x.detach() for part in (self.model, self.mean, self.decayed) for x in part.state_dict().values()
        ]


@pytest.mark.parametrize("flags", WAYS)
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_script_trains_as_with_the_optimizer_of_torch(kind: str, flags: dict[str, Any]) -> None:
    for method, options in METHODS.items():
        theirs = Script(TORCH[method], SCHEDULERS[kind], **options)
        ours = Script(optdsl.load(method), SCHEDULERS[kind], **options, **flags)
        rates = set()
        for number in range(8):
            for script in (theirs, ours):
                script.run(number, number + 1)
            for one, other in zip(ours.optimizer.param_groups, theirs.optimizer.param_groups, strict=True):
                for key in ("lr", "momentum", "betas"):
                    assert one.get(key) == other.get(key), (method, number)
                rates.add(one["lr"])
        assert len(rates) > 1
        for one, other in zip(ours.tensors(), theirs.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("flags", WAYS)
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_script_goes_on_from_a_checkpoint(kind: str, flags: dict[str, Any]) -> None:
    """Optimizer, scheduler and averages come from a file, and go on bit for bit."""
    for method, options in METHODS.items():
        whole, begun, resumed = (
            Script(optdsl.load(method), SCHEDULERS[kind], **options, **flags) for _ in range(3)
        )
        whole.run(0, 8)
        begun.run(0, 3)
        file = io.BytesIO()
        torch.save([part.state_dict() for part in begun.parts()], file)
        file.seek(0)
        for part, state in zip(resumed.parts(), torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        resumed.run(3, 8)
        assert all(map(torch.equal, resumed.tensors(), whole.tensors())), method
