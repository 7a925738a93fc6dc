"""Whether the Triton kernels are right on a GPU, and how fast: `benchmarks/gpu.sh` runs this.

Verified: every shipped spec in three types and three ways of counting steps, against the loop over tensors in float64
on the CPU, and where the compiler can run against the float64 interpreter; steps in a CUDA graph; gradients that
`torch.amp.GradScaler` scales; that no step waits for the device. Timed, by turns, with the device's own clock: own
kernels, torch's fused and foreach classes, torch.compile of the for-loop, and a copy of a large array.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from optdsl.analysis.bench.cases import CASES
from optdsl.resources import data_dir, write_bytes

#: Names of methods timed, with torch's class where it has one, and bytes per parameter in float32.
TIMED = {"adamw": ("AdamW", 28), "lion": (None, 20), "lamb": (None, 0), "adabelief": (None, 28)}
BILLION = tuple((3072, 1085) for _ in range(300))
SIZES = {"124M in 148": CASES["gpt2"].shapes, "1B in 300": BILLION, "1000 x 1k": CASES["small"].shapes}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 5e-2}
COUNTING: dict[str, dict[str, Any]] = {
    "host": {},
    "device": {"fused": True},
    "capturable": {"capturable": True},
}
#: After so many seconds no other method is begun, so that all is over in nine minutes.
VERIFY_SECONDS = 260
#: Methods that are verified in every type and way of counting, and first.
CORE = ("adamw", "lion", "lamb", "adabelief", "adagradnorm")
SHAPES = ((), (7,), (0,), (3, 4), (33, 31), (5, 1), (1024,), (257, 129))


def zoo(name: str) -> Any:
    """A shipped class, without the compiler."""
    module = importlib.import_module(f"optdsl.zoo.{name}")
    return getattr(module, module.__all__[0])


def shipped() -> list[str]:
    return sorted(path.stem for path in data_dir("specs").glob("*.opt"))


def parameters(shapes: Any, dtype: torch.dtype, device: str, seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator(device=device).manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, device=device, dtype=dtype))
        for shape in shapes
    ]


def give(params: list[torch.nn.Parameter], seed: int, scale: float = 1.0) -> None:
    """New gradients, made on the CPU so that every device gets the same."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p)


def inputs_of(cls: Any, params: list[torch.nn.Parameter]) -> dict[str, Any]:
    """What a step is given beside gradients: their squares, and one for a number."""
    given = [None if p.grad is None else p.grad.square() for p in params]
    inputs = {key: 1.0 if cls._specs[key].level == "group" else given for key in cls._inputs}
    return {"inputs": inputs} if inputs else {}


class Run:
    """What was found so far."""

    def __init__(self, device: str, out: Path) -> None:
        self.device = device
        self.out = out
        self.lines: list[str] = []
        self.found: dict[str, Any] = {"machine": self.machine(), "verified": {}, "failed": [], "timed": []}
        self.say(json.dumps(self.found["machine"]))

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)

    def machine(self) -> dict[str, Any]:
        facts = {"torch": torch.__version__, "python": platform.python_version()}
        triton = importlib.util.find_spec("triton")
        facts["triton"] = importlib.import_module("triton").__version__ if triton else "missing"
        if self.device == "cuda":
            facts |= {
                "gpu": torch.cuda.get_device_name(),
                "cuda": str(torch.version.cuda or torch.version.hip),
            }
        return {**facts, "date": time.strftime("%Y-%m-%d", time.gmtime())}

    def write(self) -> None:
        """Keeps what was found so far."""
        write_bytes(self.out / "gpu.json", (json.dumps(self.found, indent=1) + "\n").encode())
        write_bytes(self.out / "gpu.txt", ("\n".join(self.lines) + "\n").encode())

    def check(self, name: str, work: Callable[[], str]) -> None:
        """Does something that raises if it is wrong."""
        try:
            found = work()
            self.found["verified"][name] = found
            self.say(f"right  {name}: {found}")
        except Exception as error:
            self.found["failed"].append(name)
            self.say(f"WRONG  {name}: {type(error).__name__}: {error}")
            traceback.print_exc()


