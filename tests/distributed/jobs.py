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
from tests.zoo.rules import RULES, SHAPES, Problem, problem

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
    return distribute_tensor(x, mesh, fitting, src_data_rank=None)


def full(x: Any) -> Any:
    """All of a tensor; gloo takes neither complex numbers nor 16 bits."""
    if not isinstance(x, DTensor):
        return x
    if not x.is_complex():
        return x.double().full_tensor().to(x.dtype)
    pairs = torch.view_as_real(x.to_local())
    shape = torch.Size((*x.shape, 2))
    whole = DTensor.from_local(
        pairs, x.device_mesh, x.placements, shape=shape, stride=torch.empty(shape).stride()
    )
    return torch.view_as_complex(whole.full_tensor())


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
        given = {key: tensors(values[step]) for key, values in found.inputs.items()}
        cuts = {key: [cut(x, mesh, placements) for x in xs] for key, xs in given.items()}
        given, cuts = ({**x, **{key: ys[step] for key, ys in found.numbers.items()}} for x in (given, cuts))
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
        for key in (spec.key for spec in cls._states if spec.level == "group" and spec.key in group):
            states = max(states, off(cut_group[key], group[key]))
    return worst, way, states


def cases(spec: str) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """Settings, each with the names of tensors: those of tests/zoo, or the contract's where it lacks a method."""
    found = [(setting, rule.tensors) for rule in RULES if rule.spec == spec for setting in rule.settings]
    if not found:
        from tests.contract.subjects import SETTINGS

        found = [(setting(optdsl.load(spec)), tuple(SHAPES)) for setting in SETTINGS.values()]
    return found


def zoo(specs: list[str], dtype: str, dim: int = 0, every: bool = True) -> dict[str, list[Any]]:
    """For each spec how far it is off (see `compare`) in the worst of its settings, or what is raised.

    The last of its settings alone is tried unless `every`.
    """
    mesh, results = mesh_of(), {}
    for spec in specs:
        cls = optdsl.load(spec)
        given = {key: cls._specs[key].level == "group" for key in cls._inputs}
        inputs, numbers = (
            tuple(key for key, one in given.items() if one is wanted) for wanted in (False, True)
        )
        found = problem(SEED, inputs, numbers)
        steps = STEPS if all(state.delay is None for state in cls._states) else len(found.grads)
        tried = cases(spec)
        worst = [0.0, 0.0, 0.0]
        try:
            for setting, tensors in tried if every else tried[-1:]:
                each = cls, setting, found, tensors, mesh, [Shard(dim)], getattr(torch, dtype)
                values = compare(*each, steps, fused=False)
                worst = [max(pair) for pair in zip(worst, values, strict=True)]
            results[spec] = worst
        except Exception as error:
            results[spec] = [f"{type(error).__name__}: {error}"]
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


def cut_model() -> torch.nn.Module:
    """The same, cut by fully_shard, layer by layer."""
    from torch.distributed.fsdp import fully_shard

    model = model_of()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh_of())
    return model


def fsdp2(spec: str, options: dict[str, Any]) -> list[Any]:
    """A network cut by fully_shard beside a whole one: how far it is off, whether kernels take all its steps, and
    whether they find everything where it was.
    """
    cls, model, whole = optdsl.load(spec), cut_model(), model_of()
    one, other = cls(whole.parameters(), **options), cls(model.parameters(), **options)
    train(whole, one, range(4), whole=True)
    train(model, other, range(3), whole=False)
    tables = list(other._launcher.tables.values()) if other._launcher is not None else []
    count = sum(len(table.rows) for table in tables if not table.skipped)
    train(model, other, range(3, 4), whole=False)
    same = other._launcher is not None and tables == list(other._launcher.tables.values())
    return [apart(model, whole), count == len(list(model.parameters())), same]


def fsdp2_fused(spec: str, options: dict[str, Any]) -> None:
    """A method with reductions asked for kernels."""
    optdsl.load(spec)(cut_model().parameters(), **options, fused=True)


