"""Generated functions: calls of operators in straight lines, each value in memory that is given.

The text holds names of `optdsl.search.evaluate.operators` and names with numbers (`w3`, `h0`), whatever a program's
own names and numbers are: those come in as arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

from optdsl.core.record import record
from optdsl.ir.expr import Expr
from optdsl.search.evaluate.operators import NAMESPACE, SAFE

#: A buffer: the name of its level, and whether it holds truth values.
Slot = tuple[str, bool]


@record
class Function:
    """Generated code. It is called with (p, g, h, s, o, w, sizes): parameter and gradient, host values, the states of
    `reads`, where to write `writes`, buffers, and the sizes of the tensors.

    `host` are the expressions of the host values that it takes, `joints` how each thing that it yields is reduced:
    (operator, site, level name of what is reduced).
    """

    text: str
    host: tuple[Expr, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    buffers: tuple[Slot, ...]
    joint: bool

    def bind(self) -> Callable[..., Any]:
        """The function itself."""
        names = dict(NAMESPACE)
        exec(_compiled(self.text), names)
        bound: Callable[..., Any] = names["f"]
        return bound


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> CodeType:
    return compile(text, "<stacked step>", "exec")


@record(frozen=False)
class Value:
    """What generated code computes in one call: into a buffer of the kind `slot`, or into output `target`.

    `args` are names of inputs (`p`, `h0`, `s1`) and of values before it (`v0`). `last` is the number of the last call
    that reads it, one more than there are where an output is filled from it at the end, and -1 where nothing does.
    """

    call: str
    args: tuple[str, ...]
    slot: Slot
    last: int = -1
    target: str | None = None


@record
class Output:
    """Where `value` is to go. `level` is its own. `own` names the input whose memory it is, if it is one's."""

    name: str
    value: str
    level: str
    own: str | None


def write(
    values: Mapping[str, Value],
    outputs: Sequence[Output],
    inputs: Mapping[str, int],
    host: int,
    states: int,
) -> tuple[str, tuple[Slot, ...]]:
    """The text of a function, and the buffers that it needs.

    `values` by their names in the order of their computation; `inputs` says of each input which call reads it last.
    `host` and `states` are how many of these come in. A value goes right into an output that it is for, unless the
    input that lies there is still needed; buffers are used again as soon as they can be.
    """
    end = len(values)
    places = {output.name: f"o{number}" for number, output in enumerate(outputs)}
    last = dict(inputs)
    for output in outputs:
        if output.value in values:
            values[output.value].last = end
        elif output.value != output.own:
            last[output.value] = end
    order = {name: number for number, name in enumerate(values)}
    for output in outputs:
        found = values.get(output.value)
        if found is None or found.target is not None or found.slot != (output.level, False):
            continue
        needed = last.get(output.own, -1) if output.own is not None else -1
        number = order[output.value]
        if needed < number or (needed == number and found.call in SAFE):
            found.target = output.name
    buffers: list[Slot] = []
    free: dict[Slot, list[str]] = {}
    where: dict[str, str] = {}
    lines: list[str] = []
    for number, (name, value) in enumerate(values.items()):
        read = [(arg, values[arg]) for arg in dict.fromkeys(value.args) if arg in values]
        gone = [(x.slot, where[arg]) for arg, x in read if x.last == number and x.target is None]
        if value.call in SAFE:  # may write over what it reads
            for slot, place in gone:
                free.setdefault(slot, []).append(place)
        if value.target is not None:
            where[name] = places[value.target]
        elif free.get(value.slot):
            where[name] = free[value.slot].pop()
        else:
            where[name] = f"w{len(buffers)}"
            buffers.append(value.slot)
        lines.append(_line(value, [where.get(arg, arg) for arg in value.args], where[name]))
        if value.call not in SAFE:
            for slot, place in gone:
                free.setdefault(slot, []).append(place)
        if value.last < 0 and value.target is None:
            free.setdefault(value.slot, []).append(where[name])
    for output in outputs:
        source = where.get(output.value, output.value)
        if source not in (places[output.name], output.own):
            lines.append(f"copy({source}, out={places[output.name]})")
    counts = {"h": host, "s": states, "o": len(outputs), "w": len(buffers)}
    heads = [f"{''.join(f'{c}{i}, ' for i in range(n))}= {c}" for c, n in counts.items() if n]
    body = "".join(f" {line}\n" for line in [*heads, *lines] or ["pass"])
    return f"def f(p, g, h, s, o, w, sizes):\n{body}", tuple(buffers)


def _line(value: Value, args: list[str], place: str) -> str:
    if value.call.startswith("part_"):
        x, request = args
        return f"copy((yield {value.call}({x}), {x}, {request}), out={place})"
    return f"{value.call}({', '.join(args)}, out={place})"
