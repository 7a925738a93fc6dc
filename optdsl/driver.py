"""The pipeline: text -> checked program -> simplified program -> files or a class. Stop at any stage."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import keyword
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from optdsl.check import Checked, check_path
from optdsl.core.record import record
from optdsl.ir.program import Program
from optdsl.lang.diagnostics import Diagnostic, Span, SpecError, nearest
from optdsl.lang.source import read_text
from optdsl.resources import cache_dir, data_dir, write_together

if TYPE_CHECKING:
    from optdsl.compose import Store
    from optdsl.runtime import Optimizer

#: What `show` can print, in the order of the pipeline.
STAGES = ("syntax", "program", "simplified", "lowered", "opt", "plan", "torch", "cpu", "triton")
BACKENDS = ("torch", "cpu", "triton")
#: What `store` is where no other formats are asked for.
_AS_IT_IS: tuple[Store | None, ...] = (None, {})


class SpecWarning(UserWarning):
    """A spec compiles, but something in it looks like a mistake."""


def simplify(program: Program) -> Program:
    """The program that is emitted: local rules, algebra where a program is bloated, and no state without a use."""
    from optdsl.passes.algebra import improve
    from optdsl.passes.simplify import drop_unused
    from optdsl.passes.simplify import simplify as run

    return drop_unused(improve(run(program)))


def program_of(
    path: Path, with_: Sequence[str] = (), store: Store | None = None
) -> tuple[Program, tuple[Diagnostic, ...]]:
    """The checked program of the spec at `path`, and the warnings on it. Raises SpecError; ValueError as `load`."""
    checked, _, _ = _composition(path, with_, store)
    return _program(checked, path), checked.diagnostics


@record
class Compiled:
    """What became of one spec: its program, the messages, the files written (empty when it has errors).

    `no_kernels` says why there are no native kernels, where they were asked for and cannot be had.
    """

    path: Path
    checked: Checked
    files: tuple[Path, ...] = ()
    no_kernels: str | None = None

    def __repr__(self) -> str:
        """Without the program, which takes pages."""
        files = ", ".join(map(str, self.files)) or "nothing written"
        return f"<Compiled {self.path}: {files}, {len(self.checked.errors)} errors>"

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Errors and warnings."""
        return self.checked.diagnostics


