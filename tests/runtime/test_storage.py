"""States in few bits, and parameters in bfloat16 with the bits that they lack: on every path, and in checkpoints."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from optdsl import driver
from optdsl.analysis.account import BYTES
from optdsl.analysis.explain import explain
from optdsl.analysis.setting import Setting
from optdsl.check import names as check_names
from optdsl.check.names import BESIDE
from optdsl.core import storage as names
from optdsl.runtime import states, storage
from optdsl.runtime.states import TRAINED
from optdsl.runtime.storage import BLOCK, CODES, LOW, SCALES, SPLITS, Split, code, decode, encode
from tests.backends.interpreted import interpreted, needs_triton
from tests.end_to_end.test_golden import REFERENCE
from tests.support import needs_compiler

CPU = torch.device("cpu")
RECORDED = REFERENCE.parent / "golden-structured" / "bnb_8bit.npz"
#: How a step may go.
PATHS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "kernels": {},
    "triton": {},
    "triton, counting": {"fused": True},
}
EACH = pytest.mark.parametrize(
    "path",
    [
        "loop",
        "foreach",
        pytest.param("kernels", marks=needs_compiler),
        pytest.param("triton", marks=[needs_compiler, needs_triton]),
        pytest.param("triton, counting", marks=[needs_compiler, needs_triton]),
    ],
)
FINITE = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
FINITE = FINITE[FINITE.isfinite()]


def how(path: str) -> Any:
    return interpreted() if "triton" in path else contextlib.nullcontext()


def kernels_ran(optimizer: Any, path: str) -> bool:
    """Whether the kernels of a path took every parameter, or none did where none should."""
    tables = optimizer._launcher.tables.values() if optimizer._launcher else []
    ran = {type(batch).__name__ for table in tables for batch in table.batches}
    left = any(table.skipped for table in tables)
    wanted = {"kernels": {"CpuBatch"}, "triton": {"TritonBatch"}}.get(path.split(",")[0], set())
    return ran == wanted and not left


# ---- tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", CODES)
def test_the_nearest_entry(name: str, positive: bool) -> None:
    """Of all numbers of bfloat16 in [-1, 1], by search: the nearest entry in exact arithmetic, the lower of two."""
    table = code(name, positive, CPU)
    x = FINITE[(FINITE.abs() <= 1) & ((0 if positive else -1) <= FINITE)]
    entries = table.values.double()
    distance = (x.double().unsqueeze(1) - entries).abs()  # sums of two such numbers fit in float64
    wanted = distance.argmin(1)
    blocks = torch.cat((torch.ones(len(x), 1), x.unsqueeze(1), torch.zeros(len(x), BLOCK - 2)), 1)
    codes, scales = encode(blocks, table)
    assert torch.equal(scales, torch.ones(len(x)))
    if table.bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), 1)
    assert torch.equal(codes.view(len(x), BLOCK)[:, 1].long(), wanted)


@pytest.mark.skipif(not RECORDED.is_file(), reason="no recorded codes; set OPTDSL_REFERENCE to their folder")
@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_recorded_codes(kind: str) -> None:
    """The table, codes and scales of bitsandbytes, bit for bit."""
    with np.load(RECORDED) as recorded:
        table = code("q8", kind == "unsigned", CPU)
        np.testing.assert_array_equal(table.values.numpy(), recorded[f"codebook_{kind}"])
        x = torch.from_numpy(recorded["x"])
        x = x.abs() if kind == "unsigned" else x
        codes, scales = encode(x, table)
        np.testing.assert_array_equal(codes.numpy(), recorded[f"{kind}_b256/codes"])
        np.testing.assert_array_equal(scales.numpy(), recorded[f"{kind}_b256/absmax"])
        back = decode(codes, scales, table, x.shape, torch.float32)
        np.testing.assert_array_equal(back.numpy(), recorded[f"{kind}_b256/dequantized"])


#: Recorded runs: the spec, its options, the states in their order. bitsandbytes keeps the sums of Adagrad, which are
#: never negative, in the signed table, and so its run is left out.
RUNS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "adam8bit": ("adam", {"lr": 0.01, "betas": (0.9, 0.995)}, ["exp_avg", "exp_avg_sq"]),
    "adamw8bit_wd": (
        "adamw",
        {"lr": 0.01, "betas": (0.9, 0.999), "weight_decay": 0.1},
        ["exp_avg", "exp_avg_sq"],
    ),
    "lion8bit_wd": ("lion", {"lr": 0.001, "betas": (0.9, 0.99), "weight_decay": 0.1}, ["exp_avg"]),
    "momentum8bit_wd": ("sgd", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}, ["momentum_buffer"]),
    "rmsprop8bit": ("rmsprop", {"lr": 0.01, "alpha": 0.99, "eps": 1e-8}, ["square_avg"]),
}


@pytest.mark.skipif(not RECORDED.is_file(), reason="no recorded runs; set OPTDSL_REFERENCE to their folder")
@EACH
@pytest.mark.parametrize("run", RUNS)
def test_recorded_runs(run: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps of bitsandbytes on a tensor of 808: codes bit for bit, all else to rounding."""
    monkeypatch.setattr(states, "LEAST", 1)
    name, options, keys = RUNS[run]
    with np.load(RECORDED) as recorded, how(path):
        p = torch.nn.Parameter(torch.from_numpy(recorded[f"{run}/p0"].copy()))
        optimizer = optdsl.load(name)([p], store="q8", **options, **PATHS[path])
        for step in range(6):
            p.grad = torch.from_numpy(recorded[f"{run}/grads"][step].copy())
            optimizer.step()
            np.testing.assert_allclose(p.detach().numpy(), recorded[f"{run}/p"][step], rtol=2e-6, atol=1e-6)
            for number, key in enumerate(keys, 1):
                held = optimizer.state[p]
                np.testing.assert_array_equal(held[key].numpy(), recorded[f"{run}/state{number}"][step])
                scales = recorded[f"{run}/absmax{number}"][step]
                np.testing.assert_allclose(held[key + SCALES].numpy(), scales, rtol=1e-6)
        assert kernels_ran(optimizer, path)


