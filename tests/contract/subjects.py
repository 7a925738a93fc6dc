"""What the contract is tried on: every shipped spec, the ways a step can take, parameters, gradients and settings.

No spec is named here. A run takes all of them, or a sample in which every trait that a class can have occurs (a joint
reduction, random numbers, a delayed state...), and beside it a few that OPTDSL_SEED picks.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import optdsl
from optdsl.runtime.states import facts_about
from tests.backends.interpreted import HERE, interpreted
from tests.support import COMPILER, NAMES, ROOT

Options = dict[str, Any]


class Refused(Exception):
    """A class refuses what a test asks for, and says so by name; the test has seen it do so."""


def only(wanted: Callable[[str], bool]) -> Callable[[Any], Any]:
    """A test of those specs alone for which that is true."""

    def marked(function: Any) -> Any:
        function.only = wanted
        return function

    return marked


#: Constructor arguments that every class has.
FLAGS: Options = {
    **{"foreach": None, "maximize": False, "capturable": False, "differentiable": False, "fused": None},
    "overwrite_grad": False,
    "store": None,
}
#: What the text of a generated class says about how it is made: a class with it takes code of its own somewhere.
TRAITS = {
    **{"joint": "_joint = True", "random": "_random = True", "inputs": "given=True", "delay": "delay="},
    **{"view": r"def _view\(", "matrix": "_elementwise = False", "starts": "_starts_from_gradient = True"},
    **{"by steps": "_not_capturable =", "no kernels": "_no_kernels =", "lacking": "lacking="},
    **{
        f"{level} state": f'State\\("[^"]+", "{level}"'
        for level in ("host", "group", "tensor", "rows", "cols")
    },
    **{
        "choice": "choices=",
        "parts": "parts=",
        "int": '"int"',
        "over all": '"all"',
        "over group": r'Joint\("\w+", "group"',
        "ranks": "kth_largest",
    },
    **{"stateless": r"_states = \(\)", "in place": "_foreach_inplace = False"},
}


@functools.cache
def traits(name: str) -> frozenset[str]:
    """The traits of a spec's class, told from its text."""
    text = (ROOT / "generated" / f"{name}.py").read_text("utf-8")
    found = {trait for trait, mark in TRAITS.items() if re.search(mark, text)}
    return frozenset(found | ({"of torch"} if of_torch(name) else set()) | {f"{text.count('State(')} states"})


@functools.cache
def torch_class(name: str) -> Any:
    """The class of torch.optim that a spec is as, by its name, maybe with "Torch" behind, and options; or None."""
    text = (ROOT / "generated" / f"{name}.py").read_text("utf-8")
    title = text.split("\nclass ", 1)[1].split("(", 1)[0].removesuffix("Torch")
    peer = getattr(torch.optim, title, None)
    if not isinstance(peer, type):
        return None
    kinds = inspect.signature(peer).parameters.values()
    options = [
        p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ("params", *FLAGS)
    ]
    return peer if all(f'Hyper("{option}"' in text for option in options) else None


def of_torch(name: str) -> bool:
    """Whether torch.optim has the method."""
    return torch_class(name) is not None


def sample(seed: int, more: int) -> list[str]:
    """The fewest specs (about) that have all traits, in an order that the seed decides, and some more."""
    order = sorted(NAMES)
    random.Random(seed).shuffle(order)
    left = frozenset().union(*map(traits, order))
    taken: list[str] = []
    while left:
        best = max(order, key=lambda name: len(traits(name) & left))
        taken.append(best)
        left -= traits(best)
    others = [name for name in order if name not in taken]
    return sorted(taken + others[:more])


@functools.cache
def class_named(name: str) -> Any:
    """The class of a shipped spec."""
    return optdsl.load(name)


