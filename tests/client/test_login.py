"""Logging in with the device flow at a real issuer, and what the client does with the tokens."""

import asyncio
import json
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from notebook_runner import AsyncClient, Client, LoginFailed
from notebook_runner import _login as logins
from notebook_runner._connection import Connection, login_path
from notebook_runner.cli import main as command
from tests.support.calls import SECONDS
from tests.support.issuer import AUDIENCE, CLIENT_ID, Issuer
from tests.support.polling import pause
from tests.support.server import Server

pytestmark = pytest.mark.e2e

TARGET = "127.0.0.1:1"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer for each test."""
    with Issuer() as issuer:
        yield issuer


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where logins are kept: not in the user's home, where other tests would find them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "notebook-runner-client"


@pytest.fixture
def trusting(make_server: Callable[..., Server], issuer: Issuer, tmp_path: Path) -> Server:
    """A server that accepts the issuer's tokens, and has its keys."""
    rules = tmp_path / "rules"
    rules.write_text("name run ada\n")
    rules.chmod(0o600)
    options = ["--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE, "--oidc-scopes-file", str(rules)]
    server = make_server(*options, "--heartbeat-interval", "0.2")
    server.logged("oidc_keys_fetched")
    return server


def called(*arguments: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(command, list(arguments))


def approves(issuer: Issuer, name: str | None) -> threading.Thread:
    """Somebody who approves the next login, or denies it, in a browser."""

    def approve() -> None:
        end = time.monotonic() + SECONDS
        while not issuer.devices and time.monotonic() < end:
            pause()
        for device in issuer.devices.values():
            issuer.approve(device["user_code"], name)

    thread = threading.Thread(target=approve)
    thread.start()
    return thread


def logged_in(issuer: Issuer, target: str, *more: str, name: str | None = "ada") -> Result:
    """The command's login, which somebody approves or denies."""
    thread = approves(issuer, name)
    done = called("--target", target, "login", "--issuer", issuer.url, "--client-id", CLIENT_ID, *more)
    thread.join(SECONDS)
    return done


def test_log_in_call_log_out(issuer: Issuer, trusting: Server, state: Path) -> None:
    """After a login, commands and clients of this target have a token, and after a logout none."""
    assert called("--target", trusting.target, "list").exit_code == 2
    done = logged_in(issuer, trusting.target)
    assert done.exit_code == 0, done.output
    (code,) = [device["user_code"] for device in issuer.devices.values()]
    assert f"/activate?user_code={code} and enter the code {code}" in done.stderr
    assert done.stdout == f"Logged in to {trusting.target}.\n"
    assert called("--target", trusting.target, "list").exit_code == 0
    doctor = called("--target", trusting.target, "doctor", "--json")
    assert {one["check"]: one["text"] for one in json.loads(doctor.stdout)["findings"]}["token"] == "accepted"  # noqa: S105 - no secret
    with Client(trusting.target) as client:
        assert list(client.list()) == []

    async def listed() -> list[Any]:
        async with AsyncClient(trusting.target) as client:
            return [run async for run in client.list()]

    assert asyncio.run(listed()) == []
    (file,) = state.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    secret = json.loads(file.read_text())["token"]
    assert secret not in done.output
    assert secret not in repr(logins._load(file))
    assert called("--target", trusting.target, "logout").stdout == f"Logged out of {trusting.target}.\n"
    assert list(state.iterdir()) == []
    assert "not logged in" in called("--target", trusting.target, "logout").stdout
    refused = called("--target", trusting.target, "list")
    assert (refused.exit_code, "MISSING_TOKEN" in refused.stderr) == (2, True)
    assert "Set --token-file or NOTEBOOK_RUNNER_TOKEN_FILE, or log in" in refused.stderr


def test_a_login_is_for_one_target(issuer: Issuer, state: Path, tmp_path: Path) -> None:
    """Other targets get no token of it, and a token that is given wins."""
    assert logged_in(issuer, TARGET).exit_code == 0
    (tmp_path / "token").write_text("given")
    assert Connection.resolve("127.0.0.1:2").metadata() == ()
    assert Connection.resolve(TARGET, token_file=tmp_path / "token").metadata() == (
        ("authorization", "Bearer given"),
    )
    ((_, value),) = Connection.resolve(TARGET).metadata()
    assert value.startswith("Bearer ey")
    assert login_path(TARGET).parent == state


def test_the_state_folder_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without XDG_STATE_HOME it is in ~/.local/state."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert login_path("a:1") == Path("/home/somebody/.local/state/notebook-runner-client/a%3A1.json")


def test_a_denied_login(issuer: Issuer, state: Path) -> None:
    """It ends with a sentence, and leaves nothing."""
    done = logged_in(issuer, TARGET, name=None)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, "error: The login was denied.")
    assert not state.exists()


def test_an_id_token(issuer: Issuer, state: Path) -> None:
    """With --id-token, that one is sent, which is for the command itself."""
    assert logged_in(issuer, TARGET, "--id-token").exit_code == 0
    (file,) = state.iterdir()
    claims = logins._claims(json.loads(file.read_text())["token"])
    assert claims is not None
    assert claims["aud"] == CLIENT_ID


def made(issuer: Issuer, **more: Any) -> tuple[logins.Login, list[float]]:
    """A login, and how long each of its pauses would have been."""
    pauses: list[float] = []

    def show(_: str, code: str) -> None:
        if more.pop("approved", True):
            issuer.approve(code)

    return logins.log_in(issuer.url, CLIENT_ID, show, wait=pauses.append, **more), pauses


def test_polls_at_the_issuers_pace(issuer: Issuer) -> None:
    """It waits for the interval before each poll, and longer after each slow_down."""
    pauses: list[float] = []
    issuer.interval, issuer.slow_downs = 3, 1

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            (device,) = issuer.devices.values()
            issuer.approve(device["user_code"])

    logins.log_in(issuer.url, CLIENT_ID, lambda *_: None, wait=wait)
    assert pauses == [3, 8, 8, 8]


def test_polls_less_often_while_the_issuer_is_down(issuer: Issuer) -> None:
    """An issuer that cannot be reached for a moment does not end the login."""
    pauses: list[float] = []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            issuer.stop()
        elif len(pauses) == 3:
            issuer.start()
            (device,) = issuer.devices.values()
            issuer.approve(device["user_code"])

    logins.log_in(issuer.url, CLIENT_ID, lambda *_: None, wait=wait)
    assert pauses == [1, 2, 4]


DISCOVERY = "/.well-known/openid-configuration"
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({DISCOVERY: {"issuer": "https://x"}}, "calls itself 'https://x'"),
    "not JSON": ({DISCOVERY: "<html>"}, "answered with something other than a JSON object"),
    "a list": ({DISCOVERY: []}, "answered with something other than a JSON object"),
    "a status": ({DISCOVERY: ("gone", 503)}, "answered with status 503"),
    "a redirect": ({DISCOVERY: ("", 302, {"Location": "http://127.0.0.1:1/"})}, "answered with status 302"),
    "an error": (
        {"/device": ({"error": "invalid_client", "error_description": "Who?"}, 401)},
        "invalid_client, Who?",
    ),
    "no codes": ({"/device": {"interval": 5}}, "without a code for this device"),
    "no token": ({"/token": {"token_type": "Bearer"}}, "answered without access_token"),
    "an opaque token": ({"/token": {"access_token": "opaque"}}, "Log in with --id-token"),
    "a refusal": ({"/token": ({"error": "invalid_grant"}, 400)}, "refused the login: invalid_grant"),
    "expired codes": ({"/token": ({"error": "expired_token"}, 400)}, "Nobody approved the login in time"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_issuer_that_is_broken(issuer: Issuer, how: str) -> None:
    """Whatever an issuer answers ends in a sentence."""
    issuer.documents, sentence = BROKEN[how]
    with pytest.raises(LoginFailed) as caught:
        made(issuer)
    assert sentence in str(caught.value)


def test_an_issuer_without_the_device_flow(issuer: Issuer) -> None:
    """It is named."""
    issuer.documents = {DISCOVERY: {"issuer": issuer.url, "token_endpoint": issuer.url + "/token"}}
    with pytest.raises(LoginFailed, match="does not offer the device flow"):
        made(issuer)


@pytest.mark.parametrize(
    "url", ["http://issuer.example", "ftp://127.0.0.1", "issuer.example", "file:///etc/passwd"]
)
def test_an_issuer_that_others_could_read(url: str) -> None:
    """Tokens do not cross a network unencrypted."""
    with pytest.raises(LoginFailed, match="must be https://"):
        logins.log_in(url, CLIENT_ID, lambda *_: None)


def test_an_issuer_that_cannot_be_reached(issuer: Issuer) -> None:
    """The command says so in a sentence."""
    issuer.stop()
    done = called("--target", TARGET, "login", "--issuer", issuer.url, "--client-id", CLIENT_ID)
    issuer.start()
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: Cannot reach {issuer.url}")


def test_tokens_are_refreshed(issuer: Issuer, trusting: Server, state: Path) -> None:
    """A token that expires soon is replaced before a call; the refresh token may be valid only once."""
    issuer.lifetime = 5
    login, _ = made(issuer)
    file = login_path(trusting.target)
    logins.save(file, login)
    with Client(trusting.target) as client:
        for _ in range(2):
            assert list(client.list()) == []
    after = logins._load(file)
    assert after.token != login.token
    assert after.refresh_token != login.refresh_token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.parent == state


def test_only_one_process_refreshes(issuer: Issuer, state: Path) -> None:
    """Callers that find an expired token together ask the issuer once, and none of them fails."""
    issuer.lifetime = 1
    login, _ = made(issuer)
    issuer.lifetime = 3600
    file = state / "x.json"
    logins.save(file, login)
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(logins.current_token, [file] * 16))
    assert len(set(tokens)) == 1
    assert issuer.requests.count("/token") == 2


def test_an_issuer_that_is_down_while_a_token_lasts(issuer: Issuer, state: Path) -> None:
    """A token is used until it expires, even if it cannot be refreshed in time."""
    issuer.lifetime = 20
    login, _ = made(issuer)
    file = state / "x.json"
    logins.save(file, login)
    issuer.stop()
    assert logins.current_token(file) == login.token
    issuer.start()


def test_a_login_that_has_ended(issuer: Issuer, trusting: Server) -> None:
    """If the issuer refuses the refresh token, the command says how to log in again; doctor, too."""
    issuer.lifetime = 5
    login, _ = made(issuer)
    logins.save(login_path(trusting.target), login)
    issuer.refresh_tokens.clear()
    done = called("--target", trusting.target, "list")
    assert done.exit_code == 2
    assert "The login has expired" in done.stderr
    assert "notebook-runner login" in done.stderr
    assert login.refresh_token not in done.output
    assert "The login has expired" in called("--target", trusting.target, "doctor").stdout


@pytest.mark.parametrize("content", ["", "{", "[]", '{"issuer": "x"}', '{"other": 1}'])
def test_a_login_file_that_is_broken(state: Path, content: str) -> None:
    """The file is named, and the way out."""
    state.mkdir(parents=True)
    (state / "x.json").write_text(content)
    with pytest.raises(LoginFailed, match="is invalid"):
        logins.current_token(state / "x.json")


def test_a_stream_outlives_its_token(issuer: Issuer, trusting: Server, tmp_path: Path) -> None:
    """Progress continues with the next token of a file when the one that it began with has expired."""
    file = tmp_path / "token"
    file.write_text(issuer.token())
    with Client(trusting.target, token_file=file) as client:
        run = client.start({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [SLEEPS]})
        # The clocks may differ by 30 s, so it is valid for 12 s more: a busy machine needs some of them.
        file.write_text(issuer.token(exp=int(time.time()) - 18))
        events = client.progress(run.id)
        assert next(events).sequence == 1
        file.write_text(issuer.token())
        assert trusting.logged("calls_refused")
        client.kill(run.id)
        numbers = [event.sequence for event in events]
    assert numbers == list(range(2, len(numbers) + 2))


SLEEPS: dict[str, Any] = {
    "cell_type": "code",
    "id": "a",
    "metadata": {},
    "execution_count": None,
    "outputs": [],
    "source": "import time; time.sleep(600)",
}
