"""The interpreter against hand-written loops and recorded runs of the reference implementations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from optdsl.check.program import check_text
from optdsl.core import types as ty
from optdsl.ir.expr import call, const, var
from optdsl.ir.interpret import Group, Interpreter, Uncomputed, hyper_values, reduce_jointly
from optdsl.ir.program import Assign, Program

if TYPE_CHECKING:
    from tests.conftest import Reference

SHAPES: list[tuple[int, ...]] = [(4,), (3, 5), (2, 3, 2), (), (0,), (0, 3), (1, 1)]

SGD = """
optimizer SGD:
    hyper:
        lr = 1e-3
        momentum = 0.0
        dampening = 0.0
        weight_decay = 0.0
        nesterov = false
    state:
        buf = g as momentum_buffer
    step:
        g = g + weight_decay * p
        if momentum != 0:
            if not first_step:
                buf = momentum * buf + (1 - dampening) * g
            else:
                buf = g
            g = g + momentum * buf if nesterov else buf
        p = p - lr * g
"""
ADAMW = """
optimizer AdamW:
    hyper:
        lr = 1e-3
        betas = (beta1: 0.9, beta2: 0.999)
        eps = 1e-8
        weight_decay = 0.01
        amsgrad = false
    state:
        m = 0 as exp_avg
        v = 0 as exp_avg_sq
        v_max = 0 as max_exp_avg_sq
    step:
        p = p * (1 - lr * weight_decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        if amsgrad:
            v_max = max(v_max, v)
            v_hat = v_max / (1 - beta2^t)
        else:
            v_hat = v / (1 - beta2^t)
        p = p - lr / (1 - beta1^t) * m / (sqrt(v_hat) + eps)
"""
LION = """
optimizer Lion:
    hyper:
        lr = 1e-4
        betas = (beta1: 0.9, beta2: 0.99)
        weight_decay = 0.0
    state:
        m = 0 as exp_avg
    step:
        p = p * (1 - lr * weight_decay)
        p = p - lr * sign(lerp(g, m, beta1))
        m = lerp(g, m, beta2)
"""
LAMB = """
optimizer Lamb:
    hyper:
        lr = 1e-3
        bias_correction = true
        betas = (beta1: 0.9, beta2: 0.999)
        eps = 1e-6
        weight_decay = 0.01
        max_grad_norm = 1.0
        trust_clip = false
    state:
        m = 0
        v = 0
    step:
        g = g / max(1, norm(g, over=all) / max_grad_norm)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        if bias_correction:
            u = m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + eps)
        else:
            u = m / (sqrt(v) + eps)
        u = u + weight_decay * p
        if weight_decay != 0:
            p_norm = norm(p)
            u_norm = norm(u)
            ratio = p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1
            if trust_clip:
                ratio = min(ratio, 1)
            u = ratio * u
        p = p - lr * u
"""
NADAM = """
optimizer NAdam:
    hyper:
        lr = 2e-3
        betas = (beta1: 0.9, beta2: 0.999)
        eps = 1e-8
        weight_decay = 0.0
        momentum_decay = 4e-3
        decoupled_weight_decay = false
    state:
        m = 0 as exp_avg
        v = 0 as exp_avg_sq
        product [host] = 1 as mu_product
    step:
        if decoupled_weight_decay:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        mu = beta1 * (1 - 0.5 * 0.96^(t * momentum_decay))
        mu_next = beta1 * (1 - 0.5 * 0.96^((t + 1) * momentum_decay))
        product = product * mu
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        d = sqrt(v / (1 - beta2^t)) + eps
        p = p - lr * (1 - mu) / (1 - product) * g / d - lr * mu_next / (1 - product * mu_next) * m / d
"""
ADAGRADNORM = """
optimizer AdaGradNorm:
    hyper:
        lr = 1.0
        b0 = 0.1
    state:
        b2 [group] = b0^2
    step:
        b2 = b2 + sum(g^2, over=all)
        p = p - lr * g / sqrt(b2)
