"""What a spec does and what it costs: its equations, its states, and the plan of a step for one setting.

`docs/explain.md` says what every number means, and describes the JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from optdsl.analysis import equations
from optdsl.analysis.account import BYTES, Account, SweepAccount, computed_in, finished
from optdsl.analysis.messages import Message, messages
from optdsl.analysis.notation import negation
from optdsl.analysis.phases import FIRST, Phase, Phases, Planner
from optdsl.analysis.plain import Unicode
from optdsl.analysis.setting import Setting
from optdsl.analysis.symbols import unicode_symbols
from optdsl.core.ops import FACTS
from optdsl.core.record import record
from optdsl.core.storage import LEAST, is_code
from optdsl.core.types import Dim, Level
from optdsl.ir.expr import Expr, HostValue, TypeFault, Var, call, transform, variables
from optdsl.ir.plan import KINDS, Plan, Value
from optdsl.ir.program import Program, State, number
from optdsl.passes.library import Unsupported
from optdsl.passes.specialise import TooManyBranches

#: Of the form of the JSON; a change that could break a reader raises it.
SCHEMA = 1
#: Times are for so many parameters.
PARAMETERS = 10**9
#: A longer expression is not shown.
_WIDE = 60
#: Of more ranges of steps than this only the first are told.
RANGES = 4


@record
class Bandwidth:
    """Bytes a second, and where the number comes from: "given" or what was measured."""

    bytes_per_s: float
    source: str


@record
class StateAccount:
    """A state that is in use: `entries` numbers of `width` bytes for a tensor of the setting's shape."""

    name: str
    key: str
    level: str
    dtype: str
    width: float
    entries: int
    per_parameter: float


@record
class PlanFor:
    """A phase in words: `condition` must hold, which it does in the steps that `when` tells."""

    phase: Phase
    condition: str
    when: str
    #: For each sweep, the reductions that end behind it: (kind, over, text).
    reductions: tuple[tuple[tuple[str, str, str], ...], ...]

    @property
    def account(self) -> Account:
        """Its numbers."""
        return self.phase.account


@record
class Explanation:
    """All of it. `plans` is empty if there is no plan, for the reason `no_plan`; `usual` is the plan that most of
    the first steps follow. `conditions` are what the setting settles, in words.
    """

    program: Program
    setting: Setting
    hypers: Mapping[str, HostValue]
    states: tuple[StateAccount, ...]
    conditions: tuple[str, ...]
    plans: tuple[PlanFor, ...]
    no_plan: str | None
    #: What the processes of a sharded model tell each other in a step.
    messages: tuple[Message, ...] = ()
    bandwidth: Bandwidth | None = None

    @property
    def usual(self) -> PlanFor:
        """The plan that most of the first steps follow."""
        return max(self.plans, key=lambda plan: plan.phase.of_first)

    @property
    def state_bytes(self) -> float:
        """Bytes of all states per parameter."""
        return sum(state.per_parameter for state in self.states)

    def seconds(self, moved: float) -> float | None:
        """The time in which so many bytes for each of PARAMETERS parameters are moved."""
        return None if self.bandwidth is None else moved * PARAMETERS / self.bandwidth.bytes_per_s


def explain(
    program: Program, simplified: Program, setting: Setting, bandwidth: Bandwidth | None = None
) -> Explanation:
    """Explains a checked program, of which `simplified` is what the pipeline makes.

    Raises ValueError for options that the program does not take.
    """
    hypers = setting.hypers(simplified)
    small = setting.facts["numel"] < LEAST
    simplified = replace(
        simplified,
        states=tuple(
            # codes are for large tensors, and for states that are kept for one step
            replace(s, stored="f32")
            if s.stored and is_code(s.stored) and (small or s.delay is not None)
            else s
            for s in simplified.states
        ),
    )
    if any(state.stored not in (None, computed_in(setting.dtype)) for state in simplified.kept):
        setting = replace(setting, narrow=True)
    words = _Words(simplified)
    sent = messages(simplified, setting, hypers, words.text, words.decision)
    try:
        found = Planner(simplified).phases(setting)
    except TooManyBranches:
        return _without(
            program, setting, hypers, "its options and branches multiply to too many kernels", sent
        )
    except Unsupported as reason:
        return _without(program, setting, hypers, str(reason), sent)
    used = set().union(*({array.name for array in phase.plan.arrays} for phase in found.phases))
    used |= _host_states(found, simplified)
    used |= {name for phase in found.phases if phase.plan.library for name in phase.plan.library.kept}
    states = tuple(_state(s, setting, hypers) for s in simplified.kept if s.name in used)
    plans = tuple(_plan(phase, words) for phase in found.phases)
    conditions = tuple(words.decision(*each) for each in found.conditions)
    return Explanation(program, setting, hypers, states, conditions, plans, None, sent, bandwidth)


