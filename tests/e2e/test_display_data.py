"""Display data in the stream: for callers that ask, up to the size that they ask for."""

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import finish, follow, inline, perform, reach, start, started
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.killable import KillableServer
from tests.support.server import Server

pytestmark = pytest.mark.guarantee

MESSAGE_BYTES = 2 * 1024 * 1024
PNG = b"\x89PNG" + bytes(range(256)) * 40
SHOWS = f"""
data = {{
    "text/plain": "ä",
    "text/html": "<b>" + "x" * 2000 + "</b>",
    "image/png": {base64.b64encode(PNG).decode()!r},
    "application/json": {{"a": [1, 1.0]}},
}}
handle = display(data, raw=True, display_id="one")
print("between")
handle.update({{"text/plain": "changed"}}, raw=True)
"result"
"""
SHOWN = [
    {
        "text/plain": "ä".encode(),
        "text/html": b"<b>" + b"x" * 2000 + b"</b>",
        "image/png": PNG,
        "application/json": b'{"a": [1, 1.0]}',
    },
    {"text/plain": b"changed"},
    {"text/plain": b"'result'"},
]
MANY = """
display({f"text/x{number}": "x" * 200_000 for number in range(63)} | {"text/small": "small"}, raw=True)
"""


def contents(events: list[pb.ProgressResponse]) -> list[dict[str, bytes]]:
    """The content that comes with each display, by MIME type."""
    displays = [event.cell_output.display for event in events if event.cell_output.HasField("display")]
    return [{one.mime_type: one.content for one in each.data if one.HasField("content")} for each in displays]


def without(events: list[pb.ProgressResponse]) -> list[pb.ProgressResponse]:
    """The same events for a caller that does not ask."""
    plain = [pb.ProgressResponse.FromString(event.SerializeToString()) for event in events]
    for event in plain:
        for one in event.cell_output.display.data if event.HasField("cell_output") else ():
            one.ClearField("content")
    return plain


def test_content_comes_to_callers_that_ask(server: Server) -> None:
    """Text, decoded pictures and JSON, also of an update; nothing else in the stream changes."""
    ended = perform(server.stub, inline(SHOWS))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    assert contents(ended.events) == [{}, {}, {}]
    asked = list(follow(server.stub, ended.run.run_id, display_data_max_bytes=100_000))
    assert contents(asked) == SHOWN
    assert without(asked) == ended.events
    first = next(event.cell_output.display for event in asked if event.cell_output.HasField("display"))
    sizes = {one.mime_type: one.size_bytes for one in first.data}
    assert sizes["image/png"] == len(base64.b64encode(PNG))


def test_each_representation_has_at_most_so_many_bytes(server: Server) -> None:
    """The limit is for the content, and each caller has its own."""
    run_id = perform(server.stub, inline(SHOWS)).run.run_id
    expected = [SHOWN, [{key: value for key, value in one.items() if len(value) <= 2007} for one in SHOWN]]
    for limit, shown in zip((len(PNG), 2007), expected, strict=True):
        assert contents(list(follow(server.stub, run_id, display_data_max_bytes=limit))) == shown
    assert contents(list(follow(server.stub, run_id, display_data_max_bytes=1))) == [{}, {}, {}]
    omitted = follow(server.stub, run_id, display_data_max_bytes=9999, omit_cell_output=True)
    assert contents(list(omitted)) == []


def test_content_comes_while_the_cell_runs(server: Server, gate: Gate) -> None:
    """To several readers at a time, and to those that come later the same."""
    seen: dict[int, list[bytes]] = {}

    def read(run_id: str, number: int, limit: int) -> None:
        for event in follow(server.stub, run_id, display_data_max_bytes=limit):
            if not event.HasField("heartbeat"):
                seen.setdefault(number, []).append(event.SerializeToString(deterministic=True))
            if event.cell_output.HasField("display"):
                gate.open()

    with started(server.stub, inline(f"{SHOWS}\n{gate.source}", "1")) as run:
        threads = [Thread(target=read, args=(run.run_id, number, 10**5 + number % 2)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        read(run.run_id, 6, 10**5)
    assert len(seen) == 7
    assert len({tuple(messages) for messages in seen.values()}) == 1


def test_a_message_has_at_most_two_mebibytes(make_server: Callable[..., Server]) -> None:
    """Further representations come without their content, however many there are."""
    with_all = make_server("--display-data-max-bytes", "1000000")
    run_id = perform(with_all.stub, inline(MANY)).run.run_id
    request = pb.ProgressRequest(run_id=run_id, display_data_max_bytes=2**31 - 1).SerializeToString()
    messages = list(with_all.raw_stream("Progress", request))
    assert MESSAGE_BYTES - 300_000 < max(map(len, messages)) <= MESSAGE_BYTES
    (shown,) = contents([pb.ProgressResponse.FromString(one) for one in messages])
    assert list(shown) == [*(f"text/x{number}" for number in range(9)), "text/small"]


@pytest.mark.parametrize(
    ("limit", "kept"), [("0", []), ("2007", ["text/plain", "text/html", "application/json"])]
)
def test_the_server_keeps_no_more_than_its_option_says(
    make_server: Callable[..., Server], limit: str, kept: list[str]
) -> None:
    """Whatever a caller asks for."""
    server = make_server("--display-data-max-bytes", limit)
    run_id = perform(server.stub, inline(SHOWS)).run.run_id
    shown = contents(list(follow(server.stub, run_id, display_data_max_bytes=2**20)))
    assert list(shown[0]) == kept


def test_a_negative_size_is_refused(server: Server) -> None:
    """With its field."""
    run_id = perform(server.stub, inline("1")).run.run_id
    error = refused(lambda: list(follow(server.stub, run_id, display_data_max_bytes=-1)))
    assert (error.reason, error.fields) == ("INVALID_FIELD", ["display_data_max_bytes"])


def test_content_survives_the_death_of_the_server(
    tmp_path_factory: pytest.TempPathFactory, gate: Gate
) -> None:
    """What a reader saw before a SIGKILL, the next server sends again."""
    state = tmp_path_factory.mktemp("state")
    with KillableServer(state) as server:
        run_id = start(server.stub, inline(SHOWS, gate.source)).run_id
        reach(server.stub, run_id, "cell_started", cell=1)
        seen = list(follow(server.stub, run_id, display_data_max_bytes=10**5, snapshot_only=True))
        server.die()
        gate.open()
    with KillableServer(state) as server:
        again = list(follow(server.stub, run_id, display_data_max_bytes=10**5))
        finish(server.stub, run_id)
    assert contents(seen) == SHOWN
    assert again[: len(seen)] == seen


@pytest.mark.state_folder("it damages a file of the run")
@pytest.mark.process_pool("damages a file of the state folder, as on any executor")
def test_damaged_content_is_not_sent(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A caller that asks for it gets DATA_LOSS; one that does not, all events."""
    state = tmp_path_factory.mktemp("state")
    with Server(state) as server:
        ended = perform(server.stub, inline(SHOWS))
        segments = Path(state, "runs", ended.run.run_id, "segments")
        data = segments.read_bytes()
        segments.write_bytes(data.replace(PNG, bytes(len(PNG))))
        asks = partial(follow, server.stub, ended.run.run_id, display_data_max_bytes=10**5)
        assert refused(lambda: list(asks())).kind == (grpc.StatusCode.DATA_LOSS, "RUN_DAMAGED")
        assert list(follow(server.stub, ended.run.run_id)) == ended.events
