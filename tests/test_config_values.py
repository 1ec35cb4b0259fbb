"""What values of settings mean: addresses, TLS, warm kernels, folders and limits."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.config import Settings
from notebook_runner_server.execution.options import WarmKernels
from notebook_runner_server.runs.shares import ShareRule
from tests.support.calls import inline, perform
from tests.support.server import Server
from tests.support.settings import parsed, refusal
from tests.support.warm import ON, ready

pytestmark = pytest.mark.e2e


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
    with pytest.raises(ValueError, match="--warm-kernels: expected KERNELSPEC=COUNT"):
        Settings(warm_kernels=said)


@pytest.mark.parametrize("said", ["a-b", "a b", "1a", "a..b", "--flag"])
def test_what_is_no_module_is_not_preloaded(said: str) -> None:
    """A name reaches another program's command line."""
    with pytest.raises(ValueError, match="is not a valid module name"):
        Settings(preload=said)


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
        assert "--metrics-listen must be HOST:PORT" in refusal("--metrics-listen", listen)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "grpc://127.0.0.1:4317", " "])
def test_a_wrong_endpoint_is_refused_by_its_flag(endpoint: str) -> None:
    """A collector is named by a URL, which says whether it has TLS."""
    assert "--trace-endpoint must be an http:// or https:// URL" in refusal("--trace-endpoint", endpoint)


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


OIDC = ["--oidc-issuer", "https://x", "--oidc-audience", "x", "--oidc-scopes-file", "x"]
ASKING = [["--tokens-file", "x"], ["--tls-client-ca", "x"], OIDC]


@pytest.mark.parametrize("listen", REACHABLE)
@pytest.mark.parametrize("asking", ASKING)
def test_an_address_that_others_reach_is_served_when_it_is_secured(listen: str, asking: list[str]) -> None:
    """TLS and a way to tell who calls, both; the message names what is missing, and nothing else."""
    tls = ["--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    assert parsed("--listen", listen, *tls, *asking).listen == listen
    message = refusal("--listen", listen, *tls)
    assert "--tokens-file, --oidc-issuer or --tls-client-ca" in message
    assert "--tls-cert" not in message
    message = refusal("--listen", listen, "--tokens-file", "x")
    assert "--tls-cert and --tls-key" in message
    assert "--tokens-file" not in message


def test_half_of_an_issuer_is_refused() -> None:
    """An issuer needs an audience and scopes, and is asked over https; its settings need an issuer."""
    for flag in ("--oidc-audience", "--oidc-scopes-file", "--oidc-ca", "--oidc-token-file"):
        assert f"{flag} needs --oidc-issuer." in refusal(flag, "x")
    for at in (2, 4):
        assert f"--oidc-issuer needs {OIDC[at]}." in refusal(*OIDC[:at], *OIDC[at + 2 :])
    for url in ("http://issuer.example", "issuer.example", "https://"):
        assert "--oidc-issuer must be an https:// URL" in refusal("--oidc-issuer", url, *OIDC[2:])
    assert parsed("--oidc-issuer", "http://127.0.0.1:1", *OIDC[2:]).oidc_options is not None


def test_half_of_tls_is_refused() -> None:
    """A certificate needs its key, and authorities of callers need a certificate of the server's."""
    for half, other in (("--tls-cert", "--tls-key"), ("--tls-key", "--tls-cert")):
        assert f"--tls-cert and --tls-key must be set together ({other} is missing)." in refusal(half, "x")
    assert "needs --tls-cert and --tls-key" in refusal("--tls-client-ca", "x")


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
        run, _ = perform(server.stub, inline("print(1)"))
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
    bounds = Settings(max_runs=3, max_state_bytes=4).history_limits
    assert (bounds.runs, bounds.total_bytes) == (3, 4)


def test_files_with_secrets_are_hidden_from_notebooks(tmp_path: Path) -> None:
    """No kernel may read tokens, the certificate's key, secrets of webhooks, and what is being exported."""
    tokens, key, webhooks = tmp_path / "tokens", tmp_path / "key.pem", tmp_path / "webhooks.toml"
    pod = tmp_path / "pod"
    issuer: dict[str, Any] = {"oidc_issuer": "https://x", "oidc_audience": "x", "oidc_scopes_file": "x"}
    settings = Settings(
        tokens_file=str(tokens),
        tls_cert=str(tmp_path / "cert.pem"),
        tls_key=str(key),
        oidc_token_file=str(pod),
        webhooks_file=str(webhooks),
        **issuer,
    )
    assert set(settings.sandbox_options.hidden) == {tokens, key, pod, webhooks, settings.export_folder}
    assert Settings().sandbox_options.hidden == (Settings().export_folder,)


def test_the_default_share() -> None:
    """No limit by default; each setting has a value that lifts its limit, and no queued run is one."""
    assert Settings().default_share == ShareRule()
    found = parsed(
        *("--owner-max-active", "2", "--owner-max-queued", "0", "--owner-max-history-bytes", "2Gi")
    ).default_share
    assert found == ShareRule(2, 0, 2**31)
    lifted = parsed(
        *("--owner-max-active=0", "--owner-max-queued=-1", "--owner-max-history-bytes=0")
    ).default_share
    assert lifted == ShareRule()


@pytest.mark.parametrize(
    ("origins", "is_valid"),
    [
        ("https://app.example", True),
        ("https://app.example:8443, http://[::1]:3000", True),
        ("*", False),
        ("null", False),
        ("app.example", False),
        ("https://app.example/", False),
        ("https://app.example/page", False),
    ],
)
def test_origins_of_pages(origins: str, is_valid: bool) -> None:
    """An origin is a scheme and a host; there is none that stands for all."""
    settings: dict[str, Any] = {"http_listen": "127.0.0.1:0", "http_cors_origins": origins}
    if is_valid:
        assert Settings(**settings).cors_origins
        return
    with pytest.raises(ValueError, match="--http-cors-origins must be origins"):
        Settings(**settings)


def test_http_needs_more_than_certificates() -> None:
    """HTTP is refused where certificates are the only authentication, and origins where there is no HTTP."""
    tls: dict[str, Any] = {
        "tls_cert": "c",
        "tls_key": "k",
        "tls_client_ca": "a",
        "http_listen": "127.0.0.1:0",
    }
    with pytest.raises(ValueError, match="--http-listen cannot tell callers apart by --tls-client-ca alone"):
        Settings(**tls)
    assert Settings(**tls, tokens_file="t").has_token_authentication
    with pytest.raises(ValueError, match="--http-cors-origins needs --http-listen"):
        Settings(http_cors_origins="https://app.example")
