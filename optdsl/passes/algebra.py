"""Algebra on bloated expressions: sympy proposes, the cost and an accuracy check decide.

What a person wrote stays as it is. An expression is looked at only when a cheap test without sympy finds it
*bloated*: like terms, factors that cancel or pile up, literals that could merge, functions that undo each
other; expressions written for a paper hardly ever are, while evolved ones often are. Then

1. sympy rewrites the bloated nodes, in the few ways that end soon (`_Proposer`);
2. what it proposes must be cheaper on the device (`optdsl.passes.cost`);
3. it must be as accurate as the original (`_Judge`) on hostile inputs: computed in float32, operation by
   operation, its error is at most that of the original plus 2 ulp in every sample, and it is nan or infinite
   in the same way.

This is the only module that imports sympy, and it does so only for a bloated expression.
"""

from __future__ import annotations

import importlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from optdsl.core.record import record
from optdsl.core.types import Kind
from optdsl.ir.expr import Call, Const, Expr, Var, call, const, rebuild, transform, variables, walk
from optdsl.ir.program import Assign, Program
from optdsl.passes.cost import MAX_INT_POWER, cost, expression_cost
from optdsl.passes.intervals import Intervals
from optdsl.passes.rules import rewrite
from optdsl.passes.simplify import drop_dead, simplify, substitute

#: Operators that algebra sees through, on values of the device and on host values. All else is a leaf.
_DEVICE_OPS = frozenset({"add", "sub", "mul", "div", "neg", "abs", "sqrt", "exp", "log", "pow"})
_HOST_OPS = frozenset({"add", "sub", "mul", "neg"})
_MAX_EXPONENT = 16
_MAX_DEPTH = 40
_MAX_ROUNDS = 8
_MAX_WRITTEN = 10_000  # nodes of a step that is looked at as a whole


def improve(
    program: Program, budget_s: float = 2.0, max_nodes: int = 200, *, finite_only: bool = False
) -> Program:
    """`program` with bloated expressions replaced by cheaper and equally accurate ones, or `program` itself.

    Expressions of more than `max_nodes` nodes are taken in parts. `budget_s` is the time for all of them
    together, the import of sympy aside; a proposal under way is not interrupted, but the sizes of what sympy
    is asked are bounded. The outcome depends on the time only when the budget runs out. With `finite_only`
    nothing is asked where a value that an expression starts from is infinite or nan, and the sign of a zero
    may change; the search uses it, where such a step is lost anyway.
    """
    deadline = time.monotonic() + budget_s
    if not any(_flagged(expr, max_nodes) for expr in _forms(program)):
        return program
    return _Improver(program, deadline, max_nodes, finite_only).run()


# ---- what algebra sees ------------------------------------------------------------------------------------


def _exponent(node: Expr) -> Fraction | None:
    """The value of a literal that may be an exponent: a multiple of 1/16 that is not large."""
    value = _number(node)
    if value is None or abs(value) > _MAX_EXPONENT or value.denominator > _MAX_EXPONENT:
        return None
    return value


def _number(node: Expr) -> Fraction | None:
    """The value of a finite literal number."""
    if not isinstance(node, Const) or node.type.kind not in (Kind.INT, Kind.FLOAT):
        return None
    assert isinstance(node.value, int | float)
    return Fraction(node.value) if math.isfinite(node.value) else None


def _inner(node: Expr) -> bool:
    """True when algebra sees through `node` to its operands."""
    if not isinstance(node, Call) or node.type.kind is not Kind.FLOAT:
        return False
    if node.type.is_host:
        return node.op in _HOST_OPS
    if node.op == "pow":
        return _exponent(node.args[1]) is not None and not isinstance(node.args[0], Const)
    return node.op in _DEVICE_OPS


def _region(root: Expr) -> Iterator[Expr]:
    """The nodes that algebra sees from `root`: inner nodes and leaves, operands first, each once."""
    seen: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            if _inner(node):
                stack.extend((arg, False) for arg in reversed(node.args))


def _measure(root: Expr) -> dict[int, tuple[int, int]]:
    """(size as a tree, depth) of every node below `root`, as far as algebra sees from that node."""
    sizes: dict[int, tuple[int, int]] = {}
    for node in walk(root):
        below = [sizes[id(arg)] for arg in node.args] if _inner(node) else []
        sizes[id(node)] = (1 + sum(s for s, _ in below), 1 + max((d for _, d in below), default=0))
    return sizes


def _roots(expr: Expr, max_nodes: int) -> set[int]:
    """Largest nodes of `expr` that algebra can take as a whole: device arithmetic within the size limits."""
    sizes = _measure(expr)

    def fits(node: Expr) -> bool:
        size, depth = sizes[id(node)]
        return _inner(node) and not node.type.is_host and size <= max_nodes and depth <= _MAX_DEPTH

    found = {id(expr)} if fits(expr) else set()
    for node in walk(expr):
        if not fits(node):
            found |= {id(arg) for arg in node.args if fits(arg)}
    return found


def _replaced(root: Expr, old: Expr, new: Expr) -> Expr:
    """`root` with the inner node `old` replaced by `new`."""
    done: dict[Expr, Expr] = {}
    for node in _region(root):
        if node is old:
            done[node] = new
        else:
            done[node] = rebuild(node, tuple(done[arg] for arg in node.args)) if _inner(node) else node
    return done[root]


# ---- the cheap test ---------------------------------------------------------------------------------------


def _forms(program: Program) -> Iterator[Expr]:
    """The expressions that `improve` looks at."""
    inline = _Inline(program)
    for assign in program.body:
        yield assign.expr
        inlined = inline(assign)
        if inlined is not assign.expr:
            yield inlined


def _flagged(expr: Expr, max_nodes: int) -> bool:
    """True when some part of `expr` that algebra can take is bloated."""
    if not any(_inner(node) for node in walk(expr)):
        return False
    roots = _roots(expr, max_nodes)
    return any(
        bloated(node) for root in walk(expr) if id(root) in roots for node in _region(root) if _inner(node)
    )


def bloated(node: Expr) -> bool:
    """A cheap test whether algebra may make `node` itself cheaper; its operands are not asked.

    Tuned to leave ordinary forms alone: moving averages, `lerp`, decay as `p - lr * decay * p`, squares,
    `m / (1 - beta^t) / (sqrt(v) + eps)`.
    """
    if not isinstance(node, Call) or not _inner(node) or node.type.is_host:
        return False
    if node.op in ("add", "sub"):
        return _bloated_sum(node)
    if node.op in ("mul", "div"):
        return _bloated_product(node)
    return _undone(node)


