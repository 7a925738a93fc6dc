"""Steps by native kernels against the loop over tensors: the same data, whatever becomes of it between steps."""

import copy
import gc
import io
import pickle
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

import optdsl
from optdsl.runtime import optimizer as optimizer_module
from optdsl.runtime.native import build, launch
from tests.fuzz import seeds
from tests.support import lacking

ADAMW, SGD, LAMB, NADAM, RADAM, LARS, ORTHOGRAD, ADAGRADNORM, DIFFGRAD, ASGD = (
    optdsl.load(name)
    for name in (
        "adamw",
        "sgd",
        "lamb",
        "nadam",
        "radam",
        "lars",
        "orthograd",
        "adagradnorm",
        "diffgrad",
        "asgd",
    )
)
FACTORED = '''optimizer Factored:
    """Second moments by rows and columns, and noise."""

    hyper:
        lr = 1e-2 in [0, inf)
        beta = 0.9 in [0, 1)
        noise = 0.0 in [0, inf)

    state:
        r [rows] = 1
        c [cols] = 1
        m = p

    step:
        r = beta * r + (1 - beta) * mean(g^2, over=rows)
        c = beta * c + (1 - beta) * mean(g^2, over=cols)
        m = beta * m + (1 - beta) * p
        p = m - lr * (g + noise * normal()) / sqrt(r * c / mean(r) + 1e-8)
'''
#: rtol and atol by what is computed in or kept in.
CLOSE = {
    torch.float64: (1e-12, 1e-14),
    torch.complex128: (1e-12, 1e-14),
    torch.float32: (1e-6, 2e-7),
    torch.complex64: (1e-6, 2e-7),
    torch.bfloat16: (2e-2, 2e-3),
    torch.float16: (4e-3, 2e-3),
}
EXACT = {"rtol": 0.0, "atol": 0.0}
#: A method of every kind: element by element, with numbers of the host, with norms of tensors, of all tensors, of
#: groups, with branches by step, with functions of the C library.
METHODS = [
    pytest.param(ADAMW, {"weight_decay": 0.1, "amsgrad": True}, id="adamw"),
    pytest.param(SGD, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}, id="sgd"),
    pytest.param(NADAM, {"weight_decay": 0.1}, id="nadam"),
    pytest.param(RADAM, {"betas": (0.9, 0.9)}, id="radam"),
    pytest.param(LAMB, {"weight_decay": 0.1}, id="lamb"),
    pytest.param(LARS, {"momentum": 0.9, "weight_decay": 0.1}, id="lars"),
    pytest.param(ORTHOGRAD, {}, id="orthograd"),
    pytest.param(ADAGRADNORM, {"b0": 0.1}, id="adagradnorm"),
    pytest.param(ADAGRADNORM, {"momentum": 0.9, "weight_decay": 0.1}, id="adagradnorm-rows"),
    pytest.param(DIFFGRAD, {}, id="diffgrad"),
]


@pytest.fixture(scope="session")
def factored(tmp_path_factory):
    path = tmp_path_factory.mktemp("specs") / "factored.opt"
    path.write_text(FACTORED)
    return optdsl.load(path)


#: The parameters that kernels took.
RAN = set()


@pytest.fixture(autouse=True)
def watch(monkeypatch):
    """Notes what kernels take; a test that falls back to other paths tests nothing."""

    def run(self, *args):
        RAN.update(id(row.p) for row in self.rows)
        return whole(self, *args)

    whole = launch.CpuBatch.run
    monkeypatch.setattr(launch.CpuBatch, "run", run)
    monkeypatch.setattr(optimizer_module._Kernels, "missing", {})
    monkeypatch.setattr(optimizer_module._Kernels, "told", set())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "optdsl runs without native kernels")
        yield
    assert not optimizer_module._Kernels.missing


# --- data ---


