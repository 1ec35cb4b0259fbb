"""A Prefect flow whose notebook a server executes: prefect-jupyter passes the engine on to papermill.

Start a server, and then this program with a notebook that has the parameter `region`:

    notebook-runner-server
    python prefect_flow.py report.ipynb north
"""

import sys
from pathlib import Path

from prefect import flow
from prefect_jupyter.notebook import execute_notebook, export_notebook


@flow  # type: ignore[untyped-decorator] # the checks of this repository run without Prefect
def report(notebook: str, region: str) -> str:
    """Execute the notebook for one region, and return the executed notebook."""
    # Arguments after the first four go to papermill, and from there to the engine.
    executed = execute_notebook(
        notebook,
        parameters={"region": region},
        log_output=True,
        engine_name="notebook-runner",
        cell_timeout=600,
        labels={"flow": "report"},
    )
    exported: str = export_notebook(executed)
    return exported


if __name__ == "__main__":
    content = report(sys.argv[1], sys.argv[2])
    Path(f"report-{sys.argv[2]}.ipynb").write_text(content, encoding="utf-8")
