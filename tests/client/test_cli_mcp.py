"""What `notebook-runner mcp` refuses before it serves; tests/integrations/test_mcp.py has the rest."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from notebook_runner.cli import main


@pytest.mark.parametrize("address", ["0.0.0.0:80", "[::]:80", "192.0.2.1:80", ":80", "localhost.example:1"])
def test_only_loopback(address: str) -> None:
    """Other machines cannot be let in, because the listener has no TLS."""
    done = CliRunner().invoke(main, ["mcp", "--http", address])
    assert done.exit_code == 2
    assert "is not a loopback address" in done.output


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:", "localhost:http", "[::1]:65536", "[::1]:²"])
def test_invalid_ports(address: str) -> None:
    """An address must have a port."""
    done = CliRunner().invoke(main, ["mcp", "--http", address])
    assert done.exit_code == 2
    assert "has no valid port" in done.output


def test_options_that_need_others(tmp_path: Path) -> None:
    """An option that would have no effect is refused."""
    (tmp_path / "token").write_text("token")
    for options, other in (
        (["--notebooks", str(tmp_path)], "--allow-changes"),
        (["--http-token-file", str(tmp_path / "token")], "--http"),
    ):
        done = CliRunner().invoke(main, ["mcp", *options])
        assert done.exit_code == 2
        assert f"needs {other}." in done.output


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the SDK, the command says what to install."""
    monkeypatch.delitem(sys.modules, "notebook_runner._mcp", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    done = CliRunner().invoke(main, ["mcp"])
    assert done.exit_code == 2
    assert "pip install 'notebook-runner[mcp]'" in done.output