def values(shape, dtype=torch.float32, seed=0):
    """Normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn((*shape, 2), generator=generator, dtype=torch.float64)
    return (torch.view_as_complex(found) if dtype.is_complex else found[..., 0]).to(dtype)


def unaligned(x):
    """At addresses that are no multiple of the size of an element."""
    if not x.numel():
        return x
    raw = torch.empty(x.numel(), dtype=x.dtype).copy_(x.flatten()).view(torch.uint8).numpy().tobytes()
    return torch.frombuffer(bytearray(b"\0" + raw), dtype=x.dtype, offset=1).reshape(x.shape)


def negative(x):
    """Numbers that are in memory with the other sign."""
    if x.is_complex():
        return torch.complex(x.real.clone(), -x.imag).conj()
    if x.dtype not in (torch.float32, torch.float64):
        return x
    return torch.imag(torch.complex(torch.zeros_like(x), -x).conj())


def sliced(x):
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]


def offset(x):
    return torch.cat([torch.full((3,), torch.nan, dtype=x.dtype), x.flatten()])[3:].view(x.shape)


def last(x):
    """The second dimension is the one that is contiguous."""
    if x.dim() < 2:
        return x.clone()
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x.mT.contiguous().mT


LAYOUTS = {
    "plain": lambda x: x.clone(memory_format=torch.contiguous_format),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() else x.clone(),
    "channels last": last,
    "sliced": sliced,
    "offset": offset,
    "unaligned": unaligned,
    "negative": negative,
}


class Side:
    """One of the two optimizers that are compared."""

    def __init__(self, cls, params, flags, **options):
        self.params = [
            torch.nn.Parameter(p, requires_grad=not p.is_inference()) if type(p) is torch.Tensor else p
            for p in params
        ]
        self.flags = flags
        self.cls = cls
        self.optimizer = cls(self.groups(), **options, **flags)

    def groups(self):
        return self.params

    @property
    def state(self):
        return self.optimizer.state

    @property
    def group(self):
        return self.optimizer.param_groups[0]

    def step(self):
        """Takes a step; returns the positions of the parameters that kernels took."""
        RAN.clear()
        self.optimizer.step()
        return {number for number, p in enumerate(self.params) if id(p) in RAN}

    def give(self, seed, without=(), dtype=None):
        for number, p in enumerate(self.params):
            p.grad = None
            if number not in without:
                grad = values(p.shape, dtype or p.dtype, 1000 * seed + number)
                p.grad_dtype = None
                p.grad = LAYOUTS["plain"](grad) if p.is_contiguous() else torch.empty_like(p).copy_(grad)


class Pair:
    """An optimizer with kernels and one without; `params` is called for the parameters of each."""

    def __init__(self, cls, params, fused=True, **options):
        options.setdefault("lr", 0.01)
        self.native = Side(cls, params(), {"fused": fused}, **options)
        self.loop = Side(cls, params(), {"fused": False, "foreach": False}, **options)

    def both(self, change):
        """Does the same to both."""
        change(self.native)
        change(self.loop)

    def step(self, seed=None, without=(), dtype=None, left=()):
        """A step, with new gradients if there is a seed; kernels take all parameters but `left`."""
        for side in (self.native, self.loop):
            if seed is not None:
                side.give(seed, without, dtype)
            before = [None if p.grad is None else p.grad.clone() for p in side.params]
            taken = side.step()
            given = {number for number, p in enumerate(side.params) if p.grad is not None}
            assert taken == (given - set(left) if side is self.native else set())
            for p, g in zip(side.params, before, strict=True):
                same = p.grad is None if g is None else torch.equal(p.grad.nan_to_num(7.0), g.nan_to_num(7.0))
                assert same, "a gradient was changed"
        self.compare()

    def compare(self):
        # what is reduced over all tensors is as exact as the least exact of them
        single = self.loop.cls._joint and any(
            p.dtype in (torch.float32, torch.complex64) for p in self.loop.params
        )
        tolerance = dict(zip(("rtol", "atol"), CLOSE[torch.float32], strict=True)) if single else {}
        for number, (p, q) in enumerate(zip(self.native.params, self.loop.params, strict=True)):
            close(p.detach(), q.detach(), f"parameter {number}", **tolerance)
            ours, theirs = self.native.state.get(p, {}), self.loop.state.get(q, {})
            assert ours.keys() == theirs.keys(), number
            for key, value in ours.items():
                close(value, theirs[key], f"state {key} of parameter {number}", **tolerance)
        for ours, theirs in zip(
            self.native.optimizer.param_groups, self.loop.optimizer.param_groups, strict=True
        ):
            for key, value in ours.items():
                if isinstance(value, torch.Tensor):
                    close(value, theirs[key], key, **tolerance)


def close(a, b, what, **tolerance):
    if not isinstance(b, torch.Tensor):
        assert a == b, what
        return
    rtol, atol = CLOSE[b.dtype]
    if not tolerance or rtol > tolerance["rtol"]:
        tolerance = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(a, b, equal_nan=True, msg=lambda text: f"{what}: {text}", **tolerance)


SHAPES = ((4, 6), (5,), (), (2, 3, 2, 2), (0,), (0, 3), (3, 0), (1, 1), (1200,), (33, 31))


def params_of(shapes=SHAPES, dtypes=(torch.float32,)):
    def make():
        return [values(shape, dtypes[n % len(dtypes)], n) for n, shape in enumerate(shapes)]

    return make


# --- kinds of parameters and gradients ---


@pytest.mark.parametrize("cls,options", METHODS)
def test_every_kind_of_method(cls, options):
    pair = Pair(cls, params_of(), **options)
    for number in range(7):
        pair.step(number)


def test_rows_columns_and_random_numbers(factored):
    pair = Pair(factored, params_of(), seed=5, noise=0.5)
    for number in range(4):
        pair.step(number)


@pytest.mark.parametrize(
    "cls,options", [(ADAMW, {"betas": (0.9, 0.9), "eps": 1e-3}), (LAMB, {"eps": 1e-3}), (ORTHOGRAD, {})]
)
def test_dtypes(cls, options):
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    pair = Pair(cls, params_of(((4, 6), (300,)) * 4, [d for d in dtypes for _ in (0, 1)]), **options)
    for number in range(4):
        pair.step(number)


@pytest.mark.parametrize("cls,options", [METHODS[0].values, METHODS[4].values, METHODS[7].values])
def test_groups_of_their_own(cls, options):
    dtypes = (torch.float64, torch.float32)
    pair = Pair(cls, params_of(SHAPES[:6], dtypes), **options)
    others = [{"lr": 0.1}, {"maximize": True}, {"lr": 0.5, "weight_decay": 0.0}]

    def groups(side):
        fresh = [torch.nn.Parameter(x) for x in params_of(SHAPES[:6], dtypes)()]
        given = [{"params": fresh[i : i + 2], **change} for i, change in zip((0, 2, 4), others, strict=True)]
        side.optimizer = cls(given, **options, **side.flags)
        side.params = fresh

    pair.both(groups)
    for number in range(4):
        pair.step(number)


@pytest.mark.parametrize(
    "cls,options", [METHODS[0].values, METHODS[4].values, METHODS[6].values, METHODS[8].values]
)
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 4, 5)], ids=str)
def test_layouts(cls, options, shape):
    """Every layout of a parameter with every one of its gradient, and of its states after some steps."""
    kinds = [(a, b) for a in LAYOUTS for b in (*LAYOUTS, "expanded")]

    def make():
        return [LAYOUTS[kind](values(shape, torch.float32, n)) for n, (kind, _) in enumerate(kinds)]

    pair = Pair(cls, make, **options)

    def gradients(side, seed):
        for number, (p, (_, kind)) in enumerate(zip(side.params, kinds, strict=True)):
            x = values(shape, torch.float32, 1000 * seed + number)
            p.grad = x[:1].expand(shape) if kind == "expanded" else LAYOUTS[kind](x)

    for number in range(6):
        pair.both(lambda side, number=number: gradients(side, number))
        if number in (2, 4):
            pair.both(lambda side, number=number: rearranged(side, number))
        pair.step()


def rearranged(side, start):
    """Puts states into other layouts."""
    for position, p in enumerate(side.params):
        for number, (key, value) in enumerate(side.state[p].items()):
            layout = LAYOUTS[list(LAYOUTS)[(start + number + position) % len(LAYOUTS)]]
            if value.dim() > 1 or (value.dim() and layout in (sliced, offset, unaligned)):
                side.state[p][key] = layout(value)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_a_single_number_may_have_the_other_sign_in_memory(shape):
    pair = Pair(ADAMW, params_of((shape, (3,))))
    for number, which in enumerate(("", "grad", "", "data", "", "both", "")):

        def change(side, number=number, which=which):
            side.give(number)
            p = side.params[0]
            if which in ("grad", "both"):
                p.grad = negative(p.grad)
            if which in ("data", "both"):
                p.data = negative(p.data)
                assert p.is_neg()

        pair.both(change)
        pair.step()


def test_numbers_of_the_host_may_lie_anywhere():
    pair = Pair(NADAM, params_of(SHAPES[:3]))
    for number in range(6):
        if number in (2, 4):
            for key, layout in (("step", unaligned), ("mu_product", offset)):
                pair.both(
                    lambda s, k=key, f=layout: [s.state[p].update({k: f(s.state[p][k])}) for p in s.params]
                )
        pair.step(number)


def test_layout_and_size_change_between_steps():
    """Gradients come in one layout, then in another."""
    pair = Pair(ADAMW, params_of(((4, 6), (6, 4))))
    kinds = ["plain", "sliced", "plain", "transposed", "negative", "offset", "unaligned", "plain"]
    for number, kind in enumerate(kinds):
        pair.both(
            lambda s, n=number, k=kind: [
                setattr(p, "grad", LAYOUTS[k](values(p.shape, seed=n))) for p in s.params
            ]
        )
        pair.step()
        staged = any(t.staged for t in pair.native.optimizer._launcher.tables.values())
        assert staged == (kind in ("sliced", "transposed", "negative", "unaligned"))


@pytest.mark.parametrize("cls", [ADAMW, SGD, LAMB, ORTHOGRAD, NADAM])
def test_complex_parameters(cls):
    dtypes = (torch.complex64, torch.complex128)
    options = {"momentum": 0.9} if cls is SGD else {}
    pair = Pair(cls, params_of(SHAPES[:6], dtypes), **options)
    for number in range(4):
        pair.step(number)
    for layout in ("transposed", "sliced", "negative", "unaligned"):
        pair.both(lambda s, k=layout: s.give(9))
        pair.both(lambda s, k=layout: setattr(s.params[0], "grad", LAYOUTS[k](s.params[0].grad)))
        pair.loop.params[0].grad = pair.loop.params[
            0
        ].grad.resolve_conj()  # which the loop needs, as torch does
        pair.step()


def test_conjugated_parameters_are_written_through():
    """The loop cannot take them."""
    plain, conjugate = values((5,), torch.complex64), negative(values((5,), torch.complex64))
    ours = [torch.nn.Parameter(x) for x in (plain, conjugate)]
    assert ours[1].is_conj()
    optimizer = ADAMW(ours, fused=True)
    for number in range(3):
        for p in ours:
            p.grad = values((5,), torch.complex64, number + 1)
        optimizer.step()
    close(ours[1].detach().resolve_conj(), ours[0].detach(), "parameter")


def test_an_expanded_parameter_is_refused():
    p = torch.nn.Parameter(torch.ones(1).expand(4))
    p.grad = torch.ones(4)
    for flags in ({"fused": True}, {"fused": False}):
        with pytest.raises(RuntimeError, match="more than one element"):
            SGD([p], **flags).step()
    assert torch.equal(p, torch.ones(4))


def test_a_zero_that_is_not_in_memory():
    pair = Pair(ADAMW, params_of(((4,), (3,))))
    pair.both(lambda side: side.give(0))
    pair.both(lambda side: setattr(side.params[0], "grad", torch._efficientzerotensor(4)))
    pair.step()
    pair.step(1)
    pair.both(lambda side: setattr(side.params[1], "grad", torch._efficientzerotensor(3)))
    pair.step()


@pytest.mark.parametrize("cls,options", METHODS)
def test_gradients_come_and_go(cls, options):
    pair = Pair(cls, params_of(SHAPES[:8]), **options)
    rng = np.random.default_rng(3)
    for number in range(10):
        absent = {0: set(range(8)), 1: {0, 2, 3}}.get(number, {n for n in range(8) if rng.random() < 0.4})
        pair.step(number, without=absent)


def test_frozen_parameters():
    pair = Pair(LAMB, params_of())
    pair.both(lambda side: side.params[0].requires_grad_(False))
    for number in range(3):
        pair.step(number, without=(0,))
    pair.both(lambda side: side.params[1].requires_grad_(False))  # its gradient stays
    pair.step()


def test_gradients_of_another_type():
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    pair = Pair(
        ADAMW, params_of(((4, 6), (5,)) * 4, [d for d in dtypes for _ in (0, 1)]), eps=1e-3, betas=(0.9, 0.9)
    )
    for number, dtype in enumerate((torch.float32, torch.float64, torch.bfloat16, torch.float16, None)):
        pair.step(number, dtype=dtype)


def test_gradients_of_a_type_without_kernels():
    pair = Pair(ADAMW, params_of(SHAPES[:3]), fused=None)
    pair.step(0)
    pair.both(lambda side: side.give(1, dtype=torch.float64))
    pair.both(lambda side: setattr(side.params[0], "grad", torch.ones((4, 6), dtype=torch.int32)))
    pair.step(left=(0,))
    pair.both(lambda side: setattr(side.params[0], "grad", torch.ones((4, 6), dtype=torch.complex64)))
    for side in (pair.native, pair.loop):
        with pytest.raises(RuntimeError):
            side.optimizer.step()


def test_tied_parameters_are_one():
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    flags = ({"fused": True}, {"fused": False, "foreach": False})
    optimizers = []
    for model, flag in zip(models, flags, strict=True):
        model[1].weight = model[0].weight
        optimizers.append(ADAMW(model.parameters(), lr=0.1, **flag))
    for number in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(values((2, 4), seed=number)).square().sum().backward()
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        close(p.detach(), q.detach(), "parameter")


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_that_is_named_twice():
    """It is stepped twice, as by torch."""
    ours, theirs = (torch.nn.Parameter(values((5,))) for _ in range(2))
    optimizer, reference = (
        ADAMW([ours, ours], lr=0.1),
        torch.optim.AdamW([theirs, theirs], lr=0.1, foreach=False),
    )
    for number in range(3):
        ours.grad, theirs.grad = values((5,), seed=number), values((5,), seed=number)
        optimizer.step()
        reference.step()
        close(ours.detach(), theirs.detach(), "parameter")
        assert optimizer.state[ours]["step"].item() == 2 * number + 2


# --- what is refused ---


def unchanged(side):
    """A copy of all numbers of one side, to compare with."""
    return copy.deepcopy(([p.detach() for p in side.params], side.optimizer.state_dict()["state"]))


@pytest.mark.parametrize("late", [False, True])
def test_sparse_gradients_change_nothing(late):
    pair = Pair(ADAMW, params_of(SHAPES[:3]), fused=None)
    if late:
        pair.step(0)
    before = unchanged(pair.native)
    pair.both(lambda side: side.give(1))
    pair.both(lambda side: setattr(side.params[1], "grad", torch.ones(5).to_sparse()))
    for side in (pair.native, pair.loop):
        with pytest.raises(RuntimeError, match=r"^AdamW does not support sparse gradients$"):
            side.optimizer.step()
    torch.testing.assert_close(unchanged(pair.native), before, **EXACT)
    pair.step(2)


def test_complex_parameters_of_a_method_for_matrices(factored):
    params = [torch.nn.Parameter(values((3, 4), dtype)) for dtype in (torch.float32, torch.complex64)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = factored(params)
    with pytest.raises(RuntimeError, match=r"^Factored does not support complex parameters$"):
        optimizer.step()
    assert not optimizer.state


def test_fused_needs_what_kernels_take():
    params = [torch.nn.Parameter(torch.ones(3, device=device)) for device in ("cpu", "meta")]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = ADAMW(params, fused=True)
    with pytest.raises(
        RuntimeError,
        match=r"`fused=True` requires all the params to be floating point Tensors, dense .* parameter 1 is a "
        r"Parameter of torch\.float32 on meta",
    ):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(params[0], torch.ones(3))


class Wrapped(torch.Tensor):
    """A tensor whose operations go another way."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with no_dispatch():
            return func(*args, **(kwargs or {}))

    __torch_function__ = torch._C._disabled_torch_function_impl