# ---- every path does the same -------------------------------------------------------------------------------------

KEEPS = """optimizer Keeps:
    state:
        m = 0
        v = 0
    step:
        m = g
        v = abs(g)
        p = p - 0.5 * (m + v)
"""


@EACH
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_of_every_number_of_bfloat16(name: str, dtype: torch.dtype, path: str, tmp_path: Path) -> None:
    """In blocks of all scales, with zeros, infinities and nan among them: as the table says, bit for bit."""
    (tmp_path / "keeps.opt").write_text(KEEPS)
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(len(FINITE), generator=generator)
    near = torch.cat((FINITE[order][:9000], torch.randn(9001, generator=generator)))
    near[:BLOCK] = 0
    near[BLOCK + 3], near[3 * BLOCK + 5], near[4 * BLOCK + 1] = float("inf"), float("nan"), -float("inf")
    near[5 * BLOCK : 6 * BLOCK] = FINITE[FINITE.abs() < 1e-39].repeat(20)[:BLOCK]
    # halfway between entries, and next to that
    table = code(name, False, CPU)
    bounds = table.bounds[:BLOCK].repeat(3)
    bounds[len(bounds) // 3 :] = torch.nextafter(bounds[len(bounds) // 3 :], torch.tensor(2.0))
    near[7 * BLOCK : 7 * BLOCK + len(bounds)] = bounds
    near[7 * BLOCK :: BLOCK] = 1.0
    p = torch.nn.Parameter(torch.ones(len(near), dtype=dtype))
    with how(path):
        optimizer = optdsl.load(tmp_path / "keeps.opt")([p], store=name, **PATHS[path])
        p.grad = near.to(dtype)
        optimizer.step()
        assert kernels_ran(optimizer, path)
    for key, positive in (("m", False), ("v", True)):
        x = p.grad.abs() if positive else p.grad
        codes, scales = encode(x, code(name, positive, CPU))
        held = optimizer.state[p]
        assert torch.equal(held[key + SCALES].nan_to_num(7.0), scales.nan_to_num(7.0))
        assert torch.equal(held[key], codes), (key, int((held[key] != codes).sum()))


@EACH
@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "adagrad"])
@pytest.mark.parametrize("kept", ["q8", "q4", {"exp_avg": "bf16"}, "f16", "bf16_sr"], ids=str)
def test_steps_are_those_of_the_loop(name: str, kept: Any, path: str) -> None:
    """Large and small tensors, several steps; a number that rounding takes to another code is rare."""
    if isinstance(kept, dict) and name == "adagrad":
        kept = {"sum": "bf16"}
    if path.startswith("triton") and kept not in ("q8", "q4", "f16", "bf16_sr"):
        pytest.skip("Triton's interpreter cuts numbers off that it makes bfloat16")
    shapes = ((70, 61), (5,), (4099,))
    runs = []
    for way in ("loop", path):
        generator = torch.Generator().manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        with how(way):
            optimizer = optdsl.load(name)(params, lr=1e-2, weight_decay=0.1, store=kept, **PATHS[way])
            for _ in range(3):
                for p in params:
                    p.grad = torch.randn(p.shape, generator=generator)
                optimizer.step()
            assert kernels_ran(optimizer, way)
        runs.append((params, optimizer))
    (mine, first), (theirs, second) = runs
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-3)
        for key, held in first.state[p].items():
            other = second.state[q][key]
            assert held.dtype is other.dtype, key
            if held.dtype is torch.uint8:
                assert int((held != other).sum()) <= 0.01 * held.numel(), key
        if isinstance(kept, str) and kept in CODES:
            wanted = torch.uint8 if p.numel() >= 4096 else torch.float32
            assert {x.dtype for k, x in first.state[p].items() if k in ("exp_avg", "sum")} == {wanted}


