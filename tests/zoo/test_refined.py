"""AdamW with the schedule that the gradients of a finished run give, against torch's AdamW under LambdaLR."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import optdsl

SEED, STEPS = 20261129, 15
Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def refined(norms: list[float]) -> list[float]:
    """Entry t is w[t] times the sum of all later w, over the largest of these: as the spec says, term by term."""
    smooth = [
        sorted((norms[max(t - 1, 0)], x, norms[min(t + 1, len(norms) - 1)]))[1] for t, x in enumerate(norms)
    ]
    w = [1 / x for x in smooth]
    factors = [w[t] * sum(w[p] for p in range(t + 1, len(w))) for t in range(len(w))]
    return [x / max(factors) for x in factors]


def run(make: Make, steps: int) -> tuple[list[float], list[np.ndarray]]:
    """The 1-norm of the whole gradient in each step of a noisy regression, and the parameters after it."""
    random = torch.Generator().manual_seed(SEED)
    params = [
        torch.nn.Parameter(torch.randn(s, generator=random, dtype=torch.float64)) for s in ((4, 3), (3,))
    ]
    true = torch.randn((4, 3), generator=random, dtype=torch.float64)
    optimizer = make(params)
    scheduler = getattr(optimizer, "scheduler", None)
    norms, left = [], []
    for _ in range(steps):
        x = torch.randn((8, 4), generator=random, dtype=torch.float64)
        y = x @ true + 0.3 * torch.randn((8, 3), generator=random, dtype=torch.float64)
        optimizer.zero_grad()
        (x @ params[0] + params[1] - y).square().mean().backward()
        norms.append(sum(float(p.grad.abs().sum()) for p in params if p.grad is not None))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        left.append(np.concatenate([p.detach().numpy().ravel() for p in params]))
    return norms, left


def peer(schedule: list[float]) -> Make:
    """torch's AdamW, whose scheduler is beside it."""

    def make(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(params, lr=0.1, weight_decay=0.2)
        optimizer.scheduler = torch.optim.lr_scheduler.LambdaLR(  # type: ignore[attr-defined]
            optimizer, lambda k: schedule[min(k, len(schedule) - 1)]
        )
        return optimizer

    return make


@pytest.mark.parametrize("foreach", [False, True])
def test_a_run_with_the_schedule_of_the_run_before(foreach: bool) -> None:
    AdamWRefined = optdsl.load("adamw_refined")
    norms, _ = run(lambda params: AdamWRefined(params, lr=0.1, weight_decay=0.2), STEPS)
    schedule = refined(norms)
    assert max(schedule) == 1
    assert schedule[-1] == 0
    assert len(set(schedule)) == STEPS, f"seed {SEED}"
    _, wanted = run(peer(schedule), STEPS + 2)
    _, found = run(
        lambda params: AdamWRefined(params, lr=0.1, schedule=schedule, weight_decay=0.2, foreach=foreach),
        STEPS + 2,
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12, err_msg=f"seed {SEED}")
    assert np.array_equal(found[-1], found[STEPS - 1]), "nothing moves behind the end"
    assert not np.array_equal(found[STEPS - 2], found[STEPS - 3])


def test_gradients_of_one_size_give_a_straight_line() -> None:
    assert refined([3.0] * 6) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
