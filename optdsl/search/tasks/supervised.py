"""Tasks on real data: classifiers of digits, an autoencoder, logistic regression, a transformer on text."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from optdsl.search.tasks import data
from optdsl.search.tasks.base import (
    Batch,
    Task,
    affine,
    binary_cross_entropy,
    cross_entropy,
    dense,
    picked,
    squared,
)

_ROWS = 500  # of the digits are for validation


class _Digits(Task):
    """Minibatches of digits."""

    batch: int

    def batches(self, seed: int, steps: int) -> Batch:
        x, y = (part[_ROWS:] for part in data.digits())
        rows = picked(len(x), self.batch, seed, steps)
        return x[rows], y[rows]

    @functools.cached_property
    def held_out(self) -> Batch:
        x, y = data.digits()
        return x[:_ROWS], y[:_ROWS]


class DigitsMLP(_Digits):
    """Digits, a tenth of them with a wrong label, by a network of two or four layers."""

    family, split = "digits_mlp", "search"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        small = size == "small"
        self.widths = (64, 32, 10) if small else (64, 96, 96, 96, 10)
        self.batch, self.steps = 32, 100
        pairs = list(itertools.pairwise(self.widths))
        # matrices first: what is done with vectors apart is then done in one piece
        self.shapes = (*pairs, *((width,) for _, width in pairs))

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        weights = dense(generator, *self.widths, gain=2**0.5)
        return [*weights, *(torch.zeros(w.shape[1]) for w in weights)]

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        x, y = batch
        layers = len(self.widths) - 1
        for layer in range(layers):
            x = affine(x, tensors[layer], tensors[layers + layer])
            x = torch.relu_(x) if layer < layers - 1 else x
        return cross_entropy(x, y)

    def gradient(self, tensors: Sequence[Tensor], batch: Batch, out: Tensor) -> None:
        # by hand: this is the task that a search spends most on, and autograd is a third of its time
        layers = len(self.widths) - 1
        weights, biases, views = tensors[:layers], tensors[layers:], self.layout.views(out)
        x, y = batch
        with torch.no_grad():
            inputs = [x]
            for weight, bias in zip(weights[:-1], biases, strict=False):
                inputs.append(affine(inputs[-1], weight, bias).relu_())
            slope = affine(inputs[-1], weights[-1], biases[-1])
            slope = slope.sub_(slope.amax(-1, keepdim=True)).exp_()
            slope /= slope.sum(-1, keepdim=True).mul_(y.shape[1])
            ones = slope.new_full((1, 1, 1), -1 / y.shape[1]).expand(*y.shape, 1)
            slope.scatter_add_(-1, y.unsqueeze(-1), ones)
            for layer in reversed(range(layers)):
                views[layer].copy_(torch.bmm(inputs[layer].mT, slope))
                torch.sum(slope, 1, out=views[layers + layer])
                if layer:
                    slope = torch.bmm(slope, weights[layer].mT).mul_(inputs[layer].sign())


class DigitsConv(_Digits):
    """The same digits by two convolutions and a linear layer."""

    family, split = "digits_conv", "held-out"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        first, second = (6, 12) if size == "small" else (24, 48)
        self.batch, self.steps = (12, 80) if size == "small" else (16, 110)
        self.shapes = ((9, first), (4 * first, second), (4 * second, 10), (first,), (second,), (10,))

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        weights = [dense(generator, *shape, gain=2**0.5)[0] for shape in self.shapes[:3]]
        return [*weights, *(torch.zeros(shape) for shape in self.shapes[3:])]

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        w1, w2, w3, b1, b2, b3 = tensors
        x, y = batch
        (k, rows), first = y.shape, b1.shape[1]
        # 3 x 3 in steps of 2: 3 x 3 places; then 2 x 2: 2 x 2 places
        x = x.reshape(k, rows, 8, 8).unfold(2, 3, 2).unfold(3, 3, 2).reshape(k, rows * 9, 9)
        x = F.silu(affine(x, w1, b1)).reshape(k, rows, 3, 3, first)
        x = x.unfold(2, 2, 1).unfold(3, 2, 1).reshape(k, rows * 4, 4 * first)
        x = F.silu(affine(x, w2, b2)).reshape(k, rows, -1)
        return cross_entropy(affine(x, w3, b3), y)


class Autoencoder(_Digits):
    """Digits through a narrow layer and back."""

    family, split = "autoencoder", "search"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.widths = (64, 16, 6, 16, 64) if size == "small" else (64, 64, 32, 8, 32, 64, 64)
        self.batch, self.steps = (16, 80) if size == "small" else (48, 240)
        pairs = list(itertools.pairwise(self.widths))
        self.shapes = (*pairs, *((width,) for _, width in pairs))

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        weights = dense(generator, *self.widths)
        return [*weights, *(torch.zeros(w.shape[1]) for w in weights)]

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        x, _ = batch
        layers = len(self.widths) - 1
        hidden = x
        for layer in range(layers):
            hidden = affine(hidden, tensors[layer], tensors[layers + layer])
            hidden = F.silu(hidden) if layer < layers - 1 else hidden
        return squared(hidden - x)


class Logistic(Task):
    """Breast cancer, a tenth of it with a wrong label, by logistic regression; large: with products of features."""

    family, split = "logistic", "validation"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.features = 30 if size == "small" else 30 + 30 * 31 // 2
        self.batch, self.steps = (16, 100) if size == "small" else (32, 400)
        self.shapes = ((self.features,), (1,))

    @functools.cached_property
    def rows(self) -> Batch:
        """All rows, the first 400 of them for validation."""
        x, y = data.breast_cancer()
        if self.size == "large":
            first, second = torch.triu_indices(30, 30)
            x = torch.cat([x, x[:, first] * x[:, second] / 4], 1)
        # features as different in size as those of raw data are
        return x * torch.logspace(0, -1.5, x.shape[1]), y.float()

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        return [torch.randn(self.features, generator=generator) * 0.1, torch.zeros(1)]

    def batches(self, seed: int, steps: int) -> Batch:
        x, y = (part[400:] for part in self.rows)
        rows = picked(len(x), self.batch, seed, steps)
        return x[rows], y[rows]

    @property
    def held_out(self) -> Batch:
        x, y = self.rows
        return x[:400], y[:400]

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        x, y = batch
        scores = torch.baddbmm(tensors[1].unsqueeze(1), x, tensors[0].unsqueeze(2)).squeeze(2)
        return binary_cross_entropy(scores, y)


class Transformer(Task):
    """The next letter of Python's help texts, by a transformer of one or two blocks without normalisation.

    It begins near zero, where only little of a gradient comes through to the first layers.
    """

    family, split = "text_transformer", "held-out"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        small = size == "small"
        self.width, self.length, self.blocks, self.heads = (16, 8, 1, 1) if small else (32, 32, 2, 2)
        self.batch, self.steps = (8, 50) if small else (8, 250)
        self.windows = 52 if small else 32  # for validation
        d = self.width
        block = ((d, 3 * d), (d, d), (d, 2 * d), (2 * d, d))
        self.shapes = ((data.SIGNS, d), (self.length, d), (d, data.SIGNS), *block * self.blocks)

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        scales = [0.25, 0.25, *(shape[0] ** -0.5 for shape in self.shapes[2:])]
        return [
            scale * torch.randn(shape, generator=generator)
            for scale, shape in zip(scales, self.shapes, strict=True)
        ]

    def batches(self, seed: int, steps: int) -> Batch:
        codes = data.text()
        rows = picked(len(codes) * 9 // 10 - self.length - 1, self.batch, seed, steps)
        return (codes[rows.unsqueeze(-1) + torch.arange(self.length + 1)],)

    @functools.cached_property
    def held_out(self) -> Batch:
        codes = data.text()
        last = codes[len(codes) * 9 // 10 :]
        starts = torch.arange(self.windows) * (len(last) // self.windows - 1)
        return (last[starts.unsqueeze(-1) + torch.arange(self.length + 1)],)

    @property
    def predictions(self) -> int:
        return self.windows * self.length

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        (codes,) = batch
        (k, rows, _), d = codes.shape, self.width
        embed, places, unembed, *blocks = tensors
        seen = codes[:, :, :-1].reshape(k, -1, 1)
        x = embed.gather(1, seen.expand(-1, -1, d)).reshape(k, rows, self.length, d)
        x = (x + places.unsqueeze(1)).reshape(k, rows * self.length, d)
        for mixed, out, up, down in zip(*[iter(blocks)] * 4, strict=True):
            q, key, value = (
                part.reshape(k * rows, self.length, self.heads, d // self.heads).transpose(1, 2)
                for part in (x @ mixed).split(d, -1)
            )
            x = x + _attention(q, key, value).transpose(1, 2).reshape(k, -1, d) @ out
            x = x + torch.relu_(x @ up) @ down
        return cross_entropy(x @ unembed, codes[:, :, 1:].reshape(k, -1))


def _attention(q: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each place looks at those up to itself. All are [rows, heads, length, size]."""
    length = q.shape[-2]
    later = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
    weights = torch.softmax(q @ key.mT * q.shape[-1] ** -0.5 + later, -1)
    return weights @ value
