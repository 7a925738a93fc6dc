"""Random expressions, well typed by construction, and what a place in a program offers for them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import TypeAlias, TypeVar

from optdsl.core import types as ty
from optdsl.core.ops import AXES_OPERANDS, CORE, FACTS, Rule
from optdsl.core.record import field, record
from optdsl.core.types import AXES, COLS, ELEMENT, ROWS, SCALAR, STATE_LEVELS, Dim, Kind, Level, Shape, Type
from optdsl.ir.expr import Call, Expr, Var, as_number, call, const, is_random, var
from optdsl.ir.program import Guard, Hyper, Program

#: Where a value lives.
Place: TypeAlias = tuple[Level, Shape]

AT_CONST: Place = (Level.CONST, SCALAR)
AT_HOST: Place = (Level.HOST, SCALAR)
AT_GROUP: Place = (Level.GROUP, SCALAR)
AT_TENSOR: Place = (Level.TENSOR, SCALAR)
AT_ROWS: Place = (Level.ARRAY, ROWS)
AT_COLS: Place = (Level.ARRAY, COLS)
AT_ELEMENT: Place = (Level.ARRAY, ELEMENT)
AT_AXES: Place = (Level.ARRAY, AXES)

_T = TypeVar("_T")

#: Operators that jump, or turn a small change of an operand into a large one of the result.
_STEEP = ("mod", "sign", "floor", "ceil", "round", "tan", "asin", "acos", "bernoulli", "nan_to_num")
#: Numbers whose handling goes wrong first.
_HOSTILE = (0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1e-30, 1e30, 1.7976931348623157e308)
_USUAL = (0.0, 1.0, 0.5, 2.0, 0.1, 0.01, 1e-3, 3.0, 0.9, 1.5, 0.25)

_COMMON = {
    **{"add": 6.0, "sub": 6.0, "mul": 8.0, "div": 3.0, "pow": 2.0, "neg": 1.5, "abs": 1.5, "sqrt": 2.0},
    **{"select": 1.5, "min": 1.5, "max": 1.5, "reduce_sum": 1.5, "reduce_mean": 2.0},
}
#: What makes families, where one is wanted.
_FAMILIES = {"identity": 6.0, "gram": 12.0, "matrix_power": 20.0}
_CONDITIONS = {
    **{"flag": 3.0, "choice": 3.0, "whole": 2.0, "number": 2.0, "shape": 3.0, "first": 1.5, "time": 2.0},
    **{"every": 2.0, "state": 2.0, "both": 1.5, "not": 1.0, "literal": 0.3},
}
_LEVELS = {
    **{"element": 10.0, "rows": 1.5, "cols": 1.5, "tensor": 2.5, "group": 1.0, "host": 2.0},
    **{"rows, rows": 0.5, "cols, cols": 0.5, "cols, rows": 0.3, "axes": 0.3},
}


@record
class Weights:
    """How often each construct occurs: chances in [0, 1], and relative weights in the mappings.

    `operators` weighs the core operators (0 leaves one out). Of an operand, `leaf` is the chance that it is a
    value at hand even where it could be computed, `literal` that such a value is a number instead (drawn from
    `literals`), `old` that it is one whose name has a newer value by now, `coarse` that it lives at a coarser
    level than its neighbour, `joint` that this level is the group, `truth` that it is a truth value, `whole`
    that it is an int where host values are, and `protect` that it is first brought into the domain of its
    operator. `jump` is the chance that the condition of a choice is known per element, not on the host, `filter` that
    a value per element is reduced over filters.

    Of a statement, `branch` is the chance that it is an `if` (of at most `nesting` in one another),
    `otherwise` that this has an `else`, `average` that a state becomes a moving average of something,
    `descend` that `p` moves by a rate times something, and `coarse_p` that `p` or `g` becomes one value for
    many elements. Its expression is at most about `depth` operators deep. `conditions` weighs the kinds of
    conditions, `levels` those of states.
    """

    operators: Mapping[str, float]
    literals: tuple[float, ...] = _USUAL
    leaf: float = 0.25
    literal: float = 0.2
    old: float = 0.15
    coarse: float = 0.5
    joint: float = 0.1
    truth: float = 0.05
    whole: float = 0.15
    protect: float = 0.95
    jump: float = 0.0
    filter: float = 0.0
    branch: float = 0.25
    nesting: int = 3
    otherwise: float = 0.6
    average: float = 0.6
    descend: float = 0.8
    coarse_p: float = 0.0
    depth: int = 3
    conditions: Mapping[str, float] = field(default_factory=lambda: _CONDITIONS)
    levels: Mapping[str, float] = field(default_factory=lambda: _LEVELS)


def _operators(common: float, other: Mapping[str, float]) -> dict[str, float]:
    """A weight for every operator of the language; only lowering makes a broadcast."""
    weights = {name: other.get(name, _COMMON.get(name, common)) for name in CORE}
    return {name: 0.0 if CORE[name].rule is Rule.BROADCAST else weight for name, weight in weights.items()}


#: Numbers stay finite, mostly, and small changes stay small.
TAME = Weights(
    _operators(
        0.7,
        {
            **dict.fromkeys(_STEEP, 0.0),
            **{"matmul": 0.3, "newton_schulz": 0.2, "transpose": 0.3, "along_axes": 0.3},
            **_FAMILIES,
        },
    ),
    truth=0.0,
)
#: Everything.
WILD = Weights(
    _operators(1.0, {**_FAMILIES, "along_axes": 0.5}),
    literals=(*_USUAL, *_USUAL, -1.0, -2.0, *_HOSTILE),
    protect=0.3,
    truth=0.1,
    jump=0.5,
    coarse_p=0.1,
    descend=0.5,
)


@record(frozen=False)
class Available:
    """What an expression may be made of.

    `values` holds the values that names have now, inputs and facts among them, `old` those of names that have
    a newer one. `choices` maps a hyperparameter that is a choice to its values. `site` and `stream` are the
    numbers of the next joint reduction and random draw, and None where there must be none.
    """

    values: list[Expr]
    old: list[Expr] = field(default_factory=list)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    site: int | None = 0
    stream: int | None = 0


def available_at(program: Program, index: int, guard: Guard | None = None) -> Available:
    """What a statement in front of assignment `index` of `program` may read under `guard` (by default that of
    the assignment). Joint reductions and draws get numbers that the program does not use yet.
    """
    if guard is None:
        guard = program.body[index].guard if index < len(program.body) else ()
    inputs = inputs_of(program.hypers)
    inputs |= {s.name: var(s.name, s.type) for s in program.states if s.init is not None or s.given}
    current: dict[str, Expr] = dict(inputs)
    old: list[Expr] = []
    for assign in program.body[:index]:
        if guard[: len(assign.guard)] == assign.guard:
            if assign.source in current:
                old.append(current[assign.source])
            current[assign.source] = assign.var
    calls = [node for node in program.nodes() if isinstance(node, Call)]
    sites = [node.site for node in calls if node.site is not None]
    streams = [node.attr for node in calls if is_random(node) and isinstance(node.attr, int)]
    return Available(
        list(current.values()),
        old,
        {h.name: h.choices for h in program.hypers if h.choices},
        max(sites, default=-1) + 1,
        max(streams, default=-1) + 1,
    )


def inputs_of(hypers: Iterable[Hyper]) -> dict[str, Expr]:
    """What every step may read, by name."""
    values: dict[str, Expr] = {"p": var("p", ty.element()), "g": var("g", ty.element())}
    values |= {name: var(name, ty.host(kind)) for name, kind in FACTS.items()}
    return values | {h.name: var(h.name, ty.host(h.kind)) for h in hypers}


def random_expr(
    rng: random.Random, available: Available, type: Type, depth: int, weights: Weights = TAME
) -> Expr:
    """An expression of the kind of `type` that fits there, at most about `depth` operators deep.

    It lives exactly at the level and shape of `type` where that can be had from `available` at all (elements
    can be summed up or drawn; a host value needs a host value), and at a coarser one otherwise. `type` is a
    number or a truth value.
    """
    return Maker(rng, available, weights).make(type.kind, (type.level, type.shape), depth)


def random_condition(rng: random.Random, available: Available, weights: Weights = TAME) -> Expr:
    """A small condition known on the host, such as an `if` asks; a literal if nothing is there to ask."""
    maker = Maker(rng, available, weights)
    for _ in range(20):
        found = maker.condition(pick(rng, weights.conditions), 2)
        if found is not None:
            return found
    return const(rng.random() < 0.5)


def pick(rng: random.Random, weights: Mapping[_T, float]) -> _T:
    """One of these, as often as they weigh."""
    names = list(weights)
    return rng.choices(names, [weights[name] for name in names])[0]


def _matrix(place: Place, usual: bool = True) -> Place:
    """Where something lives that a reduction over rows or columns takes to `place`: in a matrix with the
    sides of the parameter if `usual`, else in a square one.
    """
    level, (rows, cols) = place
    kept = cols if rows is Dim.ONE else rows
    other = kept if not usual else Dim.C if kept is Dim.R else Dim.R
    return level, ((other, cols) if rows is Dim.ONE else (rows, other))


class Maker:
    """Makes expressions. Methods that take a place return a value that lives there, or fits there."""

    def __init__(self, rng: random.Random, available: Available, weights: Weights) -> None:
        self.rng = rng
        self.available = available
        self.weights = weights

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def make(self, kind: Kind, place: Place, depth: int) -> Expr:
        """A value of this kind."""
        match kind:
            case Kind.BOOL:
                return self.truth(place, depth)
            case Kind.INT:
                return self.whole(place, depth)
            case Kind.FLOAT:
                return self.number(place, depth)
        raise ValueError("a choice cannot be computed")

    # ---- values at hand ---------------------------------------------------------------------------------

    def at_hand(self, kind: Kind, place: Place) -> Expr | None:
        """An available value of exactly this kind and place."""
        old, now = (
            [v for v in values if v.type.kind is kind and (v.type.level, v.type.shape) == place]
            for values in (self.available.old, self.available.values)
        )
        if old and (not now or self.chance(self.weights.old)):
            return self.rng.choice(old)
        return self.rng.choice(now) if now else None

    def literal(self) -> Expr:
        return const(self.rng.choice(self.weights.literals))

    def leaf(self, place: Place) -> Expr:
        """A float without much computation."""
        level, _ = place
        if level is Level.CONST or (level is Level.HOST and self.chance(self.weights.literal)):
            return self.literal()
        if level is Level.HOST and self.hosts(Kind.LIST) and self.chance(0.4):
            return self.asked_list("entry", 1)
        found = self.at_hand(Kind.FLOAT, place)
        if found is not None:
            return found
        if level is Level.HOST:
            whole = self.at_hand(Kind.INT, place)
            return self.literal() if whole is None else call("mul", whole, self.rng.choice((1.0, 0.5, 0.1)))
        return self.derived(place)

    def derived(self, place: Place) -> Expr:
        """A float at a place where nothing is at hand, from something finer, or a host value."""
        level, (rows, cols) = place
        if place == AT_AXES:
            x = self.leaf(AT_ELEMENT if self.chance(0.7) else AT_HOST)
            return call("gram", x) if x.type.is_element else call("mul", x, call("identity"))
        if place == AT_ELEMENT:
            return self.draw("normal", place) or self.leaf(AT_HOST)
        if level < Level.ARRAY:
            return self.reduce("reduce_mean", self.leaf(AT_ELEMENT), place) or self.leaf(AT_HOST)
        if Dim.ONE in (rows, cols):
            return self.reduce("reduce_mean", self.leaf(_matrix(place)), place) or self.leaf(AT_TENSOR)
        element = self.leaf(AT_ELEMENT)
        if element.type.shape != ELEMENT:
            return element
        other = call("transpose", element)
        if rows is not cols:
            return other
        return call("matmul", element, other) if rows is Dim.R else call("matmul", other, element)

    # ---- operands ---------------------------------------------------------------------------------------

    def coarser(self, place: Place) -> Place:
        """A place from which a value broadcasts into `place`."""
        level, shape = place
        places = [AT_CONST, *(p for p in (AT_HOST, AT_HOST, AT_TENSOR) if p[0] < level)]
        if level > Level.GROUP and self.available.site is not None and self.chance(self.weights.joint):
            places = [AT_GROUP]
        elif level is Level.ARRAY and Dim.ONE not in shape:
            places += [(level, (shape[0], Dim.ONE)), (level, (Dim.ONE, shape[1]))]
        return self.rng.choice(places)

    def operand(self, place: Place, depth: int) -> Expr:
        """A number that broadcasts into `place`: a float, an int, or a truth value that counts as 0 or 1."""
        if self.chance(self.weights.coarse):
            place = self.coarser(place)
        if self.chance(self.weights.truth):
            return as_number(self.truth(place, depth))
        if place[0] <= Level.HOST and self.chance(self.weights.whole):
            return self.whole(place, depth)
        return self.number(place, depth)

    def operands(self, place: Place, depth: int, count: int) -> list[Expr]:
        """Numbers that fit `place`, one of which lives there."""
        exact = self.rng.randrange(count)
        return [self.number(place, depth) if n == exact else self.operand(place, depth) for n in range(count)]

    def positive(self, x: Expr) -> Expr:
        """`x` away from 0 and negative numbers."""
        margin = self.rng.choice((1e-8, 1e-3, 0.1, 1.0))
        shape = self.rng.randrange(3)
        if shape == 0:
            return call("add", call("abs", x), margin)
        if shape == 1:
            return call("max", call("abs", x), margin)
        return call("sqrt", call("add", call("pow", x, 2), margin))

    def protected(self, op: str, args: list[Expr]) -> list[Expr]:
        """Operands of `op` in its domain, and where its result stays moderate."""
        match op, args:
            case "div", [a, b]:
                return [a, self.positive(b)]
            case "sqrt", [x]:
                return [call("abs", x)]
            case "log", [x]:
                return [self.positive(x)]
            case "log1p", [x]:
                return [call("abs", x)]
            case (("exp" | "expm1"), [x]):
                return [call("min", x, self.rng.choice((0.0, 1.0, 3.0)))]
            case (("asin" | "acos"), [x]):
                return [call("mul", 0.9, call("tanh", x))]
            case "tan", [x]:
                return [call("tanh", x)]
            case "atan2", [a, b]:
                return [a, self.positive(b)]
            case "mod", [a, b]:
                return [a, self.positive(b)]
            case "pow", [a, b]:
                base = a if ty.join([a.type, b.type]) == (a.type.level, a.type.shape) else b
                found = self.at_hand(Kind.INT, AT_HOST)
                if base.type.level is Level.HOST and found is not None and self.chance(0.5):
                    return [call("div", 1.0, call("add", 1.0, call("abs", base))), found]
                exponent = self.rng.choice((2, 2, 2, 3, 0.5, -1, -0.5, 2.0, 1.5))
                return [base if exponent in (2, 3) else self.positive(base), const(exponent)]
        return args

    def applied(self, op: str, args: list[Expr]) -> Expr:
        if self.chance(self.weights.protect):
            args = self.protected(op, args)
        return call(op, *args)

    # ---- numbers ----------------------------------------------------------------------------------------

    def number(self, place: Place, depth: int) -> Expr:
        """A float."""
        if depth <= 0 or self.chance(self.weights.leaf):
            return self.leaf(place)
        # nothing is drawn for programs without them
        filters = self.weights.filter > 0 and place == AT_ELEMENT and self.chance(self.weights.filter)
        weights = {
            op: weight
            for op, weight in self.weights.operators.items()
            if weight > 0 and (CORE[op].rule is Rule.REDUCE if filters else self.gives(op, place))
        }
        if not weights:
            return self.leaf(place)
        result = self.computed(pick(self.rng, weights), place, depth - 1)
        return result if result is not None and result.type.kind is Kind.FLOAT else self.leaf(place)

    def gives(self, op: str, place: Place) -> bool:
        """True when `op` may give a float that lives at `place`."""
        level, shape = place
        row = CORE[op]
        ones = shape.count(Dim.ONE)
        match row.rule:
            case Rule.ELEMENTWISE:
                return row.result != "bool"
            case Rule.REDUCE:
                if level is Level.GROUP:
                    return self.available.site is not None
                return level is Level.TENSOR or (level is Level.ARRAY and ones == 1 and place != AT_AXES)
            case Rule.RANDOM:
                return place == AT_ELEMENT and self.available.stream is not None
            case Rule.MATRIX:
                return level is Level.ARRAY and ones == 0
            case Rule.LIST:
                return row.result == "float" and level is Level.HOST and bool(self.hosts(Kind.LIST))
            case Rule.AXES:
                return place == STATE_LEVELS[AXES_OPERANDS[op][1]]
        return level is Level.ARRAY and place != AT_AXES

    def computed(self, op: str, place: Place, depth: int) -> Expr | None:
        """The operator `op` on random operands, or None when these do not suit it."""
        row = CORE[op]
        match row.rule:
            case Rule.REDUCE:
                more = [self.rank()] if row.arity > 1 else []
                return self.reduce(op, self.reducible(place, depth), place, *more)
            case Rule.RANDOM:
                return self.draw(op, place, depth)
            case Rule.MATMUL:
                return self.product(place, depth)
            case Rule.TRANSPOSE:
                rows, cols = place[1]
                return call(op, self.number((place[0], (cols, rows)), depth))
            case Rule.MATRIX:
                x = self.number(place, depth)
                return None if Dim.ONE in x.type.shape else call(op, x, self.iterations())
            case Rule.LIST:
                return self.asked_list(op, depth)
            case Rule.AXES:
                return self.on_axes(op, depth)
        if op == "select":
            condition = self.choice_condition(place, depth)
            return call(op, condition, *self.operands(place, depth, 2))
        if row.arity == 1 and self.chance(self.weights.truth):
            return self.applied(op, [self.truth(place, depth)])
        return self.applied(op, self.operands(place, depth, row.arity))

    def asked_list(self, op: str, depth: int) -> Expr:
        """An entry of a list, or a count of its entries: of a whole number, as a small change of it may jump."""
        x = self.number(AT_HOST, 0) if self.chance(self.weights.jump) else self.whole(AT_HOST, depth - 1)
        return call(op, self.rng.choice(self.hosts(Kind.LIST)), x)

    def choice_condition(self, place: Place, depth: int) -> Expr:
        """The condition of a choice between two values: on the host, or as fine as they are."""
        if place[0] is Level.CONST:
            return const(self.chance(0.5))
        if place[0] > Level.HOST and self.chance(self.weights.jump):
            return self.truth(self.coarser(place) if self.chance(self.weights.coarse) else place, depth)
        return random_condition(self.rng, self.available, self.weights)

    def reducible(self, place: Place, depth: int) -> Expr:
        """An operand for a reduction that ends at `place`."""
        if place == AT_ELEMENT:
            source = AT_ELEMENT
        elif place[0] is Level.ARRAY:
            source = _matrix(place, usual=self.chance(0.9))
        elif place[0] is Level.GROUP and self.chance(0.3):
            source = AT_TENSOR
        else:
            source = self.rng.choice((*[AT_ELEMENT] * 6, AT_ROWS, AT_COLS, (Level.ARRAY, (Dim.R, Dim.R))))
        if self.chance(self.weights.truth):
            return as_number(self.truth(source, depth))
        return self.number(source, depth)

    def rank(self) -> Expr:
        """A number known on the host, often the rank of something."""
        return const(self.rng.randrange(1, 5)) if self.chance(0.7) else self.operand(AT_HOST, 1)

    def reduce(self, op: str, x: Expr, place: Place, *more: Expr) -> Expr | None:
        """`op` of `x`, ending at `place`, or None when `x` has nothing to reduce there."""
        level, shape = place
        if level is Level.ARRAY:
            if x.type.level is not Level.ARRAY or Dim.ONE in x.type.shape:
                return None
            if place == AT_ELEMENT:
                return call(op, x, *more, over="filter") if x.type.is_element else None
            return call(op, x, *more, over="rows" if shape[1] is Dim.ONE else "cols")
        if level is Level.TENSOR:
            return call(op, x, *more, over="tensor") if x.type.level is Level.ARRAY else None
        if x.type.level < Level.TENSOR or self.available.site is None:
            return None
        self.available.site += 1
        return call(op, x, *more, over=self.rng.choice(("group", "all")), site=self.available.site - 1)

    def draw(self, op: str, place: Place, depth: int = 0) -> Expr | None:
        """A random draw."""
        stream = self.available.stream
        if place != AT_ELEMENT or stream is None:
            return None
        if stream and self.chance(0.1):
            stream = self.rng.randrange(stream)  # the same numbers again
        else:
            self.available.stream = stream + 1
        if op != "bernoulli":
            return call(op, site=stream)
        q = self.operand(place, depth)
        if self.chance(self.weights.protect):
            q = call("min", call("abs", q), 1.0)
        return call(op, q, site=stream)

    def product(self, place: Place, depth: int) -> Expr | None:
        """A matrix product that lives at `place`."""
        level, (rows, cols) = place
        inner = self.rng.choice((Dim.R, Dim.C, Dim.R, Dim.C, Dim.ONE))
        if inner is Dim.ONE and Dim.ONE in (rows, cols):
            inner = Dim.C
        shapes = (rows, inner), (inner, cols)
        a, b = (self.number((level, shape), depth) for shape in shapes)
        if (a.type.shape, b.type.shape) != shapes:
            return None
        return call("matmul", a, b)

    def family(self, depth: int) -> Expr:
        """A matrix for each axis."""
        x = self.number(AT_AXES, depth)
        return x if x.type.shape == AXES else call("mul", x, call("identity"))

    def on_axes(self, op: str, depth: int) -> Expr:
        """An operator on a matrix for each axis."""
        if op == "identity":
            return call(op)
        if op == "matrix_power":
            if not self.chance(self.weights.protect):
                return call(op, self.family(depth), self.operand(AT_HOST, 1), self.operand(AT_HOST, 1))
            exponent, least = self.rng.choice((0.5, -0.5, -0.25, 2.0)), self.rng.choice((1e-3, 0.1, 1.0))
            return call(op, self.family(depth), exponent, least)
        x = self.number(AT_ELEMENT, depth)
        if not x.type.is_element:  # nothing to multiply, but it fits the place of the result
            return x if op == "along_axes" else call("mul", x, call("identity"))
        return call(op, x) if op == "gram" else call(op, self.family(depth), x)

    def iterations(self) -> Expr:
        """A small whole number known on the host."""
        found = self.at_hand(Kind.INT, AT_HOST)
        few = const(self.rng.randrange(1, 4))
        return few if found is None or self.chance(0.7) else call("min", found, few)

    # ---- ints -------------------------------------------------------------------------------------------

    def whole(self, place: Place, depth: int) -> Expr:
        """An int."""
        level, _ = place
        if level > Level.HOST:
            one, other = (self.whole(self.rng.choice((AT_CONST, AT_HOST)), depth - 1) for _ in range(2))
            found = self.at_hand(Kind.INT, place)
            if found is not None and self.chance(0.5):
                return call(self.rng.choice(("add", "sub", "mul", "min", "max")), found, one)
            return call("select", self.truth(place, depth - 1), one, other)
        if level is Level.HOST and depth > 0 and self.hosts(Kind.LIST) and self.chance(0.5):
            return self.asked_list("count_upto", depth)
        if depth <= 0 or level is Level.CONST or self.chance(0.6):
            found = self.at_hand(Kind.INT, AT_HOST) if level is Level.HOST else None
            return const(self.rng.randrange(5)) if found is None else found
        op = self.rng.choice(("add", "sub", "mul", "mod", "min", "max", "neg", "abs", "sign", "select"))
        a = self.whole(place, depth - 1)
        if op == "mod" and self.chance(self.weights.protect):
            return call(op, a, self.rng.randrange(1, 5))
        if op == "select":
            condition = random_condition(self.rng, self.available, self.weights)
            return call(op, condition, a, self.whole(place, depth - 1))
        return call(op, a) if CORE[op].arity == 1 else call(op, a, self.whole(place, 0))

    # ---- conditions -------------------------------------------------------------------------------------

    def truth(self, place: Place, depth: int) -> Expr:
        """A truth value."""
        if place[0] is Level.CONST:
            return const(self.chance(0.5))
        found = self.at_hand(Kind.BOOL, place)
        if found is not None and (depth <= 0 or self.chance(0.4)):
            return found
        if place == AT_HOST and self.chance(0.5):
            return random_condition(self.rng, self.available, self.weights)
        form = self.rng.randrange(8) if depth > 0 else 0
        if form == 5:
            return call(self.rng.choice(("and", "or")), self.truth(place, depth - 1), self.truth(place, 0))
        if form == 6:
            return call("not", self.truth(place, depth - 1))
        if form == 7:
            if self.chance(0.5):
                op = self.rng.choice(("eq", "ne"))
                return call(op, self.truth(place, depth - 1), self.truth(place, 0))
            condition = self.choice_condition(place, depth - 1)
            return call("select", condition, self.truth(place, depth - 1), self.truth(place, 0))
        if form == 4:
            return call("isfinite", self.number(place, depth - 1))
        op = self.rng.choice(("lt", "le", "gt", "ge", "lt", "le", "gt", "ge", "eq", "ne"))
        return call(op, *self.operands(place, max(depth - 1, 0), 2))

    def condition(self, form: str, depth: int) -> Expr | None:
        """A condition for a branch, of one of the forms that `Weights.conditions` names."""
        rng = self.rng
        asked, literals = self.asked(form)
        if form in ("both", "not"):
            return self.combined(form, depth)
        if form == "literal":
            return const(self.chance(0.5))
        if not asked:
            return None
        found = rng.choice(asked)
        if found.type.kind is Kind.BOOL:
            return found
        if found.type.kind is Kind.CHOICE:
            word = const(rng.choice(self.available.choices[found.name]))
            return call(rng.choice(("eq", "ne")), found, word)
        if form == "every":
            period = rng.randrange(2, 4)
            return call("eq", call("mod", call("sub", found, 1), period), rng.randrange(period))
        # numbers of a kind may also be compared with each other, as `rows > cols` or `t <= warmup`
        rivals: list[Var] = [v for v in self.hosts(found.type.kind) if v is not found and "." not in v.name]
        other = rng.choice(rivals) if rivals and self.chance(0.2) else const(rng.choice(literals))
        orders = ("lt", "le", "gt", "ge", "lt", "le", "gt", "ge", "eq", "ne")
        return call(rng.choice(orders[:8] if form in ("state", "time") else orders), found, other)

    def hosts(self, kind: Kind) -> list[Var]:
        """The available host values of a kind."""
        values = self.available.values
        return [v for v in values if isinstance(v, Var) and v.type.kind is kind and v.type.is_host]

    def asked(self, form: str) -> tuple[list[Var], tuple[float, ...]]:
        """What a condition of this form asks for, and numbers to compare it with."""

        def facts(kind: Kind, *names: str) -> list[Var]:
            return [v for v in self.hosts(kind) if v.name in names]

        match form:
            case "flag":
                return [v for v in self.hosts(Kind.BOOL) if v.name not in FACTS], ()
            case "choice":
                return [v for v in self.hosts(Kind.CHOICE) if v.name in self.available.choices], ()
            case "whole":
                return [v for v in self.hosts(Kind.INT) if v.name not in FACTS], (0, 1, 2, 3)
            case "number":
                return [v for v in self.hosts(Kind.FLOAT) if "." not in v.name], (0.0, 0.01, 0.5, 1.0)
            case "state":
                return self.hosts(Kind.FLOAT), (0.0, 0.1, 1.0, 2.0)
            case "shape":
                ndim = facts(Kind.INT, "ndim")
                if ndim and self.chance(0.6):
                    return ndim, (1, 2, 3)
                return facts(Kind.INT, "ndim", "numel", "rows", "cols"), (1, 2, 3)
            case "first":
                return facts(Kind.BOOL, "first_step"), ()
        return facts(Kind.INT, "t"), (1, 2, 3, 4)

    def combined(self, form: str, depth: int) -> Expr | None:
        """`not a`, `a and b` or `a or b`, of small conditions."""
        if depth <= 0:
            return None
        simple = {k: v for k, v in self.weights.conditions.items() if k not in ("both", "literal", "every")}
        parts: list[Expr] = []
        for _ in range(1 if form == "not" else 2):
            part = self.condition(pick(self.rng, simple), depth - 1)
            if part is None or _size(part) > 3:  # a longer condition would get a name
                return None
            parts.append(part)
        return call("not" if form == "not" else self.rng.choice(("and", "or")), *parts)


def _size(expr: Expr) -> int:
    return 1 + sum(map(_size, expr.args))
