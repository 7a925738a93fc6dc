"""The methods that torch.optim has: torch's class beside ours, with the settings in which torch tests it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db

from tests.contract.subjects import NAMES, PLAIN, Options, parameters, torch_class


@dataclass(frozen=True)
class Peer:
    """torch's class of a method and what torch's test suite knows of it."""

    info: OptimizerInfo

    def theirs(self, params: Any, **options: Any) -> Any:
        """torch's optimizer, its plainest path."""
        plain = {"foreach": False} if "foreach" in self.info.supported_impls else {}
        return self.info.optim_cls(params, **options, **plain)

    def settings(self) -> Iterator[Options]:
        """The options in which torch tests it on a CPU, and each again with weight decay."""
        seen: list[Options] = []
        for given in self.info.optim_inputs_func(device="cpu", dtype=torch.float32):
            for more in ({}, {"weight_decay": 0.1} if "weight_decay" in self._defaults() else {}):
                options = {**more, **given.kwargs}
                if "capturable" not in options and options not in seen:
                    seen.append(options)
                    yield copy.deepcopy(options)

    @functools.cache  # noqa: B019
    def _defaults(self) -> Options:
        return dict(self.info.optim_cls([torch.zeros(1, 1)]).defaults)

    def parameters(self) -> list[torch.nn.Parameter]:
        """New parameters, of shapes that torch's class takes."""
        params = parameters(PLAIN, (torch.float32,))
        try:
            self.theirs(params)
        except ValueError:  # Muon's takes matrices alone
            params = parameters([(3, 4), (6, 2)], (torch.float32,))
        return params

    def same_keys(self, ours: Any, params: Sequence[Any], theirs: Any, others: Sequence[Any]) -> bool:
        """Whether both keep the same states of the same shapes; SGD of torch counts no steps."""
        for p, q in zip(params, others, strict=True):
            kept = {key: torch.as_tensor(x).shape for key, x in theirs.state[q].items() if x is not None}
            mine = {key: x.shape for key, x in ours.state[p].items() if key in kept or key != "step"}
            if {key: list(filter(lambda n: n != 1, x)) for key, x in mine.items()} != {
                key: list(filter(lambda n: n != 1, x)) for key, x in kept.items()
            } and kept:
                return False
        return True

    def assert_close(self, ours: Sequence[Any], theirs: Sequence[Any], options: Options) -> None:
        """The same but for rounding; torch's Muon computes in bfloat16 in between."""
        rough = hasattr(torch.optim, "Muon") and self.info.optim_cls is torch.optim.Muon
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(
                p.detach(), q.detach(), rtol=2e-2 if rough else 1e-4, atol=2e-3 if rough else 1e-5,
                msg=lambda text: f"{options}: {text}",
            )  # fmt: skip


#: By the name of the spec.
PEERS = {
    name: Peer(info) for name in NAMES for info in optim_db if info.optim_cls is torch_class(name)
}
