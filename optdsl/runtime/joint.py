"""Reductions over the tensors of a group, or over all tensors of an optimizer.

An update that needs one is a generator: it yields a `Joint` wherever it needs a joint value and is sent that
value, a 0-dim tensor; its return value is the result of the update. `drive` runs the updates of all tensors
side by side from one such place (a site) to the next.
"""

import math
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optdsl.runtime.ops import tensor_kth_largest
from optdsl.runtime.states import sharded


class Joint(NamedTuple):
    """A request: `kind` ("sum", "mean", "max", "min", "kth_largest") of the entries of `x`, over "group" or "all".

    `site` is the place in the rule; `x` is a tensor, or a list of them for an update of several tensors. Of `k`, for
    the k-th largest, that of the first tensor counts.
    """

    kind: str
    over: str
    site: int
    x: Tensor | Sequence[Tensor]
    k: Any = None


class JointTask(NamedTuple):
    """A running update: its group, the indices of its parameters, dtype and device of what it is sent."""

    generator: Generator[Joint, Tensor, Any]
    group: int
    indices: Sequence[int]
    dtype: torch.dtype
    device: torch.device


def drive(tasks: Sequence[JointTask]) -> list[Any]:
    """Runs all updates to their end and returns what they return, in the order of `tasks`.

    The lowest site at which an update waits is served first, for all updates that wait there, so that updates
    which take different branches still meet. If one of them raises, all are closed.
    """
    results: list[Any] = [None] * len(tasks)
    waiting: dict[int, Joint] = {}

    def resume(number: int, value: Tensor | None) -> None:
        """Runs one update up to its next request, or to its end."""
        try:
            generator = tasks[number].generator
            waiting[number] = next(generator) if value is None else generator.send(value)
        except StopIteration as end:
            waiting.pop(number, None)
            results[number] = end.value

    try:
        for number in range(len(tasks)):
            resume(number, None)
        while waiting:
            site = min(request.site for request in waiting.values())
            meetings: dict[int | None, list[int]] = {}
            for number, request in waiting.items():
                if request.site == site:
                    meeting = tasks[number].group if request.over == "group" else None
                    meetings.setdefault(meeting, []).append(number)
            for numbers in meetings.values():
                value = _reduce_jointly([(tasks[n], waiting[n]) for n in numbers])
                for number in numbers:
                    resume(number, value.to(device=tasks[number].device, dtype=tasks[number].dtype))
    finally:
        for task in tasks:
            task.generator.close()
    return results


def _reduce_jointly(parties: Sequence[tuple[JointTask, Joint]]) -> Tensor:
    """The joint value of updates that wait at one site: one partial result per tensor, in parameter order.

    The partial results meet in float64 on the device of the first parameter. Empty tensors contribute
    nothing.
    """
    kind = parties[0][1].kind
    entries = [
        (index, x)
        for task, request in parties
        for index, x in zip(task.indices, _each(request.x, len(task.indices)), strict=True)
        if x.numel()
    ]
    if not entries:
        empty = {"sum": 0.0, "mean": math.nan, "max": -math.inf, "min": math.inf, "kth_largest": -math.inf}[
            kind
        ]
        return torch.full((), empty, dtype=torch.float64, device=parties[0][0].device)
    entries.sort(key=lambda entry: entry[0])
    device = entries[0][1].device
    if kind == "kth_largest":
        first = min(parties, key=lambda party: party[0].indices[0])[1]
        flat = [_whole(x).reshape(-1).to(device=device, dtype=torch.float64) for _, x in entries]
        return tensor_kth_largest(torch.cat(flat), first.k)
    partials = [_partial(kind, x).to(device=device, dtype=torch.float64) for _, x in entries]
    together = torch.stack(partials)
    if kind == "max":
        return together.amax()
    if kind == "min":
        return together.amin()
    total = together.sum()
    return total / sum(x.numel() for _, x in entries) if kind == "mean" else total


def _each(x: Tensor | Sequence[Tensor], count: int) -> Sequence[Tensor]:
    """One tensor per parameter; a tensor in place of a list is that of every parameter."""
    return [x] * count if isinstance(x, Tensor) else x


def _partial(kind: str, x: Tensor) -> Tensor:
    """The part of one tensor, 0-dim: its maximum, minimum or sum; over all shards of a sharded tensor."""
    return _whole(x.amax() if kind == "max" else x.amin() if kind == "min" else x.sum())


def _whole(x: Tensor) -> Tensor:
    """All shards of a sharded tensor."""
    return x.full_tensor() if sharded(x) else x  # type: ignore[attr-defined]
