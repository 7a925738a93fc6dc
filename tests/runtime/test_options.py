"""Options that change between two steps, on every path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import optdsl
from tests.runtime.test_storage import EACH, PATHS, how, kernels_ran

LATE = """optimizer Late:
    hyper:
        lr = 0.1 in [0, inf)
        weight_decay = 0.01 in [0, inf)
        accelerated = false
        averaged = false

    state:
        count [host] = 1 as momentum_count
        average = 0

    step:
        p = p * (1 - lr * weight_decay)
        if accelerated:
            count = count + 0.5
            p = p - lr * g / count
        else:
            p = p - lr * g
        if averaged:
            average = 0.9 * average + 0.1 * p
"""


@EACH
@pytest.mark.parametrize("first", ["accelerated", "averaged"])
def test_an_option_brings_a_state_that_was_not_there(first: str, path: str, tmp_path: Path) -> None:
    """One for the host or one per element: it begins when the option is turned on, and rests while it is off."""
    (tmp_path / "late.opt").write_text(LATE)
    runs: list[tuple[torch.Tensor, dict[str, Any]]] = []
    with how(path):
        for flags in ({"foreach": False}, PATHS[path]):
            generator = torch.Generator().manual_seed(3)
            p = torch.nn.Parameter(torch.randn(40, 3, generator=generator))
            optimizer = optdsl.load(tmp_path / "late.opt")([p], **flags)
            group = optimizer.param_groups[0]
            for step in range(6):
                group[first] = step in (1, 2, 5)
                group["averaged" if first == "accelerated" else "accelerated"] = step >= 4
                p.grad = torch.randn(40, 3, generator=generator)
                optimizer.step()
            runs.append((p.detach(), dict(optimizer.state[p])))
        assert kernels_ran(optimizer, path)
    (wanted, states), (found, others) = runs
    torch.testing.assert_close(found, wanted)
    assert states.keys() == others.keys() == {"step", "momentum_count", "average"}
    for key, held in states.items():
        torch.testing.assert_close(others[key].to(held.dtype), held, msg=key)