def _undone(node: Call) -> bool:
    """A function of a function that undoes it, or merges with it."""
    match node.op, node.args[0]:
        case "exp", Call("log"):
            return True
        case "exp", Call("mul" | "div", args):
            return any(isinstance(arg, Call) and arg.op == "log" for arg in args)
        case "log", Call("exp" | "pow" | "sqrt"):
            return True
        case (("pow" | "sqrt"), Call("pow" | "sqrt" | "exp")):
            return True
        case "pow", Call("abs"):
            exponent = _exponent(node.args[1])
            return exponent is not None and exponent % 2 == 0
        case "abs", Call("sqrt" | "exp" | "abs"):
            return True
        case "abs", Call("pow", (_, exponent)):
            value = _exponent(exponent)
            return value is not None and value % 2 == 0
        case "neg", Call("neg"):
            return True
    return False


def _factors(node: Expr, power: Fraction = Fraction(1)) -> Iterator[tuple[Expr, Fraction]]:
    """(base, exponent) of every factor of a product, each as often as it is written."""
    match node:
        case Call("mul", (a, b)) if _inner(node):
            yield from _factors(a, power)
            yield from _factors(b, power)
        case Call("div", (a, b)) if _inner(node):
            yield from _factors(a, power)
            yield from _factors(b, -power)
        case Call("neg", (a,)) if _inner(node):
            yield from _factors(a, power)
        case Call("sqrt", (a,)) if _inner(node):
            yield a, power / 2
        case Call("pow", (a, b)) if _inner(node):
            exponent = _exponent(b)
            assert exponent is not None
            yield a, power * exponent
        case _:
            yield node, power


def _bloated_product(node: Expr) -> bool:
    powers: dict[Expr, list[Fraction]] = defaultdict(list)
    literals = exponentials = 0
    for base, power in _factors(node):
        if isinstance(base, Const):
            literals += 1
        elif isinstance(base, Call) and base.op == "exp" and not base.type.is_host:
            exponentials += 1
            powers[base].append(power)
        elif not base.type.is_host:
            powers[base].append(power)
    if literals >= 2 or exponentials >= 2:
        return True
    return any(
        len(found) >= 2 and (_merge(found) or (isinstance(base, Call) and base.op == "abs"))
        for base, found in powers.items()
    )


def _merge(powers: list[Fraction]) -> bool:
    """True when the product of these powers of one base is better written as one power."""
    if min(powers) < 0 < max(powers) or sum(p.denominator > 1 for p in powers) >= 2:
        return True
    whole = [abs(p).numerator for p in powers if p.denominator == 1]
    apart = sum(map(_multiplications, whole)) + len(whole) - 1
    return apart > _multiplications(sum(whole))


def _multiplications(n: int) -> int:
    return n.bit_length() + n.bit_count() - 2 if n else 0


@record
class _Term:
    """One term of a sum: what stands beside the device factors, and whether it had to be multiplied out."""

    bare: bool
    named: bool  # some host value other than a literal is a factor
    spread: bool


def _bloated_sum(node: Expr) -> bool:
    literals = 0
    terms: dict[Any, list[_Term]] = defaultdict(list)
    for key, term in _terms(node, _Term(True, False, False)):
        if key is None:
            literals += not term.spread
        else:
            terms[key].append(term)
    return literals >= 2 or any(map(_like, terms.values()))


def _like(terms: list[_Term]) -> bool:
    """True when terms with the same device factors are worth adding up."""
    if len(terms) != 2:
        return len(terms) > 2
    if any(term.spread for term in terms):
        return False  # a + w * (b - a)
    # p - lr * decay * p
    return not (any(term.bare for term in terms) and any(term.named for term in terms))


def _terms(node: Expr, so_far: _Term) -> Iterator[tuple[Any, _Term]]:
    """(key of the device factors, term) for every term of a sum; host factors are multiplied out.

    The key is None for literals. Terms of host values alone are left out.
    """
    stack = [(node, so_far)]
    while stack:
        item, term = stack.pop()
        if isinstance(item, Call) and _inner(item) and item.op in ("add", "sub", "neg"):
            if item.type.is_host:
                continue
            stack.extend((arg, term) for arg in reversed(item.args))
            continue
        bare, named = term.bare, term.named
        device: Counter[Expr] = Counter()
        for base, power in _factors(item):
            if base.type.is_host:
                bare = False
                named |= not isinstance(base, Const)
            else:
                device[base] += power  # type: ignore[assignment]
        if not device:
            if isinstance(item, Const):
                yield None, term
            continue
        only = next(iter(device))
        whole = len(device) == 1 and device[only] == 1
        if whole and isinstance(only, Call) and only.op in ("add", "sub") and _inner(only):
            stack.append((only, _Term(bare, named, term.spread or only is not item)))
            continue
        yield frozenset(device.items()), _Term(bare, named, term.spread)


# ---- the pass ---------------------------------------------------------------------------------------------


class _Inline:
    """Puts assignments that are read in one other assignment only, under the same guard, into that one."""

    def __init__(self, program: Program) -> None:
        self.definitions = {assign.name: assign for assign in program.body}
        self.readers: Counter[str] = Counter()
        for assign in program.body:
            self.readers.update(variables(assign.expr))
            for condition, _ in assign.guard:
                self.readers.update(dict.fromkeys(variables(condition), 2))
        for expr in program.results.values():
            self.readers.update(dict.fromkeys(variables(expr), 2))

    def __call__(self, assign: Assign, values: dict[str, Expr] | None = None) -> Expr:
        """The expression of `assign` with such values in place; `values` collects them by name."""
        values = {} if values is None else values
        expr = assign.expr
        for _ in range(len(self.definitions)):
            found = {}
            for root in walk(expr):
                if _inner(root) and not root.type.is_host:
                    for arg in root.args:
                        if isinstance(arg, Var) and self.fits(arg, assign):
                            found[arg.name] = self.definitions[arg.name].expr
            if not found or len(values) > 200:
                break
            values |= found
            expr = substitute(expr, found)
        return expr

    def fits(self, name: Var, reader: Assign) -> bool:
        made = self.definitions.get(name.name)
        return (
            made is not None
            and self.readers[name.name] == 1
            and made.guard == reader.guard
            and _inner(made.expr)
            and not made.expr.type.is_host
        )


class _OutOfTime(Exception):
    """The budget is spent."""


