"""The step: what it returns, what it leaves alone, and that every way is the definition."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from tests.contract.definition import Definition
from tests.contract.subjects import (
    PLAIN,
    SETTINGS,
    SHAPES,
    WAYS,
    Refused,
    Way,
    all_moved,
    assert_alike,
    assert_close,
    built,
    copies,
    differences,
    everything,
    give,
    inputs,
    parameters,
    same,
    step,
    train,
    traits,
    usual,
    ways,
)

setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))


def paths(*names: str) -> list[Any]:
    """Each way with each setting; Triton's interpreter, which is slow, with the usual one."""
    return [
        pytest.param(WAYS[name], given, id=f"{name}-{what}")
        for name in names
        for what, given in SETTINGS.items()
        if what == "usual" or not WAYS[name].triton
    ]


def strided(shape: tuple[int, ...]) -> Any:
    """A parameter with gaps between its numbers."""
    (p,) = parameters([(*shape, 2)])
    return torch.nn.Parameter(p.detach()[..., 0])


# ---- the definition --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "setting"), paths(*WAYS))
def test_every_way_is_the_definition(name: str, cls: Any, way: Way, setting: Any) -> None:
    """Two groups of their own options, of late, missing, empty, 0-dim and strided tensors, options that change."""
    options = setting(cls)
    params = [*parameters(((3, 4), (5,), (), (0,)) if way.triton else SHAPES), strided((4, 3))]
    groups = [{"params": params[:3]}, {"params": params[3:], "maximize": True}]
    changed = list(all_moved(cls, options).items())
    groups[1].update(changed[-1:])
    optimizer = built(cls, groups, way, **options)
    definition = Definition(name, optimizer)
    for number in range(3 if way.triton else 6):
        give(params, number)
        for n, p in enumerate(params):
            if (n % 3 == 1 and number < 2) or (n % 4 == 2 and number == 3):
                p.grad = None
        if number == 2 and changed:  # as a scheduler does
            key, value = changed[0]
            optimizer.param_groups[0][key] = value
        definition.step(number)
        step(optimizer, number)
        definition.assert_followed(f"after step {number + 1}")


@pytest.mark.parametrize(
    ("way", "setting"), paths("foreach", "native", "triton", "foreach-capturable", "triton-fused")
)
def test_all_ways_keep_the_same(cls: Any, way: Way, setting: Any) -> None:
    """The same keys and dtypes, but for rounding the same numbers, with all dtypes side by side."""
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if way.triton:  # its interpreter cuts bfloat16 off
        dtypes = dtypes[:3]
    params = parameters([shape for shape in PLAIN for _ in dtypes], dtypes)
    others = copies(params)
    optimizer = built(cls, others, way, **setting(cls))
    base = cls(params, foreach=False, **setting(cls))
    steps = 1 if way.triton else 3
    train(base, params, steps)
    train(optimizer, others, steps)
    assert_alike(everything(optimizer), everything(base), least=torch.float32 if cls._joint else None)


# ---- what a step leaves alone ----------------------------------------------------------------------------


@ways("loop", "foreach", "native")
def test_gradients_stay_what_and_where_they_are(cls: Any, way: Way) -> None:
    params = parameters(dtypes=(torch.float32, torch.bfloat16, torch.float64))
    optimizer = built(cls, params, way, maximize=True, **usual(cls))
    for number in range(2):
        give(params, number)
        given = [(p.grad, p.grad.clone(), p.data_ptr()) for p in params]
        step(optimizer, number)
        for p, (grad, before, place) in zip(params, given, strict=True):
            assert p.grad is grad
            assert torch.equal(grad, before)
            assert p.data_ptr() == place
            assert p.is_leaf
            assert p.requires_grad


