"""Construction: the signature, what is refused and in which words, what may be given, where it is kept."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from tests.contract.subjects import (
    FLAGS,
    WAYS,
    Options,
    Refused,
    lacking,
    of_torch,
    only,
    step,
    torch_class,
    train,
)

SEED = {"seed": None}


def parameter() -> Parameter:
    return Parameter(torch.tensor([1.0, -2.0]))


def stepping(optimizer: Any) -> None:
    """Takes a step with a gradient for every parameter."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    step(optimizer)


# ---- the signature ---------------------------------------------------------------------------------------


def test_the_signature(cls: Any) -> None:
    """Options that may be given by place, then flags that may not; types for all; nothing is swallowed."""
    given = inspect.signature(cls).parameters
    options = [hyper.name for hyper in cls._hypers]
    flags = [*FLAGS, *(["seed"] if "seed" in given else [])]
    assert list(given)[: 1 + len(options)] == ["params", *options]
    assert set(list(given)[1 + len(options) :]) == set(flags)
    assert ("seed" in given) >= cls._random
    for name, p in given.items():
        if name in flags:
            assert p.kind is p.KEYWORD_ONLY
            assert p.default is {**FLAGS, **SEED}[name]
        else:
            assert p.kind is p.POSITIONAL_OR_KEYWORD
            assert (p.default is p.empty) is (name == "params")
    for function in (cls.__init__, cls._live, cls._update, cls._update_foreach, cls._kernel):
        hints = typing.get_type_hints(function)
        assert set(hints) - {"return"} == set(inspect.signature(function).parameters) - {"self"}
        assert "return" in hints
    if "lr" in options:
        assert typing.get_type_hints(cls.__init__)["lr"] == float | torch.Tensor
    for wrong in ("larning_rate", "weight_decai", "lrr", "param", "step"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}'"):
            cls([parameter()], **{wrong: 0.1})
    defaults = [p.default for p in given.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    cls([parameter()], *defaults)
    with pytest.raises(TypeError, match="positional argument"):
        cls([parameter()], *defaults, True)


def test_all_configuration_is_in_the_groups(cls: Any) -> None:
    optimizer = cls([parameter()])
    known = {hyper.name for hyper in cls._hypers} | set(FLAGS) | ({"seed"} & set(optimizer.defaults))
    assert set(optimizer.defaults) == known
    assert set(optimizer.param_groups[0]) == {"params", *known}
    assert all(key.startswith("_") for key in set(vars(optimizer)) - {"defaults", "state", "param_groups"})


# ---- parameters ------------------------------------------------------------------------------------------


def test_parameters_in_all_forms(cls: Any) -> None:
    """A list, a generator, names, groups, groups with names, in any order; one tensor alone is a mistake."""
    model = torch.nn.Linear(3, 2)
    first, second = model.parameters()
    forms = {
        "list": [first, second],
        "generator": model.parameters(),
        "names": model.named_parameters(),
        "groups": [{"params": first}, {"params": [second]}],
        "groups with names": [{"params": [("a", first)]}, {"params": [("b", second)]}],
    }
    for form, params in forms.items():
        optimizer = cls(params)
        found = [p for group in optimizer.param_groups for p in group["params"]]
        assert found[0] is first, form
        assert found[1] is second, form
        names = [name for group in optimizer.param_groups for name in group.get("param_names", [])]
        assert names == {"names": ["weight", "bias"], "groups with names": ["a", "b"]}.get(form, [])
        train(optimizer, found, 1)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (first, TypeError, "an iterable of Tensors or dicts"),
        ([], ValueError, "empty parameter list"),
        ([first, 1], TypeError, "can only optimize Tensors"),
        ([first * 2], ValueError, "can't optimize a non-leaf Tensor"),
        ([("a", first), second], ValueError, "all optimizer params should be with/without names"),
        ([{"params": [first]}, {"params": [("b", second)]}], ValueError, "cannot add param group with names"),
        ([{"params": first}, {"params": first}], ValueError, "appear in more than one parameter group"),
        ([{"params": {first, second}}], TypeError, "ordered collections"),
    ]
    for params, error, words in wrong:
        with pytest.raises(error, match=words):
            cls(params)
    with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
        cls([first, first])


# ---- flags -----------------------------------------------------------------------------------------------


