"""States that a step reads as an earlier one left them: on every path, in checkpoints, and what is refused."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from optdsl.check import check_path, check_text
from optdsl.ir.interpret import Group, Interpreter
from tests.backends.interpreted import interpreted, needs_triton
from tests.support import needs_compiler

LATE = """
optimizer Late:
    hyper:
        lr = 0.1 in [0, inf)
        keep = 3 in [1, inf)
        weight_decay = 0.1 in [0, inf)
    state:
        past = p as past_steps delay keep
        sum = 0
        two = 1 delay 2
    step:
        g = g + weight_decay * past
        past = p
        sum = sum + g * two
        if t != 4:
            two = g
        p = p - lr * sum / t
    eval:
        p = (p + past) / 2
"""
SHAPES = ((), (7,), (4, 5), (2, 3, 4), (64, 17))
PATHS = [
    "loop",
    "foreach",
    pytest.param("native", marks=needs_compiler),
    pytest.param("triton", marks=[needs_compiler, needs_triton]),
]
FLAGS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "native": {"fused": True},
    "triton": {},
}


@pytest.fixture(scope="session")
def late(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("late") / "late.opt"
    path.write_text(LATE)
    return optdsl.load(path)


def how(path: str) -> Any:
    return interpreted() if path == "triton" else contextlib.nullcontext()


def start(dtype: torch.dtype, seed: int = 0) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def give(params: list[torch.nn.Parameter], step: int, skipped: int = -1) -> list[np.ndarray | None]:
    """Gradients of a step; one parameter has none in some."""
    torch.manual_seed(100 + step)
    for number, p in enumerate(params):
        grad = torch.randn(p.shape, dtype=torch.float64).to(p.dtype)
        p.grad = None if number == skipped else grad
    return [None if p.grad is None else p.grad.double().numpy() for p in params]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_as_the_interpreter_says(late: Any, path: str, dtype: torch.dtype) -> None:
    """Parameters, all that is kept of states, and the view; a parameter that misses steps turns later."""
    params = start(dtype)
    machine = Interpreter(check_text(LATE).require(), [Group([p.detach().double().numpy() for p in params])])
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype is torch.float64 else {"rtol": 2e-5, "atol": 1e-5}
    with how(path):
        optimizer = late(params, **FLAGS[path])
        for step in range(8):
            machine.step([give(params, step, skipped=step % 3 + 1)])
            optimizer.step()
            for number, p in enumerate(params):
                np.testing.assert_allclose(p.detach().double(), machine.params[0][number], **tolerance)
                for key, want in machine.states[0][number].items():
                    kept = optimizer.state[p][key]
                    assert tuple(kept.shape) == want.shape
                    np.testing.assert_allclose(
                        kept.double(), want, **tolerance, err_msg=f"{key} in step {step}"
                    )
        optimizer.eval()
        for p, want in zip(params, machine.view()[0], strict=True):
            np.testing.assert_allclose(p.detach().double(), want, **tolerance)


@pytest.mark.parametrize("path", PATHS)
def test_a_run_goes_on_bit_for_bit(late: Any, path: str) -> None:
    with how(path):
        params = start(torch.float32)
        optimizer = late(params, keep=4, **FLAGS[path])
        for step in range(6):
            give(params, step)
            optimizer.step()
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        resumed = late(others, keep=4, **FLAGS[path])
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for step in range(6, 12):
            give(params, step)
            give(others, step)
            optimizer.step()
            resumed.step()
        for p, q in zip(params, others, strict=True):
            assert torch.equal(p, q)
            assert all(torch.equal(x, resumed.state[q][key]) for key, x in optimizer.state[p].items())


@needs_compiler
def test_paths_meet_in_one_run(late: Any) -> None:
    """Kernels and torch's operations take turns on the same states, laid out in every way."""
    torch.manual_seed(1)
    layouts = [
        torch.randn(6, 5).t(),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(9),
    ]
    ours, theirs = (
        [torch.nn.Parameter(x.clone(memory_format=torch.preserve_format)) for x in layouts] for _ in "ab"
    )
    mine, peer = late(ours), late(theirs, fused=False, foreach=False)
    for step in range(7):
        give(ours, step)
        give(theirs, step)
        mine.param_groups[0]["fused"] = (None, False)[step % 2]
        mine.step()
        peer.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_the_delay_cannot_change(late: Any) -> None:
    params = start(torch.float32)
    optimizer = late(params, foreach=False)
    give(params, 0)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["keep"] = 5
    with pytest.raises(RuntimeError, match="'past_steps' was kept for 3 steps and is now to be for 5"):
        optimizer.step()
    saved["param_groups"][0]["keep"] = 2
    other = late(start(torch.float32))
    with pytest.raises(ValueError, match=r"'past_steps' of the loaded state dict has shape \(3,\)"):
        other.load_state_dict(saved)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("loaded", [False, True], ids=["", "loaded"])
