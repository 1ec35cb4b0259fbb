"""Archives in an object store or shared folder: where they may be, and what their processes do."""

import asyncio
import hashlib
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from notebook_runner_server.config.checks import _archive_folder
from notebook_runner_server.run_in_subprocess import SubprocessError, SubprocessOptions, start_in_subprocess
from notebook_runner_server.transfer import archive_program
from notebook_runner_server.transfer.archives import UriArchives
from notebook_runner_server.transfer.interface import (
    ArchiveLocation,
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


def located(folder: Path, marker: str = "one") -> ArchiveLocation:
    """A folder of the history with the id `one`; the marker: that of which it is."""
    if marker:
        (folder / archive_program.MARKER).write_text(marker)
    return ArchiveLocation(folder.as_uri(), "one")


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


def test_uris_of_the_web_are_refused_without_their_secrets() -> None:
    """Objects must be removed as well, and a signature ends."""
    with pytest.raises(ValueError, match="not on the web") as caught:
        archive_location("https://user:password@bucket.example.org/a?signature")
    assert "password" not in str(caught.value)
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
    location = located(tmp_path)
    for content in (b"a longer one", CONTENT):
        source.write_bytes(content)
        archive_program._Folder(str(tmp_path)).put("a.zip", str(source))
    archive_program.read(location, "a.zip", str(target), len(CONTENT), stored().sha256)
    assert target.read_bytes() == CONTENT
    assert {path.stat().st_mode & 0o777 for path in (target, file)} == {0o600}


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Neither to read nor to write."""
    (tmp_path / "elsewhere").write_bytes(CONTENT)
    (tmp_path / "a.zip").symlink_to("elsewhere")
    with pytest.raises(UnreachableError, match="symbolic"):
        archive_program.read(located(tmp_path), "a.zip", str(tmp_path / "b"), 7, stored().sha256)
    with pytest.raises(OSError, match="symbolic"):
        archive_program._Folder(str(tmp_path)).put("a.zip", str(tmp_path / "elsewhere"))


def test_missing_objects_are_gone_and_others_are_removed(tmp_path: Path) -> None:
    """One that cannot be removed keeps none of the others, and the first reason is reported."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.zip").touch()
    names = ["missing", "folder", "a.zip"]
    removal = archive_program.remove(located(tmp_path), names, time.monotonic() + SECONDS)
    assert removal.gone == ["missing", "a.zip"]
    assert removal.tried == len(names)
    assert "IsADirectoryError" in removal.problem
    assert set(os.listdir(tmp_path)) == {"folder", archive_program.MARKER}


class Late(Sequence[str]):
    """The names of objects, for the last of which there is no time."""

    def __init__(self, *names: str) -> None:
        self._names = names

    @override
    def __len__(self) -> int:
        return len(self._names) + 1

    @override
    def __getitem__(self, index: Any) -> Any:
        """Returns a name, or lets the deadline pass, as a removal does that gets no answer."""
        if index == len(self._names):
            signal.raise_signal(signal.SIGALRM)
        return self._names[index]


def test_a_removal_that_ends_at_its_deadline_has_made_progress(tmp_path: Path) -> None:
    """What is gone by then is reported, and the next removal can begin after it."""
    (tmp_path / "a.zip").touch()
    before = signal.getsignal(signal.SIGALRM)
    end = time.monotonic() + SECONDS
    removal = archive_program.remove(located(tmp_path), Late("a.zip", "b.zip"), end)
    assert (removal.gone, removal.tried) == (["a.zip", "b.zip"], 2)
    assert "--uri-timeout" in removal.problem
    assert signal.getsignal(signal.SIGALRM) is before


OTHER_PLACES = {
    "an empty mount point": ("", "the folder is mounted"),
    "of another history": ("other", "belongs to the history 'other'"),
}


@pytest.mark.parametrize("place", OTHER_PLACES)
def test_nothing_is_concluded_from_another_place(tmp_path: Path, place: str) -> None:
    """An object that it lacks is neither missing nor gone, and none is written there."""
    marker, why = OTHER_PLACES[place]
    location = located(tmp_path, marker)
    (tmp_path / "b.zip").touch()
    end = time.monotonic() + SECONDS
    with pytest.raises(UnreachableError, match=why):
        archive_program.read(location, "a.zip", str(tmp_path / "target"), 1, "")
    with pytest.raises(UnreachableError, match=why):
        archive_program.remove(location, ["a.zip", "b.zip"], end)
    with pytest.raises(UnreachableError, match=why):
        archive_program.check(location, is_new=False)
    try:
        with pytest.raises(UnreachableError, match=why):
            archive_program.write(location, "c.zip", __file__, end)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert set(os.listdir(tmp_path)) == ({"b.zip", archive_program.MARKER} if marker else {"b.zip"})


