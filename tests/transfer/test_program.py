"""The helper process: what it leaves when it is given up, and what it says."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

pytestmark = pytest.mark.integration

SECONDS = 60.0
# More than the helper reads at once, and more than a pipe holds.
BEGINNING = b"x" * 2 * 1024 * 1024


def program(request: dict[str, Any], *descriptors: int) -> subprocess.Popen[bytes]:
    """The helper with a request."""
    helper = subprocess.Popen(
        [sys.executable, "-P", "-m", "notebook_runner_server.transfer.program"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=descriptors,
    )
    defaults = {"limit": 100, "any_address": True, "folders": []}
    assert helper.stdin is not None
    helper.stdin.write(json.dumps({**defaults, **request}).encode() + b"\n")
    helper.stdin.flush()
    return helper


def stream(helper: subprocess.Popen[bytes], name: str) -> IO[bytes]:
    """One of its pipes."""
    found: IO[bytes] = getattr(helper, name)
    return found


@pytest.mark.parametrize("how", ["given up", "killed"])
def test_a_file_is_never_torn(tmp_path: Path, how: str) -> None:
    """The old file is there until the new one is whole; what was begun is removed, but after SIGKILL."""
    target = tmp_path / "result.ipynb"
    target.write_bytes(b"old")
    source, sink = os.pipe()
    request = {"uri": f"file://{target}", "folders": [str(tmp_path)], "notebook": source, "action": "write"}
    with program(request, source) as helper, os.fdopen(sink, "wb", buffering=0) as notebook:
        os.close(source)
        notebook.write(BEGINNING)
        assert len(os.listdir(tmp_path)) == 2
        if how == "given up":
            stream(helper, "stdin").close()
        else:
            helper.send_signal(signal.SIGKILL)
        assert stream(helper, "stdout").read() == b""
        helper.wait(SECONDS)
    assert target.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == (1 if how == "given up" else 2)


def read(request: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """The helper's answer to a request to read, and the notebook."""
    notebook = os.memfd_create("notebook")
    with program({**request, "action": "read", "notebook": notebook}, notebook) as helper:
        answer = json.loads(stream(helper, "stdout").read())
    with os.fdopen(notebook, "rb") as file:
        file.seek(0)
        return answer, file.read()


def test_what_is_read_arrives_as_it_is(tmp_path: Path) -> None:
    """Up to the limit; one byte more is too large, and nothing of it arrives."""
    content = b"\n{\n\0\xff"
    (tmp_path / "a").write_bytes(content)
    request = {"uri": f"file://{tmp_path}/a", "folders": [str(tmp_path)]}
    assert read({**request, "limit": len(content)}) == ({}, content)
    answer, rest = read({**request, "limit": len(content) - 1})
    assert (answer["error"], rest) == ("too large", b"")


def test_a_folder_that_is_a_link_itself_is_followed(tmp_path: Path) -> None:
    """The operator named it, so what it leads to is meant."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    request = {"uri": f"file://{tmp_path}/link/a", "folders": [f"{tmp_path}/link"]}
    assert read(request) == ({}, b"content")
