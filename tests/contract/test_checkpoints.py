"""Checkpoints: resumed is as if never stopped; from way to way, from format to format; or an error."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from tests.contract.subjects import (
    PLAIN,
    WAYS,
    Refused,
    Way,
    assert_alike,
    built,
    copies,
    differences,
    everything,
    parameters,
    same,
    train,
    turned,
    usual,
    ways,
)

#: With one large enough to be kept in codes.
LARGE = ((64, 70), (5,), (2, 3, 2))


def through_a_file(state_dict: Any) -> Any:
    """A state dict saved, and loaded as what comes from strangers is."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(optimizer: Any, params: Any, made: Any, how: str = "file") -> tuple[Any, Any]:
    """Another optimizer, from `made`, with the parameters and the state of this one."""
    if how == "pickle":
        return pickle.loads(pickle.dumps((optimizer, params)))
    if how == "deepcopy":
        return copy.deepcopy((optimizer, params))
    others = copies(params)
    other = made(others)
    saved = optimizer.state_dict()
    other.load_state_dict(through_a_file(saved) if how == "file" else saved)
    return other, others


# ---- the same class --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "how"),
    [
        *(pytest.param(way, "file", id=way.name) for way in WAYS.values() if way.name != "triton"),
        *(
            pytest.param(WAYS["native"], how, id=f"native-{how}")
            for how in ("state dict", "pickle", "deepcopy")
        ),
    ],
)
def test_resumed_is_not_stopped(cls: Any, way: Way, how: str) -> None:
    """Bit for bit, random numbers included, with all dtypes side by side; nothing is shared with what was saved."""
    dtypes = (torch.float32,) if way.triton else (torch.float64, torch.bfloat16, torch.float32)
    params = parameters(PLAIN[:2] if way.triton else [*PLAIN, (), (0,)], dtypes)
    optimizer = built(cls, params, way, **turned(cls))
    train(optimizer, params, 1 if way.triton else 3)
    other, others = resumed(optimizer, params, lambda ps: built(cls, ps, way, **turned(cls)), how)
    before = everything(optimizer)
    assert not differences(everything(other), before)
    train(other, others, 2, 3)
    assert not differences(everything(optimizer), before)
    train(optimizer, params, 2, 3)
    assert not differences(everything(other), everything(optimizer))


@ways("foreach", "native", "loop-capturable", "triton-fused")
@pytest.mark.parametrize("back", [False, True], ids=["from the loop", "to the loop"])
def test_from_way_to_way(cls: Any, way: Way, back: bool) -> None:
    """What was trained one way goes on another way."""
    params = parameters(PLAIN)
    loop, here = WAYS["loop"], way
    first, second = (here, loop) if back else (loop, here)
    optimizer = built(cls, params, first, **usual(cls))
    train(optimizer, params, 2)
    other, others = resumed(optimizer, params, lambda ps: built(cls, ps, second, **usual(cls)))
    for group in other.param_groups:  # flags come along with a state dict
        group.update({"foreach": None, "capturable": False, "fused": None, **second.flags})
    train(other, others, 2, 2)
    train(optimizer, params, 2, 2)
    assert_alike(everything(other), everything(optimizer))


@ways("loop", "native")
@pytest.mark.parametrize("store", ["q8", "q4", "bf16", "bf16_sr"])
def test_resumed_in_few_bits(cls: Any, way: Way, store: str) -> None:
    """Bit for bit, with parameters rounded at random or with what they lack beside them, too."""
    forms: dict[str, str] = {
        spec.key: store for spec in cls._states if spec.level == "element" and not spec.given
    }
    forms["p"] = "bf16_sr" if store == "bf16_sr" else "bf16+16"
    params = parameters(LARGE, (torch.bfloat16,))
    optimizer = built(cls, params, way, store=forms, **usual(cls))
    train(optimizer, params, 2)
    other, others = resumed(optimizer, params, lambda ps: built(cls, ps, way, store=forms, **usual(cls)))
    assert not differences(everything(other), everything(optimizer))
    train(other, others, 1, 2)
    train(optimizer, params, 1, 2)
    assert not differences(everything(other), everything(optimizer))


@pytest.mark.parametrize("store", ["q8", "bf16"])
def test_from_format_to_format(cls: Any, store: str) -> None:
    """What was kept in few bits is read as the numbers it stands for, and the other way round as the nearest."""
    keys = [
        spec.key for spec in cls._states if spec.level == "element" and not spec.given and spec.delay is None
    ]
    if not keys:
        raise Refused(f"{cls.__name__} has no state with a number per element to store")
    params = parameters(LARGE, (torch.float32,))
    few = cls(params, store=store, foreach=False, **usual(cls))
    train(few, params, 2)
    wide, others = resumed(few, params, lambda ps: cls(ps, foreach=False, **usual(cls)))
    again, params = resumed(wide, others, lambda ps: cls(ps, store=store, foreach=False, **usual(cls)))
    back, params = resumed(again, params, lambda ps: cls(ps, foreach=False, **usual(cls)))
    for p, q in zip(others, params, strict=True):
        for key in set(wide.state[p]) & set(keys):
            once, twice = wide.state[p][key], back.state[q][key]
            assert once.dtype is torch.float32
            assert once.shape == p.shape
            # the scale of a block whose largest number is negative may change with the table's last entry
            assert ((once - twice).abs() <= (0.0 if store == "bf16" else 0.02 * once.abs().max())).all(), key
    train(wide, others, 1, 2)
    assert all(torch.isfinite(p).all() for p in others)


# ---- older, other and broken ones ------------------------------------------------------------------------


