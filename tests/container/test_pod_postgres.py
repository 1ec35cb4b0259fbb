"""The overlay with PostgreSQL: a pod without a volume has the history of the pod before it."""

from collections.abc import Callable
from pathlib import Path

from tests.container.deployed import Deployed
from tests.container.manifests import FOLDER, container_of, find, rendered, variables
from tests.container.test_pod import performed, printed_by
from tests.support.postgres import PASSWORD, ROLE, Postgres

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
