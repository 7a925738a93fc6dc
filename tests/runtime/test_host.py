"""Scalar arithmetic against numpy, for floats and for 0-dim tensors, on hostile numbers."""

import itertools
import math

import numpy as np
import pytest
import torch

from optdsl.runtime import host

INF, NAN = math.inf, math.nan
HOSTILE = [
    *(0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 1.5, 2.5, -2.5, 0.1, -8.0, 1 / 3, 20.0, -20.0),
    *(700.0, 720.0, -720.0, -760.0, 1e-12, -1e-12, 1e-300, 5e-324, 1e300, -1e300, 1.7976931348623157e308),
    *(4503599627370496.5, 9007199254740993.0, INF, -INF, NAN),
]

UNARY = {
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "tanh": np.tanh,
    "floor": np.floor,
    "ceil": np.ceil,
    "round_": np.round,
    "sign": lambda x: np.nan_to_num(np.sign(x)),  # 0 for nan, as torch.sign
    "abs_": np.abs,
    "square": np.square,
    "nan_to_num": np.nan_to_num,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(x, 0.0),
}
BINARY = {
    "div": np.divide,
    "pow_": np.power,
    "mod": np.mod,
    "atan2": np.arctan2,
    "minimum": np.minimum,
    "maximum": np.maximum,
}


def same(got, want, tolerance=4e-15):
    """Equal up to rounding and denormal numbers; nan is nan; the sign of a zero counts not."""
    got, want = float(got), float(want)
    if not math.isfinite(want):
        return np.array_equal(got, want, equal_nan=True)
    return abs(got - want) <= tolerance * abs(want) + 1e-307


@pytest.mark.parametrize("name", UNARY)
def test_unary_functions_are_those_of_numpy(name):
    function = getattr(host, name)
    with np.errstate(all="ignore"):
        for x in HOSTILE:
            want = UNARY[name](np.float64(x))
            got = function(x)
            assert isinstance(got, float), x
            assert same(got, want), (x, got, want)
            tensor = function(torch.tensor(x, dtype=torch.float64))
            assert tensor.dtype == torch.float64
            # the sine of a huge number is torch's own
            assert same(tensor, want, 1e-13) or (name in ("sin", "cos", "tan") and abs(x) > 1e10), (x, tensor)


@pytest.mark.parametrize("name", BINARY)
def test_binary_functions_are_those_of_numpy(name):
    function = getattr(host, name)
    with np.errstate(all="ignore"):
        for x, y in itertools.product(HOSTILE, HOSTILE):
            want = BINARY[name](np.float64(x), np.float64(y))
            if name == "pow_" and (x, y) == (-INF, 0.5):
                want = INF  # as in C; numpy takes the square root
            got = function(x, y)
            assert isinstance(got, float)
            assert same(got, want), (x, y, got, want)
            a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
            for tensor in (function(a, b), function(x, b), function(a, y)):
                assert tensor.dtype == torch.float64
                assert same(tensor, want, 1e-13), (x, y, tensor, want)


def test_sign_of_zero_decides_about_the_infinity():
    assert host.div(1.0, -0.0) == -INF
    assert host.div(-1.0, -0.0) == INF
    assert host.pow_(-0.0, -3.0) == -INF
    assert host.pow_(-0.0, -2.0) == INF
    assert math.copysign(1.0, host.sqrt(-0.0)) == -1.0


def test_named_cases():
    assert host.pow_(0, 0) == 1.0
    assert math.isnan(host.pow_(-8.0, 1 / 3))
    assert host.pow_(-8.0, 3) == -512.0
    assert host.pow_(-10.0, 309) == -INF
    assert host.pow_(2, 0.5) == math.sqrt(2.0)
    assert host.exp(1000) == INF
    assert host.log(0) == -INF
    assert [host.round_(x) for x in (0.5, 1.5, 2.5, -0.5)] == [0.0, 2.0, 2.0, 0.0]
    assert host.erf(INF) == 1.0
    assert same(host.erf(0.3), math.erf(0.3))
    assert same(host.erf(torch.tensor(0.3, dtype=torch.float64)), math.erf(0.3))


def test_ints_give_plain_numbers():
    assert host.div(1, 3) == 1 / 3
    assert host.div(1, 0) == INF
    assert host.div(10**400, 1) == INF
    assert host.pow_(2, 10**400) == INF
    assert math.isnan(host.mod(3, 0))
    for got, want in (
        (host.minimum(2, 3), 2),
        (host.maximum(2, 3), 3),
        (host.clamp(7, 1, 5), 5),
        (host.mod(-7, 3), 2),
        (host.abs_(-2), 2),
        (host.sign(-2), -1),
    ):
        assert got == want
        assert isinstance(got, int)
    assert isinstance(host.floor(3), float)


def test_clamp_and_lerp():
    assert host.clamp(0.5, 1.0, 2.0) == 1.0
    assert host.clamp(2.0, 1.0, 0.0) == 0.0
    assert math.isnan(host.clamp(NAN, 0.0, 1.0))
    assert host.lerp(2.0, 4.0, 0.25) == 2.5
    weight = torch.tensor(0.25, dtype=torch.float64)
    assert host.lerp(2.0, 4.0, weight).item() == 2.5
    assert host.clamp(weight, 0.5, 1.0).item() == 0.5


def test_where_takes_bools_and_tensors():
    assert host.where(True, 1.0, 2.0) == 1.0
    yes = torch.tensor(True)
    both_numbers = host.where(yes, 0.1, 2.0)
    assert both_numbers.dtype == torch.float64
    assert both_numbers.item() == 0.1
    a = torch.tensor(0.1, dtype=torch.float64)
    assert host.where(~yes, 2.0, a).item() == 0.1
    assert host.where(yes, a, 3).item() == 0.1
    assert host.where(False, a, 3) == 3


def test_predicates():
    assert host.isfinite(1e308)
    assert not host.isfinite(NAN)
    assert not host.isfinite(torch.tensor(INF))
    yes, no = torch.tensor(True), torch.tensor(False)
    for a, b in itertools.product((True, False), repeat=2):
        for x, y in ((a, b), (yes if a else no, b), (a, yes if b else no)):
            assert bool(host.logical_and(x, y)) == (a and b)
            assert bool(host.logical_or(x, y)) == (a or b)
    assert host.logical_not(False) is True
    assert bool(host.logical_not(no))


def test_functions_of_tensors_keep_the_graph():
    beta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(host.sqrt(1.0 - host.pow_(beta, 3)), beta)
    step = 1e-6
    want = (math.sqrt(1 - (0.9 + step) ** 3) - math.sqrt(1 - (0.9 - step) ** 3)) / (2 * step)
    assert abs(slope.item() - want) < 1e-7
