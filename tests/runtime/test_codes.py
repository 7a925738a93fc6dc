"""The loops of codes.h themselves, with and without wide instructions, against what torch computes."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from optdsl.runtime.native import build
from optdsl.runtime.native.codes import table_of
from optdsl.runtime.storage import BLOCK, CODES, code, decode, encode
from tests.support import needs_compiler

pytestmark = needs_compiler
CPU = torch.device("cpu")
SOURCE = """
#include <math.h>
#include <string.h>
#include "table.h"
#include "philox.h"
#include "codes.h"
/* block by block, as the driver has it */
#define EACH_BLOCK(codes, scales) for (i64 b = 0; b < n; b += CODE_BLOCK) { \
        const i64 m = n - b < CODE_BLOCK ? n - b : CODE_BLOCK; \
        const Held h = {0, 1, 1, c, (char *)codes, (char *)scales, buffer};
#define BOTH(real) \
    EXPORT void put_##real(const real *x, uint8_t *codes, float *scales, const Code *c, i64 n) \
    { \
        __attribute__((aligned(64))) double buffer[CODE_BLOCK]; \
        EACH_BLOCK(codes, scales) \
            memcpy(buffer, x + b, (size_t)m * sizeof *x); \
            measure_(&h, sizeof *x, b, m); \
            encode_(&h, sizeof *x, b, m, 0); \
        } \
    } \
    EXPORT void get_##real(const uint8_t *codes, const float *scales, const Code *c, i64 n, real *out) \
    { \
        __attribute__((aligned(64))) double buffer[CODE_BLOCK]; \
        EACH_BLOCK(codes, scales) \
            decode_(&h, sizeof *out, b, m); \
            memcpy(out + b, buffer, (size_t)m * sizeof *out); \
        } \
    }
BOTH(float) BOTH(double)
"""
#: Flags of the compiler: all that the processor has, and only what every one has.
FLAGS = {"native": build._native(), "plain": ["-DPLAIN_CODES"]}


@pytest.fixture(scope="module", params=FLAGS)
def library(request: Any, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("codes")
    (folder / "codes.c").write_text(SOURCE)
    include = f"-I{Path(build.__file__).parent}"
    made = folder / "codes.so"
    flags = [*build._FLAGS, "-fopenmp-simd", *FLAGS[request.param], include]
    subprocess.run([*build._compiler(), *flags, str(folder / "codes.c"), "-o", str(made), "-lm"], check=True)
    return ctypes.CDLL(str(made))


def numbers(bounds: torch.Tensor, positive: bool, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Blocks of all scales: numbers at the bounds of entries and next to these, and of all magnitudes."""
    g = torch.Generator().manual_seed(seed)
    blocks = 1200
    scale = torch.ldexp(
        1 + torch.rand(blocks, 1, generator=g), torch.randint(-60, 60, (blocks, 1), generator=g)
    )
    near = bounds[torch.randint(len(bounds), (blocks, BLOCK), generator=g)] * scale
    near = (near.view(torch.int32) + torch.randint(-4, 5, near.shape, generator=g, dtype=torch.int32)).view(
        torch.float32
    )
    any_ = (
        torch.ldexp(torch.rand(near.shape, generator=g) - 0.5, torch.randint(-27, 2, near.shape, generator=g))
        * scale
    )
    x = torch.where(torch.rand(blocks, 1, generator=g) < torch.rand(near.shape, generator=g), near, any_)
    x = torch.where(x.abs() <= scale, x, scale)
    # without many of them too close to call
    x[: blocks // 2] = any_[: blocks // 2]
    x[torch.arange(blocks), torch.randint(BLOCK, (blocks,), generator=g)] = scale.view(-1)
    if positive:
        x = x.abs()
    x[1], x[2], x[3] = 0, torch.where(torch.rand(BLOCK, generator=g) < 0.5, -0.0, 0.0), -x[3]
    x[4] *= 1e38 / x[4].abs().max() * 3
    for row, least in ((5, 1e-44), (6, 1e-40), (7, 2.0**-100), (8, 2.0**-110), (9, 2.0**110)):
        x[row] *= least / x[row].abs().max()
    x[10, 7], x[11, 7], x[12, 7] = float("nan"), float("inf"), -float("inf")
    x = x.to(dtype)
    if dtype is torch.float64:
        x[13:16] *= torch.tensor([1e300, 1e-300, 3e-46], dtype=dtype).unsqueeze(1)
        x[16:] += torch.randn(x[16:].shape, generator=g, dtype=dtype) * 1e-9 * x[16:]
    return x.view(-1)


@pytest.mark.parametrize("missing", [0, 77, 128, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", CODES)
def test_codes_and_numbers(
    name: str, positive: bool, dtype: torch.dtype, missing: int, library: ctypes.CDLL
) -> None:
    """Codes, scales and numbers, bit for bit."""
    table = code(name, positive, CPU)
    x = numbers(table.bounds, positive, dtype, seed=missing)
    x = x[: len(x) - missing]
    codes, scales = encode(x, table)
    n, address, real = (
        len(x),
        ctypes.addressof(table_of(table)),
        "float" if dtype is torch.float32 else "double",
    )

    def call(function: str, *arguments: torch.Tensor | int) -> None:
        getattr(library, f"{function}_{real}")(
            *(
                ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else ctypes.c_int64(a)
                for a in arguments
            )
        )

    found, sizes = torch.empty_like(codes), torch.empty_like(scales)
    call("put", x, found, sizes, address, n)
    assert torch.equal(sizes.nan_to_num(7.0), scales.nan_to_num(7.0))
    wrong = (found != codes).nonzero().view(-1)
    assert not len(wrong), (len(wrong), int(wrong[0]), x[int(wrong[0]) * 8 // table.bits])
    back, wanted = torch.empty_like(x), decode(codes, scales, table, x.shape, dtype)
    call("get", codes, scales, address, n, back)
    assert torch.equal(back.nan_to_num(7.0), wanted.nan_to_num(7.0))