@pytest.mark.parametrize("cls", [ADAMW, LAMB])
def test_others_are_left_to_the_loop(cls):
    def make():
        found = params_of(SHAPES[:4])()
        found[1] = torch.Tensor._make_subclass(Wrapped, found[1], True)
        return found

    pair = Pair(cls, make, fused=None)
    left = (1,) if cls is ADAMW else (0, 1, 2, 3)  # what is reduced together stays together
    for number in range(3):
        pair.step(number, left=left)


def test_kinds_of_groups_side_by_side():
    """Kernels in one group and none in another, for a method that reduces over all of them too."""
    for cls in (ADAMW, LAMB):
        pair = Pair(cls, params_of(SHAPES[:4]), fused=None)
        pair.both(
            lambda side: side.optimizer.add_param_group(
                {"params": [torch.nn.Parameter(values((3,)))], "fused": False}
            )
        )
        pair.both(lambda side: side.params.append(side.optimizer.param_groups[1]["params"][0]))
        for number in range(3):
            pair.step(number, left=(4,) if cls is ADAMW else range(5))


def test_nothing_for_kernels_to_do(monkeypatch):
    """Then nothing is built, nobody is warned that it cannot be, and nothing is looked at twice."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(build, "_LOADED", {})
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    made = []
    whole = launch.Launcher._make
    monkeypatch.setattr(launch.Launcher, "_make", lambda *args: made.append(1) or whole(*args))
    params = [torch.nn.Parameter(torch.ones(3, device=device)) for device in ("meta", "cpu")]
    optimizer = SGD(params, momentum=0.9)
    for _ in range(3):
        params[0].grad = torch.ones_like(params[0])
        optimizer.step()
    assert optimizer.state[params[0]]["step"].item() == 3
    assert len(made) == 1
    optimizer.param_groups[0]["fused"] = True
    with pytest.raises(RuntimeError, match="`fused=True` requires"):
        optimizer.step()


def test_a_group_without_gradients_costs_the_others_nothing(monkeypatch):
    made = []
    whole = launch.Launcher._make
    monkeypatch.setattr(launch.Launcher, "_make", lambda *args: made.append(1) or whole(*args))
    pair = Pair(ADAMW, params_of(SHAPES[:3]))

    def freeze(side):
        side.params.append(torch.nn.Parameter(values((3,))))
        side.optimizer.add_param_group({"params": side.params[3:]})

    pair.both(freeze)
    for number in range(4):
        pair.step(number, without=(3,))
    assert len(made) == 2
    for number in range(4, 6):
        pair.step(number)
    assert len(made) == 3


# --- states that others change ---


def edited(change, cls=ADAMW, left=(), **options):
    """Runs steps, with `change` to both sides in the middle."""
    pair = Pair(cls, params_of(SHAPES[:5]), **options)
    for number in range(5):
        if number in (2, 3):
            pair.both(change)
        pair.step(number, left=left if number >= 2 else ())
    return pair


def test_states_are_replaced():
    edited(lambda side: [side.state[p].update(exp_avg=values(p.shape, seed=8)) for p in side.params])


def test_states_are_moved():
    def move(side):
        for p in side.params:
            for value in side.state[p].values():
                value.data = value.data.clone() + 1

    edited(move)
    edited(move, NADAM)


def test_states_are_written_to():
    edited(lambda side: [side.state[p]["exp_avg"].mul_(2) for p in side.params])
    edited(lambda side: [side.state[p]["mu_product"].mul_(0.9) for p in side.params], NADAM)
    edited(lambda side: [side.state[p]["step"].add_(number) for number, p in enumerate(side.params)])


def test_states_are_deleted():
    edited(lambda side: side.state[side.params[0]].pop("exp_avg"))
    edited(lambda side: side.state[side.params[0]].clear())
    edited(lambda side: side.state.pop(side.params[0]))
    edited(lambda side: side.state.clear())
    edited(lambda side: [side.state.clear(), side.params[2].data.zero_()])
    edited(lambda side: side.state[side.params[0]].pop("mu_product"), NADAM)
    edited(lambda side: side.state[side.params[0]].update(exp_avg=None))


def test_states_change_places():
    def exchange(side):
        a, b = side.params[0], side.params[1]
        state = side.state[a]
        state["exp_avg"], state["exp_avg_sq"] = state["exp_avg_sq"], state["exp_avg"].abs()
        state["renamed"] = state.pop("exp_avg_sq")
        state["exp_avg_sq"] = torch.ones_like(a)
        side.state[b]["mine"] = "a note"

    edited(exchange)


def test_states_of_other_types():
    edited(
        lambda side: [side.state[p].update(exp_avg=side.state[p]["exp_avg"].double()) for p in side.params]
    )

    def narrow(side):
        for p in side.params:
            side.state[p]["exp_avg"].data = side.state[p]["exp_avg"].bfloat16()

    edited(narrow)


def test_a_dictionary_of_another_kind():
    class Noted(dict):
        pass

    edited(lambda side: [side.state.__setitem__(p, Noted(side.state[p])) for p in side.params])


@pytest.mark.parametrize("value", [100, 0, 2**24, -1], ids=str)
def test_the_step_count_is_edited(value):
    def edit(side):
        side.state[side.params[0]]["step"].fill_(value)
        side.state[side.params[1]]["step"] = torch.tensor(float(value))
        side.state[side.params[2]]["step"] = torch.tensor([float(value)])
        side.state[side.params[3]]["step"] = torch.tensor(float(value), dtype=torch.float64)

    left = (3,) if value == 2**24 else ()  # float64 goes on counting where float32 cannot
    edited(edit, SGD, momentum=0.9, left=left)
    if value >= 0:  # 1 - beta^0 is a divisor
        edited(edit, NADAM, left=left)


def test_a_step_count_that_float32_does_not_have():
    pair = Pair(ADAMW, params_of(((3,), (4,))))
    for number in range(4):
        pair.step(number, left=(0,) if number > 1 else ())
        if number == 1:
            pair.both(
                lambda s: s.state[s.params[0]].update(step=torch.tensor(2.0**24 + 1, dtype=torch.float64))
            )


def test_a_step_count_that_is_no_whole_number():
    edited(lambda side: side.state[side.params[0]]["step"].fill_(2.5), left=(0,))


def test_a_step_count_of_an_integer_type():
    """The loop cannot add to it."""
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = ADAMW([p], fused=True)
    optimizer.step()
    optimizer.state[p]["step"] = torch.tensor(7)
    optimizer.step()
    assert optimizer.state[p]["step"].item() == 8


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("how", ["replaced", "moved"])
def test_a_state_of_the_wrong_size_is_no_accident(key, how):
    pair = Pair(ADAMW, params_of(((300,), (4,))))
    pair.step(0)

    def shrink(side):
        state = side.state[side.params[0]]
        if how == "replaced":
            state[key] = torch.zeros(7)
        else:
            state[key].data = torch.zeros(7)

    pair.both(shrink)
    pair.both(lambda side: side.give(1))
    for side in (pair.native, pair.loop):
        with pytest.raises(RuntimeError, match="size"):
            side.optimizer.step()
    close(pair.native.params[0].detach(), pair.loop.params[0].detach(), "parameter")


def test_parameters_that_move():
    def move(side):
        for number, p in enumerate(side.params):
            p.data = list(LAYOUTS.values())[number % len(LAYOUTS)](p.data + 1) if p.dim() > 1 else p.data + 1

    edited(move)
    edited(move, LAMB)


def test_parameters_that_change_their_type():
    def widen(side):
        for p in side.params:
            p.grad = None
            p.data = p.data.double()

    edited(widen, SGD, momentum=0.9)

    def back(side):
        for p in side.params:
            p.grad = None
            p.data = sliced(p.data.float())

    edited(back, SGD, momentum=0.9)


@pytest.mark.parametrize("cls", [SGD, ORTHOGRAD, ADAGRADNORM])
def test_parameters_that_change_their_shape(cls):
    """Kernels know rows, columns and dimensions of what they took before."""
    pair = Pair(cls, params_of(((4, 6), (2, 12))))
    shapes = [None, (8, 3), (24,), (2, 3, 2, 2), (1, 1, 1, 1, 24), (30, 2), (1, 2), (5, 6, 7)]
    for number, shape in enumerate(shapes):
        if shape is not None:

            def reshape(side, shape=shape):
                side.state.clear()
                for p in side.params:
                    p.grad = None
                    p.data = values(shape)

            pair.both(reshape)
        pair.step(number)


def test_a_parameter_that_is_replaced():
    def replace(side):
        side.params[1] = side.group["params"][1] = torch.nn.Parameter(values((9,)))

    edited(replace)
    edited(lambda side: [side.group["params"].reverse(), side.params.reverse()])


# --- saving and loading ---


def test_a_state_dict_is_loaded_in_the_middle():
    def load(side):
        saved = copy.deepcopy(side.optimizer.state_dict())
        for p in side.params:
            p.grad = values(p.shape, seed=77)
        side.optimizer.step()
        side.optimizer.load_state_dict(saved)

    for cls in (ADAMW, NADAM, LAMB, ADAGRADNORM):
        edited(load, cls)
    edited(load, ADAGRADNORM, b0=0.1)


@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize("cls,options", METHODS)
def test_resuming_is_not_having_stopped(cls, options, how):
    dtypes = (torch.float32, torch.float64)
    first = Side(cls, params_of(SHAPES, dtypes)(), {"fused": True}, **options)
    for number in range(3):
        first.give(number)
        first.optimizer.step()
    if how == "pickle":
        second = pickle.loads(pickle.dumps(first))
    elif how == "deepcopy":
        second = copy.deepcopy(first)
    else:
        second = Side(cls, [p.detach().clone() for p in first.params], {"fused": True}, **options)
        saved = first.optimizer.state_dict()
        if how == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        second.optimizer.load_state_dict(saved)
    for number in range(3, 6):
        for side in (first, second):
            side.give(number)
            side.optimizer.step()
    for p, q in zip(first.params, second.params, strict=True):
        assert torch.equal(p, q)
        torch.testing.assert_close(first.state[p], second.state[q], equal_nan=True, **EXACT)


def test_a_state_dict_of_torch():
    theirs, params = torch.optim.AdamW, [torch.nn.Parameter(x) for x in params_of(SHAPES[:4])()]
    reference = theirs(params, lr=0.1)
    for number in range(2):
        for n, p in enumerate(params):
            p.grad = values(p.shape, seed=1000 * number + n)
        reference.step()
    pair = Pair(ADAMW, lambda: [p.detach().clone() for p in params], fused=None)
    pair.both(lambda side: side.optimizer.load_state_dict(copy.deepcopy(reference.state_dict())))
    pair.loop.group["foreach"] = False
    pair.step(2)


# --- options ---


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.5},
        {"lr": torch.tensor(0.25)},
        {"lr": 0.0},
        {"betas": (0.5, 0.75)},
        {"betas": (torch.tensor(0.5), 0.75)},
        {"amsgrad": True},
        {"weight_decay": 0.0},
        {"maximize": True},
        {"eps": 1e-2, "amsgrad": True, "maximize": True},
    ],
    ids=lambda change: ",".join(change),
)
def test_options_change_between_steps(change):
    pair = Pair(ADAMW, params_of(SHAPES[:5]), weight_decay=0.1)
    before = {name: pair.native.group[name] for name in change}
    for number in range(6):
        if number in (2, 4):
            pair.both(lambda side, number=number: side.group.update(change if number == 2 else before))
        pair.step(number)


def test_options_that_decide_about_states():
    pair = Pair(SGD, params_of(SHAPES[:5]))
    for number, momentum in enumerate((0.0, 0.0, 0.9, 0.9, 0.0, 0.5)):
        pair.both(lambda side, momentum=momentum: side.group.update(momentum=momentum))
        pair.step(number)
    pair = Pair(ADAGRADNORM, params_of(SHAPES[:5]))
    for number, b0 in enumerate((0.0, 0.1, 0.1, 0.0, 0.2)):
        pair.both(lambda side, b0=b0: side.group.update(b0=b0))
        pair.step(number)


def test_a_learning_rate_in_a_tensor():
    pair = Pair(ADAMW, params_of(SHAPES[:5]), lr=torch.tensor(0.1, dtype=torch.float64))
    for number in range(4):
        pair.both(lambda side: side.group["lr"].mul_(0.5))
        pair.step(number)
    pair.both(lambda side: side.group["lr"].fill_(-1.0))
    with pytest.raises(ValueError, match="Invalid learning rate"):
        pair.native.optimizer.step()


def test_schedulers():
    def schedule(side, which):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if which:
                return lr_scheduler.OneCycleLR(side.optimizer, max_lr=0.1, total_steps=20)
            return lr_scheduler.LambdaLR(side.optimizer, lambda i: i / 3)

    for which in (0, 1):
        pair = Pair(ADAMW, params_of(SHAPES[:5]), lr=0.1)
        schedules = [schedule(side, which) for side in (pair.native, pair.loop)]
        for number in range(5):
            pair.step(number)
            for schedule_ in schedules:
                schedule_.step()


def test_paths_change_between_steps():
    """Kernels, lists, single tensors, and step counts on the device, in one run."""
    flags = [
        {"fused": True},
        {"fused": None, "foreach": True},
        {"fused": True, "foreach": None},
        {"fused": False, "capturable": True},
        {"fused": None, "capturable": False},
        {"fused": False, "foreach": True, "capturable": True},
        {"fused": True, "foreach": None, "capturable": False},
        {"fused": False, "foreach": True, "capturable": True},
    ]
    for cls in (NADAM, ADAMW):
        native, loop = (Side(cls, params_of(SHAPES[:4])(), {}) for _ in range(2))
        loop.group.update(fused=False, foreach=False)
        for number, change in enumerate(flags):
            native.group.update(change)
            for side in (native, loop):
                side.give(number, without={4: (0,), 6: (1,)}.get(number, ()))
                side.optimizer.step()
            for p, q in zip(native.params, loop.params, strict=True):
                torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(native.state[p], loop.state[q], rtol=1e-5, atol=1e-6)


def test_a_group_is_added_later():
    for cls in (ADAMW, LAMB, ADAGRADNORM):
        pair = Pair(cls, params_of(SHAPES[:3]), **({"b0": 0.1} if cls is ADAGRADNORM else {}))
        pair.step(0)

        def add(side):
            late = [torch.nn.Parameter(x) for x in params_of(SHAPES[3:6], (torch.float64, torch.float32))()]
            side.optimizer.add_param_group({"params": late, "lr": 0.05})
            side.params += late

        pair.both(add)
        for number in range(1, 4):
            pair.step(number)
        pair.both(lambda side: side.optimizer.param_groups.reverse())
        pair.both(lambda side: side.give(5))
        for side in (pair.native, pair.loop):
            side.optimizer.step()
        pair.compare()


def test_two_optimizers_over_one_parameter():
    results = []
    for flags in ({"fused": True}, {"fused": False, "foreach": False}):
        p = torch.nn.Parameter(values((40,)))
        optimizers = ADAMW([p], lr=0.1, **flags), SGD([p], lr=0.1, momentum=0.9, **flags)
        for number in range(6):
            p.grad = values((40,), seed=number)
            optimizers[number % 2].step()
            if number == 3:
                optimizers[0].step()
        results.append(p.detach())
    close(*results, "parameter")


# --- anything in any order ---


def _relayout_gradients(side, rng):
    for p in side.params:
        if p.grad is not None and rng.random() < 0.5:
            p.grad = LAYOUTS[rng.choice(list(LAYOUTS))](p.grad)


def _relayout_states(side, rng):
    for p in side.params:
        for key, value in side.state[p].items() if p in side.state else ():
            if rng.random() < 0.3 and value.dim():
                side.state[p][key] = LAYOUTS[rng.choice(list(LAYOUTS))](value)


def _move_states(side, rng):
    for state in side.state.values():
        for value in state.values():
            value.data = value.data.clone()


def _move_parameters(side, rng):
    for p in side.params:
        if rng.random() < 0.5:
            p.data = LAYOUTS[rng.choice(list(LAYOUTS))](p.data)


def _drop_states(side, rng):
    for p in side.params:
        if rng.random() < 0.3:
            side.state.pop(p, None)


def _edit_states(side, rng):
    for p in side.params:
        for value in side.state[p].values() if p in side.state else ():
            value.mul_(float(rng.choice([0.5, 2.0])) if value.dim() else 1)


def _edit_steps(side, rng):
    for p in side.params:
        if p in side.state and rng.random() < 0.3:
            side.state[p]["step"].add_(int(rng.integers(1, 9)))


def _options(side, rng):
    group = side.optimizer.param_groups[int(rng.integers(len(side.optimizer.param_groups)))]
    group["lr"] = float(rng.choice([0.0, 0.001, 0.01]))
    group["maximize"] = bool(rng.random() < 0.3)
    for name in ("amsgrad", "nesterov"):
        if name in group and rng.random() < 0.5:
            group[name] = not group[name]
    if "weight_decay" in group:
        group["weight_decay"] = float(rng.choice([0.0, 0.1]))


def _split(side, rng):
    groups = side.optimizer.param_groups
    if len(groups) < 3 and len(groups[0]["params"]) > 2:
        at = len(groups[0]["params"]) // 2
        moved, groups[0]["params"] = groups[0]["params"][at:], groups[0]["params"][:at]
        side.optimizer.add_param_group({"params": moved, "lr": 0.005})


def _add(side, rng):
    late = torch.nn.Parameter(values((int(rng.integers(1, 50)), 3)))
    side.optimizer.add_param_group({"params": [late]})
    side.params.append(late)


def _reload(side, rng):
    side.optimizer.load_state_dict(copy.deepcopy(side.optimizer.state_dict()))


def _copy(side, rng):
    side.optimizer, side.params = copy.deepcopy((side.optimizer, side.params))


HISTORY = [
    *(_relayout_gradients, _relayout_states, _move_states, _move_parameters, _drop_states, _edit_states),
    *(_edit_steps, _options, _split, _add, _reload, _copy),
]


@pytest.mark.parametrize("seed", seeds(60))
def test_any_history(seed, factored):
    rng = np.random.default_rng(seed)
    methods = [(m.values[0], m.values[1]) for m in METHODS] + [(factored, {"noise": 0.1})]
    cls, options = methods[seed % len(methods)]
    dtypes = [(torch.float32,), (torch.float64,), (torch.float32, torch.float64)][int(rng.integers(3))]
    if cls is NADAM or "betas" in options:
        options = {**options, "eps": 1e-3}
    # what is left of one number behind the projection of OrthoGrad is rounding error
    pair = Pair(
        cls,
        params_of([s for s in SHAPES[:8] if s not in ((), (1, 1)) or cls is not ORTHOGRAD], dtypes),
        **options,
    )
    done = []
    for step in range(8):
        present = len(pair.native.params)
        absent = {n for n in range(present) if rng.random() < 0.2}
        pair.both(lambda side, step=step, absent=absent: side.give(step, absent))
        for change in rng.choice(len(HISTORY), int(rng.integers(0, 3)), replace=False):
            done.append((step, HISTORY[change].__name__))
            private = int(rng.integers(2**32))
            pair.both(
                lambda side, f=HISTORY[change], private=private: f(side, np.random.default_rng(private))
            )
        try:
            pair.step()
        except Exception as error:
            error.add_note(f"{cls.__name__} {options} {dtypes}: {done}")
            raise


# --- gradients and memory ---


@pytest.mark.parametrize(
    "cls,options", [METHODS[4].values, METHODS[5].values, METHODS[6].values, METHODS[0].values]
)
def test_gradients_may_be_used_as_memory(cls, options):
    """Only where that is allowed; autograd is told."""
    loop = Side(cls, params_of()(), {"fused": False, "foreach": False}, **options)
    native = Side(cls, params_of()(), {"fused": True}, **options)
    changed = False
    for number in range(5):
        native.group["overwrite_grad"] = number != 2
        loop.give(number)
        native.give(number)
        if number == 3:
            native.params[0].grad = LAYOUTS["transposed"](native.params[0].grad)
        before = [(p.grad.clone(), p.grad._version) for p in native.params]
        native.optimizer.step()
        loop.optimizer.step()
        for p, (grad, version) in zip(native.params, before, strict=True):
            if not torch.equal(p.grad, grad):
                assert number != 2
                assert p.grad._version > version
                changed = True
        for p, q in zip(native.params, loop.params, strict=True):
            close(p.detach(), q.detach(), "parameter")
            assert native.state[p].keys() == loop.state[q].keys()
            for key, value in native.state[p].items():
                close(value, loop.state[q][key], key)
    assert changed or cls is not LAMB


@pytest.mark.parametrize("cls", [ADAMW, LAMB, ORTHOGRAD])
def test_autograd_knows_that_parameters_change(cls):
    p, other = (torch.nn.Parameter(values((4, 4), seed=n)) for n in range(2))
    optimizer = cls([p, other], fused=True)
    p.grad = torch.ones_like(p)
    loss = (p @ p).sum()
    unused = (other @ other).sum()
    version = other._version
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert other._version == version
    unused.backward()


def test_grad_mode_does_not_matter():
    pair = Pair(ADAMW, params_of(SHAPES[:4]))
    pair.step(0)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        pair.both(lambda side: side.give(1))
        with mode():
            pair.step()
            assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    pair.step(2)
    assert not any(value.requires_grad for state in pair.native.state.values() for value in state.values())


def test_inference_mode():
    """Parameters and states that are made in it have no version."""
    with torch.inference_mode():
        pair = Pair(ADAMW, params_of(SHAPES[:4]))
        for number in range(2):
            pair.step(number)
    pair.native.give(3)
    pair.native.optimizer.step()  # which the loop could not, out of inference mode
    pair = Pair(ADAMW, params_of(SHAPES[:4]))
    with torch.inference_mode():
        pair.both(lambda side: side.give(0))
        pair.step()
        pair.step(1)


def test_old_gradients_are_let_go():
    for cls in (ADAMW, LAMB, ADAGRADNORM):
        side = Side(cls, params_of()(), {"fused": True})
        side.params[0].data = sliced(side.params[0].data)
        for number in range(3):
            side.give(number)
            side.params[1].grad = sliced(side.params[1].grad)
            references = [weakref.ref(p.grad) for p in side.params]
            side.optimizer.step()
            side.optimizer.zero_grad(set_to_none=True)
            assert not any(reference() is not None for reference in references)


def test_optimizers_are_let_go():
    side = Side(ADAMW, params_of()(), {"fused": True})
    side.give(0)
    side.optimizer.step()
    references = [
        weakref.ref(x) for x in (*side.params, *side.state[side.params[0]].values(), side.optimizer)
    ]
    del side
    gc.collect()
    assert not any(reference() is not None for reference in references)


class Allocations(TorchDispatchMode):
    """Counts the elements that operations make anew."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        views = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for x in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in views:
                self.largest = max(self.largest, x.numel())
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls,options", METHODS)
def test_a_step_allocates_nothing(cls, options, dtype):
    side = Side(cls, params_of(((500, 4), (1000,)), (dtype,))(), {"fused": True}, **options)
    side.give(0)
    side.optimizer.step()
    side.group["maximize"] = True
    side.give(1)
    with Allocations() as seen:
        side.optimizer.step()
    assert seen.largest <= 16


