"""Programs as equations: what the shipped ones look like, that nothing is ambiguous, and that nothing gets out."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optdsl.analysis.equations import latex, markdown, unicode
from optdsl.analysis.notation import RULES, Notation
from optdsl.analysis.plain import Unicode
from optdsl.analysis.steps import step
from optdsl.analysis.symbols import latex_symbols, unicode_symbols
from optdsl.analysis.tex import Latex
from optdsl.check import check_path, check_text
from optdsl.core import types as ty
from optdsl.core.ops import CORE, FACTS, Rule
from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Expr, TypeFault, call, const, var
from optdsl.ir.program import Assign, Hyper, Interval, Program, State
from tests import fuzz
from tests.analysis.reading import read, tree

SPECS = sorted(Path(__file__).resolve().parents[2].glob("specs/*.opt"))
G, P, X, Y, Z = (var(name, ty.element()) for name in "gpxyz")
NAMES = ("g", "p", "x", "y", "z", "mode", "values", *FACTS)
T = var("t", ty.host(Kind.INT))
TO = {
    "unicode": Unicode(unicode_symbols(NAMES), {}, streams=True),
    "latex": Latex(latex_symbols(NAMES), {}, streams=True),
}


def shipped(name: str) -> Program:
    return check_path(next(path for path in SPECS if path.stem == name)).require()


def checked(step: str, head: str = "") -> Program:
    lines = "".join(f"        {line}\n" for line in step.splitlines())
    return check_text(f"optimizer A:\n{head}    step:\n{lines}").require()


def program(*body: tuple[str, Expr], **changes: Any) -> Program:
    """A method without hyperparameters, whose last value of `p` is what it leaves."""
    assigns = tuple(Assign(f"{name}.{n}", name, expr) for n, (name, expr) in enumerate(body, 1))
    results = {a.source: a.var for a in assigns if a.source == "p"}
    return replace(Program("A", "", "", (), (), assigns, results), **changes)


# ---- what it looks like -----------------------------------------------------------------------------------

ADAMW = """\
p ← p (1 − η λ)
m ← β₁ m + (1 − β₁) g
v ← β₂ v + (1 − β₂) g²
if amsgrad:
    v_max ← max(v_max, v)
    root ← √(v_max)
else:
    root ← √v
p ← p − η / (1 − β₁ᵗ) · m / (root / √(1 − β₂ᵗ) + ε)
"""
LION = """\
p ← p (1 − η λ)
c ← β₁ m + (1 − β₁) g
p ← p − η sign(c)
m ← β₂ m + (1 − β₂) g
"""
SGD = """\
g ← g + λ p
if momentum ≠ 0:
    if t = 1:
        buf ← g
    else:
        buf ← momentum · buf + (1 − dampening) g
    if nesterov:
        g ← g + momentum · buf
    else:
        g ← buf
p ← p − η g
"""
LAMB = """\
if max_grad_norm ≠ ∞:
    g ← g / max(1, ‖g‖_all / max_grad_norm)
m ← β₁ m + (1 − β₁ if grad_averaging else 1) g
v ← β₂ v + (1 − β₂) g²
if bias_correction:
    u ← m / (1 − β₁ᵗ) / (√v / √(1 − β₂ᵗ) + ε) + λ p
else:
    u ← m / (√v + ε) + λ p
if λ ≠ 0 or always_adapt:
    p_norm ← min(‖p‖, max_trust_norm)
    u_norm ← ‖u‖
    trust ← p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1
    u ← u (min(trust, 1) if trust_clip else trust)
