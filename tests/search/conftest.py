"""What takes long is for `make test-all`, and for `-m slow`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked as slow, unless it is asked for."""
    if "slow" in str(config.option.markexpr) or os.environ.get("OPTDSL_FULL"):
        return
    gone = {item for item in items if HERE in item.path.parents and item.get_closest_marker("slow")}
    if gone:
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=list(gone))
