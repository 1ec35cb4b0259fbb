"""The reader's side of Progress and Output, without a connection."""

import hashlib
import io
from pathlib import Path

import grpc
import pytest

from notebook_runner import NotebookRunnerError, RpcFailed, Unavailable
from notebook_runner._output import Pages, open_output
from notebook_runner._retry import FIRST_CONNECT_TIMEOUT, LONGEST_PAUSE, ProgressReader
from notebook_runner.v1 import notebook_runner_pb2 as pb

LOST = Unavailable("gone", grpc.StatusCode.UNAVAILABLE)
BEAT = pb.ProgressResponse(sequence=1, heartbeat=pb.Heartbeat())
END = pb.ProgressResponse(sequence=9, run_changed=pb.Run(state=pb.RUN_STATE_KILLED))


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.now


def started(sequence: int) -> pb.ProgressResponse:
    """An event of this sequence."""
    return pb.ProgressResponse(sequence=sequence, cell_started=pb.CellStarted())


def patience(follower: ProgressReader, clock: Clock, error: RpcFailed = LOST) -> float:
    """How long the follower goes on trying, in seconds."""
    begin = clock.now
    try:
        while True:
            clock.now += follower.pause_after(error)
    except type(error):
        return clock.now - begin


def test_asks_for_what_comes_after_the_last_event() -> None:
    """The next request continues after the last event, and keeps everything else."""
    follower = ProgressReader(pb.ProgressRequest(run_id="r", after_sequence=3, omit_cell_output=True))
    assert follower.accept(started(4))
    assert follower.accept(started(7))
    assert follower.request == pb.ProgressRequest(run_id="r", after_sequence=7, omit_cell_output=True)


def test_passes_on_each_event_once() -> None:
    """Heartbeats and events that were seen before are swallowed."""
    follower = ProgressReader(pb.ProgressRequest())
    assert [follower.accept(event) for event in (started(1), BEAT, started(1), started(2))] == [
        True,
        False,
        False,
        True,
    ]


def test_break_after_the_end_means_nothing() -> None:
    """A connection that breaks when all was told is no error."""
    follower = ProgressReader(pb.ProgressRequest())
    follower.accept(END)
    assert follower.ended
    assert follower.pause_after(RpcFailed("x", grpc.StatusCode.DATA_LOSS)) == 0


def test_gives_up_after_the_reconnect_timeout() -> None:
    """Without success the error is raised when the time is over, and not earlier."""
    clock = Clock()
    follower = ProgressReader(pb.ProgressRequest(), 20.0, reached=True, clock=clock)
    assert patience(follower, clock) == pytest.approx(20.0)


def test_pauses_grow_and_stay_bounded() -> None:
    """The pauses double with some chance in them, up to the longest."""
    clock = Clock()
    follower = ProgressReader(pb.ProgressRequest(), 1e9, reached=True, clock=clock)
    pauses = [follower.pause_after(LOST) for _ in range(5000)]
    assert 0.05 <= pauses[0] <= 0.1
    assert 0.1 <= pauses[1] <= 0.2
    assert all(LONGEST_PAUSE / 2 <= pause <= LONGEST_PAUSE for pause in pauses[10:])


@pytest.mark.parametrize("message", [started(1), BEAT])
def test_every_message_gives_new_patience(message: pb.ProgressResponse) -> None:
    """The time counts from the last message, a heartbeat among them."""
    clock = Clock()
    follower = ProgressReader(pb.ProgressRequest(), 20.0, reached=True, clock=clock)
    clock.now += follower.pause_after(LOST) + 19
    follower.accept(message)
    assert patience(follower, clock) == pytest.approx(20.0)


def test_server_never_reached_is_told_soon() -> None:
    """A wrong address is not tried for a minute."""
    clock = Clock()
    follower = ProgressReader(pb.ProgressRequest(), 60.0, clock=clock)
    assert patience(follower, clock) == pytest.approx(FIRST_CONNECT_TIMEOUT)


def test_no_reconnect_timeout_is_no_reconnect() -> None:
    """A time of zero raises the first error."""
    assert patience(ProgressReader(pb.ProgressRequest(), 0.0, reached=True), Clock()) == 0


@pytest.mark.parametrize("code", ["UNKNOWN", "INTERNAL", "CANCELLED", "UNAVAILABLE"])
def test_a_broken_way_is_tried_again(code: str) -> None:
    """Statuses that proxies and transports make up without a reason are breaks of the connection."""
    assert (
        ProgressReader(pb.ProgressRequest(), reached=True).pause_after(RpcFailed("x", grpc.StatusCode[code]))
        > 0
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("INTERNAL", "INTERNAL_ERROR"),
        ("NOT_FOUND", "RUN_NOT_FOUND"),
        ("UNAUTHENTICATED", "BAD_TOKEN"),
        ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS"),
        ("DATA_LOSS", ""),
    ],
)
def test_what_the_server_says_is_final(code: str, reason: str) -> None:
    """An answer of the server's own is raised at once."""
    error = RpcFailed("x", grpc.StatusCode[code], reason)
    with pytest.raises(RpcFailed):
        ProgressReader(pb.ProgressRequest(), reached=True).pause_after(error)


