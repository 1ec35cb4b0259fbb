"""The page through restarts, with tokens, and with a large run; `make soak` has one of 10,000 cells."""

import json
import os
import shutil
import signal
from pathlib import Path

from tests.page.reader import reader
from tests.support.calls import inline, perform, start
from tests.support.gate import Gate
from tests.support.http_client import HttpCaller
from tests.support.killable import KillableServer
from tests.support.ports import free_port
from tests.support.secure import authorized, new_token
from tests.support.server import Server

CELLS = int(os.environ.get("SOAK_CELLS", "2000"))
LINES = 10
HEAD_PIXELS, LINE_PIXELS = 32, 20
EXECUTION_SECONDS = 1200.0
IS_INFO_KNOWN = "performance.getEntriesByType('resource').some((one) => one.name.endsWith('/v1/info'))"
ACTIONS = ".heading > .actions > :is(a, button)"
BUTTONS = f"JSON.stringify([...document.querySelectorAll('{ACTIONS}')].map((one) => one.innerText))"
PRINTED = "return [...document.querySelectorAll('.text')].map((one) => one.innerText.trim())"


def test_a_restart_of_the_server(tmp_path: Path, gate: Gate) -> None:
    """List and run go on where they were when the server died, without a reload and without a line twice."""
    address = f"127.0.0.1:{free_port()}"
    options = ["--http-listen", address]
    with reader(tmp_path / "run", address) as page, reader(tmp_path / "list", address) as other:
        with KillableServer(tmp_path / "state", *options) as server:
            run = start(server.stub, inline(f"print('before')\n{gate.source}", name="cut"))
            page.open_run(run)
            page.sees("before", ".text")
            other.open("/")
            other.sees("cut", ".row")
            for one in (page, other):
                one.browser.ask("window.isTheSame = true")
            server.process.kill()
            server.process.wait()
            page.sees("Connecting to the server", ".link-state")
        with Server(tmp_path / "state", *options) as server:
            page.sees_state("interrupted")
            page.keep("restarted")
            other.sees("interrupted", ".row .state")
            perform(server.stub, inline("pass", name="after the restart"))
            other.sees("after the restart", ".row")
            assert page.browser.ask(PRINTED) == ["before"]
            for one in (page, other):
                assert one.browser.ask("return window.isTheSame") is True


def test_a_history_from_a_backup(tmp_path: Path, gate: Gate) -> None:
    """List and run start afresh with what the history has, if it is older than what they show."""
    address = f"127.0.0.1:{free_port()}"
    options, state = ["--http-listen", address, "--queue", "5"], tmp_path / "state"
    cells = ["print('before')", f"{gate.source}; print('after')", gate.source]
    with reader(tmp_path / "run", address) as page, reader(tmp_path / "list", address) as other:
        with KillableServer(state, *options) as server:
            run = start(server.stub, inline(*cells, name="restored"))
            page.open_run(run)
            page.sees("before", ".text")
            # The second cell is in the history as well.
            page.until("document.querySelectorAll('.cell').length === 2")
            other.open("/")
            back_up(server, tmp_path / "backup")
            gate.open()
            page.sees("after", ".text")
            page.until("document.querySelectorAll('.cell').length === 3")
            for number in range(3):
                start(server.stub, inline("1", name=f"lost {number}"))
            other.sees("lost 2", ".row")
            for one in (page, other):
                one.browser.ask("window.isTheSame = true")
            server.die()
        shutil.rmtree(state)
        (tmp_path / "backup").rename(state)
        with Server(state, *options) as server:
            page.sees_state("interrupted")
            page.until("document.querySelectorAll('.cell').length === 2")
            assert page.browser.ask(PRINTED) == ["before"]
            other.sees("interrupted", ".row .state")
            other.until("document.querySelectorAll('.row').length === 1")
            perform(server.stub, inline("1", name="after the restore"))
            other.sees("after the restore", ".row")
            for one in (page, other):
                assert one.browser.ask("return window.isTheSame") is True


