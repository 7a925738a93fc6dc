"""The step of K models at once: against compiled classes on the tasks, and against the interpreter."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from optdsl.core.ops import CORE
from optdsl.core.types import AXES, Kind
from optdsl.driver import locate, program_of, simplify
from optdsl.ir.expr import is_random
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.program import Program
from optdsl.search import tasks
from optdsl.search.evaluate import operators
from optdsl.search.evaluate.stacked import Layout, Stacked, Unsupported
from optdsl.search.generate import TAME, random_program
from tests.support import SHIPPED

#: Of all kinds: host states, turns, reductions per tensor, group, row and column, views, matrices, delays.
SPECS = (
    *("sgd", "nag", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adadelta", "adamax", "lion"),
    *(
        "adabelief",
        "yogi",
        "lamb",
        "lars",
        "adafactor",
        "came",
        "sm3",
        "schedule_free_adamw",
        "muon",
        "prodigy",
    ),
    *("adashift", "adan", "signsgd", "rprop"),
)
SMALL = tasks.names(size="small")
LAYOUT = Layout(((3, 4), (4, 2), (5,), (), (2, 2, 2)))


@functools.cache
def program(name: str) -> Program:
    return simplify(program_of(locate(name))[0])


def decay(name: str) -> dict[str, Any]:
    """A weight decay where a method has one, and options that are worth a look."""
    hypers = {h.name for h in program(name).hypers}
    found: dict[str, Any] = {"weight_decay": 0.05} if "weight_decay" in hypers else {}
    if name == "sgd":
        found |= {"momentum": 0.9}
    return found


@pytest.mark.parametrize("name", SPECS)
def test_the_evaluator_is_the_compiled_class(name: str) -> None:
    """Goal S10: in float32, to 1e-6 of the largest parameter, on the gradients of every task."""
    compare_with_class(name, SMALL, fused=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "lion", "schedule_free_adamw"])
def test_the_evaluator_is_the_kernels(name: str) -> None:
    """The same with native kernels, on all tasks of both sizes."""
    compare_with_class(name, tasks.names(), fused=True)


def compare_with_class(name: str, problems: list[str], fused: bool) -> None:
    steps, rates = 5, np.array([2e-3, 2e-2])
    kind = optdsl.load(name)
    options = decay(name)
    for task in map(tasks.task, problems):
        stacked = Stacked(program(name), task.layout, ("lr",), options)
        begin = torch.stack([task.init(seed) for seed in range(2)])
        run = stacked.run(begin.clone(), {"lr": rates}, steps)
        models = [[torch.nn.Parameter(x.clone()) for x in row] for row in _rows(task.layout, begin)]
        optimizers = [
            kind(m, lr=lr, fused=fused, **options) for m, lr in zip(models, rates.tolist(), strict=True)
        ]
        data = [task.batches(seed, steps) for seed in range(2)]
        for step in range(steps):
            batch = tuple(torch.stack([x[step] for x in parts]) for parts in zip(*data, strict=True))
            leaves = [x.detach().requires_grad_() for x in task.layout.views(run.p)]
            gradient = task.layout.join(torch.autograd.grad(task.losses(leaves, batch).sum(), leaves))
            run.step(gradient)
            for model, optimizer, row in zip(models, optimizers, _rows(task.layout, gradient), strict=True):
                for parameter, g in zip(model, row, strict=True):
                    parameter.grad = g.clone()
                optimizer.step()
        if program(name).view is not None:
            for optimizer in optimizers:
                optimizer.eval()
        expected = torch.stack([torch.cat([x.detach().reshape(-1) for x in model]) for model in models])
        found = run.view()
        if name == "came":  # pixels that are always 0 have gradients of 0, which it divides by
            assert torch.equal(found.isnan(), expected.isnan())
            found, expected = found.nan_to_num(), expected.nan_to_num()
        worst = (found - expected).abs().max() / expected.abs().max()
        assert worst <= 1e-6, (task.name, float(worst))
        # adashift and prodigy move little at first: what is compared is no trifle for the others
        if name not in ("adashift", "prodigy", "adadelta", "lars"):
            assert (expected - begin).abs().max() > 1e-4


def _rows(layout: Layout, flat: torch.Tensor) -> list[list[torch.Tensor]]:
    """The tensors of each model."""
    return [[view[k] for view in layout.views(flat)] for k in range(len(flat))]


# ---- the interpreter --------------------------------------------------------------------------------------


def interpreted(
    program: Program, values: dict[str, Any], p: torch.Tensor, gradients: torch.Tensor, perturb: Any = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Parameters, and what stands for them in evaluation, after each step of one model."""
    hypers: dict[str, Any] = {}
    for h in program.hypers:
        value = values.get(h.name, h.default)
        hypers[h.argument] = (*hypers.get(h.argument, ()), value) if h.is_part else value
    tensors = [view[0].numpy() for view in LAYOUT.views(p[None])]
    machine = Interpreter(program, [Group(tensors, hypers)], perturb=perturb)
    found = []
    for g in gradients:
        machine.step([[view[0].numpy() for view in LAYOUT.views(g[None])]])
        both = (np.concatenate([np.ravel(x) for x in made[0]]) for made in (machine.params, machine.view()))
        found.append(tuple(both))
    return found