def test_the_default_device_does_not_matter():
    pair = Pair(LAMB, params_of(SHAPES[:4]))
    pair.both(lambda side: setattr(side.params[0], "data", sliced(side.params[0].data)))
    pair.both(lambda side: side.give(0))
    with torch.device("meta"):
        pair.step()
    rows = Pair(ADAGRADNORM, params_of(SHAPES[:4]))
    rows.both(lambda side: side.give(0))
    with torch.device("meta"):
        rows.step()
    rows.step(1)


# --- threads ---


@pytest.mark.parametrize(
    "cls,options",
    [
        (ADAMW, {"amsgrad": True}),
        (SGD, {"momentum": 0.9}),
        (LAMB, {}),
        (LARS, {"momentum": 0.9, "weight_decay": 0.1}),
        (ADAGRADNORM, {"b0": 0.1}),
        (ADAGRADNORM, {}),
        (ORTHOGRAD, {}),
    ],
)
def test_the_number_of_threads_does_not_matter(cls, options):
    shapes = ((0,), (1,), (7,), (31,), (1023,), (65537,), (300000,), (1000, 33), (3, 50000))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            side = Side(cls, params_of(shapes)(), {"fused": True}, **options)
            for number in range(2):
                side.give(number)
                side.optimizer.step()
            results.append([side.params, [side.state[p] for p in side.params]])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], equal_nan=True, **EXACT)


