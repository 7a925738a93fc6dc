"""The verifier accepts what the checker makes, and names what is wrong with anything else."""

from __future__ import annotations

import dataclasses

import pytest

from optdsl.check.program import check_text
from optdsl.core import types as ty
from optdsl.core.types import Kind, Level, Type
from optdsl.ir.expr import Call, Const, Expr, Var, call, const, var
from optdsl.ir.program import Assign, Guard, Hyper, Program, State
from optdsl.ir.verify import Invalid, implied, learned, verify

P, G = var("p", ty.element()), var("g", ty.element())
T = var("t", ty.host(Kind.INT))
LR, FLAG = var("lr", ty.host()), var("flag", ty.host(Kind.BOOL))
LATE = call("gt", T, 1)
HYPERS = (Hyper("lr", "lr", Kind.FLOAT, 0.1), Hyper("flag", "flag", Kind.BOOL, False))
STATES = (State("m", "exp_avg", ty.element(), const(0.0)), State("k", "k", ty.host(), LR))
M = var("m", ty.element())


def assign(name: str, expr: Expr, *guard: tuple[Expr, bool]) -> Assign:
    return Assign(name, name.split(".")[0], expr, guard)


def program(*body: Assign, p: Expr = P, states: tuple[State, ...] = STATES, **results: Expr) -> Program:
    return Program("T", "", "", HYPERS, states, body, {"p": p, **results})


GOOD = [
    """
optimizer T:
    hyper:
        lr = 1e-3
        betas = (beta1: 0.9, beta2: 0.999)
        amsgrad = false
        mode = "a" in {"a", "b"}
        n = 2 in [1, 4]
    state:
        m = 0 as exp_avg
        s = p
        d [group] = lr
        r [rows] = sum(g, over=rows)
        k [host] = 1
    step when ndim >= 2 and mode == "a":
        g = g * min(1, 1 / norm(g, over=all))
        repeat n:
            m = lerp(m, g, beta1) + bernoulli(0.5) * normal()
        if amsgrad:
            s = max(s, m)
            u = s @ s' @ s
        elif first_step:
            u = m
        else:
            u = newton_schulz(m)
        r = mean(u, over=rows)
        d = max(d, norm(r, over=group))
        p = p - lr * u / (sqrt(var(r)) + d)
    step otherwise:
        every 3:
            k = k * beta2
            s = s + p if k > 0.5 else p
        p = p - clip(g, -k, k)
""",
    """
def ema(x, y, beta):
    z = (1 - beta) * y
    return beta * x + z

transform Clip:
    hyper:
        c = 1.0
    step:
        if c > 0:
            g = clip(g, -c, c)

optimizer Base:
    hyper:
        lr = 1.0
        nesterov = true
    state:
        m = 0
    step:
        m = ema(m, g, 0.9)
        if nesterov:
            p = p - lr * ema(m, g, 0.9)
        else:
            p = p - lr * m

optimizer T:
    use Clip()
    use Base(lr = 0.1)
    step:
        if t > 3:
            update = update * (update * g > 0)
        p = p + 0.1 * update
""",
]


@pytest.mark.parametrize("text", GOOD)
def test_what_the_checker_makes_is_valid(text: str) -> None:
    checked = check_text(text).require()
    assert verify(checked) is checked


def test_a_valid_program() -> None:
    body = (
        assign("k.1", call("mul", var("k", ty.host()), 2.0)),
        assign("x.1", call("mul", G, 2.0), (LATE, True), (FLAG, False)),
        assign("y.1", call("add", var("x.1", ty.element()), 1.0), (FLAG, False), (LATE, True)),
        assign("x.2", call("select", call("and", LATE, call("not", FLAG)), var("x.1", ty.element()), G)),
        assign("m.1", call("reduce_sum", var("x.2", ty.element()), over="all", site=0)),
    )
    m = body[-1].var
    verify(program(*body, p=call("sub", P, m), m=m, k=var("k.1", ty.host())))