def evaluation(spec: str, options: dict[str, Any]) -> list[float]:
    """How far a cut network is off in evaluation, back in training, and when it goes on."""
    cls, model, whole = optdsl.load(spec), cut_model(), model_of()
    one, other = cls(whole.parameters(), **options), cls(model.parameters(), **options)
    train(whole, one, range(3), whole=True)
    train(model, other, range(3), whole=False)
    before = [p.detach().clone() for p in whole.parameters()]
    one.eval(), other.eval()
    assert any(not torch.equal(p, x) for p, x in zip(whole.parameters(), before, strict=True))
    found = [apart(model, whole)]
    one.train(), other.train()
    found.append(apart(model, whole))
    train(whole, one, range(3, 5), whole=True)
    train(model, other, range(3, 5), whole=False)
    return [*found, apart(model, whole)]


def several(jobs: dict[str, list[Any]]) -> dict[str, Any]:
    """Other jobs, one behind the other."""
    return {name: globals()[job](*arguments) for name, (job, *arguments) in jobs.items()}


def messages(specs: list[str]) -> dict[str, list[int]]:
    """For each spec how many collectives its third step takes, and how many `explain` tells of a matrix."""
    from unittest import mock

    from optdsl.analysis.explain import explain
    from optdsl.analysis.setting import Setting
    from optdsl.driver import program_of, shipped_specs, simplify

    results, mesh = {}, mesh_of()
    for spec in specs:
        program, _ = program_of(shipped_specs()[spec])
        told = explain(program, simplify(program), Setting(shape=(6, 4))).messages
        generator = torch.Generator().manual_seed(SEED)
        values = [torch.randn(6, 4, generator=generator) for _ in range(2)]
        params = [torch.nn.Parameter(cut(x, mesh, [Shard(0)])) for x in values]
        optimizer = optdsl.load(spec)(params)
        for step in range(3):
            for p, x in zip(params, values, strict=True):
                p.grad = cut(x * (step + 1), mesh, [Shard(0)])
            if step == 2:
                real, gathers = distributed.all_reduce, DTensor.full_tensor
                with (
                    mock.patch.object(distributed, "all_reduce", side_effect=real) as sums,
                    mock.patch.object(DTensor, "full_tensor", autospec=True, side_effect=gathers) as wholes,
                ):
                    optimizer.step()
                count = sums.call_count + wholes.call_count // len(params)
            else:
                optimizer.step()
        results[spec] = [count, len(told)]
    return results


def together() -> list[Any]:
    """Numbers put together by `complete`: two kinds, nan, types, nothing on one side, a number that is everywhere."""
    from optdsl.runtime.shards import complete

    rank, group = distributed.get_rank(), distributed.group.WORLD
    single = torch.tensor(1.5 + rank)
    parts = [
        (single, "sum", (group,)),
        (torch.tensor([rank, -float("inf"), 3.0]), "max", (group,)),
        (torch.tensor([float("nan") if rank else 5.0, 2.0]), "max", (group,)),
        (torch.tensor(2.0**-30 + rank, dtype=torch.float64), "sum", (group,)),
        (torch.zeros(0), "sum", (group,)),
        (torch.tensor(7.0), "sum", ()),
    ]
    found = [x.tolist() for x in complete(parts)]
    assert single.item() == 1.5 + rank, "what was given is changed"
    return [str(each) for each in found]


def lazy() -> list[float]:
    """Gradients that are placed otherwise, parameters without any, and ones that are not cut, in two groups."""
    from torch.distributed.tensor import Partial

    mesh, cls = mesh_of(), optdsl.load("lamb")
    found = problem(SEED)
    names = ("mat", "tall", "vec", "scal")
    wholes = [torch.nn.Parameter(torch.tensor(found.start[name])) for name in names]
    parts = [torch.nn.Parameter(cut(p.detach(), mesh, [Shard(0)])) for p in wholes]
    parts[2] = torch.nn.Parameter(wholes[2].detach().clone())  # every process has all of it
    one, other = (
        cls([{"params": ps[:2]}, {"params": ps[2:], "lr": 0.1}], lr=0.05, weight_decay=0.1)
        for ps in (wholes, parts)
    )
    for step in range(4):
        grads = [torch.tensor(found.grads[step][name]) for name in names]
        for number, (p, q, g) in enumerate(zip(wholes, parts, grads, strict=True)):
            if number == step:  # has none in this step
                p.grad = q.grad = None
                continue
            p.grad = g
            q.grad = cut(g, mesh, [Shard(0)])
            if number == 2:
                q.grad = g.clone()
            elif number == 0:
                q.grad = DTensor.from_local(g / mesh.size(), mesh, [Partial()])
            elif number == 1:
                q.grad = distribute_tensor(g, mesh, [Replicate()])
        one.step()
        other.step()
    return [off(full(q.detach()), p.detach()) for p, q in zip(wholes, parts, strict=True)]


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


