"""The pages of the error codes: what each means, an example that provokes it, and a corrected version."""

from __future__ import annotations

from pathlib import Path

from optdsl.lang.diagnostics import CODES, nearest

PAGES = Path(__file__).resolve().parent / "pages"


def page(code: str) -> str:
    """The page of `code`, in Markdown. Raises KeyError, with the nearest code, when there is no such code."""
    wanted = code.strip().upper()
    if wanted not in CODES:
        text = code if code.isprintable() and len(code) <= 20 else "this"
        raise KeyError(f"there is no code {text}; {nearest(wanted[:20], CODES) or 'E0301 is one'}")
    return (PAGES / f"{wanted}.md").read_text(encoding="utf-8")