class _Improver:
    def __init__(self, program: Program, deadline: float, max_nodes: int, finite_only: bool) -> None:
        self.program = program
        self.max_nodes = max_nodes
        self.finite_only = finite_only
        self.host = _Host(program)
        before = time.monotonic()
        self.proposer = _Proposer(Intervals(program), self.check_time)
        self.deadline = deadline + time.monotonic() - before  # the import of sympy is not counted
        self.memo: dict[Expr, Expr] = {}

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def check_time(self) -> None:
        if self.late:
            raise _OutOfTime

    def run(self) -> Program:
        best = self.program
        for _ in range(_MAX_ROUNDS):
            self.each()
            if _written_size(self.program) <= _MAX_WRITTEN:
                self.together()
                if self.program is not best:
                    # what has become equal gets one name, what is only a name goes
                    self.program = simplify(self.program, exact_only=True)
            if not cost(self.program) < cost(best):
                break
            best = self.program
        return best

    def replace(self, name: str, expr: Expr) -> None:
        body = tuple(
            Assign(a.name, a.source, expr, a.guard, a.line) if a.name == name else a
            for a in self.program.body
        )
        self.program = self.program.with_body(body, self.program.results)

    def each(self) -> None:
        """Every assignment by itself."""
        for assign in self.program.body:
            expr = self.expression(assign.expr)
            if expr is not assign.expr:
                self.replace(assign.name, expr)

    def together(self) -> None:
        """Assignments with those that only they read."""
        inline = _Inline(self.program)
        for name in [assign.name for assign in reversed(self.program.body)]:
            assign = inline.definitions.get(name)
            if assign is None or self.late:
                continue
            values: dict[str, Expr] = {}
            inlined = inline(assign, values)
            if inlined is assign.expr:
                continue
            expr = self.expression(inlined)
            if expr is not inlined:
                self.replace(name, _named(expr, values, inline))
                self.program = drop_dead(self.program)
                inline = _Inline(self.program)

    def expression(self, expr: Expr) -> Expr:
        """`expr` with its parts improved, those below first."""
        if self.late:
            return expr
        roots = _roots(expr, self.max_nodes)
        if not roots:
            return expr
        done: dict[int, Expr] = {}
        for node in walk(expr):
            new = rebuild(node, tuple(done[id(arg)] for arg in node.args))
            if id(node) in roots and not self.late:
                new = self.region(new)
            done[id(node)] = new
        return done[id(expr)]

    def region(self, root: Expr) -> Expr:
        """The cheapest accurate form of `root` that was found."""
        if root not in self.memo:
            self.memo[root] = self.search(root)
        return self.memo[root]

    def search(self, root: Expr) -> Expr:
        if not any(bloated(node) for node in _region(root)):
            return root
        judge = _Judge(root, self.host, self.finite_only)
        best, tried = root, set[Expr]()
        try:
            for _ in range(_MAX_ROUNDS):
                better = self.round(best, judge, tried)
                if better is None:
                    break
                best = better
        except _OutOfTime:
            pass  # what was found before stands
        return best

    def round(self, best: Expr, judge: _Judge, tried: set[Expr]) -> Expr | None:
        """A better form of `best`: of the whole if there is one, else of a bloated node, largest first."""
        sizes = _measure(best)
        nodes = [n for n in _region(best) if n is best or bloated(n)]
        nodes.sort(key=lambda n: -sizes[id(n)][0])
        for node in nodes:
            if node in tried:
                continue
            tried.add(node)
            self.check_time()
            now = expression_cost([best]).device_key
            forms: list[tuple[tuple[int, ...], int, Expr]] = []
            for form in self.proposer.proposals(node):
                whole = _replaced(best, node, form)
                price = expression_cost([whole]).device_key
                if whole.type == best.type and price < now:
                    forms.append((price, len(forms), whole))
            for _, _, whole in sorted(forms, key=lambda form: form[:2]):
                self.check_time()
                if judge.accepts(whole):
                    return whole
        return None


def _written_size(program: Program) -> float:
    """The number of nodes in the step if a shared node counts each time it is used."""
    sizes: dict[int, float] = {}
    total = 0.0
    for assign in program.body:
        for node in walk(assign.expr):
            sizes[id(node)] = 1.0 + sum(sizes[id(arg)] for arg in node.args)
        total += sizes[id(assign.expr)]
    return total


def _named(expr: Expr, values: Mapping[str, Expr], inline: _Inline) -> Expr:
    """`expr` with values that survived called by their names again, the last ones first."""
    for name, made in reversed(inline.definitions.items()):
        if name in values:
            for form in (inline(made), made.expr):
                expr = transform(expr, lambda n, f=form, v=made.var: v if n is f else n)  # type: ignore[misc]
    return expr


# ---- proposals --------------------------------------------------------------------------------------------


class _Unspeakable(Exception):
    """Something that has no counterpart on the other side."""


class _Proposer:
    """Asks sympy for other forms of a node.

    Left out of sympy is what may not end: `simplify` and all that calls it. Sums are multiplied out, and
    polynomials factored, only while they are small.
    """

    MAX_TERMS = 48
    MAX_SYMBOLS = 7
    MAX_DEGREE = 8

    def __init__(self, intervals: Intervals, check_time: Callable[[], None]) -> None:
        import sympy

        self.sympy: Any = sympy
        self.intervals = intervals
        self.check_time = check_time

    def proposals(self, node: Expr) -> Iterator[Expr]:
        """Different forms of `node`, whatever they cost and however inaccurate they are."""
        bridge = _Bridge(self.sympy, self.intervals)
        seen = {node}
        for form in self._forms(node, bridge):
            for late in (False, True):
                try:
                    expr = bridge.back(form, late)
                except (_Unspeakable, OverflowError, RecursionError):
                    break
                if expr not in seen:
                    seen.add(expr)
                    yield expr

    def _forms(self, node: Expr, bridge: _Bridge) -> Iterator[Any]:
        """Sympy expressions equal to `node`, where all is finite."""
        try:
            whole = bridge.forth(node)
        except (_Unspeakable, RecursionError):
            return
        sympy, seen = self.sympy, set[Any]()
        todo: list[tuple[Any, bool]] = [(whole, True)]
        while todo:
            form, first = todo.pop(0)
            if form in seen:
                continue
            seen.add(form)
            yield form
            if not first:
                continue
            steps: list[Callable[[Any], Any]] = [
                sympy.powsimp, sympy.powdenest, sympy.factor_terms, sympy.gcd_terms
            ]  # fmt: skip
            if self._terms(form) <= self.MAX_TERMS:
                steps += [bridge.gathered, lambda e: sympy.factor_terms(bridge.gathered(e))]
                steps += [lambda e: sympy.powsimp(sympy.expand(e))]
                if self._is_small(form):
                    steps += [sympy.together, sympy.cancel, sympy.factor]
            for step in steps:
                self.check_time()
                try:
                    todo.append((step(form), False))
                except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
                    continue  # sympy could not: there is no such form
                except RecursionError:
                    continue

    def _terms(self, form: Any) -> int:
        """An upper bound on the number of terms of any part of `form`, multiplied out."""
        worst = 1
        counts: dict[Any, int] = {}
        for part in self.sympy.postorder_traversal(form):
            inner = [counts[arg] for arg in part.args]
            count = 1
            if part.is_Add:
                count = sum(inner)
            elif part.is_Mul:
                count = math.prod(inner)
            elif part.is_Pow and part.exp.is_Rational:
                n = min(math.ceil(abs(part.exp)), 64)
                count = math.comb(counts[part.base] + n - 1, n)
            counts[part] = min(count, 10**6)
            worst = max(worst, counts[part])
        return worst

    def _is_small(self, form: Any) -> bool:
        """True when factors and common divisors of the polynomials in `form` are found soon."""
        if len(form.free_symbols) > self.MAX_SYMBOLS:
            return False
        return all(degree <= self.MAX_DEGREE for degree in self._degrees(form).values())

    def _degrees(self, form: Any) -> dict[Any, int]:
        """A bound on the degree of each part of `form`, numerators and denominators together."""
        degrees: dict[Any, int] = {}
        for part in self.sympy.postorder_traversal(form):
            inner = [degrees[arg] for arg in part.args]
            degree = 1
            if part.is_Number:
                degree = 0
            elif part.is_Add:
                # over a common denominator the degrees of denominators add up
                whole = all(not f.is_Pow or f.exp.is_positive for t in part.args for f in _parts(t))
                degree = max(inner) if whole else sum(inner)
            elif part.is_Mul:
                degree = sum(inner)
            elif part.is_Pow and part.exp.is_Rational:
                n, d = part.exp.as_numer_denom()
                degree = degrees[part.base] * min(abs(int(n)), 1000) if d == 1 else min(abs(int(n)), 1000)
            degrees[part] = degree
        return degrees


