"""One plan as C functions: a function per sweep, functions for what is computed between sweeps, and a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optdsl.backends.cells import Cells
from optdsl.backends.cpu.printer import expression, identifier
from optdsl.core.types import Kind
from optdsl.ir.expr import Expr, Var, variables
from optdsl.ir.plan import Array, Loop, Place, Sweep, Value

_FOLDS = {"sum": "SUM", "mean": "SUM", "max": "MAX", "min": "MIN"}
_START = {"sum": "0", "mean": "0", "max": "-INFINITY", "min": "INFINITY"}
_EXTREME = {"max": ">", "min": "<"}


class KernelText:
    """The C of one plan, the kernel `number` of its unit."""

    def __init__(self, cells: Cells, number: int) -> None:
        self.cells, self.plan = cells, cells.plan
        self.name = f"kernel{number}"

    # ---- text -------------------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """All functions and the table."""
        plan, cells = self.plan, self.cells
        lines: list[str] = []
        sweeps, scalars, columns = [], [], []
        for k in range(len(plan.sweeps) + 1):
            text = self.scalar_function(k)
            scalars.append(f"{self.name}_scalars{k}" if text else "0")
            lines += text
            if k < len(plan.sweeps):
                sweeps.append(f"{self.name}_sweep{k}")
                lines += self.sweep_function(k)
                text = self.column_function(k)
                columns.append(f"{self.name}_columns{k}" if text else "0")
                lines += text
        name, folds = self.name, []
        for k in range(len(plan.sweeps)):
            kinds = [
                _FOLDS[v.reduction.kind] if v.reduction.operand in (Place.ELEMENT, Place.ROWS) else "NONE"
                for v in plan.closing(k) if v.reduction is not None
            ]  # fmt: skip
            lines.append(f"static const signed char {name}_folds{k}[] = {{{', '.join([*kinds, '-1'])}}};")
            folds.append(f"{name}_folds{k}")
        for what, masks in (("reads", self.masks("reads")), ("writes", self.masks("writes"))):
            lines.append(f"static const i64 {name}_{what}[] = {{{', '.join(masks) or '0'}}};")
        row, chunk = "(const i64 *)", "(const i64 *, i64, i64, double *)"
        lines += [
            f"static void (*const {name}_sweeps[]){chunk} = {{{', '.join(sweeps) or '0'}}};",
            f"static void (*const {name}_scalars[]){row} = {{{', '.join(scalars)}}};",
            f"static void (*const {name}_columns[]){row} = {{{', '.join(columns) or '0'}}};",
            f"static const signed char *const {name}_folds[] = {{{', '.join(folds) or '0'}}};",
            f"static const Kernel {name} = {{",
            f"    .sweeps = {len(plan.sweeps)}, .arrays = {cells.width_of_unit}, .slots = {len(plan.slots)},",
            f"    .host_states = {cells.host_states}, .width = {cells.width}, .by_rows = {int(cells.by_rows)},",
            f"    .real = sizeof(real), .reads = {name}_reads, .writes = {name}_writes,",
            f"    .sweep = {name}_sweeps, .scalars = {name}_scalars, .columns = {name}_columns,",
            f"    .folds = {name}_folds,",
            "};",
        ]
        return lines

    def masks(self, what: str) -> list[str]:
        """For each sweep the arrays per element that it `reads` or `writes`, as bits."""
        return [hex(sum(1 << self.cells.cell[n] for n in getattr(s, what))) for s in self.plan.sweeps]

    # ---- reading values ---------------------------------------------------------------------------------

    def constants(self, names: Iterable[str]) -> list[str]:
        """Declarations of the numbers, per step or per tensor, that a function reads."""
        lines = []
        names = set(names)
        slots = sorted(int(n.partition(".")[2]) for n in names if self.cells.is_slot(n))
        if slots:
            lines.append("const double *const slots = AT(double, x, SLOTS) + 1;")
        for number in slots:
            name = identifier(f"{self.plan.slot_name}.{number}")
            kind = self.plan.slots[number].type.kind
            text = f"slots[{number}] != 0" if kind is Kind.BOOL else f"C(slots[{number}])"
            lines.append(f"const {_ctype(kind)} {name} = {text};")
        for name in [n for n in self.cells.scalar_cell if n in names]:
            value = self.cells.values[name]
            kept = f"AT(double, x, VALUES)[{self.cells.scalar_cell[name]}]"
            text = f"{kept} != 0" if value.kind is Kind.BOOL else f"C({kept})"
            lines.append(f"const {_ctype(value.kind)} {identifier(name)} = {text};")
        for name, array in self.cells.arrays.items():
            if name in names and array.place is Place.SCALAR:
                lines.append(f"const real {identifier(name)} = {self.scalar_state(array)};")
        return lines

    def scalar_state(self, array: Array) -> str:
        if array.group:
            return (
                f"C(AT(double, x, SHARED)[{len(self.cells.joint_cell) + self.cells.group_cell[array.name]}])"
            )
        return f"*AT(real, x, ARRAYS + {self.cells.cell[array.name]})"

    def column(self, name: str) -> str:
        """The address of the values per column that `name` has."""
        if name in self.cells.column_cell:
            return f"AT(real, x, KEPT_COLS) + {self.cells.column_cell[name]} * x[COLS]"
        return f"AT(real, x, ARRAYS + {self.cells.cell[name]})"

    def columns_read(self, names: Iterable[str]) -> list[str]:
        """Declarations of pointers to the values per column that are read."""
        return [
            f"const real *const {identifier(name)}_at = {self.column(name)};"
            for name in sorted(set(names))
            if self.cells.place(name) is Place.COLS
        ]

    def text(self, expr: Expr, index: str = "i") -> str:
        """An expression, with values per column read at `index`."""

        def read(var: Var) -> str:
            if self.cells.place(var.name) is Place.COLS:
                return f"{identifier(var.name)}_at[{index}]"
            return identifier(var.name)

        return expression(expr, read)

    # ---- sweeps -----------------------------------------------------------------------------------------

    def sweep_function(self, k: int) -> list[str]:
        sweep = self.plan.sweeps[k]
        inner = self.rows(k, sweep) if self.cells.by_rows else self.flat(k, sweep)
        return [
            f"static void {self.name}_sweep{k}(const i64 *restrict x, i64 begin, i64 end, double *restrict out)",
            "{",
            *("    " + line if line else "" for line in inner),
            "}",
        ]

    def head(self, sweep: Sweep) -> list[str]:
        """Declarations in front of the loops of a sweep."""
        names = self.cells.read_in(sweep)
        lines = self.constants(names) + self.columns_read(names)
        if "g" in {name for loop in sweep.loops for name, array in loop.loads if name == array}:
            lines.append("const real sign = C(AT(double, x, SLOTS)[0]);")
        if any(value.draw for loop in sweep.loops for value in loop.body):
            lines.append("const uint64_t seed = (uint64_t)x[SEED];")
            lines.append(f"const u32 step = (u32)slots[{len(self.plan.slots) - 1}];")
            if not any("*const slots" in line for line in lines):
                lines.insert(0, "const double *const slots = AT(double, x, SLOTS) + 1;")
        return lines

    def pointers(self, sweep: Sweep, offset: str) -> list[str]:
        """Pointers to the first element of the loops in each array."""
        used = sweep.reads | sweep.writes
        lines = []
        for name, cell in self.cells.cell.items():
            if name in used:
                const = "" if name in sweep.writes else "const "
                lines.append(
                    f"{const}T{cell} *restrict const a{cell} = AT({const}T{cell}, x, ARRAYS + {cell}) + {offset};"
                )
        return lines

    def flat(self, k: int, sweep: Sweep) -> list[str]:
        closing = {v.name: r for r, v in enumerate(self.plan.closing(k))}
        lines = [*self.head(sweep), *self.pointers(sweep, "begin"), "const i64 n = end - begin;"]
        (loop,) = sweep.loops
        lines += self.accumulators(loop.reduces)
        lines += self.loop(loop, "begin", {})
        for value in loop.reduces:
            lines.append(f"out[{closing[value.name]}] = {self.accumulated(value)};")
        if not loop.reduces:
            lines.append("(void)out;")
        return lines

    def accumulators(self, reduces: Iterable[Value]) -> list[str]:
        lines = []
        for value in reduces:
            assert value.reduction is not None
            if value.place is Place.COLS:
                continue
            name = identifier(value.name)
            lines.append(f"real {name}_part = {_START[value.reduction.kind]};")
            if value.reduction.kind in _EXTREME:
                lines.append(f"int {name}_nan = 0;")
        return lines

    @staticmethod
    def accumulated(value: Value) -> str:
        assert value.reduction is not None
        name = identifier(value.name)
        return f"{name}_nan ? NAN : {name}_part" if value.reduction.kind in _EXTREME else f"{name}_part"

    def loop(self, loop: Loop, first: str, columns: dict[str, str]) -> list[str]:
        """A loop over the elements from `first` on; `columns` names the accumulators of column reductions."""
        clauses, body = [], []
        for name, array in loop.loads:
            cell = self.cells.cell[array]
            load = f"LOAD(T{cell}, a{cell}[i])"
            body.append(f"const real {identifier(name)} = {'sign * ' if name == array == 'g' else ''}{load};")
        draws = [value for value in loop.body if value.draw]
        for value in loop.body:
            text = self.draw(value, draws.index(value)) if value.draw else self.text(value.expr)
            body.append(f"const {_ctype(value.kind)} {identifier(value.name)} = {text};")
        for value in loop.reduces:
            assert value.reduction is not None
            name, kind = identifier(value.name), value.reduction.kind
            if value.place is Place.COLS:
                body += _accumulate(f"{columns[value.name]}[i]", "(double)" + self.wrapped(value.expr), kind)
                continue
            if kind in _EXTREME:
                clauses.append(f"reduction({kind}:{name}_part) reduction(|:{name}_nan)")
                body.append(f"const real {name} = {self.text(value.expr)};")
                body.append(f"{name}_part = {name} {_EXTREME[kind]} {name}_part ? {name} : {name}_part;")
                body.append(f"{name}_nan |= {name} != {name};")
            else:
                clauses.append(f"reduction(+:{name}_part)")
                body.append(f"{name}_part += {self.text(value.expr)};")
        for array, expr in loop.stores:
            cell = self.cells.cell[array]
            body.append(f"a{cell}[i] = STORE(T{cell}, {self.text(expr)});")
        pragma = " ".join(["#pragma omp simd", *clauses])
        if not body:
            return []
        if not draws:
            head = [pragma, "for (i64 i = 0; i < n; i++) {"]
            return [*head, *("    " + line for line in body), "}"]
        tile = []
        for number, value in enumerate(draws):
            assert value.draw is not None
            arguments = (
                f"words{number}, seed, step, (u32)x[INDEX], {value.draw.attr}, {first} + start, stop - start"
            )
            tile.append(f"const u32 *restrict const w{number} = draw_({arguments});")
        return [
            "for (i64 start = 0; start < n; start += TILE) {",
            "    const i64 stop = start + TILE < n ? start + TILE : n;",
            *(f"    u32 words{number}[WORDS];" for number in range(len(draws))),
            *("    " + line for line in tile),
            f"    {pragma}",
            "    for (i64 i = start; i < stop; i++) {",
            *("        " + line for line in body),
            "    }",
            "}",
        ]

    def wrapped(self, expr: Expr) -> str:
        return f"({self.text(expr)})"

    def draw(self, value: Value, number: int) -> str:
        assert value.draw is not None
        arguments = [f"w{number}[i - start]", *(self.text(arg) for arg in value.draw.args)]
        return f"{value.draw.op}_({', '.join(arguments)})"

    # ---- sweeps over rows -------------------------------------------------------------------------------

    def rows(self, k: int, sweep: Sweep) -> list[str]:
        closing = {v.name: r for r, v in enumerate(self.plan.closing(k))}
        columns = {v.name: f"{identifier(v.name)}_sum" for v in self.cells.column_reductions[k]}
        lines = [*self.head(sweep), "const i64 n = x[COLS];"]
        reduced = [v for loop in sweep.loops for v in loop.reduces if v.name in closing]
        for value in (*reduced, *sweep.row_reduces):
            assert value.reduction is not None
            lines.append(f"double {identifier(value.name)}_all = {_START[value.reduction.kind]};")
        for number, value in enumerate(self.cells.column_reductions[k]):
            assert value.reduction is not None
            at = f"(begin / x[CHUNK] * {self.cells.column_width} + {number}) * n"
            lines.append(
                f"double *restrict const {columns[value.name]} = AT(double, x, COL_PARTIALS) + {at};"
            )
            lines.append(
                f"for (i64 i = 0; i < n; i++) {columns[value.name]}[i] = {_START[value.reduction.kind]};"
            )
        body = self.pointers(sweep, "r * n")
        for name, _ in sweep.row_loads:
            body.append(f"const {_ctype(self.cells.kind(name))} {identifier(name)} = {self.row(name)};")
        for j, line in enumerate(sweep.lines):
            body += self.line(line, sweep.loops[j - 1].reduces if j else ())
            if j == len(sweep.loops):
                break
            loop = sweep.loops[j]
            body += self.accumulators(loop.reduces)
            body += self.loop(loop, "r * n", columns)
            for value in loop.reduces:
                if value.name in closing and value.reduction is not None:
                    total = f"{identifier(value.name)}_all"
                    body += _accumulate(total, f"(double)({self.accumulated(value)})", value.reduction.kind)
        for value in sweep.row_reduces:
            assert value.reduction is not None
            total, text = f"{identifier(value.name)}_all", f"(double){self.wrapped(value.expr)}"
            body += _accumulate(total, text, value.reduction.kind)
        for array, expr in sweep.row_stores:
            body.append(f"AT(real, x, ARRAYS + {self.cells.cell[array]})[r] = {self.text(expr)};")
        for name in sweep.kept:
            body.append(f"{self.row(name)} = {identifier(name)};")
        lines += ["for (i64 r = begin; r < end; r++) {", *("    " + line for line in body), "}"]
        for value in (*reduced, *sweep.row_reduces):
            lines.append(f"out[{closing[value.name]}] = {identifier(value.name)}_all;")
        return [*lines, "(void)n, (void)out;"]

    def row(self, name: str) -> str:
        """Where the value of a row is kept."""
        if name in self.cells.row_cell:
            return f"AT(real, x, KEPT_ROWS)[{self.cells.row_cell[name]} * x[ROWS] + r]"
        return f"AT(real, x, ARRAYS + {self.cells.cell[name]})[r]"

    def line(self, values: Iterable[Value], reduces: Iterable[Value]) -> list[str]:
        """Values per row; `reduces` are the reductions of the loop in front."""
        formed = {v.name for v in reduces}
        lines = []
        for value in values:
            if value.reduction is None:
                text = self.text(value.expr)
            else:
                assert value.name in formed, value.name
                text = self.accumulated(value)
                if value.reduction.kind == "mean":
                    text = f"{text} / (real)n"
            lines.append(f"const {_ctype(value.kind)} {identifier(value.name)} = {text};")
        return lines

    # ---- between sweeps ---------------------------------------------------------------------------------

    def column_function(self, k: int) -> list[str]:
        """Finishes the column reductions that sweep k has formed."""
        if not self.cells.column_reductions[k]:
            return []
        lines = ["const i64 n = x[COLS], chunks = x[CHUNKS];"]
        for number, value in enumerate(self.cells.column_reductions[k]):
            assert value.reduction is not None
            kind = value.reduction.kind
            at = f"AT(double, x, COL_PARTIALS) + {number} * n"
            mean = " / (double)x[ROWS]" if kind == "mean" else ""
            lines += [
                "{",
                f"    double *restrict const total = {at};",
                f"    real *restrict const done = {self.column(value.name)};",
                f"    for (i64 i = 0; !chunks && i < n; i++) done[i] = C({_START[kind]}{mean});",
                "    for (i64 c = 1; c < chunks; c++) {",
                f"        const double *restrict const part = total + c * {self.cells.column_width} * n;",
                "        for (i64 i = 0; i < n; i++) {",
                *("            " + line for line in _accumulate("total[i]", "part[i]", kind)),
                "        }",
                "    }",
                f"    for (i64 i = 0; chunks && i < n; i++) done[i] = C(total[i]{mean});",
                "}",
            ]
        return [
            f"static void {self.name}_columns{k}(const i64 *restrict x)",
            "{",
            *("    " + line for line in lines),
            "}",
        ]

    def scalar_function(self, k: int) -> list[str]:
        """What is computed in front of sweep k, or at the end."""
        plan = self.plan
        body: list[str] = []
        names: set[str] = set()
        stores: Sequence[tuple[str, Expr]]
        closing = {v.name: r for r, v in enumerate(plan.closing(k - 1))} if k else {}
        formed_here = plan.closing(k) if k < len(plan.sweeps) else ()
        stores = plan.scalar_stores if k == len(plan.sweeps) else ()
        here: set[str] = set()
        finished = {v.name for v in (self.cells.column_reductions[k - 1] if k else [])}
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
                body.append(
                    f"AT(double, x, VALUES)[{self.cells.scalar_cell[value.name]}] = {identifier(value.name)};"
                )
        for r, value in enumerate(formed_here):
            assert value.reduction is not None
            if value.reduction.operand in (Place.SCALAR, Place.COLS):
                names |= variables(value.expr)
                name = identifier(value.name)
                if value.reduction.operand is Place.COLS:
                    body += self.over_columns(value, name)
                    body.append(f"AT(double, x, FOLDED)[{r}] = {name}_all;")
                else:
                    body.append(f"AT(double, x, FOLDED)[{r}] = {self.text(value.expr)};")
        for _, expr in stores:
            names |= variables(expr)
        body += self.scalar_stores(stores)
        if not body:
            return []
        # pointers to columns that this function itself fills are declared where they are filled
        made = {v.name for v in plan.scalars[k] if v.place is Place.COLS and v.name not in finished}
        lines = [*self.constants(names - here), *self.columns_read(names - made), *body]
        return [
            f"static void {self.name}_scalars{k}(const i64 *restrict x)",
            "{",
            *("    " + line for line in lines),
            "}",
        ]

    def closed(self, value: Value, number: int) -> str:
        """A reduction of the sweep that is over."""
        assert value.reduction is not None
        if value.reduction.joint:
            text = f"C(AT(double, x, SHARED)[{self.cells.joint_cell[value.name]}])"
        else:
            text = f"AT(double, x, FOLDED)[{number}]"
            if value.reduction.kind == "mean":
                text += f" / (double)x[{'ROWS' if value.reduction.operand is Place.ROWS else 'N'}]"
            text = f"C({text})"
        return f"const real {identifier(value.name)} = {text};"

    def scalar(self, value: Value) -> list[str]:
        name = identifier(value.name)
        if value.place is Place.COLS:
            return [
                f"real *restrict const {name}_at = {self.column(value.name)};",
                f"for (i64 i = 0; i < x[COLS]; i++) {name}_at[i] = {self.text(value.expr)};",
            ]
        if value.reduction is None:
            return [f"const {_ctype(value.kind)} {name} = {self.text(value.expr)};"]
        mean = " / (double)x[COLS]" if value.reduction.kind == "mean" else ""
        return [*self.over_columns(value, name), f"const real {name} = C({name}_all{mean});"]

    def over_columns(self, value: Value, name: str) -> list[str]:
        assert value.reduction is not None
        kind = value.reduction.kind
        return [
            f"double {name}_all = {_START[kind]};",
            "for (i64 i = 0; i < x[COLS]; i++) {",
            *(
                "    " + line
                for line in _accumulate(f"{name}_all", f"(double){self.wrapped(value.expr)}", kind)
            ),
            "}",
        ]

    def scalar_stores(self, stores: Iterable[tuple[str, Expr]]) -> list[str]:
        """Leaves states per tensor, group and column as they are from now on."""
        lines, new, put = [], [], []
        for number, (name, expr) in enumerate(stores):
            array, text = self.cells.arrays[name], self.text(expr)
            at = f"AT(real, x, ARRAYS + {self.cells.cell[name]})"
            if array.place is Place.COLS:  # all are read before one is written: two may change places
                new.append(f"const real new{number} = {text};")
                put.append(f"{at}[i] = new{number};")
            elif array.group:
                cell = len(self.cells.scalar_cell) + self.cells.group_cell[name]
                lines.append(f"AT(double, x, VALUES)[{cell}] = {text};")
            else:
                lines.append(f"*{at} = {text};")
        if new:
            lines += ["for (i64 i = 0; i < x[COLS]; i++) {", *("    " + line for line in new + put), "}"]
        return lines


def _ctype(kind: Kind) -> str:
    return "int" if kind is Kind.BOOL else "real"


def _accumulate(total: str, text: str, kind: str) -> list[str]:
    """Statements that take one more double into a total; nan wins an extreme."""
    if kind in _EXTREME:
        part = f"const double part_of = {text};"
        return [
            "{",
            f"    {part}",
            f"    if (part_of != part_of || part_of {_EXTREME[kind]} {total}) {total} = part_of;",
            "}",
        ]
    return [f"{total} += {text};"]
