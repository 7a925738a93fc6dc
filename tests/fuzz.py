"""Random programs for tests: how many, which, on which numbers, and what is told when one of them fails.

OPTDSL_FUZZ multiplies the counts, OPTDSL_SEED moves to other seeds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from optdsl.core import types as ty
from optdsl.core.ops import FACTS
from optdsl.core.types import STATE_LEVELS, Kind, Type
from optdsl.ir.expr import Expr, var
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.program import Hyper, Program
from optdsl.ir.text import show
from optdsl.search.generate import TAME, WILD, Available, Weights, random_program

#: Numbers on which careless algebra goes wrong.
HOSTILE = (0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -1e-310, 1e30, -1e30, 1e-30, 1e300, 1.0, -1.0)
#: The shapes of the parameters, by group.
SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (((3, 4), (5,)), ((), (2, 3, 2), (0, 3)))
FEW_SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (((3, 4),), ((5,), ()))

Tree = dict[str, npt.NDArray[Any]]


def count(usual: int) -> int:
    """How many cases to try."""
    return max(1, int(usual * float(os.environ.get("OPTDSL_FUZZ", "1"))))


def shapes(seed: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """All shapes for some of the seeds, few for the others."""
    return SHAPES if seed % 4 == 0 else FEW_SHAPES


def seeds(usual: int) -> range:
    """The seeds to try."""
    first = int(os.environ.get("OPTDSL_SEED", "0")) * 1_000_000
    return range(first, first + count(usual))


def programs(usual: int, size: int = 12) -> Iterator[tuple[int, Program]]:
    """Random programs with their seeds: tame ones, wild ones, small ones, large ones."""
    for seed in seeds(usual):
        yield seed, program(seed, size)


def program(seed: int, size: int = 12) -> Program:
    """The random program of a seed."""
    rng = random.Random(seed)
    weights: Weights = (TAME, WILD)[seed % 2]
    return random_program(rng, rng.choice((size // 3, size, size, 2 * size)), weights, lists=seed % 5 == 4)


@contextmanager
def about(seed: int, *programs: Program) -> Iterator[None]:
    """Adds the seed and the programs to whatever fails inside."""
    try:
        yield
    except Exception as error:
        error.add_note(f"seed {seed}")
        for each in programs:
            error.add_note(show(each))
        raise


def everything(**changes: object) -> Available:
    """One value of each place a state can have, two host numbers, a flag, a choice, and the facts."""
    values: list[Expr] = [var("p", ty.element()), var("g", ty.element())]
    values += [var(name, ty.host(kind)) for name, kind in FACTS.items()]
    values += [var("lr", ty.host()), var("k", ty.host(Kind.INT)), var("flag", ty.host(Kind.BOOL))]
    values += [var("mode", ty.host(Kind.CHOICE)), var("values", ty.host(Kind.LIST))]
    for name, place in STATE_LEVELS.items():
        values.append(var("s_" + name.replace(", ", "_"), Type(Kind.FLOAT, *place)))
    return replace(Available(values, [], {"mode": ("a", "b")}), **changes)  # type: ignore[arg-type]


def hostile(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """An array of ordinary numbers and hostile ones."""
    ordinary = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3, size=shape)
    return np.where(rng.random(shape) < 0.4, rng.choice(HOSTILE, size=shape), ordinary)


def ordinary(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """An array of ordinary numbers."""
    return rng.normal(size=shape)


def arguments(rng: np.random.Generator, program: Program) -> dict[str, Any]:
    """Constructor arguments that a user might give, so that a program takes other branches."""
    given: dict[str, Any] = {}
    for argument in dict.fromkeys(hyper.argument for hyper in program.hypers):
        if rng.random() < 0.5:
            values = [_setting(rng, hyper) for hyper in program.hypers if hyper.argument == argument]
            is_tuple = any(hyper.is_part for hyper in program.hypers if hyper.argument == argument)
            given[argument] = tuple(values) if is_tuple else values[0]
    return given


def _setting(rng: np.random.Generator, hyper: Hyper) -> Any:
    if hyper.kind is Kind.CHOICE:
        return str(rng.choice(hyper.choices))
    if hyper.kind is Kind.BOOL:
        return bool(rng.integers(2))
    if isinstance(hyper.default, tuple):
        one = replace(hyper, kind=hyper.number_kind, default=hyper.default[0])
        return [_setting(rng, one) for _ in range(rng.integers(1, 5))]
    candidates = [0, 1, 2, 3, 7] if hyper.kind is Kind.INT else [0.0, 0.01, 0.5, 0.9, 1.0, 2.0]
    fitting = [c for c in candidates if hyper.interval is None or c in hyper.interval]
    return fitting[rng.integers(len(fitting))]


def run(
    program: Program,
    seed: int,
    numbers: Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[np.float64]] = ordinary,
    steps: int = 3,
    dtype: npt.DTypeLike = np.float64,
    perturb: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
    shapes: Sequence[Sequence[tuple[int, ...]]] = SHAPES,
) -> list[Tree]:
    """What `program` leaves behind after each step: parameters and states, by name.

    The numbers depend on the seed and on the declarations of the program only, not on its step. One parameter
    joins late, so that steps differ within a group.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for index, group in enumerate(shapes):
        given = arguments(rng, program) if index else {}
        groups.append(Group([numbers(rng, shape) for shape in group], given))
    interpreter = Interpreter(program, groups, dtype, seed % 1000, perturb)
    left = []
    for step in range(steps):
        grads: list[list[npt.NDArray[np.float64] | None]] = []
        for group in shapes:
            grads.append([numbers(rng, shape) for shape in group])
        if step == 0 and len(grads[-1]) > 1:
            grads[-1][0] = None
        given = [[None if g is None else np.flip(g) for g in group] for group in grads]
        interpreter.step(grads, {s.key: given if s.type.is_element else rng.normal() for s in program.inputs})
        left.append(_snapshot(interpreter))
    return left