def _without(
    program: Program,
    setting: Setting,
    hypers: Mapping[str, HostValue],
    reason: str,
    sent: tuple[Message, ...],
) -> Explanation:
    states = tuple(_state(state, setting, hypers) for state in program.kept)
    return Explanation(program, setting, hypers, states, (), (), reason, sent)


def _host_states(found: Phases, program: Program) -> set[str]:
    """Host-level states that some phase changes."""
    return {name for phase in found.phases for name, _ in phase.plan.host_states}


def _delay(state: State, hypers: Mapping[str, HostValue]) -> float:
    """For how many steps a state is kept."""
    delay = hypers[state.delay] if isinstance(state.delay, str) else state.delay
    return 1.0 if not isinstance(delay, int | float) else float(delay)


def _state(state: State, setting: Setting, hypers: Mapping[str, HostValue]) -> StateAccount:
    facts = {Dim.ONE: 1.0, Dim.R: setting.facts["rows"], Dim.C: setting.facts["cols"]}
    facts[Dim.A] = sum(d * d for d in setting.shape)
    rows, cols = state.type.shape
    entries = int(facts[rows] * facts[cols] * _delay(state, hypers))
    if state.type.is_element:
        dtype = state.stored or setting.dtype
    else:
        dtype = "f64" if state.type.level <= Level.HOST else computed_in(setting.dtype)
    # one of a group is shared by its tensors, and nothing beside their parameters
    per = 0.0 if state.type.level is Level.GROUP else BYTES[dtype] * entries / setting.facts["numel"]
    return StateAccount(state.name, state.key, state.type.level_name, dtype, BYTES[dtype], entries, per)


# ---- words ------------------------------------------------------------------------------------------------


class _Words:
    """Expressions of a plan, or conditions, in characters of a terminal, with the names of the spec."""

    def __init__(self, program: Program) -> None:
        self.assigned = {assign.name for assign in program.body}
        self.inputs = ("p", "g", *FACTS, *(h.name for h in program.hypers), *(s.name for s in program.states))

    def text(self, expr: Expr) -> str:
        """An expression."""
        names = {name: name.partition(".")[0] for name in variables(expr)}
        return Unicode(unicode_symbols((*self.inputs, *names.values())), names, False).text(expr)

    def decision(self, condition: Expr, wanted: bool) -> str:
        """A condition, or its opposite."""
        return self.text(condition if wanted else negation(condition))

    def reduction(self, value: Value, plan: Plan) -> tuple[str, str, str]:
        """Its kind, over what it goes, and what it is in mathematics."""
        assert value.reduction is not None
        kind, over = value.reduction.kind, value.reduction.over
        slots = {f"{plan.slot_name}.{k}": slot for k, slot in enumerate(plan.slots)}
        # what only the plan has a name for is written out
        made = {v.name: v for v in plan.values() if v.name not in self.assigned and v.reduction is None}

        def visit(node: Expr) -> Expr:
            if isinstance(node, Var) and node.name in made:
                return transform(made[node.name].expr, visit)
            return slots.get(node.name, node) if isinstance(node, Var) else node

        try:
            text = self.text(call(f"reduce_{kind}", transform(value.expr, visit), over=over))
        except TypeFault:  # where a column is the tensor
            text = ""
        return kind, over, text if 0 < len(text) <= _WIDE else f"{kind} over {over}"


def _plan(phase: Phase, words: _Words) -> PlanFor:
    plan = phase.plan
    condition = " and ".join(words.decision(*each) for each in phase.conditions)
    values = {value.name: value for value in plan.values()}
    reductions = tuple(
        tuple(words.reduction(values[name], plan) for name in finished(plan, k))
        for k in range(len(plan.sweeps))
    )
    return PlanFor(phase, condition, when(phase), reductions)


def when(phase: Phase) -> str:
    """The steps of a phase in words."""
    if phase.ranges == ((1, None),):
        return "every step"
    texts = [_range(begin, end) for begin, end in phase.ranges[:RANGES]]
    word = "step" if len(texts) == 1 and " to " not in texts[0] else "steps"
    if len(phase.ranges) > RANGES:
        return f"{word} {', '.join(texts)}, ... ({phase.of_first} of the first {FIRST})"
    return f"{word} {', '.join(texts)}" + ("" if phase.known else f" (as far as step {FIRST})")


def _range(begin: int, end: int | None) -> str:
    if end is None:
        return f"{begin} on"
    return str(begin) if begin == end else f"{begin} to {end}"


# ---- JSON -------------------------------------------------------------------------------------------------


