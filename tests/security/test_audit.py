"""The audit log: exactly one line for each action, with who, what, which run and from where."""

import contextlib
import json
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from notebook_runner_server.api.audit_interceptor import REFUSALS_PER_SECOND
from notebook_runner_server.api.tokens import add_new
from tests.faults import crashing_server
from tests.faults.crashing_server import VARIABLE
from tests.support.attacks import DENIED, attacked
from tests.support.calls import SECONDS, inline, perform
from tests.support.errors import refused
from tests.support.killable import KillableServer
from tests.support.polling import pause
from tests.support.scrape import ON, scrape
from tests.support.secure import (
    MISSING,
    TlsFolder,
    bearer,
    issue,
    listed,
    own_channel,
    roots,
    secure_channel,
)
from tests.support.server import SERVICE, Server
from tests.support.settings import served
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home

ABSENT = "20260101-000000-01234567"
CALL_FIELDS = {
    "time",
    "action",
    "caller",
    "method",
    "run_id",
    "owner",
    "code",
    "reason",
    "peer",
    "request_id",
}
SCOPES = {"ada": "run", "bob": "run", "eve": "run,read-all", "reader": "read"}
PROGRAM = [sys.executable, str(Path(crashing_server.__file__))]
# The tests' own folder is open to notebooks otherwise.
CLOSED = {"NOTEBOOK_RUNNER_WRITABLE_FOLDERS": ""}


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of an audit log, each of which is whole."""
    content = file.read_bytes()
    assert content.endswith(b"\n") or not content
    return [json.loads(line) for line in content.splitlines()]


class Audited:
    """A server with an audit log in a file, and tokens."""

    def __init__(
        self, folder: Path, *options: str, program: Sequence[str] = (), order: Path | None = None
    ) -> None:
        self.file = folder / "audit.log"
        self.tokens = folder / "tokens"
        self.token = {name: add_new(self.tokens, name, scope) for name, scope in SCOPES.items()}
        self.server = KillableServer(
            folder / "state",
            *("--tokens-file", str(self.tokens), "--audit-log", str(self.file), *options),
            program=program,
            environment=CLOSED | ({VARIABLE: str(order)} if order else {}),
        )

    def call(self, method: str, request: Message, caller: str = "ada", **headers: str) -> Any:
        """Makes a call."""
        metadata = [*bearer(self.token[caller]), *((key.replace("_", "-"), v) for key, v in headers.items())]
        return getattr(self.server.stub, method)(request, metadata=metadata, timeout=SECONDS)

    def run(self, *cells: str, caller: str = "ada", **fields: Any) -> str:
        """Runs a notebook to its end."""
        run_id = self.call("Start", inline(*cells, **fields), caller).run.run_id
        list(self.call("Progress", pb.ProgressRequest(run_id=run_id), caller))
        return str(run_id)

    def added(self, action: Callable[[], object]) -> list[dict[str, Any]]:
        """The lines that an action adds; they are there when its response is."""
        before = len(read(self.file))
        action()
        return read(self.file)[before:]


@contextmanager
def auditing(folder: Path, *options: str) -> Iterator[Audited]:
    """Such a server, running."""
    audited = Audited(folder, *options)
    with audited.server:
        yield audited


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    """One server for the tests that share it."""
    with auditing(tmp_path_factory.mktemp("audited"), "--queue", "1", "--heartbeat-interval", "0.2") as found:
        yield found


def only(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The one line of a call, with all fields."""
    (line,) = lines
    assert line.keys() - {"repeat"} == CALL_FIELDS
    assert datetime.fromisoformat(line["time"]).tzname() == "UTC"
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    return line


def shown(line: dict[str, Any]) -> tuple[str, ...]:
    """Who did what with which outcome."""
    return tuple(line[name] for name in ("action", "caller", "run_id", "owner", "code", "reason"))


