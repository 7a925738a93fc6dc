"""Mixed precision: scaled gradients, autocast, parameters and states in few bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optdsl.runtime.storage import Split
from tests.contract.subjects import (
    PLAIN,
    Way,
    altered,
    assert_close,
    built,
    copies,
    differences,
    everything,
    give,
    inputs,
    parameters,
    same,
    seeded,
    step,
    train,
    traits,
    usual,
    values,
    ways,
)


@ways("loop", "foreach", "native", "triton-fused")
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled before"])
def test_scaled_gradients(cls: Any, way: Way, unscale: bool) -> None:
    """As without scaling, bit for bit; where a gradient overflows, parameters, states and steps stay as they are."""
    shapes = ((3, 4), (5,), ())
    params, others = parameters(shapes, (torch.float32,)), parameters(shapes, (torch.float32,))
    optimizer, plain = (built(cls, p, way, **usual(cls)) for p in (params, others))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    scaler.scale(torch.ones(()))
    for number in range(3 if way.triton else 4):
        scale = scaler.get_scale()
        give(params, number, scale)
        given = inputs(optimizer, number)
        if number == 1:
            params[1].grad[2] = float("inf")
            before = everything(optimizer)
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer, **given)
        scaler.update()
        if number == 1:
            assert not differences(everything(optimizer), before)
            assert scaler.get_scale() == scale / 2
            continue
        give(others, number)
        plain.step(**inputs(plain, number))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    got, want = everything(optimizer), everything(plain)
    assert not differences(got, want)


@ways("loop", "foreach", "native")
def test_an_overflow_in_the_first_step_begins_nothing(cls: Any, way: Way) -> None:
    params = parameters(PLAIN, (torch.float32,))
    optimizer = built(cls, params, way, **usual(cls))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    give(params, 0)
    params[0].grad[0] = float("nan")
    before = everything(optimizer)
    scaler.step(optimizer, **inputs(optimizer, 0))
    assert not differences(everything(optimizer), before)
    assert not any(optimizer.state.values())


def test_what_a_scaler_hands_over_is_heeded(cls: Any) -> None:
    """By `fused=True` on a CPU, too: no step after an overflow, else one with gradients that are not scaled."""
    params, others = parameters(PLAIN, (torch.float32,)), parameters(PLAIN, (torch.float32,))
    optimizer = built(cls, params, Way("fused", {"fused": True}), **usual(cls))
    plain = cls(others, **usual(cls))
    for number in range(3):
        give(params, number, 8.0)
        given = [(p.grad, p.grad.clone()) for p in params]
        overflow = number == 1
        optimizer.grad_scale, optimizer.found_inf = torch.full((1,), 8.0), torch.tensor(float(overflow))
        before = everything(optimizer)
        step(optimizer, number)
        assert (
            bool(differences(everything(optimizer), before)) is not overflow
        )  # the count of steps, at least
        assert all(p.grad is g and torch.equal(g, old) for p, (g, old) in zip(params, given, strict=True))
        give(others, number)
        if not overflow:
            step(plain, number)
    assert not [
        place for place in differences(everything(optimizer), everything(plain)) if place[-1] != "fused"
    ]


@ways("loop", "foreach", "native")
def test_training_under_autocast(cls: Any, way: Way) -> None:
    """Gradients of float32 parameters through bfloat16 layers; the step in the context is the step outside of it."""
    runs = []
    for inside in (False, True):
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
        with torch.no_grad():
            for n, p in enumerate(model.parameters()):
                p.copy_(0.3 * values(p.shape, p.dtype, n))
        optimizer = built(cls, model.parameters(), way, **usual(cls))
        x = torch.randn(5, 4, generator=seeded("x"))
        for number in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                y = model(x)
                assert y.dtype is torch.bfloat16
                loss = y.float().square().sum()
            loss.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                step(optimizer, number)
        assert all(p.dtype is torch.float32 and torch.isfinite(p).all() for p in model.parameters())
        runs.append(everything(optimizer))
    assert not differences(*runs)


@ways("loop", "native")
def test_bfloat16_with_the_bits_it_lacks_is_float32(cls: Any, way: Way) -> None:
    """With states in float32, parameters kept as "bf16+16" are those of float32: bit for bit by the loop.

    Kernels that go by rows leave them to it, so that a step may be rounded otherwise.
    """
    forms = {spec.key: "f32" for spec in cls._states if spec.level == "element" and not spec.given}
    narrow = parameters(PLAIN, (torch.bfloat16,))
    wide = [torch.nn.Parameter(p.detach().float()) for p in narrow]
    one = built(cls, narrow, way, store={**forms, "p": "bf16+16"}, **usual(cls))
    other = built(cls, wide, way, **usual(cls))
    for number in range(3):
        give(narrow, number)
        for p, q in zip(narrow, wide, strict=True):
            q.grad = p.grad.float()
        given = inputs(one, number)
        one.step(**given)
        other.step(**altered(given, torch.Tensor.float))
    for p, q in zip(narrow, wide, strict=True):
        pairs = {key: (one.state[p][key], value) for key, value in other.state[q].items()}
        pairs["p"] = Split(p, one.state[p]["p_low"]).open(torch.float32), q.detach()
        for key, (got, want) in pairs.items():
            assert same(got, want) if way.name == "loop" else True, key
            assert_close(got, want, key)


@ways("loop", "native")
@pytest.mark.parametrize("form", ["bf16+16", "bf16+8", "bf16+kahan", "bf16_sr"])
def test_pure_bfloat16_in_few_bits(name: str, cls: Any, way: Way, form: str) -> None:
    """Everything in bfloat16 or codes: finite, in the formats asked for, the same again."""
    keys = [spec.key for spec in cls._states if spec.level == "element" and not spec.given]
    runs = []
    for _ in range(2):
        params = parameters([(64, 70), (7,)], (torch.bfloat16,))
        optimizer = built(cls, params, way, store={**dict.fromkeys(keys, "q8"), "p": form}, **usual(cls))
        train(optimizer, params, 2)
        runs.append(everything(optimizer))
        assert all(torch.isfinite(p).all() for p in params)
        assert ("p_low" in optimizer.state[params[0]]) is (form != "bf16_sr")
        for key in set(keys) & set(optimizer.state[params[0]]):
            delayed = "delay" in traits(name) and optimizer._specs[key].delay is not None
            assert optimizer.state[params[0]][key].dtype is (torch.float32 if delayed else torch.uint8)
            assert optimizer.state[params[1]][key].dtype is torch.float32
    assert not differences(*runs)


def test_double_precision_is_double_all_the_way(cls: Any) -> None:
    """A difference beyond float32 in the gradient comes through, unless the rule takes its sign."""
    params, others = parameters([(3, 4)]), parameters([(3, 4)])
    one, other = (cls(p, foreach=False, **usual(cls)) for p in (params, others))
    for number in range(2):
        give(params, number)
        others[0].grad = params[0].grad * (1 + 1e-12)
        step(one, number)
        step(other, number)
    assert params[0].dtype is torch.float64
    distance = (params[0] - others[0]).abs().max().item()
    assert distance < 1e-9
    kept = copies(params)
    assert kept[0].dtype is torch.float64
