"""What a task is: a small problem that K models are trained on at once.

The tensors of a model lie in one row of a [K, P] array (`optdsl.search.tasks.layout.Layout`). A task gives the
initial row, the minibatches of a run and the losses of all models from one forward pass. Data of different runs
differ by their seeds alone, so that methods can be compared in pairs: same task, same seed, same data.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from optdsl.search.tasks.layout import Layout, Shape

#: Where a family may be used: to guide the search, to choose among what it found, and once at the end.
SPLITS = ("search", "validation", "held-out")
#: Two levels of each family: for the search, and ten times as much work for what survives.
SIZES = ("small", "large")

Batch = tuple[Tensor, ...]


class Task(ABC):
    """A family at one size. `steps` is the length of a run, `shapes` are those of the tensors of a model."""

    family: str
    split: str
    shapes: tuple[Shape, ...]
    steps: int

    def __init__(self, size: str) -> None:
        if size not in SIZES:
            raise ValueError(f"there is no size `{size}`: {', '.join(SIZES)}")
        self.size = size

    def __reduce__(self) -> tuple[object, ...]:
        """In another process it is that process's own, whose data are at hand there."""
        return of, (type(self), self.size)

    @property
    def name(self) -> str:
        """Family and size: `digits_mlp/small`."""
        return f"{self.family}/{self.size}"

    @functools.cached_property
    def layout(self) -> Layout:
        """Where the tensors lie in a row."""
        return Layout(self.shapes)

    def rate(self, t: int, steps: int) -> float:
        """What the learning rate of step t (from 1) is multiplied with: it falls to 0 in a line."""
        return 1 - (t - 1) / steps

    def init(self, seed: int) -> Tensor:
        """The parameters of a model before its first step, [P] in float32."""
        generator = generator_of(seed, 0)
        return torch.cat([x.reshape(-1) for x in self.begin(generator)])

    @abstractmethod
    def begin(self, generator: torch.Generator) -> list[Tensor]:
        """The initial tensors of a model."""

    @abstractmethod
    def batches(self, seed: int, steps: int) -> Batch:
        """The minibatches of a run: tensors whose first axis is the step."""

    @abstractmethod
    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        """The loss of each model on its own minibatch, [K]. Every tensor has the model as its first axis."""

    def gradient(self, tensors: Sequence[Tensor], batch: Batch, out: Tensor) -> None:
        """The gradient of each model's own loss into `out`, [K, P]. The tensors are leaves that require gradients."""
        loss = self.losses(tensors, batch).sum()
        self.layout.join(torch.autograd.grad(loss, tensors), out=out)

    @property
    @abstractmethod
    def held_out(self) -> Batch:
        """The rows that validation is on, at least 400 predictions."""

    @property
    def predictions(self) -> int:
        """How many predictions validation averages over."""
        return len(self.held_out[0])

    def validate(self, tensors: Sequence[Tensor]) -> Tensor:
        """The loss of each model on the rows of validation, [K]."""
        k = tensors[0].shape[0]
        with torch.no_grad():
            dtype = tensors[0].dtype
            batch = (x.to(dtype) if x.is_floating_point() else x for x in self.held_out)
            return self.losses(tensors, tuple(x.expand(k, *x.shape) for x in batch))


@functools.cache
def of(kind: type[Task], size: str) -> Task:
    """The one task of a family at a size in this process."""
    return kind(size)


def generator_of(seed: int, stream: int) -> torch.Generator:
    """Random numbers of one stream (initial values, minibatches, ...) of a run."""
    return torch.Generator().manual_seed(seed * 16 + stream)


def dense(generator: torch.Generator, *sizes: int, gain: float = 1.0) -> list[Tensor]:
    """Matrices [in, out] between layers of these sizes, their entries normal with variance gain^2 / in."""
    pairs = itertools.pairwise(sizes)
    return [torch.randn(a, b, generator=generator) * (gain / a**0.5) for a, b in pairs]


def picked(count: int, batch: int, seed: int, steps: int) -> Tensor:
    """Which rows of a data set of `count` a run sees: [steps, batch]."""
    return torch.randint(count, (steps, batch), generator=generator_of(seed, 1))


class _CrossEntropy(torch.autograd.Function):
    """Mean cross entropy of each model. By hand, which takes half as long as torch's own with ten classes."""

    @staticmethod
    def forward(ctx: object, scores: Tensor, labels: Tensor) -> Tensor:
        shifted = scores - scores.amax(-1, keepdim=True)
        chances = shifted.exp()
        total = chances.sum(-1, keepdim=True)
        ctx.save_for_backward(chances.div_(total), labels)  # type: ignore[attr-defined]
        own = shifted.gather(-1, labels.unsqueeze(-1))
        found: Tensor = (total.log_() - own).mean((1, 2))
        return found

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        chances, labels = ctx.saved_tensors  # type: ignore[attr-defined]
        labels = labels.unsqueeze(-1)
        own = chances.gather(-1, labels)
        chances = chances.scatter(-1, labels, own - 1)
        return chances.mul_((grad / labels.shape[1]).reshape(-1, 1, 1)), None


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over rows of the cross entropy of `scores`, [K, rows, classes], and `labels`, [K, rows]: [K]."""
    found: Tensor = _CrossEntropy.apply(scores, labels)  # type: ignore[no-untyped-call]
    return found


def binary_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """The same for two classes: `scores`, [K, rows], are of label 1, `labels` are 0 or 1."""
    return torch.nn.functional.softplus(scores * (1 - 2 * labels)).mean(1)


def squared(difference: Tensor) -> Tensor:
    """Half of the mean square of all entries of each model: [K]."""
    return 0.5 * difference.square().flatten(1).mean(1)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b of each model: [K, rows, in], [K, in, out] and [K, out] to [K, rows, out]."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight)
