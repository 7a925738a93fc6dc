"""`optdsl explain SPEC`: what is told, as text and as JSON, and what is said to bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from optdsl import driver
from optdsl.analysis import equations, explain, setting, text
from optdsl.analysis.account import account, widths
from optdsl.analysis.phases import Planner
from optdsl.analysis.setting import Setting
from optdsl.check import check_path, check_text
from optdsl.cli import main
from optdsl.ir.plan import KINDS
from optdsl.runtime.states import facts_of, state_dtype
from tests.passes.test_schedule import TABLE
from tests.support import BAD, PICKED, PLAIN, ROOT, TRANSFORM

ADAMW = """\
AdamW: Adam with decoupled weight decay, optionally AMSGrad. As torch.optim.AdamW.

Step
    p ← p (1 − η λ)
    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    if amsgrad:
        v_max ← max(v_max, v)
        root ← √(v_max)
    else:
        root ← √v
    p ← p − η / (1 − β₁ᵗ) · m / (root / √(1 − β₂ᵗ) + ε)

States: 8 bytes of state per parameter
    name  key         one per    dtype  bytes per parameter
    m     exp_avg     parameter  f32                      4
    v     exp_avg_sq  parameter  f32                      4

Plan for f32, shape 1024×1024
    with lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.01, amsgrad=false
    so that not amsgrad

    sweep  reads    bytes  writes  bytes
        1  p g m v     16  p m v      12

    bytes per parameter  28: 16 read, 12 written
    least possible       28: 16 read, 12 written
    launches             1
    operations           14: 4 add, 8 mul, 1 div, 1 sqrt
    per byte             0.5 operations
    vectorised           all by instructions
    time                 give --bandwidth 4.3TB/s, or --measure to measure this machine

Sharded: a step communicates nothing
"""
LION = """\
Plan for bf16, shape 1024×1024
    with lr=0.0001, beta1=0.9, beta2=0.99, weight_decay=0

    sweep  reads  bytes  writes  bytes
        1  p g m      6  p m         4

    bytes per parameter  10: 6 read, 4 written
    least possible       10: 6 read, 4 written
    launches             1
    operations           10: 3 add, 6 mul, 1 compare
    per byte             1 operations
    vectorised           all by instructions
    time                 2.33 ms for 10⁹ parameters at 4.3 TB/s

Sharded: a step communicates nothing
"""
LAMB = """\
    so that max_grad_norm ≠ ∞, bias_correction, λ ≠ 0 or always_adapt, not trust_clip

    sweep  reads    bytes  writes  bytes
        1  g            4  -           0
           all tensors meet: Σ_all(g²)
        2  p g m v     16  m v         8
           the tensor is finished: Σ(p²), Σ(u²)
        3  p m v       12  p           4

    bytes per parameter  44: 32 read, 12 written (1.57 times the least)
    least possible       28: 16 read, 12 written
    with the cache       32, if a tensor stays in the cache from sweep to sweep
    launches             2
    operations           31: 10 add, 16 mul, 3 div, 2 sqrt
    per byte             0.705 operations
    vectorised           all by instructions
    time                 10.2 ms for 10⁹ parameters at 4.3 TB/s; 7.44 ms with the cache

Sharded by rows: 2 messages in a step, all tensors in one
    collective        bytes for 1024×1024  of
    all_reduce (sum)                    8  Σ_all(g²)
    all_reduce (sum)                    8  Σ(p²), Σ(u²)
"""
SGD = """\
States: 4 bytes of state per parameter
    name  key              one per    dtype  bytes per parameter
    buf   momentum_buffer  parameter  f32                      4

Plan for f32, shape 1024×1024
    with lr=0.001, momentum=0.9, dampening=0, weight_decay=0, nesterov=false
    so that momentum ≠ 0, not nesterov
    in step 2 on: t ≠ 1

    sweep  reads    bytes  writes  bytes
        1  p g buf     12  p buf       8

    bytes per parameter  20: 12 read, 8 written
    least possible       20: 12 read, 8 written
    launches             1
    operations           7: 3 add, 4 mul
    per byte             0.35 operations
    vectorised           all by instructions
    time                 give --bandwidth 4.3TB/s, or --measure to measure this machine

Other plans while training
    step 1, t = 1: 16 bytes, reads p g, writes p buf

