"""Time-outs and limits of the manifests, each against the one that it must exceed."""

import re
from pathlib import Path
from typing import Any

import pytest

from notebook_runner.cli import main as client_command
from notebook_runner_server.api.limits import CallerLimits
from notebook_runner_server.app import STREAM_GRACE
from notebook_runner_server.config import Settings
from notebook_runner_server.execution.processes import KILL_DEADLINE
from notebook_runner_server.http_api.listener import IDLE_SECONDS
from notebook_runner_server.logs import LAST_SECONDS
from notebook_runner_server.observability.traces import FLUSH_SECONDS
from tests.container.manifests import FOLDER, Manifest, container_of, find, probes, rendered, variables

GI = 2**30
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": GI, "": 1, "m": 0.001}
DURATIONS = {"": 1, "s": 1, "m": 60, "h": 3600}
# What the server itself, a warm kernel and an export may take beside the run, in bytes.
REST = GI // 2
# The longest grace period of a Kill through nginx that the page on deployment promises, in seconds.
GRACE_PERIOD = 600


# How long ingress-nginx keeps an idle connection to the server by default, in seconds.
NGINX_KEEPS = 60

# The limits of the time of a run.
TIMES = ("RUN", "CELL", "OUTPUT")


def number(quantity: Any, units: dict[str, float] | dict[str, int] = UNITS) -> float:
    """A quantity of Kubernetes, or a duration, as a number."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    assert match, quantity
    return float(match[1]) * units[match[2]]


def seconds(duration: str) -> float:
    """A duration in seconds; without a unit, it is in seconds."""
    return number(duration, DURATIONS)


def bytes_of(given: dict[str, str], name: str) -> float:
    """A size that the server has as a setting, in bytes."""
    return number(given[f"NOTEBOOK_RUNNER_{name}"])


def seconds_of(given: dict[str, str], name: str) -> float:
    """A time that the server has as a setting, in seconds."""
    return seconds(given[f"NOTEBOOK_RUNNER_{name}"])


def test_the_end_of_a_pod_waits_for_its_drain(folder: Path, server: Manifest) -> None:
    """Kubernetes kills a pod only after its hook, the drain, open calls, all processes, spans and lines."""
    spec = find(rendered(folder), "Deployment")["spec"]["template"]["spec"]
    drain = seconds_of(variables(server), "DRAIN_TIMEOUT")
    if "lifecycle" in server:
        program, pause = server["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "sleep"
        drain += seconds(pause)
    # The last lines have a place to wait for, and then their writing.
    after = STREAM_GRACE + KILL_DEADLINE + FLUSH_SECONDS + 2 * LAST_SECONDS
    assert spec["terminationGracePeriodSeconds"] > drain + after


def test_probes_wait_long_enough(server: Manifest) -> None:
    """No probe takes longer than until the next, none ends a busy server early, and recovery has its time."""
    found = probes(server)
    option = next(one for one in client_command.commands["health"].params if one.name == "timeout")
    command = option.type.convert(option.default, option, None)
    for probe in found.values():
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
        assert "exec" not in probe or probe["timeoutSeconds"] > command
    longest = {name: probe["periodSeconds"] * probe["failureThreshold"] for name, probe in found.items()}
    assert longest["startup"] >= 300
    assert longest["liveness"] >= 120
    assert longest["readiness"] < longest["liveness"]


def test_memory_fits(server: Manifest) -> None:
    """A run's memory limit, once for each worker, is below the container's, with room for the rest."""
    given = variables(server)
    limit, most = bytes_of(given, "MEMORY_LIMIT"), bytes_of(given, "MAX_MEMORY_LIMIT")
    workers = int(given.get("NOTEBOOK_RUNNER_WORKERS", Settings().workers))
    resources = server["resources"]
    assert 0 < limit <= most
    assert workers * most + REST <= number(resources["limits"]["memory"])
    assert set(resources["requests"]) >= {"cpu", "memory"}
    for name, asked in resources["requests"].items():
        assert number(asked) <= number(resources["limits"][name])
    assert (
        0 < float(given["NOTEBOOK_RUNNER_PROCESS_LIMIT"]) <= float(given["NOTEBOOK_RUNNER_MAX_PROCESS_LIMIT"])
    )


def test_disks_fit(folder: Path, server: Manifest) -> None:
    """The history's bound is below its volume, and the folders on the node's disk below their limit."""
    found = rendered(folder)
    given = variables(server)
    state, artefacts = bytes_of(given, "MAX_STATE_BYTES"), bytes_of(given, "MAX_ARTEFACT_BYTES")
    volumes = find(found, "Deployment")["spec"]["template"]["spec"]["volumes"]
    (history,) = [one for one in volumes if one["name"] == "history"]
    if "emptyDir" in history:
        # The history is in a database.
        assert 0 < artefacts < number(history["emptyDir"]["sizeLimit"]) - GI / 2
    else:
        claim = find(found, "PersistentVolumeClaim", history["persistentVolumeClaim"]["claimName"])
        size = number(claim["spec"]["resources"]["requests"]["storage"])
        # A file system keeps some of its volume for itself, and the alert fires below half a GiB.
        assert 0 < state + artefacts < size * 0.93 - GI / 2
    folders = sum(number(one["emptyDir"]["sizeLimit"]) for one in volumes if "emptyDir" in one)
    assert folders < number(server["resources"]["limits"]["ephemeral-storage"])


def test_no_run_is_endless(server: Manifest) -> None:
    """Run, cell and silence have a limit by default, and a ceiling above it; no cell outlives its run."""
    given = variables(server)
    for name in TIMES:
        assert 0 < seconds_of(given, f"{name}_TIMEOUT") <= seconds_of(given, f"MAX_{name}_TIMEOUT"), name
    for name in ("CELL", "OUTPUT"):
        assert seconds_of(given, f"{name}_TIMEOUT") <= seconds_of(given, "RUN_TIMEOUT"), name
        assert seconds_of(given, f"MAX_{name}_TIMEOUT") <= seconds_of(given, "MAX_RUN_TIMEOUT"), name


def test_the_job_outlives_its_run() -> None:
    """The job's deadline is above its run's, and a late one has ended before the next; its run is kept."""
    found = rendered(FOLDER / "overlays/nightly")
    cron = find(found, "CronJob", "notebook-runner-nightly")
    job = cron["spec"]["jobTemplate"]["spec"]
    (timeout,) = [one for one in container_of(cron)["command"] if one.startswith("--run-timeout=")]
    asked = seconds(timeout.partition("=")[2])
    assert job["activeDeadlineSeconds"] > asked
    assert asked <= seconds_of(variables(container_of(find(found, "Deployment"))), "MAX_RUN_TIMEOUT")
    day = 24 * 3600
    assert cron["spec"]["startingDeadlineSeconds"] + job["activeDeadlineSeconds"] < day
    assert Settings().retention > day
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"


@pytest.mark.parametrize("name", ["grpc", "http"])
def test_nginx_passes_on_what_the_server_accepts(name: str) -> None:
    """The largest Start fits, and nginx waits longer than the server is silent in a stream or an export."""
    found = rendered(FOLDER / "overlays/ingress")
    annotations = find(found, "Ingress", f"notebook-runner-{name}")["metadata"]["annotations"]
    body, silence = (
        annotations[f"nginx.ingress.kubernetes.io/proxy-{one}"] for one in ("body-size", "read-timeout")
    )
    settings = Settings()
    limits = CallerLimits(settings.max_notebook_bytes, settings.max_input_files_bytes, 1)
    base64 = 4 / 3 if name == "http" else 1
    assert number(body, {"m": 2**20}) > limits.max_message_bytes * base64
    kill = GRACE_PERIOD + KILL_DEADLINE
    assert seconds(silence) > max(kill, settings.export_timeout, 2 * settings.heartbeat_interval)


def test_nginx_closes_idle_connections_first() -> None:
    """A connection that the server closes under a request of nginx would be a failed call."""
    assert IDLE_SECONDS > NGINX_KEEPS


def test_certificates_are_renewed_in_time() -> None:
    """A certificate is renewed before it ends, and its authority outlives it; the probes' name is in it."""
    found = rendered(FOLDER / "overlays/tls")
    authority = find(found, "Certificate", "notebook-runner-ca")["spec"]
    leaf = find(found, "Certificate")["spec"]
    assert seconds(leaf["renewBefore"]) < seconds(leaf["duration"]) < seconds(authority["duration"])
    assert {"localhost", "notebook-runner"} <= set(leaf["dnsNames"])
    assert {"server auth", "client auth"} <= set(leaf["usages"])


def test_metrics_are_asked_for_in_time() -> None:
    """Prometheus gives up on a page before it asks for the next, and finds the port by its name."""
    found = rendered(FOLDER / "overlays/monitoring")
    monitor = find(found, "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    assert seconds(endpoint["scrapeTimeout"]) < seconds(endpoint["interval"])
    service = find(found, "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
