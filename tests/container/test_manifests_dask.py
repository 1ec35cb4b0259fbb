"""Runs on a Dask cluster, by Deployments or by the Dask operator: all speak TLS, and find the others."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from notebook_runner_server.execution.cluster.worker import CLOSE_SECONDS
from notebook_runner_server.execution.processes import KILL_DEADLINE
from tests.container.manifests import (
    FOLDER,
    Manifest,
    container_of,
    find,
    is_selected,
    pod_of,
    probes,
    rendered,
    variables,
    with_operated,
)
from tests.container.test_manifests_fit import GI, REST, bytes_of, number, seconds_of
from tests.support.calls import SECONDS
from tests.support.pages import REPOSITORY

TELL = """
import json, sys, dask, distributed.security
read = distributed.security.Security()
files = [read.get_tls_config_for_role(role) for role in sys.argv[1:]]
pairs = [[one["ca_file"], one["cert"], one["key"]] for one in files]
routes = [dask.config.get(f"distributed.{role}.http.routes") for role in ("scheduler", "worker")]
print(json.dumps([read.require_encryption, routes, *pairs]))
"""
ROLES = ("scheduler", "worker")
NAME = "notebook-runner-dask"
# Kubernetes waits 10, 20 and then 40 s before it starts a container again; with what a start takes.
RESTART_SECONDS = 60
# A worker's pod is scheduled, its image is there, and it has reported to the scheduler.
COME_SECONDS = 20


@pytest.fixture(params=["dask", "dask-operator"])
def found(request: pytest.FixtureRequest) -> list[Manifest]:
    """What an overlay brings, with what the operator makes of it."""
    return with_operated(rendered(FOLDER / "overlays" / request.param))


def deployment(found: list[Manifest], role: str) -> Manifest:
    """The Deployment of a role; the server's is the one without."""
    return find(found, "Deployment", f"{NAME}-{role}" if role else "notebook-runner")


def container(found: list[Manifest], role: str) -> Manifest:
    """The container of a role."""
    return container_of(deployment(found, role))


def option(found: list[Manifest], role: str, name: str) -> str:
    """The value of an option of the role's command."""
    command = container(found, role)["command"]
    (value,) = [one.partition("=")[2] for one in command if one.startswith(f"--{name}=")]
    return str(value)


def mounted(found: list[Manifest], role: str) -> set[str]:
    """The folders that hold Dask's certificates in the role's container."""
    spec = pod_of(deployment(found, role))["spec"]
    volumes = [
        one["name"] for one in spec["volumes"] if one.get("secret", {}).get("secretName") == f"{NAME}-tls"
    ]
    mounts = container(found, role)["volumeMounts"]
    return {one["mountPath"] for one in mounts if one["name"] in volumes}


def variables_of_dask(found: list[Manifest], role: str) -> dict[str, str]:
    """What the role's container is given by the ConfigMap that it names."""
    (source,) = container(found, role)["envFrom"]
    data: dict[str, str] = find(found, "ConfigMap", source["configMapRef"]["name"])["data"]
    return data


@pytest.mark.parametrize("role", ["", *ROLES])
def test_dask_reads_them_as_tls(found: list[Manifest], role: str) -> None:
    """Dask itself reads the variables so: TLS, required, by files that are mounted; HTTP for health alone."""
    command = [sys.executable, "-c", TELL, "scheduler", "worker", "client"]
    environment = variables_of_dask(found, role)
    done = subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS, check=True)
    required, routes, *pairs = json.loads(done.stdout)
    (folder,) = mounted(found, role)
    assert required is True
    assert routes == [["distributed.http.health"]] * 2
    assert pairs == [[f"{folder}/ca.crt", f"{folder}/tls.crt", f"{folder}/tls.key"]] * 3


