"""The manifests are valid for Kubernetes, restricted in full, and closed."""

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import nbformat
import pytest

from notebook_runner._version import __version__
from notebook_runner.cli import main as client_command
from notebook_runner_server.api.access_file import AccessFileError
from notebook_runner_server.api.oidc_options import parse_rules
from notebook_runner_server.api.server import LIVENESS, READINESS, SERVICE
from notebook_runner_server.api.shares_file import parse_shares
from notebook_runner_server.config import ENVIRONMENT_PREFIX, Settings
from notebook_runner_server.http_api.bindings import bindings
from notebook_runner_server.http_api.health import HEALTH_SERVICES
from notebook_runner_server.webhooks.receivers_file import parse_receivers
from tests.container.manifests import (
    BASE,
    COMPONENTS,
    FOLDER,
    OVERLAYS,
    Manifest,
    composed,
    container_of,
    find,
    is_selected,
    pod_of,
    probes,
    rendered,
    variables,
    with_operated,
)
from tests.support.pages import REPOSITORY
from tests.support.receivers import new_secret

# The oldest that has all that the manifests use (1.31: podFailurePolicy, unhealthyPodEvictionPolicy), one
# between, and the newest whose schemas there are.
VERSIONS = ("1.31", "1.34", "1.37")
# Kinds that clusters get from elsewhere, so that Kubernetes has no schema of them.
CUSTOM = {
    "cert-manager.io/v1": {"Certificate", "Issuer"},
    "gateway.networking.k8s.io/v1": {"Gateway", "GRPCRoute"},
    "kubernetes.dask.org/v1": {"DaskCluster"},
    "monitoring.coreos.com/v1": {"PrometheusRule", "ServiceMonitor"},
}
# The overlays with HTTP.
WITH_HTTP = {"http", "ingress"}
DASK_PORTS = {8786, 8788, 8789}
DATABASE_PORTS = {5432}
# A pod of another project's image.
DATABASE = "notebook-runner-database"
# Variables that are read by others than the server's own settings.
OTHERS = {f"{ENVIRONMENT_PREFIX}_METRICS_LISTEN", "PGSERVICEFILE"}
HTTP = FOLDER / "components/http"
INGRESS = FOLDER / "components/ingress"
NIGHTLY = FOLDER / "components/nightly"
TLS = FOLDER / "components/tls"
# Addresses that only a cluster's own network or its provider gives to something.
PRIVATE = (
    "10.96.0.1",
    "172.20.0.10",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "127.0.0.1",
    "fd00:ec2::254",
)
PUBLIC = ("151.101.0.223", "8.8.8.8", "2a04:4e42::223")
API_SERVER_PORTS = {443, 6443}
WORKLOADS = {"Deployment", "CronJob"}


def workloads(folder: Path) -> list[Manifest]:
    """What starts pods."""
    return [one for one in with_operated(rendered(folder)) if one["kind"] in WORKLOADS]


@pytest.mark.parametrize("version", VERSIONS)
def test_valid(folder: Path, version: str) -> None:
    """Kubernetes' own schemas take every resource, strictly; the rest are kinds that are named here."""
    for each in with_operated(rendered(folder)):
        if each["kind"] not in CUSTOM.get(each["apiVersion"], set()):
            kubernetes_validate.validate(each, version, strict=True)