def test_own_lost_stream_may_still_be_counted() -> None:
    """After a break, too many streams may mean the lost one, so it is tried again."""
    follower = ProgressReader(pb.ProgressRequest())
    follower.accept(started(1))
    error = RpcFailed("x", grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
    assert follower.pause_after(error) > 0


def test_a_stream_whose_token_was_replaced() -> None:
    """A stream that its token ended continues with a new one; one that never began does not."""
    error = RpcFailed("x", grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")
    follower = ProgressReader(pb.ProgressRequest(), reached=True)
    with pytest.raises(RpcFailed):
        follower.pause_after(error, has_new_token=True)
    follower = ProgressReader(pb.ProgressRequest())
    follower.accept(started(1))
    assert follower.pause_after(error, has_new_token=True) > 0
    with pytest.raises(RpcFailed):
        follower.pause_after(error, has_new_token=False)
    with pytest.raises(RpcFailed):
        follower.pause_after(RpcFailed("x", grpc.StatusCode.PERMISSION_DENIED), has_new_token=True)


def test_waits_as_long_as_the_server_asks() -> None:
    """A time to wait that the server names is kept, within the patience there is."""
    follower = ProgressReader(pb.ProgressRequest(), 10.0, reached=True, clock=Clock())
    code = grpc.StatusCode.UNAVAILABLE
    assert follower.pause_after(RpcFailed("x", code, "NOT_READY", retry_after=7.0)) == 7.0
    assert follower.pause_after(RpcFailed("x", code, "NOT_READY", retry_after=700.0)) == 10.0


def test_pages_are_of_one_run_and_one_moment() -> None:
    """Later pages are asked for by the run and the moment of the first."""
    pages = Pages("", "html")
    assert pages.request == pb.OutputRequest(format="html")
    first = pb.OutputResponse(
        content=b"ab", total_bytes=3, next_offset=2, run=pb.Run(run_id="r"), as_of_sequence=5
    )
    assert pages.accept(first) == b"ab"
    assert pages.request == pb.OutputRequest(run_id="r", format="html", offset=2, as_of_sequence=5)
    assert pages.accept(pb.OutputResponse(content=b"c", total_bytes=3, next_offset=3)) == b"c"
    assert pages.complete


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (pb.OutputResponse(content=b"ab", total_bytes=9, next_offset=3), "ends at byte 3 instead of 2"),
        (pb.OutputResponse(total_bytes=9), "empty page"),
        (pb.OutputResponse(content=b"ab", total_bytes=2, next_offset=2, sha256="0" * 64), "SHA-256"),
    ],
)
def test_pages_that_do_not_add_up(page: pb.OutputResponse, problem: str) -> None:
    """Pages that are not what was announced are an error and no endless loop."""
    with pytest.raises(NotebookRunnerError, match=problem):
        Pages("r", "notebook").accept(page)


def test_pages_are_checked_against_their_sum() -> None:
    """The announced sum is compared with all bytes of all pages."""
    pages, total = Pages("r", "notebook"), hashlib.sha256(b"abc").hexdigest()
    pages.accept(pb.OutputResponse(content=b"ab", total_bytes=3, next_offset=2, sha256=total))
    pages.accept(pb.OutputResponse(content=b"c", total_bytes=3, next_offset=3, sha256=total))
    assert pages.complete


def write_half(path: Path) -> None:
    """Loses the connection in the middle of a file."""
    with open_output(path) as stream:
        stream.write(b"half")
        raise OSError("broken")


def test_file_is_replaced_only_when_all_is_there(tmp_path: Path) -> None:
    """An error on the way leaves the old file, and nothing beside it."""
    path = tmp_path / "out.ipynb"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="broken"):
        write_half(path)
    assert path.read_bytes() == b"old"
    with open_output(str(path)) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_link_stays_a_link(tmp_path: Path) -> None:
    """Writing through a link replaces what it points to."""
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with open_output(tmp_path / "link") as stream:
        stream.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"


def test_devices_and_open_files_are_written_to(tmp_path: Path) -> None:
    """A device has nothing to replace, and a file that the caller opened stays open."""
    with open_output(Path("/dev/null")) as stream:
        stream.write(b"x")
    buffer = io.BytesIO()
    with open_output(buffer) as stream:
        stream.write(b"x")
    assert buffer.getvalue() == b"x"
    assert not list(tmp_path.iterdir())