def _is_function(node: Expr) -> bool:
    return _inner(node) and isinstance(node, Call) and node.op in ("abs", "sqrt", "exp", "log", "pow")


def _parts(term: Any) -> tuple[Any, ...]:
    return tuple(term.args) if term.is_Mul else (term,)


class _Bridge:
    """From nodes to sympy and back. Literals that are not simple numbers become symbols, so that a constant
    keeps its value to the last bit, and what is made of several is rounded once.
    """

    MAX_OPERAND = 30  # nodes below a function; beyond, its value is a symbol

    def __init__(self, sympy: Any, intervals: Intervals) -> None:
        self.sympy = sympy
        self.intervals = intervals
        self.memo: dict[Expr, Any] = {}
        self.leaves: dict[Any, Expr] = {}
        self.values: dict[Any, Fraction] = {}
        self.order: dict[Any, int] = {}

    # ---- to sympy ---------------------------------------------------------------------------------------

    def forth(self, root: Expr) -> Any:
        """`root` in sympy. Raises _Unspeakable."""
        sizes = _measure(root)
        for node in _region(root):
            if node not in self.memo:
                big = sizes[id(node)][0] > self.MAX_OPERAND and node is not root
                self.memo[node] = self._leaf(node) if big and _is_function(node) else self._forth(node)
        return self.memo[root]

    def _forth(self, node: Expr) -> Any:
        sympy = self.sympy
        if not _inner(node):
            number = _number(node)
            if number is None:
                return self._leaf(node)
            if abs(number.numerator) <= 4096 and number.denominator <= 4096:
                return sympy.Rational(number.numerator, number.denominator)
            symbol = self._literal(abs(number))
            return symbol if number > 0 else -symbol
        assert isinstance(node, Call)
        args = [self.memo[arg] for arg in node.args if arg in self.memo]
        match node.op, args:
            case "add", (a, b):
                result = a + b
            case "sub", (a, b):
                result = a - b
            case "mul", (a, b):
                result = a * b
            case "div", (a, b):
                result = a / b
            case "neg", (a,):
                result = -a
            case (("abs" | "log"), (a,)) if a.has(sympy.Add, sympy.log):
                # sympy would look for its sign, or for real and imaginary parts
                return self._leaf(node)
            case "abs", (a,):
                result = sympy.Abs(a)
            case "sqrt", (a,):
                result = sympy.sqrt(a)
            case "exp", (a,):
                result = sympy.exp(a)
            case "log", (a,):
                result = sympy.log(a)
            case "pow", (a, b):
                if a.is_Number and abs(a) > 10**6:
                    raise _Unspeakable
                result = a**b
            case _:
                raise AssertionError(node.op)
        if result.has(sympy.nan, sympy.oo, sympy.zoo, sympy.I, -sympy.oo):
            raise _Unspeakable
        return result

    def _leaf(self, node: Expr) -> Any:
        assumptions = {"real": True}
        if node.type.is_host:
            known = self.intervals.of(node)
            if known.low > 0 or (known.low == 0 and known.low_open):
                assumptions["positive"] = True
        elif isinstance(node, Call) and node.op in ("abs", "sqrt", "exp"):
            assumptions["nonnegative"] = True
        symbol = self.sympy.Symbol(f"x{len(self.order)}", **assumptions)
        self.order[symbol] = len(self.order)
        self.leaves[symbol] = node
        return symbol

    def _literal(self, value: Fraction) -> Any:
        for symbol, known in self.values.items():
            if known == value:
                return symbol
        symbol = self.sympy.Symbol(f"c{len(self.values)}", positive=True)
        self.order[symbol] = len(self.order)
        self.values[symbol] = value
        return symbol

    def gathered(self, form: Any) -> Any:
        """`form` multiplied out, with the host factors of like terms added up."""
        device = [symbol for symbol, leaf in self.leaves.items() if not leaf.type.is_host]
        sums: dict[Any, Any] = {}
        for term in self.sympy.Add.make_args(self.sympy.expand(form)):
            host, rest = term.as_independent(*device, as_Add=False)
            sums[rest] = sums.get(rest, 0) + host
        return self.sympy.Add(*(host * rest for rest, host in sums.items()))

    # ---- and back ---------------------------------------------------------------------------------------

    def back(self, form: Any, late: bool) -> Expr:
        """A node for `form`: what is known early is computed first, but host factors come last if `late`.

        Raises _Unspeakable, and OverflowError when a literal would be infinite.
        """
        return _Writer(self, late).write(form)

    def place(self, form: Any) -> tuple[int, Any]:
        """Sorts operands by where their leaves first occur."""
        first = min((self.order[s] for s in form.free_symbols), default=-1)
        return first, self.sympy.default_sort_key(form)

    def literal(self, form: Any) -> Fraction | None:
        """The exact value of a form without leaves, as far as it is rational."""
        if form.is_Rational:
            return Fraction(int(form.p), int(form.q))
        if form in self.values:
            return self.values[form]
        if form.is_Pow and form.exp.is_Integer and abs(form.exp) <= _MAX_EXPONENT:
            base = self.literal(form.base)
            return None if base is None else base ** int(form.exp)
        if form.is_Mul or form.is_Add:
            values = [self.literal(arg) for arg in form.args]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                return math.prod(known, start=Fraction(1)) if form.is_Mul else sum(known, Fraction(0))
        return None