# ---- verified -----------------------------------------------------------------------------------------------


def same_as_loop(name: str, dtype: torch.dtype, flags: dict[str, Any], device: str) -> str:
    """Five steps beside the loop over tensors in float64 on the CPU."""
    cls = zoo(name)
    options: dict[str, Any] = {}
    if any(hyper.name == "weight_decay" for hyper in cls._hypers):
        options["weight_decay"] = 0.1
    if any(spec.level == "axes" for spec in cls._states):
        # roots of matrices that lack rank magnify rounding, by as much as eps is small
        options |= {h.name: 0.1 for h in cls._hypers if h.kind == "float" and "eps" in h.name}
    if cls._not_capturable is not None and flags.get("capturable"):
        return "not capturable, by its rule"
    start = [p.detach().to(dtype).double() for p in parameters(SHAPES, torch.float32, "cpu")]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    ours = [torch.nn.Parameter(p.to(device=device, dtype=dtype)) for p in start]
    mine, peer = cls(ours, **options, **flags), cls(theirs, **options, foreach=False, fused=False)
    for step in range(5):
        for params in (ours, theirs):
            give(params, step)
            for p in params:
                p.grad = p.grad.to(dtype).to(p.dtype)  # type: ignore[union-attr]
            if step < 2:
                params[3].grad = None
        for optimizer, params in ((mine, ours), (peer, theirs)):
            optimizer.step(**inputs_of(cls, params))
    kernels = (
        [type(b).__name__ for t in mine._launcher.tables.values() for b in t.batches]
        if mine._launcher
        else []
    )
    if set(kernels) != {"TritonBatch"}:
        raise AssertionError(f"not by Triton kernels but by {set(kernels) or 'none'}")
    worst = 0.0
    for x, y in zip(ours, theirs, strict=True):
        if x.numel():
            error = (x.detach().double().cpu() - y.detach()).abs() / y.detach().abs().clamp(min=1.0)
            worst = max(worst, float(error.max()))
    # random numbers in another type are others
    if not cls._random and not worst <= TOLERANCE[dtype]:
        raise AssertionError(f"off by {worst:.3g}")
    return f"off by {worst:.2g}"


def same_as_interpreter(name: str, device: str) -> str:
    """Random settings and hostile numbers, held to the interpreter as the tests do."""
    numpy = importlib.import_module("numpy")
    differential = importlib.import_module("tests.backends.differential")
    program = importlib.import_module("optdsl.check").check_path(data_dir("specs") / f"{name}.opt").require()
    tally = differential.Tally()
    for seed in range(6):
        # Triton's interpreter cuts numbers off that it makes bfloat16
        dtype = (torch.float32, torch.float64, torch.bfloat16 if device == "cuda" else torch.float16)[
            seed % 3
        ]
        given = differential.problem(
            program, numpy.random.default_rng(seed), dtype, 3, 0.1 if seed > 2 else 0.0
        )
        flags = {} if seed < 3 or zoo(name)._native.lacking else {"fused": True}
        way = differential.Way("triton", lambda _: zoo(name), flags, device=device)
        tally += differential.run(program, given, [way], numpy.random.default_rng(seed))
    return str(tally)


