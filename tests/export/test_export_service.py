"""Exports run in processes of their own: what they answer, and that each ends with its export."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from uuid import uuid4

import nbformat
import pytest

from notebook_runner_server.export.formats import ConversionError
from notebook_runner_server.export.service import ExportService
from tests.support.notebooks import notebook
from tests.support.processes import marked, outlived

# A process that was sent SIGKILL is gone a moment later.
LINGER_SECONDS = 60.0
# An export that needs it hangs.
SECONDS = 3600.0
pytestmark = pytest.mark.fault

MARK_VARIABLE = "NBR_EXPORT_MARK"
# Python reads this when it starts: an exporter that starts programs of its own and never ends.
HANGING = """
import os, signal, subprocess
if os.environ.get("NBR_EXPORT_MARK"):
    for _ in range(2):
        command = ["sh", "-c", "echo here; exec sleep 100000"]
        subprocess.Popen(command, stdout=subprocess.PIPE).stdout.readline()
    with open(os.environ["NBR_EXPORT_GATE"], "w") as gate:
        gate.write("here")
    signal.pause()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A notebook's file."""
    path = tmp_path / "source.ipynb"
    nbformat.write(notebook("print('hello')"), path)
    return path


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """Makes every exporter hang; answers their mark, and the pipe in which they say that they do."""
    mark, gate = uuid4().hex, tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv(MARK_VARIABLE, mark)
    monkeypatch.setenv("NBR_EXPORT_GATE", str(gate))
    return mark, gate


@pytest.fixture
def time_limits(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Timeout]:
    """The time limits that are set from now on: a process may take long to come to where it hangs."""
    made: list[asyncio.Timeout] = []
    timeout = asyncio.timeout

    def kept(seconds: float | None) -> asyncio.Timeout:
        made.append(timeout(seconds))
        return made[-1]

    monkeypatch.setattr(asyncio, "timeout", kept)
    return made


def reach(time_limits: list[asyncio.Timeout]) -> None:
    """Lets the time limit of the only export be reached."""
    now = asyncio.get_running_loop().time()
    # The test has a shorter one.
    (limit,) = (one for one in time_limits if (one.when() or 0.0) > now + SECONDS / 2)
    limit.reschedule(now)


async def test_an_export_writes_its_target_and_answers_its_type(source: Path, tmp_path: Path) -> None:
    """The file is there when the call returns."""
    service = ExportService(["html"], SECONDS)
    assert await service.export(source, "html", tmp_path / "target") == "text/html"
    assert "hello" in (tmp_path / "target").read_text()
    assert service.formats == {"html"}


async def test_what_nbconvert_cannot_do_is_an_error_that_says_why(source: Path, tmp_path: Path) -> None:
    """A format that does not exist is named."""
    with pytest.raises(ConversionError, match="cobol"):
        await ExportService([], SECONDS).export(source, "cobol", tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_exports_at_the_same_time_take_turns(source: Path, tmp_path: Path) -> None:
    """Three at once all succeed, each with its own file."""
    service = ExportService(["script"], SECONDS)
    targets = [tmp_path / f"target-{number}" for number in range(3)]
    kinds = await asyncio.gather(*(service.export(source, "script", target) for target in targets))
    assert kinds == ["text/plain"] * 3
    assert len(list(tmp_path.glob("target-*"))) == 3


async def until_it_hangs(work: Coroutine[Any, Any, str], gate: Path) -> asyncio.Task[str]:
    """An export that hangs, with the program that it has started."""
    task = asyncio.ensure_future(work)
    assert await asyncio.to_thread(gate.read_text) == "here"
    return task


async def test_an_export_that_takes_too_long_is_ended(
    source: Path, tmp_path: Path, hanging: tuple[str, Path], time_limits: list[asyncio.Timeout]
) -> None:
    """At its time-out the process is gone with all that it started, and the error names the setting."""
    mark, gate = hanging
    task = await until_it_hangs(ExportService([], SECONDS).export(source, "html", tmp_path / "t"), gate)
    assert len(marked(mark)) >= 3
    reach(time_limits)
    with pytest.raises(ConversionError, match="--export-timeout"):
        await task
    assert outlived(marked(mark), LINGER_SECONDS) == []


async def test_an_export_that_nobody_waits_for_is_ended(
    source: Path, tmp_path: Path, hanging: tuple[str, Path]
) -> None:
    """A caller that goes away takes the process with it, and the next export has its turn."""
    mark, gate = hanging
    service = ExportService([], SECONDS)
    task = await until_it_hangs(service.export(source, "html", tmp_path / "t"), gate)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert outlived(marked(mark), LINGER_SECONDS) == []
    task = await until_it_hangs(service.export(source, "html", tmp_path / "t"), gate)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_export_whose_process_is_killed_is_an_error(
    source: Path, tmp_path: Path, hanging: tuple[str, Path]
) -> None:
    """The caller learns that the converter ended, and by what."""
    mark, gate = hanging
    task = await until_it_hangs(ExportService([], SECONDS).export(source, "html", tmp_path / "t"), gate)
    (converter,) = [pid for pid, command in marked(mark).items() if "export.formats" in command]
    os.kill(converter, signal.SIGKILL)
    with pytest.raises(ConversionError, match="-9"):
        await task
    assert outlived(marked(mark), LINGER_SECONDS) == []


async def test_what_leaves_the_converters_group_is_swept_up(
    source: Path, tmp_path: Path, hanging: tuple[str, Path], time_limits: list[asyncio.Timeout]
) -> None:
    """The sweep is called once, when the converter has ended."""
    _, gate = hanging
    swept: list[bool] = []

    service = ExportService([], SECONDS, lambda: swept.append(True))
    task = await until_it_hangs(service.export(source, "html", tmp_path / "t"), gate)
    reach(time_limits)
    with pytest.raises(ConversionError, match="--export-timeout"):
        await task
    assert swept == [True]