# ---- ways ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How a step is taken: the flags that ask for it, and whether Triton's interpreter stands for a device."""

    name: str
    flags: Options = field(default_factory=dict, hash=False)
    triton: bool = False

    def refusal(self, cls: Any) -> str | None:
        """What the class says when it is asked for this way and does not have it; None if it has it."""
        name = cls.__name__
        if self.flags.get("capturable") and cls._not_capturable:
            return f"{name} does not support `capturable`: {cls._not_capturable}"
        if self.flags.get("fused") and cls._native is None:
            return f"{name} has no fused kernel: {cls._no_kernels}"
        return None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Steps that are taken in here take this way."""
        with interpreted() if self.triton else contextlib.nullcontext():
            yield


LOOP = Way("loop", {"foreach": False})
WAYS = {
    way.name: way
    for way in (
        LOOP,
        Way("foreach", {"foreach": True}),
        Way("native"),
        Way("triton", triton=True),
        Way("loop-capturable", {"foreach": False, "capturable": True}),
        Way("foreach-capturable", {"foreach": True, "capturable": True}),
        Way("triton-fused", {"fused": True}, triton=True),
    )
}
#: Those of which results are compared with the loop's; the others are tried where they are what is asked about.
MAIN = ("loop", "foreach", "native", "triton")


def ways(*names: str) -> Any:
    """A test of some of the ways."""
    return pytest.mark.parametrize("way", [pytest.param(WAYS[name], id=name) for name in names or WAYS])


def built(cls: Any, params: Any, way: Way, **options: Any) -> Any:
    """An optimizer that takes a way. Raises Refused where the class does, in the words in which it should."""
    said = way.refusal(cls)
    if said is None:
        return cls(params, **options, **way.flags)
    with pytest.raises(RuntimeError) as raised:
        cls(params, **options, **way.flags)
    assert str(raised.value) == said
    raise Refused(said)


def lacking(way: Way) -> str | None:
    """Why this machine cannot take a way."""
    if way.triton and not HERE:
        return "Triton is not installed"
    if (way.triton or way.name == "native") and COMPILER is None:
        return "there is no C compiler `cc`"
    return None


# ---- settings --------------------------------------------------------------------------------------------


def inside(hyper: Any, value: float) -> bool:
    """Whether a hyperparameter may have a value."""
    if not hyper.interval:
        return True
    low, high = map(float, hyper.interval[1:-1].split(","))
    above = low < value or (low == value and hyper.interval[0] == "[")
    return above and (value < high or (value == high and hyper.interval[-1] == "]"))


def tame(cls: Any) -> Options:
    """What keeps roots of matrices from magnifying the rounding in these, as those of singular ones would."""
    if not any(spec.level == "axes" for spec in cls._states):
        return {}
    return {h.name: 0.1 for h in cls._hypers if h.kind == "float" and "eps" in h.name and inside(h, 0.1)}


def usual(cls: Any) -> Options:
    """The defaults, with weight decay wherever there is such an option."""
    return tame(cls) | {
        hyper.name: 0.1
        for hyper in cls._hypers
        if hyper.kind == "float" and not hyper.parts and "weight_decay" in hyper.name and inside(hyper, 0.1)
    }


def turned(cls: Any) -> Options:
    """Every switch and choice otherwise than by default, and on what is 0 by default."""
    options, defaults = usual(cls), cls([torch.zeros(1)]).defaults
    for hyper in cls._hypers:
        value = defaults[hyper.name]
        if hyper.kind == "bool":
            options[hyper.name] = not value
        elif hyper.kind == "choice":
            options[hyper.name] = next(choice for choice in reversed(hyper.choices) if choice != value)
        elif hyper.kind == "float" and value == 0 and not hyper.parts and hyper.name not in options:
            options.update({hyper.name: 0.25} if inside(hyper, 0.25) else {})
    return options


SETTINGS = {"usual": usual, "turned": turned}


def moved(hyper: Any, value: Any) -> Any:
    """Another value that a float hyperparameter may have, near the one that it has; None if there is none."""
    if hyper.parts or hyper.many:
        parts = tuple(moved(Single(hyper, n), part) for n, part in enumerate(value))
        return None if None in parts else parts
    if hyper.kind != "float" or not math.isfinite(value):
        return None
    for other in (0.75 * value, 1.25 * value, value + 0.05, value - 0.05):
        if other != value and inside(hyper, other):
            return other
    return None


def all_moved(cls: Any, options: Options) -> Options:
    """Another value of every float hyperparameter that may have one, near the one that it has with `options`."""
    known = {**cls([torch.zeros(1)]).defaults, **options}
    found = {hyper.name: moved(hyper, known[hyper.name]) for hyper in cls._hypers}
    return {name: value for name, value in found.items() if value is not None}


class Single:
    """One number of a hyperparameter that has several."""

    def __init__(self, hyper: Any, index: int) -> None:
        self.kind, self.interval, self.parts, self.many = hyper.kind, hyper.within(index), (), False


# ---- parameters, gradients, training ---------------------------------------------------------------------

SHAPES = ((3, 4), (5,), (), (2, 3, 2), (0,), (0, 3), (6, 2))
PLAIN = ((3, 4), (5,), (2, 3, 2))


def seeded(*what: Any) -> torch.Generator:
    """A generator of random numbers that are the same for the same arguments."""
    return torch.Generator().manual_seed(zlib.crc32(repr(what).encode()))


def values(shape: Sequence[int], dtype: torch.dtype, *what: Any) -> Tensor:
    """Normal numbers, the same ones in every dtype but for rounding."""
    drawn = torch.randn((*shape, 2), generator=seeded(*what), dtype=torch.float64)
    return (torch.view_as_complex(drawn) if dtype.is_complex else drawn[..., 0].clone()).to(dtype)


def parameters(
    shapes: Sequence[Sequence[int]] = SHAPES, dtypes: Sequence[torch.dtype] = (torch.float64,), seed: int = 0
) -> list[torch.nn.Parameter]:
    """New parameters; their dtypes take turns."""
    pairs = [(shape, dtypes[n % len(dtypes)]) for n, shape in enumerate(shapes)]
    return [torch.nn.Parameter(values(s, d, "p", seed, n)) for n, (s, d) in enumerate(pairs)]


def copies(params: Sequence[Tensor]) -> list[torch.nn.Parameter]:
    """Parameters of the same values and layouts in memory of their own."""
    return [torch.nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in params]


def give(params: Sequence[Tensor], number: int, factor: float = 1.0) -> None:
    """The gradients of a step."""
    for n, p in enumerate(params):
        p.grad = (factor * values(p.shape, p.dtype, "g", number, n)).to(p.dtype)


def inputs(optimizer: Any, number: int) -> Options:
    """What a step is given beside gradients, as arguments: nothing for most, or where nothing reads it."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    given: Options = {}
    for key in getattr(type(optimizer), "_inputs", ()):
        if type(optimizer)._specs[key].level == "group":
            given[key] = values((), torch.float64, key, number)
        else:
            given[key] = [
                values(p.shape, p.dtype, key, number, n) if p.grad is not None else None
                for n, p in enumerate(params)
            ]
    if number % 2:  # now and then what is not read is given, too
        given = {key: tensors for key, tensors in given.items() if key in read(optimizer)}
    return {"inputs": given} if given else {}


