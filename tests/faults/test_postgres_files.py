"""Large files of ended runs in an object store or shared folder, for all servers of a history."""

import asyncio
import io
import signal
import socket
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from typing_extensions import override

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.runs.model import RunState
from notebook_runner_server.runs.postgres.contents import TableFolder
from notebook_runner_server.runs.postgres.database import PostgresOptions
from notebook_runner_server.runs.postgres.history import PostgresHistory
from notebook_runner_server.transfer.archives import UriArchives
from notebook_runner_server.transfer.interface import StoredObject
from tests.runs.samples import a_run
from tests.support.archives import SECRET, FolderLocation, Location, folder_location, s3_location
from tests.support.calls import artefact, finish, history, inline, perform, start, texts
from tests.support.cutting_proxy import CuttingProxy
from tests.support.database_server import LONG_LEASE, DatabaseServer, until
from tests.support.errors import refused
from tests.support.postgres import Postgres
from tests.support.retries import chain, retry
from tests.support.server import STORE, Server
from tests.support.settings import served

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("a history in PostgreSQL excludes a cluster"),
]

LEASE = 4.0
SECONDS = 60.0
LIMIT = 1000
LARGE = 50_000
# No compression makes it smaller.
WRITES = (
    "import os; content = os.urandom({size}); open('made.bin', 'wb').write(content); print(content.hex())"
)


class Made(NamedTuple):
    """A run that has left a file, and what it has."""

    run_id: str
    content: bytes


@pytest.fixture(params=["folder", "s3"])
def location(request: pytest.FixtureRequest) -> Iterator[Location]:
    """Each kind of place."""
    with folder_location() if request.param == "folder" else s3_location() as place:
        yield place


@pytest.fixture
def folder() -> Iterator[FolderLocation]:
    """A shared folder."""
    with folder_location() as place:
        yield place


@pytest.fixture
def url(postgres: Postgres) -> str:
    """An empty database."""
    return postgres.url(postgres.create_database())


def server_on(
    url: str, state: Path, place: Location, *options: str, lease: float = LONG_LEASE
) -> DatabaseServer:
    """A server that keeps files above the limit there."""
    own = ("--store-files-bytes", str(LIMIT), "--store-files-uri", place.uri)
    return DatabaseServer(state, url, *own, *options, lease=lease, environment=place.environment)


def made(server: Server, size: int = LARGE, **fields: object) -> Made:
    """Executes a run that leaves a file."""
    ended = perform(server.stub, inline(WRITES.format(size=size), **fields))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    return Made(ended.run.run_id, bytes.fromhex(texts(ended.events)))


def read(server: Server, run_id: str) -> bytes:
    """The file of a run, from the zip of its files."""
    with zipfile.ZipFile(io.BytesIO(artefact(server.stub, run_id, format="files"))) as packed:
        assert packed.namelist() == ["made.bin"]
        return packed.read("made.bin")


def refusal_of(server: Server, run_id: str) -> tuple[grpc.StatusCode, str, str]:
    """Status, reason and message with which the files of a run are refused."""
    found = refused(partial(artefact, server.stub, run_id, format="files"))
    return found.code, found.reason, found.message


def test_another_server_has_the_files(url: str, location: Location, tmp_path: Path) -> None:
    """Large ones are objects named by their run, small ones are in the database; also when it is dead."""
    with server_on(url, tmp_path / "1", location) as one, server_on(url, tmp_path / "2", location) as two:
        small, large = made(one, LIMIT), made(one)
        (name,) = location.names()
        assert name.startswith(f"{large.run_id}.")
        with zipfile.ZipFile(io.BytesIO(location.get(name))) as packed:
            assert packed.read("made.bin") == large.content
        again = made(one)
        assert read(two, large.run_id) == large.content
        one.die()
        assert read(two, again.run_id) == again.content
        assert read(two, small.run_id) == small.content
        assert not list((tmp_path / "2" / "runs").rglob("*.zip"))


