"""The torch backend against the interpreter: random programs, and the settings of the shipped specs.

How a number is held against the interpreter's, and how wide a tolerance may be, is told in
`tests.backends.differential`. OPTDSL_FUZZ multiplies the number of programs, OPTDSL_SEED moves to others.
"""

from __future__ import annotations

import inspect
import math
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optdsl.check import check_path, check_text
from optdsl.core.types import Kind
from optdsl.ir.expr import Call
from optdsl.ir.program import Program
from optdsl.ir.text import show, to_opt
from optdsl.search.generate import TAME, WILD, random_program
from tests.backends.differential import (
    AS_WRITTEN,
    CAPTURABLE,
    DIFFERENTIABLE,
    FOREACH,
    HOSTILE,
    LOOP,
    PARTS,
    Compiled,
    Mismatch,
    Problem,
    Reference,
    Tally,
    Way,
    arguments,
    problem,
    run,
    source,
    torch_class,
    values,
)
from tests.fuzz import seeds
from tests.support import FEW_PATHS, SHIPPED

BATCH = 25
HALVES = (torch.bfloat16, torch.float16)


def batches(usual: int) -> list[range]:
    """The seeds to try, in parts that can run beside each other."""
    tried = seeds(usual)
    return [tried[start : start + BATCH] for start in range(0, len(tried), BATCH)]


def made(seed: int) -> Program:
    """The random program of a seed: tame ones and wild ones, small ones and large ones."""
    rng = random.Random(seed)
    return random_program(
        rng, rng.choice((4, 10, 10, 20)), WILD if seed % 2 else TAME, inputs=True, lists=True
    )


def told(program: Program) -> str:
    """A program in every form that helps to find a mistake."""
    text = show(program)
    for form in (to_opt, source):
        try:
            text += "\n" + form(program)
        except Exception as broken:  # what broke the run may be that it cannot be printed
            text += repr(broken)
    return text


def held(program: Program, seed: int, given: Problem, ways: Sequence[Way]) -> Tally:
    """Runs a program in all ways; a failure shows all that is needed to see it again."""
    try:
        return run(program, given, ways, np.random.default_rng(seed))
    except Exception as error:
        error.add_note(
            f"seed {seed}, {given.dtype}, {given.hypers}, maximize {given.maximize}\n{told(program)}"
        )
        raise


def ways_of(program: Program, seed: int) -> tuple[Way, ...]:
    """The loop, the foreach path, and at times another way."""
    if seed % 4 == 0:
        return LOOP, FOREACH, DIFFERENTIABLE
    if seed % 4 == 1 and torch_class(program)._not_capturable is None:
        return LOOP, FOREACH, *CAPTURABLE
    if seed % 4 == 2:
        return LOOP, FOREACH, *AS_WRITTEN
    return (LOOP, FOREACH, PARTS) if torch_class(program)._shards == "reduced" else (LOOP, FOREACH)


