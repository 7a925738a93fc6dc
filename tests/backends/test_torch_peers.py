"""The shipped methods that torch.optim has, against torch.optim: every path, setting, shape and checkpoint.

All of our paths are held against torch's for-loop path. That keeps some numbers of NAdam and ASGD
(`mu_product`, `eta`, `mu`) in the default dtype, so its runs in float64 have float64 as the default dtype.
"""

import contextlib
import inspect
import io
import itertools

import pytest
import torch
from torch.optim import lr_scheduler

import optdsl

#: Settings of each method. The groups of one optimizer differ as the first and the last of them do.
GRID = {
    "sgd": [
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ],
    "adam": [
        {"lr": 0.05},
        {"lr": 0.05, "weight_decay": 0.1},
        {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3},
        {"lr": 0.05, "betas": (0.0, 0.0)},
        {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True, "betas": (0.8, 0.7)},
    ],
    "adamw": [
        {"lr": 0.05},
        {"lr": 0.05, "weight_decay": 0.0, "eps": 1e-2},
        {"lr": 0.05, "weight_decay": 0.3, "amsgrad": True, "betas": (0.8, 0.7)},
    ],
    "adagrad": [
        {"lr": 0.1},
        {"lr": 0.1, "lr_decay": 0.2},
        {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-2},
        {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.5},
    ],
    "adadelta": [
        {},
        {"lr": 0.5, "rho": 0.5},
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1},
    ],
    "rmsprop": [
        {"lr": 0.05},
        {"lr": 0.05, "alpha": 0.5, "eps": 1e-2, "weight_decay": 0.1},
        {"lr": 0.05, "centered": True},
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
        {"lr": 0.05, "momentum": 0.9, "centered": True, "weight_decay": 0.1, "alpha": 0.8},
    ],
    "adamax": [
        {"lr": 0.05},
        {"lr": 0.05, "weight_decay": 0.1, "betas": (0.5, 0.6), "eps": 1e-2},
    ],
    "nadam": [
        {"lr": 0.05},
        {"lr": 0.05, "weight_decay": 0.1, "momentum_decay": 0.1},
        {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.5, 0.9), "eps": 1e-3},
    ],
    "radam": [
        {"lr": 0.05},
        {"lr": 0.05, "weight_decay": 0.1},
        {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.5, 0.9), "eps": 1e-3},
    ],
    "rprop": [
        {"lr": 0.05},
        {"lr": 0.05, "etas": (0.3, 1.9), "step_sizes": (0.02, 0.1)},
    ],
    "asgd": [
        {"lr": 0.1},
        {"lr": 0.1, "t0": 3.0, "weight_decay": 0.1},
        {"lr": 0.1, "t0": 2.0, "lambd": 0.1, "alpha": 0.5},
    ],
}
PEERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
}
#: Their step takes branches by the step count.
NOT_CAPTURABLE = {"sgd", "radam", "asgd"}
PATHS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "capturable": {"foreach": False, "capturable": True},
    "foreach-capturable": {"foreach": True, "capturable": True},
    "differentiable": {"differentiable": True},
}
EVERY = [
    pytest.param(name, number, id=f"{name}-{number}") for name in GRID for number in range(len(GRID[name]))
]
WAYS = [
    pytest.param(name, path, id=f"{name}-{path}")
    for name in GRID
    for path in PATHS
    if not ("capturable" in path and name in NOT_CAPTURABLE)
]
#: Relative to the size of a number, and absolute.
CLOSE = {torch.float64: (1e-12, 1e-14), torch.float32: (2e-5, 2e-6)}
STEPS = 9


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Problem:
    """Tensors of all shapes and layouts, and their gradients in every step."""

    def __init__(self, rng, dtype):
        self.dtype = dtype
        size = lambda: int(rng.integers(1, 6))  # noqa: E731
        shapes = [(), (0,), (0, 3), (size(),), (size(), size()), (size(), size(), size()), (2, 3, 4, size())]
        self.shapes = [*shapes, (size(), 4), (4, size()), (6,)]
        self.layouts = ["plain"] * 6 + ["channels_last", "transposed", "strided", "strided"]
        self.values = [rng.standard_normal(shape) for shape in self.shapes]
        # now and then all zeros, which the methods must bear, but not at first
        self.grads = [
            [
                rng.standard_normal(shape) * (number != 5 or index % 2)
                for index, shape in enumerate(self.shapes)
            ]
            for number in range(4 * STEPS)
        ]

    def tensor(self, value, layout):
        """A tensor of this value with this layout in memory."""
        x = torch.tensor(value, dtype=self.dtype)
        if layout == "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        if layout == "transposed":
            return x.t().contiguous().t()
        if layout == "strided":
            wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=self.dtype)
            wide[..., ::2] = x
            return wide[..., ::2]
        return x

    def params(self, requires_grad=True):
        return [
            torch.nn.Parameter(self.tensor(value, layout), requires_grad=requires_grad)
            for value, layout in zip(self.values, self.layouts, strict=True)
        ]

    def give(self, params, number, present=lambda number, index: True):
        """Sets the gradients of a step; in memory they are laid out as other parameters are."""
        for index, p in enumerate(params):
            layout = self.layouts[index] if number % 2 else "plain"
            value = self.grads[number][index]
            p.grad = self.tensor(value, layout) if present(number, index) else None


