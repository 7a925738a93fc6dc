"""A spec may come from a stranger: whatever its texts and its file name hold, the generated files are inert.

The Python file holds texts in strings alone, the C file none at all: it is the same for all texts.
"""

import ast
import builtins
import inspect
import itertools
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optdsl import driver
from optdsl.backends.native import native as kernels_of
from optdsl.backends.torch import emit, python_names
from optdsl.backends.torch.standalone import standalone as inline
from optdsl.check import check_text
from optdsl.ir.text import quote
from optdsl.runtime.native import build
from tests.support import COMPILER, module_of, needs_compiler

#: Sets an attribute of `builtins` if it is ever run.
SET = "__import__('builtins').__dict__.__setitem__('optdsl_was_here', 1)"
HOSTILE = [
    '"',
    "'",
    '"""',
    "'''",
    '""""""',
    "*/",
    '*/\n#error "optdsl_was_here"\n/*',
    '"\n#include "/etc/passwd"\n#pragma GCC error "optdsl_was_here"\n',
    "??/\n*?/ //\\",
    "\\",
    '\\"\\"\\"',
    "ends with a backslash \\",
    'ends with a quote "',
    "{{ 7 * 7 }}",
    "{% for x in y %}{% endfor %}{# #}",
    "{0} {} {name!r} {" + SET + "}",
    "%s %(name)s %d %%",
    f'"""\n{SET}\n"""',
    f'"\n    {SET}\n    x = "',
    f'", parts=({SET},), choices=("',
    f"\\'+{SET}+\\'",
    f"\\x22\\x22\\x22\\n{SET}\\n",
    f"\\N{{QUOTATION MARK}}\\u0022 {SET}",
    f"first\n{SET}",
    f"\r{SET}\r\n{SET}",
    f"\u2028{SET}\u2029{SET}",
    f"\x85{SET}\x0b{SET}\x0c{SET}\x1c{SET}",
    f"#\n{SET}\n#",
    f"\x00{SET}\x00",
    "\x1b[31mred\x1b[0m \x07\x08",
    "\u202etxet desrever\u202c \u200b \ufeff",
    "é ß 語 🙂 ｐａｓｓ",
    "long " * 150,
    "\n".join(["many lines"] * 50),
    "a, (b], c} d) e" * 9,
    "Args:\n    params: nothing\n\nReturns:\n    >>> " + SET,
    "    indented\n\tby a tab\n  ",
    '__all__ = ["os"]\nimport os',
    "coding: utf-7",
]
NAMED = [pytest.param(text, id=str(number)) for number, text in enumerate(HOSTILE)]

SPEC = '''optimizer Victim:
    """{doc}"""
    cite: {cite}

    hyper:
        lr = 1e-2 in [0, inf)  {of_lr}
        betas = (beta1: 0.9, beta2: 0.99) in [0, 1)  {of_betas}
        mode = {first} in {{{first}, {second}}}  {of_mode}

    state:
        m = 0 as exp_avg

    step:
        m = beta1 * m + (1 - beta1) * g
        if mode == {second}:
            m = beta2 * m
        scale = sqrt(exp(lr if mode == {first} else log(2 * lr)))
        p = p - lr * m * tanh(max(m, scale if mode == {second} else 1.0))
'''


