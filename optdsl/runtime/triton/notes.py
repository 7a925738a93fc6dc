"""What a rule computes of a step count that only a device knows, written down as operations on numbers."""

from __future__ import annotations

from typing import Any

import torch

from optdsl.runtime.host import Elsewhere, _real


class Unwritten(Exception):
    """What is computed of a `Symbol` is nothing that can be written down."""


class Notes:
    """What is computed of one number that is not known: operations on registers, the first of which holds it."""

    def __init__(self) -> None:
        #: What the registers begin as, and (name, operand, operand, register of the result) in their order.
        self.registers = [0.0]
        self.operations: list[tuple[str, int, int, int]] = []

    def place(self, x: Any) -> int:
        """The register of a number."""
        if isinstance(x, Symbol):
            return x.place
        self.registers.append(_real(x))
        return len(self.registers) - 1

    def note(self, name: str, x: Any, y: Any = 0.0) -> Symbol:
        """The result of an operation."""
        operands = self.place(x), self.place(y)
        result = Symbol(self, self.place(0.0))
        self.operations.append((name, *operands, result.place))
        return result


def _unwritten(*_: Any) -> Any:
    raise Unwritten


class Symbol(Elsewhere):
    """A number that only a device knows, in the place of a tensor; what is computed of it goes to its notes.

    Raises Unwritten for an operation that has no name there.
    """

    __slots__ = ("notes", "place")

    def __init__(self, notes: Notes, place: int) -> None:
        self.notes, self.place = notes, place

    def __add__(self, y: Any) -> Symbol:
        return self.notes.note("add", self, y)

    def __radd__(self, x: Any) -> Symbol:
        return self.notes.note("add", x, self)

    def __sub__(self, y: Any) -> Symbol:
        return self.notes.note("sub", self, y)

    def __rsub__(self, x: Any) -> Symbol:
        return self.notes.note("sub", x, self)

    def __mul__(self, y: Any) -> Symbol:
        return self.notes.note("mul", self, y)

    def __rmul__(self, x: Any) -> Symbol:
        return self.notes.note("mul", x, self)

    def __truediv__(self, y: Any) -> Symbol:
        return self.notes.note("div", self, y)

    def __rtruediv__(self, x: Any) -> Symbol:
        return self.notes.note("div", x, self)

    def __pow__(self, y: Any) -> Symbol:
        return self.notes.note("pow", self, y)

    def __rpow__(self, x: Any) -> Symbol:
        return self.notes.note("pow", x, self)

    def __neg__(self) -> Symbol:
        return self.notes.note("mul", -1.0, self)

    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __bool__ = __float__ = __int__ = __index__ = (
        _unwritten
    )
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __abs__ = __and__ = __or__ = __getattr__ = _unwritten

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        """What torch's functions ask for."""
        notes = next(x.notes for x in args if isinstance(x, Symbol))
        if function is torch.full_like and not kwargs:
            return Symbol(notes, notes.place(args[1]))
        name = _NAMES.get(function)
        if name is None or kwargs:
            raise Unwritten
        return notes.note(name, *args)


_NAMES: dict[Any, str] = {
    torch.div: "div",
    torch.pow: "pow",
    torch.sqrt: "sqrt",
    torch.minimum: "min",
    torch.maximum: "max",
}