@pytest.fixture
def problem(rng):
    return lambda dtype=torch.float64: Problem(rng, dtype)


def train(optimizer, params, problem, first=0, steps=STEPS, after=lambda: None, **how):
    """Takes steps; checks that gradients stay what and where they are, and parameters where they are."""
    for number in range(first, first + steps):
        problem.give(params, number, **how)
        given = [p.grad for p in params]
        before = [None if g is None else g.clone() for g in given]
        places = [p.data_ptr() for p in params]
        optimizer.step()
        after()
        for p, g, old, place in zip(params, given, before, places, strict=True):
            assert p.grad is g
            assert g is None or torch.equal(g, old)
            assert p.data_ptr() == place
    return params


def ours(name, params, path="loop", **options):
    return optdsl.load(name)(params, **options, **PATHS[path])


def theirs(name, params, **options):
    return PEERS[name](params, foreach=False, **options)


def peer_run(name, problem, **options):
    """torch's optimizer and its parameters after a training."""
    with default_dtype(problem.dtype):
        params = problem.params()
        optimizer = theirs(name, params, **options)
        train(optimizer, params, problem)
    return optimizer, params


def same(mine, others, dtype, what=""):
    for index, (a, b) in enumerate(zip(mine, others, strict=True)):
        assert a.dtype is b.dtype
        close(a, b, dtype, f"{what} tensor {index}")


def close(a, b, dtype, what):
    rtol, atol = CLOSE[dtype]
    torch.testing.assert_close(
        a.detach(), b.detach(), rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}"
    )


def same_states(mine, params, other, others, dtype):
    """Both optimizers keep the same under the same keys; SGD of torch does not count steps."""
    for p, q in zip(params, others, strict=True):
        kept = {key: value for key, value in other.state[q].items() if value is not None}
        assert set(mine.state[p]) - set(kept) <= ({"step"} if isinstance(other, torch.optim.SGD) else set())
        assert set(kept) <= set(mine.state[p])
        for key, value in kept.items():
            value = torch.as_tensor(value)
            got = mine.state[p][key]
            assert got.shape == value.shape
            close(got.to(value.dtype), value, dtype, key)


# ---- trajectories ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "setting"), EVERY)
def test_every_path_equals_torch(name, setting, dtype, problem):
    problem, options = problem(dtype), GRID[name][setting]
    options = {**options, "maximize": setting % 2 == 1}
    other, expected = peer_run(name, problem, **options)
    for path, flags in PATHS.items():
        params = problem.params(requires_grad=not flags.get("differentiable"))
        if flags.get("capturable") and name in NOT_CAPTURABLE:
            with pytest.raises(RuntimeError, match="does not support `capturable`: its step branches"):
                ours(name, params, path, **options)
            continue
        optimizer = ours(name, params, path, **options)
        train(optimizer, params, problem)
        same(params, expected, dtype, path)
        same_states(optimizer, params, other, expected, dtype)
        assert [p.stride() for p in params] == [p.stride() for p in expected]


