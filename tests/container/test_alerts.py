"""The alert rules, by Prometheus' own tool: each fires in its case, and none for a healthy server."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.container.manifests import FOLDER, find, rendered

PROMTOOL = shutil.which("promtool") or "promtool"
SECONDS = 120.0
GI = 2**30
# A server at work for an hour; promtool adds `x` steps of a minute to the first value.
HEALTHY = {
    'up{job="notebook-runner", instance="a"}': "1x60",
    'notebook_runner_runs_blocked{instance="a"}': "0x60",
    'notebook_runner_unended_runs{instance="a", state="queued"}': "3x60",
    'notebook_runner_queue_limit{instance="a"}': "16x60",
    'notebook_runner_rpc_errors_total{instance="a", reason="RUNNER_BUSY"}': "0x60",
    'notebook_runner_store_free_bytes{instance="a"}': f"{2 * GI}x60",
    'notebook_runner_runs_ended_total{instance="a", state="crashed", cause="worker_died"}': "7x60",
    'notebook_runner_runs_ended_total{instance="a", state="interrupted", cause="server_died"}': "7x60",
    'notebook_runner_worker_deaths_total{instance="a"}': "7x60",
    'notebook_runner_kill_duration_seconds_bucket{instance="a", le="10.0"}': "0+1x60",
    'notebook_runner_kill_duration_seconds_bucket{instance="a", le="60.0"}': "0+1x60",
    'notebook_runner_kill_duration_seconds_bucket{instance="a", le="+Inf"}': "0+1x60",
    'notebook_runner_rpcs_handled_total{instance="a", code="INTERNAL"}': "7x60",
}
# What each alert is for: series of the healthy server that have other values.
CASES = {
    "NotebookRunnerDown": {"up{": "0x60"},
    "NotebookRunnerNotReady": {"runs_blocked": "1x60"},
    "NotebookRunnerQueueFull": {"unended_runs": "16x60"},
    "NotebookRunnerBusy": {"RUNNER_BUSY": "0+3x60"},
    "NotebookRunnerStoreNearlyFull": {"store_free_bytes": f"{GI // 4}x60"},
    "NotebookRunnerCrashes": {'"crashed"': "0x50 1x10"},
    "NotebookRunnerRunsLost": {'"interrupted"': "0x50 1x10"},
    "NotebookRunnerWorkersDie": {"worker_deaths": "0x50 1x10"},
    "NotebookRunnerSlowKills": {'le="10.0"': "0x60"},
    "NotebookRunnerErrors": {"INTERNAL": "0x50 1x10"},
}
NOTHING = dict.fromkeys(HEALTHY, "_x60")


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules as a file, as the operator hands them to Prometheus."""
    rule = find(rendered(FOLDER / "overlays/monitoring"), "PrometheusRule")
    file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    file.write_text(yaml.safe_dump(rule["spec"]))
    return file


def promtool(*arguments: str) -> None:
    """Runs promtool, which has to be content."""
    done = subprocess.run(
        [PROMTOOL, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def with_values(changes: Mapping[str, str]) -> dict[str, str]:
    """The healthy server with other values for the series that contain these texts."""
    changed = dict(HEALTHY)
    for text, values in changes.items():
        (name,) = [one for one in HEALTHY if text in one]
        changed[name] = values
    return changed


def case(series: Mapping[str, str], firing: list[str]) -> dict[str, Any]:
    """A test of promtool: which alerts fire at the end of the hour."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "59m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing],
            }
        ],
    }


def test_the_rules_are_valid(rules: Path) -> None:
    """Prometheus reads them."""
    promtool("check", "rules", str(rules))


def test_each_alert_fires_in_its_case_alone(rules: Path, tmp_path: Path) -> None:
    """For each alert there is a case that fires it and no other; a healthy server fires none."""
    (group,) = yaml.safe_load(rules.read_text())["groups"]
    assert [rule["alert"] for rule in group["rules"]] == list(CASES)
    tests = [case(HEALTHY, []), case(NOTHING, ["NotebookRunnerDown"])]
    tests += [case(with_values(changes), [name]) for name, changes in CASES.items()]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))


def test_a_short_disturbance_wakes_nobody(rules: Path, tmp_path: Path) -> None:
    """An upgrade, which takes the pod away for three minutes, and a full queue for ten, fire nothing."""
    tests = [
        case(with_values({"up{": "1x56 0x3", "runs_blocked": "0x56 1x3"}), []),
        case(with_values({"unended_runs": "0x49 16x10"}), []),
    ]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))
