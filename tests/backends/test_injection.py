"""A spec may come from a stranger: whatever its texts and its file name hold, the generated file is inert."""

import ast
import builtins
import inspect
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optdsl import driver
from optdsl.backends.torch import emit
from optdsl.backends.torch.standalone import standalone as inline
from optdsl.check import check_text
from optdsl.ir.text import quote
from tests.support import module_of

#: Sets an attribute of `builtins` if it is ever run.
SET = "__import__('builtins').__dict__.__setitem__('optdsl_was_here', 1)"
HOSTILE = [
    '"',
    "'",
    '"""',
    "'''",
    '""""""',
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


def emitted(text, standalone=False):
    """The generated file for the source of a spec that has no mistakes."""
    checked = check_text(text)
    assert checked.errors == (), [d.render() for d in checked.errors]
    made = emit(driver.simplify(checked.program), "victim.opt", "0" * 64)
    return inline(made) if standalone else made


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
CODE, ALLOWED = skeleton(BENIGN[False])
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
        assert code == CODE
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
    assert roots <= {"Hyper", "State", "super", "foreach", "host", "fit", "m"}
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
    made = held(emitted(source))
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
    *("torch", "math", "host", "foreach", "Tensor", "Joint", "Any", "Hyper", "State", "Optimizer", "Facts"),
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
    *("defaults", "param_groups", "add_param_group", "zero_grad", "load_state_dict", "profile_hook_step"),
    *("m", "m_1", "p_1", "g_2", "os", "sys", "eval", "input", "values", "dtype", "device", "shape", "grad"),
]


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
        *(("optimizer", name) for name in ("host", "foreach", "super")),
        ("hyper", "super"),
        *(("group key", name) for name in ("foreach", "maximize", "capturable", "differentiable", "fused")),
    ],
)
def test_names_that_a_generated_file_needs_are_refused(place, name):
    group_key = PLACES["key"].replace("m = 0", "m [group] = 0").replace("m = g", "m = m + 1")
    text = group_key if place == "group key" else PLACES[place]
    assert check_text(text.replace("{}", name)).errors


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
    (target,) = done.files
    assert target.parent == tmp_path
    assert target.stem.isidentifier()
    text = target.read_text()
    assert "49" not in text.split("\n")[0]
    made = held(text, tmp_path, standalone)
    assert made.__name__ == "Victim"
    head = text.split("\n")[:3]
    assert [line[0] for line in head] == ["#", "#", '"']
    if not standalone:
        benign = BENIGN[False].split("\n")
        assert len(text.split("\n")) == len(benign)
        assert text.split("\n")[2:] == benign[2:]


def test_a_hostile_file_loads_and_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / f"a\n{SET}.opt"
    path.write_text(spec(doc=HOSTILE[13], cite=HOSTILE[13], hyper=HOSTILE[13], choices=(HOSTILE[13], "two")))
    assert driver.load(path).__name__ == "Victim"
    assert not hasattr(builtins, "optdsl_was_here")


def test_pairs_of_hostile_texts():
    for first, second in itertools.pairwise(HOSTILE[:24]):
        held(emitted(spec(doc=first, cite=second, hyper=first + second, choices=(first, second))))
