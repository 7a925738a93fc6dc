"""The examples with trainers: resumed runs end as those that never stopped, and as those of torch's optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import optdsl
from tests.support import ROOT, module_of

# What they depend on warns of itself; of a step without kernels there is to be no warning.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("trainers"),
    pytest.mark.filterwarnings("ignore", "error:optdsl:RuntimeWarning"),
]
#: What each needs, and how long it trains here: steps, or epochs.
EXAMPLES = {
    "accelerate_loop": ("accelerate", 4),
    "huggingface_trainer": ("transformers", 8),
    "lightning_module": ("lightning", 4),
}


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Trains by an example, and gives the parameters that come of it."""
    needed, length = EXAMPLES[request.param]
    pytest.importorskip(
        needed, reason=f"examples/{request.param}.py needs {needed}: `pip install optdsl[examples]`"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = module_of(ROOT / "examples" / f"{request.param}.py", f"example_{request.param}")

    def train(out: Path, method: str, resume: bool = False) -> list[Tensor]:
        found = module.train(out, length, method, resume)
        return [p.detach().clone() for p in getattr(found, "model", found).parameters()]

    threads = torch.get_num_threads()
    yield train
    torch.set_num_threads(threads)
    if (
        request.param != "lightning_module"
    ):  # what accelerate knows of the process is that of the next test, too
        state = importlib.import_module("accelerate.state")
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.mark.parametrize("method", ["lion", "schedule_free_adamw"])
def test_a_run_that_is_resumed_is_one_that_never_stopped(example: Any, method: str, tmp_path: Path) -> None:
    """Bit for bit; without what the optimizer had kept it is another one."""
    whole = example(tmp_path, method)
    resumed = example(tmp_path, method, resume=True)
    assert all(map(torch.equal, whole, resumed))
    assert lose_states(tmp_path) >= 1
    assert not all(map(torch.equal, whole, example(tmp_path, method, resume=True)))


def lose_states(folder: Path) -> int:
    """Sets the states of all optimizers in checkpoints to 0; the number of these."""

    def emptied(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: 0 * v if isinstance(v, Tensor) and v.dim() else emptied(v) for key, v in x.items()}
        return x

    count = 0
    for path in (*folder.rglob("optimizer.*"), *folder.rglob("*.ckpt")):
        saved = torch.load(path, weights_only=False)
        if path.suffix == ".ckpt":
            saved["optimizer_states"] = [emptied(state) for state in saved["optimizer_states"]]
        else:
            saved = emptied(saved)
        torch.save(saved, path)
        count += 1
    return count


def test_a_run_is_that_of_the_optimizer_of_torch(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = example(tmp_path / "ours", "adamw")
    with monkeypatch.context() as patched:
        patched.setattr(optdsl, "load", lambda method: torch.optim.AdamW)
        theirs = example(tmp_path / "theirs", "adamw")
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
