"""Every setting of the server: its meaning, unit and default, in one place.

Each is a flag of `notebook-runner-server` and a variable `NOTEBOOK_RUNNER_…` of the same name; the flag
wins. A size, a time-out or a limit that is not here is a named constant beside what it bounds.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from notebook_runner_server.api.limits import LARGEST_MESSAGE, MESSAGE_OVERHEAD
from notebook_runner_server.api.oidc_options import OidcOptions, is_loopback, is_safe_url
from notebook_runner_server.api.shares_file import MAX_BYTES, MAX_COUNT
from notebook_runner_server.api.tls_files import TlsFiles
from notebook_runner_server.audit import file_path
from notebook_runner_server.confinement.policy import SandboxConfig
from notebook_runner_server.execution.interface import MAX_CONTENT_BYTES, Limits
from notebook_runner_server.execution.options import WarmKernels, warm_kernels
from notebook_runner_server.runs.retention import HistoryLimits
from notebook_runner_server.runs.shares import ShareRule
from notebook_runner_server.transfer.policy import SCHEMES, ParsedUri, UriPolicy, archive_location, policy

ENVIRONMENT_PREFIX = "NOTEBOOK_RUNNER"

PROCESS = "process"
_ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+")
_DASK = re.compile(r"dask(\+tls)?://[^\s/]+:\d+")


def setting(
    default: Any,
    help_text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    off: str = "",
    group: str = "",
    metavar: str | None = None,
) -> Any:
    """Declare a setting.

    Args:
        default: The value if the operator sets none.
        help_text: What the setting does, with its unit.
        minimum: The smallest allowed value.
        maximum: The largest allowed value.
        choices: The allowed values; empty: any.
        off: The value that turns the setting off, which gets a `--no-…` flag of its own.
        group: Begins a group of settings with this title in `--help` and on the settings page.
        metavar: What the value is, in `--help`: FILE, for example. None: its type.
    """
    metadata = {"help": help_text, "minimum": minimum, "maximum": maximum, "choices": choices, "off": off}
    return field(default=default, metadata={**metadata, "group": group, "metavar": metavar})


def limit(what: str, default: float, more: str = "", *, group: str = "") -> Any:
    """Declare a limit that applies to a run if Start sets none."""
    help_text = f"Maximum {what} when Start sets none (0: unlimited). {more}"
    return setting(default, help_text.rstrip(), minimum=0, group=group)


def ceiling(name: str, default: float) -> Any:
    """Declare the maximum that a request may set a limit to."""
    return setting(default, f"Maximum {name} that a request may set (0: unlimited).", minimum=0)


@dataclass(frozen=True)
class Settings:
    """The settings of the server."""

    listen: str = setting(
        "127.0.0.1:50051",
        "Address to serve on, as HOST:PORT; port 0 picks a free port, which is logged.",
        group="Network and access",
        metavar="HOST:PORT",
    )
    insecure: bool = setting(
        False, "Allow an address that other machines can reach without TLS or without authentication."
    )
    tls_cert: str = setting(
        "", "PEM file with the server's certificate chain; reloaded on change.", metavar="FILE"
    )
    tls_key: str = setting(
        "", "PEM file with the certificate's private key; reloaded on change.", metavar="FILE"
    )
    tls_client_ca: str = setting(
        "",
        "PEM file with CA certificates. Requires clients to present a certificate signed by one of them; "
        "reloaded on change.",
        metavar="FILE",
    )
    tokens_file: str = setting(
        "", "File of SHA-256 token hashes. Enables authentication; reloaded on change.", metavar="FILE"
    )
    oidc_issuer: str = setting(
        "",
        "URL of an OpenID Connect issuer. Accepts its JWTs as tokens; needs --oidc-audience and "
        "--oidc-scopes-file.",
        metavar="URL",
    )
    oidc_audience: str = setting("", "Audience (aud) that a JWT must have.")
    oidc_scopes_file: str = setting(
        "",
        "File that gives scopes to names and groups of the issuer, with lines such as: group run data-team; "
        "reloaded on change.",
        metavar="FILE",
    )
    oidc_name_claim: str = setting("sub", "Claim of a JWT with the caller's name.")
    oidc_groups_claim: str = setting("groups", "Claim of a JWT with the caller's groups.")
    oidc_ca: str = setting(
        "",
        "PEM file with CA certificates to trust for the issuer. If unset, those of the system.",
        metavar="FILE",
    )
    oidc_token_file: str = setting(
        "",
        "File with a bearer token to fetch the issuer's keys with, such as the token of a Kubernetes service "
        "account; read each time.",
        metavar="FILE",
    )
    oidc_key_max_age: float = setting(
        86400.0,
        "Seconds to keep using the issuer's last keys while the issuer cannot be reached.",
        minimum=1,
    )
    max_connections: int = setting(4000, "Maximum number of open connections.", minimum=1)
    reflection: str = setting(
        "on",
        "Serve gRPC reflection, for tools such as grpcurl; it requires a token if other calls do.",
        choices=("on", "off"),
    )
    audit_log: str = setting(
        "log",
        "Where to record each Start, Kill, Delete, refused call and change of tokens: log for the server's "
        "log, the path of a file, or off.",
    )
    channelz: bool = setting(False, "Serve channelz, gRPC's built-in diagnostics.")

    owner_max_active: int = setting(
        0,
        "Maximum number of concurrent runs of an owner (0: unlimited). Further ones wait.",
        minimum=0,
        maximum=MAX_COUNT,
        group="Shares",
    )
    owner_max_queued: int = setting(
        -1,
        "Maximum number of runs of an owner that wait (0: none, -1: unlimited).",
        minimum=-1,
        maximum=MAX_COUNT,
    )
    owner_max_history_bytes: int = setting(
        0,
        "Maximum total size of the run folders of an owner's ended runs, in bytes (0: unlimited). While it "
        "is reached, the owner can start no run.",
        minimum=0,
        maximum=MAX_BYTES,
    )
    shares_file: str = setting(
        "",
        "File that sets these limits for names and groups, with lines such as: group active=4 data-team; "
        "reloaded on change.",
        metavar="FILE",
    )

    http_listen: str = setting(
        "",
        "Address to serve the HTTP API on, as HOST:PORT; port 0 picks a free port, which is logged. TLS and "
        "tokens are those of gRPC. If unset, HTTP is not served.",
        group="HTTP",
        metavar="HOST:PORT",
    )
    http_cors_origins: str = setting(
        "",
        "Origins whose pages may call the HTTP API, such as https://app.example.com, separated by commas. "
        "If unset, none but the API's own.",
    )
    http_page: str = setting(
        "on",
        "Serve the page at / of --http-listen, on which people follow, start and kill runs in a browser.",
        choices=("on", "off"),
    )

    webhooks_file: str = setting(
        "",
        "TOML file of the receivers of webhooks, which get a POST for each end of a run, with their secrets; "
        "reloaded on change.",
        group="Webhooks",
        metavar="FILE",
    )

    notify_hosts: str = setting(
        "",
        "Hosts that the notify_uri of a run may name, separated by commas. If unset, no run may have one.",
    )

    notebook_root: str = setting(
        "",
        "Folder that notebook paths are relative to. If unset, runs cannot name a notebook by path.",
        group="Notebooks",
        metavar="FOLDER",
    )
    default_notebook: str = setting(
        "", "Notebook to run when Start names none, as a path under the notebook root.", metavar="PATH"
    )
    default_kernel: str = setting("python3", "Kernelspec to use for notebooks that name none.")
    max_notebook_bytes: int = setting(
        67108864,
        "Maximum size of the notebook of a run, in bytes.",
        minimum=1,
        maximum=LARGEST_MESSAGE - MESSAGE_OVERHEAD,
    )
    max_input_files_bytes: int = setting(
        16777216,
        "Maximum size of all files that a Start sends with its notebook, in bytes (0: none).",
        minimum=0,
        maximum=LARGEST_MESSAGE - MESSAGE_OVERHEAD,
    )

    workers: int = setting(
        1, "Number of worker processes, and thus of concurrent runs.", minimum=1, group="Workers and kernels"
    )
    queue: int = setting(
        0, "Maximum number of runs that wait while all workers are busy (0: none).", minimum=0
    )
    executor: str = setting(
        PROCESS,
        "Where runs execute: process for worker processes on this machine, or the address of a Dask "
        "scheduler: dask://HOST:PORT, with TLS dask+tls://HOST:PORT.",
    )
    cluster_runs: int = setting(
        0, "Maximum number of concurrent runs on a Dask cluster (0: as many as its workers take).", minimum=0
    )
    worker_timeout: float = setting(
        30.0,
        "Seconds of silence between the server and a Dask worker after which the worker ends its run. "
        "The server reports the run as lost 5 seconds later.",
        minimum=1,
    )
    warm_kernels: str = setting(
        "",
        "Warm kernels that each worker keeps ready, as KERNELSPEC=COUNT, separated by commas. "
        "[default: one of the default kernel]",
        off="none",
    )
    preload: str = setting(
        "", "Modules to import into warm Python kernels before a run needs them, separated by commas."
    )
    drain_timeout: float = setting(
        20.0,
        "Seconds that active runs may take to finish when the server shuts down, before they are ended.",
        minimum=0,
    )

    sandbox: str = setting(
        "auto",
        "Isolate notebooks from the memory and files of the server and of other runs: auto uses what the "
        "system supports, require refuses to start without full support.",
        choices=("auto", "require", "off"),
        group="Sandbox",
    )
    kernel_environment: str = setting(
        "",
        "Environment variables of the server to pass to notebooks, in addition to PATH, HOME, LANG and the "
        "like, separated by commas; * matches any characters.",
    )
    writable_folders: str = setting(
        "",
        "Folders that every notebook may read and write, including subfolders, in addition to its own, "
        "separated by commas.",
    )

    run_timeout: float = limit("duration of a run, in seconds,", 0.0, group="Limits of a run")
    max_run_timeout: float = ceiling("run_timeout", 0.0)
    cell_timeout: float = limit("duration of a cell, in seconds,", 0.0)
    max_cell_timeout: float = ceiling("cell_timeout", 0.0)
    output_timeout: float = limit("time a cell may go without output, in seconds,", 0.0)
    max_output_timeout: float = ceiling("output_timeout", 0.0)
    interrupt_grace: float = setting(
        5.0,
        "Seconds that a cell has to clean up after it is interrupted at a time limit, before all processes "
        "of its run are killed (0: kill without interrupting).",
        minimum=0,
    )
    memory_limit: int = limit("memory of all processes of a run, in bytes,", 0)
    max_memory_limit: int = ceiling("memory_limit_bytes", 0)
    limit_address_space: bool = setting(
        False,
        "Also limit the kernel's address space to the memory limit, so that an allocation that is too large "
        "raises MemoryError in the notebook. Breaks programs that reserve much more memory than they use.",
    )
    cell_output_limit: int = limit("output of a cell, in bytes,", 268435456, "Further output is cut.")
    max_cell_output_limit: int = ceiling("cell_output_limit_bytes", 0)
    run_output_limit: int = limit("output of a run, in bytes,", 1073741824, "Further output is cut.")
    max_run_output_limit: int = ceiling("run_output_limit_bytes", 0)
    process_limit: int = limit("number of concurrent processes of a run", 0)
    max_process_limit: int = ceiling("process_limit", 0)

    state_dir: str = setting(
        "",
        "Folder for run history and results. [default: notebook-runner in $XDG_STATE_HOME or ~/.local/state]",
        group="History",
        metavar="FOLDER",
    )
    store: str = setting(
        "",
        "PostgreSQL database for run history and results, as postgresql://USER@HOST/DATABASE; several "
        "servers may share it. A password goes into the environment variable or a file of libpq. If unset, "
        "SQLite in the state folder.",
    )
    store_listen: str = setting(
        "",
        "URL of the database of --store without a pooler, for the hints between servers: set it if --store "
        "leads to a pooler that gives each transaction another connection. If unset, a server behind a "
        "pooler looks once a second for what other servers have written.",
    )
    replica_timeout: float = setting(
        15.0,
        "Time without a renewal of the server's lease in --store after which other servers take over its "
        "runs, in seconds. It is renewed once a second or more often. A server that cannot renew it ends its "
        "runs and exits before that. Use the same value for all servers.",
        minimum=2,
    )
    store_files_bytes: int = setting(
        16777216,
        "Maximum size of the files that the notebook of an ended run has left, to keep in --store, in bytes. "
        "Larger ones are kept in --store-files-uri, or else not at all.",
        minimum=0,
        maximum=536870912,
    )
    store_files_uri: str = setting(
        "",
        "Object store or shared folder for the files of ended runs that are too large for --store, as "
        "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, abfs://CONTAINER/PREFIX or file:///FOLDER. All servers need "
        "the same one. Files that Output would not return are not kept.",
        metavar="URI",
    )
    retention: float = setting(
        604800.0, "Seconds to keep a run after it ends when Start sets no retention.", minimum=0
    )
    max_runs: int = setting(0, "Maximum number of ended runs to keep (0: unlimited).", minimum=0)
    max_state_bytes: int = setting(
        0, "Maximum total size of the folders of ended runs, in bytes (0: unlimited).", minimum=0
    )
    max_artefact_bytes: int = setting(
        1073741824,
        "Maximum size of the cache of artefacts that Output creates, in bytes; not part of the runs' size. "
        "The least recently read are removed first, and created again on request.",
        minimum=0,
    )

    max_streams: int = setting(
        1000,
        "Maximum number of open Progress and Watch streams together.",
        minimum=1,
        group="Progress and results",
    )
    heartbeat_interval: float = setting(
        15.0,
        "Seconds without a message after which a Progress or Watch stream sends a heartbeat.",
        minimum=0.01,
    )
    page_bytes: int = setting(1048576, "Page size of Output when the request sets none, in bytes.", minimum=1)
    max_page_bytes: int = setting(
        3145728,
        "Maximum page size of Output, in bytes. Keep it below 4 MiB, the message limit of most clients.",
        minimum=1,
    )
    display_data_max_bytes: int = setting(
        262144,
        "Maximum size of a representation of rich data whose content Progress can return, in bytes; larger "
        "ones are only in the notebook (0: none).",
        minimum=0,
        maximum=MAX_CONTENT_BYTES,
    )
    max_files_bytes: int = setting(
        268435456, "Maximum size of a run folder that Output returns as a zip, in bytes.", minimum=0
    )
    export_formats: str = setting(
        "html,markdown,script,python,slides,pdf",
        "Formats of Output, separated by commas: html-interactive, which runs scripts in the reader's "
        "browser, and nbconvert exporters; pdf needs Chromium, some others need pandoc.",
    )
    export_timeout: float = setting(120.0, "Maximum duration of an export, in seconds.", minimum=1)

    uri_schemes: str = setting(
        "",
        f"URI schemes to allow for notebooks and results, separated by commas, from {', '.join(SCHEMES)}. "
        "If unset, URIs are refused.",
        group="URIs",
    )
    uri_hosts: str = setting(
        "",
        "Hosts, buckets and containers to allow in URIs, separated by commas. If unset, all are allowed, "
        "except loopback, link-local and cloud-metadata addresses in http and https URIs.",
    )
    uri_folders: str = setting("", "Folders that file URIs may point into, separated by commas.")
    uri_timeout: float = setting(60.0, "Maximum time to read or write a URI, in seconds.", minimum=0.1)

    metrics_listen: str = setting(
        "",
        "Address to serve Prometheus metrics on, as HOST:PORT, without TLS; port 0 picks a free port. "
        "If unset, metrics are not served.",
        group="Observability",
        metavar="HOST:PORT",
    )
    trace_endpoint: str = setting(
        "",
        "URL of an OTLP collector to send traces to, over gRPC. [default: $OTEL_EXPORTER_OTLP_ENDPOINT]",
        metavar="URL",
    )
    log_format: str = setting(
        "auto",
        "Format of the log on stderr: json, console for people, or auto, which is console on a terminal and "
        "json otherwise.",
        choices=("auto", "json", "console"),
    )
    log_level: str = setting(
        "info", "Minimum severity to log.", choices=("debug", "info", "warning", "error")
    )

    unchecked: InitVar[bool] = False

    def __post_init__(self, unchecked: bool) -> None:
        """Refuse invalid settings, unless `unchecked`, where `checks.check` reports them with other errors.

        Raises:
            ValueError: A setting is invalid; the message names it.
        """
        if not unchecked and (errors := self.errors()):
            raise ValueError("\n".join(errors))

    def errors(self) -> list[str]:
        """Return the errors that can be found without looking at this machine, a sentence each."""
        found = [*self._tls_errors(), *self._oidc_errors(), *self._listen_errors(), *self._store_errors()]
        if self.trace_endpoint and not self.trace_endpoint.startswith(("http://", "https://")):
            found.append(
                f"--trace-endpoint must be an http:// or https:// URL (got {self.trace_endpoint!r})."
            )
        if self.executor != PROCESS and not _DASK.fullmatch(self.executor):
            found.append(
                "--executor must be process, dask://HOST:PORT or dask+tls://HOST:PORT "
                f"(got {self.executor!r})."
            )
        if self.default_notebook and not self.notebook_root:
            found.append("--default-notebook needs --notebook-root.")
        if self.store_files_uri and not self.store:
            found.append("--store-files-uri needs --store: without it, files stay in the state folder.")
        if not self.audit_log:
            found.append("--audit-log must be log, off or the path of a file (got nothing).")
        parsers: list[Callable[[], object]] = [
            lambda: self.metrics_address,
            lambda: self.cors_origins,
            lambda: self.warm,
            lambda: self.archive_location,
            lambda: self.uris,
        ]
        for parse in parsers:
            try:
                parse()
            except ValueError as error:
                found.append(str(error))
        return found

    def _store_errors(self) -> Iterator[str]:
        for flag, url in (("--store", self.store), ("--store-listen", self.store_listen)):
            if url and not url.startswith(("postgresql://", "postgres://")):
                yield f"{flag} must be a URL such as postgresql://USER@HOST/DATABASE."
        if self.store_listen and not self.store:
            yield "--store-listen needs --store."
        if self.store and self.executor != PROCESS:
            yield "--store needs --executor process: runs on a cluster need the state folder."

    def _tls_errors(self) -> Iterator[str]:
        if bool(self.tls_cert) != bool(self.tls_key):
            missing_flag = "--tls-key" if self.tls_cert else "--tls-cert"
            yield f"--tls-cert and --tls-key must be set together ({missing_flag} is missing)."
        if self.tls_client_ca and not self.tls_cert:
            yield "--tls-client-ca needs --tls-cert and --tls-key."

    def _oidc_errors(self) -> Iterator[str]:
        if not self.oidc_issuer:
            for name in ("oidc_audience", "oidc_scopes_file", "oidc_ca", "oidc_token_file"):
                if getattr(self, name):
                    yield f"--{name.replace('_', '-')} needs --oidc-issuer."
            return
        if not is_safe_url(self.oidc_issuer):
            form = "an https:// URL, or http:// on this machine"
            yield f"--oidc-issuer must be {form} (got {self.oidc_issuer!r})."
        for name in ("oidc_audience", "oidc_scopes_file", "oidc_name_claim"):
            if not getattr(self, name):
                yield f"--oidc-issuer needs --{name.replace('_', '-')}."

    def _listen_errors(self) -> Iterator[str]:
        """Refuse addresses that other machines can reach without TLS and authentication."""
        yield from self._address_errors("--listen", self.listen)
        if not self.http_listen:
            if self.http_cors_origins:
                yield "--http-cors-origins needs --http-listen."
            return
        yield from self._address_errors("--http-listen", self.http_listen)
        if self.tls_client_ca and not self.has_token_authentication:
            yield (
                "--http-listen cannot tell callers apart by --tls-client-ca alone. Add --tokens-file or "
                "--oidc-issuer."
            )

    def _address_errors(self, flag: str, address: str) -> Iterator[str]:
        try:
            host, _ = _address(flag, address)
        except ValueError as error:
            yield str(error)
            return
        missing = []
        if not self.tls_cert:
            missing.append("TLS (--tls-cert and --tls-key)")
        if not (self.has_token_authentication or self.tls_client_ca):
            missing.append("authentication (--tokens-file, --oidc-issuer or --tls-client-ca)")
        if missing and not self.insecure and not is_loopback(host):
            yield (
                f"{flag} {address}: anyone who can reach this address could run code. "
                f"Add {' and '.join(missing)}, listen on 127.0.0.1, or allow it with --insecure."
            )

    @property
    def has_token_authentication(self) -> bool:
        """Whether callers need a token or a JWT."""
        return bool(self.tokens_file or self.oidc_issuer)

    @property
    def http_address(self) -> tuple[str, int]:
        """Host and port of the HTTP API; empty and 0: none.

        Raises:
            ValueError: The address is invalid.
        """
        return _address("--http-listen", self.http_listen) if self.http_listen else ("", 0)

    @property
    def cors_origins(self) -> list[str]:
        """The origins whose pages may call the HTTP API.

        Raises:
            ValueError: One of them is not an origin.
        """
        found = _names(self.http_cors_origins)
        for one in found:
            if not _ORIGIN.fullmatch(one):
                form = "origins such as https://app.example.com or http://localhost:3000"
                raise ValueError(f"--http-cors-origins must be {form} (got {one!r}).")
        return found

    @property
    def state_folder(self) -> Path:
        """The folder for history and results."""
        # Absolute, because workers and kernels have other working folders.
        if self.state_dir:
            return Path(self.state_dir).resolve()
        base = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
        return (Path(base) / "notebook-runner").resolve()

    @property
    def metrics_address(self) -> tuple[str, int]:
        """Host and port of the metrics; empty and 0: none.

        Raises:
            ValueError: The address is invalid.
        """
        return _address("--metrics-listen", self.metrics_listen) if self.metrics_listen else ("", 0)

    @property
    def tls_files(self) -> TlsFiles | None:
        """The TLS files; None: no TLS."""
        if not self.tls_cert:
            return None
        client_ca = Path(self.tls_client_ca) if self.tls_client_ca else None
        return TlsFiles(Path(self.tls_cert), Path(self.tls_key), client_ca)

    @property
    def oidc_options(self) -> OidcOptions | None:
        """The issuer of JWTs; None: they are not accepted."""
        if not self.oidc_issuer:
            return None
        return OidcOptions(
            self.oidc_issuer,
            self.oidc_audience,
            self.oidc_name_claim,
            self.oidc_groups_claim,
            Path(self.oidc_scopes_file),
            Path(self.oidc_ca) if self.oidc_ca else None,
            Path(self.oidc_token_file) if self.oidc_token_file else None,
            self.oidc_key_max_age,
        )

    @property
    def warm(self) -> WarmKernels:
        """The kernels that each worker keeps ready.

        Raises:
            ValueError: The setting is invalid.
        """
        if self.warm_kernels == "none":
            return WarmKernels()
        kernels = _names(self.warm_kernels or f"{self.default_kernel}=1")
        return warm_kernels(kernels, _names(self.preload), required=bool(self.warm_kernels))

    @property
    def uris(self) -> UriPolicy:
        """The policy for URIs in requests.

        Raises:
            ValueError: The settings are invalid.
        """
        allowed = policy(_names(self.uri_schemes), _names(self.uri_hosts), _names(self.uri_folders))
        try:
            return replace(allowed, reserved=self.archive_location)
        except ValueError:
            # `errors` reports it by itself.
            return allowed

    @property
    def archive_location(self) -> ParsedUri | None:
        """Where large files of ended runs are; None: nowhere.

        Raises:
            ValueError: The setting is invalid.
        """
        return archive_location(self.store_files_uri) if self.store_files_uri else None

    @property
    def archive_folder(self) -> Path | None:
        """The shared folder for large files of ended runs; None: they are not in a folder."""
        with contextlib.suppress(ValueError):
            if (location := self.archive_location) is not None and location.scheme == "file":
                return Path(location.path)
        return None

    @property
    def notified_hosts(self) -> list[str]:
        """The hosts that runs may notify, in the form of those of URIs."""
        return [name.lower().strip("[]") for name in _names(self.notify_hosts)]

    @property
    def sandbox_options(self) -> SandboxConfig:
        """The configuration of the sandbox."""
        return SandboxConfig(
            self.sandbox,
            kernel_environment=tuple(_names(self.kernel_environment)),
            writable=tuple(Path(one).expanduser().absolute() for one in _names(self.writable_folders)),
            root=Path(self.notebook_root).resolve() if self.notebook_root else None,
            hidden=(
                *(
                    Path(one).absolute()
                    for one in (self.tokens_file, self.tls_key, self.oidc_token_file, self.webhooks_file)
                    if one
                ),
                *(_libpq_files() if self.store else ()),
                *(() if self.archive_folder is None else (self.archive_folder,)),
                self.export_folder,
            ),
            logs=() if self.audit_file is None else (self.audit_file,),
        )

    @property
    def audit_file(self) -> Path | None:
        """The file of the audit log; None: there is none."""
        return file_path(self.audit_log)

    @property
    def export_folder(self) -> Path:
        """The link to the folder for temporary files of exports, which hold notebooks of all runs."""
        return self.state_folder / "exports"

    @property
    def http_folder(self) -> Path:
        """The link to the folder with the private socket of the HTTP listener."""
        return self.state_folder / "http"

    @property
    def history_limits(self) -> HistoryLimits:
        """The limits of the history."""
        return HistoryLimits(runs=self.max_runs, total_bytes=self.max_state_bytes)

    @property
    def default_share(self) -> ShareRule:
        """The share of an owner for which the shares file sets nothing else."""
        queued = self.owner_max_queued
        return ShareRule(
            self.owner_max_active or None,
            None if queued < 0 else queued,
            self.owner_max_history_bytes or None,
        )

    @property
    def limits(self) -> Limits:
        """The limits of a run if Start sets none."""
        return self._limits("")

    @property
    def ceilings(self) -> Limits:
        """The maximum limits that a request may set."""
        return self._limits("max_")

    def _limits(self, prefix: str) -> Limits:
        return Limits(
            run_timeout=getattr(self, f"{prefix}run_timeout"),
            cell_timeout=getattr(self, f"{prefix}cell_timeout"),
            output_timeout=getattr(self, f"{prefix}output_timeout"),
            memory_bytes=getattr(self, f"{prefix}memory_limit"),
            cell_output_bytes=getattr(self, f"{prefix}cell_output_limit"),
            run_output_bytes=getattr(self, f"{prefix}run_output_limit"),
            processes=getattr(self, f"{prefix}process_limit"),
        )

    @property
    def formats(self) -> list[str]:
        """The exporters that Output may use."""
        return _names(self.export_formats)


def limit_names() -> list[str]:
    """Return the names of the settings that have a ceiling, named `max_` and the setting."""
    names = [one.name for one in fields(Settings)]
    return [name for name in names if f"max_{name}" in names]


def _address(flag: str, value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:  # noqa: PLR2004 - the largest port
        raise ValueError(f"{flag} must be HOST:PORT (got {value!r}).")
    return host.strip("[]"), int(port)


def _libpq_files() -> list[Path]:
    """Return the files from which libpq may read the password of --store."""
    named = {"PGPASSFILE": "~/.pgpass", "PGSERVICEFILE": "~/.pg_service.conf"}
    paths = [Path(os.environ.get(name) or usual).expanduser() for name, usual in named.items()]
    return [path.absolute() for path in paths if path.exists()]


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]
