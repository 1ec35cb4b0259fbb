"""Limits of a run and the ends that come of them: each has its name, and keeps what there was."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import Ended, duration, executed, finish, inline, perform, reach, started, texts
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.killable import RUN_MARK, figure, new_mark, remains
from tests.support.notebooks import printed
from tests.support.server import Server

MIB = 1024 * 1024
CRASHED, TIMED_OUT = pb.RUN_STATE_CRASHED, pb.RUN_STATE_TIMED_OUT
FOREVER = "import threading; _ = threading.Event().wait()"
# Far beyond each limit, but with an end: a server that notices it late must not cost the machine all it has.
BOMB = "import threading\nkept = [b'x' * (8 << 20) for _ in range(160)]\nthreading.Event().wait()"
CHILD_BOMB = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BOMB!r}])\n{FOREVER}"
# The main thread of the child ends: of the child's own id /proc then tells no memory.
HEADLESS_BOMB = (
    "import ctypes, threading\n"
    f"threading.Thread(target=exec, args=[{BOMB!r}, {{}}]).start()\n"
    "ctypes.CDLL(None).pthread_exit(None)"
)
HEADLESS_CHILD_BOMB = CHILD_BOMB.replace(repr(BOMB), repr(HEADLESS_BOMB))
MANY = f"import subprocess\nmany = [subprocess.Popen(['sleep', '1000']) for _ in range(40)]\n{FOREVER}"
LINES = "for n in range({lines}):\n    print('x' * 99)\nprint('end', flush=True)"


class Limit(NamedTuple):
    """A last cell, the limits of the Start, and the end that it comes to."""

    source: str
    fields: dict[str, Any]
    state: int
    cause: int
    signal: str = ""
    exit_code: int | None = None


# Those of time leave a busy machine enough for what comes before the last cell.
LIMITS = {
    "memory": Limit(BOMB, {"memory_limit_bytes": 400 * MIB}, CRASHED, pb.FAILURE_CAUSE_OUT_OF_MEMORY),
    "memory of a child": Limit(
        CHILD_BOMB, {"memory_limit_bytes": 400 * MIB}, CRASHED, pb.FAILURE_CAUSE_OUT_OF_MEMORY
    ),
    "memory of a child whose main thread has ended": Limit(
        HEADLESS_CHILD_BOMB, {"memory_limit_bytes": 400 * MIB}, CRASHED, pb.FAILURE_CAUSE_OUT_OF_MEMORY
    ),
    "processes": Limit(MANY, {"process_limit": 20}, CRASHED, pb.FAILURE_CAUSE_PROCESS_LIMIT),
    "run time": Limit(FOREVER, {"run_timeout": duration(15)}, TIMED_OUT, pb.FAILURE_CAUSE_RUN_TIMEOUT),
    "cell time": Limit(FOREVER, {"cell_timeout": duration(6)}, TIMED_OUT, pb.FAILURE_CAUSE_CELL_TIMEOUT),
    "silence": Limit(FOREVER, {"output_timeout": duration(6)}, TIMED_OUT, pb.FAILURE_CAUSE_OUTPUT_TIMEOUT),
    "segmentation fault": Limit(
        "import ctypes; ctypes.string_at(0)", {}, CRASHED, pb.FAILURE_CAUSE_KERNEL_SIGNALED, "SIGSEGV"
    ),
    "its own SIGKILL": Limit(
        "import os; os.kill(os.getpid(), 9)", {}, CRASHED, pb.FAILURE_CAUSE_KERNEL_SIGNALED, "SIGKILL"
    ),
    "a real-time signal": Limit(
        "import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 5)",
        *({}, CRASHED, pb.FAILURE_CAUSE_KERNEL_SIGNALED, "SIGRTMIN+5"),
    ),
    "its own exit": Limit("import os; os._exit(7)", {}, CRASHED, pb.FAILURE_CAUSE_KERNEL_EXITED, "", 7),
    "sys.exit": Limit("import sys; sys.exit(3)", {}, pb.RUN_STATE_FAILED, pb.FAILURE_CAUSE_CELL_ERROR),
}
# Of a run that does nothing else: the shorter, the better.
LOWERED = {
    **{name: LIMITS[name].fields for name in ("memory", "processes")},
    "run time": {"run_timeout": duration(1)},
    "cell time": {"cell_timeout": duration(0.5)},
    "silence": {"output_timeout": duration(0.5)},
}
DEFAULTS = {
    "run_timeout": duration(60),
    "cell_timeout": duration(50),
    "output_timeout": duration(40),
    "memory_limit_bytes": 900 * MIB,
    "cell_output_limit_bytes": 20_000,
    "run_output_limit_bytes": 30_000,
    "process_limit": 100,
}
CEILINGS = {
    "run_timeout": (duration(100), duration(100.5)),
    "cell_timeout": (duration(90), duration(90.5)),
    "output_timeout": (duration(80), duration(80.5)),
    "memory_limit_bytes": (1000 * MIB, 1000 * MIB + 1),
    "cell_output_limit_bytes": (40_000, 40_001),
    "run_output_limit_bytes": (50_000, 50_001),
    "process_limit": (200, 201),
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a default and a ceiling for every limit."""
    options = "--run-timeout 60 --cell-timeout 50 --output-timeout 40 --process-limit 100"
    options += f" --memory-limit {900 * MIB} --cell-output-limit 20000 --run-output-limit 30000"
    options += " --max-run-timeout 100 --max-cell-timeout 90 --max-output-timeout 80 --max-process-limit 200"
    options += f" --max-memory-limit {1000 * MIB} --max-cell-output-limit 40000 --max-run-output-limit 50000"
    with Server(tmp_path_factory.mktemp("state"), *options.split()) as server:
        yield server