@ways("loop", "foreach", "native")
def test_parameters_without_a_gradient_are_left_alone(cls: Any, way: Way) -> None:
    """No decay, no step, no state; nothing at all where none has one."""
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = built(cls, params, way, **usual(cls))
    assert step(optimizer) is None
    assert not optimizer.state
    for number in range(2):
        give(params, number)
        for p in params[1::2]:
            p.grad = None
        step(optimizer, number)
    for n, (p, old) in enumerate(zip(params, before, strict=True)):
        assert (p in optimizer.state) is (n % 2 == 0)
        assert n % 2 == 0 or torch.equal(p, old)
    held = everything(optimizer)
    for p in params:
        p.grad = None
    step(optimizer, 2)
    assert not differences(everything(optimizer), held)


@ways("loop", "foreach", "native")
def test_sparse_gradients_are_refused_by_name(cls: Any, way: Way) -> None:
    """Before anything is changed, though the gradients of others are dense."""
    params = parameters(PLAIN)
    optimizer = built(cls, params, way)
    train(optimizer, params, 1)
    give(params, 1)
    params[-1].grad = params[-1].grad.to_sparse()
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=f"^{cls.__name__} does not support sparse gradients$"):
        optimizer.step(**({} if not cls._inputs else inputs(optimizer, 1)))
    assert not differences(everything(optimizer), before)


@ways("loop", "foreach", "native")
def test_the_modes_of_the_caller_stay(cls: Any, way: Way) -> None:
    """Gradients on or off, autocast on or off: the same bits, and the mode is what it was."""
    runs = []
    for grad, autocast in ((True, False), (False, False), (True, True)):
        params = parameters(PLAIN, (torch.float32, torch.bfloat16))
        optimizer = built(cls, params, way, **usual(cls))
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            train(optimizer, params, 2)
            assert torch.is_grad_enabled() is grad
            assert torch.is_autocast_enabled("cpu") is autocast
        runs.append(everything(optimizer))
    assert not differences(runs[0], runs[1])
    assert not differences(runs[0], runs[2])


# ---- closures, hooks -------------------------------------------------------------------------------------


@ways("loop", "foreach", "native")
def test_closures_hooks_and_the_profiler(cls: Any, way: Way) -> None:
    """The closure runs once, with gradients; its loss is returned; hooks run in their order."""
    params = parameters(PLAIN, (torch.float32,))
    optimizer = built(cls, params, way)
    give(params, 0)
    seen: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("all before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("all after")),
        optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
        optimizer.register_step_post_hook(lambda *_: seen.append("after")),
    ]
    grads = [p.grad.clone() for p in params]

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum((p * g).sum() for p, g in zip(params, grads, strict=True))
        loss.backward()
        seen.append("closure")
        return loss

    want = sum((p.detach() * g).sum() for p, g in zip(params, grads, strict=True))
    try:
        with torch.no_grad(), torch.autograd.profiler.profile() as profile:
            loss = step(optimizer, 0, closure)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(loss, want)
    assert seen == ["all before", "before", "closure", "after", "all after"]
    assert f"Optimizer.step#{cls.__name__}.step" in {event.key for event in profile.key_averages()}
    assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
    step(optimizer, 1)
    assert len(seen) == 5
    assert "step" not in vars(optimizer)


# ---- options ---------------------------------------------------------------------------------------------


@ways("loop", "foreach", "native")
def test_maximize_is_minimize_of_the_negative(cls: Any, way: Way) -> None:
    ups, downs = parameters(), parameters()
    up = built(cls, ups, way, maximize=True, **usual(cls))
    down = built(cls, downs, way, **usual(cls))
    train(up, ups, 3)
    for number in range(3):
        give(downs, number, -1.0)
        step(down, number)
    got, want = everything(up), everything(down)
    assert {place[-1] for place in differences(got, want)} <= {"maximize"}


