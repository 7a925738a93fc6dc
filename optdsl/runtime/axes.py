"""Families, one square matrix for each axis of a tensor, for generated code.

The family of a tensor of shape (d1, d2, ...) is a vector of d1 * d1 + d2 * d2 + ... numbers: one matrix behind the
other, each row by row. `like` is the parameter; `x` has its entries, in its shape or as a matrix.
Every function returns a new tensor and leaves its arguments alone; nothing raises for what is not finite.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _matrices(family: Tensor, like: Tensor) -> list[Tensor]:
    """The matrices of a family."""
    parts = family.split([d * d for d in like.shape])
    return [part.reshape(d, d) for part, d in zip(parts, like.shape, strict=True)]


def _family(matrices: Iterable[Tensor], like: Tensor) -> Tensor:
    """The family of these matrices."""
    return torch.cat([like.new_empty(0), *(matrix.reshape(-1) for matrix in matrices)])


def identity(like: Tensor) -> Tensor:
    """Identity matrices."""
    return _family((torch.eye(d, dtype=like.dtype, device=like.device) for d in like.shape), like)


def gram(x: Tensor, like: Tensor) -> Tensor:
    """For each axis, the matrix of the products of the slices of `x` across it."""
    x = x.reshape(like.shape)
    others = ([j for j in range(x.dim()) if j != k] for k in range(x.dim()))
    return _family((torch.tensordot(x, x, (across, across)) for across in others), like)


def along_axes(family: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """`x` multiplied along each axis by the matrix for that axis."""
    result = x.reshape(like.shape) if like.dim() else x.clone()
    for matrix in _matrices(family, like):  # the first axis goes, and comes back as the last
        result = torch.tensordot(result, matrix, ([0], [1]))
    return result.reshape(x.shape)


def matrix_power(family: Tensor, exponent: Any, least: Any, like: Tensor) -> Tensor:
    """Powers of symmetric matrices, all eigenvalues of one raised alike until the smallest is at least `least`.

    Looks at the lower triangles. What is not finite makes a matrix of nan.
    """
    return _family((_power(matrix, exponent, least) for matrix in _matrices(family, like)), like)


def _power(matrix: Tensor, exponent: Any, least: Any) -> Tensor:
    if matrix.numel() == 0:
        return matrix
    # decompositions raise for nan, and on some devices never return
    finite = torch.where(matrix.isfinite().all(), 0.0, torch.nan).to(matrix.dtype)
    power: Tensor = _Power.apply(torch.where(matrix.isfinite(), matrix, 0.0), exponent, least)  # type: ignore[no-untyped-call]
    return power + finite


class _Power(torch.autograd.Function):
    """A power of one symmetric matrix, differentiable where eigenvalues are equal, too: eigenvectors are not."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, exponent: Any, least: Any) -> Tensor:
        """Q (L + s I)^exponent Q' for Q L Q', where s is what the smallest of L lacks of `least`, or 0."""
        # some libraries do not converge where the sum of squares is infinite
        scale = matrix.abs().amax().clamp_min(torch.finfo(matrix.dtype).tiny)
        values, vectors = torch.linalg.eigh(matrix / scale)
        values = values * scale
        lack = (least - values[0]).clamp_min(0)
        values = (values + lack).clamp_min(least)  # a sum may be rounded to 0
        ctx.save_for_backward(values, vectors, lack)
        ctx.exponent = exponent
        power: Tensor = (vectors * values**exponent) @ vectors.mT
        return power

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The formula of Daleckii and Krein: in the basis of Q, entries times divided differences of the power."""
        values, vectors, lack = ctx.saved_tensors
        powers, slopes = values**ctx.exponent, ctx.exponent * values ** (ctx.exponent - 1)
        gaps = values[:, None] - values
        near = gaps.abs() <= torch.finfo(grad.dtype).eps ** 0.5 * (values[:, None] + values).abs()
        mean_slope = (slopes[:, None] + slopes) / 2
        differences = torch.where(near, mean_slope, (powers[:, None] - powers) / torch.where(near, 1.0, gaps))
        inner = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
        result = inner * differences
        # where all are raised by what the smallest lacks, it raises none by growing
        result[0, 0] -= (inner.diagonal() * slopes).sum() * (lack > 0)
        return vectors @ result @ vectors.mT, None, None
