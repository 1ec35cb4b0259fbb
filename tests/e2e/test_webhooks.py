"""Webhooks to real receivers: what arrives, in which order, and signed by whom."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from standardwebhooks import Webhook

from notebook_runner import AsyncClient, Client
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.client.test_cli import command_for
from tests.support.calls import SECONDS, finish, inline, start
from tests.support.errors import refused
from tests.support.http_client import HttpCaller
from tests.support.notebooks import code, notebook, written
from tests.support.receivers import WebhookReceiver, new_secret, table, webhooks_file
from tests.support.scrape import ON, Page, until
from tests.support.server import Server

pytestmark = pytest.mark.process_pool("what executes runs is nothing to webhooks")

ENDED, STARTED = "notebook_runner.run.ended.v1", "notebook_runner.run.started.v1"


def test_each_end_arrives_once_in_order_and_signed(tmp_path: Path) -> None:
    """As a CloudEvent with the run, for each receiver what it asked for; the metrics count them."""
    secrets = [new_secret(), new_secret()]
    with WebhookReceiver() as all_ends, WebhookReceiver() as some:
        file = webhooks_file(
            tmp_path / "webhooks.toml",
            all=table(all_ends, secrets[0]),
            some=table(some, secrets[1], 'events = ["started", "failed"]', 'labels = { team = "data" }'),
        )
        with Server(tmp_path / "state", "--webhooks-file", str(file), *ON) as server:
            runs = []
            for source, team in (("1", "data"), ("1/0", "data"), ("1/0", "ops")):
                run_id = start(server.stub, inline(source, labels={"team": team})).run_id
                runs.append(finish(server.stub, run_id).run)
            arrived = all_ends.wait(3)
            events = [one.event(secrets[0]) for one in arrived]
            assert [event["subject"] for event in events] == [run.run_id for run in runs]
            for run, one, event in zip(runs, arrived, events, strict=True):
                check(event, run, ENDED)
                parsed = from_http_event(HTTPMessage(one.headers, one.body))
                assert (parsed.get_id(), parsed.get_type()) == (one.id, ENDED)
                assert one.headers["content-type"].startswith("application/cloudevents+json")
            found = [(one["type"], one["subject"]) for one in (one.event(secrets[1]) for one in some.wait(3))]
            first, second, _ = (run.run_id for run in runs)
            assert found == [(STARTED, first), (STARTED, second), (ENDED, second)]
            page = until(server, none_is_left)
            assert page.value("webhook_attempts_total", receiver="all", result="delivered") == 3
            assert page.value("webhook_attempts_total", receiver="some", result="delivered") == 3
            assert page.value("webhook_attempts_total", receiver="some", result="failed") == 0
            info = server.stub.Info(pb.InfoRequest(), timeout=SECONDS)
            assert list(info.webhooks) == [pb.WebhookReceiver(name=name) for name in ("all", "some")]
    assert len(all_ends.arrived) == len(some.arrived) == 3


def none_is_left(page: Page) -> bool:
    """Whether all six are delivered, and counted as such, which happens one after the other."""
    return (
        page.total("webhook_attempts_total", result="delivered") == 6
        and page.total("webhook_backlog") == 0
        and page.total("webhook_oldest_seconds") == 0
    )


def check(event: dict[str, Any], run: pb.Run, kind: str) -> None:
    """Whether an event tells exactly this run."""
    assert event["specversion"] == "1.0"
    assert event["type"] == kind
    assert event["source"].startswith("urn:notebook-runner:")
    assert json_format.ParseDict(event["data"], pb.Run()) == run
    time = Timestamp()
    time.FromJsonString(event["time"])
    assert time.ToMicroseconds() == run.end_time.ToMicroseconds()


@pytest.mark.fault
def test_a_changed_file_counts_without_a_restart(tmp_path: Path) -> None:
    """A new receiver begins now, a rotated secret signs with both, a wrong file changes nothing."""
    old, new = new_secret(), new_secret()
    with WebhookReceiver() as first, WebhookReceiver() as second:
        file = webhooks_file(tmp_path / "webhooks.toml", first=table(first, old))
        with Server(tmp_path / "state", "--webhooks-file", str(file)) as server:
            finish(server.stub, start(server.stub, inline("1")).run_id)
            first.wait(1)
            both = f'url = "{first.url}"\nsecret = ["{new}", "{old}"]\nallow_internal = true'
            webhooks_file(file, first=both, second=table(second, new))
            server.logged("webhooks_reloaded")
            run_id = start(server.stub, inline("1")).run_id
            finish(server.stub, run_id)
            arrived = first.wait(2)[1]
            for secret in (old, new):
                Webhook(secret).verify(arrived.body, arrived.headers)
            assert json.loads(second.wait(1)[0].body)["subject"] == run_id
            webhooks_file(file, first="nonsense")
            server.logged("webhooks_not_reloaded")
            finish(server.stub, start(server.stub, inline("1")).run_id)
            first.wait(3)
            second.wait(2)
    assert len(second.arrived) == 2


@pytest.mark.fault
def test_a_huge_run_is_cut_where_it_is_largest(tmp_path: Path) -> None:
    """The event says which fields are left out; the rest is whole."""
    secret = new_secret()
    with WebhookReceiver() as receiver:
        file = webhooks_file(tmp_path / "webhooks.toml", all=table(receiver, secret))
        with Server(tmp_path / "state", "--webhooks-file", str(file)) as server:
            parameters = json.dumps({"huge": "x" * 1_000_000})
            request = inline(code("huge = ''", "parameters"), parameters_json=parameters)
            run = finish(server.stub, start(server.stub, request).run_id).run
            event = receiver.wait(1)[0].event(secret)
            assert event["omittedfields"] == "parametersJson"
            assert len(receiver.arrived[0].body) < 1_100_000
            run.parameters_json = ""
            check(event, run, ENDED)


def test_a_run_notifies_whom_it_names(tmp_path: Path) -> None:
    """Its end alone, unsigned, at the whole URI; other runs notify nobody, and other hosts are refused."""
    options = ("--notify-hosts", "127.0.0.1")
    with WebhookReceiver() as receiver, Server(tmp_path / "state", *options) as server:
        finish(server.stub, start(server.stub, inline("1")).run_id)
        uri = f"{receiver.url}?token=secret"
        run = finish(server.stub, start(server.stub, inline("1", notify_uri=uri)).run_id).run
        (arrived,) = receiver.wait(1)
        check(json.loads(arrived.body), run, ENDED)
        assert arrived.headers[":path"] == "/hook?token=secret"
        assert "webhook-signature" not in arrived.headers
        for other in ("https://example.com/", "file:///etc/passwd", "s3://bucket/key", "nonsense"):
            refusal = refused(partial(start, server.stub, inline("1", notify_uri=other)))
            assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "URI_NOT_ALLOWED")
        assert "token=secret" not in str(server.log)


@pytest.mark.fault
def test_every_way_to_start_takes_the_uri(tmp_path: Path) -> None:
    """Both clients, the command, and HTTP with a notebook as its body notify whom they name."""
    (tmp_path / "a.ipynb").write_bytes(written(notebook("1")))
    options = ("--notify-hosts", "127.0.0.1", "--http-listen", "127.0.0.1:0")
    with WebhookReceiver() as receiver, Server(tmp_path / "state", *options) as server:
        uris = {way: f"{receiver.url}?way={way}&b" for way in ("sync", "async", "start", "run", "http")}
        command = command_for(server.target)

        async def from_asyncio() -> str:
            async with AsyncClient(server.target) as client:
                return (await client.run(tmp_path / "a.ipynb", notify_uri=uris["async"])).id

        with Client(server.target) as client:
            runs = {
                "sync": client.start(tmp_path / "a.ipynb", notify_uri=uris["sync"]).wait().id,
                "async": asyncio.run(from_asyncio()),
            }
            for way in ("start", "run"):
                done = command(way, tmp_path / "a.ipynb", "--notify-uri", uris[way])
                assert done.returncode == 0, done.stderr
                runs[way] = client.wait().id
            path = "/v1/runs?" + urlencode({"notify_uri": uris["http"]})
            answer = HttpCaller(server.http).call("POST", path, (tmp_path / "a.ipynb").read_bytes())
            runs["http"] = answer.json["run"]["runId"]
            arrived = receiver.wait(len(uris))
        found = {one.headers[":path"]: json.loads(one.body)["subject"] for one in arrived}
        assert found == {f"/hook?way={way}&b": run_id for way, run_id in runs.items()}


def test_without_hosts_nobody_is_notified(server: Server) -> None:
    """The refusal names the setting."""
    request = inline("1", notify_uri="https://example.com/")
    refusal = refused(lambda: start(server.stub, request))
    assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "URI_NOT_ALLOWED")
    assert "--notify-hosts" in refusal.message
