"""The folders that a kernel has for itself: temporary files, and the directories of IPython and Jupyter.

They are made beside the kernel's sockets, are named in its environment, so that every process that the
notebook starts has them too, and end with the run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

# What IPython writes into a profile: a database for %store, %bookmark, %cd and the like, the history, logs,
# and files of running processes. Everything else in a profile is configuration.
_PROFILE_DATA = ("db", "history.sqlite*", "log", "pid", "security")

_MOST_ENTRIES = 1000

# What Jupyter writes: connection files of kernels, and the signatures of notebooks that were saved.
_JUPYTER_DATA = ("runtime", "nbsignatures.db*", "notebook_secret")


def make_folders(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Make the folders, and return the variables that name them.

    Args:
        folder: The private folder of the kernel.
        environment: The worker's variables, which name the user's own directories.
    """
    home = environment.get("HOME") or os.path.expanduser("~")
    share = environment.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    ipython, config, data = (_made(folder / name) for name in ("ipython", "jupyter", "jupyter-data"))
    for entry in _entries(environment.get("IPYTHONDIR") or os.path.join(home, ".ipython")):
        if entry.name.startswith("profile_") and os.path.isdir(entry):
            _link(_entries(entry), _made(ipython / entry.name), _PROFILE_DATA)
        else:
            _link([entry], ipython)
    _link(_entries(environment.get("JUPYTER_CONFIG_DIR") or os.path.join(home, ".jupyter")), config)
    _link(
        _entries(environment.get("JUPYTER_DATA_DIR") or os.path.join(share, "jupyter")), data, _JUPYTER_DATA
    )
    return {
        "TMPDIR": str(_made(folder / "tmp")),
        "IPYTHONDIR": str(ipython),
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(data),
        "JUPYTER_RUNTIME_DIR": str(data / "runtime"),
    }


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _entries(folder: str | Path) -> Iterator[Path]:
    # There is none, its user is none, or it is another user's: then IPython and Jupyter have their defaults.
    with contextlib.suppress(OSError, RuntimeError):
        yield from itertools.islice(Path(folder).expanduser().absolute().iterdir(), _MOST_ENTRIES)


def _link(entries: Iterable[Path], folder: Path, data: tuple[str, ...] = ()) -> None:
    """Show the user's configuration, start-up files, extensions and kernelspecs in a folder, but no data."""
    for entry in entries:
        if not any(fnmatchcase(entry.name, pattern) for pattern in data):
            (folder / entry.name).symlink_to(entry)