def test_nothing_changes_before_a_changed_delay_is_refused(late: Any, path: str, loaded: bool) -> None:
    """Neither earlier groups, nor parameters of the same group whose states are still to begin."""
    params = start(torch.float32)
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    with how(path):
        optimizer = late(groups, **FLAGS[path])
        give(params, 0, skipped=2)
        optimizer.step()
        if loaded:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.param_groups[1]["keep"] = 5
        give(params, 1)
        before = copy.deepcopy((params, optimizer.state_dict()))
        for _ in range(2):
            with pytest.raises(
                RuntimeError, match="'past_steps' was kept for 3 steps and is now to be for 5"
            ):
                optimizer.step()
            assert all(torch.equal(p, q) for p, q in zip(params, before[0], strict=True))
            torch.testing.assert_close(optimizer.state_dict(), before[1], rtol=0, atol=0)
        optimizer.param_groups[1]["keep"] = 3
        optimizer.step()
        assert not any(torch.equal(p, q) for p, q in zip(params, before[0], strict=True))


@needs_compiler
def test_the_delay_cannot_change_under_kernels(late: Any) -> None:
    params = start(torch.float32)
    optimizer = late(params)
    give(params, 0)
    optimizer.step()
    optimizer.param_groups[0]["keep"] = 5
    with pytest.raises(RuntimeError, match="'past_steps' was kept for 3 steps and is now to be for 5"):
        optimizer.step()


def test_what_delayed_states_cannot_do(tmp_path: Path) -> None:
    text = LATE.replace("        if t != 4:\n            two = g\n", "        two = g\n")
    (tmp_path / "late.opt").write_text(text)
    with pytest.raises(RuntimeError, match="it finds delayed states by the step count"):
        optdsl.load(tmp_path / "late.opt")(start(torch.float32), capturable=True)


def test_gradients_flow_through_steps(late: Any) -> None:
    """`differentiable` keeps the graph: the derivative of the last parameter by the first gradient."""
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    first = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)

    def last(g: torch.Tensor) -> torch.Tensor:
        held = p.clone()
        optimizer = late([held], differentiable=True)
        held.grad = g
        optimizer.step()
        for _ in range(4):
            held.grad = torch.full_like(held, 0.1)
            optimizer.step()
        return held

    with torch.no_grad():
        slope = (last(first.detach() + 1e-6) - last(first.detach() - 1e-6)) / 2e-6
    found = torch.autograd.grad(last(first).sum(), first)[0]
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("store", ["bf16", "q8"])
def test_formats(late: Any, store: str) -> None:
    """Codes are for states that are kept for one step; delayed ones stay in float32."""
    p = torch.nn.Parameter(torch.ones(100, 100))
    optimizer = late([p], store=store)
    p.grad = torch.ones_like(p)
    optimizer.step()
    kept = optimizer.state[p]
    assert kept["past_steps"].shape == (3, 100, 100)
    assert kept["past_steps"].dtype is (torch.bfloat16 if store == "bf16" else torch.float32)
    assert kept["sum"].dtype is (torch.bfloat16 if store == "bf16" else torch.uint8)


def test_a_used_spec_may_be_given_its_delay(tmp_path: Path) -> None:
    (tmp_path / "base.opt").write_text(LATE)
    for given, wanted in (("5", ("keep", 5)), ("length", ("length", 4))):
        text = "optimizer Outer:\n    hyper:\n        length = 4 in [2, 9]\n    step:\n"
        (tmp_path / "outer.opt").write_text(f'import "base.opt"\n{text}        use Late(keep = {given})\n')
        program = check_path(tmp_path / "outer.opt").require()
        assert [s.delay for s in program.states] == [wanted[0], None, 2]
        assert program.hyper(wanted[0]).default == wanted[1]