"""
MUON = """
optimizer Muon:
    hyper:
        lr = 1e-3
        weight_decay = 0.1
        momentum = 0.95
        nesterov = true
        ns_steps = 5
        adjust = "original" in {"original", "match_rms_adamw"}
    state:
        m = 0 as momentum_buffer
    step:
        m = lerp(m, g, 1 - momentum)
        u = lerp(g, m, momentum) if nesterov else m
        if adjust == "original":
            k = sqrt(max(1, rows / cols))
        else:
            k = 0.2 * sqrt(max(rows, cols))
        p = (1 - lr * weight_decay) * p - lr * k * newton_schulz(u, ns_steps)
"""


def compiled(text: str) -> Program:
    return check_text(text).require()


def step_of(body: str, state: str = "out = 0", hyper: str = "") -> Program:
    """An optimizer from the lines of its step, its states and its hyperparameters."""
    lines = ["optimizer T:"]
    for name, block in (("hyper", hyper), ("state", state), ("step", body)):
        if block:
            lines += [f"    {name}:", *(f"        {line}" for line in block.strip().split("\n"))]
    return compiled("\n".join(lines) + "\n")


def gradients(rng: np.random.Generator, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    return [rng.normal(size=shape) for shape in shapes]


# ---- recorded runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "optimizer", "setting", "drop", "extra"),
    [
        (SGD, "sgd", "default", (), {}),
        (SGD, "sgd", "momentum_dampening_wd", (), {}),
        (SGD, "sgd", "nesterov_wd", (), {}),
        (ADAMW, "adamw", "default", ("decoupled_weight_decay",), {}),
        (ADAMW, "adamw", "amsgrad_wd", ("decoupled_weight_decay",), {}),
        (LION, "lion", "default", (), {}),
        (LION, "lion", "wd", (), {}),
        (NADAM, "nadam", "default", (), {}),
        (NADAM, "nadam", "l2", (), {}),
        (NADAM, "nadam", "decoupled", (), {}),
        (LAMB, "lamb", "timm_default", (), {}),
        (LAMB, "lamb", "timm_noclip_wd", (), {"max_grad_norm": math.inf}),
        (ADAGRADNORM, "adagradnorm", "ward_global_default", (), {}),
        (ADAGRADNORM, "adagradnorm", "ward_global_b0_1", (), {}),
        (MUON, "muon_torch", "default", (), {}),
        (MUON, "muon_torch", "match_rms_no_nesterov", (), {"adjust": "match_rms_adamw"}),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_recorded_runs(
    text: str,
    optimizer: str,
    setting: str,
    drop: tuple[str, ...],
    extra: dict[str, Any],
    dtype: str,
    reference: Reference,
) -> None:
    entry = reference.entry(optimizer, setting, dtype)
    init, grads = reference.problem(entry)
    program = compiled(text)
    known = {hyper.argument for hyper in program.hypers}
    hypers = {name: value for name, value in entry["hyperparameters"].items() if name in known} | extra
    machine = Interpreter(program, [Group(init, hypers)], np.dtype(dtype))
    wanted = reference.trajectory(entry)
    for step, grad in enumerate(grads, 1):
        machine.step([grad])
        for got, want in zip(machine.params[0], wanted[step], strict=True):
            assert got.shape == want.shape
            error = np.max(np.abs(got - want) / np.maximum(1, np.abs(want)), initial=0)
            assert error <= entry["tolerance"], (step, error)
    assert machine.steps == [[len(grads)] * len(init)]


# ---- loops by hand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_adam_is_this_loop(dtype: type, rng: np.random.Generator) -> None:
    """Operation by operation, so bit by bit: host numbers in double, arrays in `dtype`."""
    machine = Interpreter(compiled(ADAMW), [Group(gradients(rng, SHAPES), {"lr": 0.03})], dtype)
    params = [p.astype(dtype) for p in machine.params[0]]
    m, v = ([np.zeros_like(p) for p in params] for _ in range(2))
    for t in range(1, 6):
        grads = [g.astype(dtype) for g in gradients(rng, SHAPES)]
        machine.step([grads])
        for i, g in enumerate(grads):
            params[i] = params[i] * dtype(1 - 0.03 * 0.01)
            m[i] = dtype(0.9) * m[i] + dtype(1 - 0.9) * g
            v[i] = dtype(0.999) * v[i] + dtype(1 - 0.999) * (g * g)
            step = dtype(0.03 / (1 - np.power(0.9, t))) * m[i]
            params[i] = params[i] - step / (np.sqrt(v[i] / dtype(1 - np.power(0.999, t))) + dtype(1e-8))
            assert np.array_equal(machine.params[0][i], params[i])
            state = machine.states[0][i]
            assert np.array_equal(state["exp_avg"], m[i])
            assert np.array_equal(state["exp_avg_sq"], v[i])
            assert state["exp_avg"].shape == g.shape
            assert state["exp_avg"].dtype == dtype


def test_adafactor_statistics_are_this_loop(rng: np.random.Generator) -> None:
    program = step_of(
        """
