"""The generated classes as users of torch meet them, their files, and the tables of the printer."""

import ast
import inspect
import itertools
import json
import math
import re
import typing
from dataclasses import replace

import pytest
import torch

import optdsl
from optdsl import driver
from optdsl.backends.torch import emit, printer
from optdsl.check import check_text
from optdsl.core.ops import CORE, Rule
from optdsl.ir.text import to_opt
from optdsl.runtime import foreach, host
from tests.support import PICKED, ROOT, class_of, good, module_of, python

FLAGS = {
    **{"foreach": None, "maximize": False, "capturable": False, "differentiable": False, "fused": None},
    "overwrite_grad": False,
    "store": None,
    "seed": None,
}
EVERY = pytest.mark.parametrize("name", PICKED)


@pytest.fixture
def cls(name):
    return optdsl.load(name)


def program_of(name):
    return driver.check_path(driver.locate(name)).require()


def parameter():
    return torch.nn.Parameter(torch.tensor([1.0, -2.0]))


def stepping(optimizer):
    """Takes a step with a gradient for every parameter."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


# ---- construction ----------------------------------------------------------------------------------------


@EVERY
def test_the_signature(name, cls):
    signature = inspect.signature(cls)
    assert next(iter(signature.parameters)) == "params"
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    options = [h.argument for h in program_of(name).hypers]
    assert list(signature.parameters) == ["params", *dict.fromkeys(options), *FLAGS]
    for flag, default in FLAGS.items():
        assert signature.parameters[flag].kind is inspect.Parameter.KEYWORD_ONLY
        assert signature.parameters[flag].default is default
    for option in options:
        assert signature.parameters[option].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert signature.parameters[option].default is not inspect.Parameter.empty


@EVERY
def test_everything_has_a_type(name, cls):
    for function in (cls.__init__, cls._live, cls._update, cls._update_foreach, cls._kernel):
        hints = typing.get_type_hints(function)
        assert set(hints) - {"return"} == set(inspect.signature(function).parameters) - {"self"}
        assert "return" in hints
    lr = typing.get_type_hints(cls.__init__)["lr"]
    assert lr == float | torch.Tensor


@EVERY
def test_a_misspelt_keyword_is_a_type_error(name, cls):
    for wrong in ("larning_rate", "weight_decai", "lrr", "param", "step"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}'"):
            cls([parameter()], **{wrong: 0.1})


@EVERY
def test_flags_are_keywords_only(name, cls):
    defaults = [p.default for p in inspect.signature(cls).parameters.values()][1 : -len(FLAGS)]
    cls([parameter()], *defaults)
    with pytest.raises(TypeError, match="positional argument"):
        cls([parameter()], *defaults, True)


@EVERY
def test_all_configuration_is_in_the_groups(name, cls):
    optimizer = cls([parameter()])
    program = program_of(name)
    known = {h.argument for h in program.hypers} | (set(FLAGS) - (set() if program.draws else {"seed"}))
    assert set(optimizer.defaults) == known
    assert set(optimizer.param_groups[0]) == {"params", *known}
    assert all(key.startswith("_") for key in set(vars(optimizer)) - {"defaults", "state", "param_groups"})


@EVERY
def test_flags_that_do_not_go_together(name, cls):
    p = [parameter()]
    with pytest.raises(RuntimeError, match=r"`fused` and `foreach` cannot be `True` together\."):
        cls(p, fused=True, foreach=True)
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        cls(p, fused=True, differentiable=True)
    cls(p, fused=False)
    stepping(cls(p, fused=True))
    if cls._not_capturable:
        with pytest.raises(RuntimeError, match=f"{cls.__name__} does not support `capturable`"):
            cls(p, capturable=True)
    else:
        stepping(cls(p, capturable=True))


@EVERY
@pytest.mark.parametrize(
    ("flags", "way"),
    [
        ({}, "native"),
        ({"fused": True}, "native"),
        ({"fused": False}, "loop"),
        ({"foreach": False}, "loop"),
        ({"foreach": True}, "foreach"),
        ({"capturable": True}, "loop"),
    ],
)
def test_which_way_a_step_takes(name, cls, flags, way, monkeypatch):
    """Native kernels by default, and where they are asked for."""
    if "capturable" in flags and cls._not_capturable:
        return
    taken = set()

    def noting(way, function):
        return staticmethod(lambda *arguments: taken.add(way) or function(*arguments))

    monkeypatch.setattr(cls, "_update", noting("loop", cls._update))
    monkeypatch.setattr(cls, "_update_foreach", noting("foreach", cls._update_foreach))
    p = parameter()
    p.grad = torch.ones_like(p)
    optimizer = cls([p], **flags)
    optimizer.step()
    assert optimizer.state[p]["step"] == 1
    assert (taken or {"native"}) == {way}


@EVERY
def test_sparse_gradients_are_refused_by_name(name, cls):
    p = parameter()
    optimizer = cls([p])
    p.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match=f"{cls.__name__} does not support sparse gradients"):
        optimizer.step()
    assert not optimizer.state


# ---- values outside their intervals ----------------------------------------------------------------------


def outside(hyper):
    """(value, error) pairs that a hyperparameter refuses, in the form of its constructor argument."""
    if hyper.kind == "bool":
        return [("yes", TypeError), (1, TypeError), (None, TypeError)]
    if hyper.kind == "choice":
        return [("nope", ValueError), (1, ValueError), (None, ValueError)]
    if hyper.many:
        good = 1 if hyper.kind == "int" else 1.0
        parts = [(value, error) for value, error in outside(replace(hyper, many=False)) if value != []]
        found = [((good, value), error) for value, error in parts if not isinstance(value, torch.Tensor)]
        return [*found, ([], ValueError), (good, TypeError), ("ab", TypeError), (None, TypeError)]
    low, high = map(float, hyper.interval[1:-1].split(","))
    if hyper.kind == "int":
        beyond = [(int(x), ValueError) for x in (low - 1, high + 1) if math.isfinite(x)]
        return [*beyond, (math.nan, TypeError), (0.5, TypeError), ("1", TypeError), (True, TypeError)]
    values = [math.nan]
    values += [math.nextafter(low, -math.inf), low - 1] if low > -math.inf else []
    values += [math.nextafter(high, math.inf), high + 1] if high < math.inf else []
    values += [low] if hyper.interval[0] == "(" else []
    values += [high] if hyper.interval[-1] == ")" and high < math.inf else []
    values += [math.inf] if hyper.interval[-1] == ")" and high == math.inf else []
    found = [(value, ValueError) for value in values] + [
        ("0.1", TypeError),
        (True, TypeError),
        ([], TypeError),
    ]
    found += [(torch.tensor(value), ValueError) for value in values[:1]]
    if not hyper.parts:
        return found
    good = [0.5 * (max(low, -1.0) + min(high, 1.0)) for _ in hyper.parts]
    wrong = [
        ((*good[:index], value, *good[index + 1 :]), error)
        for index in range(len(good))
        for value, error in found
    ]
    return [*wrong, ((*good, good[0]), ValueError), (good[0], ValueError), ("ab", ValueError)]


CASES = [
    pytest.param(name, hyper, id=f"{name}-{hyper.name}")
    for name in PICKED
    for hyper in optdsl.load(name)._hypers
]


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_wrong_values_are_refused_at_construction(name, cls, hyper):
    for value, error in outside(hyper):
        with pytest.raises(error, match=hyper.name.replace("_", ".") + "|learning rate|epsilon|beta"):
            cls([parameter()], **{hyper.name: value})
        with pytest.raises(error):
            cls([{"params": [parameter()], hyper.name: value}])
        optimizer = cls([parameter()])
        with pytest.raises(error):
            optimizer.add_param_group({"params": [parameter()], hyper.name: value})
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_wrong_values_are_refused_when_they_come_later(name, cls, hyper):
    for value, error in outside(hyper):
        if hyper.name == "lr" and not isinstance(value, str | torch.Tensor) and value == 0:
            continue  # a schedule may end at 0
        p = parameter()
        optimizer = cls([p])
        stepping(optimizer)
        before = p.detach().clone()
        optimizer.param_groups[0][hyper.name] = value
        with pytest.raises(error):
            stepping(optimizer)
        assert torch.equal(p, before)
        optimizer.param_groups[0][hyper.name] = optimizer.defaults[hyper.name]
        stepping(optimizer)


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_the_ends_of_an_interval_are_allowed_as_it_says(name, cls, hyper):
    if hyper.kind in ("bool", "choice"):
        values = [True, False] if hyper.kind == "bool" else hyper.choices
    else:
        low, high = map(float, hyper.interval[1:-1].split(","))
        values = [low] if hyper.interval[0] == "[" else [math.nextafter(low, math.inf)]
        values += [high] if hyper.interval[-1] == "]" else [math.nextafter(high, -math.inf)]
        if hyper.kind == "int":
            values = [int(value) for value in values]
        if hyper.interval.endswith("inf]"):
            values.append(None)
    for value in values:
        whole = [value] if hyper.many else (value,) * len(hyper.parts) if hyper.parts else value
        cls([parameter()], **{hyper.name: whole})


def refusal(make, options):
    """What is said about wrong options, or None."""
    try:
        make([parameter()], **options)
    except ValueError as error:
        return str(error)
    return None


WRONG = [
    *({"lr": -1.0}, {"lr": torch.ones(2)}, {"eps": -1.0}, {"betas": (1.0, 0.5)}, {"betas": (0.5, -0.1)}),
    *({"weight_decay": -1.0}, {"momentum": -0.5}, {"rho": 2.0}, {"lr_decay": -0.1}),
]


@pytest.mark.parametrize(
    "name", [n for n in PICKED if optdsl.load(n).__name__ in dir(torch.optim) and n != "adafactor"]
)
def test_refusals_are_in_the_words_of_torch(name, cls):
    peer, count = getattr(torch.optim, cls.__name__), 0
    for options in WRONG:
        theirs = refusal(peer, options) if set(options) <= set(inspect.signature(peer).parameters) else None
        if theirs is None:
            continue
        ours = refusal(cls, options)
        assert ours is not None, options
        assert ours.startswith(theirs)
        count += 1
    assert count


# ---- documentation and the file --------------------------------------------------------------------------


@EVERY
def test_the_docstring_holds_equations_arguments_and_citation(name, cls):
    program, doc = program_of(name), inspect.getdoc(cls)
    assert doc.startswith(program.doc.split("\n")[0])
    for line in program.doc.split("\n"):
        assert line.rstrip() in doc
    assert f"Reference: {program.cite}" in doc
    assert program.cite
    text = to_opt(driver.simplify(program)).split("\n    step:\n")[1]
    step = text.split("\n\n    eval:\n")[0].rstrip("\n").split("\n")
    equations = "\n".join(line[4:] for line in step)
    assert f"::\n\n{equations}\n\n" in doc
    arguments = doc.split("Args:\n")[1].split("\n\n")[0].split("\n")
    assert [line.split(":")[0].strip() for line in arguments] == list(inspect.signature(cls).parameters)
    lines = {line.split(":")[0].strip(): line for line in arguments}
    for hyper in cls._hypers:
        line = lines[hyper.name]
        default = inspect.signature(cls).parameters[hyper.name].default
        shown = re.search(r"\(default (.*)\)$", line)[1]
        assert eval(shown, {"inf": math.inf}) == (list(default) if hyper.many else default)
        assert hyper.interval in line
        assert all(part in line for part in hyper.parts)
        assert all(f'"{choice}"' in line for choice in hyper.choices)
        (note,) = {h.doc for h in program.hypers if h.argument == hyper.name}
        assert note
        assert note in line
    for state in program.states:
        assert re.search(rf"^    {state.name}: state", doc, re.MULTILINE)
        assert state.name == state.key or f"kept as `{state.key}`" in doc


@EVERY
def test_the_file(name):
    text = (ROOT / "generated" / f"{name}.py").read_text()
    module = module_of(ROOT / "generated" / f"{name}.py", f"generated_{name}")
    cls = class_of(module)
    assert module.__all__ == [cls.__name__]
    assert [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)] == module.__all__
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert all(line == line.rstrip() for line in text.split("\n"))
    assert "\t" not in text
    code = text.split('"""', 4)[4]
    assert max(map(len, code.split("\n"))) <= 160
    head = text.split("\n")[:2]
    assert head[0].startswith(f"# Generated by optdsl {optdsl.__version__} from the spec `{name}.opt`. ")
    assert driver.source_hash(driver.locate(name)) in head[1]
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    imported = {
        alias.asname or alias.name
        for node in ast.parse(text).body
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__"
        for alias in node.names
    }
    assert imported <= used | set(re.findall(r"\w+", code)), "an import that nothing uses"


