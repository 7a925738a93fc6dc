"""The base class: against torch.optim where that has the method, and against itself over all paths."""

import ast
import copy
import io
import pickle
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from optdsl import runtime
from optdsl.runtime import Facts, Hyper, State
from tests.runtime import standins
from tests.runtime.standins import ALL, AdamW, Chooser, ClippedSgd, DAdapt, Factored, Lamb, NAdam, Noisy, Sgd

SHAPES = ((3, 4), (5,), (), (2, 3, 2), (0,), (0, 3))
PATHS = [
    pytest.param({"foreach": False}, id="loop"),
    pytest.param({"foreach": True}, id="foreach"),
    pytest.param({"foreach": False, "capturable": True}, id="loop-capturable"),
    pytest.param({"foreach": True, "capturable": True}, id="foreach-capturable"),
]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EXACT = {"rtol": 0.0, "atol": 0.0}


def make(dtypes=(torch.float64,), shapes=SHAPES, seed=0):
    """New parameters; their values depend on the seed only, but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    params = []
    for number, shape in enumerate(shapes):
        dtype = dtypes[number % len(dtypes)]
        value = torch.randn((*shape, 2), generator=generator, dtype=torch.float64)
        value = torch.view_as_complex(value) if dtype.is_complex else value[..., 0]
        params.append(torch.nn.Parameter(value.to(dtype)))
    return params


def give_gradients(params, seed, factor=1.0):
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in params:
        value = factor * torch.randn((*p.shape, 2), generator=generator, dtype=torch.float64)
        p.grad = (torch.view_as_complex(value) if p.is_complex() else value[..., 0]).to(p.dtype)


def train(optimizer, params, steps=4, first=0, factor=1.0):
    for number in range(first, first + steps):
        give_gradients(params, number, factor)
        optimizer.step()
    return [p.detach() for p in params]


def fresh(cls, dtypes=(torch.float64,), shapes=SHAPES, **options):
    params = make(dtypes, shapes)
    return cls(params, **options), params


#: Every class on every path that it does not refuse.
EVERY = [
    pytest.param(cls, path.values[0], id=f"{cls.__name__}-{path.id}")
    for cls in ALL
    for path in PATHS
    if not (path.values[0].get("capturable") and cls._not_capturable)
]


# --- against torch.optim ---

SAME_METHOD = [
    pytest.param(AdamW, torch.optim.AdamW, {"weight_decay": 0.1}, id="AdamW"),
    pytest.param(AdamW, torch.optim.AdamW, {"weight_decay": 0.1, "amsgrad": True}, id="AdamW-amsgrad"),
    pytest.param(NAdam, torch.optim.NAdam, {"weight_decay": 0.1}, id="NAdam"),
    pytest.param(Sgd, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}, id="SGD"),
    pytest.param(
        Sgd,
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        id="SGD-momentum",
    ),
    pytest.param(
        Sgd,
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        id="SGD-nesterov",
    ),
]


def close_to_torch(cls, ours, theirs):
    """torch keeps the host state of NAdam in float32."""
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if cls is NAdam else {"rtol": 1e-12, "atol": 1e-13}
    for a, b in zip(ours, theirs, strict=True):
        if a.dtype in (torch.float64, torch.complex128):
            torch.testing.assert_close(a, b, **tolerance)
        else:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("cls,reference,options", SAME_METHOD)
def test_equals_torch(cls, reference, options, maximize, path):
    dtypes = (torch.float64, torch.float32, torch.complex128, torch.complex64)
    ours, params = fresh(cls, dtypes, maximize=maximize, **options, **path)
    theirs, others = fresh(reference, dtypes, maximize=maximize, **options)
    close_to_torch(cls, train(ours, params, 6), train(theirs, others, 6))
    for p, q in zip(params, others, strict=True):
        for key in set(theirs.state[q]) - {"mu_product"}:
            value = theirs.state[q][key]
            if value is not None:
                torch.testing.assert_close(ours.state[p][key], value, check_device=False)


@pytest.mark.parametrize("cls,reference,options", SAME_METHOD)
def test_state_dicts_go_both_ways(cls, reference, options):
    ours, params = fresh(cls, **options)
    theirs, others = fresh(reference, **options)
    train(theirs, others)
    train(ours, params)
    from_torch, loaded = fresh(cls)
    from_torch.load_state_dict(theirs.state_dict())
    from_ours, given = fresh(reference)
    from_ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    with torch.no_grad():
        for new, old in zip(loaded + given, others + params, strict=True):
            new.copy_(old)
    want = train(theirs, others, first=4)
    close_to_torch(cls, train(from_torch, loaded, first=4), want)
    close_to_torch(cls, train(from_ours, given, first=4), want)
    assert all(from_torch.param_groups[0][name] == value for name, value in options.items())


def test_a_state_dict_of_a_fused_optimizer_loads():
    theirs, others = fresh(torch.optim.AdamW, (torch.float32,), fused=True)
    train(theirs, others)
    ours, params = fresh(AdamW, (torch.float32,))
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["fused"] is None
    train(ours, params, first=4)
    assert all(state["step"].item() == 8 for state in ours.state.values())


def test_a_state_dict_without_steps_counts_from_one():
    theirs, others = fresh(torch.optim.SGD, momentum=0.9)
    train(theirs, others)
    plain, _ = fresh(torch.optim.SGD)
    train(plain, make())
    ours, params = fresh(Sgd)
    ours.load_state_dict(theirs.state_dict())
    assert {state["step"].item() for state in ours.state.values()} == {1.0}
    ours.load_state_dict(plain.state_dict())  # momentum_buffer is None, or nothing at all
    assert not any(ours.state.get(p) for p in params)
    train(ours, params)


def test_low_precision_rounds_once():
    ours, params = fresh(AdamW, (torch.bfloat16, torch.float16), lr=0.1)
    exact, others = fresh(torch.optim.AdamW, (torch.float32,), lr=0.1)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    give_gradients(params, 0)
    for p, q in zip(params, others, strict=True):
        q.grad = p.grad.float()
    ours.step()
    exact.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach().to(p.dtype), **EXACT)
        assert ours.state[p]["exp_avg"].dtype == p.dtype


# --- over all paths ---


@pytest.mark.parametrize("cls,path", EVERY)
def test_paths_agree(cls, path):
    shapes = SHAPES * 2
    base, params = fresh(cls, DTYPES, shapes)
    other, others = fresh(cls, DTYPES, shapes, **path)
    want, got = train(base, params, 5), train(other, others, 5)
    torch.testing.assert_close(got, want)
    for p, q in zip(params, others, strict=True):
        assert base.state[p].keys() == other.state[q].keys()
        for key, value in base.state[p].items():
            assert value.dtype == other.state[q][key].dtype
            torch.testing.assert_close(other.state[q][key], value, equal_nan=True)  # a mean of nothing


@pytest.mark.parametrize("cls,path", EVERY)
def test_maximize_is_minimize_of_the_negative(cls, path):
    up, params = fresh(cls, maximize=True, **path)
    down, others = fresh(cls, **path)
    torch.testing.assert_close(train(up, params), train(down, others, factor=-1.0), **EXACT)


@pytest.mark.parametrize("cls,path", EVERY)
def test_gradients_stay_and_parameters_without_them_are_left_alone(cls, path):
    optimizer, params = fresh(cls, maximize=True, **path)
    idle = params[1].detach().clone()
    for number in range(3):
        give_gradients(params, number)
        params[1].grad = None
        before = [None if p.grad is None else p.grad.clone() for p in params]
        optimizer.step()
        for p, g in zip(params, before, strict=True):
            assert (p.grad is None) if g is None else torch.equal(p.grad, g)
    assert torch.equal(params[1], idle)
    assert params[1] not in optimizer.state
    give_gradients(params, 9)
    optimizer.step()
    steps = [optimizer.state[p]["step"] for p in params]
    assert [step.item() for step in steps] == [4, 1, 4, 4, 4, 4]
    assert all(step.dtype == torch.float32 and step.shape == () for step in steps)
    assert not torch.equal(params[1], idle)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cls", [AdamW, NAdam])
def test_parameters_that_come_late_count_their_own_steps(cls, path):
    together, params = fresh(cls, **path)
    for number in range(8):
        give_gradients(params, number)
        if number < 3:
            params[0].grad = params[3].grad = None
        if number == 5:
            params[1].grad = None
        together.step()
    for skipped, position in (({0, 1, 2}, 0), ({5}, 1), (set(), 2), ({0, 1, 2}, 3)):
        alone, others = fresh(cls)
        for number in set(range(8)) - skipped:
            give_gradients(others, number)
            alone.step()
        torch.testing.assert_close(params[position], others[position])


@pytest.mark.parametrize("cls", ALL)
def test_layout_does_not_change_the_result(cls):
    for foreach in (False, True):
        plain, params = fresh(cls, shapes=((4, 6), (2, 3, 4, 5), (6,)), foreach=foreach)
        hostile = [
            torch.nn.Parameter(params[0].detach().mT.contiguous().mT),
            torch.nn.Parameter(params[1].detach().to(memory_format=torch.channels_last)),
            torch.nn.Parameter(params[2].detach().repeat_interleave(2)[::2]),
        ]
        optimizer = cls(hostile, foreach=foreach)
        torch.testing.assert_close(train(optimizer, hostile), train(plain, params), rtol=1e-12, atol=1e-13)
        if cls is AdamW:
            assert optimizer.state[hostile[1]]["exp_avg"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cls", [AdamW, NAdam, Lamb, Sgd, DAdapt, Noisy])
def test_complex_parameters_are_real_pairs(cls, path):
    options = {"momentum": 0.9} if cls is Sgd else {}
    complex_, params = fresh(cls, (torch.complex128,), **options, **path)
    pairs = [torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    real = cls(pairs, **options)
    for number in range(3):
        give_gradients(params, number)
        for p, q in zip(params, pairs, strict=True):
            q.grad = torch.view_as_real(p.grad).clone()
        complex_.step()
        real.step()
    torch.testing.assert_close([torch.view_as_real(p.detach()) for p in params], [q.detach() for q in pairs])
    for p in params:
        for key, value in complex_.state[p].items():
            spec = cls._specs.get(key)
            assert value.is_complex() == (spec is not None and spec.level == "element")


@pytest.mark.parametrize("foreach", [False, True])
def test_what_cannot_be_done_is_refused_by_name(foreach):
    optimizer, params = fresh(Factored, (torch.complex64,), foreach=foreach)
    give_gradients(params, 0)
    with pytest.raises(RuntimeError, match=r"^Factored does not support complex parameters$"):
        optimizer.step()
    optimizer, params = fresh(AdamW, foreach=foreach)
    params[0].grad = torch.zeros_like(params[0]).to_sparse()
    with pytest.raises(RuntimeError, match=r"^AdamW does not support sparse gradients$"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("foreach", [False, True])
def test_an_error_in_the_rule_leaves_its_tensor_untouched(foreach, monkeypatch):
    optimizer, params = fresh(NAdam, foreach=foreach)
    train(optimizer, params, 2)
    before = copy.deepcopy(optimizer.state_dict())
    late = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [late]})

    def failing(*args):
        raise ArithmeticError

    monkeypatch.setattr(NAdam, "_update", staticmethod(failing))
    give_gradients([*params, late], 3)
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert late not in optimizer.state
    after = optimizer.state_dict()["state"]
    for number, state in before["state"].items():
        for key, value in state.items():
            assert torch.equal(value, after[number][key])


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_states_may_pass_on_their_tensors(foreach, dtype):
    optimizer, params = fresh(Chooser, (dtype,), foreach=foreach)
    history = [[p.detach().clone() for p in params]]
    for number in range(4):
        train(optimizer, params, 1, first=number)
        history.append([p.detach().clone() for p in params])
    for i, p in enumerate(params):
        assert torch.equal(optimizer.state[p]["old"], history[3][i])
        assert torch.equal(optimizer.state[p]["older"], history[2][i])
        addresses = {value.data_ptr() for value in [p, p.grad, *optimizer.state[p].values()] if value.numel()}
        assert len(addresses) == sum(value.numel() > 0 for value in [p, p.grad, *optimizer.state[p].values()])


def test_foreach_buckets_hold_what_agrees(monkeypatch):
    sizes = []
    whole = NAdam._update_foreach

    def counting(p, *rest):
        sizes.append(len(p))
        return whole(p, *rest)

    monkeypatch.setattr(NAdam, "_update_foreach", staticmethod(counting))
    for capturable in (False, True):
        sizes.clear()
        optimizer, params = fresh(NAdam, (torch.float64, torch.float32), foreach=True, capturable=capturable)
        train(optimizer, params, 1)
        assert sizes == [3, 3]
        sizes.clear()
        give_gradients(params, 1)
        params[0].grad = None
        optimizer.step()
        assert sorted(sizes) == [2, 3]
        sizes.clear()
        train(optimizer, params, 1, first=2)
        assert sorted(sizes) == [1, 2, 3]
        sizes.clear()
        again = NAdam(params, foreach=True, capturable=capturable)
        again.load_state_dict(optimizer.state_dict())
        train(again, params, 1, first=3)
        assert sorted(sizes) == [1, 2, 3]
        sizes.clear()
        train(again, params, 1, first=4)
        assert sorted(sizes) == [1, 2, 3]


def test_addresses_stay():
    """Captured graphs and shared memory depend on it."""
    for path in ({"foreach": False}, {"foreach": True}):
        for cls in (AdamW, NAdam, Factored, DAdapt, Lamb):
            optimizer, params = fresh(cls, capturable=True, **path)
            train(optimizer, params, 1)
            tensors = [value for state in optimizer.state.values() for value in state.values()]
            tensors += [
                value for value in optimizer.param_groups[0].values() if isinstance(value, torch.Tensor)
            ]
            train(optimizer, params, 2, first=1)
            now = [value for state in optimizer.state.values() for value in state.values()]
            now += [value for value in optimizer.param_groups[0].values() if isinstance(value, torch.Tensor)]
            assert all(a is b for a, b in zip(tensors, now, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_random_numbers_depend_on_seed_step_and_tensor_only(path):
    a, params = fresh(Noisy, seed=3)
    b, others = fresh(Noisy, seed=3, **path)
    c, strangers = fresh(Noisy, seed=4, **path)
    torch.manual_seed(1)
    want = train(a, params)
    torch.manual_seed(2)
    torch.testing.assert_close(train(b, others), want)
    assert not torch.equal(train(c, strangers)[0], want[0])
    with pytest.raises(ValueError, match="Invalid seed value: -1"):
        Noisy(params, seed=-1)
    with pytest.raises(TypeError):
        Sgd(params, sede=1)


# --- autograd through the step ---


def _unrolled(cls, options, shape=(3, 2), steps=3):
    """The loss after some steps of training; the options may be tensors to differentiate by."""
    generator = torch.Generator().manual_seed(5)
    p = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    p = p.clone()
    optimizer = cls([p], differentiable=True, **options)
    for _ in range(steps):
        x = p.clone()
        (p.grad,) = torch.autograd.grad((x**4).sum() + x.sin().sum(), x, create_graph=True)
        optimizer.step()
    return (p**2).sum() + p.sum()


@pytest.mark.parametrize(
    "cls,options",
    [
        (AdamW, {"lr": 0.1, "weight_decay": 0.2, "eps": 0.1, "amsgrad": True}),
        (NAdam, {"lr": 0.1, "weight_decay": 0.2, "eps": 0.1, "momentum_decay": 0.3}),
        (Sgd, {"lr": 0.05, "momentum": 0.7, "dampening": 0.2, "weight_decay": 0.2}),
        (Lamb, {"lr": 0.1, "weight_decay": 0.2, "eps": 0.1}),
        (Factored, {"lr": 0.1, "beta2": 0.7, "weight_decay": 0.2}),
    ],
)
def test_hypergradients(cls, options):
    for name in (name for name, value in options.items() if isinstance(value, float)):
        value = torch.tensor(options[name], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(_unrolled(cls, {**options, name: value}), value)
        h = 1e-6
        with torch.enable_grad():
            above = _unrolled(cls, {**options, name: options[name] + h})
            below = _unrolled(cls, {**options, name: options[name] - h})
        assert slope.item() == pytest.approx(((above - below) / (2 * h)).item(), rel=1e-5, abs=1e-7), name


def test_hypergradients_by_parts_of_a_tuple_and_through_host_states():
    def loss(beta1):
        return _unrolled(NAdam, {"lr": 0.1, "weight_decay": 0.2, "eps": 0.1, "betas": (beta1, 0.99)})

    beta1 = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(beta1), beta1)
    h = 1e-6
    assert slope.item() == pytest.approx(((loss(0.8 + h) - loss(0.8 - h)) / (2 * h)).item(), rel=1e-5)


@pytest.mark.parametrize("cls", ALL)
def test_differentiable_computes_the_same(cls):
    plain, params = fresh(cls, (torch.float64, torch.float32))
    others = [p.detach().clone() for p in make((torch.float64, torch.float32))]
    optimizer = cls(others, differentiable=True)
    torch.testing.assert_close(train(optimizer, others), train(plain, params))


def test_differentiable_complex_parameters():
    plain, params = fresh(AdamW, (torch.complex128,))
    others = [p.detach().clone().requires_grad_().clone() for p in make((torch.complex128,))]
    optimizer = AdamW(others, differentiable=True)
    for number in range(3):
        give_gradients(params, number)
        give_gradients(others, number)
        plain.step()
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in others], [p.detach() for p in params])
    assert all(p.grad_fn is not None for p in others)


def test_differentiable_states_share_nothing_with_gradients():
    class Last(Sgd):
        @staticmethod
        def _initial(key, p, g, group, facts):
            return g

        @staticmethod
        def _update(p, g, state, group, t, facts, random):
            state["momentum_buffer"] = g
            return p - g

    p = torch.ones(3, requires_grad=True).clone()
    optimizer = Last([p], momentum=0.9, differentiable=True)
    p.grad = torch.ones(3, requires_grad=True) * 2.0
    optimizer.step()
    for state in (optimizer.state[p]["momentum_buffer"], p):
        assert state.requires_grad
        assert state.data_ptr() != p.grad.data_ptr()


def test_initial_values_may_come_as_matrices():
    class Slow(Chooser):
        @staticmethod
        def _live(group, facts):
            return ("wide", "gram")

        @staticmethod
        def _initial(key, p, g, group, facts):
            return runtime.as_matrix(p) if key == "wide" else 3.0

        @staticmethod
        def _update(p, g, state, group, t, facts, random):
            return p

    optimizer, params = fresh(Slow)
    train(optimizer, params, 1)
    for p in params:
        assert torch.equal(optimizer.state[p]["wide"], p.float())


def test_foreach_may_leave_its_inputs_alone(monkeypatch):
    """With `_foreach_inplace = False` the base hands out the real tensors, and stores what is new."""
    monkeypatch.setattr(NAdam, "_foreach_inplace", False)
    base, params = fresh(NAdam, DTYPES)
    optimizer, others = fresh(NAdam, DTYPES, foreach=True)
    torch.testing.assert_close(train(optimizer, others), train(base, params))
    monkeypatch.setattr(NAdam, "_update_foreach", staticmethod(lambda p, *rest: p))
    before = [p.detach().clone() for p in others]
    torch.testing.assert_close(train(optimizer, others), before, **EXACT)


def test_foreach_does_not_go_with_differentiable():
    params = [torch.ones(2, requires_grad=True).clone()]
    optimizer = AdamW(params, differentiable=True, foreach=True)
    params[0].grad = torch.ones(2)
    with pytest.raises(AssertionError, match="_foreach ops don't support autograd"):
        optimizer.step()


def test_grad_mode_of_the_caller_is_restored():
    optimizer, params = fresh(AdamW)
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            train(optimizer, params, 1)
            assert torch.is_grad_enabled() is mode
    assert all(value.grad_fn is None for state in optimizer.state.values() for value in state.values())


# --- options ---


@pytest.mark.parametrize(
    "options,message",
    [
        ({"lr": -1.0}, r"^Invalid learning rate: -1.0 \(must be in \[0, inf\)\)$"),
        ({"lr": float("nan")}, "^Invalid learning rate: nan"),
        ({"lr": torch.tensor(-1.0)}, "^Invalid learning rate: -1.0"),
        ({"lr": torch.tensor([1.0, 2.0])}, "^Tensor lr must be 1-element$"),
        ({"eps": -1.0}, "^Invalid epsilon value: -1.0"),
        ({"betas": (1.0, 0.9)}, r"^Invalid beta parameter at index 0: 1.0 \(must be in \[0, 1\)\)$"),
        ({"betas": (0.9, float("nan"))}, "^Invalid beta parameter at index 1: nan"),
        ({"betas": (0.9, torch.tensor([0.1, 0.2]))}, r"^Tensor betas\[1\] must be 1-element$"),
        ({"betas": (0.9,)}, "^betas must be 2 numbers"),
        ({"betas": 0.9}, "^betas must be 2 numbers"),
        ({"weight_decay": -0.1}, "^Invalid weight_decay value: -0.1"),
    ],
)
def test_values_outside_their_intervals(options, message):
    params = make()
    with pytest.raises(ValueError, match=message):
        AdamW(params, **options)
    with pytest.raises(ValueError, match=message):
        AdamW([{"params": params, **options}])
    optimizer = AdamW(params[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": params[1:], **options})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0].update(options)
    give_gradients(params, 0)
    with pytest.raises(ValueError, match=message):
        optimizer.step()


def test_other_words():
    params = make()
    with pytest.raises(ValueError, match=r"^Invalid momentum value: -1"):
        Sgd(params, momentum=-1)
    with pytest.raises(ValueError, match=r"^Invalid momentum_decay value: -1"):
        NAdam(params, momentum_decay=-1)
    with pytest.raises(ValueError, match=r"^Invalid dampening value: nan \(must be a number\)"):
        Sgd(params, dampening=float("nan"))
    with pytest.raises(ValueError, match=r"^Invalid every value: 21 \(must be in \[1, 20\]\)"):
        Chooser(params, every=21)
    with pytest.raises(ValueError, match=r"^Invalid mode value: 'l3' \(must be one of 'l2', 'sign'\)"):
        Chooser(params, mode="l3")


@pytest.mark.parametrize(
    "cls,options,message",
    [
        (AdamW, {"lr": "fast"}, r"^lr must be a number, not str \('fast'\)"),
        (AdamW, {"lr": None}, "^lr must be a number, not NoneType"),
        (AdamW, {"lr": True}, "^lr must be a number, not bool"),
        (AdamW, {"betas": ("a", 0.9)}, r"^betas\[0\] must be a number"),
        (AdamW, {"amsgrad": 2}, "^amsgrad must be True or False, not 2"),
        (Chooser, {"every": 2.0}, "^every must be an int, not float"),
        (Chooser, {"every": True}, "^every must be an int, not bool"),
        (Chooser, {"every": torch.tensor(2)}, "^every must be an int, not Tensor"),
        (AdamW, {"maximize": "False"}, "^maximize must be True or False, not 'False'"),
        (AdamW, {"capturable": None}, "^capturable must be True or False, not None"),
        (AdamW, {"differentiable": 2}, "^differentiable must be True or False, not 2"),
        (AdamW, {"foreach": "no"}, "^foreach must be True, False or None, not 'no'"),
        (AdamW, {"fused": 0.0}, "^fused must be True, False or None, not 0.0"),
    ],
)
def test_values_of_the_wrong_type(cls, options, message):
    with pytest.raises(TypeError, match=message):
        cls(make(), **options)
    with pytest.raises(TypeError, match=message):
        cls([{"params": make(), **options}])


def test_values_are_kept_in_plain_form():
    one = torch.tensor([0.1])
    optimizer = AdamW(
        make(), lr=one, betas=[np.float32(0.5), 0.75], eps=np.float64(1e-3), amsgrad=np.bool_(True)
    )
    group = optimizer.param_groups[0]
    assert group["lr"].shape == ()
    assert group["lr"].data_ptr() == one.data_ptr()
    assert group["betas"] == (0.5, 0.75)
    assert [type(group[name]) for name in ("betas", "eps", "amsgrad")] == [tuple, float, bool]
    assert AdamW(make(), amsgrad=1, maximize=1, foreach=0).param_groups[0]["amsgrad"] is True
    assert type(Chooser(make(), every=np.int64(3)).param_groups[0]["every"]) is int
    assert AdamW(make(), lr=1).param_groups[0]["lr"] == 1


def test_the_learning_rate_may_become_zero_but_not_start_there():
    with pytest.raises(ValueError, match=r"^Invalid learning rate: 0.0 \(must be in \(0, inf\)\)"):
        NAdam(make(), lr=0.0)
    optimizer, params = fresh(NAdam)
    optimizer.param_groups[0]["lr"] = 0.0
    before = [p.detach().clone() for p in params]
    torch.testing.assert_close(train(optimizer, params), before, **EXACT)


def test_flags_that_exclude_each_other():
    params = make()
    with pytest.raises(RuntimeError, match=r"^`fused` and `foreach` cannot be `True` together.$"):
        AdamW(params, fused=True, foreach=True)
    with pytest.raises(RuntimeError, match=r"^`fused` does not support `differentiable`$"):
        AdamW(params, fused=True, differentiable=True)
    with pytest.raises(RuntimeError, match=r"^AdamW has no fused kernel"):
        AdamW(params, fused=True)
    with pytest.raises(RuntimeError, match=r"^Chooser does not support `capturable`: `every` needs"):
        Chooser(params, capturable=True)
    with pytest.raises(RuntimeError, match="has no fused kernel"):
        AdamW([{"params": params, "fused": True}])
    AdamW(params, fused=False)
    with pytest.raises(TypeError):
        AdamW(params, 1e-3, (0.9, 0.99), 1e-8, 0.1, False, True)
    with pytest.raises(TypeError):
        AdamW(params, momentun=0.9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cls", [AdamW, NAdam, Lamb, Factored])
def test_a_tensor_learning_rate_is_a_number(cls, path):
    number, params = fresh(cls, lr=0.125, **path)
    lr = torch.tensor([0.125])
    tensor, others = fresh(cls, lr=lr, **path)
    torch.testing.assert_close(train(tensor, others), train(number, params), rtol=1e-12, atol=1e-13)
    lr.fill_(0.25)
    number.param_groups[0]["lr"] = 0.25
    torch.testing.assert_close(
        train(tensor, others, first=4), train(number, params, first=4), rtol=1e-12, atol=1e-13
    )
    if not path.get("capturable"):
        lr.fill_(-1.0)
        with pytest.raises(ValueError, match="Invalid learning rate"):
            tensor.step()


def test_options_under_capturable_are_tensors_of_the_device(monkeypatch):
    seen = {}

    def look(p, g, state, group, t, facts, random):
        seen.update(group=dict(group), t=t, mu=state["mu_product"])
        return p

    monkeypatch.setattr(NAdam, "_update", staticmethod(look))
    optimizer, params = fresh(NAdam, lr=torch.tensor([0.1]), betas=(torch.tensor(0.5), 0.9), capturable=True)
    train(optimizer, params, 1)
    for value in (seen["group"]["lr"], seen["group"]["betas"][0], seen["t"], seen["mu"]):
        assert value.dtype == torch.float64
        assert value.shape == ()
    assert type(seen["group"]["betas"][1]) is float
    assert seen["t"].item() == 1.0
    optimizer, params = fresh(NAdam, lr=torch.tensor([0.5]))
    train(optimizer, params, 2)
    assert (seen["group"]["lr"], seen["t"], seen["mu"]) == (0.5, 2, 1.0)
    assert type(seen["t"]) is int
    assert type(seen["group"]["lr"]) is type(seen["mu"]) is float


def test_groups_have_their_own_options():
    params, others = make(), make()
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "amsgrad": True, "maximize": True}]
    theirs = [{"params": others[:2], "lr": 0.1}, {"params": others[2:], "amsgrad": True, "maximize": True}]
    ours, reference = AdamW(groups, weight_decay=0.2), torch.optim.AdamW(theirs, weight_decay=0.2)
    close_to_torch(AdamW, train(ours, params), train(reference, others))
    assert "max_exp_avg_sq" in ours.state[params[2]]
    assert "max_exp_avg_sq" not in ours.state[params[0]]


@pytest.mark.parametrize("path", PATHS)
def test_a_branch_taken_later_gets_its_state_then(path):
    optimizer, params = fresh(AdamW, **path)
    reference, others = fresh(AdamW)
    train(optimizer, params, 2)
    train(reference, others, 2)
    assert "max_exp_avg_sq" not in optimizer.state[params[0]]
    optimizer.param_groups[0]["amsgrad"] = reference.param_groups[0]["amsgrad"] = True
    torch.testing.assert_close(train(optimizer, params, 2, first=2), train(reference, others, 2, first=2))
    assert (optimizer.state[params[0]]["max_exp_avg_sq"] > 0).all()
    sgd, params = fresh(Sgd, **path)
    train(sgd, params, 2)
    assert set(sgd.state[params[0]]) == {"step"}
    sgd.param_groups[0]["momentum"] = 0.9
    train(sgd, params, 2, first=2)
    assert sgd.state[params[0]]["step"].item() == 4
    assert "momentum_buffer" in sgd.state[params[0]]


def test_add_param_group_while_training():
    optimizer, params = fresh(AdamW, lr=0.1)
    train(optimizer, params, 3)
    late = make(seed=7)
    optimizer.add_param_group({"params": late, "lr": 0.2})
    others = make(seed=7)
    alone = AdamW(others, lr=0.2)
    train(alone, others, 2)
    train(optimizer, late, 2)
    torch.testing.assert_close(late, others)
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group(late)


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    optimizer = AdamW(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    again = AdamW(model.named_parameters())
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("foreach", [False, True])
def test_schedulers_are_obeyed(foreach):
    def schedules(optimizer):
        warm = lr_scheduler.LambdaLR(optimizer, lambda i: i / 3)  # starts at 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cycle = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)  # changes betas as well
        return warm, cycle

    for which in (0, 1):
        ours, params = fresh(AdamW, lr=0.1, weight_decay=0.3, foreach=foreach)
        theirs, others = fresh(torch.optim.AdamW, lr=0.1, weight_decay=0.3)
        for optimizer, tensors in ((ours, params), (theirs, others)):
            schedule = schedules(optimizer)[which]
            for number in range(6):
                train(optimizer, tensors, 1, first=number)
                schedule.step()
        close_to_torch(AdamW, params, others)
        assert ours.param_groups[0]["betas"] == theirs.param_groups[0]["betas"]


# --- saving and loading ---


def numbers(optimizer):
    """All tensors of an optimizer, by place."""
    states = optimizer.state_dict()
    found = {
        (number, key): value for number, state in states["state"].items() for key, value in state.items()
    }
    for number, group in enumerate(states["param_groups"]):
        found |= {("group", number, key): v for key, v in group.items() if isinstance(v, torch.Tensor)}
    return found


def assert_same_numbers(a, b):
    a, b = numbers(a), numbers(b)
    assert a.keys() == b.keys()
    for place, value in a.items():
        assert b[place].dtype == value.dtype, place
        assert b[place].device == value.device
        torch.testing.assert_close(b[place], value, equal_nan=True, msg=str(place), **EXACT)


def through_file(value, weights_only=True):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize("cls,path", EVERY)
def test_resuming_is_not_having_stopped(cls, how, path):
    optimizer, params = fresh(cls, DTYPES, **path)
    train(optimizer, params, 3)
    if how == "pickle":
        resumed, others = pickle.loads(pickle.dumps((optimizer, params)))
    elif how == "deepcopy":
        resumed, others = copy.deepcopy((optimizer, params))
    else:
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        resumed = cls(others, **path)
        saved = optimizer.state_dict()
        resumed.load_state_dict(through_file(saved) if how == "file" else saved)
    assert resumed.param_groups[0]["params"][0] is others[0]
    assert_same_numbers(optimizer, resumed)
    torch.testing.assert_close(
        train(resumed, others, 3, first=3), train(optimizer, params, 3, first=3), **EXACT
    )
    assert_same_numbers(optimizer, resumed)


def test_state_dict_is_flat_and_holds_tensors_only():
    for cls in ALL:
        optimizer, params = fresh(cls)
        train(optimizer, params, 1)
        for state in optimizer.state_dict()["state"].values():
            assert all(isinstance(value, torch.Tensor) for value in state.values())
        assert set(optimizer.__getstate__()) == {"defaults", "state", "param_groups"}


def test_states_are_kept_as_declared():
    optimizer, params = fresh(Chooser, (torch.bfloat16,))
    train(optimizer, params, 2)
    state = optimizer.state[params[0]]
    kept = {key: value.dtype for key, value in state.items()}
    assert kept == {
        "step": torch.float32,
        "wide": torch.float32,
        "narrow": torch.bfloat16,
        "older": torch.bfloat16,
        "old": torch.bfloat16,
        "gram": torch.float64,
    }
    assert state["gram"].shape == (3, 3)
    lamb, params = fresh(Lamb, (torch.bfloat16,))
    train(lamb, params, 2)
    assert lamb.state[params[0]]["trust"].dtype == torch.float32
    nadam, params = fresh(NAdam, (torch.bfloat16,))
    train(nadam, params, 2)
    assert nadam.state[params[0]]["mu_product"].dtype == torch.float64


def test_shapes_of_all_levels():
    from optdsl.runtime.states import create_state, facts_of, state_shape

    assert facts_of(torch.Size((2, 3, 4))) == Facts(ndim=3, numel=24, rows=2, cols=12)
    assert facts_of(torch.Size(())) == Facts(0, 1, 1, 1)
    assert facts_of(torch.Size((5,))) == Facts(1, 5, 5, 1)
    assert facts_of(torch.Size((0, 5))) == Facts(2, 0, 0, 5)
    shapes = {
        "element": ((2, 3, 4), (5,), ()),
        "rows": ((2, 1, 1), (5,), ()),
        "cols": ((1, 3, 4), (1,), ()),
        "tensor": ((), (), ()),
        "host": ((), (), ()),
        "rows,rows": ((2, 2), (5, 5), (1, 1)),
        "cols,cols": ((12, 12), (1, 1), (1, 1)),
        "cols,rows": ((12, 2), (1, 5), (1, 1)),
        "rows, cols": ((2, 3, 4), (5,), ()),
    }
    for level, wanted in shapes.items():
        spec = State("x", level)
        for shape, want in zip(((2, 3, 4), (5,), ()), wanted, strict=True):
            assert state_shape(spec.level, torch.Size(shape)) == want
            state = create_state(spec, torch.ones(shape), 2.0)
            assert state.shape == want
            assert (state == 2.0).all()
    with pytest.raises(ValueError, match="stored 'q3'"):
        State("x", "element", "q3")


def test_loading_shares_no_memory_and_moves_to_the_dtype_that_is_kept():
    optimizer, params = fresh(AdamW)
    train(optimizer, params, 2)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other, others = fresh(AdamW, (torch.bfloat16,))
    twin, twins = fresh(AdamW)
    other.load_state_dict(saved)
    twin.load_state_dict(saved)
    assert other.state[others[0]]["exp_avg"].dtype == torch.bfloat16
    assert other.state[others[0]]["step"].dtype == torch.float32
    train(other, others, 2)
    train(twin, twins, 2)
    for (number, key), value in numbers(optimizer).items():
        assert torch.equal(value, before["state"][number][key])


def test_options_that_a_state_dict_lacks_stay():
    optimizer, _ = fresh(AdamW, weight_decay=0.3, lr=0.5)
    saved = optimizer.state_dict()
    for name in ("weight_decay", "capturable", "foreach", "fused", "maximize", "differentiable", "amsgrad"):
        del saved["param_groups"][0][name]
    other, _ = fresh(AdamW, weight_decay=0.4, lr=0.6, amsgrad=True, foreach=True)
    other.load_state_dict(saved)
    group = other.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["amsgrad"], group["foreach"]) == (0.5, 0.4, True, True)
    assert group["fused"] is None
    train(other, other.param_groups[0]["params"])


def test_an_older_pickle_gets_the_options_it_lacks():
    optimizer, params = fresh(AdamW, weight_decay=0.3)
    train(optimizer, params, 1)
    state = copy.deepcopy(optimizer.__getstate__())
    for holder in (state["defaults"], state["param_groups"][0]):
        for name in ("weight_decay", "amsgrad", "capturable", "fused"):
            del holder[name]
    for entry in state["state"].values():
        entry["step"] = 1  # as torch did long ago
    old = AdamW.__new__(AdamW)
    old.__setstate__(state)
    group = old.param_groups[0]
    assert (group["weight_decay"], group["amsgrad"], group["capturable"]) == (0.01, False, False)
    train(old, group["params"], 1)
    assert old.state[group["params"][0]]["step"].item() == 2


def test_a_state_of_another_shape_is_refused():
    optimizer, params = fresh(Factored, shapes=((3, 4),))
    train(optimizer, params, 1)
    other, _ = fresh(Factored, shapes=((4, 3),))
    with pytest.raises(ValueError, match=r"state 'row_var' of the loaded state dict has shape \(3, 1\)"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        AdamW([{"params": make()}, {"params": make(seed=1)}]).load_state_dict(fresh(AdamW)[0].state_dict())


def test_unknown_entries_survive():
    optimizer, params = fresh(AdamW, (torch.bfloat16,))
    train(optimizer, params, 1)
    optimizer.state[params[0]]["mine"] = torch.ones(3, dtype=torch.float64)
    optimizer.param_groups[0]["note"] = "kept"
    other, others = fresh(AdamW, (torch.bfloat16,))
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[others[0]]["mine"], torch.ones(3, dtype=torch.float64))
    assert other.param_groups[0]["note"] == "kept"
    train(other, others, 1)


def test_hooks_of_loading_and_saving_run():
    optimizer, params = fresh(AdamW)
    train(optimizer, params, 1)
    other, others = fresh(AdamW)
    seen = []

    def before(opt, state_dict):
        seen.append(isinstance(state_dict["state"][0]["exp_avg"], torch.Tensor))
        entry = {**state_dict["state"][0], "step": torch.tensor(41.0)}
        return {**state_dict, "state": {**state_dict["state"], 0: entry}}

    other.register_load_state_dict_pre_hook(before)
    other.register_load_state_dict_post_hook(lambda opt: seen.append(opt.state[others[1]]["exp_avg"].dtype))
    other.load_state_dict(optimizer.state_dict())
    assert seen == [True, torch.float64]
    assert other.state[others[0]]["step"].item() == 41.0
    assert len(other._optimizer_load_state_dict_pre_hooks) == 1


def test_capturable_switched_on_or_off_after_loading():
    optimizer, params = fresh(NAdam)
    reference, others = fresh(NAdam)
    train(optimizer, params, 2)
    optimizer.param_groups[0]["capturable"] = True
    train(optimizer, params, 2, first=2)
    optimizer.param_groups[0]["capturable"] = False
    train(optimizer, params, 2, first=4)
    torch.testing.assert_close([p.detach() for p in params], train(reference, others, 6))


def test_distributed_checkpoints():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    for cls in (NAdam, DAdapt):
        model = torch.nn.Linear(3, 2)
        optimizer = cls(model.parameters())
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        saved = get_optimizer_state_dict(model, optimizer)
        other = cls(model.parameters())
        set_optimizer_state_dict(model, other, saved)
        assert_same_numbers(optimizer, other)


# --- as a torch optimizer ---


def test_closures_hooks_and_profiler():
    optimizer, params = fresh(AdamW)
    calls = []
    handles = [
        optimizer.register_step_pre_hook(lambda *args: calls.append("before")),
        optimizer.register_step_post_hook(lambda *args: calls.append("after")),
    ]

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        calls.append("closure")
        return loss

    with torch.no_grad(), torch.autograd.profiler.profile() as profile:
        first = optimizer.step(closure)
    assert first.item() == pytest.approx(sum((p**2).sum() for p in make()).item())
    assert optimizer.step(closure) < first
    assert calls == ["before", "closure", "after"] * 2
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}
    for handle in handles:
        handle.remove()
    assert optimizer.step() is None
    assert calls == ["before", "closure", "after"] * 2
    assert "step" not in vars(optimizer)


def test_an_optimizer_without_gradients_does_nothing():
    for cls in ALL:
        optimizer, params = fresh(cls)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        assert not optimizer.state
        torch.testing.assert_close([p.detach() for p in params], before, **EXACT)
    with pytest.raises(ValueError, match="empty parameter list"):
        AdamW([])


def test_grad_scaler_skips_overflows():
    optimizer, params = fresh(AdamW, (torch.float32,), shapes=((3,), (2, 2)))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    plain, others = fresh(AdamW, (torch.float32,), shapes=((3,), (2, 2)))
    scaler.scale(torch.ones(()))  # makes the scale
    for number in range(3):
        give_gradients(params, number, factor=scaler.get_scale())
        give_gradients(others, number)
        if number == 1:
            params[0].grad[0] = float("inf")
        else:
            plain.step()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in others])
    assert optimizer.state[params[0]]["step"].item() == 2


def test_subclasses_and_repr():
    class Mine(AdamW):
        _hypers = (*AdamW._hypers, Hyper("extra", "float"))

        def __init__(self, params, extra=1.0):
            options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}
            super(AdamW, self).__init__(params, {**options, "extra": extra})

    optimizer = Mine(make())
    train(optimizer, optimizer.param_groups[0]["params"], 1)
    assert "extra: 1.0" in repr(optimizer)
    assert repr(optimizer).startswith("Mine (")


def test_sharded_parameters():
    """In one process; tests/distributed has several."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for cls, store in (
            (AdamW, None),
            (AdamW, "bf16_sr"),
            (ClippedSgd, None),
            (DAdapt, None),
            (Noisy, None),
        ):
            for foreach in (False, True):
                params = make(shapes=((4, 3), (6,)))
                plain = cls([{"params": params, "store": store}], foreach=foreach)
                shards = [torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in params]
                optimizer = cls([{"params": shards, "store": store}], foreach=foreach)
                for number in range(3):
                    give_gradients(params, number)
                    for p, q in zip(params, shards, strict=True):
                        q.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
                    plain.step()
                    optimizer.step()
                for p, q in zip(params, shards, strict=True):
                    assert torch.equal(q.full_tensor(), p)
                    assert q.grad is not None
                    assert q._local_tensor.grad is None
                    for key, value in plain.state[p].items():
                        found = optimizer.state[q][key]
                        assert torch.equal(getattr(found, "full_tensor", lambda x=found: x)(), value)
        for cls in (Factored, Lamb):
            with pytest.raises(
                RuntimeError, match=f"{cls.__name__} does not support sharded.*an older version"
            ):
                cls(shards)
        large = torch.nn.Parameter(distribute_tensor(torch.ones(4096), mesh, [Shard(0)]))
        for flags, reason in (
            ({"differentiable": True}, "`differentiable`"),
            ({"store": "q8"}, "'exp_avg' is kept in codes"),
        ):
            with pytest.raises(RuntimeError, match=f"AdamW does not support sharded.*{reason}"):
                AdamW([{"params": [large], **flags}])
        partial = torch.nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
        with pytest.raises(RuntimeError, match=r"AdamW does not support sharded.*placed as Partial"):
            AdamW([partial])
        optimizer = AdamW(shards)
        shards[0].grad = None
        shards[1].grad = distribute_tensor(torch.ones(6, dtype=torch.float64), mesh, [Shard(0)])
        optimizer.param_groups[0]["differentiable"] = True
        with pytest.raises(RuntimeError, match="does not support sharded"):
            optimizer.step()
    finally:
        distributed.destroy_process_group()


