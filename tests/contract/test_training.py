"""What is done around a step: schedulers, averages, clipping, accumulation, compiling, steps in backward."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler, swa_utils

from optdsl.runtime import step_in_backward
from optdsl.runtime.backward import why_not
from tests.contract.definition import Definition
from tests.contract.subjects import (
    PLAIN,
    Options,
    Refused,
    Way,
    assert_close,
    built,
    copies,
    differences,
    everything,
    give,
    inputs,
    parameters,
    step,
    train,
    usual,
    values,
    ways,
)
from tests.support import most_memory

SMALL = ((2, 3), (4,))


def cycles(optimizer: Any) -> Options:
    """Whether a scheduler may change momentum, too: where there is any."""
    names = set(optimizer.defaults) & {"momentum", "betas"}
    return {"cycle_momentum": bool(names)}


#: Every scheduler of torch, such that rates change within five steps.
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: max(0.0, 1 - n / 4)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda n: 0.7),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.6),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=4, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=2, **cycles(o)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=9, **cycles(o)),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.5, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=1e-3, anneal_epochs=3),
}


def advance(scheduler: Any) -> None:
    """A step of a scheduler; one that looks at a loss sees it stay the same."""
    scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))


def test_all_schedulers_of_torch_are_there() -> None:
    classes = {x for x in vars(lr_scheduler).values() if isinstance(x, type)}
    known = {x.__name__ for x in classes if issubclass(x, lr_scheduler.LRScheduler)} | {"SWALR"}
    assert known - {"LRScheduler", "_LRScheduler"} == set(SCHEDULERS)


@ways("foreach", "native")
def test_every_scheduler_is_obeyed(name: str, cls: Any, way: Way) -> None:
    """As the definition is told what is in the groups."""
    if not any(hyper.name == "lr" for hyper in cls._hypers):
        raise Refused(f"{cls.__name__} has no learning rate")
    ended = False
    for kind, schedule in SCHEDULERS.items():
        params = parameters(SMALL)
        groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:]}]
        optimizer = built(cls, groups, way, **usual(cls))
        scheduler = schedule(optimizer)
        definition = Definition(name, optimizer)
        rates = set()
        for number in range(5):
            rates.add(float(optimizer.param_groups[0]["lr"]))
            give(params, number)
            if 0.0 in rates and cls._divides_by_lr:
                with pytest.raises(ValueError, match=f"{cls.__name__} divides by it"):
                    step(optimizer, number)
                ended = True
                break
            definition.step(number)
            step(optimizer, number)
            advance(scheduler)
        definition.assert_followed(kind)
        assert len(rates) > 1, kind
    if ended:
        raise Refused(f"{cls.__name__} divides by the learning rate")


@ways("foreach", "native")
def test_gradients_that_are_accumulated_and_clipped(name: str, cls: Any, way: Way) -> None:
    """Three batches make a gradient, whose norm over all parameters is limited; then it is made 0, or none."""
    params = parameters(PLAIN)
    optimizer = built(cls, params, way, **usual(cls))
    definition = Definition(name, optimizer)
    for number in range(4):
        parts = [[values(p.shape, p.dtype, number, n, k) for k in range(3)] for n, p in enumerate(params)]
        for batch in range(3):
            sum((p * part[batch]).sum() for p, part in zip(params, parts, strict=True)).backward()
        torch.nn.utils.clip_grad_norm_(params, 0.5, foreach=number % 2 == 0)
        sums = [sum(x.numpy() for x in part) for part in parts]
        norm = np.sqrt(sum((x**2).sum() for x in sums))
        for p, x in zip(params, sums, strict=True):
            torch.testing.assert_close(p.grad, torch.from_numpy(x * min(1.0, 0.5 / (norm + 1e-6))))
        definition.step(number)
        step(optimizer, number)
        optimizer.zero_grad(set_to_none=number % 2 == 1)
    definition.assert_followed("gradients that are accumulated and clipped")


@ways("foreach", "native")
def test_averaged_models(name: str, cls: Any, way: Way) -> None:
    """torch's averages of a model see each step, and do not disturb it."""
    params = parameters(PLAIN)
    model = torch.nn.ParameterList(params)
    optimizer = built(cls, params, way, **usual(cls))
    definition = Definition(name, optimizer)
    mean = swa_utils.AveragedModel(model)
    decayed = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.8))
    seen: list[list[np.ndarray]] = []
    for number in range(4):
        give(params, number)
        definition.step(number)
        step(optimizer, number)
        seen.append([x.copy() for x in definition.interpreter.params[0]])
        mean.update_parameters(model)
        decayed.update_parameters(model)
    definition.assert_followed("models that are averaged")
    means, averages = [sum(x) / 4 for x in zip(*seen, strict=True)], seen[0]
    for now in seen[1:]:
        averages = [0.8 * x + 0.2 * y for x, y in zip(averages, now, strict=True)]
    for got, want in ((mean, means), (decayed, averages)):
        for p, x in zip(got.parameters(), want, strict=True):
            assert_close(p.detach(), torch.from_numpy(np.asarray(x)).reshape(p.shape))


