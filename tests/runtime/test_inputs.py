"""Inputs of a step that are one number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from optdsl.check import check_text
from optdsl.ir.interpret import Group, Interpreter, Uncomputed
from tests.support import COMPILER, needs_compiler

#: `loss` moves everything, `spread` is read in every other step alone, `h` has a number per element.
SPEC = """
optimizer Given:
    hyper:
        lr = 0.1 in [0, inf)
    input loss [group] "loss of this step"
    input spread [group]
    input h
    state:
        best [group] = inf
    step:
        best = min(best, loss)
        every 2:
            p = p * (1 - 0.01 * spread)
        p = p - lr * min(1, (loss - best + 1) / (norm(g, over=all)^2 + 1)) * g * h
"""
PATHS: tuple[dict[str, Any], ...] = (
    {"foreach": False},
    {"foreach": True},
    {"fused": True},
    {"foreach": False, "maximize": True},
)
SHAPES = ((4, 5), (7,), ())


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("inputs") / "given.opt"
    path.write_text(SPEC)
    return optdsl.load(path)


def numbers(step: int) -> tuple[list[torch.Tensor], list[torch.Tensor], float, float]:
    """Gradients, values per element and two numbers."""
    random = torch.Generator().manual_seed(step)
    g, h = ([torch.randn(s, generator=random, dtype=torch.float64) for s in SHAPES] for _ in range(2))
    return g, h, float(torch.randn((), generator=random)), 2.0 - step


@needs_compiler
@pytest.mark.parametrize("flags", PATHS, ids=str)
@pytest.mark.parametrize("form", [float, torch.tensor, lambda x: torch.tensor([x], requires_grad=True)])
def test_against_the_interpreter(given: Any, flags: dict[str, Any], form: Any) -> None:
    """In two groups, in float64; the numbers are given as floats, tensors or tensors of float32 with a graph."""
    params = [torch.nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in SHAPES]
    optimizer = given([{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], **flags)
    machine = Interpreter(
        check_text(SPEC).require(),
        [Group([np.ones(s) for s in SHAPES[:2]]), Group([np.ones(SHAPES[2])], {"lr": 0.3})],
    )
    sign = -1 if flags.get("maximize") else 1
    for step in range(5):
        grads, hs, loss, spread = numbers(step)
        loss, spread = (float(torch.tensor(x)) for x in (loss, spread))
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        inputs = {"loss": form(loss), "h": hs}
        if step % 2 == 0:
            inputs["spread"] = form(spread)
        optimizer.step(inputs=inputs)
        signed, plain = ([sign * g.numpy() for g in grads], [h.numpy() for h in hs])
        machine.step(
            [signed[:2], signed[2:]],
            {"loss": loss, "h": [plain[:2], plain[2:]], **({"spread": spread} if step % 2 == 0 else {})},
        )
        for p, want in zip(params, [x for group in machine.params for x in group], strict=True):
            np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-12, atol=1e-12)
    for group, kept in zip(optimizer.param_groups, machine.group_states, strict=True):
        assert "loss" not in group
        assert "spread" not in group
        np.testing.assert_allclose(float(group["best"]), float(kept["best"]))
    assert all("loss" not in state for state in optimizer.state_dict()["state"].values())


@pytest.mark.parametrize("flags", PATHS, ids=str)
def test_a_checkpoint_has_none_of_them(given: Any, flags: dict[str, Any]) -> None:
    """Numbers are of one step: a state dict without them is whole, and goes on as if never stopped."""

    def step(optimizer: Any, number: int) -> None:
        grads, hs, loss, spread = numbers(number)
        for p, g in zip(optimizer.param_groups[0]["params"], grads, strict=True):
            p.grad = g.clone()
        optimizer.step(inputs={"loss": loss, "spread": spread, "h": hs})

    if flags.get("fused") and COMPILER is None:
        pytest.skip("there is no C compiler `cc`")
    params = [torch.nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in SHAPES]
    optimizer = given(params, **flags)
    for number in range(2):
        step(optimizer, number)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = given(others, **flags)
    other.load_state_dict(optimizer.state_dict())
    for each in (optimizer, other):
        step(each, 2)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_an_interpreter_misses_what_it_is_not_given() -> None:
    machine = Interpreter(check_text(SPEC).require(), [Group([np.ones(3)])])
    with pytest.raises(Uncomputed, match="loss"):
        machine.step([[np.ones(3)]], {"h": [[np.ones(3)]], "spread": 1.0})


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({"spread": 1.0}, RuntimeError, r"needs the input 'loss', one number; pass it as `step\(inputs="),
        ({"loss": 1.0}, RuntimeError, "needs the input 'spread', one number"),
        ({"loss": torch.ones(2), "spread": 1.0}, ValueError, r"'loss' is one number, not .* shape \(2,\)"),
        ({"loss": torch.ones((), dtype=torch.complex64), "spread": 1.0}, ValueError, "complex64"),
        ({"loss": "much", "spread": 1.0}, ValueError, "'loss' is one number, not 'much'"),
        ({"loss": True, "spread": 1.0}, ValueError, "not True"),
        ({"loss": [1.0, 1.0, 1.0], "spread": 1.0}, ValueError, "'loss' is one number"),
        ({"loss": 1.0, "spread": 1.0, "h": 2.0}, ValueError, "'h' has a value for each element"),
        ({"loss": 1.0, "spread": 1.0, "losses": 1.0}, ValueError, "no input 'losses': its inputs are 'loss'"),
    ],
)
@pytest.mark.parametrize("foreach", [False, None])
def test_what_is_refused_changes_nothing(
    given: Any, foreach: bool | None, inputs: dict[str, Any], error: type[Exception], words: str
) -> None:
    params = [torch.nn.Parameter(torch.ones(s)) for s in SHAPES]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = given(params, foreach=foreach)
    with pytest.raises(error, match=words):
        optimizer.step(inputs={"h": [torch.ones(s) for s in SHAPES], **inputs})
    assert all(bool((p == 1).all()) for p in params)
    assert not optimizer.state


def test_inputs_have_names(given: Any) -> None:
    params = [torch.nn.Parameter(torch.ones(s)) for s in SHAPES]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = given(params)
    with pytest.raises(
        ValueError, match=r"`inputs` is a mapping from names .*, not a list; its inputs are 'loss'"
    ):
        optimizer.step(inputs=[1.0, 1.0])
    assert not optimizer.state


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_number_of_another_type(dtype: torch.dtype) -> None:
    """It is rounded to what the step computes in, and an infinity and nan are what they are."""
    cls = optdsl.load("sps")
    for loss, wanted in ((0.5, 0.75), (math.inf, 0.5), (-math.inf, math.inf), (math.nan, math.nan)):
        for flags in PATHS[:3]:
            p = torch.nn.Parameter(torch.ones(4, dtype=dtype))
            p.grad = torch.full_like(p, 0.5)
            optimizer = cls([p], lr=1.0, c=1.0, eps=0.0, **flags)
            optimizer.step(inputs={"loss": torch.tensor(loss, dtype=torch.float64)})
            assert torch.equal(p.detach().nan_to_num(7.0), torch.full_like(p, wanted).nan_to_num(7.0)), loss


def test_polyaks_step_finds_the_minimum_of_a_quadratic_function() -> None:
    """With the smallest loss known, each step at least brings the parameters nearer to the minimum."""
    scales = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
    p = torch.nn.Parameter(torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64))
    optimizer = optdsl.load("sps")([p], lr=math.inf, c=1.0, loss_star=2.0, eps=0.0)
    distance = float(p.detach().norm())
    for _ in range(60):
        optimizer.zero_grad()
        loss = (scales * p.square()).sum() / 2 + 2
        loss.backward()
        optimizer.step(inputs={"loss": loss})
        assert float(p.detach().norm()) < distance
        distance = float(p.detach().norm())
    assert distance < 1e-4
