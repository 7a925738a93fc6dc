"""One parameter in a table of native kernels: its tensors, its step count, and what stands in for odd tensors."""

import ctypes
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.native.spec import Kernel
from optdsl.runtime.states import State, compute_dtype, facts_about, shape_of, state_shape
from optdsl.runtime.storage import BLOCK, SCALES, Code, Half

CPU = torch.device("cpu")
#: How a dtype is called in kernel.h, and its code and bits in DLPack.
TYPES = {
    torch.float32: ("f32", 2 << 8 | 32),
    torch.float64: ("f64", 2 << 8 | 64),
    torch.float16: ("f16", 2 << 8 | 16),
    torch.bfloat16: ("bf16", 4 << 8 | 16),
}
#: Codes, of which one byte may hold two, and bits beside a parameter: their names, and these in DLPack.
_OTHERS = {torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16"}
OTHERS = {"u8": 1 << 8 | 8, "i8": 8, "i16": 16}
_COMPLEX = (torch.complex64, torch.complex128)
#: Kinds of devices, as torch calls them, whose kernels Triton compiles. ROCm goes by the name of cuda.
GPUS = ("cuda",)

ParamState = dict[str, Any]


def eligible(p: Tensor, grad: Tensor) -> bool:
    """Whether a parameter and its gradient are such as native kernels take, on a device that may have some."""
    if p.device.type != "cpu" and p.device.type not in GPUS:
        return False
    if (p.dtype not in TYPES and p.dtype not in _COMPLEX) or p.layout is not torch.strided:
        return False
    plain = Tensor.__torch_dispatch__
    if any(getattr(type(x), "__torch_dispatch__", plain) is not plain for x in (p, grad)):
        return False
    return (
        grad.device == p.device
        and grad.layout is torch.strided
        and grad.dtype in (_COMPLEX if p.is_complex() else TYPES)
    )


def usable(state: ParamState, specs: Sequence[State], p: Tensor, counts_here: bool) -> bool:
    """Whether the step count and the states of `p`, as far as there are any, are what they should be."""
    step = state.get("step")
    if not isinstance(step, Tensor) or step.numel() != 1 or step.is_complex():
        return False
    if not counts_here:
        count = float(step)
        if not count.is_integer() or (step.dtype is not torch.float32 and abs(count) >= 1 << 24):
            return False
    return all(_fitting(spec, state, p) for spec in specs if state.get(spec.key) is not None)


def _fitting(spec: State, state: ParamState, p: Tensor) -> bool:
    """Whether what is kept as a state of `p` is one: of its size, and for one per element of its shape."""
    held = state[spec.key]
    if not isinstance(held, Tensor) or held.layout is not torch.strided:
        return False
    if spec.in_codes:
        scales = state.get(spec.key + SCALES)
        return (
            held.dtype is torch.uint8
            and isinstance(scales, Tensor)
            and scales.dtype is torch.float32
            and scales.numel() == -(-p.numel() // BLOCK)
            and held.is_contiguous()
            and scales.is_contiguous()
            and held.device == scales.device == p.device
        )
    if spec.at_random and held.dtype is not torch.bfloat16:
        return False
    shape = shape_of(spec, p.shape)
    if spec.level == "element":
        whole = spec.delay is None or held.is_contiguous()
        return whole and held.shape == shape and held.is_complex() == p.is_complex()
    return held.numel() == math.prod(shape) and not held.is_complex()


#: What tells that a tensor is still such as its stand-in was made for.
Form = tuple[Any, ...]


def form_of(x: Any) -> Form | None:
    """The form of a tensor, None for what is none."""
    if not isinstance(x, Tensor) or x.layout is not torch.strided:
        return None
    return type(x), x.dtype, x.shape, x.stride(), x.device, x.is_neg(), x.is_conj(), x.data_ptr() % 16


def dense(x: Tensor) -> bool:
    """Whether the elements of `x` fill its memory without gap or overlap, in some order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


class Row:
    """One parameter in a table: its tensors, those that stand in for one that a kernel cannot take."""

    __slots__ = (
        "absent",
        "codes",
        "counts_here",
        "facts",
        "given",
        "hosts",
        "index",
        "leaf",
        "numel",
        "p",
        "real",
        "rings",
        "staged",
        "state",
        "t",
        "tensors",
        "types",
        "works",
    )

    def __init__(self, index: int, p: Tensor, state: ParamState, counts_here: bool) -> None:
        self.index = index
        self.p = p
        self.state = state
        self.facts = facts_about(p)
        self.real = compute_dtype(p.dtype)
        self.numel = p.numel() * (2 if p.is_complex() else 1)
        #: Whether the device of the parameter counts its steps; the host has no number for them then.
        self.counts_here = counts_here
        #: Inputs by their keys: the tensors of the last step.
        self.given: dict[str, Tensor] = {}
        #: Inputs that the last step was not given, as it did not read them; the parameter has their place.
        self.absent: list[str] = []
        self.t = 1 if counts_here else int(state["step"].item()) + 1
        self.hosts: tuple[float, ...] = ()
        self.leaf = 0
        #: What the table refers to: the parameter, None for the gradient, states, the step count, host states.
        self.tensors: list[Tensor | None] = []
        self.types: list[str] = []
        #: For each array of the kernel the table of the codes in which it is kept, or its form, or None.
        self.codes: list[Code | Half | None] = []
        #: Delayed states by their keys: all that is kept of them.
        self.rings: dict[str, Tensor] = {}
        #: What is there during a step only, by the keys of the table.
        self.works: dict[str, Tensor] = {}
        #: (stand-in, key or "p" or "g", form of the tensor itself) of each tensor that is copied in and out.
        self.staged: list[tuple[Tensor, str, Form | None]] = []

    def layout(self) -> tuple[Sequence[int], Sequence[int]]:
        """Sizes and strides of the tensors that have a number for every element."""
        if self.tensors[0] is self.p:
            return self.p.shape, self.p.stride()
        sizes = (*self.p.shape, 2) if self.p.is_complex() else tuple(self.p.shape)
        return sizes, [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]

    def work(self, key: str, level: str) -> Tensor:
        """Memory for what is there during a step only."""
        shape = state_shape(level, self.p.shape)
        if level == "element" and self.p.is_complex():
            shape = (*shape, 2)
        made = self.works[key] = torch.empty(shape, dtype=self.real, device=self.p.device)
        return made

    def aligned(self) -> bool:
        """Whether the numbers per element, but for the gradient's, lie where 16 bytes are read at once."""
        strides = [ring.stride(0) * ring.element_size() for ring in self.rings.values()]
        return all(x is None or x.data_ptr() % 16 == 0 for x in self.tensors) and not any(
            s % 16 for s in strides
        )

    def original(self, key: str) -> Any:
        """The tensor that has a stand-in."""
        if key in self.given:
            return self.given[key]
        return self.p if key == "p" else self.p.grad if key == "g" else self.state.get(key)


class Cohort:
    """Parameters of a batch that share their step count, host states and the facts that count."""

    __slots__ = ("buffer", "facts", "hosts", "index", "leaf", "names", "new", "pack", "t")

    def __init__(self, row: Row, names: Sequence[str], size: int, address: int) -> None:
        """`address` is that of `size` doubles for the numbers of a step."""
        self.t, self.hosts, self.facts, self.leaf, self.index = (
            row.t,
            row.hosts,
            row.facts,
            row.leaf,
            row.index,
        )
        self.names = names
        self.new: tuple[float, ...] = ()
        self.pack = struct.Struct(f"{size}d").pack_into
        self.buffer = (ctypes.c_double * size).from_address(address)

    def fill(self, sign: float, slots: tuple[float, ...], new: tuple[float, ...]) -> None:
        """Puts the numbers of this step where the kernel finds them."""
        self.new = new
        numbers = (sign, *slots, *new, *self.hosts, self.t - 1)
        try:
            self.pack(self.buffer, 0, *numbers)
        except (OverflowError, struct.error):  # an int beyond all floats, or a number of another type
            self.pack(self.buffer, 0, *map(_float, numbers))

    def advance(self) -> None:
        """Notes that the step is over."""
        self.t += 1
        self.hosts = tuple(map(_float, self.new))


def _float(x: Any) -> float:
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def in_memory(x: Tensor) -> bool:
    """Whether the numbers of `x` are in memory as they are, at addresses that suit their type."""
    return not (x.is_neg() or x._is_zerotensor() or x.data_ptr() % x.element_size())


def laid_out(x: Tensor, strides: tuple[int, ...] | None) -> bool:
    """Whether the elements of `x` lie in these strides, or without gaps in the order of their indices."""
    if strides is None:
        return x.is_contiguous()
    return (
        x.stride() == strides
        or all(a == b or size == 1 for a, b, size in zip(x.stride(), strides, x.shape, strict=True))
        or (x.numel() == 0)
    )


def placed(kernel: Kernel) -> list[tuple[str, str]]:
    """The states that are tensors of their own, as (key, place)."""
    return [(key, place) for key, place in kernel.arrays if place]


def type_of(tensor: Tensor) -> str:
    """How the dtype of a tensor is called in kernel.h."""
    found = _OTHERS.get(tensor.dtype)
    return found or TYPES[tensor.dtype][0]
