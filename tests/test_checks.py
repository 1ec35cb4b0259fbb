"""A configuration that cannot work is refused before anything is made, with all its faults at once."""

import subprocess
from pathlib import Path

import pytest

from notebook_runner_server.config import Settings, checks
from tests.support.notebooks import content
from tests.support.server import PROGRAM
from tests.support.settings import clean, served
from tests.support.unprivileged import as_nobody, unprivileged_home

HOME = {"HOME": "/"}

Wrong = tuple[dict[str, object], dict[str, str], str]
WRONG: dict[str, Wrong] = {
    "state folder that is a file": (
        {"state_dir": f"{__file__}/state"},
        {},
        f"--state-dir {__file__}/state cannot be used: {__file__} is not a folder.",
    ),
    "missing root": (
        {"notebook_root": "/nowhere"},
        {},
        "--notebook-root /nowhere is not an existing folder.",
    ),
    "missing default notebook": (
        {"notebook_root": "/", "default_notebook": "no.ipynb"},
        {},
        "--default-notebook no.ipynb is not a file",
    ),
    "unknown kernel": ({"default_kernel": "pyhton3"}, {}, "--default-kernel: unknown kernelspec 'pyhton3'."),
    "unknown warm kernel": ({"warm_kernels": "ir9=1"}, {}, "--warm-kernels: unknown kernelspec 'ir9'."),
    "unknown format": ({"export_formats": "html,htm"}, {}, "--export-formats: unknown exporter 'htm'."),
    "default above its ceiling": (
        {"run_timeout": 20.0, "max_run_timeout": 10.0},
        {},
        "--run-timeout 20 exceeds --max-run-timeout 10.",
    ),
    "built-in default above its ceiling": (
        {"max_cell_output_limit": 10},
        {},
        "--cell-output-limit 2.68435e+08 exceeds --max-cell-output-limit 10.",
    ),
    "missing tokens file": ({"tokens_file": "/nowhere"}, {}, "--tokens-file /nowhere cannot be used: "),
    "missing scopes file": (
        {"oidc_issuer": "https://x", "oidc_audience": "x", "oidc_scopes_file": "/nowhere"},
        {},
        "--oidc-scopes-file /nowhere cannot be used: ",
    ),
    "missing webhooks file": (
        {"webhooks_file": "/nowhere"},
        {},
        "--webhooks-file /nowhere cannot be used: ",
    ),
    "missing shares file": ({"shares_file": "/nowhere"}, {}, "--shares-file /nowhere cannot be used: "),
    "missing certificate": (
        {"tls_cert": "/nowhere", "tls_key": "/nowhere"},
        {},
        "--tls-cert or --tls-key cannot be used: /nowhere",
    ),
    "unknown variable": (
        {},
        {"NOTEBOOK_RUNNER_WORKRS": "2"},
        "Unknown setting NOTEBOOK_RUNNER_WORKRS. Did you mean NOTEBOOK_RUNNER_WORKERS?",
    ),
    "no home": ({}, {"HOME": ""}, "HOME is not set."),
    "home that is not there": ({}, {"HOME": "/nowhere"}, "HOME must be an existing folder (got /nowhere)."),
    "wrong address": ({"listen": "x"}, {}, "--listen must be HOST:PORT (got 'x')."),
}


def faults(environment: dict[str, str] | None = None, **values: object) -> list[str]:
    """What is wrong with settings, in an environment that has a home."""
    settings = Settings(**values, unchecked=True)  # type: ignore[arg-type] # of any type
    try:
        checks.check(settings, {**HOME, **(environment or {})})
    except checks.ConfigurationError as error:
        return error.errors
    return []


def test_the_defaults_can_be_served() -> None:
    """Nothing is wrong with them."""
    assert faults() == []


def test_a_format_of_ours_can_be_allowed() -> None:
    """The page with scripts is in no list of nbconvert, and not allowed by default."""
    assert "html-interactive" not in Settings().formats
    assert faults(export_formats="html,html-interactive") == []


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_named(name: str) -> None:
    """One sentence for one fault, which names the flag or variable."""
    values, environment, expected = WRONG[name]
    (found,) = faults(environment, **values)
    assert found.startswith(expected)


def test_a_wrong_line_of_the_shares_file_is_named(tmp_path: Path) -> None:
    """With its number, and what it must be."""
    file = tmp_path / "shares"
    file.touch(0o600)
    file.write_text("anyone active=1\ngroup queued=-1 team")
    (found,) = faults(shares_file=str(file))
    assert f"{file}, line 2: queued must be a number from 0 to" in found


def test_all_faults_are_told_at_once() -> None:
    """Who mends them need not start the server once for each."""
    names = ["missing root", "unknown format", "default above its ceiling", "wrong address"]
    values = {key: value for name in names for key, value in WRONG[name][0].items()}
    found = faults({"NOTEBOOK_RUNNER_QUEU": "1"}, **values)
    assert len(found) == len(names) + 1


@pytest.mark.parametrize(
    "name",
    [
        *("TARGET", "TOKEN", "TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY", "RUN_DIR", "RUN_ID", "WORKERS"),
        *("SERVICE_HOST", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP_ADDR", "METRICS_SERVICE_PORT"),
    ],
)
def test_variables_of_others_are_no_fault(name: str) -> None:
    """The client's, those of a notebook that starts a server, and those of a Service in Kubernetes."""
    assert faults({f"NOTEBOOK_RUNNER_{name}": "x"}) == []


def test_check_prints_all_faults_and_makes_nothing(tmp_path: Path) -> None:
    """The command ends with 1, and has no state folder made."""
    state = str(tmp_path / "state")
    done = served("--check", "--state-dir", state, "--notebook-root", "/nowhere", NOTEBOOK_RUNNER_WORKRS="2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--notebook-root /nowhere" in done.stderr
    assert "NOTEBOOK_RUNNER_WORKRS" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()


def test_check_ends_with_0_where_all_is_well(tmp_path: Path) -> None:
    """It serves nothing, also where another server uses the address."""
    (tmp_path / "a.ipynb").write_bytes(content("1"))
    options = ["--notebook-root", str(tmp_path), "--default-notebook", "a.ipynb"]
    done = served("--check", "--state-dir", str(tmp_path / "state"), *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "state").exists()


def test_a_start_refuses_the_same(tmp_path: Path) -> None:
    """Without --check the server does not start, for the same reasons."""
    done = served("--state-dir", str(tmp_path / "state"), "--export-formats", "html,htm")
    assert done.returncode == 1
    assert "unknown exporter 'htm'" in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_state_folder_without_permission() -> None:
    """An ordinary user is told which folder may not be written to, before the server makes anything."""
    with unprivileged_home() as home:
        closed = home / "closed"
        closed.mkdir(mode=0o555)
        state = closed / "a" / "b"
        command = [*as_nobody(home), str(PROGRAM), "--check", "--state-dir", str(state)]
        done = subprocess.run(
            command, env=clean(HOME=str(home)), capture_output=True, text=True, timeout=600, check=False
        )
    told = f"--state-dir {state} cannot be used: no permission to write to {closed}."
    assert (done.returncode, told in done.stderr) == (1, True), done.stderr
