"""Random programs: always well typed, the same for a seed, and of everything the language has."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from optdsl.core import types as ty
from optdsl.core.ops import CORE, FACTS, OVERS, Rule
from optdsl.core.types import STATE_LEVELS, Kind, Level, Type
from optdsl.ir.expr import Call, Const, Expr, Var, call, const, is_joint, is_random, var, variables, walk
from optdsl.ir.program import Assign, Guard, Hyper, Interval, Program
from optdsl.ir.text import show
from optdsl.ir.verify import verify
from optdsl.search.generate import (
    TAME,
    WILD,
    Available,
    available_at,
    random_condition,
    random_expr,
    random_program,
)
from tests import fuzz

#: What the language can say. Only lowering makes a broadcast.
OPERATORS = {name for name, row in CORE.items() if row.rule is not Rule.BROADCAST}


@pytest.fixture(scope="module")
def sample() -> list[tuple[int, Program]]:
    return [(seed, fuzz.program(seed)) for seed in range(2000)]


def test_programs_are_valid() -> None:
    for seed, program in fuzz.programs(1000):
        with fuzz.about(seed, program):
            verify(program, "generation")
            assert "p" in program.results
            assert "." in program.results["p"].name  # type: ignore[union-attr]


def test_sizes_are_about_what_is_asked_for() -> None:
    for size in (1, 5, 40):
        made = [random_program(random.Random(seed), size) for seed in range(30)]
        assert size / 2 < np.mean([len(program.body) for program in made]) < 4 * size


def test_a_seed_is_a_program(sample: list[tuple[int, Program]]) -> None:
    for seed, program in sample[:100]:
        with fuzz.about(seed, program):
            again = fuzz.program(seed)
            assert again == program
            assert show(again) == show(program)
    assert len({program.digest() for _, program in sample}) == len(sample)


def test_a_seed_is_the_same_program_in_another_process() -> None:
    script = (
        "from tests import fuzz\n"
        "print([fuzz.program(seed).digest() for seed in range(40)])\n"
        "from optdsl.ir.text import to_opt\n"
        "import hashlib\n"
        "print(hashlib.sha256(''.join(to_opt(fuzz.program(s)) for s in range(40)).encode()).hexdigest())\n"
    )
    outputs = set()
    for hashing in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashing, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1


# ---- coverage ---------------------------------------------------------------------------------------------


def nodes(sample: list[tuple[int, Program]]) -> list[Expr]:
    return [node for _, program in sample for node in program.nodes()]


def test_every_operator_occurs(sample: list[tuple[int, Program]]) -> None:
    found = Counter(node.op for node in nodes(sample) if isinstance(node, Call))
    assert found.keys() == OPERATORS
    assert min(found.values()) >= len(sample) // 50, found.most_common()[-5:]


def test_every_operator_occurs_at_every_level_it_can(sample: list[tuple[int, Program]]) -> None:
    found = Counter((n.op, n.type.level_name) for n in nodes(sample) if isinstance(n, Call))
    places = ("host", "group", "tensor", "rows", "cols", "element", "rows, rows", "cols, cols", "cols, rows")
    elementwise = [name for name, row in CORE.items() if row.rule is Rule.ELEMENTWISE]
    common = [(op, place) for op in elementwise for place in ("host", "tensor", "rows", "cols", "element")]
    assert not [pair for pair in common if pair not in found]
    for place in places:
        assert sum(found[op, place] for op in elementwise) > len(sample) // 50, place
    for place in ("rows, rows", "cols, cols", "element"):
        assert found["matmul", place], place
        assert found["newton_schulz", place], place


def test_every_reduction_occurs_over_everything(sample: list[tuple[int, Program]]) -> None:
    reductions = [name for name, row in CORE.items() if row.rule is Rule.REDUCE]
    found = {(n.op, n.attr) for n in nodes(sample) if isinstance(n, Call) and CORE[n.op].rule is Rule.REDUCE}
    assert found == {(op, over) for op in reductions for over in OVERS if over != "filter"}
    rng = random.Random(0)
    made = [(0, random_program(rng, 12, replace(WILD, filter=0.2))) for _ in range(100)]
    filters = {n.op for n in nodes(made) if isinstance(n, Call) and n.attr == "filter"}
    assert filters == set(reductions)


def test_literals_of_all_kinds_occur(sample: list[tuple[int, Program]]) -> None:
    literals = {node for node in nodes(sample) if isinstance(node, Const)}
    assert {node.type.kind for node in literals} == set(Kind) - {Kind.LIST}
    for value in (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 5e-324):
        assert const(value) in literals, value


def test_declarations_of_all_kinds_occur(sample: list[tuple[int, Program]]) -> None:
    hypers = [hyper for _, program in sample for hyper in program.hypers]
    assert {hyper.kind for hyper in hypers} == set(Kind)
    assert any(hyper.is_part and hyper.kind is Kind.INT for hyper in hypers)
    assert any(hyper.is_part and hyper.kind is Kind.FLOAT for hyper in hypers)
    intervals = {hyper.interval for hyper in hypers if hyper.kind is Kind.FLOAT}
    assert None in intervals
    assert {(i.low_open, i.high_open) for i in intervals if i} >= {
        (False, False),
        (True, True),
        (False, True),
    }
    states = [state for _, program in sample for state in program.states]
    levels = {(state.type.level, state.type.shape) for state in states}
    assert levels == set(STATE_LEVELS.values())
    assert any(state.init is None for state in states)
    for name in ("p", "g", "t", "lr"):
        assert any(state.init is not None and name in variables(state.init) for state in states), name


def asked(condition: Expr, program: Program) -> set[str]:
    """What a condition asks about."""
    hypers = {hyper.name: hyper.kind for hyper in program.hypers}
    states = {state.name for state in program.states}
    found = set()
    for node in walk(condition):
        if isinstance(node, Call) and node.op in ("and", "or", "not", "mod"):
            found.add(node.op)
        if not isinstance(node, Var):
            continue
        if node.name in hypers:
            found.add(hypers[node.name].value)
        elif node.name in FACTS:
            found.add(node.name)
        elif node.name in states or node.name.partition(".")[0] in states:
            found.add("state")
        else:
            found.add("local " + node.type.kind.value)
    return found or {"literal"}


def test_every_kind_of_branch_occurs(sample: list[tuple[int, Program]]) -> None:
    found: Counter[str] = Counter()
    depths: Counter[int] = Counter()
    for _, program in sample:
        guards = {assign.guard for assign in program.body}
        depths.update(map(len, guards))
        for guard in guards:
            for condition, wanted in guard:
                assert condition.type.is_host
                kinds = asked(condition, program)
                found.update(kinds)
                found[f"{sorted(kinds)[0]} {wanted}"] += 1
    kinds = {"bool", "choice", "int", "float", *FACTS, "state", "mod", "and", "or", "not", "literal"}
    assert kinds <= found.keys(), kinds - found.keys()
    assert {"local bool", "local int", "local float"} <= found.keys()
    assert all(
        found[f"{kind} {wanted}"] for kind in ("bool", "choice", "ndim", "t") for wanted in (True, False)
    )
    assert depths[0]
    assert depths[3] > len(sample) // 50
    assert max(depths) == TAME.nesting


def test_branches_hold_what_they_may_hold(sample: list[tuple[int, Program]]) -> None:
    found: Counter[str] = Counter()
    for _, program in sample:
        shape_sources = {"ndim", "rows", "cols", "numel"}
        for assign in program.body:
            for node in walk(assign.expr):
                if not isinstance(node, Call):
                    continue
                guarded = bool(assign.guard)
                by_shape = any(variables(condition) & shape_sources for condition, _ in assign.guard)
                found["joint, guarded" if guarded else "joint"] += is_joint(node)
                found["draw, guarded" if guarded else "draw"] += is_random(node)
                found["matrix, by shape" if by_shape else "matrix"] += node.op in ("matmul", "newton_schulz")
                lazy = node.op == "select" and node.args[0].type.is_host
                found["lazy"] += lazy
                found["lazy joint"] += lazy and any(is_joint(n) for arm in node.args[1:] for n in walk(arm))
                found["per element"] += node.op == "select" and node.args[0].type.level is Level.ARRAY
    wanted = ("joint", "joint, guarded", "draw", "draw, guarded", "matrix", "matrix, by shape")
    assert all(found[what] for what in (*wanted, "lazy", "lazy joint", "per element")), found


def test_names_are_assigned_again_and_old_values_are_read(sample: list[tuple[int, Program]]) -> None:
    again: Counter[str] = Counter()
    old: Counter[str] = Counter()
    for _, program in sample:
        states = {state.name for state in program.states}
        newest: dict[str, str] = {}
        for assign in program.body:
            for name in variables(assign.expr):
                source = name.partition(".")[0]
                if source in newest and newest[source] != name:
                    old["state" if source in states else source if source in ("p", "g") else "local"] += 1
            kind = "state" if assign.source in states else assign.source
            again[kind if kind in ("state", "p", "g") else "local"] += assign.source in newest
            newest[assign.source] = assign.name
    assert all(again[kind] and old[kind] for kind in ("p", "g", "state", "local")), (again, old)


# ---- presets ----------------------------------------------------------------------------------------------


def test_tame_programs_stay_finite_and_wild_ones_need_not() -> None:
    finite: Counter[str] = Counter()
    seeds = range(100)
    for name, weights in (("tame", TAME), ("wild", WILD)):
        for seed in seeds:
            program = random_program(random.Random(seed), weights=weights)
            with fuzz.about(seed, program):
                last = fuzz.run(program, seed, steps=4)[-1]
            finite[name] += all(np.isfinite(value).all() for key, value in last.items() if key[0] == "p")
    assert finite["tame"] >= 0.9 * len(seeds)
    assert 0.3 * len(seeds) <= finite["wild"] < finite["tame"]


def test_tame_programs_do_not_jump() -> None:
    steep = {"floor", "ceil", "round", "sign", "mod"}
    for seed in fuzz.seeds(200):
        program = random_program(random.Random(seed), weights=TAME)
        with fuzz.about(seed, program):
            for node in program.nodes():
                if isinstance(node, Call) and not node.type.is_host and node.type.kind is Kind.FLOAT:
                    assert node.op not in steep
                    assert node.op != "select" or node.args[0].type.is_host


def test_operators_can_be_left_out() -> None:
    few = replace(WILD, operators={"add": 1.0, "mul": 1.0}, truth=0.0, protect=0.0)
    made = [random_expr(random.Random(seed), fuzz.everything(), ty.element(), 8, few) for seed in range(50)]
    found = {node.op for expr in made for node in walk(expr) if isinstance(node, Call)}
    assert {"add", "mul"} <= found
    # what is not at hand is a mean, and ints on the host are made in a few ways of their own
    assert not found & {"div", "sqrt", "exp", "pow", "reduce_sum", "matmul", "normal", "floor"}


# ---- building blocks --------------------------------------------------------------------------------------


def fits(found: Type, wanted: Type) -> bool:
    return (
        found.kind is wanted.kind
        and found.level <= wanted.level
        and ty.broadcasts_into(found.shape, wanted.shape)
    )


PLACES = [ty.const(Kind.FLOAT), *(Type(Kind.FLOAT, *place) for place in STATE_LEVELS.values())]


@pytest.mark.parametrize("weights", [TAME, WILD], ids=["tame", "wild"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_expressions_have_the_wanted_type(place: Type, weights: object) -> None:
    few = Available([var("p", ty.element())])
    nothing = Available([], site=None, stream=None)
    for seed in fuzz.seeds(60):
        for kind in (Kind.FLOAT, Kind.INT, Kind.BOOL):
            for available in (fuzz.everything(), few, nothing):
                rng, wanted = random.Random(seed), place.with_kind(kind)
                made = random_expr(rng, available, wanted, seed % 5, weights)  # type: ignore[arg-type]
                assert fits(made.type, wanted), f"seed {seed}: {made.type} for {wanted}"
                if kind is Kind.FLOAT and place.level > Level.HOST and available is not nothing:
                    assert made.type == wanted, f"seed {seed}"
                known = {*available.values, *available.old}
                assert all(node in known for node in walk(made) if isinstance(node, Var))


def test_expressions_are_as_deep_as_asked_for() -> None:
    def depth(node: Expr) -> int:
        return 1 + max(map(depth, node.args), default=-1)

    for limit in range(6):
        exprs = [random_expr(random.Random(n), fuzz.everything(), ty.element(), limit) for n in range(200)]
        found = [depth(expr) for expr in exprs]
        assert max(found) <= 4 * limit + 3  # an operand is protected by a few operators
        assert np.mean(found) >= limit / 2


def test_expressions_without_draws_and_joint_reductions() -> None:
    available = fuzz.everything(site=None, stream=None)
    for seed in fuzz.seeds(300):
        for place in PLACES:
            made = random_expr(random.Random(seed), available, place, 4, WILD)
            assert not any(is_joint(node) or is_random(node) for node in walk(made)), f"seed {seed}"
    assert available.site is None
    assert available.stream is None


def test_sites_are_numbered() -> None:
    available = fuzz.everything(site=7, stream=3)
    made = [random_expr(random.Random(seed), available, ty.element(), 5, WILD) for seed in range(400)]
    found = {node for expr in made for node in walk(expr)}
    sites = [node.site for node in found if isinstance(node, Call) and node.site is not None]
    assert len(sites) == len(set(sites))
    assert min(sites) == 7
    assert available.site == max(sites) + 1
    streams = {node.attr for node in found if isinstance(node, Call) and is_random(node)}
    assert streams <= set(range(3, 3 + len(streams))) | {0, 1, 2}


def test_conditions_are_small_and_on_the_host() -> None:
    for seed in fuzz.seeds(500):
        for available in (fuzz.everything(), Available([])):
            made = random_condition(random.Random(seed), available)
            assert made.type.kind is Kind.BOOL
            assert made.type.is_host
            assert sum(1 for _ in walk(made)) <= 8, "a longer condition gets a name of its own"


def reader(program: Program, index: int, guard: Guard, value: Expr) -> Program:
    """`program` with a statement in front of assignment `index` that reads `value`."""
    probe = Assign("probe.1", "probe", value, guard)
    return replace(program, body=(*program.body[:index], probe, *program.body[index:]))


def test_what_is_available_can_be_read() -> None:
    for seed, program in fuzz.programs(60):
        rng = random.Random(seed)
        for index in {rng.randrange(len(program.body) + 1) for _ in range(4)}:
            guard = program.body[index].guard if index < len(program.body) else ()
            available = available_at(program, index)
            with fuzz.about(seed, program):
                for value in (*available.values, *available.old):
                    verify(reader(program, index, guard, value), f"reading {value}")
                assigned = {name for a in program.body[:index] if a.guard == guard for name in [a.name]}
                named = {v.name for v in (*available.values, *available.old) if isinstance(v, Var)}
                assert assigned <= named
                assert {"p", "g", "t"} <= named
                assert available_at(program, index, ()).values


def test_statements_can_be_replaced_by_random_ones() -> None:
    """What a mutation of a search does."""
    for seed, program in fuzz.programs(200):
        rng = random.Random(seed)
        mutated = program
        for _ in range(5):
            index = rng.randrange(len(mutated.body))
            assign = mutated.body[index]
            available = available_at(mutated, index)
            expr = random_expr(rng, available, assign.expr.type, 3, WILD)
            if expr.type == assign.expr.type:
                changed = replace(assign, expr=expr)
                body = (*mutated.body[:index], changed, *mutated.body[index + 1 :])
                mutated = replace(mutated, body=body)
        with fuzz.about(seed, program, mutated):
            verify(mutated, "mutation")
            fuzz.run(mutated, seed, steps=1)


def test_available_at_gives_fresh_numbers() -> None:
    joint = call("reduce_sum", var("g", ty.element()), over="all", site=4)
    draw = call("normal", site=9)
    lr = Hyper("lr", "lr", Kind.FLOAT, 0.1, Interval(0, 1))
    body = (Assign("u.1", "u", joint), Assign("u.2", "u", draw))
    program = Program("P", "", "", (lr,), (), body, {"p": body[1].var})
    available = available_at(program, 2)
    assert (available.site, available.stream) == (5, 10)
    assert body[1].var in available.values
    assert body[0].var in available.old
    assert var("lr", ty.host()) in available.values
