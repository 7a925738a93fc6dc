"""A plugin of pytest that writes what became of every check of the contract for every spec.

    pytest -p tests.contract.table --contract-table FILE -m contract tests/contract

A check has passed for a spec, or the class refuses by name what it asks for, or it has failed.
"""

from __future__ import annotations

import os
import platform
import re
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

#: How a check of a spec is shown; where it is tried several ways, the last of these that occurs in one.
MARKS = {"passed": ".", "skipped": "s", "refused": "r", "failed": "F"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file to write."""
    parser.addoption("--contract-table", metavar="FILE", help="write the table of the contract to FILE")


class Table:
    """Collects outcomes by check and spec."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.reasons: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.count = self.seconds = 0.0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes the outcome of a test."""
        known: dict[str, Any] = dict(report.user_properties)
        self.seconds += known.get("processor", 0.0)
        if report.when != "call" and report.outcome == "passed":
            return
        if known.get("spec") is None:
            return
        self.count += 1
        file, check = report.nodeid.split("[")[0].split("::")[:2]
        title = f"{Path(file).stem.removeprefix('test_')}: {check.removeprefix('test_').replace('_', ' ')}"
        outcome = "refused" if "refused" in known and report.outcome == "passed" else report.outcome
        self.outcomes[title][known["spec"]].add(outcome)
        if outcome == "refused":
            self.reasons[title][_general(str(known["refused"]))].add(known["spec"])

    def text(self) -> str:
        """The table."""
        checks = sorted(self.outcomes)
        specs = sorted({spec for row in self.outcomes.values() for spec in row})
        worst = {
            (check, spec): max(self.outcomes[check][spec], key=list(MARKS).index)
            for check in checks
            for spec in self.outcomes[check]
        }
        lines = [
            f"# The contract: {len(checks)} checks of {len(specs)} specs",
            "",
            f"{int(self.count)} tests, {self.seconds / 60:.0f} minutes of processor time; torch {torch.__version__}, "
            f"Python {platform.python_version()}, {platform.machine()}, no GPU: Triton in its interpreter.",
            "`make contract` makes this table anew. Of a check that is tried several ways the worst counts.",
            "",
            "| number | check | passed | refused | skipped | failed |",
            "|---|---|---|---|---|---|",
        ]
        for number, check in enumerate(checks):
            found = [worst[check, spec] for spec in self.outcomes[check]]
            counts = " | ".join(str(found.count(o)) for o in ("passed", "refused", "skipped", "failed"))
            lines.append(f"| {number} | {check} | {counts} |")
        lines += [
            "",
            "## Checks by spec",
            "",
            "`.` passed, `r` refused, `s` skipped, `F` failed, ` ` not asked.",
            "",
        ]
        width = max(map(len, specs), default=0)
        lines += ["```", " " * width + "  " + "".join(str(n // 10) for n in range(len(checks)))]
        lines.append(" " * width + "  " + "".join(str(n % 10) for n in range(len(checks))))
        for spec in specs:
            cells = (MARKS.get(worst.get((check, spec), ""), " ") for check in checks)
            lines.append(f"{spec:{width}}  " + "".join(cells).rstrip())
        lines += ["```", "", "## What is refused", ""]
        for check in checks:
            if self.reasons[check]:
                lines.append(f"- {check}")
                for reason, names in sorted(self.reasons[check].items()):
                    lines.append(f"  - {reason}: {', '.join(sorted(names))}")
        return "\n".join(lines) + "\n"


def _general(reason: str) -> str:
    """A reason without the name of the class in front and without what is said of one parameter."""
    name, _, rest = reason.partition(" ")
    rest = re.sub(r" for parameter \d+, of shape \([^)]*\),", "", rest)
    return f"{'NAME:' if name.endswith(':') else 'NAME'} {rest}"


_counted = 0.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes how long processors have worked since the last report: for this process and those that it waited for."""
    global _counted
    report = yield
    before, _counted = _counted, sum(os.times()[:4])
    report.user_properties = [*report.user_properties, ("processor", _counted - before)]
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Begins the table where one is asked for; the processes of pytest-xdist report to the one that has it."""
    if config.getoption("--contract-table") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(), "contract-table")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the table."""
    table = session.config.pluginmanager.get_plugin("contract-table")
    if table is not None:
        Path(session.config.getoption("--contract-table")).write_text(table.text(), "utf-8")
