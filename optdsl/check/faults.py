"""Why an operator does not take its operands: the code, the message and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from optdsl.check.why import describe
from optdsl.core.ops import AXES_OPERANDS, CORE, Rule
from optdsl.core.types import AXES, Kind, Level, Type

#: What can be asked of a list.
LIST_HELP = "take an entry, as in `milestones[1]`, or count: `count(milestones <= t)`"

#: A code, a message and a remedy.
Fault = tuple[str, str, str]


def fault_of(
    op: str, types: Sequence[Type], texts: Sequence[str], index: int | None, over: str | None, fallback: str
) -> Fault:
    """The message for operands of these types, written as `texts`; `index` is the guilty one, if one is.

    `fallback` is said when nothing better is known.
    """
    row = CORE[op]
    at = index or 0
    type_, text = (types[at], texts[at]) if types else (None, "this")
    if type_ is None:
        return "E0404", fallback, ""
    if row.rule is Rule.LIST and not index:
        message = f"{text} is {_noun(type_)}; only a list has entries"
        return "E0404", message, "a list is declared as in `milestones = [30, 60]`"
    if row.rule is Rule.LIST and type_.kind.computed:
        message = f"{text} is {describe(type_)}; a list is asked for what is known on the host"
        return "E0406", message, ""
    if type_.kind is Kind.LIST:
        return "E0404", f"{text} is a list, not a number", LIST_HELP
    if type_.kind is Kind.CHOICE and (row.takes == "number" or row.rule is not Rule.ELEMENTWISE):
        return "E0404", f"{text} is a choice, not a number", 'compare it, as in `mode == "l2"`'
    match row.rule:
        case Rule.REDUCE if index == 1:
            message = f"`k` is the same for all tensors of a group; {text} is {describe(type_)}"
            return "E0405", message, "reduce it with `over=group`"
        case Rule.REDUCE:
            return _reduction(type_, text, over)
        case Rule.MATMUL if any(type_.shape == AXES for type_ in types):
            return "E0405", "`@` does not multiply a matrix for each axis", "write `along_axes(P, x)`"
        case Rule.MATMUL if index is None:
            left, right = types
            message = f"`@` cannot multiply {texts[0]} {_dims(left)} by {texts[1]} {_dims(right)}: "
            message += f"{left.shape[1].value} is not {right.shape[0].value}"
            return "E0405", message, "`x'` is the transpose of `x`"
        case Rule.MATMUL:
            return "E0405", f"`@` multiplies matrices; {text} is {describe(type_)}", "write `*` to scale"
        case Rule.MATRIX if index == 1:
            return "E0406", f"the number of steps of `{op}` must be known on the host", ""
        case Rule.MATRIX:
            return (
                "E0405",
                f"`{op}` needs a matrix; {text} is {describe(type_)}",
                "give it a value per element",
            )
        case Rule.TRANSPOSE:
            return (
                "E0405",
                f"the matrices of a family are symmetric; {text} is {describe(type_)}",
                "leave `'` out",
            )
        case Rule.AXES:
            return _family(op, at, type_, text)
        case Rule.RANDOM:
            return "E0405", f"a draw is one value per element; {text} is {describe(type_)}", "reduce it"
    return _elementwise(op, types, texts, index, fallback)


def _family(op: str, at: int, type_: Type, text: str) -> Fault:
    """The message for an operand of an operator on a matrix for each axis."""
    place = AXES_OPERANDS[op][0][at]
    if place == "host":
        noun = ("", "exponent", "least eigenvalue")[at]
        return "E0406", f"the {noun} of `{op}` must be known on the host; {text} is {describe(type_)}", ""
    if place == "axes":
        help = "`gram(x)` and `identity()` make them"
        return "E0405", f"`{op}` needs a matrix for each axis; {text} is {describe(type_)}", help
    return "E0405", f"`{op}` needs one value per element; {text} is {describe(type_)}", ""


def _reduction(type_: Type, text: str, over: str | None) -> Fault:
    if type_.level < Level.ARRAY:
        help = "a reduction takes one value per element, row or column"
        if type_.level is Level.TENSOR:
            help = "`over=group` and `over=all` reduce one number per tensor"
        return "E0403", f"{text} is {describe(type_)}: there is nothing to reduce", help
    return (
        "E0405",
        f"`over={over}` needs one value per element; {text} is {describe(type_)}",
        "leave `over` out",
    )


def _elementwise(
    op: str, types: Sequence[Type], texts: Sequence[str], index: int | None, fallback: str
) -> Fault:
    row = CORE[op]
    compare = "compare it with something: `x > 0`"
    if row.takes == "bool" and index is not None:
        return "E0404", f"`{row.symbol}` takes conditions; {texts[index]} is {_noun(types[index])}", compare
    if op == "select" and index == 0:
        message = f"{texts[0]} is {_noun(types[0])}; a choice between two values needs a condition"
        return "E0404", message, compare
    choices = choice_operands(types)
    if op == "select" and choices:
        return "E0404", f"{texts[choices[0]]} is a choice and cannot be computed with", "use `if` instead"
    if choices:
        other = 1 - choices[0]
        message = f"{texts[choices[0]]} is a choice and {texts[other]} is {_noun(types[other])}"
        return "E0404", message, 'compare a choice with one of its values, as in `mode == "l2"`'
    arrays = [i for i, type_ in enumerate(types) if type_.level is Level.ARRAY]
    if index is None and len(arrays) > 1:
        message = "shapes do not fit together: "
        message += " and ".join(f"{texts[i]} is {describe(types[i])}" for i in arrays)
        family = any(type_.shape == AXES for type_ in types)
        help = "`along_axes(P, x)` multiplies by a matrix for each axis" if family else ""
        return "E0405", message, help or "reduce one of them, or use `x'` for the transpose"
    return "E0404", fallback, ""


def choice_operands(types: Sequence[Type]) -> list[int]:
    """The operands that are choices."""
    return [i for i, type_ in enumerate(types) if type_.kind is Kind.CHOICE]


def _dims(type_: Type) -> str:
    return f"[{type_.shape[0].value}, {type_.shape[1].value}]"


def _noun(type_: Type) -> str:
    return {Kind.BOOL: "a condition", Kind.CHOICE: "a choice", Kind.LIST: "a list"}.get(
        type_.kind, "a number"
    )
