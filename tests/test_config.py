"""The settings: each is a flag and a variable, documented, with a default, and wrong values are refused."""

import dataclasses
import re
from pathlib import Path

import click
import pytest

from notebook_runner_server.config import Settings
from notebook_runner_server.config.flags import shown_default
from tests.support.settings import flag, parsed, refusal, served, variable

FIELDS = {one.name: one for one in dataclasses.fields(Settings)}
NAMES = list(FIELDS)
DEFAULTS = Settings()
NUMBERS = [name for name in NAMES if type(getattr(DEFAULTS, name)) in (int, float)]
FLOATS = [name for name in NUMBERS if isinstance(getattr(DEFAULTS, name), float)]
SWITCHES = [name for name in NAMES if isinstance(getattr(DEFAULTS, name), bool)]
TEXTS = [name for name in NAMES if isinstance(getattr(DEFAULTS, name), str)]
CHOICES = {
    "sandbox": "require",
    "executor": "process",
    "reflection": "off",
    "http_page": "off",
    "log_format": "console",
    "log_level": "debug",
}
VALUES = {
    "warm_kernels": "ir=2,python3=1",
    "uri_schemes": "https,s3",
    "metrics_listen": "[::1]:7",
    "trace_endpoint": "http://[::1]:7",
    "oidc_issuer": "https://issuer",
    "http_listen": "[::1]:8",
    "http_cors_origins": "https://app.example",
    "store": "postgresql://user@host/name",
    "store_listen": "postgresql://user@direct/name",
    "store_files_uri": "s3://bucket/prefix",
}
OIDC = ["--oidc-issuer", "https://issuer", "--oidc-audience", "audience", "--oidc-scopes-file", "scopes"]
# Settings that only make sense with another one.
COMPANIONS = {
    "default_notebook": ["--notebook-root", "."],
    "tls_cert": ["--tls-key", "key.pem"],
    "tls_key": ["--tls-cert", "cert.pem"],
    "tls_client_ca": ["--tls-cert", "cert.pem", "--tls-key", "key.pem"],
    "store_files_uri": ["--store", "postgresql://user@host/name"],
    "oidc_issuer": ["--oidc-audience", "audience", "--oidc-scopes-file", "scopes"],
    "oidc_audience": ["--oidc-issuer", "https://issuer", "--oidc-scopes-file", "scopes"],
    "oidc_scopes_file": ["--oidc-issuer", "https://issuer", "--oidc-audience", "audience"],
    "http_cors_origins": ["--http-listen", "127.0.0.1:0"],
    "store_listen": ["--store", "postgresql://user@host/name"],
    **dict.fromkeys(("oidc_ca", "oidc_token_file"), OIDC),
}
# Zero is a limit.
UNLIMITED_BELOW_ZERO = {"owner_max_queued"}
EXIT_CODE_OF_A_WRONG_OPTION = 2


def other(name: str) -> str:
    """A good value that is not the default."""
    default = getattr(DEFAULTS, name)
    if name in CHOICES or name in VALUES:
        return {**CHOICES, **VALUES}[name]
    if name == "listen":
        return "[::1]:7"
    return str(default + 1) if name in NUMBERS else "something"


@pytest.fixture(scope="module")
def help_text() -> str:
    """What the command says of itself, on one line."""
    result = served("--help")
    assert result.returncode == 0
    return " ".join(result.stdout.split())


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_is_documented(help_text: str, name: str) -> None:
    """Flag, variable and a sentence are in the help; a number has its default and is told its unit."""
    found = re.search(rf" {flag(name)}(?: [A-Z]{{3}}| /| \[)", help_text)
    assert found
    rest = help_text[found.end() :]
    # Up to the next option with a value: a sentence may name others.
    text = (
        re.split(r" --[a-z-]+(?: [A-Z]{3}| \[)", rest, maxsplit=1)[0] if name not in SWITCHES else rest[:600]
    )
    assert f"env var: {variable(name)}" in text
    about = FIELDS[name].metadata["help"]
    # A line may be broken after a hyphen.
    assert " ".join(about.split()).replace("- ", "-") in rest.replace("- ", "-")
    if name in NUMBERS:
        default = shown_default(FIELDS[name])
        assert f"default: {default if isinstance(default, str) else getattr(DEFAULTS, name)}" in text
        units = r"second|byte|0: |at once|may wait|processes|open|runs"
        assert re.search(units, about, re.IGNORECASE), about


def test_every_option_of_the_command_is_a_setting(help_text: str) -> None:
    """Nothing can be set that is not among the settings."""
    flags = set(re.findall(r" (--[a-z][a-z-]*)", help_text))
    known = {flag(name) for name in NAMES} | {f"--no-{flag(name)[2:]}" for name in SWITCHES}
    # Words of the help texts that name other settings are among them.
    assert flags - known == {"--help", "--version", "--no-warm-kernels", "--new-token", "--check"}


