"""Tasks made of random numbers: regressions, factorisation, deep linear networks, sparse features.

The problem itself (teacher, spectrum) is the same in all runs, initial values and minibatches differ by seed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from optdsl.search.tasks.base import (
    Batch,
    Task,
    binary_cross_entropy,
    dense,
    generator_of,
    picked,
    squared,
)

#: The seed of problems, far from those of runs.
_PROBLEM = 10**9
_ROWS = 512


class Regression(Task):
    """A noisy quadratic: linear regression with noise, the features of very different size and turned at random."""

    family, split = "regression", "search"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.features, self.outputs = (32, 4) if size == "small" else (192, 8)
        self.batch, self.steps = (8, 100) if size == "small" else (16, 400)
        self.shapes = ((self.features, self.outputs), (self.outputs,))

    @functools.cached_property
    def problem(self) -> tuple[Tensor, Tensor]:
        """What turns normal numbers into features, and the teacher."""
        generator = generator_of(_PROBLEM, 0)
        turn, _ = torch.linalg.qr(torch.randn(self.features, self.features, generator=generator))
        # a feature's share falls from 1 to about 1/100
        spectrum = torch.logspace(0, -2, self.features)
        teacher = torch.randn(self.features, self.outputs, generator=generator)
        return spectrum.sqrt().unsqueeze(1) * turn, turn.T @ teacher

    def rows(self, generator: torch.Generator, *count: int) -> Batch:
        """Features and outputs with noise."""
        mix, teacher = self.problem
        x = torch.randn(*count, self.features, generator=generator) @ mix
        noise = torch.randn(*count, self.outputs, generator=generator)
        return x, x @ teacher + 0.5 * noise

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        return [
            0.1 * torch.randn(self.features, self.outputs, generator=generator),
            torch.zeros(self.outputs),
        ]

    def batches(self, seed: int, steps: int) -> Batch:
        return self.rows(generator_of(seed, 1), steps, self.batch)

    @functools.cached_property
    def held_out(self) -> Batch:
        return self.rows(generator_of(_PROBLEM, 1), _ROWS)

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        x, y = batch
        return squared(torch.baddbmm(tensors[1].unsqueeze(1), x, tensors[0]) - y)


class Factorisation(Task):
    """Entries of a matrix of low rank with noise, a part of them never seen, from the product of two thin ones."""

    family, split = "factorisation", "search"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.rows, self.cols, self.rank = (40, 30, 4) if size == "small" else (160, 120, 8)
        self.batch, self.steps = (64, 100) if size == "small" else (256, 500)
        self.shapes = ((self.rows, self.rank), (self.cols, self.rank))

    @functools.cached_property
    def entries(self) -> Batch:
        """Row, column and value of all entries in random order; the first third is for validation."""
        generator = generator_of(_PROBLEM, 2)
        left = torch.randn(self.rows, self.rank, generator=generator)
        right = torch.randn(self.cols, self.rank, generator=generator)
        scale = torch.logspace(0, -1, self.rank)  # directions are not equally easy to find
        values = (left * scale) @ right.T
        values = values + 0.3 * torch.randn(values.shape, generator=generator)
        order = torch.randperm(values.numel(), generator=generator)
        return order // self.cols, order % self.cols, values.reshape(-1)[order]

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        return [0.3 * torch.randn(shape, generator=generator) for shape in self.shapes]

    def batches(self, seed: int, steps: int) -> Batch:
        row, col, value = (part[len(part) // 3 :] for part in self.entries)
        index = picked(len(row), self.batch, seed, steps)
        return row[index], col[index], value[index]

    @functools.cached_property
    def held_out(self) -> Batch:
        row, col, value = (part[: min(len(part) // 3, 2 * _ROWS)] for part in self.entries)
        return row, col, value

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        row, col, value = batch
        left, right = (
            part.gather(1, index.unsqueeze(-1).expand(-1, -1, self.rank))
            for part, index in zip(tensors, (row, col), strict=True)
        )
        return squared((left * right).sum(-1) - value)


class DeepLinear(Task):
    """A linear network of three layers learns a linear map of low rank from noisy examples."""

    family, split = "deep_linear", "validation"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.widths = (16, 16, 16, 8) if size == "small" else (48, 48, 48, 24)
        self.batch, self.steps = (16, 100) if size == "small" else (32, 150)
        self.shapes = tuple(itertools.pairwise(self.widths))

    @functools.cached_property
    def teacher(self) -> Tensor:
        """The map, of a quarter of the rank that it could have."""
        generator = generator_of(_PROBLEM, 3)
        inner = self.widths[-1] // 4
        left, right = dense(generator, self.widths[0], inner, self.widths[-1])
        return left @ right * 4

    def rows(self, generator: torch.Generator, *count: int) -> Batch:
        """Inputs and outputs with noise."""
        x = torch.randn(*count, self.widths[0], generator=generator)
        noise = torch.randn(*count, self.widths[-1], generator=generator)
        return x, x @ self.teacher + 0.3 * noise

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        return dense(generator, *self.widths, gain=0.7)

    def batches(self, seed: int, steps: int) -> Batch:
        return self.rows(generator_of(seed, 1), steps, self.batch)

    @functools.cached_property
    def held_out(self) -> Batch:
        return self.rows(generator_of(_PROBLEM, 4), _ROWS)

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        x, y = batch
        for weight in tensors:
            x = x @ weight
        return squared(x - y)


class Zipf(Task):
    """Logistic regression on bags of words: few words are common, most are rare, and so are their gradients."""

    family, split = "zipf", "held-out"

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.words, self.length = (200, 8) if size == "small" else (2000, 16)
        self.batch, self.steps = (16, 100) if size == "small" else (32, 500)
        self.shapes = ((self.words,), (1,))

    @functools.cached_property
    def problem(self) -> tuple[Tensor, Tensor]:
        """How often each word comes, and what it says."""
        chances = 1 / torch.arange(1.0, self.words + 1)
        return chances / chances.sum(), 2 * torch.randn(self.words, generator=generator_of(_PROBLEM, 5))

    def rows(self, generator: torch.Generator, *count: int) -> Batch:
        """Bags and labels."""
        chances, meaning = self.problem
        total = int(torch.tensor(count).prod()) * self.length
        words = torch.multinomial(chances, total, replacement=True, generator=generator)
        words = words.reshape(*count, self.length)
        likely = torch.sigmoid(meaning[words].sum(-1))
        return words, (torch.rand(count, generator=generator) < likely).float()

    def begin(self, generator: torch.Generator) -> list[Tensor]:
        return [0.01 * torch.randn(self.words, generator=generator), torch.zeros(1)]

    def batches(self, seed: int, steps: int) -> Batch:
        return self.rows(generator_of(seed, 1), steps, self.batch)

    @functools.cached_property
    def held_out(self) -> Batch:
        return self.rows(generator_of(_PROBLEM, 6), 2 * _ROWS)

    def losses(self, tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        words, y = batch
        found = tensors[0].gather(1, words.reshape(words.shape[0], -1)).reshape(words.shape)
        return binary_cross_entropy(found.sum(-1) + tensors[1], y)
