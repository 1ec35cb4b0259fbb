"""The server's pod, as the base's manifests start it: closed, and at work for callers from outside."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner import Client, FailureCause, Printed, Run, RunState
from tests.container.deployed import Deployed
from tests.container.manifests import BASE, FOLDER, container_of, find, pod_of, rendered
from tests.container.podman import Pod, status
from tests.support.calls import SECONDS, inline
from tests.support.scrape import until

GRPCURL = str(Path(sys.executable).with_name("grpcurl"))
SERVICE = "notebook_runner.v1.NotebookRunner"
CAPABILITIES = ("Inh", "Prm", "Eff", "Bnd", "Amb")
ENDLESS = "import time\nprint('begun', flush=True)\ntime.sleep(600)"
BOMB = "held = []\nwhile True:\n    held.append(b'x' * 2**26)"
# It leaves a grandchild, which has no parent any more when it ends.
ORPHAN = 'import subprocess\nsubprocess.run(["sh", "-c", "setsid sleep 600 & exit 0"])'
WRITES = """
import pathlib
written = []
# Everybody may write into /var/tmp.
for place in ("/var/tmp/x", "/opt/notebook-runner/x", "/usr/x", "/notebooks/x", "/etc/x", "/x"):
    try:
        pathlib.Path(place).write_text("x")
        written.append(place)
    except OSError:
        pass
print(written)
"""
SECRETS = """
import pathlib
for place in ("/run/notebook-runner/tokens/tokens", "/var/lib/notebook-runner/state/notebook-runner.db"):
    try:
        print(pathlib.Path(place).read_bytes()[:8])
    except OSError:
        print("denied")
"""


def grpcurl(deployed: Deployed, method: str, data: Any = None, *, token: bool = True) -> str:
    """What grpcurl prints, on both streams; it has nothing but the address, and a token."""
    sent = ["-H", f"authorization: Bearer {deployed.token}"] if token else []
    command = [GRPCURL, "-plaintext", *sent, "-d", json.dumps(data or {}), deployed.target, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return str(done.stdout + done.stderr)


def performed(client: Client, *cells: str) -> Run:
    """A run of these cells, ended."""
    return client.start(inline(*cells).notebook_content).wait()


def test_grpcurl_alone_is_enough(deployed: Deployed) -> None:
    """An empty Start runs the notebook that comes with the manifests; it is followed and read by grpcurl."""
    run = json.loads(grpcurl(deployed, f"{SERVICE}/Start"))["run"]
    followed = grpcurl(deployed, f"{SERVICE}/Progress", {"run_id": run["run_id"]})
    assert "3: hello world" in followed
    assert "RUN_STATE_SUCCEEDED" in followed
    page = json.loads(grpcurl(deployed, f"{SERVICE}/Output", {"run_id": run["run_id"], "format": "html"}))
    assert page["media_type"].startswith("text/html")


def test_the_client_starts_follows_reads_and_kills(deployed: Deployed) -> None:
    """The Python client does from outside what it does everywhere."""
    with deployed.client() as client:
        ended = performed(client, "6 * 7")
        assert ended.ok, ended.failure
        assert "42" in str(ended.output())
        run = client.start(inline(ENDLESS).notebook_content)
        next(event for event in run.progress() if isinstance(event, Printed))
        assert run.kill().run.state is RunState.KILLED


def test_metrics_are_scraped_from_the_pod(deployed: Deployed) -> None:
    """The port that the manifests turn on answers with what the pod has done, and asks for no token."""
    with deployed.client() as client:
        performed(client, "1")
    page = until(deployed.pod, lambda page: page.total("runs_ended_total", state="succeeded") >= 1)
    assert page.value("workers") == 1


def test_callers_without_a_token_are_refused(deployed: Deployed) -> None:
    """Whoever reaches the port without a token is told nothing."""
    assert "Unauthenticated" in grpcurl(deployed, f"{SERVICE}/List", token=False)


def test_what_the_processes_may_do(deployed: Deployed) -> None:
    """No process has root's number, a capability, or a way to get one; system calls are filtered."""
    found = {process: told for process in deployed.pod.processes() if (told := status(process.pid))}
    assert found
    for process, told in found.items():
        assert set(told["Uid"]) == set(told["Gid"]) == {"65532"}, process
        assert {int(told[f"Cap{one}"][0], 16) for one in CAPABILITIES} == {0}, process
        assert (told["NoNewPrivs"], told["Seccomp"]) == (["1"], ["2"]), process


