"""Steps that are taken in backward: the same bits as ordinary ones, one gradient at a time."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

import optdsl
from optdsl.runtime import step_in_backward
from tests.support import COMPILER, most_memory

WAYS = [
    pytest.param({}, id="native", marks=pytest.mark.skipif(COMPILER is None, reason="no C compiler `cc`")),
    pytest.param({"foreach": True}, id="foreach"),
    pytest.param({"foreach": False}, id="loop"),
]


class Tied(nn.Module):
    """A model with a tied, a frozen and an idle parameter, some of them in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 12)
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.narrow = nn.Linear(12, 12, dtype=torch.bfloat16)
        self.idle = nn.Parameter(torch.ones(3))
        self.layers[1].weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h).tanh()
        h = self.narrow(h.to(self.narrow.weight.dtype)).float()
        return h @ self.embed.weight.T  # tied


def models(count: int = 2) -> list[Tied]:
    """The same model several times."""
    torch.manual_seed(0)
    first = Tied()
    return [first, *(copy.deepcopy(first) for _ in range(count - 1))]


def loss_of(model: nn.Module, number: int) -> Tensor:
    x = torch.randint(7, (5,), generator=torch.Generator().manual_seed(number))
    return nn.functional.cross_entropy(model(x), (x + 1) % 7)


def ordinary(model: nn.Module, optimizer: Any, number: int) -> None:
    optimizer.zero_grad()
    loss_of(model, number).backward()
    optimizer.step()


def kept(model: nn.Module, optimizer: Any) -> list[Any]:
    """Parameters and a state dict, to be compared."""
    state = optimizer.state_dict()
    return [[p.detach().clone() for p in model.parameters()], state["state"], state["param_groups"]]


def assert_same(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one[0], other[0], strict=True):
        assert torch.equal(a, b)
    assert one[2] == other[2]
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)


METHODS = {
    "adamw": {"weight_decay": 0.1},
    "lion": {"weight_decay": 0.1},
    "muon": {"weight_decay": 0.1},
    "adafactor": {"weight_decay": 0.1},
    "radam": {"weight_decay": 0.1},
    "sgld": {},  # draws random numbers by the place of a parameter among all
    "schedule_free_adamw": {"weight_decay": 0.1},
    "adamw stored": {"weight_decay": 0.1, "store": {"p": "bf16_sr", "exp_avg": "bf16_sr"}, "seed": 5},
    "adamw beside": {"weight_decay": 0.1, "store": {"p": "bf16+16"}},
}


@pytest.mark.parametrize("flags", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_ordinary_step(method: str, flags: dict[str, Any]) -> None:
    """With groups of their own options, under a scheduler, bit for bit."""
    cls, runs = optdsl.load(method.split()[0]), []
    for make in (lambda groups, **options: cls(groups, **options), None):
        (model,) = models(1)
        embed = list(model.embed.parameters())
        others = [p for p in model.parameters() if p is not embed[0]]
        groups = [{"params": embed, "lr": 0.02}, {"params": others, "maximize": True}]
        options = {"lr": 0.01, **METHODS[method], **flags}
        optimizer = make(groups, **options) if make else step_in_backward(groups, cls, **options)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.7)
        for number in range(4):
            if make:
                ordinary(model, optimizer, number)
            else:
                loss_of(model, number).backward()
                assert all(p.grad is None for p in model.parameters())
                optimizer.step()
            scheduler.step()
        runs.append(kept(model, optimizer))
    assert_same(*runs)


@pytest.mark.parametrize("flags", WAYS)
def test_it_trains_as_the_optimizer_of_torch(flags: dict[str, Any]) -> None:
    one, other = models()
    for model in (one, other):
        model.narrow.float()
    theirs = torch.optim.AdamW(one.parameters(), lr=0.01, weight_decay=0.1)
    early = step_in_backward(other, optdsl.load("adamw"), lr=0.01, weight_decay=0.1, **flags)
    for number in range(4):
        ordinary(one, theirs, number)
        loss_of(other, number).backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5)
    assert early.state[other.embed.weight]["step"] == 4


