# pyright: strict
"""Every public method as a caller uses it, with the type that it must have: for type checkers, never run."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, assert_type
from zipfile import ZipFile

import grpc
from nbformat import NotebookNode

from notebook_runner import (
    AccessDenied,
    AsyncClient,
    AsyncRun,
    CellFinished,
    CellOutcome,
    CellRaised,
    CellStarted,
    Client,
    Displayed,
    Event,
    Failure,
    FailureCause,
    FieldViolation,
    Image,
    InvalidRequest,
    KillResult,
    NotebookRunnerError,
    NotOwner,
    Output,
    OutputCleared,
    OutputCut,
    Printed,
    QuotaExceeded,
    ResultValue,
    Retry,
    RpcFailed,
    Run,
    RunFailed,
    RunnerBusy,
    RunNotFound,
    RunSnapshot,
    RunState,
    ServerInfo,
    Share,
    StartOptions,
    StateChanged,
    Unavailable,
)
from notebook_runner.v1 import notebook_runner_pb2 as pb

TOKEN = "t"  # noqa: S105 - opens no door
OPTIONS: StartOptions = {
    "parameters": {"region": "north", "limits": [1, 2.5, None]},
    "kernel_name": "python3",
    "run_timeout": timedelta(minutes=5),
    "cell_timeout": 60,
    "output_timeout": 30.5,
    "allow_errors": True,
    "environment": {"LANG": "C"},
    "memory_limit": 2**30,
    "cell_output_limit": 2**20,
    "run_output_limit": 2**24,
    "process_limit": 50,
    "labels": {"team": "a"},
    "retention": 3600,
    "request_id": "id",
    "output_uri": "s3://bucket/out.ipynb",
    "notify_uri": "https://example.com/done",
    "name": "report",
    "files": ["data.csv", Path("utils")],
    "retry": Retry(3, states=["crashed", RunState.TIMED_OUT], backoff=timedelta(seconds=5), max_backoff=60),
    "priority": 5,
}


def facts(run: Run | AsyncRun | RunSnapshot) -> None:
    """What is known of a run."""
    assert_type((run.id, run.name, run.request_id, run.kernel_name), tuple[str, str, str, str])
    assert_type(run.state, RunState)
    assert_type((run.owner, run.retry_of, run.retried_by), tuple[str, str, str])
    assert_type((run.priority, run.attempt), tuple[int, int])
    assert_type((run.retry, run.not_before), tuple[Retry | None, datetime | None])
    assert_type((run.ok, run.is_terminal, run.state == "succeeded"), tuple[bool, bool, bool])
    assert_type(run.cause, FailureCause | None)
    assert_type((run.created, run.started, run.ended), tuple[datetime, datetime | None, datetime | None])
    assert_type((run.duration, run.cpu_time), tuple[timedelta | None, timedelta | None])
    assert_type((run.cells_total, run.cells_completed, run.fraction_completed), tuple[int, int, float])
    assert_type((run.current_cell, run.queue_position), tuple[int | None, int | None])
    assert_type((run.parameters, run.values), tuple[dict[str, Any], dict[str, Any]])
    assert_type(run.labels, dict[str, str])
    assert_type(run.peak_memory, int | None)
    assert_type((run.notebook_sha256, run.notebook_path, run.notebook_uri), tuple[str, str, str])
    assert_type((run.output_uri, run.output_error), tuple[str, str])
    assert_type(run.notebook_repairs, tuple[str, ...])
    assert_type(run.pb, pb.Run)
    if failure := assert_type(run.failure, Failure | None):
        assert_type((failure.message, failure.traceback, failure.signal), tuple[str, str, str])
        assert_type((failure.cell_index, failure.exit_code), tuple[int | None, int | None])
        assert_type((failure.exception_name, failure.exception_message), tuple[str, str])


def told(event: Event) -> str:
    """What an event says."""
    assert_type((event.sequence, event.cells_completed, event.cells_total), tuple[int, int, int])
    assert_type((event.time, event.pb), tuple[datetime, pb.ProgressResponse])
    match event:
        case StateChanged(state, run):
            assert_type((state, run), tuple[RunState, RunSnapshot])
        case CellStarted(index, line):
            assert_type((index, line), tuple[int, str])
        case Printed(text, stream):
            assert_type((text, stream), tuple[str, str])
        case Displayed(data=data, sizes=sizes, result=result):
            assert_type((data, sizes), tuple[Mapping[str, Any], Mapping[str, int]])
            assert_type(result, ResultValue | None)
        case CellRaised(name, message):
            assert_type((name, message), tuple[str, str])
        case OutputCleared(wait=wait):
            assert_type(wait, bool)
        case OutputCut(limit=limit, whole_run=whole):
            assert_type((limit, whole), tuple[int, bool])
        case CellFinished(outcome=outcome, duration=duration, execution_count=count):
            assert_type((outcome, duration, count), tuple[CellOutcome, timedelta, int | None])
        case _:
            assert_type(event, Event)
    return str(event)


def blocking(file: IO[bytes]) -> None:
    """The client that blocks."""
    with Client(
        "runner.test:50051", token_file=Path("token"), tls_ca="ca", tls_cert="c", tls_key="k", timeout=5
    ) as client:
        assert_type(client, Client)
        assert_type(client.target, str)
        run = assert_type(client.start("a.ipynb", **OPTIONS), Run)
        client.start(Path("a.ipynb"))
        client.start(b"{}")
        client.start({"cells": []}, parameters={"a": 1})
        client.start(NotebookNode())
        client.start(server_path="a.ipynb")
        client.start(notebook_uri="s3://bucket/a.ipynb")
        client.start()
        facts(run)
        assert_type(client.run("a.ipynb", parameters={"a": 1}, run_timeout=5, files=["utils"]), Run)
        assert_type(client.get("abcd"), Run)
        assert_type(client.wait(run.id, timeout=5, reconnect_timeout=timedelta(seconds=5)), Run)
        assert_type(client.wait(run.id, retries=False), Run)
        events = client.progress(
            run.id,
            after_sequence=1,
            omit_cell_output=True,
            snapshot_only=True,
            display_data_max_bytes=1000,
            reconnect_timeout=5,
        )
        assert_type(events, Iterator[Event])
        assert_type([told(event) for event in events], list[str])
        assert_type(client.output(run.id, format="html", omit_input=True), bytes)
        assert_type(client.notebook(run.id), NotebookNode)
        client.save_output(file, run.id, format="files")
        killed = assert_type(client.kill(run.id, grace_period=2.5), KillResult[Run])
        assert_type((killed.run, killed.processes_ended, killed.already_ended), tuple[Run, int, bool])
        assert_type(killed.pb, pb.KillResponse)
        runs = client.runs(
            state="failed", label={"team": "a"}, since=timedelta(days=1), owner="ada", page_size=10
        )
        assert_type(runs, Iterator[Run])
        client.runs(state=[RunState.FAILED, "crashed", pb.RUN_STATE_KILLED], since=datetime(2026, 11, 29))  # noqa: DTZ001 - local time
        assert_type(client.list(states=["running", pb.RUN_STATE_QUEUED], labels={"team": "a"}), Iterator[Run])
        assert_type(client.delete(run.id), Run)
        info = assert_type(client.info(), ServerInfo)
        assert_type((info.caller, info.scopes, info.share), tuple[str, tuple[str, ...], Share | None])
        assert_type((info.version, info.formats, info.pb), tuple[str, tuple[str, ...], pb.InfoResponse])
        assert_type([kernel.name for kernel in info.kernels], list[str])
        of_run(run)
    client.close()


def of_run(run: Run) -> None:
    """What can be done with a run."""
    assert_type(run.refresh(), Run)
    assert_type(run.wait(timeout=5, retries=False).raise_for_state(), Run)
    assert_type(run.progress(omit_cell_output=True), Iterator[Event])
    assert_type(run.kill(grace_period=1), KillResult[Run])
    assert_type(run.text, str)
    assert_type(run.outputs, list[Output])
    assert_type(
        [(one.cell_index, one.text, one.data) for one in run.outputs],
        list[tuple[int, str, Mapping[str, Any]]],
    )
    assert_type(run.images, list[Image])
    assert_type(
        [(one.cell_index, one.mime_type, one.content) for one in run.images], list[tuple[int, str, bytes]]
    )
    assert_type(run.tables, list[Any])
    assert_type(run.output(format="html", omit_input=True), bytes)
    assert_type(run.html(omit_input=True), str)
    assert_type(run.notebook(), NotebookNode)
    assert_type(run.files(), ZipFile)
    run.save("out.html", omit_input=True)
    run.save(Path("out"), format="error")
    assert_type(run.delete(), Run)


async def awaited(file: IO[bytes]) -> None:
    """The client of asyncio."""
    async with AsyncClient(
        "runner.test:50051", token=TOKEN, tls_ca="ca", tls_cert="c", tls_key="k", timeout=timedelta(seconds=5)
    ) as client:
        assert_type(client, AsyncClient)
        assert_type(client.target, str)
        run = assert_type(await client.start("a.ipynb", **OPTIONS), AsyncRun)
        facts(run)
        assert_type(await client.run(b"{}", parameters={"a": 1}, run_timeout=5), AsyncRun)
        assert_type(await client.get("abcd"), AsyncRun)
        assert_type(await client.wait(run.id, timeout=5, reconnect_timeout=5), AsyncRun)
        events = client.progress(
            run.id,
            after_sequence=1,
            omit_cell_output=True,
            snapshot_only=True,
            display_data_max_bytes=1000,
            reconnect_timeout=5,
        )
        assert_type(events, AsyncGenerator[Event, None])
        assert_type([told(event) async for event in events], list[str])
        assert_type(await client.output(run.id, format="html", omit_input=True), bytes)
        assert_type(await client.notebook(run.id), NotebookNode)
        await client.save_output(file, run.id, format="files")
        assert_type(await client.kill(run.id, grace_period=2.5), KillResult[AsyncRun])
        assert_type(client.runs(state="running", label={"team": "a"}), AsyncGenerator[AsyncRun, None])
        assert_type(client.list(states=["running"], labels={"team": "a"}), AsyncGenerator[AsyncRun, None])
        assert_type(await client.delete(run.id), AsyncRun)
        assert_type(await client.info(), ServerInfo)
        await of_async_run(run)
    await client.close()


async def of_async_run(run: AsyncRun) -> None:
    """What can be done with a run."""
    assert_type(await run.refresh(), AsyncRun)
    assert_type((await run.wait(timeout=5, retries=False)).raise_for_state(), AsyncRun)
    assert_type(run.progress(omit_cell_output=True), AsyncGenerator[Event, None])
    assert_type(await run.kill(grace_period=1), KillResult[AsyncRun])
    assert_type(await run.text(), str)
    assert_type(await run.outputs(), list[Output])
    assert_type(await run.images(), list[Image])
    assert_type(await run.tables(), list[Any])
    assert_type(await run.output(format="html", omit_input=True), bytes)
    assert_type(await run.html(omit_input=True), str)
    assert_type(await run.notebook(), NotebookNode)
    assert_type(await run.files(), ZipFile)
    await run.save("out.html", omit_input=True)
    assert_type(await run.delete(), AsyncRun)


def errors(client: Client) -> None:
    """What is raised, with its fields."""
    try:
        client.run("a.ipynb")
    except RunFailed as error:
        assert_type(error.run, RunSnapshot)
        assert_type(error.cell_index, int | None)
        assert_type((error.exception_name, error.exception_message, error.traceback), tuple[str, str, str])
    except RunnerBusy as error:
        assert_type(error.run_id, str)
        assert_type(error.retry_after, float | None)
    except QuotaExceeded as error:
        assert_type((error.quota, error.limit), tuple[str, int | None])
    except NotOwner as error:
        assert_type(error.owner, str)
    except (InvalidRequest, RunNotFound, AccessDenied, Unavailable) as error:
        assert_type(error.violations, tuple[FieldViolation, ...])
    except RpcFailed as error:
        assert_type(error.code, grpc.StatusCode)
        assert_type((error.reason, error.message), tuple[str, str])
        assert_type(error.metadata, dict[str, str])
    except NotebookRunnerError as error:
        assert_type(str(error), str)