def docstring_of(text):
    """`text` between the quotes of a docstring of the language."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def spec(**texts):
    """The source of a spec with these texts, each in every place of its kind."""
    doc, cite, hyper = (texts.get(name, "text") for name in ("doc", "cite", "hyper"))
    first, second = texts.get("choices", ("one", "two"))
    note = quote(hyper)
    return SPEC.format(
        doc=docstring_of(doc),
        cite=quote(cite),
        of_lr=note,
        of_betas=note,
        of_mode=note,
        first=quote(first),
        second=quote(second),
    )


def both(text, file="victim.opt"):
    """The generated files for the source of a spec that has no mistakes: Python, C, Triton."""
    checked = check_text(text)
    assert checked.errors == (), [d.render() for d in checked.errors]
    program = driver.simplify(checked.program)
    native = kernels_of(program, file, "0" * 64, "victim", python_names(program), ["cpu", "triton"])
    assert native.reason is None
    return emit(program, file, "0" * 64, native), *(source.text for source in native.sources)


def emitted(text, standalone=False):
    """The generated Python file."""
    if not standalone:
        return both(text)[0]
    checked = check_text(text)
    assert checked.errors == (), [d.render() for d in checked.errors]
    return inline(emit(driver.simplify(checked.program), "victim.opt", "0" * 64))


class _Blank(ast.NodeTransformer):
    """Replaces what strings say; docstrings, notes and choices are the only texts a spec puts into a file."""

    def visit_Constant(self, node):
        return ast.Constant("") if isinstance(node.value, str) else node


def skeleton(text):
    """The code of a file without the contents of its strings, and everything that it calls."""
    tree = _Blank().visit(ast.parse(text))
    return ast.dump(tree), {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def runtime_and_method(text):
    """The two parts of a standalone file, without its header and docstring."""
    runtime, _, method = text[text.index("from __future__") :].partition("\nclass Victim")
    return runtime, f"class Victim{method}"


BENIGN = {alone: emitted(spec(), alone) for alone in (False, True)}
_, BENIGN_C, BENIGN_TRITON = both(spec())
CODE, ALLOWED = skeleton(BENIGN[False])
CODE_WITHOUT_KERNELS = skeleton(emit(driver.simplify(check_text(spec()).program), "victim.opt", "0" * 64))[0]
RUNTIME, METHOD = runtime_and_method(BENIGN[True])


def held(text, tmp_path=None, standalone=False):
    """Checks that a generated file holds the benign file's code, and runs it; gives the class."""
    if standalone:
        runtime, method = runtime_and_method(text)
        assert runtime == RUNTIME
        assert skeleton(method) == skeleton(METHOD)
        assert ast.parse(text)
    else:
        code, called = skeleton(text)
        assert called <= ALLOWED
        assert code in (CODE, CODE_WITHOUT_KERNELS)
    if tmp_path is None:
        space = {"__name__": "victim"}
        exec(compile(text, "victim.py", "exec"), space)
        made = space["Victim"]
    else:
        path = tmp_path / "victim_of_a_test.py"
        path.write_text(text)
        made = module_of(path).Victim
    assert not hasattr(builtins, "optdsl_was_here")
    return made


