"""A spec with transforms around it, and with other formats for its states, asked for from outside of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from optdsl.check import Checked, check_path, check_text
from optdsl.check.compose import assigned_lines, mentions_update
from optdsl.check.library import Library
from optdsl.core.storage import FORMATS
from optdsl.ir.program import Program
from optdsl.lang import syntax as syn
from optdsl.lang.diagnostics import SpecError, nearest
from optdsl.lang.source import read_text
from optdsl.resources import data_dir

#: `NAME` or `NAME(option = value)`; a value may be a tuple.
_WITH = re.compile(r"\s*([\w./-]+)\s*(?:\(((?:[^()\n]|\([^()\n]*\))*)\))?\s*")
#: How states are kept: one format for all of them, or one for each key.
Store = str | Mapping[str, str]


def composed(path: Path, transforms: Sequence[str]) -> tuple[str, Checked]:
    """The text of the optimizer of the spec at `path` with transforms around it, and its check.

    A transform is named like a file of the shipped library (`clip_by_global_norm`), or by the path of a file beside
    the spec; options may follow in brackets. Those that change the gradient come in front of the optimizer, those
    that change the update, or act on what it leaves, behind it, each in the order given. Raises ValueError for a
    transform that there is not, SpecError for files with mistakes.
    """
    library = Library()
    base = library.path(path)
    if base.report.failed:
        raise SpecError(check_path(path).diagnostics)
    optimizers = [spec for spec in base.file.specs if spec.kind == "optimizer"]
    if not optimizers:
        raise ValueError(f"{path} holds no optimizer")
    imports: list[str] = []
    before: list[str] = []
    after: list[str] = []
    names: list[str] = []
    for text in transforms:
        found = _WITH.fullmatch(text)
        if found is None:
            raise ValueError(f"`{text}` is not a transform, as in `clip_by_global_norm(max_norm = 0.5)`")
        place, where = _file(found[1], path.parent)
        spec = _transform(library, where, found[1])
        imports.append(f'import "{place}"')
        line = f"    use {spec.name}({found[2] or ''})"
        (after if _behind(spec) else before).append(line)
        names.append(spec.name)
    own = optimizers[-1].name
    name = f"{own}With{''.join(dict.fromkeys(names))}"
    lines = [*dict.fromkeys(imports), "", "", f"optimizer {name}:", *before, f"    use {own}()", *after]
    whole = f"{read_text(path).rstrip()}\n\n\n" + "\n".join(lines) + "\n"
    checked = check_text(whole, str(path), path.parent)
    if checked.program is not None:
        doc = f"{optimizers[-1].doc.split(chr(10))[0] or own} With {', '.join(names)}."
        program = replace(checked.program, doc=doc, cite=optimizers[-1].cite)
        checked = replace(checked, program=program)
    return whole, checked


def _behind(spec: syn.Spec) -> bool:
    """Whether a transform acts on what an optimizer leaves, not on the gradient that it gets."""
    assigned = assigned_lines(spec)
    return mentions_update(spec) or (bool(assigned) and "g" not in assigned)


def _file(name: str, beside: Path) -> tuple[str, Path]:
    """What `import` calls the file of a transform, and where it is. Raises ValueError."""
    path = Path(name)
    if path.suffix == ".opt":
        if (beside / path.name).is_file() and (
            path.parent == Path() or path.parent.resolve() == beside.resolve()
        ):
            return path.name, beside / path.name
        raise ValueError(f"there is no transform at `{name}`: its file stands beside the spec")
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


def _transform(library: Library, path: Path, name: str) -> syn.Spec:
    """The transform in a file. Raises ValueError."""
    specs = [spec for spec in library.path(path).file.specs if spec.kind == "transform"]
    if not specs:
        raise ValueError(f"`{name}` holds no transform")
    return specs[-1]


def stored(program: Program, store: Store | None) -> Program:
    """`program` with other formats for its states per element. Raises ValueError for unknown keys and formats."""
    if not store:
        return program
    elements = [s for s in program.kept if s.type.is_element]
    given = dict.fromkeys((s.key for s in elements), store) if isinstance(store, str) else dict(store)
    for key, name in given.items():
        if key == "p":
            raise ValueError(
                "how parameters are kept is said where the optimizer is made, as `store={'p': ...}`"
            )
        if name not in FORMATS:
            help = nearest(name, FORMATS) or f"there are {', '.join(FORMATS)}"
            raise ValueError(f"there is no format `{name}` to store a state in; {help}")
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
        if not equals:
            if len(list(texts)) > 1:
                raise ValueError(f"`--store {text}` is for all states; give others by their keys alone")
            return key.strip()
        found[key.strip()] = name.strip()
    return found or None


def module_of(path: Path, transforms: Sequence[str], store: Store | None) -> str:
    """The name of the files of a composition."""
    words = [path.stem, *(["with"] if transforms else [])]
    words += [Path(text.partition("(")[0].strip()).stem for text in transforms]
    if isinstance(store, str):
        words.append(store)
    elif store:
        words += [f"{key}_{name}" for key, name in store.items()]
    return "_".join(os.path.basename(word) for word in words)
