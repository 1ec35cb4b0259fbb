"""What is left of a deleted run: nothing, in any file of the state folder, down to the bytes."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nbformat import NotebookNode

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, artefact, duration, finish, perform, start, struct
from tests.support.killable import KillableServer, forgotten
from tests.support.notebooks import code, content, markdown
from tests.support.server import Server

PLACES = (
    *("source", "text", "parameter", "label", "name", "request", "stdout", "display", "value", "traceback"),
    *("file", "path", "left", "environment"),
)
# What is removed at the run's end already, or is only in the names of files.
SHORT_LIVED = {"file", "environment"}


@dataclass(frozen=True)
class Marked:
    """A request with a mark of its own in everything that a caller or a notebook can bring.

    Attributes:
        mark: The mark of each place.
    """

    mark: dict[str, str] = field(default_factory=lambda: {one: secrets.token_hex(16) for one in PLACES})

    def request(self, retention: float | None = None) -> pb.StartRequest:
        """The request."""
        mark = self.mark
        cells: list[str | NotebookNode] = [
            code("given = ''", "parameters"),
            markdown(mark["text"]),
            f"x = '{mark['source']}'\nprint('{mark['stdout'][:16]}' + '{mark['stdout'][16:]}')",
            (
                "from IPython.display import HTML, display\n"
                f"display(HTML('{mark['display'][:16]}' + '{mark['display'][16:]}'))"
            ),
            (
                "display({'application/scrapbook.scrap.json+json': {'name': 'value', 'data': "
                f"'{mark['value']}'}}}}, raw=True)"
            ),
            f"open('left.txt', 'w').write('{mark['left'][:16]}' + '{mark['left'][16:]}')",
            f"raise ValueError('{mark['traceback'][:16]}' + '{mark['traceback'][16:]}')",
        ]
        return pb.StartRequest(
            notebook_content=content(*cells),
            parameters=struct({"given": mark["parameter"]}),
            labels={"a": mark["label"]},
            name=mark["name"],
            request_id=mark["request"],
            environment={"SECRET": mark["environment"]},
            files=[pb.InputFile(path=f"{mark['path']}.csv", content=mark["file"].encode())],
            retention=None if retention is None else duration(retention),
        )

    def found(self, state: Path) -> set[str]:
        """The places whose marks are in the state folder: in a file, or in the name of one."""
        found = set()
        for path in everything(state):
            searched = str(path).encode()
            if path.is_file():
                searched += path.read_bytes()
            found |= {place for place, mark in self.mark.items() if mark.encode() in searched}
        return found


def everything(state: Path) -> Iterator[Path]:
    """All that is in a state folder, and in the folders for temporary files that it links to."""
    for top in (state, *(link.resolve() for link in state.iterdir() if link.is_symlink())):
        for folder, names, files in os.walk(top):
            yield from (Path(folder, name) for name in (*names, *files))


def perform_marked(server: Server, marked: Marked, *formats: str, retention: float | None = None) -> str:
    """Performs the request, and makes artefacts of these formats."""
    run = perform(server.stub, marked.request(retention)).run
    assert run.state == pb.RUN_STATE_FAILED
    assert run.results
    for form in formats:
        artefact(server.stub, run.run_id, format=form)
    return run.run_id


@pytest.mark.process_pool("the state folder of a Dask worker is on another machine")
def test_a_delete_leaves_no_byte(tmp_path: Path) -> None:
    """Before it, each mark is there; after it none is, also when the server has stopped, or started again."""
    state = tmp_path / "state"
    marked, other = Marked(), Marked()
    with Server(state) as server:
        run_id = perform_marked(server, marked, "notebook", "html", "files", "error")
        kept = perform_marked(server, other)
        assert marked.found(state) == set(PLACES) - SHORT_LIVED | {"file"}
        server.stub.Delete(pb.DeleteRequest(run_id=run_id), timeout=SECONDS)
        assert marked.found(state) == set()
        assert other.found(state) == set(PLACES) - SHORT_LIVED | {"file"}
        assert not [one for one in everything(state) if run_id in str(one)]
    assert marked.found(state) == set()
    with Server(state) as server:
        assert marked.found(state) == set()
        assert artefact(server.stub, kept)


@pytest.mark.process_pool("the state folder of a Dask worker is on another machine")
def test_retention_leaves_no_byte(tmp_path: Path) -> None:
    """A run whose time is over goes in the same way."""
    state, marked = tmp_path / "state", Marked()
    with KillableServer(state) as server:
        run_id = perform_marked(server, marked, retention=0.0)
        server.die()
    with KillableServer(state) as server:
        forgotten(server, run_id)
        # The next transaction comes after all that belongs to the removal.
        perform(server.stub, pb.StartRequest(notebook_content=content("1")))
        assert marked.found(state) == set()


@pytest.mark.process_pool("the state folder of a Dask worker is on another machine")
def test_a_queued_run_that_is_killed_leaves_no_byte(tmp_path: Path) -> None:
    """Its environment and files, which no worker has got, are gone with its end; the rest with its Delete."""
    state, marked = tmp_path / "state", Marked()
    with Server(state, "--queue", "1") as server:
        first = start(server.stub, pb.StartRequest(notebook_content=content("import time; time.sleep(600)")))
        run = start(server.stub, marked.request())
        assert marked.found(state) >= {"environment", "file", "source", "parameter"}
        for one in (run, first):
            server.stub.Kill(pb.KillRequest(run_id=one.run_id), timeout=SECONDS)
        finish(server.stub, run.run_id)
        assert not marked.found(state) & {"environment", "file"}
        server.stub.Delete(pb.DeleteRequest(run_id=run.run_id), timeout=SECONDS)
        assert marked.found(state) == set()