p ← p − η u
"""
ADAMW_LATEX = r"""\[
\begin{aligned}
& p \leftarrow p (1 - \eta \lambda) \\
& m \leftarrow \beta_{1} m + (1 - \beta_{1}) g \\
& v \leftarrow \beta_{2} v + (1 - \beta_{2}) g^{2} \\
& \text{if } \mathrm{amsgrad} \\
& \quad v_{\mathrm{max}} \leftarrow \max(v_{\mathrm{max}}, v) \\
& \quad \mathrm{root} \leftarrow \sqrt{v_{\mathrm{max}}} \\
& \text{else} \\
& \quad \mathrm{root} \leftarrow \sqrt{v} \\
& p \leftarrow p - \frac{\frac{\eta}{1 - \beta_{1}^{t}} m}{\frac{\mathrm{root}}{\sqrt{1 - \beta_{2}^{t}}} + \epsilon}
\end{aligned}
\]
"""
LION_PAGE = r"""# Lion

Lion: the sign of an interpolated momentum, found by program search.

## Hyperparameters

| name | symbol | default | range | meaning |
| --- | --- | --- | --- | --- |
| `lr` | $\eta$ | `0.0001` | `[0, inf)` | learning rate, 3 to 10 times below AdamW's |
| `beta1` in `betas` | $\beta_{1}$ | `0.9` | `[0, 1)` | interpolation of the update; decay of the momentum |
| `beta2` in `betas` | $\beta_{2}$ | `0.99` | `[0, 1)` | interpolation of the update; decay of the momentum |
| `weight_decay` | $\lambda$ | `0.0` | `[0, inf)` | decoupled weight decay |

## State

| name | symbol | one value per | starts at | key |
| --- | --- | --- | --- | --- |
| `m` | $m$ | element | $0$ | `exp_avg` |

## Step

$$
\begin{aligned}
& p \leftarrow p (1 - \eta \lambda) \\
& c \leftarrow \beta_{1} m + (1 - \beta_{1}) g \\
& p \leftarrow p - \eta \operatorname{sign}(c) \\
& m \leftarrow \beta_{2} m + (1 - \beta_{2}) g
\end{aligned}
$$

