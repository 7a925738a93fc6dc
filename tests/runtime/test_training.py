"""Networks trained with states in 8 bits: they end where float32 takes them, to the noise between seeds."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import optdsl
from optdsl.core.storage import LEAST
from tests.support import ROOT, needs_compiler

SEEDS = range(5)
#: The methods, with what they are tried with here.
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-3},
    "lion": {"lr": 1e-3},
    "adan": {"lr": 3e-3},
    "sgd": {"lr": 0.1, "momentum": 0.9},
}
WEIGHT_DECAY = 1e-3
#: Characters of a sample of text, and its part of the language reference.
BLOCK, CHARACTERS = 32, 8192

#: A model, its loss on a batch drawn with a generator, and its loss on what it is judged by.
Task = tuple[nn.Module, Callable[[torch.Generator], Tensor], Callable[[], Tensor]]


@functools.cache
def images() -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1797 digits in an order of their own: rows of 64 numbers in [0, 1], and labels."""
    found, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(found / 16.0).float()[order], torch.as_tensor(labels).long()[order]


def digits() -> Task:
    """A network of two layers; it is judged by the quarter of the digits that it has not seen."""
    x, y = images()
    cut = len(x) * 3 // 4
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(cut, (64,), generator=generator)
        return cross_entropy(model(x[rows]), y[rows])

    return model, loss, lambda: cross_entropy(model(x[cut:]), y[cut:])


@functools.cache
def characters() -> Tensor:
    """The first characters of the language reference, as numbers."""
    text = (ROOT / "docs" / "language.md").read_text("utf-8")[:CHARACTERS]
    number = {character: n for n, character in enumerate(sorted(set(text)))}
    return torch.tensor([number[character] for character in text])


class Layer(nn.Module):
    """Causal attention with 4 heads, then a network of two layers; norms in front of both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        mixed = self.mix(self.norms[0](x)).view(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*mixed, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norms[1](x))))


class Transformer(nn.Module):
    """Logits of the next character at each of up to BLOCK places."""

    def __init__(self, letters: int, width: int = 64) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, width), nn.Embedding(BLOCK, width)
        self.layers = nn.Sequential(
            Layer(width), Layer(width), nn.LayerNorm(width), nn.Linear(width, letters)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.letters(x) + self.places.weight[: x.shape[1]])


def text() -> Task:
    """A transformer of two layers; it is judged by the last eighth of the text, which it has not seen."""
    held = characters()
    cut = len(held) * 7 // 8
    model = Transformer(int(held.max()) + 1)

    def loss_at(starts: Tensor) -> Tensor:
        rows = held[starts[:, None] + torch.arange(BLOCK + 1)]
        return cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    last = torch.arange(cut, len(held) - BLOCK, BLOCK)
    return (
        model,
        lambda generator: loss_at(torch.randint(cut - BLOCK, (8,), generator=generator)),
        lambda: loss_at(last),
    )


#: Each with its number of steps.
TASKS = {"digits": (digits, 600), "text": (text, 100)}


@functools.cache
def trained(task: str, name: str, store: str | None) -> np.ndarray:
    """For each seed the loss on unseen data behind the last step, and the mean of the last 20 losses."""
    make, steps = TASKS[task]
    method = optdsl.load(name)
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model, loss_of, judged = make()
        generator = torch.Generator().manual_seed(seed)
        optimizer = method(
            model.parameters(), weight_decay=WEIGHT_DECAY, store=store, fused=True, **METHODS[name]
        )
        losses = []
        for _ in range(steps):
            loss = loss_of(generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        in_codes = {
            n for n, p in model.named_parameters()
            if any(x.dtype is torch.uint8 for x in optimizer.state[p].values())
        }  # fmt: skip
        large = {n for n, p in model.named_parameters() if p.numel() >= LEAST}
        assert large
        assert in_codes == (large if store else set())
        with torch.no_grad():
            found.append((judged().item(), np.mean(losses[-20:])))
    return np.array(found)


#: All methods on digits, and with OPTDSL_FULL on text, which takes longest.
FULL = bool(os.environ.get("OPTDSL_FULL"))
CASES = [(task, name) for task in TASKS for name in METHODS if FULL or task == "digits" or name == "adamw"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), CASES)
def test_training_ends_within_noise_of_float32(task: str, name: str) -> None:
    """Codes change the mean loss by less than the seed does, and no run by more than twice that."""
    exact, coded = trained(task, name, None), trained(task, name, "q8")
    noise = exact.std(axis=0, ddof=1)
    change = coded - exact
    assert np.all(np.abs(change.mean(axis=0)) <= noise), (exact, coded)
    assert np.all(np.abs(change) <= 2 * noise), (exact, coded)


@needs_compiler
@pytest.mark.slow
def test_four_bits_are_too_few_for_lion() -> None:
    """So that the noise is not too large to see anything: with codes of 4 bits Lion does not get as far."""
    exact, coded = trained("digits", "lion", None), trained("digits", "lion", "q4")
    noise = exact.std(axis=0, ddof=1)
    assert (coded - exact).mean(axis=0)[1] > 3 * noise[1], (exact, coded)
