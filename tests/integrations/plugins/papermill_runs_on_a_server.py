"""A plugin for papermill's own tests: its default engine executes on a server."""

from pathlib import Path
from typing import Any

import pytest
from papermill import engines
from typing_extensions import override

from notebook_runner.integrations.papermill import NotebookRunnerEngine


class Engine(NotebookRunnerEngine):
    """Sends the file that the tests of `cwd` read from there, and leaves out what the mocks of others add."""

    @classmethod
    @override
    def execute_managed_notebook(cls, *args: Any, **options: Any) -> None:
        """Executes a notebook."""
        check = Path("check.txt")
        super().execute_managed_notebook(*args, files=[check] if check.exists() else [], **options)


engines.NBClientEngine = Engine
engines.papermill_engines.register(None, Engine)


# What asks for papermill's own engine.
LEFT_OUT = {
    "TestNotebookHelpers.test_start_timeout": "looks at the arguments of a mock of nbclient",
    "TestNotebookHelpers.test_default_start_timeout": "the same",
    "TestNBClientEngine.test_nb_convert_engine": "the same",
    "TestBrokenNotebook2.test": "fails with papermill's own engine as well: IPython has moved a name",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves them out."""
    left_out = [one for one in items if f"{one.parent.name if one.parent else ''}.{one.name}" in LEFT_OUT]
    items[:] = [one for one in items if one not in left_out]
    config.hook.pytest_deselected(items=left_out)