Sharded: a step communicates nothing
"""

EVERY = """optimizer Every:
    hyper:
        lr = 1e-3 in [0, inf)
        k = 10 in [1, inf)
        mode = "a" in {"a", "b", "inf"}
    state:
        m = 0
        n [host] = 0
        c [host] = 1
        r [rows] = 0
        q [group] = 0
    step:
        n = n + 1
        c = 0.5 * c
        q = q + 1
        r = r + mean(g, over=rows)
        if mod(t, k) == 0:
            m = g
        if c < 0.001:
            p = p - lr * m
        elif mode == "b":
            p = p - q * tanh(mod(m, 2)) * sin(g) * sin(p)
        else:
            p = p - lr * g * r
"""
MATRIX = """optimizer Matrix:
    step:
        x = (g @ g') @ g
        x = x / norm(x, over=all)
        p = p - 0.1 * (x @ x') @ x
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("every", EVERY),
        ("matrix", MATRIX),
        ("plain", PLAIN),
        ("bad", BAD),
        ("halve", TRANSFORM),
    ):
        (tmp_path / f"{name}.opt").write_text(content)
    return tmp_path


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> str:
        assert main(["explain", *words]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        return said.out

    return run


def found(name: str, **changes: Any) -> explain.Explanation:
    program = check_path(driver.locate(name)).require()
    return explain.explain(program, driver.simplify(program), Setting(**changes))


# ---- text -------------------------------------------------------------------------------------------------


def test_adamw(told: Any) -> None:
    assert told("adamw") == ADAMW


def test_lion(told: Any) -> None:
    said = told("lion", "--dtype", "bf16", "--bandwidth", "4.3TB/s")
    assert said[said.index("Plan for") :] == LION


def test_lamb(told: Any) -> None:
    said = told("lamb", "--bandwidth", "4.3 TB/s")
    assert said[said.index("    so that") :] == LAMB


def test_sgd_with_momentum(told: Any) -> None:
    said = told("sgd", "--set", "momentum=0.9")
    assert said[said.index("States:") :] == SGD


def test_settings_change_the_plan(told: Any) -> None:
    assert "\n    bytes per parameter  36: 20 read, 16 written\n" in told("adamw", "--set", "amsgrad=true")
    said = told("lamb", "--set", "max_grad_norm=inf")
    assert "max_grad_norm = ∞" in said
    assert "\n    bytes per parameter  40: 28 read, 12 written (1.43 times the least)\n" in said
    said = told("adagradnorm")
    assert "goes through each row 2 times, from the cache but once" in said
    assert "    s_row  sum_rows  row      f32                0.00391" in said
    assert "\n        1  p g s     12  p s         8\n" in told("adagradnorm", "--shape", "1000")
    assert "least possible       56" in told("adamw", "--dtype", "f64")
    assert "the gradient may be overwritten" in told("lamb", "--overwrite-grad")
    assert "--overwrite-grad does nothing for f16" in told("lamb", "--overwrite-grad", "--dtype", "f16")


def test_plans_while_training(told: Any) -> None:
    said = told("radam")
    assert "    in step 6 on: ρ > 5\n" in said
    assert "    steps 1 to 5, not (ρ > 5): 28 bytes, reads p g m v, writes p m v\n" in said
    said = told("asgd")
    assert "    in steps 1 to 1000002: μ = 1\n" in said
    assert "    step 1000003 on, μ ≠ 1: 20 bytes, reads p g ax, writes p ax\n" in said


def test_conditions_that_come_and_go(here: Path, told: Any) -> None:
    said = told("every.opt", "--set", "mode=b", "--shape", "64,32")
    assert "    in steps 11 to 19, 21 to 29, 31 to 39, 41 to 49, ... (891 of the first 1000): " in said
    assert "    step 10, mod(t, k) = 0 and c < 0.001: 16 bytes" in said or "steps 10, 20, 30, 40, ..." in said
    assert "(as far as step 1000)" in said
    rows = re.findall(r"^    (\S+) +\S+ +(.*?)  +(f\d\d) +(\S+)$", said, re.M)
    assert rows == [
        ("m", "parameter", "f32", "4"),
        ("n", "tensor (on the host)", "f64", "0.00391"),
        ("c", "tensor (on the host)", "f64", "0.00391"),
        ("r", "row", "f32", "0.125"),
        ("q", "group", "f32", "0"),
    ]
    numbers = json.loads(told("every.opt", "--set", "mode=b", "--json"))
    first = numbers["plans"][0]
    assert first["steps"][0] == [1, 9]
    assert (first["library"], first["scalar"]) == ({"sin": 2, "tanh": 1}, {"mod": 1})
    assert not first["steps_known_beyond_1000"]
    assert sum(plan["of_first_1000_steps"] for plan in numbers["plans"]) == 1000


def test_functions_that_are_not_instructions(told: Any) -> None:
    line = "    vectorised           exp by functions of the C library (libmvec), all else by instructions\n"
    assert line in told("diffgrad")


def test_a_spec_without_plan(here: Path, told: Any) -> None:
    why = "tensors meet between its matrix products"
    said = told("matrix.opt")
    assert f"\nStates: none\n\nThere is no plan: {why}.\n\nSharded by rows: " in said
    assert json.loads(told("matrix.opt", "--json"))["no_plan"] == why
    assert f"There is no plan: {why}." in told("matrix.opt", "--markdown")


def test_states_with_a_matrix_for_each_axis(told: Any) -> None:
    for shape, entries in (("3,4,2", 9 + 16 + 4), ("7", 49), ("()", 0), ("1024,1024", 2 * 1024**2)):
        states = json.loads(told("shampoo", "--json", "--shape", shape))["states"]
        assert [s["entries"] for s in states if s["level"] == "axes"] == [entries, entries], shape
    lines = [line.split() for line in told("shampoo", "--shape", "3,4,2").splitlines()]
    assert ["s", "statistics", "axes", "f32", "4.83"] in lines


def test_too_many_branches(here: Path, told: Any) -> None:
    lines = [line for k in range(9) for line in (f"        if f{k}:", f"            p = p * {k + 2}")]
    flags = "\n".join(f"        f{k} = false" for k in range(9))
    (here / "many.opt").write_text(
        "optimizer Many:\n    hyper:\n" + flags + "\n    step:\n" + "\n".join(lines)
    )
    assert "There is no plan: its options and branches multiply to too many kernels." in told("many.opt")


def test_latex_and_markdown(told: Any) -> None:
    program = check_path(driver.locate("lamb")).require()
    assert told("lamb", "--latex") == equations.latex(program)
    page = told("lamb", "--markdown", "--bandwidth", "1TB/s")
    assert page.startswith(equations.markdown(program))
    cost = page.removeprefix(equations.markdown(program)).splitlines()
    assert cost[1] == "## Cost"
    assert "| 2 | `p` `g` `m` `v` | 16 | `m` `v` | 8 | the tensor is finished: Σ(p²), Σ(u²) |" in cost
    assert "| time | 44.0 ms for 10⁹ parameters at 1 TB/s; 32.0 ms with the cache |" in cost
    page = told("sgd", "--markdown", "--set", "momentum=0.9")
    assert "### Step 1: t = 1\n" in page
    assert "### Step 2 on: t ≠ 1\n" in page
    for line in page.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_measured_on_this_machine(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from optdsl.analysis.bench import machine

    asked = []
    monkeypatch.setattr(machine, "bandwidth", lambda: asked.append(1) or {machine.ONE_ARRAY: 10e9})
    said = told("adamw", "--measure")
    assert "time                 2.80 s for 10⁹ parameters at 10 GB/s, measured on this machine\n" in said
    assert json.loads(told("sgd", "--json", "--measure"))["bandwidth"] == {
        "bytes_per_s": 10e9,
        "source": "measured",
    }
    assert asked == [1, 1]


def test_nothing_steers_the_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = EVERY.replace("optimizer Every:", 'optimizer Every:\n    """\x1b[31mred\u202e"""').replace(
        '{"a", "b", "inf"}', '{"a", "b\x1b[2J"}'
    )
    (here / "odd.opt").write_text(spec.replace('mode == "b"', 'mode != "a"'))
    for words in ([], ["--markdown"], ["--set", "mode=b\x1b[2J"], ["--latex"]):
        assert main(["explain", "odd.opt", *words]) == 0
        assert all(ch.isprintable() or ch == "\n" for ch in capsys.readouterr().out)


# ---- every shipped spec -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICKED)
def test_every_shipped_spec(name: str, told: Any) -> None:
    for words in (
        [], ["--dtype", "bf16"], ["--dtype", "f64", "--shape", "7"], ["--overwrite-grad", "--bandwidth", "1GB/s"]
    ):  # fmt: skip
        said = told(name, *words)
        assert "\n    bytes per parameter  " in said
        assert told(name, *words, "--markdown").count("\n## ") >= 3
    assert_schema(json.loads(told(name, "--json", "--bandwidth", "900GB/s"), parse_constant=pytest.fail))


@pytest.mark.parametrize(("name", "options", "shape", "step", "expected"), TABLE)
def test_plans_are_those_that_a_step_follows(
    name: str, options: dict[str, Any], shape: tuple[int, ...], step: int, expected: tuple[int, int, int]
) -> None:
    for plan in found(name, options=options, shape=shape).plans:
        if any(first <= step and (last is None or step <= last) for first, last in plan.phase.ranges):
            break
    else:
        raise AssertionError("no plan for this step")
    assert (len(plan.account.sweeps), plan.account.moved, plan.account.launches) == expected


@pytest.mark.parametrize(("name", "options", "shape", "step", "expected"), TABLE)
def test_states_are_those_that_the_optimizer_keeps(
    name: str, options: dict[str, Any], shape: tuple[int, ...], step: int, expected: tuple[int, int, int]
) -> None:
    cls = driver.load(name)
    p = torch.zeros(shape, dtype=torch.bfloat16)
    made = cls([torch.nn.Parameter(p)], **options)  # type: ignore[call-arg]
    live = set(cls._live(made.param_groups[0], facts_of(p.shape)))
    told = found(name, options=options, shape=shape, dtype="bf16")
    assert {state.key for state in told.states} == live
    for state in told.states:
        assert state.width == state_dtype(cls._specs[state.key], p).itemsize


# ---- JSON -------------------------------------------------------------------------------------------------

TOTALS = ("read", "written", "total", "least_read", "least_written", "least")
NUMBERS = dict.fromkeys((*TOTALS, "cached_read", "cached_written", "cached", "touched"), int)
OPERATIONS: dict[str, Any] = dict.fromkeys(KINDS, int)
STREAM = [{"array": str, "bytes": int}]
SWEEP = {
    "reads": STREAM, "writes": STREAM, "bytes_read": int, "bytes_written": int, "bytes_loaded": int,
    "bytes_stored": int, "loops": int, "barrier": (str, type(None)), "torch_computes": [str],
    "reductions": [{"kind": str, "over": str, "text": str}], "operations": OPERATIONS, "library": {...: int},
    "scalar": {...: int},
}  # fmt: skip
PLAN = {
    "usual": bool, "condition": str, "when": str, "steps": [list], "more_steps": bool,
    "steps_known_beyond_1000": bool, "of_first_1000_steps": int, "sweeps": [SWEEP], "launches": int,
    "bytes": NUMBERS, "operations": {**OPERATIONS, "total": int}, "operations_per_byte": float,
    "library": {...: int}, "scalar": {...: int},
    "seconds_per_1e9_parameters": {"total": float, "cached": float, "least": float},
}  # fmt: skip
SCHEMA = {
    "schema": int, "name": str, "summary": str, "cite": str, "source": str,
    "equations": {"unicode": [str], "latex": str},
    "setting": {
        "options": {...: (float, int, bool, str, list)}, "changed": [str], "shape": [int], "dtype": str,
        "computed_in": str, "overwrite_grad": bool, "mode": str, "conditions": [str],
    },
    "states": [{
        "name": str, "key": str, "level": str, "dtype": str, "bytes_per_entry": int, "entries": int,
        "bytes_per_parameter": float,
    }],
    "state_bytes_per_parameter": (float, int), "bandwidth": {"bytes_per_s": float, "source": str},
    "messages": [{"kind": str, "condition": str, "of": [str], "bytes_per_tensor": int}],
    "no_plan": type(None), "plans": [PLAN],
}  # fmt: skip


def assert_schema(value: Any, schema: Any = SCHEMA, at: str = "") -> None:
    """Has exactly these keys, with values of these types."""
    if isinstance(schema, dict) and ... in schema:
        for key, each in value.items():
            assert_schema(each, schema[...], f"{at}.{key}")
    elif isinstance(schema, dict):
        assert list(value) == list(schema), at
        for key, each in value.items():
            assert_schema(each, schema[key], f"{at}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), at
        for each in value:
            assert_schema(each, schema[0], f"{at}[]")
    else:
        assert isinstance(value, schema), (at, value)


def test_numbers_of_the_json(told: Any) -> None:
    numbers = json.loads(told("lamb", "--json", "--set", "trust_clip=true", "--bandwidth", "1e12B/s"))
    assert numbers["schema"] == explain.SCHEMA == 1
    assert numbers["source"].endswith("specs/lamb.opt")
    assert numbers["setting"]["options"]["max_trust_norm"] == "inf"
    assert numbers["setting"]["changed"] == ["trust_clip"]
    assert numbers["setting"]["conditions"][-1] == "trust_clip"
    assert numbers["state_bytes_per_parameter"] == 8
    (plan,) = numbers["plans"]
    assert (plan["usual"], plan["when"], plan["steps"]) == (True, "every step", [[1, None]])
    assert plan["bytes"] == {
        "read": 32, "written": 12, "total": 44, "least_read": 16, "least_written": 12, "least": 28,
        "cached_read": 20, "cached_written": 12, "cached": 32, "touched": 44,
    }  # fmt: skip
    assert plan["seconds_per_1e9_parameters"] == {"total": 0.044, "cached": 0.032, "least": 0.028}
    assert [sweep["barrier"] for sweep in plan["sweeps"]] == ["joint", "tensor", None]
    assert plan["sweeps"][0]["reductions"] == [{"kind": "sum", "over": "all", "text": "Σ_all(g²)"}]
    assert plan["sweeps"][2]["reads"] == [{"array": name, "bytes": 4} for name in ("p", "m", "v")]
    assert plan["operations"]["total"] == sum(plan["operations"][kind] for kind in KINDS)
    assert json.loads(told("lamb", "--json"))["plans"][0]["seconds_per_1e9_parameters"] is None


def test_sweeps_add_up(told: Any) -> None:
    for name in PICKED:
        for plan in json.loads(told(name, "--json", "--dtype", "f16"))["plans"]:
            for side, total in (("reads", "read"), ("writes", "written")):
                each = [sum(array["bytes"] for array in sweep[side]) for sweep in plan["sweeps"]]
                assert each == [sweep[f"bytes_{total}"] for sweep in plan["sweeps"]]
                assert sum(each) == plan["bytes"][total]
            numbers = plan["bytes"]
            assert numbers["least"] <= numbers["cached"] <= numbers["total"] <= numbers["touched"]


def test_every_key_is_documented(told: Any) -> None:
    page = (ROOT / "docs" / "explain.md").read_text()

    def keys(schema: Any) -> Iterator[str]:
        for inner in (
            schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
        ):
            yield from keys(inner)
        if isinstance(schema, dict):
            yield from (key for key in schema if key is not ...)

    assert [key for key in keys(SCHEMA) if f"`{key}`" not in page] == []


# ---- messages of sharded models ------------------------------------------------------------------------------


def test_messages(told: Any) -> None:
    """Counted by hand: what is per row is here, what is per column goes over, a maximum takes two numbers."""
    sm3 = found("sm3", shape=(6, 4)).messages
    assert [(m.kind, m.condition, m.bytes) for m in sm3] == [("max", "", 2 * 4 * 4)]
    adafactor = found("adafactor", shape=(6, 4), dtype="f64").messages
    assert [(m.of, m.bytes) for m in adafactor] == [
        (("mean_cols(g²)",), 4 * 8),
        (("mean(r)",), 8),
        (("mean(p²)",), 8),
        (("mean(u²)",), 8),
    ]
    dog = found("dog").messages
    assert [m.condition for m in dog] == ["t = 1 and init_eta = ∞", "not (t = 1 and init_eta = ∞)", ""]
    assert [(m.kind, m.of, m.bytes) for m in found("lion_k", shape=(6, 4)).messages] == [
        ("gather", ("p",), 96),
        ("gather", ("g",), 96),
        ("gather", ("m",), 96),
    ]
    said = told("wgsef_sgd", "--markdown")
    assert "Sharded by rows: 33 messages in a step, all tensors in one." in said
    assert "(30 times) |" in said


# ---- accounts ---------------------------------------------------------------------------------------------


def test_what_stays_in_the_cache() -> None:
    numbers = found("lamb", overwrite_grad=True).usual.account
    assert (numbers.read, numbers.written, numbers.cached_read, numbers.cached_written) == (28, 16, 20, 16)
    assert found("orthograd").usual.account.cached == 12  # from the first sweep on
    # written before it is read: never read from memory
    text = PLAIN.replace(
        "    step:\n", "    state:\n        m = 0\n\n    step:\n        m = exp(g)\n"
    ).replace("lr * g", "m / norm(m)")
    program = driver.simplify(check_text(text).require())
    (phase,) = Planner(program).phases(Setting()).phases
    assert [(s.reads, s.writes) for s in phase.account.sweeps] == [(("g",), ("m",)), (("p", "m"), ("p",))]
    assert (phase.account.moved, phase.account.cached, phase.account.least) == (20, 16, 16)


def test_widths_are_those_of_storage() -> None:
    program = check_text(EVERY).require()
    assert widths(program, "bf16") == {"p": 2, "g": 2, "m": 2, "r": 4, "q": 4}
    assert widths(program, "f64") == {"p": 8, "g": 8, "m": 8, "r": 8, "q": 8}
    (plan, *_) = found("adagradnorm", shape=(7, 1), dtype="bf16").plans
    assert plan.account.moved == 2 + 2 + 2 + 4 + 4  # s_row is f32
    exact = plan.phase.plan
    assert account(exact, {"p": 1, "g": 1, "s_row": 10}).moved == 23


# ---- input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("4.3TB/s", 4.3e12),
        ("4.3 TB/s", 4.3e12),
        ("900GB/s", 900e9),
        ("900 GB", 900e9),
        ("38.4GBps", 38.4e9),
        ("12 GiB/s", 12 * 2.0**30),
        ("1.5TiB/s", 1.5 * 2.0**40),
        ("2e12 B/s", 2e12),
        (".5kB/s", 500.0),
        (" 1 KB ", 1000.0),
        ("7MiB", 7 * 2.0**20),
        ("1e-3PB/s", 1e12),
    ],
)
def test_bandwidths(said: str, meant: float) -> None:
    assert setting.bandwidth_of(said) == pytest.approx(meant, rel=1e-15)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("4.3", "a number and a unit"),
        ("4.3Tb/s", "a small b stands for bits"),
        ("4.3 XB/s", "the units are B, kB, MB"),
        ("4.3 gb/s", "a small b stands for bits"),
        ("-1GB/s", "a number and a unit"),
        ("0GB/s", "it is above 0"),
        ("1e999GB/s", "it is above 0"),
        ("fast", "as in 4.3TB/s or 900 GB/s"),
        ("", "as in 4.3TB/s"),
        ("1GB/h", "a number and a unit"),
        ("1" * 1000, "1..."),
    ],
)
def test_what_is_no_bandwidth(said: str, reason: str) -> None:
    with pytest.raises(ValueError, match="is not a bandwidth") as error:
        setting.bandwidth_of(said)
    assert reason in str(error.value)
    assert len(str(error.value)) < 200


