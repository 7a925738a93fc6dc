"""What a generated class says of its kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: in the C file kernel `number` of `unit`.

    `arrays` are the states that its table holds behind the parameter and the gradient, as (key, place), with the
    place empty for a group-level state. It takes `slots` numbers from the host and makes `sweeps` passes.
    `joints` are its joint reductions as (sweep, number of the partial result, site, over, kind, place of the
    operand); of those that rank entries, whose operand is the rank, `ranked` names the site and the array of the
    entries. `values`, `width`, `rows`, `columns` and `column_width` say how much memory it needs per tensor
    between passes: values per tensor, reductions per chunk, kept values per row and per column, and column
    reductions per chunk. `by_rows`: a chunk is a number of rows. `passes` and `between` name its functions in the
    Triton file: those of its sweeps, and those in front of each sweep and behind the last ("" for none).

    `works` are those of the arrays that are there during a step only, as (key, level). `library` is the sweep behind
    which `_library` of the class runs, what it is handed, as (key, kind, number) with the kind "array", "value",
    "group", "row" or "column" of what is handed, what it hands back, and which states are its own.
    """

    unit: int
    number: int
    arrays: tuple[tuple[str, str], ...]
    slots: int
    sweeps: int
    host_states: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    written_groups: tuple[str, ...] = ()
    joints: tuple[tuple[int, int, int, str, str, str], ...] = ()
    ranked: tuple[tuple[int, str], ...] = ()
    values: int = 0
    width: int = 0
    rows: int = 0
    columns: int = 0
    column_width: int = 0
    by_rows: bool = False
    draws: bool = False
    works: tuple[tuple[str, str], ...] = ()
    library: tuple[int, tuple[tuple[str, str, int], ...], tuple[str, ...], tuple[str, ...]] | None = None
    passes: tuple[str, ...] = ()
    between: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Native:
    """The kernels of a class.

    `c` and `triton` name the files of kernels, "" for one that there is not; they lie beside the module of the class.
    `c_sha256` and `triton_sha256` are the hashes of their bytes: kernels of another compilation take other
    arguments. `modes` has for every plan that `_kernel` may name its kernel where arrays hold what is stored in
    them, where storing rounds, and where the gradient may be overwritten; -1 where it has none, for the reason
    `lacking`.
    """

    kernels: tuple[Kernel, ...]
    modes: Sequence[tuple[int, int, int]]
    c: str = ""
    c_sha256: str = ""
    triton: str = ""
    triton_sha256: str = ""
    lacking: str = ""

    @staticmethod
    def path(rule: Any, file: str) -> Path | None:
        """The file of kernels of a class, or None for one whose code does not come from a file.

        It lies beside the module that was generated, which need not be that of the class: a person may have
        derived theirs, and a module may not be in `sys.modules`.
        """
        module = rule._kernel.__globals__.get("__file__")
        return Path(module).with_name(file) if module else None
