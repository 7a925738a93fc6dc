"""What tests of a search share: genomes of shipped methods, random ones, and specs as genomes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random

import numpy as np
import numpy.typing as npt

from optdsl.check import check_text
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.program import Program
from optdsl.search.space import Bounds, Genome, Space, Starts, live, settle, shipped, start
from optdsl.search.space.probe import Probes

#: Room for every method that the tests start from.
WIDE = Bounds(400, 10, 40, ("tensor", "rows", "cols", "group", "all", "element"))


@cache
def starts() -> Starts:
    """The shipped methods as genomes."""
    return shipped()


@cache
def small(*names: str) -> tuple[Genome, ...]:
    """The live genomes of some shipped methods."""
    return tuple(live(start(n)) for n in names or ("adamw", "lion", "heavy_ball", "rmsprop", "sgd"))


def spec(step: str, state: str = "m = 0", hyper: str = "") -> Genome:
    """The genome of an optimizer with this step, these states and, beside `lr`, these hyperparameters."""

    def lines(text: str) -> str:
        return "\n".join(f"        {line.strip()}" for line in text.strip().split("\n") if line.strip())

    parts = [f"    hyper:\n        lr = 1e-3 in [0, inf)\n{lines(hyper)}"]
    parts += [f"    state:\n{lines(state)}"] if state else []
    text = "optimizer Tried:\n" + "\n\n".join([*parts, f"    step:\n{lines(step)}"]) + "\n"
    return settle(check_text(text, "tried.opt").require())


def walk(
    seed: int, count: int, bounds: Bounds | None = None, pool: int = 60
) -> Iterator[tuple[Genome, Genome]]:
    """Pairs of a genome and a child of it, away from a few shipped methods."""
    rng = Random(seed)
    space = Space(bounds or Bounds(), small())
    genomes = list(space.starts)
    for _ in range(count):
        parent = rng.choice(genomes)
        child = (
            space.cross(rng, parent, rng.choice(genomes))
            if rng.random() < 0.15
            else space.mutate(rng, parent)
        )
        yield parent, child
        genomes.append(child)
        if len(genomes) > pool:
            genomes.pop(rng.randrange(pool))


def probes(seed: int, count: int = 3, steps: int = 5, lr: float | None = None) -> Probes:
    """Probes unlike those of the product. Parameters are positive, as a few methods ask for."""
    rng = np.random.default_rng(seed)
    shape = (count, 2, 3, 4)
    scale = 10 ** rng.uniform(-2, 1, (count, 1, 1, 1))
    rates = 10 ** rng.uniform(-3, -1, (count, 1, 1, 1)) if lr is None else lr
    return Probes(rng.uniform(0.1, 1.0, shape), scale * rng.normal(size=(steps, *shape)), rates)


def interpreted(program: Program, given: Probes, probe: int) -> npt.NDArray[np.float64]:
    """The parameters after each step of one probe, by the interpreter: (steps, 2, rows, cols)."""
    lr = given.lr if isinstance(given.lr, float) else float(given.lr[probe].item())
    machine = Interpreter(program, [Group(list(given.p[probe]), {"lr": lr})])
    found = []
    for g in given.g:
        machine.step([list(g[probe])])
        found.append(np.stack(machine.params[0]))
    return np.stack(found)
