"""Reductions and matrix helpers, with the shapes of the contract and on empty tensors."""

import math

import numpy as np
import pytest
import torch

from optdsl import runtime
from optdsl.runtime import as_matrix, like, newton_schulz

SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 4), (4, 1), (1, 4), (2, 1, 3, 2)]
KINDS = ("sum", "mean", "max", "min")


def by_hand(kind, matrix, dim):
    """A reduction of a matrix along one dimension, kept."""
    if kind in ("sum", "mean"):
        return getattr(matrix, kind)(dim, keepdim=True)
    return getattr(matrix, kind)(dim, keepdim=True).values


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_reductions(kind, shape):
    x = torch.randn(shape, dtype=torch.float64)
    matrix = as_matrix(x)
    rows, cols = getattr(runtime, f"row_{kind}")(x), getattr(runtime, f"col_{kind}")(x)
    whole = getattr(runtime, f"tensor_{kind}")(x)
    if len(shape) <= 1:
        assert rows.shape == x.shape
    else:
        assert rows.shape == (shape[0],) + (1,) * (len(shape) - 1)
    assert cols.shape == ((1, *shape[1:]) if shape else ())
    assert whole.shape == ()
    assert (rows + x).shape == (cols + x).shape == x.shape
    torch.testing.assert_close(rows.reshape(-1), by_hand(kind, matrix, 1).reshape(-1))
    torch.testing.assert_close(cols.reshape(-1), by_hand(kind, matrix, 0).reshape(-1))
    torch.testing.assert_close(whole, getattr(x, kind)())


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 2, 2, 3), (0, 2, 3), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_over_filters(kind, shape):
    """Over the dimensions behind the first two, and every entry gets the result; in memory of its own."""
    x = torch.randn(shape, dtype=torch.float64)
    found = runtime.over_filters(getattr(runtime, f"row_{kind}"), x)
    wanted = x.clone()
    for index in np.ndindex(*shape[:2]) if len(shape) > 2 and x.numel() else ():
        wanted[index] = getattr(x[index], kind)()
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    found.add_(1.0)
    torch.testing.assert_close(found, wanted + 1.0, rtol=1e-14, atol=1e-14)


def test_the_kth_largest_over_filters():
    x = torch.arange(12.0).reshape(3, 1, 4)
    found = runtime.over_filters(runtime.row_kth_largest, x, torch.tensor(2.0))
    torch.testing.assert_close(found, torch.tensor([2.0, 6.0, 10.0]).reshape(3, 1, 1).expand(3, 1, 4))


def test_results_are_new_tensors():
    x = torch.randn(5)
    for kind in KINDS:
        assert getattr(runtime, f"row_{kind}")(x).data_ptr() != x.data_ptr()
        assert getattr(runtime, f"col_{kind}")(torch.tensor(1.0)).item() == 1.0


@pytest.mark.parametrize(
    "kind,empty", [("sum", 0.0), ("mean", math.nan), ("max", -math.inf), ("min", math.inf)]
)
def test_empty_tensors(kind, empty):
    def is_filled(x, shape):
        torch.testing.assert_close(x, torch.full(shape, empty), equal_nan=True)

    reduce = {level: getattr(runtime, f"{level}_{kind}") for level in ("row", "col", "tensor")}
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 3)):
        is_filled(reduce["tensor"](torch.empty(shape)), ())
    is_filled(reduce["row"](torch.empty(0)), (0,))
    is_filled(reduce["row"](torch.empty(3, 0)), (3, 1))
    is_filled(reduce["row"](torch.empty(2, 0, 3)), (2, 1, 1))
    is_filled(reduce["row"](torch.empty(0, 3)), (0, 1))
    is_filled(reduce["col"](torch.empty(0)), (1,))
    is_filled(reduce["col"](torch.empty(0, 3)), (1, 3))
    is_filled(reduce["col"](torch.empty(3, 0)), (1, 0))


