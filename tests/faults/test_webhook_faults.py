"""Webhooks to receivers that fail, hang, redirect, die and come back, and over deaths of the server."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.runs.deliveries import DeliveryFilter
from notebook_runner_server.runs.model import RunState
from notebook_runner_server.runs.store import Store
from notebook_runner_server.webhooks import service as service_module
from notebook_runner_server.webhooks.receivers_file import ENDED, Receiver
from notebook_runner_server.webhooks.service import WebhookService
from tests.runs.samples import a_run, changed
from tests.runs.stores import append, insert, opened
from tests.support.calls import SECONDS, duration, finish, inline, start
from tests.support.killable import KillableServer
from tests.support.ports import free_port
from tests.support.receivers import HANG, WebhookReceiver, new_secret, table, webhooks_file
from tests.support.scrape import ON, until
from tests.support.secure import bearer, new_token
from tests.support.server import Server

pytestmark = pytest.mark.process_pool("what executes runs is nothing to webhooks")

MANY = 1000


def subjects(receiver: WebhookReceiver) -> list[str]:
    """The runs that a receiver has accepted, in order."""
    return [json.loads(one.body)["subject"] for one in receiver.accepted]


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens, unless the test does."""
    return free_port()


def test_failures_are_repeated_and_order_is_kept(tmp_path: Path) -> None:
    """Each attempt has the same id and a signature of its own; a redirect leads nowhere."""
    secret = new_secret()
    answers = [500, 302, 404, 204]
    with WebhookReceiver(lambda number: answers[number] if number < len(answers) else 204) as receiver:
        file = webhooks_file(tmp_path / "webhooks.toml", a=table(receiver, secret))
        with Server(tmp_path / "state", "--webhooks-file", str(file), *ON) as server:
            runs = [start(server.stub, inline("1")).run_id]
            finish(server.stub, runs[0])
            runs.append(start(server.stub, inline("1")).run_id)
            finish(server.stub, runs[1])
            receiver.wait(2)
            assert subjects(receiver) == runs
            assert [one.id for one in receiver.arrived[:4]] == [f"msg_{runs[0]}_ended"] * 4
            assert {one.headers[":path"] for one in receiver.arrived} == {"/hook"}
            for one in receiver.arrived:
                one.event(secret)
            whys = [line["why"] for line in server.logged("webhook_failed", count=3)]
            assert whys == [
                "the receiver answered 500",
                "the receiver answered 302; redirects are not followed",
                "the receiver answered 404",
            ]
            page = until(server, lambda page: page.total("webhook_attempts_total", result="delivered") == 2)
            assert page.value("webhook_attempts_total", receiver="a", result="failed") == 3


@pytest.mark.parametrize("is_hanging", [True, False])
def test_death_of_the_server_between_an_end_and_its_post(
    tmp_path: Path, closed_port: int, is_hanging: bool
) -> None:
    """The receiver gets each end once it is back, in order; what it had without an answer comes again."""
    secret, port = new_secret(), closed_port
    lines = f'url = "http://127.0.0.1:{port}/hook"\nsecret = "{secret}"\nallow_internal = true'
    file = webhooks_file(tmp_path / "webhooks.toml", a=lines)
    options = ("--webhooks-file", str(file))
    runs = []
    with KillableServer(tmp_path / "state", *options) as server:
        if is_hanging:
            with WebhookReceiver(lambda _: HANG, port) as hanging:
                runs.append(start(server.stub, inline("1")).run_id)
                hanging.wait(1, accepted=False)
                server.die()
                assert {one.id for one in hanging.arrived} == {f"msg_{runs[0]}_ended"}
        else:
            runs += [start(server.stub, inline("1")).run_id for _ in range(1)]
            finish(server.stub, runs[0])
            server.die()
    with WebhookReceiver(port=port) as receiver, KillableServer(tmp_path / "state", *options) as server:
        receiver.wait(1)
        assert receiver.arrived[0].event(secret)["subject"] == runs[0]
        runs.append(start(server.stub, inline("1")).run_id)
        receiver.wait(2)
        assert subjects(receiver) == runs
        server.die()
    # What was accepted and recorded does not come again.
    with WebhookReceiver(port=port) as receiver, KillableServer(tmp_path / "state", *options) as server:
        run_id = start(server.stub, inline("1")).run_id
        receiver.wait(1)
        assert set(subjects(receiver)) <= {run_id, runs[1]}
        receiver.wait(1 + (subjects(receiver)[0] != run_id))
        assert subjects(receiver)[-1] == run_id


