"""Compiles Triton functions for devices that are not there, and reads what came of them.

Run as a program, since Triton compiles in a process only what it does not interpret there:

    python -m tests.backends.ahead METHOD:TARGET:TYPES...
    python -m tests.backends.ahead random:TARGET:TYPES:FIRST:LAST
    python -m tests.backends.ahead counting:TARGET:TYPES

It prints a line of JSON for each function of each named method, of the random programs from FIRST to LAST - 1, or of
what counts steps on a device and computes the numbers of a step there.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from optdsl.runtime.native.batch import ARRAYS
from optdsl.runtime.native.spec import Kernel, Native
from optdsl.runtime.storage import AT_RANDOM, Half
from optdsl.runtime.triton import counting as counts
from optdsl.runtime.triton import numbers
from optdsl.runtime.triton.batch import (
    BLOCK,
    OPTIONS,
    REGISTERS_BETWEEN,
    load,
    registers_of_pass,
    shape_of_pass,
)
from optdsl.runtime.triton.codes import type_of

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
ROUNDED = type_of(Half(AT_RANDOM))
#: What is computed in, and how the parameter, the gradient and states are stored.
TYPES = {
    "f32": (tl.float32, tl.float32, tl.float32, tl.float32),
    "f64": (tl.float64, tl.float64, tl.float64, tl.float64),
    "bf16": (tl.float32, tl.bfloat16, tl.bfloat16, tl.bfloat16),
    "mixed": (tl.float32, tl.bfloat16, tl.bfloat16, tl.float32),
    "rounded": (tl.float32, ROUNDED, tl.bfloat16, ROUNDED),
    "kahan": (tl.float32, type_of(Half("bf16+kahan")), tl.bfloat16, tl.bfloat16),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Job:
    """One function, the kernel it is of, and for what it is compiled."""

    method: str
    function: str
    by_rows: bool
    #: Element-sized arrays that a pass loads and stores.
    loads: int
    stores: int
    reduces: bool
    #: Whether it reads values per tensor, which are kept in double precision.
    scalars: bool
    #: Whether it draws random numbers.
    draws: bool
    target: str
    types: str


@dataclass(frozen=True)
class Found:
    """What came of one: instructions of the main path and of the whole, registers, memory."""

    registers: int
    stack: int
    shared: int
    wide_loads: int
    wide_stores: int
    doubles: int
    spills: int


def shipped(method: str) -> Any:
    """A shipped class."""
    module = importlib.import_module(f"optdsl.zoo.{method}")
    return getattr(module, module.__all__[0])


def random_classes(first: int, last: int) -> Iterator[tuple[str, Any]]:
    """The classes of random programs that have kernels."""
    # they bring along the compiler, and pytest
    native = importlib.import_module("tests.backends.native")
    made = importlib.import_module("tests.backends.test_torch_random").made
    for seed in range(first, last):
        try:
            yield f"random {seed}", native.triton_class(made(seed))
        except native.NoKernels:
            continue


def jobs(method: str, cls: Any, target: str, types: str) -> Iterator[tuple[Job, Kernel, Any]]:
    """Every function of a method, once."""
    native: Native = cls._native
    module = load(native.path(cls, native.triton), native.triton_sha256)
    seen: set[str] = set()
    for kernel in native.kernels:
        for name in (*kernel.passes, *kernel.between):
            if not name or name in seen:
                continue
            seen.add(name)
            function = getattr(module, name)
            body = function.src + getattr(module, f"{name}_chunk", function).src
            loads = len(
                re.findall(r" (?:load\(\w+_at \+ i|read\(\w+_at, x \+ ARRAYS \+ \d+, i), live, ", body)
            )
            stores = len(re.findall(r"^ +(?:store\(\w+_at \+ i|write\(\w+_at), ", body, re.MULTILINE))
            reads = "partials" in body, "values" in body or "SHARED" in body, "words(" in body
            yield Job(method, name, kernel.by_rows, loads, stores, *reads, target, types), kernel, function


def chosen(job: Job, kernel: Kernel, function: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The constants and the options with which the runtime would have the function compiled."""
    target = TARGETS[job.target]
    real, *of_arrays = TYPES[job.types]
    state = of_arrays[-1]
    works = dict(kernel.works)
    given = [
        *of_arrays[:2],
        *(state if place == "element" and key not in works else real for key, place in kernel.arrays),
    ]
    settings: dict[str, Any] = {
        "skip": None,
        "REAL": real,
        "GUARD": False,
        "WIDTH": ARRAYS + 2 + len(kernel.arrays) + len(kernel.host_states),
        **{f"T{cell}": type_ for cell, type_ in enumerate(given)},
    }
    widest = 1000 if job.by_rows else None
    if job.function in kernel.passes:
        places = ["element", "element", *(place for _, place in kernel.arrays)]
        elements = [type_ for type_, place in zip(given, places, strict=True) if place == "element"]
        shape, items = shape_of_pass(elements, widest, target.warp_size)
        if target.backend == "cuda":
            shape |= registers_of_pass(elements, widest)
        settings |= {"BLOCK": shape.pop("BLOCK"), "ITEMS": items}
    else:
        settings |= {"BLOCK": BLOCK, "FOLD": True, "COMPUTE": True}
        shape = {"num_warps": 4}
        if target.backend == "cuda":
            shape |= REGISTERS_BETWEEN
    options = {**OPTIONS, **shape}
    if target.backend == "hip":
        options.pop("enable_reflect_ftz", None)
    return {name: value for name, value in settings.items() if name in function.arg_names}, options