@pytest.mark.parametrize("name", LIMITS)
def test_each_end_has_its_name(server: Server, gate: Gate, name: str) -> None:
    """State, cause, cell, signal and exit code; text is kept, no process is left, and the server goes on."""
    limit, mark = LIMITS[name], new_mark()
    # Text is on its way for a moment after it was printed, and a kernel that dies takes it along.
    source = f"print('begun\\n', end='', flush=True)\n{gate.source}\n{limit.source}"
    request = inline("print('done')", source, "1", environment={RUN_MARK: mark}, **limit.fields)
    with started(server.stub, request) as begun:
        reach(server.stub, begun.run_id, "cell_output", cell=1)
        gate.open()
        run, events = finish(server.stub, begun.run_id)
    left, failure = remains(mark), run.failure
    figure(f"{name}: {failure.message}")
    assert (run.state, failure.cause) == (limit.state, limit.cause), run
    assert (failure.HasField("cell_index"), failure.cell_index) == (True, 1)
    assert failure.signal == limit.signal
    assert (failure.exit_code if failure.HasField("exit_code") else None) == limit.exit_code
    assert left == {}
    node = executed(server.stub, run.run_id)
    assert (printed(node, 0), printed(node, 1)) == ("done\n", "begun\n")
    assert texts(events) == "done\nbegun\n"
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("name", LOWERED)
def test_a_start_may_lower_each_limit(limited: Server, name: str) -> None:
    """What is far below the server's default ends the run as well."""
    limit = LIMITS[name]
    run = perform(limited.stub, inline(limit.source, **LOWERED[name])).run
    assert (run.state, run.failure.cause) == (limit.state, limit.cause), run


@pytest.mark.parametrize("field", CEILINGS)
def test_no_start_is_above_a_ceiling(limited: Server, field: str) -> None:
    """The ceiling itself is taken; what is above it is refused, with the field's name."""
    most, too_much = CEILINGS[field]
    assert perform(limited.stub, inline("1", **{field: most})).run.state == pb.RUN_STATE_SUCCEEDED
    refusal = refused(lambda: limited.stub.Start(inline("1", **{field: too_much}), timeout=60))
    assert refusal.kind == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refusal.fields == [field]


def test_a_limit_holds_in_a_flood(make_server: Callable[..., Server]) -> None:
    """A kernel prints faster than it is read: what is on the way is bounded, and the limit has its turn."""
    server = make_server("--cell-output-limit", "0")
    ended = perform(server.stub, inline("while True: print('x' * 100_000)", cell_timeout=duration(2)))
    assert ended.run.failure.cause == pb.FAILURE_CAUSE_CELL_TIMEOUT
    (finished,) = [event.cell_finished for event in ended.events if event.HasField("cell_finished")]
    # Without a bound on what is on the way it was 8 s and more.
    figure(f"a cell with a limit of 2 s took {finished.duration.ToMilliseconds()} ms")


