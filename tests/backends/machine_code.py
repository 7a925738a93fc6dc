"""What Triton's compiler made of every shipped method for each kind of device: a record, kept beside the tests.

    python -m tests.backends.machine_code            # compile what the record does not have, and add it
    python -m tests.backends.machine_code --stale    # name what it does not have
    python -m tests.backends.machine_code --table    # print it

To compile all takes an hour of one core, which is too long for a run of the tests. They ask instead whether the
record has each method's functions as they are now, and compile some again to see that it says what is so. A line of
the record is of a method and a target: a fingerprint of all that the compiler was given, and what came of it for
float32. Only what `complaints` has nothing against gets in. A run that is stopped loses the methods it was at.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support import NAMES, ROOT, WITHOUT_KERNELS, environment

RECORD = Path(__file__).with_suffix(".jsonl")
TARGETS = ("sm_80", "sm_90", "gfx942")
KINDS = ("elements", "rows", "sums")
#: What is the most of a kind's functions, and what is their sum.
MOST = ("registers", "stack", "spills", "shared")
SUMS = ("loads", "wide_loads", "stores", "wide_stores")


def kind(job: dict[str, Any]) -> str:
    """`elements` runs over tensors as they lie, `rows` by rows and columns, `sums` on partial sums."""
    if not job["function"].startswith("pass"):
        return "sums"
    return "rows" if job["by_rows"] else "elements"


def summary(
    lines: Iterable[dict[str, Any]], kind: Callable[[dict[str, Any]], str] = kind
) -> dict[str, dict[str, int]]:
    """What came of each kind of functions; `lines` are those that `ahead` prints."""
    kinds: dict[str, dict[str, int]] = {}
    for line in lines:
        of = kinds.setdefault(kind(line["job"]), dict.fromkeys(("functions", *MOST, *SUMS), 0))
        of["functions"] += 1
        both = {**line["job"], **line["found"]}
        of.update({name: max(of[name], both[name]) for name in MOST})
        of.update({name: of[name] + both[name] for name in SUMS})
    return kinds


def table(found: Iterable[tuple[str, dict[str, dict[str, int]]]]) -> str:
    """Lines of a table: for each name what came of its kinds of functions."""
    lines = [
        f"{'':28} {'functions':>14}  registers  stack  spills  shared  loads of 128 bits  stores of 128 bits"
    ]
    for name, kinds in found:
        for what, of in kinds.items():
            loads, stores = (f"{of[f'wide_{k}']} of {of[k]}" for k in ("loads", "stores"))
            lines.append(
                f"{name:28} {of['functions']:3} {what:>10}  {of['registers']:9}  {of['stack']:5}  {of['spills']:6}  "
                f"{of['shared']:6}  {loads:>17}  {stores:>18}"
            )
    return "\n".join(lines)


def complaints(job: dict[str, Any], found: dict[str, int]) -> list[str]:
    """What of one function is not as it should be.

    Expected of all: no stack, no spills. Of passes over elements: each array is loaded and stored in the main path by
    128 bits at a time, as often as the plan says. Of those that reduce nothing: 64 registers at most (128 where more
    than eleven arrays are loaded, and of AMD's, which are twice as many for as many threads), no shared memory,
    nothing in double precision.
    """
    wrong = [f"{name} {found[name]}" for name in ("stack", "spills") if found[name]]
    loads, stores = job["loads"], job["stores"]
    if job["function"].startswith("pass") and not job["by_rows"]:
        bits = {"f32": 1, "bf16": 1, "f64": 2}.get(job["types"])
        if bits is not None:
            # AMD's compiler joins neighbouring values per tensor, and may have the main path twice
            most = 99 if job["target"] == "gfx942" else 0
            for what, wanted in (("loads", bits * loads), ("stores", bits * stores)):
                if not wanted <= found[f"wide_{what}"] <= max(wanted, most):
                    wrong.append(f"{found[f'wide_{what}']} wide {what} of {wanted}")
        if not job["reduces"]:
            wrong += [f"shared {found['shared']}"] if found["shared"] else []
            if job["types"] == "f32":
                most = 128 if job["target"] == "gfx942" or loads > 11 else 64
                wrong += [f"registers {found['registers']}"] if found["registers"] > most else []
            if job["types"] != "f64" and not job["scalars"]:
                wrong += [f"doubles {found['doubles']}"] if found["doubles"] else []
    return [f"{job['method']} {job['function']} {job['target']} {job['types']}: {what}" for what in wrong]


def _meaning(source: str) -> str:
    """Python source without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def fingerprints() -> Iterator[tuple[str, str, str]]:
    """Each method and target, and a hash of what the compiler is given for it. Not with functions to interpret."""
    import triton

    import optdsl.runtime.triton
    from tests.backends.ahead import chosen, jobs, shipped

    library = Path(optdsl.runtime.triton.__file__).parent
    shared = [
        triton.__version__,
        *(_meaning((library / f"{n}.py").read_text("utf-8")) for n in ("codes", "library")),
    ]
    for method in NAMES:
        if method in WITHOUT_KERNELS:
            continue
        for target in TARGETS:
            given: list[Any] = list(shared)
            for job, kernel, function in jobs(method, shipped(method), target, "f32"):
                chunk = function.fn.__globals__.get(f"{job.function}_chunk")
                bodies = [_meaning(part.src) for part in (function, chunk) if part is not None]
                given.append(
                    [bodies, *(repr(sorted(part.items())) for part in chosen(job, kernel, function))]
                )
            yield method, target, hashlib.sha256(json.dumps(given).encode()).hexdigest()[:32]


def record() -> dict[tuple[str, str], dict[str, Any]]:
    """The record, by method and target."""
    if not RECORD.exists():
        return {}
    lines = map(json.loads, RECORD.read_text("utf-8").splitlines())
    return {(line["method"], line["target"]): line for line in lines}


def stale(known: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], str]:
    """The fingerprints of what the record does not have as it is now."""
    here = {(method, target): print_ for method, target, print_ in fingerprints()}
    for gone in [key for key in known if key not in here]:
        del known[gone]
    return {key: print_ for key, print_ in here.items() if known.get(key, {}).get("given") != print_}


