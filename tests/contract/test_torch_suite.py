"""What torch's own test suite does with every entry of its database of optimizers, done with ours.

Where torch has the method its entry is used as it stands, with our class in the place of torch's.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau

pytest.importorskip(
    "expecttest", reason="torch's database of optimizers needs expecttest; `pip install expecttest`"
)

from torch.testing._internal.common_optimizers import OptimizerInfo, get_error_inputs_for_all_optims

from tests.contract.database import info, settings
from tests.contract.definition import Definition
from tests.contract.subjects import (
    CLOSE,
    PLAIN,
    Options,
    Refused,
    built,
    copies,
    differences,
    everything,
    give,
    of_torch,
    only,
    parameters,
    same,
    step,
    torch_class,
    train,
    traits,
    ways,
)

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")


@pytest.fixture
def entry(name: str, cls: Any) -> OptimizerInfo:
    return info(name)


def line() -> tuple[list[Parameter], Callable[[], torch.Tensor]]:
    """Weights and biases of a linear map, and the square of what it makes of a point."""
    torch.manual_seed(3)
    weight, bias, x = Parameter(torch.randn(10, 5)), Parameter(torch.randn(10)), torch.randn(5)
    return [weight, bias], lambda: (weight.mv(x) + bias).square().sum()


def descend(
    optimizer: Any, loss: Callable[[], torch.Tensor], steps: int, schedulers: Sequence[Any] = ()
) -> None:
    """Steps with the gradients of a loss."""
    for number in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        _step(optimizer, number)
        for scheduler in schedulers:
            scheduler.step(*([value.detach()] if isinstance(scheduler, ReduceLROnPlateau) else []))


def _step(optimizer: Any, number: int = 0) -> Any:
    """A step whose inputs, where it needs some, are the gradient, or 1 where one number is asked for."""
    specs = [type(optimizer)._specs[key] for key in type(optimizer)._inputs]
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    given = {spec.key: 1.0 if spec.level == "group" else grads for spec in specs}
    return optimizer.step(**({"inputs": given} if given else {}))


def improves(entry: OptimizerInfo, kwargs: Options, before: float, after: float) -> bool:
    return after > before if kwargs.get("maximize") else after < before


# ---- construction ----------------------------------------------------------------------------------------


def test_errors(name: str, entry: OptimizerInfo) -> None:
    """In torch's words; what torch's class of a method refuses beyond what all do, and ours can do, it does."""
    cls, every = entry.optim_cls, len(get_error_inputs_for_all_optims("cpu", torch.float32))
    for number, wrong in enumerate(entry.optim_error_inputs_func(device="cpu", dtype=torch.float32)):
        params, kwargs = wrong.optimizer_error_input.params, wrong.optimizer_error_input.kwargs
        if issubclass(wrong.error_type, Warning):
            with pytest.warns(wrong.error_type, match=wrong.error_regex):
                cls(params, **kwargs)
        elif number >= every and torch_class_takes_less(cls, params, kwargs):
            mine = parameters(PLAIN, (torch.float32,)) if params is None else params
            train(cls(mine, **kwargs), mine, 2)
            assert all(torch.isfinite(p).all() for p in mine)
        else:
            peer = torch_class(name)
            regex = (
                wrong.error_regex.replace(f"{peer.__name__} does", f"{cls.__name__} does")
                if peer
                else wrong.error_regex
            )
            with pytest.raises(wrong.error_type, match=regex):
                cls(params, **kwargs).step()


def torch_class_takes_less(cls: Any, params: Any, kwargs: Options) -> bool:
    """Whether ours is made, and takes a step, where torch's refuses."""
    try:
        cls(params or [torch.zeros(1)], **kwargs).step()
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def test_an_optimizer_can_be_printed(entry: OptimizerInfo) -> None:
    for kwargs in settings(entry):
        text = repr(entry.optim_cls(line()[0], **kwargs))
        assert text.startswith(f"{entry.optim_cls.__name__} (")
        assert all(f"    {key}: " in text for key in kwargs)


