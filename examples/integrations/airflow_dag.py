"""A DAG of Airflow whose notebooks a server executes: a report on each region, and then the sum of all.

Start a server, add the connection, and put this file into the folder of DAGs, with a notebook
`report.ipynb` that has the parameter `region` and records the result value `total`:

    notebook-runner-server --workers 3 --queue 100
    airflow connections add notebook_runner_default --conn-type notebook_runner \
        --conn-host 127.0.0.1 --conn-port 50051
"""

from airflow.sdk import DAG, task

from notebook_runner.integrations.airflow import NotebookRunnerOperator


@task  # type: ignore[untyped-decorator] # the checks of this repository run without Airflow
def add(values: list[dict[str, int]]) -> int:
    """Add the totals of all reports."""
    return sum(one["total"] for one in values)


with DAG("sales", schedule=None):
    report = NotebookRunnerOperator.partial(
        task_id="report",
        notebook="report.ipynb",
        cell_timeout=600,
        retries=2,
    ).expand(parameters=[{"region": "north"}, {"region": "east"}, {"region": "{{ dag_run.conf.region }}"}])
    add(report.output)
