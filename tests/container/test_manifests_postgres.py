"""The history in PostgreSQL: the server finds it by a file that only it reads, and needs no volume."""

import configparser

import pytest

from notebook_runner_server.config import Settings
from notebook_runner_server.runs.postgres.database import CONTENT_READERS, READERS
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
)
from tests.container.test_manifests_fit import bytes_of, number
from tests.support.pages import REPOSITORY

DATABASE = "notebook-runner-database"
HEADLESS = "notebook-runner-headless"
# One writes, some read, one renews the lease, one listens for hints, and one sends them.
CONNECTIONS = READERS + CONTENT_READERS + 4
PAGE = REPOSITORY / "docs/how-to/postgres.md"


@pytest.fixture(params=["postgres", "postgres-development"])
def found(request: pytest.FixtureRequest) -> list[Manifest]:
    """What an overlay brings."""
    return rendered(FOLDER / "overlays" / request.param)


@pytest.fixture
def development() -> list[Manifest]:
    """What the overlay with a database brings."""
    return rendered(FOLDER / "overlays/postgres-development")


def mounted(deployment: Manifest) -> dict[str, str]:
    """The files of the database's Secret in a container: their paths, with their keys."""
    container = container_of(deployment)
    places = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    return {
        f"{places[volume['name']]}/{item['path']}": item["key"]
        for volume in pod_of(deployment)["spec"]["volumes"]
        if volume.get("secret", {}).get("secretName") == DATABASE
        for item in volume["secret"]["items"]
    }


def documented() -> configparser.SectionProxy:
    """The entry of the service file that the page tells an operator to create."""
    _, _, rest = PAGE.read_text().partition("[notebook-runner]\n")
    parser = configparser.ConfigParser()
    parser.read_string("[notebook-runner]\n" + rest.partition("EOF")[0])
    return parser["notebook-runner"]


def test_the_server_reads_the_database_from_its_secret(found: list[Manifest]) -> None:
    """Its URL names an entry of the file that is mounted; the pod's description has no password."""
    deployment = find(found, "Deployment")
    given = variables(container_of(deployment))
    assert given["NOTEBOOK_RUNNER_STORE"] == f"postgresql:///?service={documented().name}"
    assert mounted(deployment) == {given["PGSERVICEFILE"]: "pg_service.conf"}


def test_the_history_needs_no_volume(found: list[Manifest]) -> None:
    """There is none to move when a node is lost, and the next pod comes soon after the lease."""
    assert "notebook-runner-history" not in {one["metadata"]["name"] for one in found}
    spec = pod_of(find(found, "Deployment"))["spec"]
    lease = Settings().replica_timeout
    assert {one["key"].rpartition("/")[2] for one in spec["tolerations"]} == {"unreachable", "not-ready"}
    assert all(lease < one["tolerationSeconds"] < 60 for one in spec["tolerations"])


