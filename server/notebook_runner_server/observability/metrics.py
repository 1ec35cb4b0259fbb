"""The Prometheus metrics, counted as events happen, so that a scrape only reads numbers.

Each series exists before its first event, except those of owners. Callers cannot choose values of labels:
kernelspecs are those of the server's machine, and owners are named up to a number (`MAX_OWNERS`).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from notebook_runner import __version__
from notebook_runner_server.api.errors import OWN_REASONS
from notebook_runner_server.api.telemetry_interceptor import CODES, METHODS, Call
from notebook_runner_server.errors import reasons
from notebook_runner_server.execution.interface import CellFinished, CellOutcome
from notebook_runner_server.observability.state_collector import StateCollector
from notebook_runner_server.runs.model import RETRYABLE, Event, Run, RunChanged, RunState
from notebook_runner_server.runs.observer import RunContext
from notebook_runner_server.runs.transitions import ENDS

PREFIX = "notebook_runner"
NO_CAUSE = "none"

MAX_OWNERS = 100
"""How many owners have series of their own, in the order in which their runs came."""

OTHER_OWNERS = "(others)"
"""Stands for all further owners."""

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds in seconds for what should take milliseconds."""

LONG = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Upper bounds in seconds for what depends on the notebook."""


class Metrics:
    """Counts events.

    Attributes:
        registry: The metrics.
    """

    def __init__(self) -> None:
        # Otherwise each series would have a second one with its creation time.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # it has no types
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        build = Info(f"{PREFIX}_build", "Version of the server and of Python.", registry=self.registry)
        build.info({"version": __version__, "python_version": platform.python_version()})
        self._rpcs = _Rpcs(self.registry)
        self._runs = _Runs(self.registry)

    def watch(self, collector: StateCollector) -> None:
        """Add the metrics of a collector, and create the series of its kernelspecs."""
        self.registry.register(collector)
        self._runs.add_kernels(collector.kernels)

    def call_started(self, method: str) -> None:
        """Count a call."""
        self._rpcs.started.labels(method).inc()
        self._rpcs.open.labels(method).inc()

    def call_ended(self, call: Call) -> None:
        """Count the end of a call."""
        self._rpcs.open.labels(call.method).dec()
        self._rpcs.handled.labels(call.method, call.code).inc()
        self._rpcs.seconds.labels(call.method).observe(call.seconds)
        if call.reason:
            self._rpcs.errors.labels(call.reason).inc()

    def on_event(self, run_context: RunContext, event: Event) -> None:
        """Count an event of a run."""
        match event.body:
            case RunChanged(run=run):
                self._runs.changed(run_context, run, event.time)
            case CellFinished(duration=duration, outcome=outcome):
                self._runs.cells.labels(outcome.value).observe(duration)

    def on_left(self, run_context: RunContext) -> None:
        """Stop counting a run that another server executes."""
        self._runs.left(run_context.run_id, run_context.owner)


class _Rpcs:
    def __init__(self, registry: CollectorRegistry) -> None:
        name = f"{PREFIX}_rpc"
        self.started = Counter(f"{name}s_started", "Started calls.", ["method"], registry=registry)
        self.handled = Counter(
            f"{name}s_handled", "Ended calls by status.", ["method", "code"], registry=registry
        )
        self.errors = Counter(
            f"{name}_errors", "Failed calls, by the contract's reason.", ["reason"], registry=registry
        )
        self.seconds = Histogram(
            f"{name}_duration_seconds",
            "Duration of calls; for a stream, the time that it was open.",
            ["method"],
            buckets=SHORT,
            registry=registry,
        )
        self.open = Gauge(
            f"{name}s_open", "Open calls, including readers of streams.", ["method"], registry=registry
        )
        for method in METHODS:
            self.started.labels(method)
            self.open.labels(method)
            self.seconds.labels(method)
            for code in CODES.values():
                self.handled.labels(method, code)
        for reason in (*reasons(), *OWN_REASONS):
            self.errors.labels(reason)


class _Runs:
    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}_{name}_seconds", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        self._states: dict[str, RunState] = {}
        self._owners: set[str] = set()
        self._now = Gauge(f"{PREFIX}_runs", "Active and queued runs.", ["state"], registry=registry)
        self._admitted = counter(
            "runs_admitted",
            "Admitted runs, including queued runs found at the start.",
            ["kernelspec"],
        )
        self._ended = counter("runs_ended", "Ended runs by state and cause.", ["state", "cause"])
        self._retried = counter("runs_retried", "Ended runs that are repeated, by state.", ["state"])
        self._of_owner = Gauge(
            f"{PREFIX}_owner_runs",
            "Active and queued runs of each owner.",
            ["owner", "state"],
            registry=registry,
        )
        self._ended_of_owner = counter(
            "owner_runs_ended", "Ended runs of each owner by state.", ["owner", "state"]
        )
        self._queued = histogram("run_queued", "Time from Start to the assignment to a worker.", (), LONG)
        self._starting = histogram(
            "run_starting",
            "Time from the assignment to a worker until the kernel was ready.",
            ["kernelspec", "start"],
            SHORT,
        )
        self._running = histogram(
            "run_duration", "Time from the assignment to a worker to the end of the run.", ["state"], LONG
        )
        self.cells = histogram("cell_duration", "Duration of cells.", ["outcome"], LONG)
        self._kills = histogram(
            "kill_duration", "Time from the Kill until no process of the run was left.", (), SHORT
        )
        self._processes = counter(
            "processes_ended", "Processes of runs that were ended by force, including kernels."
        )
        self._output = counter("output_bytes", "Output of runs, counted at their end.")
        self._initialize()

    def _initialize(self) -> None:
        for state in RunState:
            if state.is_terminal:
                self._running.labels(state.value)
            else:
                self._now.labels(state.value)
        self._ended.labels(RunState.SUCCEEDED.value, NO_CAUSE)
        for cause, state in ENDS.items():
            self._ended.labels(state.value, cause.value)
        for state in RETRYABLE:
            self._retried.labels(state.value)
        for outcome in CellOutcome:
            self.cells.labels(outcome.value)

    def add_kernels(self, kernels: Iterable[str]) -> None:
        """Create the series of these kernelspecs."""
        for name in kernels:
            self._admitted.labels(name)
            for start in ("warm", "cold"):
                self._starting.labels(name, start)

    def changed(self, run_context: RunContext, run: Run, now: int) -> None:
        """Count a change of a run's state."""
        owner = self._owner(run.owner)
        self.left(run.run_id, run.owner)
        if not run.state.is_terminal:
            self._states[run.run_id] = run.state
            self._now.labels(run.state.value).inc()
            if owner:
                self._of_owner.labels(owner, run.state.value).inc()
        elif owner:
            self._ended_of_owner.labels(owner, run.state.value).inc()
        match run.state:
            case RunState.QUEUED:
                self._admitted.labels(run.kernel_name).inc()
            case RunState.STARTING:
                self._queued.observe((now - run.create_time) / 1e9)
            case RunState.RUNNING if run_context.starting:
                # If an earlier server started the run, only that server knew when.
                self._starting.labels(run.kernel_name, run_context.start).observe(
                    (now - run_context.starting) / 1e9
                )
            case state if state.is_terminal:
                self._has_ended(run_context, run)

    def left(self, run_id: str, owner: str) -> None:
        """Take a run out of the gauges."""
        before = self._states.pop(run_id, None)
        if before is not None:
            self._now.labels(before.value).dec()
            if name := self._owner(owner):
                self._of_owner.labels(name, before.value).dec()

    def _owner(self, name: str) -> str:
        """Return the label of an owner; empty: the server asks for no credentials."""
        if name and name not in self._owners:
            if len(self._owners) >= MAX_OWNERS:
                return OTHER_OWNERS
            self._owners.add(name)
        return name

    def _has_ended(self, run_context: RunContext, run: Run) -> None:
        cause = run.failure.cause.value if run.failure is not None else NO_CAUSE
        self._ended.labels(run.state.value, cause).inc()
        if run.retried_by:
            self._retried.labels(run.state.value).inc()
        if run.start_time:
            self._running.labels(run.state.value).observe((run.end_time - run.start_time) / 1e9)
        if run_context.stopping:
            self._kills.observe((run.end_time - run_context.stopping) / 1e9)
        self._processes.inc(run_context.processes_ended)
        self._output.inc(run_context.output_bytes)