class _Writer:
    """Writes one sympy expression as a node."""

    def __init__(self, bridge: _Bridge, late: bool) -> None:
        self.bridge = bridge
        self.late = late
        self.memo: dict[Any, Expr] = {}

    def write(self, form: Any) -> Expr:
        if form not in self.memo:
            self.memo[form] = self._write(form)
        return self.memo[form]

    def _write(self, form: Any) -> Expr:
        sympy = self.bridge.sympy
        literal = self.bridge.literal(form)
        if literal is not None:
            return _rounded(literal)
        if form in self.bridge.leaves:
            return self.bridge.leaves[form]
        if form.is_Add:
            return self._sum(form)
        if form.is_Mul or form.is_Pow:
            return self._product(form)
        for function, op in ((sympy.exp, "exp"), (sympy.log, "log"), (sympy.Abs, "abs")):
            if isinstance(form, function):
                return _made(op, self.write(form.args[0]))
        raise _Unspeakable(str(form))

    def _sum(self, form: Any) -> Expr:
        """Literals are added exactly; host values before others."""
        constant = Fraction(0)
        host: list[tuple[bool, Expr]] = []
        device: list[tuple[bool, Expr]] = []
        for term in sorted(form.args, key=self.bridge.place):
            literal = self.bridge.literal(term)
            if literal is not None:
                constant += literal
                continue
            negative = self._scale(term) < 0
            node = self.write(-term if negative else term)
            (host if node.type.is_host else device).append((negative, node))
        if constant:
            host.append((constant < 0, _rounded(abs(constant))))
        if host and device:
            total = _added(host)
            match total:
                case Call("neg", (inner,)):
                    device.append((True, inner))
                case Const(value) if isinstance(value, float | int) and value < 0:
                    device.append((True, const(-value)))
                case _:
                    device.append((False, total))
            return _added(device)
        return _added(host or device)

    def _scale(self, term: Any) -> Fraction:
        """The literal factor of a term."""
        scale = Fraction(1)
        for factor in _parts(term):
            scale *= self.bridge.literal(factor) or 1
        return scale

    def _product(self, form: Any) -> Expr:
        """(literals and host factors) * coarse factors * fine factors / (the same of the denominator)."""
        scale = Fraction(1)
        above: list[Expr] = []
        below: list[Expr] = []
        host_above: list[Expr] = []
        host_below: list[Expr] = []
        for factor in sorted(_parts(form), key=self.bridge.place):
            literal = self.bridge.literal(factor)
            if literal is not None:
                scale *= literal
                continue
            base, exponent = (factor.base, factor.exp) if factor.is_Pow else (factor, self.bridge.sympy.S.One)
            if not exponent.is_Rational:
                raise _Unspeakable(str(form))
            power = Fraction(int(exponent.p), int(exponent.q))
            for node in _powers(self.write(base), abs(power)):
                if node.type.is_host:
                    (host_above if power > 0 else host_below).append(node)
                else:
                    (above if power > 0 else below).append(node)
        factor = self._host(scale, host_above, host_below)
        if not above and not below:
            return factor
        above.sort(key=lambda node: node.type.level)
        below.sort(key=lambda node: node.type.level)
        negative = isinstance(factor, Const) and _number(factor) == -1
        unit = negative or (isinstance(factor, Const) and _number(factor) == 1)
        if not unit and (not self.late or not above):
            above.insert(0, factor)
        result = _multiplied(above) if above else const(1.0)
        if below:
            result = _made("div", result, _multiplied(below))
        if not unit and factor not in above:
            result = _made("mul", result, factor)
        return _made("neg", result) if negative else result

    def _host(self, scale: Fraction, above: list[Expr], below: list[Expr]) -> Expr:
        """The factor known on the host."""
        if scale == 0:
            raise _Unspeakable
        if above and abs(scale) != 1:
            above = [_rounded(scale), *above]
        result = _multiplied(above) if above else _rounded(scale)
        if below:
            result = _made("div", result, _multiplied(below))
        return _made("neg", result) if above and scale == -1 else result


def _made(op: str, *args: Expr | float) -> Expr:
    """The operator applied to `args`, after the exact local rules."""
    return rewrite(call(op, *args), exact_only=True)


def _rounded(value: Fraction) -> Const:
    """The literal nearest to `value`. Raises OverflowError."""
    rounded = value.numerator / value.denominator
    if value and not rounded:
        raise OverflowError
    return const(rounded)


def _added(terms: Iterable[tuple[bool, Expr]]) -> Expr:
    """The sum of (negative, term), a positive one first."""
    ordered = sorted(terms, key=lambda term: term[0])
    first_positive = ordered[0]
    rest = list(terms)
    rest.remove(first_positive)
    negative, result = first_positive
    for minus, term in rest:
        result = _made("sub" if minus is not negative else "add", result, term)
    return _made("neg", result) if negative else result


def _multiplied(factors: list[Expr]) -> Expr:
    result = factors[0]
    for factor in factors[1:]:
        result = _made("mul", result, factor)
    return result


def _powers(base: Expr, power: Fraction) -> list[Expr]:
    """Factors whose product is `base ^ power`, for a positive power."""
    whole, rest = divmod(power, 1)
    if whole > MAX_INT_POWER or rest not in (0, Fraction(1, 2)):
        return [_made("pow", base, power.numerator / power.denominator if rest else int(power))]
    factors = [base if whole == 1 else _made("pow", base, int(whole))] if whole else []
    return factors + ([_made("sqrt", base)] if rest else [])


# ---- accuracy ---------------------------------------------------------------------------------------------


def _numpy() -> Any:
    return importlib.import_module("numpy")


