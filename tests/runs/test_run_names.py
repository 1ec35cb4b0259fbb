"""The names of runs."""

import pytest

from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.runs.names import MAX_NAME, check_name, default_name


@pytest.mark.parametrize(
    ("path", "uri", "name"),
    [
        ("", "", ""),
        ("a.ipynb", "", "a"),
        ("folder/a b.ipynb", "", "a b"),
        ("a.ipynb.ipynb", "", "a.ipynb"),
        ("a.json", "", "a.json"),
        ("100%25.ipynb", "", "100%25"),
        ("a\nb.ipynb", "", "a\ufffdb"),
        ("x" * 200 + ".ipynb", "", "x" * MAX_NAME),
        ("", "s3://bucket/folder/a%20b.ipynb", "a b"),
        ("", "https://host/a.ipynb?…", "a"),
        ("", "https://host/%ff%0a.ipynb", "\ufffd\ufffd"),
        ("", "https://host/", ""),
    ],
)
def test_default_names(path: str, uri: str, name: str) -> None:
    """The name of a run that was given none is that of the file, as far as it can be shown in one line."""
    assert default_name(path, uri) == name
    check_name(name)


def test_names_that_are_refused() -> None:
    """The message says what was given."""
    with pytest.raises(InvalidFieldError, match=r"at most 128 characters \(got 129\)"):
        check_name("x" * 129)
    with pytest.raises(InvalidFieldError, match=r"control characters or line breaks \(got '.x85'\)"):
        check_name("a\x85b")
