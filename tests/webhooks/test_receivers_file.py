"""The webhooks file: what it says, and how every mistake in it is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner_server.api.access_file import AccessFileError
from notebook_runner_server.runs.deliveries import DeliveryFilter
from notebook_runner_server.runs.model import RunState
from notebook_runner_server.webhooks import receivers_file as module
from notebook_runner_server.webhooks.receivers_file import ENDED, Receiver, parse_receivers, receivers_file

SECRET = "whsec_" + "s3cr" * 8
URL = 'url = "https://example.com/hook"'
FILE = f"""
[webhooks.billing]
url = "https://example.com/hook?key=1"
secret = "{SECRET}"

[webhooks.ops-2]
url = "http://127.0.0.1:8080/"
secret = ["{SECRET}", "whsec_{"A" * 32}"]
events = ["started", "failed", "crashed"]
owner = "ada"
labels = {{ team = "data" }}
allow_internal = true
"""


def test_each_key() -> None:
    """Ends of all runs by default; states, the start, an owner and labels where they are said."""
    states = frozenset({RunState.STARTING, RunState.FAILED, RunState.CRASHED})
    assert parse_receivers(FILE.encode(), "file") == (
        Receiver("billing", DeliveryFilter(ENDED), "https://example.com/hook?key=1", (SECRET,)),
        Receiver(
            "ops-2",
            DeliveryFilter(states, "ada", {"team": "data"}),
            "http://127.0.0.1:8080/",
            (SECRET, "whsec_" + "A" * 32),
            any_address=True,
        ),
    )


def test_no_secret_is_shown() -> None:
    """Neither a secret nor a URL, which may have a token, is in the text of a receiver."""
    (receiver, _) = parse_receivers(FILE.encode(), "file")
    assert SECRET not in repr(receiver)
    assert "key=1" not in repr(receiver)


def lines(*given: str) -> str:
    """A table with a secret."""
    return "\n".join(["[webhooks.a]", f'secret = "{SECRET}"', *given])


WRONG = {
    "": "has no webhook",
    "webhooks = 1": "must have tables [webhooks.NAME]",
    "[webhook.a]": "(got 'webhook')",
    "[webhooks": "not valid TOML",
    "[webhooks]\na = 1": "webhook 'a': must be a table",
    "[webhooks.'a b']": "a name must have 1 to 64",
    f"[webhooks.{'a' * 65}]": "a name must have 1 to 64",
    lines(): "url is missing",
    lines("url = 1"): "url must be a text",
    lines('url = "ftp://example.com"'): "unknown scheme 'ftp'",
    lines('url = "s3://bucket/key"'): "url: ",
    lines('url = "https://127.0.0.1/"'): "allow_internal = true",
    lines('url = "http://localhost/"'): "allow_internal = true",
    lines('url = "http://169.254.169.254/"'): "allow_internal = true",
    lines('url = "https://user:word@example.com/"'): "url: ",
    lines(URL, "uri = 1"): "unknown key 'uri'. Available: url, secret",
    lines(URL, "events = []"): "events must not be empty",
    lines(URL, 'events = "ended"'): "events must be a list",
    lines(URL, 'events = ["queued"]'): "unknown event 'queued'. Available: started, ended, succeeded",
    lines(URL, "events = [1]"): "unknown event '1'",
    lines(URL, "owner = 1"): "owner must be a text",
    lines(URL, 'labels = "a=b"'): "labels must be a table",
    lines(URL, "labels = { a = 1 }"): "labels must have texts",
    lines(URL, 'allow_internal = "yes"'): "allow_internal must be true or false",
    f"[webhooks.a]\n{URL}": "secret must be whsec_",
    f'[webhooks.a]\n{URL}\nsecret = "word"': "secret must be whsec_ and 24 to 64 random bytes",
    f'[webhooks.a]\n{URL}\nsecret = "whsec_AAAA"': "secret must be whsec_",
    f'[webhooks.a]\n{URL}\nsecret = "whsec_{"A" * 31}"': "secret must be whsec_",
    f"[webhooks.a]\n{URL}\nsecret = []": "secret must not be an empty list",
    f'[webhooks.a]\n{URL}\nsecret = ["{SECRET}", ""]': "secret must be whsec_",
}


@pytest.mark.parametrize("text", WRONG)
def test_every_mistake_is_named(text: str) -> None:
    """The message names the file and the mistake, and shows no secret."""
    with pytest.raises(AccessFileError) as caught:
        parse_receivers(text.encode(), "file")
    assert str(caught.value).startswith("file")
    assert WRONG[text] in str(caught.value)
    assert SECRET not in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused_as_such(content: bytes) -> None:
    """Nothing but the error of the file is raised."""
    with pytest.raises(AccessFileError):
        parse_receivers(content, "file")


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a task and metrics, so their number is limited."""
    monkeypatch.setattr(module, "MAX_RECEIVERS", 1)
    with pytest.raises(AccessFileError, match=r"at most 1 webhooks \(got 2\)"):
        parse_receivers(FILE.encode(), "file")


@pytest.mark.parametrize(
    ("mode", "fix"), [(0o604, "chmod o-r"), (0o620, "chmod go-w"), (0o602, "chmod go-w")]
)
def test_a_file_of_secrets_is_only_for_the_server(tmp_path: Path, mode: int, fix: str) -> None:
    """A file that every user can read, or others can change, is refused; the group may read it."""
    path = tmp_path / "webhooks.toml"
    path.write_text(FILE)
    path.chmod(mode)
    with pytest.raises(AccessFileError, match=fix):
        receivers_file(path)
    path.chmod(0o640)
    assert len(receivers_file(path).latest()) == 2


def test_an_invalid_file_changes_nothing(tmp_path: Path) -> None:
    """The receivers of before stay, until the file is valid again."""
    path = tmp_path / "webhooks.toml"
    path.touch(0o600)
    path.write_text(FILE)
    file = receivers_file(path)
    path.write_text("[webhooks.a]")
    assert len(file.latest()) == 2
    path.write_text(FILE.replace("ops-2", "other"))
    assert [receiver.name for receiver in file.latest()] == ["billing", "other"]