# ---- steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduled", [False, True], ids=["", "scheduled"])
def test_the_loss_goes_in_the_right_direction(name: str, entry: OptimizerInfo, scheduled: bool) -> None:
    """Always where it does in torch; of others, whose defaults may be for networks, in some settings at least."""
    if {"random", "inputs"} & traits(name):
        raise Refused(f"{entry.optim_cls.__name__} moves by more than the gradient: there is no direction")
    if scheduled and "lr" not in entry.optim_cls([torch.zeros(1)]).defaults:
        raise Refused(f"{entry.optim_cls.__name__} has no learning rate")
    right, count = 0, 0
    for schedulers in entry.scheduler_inputs if scheduled else [()]:
        for kwargs in settings(entry, "differentiable"):
            params, loss = line()
            optimizer = entry.optim_cls(params, **kwargs)
            before = loss().item()
            descend(optimizer, loss, 20, [make(optimizer) for make in schedulers])
            right += improves(entry, kwargs, before, loss().item())
            count += 1
    assert right == count if of_torch(name) else right > count / 4, f"{right} of {count}"


def test_every_path_goes_the_same_way(entry: OptimizerInfo) -> None:
    """Layers are frozen and thawed on the way, a step has no gradients, one parameter is a single number."""
    for kwargs in settings(entry, "foreach", "differentiable", "fused"):
        runs = []
        for flags in ({"foreach": False}, {"foreach": True}, {}):
            torch.manual_seed(1)
            model = torch.nn.Sequential(
                torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1)
            ).double()
            single = torch.zeros((), dtype=torch.float64, requires_grad=True)
            x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64).reshape(3, 2)
            optimizer = entry.optim_cls([*model.parameters(), single], **kwargs, **flags)
            history = []
            for number in range(7):
                optimizer.zero_grad()
                if number in (3, 5):
                    model[2].requires_grad_(number == 5)
                if number != 2:
                    (model(x).sum() + single).backward()
                _step(optimizer, number)
                history.append(everything(optimizer))
            runs.append(history)
        for got, want in itertools.product(runs[1:], runs[:1]):
            for a, b in zip(got, want, strict=True):
                for place, value in b.items():
                    if isinstance(value, torch.Tensor):
                        rtol, atol = CLOSE[torch.float64]
                        torch.testing.assert_close(
                            a[place], value, rtol=rtol, atol=atol, equal_nan=True, msg=str(place)
                        )


def test_tensor_rates(entry: OptimizerInfo) -> None:
    if "lr" not in entry.optim_cls([torch.zeros(1)]).defaults:
        raise Refused(f"{entry.optim_cls.__name__} has no learning rate")
    for kwargs in settings(entry, "differentiable"):
        runs = []
        for lr in (1e-3, torch.tensor(1e-3, dtype=torch.float64)):
            params, loss = line()
            descend(entry.optim_cls(params, **{**kwargs, "lr": lr}), loss, 5)
            runs.append(params)
        for p, q in zip(*runs, strict=True):
            torch.testing.assert_close(p, q)


def test_complex_parameters_are_pairs(entry: OptimizerInfo) -> None:
    """Beside real ones; or, where a rule is not one of elements, they are refused by name."""
    cls = entry.optim_cls
    for kwargs in settings(entry, "differentiable"):
        dtypes = (torch.complex64, torch.complex64, torch.float32)
        params = parameters(((10, 5), (10,), (10, 5)), dtypes)
        pairs = [
            Parameter(torch.view_as_real(p.detach()).clone() if p.is_complex() else p.detach().clone())
            for p in params
        ]
        optimizer, other = cls(params, **kwargs), cls(pairs, **kwargs)
        for number in range(3):
            give(params, number)
            for p, q in zip(params, pairs, strict=True):
                q.grad = torch.view_as_real(p.grad).clone() if p.is_complex() else p.grad.clone()
            if not cls._elementwise:
                with pytest.raises(
                    RuntimeError, match=f"^{cls.__name__} does not support complex parameters$"
                ):
                    _step(optimizer)
                assert not optimizer.state
                raise Refused(f"{cls.__name__} does not support complex parameters")
            _step(optimizer)
            _step(other)
            for p, q in zip(params, pairs, strict=True):
                got = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
                torch.testing.assert_close(got, q.detach(), rtol=1e-5, atol=1e-6)


