"""Expression nodes: small, immutable, interned, each with its type.

Two expressions are equal exactly when they are the same object, so `is`, `==` and dictionaries agree.
Constants are keyed by type and bit pattern: `0.0` is not `-0.0`, `1` is not `1.0`, nan equals itself.
Build nodes with `const`, `var` and `call` only; `call` computes the type and raises `TypeFault`.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from optdsl.core import types as ty
from optdsl.core.ops import AXES_OPERANDS, CORE, OVERS, CoreOp, Rule
from optdsl.core.record import field, record
from optdsl.core.types import Kind, Level, ShapeError, Type

Literal: TypeAlias = float | int | bool | str
#: What is known on the host: a literal, or the numbers of a list.
HostValue: TypeAlias = Literal | tuple[float, ...]


class TypeFault(Exception):
    """An operator got arguments it cannot take. `argument` is the index of the guilty one, if one is."""

    def __init__(self, message: str, argument: int | None = None) -> None:
        super().__init__(message)
        self.argument = argument


@record(eq=False, weakref_slot=True)
class Const:
    """A literal number, truth value or choice."""

    value: Literal
    type: Type

    @property
    def args(self) -> tuple[Expr, ...]:
        """No operands."""
        return ()

    @property
    def reads(self) -> frozenset[str]:
        """No names."""
        return frozenset()


@record(eq=False, weakref_slot=True)
class Var:
    """A named value: `p`, `g`, a fact, a hyperparameter, a stored state, or the result of an assignment.

    Names of inputs are plain (`m`), names of assignments carry a version (`m.1`).
    """

    name: str
    type: Type

    @property
    def args(self) -> tuple[Expr, ...]:
        """No operands."""
        return ()

    @property
    def reads(self) -> frozenset[str]:
        """The name itself."""
        return frozenset((self.name,))


@record(eq=False, weakref_slot=True)
class Call:
    """A core operator applied to operands. `attr` is `over` of a reduction or the site of a random draw.

    A joint reduction (`over=group` or `over=all`) also carries a site in `site`: all tensors that reach the
    same site in a step are reduced together. `reads` are the names below the node.
    """

    op: str
    args: tuple[Expr, ...]
    attr: str | int | None
    site: int | None
    type: Type
    reads: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Collects the names, which passes ask for all the time."""
        object.__setattr__(self, "reads", frozenset().union(*(arg.reads for arg in self.args)))


Expr: TypeAlias = Const | Var | Call

_INTERNED: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()


def _intern(key: Any, make: Callable[[], Any]) -> Any:
    node = _INTERNED.get(key)
    if node is None:
        node = make()
        _INTERNED[key] = node
    return node


def const(value: Literal) -> Const:
    """The literal `value`."""
    bits: object
    if isinstance(value, bool):
        kind, bits = Kind.BOOL, value
    elif isinstance(value, int):
        kind, bits = Kind.INT, value
    elif isinstance(value, float):
        # every nan is the one nan
        if value != value:
            value = float("nan")
        kind, bits = Kind.FLOAT, struct.pack("<d", value)
    else:
        kind, bits = Kind.CHOICE, value
    key = (Const, kind, bits)
    node: Const = _intern(key, lambda: Const(value, ty.const(kind)))
    return node


def var(name: str, type_: Type) -> Var:
    """The named value `name`."""
    node: Var = _intern((Var, name, type_), lambda: Var(name, type_))
    return node


def call(op: str, *args: Expr | Literal, over: str | None = None, site: int | None = None) -> Call:
    """The core operator `op` applied to `args` (Python literals become constants).

    Raises TypeFault when the operator cannot take them.
    """
    row = CORE[op]
    nodes = tuple(arg if isinstance(arg, Const | Var | Call) else const(arg) for arg in args)
    if len(nodes) != row.arity:
        raise TypeFault(f"`{op}` takes {row.arity} arguments, got {len(nodes)}")
    nodes, type_ = _typed(row, nodes, over)
    attr: str | int | None = over
    if row.rule is Rule.RANDOM:
        attr, site = site, None
    key = (Call, op, tuple(map(id, nodes)), attr, site)
    # the arguments are kept alive by the node, so their ids stay theirs as long as the key is in use
    node: Call = _intern(key, lambda: Call(op, nodes, attr, site, type_))
    return node


def rebuild(node: Expr, args: tuple[Expr, ...]) -> Expr:
    """`node` with other operands."""
    if not isinstance(node, Call) or (len(args) == len(node.args) and all(map(_same, args, node.args))):
        return node
    if CORE[node.op].rule is Rule.RANDOM:
        return call(node.op, *args, site=node.attr)  # type: ignore[arg-type]
    return call(node.op, *args, over=node.attr, site=node.site)  # type: ignore[arg-type]


