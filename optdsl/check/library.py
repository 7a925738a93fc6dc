"""Parsed files: the one that is checked, what it imports, and where the specs are that it uses."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from optdsl.check.files import Folders, locate, plain_name, roots
from optdsl.check.names import closest, shown
from optdsl.core.record import field, record
from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Diagnostic, Reporter, Span, SpecError
from optdsl.lang.parser import parse
from optdsl.lang.source import Source, read_text, split

MAX_FILES = 100

#: After these a line, or a whole block, is missing in the syntax tree.
_LOSES_LINES = frozenset({"E0006", "E0007", "E0008", "E0009", "E0101", "E0102", "E0103", "E0105"})
#: What a line that does not parse may have been meant to declare: its first word, and what stands before a
#: `=` or, in a tuple, a `:`.
_DECLARED = re.compile(
    r"^\s*(?:(?:def|optimizer|transform)\s+)?(\w+)|\b(\w++)\s*+(?:\[[^\]]{0,80}\]\s*+)?(?:=(?!=)|:)"
)


@record(frozen=False)
class Loaded:
    """A parsed file with its own reporter.

    `defs` and `specs` are what can be called and used in it: its own, which win, and what it imports. `lost`
    holds the names that lines which do not parse seem to declare; that they are missing is no second
    mistake. `complete` is False when an import could not be followed.
    """

    file: syn.File
    report: Reporter
    directory: Path | None
    lost: frozenset[str] = frozenset()
    complete: bool = True
    defs: dict[str, tuple[syn.Def, Loaded]] = field(default_factory=dict)
    specs: dict[str, tuple[syn.Spec, Loaded]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The file's path, as messages show it."""
        return self.file.path


