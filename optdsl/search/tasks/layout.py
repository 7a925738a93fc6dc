"""Where the tensors of a model lie when all of them are one row of a [K, P] array, a row per model."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from optdsl.core.record import record

Shape = tuple[int, ...]


@record
class Layout:
    """Tensors of these shapes, one behind the other."""

    shapes: tuple[Shape, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def total(self) -> int:
        """P, the parameters of a model."""
        return sum(self.sizes)

    def slices(self) -> list[slice]:
        """The place of each tensor in the row."""
        ends = list(itertools.accumulate(self.sizes, initial=0))
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    def views(self, flat: Tensor) -> list[Tensor]:
        """The tensors of a [K, P] array, each [K, *shape] and in its memory."""
        k = flat.shape[0]
        return [flat[:, s].view(k, *shape) for s, shape in zip(self.slices(), self.shapes, strict=True)]

    def join(self, tensors: list[Tensor] | tuple[Tensor, ...], out: Tensor | None = None) -> Tensor:
        """The inverse of `views`, in memory of its own."""
        return torch.cat([x.reshape(x.shape[0], -1) for x in tensors], 1, out=out)
