"""Transforms and formats asked for from outside of a spec: `load`, `compile` and the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import optdsl
from optdsl import driver
from optdsl.analysis.explain import explain
from optdsl.analysis.setting import Setting
from optdsl.cli import main
from optdsl.compose import module_of, store_of
from optdsl.lang.diagnostics import SpecError
from tests.support import TRANSFORM, class_of, command, environment, good
from tests.support import module_of as imported

MINE = """optimizer Mine:
    hyper:
        lr = 0.1 in [0, inf)
        weight_decay = 0.1 in [0, inf)
    state:
        m = 0
    step:
        m = 0.9 * m + g + weight_decay * p
        p = p - lr * m
"""
BY_HAND = """optimizer ByHand:
    use ClipByGlobalNorm(max_norm = 0.5)
    use AdamW()
    use Cautious()
"""


def steps(cls: type[torch.optim.Optimizer], **options: object) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((5, 7), (3,))]
    optimizer = cls(params, lr=0.1, weight_decay=0.1, **options)
    for _ in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in params]


def test_the_same_as_a_composition_in_a_spec(tmp_path: Path) -> None:
    """Whatever the order they are named in: what changes the gradient comes first, what changes the update last."""
    (tmp_path / "by_hand.opt").write_text(BY_HAND)
    theirs = steps(optdsl.load(tmp_path / "by_hand.opt"))
    for order in (
        ["cautious", "clip_by_global_norm(max_norm = 0.5)"],
        ["clip_by_global_norm(max_norm=0.5)", "cautious"],
    ):
        cls = optdsl.load("adamw", with_=order)
        assert all(torch.equal(a, b) for a, b in zip(steps(cls), theirs, strict=True))
        assert cls.__name__.startswith("AdamWWith")


@pytest.mark.parametrize(
    ("transform", "rule"),
    [
        ("box(low = -0.5, high = 0.5)", lambda p, step, t: (p - step).clamp(-0.5, 0.5)),
        ("l2_ball(radius = 1.0)", lambda p, step, t: (p - step) / max(1.0, float((p - step).norm()))),
        ("prox_l1(threshold = 0.1)", lambda p, step, t: torch.nn.functional.softshrink(p - step, 0.1)),
        ("decoupled_decay(rate = 0.1)", lambda p, step, t: p * 0.9 - step),
        ("lookahead(la_steps = 1, la_alpha = 0.4)", lambda p, step, t: p - 0.4 * step),
    ],
)
def test_what_acts_on_parameters_comes_behind(transform: str, rule: Callable[..., torch.Tensor]) -> None:
    """A projection is of the parameters that a step leaves, not of those that it finds."""
    generator = torch.Generator().manual_seed(5)
    p = torch.nn.Parameter(torch.randn(20, generator=generator, dtype=torch.float64))
    optimizer = optdsl.load("sgd", with_=transform)([p], lr=0.3)
    for t in range(1, 4):
        p.grad = torch.randn(20, generator=generator, dtype=torch.float64)
        wanted = rule(p.detach().clone(), 0.3 * p.grad, t)
        optimizer.step()
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("average", ["ema(decay = 0.0)", "polyak_average(gamma = 1e30)"])
def test_averages_are_of_what_a_step_leaves(average: str) -> None:
    """Those here are of the newest parameters alone."""
    p = torch.nn.Parameter(torch.ones(20))
    optimizer = optdsl.load("sgd", with_=average)([p], lr=0.3)
    for _ in range(3):
        p.grad = torch.ones(20)
        optimizer.step()
        now = p.detach().clone()
        optimizer.eval()
        torch.testing.assert_close(p.detach(), now)
        optimizer.train()


BOTH = """transform Both:
    use {}()
    use Lookahead(la_steps = 1, la_alpha = 0.4)
