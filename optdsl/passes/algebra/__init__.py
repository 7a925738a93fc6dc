"""Algebra on bloated expressions: sympy proposes, the cost and an accuracy check decide.

What a person wrote stays as it is. An expression is looked at only when a cheap test without sympy finds it
*bloated* (`bloat`): like terms, factors that cancel or pile up, literals that could merge, functions that undo each
other; expressions written for a paper hardly ever are, while evolved ones often are. Then

1. sympy rewrites the bloated nodes, in the few ways that end soon (`proposer`);
2. what it proposes must be cheaper on the device (`optdsl.passes.cost`);
3. it must be as accurate as the original (`judge`) on hostile inputs: computed in float32, operation by
   operation, its error is at most that of the original plus 2 ulp in every sample, and it is nan or infinite
   in the same way.

All but the cheap test is imported for a bloated program only.
"""

from __future__ import annotations

import time

from optdsl.ir.program import Program
from optdsl.passes.algebra.bloat import is_bloated

__all__ = ["improve"]


def improve(
    program: Program, budget_s: float = 2.0, max_nodes: int = 200, *, finite_only: bool = False
) -> Program:
    """`program` with bloated expressions replaced by cheaper and equally accurate ones, or `program` itself.

    Expressions of more than `max_nodes` nodes are taken in parts. `budget_s` is the time for all of them
    together, the import of sympy aside; a proposal under way is not interrupted, but the sizes of what sympy
    is asked are bounded. The outcome depends on the time only when the budget runs out. With `finite_only`
    nothing is asked where a value that an expression starts from is infinite or nan, and the sign of a zero
    may change; the search uses it, where such a step is lost anyway.
    """
    deadline = time.monotonic() + budget_s
    if not is_bloated(program, max_nodes):
        return program
    before = time.monotonic()
    from optdsl.passes.algebra.improver import Improver

    deadline += time.monotonic() - before  # the import is not counted
    return Improver(program, deadline, max_nodes, finite_only).run()