def test_without_arguments_the_defaults_hold() -> None:
    """The command's defaults are those of the settings themselves."""
    assert parsed() == DEFAULTS


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SWITCHES])
def test_each_setting_is_a_flag_and_a_variable(name: str) -> None:
    """Either sets it, to the same value of the same type, and the flag wins."""
    value, companions = other(name), COMPANIONS.get(name, [])
    by_flag = parsed(flag(name), value, *companions)
    by_variable = parsed(*companions, **{variable(name): value})
    assert by_flag == by_variable
    assert str(getattr(by_flag, name)) == value
    assert type(getattr(by_flag, name)) is type(getattr(DEFAULTS, name))
    if name in CHOICES:
        return
    default = str(getattr(DEFAULTS, name)) if name not in VALUES else "none"
    both = parsed(flag(name), value, *companions, **{variable(name): default or "else"})
    assert both == by_flag


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_can_be_set_and_unset(name: str) -> None:
    """On by flag or variable, off by the opposite flag, which wins over the variable."""
    assert getattr(parsed(flag(name)), name) is True
    assert getattr(parsed(**{variable(name): "1"}), name) is True
    assert getattr(parsed(f"--no-{flag(name)[2:]}", **{variable(name): "1"}), name) is False
    assert getattr(parsed(flag(name), **{variable(name): "0"}), name) is True
    assert getattr(parsed(), name) is False


def test_an_empty_variable_is_none() -> None:
    """Deployments set variables that they have no value for."""
    assert parsed(**{variable(name): "" for name in NAMES}) == DEFAULTS


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("memory_limit", "2Gi", 2**31),
        ("max_state_bytes", "1.5k", 1500),
        ("page_bytes", "64Ki", 65536),
        ("retention", "7d", 604800.0),
        ("run_timeout", "5m", 300.0),
        ("heartbeat_interval", "250ms", 0.25),
    ],
)
def test_a_number_may_have_a_unit(name: str, text: str, value: float) -> None:
    """As in the client's command, by flag and by variable."""
    for settings in (parsed(flag(name), text), parsed(**{variable(name): text})):
        assert getattr(settings, name) == value
        assert type(getattr(settings, name)) is type(getattr(DEFAULTS, name))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("retention", "1w"),
        ("retention", "2Gi"),
        ("memory_limit", "5m"),
        ("page_bytes", "0Ki"),
        ("workers", "2k"),
    ],
)
def test_a_wrong_unit_is_refused_by_its_flag(name: str, text: str) -> None:
    """A unit of something else, an unknown one, and a value that is too small with its unit."""
    assert flag(name) in refusal(flag(name), text)


def test_the_defaults_have_units() -> None:
    """The help shows them as people write them."""
    shown = {
        name: shown_default(FIELDS[name])
        for name in ("retention", "page_bytes", "drain_timeout", "run_timeout")
    }
    assert shown == {"retention": "7d", "page_bytes": "1Mi", "drain_timeout": "20s", "run_timeout": "0"}


def test_help_is_short_as_well(help_text: str) -> None:
    """`-h` shows the same as `--help`."""
    assert " ".join(served("-h").stdout.split()) == help_text


@pytest.mark.parametrize("value", ["x", "-1", "", " ", "1e", "0x10", "--"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_wrong_number_is_refused_by_its_flag(name: str, value: str) -> None:
    """No number, a negative one: the message names the flag, whichever way the value came."""
    if value == "-1" and name in UNLIMITED_BELOW_ZERO:
        value = "-2"
    assert flag(name) in refusal(f"{flag(name)}={value}")
    if value.strip():
        assert flag(name) in refusal(**{variable(name): value})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_finite_number_is_refused_by_its_flag(name: str, value: str) -> None:
    """Python reads them as numbers, and no timer can be set to them."""
    assert flag(name) in refusal(f"{flag(name)}={value}")


@pytest.mark.parametrize("name", ["workers", "max_notebook_bytes", "page_bytes", "max_streams"])
def test_what_must_be_there_is_at_least_one(name: str) -> None:
    """A server without a worker, or with pages of no bytes, could not do anything."""
    assert flag(name) in refusal(flag(name), "0")
    assert getattr(parsed(flag(name), "1"), name) == 1


def test_what_grpc_cannot_count_is_refused_by_its_flag() -> None:
    """A message has at most 2 GiB, and the server must not fail to start without saying why."""
    assert "--max-notebook-bytes" in refusal("--max-notebook-bytes", str(2**31))


@pytest.mark.parametrize("name", list(CHOICES))
def test_a_choice_is_one_of_those_there_are(name: str) -> None:
    """The message names the flag and what there is."""
    message = refusal(flag(name), "something")
    assert flag(name) in message
    assert CHOICES[name] in message


def test_a_default_notebook_needs_a_root() -> None:
    """A path under nothing is none."""
    message = refusal("--default-notebook", "x.ipynb")
    assert "--default-notebook" in message
    assert "--notebook-root" in message


def test_the_command_itself_refuses_before_it_does_anything(tmp_path: Path) -> None:
    """The real program ends with an exit code and one sentence, and has made no state folder."""
    state = tmp_path / "state"
    wrong = served("--workers", "0", "--state-dir", str(state))
    assert wrong.returncode == EXIT_CODE_OF_A_WRONG_OPTION
    assert "--workers" in wrong.stderr
    open_to_all = served("--state-dir", str(state), NOTEBOOK_RUNNER_LISTEN="0.0.0.0:0")
    assert open_to_all.returncode == 1
    assert "--insecure" in open_to_all.stderr
    for result in (wrong, open_to_all):
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
    assert not state.exists()


def test_an_error_about_a_value_names_flag_and_variable() -> None:
    """So that a typo in a manifest is found there."""
    with pytest.raises(click.ClickException, match=r"'--workers' \(env var: 'NOTEBOOK_RUNNER_WORKERS'\)"):
        parsed(**{variable("workers"): "many"})
