"""Options that are lists: what may be in them, entries and counts on the host and on a device, state dicts."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import optdsl
from optdsl.runtime import host
from optdsl.runtime.checks import Hyper, check
from tests.support import needs_compiler

ASKED = [*range(-2, 7), 0.5, 1.5, 2.999, 3.0, -0.0, 1e300, math.inf, -math.inf, math.nan]
VALUES = (4.0, 2.0, 2.0, 1e-3)
PATHS: tuple[dict[str, Any], ...] = (
    {"foreach": False},
    {"foreach": True},
    {"foreach": False, "capturable": True},
    {"foreach": True, "capturable": True},
    {"fused": True},
)


def entry(i: float) -> float:
    """Entry i by hand."""
    return math.nan if math.isnan(i) else VALUES[int(min(max(i, 1), len(VALUES))) - 1]


@pytest.mark.parametrize("i", ASKED)
def test_entries_and_counts_of_numbers_and_tensors(i: float) -> None:
    wanted = entry(i), sum(value <= i for value in VALUES)
    assert np.array_equal((host.entry(VALUES, i), host.count_upto(VALUES, i)), wanted, equal_nan=True)
    one = torch.tensor(i, dtype=torch.float64)
    for x in (one, one.repeat(3)):
        found = host.entry(VALUES, x), host.count_upto(VALUES, x)
        for given, want in zip(found, wanted, strict=True):
            assert isinstance(given, torch.Tensor)
            assert given.dtype is torch.float64
            assert given.shape == x.shape
            assert np.array_equal(given.numpy(), np.full(x.shape, want), equal_nan=True)


class NeverReads(TorchDispatchMode):
    """Refuses to bring a number from a tensor to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_device_is_not_waited_for() -> None:
    """A CUDA graph, for one, could not be captured."""
    t = torch.tensor(2.0, dtype=torch.float64)
    host.entry(VALUES, t), host.count_upto(VALUES, t)  # copies the list, once
    with NeverReads():
        host.entry(VALUES, t), host.count_upto(VALUES, t)


def test_a_list_is_copied_to_a_device_once() -> None:
    t = torch.tensor(2.0, dtype=torch.float64)
    host.entry(VALUES, t)
    before = host._on_device(VALUES, t.device)
    host.count_upto(VALUES, t)
    assert host._on_device(VALUES, t.device) is before
    for n in range(200):
        host.entry((float(n), 1.0), t)
    assert len(host._COPIES) <= 64
    assert float(host.entry(VALUES, t)) == VALUES[1]


MANY = Hyper("when", "int", "[0, inf)", many=True)
FACTORS = Hyper("factors", "float", "[0, 1]", many=True)


def test_what_a_list_may_be() -> None:
    assert check(MANY, [3, np.int64(5)]) == (3, 5)
    assert all(type(x) is int for x in check(MANY, (np.int64(5),)))
    kept = check(FACTORS, [1, np.float32(0.5)])
    assert kept == (1.0, 0.5)
    assert all(type(x) in (int, float) for x in kept)


