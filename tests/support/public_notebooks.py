"""Notebooks from the test suites of nbclient, nbconvert and papermill.

`tests/data.lock` pins the distributions that contain them. `make install` downloads these and runs this
module, which unpacks the notebooks into `.test-data`, one folder for each distribution. It also unpacks
packages that notebooks of the tests import, and that nothing else needs.
"""

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

DATA = Path(__file__).parents[2] / ".test-data"
DOWNLOADS = DATA / "downloads"

# The folder of each distribution that holds the notebooks, below the root of its archive.
SOURCES = {"nbclient": "tests/files", "nbconvert": "tests", "papermill": "papermill/tests/notebooks"}
# Distributions that are unpacked whole, without what they depend on.
PACKAGES = ["scrapbook"]
# Notebooks, and the pictures that they show.
KINDS = {".ipynb", ".png"}


class MissingTestDataError(RuntimeError):
    """The notebooks have not been downloaded."""


def folder(distribution: str) -> Path:
    """Returns the folder of a distribution's notebooks.

    Raises:
        MissingTestDataError: They have not been unpacked.
    """
    found = DATA / distribution
    if not found.is_dir():
        raise MissingTestDataError(
            f"The test data of {distribution} is missing ({found}). Run `make install` with "
            "access to a package index: it downloads the distributions in tests/data.lock."
        )
    return found


def notebook_paths(distribution: str) -> list[Path]:
    """Returns the paths of a distribution's notebooks, sorted.

    Raises:
        MissingTestDataError: They have not been unpacked.
    """
    return sorted(folder(distribution).rglob("*.ipynb"))


def unpack() -> None:
    """Unpacks the notebooks of the downloaded distributions into `.test-data`."""
    for distribution, source in SOURCES.items():
        (archive,) = DOWNLOADS.glob(f"{distribution}-*")
        for name, data in _files(archive):
            if name.is_relative_to(source) and name.suffix in KINDS:
                target = DATA / distribution / name.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    for distribution in PACKAGES:
        (archive,) = DOWNLOADS.glob(f"{distribution}-*")
        for name, data in _files(archive):
            target = DATA / "packages" / distribution / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    shutil.rmtree(DOWNLOADS)


def package(distribution: str) -> Path:
    """Returns the folder that holds a package, for `sys.path`.

    Raises:
        MissingTestDataError: It has not been unpacked.
    """
    return folder(f"packages/{distribution}")


def _files(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yields each file of a wheel or a source distribution, the latter without the folder that holds all."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                yield PurePosixPath(name), wheel.read(name)
        return
    with tarfile.open(archive) as sdist:
        for member in sdist:
            if file := sdist.extractfile(member):
                yield PurePosixPath(*PurePosixPath(member.name).parts[1:]), file.read()


if __name__ == "__main__":
    unpack()