def test_the_root_is_not_to_be_written(deployed: Deployed) -> None:
    """A program in the container, a notebook neither, changes what the image and the ConfigMap brought."""
    assert deployed.pod.execute("python", "-c", WRITES).strip() == "[]"
    with deployed.client() as client:
        ended = performed(client, WRITES)
        assert printed_by(client, ended) == "[]\n"


def test_a_notebook_is_kept_from_tokens_and_history(deployed: Deployed) -> None:
    """Landlock holds in the container as outside, where Linux has it."""
    (told,) = [line for line in deployed.pod.log if line["event"].startswith("sandbox_")]
    assert told["processes_hidden"] is True
    assert told["files"] is Path("/sys/kernel/security/landlock").exists() or told["landlock"] > 0
    with deployed.client() as client:
        ended = performed(client, SECRETS)
        assert printed_by(client, ended) == "denied\n" * 2


def test_a_memory_bomb_ends_its_run_alone(deployed: Deployed) -> None:
    """The run's limit is below the container's: the run is CRASHED / OUT_OF_MEMORY, the server serves on."""
    before = deployed.pod.state
    with deployed.client() as client:
        ended = performed(client, BOMB)
        assert ended.state is RunState.CRASHED, ended
        assert ended.cause is FailureCause.OUT_OF_MEMORY
        assert f"its limit is {2**30}" in str(ended.failure)
        assert performed(client, "1").ok
    after = deployed.pod.state
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
    assert not after["OOMKilled"]


def test_no_zombies(deployed: Deployed) -> None:
    """What notebooks and probes leave behind is ended and reaped; the first process is an init."""
    deployed.pod.execute("sh", "-c", "sleep 0.1 & exit 0")
    with deployed.client() as client:
        assert performed(client, ORPHAN).ok
        # Once more, so that the first orphan has ended as well.
        assert performed(client, ORPHAN).ok
    found = deployed.pod.processes()
    assert found[0].command.startswith("tini -- notebook-runner-server")
    assert [one for one in found if one.state == "Z" or "sleep" in one.command] == []


def test_probes(deployed: Deployed) -> None:
    """Each probe of the manifests is content with a server that serves, and so is the image's own."""
    container = container_of(find(rendered(BASE), "Deployment"))
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        service = container[probe]["grpc"]["service"]
        with grpc.insecure_channel(deployed.target) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert deployed.pod.execute("notebook-runner", "health") == "SERVING\n"


def test_the_job_of_every_night(deployed: Deployed, image: str) -> None:
    """The CronJob's pod runs its notebook to the end; a second pod of the same job starts no second run."""
    found = rendered(FOLDER / "overlays/nightly")
    pod = pod_of(find(found, "CronJob", "notebook-runner-nightly"))
    for _ in range(2):
        with Pod(
            found,
            pod,
            image,
            # Kubernetes takes it from a label that its controller gives to the job's pods.
            environment={"NOTEBOOK_RUNNER_TARGET": deployed.target, "JOB": "night-1"},
            secrets={"notebook-runner-nightly": {"token": deployed.token}},
        ) as job:
            job.wait()
            assert "hello world" in job.text()
            assert job.state["ExitCode"] == 0
    with deployed.client() as client:
        (run,) = client.list(labels={"job": "nightly"})
        assert run.request_id == "night-1"


def printed_by(client: Client, run: Run) -> str:
    """What the run's last cell printed."""
    notebook = json.loads(client.output(run.id))
    return "".join(notebook["cells"][-1]["outputs"][0]["text"])
