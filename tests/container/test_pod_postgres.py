"""The overlay with PostgreSQL: pods without a volume share a history, also with the pods before them."""

import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from notebook_runner import Client, FailureCause, Run, RunState
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


class Scaled:
    """Pods of one Deployment, which share a database and the tokens.

    Args:
        deploy: Starts the first pod.
        postgres: The database server.
        folder: For the files of the pods.
        stack: Ends the pods and the clients.
    """

    def __init__(
        self, deploy: Callable[..., Deployed], postgres: Postgres, folder: Path, stack: ExitStack
    ) -> None:
        self._found = rendered(OVERLAY)
        self._folder = folder
        self._stack = stack
        self._secrets: dict[str, Mapping[str, str]] = {
            "notebook-runner-database": {"pg_service.conf": service_file(postgres)}
        }
        self.first = deploy(manifests=self._found, secrets=self._secrets)
        self._pods = [self.first]
        self._secrets["notebook-runner-tokens"] = self.first.secrets["notebook-runner-tokens"]

    def play(self, name: str) -> Deployed:
        """Starts one more pod."""
        folder = self._folder / name
        folder.mkdir()
        made = Deployed(folder, self.first.image, self._found, secrets=self._secrets)
        self._stack.callback(made.remove)
        made.play()
        self._pods.append(made)
        return made

    def client(self, *pods: Deployed, workers: int = 0) -> Client:
        """A client of these pods, once each of them knows so many workers (0: one for each)."""
        addresses = [pod.target.replace("localhost", "127.0.0.1") for pod in pods]
        for address in addresses:
            with Client(address, token=self.first.token) as one:
                until(lambda it=one: it.info().workers == (workers or len(pods)), self.first.pod.text)  # type: ignore[misc] # the default is a client
        return self._stack.enter_context(Client(f"ipv4:{','.join(addresses)}", token=self.first.token))

    def until_states(self, runs: Sequence[Run], **counts: int) -> None:
        """Waits until so many of these runs are in each state."""

        def found() -> Counter[str]:
            return Counter(run.refresh().state.value for run in runs)

        until(lambda: found() == counts, lambda: (found(), *(pod.pod.text() for pod in self._pods)))

    def stop(self, pod: Deployed) -> Future[str]:
        """Ends a pod with SIGTERM, in the background."""
        operator = self._stack.enter_context(ThreadPoolExecutor(1))
        return operator.submit(podman, "stop", f"--time={SECONDS}", pod.pod.container)


def test_pods_are_replaced_and_lost(
    deploy: Callable[..., Deployed], postgres: Postgres, tmp_path: Path
) -> None:
    """No call is refused while a pod is replaced; the runs of a killed one end, and the others continue."""
    with ExitStack() as stack:
        pods = Scaled(deploy, postgres, tmp_path, stack)
        first, second = pods.first, pods.play("second")
        both = pods.client(first, second)
        # Podman starts a container again that has ended by itself.
        stopped = pods.stop(first)
        while not stopped.done():
            assert performed(both, "print('during')").ok
        stopped.result()
        third = pods.play("third")
        left = pods.client(second, third)
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


def test_pods_are_added_and_taken_away(
    deploy: Callable[..., Deployed], postgres: Postgres, tmp_path: Path
) -> None:
    """One more pod executes what waits and answers for all; no call and no run is lost with those that go."""
    with ExitStack() as stack:
        pods = Scaled(deploy, postgres, tmp_path, stack)
        second = pods.play("second")
        both = pods.client(pods.first, second)
        held = [both.start(notebook("import time", "time.sleep(1000)")) for _ in range(3)]
        pods.until_states(held, running=2, queued=1)
        third = pods.play("third")
        added = pods.client(third, workers=3)
        pods.until_states(held, running=3)
        assert {run.id for run in added.runs()} == {one.id for one in held}
        for one in held:
            assert added.kill(one.id).run.state is RunState.KILLED
            assert added.get(one.id).state is both.get(one.id).state is RunState.KILLED
        every = pods.client(pods.first, second, third)
        # Each pod that goes has a run, and more of them wait.
        waiting = [every.start(notebook("import time; time.sleep(1)", f"print({n})")) for n in range(6)]
        until(lambda: sum(one.refresh().state is not RunState.QUEUED for one in waiting) >= 3, third.pod.text)
        stopped = [pods.stop(pod) for pod in (pods.first, second)]
        while not all(one.done() for one in stopped):
            waiting.append(every.start(notebook(f"print({len(waiting)})")))
            assert waiting[-1].wait().ok
        for ended, pod in zip(stopped, (pods.first, second), strict=True):
            ended.result()
            assert pod.pod.state["ExitCode"] == 0, pod.pod.text()
        left = pods.client(third)
        for number, one in enumerate(waiting):
            assert one.wait().ok
            assert printed_by(left, left.get(one.id)) == f"{number}\n"
        assert {run.id for run in left.runs()} == {one.id for one in (*held, *waiting)}
