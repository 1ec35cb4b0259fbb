"""A Dagster asset that a server makes of a notebook, with papermill's engine.

dagstermill always uses an engine of its own, which executes in Dagster's process. An asset that calls
papermill has the choice. Start a server, and then materialize the asset for a notebook `report.ipynb`:

    notebook-runner-server
    python dagster_assets.py north

`dagster dev -f dagster_assets.py` shows the same asset in Dagster's pages.
"""

import sys

import papermill
from dagster import Config, Definitions, MaterializeResult, MetadataValue, RunConfig, asset, materialize


class ReportConfig(Config):  # type: ignore[misc] # the checks of this repository run without Dagster
    """What a run of the asset can set."""

    region: str = "north"


@asset  # type: ignore[untyped-decorator] # the same
def report(config: ReportConfig) -> MaterializeResult:
    """The executed notebook of one region. A cell that raises fails the asset."""
    output = f"report-{config.region}.ipynb"
    papermill.execute_notebook(
        "report.ipynb",
        output,
        parameters={"region": config.region},
        engine_name="notebook-runner",
        progress_bar=False,
        cell_timeout=600,
        labels={"asset": "report"},
    )
    return MaterializeResult(metadata={"notebook": MetadataValue.path(output)})


defs = Definitions(assets=[report])

if __name__ == "__main__":
    materialize([report], run_config=RunConfig(ops={"report": ReportConfig(region=sys.argv[1])}))
