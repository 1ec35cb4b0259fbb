"""A notebook of about a hundred megabytes, read by a client with gRPC's default limits."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, executed, inline, pages, perform, struct
from tests.support.notebooks import code, parsed
from tests.support.server import Server

# Its kernel says much of itself, and of how a cell ended.
LIAR = """
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

class Liar(IPythonKernel):
    language_info = {"name": "python", "version": "y" * 6_000_000}
    banner = "z" * 6_000_000

    async def do_execute(self, code, *arguments, **options):
        if code == "1":
            return {"status": "ok", "execution_count": "x" * 6_000_000, "payload": [], "user_expressions": {}}
        x = "e" * 6_000_000
        return {"status": "error", "execution_count": 1, "ename": x, "evalue": x, "traceback": [x] * 3}

IPKernelApp.launch_instance(kernel_class=Liar)
"""
PIECES = 100
PIECE = 1_000_000
MESSAGE_BYTES = 4 * 1024 * 1024
LARGE_CELL = f"""
from IPython.display import display
for number in range({PIECES}):
    display({{"text/plain": chr(97 + number % 26) * {PIECE}}}, raw=True)
"""
VALUES_CELL = """
from IPython.display import display
for number in range(5):
    value = {"name": str(number), "data": [1] * 5000, "encoder": "json", "version": 1}
    display({"application/scrapbook.scrap.json+json": value}, raw=True)
"""


def test_a_hundred_megabytes_arrive_in_pages(server: Server) -> None:
    """Every page fits a message of 4 MiB, and together they are the notebook, byte for byte."""
    run, events = perform(server.stub, inline(LARGE_CELL))
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert sum(event.ByteSize() for event in events) < PIECE
    answers = list(pages(server.stub, run_id=run.run_id))
    data = b"".join(page.content for page in answers)
    assert len(data) > PIECES * PIECE
    assert max(page.ByteSize() for page in answers) < MESSAGE_BYTES
    assert {page.sha256 for page in answers} == {hashlib.sha256(data).hexdigest()}
    outputs = parsed(data).cells[0].outputs
    assert [len(output.data["text/plain"]) for output in outputs] == [PIECE] * PIECES
    _largest_page_fits(server, run, data)


def _largest_page_fits(server: Server, run: pb.Run, data: bytes) -> None:
    """Whoever asks for more than a page may hold gets the server's largest, which still arrives."""
    request = pb.OutputRequest(run_id=run.run_id, max_bytes=2**31 - 1)
    page = server.stub.Output(request, timeout=SECONDS)
    assert data.startswith(page.content)
    assert len(page.content) >= 1024 * 1024


def test_an_event_of_many_types_fits_a_message(server: Server) -> None:
    """Of hundreds of thousands of representations an event names some, and counts the others."""
    source = "get_ipython().display_pub.publish({f'text/x-{n}': 'a' for n in range(300_000)})"
    run, events = perform(server.stub, inline(source))
    assert run.state == pb.RUN_STATE_SUCCEEDED
    (display,) = [event.cell_output.display for event in events if event.cell_output.HasField("display")]
    assert len(display.data) + display.omitted == 300_000
    assert max(event.ByteSize() for event in events) < MESSAGE_BYTES // 4


def test_a_page_beside_large_parameters_fits_a_message(server: Server) -> None:
    """The run is in the answer, and the page is as much smaller as it is larger."""
    cells = (code("who = ''", "parameters"), "print('x' * 4_000_000)")
    run, events = perform(server.stub, inline(*cells, parameters=struct({"who": "y" * 1_000_000})))
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert max(event.ByteSize() for event in events) < MESSAGE_BYTES * 3 // 4
    answers = list(pages(server.stub, run_id=run.run_id, max_bytes=2**31 - 1))
    assert max(page.ByteSize() for page in answers) < MESSAGE_BYTES
    assert len(answers) > 1


def test_a_kernel_that_says_much_of_itself(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Neither its language nor its replies make the notebook, an event or the run large."""
    spec = tmp_path / "jupyter" / "kernels" / "liar"
    spec.mkdir(parents=True)
    (spec / "liar.py").write_text(LIAR)
    argv = [sys.executable, str(spec / "liar.py"), "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))
    server = make_server("--no-warm-kernels", environment={"JUPYTER_PATH": str(tmp_path / "jupyter")})
    run, events = perform(server.stub, inline("1", "2", kernel_name="liar"))
    assert run.failure.cause == pb.FAILURE_CAUSE_CELL_ERROR
    assert max(event.ByteSize() for event in events) < MESSAGE_BYTES // 4
    assert executed(server.stub, run.run_id).metadata.language_info == {"name": ""}
    (page,) = pages(server.stub, run_id=run.run_id)
    assert page.total_bytes < PIECE


def test_pages_beside_the_largest_run_fit_a_message(server: Server) -> None:
    """Parameters, labels, values and a traceback as large as they get, also as of an event in between."""
    wide = "\U0001f600"
    cells = (
        code("who = ''", "parameters"),
        VALUES_CELL,
        "print('x' * 4_000_000)",
        f"raise ValueError({wide!r} * 200_000)",
    )
    labels = {f"{number:03}".ljust(128, wide): wide * 128 for number in range(64)}
    parameters = struct({"who": wide * 250_000})
    run, events = perform(server.stub, inline(*cells, parameters=parameters, labels=labels))
    assert run.state == pb.RUN_STATE_FAILED
    assert run.ByteSize() > MESSAGE_BYTES // 2
    assert max(event.ByteSize() for event in events) < MESSAGE_BYTES
    for as_of in (0, events[-2].sequence):
        answers = list(pages(server.stub, run_id=run.run_id, max_bytes=2**31 - 1, as_of_sequence=as_of))
        assert max(page.ByteSize() for page in answers) < MESSAGE_BYTES
        assert len(answers) > 1