def test_delete_and_retention_remove_objects(
    postgres: Postgres, url: str, location: Location, tmp_path: Path
) -> None:
    """Whichever server deletes the run; those of other runs stay."""
    with server_on(url, tmp_path / "1", location) as one, server_on(url, tmp_path / "2", location) as two:
        kept, *others = (made(one) for _ in range(3))
        # A server that starts deletes at once what has expired.
        short = made(one, retention={"seconds": 1})
        assert len(location.names()) == 4
        for server, other in zip((one, two), others, strict=True):
            server.stub.Delete(pb.DeleteRequest(run_id=other.run_id), timeout=SECONDS)
        _until_left(postgres, url, location, {kept.run_id, short.run_id})
    with server_on(url, tmp_path / "3", location) as three:
        _until_left(postgres, url, location, {kept.run_id})
        assert short.run_id not in history(three.stub)
        assert read(three, kept.run_id) == kept.content


def _until_left(postgres: Postgres, url: str, location: Location, run_ids: set[str]) -> None:
    """Waits until only the objects of these runs are there."""
    with postgres.admin(url.rpartition("/")[2]) as db:
        names: set[str] = set()

        def are_left() -> bool:
            names.clear()
            names.update(name for (name,) in db.execute("SELECT name FROM file_objects").fetchall())
            return {name.partition(".")[0] for name in names} == run_ids

        until(are_left, lambda: names)
    assert location.names() == names


def test_objects_count_for_the_size_of_the_history(url: str, folder: FolderLocation, tmp_path: Path) -> None:
    """`--max-state-bytes` deletes the oldest run, whose size is that of its object."""
    with server_on(url, tmp_path / "1", folder) as one:
        old = made(one)
        new = perform(one.stub, inline("1")).run.run_id
    with server_on(url, tmp_path / "2", folder, "--max-state-bytes", str(LARGE)) as two:
        until(lambda: history(two.stub) == [new], two.tail)
        until(lambda: not folder.names(), two.tail)
        assert (
            refused(partial(two.stub.Get, pb.GetRequest(run_id=old.run_id))).code is grpc.StatusCode.NOT_FOUND
        )


def test_a_server_dies_between_the_object_and_the_end(
    postgres: Postgres, url: str, folder: FolderLocation, tmp_path: Path
) -> None:
    """The run is interrupted and has no files, the object goes, and no other one does."""
    database = url.rpartition("/")[2]
    with server_on(url, tmp_path / "1", folder, lease=LEASE) as one:
        kept = made(one)
        (other,) = folder.names()
        with postgres.admin(database) as db, db.transaction():
            # The end of the run cannot be stored.
            db.execute("LOCK TABLE run_files IN EXCLUSIVE MODE")
            run = start(one.stub, inline(WRITES.format(size=LARGE)))
            until(lambda: len(folder.names()) == 2, one.tail)
            one.die()
    (stray,) = folder.names() - {other}
    assert stray.startswith(f"{run.run_id}.")
    with server_on(url, tmp_path / "2", folder, lease=LEASE) as two:
        ended = finish(two.stub, run.run_id).run
        assert ended.state == pb.RUN_STATE_INTERRUPTED
        assert "lost" in refusal_of(two, run.run_id)[2]
        with postgres.admin(database) as db:
            (found,) = db.execute(
                "SELECT name, written_until > now() FROM file_objects WHERE name = %s", [stray]
            )
            assert found == (stray, True)
            # As after that time.
            db.execute("UPDATE file_objects SET written_until = now() WHERE name = %s", [stray])
        until(lambda: folder.names() == {other}, two.tail)
        assert read(two, kept.run_id) == kept.content
        with postgres.admin(database) as db:
            assert db.execute("SELECT name FROM file_objects").fetchall() == [(other,)]


def test_what_is_being_written_stays(
    postgres: Postgres, url: str, folder: FolderLocation, tmp_path: Path
) -> None:
    """An object whose run has not ended stays, however long its end takes, as long as its server is there."""
    database = url.rpartition("/")[2]
    with server_on(url, tmp_path / "1", folder) as one, ThreadPoolExecutor(1) as pool:
        with postgres.admin(database) as db, db.transaction():
            db.execute("LOCK TABLE run_files IN SHARE ROW EXCLUSIVE MODE")
            ending = pool.submit(made, one)
            until(lambda: len(folder.names()) == 1, one.tail)
            folder.put("stray", b"")
            with postgres.admin(database) as other:
                other.execute("UPDATE file_objects SET written_until = now()")
                other.execute("INSERT INTO file_objects VALUES ('stray', 'gone', 'gone', now())")
            # Then there was a search.
            until(lambda: "stray" not in folder.names(), one.tail)
        run = ending.result()
        assert read(one, run.run_id) == run.content


