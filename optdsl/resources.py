"""Where the files that are not Python lie: the grammar, the shipped specs and what is compiled from them."""

from pathlib import Path
from typing import Literal

Kind = Literal["grammar", "specs", "generated"]

_PACKAGE = Path(__file__).resolve().parent


def data_dir(kind: Kind) -> Path:
    """The folder of `kind`: inside the package when installed from a wheel, beside it in a checkout."""
    if kind not in ("grammar", "specs", "generated"):
        raise ValueError(f"no data of kind {kind!r}: it is one of grammar, specs and generated")
    places = (_PACKAGE / "_data" / kind, _PACKAGE.parent / kind)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"optdsl's {kind} folder is missing; looked for {places[0]} and {places[1]}. "
        "The installation is incomplete: install optdsl again."
    )