def test_a_start(audited: Audited) -> None:
    """It has the run, its owner, the address and the id of the call; a repeat says so."""
    request = inline("1", request_id="once")
    seen: list[Any] = []

    def begin() -> None:
        seen.append(audited.call("Start", request, x_request_id="nightly-7").run.run_id)

    line = only(audited.added(begin))
    assert shown(line) == ("start", "ada", seen[0], "ada", "OK", "")
    assert (line["method"], line["request_id"]) == (SERVICE + "Start", "nightly-7")
    assert "repeat" not in line
    repeated = only(audited.added(begin))
    assert shown(repeated) == shown(line)
    assert repeated["repeat"] is True
    list(audited.call("Progress", pb.ProgressRequest(run_id=seen[0])))
    other = inline("2", request_id="once")
    reused = only(audited.added(lambda: refused(lambda: audited.call("Start", other))))
    assert shown(reused) == ("start", "ada", "", "", "ALREADY_EXISTS", "REQUEST_ID_REUSED")


def test_starts_that_fail(audited: Audited) -> None:
    """A request that is invalid, malformed or too much for a busy server."""
    bad = pb.StartRequest(notebook_content=b"{")
    line = only(audited.added(lambda: refused(lambda: audited.call("Start", bad))))
    assert shown(line) == ("start", "ada", "", "", "INVALID_ARGUMENT", "INVALID_NOTEBOOK")
    raw: Any = audited.server.channel.unary_unary(SERVICE + "Start")
    call = lambda: raw(b"\xff", metadata=bearer(audited.token["ada"]), timeout=SECONDS)  # noqa: E731 - one call
    line = only(audited.added(lambda: refused(call)))
    assert shown(line) == ("start", "ada", "", "", "INVALID_ARGUMENT", "INVALID_FIELD")
    sleeps = inline("import time; time.sleep(600)")
    runs = [audited.call("Start", sleeps).run.run_id for _ in range(2)]
    line = only(audited.added(lambda: refused(lambda: audited.call("Start", sleeps, "bob"))))
    assert shown(line) == ("start", "bob", "", "", "RESOURCE_EXHAUSTED", "RUNNER_BUSY")
    for run_id in reversed(runs):
        killed = only(audited.added(lambda: audited.call("Kill", pb.KillRequest(run_id=run_id))))  # noqa: B023 - called now
        assert shown(killed) == ("kill", "ada", run_id, "ada", "OK", "")


def test_kills_and_deletes(audited: Audited) -> None:
    """Each outcome of each call about a run, with the run that it means."""
    run_id = audited.run("1")
    for method, kind in (("Kill", pb.KillRequest), ("Delete", pb.DeleteRequest)):
        action = method.lower()
        cases = {
            ("bob", run_id): (action, "bob", run_id, "", "NOT_FOUND", "RUN_NOT_FOUND"),
            ("eve", run_id): ("refused", "eve", run_id, "ada", "PERMISSION_DENIED", "NOT_OWNER"),
            ("reader", run_id): ("refused", "reader", "", "", "PERMISSION_DENIED", "BAD_TOKEN"),
            ("ada", ABSENT): (action, "ada", ABSENT, "", "NOT_FOUND", "RUN_NOT_FOUND"),
        }
        for (caller, about), expected in cases.items():
            request = kind(run_id=about)
            call = lambda: refused(lambda: audited.call(method, request, caller))  # noqa: B023, E731 - called now
            line = only(audited.added(call))
            assert shown(line) == expected
            assert line["method"] == SERVICE + method
    # An empty id means the newest run of the caller, which the line names.
    assert shown(only(audited.added(lambda: audited.call("Kill", pb.KillRequest()))))[2] == run_id
    negative = pb.KillRequest(run_id=run_id)
    negative.grace_period.FromSeconds(-1)
    line = only(audited.added(lambda: refused(lambda: audited.call("Kill", negative))))
    assert shown(line) == ("kill", "ada", run_id, "", "INVALID_ARGUMENT", "INVALID_FIELD")
    line = only(audited.added(lambda: refused(lambda: audited.call("Delete", pb.DeleteRequest()))))
    assert shown(line) == ("delete", "ada", "", "", "INVALID_ARGUMENT", "INVALID_FIELD")
    line = only(audited.added(lambda: audited.call("Delete", pb.DeleteRequest(run_id=run_id))))
    assert shown(line) == ("delete", "ada", run_id, "ada", "OK", "")
    assert run_id in audited.file.read_text()