def test_options_that_are_added_later(cls: Any) -> None:
    """A checkpoint without an option gets this optimizer's, a pickle without it the default."""
    params = parameters(PLAIN)
    optimizer = cls(params, **usual(cls))
    train(optimizer, params, 2)
    names = [hyper.name for hyper in cls._hypers] + [
        "maximize",
        "foreach",
        "capturable",
        "differentiable",
        "fused",
    ]
    names += ["store", "overwrite_grad"]
    for name in names:
        saved = copy.deepcopy(optimizer.state_dict())
        del saved["param_groups"][0][name]
        other = cls(copies(params), **usual(cls))
        other.load_state_dict(saved)
        assert same(other.param_groups[0][name], optimizer.param_groups[0][name])
        kept = copy.deepcopy(optimizer.__getstate__())
        del kept["param_groups"][0][name]
        del kept["defaults"][name]
        old = cls.__new__(cls)
        old.__setstate__(kept)
        assert same(old.param_groups[0][name], cls(params).defaults[name])
        tensors = old.param_groups[0]["params"]
        train(old, tensors, 1, 2)
        assert all(int(old.state[p]["step"]) == 3 for p in tensors)


def broken(optimizer: Any, params: Any) -> dict[str, tuple[Any, str]]:
    """State dicts that are not of these parameters, by what is wrong, each with what an error must name."""
    whole = optimizer.state_dict()
    found: dict[str, tuple[Any, str]] = {}

    def variant(what: str, names: str) -> Any:
        changed = copy.deepcopy(whole)
        found[what] = (changed, names)
        return changed

    groups = variant("a group more", "number of parameter groups")["param_groups"]
    groups.append({**groups[0], "params": [99]})
    found["a parameter less"] = (copy.deepcopy(whole), "group 0 has 2 parameters, and here 3")
    found["a parameter less"][0]["param_groups"][0]["params"].pop()
    if set(whole["state"][1]) - {"step"} not in (set(), {"momentum_buffer"}):  # as torch's SGD saves
        del variant("no steps", "'step'")["state"][1]["step"]
    for key in whole["state"][0]:
        if key != "step":
            del variant(f"no {key}", repr(key))["state"][0][key]
        value = whole["state"][0][key]
        if value.dim():
            shape = value.shape[::-1] if min(value.shape) > 1 and value.shape[::-1] != value.shape else (7,)
            variant(f"{key} of another shape", repr(key))["state"][0][key] = torch.zeros(
                shape, dtype=value.dtype
            )
            variant(f"{key} cut off", repr(key))["state"][0][key] = value.reshape(-1)[:-1]
            if key not in optimizer._specs or value.is_floating_point():
                strange = variant(f"{key} of complex numbers", repr(key))["state"][0]
                strange[key] = torch.zeros(value.shape, dtype=torch.complex64)
    for spec in optimizer._states:
        if spec.level == "group" and spec.key in whole["param_groups"][0]:
            del variant(f"no {spec.key}", repr(spec.key))["param_groups"][0][spec.key]
    for hyper in optimizer._hypers:
        wrong = variant(f"{hyper.name} that is none", hyper.name.split("_")[0])["param_groups"][0]
        wrong[hyper.name] = "x" if not hyper.parts else ("x",) * len(hyper.parts)
    return found


def refusal(optimizer: Any, state_dict: Any) -> str:
    """Why a state dict is not loaded, or that it was."""
    try:
        optimizer.load_state_dict(state_dict)
    except ValueError as error:
        return str(error)
    return "it was loaded"


@ways("loop", "native")
def test_a_broken_checkpoint_changes_nothing(cls: Any, way: Way) -> None:
    """It is refused, and the error names what differs."""
    params = parameters([(3, 4), (5,), (2, 3, 2)], (torch.float32,))
    optimizer = built(cls, params, way, **usual(cls))
    train(optimizer, params, 2)
    before = everything(optimizer)
    names = {"lr": "learning rate|lr", "eps": "epsilon|eps", "betas": "beta"}
    for what, (state_dict, name) in broken(optimizer, params).items():
        said = refusal(optimizer, state_dict)
        assert any(word in said.lower() for word in names.get(name, name).lower().split("|")), (
            f"{what}: {said}"
        )
        assert not differences(everything(optimizer), before), what
        assert not any(hook for hook in optimizer._optimizer_load_state_dict_pre_hooks), what
    train(optimizer, params, 1, 2)


# ---- distributed -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_distributed_checkpoints(cls: Any, tmp_path: Path) -> None:
    """`torch.distributed.checkpoint`, in a file, by the names of the parameters."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    params = list(model.parameters())
    optimizer = cls(params, **usual(cls))
    train(optimizer, params, 2)
    saved = get_optimizer_state_dict(model, optimizer)
    checkpoint.save({"optimizer": saved}, checkpoint_id=tmp_path / "saved", no_dist=True)
    other = cls(params, **usual(cls))
    optimizer.zero_grad()  # a new optimizer takes a step without moving, to have the states that are to be loaded
    try:
        target = {"optimizer": get_optimizer_state_dict(model, other)}
    except RuntimeError as error:
        if not (cls._inputs and str(error).startswith(f"{cls.__name__}: this step needs the input")):
            raise
        raise Refused(str(error)) from None
    checkpoint.load(target, checkpoint_id=tmp_path / "saved", no_dist=True)
    set_optimizer_state_dict(model, other, target["optimizer"])
    got, want = everything(other), everything(optimizer)
    assert not [place for place in differences(got, want) if place[0] != "p"]
