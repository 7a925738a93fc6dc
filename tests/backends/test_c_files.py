"""The C of the shipped methods, and of one that has everything, compiles without a warning."""

import re
import subprocess
from pathlib import Path

import pytest

from optdsl import driver
from optdsl.runtime.native import build
from tests.support import COMPILER, NAMES, ROOT, WITHOUT_KERNELS, needs_compiler

pytestmark = needs_compiler

HEADERS = Path(build.__file__).parent
STRICT = [
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Wno-unused",
    "-Werror",
    "-O1",
    "-fopenmp",
    "-c",
    "-o",
    "/dev/null",
]
#: What is computed in, and how arrays are stored: parameter, gradient, states.
TYPES = [
    ("float", ("f32", "f32", "f32")),
    ("double", ("f64", "f64", "f64")),
    ("float", ("bf16", "f16", "f32")),
]


def complaints(source: Path, *settings: str) -> str:
    """What the compiler says about a C file."""
    command = [str(COMPILER), *STRICT, f"-I{HEADERS}", *settings, str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def all_complaints(source: Path) -> list[str]:
    """What it says about every unit of generated C; the first in all types."""
    text = source.read_text()
    units = re.findall(r"^#if UNIT == (\d+)$", text, re.MULTILINE)
    assert units
    found = []
    for unit in units:
        for real, (p, g, state) in TYPES if unit == units[0] else TYPES[:1]:
            # there are as many arrays as the unit names, but some more do no harm
            types = [p, g, *[state] * text.count(",")]
            settings = [
                f"-DUNIT={unit}",
                f"-DREAL={real}",
                *(f"-DT{i}={t}" for i, t in enumerate(types[:40])),
            ]
            found.append(complaints(source, *settings))
    return [each for each in found if each]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_KERNELS])
def test_generated_c_has_no_warnings(name: str) -> None:
    assert all_complaints(ROOT / "generated" / f"{name}.c") == []


def test_the_driver_has_no_warnings() -> None:
    assert [complaints(source) for source in sorted(HEADERS.glob("*.c"))] == [""]


EVERYTHING = """optimizer Everything:
    hyper:
        lr = 1e-2 in [0, inf)
        deep = false
        mode = "one" in {"one", "two"}

    state:
        m = 0
        r [rows] = 0
        c [cols] = 1.0
        s [tensor] = 0
        d [group] = 1.0
        h [host] = 1.0

    step:
        h = 0.5 * h + t
        r = r + sum(g^2, over=rows) * min(g, over=rows)
        c = max(c, mean(abs(g), over=cols))
        s = s + norm(g) + max(r) + min(c) + numel
        d = d + norm(g, over=all)
        n = normal() + uniform() * rademacher() - bernoulli(0.5)
        u = (not (g > p and g >= m or g != p)) * isfinite(m) + (g == p) - (g < p) * (g <= m)
        w = where(mod(p, g) > inf or p^2.5 < log1p(exp(g)), round(floor(p)), ceil(sign(g)))
        x = tanh(sin(cos(tan(asin(acos(atan2(p, atan(g))))))))
        if deep:
            m = m^3 - nan_to_num(x)^4 * erf(expm1(log(sqrt(abs(w)))))
        elif mode == "two":
            m = -m - c * r
        else:
            m = u - w
        p = p - lr * h * (m + n * s) / d * max(g, over=cols) * min(1.0, x)
"""


def test_c_of_everything_has_no_warnings(tmp_path: Path) -> None:
    (tmp_path / "everything.opt").write_text(EVERYTHING)
    (done,) = driver.compile(tmp_path)
    assert done.checked.errors == (), [d.render() for d in done.checked.errors]
    assert done.no_kernels is None
    assert all_complaints(done.files[1]) == []