class Library:
    """Loads each file once. `loaded` keeps every file in the order it was first needed.

    `given` are files wherever they are, by what imports call them. `spent` is the work that the specs and functions
    checked so far took.
    """

    def __init__(self, given: Mapping[str, Path] | None = None) -> None:
        self.loaded: dict[str, Loaded] = {}
        self._given = given or {}
        self.spent = 0
        self._folders = Folders()
        self._circles: set[frozenset[int]] = set()
        self._open: list[str] = []

    def text(self, text: str, path: str, directory: Path | None) -> Loaded:
        """Parses `text` as the file `path`; imports resolve in `directory` and the shipped library."""
        source = split(text, path)
        file = parse(source)
        loaded = Loaded(file, source.report, directory, _lost_names(source))
        loaded.defs = {d.name: (d, loaded) for d in reversed(file.defs)}
        loaded.specs = {s.name: (s, loaded) for s in reversed(file.specs)}
        key = str(Path(path).resolve()) if directory else path
        self.loaded[key] = loaded
        self._open.append(key)
        for item in file.imports:
            self._import(item, loaded)
        self._open.pop()
        return loaded

    def path(self, path: Path) -> Loaded:
        """The file at `path`. Raises SpecError when it cannot be read."""
        try:
            key = str(path.resolve())
            text = "" if key in self.loaded else read_text(path)
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a null character
            message = f"cannot read this path: {shown(str(error))}"
            found = Diagnostic("E0001", shown(str(path)), Span.of_line(1), message, "check the path")
            raise SpecError([found]) from None
        return self.loaded[key] if key in self.loaded else self.text(text, str(path), path.parent)

    def diagnostics(self) -> list[Diagnostic]:
        """All messages of all files."""
        return [d for loaded in self.loaded.values() for d in loaded.report.sorted()]

    # ---- imports ----------------------------------------------------------------------------------------

    def _import(self, item: syn.Import, into: Loaded) -> None:
        name = shown(item.path)
        found = self._given.get(item.path) or locate(item.path, into.directory)
        if found is None or len(self.loaded) >= MAX_FILES:
            into.complete = False
            many = f"more than {MAX_FILES} files are imported"
            message = f"cannot find `{name}`" if found is None else many
            help = (
                "imports are looked for beside the spec and in the shipped library; "
                "`..` and absolute paths are not followed"
            )
            near = (f"{item.path}.opt", f"lib/{item.path}", f"lib/{item.path}.opt") if found is None else ()
            for path in near:
                if locate(path, into.directory) is not None:
                    help = f"did you mean `{shown(path)}`?"
                    break
            into.report("E0502", item.span, message, help)
            return
        key = str(found.resolve())
        if key in self._open:
            into.complete = False
            circle = " -> ".join(Path(k).name for k in [*self._open[self._open.index(key) :], key])
            into.report("E0503", item.span, f"these files import each other: {circle}", "remove one import")
            return
        try:
            loaded = self.path(found)
        except SpecError as error:
            into.complete = False
            reason = error.diagnostics[0]
            into.report("E0502", item.span, f"cannot import `{name}`: {reason.message}", reason.help)
            return
        into.lost |= loaded.lost
        into.complete &= loaded.complete
        # what a file imports itself stays its own
        for definition in loaded.file.defs:
            if self._is_new(definition.name, into.defs, loaded, item, into):
                into.defs[definition.name] = (definition, loaded)
        for spec in loaded.file.specs:
            if self._is_new(spec.name, into.specs, loaded, item, into):
                into.specs[spec.name] = (spec, loaded)

    def _is_new(
        self,
        name: str,
        known: dict[str, tuple[syn.Def, Loaded]] | dict[str, tuple[syn.Spec, Loaded]],
        origin: Loaded,
        item: syn.Import,
        into: Loaded,
    ) -> bool:
        """True when an imported name is not taken; reports one that another import takes."""
        if name not in known:
            return True
        other = known[name][1]
        if other is not into and other is not origin:
            path, same = Path(other.path), Path(other.path).name == item.path
            where = f"{path.parent.name}/{path.name}" if same else path.name
            message = f"`{shown(name)}` is in `{shown(where)}` and in `{shown(item.path)}`"
            into.report("E0508", item.span, message, "rename one of them, or remove one import")
        return False

    def is_new_circle(self, specs: Iterable[syn.Spec]) -> bool:
        """True the first time that these specs are found to use each other in a circle."""
        circle = frozenset(map(id, specs))
        if circle in self._circles:
            return False
        self._circles.add(circle)
        return True

    # ---- specs ------------------------------------------------------------------------------------------

    def spec(self, name: str, span: Span, user: Loaded) -> tuple[syn.Spec, Loaded] | None:
        """The spec that `use name` means in the file `user`, or None after a message."""
        if name in user.specs:
            return user.specs[name]
        known = dict.fromkeys(user.specs, "")
        for root in roots(user.directory):
            path = self._folders.specs(root).get(plain_name(name))
            if path is None:
                known |= self._folders.names(root)
                continue
            try:
                loaded = self.path(path)
            except SpecError as error:
                message = f"cannot use `{shown(name)}`: {error.diagnostics[0].message}"
                user.report("E0501", span, message, error.diagnostics[0].help)
                return None
            own = {spec.name: (spec, loaded) for spec in loaded.file.specs}
            if name in own:
                return own[name]
            if name in loaded.lost:
                return None
            known |= self._folders.names(root)
        if name not in user.lost and user.complete:
            help = closest(name, known)
            if name in known:
                help = f'it is in `{known[name]}`, under another name; write `import "{known[name]}"` above'
            help = help or "`optdsl list` shows the shipped ones; others stand beside the spec"
            user.report("E0501", span, f"there is no spec `{shown(name)}`", help)
        return None


def _lost_names(source: Source) -> frozenset[str]:
    """Names declared, it seems, by lines that do not parse and by the blocks below them."""
    lost: set[str] = set()
    starts = [line.line for line in source.logical] + [len(source.lines) + 1]
    for message in source.report.found:
        if message.code not in _LOSES_LINES:
            continue
        # the logical line that the message points into, and those below it that are indented further
        first = max(0, bisect.bisect_right(starts, message.span.line) - 1)
        last = first + 1
        if first < len(source.logical):
            deeper = source.logical[first].indent + (message.code != "E0105")
            while last < len(source.logical) and source.logical[last].indent >= deeper:
                last += 1
        for text in source.lines[starts[first] - 1 : starts[min(last, len(starts) - 1)] - 1]:
            lost.update(word for match in _DECLARED.finditer(text) for word in match.groups() if word)
    return frozenset(lost)
