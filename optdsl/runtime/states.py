"""The states of a parameter: where they live, their shape and dtype, how they are made, kept and restored."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optdsl.runtime.storage import AT_RANDOM, CODES, FLOATS, LEAST, Coded, coded

#: The key under which a parameter is kept while something stands for it.
TRAINED = "train_value"


class Facts(NamedTuple):
    """What the host knows of a parameter; `rows` is its first dimension, `cols` the product of the rest."""

    ndim: int
    numel: int
    rows: int
    cols: int


@functools.lru_cache(maxsize=65536)
def facts_of(shape: torch.Size) -> Facts:
    """Facts of a real parameter of this shape; one row for no dimension, one column for at most one."""
    return Facts(len(shape), math.prod(shape), shape[0] if shape else 1, math.prod(shape[1:]))


def facts_about(p: Tensor) -> Facts:
    """Facts of a parameter; a complex one has two numbers for each of its entries."""
    facts = facts_of(p.shape)
    return facts._replace(numel=2 * facts.numel) if p.is_complex() else facts


@dataclass(frozen=True, slots=True)
class State:
    """One state: its key in `state_dict`, its level, and in which type it is kept between steps.

    `level` is "element", "rows", "cols", "tensor", "host", "group", a pair such as "rows,rows" for a matrix, or
    "axes" for a family of matrices (see `optdsl.runtime.axes`). `stored` is a format of `optdsl.runtime.storage`;
    without it an element-level state has the parameter's dtype (as in torch) and a coarser one the dtype that the
    step computes in. `positive` says that it is never negative. One that is `given` is an input: it comes with
    each step and is not kept. With a `delay` of n, a number or the option that says it, there are n of them behind
    each other in one tensor: that of step t, which reads what step t - n left, is at (t - 1) mod n.
    """

    key: str
    level: str
    stored: str | None = None
    given: bool = False
    positive: bool = False
    delay: int | str | None = None

    def __post_init__(self) -> None:
        """Brings "rows, cols" into the form in which this module compares levels."""
        level = self.level.replace(" ", "")
        object.__setattr__(self, "level", "element" if level == "rows,cols" else level)
        if self.stored is not None and self.stored not in (known := (*FLOATS, *CODES)):
            raise ValueError(f"state {self.key}: stored {self.stored!r} is not one of {', '.join(known)}")

    @property
    def in_codes(self) -> bool:
        """Whether it is kept in codes."""
        return self.stored in CODES

    @property
    def at_random(self) -> bool:
        """Whether it is rounded at random when it is kept."""
        return self.stored == AT_RANDOM


@functools.lru_cache(maxsize=4096)
def _stored_as(spec: State, name: str | None, delay: int | str | None = None) -> State:
    return replace(spec, stored=name, delay=delay)


def kept(spec: State, group: Mapping[str, Any], p: Tensor) -> State:
    """The state of a parameter with the format in which the options of its group have it kept, and for how long.

    Codes need a scale beside them: small tensors and delayed states are kept in float32 instead, and complex ones,
    which are not rounded at random either.
    """
    if spec.level != "element" or spec.given:
        return spec
    store = group.get("store")
    name = store.get(spec.key) if isinstance(store, Mapping) else store
    name = name or spec.stored
    small = p.numel() < LEAST or spec.delay is not None
    if (name in CODES and (small or p.is_complex())) or (name == AT_RANDOM and p.is_complex()):
        name = "f32"
    delay = int(group[spec.delay]) if isinstance(spec.delay, str) else spec.delay
    return spec if (name, delay) == (spec.stored, spec.delay) else _stored_as(spec, name, delay)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what a parameter of this dtype is updated: float64 for float64 and complex128, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def opened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as the rule sees it: complex numbers as real pairs, in `dtype`; `x` itself if it is so already."""
    if x.dtype is dtype:
        return x
    x = as_real(x)
    return x if x.dtype is dtype else x.to(dtype)


def fit(x: Any, like: Tensor) -> Any:
    """A number as torch takes it beside tensors of the dtype of `like`: beyond its range an infinity."""
    if isinstance(x, float | int) and torch.finfo(like.dtype).max < abs(x) != math.inf:
        return torch.tensor(float(x), dtype=torch.float64).to(like.dtype).item()
    return x