class _Host:
    """Random values of what is known on the host: hyperparameters inside their intervals, their defaults and
    (where closed) the ends of the intervals; facts of a tensor; and what is computed from these, in double.

    Hyperparameters that are not bounded stay below 10^4, and above 10^-10 from the ends of their intervals.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.definitions = {a.name: a.expr for a in program.body if a.expr.type.is_host}

    def sample(self, wanted: Iterable[Expr], n: int, rng: Any, edges: int = 0) -> dict[Expr, Any]:
        """Arrays of `n` values for each of the host expressions `wanted`.

        In the last `edges` of them, most hyperparameters are at an end of their interval, and `t` is 1.
        """
        names = self._inputs(n, rng, _numpy().arange(n) >= n - edges)
        memo: dict[Expr, Any] = {}
        return {node: self._value(node, names, memo, n, rng) for node in wanted}

    def _inputs(self, n: int, rng: Any, edge: Any) -> dict[str, Any]:
        np = _numpy()
        values: dict[str, Any] = {}
        usual = (rng.random(n) < 0.3) & ~edge
        for hyper in self.program.hypers:
            match hyper.kind:
                case Kind.BOOL:
                    drawn = rng.random(n) < 0.5
                case Kind.CHOICE:
                    drawn = rng.choice(np.array(hyper.choices or (hyper.default,)), n)
                case _:
                    drawn = self._within(hyper.interval, hyper.kind, n, rng, edge)
            values[hyper.name] = np.where(usual, hyper.default, drawn)
        t = np.where((rng.random(n) < 0.25) | edge, 1.0, np.floor(10 ** rng.uniform(0, 6, n)))
        rows, cols = (np.floor(10 ** rng.uniform(0, 4, n)) for _ in range(2))
        ndim = rng.integers(0, 5, n).astype(np.float64)
        return values | {
            "t": t, "first_step": t == 1, "rows": rows, "cols": cols, "numel": rows * cols, "ndim": ndim
        }  # fmt: skip

    def _within(self, interval: Any, kind: Kind, n: int, rng: Any, edge: Any) -> Any:
        np = _numpy()
        low = -math.inf if interval is None else interval.low
        high = math.inf if interval is None else interval.high
        small = 10 ** rng.uniform(-10, 0, n)
        large = 10 ** rng.uniform(-10, 4, n)
        if math.isfinite(low) and math.isfinite(high):
            small = np.where(rng.random(n) < 0.3, rng.uniform(0.001, 0.999, n), small * 0.999)
            near_low, near_high = low + (high - low) * small, high - (high - low) * small
        elif math.isfinite(low):
            near_low = near_high = low + large
        elif math.isfinite(high):
            near_low = near_high = high - large
        else:
            near_low, near_high = large, -large
        drawn = np.where(rng.random(n) < 0.5, near_low, near_high)
        if interval is not None:
            if math.isfinite(low) and not interval.low_open:
                drawn = np.where(rng.random(n) < np.where(edge, 0.6, 0.1), low, drawn)
            if math.isfinite(high) and not interval.high_open:
                drawn = np.where(rng.random(n) < np.where(edge, 0.4, 0.1), high, drawn)
        if kind is Kind.INT:
            drawn = np.clip(np.round(drawn), math.ceil(low) if math.isfinite(low) else low, high)
        return drawn

    def _value(self, root: Expr, names: dict[str, Any], memo: dict[Expr, Any], n: int, rng: Any) -> Any:
        from optdsl.ir.numpy_ops import NUMPY

        np = _numpy()
        stack = [root]
        while stack:
            node = stack[-1]
            if node in memo:
                stack.pop()
                continue
            needed = node.args
            if isinstance(node, Var) and node.name in self.definitions:
                needed = (self.definitions[node.name],)
            missing = [arg for arg in needed if arg not in memo]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            match node:
                case Const(value):
                    memo[node] = value if isinstance(value, bool | str) else np.full(n, float(value))
                case Var(name) if name in self.definitions:
                    memo[node] = memo[needed[0]]
                case Var(name):
                    if name not in names:  # a state of the host
                        names[name] = _spread(rng, -10, 4, n) * (rng.random(n) > 0.1)
                    memo[node] = names[name]
                case Call(op):
                    with np.errstate(all="ignore"):
                        value = NUMPY[op](*(memo[arg] for arg in node.args))
                    memo[node] = value if node.type.kind is Kind.BOOL else np.asarray(value, np.float64)
        return memo[root]


@record(frozen=False)
class _Samples:
    """Inputs and what the original makes of them: `value` in float32; `high + low` in many digits, where
    `exact` says that it is known (None: not computed yet). `finite` marks samples with finite inputs only.
    """

    leaves: dict[Expr, Any]
    value: Any
    finite: Any
    high: Any = None
    low: Any = None
    exact: Any = None


class _Judge:
    """Says whether another form of `root` is as accurate as `root` itself.

    There are two kinds of inputs. On a fixed battery of hostile ones the error may exceed that of the
    original by 2 ulp in no sample. Then inputs are sought for which some sum, of the original or of the other
    form, cancels. There rounding alone decides how far off a result is, and the original may be right by
    chance; so its own error is twice the largest among inputs that differ in the last bits.
    """

    PRECISION = 640  # bits; the exponents of float32 span 277
    PAIRS = 12  # sums, each with a leaf, for which inputs are sought that make its terms cancel
    WIDTH = 16  # starting points of each search
    STEPS = (-2000, -40, -17, -7, -3, -2, -1, 0, 0, 1, 2, 3, 5, 9, 40, 300)  # neighbours of a root, in ulp
    TOLERANCE = 2.0  # ulp

    def __init__(self, root: Expr, host: _Host, finite_only: bool) -> None:
        self.root = root
        self.host = host
        self.finite_only = finite_only
        self.leaves = [n for n in _region(root) if not _inner(n) and _number(n) is None]
        self.samples: _Samples | None = None
        self.cancelling: dict[Expr, _Samples | None] = {}
        self.verdicts: dict[Expr, bool] = {root: True}

    def accepts(self, form: Expr) -> bool:
        """True when `form` may stand for `root`."""
        if form not in self.verdicts:
            with _numpy().errstate(all="ignore"):
                self.verdicts[form] = self._accepts(form)
        return self.verdicts[form]

    def _accepts(self, form: Expr) -> bool:
        if self.samples is None:
            self.samples = self._prepared(self._battery(_numpy().random.default_rng(1)))
        if not self._compare(self.samples, form):
            return False
        for expr in (self.root, form):
            if expr not in self.cancelling:
                leaves = self._cancelling(expr, _numpy().random.default_rng(2))
                self.cancelling[expr] = self._prepared(leaves) if leaves else None
            samples = self.cancelling[expr]
            if samples is not None and not self._compare(samples, form, len(self.STEPS)):
                return False
        return True

    def _compare(self, samples: _Samples, form: Expr, group: int = 1) -> bool:
        """True when `form` does well in all samples; `group` of them in a row are neighbours."""
        np = _numpy()
        asked = samples.finite if self.finite_only else np.ones_like(samples.finite)
        old, new = samples.value.astype(np.float64), _run(form, samples.leaves).astype(np.float64)
        if not np.all(self._same_class(old, new) | ~asked):
            return False
        self._measure(samples)
        high = np.where(samples.exact, samples.high, old)
        low = np.where(samples.exact, samples.low, 0.0)
        slack = self.TOLERANCE * _ulp(high)
        before = np.abs((old - high) - low)
        after = np.abs((new - high) - low)
        before = np.where(np.isfinite(old) & ~np.isnan(before), before, 0.0)
        if group > 1:
            before = np.repeat(2 * before.reshape(-1, group).max(1), group)
        close = after <= before + slack * (1 + 1e-9)
        return bool(np.all(close | ~np.isfinite(old) | ~asked))

    def _same_class(self, old: Any, new: Any) -> Any:
        """Where two values are both finite, both nan, or the same infinity."""
        np = _numpy()
        same = np.where(np.isfinite(old), np.isfinite(new), (old == new) | (np.isnan(old) & np.isnan(new)))
        if not self.finite_only:
            # the sign of a zero tells in a later division
            same &= (old != 0) | (new != 0) | (np.signbit(old) == np.signbit(new))
        return same

    def _prepared(self, leaves: dict[Expr, Any]) -> _Samples:
        np = _numpy()
        value = _run(self.root, leaves)
        finite = np.ones(value.shape, bool)
        for array in leaves.values():
            finite &= np.isfinite(array)
        return _Samples(leaves, value, finite)

    def _measure(self, samples: _Samples) -> None:
        """Computes the exact values, which takes by far the most time, if they are not known yet."""
        if samples.exact is None:
            asked = samples.finite & _numpy().isfinite(samples.value)
            samples.high, samples.low, samples.exact = _reference(
                self.root, samples.leaves, asked, self.PRECISION
            )

    # ---- inputs -----------------------------------------------------------------------------------------

    def _battery(self, rng: Any) -> dict[Expr, Any]:
        np = _numpy()
        device = [leaf for leaf in self.leaves if not leaf.type.is_host]
        arrays, special = _hostile(len(device), rng)
        leaves = {leaf: np.ascontiguousarray(arrays[i]) for i, leaf in enumerate(device)}
        return leaves | self._host_leaves(arrays.shape[1], rng, special)

    def _host_leaves(self, n: int, rng: Any, edges: int = 0) -> dict[Expr, Any]:
        np = _numpy()
        wanted = [leaf for leaf in self.leaves if leaf.type.is_host]
        drawn = self.host.sample(wanted, n, rng, edges)
        return {leaf: np.asarray(values, np.float64) for leaf, values in drawn.items()}

    def _cancelling(self, expr: Expr, rng: Any) -> dict[Expr, Any]:
        """Inputs for which the terms of some sum in `expr` nearly cancel, found by bisection."""
        np = _numpy()
        sums = [n for n in _region(expr) if _inner(n) and n.args and not n.type.is_host and _is_sum(n)]
        pairs = []
        for node in sums:
            inside = set(_region(node))
            pairs += [(node, leaf) for leaf in self.leaves if leaf in inside and not leaf.type.is_host]
        if len(pairs) > self.PAIRS:
            pairs = [pairs[i * len(pairs) // self.PAIRS] for i in range(self.PAIRS)]
        width, found = self.WIDTH, []
        device = [leaf for leaf in self.leaves if not leaf.type.is_host]
        grid = np.concatenate([-(10.0 ** np.arange(6, -7, -1)), [0.0], 10.0 ** np.arange(-6, 7)])
        for node, leaf in pairs:
            start = {leaf: np.repeat(_spread(rng, -2, 2, width), grid.size) for leaf in device}
            host = self._host_leaves(width, rng)
            start |= {leaf: np.repeat(v, grid.size) for leaf, v in host.items()}
            start[leaf] = np.tile(grid, width)
            signs = np.sign(_run(node, start, np.float64)).reshape(width, grid.size)
            turns = (signs[:, :-1] * signs[:, 1:] < 0) & np.isfinite(signs[:, 1:])
            where, place = turns.any(1).nonzero()[0], turns.argmax(1)
            if not where.size:
                continue
            at = {k: v.reshape(width, grid.size)[where, 0] for k, v in start.items()}
            left, right = grid[place[where]], grid[place[where] + 1]
            sign = signs[where, place[where]]
            for _ in range(60):
                middle = (left + right) / 2
                stays = np.sign(_run(node, at | {leaf: middle}, np.float64)) == sign
                left, right = np.where(stays, middle, left), np.where(stays, right, middle)
            near = left.astype(np.float32)
            steps = np.array(self.STEPS)
            batch = {}
            for key, value in (at | {leaf: near}).items():
                values = np.repeat(value[:, None], steps.size, axis=1)
                if key.type.is_host:
                    if key.type.kind is Kind.FLOAT:
                        values = values * (1 - rng.integers(0, 17, values.shape) * 2.0**-25)
                else:
                    moved = steps if key is leaf else rng.integers(-2, 3, values.shape)
                    values = (values * (1 + moved * 2.0**-23)).astype(np.float32)
                batch[key] = values.ravel()
            found.append(batch)
        if not found:
            return {}
        return {leaf: np.concatenate([batch[leaf] for batch in found]) for leaf in self.leaves}


def _is_sum(node: Expr) -> bool:
    return isinstance(node, Call) and node.op in ("add", "sub")


def _spread(rng: Any, low: float, high: float, shape: Any) -> Any:
    """Log-uniform magnitudes of both signs."""
    return rng.choice([-1.0, 1.0], shape) * 10 ** rng.uniform(low, high, shape)


def _hostile(count: int, rng: Any) -> tuple[Any, int]:
    """Inputs for `count` leaves, float32, a column per sample, and how many at the end are special values."""
    np = _numpy()
    # not the largest number itself, where rounding would decide what overflows
    top, least = 0.9 * float(np.finfo(np.float32).max), 2.0**-149
    positive = np.array([0.0, 1.0, math.inf, top, least, 2.0**-126, 1e-30, 1e20, 0.5, 3.0])
    special = np.concatenate([positive, -positive, [math.nan]])
    eps = 2.0**-23

    def alone(others: Any, values: Any) -> Any:
        """One leaf takes `values`, in turn."""
        which = np.arange(others.shape[1]) % max(count, 1)
        others[which, np.arange(others.shape[1])] = values
        return others

    def family(n: int) -> Any:
        one = _spread(rng, -3, 3, n)
        ratio = rng.choice([1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 1.0, -1.0], (count, n))
        return one * ratio * (1 + eps * rng.integers(-4, 5, (count, n)))

    parts = [
        _spread(rng, -3, 3, (count, 128)),
        _spread(rng, -45, 38.5, (count, 96)),
        np.abs(_spread(rng, -6, 6, (count, 48))),
        family(128),
        1 + eps * rng.integers(-64, 65, (count, 24)),
        rng.choice([-1.0, 1.0], (count, 24)) * (1 + _spread(rng, -7, -1, (count, 24))),
        _spread(rng, -45, -20, (count, 32)),
        _spread(rng, 30, 38.5, (count, 32)),
        _spread(rng, -1.5, 0, (count, 64)) * top,
        alone(_spread(rng, -2, 2, (count, 48)), _spread(rng, -1, 0, 48) * top),
        alone(_spread(rng, -2, 2, (count, 48)), _spread(rng, 18, 20, 48)),
        alone(_spread(rng, -6, 6, (count, 32)), _spread(rng, 20, 38, 32)),
        alone(_spread(rng, -2, 2, (count, 32)), _spread(rng, -45, -30, 32)),
    ]
    specials = [rng.choice(special, (count, 160))]
    if count == 2:
        a, b = np.meshgrid(special, special)
        specials.append(np.stack([a.ravel(), b.ravel()]))
    for leaf in range(min(count, 8)):
        around = _spread(rng, -2, 2, (count, special.size))
        around[leaf] = special
        specials.append(around)
    # twice: with usual hyperparameters, and with those at the ends of their intervals
    last = np.concatenate(specials, axis=1)
    return np.concatenate([*parts, last, last], axis=1).astype(np.float32), last.shape[1]


# ---- evaluation -------------------------------------------------------------------------------------------


def _run(root: Expr, leaves: Mapping[Expr, Any], dtype: Any = None) -> Any:
    """`root` operation by operation: host values in double, others in `dtype` (float32)."""
    np = _numpy()
    dtype = np.float32 if dtype is None else dtype
    n = next(iter(leaves.values())).shape
    values: dict[Expr, Any] = dict(leaves)
    for node in _computed(root, leaves):
        if isinstance(node, Const):
            values[node] = np.full(n, float(node.value))
        else:
            assert isinstance(node, Call)
            args = [values[arg] for arg in node.args]
            if not node.type.is_host:
                args = [arg.astype(dtype) for arg in args]
            values[node] = _apply(np, node.op, args)
    return values[root].astype(dtype)


def _computed(root: Expr, leaves: Mapping[Expr, Any]) -> list[Expr]:
    """The nodes between `leaves` and `root`, operands first. A new form may compute more on the host."""
    found: list[Expr] = []
    seen: set[Expr] = set(leaves)
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            found.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))
    return found


def _apply(np: Any, op: str, args: list[Any]) -> Any:
    """One operator. Those that libraries round differently are rounded well, so that all machines agree."""
    simple = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
        "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt,
    }  # fmt: skip
    if op in simple:
        return simple[op](*args)
    if op == "pow" and args[1].size and np.all(args[1] == 2):
        return args[0] * args[0]
    function = {"exp": np.exp, "log": np.log, "pow": np.power}[op]
    return function(*(arg.astype(np.float64) for arg in args)).astype(args[0].dtype)


def _reference(root: Expr, leaves: Mapping[Expr, Any], asked: Any, bits: int) -> tuple[Any, Any, Any]:
    """(high, low, known): `root` in `bits` bits as the sum of two doubles, for the samples that are asked."""
    np = _numpy()
    lib = importlib.import_module("mpmath.libmp")
    operators = _exact_operators(lib, bits)
    nodes = list(_region(root))
    place = {node: i for i, node in enumerate(nodes)}
    steps: list[tuple[Callable[..., Any], list[int]] | list[float] | Any] = []
    for node in nodes:
        if node in leaves:
            steps.append(leaves[node].tolist())
        elif isinstance(node, Call):
            steps.append((operators[node.op], [place[arg] for arg in node.args]))
        else:
            assert isinstance(node, Const)
            steps.append(lib.from_float(float(node.value)))
    high, low = np.zeros(asked.shape), np.zeros(asked.shape)
    known = np.zeros(asked.shape, bool)
    inputs = [(i, step) for i, step in enumerate(steps) if isinstance(step, list)]
    work = [(i, *step) for i, step in enumerate(steps) if callable(step[0])]
    values = list(steps)
    for sample in asked.nonzero()[0].tolist():
        for i, column in inputs:
            values[i] = lib.from_float(column[sample])
        try:
            for i, function, args in work:
                if len(args) == 2:
                    values[i] = function(values[args[0]], values[args[1]])
                else:
                    values[i] = function(values[args[0]])
            result = values[-1]
            first = high[sample] = lib.to_float(result)
            if math.isfinite(first):
                low[sample] = lib.to_float(lib.mpf_sub(result, lib.from_float(first), bits, "n"))
            known[sample] = True
        except (ZeroDivisionError, ValueError, OverflowError):
            continue
    return high, low, known


def _exact_operators(lib: Any, bits: int) -> dict[str, Callable[..., Any]]:
    """The operators on raw numbers of mpmath, in `bits` bits. They raise where a result is not finite."""
    largest = lib.from_int(2**17)

    def exp(x: Any) -> Any:
        if lib.mpf_gt(lib.mpf_abs(x), largest):
            if lib.mpf_sign(x) > 0:
                raise OverflowError
            x = lib.mpf_neg(largest)
        return lib.mpf_exp(x, bits, "n")

    def log(x: Any) -> Any:
        if lib.mpf_sign(x) <= 0:
            raise ValueError
        return lib.mpf_log(x, bits, "n")

    def power(x: Any, y: Any) -> Any:
        exponent = lib.to_float(y)
        if exponent == int(exponent):
            return lib.mpf_pow_int(x, int(exponent), bits, "n")
        if lib.mpf_sign(x) == 0:
            return lib.mpf_div(lib.fone, x, bits, "n") if exponent < 0 else x
        return lib.mpf_pow(x, y, bits, "n")

    return {
        "add": lambda a, b: lib.mpf_add(a, b, bits, "n"),
        "sub": lambda a, b: lib.mpf_sub(a, b, bits, "n"),
        "mul": lambda a, b: lib.mpf_mul(a, b, bits, "n"),
        "div": lambda a, b: lib.mpf_div(a, b, bits, "n"),
        "neg": lib.mpf_neg,
        "abs": lib.mpf_abs,
        "sqrt": lambda a: lib.mpf_sqrt(a, bits, "n"),
        "exp": exp,
        "log": log,
        "pow": power,
    }


def _ulp(value: Any) -> Any:
    """The distance of float32 numbers near `value`, a double."""
    np = _numpy()
    exponent = np.frexp(np.where(np.isfinite(value), np.abs(value), 1.0))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, -126) - 23)
