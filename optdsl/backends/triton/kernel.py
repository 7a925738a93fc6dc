"""One plan as Triton functions: one for each sweep, and one for what is computed between two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optdsl.backends.cells import Cells
from optdsl.backends.triton.printer import expression, identifier
from optdsl.core.types import Kind
from optdsl.ir.expr import Expr, Var, variables
from optdsl.ir.plan import Loop, Place, Sweep, Value

#: What stands for the name of a function in its text, so that equal ones can be told.
NAME = "<name>"
_START = {"sum": "0.0", "mean": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}
_BLOCK = {"sum": "total", "mean": "total", "max": "largest", "min": "smallest"}
_FOLD = {"sum": "fold_sum", "mean": "fold_sum", "max": "fold_max", "min": "fold_min"}
_SETTINGS = ("REAL", "BLOCK", "ITEMS", "GUARD")


def indented(lines: Iterable[str], by: int = 1) -> list[str]:
    """The lines, further in."""
    return ["    " * by + line if line else "" for line in lines]


class KernelText:
    """The Triton of one plan."""

    def __init__(self, cells: Cells) -> None:
        self.cells, self.plan = cells, cells.plan
        self.scalar_names = {v.name for values in cells.plan.scalars for v in values}

    # ---- reading values -----------------------------------------------------------------------------------

    def constants(self, names: Iterable[str]) -> list[str]:
        """Lines that load the numbers, per step or per tensor, that a function reads."""
        cells, names = self.cells, set(names)
        slots = sorted(int(n.partition(".")[2]) for n in names if cells.is_slot(n))
        lines = ["slots = at(x + SLOTS, REAL, 0) + 1"] if slots else []
        for number in slots:
            name = identifier(f"{self.plan.slot_name}.{number}")
            test = " != 0.0" if self.plan.slots[number].type.kind is Kind.BOOL else ""
            lines.append(f"{name} = tl.load(slots + {number}){test}")
        kept = [name for name in cells.scalar_cell if name in names]
        if kept:
            lines.append("values = at(x + VALUES, tl.float64, 0)")
        for name in kept:
            read = f"tl.load(values + {cells.scalar_cell[name]})"
            text = f"{read} != 0.0" if cells.values[name].kind is Kind.BOOL else f"{read}.to(REAL)"
            lines.append(f"{identifier(name)} = {text}")
        for name, array in cells.arrays.items():
            if name in names and array.place is Place.SCALAR:
                if array.group:
                    at = f"at(x + SHARED, tl.float64, 0) + {len(cells.joint_cell) + cells.group_cell[name]}"
                    text = f"tl.load({at}).to(REAL)"
                else:
                    text = f"tl.load(at(x + ARRAYS + {cells.cell[name]}, REAL, 0))"
                lines.append(f"{identifier(name)} = {text}")
        return lines

    def column(self, name: str) -> str:
        """The address of the values per column that `name` has."""
        if name in self.cells.column_cell:
            return f"at(x + KEPT_COLS, REAL, 0) + {self.cells.column_cell[name]} * tl.load(x + COLS)"
        return f"at(x + ARRAYS + {self.cells.cell[name]}, REAL, 0)"

    def columns_read(self, names: Iterable[str]) -> list[str]:
        """Lines that find the values per column that are read."""
        columns = sorted(name for name in set(names) if self.cells.place(name) is Place.COLS)
        return [f"{identifier(name)}_at = {self.column(name)}" for name in columns]

    def text(self, expr: Expr) -> str:
        """An expression, with values per column read at `i`."""

        def read(var: Var) -> str:
            if self.cells.place(var.name) is Place.COLS:
                text = f"load({identifier(var.name)}_at + i, live, True, REAL)"
                return f"({text} != 0.0)" if self.cells.kind(var.name) is Kind.BOOL else text
            return identifier(var.name)

        return expression(expr, read)

    # ---- sweeps -------------------------------------------------------------------------------------------

    def sweep(self, k: int) -> list[str]:
        """The function of sweep k, and the one that it calls for a chunk; none if it has nothing to do."""
        sweep = self.plan.sweeps[k]
        if not (sweep.reads or sweep.writes or sweep.reduces or any(sweep.lines) or sweep.row_stores):
            return []
        return self.by_rows(k) if self.cells.by_rows else self.flat(k)

    def head(self, sweep: Sweep) -> list[str]:
        """Lines in front of the loops of a sweep."""
        names = self.cells.read_in(sweep)
        lines = self.constants(names) + self.columns_read(names)
        if "g" in {name for loop in sweep.loops for name, array in loop.loads if name == array}:
            lines.append("sign_of_g = tl.load(at(x + SLOTS, REAL, 0))")
        if any(value.draw for loop in sweep.loops for value in loop.body):
            lines += [
                "seed = tl.load(x + SEED)",
                "tensor = tl.load(x + INDEX)",
                f"count = tl.load(at(x + SLOTS, REAL, 0) + {len(self.plan.slots)})",
            ]
        return lines

    def pointer(self, name: str) -> str:
        """What the address of an array is called."""
        key = self.cells.arrays[name].key or name
        # a program that no checker has seen may have any text there
        return f"{key}_at" if key.isascii() and key.isidentifier() else f"array{self.cells.cell[name]}_at"

    def pointers(self, sweep: Sweep, items: str) -> list[str]:
        """Lines that find the arrays with a number per element."""
        used = sweep.reads | sweep.writes
        lines = []
        for name, cell in self.cells.cell.items():
            if name in used:
                place = "gradient" if name == "g" else f"x + ARRAYS + {cell}" if cell else "x + ARRAYS"
                lines.append(f"{self.pointer(name)} = at({place}, T{cell}, {items})")
        return lines

    def types(self, sweep: Sweep) -> list[str]:
        """Parameters for the types of the arrays."""
        used = sweep.reads | sweep.writes
        return [f"T{cell}" for name, cell in self.cells.cell.items() if name in used]

    def flat(self, k: int) -> list[str]:
        sweep = self.plan.sweeps[k]
        closing = {v.name: r for r, v in enumerate(self.plan.closing(k))}
        (loop,) = sweep.loops
        types = self.types(sweep)
        body = [*self.head(sweep), *self.pointers(sweep, "ITEMS")]
        body += ["i = chunk * BLOCK + tl.arange(0, BLOCK)", "live = i < n"]
        body += self.elements(loop, "i", "i", "MASKED")
        if loop.reduces:
            body.append(f"partials = at(x + PARTIALS, tl.float64, 0) + chunk * {self.cells.width}")
        for value in loop.reduces:
            assert value.reduction is not None
            kind = value.reduction.kind
            part = f"counted({self.spread(value.expr, 'live')}, live, {_START[kind]}, MASKED)"
            body.append(f"tl.store(partials + {closing[value.name]}, {_BLOCK[kind]}({part}).to(tl.float64))")
        arguments = ["x", "gradient", "chunk", "n"]
        settings = ["REAL", "BLOCK", "ITEMS", "MASKED", *types]
        given = [*arguments, "REAL", "BLOCK", "ITEMS"]
        return [
            *_function(f"{NAME}_chunk", arguments, settings),
            *indented(body),
            "",
            "",
            *_function(NAME, ["table", "chunks", "gradients", "skip"], [*_SETTINGS, "WIDTH", *types]),
            *indented(
                [
                    "x, gradient, chunk = place(table, chunks, gradients, WIDTH)",
                    "n = length(x + N, skip, GUARD)",
                    "if chunk * BLOCK + BLOCK <= n:",
                    *indented(_call(f"{NAME}_chunk", [*given, "False", *types])),
                    "else:",
                    *indented(_call(f"{NAME}_chunk", [*given, "True", *types])),
                ]
            ),
        ]

    def spread(self, expr: Expr, like: str) -> str:
        """An expression as a block, though it may be the same for all elements."""
        if self.varies(expr):
            return self.text(expr)
        return f"tl.where({like}, {self.text(expr)}, 0.0)"

    def varies(self, expr: Expr) -> bool:
        """Whether it is a block of numbers: it reads one per element or column."""
        found = [self.cells.place(name) for name in variables(expr) if name not in ("p", "g")]
        return Place.ELEMENT in found or Place.COLS in found or bool({"p", "g"} & variables(expr))

    def elements(self, loop: Loop, at: str, element: str, masked: str) -> list[str]:
        """Loads, values and stores of a loop for a block of elements, those at `at` in each array."""
        lines = []
        for name, array in loop.loads:
            if self.may_be_coded(array):
                read = f"read({self.pointer(array)}, {self.scales(array)}, {at}, live, {masked}, REAL)"
            else:
                read = f"load({self.pointer(array)} + {at}, live, {masked}, REAL)"
            lines.append(f"{identifier(name)} = {'sign_of_g * ' if name == array == 'g' else ''}{read}")
        for value in loop.body:
            text = self.draw(value, element) if value.draw else self.text(value.expr)
            lines.append(f"{identifier(value.name)} = {text}")
        for array, expr in loop.stores:
            new = self.spread(expr, "live")
            if self.may_be_coded(array):
                given = f"{self.pointer(array)}, {self.scales(array)}, chunk, n, {at}, {new}"
                lines.append(f"write({given}, live, {masked}, REAL, BLOCK)")
            else:
                lines.append(f"store({self.pointer(array)} + {at}, {new}, live, {masked})")
        return lines

    def may_be_coded(self, array: str) -> bool:
        """Whether an array may be kept otherwise than as numbers: any but the gradient, in a kernel by elements."""
        return array != "g" and not self.cells.by_rows

    def scales(self, array: str) -> str:
        """The cell of the scales of an array, behind which that of its table is."""
        cells = self.cells
        return f"x + ARRAYS + {cells.width_of_unit + cells.host_states + 2 * cells.cell[array]}"

    def draw(self, value: Value, element: str) -> str:
        draw = value.draw
        assert draw is not None
        arguments = [f"words(seed, count, tensor, {draw.attr}, {element})"]
        arguments += [self.text(argument) for argument in draw.args]
        return f"{draw.op}({', '.join(arguments)}, REAL)"

    # ---- sweeps over rows ---------------------------------------------------------------------------------

    def by_rows(self, k: int) -> list[str]:
        sweep = self.plan.sweeps[k]
        closing = {v.name: r for r, v in enumerate(self.plan.closing(k))}
        columns = {v.name: r for r, v in enumerate(self.cells.column_reductions[k])}
        reduced = [v for loop in sweep.loops for v in loop.reduces if v.name in closing]
        body = ["x, gradient, chunk = place(table, chunks, gradients, WIDTH)", "n = tl.load(x + COLS)"]
        body += [*self.head(sweep), *self.pointers(sweep, "0")]
        if self.cells.row_cell and (sweep.kept or sweep.row_loads):
            body.append("kept_rows = at(x + KEPT_ROWS, REAL, 0)")
        for value in (*reduced, *sweep.row_reduces):
            assert value.reduction is not None
            body.append(
                f"{identifier(value.name)}_all = tl.full((), {_START[value.reduction.kind]}, tl.float64)"
            )
        if columns:
            place = f"chunk * {self.cells.column_width}"
            body.append(f"column_partials = at(x + COL_PARTIALS, tl.float64, 0) + {place} * n")
        for name, number in columns.items():
            body.append(f"{identifier(name)}_sum = column_partials + {number} * n")
            reduction = self.cells.values[name].reduction
            assert reduction is not None
            body += [
                "for start in range(0, n, BLOCK):",
                "    i = start + tl.arange(0, BLOCK)",
                f"    first = tl.full([BLOCK], {_START[reduction.kind]}, tl.float64)",
                f"    tl.store({identifier(name)}_sum + i, first, mask=i < n)",
            ]
        if columns:
            body.append("tl.debug_barrier()")
        row = self.row(sweep, closing, columns)
        if row:
            body += [
                "first_row = chunk * tl.load(x + CHUNK)",
                "last_row = tl.minimum(first_row + tl.load(x + CHUNK), length(x + ROWS, skip, GUARD))",
                "for r in range(first_row, last_row):",
                *indented(row),
            ]
        if closing:
            body.append(f"partials = at(x + PARTIALS, tl.float64, 0) + chunk * {self.cells.width}")
        for value in (*reduced, *sweep.row_reduces):
            body.append(f"tl.store(partials + {closing[value.name]}, {identifier(value.name)}_all)")
        parameters = ["table", "chunks", "gradients", "skip"]
        return [*_function(NAME, parameters, [*_SETTINGS, "WIDTH", *self.types(sweep)]), *indented(body)]

    def row(self, sweep: Sweep, closing: dict[str, int], columns: dict[str, int]) -> list[str]:
        """What is done for row r."""
        lines = []
        for name, _ in sweep.row_loads:
            lines.append(f"{identifier(name)} = {self.row_value(name)}")
        for j, line in enumerate(sweep.lines):
            lines += self.line(line, sweep.loops[j - 1].reduces if j else ())
            if j == len(sweep.loops):
                break
            loop = sweep.loops[j]
            lines += self.loop(loop, columns)
            for value in loop.reduces:
                if value.name in closing and value.reduction is not None:
                    lines.append(_taken(value, f"{identifier(value.name)}_part.to(tl.float64)"))
        for value in sweep.row_reduces:
            lines.append(_taken(value, f"({self.text(value.expr)}).to(tl.float64)"))
        if sweep.row_stores:  # all threads have read what one of them overwrites
            lines.append("tl.debug_barrier()")
        for array, expr in sweep.row_stores:
            lines.append(
                f"tl.store(at(x + ARRAYS + {self.cells.cell[array]}, REAL, 0) + r, {self.text(expr)})"
            )
        for name in sweep.kept:
            place = f"kept_rows + {self.cells.row_cell[name]} * tl.load(x + ROWS) + r"
            lines.append(f"tl.store({place}, {identifier(name)}.to(REAL))")
        return lines

    def row_value(self, name: str) -> str:
        """Loads the value of a row."""
        if name in self.cells.row_cell:
            text = f"tl.load(kept_rows + {self.cells.row_cell[name]} * tl.load(x + ROWS) + r)"
        else:
            text = f"tl.load(at(x + ARRAYS + {self.cells.cell[name]}, REAL, 0) + r)"
        return f"{text} != 0.0" if self.cells.kind(name) is Kind.BOOL else text

    def loop(self, loop: Loop, columns: dict[str, int]) -> list[str]:
        """A loop over the elements of row r."""
        lines, block = [], self.elements(loop, "e", "e", "True")
        for value in loop.reduces:
            assert value.reduction is not None
            kind, name = value.reduction.kind, identifier(value.name)
            part = self.spread(value.expr, "live")
            if value.name in columns:
                at = f"{name}_sum + i"
                block.append(f"old = tl.load({at}, mask=live, other=0.0)")
                new = _joined(kind, "old", f"({part}).to(tl.float64)")
                block.append(f"tl.store({at}, {new}, mask=live)")
                continue
            lines.append(f"{name}_block = tl.full([BLOCK], {_START[kind]}, REAL)")
            block.append(
                f"{name}_block = {_joined(kind, f'{name}_block', f'counted({part}, live, {_START[kind]}, True)')}"
            )
        if not block:
            return []
        lines += [
            "for start in range(0, n, BLOCK):",
            "    i = start + tl.arange(0, BLOCK)",
            "    live = i < n",
            "    e = r * n + i",
            *indented(block),
        ]
        if loop.stores or any(value.name in columns for value in loop.reduces):
            # the next loop may read what other threads have written
            lines.append("tl.debug_barrier()")
        for value in loop.reduces:
            if value.name not in columns and value.reduction is not None:
                name = identifier(value.name)
                lines.append(f"{name}_part = {_BLOCK[value.reduction.kind]}({name}_block)")
        return lines

    def line(self, values: Iterable[Value], reduces: Iterable[Value]) -> list[str]:
        """Values per row; `reduces` are the reductions of the loop in front."""
        formed = {v.name for v in reduces}
        lines = []
        for value in values:
            if value.reduction is None:
                text = self.text(value.expr)
            else:
                assert value.name in formed, value.name
                text = f"{identifier(value.name)}_part"
                if value.reduction.kind == "mean":
                    text = f"div({text}, n.to(REAL))"
            lines.append(f"{identifier(value.name)} = {text}")
        return lines

    # ---- between sweeps -----------------------------------------------------------------------------------

    def between(self, k: int) -> list[str]:
        """The function in front of sweep k, or behind the last; none if it has nothing to do.

        FOLD finishes the reductions of the sweep before it, COMPUTE does the rest: where all tensors meet, they do so
        in between.
        """
        fold, compute = self.folding(k), self.computing(k)
        if not fold and not compute:
            return []
        body = ["x = table + tl.program_id(0).to(tl.int64) * WIDTH"]
        body += ["if FOLD:", *indented(fold)] if fold else []
        body += ["if COMPUTE:", *indented(compute)] if compute else []
        settings = ["REAL", "BLOCK", "GUARD", "WIDTH", "FOLD", "COMPUTE"]
        return [*_function(NAME, ["table", "skip"], settings), *indented(body)]

    def folding(self, k: int) -> list[str]:
        """Finishes what sweep k - 1 has reduced."""
        if k == 0:
            return []
        lines: list[str] = []
        for r, value in enumerate(self.plan.closing(k - 1)):
            assert value.reduction is not None
            if value.reduction.operand in (Place.ELEMENT, Place.ROWS):
                partials = f"at(x + PARTIALS, tl.float64, 0) + {r}"
                found = f"{_FOLD[value.reduction.kind]}({partials}, tl.load(x + CHUNKS), {self.cells.width}, BLOCK)"
                lines.append(f"tl.store(at(x + FOLDED, tl.float64, 0) + {r}, {found})")
        for number, value in enumerate(self.cells.column_reductions[k - 1]):
            assert value.reduction is not None
            kind = value.reduction.kind
            mean = " / tl.load(x + ROWS).to(tl.float64)" if kind == "mean" else ""
            at = f"at(x + COL_PARTIALS, tl.float64, 0) + (c * {self.cells.column_width} + {number}) * n + i"
            lines += [
                "n, chunks = tl.load(x + COLS), tl.load(x + CHUNKS)",
                "for start in range(0, n, BLOCK):",
                "    i = start + tl.arange(0, BLOCK)",
                "    live = i < n",
                f"    found = tl.full([BLOCK], {_START[kind]}, tl.float64)",
                "    for c in range(0, chunks):",
                f"        found = {_joined(kind, 'found', f'tl.load({at}, mask=live, other=0.0)')}",
                f"    store({self.column(value.name)} + i, (found{mean}).to(REAL), live, True)",
            ]
        # one thread has stored what all read below
        return [*lines, "tl.debug_barrier()"] if lines else []

    def computing(self, k: int) -> list[str]:
        """Values per tensor, group and column, and states that are stored at the end."""
        plan, cells = self.plan, self.cells
        closing = {v.name: r for r, v in enumerate(plan.closing(k - 1))} if k else {}
        stores: Sequence[tuple[str, Expr]] = plan.scalar_stores if k == len(plan.sweeps) else ()
        finished = {v.name for v in (cells.column_reductions[k - 1] if k else [])}
        body: list[str] = []
        names: set[str] = set()
        here: set[str] = set()
        for value in plan.scalars[k]:
            if value.name in finished:
                continue
            if value.name in closing:
                body.append(self.closed(value, closing[value.name]))
            else:
                names |= variables(value.expr)
                body += self.scalar(value)
            if value.place is Place.SCALAR:
                here.add(value.name)
                kept = f"at(x + VALUES, tl.float64, 0) + {cells.scalar_cell[value.name]}"
                body.append(f"tl.store({kept}, {identifier(value.name)}.to(tl.float64))")
        for r, value in enumerate(plan.closing(k) if k < len(plan.sweeps) else ()):
            assert value.reduction is not None
            if value.reduction.operand in (Place.SCALAR, Place.COLS):
                names |= variables(value.expr)
                name = identifier(value.name)
                if value.reduction.operand is Place.COLS:
                    body += self.over_columns(value, name)
                else:
                    body.append(f"{name}_all = ({self.text(value.expr)}).to(tl.float64)")
                # all threads have read what one of them overwrites
                body += ["tl.debug_barrier()", f"tl.store(at(x + FOLDED, tl.float64, 0) + {r}, {name}_all)"]
        for _, expr in stores:
            names |= variables(expr)
        if stores:
            body += ["tl.debug_barrier()", *self.scalar_stores(stores)]
        if not body:
            return []
        made = {v.name for v in plan.scalars[k] if v.place is Place.COLS and v.name not in finished}
        return [*self.constants(names - here), *self.columns_read(names - made), *body]

    def closed(self, value: Value, number: int) -> str:
        """A reduction of the sweep that is over."""
        assert value.reduction is not None
        if value.reduction.joint:
            text = f"tl.load(at(x + SHARED, tl.float64, 0) + {self.cells.joint_cell[value.name]})"
        else:
            text = f"tl.load(at(x + FOLDED, tl.float64, 0) + {number})"
            if value.reduction.kind == "mean":
                cell = "ROWS" if value.reduction.operand is Place.ROWS else "N"
                text += f" / tl.load(x + {cell}).to(tl.float64)"
        return f"{identifier(value.name)} = ({text}).to(REAL)"

    def scalar(self, value: Value) -> list[str]:
        name = identifier(value.name)
        if value.place is Place.COLS:
            return [
                f"{name}_at = {self.column(value.name)}",
                *self.over(
                    [f"store({name}_at + i, {self.spread(value.expr, 'live')}, live, True)"], barrier=True
                ),
            ]
        if value.reduction is None:
            return [f"{name} = {self.text(value.expr)}"]
        mean = " / tl.load(x + COLS).to(tl.float64)" if value.reduction.kind == "mean" else ""
        return [*self.over_columns(value, name), f"{name} = ({name}_all{mean}).to(REAL)"]

    @staticmethod
    def over(body: list[str], barrier: bool = False) -> list[str]:
        """A loop over columns."""
        return [
            "for start in range(0, tl.load(x + COLS), BLOCK):",
            "    i = start + tl.arange(0, BLOCK)",
            "    live = i < tl.load(x + COLS)",
            *indented(body),
            *(["tl.debug_barrier()"] if barrier else []),
        ]

    def over_columns(self, value: Value, name: str) -> list[str]:
        assert value.reduction is not None
        kind = value.reduction.kind
        part = f"counted(({self.spread(value.expr, 'live')}).to(tl.float64), live, {_START[kind]}, True)"
        return [
            f"{name}_block = tl.full([BLOCK], {_START[kind]}, tl.float64)",
            *self.over([f"{name}_block = {_joined(kind, f'{name}_block', part)}"]),
            f"{name}_all = {_BLOCK[kind]}({name}_block)",
        ]

    def scalar_stores(self, stores: Iterable[tuple[str, Expr]]) -> list[str]:
        """Leaves states per tensor, group and column as they are from now on."""
        lines, new, put = [], [], []
        for number, (name, expr) in enumerate(stores):
            array, text = self.cells.arrays[name], self.text(expr)
            at = f"at(x + ARRAYS + {self.cells.cell[name]}, REAL, 0)"
            if array.place is Place.COLS:  # all are read before one is written: two may change places
                new.append(f"new{number} = {self.spread(expr, 'live')}")
                put.append(f"store({at} + i, new{number}, live & taken, True)")
            elif array.group:
                cell = len(self.cells.scalar_cell) + self.cells.group_cell[name]
                lines.append(f"tl.store(at(x + VALUES, tl.float64, 0) + {cell}, ({text}).to(tl.float64))")
            else:
                lines.append(f"tl.store({at}, {text}, mask=taken)")
        if new:
            lines += self.over([*new, *put])
        if any("taken" in line for line in lines):
            lines.insert(0, "taken = going(skip, GUARD)")
        return lines


def _function(name: str, arguments: Sequence[str], settings: Sequence[str]) -> list[str]:
    """The head of a function."""
    parameters = [*arguments, *(f"{setting}: tl.constexpr" for setting in settings)]
    line = f"def {name}({', '.join(parameters)}):"
    if len(line) <= 100:
        return ["@triton.jit", line]
    rows = [f"{', '.join(arguments)},", *(f"{part}," for part in _rows(parameters[len(arguments) :]))]
    return ["@triton.jit", f"def {name}(", *indented(rows), "):"]


def _rows(parts: Sequence[str], width: int = 100) -> list[str]:
    """Parts with commas between them, in lines of bounded length."""
    rows: list[str] = []
    for part in parts:
        if rows and len(rows[-1]) + len(part) + 2 <= width:
            rows[-1] += f", {part}"
        else:
            rows.append(part)
    return rows


def _call(name: str, arguments: Sequence[str]) -> list[str]:
    return [f"{name}({', '.join(arguments)})"]


def _joined(kind: str, total: str, text: str) -> str:
    """A total with one more number; nan wins an extreme."""
    if kind in ("max", "min"):
        return f"{'greater' if kind == 'max' else 'lesser'}({total}, {text})"
    return f"{total} + {text}"


def _taken(value: Value, text: str) -> str:
    assert value.reduction is not None
    name = f"{identifier(value.name)}_all"
    return f"{name} = {_joined(value.reduction.kind, name, text)}"
