"""Watch over deaths of the server, lost connections, forgotten deletions and a kill that nobody waits for."""

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from notebook_runner import AsyncClient, Client, ExistingSent, _retry
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.runs.stores import finish as finish_stored
from tests.runs.stores import insert, opened
from tests.support.calls import SECONDS, duration, finish, follow, history, inline, reach, start
from tests.support.cutting_proxy import CuttingProxy
from tests.support.errors import refused
from tests.support.killable import KillableServer
from tests.support.progress import TERMINAL
from tests.support.watching import WatchValidator, watching

pytestmark = pytest.mark.process_pool("on a cluster runs outlive their server, and the tests need its folder")

LIVES = 4
CUTS = 100
STORED_RUNS = 150
EXPIRED = (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")
KILLED_BY_CALL = {pb.RUN_STATE_KILLED, pb.RUN_STATE_INTERRUPTED}


def states_of(run_id: str, messages: list[pb.WatchResponse]) -> list[int]:
    """The states of a run in what a watcher has seen."""
    return [message.run.state for message in messages if message.run.run_id == run_id]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_watcher_over_many_deaths(tmp_path: Path, seed: int) -> None:
    """Wherever the server dies, the watcher has each state of each run once, as Progress has them."""
    moments = random.Random(seed)  # noqa: S311 - the same again for the same seed
    validator = WatchValidator(pb.WatchRequest(include_existing=True))
    seen: list[pb.WatchResponse] = []
    options = ("--queue", "50", "--workers", "2", "--heartbeat-interval", "0.05", "--warm-kernels", "none")
    cursor = ""
    for life in range(LIVES + 1):
        with KillableServer(tmp_path, *options) as server:
            request = pb.WatchRequest(cursor=cursor, include_existing=True)
            stream = server.stub.Watch(request, timeout=2 * SECONDS)
            for _ in range(2):
                start(server.stub, inline("1"))
            known = history(server.stub)
            left = moments.randrange(1, 30)
            for message in stream:
                validator.see(message)
                cursor = message.cursor
                if not message.HasField("heartbeat"):
                    seen.append(message)
                left -= 1
                ended = [run_id for run_id in known if TERMINAL & set(states_of(run_id, seen))]
                if len(ended) == len(known) if life == LIVES else left <= 0:
                    break
            stream.cancel()
            if life < LIVES:
                server.die()
                continue
            for run_id in known:
                events = finish(server.stub, run_id).events
                states = [event.run_changed.state for event in events if event.HasField("run_changed")]
                watched = states_of(run_id, seen)
                # Before the first stream began, some may have passed.
                assert watched == states[-len(watched) :]
            with watching(server.stub, include_existing=True) as watcher:
                assert [run.run_id for run in watcher.existing()] == known[::-1]


def blocking(target: str) -> Iterator[pb.WatchResponse]:
    """The runs that exist, by the blocking client."""
    with Client(target) as client:
        for change in client.watch():
            yield change.pb
            if isinstance(change, ExistingSent):
                return


def awaited(target: str) -> Iterator[pb.WatchResponse]:
    """The runs that exist, by the client of asyncio."""
    with asyncio.Runner() as runner:
        client = AsyncClient(target)
        changes = client.watch()
        while True:
            change = runner.run(anext(changes))
            yield change.pb
            if isinstance(change, ExistingSent):
                break
        runner.run(changes.aclose())
        runner.run(client.close())


@pytest.mark.parametrize("watch", [blocking, awaited])
def test_a_watcher_over_many_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Callable[[str], Iterator[pb.WatchResponse]]
) -> None:
    """A hundred connections break in the middle of existing runs; each of them comes once and in order."""
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.001)

    async def fill() -> None:
        async with opened(tmp_path / "state") as store:
            for number in range(STORED_RUNS):
                run_id = f"20260101-000000-{number:08x}"
                await finish_stored(store, await insert(store, run_id), run_id, expire_time=2**62)

    asyncio.run(fill())
    with KillableServer(tmp_path / "state", "--warm-kernels", "none") as server:
        with watching(server.stub, include_existing=True) as watcher:
            expected = [run.run_id for run in watcher.existing()]
        assert len(expected) == STORED_RUNS
        with CuttingProxy(server.target, cuts=CUTS, seed=7) as proxy:
            while not proxy.whole.is_set():
                found = list(watch(proxy.target))
                assert [message.run.run_id for message in found[:-1]] == expected
            # The others were closed before their cut, because all had come.
            assert proxy.cuts > CUTS // 2