# ---- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", WAYS)
def test_one_gradient_at_a_time(flags: dict[str, Any]) -> None:
    """An ordinary step begins with a gradient for each of 12 matrices; by one, and what a step needs, in backward."""
    counts, peaks = [], []
    for early in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(12)))
        cls = optdsl.load("sgd")
        optimizer = step_in_backward(model, cls, **flags) if early else cls(model.parameters(), **flags)
        params, live = list(model.parameters()), []
        for p in params:
            p.register_hook(
                lambda _, params=params, live=live: live.append(1 + sum(q.grad is not None for q in params))
            )
        for _ in range(2):  # the first step makes tables
            optimizer.zero_grad()
            loss = model(torch.ones(1, 64)).sum()
            memory = most_memory(loss.backward)
            optimizer.step()
        counts.append(max(live))
        peaks.append(memory / (4 * 64 * 64))
    assert counts == [12, 1]
    assert 12 <= peaks[0] < 12.1
    assert 1 <= peaks[1] < {None: 1.1, True: 2.1, False: 4.1}[flags.get("foreach")]


# ---- checkpoints, groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", WAYS)
def test_state_dicts_go_both_ways(flags: dict[str, Any]) -> None:
    """From one that steps in backward to one that does not and back, without a trace."""
    cls = optdsl.load("adamw")
    model, other = models()
    whole = cls(model.parameters(), lr=0.01, weight_decay=0.1, **flags)
    for number in range(6):
        ordinary(model, whole, number)
    early = step_in_backward(other, cls, lr=0.5, **flags)
    early.param_groups[0].update(lr=0.01, weight_decay=0.1)
    for number in range(2):
        loss_of(other, number).backward()
    between = cls(other.parameters(), **flags)
    between.load_state_dict(copy.deepcopy(early.state_dict()))
    late = Tied()
    late.load_state_dict(other.state_dict())
    between = cls(late.parameters(), **flags)
    between.load_state_dict(copy.deepcopy(early.state_dict()))
    late.layers[1].weight.requires_grad_(False)
    for number in range(2, 4):
        ordinary(late, between, number)
    last = Tied()
    last.load_state_dict(late.state_dict())
    last.layers[1].weight.requires_grad_(False)
    again = step_in_backward(last, cls, **flags)
    loss_of(last, 9).backward()  # what is loaded takes the place of what there is
    last.load_state_dict(late.state_dict())
    again.load_state_dict(copy.deepcopy(between.state_dict()))
    for number in range(4, 6):
        loss_of(last, number).backward()
    assert_same(kept(last, again), kept(model, whole))


def test_groups_and_parameters_that_come_later() -> None:
    cls = optdsl.load("adamw")
    one, other = models()
    plain, early = cls(one.layers.parameters()), step_in_backward(other.layers, cls)
    for number in range(6):
        if number == 2:
            for model, optimizer in ((one, plain), (other, early)):
                optimizer.add_param_group({"params": model.embed.parameters(), "lr": 0.02})
        if number == 3:
            for model in (one, other):
                model.layers[1].weight.requires_grad_(True)
        if number == 4:  # by hand: the first parameter of a group goes to another one
            for optimizer in (plain, early):
                first, second = optimizer.param_groups
                second["params"].append(first["params"].pop(0))
        ordinary(one, plain, number)
        for p in (*other.narrow.parameters(), *other.embed.parameters()):
            p.grad = None
        loss_of(other, number).backward()
        assert all(p.grad is None for group in early.param_groups for p in group["params"])
    assert_same(kept(one, plain), kept(other, early))


