"""What is proved of host values: whether a learning rate may be turned down to 0."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import lr_scheduler

import optdsl
from optdsl.driver import simplify
from optdsl.passes.intervals import divides_by_lr
from optdsl.runtime.storage import LOW
from tests.check.helpers import program, spec


@pytest.mark.parametrize(
    ("step", "divides"),
    [
        ("p = p - lr * g", False),
        ("p = p - g / lr", True),
        ("p = p - g / (1 + lr)", False),
        ("p = p - g / (lr + eps)", True),
        ("p = p - g / (lr + 1e-3)", False),
        ("p = p - g / sqrt(lr * c)", True),
        ("p = p - g / (2 * lr * (1 + abs(g)))", True),
        ("d = lr * (1 + abs(g))\np = p - g / d", True),
        ("p = p - g / eps", False),  # 0 is a value for which the constructor is asked, too
        ("if c > 2:\n    g = g / lr\np = p - lr * g", True),
    ],
)
def test_whether_a_step_divides_by_the_learning_rate(step: str, divides: bool) -> None:
    hypers = "lr = 0.1 in (0, inf)\nc = 1.0 in [1, 9]\neps = 1e-8 in [0, 1]"
    used = "\np = p - 0.1 * (c + eps) * lr * g"
    assert divides_by_lr(simplify(program(spec(step + used, hypers)))) is divides


def test_a_range_that_has_0_is_no_promise() -> None:
    assert not divides_by_lr(simplify(program(spec("p = p - g / lr", "lr = 0.1 in [0, inf)"))))


@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_a_schedule_that_comes_to_0_is_refused(flags: dict[str, Any], tmp_path: Path) -> None:
    """Where the step divides by the rate; nothing has changed then, and it goes on above 0."""
    text = spec("m = m + g / lr\np = p - lr * lr * m", "lr = 0.1 in (0, inf)", "m = 0")
    (tmp_path / "t.opt").write_text(text)
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optdsl.load(tmp_path / "t.opt")([p], **flags)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: [1.0, 0.5, 0.0, 0.25, 0.1][step])

    def train() -> None:
        optimizer.zero_grad()
        p.square().sum().backward()
        optimizer.step()
        schedule.step()

    train()
    train()
    before, saved = p.detach().clone(), optimizer.state_dict()
    message = r"^Invalid learning rate: 0\.0 \(must be in \(0, inf\)\); T divides by it, so that a schedule "
    with pytest.raises(ValueError, match=message):
        train()
    assert torch.equal(p, before)
    assert optimizer.state[p]["step"] == 2
    other = type(optimizer)([torch.nn.Parameter(before.clone())])  # a run may be over with a rate of 0
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.025
    train()
    assert torch.isfinite(p).all()
    assert optimizer.state[p]["step"] == 3


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_states_are_made_at_a_rate_of_0(flags: dict[str, Any], rate: Any, tmp_path: Path) -> None:
    """By a first step with gradients of zeros, as torch.distributed.checkpoint takes one; it moves nothing."""
    text = spec("m = m + g / lr\np = (1 - lr) * p - lr * lr * m", "lr = 0.1 in (0, inf)", "m = 1")
    (tmp_path / "t.opt").write_text(text)
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = optdsl.load(tmp_path / "t.opt")(
        model.parameters(), lr=rate, store={"p": "bf16+kahan"}, **flags
    )
    saved = get_optimizer_state_dict(model, optimizer)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert {name: values["m"].tolist() for name, values in saved["state"].items()} == {
        "weight": [[1.0] * 3] * 2,
        "bias": [1.0] * 2,
    }
    assert not any(values[LOW].any() for values in saved["state"].values())
    assert optimizer.param_groups[0]["lr"] is rate
    other = optdsl.load(tmp_path / "t.opt")(model.parameters(), lr=rate, store={"p": "bf16+kahan"}, **flags)
    other.param_groups[0]["lr"] = 0.0
    next(model.parameters()).grad = torch.ones(2, 3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="T divides by it"):
        other.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert not other.state
