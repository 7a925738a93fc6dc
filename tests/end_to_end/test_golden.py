"""Trajectories recorded by running other people's implementations, on every path of the shipped specs.

One short table maps options that belong to one reference implementation to those of the spec.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from tests.backends.interpreted import interpreted, needs_triton
from tests.support import CORE, needs_compiler

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "reference"
REFERENCE = Path(os.environ.get("OPTDSL_REFERENCE", BESIDE)) / "golden"
INDEX = json.loads((REFERENCE / "index.json").read_text()) if REFERENCE.is_dir() else {"entries": []}

#: The spec for a recorded (method, setting prefix) whose name differs.
SPECS = {
    ("amsgrad", ""): "adam",
    ("tiger", "authors"): "tiger_rms",
    ("shampoo", "meta"): "distributed_shampoo",
    ("lookahead", "sgd"): "lookahead_sgd",
    ("lookahead", "adam"): "lookahead_adam",
    ("gradient_centralization", "sgd"): "sgd_gc",
    ("gradient_centralization", "adam"): "adam_gc",
}
#: Options of a reference implementation that its spec spells otherwise: (method, setting prefix) -> change.
#: None removes an option that selects what the spec does anyway.
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("adamw", ""): {"decoupled_weight_decay": None},
    ("orthograd", "sgd"): {"base": None},
    ("orthograd", "adamw"): {"base": None, "decoupled_weight_decay": None},
    ("tiger", "authors"): {"kinds": None},
    ("lion_k", ""): {"p": "power"},
    ("adam_coord_clip", ""): {"amsgrad": None},
    ("adashift", "keep2_elementwise"): {"reduce_func": None, "+reduce_func": "none"},
    ("lookahead", "adam"): {"inner": None, "pullback_momentum": None},
    ("lookahead", ""): {"inner": None},
    ("gradient_centralization", ""): {"use_gc": None},
    ("dadapt_adam", ""): {"layer_scale": None},
    ("muon", ""): {"tensors": None},
    ("muon_torch", "default"): {"adjust_lr_fn": None},
    ("diffgrad", "v1_inplace_grad"): {"+reused_gradient": True},
    ("shampoo", "kozistr"): {"weight_decouple": None, "fixed_decay": None},
    ("shampoo", "meta_adam_graft"): {
        **{"beta3": None, "use_bias_correction": None, "grafting": None},
        **{"+grafting": "adam", "+grafting_beta2": 0.95},
    },
    ("shampoo", "meta"): {"beta3": None, "use_bias_correction": None, "grafting": None},
    ("sophia_h", ""): {"p": "max_ratio"},
    ("lamb", "timm"): {"caution": None, "decoupled_decay": None, "corrected_weight_decay": None},
    ("lamb", "cybertronai"): {
        "adam": None,
        "+bias_correction": False,
        "+max_grad_norm": float("inf"),
        "+max_trust_norm": 10.0,
        "+always_adapt": True,
    },
}
#: Tensors on which the reference does something that is no rule: AdAdaGrad adds to a bias the row sums of
#: whatever matrix the optimizer happened to visit before it.
LEFT_OUT = {("adagradnorm", "adadagrad"): {"bias"}}

#: Recordings that are themselves off in float64: here by 4e-10 from the rule in arithmetic of 60 digits, as matrices
#: are nearly singular. What the index says holds.
INEXACT = {("shampoo", "kozistr_wd_every3")}

#: What a step is given beside gradients, and how the recorded problem calls it.
INPUTS = {"sophia_g": {"h": "hgrad"}, "sophia_h": {"h": "hvp"}, "adahessian": {"h": "hvp"}}

#: Methods that a long tensor of zeros cannot be added to: a rank among all entries, a matrix of its size squared.
NOT_PADDED = {"sgd_coord_clip", "adam_coord_clip", "shampoo"}

METHODS = {
    *("adamp", "spam", "grams", "cautious_adamw", "cautious_lion", "adamod", "tiger", "lion_k", "lookahead"),
    *("gradient_centralization", "dadapt_adam", "muon", "muon_torch", "sgd_coord_clip", "adam_coord_clip"),
    *("adashift", "shampoo"),
    *("sgd", "adam", "adamw", "amsgrad", "adagrad", "adadelta", "rmsprop", "adamax", "nadam", "rprop"),
    *("sophia_g", "sophia_h", "adahessian", "schedule_free_adamw", "schedule_free_sgd"),
    *("asgd", "lion", "adabelief", "diffgrad", "lamb", "lars", "adagradnorm", "signsgd", "orthograd"),
}  # radam has no recording; torch.optim is its peer
ENTRIES = [entry for entry in INDEX["entries"] if entry["optimizer"] in METHODS]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
#: The ways that a step may take. The loop is asked for by name; `differentiable` keeps the graph and must not change
#: the numbers.
FLAGS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "differentiable": {"differentiable": True},
    "native": {"fused": True},
    "native, two threads": {"fused": True},
    "triton": {},
    "triton, counting": {"fused": True},
}
PATHS = [
    "loop",
    "foreach",
    pytest.param("native", marks=needs_compiler),
    pytest.param("native, two threads", marks=needs_compiler),
    pytest.param("triton", marks=[needs_compiler, needs_triton]),
]
#: Elements of one more parameter, all 0, without which the problem is too small for two threads.
PADDING = 50_000


def changes(entry: dict[str, Any], table: dict[tuple[str, str], Any]) -> Any:
    """The row of a table for an entry, or None."""
    for (method, prefix), row in table.items():
        if entry["optimizer"] == method and entry["setting"].startswith(prefix):
            return row
    return None


def hypers(entry: dict[str, Any]) -> dict[str, Any]:
    """The recorded hyperparameters as the spec takes them."""
    recorded = dict(entry["hyperparameters"])
    recorded |= recorded.pop("inner_hyperparameters", {})
    if "muon" in recorded:  # two groups of parameters, which the spec tells apart by their shape
        recorded = recorded["adam"] | recorded["muon"] | {"adam_lr": recorded["adam"]["lr"], "tensors": None}
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()}
    options |= {k: float("inf") for k, v in recorded.items() if v == "inf"}
    for name, change in (changes(entry, OPTIONS) or {}).items():
        if name.startswith("+"):
            options[name[1:]] = change
        elif name in options:
            value = options.pop(name)
            if change is not None:
                options[change] = value
    return options


def optimizer_class(entry: dict[str, Any], folder: Path) -> type[torch.optim.Optimizer]:
    """The class for an entry; OrthoGrad around AdamW is composed here."""
    if (entry["optimizer"], entry["setting"]) == ("orthograd", "adamw"):
        path = folder / "orthograd_adamw.opt"
        path.write_text("optimizer OrthoGradAdamW:\n    use OrthoGrad()\n    use AdamW()\n")
        return optdsl.load(path)
    return optdsl.load(changes(entry, SPECS) or entry["optimizer"])


def run(
    cls: type, entry: dict[str, Any], path: str, options: dict[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Replays a recorded run, with `options` if given: parameters before the first and after each step."""
    dtype = DTYPES[entry["dtype"]]
    names = list(entry["keys"])
    with np.load(REFERENCE / INDEX["problem"]) as problem:
        params = [torch.from_numpy(problem[f"init.{n}"]).to(dtype).requires_grad_() for n in names]
        grads = [torch.from_numpy(problem[f"{entry['gradients']}.{n}"]).to(dtype) for n in names]
        given = {
            key: [prepared(entry, torch.from_numpy(problem[f"{source}.{n}"]).to(dtype)) for n in names]
            for key, source in INPUTS.get(entry["optimizer"], {}).items()
        }
    padding = [torch.zeros(PADDING, dtype=dtype).requires_grad_()] if "threads" in path else []
    for p in padding:
        p.grad = torch.zeros(PADDING, dtype=dtype)
    kinds = entry["hyperparameters"].get("kinds")  # one per tensor
    groups: list[dict[str, Any]] = [{"params": [*params, *padding]}]
    if kinds:
        groups = [{"params": [p], "kind": kind} for p, kind in zip(params, kinds, strict=True)]
        groups += [{"params": padding}] if padding else []
    options = hypers(entry) if options is None else options
    optimizer = cls(groups, **options, **FLAGS[path])
    history = {name: [p.detach().numpy().copy()] for name, p in zip(names, params, strict=True)}
    for step in range(INDEX["steps"]):
        for p, g in zip(params, grads, strict=True):
            p.grad = g[step].clone()
        with torch.no_grad() if path == "differentiable" else threads(2 if "threads" in path else 1):
            inputs = {
                key: [*(x[step] for x in xs), *map(torch.zeros_like, padding)] for key, xs in given.items()
            }
            optimizer.step(**({"inputs": inputs} if inputs else {}))
        for name, p in zip(names, params, strict=True):
            assert torch.equal(p.grad, grads[names.index(name)][step]), "p.grad was changed"
            history[name].append(p.detach().numpy().copy())
    return {name: np.stack(rows) for name, rows in history.items()}


def prepared(entry: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    """A recorded product of the Hessian and signs, step by step, as the spec wants it."""
    if entry["optimizer"] == "sophia_h":
        return x.abs()
    return x


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """torch's number of threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tolerance(entry: dict[str, Any]) -> float:
    """1e-10 in float64, or what the index says when that is tighter; in float32 what the index says.

    So too where the reference computes in bfloat16, which a rule does not say: the index allows for it.
    """
    recorded = float(entry["tolerance"])
    exact = entry["dtype"] == "float64" and not entry["setting"].endswith("_bf16")
    exact = exact and (entry["optimizer"], entry["setting"]) not in INEXACT
    return min(recorded, 1e-10) if exact else recorded


@pytest.mark.skipif(not ENTRIES, reason="no recorded trajectories; set OPTDSL_REFERENCE to their folder")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['optimizer']}-{e['setting']}-{e['dtype']}")
def test_trajectory(entry: dict[str, Any], path: str, tmp_path: Path) -> None:
    """Every tensor at every step, relative to max(1, |recorded|).

    Triton's interpreter is slow: steps are counted by the host in float64, on the device in float32.
    """
    if path == "native, two threads" and entry["optimizer"] in NOT_PADDED:
        pytest.skip("what pads the tensors would matter")
    if path == "triton" and entry["dtype"] == "float32":
        path = "triton, counting"
        if entry["optimizer"] not in CORE and not os.environ.get("OPTDSL_FULL"):
            pytest.skip("counted on the device with OPTDSL_FULL only")
    with interpreted() if "triton" in path else contextlib.nullcontext():
        measured = run(optimizer_class(entry, tmp_path), entry, path)
    with np.load(REFERENCE / entry["file"]) as recorded:
        for name, key in entry["keys"].items():
            if name in (changes(entry, LEFT_OUT) or ()):
                continue
            want = recorded[key]
            error = np.max(np.abs(measured[name] - want) / np.maximum(1, np.abs(want)))
            assert error <= tolerance(entry), f"{name}: off by {error:.3g}"


def test_every_method_is_covered() -> None:
    """A method that the index lacks would be tested by nothing."""
    if not ENTRIES:
        pytest.skip("no recorded trajectories; set OPTDSL_REFERENCE to their folder")
    assert {e["optimizer"] for e in ENTRIES} == METHODS
