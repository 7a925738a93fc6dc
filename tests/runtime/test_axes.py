"""Families, one matrix for each axis of a tensor: what generated code calls, and optimizers that keep them."""

import io
import math

import numpy as np
import pytest
import torch

import optdsl
from optdsl.ir.numpy_ops import NUMPY
from optdsl.runtime import axes

SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 4), (4, 1), (2, 1, 3, 2)]
EMPTY = [(0,), (0, 3), (3, 0), (2, 0, 3)]
LETTERS = "abcdef"


def parts(family, shape):
    """The matrices of a family."""
    found, at = [], 0
    for d in shape:
        found.append(family[at : at + d * d].reshape(d, d))
        at += d * d
    assert family.shape == (at,)
    return found


def random_family(shape, generator):
    """Symmetric matrices with eigenvalues from 0.5 up."""
    found = []
    for d in shape:
        a = torch.randn(d, d, dtype=torch.float64, generator=generator)
        found.append((a @ a.mT + 0.5 * torch.eye(d, dtype=torch.float64)).reshape(-1))
    return torch.cat([torch.zeros(0, dtype=torch.float64), *found])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20261129)


@pytest.mark.parametrize("shape", SHAPES + EMPTY)
def test_against_sums_over_indices(shape, generator):
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    for matrix, d in zip(parts(axes.identity(x), shape), shape, strict=True):
        assert torch.equal(matrix, torch.eye(d, dtype=torch.float64))
    one = LETTERS[: len(shape)]
    for k, matrix in enumerate(parts(axes.gram(x, x), shape)):
        torch.testing.assert_close(matrix, torch.einsum(f"{one},{one.replace(one[k], 'z')}->{one[k]}z", x, x))
    family = random_family(shape, generator)
    wanted = x
    for k, matrix in enumerate(parts(family, shape)):
        wanted = torch.einsum(f"{one},z{one[k]}->{one.replace(one[k], 'z')}", wanted, matrix)
    torch.testing.assert_close(axes.along_axes(family, x, x), wanted)


@pytest.mark.parametrize("shape", SHAPES + EMPTY)
def test_results_are_new_and_operands_as_they_were(shape, generator):
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    family = random_family(shape, generator)
    before = x.clone(), family.clone()
    axes.along_axes(family, x, x).fill_(7.0)
    axes.gram(x, x).fill_(7.0)
    axes.matrix_power(family, 1.0, 0.0, x).fill_(7.0)
    assert torch.equal(x, before[0])
    assert torch.equal(family, before[1])


@pytest.mark.parametrize("rows_by_cols", [False, True])
def test_any_layout_of_the_entries(rows_by_cols, generator):
    like = torch.empty(2, 3, 4, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    given = x.reshape(2, 12) if rows_by_cols else x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    family = random_family(like.shape, generator)
    torch.testing.assert_close(axes.gram(given, like), axes.gram(x, like))
    found = axes.along_axes(family, given, like)
    assert found.shape == given.shape
    torch.testing.assert_close(found.reshape(like.shape), axes.along_axes(family, x, like))


def test_roots_and_powers(generator):
    like = torch.empty(2, 5, 3, dtype=torch.float64)
    family = random_family(like.shape, generator)
    whole = parts(family, like.shape)
    for root, matrix in zip(parts(axes.matrix_power(family, 0.5, 0.1, like), like.shape), whole, strict=True):
        torch.testing.assert_close(root @ root, matrix)
    for root, matrix in zip(
        parts(axes.matrix_power(family, -0.25, 0.1, like), like.shape), whole, strict=True
    ):
        torch.testing.assert_close(
            torch.linalg.matrix_power(root, 4) @ matrix, torch.eye(len(matrix)).double()
        )
    for same, matrix in zip(parts(axes.matrix_power(family, 1, 0.1, like), like.shape), whole, strict=True):
        torch.testing.assert_close(same, matrix)


def test_all_eigenvalues_are_raised_by_what_the_smallest_lacks():
    like = torch.empty(3, dtype=torch.float64)
    family = torch.diag(torch.tensor([-1.0, 2.0, 7.0], dtype=torch.float64)).reshape(-1)
    raised = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)).reshape(-1)
    torch.testing.assert_close(
        axes.matrix_power(family, -0.5, 1.0, like), raised.reshape(3, 3).diagonal().rsqrt().diag().reshape(-1)
    )
    torch.testing.assert_close(axes.matrix_power(raised, 1, 0.5, like), raised)
    assert axes.matrix_power(family, 0.5, -9.0, like).isnan().any()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 10.0), (torch.float64, 1e12)])
