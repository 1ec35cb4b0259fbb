"""The overlay with PostgreSQL: pods without a volume share a history, also with the pods before them."""

import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from notebook_runner import Client, FailureCause, RunState
from tests.container.deployed import Deployed
from tests.container.manifests import FOLDER, container_of, find, rendered, variables
from tests.container.podman import podman, run
from tests.container.test_pod import performed, printed_by
from tests.support.database_server import until
from tests.support.notebooks import notebook
from tests.support.postgres import PASSWORD, ROLE, Postgres

# More than the drain of a pod without runs takes.
SECONDS = 50
OVERLAY = FOLDER / "overlays/postgres"
READS = """
import os, pathlib
try:
    print(pathlib.Path({path!r}).read_text())
except OSError:
    print("denied")
print([name for name in os.environ if name.startswith("PG")])
"""


def service_file(postgres: Postgres) -> str:
    """What an operator writes into the database's Secret."""
    entry = {
        "host": "127.0.0.1",
        "port": str(postgres.port),
        "dbname": postgres.create_database(),
        "user": ROLE,
        "password": PASSWORD,
    }
    return "\n".join(["[notebook-runner]", *(f"{name}={value}" for name, value in entry.items()), ""])


def test_the_next_pod_has_the_history(
    deploy: Callable[..., Deployed], postgres: Postgres, tmp_path: Path
) -> None:
    """Nothing of the first pod is there but the database; no notebook reads the database's password."""
    found = rendered(OVERLAY)
    assert "PersistentVolumeClaim" not in {one["kind"] for one in found}
    secrets = {"notebook-runner-database": {"pg_service.conf": service_file(postgres)}}
    first = deploy(manifests=found, secrets=secrets)
    with first.client() as client:
        ended = performed(client, "print('first')")
        assert ended.ok, ended.failure
    first.remove()
    (tmp_path / "second").mkdir()
    second = Deployed(tmp_path / "second", first.image, found, secrets=secrets)
    try:
        second.play()
        path = variables(container_of(find(found, "Deployment")))["PGSERVICEFILE"]
        with second.client() as client:
            assert printed_by(client, client.get(ended.id)) == "first\n"
            assert printed_by(client, performed(client, READS.format(path=path))) == "denied\n[]\n"
    finally:
        second.remove()


def test_the_hook_of_the_manifests_is_in_the_image(image: str) -> None:
    """Kubernetes runs it before it ends a pod, in the container."""
    program, _ = container_of(find(rendered(OVERLAY), "Deployment"))["lifecycle"]["preStop"]["exec"][
        "command"
    ]
    run(image, program, "0")


def test_pods_are_replaced_and_lost(
    deploy: Callable[..., Deployed], postgres: Postgres, tmp_path: Path
) -> None:
    """No call is refused while a pod is replaced; the runs of a killed one end, and the others continue."""
    found = rendered(OVERLAY)
    secrets: dict[str, Mapping[str, str]] = {
        "notebook-runner-database": {"pg_service.conf": service_file(postgres)}
    }
    with ExitStack() as stack:
        first = deploy(manifests=found, secrets=secrets)
        # All pods have the same tokens.
        secrets["notebook-runner-tokens"] = first.secrets["notebook-runner-tokens"]

        def play(name: str) -> Deployed:
            (tmp_path / name).mkdir()
            made = Deployed(tmp_path / name, first.image, found, secrets=secrets)
            stack.callback(made.remove)
            made.play()
            return made

        def client(*pods: Deployed) -> Client:
            addresses = ",".join(pod.target.replace("localhost", "127.0.0.1") for pod in pods)
            made = stack.enter_context(Client(f"ipv4:{addresses}", token=first.token))
            until(lambda: made.info().workers == len(pods), first.pod.text)
            return made

        second = play("second")
        both = client(first, second)
        # Podman starts a container again that has ended by itself.
        stopped = stack.enter_context(ThreadPoolExecutor(1)).submit(
            podman, "stop", f"--time={SECONDS}", first.pod.container
        )
        while not stopped.done():
            assert performed(both, "print('during')").ok
        stopped.result()
        third = play("third")
        left = client(second, third)
        held = [left.start(notebook("import time", "time.sleep(1000)")) for _ in range(2)]
        until(lambda: {one.refresh().state for one in held} == {RunState.RUNNING}, second.pod.text)
        podman("kill", f"--signal={signal.SIGKILL.name}", second.pod.container)
        until(lambda: any(one.refresh().state is RunState.INTERRUPTED for one in held), third.pod.text)
        lost, kept = sorted((one.refresh() for one in held), key=lambda one: one.state is RunState.RUNNING)
        assert lost.failure is not None
        assert lost.failure.cause is FailureCause.SERVER_DIED
        assert kept.state is RunState.RUNNING
        assert left.kill(kept.id).run.state is RunState.KILLED
        assert performed(left, "print('after')").ok