def test_a_delete_of_an_active_run(audited: Audited) -> None:
    """It names the run and its owner."""
    run_id = audited.call("Start", inline("import time; time.sleep(600)")).run.run_id
    line = only(
        audited.added(lambda: refused(lambda: audited.call("Delete", pb.DeleteRequest(run_id=run_id))))
    )
    assert shown(line) == ("delete", "ada", run_id, "ada", "FAILED_PRECONDITION", "RUN_ACTIVE")
    audited.call("Kill", pb.KillRequest(run_id=run_id))


# As many as have lines of their own in one second.
@pytest.mark.parametrize(
    "methods", [["Start", "Kill", "Delete", "Sudo", "Info"], ["Get", "List", "Output", "Progress"]]
)
def test_a_refused_call(tmp_path: Path, methods: list[str]) -> None:
    """Of every method, also of one that does not exist: without a token, and with one that is too little."""
    with auditing(tmp_path) as audited:
        for method in methods:
            raw: Any = audited.server.channel.unary_unary(SERVICE + method)
            cases: list[tuple[Any, str, str, str]] = [
                ((), "", "UNAUTHENTICATED", "MISSING_TOKEN"),
                (bearer("x" * 40), "", "UNAUTHENTICATED", "BAD_TOKEN"),
            ]
            if method in ("Start", "Kill", "Delete", "Sudo"):
                little = bearer(audited.token["reader"])
                cases.append((little, "reader", "PERMISSION_DENIED", "BAD_TOKEN"))
            for metadata, caller, code, reason in cases:
                call = lambda: raw(b"", metadata=metadata, timeout=SECONDS)  # noqa: B023, E731 - called now
                line = only(audited.added(lambda: refused(call)))  # noqa: B023 - called now
                assert shown(line) == ("refused", caller, "", "", code, reason)
                assert line["method"] == SERVICE + method


def test_reading_has_no_line(audited: Audited) -> None:
    """Neither a call that reads, nor one that reads what is not there, nor a health check."""
    run_id = audited.run("1")

    def reads() -> None:
        for about in (run_id, ABSENT):
            for method, request in (
                ("Get", pb.GetRequest(run_id=about)),
                ("Output", pb.OutputRequest(run_id=about)),
                ("List", pb.ListRequest()),
                ("Info", pb.InfoRequest()),
            ):
                with contextlib.suppress(grpc.RpcError):
                    audited.call(method, request)

    assert audited.added(reads) == []


def test_a_stream_whose_token_is_removed(tmp_path: Path) -> None:
    """It has a line when it ends, and the tokens that came and went have one with their names alone."""
    with auditing(tmp_path, "--heartbeat-interval", "0.2") as audited:
        run_id = audited.call("Start", inline("import time; time.sleep(600)")).run.run_id
        stream = audited.call("Progress", pb.ProgressRequest(run_id=run_id), "eve")
        next(stream)
        before = audited.tokens.read_text().splitlines()
        kept = [line for line in before if not line.startswith(("eve", "bob"))]
        new = tmp_path / "new"
        second = [add_new(new, name, "run") for name in ("carol", "bob")]
        audited.tokens.write_text("\n".join([*kept, new.read_text()]))
        lines = audited.added(lambda: refused(lambda: list(stream)))
        changed, ended = lines
        assert {name: changed[name] for name in changed if name != "time"} == {
            "action": "tokens_changed",
            "added": ["carol"],
            "removed": ["eve"],
            "changed": ["bob"],
        }
        assert shown(ended)[:2] == ("refused", "eve")
        assert shown(ended)[4:] == ("UNAUTHENTICATED", "BAD_TOKEN")
        content = audited.file.read_text()
        assert not any(secret in content for secret in (*audited.token.values(), *second, "sha256"))
        # A file with another comment gives access to nobody else.
        audited.tokens.write_text("# a comment\n" + audited.tokens.read_text())
        assert [
            line["action"]
            for line in audited.added(lambda: audited.call("Kill", pb.KillRequest(run_id=run_id)))
        ] == ["kill"]


