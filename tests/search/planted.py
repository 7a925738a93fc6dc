"""A task family with a planted answer: goals of very different size, which the gradient itself goes to at once.

The more its entries are made alike, the longer that takes: from a root of a root of a gradient, every root that is
left out is a large gain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optdsl.search.tasks import Task
from optdsl.search.tasks.base import Batch, generator_of

SIZE = 12


class Planted(Task):
    """Each parameter has to go from 0 to a number of its own. Losses are relative to these."""

    family, split = "planted", "search"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.shapes = ((SIZE,),)
        self.steps = 20
        signs = torch.randn(SIZE, generator=generator_of(10**9, 0)).sign()
        self.goal = signs * torch.logspace(-3, 1, SIZE)

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        return [self.goal * 0.3 * torch.randn(SIZE, generator=generator)]

    def batches(self, seed: int, steps: int) -> Batch:
        return (0.3 * torch.randn(steps, SIZE, generator=generator_of(seed, 1)),)

    @property
    def held_out(self) -> Batch:
        return (torch.zeros(SIZE),)

    @property
    def predictions(self) -> int:
        return 400

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        return 0.5 * (tensors[0] / self.goal.to(tensors[0].dtype) - 1).square().mean(1)

    def gradient(self, tensors: Sequence[Tensor], batch: Batch, out: Tensor) -> None:
        with torch.no_grad():
            goal = self.goal.to(out.dtype)
            out.copy_(tensors[0] - goal + goal * batch[0])
