"""What takes long is for `make contract`, and for `make test-all`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out runs of every spec, unless they are asked for; the table of the contract has a row of each."""
    for item in items:
        if HERE in item.path.parents and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            item.user_properties.append(("spec", item.callspec.params.get("name")))
    if "contract" in str(config.option.markexpr) or os.environ.get("OPTDSL_FULL"):
        return
    gone = {item for item in items if HERE in item.path.parents and item.get_closest_marker("contract")}
    if gone:
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=list(gone))