def test_certificates_that_change(tmp_path: Path) -> None:
    """The line has the authorities of callers that came and went, and which files changed."""
    own, first, second = trustme.CA(), trustme.CA(), trustme.CA(organization_unit_name="second")
    folder, file = TlsFolder(tmp_path, issue(own), roots(first)), tmp_path / "audit.log"
    options = (*folder.options, "--audit-log", str(file))
    caller = issue(second, "ci.example", common_name="ci")
    with Server(tmp_path / "state", *options, environment=CLOSED) as server:
        folder.put(issue(own), roots(second))
        with secure_channel(server.target, roots(own), caller) as channel:
            stub = rpc.NotebookRunnerStub(channel)
            end = stub.Start(inline("1"), timeout=SECONDS).run.run_id
            list(stub.Progress(pb.ProgressRequest(run_id=end), timeout=SECONDS))
    changed, began = read(file)
    assert changed["action"] == "certificates_changed"
    assert changed["changed"] == ["tls_cert", "tls_key", "tls_client_ca"]
    assert [one.count("second") for one in changed["added"]] == [1]
    assert [one.count("Testing CA") for one in changed["removed"]] == [1]
    assert shown(only([began])) == ("start", "ci", end, "ci", "OK", "")


def test_a_server_without_credentials(tmp_path: Path) -> None:
    """Its callers have no names; the line on the log has the same fields as in a file."""
    with Server(tmp_path / "state") as server:
        run_id = perform(server.stub, inline("1")).run.run_id
        line, _ = server.logged("audit", run_id, count=2)
        assert shown(line) == ("start", "", run_id, "", "OK", "")
        assert line.keys() >= CALL_FIELDS - {"time"} | {"timestamp"}


def test_the_level_of_the_log() -> None:
    """It does not remove the lines."""
    source = (
        "from notebook_runner_server import audit, logs; logs.configure('json', 'error');"
        "audit.AuditLog('log').write('start', run_id='x')"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=60, check=True)
    line = json.loads(done.stderr)
    assert (line["event"], line["action"], line["run_id"]) == ("audit", "start", "x")


def test_no_audit_log(tmp_path: Path) -> None:
    """With `off` there is no line, and calls are as ever."""
    with Server(tmp_path / "state", "--audit-log", "off") as server:
        perform(server.stub, inline("1"))
        server.logged("run")
        assert not server.said("audit")


def test_a_cancelled_start(audited: Audited) -> None:
    """The run of a Start that its caller gave up has a line in any case, with the run if it may exist."""
    for _ in range(20):
        before = len(read(audited.file))
        request = inline("1")
        call = audited.server.stub.Start.future(request, metadata=bearer(audited.token["bob"]))
        call.cancel()
        listed(audited.server.channel, audited.token["bob"])
        lines = [one for one in read(audited.file)[before:] if one["action"] == "start"]
        assert len(lines) <= 1
    runs = audited.call("List", pb.ListRequest(page_size=1000), "bob").runs
    known = {one["run_id"] for one in read(audited.file) if one["action"] == "start"}
    for run in runs:
        list(audited.call("Progress", pb.ProgressRequest(run_id=run.run_id), "bob"))
    assert {run.run_id for run in runs} <= known


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run_id=TEXT, tail=st.sampled_from(["", '\n{"action": "start"}', "\r\n", "\u2028x", "\x1b[2J", "\0"]))
def test_a_forged_id(audited: Audited, run_id: str, tail: str) -> None:
    """Whatever a caller sends as an id, it adds one line of printable ASCII, of bounded length."""
    size = audited.file.stat().st_size
    request = pb.KillRequest(run_id=f"x{run_id}{tail}")
    line = only(audited.added(lambda: refused(lambda: audited.call("Kill", request))))
    assert shown(line)[:2] == ("kill", "ada")
    assert line["run_id"] == request.run_id[:128]
    new = audited.file.read_bytes()[size:]
    assert new.count(b"\n") == 1
    assert new[:-1].decode("ascii").isprintable()
    assert len(new) < 2500


