"""A genome while it is changed: every kind of change, and where it may be made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

from optdsl.core import types as ty
from optdsl.core.types import Kind, Level, Type
from optdsl.ir.expr import var
from optdsl.ir.program import Hyper, Interval
from optdsl.search.generate import TAME, Available, pick, random_expr
from optdsl.search.space.genome import LR, Flat, Genome, Ref, Refused, Slot, Statement, fresh, type_of, typed
from optdsl.search.space.transforms import Around, transforms

#: An argument of a statement (index of the statement, of the argument), or what is left in a name.
Site = tuple[int, int] | str

_ELEMENT = ty.element()
_RATE = Interval(0.0, math.inf)
_SHARE = Interval(0.0, 1.0)

#: Operators of one operand that may come around a value, of two that may join it with another.
_UNARY = {"sign": 1.0, "abs": 1.0, "sqrt": 1.5, "neg": 0.5, "square": 1.5, "tanh": 0.7, "log1p": 0.4, "atan": 0.4,
          "exp": 0.2, "sin": 0.1, "cos": 0.1}  # fmt: skip
_BINARY = {"mul": 2.0, "add": 2.0, "sub": 1.5, "div": 1.5, "mix": 2.5, "min": 0.6, "max": 0.8, "atan2": 0.2}
#: Operators that may stand for one another.
_ALIKE = (
    ("add", "sub", "mul", "div", "min", "max", "atan2", "pow"),
    ("abs", "sign", "sqrt", "neg", "tanh", "atan", "log1p", "exp", "sin", "cos"),
    ("lt", "le", "gt", "ge"),
    ("and", "or"),
    ("reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "norm", "rms"),
)
_OTHERS = {op: tuple(o for o in group if o != op) for group in _ALIKE for op in group}

#: What `random_expr` is to write: nothing random, joint, or with branches.
SMALL = replace(
    TAME,
    operators={
        **TAME.operators,
        **{"sign": 1.0, "tan": 0.0, "erf": 0.0, "mod": 0.0, "select": 0.0, "broadcast": 0.0},
        **dict.fromkeys(("matmul", "transpose", "newton_schulz", "reduce_kth_largest"), 0.0),
        **dict.fromkeys(("normal", "uniform", "rademacher", "bernoulli", "asin", "acos"), 0.0),
    },
    joint=0.0,
    whole=0.0,
    branch=0.0,
    levels={"element": 1.0},
)
#: Operators that make no negative number of others that are none.
_POSITIVE = frozenset(
    {"add", "mul", "div", "min", "max", "mix", "pow", "reduce_sum", "reduce_mean", "tanh", "atan", "log1p"}
)


def tunable(genome: Genome, keep: Sequence[float] = (0.0, 1.0, 2.0, -1.0)) -> Genome:
    """`genome` with its literals as hyperparameters c0, c1..., but for ints and those of `keep`."""
    taken, hypers = genome.taken(), list(genome.hypers)

    def lifted(s: Statement, k: int) -> Ref:
        ref = s.args[k]
        if not isinstance(ref, float) or ref in keep or not math.isfinite(ref):
            return ref
        name = named("c", taken)
        share = s.op == "mix" and k == 0 and 0 <= ref <= 1
        hypers.append(Hyper(name, name, Kind.FLOAT, ref, _SHARE if share else _RATE if ref > 0 else None))
        return name

    body = tuple(replace(s, args=tuple(lifted(s, k) for k in range(len(s.args)))) for s in genome.body)
    return replace(genome, body=body, hypers=tuple(hypers))


def named(stem: str, taken: set[str]) -> str:
    """The first of stem0, stem1... that is free; it is taken then."""
    number = 0
    while f"{stem}{number}" in taken:
        number += 1
    taken.add(f"{stem}{number}")
    return f"{stem}{number}"


class Draft:
    """A genome while it is changed. A change returns False where there is nothing that it could change."""

    def __init__(self, rng: Random, genome: Genome) -> None:
        self.rng = rng
        self.hypers = list(genome.hypers)
        self.states = list(genome.states)
        self.body = list(genome.body)
        self.leaves: dict[str, Ref] = genome.leaves
        self.taken = genome.taken()
        self.types = typed(genome)

    def genome(self) -> Genome:
        """What has become of it."""
        known = {s.name for s in self.states}
        results = tuple((n, r) for n, r in self.leaves.items() if (n == "p" or n in known) and n != r)
        return Genome(tuple(self.hypers), tuple(self.states), tuple(self.body), results)

    def change(self, kind: str) -> bool:
        """One change of a kind, one of CHANGES."""
        found: Callable[[], bool] = getattr(self, kind)
        return found()

    # ---- where values are read --------------------------------------------------------------------------

    def sites(self, wanted: Callable[[Type], bool] = lambda type_: True) -> list[Site]:
        """Where a value of a wanted type is read. Literals that shape an operator (`x^2`) are left alone."""
        found: list[Site] = [
            (n, k)
            for n, s in enumerate(self.body)
            for k, a in enumerate(s.args)
            if isinstance(a, str) and wanted(self.types[a])
        ]
        found += [n for n, a in self.leaves.items() if isinstance(a, str) and wanted(self.types[a])]
        return found

    def at(self, site: Site) -> Ref:
        """What is read there."""
        return self.leaves[site] if isinstance(site, str) else self.body[site[0]].args[site[1]]

    def put(self, site: Site, ref: Ref) -> None:
        """Another value is read there."""
        if isinstance(site, str):
            self.leaves[site] = ref
            return
        n, k = site
        s = self.body[n]
        self.body[n] = replace(s, args=(*s.args[:k], ref, *s.args[k + 1 :]))

    def position(self, site: Site) -> int:
        """Statements before this index may be read there."""
        return len(self.body) if isinstance(site, str) else site[0]

    def readable(self, position: int) -> list[str]:
        """Names that may be read in front of a statement."""
        names = ["p", "g", *(s.name for s in self.states), *(h.name for h in self.hypers)]
        return names + [s.name for s in self.body[:position]]

    def like(self, type_: Type, position: int, but: Ref | None = None) -> list[str]:
        """Names of values at the place of `type_`, of its kind, that may be read in front of a statement."""
        return [n for n in self.readable(position) if n != but and place(self.types[n]) == place(type_)]

    def coarser(self, type_: Type, position: int) -> list[str]:
        """Names of numbers that broadcast into `type_`."""
        return [
            n
            for n in self.readable(position)
            if n != LR
            and self.types[n].kind.numeric
            and self.types[n].level < type_.level
            and ty.broadcasts_into(self.types[n].shape, type_.shape)
        ]

    # ---- new things -------------------------------------------------------------------------------------

    def new(self, position: int, op: str, *args: Ref, over: str | None = None) -> str:
        """A statement in front of another; returns its name. Its type is found out by `typed` at the end."""
        name = fresh("x", self.taken)
        self.taken.add(name)
        if op == "square":
            op, args = "pow", (args[0], 2)
        self.body.insert(position, Statement(name, op, args, over))
        return name

    def number(self, role: str) -> str:
        """A hyperparameter: a new one, or one that has this role already. `role` is share, small, or number."""
        rng = self.rng
        interval = _SHARE if role == "share" else _RATE
        used = [
            h.name
            for h in self.hypers
            if h.name != LR and h.interval is not None and (h.interval.high <= 1) is (role == "share")
            and (float(h.one) < 1e-4) is (role == "small")
        ]  # fmt: skip
        if used and rng.random() < 0.5:
            return rng.choice(used)
        value = {
            "share": lambda: 1 - 10 ** rng.uniform(-3.0, -0.1),
            "small": lambda: 10 ** rng.uniform(-12.0, -4.0),
            "number": lambda: math.exp(rng.gauss(0.0, 1.0)),
        }[role]()
        name = named("c", self.taken)
        self.hypers.append(Hyper(name, name, Kind.FLOAT, value, interval))
        self.types[name] = ty.host()
        return name

    def partner(self, type_: Type, position: int, but: Ref) -> Ref:
        """Something to join with a value of this type."""
        kind = self.rng.random()
        if kind < 0.65 and (found := self.like(type_, position, but)):
            return self.rng.choice(found)
        if kind < 0.8 and (found := self.coarser(type_, position)):
            return self.rng.choice(found)
        return self.number("number")

    def safe(self, position: int, op: str, x: Ref) -> tuple[int, Ref]:
        """`x` in the domain of `op`, mostly: (position behind what that took, value)."""
        if self.rng.random() < 0.15 or self.positive(x):
            return position, x
        return position + 1, self.new(position, "abs", x)

    def positive(self, ref: Ref) -> bool:
        """True where a value is certainly not negative."""
        if not isinstance(ref, str):
            return ref >= 0
        sure = {h.name for h in self.hypers if h.interval is not None and h.interval.low >= 0} | {"t"}
        states = {s.name for s in self.states if not isinstance(s.init, str) and s.init >= 0}
        while True:  # states stay so for as long as what the step leaves in them does
            found = sure | states
            for s in self.body:
                args = [a in found if isinstance(a, str) else a >= 0 for a in s.args]
                always = s.op in ("abs", "sqrt", "exp", "norm", "rms") or (s.op == "pow" and s.args[1] == 2)
                if always or (all(args) and s.op in _POSITIVE) or (any(args) and s.op == "max"):
                    found.add(s.name)
            left = {n for n in states if self.leaves.get(n, n) in found}
            if left == states:
                return ref in found
            states = left

    def around(self, position: int, x: Ref, type_: Type) -> tuple[int, str]:
        """A new value of the type `type_` made of `x`: (position behind it, its name)."""
        rng = self.rng
        if rng.random() < 0.35:
            op = pick(rng, _UNARY)
            if op in ("sqrt", "log1p"):
                position, x = self.safe(position, op, x)
            return position + 1, self.new(position, op, x)
        op = pick(rng, _BINARY)
        y = self.partner(type_, position, x)
        if op == "mix":
            w = self.number("share")
            args: tuple[Ref, ...] = (w, x, y) if rng.random() < 0.5 else (w, y, x)
            return position + 1, self.new(position, op, *args)
        args = (x, y) if rng.random() < 0.6 else (y, x)
        if op == "div" and rng.random() < 0.85:
            top, bottom = args
            position, bottom = self.safe(position, op, bottom)
            bottom = self.new(position, "add", bottom, self.number("small"))
            return position + 2, self.new(position + 1, op, top, bottom)
        return position + 1, self.new(position, op, *args)

    # ---- changes ----------------------------------------------------------------------------------------

    def insert(self) -> bool:
        """An operator comes between a value and one place where it is read."""
        sites = self.sites(lambda t: t.kind.numeric and t.level >= Level.TENSOR)
        if not sites:
            return False
        site = self.rng.choice(sites)
        ref = self.at(site)
        position, count = self.position(site), len(self.body)
        _, name = self.around(position, ref, type_of(ref, self.types))
        if isinstance(site, str):
            self.put(site, name)
        else:
            self.put((site[0] + len(self.body) - count, site[1]), name)
        return True

    def delete(self) -> bool:
        """A statement goes; what read it reads one of its operands, or another value of its type."""
        if not self.body:
            return False
        n = self.rng.randrange(len(self.body))
        s = self.body[n]
        type_ = self.types[s.name]
        same: list[Ref] = [a for a in s.args if isinstance(a, str) and place(self.types[a]) == place(type_)]
        if not same or self.rng.random() < 0.1:
            same = [*self.like(type_, n)]
        if not same and type_.kind.numeric:
            same = [1]
        if not same:
            return False
        self.replaced(s.name, self.rng.choice(same))
        del self.body[n]
        return True

    def replaced(self, name: str, ref: Ref) -> None:
        """`ref` is read wherever `name` was."""
        self.body = [
            replace(s, args=tuple(ref if a == name and isinstance(a, str) else a for a in s.args))
            if name in s.args
            else s
            for s in self.body
        ]
        self.leaves = {n: ref if r == name and isinstance(r, str) else r for n, r in self.leaves.items()}

    def rewrite(self) -> bool:
        """A statement computes something else of the same type: a small expression of the shared generator."""
        spots = [n for n, s in enumerate(self.body) if self.types[s.name].kind is Kind.FLOAT]
        if not spots:
            return False
        n = self.rng.choice(spots)
        s = self.body[n]
        values = [
            var(name, self.types[name]) for name in self.readable(n) if self.types[name].kind is not Kind.BOOL
        ]
        available = Available(list(values), site=None, stream=None)
        expr = random_expr(self.rng, available, self.types[s.name], 1, SMALL)
        flat = Flat(self.taken)
        try:
            ref = flat.ref(expr)
        except Refused:
            return False
        self.taken |= flat.taken
        self.replaced(s.name, ref)
        self.body[n : n + 1] = flat.body
        lifted = tunable(replace(self.genome(), body=tuple(flat.body)))
        self.hypers = list(lifted.hypers)
        self.body[n : n + len(flat.body)] = lifted.body
        return True

    def operator(self) -> bool:
        """Another operator on the same operands."""
        spots = [n for n, s in enumerate(self.body) if _OTHERS.get(s.op) and s.args[-1] != 2]
        if not spots:
            return False
        n = self.rng.choice(spots)
        s = self.body[n]
        self.body[n] = replace(s, op=self.rng.choice(_OTHERS[s.op]))
        return True

    def argument(self) -> bool:
        """Another value is read in one place: a state before or after its update, or another one of the type."""
        sites = self.sites()
        if not sites:
            return False
        site = self.rng.choice(sites)
        ref = self.at(site)
        type_ = type_of(ref, self.types)
        position = self.position(site)
        found: list[str] = []
        if self.rng.random() < 0.25:
            found = [a for a, b in self.leaves.items() if b == ref and a != "p"]
            found += [b for a, b in self.leaves.items() if a == ref and isinstance(b, str)]
            found = [n for n in found if n in self.readable(position) and n != ref]
        if not found and self.rng.random() < 0.1 and type_.kind.numeric:
            found = self.coarser(type_, position)
        found = found or self.like(type_, position, ref)
        if not found:
            return False
        self.put(site, self.rng.choice(found))
        return True

    def constant(self) -> bool:
        """A hyperparameter gets another default: log-normal, in its interval. The learning rate is tuned anyway."""
        used = {a for s in self.body for a in s.args} | set(self.leaves.values())
        spots = [n for n, h in enumerate(self.hypers) if h.name != LR and h.name in used]
        if not spots:
            return False
        n = self.rng.choice(spots)
        self.hypers[n] = moved(self.rng, self.hypers[n])
        return True

    def swap(self) -> bool:
        """Two statements change places: one that reads the other goes in front of it; or two operands do."""
        links = [
            (names[a], n, k)
            for names in [{s.name: n for n, s in enumerate(self.body)}]
            for n, s in enumerate(self.body)
            for k, a in enumerate(s.args)
            if isinstance(a, str) and a in names
        ]
        self.rng.shuffle(links)
        for first, second, k in links:
            a, b = self.body[first], self.body[second]
            inner = [
                j
                for j, x in enumerate(a.args)
                if isinstance(x, str) and place(self.types[x]) == place(self.types[a.name])
            ]
            if not inner or place(self.types[a.name]) != place(self.types[b.name]):
                continue
            j = self.rng.choice(inner)
            readable = {*self.readable(first), *(x for x in b.args if not isinstance(x, str))}
            rest = [x for i, x in enumerate(b.args) if i != k]
            if any(x not in readable for x in rest):
                continue
            x = a.args[j]
            # b(a(x)) becomes a(b(x)), each under the name of the other's place
            self.body[first] = Statement(a.name, b.op, (*b.args[:k], x, *b.args[k + 1 :]), b.over)
            self.body[second] = Statement(b.name, a.op, (*a.args[:j], a.name, *a.args[j + 1 :]), a.over)
            return True
        pairs = [n for n, s in enumerate(self.body) if s.op in ("sub", "div", "atan2", "pow")]
        if not pairs:
            return False
        n = self.rng.choice(pairs)
        s = self.body[n]
        self.body[n] = replace(s, args=s.args[::-1])
        return True

    def add_state(self) -> bool:
        """A state that follows some value, read in one place together with what was read there."""
        rng = self.rng
        name = named("s", self.taken)
        sources = self.like(_ELEMENT, len(self.body))
        source = rng.choice(["g", rng.choice(sources)])
        position = 1 + next((n for n, s in enumerate(self.body) if s.name == source), -1)
        self.states.append(Slot(name, "element", 0.0))
        self.types[name] = _ELEMENT
        kind = pick(rng, {"mix": 6.0, "square": 2.0, "add": 1.0, "max": 0.5, "past": 1.0})
        if kind == "past":
            new, self.leaves[name] = name, source
        else:
            if kind == "square":
                source = self.new(position, "square", source)
                self.types[source] = _ELEMENT
                position += 1
            args: tuple[Ref, ...] = (
                (self.number("share"), name, source) if kind in ("mix", "square") else (name, source)
            )
            new = self.new(position, "mix" if kind == "square" else kind, *args)
            self.types[new] = _ELEMENT
            self.leaves[name] = new
            position += 1
        sites = [s for s in self.sites(lambda t: t == _ELEMENT) if self.position(s) >= position and s != name]
        sites = [s for s in sites if self.at(s) != new and self.at(s) != name]
        if not sites:
            return False
        site = rng.choice(sites)
        at, x = self.position(site), self.at(site)
        how = pick(rng, {"instead": 2.0, "add": 1.0, "mul": 1.0, "sub": 1.0, "div": 1.5, "mix": 1.0})
        count = len(self.body)
        if how == "instead":
            value = new
        elif how == "mix":
            value = self.new(at, how, self.number("share"), x, new)
        elif how == "div":
            bottom = new
            if kind == "square" or not self.positive(new):
                bottom = self.new(at, "sqrt" if kind == "square" else "abs", new)
                at += 1
            bottom = self.new(at, "add", bottom, self.number("small"))
            value = self.new(at + 1, "div", x, bottom)
        else:
            value = self.new(at, how, x, new)
        shift = len(self.body) - count
        self.put(site if isinstance(site, str) else (site[0] + shift, site[1]), value)
        return True

    def drop_state(self) -> bool:
        """A state goes; where it was read stands what it follows, or another value of its type."""
        if not self.states:
            return False
        slot = self.rng.choice(self.states)
        after = self.leaves.get(slot.name)
        s = next((s for s in self.body if s.name == after), None)
        names = {x.name for x in self.body}
        follows = [
            a for a in (s.args if s else ()) if a not in names and a != slot.name and isinstance(a, str)
        ]
        found = [a for a in follows if place(self.types[a]) == place(self.types[slot.name])]
        found = found or self.like(self.types[slot.name], 0, slot.name)
        if not found:
            return False
        self.states.remove(slot)
        self.leaves.pop(slot.name, None)
        self.replaced(slot.name, self.rng.choice(found))
        return True

    # ---- larger steps -----------------------------------------------------------------------------------

    def split(self) -> tuple[Ref, Ref]:
        """(x, u) with x - u left in `p`, where x is `p` or a multiple of it: the parameter, decayed maybe."""
        by_name = {s.name: s for s in self.body}
        ref = self.leaves.get("p", "p")
        last = by_name.get(str(ref))
        if last is not None and last.op == "sub":
            x, u = last.args
            decayed = by_name.get(str(x))
            if x == "p" or (
                decayed is not None
                and decayed.op == "mul"
                and "p" in decayed.args
                and any(type_of(a, self.types).is_host for a in decayed.args)
            ):
                return x, u
        return "p", self.new(len(self.body), "sub", "p", ref)

    def moved(self, x: Ref, u: Ref) -> None:
        """x - u is left in `p`."""
        self.leaves["p"] = self.new(len(self.body), "sub", x, u)

    def mask(self) -> bool:
        """Leaves out the entries of the update that disagree in sign with the gradient."""
        x, u = self.split()
        end = len
        product = self.new(end(self.body), "mul", u, "g")
        agrees = self.new(end(self.body), "gt", product, 0)
        kept = self.new(end(self.body), "select", agrees, 1.0, 0.0)
        u = self.new(end(self.body), "mul", u, kept)
        if self.rng.random() < 0.5:
            share = self.new(end(self.body), "reduce_mean", kept, over="tensor")
            share = self.new(end(self.body), "max", share, 1e-3)
            u = self.new(end(self.body), "div", u, share)
        self.moved(x, u)
        return True

    def nesterov(self) -> bool:
        """Where an average is read, it is brought one step nearer to what it follows."""
        averages = {
            s.name: (n, s)
            for n, s in enumerate(self.body)
            if s.op == "mix" and s.name in self.leaves.values()
        }
        sites = [s for s in self.sites() if self.at(s) in averages and not (isinstance(s, str) and s != "p")]
        if not sites:
            return False
        site = self.rng.choice(sites)
        _, s = averages[str(self.at(site))]
        w, x, y = s.args
        value = self.new(
            self.position(site), "mix", w, s.name, y if x in {z.name for z in self.states} else x
        )
        self.put(site if isinstance(site, str) else (site[0] + 1, site[1]), value)
        return True

    def clip(self) -> bool:
        """Bounds the gradient, or the update in units of the learning rate, on both sides."""
        limit = self.number("number")
        if self.rng.random() < 0.5:
            return self.fronted(Around((), (), (
                Statement("low", "neg", (limit,)), Statement("high", "min", ("g", limit)),
                Statement("made", "max", ("high", "low")),
            ), "made", (), True))  # fmt: skip
        x, u = self.split()
        limit = self.new(len(self.body), "mul", LR, limit)
        low = self.new(len(self.body), "neg", limit)
        u = self.new(len(self.body), "min", u, limit)
        self.moved(x, self.new(len(self.body), "max", u, low))
        return True

    def wrap(self) -> bool:
        """A shipped transform goes around the method."""
        around = self.rng.choice(transforms())
        return self.fronted(around) if around.front else self.behind(around)

    def fronted(self, around: Around) -> bool:
        """What `around` makes of the gradient is read wherever the gradient was."""
        body, states, leaves, value = self.imported(around, {})
        self.replaced("g", value)
        self.body[:0] = body
        self.states += states
        self.leaves.update(leaves)
        return True

    def behind(self, around: Around) -> bool:
        """What `around` makes of the update is left in `p`."""
        x, u = self.split()
        if not isinstance(u, str) or self.types.get(u, _ELEMENT) != _ELEMENT:
            return False
        body, states, leaves, value = self.imported(around, {"u": u, "p": x})
        self.body += body
        self.states += states
        self.leaves.update(leaves)
        self.leaves["p"] = value
        return True

    def imported(
        self, other: Around, given: Mapping[str, Ref]
    ) -> tuple[list[Statement], list[Slot], dict[str, Ref], Ref]:
        """Statements and states of another under names of their own; hyperparameters alike in both are one."""
        names: dict[str, Ref] = dict(given)
        mine = {h.name: h for h in self.hypers}
        for h in other.hypers:
            if h.name == LR or mine.get(h.name) == h:
                continue
            name = h.name if h.name not in self.taken else named("c", self.taken)
            self.taken.add(name)
            names[h.name] = name
            self.hypers.append(replace(h, name=name, argument=name))
        for slot in other.states:
            names[slot.name] = named("s", self.taken)
        for s in other.body:
            names[s.name] = fresh("x", self.taken)
            self.taken.add(str(names[s.name]))

        def new(ref: Ref) -> Ref:
            return names.get(ref, ref) if isinstance(ref, str) else ref

        body = [Statement(str(names[s.name]), s.op, tuple(map(new, s.args)), s.over) for s in other.body]
        states = [Slot(str(names[s.name]), s.level, new(s.init)) for s in other.states]
        return body, states, {str(names[n]): new(r) for n, r in other.results}, new(other.value)

    def graft(self, other: Genome) -> bool:
        """A value of another genome is read in one place, with all that it is made of."""
        types = typed(other)
        if self.rng.random() < 0.3:
            theirs = {h.name: h for h in other.hypers}
            self.hypers = [
                theirs[h.name] if h.name != LR and h.name in theirs and self.rng.random() < 0.5 else h
                for h in self.hypers
            ]
        chosen = [
            s.name for s in other.body if types[s.name].level >= Level.TENSOR and types[s.name].kind.numeric
        ]
        if not chosen:
            return False
        value = self.rng.choice(chosen)
        sites = self.sites(lambda t: place(t) == place(types[value]))
        if not sites:
            return False
        site = self.rng.choice(sites)
        around = Around(
            other.hypers,
            other.states,
            other.body,
            value,
            tuple((n, r) for n, r in other.results if n != "p"),
            True,
        )
        body, states, leaves, ref = self.imported(around, {})
        self.put(site, ref)
        self.body[:0] = body
        self.states += states
        self.leaves.update(leaves)
        return True


def moved(rng: Random, hyper: Hyper) -> Hyper:
    """`hyper` with a default 2^a times as far from the nearer end of its interval (from 0), a standard normal."""
    factor, value, interval = 2.0 ** rng.gauss(0.0, 1.0), float(hyper.one), hyper.interval
    if interval is not None and math.isfinite(interval.high) and value > (interval.low + interval.high) / 2:
        new = interval.high - (interval.high - value) * factor
    elif value == 0:
        new = 10 ** rng.uniform(-4.0, 0.0)
    else:
        new = value * factor
    if hyper.kind is Kind.INT:
        whole = max(1, round(new))
        return replace(hyper, default=whole) if interval is None or whole in interval else hyper
    if interval is not None and new not in interval:
        # beyond an end: as far inside as that is possible
        new = value + (new - value) * 0.5
        if new not in interval:
            return hyper
    return replace(hyper, default=new)


def place(type_: Type) -> tuple[object, ...]:
    """Level, shape, and whether it is a truth value: what counts where one value stands for another."""
    return type_.level, type_.shape, type_.kind is Kind.BOOL
