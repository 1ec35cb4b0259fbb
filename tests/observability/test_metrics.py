"""What a scrape tells after runs that are known: names, labels and values."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from notebook_runner import __version__
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.runs.transitions import ENDS
from tests.support.calls import SECONDS, duration, finish, inline, reach, start
from tests.support.gate import Gate
from tests.support.killable import KillableServer, worker_of
from tests.support.retries import chain, retry
from tests.support.scrape import ON, Page, address, scrape, until
from tests.support.server import Server
from tests.support.warm import ON as WARM
from tests.support.warm import until_warm

SLEEP = "import time; time.sleep(100_000)"


class Scraped(NamedTuple):
    """A server with known runs behind it, and what was scraped on the way and at last."""

    server: Server
    queued: Page
    last: Page
    seconds: float


def kill(server: Server, run_id: str) -> pb.KillResponse:
    """Ends a run."""
    return server.stub.Kill(pb.KillRequest(run_id=run_id), timeout=SECONDS)


def run(server: Server, *cells: str, **fields: object) -> None:
    """Executes a notebook to its end."""
    finish(server.stub, start(server.stub, inline(*cells, **fields)).run_id)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Three runs that ended well (one was allowed to raise), and one for each way not to; two Kills."""
    folder = tmp_path_factory.mktemp("gate")
    with Server(tmp_path_factory.mktemp("state"), *ON, *WARM, "--queue", "2") as server:
        begin = time.monotonic()
        until_warm(server)
        run(server, "print('12345')", "1")
        run(server, "1/0", "1")
        run(server, "1/0", "1", allow_errors=True)
        died = start(server.stub, inline(SLEEP))
        reach(server.stub, died.run_id, "cell_started")
        os.kill(worker_of(server), signal.SIGKILL)
        finish(server.stub, died.run_id)
        run(server, SLEEP, cell_timeout=duration(0.1))
        gate = Gate(folder)
        first, second, third = (start(server.stub, inline(gate.source)) for _ in range(3))
        reach(server.stub, first.run_id, "cell_started")
        queued = scrape(server)
        kill(server, third.run_id)
        kill(server, first.run_id)
        gate.open()
        finish(server.stub, second.run_id)
        gate.close()
        with pytest.raises(grpc.RpcError):
            kill(server, "nobody")
        # Streams that were left have ended when the server has learnt of it.
        last = until(
            server,
            lambda page: (
                page.value("warm_kernels_ready", kernelspec="python3") == 1
                and page.counted("rpcs_open") == {}
            ),
        )
        yield Scraped(server, queued, last, time.monotonic() - begin)


def test_runs_by_their_end(scraped: Scraped) -> None:
    """Every run is counted once, under how it ended and why."""
    assert scraped.last.counted("runs_ended_total") == {
        ("none", "succeeded"): 3,
        ("cell_error", "failed"): 1,
        ("worker_died", "crashed"): 1,
        ("cell_timeout", "timed_out"): 1,
        ("kill_requested", "killed"): 2,
    }
    assert scraped.last.value("runs_admitted_total", kernelspec="python3") == 8


def test_runs_now(scraped: Scraped) -> None:
    """Runs are where they are: one runs and two wait; later there are none."""
    assert scraped.queued.counted("runs") == {("running",): 1, ("queued",): 2}
    assert scraped.queued.value("workers") == 1
    assert scraped.queued.value("queue_limit") == 2
    assert scraped.queued.value("unended_runs", state="active") == 1
    assert scraped.queued.value("unended_runs", state="queued") == 2
    assert scraped.last.counted("runs") == {}
    assert scraped.last.total("unended_runs") == 0


def test_durations_of_runs(scraped: Scraped) -> None:
    """A run has one time in the queue, one to start and one in all, as far as it came."""
    last = scraped.last
    # One was killed in the queue.
    assert last.value("run_queued_seconds_count") == 7
    assert last.total("run_starting_seconds_count", kernelspec="python3") == 7
    assert last.total("run_starting_seconds_count", start="warm") >= 1
    counts = {state: last.value("run_duration_seconds_count", state=state) for state in ("failed", "killed")}
    assert counts == {"failed": 1, "killed": 1}
    assert last.total("run_duration_seconds_count") == 7
    assert 0 < last.total("run_duration_seconds_sum") < scraped.seconds
    assert last.value("run_duration_seconds_sum", state="timed_out") > 0.1


