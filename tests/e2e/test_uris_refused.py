"""URIs that are refused: not allowed, not there, too large, or held by somebody who does not answer."""

import os
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, inline, start
from tests.support.errors import Refusal, refused
from tests.support.killable import children
from tests.support.notebooks import content
from tests.support.server import Server
from tests.support.uris import objects, shared, uri_server, web
from tests.support.web import ObjectStore, Web

pytestmark = pytest.mark.long

__all__ = ["objects", "shared", "uri_server", "web"]

# Much less than --uri-timeout, after which it would end by itself.
ENDED_SECONDS = 30.0

NOT_ALLOWED = (grpc.StatusCode.INVALID_ARGUMENT, "URI_NOT_ALLOWED")
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "NOTEBOOK_NOT_FOUND")
TOO_LARGE = (grpc.StatusCode.RESOURCE_EXHAUSTED, "NOTEBOOK_TOO_LARGE")
UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, "NOTEBOOK_UNREACHABLE")
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NOTEBOOK")


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[Server]:
    """A server that allows every host of the web."""
    options = ["--uri-schemes", "http,file", "--uri-folders", str(shared), "--uri-timeout", "50"]
    with Server(tmp_path_factory.mktemp("state"), *options) as running:
        yield running


def reading(server: Server, uri: str) -> Refusal:
    """How a Start is refused that reads this."""
    return refused(lambda: start(server.stub, pb.StartRequest(notebook_uri=uri)))


def writing(server: Server, uri: str) -> Refusal:
    """How a Start is refused that is to write this."""
    return refused(lambda: start(server.stub, inline("1", output_uri=uri)))


# Whatever way this machine, its link or its cloud's metadata are written in a URI.
FORBIDDEN = [
    *("127.0.0.1:{port}", "localhost:{port}", "a.LOCALHOST.:{port}", "[::1]:{port}", "0.0.0.0:{port}"),
    *("[::ffff:127.0.0.1]:{port}", "[::]:{port}", "127.255.255.254:{port}", "[64:ff9b::7f00:1]:{port}"),
    *("169.254.169.254", "[fe80::1]", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "[2002:7f00:1::]"),
]
# Resolvers take these for addresses of this machine.
NUMBERS = ["127.1:{port}", "2130706433:{port}", "0x7f.1:{port}", "0177.0.0.1:{port}", "0:{port}"]


@pytest.mark.parametrize("host", [*FORBIDDEN, *NUMBERS])
def test_no_notebook_is_read_from_this_machine_nor_its_link(open_server: Server, web: Web, host: str) -> None:
    """However the address is written, no request arrives there."""
    web.put("secret.ipynb", content("1"))
    before = list(web.requests)
    refusal = reading(open_server, f"http://{host.format(port=web.port)}/objects/secret.ipynb")
    assert refusal.kind == NOT_ALLOWED
    assert refusal.fields == ["notebook_uri"]
    assert web.requests == before


@pytest.mark.parametrize("host", [*FORBIDDEN, *NUMBERS])
def test_no_result_is_to_be_written_there(open_server: Server, web: Web, host: str) -> None:
    """Start refuses, and no run begins that could not deliver."""
    refusal = writing(open_server, f"http://{host.format(port=web.port)}/objects/x")
    assert (refusal.kind, refusal.fields) == (NOT_ALLOWED, ["output_uri"])


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "https://127.0.0.1/a",
            "gs://notebooks/a",
            "ftp://127.0.0.1/a",
            "memory://a",
            "simplecache::http://a",
        ),
        *(
            "",
            "a.ipynb",
            "//127.0.0.1/a",
            "http:/127.0.0.1/a",
            "http://",
            "http:///a",
            "HTTP://example.com/a",
        ),
        *("http://example.com/a", "http://127.0.0.1.example.com/a", "http://127.0.0.1:1@example.com/a"),
        *("http://user:password@127.0.0.1/a", "http://user@127.0.0.1/a", "s3://key:secret@notebooks/a"),
        *("http://127.0.0.1\\@example.com/a", "http://127.0.0.1#@example.com/a", "http://127.0.0.1/a b"),
        *("http://127.0.0.1:x/a", "http://127.0.0.1/ä", "http://127.0.0.1/a\r\nHost: b", "http://[::1"),
        *("s3://other/a", "s3://notebooks", "s3://notebooks/", "s3://notebooks/../other/a", "s3:///a"),
        *("s3://notebooks/./a", "s3://notebooks//a", "s3://notebooks/a?versionId=1", "s3://NOTEBOOKS/a"),
        *("s3://arn:aws:s3:::notebooks/a", f"http://127.0.0.1/{'a' * 8192}"),
        *("file:///etc/passwd", "file://{shared}/../x", "file://{shared}%2F..%2Fx", "file://host{shared}/x"),
        *("file://{shared}", "file://{shared}x/a", "file://{shared}/x%00", "file:{shared}/x"),
    ],
)
def test_what_the_operator_did_not_allow_is_refused(uri_server: Server, shared: Path, uri: str) -> None:
    """For reading and for writing alike, with the field, and without a password in the message."""
    target = uri.format(shared=shared)
    for refusal, field in (
        (reading(uri_server, target), "notebook_uri"),
        (writing(uri_server, target or "x"), "output_uri"),
    ):
        assert (refusal.kind, refusal.fields) == (NOT_ALLOWED, [field])
        assert "password" not in refusal.message.replace("a user or a password", "")


