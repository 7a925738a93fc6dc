"""The numbers of a step where steps are counted on the device: programs of a few operations, run for all rows.

What a rule computes of a step count would take a dozen operations of torch, each with a launch of its own. So it is
written down once, by giving the rule a `Symbol` as the count, and one Triton function runs what is written.
"""

import struct
from collections.abc import Sequence
from itertools import chain

import triton
import triton.language as tl

from optdsl.runtime.triton.functions import pow_
from optdsl.runtime.triton.library import greater, lesser
from optdsl.runtime.triton.notes import Notes, Symbol, Unwritten

#: Registers of a program, the last of which nothing reads, and operations at most.
REGISTERS = 64
#: Words of a program in front of the registers of its results: what registers begin as, and the operations.
HEAD = 5 * REGISTERS
#: Rows that one program of Triton takes.
ROWS = 16
_OPERATIONS = {name: n for n, name in enumerate(("add", "sub", "mul", "div", "pow", "sqrt", "min", "max"))}


def written(notes: Notes, results: Sequence[Symbol | float]) -> tuple[bytes, int]:
    """A program and how many operations it has. Raises Unwritten for one that is too long."""
    places = [notes.place(result) for result in results]
    count, spare = len(notes.operations), REGISTERS - len(notes.registers)
    if spare < 1 or count > REGISTERS:
        raise Unwritten("it is too long")
    code = [(_OPERATIONS[name], x, y, to) for name, x, y, to in notes.operations]
    # another program may be longer: what it would do here, nobody reads
    code += [(0, 0, 0, REGISTERS - 1)] * (REGISTERS - count)
    registers = struct.pack(f"{REGISTERS}d", *notes.registers, *[0.0] * spare)
    return registers + struct.pack(f"{4 * REGISTERS + len(places)}q", *chain(*code), *places), count


@triton.jit
def _read(registers, lane, place):
    """The number in a register of each row."""
    found = tl.where(lane[None, :] == place[:, None], registers, 0)
    return tl.sum(found, 1).to(tl.float64, bitcast=True)


@triton.jit
def compute(
    programs, program_of, counts, slots, rows, operations,
    REAL: tl.constexpr, SLOTS: tl.constexpr, WORDS: tl.constexpr, PITCH: tl.constexpr, REGISTERS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Runs the programs of some rows, with step counts in their first registers, and stores what the slots get."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    code = programs + tl.load(program_of + row, mask=live, other=0) * WORDS
    lane = tl.arange(0, REGISTERS)
    # as bits: a sum that picks one number would not keep the sign of a zero
    registers = tl.load(code[:, None] + lane[None, :])
    t = tl.load(counts + row, mask=live, other=1.0).to(tl.int64, bitcast=True)
    registers = tl.where(lane[None, :] == 0, t[:, None], registers)
    code += REGISTERS
    for k in range(operations):
        what = tl.load(code + 4 * k)
        x = _read(registers, lane, tl.load(code + 4 * k + 1))
        y = _read(registers, lane, tl.load(code + 4 * k + 2))
        z = tl.where(what == 0, x + y, x - y)
        z = tl.where(what == 2, x * y, z)
        z = tl.where(what == 3, x / y, z)
        z = tl.where(what == 4, pow_(x, y), z)
        z = tl.where(what == 5, tl.sqrt(x), z)
        z = tl.where(what == 6, lesser(x, y), z)
        z = tl.where(what == 7, greater(x, y), z)
        to = tl.load(code + 4 * k + 3)
        registers = tl.where(lane[None, :] == to[:, None], z.to(tl.int64, bitcast=True)[:, None], registers)
    code += 4 * REGISTERS
    for slot in tl.static_range(SLOTS):
        found = _read(registers, lane, tl.load(code + slot))
        tl.store(slots + row * PITCH + 1 + slot, found.to(REAL), mask=live)
