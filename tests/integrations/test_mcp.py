"""The tools of `notebook-runner mcp`, called by the MCP SDK's own client over both transports."""

import base64
import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebook_runner import Client
from tests.support.hosts import SECONDS, Host
from tests.support.notebooks import notebook
from tests.support.receivers import WebhookReceiver
from tests.support.secure import new_token
from tests.support.server import Server

HOST = "mcp"
READING = {"list_runs", "get_run", "follow_run", "read_output"}
CHANGING = {"start_run", "kill_run"}
FOREVER = "import threading; _ = threading.Event().wait()"
# A PNG of one pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SHOW_PIXEL = (
    f"from IPython.display import Image, display; import base64; display(Image(base64.b64decode({PIXEL!r})))"
)
GLUE = (
    "from IPython.display import display\n"
    "scrap = {'name': 'rows', 'data': 3, 'encoder': 'json', 'display': None, 'version': 1}\n"
    "display({'application/scrapbook.scrap.json+json': scrap}, raw=True,\n"
    "        metadata={'scrapbook': {'name': 'rows', 'data': True, 'display': False}})"
)
# Connects, calls tools in order, and prints the tools, and for each call what it answered and the progress
# reported meanwhile. The argument "RUN" stands for the run of the first call that named one; with `cancel`,
# a call is cancelled at its first progress, and with `tell`, a line is printed then.
PROGRAM = """
import asyncio, json, os, sys
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

async def main(place, calls):
    if "url" in place:
        headers = {"Authorization": f"Bearer {place['token']}"} if "token" in place else {}
        made = streamable_http_client(place["url"], http_client=create_mcp_http_client(headers=headers))
    else:
        command, *arguments = place["command"]
        made = StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
    answers, run = [], None
    async with Client(made, mode=place.get("mode", "auto")) as client:
        tools = [tool.model_dump(mode="json", by_alias=True) for tool in (await client.list_tools()).tools]
        for name, given, *more in calls:
            progress = []
            arguments = {key: run if value == "RUN" else value for key, value in given.items()}
            async def called():
                return await client.call_tool(name, arguments, progress_callback=heard)
            async def heard(done, total, message):
                progress.append([done, total, message])
                if "cancel" in more:
                    call.cancel()
                if "tell" in more:
                    print(flush=True)
            call = asyncio.create_task(called())
            try:
                answer = (await call).model_dump(mode="json", by_alias=True)
            except asyncio.CancelledError:
                answer = {}
            structured = answer.get("structuredContent") or {}
            run = run or structured.get("run_id")
            answers.append({**answer, "progress": progress})
    print(json.dumps([tools, answers]))

asyncio.run(main(*json.loads(sys.argv[1])))
"""


def agent(
    host: Host, cwd: Path, place: dict[str, Any], *calls: Any, target: str = ""
) -> tuple[list[Any], list[Any]]:
    """Connects as an agent's program does, and returns the tools, and what each call answered."""
    done = host.run("python", "-c", PROGRAM, json.dumps([place, calls]), cwd=cwd, target=target)
    assert done.returncode == 0, done.stderr
    tools, answers = json.loads(done.stdout)
    return tools, answers


def by_stdio(host: Host, *options: str, mode: str = "auto") -> dict[str, Any]:
    """Where an agent finds the tools that it starts itself."""
    return {"command": [host.program("notebook-runner"), "mcp", *options], "mode": mode}