@EACH
@pytest.mark.parametrize("name", CODES)
def test_codes_that_a_step_leaves_alone(name: str, path: str, tmp_path: Path) -> None:
    """They stay as they are, even where the largest number of a block is negative, which `q8` has no entry for."""
    (tmp_path / "now_and_then.opt").write_text(
        "optimizer NowAndThen:\n    state:\n        m = p\n        n = 0\n    step:\n"
        "        n = n + g\n        if mod(t, 4) == 0:\n            m = m + 0.1 * g\n"
        "        p = p - 0.1 * m - 0.1 * n\n"
    )
    generator = torch.Generator().manual_seed(6)
    start = torch.randn(4200, generator=generator)
    start[::100] = -5.0
    grads = torch.randn(5, 4200, generator=generator)
    p = torch.nn.Parameter(start.clone())
    table = code(name, False, CPU)
    wanted = encode(start, table)
    with how(path):
        optimizer = optdsl.load(tmp_path / "now_and_then.opt")([p], store={"m": name}, **PATHS[path])
        for number, g in enumerate(grads, 1):
            p.grad = g
            with torch.inference_mode(mode=number == 2 and "triton" not in path):
                optimizer.step()
            if number == 4:
                wanted = encode(decode(*wanted, table, start.shape, torch.float32) + 0.1 * g, table)
            held = optimizer.state[p]
            different = int((held["m"] != wanted[0]).sum())
            assert different <= (0 if number < 4 else 5), (number, different)
            torch.testing.assert_close(held["m" + SCALES], wanted[1], rtol=0 if number < 4 else 1e-6, atol=0)
        assert kernels_ran(optimizer, path)


# ---- parameters with the bits that they lack --------------------------------------------------------------------