def test_cells(scraped: Scraped) -> None:
    """Every cell that began is counted once, under how it ended."""
    counts = scraped.last.counted("cell_duration_seconds_count")
    # The cells of the worker that died, of the one that took too long, and of the one that was killed.
    assert counts == {("succeeded",): 4, ("failed",): 1, ("error_allowed",): 1, ("stopped",): 3}
    assert scraped.last.value("cell_duration_seconds_sum", outcome="stopped") > 0.1


def test_kills(scraped: Scraped) -> None:
    """A Kill of a run that goes on has a time, and the processes that it ended are counted."""
    assert scraped.last.value("kill_duration_seconds_count") == 1
    assert scraped.last.value("kill_duration_seconds_sum") > 0
    # Each kernel is one, at the end of its run.
    assert scraped.last.value("processes_ended_total") >= 7


def test_output(scraped: Scraped) -> None:
    """What was printed is counted in bytes."""
    errors = 2 * len("division by zero")
    result = len("1") * 2
    assert scraped.last.value("output_bytes_total") == len("12345\n") + errors + result


def test_a_worker_that_died(scraped: Scraped) -> None:
    """The death of a worker is counted, and the next runs find another one."""
    assert scraped.last.value("worker_deaths_total") == 1
    assert scraped.last.value("warm_kernels_wanted", kernelspec="python3") == 1


def test_calls(scraped: Scraped) -> None:
    """Calls are counted by method and status, and refusals by the contract's reason."""
    handled = scraped.last.counted("rpcs_handled_total")
    assert handled[("OK", "NotebookRunner/Start")] == 8
    assert handled[("OK", "NotebookRunner/Kill")] == 2
    assert handled[("NOT_FOUND", "NotebookRunner/Kill")] == 1
    assert scraped.last.value("rpc_errors_total", reason="RUN_NOT_FOUND") == 1
    assert scraped.last.value("rpcs_started_total", method="NotebookRunner/Start") == 8
    assert scraped.last.value("rpc_duration_seconds_count", method="NotebookRunner/Kill") == 3
    assert scraped.last.counted("rpcs_open") == {}


def test_the_history(scraped: Scraped) -> None:
    """The history has all runs, and a size."""
    assert scraped.last.value("store_runs") == 8
    assert scraped.last.value("store_bytes") > 10_000
    assert scraped.last.value("store_free_bytes") > 10_000


def test_build_and_process(scraped: Scraped) -> None:
    """The page says which version it is of, and what the process takes."""
    (version,) = [dict(has)["version"] for (name, has) in scraped.last.samples if name.endswith("build_info")]
    assert version == __version__
    names = {name for name, _ in scraped.last.samples}
    assert {
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
    } <= names


def test_series_are_there_before_their_first_event(make_server: Callable[..., Server]) -> None:
    """A new server has a zero for every state, cause, outcome, status and reason."""
    with pytest.raises(grpc.RpcError):
        kill(server := make_server(*ON), "nobody")
    page = scrape(server)
    for cause, state in ENDS.items():
        assert page.value("runs_ended_total", state=state.value, cause=cause.value) == 0
    assert page.value("cell_duration_seconds_count", outcome="failed") == 0
    assert page.value("rpcs_handled_total", method="NotebookRunner/Start", code="INTERNAL") == 0
    for reason in ("STORAGE_FULL", "MISSING_TOKEN", "BAD_TOKEN", "CANCELLED", "INTERNAL_ERROR"):
        assert page.value("rpc_errors_total", reason=reason) == 0
    assert page.value("run_starting_seconds_count", kernelspec="python3", start="cold") == 0
    assert page.counted("runs_ended_total") == {}


