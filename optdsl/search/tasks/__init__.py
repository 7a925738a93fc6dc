"""The tasks that rules are tried on: nine families at two sizes, each in one of three splits."""

from __future__ import annotations

from optdsl.search.tasks.base import SIZES, SPLITS, Task, of
from optdsl.search.tasks.generated import DeepLinear, Factorisation, Regression, Zipf
from optdsl.search.tasks.supervised import Autoencoder, DigitsConv, DigitsMLP, Logistic, Transformer

#: The families by name.
FAMILIES: dict[str, type[Task]] = {
    kind.family: kind
    for kind in (
        *(DigitsMLP, Regression, Factorisation, Autoencoder),
        *(Logistic, DeepLinear),
        *(DigitsConv, Transformer, Zipf),
    )
}


def task(name: str) -> Task:
    """The task `FAMILY/SIZE`. Raises ValueError."""
    family, _, size = name.partition("/")
    if family not in FAMILIES:
        raise ValueError(f"there is no task `{family}`: {', '.join(FAMILIES)}")
    return of(FAMILIES[family], size or SIZES[0])


def names(split: str | None = None, size: str | None = None) -> list[str]:
    """Names of all tasks, or those of a split and of a size. Raises ValueError."""
    if split not in (None, *SPLITS) or size not in (None, *SIZES):
        raise ValueError(f"splits are {', '.join(SPLITS)}, sizes {', '.join(SIZES)}")
    sizes = SIZES if size is None else (size,)
    return [f"{name}/{s}" for name, kind in FAMILIES.items() if split in (None, kind.split) for s in sizes]


__all__ = ["FAMILIES", "SIZES", "SPLITS", "Task", "names", "task"]
