"""What is put together of tensors that are cut among processes: the meaning stays, and there are few meetings."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

from optdsl.check import check_path, check_text
from optdsl.driver import locate, simplify
from optdsl.ir.expr import walk
from optdsl.ir.program import Program
from optdsl.ir.verify import verify
from optdsl.passes.shards import is_reduction, meeting, meetings, needs_whole, way
from tests import fuzz


def program_of(step: str, state: str = "") -> Program:
    head = "optimizer Some:\n    hyper:\n        lr = 0.1 in [0, inf)\n        flag = true\n"
    states = f"    state:\n        {state}\n" if state else ""
    body = textwrap.indent(textwrap.dedent(step).strip(), " " * 8)
    return simplify(check_text(f"{head}{states}    step:\n{body}\n").require())


def test_a_meeting_means_the_same() -> None:
    """Bit for bit in the interpreter, on hostile numbers; every reduction is the whole of an assignment."""
    reductions = 0
    for seed, program in fuzz.programs(150):
        with fuzz.about(seed, program):
            met = verify(meeting(program), "meeting")
            for assign in met.body:
                inner = [node for node in walk(assign.expr) if is_reduction(node)]
                assert not inner or (inner == [assign.expr])
                reductions += len(inner)
            assert not any(is_reduction(node) for expr in met.results.values() for node in walk(expr))
            dtype = np.float32 if seed % 3 == 0 else np.float64
            options = {"steps": 2, "dtype": dtype, "shapes": fuzz.shapes(seed)}
            left = fuzz.run(program, seed, fuzz.hostile, **options)
            fuzz.assert_same_bits(left, fuzz.run(met, seed, fuzz.hostile, **options))
    assert reductions > 100


def test_no_meeting_reads_what_it_is_about() -> None:
    for seed, program in fuzz.programs(150):
        with fuzz.about(seed, program):
            met = meeting(program)
            values = {assign.expr: assign.name for assign in met.body}
            for _, reductions in meetings(met):
                names = {values[each] for each in reductions}
                assert all(each.reads.isdisjoint(names) for each in reductions)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ("p = p - lr * g", 0),
        ("p = p - lr * g / norm(g)", 1),
        # both at once, though the second stands behind what the first is needed for
        ("a = norm(g) * g\nb = norm(p) * p\np = p - lr * (a + b)", 1),
        ("a = g / norm(g)\np = p - lr * a / (norm(a) + norm(p))", 2),
        ("if flag:\n    g = g / norm(g)\np = p - lr * g * norm(p)", 2),
        ("p = p - lr * g / (norm(g) if flag else 1)", 1),
        ("n = norm(g, over=all) + norm(p, over=group) + norm(p)\np = p - lr * g / n", 1),
        ("p = p - lr * (g - mean(g - mean(g, over=rows), over=cols))", 2),
    ],
)
def test_how_often_something_meets(step: str, wanted: int) -> None:
    assert len(meetings(meeting(program_of(step)))) == wanted


@pytest.mark.parametrize(
    ("step", "state", "wanted"),
    [
        ("p = p - lr * g", "", "local"),
        ("p = p - lr * g / norm(g, over=all)", "", "local"),
        ("p = p - lr * g / norm(g, over=all) / norm(p, over=all)", "", "reduced"),
        ("p = p - lr * g / norm(g)", "", "reduced"),
        ("p = p - lr * (g - mean(g, over=rows))", "", "reduced"),
        ("m = m + g\np = p - lr * m", "m = p / norm(p)", "local"),
        ("p = p - lr * newton_schulz(g, 3)", "", "whole"),
        ("p = p - lr * (g @ g') @ g", "", "whole"),
        ("p = p - lr * g * (g >= kth_largest(g, 3))", "", "whole"),
        ("p = p - lr * g * (g >= kth_largest(g, 3, over=all))", "", "local"),
        ("p = p - lr * g * (g >= kth_largest(g, 3, over=all)) / norm(g)", "", "reduced"),
    ],
)
def test_how_a_step_is_taken(step: str, state: str, wanted: str) -> None:
    assert way(program_of(step, state)) == wanted


def test_what_begins_with_whole_tensors() -> None:
    (state,) = program_of("m = m + g\np = p - lr * m", "m = p / norm(p)").states
    assert state.init is not None
    assert needs_whole([state.init])
    assert not needs_whole([program_of("p = p - lr * g").results["p"]])


@pytest.mark.parametrize(
    ("name", "wanted"), [("adamw", 0), ("lamb", 2), ("adamp", 2), ("prodigy", 1), ("dadapt_adam", 1)]
)
def test_shipped_specs_meet_as_seldom_as_they_can(name: str, wanted: int) -> None:
    assert len(meetings(meeting(simplify(check_path(locate(name)).require())))) == wanted
