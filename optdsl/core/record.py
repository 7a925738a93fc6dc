"""`@record`: a dataclass with slots that costs little until it is used.

The compiler has many small classes, and a run of it uses few methods of few of them. `dataclasses` writes and
compiles up to six methods for each class when that is defined, which was an eighth of the time that it takes to
compile one spec. A record is a dataclass for all that matters (`fields`, `replace`, `match`, the text of `repr`),
but `__init__`, `__eq__` and `__hash__` are compiled when they are first called, and the others are shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, field
from reprlib import recursive_repr
from typing import Any, TypeVar, dataclass_transform, overload

__all__ = ["field", "record"]

T = TypeVar("T")
_Method = Callable[..., Any]


@overload
def record(cls: type[T], /) -> type[T]: ...


@overload
def record(
    *, frozen: bool = True, eq: bool = True, weakref_slot: bool = False
) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(
    cls: type[T] | None = None, /, *, frozen: bool = True, eq: bool = True, weakref_slot: bool = False
) -> type[T] | Callable[[type[T]], type[T]]:
    """What `dataclass(slots=True)` with these options makes of a class; fields may not be `InitVar` or `KW_ONLY`.

    A class is frozen unless it says otherwise. A method that it defines itself is left alone.
    """

    def make(cls: type[T]) -> type[T]:
        own = frozenset(vars(cls))
        bare = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, weakref_slot=weakref_slot)
        kind = bare(cls)
        methods: dict[str, Any] = {"__init__": _late(kind, "__init__", _init), "__repr__": _repr}
        if eq:
            methods["__eq__"] = _late(kind, "__eq__", _eq)
            # as for every class with an `__eq__` of its own: what may change has no hash
            methods["__hash__"] = _late(kind, "__hash__", _hash) if frozen else None
        if frozen:
            methods |= _FROZEN
        for name, method in methods.items():
            if name not in own:
                setattr(kind, name, method)
        return kind

    return make if cls is None else make(cls)


def _late(cls: type, name: str, write: Callable[[type], _Method]) -> _Method:
    """A method that puts the one which `write` makes in its own place, and goes on as that."""

    def first(*args: Any, **kwargs: Any) -> Any:
        method = write(cls)
        method.__qualname__ = f"{cls.__qualname__}.{name}"
        setattr(cls, name, method)
        return method(*args, **kwargs)

    return first


def _compiled(text: str, names: dict[str, Any]) -> _Method:
    exec(text, names)
    method: _Method = names[text[4 : text.index("(")]]
    return method


def _init(cls: Any) -> _Method:
    names: dict[str, Any] = {"_FACTORY": _FACTORY}
    parameters, lines = ["self"], []
    for item in dataclasses.fields(cls):
        name = value = item.name
        default = f"_default_{name}"
        if item.default is not MISSING:
            names[default] = item.default
            parameter = f"{name}={default}"
            value = name if item.init else default
        elif item.default_factory is not MISSING:
            names[default] = item.default_factory
            parameter = f"{name}=_FACTORY"
            value = f"{default}() if {name} is _FACTORY else {name}" if item.init else f"{default}()"
        elif item.init:
            parameter = name
        else:
            continue
        if item.init:
            parameters.append(parameter)
        # through the descriptor of the slot: a frozen class has no other way in, and none is faster
        names[f"_set_{name}"] = getattr(cls, name).__set__
        lines.append(f" _set_{name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    return _compiled(f"def __init__({', '.join(parameters)}):\n" + ("\n".join(lines) or " pass"), names)


def _eq(cls: Any) -> _Method:
    mine, other = (
        _tuple(who, (f for f in dataclasses.fields(cls) if f.compare)) for who in ("self", "other")
    )
    return _compiled(
        "def __eq__(self, other):\n"
        " if other.__class__ is self.__class__:\n"
        f"  return {mine} == {other}\n"
        " return NotImplemented",
        {},
    )


def _hash(cls: Any) -> _Method:
    hashed = (f for f in dataclasses.fields(cls) if (f.compare if f.hash is None else f.hash))
    return _compiled(f"def __hash__(self):\n return hash({_tuple('self', hashed)})", {})


def _tuple(who: str, items: Any) -> str:
    return f"({''.join(f'{who}.{item.name}, ' for item in items)})"


class _Factory:
    """Stands for a default that is made anew for each instance."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY = _Factory()


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _setattr(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, f.name) for f in dataclasses.fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for item, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, item.name, value)


#: What makes a class frozen: it says no to assignments, and is copied and unpickled without them.
_FROZEN: dict[str, Any] = {
    "__setattr__": _setattr,
    "__delattr__": _delattr,
    "__getstate__": _getstate,
    "__setstate__": _setstate,
}