r = 0.9 * r + 0.1 * mean(g^2, over=rows)
c = 0.9 * c + 0.1 * mean(g^2, over=cols)
v = r * c / mean(r)
n = max(n, norm(g))
u = g / sqrt(v)
p = p - 0.1 * u / max(1, rms(u)) * n
""",
        state="r [rows] = 0\nc [cols] = 0\nn [tensor] = 0",
    )
    p = rng.normal(size=(3, 2, 2))
    machine = Interpreter(program, [Group([p])])
    r, c, n = np.zeros(3), np.zeros(4), 0.0
    for _ in range(4):
        g = rng.normal(size=(3, 2, 2))
        machine.step([[g]])
        x = g.reshape(3, 4)
        r = 0.9 * r + 0.1 * np.mean(x**2, axis=1)
        c = 0.9 * c + 0.1 * np.mean(x**2, axis=0)
        n = max(n, np.linalg.norm(x))
        u = x / np.sqrt(np.outer(r, c) / np.mean(r))
        p = p - (0.1 * u / max(1, np.sqrt(np.mean(u**2))) * n).reshape(p.shape)
        np.testing.assert_allclose(machine.params[0][0], p, rtol=1e-13)
        state = machine.states[0][0]
        np.testing.assert_allclose(state["r"], r[:, None], rtol=1e-13)
        np.testing.assert_allclose(state["c"], c[None, :], rtol=1e-13)
        assert state["n"].shape == ()
        np.testing.assert_allclose(state["n"], n, rtol=1e-13)


def test_matrix_states_are_this_loop(rng: np.random.Generator) -> None:
    program = step_of(
        "L = 0.5 * L + g @ g'\nR = 0.5 * R + g' @ g\np = p - 0.01 * L @ g @ R",
        state="L [rows, rows] = 0\nR [cols, cols] = 1",
    )
    p, left, right = rng.normal(size=(2, 3)), np.zeros((2, 2)), np.ones((3, 3))
    machine = Interpreter(program, [Group([p])])
    for _ in range(3):
        g = rng.normal(size=(2, 3))
        machine.step([[g]])
        left, right = 0.5 * left + g @ g.T, 0.5 * right + g.T @ g
        p = p - 0.01 * left @ g @ right
        np.testing.assert_allclose(machine.states[0][0]["L"], left)
        np.testing.assert_allclose(machine.params[0][0], p)


# ---- time, states, hyperparameters ------------------------------------------------------------------------


def test_a_parameter_without_a_gradient_takes_no_step() -> None:
    program = step_of("out = out + t\np = p - g")
    machine = Interpreter(program, [Group([1.0, 2.0]), Group([[3.0]])])
    machine.step([[1.0, None], [[1.0]]])
    machine.step([[None, None], [[1.0]]])
    machine.step([[1.0, 1.0], [None]])
    assert machine.steps == [[2, 1], [2]]
    assert [float(p) for p in machine.params[0]] == [-1.0, 1.0]
    assert machine.params[1][0].tolist() == [1.0]
    assert float(machine.states[0][0]["out"]) == 3
    assert float(machine.states[0][1]["out"]) == 1
    machine = Interpreter(program, [Group([1.0])])
    machine.step([[None]])
    assert machine.states == [[{}]]


def test_states_begin_at_the_first_gradient() -> None:
    program = step_of(
        "p = p - g\nhosted = hosted + 1\nq = q\nb = b",
        state="q = p as first\nb = 2 * g + lr\nr [rows] = sum(p, over=rows)\nunused = 7\n"
        "hosted [host] = numel * lr",
        hyper="lr = 0.5",
    )
    machine = Interpreter(program, [Group([[1.0, 2.0]])])
    machine.step([[[3.0, 4.0]]])
    machine.step([[[1.0, 1.0]]])
    state = machine.states[0][0]
    assert state["first"].tolist() == [1, 2]
    assert state["b"].tolist() == [6.5, 8.5]
    assert state["r"].tolist() == [[1], [2]]
    assert state["unused"].tolist() == [7, 7]
    assert state["hosted"] == 1 + 2
    assert type(state["hosted"]) is np.float64


def test_assigning_a_state_or_parameter_gives_a_new_value_for_the_lines_below() -> None:
    program = step_of("before = out\nout = out + g\np = before + 10 * out\ng = 0\nout = out + g")
    machine = Interpreter(program, [Group([0.0])])
    machine.step([[1.0]])
    machine.step([[2.0]])
    assert float(machine.params[0][0]) == 1 + 10 * 3


def test_coarse_values_fill_finer_places() -> None:
    program = step_of("out = 3\nr = norm(g)\np = lr", state="out = 0\nr [rows] = 0", hyper="lr = 0.5")
    machine = Interpreter(program, [Group([np.zeros((2, 2))])])
    machine.step([[np.full((2, 2), 1.0)]])
    assert machine.params[0][0].tolist() == [[0.5, 0.5]] * 2
    assert machine.states[0][0]["out"].tolist() == [[3, 3]] * 2
    assert machine.states[0][0]["r"].tolist() == [[2], [2]]


def test_facts() -> None:
    program = step_of(
        "out = t + 10 * ndim + 100 * numel + 1000 * rows + 10000 * cols + 0.5 * (1 if first_step else 0)"
    )
    shapes = [(), (5,), (2, 3), (2, 3, 4), (0, 3), (3, 0)]
    machine = Interpreter(program, [Group([np.zeros(shape) for shape in shapes])])
    machine.step([[np.zeros(shape) for shape in shapes]])
    machine.step([[np.zeros(shape) for shape in shapes]])
    facts = [(0, 1, 1, 1), (1, 5, 5, 1), (2, 6, 2, 3), (3, 24, 2, 12), (2, 0, 0, 3), (2, 0, 3, 0)]
    for state, (ndim, numel, rows, cols) in zip(machine.states[0], facts, strict=True):
        assert (state["out"] == 2 + 10 * ndim + 100 * numel + 1000 * rows + 10000 * cols).all()


def test_hyperparameters_of_groups() -> None:
    program = compiled(ADAMW)
    values = hyper_values(program, {"betas": (0.5, 0.25), "amsgrad": True})
    assert values == {
        "lr": 1e-3, "beta1": 0.5, "beta2": 0.25, "eps": 1e-8, "weight_decay": 0.01, "amsgrad": True,
    }  # fmt: skip
    for wrong in ({"beta1": 0.5}, {"betas": (0.5,)}, {"lrr": 1}):
        with pytest.raises(ValueError, match=r"beta1|betas|lrr"):
            hyper_values(program, wrong)
    machine = Interpreter(
        step_of("p = p - lr * g", hyper="lr = 1.0"), [Group([0.0], {"lr": 2}), Group([0.0])]
    )
    machine.step([[1.0], [1.0]])
    machine.hypers[1]["lr"] = 10.0
    machine.step([[1.0], [1.0]])
    assert [float(group[0]) for group in machine.params] == [-4.0, -11.0]


def test_a_gradient_has_the_shape_of_its_parameter() -> None:
    machine = Interpreter(step_of("p = p - g"), [Group([np.zeros((2, 2))])])
    with pytest.raises(ValueError, match="shape"):
        machine.step([[np.zeros(4)]])


# ---- branches ---------------------------------------------------------------------------------------------


def test_branches_on_the_host() -> None:
    program = step_of(
        """