def spec_paths(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """The specs that `paths` name: files as they are, folders for the `.opt` files right in them."""
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(path.glob("*.opt"))
        else:
            yield path


def locate(path_or_name: str | os.PathLike[str]) -> Path:
    """The file of a spec: a path, or the bare name of a shipped one. Raises FileNotFoundError."""
    text = os.fspath(path_or_name)
    path = Path(text)
    if path.suffix == ".opt" or len(path.parts) > 1:
        if not path.is_file():
            folder = ", which is a folder" if path.is_dir() else ""
            raise FileNotFoundError(f"there is no spec at `{text}`{folder}")
        return path
    shipped = shipped_specs()
    name = text.lower().replace("-", "_")
    if name not in shipped:
        help = nearest(name, shipped) or "`optdsl list` shows the shipped ones; a file is named by its path"
        raise FileNotFoundError(f"there is no shipped spec `{text}`; {help}")
    return shipped[name]


def shipped_specs() -> dict[str, Path]:
    """The shipped optimizers by name."""
    return {path.stem: path for path in sorted(data_dir("specs").glob("*.opt"))}


def source_hash(path: Path) -> str:
    """Hash of a spec file: tells a generated file that is out of date."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def emit(
    program: Program, path: Path, backends: Iterable[str] = BACKENDS, standalone: bool = False
) -> dict[str, str]:
    """The files that backends make of a program, already simplified, that comes from the spec at `path`.

    By their names: `NAME.py`, and where the program has kernels `NAME.c` and `NAME.triton.py` for the backends "cpu"
    and "triton".
    The class is always that of the backend "torch", which every other path falls back on. A `standalone` file has
    no kernels. Raises ValueError for an unknown backend.
    """
    return _emit(program, path, known_backends(backends), standalone)[0]


def known_backends(backends: Iterable[str]) -> tuple[str, ...]:
    """The backends of these names. Raises ValueError for one that does not exist."""
    backends = tuple(backends)
    for backend in backends:
        if backend not in BACKENDS:
            help = nearest(backend, BACKENDS) or f"available: {', '.join(BACKENDS)}"
            raise ValueError(f"there is no backend `{backend}`; {help}")
    return backends


def _emit(
    program: Program,
    path: Path,
    backends: tuple[str, ...],
    standalone: bool,
    module: str = "",
    digest: str = "",
) -> tuple[dict[str, str], str | None]:
    """The files, and why there are no kernels among them though they were asked for.

    Those of a composition have a name, and a hash, of their own.
    """
    from optdsl.backends import torch as torch_backend
    from optdsl.backends.native import NAMES
    from optdsl.backends.native import native as kernels_of

    digest, module = digest or source_hash(path), module or module_name(path)
    files: dict[str, str] = {}
    native = None
    wanted = [] if standalone else [name for name in backends if name in NAMES]
    if wanted:
        names = torch_backend.python_names(program)
        native = kernels_of(program, path.name, digest, module, names, wanted)
        files = {source.file: source.text for source in native.sources}
    text = torch_backend.emit(program, path.name, digest, native)
    if standalone:
        from optdsl.backends.torch.standalone import standalone as inline

        text = inline(text)
    return {f"{module}.py": text, **files}, native.reason if native else None


def compile(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    backends: Iterable[str] = BACKENDS,
    *,
    standalone: bool = False,
    progress: Callable[[Path], None] | None = None,
    with_: str | Sequence[str] = (),
    store: Store | None = None,
) -> list[Compiled]:
    """Compiles specs, or all specs of a folder, to `out/NAME.py`, `out/NAME.c` and `out/NAME.triton.py` (default:
    beside the spec).

    `with_` names transforms to put around each optimizer, `store` other formats for its states (see `load`); both are
    then part of NAME. The first file holds the class, the others its kernels for CPUs and for GPUs; they are written
    if the backends "cpu" and "triton" are asked for and the spec has kernels. `standalone` puts the runtime into the
    first, so that it needs torch alone, and writes no kernels. `progress` is called with each spec before it is
    compiled. A spec with errors writes nothing and does not stop the others; look at `Compiled.checked.errors`. The
    files of a spec are replaced together or not at all. Raises OSError, and ValueError for an unknown backend or when
    two specs would become the same file.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    with_ = _transforms(with_)
    backends = known_backends(backends)
    results = []
    for path, target in _targets(spec_paths(paths), out).items():
        if progress:
            progress(path)
        checked, module, digest = _composition(path, with_, store)
        if checked.program is None:
            results.append(Compiled(path, checked))
            continue
        made, no_kernels = _emit(simplify(checked.program), path, backends, standalone, module, digest)
        write_all(target.parent, made)
        results.append(Compiled(path, checked, tuple(map(target.with_name, made)), no_kernels))
    return results


def _transforms(with_: str | Sequence[str]) -> list[str]:
    """The texts that ask for transforms. Raises TypeError for what is no text."""
    texts = list(with_) if isinstance(with_, Iterable) and not isinstance(with_, str) else [with_]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"`with_` is a transform as text, or a list of them, and {text!r} is no text")
    return texts


def _composition(path: Path, with_: Sequence[str], store: Store | None) -> tuple[Checked, str, str]:
    """A spec as it is asked for, the name of its files, and its hash; the latter two empty for one as it is.

    Raises ValueError for transforms, states and formats that there are not.
    """
    if not with_ and store in _AS_IT_IS:
        return check_path(path), "", ""
    from optdsl.compose import composed, module_of, stored

    if with_:
        try:
            text, checked = composed(path, with_)
        except SpecError as error:
            return Checked(None, error.diagnostics), "", ""
    else:
        checked = check_path(path)
        text = read_text(path) if checked.program is not None else ""
    if checked.program is not None:
        checked = replace(checked, program=stored(checked.program, store))
    name = module_of(path, with_, store)
    digest = hashlib.sha256(f"{text}\0{store!r}".encode()).hexdigest()
    return checked, module_name(Path(f"{name}.opt")), digest


