"""Programs as trees of branch-free programs: which conditions split them, and what a leaf means."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from optdsl.ir.expr import Call, Var
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.program import Program
from optdsl.ir.text import expression
from optdsl.passes import specialise as module
from optdsl.passes.simplify import simplify
from optdsl.passes.specialise import (
    MAX_LEAVES,
    ONE_COLUMN,
    Leaf,
    Split,
    TooManyBranches,
    Tree,
    at,
    inline_host,
    leaves,
    specialise,
)
from tests import fuzz
from tests.passes.plans import leaf_of, program, shipped, tensor_known
from tests.support import PICKED


def splits(tree: Tree) -> list[tuple[str, bool]]:
    """The conditions of a tree, outer ones first, and whether they are static."""
    if isinstance(tree, Leaf):
        return []
    return [(expression(tree.condition, {}), tree.static), *splits(tree.then), *splits(tree.other)]


def structural(found: Program) -> list[str]:
    """Host conditions on which anything above the host depends."""
    conditions = []
    for assign in found.body:
        if not assign.expr.type.is_host:
            conditions += [expression(c, {}) for c, _ in assign.guard]
    for node in found.nodes():
        if isinstance(node, Call) and node.op == "select" and not node.type.is_host:
            conditions += [expression(c, {}) for c in node.args[:1] if c.type.is_host]
    return conditions


# ---- which leaves there are -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("adamw", 2),  # amsgrad
        ("adam", 4),  # decoupled_weight_decay, amsgrad
        ("lion", 1),
        ("rprop", 1),  # all its branches are per element
        ("adagrad", 1),
        ("sgd", 1 + 2 * 2),  # no momentum; nesterov or not, first step or not
        ("rmsprop", 4),  # centered, momentum
        ("radam", 2 * 2),  # decoupled or not, rectified or not
        ("asgd", 2),  # mu == 1
        ("lamb", 2 * 2 * 3),  # clipped, corrected; no trust, trust, clipped trust
        ("lars", 1 + (1 + 2) * 5),  # eta; no trust, trust, clipped trust, each with the branches of SGD
        ("nadam", 2),
        ("diffgrad", 2),
    ],
)
def test_leaves_of_shipped_specs(name: str, count: int) -> None:
    assert len(list(leaves(specialise(shipped(name))))) == count


def test_options_come_before_what_changes_while_training() -> None:
    tree = specialise(
        program(
            """
            if first_step:
                m = g
            else:
                m = 0.5 * m
            if nesterov:
                m = m + g
            p = p - lr * m
            """,
            hyper="nesterov = false",
        )
    )
    assert splits(tree) == [("nesterov", True), ("first_step", False), ("first_step", False)]
    settings = [[(expression(c, {}), w) for c, w in leaf.setting] for leaf in leaves(tree)]
    assert settings == [[("nesterov", True)]] * 2 + [[("nesterov", False)]] * 2


def test_a_condition_of_the_host_alone_splits_nothing() -> None:
    tree = specialise(
        program(
            """
            rate = lr
            if flag:
                rate = 2 * lr
            p = p - (rate if t > 3 else 0.5 * rate) * g
            """,
            hyper="flag = false",
            state="",
        )
    )
    # `flag` decides a number; so does `t > 3`, which stands inside one
    assert isinstance(tree, Leaf)


def test_a_choice_has_a_leaf_for_each_of_its_values() -> None:
    tree = specialise(
        program(
            """
            if mode == "a":
                p = p - lr * g
            if mode == "b":
                p = p - lr * sign(g)
            if mode == "c":
                p = p - lr * g^2
            """,
            hyper='mode = "a" in {"a", "b", "c"}',
            state="",
        )
    )
    found = list(leaves(tree))
    # what is left where it is none of the three is not known to be impossible
    assert len(found) == 4
    used = [{n.op for n in leaf.program.nodes() if isinstance(n, Call)} & {"sign", "pow"} for leaf in found]
    assert used == [set(), {"sign"}, {"pow"}, set()]


def test_tensors_of_one_column_are_apart_where_there_are_rows_or_columns() -> None:
    tree = specialise(program("p = p - lr * g / (1 + norm(g, over=rows))", state=""))
    assert isinstance(tree, Split)
    assert tree.condition is ONE_COLUMN
    assert tree.static
    assert [leaf.vector for leaf in leaves(tree)] == [True, False]
    assert isinstance(specialise(program("p = p - lr * g / (1 + norm(g))", state="")), Leaf)


def test_a_fact_of_the_tensor_is_static_and_the_step_is_not() -> None:
    tree = specialise(
        program(
            """
            if numel > 1 and t > 10:
                p = p - lr * g
            if rows > 4:
                p = 0.5 * p
            """,
            state="",
        )
    )
    assert dict(splits(tree)) == {"rows > 4": True, "numel > 1 and t > 10": False}


def test_too_many_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    count = MAX_LEAVES.bit_length()
    hyper = "\n".join(f"f{k} = false" for k in range(count))
    step = "\n".join(f"if f{k}:\n    p = p * g + {k + 2}" for k in range(count))
    made: list[object] = []
    monkeypatch.setattr(module, "settled", lambda found: made.append(found) or found)
    with pytest.raises(TooManyBranches):
        specialise(program(step, hyper, ""))
    assert not made  # most of the work is done when it is known to be of use
    one_less = "\n".join(f"if f{k}:\n    p = p * g + {k + 2}" for k in range(count - 1))
    assert len(list(leaves(specialise(program(one_less, hyper, ""))))) == MAX_LEAVES


# ---- what a leaf is ---------------------------------------------------------------------------------------


def test_a_leaf_keeps_joint_reductions_that_it_does_not_need() -> None:
    tree = specialise(
        program(
            """
            n = norm(g, over=all)
            if clip:
                p = p - lr * g / n
            else:
                p = p - lr * g
            """,
            hyper="clip = true",
            state="",
        )
    )
    # a tensor of another group, which clips, counts on this one
    for leaf in leaves(tree):
        assert any(isinstance(n, Call) and n.op == "reduce_sum" for n in leaf.program.nodes())


def test_host_values_of_branches_are_written_out() -> None:
    found = inline_host(
        program(
            """
            rate = lr
            if t > 3:
                rate = lr / t
            p = p - rate * g
            """,
            state="",
        )
    )
    assert not any(a.guard for a in found.body if a.expr.type.is_host)
    made = {a.name for a in found.body}
    names = {node.name for node in found.nodes() if isinstance(node, Var)}
    assert names <= made | {"lr", "t", "p", "g"}


@pytest.mark.parametrize("name", PICKED)
def test_leaves_of_shipped_specs_have_no_branches(name: str) -> None:
    for leaf in leaves(specialise(shipped(name))):
        assert structural(leaf.program) == []


def test_leaves_of_random_programs_mean_what_the_program_means() -> None:
    """A tensor that follows the leaves from step to step ends where the program takes it."""
    compared = 0
    for seed, drawn in fuzz.programs(300):
        found = simplify(drawn)
        try:
            tree = specialise(found)
        except TooManyBranches:
            continue
        with fuzz.about(seed, drawn):
            rng = np.random.default_rng(seed)
            shape = random.Random(seed).choice([(3, 4), (5,), (), (2, 3, 2)])
            numbers = (fuzz.ordinary, fuzz.hostile)[seed % 2]
            given = fuzz.arguments(rng, found)
            p = numbers(rng, shape)
            whole, parts = (_interpreter(found, p, given, seed) for _ in range(2))
            for _ in range(4):
                g = numbers(rng, shape)
                known = tensor_known(parts, 0, 0)
                leaf = leaf_of(tree, known)
                assert structural(leaf.program) == []
                parts.program = leaf.program
                whole.step([[g]])
                parts.step([[g]])
                fuzz.assert_same_bits([_left(whole)], [_left(parts)])
                compared += 1
    assert compared > fuzz.count(500)


def _interpreter(found: Program, p: Any, given: dict[str, Any], seed: int) -> Interpreter:
    return Interpreter(found, [Group([p], given)], seed=seed)


def _left(run: Interpreter) -> fuzz.Tree:
    held = {**run.states[0][0], **run.group_states[0]}
    return {"p": run.params[0][0], **{key: np.array(value) for key, value in held.items()}}


# ---- one setting ------------------------------------------------------------------------------------------


def defaults(found: Program, **options: Any) -> dict[str, Any]:
    """The defaults of all hyperparameters, but for some."""
    return {h.name: h.default for h in found.hypers} | options


def test_options_settle_branches() -> None:
    found = shipped("adamw")
    plain, left = at(found, defaults(found))
    other, other_left = at(found, defaults(found, amsgrad=True))
    assert left == other_left == ()
    assert not any("v_max" in a.expr.reads for a in plain.body)
    assert any("v_max" in a.expr.reads for a in other.body)
    assert all(not a.guard for a in plain.body)


def test_what_depends_on_the_tensor_or_the_step_is_left() -> None:
    for name, condition in (
        ("radam", "rho.1 > 5"),
        ("adamp", "ndim > 1"),
        ("lookahead_sgd", "mod(t, la_steps) == 0"),
    ):
        found = shipped(name)
        settled, left = at(found, defaults(found))
        assert [expression(c, {}) for c in left] == [condition]
        assert set(structural(settled)) <= {condition}