@pytest.mark.parametrize("level", ["row", "col", "tensor"])
def test_nan_wins(level):
    x = torch.tensor([[1.0, math.nan], [2.0, 3.0]])
    for kind in ("max", "min"):
        assert getattr(runtime, f"{level}_{kind}")(x).isnan().any()


@pytest.mark.parametrize("shape", [*SHAPES, (0,), (0, 3), (3, 0), (2, 0, 3)])
def test_matrix_and_back(shape):
    x = torch.randn(shape)
    matrix = as_matrix(x)
    assert matrix.shape == (shape[0] if shape else 1, math.prod(shape[1:]))
    assert like(matrix, x).shape == x.shape
    assert torch.equal(like(matrix, x), x)


def test_matrix_of_another_layout_has_the_same_entries():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(as_matrix(x), as_matrix(x.contiguous()))


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1)])
def test_newton_schulz_flattens_the_spectrum(shape):
    x = torch.randn(shape, dtype=torch.float64)
    y = newton_schulz(x, 8)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    values = torch.linalg.svdvals(y)
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    # the singular vectors stay: x y' is symmetric and positive
    product = x @ y.mT
    torch.testing.assert_close(product, product.mT)
    assert torch.linalg.eigvalsh(product).min() > -1e-9


def test_newton_schulz_is_the_iteration_of_the_paper():
    x = torch.randn(6, 4, dtype=torch.float64)
    a, b, c = 3.4445, -4.775, 2.0315
    y = x.mT / torch.linalg.matrix_norm(x)
    for _ in range(3):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    torch.testing.assert_close(newton_schulz(x, 3), y.mT)
    torch.testing.assert_close(newton_schulz(x.mT, 3), y)


def test_newton_schulz_of_hostile_matrices():
    assert torch.equal(newton_schulz(torch.zeros(3, 2), 5), torch.zeros(3, 2))
    assert newton_schulz(torch.zeros(0, 2), 5).shape == (0, 2)
    x = torch.randn(3, 2)
    torch.testing.assert_close(newton_schulz(x, 0), x / torch.linalg.matrix_norm(x))
    low = newton_schulz(x.bfloat16(), 5)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), newton_schulz(x, 5), rtol=0.1, atol=0.1)
    before = x.clone()
    newton_schulz(x, 5)
    assert torch.equal(x, before)


def test_newton_schulz_is_differentiable():
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: newton_schulz(m, 3), x)


@pytest.mark.parametrize("shape", [*SHAPES, (0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("k", [-1.0, 0, 1, 2.9, 3, 5, 1e9, math.inf, math.nan])
@pytest.mark.parametrize("given", [float, torch.tensor])
def test_kth_largest(shape, k, given):
    """Against sorting in Python, with ties, infinities and nan."""
    rng = np.random.default_rng(5)
    x = rng.choice([*rng.standard_normal(4), math.inf, -math.inf, math.nan, 0.0], size=shape)
    rows = shape[0] if shape else 1
    matrix = x.reshape(rows, -1 if x.size else math.prod(shape[1:]))

    def ranked(entries):
        numbers = sorted((e for e in entries if not math.isnan(e)), reverse=True)
        order = [math.nan] * (len(entries) - len(numbers)) + numbers
        if math.isnan(k) or k < 1:
            return math.inf
        return -math.inf if k >= len(order) + 1 else order[math.floor(k) - 1]

    wanted = {
        "row": [ranked(row) for row in matrix.tolist()],
        "col": [ranked(col) for col in matrix.T.tolist()],
        "tensor": [ranked(matrix.reshape(-1).tolist())],
    }
    for level, want in wanted.items():
        found = getattr(runtime, f"{level}_kth_largest")(torch.tensor(x), given(k))
        assert found.dtype is torch.float64
        np.testing.assert_array_equal(found.reshape(-1).numpy(), want, err_msg=level)
    assert runtime.row_kth_largest(torch.tensor(x), given(k)).shape == runtime.row_max(torch.tensor(x)).shape
    assert runtime.col_kth_largest(torch.tensor(x), given(k)).shape == runtime.col_max(torch.tensor(x)).shape