def test_no_label_is_a_caller_s(scraped: Scraped) -> None:
    """However callers name runs, labels and methods, the series stay the same."""
    server = scraped.server
    before = scrape(server)
    for number in range(3):
        name = f"own-{number}"
        run(server, "1", request_id=name, labels={name: name})
        with pytest.raises(grpc.RpcError):
            server.raw(name, b"")
        with pytest.raises(grpc.RpcError):
            kill(server, name)
    after = scrape(server)
    assert after.samples.keys() == before.samples.keys()
    assert after.value("rpcs_handled_total", method="other", code="UNIMPLEMENTED") == 3


def test_streams_that_are_open(scraped: Scraped, gate: Gate) -> None:
    """Readers of a stream are counted as long as they read, also those that go away without a word."""
    server = scraped.server
    going = start(server.stub, inline(gate.source))
    streams = [server.stub.Progress(pb.ProgressRequest(run_id=going.run_id)) for _ in range(3)]
    for stream in streams:
        next(stream)
    assert scrape(server).value("rpcs_open", method="NotebookRunner/Progress") == 3
    for stream in streams:
        stream.cancel()
    until(server, lambda page: page.value("rpcs_open", method="NotebookRunner/Progress") == 0)
    gate.open()
    finish(server.stub, going.run_id)


def test_after_a_restart(tmp_path: Path, gate: Gate) -> None:
    """A server that follows one that was killed counts what it found: one interrupted, one that goes on."""
    with KillableServer(tmp_path, *ON, "--queue", "1") as first:
        runs = [start(first.stub, inline(source)) for source in (gate.source, "1")]
        reach(first.stub, runs[0].run_id, "cell_started")
        first.die()
    with KillableServer(tmp_path, *ON, "--queue", "1") as second:
        finish(second.stub, runs[1].run_id)
        page = scrape(second)
    assert page.counted("runs_ended_total") == {("server_died", "interrupted"): 1, ("none", "succeeded"): 1}
    assert page.total("runs_admitted_total") == 1
    assert page.counted("runs") == {}
    assert page.value("store_runs") == 2
    assert page.counted("cell_duration_seconds_count") == {("stopped",): 1, ("succeeded",): 1}


def test_a_port_that_is_taken(scraped: Scraped, tmp_path: Path) -> None:
    """A server that cannot have its metrics' port says so, and does not start."""
    taken = address(scraped.server).removeprefix("http://").removesuffix("/metrics")
    server = KillableServer(tmp_path, "--metrics-listen", taken)
    with pytest.raises(AssertionError, match="the server ended"), server:
        pass
    assert any(f"--metrics-listen {taken}: another program uses this port" in line for line in server.noise)


def test_without_a_port(server: Server) -> None:
    """By default there is no port."""
    assert server.said("server_started")
    assert not server.said("metrics_started")


def test_what_is_off_costs_nothing() -> None:
    """A server without metrics and traces does not even import what they need."""
    program = """if True:
        import sys
        from pathlib import Path
        from notebook_runner_server import app, config
        from notebook_runner_server.execution.pool import ProcessPoolBackend
        app.App(config.Settings(), ProcessPoolBackend(1, Path("scratch")), 1)
        imported = {name.partition(".")[0] for name in sys.modules}
        print(imported & {"prometheus_client", "opentelemetry"})
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout.strip() == "set()"


def test_repetitions(tmp_path: Path) -> None:
    """Each run that is repeated is counted by its state; its log line has its attempt and what repeats it."""
    with Server(tmp_path, *ON) as server:
        assert scrape(server).counted("runs_retried_total") == {}
        crash = inline("import os; os._exit(1)", retry=retry(2))
        runs = chain(server.stub, start(server.stub, crash).run_id)
        assert scrape(server).counted("runs_retried_total") == {("crashed",): 2}
        lines = server.logged("run", count=3)
        told = [(line["run_id"], line["attempt"], line.get("retried_by", "")) for line in lines]
        assert told == [(run.run_id, run.attempt, run.retried_by) for run in runs]
        run(server, "1")
        assert not {"attempt", "retried_by"} & server.logged("run", count=4)[-1].keys()