@pytest.mark.parametrize("batch", batches(500), ids=lambda batch: str(batch.start))
def test_random_programs(batch: range) -> None:
    """Each program in float64 or float32, every fourth in a narrower type too, half of them on hostile numbers."""
    tally = {True: Tally(), False: Tally()}
    for seed in batch:
        program = made(seed)
        dtypes = [(torch.float64, torch.float32)[seed // 16 % 2]]
        dtypes += [HALVES[seed // 16 % 2]] if seed % 4 == 3 else []
        hostile = (0.0, 0.0, 0.2, 0.8)[seed // 4 % 4]
        for dtype in dtypes:
            given = problem(program, np.random.default_rng(seed), dtype, 4, hostile)
            tally[hostile > 0] += held(program, seed, given, ways_of(program, seed))
    print(tally, {hostile: found.share for hostile, found in tally.items()})
    for found in tally.values():
        assert found.share > 0.97, f"too little was checked: {found}"


@pytest.mark.parametrize("batch", batches(50), ids=lambda batch: str(batch.start))
def test_random_programs_with_filters(batch: range) -> None:
    """As above, of reductions over filters; on matrices, too."""
    tally, some = Tally(), 0
    for seed in batch:
        weights = replace(TAME, filter=0.25, operators={**TAME.operators, "matmul": 0.3 * (seed % 2)})
        program = random_program(random.Random(seed), 8, weights, inputs=True)
        some += any(isinstance(node, Call) and node.attr == "filter" for node in program.nodes())
        given = problem(program, np.random.default_rng(seed), torch.float64, 3, 0.0)
        tally += held(program, seed, given, ways_of(program, seed))
    assert some > len(batch) // 2
    assert tally.share > 0.97, f"too little was checked: {tally}"


# ---- flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(40))
def test_maximize_is_descent_along_the_negated_gradient(seed: int) -> None:
    program = made(seed)
    if program.inputs:  # which the helper makes of the gradients
        return
    up = replace(problem(program, np.random.default_rng(seed), torch.float32), maximize=True)
    negated = [[[None if g is None else -g for g in group] for group in step] for step in up.grads]
    down = replace(up, grads=negated, maximize=False)
    for way in (LOOP, FOREACH):
        first, second = (Compiled(way, program, given) for given in (up, down))
        for step in range(len(up.grads)):
            first.step(step)
            second.step(step)
        others = second.tensors()
        for place, tensor in first.tensors().items():
            assert torch.equal(tensor.nan_to_num(7.0), others[place].nan_to_num(7.0)), place


@pytest.mark.parametrize("batch", batches(50), ids=lambda batch: str(batch.start))
def test_refusals(batch: range) -> None:
    """What cannot be captured is refused with its reason; fused is refused by every class."""
    refused = 0
    for seed in batch:
        cls = torch_class(made(seed))
        p = torch.zeros(2, requires_grad=True)
        with pytest.raises(RuntimeError, match="no fused kernel"):
            cls([p], fused=True)
        reason = cls._not_capturable
        if reason is None:
            cls([p], capturable=True)
        else:
            refused += 1
            with pytest.raises(RuntimeError, match=f"does not support `capturable`: {reason}"):
                cls([p], capturable=True)
    assert 0 < refused < len(batch)


def test_states_are_laid_out_like_their_parameter() -> None:
    checked = 0
    for seed in seeds(40):
        program = made(seed)
        given = problem(program, np.random.default_rng(seed), torch.float32)
        for way in (LOOP, FOREACH):
            compiled = Compiled(way, program, given)
            for step in range(len(given.grads)):
                compiled.step(step)
            tensors = compiled.tensors()
            for (key, group, index), tensor in tensors.items():
                if index is None:
                    continue
                p, before = tensors["p", group, index], given.params[group][index]
                assert p.stride() == before.stride()
                dense = before.numel() and before.stride() != before.contiguous().stride()
                dense = dense and before.untyped_storage().nbytes() == before.numel() * before.element_size()
                state = next((s for s in program.states if s.key == key), None)
                if state is not None and dense and state.type.is_element and state.delay is None:
                    assert tensor.stride() == p.stride()
                    checked += 1
    assert checked > 10


RATES = """optimizer Rates:
    hyper:
        lr = 0.1 in [0, inf)

    state:
        total [host] = 0

    step:
        total = total + lr
        p = p - total * g
"""


def test_parameters_that_took_other_steps_keep_their_own_host_states() -> None:
    """Two parameters have taken as many steps as each other, but at other learning rates."""
    g = torch.ones(3, dtype=torch.float64)
    steps: list[list[torch.Tensor | None]] = [[g, g], [g, None], [None, g], [g, g]]
    rates = {step: [rate] for step, rate in enumerate((0.1, 0.2, 0.4, 0.8))}
    params = [[torch.zeros_like(g), torch.zeros_like(g)]]
    given = Problem(g.dtype, params, [{}], [[grads] for grads in steps], rates)
    held(check_text(RATES).require(), 0, given, (LOOP, FOREACH, *CAPTURABLE))


# ---- the harness ------------------------------------------------------------------------------------------


def test_problems_have_sizes_that_vectors_do_not_divide_and_hostile_numbers() -> None:
    given = problem(made(0), np.random.default_rng(0), torch.float64, hostile=0.2)
    assert {p.numel() for group in given.params for p in group} >= {0, 1, 7, 31, 1023}
    found = torch.cat([g.ravel() for step in given.grads for group in step for g in group if g is not None])
    assert found.isnan().any()
    for number in HOSTILE:
        assert math.isnan(number) or (found == number).any()
    assert set(found[found == 0].signbit().tolist()) == {True, False}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_another_backend_is_held_to_the_interpreter(threads: int) -> None:
    """A class with `fused`, which counts threads: it passes, and one that is off by little does not."""
    program = check_path(next(path for path in SHIPPED if path.stem == "adamw")).require()
    given = problem(program, np.random.default_rng(0), torch.float32)
    usual, seen = torch.get_num_threads(), set()

    def fused_class(program: Program, off: float = 0.0) -> Any:
        class Fused(torch_class(program)):  # type: ignore[misc]
            def __init__(self, params: Any, fused: bool = False, maximize: bool = False) -> None:
                assert fused
                super().__init__(params, maximize=maximize)

            def step(self, closure: Any = None) -> None:
                seen.add(torch.get_num_threads())
                super().step(closure)
                for state in self.state.values():
                    state["exp_avg"] *= 1 + off

        return Fused

    flags = {"fused": True}
    right = Way("right", fused_class, flags, threads=threads)
    assert run(program, given, (right,), np.random.default_rng(0)).share > 0.99
    assert seen == {threads}
    assert torch.get_num_threads() == usual
    wrong = Way("wrong", lambda program: fused_class(program, 1e-5), flags, threads=threads)
    with pytest.raises(Mismatch, match="wrong, step 1: exp_avg of group 0"):
        run(program, given, (wrong,), np.random.default_rng(0))


# ---- autograd through the step ------------------------------------------------------------------------------


def after_two_steps(cls: Any, options: dict[str, Any], seed: int) -> torch.Tensor:
    """A number that depends on all parameters after two steps with fixed gradients."""
    rng = np.random.default_rng(seed)
    shapes = ((3, 4), (5,), ())
    params, grads, weights = (
        [torch.from_numpy(np.asarray(rng.normal(size=s))) for s in shapes] for _ in "pgw"
    )
    params = [p.requires_grad_().clone() for p in params]
    if "seed" in inspect.signature(cls).parameters:
        options = {**options, "seed": seed}
    optimizer = cls(params, differentiable=True, **options)
    for _ in range(2):
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return sum((w * p).sum() for w, p in zip(weights, params, strict=True))


@pytest.mark.parametrize("batch", batches(75), ids=lambda batch: str(batch.start))
def test_hypergradients(batch: range) -> None:
    """The slope of what two steps lead to by the learning rate, where it is smooth, against differences."""
    checked = 0
    for seed in batch:
        program = random_program(random.Random(seed), 8, TAME)
        cls = torch_class(program)
        options = arguments(program, np.random.default_rng(seed), tame=True)
        lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)

        def slope(h: float, cls: Any = cls, options: dict[str, Any] = options, seed: int = seed) -> float:
            sides = [after_two_steps(cls, {**options, "lr": 0.05 + x}, seed).item() for x in (h, -h)]
            return (sides[0] - sides[1]) / (2 * h)

        near, far = slope(1e-6), slope(1e-5)
        smooth = math.isfinite(near) and abs(near - far) <= 1e-5 * abs(near)
        if not smooth or abs(near) < 1e-6:
            continue
        loss = after_two_steps(cls, {**options, "lr": lr}, seed)
        (found,) = torch.autograd.grad(loss, lr)
        try:
            assert found.item() == pytest.approx(near, rel=1e-4)
        except AssertionError as error:
            error.add_note(f"seed {seed}, {options}\n{told(program)}")
            raise
        checked += 1
    assert checked > len(batch) / 3


# ---- shipped specs ------------------------------------------------------------------------------------------


def settings(program: Program) -> Iterator[dict[str, Any]]:
    """Weight decay and momentum switched on; every switch and choice changed; all of them at random."""
    base: dict[str, Any] = {}
    names = [hyper.argument for hyper in program.hypers]
    base |= {name: 0.05 for name in names if name in ("weight_decay", "weight_decouple_value")}
    base |= {name: 0.8 for name in names if name == "momentum"}
    yield {}
    yield base
    kinds = {Kind.BOOL: lambda h: (not h.default,), Kind.CHOICE: lambda h: h.choices}
    switches = [hyper for hyper in program.hypers if hyper.kind in kinds]
    for hyper in switches:
        for value in kinds[hyper.kind](hyper):
            yield {**base, hyper.argument: value}
    rng = random.Random(program.name)
    for _ in range(3 if switches else 0):
        some = {h.argument: rng.choice((h.default, *kinds[h.kind](h))) for h in switches}
        yield {**base, **some}


def with_settings(program: Program, options: dict[str, Any], dtype: torch.dtype, hostile: float) -> Problem:
    """The same settings in all groups, but for the learning rate."""
    rng = np.random.default_rng(zlib.crc32(f"{program.name}{options}".encode()))
    given = problem(program, rng, dtype, 8, hostile)
    rates = any(hyper.argument == "lr" for hyper in program.hypers)
    hypers = [{**options, **({"lr": lr} if rates else {})} for lr in (0.01, 0.1, 0.003)]
    return replace(given, hypers=hypers, rates={})


@pytest.mark.parametrize("path", FEW_PATHS, ids=lambda path: path.stem)
def test_shipped_specs(path: Path) -> None:
    """From the same place in every step: tame gradients and hostile ones, in three types."""
    program = check_path(path).require()
    tally = Tally()
    for options in settings(program):
        for dtype, hostile in ((torch.float64, 0.1), (torch.float32, 0.0), (torch.bfloat16, 0.0)):
            given = with_settings(program, options, dtype, hostile)
            ways = (LOOP, FOREACH, PARTS) if torch_class(program)._shards == "reduced" else (LOOP, FOREACH)
            tally += held(program, 0, given, ways)
    print(tally, tally.share)
    assert tally.share > 0.99, f"too little was checked: {tally}"


@pytest.mark.parametrize("path", FEW_PATHS, ids=lambda path: path.stem)
def test_shipped_specs_over_several_steps(path: Path) -> None:
    """Eight steps on their own, in float64: what is kept agrees to 1e-12."""
    program = check_path(path).require()
    for options in settings(program):
        given = with_settings(program, options, torch.float64, 0.0)
        for way in (LOOP, FOREACH, DIFFERENTIABLE):
            reference, compiled = Reference(program, given), Compiled(way, program, given)
            for step in range(len(given.grads)):
                reference.machine.step(reference.grads(step))
                compiled.step(step)
            wanted = values(reference.machine)
            for place, tensor in compiled.tensors().items():
                if place in wanted:
                    want = wanted[place]
                    error = np.abs(tensor.detach().double().numpy().ravel() - want) / np.maximum(
                        1, np.abs(want)
                    )
                    assert np.max(error, initial=0.0) <= 1e-12, (way.name, options, place)