def test_columns_with_threads(factored):
    shapes = ((5000, 30), (7, 30000), (0, 4), (4, 0), (100000,))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            pair = Pair(factored, params_of(shapes), noise=0.1)
            pair.step(0)
            pair.step(1)
            results.append([pair.native.params, [pair.native.state[p] for p in pair.native.params]])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results, equal_nan=True, **EXACT)


# --- what torch's optimizers have around a step ---


def test_hooks_and_the_name_in_a_profile():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = ADAMW([p], fused=True)
    seen = []
    optimizer.register_step_pre_hook(lambda *args: seen.append(p.tolist()))
    optimizer.register_step_post_hook(lambda *args: seen.append(p.tolist()))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert seen[0] == [1.0] * 3
    assert seen[1] == p.tolist() != seen[0]
    names = [event.key for event in profile.key_averages()]
    assert "Optimizer.step#AdamW.step" in names


def test_the_place_of_a_parameter_among_all_counts(factored):
    """Random numbers depend on it, and another group may become longer or shorter."""
    pair = Pair(factored, params_of(SHAPES[:4]), noise=0.5)

    def split(side):
        group = side.group
        side.optimizer.add_param_group({"params": [group["params"].pop()], "noise": 0.5, "lr": 0.01})

    for number in range(4):
        if number:
            pair.both(split)
        pair.step(number)


