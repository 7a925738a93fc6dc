"""bfloat16 rounded at random, and parameters with what is left beside them: on every path, and in checkpoints."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from optdsl import driver
from optdsl.analysis.explain import explain
from optdsl.analysis.setting import Setting
from optdsl.ir import random as meaning
from optdsl.runtime.random import Random
from optdsl.runtime.storage import AT_RANDOM, LOW, Split, rounded
from tests.backends.interpreted import interpreted, needs_triton
from tests.runtime.test_storage import KEEPS, go_on, kernels_ran, saved
from tests.support import needs_compiler

CPU = torch.device("cpu")
#: How a step may go. Steps of the last two loops are counted by tensors, as on a device.
PATHS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "kernels": {},
    "triton": {},
    "triton, counting": {"fused": True},
    "triton, capturable": {"capturable": True},
    "loop, capturable": {"foreach": False, "capturable": True},
    "foreach, capturable": {"foreach": True, "capturable": True},
}
TRITON = [needs_compiler, needs_triton]
MARKS = {path: TRITON if "triton" in path else needs_compiler if path == "kernels" else () for path in PATHS}
EACH = pytest.mark.parametrize("path", [pytest.param(path, marks=marks) for path, marks in MARKS.items()])
FORMS = ("bf16_sr", "bf16+kahan")
#: Where the parameter and the first two states draw.
SITES = (4095, 4094, 4093)


def how(path: str) -> Any:
    return interpreted() if "triton" in path else contextlib.nullcontext()


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bits of numbers in bfloat16, with one nan."""
    return torch.where(x == x, x.detach().view(torch.int16), 0x7FC0)


# ---- what rounding is -------------------------------------------------------------------------------------------

#: All magnitudes that bfloat16 has, in order, and beyond the largest one infinity.
LADDER = np.arange(0x7F81, dtype=np.uint32) << 16
LADDER = LADDER.view(np.float32)


