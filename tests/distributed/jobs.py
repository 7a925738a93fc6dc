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
from tests.zoo.rules import RULES, Problem, problem

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


# ---- models ------------------------------------------------------------------------------------------------


def model_of(seed: int = SEED) -> torch.nn.Module:
    """A small network in float64 whose tensors do not divide evenly."""
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3), torch.nn.LayerNorm(3)]
    return torch.nn.Sequential(*layers).double()


def batch_of(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one step; every process takes its part of them."""
    generator = torch.Generator().manual_seed(SEED + step)
    return (
        torch.randn(size, 5, generator=generator, dtype=torch.float64),
        torch.randn(size, 3, generator=generator, dtype=torch.float64),
    )


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range, whole: bool) -> None:
    """Some steps on all of each batch, or on this process's part of it; gradients are means over the batch."""
    rank, count = distributed.get_rank(), distributed.get_world_size()
    for step in steps:
        x, y = batch_of(step)
        if not whole:
            x, y = (z.chunk(count)[rank] for z in (x, y))
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def apart(model: torch.nn.Module, whole: torch.nn.Module) -> float:
    """How far two networks are from each other."""
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    return max(off(full(q.detach()), p.detach()) for q, p in pairs)


def fsdp2(spec: str, options: dict[str, Any], **flags: Any) -> float:
    """A network cut by fully_shard beside a whole one."""
    from torch.distributed.fsdp import fully_shard

    cls, model, whole = optdsl.load(spec), model_of(), model_of()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh_of())
    fully_shard(model, mesh=mesh_of())
    one, other = cls(whole.parameters(), **options, **flags), cls(model.parameters(), **options, **flags)
    train(whole, one, range(4), whole=True)
    train(model, other, range(4), whole=False)
    return apart(model, whole)


def ddp(spec: str, options: dict[str, Any], zero: bool) -> float:
    """A network in DistributedDataParallel, with states of all tensors or (ZeRO) of some, beside one alone."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    cls, model, whole = optdsl.load(spec), model_of(), model_of()
    parallel = DistributedDataParallel(model)
    if zero:
        other: Any = ZeroRedundancyOptimizer(parallel.parameters(), cls, **options)
    else:
        other = cls(parallel.parameters(), **options)
    train(whole, cls(whole.parameters(), **options), range(4), whole=True)
    train(parallel, other, range(4), whole=False)
    return apart(model, whole)


def fsdp1(spec: str, options: dict[str, Any], originals: bool) -> Any:
    """A network in FullyShardedDataParallel beside a whole one, or why it is refused."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    cls, model, whole = optdsl.load(spec), model_of(), model_of()
    parallel = FullyShardedDataParallel(model, use_orig_params=originals, device_id=torch.device("cpu"))
    try:
        other = cls(parallel.parameters(), **options)
    except RuntimeError as error:
        return str(error)
    train(whole, cls(whole.parameters(), **options), range(4), whole=True)
    train(parallel, other, range(4), whole=False)
    with FullyShardedDataParallel.summon_full_params(parallel):
        return apart(model, whole)


def refused(job: str, *arguments: Any) -> str:
    """With what another job is refused."""
    try:
        globals()[job](*arguments)
    except RuntimeError as error:
        return str(error)
    raise AssertionError(f"{job}{arguments} is not refused")


def meshes(spec: str, dtype: str, setting: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Four processes in a square: copies of rows, rows and columns, parts of parts."""
    cls, square = optdsl.load(spec), mesh_of(2, 2)
    found = problem(SEED)
    placements = {
        "copies": [Replicate(), Shard(0)],
        "rows and columns": [Shard(0), Shard(1)],
        "columns and rows": [Shard(1), Shard(0)],
        "rows of rows": [Shard(0), Shard(0)],
        "everywhere": [Replicate(), Replicate()],
    }
    return {
        name: compare(cls, setting, found, tuple(names), (), square, each, getattr(torch, dtype), fused=False)
        for name, each in placements.items()
    }


def checkpoint(folder: str, spec: str, options: dict[str, Any]) -> dict[str, float]:
    """Saved half way and gone on with, beside a run that is not: how far apart they end.

    By torch.distributed.checkpoint into a network cut in the same way; by state dicts from a cut one into a whole
    one, and from a whole one into a cut one.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    cls = optdsl.load(spec)

    def made(cut: bool) -> tuple[torch.nn.Module, Any]:
        model = model_of()
        if cut:
            fully_shard(model, mesh=mesh_of())
        return model, cls(model.parameters(), **options)

    wanted, optimizer = made(False)
    train(wanted, optimizer, range(3), whole=True)
    half = [p.detach().clone() for p in wanted.parameters()], optimizer.state_dict()
    half = half[0], torch.load(_saved(half[1], folder))
    train(wanted, optimizer, range(3, 6), whole=True)

    model, optimizer = made(True)
    train(model, optimizer, range(3), whole=False)
    state = get_state_dict(model, optimizer)
    dcp.save({"model": state[0], "optimizer": state[1]}, checkpoint_id=f"{folder}/dcp")
    plain = {
        **optimizer.state_dict(),
        "state": {
            number: {key: full(value) for key, value in entry.items()}
            for number, entry in optimizer.state_dict()["state"].items()
        },
    }
    weights = [full(p.detach()) for p in model.parameters()]

    results = {}
    model, optimizer = made(True)
    state = get_state_dict(model, optimizer)
    parts = {"model": state[0], "optimizer": state[1]}
    dcp.load(parts, checkpoint_id=f"{folder}/dcp")
    set_state_dict(model, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
    train(model, optimizer, range(3, 6), whole=False)
    results["cut to cut"] = apart(model, wanted)

    model, optimizer = made(False)
    with torch.no_grad():
        for p, x in zip(model.parameters(), weights, strict=True):
            p.copy_(x)
    optimizer.load_state_dict(plain)
    train(model, optimizer, range(3, 6), whole=True)
    results["cut to whole"] = apart(model, wanted)

    model, optimizer = made(True)
    with torch.no_grad():
        for p, x in zip(model.parameters(), half[0], strict=True):
            p.copy_(distribute_tensor(x, p.device_mesh, p.placements))
    optimizer.load_state_dict(half[1])
    train(model, optimizer, range(3, 6), whole=False)
    results["whole to cut"] = apart(model, wanted)
    return results


def _saved(state: Any, folder: str) -> str:
    path = f"{folder}/whole{distributed.get_rank()}.pt"
    torch.save(state, path)
    return path