ALONE = """
import importlib.util, json, pathlib, sys
import torch
found = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    if path.suffixes != [".py"]:
        continue
    spec = importlib.util.spec_from_file_location("alone_" + path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cls = getattr(module, module.__all__[0])
    if path.stem not in sys.argv[2:]:
        continue
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = cls([p], lr=0.1)
    for _ in range(2):
        p.grad = torch.tensor([0.5, -0.25])
        optimizer.step()
    found[path.stem] = p.tolist()
loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("optdsl", "lark"))
print(json.dumps([found, loaded]))
"""


def test_generated_modules_need_the_runtime_alone(tmp_path):
    found, loaded = json.loads(good(python("-c", ALONE, ROOT / "generated", *PICKED, cwd=tmp_path)))
    assert sorted(found) == PICKED
    assert all(name in ("optdsl", "optdsl.runtime") or name.startswith("optdsl.runtime.") for name in loaded)
    for name, values in found.items():
        p = parameter()
        optimizer = optdsl.load(name)([p], lr=0.1)
        for _ in range(2):
            p.grad = torch.tensor([0.5, -0.25])
            optimizer.step()
        assert p.tolist() == values
        assert p.tolist() != [1.0, -2.0]


# ---- tables ----------------------------------------------------------------------------------------------


def test_the_printer_spells_every_operator():
    assert set(CORE) == printer.SPELLED


