"""A run that somebody reads is not forgotten, and is when nobody reads it any more: in a whole server."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.odd_server import LOOK, PAGES
from tests.support.calls import duration, follow, history, inline, start
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.killable import KillableServer, forgotten

PROGRAM = [sys.executable, str(Path(__file__).with_name("odd_server.py"))]
# The server looks every 60 s, and a test shall not wait for it. A run may be forgotten as soon as it has
# ended: each waits at a gate until somebody reads it.
OFTEN = "0.05"
AT_ONCE = duration(0.001)
GONE = (grpc.StatusCode.NOT_FOUND, "RUN_EXPIRED")
# More than gRPC sends to a reader that does not read: the stream of it stays open after the run's end.
LINES = 200
LARGE = f"for n in range({LINES}):\n    print('x' * 30_000, flush=True)"
by_age_or_by_count = pytest.mark.parametrize("by", ["age", "count"])


class _Server(KillableServer):
    """A server that forgets runs at their end, or all ended runs but one.

    Args:
        folder: For its state folder.
        by: Whether it forgets by age, or by count.
        gate: Where its runs wait.
    """

    def __init__(self, folder: Path, by: str, gate: Gate) -> None:
        options = ["--retention", "0.001"] if by == "age" else ["--max-runs", "1"]
        told = {LOOK: OFTEN, PAGES: str(folder / "pages")}
        super().__init__(folder / "state", *options, program=PROGRAM, environment=told)
        self.gate = gate


def _forgotten(server: _Server, run_id: str) -> None:
    """Waits until a run is forgotten, and is not found."""
    forgotten(server, run_id)
    assert refused(lambda: list(follow(server.stub, run_id))).kind == GONE


def _ends(server: _Server, run_id: str) -> None:
    """Lets a run go on, and waits for its end, without its output."""
    with closing(follow(server.stub, run_id, omit_cell_output=True)) as events:
        next(events)
        server.gate.open()
        for event in events:
            assert not event.HasField("cell_output")


def _executed(server: _Server, **fields: Any) -> str:
    """Executes a run; unlike `perform` it asks for nothing of a run that may be forgotten by then."""
    run_id = start(server.stub, inline(server.gate.source, **fields)).run_id
    _ends(server, run_id)
    return run_id


@contextmanager
def _half_read(
    server: _Server,
) -> Iterator[tuple[str, list[pb.ProgressResponse], Iterator[pb.ProgressResponse]]]:
    """A run with much text that has ended, what a slow reader has of it, and the rest of the stream."""
    run_id = start(server.stub, inline(f"{server.gate.source}\n{LARGE}")).run_id
    with closing(follow(server.stub, run_id)) as events:
        first = [next(events)]
        _ends(server, run_id)
        yield run_id, first, events


def _whole_look(server: _Server) -> None:
    """Waits until the server has looked from begin to end at what there is to forget.

    A look takes what is over its time first, then what is too much: when the second of two runs is
    forgotten that are over at their end, the look that forgot the first one has been to its end.
    """
    for _ in range(2):
        _forgotten(server, _executed(server, retention=AT_ONCE))


def _read_while(server: _Server, run_id: str, is_there: Callable[[], None]) -> None:
    """Whole looks do not take away the run that is read, though others came after it."""
    for _ in range(2):
        _executed(server)
        _whole_look(server)
        assert run_id in history(server.stub)
        is_there()


@by_age_or_by_count
def test_an_open_stream_keeps_its_run(tmp_path: Path, gate: Gate, by: str) -> None:
    """A slow reader gets every event of a run whose time is over; when it has them, the run goes."""
    with _Server(tmp_path, by, gate) as server:
        with _half_read(server) as (run_id, told, events):
            _read_while(server, run_id, lambda: None)
            told += [event for event in events if not event.HasField("heartbeat")]
        assert told[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED
        assert [event.sequence for event in told] == list(range(1, told[-1].sequence + 1))
        text = "".join(event.cell_output.stream.text for event in told)
        assert text == ("x" * 30_000 + "\n") * LINES
        newest = _executed(server)
        _forgotten(server, run_id)
        if by == "count":
            assert newest in history(server.stub)


@by_age_or_by_count
def test_a_reader_that_goes_away_keeps_nothing(tmp_path: Path, gate: Gate, by: str) -> None:
    """A stream that is cancelled in the middle is the end of reading."""
    with _Server(tmp_path, by, gate) as server:
        with _half_read(server) as (run_id, _, _):
            _executed(server)
            _whole_look(server)
            assert run_id in history(server.stub)
        _executed(server)
        _forgotten(server, run_id)


@by_age_or_by_count
def test_pages_keep_their_run(tmp_path: Path, gate: Gate, by: str) -> None:
    """Between two pages the run waits, until no more are to be expected."""
    with _Server(tmp_path, by, gate) as server:
        source = f"{gate.source}\nprint({'x' * 1000!r})"
        run_id = start(server.stub, inline(source)).run_id
        request = pb.OutputRequest(run_id=run_id, max_bytes=100)
        data = b""

        def page() -> None:
            nonlocal data
            answer = server.stub.Output(request, timeout=60)
            data += answer.content
            request.offset, request.as_of_sequence = answer.next_offset, answer.as_of_sequence

        page()
        _ends(server, run_id)
        _read_while(server, run_id, page)
        assert len(data) == 300
        # The next page is not waited for any longer.
        (tmp_path / "pages").touch()
        _executed(server)
        _forgotten(server, run_id)
        assert refused(lambda: server.stub.Output(request, timeout=60)).kind == GONE
