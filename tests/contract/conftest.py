"""Which specs the contract is tried on, and what becomes of a refusal.

All with `-m contract`, or those that OPTDSL_SPECS names, with commas between them. Else a sample that takes less than
two minutes: of the tests of a few specs with all traits one in eight, of those in Triton's interpreter one in 24.
Which ones it is depends on OPTDSL_SEED. That Triton's kernels do what the spec says is tried on every spec each time.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.subjects import NAMES, Refused, Way, class_named, lacking, sample

HERE = Path(__file__).parent
SEED = int(os.environ.get("OPTDSL_SEED", "0"))
#: The test that is made of every spec each time, in Triton's interpreter.
ALWAYS = "test_every_way_is_the_definition"


def whole(config: pytest.Config) -> bool:
    """Whether all specs are asked for."""
    return "contract" in str(config.option.markexpr) or bool(os.environ.get("OPTDSL_FULL"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a spec is a test of each; one that says `only` takes those for which that is true."""
    if "name" not in metafunc.fixturenames:
        return
    only = getattr(metafunc.function, "only", None)
    names = [name for name in NAMES if only is None or only(name)]
    if chosen := os.environ.get("OPTDSL_SPECS"):
        names = [name for name in names if name in chosen.split(",")]
    elif not whole(metafunc.config) and metafunc.function.__name__ != ALWAYS:
        taken = sample(SEED, 2)
        names = [name for name in names if name in taken] or names[SEED % len(names) :][:1]
    metafunc.parametrize("name", names)


def is_kept(item: pytest.Item, spec: str | None, taken: list[str]) -> bool:
    """Whether a test is one of the sample, of these specs."""
    if item.name.startswith(ALWAYS):
        if "triton-usual" in item.name:
            return True
        if spec not in taken:
            return False
    share = 24 if "triton" in item.name else 8
    return not zlib.crc32(f"{SEED} {item.name}".encode()) % share


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the contract, notes of each test which spec it is about, and leaves out what is not in the sample."""
    everything = whole(config) or "OPTDSL_SPECS" in os.environ
    taken = sample(SEED, 2)
    left: list[pytest.Item] = []
    for item in items:
        if HERE in item.path.parents:
            spec = item.callspec.params.get("name") if hasattr(item, "callspec") else None
            spec = spec if isinstance(spec, str) else None  # there may be none that a test is for
            item.add_marker(pytest.mark.contract)
            item.add_marker(
                pytest.mark.xdist_group(f"contract of {spec}")
            )  # its class is built in one process
            item.user_properties.append(("spec", spec))
            if everything or is_kept(item, spec, taken):
                continue
            left.append(item)
    if left:
        gone = set(left)
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=left)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """What is refused by name is as good as done; the table tells the two apart."""
    try:
        return (yield)
    except Refused as refused:
        pyfuncitem.user_properties.append(("refused", str(refused)))
        return True


@pytest.fixture
def cls(name: str) -> Any:
    """The class of a spec."""
    print(f"OPTDSL_SEED={SEED}")
    return class_named(name)


@pytest.fixture(autouse=True)
def at_work(request: pytest.FixtureRequest) -> Iterator[None]:
    """Steps take the way that the test is about, if it is about one."""
    way: Way | None = request.getfixturevalue("way") if "way" in request.fixturenames else None
    if way is None:
        yield
        return
    if reason := lacking(way):
        pytest.skip(reason)
    with way.at_work():
        yield
