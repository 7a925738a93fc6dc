"""The syntax tree: what the person wrote, with the place of everything. Untyped."""

from __future__ import annotations

from typing import TypeAlias

from optdsl.core.record import field, record
from optdsl.lang.diagnostics import Span

# ---- expressions --------------------------------------------------------------------------------------


@record
class Number:
    """`10` (int) or `1e-3` (float)."""

    value: int | float
    span: Span


@record
class Bool:
    """`true` or `false`."""

    value: bool
    span: Span


@record
class String:
    """A choice such as `"l2"`."""

    value: str
    span: Span


@record
class Name:
    """A name used as a value."""

    id: str
    span: Span


@record
class Operation:
    """A core operator written with a symbol: unary minus, arithmetic, a comparison, `and`, `@`, `'`."""

    op: str
    args: tuple[Expression, ...]
    span: Span


@record
class Compare:
    """A chain of comparisons, `0 < x <= 1`."""

    ops: tuple[str, ...]
    args: tuple[Expression, ...]
    span: Span


@record
class IfElse:
    """`then if condition else other`."""

    condition: Expression
    then: Expression
    other: Expression
    span: Span


@record
class CallSyntax:
    """`function(args, keyword=value)`."""

    function: str
    args: tuple[Expression, ...]
    keywords: tuple[tuple[str, Expression], ...]
    span: Span
    function_span: Span


@record
class ListSyntax:
    """`[30, 60]`, in a binding of `use` alone."""

    values: tuple[LiteralValue, ...]
    span: Span


Expression: TypeAlias = Number | Bool | String | Name | Operation | Compare | IfElse | CallSyntax | ListSyntax

# ---- statements ---------------------------------------------------------------------------------------


@record
class AssignSyntax:
    """`name = value`."""

    name: str
    name_span: Span
    value: Expression
    span: Span


@record
class If:
    """`if` with its `elif`s as nested `If`s in `other`."""

    condition: Expression
    then: tuple[Statement, ...]
    other: tuple[Statement, ...]
    span: Span


@record
class Every:
    """A block that runs when `(t - 1) mod period == offset`."""

    period: Expression
    offset: Expression | None
    body: tuple[Statement, ...]
    span: Span


@record
class Repeat:
    """A block that runs `count` times."""

    count: Expression
    body: tuple[Statement, ...]
    span: Span


@record
class Return:
    """The last line of a function."""

    value: Expression
    span: Span


@record
class Use:
    """`use NAME(bindings) [as alias] [with gradient = expr]`; a tuple hyper is bound to several values.

    `fixed` are the bindings that leave no argument, by their place among all.
    """

    name: str
    name_span: Span
    bindings: tuple[tuple[str, tuple[Expression, ...], Span], ...]
    fixed: tuple[int, ...]
    alias: str | None
    gradient: tuple[str, Expression, Span] | None
    span: Span


Statement: TypeAlias = AssignSyntax | If | Every | Repeat | Return | Use

# ---- declarations -------------------------------------------------------------------------------------

LiteralValue: TypeAlias = int | float | bool | str


@record
class IntervalSyntax:
    """`[0, 1)`."""

    low: int | float
    high: int | float
    low_open: bool
    high_open: bool
    span: Span


@record
class ChoicesSyntax:
    """`{"l2", "decoupled"}`."""

    values: tuple[str, ...]
    span: Span


@record
class HyperSyntax:
    """One line of `hyper:`. `parts` is empty for a plain one, else (name, default, span) per part.

    `ranges` are those of the parts, for each its own or, where it has none, `range`.
    """

    name: str
    name_span: Span
    default: LiteralValue | ListSyntax | None
    default_span: Span
    parts: tuple[tuple[str, LiteralValue, Span], ...]
    ranges: tuple[IntervalSyntax | ChoicesSyntax | None, ...]
    range: IntervalSyntax | ChoicesSyntax | None
    doc: str
    span: Span


@record
class StateSyntax:
    """One line of `state:`."""

    name: str
    name_span: Span
    level: str | None
    level_span: Span
    init: Expression | None
    key: str | None
    key_span: Span
    stored: str | None
    stored_span: Span
    delay: Expression | None
    span: Span


@record
class InputSyntax:
    """`input h [level] "text"`: something that each step is given beside the gradient."""

    name: str
    name_span: Span
    level: str | None
    level_span: Span
    doc: str
    span: Span


@record
class StepSyntax:
    """A `step:` block; `condition` for `step when`, `otherwise` for `step otherwise`."""

    condition: Expression | None
    otherwise: bool
    body: tuple[Statement, ...]
    span: Span


@record
class Def:
    """A function."""

    name: str
    name_span: Span
    parameters: tuple[tuple[str, Span], ...]
    body: tuple[Statement, ...]
    span: Span


@record
class Spec:
    """An `optimizer` or a `transform`. `uses` are the `use` lines outside a step; they run first.

    `view` is the block `eval:`.
    """

    kind: str
    name: str
    name_span: Span
    doc: str
    cite: str
    hypers: tuple[HyperSyntax, ...]
    states: tuple[StateSyntax, ...]
    inputs: tuple[InputSyntax, ...]
    uses: tuple[Use, ...]
    steps: tuple[StepSyntax, ...]
    view: StepSyntax | None
    span: Span


@record
class Import:
    """`import "lib/common.opt"`."""

    path: str
    span: Span


@record
class File:
    """A whole file."""

    path: str
    imports: tuple[Import, ...] = ()
    defs: tuple[Def, ...] = ()
    specs: tuple[Spec, ...] = ()
    edition: int = 1
    lines: tuple[str, ...] = field(default=(), repr=False)
