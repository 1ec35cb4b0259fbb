"""Callers that do not read what they are answered: memory stays, and others are served."""

import time
from contextlib import ExitStack

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, inline
from tests.support.floods import REST_MB, Ordinary, memory
from tests.support.frames import Raw
from tests.support.killable import children, figure
from tests.support.polling import pause
from tests.support.processes import stopped
from tests.support.secure import Guarded, Metadata, bearer, listed, new_token
from tests.support.server import SERVICE, Server

pytestmark = pytest.mark.load

# An answer that nobody reads takes 12 MB.
UNREAD_MB = 600
OUTPUT = SERVICE + "Output"
PAGE_BYTES = 3 * 1024 * 1024


def wordy(guarded: Guarded, size: int = 4_000_000) -> str:
    """A run that has more than a page of output, by its id."""
    stub, metadata = guarded.server.stub, bearer(guarded.run)
    request = inline(f"print('x' * {size})")
    run_id = stub.Start(request, metadata=metadata, timeout=SECONDS).run.run_id
    events = list(stub.Progress(pb.ProgressRequest(run_id=run_id), metadata=metadata, timeout=SECONDS))
    assert events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED
    return str(run_id)


def others_are_answered(guarded: Guarded, request: pb.OutputRequest) -> None:
    """Reads a page as another caller, and looks around as both."""
    page = guarded.server.stub.Output(request, metadata=bearer(guarded.run), timeout=SECONDS)
    assert page.total_bytes > PAGE_BYTES
    for token in (guarded.run, guarded.read):
        assert listed(guarded.server.channel, token)


def test_answers_that_nobody_reads(guarded: Guarded) -> None:
    """A caller who may read asks for hundreds of pages and takes none: memory stays, others are served."""
    idle = new_token(guarded.file, "idle", "read-all")
    server, ordinary = guarded.server, Ordinary(guarded.server.target, guarded.run)
    request = pb.OutputRequest(run_id=wordy(guarded), max_bytes=PAGE_BYTES)
    token = (b"authorization", f"Bearer {idle}".encode())
    with ExitStack() as opened:
        for _ in range(12):
            raw = opened.enter_context(Raw(server.target)).greet()
            for stream in range(1, 50, 2):
                assert raw.call(stream, OUTPUT, request.SerializeToString(), token)
        ordinary.until(lambda: True, least=20)
        waiting = server.stub.Output.future(request, metadata=bearer(idle), timeout=SECONDS)
        others_are_answered(guarded, request)
        # Not because the server has closed connections whose clients take nothing.
        assert not waiting.done()
        after = memory(server.process.pid)
    ordinary.was_served("answers that nobody reads")
    figure(f"300 pages of 3 MiB that nobody reads: memory {after:.0f} MB")
    assert after < UNREAD_MB
    # All places are given back.
    for _ in range(40):
        page = server.stub.Output(request, metadata=bearer(idle), timeout=SECONDS)
        assert len(page.content) == PAGE_BYTES


DISPLAYS = """
for number in range(3):
    display({f"text/x{one}": "x" * 240_000 for one in range(8)}, raw=True)
"""


def streamed(server: Server, request: pb.ProgressRequest, metadata: Metadata) -> int:
    """The bytes of a stream's messages, to its end."""
    events = server.stub.Progress(request, metadata=metadata, timeout=SECONDS)
    return sum(map(pb.ProgressResponse.ByteSize, events))


def test_display_data_that_nobody_reads(guarded: Guarded) -> None:
    """Streams with the largest messages take a bounded amount of memory, and other callers get theirs."""
    idle = new_token(guarded.file, "idle-display", "read-all")
    server, ordinary = guarded.server, Ordinary(guarded.server.target, guarded.run)
    run, read = bearer(guarded.run), bearer(idle)
    run_id = server.stub.Start(inline(DISPLAYS), metadata=run, timeout=SECONDS).run.run_id
    request = pb.ProgressRequest(run_id=run_id, display_data_max_bytes=2**20)
    assert streamed(server, request, read) > 5_000_000
    token = (b"authorization", f"Bearer {idle}".encode())
    before = memory(server.process.pid)
    with ExitStack() as opened:
        # The server closes no connection that takes nothing, but is alive.
        for _ in range(40):
            stream = server.stub.Progress(request, metadata=read, timeout=2 * SECONDS)
            opened.callback(stream.cancel)
        for _ in range(30):
            raw = opened.enter_context(Raw(server.target, receive_bytes=2048)).greet()
            for number in range(1, 20, 2):
                assert raw.call(number, SERVICE + "Progress", request.SerializeToString(), token)
        ordinary.until(lambda: True)
        assert streamed(server, request, run) > 5_000_000
        after = memory(server.process.pid)
    ordinary.was_served("display data that nobody reads")
    figure(f"300 streams of display data that nobody reads: memory grew by {after - before:.0f} MB")
    assert after - before < REST_MB
    # All places are given back.
    assert streamed(server, request, read) > 5_000_000


def test_a_stream_that_nobody_reads(guarded: Guarded) -> None:
    """A reader of Progress that takes nothing costs no memory and does not hold the run up."""
    server, ordinary = guarded.server, Ordinary(guarded.server.target, guarded.run)
    request = pb.ProgressRequest(run_id=wordy(guarded)).SerializeToString()
    token = (b"authorization", f"Bearer {guarded.read}".encode())
    before = memory(server.process.pid)
    with ExitStack() as opened:
        for _ in range(10):
            raw = opened.enter_context(Raw(server.target, receive_bytes=2048)).greet()
            for stream in range(1, 20, 2):
                assert raw.call(stream, SERVICE + "Progress", request, token)
        ordinary.until(lambda: True)
        after = memory(server.process.pid)
    ordinary.was_served("streams that nobody reads")
    assert after - before < REST_MB


def converter(server: Server) -> int:
    """The process that converts a notebook, waited for."""
    while True:
        for pid, line in children(server.process.pid).items():
            if "notebook_runner_server.export" in line:
                return pid
        pause()


def test_exports_that_take_long(guarded: Guarded) -> None:
    """A caller has something large exported, forty times: nobody else waits for it."""
    exporting = new_token(guarded.file, "exporting", "read-all")
    server, ordinary = guarded.server, Ordinary(guarded.server.target, guarded.run)
    request = pb.OutputRequest(run_id=wordy(guarded, 20_000_000), format="html", max_bytes=1)
    exports = [
        server.stub.Output.future(request, metadata=bearer(exporting), timeout=10 * SECONDS)
        for _ in range(40)
    ]
    # None of them is done before the others have been answered, however fast the machine is.
    with stopped(converter(server)):
        ordinary.until(lambda: True)
        others_are_answered(guarded, pb.OutputRequest(run_id=request.run_id))
        assert not any(export.done() for export in exports)
    begin = time.monotonic()
    assert all(export.result().total_bytes for export in exports)
    figure(f"exports: {time.monotonic() - begin:.1f} s more")
    ordinary.was_served("exports")