def back_up(server: Server, folder: Path) -> None:
    """Copies the state folder as it is at one moment."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED)
        shutil.copytree(server.state_dir, folder, symlinks=True)
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_another_history_at_the_address(tmp_path: Path) -> None:
    """The cursor of the list has expired: it starts afresh, with the runs of the other history alone."""
    address = f"127.0.0.1:{free_port()}"
    with reader(tmp_path / "profile", address) as page:
        with KillableServer(tmp_path / "first", "--http-listen", address) as server:
            perform(server.stub, inline("1", name="of the first"))
            page.open("/")
            page.sees("of the first", ".row")
            page.browser.ask("window.isTheSame = true")
            server.die()
        with Server(tmp_path / "second", "--http-listen", address) as server:
            perform(server.stub, inline("1", name="of the second"))
            page.sees("of the second", ".row")
            page.until("document.querySelectorAll('.row').length === 1")
            assert page.browser.ask("return window.isTheSame") is True


def test_who_may_not_change_a_run_has_no_buttons(tmp_path: Path, gate: Gate) -> None:
    """Readers and callers with runs of their own cannot kill or delete a run; its owner and `run-all` can."""
    tokens = tmp_path / "tokens"
    owner = new_token(tokens, "ada")
    scopes = {"ada": "run", "reader": "read-all", "other": "run,read-all", "operator": "run-all"}
    given = {
        name: owner if name == "ada" else new_token(tokens, name, scope) for name, scope in scopes.items()
    }
    options = ["--tokens-file", str(tokens), "--http-listen", "127.0.0.1:0"]
    with (
        Server(tmp_path / "state", *options) as server,
        reader(tmp_path / "profile", server.http) as page,
    ):
        stub = authorized(server.channel, owner)
        ended = perform(stub, inline("1")).run
        active = start(stub, inline(gate.source))
        for name, token in given.items():
            for run, button in ((ended, "Delete"), (active, "Kill")):
                page.open_run(run)
                page.sees("The server asks for a token", "dialog[open]")
                page.type("token", token)
                page.click("Use the token", "dialog[open]")
                page.until(IS_INFO_KNOWN)
                assert page.findings() == []
                expected = ["Run again", button] if name in ("ada", "operator") else ["Run again"]
                page.until(f"{BUTTONS} === arguments[0]", json.dumps(expected, separators=(",", ":")))
        gate.open()


def test_a_large_run(tmp_path: Path) -> None:
    """All cells and lines can be reached, and only those on the screen are in the document."""
    cells = [f"for i in range({LINES}): print({number}, i)" for number in range(CELLS)]
    options = ["--http-listen", "127.0.0.1:0", "--max-notebook-bytes", "64Mi"]
    with (
        Server(tmp_path / "state", *options) as server,
        reader(tmp_path / "profile", server.http) as page,
    ):
        run = start(server.stub, inline(*cells, name="large"))
        page.open_run(run)
        page.sees_state("running")
        page.until(f"document.querySelector('progress').max === {CELLS}")
        page.until("document.querySelector('.state.succeeded')", seconds=EXECUTION_SECONDS)
        # It stays at the end while the run grows.
        page.sees(f"{CELLS - 1} {LINES - 1}", ".text")
        count = "return document.querySelectorAll('main *').length"
        assert page.browser.ask(count) < 1000
        page.open_run(run)
        height = CELLS * (HEAD_PIXELS + LINES * LINE_PIXELS)
        page.until(f"document.querySelector('.timeline')?.scrollHeight === {height}")
        for share in (0.25, 0.5, 1):
            page.browser.ask(
                f"const one = document.querySelector('.timeline'); one.scrollTop = {share} * one.scrollHeight"
            )
            page.sees(f"{min(int(share * CELLS), CELLS - 1)} {LINES - 1}", ".text")
            assert page.browser.ask(count) < 1000
        page.keep("large-run")


def test_a_token_is_asked_for_once(tmp_path: Path) -> None:
    """The page keeps it in memory, or in the tab if wished; a wrong one is asked for again."""
    token = new_token(tmp_path / "tokens", "ada")
    options = ["--tokens-file", str(tmp_path / "tokens"), "--http-listen", "127.0.0.1:0"]
    with (
        Server(tmp_path / "state", *options) as server,
        reader(tmp_path / "profile", server.http) as page,
    ):
        page.open("/")
        page.sees("The server asks for a token", "dialog[open]")
        assert page.findings() == []
        page.keep("token")
        page.type("token", "wrong")
        page.click("Use the token", "dialog[open]")
        page.sees("token", "dialog[open] .problem")
        page.type("token", token)
        page.click("Use the token", "dialog[open]")
        page.sees("No runs yet.")
        page.click("Start", "nav")
        page.until("document.getElementsByName('file')[0]")
        assert not page.browser.ask("return document.querySelector('dialog[open]')")
        assert page.browser.ask("return sessionStorage.length + localStorage.length") == 0
        page.open("/")
        page.sees("The server asks for a token", "dialog[open]")
        page.type("token", token)
        page.until("document.getElementsByName('keep')[0]").click()
        page.click("Use the token", "dialog[open]")
        page.sees("No runs yet.")
        page.open("/")
        page.sees("No runs yet.")
        assert page.browser.ask("return localStorage.length") == 0


def test_the_page_can_be_off(tmp_path: Path) -> None:
    """Then nothing is served at its paths."""
    with Server(tmp_path / "state", "--http-listen", "127.0.0.1:0", "--http-page", "off") as server:
        caller = HttpCaller(server.http)
        for path in ("/", "/start", "/runs/x", "/page/main.js"):
            assert caller.get(path).status == 404
        assert caller.get("/docs").status == 200
