"""Levels, symbolic shapes and types.

Every value lives at the coarsest *level* at which it can be known:

    const < host < group < tensor < rows / cols < element

`rows`, `cols`, `element` and matrices are all *arrays*; they differ only in their symbolic shape, a pair of
dimensions drawn from 1, R and C, where a parameter tensor is seen as a matrix of R = first dimension by
C = the rest. Broadcasting is numpy's, on these symbols.

A *family*, one square matrix for each axis of the tensor as Shampoo has it, is an array too: A = the sum of the
squares of all dimensions, by 1. It meets numbers and other families only.
"""

from __future__ import annotations

from enum import Enum, IntEnum

from optdsl.core.record import record


class Kind(Enum):
    """What a value is made of. `CHOICE` is a string known when the step is built, `LIST` as many numbers as the user
    lists.
    """

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    CHOICE = "choice"
    LIST = "list"

    @property
    def numeric(self) -> bool:
        """True for int and float."""
        return self in (Kind.INT, Kind.FLOAT)

    @property
    def computed(self) -> bool:
        """True for what a step can compute and keep: a choice is compared, a list is asked for its entries."""
        return self not in (Kind.CHOICE, Kind.LIST)


class Level(IntEnum):
    """Where a value can be computed; a coarser value broadcasts into a finer one."""

    CONST = 0
    HOST = 1
    GROUP = 2
    TENSOR = 3
    ARRAY = 4


class Dim(Enum):
    """One symbolic dimension: a single entry, R (first dimension), C (product of the rest), or A (sum of squares)."""

    ONE = "1"
    R = "rows"
    C = "cols"
    A = "axes"


Shape = tuple[Dim, Dim]
SCALAR: Shape = (Dim.ONE, Dim.ONE)
ROWS: Shape = (Dim.R, Dim.ONE)
COLS: Shape = (Dim.ONE, Dim.C)
ELEMENT: Shape = (Dim.R, Dim.C)
AXES: Shape = (Dim.A, Dim.ONE)


class ShapeError(ValueError):
    """Two shapes do not broadcast or multiply."""


@record
class Type:
    """Kind, level and shape of a value. Invariant: shape is SCALAR exactly when level < ARRAY."""

    kind: Kind
    level: Level
    shape: Shape = SCALAR

    @property
    def level_name(self) -> str:
        """The level as the language writes it: `host`, `tensor`, `rows`, `element`, `rows, rows`..."""
        return level_name(self.level, self.shape)

    @property
    def is_host(self) -> bool:
        """True when the value is a number known on the host before a step runs."""
        return self.level <= Level.HOST

    @property
    def is_element(self) -> bool:
        """True when the value has one entry per element of the parameter."""
        return self.shape == ELEMENT

    def with_kind(self, kind: Kind) -> Type:
        """The same place, another kind."""
        return Type(kind, self.level, self.shape)

    def __str__(self) -> str:
        return f"{self.kind.value}[{self.level_name}]"


def level_name(level: Level, shape: Shape = SCALAR) -> str:
    """Name of a level in the language (see `parse_level` for the inverse)."""
    if level < Level.ARRAY:
        return level.name.lower()
    names = {ROWS: "rows", COLS: "cols", ELEMENT: "element", AXES: "axes"}
    return names.get(shape) or f"{shape[0].value}, {shape[1].value}"


#: Levels a state may declare, by the text in its brackets.
STATE_LEVELS: dict[str, tuple[Level, Shape]] = {
    "host": (Level.HOST, SCALAR),
    "group": (Level.GROUP, SCALAR),
    "tensor": (Level.TENSOR, SCALAR),
    "rows": (Level.ARRAY, ROWS),
    "cols": (Level.ARRAY, COLS),
    "element": (Level.ARRAY, ELEMENT),
    "rows, rows": (Level.ARRAY, (Dim.R, Dim.R)),
    "cols, cols": (Level.ARRAY, (Dim.C, Dim.C)),
    "rows, cols": (Level.ARRAY, ELEMENT),
    "cols, rows": (Level.ARRAY, (Dim.C, Dim.R)),
    "axes": (Level.ARRAY, AXES),
}


#: Every level and shape by the name that `level_name` gives it: those of states, and transposes of these.
LEVELS: dict[str, tuple[Level, Shape]] = {
    **{level_name(level): (level, SCALAR) for level in Level if level is not Level.ARRAY},
    **{
        level_name(Level.ARRAY, (rows, cols)): (Level.ARRAY, (rows, cols))
        for rows in (Dim.ONE, Dim.R, Dim.C)
        for cols in (Dim.ONE, Dim.R, Dim.C)
        if (rows, cols) != SCALAR
    },
    "axes": (Level.ARRAY, AXES),
}


def parse_level(text: str) -> tuple[Level, Shape] | None:
    """Level and shape for the text in a state's brackets, or None when there is no such level."""
    return STATE_LEVELS.get(", ".join(part.strip() for part in text.split(",")))


def _broadcast_dim(a: Dim, b: Dim) -> Dim:
    if a is b or b is Dim.ONE:
        return a
    if a is Dim.ONE:
        return b
    raise ShapeError


def broadcast(a: Shape, b: Shape) -> Shape:
    """Shape of an elementwise result. Raises ShapeError when R meets C, or a family another array."""
    if AXES in (a, b) and {a, b} - {AXES, SCALAR}:
        raise ShapeError
    return _broadcast_dim(a[0], b[0]), _broadcast_dim(a[1], b[1])


def join(types: list[Type]) -> tuple[Level, Shape]:
    """Level and shape of an elementwise operation on values of these types. Raises ShapeError."""
    level, shape = Level.CONST, SCALAR
    for type_ in types:
        level = max(level, type_.level)
        shape = broadcast(shape, type_.shape)
    return level, shape


def broadcasts_into(shape: Shape, target: Shape) -> bool:
    """True when a value of `shape` can be stored where `target` is expected."""
    try:
        return broadcast(shape, target) == target
    except ShapeError:
        return False


def matmul_shape(a: Shape, b: Shape) -> Shape:
    """Shape of `a @ b`. Raises ShapeError when the inner dimensions differ, and for families."""
    if a[1] is not b[0] or AXES in (a, b):
        raise ShapeError
    return a[0], b[1]


def const(kind: Kind) -> Type:
    """Type of a literal."""
    return Type(kind, Level.CONST)


def host(kind: Kind = Kind.FLOAT) -> Type:
    """Type of a number known on the host."""
    return Type(kind, Level.HOST)


def element(kind: Kind = Kind.FLOAT) -> Type:
    """Type of a value with one entry per element of the parameter."""
    return Type(kind, Level.ARRAY, ELEMENT)
