"""Files beside the notebook: written before the first cell, wherever the run is executed."""

import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import artefact, finish, inline, perform, start, texts
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.killable import KillableServer
from tests.support.server import Server
from tests.support.warm import ON, kept, until_warm

pytestmark = pytest.mark.guarantee

FILES = {
    "data.csv": b"a,b\n1,2\n",
    "utils/__init__.py": b"",
    "utils/deep/er/more.bin": bytes(range(256)) * 1000,
    "module.py": b"ANSWER = 42\n",
    "Gr\u00fc\u00dfe \u2603.txt": b"",
}
# Modules are imported, data is read by its relative path, and nothing else is there.
READS = """
import os, pathlib, module, utils
print(module.ANSWER, utils.__name__, open("data.csv").read())
found = {str(one): one.read_bytes() for one in pathlib.Path().rglob("*") if one.is_file()}
print(sorted(name for name in found if "__pycache__" not in name))
print(sum(map(len, found.values())) > 256_000, os.getcwd() == os.environ["NOTEBOOK_RUNNER_RUN_DIR"])
print(pathlib.Path("data.csv").stat().st_mode & 0o777 == 0o600)
open("data.csv", "a").write("3,4\\n")
"""


def files(contents: Mapping[str, bytes]) -> list[pb.InputFile]:
    """Files of a request."""
    return [pb.InputFile(path=path, content=content) for path, content in contents.items()]


def check(ended: tuple[pb.Run, list[pb.ProgressResponse]]) -> None:
    """The notebook has found its files."""
    run, events = ended
    assert run.state == pb.RUN_STATE_SUCCEEDED, run.failure
    names = sorted(FILES)
    assert texts(events) == f"42 utils a,b\n1,2\n\n{names}\nTrue True\nTrue\n"


