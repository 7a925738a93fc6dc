"""The front door of the checker: a file in, a typed program and every message out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from optdsl.check.compose import build, check_function
from optdsl.check.expression import Session
from optdsl.check.library import Library, Loaded
from optdsl.check.names import check_name, closest, shown
from optdsl.check.scope import MAX_FILE_WORK, POISON, Builder, Declared, TooLarge, Undefined
from optdsl.check.unused import warn
from optdsl.core import types as ty
from optdsl.core.record import record
from optdsl.ir.expr import Expr, Var, call, const, var, variables
from optdsl.ir.program import Assign, Program
from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Diagnostic, Span, SpecError


@record
class Checked:
    """The outcome of a check. `program` is None when there are errors or the file holds no optimizer.

    `kind` is "optimizer", "transform" or, for a file of functions, "library".
    """

    program: Program | None
    diagnostics: tuple[Diagnostic, ...]
    kind: str = "optimizer"

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The messages that are not warnings."""
        return tuple(d for d in self.diagnostics if d.is_error)

    def require(self) -> Program:
        """The program. Raises SpecError with all messages when there is none."""
        if self.program is None:
            raise SpecError(self.diagnostics)
        return self.program


def check_path(path: str | Path, name: str | None = None) -> Checked:
    """Checks the file at `path`. `name` picks one of several optimizers; the last one otherwise."""
    library = Library()
    try:
        return _check(library, library.path(Path(path)), name)
    except SpecError as error:
        return Checked(None, error.diagnostics)


def check_text(
    text: str, path: str = "<text>", directory: Path | None = None, given: Mapping[str, Path] | None = None
) -> Checked:
    """Checks `text` as if it were the file `path` in `directory`. Imports may name `given` files, too."""
    library = Library(given)
    return _check(library, library.text(text, path, directory), None)


def _check(library: Library, loaded: Loaded, name: str | None) -> Checked:
    """Checks everything in a file; the program is that of the last optimizer, or of `name`."""
    specs = loaded.file.specs
    if name is not None:
        specs = tuple(spec for spec in specs if spec.name == name)
        if not specs and not loaded.report.failed:
            help = closest(name, [spec.name for spec in loaded.file.specs])
            loaded.report("E0501", Span.of_line(1), f"there is no spec `{shown(name)}` in this file", help)
    if any(d.code == "E0003" for d in loaded.report.found):  # the rest of the file is missing
        return Checked(None, tuple(library.diagnostics()), "library")
    main = next((s for s in reversed(specs) if s.kind == "optimizer"), specs[-1] if specs else None)
    _check_names(loaded)
    program: Program | None = None
    try:
        for spec in specs:
            with _bounded(library, loaded, spec.name_span) as session:
                built = _build(session, spec, loaded)
                program = built if spec is main else program
        for definition in loaded.file.defs:
            with _bounded(library, loaded, definition.name_span) as session:
                check_function(session, definition, loaded)
    except TooLarge:
        program = None  # one message is enough: what is left may take as long again
    for other in library.loaded.values():
        if other is not loaded:
            _check_names(other)
    diagnostics = tuple(library.diagnostics())
    kind = main.kind if main else "library"
    if any(d.is_error for d in diagnostics) or kind != "optimizer":
        program = None
    return Checked(program, diagnostics, kind)


def _check_names(loaded: Loaded) -> None:
    """The names of a file's functions and specs, and of the functions' parameters."""
    lines: dict[str, int] = {}
    named = [(item.name, item.name_span, item.span.line, "function") for item in loaded.file.defs]
    named += [(item.name, item.name_span, item.span.line, "spec") for item in loaded.file.specs]
    for name, span, line, what in named:
        check_name(name, span, loaded.report, what)
        if name in lines:
            message = f"`{shown(name)}` is already defined on line {lines[name]}"
            loaded.report("E0201", span, message, "rename one of them")
        lines.setdefault(name, line)
    for definition in loaded.file.defs:
        seen: set[str] = set()
        for parameter, span in definition.parameters:
            check_name(parameter, span, loaded.report, "parameter")
            if parameter in seen:
                message = f"`{shown(definition.name)}` has two parameters `{shown(parameter)}`"
                loaded.report("E0201", span, message, "rename one of them")
            seen.add(parameter)


@contextmanager
def _bounded(library: Library, loaded: Loaded, span: Span) -> Iterator[Session]:
    """A session for one spec or function. Raises TooLarge after a message when it takes too much."""
    session = Session(library)
    try:
        yield session
        library.spent += session.builder.spent
        if library.spent > MAX_FILE_WORK:
            raise TooLarge("this file takes too long to check")
    except TooLarge as error:
        help = "repeat less often, call fewer functions, or use fewer specs"
        loaded.report("E0601", session.at or span, str(error), help)
        raise
    except RecursionError:
        message = "expressions and the functions they call are nested too deeply here"
        loaded.report("E0008", session.at or span, message, "name parts of them")
        raise TooLarge from None


def _build(session: Session, spec: syn.Spec, loaded: Loaded) -> Program | None:
    """The program of a spec, or None after a message."""
    builder, declared = session.builder, session.declared
    if spec.kind == "transform":
        _pretend_optimizer(session, spec, loaded)
    instance = build(session, spec, loaded)
    results: dict[str, Expr] = {}
    for name, slot in {"p": (0, "p"), **declared.slots}.items():
        value = builder.values[slot]
        kept = value.kept if isinstance(value, Undefined) else value
        if kept is POISON or kept is None:
            return None
        if not (isinstance(kept, Var) and kept.name == name):  # else the step leaves it alone
            results[name] = kept
    hypers = tuple(declared.hypers)
    states = tuple(
        sorted(declared.states, key=lambda state: not state.given)
    )  # inputs first, as they are written
    program = Program(
        spec.name, spec.doc, spec.cite, hypers, states, _without_clashes(builder, declared), results
    )
    if session.view is not None:
        left = {"p": session.view.p}
        view = Program(spec.name, "", "", hypers, states, tuple(session.view.body), left)
        program = replace(program, view=view)
    program = _with_first_values(program)
    if not loaded.report.failed:
        warn(program, instance, builder, loaded.report)
    return program


def _without_clashes(builder: Builder, declared: Declared) -> tuple[Assign, ...]:
    """Locals of one spec may be called like a hyperparameter or a state of another: those get a new name."""
    inputs = declared.names()
    return tuple(
        replace(a, source=f"{a.source}_local") if a.source in inputs and a.name not in builder.of_state else a
        for a in builder.body
    )


def _with_first_values(program: Program) -> Program:
    """Gives 0 to states without an initial value that a step may have to keep as they are.

    No result depends on it: such a state is assigned before it is read.
    """
    expressions = [*program.expressions(), *(program.view.expressions() if program.view else ())]
    read = {name for expr in expressions for name in variables(expr)}
    states = [
        replace(state, init=const(0))
        if state.init is None and state.name in read and not state.given
        else state
        for state in program.states
    ]
    view = program.view and replace(program.view, states=tuple(states))
    return replace(program, states=tuple(states), view=view)


def _pretend_optimizer(session: Session, spec: syn.Spec, loaded: Loaded) -> None:
    """A transform is checked as if plain SGD ran before it, so that it may change `update`."""
    p, g = var("p", ty.element()), var("g", ty.element())
    step = call("sub", p, call("mul", var("lr", ty.host()), g))
    session.movements.move(step, spec.span.line, loaded.path)
