"""Steps that are taken while gradients are computed: each parameter's as soon as its gradient is there."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optdsl.runtime.optimizer import Optimizer
from optdsl.runtime.rule import Rule
from optdsl.runtime.states import sharded
from optdsl.runtime.units import Cohorts

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def step_in_backward(
    model: torch.nn.Module | ParamsT, optimizer: Callable[..., AnyOptimizer], **options: Any
) -> AnyOptimizer:
    """An optimizer that steps during `loss.backward()`: each gradient is used and freed as soon as it is there.

        optimizer = step_in_backward(model, Lion, lr=1e-4, weight_decay=0.1)
        for x, y in data:
            loss_of(model(x), y).backward()  # the step, too
            scheduler.step()

    So there is one gradient at a time in memory, not one for each parameter. What a step does is the same, bit for
    bit. The optimizer is an ordinary one otherwise: options are in its parameter groups and may be changed there by
    hand or by a scheduler, parameter groups may be added, and its state dict is that of all parameters, to be loaded
    by an optimizer that steps in backward or by one that does not. Its `step()` takes the steps of parameters that
    have a gradient all the same: none. A training loop may call it, and for a loop that has a scheduler of torch, which
    looks whether it was called, it should.

    A rule that is for this sees one tensor at a time; norms and other reductions of one tensor are no obstacle. What
    needs all gradients at the same time cannot be had, and nobody can tell that it is tried:

    - every `backward()` is a step, so gradients are not accumulated over several (make the batch larger, or leave the
      step in backward);
    - `torch.amp.GradScaler` would have to unscale gradients that are used already (bfloat16 needs no scaler);
    - `clip_grad_norm_` and whatever else is done to gradients behind `backward()` find none; a hook of a parameter
      (`p.register_hook`) can change its gradient, and a transform such as `clip_by_norm` can limit it in the step;
    - `DistributedDataParallel` averages gradients after this (a model that is one already is refused).

    Args:
        model: a module, of which all parameters are trained, or what an optimizer takes as its first argument. Frozen
            parameters take part as soon as they get gradients.
        optimizer: a generated class.
        options: its options and flags.

    Raises:
        RuntimeError: the class reduces over several tensors, shares states among them or needs inputs; a parameter is
            cut among processes; `differentiable` is asked for.
    """
    module = isinstance(model, torch.nn.Module)
    if isinstance(optimizer, type) and not issubclass(optimizer, Optimizer):
        raise TypeError(f"{optimizer.__name__} is no class that optdsl has generated")
    parallel = torch.nn.parallel.DistributedDataParallel
    made = optimizer(model.parameters() if module else model, **options)  # type: ignore[union-attr]
    if module and any(isinstance(part, parallel) for part in model.modules()):  # type: ignore[union-attr]
        raise _refusal(made, "DistributedDataParallel averages gradients among processes later")
    made._in_backward = InBackward(made)
    return made


def _refusal(rule: Rule, reason: str) -> RuntimeError:
    return RuntimeError(f"{type(rule).__name__} does not support steps in backward: {reason}")


class Place:
    """Where a parameter is among all, and what its steps remember."""

    def __init__(self, number: int, position: int, index: int) -> None:
        #: The number of its group, its position there, its index among all parameters.
        self.number = number
        self.position = position
        self.index = index
        self.launcher: Any = None
        self.cohorts = Cohorts()


class InBackward:
    """The hooks of the parameters of one optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._places: dict[Tensor, Place] = {}
        self._hooked: set[Tensor] = set()
        self._lock = threading.Lock()  # gradients on two devices may come at the same time
        self.attend()

    def attend(self) -> None:
        """Hooks the parameters that are new. Raises RuntimeError, with none hooked, for what cannot take part."""
        for group in self._optimizer.param_groups:
            if (reason := why_not(self._optimizer, group)) is not None:
                raise _refusal(self._optimizer, reason)
        self._locate()
        for p in self._places:
            if p not in self._hooked:
                self._hooked.add(p)
                frozen = not p.requires_grad
                p.requires_grad_()  # torch hooks no others
                p.register_post_accumulate_grad_hook(self._arrived)
                p.requires_grad_(not frozen)

    def _locate(self) -> None:
        """Finds the places of all parameters."""
        self._places, index = {}, 0
        for number, group in enumerate(self._optimizer.param_groups):
            for position, p in enumerate(group["params"]):
                self._places.setdefault(p, Place(number, position, index))
                index += 1

    def _place(self, p: Tensor) -> Place | None:
        """The place of a parameter; None if the optimizer does not have it any more."""
        place, groups = self._places.get(p), self._optimizer.param_groups
        if place is None or place.number >= len(groups):
            return None
        params = groups[place.number]["params"]
        return place if place.position < len(params) and params[place.position] is p else None

    def _arrived(self, p: Tensor) -> None:
        """Takes the step of a parameter, and frees its gradient."""
        with self._lock:
            place = self._place(p)
            if place is None:  # somebody has moved parameters from group to group
                self._locate()
                place = self._place(p)
            if place is not None:
                self._optimizer._step_alone(p, place)
                p.grad = None


def why_not(rule: Rule, group: Mapping[str, Any]) -> str | None:
    """Why the parameters of a group cannot take steps in backward, each by itself, or None."""
    if rule._joint:
        return "it reduces over several tensors (options that a spec fixes, as in `use`, may rule that out)"
    for spec in rule._states:
        if spec.given:
            return f"its steps need the input {spec.key!r}"
        if spec.level == "group":
            return f"the state {spec.key!r} is that of several tensors"
    if group["differentiable"]:
        return "not with `differentiable`"
    for p in group["params"]:
        if sharded(p) or getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False):
            return "a parameter is cut among processes"
    return None