"""


def test_what_only_uses_others_comes_where_they_would(tmp_path: Path) -> None:
    """Behind the optimizer if they act on what it leaves, and then as the two one after the other."""
    (tmp_path / "mine.opt").write_text(MINE)
    (tmp_path / "both.opt").write_text(BOTH.format("Cautious"))
    (tmp_path / "around.opt").write_text(
        "transform Around:\n    step:\n        if t > 0:\n            use Both()\n"
    )
    (tmp_path / "clips.opt").write_text("transform Clips:\n    use ClipByGlobalNorm(max_norm = 0.5)\n")
    lookahead = "lookahead(la_steps = 1, la_alpha = 0.4)"
    for alone, apart in (
        ("both.opt", ["cautious", lookahead]),
        ("around.opt", ["cautious", lookahead]),
        ("clips.opt", ["clip_by_global_norm(max_norm = 0.5)"]),
    ):
        left = [steps(optdsl.load(tmp_path / "mine.opt", with_=with_)) for with_ in (alone, apart)]
        assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))
    (tmp_path / "torn.opt").write_text(BOTH.format("ClipByGlobalNorm"))
    with pytest.raises(
        ValueError, match=r"`torn\.opt` changes the gradient by `ClipByGlobalNorm` and acts .* by `Lookahead`"
    ):
        optdsl.load(tmp_path / "mine.opt", with_="torn.opt")


def test_its_plan_is_as_small_as_one_by_hand(tmp_path: Path) -> None:
    (tmp_path / "by_hand.opt").write_text(BY_HAND)
    costs = []
    for path, with_ in (
        (tmp_path / "by_hand.opt", []),
        (driver.locate("adamw"), ["clip_by_global_norm(max_norm = 0.5)", "cautious"]),
    ):
        program, _ = driver.program_of(path, with_)
        usual = explain(program, driver.simplify(program), Setting()).usual.account
        costs.append((usual.moved, len(usual.sweeps), usual.launches))
    assert costs[0] == costs[1]


def test_clipping_costs_one_read_of_the_gradient() -> None:
    program, _ = driver.program_of(driver.locate("adamw"), ["clip_by_global_norm"])
    usual = explain(program, driver.simplify(program), Setting()).usual.account
    assert (usual.moved, len(usual.sweeps), usual.launches) == (28 + 4, 2, 2)


def test_a_transform_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "mine.opt").write_text("optimizer Mine:\n    step:\n        p = p - 0.1 * g\n")
    (tmp_path / "halve.opt").write_text(TRANSFORM)
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optdsl.load(tmp_path / "mine.opt", with_="halve.opt")([p]).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.95))


def test_a_transform_of_ones_own_around_a_shipped_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From anywhere, and from the working directory; what it imports stands beside it."""
    folder = tmp_path / "my own (1)"
    folder.mkdir()
    (folder / "parts.opt").write_text("def scaled(x, factor): return factor * x\n")
    own = (
        'import "parts.opt"\n\ntransform Scaled:\n    hyper:\n        factor = 0.5\n'
        "    step:\n        g = scaled(g, factor)\n"
    )
    (folder / "scaled.opt").write_text(own)
    (tmp_path / "scaled.opt").write_text(own)
    (tmp_path / "parts.opt").write_text("def scaled(x, factor): return 10 * factor * x\n")
    monkeypatch.chdir(tmp_path)
    for text, wanted in ((f"{folder}/scaled.opt(factor = 0.25)", 0.975), ("./scaled.opt", 0.5)):
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        optimizer = optdsl.load("sgd", with_=text)
        assert optimizer.__name__ == "SGDWithScaled"
        optimizer([p], lr=0.1).step()
        torch.testing.assert_close(p.detach(), torch.full((3,), wanted))
    with pytest.raises(ValueError, match=r"two files of transforms are called `scaled\.opt`"):
        optdsl.load("sgd", with_=["scaled.opt", f"{folder}/scaled.opt"])
    assert main(["compile", "sgd", "-o", "out", "--with", "scaled.opt(fcator = 1.0)"]) == 1
    said = capsys.readouterr().err
    assert "scaled.opt(fcator = 1.0)" in said
    assert "did you mean `factor`" in said
    assert main(["compile", "sgd", "-o", "out", "--with", "scaled.opt"]) == 0
    assert sorted(path.name for path in Path("out").iterdir())[0] == "sgd_with_scaled.c"