def _cuts(ended: Ended) -> list[tuple[int, int, bool]]:
    """Each OutputCut of a run: its cell, the limit in bytes, and whether it is the whole run's."""
    cuts = [event.cell_output for event in ended.events if event.cell_output.HasField("cut")]
    return [(one.cell_index, one.cut.limit_bytes, one.cut.whole_run) for one in cuts]


def test_output_over_the_limit_of_a_cell_is_cut(limited: Server) -> None:
    """The cell is cut with a mark and an event, the one behind it is whole, and the run succeeds."""
    request = inline(LINES.format(lines=200), LINES.format(lines=10), cell_output_limit_bytes=5000)
    ended = perform(limited.stub, request)
    node = executed(limited.stub, ended.run.run_id)
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert _cuts(ended) == [(0, 5000, False)]
    assert len(printed(node, 0)) == 5000
    assert "output cut" in printed(node, 0, "stderr")
    assert printed(node, 1).endswith("end\n")
    assert texts(ended.events) == printed(node, 0) + printed(node, 1)


def test_output_over_the_limit_of_the_run_is_cut(limited: Server) -> None:
    """The server's default for the whole run cuts the cell that passes it, and all behind it."""
    ended = perform(limited.stub, inline(*[LINES.format(lines=150)] * 4))
    node = executed(limited.stub, ended.run.run_id)
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert _cuts(ended) == [(1, 30_000, True), (2, 30_000, True), (3, 30_000, True)]
    assert sum(len(printed(node, index)) for index in range(4)) == 30_000
    assert texts(ended.events) == "".join(printed(node, index) for index in range(4))


def test_the_default_of_a_cell_cuts_as_well(limited: Server) -> None:
    """A Start that says nothing has the server's limit for each cell."""
    ended = perform(limited.stub, inline(LINES.format(lines=250)))
    assert _cuts(ended) == [(0, 20_000, False)]
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED


def test_what_is_cut_still_says_why_it_ended(limited: Server) -> None:
    """Behind the cut an exception is kept whole, and nothing takes the mark of the cut away."""
    steps = [LINES.format(lines=200), "from IPython.display import clear_output; clear_output()"]
    request = inline("\n".join([*steps, "raise ValueError('why')"]), cell_output_limit_bytes=5000)
    ended = perform(limited.stub, request)
    failure = ended.run.failure
    assert (failure.exception_name, failure.exception_message) == ("ValueError", "why")
    node = executed(limited.stub, ended.run.run_id)
    assert [one.output_type for one in node.cells[0].outputs] == ["stream", "stream", "error"]
    assert len(printed(node, 0)) == 5000
    assert "output cut" in printed(node, 0, "stderr")


def test_a_cell_whose_output_is_cut_is_not_silent(limited: Server) -> None:
    """What is left out counts as output: only a cell that says nothing is taken for one that hangs."""
    source = "import time\nfor n in range(120):\n    print('x' * 5000, flush=True); time.sleep(0.1)"
    limits = {"cell_output_limit_bytes": 5000, "output_timeout": duration(10)}
    ended = perform(limited.stub, inline(source, **limits))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run
    assert _cuts(ended) == [(0, 5000, False)]


def test_a_limited_address_space_is_a_memory_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where it is asked for, one allocation that is too large fails in the notebook, which can go on."""
    with Server(tmp_path_factory.mktemp("state"), "--limit-address-space") as server:
        catch = "try:\n    b'x' * (4 << 30)\nexcept MemoryError:\n    print('caught')"
        limit = {"memory_limit_bytes": 2048 * MIB}
        run = perform(server.stub, inline(catch, "b'x' * (4 << 30)", **limit)).run
        assert (run.state, run.failure.exception_name) == (pb.RUN_STATE_FAILED, "MemoryError"), run
        assert printed(executed(server.stub, run.run_id), 0) == "caught\n"
