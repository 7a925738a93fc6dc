"""The options of an optimizer: what they may be, and in which form the update gets them.

A `Hyper` describes one constructor argument. `check` holds a value against it, in the words of torch.optim
where torch has words for it.
"""

import functools
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optdsl.runtime.storage import AT_RANDOM, CODES, FORMATS, SPLITS


@dataclass(frozen=True, slots=True)
class Hyper:
    """One hyperparameter.

    `kind` is "float", "int", "bool" or "choice"; `interval` the allowed numbers, as in "[0, 1)", empty for
    all but nan; `parts` the names of the numbers of a tuple such as betas, `intervals` those of each where they
    differ; `choices` the strings of a choice. One that is `many` is a list of numbers, as many as the user likes.
    """

    name: str
    kind: str
    interval: str = ""
    parts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    many: bool = False
    intervals: tuple[str, ...] = ()

    def within(self, index: int | None) -> str:
        """The interval of a number of it."""
        return self.interval if index is None or not self.intervals else self.intervals[index]


@functools.lru_cache(maxsize=1024)
def _bounds(interval: str) -> tuple[float, bool, float, bool]:
    """Lower bound, whether it is allowed itself, and the same of the upper bound."""
    if not interval:
        return -math.inf, True, math.inf, True
    low, high = interval[1:-1].split(",")
    return float(low), interval[0] == "[", float(high), interval[-1] == "]"


def _inside(x: float, interval: str) -> bool:
    low, low_closed, high, high_closed = _bounds(interval)
    return (low < x or (low_closed and low == x)) and (x < high or (high_closed and x == high))


_TORCH_WORDS = {"lr": "learning rate", "eps": "epsilon value", "betas": "beta parameter"}
#: Sentences of torch.optim.Adafactor and Muon about options, or parts of them, that they alone have.
_TORCH_SAYS = {
    "beta2_decay": "beta2_decay should be <= 0 but is: {}",
    "d": "Clipping threshold d should be >= 1 but is: {}",
    "eps1": "epsilon1 should be >= 0 but is: {}",
    "eps2": "epsilon2 should be >= 0 but is: {}",
    "adjust_lr_fn": "Adjust learning rate function {} is not supported",
}
#: Those of torch.optim.Rprop about all numbers of a tuple.
_TORCH_SAYS_OF_ALL = {"etas": "Invalid eta values: {}, {}"}
#: Flags of an optimizer, and of these what may be left to it.
_SWITCHES = ("foreach", "maximize", "capturable", "differentiable", "fused", "overwrite_grad")
_LEFT = ("foreach", "fused")


def _is_switch(value: Any) -> bool:
    """Whether something is on or off: true or false, or 0 or 1, which scripts have and torch takes."""
    return type(value).__name__ in ("bool", "bool_") or (
        type(value) is int and value in (0, 1)
    )  # bool_: numpy's


def _complaint(hyper: Hyper, index: int | None, value: float, whole: Any) -> str:
    """What is wrong with a number outside its interval; `whole` is the tuple or list that it is in."""
    interval = hyper.within(index)
    if hyper.parts and (said := _TORCH_SAYS_OF_ALL.get(hyper.name)) is not None:
        return f"{said.format(*whole)} ({hyper.name}[{index}] must be in {interval})"
    said = _TORCH_SAYS.get(hyper.name if index is None or hyper.many else hyper.parts[index])
    if said is not None:
        words = said.format(value)
        return f"{words} (must be in {interval})"
    if index is not None:
        words = _TORCH_WORDS.get(hyper.name, f"{hyper.name} parameter") + f" at index {index}"
    else:
        words = _TORCH_WORDS.get(hyper.name, f"{hyper.name} value")
    allowed = f"must be in {interval}" if interval else "must be a number"
    return f"Invalid {words}: {value} ({allowed})"


def _check_number(hyper: Hyper, index: int | None, value: Any, changed: bool, whole: Any = None) -> None:
    """One number, which may be a 1-element tensor where a float is expected."""
    name = hyper.name if index is None else f"{hyper.name}[{index}]"
    if isinstance(value, Tensor) and hyper.kind == "float" and not hyper.many:
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
        if value.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # nothing can be read now
        value = value.item()
    kind: Any
    kind, words = (numbers.Real, "a number") if hyper.kind == "float" else (numbers.Integral, "an int")
    if not isinstance(value, kind) or isinstance(value, bool):
        hint = "; for a float, write its default in the spec as one" if isinstance(value, float) else ""
        raise TypeError(f"{name} must be {words}, not {type(value).__name__} ({value!r}){hint}")
    # A scheduler may turn the learning rate down to 0 though the method wants it above.
    if not _inside(float(value), hyper.within(index)) and not (changed and hyper.name == "lr" and value == 0):
        raise ValueError(_complaint(hyper, index, value, whole))


