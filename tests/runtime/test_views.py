"""`eval()` and `train()`: what stands for the parameters while a model is evaluated."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch

import optdsl
from optdsl.check import check_text
from optdsl.ir.interpret import Group, Interpreter
from tests.end_to_end.test_golden import ENTRIES, REFERENCE, hypers, tolerance

INDEX_PROBLEM = REFERENCE / "problem.npz"
FREE = [e for e in ENTRIES if "schedule_free" in e["optimizer"]]
SPEC = """
transform Averaged:
    hyper:
        decay = 0.9 in [0, 1)
        averaging = true
    state:
        average = p
    step:
        if averaging:
            average = decay * average + (1 - decay) * p
    eval:
        if averaging:
            p = average / (1 + 0 * t)

optimizer Mixed:
    hyper:
        lr = 0.1 in [0, inf)
    step when ndim >= 2:
        use SGD(lr = lr, momentum = 0.5)
        use Averaged()
    step otherwise:
        use SGD(lr = lr / 2) as vector
"""
FLAGS = [{"foreach": False}, {"foreach": True}, {}]


@pytest.mark.skipif(not FREE, reason="no recorded trajectories; set OPTDSL_REFERENCE to their folder")
@pytest.mark.parametrize("entry", FREE, ids=lambda e: f"{e['optimizer']}-{e['setting']}-{e['dtype']}")
def test_recorded_averages(entry: dict) -> None:  # type: ignore[type-arg]
    """After every step: x in evaluation, y behind it, bit for bit, z as a state."""
    dtype = getattr(torch, entry["dtype"])
    names = list(entry["keys"])
    with np.load(INDEX_PROBLEM) as problem, np.load(REFERENCE / entry["file"]) as recorded:
        params = [torch.from_numpy(problem[f"init.{n}"]).to(dtype).requires_grad_() for n in names]
        grads = [torch.from_numpy(problem[f"{entry['gradients']}.{n}"]).to(dtype) for n in names]
        optimizer = optdsl.load(entry["optimizer"])(params, **hypers(entry))
        for step in range(12):
            for p, g in zip(params, grads, strict=True):
                p.grad = g[step].clone()
            optimizer.step()
            y = [p.detach().clone() for p in params]
            optimizer.eval()
            for name, p in zip(names, params, strict=True):
                for what, found in (("x", p), ("z", optimizer.state[p]["z"])):
                    want = recorded[entry["extra_keys"][f"{what}.{name}"]][step]
                    error = np.max(
                        np.abs(found.detach().numpy() - want) / np.maximum(1, np.abs(want)), initial=0
                    )
                    assert error <= tolerance(entry), (
                        f"{what} of {name} after step {step}: off by {error:.3g}"
                    )
            optimizer.train()
            assert all(torch.equal(p, old) for p, old in zip(params, y, strict=True))


def made(
    tmp_path: Path, flags: dict[str, bool], **options: object
) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    path = tmp_path / "mixed.opt"
    path.write_text(SPEC)
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,), (2, 2, 2))]
    return optdsl.load(path)(params, **options, **flags), params


def take_steps(optimizer: torch.optim.Optimizer, params: list[torch.Tensor], count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("averaging", [True, False])
def test_same_as_the_interpreter(tmp_path: Path, flags: dict[str, bool], averaging: bool) -> None:
    """A view in a branch, by a condition: tensors of the other branch are left alone."""
    optimizer, params = made(tmp_path, flags, averaging=averaging)
    program = check_text(SPEC).require()
    interpreter = Interpreter(
        program, [Group([p.detach().numpy().copy() for p in params], {"averaging": averaging})]
    )
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        interpreter.step([[p.grad.numpy() for p in params]])
        optimizer.step()
    before = [p.detach().clone() for p in params]
    optimizer.eval()
    for p, want in zip(params, interpreter.view()[0], strict=True):
        np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(params[1], before[1])
    assert torch.equal(params[0], before[0]) is not averaging
    optimizer.train()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_a_step_in_evaluation_is_refused(tmp_path: Path) -> None:
    optimizer, params = made(tmp_path, {})
    take_steps(optimizer, params, 2, 1)
    optimizer.eval()
    shown = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"is in eval\(\).*train\(\)"):
        optimizer.step()
    optimizer.eval()  # once more: nothing new
    assert all(torch.equal(p, old) for p, old in zip(params, shown, strict=True))
    optimizer.train()
    take_steps(optimizer, params, 1, 2)


def test_a_checkpoint_in_evaluation_goes_on(tmp_path: Path) -> None:
    """Saved between `eval()` and `train()`, loaded with weights_only: the run goes on bit for bit."""
    optimizer, params = made(tmp_path, {})
    take_steps(optimizer, params, 3, 1)
    optimizer.eval()
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": [p.detach() for p in params]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, others = made(tmp_path, {})
    with torch.no_grad():
        for p, value in zip(others, saved["params"], strict=True):
            p.copy_(value)
    other.load_state_dict(saved["optimizer"])
    with pytest.raises(RuntimeError, match="is in eval"):
        other.step()
    for opt, ps in ((optimizer, params), (other, others)):
        opt.train()
        take_steps(opt, ps, 2, 5)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))
    assert [sorted(s) for s in optimizer.state_dict()["state"].values()] == [
        sorted(s) for s in other.state_dict()["state"].values()
    ]


def test_before_the_first_step(tmp_path: Path) -> None:
    """A parameter that took no step stands for itself."""
    optimizer, params = made(tmp_path, {})
    before = copy.deepcopy(params)
    optimizer.eval()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    optimizer.train()
    take_steps(optimizer, params, 1, 0)


def test_a_rule_without_a_view() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optdsl.load("adamw")([p])
    p.grad = torch.ones(3)
    optimizer.step()
    before = p.detach().clone()
    optimizer.eval()
    optimizer.step()
    optimizer.train()
    assert not torch.equal(p, before)
    assert "train_mode" not in optimizer.param_groups[0]
