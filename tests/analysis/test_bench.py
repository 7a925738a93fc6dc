"""The benchmark harness on tiny cases: who is measured, by which rules, and what is told. No times are judged."""

import json
import math
import re
import signal
import subprocess
import sys

import pytest
import torch

from optdsl.analysis import setting
from optdsl.analysis.bench import cases, command, fresh, machine, peers, report, results, rounds, run
from optdsl.cli import main
from optdsl.lang.diagnostics import SpecError
from tests.support import BAD, PICKED, PLAIN, environment

TINY = cases.find(["tiny"])
OWN = ("own native", "own foreach", "own for-loop")
THEIRS = ("torch fused", "torch foreach", "torch for-loop")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The bandwidth of small arrays, which is soon measured and means nothing."""
    real = machine.bandwidth
    monkeypatch.setattr(machine, "bandwidth", lambda elements: real(1000))


def method_of(name, **options):
    (found,) = peers.methods([name], options)
    return found


def without_native(method):
    """The method as if it had no native kernel."""

    class Plain(method.cls):
        def __init__(self, params, fused=None, **options):
            if fused:
                raise RuntimeError("no fused kernel\nand more lines")
            super().__init__(params, **options)

    Plain.__name__ = method.cls.__name__
    return peers.Method(
        method.name, method.path, Plain, method.program, method.options, method.changed, method.diagnostics
    )


def measured(*methods, listener=None, case=TINY, **settings):
    found = results.Report()
    settings = {"repeat": 2, "yardstick": 1000, **settings}
    run.bench(methods, run.Settings(case, **settings), found, listener)
    return found


# ---- cases ------------------------------------------------------------------------------------------------


def test_gpt2_has_148_tensors_and_124m_elements():
    (case,) = cases.find(["gpt2"])
    assert (len(case.shapes), case.elements) == (148, 124_439_808)


def test_cases_by_name():
    assert [case.label for case in cases.find(["small", "10m", "small"])] == [
        "small",
        "small, new gradients",
        "10m",
    ]
    everything = {case.name for case in cases.find(["all"])}
    assert everything == set(cases.CASES) == {"10m", "gpt2", "small", "one", "many"}
    for name, help in (("smal", "did you mean `small`?"), ("", "there are 10m, gpt2")):
        with pytest.raises(ValueError, match=re.escape(f"there is no case `{name}`; {help}")):
            cases.find([name])


# ---- rounds -----------------------------------------------------------------------------------------------


class Table:
    """Contestants whose steps take what the table says, a clock that they move, and what was told."""

    def __init__(self, **seconds):
        self.now = 0.0
        self.order = []
        self.told = {}
        self.out = {}
        self.turns = {name: self._turn(name, each) for name, each in seconds.items()}

    def _turn(self, name, each):
        def turn(steps):
            self.order.append(name)
            if callable(each):
                return each(self)
            self.now += steps * each
            return each

        return turn

    def record(self, name, number, seconds):
        self.told.setdefault(name, {})[number] = seconds

    def failed(self, name, error):
        self.out[name] = error

    def progress(self, rounds, seconds_left):
        pass

    def race(self, seconds=math.inf, repeat=None, first=0):
        return rounds.race(self.turns, self, rounds.Limits(seconds, repeat), first, lambda: self.now)


def test_contestants_take_turns():
    table = Table(a=0.1, b=0.2, c=9.0)
    assert table.race(repeat=4, first=10) == 14
    assert table.order == ["a", "b", "c"] * (4 + 1)  # one round warms up: it is a long one
    assert table.told == {n: dict.fromkeys(range(10, 14), s) for n, s in (("a", 0.1), ("b", 0.2), ("c", 9.0))}


def test_steady_times_are_soon_known():
    table = Table(a=0.001, b=0.001)
    table.race(seconds=1000)
    assert {len(seen) for seen in table.told.values()} == {rounds.PRECISE_AFTER}


def test_short_steps_are_made_many_at_a_time():
    asked = []
    table = Table(a=1.0)
    table.turns = {"a": lambda steps: asked.append(steps) or 1e-9}
    table.race(repeat=1)
    assert asked == [1] * rounds.WARM_UP + [1, rounds.TURN_STEPS]


def test_a_slow_contestant_sits_out_rounds_but_has_its_turns():
    table = Table(a=1.0, b=40.0)
    table.race(seconds=400)
    assert len(table.told["b"]) >= rounds.LEAST
    assert len(table.told["a"]) > 4 * len(table.told["b"])
    assert set(table.told["b"]) <= set(table.told["a"])


def test_the_time_limit_ends_the_rounds_once_all_had_some_turns():
    table = Table(a=1.0, b=1.5)
    assert table.race(seconds=20, repeat=1000) < 20
    table = Table(a=1.0, b=1.5)
    assert table.race(seconds=0.001) == rounds.LEAST


def test_one_that_fails_is_out_and_the_others_go_on():
    def third(table):
        if table.order.count("b") > 7:
            raise ZeroDivisionError("so")
        return 0.1

    table = Table(a=0.1, b=third)
    table.race(repeat=6)
    assert len(table.told["a"]) == 6
    assert len(table.told["b"]) == 2
    assert str(table.out["b"]) == "so"
    table = Table(a=lambda table: 1 / 0)
    assert table.race(repeat=6, first=3) == 3
    assert table.told == {}


def test_quartiles():
    assert rounds.quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert rounds.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


# ---- peers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "dtype", "each"),
    [
        ("adamw", {}, "f32", 28),
        ("adamw", {"amsgrad": True}, "f32", 36),
        ("adamw", {}, "bf16", 14),
        ("adamw", {}, "f64", 56),
        ("sgd", {}, "f32", 12),
        ("sgd", {"momentum": 0.9}, "f32", 20),
        ("lion", {}, "f32", 20),
        ("lamb", {}, "f32", 44),
    ],
)
def test_bytes_of_a_step(name, options, dtype, each):
    params = peers.parameters(TINY[0], peers.DTYPES[dtype])
    found = peers.traffic(method_of(name, **options), params)
    assert found.moved == 30 * each
    width = params[0].element_size()
    states = {"adamw": 3 if "amsgrad" in options else 2, "lion": 1, "lamb": 2, "sgd": len(options)}
    assert found.states == 30 * width * states[name]


def test_options_as_text():
    assert setting.options_of(["lr=1e-3", "betas=(0.9, 0.5)", "amsgrad = true", "kind=soft"]) == {
        "lr": 1e-3,
        "betas": (0.9, 0.5),
        "amsgrad": True,
        "kind": "soft",
    }
    for text in ("lr", "=1", "a b=1"):
        with pytest.raises(ValueError, match=f"`{text}` is not NAME=VALUE"):
            setting.options_of([text])


def test_options_go_to_the_methods_that_have_them():
    sgd, lion = peers.methods(["sgd", "lion"], {"momentum": 0.5, "lr": 0.25})
    assert (sgd.options["momentum"], sgd.options["lr"]) == (0.5, 0.25)
    assert "momentum" not in lion.options
    params = peers.parameters(TINY[0], torch.float32)
    theirs = peers.optimizer("torch foreach", sgd, params)
    assert type(theirs) is torch.optim.SGD
    assert theirs.defaults["momentum"] == 0.5
    with pytest.raises(ValueError, match="no option `momentun`; did you mean `momentum`"):
        peers.methods(["sgd"], {"momentun": 0.5})
    with pytest.raises(ValueError, match="Invalid learning rate"):
        peers.methods(["sgd"], {"lr": -1.0})
    with pytest.raises(ValueError, match="lr must be a number"):
        peers.methods(["sgd"], {"lr": "x"})


def test_both_sides_take_the_same_options():
    method = method_of("adamw")
    params = peers.parameters(TINY[0], torch.float32)
    theirs = peers.optimizer("torch fused", method, params)
    assert theirs.defaults["fused"]
    for name, value in method.options.items():
        assert theirs.defaults[name] == value, name


@pytest.mark.parametrize(
    ("name", "options", "peer", "reason"),
    [
        ("lion", {}, "torch foreach", "torch.optim has no Lion"),
        ("radam", {}, "torch fused", "torch.optim.RAdam has no `fused`"),
    ],
)
def test_peers_that_cannot_be_had(name, options, peer, reason):
    with pytest.raises(peers.Missing, match=re.escape(reason)):
        peers.optimizer(peer, method_of(name, **options), peers.parameters(TINY[0], torch.float32))


def test_an_option_that_torch_lacks(tmp_path):
    spec = tmp_path / "sgd2.opt"
    spec.write_text(PLAIN.replace("Plain", "SGD").replace("lr", "rate"))
    params = peers.parameters(TINY[0], torch.float32)
    peers.optimizer("torch foreach", method_of(spec), params)
    with pytest.raises(peers.Missing, match="has no option `rate`"):
        peers.optimizer("torch foreach", method_of(spec, rate=0.5), params)


def test_specs_that_cannot_be_measured(tmp_path):
    (tmp_path / "bad.opt").write_text(BAD)
    with pytest.raises(SpecError):
        peers.methods([str(tmp_path / "bad.opt")], {})
    (tmp_path / "adamw.opt").write_text(PLAIN)
    with pytest.raises(ValueError, match="the same name"):
        peers.methods(["adamw", str(tmp_path / "adamw.opt")], {})
    assert len(peers.methods(["adamw", "AdamW", "adamw"], {})) == 1


def test_new_gradients_are_other_tensors_with_the_same_numbers():
    params = peers.parameters(TINY[0], torch.float32)
    before = [p.grad for p in params]
    peers.renew(params)
    for p, old in zip(params, before, strict=True):
        assert p.grad.data_ptr() not in {gradient.data_ptr() for gradient in before}
        assert torch.equal(p.grad, old)


# ---- measurements -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICKED)
def test_every_shipped_method_can_be_measured(name):
    (found,) = measured(method_of(name), repeat=1).measurements
    for peer in ("own foreach", "own for-loop"):
        assert found.runs[peer].missing is None, peer
    if hasattr(torch.optim, found.title):
        for peer in ("torch foreach", "torch for-loop"):
            assert found.runs[peer].missing is None, peer


def test_a_measurement_has_every_peer_or_a_reason():
    found = measured(without_native(method_of("adamw")), repeat=3)
    (m,) = found.measurements
    assert tuple(m.runs) == OWN + THEIRS
    assert m.runs["own native"].missing == "no fused kernel"
    assert m.runs["own native"].first is None
    assert m.reference == "torch fused"
    assert m.figures("torch fused").ratio == (1.0, 1.0, 1.0)
    for name in (*OWN[1:], *THEIRS):
        assert set(m.runs[name].seconds) == {0, 1, 2}
        assert m.runs[name].first > 0


def test_the_reference_when_torch_has_less():
    radam, lion = measured(method_of("radam"), method_of("lion")).measurements
    assert (radam.reference, lion.reference) == ("torch foreach", "own foreach")
    assert {lion.runs[name].missing for name in THEIRS} == {"torch.optim has no Lion"}


def test_a_peer_that_fails_later_is_missing(monkeypatch):
    method = method_of("lion")
    real = peers.turn_of

    def turn_of(made, params, new_gradients):
        turn = real(made, params, new_gradients)
        calls = []

        def failing(steps):
            calls.append(steps)
            if len(calls) == 8 and not made.defaults["foreach"]:
                raise ValueError("enough")
            return turn(steps)

        return failing

    monkeypatch.setattr(run, "turn_of", turn_of)
    (m,) = measured(without_native(method), repeat=9).measurements
    assert m.runs["own for-loop"].missing == "ValueError: enough"
    assert m.figures("own for-loop") is None
    assert len(m.runs["own foreach"].seconds) == 9


def test_new_gradients_and_other_dtypes():
    case = cases.Case("few", "2 tensors", ((3,), ()), new_gradients=True)
    (m,) = measured(method_of("sgd", momentum=0.9), case=[case], dtype="bf16").measurements
    assert m.bytes == 4 * 10
    assert m.figures("own foreach") is not None
    assert m.as_json()["gradients"] == "new"


def test_threads_are_set_for_the_time_of_the_measurement(monkeypatch):
    monkeypatch.setattr(run.os, "cpu_count", lambda: 3)
    seen = []
    listener = run.Listener(done=lambda m: seen.append((m.threads, torch.get_num_threads())))
    before = torch.get_num_threads()
    found = measured(method_of("sgd"), threads=(1, 3), listener=listener, repeat=1)
    assert seen == [(1, 1), (3, 3)]
    assert torch.get_num_threads() == before
    assert set(found.bandwidth) == {1, 3}
    with pytest.raises(ValueError, match="4 threads are too many: this machine has 3 cores"):
        run.Settings(TINY, (4,))


def test_large_cases_measure_the_bandwidth_in_their_rounds(monkeypatch):
    monkeypatch.setattr(run, "LARGE", 0)
    (m,) = measured(method_of("sgd"), repeat=1).measurements
    assert m.bandwidth > 0
    assert m.bandwidth != measured(method_of("sgd"), repeat=1).bandwidth[1][machine.ONE_ARRAY]
    assert tuple(m.runs) == OWN + THEIRS


@pytest.mark.parametrize("room", [2, 3, 4, 5, 6])
def test_peers_share_what_memory_there_is(room, monkeypatch):
    method = without_native(method_of("adamw"))
    alive = []

    def turn_of(made, params, new_gradients):
        alive.append(made)
        return peers.turn_of(made, params, new_gradients)

    monkeypatch.setattr(run, "turn_of", turn_of)
    states = 2 * 4 * 30
    monkeypatch.setattr(run, "_room", lambda: 5 * 4 * 30 + room * states)
    (m,) = measured(method, repeat=2).measurements
    for name in (*OWN[1:], *THEIRS):
        assert m.figures(name).ratio is not None
        common = set(m.runs[name].seconds) & set(m.runs["torch fused"].seconds)
        assert common == set(m.runs[name].seconds), name
    parts = len(m.runs["torch fused"].seconds) // 2
    assert parts == (1 if room == 6 else math.ceil(5 / (room - 1)))


def test_without_memory_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(run, "_room", lambda: 100)
    (m,) = measured(method_of("adamw")).measurements
    assert all("two peers need 0.0 GB of memory" in one.missing for one in m.runs.values())
    assert "n/a  two peers need" in report.table(m)
    assert m.reference is None


def test_ratios_are_of_the_same_round():
    m = results.Measurement("x", "X", TINY[0], "f32", 1, 840, 1e3)
    m.runs["torch fused"] = results.Run({0: 1.0, 1: 10.0, 2: 2.0}, 0.5)
    m.runs["own native"] = results.Run({0: 0.5, 1: 5.0, 2: 1.0}, 0.5)
    m.runs["own foreach"] = results.Run({7: 4.0}, 0.5)
    assert m.figures("own native").ratio == (0.5, 0.5, 0.5)
    assert m.figures("own foreach").ratio == (2.0, 2.0, 2.0)
    assert m.figures("own native").share == pytest.approx(0.84)
    assert m.figures("torch fused").spread == pytest.approx(4.5 / 2)


def test_fixed_costs_are_a_line_through_one_and_many():
    found = results.Report()
    for case in cases.find(["one", "many"]):
        m = results.Measurement("x", "X", case, "f32", 1, 840, 1e3)
        m.runs["own foreach"] = results.Run({0: 10e-6 + len(case.shapes) * 2e-6})
        m.runs["own native"] = results.Run(missing="no")
        found.measurements.append(m)
    (cost,) = found.fixed_costs()
    assert cost.peer == "own foreach"
    assert (cost.step, cost.tensor) == (pytest.approx(10e-6), pytest.approx(2e-6))
    assert report.closing(found).splitlines() == [
        "x, fixed cost of step(), 1 thread",
        "  peer          a step  and a tensor",
        "  own foreach  10.0 us       2.00 us",
    ]


def test_the_first_step_in_a_new_process():
    found = fresh.first_steps(peers.methods(["sgd"], {})[0].path, {"lr": 0.5})
    if "missing" in found:
        assert "fused" in found["missing"]
    else:
        assert set(found) == {"empty_cache_s", "filled_cache_s"}
    assert fresh.first_steps(peers.Path("nowhere.opt"), {})["missing"].startswith("FileNotFoundError")


# ---- what is told -----------------------------------------------------------------------------------------


def test_times_and_amounts_in_words():
    told = [report.seconds(x) for x in (12.3456, 1.0, 0.9994, 0.0123456, 1.234e-4, 5e-8, 0.0, -2e-3)]
    assert told == ["12.3 s", "1.00 s", "999 ms", "12.3 ms", "123 us", "0.05 us", "0.00 us", "-2.00 ms"]
    assert [report.amount(x) for x in (840, 28e3, 280e6, 3.484e9)] == ["840 B", "28 kB", "280 MB", "3.48 GB"]


def test_the_table():
    m = results.Measurement("lion", "Lion", cases.find(["10m"])[0], "f32", 2, 200_000_000, 50e9)
    m.runs["own native"] = results.Run({0: 5e-3, 1: 5e-3}, 0.25)
    m.runs["own foreach"] = results.Run({0: 50e-3, 1: 50e-3}, 0.3)
    m.runs["own for-loop"] = results.Run(first=1.0)
    m.runs["torch fused"] = results.Run(missing="torch.optim has no Lion")
    assert report.table(m).splitlines() == [
        "lion, 10m: one tensor of 10M, f32, 2 threads, 200 MB a step; ratio to own foreach",
        "  peer           median  spread  ratio  of bandwidth  first step  rounds",
        "  own native    5.00 ms   0.0 %  0.100          80 %      250 ms       2",
        "  own foreach   50.0 ms   0.0 %  1.000           8 %      300 ms       2",
        "  own for-loop        -  not measured",
        "  torch fused       n/a  torch.optim has no Lion",
    ]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["bench", "lion", "--case", "tiny", "--repeat", "2", "--out", "o", "--json", "sub/x.json"]) == 0
    )
    said = capsys.readouterr()
    assert said.err == ""
    assert f"torch {torch.__version__}" in said.out
    assert "bandwidth in place, 1 thread: x.mul_(c) " in said.out
    assert "lion, tiny: 3 tensors of 10, f32, 1 thread, 600 B a step; ratio to own foreach\n" in said.out
    assert re.search(r"^  own foreach +[\d.]+ [mu]s +[\d.]+ % +1\.000 +[\d.]+ [mu]s +2$", said.out, re.M)
    assert re.search(r"^  torch fused +n/a  torch.optim has no Lion$", said.out, re.M)
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"bench.json", "bench-lion.png"}
    assert (tmp_path / "o" / "bench-lion.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "sub" / "x.json").read_text()
    assert (tmp_path / "o" / "bench.json").read_text() == text
    found = json.loads(text, parse_constant=pytest.fail)
    assert set(found["machine"]) >= {"cpu", "cores", "torch", "compiler", "date", "load", "python"}
    assert found["settings"]["methods"]["lion"]["betas"] == [0.9, 0.99]
    assert not found["interrupted"]
    (m,) = found["measurements"]
    assert (m["case"], m["tensors"], m["elements"], m["bytes_per_step"]) == ("tiny", 3, 30, 600)
    assert m["reference"] == "own foreach"
    assert set(m["peers"]) == {*OWN, *THEIRS}
    assert m["peers"]["torch fused"] == {"first_s": None, "rounds": 0, "missing": "torch.optim has no Lion"}
    ours = m["peers"]["own foreach"]
    assert (ours["ratio"], ours["rounds"], ours["missing"]) == (1.0, 2, None)
    assert ours["low_s"] <= ours["median_s"] <= ours["high_s"]


def test_options_and_no_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "sgd", "--case", "tiny", "--time-limit", "0.01", "--set", "momentum=0.9", "--no-plot"]
    assert main([*words, "--out", "o"]) == 0
    assert "600 B a step; ratio to torch fused" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"bench.json"}
    assert main(words) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"o"}


def test_warnings_on_a_spec_are_shown(tmp_path, capsys):
    spec = tmp_path / "odd.opt"
    spec.write_text(PLAIN.replace("    step:", "        mu = 0.5 in [0, 1)\n\n    step:"))
    assert main(["bench", str(spec), "--case", "tiny", "--repeat", "1"]) == 0
    assert "warning[W0701]" in capsys.readouterr().err


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "lion", "--case", "tiny", "--repeat", "1", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err == "no picture: matplotlib is not installed (pip install matplotlib)\n"
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["amsgard"], "there is no shipped spec `amsgard`"),
        (["nowhere.opt"], "there is no spec at `nowhere.opt`"),
        (["adamw", "--case", "gtp2"], "there is no case `gtp2`; did you mean `gpt2`?"),
        (["adamw", "--case", "tiny", "--set", "lr"], "`lr` is not NAME=VALUE"),
        (["adamw", "--case", "tiny", "--set", "rl=1"], "there is no option `rl`"),
        (["adamw", "--case", "tiny", "--threads", "100000"], "100000 threads are too many"),
        (["adamw", "--case", "tiny", "--out", "file"], "file: File exists"),
        (["adamw", "--case", "tiny", "--json", "folder"], "folder: is a folder"),
    ],
)
def test_wrong_words(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert main(["bench", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"optdsl: {message}")
    assert said.err.count("\n") == 1


def test_mistakes_in_a_spec(tmp_path, capsys):
    (tmp_path / "bad.opt").write_text(BAD)
    assert main(["bench", str(tmp_path / "bad.opt")]) == 1
    assert "error[E0301]" in capsys.readouterr().err


def test_what_was_measured_is_told_after_an_interruption(tmp_path, monkeypatch, capsys):
    real = peers.turn_of
    calls = []

    def turn_of(made, params, new_gradients):
        turn = real(made, params, new_gradients)

        def interrupted(steps):
            calls.append(steps)
            if len(calls) == 300:
                raise KeyboardInterrupt
            return turn(steps)

        return interrupted

    monkeypatch.setattr(run, "turn_of", turn_of)
    words = ["bench", "sgd", "adamw", "--case", "tiny", "--repeat", "15", "--out", str(tmp_path)]
    assert main(words) == 130
    said = capsys.readouterr()
    assert said.out.count("own foreach") == 2
    assert "\ninterrupted: this is what was measured so far\n" in said.out
    assert said.err.startswith("interrupted")
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["interrupted"]
    assert [m["method"] for m in found["measurements"]] == ["sgd", "adamw"]
    assert 0 < found["measurements"][1]["peers"]["own foreach"]["rounds"] < 15
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json"}


def test_an_interrupted_process(tmp_path):
    words = ["-m", "optdsl", "bench", "adamw", "--case", "tiny", "--repeat", "1000000000", "--json", "x.json"]
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()  # the machine: from here on peers are measured
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()  # or leaving the block waits for it without end
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.startswith("interrupted")


def test_progress_is_shown_on_a_terminal_only(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    command.run([method_of("lion")], run.Settings(TINY, repeat=1))
    said = capsys.readouterr().err
    assert "\r\x1b[Klion, tiny, 1 thread: first step of own foreach" in said
    assert "\r\x1b[Klion, tiny, 1 thread: round 1" in said
    assert said.endswith("\r\x1b[K")
