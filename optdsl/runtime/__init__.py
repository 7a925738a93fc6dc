"""What generated optimizers import: the base class, scalar arithmetic, tensor helpers, random numbers."""

from optdsl.runtime import axes, host
from optdsl.runtime.backward import step_in_backward
from optdsl.runtime.checks import Hyper
from optdsl.runtime.joint import Joint
from optdsl.runtime.native.spec import Kernel, Native
from optdsl.runtime.ops import (
    as_matrix,
    broadcast,
    col_kth_largest,
    col_max,
    col_mean,
    col_min,
    col_sum,
    like,
    newton_schulz,
    over_filters,
    row_kth_largest,
    row_max,
    row_mean,
    row_min,
    row_sum,
    tensor_kth_largest,
    tensor_max,
    tensor_mean,
    tensor_min,
    tensor_sum,
)
from optdsl.runtime.optimizer import Optimizer
from optdsl.runtime.random import Random
from optdsl.runtime.states import Facts, State, fit

__all__ = [
    "Facts",
    "Hyper",
    "Joint",
    "Kernel",
    "Native",
    "Optimizer",
    "Random",
    "State",
    "as_matrix",
    "axes",
    "broadcast",
    "col_kth_largest",
    "col_max",
    "col_mean",
    "col_min",
    "col_sum",
    "fit",
    "host",
    "like",
    "newton_schulz",
    "over_filters",
    "row_kth_largest",
    "row_max",
    "row_mean",
    "row_min",
    "row_sum",
    "step_in_backward",
    "tensor_kth_largest",
    "tensor_max",
    "tensor_mean",
    "tensor_min",
    "tensor_sum",
]
