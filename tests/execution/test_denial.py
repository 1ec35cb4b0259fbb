"""The note on an error whose reason is the sandbox, from the error's text alone."""

from pathlib import Path

import pytest

from notebook_runner_server.confinement.denial import explain

OUTSIDE = "/usr/share/doc"


@pytest.mark.parametrize(
    "text",
    [
        f"PermissionError: [Errno 13] Permission denied: '{OUTSIDE}'",
        f'PermissionError: [Errno 13] Permission denied: "{OUTSIDE}/it\'s new"',
        f"Error in file(file, 'wt') : cannot open file '{OUTSIDE}/new': Permission denied",
        f"java.io.FileNotFoundException: {OUTSIDE}/new (Permission denied)",
        f"first\nPermissionError: [Errno 13] Permission denied: 'inside' -> '{OUTSIDE}/new'\nlast",
    ],
)
def test_a_path_outside_is_named(text: str, tmp_path: Path) -> None:
    """In each language's way to say it, wherever in the text."""
    note = explain(text, str(tmp_path), [Path("/")], [tmp_path])
    assert OUTSIDE in note
    assert "--writable-folders" in note


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PermissionError: [Errno 13] Permission denied",
        "PermissionError: [Errno 13] Permission denied: 'inside'",
        f"FileNotFoundError: [Errno 2] No such file or directory: '{OUTSIDE}/new'",
        "PermissionError: [Errno 13] Permission denied: '/missing/folder/file'",
        "PermissionError: [Errno 13] Permission denied: 'a\0b'",
        f"PermissionError: [Errno 13] Permission denied: '{'/' + 'a' * 3000}'",
        "PermissionError: [Errno 13] Permission denied: '\ud800'",
    ],
)
def test_nothing_is_said_of_anything_else(text: str, tmp_path: Path) -> None:
    """Paths that it allows, that are not there, or that are none; other errors."""
    assert explain(text, str(tmp_path), [Path("/")], [tmp_path]) == ""


def test_text_of_any_size_takes_bounded_work(tmp_path: Path) -> None:
    """Only so many paths are looked at: the one that would be named comes too late."""
    many = "Permission denied: 'x'\n" * 100
    assert explain(f"{many}Permission denied: '{OUTSIDE}/new'", str(tmp_path), [Path("/")], [tmp_path]) == ""


@pytest.mark.parametrize("name", ["there", "not-there"])
def test_what_is_hidden_is_denied_whether_or_not_it_is_there(name: str, tmp_path: Path) -> None:
    """The note must not tell a notebook which files are in a folder that is kept from it."""
    hidden, own = tmp_path / "hidden", tmp_path / "own"
    hidden.mkdir()
    (hidden / "there").touch(0o600)
    text = f"PermissionError: [Errno 13] Permission denied: '{hidden / name}'"
    note = explain(text, str(own), [Path("/usr")], [own], [hidden])
    assert str(hidden / name) in note
