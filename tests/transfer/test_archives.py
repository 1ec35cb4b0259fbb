"""Archives in an object store or shared folder: where they may be, and what their processes do."""

import asyncio
import hashlib
import os
import time
from pathlib import Path

import pytest

from notebook_runner_server.config.checks import _archive_folder
from notebook_runner_server.transfer import archive_program
from notebook_runner_server.transfer.archives import UriArchives
from notebook_runner_server.transfer.interface import (
    DamagedObjectError,
    MissingError,
    RefusedError,
    Removal,
    StoredObject,
    UnreachableError,
)
from notebook_runner_server.transfer.policy import ParsedUri, UriPolicy, archive_location
from tests.support.settings import parsed, refusal

CONTENT = b"content"
SECONDS = 60.0


def stored(name: str = "a.zip", content: bytes = CONTENT) -> StoredObject:
    """An object with this content."""
    return StoredObject(name, len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://bucket", ("s3", "bucket", "bucket")),
        ("s3://bucket/a/b/", ("s3", "bucket", "bucket/a/b")),
        ("S3://bucket/a", ("s3", "bucket", "bucket/a")),
        ("gs://bucket/a", ("gs", "bucket", "bucket/a")),
        ("abfs://container/a", ("abfs", "container", "container/a")),
        ("file:///a/shared/", ("file", "", "/a/shared")),
        ("file:///a/a%20b", ("file", "", "/a/a b")),
    ],
)
def test_locations(uri: str, parts: tuple[str, str, str]) -> None:
    """A bucket, a prefix or a folder, with or without a slash at its end."""
    assert archive_location(uri) == ParsedUri(*parts)


@pytest.mark.parametrize(
    "uri",
    [
        "/a",
        "mnt",
        "s3://",
        "s3:///a",
        "s3://a/../b",
        "s3://a?b",
        "s3://k:s@a/b",
        "file://host/a",
        "ftp://a/b",
    ],
)
def test_other_locations_are_refused(uri: str) -> None:
    """With the flag, and without what follows a question mark."""
    with pytest.raises(ValueError, match=r"^--store-files-uri must be a URI such as"):
        archive_location(uri)


def test_signed_uris_are_refused_without_their_signature() -> None:
    """Objects must be removed as well, and a signature ends."""
    with pytest.raises(ValueError, match="not on the web") as caught:
        archive_location("https://bucket.example.org/a?signature")
    assert "signature" not in str(caught.value)


def test_the_setting_needs_a_database() -> None:
    """With the state folder, files stay where they are."""
    assert "--store-files-uri needs --store" in refusal("--store-files-uri", "s3://bucket/a")


@pytest.mark.parametrize("uri", ["s3://bucket/files/a.zip", "s3://bucket/files", "s3://bucket/files/a/b"])
def test_no_request_leads_into_the_location(uri: str) -> None:
    """Whatever else is allowed: the files of other runs are there."""
    options = ("--store", "postgresql://host/name", "--store-files-uri", "s3://bucket/files/")
    allowed = parsed(*options, "--uri-schemes", "s3,https").uris
    allowed.check("s3://bucket/files-of-others/a.zip")
    allowed.check("s3://other/files/a.zip")
    with pytest.raises(RefusedError, match="--store-files-uri"):
        allowed.check(uri)
    UriPolicy(frozenset({"s3"})).check(uri)


