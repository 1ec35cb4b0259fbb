"""The shares file: what it says, and how every mistake in it is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner_server.api.access_file import AccessFileError
from notebook_runner_server.api.shares_file import MAX_BYTES, MAX_COUNT, parse_shares, shares_file
from notebook_runner_server.runs.shares import UNLIMITED, ShareRule, ShareRules

DEFAULT = ShareRule(max_active=3)
FILE = b"""
# who may use how much
anyone history=1Gi
name active=8,queued=0 Ada Lovelace
group active=4,queued=100,history=20G data team
  group   queued=unlimited    cn=all,ou=groups
"""


def test_each_kind_of_line() -> None:
    """Names and groups may have blanks and commas, sizes units; comments and empty lines are nothing."""
    assert parse_shares(FILE, "file", DEFAULT) == ShareRules(
        DEFAULT,
        {"Ada Lovelace": ShareRule(max_active=8, max_queued=0)},
        {"data team": ShareRule(4, 100, 20 * 10**9), "cn=all,ou=groups": ShareRule(max_queued=UNLIMITED)},
        ShareRule(max_history_bytes=2**30),
    )


@pytest.mark.parametrize("limits", ["active=1", f"active={MAX_COUNT}", "queued=0", f"queued={MAX_COUNT}"])
def test_the_bounds_of_numbers(limits: str) -> None:
    """The smallest and the largest are accepted, exactly."""
    key, _, value = limits.partition("=")
    rule = parse_shares(f"anyone {limits}".encode(), "file", DEFAULT).anyone
    assert getattr(rule, f"max_{key}") == int(value)


WRONG = {
    "": "has no rule",
    "# only a comment": "has no rule",
    "anyone": "line 1: must be name LIMITS NAME",
    "anyone active=1 more": "line 1: must be",
    "name active=1": "line 1: must be",
    "group active=1 ": "line 1: must be",
    "user active=1 ada": "line 1: must be",
    "group 4 team": "(got '4')",
    "group activ=4 team": "(got 'activ=4')",
    "group active=4, queued=1 team": "(got 'active=4,')",
    "group active=4,active=5 team": "sets active twice",
    "group active=0 team": "active must be a number from 1 to 2147483647, or unlimited (got '0')",
    "group active= team": "(got '')",
    "group active=-1 team": "(got '-1')",
    "group active=1.5 team": "(got '1.5')",
    "group active=\u0661 team": "active must be",
    "group active=2147483648 team": "active must be",
    "group active=99999999999999 team": "active must be",
    "group queued=none team": "queued must be a number from 0 to",
    "group history=0 team": "history must be a size such as 20Gi, or unlimited (got '0')",
    "group history=20GB team": "(got '20GB')",
    "group history=20Gi,more=1 team": "(got 'history=20Gi,more=1')",
    f"group history={MAX_BYTES * 4} team": "history must be a size",
    f"group history={'9' * 5000} team": "history must be a size",
    "group active=1 team\ngroup active=2 team": "line 2: duplicates",
    "anyone active=1\nanyone queued=2": "line 2: duplicates",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_a_wrong_line_is_refused(text: str) -> None:
    """The message names the file, the line, what was given, and what is expected."""
    with pytest.raises(AccessFileError) as caught:
        parse_shares(text.encode(), "the-file", DEFAULT)
    assert str(caught.value).startswith("the-file")
    assert WRONG[text] in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """Nothing in a file raises anything else, and what is accepted limits somebody."""
    try:
        rules = parse_shares(content, "file", DEFAULT)
    except AccessFileError:
        return
    assert rules.names or rules.groups or rules.anyone != ShareRule()


PAIRS = st.sampled_from(["active", "queued", "history", "other", ""]).flatmap(
    lambda key: st.text(max_size=6).map(lambda value: f"{key}={value}")
)


@given(st.sampled_from(["name", "group", "anyone"]), st.lists(PAIRS, max_size=3), st.text(max_size=6))
def test_almost_right_lines_are_read_or_refused(kind: str, pairs: list[str], name: str) -> None:
    """Neither do lines that are nearly right."""
    try:
        rules = parse_shares(f"{kind} {','.join(pairs)} {name}".encode(errors="replace"), "file", DEFAULT)
    except AccessFileError:
        return
    for rule in (*rules.names.values(), *rules.groups.values(), rules.anyone):
        for value in (rule.max_active, rule.max_queued, rule.max_history_bytes):
            assert value is None or value == UNLIMITED or 0 <= value <= MAX_BYTES


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """As every file that decides what callers may do."""
    path = tmp_path / "shares"
    path.write_bytes(FILE)
    path.chmod(0o666)
    with pytest.raises(AccessFileError, match="chmod go-w"):
        shares_file(path, DEFAULT)


def test_a_changed_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is read again; an invalid one changes nothing, and the log says why, once."""
    path = tmp_path / "shares"
    path.write_text("anyone active=1")
    path.chmod(0o600)
    file = shares_file(path, DEFAULT)
    path.write_text("anyone active=2")
    assert file.latest().anyone.max_active == 2
    path.write_text("anyone active=no")
    for _ in range(3):
        assert file.latest().anyone.max_active == 2
    complaints = [one for one in caplog.records if one.message == "shares_not_reloaded"]
    assert len(complaints) == 1
    path.unlink()
    assert file.latest().anyone.max_active == 2