def zipped(server: Server, run_id: str) -> dict[str, bytes]:
    """The files of a run."""
    with zipfile.ZipFile(io.BytesIO(artefact(server.stub, run_id, format="files"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_files_are_there_before_the_first_cell(server: Server) -> None:
    """In the working folder, with modules; the files of the run contain them, as the run left them."""
    ended = perform(server.stub, inline(READS, files=files(FILES)))
    check(ended)
    left = zipped(server, ended.run.run_id)
    assert left.items() >= {**FILES, "data.csv": b"a,b\n1,2\n3,4\n"}.items()


@pytest.fixture(scope="module", params=["warm", "cold", "without sandbox"])
def isolated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose kernels come to be in one way."""
    options = {"warm": ON, "cold": ["--no-warm-kernels"], "without sandbox": [*ON, "--sandbox", "off"]}
    with Server(tmp_path_factory.mktemp("state"), *options[str(request.param)]) as server:
        if request.param != "cold":
            kept(server)
            until_warm(server)
        yield server


@pytest.mark.long
def test_every_kind_of_kernel_finds_them(isolated: Server) -> None:
    """A warm kernel, a cold one, and one without a sandbox."""
    for _ in range(2):
        check(perform(isolated.stub, inline(READS, files=files(FILES))))


def test_runs_do_not_share_files(server: Server) -> None:
    """The next run has none of those of the run before."""
    perform(server.stub, inline("1", files=files(FILES)))
    ended = perform(server.stub, inline("import os; print(os.listdir())"))
    assert texts(ended.events) == "[]\n"


@pytest.mark.state_folder("it reads the files of a queued run")
def test_a_queued_run_keeps_its_files_over_a_restart(
    tmp_path_factory: pytest.TempPathFactory, gate: Gate
) -> None:
    """They are durable with the Start, and gone from the state folder at the end of the run."""
    state = tmp_path_factory.mktemp("state")
    with KillableServer(state, "--queue", "1") as server:
        start(server.stub, inline(gate.source))
        run = start(server.stub, inline(READS, files=files(FILES)))
        folder = state / "runs" / run.run_id
        assert (folder / "input-files").stat().st_mode & 0o777 == 0o600
        server.die()
        gate.open()
    with KillableServer(state) as server:
        check(finish(server.stub, run.run_id))
        assert not (folder / "input-files").exists()


def test_files_belong_to_the_request(server: Server) -> None:
    """The same request id with other files is another request, with the same files the same one."""
    request = inline("1", request_id="with files", files=files({"a": b"1"}))
    first = perform(server.stub, request).run
    assert start(server.stub, request).run_id == first.run_id
    for other in ({"a": b"2"}, {"b": b"1"}, {}):
        again = pb.StartRequest(
            notebook_content=request.notebook_content, request_id=request.request_id, files=files(other)
        )
        assert refused(partial(start, server.stub, again)).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        ([""], "it is empty"),
        (["/etc/passwd"], "it is absolute"),
        (["../environment"], "'.' and '..' are not names"),
        (["a/../../b"], "'.' and '..' are not names"),
        (["./a"], "'.' and '..' are not names"),
        (["a//b"], "an empty name"),
        (["a/"], "an empty name"),
        (["a\0b"], "it contains NUL"),
        (["a\\b"], "it contains a backslash"),
        (["\u00e4" * 128], "a name has more than 255 bytes"),
        (["/".join(["a" * 100] * 11)], "it has more than 1024 bytes"),
        (["a", "b", "a"], "'a' is given twice"),
        (["a/b", "a"], "'a' is a file, and the folder of another one"),
        ([str(number) for number in range(1001)], "at most 1000 files are allowed (got 1001)"),
    ],
)
def test_paths_that_are_no_files_of_the_folder_are_refused(
    server: Server, paths: list[str], why: str
) -> None:
    """Nothing runs, and the message says which path, and why."""
    given = [pb.InputFile(path=path) for path in paths]
    error = refused(lambda: start(server.stub, inline("1", files=given)))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert why in error.message
    assert error.message.startswith("files: ")


@pytest.mark.parametrize("path", ["folder/place.ipynb", ""])
def test_a_run_in_a_folder_of_notebooks_takes_no_files(server: Server, path: str) -> None:
    """Named by its path, or the default notebook: no request writes into that folder."""
    named = pb.StartRequest(notebook_path=path) if path else pb.StartRequest()
    request = pb.StartRequest(files=files({"a": b""}))
    request.MergeFrom(named)
    error = refused(lambda: start(server.stub, request))
    assert error.reason == "INVALID_FIELD"
    assert "notebook_content" in error.message


def test_files_are_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Up to the limit they run, beside a notebook of any allowed size; above it they are refused."""
    limits = ("--max-input-files-bytes", "5000000", "--max-notebook-bytes", "1000000")
    with Server(tmp_path_factory.mktemp("state"), *limits) as server:
        half = os.urandom(2_500_000)
        most = files({"a": half, "b": half})
        large = f"'{'x' * 990_000}'\nimport os; print(os.path.getsize('a') + os.path.getsize('b'))"
        assert texts(perform(server.stub, inline(large, files=most)).events) == "5000000\n"
        error = refused(
            lambda: start(server.stub, inline("1", files=[*most, pb.InputFile(path="c", content=b"x")]))
        )
        assert error.reason == "INVALID_FIELD"
        assert "--max-input-files-bytes" in error.message


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("open('data.csv')", "send the file with `files`"),
        ("import pathlib; open(pathlib.Path('data.csv').resolve())", "send the file with `files`"),
        ("import no_such_module_here", "send the notebook's own modules with `files`"),
        ("open('/no/such/file')", ""),
        ("import subprocess; subprocess.run(['no-such-program'])", ""),
        ("raise ValueError('data.csv')", ""),
    ],
)
def test_a_missing_file_has_a_hint(server: Server, source: str, hint: str) -> None:
    """The message of the failure says what to do about a file or module that a private folder lacks."""
    failure = perform(server.stub, inline(source)).run.failure
    assert failure.message.startswith(
        f"The cell raised {failure.exception_name}: {failure.exception_message}"
    )
    if hint:
        assert hint in failure.message
    else:
        assert "`files`" not in failure.message


def test_a_run_in_a_folder_of_notebooks_has_no_hint(notebook_root: Path, server: Server) -> None:
    """There, files cannot be sent."""
    (notebook_root / "missing.ipynb").write_bytes(inline("open('data.csv')").notebook_content)
    failure = perform(server.stub, pb.StartRequest(notebook_path="missing.ipynb")).run.failure
    assert failure.exception_name == "FileNotFoundError"
    assert "`files`" not in failure.message
