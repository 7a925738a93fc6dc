"""Plans: counted by hand for the shipped specs, held against the interpreter and against brute force at random."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optdsl import driver
from optdsl.core.ops import CORE, Rule
from optdsl.ir.expr import Call, Expr, Var, call, transform
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.numpy_ops import NUMPY
from optdsl.ir.plan import Place, Plan
from optdsl.ir.program import Assign, Program
from optdsl.passes.schedule import EXACT, MODES, NARROW, OVERWRITE, Unsupported, _Scheduler, schedule
from optdsl.passes.simplify import simplify
from optdsl.passes.specialise import Leaf, TooManyBranches, leaves, specialise
from tests import fuzz
from tests.passes.bruteforce import Problem, TooMany
from tests.passes.plans import Array, Plans, leaf_of, program, shipped, tensor_known

MATRIX = (6, 4)


def plan_of(
    found: Program, options: dict[str, Any] | None = None, shape: tuple[int, ...] = MATRIX, step: int = 10,
    mode: str = EXACT, **states: float,
) -> Plan:  # fmt: skip
    """The plan that a step follows; `states` are host states by their keys."""
    owner = Interpreter(found, [Group([np.zeros(shape)], options or {})])
    owner.steps[0][0] = step - 1
    owner.states[0][0].update(states)
    return schedule(leaf_of(specialise(found), tensor_known(owner, 0, 0)), mode)


def traffic(plan: Plan) -> list[tuple[str, str]]:
    """What each sweep reads and writes."""
    return [(" ".join(sorted(r)), " ".join(sorted(w))) for r, w in plan.traffic]


# ---- counted by hand --------------------------------------------------------------------------------------

#: Spec, options, shape, step, and then sweeps, bytes per parameter in float32, launches. The comments tell the
#: arrays, as reads -> writes of each sweep.
TABLE: list[tuple[str, dict[str, Any], tuple[int, ...], int, tuple[int, int, int]]] = [
    ("adamw", {}, MATRIX, 1, (1, 28, 1)),  # p g m v -> p m v
    ("adamw", {"amsgrad": True}, MATRIX, 1, (1, 36, 1)),  # and v_max -> v_max
    ("adam", {}, MATRIX, 1, (1, 28, 1)),
    ("adam", {"amsgrad": True}, MATRIX, 1, (1, 36, 1)),
    ("adam", {"decoupled_weight_decay": True}, MATRIX, 1, (1, 28, 1)),
    ("adabelief", {}, MATRIX, 5, (1, 28, 1)),  # p g m s -> p m s: momentum
    ("adabelief", {}, MATRIX, 6, (1, 28, 1)),  # rectified
    ("adabelief", {"amsgrad": True}, MATRIX, 6, (1, 36, 1)),  # s_max is kept, and not used
    ("adabelief", {"amsgrad": True, "rectify": False}, MATRIX, 6, (1, 36, 1)),
    ("adabelief", {"degenerated_to_sgd": False}, MATRIX, 5, (1, 28, 1)),  # p decays
    # p g m s -> m s: p stays where it is
    ("adabelief", {"degenerated_to_sgd": False, "weight_decouple": False}, MATRIX, 5, (1, 24, 1)),
    ("adadelta", {}, MATRIX, 1, (1, 28, 1)),  # p g v a -> p v a
    ("adagrad", {}, MATRIX, 1, (1, 20, 1)),  # p g s -> p s
    ("adagradnorm", {}, MATRIX, 1, (1, 12, 1)),  # p g -> p, rows of g twice
    ("adagradnorm", {}, (6, 4, 2, 2), 1, (1, 12, 1)),
    ("adagradnorm", {}, (6, 1), 1, (1, 20, 1)),  # a row is a parameter: p g s_row -> p s_row
    ("adagradnorm", {}, (6,), 1, (1, 20, 1)),  # p g s -> p s
    ("adagradnorm", {}, (6, 4, 2), 1, (1, 20, 1)),
    ("adagradnorm", {"momentum": 0.9}, MATRIX, 1, (1, 20, 1)),  # p g m -> p m
    ("adagradnorm", {"momentum": 0.9}, (6,), 1, (1, 28, 1)),  # p g s m -> p s m
    ("adagradnorm", {"b0": 1.0}, MATRIX, 1, (2, 16, 2)),  # g ->; all meet; p g -> p
    ("adagradnorm", {"b0": 1.0}, (6,), 1, (2, 16, 2)),
    ("adamax", {}, MATRIX, 1, (1, 28, 1)),  # p g m u -> p m u
    ("asgd", {}, MATRIX, 1, (1, 16, 1)),  # p g -> p ax
    ("diffgrad", {}, MATRIX, 1, (1, 36, 1)),  # p g m v prev -> p m v prev
    ("diffgrad", {"reused_gradient": True}, MATRIX, 1, (1, 36, 1)),
    ("diffgrad", {"reused_gradient": True}, MATRIX, 2, (1, 32, 1)),  # prev is written only
    ("lamb", {"max_grad_norm": np.inf}, MATRIX, 1, (2, 40, 1)),  # p g m v -> m v; p m v -> p
    ("lamb", {}, MATRIX, 1, (3, 44, 2)),  # g ->; all meet; the same
    ("lamb", {"weight_decay": 0.0}, MATRIX, 1, (2, 32, 2)),  # g ->; all meet; p g m v -> p m v
    ("lamb", {"weight_decay": 0.0, "max_grad_norm": np.inf}, MATRIX, 1, (1, 28, 1)),
    ("lamb", {"weight_decay": 0.0, "always_adapt": True}, MATRIX, 1, (3, 44, 2)),
    ("lamb", {"trust_clip": True, "bias_correction": False}, MATRIX, 1, (3, 44, 2)),
    ("lars", {}, MATRIX, 1, (1, 12, 1)),  # p g -> p
    ("lars", {"momentum": 0.9}, MATRIX, 1, (1, 16, 1)),  # p g -> p buf
    ("lars", {"momentum": 0.9}, MATRIX, 2, (1, 20, 1)),  # p g buf -> p buf
    ("lars", {"weight_decay": 0.1}, MATRIX, 1, (2, 20, 1)),  # p g ->; p g -> p
    ("lars", {"weight_decay": 0.1, "momentum": 0.9}, MATRIX, 1, (2, 24, 1)),  # p g ->; p g -> p buf
    ("lars", {"weight_decay": 0.1, "momentum": 0.9}, MATRIX, 2, (2, 28, 1)),  # p g ->; p g buf -> p buf
    ("lars", {"eta": 1e-3}, MATRIX, 1, (2, 28, 1)),
    ("lion", {}, MATRIX, 1, (1, 20, 1)),  # p g m -> p m
    ("nadam", {}, MATRIX, 1, (1, 28, 1)),
    ("orthograd", {}, MATRIX, 1, (3, 28, 1)),  # p g ->; p g ->; p g -> p
    ("orthograd", {}, (1, 1), 1, (1, 12, 1)),  # nothing is orthogonal
    ("orthograd", {"momentum": 0.9}, MATRIX, 1, (3, 32, 1)),
    ("orthograd", {"momentum": 0.9}, MATRIX, 2, (3, 36, 1)),
    ("radam", {}, MATRIX, 5, (1, 28, 1)),  # v is kept before it is used
    ("radam", {}, MATRIX, 6, (1, 28, 1)),
    ("rmsprop", {}, MATRIX, 1, (1, 20, 1)),  # p g v -> p v
    ("rmsprop", {"centered": True}, MATRIX, 1, (1, 28, 1)),
    ("rmsprop", {"momentum": 0.9}, MATRIX, 1, (1, 28, 1)),
    ("rmsprop", {"centered": True, "momentum": 0.9}, MATRIX, 1, (1, 36, 1)),
    ("rprop", {}, MATRIX, 1, (1, 28, 1)),  # p g prev size -> p prev size
    ("sgd", {}, MATRIX, 1, (1, 12, 1)),
    ("sgd", {"weight_decay": 0.1}, MATRIX, 1, (1, 12, 1)),
    ("sgd", {"momentum": 0.9}, MATRIX, 1, (1, 16, 1)),  # p g -> p buf
    ("sgd", {"momentum": 0.9}, MATRIX, 2, (1, 20, 1)),
    ("sgd", {"momentum": 0.9, "nesterov": True}, MATRIX, 2, (1, 20, 1)),
    ("signsgd", {}, MATRIX, 1, (1, 20, 1)),
    ("signsgd", {"momentum": 0.0}, MATRIX, 1, (1, 12, 1)),
]


@pytest.mark.parametrize(("name", "options", "shape", "step", "expected"), TABLE)
def test_counted_by_hand(
    name: str, options: dict[str, Any], shape: tuple[int, ...], step: int, expected: tuple[int, int, int]
) -> None:
    plan = plan_of(shipped(name), options, shape, step)
    assert (len(plan.sweeps), 4 * plan.streams, plan.launches) == expected


def test_the_usual_specs_are_counted() -> None:
    from tests.support import CORE

    assert {row[0] for row in TABLE} >= set(CORE[:19])


def test_averaging_begins_later() -> None:
    plan = plan_of(shipped("asgd"), mu=0.5, eta=0.01)
    assert traffic(plan) == [("ax g p", "ax p")]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # what is stored is rounded: nothing can be read back
        ("lamb", {}, [("g", ""), ("g m p v", ""), ("g m p v", "m p v")]),
        ("lamb", {"max_grad_norm": np.inf}, [("g m p v", ""), ("g m p v", "m p v")]),
        ("adamw", {}, [("g m p v", "m p v")]),
    ],
)
def test_counted_by_hand_where_storing_rounds(
    name: str, options: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert traffic(plan_of(shipped(name), options, mode=NARROW)) == expected


def test_transforms_in_front_of_another_method() -> None:
    clipped = program("g = g * min(1, 1 / (norm(g, over=all) + 1e-6))\nm = 0.9 * m + g\np = p - lr * m")
    plan = plan_of(clipped)
    assert traffic(plan) == [("g", ""), ("g m p", "m p")]
    assert (plan.launches, plan.joints) == (2, (True, False))
    centred = program("g = g - mean(g, over=rows)\nm = 0.9 * m + g\np = p - lr * m")
    plan = plan_of(centred)
    assert traffic(plan) == [("g m p", "m p")]
    assert [len(loop.loads) for loop in plan.sweeps[0].loops] == [1, 3]
    assert traffic(plan_of(centred, shape=(6,))) == [("g m p", "m p")]  # g - g, the mean of one


@pytest.mark.parametrize("mode", MODES)
def test_a_projection_of_many_sweeps_behind_another_method(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep for each of twelve rounds: all ways to store four arrays in one of them would take minutes."""
    tried = []
    build = _Scheduler.build
    monkeypatch.setattr(_Scheduler, "build", lambda self, choice: tried.append(choice) or build(self, choice))
    (tmp_path / "ball.opt").write_text("optimizer Ball:\n    use AdamW()\n    use L1Ball()\n")
    found, _ = driver.program_of(tmp_path / "ball.opt")
    plan = plan_of(driver.simplify(found), {"amsgrad": True}, mode=mode)
    assert len(tried) < 1000
    if mode == EXACT:
        first, *rounds, last = traffic(plan)
        assert (first, last) == (("g m p v v_max", "m v v_max"), ("m p v_max", "p"))
        assert rounds == [("m p v_max", "")] * 12


