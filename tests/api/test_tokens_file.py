"""The tokens file: what it may hold, who may write to it, and the command that adds to it."""

import hashlib
import stat
import subprocess
from pathlib import Path

import pytest

from notebook_runner_server.api.access_file import AccessFileError
from notebook_runner_server.api.tokens import Tokens, parse
from notebook_runner_server.runs.caller import Scope, parse_scopes
from tests.support.secure import new_token, plain
from tests.support.server import PROGRAM

pytestmark = pytest.mark.integration

SUM = "0123456789abcdef" * 4
OTHER = "f" * 64


def test_a_good_file() -> None:
    """Names, scopes and sums, with comments and empty lines; a name may stand there twice."""
    text = f"# who\n\n  ci run sha256:{SUM}\r\nci\tread sha256:{OTHER.upper()}"
    one, two = parse(text.encode(), "f")
    assert (one.caller.name, one.digest.hex()) == ("ci", SUM)
    assert one.caller.scopes == {Scope.READ, Scope.RUN}
    assert (two.caller.name, two.digest.hex()) == ("ci", OTHER)
    assert two.caller.scopes == {Scope.READ}


@pytest.mark.parametrize(
    ("text", "scopes"),
    [
        ("read", "read"),
        ("run", "read run"),
        ("read-all", "read read-all"),
        ("run,read-all", "read run read-all"),
        ("run-all", "read run read-all run-all"),
        ("admin", "read run read-all run-all admin"),
    ],
)
def test_a_scope_includes_others(text: str, scopes: str) -> None:
    """Each scope includes what is below it; several are separated by commas."""
    (entry,) = parse(f"ci {text} sha256:{SUM}".encode(), "f")
    assert entry.caller.scopes == parse_scopes(text) == set(scopes.split())


BAD_FILES = {
    "nothing": "",
    "comments alone": "# ci run\n",
    "no sum": "ci run",
    "a sum too short": f"ci run sha256:{SUM[:-1]}",
    "a sum too long": f"ci run sha256:{SUM}0",
    "an unknown scope": f"ci root sha256:{SUM}",
    "an unknown scope among others": f"ci run,root sha256:{SUM}",
    "an empty scope": f"ci run, sha256:{SUM}",
    "no scope": f"ci sha256:{SUM}",
    "no name": f"run sha256:{SUM}",
    "the token itself": "ci run nbr_secret",
    "another sum": f"ci run md5:{SUM}",
    "a comment behind": f"ci run sha256:{SUM} # who",
    "a strange name": f"c/i run sha256:{SUM}",
    "the same token twice": f"a run sha256:{SUM}\nb read sha256:{SUM.upper()}",
    "an empty token": f"ci run sha256:{hashlib.sha256(b'').hexdigest()}",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file(name: str) -> None:
    """It is refused as a whole, the file and the line are named, and what may be a secret is not repeated."""
    with pytest.raises(AccessFileError) as caught:
        parse(BAD_FILES[name].encode(), "some/tokens")
    message = str(caught.value)
    assert message.startswith("some/tokens")
    assert "secret" not in message
    assert SUM not in message


def test_a_short_token(tmp_path: Path) -> None:
    """Whoever hashed a password by hand is not let in, nor is its guesser."""
    file = tmp_path / "tokens"
    sums = [hashlib.sha256(token.encode()).hexdigest() for token in ("x" * 31, "x" * 32)]
    file.write_text("".join(f"ci run sha256:{one}\n" for one in sums))
    file.chmod(0o600)
    tokens = Tokens(file)
    assert tokens.find("x" * 31) is None
    assert tokens.find("x" * 32) is not None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write(tmp_path: Path, mode: int) -> None:
    """They could let themselves in, so it is refused; that others read sums is harmless."""
    file = tmp_path / "tokens"
    new_token(file)
    file.chmod(mode)
    with pytest.raises(AccessFileError, match="chmod go-w"):
        Tokens(file)
    file.chmod(0o644)
    assert Tokens(file).names == ["tester"]


def test_a_new_token(tmp_path: Path) -> None:
    """The command prints a token alone, and the file, which only its owner reads, gets no token."""

    def made_for(file: Path, asked: str) -> str:
        command = [str(PROGRAM), "--tokens-file", str(file), "--new-token", asked]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=plain())
        return done.stdout.strip()

    file = tmp_path / "tokens"
    file.write_text("# of the team")
    file.chmod(0o600)
    made = {made_for(file, asked) for asked in ("ci:run", "ci:run", "b:read")}
    assert len(made) == 3
    assert not [token for token in made if token in file.read_text()]
    tokens = Tokens(file)
    assert sorted(
        (one.caller.name, max(one.caller.scopes)) for token in made if (one := tokens.find(token))
    ) == [
        ("b", "read"),
        ("ci", "run"),
        ("ci", "run"),
    ]
    fresh = tmp_path / "fresh"
    made_for(fresh, "tester:run")
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o600


@pytest.mark.parametrize("asked", ["ci", "ci:", ":run", "ci:root", "c i:run", "ci:run\n", "a:b:run"])
def test_a_new_token_that_cannot_be(tmp_path: Path, asked: str) -> None:
    """What is no name or no scope is refused in one sentence, and no file is made."""
    file = tmp_path / "tokens"
    told = _refused("--tokens-file", str(file), "--new-token", asked)
    assert "NAME:SCOPE" in told
    assert f"(got {asked})" in told
    assert not file.exists()


def test_a_new_token_needs_a_file() -> None:
    """A token whose sum is nowhere opens nothing."""
    assert "--tokens-file" in _refused("--new-token", "ci:run")


@pytest.mark.parametrize("content", [None, "", "ci run x"])
def test_a_server_without_good_tokens(tmp_path: Path, content: str | None) -> None:
    """A server that was told of tokens and finds none does not serve, and makes nothing."""
    file, state = tmp_path / "tokens", tmp_path / "state"
    if content is not None:
        file.write_text(content)
        file.chmod(0o600)
    options = ["--listen", "127.0.0.1:0", "--state-dir", str(state), "--tokens-file", str(file)]
    assert str(file) in _refused(*options)
    assert not state.exists()


def _refused(*arguments: str) -> str:
    """The one sentence with which the real command ends."""
    command = [str(PROGRAM), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=plain())
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr
