"""What the processes of the tests of this folder do: train parts of tensors beside the whole ones, and compare."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

import optdsl
from tests.zoo.rules import RULES, Problem, Rule, problem

for _path in sorted((Path(__file__).parents[1] / "zoo").glob("*.py")):
    if not _path.stem.startswith("test_"):
        importlib.import_module(f"tests.zoo.{_path.stem}")

SEED = 20261129
STEPS = 6
LIMITS = {"float64": 1e-12, "float32": 1e-6}


def mesh_of(*sizes: int) -> DeviceMesh:
    """All processes in a mesh; of one dimension if no sizes are given."""
    return init_device_mesh("cpu", sizes or (distributed.get_world_size(),))


def cut(x: Tensor, mesh: DeviceMesh, placements: list[Placement]) -> Tensor:
    """A DTensor of a tensor that all processes have; a number stays as it is."""
    if x.dim() == 0:
        return x.clone()
    fitting = [Replicate() if p.is_shard() and p.dim >= x.dim() else p for p in placements]
    return distribute_tensor(x, mesh, fitting)


def full(x: Any) -> Any:
    return x.full_tensor() if isinstance(x, DTensor) else x


def off(mine: Tensor, theirs: Tensor, start: Tensor | None = None) -> float:
    """The largest difference relative to max(1, |theirs|), or to the longest way from `start`; of what is finite."""
    assert mine.shape == theirs.shape, (mine.shape, theirs.shape)
    assert torch.equal(mine.isfinite(), theirs.isfinite())
    scale = theirs.abs().clamp(min=1) if start is None else (theirs - start).abs().max()
    found = ((mine - theirs).abs() / scale).nan_to_num(0, 0, 0)
    return float(found.max()) if found.numel() else 0.0


def compare(
    cls: Any,
    setting: dict[str, Any],
    found: Problem,
    names: tuple[str, ...],
    inputs: tuple[str, ...],
    mesh: DeviceMesh,
    placements: list[Placement],
    dtype: torch.dtype,
    steps: int = STEPS,
    **flags: Any,
) -> tuple[float, float, float]:
    """How far a run with parts of tensors is from one with whole ones: parameters, their ways, states."""

    def tensors(values: dict[str, Any]) -> list[Tensor]:
        return [torch.tensor(values[name]).to(dtype) for name in names]

    wholes = [torch.nn.Parameter(x) for x in tensors(found.start)]
    parts = [torch.nn.Parameter(cut(x, mesh, placements)) for x in tensors(found.start)]
    one, other = cls(wholes, **setting, **flags), cls(parts, **setting, **flags)
    for step in range(steps):
        for p, q, g in zip(wholes, parts, tensors(found.grads[step]), strict=True):
            p.grad, q.grad = g, cut(g, mesh, placements)
        given = {key: tensors(found.inputs[key][step]) for key in inputs}
        cuts = {key: [cut(x, mesh, placements) for x in xs] for key, xs in given.items()}
        one.step(**({"inputs": given} if given else {}))
        other.step(**({"inputs": cuts} if cuts else {}))
    ends = [
        (full(q.detach()), p.detach(), x) for p, q, x in zip(wholes, parts, tensors(found.start), strict=True)
    ]
    assert any(not torch.equal(p, x) for _, p, x in ends), "nothing moves"
    worst, way = max(off(q, p) for q, p, _ in ends), max(off(*each) for each in ends)
    states = 0.0
    for p, q in zip(wholes, parts, strict=True):
        assert one.state[p].keys() == other.state[q].keys()
        for key, value in one.state[p].items():
            states = max(states, off(full(other.state[q][key]), value))
    for group, cut_group in zip(one.param_groups, other.param_groups, strict=True):
        for key in (spec.key for spec in cls._states if spec.level == "group"):
            states = max(states, off(cut_group[key], group[key]))
    return worst, way, states


def zoo(specs: list[str], dtype: str, dim: int = 0, every: bool = True) -> dict[str, list[Any]]:
    """For each spec how far it is off (see `compare`) in the worst of its settings, or why it is refused."""
    mesh, results = mesh_of(), {}
    for spec in specs:
        cls = optdsl.load(spec)
        rules = [rule for rule in RULES if rule.spec == spec]
        worst = [0.0, 0.0, 0.0]
        try:
            for rule in rules:
                for setting in rule.settings if every else rule.settings[-1:]:
                    values = compare(
                        cls,
                        setting,
                        problem(SEED, rule.inputs),
                        rule.tensors,
                        rule.inputs,
                        mesh,
                        [Shard(dim)],
                        getattr(torch, dtype),
                        fused=False,
                    )
                    worst = [max(pair) for pair in zip(worst, values, strict=True)]
            results[spec] = worst
        except RuntimeError as error:
            if "does not support sharded parameters" not in str(error):
                raise
            results[spec] = [str(error)]
    return results


__all__ = ["Rule", "compare", "zoo"]