def as_real(x: Tensor) -> Tensor:
    """A view of complex numbers as real pairs; other tensors as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def sharded(x: Any) -> bool:
    """Whether `x` is a DTensor, told without importing torch.distributed."""
    return sharded_type(type(x))


def sharded_type(kind: type) -> bool:
    """Whether this is the type of DTensors."""
    return kind is not Tensor and hasattr(kind, "full_tensor")


def state_dtype(spec: State, p: Tensor) -> torch.dtype:
    """The dtype in which a state of parameter `p` is kept."""
    if spec.level == "host":
        return torch.float64
    if spec.stored is None:
        return p.dtype if spec.level == "element" else compute_dtype(p.dtype)
    if spec.stored in CODES:
        return torch.uint8
    dtype = FLOATS[spec.stored]
    if spec.level == "element" and p.is_complex():
        return torch.complex128 if dtype is torch.float64 else torch.complex64
    return dtype


def state_shape(level: str, shape: torch.Size) -> tuple[int, ...]:
    """Shape of a state at `level` for a parameter of shape `shape`."""
    if level == "element":
        return shape
    if level in ("tensor", "host", "group"):
        return ()
    if level == "axes":
        return (sum(d * d for d in shape),)
    if level == "rows":
        return shape if len(shape) <= 1 else (shape[0],) + (1,) * (len(shape) - 1)
    if level == "cols":
        return (1, *shape[1:]) if shape else ()
    facts = facts_of(shape)
    rows, cols = level.replace(" ", "").split(",")
    return getattr(facts, rows), getattr(facts, cols)


def shape_of(spec: State, shape: torch.Size) -> tuple[int, ...]:
    """Shape in which a state of a parameter of shape `shape` is kept; its delay is a number."""
    one = state_shape(spec.level, shape)
    return one if spec.delay is None else (int(spec.delay), *one)


def turn(spec: State, held: Tensor, before: int) -> Tensor:
    """Of a state that is kept the part that the step after `before` others has to do with. Raises RuntimeError."""
    if spec.delay is None:
        return held
    if held.shape[0] != spec.delay:
        raise RuntimeError(
            f"state {spec.key!r} was kept for {held.shape[0]} steps and is now to be for {spec.delay}; "
            "a delay cannot change once there is such a state"
        )
    return held[before % held.shape[0]]


def group_prototype(params: Sequence[Tensor]) -> Tensor:
    """A tensor with the device and the dtype of the group-level states of a group of these parameters."""
    wide = any(compute_dtype(p.dtype) is torch.float64 for p in params)
    return torch.empty((), dtype=torch.float64 if wide else torch.float32, device=params[0].device)


def create_state(spec: State, p: Tensor, value: float | Tensor, shape: torch.Size | None = None) -> Tensor:
    """A new state of `p` that holds `value`: a number, or a tensor that broadcasts to it or has its entries.

    Complex numbers come as real pairs. The state shares no memory with `value`; autograd
    follows it if it follows `value`.
    """
    dtype = state_dtype(spec, p)
    if spec.delay is not None:
        one = create_state(replace(spec, delay=None), p, value, shape).unsqueeze(0)
        return one.expand(int(spec.delay), *one.shape[1:]).clone(memory_format=torch.contiguous_format)
    if spec.level == "element":
        empty = torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)
    else:
        empty = torch.empty(state_shape(spec.level, shape or p.shape), dtype=dtype, device=p.device)
    real = as_real(empty)
    if not isinstance(value, Tensor):
        real.fill_(fit(value, real))
        return empty
    if value.numel() == real.numel():
        value = value.reshape(real.shape)  # a matrix for a tensor of more dimensions
    if torch.is_grad_enabled() and value.requires_grad:
        return replaced(empty, value)
    real.copy_(value)
    return empty


def create_coded(spec: State, p: Tensor, value: float | Tensor) -> Coded:
    """The same for a state in codes."""
    made = coded(str(spec.stored), spec.positive, p)
    made.put(create_state(_stored_as(spec, "f64" if p.dtype is torch.float64 else "f32"), p, value))
    return made


def replaced(old: Tensor, value: float | Tensor) -> Tensor:
    """What takes the place of `old`: `value` in its shape and dtype, in new memory; autograd follows."""
    real = as_real(old)
    if not isinstance(value, Tensor):
        value = torch.full_like(real, fit(value, real))
    new = value.to(real.dtype).expand(real.shape).clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(new) if old.is_complex() else new


def restored(key: str, spec: State | None, value: Any, p: Tensor, capturable: bool) -> Any:
    """`value` of a checkpoint as state `key` of `p`, in memory of its own.

    The step and host states are numbers that stay on the host unless `capturable`; known states get the dtype
    that this class keeps them in, so what it saved itself returns bit for bit; unknown ones keep theirs.
    """
    if key == "step" or (spec is not None and spec.level == "host"):
        dtype = torch.float32 if key == "step" else torch.float64
        device = p.device if capturable else torch.device("cpu")
        number = torch.as_tensor(value, dtype=dtype, device=device)
        return number.detach().reshape(()).clone()
    if not isinstance(value, Tensor):
        return value
    dtype = value.dtype if spec is None else state_dtype(spec, p)
    if value.is_complex() and not dtype.is_complex:
        raise ValueError(f"state {key!r} of the loaded state dict is {value.dtype}, but here it is {dtype}")
    new = value.detach().to(device=p.device, dtype=dtype)
    if spec is not None:
        shape = shape_of(spec, p.shape)
        if new.shape != shape:
            if [n for n in new.shape if n != 1] != [n for n in shape if n != 1]:
                raise ValueError(
                    f"state {key!r} of the loaded state dict has shape {tuple(new.shape)}, "
                    f"but this parameter needs {tuple(shape)}"
                )
            new = new.reshape(shape)
    return new.clone()