def write(known: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Replaces the record, whole."""
    text = "".join(json.dumps(line) + "\n" for _, line in sorted(known.items()))
    with tempfile.NamedTemporaryFile("w", dir=RECORD.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(RECORD)


def update(workers: int) -> int:
    """Compiles what the record does not have; the exit status: 1 if something is not as it should be."""
    import triton

    known = record()
    missing = stale(known)
    wrong: list[str] = []
    done = 0
    # a process takes some methods, as to start one takes seconds
    shares = [list(missing)[first : first + 8] for first in range(0, len(missing), 8)]

    def share(keys: list[tuple[str, str]]) -> list[dict[str, Any]]:
        run = subprocess.run(
            [sys.executable, "-m", "tests.backends.ahead", *(":".join((*key, "f32")) for key in keys)],
            cwd=ROOT,
            env=environment(TRITON_INTERPRET=None),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in run.stdout.splitlines()]

    pool = ThreadPoolExecutor(workers)
    try:
        for keys, found in zip(shares, pool.map(share, shares), strict=True):
            for key in keys:
                lines = [line for line in found if (line["job"]["method"], line["job"]["target"]) == key]
                against = [text for line in lines for text in complaints(line["job"], line["found"])]
                wrong += against
                done += 1
                print(f"{done} of {len(missing)}: {' '.join(key)}", *against, sep="\n  ", flush=True)
                if not against:
                    head = {"method": key[0], "target": key[1], "triton": triton.__version__}
                    known[key] = {**head, "given": missing[key], **summary(lines)}
            write(known)
    finally:
        pool.shutdown(cancel_futures=True)
    write(known)
    return 1 if wrong else 0


def main() -> int:
    """The command. Its exit status is 1 if something is missing or not as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stale", action="store_true", help="name what the record does not have, as JSON")
    parser.add_argument("--table", action="store_true", help="print the record")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    arguments = parser.parse_args()
    if arguments.table:
        for target in TARGETS:
            lines = {method: line for (method, its), line in record().items() if its == target}
            versions = ", ".join(sorted({line["triton"] for line in lines.values()}))
            print(f"{target}, Triton {versions}, float32, {len(lines)} methods\n")
            print(table((m, {k: line[k] for k in KINDS if k in line}) for m, line in lines.items()), "\n")
        return 0
    if not arguments.stale:
        return update(arguments.workers)
    missing = sorted(stale(record()))
    print(json.dumps(missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