def test_what_a_spec_imports_stays_in_its_folders(tmp_path: Path) -> None:
    """Where a caller's transform lies is nothing that another spec can reach."""
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "halve.opt").write_text(TRANSFORM)
    base = 'import "//halve.opt"\n\noptimizer Mine:\n    step:\n        p = p - 0.1 * g\n'
    (tmp_path / "mine.opt").write_text(base)
    with pytest.raises(SpecError, match=r"cannot find `//halve\.opt`"):
        optdsl.load(tmp_path / "mine.opt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip_global", "there is no transform `clip_global`; did you mean `clip_by_global_norm`"),
        ("(max_norm = 1.0)", "is not a transform, as in"),
        ("../halve.opt", f"none of that name beside the spec, in `{driver.locate('adamw').parent}`"),
        ("schedules", "`schedules` holds no transform"),
    ],
)
def test_transforms_that_there_are_not(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        optdsl.load("adamw", with_=text)


@pytest.mark.parametrize("with_", [None, 3, ["ema", 3]], ids=str)
def test_transforms_that_are_no_text(with_: Any, tmp_path: Path) -> None:
    wrong = "3" if with_ else "None"
    with pytest.raises(
        TypeError, match=f"`with_` is a transform as text, or a list of them, and {wrong} is no"
    ):
        optdsl.load("adamw", with_=with_)
    with pytest.raises(TypeError, match=f"and {wrong} is no text"):
        optdsl.compile(driver.locate("adamw"), out=tmp_path, with_=with_)


@pytest.mark.parametrize(("data", "code"), [(b"# \xfc\n", "E0002"), (b"#" * 70000, "E0003"), (None, "E0001")])
def test_a_spec_that_cannot_be_read(data: bytes | None, code: str, tmp_path: Path) -> None:
    """The message is the same with formats and transforms."""
    spec = tmp_path / "mine.opt"
    if data is not None:
        spec.write_bytes(data)
    for options in ({}, {"store": "q8"}, {"with_": "ema"}):
        (made,) = optdsl.compile(spec, out=tmp_path / "o", **options)
        assert [d.code for d in made.diagnostics] == [code]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "store",
    [
        "",
        "p",
        "q9",
        "f64",
        [],
        ["q8"],
        ("exp_avg", "q8"),
        5,
        True,
        *({"exp_avg": x} for x in (None, "", "f64", ["q8"])),
    ],
    ids=str,
)
def test_formats_that_there_are_not(store: Any, tmp_path: Path) -> None:
    """What was given is named, and what could have been; nothing is written."""
    value = store["exp_avg"] if isinstance(store, dict) else store
    message = f"{re.escape(repr(value))}.*f32, bf16, f16, bf16_sr, q8"
    with pytest.raises(ValueError, match=message):
        optdsl.load("adamw", store=store)
    with pytest.raises(ValueError, match=message):
        optdsl.compile(driver.locate("adamw"), out=tmp_path, store=store)
    assert not any(tmp_path.iterdir())


MANY = (
    *("clip_by_global_norm", "clip_by_value", "centralize", "grokfast", "normalize", "stable_gradient"),
    *("cautious", "decoupled_decay", "lookahead", "optimistic", "polyak_average", "trust_ratio"),
)


