# pyright: strict
"""Every public method as a caller uses it, with the type that it must have: for type checkers, never run."""

from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, assert_type

import grpc
from nbformat import NotebookNode

from notebook_runner import (
    AccessDenied,
    AsyncClient,
    AsyncRunResult,
    Client,
    FieldViolation,
    InvalidRequest,
    NotebookRunnerError,
    RpcFailed,
    RunFailed,
    RunnerBusy,
    RunNotFound,
    RunResult,
    StartOptions,
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
}


def blocking(file: IO[bytes]) -> None:
    """The client that blocks."""
    with Client(
        "runner.test:50051", token_file=Path("token"), tls_ca="ca", tls_cert="c", tls_key="k", timeout=5
    ) as client:
        assert_type(client, Client)
        assert_type(client.target, str)
        run = assert_type(client.start("a.ipynb", **OPTIONS), pb.Run)
        client.start(Path("a.ipynb"))
        client.start(b"{}")
        client.start({"cells": []}, parameters={"a": 1})
        client.start(NotebookNode())
        client.start(server_path="a.ipynb")
        client.start(notebook_uri="s3://bucket/a.ipynb")
        client.start()
        result = assert_type(client.run("a.ipynb", parameters={"a": 1}, run_timeout=5), RunResult)
        assert_type(result.run, pb.Run)
        assert_type(result.output(format="html", omit_input=True), bytes)
        assert_type(result.notebook(), NotebookNode)
        result.save_output("out.html", format="html", omit_input=True)
        events = client.progress(
            run.run_id, after_sequence=1, omit_cell_output=True, snapshot_only=True, reconnect_timeout=5
        )
        assert_type(events, Iterator[pb.ProgressResponse])
        for event in events:
            assert_type(event.cell_output.stream.text, str)
        assert_type(client.wait(run.run_id, reconnect_timeout=timedelta(seconds=5)), pb.Run)
        assert_type(client.output(run.run_id, format="html", omit_input=True), bytes)
        assert_type(client.notebook(run.run_id), NotebookNode)
        client.save_output(file, run.run_id, format="files")
        killed = assert_type(client.kill(run.run_id, grace_period=2.5), pb.KillResponse)
        assert_type(killed.processes_ended, int)
        runs = client.list(states=["running", pb.RUN_STATE_QUEUED], labels={"team": "a"}, page_size=10)
        assert_type(runs, Iterator[pb.Run])
        info = assert_type(client.info(), pb.InfoResponse)
        assert_type(info.version, str)
    client.close()


async def awaited(file: IO[bytes]) -> None:
    """The client of asyncio."""
    async with AsyncClient(
        "runner.test:50051", token=TOKEN, tls_ca="ca", tls_cert="c", tls_key="k", timeout=timedelta(seconds=5)
    ) as client:
        assert_type(client, AsyncClient)
        assert_type(client.target, str)
        run = assert_type(await client.start("a.ipynb", **OPTIONS), pb.Run)
        result = assert_type(await client.run(b"{}", parameters={"a": 1}, run_timeout=5), AsyncRunResult)
        assert_type(result.run, pb.Run)
        assert_type(await result.output(format="html", omit_input=True), bytes)
        assert_type(await result.notebook(), NotebookNode)
        await result.save_output("out.html", format="html", omit_input=True)
        events = client.progress(
            run.run_id, after_sequence=1, omit_cell_output=True, snapshot_only=True, reconnect_timeout=5
        )
        assert_type(events, AsyncGenerator[pb.ProgressResponse, None])
        async for event in events:
            assert_type(event.cell_started.first_line, str)
        assert_type(await client.wait(run.run_id, reconnect_timeout=5), pb.Run)
        assert_type(await client.output(run.run_id, format="html", omit_input=True), bytes)
        assert_type(await client.notebook(run.run_id), NotebookNode)
        await client.save_output(file, run.run_id, format="files")
        assert_type(await client.kill(run.run_id, grace_period=2.5), pb.KillResponse)
        runs = client.list(states=["running"], labels={"team": "a"}, page_size=10)
        assert_type(runs, AsyncGenerator[pb.Run, None])
        assert_type(await client.info(), pb.InfoResponse)
    await client.close()


def errors(client: Client) -> None:
    """What is raised, with its fields."""
    try:
        client.run("a.ipynb")
    except RunFailed as error:
        assert_type(error.run, pb.Run)
        assert_type(error.cell_index, int | None)
        assert_type((error.exception_name, error.exception_message, error.traceback), tuple[str, str, str])
    except RunnerBusy as error:
        assert_type(error.run_id, str)
        assert_type(error.retry_after, float | None)
    except (InvalidRequest, RunNotFound, AccessDenied, Unavailable) as error:
        assert_type(error.violations, tuple[FieldViolation, ...])
    except RpcFailed as error:
        assert_type(error.code, grpc.StatusCode)
        assert_type((error.reason, error.message), tuple[str, str])
        assert_type(error.metadata, dict[str, str])
    except NotebookRunnerError as error:
        assert_type(str(error), str)