@contextlib.contextmanager
def listening(host: Host, target: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serves the tools over HTTP, and answers their URL and the process."""
    command = [host.program("notebook-runner"), "mcp", "--http", "127.0.0.1:0", *options]
    environment = host.environment(target)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            yield process.stderr.readline().split()[-1], process
        finally:
            process.kill()


def text_of(answer: Any) -> str:
    """The text of an answer."""
    return "\n".join(block["text"] for block in answer["content"] if block["type"] == "text")


@pytest.mark.parametrize("place", ["stdio", "stdio of older programs", "http"])
def test_a_whole_run(host: Host, server: Server, tmp_path: Path, place: str) -> None:
    """An agent starts a notebook, follows it, and reads its text, its picture and its values."""
    cells = ["print('hello', 'agent')", SHOW_PIXEL, GLUE]
    start = {"cells": cells, "name": "by an agent", "labels": {"by": place.replace(" ", "-")}}
    calls = [
        ("start_run", start),
        ("follow_run", {"run_id": "RUN", "max_seconds": 300}),
        ("read_output", {"run_id": "RUN"}),
        ("read_output", {"run_id": "RUN", "cell": 0}),
        ("list_runs", {"labels": start["labels"], "states": ["succeeded"]}),
    ]
    if place == "http":
        with listening(host, server.target, "--allow-changes") as (url, _):
            tools, answers = agent(host, tmp_path, {"url": url}, *calls)
    else:
        where = by_stdio(host, "--allow-changes", mode="auto" if place == "stdio" else "legacy")
        tools, answers = agent(host, tmp_path, where, *calls, target=server.target)
    assert {tool["name"] for tool in tools} == READING | CHANGING
    started, followed, output, first, listed = answers
    assert not any(answer["isError"] for answer in answers), answers
    numbers = [(done, total) for done, total, _ in followed["progress"]]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == (3, 3)
    assert any("started" in message for *_, message in followed["progress"])
    report = followed["structuredContent"]
    assert report["run_id"] == started["structuredContent"]["run_id"]
    assert (report["state"], report["has_ended"], report["values"]) == ("succeeded", True, {"rows": 3})
    assert "hello agent" in text_of(output)
    (picture,) = [block for block in output["content"] if block["type"] == "image"]
    assert (picture["mimeType"], base64.b64decode(picture["data"])) == ("image/png", base64.b64decode(PIXEL))
    assert [block["type"] for block in first["content"]] == ["text", "text"]
    assert [run["run_id"] for run in listed["structuredContent"]["result"]] == [report["run_id"]]


def test_read_only_by_default(host: Host, server: Server, tmp_path: Path) -> None:
    """Without --allow-changes there are no tools that start or kill; all others say that they only read."""
    with Client(server.target) as client:
        run = client.start(notebook(FOREVER))
        calls = [("kill_run", {"run_id": run.id}), ("start_run", {}), ("get_run", {"run_id": run.id})]
        tools, (killed, started, got) = agent(host, tmp_path, by_stdio(host), *calls, target=server.target)
        assert {tool["name"] for tool in tools} == READING
        assert all(tool["annotations"]["readOnlyHint"] for tool in tools)
        assert killed["isError"]
        assert started["isError"]
        assert not got["structuredContent"]["has_ended"]
        assert next(client.runs()).id == run.id
        run.kill()


def test_follow_and_kill(host: Host, server: Server, tmp_path: Path) -> None:
    """A run that takes long is left running by a short follow and by a cancelled one, and then killed."""
    calls = [
        ("start_run", {"cells": ["print('so far', flush=True)", FOREVER]}),
        ("follow_run", {"run_id": "RUN", "max_seconds": 0.2}),
        ("follow_run", {"run_id": "RUN", "max_seconds": 3000}, "cancel"),
        ("get_run", {"run_id": "RUN"}),
        ("kill_run", {"run_id": "RUN"}),
        ("kill_run", {"run_id": "RUN"}),
        ("read_output", {"run_id": "RUN"}),
    ]
    _, answers = agent(host, tmp_path, by_stdio(host, "--allow-changes"), *calls, target=server.target)
    _, short, cancelled, got, killed, again, output = answers
    assert not short["structuredContent"]["has_ended"]
    assert len(cancelled["progress"]) >= 1
    assert "content" not in cancelled
    assert not got["structuredContent"]["has_ended"]
    assert killed["structuredContent"]["run"]["state"] == "killed"
    assert not killed["structuredContent"]["already_ended"]
    assert again["structuredContent"]["already_ended"]
    assert not output["isError"]


def test_a_failed_run(host: Host, server: Server, tmp_path: Path) -> None:
    """A cell that raises is no error of the tool: the agent reads what failed, and its traceback."""
    calls = [
        ("start_run", {"cells": ["x = 0", "1/x"]}),
        ("follow_run", {"run_id": "RUN", "max_seconds": 300}),
        ("read_output", {}),
    ]
    _, answers = agent(host, tmp_path, by_stdio(host, "--allow-changes"), *calls, target=server.target)
    _, followed, output = answers
    assert not followed["isError"]
    report = followed["structuredContent"]
    assert (report["state"], "ZeroDivisionError" in report["failure"]) == ("failed", True)
    assert "1/x" in report["traceback"]
    assert "ZeroDivisionError" in text_of(output)


def test_errors_are_readable(host: Host, server: Server, tmp_path: Path) -> None:
    """What the server or the client refuses says why; nothing is started."""
    calls: list[tuple[str, dict[str, Any]]] = [
        ("get_run", {"run_id": "20200101-000000-00000000"}),
        ("list_runs", {"states": ["fast"]}),
        ("list_runs", {"limit": 0}),
        ("start_run", {"server_path": "a.ipynb", "cells": ["1"]}),
        ("start_run", {"server_path": "missing.ipynb"}),
        ("start_run", {"cells": ["1"], "kernel_name": "klingon"}),
        ("kill_run", {"run_id": ""}),
    ]
    with Client(server.target) as client:
        before = [run.id for run in client.runs()]
        _, answers = agent(host, tmp_path, by_stdio(host, "--allow-changes"), *calls, target=server.target)
        assert [run.id for run in client.runs()] == before
    assert all(answer["isError"] for answer in answers)
    words = ("RUN_NOT_FOUND", "Unknown state 'fast'", "greater than or equal to 1", "Set only one of")
    for answer, word in zip(
        answers, (*words, "missing.ipynb", "klingon", "at least 1 character"), strict=True
    ):
        assert word in text_of(answer)
    _, (refused,) = agent(host, tmp_path, by_stdio(host), ("list_runs", {}), target="127.0.0.1:1")
    assert "Cannot reach 127.0.0.1:1" in text_of(refused)


def test_who_is_notified(host: Host, tmp_path: Path) -> None:
    """An agent can name who gets a POST at the end of its run, among the hosts that the operator allowed."""
    with (
        WebhookReceiver() as receiver,
        Server(tmp_path / "state", "--notify-hosts", "127.0.0.1") as server,
    ):
        calls = [
            ("start_run", {"cells": ["1"], "notify_uri": f"{receiver.url}?of=agent"}),
            ("start_run", {"cells": ["1"], "notify_uri": "https://example.com/"}),
        ]
        where = by_stdio(host, "--allow-changes")
        _, (started, refused) = agent(host, tmp_path, where, *calls, target=server.target)
        (arrived,) = receiver.wait(1)
    assert arrived.headers[":path"] == "/hook?of=agent"
    assert json.loads(arrived.body)["subject"] == started["structuredContent"]["run_id"]
    assert "URI_NOT_ALLOWED" in text_of(refused)


def test_local_notebooks(host: Host, server: Server, tmp_path: Path) -> None:
    """Notebooks in the folder of --notebooks can be started, and no other file of the machine."""
    folder = tmp_path / "folder"
    folder.mkdir()
    nbformat.write(notebook("print('local')"), folder / "in.ipynb")
    nbformat.write(notebook("print('secret')"), tmp_path / "out.ipynb")
    (folder / "link.ipynb").symlink_to(tmp_path / "out.ipynb")
    calls = [
        ("start_run", {"local_path": "../out.ipynb"}),
        ("start_run", {"local_path": str(tmp_path / "out.ipynb")}),
        ("start_run", {"local_path": "link.ipynb"}),
        ("start_run", {"local_path": "missing.ipynb"}),
        ("start_run", {"local_path": "in.ipynb"}),
        ("follow_run", {"run_id": "RUN", "max_seconds": 300}),
    ]
    options = ["--allow-changes", "--notebooks", str(folder)]
    _, answers = agent(host, tmp_path, by_stdio(host, *options), *calls, target=server.target)
    assert ["is outside" in text_of(answer) for answer in answers[:4]] == [True, True, True, False]
    assert "missing.ipynb" in text_of(answers[3])
    assert answers[5]["structuredContent"]["name"] == "in"
    without = by_stdio(host, "--allow-changes")
    _, (refused,) = agent(
        host, tmp_path, without, ("start_run", {"local_path": "in.ipynb"}), target=server.target
    )
    assert "--notebooks" in text_of(refused)


def test_large_outputs(host: Host, server: Server, tmp_path: Path) -> None:
    """Of much text the end comes, with a note; of many pictures the last, and none that is large."""
    cells = [
        f"from IPython.display import Image, display\nimport base64\nPIXEL = base64.b64decode({PIXEL!r})",
        "print('first'); print('x' * 30_000); print('last')",
        "for _ in range(10):\n    display(Image(PIXEL))",
        "display(Image(PIXEL + bytes(600 * 1024), format='png'))",
    ]
    calls = [
        ("start_run", {"cells": cells}),
        ("follow_run", {"run_id": "RUN", "max_seconds": 300}),
        ("read_output", {"run_id": "RUN"}),
    ]
    _, answers = agent(host, tmp_path, by_stdio(host, "--allow-changes"), *calls, target=server.target)
    assert answers[1]["structuredContent"]["state"] == "succeeded"
    output = answers[2]
    text = text_of(output)
    assert "cell 1, stdout:\n" in text
    assert "last" in text
    assert "first" not in text
    assert "characters before this are omitted" in text
    assert len(text) < 21_000
    assert "[image/png, 614 kB]" in text
    assert sum(block["type"] == "image" for block in output["content"]) == 8


def test_large_reports(host: Host, server: Server, tmp_path: Path) -> None:
    """Of a run with long texts, reports have the end of its traceback and what else there is room for."""
    parameters = {"long": "x" * 100_000, "short": 1}
    cells = ["long = ''\nshort = 0", "raise ValueError('y' * 100_000 + 'the end')"]
    calls = [
        ("start_run", {"cells": cells, "parameters": parameters}),
        ("follow_run", {"run_id": "RUN", "max_seconds": 300}),
        ("get_run", {"run_id": "RUN"}),
        ("list_runs", {"limit": 100}),
    ]
    _, answers = agent(host, tmp_path, by_stdio(host, "--allow-changes"), *calls, target=server.target)
    for answer in answers:
        assert len(json.dumps(answer["structuredContent"])) < 30_000
    report = answers[2]["structuredContent"]
    assert report["parameters"] == {"short": 1}
    assert "the end" in report["traceback"]
    assert report["shortened"] == ["parameters", "traceback"]


def test_http_asks_for_the_token(host: Host, server: Server, tmp_path: Path) -> None:
    """A request needs the token of --http-token-file; pages of other sites may send none; SIGTERM ends it."""
    token = new_token(tmp_path / "tokens")
    (tmp_path / "token").write_text(token + "\n")
    program = """
import sys, httpx2
url, token = sys.argv[1:]
body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
accepts = {"Accept": "application/json, text/event-stream"}
right = {"Authorization": f"Bearer {token}"}
wrong = ({}, {"Authorization": "Bearer wrong"}, {**right, "Host": "evil.example"}, {**right, "Origin": "http://evil.example"})
for headers in wrong:
    print(httpx2.post(url, json=body, headers={**accepts, **headers}).status_code)
"""
    options = ["--http-token-file", str(tmp_path / "token")]
    with listening(host, server.target, *options) as (url, process):
        done = host.run("python", "-c", program, url, token, cwd=tmp_path)
        assert done.stdout.split() == ["401", "401", "421", "403"], done.stderr
        tools, (listed,) = agent(host, tmp_path, {"url": url, "token": token}, ("list_runs", {}))
        assert {tool["name"] for tool in tools} == READING
        assert not listed["isError"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) in {0, -signal.SIGTERM}


def test_the_token_of_the_server(
    host: Host, make_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command takes the server's token from the environment; without it, the agent reads why not."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # without logins
    (tmp_path / "token").write_text(new_token(tmp_path / "tokens"))
    secured = make_server("--tokens-file", str(tmp_path / "tokens"))
    _, (refused,) = agent(host, tmp_path, by_stdio(host), ("list_runs", {}), target=secured.target)
    assert "MISSING_TOKEN" in text_of(refused)
    command = [host.program("notebook-runner"), "--token-file", str(tmp_path / "token"), "mcp"]
    _, (listed,) = agent(host, tmp_path, {"command": command}, ("list_runs", {}), target=secured.target)
    assert not listed["isError"]


def test_the_end_of_the_agent_ends_the_command(host: Host, server: Server) -> None:
    """The command ends with its standard input, and with Ctrl-C, and prints nothing of its own."""
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}
    first = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    for interrupted in (False, True):
        with subprocess.Popen(
            [host.program("notebook-runner"), "mcp"],
            env=host.environment(server.target),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(first).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == 1
            if interrupted:
                process.send_signal(signal.SIGINT)
                assert process.wait(SECONDS) == -signal.SIGINT
            else:
                process.stdin.close()
                assert process.wait(SECONDS) == 0
            assert process.stdout.read() == b""


def test_a_signal_ends_open_streams(host: Host, server: Server, tmp_path: Path) -> None:
    """SIGTERM ends the HTTP listener while an agent follows a run, which continues."""
    with Client(server.target) as client, listening(host, server.target) as (url, process):
        run = client.start(notebook(FOREVER))
        call = ("follow_run", {"run_id": run.id, "max_seconds": 3000})
        command = [host.program(), "-c", PROGRAM, json.dumps([{"url": url}, [(*call, "tell")]])]
        environment = host.environment(server.target)
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as following:
            assert following.stdout
            following.stdout.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) in {0, -signal.SIGTERM}
            following.kill()
        assert not client.get(run.id).is_terminal
        run.kill()
