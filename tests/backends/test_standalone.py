"""`--standalone` files step as the normal classes do, in a process that has torch and no optdsl."""

import ast
import inspect
import sys

import pytest
import torch

import optdsl
from optdsl import driver
from tests.support import PICKED, ROOT, class_of, files, good, module_of, python

pytestmark = pytest.mark.xdist_group("standalone")

#: What the process without optdsl and this one both do with a class. The last line of a run is the result.
STEPS = '''
import torch

SHAPES = [(3, 4), (5,), (), (0,), (2, 3, 2, 2)]
PATHS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
}


def trajectory(cls, path, dtype):
    """Parameters and states after four steps, in two groups, with a checkpoint and a late parameter."""
    generator = torch.Generator().manual_seed(5)
    params = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    if path != "differentiable":
        params = [torch.nn.Parameter(p) for p in params]

    def make():
        return cls([{"params": params[:3]}, {"params": params[3:], "lr": 0.02}], lr=0.01, **PATHS[path])

    try:
        optimizer = make()
    except RuntimeError as error:
        return str(error)
    for number in range(4):
        for index, p in enumerate(params):
            value = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
            p.grad = None if number == 0 and index == 1 else value
        optimizer.step()
        if number == 1:
            saved = optimizer.state_dict()
            optimizer = make()
            optimizer.load_state_dict(saved)
    states = [sorted(optimizer.state[p].items()) for p in params]
    return [p.detach() for p in params], [[(k, v.detach()) for k, v in each] for each in states]


def everything(cls):
    """All trajectories of a class, and what it says about wrong options."""
    found = {(path, str(dtype)): trajectory(cls, path, dtype) for path in PATHS for dtype in DTYPES}
    for wrong in ({"lr": -1.0}, {"nope": 1}, {"fused": True, "foreach": True}):
        try:
            cls([torch.nn.Parameter(torch.ones(1))], **wrong)
        except (ValueError, TypeError, RuntimeError) as error:
            found[str(wrong)] = f"{type(error).__name__}: {error}"
    return found


DTYPES = (torch.float32, torch.float64, torch.bfloat16)
'''

PROCESS = (
    """
import importlib.util, pathlib, sys


class NoOptdsl:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "optdsl":
            raise AssertionError("a standalone file imports " + name)


sys.meta_path.insert(0, NoOptdsl())
"""
    + STEPS
    + """
found = {}
for path in sorted(pathlib.Path("files").glob("*.py")):
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found[path.stem] = everything(getattr(module, module.__all__[0]))
assert not [name for name in sys.modules if name.split(".")[0] in ("optdsl", "lark")]
torch.save(found, "found.pt")
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Standalone files of all shipped specs, and what a process without optdsl made of them."""
    folder = tmp_path_factory.mktemp("standalone")
    specs = [ROOT / "specs" / f"{name}.opt" for name in PICKED]
    optdsl.compile(specs, out=folder / "files", standalone=True)
    (folder / "run.py").write_text(PROCESS)
    good(python("-W", "error", "run.py", cwd=folder, PYTHONPATH=None))
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("name", PICKED)
def test_a_standalone_file_steps_as_the_class_does(name, found):
    space = {}
    exec(STEPS, space)
    ours, theirs = space["everything"](optdsl.load(name)), found[name]
    assert ours.keys() == theirs.keys()
    assert any(isinstance(value, tuple) for value in ours.values())
    for key, value in ours.items():
        if isinstance(value, str):
            assert value == theirs[key]
            continue
        for mine, other in zip(value[0], theirs[key][0], strict=True):
            assert mine.dtype is other.dtype
            assert torch.equal(mine, other), key
        for mine, other in zip(value[1], theirs[key][1], strict=True):
            assert [k for k, _ in mine] == [k for k, _ in other]
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(mine, other, strict=True)), key


@pytest.mark.parametrize("name", PICKED)
def test_a_standalone_file_imports_torch_and_the_standard_library_only(name, folder):
    tree = ast.parse((folder / "files" / f"{name}.py").read_text())
    tops = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            tops.add(node.module.split(".")[0])
    assert "torch" in tops
    assert tops - {"torch"} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", PICKED)
