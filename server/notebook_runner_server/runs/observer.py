"""Observers of runs: canonical log lines, metrics and traces all get their events from here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """Gets the events of runs."""

    def on_event(self, run_context: RunContext, event: Event) -> None:
        """Handle an event when readers can see it; must not block.

        Args:
            run_context: The run so far, including this event.
            event: A new state of the run, or the start or end of a cell, but no output. The first is QUEUED,
                or the state in which an earlier server left the run.
        """

    def on_left(self, run_context: RunContext) -> None:
        """Forget a run that was queued here, and that another server executes; must not block."""


@dataclass(slots=True, eq=False)
class RunContext:
    """Facts about a run, collected since this server has it, that are not in its events.

    Attributes:
        run_id: The run.
        origin: The call that started it.
        observers: Get its events.
        owner: Its owner; empty: the server asks for no credentials.
        traceparent: The kernel's parent in a trace: the caller's, or an observer's.
        tracestate: Its `tracestate`.
        starting: When a worker took the run, as in `Event`; zero: not yet.
        ready: When its kernel was ready; zero: not yet.
        stopping: When it was asked to end; zero: never.
        is_warm: Whether its kernel was warm; None: unknown so far.
        output_bytes: Bytes of output of all cells.
        processes_ended: How many processes were ended by force; final when the run has ended.
        peak_memory_bytes: The largest memory that its processes had together; zero: unknown.
        cpu_seconds: The processor time of its processes; None: unknown.
        unseen: An event that observers get before all others, once this server executes the run, which
            another one has admitted; None: they got it.
    """

    run_id: str
    origin: TraceContext
    observers: Sequence[Observer]
    owner: str = ""
    traceparent: str = field(init=False)
    tracestate: str = field(init=False)
    starting: int = 0
    ready: int = 0
    stopping: int = 0
    is_warm: bool | None = None
    output_bytes: int = 0
    processes_ended: int = 0
    peak_memory_bytes: int = 0
    cpu_seconds: float | None = None
    unseen: Event | None = None

    def __post_init__(self) -> None:
        self.traceparent, self.tracestate = self.origin.traceparent, self.origin.tracestate

    @property
    def ids(self) -> dict[str, str]:
        """The fields that identify the run in a log line."""
        ids = {"run_id": self.run_id, "request_id": self.origin.call_id}
        return {**ids, "owner": self.owner} if self.owner else ids

    @property
    def start(self) -> str:
        """How its kernel started, "warm" or "cold"; empty: unknown so far."""
        return "" if self.is_warm is None else ("warm" if self.is_warm else "cold")

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables for the kernel."""
        variables = {"TRACEPARENT": self.traceparent, "TRACESTATE": self.tracestate}
        return {name: value for name, value in variables.items() if value}

    def on_events(self, events: Sequence[Event]) -> None:
        """Update the facts, and pass on all events but output."""
        if (first := self.unseen) is not None:
            self.unseen = None
            self.on_events([first])
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

    def leave(self) -> None:
        """Let observers forget the run, which another server executes."""
        for observer in self.observers if self.unseen is None else ():
            observer.on_left(self)

    def _changed(self, state: RunState, time: int) -> None:
        match state:
            case RunState.STARTING:
                self.starting = time
            case RunState.RUNNING:
                self.ready = time
            case RunState.KILLING:
                self.stopping = time

    def _pass_on(self, event: Event) -> None:
        for observer in self.observers:
            try:
                observer.on_event(self, event)
            except Exception:
                # A failing observer must not end the run.
                _logger.exception("observer_failed", extra=self.ids)
