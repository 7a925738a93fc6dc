"""Random genomes and changes: well typed, within bounds, reproducible, and each kind does what it is called."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from optdsl.compose import composed
from optdsl.core.types import Kind
from optdsl.driver import shipped_specs
from optdsl.ir.program import Hyper, Interval
from optdsl.ir.verify import verify
from optdsl.search.space import (
    CHANGES,
    Bounds,
    Genome,
    Space,
    digest,
    effect,
    express,
    live,
    settle,
    tunable,
    typed,
)
from optdsl.search.space.draft import Draft, moved
from optdsl.search.space.transforms import NAMES, transform, transforms
from tests import fuzz
from tests.search.genomes import WIDE, small, spec, walk


def test_children_are_well_typed_and_within_bounds() -> None:
    bounds = Bounds(statements=20, states=2, bytes=8)
    for seed in fuzz.seeds(4):
        for parent, child in walk(seed, 50, bounds):
            with fuzz.about(seed, verify(express(child))):
                assert bounds.excess(child) is None
                assert live(child) == child
                for h in child.hypers:
                    assert h.interval is None or h.default in h.interval
                assert child != parent


def test_nearly_every_change_is_well_typed_at_once() -> None:
    space = Space(Bounds(), small())
    rng = Random(11)
    genomes = list(space.starts)
    for _ in range(fuzz.count(800)):
        genomes.append(space.mutate(rng, rng.choice(genomes[-60:])))
    tried, faults = sum(space.tried.values()), sum(space.faults.values())
    assert tried > fuzz.count(800)
    assert faults <= 2 + 0.001 * tried, space.faults
    assert set(space.tried) == set(CHANGES)


@pytest.mark.parametrize("kind", CHANGES)
def test_every_kind_of_change_changes_something(kind: str) -> None:
    made = 0
    for seed in range(60):
        rng = Random(seed)
        genome = rng.choice(small())
        draft = Draft(rng, genome)
        if not draft.change(kind):
            continue
        child = draft.genome()
        typed(child)
        made += digest(live(child)) != digest(genome)
        sizes = [len(live(g).body) for g in (genome, child)]
        match kind:
            case "delete":
                assert len(child.body) == len(genome.body) - 1
            case "insert" | "mask" | "nesterov":
                assert len(child.body) > len(genome.body)
            case "operator" | "argument" | "swap" | "constant":
                assert len(child.body) == len(genome.body)
            case "add_state":
                assert len(child.states) == len(genome.states) + 1
            case "drop_state":
                assert len(child.states) == len(genome.states) - 1
            case "clip" | "wrap":
                assert sizes[1] != sizes[0] or made == 0 or kind == "wrap"
        if kind == "constant":
            assert [s.args for s in child.body] == [s.args for s in genome.body]
    assert made >= 10


def test_as_much_is_taken_away_as_is_added() -> None:
    assert CHANGES["delete"] >= CHANGES["insert"]
    assert CHANGES["drop_state"] >= CHANGES["add_state"]


def test_numbers_of_changes_are_geometric() -> None:
    space = Space(Bounds(), small(), weights={"constant": 1.0})
    counts: Counter[int] = Counter()
    before = 0
    rng = Random(4)
    for _ in range(2000):
        space.mutate(rng, space.starts[0])
        now = space.tried["constant"]
        counts[now - before] += 1
        before = now
    total = sum(counts.values())
    assert counts[1] / total == pytest.approx(0.7, abs=0.05)
    assert counts[2] / total == pytest.approx(0.21, abs=0.04)
    assert counts[3] / total == pytest.approx(0.063, abs=0.03)


def test_constants_move_by_factors_within_their_intervals() -> None:
    rng = Random(8)
    share = Hyper("beta", "beta", Kind.FLOAT, 0.999, Interval(0.0, 1.0, high_open=True))
    found = np.array([float(moved(rng, share).default) for _ in range(4000)])
    assert ((found >= 0) & (found < 1)).all()
    factors = np.log2((1 - found) / 0.001)
    assert np.mean(factors) == pytest.approx(0, abs=0.06)
    assert np.std(factors) == pytest.approx(1, abs=0.06)
    free = Hyper("c0", "c0", Kind.FLOAT, -3.0)
    found = np.array([float(moved(rng, free).default) for _ in range(4000)])
    assert (found < 0).all()
    assert np.std(np.log2(found / -3)) == pytest.approx(1, abs=0.06)
    assert float(moved(rng, Hyper("z", "z", Kind.FLOAT, 0.0, Interval(0.0, 1.0))).default) > 0
    whole = Hyper("k", "k", Kind.INT, 5, Interval(1, 8))
    assert {moved(rng, whole).default for _ in range(300)} <= set(range(1, 9))


def test_the_same_seed_gives_the_same_children() -> None:
    def children() -> list[Genome]:
        return [child for _, child in walk(21, 40)]

    assert children() == children()


def test_random_genomes_of_the_generator() -> None:
    space = Space(Bounds(), ())
    for seed in fuzz.seeds(40):
        genome = space.random(Random(seed))
        with fuzz.about(seed, verify(express(genome))):
            assert space.bounds.excess(genome) is None
            assert genome == space.random(Random(seed))
            assert {h.name for h in genome.hypers} >= {"lr"}
    assert space.random(Random(0)) != space.random(Random(1))


def test_random_genomes_of_starts() -> None:
    space = Space(Bounds(), small("adamw", "lion"))
    assert {space.random(Random(seed)) for seed in range(20)} == set(space.starts)


def test_a_start_beyond_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="start 1 has more than 4 bytes of states per parameter"):
        Space(Bounds(bytes=4), small("lion", "adamw"))
    tight = Space(Bounds(statements=5, states=1, bytes=4), small("sgd"))
    for seed in range(30):
        assert tight.bounds.excess(tight.mutate(Random(seed), tight.starts[0])) is None


def test_literals_become_hyperparameters() -> None:
    genome = tunable(spec("p = p - lr * clip(g, -0.3, 0.7) * 2.0", state=""))
    assert [h.default for h in genome.hypers] == [1e-3, -0.3, 0.7]
    assert all(isinstance(a, str) or a in (2.0,) for s in genome.body for a in s.args)
    typed(genome)


# ---- crossing ---------------------------------------------------------------------------------------------


def test_crossing_brings_something_of_the_other() -> None:
    adamw, lion, *_ = small()
    space = Space(Bounds(statements=40), (adamw, lion))
    children = [space.cross(Random(seed), lion, adamw) for seed in range(40)]
    for child in children:
        typed(child)
    operators = {s.op for child in children for s in child.body}
    assert {"sqrt", "pow", "sign"} <= operators
    assert any({"m", "s0"} <= {s.name for s in c.states} or len(c.states) > 1 for c in children)
    assert len({digest(c) for c in children}) > 15


def test_what_both_have_is_there_once() -> None:
    (adamw,) = small("adamw")
    draft = Draft(Random(2), adamw)
    assert draft.graft(adamw)
    whole = draft.genome()
    assert len(whole.states) == 4
    assert len(live(whole).states) == 2, "averages that are alike are one"


# ---- transforms -------------------------------------------------------------------------------------------


def wrapped(genome: Genome, name: str) -> Genome:
    draft = Draft(Random(0), genome)
    around = transform(name)
    assert draft.fronted(around) if around.front else draft.behind(around)
    made = draft.genome()
    typed(made)
    return live(made)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inner", ["adamw", "lion", "heavy_ball"])
def test_wrapping_is_composition(name: str, inner: str) -> None:
    _, checked = composed(Path(shipped_specs()[inner]), [name])
    theirs = live(settle(checked.require()))
    ours = wrapped(small(inner)[0], name)
    assert effect(ours).same(effect(theirs)), f"{ours}\n\n{theirs}"


def test_transforms_come_with_the_space() -> None:
    assert len(transforms()) == len(NAMES)
    space = Space(WIDE, small("adamw"), weights={"wrap": 1.0}, more=0.0)
    found = {digest(space.mutate(Random(seed), space.starts[0])) for seed in range(60)}
    assert len(found) == len(NAMES)


def test_hyperparameters_of_another_kind_of_name_stay_apart() -> None:
    """A transform whose `weight_decay` is another number than that of the method gets one of its own."""
    (adamw,) = small("adamw")
    other = replace(
        adamw, hypers=tuple(replace(h, default=0.5) if h.name == "weight_decay" else h for h in adamw.hypers)
    )
    made = wrapped(other, "decoupled_decay")
    decays = [
        h.default for h in made.hypers if h.default in (0.5, transform("decoupled_decay").hypers[-1].default)
    ]
    assert len(decays) == 2
