"""The settings: each is a flag and a variable, documented, with a default, and wrong values are refused."""

import dataclasses
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from support.calls import duration, inline, perform
from support.server import PROGRAM, Server
from support.warm import ON, ready

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.config import ENVIRONMENT_PREFIX, Settings
from notebook_runner_server.execution.options import WarmKernels
from notebook_runner_server.flags import options

NAMES = [one.name for one in dataclasses.fields(Settings)]
DEFAULTS = Settings()
NUMBERS = [name for name in NAMES if type(getattr(DEFAULTS, name)) in (int, float)]
FLOATS = [name for name in NUMBERS if isinstance(getattr(DEFAULTS, name), float)]
SWITCHES = [name for name in NAMES if isinstance(getattr(DEFAULTS, name), bool)]
TEXTS = [name for name in NAMES if isinstance(getattr(DEFAULTS, name), str)]
CHOICES = {
    "sandbox": "require",
    "executor": "process",
    "reflection": "off",
    "log_format": "console",
    "log_level": "debug",
}
VALUES = {
    "warm_kernels": "ir=2,python3=1",
    "uri_schemes": "https,s3",
    "metrics_listen": "[::1]:7",
    "trace_endpoint": "http://[::1]:7",
}
# Settings that only make sense with another one.
COMPANIONS = {
    "default_notebook": ["--notebook-root", "."],
    "tls_cert": ["--tls-key", "key.pem"],
    "tls_key": ["--tls-cert", "cert.pem"],
    "tls_client_ca": ["--tls-cert", "cert.pem", "--tls-key", "key.pem"],
}
EXIT_CODE_OF_A_WRONG_OPTION = 2


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The variable of a setting."""
    return f"{ENVIRONMENT_PREFIX}_{name.upper()}"


def clean(**variables: str) -> dict[str, str]:
    """An environment in which only these settings are variables."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
    return {**inherited, **variables}


def parsed(*arguments: str, **variables: str) -> Settings:
    """The settings that a command line and an environment make, as the server's command parses them."""
    made: list[Settings] = []

    def keep(**values: Any) -> None:
        made.append(Settings(**values))

    context = {"auto_envvar_prefix": ENVIRONMENT_PREFIX}
    command = click.Command("server", callback=keep, params=list(options()), context_settings=context)
    for name in os.environ:
        if name.startswith(ENVIRONMENT_PREFIX):
            variables.setdefault(name, "")
    result = CliRunner().invoke(command, list(arguments), env=variables, catch_exceptions=False)
    if result.exit_code:
        raise click.ClickException(result.output)
    return made[0]


def served(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the real command does with arguments that it must refuse, or that only print."""
    return subprocess.run(
        [str(PROGRAM), *arguments],
        env=clean(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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
    _, found, rest = help_text.partition(f" {flag(name)}")
    assert found
    text = re.split(r" --[a-z]", rest, maxsplit=1)[0] if name not in SWITCHES else rest[:600]
    assert f"env var: {variable(name)}" in text
    about = {one.name: one.metadata["help"] for one in dataclasses.fields(Settings)}[name]
    assert " ".join(about.split()) in rest
    if name in NUMBERS:
        assert f"default: {getattr(DEFAULTS, name)}" in text
        units = r"second|byte|0: |at once|may wait|processes|open|runs"
        assert re.search(units, about, re.IGNORECASE), about


def test_every_option_of_the_command_is_a_setting(help_text: str) -> None:
    """Nothing can be set that is not among the settings."""
    flags = set(re.findall(r" (--[a-z][a-z-]*)", help_text))
    known = {flag(name) for name in NAMES} | {f"--no-{flag(name)[2:]}" for name in SWITCHES}
    # Words of the help texts that name other settings are among them.
    assert flags - known == {"--help", "--version", "--no-warm-kernels", "--new-token"}


def test_warm_kernels_can_be_told_off() -> None:
    """By a flag of their own, which is the last word."""
    assert parsed("--no-warm-kernels").warm.counts == {}
    assert parsed("--warm-kernels", "a=1", "--no-warm-kernels").warm.counts == {}
    assert parsed(NOTEBOOK_RUNNER_WARM_KERNELS="none").warm.counts == {}


def test_warm_kernels_are_counted_by_kernelspec() -> None:
    """One of the default kernel, where nothing is said."""
    assert parsed("--default-kernel", "ir").warm == WarmKernels({"ir": 1})
    asked = parsed("--warm-kernels", "ir=2, python3=0", "--preload", "numpy, a.b")
    assert asked.warm == WarmKernels({"ir": 2, "python3": 0}, ("numpy", "a.b"), required=True)


@pytest.mark.parametrize(
    "said", ["python3", "python3=", "=1", "python3=-1", "python3=1.5", "python3=101", "a=1,b"]
)
def test_wrong_counts_are_refused(said: str) -> None:
    """With a sentence that says how it is said."""
    with pytest.raises(ValueError, match="--warm-kernels is KERNELSPEC=COUNT"):
        Settings(warm_kernels=said)


@pytest.mark.parametrize("said", ["a-b", "a b", "1a", "a..b", "--flag"])
def test_what_is_no_module_is_not_preloaded(said: str) -> None:
    """A name reaches another program's command line."""
    with pytest.raises(ValueError, match="--preload names modules"):
        Settings(preload=said)


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


def refusal(*arguments: str, **variables: str) -> str:
    """Why settings are refused."""
    with pytest.raises((click.ClickException, ValueError)) as caught:
        parsed(*arguments, **variables)
    return str(caught.value)


@pytest.mark.parametrize("value", ["x", "-1", "", " ", "1e", "0x10", "--"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_wrong_number_is_refused_by_its_flag(name: str, value: str) -> None:
    """No number, a negative one: the message names the flag, whichever way the value came."""
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


@pytest.mark.parametrize(
    "listen",
    [
        *("", "localhost", ":1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x"),
        *("127.0.0.1:65536", "x:-1", "127.0.0.1:²", "127.0.0.1:1:"),
    ],
)
def test_a_wrong_address_is_refused_by_its_flag(listen: str) -> None:
    """An address is HOST:PORT, with a port that there is."""
    assert "--listen" in refusal("--listen", listen)
    if listen:
        assert "--metrics-listen is HOST:PORT" in refusal("--metrics-listen", listen)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "grpc://127.0.0.1:4317", " "])
def test_a_wrong_endpoint_is_refused_by_its_flag(endpoint: str) -> None:
    """A collector is named by a URL, which says whether it has TLS."""
    assert "--trace-endpoint is http:// or https://" in refusal("--trace-endpoint", endpoint)


LOOPBACK = ["127.0.0.1:0", "127.1.2.3:1", "localhost:65535", "[::1]:50051"]
REACHABLE = ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "*:1", "[::ffff:10.0.0.1]:1"]
REACHABLE += ["example.com:1", "127.0.0.1.example.com:1"]


