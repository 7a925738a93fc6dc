"""A spec with transforms around it, and with other formats for its states, asked for from outside of it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from optdsl.check import Checked, check_path, check_text
from optdsl.check.compose import assigned_lines, mentions_update, uses
from optdsl.check.library import Library, Loaded
from optdsl.check.names import MAX_NAME
from optdsl.core.record import record
from optdsl.core.storage import FORMATS
from optdsl.ir.program import Program
from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import Diagnostic, Span, SpecError, nearest
from optdsl.lang.source import read_text
from optdsl.resources import data_dir

#: `NAME`, or a path, and what `use` has behind it: `(option = value)`, `as prefix`.
_WITH = re.compile(r"\s*([^=]+?\.opt(?!\w)|[\w./-]+)\s*(.*)")
#: With this in front, imports call files that do not stand beside the spec: it is in no path that they follow.
_ELSEWHERE = "//"
#: Bytes of the name of a file, at most; what compilers put behind it needs some, too.
LONGEST = 200
#: How states are kept: one format for all of them, or one for each key.
Store = str | Mapping[str, str]


@record
class _Given:
    """A transform that was asked for: its text, in one line; where its name is there, and what follows it.

    `file` is what `import` calls the file of its spec.
    """

    text: str
    start: int
    end: int
    rest: int
    spec: syn.Spec
    file: str
    loaded: Loaded

    @property
    def line(self) -> str:
        """What asks for it in a spec."""
        return f"    use {self.spec.name}{self.text[self.rest :] or '()'}"

    def quoted(self, found: Diagnostic) -> Diagnostic:
        """A message on `line`, or if it is on another on all of it, as one on the text."""
        column, end, last = found.span.column, found.span.end_column, len(self.text)
        first = len(f"    use {self.spec.name}") + 1
        if found.source_line != self.line:
            column, end = 1, len(self.line) + 1
        start = min(self.rest + column - first, last - 1) if column >= first else self.start
        stop = min(self.rest + end - first, last) if end > first else self.end
        return replace(found, path="<transform>", span=Span(1, start + 1, 1, stop + 1), source_line=self.text)


def composed(path: Path, transforms: Sequence[str]) -> tuple[str, Checked]:
    """The text of the optimizer of the spec at `path` with transforms around it, and its check.

    A transform is named like a file of the shipped library (`clip_by_global_norm`), or by the path of a file, that of
    the spec too: it is looked for beside the spec, and from the working directory. What may follow is what `use` has
    there: options in brackets, `as` a prefix. Those that change the gradient come in front of the optimizer, those
    that change the update, or act on what it leaves, behind it, each in the order given. Messages show these texts as
    they were given. Raises ValueError for a transform that there is not, or whose name another spec of the file has,
    SpecError for files with mistakes.
    """
    library = Library()
    base = library.path(path)
    if base.report.failed:
        raise SpecError(check_path(path).diagnostics)
    optimizers = [spec for spec in base.file.specs if spec.kind == "optimizer"]
    if not optimizers:
        raise ValueError(f"{path} holds no optimizer")
    given = [_given(library, text, path.parent) for text in transforms]
    elsewhere: dict[str, Path] = {}
    for one in given:
        file = Path(one.loaded.path).resolve()
        if one.file.startswith(_ELSEWHERE) and elsewhere.setdefault(one.file, file) != file:
            raise ValueError(
                f"two files of transforms are called `{file.name}`: give one of them another name"
            )
    others = [one for one in given if one.loaded is not base]
    for one in others:
        if one.spec.name in {spec.name for spec in base.file.specs}:
            raise ValueError(
                f"`{one.text}` is called `{one.spec.name}`, and so is another spec of {path}; rename that one"
            )
    behind = [_behind(library, one) for one in given]
    own, names = optimizers[-1], [one.spec.name for one in given]
    lines = [
        *dict.fromkeys(f'import "{one.file}"' for one in others),
        *("", "", f"optimizer {_class_of(own.name, names)}:"),
        *(one.line for one, late in zip(given, behind, strict=True) if not late),
        f"    use {own.name}()",
        *(one.line for one, late in zip(given, behind, strict=True) if late),
    ]
    above = re.sub("\r\n?", "\n", read_text(path).rstrip()) + "\n\n\n"
    whole = above + "\n".join(lines) + "\n"
    checked = check_text(whole, str(path), path.parent, elsewhere)
    lines_above = above.count("\n")

    def as_given(found: Diagnostic) -> Diagnostic:
        """A message on a line that nobody wrote, as one on the transform or the optimizer that it is about."""
        if found.path != str(path) or found.span.line <= lines_above:
            return found
        for one in given:
            if found.source_line in (one.line, f'import "{one.file}"'):
                return one.quoted(found)
        return replace(found, span=own.name_span, source_line=base.report.lines[own.name_span.line - 1])

    checked = replace(checked, diagnostics=tuple(map(as_given, checked.diagnostics)))
    if checked.program is not None:
        doc = f"{own.doc.split(chr(10))[0] or own.name} With {', '.join(names)}."
        checked = replace(checked, program=replace(checked.program, doc=doc, cite=own.cite))
    return whole, checked


def _class_of(name: str, transforms: Sequence[str]) -> str:
    """The class of an optimizer with transforms around it: with their names, or how many if that gets too long."""
    found = f"{name}With{''.join(dict.fromkeys(transforms))}"
    return found if len(found) <= MAX_NAME else f"{name[: MAX_NAME - 20]}With{len(transforms)}Transforms"


def _given(library: Library, text: str, beside: Path) -> _Given:
    """What a text asks for. Raises ValueError."""
    text = re.sub(r"[\r\n]", " ", text).rstrip()
    found = _WITH.fullmatch(text)
    if found is None:
        raise ValueError(f"`{text}` is not a transform, as in `clip_by_global_norm(max_norm = 0.5)`")
    file, path = _file(found[1], beside)
    specs = [spec for spec in library.path(path).file.specs if spec.kind == "transform"]
    if not specs:
        raise ValueError(f"`{found[1]}` holds no transform")
    return _Given(text, *found.span(1), found.start(2), specs[-1], file, library.path(path))


def _behind(library: Library, given: _Given) -> bool:
    """Whether a transform acts on what an optimizer leaves, not on the gradient that it gets. Raises ValueError."""
    places: dict[bool, str] = {}
    seen: list[syn.Spec] = []

    def visit(spec: syn.Spec, file: Loaded) -> None:
        """Notes where a transform belongs, and those that it uses: if it does not say itself, they do."""
        seen.append(spec)
        assigned, used = assigned_lines(spec), uses(spec)
        if mentions_update(spec) or "p" in assigned or spec.view is not None or spec.kind == "optimizer":
            places.setdefault(True, spec.name)
        elif "g" in assigned:
            places.setdefault(False, spec.name)
        elif assigned and not used:
            places.setdefault(True, spec.name)
        for node in used:
            found = library.spec(node.name, node.name_span, file)
            if found is not None and all(found[0] is not other for other in seen):
                visit(*found)

    visit(given.spec, given.loaded)
    if len(places) == 2:
        raise ValueError(
            f"`{given.text}` changes the gradient by `{places[False]}` and acts on what the optimizer leaves by "
            f"`{places[True]}`; one goes in front of it, the other behind: name them one by one"
        )
    return places.get(True) is not None


def _file(name: str, beside: Path) -> tuple[str, Path]:
    """What `import` calls the file of a transform, and where it is. Raises ValueError."""
    path = Path(name)
    if path.suffix == ".opt":
        if (beside / path.name).is_file() and (
            path.parent == Path() or path.parent.resolve() == beside.resolve()
        ):
            return path.name, beside / path.name
        if path.is_file():
            return _ELSEWHERE + path.name, path
        raise ValueError(
            f"there is no transform at `{name}`, and none of that name beside the spec, in `{beside}`"
        )
    shipped = data_dir("specs")
    plain = name.lower().replace("-", "_")
    for place in (f"lib/{plain}.opt", f"{plain}.opt"):
        if (shipped / place).is_file():
            return place, shipped / place
    files = (shipped / "lib").glob("*.opt")
    known = sorted(p.stem for p in files if re.search(r"^transform ", read_text(p), re.MULTILINE))
    raise ValueError(
        f"there is no transform `{name}`; {nearest(name, known) or 'there are ' + ', '.join(known)}"
    )


def stored(program: Program, store: Store | None) -> Program:
    """`program` with other formats for its states per element. Raises ValueError for unknown keys and formats."""
    if store is None:
        return program
    listed = ", ".join(FORMATS)
    if not isinstance(store, str | Mapping):
        raise ValueError(
            f"`store` is {store!r}; it can be one format for all states ({listed}), or a mapping from keys "
            "of states to formats"
        )
    elements = [s for s in program.kept if s.type.is_element]
    given = dict.fromkeys((s.key for s in elements), store) if isinstance(store, str) else dict(store)
    for key, name in given.items():
        if key == "p":
            raise ValueError(
                "how parameters are kept is said where the optimizer is made, as `store={'p': ...}`"
            )
        if not isinstance(name, str) or name not in FORMATS:
            raise ValueError(f"there is no format {name!r} to store a state in; there are {listed}")
        if key not in {s.key for s in elements}:
            has = ", ".join(f"`{s.key}`" for s in elements)
            raise ValueError(
                f"{program.name} has no state `{key}` with a number per element"
                + (f"; it has {has}" if has else "; it keeps none")
            )
    states = tuple(
        replace(s, stored=given.get(s.key, s.stored)) if s in elements else s for s in program.states
    )
    view = program.view and replace(program.view, states=states)
    return replace(program, states=states, view=view)


def store_of(texts: Iterable[str]) -> Store | None:
    """What `--store q8` or `--store exp_avg=q8` say. Raises ValueError."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, name = text.partition("=")
        if key.strip() in found:
            raise ValueError(f"`--store {text}`: `{key.strip()}` has been given a format already")
        if not equals:
            if len(list(texts)) > 1:
                raise ValueError(f"`--store {text}` is for all states; give others by their keys alone")
            return key.strip()
        found[key.strip()] = name.strip()
    return found or None


def module_of(path: Path, transforms: Sequence[str], store: Store | None) -> str:
    """The name of the files of a composition; of one that no file could have, the beginning and a hash."""
    words = [path.stem, *(["with"] if transforms else [])]
    words += [Path(text.partition("(")[0].strip()).stem for text in transforms]
    if isinstance(store, str):
        words.append(store)
    elif store:
        words += [f"{key}_{name}" for key, name in store.items()]
    name = "_".join(os.path.basename(word) for word in words)
    if len(name.encode()) <= LONGEST:
        return name
    return f"{name[: LONGEST // 2]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
