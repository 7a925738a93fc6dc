"""The cost of a program: weights, levels, what is counted once and what not at all."""

from __future__ import annotations

import textwrap

import pytest

from optdsl.check import check_text
from optdsl.core.ops import CORE
from optdsl.ir.expr import call, var
from optdsl.ir.program import Program
from optdsl.passes.cost import Cost, cost, expression_cost, weight

from optdsl.core import types as ty  # isort: skip

X, Y = var("g", ty.element()), var("p", ty.element())


def program(step: str, state: str = "m = 0") -> Program:
    text = f"""
optimizer T:
    hyper:
        lr = 1e-3 in (0, inf)
        beta = 0.9 in [0, 1)
        flag = false
    state:
        {state}
    step:
"""
    return check_text(text + textwrap.indent(textwrap.dedent(step).strip(), " " * 8) + "\n").require()


def test_operations_count_at_their_level() -> None:
    found = cost(
        program(
            """
            m = beta * m + (1 - beta) * g
            scale = lr / (1 - beta^t)
            p = p - scale * m / (norm(m) + 1e-8)
            """
        )
    )
    # beta*m, (1-beta)*g, +;  m^2 and its sum;  scale*m, the division (4), the subtraction
    assert found.element == 3 + 2 + 6
    assert found.tensor == 4 + 1  # sqrt, + 1e-8
    assert found.host == 1 + 4 + 1 + 20  # 1 - beta; the division, 1 -, the power
    assert (found.reductions, found.reads, found.writes, found.arrays) == (1, 3, 2, 5)
    assert (found.row, found.col, found.group, found.matrix, found.products, found.draws) == (0,) * 6


def test_rows_cols_matrices_and_draws_have_their_own_counts() -> None:
    found = cost(
        program(
            """
            m = m + sum(g^2, over=rows)
            c = sum(g, over=cols) * 2 + 1
            a = g @ g'
            p = p - newton_schulz(g, 4) * sqrt(m) * c + normal() + a @ g
            """,
            "m [rows] = 0",
        )
    )
    assert (found.row, found.col, found.draws, found.reductions) == (1 + 4, 2, 1, 2)
    assert found.products == 3 * 4 + 2
    assert (found.reads, found.writes) == (2, 1)
    assert found.matrix == 0
    assert cost(program("a = g @ g'\np = p - (a + a * 2) @ g")).matrix == 2


def test_families_have_products_and_entries() -> None:
    found = cost(program("s = 0.9 * s + gram(g)\np = p - along_axes(s, g)", "s [axes] = identity()"))
    assert (found.products, found.matrix, found.element, found.row, found.col) == (2 + 2, 2, 1, 0, 0)
    power = cost(program("p = p - along_axes(matrix_power(gram(g), -0.5, 1.0), g)"))
    assert power.products > 10 + 2 + 2


def test_a_shared_node_counts_once_and_a_dead_assignment_not_at_all() -> None:
    shared = call("mul", X, Y)
    assert expression_cost([call("add", call("exp", shared), call("sqrt", shared))]).element == 1 + 20 + 4 + 1
    assert expression_cost([shared, shared]).element == 1
    with_dead = program("q = exp(g)\nm = m + g\np = p - g")
    assert cost(with_dead) == cost(program("m = m + g\np = p - g"))
    # in two assignments it is computed twice
    assert cost(program("m = g * p\np = p - g * p")).element == 1 + 2


def test_guards_and_choices_count_as_if_taken() -> None:
    found = cost(program("if flag:\n    m = exp(g)\nelse:\n    m = g * g\np = p - m"))
    assert found.element == 20 + 1 + 1 + 1  # the join is a select


@pytest.mark.parametrize(("exponent", "multiplications"), [(1, 0), (2, 1), (3, 2), (4, 2), (7, 4), (8, 3)])
def test_small_whole_powers_are_multiplications(exponent: int, multiplications: int) -> None:
    assert weight(call("pow", X, exponent)) == multiplications
    assert weight(call("pow", X, float(exponent))) == multiplications


@pytest.mark.parametrize("exponent", [0, -1, 9, 0.5, 2.5])
def test_other_powers_have_the_weight_of_the_table(exponent: float) -> None:
    assert weight(call("pow", X, exponent)) == CORE["pow"].flops


def test_work_per_element_dominates_the_order() -> None:
    assert Cost(element=1, host=0) > Cost(element=0, tensor=100, row=100, host=1000)
    assert Cost(row=1) < Cost(row=1, host=1) < Cost(row=2)
    assert Cost(products=1) > Cost(element=100)
    assert Cost(element=3, host=5).device_key == Cost(element=3).device_key
    assert Cost(element=3, host=5) + Cost(element=1) == Cost(element=4, host=5)
    assert not Cost(reads=3) < Cost(reads=1)  # arrays are reported, they do not order