def test_a_run_that_is_deleted_before_its_post(tmp_path: Path, closed_port: int) -> None:
    """The event has what is still known: the id and the state."""
    secret, port = new_secret(), closed_port
    lines = f'url = "http://127.0.0.1:{port}/hook"\nsecret = "{secret}"\nallow_internal = true'
    file = webhooks_file(tmp_path / "webhooks.toml", a=lines)
    with Server(tmp_path / "state", "--webhooks-file", str(file)) as server:
        run_id = start(server.stub, inline("1")).run_id
        finish(server.stub, run_id)
        server.stub.Delete(pb.DeleteRequest(run_id=run_id), timeout=SECONDS)
        # The attempt that is being made may have read the run before.
        server.logged("webhook_failed", count=len(server.said("webhook_failed")) + 1)
        with WebhookReceiver(port=port) as receiver:
            event = receiver.wait(1)[0].event(secret)
    assert event["subject"] == run_id
    assert event["rundeleted"] is True
    assert event["data"] == {"runId": run_id, "state": "RUN_STATE_SUCCEEDED"}


def test_tls(tmp_path: Path) -> None:
    """A certificate is verified: that of an unknown authority gets nothing."""
    secret, ca = new_secret(), trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    contexts = []
    for authority in (ca, trustme.CA()):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        contexts.append(context)
    with WebhookReceiver(tls=contexts[0]) as trusted, WebhookReceiver(tls=contexts[1]) as unknown:
        file = webhooks_file(tmp_path / "webhooks.toml", a=table(trusted, secret), b=table(unknown, secret))
        environment = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        options = ("--webhooks-file", str(file))
        with Server(tmp_path / "state", *options, environment=environment) as server:
            run_id = start(server.stub, inline("1")).run_id
            assert trusted.wait(1)[0].event(secret)["subject"] == run_id
            line = server.logged("webhook_failed", "'receiver': 'b'")[0]
            assert line["why"] == "the service's TLS certificate is not trusted"
    assert unknown.arrived == []


@asynccontextmanager
async def serving(store: Store, *receivers: Receiver) -> AsyncIterator[WebhookService]:
    """A service for receivers, until the block is left."""
    service = WebhookService(store.deliveries, lambda: receivers)
    await service.apply()
    try:
        yield service
    finally:
        await service.close()


def to(receiver: WebhookReceiver, name: str, **labels: str) -> Receiver:
    """A receiver on loopback."""
    return Receiver(
        name, DeliveryFilter(ENDED, labels=labels), receiver.url, (new_secret(),), any_address=True
    )


async def ended(store: Store, run_id: str, **labels: str) -> None:
    """A run that has ended."""
    position = await insert(store, run_id, labels=labels)
    run = a_run(RunState.KILLED, run_id=run_id, labels=labels)
    await append(store, position, run, changed(2, run), expire_time=1)


async def test_a_receiver_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    """With a thousand ends behind it, another receiver gets what it waits for, and the store takes runs."""
    with WebhookReceiver(lambda _: HANG) as hanging, WebhookReceiver() as other:
        receivers, begin = (to(hanging, "a"), to(other, "b", last="yes")), time.monotonic()
        async with opened(tmp_path) as store, serving(store, *receivers) as service:
            for number in range(MANY):
                await ended(store, f"run-{number}")
            await ended(store, "last", last="yes")
            await asyncio.to_thread(other.wait, 1)
            for sender in service._senders.values():
                await sender.count()
            assert service.status[0].backlog == MANY + 1
            assert subjects(other) == ["last"]
            seconds = time.monotonic() - begin
            assert len(hanging.arrived) <= 1 + seconds / service_module.ATTEMPT_SECONDS