def test_copies_are_ordinary_and_nothing_is_kept_alive() -> None:
    (model,) = models(1)
    optimizer = step_in_backward(model, optdsl.load("adamw"))
    loss_of(model, 0).backward()
    other, another = copy.deepcopy((model, optimizer))
    loss_of(other, 1).backward()
    assert other.embed.weight.grad is not None
    assert {id(p) for p in other.parameters()} == {id(p) for g in another.param_groups for p in g["params"]}
    weight = model.embed.weight
    held = [weakref.ref(model), weakref.ref(optimizer), weakref.ref(model.layers[0].weight)]
    del model, optimizer
    gc.collect()
    assert not any(reference() is not None for reference in held)
    weight.sum().backward()
    assert weight.grad is not None  # without its optimizer it is an ordinary parameter


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("flags", WAYS)
def test_an_optimizer_is_freed_as_soon_as_nobody_has_it(flags: dict[str, Any], early: bool) -> None:
    """Not when the garbage collector comes: until then, its steps would be taken."""
    (model,) = models(1)
    cls = optdsl.load("adamw")
    optimizer = step_in_backward(model, cls, **flags) if early else cls(model.parameters(), **flags)
    for number in range(2):
        ordinary(model, optimizer, number)
    held = weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del optimizer
        assert held() is None
    finally:
        gc.enable()


def test_the_last_optimizer_takes_the_steps() -> None:
    """Also while the first one is still there."""
    one, other = models()
    first = step_in_backward(one, optdsl.load("adamw"), lr=0.5)
    with pytest.warns(
        RuntimeWarning, match=r"^6 parameters took the steps of another optimizer \(AdamW\) in backward"
    ):
        last = step_in_backward(one.layers, optdsl.load("lion"), weight_decay=0.1)
    groups = [
        optdsl.load("lion")(other.layers.parameters(), weight_decay=0.1),
        optdsl.load("adamw")(
            [p for p in other.parameters() if all(p is not q for q in other.layers.parameters())], lr=0.5
        ),
    ]
    for number in range(2):
        loss_of(one, number).backward()
        loss_of(other, number).backward()
        for optimizer in groups:
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not first.state.keys() & last.state.keys()


def test_frozen_integers_are_let_be() -> None:
    (model,) = models(1)
    codes = nn.Parameter(torch.arange(3, dtype=torch.int8), requires_grad=False)
    optimizer = step_in_backward([codes, *model.parameters()], optdsl.load("adamw"))
    loss_of(model, 0).backward()
    assert optimizer.state[model.embed.weight]["step"] == 1
    assert codes.tolist() == [0, 1, 2]


class Repeated(nn.Module):
    """One layer twice, each time in a checkpoint, and one behind it."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layer, self.last, self.reentrant = nn.Linear(5, 5), nn.Linear(5, 5), reentrant

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = checkpoint(self.layer, x, use_reentrant=self.reentrant).tanh()
        return self.last(x)


def test_checkpoints() -> None:
    torch.manual_seed(0)
    one, x = Repeated(False), torch.ones(2, 5, requires_grad=True)
    other, third = copy.deepcopy(one), copy.deepcopy(one)
    plain = optdsl.load("adamw")(one.parameters(), weight_decay=0.1)
    early = step_in_backward(other, optdsl.load("adamw"), weight_decay=0.1)
    for _ in range(3):
        plain.zero_grad()
        one(x).sum().backward()
        plain.step()
        other(x).sum().backward()
    assert_same(kept(one, plain), kept(other, early))

    third.reentrant = True
    late = step_in_backward(third, optdsl.load("adamw"), weight_decay=0.1)
    message = r"^AdamW: a second gradient of parameter [01], of shape \(5(, 5|,)\), came in one backward, .*`use_reen"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            third(x).sum().backward()
    third.zero_grad()
    third.last(third.layer(x)).sum().backward()  # a backward that failed leaves nothing behind
    assert [int(late.state[p]["step"]) for p in third.last.parameters()] == [3, 3]


def test_a_hook_that_fails_in_the_middle() -> None:
    """Each parameter has taken its whole step or none, and goes on."""
    one, other = models()
    plain = optdsl.load("adamw")(one.parameters(), weight_decay=0.1)
    early = step_in_backward(other, optdsl.load("adamw"), weight_decay=0.1)

    def fails(gradient: Tensor) -> None:
        raise ZeroDivisionError

    for number in range(4):
        handle = other.layers[2].weight.register_hook(fails) if number == 2 else None
        if handle is None:
            loss_of(other, number).backward()
        else:
            with pytest.raises(ZeroDivisionError):
                loss_of(other, number).backward()
            handle.remove()
        plain.zero_grad()
        loss_of(one, number).backward()
        if number == 2:
            stepped = [early.state[q]["step"] == 3 if q in early.state else False for q in other.parameters()]
            assert 0 < sum(stepped) < sum(p.grad is not None for p in one.parameters())
            assert all(q.grad is None for q in other.parameters())
            for p, taken in zip(one.parameters(), stepped, strict=True):
                p.grad = p.grad if taken else None
        plain.step()
    assert_same(kept(one, plain), kept(other, early))


def test_an_optimizer_that_nobody_keeps() -> None:
    with pytest.warns(RuntimeWarning, match=r"^AdamW is gone before its first step: "):
        step_in_backward(models(1)[0], optdsl.load("adamw"))


# ---- what is refused ---------------------------------------------------------------------------------------


SHARED = """
optimizer Shared:
    hyper:
        lr = 0.1 in [0, inf)
    state:
        total [group] = 0
    step:
        total = total + 1
        p = p - lr / total * g
