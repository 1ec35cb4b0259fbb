"""Reports a run as JUnit XML, for CI systems: a suite for the notebook, a case for each executed cell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from notebook_runner._output import open_output
from notebook_runner._printable import clean, one_line
from notebook_runner.events import CellFinished, CellStarted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from notebook_runner._snapshot import Failure, RunSnapshot
    from notebook_runner.events import Event

__all__ = ["write_junit"]

# Characters that XML cannot represent.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class _Case:
    """A case of the report: a cell, or the run itself if no cell was executed."""

    name: str
    index: int | None = None
    seconds: float = 0.0


def write_junit(file: Path, run: RunSnapshot, events: Iterable[Event]) -> None:
    """Write the report of an ended run.

    Args:
        file: The file, which is replaced.
        run: The run.
        events: All events of the run; the output of cells may be omitted.

    Raises:
        OSError: The file cannot be written.
    """
    name = _text(one_line(run.name)) or "notebook"
    cases = list(_cases(events).values())
    failure = None if run.ok else run.failure
    culprit = _culprit(cases, failure)
    is_failure = failure is not None and bool(failure.exception_name)
    suite = ET.Element(
        "testsuite",
        name=name,
        tests=str(len(cases)),
        failures=str(int(not run.ok and is_failure)),
        errors=str(int(not run.ok and not is_failure)),
        skipped="0",
        time=f"{run.duration.total_seconds() if run.duration else 0:.3f}",
        timestamp=run.created.strftime("%Y-%m-%dT%H:%M:%S"),
    )
    properties = ET.SubElement(suite, "properties")
    for key, value in (("run_id", run.id), ("state", run.state.value), ("kernel", run.kernel_name)):
        ET.SubElement(properties, "property", name=key, value=_text(value))
    for case in cases:
        element = ET.SubElement(suite, "testcase", classname=name, name=case.name, time=f"{case.seconds:.3f}")
        if case is culprit:
            kind = failure.exception_name or failure.cause.value if failure else run.state.value
            message = str(failure) if failure else str(run)
            end = "failure" if is_failure else "error"
            shown = ET.SubElement(element, end, type=_text(kind), message=_text(message))
            shown.text = _text((failure.traceback or failure.message) if failure else message)
    suites = ET.Element("testsuites")
    suites.append(suite)
    with open_output(file) as stream:
        stream.write(ET.tostring(suites, encoding="utf-8", xml_declaration=True))


def _cases(events: Iterable[Event]) -> dict[int, _Case]:
    """Return the cases of the executed cells, by the cells' index."""
    cases: dict[int, _Case] = {}
    for event in events:
        match event:
            case CellStarted(cell_index=index, first_line=line):
                cases[index] = _Case(_text(f"cell {index + 1}: {one_line(line)}"), index)
            case CellFinished(cell_index=index, duration=duration) if index in cases:
                cases[index].seconds = duration.total_seconds()
    return cases


def _culprit(cases: list[_Case], failure: Failure | None) -> _Case | None:
    """Return the case that shows why the run did not succeed; adds one for the run if no cell is to blame."""
    if failure and failure.cell_index is not None:
        for case in cases:
            if case.index == failure.cell_index:
                return case
    if failure or not cases:
        cases.append(_Case("run"))
        return cases[-1] if failure else None
    return None


def _text(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", clean(text, colours=False))