def agree(
    program: Program, columns: dict[str, list[float]], values: dict[str, Any], seed: int, steps: int
) -> str:
    """Runs two models at once and one by one: "fine", or "infinite" if that is where a number went."""
    stacked = Stacked(program, LAYOUT, tuple(columns), values)
    numbers = np.random.default_rng(seed)
    p = torch.from_numpy(numbers.normal(size=(2, LAYOUT.total)))
    gradients = torch.from_numpy(numbers.normal(size=(steps, 2, LAYOUT.total)))
    run = stacked.run(p.clone(), columns, steps)
    made = []
    for g in gradients:
        run.step(g)
        made.append((run.p.clone(), run.view().clone()))
    noise = np.random.default_rng(seed + 1)
    for k in range(2):
        own = values | {name: column[k] for name, column in columns.items()}
        expected = interpreted(program, own, p[k], gradients[:, k])
        shaken = interpreted(
            program, own, p[k], gradients[:, k], lambda x: x * (1 + 1e-15 * noise.standard_normal(x.shape))
        )
        for step in range(steps):
            for what in range(2):
                good, moved, ours = expected[step][what], shaken[step][what], made[step][what][k].numpy()
                if not (np.isfinite(good).all() and np.isfinite(moved).all()):
                    return "infinite"
                # how far rounding may carry, for this program
                slack = 1e-11 * (1 + np.abs(good)) + 300 * np.abs(good - moved).max()
                assert (np.abs(ours - good) <= slack).all(), (seed, k, step, what, np.abs(ours - good).max())
    return "fine"


@pytest.mark.parametrize("name", SPECS)
def test_columns_of_every_hyperparameter(name: str) -> None:
    """All numbers of a method differ between the models, and branches on them are taken model by model."""
    hypers = [h for h in program(name).hypers if h.kind is Kind.FLOAT and np.isfinite(float(h.default))]
    columns = {h.name: [float(h.default), 0.9 * float(h.default)] for h in hypers}
    if "lr" in columns:
        columns["lr"] = [3e-3, 1e-2]
    if "weight_decay" in columns:
        columns["weight_decay"] = [0.0, 0.05]
    if name == "sgd":
        columns["momentum"] = [0.9, 0.0]
    assert agree(program(name), columns, {}, seed=5, steps=9) == "fine"


#: Why a method is refused, and what one sees of that in its program.
REFUSED: dict[str, Callable[[Program], bool]] = {
    "a hyperparameter is a list": lambda made: any(h.kind is Kind.LIST for h in made.hypers),
    "a step is given more than a gradient": lambda made: bool(made.inputs),
    "it has a matrix for each axis": lambda made: any(s.type.shape == AXES for s in made.states),
    "it draws random numbers": lambda made: any(map(is_random, made.nodes())),
}


@pytest.mark.slow
def test_all_shipped_methods() -> None:
    """As the interpreter has them, except for those that have what is refused by name."""
    refused: dict[str, list[str]] = {}
    for path in SHIPPED:
        made = program(path.stem)
        columns = {"lr": [3e-3, 1e-2]} if any(h.name == "lr" for h in made.hypers) else {}
        try:
            # of frank_wolfe's entries none is the largest when numbers are shaken, and it divides by their count
            expected = "infinite" if path.stem == "frank_wolfe" else "fine"
            assert agree(made, columns, decay(path.stem), seed=7, steps=6) == expected, path.stem
        except Unsupported as error:
            refused.setdefault(str(error), []).append(path.stem)
    assert set(refused) == set(REFUSED)
    assert [name for why, names in refused.items() for name in names if not REFUSED[why](program(name))] == []


