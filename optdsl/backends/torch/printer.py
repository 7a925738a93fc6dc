"""Expressions as Python that calls torch: one tensor at a time, or lists of tensors.

In both forms host values are Python numbers and group-level values 0-dim tensors. In the foreach form,
tensor-level and array values are lists with one entry per parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optdsl.core.ops import AXES_OPERANDS, CORE, Rule
from optdsl.core.types import Kind, Level
from optdsl.ir.expr import Call, Const, Expr, HostValue, Var, call, is_joint
from optdsl.ir.structure import Set
from optdsl.passes.intervals import Intervals

#: Binding strength in Python.
_TERNARY, _OR, _AND, _NOT, _COMPARE, _BITOR, _BITAND, _SUM, _PRODUCT, _UNARY, _POWER, _ATOM = range(12)

_COMPARES = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_INFIX = {"add": ("+", _SUM), "sub": ("-", _SUM), "mul": ("*", _PRODUCT), "div": ("/", _PRODUCT)}
_HOST_NAMES = {
    "abs": "abs_", "pow": "pow_", "round": "round_", "min": "minimum", "max": "maximum", "select": "where",
}  # fmt: skip
_METHODS = frozenset(
    [
        *("abs", "sign", "sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos"),
        *("atan", "tanh", "erf", "floor", "ceil", "round", "nan_to_num"),
    ]
)
#: Operators whose foreach function has another name.
_FOREACH_NAMES = {
    "pow": "power", "min": "minimum", "max": "maximum", "mod": "remainder", "select": "where",
    "and": "logical_and", "or": "logical_or", "not": "logical_not",
}  # fmt: skip
#: Operators that `optdsl.runtime.foreach` has as a unary function.
_FOREACH_UNARY = _METHODS - {"nan_to_num"}
#: Foreach functions with a variant that overwrites its first operand.
_OVERWRITING = _FOREACH_UNARY | {"neg", "add", "sub", "mul", "div"}

#: Every core operator the printer spells; a test holds this against the table of operators.
SPELLED = frozenset(
    {*_INFIX, *_COMPARES, *_METHODS, "and", "or", "not", "neg", "pow", "mod", "min", "max", "select", "atan2"}
    | {"isfinite", "broadcast", "reduce_sum", "reduce_mean", "reduce_max", "reduce_min"}
    | {
        "reduce_kth_largest",
        "normal",
        "uniform",
        "rademacher",
        "bernoulli",
        "matmul",
        "transpose",
        "newton_schulz",
        "entry",
        "count_upto",
        "identity",
        "gram",
        "matrix_power",
        "along_axes",
    }
)

#: The largest number in float32.
_LARGEST = (2 - 2**-23) * 2.0**127

Printed = tuple[str, int]


def python_literal(value: HostValue) -> str:
    """A literal, or the numbers of a list, as Python source."""
    if isinstance(value, tuple):
        return f"({', '.join(map(python_literal, value))}{',' * (len(value) == 1)})"
    if isinstance(value, float) and not math.isfinite(value):
        if value != value:
            return "math.nan"
        return "math.inf" if value > 0 else "-math.inf"
    if isinstance(value, str) and '"' not in value:
        return '"' + repr(value)[1:-1] + '"'
    return repr(value)


class Printer:
    """Prints expressions of one program; `names` maps values and inputs to Python variables."""

    def __init__(
        self,
        names: Mapping[str, str],
        intervals: Intervals,
        matrices: bool,
        foreach: bool,
        like: str = "whole",
    ) -> None:
        self.like = like  # the parameter as it was, for shapes, dtype and device
        self.names = names
        self.intervals = intervals
        self.matrices = matrices
        self.foreach = foreach
        #: Values whose lists nothing else needs when they are read: an operation may overwrite them.
        self.overwritable: frozenset[str] = frozenset()
        self._sites = 0

    @property
    def parameter(self) -> str:
        """The parameter as it was, or the list of them, in its own shape."""
        return "shaped" if self.matrices else "whole"

    def text(self, expr: Expr) -> str:
        """`expr` as Python source."""
        return self.print(expr)[0]

    def is_list(self, expr: Expr) -> bool:
        """True when the value is a list with an entry per parameter."""
        return self.foreach and expr.type.level >= Level.TENSOR

    def wrap(self, expr: Expr, least: int) -> str:
        """`expr`, in parentheses if it binds less than `least`."""
        text, strength = self.print(expr)
        return text if strength >= least else f"({text})"

    def print(self, expr: Expr) -> Printed:
        """(source, binding strength)."""
        if isinstance(expr, Const):
            text = python_literal(expr.value)
            return text, _UNARY if text.startswith("-") else _ATOM
        if isinstance(expr, Var):
            return self.variable(expr)
        if expr.op == "transpose" and expr.type.level < Level.ARRAY:
            return self.print(expr.args[0])
        if is_joint(expr):
            return self.joint(expr), _TERNARY
        if expr.type.is_host:
            return self.host(expr)
        if self.is_list(expr):
            lazy = expr.op == "select" and expr.args[0].type.is_host
            return self.listed(expr), _TERNARY if lazy else _ATOM
        return self.tensor(expr)

    def variable(self, expr: Var) -> Printed:
        if expr.name == "first_step":
            return "t == 1", _COMPARE
        return self.names.get(expr.name, expr.name), _ATOM

    def joint(self, expr: Call) -> str:
        assert expr.site is not None
        return f"yield {self.request(expr, expr.site)}"

    def request(self, expr: Call, site: int) -> str:
        """What is to be reduced, and over what. A list of values that are not per element has a name for them."""
        kind = expr.op.removeprefix("reduce_")
        values = ", ".join(map(self.text, expr.args))
        of = expr.args[0].type
        more = "" if of.is_element else f', of="{of.level_name}"'
        return f'Joint("{kind}", "{expr.attr}", {site}, {values}{more})'

    def meeting(self, items: Sequence[Set]) -> list[str]:
        """The lines that ask for reductions which meet at once."""
        requests = []
        for item in items:
            assert isinstance(item.expr, Call)
            requests.append(self.request(item.expr, self._sites))
        self._sites += 1
        if len(items) == 1:
            return [f"{items[0].target} = yield {requests[0]}"]
        lines = [f"{', '.join(item.target for item in items)} = yield ("]
        return [*lines, *(f"    {request}," for request in requests), ")"]

    # ---- host ------------------------------------------------------------------------------------

    def host(self, expr: Call) -> Printed:
        """Arithmetic on Python numbers. Plain operators where nothing can raise, else `host` functions."""
        op, args = expr.op, expr.args
        if op in _COMPARES:
            return f"{self.wrap(args[0], _BITOR)} {_COMPARES[op]} {self.wrap(args[1], _BITOR)}", _COMPARE
        if op in ("and", "or"):
            strength = _AND if op == "and" else _OR
            return f"{self.wrap(args[0], strength)} {op} {self.wrap(args[1], strength + 1)}", strength
        if op == "not":
            return f"not {self.wrap(args[0], _COMPARE)}", _NOT
        if op == "neg":
            return f"-{self.wrap(args[0], _UNARY)}", _UNARY
        if op == "select":
            then, condition, other = (
                self.wrap(args[1], _OR),
                self.wrap(args[0], _OR),
                self.wrap(args[2], _TERNARY),
            )
            return f"{then} if {condition} else {other}", _TERNARY
        if op in ("add", "sub", "mul") or (op == "div" and self.intervals.never_zero(args[1])):
            return self.infix(op, args)
        if op == "pow" and self.safe_power(expr):
            return self.powered(*args), _POWER
        arguments = ", ".join(map(self.text, args))
        return f"host.{_HOST_NAMES.get(op, op)}({arguments})", _ATOM

    def infix(self, op: str, args: tuple[Expr, ...]) -> Printed:
        symbol, strength = _INFIX[op]
        return f"{self.wrap(args[0], strength)} {symbol} {self.wrap(args[1], strength + 1)}", strength

    def safe_power(self, expr: Call) -> bool:
        """True when `a ** b` of Python numbers can neither raise nor become complex."""
        base, exponent = (self.intervals.of(arg) for arg in expr.args)
        return base.low >= 0 and base.high <= 1 and exponent.low >= 0

    # ---- one tensor ------------------------------------------------------------------------------

    def tensor(self, expr: Call) -> Printed:
        """An operation with at least one tensor among its operands."""
        op, args = expr.op, expr.args
        if op in _INFIX:
            return self.infix(op, args)
        if op in _COMPARES:
            return f"{self.wrap(args[0], _BITOR)} {_COMPARES[op]} {self.wrap(args[1], _BITOR)}", _COMPARE
        if op in ("and", "or"):
            symbol, strength = ("&", _BITAND) if op == "and" else ("|", _BITOR)
            return f"{self.wrap(args[0], strength)} {symbol} {self.wrap(args[1], strength + 1)}", strength
        if op == "not":
            return f"~{self.wrap(args[0], _UNARY)}", _UNARY
        if op == "neg":
            return f"-{self.wrap(args[0], _UNARY)}", _UNARY
        if op in _METHODS:
            return f"{self.wrap(args[0], _ATOM)}.{op}()", _ATOM
        if op == "pow":
            return self.power(*args)
        if op in ("min", "max"):
            return self.extreme(op, *args), _ATOM
        if op == "select":
            return self.choose(*args)
        rule = CORE[op].rule
        if rule is Rule.REDUCE:
            return self.reduce(expr), _ATOM
        if rule is Rule.RANDOM:
            return self.random(expr, "random"), _ATOM
        if rule is Rule.AXES:
            return f"axes.{op}({', '.join([*map(self.text, args), self.parameter])})", _ATOM
        return self.function(expr), _ATOM

    def function(self, expr: Call) -> str:
        """Operators that are spelled as a call."""
        op, args = expr.op, expr.args
        match op:
            case "broadcast":
                return f'broadcast({self.text(args[0])}, "{expr.attr}", {self.like})'
            case "mod":
                return f"torch.remainder({self.text(args[0])}, {self.text(args[1])})"
            case "atan2":
                return f"torch.atan2({self.as_tensor(args[0])}, {self.as_tensor(args[1])})"
            case "isfinite":
                return f"torch.isfinite({self.text(args[0])})"
            case "matmul":
                return f"torch.matmul({self.text(args[0])}, {self.text(args[1])})"
            case "transpose":
                return f"{self.wrap(args[0], _ATOM)}.mT"
            case "newton_schulz":
                return f"newton_schulz({self.text(args[0])}, {self.text(args[1])})"
        raise AssertionError(op)

    def power(self, base: Expr, exponent: Expr) -> Printed:
        if isinstance(exponent, Const) and exponent.value == 2:
            return f"{self.wrap(base, _ATOM)}.square()", _ATOM
        if base.type.is_host:
            return f"torch.pow({self.text(base)}, {self.text(exponent)})", _ATOM
        return self.powered(base, exponent), _POWER

    def powered(self, base: Expr, exponent: Expr) -> str:
        """`base ** exponent`, with spaces unless both are simple."""
        left, right = self.wrap(base, _ATOM), self.wrap(exponent, _UNARY)
        space = "" if all(isinstance(x, Var | Const) for x in (base, exponent)) else " "
        return f"{left}{space}**{space}{right}"

    def extreme(self, op: str, a: Expr, b: Expr) -> str:
        if a.type.is_host:
            a, b = b, a
        if b.type.is_host:
            bound = "max" if op == "min" else "min"
            return f"{self.wrap(a, _ATOM)}.clamp({bound}={self.fitted(b)})"
        return f"torch.{op}imum({self.text(a)}, {self.text(b)})"

    def choose(self, condition: Expr, then: Expr, other: Expr) -> Printed:
        if condition.type.is_host:
            text = f"{self.wrap(then, _OR)} if {self.wrap(condition, _OR)} else {self.wrap(other, _TERNARY)}"
            return text, _TERNARY
        if _is_indicator(then, other):
            return f"{self.wrap(condition, _ATOM)}.to({self.like}.dtype)", _ATOM
        a = self.as_tensor(then) if then.type.is_host and other.type.is_host else self.fitted(then)
        return f"torch.where({self.text(condition)}, {a}, {self.fitted(other)})", _ATOM

    def fitted(self, expr: Expr) -> str:
        """A value where torch refuses numbers beyond the range of the tensor beside it."""
        text = self.text(expr)
        if not expr.type.is_host or expr.type.kind is Kind.BOOL or isinstance(expr, Var):
            return text
        found = self.intervals.of(expr)
        return text if found.low >= -_LARGEST and found.high <= _LARGEST else f"fit({text}, {self.like})"

    def as_tensor(self, expr: Expr) -> str:
        """A host value where torch needs a tensor."""
        text = self.text(expr)
        return f'broadcast({text}, "group", {self.like})' if expr.type.is_host else text

    def reduce(self, expr: Call, name: str | None = None) -> str:
        """A reduction of one tensor; `name` is what the tensor is called, if it is not to be spelled out."""
        kind = expr.op.removeprefix("reduce_")
        if expr.attr == "tensor" and kind in ("sum", "mean"):
            return f"{name or self.wrap(expr.args[0], _ATOM)}.{kind}()"
        prefix = {"rows": "row", "cols": "col"}.get(str(expr.attr), "tensor")
        more = "".join(f", {self.text(arg)}" for arg in expr.args[1:])
        if expr.attr == "filter":
            x = self.shaped(expr.args[0], name or self.text(expr.args[0]), "y" if name else "shaped")
            found = f"over_filters(row_{kind}, {x}{more})"
            return f"as_matrix({found})" if self.matrices else found
        return f"{prefix}_{kind}({name or self.text(expr.args[0])}{more})"

    def random(self, expr: Call, source: str) -> str:
        arguments = [*(self.shaped(q, self.text(q)) for q in expr.args), str(expr.attr)]
        draw = f"{source}.{expr.op}({', '.join(arguments)})"
        return f"as_matrix({draw})" if self.matrices else draw

    def shaped(self, expr: Expr, text: str, like: str = "shaped") -> str:
        """An array in the shape of the parameter, when arrays are handled as matrices."""
        return f"like({text}, {like})" if self.matrices and expr.type.level is Level.ARRAY else text

    # ---- lists of tensors ------------------------------------------------------------------------

    def listed(self, expr: Call) -> str:
        """An operation whose result is a list."""
        op, args = expr.op, expr.args
        rule = CORE[op].rule
        if rule is Rule.RANDOM:
            return self.draws(expr)
        if op == "select" and args[0].type.is_host:
            then, other = self.wrap(args[1], _OR), self.wrap(args[2], _TERNARY)
            return f"{then} if {self.wrap(args[0], _OR)} else {other}"
        fused = self.multiply_add(expr)
        if fused:
            return fused
        if op == "pow" and isinstance(args[1], Const) and args[1].value == 2:
            return f"foreach.square({self.text(args[0])})"
        if op in ("add", "sub", "mul", "div", "neg") or op in _FOREACH_UNARY:
            return self.foreach_call(op, expr, args)
        if op == "broadcast":
            return f'foreach.broadcast({self.text(args[0])}, "{expr.attr}", whole)'
        if op == "select" and _is_indicator(*args[1:]):
            return f"foreach.indicator({self.text(args[0])}, whole)"
        if rule is Rule.REDUCE:
            text = self.reduce(expr, "x")
            if expr.attr == "filter" and self.matrices:
                return f"[{text} for x, y in zip({self.text(args[0])}, shaped, strict=True)]"
            return f"[{text} for x in {self.wrap(args[0], _OR)}]"
        if rule in (Rule.TRANSPOSE, Rule.MATRIX):
            body = "x.mT" if rule is Rule.TRANSPOSE else f"{op}(x, {self.text(args[1])})"
            return f"[{body} for x in {self.wrap(args[0], _OR)}]"
        if rule is Rule.AXES:
            return f"foreach.each({', '.join([f'axes.{op}', *map(self.text, args), self.parameter])})"
        like = ["whole"] if op in ("select", "atan2") else []
        return f"foreach.{_FOREACH_NAMES.get(op, op)}({', '.join([*map(self.text, args), *like])})"

    def foreach_call(self, name: str, expr: Call, args: tuple[Expr, ...], scale: Expr | None = None) -> str:
        """A call of a foreach function; it overwrites its first operand when that is a fresh list."""
        if name in ("add", "mul") and not self.fresh(args[0], expr) and self.fresh(args[1], expr):
            args = (args[1], args[0])
        suffix = "_" if self.fresh(args[0], expr) and name in _OVERWRITING else ""
        texts = [self.text(arg) for arg in args]
        return f"foreach.{name}{suffix}({', '.join(texts)})"

    def fresh(self, value: Expr, result: Expr) -> bool:
        """True when `value` is a list that only this expression holds, in the shape and kind of `result`."""
        if isinstance(value, Var):
            return value.name in self.overwritable and value.type == result.type
        return (
            isinstance(value, Call)
            and self.is_list(value)
            and value.type == result.type
            and not (value.op == "select" and value.args[0].type.is_host)
            and value.op not in ("broadcast", "matmul", "transpose", "newton_schulz", *AXES_OPERANDS)
        )

    def multiply_add(self, expr: Call) -> str | None:
        """`x + s * y`, `x + s * y * z` and `x + s * y / z` (s on the host) in one call, or None."""
        if expr.op not in ("add", "sub"):
            return None
        base, product = expr.args
        if expr.op == "add" and _host_factor(product) is None and _host_factor(base) is not None:
            base, product = product, base
        found = _host_factor(product)
        if found is None or not self.is_list(base) or base.type != expr.type:
            return None
        scale, rest = found
        value = self.text(scale) if expr.op == "add" else f"-{self.wrap(scale, _ATOM)}"
        own = "_" if self.fresh(base, expr) else ""
        first = self.text(base)
        if isinstance(rest, Call) and rest.op in ("div", "mul") and self._both_like(rest.args, expr):
            y, z = map(self.text, rest.args)
            return f"foreach.addc{rest.op}{own}({first}, {y}, {z}, {value})"
        if rest.type != expr.type:
            return None
        if isinstance(rest, Call) and rest.op == "pow":
            inner, exponent = rest.args
            if isinstance(inner, Var) and isinstance(exponent, Const) and exponent.value == 2:
                x = self.text(inner)
                return f"foreach.addcmul{own}({first}, {x}, {x}, {value})"
        return f"foreach.add_scaled{own}({first}, {self.text(rest)}, {value})"

    def _both_like(self, args: tuple[Expr, ...], expr: Expr) -> bool:
        return all(arg.type == expr.type for arg in args)

    def draws(self, expr: Call) -> str:
        q = expr.args[0] if expr.args else None
        if q is not None and self.is_list(q):
            if not self.matrices:
                return f"[r.{expr.op}(q, {expr.attr}) for r, q in zip(random, {self.text(q)}, strict=True)]"
            call = f"as_matrix(r.{expr.op}({self.shaped(q, 'q', 'x')}, {expr.attr}))"
            return f"[{call} for r, q, x in zip(random, {self.text(q)}, shaped, strict=True)]"
        return f"[{self.random(expr, 'r')} for r in random]"


def _is_indicator(then: Expr, other: Expr) -> bool:
    return isinstance(then, Const) and isinstance(other, Const) and (then.value, other.value) == (1.0, 0.0)


def _host_factor(expr: Expr) -> tuple[Expr, Expr] | None:
    """(s, rest) when `expr` is `s * rest`, `s * y / z` with s a host value, else None."""
    if not isinstance(expr, Call) or expr.op not in ("mul", "div"):
        return None
    left, right = expr.args
    if expr.op == "mul":
        if left.type.is_host and not right.type.is_host:
            return left, right
        if right.type.is_host and not left.type.is_host:
            return right, left
    inner = _host_factor(left)
    if inner is None or right.type.is_host:
        return None
    scale, rest = inner
    return scale, call(expr.op, rest, right)