@pytest.mark.parametrize("name", GRID)
@pytest.mark.parametrize("maximize", [False, True])
def test_the_default_settings_are_those_of_torch(name, maximize, problem):
    problem = problem()
    other, expected = peer_run(name, problem, maximize=maximize)
    params = problem.params()
    optimizer = ours(name, params, maximize=maximize)
    same(train(optimizer, params, problem), expected, torch.float64)
    # AdamW of torch is an Adam that has its switch on
    expected = {
        key: x for key, x in other.defaults.items() if (name, key) != ("adamw", "decoupled_weight_decay")
    }
    assert {key: optimizer.defaults[key] for key in expected} == expected


@pytest.mark.parametrize(("name", "path"), WAYS)
def test_groups_have_their_own_options(name, path, problem):
    problem = problem()
    first, last = GRID[name][0], GRID[name][-1]
    # torch takes this option of Adagrad from the constructor alone
    last = {key: value for key, value in last.items() if key != "initial_accumulator_value"}

    def groups(params):
        return [{"params": params[:5], **first}, {"params": params[5:], **last, "maximize": True}]

    params = problem.params(requires_grad=path != "differentiable")
    train(ours(name, groups(params), path), params, problem)
    with default_dtype(torch.float64):
        others = problem.params()
        train(theirs(name, groups(others)), others, problem)
    same(params, others, torch.float64)


@pytest.mark.parametrize(("name", "path"), WAYS)
def test_a_late_parameter_counts_its_own_steps(name, path, problem):
    """Some parameters get their first gradient late, some miss steps in between."""
    problem, options = problem(), GRID[name][-1]

    def present(number, index):
        return number >= 4 if index % 3 == 1 else number % 3 != 2 if index % 3 == 2 else True

    params = problem.params(requires_grad=path != "differentiable")
    optimizer = ours(name, params, path, **options)
    train(optimizer, params, problem, present=present)
    with default_dtype(torch.float64):
        others = problem.params()
        other = theirs(name, others, **options)
        train(other, others, problem, present=present)
    same(params, others, torch.float64)
    same_states(optimizer, params, other, others, torch.float64)
    counts = [int(optimizer.state[p]["step"]) for p in params]
    assert counts == [sum(present(n, index) for n in range(STEPS)) for index in range(len(params))]


@pytest.mark.parametrize(("name", "path"), WAYS)
def test_a_parameter_without_a_gradient_is_left_alone(name, path, problem):
    problem = problem()
    params = problem.params(requires_grad=path != "differentiable")
    before = [p.detach().clone() for p in params]
    optimizer = ours(name, params, path, **GRID[name][-1])
    train(optimizer, params, problem, steps=3, present=lambda number, index: index % 2 == 0)
    for index, (p, old) in enumerate(zip(params, before, strict=True)):
        assert (p in optimizer.state) is (index % 2 == 0)
        assert index % 2 == 0 or torch.equal(p, old)


# ---- schedulers and tensor learning rates -----------------------------------------------------------------

SCHEDULES = {
    "step": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.7),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS),
    "to zero": lambda o: lr_scheduler.LambdaLR(o, lambda number: max(0.0, 1 - number / 4)),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "path"), WAYS)
def test_a_schedule_is_obeyed(name, path, schedule, problem):
    problem, options = problem(), GRID[name][-1]
    results = []
    for make in (
        lambda params: ours(name, params, path, **options),
        lambda params: theirs(name, params, **options),
    ):
        with default_dtype(torch.float64):
            params = problem.params(requires_grad=path != "differentiable")
            optimizer = make(params)
            scheduler = SCHEDULES[schedule](optimizer)
            train(optimizer, params, problem, after=scheduler.step)
        results.append((params, optimizer.param_groups[0]["lr"]))
    assert results[0][1] == results[1][1] != options.get("lr", 1.0)
    same(results[0][0], results[1][0], torch.float64)


@pytest.mark.parametrize(
    ("name", "options"),
    [("sgd", {"momentum": 0.9}), ("adam", {}), ("adamw", {"amsgrad": True}), ("rmsprop", {"momentum": 0.9})],
)
@pytest.mark.parametrize("path", ["loop", "foreach"])
def test_a_schedule_may_change_momentum_and_betas(name, path, options, problem):
    problem, results = problem(), []
    for make, how in ((ours, {"path": path}), (theirs, {})):
        params = problem.params()
        optimizer = make(name, params, lr=0.01, **how, **options)
        scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS + 1)
        train(optimizer, params, problem, after=scheduler.step)
        results.append(params)
    same(*results, torch.float64)