@pytest.mark.parametrize("listen", LOOPBACK)
def test_a_loopback_address_needs_no_permission(listen: str) -> None:
    """Only this machine can reach it."""
    assert parsed("--listen", listen).listen == listen


@pytest.mark.parametrize("listen", REACHABLE)
def test_an_address_that_others_reach_needs_permission(listen: str) -> None:
    """Anyone could run code: the operator has to say so."""
    message = refusal("--listen", listen)
    assert "--listen" in message
    assert "--insecure" in message
    assert parsed("--listen", listen, "--insecure").listen == listen


@pytest.mark.parametrize("listen", REACHABLE)
@pytest.mark.parametrize("asking", ["--tokens-file", "--tls-client-ca"])
def test_an_address_that_others_reach_is_served_when_it_is_secured(listen: str, asking: str) -> None:
    """TLS and a way to tell who calls, both; the message names what is missing, and nothing else."""
    tls = ["--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    assert parsed("--listen", listen, *tls, asking, "x").listen == listen
    message = refusal("--listen", listen, *tls)
    assert "--tokens-file or --tls-client-ca" in message
    assert "--tls-cert" not in message
    message = refusal("--listen", listen, "--tokens-file", "x")
    assert "--tls-cert and --tls-key" in message
    assert "--tokens-file" not in message


def test_half_of_tls_is_refused() -> None:
    """A certificate needs its key, and authorities of callers need a certificate of the server's."""
    for half in ("--tls-cert", "--tls-key"):
        assert "--tls-cert and --tls-key go together" in refusal(half, "x")
    assert "needs --tls-cert and --tls-key" in refusal("--tls-client-ca", "x")


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


def test_the_state_folder_is_where_the_platform_has_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG's folder where it is set, the one in the home folder otherwise, and the flag before both."""
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert Settings().state_folder == Path("/xdg/notebook-runner")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Settings().state_folder == Path("/home/somebody/.local/state/notebook-runner")
    assert Settings(state_dir="/x").state_folder == Path("/x")


def test_the_state_folder_may_be_relative(tmp_path: Path) -> None:
    """It is where the server was started, for its workers and kernels as well, wherever they work."""
    with Server(Path("state"), *ON, "--log-level", "debug", folder=tmp_path) as server:
        ready(server)
        run, _ = perform(server.stub, inline("print(1)", run_timeout=duration(10)))
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert (tmp_path / "state" / "runs" / run.run_id).is_dir()


def test_formats_are_separated_by_commas() -> None:
    """Blanks and empty names between them do not count."""
    assert Settings(export_formats=" html, ,markdown,").formats == ["html", "markdown"]


def test_every_limit_reaches_the_run() -> None:
    """Each pair of default and ceiling arrives in the limit of its name."""
    pairs = ["run_timeout", "cell_timeout", "output_timeout", "memory_limit", "cell_output_limit"]
    pairs += ["run_output_limit", "process_limit"]
    values: dict[str, Any] = {name: number for number, name in enumerate(pairs, start=1)}
    ceilings: dict[str, Any] = {f"max_{name}": number * 10 for name, number in values.items()}
    settings = Settings(**values, **ceilings)
    assert dataclasses.astuple(settings.limits) == (1, 2, 3, 4, 5, 6, 7)
    assert dataclasses.astuple(settings.ceilings) == (10, 20, 30, 40, 50, 60, 70)
    bounds = Settings(max_runs=3, max_state_bytes=4).bounds
    assert (bounds.runs, bounds.total_bytes) == (3, 4)


def test_files_with_secrets_are_hidden_from_notebooks(tmp_path: Path) -> None:
    """The tokens file and the key of the certificate are among what no kernel may read."""
    tokens, key = tmp_path / "tokens", tmp_path / "key.pem"
    settings = Settings(tokens_file=str(tokens), tls_cert=str(tmp_path / "cert.pem"), tls_key=str(key))
    assert set(settings.sandbox_options.hidden) == {tokens, key}
    assert Settings().sandbox_options.hidden == ()
