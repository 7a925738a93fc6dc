"""Data that come with packages: digits and breast cancer from scikit-learn, text from Python itself.

All are small, and the same in every run: rows are shuffled and labels blurred by fixed seeds.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

#: Signs that the text is made of.
SIGNS = 32


class Missing(ImportError):
    """A package that a task takes its data from is not installed."""


def _datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise Missing("these data come with scikit-learn: pip install optdsl[search]") from error
    return datasets


def _shuffled(x: Tensor, y: Tensor, classes: int, blur: float) -> tuple[Tensor, Tensor]:
    """Rows in a fixed random order; a share `blur` of the labels is drawn anew, so that no model can be perfect."""
    generator = torch.Generator().manual_seed(20240229)
    order = torch.randperm(len(x), generator=generator)
    x, y = x[order], y[order]
    new = torch.randint(classes, y.shape, generator=generator)
    return x, torch.where(torch.rand(y.shape, generator=generator) < blur, new, y)


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 images of 8 x 8 pixels, [1797, 64] in [0, 1], and their labels, of which a tenth is drawn anew."""
    found = _datasets().load_digits()
    return _shuffled(torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target), 10, 0.1)


@functools.cache
def breast_cancer() -> tuple[Tensor, Tensor]:
    """569 rows of 30 features with mean 0 and variance 1, and their labels, of which a tenth is drawn anew."""
    found = _datasets().load_breast_cancer()
    x = torch.tensor(found.data, dtype=torch.float64)
    x = ((x - x.mean(0)) / x.std(0)).float()
    return _shuffled(x, torch.tensor(found.target), 2, 0.1)


@functools.cache
def text() -> Tensor:
    """The help texts of Python as a row of numbers below SIGNS: letters, some other signs, and one for the rest."""
    from pydoc_data.topics import topics

    alphabet = "\n abcdefghijklmnopqrstuvwxyz.,("
    codes = {sign: number for number, sign in enumerate(alphabet)}
    joined = "".join(topics[name] for name in sorted(topics)).lower()
    return torch.tensor([codes.get(sign, SIGNS - 1) for sign in joined])
