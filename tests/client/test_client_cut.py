"""Calls whose answer a proxy cuts: each is answered in the end, and nothing is done twice."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from notebook_runner import AsyncClient, Client, RpcFailed, RunState
from tests.support.calls import history
from tests.support.notebooks import content
from tests.support.server import Server
from tests.support.stream_cutting_proxy import CUTS, StreamCuttingProxy

pytestmark = pytest.mark.long

Call = Callable[..., Any]


def blocking(target: str, name: str, *args: Any, **options: Any) -> Any:
    """Calls a method of the client that blocks."""
    with Client(target) as client:
        return getattr(client, name)(*args, **options)


def awaited(target: str, name: str, *args: Any, **options: Any) -> Any:
    """Calls a method of the client that is awaited."""

    async def call() -> Any:
        async with AsyncClient(target) as client:
            return await getattr(client, name)(*args, **options)

    return asyncio.run(call())


BOTH = pytest.mark.parametrize("call", [blocking, awaited])


@BOTH
@pytest.mark.parametrize("cut", CUTS)
def test_a_start_whose_answer_is_cut_starts_one_run(server: Server, call: Call, cut: str) -> None:
    """The server has admitted the run when the answer is lost; the same request finds that run again."""
    before = len(history(server.stub))
    with StreamCuttingProxy(server.target, [cut] * 2) as proxy:
        run = call(proxy.target, "start", content("1"))
    assert len(history(server.stub)) == before + 1
    assert call(server.target, "wait", run.id).state is RunState.SUCCEEDED


@BOTH
@pytest.mark.parametrize("cut", CUTS)
def test_a_kill_whose_answer_is_cut(server: Server, call: Call, cut: str) -> None:
    """The repeated call finds that the run has ended."""
    run = call(server.target, "start", content("import time; time.sleep(1000)"))
    with StreamCuttingProxy(server.target, [cut]) as proxy:
        answer = call(proxy.target, "kill", run.id)
    assert (answer.run.state, answer.already_ended) == (RunState.KILLED, True)


@BOTH
def test_a_proxy_that_cuts_every_answer(server: Server, call: Call) -> None:
    """The client gives up after some attempts, and the error is one of its own."""
    with StreamCuttingProxy(server.target, ["RST_STREAM"] * 100) as proxy, pytest.raises(RpcFailed) as caught:
        call(proxy.target, "info")
    assert caught.value.reason == ""