def test_a_flood_of_refusals(tmp_path: Path) -> None:
    """It fills a bounded number of lines, and one counts the rest; it hides no refusal of a known caller."""
    count = 400
    with auditing(tmp_path) as audited:
        begin = time.monotonic()
        with own_channel(audited.server.target) as channel, ThreadPoolExecutor(20) as pool:
            raw: Any = channel.unary_unary(SERVICE + "List")
            calls = [pool.submit(refused, lambda: raw(b"", timeout=SECONDS)) for _ in range(count)]
            refused(lambda: audited.call("Start", inline("1"), "reader"))
            assert {call.result().kind for call in calls} == {MISSING}
        seconds = time.monotonic() - begin
        while sum(line.get("count", 1) for line in read(audited.file)) < count + 1:
            pause()
    lines = read(audited.file)
    assert len([one for one in lines if one.get("caller") == "reader"]) == 1
    unknown = [one for one in lines if not one["caller"]]
    summaries = [one for one in unknown if one["action"] == "more_refused"]
    assert sum(one.get("count", 1) for one in unknown) == count
    # Each second has as many lines as there may be, and then perhaps one that counts the rest.
    assert len(unknown) - len(summaries) <= REFUSALS_PER_SECOND * (seconds + 2)
    assert len(summaries) <= seconds + 2
    assert summaries or seconds > count / REFUSALS_PER_SECOND - 2


def test_the_rest_of_a_flood_is_counted_when_the_server_stops(tmp_path: Path) -> None:
    """What was refused in the last second before the end is in the log, too."""
    count = REFUSALS_PER_SECOND + 7
    with auditing(tmp_path) as audited:
        raw: Any = audited.server.channel.unary_unary(SERVICE + "List")
        for _ in range(count):
            refused(lambda: raw(b"", timeout=SECONDS))
    assert sum(line.get("count", 1) for line in read(audited.file)) == count


def test_rotation(tmp_path: Path) -> None:
    """Lines after a rename, or a removal, go to a new file; none is lost, and only the user reads them."""
    with auditing(tmp_path) as audited:
        file, old = audited.file, audited.file.with_name("audit.log.1")
        first = audited.run("1")
        file.rename(old)
        second = audited.run("2")
        assert [line["run_id"] for line in read(old)] == [first]
        assert [line["run_id"] for line in read(file)] == [second]
        file.unlink()
        third = audited.run("3")
        assert [line["run_id"] for line in read(file)] == [third]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        # Truncated by the program that rotates: no hole is left.
        with file.open("rb+") as opened:
            opened.truncate()
        fourth = audited.run("4")
        assert [line["run_id"] for line in read(file)] == [fourth]