def test_servers_are_replaced_one_after_the_other(found: list[Manifest]) -> None:
    """No pod leaves before its successor serves, and clients do not come to one that has closed its port."""
    deployment = find(found, "Deployment")
    spec = deployment["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }
    assert find(found, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    container = container_of(deployment)
    readiness = probes(container)["readiness"]
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause > readiness["periodSeconds"]


def test_servers_are_on_different_nodes(found: list[Manifest]) -> None:
    """If there are several nodes; the constraint counts the pods of the Deployment, of one version."""
    pod = pod_of(find(found, "Deployment"))
    (constraint,) = pod["spec"]["topologySpreadConstraints"]
    assert (constraint["topologyKey"], constraint["maxSkew"]) == ("kubernetes.io/hostname", 1)
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
    assert constraint["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert constraint["matchLabelKeys"] == ["pod-template-hash"]


def test_clients_find_each_server(found: list[Manifest]) -> None:
    """The headless Service selects the pods of the other one, at the same port; the certificate names it."""
    normal, headless = find(found, "Service")["spec"], find(found, "Service", HEADLESS)["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["selector"] == normal["selector"]
    assert headless["ports"] == [{"name": "grpc", "port": 50051, "targetPort": "grpc"}]
    certificate = find(rendered(FOLDER / "overlays/tls"), "Certificate")["spec"]
    assert {HEADLESS, f"{HEADLESS}.notebook-runner.svc"} <= set(certificate["dnsNames"])
    assert f"dns:///{HEADLESS}:50051" in PAGE.read_text()


def test_servers_follow_the_runs(found: list[Manifest]) -> None:
    """As many workers as runs that have not ended, by a metric that there is; slowly fewer, quickly more."""
    deployment = find(found, "Deployment")
    scaler = find(found, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaler["minReplicas"] == deployment["spec"]["replicas"]
    (metric,) = [one["external"] for one in scaler["metrics"]]
    name = metric["metric"]["name"]
    assert f"| `{name}` |" in (REPOSITORY / "docs/how-to/observe.md").read_text()
    assert name in PAGE.read_text()
    given = variables(container_of(deployment))
    workers = given.get("NOTEBOOK_RUNNER_WORKERS", str(Settings().workers))
    assert metric["target"] == {"type": "AverageValue", "averageValue": workers}
    assert scaler["minReplicas"] < scaler["maxReplicas"] < int(given["NOTEBOOK_RUNNER_QUEUE"])
    # PostgreSQL's default, of which three are kept for superusers.
    surge = deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    assert (scaler["maxReplicas"] + surge) * CONNECTIONS <= 100 - 3
    assert f"at most {CONNECTIONS} connections" in PAGE.read_text()
    up, down = (scaler["behavior"][way] for way in ("scaleUp", "scaleDown"))
    assert down["stabilizationWindowSeconds"] > up["stabilizationWindowSeconds"]
    assert [one["value"] for one in down["policies"]] == [1]


def test_the_database_is_reached_by_the_server_alone(development: list[Manifest]) -> None:
    """The server's policy lets it out to the database's pod, whose policy lets nobody else in."""
    labels = pod_of(find(development, "Deployment", DATABASE))["metadata"]["labels"]
    out = find(development, "NetworkPolicy")["spec"]["egress"]
    (rule,) = [one for one in out if {port["port"] for port in one["ports"]} == {5432}]
    (peer,) = rule["to"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    (policy,) = [one for one in development if one["kind"] == "NetworkPolicy" and is_selected(one, labels)]
    (rule,) = policy["spec"]["ingress"]
    (peer,) = rule["from"]
    server = pod_of(find(development, "Deployment"))["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= server.items()
    assert not peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert "egress" not in policy["spec"]


def test_the_database_is_what_the_page_names(development: list[Manifest]) -> None:
    """Host, database and user of the service file are those of the Service and of the pod."""
    entry = documented()
    service = find(development, "Service", entry["host"])["spec"]
    deployment = find(development, "Deployment", DATABASE)
    assert service["selector"].items() <= pod_of(deployment)["metadata"]["labels"].items()
    given = variables(container_of(deployment))
    assert (given["POSTGRES_DB"], given["POSTGRES_USER"]) == (entry["dbname"], entry["user"])
    assert mounted(deployment) == {given["POSTGRES_PASSWORD_FILE"]: "password"}


def test_what_the_database_needs_fits(development: list[Manifest]) -> None:
    """Its volume is larger than the history may be, and its folders on the node than its limit."""
    deployment = find(development, "Deployment", DATABASE)
    container = container_of(deployment)
    claim = find(development, "PersistentVolumeClaim", DATABASE)
    size = number(claim["spec"]["resources"]["requests"]["storage"])
    assert bytes_of(variables(container_of(find(development, "Deployment"))), "MAX_STATE_BYTES") < size
    (mount,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "data"]
    assert variables(container)["PGDATA"].startswith(f"{mount}/")
    for name, asked in container["resources"]["requests"].items():
        assert number(asked) <= number(container["resources"]["limits"][name])
    volumes = pod_of(deployment)["spec"]["volumes"]
    folders = sum(number(one["emptyDir"]["sizeLimit"]) for one in volumes if "emptyDir" in one)
    assert folders < number(container["resources"]["limits"]["ephemeral-storage"])
    for probe in probes(container).values():
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
