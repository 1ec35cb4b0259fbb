"""What `make image` writes beside an image: all that is in it, and all that it was made from, by digest."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.container.podman import PODMAN, inspected, run
from tests.container.test_image import name, packages
from tests.support.pages import REPOSITORY

TOOLS = ".venv-release"
STARTED = "2026-03-02T07:30:00Z"
SECONDS = 600.0
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
print(JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read()))
"""
NAME = "notebook-runner-test-runner"
DPKG = ("dpkg-query", "--show", "--showformat=${Package} ${Version}\\n")


@pytest.fixture(scope="module")
def output(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, written by the program of `make image` with the tools of its lock."""
    folder = tmp_path_factory.mktemp("output")
    command = ["make", "--no-print-directory", f"{TOOLS}/.installed"]
    subprocess.run(command, cwd=REPOSITORY, timeout=SECONDS, check=True, capture_output=True)
    program = [str(REPOSITORY / TOOLS / "bin/python"), str(REPOSITORY / "image/attest.py")]
    options = [f"--engine={PODMAN}", f"--image={image}", "--builder=urn:test", f"--started={STARTED}"]
    options += ["--build-flags=--layers --isolation=chroot", f"--output={folder}"]
    subprocess.run([*program, *options], timeout=SECONDS, check=True, capture_output=True)
    return folder


@pytest.fixture
def bom(output: Path) -> Any:
    """The SBOM."""
    return json.loads((output / f"{NAME}.cdx.json").read_text())


@pytest.fixture
def statement(output: Path) -> Any:
    """The statement of the provenance."""
    return json.loads((output / f"{NAME}.provenance.json").read_text())


def digest(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_the_sbom_is_valid(bom: Any) -> None:
    """It keeps to CycloneDX' own schema, in each kind of entry: all of them would take ten seconds."""
    kinds = {(one["type"], *sorted(one)): one for one in bom["components"]}
    bom["components"] = list(kinds.values())
    bom["dependencies"] = bom["dependencies"][:3]
    done = subprocess.run(
        [str(REPOSITORY / TOOLS / "bin/python"), "-c", VALIDATE],
        input=json.dumps(bom),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout.strip() == "None"


def test_the_sbom_lists_all_packages(image: str, bom: Any) -> None:
    """Each package of Python and of Debian is in it with its version, and so is the init."""
    libraries = [one for one in bom["components"] if one["type"] == "library"]
    debian = [one for one in libraries if one.get("purl", "").startswith("pkg:deb/")]
    python = {name(one["name"]): one["version"] for one in libraries if one not in debian}
    assert python == packages(image)
    listed = {(one["name"], one["version"]) for one in debian}
    assert listed == {tuple(line.split()) for line in run(image, *DPKG).splitlines()}
    (init,) = [one for one in bom["components"] if one["type"] == "file"]
    assert init["name"] == "usr/local/bin/tini"
    assert run(image, "sha256sum", "/usr/local/bin/tini").split()[0] == init["hashes"][0]["content"]


def test_the_sbom_is_of_this_image(image: str, bom: Any) -> None:
    """It names the image by its digest, and no folder of this machine."""
    (found,) = bom["metadata"]["component"]["hashes"]
    assert found["content"] == inspected(image)["Id"]
    assert not any(one in json.dumps(bom) for one in (str(REPOSITORY), "/tmp/"))  # noqa: S108 - where it worked


def test_the_statement_is_of_these_files(output: Path, image: str, statement: Any) -> None:
    """Its subjects are the archive and the image, its by-product the SBOM; the checksums are right."""
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    archive, bom = output / f"{NAME}.tar", output / f"{NAME}.cdx.json"
    assert subjects == {archive.name: digest(archive), image: inspected(image)["Id"]}
    details = statement["predicate"]["runDetails"]
    assert details["byproducts"] == [{"name": bom.name, "digest": {"sha256": digest(bom)}}]
    assert details["metadata"]["startedOn"] == STARTED < details["metadata"]["finishedOn"]
    command = ["sha256sum", "--check", "--strict", f"{NAME}.sha256"]
    subprocess.run(command, cwd=output, timeout=SECONDS, check=True, capture_output=True)


def test_the_statement_has_each_input(statement: Any) -> None:
    """Commit, context, Dockerfile, locks and base image have the digests that anybody can compute again."""
    build = statement["predicate"]["buildDefinition"]
    assert build["externalParameters"]["buildFlags"] == ["--layers", "--isolation=chroot"]
    inputs = {one["name"]: one["digest"] for one in build["resolvedDependencies"]}
    for path in ("Dockerfile", "image/server.lock", "image/data.lock", "image/build.lock"):
        assert inputs.pop(path) == {"sha256": digest(REPOSITORY / path)}
    base = next(line for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if "ARG BASE=" in line)
    assert inputs.pop("base image") == {"sha256": inspected(base.partition("=")[2])["Id"]}
    git = shutil.which("git")
    if git and (REPOSITORY / ".git").exists():
        told = subprocess.run([git, "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, check=True)
        assert inputs.pop("source") == {"gitCommit": told.stdout.decode().strip()}
    files = "LICENSE README.md client examples/quickstart.ipynb image pyproject.toml server"
    summary = (
        f"find {files} -type f -not -path '*/__pycache__/*' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", summary], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert inputs == {"build context": {"dirHash1": done.stdout.split()[0]}}
