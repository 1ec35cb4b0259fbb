"""Envoy transcodes the contract by its annotations: with the answers of the server's own HTTP listener."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import finish, inline, perform
from tests.support.http_client import SECONDS, HttpCaller
from tests.support.notebooks import content
from tests.support.polling import pause
from tests.support.server import Server

pytestmark = pytest.mark.long

PROGRAM = Path(sys.executable).with_name("envoy")
_TYPES = "type.googleapis.com/envoy.extensions"


def contract() -> bytes:
    """The descriptors of the contract, of all that it imports, and of the details of errors."""
    found: dict[str, FileDescriptor] = {}

    def add(file: Any) -> None:
        if file.name not in found:
            for each in file.dependencies:
                add(each)
            found[file.name] = file

    add(pb.DESCRIPTOR)
    add(error_details_pb2.DESCRIPTOR)
    files = descriptor_pb2.FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(files.file.add())
    return files.SerializeToString()


def configuration(target: str, descriptors: Path) -> dict[str, Any]:
    """A proxy that transcodes for the server."""
    host, port = target.split(":")
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    transcoder = {
        "@type": f"{_TYPES}.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": str(descriptors),
        "services": ["notebook_runner.v1.NotebookRunner"],
        "convert_grpc_status": True,
        "print_options": {"stream_newline_delimited": True},
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "runner", "timeout": "0s"}}
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.grpc_json_transcoder", "typed_config": transcoder},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
            },
        ],
    }
    options = {
        "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    server = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
    cluster = {
        "name": "runner",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "runner", "endpoints": [{"lb_endpoints": [server]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "admin": {"address": address},
        "static_resources": {
            "listeners": [{"name": "http", "address": address, "filter_chains": [{"filters": filters}]}],
            "clusters": [cluster],
        },
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with HTTP."""
    with Server(tmp_path_factory.mktemp("state"), "--http-listen", "127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def envoy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpCaller]:
    """A caller of the proxy in front of that server."""
    folder = tmp_path_factory.mktemp("envoy")
    (folder / "contract").write_bytes(contract())
    (folder / "envoy.json").write_text(json.dumps(configuration(server.target, folder / "contract")))
    admin, log = folder / "admin", folder / "log"
    command = [str(PROGRAM), "-c", str(folder / "envoy.json"), "--use-dynamic-base-id", "--concurrency", "1"]
    command += ["--admin-address-path", str(admin), "--log-path", str(log)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            until = time.monotonic() + SECONDS
            address = ""
            while not address:
                assert running.poll() is None, log.read_text()
                assert time.monotonic() < until
                pause()
                if admin.exists() and admin.read_text():
                    with urlopen(f"http://{admin.read_text()}/listeners?format=json") as answer:
                        found = json.load(answer).get("listener_statuses", [])
                    for one in found:
                        place = one["local_address"]["socket_address"]
                        address = f"{place['address']}:{place['port_value']}"
            yield HttpCaller(address)
        finally:
            running.terminate()


def same(own: HttpCaller, envoy: HttpCaller, verb: str, path: str, body: Any = None) -> Any:
    """The answer to a request, which is the same from both."""
    headers = {"accept": "application/json"}
    ours, theirs = own.call(verb, path, body, **headers), envoy.call(verb, path, body, **headers)
    assert (ours.status, ours.json) == (theirs.status, json.loads(theirs.body))
    return ours.json


def test_the_same_answers(server: Server, envoy: HttpCaller) -> None:
    """Each path of the contract, its fields in path, query and body, and its errors."""
    own = HttpCaller(server.http)
    run = perform(server.stub, inline("print('x')\n1/0", request_id="once", labels={"a": "b"})).run
    request = {"requestId": "twice", "name": "n", "parameters": {"x": [1, None]}, "runTimeout": "60s"}
    request["notebookContent"] = in_json(content("1"))
    other = own.call("POST", "/v1/runs", request).json["run"]["runId"]
    finish(server.stub, other)
    again = same(own, envoy, "POST", "/v1/runs", request)
    assert again["run"]["runId"] == other
    path = f"/v1/runs/{run.run_id}"
    assert same(own, envoy, "GET", path)["run"]["state"] == "RUN_STATE_FAILED"
    assert same(own, envoy, "GET", "/v1/runs/latest")["run"]["runId"] == other
    assert len(same(own, envoy, "GET", "/v1/runs")["runs"]) == 2
    assert len(same(own, envoy, "GET", "/v1/runs?pageSize=1&states=RUN_STATE_FAILED")["runs"]) == 1
    assert same(own, envoy, "GET", f"{path}/output?format=error&max_bytes=9")["nextOffset"] == "9"
    assert same(own, envoy, "POST", f"{path}:kill", {"gracePeriod": "1s"})["alreadyEnded"]
    assert same(own, envoy, "GET", "/v1/info")["workers"] == 1
    for verb, wrong in [
        ("GET", "/v1/runs/none"),
        ("GET", "/v1/runs/none/output"),
        ("GET", f"{path}/output?format=none"),
        ("GET", "/v1/runs?pageSize=-1"),
        ("DELETE", "/v1/runs/none"),
        ("POST", "/v1/runs/none:kill"),
    ]:
        assert same(own, envoy, verb, wrong, {} if verb == "POST" else None)["details"]
    lines = {
        name: [json.loads(line) for line in caller.lines(f"{path}/progress", accept="application/x-ndjson")]
        for name, caller in (("own", own), ("envoy", envoy))
    }
    assert lines["own"]
    assert lines["own"] == lines["envoy"]
    assert envoy.call("DELETE", path).status == 200
    assert own.get(path).status == 404


def in_json(data: bytes) -> str:
    """Bytes in proto3's JSON mapping."""
    return base64.b64encode(data).decode()