if mode == "a":
    x = 1
elif t > 2 and big:
    x = 2
else:
    x = 3
every 2:
    out = out + x
every 3 offset 1:
    out = out + 100
repeat n:
    out = 2 * out
p = p - x
""",
        hyper='mode = "b" in {"a", "b"}\nbig = true\nn = 1 in [0, 3]',
    )
    for hypers in ({}, {"mode": "a"}, {"big": False, "n": 0}, {"n": 3}):
        machine = Interpreter(program, [Group([0.0], hypers)])
        p, out = 0.0, 0.0
        for t in range(1, 8):
            machine.step([[0.0]])
            x = 1 if hypers.get("mode") == "a" else 2 if t > 2 and hypers.get("big", True) else 3
            out += x if (t - 1) % 2 == 0 else 0
            out += 100 if (t - 1) % 3 == 1 else 0
            out *= 2 ** hypers.get("n", 1)
            p -= x
            assert float(machine.states[0][0]["out"]) == out
            assert float(machine.params[0][0]) == p


def test_routing_by_shape() -> None:
    program = compiled(
        """
optimizer T:
    step when ndim >= 2:
        p = p - mean(g, over=rows)
    step otherwise:
        p = p - 10 * g
"""
    )
    machine = Interpreter(program, [Group([np.zeros((2, 2)), np.zeros(2)])])
    machine.step([[np.array([[1.0, 3.0], [5.0, 7.0]]), np.array([1.0, 2.0])]])
    assert machine.params[0][0].tolist() == [[-2, -2], [-6, -6]]
    assert machine.params[0][1].tolist() == [-10, -20]


def test_only_the_taken_side_is_evaluated() -> None:
    fact = var("t", ty.Type(ty.Kind.INT, ty.Level.HOST))
    late = call("gt", fact, 1)
    g = var("g", ty.element())
    guarded = Assign("a.1", "a", call("mul", g, 2.0), ((late, True),))
    joined = Assign("p.1", "p", call("select", late, guarded.var, g))
    program = Program("T", "", "", (), (), (guarded, joined), {"p": joined.var})
    machine = Interpreter(program, [Group([0.0])])
    machine.step([[1.0]])
    assert float(machine.params[0][0]) == 1
    machine.step([[1.0]])
    assert float(machine.params[0][0]) == 2
    always = Assign("p.1", "p", call("add", guarded.var, g))
    broken = Program("T", "", "", (), (), (guarded, always), {"p": always.var})
    with pytest.raises(Uncomputed, match=r"a\.1"):
        Interpreter(broken, [Group([0.0])]).step([[1.0]])


def test_a_guard_is_settled_from_the_outside() -> None:
    """The inner condition may use a value that exists only where the outer one holds."""
    fact = var("t", ty.Type(ty.Kind.INT, ty.Level.HOST))
    late = call("gt", fact, 1)
    outer = Assign("k.1", "k", call("mul", fact, 2), ((late, True),))
    inner_condition = call("gt", outer.var, 4)
    inner = Assign("p.1", "p", const(9.0), ((late, True), (inner_condition, True)))
    p = var("p", ty.element())
    join = call("select", late, call("select", inner_condition, inner.var, p), p)
    program = Program("T", "", "", (), (), (outer, inner), {"p": join})
    machine = Interpreter(program, [Group([1.0])])
    for wanted in (1, 1, 9):
        machine.step([[0.0]])
        assert float(machine.params[0][0]) == wanted


# ---- several tensors together -----------------------------------------------------------------------------


def test_the_global_norm_spans_groups_and_the_group_norm_does_not(rng: np.random.Generator) -> None:
    program = step_of("p = p * 0 + norm(g, over=all)\nout = norm(g, over=group)")
    first, second = gradients(rng, [(2, 2), (), (0, 3)]), gradients(rng, [(3,), (2, 1, 2)])
    machine = Interpreter(program, [Group(first), Group(second)])
    machine.step([first, second])
    norms = [math.sqrt(sum(float(np.sum(g**2)) for g in group)) for group in (first, second)]
    for group, norm in enumerate(norms):
        for p, state in zip(machine.params[group], machine.states[group], strict=True):
            np.testing.assert_allclose(p, math.hypot(*norms), rtol=1e-14)
            np.testing.assert_allclose(state["out"], norm, rtol=1e-14)


def test_only_who_takes_part_in_a_step_is_counted() -> None:
    program = step_of("p = p + sum(g, over=all)")
    machine = Interpreter(program, [Group([0.0, 0.0]), Group([0.0])])
    machine.step([[1.0, None], [10.0]])
    machine.step([[1.0, 100.0], [None]])
    assert [float(p) for group in machine.params for p in group] == [112, 101, 11]


def test_all_joint_reductions() -> None:
    program = step_of(
        "a = sum(g, over=all)\nb = mean(g, over=all)\nc = max(g, over=all)\nd = min(g, over=all)\n"
        "e = mean(norm(g), over=all)\nf = sum(mean(g, over=rows), over=all)\nh = var(g, over=all)",
        state="\n".join(f"{name} [group] = 0" for name in "abcdefh"),
    )
    grads = [np.array([[1.0, 2.0], [3.0, 6.0]]), np.array(-4.0), np.zeros((0, 2))]
    machine = Interpreter(program, [Group(grads)])
    machine.step([grads])
    got = {key: float(value) for key, value in machine.group_states[0].items()}
    entries = np.array([1, 2, 3, 6, -4.0])
    wanted = {"a": 8, "b": 1.6, "c": 6, "d": -4, "e": (math.sqrt(50) + 4) / 3, "f": 1.5 + 4.5 - 4}
    assert got == pytest.approx(wanted | {"h": np.var(entries)})


def test_a_joint_reduction_of_nothing() -> None:
    for op, wanted in (("sum", 0.0), ("mean", math.nan), ("max", -math.inf), ("min", math.inf)):
        with np.errstate(all="ignore"):
            got = reduce_jointly(f"reduce_{op}", [np.zeros((0, 3)), np.zeros((2, 0))])
        assert np.array_equal(got, [[wanted]], equal_nan=True)


def test_tensors_on_different_branches_still_meet() -> None:
    """Matrices come to site 0 or 1 first, vectors at once to the last: all meet there, and only there."""
    program = step_of(
        """
