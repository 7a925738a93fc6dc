"""Functions of one and two numbers: those of the device's library, or torch's in Triton's interpreter."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton.language as tl
from triton.language.extra import libdevice

#: Whether kernels run in Triton's interpreter, on tensors of the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def quiet() -> Iterator[None]:
    """In the interpreter numpy computes, which warns of infinities and nan; a device does not."""
    if not INTERPRETED:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _function(name: str, of_torch: str) -> Any:
    if not INTERPRETED:
        return getattr(libdevice, name)

    from triton.runtime.interpreter import TensorHandle

    compute = getattr(torch, of_torch)

    def run(*arguments: Any) -> Any:
        first = arguments[0]
        # a copy, as torch takes no array that cannot be written to
        found = compute(*(torch.from_numpy(argument.handle.data.copy()) for argument in arguments))
        return tl.tensor(TensorHandle(found.numpy(), first.dtype.scalar), first.type)

    return run


exp = _function("exp", "exp")
expm1 = _function("expm1", "expm1")
log = _function("log", "log")
log1p = _function("log1p", "log1p")
sin = _function("sin", "sin")
cos = _function("cos", "cos")
tan = _function("tan", "tan")
asin = _function("asin", "asin")
acos = _function("acos", "acos")
atan = _function("atan", "atan")
atan2 = _function("atan2", "atan2")
tanh = _function("tanh", "tanh")
erf = _function("erf", "erf")
floor = _function("floor", "floor")
ceil = _function("ceil", "ceil")
rint = _function("nearbyint", "round")  # not every version has rint for every device
fmod = _function("fmod", "fmod")
pow_ = _function("pow", "pow")