@pytest.mark.parametrize(
    "seeds", [range(30), pytest.param(range(2000, 2600), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_random_programs(seeds: range) -> None:
    """Whatever the generator makes, except for what is refused by name."""
    drawn = dict.fromkeys(("normal", "uniform", "rademacher", "bernoulli", "reduce_kth_largest"), 0.0)
    weights = replace(TAME, operators={**TAME.operators, **drawn})
    found = []
    for seed in seeds:
        rng = random.Random(seed)
        made = random_program(rng, rng.choice((4, 8, 12, 20)), weights, inputs=seed % 2 == 1)
        names = [h.name for h in made.hypers if h.kind is Kind.FLOAT and rng.random() < 0.5]
        columns = {n: [float(made.hyper(n).default) * f for f in (1.0, 0.9)] for n in names}
        try:
            found.append(agree(made, columns, {}, seed, steps=4))
        except Unsupported as error:
            found.append(str(error))
    refused = {text for text in found if text not in ("fine", "infinite")}
    assert refused <= {
        "a step is given more than a gradient",
        *(
            "it has a matrix for each axis",
            "it reads a list",
            "a hyperparameter is a list",
            "it reduces over filters",
        ),
        "tensors of different shapes take part in a joint reduction in different steps",
    }
    assert found.count("fine") > 0.6 * len(seeds)


def test_a_learning_rate_may_change_from_step_to_step(rng: np.random.Generator) -> None:
    rates = rng.uniform(0.001, 0.1, (6, 2))
    p = torch.from_numpy(rng.normal(size=(2, LAYOUT.total)))
    gradients = torch.from_numpy(rng.normal(size=(6, 2, LAYOUT.total)))
    run = Stacked(program("nadam"), LAYOUT, ("lr",)).run(p.clone(), {"lr": rates}, 6)
    for g in gradients:
        run.step(g)
    for k in range(2):
        parameter = torch.nn.Parameter(p[k].clone())
        optimizer = torch.optim.NAdam([parameter], lr=1.0)
        for step in range(6):
            optimizer.param_groups[0]["lr"] = float(rates[step, k])
            parameter.grad = gradients[step, k]
            optimizer.step()
        # torch keeps a product of coefficients in float32
        torch.testing.assert_close(run.p[k], parameter.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["nadam", "lamb", "prodigy", "adafactor", "schedule_free_adamw", "adashift"])
def test_models_that_leave_do_not_change_the_others(name: str, rng: np.random.Generator) -> None:
    columns = {"lr": rng.uniform(0.001, 0.1, 5)}
    p = torch.from_numpy(rng.normal(size=(5, LAYOUT.total)))
    gradients = torch.from_numpy(rng.normal(size=(8, 5, LAYOUT.total)))
    stacked = Stacked(program(name), LAYOUT, ("lr",))
    whole, part = (stacked.run(p.clone(), columns, 8) for _ in range(2))
    left = list(range(5))
    for step, g in enumerate(gradients):
        whole.step(g)
        part.step(g[left])
        if step in (2, 5):
            stay = [3, 0, 2] if step == 2 else [2, 1]
            part.keep(stay)
            left = [left[i] for i in stay]
    assert left == [2, 0] == part.rows.tolist()
    torch.testing.assert_close(part.p, whole.p[left], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(part.view(), whole.view()[left], rtol=1e-13, atol=1e-13)


# ---- generated code ---------------------------------------------------------------------------------------


def test_every_operator_is_spelled_or_refused() -> None:
    assert set(CORE) == operators.SPELLED


def test_nothing_of_a_program_reaches_the_generated_code() -> None:
    """Names and strings of a program that is made by hand may be anything."""
    evil = "x); __import__('os').system('true'); ("
    made = program("adamw")
    hypers = tuple(replace(h, name=evil) if h.name == "eps" else h for h in made.hypers)
    renamed = replace(made, hypers=hypers, name=evil, doc=evil, cite=evil)
    allowed = re.compile(
        r"def f\(p, g, h, s, o, w, sizes\):|( ([hsow]\d+, )+= [hsow])"
        r"|( [a-z_0-9]+\(([pghsow]\d*|sizes|, )*out=[ow]\d+\))"
    )
    for text in (*_texts(Stacked(renamed, LAYOUT)), *_texts(Stacked(program("came"), LAYOUT))):
        for line in text.splitlines():
            assert allowed.fullmatch(line), line


def _texts(stacked: Stacked) -> list[str]:
    return [block.step.text for block in stacked.blocks]


def test_a_step_needs_no_memory_but_its_buffers() -> None:
    """AdamW: two temporary values at a time at most, whatever the number of its operations."""
    (block,) = Stacked(program("adamw"), LAYOUT, ("lr",)).blocks
    assert block.step.text.count("op_") >= 12
    assert len(block.step.buffers) <= 3
    assert block.step.writes == ("p", "m", "v")  # v_max is not kept: the option is off


def test_states_that_nothing_needs_are_not_computed() -> None:
    made = program("adam")
    (block,) = Stacked(made, LAYOUT, ("lr",), {"amsgrad": True}).blocks
    assert len(block.step.writes) == 4
    plain = program("sgd")
    assert Stacked(plain, LAYOUT, ("lr",)).states == ()
    assert len(Stacked(plain, LAYOUT, ("lr",), {"momentum": 0.9}).states) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [("gravity", "random"), ("sophia_h", "more than a gradient"), ("storm", "more than a gradient")],
)
def test_what_cannot_be_stacked_is_refused(name: str, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        Stacked(program(name), LAYOUT)


def test_other_refusals() -> None:
    with pytest.raises(Unsupported, match="`amsgrad` is no number"):
        Stacked(program("adamw"), LAYOUT, ("amsgrad",))
    states = tuple(replace(s, stored="bf16") for s in program("adamw").states)
    stored = replace(program("adamw"), states=states)
    with pytest.raises(Unsupported, match="another format"):
        Stacked(stored, LAYOUT)
    with pytest.raises(ValueError, match="`momentum` is no hyperparameter of AdamW"):
        Stacked(program("adamw"), LAYOUT, ("momentum",))
    stacked = Stacked(program("adamw"), LAYOUT, ("lr",))
    with pytest.raises(ValueError, match="`lr` has no values"):
        stacked.run(torch.zeros(1, LAYOUT.total), {}, 1)


def test_names_of_the_step_are_not_those_of_what_is_evaluated(tmp_path) -> None:
    path = tmp_path / "made.opt"
    path.write_text(
        "optimizer Made:\n    hyper:\n        lr = 0.1\n    state:\n        m [host] = lr\n"
        "    step:\n        q = 2 * lr + t\n        m = m + q\n        p = p - m * g\n"
        "    eval:\n        q = m * lr\n        p = p - q\n"
    )
    made = simplify(program_of(path)[0])
    assert agree(made, {"lr": [0.1, 0.2]}, {}, seed=3, steps=4) == "fine"


def test_a_state_of_the_group_begins_with_its_first_tensor(tmp_path) -> None:
    """And is what the first tensor that assigns it leaves: here the second of five."""
    path = tmp_path / "made.opt"
    path.write_text(
        "optimizer Made:\n    hyper:\n        lr = 0.1\n"
        "    state:\n        a [group] = rows\n        b [group] = lr\n"
        "    step:\n        if rows == 4:\n            a = a + 2 * cols\n        p = p - lr * (a + b) * g\n"
    )
    made = simplify(program_of(path)[0])
    assert agree(made, {"lr": [0.1, 0.2]}, {}, seed=3, steps=4) == "fine"
    stacked = Stacked(made, LAYOUT, ("lr",))
    run = stacked.run(torch.zeros(2, LAYOUT.total), {"lr": [0.1, 0.2]}, 2)
    run.step(torch.ones(2, LAYOUT.total))
    run.step(torch.ones(2, LAYOUT.total))
    # the first tensor is 3 x 4, the second 4 x 2: a is 3, 7 and 11
    torch.testing.assert_close(run.p[:, 0], torch.tensor([-0.1 * (3 + 7 + 0.2), -0.2 * (3 + 7 + 0.4)]))


def test_a_joint_reduction_that_a_tensor_does_not_need_keeps_its_place(tmp_path) -> None:
    """Vectors take part in the first mean and do not use it; all tensors meet again at the second."""
    path = tmp_path / "made.opt"
    path.write_text(
        "optimizer Made:\n    hyper:\n        lr = 0.1\n    step:\n        a = 1 + mean(g^2, over=group)\n"
        "        if ndim <= 1:\n            u = g\n        else:\n            u = a * g\n"
        "        p = p - lr * mean(u, over=group)\n"
    )
    made = program_of(path)[0]  # simplify would move the first mean into the branch that needs it
    assert agree(made, {"lr": [0.1, 0.2]}, {}, seed=3, steps=4) == "fine"
    g = torch.arange(2.0 * LAYOUT.total, dtype=torch.float64).reshape(2, -1)
    run = Stacked(made, LAYOUT, ("lr",)).run(torch.zeros_like(g), {"lr": [0.1, 0.2]}, 1)
    run.step(g)
    factors = [
        1 + g.square().mean(1, keepdim=True) if len(s) > 1 else torch.ones(2, 1) for s in LAYOUT.shapes
    ]
    u = torch.cat([f * x for f, x in zip(factors, g.split(LAYOUT.sizes, 1), strict=True)], 1)
    expected = -torch.tensor([[0.1], [0.2]]) * u.mean(1, keepdim=True)
    torch.testing.assert_close(run.p, expected.expand_as(g))
