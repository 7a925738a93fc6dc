"""A record is what `dataclass(slots=True)` makes of the same class; only the time at which it is made differs."""

import copy
import dataclasses
import pickle
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest

from optdsl.core.record import field, record

Decorator = Callable[[type], type]
FROZEN: list[Decorator] = [record, dataclass(frozen=True, slots=True)]
MUTABLE: list[Decorator] = [record(frozen=False), dataclass(slots=True)]


def point(decorator: Decorator) -> Any:
    class Point:
        """A place."""

        x: int
        y: float = 0.5
        label: str = field(default="here", repr=False)
        note: str = field(default="", compare=False)
        weight: tuple[int, ...] = field(default=(), hash=False)
        names: list[str] = field(default_factory=list, hash=False)
        twice: int = field(init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "twice", 2 * self.x)

        @property
        def sum(self) -> float:
            """Of both."""
            return self.x + self.y

    return decorator(Point)


@record
class Kept:
    """At the top of a module, where pickle finds it."""

    a: int
    b: tuple[int, ...] = (1,)


@record
class Refused(Exception):
    """An exception may be a record."""

    value: str


ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, 0.5), {}),
    ((2,), {}),
    ((1,), {"y": 2.0}),
    ((1,), {"label": "there"}),
    ((1,), {"note": "what compares equal"}),
    ((1,), {"weight": (1, 2)}),
    ((1,), {"names": ["a"]}),
    ((float("nan"),), {}),
]


@pytest.mark.parametrize("decorators", [FROZEN, MUTABLE], ids=["frozen", "mutable"])
def test_instances_are_those_of_a_dataclass(decorators: list[Decorator]) -> None:
    ours, theirs = ([kind(*args, **named) for args, named in ARGUMENTS] for kind in map(point, decorators))
    for mine, other in zip(ours, theirs, strict=True):
        assert repr(mine) == repr(other)
        assert mine.sum == other.sum or mine.sum != mine.sum
        assert [mine == one for one in ours] == [other == one for one in theirs]
        assert [mine != one for one in ours] == [other != one for one in theirs]
        assert mine != other
        assert not hasattr(mine, "__dict__")


def test_equal_records_have_one_hash() -> None:
    ours, theirs = ([kind(*args, **named) for args, named in ARGUMENTS[:-1]] for kind in map(point, FROZEN))
    assert list(map(hash, ours)) == list(map(hash, theirs))


@pytest.mark.parametrize("decorator", MUTABLE)
def test_what_may_change_has_no_hash(decorator: Decorator) -> None:
    with pytest.raises(TypeError, match="unhashable type"):
        hash(point(decorator)(1))


@pytest.mark.parametrize("decorator", FROZEN)
def test_a_frozen_one_refuses_changes(decorator: Decorator) -> None:
    one = point(decorator)(1)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'x'"):
        one.x = 2
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'x'"):
        del one.x
    assert one.x == 1


@pytest.mark.parametrize("decorator", MUTABLE)
def test_a_mutable_one_takes_changes_to_its_fields_alone(decorator: Decorator) -> None:
    one = point(decorator)(1)
    one.x = 2
    assert one.x == 2
    with pytest.raises(AttributeError):
        one.other = 2


@pytest.mark.parametrize("decorator", [*FROZEN, *MUTABLE])
def test_each_instance_has_its_own_default(decorator: Decorator) -> None:
    kind = point(decorator)
    kind(1).names.append("a")
    assert kind(1).names == []


@pytest.mark.parametrize(
    "arguments", [((), {}), ((1, 2.0, "", "", (), [], 7), {}), ((1,), {"z": 1}), ((1,), {"x": 1})]
)
def test_wrong_arguments_are_told_as_by_a_dataclass(
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> None:
    told = []
    for kind in map(point, FROZEN):
        with pytest.raises(TypeError) as error:
            kind(*arguments[0], **arguments[1])
        told.append(str(error.value))
    assert told[0] == told[1]


def test_the_tools_of_dataclasses_take_records() -> None:
    ours, theirs = map(point, FROZEN)
    assert dataclasses.is_dataclass(ours)
    assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(theirs)]
    assert ours.__match_args__ == theirs.__match_args__
    assert ours.__slots__ == theirs.__slots__
    assert repr(replace(ours(1), x=3, note="b")) == repr(replace(theirs(1), x=3, note="b"))
    match Kept(4):
        case Kept(a, b):
            assert (a, b) == (4, (1,))


def test_identity_is_kept_where_asked_for() -> None:
    for decorator in (record(eq=False), dataclass(frozen=True, slots=True, eq=False)):
        kind = point(decorator)
        one = kind(1)
        assert one == one
        assert one != kind(1)
        assert len({one, one, kind(1)}) == 2


def test_a_method_of_the_class_itself_stands() -> None:
    @record
    class Loose:
        """Equal to all of its kind."""

        x: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Loose)

        def __hash__(self) -> int:
            return 7

        def __repr__(self) -> str:
            return "loose"

    assert Loose(1) == Loose(2)
    assert hash(Loose(1)) == 7
    assert repr(Loose(1)) == "loose"


def test_a_record_within_itself_has_a_text() -> None:
    texts = []
    for decorator in MUTABLE:
        one = point(decorator)(1)
        one.names.append(one)
        texts.append(repr(one))
    assert texts[0] == texts[1]


def test_records_are_copied_and_pickled() -> None:
    one = Kept(3, (4, 5))
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other == one
        assert hash(other) == hash(one)


def test_no_fields_at_all() -> None:
    @record
    class Nothing:
        """As it says."""

    assert Nothing() == Nothing()
    assert hash(Nothing()) == hash(())
    assert repr(Nothing()).endswith("Nothing()")


def test_an_exception_is_raised_and_caught() -> None:
    with pytest.raises(Refused) as caught:
        raise Refused("a")
    assert caught.value.value == "a"


def test_methods_that_compare_and_hash_work_first() -> None:
    """Each is written when it is first called; no order of first calls may matter."""
    for first in (lambda a, b: a == b, lambda a, b: hash(a) == hash(b), lambda a, b: {a: 1}[b]):
        kind = point(record)
        assert first(kind(1), kind(1))


def test_nothing_is_compiled_before_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[record.__module__]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_compiled", None)  # whatever compiles a method fails
        kind = point(record)
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            kind(1)
    assert kind(1) == kind(1)
