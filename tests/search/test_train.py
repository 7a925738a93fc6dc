"""Training runs and tuning: what a run is, outcomes, hurdles, the same chances for all."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import optdsl
from optdsl.driver import program_of, simplify
from optdsl.ir.program import Program
from optdsl.search import tasks
from optdsl.search.evaluate.stacked import Stacked, Unsupported
from optdsl.search.evaluate.train import Hurdle, Runs, train
from optdsl.search.evaluate.tune import (
    CEILING,
    Effort,
    Tuned,
    baseline,
    constants,
    log_losses,
    log_ratios,
    moved,
    rule,
    tune,
    unit,
)

QUICK = Effort(configurations=10, coarse=5, tuning=(0, 1), fresh=(100, 101, 102))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory):
    """A program from the lines of a step."""
    folder: Path = tmp_path_factory.mktemp("specs")

    @functools.cache
    def make(step: str, hyper: str = "") -> Program:
        path = folder / "made.opt"
        lines = "\n".join(f"        {line}" for line in step.split("\n"))
        path.write_text(f"optimizer Made:\n    hyper:\n        lr = 0.1\n{hyper}\n    step:\n{lines}\n")
        return simplify(program_of(path)[0])

    return make


def runs(name: str, task: str, rates: list[float], seeds: list[int], **more: object) -> Runs:
    """Every rate with every seed: rates outer."""
    problem = tasks.task(task)
    stacked = Stacked(rule(name), problem.layout, ("lr",), {"weight_decay": 0.05})
    columns = {"lr": np.repeat(rates, len(seeds))}
    return train(stacked, problem, columns, seeds * len(rates), **more)  # type: ignore[arg-type]


def test_a_run_is_what_a_loop_with_the_class_does() -> None:
    """In double precision, by other code from end to end: data, schedule, losses at the checkpoints."""
    found = runs("adamw", "digits_mlp", [0.003, 0.03], [5, 6], steps=24, dtype=torch.float64)
    task = tasks.task("digits_mlp")
    x_held, y_held = task.held_out
    expected = []
    for lr in (0.003, 0.03):
        for seed in (5, 6):
            model = [torch.nn.Parameter(x[0].double()) for x in task.layout.views(task.init(seed)[None])]
            optimizer = optdsl.load("adamw")(model, lr=lr, weight_decay=0.05, fused=False)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=24)
            x, y = task.batches(seed, 24)
            curve = []
            for step in range(24):
                optimizer.zero_grad()
                F.cross_entropy(_mlp(model, x[step]), y[step]).backward()
                optimizer.step()
                schedule.step()
                if step % 6 == 5:
                    with torch.no_grad():
                        curve.append(F.cross_entropy(_mlp(model, x_held), y_held).item())
            expected.append(curve)
    np.testing.assert_allclose(found.curve, expected, rtol=1e-10)
    np.testing.assert_array_equal(found.final, found.curve[:, -1])
    assert (found.start > found.final).all()
    assert found.steps == 4 * 24


def _mlp(w: list[torch.nn.Parameter], x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x.double() @ w[0] + w[2]) @ w[1] + w[3]


def test_runs_do_not_depend_on_those_beside_them() -> None:
    together = runs("adamw", "regression", [0.01, 0.1, 0.5], [1, 2], dtype=torch.float64)
    for number, rate in enumerate((0.01, 0.1, 0.5)):
        for place, seed in enumerate((1, 2)):
            alone = runs("adamw", "regression", [rate], [seed], dtype=torch.float64)
            np.testing.assert_allclose(alone.curve[0], together.curve[2 * number + place], rtol=1e-9)
    again = runs("adamw", "regression", [0.01, 0.1, 0.5], [1, 2], dtype=torch.float64)
    np.testing.assert_array_equal(again.curve, together.curve)


def test_divergence_is_an_outcome_of_its_run_alone() -> None:
    found = runs("sgd", "regression", [1.0, 1e3], [1, 2])
    assert found.diverged.tolist() == [False, False, True, True]
    assert np.isinf(found.final[2:]).all()
    assert np.isfinite(found.final[:2]).all()
    assert (found.stopped == -1).all()
    # those that diverge end at the checkpoint that sees it
    assert found.steps == 2 * 100 + 2 * 25
    assert np.isnan(found.curve[2:, 1:]).all()


def test_a_hurdle_stops_runs_that_are_far_behind() -> None:
    seeds = [1, 2, 3]
    good = runs("adamw", "digits_mlp", [0.03], seeds)
    hurdle = Hurdle(float(good.start.mean()), tuple(good.curve.mean(0).tolist()))
    free = runs("adamw", "digits_mlp", [0.03, 1e-5], seeds)
    held = runs("adamw", "digits_mlp", [0.03, 1e-5], seeds, hurdle=hurdle)
    np.testing.assert_array_equal(held.stopped, [-1, -1, -1, 0, 0, 0])
    assert (held.steps, free.steps) == (3 * 100 + 3 * 25, 600)
    np.testing.assert_allclose(held.final[:3], free.final[:3], rtol=1e-4)
    np.testing.assert_allclose(held.final[3:], free.curve[3:, 0], rtol=1e-5)
    assert not held.diverged.any()
    # the whole candidate is out
    out = runs("adamw", "digits_mlp", [1e-6], seeds, hurdle=hurdle)
    assert out.steps == 3 * 25


def test_a_hurdle_asks_for_nothing_where_nothing_was_gained() -> None:
    hurdle = Hurdle(1.0, (1.2, 0.5))
    assert hurdle.limit(0) == math.inf
    assert hurdle.limit(1) == pytest.approx(1 - 0.4 * 0.5)


# ---- tuning -----------------------------------------------------------------------------------------------


def test_the_length_of_a_step(spec) -> None:
    task = tasks.task("digits_mlp")

    def length(program: Program) -> float:
        return unit(Stacked(program, task.layout, ("lr",)), task, {})

    first = [tuple(x[0] for x in task.batches(seed, 1)) for seed in (0, 1)]
    p = torch.stack([task.init(seed) for seed in (0, 1)])
    leaves = [x.requires_grad_() for x in task.layout.views(p)]
    losses = task.losses(leaves, tuple(torch.stack(parts) for parts in zip(*first, strict=True)))
    g = task.layout.join(torch.autograd.grad(losses.sum(), leaves))
    # gradients of the first four minibatches are about as long as those of the first one
    assert length(spec("p = p - lr * g")) == pytest.approx(float(g.square().mean(1).sqrt().mean()), rel=0.3)
    # the 42 biases are 0, and stay there
    assert length(spec("p = p - 3 * lr * sign(p)")) == pytest.approx(3 * math.sqrt(2368 / 2410), rel=1e-6)
    assert length(spec("p = p - 0 * lr * g")) == 0
    assert not math.isfinite(length(spec("p = p - lr * g / 0")))


@pytest.mark.parametrize("factor", ["1000", "1e-3"])
def test_the_scale_of_the_learning_rate_does_not_matter(spec, factor: str) -> None:
    task = tasks.task("zipf")
    plain = tune(spec("p = p - lr * g"), task, QUICK)
    scaled = tune(spec(f"p = p - {factor} * lr * g"), task, QUICK)
    np.testing.assert_allclose(scaled.losses, plain.losses, rtol=1e-4)
    assert scaled.values["lr"] * float(factor) == pytest.approx(plain.values["lr"], rel=1e-3)


def test_every_rule_has_the_same_number_of_configurations(spec) -> None:
    task = tasks.task("regression")
    for program in (rule("adamw"), rule("sgd"), rule("lion"), spec("p = p - lr * g * abs(g)")):
        found = tune(program, task, QUICK)
        assert found.configurations == QUICK.configurations
        assert set(found.values) == {"lr", *constants(program)}
        assert len(found.losses) == len(found.starts) == 3


def test_the_grid_goes_on_until_the_best_is_inside(spec) -> None:
    # steps that shrink with their square: the best learning rate is far from where a probe puts it
    program = spec("p = p - lr^2 * g * 1e6")
    found = tune(program, tasks.task("zipf"), replace(QUICK, configurations=24))
    plain = tune(spec("p = p - lr * g"), tasks.task("zipf"), replace(QUICK, configurations=24))
    assert not found.edge
    # but for the schedule, which is squared, too
    assert np.mean(found.logs) == pytest.approx(np.mean(plain.logs), abs=0.1)
    # all diverge, and so slower ones are tried
    hopeless = tune(spec("p = p - lr^4 * g"), tasks.task("zipf"), QUICK)
    assert hopeless.edge
    assert hopeless.diverged == 3


def test_tuning_is_deterministic_and_seeds_are_kept_apart() -> None:
    task = tasks.task("regression")
    effort = replace(QUICK, configurations=24)
    first, again = (tune(rule("adamw"), task, effort, seed=3) for _ in range(2))
    assert first == again
    other = tune(rule("adamw"), task, effort, seed=4)
    assert other.values != first.values
    # what is chosen does not depend on the seeds that it is measured on
    moved_on = tune(rule("adamw"), task, replace(effort, fresh=(200, 201)), seed=3)
    assert moved_on.values == first.values
    assert moved_on.losses != first.losses[:2]


def test_constants_are_tuned_from_where_they_are_told_to_begin() -> None:
    task = tasks.task("digits_mlp")
    start = {"beta1": 0.7, "beta2": 0.95, "eps": 1e-5, "weight_decay": 0.1}
    found = tune(rule("adamw"), task, replace(QUICK, configurations=5), start=start)
    assert {name: found.values[name] for name in start} == start  # five learning rates are all there is
    found = tune(rule("adamw"), task, QUICK, names=())
    assert set(found.values) == {"lr"}
    assert constants(rule("adamw")) == ("beta1", "beta2", "eps", "weight_decay")
    assert constants(rule("sgd")) == ()  # momentum and decay are off


def test_changed_constants_stay_in_their_intervals(rng: np.random.Generator) -> None:
    factors = 2.0 ** (3 * rng.standard_normal(1000))
    program = rule("adamw")
    for name in constants(program):
        hyper = program.hyper(name)
        new = moved(hyper, float(hyper.default), factors)
        assert all(float(x) in hyper.interval for x in new)
        assert len(set(new.tolist())) > 500
    # a decay near 1 moves by its distance from 1
    np.testing.assert_allclose(moved(program.hyper("beta2"), 0.999, np.array([2.0, 0.5])), [0.998, 0.9995])
    np.testing.assert_allclose(moved(program.hyper("eps"), 1e-8, np.array([2.0])), [2e-8])


def test_a_rule_that_does_nothing_is_dead(spec) -> None:
    for step in ("p = p", "p = p - lr * g / 0", "p = p - lr * sqrt(-1 - g^2)"):
        found = tune(spec(step), tasks.task("zipf"), QUICK)
        assert found.dead
        assert found.steps == 0
        assert found.diverged == 3
        assert found.hurdle() is None
        assert log_ratios(found, baseline("zipf/small", QUICK)).min() > 1


def test_a_rule_without_a_learning_rate_cannot_be_tuned() -> None:
    with pytest.raises(Unsupported, match="no learning rate"):
        tune(rule("cocob"), tasks.task("zipf"), QUICK)


def test_ratios_are_paired() -> None:
    adamw = baseline("regression/small", QUICK)
    assert adamw is baseline("regression/small", QUICK)
    sgd = tune(rule("sgd"), tasks.task("regression"), QUICK)
    ratios = log_ratios(sgd, adamw)
    np.testing.assert_allclose(ratios, np.log(np.array(sgd.losses) / np.array(adamw.losses)))
    assert not log_ratios(adamw, adamw).any()
    with pytest.raises(ValueError, match="same task"):
        log_ratios(sgd, baseline("zipf/small", QUICK))
    blown = replace(sgd, losses=(math.inf, *sgd.losses[1:]))
    assert blown.diverged == 1
    assert blown.logs[0] == pytest.approx(math.log(CEILING * sgd.starts[0]))


def test_losses_that_are_no_numbers_count_as_diverged() -> None:
    found = log_losses(np.array([math.nan, math.inf, 1e9, 0.0, 0.5]), np.full(5, 2.0))
    np.testing.assert_allclose(found, np.log([8, 8, 8, 1e-12, 0.5]))


def test_what_was_chosen_as_best_is_worse_on_fresh_seeds() -> None:
    """The winner's curse, which is why nothing is believed on the seeds that it was chosen on."""
    effort = Effort(configurations=40, tuning=(0,), fresh=tuple(range(100, 120)), spread=0.02)
    found: Tuned = tune(rule("signsgd"), tasks.task("deep_linear"), effort, names=())
    assert found.tuning < found.logs.mean()
