"""Which names may be used for what, how names are shown in messages, and what other languages call things."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

from optdsl.core.ops import BUILTINS, CONSTANTS, FACTS
from optdsl.lang.diagnostics import Reporter, Span

MAX_NAME = 60

#: Names with a meaning of their own in a step.
LANGUAGE_NAMES = frozenset({"p", "g", "update", *FACTS, *CONSTANTS, "true", "false"})
#: What every generated class, or a parameter group of it, has under a name already.
TORCH_NAMES = frozenset({
    *("params", "self", "foreach", "maximize", "capturable", "differentiable", "fused", "seed", "step"),
    *("state", "param_names", "initial_lr", "super", "overwrite_grad", "store", "train_mode"),
})  # fmt: skip
#: What is kept beside the states of a parameter, and what the keys of scales of states in codes end in.
BESIDE, SCALES = frozenset({"p_low", "train_value"}), "_absmax"
#: What a generated file uses under a name already.
FILE_NAMES = frozenset({
    *("host", "foreach", "axes", "super", "torch", "math", "Optimizer", "Tensor", "ParamsT", "Generator", "Any"),
    *("Facts", "Hyper", "State", "Joint", "Sequence"),
})  # fmt: skip

#: What papers and other libraries call a value, and what to write here.
OTHER_NAMES = {
    **dict.fromkeys(("grad", "gradient", "grads", "dp"), "the gradient is called `g`"),
    **dict.fromkeys(("param", "params", "theta", "w", "weight", "weights"), "the parameter is called `p`"),
    **dict.fromkeys(("step", "steps", "iteration", "iter"), "the number of the step is called `t`"),
    "True": "write `true`",
    "False": "write `false`",
    "None": "a state without an initial value is written without `= ...`",
    "e": "write `exp(1)`",
    "shape": "the facts of a tensor are `ndim`, `numel`, `rows` and `cols`",
}
#: The same for functions.
OTHER_FUNCTIONS = {
    "maximum": "write `max(x, y)`",
    "minimum": "write `min(x, y)`",
    "clamp": "write `clip(x, low, high)`",
    "power": "write `x ^ y`",
    "std": "write `sqrt(var(x))`",
    "log2": "write `log(x) / log(2)`",
    "log10": "write `log(x) / log(10)`",
    "average": "write `mean(x)`",
    "sgn": "write `sign(x)`",
    "randn": "write `normal()`",
    "rand": "write `uniform()`",
    "transpose": "write `x'`",
    "matmul": "write `x @ y`",
    "isnan": "write `x != x`",
    "eye": "write `identity()`, a matrix for each axis",
    **dict.fromkeys(("inv", "inverse", "inverse_root", "eigh"), "write `matrix_power(S, exponent, least)`"),
    **dict.fromkeys(("grad", "loss", "hvp", "sampled_grad"), "a step sees no gradient but `g` yet"),
}  # fmt: skip


def shown(text: str) -> str:
    """`text` for a message: printable, and cut when it is very long."""
    clean = "".join(ch if ch.isprintable() else "?" for ch in text[:MAX_NAME])
    return clean if len(text) <= MAX_NAME else clean[:40] + "..."


def closest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for the known name most like `name`, whatever its case, or an empty string."""
    lowered = {other.lower(): other for other in sorted(known)}
    import difflib  # only a mistake needs it

    found = difflib.get_close_matches(name.lower(), lowered, n=1) if len(name) <= MAX_NAME else []
    return f"did you mean `{lowered[found[0]]}`?" if found else ""


def check_name(name: str, span: Span, report: Reporter, what: str) -> bool:
    """Reports (E0202) and returns False when `name` cannot be the name of a `what`.

    `what` is "hyperparameter", "part", "state", "input", "key", "variable", "function", "parameter", "spec" or
    "prefix".
    """
    meaning = LANGUAGE_NAMES
    if what in ("parameter", "variable"):  # a function sees no `p`; an assignment has messages of its own
        meaning = frozenset({*CONSTANTS, "true", "false"})
    reason = ""
    if name in meaning:
        reason = "it already has a meaning in every step"
    elif name.startswith("_"):
        reason = "names do not start with an underscore"
    elif len(name) > MAX_NAME:
        reason = f"it is longer than {MAX_NAME} characters"
    elif keyword.iskeyword(name):
        reason = "it is a reserved word of Python, in which the step is generated"
    elif what == "hyperparameter" and name in TORCH_NAMES:
        reason = "every generated optimizer already has something of that name"
    elif what == "key" and name in TORCH_NAMES:
        reason = "torch keeps something else under it"
    elif what in ("key", "input") and (name in BESIDE or f"_{name}".endswith(SCALES)):
        reason = "what belongs to a parameter or to another state is kept under such names"
    elif what == "spec" and name in FILE_NAMES:
        reason = "every generated file has something of that name"
    elif what == "function" and name in BUILTINS:
        reason = "it is a built-in function"
    if reason:
        kinds = {"key": "key: `as NAME`", "prefix": "prefix: `use ... as NAME`"}
        help = f"choose another {kinds.get(what, 'name')}"
        article = "an" if what == "input" else "a"
        report("E0202", span, f"`{shown(name)}` cannot name {article} {what}: {reason}", help)
    return not reason


def snake_case(name: str) -> str:
    """`AdamW` -> `adamw`, `ClipByGlobalNorm` -> `clip_by_global_norm`, `RMSProp` -> `rms_prop`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z].)|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