def test_a_parameter_on_meta_is_refused_by_fused(entry: OptimizerInfo) -> None:
    """And taken once it is somewhere."""
    if "fused" not in entry.supported_impls:
        raise Refused(f"{entry.optim_cls.__name__} is not supported as fused by its entry")
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    optimizer = entry.optim_cls(model.parameters(), fused=True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(
        RuntimeError, match="`fused=True` requires all the params to be floating point Tensors"
    ):
        _step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
            p.grad = torch.ones_like(p)
    _step(optimizer)


def test_groups_with_and_without_decay(name: str, entry: OptimizerInfo) -> None:
    """Options of a group come from the group, flags included; where torch has the method the loss goes down."""
    if {"random", "inputs"} & traits(name):
        raise Refused(f"{entry.optim_cls.__name__} moves by more than the gradient: there is no direction")
    for kwargs in settings(entry, "differentiable"):
        (weight, bias), loss = line()
        decay = {"weight_decay": 0.0} if "weight_decay" in entry.optim_cls([weight]).defaults else {}
        optimizer = entry.optim_cls([{"params": [weight], **kwargs}, {"params": [bias], **kwargs, **decay}])
        assert optimizer.param_groups[1].get("weight_decay", 0.0) == 0.0
        before = loss().item()
        descend(optimizer, loss, 20)
        assert improves(entry, kwargs, before, loss().item()) or not of_torch(name)


def test_no_gradients_and_gradients_of_zero(name: str, entry: OptimizerInfo) -> None:
    """Nothing to do is no error; a gradient of zeros moves nothing in a first step unless weights decay."""
    for kwargs in settings(entry):
        params = [torch.randn(2, 3) for _ in range(2)]
        before = [p.clone() for p in params]
        optimizer = entry.optim_cls(params, **kwargs)
        assert optimizer.step(lambda: torch.tensor([1.0])).item() == 1.0
        assert not optimizer.state
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        if not kwargs.get("differentiable"):
            params = [Parameter(p.double()) for p in params]
            optimizer = entry.optim_cls(params, **kwargs)
            definition = Definition(name, optimizer)
            for p in params:
                p.grad = torch.zeros_like(p)
            definition.step(0)
            step(optimizer, 0)
            definition.assert_followed(f"{kwargs}, no gradient")
            if not all(torch.isfinite(p).all() for p in params):
                raise Refused(
                    f"{entry.optim_cls.__name__} divides 0 by 0 for a gradient of zeros, as its equations say"
                )


def test_states_are_not_empty(entry: OptimizerInfo) -> None:
    for kwargs in settings(entry, "differentiable"):
        params, loss = line()
        optimizer = entry.optim_cls(params, **kwargs)
        descend(optimizer, loss, 1)
        assert set(optimizer.state) == set(params)
        assert all(optimizer.state.values())


# ---- state dicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", list(itertools.product([False, True], repeat=2)), ids=str)
def test_state_dicts_are_deterministic(entry: OptimizerInfo, named: tuple[bool, bool]) -> None:
    """Of plain and named parameters, in any combination; names stay where there are some."""

    def given(params: Sequence[Parameter], with_names: bool) -> Any:
        return [(f"name{n}", p) for n, p in enumerate(params)] if with_names else params

    every = settings(entry, "differentiable")
    for kwargs in every[:2] if any(named) else every:
        params, loss = line()
        optimizer = entry.optim_cls(given(params, named[0]), **copy.deepcopy(kwargs))
        descend(optimizer, loss, 3)
        others = copies(params)
        other = entry.optim_cls(given(others, named[1]), **copy.deepcopy(kwargs))
        saved = optimizer.state_dict()
        untouched = copy.deepcopy(saved)
        other.load_state_dict(saved)
        if any(named):
            assert other.param_groups[0]["param_names"] == ["name0", "name1"]
        for number in range(3):
            optimizer.zero_grad()
            loss().backward()
            for p, q in zip(params, others, strict=True):
                q.grad = p.grad.clone()
            _step(optimizer, number)
            _step(other, number)
            assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
        places = differences(everything(optimizer), everything(other))
        assert {place[-1] for place in places} <= {"param_names"}
        assert [g["lr"] for g in saved["param_groups"] if "lr" in g] == [
            g["lr"] for g in untouched["param_groups"] if "lr" in g
        ]
        other.param_groups.extend(other.param_groups)  # repeated parameters have the same numbers
        assert (
            other.state_dict()["param_groups"][-1]["params"]
            == optimizer.state_dict()["param_groups"][-1]["params"]
        )


def test_older_state_dicts_and_steps_that_are_numbers(entry: OptimizerInfo) -> None:
    for kwargs in settings(entry, "differentiable"):
        params, loss = line()
        optimizer = entry.optim_cls(params, **kwargs)
        descend(optimizer, loss, 3)
        old = copy.deepcopy(optimizer.state_dict())
        for group in old["param_groups"]:
            for flag in entry.not_og_supported_flags:
                group.pop(flag, None)
        for state in old["state"].values():
            state["step"] = state["step"].item()
        optimizer.load_state_dict(old)
        descend(optimizer, loss, 1)
        assert all(state["step"].item() == 4 for state in optimizer.state.values())


def test_saved_is_loaded_with_weights_only(entry: OptimizerInfo) -> None:
    for kwargs in settings(entry, "differentiable"):
        params, loss = line()
        optimizer = entry.optim_cls(params, **kwargs)
        descend(optimizer, loss, 3)
        saved = optimizer.state_dict()
        file = io.BytesIO()
        torch.save(saved, file)
        for weights_only in (False, True):
            file.seek(0)
            loaded = torch.load(file, weights_only=weights_only)
            assert loaded["state"].keys() == saved["state"].keys()
            for number, state in saved["state"].items():
                assert all(same(loaded["state"][number][key], value) for key, value in state.items())
            for mine, kept in zip(loaded["param_groups"], saved["param_groups"], strict=True):
                assert mine.keys() == kept.keys()
                assert all(same(mine[key], value) for key, value in kept.items())


def test_copies_have_all_public_attributes(entry: OptimizerInfo) -> None:
    for kwargs in settings(entry, "differentiable"):
        params, loss = line()
        optimizer = entry.optim_cls(params, **kwargs)
        descend(optimizer, loss, 2)
        twin = copy.deepcopy(optimizer)
        public = [{key for key in vars(each) if not key.startswith("_")} for each in (optimizer, twin)]
        assert public[0] == public[1] == {"defaults", "state", "param_groups"}


# ---- hooks -----------------------------------------------------------------------------------------------


def _before(optimizer: Any) -> None:
    optimizer.state["mark"] = 1


def _behind(optimizer: Any, saved: Options) -> Options:
    return {**saved, "seen": saved["state"].pop("mark", None)}


def _first(calls: list[str], optimizer: Any, given: Options) -> None:
    calls.append("first")


def _second(calls: list[str], optimizer: Any, given: Options) -> Options:
    calls.append("second")
    given = copy.deepcopy(given)
    given["param_groups"][0]["note"] = "kept"
    return given


def test_hooks_of_state_dicts(entry: OptimizerInfo) -> None:
    """Before and behind saving and loading, in the order asked for; what they put in and return is taken."""
    for kwargs in settings(entry):
        optimizer = entry.optim_cls([torch.rand(2, 3, requires_grad=True)], **kwargs)

        handles = [optimizer.register_state_dict_post_hook(_behind)]
        assert optimizer.state_dict()["seen"] is None
        handles.append(optimizer.register_state_dict_pre_hook(_before))
        assert optimizer.state_dict()["seen"] == 1
        handles.pop(0).remove()
        saved = optimizer.state_dict()
        assert saved["state"]["mark"] == 1
        calls: list[str] = []
        optimizer.register_load_state_dict_pre_hook(functools.partial(_first, calls))
        optimizer.register_load_state_dict_pre_hook(functools.partial(_second, calls), prepend=True)
        optimizer.register_load_state_dict_post_hook(
            lambda opt, c=calls: c.append(opt.param_groups[0]["note"])
        )
        optimizer.load_state_dict(saved)
        assert calls == ["second", "first", "kept"]
        assert optimizer.state["mark"] == 1


# ---- derivatives -----------------------------------------------------------------------------------------


def test_states_put_there_by_hand_are_differentiated(name: str, cls: Any) -> None:
    """A step count of 10 and states that somebody gives, with derivatives by all of them, as numbers say."""
    entry = info(name)
    if "differentiable" not in entry.supported_impls or {"joint", "random", "delay"} & traits(name):
        raise Refused(f"{cls.__name__} is not a function of one parameter, gradient and state")
    params = [torch.rand(4, 2, dtype=torch.float64)]
    probe = cls(params)
    train(probe, params, 1)
    kept = {key: x for key, x in probe.state[params[0]].items() if key != "step" and x.dtype is torch.float64}
    torch.manual_seed(0)
    held = [torch.rand(x.shape, dtype=torch.float64).add_(0.5).requires_grad_() for x in kept.values()]

    def moved(p: torch.Tensor, g: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        p = p.clone()
        p.grad = g
        optimizer = cls([p], differentiable=True)
        optimizer.state[p].update(
            {"step": torch.tensor(10.0), **dict(zip(kept, (x.clone() for x in states), strict=True))}
        )
        step(optimizer)
        return p

    p = torch.rand(4, 2, dtype=torch.float64).add_(0.5).requires_grad_()
    g = torch.rand(4, 2, dtype=torch.float64).add_(0.5).requires_grad_()
    assert torch.autograd.gradcheck(moved, (p, g, *held), atol=1e-4, rtol=1e-3)


# ---- torch's class beside ours ---------------------------------------------------------------------------


@only(of_torch)
@ways("loop", "foreach", "native")
def test_torch_to_here_and_back(name: str, cls: Any, way: Any) -> None:
    """torch trains, this goes on, torch goes on: what torch alone makes of it, in every setting torch tests."""
    entry, peer = info(name), torch_class(name)
    plain = {"foreach": False} if "foreach" in entry.supported_impls else {}
    rough = peer is getattr(torch.optim, "Muon", None)  # it multiplies in bfloat16
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if rough else {"rtol": 1e-4, "atol": 1e-5}
    for options in settings(entry, "foreach", "fused", "differentiable"):
        for more in ({}, {"weight_decay": 0.1} if "weight_decay" in cls([torch.zeros(1)]).defaults else {}):
            given = {**more, **options, **plain}
            # torch factors the last two axes of a tensor of more, and takes no others for Muon
            params = parameters(PLAIN if cls._elementwise else [(3, 4), (6, 2)], (torch.float32,))
            theirs = peer(params, **given)
            train(theirs, params, 3)
            others = copies(params)
            ours = built(cls, others, way)
            ours.load_state_dict(through_a_file(theirs.state_dict()))
            for group in ours.param_groups:
                group.update({"foreach": None, "fused": None, "capturable": False, **way.flags})
            for p, q in zip(others, params, strict=True):
                kept = {key for key, x in theirs.state[q].items() if x is not None}
                assert set(ours.state[p]) - {"step"} == kept - {"step"}
            train(ours, others, 3, 3)
            train(theirs, params, 3, 3)
            back = copies(others)
            third = peer(back, **plain)
            third.load_state_dict(through_a_file(ours.state_dict()))
            third.param_groups[0].update(plain)
            for mine, want in zip(others, params, strict=True):
                torch.testing.assert_close(mine, want, **tolerance, msg=lambda text, o=given: f"{o}: {text}")
            train(third, back, 2, 6)
            train(theirs, params, 2, 6)
            for mine, want in zip(back, params, strict=True):
                torch.testing.assert_close(mine, want, **tolerance, msg=lambda text, o=given: f"{o}: {text}")


def through_a_file(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
