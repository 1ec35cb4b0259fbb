"""Progress: what is told, when, and from where on. Every stream runs through the validator."""

from contextlib import closing
from itertools import groupby

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, executed, finish, follow, inline, perform, reach, started, texts
from tests.support.gate import Gate
from tests.support.notebooks import code, markdown, printed
from tests.support.server import Server

pytestmark = pytest.mark.guarantee

PRINTS = tuple(f"for n in range(3): print({cell}, n, flush=True)" for cell in range(4))
TEXT_BYTES = 64 * 1024


def outline(event: pb.ProgressResponse) -> str:
    """An event in one word, with its cell or state."""
    match event.WhichOneof("event"):
        case "run_changed":
            return pb.RunState.Name(event.run_changed.state).removeprefix("RUN_STATE_")
        case "cell_started":
            return f"started {event.cell_started.cell_index}"
        case "cell_output":
            return f"output {event.cell_output.cell_index}"
        case "cell_finished":
            return f"finished {event.cell_finished.cell_index}"
    return "heartbeat"


def test_text_arrives_while_the_cell_still_runs(server: Server, gate: Gate) -> None:
    """The cell goes on only after its text has been received, so it cannot have come later.

    In the notebook, the texts of both events are one output.
    """
    source = f"print('early', flush=True)\n{gate.source}\nprint('late')"
    with started(server.stub, inline(source)) as run:
        events, is_open = [], False
        for event in follow(server.stub, run.run_id):
            events.append(event)
            # A kernel may send a line in two pieces.
            if texts(events) == "early\n" and not is_open:
                gate.open()
                is_open = True
    assert texts(events) == "early\nlate\n"
    assert events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED
    assert sum(event.HasField("cell_output") for event in events) > 1
    assert len(executed(server.stub, run.run_id).cells[0].outputs) == 1


def test_everything_is_told_in_order(server: Server) -> None:
    """States, cells and their output come as they happen, and what is no code is passed over."""
    skipped = code("1", "skip-execution")
    cells = (markdown("# Title"), "print('one')", skipped, "2", "", "1 / 0", "3")
    events = perform(server.stub, inline(*cells)).events
    # A kernel may send a line in two pieces.
    told = [one for one, _ in groupby(map(outline, events))]
    assert told[-1] == "FAILED"
    assert told[told.index("RUNNING") : -1] == [
        "RUNNING",
        *("started 1", "output 1", "finished 1"),
        *("started 3", "output 3", "finished 3"),
        *("started 5", "output 5", "finished 5"),
    ]
    counts = [event.cells_completed for event in events if event.HasField("cell_started")]
    assert counts == [1, 3, 5]
    assert {event.cells_total for event in events} == {len(cells)}


def test_a_cell_is_named(server: Server) -> None:
    """Start and end of a cell carry what a person needs to know which one it is."""
    ended = perform(server.stub, inline("\n\n  # first \nvalue = 1", f"x = '{'y' * 300}'"))
    node = executed(server.stub, ended.run.run_id)
    begun = [event.cell_started for event in ended.events if event.HasField("cell_started")]
    done = [event.cell_finished for event in ended.events if event.HasField("cell_finished")]
    assert begun[0].first_line.strip() == "# first"
    assert begun[1].first_line == f"x = '{'y' * 300}'"[:200]
    assert [cell.cell_id for cell in begun] == [cell.id for cell in node.cells]
    assert [cell.cell_id for cell in done] == [cell.id for cell in node.cells]
    assert [cell.execution_count for cell in done] == [1, 2]
    assert {cell.outcome for cell in done} == {pb.CELL_OUTCOME_SUCCEEDED}


def test_a_stream_resumes_after_every_sequence(server: Server) -> None:
    """Whatever a client saw last, it is told exactly the rest, and the same again."""
    run, events = perform(server.stub, inline(*PRINTS))
    assert len(events) > 15
    for sequence in range(len(events) + 1):
        over = sequence == len(events)
        rest = follow(server.stub, run.run_id, after_sequence=sequence, after_terminal=over)
        assert list(rest) == events[sequence:]


def test_a_snapshot_ends_with_what_is_known(server: Server, gate: Gate) -> None:
    """A snapshot of a run that goes on is the beginning of its events, and ends."""
    with started(server.stub, inline("print('one')", gate.source)) as run:
        reach(server.stub, run.run_id, "cell_started", cell=1)
        known = [
            e for e in follow(server.stub, run.run_id, snapshot_only=True) if not e.HasField("heartbeat")
        ]
        gate.open()
        events = finish(server.stub, run.run_id).events
    assert outline(known[-1]) == "started 1"
    assert known == events[: len(known)]
    assert list(follow(server.stub, run.run_id, snapshot_only=True)) == events
    assert list(follow(server.stub, run.run_id, snapshot_only=True, after_sequence=3)) == events[3:]