def test_step_under_torch_compile():
    optimizer, params = fresh(AdamW)
    reference, others = fresh(AdamW)
    step = torch.compile(optimizer.step, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(3):
            give_gradients(params, number)
            step()
    torch.testing.assert_close([p.detach() for p in params], train(reference, others, 3), **EXACT)


# --- as text ---

ORDER = (
    *("host", "random", "storage", "states", "ops", "checks", "rule", "groups", "shards", "joint"),
    *("inputs", "units", "optimizer"),
)


def without_own_imports(path):
    """The text of a module, without the lines that import this package."""
    text = Path(path).read_text()
    own = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("optdsl")
    ]
    lines = text.splitlines()
    for node in own:
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines)


def test_the_modules_can_be_pasted_into_one_file():
    folder = Path(runtime.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} >= set(ORDER)
    texts = [without_own_imports(folder / f"{name}.py") for name in ORDER]
    defined = []
    for text in texts:
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.append(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined += {target.id for target in targets if isinstance(target, ast.Name)}
            else:
                assert isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr, ast.If)), ast.dump(node)
                assert not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    assert len(defined) == len(set(defined))
    pasted = types.ModuleType("pasted")
    exec("\n".join(texts), vars(pasted))
    vars(pasted)["host"] = types.SimpleNamespace(**vars(runtime.host))
    exec(without_own_imports(standins.__file__), vars(pasted))
    assert not issubclass(pasted.NAdam, runtime.Optimizer)
    for name in ("NAdam", "DAdapt", "Noisy"):
        optimizer, params = fresh(getattr(pasted, name), foreach=True)
        original, others = fresh(getattr(standins, name), foreach=True)
        torch.testing.assert_close(train(optimizer, params), train(original, others), **EXACT)
