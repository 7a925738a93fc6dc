"""Composed specs against recordings of the methods they amount to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import optdsl
from tests.end_to_end.test_golden import INDEX, PATHS, REFERENCE, hypers, run, tolerance

#: Recorded (method, setting) -> a spec that composes it, and the options it does not have.
COMPOSED: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("cautious_lion", ""): (
        """
        transform Cautious:
            step:
                agrees = update * g > 0
                update = update * agrees * numel / (count(agrees) + 1)

        optimizer CautiousLion:
            use Lion()
            use Cautious()
        """,
        (),
    ),
    ("gradient_centralization", "sgd"): (
        """
        optimizer CentralizedSGD:
            hyper:
                gc_conv_only = false
                decay = 0.02 in [0, inf)
            step:
                g = g + decay * p
                use Centralize(conv_only = gc_conv_only)
                use SGD(weight_decay = 0.0)
        """,
        ("use_gc",),
    ),
    ("gradient_centralization", "adam_grad"): (
        """
        optimizer CentralizedAdam:
            hyper:
                decay = 0.05 in [0, inf)
            step:
                g = g + decay * p
                use Centralize()
                use Adam(weight_decay = 0.0)
        """,
        ("use_gc", "gc_conv_only", "gc_loc"),
    ),
}


def composed(entry: dict[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    """The row for a recording, or None."""
    for (method, prefix), row in COMPOSED.items():
        if entry["optimizer"] == method and entry["setting"].startswith(prefix):
            return row
    return None


ENTRIES = [entry for entry in INDEX["entries"] if composed(entry)]


@pytest.mark.skipif(not ENTRIES, reason="no recorded trajectories; set OPTDSL_REFERENCE to their folder")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['optimizer']}-{e['setting']}-{e['dtype']}")
def test_composition(entry: dict[str, Any], path: str, tmp_path: Path) -> None:
    row = composed(entry)
    assert row is not None
    text, absent = row
    spec = tmp_path / "composed.opt"
    spec.write_text("\n".join(line[8:] for line in text.strip("\n").split("\n")) + "\n")
    options = {k: v for k, v in hypers(entry).items() if k not in absent}
    if "decay" in text:  # the L2 penalty comes before the transform
        options["decay"] = options.pop("weight_decay")
    measured = run(optdsl.load(spec), entry, path, options)
    with np.load(REFERENCE / entry["file"]) as recorded:
        for name, key in entry["keys"].items():
            want = recorded[key]
            error = np.max(np.abs(measured[name] - want) / np.maximum(1, np.abs(want)))
            assert error <= tolerance(entry), f"{name}: off by {error:.3g}"
