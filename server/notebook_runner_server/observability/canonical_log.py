"""Canonical log lines: one line at the end of each call and each run, with everything known about it.

They contain no data of notebooks: no output, no value of a parameter or variable, no message of an exception.
"""

from __future__ import annotations

from itertools import pairwise

import structlog

from notebook_runner_server.api.telemetry_interceptor import Call
from notebook_runner_server.runs.model import Event, Run, RunChanged
from notebook_runner_server.runs.observer import RunContext

_log = structlog.get_logger(__name__)

_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")


class CanonicalLog:
    """Writes the canonical lines."""

    def call_started(self, method: str) -> None:
        """Do nothing: the line is written at the end."""

    def call_ended(self, call: Call) -> None:
        """Write the line `rpc` of a call.

        At level debug for health checks, which are frequent, and for refused calls, which
        `api.auth_interceptor` summarizes.
        """
        quiet = call.method.startswith("Health/") or call.code in _REFUSED
        about = {"messages": call.messages, "peer": call.peer}
        (_log.debug if quiet else _log.info)(
            "rpc",
            method=call.method,
            code=call.code,
            duration_seconds=round(call.seconds, 6),
            **{name: value for name, value in about.items() if value},
        )

    def on_event(self, run_context: RunContext, event: Event) -> None:
        """Write the line `run` of a run that has ended."""
        if event.is_terminal and isinstance(event.body, RunChanged):
            run = event.body.run
            # If an earlier server started the run, only that server knew the rest.
            is_known = run_context.starting or not run.start_time
            known = {**_durations(run_context, run), **_measured(run_context)} if is_known else {}
            _log.info("run", **run_context.ids, **_about(run), **known)

    def on_left(self, run_context: RunContext) -> None:
        """Write nothing: the other server writes the line of its end."""


def _about(run: Run) -> dict[str, object]:
    retry = {"attempt": run.attempt if run.retry is not None else None, "retried_by": run.retried_by or None}
    return {
        "state": run.state.value,
        "cause": run.failure.cause.value if run.failure is not None else "",
        "cells": run.cells_completed,
        "cells_total": run.cells_total,
        "kernel_name": run.kernel_name,
        **{name: value for name, value in retry.items() if value is not None},
    }


def _durations(run_context: RunContext, run: Run) -> dict[str, float]:
    """Return the seconds that a run spent in each phase that it reached."""
    names = ("queued_seconds", "starting_seconds", "running_seconds")
    bounds = filter(None, (run.create_time, run.start_time, run_context.ready, run.end_time))
    return {
        name: round((end - begin) / 1e9, 6)
        for name, (begin, end) in zip(names, pairwise(bounds), strict=False)
    }


def _measured(run_context: RunContext) -> dict[str, object]:
    found: dict[str, object] = {
        "start": run_context.start or None,
        "output_bytes": run_context.output_bytes,
        "processes_ended": run_context.processes_ended,
        "peak_memory_bytes": run_context.peak_memory_bytes or None,
        "cpu_seconds": None if run_context.cpu_seconds is None else round(run_context.cpu_seconds, 6),
        "trace_id": run_context.traceparent[3:35] or None,
    }
    return {name: value for name, value in found.items() if value is not None}