async def test_a_file_that_is_half_written_loses_nothing(tmp_path: Path, closed_port: int) -> None:
    """A receiver that is missing once still gets what ended before; one that is missing twice is removed."""
    port = closed_port
    with WebhookReceiver() as receiver:
        away = replace(to(receiver, "away"), uri=f"http://127.0.0.1:{port}/hook")
        file = [to(receiver, "a"), away]
        async with opened(tmp_path) as store:
            service = WebhookService(store.deliveries, lambda: file)
            await service.apply()
            await ended(store, "run")
            file = file[:1]
            await service.apply()
            file = [*file, away]
            await service.apply()
            with WebhookReceiver(port=port) as back:
                await asyncio.to_thread(back.wait, 1)
            file = file[:1]
            for _ in range(2):
                await service.apply()
            assert [one.name for one in service.status] == ["a"]
            await service.close()


async def test_a_delivery_is_dropped_only_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is older, from a receiver that has failed for as long; the next one has its own chance."""
    monkeypatch.setattr(service_module, "FIRST_PAUSE", 0.01)
    with WebhookReceiver(lambda _: 204 if b"new" in receiver.body else 500) as receiver:
        async with opened(tmp_path) as store, serving(store, to(receiver, "a")) as service:
            await ended(store, "old")
            await asyncio.to_thread(receiver.wait, 3, accepted=False)
            monkeypatch.setattr(service_module, "DROP_SECONDS", 0.0)
            await ended(store, "new")
            await asyncio.to_thread(receiver.wait, 1)
            assert subjects(receiver) == ["new"]
            assert service.status[0].results["dropped"] == 1
            assert {one.id for one in receiver.arrived[:-1]} == {"msg_old_ended"}


def test_notifications_over_deaths_retries_and_deletion(tmp_path: Path, closed_port: int) -> None:
    """Each attempt of a run notifies, also after a SIGKILL; then no byte of the URI is left."""
    port = closed_port
    mark = f"token-{tmp_path.name}"
    options = ("--notify-hosts", "127.0.0.1")
    with KillableServer(tmp_path / "state", *options) as server:
        uri = f"http://127.0.0.1:{port}/hook?{mark}"
        retry = pb.RetryPolicy(max_retries=1, backoff=duration(0))
        source = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        run = start(server.stub, inline(source, notify_uri=uri, retry=retry))
        first = finish(server.stub, run.run_id).run
        finish(server.stub, first.retried_by)
        for run_id in (first.run_id, first.retried_by):
            server.stub.Delete(pb.DeleteRequest(run_id=run_id), timeout=SECONDS)
        server.die()
    with WebhookReceiver(port=port) as receiver, Server(tmp_path / "state", *options, *ON) as server:
        receiver.wait(2)
        assert subjects(receiver) == [first.run_id, first.retried_by]
        assert {one.headers[":path"] for one in receiver.arrived} == {f"/hook?{mark}"}
        until(server, lambda page: page.total("webhook_attempts_total", result="delivered") == 2)
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert [path for path in files if mark.encode() in path.read_bytes()] == []


def test_an_owner_holds_up_only_its_own_notifications(tmp_path: Path, closed_port: int) -> None:
    """Another owner's arrive while they fail; they arrive after a restart, in their order."""
    tokens = tmp_path / "tokens"
    failing, other = (bearer(new_token(tokens, name)) for name in ("failing", "other"))
    options = ("--notify-hosts", "127.0.0.1", "--tokens-file", str(tokens))
    port = closed_port
    ids = []
    with WebhookReceiver() as receiver, KillableServer(tmp_path / "state", *options) as server:
        for caller, uri in [(failing, f"http://127.0.0.1:{port}/")] * 2 + [(other, receiver.url)] * 2:
            run = server.stub.Start(inline("1", notify_uri=uri), metadata=caller, timeout=SECONDS).run
            ids.append(run.run_id)
            list(server.stub.Progress(pb.ProgressRequest(run_id=run.run_id), metadata=caller))
        receiver.wait(2)
        assert subjects(receiver) == ids[2:]
        server.die()
    with WebhookReceiver(port=port) as receiver, Server(tmp_path / "state", *options):
        receiver.wait(2)
        assert subjects(receiver) == ids[:2]
