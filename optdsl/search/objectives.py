"""What a search makes small: the loss, the bytes of a rule's states, the bytes that a step of it moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

#: All there are; those of a search are in the order of their importance.
OBJECTIVES = LOSS, STATES, MOVED = "loss", "state-bytes", "step-bytes"
#: More loss by so much, in logarithms, is no worse if it is for something: fewer bytes, or fewer lines of a winner.
TOLERATED = 0.005

Costs = tuple[float, ...]
T = TypeVar("T")


def check(objectives: Sequence[str]) -> None:
    """Raises ValueError for what no search can have."""
    if unknown := [name for name in objectives if name not in OBJECTIVES]:
        raise ValueError(f"there is no objective `{unknown[0]}`: {', '.join(OBJECTIVES)}")
    if LOSS not in objectives or len(set(objectives)) < len(objectives):
        raise ValueError(
            f"objectives are `{LOSS}` and what else there is, each once: without it a rule that does nothing is best"
        )


def costs(objectives: Sequence[str], score: float, states: float, moved: float | None) -> Costs:
    """What of a rule is to be small, in the order of the objectives: its score, which is a mean log ratio of losses,
    and bytes per parameter. What is not known to be moved is too much.
    """
    found = {LOSS: score, STATES: states, MOVED: math.inf if moved is None else moved}
    return tuple(found[name] for name in objectives)


def beats(one: Costs, other: Costs) -> bool:
    """Whether one is worse in nothing, and better in something."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def undominated(items: Iterable[T], cost: Callable[[T], Costs]) -> list[T]:
    """Those that no other one beats, the smallest costs first; of several that cost the same, the first."""
    found: list[tuple[Costs, T]] = []
    for item in sorted(items, key=cost):
        mine = cost(item)
        if not any(other == mine or beats(other, mine) for other, _ in found):
            found.append((mine, item))
    return [item for _, item in found]


def better(objectives: Sequence[str], rule: Costs, start: Costs) -> bool:
    """Whether a rule is better than the start: in loss, or in bytes where its loss is no worse."""
    at = objectives.index(LOSS)
    score = rule[at] - start[at]
    saved = beats(rule[:at] + rule[at + 1 :], start[:at] + start[at + 1 :])
    return score < 0 or (saved and score <= TOLERATED)