def test_many_transforms(tmp_path: Path) -> None:
    """However long all their names would be together, of the class and of its files."""
    cls = optdsl.load("adamw", with_=MANY)
    assert cls.__name__ == f"AdamWWith{len(MANY)}Transforms"
    store = {s.key: "q8_linear" for s in cls._states if s.level == "element"}
    assert len("_".join(MANY)) + len("_q8_linear".join(store)) > 255
    with_store = optdsl.load("adamw", with_=MANY, store=store)
    p = torch.nn.Parameter(torch.randn(64, 65))
    optimizer = with_store([p])
    p.grad = torch.randn(64, 65)
    optimizer.step()
    assert optimizer.state[p]["grok_exp_avg"].dtype is torch.uint8
    names = {}
    for fmt in ("q8_linear", "q8_sqrt"):
        (made,) = optdsl.compile(
            driver.locate("adamw"), out=tmp_path, with_=MANY, store=dict.fromkeys(store, fmt)
        )
        names[fmt] = made.files[0].stem
    assert len(set(names.values())) == 2
    longest = "X" * 60
    (tmp_path / "long.opt").write_text(MINE.replace("Mine", longest))
    assert optdsl.load(tmp_path / "long.opt", with_="cautious").__name__ == f"{'X' * 40}With1Transforms"


def test_no_format_at_all() -> None:
    adamw = optdsl.load("adamw")
    assert optdsl.load("adamw", store=None) is adamw
    assert optdsl.load("adamw", store={}) is adamw


@pytest.mark.parametrize(
    ("text", "message", "marked"),
    [
        ("clip_by_global_norm(max = 1.0)", "no hyperparameter `max`", "max = 1.0"),
        ("clip_by_global_norm (max_norm = -1.0)", "the default -1 of `max_norm` is not in", "-1.0"),
        ("clip_by_global_norm(max_norm = q)", "unknown name `q`", "q"),
        ("clip_by_global_norm(\n  max_norm = q\n)", "unknown name `q`", "q"),
        ("clip_by_global_norm(max_norm = )", "unexpected `)`", ")"),
        ("clip_by_global_norm(max_norm = (1.0, 2.0))", "takes one value, got 2", "max_norm = (1.0, 2.0)"),
        ("clip_by_global_norm(max_norm = 1.0", "`(` is never closed", "("),
        ("clip_by_global_norm(max_norm = 1.0 # no more", "`(` is never closed", "("),
        ("clip_by_global_norm(max_norm = 1.0))", "`)` closes nothing", ")"),
        ("clip_by_value)", "`)` closes nothing", ")"),
        ("clip_by_global_norm(max_norm = 1.0)\n    use SGD()", "unexpected `use`", "use"),
        ("clip_by_global_norm() as g", "`g` cannot name a prefix", "clip_by_global_norm() as g"),
        ("clip_by_global_norm() with g = p", "is a transform, which changes `g` itself", "g"),
        ("halve.opt(by = 2)", "`Halve` has no hyperparameter `by`", "by = 2"),
        ("cautious() as lr()", "unexpected `(`", "("),
    ],
)
def test_mistakes_in_options(text: str, message: str, marked: str, tmp_path: Path) -> None:
    """They are shown in the text that was given, beside one of another transform."""
    (tmp_path / "mine.opt").write_text("optimizer Mine:\n    step:\n        p = p - 0.1 * g\n")
    (tmp_path / "halve.opt").write_text(TRANSFORM)
    for with_ in ([text, "cautious"], ["centralize", text]):
        with pytest.raises(SpecError) as caught:
            optdsl.load(tmp_path / "mine.opt", with_=with_)
        found = caught.value.diagnostics[0]
        given = text.replace("\n", " ")
        assert message in found.message
        assert (found.path, found.span.line, found.source_line) == ("<transform>", 1, given)
        assert given[found.span.column - 1 : found.span.end_column - 1] == marked