def _spelling(op, kinds):
    """A spec that uses a core operator on arguments of these kinds, and writes its result into a state."""
    row = CORE[op]
    host_result = all(kind == "host" for kind in kinds)
    values = {"element": ["0.5 * g", "p", "g"], "tensor": ["0.5 * norm(g)", "mean(p)", "sum(g)"]}
    values |= {"host": ["0.3 * a", "a", "1 - a"], "group": ["0.25 * d", "d", "d"]}
    number = lambda index, kind: values[kind][index]  # noqa: E731
    condition = lambda index, kind: f"({values[kind][index]} > 0.4)"  # noqa: E731
    boolean = row.takes == "bool"
    args = [(condition if boolean else number)(index, kind) for index, kind in enumerate(kinds)]
    if op == "select":
        args[0] = condition(0, kinds[0])
    if op in ("newton_schulz", "reduce_kth_largest"):
        args[1] = "3"
    match op:
        case "neg" | "not":
            text = ("-" if op == "neg" else "not ") + f"({args[0]})"
        case "select":
            text = f"where({', '.join(args)})"
        case "transpose":
            text = f"g @ ({args[0]})' @ g"
        case "matmul":
            text = f"({args[0]}) @ g'  @ p"
        case "identity":
            text = "along_axes(identity(), g)"
        case "gram":
            text = f"along_axes(gram({args[0]}), p)"
        case "matrix_power":
            text = f"along_axes(matrix_power(gram({args[0]}), -0.5, 0.1), p)"
        case "along_axes":
            text = f"along_axes(gram({args[0]}), {args[1]})"
        case "broadcast":
            return None
        case "entry":
            text = "f[1 + a]"
        case "count_upto":
            text = "count(f <= a)"
        case _ if row.symbol:
            text = f"({args[0]}) {row.symbol} ({args[1]})"
        case _ if row.rule is Rule.RANDOM:
            text = f"{op}({'0.5' if op == 'bernoulli' else ''})"
        case _:
            text = f"{op.removeprefix('reduce_')}({', '.join(args)})"
    if row.result == "bool":
        text = f"(1.0 if {text} else 2.0)" if host_result else f"where({text}, 1.0, 2.0)"
    return f"""optimizer Spells:
    hyper:
        lr = 0.1 in [0, inf)
        a = 0.5 in [0.1, 0.9]
        f = [0.5, 2.0]

    state:
        d [group] = 0.5
        kept = 0

    step:
        d = d + 0 * f[1]
        x = {text}
        kept = x + 0 * g
        p = p - lr * kept
"""


