"""Recorded runs in which gradients depend on the parameters, or a step gets more than a gradient, on every path."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from tests.backends.interpreted import interpreted, needs_triton
from tests.support import needs_compiler

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "reference"
REFERENCE = Path(os.environ.get("OPTDSL_REFERENCE", BESIDE)) / "golden-structured"
INDEX = json.loads((REFERENCE / "index.json").read_text()) if REFERENCE.is_dir() else {"entries": []}
ENTRIES = {entry["method"]: entry for entry in INDEX["entries"]}

Arrays = list[np.ndarray]
FLAGS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "native": {"fused": True},
    "triton": {},
}
PATHS = [
    "loop",
    "foreach",
    pytest.param("native", marks=needs_compiler),
    pytest.param("triton", marks=[needs_compiler, needs_triton]),
]


@dataclass
class Replay:
    """A recorded run: where it starts, what a step is given at the parameters it finds, and what comes out.

    `wanted` and `evaluated` hold for each step the parameters after it and what `eval()` makes of them, None where
    nothing is recorded.
    """

    spec: str
    options: dict[str, Any]
    start: Arrays
    gradient: Callable[[int, Arrays], Arrays]
    wanted: list[Arrays | None]
    evaluated: list[Arrays | None] = field(default_factory=list)
    inputs: Callable[[int, Arrays], dict[str, Arrays]] = lambda step, found: {}
    groups: list[dict[str, Any]] = field(default_factory=list)


Maker = Callable[[Mapping[str, Any], Mapping[str, Any]], Replay]
MAKERS: dict[tuple[str, str], Maker] = {}


def replays(method: str, *cases: str) -> Callable[[Maker], Maker]:
    """Registers what makes a replay from the arrays and the hyperparameters of a case."""

    def register(make: Maker) -> Maker:
        MAKERS.update({(method, case): make for case in cases or ("",)})
        return make

    return register


def linear(a: np.ndarray, b: np.ndarray) -> Callable[[int, Arrays], Arrays]:
    """The gradient of x'Ax / 2 - b'x."""
    return lambda step, found: [a @ found[0] - b]


def each(rows: np.ndarray) -> list[Arrays | None]:
    """One tensor, step by step."""
    return [[row] for row in rows]


@replays("sgld_swa")
def sgld(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """Steps 8, 11, ... counted from 0 are averaged."""
    options = {"lr": hypers["lr"], "temperature": hypers["temperature"], "given_noise": True}
    average = each(data["average"])
    return Replay(
        spec="sgld_swa",
        options={**options, "swa_start": 8, "swa_freq": 3},
        start=[data["x0"]],
        gradient=linear(data["A"], data["b"]),
        wanted=each(data["x"]),
        evaluated=[None] * 8 + average[8:],
        inputs=lambda step, found: {"xi": [data["noise"][step]]},
    )


@replays("storm", "paper", "google")
def storm(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """The second gradient is that of the same sample at the parameters before the last step."""
    paper = "k" in hypers
    before = [data["x0"]]

    def gradient(step: int, found: Arrays) -> Arrays:
        return [(data["A"] + data["noise_matrix"][step]) @ found[0] - data["b"] + data["noise"][step]]

    def inputs(step: int, found: Arrays) -> dict[str, Arrays]:
        second = gradient(step, before)
        before[:] = found
        return {"g2": second}

    return Replay(
        spec="storm" if paper else "storm_google",
        options={k: v for k, v in hypers.items() if k not in {"id", "a_cap"}},
        start=[data["x0"]],
        gradient=gradient,
        wanted=each(data["x"]),
        inputs=inputs,
    )


@replays("extragradient_omd", "extrasgd", "extrasgd_mom", "extraadam", "omd", "optimistic_adam")
def games(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """Two calls of `step` for an extrapolation and an update."""
    if "extrapolated" in data:
        pairs = zip(data["extrapolated"], data["z"], strict=True)
        wanted = each(np.array([row for pair in pairs for row in pair]))
        spec = "extra_adam" if "betas" in hypers else "extra_sgd"
    else:
        wanted = each(data["z"])
        spec = "optimistic_adam" if "betas" in hypers else "optimistic_sgd"
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in hypers.items() if k != "id"}
    return Replay(
        spec=spec,
        options=options,
        start=[data["z0"]],
        gradient=linear(data["J"], -data["c"]),
        wanted=wanted,
    )


@replays("mirror_descent_entropic", "md", "optimistic")
def mirror(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """The recorded pairs are what was played and the secondary point; the next play is what a step leaves."""
    optimistic = "wy" in data
    played = [*data["wy"][1:, 0]] if optimistic else [*data["x"]]
    return Replay(
        spec="exponentiated_gradient",
        options={"lr": hypers["stepsize"], "optimistic": optimistic},
        start=[data["x0"]],
        gradient=linear(data["A"], data["b"]),
        wanted=each(np.array(played)),
    )


@replays("proximal_gradient", "l1", "l1_fista", "elastic_net")
def prox(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """The elastic net is written with half the square's factor over that of the l1 norm."""
    l1, ratio = hypers["reg"] if isinstance(hypers["reg"], list) else (hypers["reg"], 0.0)
    fista = hypers["acceleration"]
    iterates = each(data["x"])
    return Replay(
        spec="fista" if fista else "ista",
        options={"lr": hypers["stepsize"], "l1": l1, "l2": l1 * ratio},
        start=[data["x0"]],
        gradient=linear(data["A"], data["b"]),
        wanted=[None] * len(iterates) if fista else iterates,
        evaluated=iterates if fista else [],
    )


