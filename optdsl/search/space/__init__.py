"""What a search moves in: methods as genomes, random ones and changes to them, and what is known without training.

    starts = [start("adamw"), start("lion")]
    space = Space(Bounds(states=2, bytes=8), starts)
    child = space.mutate(rng, space.random(rng))
    found = Sieve(space.bounds).sift(child)   # found.reason: why not; found.known: one seen before with this effect
    program = express(found.genome)           # typed, branch-free; its hyperparameters can be tuned
    text = to_spec(found.genome, "Found", "What it does.")

Everything random is drawn from the `random.Random` that is given, and depends on nothing else.
"""

from optdsl.search.space.analyse import REASONS, Analysis, Effect, Sieve, analyse, effect, stress
from optdsl.search.space.canonical import digest, live, structure
from optdsl.search.space.draft import tunable
from optdsl.search.space.genome import Fault, Genome, Refused, Slot, Statement, express, of_program, typed
from optdsl.search.space.mutate import CHANGES, Bounds, Space
from optdsl.search.space.spec import to_spec
from optdsl.search.space.starts import Starts, settle, shipped, start

__all__ = [
    "CHANGES", "REASONS", "Analysis", "Bounds", "Effect", "Fault", "Genome", "Refused", "Sieve", "Slot", "Space",
    "Starts", "Statement", "analyse", "digest", "effect", "express", "live", "of_program", "settle", "shipped",
    "start", "stress", "structure", "to_spec", "tunable", "typed",
]  # fmt: skip