@ways("loop", "foreach", "native", "loop-capturable", "foreach-capturable")
def test_a_tensor_as_learning_rate_is_its_number(cls: Any, way: Way) -> None:
    """Also when it is changed where it is; it stays the tensor that was given, 0-dim."""
    if not any(hyper.name == "lr" for hyper in cls._hypers):
        raise Refused(f"{cls.__name__} has no learning rate")
    if cls._branches_on_lr and way.flags.get("capturable"):
        with pytest.raises(
            RuntimeError, match=f"^{cls.__name__} does not support `capturable`: .* learning rate"
        ) as raised:
            cls(parameters(PLAIN), lr=torch.tensor(0.0625), **way.flags)
        raise Refused(str(raised.value))
    params, others = parameters(PLAIN), parameters(PLAIN)
    rate = torch.tensor([0.0625])
    tensor = built(cls, params, way, **{**usual(cls), "lr": rate})
    number = built(cls, others, way, **{**usual(cls), "lr": 0.0625})
    for n, value in enumerate((0.0625, 0.0625, 0.25)):
        rate.fill_(value)
        number.param_groups[0]["lr"] = value
        train(tensor, params, 1, n)
        train(number, others, 1, n)
    held = tensor.param_groups[0]["lr"]
    assert held.data_ptr() == rate.data_ptr()
    assert held.shape == ()
    assert_alike(everything(tensor), everything(number), but=["lr"])
    with pytest.raises(ValueError, match=r"^Tensor lr must be 1-element$"):
        cls(params, lr=torch.ones(2))


@ways("loop", "foreach", "native")
def test_nothing_moves_where_the_learning_rate_is_0(name: str, cls: Any, way: Way) -> None:
    """Unless the equations say so; a scheduler may turn it down to 0 even if it must not begin there."""
    if not any(hyper.name == "lr" for hyper in cls._hypers):
        raise Refused(f"{cls.__name__} has no learning rate")
    params = parameters(PLAIN)
    optimizer = built(cls, params, way, **usual(cls))
    definition = Definition(name, optimizer)
    for number in range(4):
        if number == 2:
            optimizer.param_groups[0]["lr"] = 0.0
            before = [[p.detach().clone() for p in params], copy.deepcopy(definition.interpreter.params[0])]
        give(params, number)
        if number == 2 and cls._divides_by_lr:
            with pytest.raises(
                ValueError, match=rf"^Invalid learning rate: 0\.0 .*; {cls.__name__} divides by it"
            ):
                step(optimizer, number)
            assert all(torch.equal(p, old) for p, old in zip(params, before[0], strict=True))
            raise Refused(f"{cls.__name__} divides by the learning rate")
        definition.step(number)
        step(optimizer, number)
    moves = [(x != y).any() for x, y in zip(definition.interpreter.params[0], before[1], strict=True)]
    if any(moves):
        definition.assert_followed("at a rate of 0")
        assert all(torch.isfinite(p).all() for p in params)
        raise Refused(f"{cls.__name__} moves without a learning rate, as its equations say")
    assert all(torch.equal(p, old) for p, old in zip(params, before[0], strict=True))


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 - n / 4),  # down to 0
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=9, cycle_momentum=False),
}


@ways("loop", "foreach", "native")
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=list(SCHEDULERS))
def test_a_scheduler_is_obeyed(cls: Any, way: Way, schedule: Any) -> None:
    """As if every rate had been written into the groups by hand."""
    if not any(hyper.name == "lr" for hyper in cls._hypers):
        raise Refused(f"{cls.__name__} has no learning rate")
    params, others = parameters(PLAIN), parameters(PLAIN)
    optimizer, by_hand = (
        built(cls, [{"params": p[:1], "lr": 0.02}, {"params": p[1:]}], way, **usual(cls))
        for p in (params, others)
    )
    scheduler = schedule(optimizer)
    rates = []
    for number in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        for group, rate in zip(by_hand.param_groups, rates[-1], strict=True):
            group["lr"] = rate
        if 0 in rates[-1] and cls._divides_by_lr:
            with pytest.raises(ValueError, match="divides by it"):
                train(optimizer, params, 1, number)
            raise Refused(f"{cls.__name__} divides by the learning rate")
        train(optimizer, params, 1, number)
        train(by_hand, others, 1, number)
        scheduler.step()
    assert len({rate for pair in rates for rate in pair}) > 4
    assert all(same(p, q) for p, q in zip(params, others, strict=True))
    assert all(torch.isfinite(p).all() for p in params)


