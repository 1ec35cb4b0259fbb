"""Spans as a real collector gets them: of runs and cells, below the caller's, offered to the kernel."""

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, executed, finish, inline, reach, start
from tests.support.collector import Collector, values
from tests.support.gate import Gate
from tests.support.killable import KillableServer, worker_of
from tests.support.notebooks import printed
from tests.support.server import Server

pytestmark = pytest.mark.long

Headers = tuple[tuple[str, str | bytes], ...]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER: Headers = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=value"))
TELL = "import os; print(os.environ.get('TRACEPARENT'), os.environ.get('TRACESTATE'))"
# A server that has more time for its last spans, which take milliseconds on a machine that is not busy.
PATIENT = """
from notebook_runner_server.__main__ import main
from notebook_runner_server.observability import traces
traces.FLUSH_SECONDS = 60.0
main()
"""
# So that no test waits five seconds for spans.
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector for the tests of this module."""
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    """A server that sends spans there."""
    options = ["--trace-endpoint", collector.endpoint, "--queue", "1"]
    with Server(tmp_path_factory.mktemp("state"), *options, environment=SOON) as running:
        yield running


def begin(server: Server, *cells: str, metadata: Headers = (), **fields: object) -> str:
    """Starts a run with headers; answers its id."""
    request = inline(*cells, **fields)
    return str(server.stub.Start(request, timeout=SECONDS, metadata=metadata).run.run_id)


def seconds(span: Span) -> float:
    """How long a span is."""
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def outcomes(spans: list[Span]) -> list[str]:
    """How the cells of a run ended."""
    assert all(span.name == "cell" for span in spans[1:])
    return [values(span.attributes)["outcome"] for span in spans[1:]]


def within(spans: list[Span]) -> None:
    """Asserts that cells are inside their run, one after the other."""
    whole, *cells = spans
    last = whole.start_time_unix_nano
    for cell in cells:
        assert last <= cell.start_time_unix_nano <= cell.end_time_unix_nano
        assert cell.trace_id == whole.trace_id
        last = cell.end_time_unix_nano
    assert last <= whole.end_time_unix_nano


def test_a_run_that_ends_well(traced: Server, collector: Collector, gate: Gate) -> None:
    """It has a span with what is known of it, and one for each cell, as long as the cell."""
    run_id = begin(traced, f"{gate.source}; import time; time.sleep(0.3)", "1")
    # A server that learns late that the kernel is ready knows of no cell before that.
    reach(traced.stub, run_id, "cell_started")
    gate.open()
    run = finish(traced.stub, run_id).run
    spans = collector.of(run.run_id)
    within(spans)
    whole, first, _ = spans
    assert (whole.name, whole.status.code, whole.parent_span_id) == ("run", Status.STATUS_CODE_OK, b"")
    about = values(whole.attributes)
    assert (about["state"], about["kernel_name"], about["cells_completed"]) == ("succeeded", "python3", 2)
    assert whole.start_time_unix_nano == run.create_time.ToNanoseconds()
    assert whole.end_time_unix_nano == run.end_time.ToNanoseconds()
    assert [event.name for event in whole.events] == ["starting", "running"]
    assert 0.3 <= seconds(first) < seconds(whole)
    assert values(first.attributes)["cell_index"] == 0
    assert outcomes(spans) == ["succeeded", "succeeded"]


def test_the_service_is_named(traced: Server, collector: Collector) -> None:
    """A collector learns which service it is."""
    collector.of(finish(traced.stub, begin(traced, "1")).run.run_id)
    assert collector.resources[-1]["service.name"] == "notebook-runner"


def test_a_run_that_fails(traced: Server, collector: Collector) -> None:
    """The run and the cell that raised are errors; nothing of the exception is told."""
    run = finish(traced.stub, begin(traced, "1", "raise ValueError('swordfish')", "2")).run
    spans = collector.of(run.run_id)
    within(spans)
    assert outcomes(spans) == ["succeeded", "failed"]
    assert [span.status.code for span in spans] == [2, 1, 2]
    assert spans[0].status.message == "cell_error"
    assert "swordfish" not in str(collector.all())


@pytest.mark.parametrize("how", ["kill", "crash"])
def test_a_run_that_is_ended(traced: Server, collector: Collector, gate: Gate, how: str) -> None:
    """A Kill or the death of the worker ends the spans of run and cell as errors."""
    run_id = begin(traced, "1", gate.source, "2")
    reach(traced.stub, run_id, "cell_started", 1)
    if how == "kill":
        traced.stub.Kill(pb.KillRequest(run_id=run_id), timeout=SECONDS)
    else:
        os.kill(worker_of(traced), signal.SIGKILL)
    finish(traced.stub, run_id)
    spans = collector.of(run_id)
    within(spans)
    assert outcomes(spans) == ["succeeded", "stopped"]
    assert [span.status.code for span in spans] == [2, 1, 2]
    assert spans[0].status.message == ("kill_requested" if how == "kill" else "worker_died")


def test_a_run_that_is_killed_in_the_queue(traced: Server, collector: Collector, gate: Gate) -> None:
    """It has its span, without cells."""
    first, second = begin(traced, gate.source), begin(traced, "1")
    traced.stub.Kill(pb.KillRequest(run_id=second), timeout=SECONDS)
    gate.open()
    finish(traced.stub, first)
    (span,) = collector.of(second)
    assert (span.status.message, [*span.events]) == ("kill_requested", [])


def test_the_caller_s_trace_goes_on(traced: Server, collector: Collector) -> None:
    """The run's span is below the caller's, and the kernel is offered the run's."""
    run_id = begin(traced, TELL, metadata=CALLER)
    finish(traced.stub, run_id)
    whole = collector.of(run_id)[0]
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)
    told = printed(executed(traced.stub, run_id), 0)
    assert told == f"00-{TRACE}-{whole.span_id.hex()}-01 vendor=value\n"
    (line,) = traced.logged("run", run_id)
    assert line["trace_id"] == TRACE


