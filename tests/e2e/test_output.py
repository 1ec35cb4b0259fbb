"""Output: artefacts of every format, at any time, in pages, always the same bytes."""

import hashlib
import io
import zipfile

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, artefact, executed, inline, pages, perform, reach, started
from tests.support.gate import Gate
from tests.support.notebooks import parsed, printed
from tests.support.server import Server

pytestmark = pytest.mark.guarantee

CELLS = ("print('first words')", "from IPython.display import HTML; HTML('<b>bold</b>')", "6 * 7")
FILES_CELL = """
import pathlib
folder = pathlib.Path("results/deep")
folder.mkdir(parents=True)
(folder / "data.bin").write_bytes(bytes(range(256)) * 1000)
pathlib.Path("Grüße.txt").write_text("hello")
"""


def test_finished_cells_are_there_while_the_run_goes_on(server: Server, gate: Gate) -> None:
    """The notebook of a running run has the output of the cells that have ended."""
    with started(server.stub, inline("print('done')", gate.source, "'never'")) as run:
        told = reach(server.stub, run.run_id, "cell_started", cell=1)
        answer = server.stub.Output(pb.OutputRequest(run_id=run.run_id), timeout=SECONDS)
        node = parsed(answer.content)
    assert answer.run.state == pb.RUN_STATE_RUNNING
    assert answer.run.current_cell == 1
    assert answer.sha256 == ""
    assert answer.as_of_sequence >= told.sequence - 1
    assert printed(node, 0) == "done\n"
    assert len(node.cells) == 3
    assert node.cells[2].outputs == []


def test_pages_stay_consistent_while_the_run_goes_on(server: Server, gate: Gate) -> None:
    """A caller that began to read a running run's notebook reads on in the same one."""
    with started(server.stub, inline("print('done')", gate.source, "print('later')")) as run:
        reach(server.stub, run.run_id, "cell_started", cell=1)
        answer = server.stub.Output(pb.OutputRequest(run_id=run.run_id), timeout=SECONDS)
        first = server.stub.Output(pb.OutputRequest(run_id=run.run_id, max_bytes=100), timeout=SECONDS)
        gate.open()
        reach(server.stub, run.run_id, "cell_finished", cell=2)
        place = {"offset": first.next_offset, "as_of_sequence": first.as_of_sequence}
        rest = [page.content for page in pages(server.stub, run_id=run.run_id, max_bytes=100, **place)]
        now = executed(server.stub, run.run_id)
    assert b"".join([first.content, *rest]) == answer.content
    assert printed(now, 2) == "later\n"


@pytest.mark.parametrize("to", ["notebook", "error", "html"])
def test_pages_from_before_the_first_output_stay_consistent(server: Server, gate: Gate, to: str) -> None:
    """A caller that began to read before any cell had ended reads on in what there was then."""
    with started(server.stub, inline(gate.source, "print('later')")) as run:
        reach(server.stub, run.run_id, "cell_started", cell=0)
        request = pb.OutputRequest(run_id=run.run_id, format=to)
        whole = server.stub.Output(request, timeout=SECONDS)
        request.max_bytes = 100
        first = server.stub.Output(request, timeout=SECONDS)
        gate.open()
        reach(server.stub, run.run_id, "cell_finished", cell=1)
        request.offset, request.as_of_sequence = first.next_offset, first.as_of_sequence
        request.max_bytes = whole.total_bytes
        rest = server.stub.Output(request, timeout=SECONDS)
    assert first.content + rest.content == whole.content
    assert rest.next_offset == whole.total_bytes
    assert rest.as_of_sequence == first.as_of_sequence > 0


def test_a_queued_run_has_its_notebook(server: Server, gate: Gate) -> None:
    """Output works before anything was executed."""
    with started(server.stub, inline(gate.source)), started(server.stub, inline("1", "2")) as waiting:
        node = executed(server.stub, waiting.run_id)
    assert [cell.source for cell in node.cells] == ["1", "2"]
    assert [cell.outputs for cell in node.cells] == [[], []]


