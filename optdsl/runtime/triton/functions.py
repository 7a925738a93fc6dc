"""Functions of one and two numbers: those of the device's library, or numpy's in Triton's interpreter."""

import os
from collections.abc import Callable
from typing import Any

from triton.language.extra import libdevice

#: Whether kernels run in Triton's interpreter, on tensors of the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _erf(x: Any) -> Any:
    import torch

    return torch.erf(torch.from_numpy(x)).numpy()


def _function(name: str, by_numpy: str | Callable[..., Any]) -> Any:
    if not INTERPRETED:
        return getattr(libdevice, name)

    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    compute = getattr(np, by_numpy) if isinstance(by_numpy, str) else by_numpy

    def run(*arguments: Any) -> Any:
        first = arguments[0]
        arrays = [argument.handle.data for argument in arguments]
        with np.errstate(all="ignore"):
            found = np.asarray(compute(*arrays), dtype=arrays[0].dtype)
        return tl.tensor(TensorHandle(found, first.dtype.scalar), first.type)

    return run


exp = _function("exp", "exp")
expm1 = _function("expm1", "expm1")
log = _function("log", "log")
log1p = _function("log1p", "log1p")
sin = _function("sin", "sin")
cos = _function("cos", "cos")
tan = _function("tan", "tan")
asin = _function("asin", "arcsin")
acos = _function("acos", "arccos")
atan = _function("atan", "arctan")
atan2 = _function("atan2", "arctan2")
tanh = _function("tanh", "tanh")
erf = _function("erf", _erf)
floor = _function("floor", "floor")
ceil = _function("ceil", "ceil")
rint = _function("rint", "rint")
fmod = _function("fmod", "fmod")
pow_ = _function("pow", "power")
