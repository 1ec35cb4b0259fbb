"""Callers who may only read cannot fill the disk."""

from collections.abc import Callable
from pathlib import Path

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, artefact, inline, perform
from tests.support.server import Server

CELLS = [f"print('x' * 20_000, {number})" for number in range(20)]
# The notebook has 400 KB at its end.
ROOM = 2_000_000


def size(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_everything(server: Server, run_id: str, last: int) -> None:
    """Asks for one byte of the notebook as of each event, and in other formats."""
    for sequence in range(1, last + 1):
        server.stub.Output(
            pb.OutputRequest(run_id=run_id, max_bytes=1, as_of_sequence=sequence), timeout=SECONDS
        )


def test_reading_takes_no_room_of_the_run(make_server: Callable[..., Server]) -> None:
    """However much is asked for, the run's folder is as large as before, and what is beside it is bounded."""
    server = make_server("--max-artefact-bytes", str(ROOM))
    ended = perform(server.stub, inline(*CELLS))
    run_id, last = ended.run.run_id, ended.events[-1].sequence
    folder = server.state_dir / "runs" / run_id
    before, whole = size(folder), artefact(server.stub, run_id)
    for _ in range(2):
        read_everything(server, run_id, last)
        assert size(folder) == before
        assert len(whole) <= size(server.state_dir / "artefacts") <= ROOM
    assert artefact(server.stub, run_id) == whole
