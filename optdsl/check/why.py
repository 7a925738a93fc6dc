"""Which part of an expression lies at the wrong level, and where that comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from optdsl.check.names import shown
from optdsl.check.scope import POISON, Builder
from optdsl.core.types import AXES, COLS, ROWS, Level, Type
from optdsl.ir.expr import Expr, Var, walk
from optdsl.lang import syntax as syn

Fits: TypeAlias = Callable[[Type], bool]


def describe(type_: Type) -> str:
    """The place of a value, in words."""
    if type_.is_element:
        return "one value per element"
    if type_.level is Level.ARRAY:
        rows, cols = (dim.value for dim in type_.shape)
        return {ROWS: "one value per row", COLS: "one value per column", AXES: "a matrix for each axis"}.get(
            type_.shape, f"a matrix of {rows} by {cols}"
        )
    return {
        Level.CONST: "a constant",
        Level.HOST: "a number known on the host",
        Level.GROUP: "one number per parameter group",
        Level.TENSOR: "one number per tensor",
    }[type_.level]


class Why:
    """Explains values of one file: `types` maps its checked expressions to their values."""

    def __init__(self, builder: Builder, types: Mapping[int, Expr], lines: Sequence[str], path: str) -> None:
        self.builder, self.types, self.lines, self.path = builder, types, lines, path

    def __call__(self, node: syn.Expression, fits: Fits) -> str:
        """The smallest part that does not fit, as in: `x` is one value per element: it is the gradient."""
        part = self._finest(node, fits)
        value = self.types.get(id(part))
        if value is None or value is POISON:
            return ""
        reason = f"{self.text(part)} is {describe(value.type)}"
        return reason + self._origin(value, fits) if isinstance(value, Var) else reason

    def text(self, node: syn.Expression) -> str:
        """The expression as it is written, in quotes; `this` when that is too long."""
        span = node.span
        if span.line != span.end_line or span.line > len(self.lines):
            return "this"
        text = self.lines[span.line - 1][span.column - 1 : span.end_column - 1]
        return f"`{text}`" if text == shown(text) else "this"

    def _finest(self, node: syn.Expression, fits: Fits) -> syn.Expression:
        """The first smallest part that lies at the same level, as `g` in `2 * g` and all of `norm(g)`."""
        parts: tuple[syn.Expression, ...] = ()
        match node:
            case syn.Operation(_, args) | syn.Compare(_, args) | syn.CallSyntax(_, args):
                parts = args
            case syn.IfElse(condition, then, other):
                parts = (condition, then, other)
        whole = self.types.get(id(node))
        for part in parts:
            value = self.types.get(id(part))
            if value is None or whole is None or value is POISON or fits(value.type):
                continue
            if (value.type.level, value.type.shape) == (whole.type.level, whole.type.shape):
                return self._finest(part, fits)
        return node

    def _origin(self, value: Var, fits: Fits) -> str:
        """Where a named value comes from."""
        name = value.name
        while name in self.builder.joined:  # look at a side of the branches that meet here
            sides = [side for side in self.builder.joined[name] if not fits(side.type)]
            if not sides or not isinstance(sides[0], Var):
                break
            name = sides[0].name
        if name in ("p", "g"):
            return ": it is the parameter" if name == "p" else ": it is the gradient"
        origin = self.builder.origins.get(name)
        if origin is None:
            return ": it is a state"
        place = f"line {origin.line}"
        if origin.path != self.path:
            place += f" of {Path(origin.path).name}"
        made = self.builder.definitions.get(name)
        causes = (
            [node for node in walk(made) if isinstance(node, Var) and not fits(node.type)] if made else []
        )
        names = [self._source(cause.name) for cause in causes]
        names = [cause for cause in names if cause != origin.source] or names
        return f": {place} computes it" + (f" from `{names[0]}`" if names else "")

    def _source(self, name: str) -> str:
        origin = self.builder.origins.get(name)
        return origin.source if origin else name
