"""Who watches runs: the canonical log lines, metrics and traces are all told the same, from one place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

from notebook_runner_server.execution.interface import (
    CellFinished,
    CellStarted,
    DisplayOutput,
    ErrorOutput,
    StreamOutput,
)
from notebook_runner_server.runs.model import Event, RunChanged, RunState, TraceContext

_logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Watches runs."""

    def on_event(self, run_context: RunContext, event: Event) -> None:
        """Take note of an event, when readers are shown it; answer at once.

        Args:
            run_context: How the run went so far, this event included.
            event: A new state of the run, or the start or end of a cell. Output is not told. The first is
                the state QUEUED, or the one in which an earlier server has left the run.
        """


class RunContext:
    """How a run went since this server has it, beside what its events say.

    Args:
        run_id: The run.
        origin: The call that it comes from.
        observers: Who is told of it.

    Attributes:
        run_id: The same.
        origin: The same.
        traceparent: What the kernel is offered as its parent in a trace: the caller's, or an observer's.
        tracestate: What belongs to it.
        starting: When a worker took the run, as in `Event`; zero: not yet.
        ready: When its kernel was ready; zero: not yet.
        stopping: When it was asked to end; zero: it was not.
        is_warm: Whether its kernel was there before it; None: not known yet.
        output_bytes: What its cells have put out.
        processes_ended: How many processes were ended by force; final when the run has ended.
        peak_memory_bytes: The most that the kernel's process had in memory; zero: not known.
    """

    def __init__(self, run_id: str, origin: TraceContext, observers: Iterable[Observer]) -> None:
        self.run_id = run_id
        self.origin = origin
        self.traceparent, self.tracestate = origin.traceparent, origin.tracestate
        self.starting = self.ready = self.stopping = 0
        self.is_warm: bool | None = None
        self.output_bytes = 0
        self.processes_ended = 0
        self.peak_memory_bytes = 0
        self._observers = tuple(observers)

    @property
    def ids(self) -> dict[str, str]:
        """What a log line about the run has in it."""
        return {"run_id": self.run_id, "request_id": self.origin.call_id}

    @property
    def start(self) -> str:
        """Whether its kernel was there before it: "warm" or "cold"; empty: not known yet."""
        return "" if self.is_warm is None else ("warm" if self.is_warm else "cold")

    @property
    def variables(self) -> dict[str, str]:
        """What the kernel is offered, as variables of its environment."""
        found = {"TRACEPARENT": self.traceparent, "TRACESTATE": self.tracestate}
        return {name: value for name, value in found.items() if value}

    def tell(self, events: Sequence[Event]) -> None:
        """Take note of events, and pass on those that are no output."""
        for event in events:
            match event.body:
                case StreamOutput(text=text):
                    self.output_bytes += len(text) if text.isascii() else len(text.encode())
                case DisplayOutput(data=data):
                    self.output_bytes += sum(size for _, size in data)
                case ErrorOutput(exception_message=text):
                    self.output_bytes += len(text.encode())
                case RunChanged(run=run):
                    self._changed(run.state, event.time)
                    self._pass_on(event)
                case CellStarted() | CellFinished():
                    self._pass_on(event)

    def _changed(self, state: RunState, time: int) -> None:
        match state:
            case RunState.STARTING:
                self.starting = time
            case RunState.RUNNING:
                self.ready = time
            case RunState.KILLING:
                self.stopping = time

    def _pass_on(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer.on_event(self, event)
            except Exception:
                # Whoever watches must not end what is watched.
                _logger.exception("an observer failed", extra=self.ids)