@pytest.mark.parametrize(
    ("hyper", "value", "error", "words"),
    [
        (MANY, [], ValueError, "when must be a list of at least one number"),
        (MANY, 3, TypeError, "when must be a list of numbers, not int"),
        (MANY, "30", TypeError, "not str"),
        (MANY, torch.tensor([3]), TypeError, r"tolist\(\)"),
        (MANY, np.array([3]), TypeError, r"tolist\(\)"),
        (MANY, [3, 4.0], TypeError, r"when\[1\] must be an int, not float"),
        (MANY, [3, True], TypeError, r"when\[1\]"),
        (MANY, [3, -1], ValueError, r"Invalid when parameter at index 1: -1 \(must be in \[0, inf\)\)"),
        (FACTORS, [0.5, math.nan], ValueError, "at index 1: nan"),
        (FACTORS, [torch.tensor(0.5)], TypeError, r"factors\[0\] must be a number, not Tensor"),
    ],
)
def test_what_it_may_not_be(hyper: Hyper, value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check(hyper, value)


def trained(optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """Some steps along random gradients, the same for a seed."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=random, dtype=p.dtype)
        optimizer.step()


def parameters() -> list[torch.nn.Parameter]:
    """Three parameters, the same each time."""
    random = torch.Generator().manual_seed(20261129)
    shapes: tuple[tuple[int, ...], ...] = ((4, 5), (7,), ())
    return [torch.nn.Parameter(torch.randn(s, generator=random, dtype=torch.float64)) for s in shapes]


SPEC = """
optimizer Listed:
    hyper:
        lr = 0.1 in [0, inf)
        milestones = [3] in [0, inf)
        factors = [1.0] in [0, inf)
    step:
        p = p - lr * factors[t] * 0.5^count(milestones <= t - 1) * g
"""


@needs_compiler
@pytest.mark.parametrize("flags", PATHS, ids=str)
def test_groups_have_lists_of_their_own(flags: dict[str, Any], tmp_path: Path) -> None:
    """By hand, for parameters that have taken different numbers of steps."""
    (tmp_path / "listed.opt").write_text(SPEC)
    params, milestones, factors = parameters(), ([2, 5], [3], [1, 1, 4]), ([1.0, 0.3], [0.5], [2.0, 1.0, 0.0])
    groups = [
        {"params": [p], "milestones": m, "factors": f}
        for p, m, f in zip(params, milestones, factors, strict=True)
    ]
    optimizer = optdsl.load(tmp_path / "listed.opt")(groups, lr=0.3, **flags)
    wanted = [p.detach().clone() for p in params]
    for step in range(7):
        for n, p in enumerate(params):
            t = step + 1 - (2 if n == 1 else 0)  # the second joins late
            p.grad = torch.full_like(p, 0.1 * step + n) if t > 0 else None
            if t > 0:
                factor = factors[n][min(t, len(factors[n])) - 1] * 0.5 ** sum(
                    m <= t - 1 for m in milestones[n]
                )
                wanted[n] -= 0.3 * factor * p.grad
        optimizer.step()
    for p, want in zip(params, wanted, strict=True):
        torch.testing.assert_close(p.detach(), want, rtol=1e-13, atol=1e-13)


@needs_compiler
def test_a_list_goes_through_checkpoints_and_copies() -> None:
    cls = optdsl.load("adamw_refined")
    schedule = [0.5, 1.0, 0.25, 0.1, 0.0]
    one = cls(parameters(), lr=0.1, schedule=schedule)
    trained(one, 2)
    assert one.param_groups[0]["schedule"] == tuple(schedule)
    saved = io.BytesIO()
    torch.save(one.state_dict(), saved)
    saved.seek(0)
    other = cls([p.detach().clone().requires_grad_() for p in one.param_groups[0]["params"]], lr=9.0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert other.param_groups[0]["schedule"] == tuple(schedule)
    copied = copy.deepcopy(one)
    for each in (one, other, copied):
        trained(each, 3, seed=1)
    wanted = [p.detach() for p in one.param_groups[0]["params"]]
    for each in (other, copied):
        for p, want in zip(each.param_groups[0]["params"], wanted, strict=True):
            assert torch.equal(p, want)


def test_a_list_is_changed_between_steps() -> None:
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = optdsl.load("sgd_multistep")(
        [p], lr=1.0, milestones=[100], momentum=0.0, weight_decay=0.0, foreach=False
    )
    steps = []
    for milestones in ([100], [1], (1, 1)):
        optimizer.param_groups[0]["milestones"] = milestones
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        optimizer.step()
        steps.append(float((before - p.detach())[0]))
    assert steps == pytest.approx([1.0, 0.1, 0.01])
    optimizer.param_groups[0]["milestones"] = [-1]
    with pytest.raises(ValueError, match="milestones"):
        optimizer.step()