def wild(node_type: Type) -> Call:
    """A node that `call` would not build."""
    return Call("add", (P, G), None, None, node_type)


A1 = assign("a.1", call("mul", G, 2.0), (LATE, True))
B1 = assign("b.1", call("mul", G, 3.0), (FLAG, True))
SUM0 = call("reduce_sum", G, over="all", site=0)
UNKNOWN_OP = Call("frobnicate", (P,), None, None, ty.element())
BAD: dict[str, tuple[Program, str]] = {
    "before": (program(assign("a.1", var("b.1", ty.element())), assign("b.1", G)), "before it is assigned"),
    "itself": (program(assign("a.1", call("neg", var("a.1", ty.element())))), "before it is assigned"),
    "unguarded": (program(A1, p=A1.var), r"`a\.1`, which is not computed on every way"),
    "other guard": (program(A1, assign("c.1", A1.var, (FLAG, True))), "not computed on every way"),
    "other side": (program(A1, p=call("select", LATE, P, A1.var)), "not computed on every way"),
    "one of two": (
        program(A1, p=call("select", call("or", LATE, FLAG), A1.var, P)),
        "not computed on every way",
    ),
    "half a guard": (
        program(
            assign("a.1", G, (LATE, True), (FLAG, True)),
            assign("c.1", var("a.1", ty.element()), (LATE, True)),
        ),
        "not computed on every way",
    ),
    "element choice": (
        program(A1, p=call("select", call("gt", G, 0.0), A1.var, P)),
        "not computed on every way",
    ),
    "guard reads ahead": (
        program(
            assign("c.1", call("gt", LR, 2.0), (FLAG, True)),
            assign("a.1", G, (var("c.1", ty.host(Kind.BOOL)), True)),
        ),
        r"the guard of `a\.1` reads `c\.1`",
    ),
    "element guard": (program(assign("a.1", G, (call("gt", G, 0.0), True))), "the guard of .* has the type"),
    "number as guard": (program(assign("a.1", G, (LR, True))), "the guard of .* has the type float"),
    "twice": (program(assign("a.1", G), assign("a.1", P)), "assigned twice"),
    "no version": (program(assign("a", G)), "no version"),
    "unknown name": (program(p=var("q", ty.element())), "`q`, which does not exist"),
    "hyper type": (program(p=var("lr", ty.host(Kind.INT))), "reads `lr` as int"),
    "fact type": (program(p=var("t", ty.host())), "reads `t` as float"),
    "state type": (program(p=var("m", Type(Kind.FLOAT, Level.TENSOR))), "reads `m` as"),
    "assigned type": (program(A1, p=call("select", LATE, var("a.1", ty.host()), P)), r"reads `a\.1` as"),
    "unknown result": (program(q=P), "left in `q`"),
    "finer result": (program(k=call("reduce_sum", G, over="tensor")), "left in `k` has the type"),
    "shape of result": (
        program(states=(State("r", "r", Type(Kind.FLOAT, Level.ARRAY, ty.ROWS), None),), r=G),
        "left in `r` has the type",
    ),
    "matrix as parameter": (program(p=call("matmul", P, call("transpose", P))), "left in `p` has the type"),
    "wrong type": (program(p=wild(ty.host())), "type float"),
    "impossible type": (program(p=wild(Type(Kind.FLOAT, Level.TENSOR, ty.ELEMENT))), "shape"),
    "not interned": (program(p=wild(ty.element())), "not built by"),
    "variable not interned": (program(p=Var("g", ty.element())), "not built by"),
    "constant not interned": (program(p=Const(1.0, ty.const(Kind.FLOAT))), "not built by"),
    "constant of another kind": (program(p=Const(1.0, ty.const(Kind.INT))), "must be float"),
    "unknown operator": (program(p=UNKNOWN_OP), "no core operator"),
    "wrong operands": (program(p=Call("and", (P, P), None, None, ty.element(Kind.BOOL))), "needs conditions"),
    "joint without site": (program(p=call("reduce_sum", G, over="all")), "attributes 'all' and None"),
    "site without joint": (
        program(p=call("reduce_sum", G, over="tensor", site=1)),
        "attributes 'tensor' and 1",
    ),
    "draw without site": (program(p=call("normal")), "attributes None"),
    "draw beyond all sites": (program(p=call("normal", site=4096)), "attributes 4096"),
    "site of two": (
        program(assign("a.1", SUM0), p=call("reduce_sum", P, over="all", site=0)),
        "site 0, where another reduction stands",
    ),
    "hyper and state": (
        program(states=(State("lr", "x", ty.host(), LR),)),
        "the name `lr` is declared twice",
    ),
    "name of a fact": (program(states=(State("t", "x", ty.host(), LR),)), "the name `t` is declared twice"),
    "two keys": (
        program(states=(*STATES, State("n", "k", ty.host(), None))),
        "the key `k` is declared twice",
    ),
    "key of an argument": (program(states=(State("n", "lr", ty.host(), None),)), "the key `lr`"),
    "level of a state": (
        program(states=(State("n", "n", ty.const(Kind.FLOAT), None),)),
        "the state `n` has the type",
    ),
    "finer initial value": (program(states=(State("n", "n", ty.host(), G),)), "the initial value of `n` has"),
    "initial value from a state": (
        program(states=(*STATES, State("n", "n", ty.element(), M))),
        "the initial value of `n` reads `m`",
    ),
    "initial value that draws": (
        program(states=(State("n", "n", ty.element(), call("normal", site=0)),)),
        "draws or reduces",
    ),
    "initial value over all": (
        program(states=(State("n", "n", ty.element(), SUM0),)),
        "draws or reduces",
    ),
    "state without initial value": (
        program(states=(State("m", "m", ty.element(), None),), p=M),
        "no initial value",
    ),
    "default": (
        dataclasses.replace(program(), hypers=(Hyper("n", "n", Kind.INT, 1.5),)),
        "the default of `n` is 1.5, not a int",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(name: str) -> None:
    broken, reason = BAD[name]
    with pytest.raises(Invalid, match=reason) as caught:
        verify(broken, "the pass")
    assert caught.value.stage == "the pass"
    assert str(caught.value).startswith("after the pass: ")
    assert "program T" in str(caught.value) or "cannot be printed" in str(caught.value)


def test_implication() -> None:
    both, either = call("and", LATE, FLAG), call("or", LATE, FLAG)
    guards: list[tuple[Guard, tuple[Expr, bool], bool]] = [
        (((LATE, True),), (LATE, True), True),
        (((LATE, True),), (LATE, False), False),
        (((both, True),), (FLAG, True), True),
        (((both, False),), (FLAG, False), False),
        (((either, False),), (LATE, False), True),
        (((either, True),), (LATE, True), False),
        (((LATE, True), (FLAG, True)), (both, True), True),
        (((LATE, True),), (both, True), False),
        (((LATE, True),), (either, True), True),
        (((LATE, False),), (both, False), True),
        (((call("not", LATE), True),), (LATE, False), True),
        (((LATE, False),), (call("not", LATE), True), True),
        ((), (const(True), True), True),
        ((), (const(True), False), False),
    ]
    for guard, (condition, wanted), holds in guards:
        known = frozenset().union(*(learned(c, w) for c, w in guard))
        assert implied(known, condition, wanted) is holds


def test_a_value_of_both_branches() -> None:
    """Each side of a choice may use what its branch computed; nested choices add up."""
    c1 = assign("c.1", call("neg", G), (LATE, True), (FLAG, False))
    inner = call("select", FLAG, P, c1.var)
    verify(program(A1, c1, p=call("select", LATE, call("add", A1.var, inner), G)))
    with pytest.raises(Invalid):
        verify(program(A1, c1, p=call("select", LATE, G, inner)))


def test_a_shared_node_is_checked_wherever_it_stands() -> None:
    shared = call("neg", A1.var)
    good = call("select", LATE, shared, P)
    with pytest.raises(Invalid, match="not computed"):
        verify(program(A1, p=call("add", good, shared)))