def test_a_standalone_file_shows_the_same_class(name, folder):
    """The same public names, documentation, header and signature as the normal file without kernels."""
    path = folder / "files" / f"{name}.py"
    alone, normal = path.read_text(), driver.show(driver.locate(name), "torch")
    assert alone.split("\n")[:3] == normal.split("\n")[:3]
    title = optdsl.load(name).__name__
    start = f"class {title}(Optimizer):\n"
    assert alone.split(start)[1] == normal.split(start)[1]
    module = module_of(path, f"standalone_{name}")
    assert module.__all__ == [title]
    assert inspect.signature(class_of(module)) == inspect.signature(optdsl.load(name))


def test_a_standalone_file_has_no_kernels(folder):
    assert files(folder / "files") - {"__pycache__"} == {f"{name}.py" for name in PICKED}
    cls, p = (
        class_of(module_of(folder / "files" / "lion.py", "without_kernels")),
        torch.nn.Parameter(torch.ones(2)),
    )
    with pytest.raises(
        RuntimeError, match=r"^Lion has no fused kernel: it was compiled for the backend 'torch' alone$"
    ):
        cls([p], fused=True)
    optimizer, p.grad = cls([p], overwrite_grad=True), torch.ones(2)
    optimizer.step()
    assert p[0] < 1
    assert p.grad.tolist() == [1, 1]
    saved = optdsl.load("lion")([p], fused=True).state_dict()
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["fused"] is None


def test_two_standalone_files_live_side_by_side(folder):
    """Each brings a runtime of its own."""
    first, second = (module_of(folder / "files" / f"{name}.py", f"side_{name}") for name in ("adam", "sgd"))
    assert first.Optimizer is not second.Optimizer
    assert class_of(first).__mro__[1] is first.Optimizer
    for module in (first, second):
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        class_of(module)([p], lr=0.1).step()
        assert p[0] < 1


SPEC = """optimizer {name}:
    hyper:
        lr = 1e-2 in [0, inf)

    state:
        r [rows] = 0
        c [cols] = 0
        d [group] = 1.0
        s [axes] = identity()

    step:
        r = r + sum(g^2, over=rows)
        c = c + mean(g^2, over=cols)
        d = d + norm(g, over=all)
        s = 0.9 * s + gram(g)
        u = newton_schulz(g, 3) + bernoulli(0.5) * normal() + along_axes(matrix_power(s, -0.25, 0.1), g)
        p = p - lr * where(p > inf, min(u), max(u)) / d * g / sqrt(r * c + 1)
"""


def test_everything_the_runtime_has_goes_into_the_file(tmp_path):
    """A method with all kinds of states, joint reductions, matrices and random numbers."""
    path = tmp_path / "all_kinds.opt"
    path.write_text(SPEC.format(name="AllKinds"))
    (done,) = optdsl.compile(path, standalone=True)
    alone = class_of(module_of(done.files[0], "all_kinds_alone"))
    (done,) = optdsl.compile(path, out=tmp_path / "normal")
    normal = class_of(module_of(done.files[0], "all_kinds_normal"))
    for foreach in (False, True):
        results = []
        for cls in (alone, normal):
            params = [torch.nn.Parameter(torch.full(shape, 2.0)) for shape in ((3, 4), (2, 2, 2), (5,))]
            optimizer = cls(params, foreach=foreach, seed=3)
            for number in range(3):
                for p in params:
                    p.grad = torch.full_like(p, 0.5 + number)
                optimizer.step()
            results.append(params)
        for mine, other in zip(*results, strict=True):
            assert torch.equal(mine, other)
            assert mine.isfinite().all()


@pytest.mark.parametrize(
    "name",
    [
        "Unit",
        "Rule",
        "Random",
        "Mapping",
        "drive",
        "inspect",
        "len",
    ],  # the checker refuses `State` and the like
)
def test_a_name_of_the_runtime_is_refused(name, tmp_path):
    path = tmp_path / "taken.opt"
    path.write_text(SPEC.format(name=name))
    with pytest.raises(ValueError, match=f"uses `{name}` for something else"):
        optdsl.compile(path, standalone=True)
    assert not path.with_suffix(".py").exists()


def test_every_name_of_the_runtime_part_is_defined(folder):
    """Of all modules of the runtime, though no shipped method may need some function."""
    text = (folder / "files" / "sgd.py").read_text()
    (folder / "check.py").write_text(text)
    run = python("-m", "ruff", "check", "--isolated", "--select", "F821,F811", "check.py", cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