@ways("loop", "foreach", "native")
def test_a_compiled_step_compiles_nothing_anew(cls: Any, way: Way) -> None:
    """torch.compile leaves the step as it is, whatever a scheduler does; a graph of all cannot be had."""
    from torch._dynamo.utils import counters  # not at the top: it imports Triton

    torch._dynamo.reset()
    params, others = parameters(PLAIN), parameters(PLAIN)
    optimizer, plain = (built(cls, p, way, **usual(cls)) for p in (params, others))
    compiled = torch.compile(optimizer.step, backend="eager")
    rates = {"lr": 0.01} if any(hyper.name == "lr" for hyper in cls._hypers) else {}
    with warnings.catch_warnings(), torch._dynamo.config.patch(error_on_recompile=True):
        warnings.simplefilter("ignore")  # torch's, of a profiler that it leaves out
        for number in range(4):
            for who, call in ((params, compiled), (others, plain.step)):
                give(who, number)
                owner = optimizer if who is params else plain
                owner.param_groups[0].update({key: rate / (1 + number) for key, rate in rates.items()})
                call(**inputs(owner, 2 * number))  # all of them, so that calls are alike
            if number == 1:  # the first step may be unlike the others
                traced = dict(counters["frames"])
        assert dict(counters["frames"]) == traced
    assert not differences(everything(optimizer), everything(plain))
    given = inputs(optimizer, 4)
    whole = torch.compile(lambda: optimizer.step(**given), backend="eager", fullgraph=True)
    before = everything(optimizer)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"Optimizer\.step"):
        whole()
    assert not differences(everything(optimizer), before)


@ways("loop", "foreach", "native")
def test_a_step_in_backward_is_the_step(cls: Any, way: Way) -> None:
    """Bit for bit, with one gradient at a time, or it is refused by name."""
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    params = parameters(PLAIN, dtypes)
    others = copies(params)

    def groups(of: list[Tensor]) -> list[Options]:
        return [{"params": of[:1]}, {"params": of[1:], "maximize": True}]

    options = {**usual(cls), **way.flags}
    optimizer = built(cls, groups(params), way, **usual(cls))
    if (reason := why_not(optimizer, optimizer.param_groups[0])) is not None:
        with pytest.raises(RuntimeError) as raised:
            step_in_backward(groups(others), cls, **options)
        assert str(raised.value) == f"{cls.__name__} does not support steps in backward: {reason}"
        raise Refused(str(raised.value))
    early = step_in_backward(groups(others), cls, **options)
    live: list[int] = []
    for p in others:
        p.register_hook(lambda _: live.append(sum(q.grad is not None for q in others)))
    for number in range(3):
        train(optimizer, params, 1, number)
        sum((p * q.grad).sum().double() for p, q in zip(others, params, strict=True)).backward()
        assert all(p.grad is None for p in others)
        early.step()
    assert live == [0] * 3 * len(others)
    assert not differences(everything(early), everything(optimizer))


@ways("native")
def test_a_step_by_kernels_takes_no_memory(cls: Any, way: Way) -> None:
    """But for a few numbers of each tensor; what lies between two passes is torch's, and takes what that takes."""
    if cls._native is None:
        raise Refused(f"{cls.__name__} has no fused kernel: {cls._no_kernels}")
    if any(kernel.library is not None for kernel in cls._native.kernels):
        raise Refused(f"{cls.__name__} leaves products of matrices, or ranks, to torch")
    params = parameters(((64, 65), (2048,)), (torch.float32,))
    optimizer = built(cls, params, way, **usual(cls))
    train(optimizer, params, 2)
    for number in range(2, 4):
        give(params, number)
        given = inputs(optimizer, number)
        assert most_memory(lambda given=given: optimizer.step(**given)) < 1024
