"""Reductions over groups and over everything: the driver by itself, and in optimizers."""

import math

import pytest
import torch

from optdsl.runtime import Joint
from optdsl.runtime.joint import JointTask, drive
from tests.runtime.standins import ClippedSgd, DAdapt


def task(generator, group=0, indices=(0,), dtype=torch.float64):
    return JointTask(generator, group, indices, dtype, torch.device("cpu"))


def ask(*requests):
    """An update that makes these requests and returns the answers."""
    answers = []
    for request in requests:
        answers.append((yield request).item())
    return answers


@pytest.mark.parametrize("kind,want", [("sum", 10.0), ("mean", 2.5), ("max", 4.0), ("min", 1.0)])
def test_kinds(kind, want):
    xs = [torch.tensor([1.0, 2.0]), torch.tensor(3.0), torch.tensor([[4.0]]), torch.empty(0)]
    alone = drive([task(ask(Joint(kind, "all", 0, x)), indices=(i,)) for i, x in enumerate(xs)])
    assert alone == [[want]] * 4
    assert drive([task(ask(Joint(kind, "all", 0, xs)), indices=(0, 1, 2, 3))]) == [[want]]
    same_for_all = drive([task(ask(Joint(kind, "all", 0, torch.tensor(2.0))), indices=(0, 1, 2))])
    assert same_for_all == [[6.0 if kind == "sum" else 2.0]]


@pytest.mark.parametrize(
    "kind,want", [("sum", 0.0), ("mean", math.nan), ("max", -math.inf), ("min", math.inf)]
)
def test_nothing_but_empty_tensors(kind, want):
    ((value,),) = drive([task(ask(Joint(kind, "all", 0, torch.empty(0, 3))))])
    assert value == want or math.isnan(value) == math.isnan(want)


@pytest.mark.parametrize("kind", ["max", "min", "sum"])
def test_nan_wins(kind):
    xs = [torch.tensor([1.0, math.nan]), torch.tensor([2.0])]
    for (value,) in drive([task(ask(Joint(kind, "all", 0, x)), indices=(i,)) for i, x in enumerate(xs)]):
        assert math.isnan(value)


def test_groups_meet_apart_and_all_together():
    def requests(x):
        return Joint("sum", "group", 0, torch.tensor(x)), Joint("sum", "all", 1, torch.tensor(x))

    tasks = [
        task(ask(*requests(x)), group, (i,)) for i, (group, x) in enumerate([(0, 1.0), (1, 10.0), (0, 100.0)])
    ]
    assert drive(tasks) == [[101.0, 111.0], [10.0, 111.0], [101.0, 111.0]]


def test_the_lowest_site_is_served_first():
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    tasks = [
        task(ask(Joint("sum", "all", 0, one), Joint("sum", "all", 2, one)), indices=(0,)),
        task(ask(Joint("sum", "all", 2, two)), indices=(1,)),  # took another branch
        task(ask(), indices=(2,)),
        task(ask(Joint("max", "all", 1, two), Joint("sum", "all", 2, two)), indices=(3,)),
    ]
    assert drive(tasks) == [[1.0, 5.0], [5.0], [], [2.0, 5.0]]


def test_a_site_may_be_visited_again():
    rounds = [Joint("sum", "all", 7, torch.tensor(x)) for x in (1.0, 2.0, 3.0)]
    assert drive([task(ask(*rounds), indices=(i,)) for i in range(2)]) == [[2.0, 4.0, 6.0]] * 2


def test_partial_results_are_added_in_the_order_of_the_parameters():
    xs = [torch.tensor(x, dtype=torch.float64) for x in (1e16, 1.0, -1e16, 1.0)]
    order = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]]
    results = {
        drive([task(ask(Joint("sum", "all", 0, xs[i])), indices=(i,)) for i in numbers])[0][0]
        for numbers in order
    }
    buckets = [
        task(ask(Joint("sum", "all", 0, [xs[i] for i in pair])), indices=pair) for pair in ((1, 3), (0, 2))
    ]
    assert results == {drive(buckets)[0][0]}


def test_everyone_gets_the_value_in_its_own_dtype():
    seen = []

    def update(x):
        value = yield Joint("sum", "all", 0, x)
        seen.append((value.dtype, value.item()))

    x = torch.tensor(0.1, dtype=torch.float64)
    drive([task(update(x), indices=(0,)), task(update(x.float()), indices=(1,), dtype=torch.float32)])
    assert [dtype for dtype, _ in seen] == [torch.float64, torch.float32]
    assert seen[0][1] == 0.1 + x.float().item()


def test_an_error_closes_all_updates():
    closed = []

    def update(number):
        try:
            yield Joint("sum", "all", 0, torch.tensor(1.0))
            if number == 1:
                raise RuntimeError("boom")
            yield Joint("sum", "all", 1, torch.tensor(1.0))
        finally:
            closed.append(number)

    with pytest.raises(RuntimeError, match="boom"):
        drive([task(update(i), indices=(i,)) for i in range(3)])
    assert sorted(closed) == [0, 1, 2]


# --- in optimizers ---

SHAPES = ((3, 4), (5,), (), (2, 1, 2), (0,))


def setup(dtypes=(torch.float64,), groups=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = [
        torch.nn.Parameter(
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtypes[i % len(dtypes)])
        )
        for i, shape in enumerate(SHAPES)
    ]
    return params, [{"params": params[i::groups]} for i in range(groups)]


def gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_global_clip_equals_clipping_before_sgd(foreach, groups):
    ours, split = setup(groups=groups)
    theirs, _ = setup()
    optimizer = ClippedSgd(split, max_norm=0.7, lr=0.1, momentum=0.9, foreach=foreach)
    reference = torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    for i in range(4):
        gradients(ours, i)
        gradients(theirs, i)
        before = [p.grad.clone() for p in ours]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(ours, before, strict=True))
        torch.nn.utils.clip_grad_norm_(theirs, 0.7)
        reference.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("foreach", [False, True])
def test_an_error_leaves_everything_untouched(foreach, monkeypatch):
    params, groups = setup(groups=2)
    optimizer = ClippedSgd(groups, foreach=foreach)
    gradients(params, 0)
    optimizer.step()
    late = torch.nn.Parameter(torch.randn(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [late]})

    def snapshot():
        states = [(key, value.clone()) for state in optimizer.state.values() for key, value in state.items()]
        return [p.detach().clone() for p in [*params, late]], states

    before = snapshot()
    name = "_update_foreach" if foreach else "_update"
    whole, calls = getattr(ClippedSgd, name), []

    def failing(*args):
        calls.append(None)
        result = yield from whole(*args)
        if len(calls) > 1:
            raise RuntimeError("boom")
        return result

    monkeypatch.setattr(ClippedSgd, name, staticmethod(failing))
    gradients([*params, late], 1)
    with pytest.raises(RuntimeError, match="boom"):
        optimizer.step()
    after = snapshot()
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert len(before[1]) == len(after[1])
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before[1], after[1], strict=True))


def d_adapted(params, steps, d0=1e-3):
    """The rule of `DAdapt` for one group, written out with flat vectors."""
    x = torch.cat([p.detach().reshape(-1) for p in params])
    origin, s, d, seen = x.clone(), torch.zeros_like(x), d0, 0.0
    for i in range(steps):
        gradients(params, i)
        g = torch.cat([p.grad.reshape(-1) for p in params])
        s = s + g
        seen += (g * (origin - x)).sum().item()
        d = max(d, seen / (s.abs().sum().item() + 1e-12))
        x = x - d * g
    return x, d, seen


@pytest.mark.parametrize("foreach", [False, True])
def test_group_states_follow_their_own_group(foreach):
    params, _ = setup()
    others, _ = setup(seed=1)
    want = [d_adapted(params, 4, 0.1), d_adapted(others, 4, 0.2)]
    optimizer = DAdapt([{"params": params, "d0": 0.1}, {"params": others, "d0": 0.2}], foreach=foreach)
    for i in range(4):
        gradients(params, i)
        gradients(others, i)
        optimizer.step()
    for group, (x, d, seen) in zip(optimizer.param_groups, want, strict=True):
        torch.testing.assert_close(torch.cat([p.detach().reshape(-1) for p in group["params"]]), x)
        assert group["d"].shape == ()
        assert group["d"].dtype == torch.float64
        assert group["d"].item() == pytest.approx(d)
        assert group["seen"].item() == pytest.approx(seen)
        assert not {"d", "seen"} & set(optimizer.state[group["params"][0]])


@pytest.mark.parametrize("cls", [ClippedSgd, DAdapt])
def test_paths_agree_for_mixed_dtypes_and_parameters_that_come_and_go(cls):
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    results = []
    for foreach, capturable in ((False, False), (True, False), (False, True), (True, True)):
        params, groups = setup(dtypes, groups=2)
        optimizer = cls(groups, foreach=foreach, capturable=capturable)
        for i in range(5):
            gradients(params, i)
            if i % 2:
                params[0].grad = params[3].grad = None
            if i < 2:
                params[1].grad = None
            optimizer.step()
        numbers = [
            group[key].item() for group in optimizer.param_groups for key in ("d", "seen") if key in group
        ]
        results.append(([p.detach() for p in params], numbers))
    for params, numbers in results[1:]:
        torch.testing.assert_close(params, results[0][0])
        assert numbers == pytest.approx(results[0][1])


def test_the_group_state_of_the_most_advanced_tensor_is_kept():
    class Counter(DAdapt):
        _joint = False

        @staticmethod
        def _live(group, facts):
            return ("d",)

        @staticmethod
        def _update(p, g, state, group, t, facts, random):
            state["d"] = state["d"] * 0 + 100 * t + facts.numel
            return p

    for capturable in (False, True):
        params, _ = setup()
        optimizer = Counter(params, capturable=capturable)
        for i in range(3):
            gradients(params, i)
            if i == 0:
                params[0].grad = None
            optimizer.step()
        assert optimizer.param_groups[0]["d"].item() == 305  # t = 3, and the first of these has 5 entries


def test_joint_values_are_differentiable():
    def loss(lr, keep=True):
        p = torch.ones(3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0])
        q = torch.ones((), dtype=torch.float64) * 0.5
        p, q = p.clone().requires_grad_().clone(), q.clone().requires_grad_().clone()
        optimizer = ClippedSgd([p, q], max_norm=0.3, lr=lr, momentum=0.5, differentiable=True)
        for _ in range(3):
            total = (p.clone() ** 4).sum() + (q.clone() * p.clone()).sum()
            p.grad, q.grad = torch.autograd.grad(total, (p, q), create_graph=True)
            optimizer.step()
        return (p * p).sum() + q

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(lr), lr)
    h = 1e-6
    assert slope.item() == pytest.approx(((loss(0.1 + h) - loss(0.1 - h)) / (2 * h)).item(), rel=1e-6)