@ways("loop", "foreach", "native")
def test_groups_are_optimizers_of_their_own(name: str, cls: Any, way: Way) -> None:
    """A group with its options is as an optimizer that has only it, unless tensors of all groups meet."""
    if "over all" in traits(name):
        raise Refused(f"{cls.__name__} reduces over all parameters, as its equations say")
    params, others = parameters(), parameters()
    options = usual(cls)
    other = all_moved(cls, options)
    together = built(cls, [{"params": params[:3]}, {"params": params[3:], **other}], way, **options)
    apart = [built(cls, others[:3], way, **options), built(cls, others[3:], way, **{**options, **other})]
    if cls._random:  # numbers depend on the place of a tensor among all
        apart[1] = built(
            cls, [{"params": copies(others[:3])}, {"params": others[3:], **other}], way, **options
        )
    for number in range(3):
        give(params, number)
        given = inputs(together, number)
        together.step(**given)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad.clone()
        for optimizer in apart:
            tensors = dict(zip(others, params, strict=True))
            mine = [p for group in optimizer.param_groups for p in group["params"]]
            place = {p: n for n, p in enumerate(params)}
            passed = {
                key: x
                if isinstance(x, torch.Tensor)
                else [None if p.grad is None else x[place[tensors[p]]] for p in mine]
                for key, x in given.get("inputs", {}).items()
            }
            optimizer.step(**({"inputs": passed} if passed else {}))
    for p, q in zip(params, others, strict=True):
        assert_close(p, q)


# ---- under other regimes ---------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Refuses operations that would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), func
        return func(*args, **(kwargs or {}))


@ways("loop-capturable")
def test_a_capturable_step_waits_for_nothing(cls: Any, way: Way) -> None:
    """On a CPU some foreach operations of torch read a tensor, which those for a device do not."""
    params = parameters(PLAIN, (torch.float32,))
    rate = {"lr": torch.tensor(0.01)} if any(hyper.name == "lr" for hyper in cls._hypers) else {}
    if cls._branches_on_lr:
        with pytest.raises(
            RuntimeError, match=f"^{cls.__name__} does not support `capturable`: .* learning rate"
        ):
            cls(params, capturable=True, **rate)
        rate = {}
    optimizer = built(cls, params, way, **usual(cls), **rate)
    train(optimizer, params, 1)
    give(params, 1)
    given = inputs(optimizer, 1)
    with Waits():
        optimizer.step(**given)


@setting
def test_differentiable_steps_are_the_same_and_keep_the_graph(cls: Any, setting: Any) -> None:
    """Or are refused by name, where a format or a rule has no derivative."""
    params = parameters(PLAIN)
    others = [p.detach().clone().requires_grad_().clone() for p in params]
    plain = cls(params, foreach=False, **setting(cls))
    optimizer = cls(others, differentiable=True, **setting(cls))
    for number in range(3):
        train(plain, params, 1, number)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad.clone().requires_grad_()
        step(optimizer, number)
    for p, q in zip(params, others, strict=True):
        assert_close(q, p)
        assert q.grad_fn is not None
        # the last gradient has come in, unless the rule takes its sign
        torch.autograd.grad(q.sum(), q.grad, allow_unused=True, retain_graph=True)


@ways("loop", "foreach", "native")
def test_the_same_again_is_the_same_bits(cls: Any, way: Way) -> None:
    """Whatever torch's own random numbers are."""
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        params = parameters(dtypes=(torch.float32, torch.bfloat16))
        optimizer = built(cls, params, way, **usual(cls))
        train(optimizer, params, 3)
        runs.append(everything(optimizer))
    assert not differences(*runs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@ways("loop", "foreach", "native")
def test_the_default_dtype_does_not_matter(cls: Any, way: Way, dtype: torch.dtype) -> None:
    runs = []
    for default in (torch.float32, dtype):
        params = parameters(dtypes=(torch.float64, torch.float32))
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            optimizer = built(cls, params, way, **usual(cls))
            train(optimizer, params, 2)
        finally:
            torch.set_default_dtype(before)
        runs.append(everything(optimizer))
    assert not differences(*runs)
