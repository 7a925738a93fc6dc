"""Reductions that more than one update, or more than one process, has a share in.

An update that needs one is a generator: it yields a `Joint` wherever it needs such a value and is sent that value;
its return value is the result of the update. `drive` runs the updates of all tensors side by side from one such place
(a site) to the next. Over the tensors of a group, or over all tensors, the value is one 0-dim tensor; an update of
parts of tensors also asks for reductions over each tensor, row or column, for which it is sent a list.
"""

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optdsl.runtime.ops import (
    col_max,
    col_mean,
    col_min,
    col_sum,
    row_max,
    row_mean,
    row_min,
    row_sum,
    tensor_kth_largest,
    tensor_max,
    tensor_mean,
    tensor_min,
    tensor_sum,
)
from optdsl.runtime.shards import Layout, Part, complete

_REDUCTIONS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("rows", "sum"): row_sum,
    ("rows", "mean"): row_mean,
    ("rows", "max"): row_max,
    ("rows", "min"): row_min,
    ("cols", "sum"): col_sum,
    ("cols", "mean"): col_mean,
    ("cols", "max"): col_max,
    ("cols", "min"): col_min,
    ("tensor", "sum"): tensor_sum,
    ("tensor", "mean"): tensor_mean,
    ("tensor", "max"): tensor_max,
    ("tensor", "min"): tensor_min,
}


class Joint(NamedTuple):
    """A request: `kind` ("sum", "mean", "max", "min", "kth_largest") of the entries of `x`, over `over`.

    That is "group" or "all", or else "tensor", "rows" or "cols" of each tensor. `site` is the place in the rule; `x`
    is a tensor, or a list of them for an update of several tensors, with values at level `of`. Of `k`, for the k-th
    largest, that of the first tensor counts.
    """

    kind: str
    over: str
    site: int
    x: Tensor | Sequence[Tensor]
    k: Any = None
    of: str = "element"

    @property
    def joint(self) -> bool:
        """Whether it goes over several tensors."""
        return self.over in ("group", "all")


class JointTask(NamedTuple):
    """A running update: its group, the indices of its parameters, dtype and device of what it is sent.

    `layouts` tell of each parameter what it is part of, None for whole ones.
    """

    generator: Generator[Any, Any, Any]
    group: int
    indices: Sequence[int]
    dtype: torch.dtype
    device: torch.device
    layouts: Sequence[Layout | None] | None = None


class _Party(NamedTuple):
    """An update and what it asks for."""

    task: JointTask
    request: Joint

    def operands(self) -> list[tuple[int, Tensor, Layout | None]]:
        """For each parameter its index, its operand, its layout; one tensor in place of a list is that of all."""
        count, x = len(self.task.indices), self.request.x
        layouts = self.task.layouts or [None] * count
        return list(zip(self.task.indices, [x] * count if isinstance(x, Tensor) else x, layouts, strict=True))


def drive(tasks: Sequence[JointTask]) -> list[Any]:
    """Runs all updates to their end and returns what they return, in the order of `tasks`.

    The lowest site at which an update waits is served first, for all updates that wait there, so that updates
    which take different branches still meet. If one of them raises, all are closed.
    """
    results: list[Any] = [None] * len(tasks)
    waiting: dict[int, Joint | tuple[Joint, ...]] = {}

    def resume(number: int, value: Any) -> None:
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
            asked = {
                number: (found,) if isinstance(found, Joint) else found for number, found in waiting.items()
            }
            site = min(requests[0].site for requests in asked.values())
            numbers = [number for number, requests in asked.items() if requests[0].site == site]
            # the first thing that all of them ask for, the second, ...
            several = [[_Party(tasks[number], request) for request in asked[number]] for number in numbers]
            answers = _answers(list(zip(*several, strict=True)))
            for position, number in enumerate(numbers):
                values = [answer[position] for answer in answers]
                resume(number, values[0] if isinstance(waiting[number], Joint) else tuple(values))
    finally:
        for task in tasks:
            task.generator.close()
    return results


def _answers(questions: Sequence[Sequence[_Party]]) -> list[list[Any]]:
    """For each question what its parties are sent; what processes put together goes in as few messages as can be."""
    parts: list[Part] = []
    finish: list[Callable[[list[Tensor]], list[Any]]] = []
    for parties in questions:
        begin = _jointly if parties[0].request.joint else _each_by_itself
        mine, end = begin(parties)
        finish.append(_after(end, slice(len(parts), len(parts) + len(mine))))
        parts += mine
    values = complete(parts)
    return [end(values) for end in finish]


def _after(end: Callable[[list[Tensor]], list[Any]], where: slice) -> Callable[[list[Tensor]], list[Any]]:
    return lambda values: end(values[where])


# ---- over each tensor --------------------------------------------------------------------------------------