# ---- single decisions -------------------------------------------------------------------------------------


def test_a_value_that_is_stored_is_read_back() -> None:
    plan = plan_of(program("m = 0.9 * m + g\np = p - lr * m / norm(m)"))
    assert traffic(plan) == [("g m", "m"), ("m p", "p")]
    assert plan.sweeps[1].loops[0].loads == (("p", "p"), ("m.1", "m"))


def test_a_state_whose_old_value_is_needed_is_stored_late() -> None:
    plan = plan_of(program("n = norm(0.9 * m + g)\np = p - lr * m / n\nm = 0.9 * m + g"))
    assert traffic(plan) == [("g m", ""), ("g m p", "m p")]


def test_a_value_that_is_not_stored_is_computed_anew() -> None:
    plan = plan_of(program("u = exp(g)\np = p - lr * u / norm(u)", state=""))
    assert traffic(plan) == [("g", ""), ("g p", "p")]
    assert plan.flops["function"] == 2


def test_the_gradient_as_scratch_memory() -> None:
    text = "a = 0.9 * a + g\nb = 0.9 * b + g\nc = 0.9 * c + g\nu = a * b + c * p\np = p - lr * u / norm(u)"
    found = program(text, state="a = 0\nb = 0\nc = 0")
    assert traffic(plan_of(found)) == [("a b c g p", "a b c"), ("a b c p", "p")]
    assert traffic(plan_of(found, mode=OVERWRITE)) == [("a b c g p", "a b c g"), ("g p", "p")]