def test_a_trace_begins_with_the_run(traced: Server, collector: Collector) -> None:
    """Where the caller has none, the kernel is offered the run's own."""
    run_id = begin(traced, TELL)
    finish(traced.stub, run_id)
    whole = collector.of(run_id)[0]
    told = printed(executed(traced.stub, run_id), 0)
    # Newer versions of OpenTelemetry say as well that the trace's id is random.
    assert re.fullmatch(rf"00-{whole.trace_id.hex()}-{whole.span_id.hex()}-0[13] None\n", told)


def test_a_caller_that_is_not_sampled(traced: Server, collector: Collector) -> None:
    """A caller whose trace nobody records has none recorded, and its kernel is told so."""
    header = ("traceparent", f"00-{TRACE}-{PARENT}-00")
    run_id = begin(traced, TELL, metadata=(header,))
    finish(traced.stub, run_id)
    assert re.fullmatch(rf"00-{TRACE}-\w{{16}}-00 None\n", printed(executed(traced.stub, run_id), 0))
    later = begin(traced, "1")
    finish(traced.stub, later)
    collector.of(later)
    assert run_id not in str(collector.all())


def test_what_start_names_comes_first(traced: Server) -> None:
    """A caller that gives its kernel a TRACEPARENT itself has it."""
    run_id = begin(traced, TELL, environment={"TRACEPARENT": "own"})
    finish(traced.stub, run_id)
    assert printed(executed(traced.stub, run_id), 0).startswith("own ")


def test_without_traces_the_caller_s_is_passed_on(server: Server) -> None:
    """A server that traces nothing offers the kernel the caller's place in its trace."""
    run_id = begin(server, TELL, metadata=CALLER)
    finish(server.stub, run_id)
    assert printed(executed(server.stub, run_id), 0) == f"00-{TRACE}-{PARENT}-01 vendor=value\n"


@pytest.mark.parametrize(
    "header",
    [
        f"00-{'0' * 32}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        "$(reboot)",
        "",
    ],
)
def test_a_header_that_is_no_trace(server: Server, header: str) -> None:
    """What is not of W3C's form is not passed on."""
    run_id = begin(server, TELL, metadata=(("traceparent", header), ("tracestate", "vendor=value")))
    finish(server.stub, run_id)
    assert printed(executed(server.stub, run_id), 0) == "None None\n"


def test_a_queued_run_keeps_its_caller(tmp_path: Path, collector: Collector, gate: Gate) -> None:
    """A run that was queued when the server died is in its caller's trace; an interrupted one has no span."""
    with KillableServer(tmp_path, "--queue", "1") as first:
        lost, kept = begin(first, gate.source), begin(first, TELL, metadata=CALLER)
        reach(first.stub, lost, "cell_started")
        first.die()
    options = ["--trace-endpoint", collector.endpoint]
    with KillableServer(tmp_path, *options, environment=SOON) as second:
        finish(second.stub, kept)
        whole = collector.of(kept)[0]
        assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)
    assert lost not in str(collector.all())


def test_what_is_left_is_sent_when_the_server_stops(tmp_path: Path, gate: Gate) -> None:
    """A run that the server's end interrupts has its span, sent before the process is gone."""
    with Collector() as own:
        # By the standard's own variable, and not before it has to.
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": own.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        program = [sys.executable, "-c", PATIENT]
        with KillableServer(
            tmp_path, "--drain-timeout", "0", program=program, environment=variables
        ) as stopped:
            run_id = begin(stopped, gate.source)
            reach(stopped.stub, run_id, "cell_started")
        spans = own.of(run_id)
        assert (spans[0].status.message, outcomes(spans)) == ("server_stopped", ["stopped"])


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=100)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["silent", "dead"])
def test_a_collector_that_does_not_answer(
    make_server: Callable[..., Server], black_hole: str, kind: str
) -> None:
    """Runs take no longer for it, and neither does the end of the server, but for a few seconds."""
    endpoint = black_hole if kind == "silent" else "http://127.0.0.1:9"
    # The run has more spans than are kept.
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
    options = ["--trace-endpoint", endpoint, "--drain-timeout", "0"]
    server = make_server(*options, environment={**SOON, **small})
    finish(server.stub, start(server.stub, inline("1")).run_id)
    finish(server.stub, start(server.stub, inline(*["1"] * 50)).run_id)
    server.stop()


def test_without_the_extra(tmp_path: Path) -> None:
    """A server that shall trace and cannot says what to install."""
    # A package that comes first and is none.
    (tmp_path / "opentelemetry.py").write_text("")
    server = KillableServer(
        tmp_path / "state",
        "--trace-endpoint",
        "http://127.0.0.1:9",
        environment={"PYTHONPATH": str(tmp_path)},
    )
    with pytest.raises(AssertionError, match="the server ended"), server:
        pass
    assert "pip install 'notebook-runner[server,tracing]'" in "".join(server.noise)
