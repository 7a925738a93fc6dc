"""Steps by Triton kernels, in Triton's interpreter: what goes to the device, what is launched, what is left alone."""

from __future__ import annotations

import functools
import importlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import optdsl
from optdsl.runtime import host
from optdsl.runtime import optimizer as optimizer_module
from optdsl.runtime.native import launch
from optdsl.runtime.native.build import BuildError
from optdsl.runtime.triton import notes as notes_module
from tests.backends.interpreted import HERE, interpreted, needs_triton
from tests.support import ROOT, lacking, module_of, needs_compiler

pytestmark = [needs_compiler, needs_triton]
batch = importlib.import_module("optdsl.runtime.triton.batch") if HERE else None

ADAMW, ADAMP, LION, LAMB, NADAM, SGD = (
    optdsl.load(name) for name in ("adamw", "adamp", "lion", "lamb", "nadam", "sgd")
)
#: Steps counted by the host, and on the device.
COUNTING: tuple[dict[str, Any], ...] = ({}, {"fused": True}, {"capturable": True})
SHAPES = ((), (7,), (0,), (40, 33), (1024,))


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    """Runs the kernels in Triton's interpreter."""
    with interpreted():
        yield


def parameters(seed: int = 0, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give(params: list[torch.nn.Parameter], seed: int, scale: float = 1.0) -> None:
    """New gradients, the same for the same seed."""
    generator = torch.Generator().manual_seed(100 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * scale


def tables(optimizer: Any) -> Any:
    return optimizer._launcher.tables


def close(one: list[torch.nn.Parameter], other: list[torch.nn.Parameter]) -> None:
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-6, atol=1e-7)


class Seen:
    """The launches of some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.settings: list[dict[str, Any]] = []
        whole = batch.launch

        def launched(function: Any, programs: int, arguments: Any, settings: Any) -> None:
            self.names.append(function.__name__)
            self.settings.append(dict(settings))
            whole(function, programs, arguments, settings)

        monkeypatch.setattr(batch, "launch", launched)

    def step(self, optimizer: Any) -> list[str]:
        self.names.clear()
        self.settings.clear()
        optimizer.step()
        return list(self.names)


@pytest.mark.parametrize("flags", COUNTING, ids=str)
def test_late_parameters_and_groups_with_their_own_options(flags: dict[str, Any]) -> None:
    """A parameter that first gets a gradient later is at its own first step; a rate that changes is obeyed."""
    ours, theirs = parameters(), parameters()
    made = []
    for cls, params, more in ((ADAMW, ours, flags), (torch.optim.AdamW, theirs, {})):
        groups = [{"params": params[:2], "lr": 1e-2}, {"params": params[2:], "weight_decay": 0.3}]
        made.append(cls(groups, weight_decay=0.1, **more))
    for number in range(5):
        for params in (ours, theirs):
            give(params, number)
            params[3].grad = None if number < 2 else params[3].grad
        for optimizer in made:
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
            optimizer.step()
        close(ours, theirs)
    assert [float(made[0].state[p]["step"]) for p in ours] == [5, 5, 5, 3, 5]
    assert not any(table.skipped for table in tables(made[0]).values())


@pytest.mark.parametrize("cls", [LAMB, NADAM], ids=lambda cls: cls.__name__)
def test_counting_on_the_device_gives_the_same(cls: Any) -> None:
    """Joint reductions and host-level states too."""
    runs = []
    for flags in ({}, {"fused": True}):
        params = parameters()
        optimizer = cls(params, weight_decay=0.1, **flags)
        for number in range(3):
            give(params, number)
            params[1].grad = None if number == 0 else params[1].grad
            optimizer.step()
        runs.append(params)
    close(*runs)


@pytest.mark.parametrize("cls", [ADAMW, ADAMP], ids=lambda cls: cls.__name__)
def test_numbers_of_the_device_follow_the_options(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that change, and back again, a scale of gradients too; one program for each kind of tensor."""
    settings: list[dict[str, Any]] = [
        {},
        {"lr": 0.5},
        {"lr": 0.25, "weight_decay": 0.0},
        {"betas": (0.0, 0.5), "maximize": True},
        {"lr": torch.tensor(0.125)},
        {"lr": 0.125},
        {"maximize": False},
    ]
    runs, launched = [], Seen(monkeypatch)
    for flags in ({}, {"fused": True}):
        params = parameters()
        optimizer = cls(params, weight_decay=0.1, **flags)
        for number, changed in enumerate(settings):
            optimizer.param_groups[0].update(changed)
            give(params, number, 4.0 if flags and number == 5 else 1.0)
            if flags and number == 5:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
            names = launched.step(optimizer)
            assert ("compute" in names) == (bool(flags) and number != 4)  # 4: the rate is in a tensor
            if flags and number == 5:
                del optimizer.grad_scale, optimizer.found_inf
        runs.append(params)
    close(*runs)


#: What may be written down of a step count, and something of each kind that may not.
WRITTEN: tuple[Any, ...] = (
    lambda t: t,
    lambda t: 0.1,
    lambda t: -0.0 * t,
    lambda t: -t,
    lambda t: 3.5 - (t - 2),
    lambda t: host.div(0.5, 1 - 0.9**t),
    lambda t: host.div(t - 1.0, t - 1.0),
    lambda t: host.div(t, 0.0),
    lambda t: 1.0 / host.sqrt(1 - 0.999**t),
    lambda t: host.sqrt(1.5 - t),
    lambda t: host.pow_(t, -0.8),
    lambda t: host.pow_(1.0 - t, 3),
    lambda t: host.minimum(t / 100.0, 1.0),
    lambda t: host.clamp(2.0 * t, 3.0, 5),
    lambda t: host.maximum(host.sqrt(1.5 - t), t),
    lambda t: 1e308 * t,
)
UNWRITTEN: tuple[Any, ...] = (
    lambda t: t > 3,
    lambda t: t == 1,
    lambda t: 1.0 if t else 0.0,
    lambda t: math.sqrt(t),
    lambda t: host.exp(t),
    lambda t: host.entry((1.0, 2.0), t),
    lambda t: host.floor(t),
    lambda t: abs(t),
    lambda t: t % 2,
    lambda t: functools.reduce(lambda x, _: x + 1.0, range(64), t),
)


def test_programs_give_what_the_host_computes() -> None:
    """Two programs of different lengths side by side, for rows with counts of their own, in either type."""
    numbers = importlib.import_module("optdsl.runtime.triton.numbers")
    chosen = (WRITTEN, WRITTEN[:2] * 8)
    made = []
    for functions in chosen:
        notes = notes_module.Notes()
        made.append(
            numbers.written(notes, [function(notes_module.Symbol(notes, 0)) for function in functions])
        )
    programs = torch.frombuffer(bytearray(b"".join(words for words, _ in made)), dtype=torch.int64)
    operations, slots, rows = max(count for _, count in made), len(WRITTEN), 37
    counts = torch.arange(1, rows + 1, dtype=torch.float64) ** 3
    owners = torch.arange(rows) % 2
    for real, dtype in ((batch.tl.float32, torch.float32), (batch.tl.float64, torch.float64)):
        found = torch.full((rows, 2 + slots), 7.0, dtype=dtype)
        settings = {
            **{"REAL": real, "SLOTS": slots, "WORDS": programs.numel() // 2, "PITCH": 2 + slots},
            **{"REGISTERS": numbers.REGISTERS, "ROWS": numbers.ROWS, "num_warps": 4},
        }
        arguments = (programs, owners, counts, found, rows, operations)
        batch.launch(numbers.compute, -(-rows // numbers.ROWS), arguments, settings)
        wanted = [
            [7.0, *(float(function(int(t))) for function in chosen[owner]), 7.0]
            for t, owner in zip(counts.tolist(), owners.tolist(), strict=True)
        ]
        expected = torch.tensor(wanted, dtype=torch.float64).to(dtype)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0.0, equal_nan=True)
        assert torch.equal(found.signbit() & ~found.isnan(), expected.signbit() & ~expected.isnan())


@pytest.mark.parametrize("function", UNWRITTEN)
def test_what_is_no_program(function: Any) -> None:
    numbers = importlib.import_module("optdsl.runtime.triton.numbers")
    notes = notes_module.Notes()
    with pytest.raises(notes_module.Unwritten):
        numbers.written(notes, [function(notes_module.Symbol(notes, 0))])


def test_a_tensor_as_rate_stays_one() -> None:
    """Under `capturable` the rate is read where it is, in every step."""
    ours, theirs = parameters(), parameters()
    rate = torch.tensor(1e-2)
    mine = ADAMW(ours, lr=rate, weight_decay=0.1, capturable=True)
    peer = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1)
    for number in range(3):
        rate.fill_(1e-2 / (1 + number))
        peer.param_groups[0]["lr"] = 1e-2 / (1 + number)
        for params in (ours, theirs):
            give(params, number)
        mine.step()
        peer.step()
        close(ours, theirs)


@pytest.mark.parametrize(
    ("cls", "options", "expected"),
    [
        (ADAMW, {}, ["pass"]),
        (LION, {}, ["pass"]),
        (LAMB, {"max_grad_norm": float("inf")}, ["pass", "between", "pass"]),
        (LAMB, {}, ["pass", "between", "between", "pass", "between", "pass"]),
    ],
)
def test_launches(cls: Any, options: Any, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each pass, however many tensors, and one for what is computed between two."""
    params = parameters()
    optimizer = cls(params, **options)
    give(params, 0)
    optimizer.step()
    seen = Seen(monkeypatch)
    give(params, 1)
    assert [name.rstrip("0123456789") for name in seen.step(optimizer)] == expected


def test_only_what_has_changed_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy for new gradients or numbers, none for Lion's with the same gradients."""
    copies: list[int] = []
    whole = batch.TritonBatch._copy
    monkeypatch.setattr(
        batch.TritonBatch, "_copy", lambda s, t, d: copies.append(t.numel()) or whole(s, t, d)
    )

    def counted(optimizer: Any) -> int:
        copies.clear()
        optimizer.step()
        return len(copies)

    params = parameters()
    give(params, 0)
    lion = LION(params, weight_decay=0.1)
    lion.step()
    assert counted(lion) == 0
    give(params, 1)
    assert counted(lion) == 1
    lion.param_groups[0]["lr"] = 0.5
    assert counted(lion) == 1
    adamw = ADAMW(params)
    adamw.step()
    assert counted(adamw) == 1


@pytest.mark.parametrize("flags", COUNTING[:2], ids=str)
def test_parameters_and_gradients_that_move(flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where 16 bytes cannot be read at once, elements are read one by one."""
    ours, theirs = parameters(shapes=((2100,), (5,))), parameters(shapes=((2100,), (5,)))
    mine, peer = ADAMW(ours, weight_decay=0.1, **flags), torch.optim.AdamW(theirs, weight_decay=0.1)
    seen = Seen(monkeypatch)
    items = []
    for number in range(4):
        for params in (ours, theirs):
            give(params, number)
        if number == 1:
            odd = torch.zeros(2101)[1:]
            ours[0].grad = odd.copy_(ours[0].grad)  # type: ignore[arg-type]
        if number == 2:
            ours[0].data = ours[0].data.clone()
        if number == 3:
            ours[0].data = torch.zeros(2101)[1:].copy_(ours[0].data)
        seen.step(mine)
        items.append([s["ITEMS"] for s in seen.settings if "ITEMS" in s])
        peer.step()
        close(ours, theirs)
    assert items == [[4], [0], [4], [0]]


def test_a_moved_state_makes_the_table_anew() -> None:
    ours, theirs = parameters(), parameters()
    mine, peer = ADAMW(ours), torch.optim.AdamW(theirs)
    for number in range(3):
        for params in (ours, theirs):
            give(params, number)
        if number == 1:
            state = mine.state[ours[3]]
            state["exp_avg"] = state["exp_avg"].clone()
        if number == 2:
            mine.state[ours[3]]["exp_avg_sq"].data = mine.state[ours[3]]["exp_avg_sq"].clone()
        mine.step()
        peer.step()
        close(ours, theirs)


@pytest.mark.parametrize("cls", [ADAMW, LAMB, NADAM], ids=lambda cls: cls.__name__)
def test_the_scaling_of_gradients(cls: Any) -> None:
    """Scaled gradients give the same step; an overflow leaves parameters, states and counts as they were."""
    ours, theirs = parameters(), parameters()
    mine, plain = cls(ours, weight_decay=0.1, fused=True), cls(theirs, weight_decay=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    for number in range(3):
        give(ours, number, 1024.0)
        give(theirs, number)
        assert scaler.scale(torch.ones(())) == 1024.0
        scaler.step(mine)
        plain.step()
        close(ours, theirs)
        scaler.update(1024.0)
    before = [p.detach().clone() for p in ours]
    states = [{k: v.clone() for k, v in mine.state[p].items()} for p in ours]
    give(ours, 4)
    ours[3].grad[5, 5] = float("inf")  # type: ignore[index]
    scaler.scale(torch.ones(()))
    scaler.step(mine)
    for p, q, kept in zip(ours, before, states, strict=True):
        assert torch.equal(p, q)
        assert kept.keys() == mine.state[p].keys()
        for key, value in kept.items():
            assert torch.equal(value, mine.state[p][key]), key


def test_who_supports_scaling() -> None:
    """Those whose steps the device counts; torch's scaler does it for the others."""
    for flags, supports in (({}, False), ({"fused": True}, True), ({"capturable": True}, True)):
        assert ADAMW(parameters(), **flags)._step_supports_amp_scaling is supports
    assert not ADAMW(parameters(), foreach=True)._step_supports_amp_scaling
    # some of its branches have no kernels
    lion = lacking(optdsl.load("lion_k"), {"kappa": "topk"}, (3,))
    assert not lion(parameters(), fused=True)._step_supports_amp_scaling
    assert not SGD(
        parameters(), momentum=0.9, fused=True
    )._step_supports_amp_scaling  # its first step differs
    mine = ADAMW(parameters(), fused=True)
    give(mine.param_groups[0]["params"], 0)
    mine.step()
    mine.state[mine.param_groups[0]["params"][1]]["exp_avg"] = torch.zeros(3)
    mine.found_inf = torch.zeros(())
    with pytest.raises(RuntimeError, match="not such as the kernels take"):
        mine.step()


@pytest.mark.parametrize("flags", COUNTING[:2], ids=str)
def test_a_first_step_in_inference_mode(flags: dict[str, Any]) -> None:
    """What it made is written to in later steps, joint reductions too."""
    ours, theirs = parameters(), parameters()
    mine, peer = LAMB(ours, weight_decay=0.1, **flags), LAMB(theirs, weight_decay=0.1, **flags)
    for number in range(2):
        for params in (ours, theirs):
            give(params, number)
        with torch.inference_mode(number == 0):
            mine.step()
        peer.step()
        close(ours, theirs)


def test_kernels_of_another_compilation_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was changed is not the one that the class was made with; torch's operations do the work."""
    monkeypatch.setattr(optimizer_module._Kernels, "missing", {})
    monkeypatch.setattr(optimizer_module._Kernels, "told", set())
    for name in ("adamw.py", "adamw.c", "adamw.triton.py"):
        shutil.copy(ROOT / "generated" / name, tmp_path)
    with (tmp_path / "adamw.triton.py").open("a") as file:
        file.write("# changed\n")
    cls = module_of(tmp_path / "adamw.py", "changed_adamw").AdamW
    ours, theirs = parameters(), parameters()
    mine, peer = cls(ours), torch.optim.AdamW(theirs)
    for params in (ours, theirs):
        give(params, 0)
    with pytest.warns(RuntimeWarning, match="was not made together with the class"):
        mine.step()
    peer.step()
    close(ours, theirs)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning that says what to do, and torch's operations."""

    def missing() -> type[launch.Batch]:
        raise BuildError(
            "Triton cannot be imported (No module named 'triton'); `pip install triton` installs it"
        )

    monkeypatch.setattr(launch, "triton_batch", missing)
    monkeypatch.setattr(optimizer_module._Kernels, "missing", {})
    monkeypatch.setattr(optimizer_module._Kernels, "told", set())
    ours, theirs = parameters(), parameters()
    mine, peer = ADAMW(ours), torch.optim.AdamW(theirs)
    for number in range(2):
        for params in (ours, theirs):
            give(params, number)
        if number == 0:
            with pytest.warns(RuntimeWarning, match="pip install triton"):
                mine.step()
        else:
            mine.step()
        peer.step()
        close(ours, theirs)


def test_a_class_without_triton_kernels(tmp_path: Path) -> None:
    """Compiled for the CPU alone, it has nothing for Triton's interpreter, and runs its native kernels."""
    optdsl.compile(ROOT / "specs" / "adamw.opt", tmp_path, ["torch", "cpu"])
    cls = module_of(tmp_path / "adamw.py", "adamw_for_the_cpu").AdamW
    params = parameters()
    give(params, 0)
    mine = cls(params, fused=True)
    mine.step()
    assert type(tables(mine)[0].batches[0]) is launch.CpuBatch
    assert not mine._step_supports_amp_scaling


def test_flags_that_change_between_steps() -> None:
    """Counts move to where they are kept from then on."""
    ours, theirs = parameters(), parameters()
    mine, peer = ADAMW(ours, weight_decay=0.1), torch.optim.AdamW(theirs, weight_decay=0.1)
    for number, fused in enumerate((None, True, False, True, None)):
        mine.param_groups[0]["fused"] = fused
        for params in (ours, theirs):
            give(params, number)
        mine.step()
        peer.step()
        close(ours, theirs)


@pytest.mark.parametrize("flags", COUNTING, ids=str)
def test_modes_and_the_default_device_do_not_matter(flags: dict[str, Any]) -> None:
    """A table that inference mode has made is used elsewhere; nothing is made on the default device."""
    ours, theirs = parameters(), parameters()
    mine, peer = ADAMW(ours, **flags), torch.optim.AdamW(theirs)
    for number, mode in enumerate((torch.no_grad, torch.inference_mode, torch.enable_grad, torch.no_grad)):
        for params in (ours, theirs):
            give(params, number)
        if number == 1:
            mine._forget()
        with mode(), torch.device("meta"):
            mine.step()
        peer.step()
        close(ours, theirs)


@pytest.mark.parametrize("flags", COUNTING[:2], ids=str)  # torch takes `capturable` on no CPU
def test_checkpoints_go_both_ways(flags: dict[str, Any]) -> None:
    """Into torch's class and back, and into another way of counting."""
    ours, theirs = parameters(), parameters()
    mine, peer = ADAMW(ours, weight_decay=0.1, **flags), torch.optim.AdamW(theirs, weight_decay=0.1)
    for number in range(6):
        for params in (ours, theirs):
            give(params, number)
        mine.step()
        peer.step()
        close(ours, theirs)
        if number == 1:
            saved = mine.state_dict(), peer.state_dict()
            mine = ADAMW(ours, weight_decay=0.1, **flags)
            mine.load_state_dict(saved[1])
            peer.load_state_dict(saved[0])
        if number == 3:
            saved_here = mine.state_dict()
            mine = ADAMW(ours, weight_decay=0.1)
            mine.load_state_dict(saved_here)
            mine.param_groups[0].update(fused=None, capturable=not flags)
    assert [float(mine.state[p]["step"]) for p in ours] == [6.0] * 5


# ---- CUDA graphs ------------------------------------------------------------------------------------------------


class Graph:
    """What a stream that is captured would do: copies and launches are noted, and run when the graph is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capturing = False
        self.work: list[Any] = []
        launched, copied = batch.launch, batch.TritonBatch._copy

        def launch(*arguments: Any) -> None:
            if self.capturing:
                self.work.append(lambda: launched(*arguments))
            else:
                launched(*arguments)

        def copy(one: Any, target: torch.Tensor, data: torch.Tensor) -> None:
            if self.capturing:
                kept = data.clone()
                self.work.append(lambda: target.copy_(kept))
            else:
                copied(one, target, data)

        monkeypatch.setattr(batch, "launch", launch)
        monkeypatch.setattr(batch.TritonBatch, "_copy", copy)
        monkeypatch.setattr(batch.TritonBatch, "_capturing", lambda _: self.capturing)

    def capture(self, optimizer: Any) -> None:
        self.work.clear()
        self.capturing = True
        try:
            optimizer.step()
        finally:
            self.capturing = False

    def replay(self) -> None:
        for work in self.work:
            work()


def sign_descent(grad: torch.Tensor) -> tuple[torch.nn.Parameter, Any]:
    """A parameter at 0 that each step moves by minus the signs of its gradient."""
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = LION([p], lr=1.0, betas=(0.0, 0.0), weight_decay=0.0, capturable=True)
    p.grad = grad
    optimizer.step()
    return p, optimizer


ONE, OTHER, THIRD = (
    torch.tensor(x) for x in ([1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0])
)


def test_a_step_behind_one_that_was_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of new addresses was noted and not done, so the next step does it."""
    graph = Graph(monkeypatch)
    p, optimizer = sign_descent(ONE.clone())
    p.grad = OTHER.clone()
    graph.capture(optimizer)
    before = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, before - OTHER)


def test_a_graph_keeps_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps with other gradients in between, and a table made anew: the graph goes on with what it had."""
    graph = Graph(monkeypatch)
    mine = ONE.clone()
    p, optimizer = sign_descent(mine)
    graph.capture(optimizer)
    old = optimizer._launcher.tables[0].batches[0]
    p.grad = OTHER.clone()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert old in optimizer._captured
    before = p.detach().clone()
    mine.copy_(THIRD)
    graph.replay()
    assert torch.equal(p, before - THIRD)


def test_two_graphs_of_one_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(monkeypatch)
    p, optimizer = sign_descent(ONE.clone())
    p.grad = OTHER.clone()
    graph.capture(optimizer)
    p.grad = THIRD.clone()
    graph.capture(optimizer)
    before = p.detach().clone()
    graph.replay()
    assert torch.equal(p, before - THIRD)


# ---- what a scaler must not meet ----------------------------------------------------------------------------------


def overflowing(cls: Any, **flags: Any) -> tuple[list[torch.nn.Parameter], Any]:
    params = [torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(3))]
    optimizer = cls(params, **flags)
    params[0].grad, params[1].grad = torch.full((4, 4), float("inf")), torch.ones(3)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(65536.0), torch.tensor(1.0)
    return params, optimizer


@pytest.mark.parametrize("cls", [LION, LAMB], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("lacking", ["driver", "_export"])
def test_without_kernels_a_scaled_step_is_refused(
    cls: Any, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler is told beforehand; a step that is handed scaled gradients all the same changes nothing."""

    def fail() -> None:
        raise BuildError("this test has none")

    monkeypatch.setattr(optimizer_module._Kernels, "missing", {})
    monkeypatch.setattr(optimizer_module._Kernels, "told", set())
    monkeypatch.setattr(launch, lacking, fail)
    monkeypatch.setattr("optdsl.runtime.native.batch.driver", fail)
    params, optimizer = overflowing(cls, fused=True)
    assert not optimizer._step_supports_amp_scaling
    with pytest.raises(RuntimeError, match="only they take the scaling"), pytest.warns(RuntimeWarning):
        optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for p in params)
    assert not optimizer._step_supports_amp_scaling


@pytest.mark.parametrize("cls", [LION, LAMB], ids=lambda cls: cls.__name__)
def test_a_parameter_that_no_kernel_takes_is_not_stepped_with_scaled_gradients(cls: Any) -> None:
    params, optimizer = overflowing(cls, fused=True)
    optimizer.param_groups[0]["params"].append(params[1])  # one that is named twice is left to the loop
    with pytest.raises(RuntimeError, match="only they take the scaling"):
        optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for p in params)


def test_a_state_that_starts_from_the_gradient_has_no_scaling(tmp_path: Path) -> None:
    path = tmp_path / "begun.opt"
    path.write_text(
        "optimizer Begun:\n    state:\n        m = g\n    step:\n        m = 0.9 * m + g\n        p = p - m\n"
    )
    optimizer = optdsl.load(path)([torch.nn.Parameter(torch.ones(3))], fused=True)
    assert not optimizer._step_supports_amp_scaling


# ---- memory -------------------------------------------------------------------------------------------------------


def test_states_that_begin_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No promise of 16 bytes for a state in a flat buffer."""
    seen = Seen(monkeypatch)
    p = torch.nn.Parameter(torch.zeros(2048))
    optimizer = ADAMW([p])
    p.grad = torch.ones(2048)
    seen.step(optimizer)
    assert seen.settings[-1]["ITEMS"]
    optimizer.state[p]["exp_avg"] = torch.zeros(2049)[1:]
    seen.step(optimizer)
    assert not seen.settings[-1]["ITEMS"]


def test_pinned_memory_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's side of DLPack calls pinned memory a GPU's."""
    p = torch.nn.Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    optimizer = ADAMW([p])
    monkeypatch.setattr(torch.Tensor, "__dlpack_device__", lambda _: (3, 0))
    optimizer.step()
    assert not torch.equal(p, torch.ones(5))


@pytest.mark.parametrize("flags", COUNTING, ids=str)
def test_group_level_states_are_not_waited_for(flags: dict[str, Any]) -> None:
    """No number of the device comes to the host, as far as torch can tell on the CPU."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    params = parameters(shapes=((4, 5), (7,)))
    optimizer = optdsl.load("adagradnorm")(params, b0=0.5, **flags)
    for number in range(3):
        give(params, number)
        if number == 2:
            with Spy():
                optimizer.step()
        else:
            optimizer.step()
    assert seen
    assert not [name for name in seen if "local_scalar_dense" in name]
