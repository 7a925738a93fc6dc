"""Entries of torch's own database of optimizers for ours: torch's where it has the method, or one of the class."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
    optim_db,
)

from tests.contract.subjects import FLAGS, Options, class_named, inside, moved, tame, torch_class


@functools.cache
def info(name: str) -> OptimizerInfo:
    """The entry of a spec's class."""
    cls, peer = class_named(name), torch_class(name)
    for known in optim_db:
        if known.optim_cls is peer:
            entry = copy.copy(known)
            entry.optim_cls = cls
            return entry
    native = cls._native is not None and not cls._native.lacking
    return OptimizerInfo(
        cls,
        optim_inputs_func=functools.partial(_inputs, cls),
        optim_error_inputs_func=functools.partial(_errors, cls),
        supported_impls=("foreach", "differentiable", *(("fused",) if native else ())),
        not_og_supported_flags=tuple(FLAGS),
        has_capturable_arg=cls._not_capturable is None,
        supports_complex=cls._elementwise,
        supports_fused_on=("cpu", "cuda") if native else (),
    )


def _inputs(cls: Any, device: Any, dtype: Any = None) -> list[OptimizerInput]:
    """As torch tests its own: defaults, decay, maximize, each switch and choice, each number otherwise."""
    found: dict[str, Options] = {"default": {}, "maximize": {"maximize": True}}
    base = tame(cls)
    defaults = cls([torch.zeros(1)], **base).defaults
    for hyper in cls._hypers:
        value = defaults[hyper.name]
        if hyper.kind == "bool":
            found[hyper.name] = {hyper.name: not value}
        elif hyper.kind == "choice":
            found |= {f"{hyper.name} {x}": {hyper.name: x} for x in hyper.choices if x != value}
        elif (other := moved(hyper, value)) is not None:
            found[f"other {hyper.name}"] = {hyper.name: other}
        if "weight_decay" in hyper.name and hyper.kind == "float" and inside(hyper, 0.1):
            found["weight decay, maximize"] = {hyper.name: 0.1, "maximize": True}
    return [OptimizerInput(params=None, kwargs=base | kwargs, desc=desc) for desc, kwargs in found.items()]


def _errors(cls: Any, device: Any, dtype: Any) -> list[ErrorOptimizerInput]:
    """What is wrong for every optimizer, and a number below each interval."""
    found = get_error_inputs_for_all_optims(device, dtype)
    words = {"lr": "learning rate: ", "eps": "epsilon value: "}
    for hyper in cls._hypers:
        if hyper.kind == "float" and not hyper.parts and not inside(hyper, -1.0):
            usual = f"{hyper.name} parameter at index 0: " if hyper.many else f"{hyper.name} value: "
            regex = f"Invalid {words.get(hyper.name, usual)}-1.0"
            value = [-1.0] if hyper.many else -1.0
            wrong = OptimizerInput(params=None, kwargs={hyper.name: value}, desc=hyper.name)
            found.append(ErrorOptimizerInput(wrong, error_type=ValueError, error_regex=regex))
    has_rate = any(hyper.name == "lr" for hyper in cls._hypers)
    return [each for each in found if has_rate or "lr" not in each.optimizer_error_input.kwargs]


def settings(entry: OptimizerInfo, *skip: str) -> list[Options]:
    """All options with all flags under which torch's suite would test an entry on a CPU."""
    every = _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, entry, skip=skip)
    return [copy.deepcopy(each.kwargs) for each in every if not _beyond(entry.optim_cls, each.kwargs)]


def _beyond(cls: Any, kwargs: Options) -> bool:
    """Whether an option is one that the class does not have; torch's entry of a method may have more."""
    return not set(kwargs) <= set(inspect.signature(cls).parameters)


Loss = Callable[[], torch.Tensor]