def test_mistakes_between_transforms(tmp_path: Path) -> None:
    """What clashes is shown where it was asked for; what lies in the spec itself, there."""
    (tmp_path / "cautious.opt").write_text(TRANSFORM.replace("Halve", "Cautious"))
    (tmp_path / "mine.opt").write_text("optimizer Mine:\n    step:\n        p = p - 0.1 * g\n")
    with pytest.raises(SpecError) as caught:
        optdsl.load(tmp_path / "mine.opt", with_=["cautious", "cautious.opt"])
    found = caught.value.diagnostics[0]
    assert (found.code, found.path, found.source_line) == ("E0508", "<transform>", "cautious.opt")
    assert "is in `lib/cautious.opt` and in `cautious.opt`" in found.message
    (tmp_path / "mine.opt").write_text("optimizer Mine:\n    step:\n        p = p - q * g\n")
    with pytest.raises(SpecError) as caught:
        optdsl.load(tmp_path / "mine.opt", with_="cautious")
    (found,) = caught.value.diagnostics
    assert (found.path, found.span.line) == (str(tmp_path / "mine.opt"), 3)


def test_transforms_of_the_file_of_the_spec(tmp_path: Path) -> None:
    """They can be asked for; another one is not taken for one of them, nor for the optimizer, that has its name."""
    mine = "optimizer Mine:\n    step:\n        p = p - 0.1 * g\n"
    (tmp_path / "mine.opt").write_text(TRANSFORM + "\n\n" + mine)
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    optdsl.load(tmp_path / "mine.opt", with_="mine.opt")([p]).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, -0.05))
    orthograd = optdsl.load("orthograd", with_="orthograd")
    assert orthograd.__name__ == "OrthoGradSGDWithOrthoGrad"
    (tmp_path / "halve.opt").write_text(TRANSFORM)
    (tmp_path / "another.opt").write_text(TRANSFORM.replace("Halve", "Mine"))
    for name, called in (("halve.opt", "Halve"), ("another.opt", "Mine")):
        with pytest.raises(
            ValueError, match=rf"`{name}` is called `{called}`, and so is another spec of .*mine\.opt"
        ):
            optdsl.load(tmp_path / "mine.opt", with_=["cautious", name])


PULL = """transform Pull:
    hyper:
        rates = (slow: 0.1, fast: 0.2) in [0, 1)
        way = "(" in {"(", ")"}
    state:
        far = p
    step:
        far = far * slow
        p = p - (fast * p if way == ")" else 0)
"""


def test_options_with_brackets(tmp_path: Path) -> None:
    """Of tuples, of expressions, and in strings."""
    (tmp_path / "mine.opt").write_text("optimizer Mine:\n    step:\n        p = p - 0.1 * g\n")
    (tmp_path / "pull.opt").write_text(PULL)
    for text, fast in (
        ('pull.opt(rates = (0.1, 0.4), way = ")")', 0.4),
        ('pull.opt(slow = 0.2, fast = min(0.5, (1 + 1) * 0.1), way = ")")', 0.2),
        ('pull.opt(rates = (0.1, 0.4), way = "(")', 0.0),
    ):
        p = torch.nn.Parameter(torch.full((3,), 1.1))
        p.grad = torch.ones(3)
        optdsl.load(tmp_path / "mine.opt", with_=text)([p]).step()
        torch.testing.assert_close(p.detach(), torch.full((3,), 1 - fast))


def test_a_prefix_for_a_transform(tmp_path: Path) -> None:
    """The same one twice, which takes names that differ."""
    cls = optdsl.load("sgd", with_=["box(low = -1.0) as first", "box(low = -2.0) as second"])
    names = [hyper.name for hyper in cls._hypers]
    (made,) = optdsl.compile(driver.locate("sgd"), out=tmp_path, with_="box(low = -1.0) as first")
    assert made.files[0].stem == "sgd_with_box"
    assert names[-2:] == ["second_low", "second_high"]