DAMAGES: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "missing": (lambda _: None, "no such"),
    "cut": (lambda content: content[:-1], "bytes instead of"),
    "longer": (lambda content: content + b"x", "more than"),
    "changed": (lambda content: bytes([content[0] ^ 1]) + content[1:], "SHA-256"),
}


def test_damaged_objects_are_refused(url: str, location: Location, tmp_path: Path) -> None:
    """The error names run and object; the rest of the run is read, and the object once it is mended."""
    with server_on(url, tmp_path / "1", location) as one:
        run = made(one)
        (name,) = location.names()
        whole = location.get(name)
    with server_on(url, tmp_path / "2", location) as two:
        for damage, why in DAMAGES.values():
            content = damage(whole)
            location.remove(name)
            if content is not None:
                location.put(name, content)
            code, reason, message = refusal_of(two, run.run_id)
            assert (code, reason) == (grpc.StatusCode.DATA_LOSS, "RUN_DAMAGED")
            assert run.run_id in message
            assert name in message
            assert location.uri not in message
            assert two.logged("run_files_damaged", name, run.run_id, why)
        assert len(two.logged("run_files_damaged")) == len(DAMAGES)
        assert texts(finish(two.stub, run.run_id).events)
        location.put(name, whole)
        assert read(two, run.run_id) == run.content


def test_a_server_without_the_location(url: str, folder: FolderLocation, tmp_path: Path) -> None:
    """It says what it needs."""
    with server_on(url, tmp_path / "1", folder) as one:
        run = made(one)
    with DatabaseServer(tmp_path / "2", url) as two:
        assert two.logged("store_files_uri_missing")
        assert "--store-files-uri" in refusal_of(two, run.run_id)[2]


def test_files_above_the_limit_of_output(url: str, folder: FolderLocation, tmp_path: Path) -> None:
    """Nobody could read them, so they are not stored."""
    with server_on(url, tmp_path / "1", folder, "--max-files-bytes", str(LARGE - 1)) as one:
        run = made(one)
        assert not folder.names()
        message = refusal_of(one, run.run_id)[2]
        assert message.startswith("Not stored: ")
        assert "--max-files-bytes" in message


def test_a_store_that_is_away_when_runs_end(url: str, folder: FolderLocation, tmp_path: Path) -> None:
    """Attempts are repeated while there is time; then the run ends as ever, and its row says why."""
    away = folder.folder.with_name(f"{folder.folder.name}-away")
    # The time also holds for the check at the start.
    with server_on(url, tmp_path / "1", folder, "--uri-timeout", "10") as one:
        folder.folder.rename(away)
        try:
            lost = made(one)
        finally:
            away.rename(folder.folder)
        _, reason, message = refusal_of(one, lost.run_id)
        assert reason == "EXPORT_FAILED"
        assert message.startswith("Not stored: --store-files-uri cannot be written")
        assert str(folder.folder) not in message
        assert one.logged("run_files_not_stored", lost.run_id, "No such file")
    with server_on(url, tmp_path / "2", folder) as two, ThreadPoolExecutor(1) as pool:
        folder.folder.rename(away)
        ending = pool.submit(made, two)
        run_id = _until_ending(two)
        away.rename(folder.folder)
        assert read(two, run_id) == ending.result().content


def test_objects_are_not_forgotten_while_the_location_is_away(
    postgres: Postgres, url: str, folder: FolderLocation, tmp_path: Path
) -> None:
    """Those of deleted runs are removed, and those of other runs are read, once it is back."""
    with server_on(url, tmp_path / "1", folder, "--uri-timeout", "10") as server:
        kept, deleted = made(server), made(server)
        with folder.unmounted() as empty:
            server.stub.Delete(pb.DeleteRequest(run_id=deleted.run_id), timeout=SECONDS)
            assert server.logged("run_files_not_removed", deleted.run_id, "mounted")
            assert refusal_of(server, kept.run_id)[:2] == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
            assert server.logged("run_files_unreachable", kept.run_id, "mounted")
            lost = made(server)
            assert "cannot be written" in refusal_of(server, lost.run_id)[2]
            assert not list(empty.iterdir())
            # As after the time in which an object may still be written.
            with postgres.admin(url.rpartition("/")[2]) as db:
                db.execute("UPDATE file_objects SET written_until = now()")
        assert len(folder.names()) == 2
        _until_left(postgres, url, folder, {kept.run_id})
        assert read(server, kept.run_id) == kept.content


