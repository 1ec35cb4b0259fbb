"""Write what belongs beside an image: its archive, an SBOM (CycloneDX), and its provenance (SLSA).

`make image` runs it with the tools of requirements-release.lock. Writing the provenance needs no service.
Sign it when you publish the image.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
TOOL = Path(sys.executable).with_name("cyclonedx-py")
PACKAGES = re.compile(r"opt/notebook-runner/lib/python[^/]+/site-packages")
DPKG = "var/lib/dpkg/status"
RELEASE = "usr/lib/os-release"
WHITEOUT = ".wh."
"""A layer has a file with this prefix in place of one that it removes."""
# Programs that no package manager of the image knows, because they come from another stage.
PROGRAMS = ("usr/local/bin/tini",)
BUILD_TYPE = "urn:notebook-runner:make-image:1"
"""How `externalParameters` are meant: `make image` in a checkout, with these build flags."""


def run(*command: str) -> str:
    """Return what a program prints."""
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603 - the caller's engine, git, and a tool of the lock
    return done.stdout.strip()


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, root: Path) -> None:
    """Unpack the files of an image that describe its packages, and the programs without a package."""
    with tarfile.open(archive) as whole:
        (manifest,) = json.loads(_content(whole, "manifest.json").read())
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=_content(whole, name)) as layer:
                for one in layer:
                    path = root / one.name
                    if path.name.startswith(WHITEOUT):
                        _remove(path.with_name(path.name.removeprefix(WHITEOUT)))
                    elif one.isfile() and _is_wanted(one.name.removeprefix("./")):
                        layer.extract(one, root, filter="data")


def _content(whole: tarfile.TarFile, name: str) -> IO[bytes]:
    content = whole.extractfile(name)
    if content is None:
        sys.exit(f"The image's archive contains {name}, which is not a file.")
    return content


def _is_wanted(name: str) -> bool:
    return name in {DPKG, RELEASE, *PROGRAMS} or bool(PACKAGES.match(name) and "-info/" in name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def python_packages(root: Path, folder: Path) -> dict[str, Any]:
    """Return the SBOM of the image's Python packages, by the tool that `make release` uses."""
    (packages,) = [one for one in root.glob("opt/notebook-runner/lib/python*/site-packages") if one.is_dir()]
    # The tool asks a Python for its path; this one has the image's packages.
    interpreter = folder / "python"
    interpreter.write_text(f"#!/bin/sh\necho {shlex.quote(json.dumps([str(packages)]))}\n")
    interpreter.chmod(0o755)
    options = ("--output-reproducible", "--output-format", "JSON", "--spec-version", "1.6", "--no-validate")
    bom: dict[str, Any] = json.loads(run(str(TOOL), "environment", *options, str(interpreter)))
    return bom


def debian_packages(root: Path) -> Iterator[dict[str, Any]]:
    """Yield a component for each installed package of Debian."""
    lines = (line.partition("=") for line in (root / RELEASE).read_text().splitlines())
    release = {name: value.strip('"') for name, _, value in lines}
    for paragraph in (root / DPKG).read_text().split("\n\n"):
        fields = dict(re.findall(r"^(\S+): (.*)$", paragraph, re.MULTILINE))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        where = f"arch={fields['Architecture']}&distro={release['ID']}-{release['VERSION_ID']}"
        purl = f"pkg:deb/{release['ID']}/{quote(name)}@{quote(version)}?{where}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def sbom(archive: Path, image: str, digest: str) -> dict[str, Any]:
    """Return the SBOM of everything in the image."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "root"
        unpack(archive, root)
        bom = python_packages(root, folder)
        bom["components"] += debian_packages(root)
        bom["components"] += [
            {
                "type": "file",
                "bom-ref": path,
                "name": path,
                "hashes": [{"alg": "SHA-256", "content": sha256(root / path)}],
            }
            for path in PROGRAMS
        ]
    title, _, version = image.rpartition("/")[2].partition(":")
    bom["metadata"]["component"] = {
        "type": "container",
        "bom-ref": image,
        "name": title,
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
    return bom


def context_paths() -> list[str]:
    """Return the paths of the build context, by .dockerignore: it lists what is not ignored."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def context() -> list[str]:
    """Return the files that the image may be built from."""
    given = [ROOT / path for path in context_paths()]
    files = [path for one in given for path in (one.rglob("*") if one.is_dir() else [one]) if path.is_file()]
    return sorted(str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts)