def test_a_reduction_waits_for_the_sweep_that_reads_its_operand_anyway() -> None:
    # per row
    plan = plan_of(program("a = mean(p, over=rows)\np = p - lr * a * g / norm(g, over=all)", state=""))
    assert traffic(plan) == [("g", ""), ("g p", "p")]
    # per tensor, in front of another reduction
    plan = plan_of(program("n = norm(g)\nq = norm(m)\nd = norm(p * n)\np = p - g / (d + q)\nm = 0.9 * m + p"))
    assert plan.streams == 8  # m is read with p, in the second or in the third sweep
    # over all tensors
    plan = plan_of(
        program("a = norm(p, over=all)\nb = norm(p + norm(g))\np = p - lr * a * g * b", state=""),
    )
    assert traffic(plan) == [("g", ""), ("p", ""), ("g p", "p")]
    assert plan.joints == (False, True, False)


def test_joint_reductions_are_formed_in_the_order_of_their_sites() -> None:
    found = program(
        "a = norm(exp(p * norm(g)), over=all)\nb = norm(p, over=all)\np = p - lr * a * b * g", state=""
    )
    plan = plan_of(found)
    sites = [
        value.reduction.site
        for k in range(len(plan.sweeps))
        for value in plan.closing(k)
        if value.reduction is not None and value.reduction.joint
    ]
    assert sites == sorted(sites)  # type: ignore[type-var]
    assert len(sites) == 2
    assert plan.launches == 2


