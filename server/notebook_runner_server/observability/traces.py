"""OpenTelemetry traces: a span for each run and each of its cells, sent by OTLP (the extra `tracing`).

A run's span starts when the run is admitted, is a child of the caller's span if there is one, and is passed
to the kernel as its parent. A cell's span is created when the cell ends. A thread sends spans in batches; if
it cannot, spans are dropped, and nothing waits.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from notebook_runner import __version__
from notebook_runner_server.execution.interface import CellFinished, CellOutcome
from notebook_runner_server.runs.model import Event, Run, RunChanged, RunState
from notebook_runner_server.runs.observer import RunContext

FLUSH_SECONDS = 3.0
"""Maximum time to send the last spans when the server stops, in seconds."""

_PREFIX = "notebook_runner."
_propagator = TraceContextTextMapPropagator()


class Traces:
    """Creates spans.

    Args:
        endpoint: The URL of an OTLP collector that uses gRPC; empty: as OpenTelemetry's variables say.
    """

    def __init__(self, endpoint: str) -> None:
        own = Resource.create({"service.name": "notebook-runner", "service.version": __version__})
        # OpenTelemetry's variables take precedence.
        resource = own.merge(OTELResourceDetector().detect())
        self._exporter = OTLPSpanExporter(endpoint=endpoint or None)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("notebook_runner_server", __version__)
        self._open: dict[str, _RunSpan] = {}

    def on_event(self, run_context: RunContext, event: Event) -> None:
        """Start, update or end spans."""
        match event.body:
            case RunChanged(run=run) if run.state is RunState.QUEUED:
                self._begin(run_context, run)
            case RunChanged(run=run) if run.state.is_terminal:
                # If an earlier server started the run, its span is lost.
                if span := self._open.pop(run_context.run_id, None):
                    span.end(run_context, run)
            case RunChanged(run=run):
                if span := self._open.get(run_context.run_id):
                    span.moved(run_context, run, event.time)
            case CellFinished() as cell:
                if span := self._open.get(run_context.run_id):
                    self._cell(span, cell, event.time)

    def on_left(self, run_context: RunContext) -> None:
        """Drop the span of a run that another server executes, and which has one there."""
        self._open.pop(run_context.run_id, None)

    def _begin(self, run_context: RunContext, run: Run) -> None:
        sent = {"traceparent": run_context.origin.traceparent, "tracestate": run_context.origin.tracestate}
        caller = _propagator.extract(sent, Context())
        span = self._tracer.start_span(
            "run",
            context=caller,
            kind=SpanKind.SERVER,
            attributes=_attributes(
                run_id=run.run_id,
                request_id=run_context.origin.call_id,
                kernel_name=run.kernel_name,
                notebook_path=run.notebook_path,
                cells_total=run.cells_total,
            ),
            start_time=run.create_time,
        )
        self._open[run.run_id] = own = _RunSpan(span)
        offered: dict[str, str] = {}
        _propagator.inject(offered, own.context)
        run_context.traceparent = offered.get("traceparent", "")
        run_context.tracestate = offered.get("tracestate", "")

    def _cell(self, run: _RunSpan, cell: CellFinished, end: int) -> None:
        # Cells that end together arrive together: none starts before the previous one has ended.
        begin = max(run.latest, end - round(cell.duration * 1e9))
        span = self._tracer.start_span(
            "cell",
            context=run.context,
            attributes=_attributes(
                cell_index=cell.cell_index,
                cell_id=cell.cell_id,
                execution_count=cell.execution_count,
                outcome=cell.outcome.value,
            ),
            start_time=begin,
        )
        is_good = cell.outcome is CellOutcome.SUCCEEDED
        span.set_status(Status(StatusCode.OK) if is_good else Status(StatusCode.ERROR, cell.outcome.value))
        span.end(end)
        run.latest = end

    async def close(self) -> None:
        """Send the last spans, as far as time permits."""
        # On a daemon thread, which does not keep the process from ending.
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, FLUSH_SECONDS)
        if last.is_alive():
            self._exporter.shutdown()


class _RunSpan:
    """The span of an active run.

    Attributes:
        context: The context for its child spans.
        latest: The end of the newest child, in nanoseconds since the epoch.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self.context: Context = set_span_in_context(span, Context())
        self.latest = 0

    def moved(self, run_context: RunContext, run: Run, now: int) -> None:
        """Record a new state."""
        self._span.add_event(run.state.value, _attributes(start=run_context.start), timestamp=now)
        self.latest = max(self.latest, now)

    def end(self, run_context: RunContext, run: Run) -> None:
        """End the span with the outcome of the run."""
        cause = run.failure.cause.value if run.failure is not None else ""
        about = _attributes(
            state=run.state.value,
            cause=cause,
            cells_completed=run.cells_completed,
            output_bytes=run_context.output_bytes,
            processes_ended=run_context.processes_ended,
        )
        self._span.set_attributes(about)
        self._span.set_status(Status(StatusCode.ERROR, cause) if cause else Status(StatusCode.OK))
        self._span.end(run.end_time)


def _attributes(**values: Any) -> dict[str, Any]:
    return {_PREFIX + name: value for name, value in values.items() if value != ""}
