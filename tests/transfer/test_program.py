"""The helper process: what it leaves when it is given up, and what it says."""

import asyncio
import os
import pickle
import signal
import subprocess
from pathlib import Path
from typing import IO

import pytest

from notebook_runner_server.run_in_subprocess import SubprocessOptions, command, start_in_subprocess
from notebook_runner_server.transfer import program
from notebook_runner_server.transfer.interface import TransferError, TransferTooLargeError
from notebook_runner_server.transfer.policy import UriPolicy

pytestmark = pytest.mark.integration

SECONDS = 60.0
# More than the helper reads at once, and more than a pipe holds.
BEGINNING = b"x" * 2 * 1024 * 1024


def writing(uri: str, notebook: int, folder: Path) -> subprocess.Popen[bytes]:
    """The process that writes a notebook."""
    helper = subprocess.Popen(
        command(program.write), stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[notebook]
    )
    arguments = (uri, notebook, UriPolicy(frozenset({"file"}), folders=(str(folder),)))
    assert helper.stdin is not None
    helper.stdin.write(pickle.dumps((arguments, {})))
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
    with (
        writing(f"file://{target}", source, tmp_path) as helper,
        os.fdopen(sink, "wb", buffering=0) as notebook,
    ):
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


def read(uri: str, folder: Path, limit: int = 100) -> tuple[Exception | None, bytes]:
    """The error of a process that reads a notebook, and what it has read."""
    policy = UriPolicy(frozenset({"file"}), folders=(str(folder),))
    with os.fdopen(os.memfd_create("notebook"), "r+b") as file:
        options = SubprocessOptions(descriptors=[file.fileno()])
        error = None
        try:
            asyncio.run(start_in_subprocess(options, program.read, uri, file.fileno(), policy, limit))
        except TransferError as caught:
            error = caught
        file.seek(0)
        return error, file.read()


def test_what_is_read_arrives_as_it_is(tmp_path: Path) -> None:
    """Up to the limit; one byte more is too large, and nothing of it arrives."""
    content = b"\n{\n\0\xff"
    (tmp_path / "a").write_bytes(content)
    assert read(f"file://{tmp_path}/a", tmp_path, len(content)) == (None, content)
    error, rest = read(f"file://{tmp_path}/a", tmp_path, len(content) - 1)
    assert isinstance(error, TransferTooLargeError)
    assert rest == b""


def test_a_folder_that_is_a_link_itself_is_followed(tmp_path: Path) -> None:
    """The operator named it, so what it leads to is meant."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read(f"file://{tmp_path}/link/a", tmp_path / "link") == (None, b"content")