def test_another_location_is_refused(
    postgres: Postgres, url: str, folder: FolderLocation, tmp_path: Path
) -> None:
    """An empty one while the history has objects, and that of another history, also for a new one."""
    with server_on(url, tmp_path / "1", folder) as one, folder_location() as empty:
        run = made(one)
        own = ("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "2"))
        other = postgres.url(postgres.create_database())
        for store, place, why in ((url, empty, "is mounted"), (other, folder, "belongs to the history")):
            done = served(*own, "--store-files-uri", place.uri, **{STORE: store})
            assert done.returncode == 1
            assert f"--store-files-uri {place.uri} cannot be used" in done.stdout + done.stderr
            assert why in done.stdout + done.stderr
        assert not list(empty.folder.iterdir())
        assert read(one, run.run_id) == run.content


def _until_ending(server: Server) -> str:
    """Waits until the last cell of the newest run was executed; returns its id."""

    def has_ended() -> bool:
        run = server.stub.Get(pb.GetRequest(), timeout=SECONDS).run
        return run.state == pb.RUN_STATE_RUNNING and run.cells_completed == 1

    until(has_ended, server.tail)
    return server.stub.Get(pb.GetRequest(), timeout=SECONDS).run.run_id


def test_a_store_that_does_not_answer(url: str, tmp_path: Path) -> None:
    """It delays the end of the one run, and no other run and no call; then the run ends with its files."""
    with (
        s3_location() as objects,
        CuttingProxy(objects.environment["AWS_ENDPOINT_URL"].removeprefix("http://")) as proxy,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        objects.environment = {**objects.environment, "AWS_ENDPOINT_URL": f"http://{proxy.target}"}
        options = ("--uri-timeout", "600", "--workers", "2")
        with server_on(url, tmp_path / "1", objects, *options) as server:
            answering, proxy.server = proxy.server, silent.getsockname()
            # Its end admits the run that repeats it.
            large = inline(f"{WRITES.format(size=LARGE)}\nos.kill(os.getpid(), 9)", retry=retry(1))
            run_id = start(server.stub, large).run_id
            # The connection of the object's write, which nobody answers.
            waiting, _ = silent.accept()
            others = [perform(server.stub, inline("1")).run for _ in range(2)]
            assert {run.state for run in others} == {pb.RUN_STATE_SUCCEEDED}
            run = server.stub.Get(pb.GetRequest(run_id=run_id), timeout=SECONDS).run
            assert run.state == pb.RUN_STATE_RUNNING
            proxy.server = answering
            silent.close()
            waiting.close()
            first, second = chain(server.stub, run_id)
            assert first.state == second.state == pb.RUN_STATE_CRASHED
            assert {name.partition(".")[0] for name in objects.names()} == {first.run_id, second.run_id}
            assert len(read(server, run_id)) == LARGE


@asynccontextmanager
async def history_on(
    url: str, folder: Path, place: FolderLocation, kind: type[UriArchives] = UriArchives
) -> AsyncIterator[PostgresHistory]:
    """A history in this process, open until the block is left."""
    options = PostgresOptions(url, folder, LONG_LEASE, 1, LIMIT, pytest.fail)
    opened = PostgresHistory(folder, options, kind(place.uri, SECONDS), 10**9)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


class EndingFolder(TableFolder):
    """The folder of a run that ends between the first two reads of the row of its files."""

    has_ended = False

    @override
    async def _stored_files(self) -> Any:
        """Returns the row, but not at first."""
        found = await super()._stored_files() if self.has_ended else None
        self.has_ended = True
        return found


async def test_a_run_that_ends_while_its_files_are_packed(
    url: str, folder: FolderLocation, tmp_path: Path
) -> None:
    """The reader gets what was stored, wherever that is."""
    with server_on(url, tmp_path / "1", folder) as server:
        runs = [made(server), made(server, LIMIT)]
    (tmp_path / "2").mkdir()
    async with history_on(url, tmp_path / "2", folder) as opened:
        for run in runs:
            ending = EndingFolder(tmp_path / "2" / run.run_id, opened.database, opened.contents._archives)
            ending.create()
            (ending.work / "made.bin").write_bytes(b"not yet")
            await ending.pack_files(tmp_path / "files.zip", LARGE)
            with zipfile.ZipFile(tmp_path / "files.zip") as packed:
                assert packed.read("made.bin") == run.content


class DeletedFolder(EndingFolder):
    """The folder of a run that is deleted between the reads of the row and of the object of its files."""

    @override
    async def _stored_files(self) -> Any:
        """Returns a row, but only at first."""
        was_deleted, self.has_ended = self.has_ended, True
        return None if was_deleted else (1, "", StoredObject("one.zip", 1, ""))


async def test_a_run_that_is_deleted_while_its_object_is_read(
    url: str, folder: FolderLocation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its object is missing, which is no damage."""
    async with history_on(url, tmp_path, folder) as opened:
        deleted = DeletedFolder(tmp_path / "one", opened.database, opened.contents._archives)
        await deleted.pack_files(tmp_path / "files.zip", LARGE)
    assert not zipfile.ZipFile(tmp_path / "files.zip").namelist()
    assert "run_files_damaged" not in caplog.text


FULL = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
  $$BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END$$;
CREATE TRIGGER full_disk BEFORE INSERT ON file_objects EXECUTE FUNCTION refuse();
"""


async def test_a_full_database_does_not_repeat_the_packing(
    postgres: Postgres, url: str, folder: FolderLocation, tmp_path: Path
) -> None:
    """The zip waits beside the files until an object can be announced."""
    async with history_on(url, tmp_path, folder) as opened:
        run = a_run(RunState.RUNNING, run_id="one")
        own = opened.contents.folder("one")
        own.create()
        (own.work / "made.bin").write_bytes(bytes(10 * LIMIT))
        with postgres.admin(url.rpartition("/")[2]) as db:
            db.execute(FULL)
            with pytest.raises(StorageFullError):
                await opened.contents.prepare_end(run, asyncio.Event())
            db.execute("DROP TRIGGER full_disk ON file_objects")
        (own.work / "made.bin").unlink()
        assert not await opened.contents.prepare_end(run, asyncio.Event())
        (name,) = folder.names()
        assert zipfile.ZipFile(folder.folder / name).namelist() == ["made.bin"]


class StrangeArchives(UriArchives):
    """A location whose use fails in a way nobody has thought of."""

    @override
    async def write(self, name: str, source: Path, deadline: float) -> None:
        """Fails."""
        raise ValueError("strange")


async def test_any_failure_of_a_write_leaves_an_end(
    url: str, folder: FolderLocation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends without its files, and the log has the error."""
    async with history_on(url, tmp_path, folder, StrangeArchives) as opened:
        run = a_run(RunState.RUNNING, run_id="one")
        own = opened.contents.folder("one")
        own.create()
        (own.work / "made.bin").write_bytes(bytes(10 * LIMIT))
        assert not await opened.contents.prepare_end(run, asyncio.Event())
        problem = opened.contents._packed["one"].problem
        assert problem == "Not stored: internal error; see the server log."
    assert "strange" in caplog.text


@contextmanager
def silent_store(url: str, state: Path) -> Iterator[tuple[DatabaseServer, str]]:
    """A server whose object store does not answer, with a run that has ended but for its large files."""
    with (
        s3_location() as objects,
        CuttingProxy(objects.environment["AWS_ENDPOINT_URL"].removeprefix("http://")) as proxy,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        objects.environment = {**objects.environment, "AWS_ENDPOINT_URL": f"http://{proxy.target}"}
        with server_on(*(url, state, objects), *("--uri-timeout", "600", "--drain-timeout", "600")) as server:
            proxy.server = silent.getsockname()
            run_id = start(server.stub, inline(WRITES.format(size=LARGE))).run_id
            waiting, _ = silent.accept()
            with waiting:
                yield server, run_id


def test_a_kill_while_the_store_does_not_answer(url: str, tmp_path: Path) -> None:
    """It is durable and answered at once if wanted; the run ends soon after it, without its files."""
    with silent_store(url, tmp_path / "1") as (server, run_id):
        killing = server.stub.Kill(pb.KillRequest(run_id=run_id, no_wait=True), timeout=SECONDS)
        assert killing.run.state == pb.RUN_STATE_KILLING
        killed = server.stub.Kill(pb.KillRequest(run_id=run_id), timeout=SECONDS)
        assert killed.run.state == pb.RUN_STATE_KILLED
        message = refusal_of(server, run_id)[2]
        assert message == "Not stored: the run was stopped while its files were written."
        assert server.logged("run_files_not_stored", run_id)


def test_a_second_signal_while_the_store_does_not_answer(url: str, tmp_path: Path) -> None:
    """The server stops soon, and the run is interrupted."""
    with silent_store(url, tmp_path / "1") as (server, run_id):
        server.process.send_signal(signal.SIGTERM)
        assert server.logged("server_stopping")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SECONDS) == 0
    with DatabaseServer(tmp_path / "2", url) as other:
        run = other.stub.Get(pb.GetRequest(run_id=run_id), timeout=SECONDS).run
        assert run.state == pb.RUN_STATE_INTERRUPTED
        assert "while its files were stored" in run.failure.message


LOOKS = """
import os
for name, value in os.environ.items():
    if name.startswith("AWS_") or "SECRET" in name or {uri!r} in value:
        print("variable", name)
for path in {paths!r}:
    try:
        print("seen", os.listdir(path) if os.path.isdir(path) else open(path, "rb").read())
    except OSError as error:
        print(os.strerror(error.errno))
"""


def test_notebooks_have_no_access(url: str, location: Location, tmp_path: Path) -> None:
    """Neither to the credentials in the server's environment, nor to the files of other runs."""
    with server_on(url, tmp_path / "1", location) as server:
        made(server)
        paths = []
        if isinstance(location, FolderLocation):
            paths = [str(location.folder), str(location.folder / next(iter(location.names())))]
        ended = perform(server.stub, inline(LOOKS.format(uri=location.uri, paths=paths)))
        assert ended.run.state == pb.RUN_STATE_SUCCEEDED
        assert texts(ended.events).splitlines() == ["Permission denied"] * len(paths)
        texts_of = [str(server.stub.Info(pb.InfoRequest(), timeout=SECONDS)), str(server.log), *server.noise]
        assert not [text for text in texts_of if SECRET in text]


WRONG = {
    "missing folder": ("{uri}/missing", "No such file"),
    "missing bucket": ("s3://nowhere/prefix", "no such bucket"),
    "on the web": ("https://example.org/files", "not on the web"),
    "unknown scheme": ("ftp://example.org/files", "unknown scheme"),
    "credentials": ("s3://key:secret@bucket/prefix", "credentials are the server's own"),
    "in the state folder": ("{state}/files", "the state folder"),
    "above the state folder": ("{state}", "the state folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_location_that_cannot_be_used(url: str, folder: FolderLocation, tmp_path: Path, case: str) -> None:
    """The server says what is wrong, and does not start."""
    given, why = WRONG[case]
    uri = given.format(uri=folder.uri, state=tmp_path.as_uri())
    options = ("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "files"), "--uri-timeout", "30")
    with s3_location() as objects:
        done = served(*options, "--store-files-uri", uri, **{STORE: url}, **objects.environment)
    output = done.stdout + done.stderr
    assert done.returncode in {1, 2}, output
    assert "--store-files-uri" in output
    assert why in output
    assert "Traceback" not in output


def test_refused_credentials_at_the_start(url: str, tmp_path: Path) -> None:
    """The error has the service's reason and no key."""
    with s3_location() as place:
        place.objects.demand_credentials(wanted=True)
        options = ("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "state"))
        done = served(*options, "--store-files-uri", place.uri, **place.environment, **{STORE: url})
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert f"--store-files-uri {place.uri} cannot be used" in output
    assert SECRET not in output