@pytest.mark.parametrize(("name", "path"), WAYS)
def test_a_tensor_learning_rate_is_its_number(name, path, problem):
    problem = problem()
    options = {**GRID[name][-1], "lr": 0.0625}
    _, expected = peer_run(name, problem, **options)
    for lr in (torch.tensor(0.0625), torch.tensor([0.0625], dtype=torch.float64)):
        params = problem.params(requires_grad=path != "differentiable")
        optimizer = ours(name, params, path, **{**options, "lr": lr})
        assert optimizer.param_groups[0]["lr"].dim() == 0
        train(optimizer, params, problem)
        same(params, expected, torch.float64)


@pytest.mark.parametrize(("name", "path"), WAYS)
def test_a_tensor_learning_rate_may_be_changed_in_place(name, path, problem):
    problem = problem()
    params = problem.params(requires_grad=path != "differentiable")
    lr = torch.tensor(0.0625, dtype=torch.float64)
    options = {key: value for key, value in GRID[name][0].items() if key != "lr"}
    optimizer = ours(name, params, path, lr=lr, **options)
    train(optimizer, params, problem, steps=3)
    optimizer.param_groups[0]["lr"].fill_(0.25)
    train(optimizer, params, problem, first=3, steps=3)
    with default_dtype(torch.float64):
        others = problem.params()
        other = theirs(name, others, lr=0.0625, **options)
        train(other, others, problem, steps=3)
        other.param_groups[0]["lr"] = 0.25
        train(other, others, problem, first=3, steps=3)
    same(params, others, torch.float64)


# ---- checkpoints -----------------------------------------------------------------------------------------