def _cases():
    for op, row in CORE.items():
        if row.rule is Rule.ELEMENTWISE:
            levels = ("host", "group", "tensor", "element")
            for kinds in itertools.product(levels, repeat=row.arity):
                yield op, kinds
        else:
            yield op, ("element",) * row.arity


@pytest.mark.parametrize("op", CORE)
def test_every_spelling_runs_and_agrees_on_all_paths(op):
    """Each operator on values of each combination of levels; the foreach path equals the for-loop path."""
    count = 0
    for _, kinds in (case for case in _cases() if case[0] == op):
        text = _spelling(op, kinds)
        if text is None:
            continue
        checked = check_text(text)
        assert not checked.errors, [d.render() for d in checked.errors]
        space = {"__name__": "spelled"}
        exec(emit(driver.simplify(checked.program), "spells.opt", "0" * 64), space)
        kept = []
        for flags in ({"foreach": False}, {"foreach": True}):
            params = [torch.nn.Parameter(torch.tensor([[0.5, -0.25], [0.75, 1.0]])) for _ in range(2)]
            optimizer = space["Spells"](params, **flags)
            for p in params:
                p.grad = torch.tensor([[0.9, 0.5], [-0.25, 0.1]])
            optimizer.step()
            kept.append([optimizer.state[p]["kept"] for p in params])
            assert all(x.shape == (2, 2) and x.dtype is torch.float32 for x in kept[-1])
        for mine, other in zip(*kept, strict=True):
            torch.testing.assert_close(
                mine, other, rtol=1e-6, atol=1e-6, equal_nan=True, msg=lambda t, k=kinds: f"{k} {t}"
            )
        count += 1
    assert count or op == "broadcast"


def test_every_function_that_the_printer_may_call_exists():
    for op, row in CORE.items():
        if row.rule is Rule.LIST:
            assert callable(getattr(host, op)), op
        if row.rule is not Rule.ELEMENTWISE or op == "broadcast":
            continue
        name = printer._FOREACH_NAMES.get(op, op)
        assert callable(getattr(foreach, name)), name
        if op in printer._OVERWRITING:
            assert callable(getattr(foreach, f"{op}_")), op
        if op in ("and", "or", "not", "add", "sub", "mul", "neg", *printer._COMPARES):
            continue  # Python has these
        assert callable(getattr(host, printer._HOST_NAMES.get(op, op))), op
    for name in ("add_scaled", "addcmul", "addcdiv"):
        assert callable(getattr(foreach, name))
        assert callable(getattr(foreach, f"{name}_"))
