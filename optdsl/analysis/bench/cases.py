"""What is stepped: lists of tensors as models have them, and lists that show one cost alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from optdsl.core.record import record
from optdsl.lang.diagnostics import nearest

Shape = tuple[int, ...]


@record
class Case:
    """A list of tensors.

    With `new_gradients` every gradient is a new tensor in every step, as `zero_grad(set_to_none=True)` leaves
    them; otherwise the gradients stay the same tensors.
    """

    name: str
    what: str
    shapes: tuple[Shape, ...]
    new_gradients: bool = False

    @property
    def elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(map(math.prod, self.shapes))

    @property
    def label(self) -> str:
        """The name, and what is special about the gradients."""
        return f"{self.name}, new gradients" if self.new_gradients else self.name


def _gpt2() -> tuple[Shape, ...]:
    """Parameters of GPT-2 small, in the order of the model."""
    wide = 768
    norm: tuple[Shape, ...] = ((wide,), (wide,))
    layer: tuple[Shape, ...] = (
        *norm,
        *((wide, 3 * wide), (3 * wide,), (wide, wide), (wide,)),
        *norm,
        *((wide, 4 * wide), (4 * wide,), (4 * wide, wide), (wide,)),
    )
    return ((50257, wide), (1024, wide), *(layer * 12), *norm)


CASES = {
    case.name: case
    for case in (
        Case("10m", "one tensor of 10M", ((10_000_000,),)),
        Case("gpt2", "GPT-2 small, 124M in 148 tensors", _gpt2()),
        Case("small", "1000 tensors of 1000", ((1000,),) * 1000),
        Case("one", "one tensor of 1", ((1,),)),
        Case("many", "1000 tensors of 1", ((1,),) * 1000),
    )
}
#: For tests of the harness; not listed anywhere.
HIDDEN = {"tiny": Case("tiny", "3 tensors of 10", ((10,),) * 3)}
#: Also measured with new gradients.
BOTH_GRADIENTS = ("small", "many")


def find(names: Iterable[str]) -> tuple[Case, ...]:
    """The cases of these names, each once; `all` means all. Raises ValueError for an unknown name."""
    found: dict[Case, None] = {}
    for name in names:
        if name != "all" and name not in CASES | HIDDEN:
            help = nearest(name, [*CASES, "all"]) or f"there are {', '.join(CASES)} and all"
            raise ValueError(f"there is no case `{name}`; {help}")
        for case in CASES.values() if name == "all" else [(CASES | HIDDEN)[name]]:
            found[case] = None
            if case.name in BOTH_GRADIENTS:
                found[replace(case, new_gradients=True)] = None
    return tuple(found)


__all__ = ["CASES", "Case", "Shape", "find"]
