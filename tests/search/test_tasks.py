"""Tasks: losses against plain torch for one model, data by seed, and which of them can tell rules apart."""

from __future__ import annotations

import builtins
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from optdsl.search import tasks
from optdsl.search.tasks import admission, data
from optdsl.search.tasks.base import binary_cross_entropy, cross_entropy
from optdsl.search.tasks.layout import Layout

ALL = tasks.names()
Tensors = list[Tensor]


def mlp(task: Any, w: Tensors, x: Tensor, activation: Any) -> Tensor:
    layers = len(task.widths) - 1
    for layer in range(layers):
        x = F.linear(x, w[layer].T, w[layers + layer])
        x = activation(x) if layer < layers - 1 else x
    return x


def conv(task: Any, w: Tensors, x: Tensor) -> Tensor:
    w1, w2, w3, b1, b2, b3 = w
    first, second = len(b1), len(b2)
    x = F.silu(F.conv2d(x.reshape(-1, 1, 8, 8), w1.T.reshape(first, 1, 3, 3), b1, stride=2))
    x = F.silu(F.conv2d(x, w2.T.reshape(second, first, 2, 2), b2))
    return F.linear(x.permute(0, 2, 3, 1).flatten(1), w3.T, b3)


def transformer(task: Any, w: Tensors, codes: Tensor) -> Tensor:
    embed, places, unembed, *blocks = w
    d, heads = task.width, task.heads
    x = embed[codes] + places
    for number in range(task.blocks):
        mixed, out, up, down = blocks[4 * number : 4 * number + 4]
        q, k, v = (x @ mixed).split(d, -1)
        q, k, v = (z.unflatten(-1, (heads, d // heads)).transpose(1, 2) for z in (q, k, v))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + seen.transpose(1, 2).flatten(2) @ out
        x = x + F.relu(x @ up) @ down
    return x @ unembed


def expected(task: Any, w: Tensors, batch: tuple[Tensor, ...]) -> Tensor:
    """The loss of one model, written as one would write it."""
    match task.family:
        case "digits_mlp":
            return F.cross_entropy(mlp(task, w, batch[0], F.relu), batch[1])
        case "digits_conv":
            return F.cross_entropy(conv(task, w, batch[0]), batch[1])
        case "autoencoder":
            return F.mse_loss(mlp(task, w, batch[0], F.silu), batch[0]) / 2
        case "logistic":
            return F.binary_cross_entropy_with_logits(batch[0] @ w[0] + w[1], batch[1])
        case "text_transformer":
            codes = batch[0]
            return F.cross_entropy(transformer(task, w, codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())
        case "regression":
            return F.mse_loss(batch[0] @ w[0] + w[1], batch[1]) / 2
        case "factorisation":
            return F.mse_loss((w[0] @ w[1].T)[batch[0], batch[1]], batch[2]) / 2
        case "deep_linear":
            return F.mse_loss(torch.linalg.multi_dot([batch[0], *w]), batch[1]) / 2
        case "zipf":
            bags = F.one_hot(batch[0], task.words).sum(1).double()
            return F.binary_cross_entropy_with_logits(bags @ w[0] + w[1], batch[1])
    raise AssertionError(task.family)


def double(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in batch)


@pytest.mark.parametrize("name", ALL)
def test_losses_and_gradients_are_those_of_single_models(name: str) -> None:
    task = tasks.task(name)
    seeds = (3, 4, 5)
    p = torch.stack([task.init(seed) for seed in seeds]).double()
    batches = [tuple(x[1] for x in double(task.batches(seed, 2))) for seed in seeds]
    leaves = [x.requires_grad_() for x in task.layout.views(p)]
    losses = task.losses(leaves, tuple(torch.stack(parts) for parts in zip(*batches, strict=True)))
    gradients = torch.autograd.grad(losses.sum(), leaves)
    assert losses.shape == (3,)
    stacked = torch.full_like(p, torch.nan)
    task.gradient(leaves, tuple(torch.stack(parts) for parts in zip(*batches, strict=True)), stacked)
    torch.testing.assert_close(stacked, task.layout.join(gradients), rtol=1e-10, atol=1e-14)
    for k, batch in enumerate(batches):
        own = [x[k].detach().clone().requires_grad_() for x in leaves]
        loss = expected(task, own, batch)
        torch.testing.assert_close(losses[k], loss, rtol=1e-10, atol=1e-12)
        for g, o in zip(gradients, torch.autograd.grad(loss, own), strict=True):
            torch.testing.assert_close(g[k], o, rtol=1e-8, atol=1e-12)
    with torch.no_grad():
        held = double(task.held_out)
        alone = torch.stack([expected(task, [x[k] for x in leaves], held) for k in range(3)])
        torch.testing.assert_close(task.validate(leaves), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_data_depend_on_the_seed_alone(name: str) -> None:
    task = tasks.task(name)
    fresh = tasks.FAMILIES[task.family](task.size)
    assert torch.equal(task.init(7), fresh.init(7))
    assert not torch.equal(task.init(7), task.init(8))
    assert task.init(7).shape == (task.layout.total,)
    again = fresh.batches(7, 3)
    for x, y, z in zip(task.batches(7, 3), again, task.batches(8, 3), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)
        assert x.shape[0] == 3
        assert not torch.equal(x[0], x[1])
    assert all(torch.equal(x, y) for x, y in zip(task.held_out, fresh.held_out, strict=True))
    assert task.predictions >= admission.ROWS


def test_rows_of_validation_are_not_trained_on() -> None:
    x, _ = data.digits()
    held = {row.numpy().tobytes() for row in tasks.task("digits_mlp").held_out[0]}
    seen = tasks.task("digits_mlp").batches(1, 50)[0].reshape(-1, 64)
    assert not held & {row.numpy().tobytes() for row in seen}
    assert len({row.numpy().tobytes() for row in x}) == len(x)
    # a matrix's entries: by their places
    task: Any = tasks.task("factorisation")
    held_places = set(zip(*(part.tolist() for part in task.held_out[:2]), strict=True))
    row, col, _ = task.batches(1, 60)
    assert not held_places & set(zip(row.flatten().tolist(), col.flatten().tolist(), strict=True))


def test_splits_share_no_family_and_sizes_differ() -> None:
    by_split = {split: {n.split("/")[0] for n in tasks.names(split)} for split in tasks.SPLITS}
    assert {len(found) for found in by_split.values()} == {2, 3, 4}
    assert sum(map(len, by_split.values())) == len(tasks.FAMILIES)
    assert len(tasks.names("held-out")) == 6  # what a rule is shown once
    for family in tasks.FAMILIES:
        small, large = (tasks.task(f"{family}/{size}") for size in tasks.SIZES)
        assert large.layout.total * large.steps >= 10 * small.layout.total * small.steps
        assert pickle.loads(pickle.dumps(tasks.task(family))) is small


def test_the_learning_rate_falls_to_almost_nothing() -> None:
    task = tasks.task("zipf")
    assert task.rate(1, 100) == 1
    assert task.rate(100, 100) == pytest.approx(0.01)


@pytest.mark.parametrize("wrong", ["nothing", "zipf/huge", "zipf/"])
def test_names(wrong: str) -> None:
    if wrong == "zipf/":
        assert tasks.task(wrong).size == "small"
        return
    with pytest.raises(ValueError, match="there is no"):
        tasks.task(wrong)
    with pytest.raises(ValueError, match="splits are"):
        tasks.names("sealed")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [n for n in sys.modules if n.startswith("sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(data.Missing, match=r"optdsl\[search\]"):
        data.digits.__wrapped__()


def test_cross_entropies(rng: Any) -> None:
    scores = torch.from_numpy(rng.normal(size=(3, 4, 5)) * 30).requires_grad_()
    labels = torch.from_numpy(rng.integers(5, size=(3, 4)))
    flat = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").reshape(3, 4).mean(1)
    torch.testing.assert_close(cross_entropy(scores, labels), flat)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), (scores / 10,))
    two, truth = scores[..., 0], (labels > 2).double()
    own = F.binary_cross_entropy_with_logits(two, truth, reduction="none").mean(1)
    torch.testing.assert_close(binary_cross_entropy(two, truth), own)
    infinite = torch.full((1, 2, 5), torch.inf, dtype=torch.float64)
    assert not torch.isfinite(cross_entropy(infinite, labels[:1, :2])).any()


def test_a_layout_is_a_row_and_back() -> None:
    layout = Layout(((2, 3), (), (4,)))
    flat = torch.arange(22.0).reshape(2, 11)
    views = layout.views(flat)
    assert [tuple(v.shape) for v in views] == [(2, 2, 3), (2,), (2, 4)]
    assert torch.equal(layout.join(views), flat)
    views[1][0] = -1
    assert flat[0, 6] == -1


# ---- admission --------------------------------------------------------------------------------------------


class Flat(tasks.FAMILIES["deep_linear"]):  # type: ignore[misc]
    """A task that no rule can do anything on: the loss does not depend on the parameters."""

    family = "flat"

    def losses(self, tensors: Any, batch: Any) -> Tensor:
        x, _ = batch
        return 1e-4 * x.square().flatten(1).mean(1) + 1e-9 * sum(w.flatten(1).sum(1) for w in tensors)


def test_a_task_that_tells_nothing_apart_is_not_admitted() -> None:
    found = admission.admit(
        Flat("small"),
        effort=admission.Effort(configurations=5, coarse=3, tuning=(0,), fresh=(1, 2, 3)),
        rules=("sgd", "adamw", "lion", "nag"),
    )
    assert not found.admitted
    assert any("the best loss is" in reason for reason in found.reasons)


def test_a_ranking_counts_once() -> None:
    effort = admission.Effort(configurations=6, coarse=5, tuning=(0, 1), fresh=tuple(range(100, 112)))
    rules = ("sgd", "adamw", "lion", "rmsprop")
    first = admission.admit(tasks.task("zipf"), (), effort, rules)
    assert first.admitted, first.reasons
    assert first.errors > admission.SPREAD
    assert first.ranking[0] == "adamw"
    second = admission.admit(tasks.task("zipf"), (first,), effort, rules)
    assert second.reasons == ("ranks the rules as zipf/small does",)
    assert second.scores == first.scores


@pytest.mark.slow
def test_all_small_tasks_are_admitted() -> None:
    before: list[admission.Admission] = []
    for name in tasks.names(size="small"):
        before.append(admission.admit(tasks.task(name), before))
        print(before[-1])
    assert [found.reasons for found in before] == [()] * len(before)