def _same(a: Expr, b: Expr) -> bool:
    return a is b


def as_number(node: Expr) -> Expr:
    """A truth value as 1 or 0; a number as it is."""
    return call("select", node, 1.0, 0.0) if node.type.kind is Kind.BOOL else node


def _typed(row: CoreOp, args: tuple[Expr, ...], over: str | None) -> tuple[tuple[Expr, ...], Type]:
    """Checked (and, for truth values used as numbers, converted) operands and the type of the result."""
    if row.rule is Rule.LIST:
        args = _of_list(row, args)
    elif row.takes == "number":
        for index, arg in enumerate(args):
            if not arg.type.kind.computed:
                raise TypeFault(f"a {arg.type.kind.value} is not a number", index)
        args = tuple(map(as_number, args))
    elif row.takes == "bool":
        for index, arg in enumerate(args):
            if arg.type.kind is not Kind.BOOL:
                raise TypeFault(f"`{row.symbol}` needs conditions, this is a {_noun(arg.type.kind)}", index)
    else:
        args = _mixed(row, args)
    return args, _result(row, args, over)


def _of_list(row: CoreOp, args: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """A list and a number of the host."""
    values, x = args
    if values.type.kind is not Kind.LIST:
        raise TypeFault("only a list has entries", 0)
    if not x.type.kind.computed:
        raise TypeFault(f"a {x.type.kind.value} is not a number", 1)
    if not x.type.is_host:
        raise TypeFault("a list is for the host, and so is what it is asked for", 1)
    return values, as_number(x)


def _noun(kind: Kind) -> str:
    return {Kind.BOOL: "condition", Kind.CHOICE: "choice", Kind.LIST: "list"}.get(kind, "number")


def _mixed(row: CoreOp, args: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Operands of `select`, `eq` and `ne`: a truth value beside a number counts as a number."""
    head, rest = (args[:1], args[1:]) if row.name == "select" else ((), args)
    if head and head[0].type.kind is not Kind.BOOL:
        raise TypeFault("the condition of a choice between two values must be true or false", 0)
    kinds = {arg.type.kind for arg in rest}
    if Kind.LIST in kinds:
        raise TypeFault(
            "a list is not a number", next(i for i, a in enumerate(args) if a.type.kind is Kind.LIST)
        )
    if Kind.CHOICE in kinds:
        if kinds != {Kind.CHOICE}:
            raise TypeFault("a choice can only be compared with a choice", len(head))
        if head:
            raise TypeFault("a choice cannot be the result of a computation", 1)
    elif kinds != {Kind.BOOL}:
        rest = tuple(map(as_number, rest))
    return head + rest


def _result(row: CoreOp, args: tuple[Expr, ...], over: str | None) -> Type:
    kind = {"bool": Kind.BOOL, "int": Kind.INT}.get(row.result, Kind.FLOAT)
    if row.rule is Rule.LIST:
        return ty.host(kind)
    if row.result == "same":
        values = args[1:] if row.name == "select" else args
        kinds = {arg.type.kind for arg in values}
        if len(kinds) == 1:
            kind = kinds.pop()
    if row.rule is Rule.REDUCE:
        if len(args) > 1 and args[1].type.level > Level.GROUP:
            raise TypeFault(f"`{row.name}` takes one k for a parameter group", 1)
        return Type(Kind.FLOAT, *_reduced(args[0].type, over))
    if row.rule is Rule.BROADCAST:
        level = ty.LEVELS.get(over or "")
        assert level is not None, over
        if args[0].type.level > level[0] or not ty.broadcasts_into(args[0].type.shape, level[1]):
            raise TypeFault(f"{describe(args[0].type)} does not broadcast to [{over}]", 0)
        return Type(kind, *level)
    if row.rule is Rule.RANDOM:
        try:
            ty.broadcast(args[0].type.shape if args else ty.SCALAR, ty.ELEMENT)
        except ShapeError:
            raise TypeFault("a random draw has the shape of the parameter", 0) from None
        return ty.element()
    if row.rule is Rule.MATMUL:
        shape = _matmul(args[0].type, args[1].type)
        return Type(kind, Level.ARRAY if shape != ty.SCALAR else Level.TENSOR, shape)
    if row.rule is Rule.TRANSPOSE:
        a = args[0].type
        if a.shape == ty.AXES:
            raise TypeFault(f"a transpose needs a matrix, this is {describe(a)}", 0)
        return Type(kind, a.level, (a.shape[1], a.shape[0]))
    if row.rule is Rule.MATRIX:
        if ty.Dim.ONE in args[0].type.shape:
            raise TypeFault(f"`{row.name}` needs a matrix, this is {describe(args[0].type)}", 0)
        if not args[1].type.is_host:
            raise TypeFault("the number of steps must be known on the host", 1)
        return args[0].type.with_kind(kind)
    if row.rule is Rule.AXES:
        wanted, result = AXES_OPERANDS[row.name]
        for index, (arg, place) in enumerate(zip(args, wanted, strict=True)):
            if not (arg.type.is_host if place == "host" else arg.type.level_name == place):
                raise TypeFault(f"`{row.name}` needs {_WANTED[place]}, this is {describe(arg.type)}", index)
        return Type(kind, *ty.LEVELS[result])
    try:
        return Type(kind, *ty.join([arg.type for arg in args]))
    except ShapeError:
        names = " and ".join(f"[{arg.type.level_name}]" for arg in args if arg.type.level is Level.ARRAY)
        raise TypeFault(f"shapes do not fit together: {names}") from None


_WANTED = {
    "host": "a number known on the host",
    "axes": "a matrix for each axis",
    "element": "a value per element",
}


def _matmul(a: Type, b: Type) -> ty.Shape:
    for index, type_ in enumerate((a, b)):
        if type_.level < Level.ARRAY:
            raise TypeFault(f"`@` multiplies matrices, this is {describe(type_)}", index)
    try:
        return ty.matmul_shape(a.shape, b.shape)
    except ShapeError:
        raise TypeFault(
            f"`@` cannot multiply [{a.level_name}] by [{b.level_name}]: "
            f"{a.shape[1].value} is not {b.shape[0].value}"
        ) from None


def describe(type_: Type) -> str:
    """The place of a value, in words."""
    if type_.level is Level.ARRAY:
        if type_.shape == ty.AXES:
            return "one matrix per axis"
        return "one value per element" if type_.is_element else f"one value per [{type_.level_name}]"
    return {
        Level.CONST: "a constant",
        Level.HOST: "a number known on the host",
        Level.GROUP: "one number per parameter group",
        Level.TENSOR: "one number per tensor",
    }[type_.level]


def _reduced(type_: Type, over: str | None) -> tuple[Level, ty.Shape]:
    assert over in OVERS, over
    if type_.level < Level.TENSOR or (over == "tensor" and type_.level < Level.ARRAY):
        raise TypeFault(f"there is nothing to reduce: this is {describe(type_)}", 0)
    if over in ("group", "all"):
        return Level.GROUP, ty.SCALAR
    if over == "filter":
        if not type_.is_element:
            raise TypeFault(f"`over=filter` needs a value per element, this is {describe(type_)}", 0)
        return Level.ARRAY, ty.ELEMENT
    if over == "tensor":
        return Level.TENSOR, ty.SCALAR
    rows, cols = type_.shape
    if over == "rows":  # one value per row: the second dimension goes
        if cols is ty.Dim.ONE:
            raise TypeFault(f"`over=rows` needs a value per element, this is {describe(type_)}", 0)
        shape = (rows, ty.Dim.ONE)
    else:
        if rows is ty.Dim.ONE or type_.shape == ty.AXES:
            raise TypeFault(f"`over=cols` needs a value per element, this is {describe(type_)}", 0)
        shape = (ty.Dim.ONE, cols)
    return (Level.ARRAY, shape) if shape != ty.SCALAR else (Level.TENSOR, shape)


def walk(node: Expr) -> Iterator[Expr]:
    """Every node below and including `node`, operands before users, each once."""
    seen = {id(node)}
    stack: list[tuple[Expr, Iterator[Expr]]] = [(node, iter(node.args))]
    while stack:
        item, args = stack[-1]
        for arg in args:
            if id(arg) not in seen:
                seen.add(id(arg))
                if isinstance(arg, Call):
                    stack.append((arg, iter(arg.args)))
                    break
                yield arg
        else:
            stack.pop()
            yield item


def transform(node: Expr, visit: Callable[[Expr], Expr], memo: dict[int, Expr] | None = None) -> Expr:
    """Rebuilds `node` bottom-up, replacing each node by `visit(node)` once its operands are replaced."""
    done: dict[int, Expr] = {} if memo is None else memo
    for item in list(walk(node)):
        if id(item) not in done:
            done[id(item)] = visit(rebuild(item, tuple(done[id(arg)] for arg in item.args)))
    return done[id(node)]


def variables(node: Expr) -> frozenset[str]:
    """Names of the values `node` reads."""
    return node.reads


def is_random(node: Expr) -> bool:
    """True when `node` is itself a random draw."""
    return isinstance(node, Call) and CORE[node.op].rule is Rule.RANDOM


def is_joint(node: Expr) -> bool:
    """True when `node` is itself a reduction over several tensors."""
    return isinstance(node, Call) and node.attr in ("group", "all") and node.op != "broadcast"
