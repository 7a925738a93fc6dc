"""Genomes and programs mean the same; shipped methods as starts; the live part, and hashes of it."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from optdsl.core.ops import AXES_OPERANDS, CORE
from optdsl.core.types import Kind
from optdsl.driver import program_of, shipped_specs
from optdsl.ir.interpret import Group, Interpreter
from optdsl.ir.program import Hyper
from optdsl.ir.verify import verify
from optdsl.search.space import (
    Fault,
    Genome,
    Refused,
    Slot,
    Statement,
    digest,
    express,
    live,
    of_program,
    start,
    structure,
    typed,
)
from optdsl.search.space.genome import OPS, renamed
from optdsl.search.space.probe import moves
from tests import fuzz
from tests.search.genomes import interpreted, probes, small, spec, starts, walk
from tests.support import PICKED, python

# ---- shipped methods --------------------------------------------------------------------------------------


def test_every_shipped_method_is_a_genome_or_refused_by_name() -> None:
    found = starts()
    assert sorted([*found.genomes, *found.refused]) == sorted(shipped_specs())
    assert len(found.genomes) >= 80
    for name, genome in found.genomes.items():
        verify(express(genome, name.title().replace("_", "")), "express")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("muon", "branch on `use_muon and ndim > 1`"),
        ("radam", "branch on `rho.1 > 5`"),
        ("schedule_free_adamw", "evaluates at other weights"),
        ("sophia_g", "takes `h` beside the gradient"),
        ("adashift", "with a delay"),
        ("rda", "no learning rate"),
        ("bcos", "begins `v` with more than"),
        ("exponentiated_gradient", "on a simplex"),
    ],
)
def test_why_a_method_is_no_start(name: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        start(name)
    assert reason in starts().refused[name]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("p = p - lr * normal()", "random"),
        ("p = p - lr * (g @ (g' @ g))", "matrices"),
        ("p = p - lr * g * (g >= kth_largest(g, 2))", "ranks"),
    ],
)
def test_what_no_genome_has(step: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        spec(step, state="")


def test_options_choose_the_branches() -> None:
    plain, other = live(start("adamw")), live(start("adamw", amsgrad=True))
    assert [s.name for s in plain.states] == ["m", "v"]
    assert [s.name for s in other.states] == ["m", "v", "v_max"]
    with pytest.raises(Refused, match="branch on `first_step`"):
        start("sgd", momentum=0.9)
    assert start("adamw", weight_decay=0.2).hypers[-1].default == 0.2
    with pytest.raises(KeyError):
        start("adamw", no_such_option=1)


def test_a_genome_means_what_its_spec_means() -> None:
    tried = [name for name in PICKED if name in starts().genomes]
    assert len(tried) >= 15
    given = probes(3)
    for name in tried:
        program, _ = program_of(shipped_specs()[name])
        options = {h.name: 0.1 for h in program.hypers if h.name == "weight_decay"}
        try:
            genome = start(name, **options)
        except Refused:  # its decay branches on the tensor
            options, genome = {}, starts().genomes[name]
        hypers = tuple(replace(h, default=options.get(h.name, h.default)) for h in program.hypers)
        stepped = given.p + np.cumsum(moves(genome, given), axis=0)
        alive = given.p + np.cumsum(moves(live(genome), given), axis=0)
        for probe in range(len(given.p)):
            by_spec = interpreted(replace(program, hypers=hypers), given, probe)
            np.testing.assert_array_equal(interpreted(express(genome), given, probe), by_spec, err_msg=name)
            for ours in (stepped, alive):
                np.testing.assert_allclose(ours[:, probe], by_spec, rtol=1e-10, atol=1e-12, err_msg=name)


# ---- genomes ----------------------------------------------------------------------------------------------


def test_every_operator_of_a_step_has_a_statement() -> None:
    missing = set(CORE) - set(OPS)
    random = {"normal", "uniform", "rademacher", "bernoulli"}
    matrices = {"matmul", "transpose", "newton_schulz", *AXES_OPERANDS}
    assert missing == random | matrices | {"reduce_kth_largest", "entry", "count_upto"}


def test_patterns_of_several_operators_are_one_statement() -> None:
    genome = spec("m = 0.9 * m + (1 - 0.9) * g\np = p - lr * m / (norm(g) + rms(m, over=group))")
    assert [s.op for s in genome.body] == ["mix", "mul", "norm", "rms", "add", "div", "sub"]
    assert genome.body[3].over == "group"


def test_there_and_back_again() -> None:
    for name, genome in starts().genomes.items():
        again = of_program(express(genome))
        assert live(again) == live(genome), name


def test_other_values_of_hyperparameters() -> None:
    (lion,) = small("lion")
    other = lion.with_values({"beta1": 0.5, "nothing": 1.0})
    assert [h.default for h in other.hypers] == [1e-4, 0.5, 0.99, 0.0]
    assert other.with_values({"beta1": 0.9}) == lion


def test_genomes_are_values() -> None:
    for genome in small():
        assert pickle.loads(pickle.dumps(genome)) == genome
        assert hash(genome) == hash(pickle.loads(pickle.dumps(genome)))
        assert "leaves p" in str(genome)


@pytest.mark.parametrize(
    ("body", "states", "results", "what"),
    [
        ((Statement("x1", "add", ("g", "y")),), (), (("p", "x1"),), "x1"),  # there is no y
        ((Statement("x1", "neg", ("lr",)), Statement("x1", "neg", ("g",))), (), (), "x1"),
        ((Statement("x1", "reduce_sum", ("lr",), "tensor"),), (), (), "x1"),
        ((Statement("x1", "gt", ("g", 0.0)), Statement("x2", "mul", ("x1", "g"))), (), (), "x2"),
        ((Statement("x1", "mul", ("g",)),), (), (), "x1"),
        ((), (Slot("n", "tensor", 0.0),), (("n", "g"),), "n"),
        ((), (), (("q", "g"),), "q"),
        ((Statement("x1", "gt", ("g", 0.0)),), (), (("p", "x1"),), "p"),
    ],
)
def test_faults(body: object, states: object, results: object, what: str) -> None:
    genome = Genome((Hyper("lr", "lr", Kind.FLOAT, 0.1),), states, body, results)  # type: ignore[arg-type]
    with pytest.raises(Fault) as error:
        typed(genome)
    assert error.value.what == what


def test_types_are_those_of_the_program() -> None:
    for seed in fuzz.seeds(3):
        for _, genome in walk(seed, 40):
            types = typed(genome)
            for assign in express(genome).body:
                assert assign.expr.type == types[assign.source], f"seed {seed}\n{genome}"


def test_steps_are_those_of_the_interpreter() -> None:
    for seed in fuzz.seeds(4):
        for _, genome in walk(seed, 25):
            given = probes(seed, count=1, steps=4, lr=0.01)
            with np.errstate(all="ignore"):
                ours = given.p + np.cumsum(moves(genome, given), axis=0)
            theirs = interpreted(verify(express(genome)), given, 0)
            same = np.isclose(ours[:, 0], theirs, rtol=1e-6, atol=1e-9) | ~np.isfinite(theirs)
            first = np.argmin(np.append(np.isfinite(theirs).all(axis=(1, 2, 3)), False))
            assert same[:first].all(), f"seed {seed}\n{genome}"


# ---- the live part ----------------------------------------------------------------------------------------


def ops(genome: Genome) -> list[str]:
    return [s.op for s in live(genome).body]


def test_what_the_next_step_overwrites_is_dead() -> None:
    genome = spec(
        "m = exp(m + g)\nu = 0.9 * v + (1 - 0.9) * g\nm = cos(u)\nv = u\np = p - lr * u", "m = 0\nv = 0"
    )
    assert [s.name for s in live(genome).states] == ["v"]
    assert ops(genome) == ["mix", "mul", "sub"]


def test_states_that_only_feed_each_other_are_dead() -> None:
    genome = spec("a = b + g\nb = c * 2\nc = a - b\np = p - lr * g", "a = 0\nb = 0\nc = 1")
    assert live(genome).states == ()
    assert ops(genome) == ["mul", "sub"]


def test_states_that_stay_what_they_are_become_numbers() -> None:
    genome = spec("m = 0.9 * m\nn = n + m\np = p - lr * (g + n) * k", "m = 0\nn = 0\nk = 2")
    assert live(genome).states == ()
    # as far as one knows in the first round, m stays 0 here; in the second, n does not, and so m does not
    other = spec("m = m + n\nn = n + g\np = p - lr * m", "m = 0\nn = 0")
    assert len(live(other).states) == 2


def test_states_that_are_always_alike_become_one() -> None:
    step = "a = 0.9 * a + (1 - 0.9) * g\nb = 0.9 * b + (1 - 0.9) * g\np = p - lr * (a * b)"
    assert len(live(spec(step, "a = 0\nb = 0")).states) == 1
    assert len(live(spec(step, "a = 0\nb = 1")).states) == 2
    assert len(live(spec(step.replace("b = 0.9", "b = 0.8"), "a = 0\nb = 0")).states) == 2
    # each follows the other
    assert len(live(spec("x = a + g\na = b + g\nb = x\np = p - lr * (a + b)", "a = 0\nb = 0")).states) == 1


def test_what_is_reduced_stays_an_array() -> None:
    genome = spec("m = m * 0 + 3\np = p - lr * g / (sum(m) + norm(m * 0))", "m = 3")
    made = live(genome)
    typed(made)
    assert made.states == ()
    given = probes(1)
    np.testing.assert_allclose(moves(made, given), moves(genome, given), rtol=1e-9)


@pytest.mark.parametrize("over", ["tensor", "rows", "cols", "group", "all"])
@pytest.mark.parametrize("function", ["sum", "mean", "norm", "rms", "max", "min"])
@pytest.mark.parametrize(
    "value", ["norm(g)", "norm(g, over=rows)", "norm(g, over=cols)", "norm(g, over=all)", "3 * t"]
)
def test_reductions_count_what_is_the_same(function: str, over: str, value: str) -> None:
    """What is one number for many entries counts for each of them, in a tensor and in tensors of different sizes."""
    genome = spec(f"p = p - lr * g / (1 + {function}({value} + 0 * g, over={over}))", state="")
    made = live(genome)
    rng = np.random.default_rng(2)
    shapes = ((3, 4), (5, 2))
    found = []
    for program in map(express, (genome, made)):
        verify(program)
        machine = Interpreter(program, [Group([np.ones(shape) for shape in shapes], {"lr": 0.1})])
        machine.step([[rng.normal(size=shape) for shape in shapes]])
        found.append(machine.params[0])
        rng = np.random.default_rng(2)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize(
    ("step", "short"),
    [
        ("p = p - lr * (g + 0)", "p = p - lr * g"),
        ("p = p - lr * sqrt(g * g)", "p = p - lr * abs(g)"),
        ("p = p - 1 * (lr * -(-g))", "p = p - lr * g"),
        ("u = g - g\np = p - lr * (g + u)", "p = p - lr * g"),
        ("p = p - lr * (0.25 * g + (1 - 0.25) * g)", "p = p - lr * g"),
        ("p = p - lr * max(sign(sign(g)), sign(g))", "p = p - lr * sign(g)"),
        ("p = p - lr * (g if 1 < 2 else exp(g))", "p = p - lr * g"),
        ("p = p - lr * g * cos(0)", "p = p - lr * g"),
    ],
)
def test_local_rules(step: str, short: str) -> None:
    assert live(spec(step, state="")) == live(spec(short, state=""))


def test_the_live_part_is_one_and_does_the_same() -> None:
    for seed in fuzz.seeds(6):
        for parent, child in walk(seed, 25):
            # what is dead: another genome beside it
            names = {n: f"{n}_" for n in parent.taken() - {"p", "g", "lr", "t", "first_step"} if "_" not in n}
            beside = renamed(parent, names)
            states, body = (*child.states, *beside.states), (*beside.body, *child.body)
            hypers = (*child.hypers, *(h for h in beside.hypers if h.name not in child.taken()))
            whole = Genome(
                hypers, states, body, (*child.results, *(r for r in beside.results if r[0] != "p"))
            )
            try:
                typed(whole)
            except Fault:
                continue  # a name of the one is a name of the other
            made = live(whole)
            assert made == live(made)
            assert digest(made) == digest(child), f"seed {seed}\n{child}\n\n{made}"
            given = probes(seed, count=2, steps=4)
            a, b = moves(whole, given), moves(made, given)
            known = np.isfinite(a)
            assert np.isclose(a[known], b[known], rtol=1e-6, atol=1e-9).all(), (
                f"seed {seed}\n{whole}\n\n{made}"
            )


# ---- hashes -----------------------------------------------------------------------------------------------


def shuffled(rng: Random, genome: Genome) -> Genome:
    """The same under other names, in another order, with operands turned round."""
    left, body, known = list(genome.body), [], genome.taken() - {s.name for s in genome.body}
    while left:
        s = rng.choice([s for s in left if all(a in known for a in s.args if isinstance(a, str))])
        left.remove(s)
        known.add(s.name)
        turned = OPS[s.op].commutes and rng.random() < 0.5
        body.append(replace(s, args=s.args[::-1]) if turned else s)
    states = list(genome.states)
    rng.shuffle(states)
    genome = replace(genome, body=tuple(body), states=tuple(states))
    names = [s.name for s in (*genome.states, *genome.body)] + [h.name for h in genome.hypers[1:]]
    return renamed(genome, {n: f"y{k}" for k, n in enumerate(rng.sample(names, len(names)))})


def test_names_of_hyperparameters_and_states_stay_theirs() -> None:
    """Statements are numbered around them."""
    step = "x3 = x2 * x3 + g\np = p - lr * x1 * sign(x3) - lr * g"
    found = live(spec(step, "x3 = 0", "x1 = 0.5\nx2 = 0.9"))
    assert [s.name for s in found.body] == [f"x{4 + n}" for n in range(len(found.body))]
    plain = live(
        spec(step.replace("x3", "m").replace("x2", "b").replace("x1", "a"), "m = 0", "a = 0.5\nb = 0.9")
    )
    assert digest(found) == digest(plain)


def test_hashes_are_of_the_meaning() -> None:
    for seed in fuzz.seeds(8):
        rng = Random(seed)
        for _, genome in walk(seed, 15):
            made = shuffled(rng, genome)
            assert digest(made) == digest(genome), f"seed {seed}\n{genome}\n\n{made}"
            assert structure(made) == structure(genome), f"seed {seed}\n{genome}\n\n{made}"
            assert digest(live(made)) == digest(genome)


def test_hashes_tell_apart() -> None:
    adamw, lion, *_ = small()
    other = replace(
        adamw, hypers=tuple(replace(h, default=0.91) if h.name == "beta1" else h for h in adamw.hypers)
    )
    assert digest(other) != digest(adamw)
    assert structure(other) == structure(adamw) != structure(lion)
    faster = replace(adamw, hypers=(replace(adamw.hypers[0], default=1.0), *adamw.hypers[1:]))
    assert digest(faster) == digest(adamw), "the learning rate is searched for anyway"
    sums = [spec(f"p = p - lr * (a * g + {x} * m)\nm = g", hyper="a = 0.5\nb = 0.5") for x in ("a", "b")]
    assert digest(live(sums[0])) == digest(live(sums[1])), "equal numbers"
    assert structure(live(sums[0])) != structure(live(sums[1])), "two that may be tuned, or one"
    found = {digest(child): child for _, child in walk(1, 60)}
    assert len({digest(g) for g in found.values()}) == len(found) > 40


SCRIPT = """
from random import Random
from tests.search.genomes import small, walk
from optdsl.search.space import Bounds, Space, analyse, digest, structure
for _, child in walk(5, 40):
    print(digest(child), structure(child), analyse(child).reason)
print(digest(Space(Bounds(), ()).random(Random(3))))
"""


def test_every_process_finds_the_same() -> None:
    runs = [
        python("-c", SCRIPT, cwd=os.path.dirname(__file__), PYTHONHASHSEED=seed)  # type: ignore[arg-type]
        for seed in ("1", "2")
    ]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.splitlines()) == 41
