"""The command that diagnoses problems with a server and suggests how to solve them."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
import grpc

from notebook_runner._connection import Connection
from notebook_runner._version import __version__
from notebook_runner.errors import AccessDenied, NotebookRunnerError, RpcFailed

from ._exit import ExitCode
from ._group import Server, describe_error, usage_errors
from ._options import json_option
from ._probe import OTHER_PORT, CheckResult, probe
from ._text import dump, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notebook_runner.client import Client
    from notebook_runner.v1 import notebook_runner_pb2 as pb

__all__ = ["doctor", "examine"]

CALL_TIMEOUT = 10.0
# A kernel that a run has just taken is replaced within a second.
SPARES_TIMEOUT = 3.0
SPARES_PAUSE = 0.25


@click.command()
@json_option("all findings")
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> None:
    """Check the connection to the server and the server itself.

    Checks the connection, TLS, the token, the server's version, its kernels and how many of them are
    ready, and suggests how to solve each problem. Changes nothing. The exit code is 0 only if all
    checks pass.
    """
    server: Server = ctx.obj
    with usage_errors():
        connection = Connection.resolve(**server.settings)
    found = list(examine(server, connection))
    well = all(finding.ok for finding in found)
    if as_json:
        told = {"target": connection.target, "ok": well, "findings": [asdict(finding) for finding in found]}
        click.echo(dump(told))
    else:
        _show(found)
    ctx.exit(ExitCode.SUCCEEDED if well else ExitCode.FAILED)


def examine(server: Server, connection: Connection) -> Iterator[CheckResult]:
    """Look at one thing after the other, as far as the one before allows."""
    for finding in probe(connection):
        yield finding
        if not finding.ok:
            return
    with server.connect(timeout=CALL_TIMEOUT) as client:
        try:
            info = client.info()
        except NotebookRunnerError as error:
            yield _refused(client, error)
            return
        given = bool(connection.token_file or connection.token)
        yield CheckResult("token", ok=True, text="accepted" if given else "none given, none required")
        yield _version(info.version)
        yield from _kernels(info)
        yield from _warm_kernels(client, info)
        yield _room(info)


def _refused(client: Client, error: NotebookRunnerError) -> CheckResult:
    if isinstance(error, AccessDenied):
        return _denied(error)
    if isinstance(error, RpcFailed) and error.code is grpc.StatusCode.UNIMPLEMENTED:
        return _unknown(client)
    text = describe_error(error)
    advice = "see the server's log" if getattr(error, "reason", "") else "check --target and the server's log"
    return CheckResult("server", ok=False, text=text, advice=advice)


def _denied(error: AccessDenied) -> CheckResult:
    if error.reason == "MISSING_TOKEN":
        advice = "set --token-file FILE or NOTEBOOK_RUNNER_TOKEN_FILE"
        return CheckResult(
            "token", ok=False, text="the server requires a token, and none is given", advice=advice
        )
    if error.code is grpc.StatusCode.PERMISSION_DENIED:
        text, advice = (
            f"the token does not allow this: {error.message}",
            "ask the operator for a token that does",
        )
    else:
        text = f"the server rejected the token: {error.message}"
        advice = "check the token file, or ask the operator whether the token was replaced"
    return CheckResult("token", ok=False, text=text, advice=advice)


def _unknown(client: Client) -> CheckResult:
    try:
        next(client.list(page_size=1), None)
    except RpcFailed as error:
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            text = f"{client.target} speaks gRPC, but is not a notebook-runner server"
            return CheckResult("protocol", ok=False, text=text, advice=OTHER_PORT)
    text = f"the server is older than this client ({__version__}) and does not report its version"
    return CheckResult("version", ok=False, text=text, advice=_older())


def _older() -> str:
    return f"ask the operator to upgrade it to {__version__} or later, or install the client of its version"


def _version(version: str) -> CheckResult:
    ours, theirs = _release(__version__), _release(version)
    if theirs < ours:
        text = f"the server is {version or 'of an unknown version'}, older than this client ({__version__})"
        return CheckResult("version", ok=False, text=text, advice=_older())
    if theirs > ours:
        text = f"server {version}, client {__version__}: newer servers support older clients"
        return CheckResult("version", ok=True, text=text)
    return CheckResult("version", ok=True, text=f"server {version}, client {__version__}")


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _kernels(info: pb.InfoResponse) -> Iterator[CheckResult]:
    if not info.kernels:
        advice = "ask the operator to install one next to the server: pip install ipykernel"
        yield CheckResult(
            "kernels", ok=False, text="the server has none and cannot run notebooks", advice=advice
        )
        return
    names = [f"{one.name} ({one.language}{', default' * one.is_default})" for one in info.kernels]
    yield CheckResult("kernels", ok=True, text=", ".join(names))


def _warm_kernels(client: Client, info: pb.InfoResponse) -> Iterator[CheckResult]:
    until = time.monotonic() + SPARES_TIMEOUT
    while _cold(info) and time.monotonic() < until:
        time.sleep(SPARES_PAUSE)
        info = client.info()
    wanted = [one for one in info.kernels if one.warm_wanted]
    if not wanted and info.kernels:
        yield CheckResult(
            "warm kernels", ok=True, text="none are kept: each run waits for its kernel to start"
        )
    for one in wanted:
        text = f"{one.name}: {one.warm_ready} of {one.warm_wanted} ready"
        ok = one.warm_ready >= one.warm_wanted
        advice = "" if ok else "runs still start, but more slowly; if this persists, see the server's log"
        yield CheckResult("warm kernels", ok=ok, text=text, advice=advice)


def _cold(info: pb.InfoResponse) -> bool:
    return any(one.warm_ready < one.warm_wanted for one in info.kernels)


def _room(info: pb.InfoResponse) -> CheckResult:
    if info.problem:
        return CheckResult("runs", ok=False, text=info.problem, advice="see the server's log")
    text = f"{info.runs_active} of {info.workers} running, {info.runs_queued} of {info.queue_size} queued"
    return CheckResult("runs", ok=True, text=text)


def _show(found: list[CheckResult]) -> None:
    room = max(len(finding.check) for finding in found) + 4
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    colour = False if os.environ.get("NO_COLOR") else None
    for finding in found:
        sign = click.style("✓", fg="green") if finding.ok else click.style("✗", fg="red", bold=True)
        lines = textwrap.wrap(one_line(finding.text), max(20, width - room), break_on_hyphens=False) or [""]
        if finding.advice:
            lines += textwrap.wrap(
                one_line(f"→ {finding.advice}"),
                max(20, width - room),
                subsequent_indent="  ",
                break_on_hyphens=False,
            )
        click.echo(f"{sign} {finding.check:<{room - 2}}{lines[0]}", color=colour)
        for line in lines[1:]:
            click.echo(" " * room + line)
    problems = sum(not finding.ok for finding in found)
    click.echo("all checks passed" if not problems else f"{problems} problem{'s' * (problems > 1)} found")