def in_a_graph(name: str) -> str:
    """A captured step, replayed, beside the same steps one by one."""
    cls, shapes = zoo(name), ((1024,), (40, 33), (7,))
    ours, theirs = parameters(shapes, torch.float32, "cuda"), parameters(shapes, torch.float32, "cuda")
    rate = torch.tensor(1e-2, device="cuda")
    mine, peer = cls(ours, lr=rate, capturable=True), cls(theirs, lr=1e-2)
    for params in (ours, theirs):
        give(params, 0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            mine.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mine.step()
    for number in range(3):
        rate.fill_(1e-2 / (1 + number))
        graph.replay()
    for number in range(5):
        peer.param_groups[0]["lr"] = 1e-2 if number < 2 else 1e-2 / (number - 1)
        peer.step()
    torch.cuda.synchronize()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    return f"step {float(mine.state[ours[0]]['step']):.0f} as one by one"


def scaled(name: str) -> str:
    """GradScaler: the same step, and nothing at all on overflow."""
    cls, shapes = zoo(name), ((1024,), (40, 33), (7,))
    ours, theirs = parameters(shapes, torch.float32, "cuda"), parameters(shapes, torch.float32, "cuda")
    mine, plain = cls(ours, fused=True), cls(theirs, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    scaler.scale(torch.zeros((), device="cuda"))
    give(ours, 0, 1024.0)
    give(theirs, 0)
    scaler.step(mine)
    scaler.update(1024.0)
    plain.step()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)
    before = [p.detach().clone() for p in ours]
    states = [{k: v.clone() for k, v in mine.state[p].items()} for p in ours]
    give(ours, 1)
    ours[1].grad[3, 3] = float("inf")  # type: ignore[index]
    scaler.step(mine)
    for p, q, kept in zip(ours, before, states, strict=True):
        if not torch.equal(p, q) or not all(torch.equal(v, mine.state[p][k]) for k, v in kept.items()):
            raise AssertionError("an overflow changed something")
    return "an overflow changes nothing"


def without_waiting(name: str, flags: dict[str, Any]) -> str:
    """Steps under which torch raises if anything waits for the device."""
    cls = zoo(name)
    if cls._not_capturable is not None and flags:
        flags = {}
    params = parameters(((1024,), (40, 33)), torch.float32, "cuda")
    # with the option that has a state for the whole group
    options = {"b0": 0.5} if name == "adagradnorm" else {}
    mine = cls(params, **options, **flags)
    for step in range(3):
        give(params, step)
        inputs = inputs_of(cls, params)
        torch.cuda.synchronize()
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            mine.step(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "nothing waits"


def verify(run: Run) -> None:
    device = run.device
    compiler = importlib.util.find_spec("lark") is not None
    run.found["reference"] = "loop in float64 and interpreter" if compiler else "loop in float64"
    end, left = time.monotonic() + VERIFY_SECONDS, []
    for number, name in enumerate(sorted(shipped(), key=lambda n: n not in CORE)):
        if zoo(name)._native is None:
            continue
        if time.monotonic() > end and device == "cuda":
            left.append(name)
            continue
        # all in float32 counted by the host; the rest by turns, as each case compiles kernels of its own
        demanded = not zoo(name)._native.lacking  # kernels for all branches, so that they may be
        cases = [(dtype, how) for dtype in TOLERANCE for how in COUNTING if demanded or how == "host"]
        usual = (torch.float32, "host")
        chosen = {usual, *(c for i, c in enumerate(cases) if name in CORE or i % 4 == number % 4)}
        for dtype, how in sorted(chosen, key=str):
            if device == "cpu" and dtype is torch.bfloat16:
                continue
            label = f"{name} {str(dtype)[6:]} {how}"
            run.check(label, lambda n=name, d=dtype, h=how: same_as_loop(n, d, COUNTING[h], device))
        if compiler and (name in CORE or number % 4 == 0):
            run.check(f"{name} interpreter", lambda n=name: same_as_interpreter(n, device))
        if device == "cuda":
            for flags in ({}, {"fused": True})[: 1 + demanded]:
                run.check(f"{name} {flags} waiting", lambda n=name, f=flags: without_waiting(n, f))
    run.found["left_out"] = left
    run.say(f"{len(left)} methods left out for want of time: {' '.join(left) or 'none'}")
    if device == "cuda":
        for name in ("adamw", "lion", "lamb", "nadam"):
            run.check(f"{name} graph", lambda n=name: in_a_graph(n))
            run.check(f"{name} scaling", lambda n=name: scaled(n))


# ---- timed ----------------------------------------------------------------------------------------------------


#: Cycles of the device, about a millisecond: what the host may take for a step before the device waits for it.
HEAD_START = 2_000_000


def clock(device: str, work: Callable[[], Any]) -> float:
    """Seconds that some work takes on the device."""
    if device != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)  # the device is busy until the host has sent what is timed
    start_event.record()
    work()
    end_event.record()
    end_event.synchronize()
    return float(start_event.elapsed_time(end_event)) / 1e3


def copy_bandwidth(device: str, elements: int) -> float:
    """Bytes per second that a copy of a large array reads and writes."""
    x = torch.empty(elements, device=device)
    y = torch.empty_like(x)
    y.copy_(x)
    times = [clock(device, lambda: y.copy_(x)) for _ in range(15)]
    return 8 * elements / statistics.median(times)


def race(device: str, peers: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Times of all peers, who take turns; one that fails is left out."""
    alive = dict(peers)
    for name in list(alive):
        try:
            for _ in range(3):
                alive[name]()
        except Exception as error:
            print(f"       {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            del alive[name]
    times: dict[str, list[float]] = {name: [] for name in alive}
    end = time.monotonic() + seconds
    while time.monotonic() < end or (times and len(next(iter(times.values()))) < 7):
        for name, step in alive.items():
            times[name].append(clock(device, step))
    return times


@contextlib.contextmanager
def launches_left_out() -> Iterator[None]:
    """Without the launches, what a step takes is the time of the host."""
    batch = importlib.import_module("optdsl.runtime.triton.batch")
    whole = batch.launch
    batch.launch = lambda *_: None
    try:
        yield
    finally:
        batch.launch = whole


def host_time(
    cls: Any, params: list[torch.nn.Parameter], flags: dict[str, Any], launches: bool = False
) -> float:
    """Median seconds of the host for a step, with other gradients each time, with or without the launches."""
    optimizer = cls(params, **flags)
    optimizer.step()
    grads = [[torch.empty_like(p) for p in params] for _ in range(2)]
    times = []
    with contextlib.nullcontext() if launches else launches_left_out():
        for number in range(200):
            for p, g in zip(params, grads[number % 2], strict=True):
                p.grad = g
            start = time.perf_counter()
            optimizer.step()
            times.append(time.perf_counter() - start)
            if launches and params[0].is_cuda:
                torch.cuda.synchronize()
    return statistics.median(times[20:])


def clipped() -> Any:
    """The composition, where the compiler can run."""
    if importlib.util.find_spec("lark") is None:
        return None
    return importlib.import_module("optdsl.driver").load(Path(__file__).with_name("clipped_adamw.opt"))


def measure(run: Run, sizes: dict[str, Any], seconds: float, compiled: bool) -> None:
    device = run.device
    bandwidth = copy_bandwidth(device, 2**28 if device == "cuda" else 2**16)
    run.found["copy_bandwidth"] = bandwidth
    run.say(f"copy: {bandwidth / 1e9:.0f} GB/s")
    classes = {name: (zoo(name), *rest) for name, rest in TIMED.items()}
    if (composition := clipped()) is not None:
        classes["clipped adamw"] = (composition, None, 0)
    for size, shapes in sizes.items():
        elements = sum(math.prod(shape) for shape in shapes)
        for name, (cls, theirs, width) in classes.items():
            params = parameters(shapes, torch.float32, device)
            for p in params:
                p.grad = torch.randn_like(p)
            peers: dict[str, Callable[[], Any]] = {"own triton": cls(params).step}
            if size != "1B in 300":  # it takes several times the memory
                peers["own foreach"] = cls(params, foreach=True).step
            if theirs is not None:
                torch_class = getattr(torch.optim, theirs)
                peers["torch fused"] = torch_class(params, fused=True).step
                if size != "1B in 300":
                    peers["torch foreach"] = torch_class(params, foreach=True).step
            if cls._not_capturable is None and size == "124M in 148":
                peers["own triton, counting"] = cls(params, fused=True).step
            times = race(device, peers, seconds)
            medians = {peer: statistics.median(found) for peer, found in times.items()}
            for peer, found in times.items():
                low, _, high = statistics.quantiles(found, n=4)
                row = {
                    "size": size, "method": name, "peer": peer, "ms": medians[peer] * 1e3, "rounds": len(found),
                    "spread_percent": (high - low) / medians[peer] * 100,
                    "ratio_to_fused": medians[peer] / medians["torch fused"] if "torch fused" in medians else None,
                    "of_copy_percent": width * elements / medians[peer] / bandwidth * 100
                    if width and peer == "own triton" else None,
                }  # fmt: skip
                run.found["timed"].append(row)
                of_copy = f", {row['of_copy_percent']:.0f} % of the copy" if row["of_copy_percent"] else ""
                ratio = f", {row['ratio_to_fused']:.3f} x torch fused" if row["ratio_to_fused"] else ""
                spread = f"{row['spread_percent']:.1f} %, {len(found)} rounds"
                run.say(f"{size:12} {name:14} {peer:14} {row['ms']:9.3f} ms ({spread}){of_copy}{ratio}")
            if size == "124M in 148":
                host = host_time(cls, params, {}) * 1e3
                run.found.setdefault("host_ms", {})[name] = host
                run.say(f"{size:12} {name:14} host           {host:9.3f} ms, launches left out")
                whole = host_time(cls, params, {}, launches=True) * 1e3
                run.found.setdefault("host_with_launches_ms", {})[name] = whole
                run.say(f"{size:12} {name:14} host           {whole:9.3f} ms, launches included")
            del params, peers
            if device == "cuda":
                torch.cuda.empty_cache()
            run.write()
    if compiled:
        compiled_loop(run)


def compiled_loop(run: Run) -> None:
    """torch.compile of torch's AdamW, a loop over 148 tensors, beside its fused class; it may take minutes."""
    params = parameters(SIZES["124M in 148"], torch.float32, run.device)
    for p in params:
        p.grad = torch.randn_like(p)
    step = torch.compile(torch.optim.AdamW(params, foreach=False, capturable=True).step)
    peers = {"torch.compile": step, "torch fused": torch.optim.AdamW(params, fused=True).step}
    start = time.monotonic()
    times = race(run.device, peers, 3.0)
    for peer, found in times.items():
        ms = statistics.median(found) * 1e3
        run.found["timed"].append(
            {"size": "124M in 148", "method": "adamw", "peer": f"{peer} (last)", "ms": ms}
        )
        run.say(
            f"124M in 148  adamw          {peer:14} {ms:9.3f} ms (last; {time.monotonic() - start:.0f} s in all)"
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs all of it; 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="where gpu.json and gpu.txt go"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for each method in each size")
    parser.add_argument(
        "--only",
        choices=("verify", "measure", "host"),
        help="a part of it; host: what a step of 148 tensors takes of the host's time, which needs no GPU "
        "(with --smoke and TRITON_INTERPRET=1)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="on the CPU, in Triton's interpreter (TRITON_INTERPRET=1), on small tensors",
    )
    options = parser.parse_args(arguments)
    if not options.smoke and not torch.cuda.is_available():
        print("there is no GPU that torch can use; --smoke tries this script without one", file=sys.stderr)
        return 2
    run = Run("cpu" if options.smoke else "cuda", options.out)
    if options.only == "host":
        for name in TIMED:
            for how, flags in COUNTING.items():
                if how == "capturable" and zoo(name)._not_capturable is not None:
                    continue
                params = parameters(((16,),) * 148, torch.float32, run.device)
                give(params, 0)
                milliseconds = host_time(zoo(name), params, flags) * 1e3
                run.found.setdefault("host_ms", {})[f"{name} {how}"] = milliseconds
                run.say(f"{name:10} counting {how:10} {milliseconds:7.3f} ms, launches left out")
    if options.only in (None, "verify"):
        verify(run)
        run.write()
    if options.only in (None, "measure"):
        small = {size: tuple((7 + i,) for i in range(5)) for size in SIZES}
        measure(run, small if options.smoke else SIZES, options.seconds, not options.smoke)
    run.say(f"{len(run.found['verified'])} right, {len(run.found['failed'])} wrong {run.found['failed']}")
    run.write()
    return 1 if run.found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