def test_a_closure():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = SGD([p], lr=0.5, fused=True)

    def closure():
        optimizer.zero_grad()
        loss = p.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert torch.equal(p, torch.full((3,), 0.5))


def test_a_class_of_a_person():
    """One that was derived has the kernels of its base, in whatever module it is."""

    class Mine(ADAMW):
        pass

    Mine.__module__ = "__main__"
    pair = Pair(Mine, params_of(SHAPES[:3]))
    pair.step(0)


# --- accuracy ---


def test_rounding_errors_are_those_of_torch():
    """Mean and largest error of float32 against float64, over 200 steps, beside torch's fused kernel."""
    size, steps = 100_000, 200
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(size, generator=generator)
    scale = torch.exp(torch.randn(size, generator=generator))
    options = {"lr": 1e-3, "weight_decay": 0.1}
    optimizers = {}
    for name, cls, flags, dtype in (
        ("exact", ADAMW, {"fused": False, "foreach": False}, torch.float64),
        ("ours", ADAMW, {"fused": True}, torch.float32),
        ("theirs", torch.optim.AdamW, {"fused": True}, torch.float32),
    ):
        p = torch.nn.Parameter(start.to(dtype, copy=True))
        optimizers[name] = (p, cls([p], **options, **flags))
    for _ in range(steps):
        grad = torch.randn(size, generator=generator) * scale
        for p, optimizer in optimizers.values():
            p.grad = grad.to(p.dtype)
            optimizer.step()
    exact = optimizers["exact"][0].detach()
    ours, theirs = ((optimizers[name][0].detach().double() - exact).abs() for name in ("ours", "theirs"))
    print(
        f"mean {ours.mean():.3g} beside {theirs.mean():.3g}, largest {ours.max():.3g} beside {theirs.max():.3g}"
    )
    assert ours.mean() <= 1.2 * theirs.mean()
    assert ours.max() <= 1.2 * theirs.max()