def _snapshot(interpreter: Interpreter) -> Tree:
    found: Tree = {}
    for group, params in enumerate(interpreter.params):
        for key, value in interpreter.group_states[group].items():
            found[f"{key} of group {group}"] = np.array(value)
        for number, p in enumerate(params):
            found[f"p {group}.{number}"] = np.array(p)
            for key, value in interpreter.states[group][number].items():
                found[f"{key} {group}.{number}"] = np.array(value)
    return found


def same_bits(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Equal to the last bit, signs of zeros included; every nan is the same."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    nan = np.isnan(a)
    return bool((nan == np.isnan(b)).all() and ((a == b) & (np.signbit(a) == np.signbit(b)) | nan).all())


def assert_same_bits(a: Sequence[Tree], b: Sequence[Tree]) -> None:
    """Two runs agree in every bit."""
    for step, (left, right) in enumerate(zip(a, b, strict=True), 1):
        assert left.keys() == right.keys(), f"step {step} leaves other states: {left.keys() ^ right.keys()}"
        for name in left:
            assert same_bits(left[name], right[name]), (
                f"{name} differs after step {step}:\n{left[name]!r}\n{right[name]!r}"
            )


def perturbation(
    seed: int, dtype: npt.DTypeLike, ulps: float = 4.0
) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """A hook for the interpreter that changes every result by up to `ulps` units in the last place, and one
    that has few bits left by a unit of these.
    """
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    eps, tiny = float(info.eps) * ulps, float(info.smallest_subnormal)

    def perturb(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        moved = x * (1 + eps * rng.uniform(-1, 1, x.shape))
        few = (x != 0) & (np.abs(x) < info.tiny)
        return np.where(few, moved + tiny * rng.integers(-1, 2, x.shape), moved)

    return perturb


def spread(program: Program, seed: int, times: int = 4, **options: Any) -> list[Tree]:
    """How far the results of `run` move when every operation rounds differently; nan where that is not known:
    where a result is nan or infinite in any of the runs.
    """
    dtype = options.get("dtype", np.float64)
    base = run(program, seed, **options)
    others = [run(program, seed, perturb=perturbation(seed + k, dtype), **options) for k in range(times)]
    found = []
    with np.errstate(all="ignore"):
        for step, tree in enumerate(base):
            moved: Tree = {}
            for name, value in tree.items():
                far = np.max([np.abs(other[step][name] - value) for other in others], axis=0)
                moved[name] = np.where(np.isfinite(value), far, np.nan)
            found.append(moved)
    return found


def assert_agree(a: Sequence[Tree], b: Sequence[Tree], spreads: Sequence[Tree], factor: float = 30.0) -> None:
    """Two runs agree up to rounding: to some times the spread, plus some units in the last place."""
    with np.errstate(all="ignore"):
        for step, (left, right, moved) in enumerate(zip(a, b, spreads, strict=True), 1):
            assert left.keys() == right.keys(), (
                f"step {step} leaves other states: {left.keys() ^ right.keys()}"
            )
            for name, value in left.items():
                if value.dtype.kind != "f":
                    continue
                info = np.finfo(value.dtype)
                allowed = factor * (moved[name] + info.eps * np.abs(value) + info.tiny)
                wrong = ~(np.abs(right[name] - value) <= allowed) & np.isfinite(moved[name])
                shown = f"{value!r}\n{right[name]!r}"
                assert not wrong.any(), (
                    f"{name} differs after step {step} by more than {allowed[wrong]}:\n{shown}"
                )
