"""Warnings: what a spec declares or computes and never uses."""

from __future__ import annotations

from optdsl.check.compose import assignments
from optdsl.check.names import shown
from optdsl.check.scope import Builder, Instance
from optdsl.ir.program import Program
from optdsl.lang.diagnostics import Reporter


def warn(program: Program, instance: Instance, builder: Builder, report: Reporter) -> None:
    """Reports what the outermost spec of a program never uses."""
    spec = instance.spec
    remove = "use it in the step, or remove it"
    for hyper in spec.hypers:
        for name, span in [(n, s) for n, _, s in hyper.parts] or [(hyper.name, hyper.name_span)]:
            if name not in instance.used:
                report("W0701", span, f"the hyperparameter `{shown(name)}` is never used", remove)
    for state in spec.states:
        if state.name not in instance.used:
            report("W0702", state.name_span, f"the state `{shown(state.name)}` is never used", remove)
    for given in spec.inputs:
        if given.name not in instance.used:
            report("W0702", given.name_span, f"the input `{shown(given.name)}` is never used", remove)
    read = builder.all_reads()
    for node in assignments(spec):
        made = instance.made.get(id(node), [])
        if made and node.name not in instance.state_types and read.isdisjoint(made):
            report(
                "W0703", node.name_span, f"`{shown(node.name)}` is never used", "use it, or remove this line"
            )
    if spec.kind == "optimizer" and "p" not in program.results:
        report("W0704", spec.name_span, "no line of this step assigns `p`", "end with `p = p - ...`")