@EACH
def test_sixteen_bits_more_are_float32(path: str) -> None:
    """bfloat16 parameters with 16 bits beside them, and states in float32, train as float32 parameters do."""
    runs = []
    start = torch.randn(4100, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = {"exp_avg": "f32", "exp_avg_sq": "f32"}
    with how(path):
        for dtype, store in ((torch.bfloat16, {"p": "bf16+16", **exact}), (torch.float32, exact)):
            generator = torch.Generator().manual_seed(3)
            p = torch.nn.Parameter(start.clone().to(dtype))
            optimizer = optdsl.load("adamw")([p], lr=1e-4, weight_decay=0.1, store=store, **PATHS[path])
            for _ in range(4):
                p.grad = torch.randn(p.shape, generator=generator).bfloat16().to(dtype)
                optimizer.step()
            assert kernels_ran(optimizer, path)
            runs.append((p, optimizer))
    (p, optimizer), (q, _) = runs
    assert torch.equal(Split(p.detach(), optimizer.state[p][LOW]).open(torch.float32), q.detach())
    assert float(((p.detach().float() - q.detach()) / q.detach()).abs().max()) <= 2**-8


def moved(cls: Any, dtype: torch.dtype, spread: float, **options: Any) -> torch.Tensor:
    """How far weights of 1 come in 200 steps of AdamW with lr 1e-4, on gradients around 1."""
    generator = torch.Generator().manual_seed(4)
    p = torch.nn.Parameter(torch.ones(64, dtype=dtype))
    optimizer = cls([p], lr=1e-4, weight_decay=0.1, **options)
    for _ in range(200):
        p.grad = (1 + spread * torch.randn(64, generator=generator)).to(dtype)
        optimizer.step()
    low = optimizer.state[p].get(LOW)
    return 1 - (p.detach() if low is None else Split(p.detach(), low).open(torch.float32)).double()


@pytest.mark.parametrize("path", ["foreach", pytest.param("kernels", marks=needs_compiler)])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_small_steps_are_not_lost(spread: float, path: str) -> None:
    """In pure bfloat16 nothing moves, with torch neither; with more bits weights come as far as in float32."""
    adamw, bf16 = optdsl.load("adamw"), torch.bfloat16
    assert torch.all(moved(torch.optim.AdamW, bf16, spread) == 0)
    assert torch.all(moved(adamw, bf16, spread, **PATHS[path]) == 0)
    exact = moved(torch.optim.AdamW, torch.float32, spread)
    assert torch.all((exact - 0.021).abs() < 0.003)
    for form in ("bf16+8", "bf16+16"):
        found = moved(adamw, bf16, spread, store={"p": form}, **PATHS[path])
        # below 1, numbers of 16 significant bits are 0.15 steps apart; and the moments are in bfloat16
        assert torch.all((found - exact).abs() < 0.04 * exact), (form, found, exact)


@EACH
@pytest.mark.parametrize("form", ["bf16+8", "bf16+16"])
def test_hostile_parameters(form: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "still.opt").write_text("optimizer Still:\n    step:\n        p = p - 0 * g\n")
    p = torch.nn.Parameter(
        torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3e38, -1e-40, 1.0]).bfloat16()
    )
    before = p.detach().clone()
    with how(path):
        optimizer = optdsl.load(tmp_path / "still.opt")([p], store={"p": form}, **PATHS[path])
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert torch.equal(p.detach().nan_to_num(7.0), before.nan_to_num(7.0))


# ---- checkpoints ------------------------------------------------------------------------------------------------


MOMENTS = ("exp_avg", "exp_avg_sq")


def trained(store: Any, steps: int = 3, **flags: Any) -> tuple[torch.nn.Parameter, Any]:
    p = torch.nn.Parameter(torch.randn(65, 65, generator=torch.Generator().manual_seed(8)))
    optimizer = optdsl.load("adamw")([p], lr=1e-2, weight_decay=0.1, store=store, **flags)
    go_on(p, optimizer, steps, 9)
    return p, optimizer


