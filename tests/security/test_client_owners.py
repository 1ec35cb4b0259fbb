"""Both clients and the command of callers that share a server: their own runs, and those of others."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from notebook_runner import AsyncClient, Client, NotOwner, RunNotFound
from notebook_runner.cli import main
from tests.support.gate import Gate
from tests.support.notebooks import notebook
from tests.support.secure import new_token
from tests.support.server import Server

QUICK = notebook("1")
Call = Callable[..., Any]


@dataclass(frozen=True)
class Team:
    """A server that asks for tokens, with one of each caller.

    Attributes:
        target: The server's address.
        folder: The files with the tokens.
    """

    target: str
    folder: Path

    def client(self, name: str) -> Client:
        """The client of a caller."""
        return Client(self.target, token_file=self.folder / name)

    def call(self, kind: str, name: str, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the client of a caller, of one of the two kinds."""
        if kind == "sync":
            with self.client(name) as client:
                return getattr(client, method)(*arguments, **options)

        async def awaited() -> Any:
            async with AsyncClient(self.target, token_file=self.folder / name) as client:
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(awaited())

    def command(self, name: str, *arguments: str) -> Result:
        """Runs the command as a caller."""
        token = ["--token-file", str(self.folder / name)]
        return CliRunner().invoke(main, ["--target", self.target, *token, *arguments])


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A server with one worker and a queue."""
    folder = tmp_path_factory.mktemp("team")
    tokens = folder / "tokens"
    for name, scope in {"ada": "run", "bob": "run-all", "eve": "run,read-all"}.items():
        (folder / name).write_text(new_token(tokens, name, scope))
    with Server(folder / "state", "--tokens-file", str(tokens), "--queue", "20") as server:
        yield Team(server.target, folder)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_no_id_means_ones_own_run(team: Team, gate: Gate, kind: str) -> None:
    """A caller that may kill all runs does not kill that of another by naming none."""
    own = team.call("sync", "bob", "run", QUICK)
    with team.client("ada") as ada:
        run = ada.start(notebook(gate.source))
        killed = team.call(kind, "bob", "kill")
        assert (killed.run.id, killed.already_ended) == (own.id, True)
        assert team.call(kind, "bob", "wait").id == own.id
        assert team.call(kind, "bob", "get").id == own.id
        assert team.command("bob", "kill").stdout.startswith(f"run {own.id} had already ended")
        assert json.loads(team.command("bob", "show", "--json").stdout)["run_id"] == own.id
        assert not run.refresh().is_terminal
        assert team.call(kind, "ada", "kill").run.id == run.id


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_runs_of_others(team: Team, kind: str) -> None:
    """They are not there, or cannot be changed, or can, as the scopes say; the error names the owner."""
    run = team.call("sync", "bob", "run", QUICK)
    assert run.owner == "bob"
    with pytest.raises(RunNotFound):
        team.call(kind, "ada", "get", run.id)
    with pytest.raises(NotOwner, match="run-all") as caught:
        team.call(kind, "eve", "delete", run.id)
    assert caught.value.owner == "bob"
    done = team.command("eve", "delete", run.id)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: NOT_OWNER")
    own = team.call("sync", "ada", "run", QUICK)
    assert team.call(kind, "bob", "delete", own.id).id == own.id


def test_list_of_one_owner_and_of_all(team: Team) -> None:
    """A caller that sees several owners sees their names."""
    for name in ("ada", "bob"):
        team.call("sync", name, "run", QUICK)
    with team.client("eve") as eve:
        assert {run.owner for run in eve.runs()} == {"ada", "bob"}
        assert {run.owner for run in eve.runs(owner="ada")} == {"ada"}
    assert "OWNER" in team.command("eve", "list").stdout
    lines = team.command("eve", "list", "--owner", "bob", "--json").stdout.splitlines()
    assert {json.loads(line)["owner"] for line in lines} == {"bob"}
    assert "OWNER" not in team.command("ada", "list").stdout


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_who_one_is(team: Team, kind: str) -> None:
    """The client and the doctor say the name and the scopes of a token."""
    info = team.call(kind, "eve", "info")
    assert (info.caller, set(info.scopes)) == ("eve", {"read", "run", "read-all"})
    found = json.loads(team.command("eve", "doctor", "--json").stdout)["findings"]
    (caller,) = [one["text"] for one in found if one["check"] == "caller"]
    assert caller == "eve; scopes: read, read-all, run"


def test_priorities_order_ones_own_queue(team: Team, gate: Gate) -> None:
    """A run with a higher number starts first; rerun keeps it."""
    with team.client("ada") as ada:
        ada.start(notebook(gate.source))
        low, high = (ada.start(QUICK, priority=number) for number in (-1, 5))
        gate.open()
        low, high = low.wait(), high.wait()
        assert (low.priority, high.priority) == (-1, 5)
        assert low.started
        assert high.started
        assert high.started < low.started
        assert team.command("ada", "rerun", high.id, "--quiet").exit_code == 0
        assert ada.get().priority == 5