def test_flags_that_do_not_go_together(cls: Any) -> None:
    """In the words of torch, at once, for a group as well; what a class lacks is refused by its name."""
    for make in (
        lambda **flags: cls([parameter()], **flags),
        lambda **flags: cls([{"params": parameter(), **flags}]),
    ):
        with pytest.raises(RuntimeError, match=r"^`fused` and `foreach` cannot be `True` together\.$"):
            make(fused=True, foreach=True)
        with pytest.raises(RuntimeError, match=r"^`fused` does not support `differentiable`$"):
            make(fused=True, differentiable=True)
        make(fused=False)
        if cls._native is None:
            with pytest.raises(RuntimeError, match=f"^{cls.__name__} has no fused kernel: "):
                make(fused=True)
        if cls._not_capturable:
            with pytest.raises(RuntimeError, match=f"^{cls.__name__} does not support `capturable`: "):
                make(capturable=True)
    optimizer = cls([torch.ones(2)], differentiable=True, foreach=True)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    with pytest.raises(AssertionError, match="_foreach ops don't support autograd"):
        step(optimizer)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "native"),
        ({"fused": True}, "native"),
        ({"fused": False}, "loop"),
        ({"foreach": False}, "loop"),
        ({"foreach": True}, "foreach"),
        ({"capturable": True}, "loop"),
    ],
    ids=str,
)
def test_which_way_a_step_takes(
    cls: Any, flags: Options, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native kernels by default, and where they are asked for."""
    if expected == "native" and (reason := lacking(WAYS["native"])):
        pytest.skip(reason)
    if "capturable" in flags and cls._not_capturable:
        raise Refused(f"{cls.__name__} does not support `capturable`: {cls._not_capturable}")
    if flags.get("fused") and cls._native is None:
        raise Refused(f"{cls.__name__} has no fused kernel: {cls._no_kernels}")
    taken = set()

    def noting(way: str, function: Any) -> Any:
        return staticmethod(lambda *arguments: taken.add(way) or function(*arguments))

    monkeypatch.setattr(cls, "_update", noting("loop", cls._update))
    monkeypatch.setattr(cls, "_update_foreach", noting("foreach", cls._update_foreach))
    p = parameter()
    p.grad = torch.ones_like(p)
    optimizer = cls([p], **flags)
    step(optimizer)
    assert optimizer.state[p]["step"] == 1
    assert (taken or {"native"}) == {"loop" if cls._native is None and expected == "native" else expected}


# ---- values ----------------------------------------------------------------------------------------------


def ends(interval: str) -> tuple[float, float]:
    """The lower and the upper end of an interval."""
    low, high = map(float, interval[1:-1].split(",")) if interval else (-math.inf, math.inf)
    return low, high


def allowed(interval: str) -> float:
    """A number in it."""
    low, high = ends(interval)
    return (
        0.5 * (low + high)
        if math.isfinite(low + high)
        else low + 1
        if low > -math.inf
        else min(high - 1, 0.5)
    )


def outside(hyper: Any) -> Iterator[tuple[Any, type[Exception]]]:
    """(value, error) pairs that a hyperparameter refuses, in the form of its constructor argument."""
    if hyper.kind == "bool":
        yield from [("yes", TypeError), (2, TypeError), (1.0, TypeError), (None, TypeError)]
        return
    if hyper.kind == "choice":
        yield from [("nope", ValueError), (1, ValueError), (None, ValueError)]
        return
    if hyper.many:
        good = 1 if hyper.kind == "int" else 1.0
        for value, error in outside(replace(hyper, many=False)):
            if value != [] and not isinstance(value, torch.Tensor):
                yield (good, value), error
        yield from [([], ValueError), (good, TypeError), ("ab", TypeError), (None, TypeError)]
        return
    low, high = ends(hyper.interval)
    if hyper.kind == "int":
        found: list[tuple[Any, type[Exception]]] = [
            *((int(x), ValueError) for x in (low - 1, high + 1) if math.isfinite(x)),
            *((math.nan, TypeError), (0.5, TypeError), ("1", TypeError), (True, TypeError)),
        ]
    else:
        values = [math.nan]
        values += [math.nextafter(low, -math.inf), low - 1] if low > -math.inf else []
        values += [math.nextafter(high, math.inf), high + 1] if high < math.inf else []
        values += [low] if hyper.interval.startswith("(") and low > -math.inf else []
        values += [high] if hyper.interval.endswith(")") else []
        found = [(value, ValueError) for value in values]
        found += [
            ("0.1", TypeError),
            (True, TypeError),
            ([], TypeError),
            (torch.tensor(math.nan), ValueError),
        ]
    if not hyper.parts:
        yield from found
        return
    good = [allowed(hyper.within(index)) for index in range(len(hyper.parts))]
    for index in range(len(good)):
        part = replace(hyper, parts=(), intervals=(), interval=hyper.within(index))
        yield from (((*good[:index], value, *good[index + 1 :]), error) for value, error in outside(part))
    yield from [((*good, good[0]), ValueError), (good[0], ValueError), ("ab", ValueError)]


def test_wrong_values_are_refused_wherever_they_come_from(cls: Any) -> None:
    """The constructor, a group, a group that comes later, nan included; nothing is added then."""
    for hyper in cls._hypers:
        for value, error in outside(hyper):
            named = f"{hyper.name.replace('_', '.')}|learning rate|epsilon|beta|Learning rate"
            with pytest.raises(error, match=named):
                cls([parameter()], **{hyper.name: value})
            with pytest.raises(error):
                cls([{"params": [parameter()], hyper.name: value}])
            optimizer = cls([parameter()])
            with pytest.raises(error):
                optimizer.add_param_group({"params": [parameter()], hyper.name: value})
            assert len(optimizer.param_groups) == 1


def test_wrong_values_are_refused_when_they_come_later(cls: Any) -> None:
    """The next step says so and changes nothing; with a good value it goes on."""
    p = parameter()
    optimizer = cls([p])
    stepping(optimizer)
    for hyper in cls._hypers:
        for value, error in outside(hyper):
            if hyper.name == "lr" and not isinstance(value, str | torch.Tensor) and value == 0:
                continue  # a schedule may end at 0
            before = p.detach().clone()
            optimizer.param_groups[0][hyper.name] = value
            with pytest.raises(error):
                stepping(optimizer)
            assert torch.equal(p.nan_to_num(0.5), before.nan_to_num(0.5))
            optimizer.param_groups[0][hyper.name] = optimizer.defaults[hyper.name]
    stepping(optimizer)


def extremes(hyper: Any, interval: str) -> list[Any]:
    """The values at, or next to, the ends of what a number may be; all values of a switch or choice."""
    if hyper.kind in ("bool", "choice"):
        return [True, False, np.bool_(True), 1, 0] if hyper.kind == "bool" else list(hyper.choices)
    low, high = ends(interval) if interval else (-1e9, 1e9)
    values: list[Any] = [low] if interval.startswith("[") else [math.nextafter(low, math.inf)]
    values += [high] if interval.endswith("]") else [math.nextafter(high, -math.inf)]
    if hyper.kind == "int":
        values = [int(value) for value in values] + [np.int64(low)]
    return values + [None] * (interval.endswith("inf]") and not hyper.parts)


def test_the_ends_of_an_interval_are_allowed_as_it_says(cls: Any) -> None:
    for hyper in cls._hypers:
        if hyper.parts:
            given = list(
                zip(*(extremes(hyper, hyper.within(n)) for n in range(len(hyper.parts))), strict=True)
            )
        else:
            given = [(value,) * 2 if hyper.many else value for value in extremes(hyper, hyper.interval)]
        for value in given:
            kept = cls([parameter()], **{hyper.name: value}).param_groups[0][hyper.name]
            assert type(kept) in (bool, int, float, str, tuple)


def test_a_rate_in_a_tensor(cls: Any) -> None:
    """One element, kept as 0-dim view; each group may have its own."""
    if not any(hyper.name == "lr" for hyper in cls._hypers):
        raise Refused(f"{cls.__name__} has no learning rate")
    for rate in (torch.tensor(0.125), torch.tensor([0.125]), torch.tensor([[0.125]], dtype=torch.float64)):
        group = cls([{"params": parameter(), "lr": rate}]).param_groups[0]
        assert group["lr"].shape == ()
        assert group["lr"].data_ptr() == rate.data_ptr()
    for rate in (torch.ones(2), torch.ones(0)):
        with pytest.raises(ValueError, match=r"^Tensor lr must be 1-element$"):
            cls([parameter()], lr=rate)


def refusal(make: Any, options: Options) -> str | None:
    """What is said about wrong options, or None."""
    try:
        make([torch.zeros(1, 1)], **options)
    except ValueError as error:
        return str(error)
    return None


WRONG: list[Options] = [
    *({"lr": -1.0}, {"lr": torch.ones(2)}, {"eps": -1.0}, {"betas": (1.0, 0.5)}, {"betas": (0.5, -0.1)}),
    *(
        {"weight_decay": -1.0},
        {"momentum": -0.5},
        {"rho": 2.0},
        {"lr_decay": -0.1},
        {"beta2_decay": 1.0},
        {"d": 0.5},
    ),
    *({"etas": (1.2, 0.5)}, {"etas": (0.5, 0.9)}, {"etas": (0.0, 1.2)}, {"etas": (0.5, 1.0)}),
    *({"eps": (-1.0, 0.5)}, {"eps": (0.5, -1.0)}, {"adjust_lr_fn": "none"}, {"momentum_decay": -1.0}),
]


@only(of_torch)
def test_refusals_are_in_the_words_of_torch(name: str, cls: Any) -> None:
    """But for a few sentences of Adafactor and Muon, which are as everybody's here."""
    peer, count = torch_class(name), 0
    for options in WRONG:
        parts = any(hyper.parts and hyper.name in options for hyper in cls._hypers)
        if not set(options) <= set(inspect.signature(peer).parameters):
            continue
        if parts is not isinstance(next(iter(options.values())), tuple):
            continue
        theirs = refusal(peer, options)
        if theirs is None:
            continue
        ours = refusal(cls, options)
        assert ours is not None, options
        common = theirs.startswith(
            ("Learning rate should", "weight_decay should", "weight decay should", "momentum should")
        )
        assert ours.startswith("Invalid" if common else theirs)
        count += 1
    assert count