def seen(text):
    """`text` as a docstring shows it: blanks for what cannot be printed."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join("".join(c if c.isprintable() else " " for c in line.expandtabs(4)) for line in lines)


def words(text):
    return seen(text).split()


def test_the_allowed_calls_are_few():
    roots = {call.split("(")[0].split(".")[0] for call in ALLOWED}
    assert roots <= {"Hyper", "State", "Native", "Kernel", "super", "foreach", "host", "math", "fit", "m"}
    everything = skeleton(BENIGN[True])[1]
    assert not everything & {"eval", "exec", "compile", "open", "__import__", "print", "input"}


def documented(made, text):
    """Checks that the documentation of a class begins with `text`."""
    lines = inspect.getdoc(made).split("\n")
    expected = [line.strip() for line in seen(text).strip().split("\n")]
    assert [line.strip() for line in lines[: len(expected)]] == expected


def noted(made, text):
    """Checks that `text` stands in the documentation as the note on two arguments and as the citation."""
    doc = inspect.getdoc(made)
    assert words(doc.split("Reference:")[-1]) == words(text)
    told = [" ".join(line.split()).replace(" ,", ",") for line in doc.split("\n")]
    note = " ".join(words(text)).replace(" ,", ",")
    assert f"lr: {note or 'lr'}, in [0, inf) (default 0.01)" in told
    assert f"betas: {note or 'betas'} (beta1, beta2), in [0, 1) (default (0.9, 0.99))" in told


def chosen(made, first, second):
    """Checks that `first` and `second` are the choices of a class, to the letter."""
    (hyper,) = (item for item in made._hypers if item.name == "mode")
    lines = [text.replace("\r\n", "\n").replace("\r", "\n") for text in (first, second)]
    assert list(hyper.choices) == lines
    assert inspect.signature(made).parameters["mode"].default == lines[0]


@pytest.mark.parametrize("text", NAMED)
def test_documentation_is_inert_and_recoverable(text, tmp_path):
    documented(held(emitted(spec(doc=text)), tmp_path), text)


@pytest.mark.parametrize("text", NAMED)
def test_citations_and_notes_are_inert_and_recoverable(text):
    noted(held(emitted(spec(cite=text, hyper=text))), text)


@pytest.mark.parametrize("text", NAMED)
def test_choices_are_inert_and_exact(text):
    chosen(held(emitted(spec(choices=(text, text + "!")))), text, text + "!")
    moved = []
    for mode in (text, "text"):
        source = spec(choices=(mode, mode + "!"))
        made = held(emitted(source))
        for foreach in (False, True):
            p = torch.nn.Parameter(torch.ones(2))
            p.grad = torch.ones(2)
            made([p], foreach=foreach, mode=check_text(source).program.hyper("mode").choices[1]).step()
            moved.append(p[0].item())
    assert len(set(moved)) == 1
    assert moved[0] < 1


@pytest.mark.parametrize("text", NAMED)
def test_no_text_gets_into_the_c_file(text):
    found = both(spec(doc=text, cite=text, hyper=text, choices=(text, text + "!")))
    assert found[1:] == (BENIGN_C, BENIGN_TRITON)


@pytest.mark.parametrize("text", NAMED)
def test_a_standalone_file_is_as_inert(text, tmp_path):
    source = spec(doc=text, cite=text, hyper=text, choices=(text, text + "!"))
    made = held(emitted(source, standalone=True), tmp_path, standalone=True)
    documented(made, text)
    noted(made, text)
    chosen(made, text, text + "!")


@pytest.mark.parametrize("text", NAMED)
def test_every_stage_can_be_shown_and_read_back(text, tmp_path):
    path = tmp_path / "victim.opt"
    path.write_text(spec(doc=text, cite=text, hyper=text, choices=(text, text + "!")), newline="")
    shown = {stage: driver.show(path, stage) for stage in driver.STAGES}
    again = check_text(shown["opt"])
    assert again.errors == ()
    before = driver.check_path(path).program
    for name in ("lr", "mode"):
        assert again.program.hyper(name).choices == before.hyper(name).choices
        assert again.program.hyper(name).doc == before.hyper(name).doc
    assert again.program.cite == before.cite
    assert words(again.program.doc) == words(before.doc)
    held(shown["torch"])
    assert shown["cpu"].split("\n", 2)[2] == BENIGN_C.split("\n", 2)[2]


_LETTERS = st.one_of(
    st.sampled_from(["\\", '"', "'", "{", "}", "%", "#", "\n", "\r", "\t", " ", "\0", "\x85", "\u2028", "x"]),
    st.characters(exclude_categories=["Cs"]),
)
_TEXTS = st.text(_LETTERS, max_size=40)


@settings(max_examples=80, deadline=None)
@given(doc=_TEXTS, cite=_TEXTS, hyper=_TEXTS, first=_TEXTS, second=_TEXTS)
def test_any_texts_are_inert(doc, cite, hyper, first, second):
    source = spec(doc=doc, cite=cite, hyper=hyper, choices=(first, second + "!" + first))
    checked = check_text(source)
    assert checked.errors == (), [d.render() for d in checked.errors]
    python, c, kernels = both(source)
    assert (c, kernels) == (BENIGN_C, BENIGN_TRITON)
    made = held(python)
    assert words(doc) == words(inspect.getdoc(made))[: len(words(doc))]


# ---- names -----------------------------------------------------------------------------------------------

NOT_NAMES = [
    "x; import os",
    "x)",
    'x"',
    "x'",
    "__class__",
    "_x",
    "x.y",
    "é",
    "ｐａｓｓ",
    "x\u2028y",
    "x\0",
    "{{x}}",
    "x y",
    "lambda",
    "None",
    "1x",
    "x" * 5000,
    SET,
]
PLACES = {
    "optimizer": "optimizer {}:\n    hyper:\n        lr = 0.1\n    step:\n        p = p - lr * g\n",
    "hyper": "optimizer A:\n    hyper:\n        {} = 0.1\n    step:\n        p = p - {} * g\n",
    "part": "optimizer A:\n    hyper:\n        b = ({}: 0.1, c: 1.)\n    step:\n        p = p - {} * g * c\n",
    "state": "optimizer A:\n    state:\n        {} = 0\n    step:\n        {} = g\n        p = p - {}\n",
    "key": "optimizer A:\n    state:\n        m = 0 as {}\n    step:\n        m = g\n        p = p - m\n",
    "variable": "optimizer A:\n    step:\n        {} = 0.1 * g\n        p = p - {}\n",
    "function": "def {}(x): return x\n\noptimizer A:\n    step:\n        p = p - {}(g)\n",
    "parameter": "def f({}): return {}\n\noptimizer A:\n    step:\n        p = p - f(g)\n",
    "use": "optimizer A:\n    use {}()\n",
    "prefix": "optimizer A:\n    use SGD() as {}\n",
    "import": 'import "{}"\n\noptimizer A:\n    step:\n        p = p - g\n',
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NOT_NAMES)
def test_what_is_no_name_is_refused(place, name, tmp_path):
    path = tmp_path / "victim.opt"
    path.write_text(PLACES[place].replace("{}", name))
    (done,) = driver.compile(path)
    assert done.checked.errors
    assert done.files == ()
    assert {item.name for item in tmp_path.iterdir()} == {"victim.opt"}


#: Words with a meaning in Python, in torch or in a generated file.
LOADED_WORDS = [
    *("x", "y", "z", "q", "r", "keys", "key", "self", "state", "group", "facts", "random", "shaped", "whole"),
    *(
        "torch",
        "math",
        "host",
        "foreach",
        "axes",
        "Tensor",
        "Joint",
        "Any",
        "Hyper",
        "State",
        "Optimizer",
        "Facts",
    ),
    *(
        "zip",
        "len",
        "float",
        "tuple",
        "dict",
        "list",
        "str",
        "int",
        "bool",
        "object",
        "type",
        "print",
        "exec",
    ),
    *("match", "case", "property", "staticmethod", "as_matrix", "like", "row_sum", "tensor_max", "lr_1"),
    *("over_filters", "tensor_kth_largest"),
    *("defaults", "param_groups", "add_param_group", "zero_grad", "load_state_dict", "profile_hook_step"),
    *("m", "m_1", "p_1", "g_2", "os", "sys", "eval", "input", "values", "dtype", "device", "shape", "grad"),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensor_kth_largest", "kth_largest(g, 2)"),
        ("row_mean", "mean(g, over=rows)"),
        ("over_filters", "mean(g, over=filter)"),
    ],
)
@pytest.mark.parametrize("path", [False, True])
def test_a_value_may_have_the_name_of_the_function_that_makes_it(name, value, path):
    space = {"__name__": "victim"}
    checked = check_text(f"optimizer A:\n    step:\n        {name} = {value}\n        p = p - g * {name}\n")
    exec(emit(driver.simplify(checked.require()), "victim.opt", "0" * 64), space)
    p = torch.nn.Parameter(torch.ones(2, 2, 2))
    p.grad = torch.full((2, 2, 2), 0.5)
    space["A"]([p], foreach=path).step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2, 2), 0.75))


@pytest.mark.parametrize("word", LOADED_WORDS)
def test_loaded_words_are_names_like_any_other(word):
    texts = {
        place: PLACES[place].replace("{}", word) for place in ("hyper", "part", "state", "key", "variable")
    }
    moved = {}
    for place, text in texts.items():
        checked = check_text(text)
        if checked.program is None:
            assert {d.code for d in checked.errors} <= {"E0202", "E0301"}
            continue
        made = emitted(text)
        ast.parse(made)
        space = {"__name__": "victim"}
        exec(made, space)
        for path in (False, True):
            p = torch.nn.Parameter(torch.ones(2, 2))
            p.grad = torch.full((2, 2), 0.5)
            optimizer = space["A"]([p], foreach=path)
            optimizer.step()
            optimizer.step()
            moved[place, path] = p[0, 0].item()
    for place, text in texts.items():
        if (place, False) in moved:
            assert moved[place, False] == moved[place, True], text
            assert moved[place, False] < 1


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(("optimizer", name) for name in ("host", "foreach", "axes", "super")),
        ("hyper", "super"),
        *(("group key", name) for name in ("foreach", "maximize", "capturable", "differentiable", "fused")),
    ],
)
def test_names_that_a_generated_file_needs_are_refused(place, name):
    group_key = PLACES["key"].replace("m = 0", "m [group] = 0").replace("m = g", "m = m + 1")
    text = group_key if place == "group key" else PLACES[place]
    assert check_text(text.replace("{}", name)).errors


#: Words with a meaning in C, and those that kernels and their headers use.
C_WORDS = [
    *(
        "auto",
        "case",
        "char",
        "const",
        "default",
        "do",
        "double",
        "enum",
        "extern",
        "float",
        "goto",
        "inline",
        "int",
    ),
    *(
        "long",
        "register",
        "restrict",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "typedef",
    ),
    *(
        "union",
        "unsigned",
        "void",
        "volatile",
        "asm",
        "typeof",
        "main",
        "errno",
        "stdin",
        "NULL",
        "INFINITY",
        "NAN",
    ),
    *(
        "M_PI",
        "M_SQRT1",
        "linux",
        "omp",
        "simd",
        "define",
        "include",
        "kernels",
        "sign_",
        "fabs",
        "tanhf",
        "y0",
    ),
    *sorted(
        {word for word in re.findall(r"\b[A-Za-z]\w*\b", BENIGN_C[BENIGN_C.index("#if") :]) if len(word) < 12}
    ),
]
PARTS_OF_NAMES = [
    "x_1",
    "x_at",
    "x_part",
    "x_nan",
    "x_all",
    "x_sum",
    "part_of",
    "a0",
    "w0",
    "words0",
    "slot",
    "slot_1",
]


def usable(words, place):
    """Those of `words` that the language takes in a place."""
    return [word for word in words if check_text(PLACES[place].replace("{}", word)).program is not None]


def settings_of(source):
    """What a compiler needs to be told for every unit of a C file."""
    for unit in re.findall(r"^#if UNIT == (\d+)$", source, re.MULTILINE):
        yield [f"-DUNIT={unit}", "-DREAL=float", *(f"-DT{n}=f32" for n in range(source.count(",") + 2))]


@needs_compiler
def test_loaded_words_of_c_are_names_like_any_other(tmp_path):
    """As names of states, their keys, variables and options: the kernels do what the loop does."""
    words = usable(dict.fromkeys([*C_WORDS, *PARTS_OF_NAMES]), "variable")
    names = [word for word in words if word not in ("x", "M_PI", "M_SQRT1")]
    states = usable(names[::5], "state")
    keys = usable(names[1::5], "key")
    states = states[: len(keys)]
    hypers = usable(names[2::5], "hyper")
    lines = [
        "optimizer register:",
        "    hyper:",
        *(f"        {name} = 0.5" for name in hypers),
        "",
        "    state:",
    ]
    lines += [f"        {name} = 0 as {key}" for name, key in zip(states, keys, strict=False)]
    lines += ["", "    step:", "        x = g"]
    for name in [name for name in words if name not in ("x", *states, *hypers)]:
        lines += [f"        {name} = 0.5 * x + 0.125 * g"]
        # M_PI_2 and the like are macros
        lines += [f"        {name} = {name} + 0.25 * p"] * (4 if name.startswith("M_") else 1)
        lines += [f"        x = {name}"]
    for state, hyper in zip(states, hypers, strict=False):
        lines += [f"        {state} = {state} + {hyper} * x", f"        x = 0.5 * x + {state}"]
    lines += ["        p = p - 0.001 * x", ""]
    path = tmp_path / "words.opt"
    path.write_text("\n".join(lines))
    (done,) = driver.compile(path)
    assert done.checked.errors == (), [d.render() for d in done.checked.errors]
    made, results = module_of(done.files[0], "loaded_words_of_c").register, []
    for flags in ({"fused": True}, {"fused": False}):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
        optimizer = made([p], **flags)
        for _ in range(2):
            p.grad = torch.linspace(0.5, 1, 7, dtype=torch.float64)
            optimizer.step()
        results.append([p.detach(), *(optimizer.state[p][key] for key in keys[: len(states)])])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
    assert results[0][0].isfinite().all()
    assert len(names) > 100
    assert min(len(states), len(hypers)) > 15


@needs_compiler
def test_no_macro_is_called_as_a_value_could_be(tmp_path):
    """A value is called by a name of the spec, an underscore and a number."""
    (tmp_path / "victim.c").write_text(BENIGN_C)
    options = [f"-I{Path(build.__file__).parent}", "-std=gnu11", "-fopenmp", *next(settings_of(BENIGN_C))]
    run = subprocess.run(
        [COMPILER, "-dM", "-E", *options, tmp_path / "victim.c"], capture_output=True, text=True, check=True
    )
    found = re.findall(r"^#define ([A-Za-z]\w*_\d+)\b", run.stdout, re.MULTILINE)
    assert "#define INFINITY" in run.stdout
    assert found == []


def outline(kernels):
    """The kinds of nodes of a Triton file, in order: what it does, whatever its names."""
    return [type(node).__name__ for node in ast.walk(ast.parse(kernels))]


def test_names_that_no_checker_has_seen_end_no_comment():
    program = driver.simplify(check_text(spec()).program)
    name, key = "x */\n#error broken out\n/*", '*/\n"#error broken out'
    changed = replace(program, name=name, states=tuple(replace(s, key=key) for s in program.states))
    native = kernels_of(changed, "victim.opt", "0" * 64, "victim", python_names(changed), ["cpu", "triton"])
    c, kernels = (source.text for source in native.sources)
    assert c.count("\n") == BENIGN_C.count("\n")
    assert c.count("*/") == BENIGN_C.count("*/")
    assert "#error" not in c
    assert "#error" not in kernels
    assert outline(kernels) == outline(BENIGN_TRITON)
    ast.parse("\n".join(native.declarations))
    held_keys = [k for kernel in ast.literal_eval(_arrays("\n".join(native.declarations))) for k, _ in kernel]
    assert set(held_keys) == {key}


def _arrays(declarations):
    """The `arrays` of every kernel in a declaration, as the source of a list."""
    calls = [n for n in ast.walk(ast.parse(declarations)) if isinstance(n, ast.keyword) and n.arg == "arrays"]
    return f"[{', '.join(ast.unparse(call.value) for call in calls)}]"


# ---- file names ------------------------------------------------------------------------------------------

FILE_NAMES = [
    "a'b",
    'a"b',
    'a"""b',
    "a\nb",
    f"a\n{SET}",
    f"a\r{SET}",
    f"a\u2028{SET}",
    f"a\x85{SET}",
    "a`b",
    "a\\",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{0}",
    "%s",
    "#",
    " ",
    "__all__",
    "é",
    "__init__",
    "coding=utf-7",
    "-*- coding: rot13 -*-",
    ";import os",
    "x" * 200,
    "\udcff",
]