def test_rotation_under_load(tmp_path: Path) -> None:
    """Every call has its one whole line in one of the files, however often they are renamed."""
    callers, calls = 4, 60
    with auditing(tmp_path) as audited:
        done = threading.Event()

        def rotate() -> None:
            number = 0
            while not done.is_set():
                if audited.file.exists():
                    number += 1
                    audited.file.rename(audited.file.with_name(f"audit.log.{number}"))
                pause()

        def call(number: int) -> None:
            for index in range(calls):
                request = pb.KillRequest(run_id=f"{number}-{index}")
                refused(lambda: audited.call("Kill", request))  # noqa: B023 - called now

        rotating = threading.Thread(target=rotate)
        rotating.start()
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(call, range(callers)))
        done.set()
        rotating.join()
    lines = [line for file in tmp_path.glob("audit.log*") for line in read(file)]
    expected = {f"{number}-{index}" for number in range(callers) for index in range(calls)}
    assert len(lines) == callers * calls
    assert {line["run_id"] for line in lines} == expected


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """Calls go on, their lines go to the log, a metric counts them; then the file is written again."""
    with auditing(tmp_path, *ON) as audited:
        server, file = audited.server, audited.file
        assert scrape(server).value("audit_failures_total") == 0
        file.unlink()
        file.mkdir()
        run_id = audited.run("1")
        audited.call("Kill", pb.KillRequest(run_id=run_id))
        first, second = server.logged("audit", count=2)
        assert [shown(first)[0], shown(second)[0]] == ["start", "kill"]
        assert first["run_id"] == second["run_id"] == run_id
        (complaint,) = server.logged("audit_not_written")
        assert complaint["level"] == "error"
        assert scrape(server).value("audit_failures_total") == 2
        file.rmdir()
        audited.call("Delete", pb.DeleteRequest(run_id=run_id))
        assert [line["action"] for line in read(file)] == ["delete"]
        (mended,) = server.logged("audit_written_again")
        assert mended["failures"] == 2


def test_a_full_disk(tmp_path: Path) -> None:
    """A line that fits only in part goes to the log as a whole, and the next one starts on its own line."""
    with auditing(tmp_path) as audited:
        run_id = audited.run("1")
        # Larger than any other file of the server, none of which the limit may reach.
        audited.file.write_bytes(b"\n" * 32 * 1024 * 1024)
        size, left = audited.file.stat().st_size, 40
        pid = audited.server.process.pid
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + left, most))
        for _ in range(2):
            audited.call("Kill", pb.KillRequest(run_id=run_id))
        assert [line["action"] for line in audited.server.logged("audit", run_id, count=2)] == ["kill"] * 2
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
        audited.call("Delete", pb.DeleteRequest(run_id=run_id))
        torn, last = audited.file.read_bytes()[size:].splitlines()
        assert len(torn) == left
        assert shown(only([json.loads(last)]))[:3] == ("delete", "ada", run_id)


@pytest.mark.parametrize("method", ["Start", "Delete"])
@pytest.mark.parametrize("point", ["before-commit", "after-commit"])
def test_a_server_that_dies_before_it_responds(tmp_path: Path, method: str, point: str) -> None:
    """No line says OK of what is not durable; a run that is durable has one when it can execute."""
    order = tmp_path / "order"
    audited = Audited(tmp_path, "--warm-kernels", "none", program=PROGRAM, order=order)
    with audited.server as server:
        run_id = audited.run("1")
        before = len(read(audited.file))
        order.write_text(f"{point}:1")
        with pytest.raises(grpc.RpcError):
            audited.call(method, inline("2") if method == "Start" else pb.DeleteRequest(run_id=run_id))
        server.buried()
    order.unlink()
    assert read(audited.file)[before:] == []
    audited = Audited(tmp_path)
    with audited.server as server:
        (found,) = [{run.run_id for run in audited.call("List", pb.ListRequest()).runs}]
        lines = read(audited.file)[before:]
        if method == "Delete":
            assert found == (set() if point == "after-commit" else {run_id})
            assert lines == []
        else:
            assert {line["run_id"] for line in lines} == found - {run_id}
            assert [(one["action"], one["owner"]) for one in lines] == [("recovered", "ada")] * (
                len(found) - 1
            )
            assert len(found) == 1 + (point == "after-commit")


ATTACK = """
file, folder = Path({file!r}), Path({file!r}).parent
attempt("read", lambda: open(file, "rb").read())
attempt("append", lambda: os.open(file, os.O_WRONLY | os.O_APPEND))
attempt("truncate", lambda: os.truncate(file, 0))
attempt("remove", lambda: os.unlink(file))
attempt("rename", lambda: os.rename(file, folder / "gone"))
attempt("replace", lambda: os.rename(run_folder / "mine", file))
attempt("hard link", lambda: os.link(file, run_folder / "hard"))
attempt("new file", lambda: open(folder / "audit.log.2", "w"))
attempt("descriptor", lambda: open("/proc/self/fd/%d" % os.open(file, os.O_PATH), "rb").read())
attempt("of the server", lambda: os.listdir(f"/proc/{{server}}/fd"))
attempt("rotated", lambda: open(folder / "audit.log.1", "rb").read())
attempt("rotated to write", lambda: os.open(folder / "audit.log.1", os.O_WRONLY))
os.symlink(file, run_folder / "soft")
attempt("link", lambda: open(run_folder / "soft", "rb").read())
"""


