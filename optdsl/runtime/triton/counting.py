"""Step counts and host-level states where they are kept on the device: one program for each row of a table."""

import triton
import triton.language as tl

from optdsl.runtime.triton.library import at

STEP = tl.constexpr(16)


@triton.jit
def count(
    table, counts, hosts, skip, rows,
    GUARD: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, HOSTS: tl.constexpr,
):  # fmt: skip
    """Adds one to the step count, unless the step is skipped, and collects counts and host-level states."""
    row = tl.program_id(0).to(tl.int64)
    x = table + row * WIDTH
    step = at(x + STEP, tl.float32, 0)
    before = tl.load(step)
    now = before + 1.0
    tl.store(counts + row, now.to(tl.float64))
    if GUARD:
        now = tl.where(tl.load(skip) != 0.0, before, now)
    tl.store(step, now)
    for host in tl.static_range(HOSTS):
        tl.store(hosts + host * rows + row, tl.load(at(x + FIRST + host, tl.float64, 0)))


@triton.jit
def keep(
    table, hosts, skip, rows,
    GUARD: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, HOSTS: tl.constexpr,
):  # fmt: skip
    """Stores host-level states, unless the step is skipped."""
    row = tl.program_id(0).to(tl.int64)
    x = table + row * WIDTH
    for host in tl.static_range(HOSTS):
        to = at(x + FIRST + host, tl.float64, 0)
        new = tl.load(hosts + host * rows + row)
        if GUARD:
            new = tl.where(tl.load(skip) != 0.0, tl.load(to), new)
        tl.store(to, new)
