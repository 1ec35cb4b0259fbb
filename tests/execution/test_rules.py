"""Rules of the sandbox where what is hidden is on another machine, or an entry cannot be opened."""

import errno
import os
from pathlib import Path

import pytest

from notebook_runner_server.execution.confinement import confine
from notebook_runner_server.execution.confinement.rules import Confinement, rules
from notebook_runner_server.execution.confinement.ruleset import Ruleset

pytestmark = pytest.mark.skipif(not confine.landlock_version(), reason="this system has no Landlock")


def confinement(folder: Path, hidden: Path) -> Confinement:
    """What holds for kernels whose folders are made in one, where something is hidden."""
    return Confinement(folder, (hidden,))


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

    def failing(self: Ruleset, path: str | Path, *, follow: bool = True) -> None:
        if Path(path) == Path("/usr"):
            raise OSError(number, os.strerror(number), str(path))
        allow(self, path, follow=follow)

    monkeypatch.setattr(Ruleset, "allow_reading", failing)
    made = rules(confinement(tmp_path, tmp_path / "hidden"), [tmp_path])
    made.ruleset.close()
    assert Path("/usr") not in made.ruleset.readable


def test_too_few_descriptors_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could be had is not left out for want of a descriptor."""

    def failing(self: Ruleset, path: str | Path, *, follow: bool = True) -> None:  # noqa: ARG001 - the signature
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(Ruleset, "allow_reading", failing)
    with pytest.raises(OSError, match="Too many open files"):
        rules(confinement(tmp_path, tmp_path / "hidden"), [tmp_path])