def test_cell_output_can_be_left_out(server: Server) -> None:
    """Without cell output everything else is told, with the same sequence numbers."""
    run, events = perform(server.stub, inline(*PRINTS))
    told = list(follow(server.stub, run.run_id, omit_cell_output=True))
    assert told == [event for event in events if not event.HasField("cell_output")]
    assert len(told) < len(events)


def test_heartbeats_come_while_nothing_happens(server: Server, gate: Gate) -> None:
    """A silent run still shows that the server is there, and no heartbeat is stored."""
    with started(server.stub, inline(gate.source)) as run:
        with closing(follow(server.stub, run.run_id)) as events:
            begun = next(event.sequence for event in events if event.HasField("cell_started"))
            beats = [next(events) for _ in range(2)]
            gate.open()
            told = [event for event in events if not event.HasField("heartbeat")]
        replayed = list(follow(server.stub, run.run_id))
    assert [(outline(beat), beat.sequence) for beat in beats] == [("heartbeat", begun)] * 2
    assert replayed[begun:] == told


@pytest.mark.parametrize("letter", ["x", "é", "☃", "🎉"])
def test_long_text_comes_in_several_messages(server: Server, letter: str) -> None:
    """Text over 64 KiB is cut between letters, and is whole when put together."""
    run, events = perform(server.stub, inline(f"print({letter!r} * 200_000)"))
    sizes = [len(e.cell_output.stream.text.encode()) for e in events if e.HasField("cell_output")]
    assert max(sizes) <= TEXT_BYTES < sum(sizes)
    assert texts(events) == letter * 200_000 + "\n"
    assert printed(executed(server.stub, run.run_id), 0) == letter * 200_000 + "\n"


RICH_CELL = """
from IPython.display import clear_output, display
import sys
handle = display({"text/plain": "plain", "text/html": "<b>é</b>"}, raw=True, display_id="known")
handle.update({"text/plain": "changed"}, raw=True)
sys.stderr.write("told\\n")  # in one piece
sys.stderr.flush()
clear_output(wait=True)
"result"
"""


def test_rich_output_is_named_and_not_carried(server: Server) -> None:
    """Displayed data is told by its kinds and sizes; printing and clearing by what they are."""
    events = perform(server.stub, inline(RICH_CELL)).events
    outputs = [event.cell_output for event in events if event.HasField("cell_output")]
    told = [output.display for output in outputs if output.HasField("display")]
    sizes = [{each.mime_type: each.size_bytes for each in display.data} for display in told]
    assert [output.WhichOneof("output") for output in outputs] == [
        *("display", "display", "stream", "clear", "display")
    ]
    assert [display.output_type for display in told] == [
        *("display_data", "update_display_data", "execute_result")
    ]
    assert sizes == [{"text/plain": 5, "text/html": 9}, {"text/plain": 7}, {"text/plain": 8}]
    assert (outputs[2].stream.name, outputs[2].stream.text) == ("stderr", "told\n")
    assert outputs[3].clear.wait


def test_an_exception_is_told_and_cut(server: Server) -> None:
    """A cell that raises tells class and text, and a long text is cut at 4 KiB."""
    events = perform(server.stub, inline("raise KeyError('é' * 10_000)")).events
    error = next(e.cell_output.error for e in events if e.cell_output.HasField("error"))
    finished = next(event.cell_finished for event in events if event.HasField("cell_finished"))
    assert error.exception_name == "KeyError"
    assert error.exception_message.startswith("'ééé")
    assert 4000 < len(error.exception_message.encode()) <= 4096
    assert finished.outcome == pb.CELL_OUTCOME_FAILED


def test_no_run_id_means_the_newest_run(server: Server) -> None:
    """Progress and Output without an id are about the run that was started last."""
    perform(server.stub, inline("'older'"))
    newest = perform(server.stub, inline("'newest'"))
    assert list(follow(server.stub, "")) == newest.events
    answer = server.stub.Output(pb.OutputRequest(), timeout=SECONDS)
    assert answer.run == newest.run


def test_a_reader_that_stops_reading_holds_up_nothing(server: Server) -> None:
    """A run that prints 20 MB ends while a reader does not read, who then gets all of it."""
    loud = "for _ in range(200): print('x' * 100_000)"
    with started(server.stub, inline(loud)) as run, closing(follow(server.stub, run.run_id)) as lazy:
        first = next(lazy)
        eager = finish(server.stub, run.run_id)
        rest = [event for event in lazy if not event.HasField("heartbeat")]
    assert eager.run.state == pb.RUN_STATE_SUCCEEDED
    assert len(texts(eager.events)) == 200 * 100_001
    assert [first, *rest] == eager.events