def test_two_states_change_places() -> None:
    plan = plan_of(program("c = a\na = b\nb = c\np = p - lr * g * a / norm(b)", state="a = 1\nb = 2"))
    # both in one sweep, which reads both; the next one finds the old b where a is now
    assert traffic(plan) == [("a b", "a b"), ("a g p", "p")]
    assert dict(plan.sweeps[1].loops[0].loads)["b"] == "a"


def test_nothing_to_do() -> None:
    plan = plan_of(program("p = p", state=""))
    assert plan.sweeps == ()
    assert (plan.streams, plan.launches) == (0, 0)


@pytest.mark.parametrize(
    "step",
    [
        "p = p - lr * (g @ g') @ g",
        "p = p - lr * along_axes(matrix_power(gram(g), -0.5, 1.0), g)",
        "p = p - lr * sum(gram(g)) * g",
        "p = p - lr * along_axes(identity(), g)",
    ],
)
def test_matrices_have_no_plan(step: str) -> None:
    found = program(step, state="")
    for leaf in leaves(specialise(found)):
        with pytest.raises(Unsupported, match="it works on matrices"):
            schedule(leaf)


def test_what_is_counted() -> None:
    plan = plan_of(program("p = p - lr * exp(g)^2 * m^3 + floor(p) * p^2.5\nm = 0.9 * m + 0.1 * g"))
    # lr * e * e * m * m * m, floor * pow; 0.9 m, 0.1 g
    assert dict(plan.flops) == {"add": 3, "mul": 8, "function": 2, "round": 1}
    assert plan.bound == ({"p", "g", "m"}, {"p", "m"})


