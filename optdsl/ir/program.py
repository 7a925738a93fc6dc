"""A typed program: one optimizer step as a list of guarded assignments in SSA form.

Branches are flat. An assignment carries its *guard*, the conditions under which it is evaluated; where
branches meet, a `select` joins the versions. Values are pure, so a guard never changes a result: it says
what need not be computed. `step when ... / otherwise` are branches on facts of the tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from optdsl.core.ops import FACTS, STATIC_FACTS
from optdsl.core.record import field, record
from optdsl.core.types import Kind, Type
from optdsl.ir.expr import Expr, HostValue, Literal, Var, is_joint, is_random, variables, walk

#: Conditions that must hold, outermost first: (condition, wanted value).
Guard: TypeAlias = tuple[tuple[Expr, bool], ...]


@record
class Interval:
    """An interval of numbers; `low_open` and `high_open` exclude the ends."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        left, right = "(["[not self.low_open], ")]"[not self.high_open]
        return f"{left}{number(self.low)}, {number(self.high)}{right}"


def number(value: float) -> str:
    """Shortest text of a number that reads back as the same number: `1e-08`, `3`, `inf`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = repr(value)
    return text[:-2] if text.endswith(".0") and "e" not in text else text


@record
class Hyper:
    """One number, switch, choice or list the user sets. `argument` is the constructor argument it is (part of).

    `interval` holds for int and float, and for the numbers of a list, which are all ints or all floats, as in its
    default; `choices` for a choice.
    """

    name: str
    argument: str
    kind: Kind
    default: HostValue
    interval: Interval | None = None
    choices: tuple[str, ...] = ()
    doc: str = ""

    @property
    def one(self) -> Literal:
        """The default of one that is no list."""
        assert not isinstance(self.default, tuple), self.name
        return self.default

    @property
    def is_part(self) -> bool:
        """True for a named part of a tuple such as `betas`."""
        return self.name != self.argument

    @property
    def number_kind(self) -> Kind:
        """Its kind; of a list, that of its numbers."""
        if not isinstance(self.default, tuple):
            return self.kind
        return Kind.INT if isinstance(self.default[0], int) else Kind.FLOAT


@record
class State:
    """What is kept between steps. `init` is its value before a parameter's first step, or None.

    `init` may read `p`, `g`, facts and hyperparameters. `key` is the name in `state_dict`. One that is `given` is an
    input: no step assigns or keeps it, each gets it from outside as `key`; `doc` says what it is. `stored` is the
    format in which a state per element is kept, one of `optdsl.core.storage`; without it, that of the parameter.
    With a `delay` of n, a number or the name of a hyperparameter, a step reads what the n-th step before it left, and
    `init` in the first n steps; without one, n is 1.
    """

    name: str
    key: str
    type: Type
    init: Expr | None
    given: bool = False
    doc: str = ""
    stored: str | None = None
    delay: int | str | None = None


@record
class Assign:
    """`name = expr`, evaluated only under `guard`.

    `source` is the name in the spec, `line` the line of the spec that it comes from (0: made by a pass).
    """

    name: str
    source: str
    expr: Expr
    guard: Guard = ()
    line: int = 0

    @property
    def var(self) -> Var:
        """The assigned value as an expression."""
        from optdsl.ir.expr import var

        return var(self.name, self.expr.type)


@record
class Program:
    """One method. `results` maps `p` and the name of each state to the value the step leaves behind.

    `view` is what `eval:` says: a program with the same declarations that leaves in `p` what stands for it while the
    model is evaluated.
    """

    name: str
    doc: str
    cite: str
    hypers: tuple[Hyper, ...]
    states: tuple[State, ...]
    body: tuple[Assign, ...]
    results: Mapping[str, Expr] = field(default_factory=dict)
    view: Program | None = None

    def hyper(self, name: str) -> Hyper:
        """The hyperparameter `name`. Raises KeyError."""
        return next(h for h in self.hypers if h.name == name)

    def state(self, name: str) -> State:
        """The state `name`. Raises KeyError."""
        for state in self.states:
            if state.name == name:
                return state
        raise KeyError(name)

    @property
    def kept(self) -> tuple[State, ...]:
        """The states that are kept between steps: all but inputs."""
        return tuple(state for state in self.states if not state.given)

    @property
    def inputs(self) -> tuple[State, ...]:
        """What each step is given beside the gradient."""
        return tuple(state for state in self.states if state.given)

    def with_body(self, body: tuple[Assign, ...], results: Mapping[str, Expr]) -> Program:
        """The same method with another step."""
        return replace(self, body=body, results=results)

    def expressions(self) -> Iterator[Expr]:
        """Every expression of the step: guards, right-hand sides, results."""
        for assign in self.body:
            for condition, _ in assign.guard:
                yield condition
            yield assign.expr
        yield from self.results.values()

    def nodes(self) -> Iterator[Expr]:
        """Every node of the step (a node that occurs in several expressions comes several times)."""
        for expr in self.expressions():
            yield from walk(expr)

    @property
    def draws(self) -> bool:
        """True when the step draws random numbers."""
        return any(is_random(node) for node in self.nodes())

    @property
    def joint(self) -> bool:
        """True when the step reduces over several tensors together."""
        return any(is_joint(node) for node in self.nodes())

    def digest(self) -> str:
        """A hash of what the method means and how it is presented."""
        from optdsl.ir.text import show

        return hashlib.sha256(show(self).encode()).hexdigest()


def is_static(expr: Expr, definitions: Mapping[str, Expr], stored: Collection[str]) -> bool:
    """True when a host value depends on hyperparameters and fixed facts of the tensor only.

    A branch on such a value is settled when a kernel is chosen, and a state that no taken branch uses is
    never allocated. `definitions` maps assigned names to their expressions, `stored` names the states.
    """
    if not expr.type.is_host:
        return False
    for name in variables(expr):
        if name in definitions:
            if not is_static(definitions[name], definitions, stored):
                return False
        elif name in stored or (name in FACTS and name not in STATIC_FACTS):
            return False
    return True
