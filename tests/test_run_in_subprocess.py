"""A function that is called in a process of its own: its answer, its errors, and its end."""

import math
import os
import pickle
import signal
from pathlib import Path

import pytest
from typing_extensions import override

from notebook_runner_server.errors import InvalidNotebookError, UnknownParameterError
from notebook_runner_server.execution.notebook import prepare
from notebook_runner_server.run_in_subprocess import SubprocessError, run_in_subprocess
from tests.support.notebooks import code, content

pytestmark = pytest.mark.integration

LARGE = 30_000_000


def test_answer_and_process() -> None:
    """What the function returns, from another process, which is gone then."""
    pid = run_in_subprocess(os.getpid)
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert run_in_subprocess(math.hypot, 3.0, 4.0) == 5.0


def test_the_working_folder_is_no_place_for_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may be started anywhere, also where somebody has a file named as a module."""
    (tmp_path / "pickle.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)
    assert run_in_subprocess(math.hypot, 3.0, 4.0) == 5.0


def test_large_arguments_and_answers() -> None:
    """More than any pipe holds, both ways."""
    data = content(code("1\n#" + "x" * LARGE))
    prepared = run_in_subprocess(prepare, data, {}, "", {})
    assert prepared == prepare(data, {}, "", {})


def test_errors_are_the_functions() -> None:
    """With all that they carry."""
    with pytest.raises(InvalidNotebookError, match="not JSON"):
        run_in_subprocess(prepare, b"{", {}, "", {})
    with pytest.raises(UnknownParameterError) as caught:
        run_in_subprocess(
            prepare, content(code("a = 1", "parameters")), {"b": 1}, "python3", {"python3": "python"}
        )
    assert caught.value.metadata == {"unknown": "b", "known": "a"}


def test_a_process_that_ends_without_an_answer() -> None:
    """It is said how it ended, also when it has not read all that it was given."""
    with pytest.raises(SubprocessError, match=f"code {-signal.SIGKILL}"):
        run_in_subprocess(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(SubprocessError, match="code 3"):
        run_in_subprocess(os._exit, 3)
    with pytest.raises(SubprocessError, match="code 1"):
        # It does not find this module.
        run_in_subprocess(_nothing, b"x" * LARGE)


def _nothing(_: bytes) -> None: ...


class _Hostile:
    """Makes whoever unpickles it execute a command."""

    @override
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def _hostile() -> object:
    return _Hostile()


def test_an_answer_cannot_execute_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hostile content has taken over answers plain data, or nothing."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    with pytest.raises(SubprocessError) as caught:
        run_in_subprocess(_hostile)
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