def _targets(paths: Iterable[Path], out: str | os.PathLike[str] | None) -> dict[Path, Path]:
    """The file that each spec becomes. Raises ValueError when two become the same."""
    targets: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    for path in paths:
        target = (Path(out) if out is not None else path.parent) / f"{module_name(path)}.py"
        owner = owners.setdefault(target, path)
        if owner.resolve() != path.resolve():
            raise ValueError(f"{owner} and {path} would both become {target}; rename one of them")
        targets[owner] = target
    return targets


def module_name(path: Path) -> str:
    """A Python module name for the spec at `path`."""
    name = "".join(ch if ch.isascii() and (ch.isalnum() or ch == "_") else "_" for ch in path.stem)
    if keyword.iskeyword(name):
        return f"{name}_"
    return f"_{name}" if not name or name[0].isdigit() else name


def write(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all; an unchanged file is left alone. Raises OSError."""
    write_all(path.parent, {path.name: text})


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Writes text files into a folder, all or none; unchanged files are left alone. Raises OSError."""
    try:
        # the class, which comes first, is put in place last: what it refers to is there then
        data = {folder / name: text.encode() for name, text in reversed(list(texts.items()))}
        write_together({path: new for path, new in data.items() if not _holds(path, new)})
    except OSError as error:
        if not folder.is_dir() and folder.exists():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder)) from None
        raise error from None


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file is there and holds this. Raises OSError."""
    return path.is_file() and path.read_bytes() == data


# ---- classes ----------------------------------------------------------------------------------------------

_LOADING = threading.Lock()


def load(
    path_or_name: str | os.PathLike[str],
    backend: str | None = None,
    *,
    with_: str | Sequence[str] = (),
    store: Store | None = None,
) -> type[Optimizer]:
    """The optimizer class of a spec: of a file, or of a shipped spec by its bare name (`"adamw"`).

    `with_` puts transforms around it: names of the shipped library, or paths of files (beside the spec, or from the
    working directory), with their options, as in `with_="clip_by_global_norm(max_norm = 0.5)"`. `store` keeps states
    in other formats, by default: one of `optdsl.core.storage.FORMATS` for all states per element, or a mapping from
    keys, as in `{"exp_avg": "q8"}`.

    Compiles if needed; the same spec gives the same class again. Raises FileNotFoundError when there is no
    such spec, SpecError with every message when it has mistakes, ValueError for an unknown backend.
    """
    path = locate(path_or_name)
    backends = BACKENDS if backend is None else known_backends(["torch", backend])
    with_ = _transforms(with_)
    ready = None if with_ or store not in _AS_IT_IS else _shipped_class(path)
    if ready is not None and backend != "torch":
        return ready
    checked, own_name, digest = _composition(path, with_, store)
    program = _program(checked, path)
    for diagnostic in checked.diagnostics:
        warnings.warn(f"\n{diagnostic.render()}", SpecWarning, stacklevel=2)
    files, _ = _emit(simplify(program), path, backends, False, own_name, digest)
    own_name = own_name or module_name(path)
    digest = hashlib.sha256("\0".join(files.values()).encode()).hexdigest()[:16]
    name = f"optdsl_spec_{own_name[:60]}_{digest}"
    with _LOADING:
        module = sys.modules.get(name)
        if module is None:
            folder = cache_dir() / name
            try:
                write_all(folder, files)
            except OSError:  # a read-only cache: files of this process will do
                import atexit
                import shutil
                import tempfile

                folder = Path(tempfile.mkdtemp(prefix="optdsl-"))
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
                write_all(folder, files)
            module = _import(name, folder / f"{own_name}.py")
    found: type[Optimizer] = getattr(module, program.name)
    return found


def _program(checked: Checked, path: Path) -> Program:
    """The program of a checked file. Raises SpecError, also for a file that holds no optimizer."""
    if checked.program is None and not checked.errors:
        message = f"this file holds a {checked.kind}, and no optimizer"
        help = "only an optimizer becomes a class; one that has `use NAME()` is made of others"
        raise SpecError([Diagnostic("E0109", str(path), Span.of_line(1), message, help)])
    return checked.require()


def _shipped_class(path: Path) -> type[Optimizer] | None:
    """The class from the shipped generated file, if that file is made from this very spec."""
    shipped = shipped_specs().get(path.stem)
    generated = data_dir("generated") / f"{path.stem}.py"
    if shipped is None or not generated.is_file() or path.resolve() != shipped.resolve():
        return None
    with open(generated, encoding="utf-8") as file:
        head = file.readline() + file.readline()
    from optdsl import __version__
    from optdsl.backends.revision import REVISION

    current = f"optdsl {__version__} " in head and f"generator revision {REVISION}," in head
    if not current or f"spec sha256 {source_hash(path)}" not in head:
        return None
    module = importlib.import_module(f"optdsl.zoo.{path.stem}")
    found: type[Optimizer] = getattr(module, module.__all__[0])
    return found


def _import(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def show(path: Path, stage: str) -> str:
    """The text of a spec at a stage of the pipeline (one of STAGES). Raises SpecError."""
    from optdsl.ir.text import show as listing
    from optdsl.ir.text import to_opt

    if stage == "syntax":
        return _syntax(path)
    program = _program(check_path(path), path)
    if stage == "program":
        return listing(program)
    if stage == "opt":
        return to_opt(program)
    program = simplify(program)
    match stage:
        case "simplified":
            return listing(program)
        case "lowered":
            from optdsl.passes.lower import lower

            return listing(lower(program))
        case "plan":
            return plans(program)
        case "torch":
            return emit(program, path, ("torch",))[f"{module_name(path)}.py"]
        case "cpu" | "triton":
            files, reason = _emit(program, path, ("torch", stage), False)
            if reason:
                return (
                    f"/* no native kernels: {reason} */\n" if stage == "cpu" else f"# no kernels: {reason}\n"
                )
            return next(text for name, text in files.items() if name != f"{module_name(path)}.py")
    raise ValueError(f"there is no stage `{stage}`; {nearest(stage, STAGES) or ', '.join(STAGES)}")


def plans(program: Program) -> str:
    """The plans of a program, already simplified, one for each setting and branch."""
    from optdsl.backends.kernels import NoKernels
    from optdsl.backends.kernels import plans as all_plans
    from optdsl.ir.text import show_plan

    try:
        found = all_plans(program)
    except NoKernels as reason:
        return f"no plan: {reason}\n"
    return "\n".join(show_plan(conditions, plan) for conditions, plan in found)


def _syntax(path: Path) -> str:
    """The syntax tree as indented text."""
    from optdsl.lang.parser import parse
    from optdsl.lang.source import split

    source = split(read_text(path), str(path))
    tree = parse(source)
    if source.report.failed:
        raise SpecError(source.report.sorted())
    lines: list[str] = []

    def visit(node: Any, label: str, depth: int) -> None:
        pad = "  " * depth
        names = getattr(node, "__dataclass_fields__", None)
        if names is not None and not isinstance(node, Span):
            lines.append(f"{pad}{label}{type(node).__name__}")
            for name in names:
                if name not in ("span", "lines") and not name.endswith("_span"):
                    visit(getattr(node, name), f"{name}: ", depth + 1)
        elif isinstance(node, tuple) and node:
            lines.append(f"{pad}{label}")
            for item in node:
                visit(item, "- ", depth + 1)
        elif not isinstance(node, Span) and node not in ((), None, ""):
            lines.append(f"{pad}{label}{node!r}")

    visit(tree, "", 0)
    return "\n".join(lines) + "\n"