def as_json(found: Explanation, source: str) -> dict[str, Any]:
    """All of it as JSON takes it; see docs/explain.md. `source` is where the spec comes from."""
    program, setting = found.program, found.setting
    return {
        "schema": SCHEMA,
        "name": program.name,
        "summary": program.doc.split("\n")[0],
        "cite": program.cite,
        "source": source,
        "equations": {
            "unicode": equations.unicode(program).splitlines(),
            "latex": equations.latex(program),
        },
        "setting": {
            "options": {name: _plain(value) for name, value in found.hypers.items()},
            "changed": sorted(setting.options),
            "shape": list(setting.shape),
            "dtype": setting.dtype,
            "computed_in": computed_in(setting.dtype),
            "overwrite_grad": setting.overwrite_grad,
            "mode": setting.mode,
            "conditions": list(found.conditions),
        },
        "states": [
            {
                "name": state.name,
                "key": state.key,
                "level": state.level,
                "dtype": state.dtype,
                "bytes_per_entry": state.width,
                "entries": state.entries,
                "bytes_per_parameter": state.per_parameter,
            }
            for state in found.states
        ],
        "state_bytes_per_parameter": found.state_bytes,
        "bandwidth": None
        if found.bandwidth is None
        else {"bytes_per_s": found.bandwidth.bytes_per_s, "source": found.bandwidth.source},
        "messages": [
            {
                "kind": each.kind,
                "condition": each.condition,
                "of": list(each.of),
                "bytes_per_tensor": each.bytes,
            }
            for each in found.messages
        ],
        "no_plan": found.no_plan,
        "plans": [_plan_json(plan, found) for plan in found.plans],
    }


def _plan_json(plan: PlanFor, found: Explanation) -> dict[str, Any]:
    numbers, phase = plan.account, plan.phase
    return {
        "usual": plan is found.usual,
        "condition": plan.condition,
        "when": plan.when,
        "steps": [list(each) for each in phase.ranges[:RANGES]],
        "more_steps": len(phase.ranges) > RANGES,
        "steps_known_beyond_1000": phase.known,
        "of_first_1000_steps": phase.of_first,
        "sweeps": [
            _sweep_json(sweep, reductions, numbers.widths)
            for sweep, reductions in zip(numbers.sweeps, plan.reductions, strict=True)
        ],
        "launches": numbers.launches,
        "bytes": {
            "read": numbers.read,
            "written": numbers.written,
            "total": numbers.moved,
            "least_read": numbers.least_read,
            "least_written": numbers.least_written,
            "least": numbers.least,
            "cached_read": numbers.cached_read,
            "cached_written": numbers.cached_written,
            "cached": numbers.cached,
            "touched": numbers.touched,
        },
        "operations": {**numbers.operations, "total": sum(numbers.operations.values())},
        "operations_per_byte": numbers.intensity,
        "library": numbers.library,
        "scalar": numbers.scalar,
        "seconds_per_1e9_parameters": None
        if found.bandwidth is None
        else {
            name: found.seconds(moved)
            for name, moved in (
                ("total", numbers.moved),
                ("cached", numbers.cached),
                ("least", numbers.least),
            )
        },
    }


def _sweep_json(
    sweep: SweepAccount, reductions: tuple[tuple[str, str, str], ...], widths: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "reads": [{"array": name, "bytes": widths[name]} for name in sweep.reads],
        "writes": [{"array": name, "bytes": widths[name]} for name in sweep.writes],
        "bytes_read": sweep.bytes_read,
        "bytes_written": sweep.bytes_written,
        "bytes_loaded": sweep.bytes_loaded,
        "bytes_stored": sweep.bytes_stored,
        "loops": sweep.loops,
        "barrier": sweep.barrier,
        "torch_computes": list(sweep.handed),
        "reductions": [{"kind": kind, "over": over, "text": text} for kind, over, text in reductions],
        "operations": {kind: sweep.operations[kind] for kind in KINDS},
        "library": dict(sweep.library),
        "scalar": dict(sweep.scalar),
    }


def _plain(value: HostValue) -> object:
    """A value as JSON takes it, which has no infinity."""
    if isinstance(value, tuple):
        return tuple(number(x) if not math.isfinite(x) else x for x in value)
    return number(value) if isinstance(value, float) and not math.isfinite(value) else value


def to_json(found: Explanation, source: str) -> str:
    """All of it as text."""
    return json.dumps(as_json(found, source), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


__all__ = [
    "PARAMETERS",
    "SCHEMA",
    "Bandwidth",
    "Explanation",
    "PlanFor",
    "StateAccount",
    "as_json",
    "explain",
    "to_json",
    "when",
]