def test_some_branches_without_kernels() -> None:
    """Matrices take torch's operations, other tensors kernels; who demands kernels is told."""
    torch.manual_seed(3)
    start = [torch.randn(6, 4), torch.randn(5), torch.randn(3, 3), torch.randn(())]
    muon = lacking(optdsl.load("muon"), {}, (6, 4))
    ours, peers = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimizer, peer = muon(ours, weight_decay=0.1), muon(peers, weight_decay=0.1, fused=False)
    for _ in range(4):
        for a, b in zip(ours, peers, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        peer.step()
        assert optimizer._launcher.tables[0].skipped == {0, 2}
        assert [row.p is ours[1] or row.p is ours[3] for row in optimizer._launcher.tables[0].rows] == [
            True
        ] * 2
        for a, b in zip(ours, peers, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    before = [x.detach().clone() for x in ours]
    strict = muon(ours, fused=True)
    with pytest.raises(RuntimeError, match=r"Muon has no fused kernel for parameter 0, of shape \(6, 4\), "):
        strict.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))
    only = muon([ours[1]], fused=True)
    only.step()
    assert only._launcher.tables[0].rows


def test_a_branch_without_kernels_comes_and_goes() -> None:
    """An option of a group may lead to a branch without kernels and back again; its states go along."""
    lion = lacking(optdsl.load("lion_k"), {"kappa": "topk"}, (50,))
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 50)) for _ in range(2))
    optimizer, peer = (
        lion([p], lr=0.01, weight_decay=0.1, k=7),
        lion([q], lr=0.01, weight_decay=0.1, k=7, fused=False),
    )
    torch.manual_seed(4)
    for kappa in ("l1", "topk", "topk", "soft", "l1", "topk", "l2"):
        p.grad = torch.randn(50)
        q.grad = p.grad.clone()
        for each in (optimizer, peer):
            each.param_groups[0]["kappa"] = kappa
            each.step()
        assert bool(optimizer._launcher.tables[0].rows) == (kappa != "topk")
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
        for key, kept in peer.state[q].items():
            torch.testing.assert_close(optimizer.state[p][key], kept, rtol=1e-5, atol=1e-7)


