"""Joint reductions of what kernels have found of each tensor, and in which order batches run and meet for them."""

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.native.batch import Batch, CpuBatch
from optdsl.runtime.native.rows import Row
from optdsl.runtime.ops import tensor_kth_largest

#: A joint reduction as `Kernel.joints` has it.
_Joint = tuple[int, int, int, str, str, str]


class Meeting:
    """One joint reduction of the partial results of some batches."""

    def __init__(self, parties: Sequence[tuple[Batch, _Joint]]) -> None:
        """`parties` are batches, each with its joint reduction."""
        self.parties = parties
        _, joint = parties[0]
        self.site, self.kind = joint[2], joint[4]
        self.on_host = all(isinstance(batch, CpuBatch) for batch, _ in parties)
        self.counts = [[_count_of(row, joint[5]) for row in batch.rows] for batch, joint in parties]
        self.count = sum(map(sum, self.counts))
        self.partials = [batch.folded.select(1, joint[1]) for batch, joint in parties]
        self.results = [batch.shared.select(0, batch.kernel.joints.index(joint)) for batch, joint in parties]

    def hold(self) -> None:
        """Reduces what the batches have, and gives each the result."""
        value: Any
        if self.kind == "kth_largest":
            value = _ranked(self.site, self.parties)
        elif self.on_host:
            value = self._on_host()
        else:
            value = self._on_device()
        for result in self.results:
            if not isinstance(value, Tensor):
                result.fill_(value)
            elif result is not value:
                result.copy_(value)

    def _on_host(self) -> float:
        entries: list[tuple[int, float, int]] = []
        for (batch, _), partials, counts in zip(self.parties, self.partials, self.counts, strict=True):
            for row, partial, count in zip(batch.rows, partials.tolist(), counts, strict=True):
                if count:
                    entries.append((row.index, partial, count))
        entries.sort()
        return _together(self.kind, entries)

    def _on_device(self) -> Tensor:
        """The same without waiting for any device: all partial results go to one, where the result is put."""
        place = next(n for n, (batch, _) in enumerate(self.parties) if not isinstance(batch, CpuBatch))
        found, result = self.partials[0], self.results[place]
        if len(self.partials) > 1:
            found = torch.cat([x.to(result.device, non_blocking=True) for x in self.partials])
        if self.kind in ("max", "min"):
            (torch.amax if self.kind == "max" else torch.amin)(found, 0, out=result)
        else:
            torch.sum(found, 0, out=result)
        return result.div_(self.count) if self.kind == "mean" else result


def stages(
    batches: Sequence[tuple[int, Batch]],
) -> Iterator[tuple[list[tuple[Batch, int, int]], list[Meeting]]]:
    """In which order batches, each with its group's number, run and meet: by turns stretches of sweeps, each as
    (batch, first, last + 1), and meetings.

    All batches whose kernels reach a site are reduced together there, lowest site first.
    """
    position = [0] * len(batches)
    waiting: list[list[_Joint]] = [[] for _ in batches]

    def advance(number: int) -> tuple[Batch, int, int]:
        batch = batches[number][1]
        start, joints = position[number], batch.kernel.joints
        stop = min((j[0] + 1 for j in joints if j[0] >= start), default=batch.kernel.sweeps + 1)
        position[number] = stop
        waiting[number] = [j for j in joints if j[0] == stop - 1]
        return batch, start, stop

    stretches = [advance(number) for number in range(len(batches))]
    while any(waiting):
        site = min(joint[2] for joints in waiting for joint in joints)
        parties: dict[int | None, list[tuple[Batch, _Joint]]] = {}
        for (owner, batch), joints in zip(batches, waiting, strict=True):
            for joint in joints:
                if joint[2] == site:
                    whose = owner if joint[3] == "group" else None
                    parties.setdefault(whose, []).append((batch, joint))
        yield stretches, list(map(Meeting, parties.values()))
        stretches = []
        for number, joints in enumerate(waiting):
            if any(j[2] == site for j in joints):
                waiting[number] = [j for j in joints if j[2] != site]
                if not waiting[number]:
                    stretches.append(advance(number))
    yield stretches, []


def _ranked(site: int, parties: Sequence[tuple[Batch, _Joint]]) -> Any:
    """The k-th largest of what the arrays of all batches hold; the first tensor says what k is."""
    entries: list[tuple[int, Tensor]] = []
    ranks: list[tuple[int, Tensor]] = []
    for batch, joint in parties:
        held = dict(batch.kernel.ranked)[site]
        entries += [(row.index, row.works[held]) for row in batch.rows]
        ranks += [(row.index, k) for row, k in zip(batch.rows, batch.folded[:, joint[1]], strict=True)]
    entries.sort(key=operator.itemgetter(0))
    k = min(ranks, key=operator.itemgetter(0))[1]
    device = entries[0][1].device
    every = torch.cat([x.reshape(-1).to(device, torch.float64, non_blocking=True) for _, x in entries])
    return tensor_kth_largest(every, k.to(device, non_blocking=True) if device.type != "cpu" else k.item())


def _count_of(row: Row, operand: str) -> int:
    """How many numbers of a tensor a reduction of these operands takes."""
    return {"element": row.numel, "rows": row.facts.rows, "cols": row.facts.cols}.get(operand, 1)


def _together(kind: str, entries: Sequence[tuple[int, float, int]]) -> float:
    partials = [partial for _, partial, _ in entries]
    if kind in ("max", "min"):
        if any(map(math.isnan, partials)):
            return math.nan
        return max(partials, default=-math.inf) if kind == "max" else min(partials, default=math.inf)
    total = 0.0
    for partial in partials:
        total += partial
    if kind == "sum":
        return total
    count = sum(count for _, _, count in entries)
    return total / count if count else math.nan
