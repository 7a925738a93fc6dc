"""What a user installs is complete: the wheel, built from the sdist, works away from the checkout."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import COMPILER, WITHOUT_KERNELS

ROOT = Path(__file__).resolve().parent.parent

# One worker builds for all the tests here.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]

# Run in a process that sees the installed package only; argv: the generated file, the name of its class, flags.
STEP = """
import importlib.util, json, sys
import torch
spec = importlib.util.spec_from_file_location("compiled", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for flags in json.loads(sys.argv[3]):
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = getattr(module, sys.argv[2])([p], **flags)
    p.grad = torch.tensor([0.5, -0.5])
    optimizer.step()
    assert 0 < p[0] < 1 and -2 < p[1] < 0, p
loaded = [name for name in sys.modules if name.startswith("optdsl.") and name.split(".")[1] != "runtime"]
assert not loaded, f"generated code imports {loaded}"
assert "lark" not in sys.modules, "generated code imports lark"
"""

# The shipped specs are found in the installed package, and each class comes from there; argv: flags.
LOAD = """
import json, sys
import torch, optdsl
from optdsl import zoo
for name in dir(zoo):
    cls = getattr(zoo, name)
    assert optdsl.load(cls.__module__.split(".")[-1]) is cls
    assert sys.modules[cls.__module__].__file__.startswith(sys.argv[1]), cls
for flags in json.loads(sys.argv[2]):
    p = torch.nn.Parameter(torch.tensor([1.0]))
    p.grad = torch.tensor([0.5])
    zoo.AdamW([p], **flags).step()
    assert p.item() < 1, p
"""

#: Steps by torch's operations and, where there is a compiler, by native kernels, which nothing else has built.
FLAGS = json.dumps([{"fused": False}, *([{"fused": True}, {}] if COMPILER else [])])


def command(*words: str | Path, cwd: Path, site: Path | None = None) -> str:
    """Runs Python with `words`, only `site` on PYTHONPATH, and returns what it printed; a warning is an error."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["OPTDSL_CACHE"] = str(cwd / "cache")
    if site is not None:
        env |= {"PYTHONPATH": str(site), "PYTHONWARNINGS": "error::RuntimeWarning"}
    run = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, which is built from the checkout."""
    dist = tmp_path_factory.mktemp("dist")
    command("-m", "build", "--no-isolation", "--outdir", dist, ROOT, cwd=dist)
    assert len(list(dist.glob("*.tar.gz"))) == 1
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel; its dependencies are those of this environment."""
    target = tmp_path_factory.mktemp("site")
    command(
        *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-index", "--target", target, wheel),
        cwd=target,
    )
    return target


def test_the_wheel_holds_the_package_and_its_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    wanted = {
        ("optdsl/_data/" if folder != "optdsl" else "") + file.relative_to(ROOT).as_posix()
        for folder in ("optdsl", "grammar", "specs", "generated")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if not re.match(r"optdsl-[^/]*\.dist-info/", name)} == wanted
    for kind in ("grammar", "specs", "generated"):
        assert any(name.startswith(f"optdsl/_data/{kind}/") for name in names), kind
    assert {f"optdsl/runtime/native/{name}" for name in ("table.h", "kernel.h", "driver.c")} <= names
    for file in (ROOT / "specs").glob("*.opt"):
        suffixes = (".py",) if file.stem in WITHOUT_KERNELS else (".py", ".c", ".triton.py")
        assert {f"optdsl/_data/generated/{file.stem}{suffix}" for suffix in suffixes} <= names
    assert "optdsl = optdsl.__main__:main" in entry_points


def test_the_installed_package_compiles_a_spec(site: Path, tmp_path: Path) -> None:
    where = command("-c", "import optdsl; print(optdsl.__file__)", cwd=tmp_path, site=site)
    assert Path(where.strip()).is_relative_to(site.resolve())

    example = re.search(
        r"```opt\n(optimizer (\w+):\n.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    assert example is not None, "README.md shows no whole optimizer"
    text, name = example.groups()
    (tmp_path / "my.opt").write_text(text, "utf-8")
    command("-m", "optdsl", "compile", "my.opt", "-o", "out", cwd=tmp_path, site=site)
    made = [
        file
        for file in (tmp_path / "out").rglob("*.py")
        if re.search(rf"^class {name}\b", file.read_text("utf-8"), re.M)
    ]
    assert len(made) == 1, sorted((tmp_path / "out").rglob("*"))
    assert made[0].with_suffix(".c").is_file()
    command("-c", STEP, made[0], name, FLAGS, cwd=tmp_path, site=site)


def test_the_installed_package_knows_the_shipped_specs(site: Path, tmp_path: Path) -> None:
    command("-c", LOAD, site.resolve(), FLAGS, cwd=tmp_path, site=site)
