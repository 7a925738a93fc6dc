"""The Triton file of a spec."""

from __future__ import annotations

import re
from pathlib import Path

from optdsl import __version__
from optdsl.backends.kernels import Functions, Kernels, Source, in_comment
from optdsl.backends.revision import REVISION
from optdsl.backends.templates import render
from optdsl.backends.triton.kernel import NAME as PLACEHOLDER
from optdsl.backends.triton.kernel import KernelText

NAME = "triton"
#: A name that is called or read, not one that something is assigned to.
_WORD = re.compile(r"\b[A-Za-z]\w*\b")


def emit(kernels: Kernels, source: str, digest: str, module: str) -> Source:
    """The Triton file of the kernels of a program that comes from the spec file `source`.

    `module` is the name of the generated files. Functions that several kernels have in common stand there once.
    """
    made = _Functions()
    functions = []
    for _, cells in kernels.cells:
        text, count = KernelText(cells), len(cells.plan.sweeps)
        passes = tuple(made.name("pass", text.sweep(k)) for k in range(count))
        between = tuple(made.name("between", text.between(k)) for k in range(count + 1))
        functions.append(Functions(passes, between))
    view = {
        "version": __version__,
        "source": in_comment(source),
        "digest": digest,
        "revision": REVISION,
        "name": in_comment(kernels.program.name),
        # in one line, so that every function stands where it stood when another word is needed
        "imports": ", ".join(made.words()),
        "codes": ", ".join(made.codes()),
        "functions": [
            {"lines": lines, "what": _used_by(name, functions)} for name, lines in made.by_name.items()
        ],
    }
    made_of = render(Path(__file__).parent, "kernels.py.jinja", view)
    return Source("triton", f"{module}.triton.py", made_of, tuple(functions))


def _used_by(name: str, functions: list[Functions]) -> str:
    numbers = [str(n) for n, f in enumerate(functions) if name in (*f.passes, *f.between)]
    return f"of kernel{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


class _Functions:
    """Functions by their names; equal ones have one name."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[str]] = {}
        self._names: dict[tuple[str, ...], str] = {}
        self._counts: dict[str, int] = {}

    def name(self, kind: str, lines: list[str]) -> str:
        """The name of a function with this text, "" for none."""
        if not lines:
            return ""
        text = tuple(lines)
        if text not in self._names:
            number = self._counts[kind] = self._counts.get(kind, -1) + 1
            self._names[text] = name = f"{kind}{number}"
            self.by_name[name] = [line.replace(PLACEHOLDER, name) for line in lines]
        return self._names[text]

    def words(self) -> list[str]:
        """What the functions use of the library."""
        used = {word for lines in self.by_name.values() for line in lines for word in _WORD.findall(line)}
        return sorted(used & LIBRARY)

    def codes(self) -> list[str]:
        """What they use for arrays that may be kept in codes."""
        used = {word for lines in self.by_name.values() for line in lines for word in _WORD.findall(line)}
        return sorted(used & {"read", "write"})


#: What optdsl.runtime.triton.library offers; a test holds this against the module.
LIBRARY = frozenset(
    [
        *("ARRAYS", "CHUNK", "CHUNKS", "COLS", "COL_PARTIALS", "FOLDED", "INDEX", "KEPT_COLS"),
        *("KEPT_ROWS", "PARTIALS", "ROWS", "SEED", "SHARED", "SLOTS", "VALUES", "N", "acos"),
        *("asin", "at", "atan", "atan2", "bernoulli", "both", "ceil", "cos", "counted", "cube"),
        *("div", "either", "erf", "exp", "expm1", "finite", "floor", "fold_max", "fold_min"),
        *("fold_sum", "going", "greater", "largest", "length", "lesser", "load", "log"),
        *("log1p", "magnitude", "nan_to_num", "negated", "normal", "number", "place", "power"),
        *("rademacher", "remainder", "rint", "select", "sign", "sin", "smallest", "sqrt"),
        *("square", "store", "tan", "tanh", "total", "uniform", "words"),
    ]
)