def test_a_missing_folder_is_no_missing_object(tmp_path: Path) -> None:
    """It may come back, so its objects are not forgotten."""
    location = ArchiveLocation((tmp_path / "missing").as_uri(), "one")
    with pytest.raises(UnreachableError, match="No such file"):
        archive_program.remove(location, ["a.zip"], time.monotonic() + SECONDS)


def test_a_new_location_gets_its_marker(tmp_path: Path) -> None:
    """Once; a server that died while it wrote the marker, or its probe, leaves nothing in the way."""
    location = located(tmp_path, "")
    (tmp_path / archive_program.MARKER).touch()
    (tmp_path / archive_program._PROBE).touch()
    archive_program.check(location, is_new=True)
    for is_new in (True, False):
        archive_program.check(location, is_new=is_new)
    assert os.listdir(tmp_path) == [archive_program.MARKER]
    with pytest.raises(UnreachableError, match="belongs to the history 'one'"):
        archive_program.check(ArchiveLocation(location.uri, "two"), is_new=True)


@pytest.mark.integration
async def test_each_call_in_a_process(tmp_path: Path) -> None:
    """Errors arrive as what they are, also that of the disk that the object is read to."""
    archives = UriArchives(f"{tmp_path.as_uri()}/", SECONDS)
    await archives.open("one", is_new=True)
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
    assert await archives.remove(["a.zip"]) == Removal(["a.zip"], tried=1)
    assert set(os.listdir(tmp_path)) == {"source", "target", archive_program.MARKER}


@pytest.mark.integration
async def test_a_process_that_cannot_be_started(tmp_path: Path) -> None:
    """The store counts as unreachable: neither is the run's end lost, nor its disk full."""
    archives = UriArchives(tmp_path.as_uri(), SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(UnreachableError, match=r"cannot be started: .*Too many open files"):
            await archives.read(stored(), tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.integration
async def test_a_write_ends_at_its_deadline(tmp_path: Path) -> None:
    """By itself, whatever its server does; after that, none begins."""
    os.mkfifo(tmp_path / "source")
    location, source = located(tmp_path), str(tmp_path / "source")
    # Nobody writes to the pipe. On a starved machine, the process begins only after the deadline.
    with pytest.raises((SubprocessError, UnreachableError), match=r"code -14|no time was left"):
        await start_in_subprocess(
            SubprocessOptions(), archive_program.write, location, "a.zip", source, time.monotonic() + 2
        )
    (tmp_path / "a.zip").unlink(missing_ok=True)
    with pytest.raises(UnreachableError, match="no time was left"):
        archive_program.write(location, "a.zip", source, time.monotonic())
    assert set(os.listdir(tmp_path)) == {"source", archive_program.MARKER}


@pytest.mark.integration
async def test_a_write_that_takes_too_long(tmp_path: Path) -> None:
    """The server ends it and says after how long."""
    os.mkfifo(tmp_path / "source")
    located(tmp_path)
    archives = UriArchives(tmp_path.as_uri(), SECONDS)
    with pytest.raises(UnreachableError, match=r"longer than 60 s \(--uri-timeout\)"):
        await archives.write("a.zip", tmp_path / "source", time.monotonic())


@pytest.mark.integration
async def test_a_write_is_repeated_while_there_is_time(tmp_path: Path) -> None:
    """The folder comes back."""
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.write_bytes(CONTENT)
    archives = UriArchives(folder.as_uri(), SECONDS)
    folder.mkdir()
    await archives.open("one", is_new=True)
    folder.rename(tmp_path / "away")
    writing = asyncio.create_task(archives.write("a.zip", source, time.monotonic() + SECONDS))
    await asyncio.sleep(0)
    (tmp_path / "away").rename(folder)
    await writing
    assert (folder / "a.zip").read_bytes() == CONTENT