def fsdp1(spec: str, options: dict[str, Any], originals: bool) -> float:
    """A network in FullyShardedDataParallel beside a whole one."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    cls, model, whole = optdsl.load(spec), model_of(), model_of()
    parallel = FullyShardedDataParallel(model, use_orig_params=originals, device_id=torch.device("cpu"))
    other = cls(parallel.parameters(), **options)
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
        name: compare(cls, setting, found, tuple(names), square, each, getattr(torch, dtype), fused=False)
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


def programs(first: int, count: int) -> list[Any]:
    """Random programs on parts of tensors: those that are off, and how many were compared.

    Only programs without steps in what they compute, so that a difference in the last place stays small.
    """
    import random

    from optdsl.ir.expr import Call
    from optdsl.search.generate import TAME, random_program
    from tests.backends.differential import torch_class

    jumps = {
        "sign",
        "floor",
        "ceil",
        "round",
        "mod",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "reduce_kth_largest",
    }
    mesh, bad, seen = mesh_of(), [], {"local": 0, "reduced": 0, "whole": 0}
    for seed in range(first, first + count):
        program = random_program(random.Random(seed), random.Random(seed).choice((4, 10, 20)), TAME)
        nodes = [node for node in program.nodes() if isinstance(node, Call) and not node.type.is_host]
        if any(node.op in jumps for node in nodes):
            continue
        cls = torch_class(program)
        seen[cls._shards] += 1
        try:
            found = compare(
                cls,
                {},
                problem(SEED + seed),
                ("vec", "mat", "conv", "scal"),
                mesh,
                [Shard(seed % 2)],
                torch.float64,
                steps=3,
                fused=False,
            )
            if max(found[0], found[2]) > 1e-8:
                bad.append([seed, *found])
        except Exception as error:
            if "nothing moves" not in str(error):
                bad.append([seed, repr(error)[:500]])
    return [bad, seen]


def hang() -> None:
    """One process waits for the other, which never comes."""
    import time

    if distributed.get_rank():
        distributed.barrier()
    time.sleep(600)


def capturable(spec: str) -> list[float]:
    """Steps that are counted in tensors."""
    return stored(spec, "float64", None, capturable=True)


def stored(spec: str, dtype: str, store: Any, **flags: Any) -> list[float]:
    """Parameters, or states, kept in other formats."""
    found = problem(SEED)
    names = ("vec", "mat", "conv", "scal")
    setting = {"lr": 0.01, "weight_decay": 0.1, "store": store, **flags}
    return list(
        compare(optdsl.load(spec), setting, found, names, mesh_of(), [Shard(0)], getattr(torch, dtype))
    )


def tensor_parallel(spec: str, options: dict[str, Any]) -> float:
    """Layers cut by columns and by rows, and once more by fully_shard."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def made() -> torch.nn.Module:
        torch.manual_seed(SEED)
        layers = [torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)]
        return torch.nn.Sequential(*layers).double()

    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model, whole = made(), made()
    parallelize_module(model, square["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=square["data"])
    cls = optdsl.load(spec)
    one, other = cls(whole.parameters(), **options), cls(model.parameters(), **options)
    for step in range(4):
        x, y = batch_of(step)
        torch.nn.functional.mse_loss(whole(x), y).backward()
        x, y = (z.chunk(2)[square.get_local_rank("data")] for z in (x, y))
        torch.nn.functional.mse_loss(model(x), y).backward()
        for optimizer in (one, other):
            optimizer.step()
            optimizer.zero_grad()
    return apart(model, whole)
