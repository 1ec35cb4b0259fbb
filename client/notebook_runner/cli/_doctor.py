"""The command that diagnoses problems with a server and suggests how to solve them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import grpc

from notebook_runner._connection import Connection
from notebook_runner._printable import one_line, size
from notebook_runner._status import CLOSED, NOT_GRPC, Problem, problem_of, to_error
from notebook_runner._version import __version__
from notebook_runner.errors import AccessDenied, LoginFailed, RpcFailed, Unavailable
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1.notebook_runner_pb2_grpc import NotebookRunnerStub

from ._exit import ExitCode
from ._group import Server, describe_error, usage_errors
from ._options import json_option
from ._text import LOGIN_ADVICE, dump

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["doctor"]

CALL_TIMEOUT = 10.0
PROBE_TIMEOUT = 3.0
# A warm kernel that a run has just taken is replaced within a second.
WARM_TIMEOUT = 3.0
WARM_PAUSE = 0.25

LATE_SECONDS = 300.0
"""How old a webhook that is not delivered may be before that is a problem."""

_UPGRADE = f"Ask the operator to upgrade it to {__version__} or later, or install the client of its version."


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: What was checked.
        ok: Whether it passed.
        text: What was found.
        advice: What to do about it; empty if it passed.
    """

    check: str
    ok: bool
    text: str
    advice: str = ""


@click.command()
@json_option("all findings")
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> None:
    """Check the connection to the server and the server itself.

    Checks the connection, TLS, the token, the server's version, its kernels and how many of them are
    ready, and suggests how to solve each problem. Says who you are for the server, with which scopes, and
    what your share of it is. Changes nothing. The exit code is 0 only if all
    checks pass.
    """
    server: Server = ctx.obj
    with usage_errors():
        connection = Connection.resolve(**server.settings)
        found = list(_Doctor(connection).examine())
    ok = all(finding.ok for finding in found)
    if as_json:
        click.echo(dump({"target": connection.target, "ok": ok, "findings": [asdict(one) for one in found]}))
    else:
        _show(found)
    ctx.exit(ExitCode.SUCCEEDED if ok else ExitCode.FAILED)


