"""Every setting of the server: its meaning, unit and default, in one place.

Each is a flag of `notebook-runner-server` and a variable `NOTEBOOK_RUNNER_…` of the same name; the flag
wins. A size, a time-out or a limit that is not here is a named constant beside what it bounds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import InitVar, dataclass, fields
from pathlib import Path

from notebook_runner_server import executors, exposure
from notebook_runner_server.api.certificates import TlsFiles
from notebook_runner_server.api.server import MESSAGE_OVERHEAD
from notebook_runner_server.execution.confinement.sandbox import SandboxConfig
from notebook_runner_server.execution.interface import Limits
from notebook_runner_server.execution.options import WarmKernels, warm_kernels
from notebook_runner_server.runs.retention import HistoryLimits
from notebook_runner_server.setting import ceiling, limit, setting
from notebook_runner_server.transfer.policy import SCHEMES, UriPolicy, policy

ENVIRONMENT_PREFIX = "NOTEBOOK_RUNNER"

# gRPC counts the bytes of a message in an int32.
_LARGEST_MESSAGE = 2**31 - 1


def _state_dir() -> str:
    base = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return str(Path(base) / "notebook-runner")


@dataclass(frozen=True)
class Settings:
    """What the operator decides."""

    listen: str = setting(
        "127.0.0.1:50051", "HOST:PORT to serve on; port 0 takes a free one, which the log tells."
    )
    insecure: bool = setting(
        False, "Serve on an address that others can reach without TLS, or without asking who calls."
    )
    tls_cert: str = setting("", "PEM file of the server's certificate and its chain, read again on change.")
    tls_key: str = setting("", "PEM file of the certificate's private key, read again on change.")
    tls_client_ca: str = setting(
        "", "PEM file of authorities: callers must have a certificate of one of them; read again on change."
    )
    tokens_file: str = setting(
        "", "File of the sums of tokens, one of which each call must have; it is read again on change."
    )
    reflection: str = setting(
        "on", "Serve reflection, for grpcurl; with a tokens file it needs a token.", choices=("on", "off")
    )
    max_connections: int = setting(4000, "Connections that may be open at once.", minimum=1)
    state_dir: str = setting(
        "", "Folder for history and results. [default: notebook-runner in $XDG_STATE_HOME or ~/.local/state]"
    )
    notebook_root: str = setting("", "Folder that notebook paths are relative to; none: no paths.")
    default_notebook: str = setting("", "Path under the notebook root that an empty Start runs; none: none.")
    default_kernel: str = setting("python3", "Kernelspec for notebooks that name none.")
    workers: int = setting(1, "Worker processes, and so runs at once.", minimum=1)
    queue: int = setting(0, "Runs that may wait when all workers are busy.", minimum=0)
    executor: str = setting(
        executors.PROCESS,
        "What executes runs: process for worker processes of this machine, or the scheduler of a Dask "
        "cluster as dask://HOST:PORT, with TLS dask+tls://HOST:PORT.",
    )
    cluster_runs: int = setting(
        0, "Most runs at once on a Dask cluster; 0: as many as its workers take.", minimum=0
    )
    worker_timeout: float = setting(
        30.0,
        "Seconds without a word between server and Dask worker after which the worker ends its run, and, "
        "5 seconds later, the server says that it is lost.",
        minimum=1,
    )
    warm_kernels: str = setting(
        "",
        "Kernels that each worker keeps started for the next run, as KERNELSPEC=COUNT, separated by commas. "
        "[default: one of the default kernel]",
        off="none",
    )
    preload: str = setting(
        "", "Modules that warm Python kernels have imported before a run asks for one, separated by commas."
    )
    sandbox: str = setting(
        "auto",
        "Keep notebooks from the server's memory and files, and from those of other runs: auto does what the "
        "system can, require does not start without all of it.",
        choices=("auto", "require", "off"),
    )
    kernel_environment: str = setting(
        "",
        "Variables of the server that notebooks find beside PATH, HOME, LANG and the like, "
        "separated by commas; * stands for any characters.",
    )
    writable_folders: str = setting(
        "",
        "Folders that every notebook may read and write beside its own, with all that is in them, "
        "separated by commas.",
    )
    run_timeout: float = limit("seconds that a run may take", 0.0)
    max_run_timeout: float = ceiling("run_timeout", 0.0)
    cell_timeout: float = limit("seconds that a cell may take", 0.0)
    max_cell_timeout: float = ceiling("cell_timeout", 0.0)
    output_timeout: float = limit("seconds that a cell may go without any output", 0.0)
    max_output_timeout: float = ceiling("output_timeout", 0.0)
    interrupt_grace: float = setting(
        5.0,
        "Seconds that a cell may take to clean up after it is interrupted at a time limit, before all "
        "processes of its run are killed; 0: kill them without an interrupt.",
        minimum=0,
    )
    memory_limit: int = limit("bytes of memory that the processes of a run may take together", 0)
    max_memory_limit: int = ceiling("memory_limit_bytes", 0)
    limit_address_space: bool = setting(
        False,
        "Limit the kernel's address space to the memory limit as well: an allocation that is too large then "
        "raises MemoryError in the notebook. Programs that reserve much and use little do not run so.",
    )
    cell_output_limit: int = limit("bytes of output that a cell may have; what is over is cut", 268435456)
    max_cell_output_limit: int = ceiling("cell_output_limit_bytes", 0)
    run_output_limit: int = limit("bytes of output that a run may have; what is over is cut", 1073741824)
    max_run_output_limit: int = ceiling("run_output_limit_bytes", 0)
    process_limit: int = limit("processes that a run may have at once", 0)
    max_process_limit: int = ceiling("process_limit", 0)
    retention: float = setting(
        604800.0, "Seconds that a run is kept after its end where Start says nothing.", minimum=0
    )
    max_runs: int = setting(0, "Ended runs that the history keeps; 0: no limit.", minimum=0)
    max_state_bytes: int = setting(
        0, "Bytes that the folders of all runs may take together; 0: no limit.", minimum=0
    )
    max_artefact_bytes: int = setting(
        1073741824,
        "Bytes that artefacts made by Output may take, beside the runs; those read longest ago are removed, "
        "and made again when they are asked for.",
        minimum=0,
    )
    drain_timeout: float = setting(
        20.0,
        "Seconds that runs may go on when the server is asked to stop, before they are ended.",
        minimum=0,
    )
    max_notebook_bytes: int = setting(
        67108864,
        "Largest notebook that a Start may name or carry, in bytes.",
        minimum=1,
        maximum=_LARGEST_MESSAGE - MESSAGE_OVERHEAD,
    )
    uri_schemes: str = setting(
        "",
        f"Schemes that URIs of notebooks and results may have, separated by commas, of {', '.join(SCHEMES)}; "
        "none: no URIs.",
    )
    uri_hosts: str = setting(
        "",
        "Hosts, buckets and containers that such URIs may name, separated by commas; none: all, but on the "
        "web no address of this machine or link.",
    )
    uri_folders: str = setting("", "Folders that file URIs may lead into, separated by commas.")
    uri_timeout: float = setting(60.0, "Seconds that one read or write of a URI may take.", minimum=0.1)
    max_files_bytes: int = setting(
        268435456, "Largest run folder that Output answers as a zip, in bytes.", minimum=0
    )
    page_bytes: int = setting(1048576, "Bytes that Output answers where the request says nothing.", minimum=1)
    max_page_bytes: int = setting(
        3145728, "Most bytes that Output answers at once; below the 4 MiB that clients take.", minimum=1
    )
    max_streams: int = setting(1000, "Progress streams that may be open at once.", minimum=1)
    heartbeat_interval: float = setting(
        15.0, "Seconds without an event after which a Progress stream carries a heartbeat.", minimum=0.01
    )
    export_formats: str = setting(
        "html,markdown,script,python,slides,pdf",
        "nbconvert exporters that Output may use, separated by commas; pdf needs Chromium, others pandoc.",
    )
    export_timeout: float = setting(120.0, "Seconds that one export may take.", minimum=1)
    channelz: bool = setting(False, "Serve channelz, gRPC's own diagnostics.")
    metrics_listen: str = setting(
        "", "HOST:PORT of the metrics for Prometheus, without TLS; port 0 takes a free one; none: no metrics."
    )
    trace_endpoint: str = setting(
        "",
        "URL of an OTLP collector that gets traces by gRPC. [default: as OTEL_EXPORTER_OTLP_ENDPOINT says]",
    )
    log_format: str = setting("json", "Form of the log on stderr.", choices=("json", "console"))
    log_level: str = setting("info", "Least severe log line.", choices=("debug", "info", "warning", "error"))

    unchecked: InitVar[bool] = False

    def __post_init__(self, unchecked: bool) -> None:
        """Refuse what cannot be, unless `checks.check` is to say it with all else.

        Raises:
            ValueError: A setting is wrong; the message says which.
        """
        if not unchecked and (found := self.faults()):
            raise ValueError("\n".join(found))

    def faults(self) -> list[str]:
        """Return what cannot be, whatever there is on this machine."""
        found = [*exposure.faults(self)]
        if self.trace_endpoint and not self.trace_endpoint.startswith(("http://", "https://")):
            found.append(f"--trace-endpoint is http:// or https://, not {self.trace_endpoint!r}")
        if self.default_notebook and not self.notebook_root:
            found.append("--default-notebook needs --notebook-root.")
        looks: list[Callable[[], object]] = [
            lambda: self.metrics_address,
            lambda: executors.check(self.executor),
            lambda: self.warm,
            lambda: self.uris,
        ]
        for look in looks:
            try:
                look()
            except ValueError as error:
                found.append(str(error))
        return found

    @property
    def state_folder(self) -> Path:
        """The folder for history and results."""
        # Workers and kernels work elsewhere.
        return Path(self.state_dir or _state_dir()).resolve()

    @property
    def metrics_address(self) -> tuple[str, int]:
        """Host and port of the metrics; empty and 0: none.

        Raises:
            ValueError: That is no address.
        """
        return exposure.address("--metrics-listen", self.metrics_listen) if self.metrics_listen else ("", 0)

    @property
    def tls_files(self) -> TlsFiles | None:
        """The files of TLS; None: without."""
        if not self.tls_cert:
            return None
        client_ca = Path(self.tls_client_ca) if self.tls_client_ca else None
        return TlsFiles(Path(self.tls_cert), Path(self.tls_key), client_ca)

    @property
    def warm(self) -> WarmKernels:
        """The kernels that a worker keeps ready.

        Raises:
            ValueError: That is not how it is said.
        """
        if self.warm_kernels == "none":
            return WarmKernels()
        kernels = _names(self.warm_kernels or f"{self.default_kernel}=1")
        return warm_kernels(kernels, _names(self.preload), required=bool(self.warm_kernels))

    @property
    def uris(self) -> UriPolicy:
        """The URIs that a Start may name.

        Raises:
            ValueError: It cannot be so.
        """
        return policy(_names(self.uri_schemes), _names(self.uri_hosts), _names(self.uri_folders))

    @property
    def sandbox_options(self) -> SandboxConfig:
        """What a notebook can reach."""
        return SandboxConfig(
            self.sandbox,
            kernel_environment=tuple(_names(self.kernel_environment)),
            writable=tuple(Path(one).expanduser().absolute() for one in _names(self.writable_folders)),
            root=Path(self.notebook_root).resolve() if self.notebook_root else None,
            hidden=(
                *(Path(one).absolute() for one in (self.tokens_file, self.tls_key) if one),
                self.export_folder,
            ),
        )

    @property
    def export_folder(self) -> Path:
        """The link to the folder for temporary files of exports, which hold notebooks of all runs."""
        return self.state_folder / "exports"

    @property
    def bounds(self) -> HistoryLimits:
        """What the history may take."""
        return HistoryLimits(runs=self.max_runs, total_bytes=self.max_state_bytes)

    @property
    def limits(self) -> Limits:
        """What a run may take where Start says nothing."""
        return self._limits("")

    @property
    def ceilings(self) -> Limits:
        """What a Start may ask for."""
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
    """Return the settings that have a ceiling, which is named as they are, after `max_`."""
    names = [one.name for one in fields(Settings)]
    return [name for name in names if f"max_{name}" in names]


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]
