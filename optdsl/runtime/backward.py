"""Steps that are taken while gradients are computed: each parameter's as soon as its gradient is there."""

import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from optdsl.runtime.optimizer import Optimizer
from optdsl.runtime.rule import Rule
from optdsl.runtime.states import facts_about, sharded
from optdsl.runtime.units import Cohorts

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def step_in_backward(
    model: torch.nn.Module | ParamsT, optimizer: type[AnyOptimizer], **options: Any
) -> AnyOptimizer:
    """An optimizer that steps during `loss.backward()`: each gradient is used and freed as soon as it is there.

        optimizer = step_in_backward(model, Lion, lr=1e-4, weight_decay=0.1)
        for x, y in data:
            loss_of(model(x), y).backward()  # the step, too
            optimizer.step()
            scheduler.step()

    So there is one gradient at a time in memory, not one for each parameter. What a step does is the same, bit for
    bit.

    The optimizer is an ordinary one otherwise. Its options are in its parameter groups, to be changed by hand or by a
    scheduler; parameter groups may be added; its state dict is that of all parameters, and is exchanged freely with
    optimizers that do not step in backward. `step()` finds no gradients and does nothing, but runs hooks of steps,
    and lets schedulers see that it was called. Keep the optimizer: when it is gone, its parameters are ordinary ones
    again. A parameter takes the steps of one such optimizer, the last that was made for it.

    A rule for this sees one tensor at a time; norms and other reductions of one tensor are no obstacle. What needs
    all gradients at the same time cannot be had, and it is not noticed when it is tried:

    - Every `backward()` is a step, so gradients are not accumulated over several.
    - `torch.amp.GradScaler` would have to unscale gradients that are used already.
    - `clip_grad_norm_`, and whatever else is done to gradients between `backward()` and `step()`, finds none. A hook
      of a parameter (`p.register_hook`) can change its gradient, and transforms such as `clip_by_value` or `agc` can.
    - `DistributedDataParallel` averages gradients later; only a model that is one already is refused.
    - A parameter in several `checkpoint(..., use_reentrant=True)` gets a gradient, and a step, for each of them. That
      is refused when it happens, but is seen only if a parameter outside of them has got its gradient before. With
      `use_reentrant=False` gradients are added up first.

    Args:
        model: a module, of which all parameters are trained, or what an optimizer takes as its first argument. Frozen
            parameters take part as soon as they get gradients.
        optimizer: a generated class.
        options: its options and flags.

    Raises:
        RuntimeError: the class reduces over several tensors, shares states among them or needs inputs; a parameter is
            cut among processes; `differentiable` is asked for.
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        what = optimizer.__name__ if isinstance(optimizer, type) else repr(optimizer)
        raise TypeError(f"{what} is no class that optdsl has generated")
    make: Any = optimizer
    made: AnyOptimizer
    if isinstance(model, torch.nn.Module):
        made = make(model.parameters(), **options)
        if any(isinstance(part, torch.nn.parallel.DistributedDataParallel) for part in model.modules()):
            raise _refusal(made, "DistributedDataParallel averages gradients among processes later")
    else:
        made = make(model, **options)
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


class Hooks:
    """The hooks of the parameters of one optimizer; nothing of it is kept alive."""

    def __init__(self) -> None:
        self.of: dict[int, Any] = {}
        self.used = False

    def remove(self, name: str) -> None:
        """Removes them when the optimizer is gone."""
        for handle in self.of.values():
            handle.remove()
        if not self.used:
            warnings.warn(
                f"{name} is gone before its first step: parameters take steps in backward for as long as there is "
                "the optimizer that step_in_backward has returned",
                RuntimeWarning,
                stacklevel=2,
            )


class Running(threading.local):
    """The backward that runs in this thread, and which parameters have had their gradient in it.

    A backward may run another one inside, as checkpoints do that are reentrant.
    """

    def __init__(self) -> None:
        self.had: set[Tensor] = set()
        self._end: Any = lambda: None

    def first(self, p: Tensor) -> bool:
        """Whether no gradient of this parameter came before, since a gradient of any came in this backward."""
        if self._end() is None:  # that of the last gradient is over, or failed
            self.had.clear()
            if torch._C._current_graph_task_id() == -1:
                return True  # gradients that are computed by compiled code do not say when they are all there

            def end() -> None:
                self.had.clear()

            torch.autograd.Variable._execution_engine.queue_callback(end)  # torch holds it for as long
            self._end = weakref.ref(end)
        if p in self.had:
            return False
        self.had.add(p)
        return True


#: All that take steps in backward now.
_LIVING: "weakref.WeakSet[InBackward]" = weakref.WeakSet()


class InBackward:
    """What takes the steps of one optimizer when gradients arrive, and belongs to it.

    A tensor that its own hook holds is never freed, as the garbage collector does not see into hooks.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._owner = weakref.ref(optimizer)
        self._places: dict[Tensor, Place] = {}
        self._hooks = Hooks()
        self._lock = threading.Lock()  # gradients on two devices may come at the same time
        self._running = Running()
        self.attend()
        _LIVING.add(self)
        end = weakref.finalize(optimizer, self._hooks.remove, type(optimizer).__name__)
        end.atexit = False

    @property
    def _optimizer(self) -> Optimizer:
        found = self._owner()
        assert found is not None
        return found

    def attend(self) -> None:
        """Hooks the parameters that are new. Raises RuntimeError, with none hooked, for what cannot take part."""
        for group in self._optimizer.param_groups:
            if (reason := why_not(self._optimizer, group)) is not None:
                raise _refusal(self._optimizer, reason)
        self._locate()
        weak = weakref.WeakMethod(self._arrived)

        @_disable_dynamo
        def arrived(p: Tensor) -> None:
            if (method := weak()) is not None:
                method(p)

        for gone in self._hooks.of.keys() - set(map(id, self._places)):  # another tensor may get this id
            self._hooks.of.pop(gone).remove()
        new = [p for p in self._places if id(p) not in self._hooks.of]
        for other in [other for other in _LIVING if other is not self]:
            other.leave(new)
        for p in new:
            if p.is_floating_point() or p.is_complex():  # others never get gradients
                frozen = not p.requires_grad
                p.requires_grad_()  # torch hooks no others
                self._hooks.of[id(p)] = p.register_post_accumulate_grad_hook(arrived)
                p.requires_grad_(not frozen)

    def leave(self, params: Sequence[Tensor]) -> None:
        """Leaves to another optimizer those of its parameters that are among these."""
        left = [self._hooks.of.pop(id(p)) for p in params if id(p) in self._hooks.of]
        for handle in left:
            handle.remove()
        if left:
            self._hooks.used = True  # for what is left there is this warning
            name = type(self._optimizer).__name__
            warnings.warn(
                f"{len(left)} parameters took the steps of another optimizer ({name}) in backward until now; they "
                "take those of the new one alone",
                RuntimeWarning,
                stacklevel=5,
            )

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
                if not self._running.first(p):
                    raise RuntimeError(
                        f"{type(self._optimizer).__name__}: a second gradient of parameter {place.index}, of shape "
                        f"{tuple(p.shape)}, came in one backward, and its step is taken already; a parameter in "
                        "several checkpoints needs `use_reentrant=False`, which adds gradients up first"
                    )
                self._optimizer._step_alone(p, place)
                self._hooks.used = True
                p.grad = None


def why_not(rule: Rule, group: Mapping[str, Any]) -> str | None:
    """Why the parameters of a group cannot take steps in backward, each by itself, or None."""
    if rule._joint:
        return "it reduces over several tensors"
    for spec in rule._states:
        if spec.level == "group" and not spec.given:
            return f"the state {spec.key!r} is that of several tensors"
    if group["differentiable"]:
        return "not with `differentiable`"
    if rule._inputs:  # a step much later, which needs some all the same, says so itself
        for facts in {facts_about(p) for p in group["params"]}:
            for t in range(1, 101):
                for key in rule._wanted(group, t, facts):
                    return f"its steps need the input {key!r}"
    for p in group["params"]:
        if sharded(p) or getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False):
            return "a parameter is cut among processes"
    return None