def test_a_link_out_of_the_folder_is_not_followed(open_server: Server, shared: Path, tmp_path: Path) -> None:
    """Neither to a file elsewhere nor through a folder elsewhere; one that stays inside is."""
    (tmp_path / "secret.ipynb").write_bytes(content("1"))
    (shared / "link.ipynb").symlink_to(tmp_path / "secret.ipynb")
    (shared / "elsewhere").symlink_to(tmp_path)
    for uri in (f"file://{shared}/link.ipynb", f"file://{shared}/elsewhere/secret.ipynb"):
        refusal = reading(open_server, uri)
        assert (refusal.kind, refusal.fields) == (NOT_ALLOWED, ["notebook_uri"])
    run = start(open_server.stub, inline("1", output_uri=f"file://{shared}/elsewhere/written.ipynb"))
    events = open_server.stub.Progress(pb.ProgressRequest(run_id=run.run_id), timeout=SECONDS)
    assert "leads out of the allowed folders" in list(events)[-1].run_changed.output_error
    assert os.listdir(tmp_path) == ["secret.ipynb"]
    (shared / "inside.ipynb").write_text("no notebook")
    (shared / "inner.ipynb").symlink_to(shared / "inside.ipynb")
    assert reading(open_server, f"file://{shared}/inner.ipynb").kind == INVALID


ANSWERS = {
    "{web}/status/404": NOT_FOUND,
    "{web}/status/410": NOT_FOUND,
    "{web}/status/401": NOT_FOUND,
    "{web}/status/403": NOT_FOUND,
    "{web}/status/500": UNREACHABLE,
    "{web}/status/503": UNREACHABLE,
    "{web}/status/429": UNREACHABLE,
    "{web}/status/200": INVALID,
    "{web}/redirect?http://169.254.169.254/latest": NOT_ALLOWED,
    "{web}/redirect?{web}/status/200": NOT_ALLOWED,
    "{web}/short": UNREACHABLE,
    "{web}/endless": TOO_LARGE,
    "{web}/objects/large": TOO_LARGE,
    "http://127.0.0.1:1/": UNREACHABLE,
    "s3://notebooks/none": NOT_FOUND,
    "s3://nowhere/none": NOT_FOUND,
    "s3://notebooks/large": TOO_LARGE,
    "s3://notebooks/folder": NOT_FOUND,
    "file://{shared}/none": NOT_FOUND,
    "file://{shared}/large": TOO_LARGE,
    "file://{shared}/pipe": NOT_FOUND,
    "file://{shared}/folder": NOT_FOUND,
}


@pytest.fixture(scope="module")
def stocked(web: Web, objects: ObjectStore, shared: Path) -> None:
    """Has what the answers need there."""
    large = b" " * 100_001
    web.put("large", large)
    objects.put("large", large)
    objects.put("folder/object", b"x")
    (shared / "large").write_bytes(large)
    (shared / "folder").mkdir()
    os.mkfifo(shared / "pipe")


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("uri", ANSWERS)
def test_every_answer_of_a_service_has_its_reason(
    uri_server: Server, web: Web, shared: Path, uri: str
) -> None:
    """Not there and not for this server are not worth another try; not now is."""
    target = uri.format(web=web.url, shared=shared)
    refusal = reading(uri_server, target)
    assert refusal.kind == ANSWERS[uri], refusal
    expected = [] if refusal.kind in (TOO_LARGE, INVALID) else ["notebook_uri"]
    assert refusal.fields == expected


def test_credentials_that_are_refused_are_not_tried_again(uri_server: Server, objects: ObjectStore) -> None:
    """Object stores answer so also for what is not there; clients try again what is UNAVAILABLE."""
    uri = objects.put("private.ipynb", content("1"))
    objects.demand_credentials(wanted=True)
    try:
        assert reading(uri_server, uri).kind == NOT_FOUND
    finally:
        objects.demand_credentials(wanted=False)


def test_a_caller_who_gives_up_leaves_nothing_behind(uri_server: Server, web: Web) -> None:
    """The process that read for it is gone as soon as the call is cancelled."""
    before = set(children(uri_server.process.pid))
    call = uri_server.stub.Start.future(pb.StartRequest(notebook_uri=f"{web.url}/silent"), timeout=SECONDS)
    web.wait()
    (reader,) = set(children(uri_server.process.pid)) - before
    descriptor = os.pidfd_open(reader)
    call.cancel()
    with ThreadPoolExecutor(1) as pool:
        # A process that has ended is readable.
        pool.submit(_ended, descriptor).result()
    os.close(descriptor)


def _ended(descriptor: int) -> None:
    readable, _, _ = select.select([descriptor], [], [], ENDED_SECONDS)
    assert readable, "it still reads"