def check(hyper: Hyper, value: Any, changed: bool = False) -> Any:
    """Raises ValueError or TypeError unless `value` is allowed; returns it as the group should keep it.

    That is: a list becomes a tuple, a tensor of one element a 0-dim view, a number of numpy one of Python,
    and None, where the range of a float includes infinity, means that there is no limit.
    `changed` says that the value replaces one which the constructor had accepted.
    """
    if hyper.kind == "bool":
        if not _is_switch(value):
            raise TypeError(f"{hyper.name} must be True or False, not {value!r}")
        return bool(value)
    elif hyper.kind == "choice":
        if not isinstance(value, str) or value not in hyper.choices:
            allowed = ", ".join(map(repr, hyper.choices))
            said = _TORCH_SAYS.get(hyper.name)
            words = said.format(value) if said else f"Invalid {hyper.name} value: {value!r}"
            raise ValueError(f"{words} (must be one of {allowed})")
    elif hyper.many:
        if not isinstance(value, (tuple, list)):
            hint = "; `.tolist()` makes one of it" if hasattr(value, "tolist") else ""
            raise TypeError(f"{hyper.name} must be a list of numbers, not {type(value).__name__}{hint}")
        if not value:
            raise ValueError(f"{hyper.name} must be a list of at least one number, not an empty one")
        for index, part in enumerate(value):
            _check_number(hyper, index, part, changed)
        return tuple(_kept(hyper.kind, part) for part in value)
    elif hyper.parts:
        if not isinstance(value, (tuple, list)) or len(value) != len(hyper.parts):
            raise ValueError(f"{hyper.name} must be {len(hyper.parts)} numbers, not {value!r}")
        for index, part in enumerate(value):
            _check_number(hyper, index, part, changed, value)
        return tuple(_kept(hyper.kind, part) for part in value)
    elif value is None and hyper.kind == "float" and hyper.interval.endswith("inf]"):
        return math.inf
    else:
        _check_number(hyper, None, value, changed)
        return _kept(hyper.kind, value)
    return value


def _kept(kind: str, value: Any) -> Any:
    """A 1-element tensor as a 0-dim view, a number of numpy (say) as one of Python, all else as it is."""
    if isinstance(value, Tensor):  # a view of a tensor that autograd follows could not be copied or pickled
        return value.reshape(()) if value.dim() and not value.requires_grad else value
    if type(value) in (int, float):
        return value
    return int(value) if kind == "int" else float(value)


def check_flags(
    name: str, flags: Mapping[str, Any], not_capturable: str | None, no_kernels: str | None
) -> None:
    """Raises RuntimeError, in torch's words where it has any, for flags that do not go together or here.

    TypeError for what is no flag: `"False"`, say, would be a true one.
    """
    for flag in _SWITCHES:
        value = flags[flag]
        if not _is_switch(value) and not (value is None and flag in _LEFT):
            allowed = "True, False or None" if flag in _LEFT else "True or False"
            raise TypeError(f"{flag} must be {allowed}, not {value!r}")
    if flags["fused"]:
        if flags["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`")
        if flags["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        if no_kernels is not None:
            raise RuntimeError(f"{name} has no fused kernel: {no_kernels}")
    if flags["capturable"] and not_capturable is not None:
        raise RuntimeError(f"{name} does not support `capturable`: {not_capturable}")


def check_store(rule: Any, group: dict[str, Any]) -> None:
    """Raises unless `store` names formats for states that there are; puts it into kept form."""
    store, name = group["store"], type(rule).__name__
    usual = {spec.key: spec.stored for spec in rule._states if spec.level == "element" and not spec.given}
    formats = [] if store is None else [("", store)]
    if isinstance(store, Mapping):
        store = group["store"] = dict(store)
        if (form := store.get("p")) is not None and form not in (*SPLITS, AT_RANDOM):
            listed = ", ".join(map(repr, (*SPLITS, AT_RANDOM)))
            raise ValueError(
                f"Invalid store value for 'p': {form!r} (must be one of {listed}, for parameters of bfloat16)"
            )
        if form is not None and group["differentiable"]:
            raise RuntimeError("`store={'p': ...}` does not support `differentiable`")
        for key in store:
            if key not in usual and key != "p":
                has = f"those are {', '.join(map(repr, usual))}" if usual else "it has none"
                raise ValueError(f"{name} has no state {key!r} with a number per element to store: {has}")
        formats = [(f" for {key!r}", x) for key, x in store.items() if key != "p"]
    for where, given in formats:
        if given not in FORMATS:
            raise ValueError(
                f"Invalid store value{where}: {given!r} (must be one of {', '.join(map(repr, FORMATS))})"
            )
    for key, stored in usual.items() if group["differentiable"] else ():
        form = (store.get(key) if isinstance(store, Mapping) else store) or stored
        if form in (*CODES, AT_RANDOM):
            what = "codes have" if form in CODES else "rounding at random has"
            raise RuntimeError(
                f"the format {form!r} of the state {key!r} does not support `differentiable`: {what} no derivative"
            )


def check_seed(rule: Any, group: dict[str, Any]) -> None:
    """Gives a group that draws or rounds at random a seed, if it has none. Raises ValueError for what is none."""
    store = group["store"]
    formats = [spec.stored for spec in rule._states]
    formats += store.values() if isinstance(store, Mapping) else [store]
    if rule._random or AT_RANDOM in formats:
        group.setdefault("seed", 0)
    seed = group.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise ValueError(f"Invalid seed value: {seed} (must be an int in [0, 2^64))")


def has_tensor(value: Any) -> bool:
    """True for an option that is a tensor, or a tuple with one."""
    return isinstance(value, Tensor) or (isinstance(value, tuple) and any(map(has_tensor, value)))


def with_plain_options(
    group: Mapping[str, Any],
    names: Iterable[str],
    capturable: bool,
    differentiable: bool,
    device: torch.device,
) -> dict[str, Any]:
    """`group` with the options `names`, which hold tensors, in the form in which an update gets them.

    That is a Python float, but a 0-dim float64 tensor if `differentiable`, and one on `device` if
    `capturable`. Nothing here waits for a device under `capturable`.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        if not isinstance(value, Tensor):
            return value
        if capturable:
            if value.device.type == "cpu" and device.type != "cpu" and not differentiable:
                return torch.full((), value.item(), dtype=torch.float64, device=device)
            return value.reshape(()).to(device=device, dtype=torch.float64)
        return value.reshape(()).to(torch.float64) if differentiable else value.item()

    return {**group, **{name: plain(group[name]) for name in names}}