def test_a_step_that_is_refused_begins_no_states() -> None:
    """Neither of the parameter without a kernel, nor of those that have one."""
    lion = lacking(optdsl.load("lion_k"), {"kappa": "topk"}, (3,))
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in "ab")
    optimizer = lion([{"params": [p]}, {"params": [q], "kappa": "topk"}], fused=True)
    p.grad, q.grad = torch.full((3,), 100.0), torch.full((3,), 100.0)
    with pytest.raises(RuntimeError, match="LionK has no fused kernel"):
        optimizer.step()
    assert not optimizer.state
    assert p.tolist() == q.tolist() == [1.0] * 3
    for group in optimizer.param_groups:
        group["fused"] = False
    optimizer.step()
    assert all(optimizer.state[x]["step"] == 1 for x in (p, q))


SOMETIMES = """optimizer Sometimes:
    hyper:
        lr = 0.1 in [0, inf)
        k = 3 in [1, 100]

    input h "read in every k-th step"

    state:
        v = 0

    step:
        p = p - lr * g / (1 + v)
        every k offset k - 1:
            v = 0.5 * v + h^2
"""


def test_an_input_may_be_left_out_where_a_step_does_not_read_it(tmp_path: Path) -> None:
    """Given or not, it may lie elsewhere, in another type, when it is given again."""
    path = tmp_path / "sometimes.opt"
    path.write_text(SOMETIMES)
    cls = optdsl.load(path)
    runs = []
    for flags in ({"foreach": False}, {"fused": True}):
        params = [torch.nn.Parameter(torch.full(shape, 0.5)) for shape in ((3, 4), (5,), (2, 3))]
        params[2] = torch.nn.Parameter(params[2].detach().mT)
        optimizer = cls(params, **flags)
        for number in range(8):
            for p in params:
                p.grad = torch.full_like(p, 0.25 + number)
            kind = torch.float64 if number == 5 else torch.float32
            h = [torch.full(p.shape, number - 2.5, dtype=kind) for p in params]
            optimizer.step(inputs={"h": h} if number % 3 == 2 or number == 4 else None)
        with pytest.raises(RuntimeError, match="this step needs the input 'h'"):
            optimizer.step()
        runs.append([*params, *(optimizer.state[p]["v"] for p in params)])
    for x, y in zip(*runs, strict=True):
        torch.testing.assert_close(x, y)
