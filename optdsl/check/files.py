"""Where the files are that a spec may refer to: beside it and in the shipped library, nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from optdsl.lang.diagnostics import SpecError
from optdsl.lang.source import read_text
from optdsl.resources import data_dir

#: So many files of a folder are looked into for the names of specs, when one is not found.
MAX_LOOK = 100


class Folders:
    """The folders of specs, each listed once."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, Path]] = {}
        self._names: dict[Path, dict[str, str]] = {}

    def specs(self, root: Path) -> dict[str, Path]:
        """The specs of a folder and of its `lib`, by plain name."""
        if root not in self._files:
            found = self._files[root] = {}
            for folder in (root / "lib", root):
                if folder.is_dir():
                    paths = sorted(path for path in folder.glob("*.opt") if is_inside(path, root))
                    found.update({plain_name(path.stem): path for path in paths})
        return self._files[root]

    def names(self, root: Path) -> dict[str, str]:
        """The names of the specs in these files, each with its file, for suggestions."""
        if root not in self._names:
            names = self._names[root] = {}
            for path in list(self.specs(root).values())[:MAX_LOOK]:
                try:
                    text = read_text(path)
                except SpecError:
                    continue
                for name in re.findall(r"(?m)^(?:optimizer|transform) +(\w+)", text):
                    names.setdefault(name, path.relative_to(root).as_posix())
        return self._names[root]


def roots(directory: Path | None) -> list[Path]:
    """Where a file in `directory` finds others, in this order."""
    return [root for root in (directory, data_dir("specs")) if root is not None]


def locate(relative: str, directory: Path | None) -> Path | None:
    """The file that an import in `directory` means, or None. Never outside the roots."""
    wanted = Path(relative)
    if wanted.is_absolute() or ".." in wanted.parts or "\0" in relative:
        return None
    return next((root / wanted for root in roots(directory) if is_inside(root / wanted, root)), None)


def plain_name(name: str) -> str:
    """`ClipByGlobalNorm` and `clip_by_global_norm` as one spelling."""
    return name.replace("_", "").replace("-", "").lower()


def is_inside(path: Path, root: Path) -> bool:
    """True for a file that lies below `root` when links are followed."""
    try:
        return path.resolve().is_relative_to(root.resolve()) and path.is_file()
    except (OSError, RuntimeError, ValueError):
        return False
