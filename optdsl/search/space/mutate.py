"""Random genomes, and small changes to genomes: what a search moves in.

Every child is well typed, and within `Bounds`, before it is returned. Most changes are so by construction: a value is
replaced by one of the same level and shape, a new operator takes the place of one of its operands. All of them draw
from the `random.Random` they are given and from nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from optdsl.core.record import field, record
from optdsl.search.generate import pick, random_program
from optdsl.search.space.canonical import live
from optdsl.search.space.draft import SMALL, Draft, tunable
from optdsl.search.space.genome import Fault, Genome, Refused, of_program, typed


@record
class Bounds:
    """How large a genome may become: live statements, states, and bytes of states per parameter (in float32).

    `overs` says where its reductions may end, and values be spread to.
    """

    statements: int = 40
    states: int = 3
    bytes: int = 12
    overs: tuple[str, ...] = ("tensor", "group", "all", "element")

    def excess(self, genome: Genome) -> str | None:
        """What there is too much of, or None."""
        if len(genome.body) > self.statements:
            return "statements"
        if len(genome.states) > self.states:
            return "states"
        if genome.bytes_per_parameter() > self.bytes:
            return "bytes"
        overs = {s.over for s in genome.body} | {s.level for s in genome.states} - {"host"}
        return "levels" if not overs <= {None, *self.overs} else None

    def limit(self, excess: str) -> str:
        """What a genome has that has too much of something."""
        return {
            "statements": f"more than {self.statements} statements",
            "states": f"more than {self.states} states",
            "bytes": f"more than {self.bytes} bytes of states per parameter",
            "levels": "states or reductions other than over " + ", ".join(self.overs),
        }[excess]


#: How often each kind of change is made. As much is taken away as is added.
CHANGES: dict[str, float] = {
    "insert": 1.0,
    "delete": 1.3,
    "rewrite": 0.4,
    "operator": 0.6,
    "argument": 1.2,
    "constant": 1.0,
    "swap": 0.4,
    "add_state": 0.3,
    "drop_state": 0.3,
    "mask": 0.15,
    "nesterov": 0.15,
    "clip": 0.15,
    "wrap": 0.2,
}


@record
class Space:
    """The genomes within `bounds` that can be reached from `starts`, of which only the live parts count.

    `weights` are of the kinds of changes, `more` is the chance that one more change follows a change.
    `tried` counts changes made, `faults` those that were not well typed and were drawn anew. Raises ValueError for a
    start that is not within the bounds.
    """

    bounds: Bounds = Bounds()
    starts: Sequence[Genome] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: CHANGES)
    more: float = 0.3
    tried: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Looks at the starts, whose constants become hyperparameters."""
        starts = tuple(live(tunable(genome)) for genome in self.starts)
        for number, genome in enumerate(starts):
            if excess := self.bounds.excess(genome):
                raise ValueError(f"start {number} has {self.bounds.limit(excess)}")
        object.__setattr__(self, "starts", starts)

    def random(self, rng: Random) -> Genome:
        """A genome: one of the starts, or a program of the generator that the tests use where there are none."""
        if self.starts:
            return rng.choice(self.starts)
        while True:
            program = random_program(rng, rng.randrange(3, 8), replace(SMALL, truth=0.0, coarse_p=0.0))
            try:
                made = live(tunable(of_program(program)))
            except Refused:
                continue  # a state that begins with an expression
            if not self.bounds.excess(made) and "g" in {a for s in made.body for a in s.args}:
                return made

    def mutate(self, rng: Random, genome: Genome) -> Genome:
        """A child with 1 + geometric(`more`) changes. It is live, well typed and within the bounds.

        Where a hundred tries bring none, as next to bounds that leave no room, it is `genome` itself.
        """
        return self.child(rng, genome)[0]

    def child(self, rng: Random, genome: Genome) -> tuple[Genome, tuple[str, ...]]:
        """As `mutate`, with the kinds of changes that were made."""
        for _ in range(100):
            count = 1
            while rng.random() < self.more:
                count += 1
            child, kinds = genome, list[str]()
            for _ in range(count):
                child, kind = self.changed(rng, child)
                kinds += [kind] if kind else []
            child = live(child)
            if self.bounds.excess(child) is None and child != genome:
                return child, tuple(kinds)
        return genome, ()

    def changed(self, rng: Random, genome: Genome) -> tuple[Genome, str | None]:
        """`genome` after one change, and its kind; None where fifty tries have brought none."""
        for _ in range(50):
            kind = pick(rng, self.weights)
            draft = Draft(rng, genome)
            if not draft.change(kind):
                continue
            made = draft.genome()
            self.tried[kind] += 1
            try:
                typed(made)
            except Fault:
                self.faults[kind] += 1
                continue
            return made, kind
        return genome, None

    def cross(self, rng: Random, a: Genome, b: Genome) -> Genome:
        """`a` with some value of `b` in it, and with some of the constants of `b` where both have them."""
        for _ in range(50):
            draft = Draft(rng, a)
            if not draft.graft(b):
                continue
            made = draft.genome()
            self.tried["cross"] += 1
            try:
                typed(made)
            except Fault:
                self.faults["cross"] += 1
                continue
            child = live(made)
            if self.bounds.excess(child) is None and child != a:
                return child
        return a