"""


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("lomo", "it reduces over several tensors"),
        ("prodigy", "it reduces over several tensors"),
        ("shared", "the state 'total' is that of several tensors"),
        ("sophia_h", "its steps need the input 'h'"),
        ("sgld noise", "its steps need the input 'xi'"),
        ("storm_google", "its steps need the input 'g2'"),  # not in the first step
    ],
)
def test_rules_that_need_more_than_one_tensor_are_refused_by_name(
    method: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "shared.opt").write_text(SHARED)
    cls = optdsl.load(tmp_path / "shared.opt" if method == "shared" else method.split()[0])
    options = {"given_noise": True} if "noise" in method else {}
    (model,) = models(1)
    with pytest.raises(RuntimeError, match=f"^{cls.__name__} does not support steps in backward: {reason}"):
        step_in_backward(model, cls, **options)
    loss_of(model, 0).backward()
    assert model.embed.weight.grad is not None  # nothing is hooked


def test_what_cannot_be_is_refused() -> None:
    cls = optdsl.load("adamw")
    (model,) = models(1)
    with pytest.raises(
        RuntimeError, match=r"^AdamW does not support steps in backward: not with `differentiable`$"
    ):
        step_in_backward(model, cls, differentiable=True)
    with pytest.raises(TypeError, match=r"^'adamw' is no class that optdsl has generated$"):
        step_in_backward(torch.nn.Linear(2, 2), "adamw")
    with pytest.raises(TypeError, match=r"^AdamW is no class that optdsl has generated$"):
        step_in_backward(model, torch.optim.AdamW)
    optimizer = step_in_backward(model.layers, cls)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="not with `differentiable`"):
        optimizer.add_param_group({"params": model.embed.parameters(), "differentiable": True})
    assert len(optimizer.param_groups) == 1


def test_processes_that_share_gradients_are_refused() -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch was built without distributed")
    from torch.distributed.tensor import Shard, distribute_tensor

    cls = optdsl.load("adamw")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        (model,) = models(1)
        with pytest.raises(RuntimeError, match=r"AdamW .* in backward: DistributedDataParallel averages"):
            step_in_backward(nn.Sequential(nn.parallel.DistributedDataParallel(model)), cls)
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        shard = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
        with pytest.raises(RuntimeError, match=r"AdamW .* in backward: a parameter is cut among processes$"):
            step_in_backward([shard], cls)
    finally:
        distributed.destroy_process_group()


def test_a_step_in_evaluation_is_refused() -> None:
    (model,) = models(1)
    optimizer = step_in_backward(model, optdsl.load("schedule_free_adamw"))
    loss_of(model, 0).backward()
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call `optimizer\.train\(\)` before"):
        loss_of(model, 1).backward()
    optimizer.train()
    model.zero_grad()
    loss_of(model, 1).backward()
    assert optimizer.state[model.embed.weight]["step"] == 2