def test_shapes() -> None:
    for said, meant in (
        ("768,768", (768, 768)),
        ("(3, 4)", (3, 4)),
        ("5", (5,)),
        ("5,", (5,)),
        ("2x3", (2, 3)),
        ("()", ()),
    ):
        assert setting.shape_of(said) == meant
    for said in ("", "a", "3,,4", "-1", "1.5", "²", "3;4"):
        with pytest.raises(ValueError, match="is not a shape, as in 768,768"):
            setting.shape_of(said)
    for said in ("0", "3,0", "9999999999,9999999999", ",".join("1" * 70)):
        with pytest.raises(ValueError, match="has no parameters or too many"):
            setting.shape_of(said)


def test_options() -> None:
    (adamw, lamb) = (check_path(driver.locate(name)).require() for name in ("adamw", "lamb"))
    values = setting.hyper_values(adamw, setting.options_of(["betas=0.5,0.75", "lr=1", "amsgrad = true"]))
    assert values == {
        "lr": 1.0, "beta1": 0.5, "beta2": 0.75, "eps": 1e-8, "weight_decay": 0.01, "amsgrad": True,
    }  # fmt: skip
    assert setting.hyper_values(adamw, {"beta2": 0.5})["beta2"] == 0.5
    assert setting.hyper_values(lamb, setting.options_of(["max_grad_norm=inf"]))["max_grad_norm"] == float(
        "inf"
    )
    assert setting.hyper_values(lamb, {"max_grad_norm": None})["max_grad_norm"] == float("inf")
    every = check_text(EVERY).require()
    assert setting.hyper_values(every, setting.options_of(["mode=inf"]))["mode"] == "inf"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "there is no shipped spec `nope`; `optdsl list` shows the shipped ones"),
        (["adamv"], "there is no shipped spec `adamv`; did you mean `adam`?"),
        (["no.opt"], "there is no spec at `no.opt`; of codes of messages, `optdsl explain all` lists them"),
        (["E0399"], "there is no code `E0399`; did you mean `E030"),
        (["E0301", "--json"], "`--json` is for specs; `E0301` is a code"),
        (["all", "--set", "lr=1"], "`--set` is for specs; `all` is no spec"),
        (["adamw", "--set", "lr"], "`lr` is not NAME=VALUE, as in momentum=0.9"),
        (["adamw", "--set", "amsgard=true"], "AdamW has no option `amsgard`; did you mean `amsgrad`?"),
        (
            ["adamw", "--set", "q=1"],
            "AdamW has no option `q`; there are lr, betas, eps, weight_decay, amsgrad",
        ),
        (["adamw", "--set", "lr=-1"], "lr=-1: it must be in [0, inf)"),
        (["adamw", "--set", "lr=inf"], "lr=inf: it must be in [0, inf)"),
        (["adamw", "--set", "lr=1e999"], "lr=inf: it must be in [0, inf)"),
        (["adamw", "--set", "lr=fast"], "lr=fast: it must be a number"),
        (["adamw", "--set", "lr=true"], "lr=True: it must be a number"),
        (["adamw", "--set", "lr=1" + "0" * 400], "lr=1"),
        (["adamw", "--set", "lr=__import__('os')"], "lr=__import__('os'): it must be a number"),
        (["adamw", "--set", "lr=" + "(" * 500], "lr=((("),
        (["adamw", "--set", "amsgrad=1"], "amsgrad=1: it must be true or false"),
        (["adamw", "--set", "betas=0.9"], "`betas` is 2 numbers, as in betas=0.9,0.999"),
        (["adamw", "--set", "betas=0.9,1.5"], "beta2=1.5: it must be in [0, 1)"),
        (["every.opt", "--set", "k=1.5"], "k=1.5: it must be a whole number"),
        (["every.opt", "--set", "mode=c"], "mode=c: it must be one of a, b, inf"),
        (["adamw", "--shape", "3;4"], "`3;4` is not a shape, as in 768,768"),
        (
            ["adamw", "--bandwidth", "4.3"],
            "`4.3` is not a bandwidth, as in 4.3TB/s or 900 GB/s: a number and",
        ),
    ],
)
def test_bad_input(words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"optdsl: {message}")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["adamw", "--dtype", "f8"],
        ["adamw", "--json", "--latex"],
        ["adamw", "--bandwidth", "1GB/s", "--measure"],
        ["adamw", "lion"],
    ],
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *words]) == 2
    assert capsys.readouterr().err.startswith("usage: optdsl")


def test_specs_with_mistakes_and_with_warnings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, code in (("bad.opt", "E0301"), ("halve.opt", "E0109")):
        assert main(["explain", name]) == 1
        said = capsys.readouterr()
        assert (said.out, f"error[{code}]" in said.err) == ("", True)
    (here / "odd.opt").write_text(PLAIN.replace("    step:", "        mu = 0.5 in [0, 1)\n\n    step:"))
    assert main(["explain", "odd.opt"]) == 0
    said = capsys.readouterr()
    assert "warning[W0701]" in said.err
    assert said.out.startswith("Plain: Plain descent.\n")


def test_explaining_loads_no_torch(here: Path) -> None:
    from tests.support import good, python

    script = (
        "import sys; from optdsl.cli import main; main(['explain', 'lamb']); print('torch' in sys.modules)"
    )
    assert good(python("-c", script, cwd=here)).endswith("\nFalse\n")


def test_terminal_and_page_of_one_explanation() -> None:
    one = found("adamw")
    assert text.terminal(one) == ADAMW
    assert text.markdown(one).startswith("# AdamW")
