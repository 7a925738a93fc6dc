"""For which options, shapes and types a plan is asked for: read from the command line, checked, settled.

What is given is data: numbers are parsed, conditions are computed by `optdsl.passes.evaluate`, nothing is run.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from optdsl.analysis.account import BYTES, computed_in
from optdsl.core.record import field, record
from optdsl.core.types import Kind
from optdsl.ir.expr import HostValue, Literal
from optdsl.ir.program import Hyper, Program
from optdsl.ir.text import literal
from optdsl.lang.diagnostics import nearest
from optdsl.passes.schedule import EXACT, NARROW, OVERWRITE

#: Facts are asked for a matrix unless a shape is given.
MATRIX = (1024, 1024)
_MOST = 2**53


@record
class Setting:
    """Options (constructor arguments that are not at their defaults), and what the parameters are like."""

    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = MATRIX
    dtype: str = "f32"
    overwrite_grad: bool = False
    narrow: bool = False  # a state is kept in fewer bits than it is computed in

    @property
    def mode(self) -> str:
        """How the storage of the parameter bears on the schedule."""
        if self.narrow or self.dtype != computed_in(self.dtype):
            return NARROW
        return OVERWRITE if self.overwrite_grad else EXACT

    @property
    def facts(self) -> dict[str, float]:
        """The fixed facts of the parameter."""
        rows = self.shape[0] if self.shape else 1
        facts = {"ndim": len(self.shape), "numel": math.prod(self.shape), "rows": rows}
        return {name: float(n) for name, n in (*facts.items(), ("cols", math.prod(self.shape[1:])))}

    def hypers(self, program: Program) -> dict[str, HostValue]:
        """The value of every hyperparameter, as a host value. Raises ValueError for options it does not take."""
        return hyper_values(program, self.options)


# ---- options ----------------------------------------------------------------------------------------------


def options_of(texts: Iterable[str]) -> dict[str, Any]:
    """Options written as NAME=VALUE, numbers, tuples and switches as in Python or in a spec."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"`{text}` is not NAME=VALUE, as in momentum=0.9")
        value = {"true": "True", "false": "False", "inf": "1e999", "-inf": "-1e999"}.get(
            value.strip(), value.strip()
        )
        try:
            found[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found[name.strip()] = value  # one of the choices of a hyperparameter
    return found


def hyper_values(program: Program, options: Mapping[str, Any]) -> dict[str, HostValue]:
    """The value of every hyperparameter, as a host value: a float, a truth value, a choice or a list of floats.

    `options` are constructor arguments; a number of a tuple may also be given by its own name. Raises ValueError.
    """
    parts: dict[str, list[Hyper]] = {}
    for hyper in program.hypers:
        parts.setdefault(hyper.argument, []).append(hyper)
    names = {hyper.name for hyper in program.hypers}
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name in parts and parts[name][0].is_part:
            count = len(parts[name])
            if not isinstance(value, tuple | list) or len(value) != count:
                example = ",".join(str(hyper.default) for hyper in parts[name])
                raise ValueError(f"`{name}` is {count} numbers, as in {name}={example}")
            given |= {hyper.name: part for hyper, part in zip(parts[name], value, strict=True)}
        elif name in names:
            given[name] = value
        else:
            known = [*parts, *sorted(names - set(parts))]
            help = nearest(name, known) or (f"there are {', '.join(parts)}" if parts else "there are none")
            raise ValueError(f"{program.name} has no option `{name}`; {help}")
    return {h.name: _checked(h, given.get(h.name, h.default)) for h in program.hypers}


def _checked(hyper: Hyper, value: Any) -> HostValue:
    """A value that a hyperparameter takes. Raises ValueError."""
    name, shown = hyper.name, _short(value)
    if hyper.kind is Kind.LIST:
        if not isinstance(value, tuple | list) or not value:
            raise ValueError(
                f"{name}={shown}: it must be a list of numbers, as in {name}={literal(hyper.default)}"
            )
        return tuple(_number(hyper, number) for number in value)
    if hyper.kind is Kind.CHOICE:
        if str(value) not in hyper.choices:
            raise ValueError(f"{name}={shown}: it must be one of {', '.join(hyper.choices)}")
        return str(value)
    if hyper.kind is Kind.BOOL:
        if not isinstance(value, bool):
            raise ValueError(f"{name}={shown}: it must be true or false")
        return value
    if value is None and hyper.interval is not None and math.inf in hyper.interval:
        value = math.inf  # no limit
    return _number(hyper, value)


def _number(hyper: Hyper, value: Any) -> float:
    """A number that a hyperparameter, or an entry of it, takes. Raises ValueError."""
    name, shown = hyper.name, _short(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={shown}: it must be a number")
    if hyper.number_kind is Kind.INT and not isinstance(value, int):
        raise ValueError(f"{name}={shown}: it must be a whole number")
    number = _host(value)
    assert isinstance(number, float)
    if number != number or (hyper.interval is not None and number not in hyper.interval):
        raise ValueError(f"{name}={shown}: it must be in {hyper.interval}")
    return number


def _short(value: Any) -> str:
    try:
        text = str(value)
    except ValueError:  # a number of too many digits
        text = "a number"
    return text if len(text) <= 40 else text[:37] + "..."


def _host(value: Literal) -> Literal:
    if isinstance(value, bool | str):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


# ---- shapes, types, bandwidths ----------------------------------------------------------------------------


def shape_of(text: str) -> tuple[int, ...]:
    """A shape written as `768,768`; `()` is that of a tensor without dimensions. Raises ValueError."""
    inner = text.strip().removeprefix("(").removesuffix(")").strip().removesuffix(",")
    parts = [part.strip() for part in re.split("[,x×]", inner)] if inner else []
    if not text.strip() or not all(part.isascii() and part.isdigit() and len(part) < 17 for part in parts):
        raise ValueError(f"`{_short(text)}` is not a shape, as in 768,768")
    shape = tuple(map(int, parts))
    if not 0 < math.prod(shape) <= _MOST or len(shape) > 64:
        raise ValueError(f"a tensor of shape {_short(text)} has no parameters or too many")
    return shape


def dtype_of(text: str) -> str:
    """One of the types of parameters. Raises ValueError."""
    if text not in BYTES:
        raise ValueError(f"`{_short(text)}` is not a type of parameters; there are {', '.join(BYTES)}")
    return text


_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTP", 1)}


def bandwidth_of(text: str) -> float:
    """Bytes a second, written as `4.3TB/s`, `900 GB` or `12.5 GiB/s`. Raises ValueError."""
    match = re.fullmatch(
        r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?\s*([A-Za-z]*?)([Bb])(?:/s|ps)?\s*", text
    )
    said = f"`{_short(text)}` is not a bandwidth, as in 4.3TB/s or 900 GB/s"
    if match is None:
        raise ValueError(f"{said}: a number and a unit" if re.search("[0-9]", text) else said)
    digits, exponent, prefix, unit = match.groups()
    if unit == "b":
        raise ValueError(f"{said}: a small b stands for bits")
    factor = (_PREFIXES | _BINARY).get(prefix)
    if factor is None:
        raise ValueError(f"{said}: the units are B, kB, MB, GB, TB, KiB, MiB, GiB, TiB")
    found = float(digits + (exponent or "")) * factor
    if not 0 < found < math.inf:
        raise ValueError(f"{said}: it is above 0")
    return found


__all__ = ["MATRIX", "Setting", "bandwidth_of", "dtype_of", "hyper_values", "options_of", "shape_of"]
