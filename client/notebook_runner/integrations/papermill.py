"""The engine `notebook-runner` of papermill: papermill prepares the notebook, and a server executes it.

papermill loads the engine by its entry point. Only programs with an engine of their own need this module.
"""

# While papermill is being imported, it loads `_papermill_engine`; so it must come first.
import papermill  # noqa: F401

from ._papermill_engine import NotebookRunnerEngine

__all__ = ["NotebookRunnerEngine"]