def by_search(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The definition, with numbers in place of bits: how far x is from the neighbour nearer to 0, in 2^16ths of the
    way to the other one, and r decide. float32 and int to float32.
    """
    finite = np.isfinite(x)
    size = np.abs(np.where(finite, x, 0)).astype(np.float64)
    rung = np.searchsorted(LADDER[:-1], size, side="right") - 1
    low = LADDER[rung].astype(np.float64)
    # the step beyond the largest number is as long as the one before it
    length = np.diff(LADDER[:-1].astype(np.float64))[np.minimum(rung, len(LADDER) - 3)]
    share = (size - low) / length * 2**16
    assert np.array_equal(share, np.floor(share))
    found = np.where(finite, LADDER[rung + (share + r >= 2**16)], np.abs(x))
    return np.copysign(found, x).astype(np.float32)


def same(found: torch.Tensor, wanted: np.ndarray) -> bool:
    """Whether numbers in bfloat16 are these, zeros with their sign; any nan is one."""
    wide = found.detach().float().numpy()
    both = (wide == wanted) & (np.signbit(wide) == np.signbit(wanted))
    return bool(np.all(both | (np.isnan(wide) & np.isnan(wanted))))


def test_every_upper_half_is_rounded_as_defined() -> None:
    """All upper halves, with lower halves and random bits at the ends, in the middle, and some more."""
    rng = np.random.default_rng(11)
    edges = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    upper = np.arange(2**16, dtype=np.uint32) << 16
    for lower in [*edges, *rng.integers(2**16, size=3)]:
        x = (upper + np.uint32(lower)).view(np.float32)
        for r in [*edges, *rng.integers(2**16, size=3)]:
            random = torch.full((2**16,), int(r), dtype=torch.int32)
            found = rounded(torch.from_numpy(x), random)
            assert same(found, by_search(x, np.int64(r))), (lower, r)
            if lower == 0:
                assert same(found, x), r  # what is a bfloat16 stays


def test_rounding_is_right_on_average() -> None:
    """Of n = 2^16 copies, only the two neighbours come, and their mean is within 5 standard errors of the number.

    One copy is off by at most the distance d of the neighbours, with a standard deviation of at most d / 2. With 5
    standard errors, one of 200 numbers fails with a chance below 2 * 3e-7 * 200 over all seeds; this one passes.
    """
    seed, n = 12, 2**16
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(200) * 10.0 ** rng.uniform(-41, 38, 200)
    for index, number in enumerate(numbers.astype(np.float32)):
        x = torch.full((n,), float(number), dtype=torch.float32)
        random = Random(seed, 1, index, x.shape, torch.float32, CPU)
        found = rounded(x, random.halves(4095)).double().numpy()
        low, high = (float(by_search(number[None], np.array([r]))[0]) for r in (0, 2**16 - 1))
        assert {*np.unique(found)} <= {low, high}, (seed, number)
        error = abs(found.mean() - float(number))
        assert error <= 5 * abs(high - low) / 2 / n**0.5, (seed, number)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_are_rounded_as_defined_on_every_path(dtype: torch.dtype, path: str, tmp_path: Path) -> None:
    """Of every upper half and random lower ones, by words that numpy draws; float64 numbers become float32 first."""
    (tmp_path / "keeps.opt").write_text(KEEPS)
    seed, rng = 2**63 + 13, np.random.default_rng(13)
    patterns = (np.arange(2**16, dtype=np.uint32) << 16) + rng.integers(2**16, size=2**16, dtype=np.uint32)
    patterns[rng.random(2**16) < 0.2] &= np.uint32(0xFFFF0000)
    rng.shuffle(patterns)
    g = torch.from_numpy(patterns.view(np.float32)).to(dtype)
    if dtype is torch.float64:
        g *= 1 + 1e-9 * torch.rand(g.shape, dtype=dtype, generator=torch.Generator().manual_seed(13))
    first = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    p = torch.nn.Parameter(torch.ones(g.shape, dtype=dtype))
    with how(path):
        groups = [{"params": [first, p], "seed": seed}]
        optimizer = optdsl.load(tmp_path / "keeps.opt")(groups, store="bf16_sr", **PATHS[path])
        first.grad = torch.ones_like(first)
        for step in (1, 2):
            p.grad = g
            optimizer.step()
            for key, site in zip("mv", SITES[1:], strict=True):
                r = meaning.words(seed, step, 1, site, len(g)) >> np.uint32(16)
                x = g.numpy().astype(np.float32)
                held = optimizer.state[p][key]
                assert held.dtype is torch.bfloat16
                assert same(held, by_search(x if key == "m" else np.abs(x), r.astype(np.int64))), (key, step)
        assert kernels_ran(optimizer, path)


def run(path: str, form: str, shapes: Any, steps: int = 3, **options: Any) -> tuple[list[torch.Tensor], Any]:
    """What a run leaves in parameters and states. All that it computes before rounding fits in float32 exactly, so
    that no order of operations and no fused multiply-add matters.
    """
    generator = torch.Generator().manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).bfloat16()) for s in shapes]
    params.append(torch.nn.Parameter(torch.randn((13, 7), generator=generator).bfloat16().t()))
    store = {"p": form, "exp_avg": "bf16_sr"}
    groups = [{"params": params[:2], "seed": 5}, {"params": params[2:], "seed": 6}]
    with how(path):
        optimizer = optdsl.load("lion")(
            groups, lr=2**-10, betas=(0.5, 0.5), weight_decay=0.125, store=store, **PATHS[path], **options
        )
        for _ in range(steps):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).bfloat16()
            optimizer.step()
        assert kernels_ran(optimizer, path)
    held = [optimizer.state[p] for p in params]
    left = [*params, *(state[key] for state in held for key in ("exp_avg", LOW) if key in state)]
    return [bits(x) for x in left], optimizer


@EACH
@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_on_every_path(form: str, path: str) -> None:
    """Tensors of many sizes, one of them transposed, in two groups."""
    shapes = ((70, 61), (5,), (), (4099,), (0,))
    wanted, _ = run("loop", form, shapes)
    found, _ = run(path, form, shapes)
    assert len(found) == len(wanted) == 12 + 6 * (form != AT_RANDOM)
    for number, (x, y) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(x, y), (number, int((x != y).sum()))


@needs_compiler
@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_on_any_number_of_threads(form: str) -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(run("kernels", form, ((301, 300), (70, 70)))[0])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("what", ["seed", "tensor", "state", "step"])
def test_bits_differ_by(what: str, tmp_path: Path) -> None:
    """Numbers halfway between two of bfloat16 are rounded in other ways for another seed, tensor, state or step."""
    (tmp_path / "keeps.opt").write_text(KEEPS)

    def kept(seed: int = 0) -> Any:
        params = [torch.nn.Parameter(torch.ones(4096)) for _ in range(2)]
        groups = [{"params": params, "seed": seed}]
        optimizer = optdsl.load(tmp_path / "keeps.opt")(groups, store="bf16_sr")
        steps = []
        for _ in range(2):
            for p in params:
                p.grad = torch.full((4096,), 1 + 2**-8)
            optimizer.step()
            steps.append([{key: optimizer.state[p][key].clone() for key in "mv"} for p in params])
        return steps

    first = kept()
    assert torch.equal(first[0][0]["m"], kept()[0][0]["m"])
    other = {
        "seed": kept(1)[0][0]["m"],
        "tensor": first[0][1]["m"],
        "state": first[0][0]["v"],
        "step": first[1][0]["m"],
    }[what]
    # independent ones agree in 2048 of 4096, with a standard deviation of 32
    assert abs(int((first[0][0]["m"] == other).sum()) - 2048) < 6 * 32


# ---- what is left beside a parameter ----------------------------------------------------------------------------


def test_what_is_left_is_kept() -> None:
    """The parameter is the nearest bfloat16, as torch has it, and the sum is off by 2^-17 of the number at most.

    Half of the last place of 8 bits is 2^-9 of the number, and of that again as much is lost (2^-18), and the sum is
    rounded to float32. Numbers whose rest is denormal are left out.
    """
    x = torch.randn(1000, 120, generator=torch.Generator().manual_seed(15)) * 2.0 ** torch.arange(-60, 60)
    split = Split(torch.empty(x.shape, dtype=torch.bfloat16), torch.empty(x.shape, dtype=torch.bfloat16))
    split.put(x)
    assert torch.equal(split.high, x.bfloat16())
    assert float(((split.open(torch.float64) - x.double()) / x.double()).abs().max()) <= 2**-17
    assert split.form == "bf16+kahan"


@EACH
@pytest.mark.parametrize("form", FORMS)
def test_hostile_parameters(form: str, path: str, tmp_path: Path) -> None:
    """A step that changes nothing changes no bit but those of nan; one that doubles makes infinities, and no nan."""
    text = "optimizer Grows:\n    hyper:\n        scale = 1.0\n    step:\n        p = p * scale\n"
    (tmp_path / "grows.opt").write_text(text)
    largest = torch.finfo(torch.bfloat16).max
    numbers = [
        0.0,
        -0.0,
        float("inf"),
        -float("inf"),
        float("nan"),
        1e30,
        largest,
        -largest,
        -1e-40,
        1e-45,
        1.0,
    ]
    p = torch.nn.Parameter(torch.tensor(numbers).bfloat16())
    before = p.detach().clone()
    with how(path):
        optimizer = optdsl.load(tmp_path / "grows.opt")([p], store={"p": form}, **PATHS[path])
        p.grad = torch.ones_like(p)
        for _ in range(2):
            optimizer.step()
        assert torch.equal(bits(p), bits(before))
        optimizer.param_groups[0]["scale"] = 2.0
        for _ in range(2):
            optimizer.step()
        assert torch.equal(bits(p), bits(before * 4))


# ---- small steps ------------------------------------------------------------------------------------------------


def moved(dtype: torch.dtype, store: Any, **flags: Any) -> torch.Tensor:
    """How far 200 steps of AdamW take weights of 1."""
    p = torch.nn.Parameter(torch.ones(4096, dtype=dtype))
    made = torch.optim.AdamW if store == "torch" else optdsl.load("adamw")
    options = {} if store == "torch" else {"store": store}
    optimizer = made([p], lr=1e-4, weight_decay=0.01, **options, **flags)
    generator = torch.Generator().manual_seed(16)
    for _ in range(200):
        p.grad = (1 + 0.1 * torch.randn(4096, generator=generator)).to(dtype)
        optimizer.step()
    return 1 - p.detach().double()


@pytest.mark.parametrize("flags", [{"foreach": False}, pytest.param({}, marks=needs_compiler)], ids=str)
def test_small_steps_are_not_lost(flags: dict[str, Any]) -> None:
    """They are without: of steps of 1e-4 none moves a 1 of bfloat16. With, the mean moves as in float32."""
    exact = moved(torch.float32, None, **flags)
    assert 0.019 < float(exact.mean()) < 0.021
    assert not moved(torch.bfloat16, "torch").any()
    assert not moved(torch.bfloat16, None, **flags).any()
    assert not moved(torch.bfloat16, "bf16_sr", **flags).any()  # states alone do not help
    states = {"exp_avg": "bf16_sr", "exp_avg_sq": "bf16_sr"}
    for form in FORMS:
        found = moved(torch.bfloat16, {"p": form, **states}, **flags)
        assert abs(float(found.mean() / exact.mean()) - 1) < 0.03, form
        # a parameter that is rounded at random walks about; one with its rest beside it is right itself
        if form != AT_RANDOM:
            assert float((found - exact).abs().max()) < 0.005


# ---- checkpoints ------------------------------------------------------------------------------------------------


def trained(store: Any, dtype: torch.dtype = torch.bfloat16, **flags: Any) -> tuple[torch.nn.Parameter, Any]:
    p = torch.nn.Parameter(torch.randn(65, 65, generator=torch.Generator().manual_seed(8)).to(dtype))
    groups = [{"params": [p], "seed": 17}]
    optimizer = optdsl.load("adamw")(groups, lr=1e-3, weight_decay=0.1, store=store, **flags)
    go_on(p, optimizer, 3, 9)
    return p, optimizer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "flags", [{"foreach": False}, {"foreach": True}, pytest.param({}, marks=needs_compiler)], ids=str
)
def test_a_run_goes_on_bit_for_bit(form: str, flags: dict[str, Any]) -> None:
    """The seed comes with the checkpoint, whatever the new optimizer had."""
    store = {"p": form, "exp_avg": "bf16_sr"}
    p, optimizer = trained(store, **flags)
    q = torch.nn.Parameter(p.detach().clone())
    other = optdsl.load("adamw")([q], lr=1e-3, weight_decay=0.1, store=store, **flags)
    other.load_state_dict(saved(optimizer))
    assert other.param_groups[0]["seed"] == 17
    for key, held in optimizer.state[p].items():
        assert torch.equal(held, other.state[q][key]), key
        assert held.dtype is other.state[q][key].dtype
    go_on(p, optimizer, 3, 10)
    go_on(q, other, 3, 10)
    assert torch.equal(p, q)
    assert torch.equal(optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"])


@pytest.mark.parametrize("before", [None, "bf16", "bf16_sr", "q8"])
@pytest.mark.parametrize("after", [None, "bf16_sr"])
def test_states_are_brought_into_the_formats_of_who_loads_them(before: Any, after: Any) -> None:
    p, optimizer = trained(before, torch.float32)
    q = torch.nn.Parameter(p.detach().clone())
    other = optdsl.load("adamw")([q], store=after)
    other.load_state_dict(saved(optimizer))
    held, new = optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"]
    assert new.dtype is (torch.bfloat16 if after else torch.float32)
    if held.dtype is not torch.uint8:
        assert torch.equal(held.to(new.dtype), new)
    go_on(q, other, 1, 3)


@pytest.mark.parametrize("before", ["bf16+16", "bf16+8", "bf16+kahan"])
@pytest.mark.parametrize("after", ["bf16+16", "bf16+8", "bf16+kahan", "bf16_sr"])
@pytest.mark.parametrize("flags", [{"foreach": False}, pytest.param({}, marks=needs_compiler)], ids=str)
def test_what_is_beside_parameters_is_brought_along(before: str, after: str, flags: dict[str, Any]) -> None:
    """A step of no length leaves the number that was kept before, as far as the new format holds it."""
    p, optimizer = trained({"p": before})
    whole = Split(p.detach(), optimizer.state[p][LOW]).open(torch.float64)
    q = torch.nn.Parameter(p.detach().clone())
    other = optdsl.load("adamw")([q], store={"p": after}, **flags)
    other.load_state_dict(saved(optimizer))
    other.param_groups[0]["lr"] = 0.0
    go_on(q, other, 1, 3)
    if after == AT_RANDOM:
        assert torch.equal(p, q)
        return
    found = Split(q.detach(), other.state[q][LOW]).open(torch.float64)
    assert float(((found - whole) / whole).abs().max()) <= (0 if before == after else 2**-15)


@EACH
@pytest.mark.parametrize("form", ["bf16+16", "bf16+8", "bf16+kahan"])
def test_what_is_beside_a_parameter_may_lie_anywhere(form: str, path: str) -> None:
    """Kernels read it by 16 bytes at once, and so have it moved where they can."""
    left = []
    for shift in (0, 1):
        with how(path):
            p, optimizer = trained({"p": form}, **PATHS[path])
            low = optimizer.state[p][LOW]
            memory = torch.empty(low.numel() + shift, dtype=low.dtype)
            optimizer.state[p][LOW] = memory[shift:].view(low.shape).copy_(low)
            go_on(p, optimizer, 2, 10)
        left.append((p.detach(), optimizer.state[p][LOW]))
    assert all(map(torch.equal, *left))


# ---- asking for it ----------------------------------------------------------------------------------------------


def test_what_cannot_be_had_is_refused(tmp_path: Path) -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    make = optdsl.load("adamw")
    for store in ("bf16_sr", {"p": "bf16_sr"}, {"p": "bf16+kahan"}):
        with pytest.raises(RuntimeError, match="does not support `differentiable`"):
            make([p], store=store, differentiable=True)
    (tmp_path / "rounds.opt").write_text(KEEPS.replace("m = 0", "m = 0 stored bf16_sr"))
    with pytest.raises(RuntimeError, match=r"'bf16_sr' of the state 'm' does not support `differentiable`"):
        optdsl.load(tmp_path / "rounds.opt")([p], differentiable=True)
    with pytest.raises(ValueError, match=r"Invalid store value for 'p': 'bf16' .*'bf16\+kahan', 'bf16_sr'"):
        make([p], store={"p": "bf16"})
    for store in ("bf16+kahan", {"exp_avg": "bf16+kahan"}):
        with pytest.raises(ValueError, match=r"Invalid store value.*: 'bf16\+kahan' .*'bf16_sr'"):
            make([p], store=store)
    for seed in (-1, 2**64, 0.5, True):
        with pytest.raises(ValueError, match="Invalid seed value"):
            make([{"params": [p], "seed": seed}], store="bf16_sr")
        with pytest.raises(ValueError, match="Invalid seed value"):
            make([p], seed=seed)
    with pytest.raises(ValueError, match=r"there is no format 'bf16_s' .*bf16_sr"):
        optdsl.load("adamw", store="bf16_s")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_parameters_of_other_types_stay_as_they_are(dtype: torch.dtype, form: str) -> None:
    left = []
    for store in ({}, {"store": {"p": form}}):
        p = torch.nn.Parameter(torch.ones(64, dtype=dtype))
        optimizer = optdsl.load("adamw")([p], **store)
        go_on(p, optimizer, 3, 1)
        assert LOW not in optimizer.state[p]
        left.append(p)
    assert torch.equal(*left)


def test_complex_states_are_not_rounded() -> None:
    p = torch.nn.Parameter(torch.ones(64, dtype=torch.complex64))
    optimizer = optdsl.load("adamw")([p], store="bf16_sr")
    go_on(p, optimizer, 2, 1)
    assert optimizer.state[p]["exp_avg"].dtype is torch.complex64


def test_where_a_seed_is_said(tmp_path: Path) -> None:
    """As an option of a group, in the group, or as an argument of a class whose spec or defaults round at random."""

    def left(
        make: Any, store: Any = None, changed: int | None = None, **options: Any
    ) -> tuple[torch.Tensor, Any]:
        p = torch.nn.Parameter(torch.ones(512))
        optimizer = make([p], store=store, **options)
        if changed is not None:
            optimizer.param_groups[0]["seed"] = changed
        go_on(p, optimizer, 2, 1)
        return optimizer.state[p]["m"], optimizer.param_groups[0].get("seed")

    (tmp_path / "keeps.opt").write_text(KEEPS)
    plain = optdsl.load(tmp_path / "keeps.opt")
    (tmp_path / "rounds.opt").write_text(
        KEEPS.replace("m = 0", "m = 0 stored bf16_sr").replace("Keeps", "Rounds")
    )
    rounds, loaded = (
        optdsl.load(tmp_path / "rounds.opt"),
        optdsl.load(tmp_path / "keeps.opt", store="bf16_sr"),
    )
    assert left(plain)[1] is None
    wanted = {seed: left(plain, "bf16_sr", seed) for seed in (0, 3)}
    assert [seed for _, seed in wanted.values()] == [0, 3]
    assert not torch.equal(wanted[0][0], wanted[3][0])
    for found, seed in (
        (left(plain, "bf16_sr"), 0),
        *((left(make), 0) for make in (rounds, loaded)),
        *((left(make, changed=3), 3) for make in (rounds, loaded)),
        *((left(make, seed=3), 3) for make in (rounds, loaded)),
        (left(plain, "bf16_sr", seed=3), 3),
        (left(lambda p, **options: plain([{"params": p, "seed": 3}], **options), "bf16_sr", seed=4), 3),
    ):
        assert torch.equal(found[0], wanted[seed][0])
        assert found[1] == seed


def test_explain_counts_two_bytes() -> None:
    program, _ = driver.program_of(driver.locate("adamw"), [], "bf16_sr")
    found = explain(program, driver.simplify(program), Setting())
    assert found.state_bytes == 2 * 2
    assert found.usual.account.moved == 4 + 8 + 2 * 2 * 2
