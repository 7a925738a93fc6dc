"""Syntax tree to typed program: names, levels, composition. The messages of the E02 to E06 codes."""

from optdsl.check.program import Checked, check_path, check_text

__all__ = ["Checked", "check_path", "check_text"]
