"""Parameters of all kinds: layouts, dtypes, complex, frozen, tied, wrapped, many groups, groups that come later."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optdsl.runtime.states import facts_about
from tests.contract.subjects import (
    PLAIN,
    SHAPES,
    Refused,
    Way,
    assert_close,
    built,
    changed,
    copies,
    differences,
    everything,
    give,
    inputs,
    parameters,
    seeded,
    step,
    train,
    traits,
    usual,
    values,
    ways,
)


def hostile(p: torch.Tensor, number: int) -> torch.Tensor:
    """The same numbers otherwise in memory: transposed, with gaps, channels last, or not at the beginning."""
    if p.dim() == 4:
        return p.contiguous(memory_format=torch.channels_last)
    if p.dim() == 2 and number % 2:
        return p.mT.contiguous().mT
    if p.dim():
        wide = torch.zeros(*p.shape[:-1], 2 * p.shape[-1], dtype=p.dtype)
        wide[..., ::2] = p
        return wide[..., ::2]
    return torch.stack([p, p])[1]


@ways("loop", "foreach", "native")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_layout_does_not_change_the_result(cls: Any, way: Way, dtype: torch.dtype) -> None:
    """Of parameters, of gradients, and of both."""
    shapes = [(4, 6), (4, 6), (2, 3, 4, 5), (6,), (), (0, 3)]
    runs = []
    for parameter, gradient in ((0, 0), (1, 0), (0, 1), (1, 1)):
        made = [p.detach() for p in parameters(shapes, (dtype,))]
        params = [torch.nn.Parameter(hostile(p, n) if parameter else p) for n, p in enumerate(made)]
        layout = [p.stride() for p in params]
        optimizer = built(cls, params, way, **usual(cls))
        for number in range(3):
            give(params, number)
            for n, p in enumerate(params):
                p.grad = hostile(p.grad, n + 1) if gradient else p.grad
            step(optimizer, number)
        assert [p.stride() for p in params] == layout
        runs.append(params)
    for other in runs[1:]:
        for n, (p, q) in enumerate(zip(other, runs[0], strict=True)):
            assert_close(p, q, f"parameter {n}")


def _begins_exactly(cls: Any, p: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises Refused if a state begins with a number that is rounded when it is kept."""
    group = cls([p], **usual(cls)).param_groups[0]
    for key in cls._live(group, facts_about(p)):
        if cls._specs[key].level == "element" and not cls._specs[key].given:
            begin = cls._initial(key, p.detach().float(), torch.ones_like(p).float(), group, facts_about(p))
            if isinstance(begin, float) and float(torch.tensor(begin).to(dtype)) != begin:
                raise Refused(f"{cls.__name__} begins a state with a number that is rounded when it is kept")


@ways("loop", "foreach", "native")
def test_narrow_parameters_compute_wide_and_round_once(cls: Any, way: Way) -> None:
    """The first step of a bfloat16 or float16 parameter is the float32 one, rounded to nearest; so are its states."""
    for dtype in (torch.bfloat16, torch.float16):
        narrow = parameters(PLAIN, (dtype,))
        for p in narrow:
            _begins_exactly(cls, p, dtype)
        wide = [torch.nn.Parameter(p.detach().float()) for p in narrow]
        one, other = (built(cls, p, way, **usual(cls)) for p in (narrow, wide))
        give(narrow, 0)
        for p, q in zip(narrow, wide, strict=True):
            q.grad = p.grad.float()
        given = inputs(one, 0)
        one.step(**given)
        other.step(**changed(given, torch.Tensor.float))
        for p, q in zip(narrow, wide, strict=True):
            assert torch.equal(p.detach(), q.detach().to(dtype))
            for key, value in one.state[p].items():
                want = other.state[q][key].to(value.dtype)
                assert torch.equal(value.nan_to_num(0.5), want.nan_to_num(0.5)), key


@ways("loop", "foreach", "native", "foreach-capturable")
def test_complex_parameters_are_pairs_or_refused(cls: Any, way: Way) -> None:
    """Side by side with real ones; by name, with nothing changed, where a rule sees more than elements."""
    shapes, dtypes = (
        [(3, 4), (5,), (), (2, 3, 2)],
        (torch.complex128, torch.float64, torch.complex64, torch.complex128),
    )
    params = parameters(shapes, dtypes)
    pairs = [
        torch.nn.Parameter((torch.view_as_real(p.detach()) if p.is_complex() else p.detach()).clone())
        for p in params
    ]
    optimizer = built(cls, params, way, **usual(cls))
    other = built(cls, pairs, way, **usual(cls))
    for number in range(3):
        give(params, number)
        given = inputs(optimizer, number)
        if not cls._elementwise:
            before = everything(optimizer)
            with pytest.raises(RuntimeError, match=f"^{cls.__name__} does not support complex parameters$"):
                optimizer.step(**given)
            assert not differences(everything(optimizer), before)
            raise Refused(f"{cls.__name__} does not support complex parameters")
        if {"ndim", "rows", "cols"} & set(cls._bucket_facts):  # a pair has an axis more
            step(optimizer, number)
            continue
        for p, q in zip(params, pairs, strict=True):
            q.grad = torch.view_as_real(p.grad).clone() if p.is_complex() else p.grad.clone()
        optimizer.step(**given)
        other.step(**changed(given, lambda x: torch.view_as_real(x) if x.is_complex() else x))
    for p, q in zip(params, pairs, strict=True):
        if not {"ndim", "rows", "cols"} & set(cls._bucket_facts):
            assert_close(torch.view_as_real(p.detach()) if p.is_complex() else p, q)
        for key, value in optimizer.state[p].items():
            level = next((spec.level for spec in cls._states if spec.key == key), "")
            assert value.is_complex() == (p.is_complex() and level == "element"), key


