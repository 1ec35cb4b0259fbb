"""The helper process: what it leaves when it is given up, and what it says."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

SECONDS = 30.0
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
    defaults = {"limit": 100, "any_address": True, "folders": [], "notebook": None}
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
    request = {"uri": f"file://{target}", "folders": [str(tmp_path)], "notebook": source}
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


def test_an_answer_is_a_line_and_the_notebook(tmp_path: Path) -> None:
    """What was read follows as it is, and one byte more than the limit is too large."""
    content = b"\n{\n\0\xff"
    (tmp_path / "a").write_bytes(content)
    request = {"uri": f"file://{tmp_path}/a", "folders": [str(tmp_path)]}
    for limit, answer in ((len(content), b"{}\n" + content), (len(content) - 1, b'{"error": "too large"')):
        with program({**request, "limit": limit}) as helper:
            assert stream(helper, "stdout").read().startswith(answer)


def test_a_folder_that_is_a_link_itself_is_followed(tmp_path: Path) -> None:
    """The operator named it, so what it leads to is meant."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with program({"uri": f"file://{tmp_path}/link/a", "folders": [f"{tmp_path}/link"]}) as helper:
        assert stream(helper, "stdout").read() == b"{}\ncontent"
