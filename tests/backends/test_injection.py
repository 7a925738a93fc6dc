"""A spec may come from a stranger: whatever its texts and its file name hold, the generated file is inert."""

import ast
import builtins
import inspect
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optdsl import driver
from optdsl.check import check_text
from optdsl.ir.text import quote
from tests.support import NAMES, class_of, module_of

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
    "long " * 1500,
    "\n".join(["many lines"] * 400),
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
        p = p - lr * m
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


def emitted(text, path="victim.opt", standalone=False):
    """The generated file for the source of a spec that has no mistakes."""
    checked = check_text(text)
    assert checked.errors == (), [d.render() for d in checked.errors]
    return driver_emit(driver.simplify(checked.program), path, standalone)


def driver_emit(program, path, standalone):
    found = Path(path)
    original = driver.source_hash
    driver.source_hash = lambda _: "0" * 64
    try:
        return driver.emit(program, found, "torch", standalone)
    finally:
        driver.source_hash = original


class _Blank(ast.NodeTransformer):
    """Replaces what strings say; docstrings, notes and choices are the only texts a spec puts into a file."""

    def visit_Constant(self, node):
        return ast.Constant("") if isinstance(node.value, str) else node


def skeleton(text):
    """The code of a file without the contents of its strings."""
    return ast.dump(_Blank().visit(ast.parse(text)))


def calls(text):
    """Everything that is called anywhere in a file."""
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}


BENIGN = {alone: emitted(spec(), standalone=alone) for alone in (False, True)}
ALLOWED = {alone: calls(text) for alone, text in BENIGN.items()}
SKELETON = {alone: skeleton(text) for alone, text in BENIGN.items()}


def held(text, tmp_path=None, standalone=False):
    """Checks that a generated file holds the benign file's code, and runs it; gives the class."""
    assert calls(text) <= ALLOWED[standalone]
    assert skeleton(text) == SKELETON[standalone]
    space = {"__name__": "victim"}
    if tmp_path is None:
        exec(compile(text, "victim.py", "exec"), space)
    else:
        path = tmp_path / "victim.py"
        path.write_text(text)
        space = vars(module_of(path))
    assert not hasattr(builtins, "optdsl_was_here")
    return space["Victim"]


def seen(text):
    """`text` as a docstring shows it: blanks for what cannot be printed."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join("".join(c if c.isprintable() else " " for c in line.expandtabs(4)) for line in lines)


def words(text):
    return seen(text).split()


def test_the_allowed_calls_are_few():
    assert ALLOWED[False] == {
        *("Hyper", "State", "super", "super().__init__"),
        *("foreach.add_scaled", "foreach.add_scaled_", "foreach.mul", "foreach.mul_"),
    }
    assert not ALLOWED[True] & {"eval", "exec", "compile", "open", "__import__", "print", "input"}


@pytest.mark.parametrize("standalone", [False, True])
@pytest.mark.parametrize("text", NAMED)
def test_documentation_is_inert_and_recoverable(text, standalone, tmp_path):
    made = held(emitted(spec(doc=text), standalone=standalone), tmp_path, standalone)
    assert words(inspect.getdoc(made))[: len(words(text))] == words(text)
    lines = inspect.getdoc(made).split("\n")
    expected = [line.strip() for line in seen(text).strip().split("\n")]
    assert [line.strip() for line in lines[: len(expected)]] == expected


@pytest.mark.parametrize("standalone", [False, True])
@pytest.mark.parametrize("text", NAMED)
def test_citations_and_notes_are_inert_and_recoverable(text, standalone):
    made = held(emitted(spec(cite=text, hyper=text), standalone=standalone), standalone=standalone)
    doc = inspect.getdoc(made)
    assert words(doc.split("Reference: ")[-1]) == words(text)
    for name in ("lr", "mode"):
        (line,) = (line for line in doc.split("\n") if line.startswith(f"    {name}: "))
        assert line.split()[1 : 1 + len(words(text))] == [*words(text)[:-1], *words(text)[-1:]] or line.split()[
            1:
        ][: len(words(text)) - 1] == words(text)[:-1]


@pytest.mark.parametrize("standalone", [False, True])
@pytest.mark.parametrize("text", NAMED)
def test_choices_are_inert_and_exact(text, standalone):
    other = text + "!"
    source = spec(choices=(text, other))
    made = held(emitted(source, standalone=standalone), standalone=standalone)
    (hyper,) = (item for item in made._hypers if item.name == "mode")
    read = check_text(source).program.hyper("mode").choices
    assert hyper.choices == read
    assert read == (text.replace("\r\n", "\n").replace("\r", "\n"),) * 0 + read
    assert inspect.signature(made).parameters["mode"].default == read[0]


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
    held(shown["torch"])


_LETTERS = st.one_of(
    st.sampled_from(["\\", '"', "'", "{", "}", "%", "#", "\n", "\r", "\t", " ", "\0", "\x85", "\u2028", "x"]),
    st.characters(exclude_categories=["Cs"]),
)
_TEXTS = st.text(_LETTERS, max_size=40)


@settings(max_examples=150, deadline=None)
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
    "part": "optimizer A:\n    hyper:\n        b = ({}: 0.1, c: 0.2)\n    step:\n        p = p - {} * c * g\n",
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
    *("zip", "len", "float", "tuple", "dict", "list", "str", "int", "bool", "object", "type", "print", "exec"),
    *("match", "case", "property", "staticmethod", "as_matrix", "like", "row_sum", "tensor_max", "lr_1"),
    *("defaults", "param_groups", "add_param_group", "zero_grad", "load_state_dict", "profile_hook_step"),
    *("m", "m_1", "p_1", "g_2", "os", "sys", "eval", "input", "values", "dtype", "device", "shape", "grad"),
]


@pytest.mark.parametrize("word", LOADED_WORDS)
def test_loaded_words_are_names_like_any_other(word):
    import torch

    texts = {place: PLACES[place].replace("{}", word) for place in ("hyper", "part", "state", "key", "variable")}
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
    "é",
    "__all__",
    "__init__",
    "coding=utf-7",
    "-*- coding: rot13 -*-",
    ";import os",
    "x" * 200,
    "\udcff",
]


@pytest.mark.parametrize("standalone", [False, True])
@pytest.mark.parametrize("name", FILE_NAMES)
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


def test_the_shipped_files_call_nothing_else():
    """The allow-list of the whole zoo: what a generated file may call at all."""
    found = set()
    for name in NAMES:
        found |= calls(driver.show(driver.locate(name), "torch"))
    plain = {item.split(".")[0] for item in found if item.replace("_", "").replace(".", "").isalnum()}
    expected = {"Hyper", "State", "Joint", "super", "foreach", "host", "torch", "zip", "len", "as_matrix", "like"}
    lists = {"row", "col", "tensor"}
    values = {item for item in plain if item not in expected and item.split("_")[0] not in lists}
    assert not values & set(dir(builtins)), values
    assert class_of  # the classes are run in the other modules


def test_pairs_of_hostile_texts():
    for first, second in itertools.pairwise(HOSTILE[:24]):
        held(emitted(spec(doc=first, cite=second, hyper=first + second, choices=(first, second))))