@ways("loop", "foreach", "native")
def test_frozen_and_tied_parameters(cls: Any, way: Way) -> None:
    """What needs no gradient stays, what is in two places moves once; thawed, it counts from its own first step."""
    model = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    params = list(model.parameters())
    assert len(params) == 5
    with torch.no_grad():
        for n, p in enumerate(params):
            p.copy_(values(p.shape, p.dtype, n))
    frozen = [p.detach().clone() for p in model[2].parameters()]
    optimizer = built(cls, params, way, **usual(cls))
    x = torch.randn(2, 3, generator=seeded("x"))
    for number in range(3):
        optimizer.zero_grad()
        y = x
        for layer in model:
            y = layer(y).tanh()
        y.sum().backward()
        if number == 2:
            model[2].requires_grad_(True)
            for p in model[2].parameters():
                p.grad = torch.ones_like(p)
        step(optimizer, number)
        if number < 2:
            assert all(torch.equal(p, old) for p, old in zip(model[2].parameters(), frozen, strict=True))
            assert not any(p in optimizer.state for p in model[2].parameters())
    assert model[1].weight is model[0].weight
    assert [int(optimizer.state[p]["step"]) for p in params] == [3, 3, 3, 1, 1]


@ways("loop", "foreach", "native")
def test_groups_that_come_later(name: str, cls: Any, way: Way) -> None:
    """A group that is added while training is as one that has had no gradients so far; what is wrong is not added."""
    params, others = parameters(), parameters()
    late = built(cls, params[:4], way, **usual(cls))
    early = built(cls, [{"params": others[:4]}, {"params": others[4:]}], way, **usual(cls))
    for number in range(4):
        if number == 2:
            late.add_param_group({"params": params[4:]})
            with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
                late.add_param_group({"params": params[:1]})
            with pytest.raises(TypeError, match="param_group must be a dict"):
                late.add_param_group(params[:1])
            assert len(late.param_groups) == 2
        give(params, number)
        for n, (p, q) in enumerate(zip(params, others, strict=True)):
            if n >= 4 and number < 2:
                p.grad = None
            q.grad = None if p.grad is None else p.grad.clone()
        step(late, number)
        step(early, number)
    assert [int(late.state[p]["step"]) for p in params] == [4] * 4 + [2] * 3
    assert not differences(everything(late), everything(early))


@ways("loop", "foreach", "native")
def test_many_small_groups(name: str, cls: Any, way: Way) -> None:
    """One parameter a group, as fine-tuning by layers has it: as one group of them, unless groups have states."""
    if {"group state", "over group"} & traits(name):
        raise Refused(f"{cls.__name__} has states of its groups or reduces over them, as its equations say")
    params, others = parameters(SHAPES), parameters(SHAPES)
    many = built(cls, [{"params": [p]} for p in params], way, **usual(cls))
    one = built(cls, others, way, **usual(cls))
    train(many, params, 3)
    train(one, others, 3)
    for p, q in zip(params, others, strict=True):
        assert_close(p, q)


@ways("loop", "foreach", "native")
def test_memory_that_others_see_is_written_to(cls: Any, way: Way) -> None:
    """A parameter stays where it is: a view of it, and who has saved it for backward, notice."""
    base = values((4, 6), torch.float32, "base")
    params = [torch.nn.Parameter(base[:2]), torch.nn.Parameter(base[2:, ::2])]
    optimizer = built(cls, params, way, **usual(cls))
    before = base.clone()
    product = (params[0] * params[0]).sum()
    for number in range(12):  # gradients of several steps ago may be what moves them
        give(params, number)
        step(optimizer, number)
    assert not torch.equal(base[:2], before[:2])
    assert torch.equal(base[2:, 1::2], before[2:, 1::2])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_copies_are_apart(cls: Any) -> None:
    """Parameters of a copy are the copy's own."""
    params = parameters(PLAIN)
    optimizer = cls(params)
    others = copies(params)
    twin = cls(others)
    train(optimizer, params, 1)
    assert not twin.state
    assert all(torch.equal(p, q) for p, q in zip(others, parameters(PLAIN), strict=True))