@pytest.mark.parametrize("mode", ["warm", "cold"])
def test_a_notebook(make_home: Callable[[], Path], mode: str) -> None:
    """It can neither read, change nor replace the file, nor what the file was renamed to."""
    home = make_home()
    file = home.parent / "audit" / "audit.log"
    file.parent.mkdir()
    options = [] if mode == "warm" else ["--no-warm-kernels"]
    server = UnprivilegedServer(home, "--audit-log", str(file), *options)
    server.give(file.parent)
    with server:
        perform(server.stub, inline("1"))
        file.rename(file.with_name("audit.log.1"))
        perform(server.stub, inline("2"))
        before = file.read_bytes()
        found = attacked(server, "(run_folder / 'mine').touch()" + ATTACK.format(file=str(file)), mode=mode)
        assert {name: got for name, got in found.items() if got not in DENIED} == {}
        assert len(found) == 13
        assert file.read_bytes().startswith(before)
        assert len(read(file)) >= len(before.splitlines()) + 1


@pytest.fixture
def make_home() -> Iterator[Callable[[], Path]]:
    """Makes homes of servers that an ordinary user runs."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(unprivileged_home())


def checked(*options: str) -> str:
    """What `--check` says."""
    done = served("--check", *options)
    assert (done.returncode == 0) is not done.stderr.startswith("Error"), done
    return done.stdout + done.stderr


def test_a_file_that_runs_could_change(tmp_path: Path) -> None:
    """It is refused at the start: in the state folder, and in each folder that a run can write."""
    root, opened, uris, state = (tmp_path / name for name in ("root", "opened", "uris", "state"))
    for folder in (root, opened, uris, state):
        (folder / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(opened)
    options = [
        *("--state-dir", str(state), "--notebook-root", str(root), "--writable-folders", str(opened)),
        *("--uri-schemes", "file", "--uri-folders", str(uris)),
    ]
    for folder in (root / "deep", opened, uris / "deep", state, Path("/dev/shm"), tmp_path / "link"):  # noqa: S108 - refused
        told = checked("--audit-log", str(folder / "audit.log"), *options)
        assert "where runs can change files" in told
        assert str(folder / "audit.log") in told
    assert "valid" in checked("--audit-log", str(tmp_path / "audit.log"), *options)


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    """`--check` says why, and creates nothing; a server does not start."""
    file = tmp_path / "audit.log"
    state = ("--state-dir", str(tmp_path / "state"))
    assert "valid" in checked("--audit-log", str(file), *state)
    assert not file.exists()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "open").touch()
    (tmp_path / "open").chmod(0o662)
    cases = {
        str(tmp_path / "none" / "audit.log"): "does not exist",
        str(tmp_path / "folder"): "regular file",
        str(tmp_path / "link"): "regular file",
        str(tmp_path / "pipe"): "regular file",
        str(tmp_path / "open"): "chmod go-w",
        "": "--audit-log must be",
    }
    for target, why in cases.items():
        for told in (checked("--audit-log", target, *state), served("--audit-log", target, *state).stderr):
            assert why in told
            assert "Traceback" not in told
    assert not (tmp_path / "state").exists()


def test_without_a_sandbox(tmp_path: Path) -> None:
    """`--check` warns that notebooks can change the file."""
    told = checked("--sandbox", "off", "--audit-log", str(tmp_path / "audit.log"))
    assert "Warning: with --sandbox off, notebooks can change --audit-log" in told
    assert "Warning" not in checked("--sandbox", "off")
