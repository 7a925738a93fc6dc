"""Who is measured: the paths of a compiled method, and those of torch.optim's class of the same name."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optdsl import driver
from optdsl.analysis.account import Account
from optdsl.analysis.bench.cases import Case
from optdsl.analysis.phases import Planner
from optdsl.analysis.setting import Setting
from optdsl.check import check_path
from optdsl.core.record import record
from optdsl.ir.expr import Var
from optdsl.ir.program import Program
from optdsl.lang.diagnostics import Diagnostic, nearest
from optdsl.passes.library import Unsupported
from optdsl.passes.simplify import drop_dead
from optdsl.passes.specialise import TooManyBranches
from optdsl.runtime import Optimizer
from optdsl.runtime.states import facts_of, state_dtype

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float64}
#: The flags of every path of a class.
_PATHS: dict[str, dict[str, Any]] = {
    "fused": {"foreach": False, "fused": True},
    "foreach": {"foreach": True, "fused": False},
    "for-loop": {"foreach": False, "fused": False},
}
#: The peers in the order of their turns: whose class, and which flags.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{whose} {'native' if (whose, path) == ('own', 'fused') else path}": (whose, flags)
    for whose in ("own", "torch")
    for path, flags in _PATHS.items()
}
NATIVE = "own native"


class Missing(Exception):
    """A peer that cannot be had; the text says why."""


@record
class Method:
    """A compiled method, with the options it is measured with. `diagnostics` are the warnings on its spec."""

    name: str
    path: Path
    cls: type[Optimizer]
    program: Program
    options: Mapping[str, Any]
    changed: frozenset[str]
    diagnostics: tuple[Diagnostic, ...] = ()


def methods(names: Iterable[str], options: Mapping[str, Any]) -> list[Method]:
    """The methods of these names or paths. `options` replace their defaults, where a method has them.

    Raises SpecError for a spec with mistakes, FileNotFoundError for none, ValueError for an option that no
    method has or takes, and for two methods of one name.
    """
    found = [_method(name, options) for name in dict.fromkeys(names)]
    seen: dict[str, Path] = {}
    for method in found:
        if seen.setdefault(method.name, method.path) != method.path:
            raise ValueError(f"{seen[method.name]} and {method.path} would have the same name in the results")
    known = {name for method in found for name in method.options}
    for name in options:
        if name not in known:
            help = nearest(name, known) or f"there are {', '.join(sorted(known))}"
            raise ValueError(f"there is no option `{name}`; {help}")
    return list({method.name: method for method in found}.values())


def _method(name: str, options: Mapping[str, Any]) -> Method:
    path = driver.locate(name)
    checked = check_path(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", driver.SpecWarning)  # they are in `diagnostics`
        cls = driver.load(path)
    own = {hyper.name for hyper in cls._hypers}
    parameters = inspect.signature(cls).parameters
    settings = {name: parameters[name].default for name in parameters if name in own}
    changed = {name: value for name, value in options.items() if name in own}
    settings |= changed
    try:
        cls([torch.zeros(1)], **settings)
    except TypeError as error:
        raise ValueError(str(error)) from None
    program = driver.simplify(checked.require())
    return Method(path.stem, path, cls, program, settings, frozenset(changed), checked.diagnostics)


def parameters(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """The tensors of a case with their gradients, the same numbers every time."""
    generator = torch.Generator().manual_seed(0)

    def filled(shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=dtype).uniform_(-1.0, 1.0, generator=generator)

    params: list[Tensor] = [torch.nn.Parameter(filled(shape)) for shape in case.shapes]
    for p, shape in zip(params, case.shapes, strict=True):
        p.grad = filled(shape)
    return params


def optimizer(peer: str, method: Method, params: list[Tensor]) -> torch.optim.Optimizer:
    """A new optimizer of these parameters. Raises Missing where there is no such path."""
    whose, flags = PEERS[peer]
    if whose == "own":
        return method.cls(params, **method.options, **flags)
    name = method.cls.__name__
    theirs = getattr(torch.optim, name, None)
    if not (isinstance(theirs, type) and issubclass(theirs, torch.optim.Optimizer)):
        raise Missing(f"torch.optim has no {name}")
    taken = inspect.signature(theirs).parameters
    for flag, on in flags.items():
        if on and flag not in taken:
            raise Missing(f"torch.optim.{name} has no `{flag}`")
    for option in method.changed:
        if option not in taken:
            raise Missing(f"torch.optim.{name} has no option `{option}`")
    options = {option: value for option, value in {**method.options, **flags}.items() if option in taken}
    return theirs(params, **options)


def turn_of(made: torch.optim.Optimizer, params: list[Tensor], new_gradients: bool) -> Callable[[int], float]:
    """Makes steps of an optimizer and times these alone, not the new gradients."""

    def turn(steps: int) -> float:
        total = 0.0
        for _ in range(steps):
            if new_gradients:
                renew(params)
            start = time.perf_counter()
            made.step()
            total += time.perf_counter() - start
        return total / steps

    return turn


def renew(params: Iterable[Tensor]) -> None:
    """Puts a new tensor, at another address, in the place of every gradient."""
    params = list(params)
    fresh = [p.grad.clone() for p in params if p.grad is not None]  # all, before one is freed
    for p, gradient in zip(params, fresh, strict=True):
        p.grad = gradient


@record
class Traffic:
    """Bytes that a step of a list of tensors moves by its plan, and bytes of the states of their size."""

    moved: int
    states: int


def traffic(method: Method, params: Iterable[Tensor]) -> Traffic:
    """What the native kernels move in a usual step. Without a plan: each array that is read or written, once."""
    try:
        planner = Planner(method.program)
    except (Unsupported, TooManyBranches):
        return _least(method, params)
    known: dict[tuple[tuple[int, ...], str], Account] = {}
    moved = kept = 0.0
    for p in params:
        dtype = next(name for name, each in DTYPES.items() if each is p.dtype)
        mark = (tuple(p.shape), dtype)
        try:
            if mark not in known:
                setting = Setting(method.options, *mark)
                known[mark] = planner.phases(setting).usual.account
        except Unsupported:
            return _least(method, params)
        moved += known[mark].moved * p.numel()
        kept += known[mark].state * p.numel()
    return Traffic(round(moved), round(kept))


def _least(method: Method, params: Iterable[Tensor]) -> Traffic:
    """Each array that the step reads once, and each that it leaves behind once; states not in use count nothing."""
    live = drop_dead(method.program)
    made = {assign.name for assign in live.body}
    reads = {node.name for node in live.nodes() if isinstance(node, Var) and node.type.is_element} - made
    sized = {state.name: state.key for state in live.states if state.type.is_element}
    writes = {name for name in live.results if name == "p" or name in sized}
    moved = kept = 0.0
    for p in params:
        used = set(method.cls._live(dict(method.options), facts_of(p.shape)))
        widths = {"p": p.dtype.itemsize, "g": p.dtype.itemsize}
        for name, key in sized.items():
            if key in used:
                widths[name] = state_dtype(method.cls._specs[key], p).itemsize
        each = sum(widths.get(name, 0) for names in (reads, writes) for name in names)
        moved += each * p.numel()
        kept += sum(width for name, width in widths.items() if name in sized) * p.numel()
    return Traffic(round(moved), round(kept))


__all__ = [
    *("DTYPES", "NATIVE", "PEERS", "Method", "Missing", "Traffic"),
    *("methods", "optimizer", "parameters", "renew", "traffic", "turn_of"),
]
