"""Shipped transforms as pieces of a genome that go around another one."""

from __future__ import annotations

import re
from functools import cache

from optdsl.check import check_text
from optdsl.core.record import record
from optdsl.ir.program import Hyper
from optdsl.lang.source import read_text
from optdsl.resources import data_dir
from optdsl.search.space.canonical import live
from optdsl.search.space.genome import Ref, Slot, Statement
from optdsl.search.space.starts import settle

#: Those that are short, and neither branch from step to step nor need more than a gradient.
NAMES = (
    "cautious", "clip_by_global_norm", "clip_by_value", "decoupled_decay", "grokfast", "l2_ball", "normalize",
    "optimistic", "prox_l1", "trust_ratio",
)  # fmt: skip
_FRONT = """import "lib/{file}.opt"

optimizer Inner:
    hyper:
        lr = 1e-3 in [0, inf)
    step:
        p = p - g

optimizer Around:
    use {name}()
    use Inner()
"""
# `u` stands for whatever an optimizer subtracts; as a state that changes, it is no number that is known
_BEHIND = """import "lib/{file}.opt"

optimizer Inner:
    hyper:
        lr = 1e-3 in [0, inf)
    state:
        u = 0
    step:
        p = p - u
        u = u + 1

optimizer Around:
    use Inner()
    use {name}()
"""


@record
class Around:
    """`value` is what a transform makes: of `g` if it stands in `front`, else of `p` and the update `u`."""

    hypers: tuple[Hyper, ...]
    states: tuple[Slot, ...]
    body: tuple[Statement, ...]
    value: Ref
    results: tuple[tuple[str, Ref], ...]
    front: bool


@cache
def transforms() -> tuple[Around, ...]:
    """Those of NAMES, in their order."""
    return tuple(map(transform, NAMES))


def transform(file: str) -> Around:
    """The transform of a file of the shipped library."""
    folder = data_dir("specs")
    text = read_text(folder / "lib" / f"{file}.opt")
    name = re.findall(r"^transform (\w+)", text, re.MULTILINE)[-1]
    front = re.search(r"^ +g = ", text, re.MULTILINE) is not None
    spec = (_FRONT if front else _BEHIND).format(file=file, name=name)
    genome = live(settle(check_text(spec, str(folder / "around.opt"), folder).require()))
    value = genome.leaves["p"]
    body, results = genome.body, tuple((n, r) for n, r in genome.results if n not in ("p", "u"))
    if front:
        last = next(s for s in body if s.name == value)
        assert (last.op, last.args[0]) == ("sub", "p"), f"{name} does more than change the gradient"
        value, body = last.args[1], tuple(s for s in body if s is not last)
    states = tuple(s for s in genome.states if s.name != "u")
    return Around(genome.hypers, states, body, value, results, front)
