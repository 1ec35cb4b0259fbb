"""Folders that a notebook nests, closes or exchanges while the server reads, measures or removes them."""

import zipfile
from io import BytesIO

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, artefact, inline, perform, reach, started
from tests.support.errors import refused
from tests.support.killable import forgotten
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home

DEPTH = 1900
# How often the zip is asked for while folders are exchanged.
SWAPS = 40
NESTED = """
import os
here = os.open(os.environ["NOTEBOOK_RUNNER_RUN_DIR"], os.O_RDONLY)
for folder in (here, os.open(os.environ["TMPDIR"], os.O_RDONLY)):
    for _ in range({depth}):
        os.mkdir("nested", dir_fd=folder)
        folder = os.open("nested", os.O_RDONLY, dir_fd=folder)
    os.close(os.open("deep", os.O_CREAT, dir_fd=folder))
"""
CLOSED = """
import os
for number, mode in enumerate((0, 0o200, 0o400)):
    os.makedirs(f"{number}/in")
    os.chmod(f"{number}/in", mode)
    os.chmod(f"{number}", mode)
"""
# Two names that are exchanged in one step (renameat2, RENAME_EXCHANGE), as fast as they can be.
SWAPPING = """
import ctypes, os, threading
os.mkdir("folder")
for name in ("notebook-runner.db", "request-key", "lock"):
    open(f"folder/{{name}}", "w").write("own")
os.symlink({state!r}, "link")
libc = ctypes.CDLL(None)
def swap():
    while True:
        libc.renameat2(-100, b"folder", -100, b"link", 2)
threads = [threading.Thread(target=swap) for _ in range(2)]
for thread in threads:
    thread.start()
print("swapping", flush=True)
for thread in threads:
    thread.join()
"""


def test_deep_folders_are_no_fault() -> None:
    """They are refused as files, with a reason, and the next server forgets them as it does others."""
    with unprivileged_home() as home:
        with UnprivilegedServer(home) as server:
            deep = perform(server.stub, inline(NESTED.format(depth=DEPTH))).run
            assert deep.state == pb.RUN_STATE_SUCCEEDED, deep.failure
            request = pb.OutputRequest(run_id=deep.run_id, format="files")
            refusal = refused(lambda: server.stub.Output(request, timeout=SECONDS))
            assert refusal.reason == "EXPORT_FAILED"
            assert "nested too deep" in refusal.message
            perform(server.stub, inline("1"))
        # It looks at the history when it starts.
        with UnprivilegedServer(home, "--max-runs", "1") as server:
            forgotten(server, deep.run_id)


@pytest.mark.parametrize("source", [NESTED.format(depth=DEPTH), CLOSED], ids=["nested", "closed"])
def test_a_server_starts_beside_what_a_notebook_left(source: str) -> None:
    """Also where its history is gone, and another server has left the folders of its kernels."""
    with unprivileged_home() as home:
        with UnprivilegedServer(home) as server:
            perform(server.stub, inline(source))
            server.die()
        server.secrets.unlink()
        with UnprivilegedServer(home) as server:
            assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def test_a_folder_that_becomes_a_link_brings_nothing_into_the_zip(plain: UnprivilegedServer) -> None:
    """Whenever it is exchanged: all files are the run's own."""
    source = SWAPPING.format(state=str(plain.state_dir))
    contents = set()
    with started(plain.stub, inline(source)) as run:
        reach(plain.stub, run.run_id, "cell_output")
        for _ in range(SWAPS):
            with zipfile.ZipFile(BytesIO(artefact(plain.stub, run.run_id, format="files"))) as archive:
                contents |= {archive.read(name) for name in archive.namelist()}
    assert contents == {b"own"}