@pytest.mark.parametrize("role", ROLES)
def test_the_commands_are_dasks(found: list[Manifest], role: str) -> None:
    """Dask's own command has every option that is given to it."""
    init, dashes, program, name, *options = container(found, role)["command"]
    assert (init, dashes, program, name) == ("tini", "--", "dask", role)
    command = [str(Path(sys.executable).with_name("dask")), role, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    given = {one.partition("=")[0] for one in options}
    assert given <= set(re.findall(r"--[a-z-]+", told))


def test_everybody_finds_the_scheduler(found: list[Manifest]) -> None:
    """Server and workers name the Service, which leads to the scheduler's pod and port."""
    service = find(found, "Service", NAME)["spec"]
    (port,) = service["ports"]
    address = f"{NAME}:{port['port']}"
    assert variables(container(found, ""))["NOTEBOOK_RUNNER_EXECUTOR"] == f"dask+tls://{address}"
    assert variables(container(found, "worker"))["DASK_SCHEDULER_ADDRESS"] == f"tls://{address}"
    assert option(found, "scheduler", "port") == str(port["port"])
    assert service["selector"].items() <= pod_of(deployment(found, "scheduler"))["metadata"]["labels"].items()
    named = {one["name"]: one["containerPort"] for one in container(found, "scheduler")["ports"]}
    assert named[port["targetPort"]] == port["port"]


def test_nobody_else_reaches_the_scheduler(found: list[Manifest]) -> None:
    """Dask's ports are open to the pods of the cluster and its server, and to no other."""
    ports = {
        int(option(found, role, f"{name}port"))
        for role, name in (("scheduler", ""), ("worker", "worker-"), ("worker", "nanny-"))
    }
    for role in ROLES:
        labels = pod_of(deployment(found, role))["metadata"]["labels"]
        own = [one for one in found if one["kind"] == "NetworkPolicy" and is_selected(one, labels)]
        rules = [rule for one in own for rule in one["spec"].get("ingress", [])]
        (rule,) = [rule for rule in rules if {port["port"] for port in rule["ports"]} & ports]
        assert {port["port"] for port in rule["ports"]} == ports
        (peer,) = rule["from"]
        assert "namespaceSelector" not in peer
        (expression,) = peer["podSelector"]["matchExpressions"]
        assert set(expression["values"]) == {"server", "dask-scheduler", "dask-worker"}
    out = find(found, "NetworkPolicy")["spec"]["egress"]
    assert [one["to"] for one in out if {port["port"] for port in one["ports"]} == ports]


def test_the_operator_asks_for_no_more_than_a_page() -> None:
    """Its Service has the ports by the names that it wants, and it reaches the one without TLS."""
    brought = rendered(FOLDER / "overlays/dask-operator")
    assert "HorizontalPodAutoscaler" not in {one["kind"] for one in brought}
    assert [one["metadata"]["name"] for one in brought if one["kind"] == "Deployment"] == ["notebook-runner"]
    found = with_operated(brought)
    cluster = find(found, "DaskCluster", NAME)["spec"]
    named = {one["name"]: one["containerPort"] for one in container(found, "scheduler")["ports"]}
    service = cluster["scheduler"]["service"]
    # Its schema takes names only.
    assert {one["name"]: named[one["targetPort"]] for one in service["ports"]} == {
        "tcp-comm": 8786,
        "http-dashboard": 8787,
    }
    labels = pod_of(deployment(found, "scheduler"))["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    (rule,) = find(found, "NetworkPolicy", f"{NAME}-operator")["spec"]["ingress"]
    assert rule["ports"] == [{"port": named["health"]}]
    assert cluster.get("idleTimeout", 0) == 0


def test_a_worker_has_room_for_one_run(found: list[Manifest]) -> None:
    """A worker takes one notebook at a time, whose memory limit is below the container's; Dask kills none."""
    worker = container(found, "worker")
    assert (option(found, "worker", "resources"), option(found, "worker", "nthreads")) == ("notebook=1", "1")
    assert (option(found, "worker", "nworkers"), option(found, "worker", "memory-limit")) == ("1", "0")
    most = bytes_of(variables(container(found, "")), "MAX_MEMORY_LIMIT")
    assert most + REST <= number(worker["resources"]["limits"]["memory"])


@pytest.mark.parametrize("role", ROLES)
def test_what_is_asked_for_fits(found: list[Manifest], role: str) -> None:
    """Requests are below limits, folders on the node's disk below theirs; probes end in time."""
    one, spec = container(found, role), pod_of(deployment(found, role))["spec"]
    for name, asked in one["resources"]["requests"].items():
        assert number(asked) <= number(one["resources"]["limits"][name])
    folders = sum(number(each["emptyDir"]["sizeLimit"]) for each in spec["volumes"] if "emptyDir" in each)
    assert folders < number(one["resources"]["limits"]["ephemeral-storage"]) <= 10 * GI
    for probe in probes(one).values():
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
        assert (probe["httpGet"]["path"], probe["httpGet"]["port"]) == ("/health", "health")
    (port,) = [each["containerPort"] for each in one["ports"] if each["name"] == "health"]
    assert option(found, role, "dashboard-address") == f":{port}"


def test_a_worker_works_where_the_server_says(found: list[Manifest]) -> None:
    """Notebooks are where the server has them, and what runs write is on a volume."""
    places = [
        {one["mountPath"] for one in container(found, role)["volumeMounts"]} - mounted(found, role)
        for role in ("", "worker")
    ]
    assert places[0] - places[1] == {"/run/notebook-runner/tokens"}
    assert option(found, "worker", "local-directory") in places[1]


def test_a_worker_that_goes_finishes_its_run(found: list[Manifest]) -> None:
    """It may take as long as the server lets a run take; then there is time for an end."""
    worker = container(found, "worker")
    *program, told = worker["lifecycle"]["preStop"]["exec"]["command"]
    assert program[:2] == ["python", "-m"]
    assert importlib.util.find_spec(program[2])
    assert {"DASK_SCHEDULER_ADDRESS", "DASK_WORKER_NAME"} <= {one["name"] for one in worker["env"]}
    assert option(found, "worker", "name") == "$(DASK_WORKER_NAME)"
    assert float(told) >= seconds_of(variables(container(found, "")), "MAX_RUN_TIMEOUT")
    grace = pod_of(deployment(found, "worker"))["spec"]["terminationGracePeriodSeconds"]
    assert grace > float(told) + CLOSE_SECONDS + KILL_DEADLINE


def test_a_run_outlives_the_restart_of_its_server(found: list[Manifest]) -> None:
    """Workers wait longer for a server than Kubernetes takes to start it once more."""
    assert seconds_of(variables(container(found, "")), "WORKER_TIMEOUT") > RESTART_SECONDS


def test_nobody_takes_the_scheduler_away(found: list[Manifest]) -> None:
    """With it all runs would end: there is never a second one, and no eviction."""
    budget = find(found, "PodDisruptionBudget", f"{NAME}-scheduler")["spec"]
    labels = pod_of(deployment(found, "scheduler"))["metadata"]["labels"]
    assert budget["minAvailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_workers_follow_the_runs() -> None:
    """As many workers as runs that have not ended, by a metric that there is; slowly fewer, quickly more."""
    found = rendered(FOLDER / "overlays/dask")
    scaler: dict[str, Any] = find(found, "HorizontalPodAutoscaler", f"{NAME}-worker")["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment(found, "worker")["metadata"]["name"]
    assert "replicas" not in deployment(found, "worker")["spec"]
    (metric,) = [one["external"] for one in scaler["metrics"]]
    assert metric == {
        # Of all states.
        "metric": {"name": "notebook_runner_runs"},
        "target": {"type": "AverageValue", "averageValue": "1"},
    }
    queue = int(variables(container(found, ""))["NOTEBOOK_RUNNER_QUEUE"])
    assert 1 <= scaler["minReplicas"] < scaler["maxReplicas"] < queue
    up, down = (scaler["behavior"][way] for way in ("scaleUp", "scaleDown"))
    assert all(one["periodSeconds"] > COME_SECONDS for one in up["policies"])
    assert down["stabilizationWindowSeconds"] > up["stabilizationWindowSeconds"]


def test_metrics_that_are_named_are_there() -> None:
    """The page names no metric that the server does not have, nor the autoscaler."""
    page = (REPOSITORY / "docs/how-to/observe.md").read_text()
    # Its table is held against the server by the tests of observability.
    known = set(re.findall(r"^\| `(notebook_runner_\w+)`", page, re.MULTILINE))
    for file in ("docs/how-to/deploy.md", "k8s/components/dask/workers.yaml"):
        named = set(re.findall(r"\bnotebook_runner_(?!server\b)\w+", (REPOSITORY / file).read_text()))
        assert "notebook_runner_runs" in named <= known, file
