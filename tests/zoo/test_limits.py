"""Settings in which one shipped method is another: against torch.optim, closed forms in numpy, or that other method.

None of it follows from how a method is written: each line of the table is a small theorem. Every limit is left again
by `away`, and then the two must differ, so that no line can hold by itself.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from tests.support import WITHOUT_KERNELS, class_of, needs_compiler

Tensor = torch.Tensor
Array = np.ndarray
#: Makes the other side from its parameters.
Peer = Callable[[list[Tensor]], Any]
#: A gradient, or an input, from normal random numbers, the parameter and the step, 1 for the first.
Shaped = Callable[[Tensor, Tensor, int], Tensor]

SHAPES = {"vec": (37,), "mat": (6, 11), "bank": (5, 3, 2, 2)}
SEED = 20261129
STEPS = 12
LR, WD = 0.05, 0.1
#: Decays that are not those of any default.
B1, B2 = 0.8, 0.97
#: Stands for infinity where an option must be finite.
HUGE = 1e30
TINY = 1e-30


@functools.cache
def method(spec: str, around: str | None = None) -> Any:
    """A shipped class, or that with a transform around it."""
    if around is None:
        return class_of(importlib.import_module(f"optdsl.zoo.{spec}"))
    return optdsl.load(spec, with_=around)


# ---- the other side ---------------------------------------------------------------------------------------------


def theirs(name: str, **options: Any) -> Peer:
    """A method of torch.optim, by its loop."""
    return lambda params: getattr(torch.optim, name)(params, foreach=False, **options)


def ours(name: str, **options: Any) -> Peer:
    """Another shipped method, by the loop."""
    return lambda params: method(name)(params, foreach=False, **options)


def sgd(**options: Any) -> Peer:
    return theirs("SGD", **{"lr": LR, "weight_decay": WD, **options})


def adam(**options: Any) -> Peer:
    return theirs("Adam", **{"lr": LR, "betas": (B1, B2), "weight_decay": WD, **options})


def adamw(**options: Any) -> Peer:
    return theirs("AdamW", **{"lr": LR, "betas": (B1, B2), "weight_decay": WD, **options})


class Closed:
    """Sets each tensor to a function of all values it had, all its gradients, and the step count."""

    def __init__(self, params: list[Tensor], rule: Callable[..., Array]) -> None:
        self.params, self.rule = params, rule
        self.past: list[tuple[list[Array], list[Array]]] = [([], []) for _ in params]

    def step(self) -> None:
        for p, (values, grads) in zip(self.params, self.past, strict=True):
            values.append(p.detach().numpy().copy())
            assert p.grad is not None
            grads.append(p.grad.numpy().copy())
            p.detach().copy_(torch.from_numpy(np.asarray(self.rule(values, grads, len(grads)))))


def closed(rule: Callable[..., Array]) -> Peer:
    """`rule(p, g, t)`: the lists of values and gradients so far, the last ones those of step t."""
    return lambda params: Closed(params, rule)


class Mean:
    """Puts the plain mean of what torch's SGD passes through into its parameters."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params, self.sums = params, [torch.zeros_like(p) for p in params]
        self.path = [torch.nn.Parameter(p.detach().clone()) for p in params]
        self.sgd, self.steps = sgd()(self.path), 0

    def step(self) -> None:
        self.steps += 1
        for p, x in zip(self.params, self.path, strict=True):
            x.grad = p.grad
        self.sgd.step()
        for p, x, total in zip(self.params, self.path, self.sums, strict=True):
            p.detach().copy_(total.add_(x.detach()) / self.steps)


def ema(xs: Sequence[Array], beta: float) -> Array:
    """The exponential average from 0."""
    return (1 - beta) * sum(beta**age * x for age, x in enumerate(reversed(xs)))


def corrected(xs: Sequence[Array], beta: float) -> Array:
    """The same with weights that add up to 1."""
    return ema(xs, beta) / (1 - beta ** len(xs))


def squares(xs: Sequence[Array]) -> list[Array]:
    return [x**2 for x in xs]


def penalized(p: Sequence[Array], g: Sequence[Array]) -> list[Array]:
    """Gradients with those of the L2 penalty."""
    return [y + WD * x for x, y in zip(p, g, strict=True)]


def length(x: Array) -> Array:
    return np.sqrt((x**2).sum())


def rms(x: Array) -> Array:
    return np.sqrt((x**2).mean())


def decayed(p: Sequence[Array]) -> Array:
    """The newest value behind decoupled decay."""
    return p[-1] * (1 - LR * WD)


SIGNS = closed(lambda p, g, t: decayed(p) - LR * np.sign(g[-1]))
SIGNS_OF_PENALIZED = closed(lambda p, g, t: p[-1] - LR * np.sign(penalized(p, g)[-1]))
SIGNS_OF_AVERAGE = closed(lambda p, g, t: decayed(p) - LR * np.sign(ema(g, B1)))
DIRECTIONS = closed(lambda p, g, t: decayed(p) - LR * g[-1] / length(g[-1]))
PLAIN_DIRECTIONS = closed(lambda p, g, t: p[-1] - LR * g[-1] / length(g[-1]))
MOMENTUM = closed(lambda p, g, t: p[-1] - LR * corrected(penalized(p, g), B1))
DECAYED_MOMENTUM = closed(lambda p, g, t: decayed(p) - LR * corrected(g, B1))
RMSPROP_CORRECTED = closed(
    lambda p, g, t: (
        p[-1] - LR * penalized(p, g)[-1] / (np.sqrt(corrected(squares(penalized(p, g)), B2)) + 1e-8)
    )
)
#: As BERT's.
ADAM_UNCORRECTED = closed(
    lambda p, g, t: decayed(p) - LR * ema(g, B1) / (np.sqrt(ema(squares(g), B2)) + 1e-8)
)
DECAY_BEHIND = closed(
    lambda p, g, t: (p[-1] - LR * corrected(g, B1) / np.sqrt(corrected(squares(g), B2))) * (1 - LR * WD)
)


def alternating(x: Tensor) -> Tensor:
    """1 and -1 in turns, in the shape of x."""
    return (1.0 - 2.0 * (torch.arange(x.numel()) % 2)).to(x).view_as(x)


# ---- gradients --------------------------------------------------------------------------------------------------


def plain(raw: Tensor, p: Tensor, t: int) -> Tensor:
    return raw


def steady(raw: Tensor, p: Tensor, t: int) -> Tensor:
    """No entry changes its sign, nor is small."""
    return alternating(raw) * (0.5 + raw.abs())


def growing(raw: Tensor, p: Tensor, t: int) -> Tensor:
    """The square of each entry is larger than the sum of all before it, its sign the same."""
    return alternating(raw) * 3.0**t * (1 + raw.abs() / (1 + raw.abs()))


def shrinking(raw: Tensor, p: Tensor, t: int) -> Tensor:
    """Each entry is smaller than any before it."""
    return growing(raw, p, -t)


def swinging(raw: Tensor, p: Tensor, t: int) -> Tensor:
    """Each entry differs from the last one by more than 200."""
    return (-1) ** t * (100 + 100 * raw.abs())


def constant(raw: Tensor, p: Tensor, t: int) -> Tensor:
    return torch.cos(torch.arange(raw.numel()).to(raw)).view_as(raw) + 0.1


def orthogonal(raw: Tensor, p: Tensor, t: int) -> Tensor:
    """To the tensor."""
    return raw - (raw * p).sum() / (p * p).sum() * p


def along(raw: Tensor, p: Tensor, t: int) -> Tensor:
    """Far from orthogonal to the tensor: what a weight that is not scale-free may get."""
    return raw + p