def context_digest() -> str:
    """Return `dirHash1` of the context: the digest of what `sha256sum` prints for its sorted files."""
    summary = "".join(f"{sha256(ROOT / path)}  {path}\n" for path in context())
    return hashlib.sha256(summary.encode()).hexdigest()


def base_image(engine: str, flags: list[str]) -> dict[str, Any]:
    """Return the image that the build began with."""
    given = [flag.partition("BASE=")[2] for flag in flags if "BASE=" in flag]
    default = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    name = (given or default)[-1]
    found: dict[str, Any] = {"name": "base image", "uri": f"docker://{name}"}
    try:
        found["digest"] = {"sha256": image_digest(engine, name)}
    except subprocess.CalledProcessError:
        print(f"{engine} does not keep {name}: pull it to record its digest.", file=sys.stderr)
    return found


def image_digest(engine: str, image: str) -> str:
    """Return the id of an image, which is the digest of its configuration with all its layers."""
    return run(engine, "image", "inspect", "--format", "{{.Id}}", image).removeprefix("sha256:")


def sources() -> Iterator[dict[str, Any]]:
    """Yield the inputs of the build that are in the checkout."""
    changed = None
    if (ROOT / ".git").exists():
        changed = bool(
            run("git", "status", "--porcelain", "--", "Dockerfile", ".dockerignore", *context_paths())
        )
        yield {"name": "source", "digest": {"gitCommit": run("git", "rev-parse", "HEAD")}}
    yield {
        "name": "build context",
        "digest": {"dirHash1": context_digest()},
        "annotations": {"differsFromCommit": changed},
    }
    for path in ("Dockerfile", "image/server.lock", "image/data.lock", "image/build.lock"):
        yield {"name": path, "digest": {"sha256": sha256(ROOT / path)}}


def provenance(options: argparse.Namespace, archive: Path, bom: Path, digest: str) -> dict[str, Any]:
    """Return an in-toto statement with SLSA's provenance of the build."""
    flags = shlex.split(options.build_flags)
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": archive.name, "digest": {"sha256": sha256(archive)}},
            {"name": options.image, "digest": {"sha256": digest}},
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"target": options.target, "buildFlags": flags},
                "internalParameters": {
                    "engine": run(options.engine, "--version"),
                    "machine": platform.machine(),
                },
                "resolvedDependencies": [*sources(), base_image(options.engine, flags)],
            },
            "runDetails": {
                "builder": {"id": options.builder},
                "metadata": {
                    "invocationId": f"urn:uuid:{uuid.uuid4()}",
                    "startedOn": options.started,
                    "finishedOn": now,
                },
                "byproducts": [{"name": bom.name, "digest": {"sha256": sha256(bom)}}],
            },
        },
    }


def main() -> None:
    """Write the three files of an image, and their checksums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True, help="docker or podman")
    parser.add_argument("--image", required=True, help="the image, with its tag")
    parser.add_argument("--target", default="", help="the target of the Dockerfile")
    parser.add_argument("--build-flags", default="", help="what the engine's build was given")
    parser.add_argument("--builder", required=True, help="URI of who builds")
    parser.add_argument("--started", required=True, help="when the build started, in UTC")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    name = options.image.rpartition("/")[2].replace(":", "-")
    archive, bom, statement = (
        options.output / f"{name}.{one}" for one in ("tar", "cdx.json", "provenance.json")
    )
    archive.unlink(missing_ok=True)
    run(options.engine, "save", "--output", str(archive.resolve()), options.image)
    digest = image_digest(options.engine, options.image)
    bom.write_text(json.dumps(sbom(archive, options.image, digest), indent=2) + "\n")
    statement.write_text(json.dumps(provenance(options, archive, bom, digest), indent=2) + "\n")
    sums = "".join(f"{sha256(one)}  {one.name}\n" for one in (archive, bom, statement))
    (options.output / f"{name}.sha256").write_text(sums)
    print(sums, end="")


if __name__ == "__main__":
    main()
