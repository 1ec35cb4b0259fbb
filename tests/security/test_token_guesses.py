"""Calls that are refused in numbers: each is told why, and the log stays short and names who calls."""

import asyncio
import itertools
import random
import sqlite3
import string
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, inline
from tests.support.errors import refusal_of, refused
from tests.support.secure import BAD, MISSING, Guarded, Metadata, bearer, listed, new_token
from tests.support.server import Server

ATTEMPTS = 10_000
AT_ONCE = 100


def attempts(token: str) -> Iterable[Metadata]:
    """Random tokens and metadata, none of them a valid credential; the same in every run of the test."""
    dice = random.Random(6)  # noqa: S311 - has to be the same each time, not hard to guess
    letters = string.ascii_letters + string.digits + "-_"
    printable = "".join(chr(code) for code in range(0x20, 0x7F))

    def text(alphabet: str, size: int) -> str:
        return "".join(dice.choices(alphabet, k=size))

    def mutated() -> str:
        place = dice.randrange(len(token))
        return token[:place] + dice.choice(letters.replace(token[place], "")) + token[place + 1 :]

    makers: list[Callable[[], Metadata]] = [
        lambda: (("authorization", "Bearer nbr_" + text(letters, 43)),),
        lambda: (("authorization", "Bearer " + mutated()),),
        lambda: (("authorization", "Bearer " + token[: dice.randrange(len(token))]),),
        lambda: (("authorization", text(printable, dice.randrange(200))),),
        lambda: (("authorization", "Bearer " + text(letters, 1500)),),
        lambda: (("authorization-bin", dice.randbytes(dice.randrange(200))), ("x-token", token)),
        lambda: tuple(("authorization", text(printable, 20)) for _ in range(dice.randrange(2, 20))),
        lambda: (("proxy-authorization", f"Bearer {token}"), (text(string.ascii_lowercase, 9), "1")),
    ]
    return (dice.choice(makers)() for _ in range(ATTEMPTS))


async def tried(target: str, metadata: Iterable[Metadata]) -> list[tuple[grpc.StatusCode, str]]:
    """How each attempt was refused, unary and streaming in turns."""
    found: list[tuple[grpc.StatusCode, str]] = []
    places = iter(enumerate(metadata))
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = rpc.NotebookRunnerStub(channel)

        async def attempt() -> None:
            for number, values in places:
                try:
                    if number % 2:
                        await stub.Kill(pb.KillRequest(), metadata=values, timeout=SECONDS)
                    else:
                        request = pb.ProgressRequest()
                        _ = [one async for one in stub.Progress(request, metadata=values, timeout=SECONDS)]
                except grpc.aio.AioRpcError as error:
                    found.append(refusal_of(error).kind)

        await asyncio.gather(*(attempt() for _ in range(AT_ONCE)))
    return found


def test_ten_thousand_attempts(guarded: Guarded) -> None:
    """Random tokens and metadata are all refused, with a reason; the log stays short and has no secret."""
    server = guarded.server
    lines, begin = len(server.log), time.monotonic()
    found = asyncio.run(tried(server.target, attempts(guarded.run)))
    assert len(found) == ATTEMPTS
    assert set(found) == {MISSING, BAD}
    assert listed(server.channel, guarded.run) == []
    # The audit log has a limit of its own, by time (`test_audit.py`).
    told = [line for line in server.log[lines:] if line["event"] != "audit"]
    # A line a second tells of all refused calls.
    assert len(told) < 100 + time.monotonic() - begin
    text = server.tail()
    assert "Traceback" not in text
    assert guarded.run not in text
    assert not server.noise


def told(server: Server) -> list[int]:
    """How many refused calls each line of the log tells of."""
    return [entry["count"] for entry in server.log if entry["event"] == "calls_refused"]


def test_a_burst_of_refused_calls(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """The log tells of each, in a line a second at the most, also when no other call comes after them."""
    token = new_token(tmp_path / "tokens")
    server = make_server("--tokens-file", str(tmp_path / "tokens"))
    pause, begin = threading.Event(), time.monotonic()
    asyncio.run(tried(server.target, itertools.islice(attempts(token), 1000)))
    end = time.monotonic() + SECONDS
    while sum(told(server)) < 1000:
        assert time.monotonic() < end, told(server)
        pause.wait(0.05)
    assert sum(told(server)) == 1000
    assert 2 <= len(told(server)) <= time.monotonic() - begin + 2
    (lines,) = {entry["level"] for entry in server.log if entry["event"] == "calls_refused"}
    assert lines == "warning"


def test_lines_of_a_call_name_its_caller(tmp_path: Path) -> None:
    """Whatever the log says while a call is answered has the name of its token, and not of another's."""
    file, ids = tmp_path / "tokens", {}
    names = {"ci": new_token(file, "ci"), "board": new_token(file, "board", "read-all")}
    # The log is whole when the server has ended.
    with Server(tmp_path / "state", "--tokens-file", str(file)) as server:
        run_id = server.stub.Start(inline("1"), timeout=SECONDS, metadata=bearer(names["ci"])).run.run_id
        request = pb.ProgressRequest(run_id=run_id)
        list(server.stub.Progress(request, timeout=SECONDS, metadata=bearer(names["board"])))
        # The server's own fault, which it tells of.
        with closing(sqlite3.connect(server.state_dir / "notebook-runner.db")) as db, db:
            db.execute("ALTER TABLE segments RENAME TO gone")
        for name, token in names.items():
            output = pb.OutputRequest(run_id=run_id)
            call = partial(server.stub.Output, output, timeout=SECONDS, metadata=bearer(token))
            refusal = refused(call)
            assert refusal.reason == "INTERNAL_ERROR"
            ids[refusal.metadata["error_id"]] = name
    assert {entry["error_id"]: entry["caller"] for entry in server.log if "error_id" in entry} == ids