# ---- at random --------------------------------------------------------------------------------------------


def reciprocals(found: Program) -> Program:
    """The program as plans compute it: a number of the host that divides is a factor, one over it."""

    def visit(node: Expr) -> Expr:
        if (
            isinstance(node, Call)
            and node.op == "div"
            and not node.type.is_host
            and node.args[1].type.is_host
        ):
            return Call("mul", (node.args[0], call("div", 1.0, node.args[1])), None, None, node.type)
        return node

    body = tuple(Assign(a.name, a.source, transform(a.expr, visit), a.guard, a.line) for a in found.body)
    return found.with_body(body, {name: transform(expr, visit) for name, expr in found.results.items()})


def narrow(value: Array) -> Array:
    return np.asarray(value).astype(np.float32).astype(np.float64)


def run(found: Program, seed: int, make: Any, numbers: Any, shapes: Any, rounds: bool) -> list[fuzz.Tree]:
    """Three steps, as `fuzz.run` makes them; with `rounds` everything of the size of a parameter is narrow."""
    rng = np.random.default_rng(seed)
    cut = narrow if rounds else np.asarray
    groups = []
    with np.errstate(all="ignore"):
        for index, group in enumerate(shapes):
            given = fuzz.arguments(rng, found) if index else {}
            groups.append(Group([cut(numbers(rng, shape)) for shape in group], given))
        runner = make(groups)
        left = []
        for step in range(3):
            grads: Any = [[cut(numbers(rng, shape)) for shape in group] for group in shapes]
            if step == 0 and len(grads[-1]) > 1:
                grads[-1][0] = None
            runner.step(grads)
            if rounds:
                _cut(runner)
            left.append(fuzz._snapshot(runner))
    return left


def _cut(runner: Interpreter) -> None:
    sized = [state.key for state in runner.program.states if state.type.is_element]
    for params, held in zip(runner.params, runner.states, strict=True):
        for number, (p, states) in enumerate(zip(params, held, strict=True)):
            params[number] = narrow(p)
            states.update({key: narrow(states[key]) for key in sized if key in states})