@replays("proximal_gradient", "group_l1", "group_l1_fista")
def group_lasso(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """Each group is a tensor."""
    places = [np.flatnonzero(data["groups"] == number) for number in np.unique(data["groups"])]

    def gradient(step: int, found: Arrays) -> Arrays:
        x = np.empty_like(data["x0"])
        for place, part in zip(places, found, strict=True):
            x[place] = part
        g = data["A"] @ x - data["b"]
        return [g[place] for place in places]

    fista = hypers["acceleration"]
    iterates: list[Arrays | None] = [[x[place] for place in places] for x in data["x"]]
    return Replay(
        spec="group_lasso",
        options={"lr": hypers["stepsize"], "penalty": hypers["reg"], "fista": fista, "rowwise": False},
        start=[data["x0"][place] for place in places],
        gradient=gradient,
        wanted=[None] * len(iterates) if fista else iterates,
        evaluated=iterates if fista else [],
    )


@replays("frank_wolfe", "l1")
def frank_wolfe(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """In the l1 ball."""
    return Replay(
        spec="frank_wolfe",
        options={"radius": hypers["radius"], "ball": "l1"},
        start=[data["x0"]],
        gradient=linear(data["A"], data["b"]),
        wanted=each(data["x"]),
    )


@replays("frank_wolfe", "spectral")
def dictionary(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """The gradient of -mean |D y|^3 / 3 over the columns of a block."""

    def gradient(step: int, found: Arrays) -> Arrays:
        y = data["Y"][step]
        z = found[0] @ y
        return [-(np.sign(z) * z**2) @ y.T / y.shape[1]]

    return Replay(
        spec="frank_wolfe_spectral",
        options={},
        start=[data["D0"]],
        gradient=gradient,
        wanted=each(data["D"]),
    )


@replays("prox_wgsef", "groups_k2", "coordinates_k3")
def wgsef(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """Groups are rows, padded with zeros; a step takes the parameters from 0 to a recorded point and shrinks it."""
    places = [np.array(group) for group in hypers["groups"]]
    width = max(len(place) for place in places)

    def matrix(x: np.ndarray) -> np.ndarray:
        return np.stack([np.pad(x[place], (0, width - len(place))) for place in places])

    return Replay(
        spec="wgsef_sgd",
        options={"lr": 1.0, "strength": hypers["lam"], "k": hypers["k"]},
        start=[np.zeros((len(places), width))],
        gradient=lambda step, found: [found[0] - matrix(data["t"][step])],
        wanted=[[matrix(w)] for w in data["w"]],
    )


@replays("agvm", "every2_from4", "every1_from0")
def agvm(data: Mapping[str, Any], hypers: Mapping[str, Any]) -> Replay:
    """Three groups of modules, the first of them the anchor."""
    half = hypers["workers"] // 2
    grads = [data[f"grads_{k}"] for k in range(3)]

    def mean(step: int, workers: slice) -> Arrays:
        return [g[step, workers].mean(axis=0) for g in grads]

    return Replay(
        spec="agvm_sgd",
        options={
            "lr": hypers["lr"],
            "momentum": hypers["sgd_momentum"],
            "interval": hypers["interval"],
            "start": hypers["start"],
            "decay": hypers["momentum"],
        },
        start=[np.full(g.shape[2:], 0.5) for g in grads],
        gradient=lambda step, found: mean(step, slice(None)),
        wanted=[[data[f"p_{k}"][step] for k in range(3)] for step in range(len(data["p_0"]))],
        inputs=lambda step, found: {"a": mean(step, slice(half)), "b": mean(step, slice(half, None))},
        groups=[{"anchor": True}, {}, {}],
    )


def replay(method: str, case: str) -> Replay:
    """The recorded run: the arrays of the case, and those that all cases share."""
    entry = ENTRIES[method]
    with np.load(REFERENCE / entry["file"]) as found:
        data = {k: found[k] for k in found.files if "/" not in k}
        data.update({k[len(case) + 1 :]: found[k] for k in found.files if k.startswith(f"{case}/")})
    hypers = entry["hyperparameters"]
    for own in (*hypers.get("cases", ()), {**hypers.get(case, {}), "id": case} if case in hypers else {}):
        if own.get("id") == case:
            hypers = own
    return MAKERS[method, case](data, hypers)


def tensors(found: Arrays) -> list[torch.Tensor]:
    """Copies as tensors."""
    return [torch.from_numpy(np.array(x)) for x in found]


@pytest.mark.skipif(not ENTRIES, reason="no recorded runs; set OPTDSL_REFERENCE to their folder")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("method", "case"), MAKERS, ids=lambda word: word or "only")
def test_trajectory(method: str, case: str, path: str) -> None:
    """Every tensor after every step, and what stands for it in evaluation, to the tolerance of the index."""
    run = replay(method, case)
    params = [torch.nn.Parameter(x) for x in tensors(run.start)]
    groups = [{"params": [p], **group} for p, group in zip(params, run.groups, strict=False)] or params
    flags = FLAGS[path]
    with interpreted() if path == "triton" else contextlib.nullcontext():
        optimizer = optdsl.load(run.spec)(groups, **run.options, **flags)
        for step, wanted in enumerate(run.wanted):
            found = [p.detach().numpy().copy() for p in params]
            for p, g in zip(params, tensors(run.gradient(step, found)), strict=True):
                p.grad = g
            inputs = {name: tensors(x) for name, x in run.inputs(step, found).items()}
            optimizer.step(**({"inputs": inputs} if inputs else {}))
            check(method, step, params, wanted)
            if run.evaluated:
                optimizer.eval()
                check(method, step, params, run.evaluated[step])
                optimizer.train()


def check(method: str, step: int, params: list[torch.nn.Parameter], wanted: Arrays | None) -> None:
    """Compares with what was recorded, if it was."""
    compare = ENTRIES[method]["compare"]
    for p, want in zip(params, wanted if wanted is not None else (), strict=wanted is not None):
        np.testing.assert_allclose(
            p.detach().numpy(), want, rtol=compare["rtol"], atol=compare["atol"], err_msg=f"step {step + 1}"
        )
