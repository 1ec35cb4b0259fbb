"""What the operator says about the sandbox, and what the server says of it."""

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support import without_landlock as without
from tests.support.attacks import DENIED, attacked
from tests.support.calls import artefact, inline, perform
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home

ALL = {"mode": "auto", "processes_hidden": True, "files": True, "signals": True, "exposed": []}
TRY = """
attempt("history", lambda: open(state / "notebook-runner.db", "rb").read(6))
attempt("home", lambda: (Path.home() / "new").write_text("x"))
attempt("signal", lambda: os.kill(server, 0))
attempt("environ", lambda: open(f"/proc/{server}/environ").read(1))
"""


def said(server: UnprivilegedServer) -> dict[str, Any]:
    """The line of the log that tells of the sandbox."""
    line = sandbox(server)
    return {name: line[name] for name in ALL}


def sandbox(server: UnprivilegedServer) -> dict[str, Any]:
    """The same, with its level."""
    (line,) = [entry for entry in server.log if entry["event"].startswith("sandbox_")]
    return line


def test_the_log_tells_what_is_active(plain: UnprivilegedServer) -> None:
    """One line at the start."""
    assert said(plain) == ALL
    assert sandbox(plain)["level"] == "info"


def test_off_is_off(make_plain: Callable[..., UnprivilegedServer]) -> None:
    """All that the other tests see denied is then possible, so they do see it denied."""
    server = make_plain("--sandbox", "off")
    found = attacked(server, TRY)
    assert {name: got.split()[0] for name, got in found.items()} == dict.fromkeys(found, "got")
    assert said(server) == {
        "mode": "off", "processes_hidden": False, "files": False, "signals": False, "exposed": [],
    }  # fmt: skip


def test_a_folder_that_the_operator_opens(make_plain: Callable[..., UnprivilegedServer]) -> None:
    """It may be written as a whole, and the log tells which secrets are in it."""
    with unprivileged_home() as other:
        (other / "results").mkdir(mode=0o777)
        (other / "results").chmod(0o777)
        server = make_plain("--writable-folders", f"{other / 'results'}, {other / 'missing'}")
        found = attacked(
            server, f"attempt('open', lambda: Path({str(other)!r}, 'results/x').write_text('x'))"
        )
    assert found == {"open": "got 1"}
    assert said(server) == ALL


def test_what_is_opened_by_mistake_is_told() -> None:
    """The state folder in the notebook root or in a writable folder is not hidden: the log says so."""
    with unprivileged_home() as home, UnprivilegedServer(home, "--writable-folders", str(home)) as server:
        assert said(server)["exposed"] == [str(server.state_dir)]
        assert sandbox(server)["level"] == "warning"


def test_require_does_not_start_without_all_of_it() -> None:
    """The message names what would not be hidden."""
    with unprivileged_home() as home:
        server = UnprivilegedServer(home, "--sandbox", "require", "--writable-folders", str(home))
        with pytest.raises(AssertionError, match="the server ended"):
            server.__enter__()
        assert "--sandbox require cannot hide" in "".join(server.noise)
        assert str(server.state_dir) in "".join(server.noise)


def test_require_starts_with_all_of_it(make_plain: Callable[..., UnprivilegedServer]) -> None:
    """It then is as auto."""
    assert said(make_plain("--sandbox", "require")) == {**ALL, "mode": "require"}


def without_landlock(home: Path, *options: str) -> UnprivilegedServer:
    """A server on a system that has no Landlock."""
    server = UnprivilegedServer(home, *options)
    server._command[:0] = [sys.executable, str(Path(without.__file__))]
    return server


def failed(server: UnprivilegedServer, source: str) -> str:
    """What is said of a cell that fails: in the failure, and in the report, which has the same note."""
    run = perform(server.stub, inline(source)).run
    assert run.state == pb.RUN_STATE_FAILED
    report = artefact(server.stub, run.run_id, format="error").decode()
    assert ("sandbox" in report) is ("sandbox" in run.failure.message)
    return run.failure.message


def test_an_error_names_the_sandbox(plain: UnprivilegedServer) -> None:
    """Where it is the reason, and not where the user has no right to the file either."""
    secret, home = str(plain.secrets), str(plain.home / "new")
    for source in (f"open({secret!r})", f"open({home!r}, 'w')", "import os; os.kill(os.getppid(), 0)"):
        assert "--sandbox" in failed(plain, source), source
    for source in ("open('/etc/shadow')", "open('/proc/sysrq-trigger', 'w')", "open('/missing')", "1 / 0"):
        assert "sandbox" not in failed(plain, source), source


def test_no_sandbox_is_named_where_there_is_none(make_plain: Callable[..., UnprivilegedServer]) -> None:
    """With the sandbox off, an error of permissions is the file's own."""
    assert "sandbox" not in failed(make_plain("--sandbox", "off"), "open('/etc/shadow')")


@pytest.mark.parametrize("mode", ["warm", "cold"])
def test_auto_without_landlock(mode: str) -> None:
    """Runs go on, the log warns of what is not active, and looking into the server's memory stays denied."""
    options = [] if mode == "warm" else ["--no-warm-kernels"]
    with unprivileged_home() as home, without_landlock(home, *options) as server:
        assert said(server) == {**ALL, "files": False, "signals": False}
        line = sandbox(server)
        assert (line["level"], line["landlock"]) == ("warning", 0)
        found = attacked(server, TRY, mode=mode)
    assert found.pop("environ") in DENIED
    # What the log says is not there is not there.
    assert {name: got.split()[0] for name, got in found.items()} == dict.fromkeys(found, "got")
    assert len(found) == 3


def test_require_without_landlock() -> None:
    """The server does not start, and says which version there is."""
    with unprivileged_home() as home:
        server = without_landlock(home, "--sandbox", "require")
        with pytest.raises(AssertionError, match="the server ended"):
            server.__enter__()
        assert "--sandbox require needs Landlock" in "".join(server.noise)
        assert "this system has version 0" in "".join(server.noise)


def test_the_history_is_whole_after_attacks(attack: Callable[..., Any], plain: UnprivilegedServer) -> None:
    """SQLite finds nothing wrong with it."""
    attack(TRY)
    with closing(sqlite3.connect(f"file:{plain.secrets}?mode=ro", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