@pytest.mark.state_folder("it changes SQLite's file")
def test_a_cursor_that_retention_has_overtaken(tmp_path: Path) -> None:
    """It has expired, also after restarts; one that it has not overtaken continues."""
    options = ("--warm-kernels", "none")
    with KillableServer(tmp_path, *options) as server:
        with watching(server.stub) as watcher:
            early = watcher.cursor
        run = finish(server.stub, start(server.stub, inline("1")).run_id).run
        with watching(server.stub) as watcher:
            late = watcher.cursor
    # As when very many deletions have followed.
    with closing(sqlite3.connect(tmp_path / "notebook-runner.db")) as db:
        db.execute("UPDATE history SET expired_change = 2")
        db.commit()
    for _ in range(2):
        with KillableServer(tmp_path, *options) as server:
            request = pb.WatchRequest(cursor=early, include_existing=True)
            assert refused(partial(next, server.stub.Watch(request, timeout=SECONDS))).kind == EXPIRED
            with watching(server.stub, include_existing=True) as fresh:
                assert run.run_id in [one.run_id for one in fresh.existing()]
            with watching(server.stub, cursor=late) as rest:
                other = start(server.stub, inline("1"))
                assert rest.change().run.run_id == other.run_id
                rest.until_end(other.run_id)
                late = rest.cursor


def test_retention_tells_expired_from_unknown_runs(tmp_path: Path) -> None:
    """What retention deleted has a reason of its own, also after a restart; what Delete removed has not."""
    options = ("--warm-kernels", "none", "--queue", "1")
    with KillableServer(tmp_path, *options) as server, watching(server.stub) as watcher:
        deleted, short = (start(server.stub, inline("1", retention=duration(0.001))).run_id for _ in range(2))
        finish(server.stub, short)
        finish(server.stub, deleted)
        server.stub.Delete(pb.DeleteRequest(run_id=deleted), timeout=SECONDS)
        while watcher.change().deleted_run_id != deleted:
            pass
        cursor = watcher.cursor
    for _ in range(2):
        # The first sweep of a server comes with its start.
        with KillableServer(tmp_path, "--warm-kernels", "none") as server:
            with watching(server.stub, cursor=cursor) as watcher:
                assert watcher.change().deleted_run_id == short
            for method, request in (
                ("Get", pb.GetRequest(run_id=short)),
                ("Progress", pb.ProgressRequest(run_id=short)),
                ("Output", pb.OutputRequest(run_id=short)),
                ("Kill", pb.KillRequest(run_id=short)),
                ("Delete", pb.DeleteRequest(run_id=short)),
                ("Get", pb.GetRequest(run_id=deleted)),
                ("Get", pb.GetRequest(run_id="20260101-000000-01234567")),
            ):
                refusal = refused(partial(asked, server, method, request))
                is_expired = request.run_id == short and method != "Delete"
                assert refusal.reason == ("RUN_EXPIRED" if is_expired else "RUN_NOT_FOUND")
                assert refusal.kind[0] is grpc.StatusCode.NOT_FOUND


def asked(server: KillableServer, method: str, request: Message) -> None:
    """Makes a call; a stream is read to its end."""
    answer = getattr(server.stub, method)(request, timeout=SECONDS)
    if method == "Progress":
        list(answer)


STUBBORN = """
import time
while True:
    try:
        print("yes", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("no", flush=True)
"""


def test_a_kill_that_nobody_waits_for_survives_the_server(tmp_path: Path) -> None:
    """The state is durable when the call returns; after the death of the server no process is left."""
    with KillableServer(tmp_path, "--warm-kernels", "none") as server:
        run_id = start(server.stub, inline(STUBBORN)).run_id
        reach(server.stub, run_id, "cell_output")
        request = pb.KillRequest(run_id=run_id, grace_period=duration(500), no_wait=True)
        answer = server.stub.Kill(request, timeout=SECONDS)
        assert answer.run.state == pb.RUN_STATE_KILLING
        assert not answer.already_ended
        # The worker was told.
        with closing(follow(server.stub, run_id)) as events:
            next(event for event in events if "no" in event.cell_output.stream.text)
        server.die()
    with KillableServer(tmp_path, "--warm-kernels", "none") as server:
        ended = finish(server.stub, run_id)
        assert pb.RUN_STATE_KILLING in [event.run_changed.state for event in ended.events]
        assert ended.run.state in KILLED_BY_CALL