@pytest.fixture
def sums_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of one number is that number, -0 too. In a plan for tensors of one column a row needs no sum."""

    def changed(name: str) -> None:
        usual = NUMPY[name]

        def reduce(x: Array, axis: int | None = None) -> Array:
            return x if (x.size if axis is None else x.shape[axis]) == 1 else usual(x, axis)

        monkeypatch.setitem(NUMPY, name, reduce)

    changed("reduce_sum")
    changed("reduce_mean")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("numbers", [fuzz.ordinary, fuzz.hostile], ids=["ordinary", "hostile"])
@pytest.mark.usefixtures("sums_of_one")
def test_plans_do_what_the_interpreter_does(mode: str, numbers: Any) -> None:
    """Sweep by sweep, in memory that is overwritten as the plan says. In the mode NARROW, memory rounds."""
    compared = 0
    for seed, drawn in fuzz.programs(320 if numbers is fuzz.ordinary else 160):
        found = simplify(drawn)
        shapes, rounds = fuzz.shapes(seed), mode == NARROW

        def rounding(name: str, value: Array, found: Program = found, rounds: bool = rounds) -> Array:
            sized = name in ("p", "g") or found.state(name).type.is_element
            return narrow(value) if rounds and sized else value

        def plans(groups: Any, seed: int = seed, found: Program = found, rounding: Any = rounding) -> Plans:
            return Plans(found, groups, seed % 1000, mode, rounding)

        def meaning(groups: Any, seed: int = seed, found: Program = found) -> Interpreter:
            return Interpreter(reciprocals(found), groups, seed=seed % 1000)

        with fuzz.about(seed, drawn):
            try:
                ours = run(found, seed, plans, numbers, shapes, rounds)
            except (Unsupported, TooManyBranches):
                continue
            theirs = run(found, seed, meaning, numbers, shapes, rounds)
            fuzz.assert_same_bits(theirs, ours)
            compared += 1
    assert compared > fuzz.count(90)


def random_leaves(usual: int, most: int = 8) -> Iterator[tuple[int, Program, Leaf]]:
    """Leaves of random programs that have plans, no more than `most` of each."""
    for size in (12, 5):
        for seed, drawn in fuzz.programs(usual, size):
            try:
                found = list(leaves(specialise(simplify(drawn))))[:most]
            except TooManyBranches:
                continue
            for leaf in found:
                with contextlib.suppress(Unsupported):
                    schedule(leaf)
                    yield seed, drawn, leaf


def test_no_sweep_reads_what_is_not_there_any_more() -> None:
    """An array that was stored is read as the value that it holds, and only so."""
    for seed, drawn, leaf in random_leaves(320):
        for mode in MODES:
            with fuzz.about(seed, drawn):
                plan = schedule(leaf, mode)
                held: dict[str, str] = {}
                for sweep in plan.sweeps:
                    for loop in sweep.loops:
                        for value, array in loop.loads:
                            assert value == held.get(array, array)
                    for loop in sweep.loops[:-1]:
                        assert loop.stores == ()
                    for array, expr in sweep.loops[-1].stores:
                        assert array not in held, "an array is stored once"
                        held[array] = expr.name if isinstance(expr, Var) else ""


def test_bytes_are_no_fewer_than_possible() -> None:
    for seed, drawn, leaf in random_leaves(320):
        exact = schedule(leaf)
        with fuzz.about(seed, drawn):
            reads, writes = exact.bound
            assert exact.streams >= len(reads) + len(writes)
            assert writes == {
                n for n, e in leaf.program.results.items()
                if not (isinstance(e, Var) and e.name == n)
                and n in {a.name for a in exact.arrays if a.place is Place.ELEMENT}
            }  # fmt: skip
            assert exact.streams <= schedule(leaf, NARROW).streams
            assert exact.streams >= schedule(leaf, OVERWRITE).streams


def test_where_storing_rounds_all_is_stored_in_the_last_sweep() -> None:
    for seed, drawn, leaf in random_leaves(320):
        with fuzz.about(seed, drawn):
            plan = schedule(leaf, NARROW)
            for sweep in plan.sweeps[:-1]:
                assert not sweep.writes
            loads = {pair for sweep in plan.sweeps for loop in sweep.loops for pair in loop.loads}
            assert all(value == array for value, array in loads)


def test_draws_are_the_same_numbers_wherever_they_are_drawn_again() -> None:
    for seed, drawn, leaf in random_leaves(160):
        with fuzz.about(seed, drawn):
            plan = schedule(leaf)
            exprs = {value.name: value.expr for value in plan.values()}
            for value in plan.values():
                assert value.expr is exprs[value.name]
                inner = value.expr.args if value.draw else (value.expr,)
                for expr in inner:
                    assert not isinstance(expr, Call) or CORE[expr.op].rule is not Rule.RANDOM


def test_brute_force_finds_nothing_cheaper() -> None:
    tried = skipped = 0
    for seed, drawn, leaf in random_leaves(160):
        for mode in MODES:
            with fuzz.about(seed, drawn):
                plan = schedule(leaf, mode)
                if len(plan.sweeps) < 2:
                    continue
                problem = Problem(plan, mode)
                assert problem.sweeps == len(plan.sweeps)
                try:
                    assert problem.cheapest() == plan.streams
                    tried += 1
                except TooMany:
                    skipped += 1
    assert tried > 10 * skipped
    assert tried > fuzz.count(500)


@pytest.mark.parametrize(("name", "options", "shape", "step", "expected"), TABLE)
def test_brute_force_finds_nothing_cheaper_for_shipped_specs(
    name: str, options: dict[str, Any], shape: tuple[int, ...], step: int, expected: tuple[int, int, int]
) -> None:
    for mode in MODES:
        plan = plan_of(shipped(name), options, shape, step, mode)
        assert Problem(plan, mode).cheapest() == plan.streams