def test_roots_of_singular_matrices_are_finite(dtype, size, generator):
    """Rounding may leave an eigenvalue so far below 0 that `least` is lost in what it is raised by."""
    for _ in range(10):
        like = size * torch.randn(12, dtype=dtype, generator=generator)
        family = axes.gram(like, like) + 1e-12 * axes.identity(like)
        assert axes.matrix_power(family, -0.5, 1e-12, like).isfinite().all()
        defined = NUMPY["matrix_power"]((12,), family[:, None].numpy(), -0.5, 1e-12)
        assert np.isfinite(defined).all()


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e18, 1e31, 3e37])
def test_sizes_whose_squares_are_zero_or_infinite(size, generator):
    a = torch.randn(31, 31, generator=generator)
    matrix = size * (a @ a.mT / 31 + torch.eye(31))
    root = axes.matrix_power(matrix.reshape(-1), 0.5, 1e-37, torch.empty(31)).reshape(31, 31).double()
    wanted = matrix.double() + (1e-37 * torch.eye(31) if size < 1e-37 else 0.0)
    torch.testing.assert_close(root @ root / wanted.max(), wanted / wanted.max(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_its_matrix_nan_and_raises_nothing(bad):
    like = torch.empty(2, 3)
    family = axes.identity(like)
    family[1] = bad
    first, second = parts(axes.matrix_power(family, -0.5, 1e-3, like), like.shape)
    assert first.isnan().all()
    torch.testing.assert_close(second, torch.eye(3))


@pytest.mark.parametrize(
    ("rows", "exponent", "least"), [(3, -0.25, 1e-3), (4, -0.5, 0.1), (3, 0.5, 9.0), (2, 2, 0.1)]
)
def test_derivatives_where_eigenvalues_are_equal_too(rows, exponent, least, generator):
    """Four rows of which three are zero have a matrix with three equal eigenvalues; `least` 9 raises some."""
    like = torch.empty(rows, 2, dtype=torch.float64)
    x = torch.randn(rows, 2, dtype=torch.float64, generator=generator)
    if rows == 4:
        x[1:] = 0
    base = 0.0 if least > 1 else 0.3

    def power(x):
        return axes.matrix_power(axes.gram(x, like) + base * axes.identity(like), exponent, least, like)

    assert torch.autograd.gradcheck(power, x.requires_grad_())


# ---- optimizers -------------------------------------------------------------------------------------------


def trained(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        optimizer.step()


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype))
        for s in ((3, 4), (2, 3, 2), (5,), (), (0, 3))
    ]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", ["shampoo", "distributed_shampoo"])
def test_a_checkpoint_goes_on_bit_for_bit(name, foreach):
    cls = optdsl.load(name)
    params = parameters()
    optimizer = cls(params, foreach=foreach)
    trained(optimizer, params, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    again = cls(others, foreach=foreach)
    again.load_state_dict(torch.load(file, weights_only=True))
    trained(optimizer, params, 3, first=3)
    trained(again, others, 3, first=3)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept(dtype):
    params = parameters(dtype)
    optimizer = optdsl.load("shampoo")(params)
    trained(optimizer, params, 2)
    for p in params:
        for key in ("statistics", "preconditioners"):
            kept = optimizer.state[p][key]
            assert kept.shape == (sum(d * d for d in p.shape),)
            assert kept.dtype is torch.float32
        assert "momentum_buffer" not in optimizer.state[p]


def test_what_they_do_not_take():
    cls = optdsl.load("shampoo")
    p = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    p.grad = torch.zeros_like(p)
    with pytest.raises(RuntimeError, match="does not support complex parameters"):
        cls([p]).step()
    with pytest.raises(RuntimeError, match="branches on the step count"):
        cls([p], capturable=True)


def test_beside_matrices_of_rows_and_columns(tmp_path):
    """A step that sees tensors as matrices, too: arrays have other shapes there."""
    path = tmp_path / "both.opt"
    path.write_text(
        "optimizer Both:\n"
        "    hyper:\n"
        "        lr = 0.1 in [0, inf)\n"
        "    state:\n"
        "        s [axes] = 0.5 * identity()\n"
        "        l [rows, rows] = 0\n"
        "    step:\n"
        "        l = l + g @ g'\n"
        "        s = s + gram(l @ g)\n"
        "        p = p - lr * along_axes(matrix_power(s, -0.25, 0.5), g) - 0.01 * lr * (l @ g)\n"
    )
    for foreach in (False, True):
        params = [
            torch.nn.Parameter(torch.ones(2, 3, 2, dtype=torch.float64)),
            torch.nn.Parameter(torch.ones(3).double()),
        ]
        optimizer = optdsl.load(path)(params, foreach=foreach)
        for p in params:
            p.grad = torch.arange(1.0, p.numel() + 1, dtype=torch.float64).reshape(p.shape).cos()
        optimizer.step()
        for p in params:
            g = p.grad
            flat = g.reshape(len(g), -1)
            by_rows = flat @ flat.mT
            x = (by_rows @ flat).reshape(g.shape)
            u = g
            for k in range(g.dim()):
                slices = x.movedim(k, 0).flatten(1) if g.dim() > 1 else x.reshape(-1, 1)
                values, vectors = torch.linalg.eigh(
                    0.5 * torch.eye(len(slices)).double() + slices @ slices.mT
                )
                root = vectors @ torch.diag(values**-0.25) @ vectors.mT
                u = torch.tensordot(root, u.movedim(k, 0), 1).movedim(0, k)
            wanted = 1 - 0.1 * u - 0.001 * x
            torch.testing.assert_close(p.detach(), wanted)
            torch.testing.assert_close(optimizer.state[p]["l"], by_rows)


def test_differentiable_steps(generator):
    """Through the accumulated matrices, of which those of a vector have equal eigenvalues in the first step."""
    start = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((3, 4), (5,))]
    grads = [
        [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in start] for _ in range(2)
    ]

    def loss(c):
        params = [p.clone() for p in start]
        optimizer = optdsl.load("shampoo")(
            params, lr=0.1, matrix_eps=0.1, weight_decay=0.1, differentiable=True
        )
        for step in grads:
            for number, (p, g) in enumerate(zip(params, step, strict=True)):
                p.grad = g * c[number]
            optimizer.step()
        return sum(p.square().sum() for p in params)

    assert torch.autograd.gradcheck(
        loss, (torch.tensor([1.0, 0.7], dtype=torch.float64, requires_grad=True),)
    )