def compiled(job: Job, kernel: Kernel, function: Any) -> Any:
    """The function as the runtime would have it compiled."""
    settings, options = chosen(job, kernel, function)
    pointers = {"table": "*i64", "chunks": "*i32", "gradients": "*i64"}
    signature = {name: pointers.get(name, "constexpr") for name in function.arg_names}
    source = ASTSource(function, signature=signature, constexprs=settings, attrs={})
    return triton.compile(source, target=TARGETS[job.target], options=options)


def counting(target: str, types: str) -> Iterator[tuple[Job, Any]]:
    """What the runtime launches beside kernels where steps are counted on the device, compiled."""
    real = TYPES[types][0]
    of_table = {"skip": "*fp32", "GUARD": True, "WIDTH": 30, "FIRST": 28, "HOSTS": 2}
    of_numbers = {"program_of": "*i64", "REAL": real, "SLOTS": 9, "WORDS": numbers.HEAD + 9, "PITCH": 10}
    of_numbers |= {"slots": "*fp64" if real is tl.float64 else "*fp32"}
    of_numbers |= {"REGISTERS": numbers.REGISTERS, "ROWS": numbers.ROWS}
    pointers = {"table": "*i64", "programs": "*i64", "counts": "*fp64", "hosts": "*fp64"}
    pointers |= {"rows": "i32", "operations": "i32"}
    options: dict[str, Any] = {**OPTIONS, "num_warps": 4}
    if TARGETS[target].backend == "hip":
        options.pop("enable_reflect_ftz", None)
    functions = ((counts.count, of_table), (counts.keep, of_table), (numbers.compute, of_numbers))
    for function, settings in functions:
        known = {**pointers, **settings}
        signature = {name: known[name] for name in function.arg_names}
        constants = {name: value for name, value in signature.items() if name.isupper()}
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(function, signature=signature, constexprs=constants, attrs={})
        name = function.fn.__name__
        job = Job("counting", name, False, 0, 0, False, True, False, target, types)
        yield job, triton.compile(source, target=TARGETS[target], options=options)


def found(binary: Any, target: str) -> Found:
    """What is in a compiled function."""
    if target == "gfx942":
        text = binary.asm["amdgcn"]
        number = {key: int(value) for key, value in re.findall(r"\.(\w+): +(\d+)$", text, re.MULTILINE)}
        # AMD's library takes powers apart with conversions, which compute nothing in double precision
        ops = Counter(re.findall(r"\b((?:global|buffer)_(?:load|store)_\w+|v_(?!cvt|frexp)\w+_f64\w*)", text))
        return Found(
            number.get("vgpr_count", 0),
            number.get("private_segment_fixed_size", 0),
            number.get("group_segment_fixed_size", 0),
            sum(n for op, n in ops.items() if op.endswith("load_dwordx4")),
            sum(n for op, n in ops.items() if op.endswith("store_dwordx4")),
            sum(n for op, n in ops.items() if "_f64" in op),
            number.get("vgpr_spill_count", 0),
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        sass = _output("nvdisasm", "-c", file.name)
    number = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    ops = Counter(re.findall(r"\b(LDG\.\S+|STG\.\S+|LDL\S*|STL\S*|D(?:ADD|MUL|FMA|SETP|MNMX)\S*)", sass))
    return Found(
        number["REG"],
        number["STACK"],
        binary.metadata.shared,
        sum(n for op, n in ops.items() if re.match(r"LDG\.E\.(\w+\.)*128", op)),
        sum(n for op, n in ops.items() if re.match(r"STG\.E\.(\w+\.)*128", op)),
        sum(n for op, n in ops.items() if op[0] == "D"),
        sum(n for op, n in ops.items() if op.startswith(("LDL", "STL"))),
    )


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def main(arguments: list[str]) -> None:
    """Compiles all functions of the methods named, as `method:target:types`."""
    for argument in arguments:
        method, target, types, *seeds = argument.split(":")
        if method == "counting":
            for job, binary in counting(target, types):
                print(json.dumps({"job": asdict(job), "found": asdict(found(binary, target))}), flush=True)
            continue
        classes = random_classes(*map(int, seeds)) if seeds else [(method, shipped(method))]
        for name, cls in classes:
            for job, kernel, function in jobs(name, cls, target, types):
                line = {"job": asdict(job), "found": asdict(found(compiled(job, kernel, function), target))}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