def _each_by_itself(parties: Sequence[_Party]) -> tuple[list[Part], Callable[[list[Tensor]], list[Any]]]:
    """Reductions over each tensor, row or column: the parts, and what makes values of them."""
    parts: list[Part] = []
    for party in parties:
        kind, over, of = party.request.kind, party.request.over, party.request.of
        for _, x, layout in party.operands():
            groups = () if layout is None else layout.groups(of, over)
            if not groups:  # all is here
                parts.append((_REDUCTIONS[over, kind](x), "sum", groups))
                continue
            parts.append(_sent(_REDUCTIONS[over, "sum" if kind == "mean" else kind](x), kind, groups))

    def end(values: list[Tensor]) -> list[Any]:
        results, position = [], 0
        for party in parties:
            kind, over, of = party.request.kind, party.request.over, party.request.of
            found = []
            for _, x, layout in party.operands():
                value, position = values[position], position + 1
                if layout is not None and layout.groups(of, over):
                    value = _received(value, kind)
                    if kind == "mean":
                        value = value / (layout.count(of, over) * _pairs(x, layout))
                found.append(value.to(party.task.dtype))
            results.append(found)
        return results

    return parts, end


def _sent(x: Tensor, kind: str, groups: Sequence[Any]) -> Part:
    """A partial result as it is put together: a minimum is a maximum of the opposites."""
    if kind == "min":
        return -x, "max", groups
    return x, "max" if kind == "max" else "sum", groups


def _received(x: Tensor, kind: str) -> Tensor:
    return -x if kind == "min" else x


def _pairs(x: Tensor, layout: Layout | None) -> int:
    """2 for a complex tensor, which is seen as pairs."""
    return 1 if layout is None else math.prod(x.shape[len(layout.shape) :])


# ---- over several tensors ----------------------------------------------------------------------------------


def _jointly(parties: Sequence[_Party]) -> tuple[list[Part], Callable[[list[Tensor]], list[Any]]]:
    """Reductions over the tensors of a group, or over all: one partial result per tensor, in parameter order.

    The partial results meet in float64 on the device of the first parameter. Empty tensors contribute nothing.
    """
    meetings: dict[int | None, list[int]] = {}
    for number, party in enumerate(parties):
        meeting = party.task.group if party.request.over == "group" else None
        meetings.setdefault(meeting, []).append(number)
    parts: list[Part] = []
    ends: list[tuple[list[int], slice, Callable[[list[Tensor]], Tensor]]] = []
    for numbers in meetings.values():
        mine, end = _reduce_jointly([parties[number] for number in numbers])
        ends.append((numbers, slice(len(parts), len(parts) + len(mine)), end))
        parts += mine

    def finish(values: list[Tensor]) -> list[Any]:
        results: list[Any] = [None] * len(parties)
        for numbers, where, end in ends:
            value = end(values[where])
            for number in numbers:
                task = parties[number].task
                results[number] = value.to(device=task.device, dtype=task.dtype)
        return results

    return parts, finish


def _reduce_jointly(
    parties: Sequence[_Party],
) -> tuple[list[Part], Callable[[list[Tensor]], Tensor]]:
    """The partial results of the tensors that meet, and what makes one value of them."""
    kind, of = parties[0].request.kind, parties[0].request.of
    entries = [
        (index, x, layout)
        for party in parties
        for index, x, layout in party.operands()
        if _entries(x, layout, of)
    ]
    entries.sort(key=lambda entry: entry[0])
    if not entries:
        empty = {"sum": 0.0, "mean": math.nan, "max": -math.inf, "min": math.inf, "kth_largest": -math.inf}
        value = torch.full((), empty[kind], dtype=torch.float64, device=parties[0].task.device)
        return [], lambda _: value
    device = entries[0][1].device
    if kind == "kth_largest":
        first = min(parties, key=lambda party: party.task.indices[0]).request
        wholes = [x if layout is None else layout.whole(x, of) for _, x, layout in entries]
        flat = [x.reshape(-1).to(device=device, dtype=torch.float64) for x in wholes]
        found = tensor_kth_largest(torch.cat(flat), first.k)
        return [], lambda _: found

    parts: list[Part] = []
    for _, x, layout in entries:
        groups = () if layout is None else layout.groups(of, "all")
        mine = _REDUCTIONS["tensor", "sum" if kind == "mean" else kind](x)
        parts.append(_sent(mine.to(torch.float64), kind, groups))
    count = sum(_entries(x, layout, of) for _, x, layout in entries)

    def end(values: list[Tensor]) -> Tensor:
        together = torch.stack([_received(value, kind).to(device) for value in values])
        if kind in ("max", "min"):
            return together.amax() if kind == "max" else together.amin()
        return together.sum() / count if kind == "mean" else together.sum()

    return parts, end


def _entries(x: Tensor, layout: Layout | None, of: str) -> int:
    """How many entries a whole operand has."""
    return x.numel() if layout is None else layout.count(of, "all") * _pairs(x, layout)
