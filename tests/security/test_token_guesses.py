"""Calls that are refused in numbers: each is told why, and the log stays short."""

import asyncio
import random
import string
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from support.calls import SECONDS
from support.errors import refusal_of
from support.secure import BAD, MISSING, Guarded, Metadata, listed

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

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
    lines = len(server.log)
    found = asyncio.run(tried(server.target, attempts(guarded.run)))
    assert len(found) == ATTEMPTS
    assert set(found) == {MISSING, BAD}
    assert listed(server.channel, guarded.run) == []
    told = server.log[lines:]
    assert len(told) < 100
    text = server.tail()
    assert "Traceback" not in text
    assert guarded.run not in text
    assert not server.noise