## Reference

Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675
"""


@pytest.mark.parametrize("name, text", [("adamw", ADAMW), ("lion", LION), ("sgd", SGD), ("lamb", LAMB)])
def test_shipped_methods_for_a_terminal(name: str, text: str) -> None:
    assert unicode(shipped(name)) == text


def test_adamw_in_latex() -> None:
    assert latex(shipped("adamw")) == ADAMW_LATEX


def test_a_page_about_lion() -> None:
    page = LION_PAGE.replace("`0.0`", "`0`")  # as `number` prints it
    assert markdown(shipped("lion")) == page


@pytest.mark.parametrize(
    "expr, plain, tex",
    [
        (call("sub", X, call("sub", Y, Z)), "x − (y − z)", "x - (y - z)"),
        (call("sub", call("sub", X, Y), Z), "x − y − z", "x - y - z"),
        (call("add", X, call("add", Y, Z)), "x + (y + z)", "x + (y + z)"),
        (call("div", call("div", X, Y), Z), "x / y / z", r"\frac{\frac{x}{y}}{z}"),
        (call("div", X, call("div", Y, Z)), "x / (y / z)", r"\frac{x}{\frac{y}{z}}"),
        (call("div", X, call("mul", Y, Z)), "x / (y z)", r"\frac{x}{y z}"),
        (call("mul", call("div", X, Y), Z), "x / y · z", r"\frac{x}{y} z"),
        (call("mul", X, call("mul", Y, Z)), "x (y z)", "x (y z)"),
        (call("mul", call("mul", X, Y), Z), "x y z", "x y z"),
        (call("mul", 2, call("div", X, Y)), "2 (x / y)", r"2 \cdot \frac{x}{y}"),
        (call("mul", X, 2), "x · 2", r"x \cdot 2"),
        (call("mul", call("sqrt", X), Y), "√x · y", r"\sqrt{x} y"),
        (call("mul", call("abs", X), call("abs", Y)), "|x| · |y|", r"\lvert x \rvert \cdot \lvert y \rvert"),
        (call("abs", call("abs", X)), "abs(|x|)", r"\operatorname{abs}(\lvert x \rvert)"),
        (call("neg", call("pow", X, 2)), "−x²", "-x^{2}"),
        (call("pow", call("neg", X), 2), "(−x)²", "(-x)^{2}"),
        (call("pow", call("pow", X, 2), 3), "(x²)³", "(x^{2})^{3}"),
        (call("pow", X, call("pow", Y, 2)), "x^(y²)", "x^{y^{2}}"),
        (call("pow", X, call("add", T, 1)), "xᵗ⁺¹", "x^{t + 1}"),
        (call("pow", X, -2), "x⁻²", "x^{-2}"),
        (call("pow", X, 0.5), "x^0.5", "x^{0.5}"),
        (call("pow", call("sqrt", X), 2), "(√x)²", r"\sqrt{x}^{2}"),
        (call("sqrt", call("pow", X, 2)), "√(x²)", r"\sqrt{x^{2}}"),
        (call("neg", call("neg", X)), "−(−x)", "-(-x)"),
        (call("add", X, call("neg", Y)), "x + (−y)", "x + (-y)"),
        (call("mul", X, -2.0), "x (−2)", "x (-2)"),
        (call("neg", call("mul", X, Y)), "−(x y)", "-(x y)"),
        (call("mul", call("neg", X), Y), "−x y", "-x y"),
        (call("matmul", G, call("matmul", call("transpose", G), G)), "g × (gᵀ × g)", r"g \times (g^{\top} \times g)"),
        (call("matmul", call("transpose", G), G), "gᵀ × g", r"g^{\top} \times g"),
        (call("min", call("min", X, Y), Z), "min(x, y, z)", r"\min(x, y, z)"),
        (call("min", X, call("min", Y, Z)), "min(x, min(y, z))", r"\min(x, \min(y, z))"),
        (call("select", call("lt", X, Y), 1.0, 0.0), "𝟙(x < y)", r"\mathbf{1}(x < y)"),
        (call("not", call("lt", X, Y)), "not (x < y)", r"\text{not } (x < y)"),
        (call("pow", call("reduce_sum", X, over="tensor"), 2), "(Σ(x))²", r"\left( \sum(x) \right)^{2}"),
        (call("reduce_mean", X, over="rows"), "mean_rows(x)", r"\operatorname{mean}_{\mathrm{rows}}(x)"),
    ],
)  # fmt: skip
def test_parentheses_stand_where_they_are_needed(expr: Expr, plain: str, tex: str) -> None:
    assert TO["unicode"].text(expr) == plain
    assert TO["latex"].text(expr) == tex
    for to in TO.values():
        assert read(to.text(expr), to) == tree(expr, to)


@pytest.mark.parametrize(
    "source, plain, tex",
    [
        ("norm(g)", "‖g‖", r"\lVert g \rVert"),
        ("norm(g, over=rows)", "‖g‖_rows", r"\lVert g \rVert_{\mathrm{rows}}"),
        ("norm1(g)", "‖g‖₁", r"\lVert g \rVert_{1}"),
        ("norm_inf(g)", "‖g‖_∞", r"\lVert g \rVert_{\infty}"),
        ("norm1(g, over=all)", "Σ_all(|g|)", r"\sum_{\mathrm{all}}(\lvert g \rvert)"),
        ("rms(g)", "rms(g)", r"\operatorname{rms}(g)"),
        (
            "norm(g / norm(p))",
            "norm(g / ‖p‖)",
            r"\operatorname{norm}\left( \frac{g}{\lVert p \rVert} \right)",
        ),
        ("norm(g)^2", "‖g‖²", r"\lVert g \rVert^{2}"),
        ("sum(g^2)", "Σ(g²)", r"\sum(g^{2})"),
        ("max(g) - max(g, p)", "max(g) − max(g, p)", r"\max(g) - \max(g, p)"),
        ("floor(g / 2)", "⌊g / 2⌋", r"\left\lfloor \frac{g}{2} \right\rfloor"),
        ("1e-8 * g", "1e-08 g", "10^{-8} g"),
        ("1.5e-8 * g", "1.5e-08 g", r"1.5\mathrm{e}{-}08 g"),
        ("g^1e-8", "g^1e-08", "g^{10^{-8}}"),
        ("newton_schulz(g)", "NewtonSchulz(g, 5)", r"\operatorname{NewtonSchulz}(g, 5)"),
        (
            "where(g > 0, 1, where(g < 0, 2, 3))",
            "1 if g > 0 else 2 if g < 0 else 3",
            r"\begin{cases} 1 & \text{if } g > 0 \\ 2 & \text{if } g < 0 \\ 3 & \text{otherwise} \end{cases}",
        ),
        ("g if first_step else 0", "g if t = 1 else 0", ""),
        ("g if not first_step else 0", "g if t ≠ 1 else 0", ""),
        ("inf * g", "∞ g", r"\infty g"),
        ("normal()", "𝒩(0, 1)", r"\mathcal{N}(0, 1)"),
        ("uniform() * bernoulli(0.5)", "𝒰₀(0, 1) Bernoulli₁(0.5)", ""),
        ("normal(stream=7) - normal(stream=7)", "𝒩₇(0, 1) − 𝒩₇(0, 1)", ""),
    ],
)
def test_patterns(source: str, plain: str, tex: str) -> None:
    program = checked(f"p = {source}")
    assert unicode(program) == f"p ← {plain}\n"
    if tex:
        assert f"p \\leftarrow {tex}\n" in latex(program)


def test_branches() -> None:
    head = "    hyper:\n        k = 3\n        flag = false\n"
    source = "if k == 1:\n    p = p - g\nelif k == 2:\n    if flag:\n        p = g\nelse:\n    p = 0 * p"
    program = checked(source, head)
    text = "if k = 1:\n    p ← p − g\nelif k = 2:\n    if flag:\n        p ← g\nelse:\n    p ← 0 p\n"
    assert unicode(program) == text
    assert r"& \text{else if } k = 2 \\" in latex(program)
    assert r"& \quad \text{if } \mathrm{flag} \\" in latex(program)
    assert r"& \quad \quad p \leftarrow g \\" in latex(program)


def test_a_branch_with_nothing_but_an_else() -> None:
    when = var("flag", ty.host(Kind.BOOL))
    hypers = (Hyper("flag", "flag", Kind.BOOL, False),)
    for condition, text in (
        (when, "not flag"),
        (call("not", when), "flag"),
        (call("eq", T, 3), "t ≠ 3"),
        (call("lt", T, 3), "not (t < 3)"),
        (var("first_step", ty.host(Kind.BOOL)), "t ≠ 1"),
    ):
        moved = Assign("p.1", "p", G, ((condition, False),))
        joined = Assign("p.2", "p", call("select", condition, P, moved.var))
        made = Program("A", "", "", hypers, (), (moved, joined), {"p": joined.var})
        assert unicode(made) == f"if {text}:\n    p ← g\n"


def test_an_empty_step_says_so() -> None:
    assert unicode(program()) == "p ← p\n"


def test_values_that_change_places() -> None:
    states = tuple(State(name, name, ty.element(), const(0.0)) for name in ("a", "b"))
    a, b = (var(name, ty.element()) for name in ("a", "b"))
    assert unicode(program(states=states, results={"a": b, "b": a})) == "a, b ← b, a\n"
    assert unicode(program(states=states, results={"a": G, "b": P})) == "a ← g\nb ← p\n"


# ---- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, plain, tex",
    [
        ("m", "m", "m"),
        ("beta1", "β₁", r"\beta_{1}"),
        ("eps", "ε", r"\epsilon"),
        ("lr", "η", r"\eta"),
        ("weight_decay", "λ", r"\lambda"),
        ("m_hat", "m̂", r"\hat{m}"),
        ("beta1_hat", "β\u0302₁", r"\hat{\beta}_{1}"),
        ("v_max", "v_max", r"v_{\mathrm{max}}"),
        ("mu_product", "μ_product", r"\mu_{\mathrm{product}}"),
        ("rho_inf", "ρ_∞", r"\rho_{\infty}"),
        ("eta_minus", "η₋", r"\eta_{-}"),
        ("x_t", "xₜ", "x_{t}"),
        ("t0", "t₀", "t_{0}"),
        ("x1_2", "x1_2", "x_{1,2}"),
        ("root_2", "root₂", r"\mathrm{root}_{2}"),
        ("root_hat", "root_hat", r"\mathrm{root\_hat}"),
        ("step_size", "step_size", r"\mathrm{step\_size}"),
        ("Sigma", "Sigma", r"\mathrm{Sigma}"),
        ("a1b2", "a1b2", r"\mathrm{a1b2}"),
    ],
)
def test_spelling(name: str, plain: str, tex: str) -> None:
    assert unicode_symbols([name])[name].text == plain
    assert latex_symbols([name])[name].text == tex


@pytest.mark.parametrize(
    "names",
    [
        ("lr", "eta"),
        ("eta", "lr"),
        ("lambd", "weight_decay", "lam"),
        ("eps", "epsilon"),
        ("beta1", "beta_1"),
        ("x1_2", "x_1_2", "x12", "x_12"),
        ("m_hat", "m_bar", "m"),
        ("β₁", "beta1", "\u200bm", "\u2060m", "m"),
    ],
)
def test_no_two_names_look_alike(names: tuple[str, ...]) -> None:
    for symbols in (unicode_symbols(names), latex_symbols(names)):
        assert len({symbol.text for symbol in symbols.values()}) == len(names)


def test_a_letter_of_its_own_comes_before_what_papers_call_so() -> None:
    symbols = unicode_symbols(["lr", "eta", "lambd", "weight_decay"])
    shown = {name: symbol.text for name, symbol in symbols.items()}
    assert shown == {"lr": "lr", "eta": "η", "lambd": "λ", "weight_decay": "weight_decay"}


# ---- totality ---------------------------------------------------------------------------------------------


def application(op: str) -> Call:
    """The operator on simple operands."""
    row = CORE[op]
    numbers: list[Expr] = [X, Y, Z]
    if op == "select":
        return call(op, call("lt", X, Y), Y, Z)
    if op == "newton_schulz":
        return call(op, X, 3)
    if op == "matrix_power":
        return call(op, call("gram", X), 0.5, 1e-3)
    if op == "along_axes":
        return call(op, call("gram", X), Y)
    if row.rule is Rule.REDUCE:
        return call(op, X, *[const(3.0)] * (row.arity - 1), over="rows")
    if op == "broadcast":
        return call(op, const(1.0), over="rows")
    if row.rule is Rule.LIST:
        return call(op, var("values", ty.host(Kind.LIST)), T)
    if row.rule is Rule.RANDOM:
        return call(op, *([const(0.5)] * row.arity), site=3)
    if op == "matmul":
        return call(op, X, call("transpose", Y))
    if row.takes == "bool":
        return call(op, *(call("lt", x, 0) for x in numbers[: row.arity]))
    return call(op, *numbers[: row.arity])


@pytest.mark.parametrize("style", TO)
def test_every_operator_is_written_in_its_own_way(style: str) -> None:
    to = TO[style]
    assert set(RULES) | set(to.FUNCTIONS) >= set(CORE)
    assert set(RULES) <= set(CORE)
    written = {}
    for op in CORE:
        expr = application(op)
        text = to.text(expr)
        assert text not in written, f"{op} and {written[text]} are both {text}"
        written[text] = op
        assert read(text, to) == tree(expr, to)


@pytest.mark.parametrize("style", TO)
def test_every_operator_in_every_place_of_every_other(style: str) -> None:
    to = TO[style]
    for outer in CORE:
        whole = application(outer)
        for place, old in enumerate(whole.args):
            for inner in CORE:
                part: Expr = application(inner)
                if part.type.kind is not old.type.kind or (outer, place) == ("newton_schulz", 1):
                    continue
                args = (*whole.args[:place], part, *whole.args[place + 1 :])
                options = {"site": whole.attr} if CORE[outer].rule is Rule.RANDOM else {"over": whole.attr}
                try:
                    expr = call(outer, *args, **options)  # type: ignore[arg-type]
                except TypeFault:  # of another shape
                    continue
                text = to.text(expr)
                assert read(text, to) == tree(expr, to), text


# ---- properties -------------------------------------------------------------------------------------------


def notations(program: Program) -> list[Notation]:
    return [
        step(program, Unicode, unicode_symbols).notation,
        step(program, Latex, latex_symbols).notation,
    ]


def test_what_is_written_can_be_read_back() -> None:
    for seed, made in fuzz.programs(100):
        with fuzz.about(seed, made):
            for to in notations(made):
                for expr in made.expressions():
                    text = to.text(expr)
                    assert read(text, to) == tree(expr, to), text


def test_a_random_program_can_be_written() -> None:
    for seed, made in fuzz.programs(300):
        with fuzz.about(seed, made):
            assert_sound(made)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_shipped_method_can_be_written(path: Path) -> None:
    made = check_path(path).require()
    assert_sound(made)
    for to in notations(made):
        for expr in made.expressions():
            assert read(to.text(expr), to) == tree(expr, to)


def assert_sound(made: Program) -> None:
    """Delimiters come in pairs, lines are what they promise to be."""
    text = unicode(made)
    assert text.isascii() or all(line.isprintable() for line in text.splitlines())
    unquoted = re.sub(r'"(\\.|[^"\\])*"', "", text)
    for line in unquoted.splitlines():
        assert re.fullmatch(r" *(?:.+ ← .+|(?:if|elif) .+:|else:)", line), line
        assert all(line.count(a) == line.count(b) for a, b in ("()", "⌊⌋", "⌈⌉")), line
        assert line.count("|") % 2 == line.count("‖") % 2 == 0, line
    tex = latex(made)
    assert tex.startswith("\\[\n\\begin{aligned}\n& ")
    assert tex.endswith("\n\\end{aligned}\n\\]\n")
    assert_balanced(tex)
    rows = tex.splitlines()[2:-2]
    assert all(row.endswith(" \\\\") for row in rows[:-1])
    assert not rows[-1].endswith("\\\\")
    page = markdown(made)
    assert page.count("$$") == 2
    assert tex[3:-4] in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def assert_balanced(tex: str) -> None:
    """Braces, \\left and \\right, environments and bars nest."""
    ends = {"}": "{", ")": "(", "\\rvert": "\\lvert", "\\rVert": "\\lVert", "\\]": "\\["}
    ends |= {"\\rfloor": "\\lfloor", "\\rceil": "\\lceil", "\\end": "\\begin"}
    ends |= {f"\\right{end}": f"\\left{begin}" for end, begin in ends.items()}
    stack: list[str] = []
    assert tex.isascii()
    bare = re.sub(r"\\text\{[^{}]*\}", "", tex)
    for token in re.findall(r"(?:\\left(?![a-z])|\\right(?![a-z]))?(?:\\(?:[A-Za-z]+|.)|[{}()])", bare):
        if token in ends.values():
            stack.append(token)
        elif token in ends:
            assert stack, tex
            assert stack.pop() == ends[token], tex
        assert token in ends.values() or not re.match(r"\\(left|right)(?![a-z])", token) or token in ends
    assert not stack, tex


# ---- strangers --------------------------------------------------------------------------------------------

HOSTILE = [
    r"\input{/etc/passwd}",
    "}}\\end{aligned}\\]<script>alert(1)</script>",
    "$$ x $$",
    "a_b^c%d#e&f~g{h}i|j",
    "\x1b[31mred\x07",
    "one\n\ntwo",
    "\u202egnp\u2066",
    "[x](javascript:alert(1)) ![i](http://example.org/i.png)",
    "` `` ```\n# heading\n| a | b |\n|---|---|",
    "<img src=x onerror=alert(1)>",
    "- list\n1. other\n===\n> quote",
    '"quoted" \\" \\\\',
    "*b* _i_ ~~s~~",
]


def hostile(text: str) -> Program:
    """A method with `text` wherever a spec can have a string, and as names, which the checker would refuse."""
    mode = var("mode", ty.host(Kind.CHOICE))
    name = text.replace(".", "")  # a dot begins the number of a version
    hypers = (
        Hyper("mode", "mode", Kind.CHOICE, text, choices=(text, "other"), doc=text),
        Hyper(name, text, Kind.FLOAT, 0.5, Interval(0, math.inf), doc=text),
    )
    states = (State("m", text, ty.element(), var(name, ty.host())),)
    choice = call("select", call("eq", mode, text), G, call("mul", var(name, ty.host()), G))
    body = (Assign("p.1", "p", call("sub", P, choice)),)
    return Program(text, text, text, hypers, states, body, {"p": body[0].var})


@pytest.mark.parametrize("text", HOSTILE)
def test_a_spec_cannot_break_out(text: str) -> None:
    made = hostile(text)
    plain = unicode(made)
    assert plain.count("\n") == 1
    assert plain[:-1].isprintable()
    tex = latex(made)
    assert_balanced(tex)
    assert tex.count("\n") == 5
    known = r"left|right|leftarrow|cdot|begin|end|text|mathrm|quad|backslash|vert|wedge|sim|lbrack|rbrack|ast"
    commands = set(re.findall(r"\\([A-Za-z]+)", re.sub(r"\\text\{[^{}]*\}", "", tex)))
    assert commands <= set(known.split("|"))
    assert set(re.findall(r"\\([^A-Za-z])", tex)) <= set("_#$%&{}[]\\")
    for inside in re.findall(r"\\text\{([^{}]*)\}", tex):
        assert not set(inside) & set("\\$#%&_^~{}<>|`")
    assert "%" not in tex.replace("\\%", "")
    assert not re.search(r"<[A-Za-z/!?]", tex)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_shows_strings_and_obeys_none(text: str) -> None:
    page = markdown(hostile(text))
    # what is in code spans and in mathematics is shown as it is
    body = page.split("\n$$\n")
    assert len(body) == 3
    shown = re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", body[0] + body[2])
    shown = re.sub(r"(?<!\\)\$[^$\n]*(?:\\\$[^$\n]*)*(?<!\\)\$", "", shown)
    assert not re.search(r"[<>]", shown)
    assert not re.search(r"(?<!\\)[\[\]*_~]", shown)
    assert all(ch.isprintable() or ch == "\n" for ch in page)
    headings = re.findall(r"^#+ .*", page, re.MULTILINE)
    assert headings[1:] == ["## Hyperparameters", "## State", "## Step", "## Reference"]
    assert not re.search(r"^(?:[-+=]|[0-9]+[.)])", shown, re.MULTILINE)
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert [len(table.splitlines()) for table in tables] == [4, 3]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_documentation_keeps_its_code_and_its_paragraphs() -> None:
    page = markdown(replace(shipped("lars"), doc="Uses `eta` and 2 * x_1.\nMore.\n\nAn open ` is one."))
    assert page.startswith("# Lars\n\nUses `eta` and 2 \\* x\\_1. More.\n\nAn open \\` is one.\n\n## Hyper")
