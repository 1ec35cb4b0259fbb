"""The server's pod with HTTP: what the components `http`, `shares` and `tls` add is served."""

import ssl
from collections.abc import Callable
from pathlib import Path

from tests.container.deployed import Deployed, certificate
from tests.container.manifests import FOLDER, composed, container_of, find, probes
from tests.support.http_client import HttpCaller
from tests.support.ports import free_port


def test_http_and_shares(deploy: Callable[..., Deployed], tmp_path: Path) -> None:
    """HTTP answers callers with a token, and the probe without one; the limits of shares are in force."""
    (tmp_path / "k8s").mkdir()
    found = composed(tmp_path / "k8s", FOLDER / "components/http", FOLDER / "components/shares")
    port = free_port()
    deployed = deploy(manifests=found, exchanged={"0.0.0.0:8080": f"127.0.0.1:{port}"})
    caller = HttpCaller(f"127.0.0.1:{port}", authorization=f"Bearer {deployed.token}")
    started = caller.call("POST", "/v1/runs")
    assert started.status == 200, started.body
    run_id = started.json["run"]["runId"]
    *_, (_, last) = caller.events(f"/v1/runs/{run_id}/progress")
    assert last.run_changed.failure.cause == 0
    assert caller.get("/v1/info").json["share"]["maxActive"] == 1
    anyone = HttpCaller(f"127.0.0.1:{port}")
    assert anyone.get("/v1/runs").status == 401
    probe = probes(container_of(find(found, "Deployment")))["readiness"]
    assert anyone.get(probe["httpGet"]["path"]).status == 200


def test_http_with_tls(deploy: Callable[..., Deployed], tmp_path: Path) -> None:
    """With `tls` after it, HTTP has the same certificate, and the readiness probe is content."""
    (tmp_path / "k8s").mkdir()
    found = composed(tmp_path / "k8s", FOLDER / "components/http", FOLDER / "components/tls")
    port = free_port()
    tls = certificate(*find(found, "Certificate")["spec"]["dnsNames"])
    deployed = deploy(manifests=found, tls=tls, exchanged={"0.0.0.0:8080": f"0.0.0.0:{port}"})
    context = ssl.create_default_context(cadata=tls["ca.crt"])
    caller = HttpCaller(f"localhost:{port}", context, authorization=f"Bearer {deployed.token}")
    assert caller.get("/v1/info").status == 200
    command = probes(container_of(find(found, "Deployment")))["readiness"]["exec"]["command"]
    command = [one.replace("localhost:50051", deployed.target) for one in command]
    assert deployed.pod.execute(*command) == "SERVING\n"
