"""Random programs, well typed by construction.

`random_program` makes a whole method. Its parts are the building blocks of mutations: `random_expr` makes an
expression of a wanted type from what is `Available`, `random_condition` something that an `if` can ask, and
`available_at` says what a statement of an existing program may read. All of them draw from the
`random.Random` they are given and from nothing else, so its seed determines the result.

`Weights` says how often each construct occurs. `TAME` makes methods whose numbers usually stay finite and do
not jump: operands are brought into the domain of their operator, and operators with steps or poles are left
out. `WILD` uses everything, hostile literals included.
"""

from optdsl.search.generate.expressions import (
    TAME,
    WILD,
    Available,
    Weights,
    available_at,
    pick,
    random_condition,
    random_expr,
)
from optdsl.search.generate.programs import random_program

__all__ = [
    "TAME",
    "WILD",
    "Available",
    "Weights",
    "available_at",
    "pick",
    "random_condition",
    "random_expr",
    "random_program",
]
