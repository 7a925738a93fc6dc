"""Random methods, well typed by construction."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from optdsl.core import types as ty
from optdsl.core.types import STATE_LEVELS, Kind, Level, Type
from optdsl.ir.expr import Expr, Var, as_number, call, const, var
from optdsl.ir.program import Assign, Guard, Hyper, Interval, Program, State
from optdsl.search.generate.expressions import (
    AT_COLS,
    AT_CONST,
    AT_ELEMENT,
    AT_GROUP,
    AT_HOST,
    AT_ROWS,
    AT_TENSOR,
    TAME,
    Available,
    Maker,
    Place,
    Weights,
    inputs_of,
    pick,
    random_condition,
    random_expr,
)

_FLOATS = ("lr", "weight_decay", "momentum", "eps", "rho", "tau", "kappa", "scale")
_INTS = ("k", "warmup", "window")
_FLAGS = ("nesterov", "amsgrad", "decoupled")
_CHOICES = ("mode", "norm_kind")
_TUPLES = ("betas", "rates")
_STATES = ("m", "v", "s", "z", "mu", "avg", "peak", "d")
_INPUTS = ("curvature", "other_g", "noise")
_NUMBERS = ("loss", "spread")
_LISTS = ("milestones", "factors")
_LOCALS = ("u", "h", "q", "r", "a", "b", "step_size", "ratio", "gain", "x")
_WORDS = ("l2", "decoupled", "max", "mean", "none", "row wise")

_INTERVALS = (
    Interval(0, math.inf), Interval(0, math.inf, low_open=True, high_open=True), Interval(0, 1),
    Interval(0, 1, high_open=True), Interval(-1, 1), Interval(-math.inf, math.inf), None,
)  # fmt: skip


def random_program(
    rng: random.Random,
    size: int = 12,
    weights: Weights = TAME,
    name: str = "Random",
    inputs: bool = False,
    lists: bool = False,
) -> Program:
    """A method with about `size` statements. It always assigns `p`.

    With `inputs`, many take some beside the gradient, and many have a view for evaluation; with `lists`, many have
    lists among their hyperparameters.
    """
    hypers = _random_hypers(rng)
    if lists:
        hypers += _random_lists(rng)
    states = _random_states(rng, weights, hypers)
    if inputs and rng.random() < 0.4:
        names = rng.sample(_INPUTS, rng.randrange(1, 3))
        states += tuple(
            State(n, n, ty.element(), None, given=True, doc=rng.choice(("", "more"))) for n in names
        )
    if inputs and rng.random() < 0.3:
        name = rng.choice(_NUMBERS)
        states += (State(name, name, Type(Kind.FLOAT, *AT_GROUP), None, given=True),)
    program = _Steps(rng, weights, hypers, states).run(size, name)
    if inputs and rng.random() < 0.4:
        view = _Steps(rng, weights, hypers, states, view=True).run(rng.randrange(1, 5), name)
        program = replace(program, view=replace(view, doc="", cite=""))
    return program


def _random_hypers(rng: random.Random) -> tuple[Hyper, ...]:
    hypers = [
        Hyper("lr", "lr", Kind.FLOAT, rng.choice((1e-3, 0.1, 0.01)), Interval(0, math.inf), (), "step size")
    ]
    for name in rng.sample(_FLOATS[1:], rng.randrange(4)):
        interval = rng.choice(_INTERVALS)
        default = rng.choice(
            [x for x in (0.0, 1e-8, 0.01, 0.5, 0.9, 1.0) if interval is None or x in interval]
        )
        doc = rng.choice(("", "", "how much of it"))
        hypers.append(Hyper(name, name, Kind.FLOAT, default, interval, (), doc))
    for name in rng.sample(_INTS, rng.randrange(3)):
        hypers.append(Hyper(name, name, Kind.INT, rng.randrange(1, 6), rng.choice((Interval(1, 8), None))))
    for name in rng.sample(_FLAGS, rng.randrange(3)):
        hypers.append(Hyper(name, name, Kind.BOOL, rng.random() < 0.5))
    for name in rng.sample(_CHOICES, rng.randrange(3)):
        choices = tuple(rng.sample(_WORDS, rng.randrange(2, 4)))
        hypers.append(Hyper(name, name, Kind.CHOICE, rng.choice(choices), None, choices))
    for name in rng.sample(_TUPLES, rng.randrange(3)):
        parts = [f"{name[:-1]}{number}" for number in range(1, rng.randrange(3, 5))]
        if rng.random() < 0.8:
            kind, defaults, interval = Kind.FLOAT, (0.9, 0.99, 0.5, 0.0), Interval(0, 1, high_open=True)
        else:
            kind, defaults, interval = Kind.INT, (1, 2, 3, 4), Interval(0, 9)
        for part in parts:
            hypers.append(Hyper(part, name, kind, rng.choice(defaults), interval))
    first, *rest = hypers
    # a tuple stays together, everything else may come in any order
    groups = [[h for h in rest if h.argument == a] for a in dict.fromkeys(h.argument for h in rest)]
    rng.shuffle(groups)
    return (first, *(hyper for group in groups for hyper in group))


def _random_lists(rng: random.Random) -> tuple[Hyper, ...]:
    hypers: list[Hyper] = []
    for name in rng.sample(_LISTS, rng.choice((0, 0, 1, 2))):
        some: tuple[tuple[float, ...], ...] = (2,), (1, 3, 3), (4, 2, 0), (0.5,), (1.0, 0.1, 0.25)
        interval = rng.choice((Interval(0, math.inf), None))
        hypers.append(Hyper(name, name, Kind.LIST, rng.choice(some), interval))
    return tuple(hypers)


def _random_states(rng: random.Random, weights: Weights, hypers: tuple[Hyper, ...]) -> tuple[State, ...]:
    states: list[State] = []
    inputs = list(inputs_of(hypers).values())
    choices = {h.name: h.choices for h in hypers if h.choices}
    for name in rng.sample(_STATES, rng.randrange(1, 6)):
        type_ = Type(Kind.FLOAT, *STATE_LEVELS[pick(rng, weights.levels)])
        init: Expr | None = const(rng.choice((0, 0, 0.0, 1.0, 1e-6)))
        if rng.random() < 0.1:
            init = None
        elif rng.random() < 0.3:
            place = type_.level, type_.shape
            init = Maker(rng, Available(inputs, [], choices, None, None), weights).number(
                AT_HOST if place == AT_GROUP and rng.random() < 0.5 else place, 1
            )
        key = rng.choice((name, f"exp_{name}", f"{name}_buffer"))
        delay = rng.randrange(1, 4) if type_.is_element and init is not None and rng.random() < 0.1 else None
        states.append(State(name, key, type_, init, delay=delay))
    return tuple(states)


class _Steps:
    """Writes the statements of a step, or of a `view`; `now` is what each name stands for."""

    def __init__(
        self,
        rng: random.Random,
        weights: Weights,
        hypers: tuple[Hyper, ...],
        states: tuple[State, ...],
        view: bool = False,
    ) -> None:
        self.rng = rng
        self.weights = weights
        self.hypers = hypers
        self.states = states
        self.body: list[Assign] = []
        self.guard: Guard = ()
        self.versions: dict[str, int] = {}
        self.now = inputs_of(hypers)
        self.now |= {s.name: var(s.name, s.type) for s in states if s.init is not None or s.given}
        self.view = view
        if view:
            for unseen in ("g", *(s.name for s in states if s.given)):
                del self.now[unseen]
        self.kept = () if view else tuple(s for s in states if not s.given)
        self.targets = {"p": AT_ELEMENT, "g": AT_ELEMENT} | {
            s.name: (s.type.level, s.type.shape) for s in states
        }
        self.kinds: dict[str, Kind] = {}
        self.old: list[Expr] = []
        self.choices = {h.name: h.choices for h in hypers if h.choices}
        self.site: int | None = None if view else 0
        self.stream: int | None = None if view else 0

    def run(self, size: int, name: str) -> Program:
        """The whole program."""
        for state in self.kept:
            if state.init is None:  # has no value until it gets one
                self.assign(state.name, self.expr(Kind.FLOAT, self.targets[state.name]))
        self.block(size, 0)
        if "p" not in self.versions or self.rng.random() < 0.8:
            self.move()
        results = {n: self.now[n] for n in ("p", *(s.name for s in self.kept)) if n in self.now}
        results = {
            n: value for n, value in results.items() if not (isinstance(value, Var) and value.name == n)
        }
        doc = self.rng.choice(("", "A random method.", "A random method.\n\nNobody has published it."))
        cite = self.rng.choice(("", "Nobody 2026, Noise"))
        return Program(name, doc, cite, self.hypers, self.states, tuple(self.body), results)

    # ---- statements -------------------------------------------------------------------------------------

    def block(self, size: int, depth: int) -> None:
        """About `size` statements."""
        while size > 0:
            if size >= 2 and depth < self.weights.nesting and self.rng.random() < self.weights.branch:
                inside = self.rng.randrange(1, size)
                self.branch(inside, depth)
                size -= inside + 1
            else:
                self.statement()
                size -= 1

    def statement(self) -> None:
        """One assignment."""
        rng = self.rng
        target = rng.randrange(10)
        if target < 2:
            self.move()
        elif target == 2 and not self.view:
            self.assign("g", self.expr(Kind.FLOAT, self.place("g")))
        elif target < 6 and self.kept:
            self.remember(rng.choice(self.kept))
        else:
            self.local()

    def move(self) -> None:
        """`p = ...`"""
        amount = self.expr(Kind.FLOAT, self.place("p"))
        if self.rng.random() < self.weights.descend:
            rate = self.now["lr"] if self.rng.random() < 0.7 else self.expr(Kind.FLOAT, AT_HOST)
            amount = call("sub", self.now["p"], call("mul", rate, amount))
        self.assign("p", amount)

    def place(self, name: str) -> Place:
        """Where the next value of `p` or `g` lives."""
        if self.rng.random() < self.weights.coarse_p:
            return self.rng.choice((AT_HOST, AT_TENSOR, AT_ROWS, AT_COLS))
        return self.targets[name]

    def remember(self, state: State) -> None:
        """A new value for a state."""
        place = self.targets[state.name]
        if self.rng.random() < self.weights.average and state.name in self.now:
            before = self.now[state.name]
            share = const(self.rng.choice((0.1, 0.5, 0.9)))
            betas = [self.now[h.name] for h in self.hypers if h.argument == "betas" and h.kind is Kind.FLOAT]
            beta = self.rng.choice([share, *betas])
            x = self.expr(Kind.FLOAT, place)
            value: Expr = call("add", call("mul", beta, before), call("mul", call("sub", 1, beta), x))
        elif place[0] <= Level.HOST and self.rng.random() < 0.3:
            value = as_number(self.expr(self.rng.choice((Kind.INT, Kind.BOOL)), place))
        else:
            value = self.expr(Kind.FLOAT, place)
        self.assign(state.name, value)

    def local(self) -> None:
        """A new name, or a new value for one."""
        rng = self.rng
        names = [n for n in self.now if n in _LOCALS]
        if names and rng.random() < 0.3:
            name = rng.choice(names)
            type_ = self.now[name].type
            # whatever the paths bring, the values of one name must broadcast
            self.assign(name, self.expr(type_.kind, (type_.level, type_.shape)))
            return
        free = [n for n in _LOCALS if n not in self.now]
        if not free:
            self.move()
            return
        level = pick(rng, {**self.weights.levels, "const": 0.3})
        kind = rng.choice((*[Kind.FLOAT] * 7, Kind.BOOL, Kind.INT))
        name = rng.choice(free)
        # the same place wherever a name is used, so that the values of two paths broadcast
        place = self.targets.setdefault(name, AT_CONST if level == "const" else STATE_LEVELS[level])
        if rng.random() >= self.weights.truth:
            kind = self.kinds.setdefault(name, kind)
        self.assign(name, self.expr(kind, place))

    def branch(self, size: int, depth: int) -> None:
        """`if`, its blocks, and the values that the names have after it."""
        condition = random_condition(self.rng, self.available(), self.weights)
        other = self.rng.randrange(size) if size > 1 and self.rng.random() < self.weights.otherwise else 0
        before, old = dict(self.now), list(self.old)
        sides: list[dict[str, Expr]] = []
        for wanted, inside in ((True, size - other), (False, other)):
            self.now, self.old = dict(before), list(old)
            self.guard = (*self.guard, (condition, wanted))
            self.block(inside, depth + 1)
            self.guard = self.guard[:-1]
            sides.append(self.now)
        then, otherwise = sides
        self.now, self.old = before, old
        for name in [n for n in then if n in otherwise and then[n] is not otherwise[n]]:
            self.assign(name, call("select", condition, then[name], otherwise[name]))

    def assign(self, name: str, expr: Expr) -> None:
        """`name = expr`."""
        self.versions[name] = self.versions.get(name, 0) + 1
        made = Assign(f"{name}.{self.versions[name]}", name, expr, self.guard)
        self.body.append(made)
        if name in self.now:
            self.old.append(self.now[name])
        self.now[name] = made.var

    # ---- expressions ------------------------------------------------------------------------------------

    def available(self) -> Available:
        """What may be read now."""
        return Available(list(self.now.values()), self.old, self.choices, self.site, self.stream)

    def expr(self, kind: Kind, place: Place) -> Expr:
        """An expression of what may be read now."""
        available = self.available()
        depth = self.rng.randrange(1, self.weights.depth + 1)
        made = random_expr(self.rng, available, Type(kind, *place), depth, self.weights)
        self.site, self.stream = available.site, available.stream
        return made