def changed(given: Options, change: Callable[[Any], Any]) -> Options:
    """Inputs of a step with something else for every tensor of a parameter; one number stays what it is."""
    found = {
        key: x if isinstance(x, Tensor) else list(map(change, x))
        for key, x in given.get("inputs", {}).items()
    }
    return {"inputs": found} if found else {}


def read(optimizer: Any) -> set[str]:
    """The inputs that the next step reads."""
    found: set[str] = set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            t = int(optimizer.state.get(p, {}).get("step", 0)) + 1
            found.update(type(optimizer)._wanted(group, t, facts_about(p)) if p.grad is not None else ())
    return found


def step(optimizer: Any, number: int = 0, closure: Any = None) -> Any:
    """Takes the step of that number with the gradients that are there."""
    return taken(optimizer, closure, **inputs(optimizer, number))


def taken(optimizer: Any, closure: Any = None, **given: Any) -> Any:
    """Takes a step. Raises Refused where kernels are asked for that a class has for some steps only, not for this."""
    try:
        return optimizer.step(closure, **given)
    except RuntimeError as error:  # some branches of a class may have no kernels, or none for these tensors
        name, native = type(optimizer).__name__, getattr(type(optimizer), "_native", None)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        delayed = any(getattr(spec, "delay", None) for spec in getattr(optimizer, "_states", ()))
        odd = any(p.is_complex() or (delayed and not p.is_contiguous()) for p in params)
        if (
            native is not None
            and (native.lacking or odd)
            and str(error).startswith(f"{name} has no fused kernel for parameter")
        ):
            assert any(group["fused"] for group in optimizer.param_groups)
            raise Refused(str(error)) from None
        raise


def train(
    optimizer: Any, params: Sequence[Tensor], steps: int = 4, first: int = 0, factor: float = 1.0
) -> list[Tensor]:
    """Takes steps; what they made of the parameters."""
    for number in range(first, first + steps):
        give(params, number, factor)
        step(optimizer, number)
    return [p.detach().clone() for p in params]


def everything(optimizer: Any) -> Options:
    """All that an optimizer keeps, by place, with parameters, in copies."""
    found: Options = {}
    for g, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key != "params":
                found["group", g, key] = value.clone() if isinstance(value, Tensor) else value
        for n, p in enumerate(group["params"]):
            found["p", g, n] = p.detach().clone()
            for key, value in optimizer.state.get(p, {}).items():
                found["state", g, n, key] = value.clone() if isinstance(value, Tensor) else value
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same bit for bit, in dtype and shape, too; nan is itself."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return type(one) is type(other) and one == other
    if one.dtype is not other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5)) and torch.equal(one.isnan(), other.isnan())


def differences(one: Options, other: Options) -> list[Any]:
    """The places in which two optimizers do not keep the same."""
    return [
        place for place in (*one, *(place for place in other if place not in one))
        if place not in one or place not in other or not same(one[place], other[place])
    ]  # fmt: skip


CLOSE = {
    torch.float64: (1e-8, 1e-10),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (4e-3, 4e-3),
    torch.complex128: (1e-8, 1e-10),
    torch.complex64: (1e-4, 1e-5),
}


def assert_close(got: Tensor, want: Tensor, what: Any = "", least: torch.dtype | None = None) -> None:
    """Two tensors of one dtype are equal but for rounding, in their own or in a coarser one."""
    assert got.dtype is want.dtype, f"{what}: {got.dtype} for {want.dtype}"
    rtol, atol = max(CLOSE.get(want.dtype, (0.0, 0.0)), CLOSE.get(least, (0.0, 0.0)))
    torch.testing.assert_close(
        got.detach(), want.detach(), rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


def assert_alike(
    got: Options, want: Options, but: Sequence[str] = (), least: torch.dtype | None = None
) -> None:
    """Two optimizers keep the same but for rounding; flags that say which way is taken may differ."""
    flags = {"foreach", "capturable", "fused", "differentiable", *but}
    got, want = ({k: v for k, v in x.items() if k[-1] not in flags} for x in (got, want))
    assert got.keys() == want.keys()
    for place, value in want.items():
        if isinstance(value, Tensor) and value.is_floating_point() | value.is_complex():
            assert_close(got[place], value, place, least)
        else:
            assert same(got[place], value), f"{place}: {got[place]} for {value}"