def through_a_file(state):
    """A state dict saved and loaded as a checkpoint is."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copies(params, requires_grad=True):
    return [torch.nn.Parameter(p.detach().clone(), requires_grad=requires_grad) for p in params]


@pytest.mark.parametrize(
    ("name", "setting", "path"),
    [
        pytest.param(*each.values, path, id=f"{each.id}-{path}")
        for each in EVERY
        for path in ("loop", "foreach", "capturable", "differentiable")
        if not (path == "capturable" and each.values[0] in NOT_CAPTURABLE)
    ],
)
def test_checkpoints_go_to_torch_and_back(name, setting, path, problem):
    """torch trains, ours goes on, torch goes on: the same as torch alone, with ours in any place."""
    problem, options, plain = problem(), GRID[name][setting], path != "differentiable"
    with default_dtype(torch.float64):
        others = problem.params()
        other = theirs(name, others, **options)
        train(other, others, problem, steps=3)

        params = copies(others, plain)
        mine = ours(name, params, path)
        mine.load_state_dict(through_a_file(other.state_dict()))
        mine.param_groups[0].update(PATHS[path])
        train(mine, params, problem, first=3, steps=3)
        train(other, others, problem, first=3, steps=3)
        same(params, others, torch.float64)
        same_states(mine, params, other, others, torch.float64)

        again = copies(params)
        third = theirs(name, again)
        third.load_state_dict(through_a_file(mine.state_dict()))
        third.param_groups[0].update(foreach=False, capturable=False, differentiable=False)
        for state in third.state.values():
            for key, value in state.items():
                state[key] = value.detach() if isinstance(value, torch.Tensor) else value
        train(third, again, problem, first=6, steps=3)
        train(other, others, problem, first=6, steps=3)
        same(again, others, torch.float64)


@pytest.mark.parametrize(("name", "setting"), EVERY)
def test_options_come_with_the_checkpoint(name, setting, problem):
    problem, options = problem(), GRID[name][setting]
    other, _ = peer_run(name, problem, **options)
    mine = ours(name, problem.params())
    mine.load_state_dict(through_a_file(other.state_dict()))
    group = mine.param_groups[0]
    assert {key: group[key] for key in options} == options
    assert {"params", *other.defaults} <= set(group)


@pytest.mark.parametrize(("name", "setting"), EVERY)
def test_a_checkpoint_of_ours_resumes_bit_for_bit(name, setting, problem):
    for dtype, path in itertools.product((torch.float32, torch.bfloat16), ("loop", "foreach")):
        this = problem(dtype)
        params = this.params()
        optimizer = ours(name, params, path, **GRID[name][setting])
        train(optimizer, params, this, steps=3)
        again = copies(params)
        resumed = ours(name, again, path)
        resumed.load_state_dict(through_a_file(optimizer.state_dict()))
        train(optimizer, params, this, first=3, steps=3)
        train(resumed, again, this, first=3, steps=3)
        assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


def test_states_are_laid_out_as_their_parameters(problem):
    problem = problem()
    params, others = problem.params(), problem.params()
    optimizer, other = ours("adam", params), theirs("adam", others)
    train(optimizer, params, problem, steps=1)
    train(other, others, problem, steps=1)
    for p, q in zip(params, others, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[p][key].stride() == other.state[q][key].stride()


# ---- derivatives -----------------------------------------------------------------------------------------


#: torch cuts the first momentum buffer of SGD off, and overwrites what the others need to go back.
TORCH_CANNOT = {
    *(("sgd", 2), ("sgd", 3), ("sgd", 4), ("adam", 5), ("adamw", 2)),
    *(("rmsprop", 2), ("rmsprop", 4), ("adamax", 0), ("adamax", 1), ("rprop", 0), ("rprop", 1)),
}


def moved(make, start, grads, **options):
    """The parameter after a step with each gradient; autograd sees all of it."""
    p = start.clone()
    optimizer = make([p], differentiable=True, **options)
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()
    return p


@pytest.mark.parametrize(("name", "setting"), EVERY)
def test_derivatives_through_steps_are_right(name, setting, rng):
    inputs = [torch.tensor(rng.standard_normal(3), requires_grad=True) for _ in range(4)]
    make, options = optdsl.load(name), GRID[name][setting]
    assert torch.autograd.gradcheck(lambda start, *grads: moved(make, start, grads, **options), inputs)


@pytest.mark.parametrize(("name", "setting"), [each for each in EVERY if each.values not in TORCH_CANNOT])
def test_derivatives_through_steps_are_those_of_torch(name, setting, rng):
    inputs = [torch.tensor(rng.standard_normal((3, 2)), requires_grad=True) for _ in range(4)]
    weights = torch.tensor(rng.standard_normal((3, 2)))
    found = []
    for make in (optdsl.load(name), PEERS[name]):
        with default_dtype(torch.float64):
            p = moved(make, inputs[0], inputs[1:], **GRID[name][setting])
            found.append(torch.autograd.grad((weights * p).sum(), inputs))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


# ---- random numbers of settings --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["loop", "foreach"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_random_settings(name, path, rng):
    """Numbers and switches drawn at random, five times."""
    ranges = {
        "weight_decay": (0, 0.3), "momentum": (0, 0.95), "dampening": (0, 1), "alpha": (0.1, 0.99),
        "lr_decay": (0, 0.5), "initial_accumulator_value": (0, 1),
    }  # fmt: skip
    for _ in range(5):
        problem = Problem(rng, torch.float64)
        options = {"lr": float(rng.uniform(1e-3, 0.2))}
        known = inspect.signature(PEERS[name]).parameters
        for option, (low, high) in ranges.items():
            if option in known and rng.random() < 0.7:
                options[option] = float(rng.uniform(low, high))
        for switch in ("amsgrad", "centered", "decoupled_weight_decay", "maximize"):
            if switch in known and rng.random() < 0.5:
                options[switch] = True
        if "betas" in known:
            options["betas"] = tuple(float(x) for x in rng.uniform(0, 0.999, 2))
        if "eps" in known:
            options["eps"] = float(10 ** rng.uniform(-8, -1))
        if options.get("momentum") and not options.get("dampening"):
            options["nesterov"] = True
            options = {key: value for key, value in options.items() if key in known}
        params = problem.params()
        train(ours(name, params, path, **options), params, problem)
        _, expected = peer_run(name, problem, **options)
        for a, b in zip(params, expected, strict=True):  # a difference of like numbers loses a digit
            torch.testing.assert_close(
                a, b, rtol=1e-11, atol=1e-12, msg=lambda text, o=options: f"{o}: {text}"
            )