class _Doctor:
    """Checks one thing after the other, until one that the next ones need fails."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._uses_tls = bool(connection.tls_ca or connection.tls_cert)

    def examine(self) -> Iterator[CheckResult]:
        """Yield the results."""
        try:
            # Without retries, so that problems are reported immediately.
            channel = self._connection.channel(retries=False)
        except (OSError, ValueError) as error:
            yield _failed("TLS", str(error), "Check the files of --tls-ca, --tls-cert and --tls-key.")
            return
        with channel:
            self._stub = NotebookRunnerStub(channel)
            try:
                info = self._call(self._stub.Info, pb.InfoRequest())
            except RpcFailed as error:
                yield from self._errors(error)
                return
            except LoginFailed as error:
                yield _failed("token", describe_error(error), "Log in again: notebook-runner login")
                return
            yield from self._reached()
            sent = (self._connection.token_file, self._connection.token, self._connection.login_file)
            has_token = any(sent)
            yield CheckResult("token", ok=True, text="accepted" if has_token else "none given, none required")
            if info.caller:
                scopes = ", ".join(info.scopes) or "none"
                yield CheckResult("caller", ok=True, text=f"{info.caller}; scopes: {scopes}")
            yield _version(info.version)
            yield from _kernels(info)
            yield from self._warm_kernels(info)
            yield _runs(info)
            yield from _share(info)
            yield from _webhooks(info)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=CALL_TIMEOUT, metadata=self._connection.metadata())
        except grpc.RpcError as error:
            raise to_error(error, self._connection.target, CALL_TIMEOUT) from error

    def _reached(self) -> Iterator[CheckResult]:
        yield CheckResult("connection", ok=True, text=f"connected to {self._connection.target}")
        tls = "the server's certificate is trusted" if self._uses_tls else "not used, and not required"
        yield CheckResult("TLS", ok=True, text=tls)

    def _errors(self, error: RpcFailed) -> Iterator[CheckResult]:
        if isinstance(error, Unavailable) and not error.reason:
            yield self._unreachable(error)
            return
        yield from self._reached()
        if isinstance(error, AccessDenied):
            yield _denied(error)
        elif error.code is grpc.StatusCode.UNIMPLEMENTED:
            yield self._without_info()
        else:
            advice = "See the server's log." if error.reason else "Check --target and the server's log."
            yield _failed("server", describe_error(error), advice)

    def _unreachable(self, error: RpcFailed) -> CheckResult:
        target, problem = self._connection.target, problem_of(error)
        text = error.message
        if problem is CLOSED:
            problem = self._closed()
            text = f"Cannot reach {target}: {problem.text}."
        if problem is None:
            return _failed("connection", text, "Check --target and the server's log.")
        return _failed(problem.check, text, problem.advice)

    def _closed(self) -> Problem:
        """Find out why the server closed the connection, which gRPC does not know."""
        if not self._uses_tls:
            if not _speaks_tls(self._connection.target):
                return NOT_GRPC
            text = "the server requires TLS"
            advice = "Set --tls-ca to a file with the CA certificates to trust."
        elif self._connection.tls_cert:
            text = "the server does not accept --tls-cert"
            advice = "Ask the operator which CA must sign it."
        else:
            text = "the server closed the connection; it may require a client certificate"
            advice = "Set --tls-cert and --tls-key."
        return Problem((), "TLS", text, advice)

    def _without_info(self) -> CheckResult:
        try:
            self._call(self._stub.List, pb.ListRequest(page_size=1))
        except RpcFailed as error:
            if error.code is grpc.StatusCode.UNIMPLEMENTED:
                text = f"{self._connection.target} speaks gRPC, but is not a notebook-runner server"
                return _failed("protocol", text, NOT_GRPC.advice)
        text = f"the server is older than this client ({__version__}) and does not report its version"
        return _failed("version", text, _UPGRADE)

    def _warm_kernels(self, info: pb.InfoResponse) -> Iterator[CheckResult]:
        until = time.monotonic() + WARM_TIMEOUT
        while any(one.warm_ready < one.warm_wanted for one in info.kernels) and time.monotonic() < until:
            time.sleep(WARM_PAUSE)
            info = self._call(self._stub.Info, pb.InfoRequest())
        wanted = [one for one in info.kernels if one.warm_wanted]
        if not wanted and info.kernels:
            text = "none are kept: each run waits for its kernel to start"
            yield CheckResult("warm kernels", ok=True, text=text)
        for one in wanted:
            text = f"{one.name}: {one.warm_ready} of {one.warm_wanted} ready"
            if one.warm_ready >= one.warm_wanted:
                yield CheckResult("warm kernels", ok=True, text=text)
            else:
                advice = "Runs still start, but more slowly. If this persists, see the server's log."
                yield _failed("warm kernels", text, advice)


def _failed(check: str, text: str, advice: str) -> CheckResult:
    return CheckResult(check, ok=False, text=text, advice=advice)


def _speaks_tls(target: str) -> bool:
    host, _, port = target.removeprefix("dns:").removeprefix("///").rpartition(":")
    # The certificate does not matter, because nothing is sent.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        address = (host.strip("[]"), int(port))
        with socket.create_connection(address, PROBE_TIMEOUT) as plain, context.wrap_socket(plain):
            return True
    except (OSError, ValueError):
        return False


def _denied(error: AccessDenied) -> CheckResult:
    if error.reason == "MISSING_TOKEN":
        advice = LOGIN_ADVICE
    elif error.code is grpc.StatusCode.PERMISSION_DENIED:
        advice = "Ask the operator for a token with the required scope."
    else:
        advice = "Check the token file, or ask the operator for a new token."
    return _failed("token", describe_error(error), advice)


def _version(version: str) -> CheckResult:
    ours, theirs = _release(__version__), _release(version)
    if theirs < ours:
        text = f"the server is {version or 'of an unknown version'}, older than this client ({__version__})"
        return _failed("version", text, _UPGRADE)
    text = f"server {version}, client {__version__}"
    if theirs > ours:
        text += ": newer servers support older clients"
    return CheckResult("version", ok=True, text=text)


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _kernels(info: pb.InfoResponse) -> Iterator[CheckResult]:
    if info.kernels:
        names = [f"{one.name} ({one.language}{', default' * one.is_default})" for one in info.kernels]
        yield CheckResult("kernels", ok=True, text=", ".join(names))
    else:
        advice = "Ask the operator to install one next to the server: pip install ipykernel"
        yield _failed("kernels", "the server has none and cannot run notebooks", advice)


def _runs(info: pb.InfoResponse) -> CheckResult:
    if info.problem:
        return _failed("runs", info.problem, "See the server's log.")
    text = f"{info.runs_active} of {info.workers} running, {info.runs_queued} of {info.queue_size} queued"
    return CheckResult("runs", ok=True, text=text)


def _share(info: pb.InfoResponse) -> Iterator[CheckResult]:
    """Yield what the caller has and uses of the server, if that is limited."""
    share = info.share
    has_history = share.HasField("max_history_bytes")
    if not (share.HasField("max_active") or share.HasField("max_queued") or has_history):
        return
    active = f"{share.active} of {share.max_active}" if share.HasField("max_active") else f"{share.active}"
    queued = f"{share.queued} of {share.max_queued}" if share.HasField("max_queued") else f"{share.queued}"
    text = f"{active} running, {queued} queued"
    if has_history:
        text += f", {size(share.history_bytes)} of {size(share.max_history_bytes)} in ended runs"
    if has_history and share.history_bytes >= share.max_history_bytes:
        advice = "Delete ended runs (notebook-runner delete RUN...), or ask the operator for a larger share."
        yield _failed("your share", f"{text}: no run can start", advice)
    else:
        yield CheckResult("your share", ok=True, text=text)


def _webhooks(info: pb.InfoResponse) -> Iterator[CheckResult]:
    """Yield what receivers of webhooks still have to get, if there are receivers."""
    if not info.webhooks:
        return
    late = []
    for receiver in info.webhooks:
        oldest = receiver.oldest_time.ToDatetime(tzinfo=UTC)
        age = (datetime.now(UTC) - oldest).total_seconds() if receiver.HasField("oldest_time") else 0.0
        if age > LATE_SECONDS:
            late.append(
                f"{receiver.name} lacks {receiver.backlog}, the oldest from {oldest:%Y-%m-%d %H:%M} UTC"
            )
    if late:
        yield _failed("webhooks", "; ".join(late), "See webhook_failed in the server's log.")
        return
    backlog = sum(receiver.backlog for receiver in info.webhooks)
    yield CheckResult(
        "webhooks", ok=True, text=f"receivers: {len(info.webhooks)}; not yet delivered: {backlog}"
    )


def _show(found: list[CheckResult]) -> None:
    indent = max(len(finding.check) for finding in found) + 4
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    colour = False if os.environ.get("NO_COLOR") else None
    for finding in found:
        sign = click.style("✓", fg="green") if finding.ok else click.style("✗", fg="red", bold=True)
        lines = textwrap.wrap(one_line(finding.text), max(20, width - indent), break_on_hyphens=False) or [""]
        if finding.advice:
            lines += textwrap.wrap(
                one_line(f"→ {finding.advice}"),
                max(20, width - indent),
                subsequent_indent="  ",
                break_on_hyphens=False,
            )
        click.echo(f"{sign} {finding.check:<{indent - 2}}{lines[0]}", color=colour)
        for line in lines[1:]:
            click.echo(" " * indent + line)
    problems = sum(not finding.ok for finding in found)
    click.echo("all checks passed" if not problems else f"{problems} problem{'s' * (problems > 1)} found")