x = 0
if ndim == 2:
    if cols == 1:
        x = sum(g, over=all)
    else:
        x = 100 * sum(g, over=all)
p = x + 10000 * sum(g, over=all)
"""
    )
    shapes = [(1,), (1, 1), (1, 2), (2, 1)]
    machine = Interpreter(program, [Group([np.zeros(shape) for shape in shapes])])
    machine.step([[np.full(shape, n + 1.0) for n, shape in enumerate(shapes)]])
    total = 1 + 2 + 2 * 3 + 2 * 4
    got = [float(p.flat[0]) - 10000 * total for p in machine.params[0]]
    assert got == [0, 2 + 8, 100 * 6, 2 + 8]


def test_one_joint_reduction_may_depend_on_another(rng: np.random.Generator) -> None:
    program = step_of("g = g / norm(g, over=all)\np = g * norm(g + 1, over=all)")
    grads = gradients(rng, [(3,), (2, 2)])
    machine = Interpreter(program, [Group(grads)])
    machine.step([grads])
    flat = np.concatenate([g.ravel() for g in grads])
    flat = flat / np.linalg.norm(flat)
    got = np.concatenate([p.ravel() for p in machine.params[0]])
    np.testing.assert_allclose(got, flat * np.linalg.norm(flat + 1), rtol=1e-14)


def test_group_states_are_read_as_before_the_step_and_the_oldest_member_writes() -> None:
    program = step_of(
        "out = d\nd = d + 10^numel + t", state="out = 0\nd [group] = start", hyper="start = 0.5"
    )
    machine = Interpreter(program, [Group([[0.0], [0.0, 0.0]], {"start": 5.0}), Group([0.0])])
    zeros = [np.zeros(1), np.zeros(2)]
    machine.step([[zeros[0], zeros[1]], [None]])
    assert machine.group_states == [{"d": 5 + 10 + 1}, {}]  # the first among ties
    assert [state["out"].tolist() for state in machine.states[0]] == [[5], [5, 5]]
    machine.step([[None, zeros[1]], [0.0]])
    assert machine.group_states == [{"d": 16 + 100 + 2}, {"d": 0.5 + 10 + 1}]
    machine.step([[zeros[0], zeros[1]], [None]])
    assert machine.group_states[0] == {"d": 118 + 100 + 3}  # the second has taken more steps
    assert machine.group_states[0]["d"].shape == ()


def test_the_first_member_initialises_a_group_state() -> None:
    program = step_of("out = d", state="out = 0\nd [group] = numel")
    machine = Interpreter(program, [Group([[0.0], [0.0, 0.0], np.zeros(3)])])
    machine.step([[None, np.zeros(2), np.zeros(3)]])
    machine.step([[np.zeros(1), None, None]])
    assert [state["out"].tolist() for state in machine.states[0]] == [[2], [2, 2], [2, 2, 2]]
    assert machine.group_states == [{"d": 2}]


def test_a_branch_that_does_not_assign_a_group_state_does_not_write_it() -> None:
    program = step_of("if ndim == 2:\n    d = d + sum(g, over=group)", state="d [group] = 1")
    machine = Interpreter(program, [Group([np.zeros(2), np.zeros((1, 1)), np.zeros((2, 2))])])
    machine.step([[np.ones(2), np.ones((1, 1)), np.ones((2, 2))]])
    assert machine.group_states[0]["d"] == 6
    machine.step([[np.ones(2), None, None]])
    assert machine.group_states[0]["d"] == 6


def test_a_failed_step_changes_nothing() -> None:
    program = step_of("out = out + 1\np = p - sum(g, over=all)")
    machine = Interpreter(program, [Group([0.0, 0.0])])
    with pytest.raises(ValueError, match="shape"):
        machine.step([[1.0, [1.0, 2.0]]])
    assert machine.steps == [[0, 0]]
    assert machine.states == [[{}, {}]]
    assert [float(p) for p in machine.params[0]] == [0, 0]


# ---- hostile values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("text", [SGD, ADAMW, LION, LAMB, NADAM, ADAGRADNORM, MUON])
def test_nothing_raises_or_warns(text: str, dtype: type) -> None:
    hostile = [0.0, -0.0, 1e-320, 1e-38, 1e30, -1e200, 1.7e308, math.inf, -math.inf, math.nan]
    shapes = [(10,), (5, 2), (), (0, 3), (2, 0)]
    program = compiled(text)
    for hypers in ({}, {"lr": math.inf}, {"lr": math.nan}, {"lr": -1e308}):
        machine = Interpreter(
            program, [Group([np.resize(hostile, shape) for shape in shapes], hypers)], dtype
        )
        for step in range(4):
            values = np.roll(hostile, step)
            machine.step([[np.resize(values, shape) for shape in shapes]])
        for p, shape in zip(machine.params[0], shapes, strict=True):
            assert p.shape == shape
            assert p.dtype == dtype


def test_hostile_host_arithmetic() -> None:
    program = step_of(
        "out = a\na = 1 / (x - x)\nb = (0 - x)^0.5\nc = exp(x * 1e6)\nd = mod(t, 0)\ne = log(0 * x)\n"
        "f = c - c",
        state="\n".join(["out = 0", *(f"{name} [host] = 0" for name in "abcdef")]),
        hyper="x = 4.0",
    )
    machine = Interpreter(program, [Group([0.0])])
    machine.step([[0.0]])
    machine.step([[0.0]])
    state = machine.states[0][0]
    assert float(state["out"]) == math.inf
    assert [state[k] for k in "ace"] == [math.inf, math.inf, -math.inf]
    assert all(math.isnan(state[k]) for k in "bdf")


def test_integers_beyond_floating_point() -> None:
    huge = Assign("p.1", "p", call("mul", var("p", ty.element()), const(-(10**400))))
    program = Program("T", "", "", (), (), (huge,), {"p": huge.var})
    machine = Interpreter(program, [Group([2.0])])
    machine.step([[0.0]])
    assert float(machine.params[0][0]) == -math.inf


def test_deep_expressions() -> None:
    g = var("g", ty.element())
    expr = g
    for _ in range(5000):
        expr = call("add", expr, 1.0)
    assign = Assign("p.1", "p", expr)
    machine = Interpreter(Program("T", "", "", (), (), (assign,), {"p": assign.var}), [Group([0.0])])
    machine.step([[0.0]])
    assert float(machine.params[0][0]) == 5000


def test_perturbation_reaches_every_operation_above_the_host() -> None:
    seen: list[tuple[int, ...]] = []

    def perturb(x: np.ndarray) -> np.ndarray:
        seen.append(x.shape)
        return x * (1 + 1e-6)

    program = step_of("p = p - (lr * lr) * g * norm(g) + (normal() if t > 1 else 0)", hyper="lr = 2.0")
    machine = Interpreter(program, [Group([np.ones((2, 2))])], perturb=perturb)
    machine.step([[np.full((2, 2), 3.0)]])
    # pow, sum, sqrt, mul, mul, sub, add
    assert sorted(seen) == [(1, 1)] * 2 + [(2, 2)] * 5
    np.testing.assert_allclose(machine.params[0][0], 1 - 4 * 3 * 6, rtol=1e-4)
    assert machine.params[0][0][0, 0] != 1 - 4 * 3 * 6
