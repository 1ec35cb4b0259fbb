"""The image: what is in it, what is not, and how others build on it."""

import json
import re
from pathlib import Path

import pytest

from tests.container.podman import build, inspected, podman, run
from tests.support.pages import REPOSITORY, blocks

COMPILERS = ("cc", "gcc", "g++", "clang", "make", "ld", "cargo", "rustc")
# Where programs are; `which` may not be in a slim image.
PROGRAMS = "import shutil, sys; print([name for name in sys.argv[1:] if shutil.which(name)])"
PACKAGES = """
import importlib.metadata, json
print(json.dumps({one.name: one.version for one in importlib.metadata.distributions()}))
"""
FIGURE = """
import matplotlib.pyplot, pandas
pandas.Series([1, 2]).plot()
matplotlib.pyplot.savefig("/dev/null", format="png")
"""
KERNELS = "import json, jupyter_client.kernelspec as k; print(json.dumps(k.find_kernel_specs()))"


def name(package: str) -> str:
    """A package's name in its one spelling."""
    return re.sub(r"[-_.]+", "-", package).lower()


def locked(file: str) -> set[tuple[str, str]]:
    """The packages of a lock with their versions, of which there may be one for each Python."""
    lines = (REPOSITORY / file).read_text().splitlines()
    pins = [re.match(r"([A-Za-z0-9_.-]+)(?:\[.*\])?==([^ ;]+)", line) for line in lines]
    return {(name(pin[1]), pin[2]) for pin in pins if pin}


def packages(image: str) -> dict[str, str]:
    """The versions of what an image has."""
    return {name(key): value for key, value in json.loads(run(image, "python", "-c", PACKAGES)).items()}


def test_what_it_says_of_itself(image: str) -> None:
    """It is nobody's but its own user's, begins with an init, and knows how to be asked for its health."""
    told = inspected(image)
    assert told["User"] == "65532:65532"
    assert told["Config"]["Entrypoint"] == ["tini", "--", "notebook-runner-server"]
    assert told["Healthcheck"]["Test"] == ["CMD", "notebook-runner", "health"]
    labels = told["Labels"]
    assert labels["org.opencontainers.image.title"] == "notebook-runner"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_no_compiler(image: str) -> None:
    """What builds packages has stayed in the stages before."""
    assert run(image, "python", "-c", PROGRAMS, "python", *COMPILERS).strip() == "['python']"


def test_what_it_has_is_locked(image: str) -> None:
    """Each package has the version of the lock, which is the one that all tests run with."""
    found, lock = packages(image), locked("image/server.lock")
    assert lock <= locked("requirements.lock")
    # The project itself, and what Python brings with each virtual environment.
    for brought in {"notebook-runner", "pip", "setuptools"} - dict(lock).keys():
        found.pop(brought, None)
    assert set(found.items()) <= lock


def test_it_refuses_to_be_open(image: str) -> None:
    """Started with nothing, it does not serve everybody, and says what to add."""
    options = ["--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--no-healthcheck"]
    podman("run", *options, image, code=1)


def test_the_image_with_data_packages(image: str) -> None:
    """The target `data` has numpy, pandas and matplotlib beside what the server has, all locked."""
    data = build("data")
    found, lock = packages(data), locked("image/data.lock")
    assert lock <= locked("requirements.lock")
    assert packages(image).items() <= found.items()
    added = found.keys() - packages(image).keys()
    assert {"numpy", "pandas", "matplotlib"} <= added <= dict(lock).keys()
    run(data, "env", "MPLCONFIGDIR=/dev/shm", "python", "-c", FIGURE)


def test_own_packages_and_kernels(image: str, tmp_path: Path) -> None:
    """The Dockerfile that the page on deployment shows adds packages and a kernel, and changes no version."""
    (shown,) = [one for one in blocks(REPOSITORY / "docs/how-to/deploy.md") if one.language == "dockerfile"]
    first, _, rest = shown.text.partition("\n")
    assert first == "FROM notebook-runner:0.1.0"
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\n{rest}")
    own = build("own", tmp_path / "Dockerfile", tmp_path)
    assert inspected(own)["User"] == "65532:65532"
    assert {"polars", "bash-kernel"} <= packages(own).keys()
    assert packages(image).items() <= packages(own).items()
    assert {"python3", "bash"} <= json.loads(run(own, "python", "-c", KERNELS)).keys()


@pytest.mark.parametrize("file", ["image/server.lock", "image/data.lock", "image/build.lock"])
def test_locks_have_hashes(file: str) -> None:
    """Nothing gets into the image that is not the very file that was locked."""
    entries = re.split(r"\n(?=\S)", (REPOSITORY / file).read_text().strip())
    assert all("--hash=sha256:" in entry for entry in entries)