def go_on(p: torch.nn.Parameter, optimizer: Any, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def numbers(optimizer: Any, p: torch.Tensor, key: str, kept: str | None) -> torch.Tensor:
    """A moment of AdamW, which is kept in this format."""
    held = optimizer.state[p][key]
    assert (held.dtype is torch.uint8) is (kept in CODES)
    if held.dtype is not torch.uint8:
        return held.float()
    table = code(str(kept), key == "exp_avg_sq", CPU)
    return decode(held, optimizer.state[p][key + SCALES], table, p.shape, torch.float32)


def saved(optimizer: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("store", ["q8", "q4", {"exp_avg": "q8_sqrt"}], ids=str)
@pytest.mark.parametrize("flags", [{"foreach": False}, {}], ids=str)
def test_a_run_goes_on_bit_for_bit(store: Any, flags: dict[str, Any]) -> None:
    p, optimizer = trained(store, **flags)
    q = torch.nn.Parameter(p.detach().clone())
    other = optdsl.load("adamw")([q], lr=1e-2, weight_decay=0.1, store=store, **flags)
    other.load_state_dict(saved(optimizer))
    for key, held in optimizer.state[p].items():
        assert torch.equal(held, other.state[q][key]), key
        assert held.dtype is other.state[q][key].dtype
    go_on(p, optimizer, 2, 10)
    go_on(q, other, 2, 10)
    assert torch.equal(p, q)


@pytest.mark.parametrize("before", [None, "q8", "q4", "bf16"])
@pytest.mark.parametrize("after", [None, "q8", "q8_linear", "f32"])
def test_states_are_brought_into_the_formats_of_who_loads_them(before: Any, after: Any) -> None:
    p, optimizer = trained(before)
    q = torch.nn.Parameter(p.detach().clone())
    other = optdsl.load("adamw")([q], store=after)
    other.load_state_dict(saved(optimizer))
    assert other.param_groups[0]["store"] == after
    assert (other.state[q]["exp_avg"].dtype is torch.uint8) is (after in CODES)
    go_on(q, other, 1, 3)

    def opened(key: str, x: torch.Tensor, o: Any, kept: Any) -> torch.Tensor:
        held = o.state[x][key]
        if held.dtype is not torch.uint8:
            return held.float()
        table = code(kept, key == "exp_avg_sq", CPU)
        return decode(held, o.state[x][key + SCALES], table, x.shape, torch.float32)

    fresh = optdsl.load("adamw")([q], store=after)
    fresh.load_state_dict(saved(optimizer))
    for key in ("exp_avg", "exp_avg_sq"):
        a, b = opened(key, p, optimizer, before), opened(key, q, fresh, after)
        largest = float(a.abs().max())
        assert float((a - b).abs().max()) <= (0.02 if after in CODES else 0.005) * largest


@pytest.mark.parametrize("after", [None, "q8", "q8_linear", {"exp_avg": "q4", "exp_avg_sq": "bf16"}], ids=str)
@pytest.mark.parametrize("store", [None, {"exp_avg": "q8_sqrt"}], ids=str)
@pytest.mark.parametrize("load", ["q8_linear", "q4_linear", {"exp_avg_sq": "q8_sqrt"}], ids=str)
def test_codes_of_a_class_are_what_its_state_dict_says(load: Any, store: Any, after: Any) -> None:
    """A class that keeps states in codes of itself, with what was asked for on top: read by the plain class, and by
    one that keeps them otherwise of itself.
    """
    formats = {**(dict.fromkeys(MOMENTS, load) if isinstance(load, str) else load), **(store or {})}
    p = torch.nn.Parameter(torch.randn(65, 65, generator=torch.Generator().manual_seed(8)))
    optimizer = optdsl.load("adamw", store=load)([p], weight_decay=0.1, store=store)
    go_on(p, optimizer, 3, 9)
    assert optimizer.param_groups[0]["store"] == store
    for cls, options in ((optdsl.load("adamw"), {"store": after}), (optdsl.load("adamw", store=after), {})):
        q = torch.nn.Parameter(p.detach().clone())
        other = cls([q], **options)
        other.load_state_dict(saved(optimizer))
        assert other.param_groups[0]["store"] == options.get("store")
        kept = dict.fromkeys(MOMENTS, after) if not isinstance(after, dict) else after
        for key in MOMENTS:
            held = numbers(optimizer, p, key, formats.get(key))
            found = numbers(other, q, key, kept.get(key))
            # half of the widest gap between entries, and bfloat16's last place
            wide = {"q8": 0.01, "q8_linear": 0.005, "q4": 0.15, "bf16": 0.004}.get(kept[key], 0.0)
            if formats.get(key) == kept[key]:
                wide = 0.0
            assert float((found - held).abs().max()) <= wide * float(held.abs().max()), (key, kept[key])


@pytest.mark.parametrize("load", ["q8_linear", "q8_sqrt", "bf16"])
@pytest.mark.parametrize("store", ["q8", "q4"])
def test_a_copy_has_the_formats_of_its_group(load: str, store: str) -> None:
    """Not those of its class, where these are others."""
    p = torch.nn.Parameter(torch.randn(65, 65, generator=torch.Generator().manual_seed(8)))
    optimizer = optdsl.load("adamw", store=load)([p], weight_decay=0.1, store=store)
    go_on(p, optimizer, 3, 9)
    copied = [copy.deepcopy((p, optimizer)), pickle.loads(pickle.dumps((p, optimizer)))]
    go_on(p, optimizer, 2, 10)
    for q, other in copied:
        go_on(q, other, 2, 10)
        assert torch.equal(p, q)
        assert all(torch.equal(held, other.state[q][key]) for key, held in optimizer.state[p].items())


def test_a_checkpoint_of_torch_is_taken() -> None:
    p = torch.nn.Parameter(torch.randn(80, 80))
    theirs = torch.optim.AdamW([p])
    go_on(p, theirs, 2, 1)
    ours = optdsl.load("adamw")([p], store="q8")
    ours.load_state_dict(theirs.state_dict())
    assert ours.state[p]["exp_avg"].dtype is torch.uint8
    go_on(p, ours, 1, 2)


def test_a_checkpoint_with_codes_missing_is_refused() -> None:
    p, optimizer = trained("q8")
    broken = saved(optimizer)
    broken["state"][0]["exp_avg"] = broken["state"][0]["exp_avg"].view(-1)[:100]
    other = optdsl.load("adamw")([torch.nn.Parameter(p.detach().clone())], store="q8")
    with pytest.raises(
        ValueError, match=r"'exp_avg' of the loaded state dict has 100 codes of shape .* and 17 scales"
    ):
        other.load_state_dict(broken)


# ---- asking for it ----------------------------------------------------------------------------------------------


def test_the_formats_are_the_same_everywhere() -> None:
    assert tuple(names.FORMATS) == storage.FORMATS
    assert {name for name in names.FORMATS if names.is_code(name)} == {*CODES}
    assert (names.BLOCK, names.LEAST) == (storage.BLOCK, storage.LEAST)
    assert {LOW, TRAINED} == BESIDE
    assert SCALES == check_names.SCALES
    assert BYTES["q8"] * 2 <= 2.1


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("q9", "Invalid store value: 'q9' .*'q8'"),
        ({"exp": "q8"}, "AdamW has no state 'exp' .*'exp_avg'"),
        ({"p": "q8"}, "Invalid store value for 'p': 'q8'"),
        ("f64", "Invalid store value: 'f64' .*'f32', 'bf16'"),
        ([], r"Invalid store value: \[\] .*'f32', 'bf16'"),
        ({"exp_avg": None}, "Invalid store value for 'exp_avg': None .*'f32', 'bf16'"),
        ({"exp_avg": ["q8"]}, r"Invalid store value for 'exp_avg': \['q8'\] .*'f32', 'bf16'"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused(store: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optdsl.load("adamw")([torch.nn.Parameter(torch.ones(3))], store=store)


ROWS = """optimizer Rows:
    state:
        m = 0
        r [rows] = 0
    step:
        r = 0.9 * r + mean(g * g, over=rows)
        m = 0.9 * m + g / (1 + sqrt(r))
        p = p - 0.1 * m / max(1, norm(m, over=all))
"""


@needs_compiler
def test_kernels_that_take_no_codes(tmp_path: Path) -> None:
    """Those that go by rows: `fused=True` says so, and else the loop does it, and nothing keeps the optimizer."""
    (tmp_path / "rows.opt").write_text(ROWS)
    rows = optdsl.load(tmp_path / "rows.opt")
    for store, dtype in (
        ("q8", torch.float32),
        ({"p": "bf16+16"}, torch.bfloat16),
        ("bf16_sr", torch.float32),
    ):
        small = torch.nn.Parameter(torch.ones(3, 4))
        p = torch.nn.Parameter(torch.ones(64, 65, dtype=dtype))
        p.grad = torch.ones_like(p)
        optimizer = rows([{"params": [small]}, {"params": [p]}], store=store, fused=True)
        with pytest.raises(
            RuntimeError, match=r"Rows has no fused kernel for parameter 1, of shape \(64, 65\)"
        ):
            optimizer.step()
        assert not any(optimizer.state.values())
        optimizer = rows([{"params": [small]}, {"params": [p]}], store=store)
        for number in range(3):
            small.grad = torch.ones_like(small) if number != 1 else None
            optimizer.step()
        held = weakref.ref(optimizer)
        gc.collect()
        gc.disable()
        try:
            del optimizer
            assert held() is None
        finally:
            gc.enable()


def test_formats_do_not_change_on_the_way() -> None:
    p, optimizer = trained("q8")
    optimizer.param_groups[0]["store"] = "q4"
    before = p.detach().clone()
    with pytest.raises(ValueError, match="`store` was changed"):
        optimizer.step()
    assert torch.equal(p, before)
    with pytest.raises(RuntimeError, match="does not support `differentiable`"):
        optdsl.load("adamw")([torch.nn.Parameter(torch.ones(3))], store="q8", differentiable=True)


def test_formats_of_a_spec_and_from_outside(tmp_path: Path) -> None:
    """`stored` in a spec, `store` of load, and both overruled by the constructor; what explain says of them."""
    (tmp_path / "kept.opt").write_text(KEEPS.replace("m = 0\n", "m = 0 as exp stored q8\n"))
    p = torch.nn.Parameter(torch.ones(64, 65))
    for options, load, wanted in (
        ({}, {}, (torch.uint8, torch.float32)),
        ({}, {"store": {"v": "bf16"}}, (torch.uint8, torch.bfloat16)),
        ({"store": {"exp": "f32"}}, {"store": "bf16"}, (torch.float32, torch.bfloat16)),
    ):
        optimizer = optdsl.load(tmp_path / "kept.opt", **load)([p], **options)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert (optimizer.state[p]["exp"].dtype, optimizer.state[p]["v"].dtype) == wanted
    program, _ = driver.program_of(driver.locate("adamw"), ["clip_by_global_norm"], "q8")
    found = explain(program, driver.simplify(program), Setting())
    assert found.state_bytes == 2 * (1 + 4 / 256)
    assert found.usual.account.moved == 4 + 8 + 4 + 4 * (1 + 4 / 256)  # g twice, p both ways, codes both ways


@pytest.mark.parametrize("path", ["loop", "foreach", pytest.param("kernels", marks=needs_compiler)])
@pytest.mark.parametrize("form", sorted(SPLITS))
def test_parameters_that_others_write_to(form: str, path: str) -> None:
    """Pruned, clamped or loaded between steps: what is left beside the old parameter does no harm to the new one."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(1000).bfloat16())
    optimizer = optdsl.load("sgd")([p], lr=0.1, store={"p": form}, **PATHS[path])
    p.grad = torch.randn(1000).bfloat16()
    optimizer.step()
    written = torch.randn(1000).bfloat16() * (torch.arange(1000) % 2)
    written[:3] = torch.tensor([-0.0, 3.3e38, -3.3e38])
    with torch.no_grad():
        p.copy_(written)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    # at most the half of a last place that may be beside it
    off = (p.detach().double() - written.double()).abs()
    assert bool((off <= written.double().abs() * 2.0**-7).all()), off.max()


def test_what_is_beside_a_parameter_in_a_checkpoint() -> None:
    """It is dropped where parameters are not kept so, and refused if it does not fit."""

    def trained(store: Any, p: torch.Tensor) -> Any:
        optimizer = optdsl.load("sgd")([torch.nn.Parameter(p)], lr=1.0, store=store)
        return optimizer

    p = torch.full((4,), 1000.0, dtype=torch.bfloat16)
    first = trained({"p": "bf16+kahan"}, p)
    (q,) = first.param_groups[0]["params"]
    q.grad = torch.full_like(q, 1.9)
    first.step()
    saved = first.state_dict()
    plain = trained(None, p.clone())
    plain.load_state_dict(saved)
    assert LOW not in plain.state[plain.param_groups[0]["params"][0]]
    for wrong in (torch.zeros(()), torch.zeros(3, dtype=torch.int16), torch.zeros((), dtype=torch.int16), 5):
        broken = {**saved, "state": {0: {**saved["state"][0], LOW: wrong}}}
        other = trained({"p": "bf16+16"}, p.clone())
        with pytest.raises(ValueError, match="'p_low' of the loaded state dict is"):
            other.load_state_dict(broken)


def test_codes_that_do_not_fit_are_refused() -> None:
    p = torch.nn.Parameter(torch.randn(70, 70))
    optimizer = optdsl.load("adamw")([p], store="q8")
    p.grad = torch.randn(70, 70)
    optimizer.step()
    saved = optimizer.state_dict()
    entry = saved["state"][0]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"exp_avg_absmax": None}, "is in codes, but has no 'exp_avg_absmax'"),
        ({"exp_avg": entry["exp_avg"].long()}, "has codes of torch.int64"),
        ({"exp_avg": torch.ones(1), "exp_avg_absmax": None}, "has shape"),
        ({"exp_avg": torch.ones(70), "exp_avg_absmax": None}, "has shape"),
    ]
    for changed, said in cases:
        new = {key: x for key, x in {**entry, **changed}.items() if x is not None}
        other = optdsl.load("adamw")([torch.nn.Parameter(torch.randn(70, 70))], store="q8")
        with pytest.raises(ValueError, match=said):
            other.load_state_dict({**saved, "state": {0: new}})


def test_formats_changed_in_place_are_noticed() -> None:
    p = torch.nn.Parameter(torch.randn(70, 70))
    optimizer = optdsl.load("adamw")([p], store={"exp_avg": "q8"})
    p.grad = torch.randn(70, 70)
    optimizer.step()
    optimizer.param_groups[0]["store"]["exp_avg"] = "q4"
    with pytest.raises(ValueError, match="`store` was changed"):
        optimizer.step()
