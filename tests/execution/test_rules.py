"""Rules of the sandbox where what is hidden is on another machine, or an entry cannot be opened."""

import errno
import os
from pathlib import Path

import pytest

from notebook_runner_server.confinement import confine
from notebook_runner_server.confinement.policy import Ruleset, SandboxPolicy, rules

pytestmark = pytest.mark.skipif(not confine.landlock_version(), reason="this system has no Landlock")


def confinement(folder: Path, hidden: Path) -> SandboxPolicy:
    """What holds for kernels whose folders are made in one, where something is hidden."""
    return SandboxPolicy(folder, (hidden,))


def test_what_is_hidden_may_be_missing(tmp_path: Path) -> None:
    """A Dask worker is told what the server hides, and need not have the folder that it is in."""
    made = rules(confinement(tmp_path, tmp_path / "missing" / "tokens"), [tmp_path])
    made.ruleset.close()
    assert Path("/usr") in made.ruleset.readable


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.EACCES])
def test_an_entry_that_cannot_be_opened_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A mount whose server is gone costs no kernel; it has no rule."""
    allow = Ruleset.allow_reading

    def failing(self: Ruleset, path: Path, *, folder: int | None = None) -> None:
        if path == Path("/usr"):
            raise OSError(number, os.strerror(number), str(path))
        allow(self, path, folder=folder)

    monkeypatch.setattr(Ruleset, "allow_reading", failing)
    made = rules(confinement(tmp_path, tmp_path / "hidden"), [tmp_path])
    made.ruleset.close()
    assert Path("/usr") not in made.ruleset.readable


def test_too_few_descriptors_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could be had is not left out for want of a descriptor."""

    def failing(self: Ruleset, path: Path, *, folder: int | None = None) -> None:  # noqa: ARG001 - the signature
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(Ruleset, "allow_reading", failing)
    with pytest.raises(OSError, match="Too many open files"):
        rules(confinement(tmp_path, tmp_path / "hidden"), [tmp_path])


def test_a_file_that_is_removed_is_noticed(tmp_path: Path) -> None:
    """Also one that another file has replaced; one that has only changed is the same file."""
    names = ("changed", "removed", "replaced")
    for name in names:
        (tmp_path / name).write_text("before")
    for name, is_removed in {"changed": False, "removed": True, "replaced": True}.items():
        made = rules(confinement(tmp_path, tmp_path / "hidden"), ())
        made.ruleset.close()
        assert {tmp_path / one for one in names} <= made.ruleset.files.keys()
        path = tmp_path / name
        if is_removed:
            path.rename(tmp_path / "elsewhere")
        if name != "removed":
            path.write_text("after")
        assert made.keeps_removed_file() == is_removed
        path.write_text("again")


@pytest.mark.parametrize("name", ["link", "link/below", "folder/link"])
def test_no_rule_is_made_over_a_link(tmp_path: Path, name: str) -> None:
    """A folder of the kernel's that has become a link, or is below one, is an error."""
    for folder in ("hidden/below", "folder"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("hidden")
    (tmp_path / "folder/link").symlink_to(tmp_path / "hidden")
    with pytest.raises(OSError, match="symbolic link"):
        rules(confinement(tmp_path, tmp_path / "hidden"), [tmp_path / name])


def test_a_shared_folder_that_becomes_a_link_is_shared_no_more(tmp_path: Path) -> None:
    """One notebook may write some of them, and what it puts there must open nothing for the next."""
    names = ("hidden", "outer", "outer/inner", "outer/cache", "outer/root")
    hidden, outer, inner, cache, root = (tmp_path / name for name in names)
    for folder in (hidden, inner, cache, root):
        folder.mkdir(parents=True)
    shared = SandboxPolicy(tmp_path, (hidden,), (outer, inner), root, (cache,))
    before = rules(shared, ())
    before.ruleset.close()
    assert {outer, inner, cache} <= set(before.ruleset.writable)
    for folder in (inner, cache, root):
        folder.rmdir()
        folder.symlink_to(hidden)
    after = rules(shared, ())
    after.ruleset.close()
    found = {path.resolve() for path in (*after.ruleset.writable, *after.ruleset.readable)}
    assert not any(hidden.is_relative_to(path) for path in found)
    assert outer in found
