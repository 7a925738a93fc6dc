"""Reductions and matrix operations on one tensor, for generated code.

A tensor of shape (R, d1, d2, ...) is seen as a matrix of R rows. A rows-level value keeps the first dimension
and has all others reduced to 1; a cols-level value has the first reduced to 1. A tensor of at most one
dimension has one entry per row, so its rows-level values have its own shape; a 0-dim tensor is a single row.
An empty reduction gives 0 for a sum, nan for a mean, -inf for a max and +inf for a min; nothing raises.
Every function returns a new tensor (or a view, for `as_matrix` and `like`) and leaves its arguments alone.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.states import fit, state_shape


def _reduce_rows(x: Tensor, reduce: Callable[..., Tensor], empty: float | None) -> Tensor:
    """Reduces all dimensions but the first; `empty` is the result for no entries if `reduce` has none."""
    if x.dim() <= 1:
        return x.clone()
    if empty is not None and x.numel() == 0:
        return x.new_full((x.shape[0],) + (1,) * (x.dim() - 1), empty)
    return reduce(x, dim=tuple(range(1, x.dim())), keepdim=True)


def _reduce_cols(x: Tensor, reduce: Callable[..., Tensor], empty: float | None) -> Tensor:
    """Reduces the first dimension; `empty` as in `_reduce_rows`."""
    if x.dim() == 0:
        return x.clone()
    if empty is not None and x.numel() == 0:
        return x.new_full((1, *x.shape[1:]), empty)
    return reduce(x, dim=(0,), keepdim=True)


def row_sum(x: Tensor) -> Tensor:
    """Sum of every row."""
    return _reduce_rows(x, torch.sum, None)


def row_mean(x: Tensor) -> Tensor:
    """Mean of every row."""
    return _reduce_rows(x, torch.mean, None)


def row_max(x: Tensor) -> Tensor:
    """Largest entry of every row; nan wins."""
    return _reduce_rows(x, torch.amax, -math.inf)


def row_min(x: Tensor) -> Tensor:
    """Smallest entry of every row; nan wins."""
    return _reduce_rows(x, torch.amin, math.inf)


def col_sum(x: Tensor) -> Tensor:
    """Sum over the rows."""
    return _reduce_cols(x, torch.sum, None)


def col_mean(x: Tensor) -> Tensor:
    """Mean over the rows."""
    return _reduce_cols(x, torch.mean, None)


def col_max(x: Tensor) -> Tensor:
    """Largest entry over the rows; nan wins."""
    return _reduce_cols(x, torch.amax, -math.inf)


def col_min(x: Tensor) -> Tensor:
    """Smallest entry over the rows; nan wins."""
    return _reduce_cols(x, torch.amin, math.inf)


def tensor_sum(x: Tensor) -> Tensor:
    """Sum of all entries, 0-dim."""
    return x.sum()


def tensor_mean(x: Tensor) -> Tensor:
    """Mean of all entries, 0-dim."""
    return x.mean()


def tensor_max(x: Tensor) -> Tensor:
    """Largest entry, 0-dim; nan wins."""
    return x.amax() if x.numel() else x.new_full((), -math.inf)


def tensor_min(x: Tensor) -> Tensor:
    """Smallest entry, 0-dim; nan wins."""
    return x.amin() if x.numel() else x.new_full((), math.inf)


def _kth_largest(x: Tensor, k: Any) -> Tensor:
    """The k-th largest along the last dimension, which stays with one entry; nan is larger than all numbers.

    `k`, a number or a 0-dim tensor, is rounded down. inf where that is less than 1 or nan, -inf beyond the number of
    entries.
    """
    count = x.shape[-1]
    if isinstance(k, Tensor):
        if count == 0:
            x, count = x.new_full((*x.shape[:-1], 1), -math.inf), 1
        within = (k >= 1) & (k < count + 1)
        place = torch.where(within, count - k.floor(), 0).to(device=x.device, dtype=torch.long)
        found = x.sort(dim=-1).values.index_select(-1, place.reshape(1))
        return torch.where(within, found, torch.where(k >= 1, -math.inf, math.inf).to(x.dtype))
    if not 1 <= k < count + 1:
        return x.new_full((*x.shape[:-1], 1), -math.inf if k >= 1 else math.inf)
    return x.kthvalue(count - math.floor(k) + 1, dim=-1, keepdim=True).values


def row_kth_largest(x: Tensor, k: Any) -> Tensor:
    """The k-th largest entry of every row; see `tensor_kth_largest`."""
    rows = x.reshape(-1, 1) if x.dim() <= 1 else x.flatten(1)
    return _kth_largest(rows, k).reshape(x.shape if x.dim() <= 1 else (x.shape[0],) + (1,) * (x.dim() - 1))


def col_kth_largest(x: Tensor, k: Any) -> Tensor:
    """The k-th largest entry over the rows; see `tensor_kth_largest`."""
    if x.dim() == 0:
        return _kth_largest(x.reshape(1), k).reshape(())
    return _kth_largest(x.movedim(0, -1), k).movedim(-1, 0)


def tensor_kth_largest(x: Tensor, k: Any) -> Tensor:
    """The k-th largest of all entries, 0-dim; nan is larger than all numbers.

    `k`, a number or a 0-dim tensor, is rounded down. inf where that is less than 1 or nan, -inf beyond the number of
    entries.
    """
    return _kth_largest(x.reshape(-1), k).reshape(())


def over_filters(reduce_rows: Callable[..., Tensor], x: Tensor, *more: Any) -> Tensor:
    """A reduction over the dimensions behind the first two, the kernels of a filter bank: for every entry that of its
    own. Without such dimensions, an entry is reduced alone. `reduce_rows` does it for each row of a matrix.
    """
    if x.numel() == 0:
        return x.clone()
    filters = x.reshape(-1, math.prod(x.shape[2:]))
    return reduce_rows(filters, *more).repeat(1, filters.shape[1]).reshape(x.shape)


def broadcast(x: Any, level: str, p: Tensor) -> Tensor:
    """`x`, a number or a coarser value, with an entry for each one that the parameter `p` has at `level`."""
    if "1" in level:  # the transpose of rows or of columns, which only matrices have
        sizes = {"1": 1, "rows": p.shape[0], "cols": p.shape[-1]}
        shape: tuple[int, ...] = tuple(sizes[side] for side in level.split(", "))
    else:
        shape = state_shape(level, p.shape)
    if isinstance(x, bool):
        return torch.full(shape, x, device=p.device)
    if not isinstance(x, Tensor):
        return torch.full(shape, fit(x, p), dtype=p.dtype, device=p.device)
    return (x if x.dtype is torch.bool else x.to(p.dtype)).expand(shape)


def as_matrix(x: Tensor) -> Tensor:
    """`x` as a matrix of R rows and numel / R columns: (R, 1) for one dimension, (1, 1) for none."""
    if x.dim() == 2:
        return x
    if x.dim() == 0:
        return x.reshape(1, 1)
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def like(matrix: Tensor, p: Tensor) -> Tensor:
    """The inverse of `as_matrix`: the entries of `matrix` (broadcast if need be) in the shape of `p`."""
    return matrix.expand(as_matrix(p).shape).reshape(p.shape)


def newton_schulz(
    x: Tensor,
    steps: int,
    coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    eps: float = 1e-7,
) -> Tensor:
    """An approximately orthogonal matrix with the singular vectors of the matrix `x`, in the dtype of `x`.

    `steps` quintic iterations X <- a X + (b A + c A^2) X with A = X X', from x / max(norm(x), eps); on the
    transpose when `x` has more rows than columns.
    """
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x).clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
