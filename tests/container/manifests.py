"""The manifests as kustomize renders them, and as podman can start them."""

import copy
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.pages import REPOSITORY

KUBECTL = shutil.which("kubectl") or "kubectl"
FOLDER = REPOSITORY / "k8s"
BASE = FOLDER / "base"
COMPONENTS = sorted((FOLDER / "components").iterdir())
OVERLAYS = sorted((FOLDER / "overlays").iterdir())

Manifest = dict[str, Any]


@functools.cache
def _text(folder: Path) -> str:
    command = [KUBECTL, "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of a folder, which needs no cluster."""
    return list(yaml.safe_load_all(_text(folder)))


def composed(folder: Path, *components: Path) -> list[Manifest]:
    """The base with components, as an operator puts them together in a folder of their own."""
    kustomization = {
        "resources": [os.path.relpath(BASE, folder)],
        "components": [os.path.relpath(one, folder) for one in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return rendered(folder)


def find(found: list[Manifest], kind: str, name: str = "notebook-runner") -> Manifest:
    """The one resource of this kind and name."""
    (one,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return one


def operated(cluster: Manifest) -> list[Manifest]:
    """The Deployments that the Dask operator makes of a DaskCluster: its pods, with more labels."""
    metadata, made = cluster["metadata"], []
    for role in ("scheduler", "worker"):
        told = cluster["spec"][role]
        own = {"dask.org/cluster-name": metadata["name"], "dask.org/component": role}
        labels = {**metadata["labels"], **told["metadata"]["labels"], **own}
        template = {"metadata": {"labels": labels}, "spec": told["spec"]}
        made.append(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {**metadata, "name": f"{metadata['name']}-{role}", "labels": labels},
                "spec": {"selector": {"matchLabels": labels}, "template": template},
            }
        )
    return made


def with_operated(found: list[Manifest]) -> list[Manifest]:
    """These, and what the Dask operator makes of them."""
    return found + [made for one in found if one["kind"] == "DaskCluster" for made in operated(one)]


def is_selected(policy: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether a NetworkPolicy is for a pod with these labels."""
    chosen = policy["spec"]["podSelector"]
    exact = chosen.get("matchLabels", {}).items() <= labels.items()
    return exact and all(
        labels.get(one["key"]) in one["values"] for one in chosen.get("matchExpressions", [])
    )


def pod_of(manifest: Manifest) -> Manifest:
    """The pod that a resource makes, with its metadata and its spec."""
    spec = manifest["spec"]
    job = spec["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else spec
    pod: Manifest = job["template"]
    return pod


def container_of(manifest: Manifest) -> Manifest:
    """The only container of the pod that a resource makes."""
    (container,) = pod_of(manifest)["spec"]["containers"]
    one: Manifest = container
    return one


def variables(container: Manifest) -> dict[str, str]:
    """The variables of a container that have a value of their own."""
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def probes(server: Manifest) -> dict[str, Manifest]:
    """The three probes of the server's container."""
    return {name: server[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}


def for_podman(
    found: list[Manifest],
    pod: Manifest,
    name: str,
    image: str,
    environment: Mapping[str, str],
    secrets: Mapping[str, Path],
    claims: Mapping[str, Path],
    exchanged: Mapping[str, str],
) -> list[Manifest]:
    """A pod with its ConfigMaps, changed only where podman 4.3 on the machine's own network wants it.

    - Names begin with `name`, so that nothing else on the machine is touched.
    - The image is the one that was built here, and there are more variables: the port is a free one.
    - What is `exchanged` in the container is another text: ports in commands, and names of Services.
    - Podman knows no gRPC probe: it becomes the command that asks the same. By HTTP it would ask with curl.
    - It hands a Secret's content on without decoding it, and readable for everyone: a Secret is a folder,
      which the test has made as the kubelet would.
    - It publishes the ports that a container names, which the machine's own network has none of.
    - It does not put variables into a command, `$(NAME)`.
    - A claim is a folder, which the test has made as Kubernetes would: podman gives a volume another owner.
    - It gives emptyDirs of the same name to all pods.
    """
    maps = [copy.deepcopy(one) for one in found if one["kind"] == "ConfigMap"]
    for each in maps:
        each["metadata"]["name"] = f"{name}-{each['metadata']['name']}"
    spec = copy.deepcopy(pod["spec"]) | {"hostNetwork": True}
    for volume in spec["volumes"]:
        _exchange(volume, name, secrets, claims)
    own = {one["name"]: f"{name}-{one['name']}" for one in spec["volumes"] if "emptyDir" in one}
    for one in (*spec["volumes"], *spec["containers"][0]["volumeMounts"]):
        one["name"] = own.get(one["name"], one["name"])
    spec["containers"] = [_container(spec["containers"][0], name, environment, exchanged)]
    spec["containers"][0]["image"] = image
    metadata = {**pod["metadata"], "name": name}
    return [*maps, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]


def _container(
    container: Manifest, name: str, environment: Mapping[str, str], exchanged: Mapping[str, str]
) -> Manifest:
    text = json.dumps(container)
    for old, new in exchanged.items():
        text = text.replace(old, new)
    one: Manifest = json.loads(text)
    one.pop("ports", None)
    named = [each for each in one.get("env", []) if each["name"] not in environment]
    one["env"] = named + [{"name": key, "value": value} for key, value in environment.items()]
    for key, value in variables(one).items():
        one["command"] = [each.replace(f"$({key})", value) for each in one.get("command", [])]
    for source in one.get("envFrom", []):
        source["configMapRef"]["name"] = f"{name}-{source['configMapRef']['name']}"
    for key in [key for key in one if key.endswith("Probe")]:
        if grpc := one[key].pop("grpc", None):
            one[key]["exec"] = {"command": ["notebook-runner", "health", grpc["service"]]}
        if "httpGet" in one[key]:
            del one[key]
    return one


def _exchange(volume: Manifest, name: str, secrets: Mapping[str, Path], claims: Mapping[str, Path]) -> None:
    if volume.pop("secret", None):
        volume["hostPath"] = {"path": str(secrets[volume["name"]]), "type": "Directory"}
    if "configMap" in volume:
        volume["configMap"]["name"] = f"{name}-{volume['configMap']['name']}"
    if claim := volume.pop("persistentVolumeClaim", None):
        volume["hostPath"] = {"path": str(claims[claim["claimName"]]), "type": "Directory"}
