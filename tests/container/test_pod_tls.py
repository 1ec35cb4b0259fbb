"""The overlay with TLS: nothing is insecure, its probes are answered, and clients trust the server."""

from collections.abc import Callable

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.container.deployed import Deployed, certificate
from tests.container.manifests import FOLDER, container_of, find, probes, rendered
from tests.container.podman import SECONDS

OVERLAY = FOLDER / "overlays/tls"


def test_tls(deploy: Callable[..., Deployed]) -> None:
    """A run goes over TLS, each probe of the overlay is content, and without TLS there is no answer."""
    names = find(rendered(OVERLAY), "Certificate")["spec"]["dnsNames"]
    deployed = deploy(manifests=rendered(OVERLAY), tls=certificate(*names))
    with deployed.client() as client:
        run = client.start()
        assert run.wait().ok
    for probe in probes(container_of(find(rendered(OVERLAY), "Deployment"))).values():
        command = [one.replace("localhost:50051", deployed.target) for one in probe["exec"]["command"]]
        assert deployed.pod.execute(*command) == "SERVING\n"
    with grpc.insecure_channel(deployed.target) as channel, pytest.raises(grpc.RpcError) as refused:
        rpc.NotebookRunnerStub(channel).List(pb.ListRequest(), timeout=SECONDS)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