def test_a_mistake_is_seen() -> None:
    """The schemas are strict: a field that does not exist is refused."""
    deployment = find(rendered(BASE), "Deployment")
    deployment["spec"]["template"]["spec"]["replicas"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


def test_every_component_goes_with_the_others(tmp_path: Path) -> None:
    """An operator can have all components at once, and none undoes what another has done."""
    found = composed(tmp_path, *COMPONENTS)
    kinds = {one["kind"] for one in found}
    assert {"Certificate", "ServiceMonitor", "GRPCRoute"} <= kinds
    assert find(found, "Deployment")["spec"]["template"]["spec"]["runtimeClassName"] == "gvisor"
    policy = find(found, "NetworkPolicy")["spec"]
    assert (len(policy["ingress"]), len(policy["egress"])) == (4, 4)


def test_each_component_has_an_overlay() -> None:
    """What there is can be applied as it is."""
    assert {one.name for one in COMPONENTS} <= {one.name for one in OVERLAYS}


def test_everything_is_in_one_namespace(folder: Path) -> None:
    """All of it is in the namespace that the base makes, which enforces the restricted standard."""
    found = rendered(folder)
    labels = find(found, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    names = {one["metadata"].get("namespace") for one in found if one["kind"] != "Namespace"}
    assert names == {"notebook-runner"}


def test_restricted_standard(folder: Path) -> None:
    """Each control of the Pod Security Standards, baseline and restricted, field by field."""
    for workload in workloads(folder):
        spec = pod_of(workload)["spec"]
        for field in ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"):
            assert field not in spec
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] != 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for field in ("sysctls", "seLinuxOptions", "windowsOptions", "appArmorProfile", "supplementalGroups"):
            assert field not in context
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            own = container["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not any("hostPort" in port for port in container.get("ports", []))
            assert all(set(hook) == {"exec"} for hook in container.get("lifecycle", {}).values())
            checks = [container[key] for key in container if key.endswith("Probe")]
            assert not any("host" in check.get("httpGet", {}) for check in checks)


def test_no_pod_can_speak_to_kubernetes(folder: Path) -> None:
    """No pod has a token of its service account, nor variables that begin like settings."""
    assert find(rendered(folder), "ServiceAccount")["automountServiceAccountToken"] is False
    for workload in workloads(folder):
        spec = pod_of(workload)["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["serviceAccountName"] == "notebook-runner"


def test_the_network_is_closed(folder: Path) -> None:
    """Each pod may ask for names, and reach the pods that it needs; only components open more."""
    policies = [one for one in rendered(folder) if one["kind"] == "NetworkPolicy"]
    for workload in workloads(folder):
        labels = pod_of(workload)["metadata"]["labels"]
        own = [one["spec"] for one in policies if is_selected(one, labels)]
        assert own
        assert {kind for one in own for kind in one["policyTypes"]} == {"Ingress", "Egress"}
        for rule in (rule for one in own for rule in one.get("egress", [])):
            assert rule["to"]
            ports = {port["port"] for port in rule["ports"]}
            if any("ipBlock" in peer for peer in rule["to"]):
                assert (folder.name, ports) in (
                    ("internet", {443}),
                    ("oidc", API_SERVER_PORTS),
                    ("webhooks", {443}),
                )
            else:
                assert ports in ({53}, {50051}, DASK_PORTS, DATABASE_PORTS)
        for rule in (rule for one in own for rule in one.get("ingress", [])):
            assert rule["from"]
            assert rule["ports"]


@pytest.mark.parametrize(
    ("component", "opened"), [("internet", {"server", "dask-worker"}), ("webhooks", {"server"})]
)
def test_the_internet_is_public_addresses(tmp_path: Path, component: str, opened: set[str]) -> None:
    """To what runs notebooks or sends webhooks, public addresses are open, no private or metadata address."""
    found = composed(tmp_path, FOLDER / "components/dask", NIGHTLY, FOLDER / "components" / component)
    policy = find(found, "NetworkPolicy", f"notebook-runner-{component}")
    (rule,) = policy["spec"]["egress"]
    blocks = [peer["ipBlock"] for peer in rule["to"]]

    def is_open(address: str) -> bool:
        asked = ip_address(address)
        return any(
            asked in ip_network(block["cidr"])
            and not any(asked in ip_network(one) for one in block.get("except", []))
            for block in blocks
        )

    assert {address for address in (*PRIVATE, *PUBLIC) if is_open(address)} == set(PUBLIC)
    reached = {
        labels["app.kubernetes.io/component"]
        for one in found
        if one["kind"] in WORKLOADS and is_selected(policy, labels := pod_of(one)["metadata"]["labels"])
    }
    assert reached == opened


def test_service_accounts_as_callers() -> None:
    """The component's settings name the files that it mounts, and its rules are valid."""
    found = rendered(FOLDER / "overlays" / "oidc")
    deployment = find(found, "Deployment")
    set_to, spec = variables(container_of(deployment)), pod_of(deployment)["spec"]
    mounts = {one["name"]: one["mountPath"] for one in container_of(deployment)["volumeMounts"]}
    files = set()
    for volume in spec["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            items = source.get("configMap", {}).get("items") or [source["serviceAccountToken"]]
            files |= {f"{mounts[volume['name']]}/{one['path']}" for one in items}
    assert files == {set_to["NOTEBOOK_RUNNER_OIDC_CA"], set_to["NOTEBOOK_RUNNER_OIDC_TOKEN_FILE"]}
    scopes = find(found, "ConfigMap", "notebook-runner-oidc")["data"]["scopes"]
    assert set_to["NOTEBOOK_RUNNER_OIDC_SCOPES_FILE"] == f"{mounts['oidc']}/scopes"
    assert parse_rules(scopes.encode(), "scopes").names
    settings = {name.removeprefix("NOTEBOOK_RUNNER_").lower(): value for name, value in set_to.items()}
    oidc: dict[str, Any] = {name: value for name, value in settings.items() if name.startswith("oidc_")}
    assert Settings(**oidc).oidc_options is not None


def test_shares_of_owners() -> None:
    """The component's setting names the file that it mounts, whose rules are valid and limit everybody."""
    found = rendered(FOLDER / "overlays/shares")
    container = container_of(find(found, "Deployment"))
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "shares"]
    assert variables(container)["NOTEBOOK_RUNNER_SHARES_FILE"] == f"{mount['mountPath']}/shares"
    content = find(found, "ConfigMap", "notebook-runner-shares")["data"]["shares"]
    share = parse_shares(content.encode(), "shares", Settings().default_share).share("somebody", ())
    assert None not in (share.max_active, share.max_queued, share.max_history_bytes)


def test_receivers_of_webhooks() -> None:
    """The setting names the file of the mounted Secret; the example is valid once it has a secret."""
    found = rendered(FOLDER / "overlays/webhooks")
    deployment = find(found, "Deployment")
    (mount,) = [one for one in container_of(deployment)["volumeMounts"] if one["name"] == "webhooks"]
    (volume,) = [one for one in pod_of(deployment)["spec"]["volumes"] if one["name"] == "webhooks"]
    assert volume["secret"] == {"secretName": "notebook-runner-webhooks", "defaultMode": 0o440}
    path = f"{mount['mountPath']}/webhooks.toml"
    assert variables(container_of(deployment))["NOTEBOOK_RUNNER_WEBHOOKS_FILE"] == path
    example = (FOLDER / "components/webhooks/webhooks.toml").read_bytes()
    with pytest.raises(AccessFileError, match="secret must be whsec_"):
        parse_receivers(example, "example")
    completed = example.replace(b"whsec_REPLACE-ME", new_secret().encode())
    assert [one.name for one in parse_receivers(completed, "example")] == ["example"]


def test_secrets_are_files(folder: Path) -> None:
    """Tokens and keys are mounted read-only, for the group; no variable and no manifest has one."""
    found = rendered(folder)
    assert "Secret" not in {one["kind"] for one in found}
    for workload in workloads(folder):
        spec, container = pod_of(workload)["spec"], container_of(workload)
        secrets = {one["name"]: one["secret"] for one in spec["volumes"] if "secret" in one}
        assert secrets
        assert {one["defaultMode"] for one in secrets.values()} == {0o440}
        mounts = [one for one in container["volumeMounts"] if one["name"] in secrets]
        assert [one["readOnly"] for one in mounts] == [True] * len(secrets)
        assert not any("secretRef" in one for one in container.get("envFrom", []))
        assert not any("secretKeyRef" in one.get("valueFrom", {}) for one in container.get("env", []))


def test_variables_are_settings(server: Manifest) -> None:
    """Each variable is one of the server's settings; a misspelt one would do nothing."""
    known = {f"{ENVIRONMENT_PREFIX}_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert set(variables(server)) - known <= OTHERS


def test_only_the_component_runs_the_sample_at_night(folder: Path) -> None:
    """What is applied without `nightly` has no job, and needs no token of one."""
    jobs = [one["metadata"]["name"] for one in rendered(folder) if one["kind"] == "CronJob"]
    assert jobs == (["notebook-runner-nightly"] if folder.name == "nightly" else [])


def test_arguments_are_the_clients() -> None:
    """The job's command is one of the client's, with options that there are."""
    job = container_of(find(rendered(FOLDER / "overlays/nightly"), "CronJob", "notebook-runner-nightly"))
    init, dashes, program, name, *options = job["command"]
    assert (init, dashes, program) == ("tini", "--", "notebook-runner")
    known = {option for one in client_command.commands[name].params for option in one.opts}
    assert {option.partition("=")[0] for option in options} <= known


def test_what_is_encrypted(folder: Path, server: Manifest) -> None:
    """Without TLS it is said plainly; with TLS nothing is insecure, and each probe speaks TLS."""
    given = variables(server)
    with_tls = folder.name == "tls"
    assert ("NOTEBOOK_RUNNER_TLS_CERT" in given) is with_tls
    assert ("NOTEBOOK_RUNNER_INSECURE" in given) is not with_tls
    assert "NOTEBOOK_RUNNER_TOKENS_FILE" in given
    for name, probe in probes(server).items():
        by_http = folder.name in WITH_HTTP and name == "readiness"
        assert handlers(probe) == {"exec" if with_tls else "httpGet" if by_http else "grpc"}


@pytest.mark.parametrize("with_tls", [False, True])
def test_the_job_trusts_the_server(tmp_path: Path, with_tls: bool) -> None:
    """With `tls` after it, the job has the authority of the server's certificate."""
    found = composed(tmp_path, NIGHTLY, *[TLS] * with_tls)
    job = variables(container_of(find(found, "CronJob", "notebook-runner-nightly")))
    assert ("NOTEBOOK_RUNNER_TLS_CA" in job) is with_tls
    assert job["NOTEBOOK_RUNNER_TARGET"] == "notebook-runner:50051"


@pytest.mark.parametrize("with_tls", [False, True])
def test_nginx_encrypts_as_the_server_does(tmp_path: Path, with_tls: bool) -> None:
    """With `tls` after `ingress`, nginx and the probes speak TLS to the server, else none does."""
    found = composed(tmp_path, HTTP, INGRESS, *[TLS] * with_tls)
    backends = {}
    for name in ("grpc", "http"):
        annotations = find(found, "Ingress", f"notebook-runner-{name}")["metadata"]["annotations"]
        backends[name] = annotations["nginx.ingress.kubernetes.io/backend-protocol"]
        if with_tls and name == "http":
            server_name = annotations["nginx.ingress.kubernetes.io/proxy-ssl-name"]
            assert server_name in find(found, "Certificate")["spec"]["dnsNames"]
    assert backends == {"grpc": "GRPC" + "S" * with_tls, "http": "HTTP" + "S" * with_tls}
    server = container_of(find(found, "Deployment"))
    assert [handlers(one) == {"exec"} for one in probes(server).values()] == [with_tls] * 3


def handlers(probe: Manifest) -> set[str]:
    """How a probe asks; Kubernetes accepts one way."""
    return probe.keys() & {"exec", "grpc", "httpGet", "tcpSocket"}


def test_probes_ask_for_what_they_are(server: Manifest) -> None:
    """Liveness asks for the process, which serves while it drains; readiness for calls, until it drains."""
    for name, probe in probes(server).items():
        if "httpGet" in probe:
            asked = HEALTH_SERVICES[probe["httpGet"]["path"]]
        else:
            asked = probe["grpc"]["service"] if "grpc" in probe else probe["exec"]["command"][-1]
        assert asked == (READINESS if name == "readiness" else LIVENESS), name


def test_ports_fit_together(folder: Path, server: Manifest) -> None:
    """Service, policy, probes and the image speak of the same port."""
    found = rendered(folder)
    named = {port["name"]: port["containerPort"] for port in server["ports"]}
    service = {port["name"]: port for port in find(found, "Service")["spec"]["ports"]}
    with_http = folder.name in WITH_HTTP
    expected = {"grpc": 50051, "metrics": 9090} | ({"http": 8080} if with_http else {})
    assert {name: port["port"] for name, port in service.items()} == named == expected
    assert all(port["targetPort"] == name for name, port in service.items())
    assert variables(server)["NOTEBOOK_RUNNER_METRICS_LISTEN"].endswith(":9090")
    listens = variables(server).get("NOTEBOOK_RUNNER_HTTP_LISTEN")
    assert listens == ("0.0.0.0:8080" if with_http else None)
    (clients, *_) = find(found, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in clients["ports"]] == [50051, *[8080] * with_http]


def test_one_writer_of_the_history(folder: Path) -> None:
    """No two pods have a state folder's history at once; only PostgreSQL has several writers."""
    deployment = find(rendered(folder), "Deployment")
    spec = deployment["spec"]
    if "NOTEBOOK_RUNNER_STORE" in variables(container_of(deployment)):
        assert spec["replicas"] > 1
    else:
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_nodes_can_be_drained(folder: Path) -> None:
    """The budget allows the eviction of one pod, as Kubernetes computes it, and selects the pods."""
    found = rendered(folder)
    deployment, budget = find(found, "Deployment"), find(found, "PodDisruptionBudget")["spec"]
    assert "minAvailable" not in budget
    needed = deployment["spec"]["replicas"] - budget["maxUnavailable"]
    assert needed == deployment["spec"]["replicas"] - 1
    assert budget["selector"]["matchLabels"].items() <= pod_of(deployment)["metadata"]["labels"].items()
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_the_dashboard_is_the_one_of_the_docs() -> None:
    """Grafana's sidecar finds it by its label, and it is the file that the docs show."""
    found = find(rendered(FOLDER / "overlays/monitoring"), "ConfigMap", "notebook-runner-dashboard")
    file = REPOSITORY / "docs/dashboards/notebook-runner.json"
    assert found["data"] == {file.name: file.read_text()}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_route_leads_to_the_server() -> None:
    """The gateway's route names the Service and its port, and a host that the gateway listens for."""
    found = rendered(FOLDER / "overlays/gateway")
    route, gateway = find(found, "GRPCRoute")["spec"], find(found, "Gateway")["spec"]
    (rule,) = route["rules"]
    assert rule["backendRefs"] == [{"name": "notebook-runner", "port": 50051}]
    assert route["hostnames"] == [one["hostname"] for one in gateway["listeners"]]
    assert SERVICE in {match["method"]["service"] for match in rule["matches"]}


def test_the_ingress_leads_to_the_server() -> None:
    """On one host, each call has the path of its protocol, and a port that the policy opens for nginx."""
    found = rendered(FOLDER / "overlays/ingress")
    ports = {port["name"]: port["port"] for port in find(found, "Service")["spec"]["ports"]}
    led: dict[str, set[str]] = {}
    hosts = set()
    for one in [each for each in found if each["kind"] == "Ingress"]:
        (rule,) = one["spec"]["rules"]
        (secured,) = one["spec"]["tls"]
        hosts |= {rule["host"], *secured["hosts"]}
        for path in rule["http"]["paths"]:
            service = path["backend"]["service"]
            assert service["name"] == "notebook-runner"
            led.setdefault(service["port"]["name"], set()).add(path["path"])
    assert len(hosts) == 1
    assert f"/{SERVICE}" in led["grpc"]
    assert {f"/{one.path.split('/')[1]}" for one in bindings()} < led["http"]
    assert not led["http"] & HEALTH_SERVICES.keys()
    nginx = find(found, "NetworkPolicy")["spec"]["ingress"][-1]
    (peer,) = nginx["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ingress-nginx"}
    assert {port["port"] for port in nginx["ports"]} == {ports[name] for name in led}


def test_the_image_is_of_this_version(folder: Path) -> None:
    """All pods of this project have one image, of its version; k3d's registry has the latest."""
    tag = "latest" if folder.name == "local" else __version__
    own = [one for one in workloads(folder) if one["metadata"]["name"] != DATABASE]
    (image,) = {container_of(one)["image"] for one in own}
    assert image.endswith(f"notebook-runner:{tag}")


def test_the_sample_is_a_notebook() -> None:
    """The notebook that an empty Start runs is there, and valid."""
    notebooks = find(rendered(BASE), "ConfigMap", "notebook-runner-notebooks")["data"]
    default = variables(container_of(find(rendered(BASE), "Deployment")))["NOTEBOOK_RUNNER_DEFAULT_NOTEBOOK"]
    nbformat.validate(json.loads(notebooks[default]))
