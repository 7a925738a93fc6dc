"""Random specs mean what a walk over their syntax tree computes: branches, loops, functions, composition.

The walk knows nothing of levels, versions or joins. It fails with KeyError when a line reads a name that has
no value, so it also shows that the checker refuses every such spec.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from optdsl.check import check_text
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.verify import verify
from optdsl.lang import syntax as syn
from optdsl.lang.parser import parse
from optdsl.lang.source import split

Env = dict[str, Any]
BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.logical_and, "or": np.logical_or}
COMPARE = {"lt": np.less, "gt": np.greater, "eq": np.equal, "ge": np.greater_equal}
CALLS = {"sin": np.sin, "abs": np.abs, "mean": np.mean, "max": np.maximum, "mod": np.mod, "min": np.minimum}


@dataclass
class Walk:
    """One parameter. `states` holds those of each instance, by the chain of `use` lines that leads to it."""

    file: syn.File
    hypers: Env
    p: np.ndarray
    t: int = 0
    states: dict[tuple[int, ...], Env] = field(default_factory=dict)

    def step(self, g: np.ndarray) -> None:
        self.t += 1
        if self.t == 1:
            self.start = self.p
        self.moved: tuple[np.ndarray, Any] = (self.p, 0.0)
        spec = self.file.specs[-1]
        self.spec(spec, {h.name: self.hypers.get(h.name, h.default) for h in spec.hypers}, {"g": g}, ())

    def spec(self, spec: syn.Spec, hypers: Env, flow: Env, place: tuple[int, ...]) -> None:
        """`flow` holds `g`, shared with the user of a transform."""
        env = dict(hypers)
        if place not in self.states:
            p, self.p = self.p, self.start  # states begin before anything moves
            values = {s.name: self.value(s.init, env, flow) for s in spec.states if s.init is not None}
            self.p = p
            self.states[place] = values | {"names": {s.name for s in spec.states}}
        states = self.states[place]
        self.block((*spec.uses, *spec.steps[0].body), env | states, flow, states, place)

    def block(
        self, body: tuple[syn.Statement, ...], env: Env, flow: Env | None, states: Env, place: tuple[int, ...]
    ) -> Any:
        for node in body:
            match node:
                case syn.AssignSyntax(name, _, expression):
                    self.assign(name, self.value(expression, env, flow), env, flow, states)
                case syn.If(condition, then, other):
                    taken = then if self.value(condition, env, flow) else other
                    self.block(taken, env, flow, states, place)
                case syn.Every(period, offset, inner):
                    start = 0 if offset is None else self.value(offset, env, flow)
                    if (self.t - 1) % self.value(period, env, flow) == start:
                        self.block(inner, env, flow, states, place)
                case syn.Repeat(count, inner):
                    for _ in range(self.value(count, env, flow)):
                        self.block(inner, env, flow, states, place)
                case syn.Return(expression):
                    return self.value(expression, env, flow)
                case syn.Use():
                    assert flow is not None
                    self.use(node, env, flow, place)
        return None

    def assign(self, name: str, value: Any, env: Env, flow: Env | None, states: Env) -> None:
        if flow is None or name not in ("p", "g", "update"):
            env[name] = value
            if name in states.get("names", ()):
                states[name] = value
        elif name == "g":
            flow["g"] = value
        elif name == "p":
            self.moved = (self.p, self.p - value)
            self.p = self.p * 0 + value
        else:
            self.moved = (self.moved[0], value)
            self.p = self.moved[0] - value

    def use(self, node: syn.Use, env: Env, flow: Env, place: tuple[int, ...]) -> None:
        spec = next(s for s in self.file.specs if s.name == node.name)
        given = {name: self.value(values[0], env, flow) for name, values, _ in node.bindings}
        inner = flow if spec.kind == "transform" else dict(flow)
        if node.gradient is not None:
            inner = {"g": self.value(node.gradient[1], env, flow)}
        hypers = {h.name: given.get(h.name, h.default) for h in spec.hypers}
        self.spec(spec, hypers, inner, (*place, node.span.line))

    def value(self, node: syn.Expression, env: Env, flow: Env | None) -> Any:
        match node:
            case syn.Number(value) | syn.Bool(value):
                return value
            case syn.Name("p") if flow is not None:
                return self.p
            case syn.Name("g") if flow is not None:
                return flow["g"]
            case syn.Name("update") if flow is not None:
                return self.moved[1]
            case syn.Name("t"):
                return self.t
            case syn.Name("first_step"):
                return self.t == 1
            case syn.Name("ndim"):
                return self.p.ndim
            case syn.Name(name):
                return env[name]
            case syn.Operation("neg", (inner,)):
                return -self.value(inner, env, flow)
            case syn.Operation("not", (inner,)):
                return not self.value(inner, env, flow)
            case syn.Operation(op, (left, right)):
                return BINARY[op](self.value(left, env, flow), self.value(right, env, flow))
            case syn.Compare((op,), (left, right)):
                return COMPARE[op](self.value(left, env, flow), self.value(right, env, flow))
            case syn.IfElse(condition, then, other):
                parts = [self.value(part, env, flow) for part in (condition, then, other)]
                return np.where(*parts)
            case syn.CallSyntax(name, args):
                values = [self.value(arg, env, flow) for arg in args]
                if name in CALLS:
                    return CALLS[name](*values)
                function = next(d for d in self.file.defs if d.name == name)
                own = dict(zip([parameter for parameter, _ in function.parameters], values, strict=True))
                return self.block(function.body, own, None, {}, ())
        raise AssertionError(node)


class Writer:
    """Writes random specs, many of which are right."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.uses = 0
        self.from_flow = False  # a used spec starts from `p` or `g`: from those of the first step

    def pick(self, *options: str) -> str:
        return self.random.choice(options)

    def file(self) -> str:
        text = ""
        for name in ("f", "h"):
            body = self.block(["a", "b"], 3, "    ", set())
            text += f"def {name}(a, b, n):\n{body}    return a + b\n"
        for name, kind in (("Inner", "optimizer"), ("Change", "transform"), ("T", "optimizer")):
            text += self.spec(name, kind)
        return text

    def spec(self, name: str, kind: str) -> str:
        allowed = {"step", "use"} if name == "T" else {"step"}
        text = f"{kind} {name}:\n    hyper:\n        on = {self.pick('true', 'false')}\n"
        text += "        n = 2 in [0, 3]\n        lr = 0.1\n    state:\n"
        init = self.pick("0", "p", "g", "0.5", "p - g")
        self.from_flow |= name != "T" and init not in ("0", "0.5")
        text += f"        m = {init}\n        v = {self.pick('0', 'lr')}\n"
        text += "        w\n    step:\n"
        if kind == "optimizer":
            text += "        p = p - lr * g\n"
        return text + self.block(["p", "g", "m", "v", "lr"], self.random.randint(3, 9), " " * 8, allowed)

    def block(self, names: list[str], size: int, margin: str, allowed: set[str]) -> str:
        """Lines of a step, or of a function when "step" is not in `allowed`. `names` have a value."""
        return "".join(self.statement(names, margin, allowed) for _ in range(size))

    def inner(self, names: list[str], margin: str, allowed: set[str]) -> str:
        own = names if self.random.random() < 0.1 else list(names)  # what it assigns may be read behind it
        return self.block(own, self.random.randint(1, 2), margin + "    ", allowed)

    def statement(self, names: list[str], margin: str, allowed: set[str]) -> str:
        in_step, kind = "step" in allowed, self.random.random()
        if kind < 0.55 or len(margin) > 20:
            return self.assignment(names, margin, in_step)
        if kind < 0.75:
            condition = self.condition(in_step)
            if self.from_flow and ("t >" in condition or "step" in condition):
                allowed = allowed - {"use"}
            lines = f"{margin}if {condition}:\n" + self.inner(names, margin, allowed)
            if self.random.random() < 0.6:
                lines += f"{margin}else:\n" + self.inner(names, margin, allowed)
            return lines
        if kind < 0.85:
            return f"{margin}repeat {self.pick('2', 'n')}:\n" + self.inner(names, margin, allowed - {"use"})
        if kind < 0.9 and in_step:
            allowed = allowed - {"use"} if self.from_flow else allowed
            return f"{margin}every {self.pick('2', '3', '2 offset 1')}:\n" + self.inner(
                names, margin, allowed
            )
        if "use" not in allowed:
            return self.assignment(names, margin, in_step)
        self.uses += 1
        binding = self.pick("", "lr = 0.2", "lr = lr", "lr = 0.5 * lr", "on = on", "n = n", "on = t > 2")
        if self.random.random() < 0.5:
            return f"{margin}use Change({binding}) as u{self.uses}\n"
        gradient = self.pick("", f" with g = {self.expression(names, 1)}")
        return f"{margin}use Inner({binding}) as u{self.uses}{gradient}\n"

    def assignment(self, names: list[str], margin: str, in_step: bool) -> str:
        target = self.pick("x", "y", *(["p", "g", "m", "v", "w", "update"] if in_step else ["a", "b"]))
        line = f"{margin}{target} = {self.expression(names, 2)}\n"
        names.append(target)
        return line

    def condition(self, in_step: bool) -> str:
        if not in_step:
            return self.pick("n > 1", "n > 0 and n > 1")
        simple = ["on", "not on", "first_step", "not first_step", "t > 2", "n > 1", "ndim > 1"]
        return self.pick(*simple, f"{self.pick(*simple)} and {self.pick(*simple)}", "on or t > 2")

    def expression(self, names: list[str], depth: int) -> str:
        if depth == 0 or self.random.random() < 0.2:
            rare = ["w", "x"] if self.random.random() < 0.02 else []
            return self.pick(*names, *names[-3:], "0.5", "1", *rare)
        a, b = (self.expression(names, depth - 1) for _ in range(2))
        forms = [f"{a} + {b}", f"{a} - {b}", f"({a}) * 0.5", f"sin({a})", f"max({a}, {b})", f"-({a})"]
        forms += [f"({a} if ({b}) > 0 else {b})", f"min({a}, abs({b}))"]
        if "p" in names:
            forms += [f"mean({a} + p)", f"f({a}, {b}, 2)", f"h({a}, {b}, n)"]
        return self.pick(*forms)


def outcome(seed: int) -> str:
    """Checks one random spec; returns the code of its first mistake, or nothing when it is right."""
    text = Writer(seed).file()
    checked = check_text(text, "t.opt")
    if checked.program is None:
        assert checked.errors
        return checked.errors[0].code
    program, file = verify(checked.program), parse(split(text, "t.opt"))
    rng = np.random.default_rng(seed)
    for hypers in ({}, {"on": False, "n": 0}, {"on": True, "n": 3}):
        shape = (2, 3) if seed % 2 else (3,)
        walk = Walk(file, hypers, rng.normal(size=shape))
        interpreter = Interpreter(program, [Group([walk.p], hypers)])
        for _ in range(4):
            g = rng.normal(size=shape)
            walk.step(g)
            interpreter.step([[g]])
            np.testing.assert_allclose(interpreter.params[0][0], walk.p, rtol=1e-9, atol=1e-9, err_msg=text)
    return ""


@pytest.mark.parametrize("start", range(0, 120, 15))
def test_random_specs(start: int) -> None:
    outcomes = [outcome(seed) for seed in range(start, start + 15)]
    assert outcomes.count("") >= 3