def test_the_same_request_answers_the_same_bytes(server: Server) -> None:
    """Every read of a finished run's artefact is the same, in pages of any size, with its sum."""
    run = perform(server.stub, inline(*CELLS)).run
    whole = artefact(server.stub, run.run_id)
    for max_bytes in (7, 100, 4096, len(whole), len(whole) + 1):
        assert artefact(server.stub, run.run_id, max_bytes=max_bytes) == whole
    answer = server.stub.Output(pb.OutputRequest(run_id=run.run_id), timeout=SECONDS)
    assert answer.sha256 == hashlib.sha256(whole).hexdigest()
    assert answer.media_type == "application/x-ipynb+json"
    assert answer.run == run


def test_reading_from_any_offset(server: Server) -> None:
    """An offset answers what follows it; the size itself answers an empty last page."""
    run = perform(server.stub, inline("1")).run
    whole = artefact(server.stub, run.run_id)
    for offset in (0, 1, len(whole) - 1, len(whole)):
        answer = server.stub.Output(pb.OutputRequest(run_id=run.run_id, offset=offset), timeout=SECONDS)
        assert answer.content == whole[offset:]
        assert answer.next_offset == answer.total_bytes == len(whole)


def test_format_notebook_is_the_default(server: Server) -> None:
    """No format and `notebook` are the same bytes."""
    run = perform(server.stub, inline("1")).run
    assert artefact(server.stub, run.run_id, format="notebook") == artefact(server.stub, run.run_id)


@pytest.mark.parametrize(
    ("name", "media_type", "parts"),
    [
        ("html", "text/html", ["<html", "first words", "<b>bold</b>", "42"]),
        ("markdown", "text/markdown", ["first words", "<b>bold</b>", "```python"]),
        ("script", "text/x-python", ["print('first words')", "6 * 7"]),
    ],
)
def test_exporters(server: Server, name: str, media_type: str, parts: list[str]) -> None:
    """Nbconvert's formats are answered for a finished run, the same on every read."""
    run = perform(server.stub, inline(*CELLS)).run
    text = artefact(server.stub, run.run_id, format=name).decode()
    answer = server.stub.Output(pb.OutputRequest(run_id=run.run_id, format=name), timeout=SECONDS)
    assert answer.media_type.partition(";")[0] == media_type
    assert answer.sha256
    assert [part for part in parts if part not in text] == []
    assert artefact(server.stub, run.run_id, format=name, max_bytes=1000).decode() == text


def test_exporters_work_while_the_run_goes_on(server: Server, gate: Gate) -> None:
    """HTML of what is finished so far can be had at any time."""
    with started(server.stub, inline("print('only', 'this')", gate.source)) as run:
        reach(server.stub, run.run_id, "cell_started", cell=1)
        assert b"only this" in artefact(server.stub, run.run_id, format="html")


def test_files_of_the_run_folder(server: Server) -> None:
    """The archive has what the notebook wrote, with its folders, and nothing else."""
    run = perform(server.stub, inline(FILES_CELL)).run
    data = artefact(server.stub, run.run_id, format="files")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
        assert names == ["Grüße.txt", "results/deep/data.bin"]
        assert archive.read("results/deep/data.bin") == bytes(range(256)) * 1000
    assert artefact(server.stub, run.run_id, format="files") == data


def test_a_failed_run_has_its_partial_notebook_and_report(server: Server) -> None:
    """After a failure all cells up to it are there, and the report tells the traceback in plain text."""
    run = perform(server.stub, inline("print('before')", "def f():\n    return 1 / 0\nf()", "'after'")).run
    node = executed(server.stub, run.run_id)
    report = artefact(server.stub, run.run_id, format="error").decode()
    answer = server.stub.Output(pb.OutputRequest(run_id=run.run_id, format="error"), timeout=SECONDS)
    assert printed(node, 0) == "before\n"
    assert node.cells[1].outputs[0].ename == "ZeroDivisionError"
    assert node.cells[2].outputs == []
    assert "return 1 / 0" in report
    assert "\x1b" not in report
    assert answer.media_type.partition(";")[0] == "text/plain"
    assert answer.run.failure.traceback.strip() in report