@pytest.mark.parametrize(
    ("name", "standalone"),
    [*((name, False) for name in FILE_NAMES), *((name, True) for name in FILE_NAMES[4::4])],
)
def test_file_names_are_inert(name, standalone, tmp_path):
    path = tmp_path / f"{name}.opt"
    try:
        path.write_text(spec())
    except (OSError, UnicodeError):
        pytest.skip("this file system does not take the name")
    (done,) = driver.compile(path, standalone=standalone)
    target = done.files[0]
    assert [file.suffix for file in done.files] == [".py", ".c", ".py"][: 1 if standalone else 3]
    assert {file.parent for file in done.files} == {tmp_path}
    assert {file.name.split(".")[0] for file in done.files} == {target.stem}
    assert target.stem.isidentifier()
    text = target.read_text()
    assert "49" not in text.split("\n")[0]
    made = held(text, tmp_path, standalone)
    assert made.__name__ == "Victim"
    head = text.split("\n")[:3]
    assert [line[0] for line in head] == ["#", "#", '"']
    if not standalone:
        c, kernels = (file.read_text() for file in done.files[1:])
        assert kernels.split("\n", 2)[2] == BENIGN_TRITON.split("\n", 2)[2]
        benign = BENIGN[False].split("\n")
        own = [line for line in text.split("\n") if "sha256=" not in line]
        assert len(own) == len(benign) - 2
        assert [re.sub(rf'"{target.stem}((?:\.\w+)+)"', r'"victim\1"', line) for line in own[2:]] == [
            line for line in benign[2:] if "sha256=" not in line
        ]
        first, second, rest = c.split("\n", 2)
        assert rest == BENIGN_C.split("\n", 2)[2]
        assert re.fullmatch(
            r"/\* Generated by optdsl \S+ from the spec `[\w.+-]+`\. Edit the spec, not this file\.", first
        )
        assert re.fullmatch(r" \* spec sha256 [0-9a-f]{64}, generator revision \d+, backend cpu", second)
        assert "/*" not in (first + second)[2:]
        assert "*/" not in first + second
        assert all(ch.isalnum() or (ch.isprintable() and ch.isascii()) for ch in first + second)


def test_a_hostile_file_loads_and_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / f"a\n{SET}.opt"
    path.write_text(spec(doc=HOSTILE[13], cite=HOSTILE[13], hyper=HOSTILE[13], choices=(HOSTILE[13], "two")))
    made = driver.load(path)
    assert made.__name__ == "Victim"
    if COMPILER:
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        made([p], fused=True).step()
        assert p[0] < 1
    assert not hasattr(builtins, "optdsl_was_here")


def test_pairs_of_hostile_texts():
    for first, second in itertools.pairwise(HOSTILE[:24]):
        held(emitted(spec(doc=first, cite=second, hyper=first + second, choices=(first, second))))
