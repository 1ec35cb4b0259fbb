"""A shell of IPython's as it is in a kernel, and what its frontend shows."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell
from traitlets import Any
from traitlets.config import Config

from notebook_runner import _notebook, load_ipython_extension

SECONDS = 60.0


class KernelShell(InteractiveShell):
    """IPython as it is in a kernel, without one."""

    kernel = Any()


class Frontend:
    """Keeps what was shown, each view by its id, as a frontend does."""

    def __init__(self) -> None:
        self.views: dict[str, str] = {}
        self.places = 0
        self.changes = 0
        self._changed = threading.Condition()

    def publish(self, data: dict[str, str], *_: object, transient: dict[str, str], update: bool) -> None:
        """Takes what IPython would send to the frontend."""
        with self._changed:
            assert not update or transient["display_id"] in self.views
            self.views[transient["display_id"]] = data["text/html"]
            self.places += not update
            self.changes += update
            self._changed.notify_all()

    @property
    def last(self) -> str:
        """What the only view shows now."""
        (view,) = self.views.values()
        return view

    def until(self, text: str) -> None:
        """Waits until the only view shows a text."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.last, SECONDS), self.last


@contextlib.contextmanager
def inside(kind: type[InteractiveShell], folder: Path) -> Iterator[InteractiveShell]:
    """Code in here believes itself to be in a shell of IPython's, which keeps nothing."""
    config = Config(HistoryManager={"enabled": False})
    try:
        shell = kind.instance(config=config, ipython_dir=str(folder))
        load_ipython_extension(shell)
        yield shell
    finally:
        kind.clear_instance()
        _notebook.use_display(None)
