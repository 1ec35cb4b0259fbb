"""Where servers keep the large files of ended runs: a shared folder, and a real S3 API."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from tests.support.web import BUCKET, ObjectStore, object_store

MARKER = "notebook-runner-history"
SECRET = "not-told"  # noqa: S105 - no service knows it


class Location(Protocol):
    """Where the objects are.

    Attributes:
        uri: The value of `--store-files-uri`.
        environment: What a server needs to know.
    """

    uri: str
    environment: Mapping[str, str]

    def names(self) -> set[str]:
        """The names of all objects but the marker."""

    def get(self, name: str) -> bytes:
        """An object."""

    def put(self, name: str, content: bytes) -> None:
        """Writes an object."""

    def remove(self, name: str) -> None:
        """Removes an object, if it is there."""


class FolderLocation:
    """A shared folder, which is not below one that notebooks of the tests may write to."""

    environment: Mapping[str, str] = {}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = folder.as_uri()

    def names(self) -> set[str]:
        """The names of all files but the marker."""
        return {path.name for path in self.folder.iterdir()} - {MARKER}

    @contextmanager
    def unmounted(self) -> Iterator[Path]:
        """Lets an empty folder be there until the block is left, as if the shared one were not mounted."""
        away = self.folder.with_name(f"{self.folder.name}-away")
        self.folder.rename(away)
        self.folder.mkdir()
        try:
            yield self.folder
        finally:
            self.folder.rmdir()
            away.rename(self.folder)

    def get(self, name: str) -> bytes:
        """A file's content."""
        return (self.folder / name).read_bytes()

    def put(self, name: str, content: bytes) -> None:
        """Writes a file."""
        (self.folder / name).write_bytes(content)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        (self.folder / name).unlink(missing_ok=True)


class S3Location:
    """A prefix of a bucket."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        # No signature is checked.
        self.environment: Mapping[str, str] = {**objects.environment, "AWS_SECRET_ACCESS_KEY": SECRET}
        self._prefix = f"files of runs/{uuid4().hex}".replace(" ", "-")
        self.uri = f"s3://{BUCKET}/{self._prefix}"

    def names(self) -> set[str]:
        """The names of all objects but the marker."""
        keys = self.objects.keys(self._prefix)
        return {key.removeprefix(f"{self._prefix}/") for key in keys} - {MARKER}

    def get(self, name: str) -> bytes:
        """An object."""
        return self.objects.get(f"{self._prefix}/{name}")

    def put(self, name: str, content: bytes) -> None:
        """Writes an object."""
        self.objects.put(f"{self._prefix}/{name}", content)

    def remove(self, name: str) -> None:
        """Removes an object."""
        self.objects.delete(f"{self._prefix}/{name}")


@contextmanager
def folder_location() -> Iterator[FolderLocation]:
    """A shared folder that is there until the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="files-of-runs-"))
    try:
        yield FolderLocation(folder)
    finally:
        shutil.rmtree(folder)


@contextmanager
def s3_location() -> Iterator[S3Location]:
    """An S3 API that is there until the block is left."""
    with object_store() as objects:
        yield S3Location(objects)
