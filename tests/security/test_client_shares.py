"""Both clients and the command of a caller whose share of the server is used up."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from notebook_runner import AsyncClient, CellStarted, Client, QuotaExceeded
from notebook_runner.cli import main
from tests.support.gate import Gate
from tests.support.notebooks import notebook
from tests.support.secure import new_token
from tests.support.server import Server

PROGRAM = Path(sys.executable).with_name("notebook-runner")
SECONDS = 60.0
QUICK = notebook("1")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """The token of a caller; the server's file is beside it."""
    file = tmp_path / "token"
    file.write_text(new_token(tmp_path / "tokens", "ada"))
    return file


async def refused(target: str, token_file: Path) -> QuotaExceeded:
    """How a Start of the asyncio client is refused."""
    async with AsyncClient(target, token_file=token_file) as client:
        with pytest.raises(QuotaExceeded) as caught:
            await client.start(QUICK)
    return caught.value


def findings(target: str, token_file: Path) -> dict[str, Any]:
    """What the doctor says, by what it looked at."""
    done = CliRunner().invoke(main, ["--target", target, "--token-file", str(token_file), "doctor", "--json"])
    return {one["check"]: one for one in json.loads(done.stdout)["findings"]}


def test_a_share_of_the_queue(make_server: Callable[..., Server], token_file: Path, gate: Gate) -> None:
    """A Start beyond it is refused with the limit, and `--wait` waits until a queued run starts."""
    tokens = token_file.with_name("tokens")
    server = make_server("--tokens-file", str(tokens), "--queue", "20", "--owner-max-queued", "1")
    path = token_file.with_name("in.ipynb")
    path.write_text(json.dumps(QUICK))
    command = ["--target", server.target, "--token-file", str(token_file), "start", str(path)]
    with Client(server.target, token_file=token_file) as client:
        held = client.start(notebook(gate.source))
        next(event for event in held.progress() if isinstance(event, CellStarted))
        queued = client.start(QUICK)
        with pytest.raises(QuotaExceeded) as caught:
            client.start(QUICK)
        assert (caught.value.quota, caught.value.limit) == ("queued", 1)
        assert caught.value.retry_after
        other = asyncio.run(refused(server.target, token_file))
        assert (other.quota, other.limit) == ("queued", 1)
        share = client.info().share
        assert share
        assert (share.max_active, share.max_queued, share.active, share.queued) == (None, 1, 1, 1)
        found = findings(server.target, token_file)
        assert found["your share"]["text"] == "1 running, 1 of 1 queued"
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 7
        assert "--wait" in done.stderr
        with subprocess.Popen(
            [PROGRAM, *command, "--wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as waiting:
            assert waiting.stderr
            assert waiting.stderr.readline() == "waiting: your share of the queue (1) is full\n"
            gate.open()
            admitted, _ = waiting.communicate(timeout=SECONDS)
        assert waiting.returncode == 0
        assert client.wait(admitted.strip()).ok
        assert queued.wait().ok


def test_a_full_history(make_server: Callable[..., Server], token_file: Path) -> None:
    """Starts are refused, with what to do, until a run is deleted; `--wait` does not wait for that."""
    tokens = token_file.with_name("tokens")
    server = make_server("--tokens-file", str(tokens), "--owner-max-history-bytes", "100Ki")
    command = ["--target", server.target, "--token-file", str(token_file), "start", "--wait"]
    path = token_file.with_name("in.ipynb")
    path.write_text(json.dumps(QUICK))
    with Client(server.target, token_file=token_file) as client:
        large = client.run(notebook("open('data', 'wb').write(b'x' * 200_000)"))
        with pytest.raises(QuotaExceeded) as caught:
            client.start(QUICK)
        assert (caught.value.quota, caught.value.limit) == ("history", 102_400)
        share = client.info().share
        assert share
        assert share.history_bytes > 200_000
        assert not findings(server.target, token_file)["your share"]["ok"]
        done = CliRunner().invoke(main, [*command, str(path)])
        assert done.exit_code == 7
        assert "notebook-runner delete RUN..." in done.stderr
        large.delete()
        assert client.run(QUICK).ok
        assert findings(server.target, token_file)["your share"]["ok"]
