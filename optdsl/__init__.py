"""optdsl compiles an optimizer, written as in its paper, to a `torch.optim.Optimizer`.

`load` gives the class of a spec, `compile` writes its files, `optdsl.zoo` holds the shipped methods.
Importing this package loads none of the compiler, torch included: each name is fetched at its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optdsl import zoo
    from optdsl.driver import compile, load

__version__ = "0.1.0"
__all__ = ["__version__", "compile", "load", "zoo"]


def __getattr__(name: str) -> object:
    match name:
        case "compile" | "load":
            value: object = getattr(import_module("optdsl.driver"), name)
        case "zoo":
            value = import_module("optdsl.zoo")
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
