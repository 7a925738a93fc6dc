"""What kernels leave to torch: products of matrices, ranks, long searches; on every path, and what is refused."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from optdsl.check import check_text
from optdsl.ir.interpret import Group, Interpreter
from tests.backends.interpreted import interpreted, needs_triton
from tests.support import needs_compiler

#: Ranks of rows, of a tensor and of a group; matrices of their own, and one that only some tensors have.
SPEC = """
optimizer Wide:
    hyper:
        lr = 0.1 in [0, inf)
        weight_decay = 0.1 in [0, inf)
        beta = 0.9 in [0, 1)
        rounds = 2 in [0, 30]
        share = 0.5 in [0, 1]
        whiten = true
    state:
        m = 0 as exp_avg
        left [rows, rows] = 0
        size [tensor] = 1
        level [host] = 1
    step:
        g = g + weight_decay * p
        m = beta * m + (1 - beta) * g
        u = m / (norm(m) + 1e-3)
        if whiten and cols > 1:
            left = beta * left + (1 - beta) * u @ u'
            level = level / 2
            u = u + level * left @ u
            repeat rounds:
                u = 1.5 * u - 0.5 * (u @ u') @ u
            size = 0.5 * size + norm(u)
        limit = kth_largest(abs(u), share * numel, over=tensor)
        most = kth_largest(u, 2, over=rows)
        top = kth_largest(abs(g), 3, over=group)
        u = clip(u, -limit, limit) + where(most > 0, most, 0) / size
        p = p - lr * min(1, top) * u
"""
RANKED = """
optimizer Ranked:
    hyper:
        lr = 0.1 in [0, inf)
    step:
        top = kth_largest(abs(g), 3, over=group)
        p = p - lr * clip(g, -top, top) - 0.1 * lr * p
"""
SHAPES = ((5, 7), (9, 3), (4,), (), (6, 1), (3, 2, 2, 2), (0, 3), (64, 17))
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
    "triton": {"fused": True},
}


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("wide") / "wide.opt"
    path.write_text(SPEC)
    return optdsl.load(path)


def on(path: str) -> Any:
    return interpreted() if path == "triton" else contextlib.nullcontext()


def train(cls: Any, path: str, dtype: torch.dtype, steps: int = 4, **options: Any) -> tuple[Any, list[Any]]:
    """An optimizer and its parameters after some steps; the third parameter begins late."""
    rng = np.random.default_rng(5)
    params = [torch.nn.Parameter(torch.tensor(rng.standard_normal(s)).to(dtype)) for s in SHAPES]
    optimizer = cls(params, **{**FLAGS[path], **options})
    go(optimizer, params, path, rng, steps)
    return optimizer, params


def go(optimizer: Any, params: list[Any], path: str, rng: Any, steps: int) -> None:
    with on(path):
        for step in range(steps):
            for k, p in enumerate(params):
                grad = torch.tensor(rng.standard_normal(tuple(p.shape))).to(p.dtype)
                p.grad = None if step == 0 and k == 2 else grad
            optimizer.step()


@pytest.mark.parametrize("options", [{}, {"whiten": False}, {"rounds": 0, "share": 0.0}], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_as_the_interpreter_says(wide: Any, path: str, options: dict[str, Any]) -> None:
    optimizer, params = train(wide, path, torch.float64, **options)
    rng = np.random.default_rng(5)
    runner = Interpreter(
        check_text(SPEC).require(), [Group([rng.standard_normal(s) for s in SHAPES], dict(options))]
    )
    for step in range(4):
        grads = [np.asarray(rng.standard_normal(s)) for s in SHAPES]
        runner.step([[None if step == 0 and k == 2 else g for k, g in enumerate(grads)]])
    for p, expected, states in zip(params, runner.params[0], runner.states[0], strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
        for key, kept in optimizer.state[p].items():
            if key != "step":
                np.testing.assert_allclose(kept.numpy(), states[key], rtol=1e-10, atol=1e-12, err_msg=key)
    if path in ("native", "triton"):
        assert len(optimizer._launcher.tables[0].rows) == len(SHAPES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", PATHS[1:])
def test_in_other_types(wide: Any, path: str, dtype: torch.dtype) -> None:
    """As the loop: to rounding, where a bfloat16 may be rounded to a neighbour."""
    ours, theirs = (train(wide, which, dtype)[1] for which in (path, "loop"))
    # the interpreter of Triton cuts off what bfloat16 does not hold
    near = 0.1 if path == "triton" else 1e-2
    bound = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": near}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **bound)


@pytest.mark.parametrize("path", PATHS)
def test_checkpoints_go_on_bit_for_bit(wide: Any, path: str) -> None:
    optimizer, params = train(wide, path, torch.float32, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = wide(copies, **FLAGS[path])
    other.load_state_dict(torch.load(file, weights_only=True))
    for each, tensors in ((optimizer, params), (other, copies)):
        go(each, tensors, path, np.random.default_rng(7), 2)
    for a, b in zip(params, copies, strict=True):
        assert torch.equal(a, b)


@needs_compiler
def test_odd_tensors(wide: Any) -> None:
    """Transposed and strided parameters step as their contiguous copies; complex ones are refused."""
    rng = torch.Generator().manual_seed(3)
    plain = [torch.randn(4, 6, generator=rng), torch.randn(6, 8, generator=rng)]
    odd = [plain[0].t().contiguous().t(), plain[1].repeat(1, 2)[:, :8]]
    steps = []
    for given in (plain, odd):
        params = [torch.nn.Parameter(x.clone(memory_format=torch.preserve_format)) for x in given]
        params[1] = torch.nn.Parameter(torch.empty(6, 16)[:, :8].copy_(given[1]))
        optimizer = wide(params, fused=True)
        for k in range(3):
            for p in params:
                p.grad = torch.full_like(p, 0.1 * k) + p.detach()
            optimizer.step()
        steps.append(params)
    for a, b in zip(*steps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    p = torch.nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="Wide does not support complex parameters"):
        wide([p], fused=True).step()


def real(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.detach()) if x.is_complex() else x.detach()


@pytest.mark.parametrize("path", PATHS)
def test_complex_numbers_are_ranked_as_pairs(path: str, tmp_path: Path) -> None:
    """Over a group, beside real ones; kernels take them."""
    file = tmp_path / "ranked.opt"
    file.write_text(RANKED)
    rng = torch.Generator().manual_seed(11)
    params = [torch.nn.Parameter(torch.randn(5, 3, dtype=d, generator=rng)) for d in (torch.complex64, None)]
    pairs = [torch.nn.Parameter(real(p).clone()) for p in params]
    cls = optdsl.load(file)
    optimizer, peer = cls(params, **FLAGS[path]), cls(pairs, foreach=False)
    for _ in range(3):
        for p, q in zip(params, pairs, strict=True):
            p.grad = torch.randn(5, 3, dtype=p.dtype, generator=rng)
            q.grad = real(p.grad).clone()
        with on(path):
            optimizer.step()
        peer.step()
    for p, q in zip(params, pairs, strict=True):
        torch.testing.assert_close(real(p), q.detach())
    if path in ("native", "triton"):
        assert len(optimizer._launcher.tables[0].rows) == len(params)


@needs_compiler
@needs_triton
def test_a_step_that_the_scaler_skips(wide: Any) -> None:
    """An overflow leaves parameters, states and matrices untouched; the next step is as if it had not been."""
    with interpreted():
        optimizer, params = train(wide, "triton", torch.float32, 2)
        assert optimizer._step_supports_amp_scaling
        before = [x.clone() for p in params for x in (p.detach(), *optimizer.state[p].values())]
        for p in params:
            p.grad = torch.full_like(p, float("inf"))
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
        optimizer.step()
        after = [x for p in params for x in (p.detach(), *optimizer.state[p].values())]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        optimizer.found_inf.zero_()
        _, peers = train(wide, "triton", torch.float32, 2)
        peer = wide(peers, fused=True)
        peer.load_state_dict(optimizer.state_dict())
        for p, q in zip(params, peers, strict=True):
            q.grad = torch.ones_like(q)
            p.grad = 4 * q.grad
        optimizer.step()
        peer.step()
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)


@needs_compiler
def test_one_call_for_tensors_alike(wide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of one step count and of the facts that matter go to torch together."""
    params = [torch.nn.Parameter(torch.randn(4, 3)) for _ in range(5)]
    optimizer, calls = wide(params, fused=True), []
    left = wide._library
    monkeypatch.setattr(
        wide, "_library", staticmethod(lambda p, *more: (calls.append(len(p)), left(p, *more))[1])
    )
    for _ in range(2):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert calls == [5, 5]


def test_standalone_has_what_it_needs(tmp_path: Path) -> None:
    """A file that needs torch alone has no kernels, and so no such part."""
    spec = tmp_path / "wide.opt"
    spec.write_text(SPEC)
    optdsl.compile(spec, standalone=True)
    assert "_library" not in (tmp_path / "wide.py").read_text().split("class Wide")[1]