def test_a_folder_that_requests_may_name_is_refused(tmp_path: Path) -> None:
    """Neither may be within the other, whichever links lead there; the sandbox hides it anyway."""
    (tmp_path / "files" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("files")
    for own, folder in (("files", ""), ("", "files"), ("files", "files"), ("link", "files/below")):
        options = ("--uri-schemes", "file", "--uri-folders", str(tmp_path / folder))
        location = (tmp_path / own).as_uri()
        settings = parsed("--store", "postgresql://host/name", "--store-files-uri", location, *options)
        assert "must not overlap with --uri-folders" in "".join(_archive_folder(settings))
        assert tmp_path / own in settings.sandbox_options.hidden


def test_an_object_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Only the server's user can read it; a second write replaces it."""
    source, target, file = tmp_path / "source", tmp_path / "target", tmp_path / "a.zip"
    for content in (b"a longer one", CONTENT):
        source.write_bytes(content)
        archive_program._File(str(file)).put(str(source))
    archive_program.read(file.as_uri(), str(target), len(CONTENT), stored().sha256)
    assert target.read_bytes() == CONTENT
    assert {path.stat().st_mode & 0o777 for path in (target, file)} == {0o600}


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Neither to read nor to write."""
    (tmp_path / "elsewhere").write_bytes(CONTENT)
    (tmp_path / "a.zip").symlink_to("elsewhere")
    with pytest.raises(UnreachableError):
        archive_program.read((tmp_path / "a.zip").as_uri(), str(tmp_path / "b"), 7, stored().sha256)
    with pytest.raises(OSError, match="symbolic"):
        archive_program._File(str(tmp_path / "a.zip")).put(str(tmp_path / "elsewhere"))


def test_missing_objects_are_gone_and_others_are_removed(tmp_path: Path) -> None:
    """One that cannot be removed keeps none of the others, and the first reason is reported."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.zip").touch()
    removal = archive_program.remove(tmp_path.as_uri(), ["missing", "folder", "a.zip"])
    assert removal.gone == ["missing", "a.zip"]
    assert "IsADirectoryError" in removal.problem
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.integration
async def test_each_call_in_a_process(tmp_path: Path) -> None:
    """Errors arrive as what they are, also that of the disk that the object is read to."""
    archives = UriArchives(f"{tmp_path.as_uri()}/", SECONDS)
    await archives.check()
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    await archives.write("a.zip", source, time.monotonic() + SECONDS)
    await archives.read(stored(), tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == CONTENT
    with pytest.raises(MissingError):
        await archives.read(stored("b.zip"), tmp_path / "target")
    with pytest.raises(DamagedObjectError, match="SHA-256"):
        await archives.read(stored(content=b"changed"), tmp_path / "target")
    with pytest.raises(FileNotFoundError):
        await archives.read(stored(), tmp_path / "missing" / "target")
    assert await archives.remove(["a.zip"]) == Removal(["a.zip"])
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


@pytest.mark.integration
async def test_a_write_ends_at_its_deadline(tmp_path: Path) -> None:
    """By itself, whatever its server does; after that, none begins."""
    os.mkfifo(tmp_path / "source")
    archives = UriArchives(tmp_path.as_uri(), SECONDS)
    # Nobody writes to the pipe.
    with pytest.raises(UnreachableError, match="process died"):
        await archives.write("a.zip", tmp_path / "source", time.monotonic() + 2)
    (tmp_path / "a.zip").unlink(missing_ok=True)
    with pytest.raises(UnreachableError, match="no time was left"):
        await archives.write("a.zip", tmp_path / "source", time.monotonic())
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.integration
async def test_a_write_that_takes_too_long(tmp_path: Path) -> None:
    """The server ends it and says after how long."""
    os.mkfifo(tmp_path / "source")
    with pytest.raises(UnreachableError, match=r"longer than 0.5 s \(--uri-timeout\)"):
        await UriArchives(tmp_path.as_uri(), 0.5).write(
            "a.zip", tmp_path / "source", time.monotonic() + SECONDS
        )


@pytest.mark.integration
async def test_a_write_is_repeated_while_there_is_time(tmp_path: Path) -> None:
    """The folder comes back."""
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.write_bytes(CONTENT)
    writing = asyncio.create_task(
        UriArchives(folder.as_uri(), SECONDS).write("a.zip", source, time.monotonic() + SECONDS)
    )
    await asyncio.sleep(0)
    folder.mkdir()
    await writing
    assert (folder / "a.zip").read_bytes() == CONTENT
