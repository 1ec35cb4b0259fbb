"""The component that sends runs to a Dask cluster: everything speaks TLS, and finds the others."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from container.manifests import FOLDER, Manifest, container_of, find, pod_of, rendered, variables
from support.calls import SECONDS

OVERLAY = FOLDER / "overlays/dask"
TELL = """
import json, sys, distributed.security
read = distributed.security.Security()
files = [read.get_tls_config_for_role(role) for role in sys.argv[1:]]
pairs = [[one["ca_file"], one["cert"], one["key"]] for one in files]
print(json.dumps([read.require_encryption, *pairs]))
"""
ROLES = ("scheduler", "worker")
NAME = "notebook-runner-dask"


def deployment(role: str) -> Manifest:
    """The Deployment of a role; the server's is the one without."""
    return find(rendered(OVERLAY), "Deployment", f"{NAME}-{role}" if role else "notebook-runner")


def mounted(role: str) -> set[str]:
    """The folders that hold Dask's certificates in the role's container."""
    spec = pod_of(deployment(role))["spec"]
    volumes = [one["name"] for one in spec["volumes"] if one.get("secret", {}).get("secretName") == NAME]
    mounts = container_of(deployment(role))["volumeMounts"]
    return {one["mountPath"] for one in mounts if one["name"] in volumes}


def variables_of_dask(role: str) -> dict[str, str]:
    """What the role's container is given by the ConfigMap that it names."""
    (source,) = container_of(deployment(role))["envFrom"]
    data: dict[str, str] = find(rendered(OVERLAY), "ConfigMap", source["configMapRef"]["name"])["data"]
    return data


@pytest.mark.parametrize("role", ["", *ROLES])
def test_dask_reads_them_as_tls(role: str) -> None:
    """Dask itself reads the variables so: TLS, required, with files that are mounted, for all three."""
    command = [sys.executable, "-c", TELL, "scheduler", "worker", "client"]
    environment = variables_of_dask(role)
    done = subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS, check=True)
    required, *pairs = json.loads(done.stdout)
    (folder,) = mounted(role)
    assert required is True
    assert pairs == [[f"{folder}/ca.crt", f"{folder}/tls.crt", f"{folder}/tls.key"]] * 3


@pytest.mark.parametrize("role", ROLES)
def test_the_commands_are_dasks(role: str) -> None:
    """Dask's own command has every option that is given to it."""
    init, dashes, program, name, *options = container_of(deployment(role))["command"]
    assert (init, dashes, program, name) == ("tini", "--", "dask", role)
    command = [str(Path(sys.executable).with_name("dask")), role, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout.split()
    given = {one.partition("=")[0] for one in options if one.startswith("--")}
    assert given <= {word.rstrip(",") for word in told}


def option(role: str, name: str) -> str:
    """The value of an option of the role's command."""
    (found,) = [one for one in container_of(deployment(role))["command"] if one.startswith(f"--{name}=")]
    value: str = found.partition("=")[2]
    return value


def test_everybody_finds_the_scheduler() -> None:
    """Server and workers name the Service, the Service the port, and the policy lets all of them through."""
    found = rendered(OVERLAY)
    (port,) = find(found, "Service", NAME)["spec"]["ports"]
    address = f"{NAME}:{port['port']}"
    assert variables(container_of(deployment("")))["NOTEBOOK_RUNNER_EXECUTOR"] == f"dask+tls://{address}"
    assert f"tls://{address}" in container_of(deployment("worker"))["command"]
    assert option("scheduler", "port") == str(port["port"])
    ports = {str(port["port"]), option("worker", "worker-port"), option("worker", "nanny-port")}
    policy = find(found, "NetworkPolicy", NAME)["spec"]
    (rule,) = policy["ingress"]
    assert {str(one["port"]) for one in rule["ports"]} == ports
    (peer,) = rule["from"]
    assert "namespaceSelector" not in peer
    (server,) = [
        one
        for one in find(found, "NetworkPolicy")["spec"]["egress"]
        if {str(each["port"]) for each in one["ports"]} == ports
    ]
    assert server["to"]


def test_a_worker_has_room_for_one_run() -> None:
    """A worker takes one notebook at a time, whose memory limit is below the container's; Dask kills none."""
    worker = container_of(deployment("worker"))
    assert (option("worker", "resources"), option("worker", "nthreads")) == ("notebook=1", "1")
    assert (option("worker", "nworkers"), option("worker", "memory-limit")) == ("1", "0")
    most = int(variables(container_of(deployment("")))["NOTEBOOK_RUNNER_MAX_MEMORY_LIMIT"])
    assert most + 2**29 <= int(worker["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30


def test_workers_grow_with_the_queue_and_none_is_taken_from_a_run() -> None:
    """The autoscaler decides on the number of workers alone, adds some, and takes none away."""
    scaler: dict[str, Any] = find(rendered(OVERLAY), "HorizontalPodAutoscaler", f"{NAME}-worker")["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment("worker")["metadata"]["name"]
    assert "replicas" not in deployment("worker")["spec"]
    assert scaler["behavior"]["scaleDown"] == {"selectPolicy": "Disabled"}