def rank_one(raw: Tensor, p: Tensor, t: int) -> Tensor:
    """The squares are a column times a row, as a matrix of the first axis by the rest; signs are random."""
    rows = raw.shape[0]
    size = torch.outer(torch.arange(1.0, rows + 1), torch.arange(2.0, raw.numel() // rows + 2)).to(raw)
    return raw.sign() * size.view_as(raw) * (1.5 + np.sin(t))


def even(raw: Tensor, p: Tensor, t: int) -> Tensor:
    """All entries of a step have one size."""
    return raw.sign() * (1.5 + np.sin(t))


def signs(raw: Tensor, p: Tensor, t: int) -> Tensor:
    return raw.sign()


def short(raw: Tensor, p: Tensor, t: int) -> Tensor:
    """Of a norm below 1."""
    return raw / (2 * raw.norm())


def unit(raw: Tensor, p: Tensor, t: int) -> Tensor:
    return raw / raw.norm()


def small(raw: Tensor, p: Tensor, t: int) -> Tensor:
    return 1e-9 * raw


# ---- the table --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """A method in a limit, and why it is the peer there.

    `away` are options that leave the limit; without any it is left by plain gradients. `around` is a transform,
    `only` the one tensor that takes part, `start` multiplies the initial values, and with `view` it is what `eval()`
    puts into the parameters that counts.
    """

    spec: str
    limit: str
    reason: str
    options: dict[str, Any]
    peer: Peer
    away: dict[str, Any] = field(default_factory=dict)
    gradient: Shaped = plain
    around: str | None = None
    inputs: dict[str, Shaped] = field(default_factory=dict)
    only: str | None = None
    start: float = 1.0
    view: bool = False

    def __str__(self) -> str:
        around = f"{self.around}({self.spec})" if self.around else self.spec
        return f"{around}: {self.limit}"


L2 = {"lr": LR, "weight_decay": WD}
BETAS = {**L2, "betas": (B1, B2)}
EXACT = {**BETAS, "eps": 0.0}
LAST = {**L2, "betas": (0.0, B2)}
KEPT = {"la_steps": 1, "la_alpha": 1.0}

LIMITS = [
    # -- signs
    Limit(
        *("lion", "equal betas", "the update then is the sign of the very average that is kept"),
        *({**L2, "betas": (B1, B1)}, SIGNS_OF_AVERAGE, {"betas": (B1, B2)}),
    ),
    Limit(
        *("lion", "beta1 = 0", "the update then sees the newest gradient alone"),
        *(LAST, SIGNS, {"betas": (B1, B2)}),
    ),
    Limit(
        *("signsgd", "is Lion with equal betas", "Signum takes the sign of its average"),
        *({**L2, "momentum": B1}, ours("lion", **L2, betas=(B1, B1)), {"momentum": 0.5}),
    ),
    Limit(
        *("tiger", "is Lion with equal betas", "one momentum, and its sign"),
        *({**L2, "beta": B1}, ours("lion", **L2, betas=(B1, B1)), {"fixed_decay": True}),
    ),
    Limit(
        *("tiger_rms", "a bias", "half steps, without decay and without a scale"),
        {**L2, "beta": B1, "kind": "bias"},
        closed(lambda p, g, t: p[-1] - LR / 2 * np.sign(ema(g, B1))),
        {"kind": "matrix"},
    ),
    Limit(
        *("lion_k", "power = 1", "the 1-norm is the p-norm for p = 1, and its gradient the sign"),
        *({**L2, "betas": (B1, B1), "kappa": "lp", "power": 1.0}, SIGNS_OF_AVERAGE, {"power": 1.5}),
    ),
    Limit(
        *("lion_k", "huber, e to 0", "Huber's function loses its quadratic part"),
        *({**L2, "betas": (B1, B1), "kappa": "huber", "e": TINY}, SIGNS_OF_AVERAGE, {"e": 1.0}),
    ),
    Limit(
        *("lion_k", "soft, e to 0", "no entry is below the threshold"),
        *({**L2, "betas": (B1, B1), "kappa": "soft", "e": TINY}, SIGNS_OF_AVERAGE, {"e": 1.0}),
    ),
    Limit(
        *("lion_k", "power = 2", "the p-norm for p = 2 is the 2-norm"),
        {**BETAS, "kappa": "lp", "power": 2.0},
        *(ours("lion_k", **BETAS, kappa="l2"), {"power": 1.5}),
    ),
    Limit(
        *("lion_k", "l2 without memory", "the gradient of the 2-norm is the direction"),
        *({**L2, "betas": (0.0, 0.0), "kappa": "l2"}, DIRECTIONS, {"betas": (B1, B2)}),
    ),
    Limit(
        *("cautious_lion", "beta1 = 0", "every sign agrees, which leaves n / (n + 1)"),
        LAST,
        closed(lambda p, g, t: decayed(p) - LR * np.sign(g[-1]) * g[-1].size / (g[-1].size + 1)),
        {"betas": (B1, B2)},
    ),
    Limit(
        *("adam", "betas = 0, eps = 0", "g over its own size is its sign"),
        *({**L2, "betas": (0.0, 0.0), "eps": 0.0}, SIGNS_OF_PENALIZED, {"eps": 0.1}),
    ),
    Limit(
        *("adamax", "betas = 0", "the largest and the mean of one gradient's sizes are one"),
        *({**L2, "betas": (0.0, 0.0)}, adam(betas=(0.0, 0.0)), {"betas": (0.0, 0.5)}),
    ),
    Limit(
        *("rmsprop", "alpha = 0, eps = 0", "g over its own size is its sign"),
        *({**L2, "alpha": 0.0, "eps": 0.0}, SIGNS_OF_PENALIZED, {"alpha": 0.5}),
    ),
    *(
        Limit(
            *("bcos", f"beta = 0 in mode {mode}", "all three estimates are the newest square"),
            *({**L2, "beta": 0.0, "eps": 0.0, "mode": mode}, SIGNS, {"beta": 0.5}),
        )
        for mode in ("g", "m", "c")
    ),
    Limit(
        *("exadam", "betas = 0, eps = 0", "the gradient counts once as moment and once as itself"),
        {**L2, "betas": (0.0, 0.0), "eps": 0.0},
        *(closed(lambda p, g, t: decayed(p) - 2 * LR * np.sign(g[-1])), {"betas": (0.0, 0.5)}),
    ),
    Limit(
        *("rprop", "steady signs", "each step grows by eta_plus"),
        {"lr": LR, "etas": (0.5, 1.2)},
        *(closed(lambda p, g, t: p[-1] - LR * 1.2 ** (t - 1) * np.sign(g[-1])), {}, steady),
    ),
    Limit(
        *("rprop_plus", "steady signs", "nothing is ever taken back"),
        {"lr": LR, "etas": (0.5, 1.2)},
        *(theirs("Rprop", lr=LR, etas=(0.5, 1.2)), {}, steady),
    ),
    Limit(
        *("sophia_h", "no curvature", "each entry is clipped"),
        {"lr": LR / 0.01, "weight_decay": WD * 0.01, "betas": (B1, B2), "max_ratio": 0.01},
        *(SIGNS_OF_AVERAGE, {"eps": 1.0}),
        inputs={"h": lambda raw, p, t: 0 * raw},
    ),
    Limit(
        *("sophia_g", "before the first estimate", "a curvature of 0 clips each entry"),
        {**BETAS, "hessian_interval": 100},
        *(SIGNS_OF_AVERAGE, {"hessian_interval": 3}),
        inputs={"h": plain},
    ),
    Limit(
        *("frank_wolfe", "in the ball of the largest entry", "vertices are signs, the step is decay too"),
        {"radius": 2.0, "ball": "linf"},
        closed(lambda p, g, t: p[-1] * (1 - 2 / (t + 1)) - 2 / (t + 1) * 2.0 * np.sign(g[-1])),
        {"ball": "l2"},
    ),
    Limit(
        *("laprop", "beta2 = 0, eps = 0", "momentum of signs"),
        {**L2, "betas": (B1, 0.0), "eps": 0.0, "fixed_decay": False},
        closed(lambda p, g, t: (p[-1] - LR * corrected(list(map(np.sign, g)), B1)) * (1 - LR * WD)),
        {"betas": (B1, B2)},
    ),
    # -- factored second moments
    Limit(
        *("adafactor", "squares of rank one", "row and column means then give back the whole average"),
        {**L2, "d": HUGE, "eps": (0.0, 1e-3)},
        closed(
            lambda p, g, t: (
                decayed(p) - max(1e-3, rms(p[-1])) * min(LR, t**-0.5) * g[-1] / np.sqrt(faded(g, -0.8))
            )
        ),
        *({}, rank_one),
    ),
    Limit(
        *("adafactor_hf", "squares of rank one", "row and column means then give back the whole average"),
        {**L2, "relative_step": False, "scale_parameter": False, "clip_threshold": HUGE, "eps": (0.0, 1e-3)},
        *(closed(lambda p, g, t: decayed(p) - LR * g[-1] / np.sqrt(faded(g, -0.8))), {}, rank_one),
    ),
    Limit(
        *("adafactor_hf", "squares of rank one, decay_rate = 0", "of the newest gradient: signs"),
        {
            **{**L2, "relative_step": False, "scale_parameter": False, "eps": (0.0, 1e-3)},
            **{"decay_rate": 0.0, "beta1": B1},
        },
        closed(lambda p, g, t: decayed(p) - LR * ema(list(map(np.sign, g)), B1)),
        *({}, rank_one),
    ),
    Limit(
        *("adalomo", "squares of rank one, decay_rate = 0", "signs, relative to the tensor"),
        {**L2, "decay_rate": 0.0, "eps": (0.0, 1e-3)},
        closed(
            lambda p, g, t: p[-1] * (1 - LR * rms(p[-1]) * WD) - LR * max(1e-3, rms(p[-1])) * np.sign(g[-1])
        ),
        *({}, rank_one),
    ),
    Limit(
        *(
            "came",
            "no memory, squares of rank one",
            "a step that is its own average has no deviation but eps",
        ),
        {**L2, "betas": (0.0, 0.0, 0.0), "eps": (0.0, 1.0)},
        *(SIGNS, {}, rank_one),
    ),
    Limit(
        *("sm3", "entries of one size", "the largest of a row is each of its entries: Adagrad"),
        *({"lr": LR, "eps": 0.0}, theirs("Adagrad", lr=LR, eps=0.0), {}, even),
    ),
    # -- Adam without its first moment
    Limit(
        *("adam", "beta1 = 0", "RMSprop with bias correction"),
        *(LAST, RMSPROP_CORRECTED, {"betas": (B1, B2)}),
    ),
    Limit(
        *("adam", "beta1 = 0, as torch's", "the first moment is the gradient"),
        *(LAST, adam(betas=(0.0, B2)), {"betas": (B1, B2)}),
    ),
    Limit(
        *("qhadam", "nu1 = 0", "the first moment has no weight"),
        *({**BETAS, "nus": (0.0, 1.0)}, RMSPROP_CORRECTED, {"nus": (0.1, 1.0)}),
    ),
    Limit(
        *("nadam", "beta1 = 0", "nothing to look ahead along"),
        *(LAST, RMSPROP_CORRECTED, {"betas": (B1, B2)}),
    ),
    Limit(
        *("nadamw", "beta1 = 0", "nothing to look ahead along"),
        *(LAST, adamw(betas=(0.0, B2)), {"betas": (B1, B2)}),
    ),
    Limit(
        *("ftml", "beta1 = 0", "a leader of one gradient is one step from the parameter"),
        *(LAST, RMSPROP_CORRECTED, {"betas": (B1, B2)}),
    ),
    Limit(
        *("adapnm", "beta1 = 0, beta3 = 0", "of two momenta the one that just took the gradient"),
        {**L2, "betas": (0.0, B2, 0.0), "amsgrad": False},
        *(adamw(betas=(0.0, B2)), {"betas": (0.0, B2, 0.5)}),
    ),
    Limit(
        *("adapnm", "the same with amsgrad", "nothing else changes"),
        {**L2, "betas": (0.0, B2, 0.0)},
        *(adamw(betas=(0.0, B2), amsgrad=True), {"amsgrad": False}),
    ),
    Limit(
        *("schedule_free_adamw", "beta1 = 0", "y is z, and x of no effect"),
        *(LAST, adamw(betas=(0.0, B2)), {"betas": (0.9, B2)}),
    ),
    Limit(
        *("ano", "gradients that grow", "a second moment that never falls is Adam's, if signs are steady"),
        *(EXACT, adamw(betas=(0.0, B2), eps=0.0), {}, growing),
    ),
    Limit(
        *("psgld", "temperature = 0", "RMSprop without noise"),
        {**L2, "temperature": 0.0},
        *(theirs("RMSprop", **L2, eps=1e-5), {"temperature": 1e-3}),
    ),
    # -- AdamW and Adam
    Limit(
        *("ademamix", "alpha = 0", "the slow average has no weight"),
        {**L2, "betas": (B1, B2, 0.999), "alpha": 0.0},
        *(adamw(), {"alpha": 2.0}),
    ),
    Limit(
        *("simplified_ademamix", "alpha = 0, corrected", "a sum over the sum of its weights is the average"),
        {**BETAS, "bias_correction1": True},
        *(adamw(), {"alpha": 1.0}),
    ),
    Limit(
        *("adan", "beta2 = 0, no_prox", "differences have no weight in either moment"),
        {**L2, "betas": (B1, 0.0, B2), "no_prox": True},
        *(adamw(), {"betas": (B1, 0.5, B2)}),
    ),
    Limit(
        *("adan", "beta2 = 0", "the same, with decay as a proximal step"),
        {**L2, "betas": (B1, 0.0, B2)},
        closed(
            lambda p, g, t: (
                (p[-1] - LR * corrected(g, B1) / (np.sqrt(corrected(squares(g), B2)) + 1e-8)) / (1 + LR * WD)
            )
        ),
        {"no_prox": True},
    ),
    Limit(
        *("adan", "constant gradients", "differences are 0, the first one too"),
        {**L2, "betas": (B1, 0.9, B2), "no_prox": True},
        *(adamw(), {}, constant),
    ),
    Limit(
        *(
            "adan",
            "beta1 = beta2, eps to infinity",
            "Nesterov's momentum, but for the echo of the first gradient",
        ),
        {"lr": LR * HUGE, "weight_decay": WD / HUGE, "betas": (B1, B1, B2), "eps": HUGE, "no_prox": True},
        closed(
            lambda p, g, t: (
                decayed(p) - LR / (1 - B1**t) * (B1 * ema(g, B1) + (1 - B1) * g[-1] - (1 - B1) * B1**t * g[0])
            )
        ),
        {"betas": (B1, 0.5, B2)},
    ),
    Limit(
        *("mars", "gamma = 0, gradients below the clip", "the corrected gradient is the gradient"),
        {**BETAS, "gamma": 0.0, "optimize_1d": True},
        *(adamw(), {"gamma": 0.025}, short),
    ),
    Limit(
        *("mars", "gamma = 0 for matrices only", "others take AdamW in any case"),
        {**BETAS, "gamma": 0.0, "betas_1d": (B1, B2), "weight_decay_1d": WD},
        *(adamw(), {}, short),
    ),
    Limit(
        *("mars", "gamma = 0 as Lion", "one average and its sign: Lion with equal betas"),
        {**BETAS, "gamma": 0.0, "optimize_1d": True, "mars_type": "mars-lion"},
        *(SIGNS_OF_AVERAGE, {"gamma": 0.5}, short),
    ),
    Limit(
        *("qhadam", "nus = 1", "the newest gradient has no weight of its own"),
        *(BETAS, adam(), {"nus": (0.7, 1.0)}),
    ),
    Limit(
        *("qhadam", "nus = 1, decoupled", "the newest gradient has no weight of its own"),
        *({**BETAS, "decouple_weight_decay": True}, adamw(), {"nus": (1.0, 0.7)}),
    ),
    Limit(
        *("qhadam", "nu2 = 0", "the second moment is the newest square"),
        *({**BETAS, "nus": (1.0, 0.0)}, adam(betas=(B1, 0.0)), {"nus": (1.0, 1.0)}),
    ),
    Limit(
        *("qhadam", "nus = 0, eps = 0", "g over its own size is its sign"),
        *({**EXACT, "nus": (0.0, 0.0)}, SIGNS_OF_PENALIZED, {"nus": (0.0, 1.0)}),
    ),
    Limit(
        *("lamb", "tensors longer than their steps, trust_clip", "the ratio is clipped to 1"),
        {**BETAS, "trust_clip": True, "max_grad_norm": None},
        *(adamw(eps=1e-6), {"trust_clip": False}),
        start=10.0,
    ),
    Limit(
        *("lamb", "no decay, not always_adapt", "there is no ratio, by definition"),
        {"lr": LR, "betas": (B1, B2), "weight_decay": 0.0, "max_grad_norm": HUGE},
        *(adamw(eps=1e-6, weight_decay=0.0), {"always_adapt": True}),
    ),
    Limit(
        *("nadam", "momentum_decay to infinity", "the schedule stands still at beta1: Dozat's rule"),
        {**BETAS, "momentum_decay": 1e6},
        closed(
            lambda p, g, t: (
                p[-1]
                - LR
                * (
                    (1 - B1) / (1 - B1**t) * penalized(p, g)[-1]
                    + B1 / (1 - B1 ** (t + 1)) * ema(penalized(p, g), B1)
                )
                / (np.sqrt(corrected(squares(penalized(p, g)), B2)) + 1e-8)
            )
        ),
        {"momentum_decay": 4e-3},
    ),
    Limit(
        *("padam", "partial = 1/2", "the power of the root is 1: AMSGrad"),
        *({**EXACT, "partial": 0.5}, adam(eps=0.0, amsgrad=True), {"partial": 0.4}),
    ),
    Limit(
        *("adamod", "beta3 = 0", "a step size is no larger than itself"),
        *({**EXACT, "beta3": 0.0}, adamw(eps=0.0), {"beta3": 0.5}),
    ),
    Limit(
        *("adabound", "gamma = 0", "the bounds stay at 0 and infinity"),
        *({**EXACT, "gamma": 0.0}, adam(eps=0.0), {"gamma": 0.9}),
    ),
    *(
        Limit(
            *("adamnorm", f"r = {r:g}", "no gradient is shorter than an average that is its norm, or 0"),
            *({**EXACT, "r": r}, adam(eps=0.0), {"r": 0.5}),
        )
        for r in (0.0, 1.0)
    ),
    Limit(
        *("adamp", "delta = 0", "no cosine is below 0"),
        *({**BETAS, "delta": 0.0}, adamw(), {"delta": HUGE}),
    ),
    Limit(
        *("adamp", "tensors that are not scale-free", "no cosine is small"),
        *(BETAS, adamw(), {"delta": HUGE}, along),
    ),
    Limit(
        *("adamp", "delta = 0, nesterov", "the same look ahead as NAdamW's"),
        {**BETAS, "delta": 0.0, "nesterov": True},
        *(ours("nadamw", **BETAS), {"nesterov": False}),
    ),
    Limit(
        *("adams", "gradients of 1 and -1", "the mean second moment is 1"),
        *(BETAS, adamw(), {}, signs),
    ),
    Limit(
        *("stableadamw", "gradients that shrink", "no second moment lags behind"),
        *({**BETAS, "eps": 1e-8}, adamw(), {}, shrinking),
    ),
    Limit(
        *("spam", "without resets and cuts", "Adam with its decay behind the step"),
        {**EXACT, "threshold": HUGE, "DeltaT": 1000},
        *(DECAY_BEHIND, {"DeltaT": 5}),
    ),
    Limit(
        *("stable_spam", "gammas = 0, gradients of norm 1", "the average of one norm and largest entry"),
        {**EXACT, "gamma1": 0.0, "gamma2": 0.0, "gamma3": 0.0},
        *(adamw(eps=0.0), {}, unit),
    ),
    Limit(
        *("tadam", "k_dof = inf", "the Student distribution is the normal one"),
        *({**BETAS, "k_dof": None}, adam(), {"k_dof": 1.0}),
    ),
    Limit(
        *("tadam", "k_dof to infinity", "each gradient weighs 1, against beta1 / (1 - beta1)"),
        *({**BETAS, "k_dof": HUGE, "amsgrad": 1.0}, adam(amsgrad=True), {"k_dof": 1.0}),
    ),
    Limit(
        *("diffgrad", "gradients that swing", "the friction is 1 where they change by much"),
        *(EXACT, adam(eps=0.0), {}, swinging),
    ),
    Limit(
        *("cautious_adamw", "steady signs", "every entry agrees"),
        *(EXACT, adamw(eps=0.0), {}, steady),
    ),
    Limit(
        *("grams", "steady signs", "the momentum's signs are the gradient's"),
        *(EXACT, adamw(eps=0.0), {}, steady),
    ),
    Limit(
        *("adahessian", "the gradient for the Hessian", "the squares averaged are the gradient's"),
        {**BETAS, "eps": 1e-8},
        *(adamw(), {"hessian_power": 0.5}, constant),
        inputs={"h": constant},
        only="mat",  # filter banks average the Hessian over each filter
    ),
    Limit(
        *("muon", "use_muon = false", "its Adam is AdamW"),
        {"use_muon": False, "adam_lr": LR, "betas": (B1, B2), "weight_decay": WD, "eps": 1e-8},
        *(adamw(), {"use_muon": True}),
    ),
    Limit(
        *("shampoo", "matrix_eps to infinity", "the roots are multiples of the identity"),
        {"lr": LR * HUGE**0.5, "weight_decay": WD, "matrix_eps": HUGE},
        *(sgd(), {"matrix_eps": 1.0}),
    ),
    Limit(
        *("distributed_shampoo", "grafting before the start", "it makes the steps of AdamW"),
        {"lr": LR, "betas": (B1, 0.9), "weight_decay": WD, "start_preconditioning_step": STEPS + 1}
        | {"grafting": "adam", "grafting_beta2": B2, "grafting_epsilon": 1e-8},
        *(adamw(), {"start_preconditioning_step": STEPS}),
    ),
    Limit(
        *("prodigy", "d_coef to 0, d0 = 1", "the estimate stays what it was"),
        {**BETAS, "d0": 1.0, "d_coef": TINY},
        closed(
            lambda p, g, t: p[-1] - LR * (ema(g, B1) / (np.sqrt(ema(squares(g), B2)) + 1e-8) + WD * p[-1])
        ),
        {"d_coef": HUGE},
    ),
    Limit(
        *("dadapt_adam", "growth_rate = 1, d0 = 1", "the estimate may not grow: BERT's Adam"),
        {**BETAS, "d0": 1.0, "growth_rate": 1.0, "decouple": True},
        *(ADAM_UNCORRECTED, {"use_bias_correction": True}),
    ),
    Limit(
        *("bert_adam", "max_grad_norm to infinity", "the clip never acts"),
        {**L2, "b1": B1, "b2": B2, "e": 1e-8, "max_grad_norm": HUGE},
        *(ADAM_UNCORRECTED, {"max_grad_norm": 0.1}),
    ),
    Limit(
        *("prox_adam", "no penalty", "there is nothing to shrink by"),
        {"lr": LR, "betas": (B1, B2), "l1": 0.0},
        *(adam(weight_decay=0.0), {"l1": 0.1}),
    ),
    Limit(
        *("ranger", "no centralization, k = 1, alpha = 1", "Lookahead goes back nowhere: RAdam"),
        {**BETAS, "k": 1, "alpha": 1.0, "use_gc": False},
        theirs("RAdam", **BETAS, eps=1e-5, decoupled_weight_decay=True),
        {"alpha": 0.5},
    ),
    Limit(
        *("adam_gc", "gc_conv_only, for a matrix", "only filter banks are centralized"),
        *({**BETAS, "gc_conv_only": True}, adam(), {"gc_conv_only": False}),
        only="mat",
    ),
    # -- Adagrad
    Limit(
        *("ftrl", "no penalty, beta = 0", "the closed form unrolls to Adagrad's steps"),
        *({"lr": LR}, theirs("Adagrad", lr=LR, eps=0.0), {"lambda_1": 0.1}),
    ),
    Limit(
        *(
            "yogi",
            "betas = 0, squares that grow by more than their sum",
            "what is added is the square: Adagrad",
        ),
        {**L2, "betas": (0.0, 0.0), "initial_accumulator": 0.0},
        *(theirs("Adagrad", **L2, eps=1e-3), {}, growing),
    ),
    Limit(
        *("adagrad_da", "no penalty, from 0", "the sum of gradients over the root of that of squares"),
        {"lr": LR},
        closed(lambda p, g, t: -LR * sum(g) / np.sqrt(0.1 + sum(squares(g)))),
        {"l2_regularization_strength": 0.1},
        start=0.0,
    ),
    Limit(
        *("rda", "no penalty, from 0", "dual averaging with lr = 1 / gamma"),
        {"gamma": 10.0, "lambda_1": 0.0},
        *(ours("dual_averaging", lr=0.1), {"lambda_1": 0.1}),
        start=0.0,
    ),
    # -- momentum
    Limit(
        *("adam", "eps to infinity", "the second moment vanishes beside eps"),
        {"lr": LR * HUGE, "betas": (B1, B2), "weight_decay": WD, "eps": HUGE},
        *(MOMENTUM, {"betas": (0.5, B2)}),
    ),
    Limit(
        *("radam", "beta2 below 2/3", "the second moment is never trusted"),
        *({**L2, "betas": (B1, 0.5)}, MOMENTUM, {"betas": (B1, B2)}),
    ),
    Limit(
        *("adabelief", "beta2 below 2/3", "the deviation is never trusted"),
        *({**L2, "betas": (B1, 0.5)}, DECAYED_MOMENTUM, {"rectify": False}),
    ),
    Limit(
        *("adai", "beta0 = 0", "the inertia is 1 - eps everywhere"),
        {**L2, "betas": (0.0, B2), "eps": 1 - B1},
        *(MOMENTUM, {"betas": (0.1, B2)}),
    ),
    Limit(
        *("apollo", "eps to infinity", "the curvature stays at its bound of 1"),
        {**L2, "beta": B1, "eps": HUGE, "warmup": 0},
        *(MOMENTUM, {"eps": 1e-4}),
    ),
    Limit(
        *("adahessian", "hessian_power = 0", "anything to the power of 0 is 1"),
        {**BETAS, "eps": 0.0, "hessian_power": 0.0},
        *(DECAYED_MOMENTUM, {"hessian_power": 0.5}),
        inputs={"h": plain},
    ),
    Limit(
        *("padam", "partial = 0", "only the corrections are left of Adam"),
        {**BETAS, "partial": 0.0},
        closed(lambda p, g, t: p[-1] - LR * np.sqrt(1 - B2**t) * corrected(penalized(p, g), B1)),
        {"partial": 0.1},
    ),
    Limit(
        *(
            "avagrad",
            "eps to infinity",
            "the factor of a step divides its root again; nothing moves in step 1",
        ),
        {**BETAS, "eps": HUGE},
        closed(lambda p, g, t: p[-1] - (LR * corrected(penalized(p, g), B1) if t > 1 else 0)),
        {"eps": 0.1},
    ),
    Limit(
        *("adopt", "eps to infinity", "nothing is normalized; step 1 only looks"),
        {"lr": LR * HUGE, "weight_decay": WD, "betas": (B1, B2), "eps": HUGE},
        closed(lambda p, g, t: p[-1] - LR * (ema(penalized(p, g)[1:], B1) if t > 1 else 0)),
        {"decoupled": True, "weight_decay": WD / HUGE / 10},
    ),
    Limit(
        *("rmsprop", "eps to infinity, momentum", "torch's SGD"),
        {"lr": LR * HUGE, "weight_decay": WD, "momentum": B1, "eps": HUGE},
        *(sgd(momentum=B1), {"momentum": 0.0}),
    ),
    Limit(
        *("qhm", "nu = 1", "momentum, as an average in place of a sum"),
        {**L2, "momentum": B1, "nu": 1.0},
        *(sgd(lr=LR * (1 - B1), momentum=B1), {"nu": 0.7}),
    ),
    Limit(
        *("qhm", "nu = momentum", "Nesterov's momentum"),
        {**L2, "momentum": B1, "nu": B1},
        *(sgd(lr=LR * (1 - B1), momentum=B1, nesterov=True), {"nu": 1.0}),
    ),
    Limit(
        *(
            "pid",
            "integral = momentum, derivative = 0",
            "the gradient and its sum ahead: Nesterov's momentum",
        ),
        {**L2, "momentum": B1, "integral": B1, "derivative": 0.0},
        *(sgd(momentum=B1, nesterov=True), {"derivative": 0.5}),
    ),
    Limit(
        *("heavy_ball", "a constant learning rate", "the displacement is minus lr times torch's buffer"),
        *({**L2, "momentum": B1}, sgd(momentum=B1), {"momentum": 0.5}),
    ),
    Limit(
        *("nag", "a constant learning rate", "Sutskever's form is Nesterov's at the point ahead"),
        *({**L2, "momentum": B1}, sgd(momentum=B1, nesterov=True), {"schedule": True}),
    ),
    Limit(
        *("aggmo", "equal betas", "the mean of three equal velocities"),
        {**L2, "betas": (B1, B1, B1)},
        *(sgd(momentum=B1), {"betas": (0.0, B1, 0.99)}),
    ),
    Limit(
        *("sghmc", "temperature = 0", "SGD with momentum 1 - friction"),
        {**L2, "friction": 1 - B1, "temperature": 0.0},
        *(sgd(momentum=B1), {"temperature": 1e-3}),
    ),
    Limit(
        *("agvm_sgd", "before the first measurement", "the factor does not act yet"),
        {**L2, "momentum": B1},
        *(sgd(momentum=B1), {"start": 0}),
        inputs={"a": plain, "b": steady},
    ),
    Limit(
        *("pnm", "no memory, equal weights", "twice this gradient less the last: optimistic steps"),
        {"lr": LR * 5**0.5, "weight_decay": WD, "betas": (0.0, 1.0), "decoupled": False},
        *(ours("optimistic_sgd", **L2), {"betas": (0.0, 0.5)}),
    ),
    Limit(
        *("gravity", "small gradients, no noise", "nothing is squashed: momentum whose decay rises"),
        {"lr": 1e8, "alpha": 0.0, "beta": B1},
        *(closed(lambda p, g, t: p[-1] - 1e8 * rising(g, B1)), {"beta": 0.5}, small),
    ),
    Limit(
        *("a2grad", "beta = 0", "accelerated steps of t / (2 L), whatever the deviation"),
        {"beta": 0.0, "lips": 10.0},
        closed(
            lambda p, g, t: (
                t / (t + 2) * p[-1]
                + 2 / (t + 2) * (p[0] - sum((i + 1) / 20 * x for i, x in enumerate(g)))
                - t / (t + 2) * 2 / (t + 1) * t / 20 * g[-1]
            )
        ),
        {"beta": 10.0},
    ),
    Limit(
        *("sgdp", "delta = 0", "nothing is projected; the decay is that of the sum of steps"),
        {**L2, "momentum": B1, "delta": 0.0},
        *(ours("sgds", **L2, momentum=B1), {"delta": HUGE}),
    ),
    Limit(
        *("group_lasso", "no penalty, fista", "FISTA without its penalty"),
        {"lr": LR, "penalty": 0.0, "fista": True},
        *(ours("fista", lr=LR, l1=0.0), {"fista": False}),
    ),
    # -- plain descent
    Limit(
        *("adam", "beta1 = 0, eps to infinity", "nothing is left to divide by"),
        {"lr": LR * HUGE, "weight_decay": WD, "betas": (0.0, B2), "eps": HUGE},
        *(sgd(), {"betas": (B1, B2)}),
    ),
    Limit(
        *("radam", "beta1 = 0, beta2 below 2/3", "neither moment acts"),
        *({**L2, "betas": (0.0, 0.5)}, sgd(), {"betas": (0.0, B2)}),
    ),
    Limit(
        *("adabelief", "beta1 = 0, not rectified", "no gradient is a surprise, so that eps alone divides"),
        {
            **{"lr": LR * (1e-2 / (1 - B2)) ** 0.5 + LR * 1e-2, "weight_decay": WD, "betas": (0.0, B2)},
            **{"eps": 1e-2, "rectify": False, "weight_decouple": False},
        },
        *(sgd(), {"betas": (0.1, B2)}),
    ),
    Limit(
        *("adai", "eps = 1", "no weight has inertia"),
        *({**L2, "eps": 1.0}, sgd(), {"eps": 0.5}),
    ),
    Limit(
        *("adai", "beta0 to infinity", "the inertia is clipped at 0"),
        *({**L2, "betas": (HUGE, B2)}, sgd(), {"betas": (0.1, B2)}),
    ),
    Limit(
        *("adadelta", "rho = 1", "both averages stay at 0, and their ratio at 1"),
        *({**L2, "rho": 1.0}, sgd(), {"rho": 0.9}),
    ),
    Limit(
        *("rmsprop", "alpha = 1", "the average stays at 0, and eps divides"),
        *({"lr": LR / 10, "weight_decay": WD, "alpha": 1.0, "eps": 0.1}, sgd(), {"alpha": 0.99}),
    ),
    Limit(
        *("adagrad", "a start beyond all squares", "the sum does not change"),
        {"lr": LR * HUGE**0.5, "weight_decay": WD, "initial_accumulator_value": HUGE},
        *(sgd(), {"lr_decay": 0.1}),
    ),
    Limit(
        *("adagradnorm", "b0 to infinity", "the joint sum does not change"),
        {"lr": LR * HUGE**0.5, "b0": HUGE**0.5},
        *(sgd(weight_decay=0.0), {"lr": LR, "b0": 1.0}),
    ),
    Limit(*("asgd", "lambd = 0", "the rate never falls"), *({**L2, "lambd": 0.0}, sgd(), {"lambd": 0.1})),
    Limit(
        *("storm", "c and w to infinity", "new gradients weigh 1, the rate is constant"),
        {"k": LR * HUGE ** (1 / 3), "w": HUGE, "c": HUGE},
        *(sgd(weight_decay=0.0), {"c": 0.1}),
        inputs={"g2": plain},
    ),
    Limit(
        *("storm_google", "momentum and eta to infinity", "new gradients weigh 1, the rate is constant"),
        {"lr": LR * HUGE ** (1 / 3), "eta": HUGE, "momentum": HUGE},
        *(sgd(weight_decay=0.0), {"momentum": 0.1}),
        inputs={"g2": plain},
    ),
    Limit(
        *("msvag", "beta = 0", "one gradient has no variance"),
        *({"lr": LR, "beta": 0.0}, sgd(weight_decay=0.0), {"beta": B1}),
    ),
    Limit(
        *("svag", "beta = 0", "one gradient has no variance"),
        *({"lr": LR, "beta": 0.0}, sgd(weight_decay=0.0), {"beta": B1}),
    ),
    Limit(
        *("msvag", "constant gradients", "they have no variance"),
        *({"lr": LR, "beta": B1}, sgd(weight_decay=0.0), {}, constant),
    ),
    Limit(
        *("qhm", "nu = 0", "the average has no weight"),
        *({**L2, "momentum": B1, "nu": 0.0}, sgd(), {"nu": 0.1}),
    ),
    Limit(
        *("pid", "no sum, no change", "the gradient is left"),
        {**L2, "momentum": B1, "integral": 0.0, "derivative": 0.0},
        *(sgd(), {"integral": 1.0}),
    ),
    Limit(
        *("aggmo", "betas = 0", "no velocity lasts"),
        {**L2, "betas": (0.0, 0.0, 0.0)},
        sgd(),
        {"betas": (0.0, 0.0, 0.5)},
    ),
    Limit(*("sgdw", "no momentum", "decay and L2 penalty are one"), *(L2, sgd(), {"momentum": B1})),
    Limit(*("sgds", "no momentum", "decay and L2 penalty are one"), *(L2, sgd(), {"momentum": B1})),
    Limit(
        *("accsgd", "xi to 0", "the short step is all there is"),
        *({**L2, "xi": TINY}, sgd(), {"xi": 10.0}),
    ),
    Limit(
        *("schedule_free_sgd", "momentum to 0", "y is z, and x of no effect"),
        *({**L2, "momentum": TINY}, sgd(), {"momentum": 0.9}),
    ),
    Limit(
        *("lars", "trust_coeff to infinity, trust_clip", "the ratio is clipped to 1"),
        {**L2, "momentum": B1, "trust_coeff": HUGE, "trust_clip": True},
        *(sgd(momentum=B1), {"trust_coeff": 1e-3}),
    ),
    Limit(
        *("larc", "trust_coefficient to infinity", "the ratio is clipped to 1"),
        {**L2, "momentum": B1, "trust_coefficient": HUGE},
        *(sgd(momentum=B1), {"trust_coefficient": 0.02}),
    ),
    Limit(
        *("sgd_sai", "one tensor, no momentum", "its ratio is the largest"),
        *({**L2, "momentum": 0.0}, sgd(), {"momentum": B1}),
        only="mat",
    ),
    Limit(
        *("sgd_gc", "gc_conv_only, for a matrix", "only filter banks are centralized"),
        *({**L2, "gc_conv_only": True}, sgd(), {"gc_conv_only": False}),
        only="mat",
    ),
    Limit(*("orthograd", "orthogonal gradients", "nothing is taken away"), *(L2, sgd(), {}, orthogonal)),
    Limit(
        *("sgld", "temperature = 0", "no noise"),
        *({**L2, "temperature": 0.0}, sgd(), {"temperature": 1e-3}),
    ),
    Limit(
        *("csgld", "temperature = 0, a long cycle", "no noise, and a rate that hardly falls"),
        {**L2, "temperature": 0.0, "period": 10**9},
        *(sgd(), {"period": 100}),
    ),
    Limit(*("lomo", "no clips", "SGD"), *({"lr": LR}, sgd(weight_decay=0.0), {"clip_grad_norm": 1.0})),
    Limit(
        *("subgradient", "power = 0, as it is", "a constant rate"),
        *({"lr": LR, "power": 0.0, "normalize": False}, sgd(weight_decay=0.0), {"power": 0.5}),
    ),
    Limit(
        *("rm3", "gradients that grow", "the median of three is the one before: SGD, one step late"),
        L2,
        closed(lambda p, g, t: p[-1] - (LR * (g[-2] + WD * p[-1]) if t > 2 else 0)),
        *({}, growing),
    ),
    Limit(
        *("dadapt_sgd", "growth_rate = 1", "the estimate may not grow: steps relative to the first gradient"),
        {"lr": 50.0, "weight_decay": WD, "d0": 1e-3, "growth_rate": 1.0},
        closed(lambda p, g, t: p[-1] - 0.05 / length(g[0]) * penalized(p, g)[-1]),
        *({"growth_rate": None}, steady),
        only="mat",
    ),
    *(
        Limit(
            *("projected_sgd", f"a large {onto}", "nothing is outside"),
            *({"lr": LR, "onto": onto, "size": HUGE}, sgd(weight_decay=0.0), {"size": 0.5}),
        )
        for onto in ("box", "l2", "l1")
    ),
    Limit(*("ista", "no penalty", "there is nothing to shrink by"), *({**L2, "l1": 0.0}, sgd(), {"l1": 0.1})),
    Limit(
        *("group_lasso", "no penalty", "there is nothing to shrink by"),
        *({"lr": LR, "penalty": 0.0}, sgd(weight_decay=0.0), {"penalty": 0.1}),
    ),
    Limit(
        *("wgsef_sgd", "as many rows as there are, strength to 0", "all rows are left, as they are"),
        *({**L2, "k": 1000.0, "strength": TINY}, sgd(), {"strength": 0.1}),
    ),
    Limit(
        *("adopt", "no memory, no clip", "each gradient over the size of the last"),
        {**L2, "betas": (0.0, 0.0), "eps": 0.0, "clip_exp": None, "decoupled": True},
        closed(lambda p, g, t: decayed(p) - LR * g[-1] / np.abs(g[-2]) if t > 1 else p[-1]),
        {"clip_exp": 0.25},
    ),
    # -- directions
    Limit(
        *("novograd", "betas = 0, decoupled", "the root of the squared norm is the norm"),
        {**L2, "betas": (0.0, 0.0), "eps": 0.0, "decoupled_decay": True},
        *(DIRECTIONS, {"betas": (0.0, 0.5)}),
    ),
    Limit(
        *("nsgd", "no momentum, per_tensor", "the direction is left"),
        *({"lr": LR, "momentum": 0.0, "per_tensor": True}, PLAIN_DIRECTIONS, {"momentum": B1}),
    ),
    Limit(
        *("normalized_sgd", "one tensor, no momentum", "the joint norm is the tensor's"),
        *(L2, DIRECTIONS, {"momentum": B1}),
        only="mat",
    ),
    Limit(
        *("subgradient", "one tensor, power = 0", "a constant rate"),
        *({"lr": LR, "power": 0.0}, PLAIN_DIRECTIONS, {"power": 0.5}),
        only="mat",
    ),
    Limit(
        *("nigt", "one tensor, no momentum", "the point ahead is the iterate"),
        *({"lr": LR, "momentum": 0.0}, PLAIN_DIRECTIONS, {"momentum": B1}),
        only="mat",
    ),
    Limit(
        *("npg_igt", "one tensor, power = 0", "new gradients weigh 1, the point ahead is the iterate"),
        {"lr": LR, "power": 0.0},
        *(closed(lambda p, g, t: p[-1] - LR * 2 / (t + 1) * g[-1] / length(g[-1])), {"power": 0.5}),
        only="bank",
    ),
    Limit(
        *("trust_ratio_rmsprop", "alpha = 0, eps = 0", "signs, of the length of the tensor"),
        {**L2, "alpha": 0.0, "eps": 0.0},
        closed(lambda p, g, t: p[-1] - LR * rms(p[-1]) * np.sign(penalized(p, g)[-1])),
        {"alpha": 0.5},
    ),
    # -- schedules that stand still
    Limit(
        *("adamw_cosine", "final = 1", "no fall"), *({**BETAS, "final": 1.0}, adamw(), {"warmup_steps": 5})
    ),
    Limit(
        *("adamw_wsd", "final = 1", "no fall"),
        {**BETAS, "stable_steps": 3, "decay_steps": 5, "final": 1.0},
        *(adamw(), {"final": 0.5}),
    ),
    Limit(
        *("adam_inverse_sqrt", "warmup_steps = 1", "the rate is lr over the root of t"),
        {**BETAS, "warmup_steps": 1, "eps": 1e-8},
        closed(
            lambda p, g, t: (
                p[-1]
                - LR
                / t**0.5
                * corrected(penalized(p, g), B1)
                / (np.sqrt(corrected(squares(penalized(p, g)), B2)) + 1e-8)
            )
        ),
        {"warmup_steps": 4},
    ),
    Limit(
        *("adam_sqrt_scaling", "the batch it was found for", "all factors are 1"),
        {**BETAS, "batch_size": 64, "base_batch_size": 64},
        *(adam(), {"batch_size": 128}),
    ),
    Limit(
        *("sgd_linear_scaling", "the batch it was found for", "nothing to warm up to"),
        {**L2, "momentum": B1, "batch_size": 64, "base_batch_size": 64, "warmup_steps": 5},
        *(sgd(momentum=B1), {"batch_size": 128}),
    ),
    Limit(
        *("sgd_polynomial", "power = 0", "no fall"),
        {**L2, "momentum": B1, "power": 0.0, "total_steps": STEPS + 1},
        *(sgd(momentum=B1), {"power": 0.9}),
    ),
    Limit(
        *("sgd_step_decay", "gamma = 1", "no fall"),
        {**L2, "momentum": B1, "step_size": 3, "gamma": 1.0},
        *(sgd(momentum=B1), {"gamma": 0.5}),
    ),
    Limit(
        *("sgd_warm_restarts", "final = 1", "no fall"),
        {**L2, "momentum": B1, "period": 5, "final": 1.0},
        *(sgd(momentum=B1), {"final": 0.5}),
    ),
    Limit(
        *("sgd_one_cycle", "all factors 1, one momentum", "nothing rises or falls"),
        {
            **{**L2, "total_steps": STEPS, "div_factor": 1.0, "final_div_factor": 1.0},
            **{"base_momentum": B1, "max_momentum": B1},
        },
        *(sgd(momentum=B1), {"max_momentum": 0.95}),
    ),
    # -- what is put around others
    Limit(
        *("lookahead_adam", "k = 1, alpha = 1", "every step is kept, whole"),
        *({**BETAS, **KEPT}, adam(), {"la_alpha": 0.8}),
    ),
    Limit(
        *("lookahead_sgd", "alpha = 1", "every step is kept, whole"),
        {**L2, "momentum": B1, "la_steps": 3, "la_alpha": 1.0},
        *(sgd(momentum=B1), {"pullback_momentum": "reset"}),
    ),
    Limit(
        *("lookahead_sgd", "k = 1", "alpha multiplies the learning rate"),
        {**L2, "momentum": B1, "la_steps": 1, "la_alpha": 0.4},
        *(sgd(lr=0.4 * LR, momentum=B1), {"la_steps": 2}),
    ),
    Limit(
        *("lion", "k = 1, alpha = 1", "every step is kept, whole"),
        {**L2, "betas": (B1, B1), **KEPT},
        *(SIGNS_OF_AVERAGE, {"la_alpha": 0.8}),
        around="lookahead",
    ),
    Limit(
        *("adamw", "lamb = 0", "the slow part is not amplified"),
        *({**BETAS, "lamb": 0.0}, adamw(), {"lamb": 2.0}),
        around="grokfast",
    ),
    Limit(
        *("adamw", "alpha = 0, eps = 0", "gradients are multiplied by a constant, which Adam does not see"),
        *({**EXACT, "alpha": 0.0, "lamb": 2.0}, adamw(eps=0.0), {"alpha": 0.5}),
        around="grokfast",
    ),
    *(
        Limit(
            *("adamw", f"{option} to infinity", "nothing is above it"),
            *({**BETAS, option: HUGE}, adamw(), {option: 0.01}),
            around=around,
        )
        for around, option in (
            ("clip_by_global_norm", "max_norm"),
            ("clip_by_value", "max_value"),
            ("agc", "clip_factor"),
            ("l1_ball", "radius"),
            ("l2_ball", "radius"),
        )
    ),
    Limit(
        *("adamw", "threshold = 0", "there is nothing to shrink by"),
        *({**BETAS, "threshold": 0.0}, adamw(), {"threshold": 0.1}),
        around="prox_l1",
    ),
    Limit(
        *("adamw", "threshold = 0", "there is nothing to shrink by"),
        *({**BETAS, "threshold": 0.0}, adamw(), {"threshold": 0.1}),
        around="prox_group",
    ),
    Limit(
        *("adamw", "low and high to infinity", "nothing is outside"),
        *({**BETAS, "low": -HUGE, "high": None}, adamw(), {"low": 0.0}),
        around="box",
    ),
    Limit(
        *("adam", "decay of its own, eps = 0", "AdamW is Adam with that"),
        *({"lr": LR, "betas": (B1, B2), "eps": 0.0, "rate": LR * WD}, adamw(eps=0.0), {"rate": 0.0}),
        around="decoupled_decay",
    ),
    Limit(
        *("sgd", "k = 1", "alpha multiplies the learning rate"),
        {**L2, "momentum": B1, "la_steps": 1, "la_alpha": 0.4},
        *(sgd(lr=0.4 * LR, momentum=B1), {"la_steps": 2}),
        around="lookahead",
    ),
    Limit(
        *("adamw", "eta = 0", "no noise"),
        *({**BETAS, "eta": 0.0}, adamw(), {"eta": 0.01}),
        around="gradient_noise",
    ),
    Limit(
        *("adamw", "gradients of norm 1", "there is nothing to divide by"),
        *({**BETAS, "of": "tensor"}, adamw(), {"of": "rows"}, unit),
        around="normalize",
    ),
    Limit(
        *("lion", "steady signs", "every entry agrees"),
        *({**L2, "betas": (B1, B1)}, SIGNS_OF_AVERAGE, {}, steady),
        around="cautious",
    ),
    Limit(
        *("cautious_rmsprop", "steady signs", "every entry agrees"),
        *({**L2, "momentum": B1}, theirs("RMSprop", **L2, momentum=B1), {}, steady),
    ),
    Limit(
        *("optimistic_sgd", "constant gradients", "the last update is this one, but for the first"),
        {"lr": LR},
        *(closed(lambda p, g, t: p[-1] - (2 if t == 1 else 1) * LR * g[-1]), {}, constant),
    ),
    # -- averages
    Limit(
        *("ema_adamw", "decay = 0", "the average is the newest iterate"),
        *({**BETAS, "decay": 0.0}, adamw(), {"decay": 0.5}),
        view=True,
    ),
    Limit(
        *("polyak_sgd", "alpha = 0, gamma to infinity", "the average is the newest iterate"),
        *({**L2, "alpha": 0.0, "gamma": HUGE}, sgd(), {"gamma": 1.0}),
        view=True,
    ),
    Limit(
        *("polyak_sgd", "alpha = 0", "the plain mean of the iterates of SGD"),
        *({**L2, "alpha": 0.0}, Mean, {"start": 3}),
        view=True,
    ),
    Limit(
        *(
            "schedule_free_sgd",
            "a constant rate, r = 0",
            "x is the plain mean of z, which gradients alone move",
        ),
        {"lr": LR, "momentum": B1, "weight_lr_power": 5.0},
        *(closed(lambda p, g, t: p[0] - LR * np.cumsum(g, axis=0).mean(axis=0)), {"r": 1.0}),
        view=True,
    ),
    Limit(
        *("sgd", "every step from the first on", "the plain mean of the iterates of SGD"),
        *({**L2, "swa_start": 0, "swa_freq": 1}, Mean, {"swa_freq": 2}),
        around="swa",
        view=True,
    ),
    Limit(
        *("sgd", "decay = 0", "the average is the newest iterate"),
        *({**L2, "decay": 0.0}, sgd(), {"decay": 0.5}),
        around="ema",
        view=True,
    ),
    Limit(
        *("swa_sgd", "every step from the first on", "the plain mean of the iterates of SGD"),
        *({**L2, "swa_start": 0, "swa_freq": 1}, Mean, {"swa_freq": 2}),
        view=True,
    ),
]


def faded(g: Sequence[Array], power: float) -> Array:
    """The average of squares in which the newest weighs t^power."""
    found = np.zeros_like(g[0])
    for t, x in enumerate(g, 1):
        found = found + t**power * (x**2 - found)
    return found


def rising(g: Sequence[Array], beta: float) -> Array:
    """The average that keeps (beta t + 1) / (t + 2) in step t."""
    found = np.zeros_like(g[0])
    for t, x in enumerate(g, 1):
        keep = (beta * t + 1) / (t + 2)
        found = keep * found + (1 - keep) * x
    return found


def distance(limit: Limit, options: dict[str, Any], gradient: Shaped, flags: dict[str, Any]) -> list[float]:
    """How far the two are from each other after each step: |a - b| / max(1, |b|), the largest of all entries."""
    random = torch.Generator().manual_seed(SEED)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=random, dtype=torch.float64)

    shapes = [SHAPES[limit.only]] if limit.only else list(SHAPES.values())
    mine = [torch.nn.Parameter(limit.start * draw(shape)) for shape in shapes]
    others = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    before = [p.detach().clone() for p in mine]
    optimizer = method(limit.spec, limit.around)(mine, **options, **flags)
    peer = limit.peer(others)
    found = []
    for t in range(1, STEPS + 1):
        for p, q in zip(mine, others, strict=True):
            p.grad = gradient(draw(p.shape), q.detach(), t)
            q.grad = p.grad.clone()
        given = {
            name: [shape(draw(p.shape), p.detach(), t) for p in mine] for name, shape in limit.inputs.items()
        }
        optimizer.step(**({"inputs": given} if given else {}))
        peer.step()
        if limit.view:
            optimizer.eval()
        gaps = [
            ((p - q).abs() / q.abs().clamp(min=1)).max().item() for p, q in zip(mine, others, strict=True)
        ]
        found.append(max(gaps))
        if limit.view:
            optimizer.train()
    moves = [(p - q).abs().mean().item() for p, q in zip(others, before, strict=True)]
    assert all(np.isfinite(moves)), "the peer left the numbers"
    assert min(moves) > 1e-3, "nothing moves"
    if flags.get("fused"):
        batches = [batch for table in optimizer._launcher.tables.values() for batch in table.batches]
        assert {type(batch).__name__ for batch in batches} == {"CpuBatch"}
    return found


PATHS = {"foreach": {"foreach": True}, "kernels": {"fused": True}}


CASES = [
    pytest.param(limit, path, id=f"{limit}, {path}", marks=[needs_compiler] if path == "kernels" else [])
    for limit in LIMITS
    for path in PATHS
    if path != "kernels" or limit.spec not in WITHOUT_KERNELS
]


@pytest.mark.parametrize(("limit", "path"), CASES)
def test_limit(limit: Limit, path: str) -> None:
    """In float64, after every step."""
    gaps = distance(limit, limit.options, limit.gradient, PATHS[path])
    assert max(gaps) <= 1e-12, f"{limit.reason}? seed {SEED}: off by {gaps}"


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_away_from_the_limit(limit: Limit) -> None:
    """The two differ where the limit is left."""
    assert limit.away or limit.gradient is not plain
    gradient = limit.gradient if limit.away else plain
    gaps = distance(limit, {**limit.options, **limit.away}, gradient, PATHS["foreach"])
    assert not max(gaps) <= 1e-4, f"seed {SEED}: nothing is left"