def test_the_command_line(tmp_path: Path) -> None:
    words = ("compile", "adamw", "-o", "out", "--with", "clip_by_global_norm", "--store", "exp_avg=q8")
    assert "AdamWWithClipByGlobalNorm" in good(command(*words, cwd=tmp_path))
    stem = "adamw_with_clip_by_global_norm_exp_avg_q8"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{stem}{suffix}" for suffix in (".py", ".c", ".triton.py")
    }
    cls = class_of(imported(tmp_path / "out" / f"{stem}.py", "composed_outside"))
    p = torch.nn.Parameter(torch.ones(70, 70))
    p.grad = torch.ones(70, 70)
    optimizer = cls([p])
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype is torch.uint8
    assert optimizer.state[p]["exp_avg_sq"].dtype is torch.float32
    refused = command("compile", "adamw", "-o", "out", "--store", "exp=q8", cwd=tmp_path)
    assert refused.returncode == 2
    assert "AdamW has no state `exp`" in refused.stderr


def test_names_and_formats_as_they_are_written() -> None:
    assert store_of([]) is None
    assert store_of(["q8"]) == "q8"
    assert store_of(["a=q8", "b = bf16"]) == {"a": "q8", "b": "bf16"}
    with pytest.raises(ValueError, match="is for all states"):
        store_of(["q8", "a=q4"])
    with pytest.raises(ValueError, match="`--store a =q4`: `a` has been given a format already"):
        store_of(["a=q8", "b=q8", "a =q4"])
    assert module_of(Path("x/my.opt"), ["clip(a = 1)", "b.opt"], "q8") == "my_with_clip_b_q8"


# ---- the same output everywhere -----------------------------------------------------------------------------------


def test_the_output_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    (tmp_path / "x.opt").write_text(
        "optimizer X:\n    hyper:\n        w = 0.1 in [0, inf)\n        decouple = true\n    step:\n"
        "        s = norm(g)\n        p = p - s * (g + (w * p if decouple else 0))\n"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-m", "optdsl", "show", "x.opt"],
            cwd=tmp_path,
            env=environment(PYTHONHASHSEED=seed),
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "3", "5")
    }
    assert len(shown) == 1


def test_a_learning_rate_of_zero_where_the_range_leaves_it_out(tmp_path: Path) -> None:
    """Schedulers may end there, unless the step divides by it: that is refused, with nothing changed."""
    (tmp_path / "r.opt").write_text(
        "optimizer R:\n    hyper:\n        lr = 1e-3 in (0, inf)\n    step:\n        p = p - g / ((1 - 0.9^t) / lr)\n"
    )
    for flags in ({"foreach": False}, {"foreach": True}, {}):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = optdsl.load(tmp_path / "r.opt")([p], **flags)
        optimizer.param_groups[0]["lr"] = 0.0
        p.grad = torch.ones(3)
        with pytest.raises(ValueError, match=r"learning rate: 0\.0 .*R divides by it"):
            optimizer.step()
        assert torch.equal(p, torch.ones(3))
        assert not optimizer.state


def test_options_that_are_fixed_or_lists(tmp_path: Path) -> None:
    text = (
        "transform Stages:\n"
        "    hyper:\n"
        "        pair = (a: 1.0, b: 2.0)\n"
        "        factors = [1.0] in [0, inf)\n"
        "    step:\n"
        "        g = g * a * b * factors[t]\n"
    )
    (tmp_path / "stages.opt").write_text(text)
    (tmp_path / "mine.opt").write_text("optimizer Mine:\n    step:\n        p = p - g\n")
    cls = optdsl.load(
        tmp_path / "mine.opt", with_="stages.opt(fixed pair = (0.5, 3.0), factors = [2.0, 0.1])"
    )
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = cls([p])
    assert optimizer.param_groups[0]["factors"] == (2.0, 0.1)
    assert "pair" not in optimizer.param_groups[0]
    for wanted in (-3.0, -3.15, -3.3):
        p.grad = torch.ones_like(p)
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.full_like(p, wanted), rtol=1e-12, atol=0)
