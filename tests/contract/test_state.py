"""The state: when it begins, how steps are counted, its keys, dtypes, shapes and layouts, what it shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.definition import Definition
from tests.contract.subjects import (
    PLAIN,
    SHAPES,
    Refused,
    Way,
    assert_close,
    built,
    copies,
    everything,
    give,
    inputs,
    parameters,
    step,
    train,
    traits,
    turned,
    usual,
    ways,
)


@ways("loop", "foreach", "native", "loop-capturable", "foreach-capturable", "triton-fused")
def test_each_parameter_counts_its_own_steps(cls: Any, way: Way) -> None:
    """From its first gradient on; the count is a 0-dim float32 tensor of its own."""
    params = parameters(((2, 3), (), (4,)) if way.triton else SHAPES, (torch.float32,))
    optimizer = built(cls, params, way, **usual(cls))
    assert not optimizer.state
    present = [lambda n: True, lambda n: n >= 2, lambda n: n % 2 == 0]
    for number in range(3 if way.triton else 5):
        give(params, number)
        for n, p in enumerate(params):
            p.grad = p.grad if present[n % 3](number) else None
        step(optimizer, number)
        for n, p in enumerate(params):
            taken = sum(present[n % 3](m) for m in range(number + 1))
            assert (p in optimizer.state) is (taken > 0)
            if taken:
                count = optimizer.state[p]["step"]
                assert count.item() == taken
                assert count.dtype is torch.float32
                assert count.shape == ()
                assert count.device == p.device
    counts = [optimizer.state[p]["step"] for p in params]
    assert len({count.data_ptr() for count in counts}) == len(params)


@ways("loop", "foreach", "native")
def test_a_late_parameter_is_as_one_that_is_alone(name: str, cls: Any, way: Way) -> None:
    """Bias corrections, warm-ups and first steps are its own."""
    if {"joint", "group state"} & traits(name):
        raise Refused(f"{cls.__name__} reduces over several parameters, as its equations say")
    params, others = parameters(PLAIN), parameters(PLAIN)
    together, alone = (built(cls, p, way, **usual(cls)) for p in (params, others))
    for number in range(6):
        give(params, number)
        params[0].grad = params[0].grad if number >= 3 else None
        others[0].grad = params[0].grad
        step(together, number)
        if number >= 3:
            step(alone, number)
    assert_close(params[0], others[0])
    assert together.state[params[0]].keys() == alone.state[others[0]].keys()
    assert set(alone.state) == {others[0]}


@ways("loop", "foreach", "native")
def test_states_are_like_their_parameters(cls: Any, way: Way) -> None:
    """Per element: dtype, shape and memory format; else float32 or float64; what the host knows in float64."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    params = parameters([(4, 6), (2, 3, 4, 5), (6,)] * 4, dtypes)
    params += [
        torch.nn.Parameter(values.to(memory_format=torch.channels_last))
        for values in map(torch.Tensor.detach, params)
        if values.dim() == 4
    ]
    params += [
        torch.nn.Parameter(values.mT.contiguous().mT)
        for values in map(torch.Tensor.detach, params)
        if values.dim() == 2
    ]
    optimizer = built(cls, params, way, **turned(cls))
    train(optimizer, params, 2)
    specs = {spec.key: spec for spec in cls._states}
    for p in params:
        wide = torch.float64 if p.dtype is torch.float64 else torch.float32
        for key, value in optimizer.state[p].items():
            if key == "step":
                continue
            spec = specs[key]
            if spec.level == "host":
                assert value.dtype is torch.float64
            elif spec.stored is None:
                assert value.dtype is (p.dtype if spec.level == "element" else wide), key
            if spec.level == "element" and spec.delay is None:
                assert value.shape == p.shape, key
                assert value.stride() == p.stride(), key
            assert value.device == p.device
            assert not value.requires_grad


@ways("loop", "foreach", "native")
def test_a_state_dict_is_flat_and_shares_nothing(cls: Any, way: Way) -> None:
    """Tensors in the state, plain values or tensors in the groups; no memory is somebody else's, too."""
    params = parameters(PLAIN, (torch.float32,))
    optimizer = built(cls, params, way, **turned(cls))
    train(optimizer, params, 2)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert all(isinstance(x, Tensor) for state in saved["state"].values() for x in state.values())
    plain = (int, float, str, bool, tuple, type(None), Tensor)
    for group in saved["param_groups"]:
        assert all(isinstance(x, plain) for key, x in group.items() if key != "params")
    tensors = [x for p in params for x in (p, p.grad, *optimizer.state[p].values()) if x.numel()]
    storages = [x.untyped_storage().data_ptr() for x in tensors]
    assert len(set(storages)) == len(storages)


def test_all_that_is_kept_is_in_defaults_groups_and_state(cls: Any) -> None:
    params = parameters(PLAIN, (torch.float32,))
    optimizer = cls(params, **usual(cls))
    train(optimizer, params, 2)
    assert set(optimizer.__getstate__()) == {"defaults", "state", "param_groups"}
    assert all(key.startswith("_") for key in set(vars(optimizer)) - {"defaults", "state", "param_groups"})
    groups = {spec.key for spec in cls._states if spec.level == "group"}
    assert set(optimizer.param_groups[0]) - groups - {"train_mode"} == {"params", *optimizer.defaults}
    twin = cls(copies(params))
    before = everything(twin)
    for attribute in [
        key for key in vars(optimizer) if key.startswith("_") and key not in vars(torch.optim.SGD(params))
    ]:
        assert attribute in vars(twin)
    assert everything(twin).keys() == before.keys()


@ways("loop", "native")
def test_evaluation_puts_in_and_takes_out(name: str, cls: Any, way: Way) -> None:
    """`eval()` and `train()`: bit for bit what was there; no step in between; nothing at all without a view."""
    params = parameters(PLAIN)
    optimizer = built(cls, params, way, **usual(cls))
    optimizer.eval()
    optimizer.train()
    definition = Definition(name, optimizer)
    for number in range(3):
        give(params, number)
        definition.step(number)
        step(optimizer, number)
    before = [p.detach().clone() for p in params]
    optimizer.eval()
    if "view" not in traits(name):
        assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
        raise Refused(f"{cls.__name__} evaluates at the weights that it trains")
    for p, want in zip(params, definition.interpreter.view()[0], strict=True):
        assert_close(p, torch.from_numpy(want).reshape(p.shape))
    with pytest.raises(RuntimeError, match=rf"^{cls.__name__} is in eval\(\)"):
        optimizer.step(**inputs(optimizer, 3))
    other = built(cls, copies(params), way, **usual(cls))
    other.load_state_dict(optimizer.state_dict())
    for each in (optimizer, other):
        each.train()
        held = each.param_groups[0]["params"]
        assert all(torch.equal(p, old) for p, old in zip(held, before, strict=True))
    train(optimizer, params, 1, 3)
