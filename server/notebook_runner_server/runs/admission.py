"""Admission: read and check a request's notebook, and complete the request with the server's defaults."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from notebook_runner_server.errors import (
    InvalidFieldError,
    NotebookNotFoundError,
    UnknownKernelError,
    UriNotAllowedError,
)
from notebook_runner_server.execution.interface import Limits
from notebook_runner_server.execution.segments import TAIL, PreparedNotebook
from notebook_runner_server.runs import input_files
from notebook_runner_server.runs.model import (
    RETRYABLE,
    Admitted,
    ExecutionOptions,
    Notify,
    RetryPolicy,
    Run,
    RunState,
    StartSpec,
)
from notebook_runner_server.runs.names import check_name, default_name, new_run_id
from notebook_runner_server.runs.sources import NotebookRoot, UriSource, check_size
from notebook_runner_server.transfer.interface import RefusedError, Transfer, shown

MAX_REQUEST_ID = 128
MAX_LABELS = 64
MAX_LABEL = 128
MAX_PRIORITY = 100
MAX_RETRIES = 100
MAX_DURATION = 366 * 86400.0
"""A year in seconds: the longest time-out and retention."""


LARGE_NOTEBOOK = 2 * 1024 * 1024
"""Notebooks above this size are parsed in a subprocess: parsing this much takes 30 ms."""

# R's names have dots.
_PARAMETER = re.compile(r"[^\W\d][\w.]{0,254}")


class Prepare(Protocol):
    """Reads and checks a notebook, and injects parameters (`execution.notebook.prepare`)."""

    def __call__(
        self,
        content: bytes,
        parameters: Mapping[str, Any],
        kernel_name: str,
        kernels: Mapping[str, str],
        *,
        is_ordered: bool = False,
    ) -> PreparedNotebook:
        """Return the prepared notebook; raises InvalidNotebookError and UnknownParameterError."""


LIMIT_FIELDS = {
    "run_timeout": "run_timeout",
    "cell_timeout": "cell_timeout",
    "output_timeout": "output_timeout",
    "memory_bytes": "memory_limit_bytes",
    "cell_output_bytes": "cell_output_limit_bytes",
    "run_output_bytes": "run_output_limit_bytes",
    "processes": "process_limit",
}
"""The contract's field for each limit; `config.settings` has the operator's default and ceiling."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """Defaults for what a request leaves out.

    Attributes:
        notebook: A path under the notebook root; empty: there is no default notebook.
        kernel_name: The kernelspec for notebooks that name none.
        limits: The limits of a run.
        ceilings: The maximum that a request may set for each limit; zero: unlimited.
        retention: Seconds that a run is stored after its end.
        input_files_bytes: Maximum size of the files that a request brings.
        display_data_bytes: Maximum size of a representation whose content is kept with its event; zero: none.
    """

    notebook: str = ""
    kernel_name: str = "python3"
    limits: Limits = field(default_factory=Limits)
    ceilings: Limits = field(default_factory=Limits)
    retention: float = 7 * 86400.0
    input_files_bytes: int = 16 * 1024 * 1024
    display_data_bytes: int = 256 * 1024


class Admission:
    """Turns requests into runs.

    Args:
        root: The folder of notebooks named by path.
        max_bytes: The maximum size of a notebook.
        defaults: Defaults for what a request leaves out.
        prepare: Reads, checks and parameterizes a notebook.
        transfer: Reads notebooks from URIs.
        resolve: Returns the kernelspec for a kernel's name.
        notify: Checks a URI to notify. If None, no URI is allowed.

    Attributes:
        uris: Reads notebooks named by URI.
    """

    def __init__(
        self,
        root: NotebookRoot,
        max_bytes: int,
        defaults: Defaults,
        prepare: Prepare,
        transfer: Transfer,
        resolve: Callable[[str], str] = str,
        notify: Callable[[str], Notify] | None = None,
    ) -> None:
        self._root = root
        self.uris = UriSource(transfer, max_bytes)
        self._max_bytes = max_bytes
        self._defaults = defaults
        self._prepare = prepare
        self._resolve = resolve
        self._notify = notify
        self._default_kernel = resolve(defaults.kernel_name)
        self._one_at_a_time = asyncio.Lock()

    @property
    def default_kernel(self) -> str:
        """The kernelspec for notebooks that name none."""
        return self._default_kernel

    @property
    def default_notebook(self) -> str:
        """The default notebook as a path under the root; empty: there is none."""
        return self._defaults.notebook

    @property
    def has_root(self) -> bool:
        """Whether notebooks can be named by a path."""
        return self._root.exists

    async def admit(self, spec: StartSpec, kernels: Mapping[str, str]) -> Admitted:
        """Return the run for a request.

        Raises:
            RunnerError: The request is refused.
        """
        _check(spec)
        if spec.files:
            self._check_files(spec)
        if spec.kernel_name:
            await self._kernel(spec.kernel_name, kernels)
        if spec.output_uri:
            self.uris.check(spec.output_uri, "output_uri")
        notify = self._checked_notify(spec.notify_uri) if spec.notify_uri else None
        # Other calls must not wait for reading and parsing.
        if spec.notebook_uri is not None:
            content, folder, path = await self.uris.read(spec.notebook_uri), "", ""
        else:
            content, folder, path = await asyncio.to_thread(self._content, spec)
        work = asyncio.ensure_future(self._prepared(content, spec, kernels))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        # A thread cannot be cancelled; the next large notebook has to wait for it.
        prepared = await asyncio.shield(work)
        kernel_name = await self._kernel(prepared.kernel_name or self._defaults.kernel_name, kernels)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        admitted = self._admitted(spec, prepared, folder, path, kernel_name, digest)
        return replace(admitted, notify=notify)

    def _checked_notify(self, uri: str) -> Notify:
        """Return who a URI notifies.

        Raises:
            UriNotAllowedError: The operator does not allow it.
        """
        if self._notify is None:
            message = "notify_uri: the server notifies no hosts. Start it with --notify-hosts."
            raise UriNotAllowedError(message, field="notify_uri")
        try:
            return self._notify(uri)
        except RefusedError as error:
            raise UriNotAllowedError(f"notify_uri: {error}.", field="notify_uri") from error

    def _check_files(self, spec: StartSpec) -> None:
        if spec.content is None and spec.notebook_uri is None:
            raise InvalidFieldError(
                "files: a notebook that is named by its path runs in its own folder under the notebook root, "
                "into which no request may write. Send the notebook itself (notebook_content), or put the "
                "files into that folder.",
                field="files",
            )
        input_files.check(spec.files, self._defaults.input_files_bytes)

    async def _prepared(
        self, content: bytes, spec: StartSpec, kernels: Mapping[str, str]
    ) -> PreparedNotebook:
        # Many concurrent large notebooks would take all threads and much memory.
        async with self._one_at_a_time if len(content) > LARGE_NOTEBOOK else contextlib.nullcontext():
            return await asyncio.to_thread(
                self._prepare,
                content,
                spec.parameters,
                spec.kernel_name,
                kernels,
                is_ordered=spec.parameters_are_ordered,
            )

    async def _kernel(self, name: str, kernels: Mapping[str, str]) -> str:
        """Return the kernelspec for a kernel's name."""
        # The first name that is not a kernelspec's own costs an import of 0.1 s.
        resolved = await asyncio.to_thread(self._resolve, name)
        if resolved in kernels:
            return resolved
        known = ", ".join(sorted(kernels))
        raise UnknownKernelError(
            f"Unknown kernelspec {name[:100]!r}. Available: {known}.",
            field="kernel_name",
            kernel_name=name[:100],
            known=known[:1000],
        )

    def _admitted(
        self,
        spec: StartSpec,
        prepared: PreparedNotebook,
        folder: str,
        path: str,
        kernel_name: str,
        notebook_sha256: str,
    ) -> Admitted:
        uri = shown(spec.notebook_uri or "")
        run = Run(
            run_id=new_run_id(),
            request_id=spec.request_id,
            state=RunState.QUEUED,
            create_time=time.time_ns(),
            kernel_name=kernel_name,
            cells_total=len(prepared.cells),
            parameters=spec.parameters,
            labels=spec.labels,
            notebook_path=path,
            notebook_uri=uri,
            output_uri=shown(spec.output_uri),
            notebook_repairs=prepared.repairs,
            name=spec.name or default_name(path, uri),
            notebook_sha256=notebook_sha256,
            priority=spec.priority,
            retry=spec.retry,
        )
        segments = {**dict(enumerate(prepared.cells)), TAIL: prepared.tail}
        return Admitted(run, self._options(spec, folder), segments, spec.files)

    def _content(self, spec: StartSpec) -> tuple[bytes, str, str]:
        if spec.content is not None:
            check_size(len(spec.content), self._max_bytes)
            return spec.content, "", ""
        path = spec.path if spec.path is not None else self._defaults.notebook
        if not path:
            raise NotebookNotFoundError(
                "The request names no notebook, and the server has no default notebook. Send or name one, or "
                "start the server with --default-notebook."
            )
        return *self._root.read(path), path

    def _options(self, spec: StartSpec, folder: str) -> ExecutionOptions:
        defaults = self._defaults
        return ExecutionOptions(
            working_folder=folder,
            limits=_limits(spec.limits, defaults.limits, defaults.ceilings),
            allow_errors=spec.allow_errors,
            environment=dict(spec.environment),
            retention=defaults.retention if spec.retention is None else spec.retention,
            output_uri=spec.output_uri,
            display_data_bytes=defaults.display_data_bytes,
        )


def _check(spec: StartSpec) -> None:
    if len(spec.request_id) > MAX_REQUEST_ID:
        raise InvalidFieldError(
            f"request_id must have at most {MAX_REQUEST_ID} characters (got {len(spec.request_id)}).",
            field="request_id",
        )
    check_name(spec.name)
    if abs(spec.priority) > MAX_PRIORITY:
        raise InvalidFieldError(
            f"priority must be between -{MAX_PRIORITY} and {MAX_PRIORITY} (got {spec.priority}).",
            field="priority",
        )
    _check_durations(spec)
    if len(spec.labels) > MAX_LABELS or any(
        len(part) > MAX_LABEL for label in spec.labels.items() for part in label
    ):
        message = (
            f"labels must have at most {MAX_LABELS} entries (got {len(spec.labels)}), with names and values "
            f"of at most {MAX_LABEL} characters."
        )
        raise InvalidFieldError(message, field="labels")
    for name, value in spec.environment.items():
        if not name or "=" in name or "\0" in name + value:
            message = (
                f"environment: {name[:100]!r} is not a valid variable. A name must not be empty or contain "
                "'='; name and value must not contain NUL."
            )
            raise InvalidFieldError(message, field="environment")
    for name in spec.parameters:
        if not _PARAMETER.fullmatch(name):
            raise InvalidFieldError(f"parameters: {name[:100]!r} is not a valid name.", field="parameters")


def _check_durations(spec: StartSpec) -> None:
    durations = {
        name: getattr(spec.limits, name) for name in ("run_timeout", "cell_timeout", "output_timeout")
    }
    if spec.retry is not None:
        _check_retry(spec.retry)
        durations |= {"retry.backoff": spec.retry.backoff, "retry.max_backoff": spec.retry.max_backoff}
    for name, value in {**durations, "retention": spec.retention or 0.0}.items():
        if not 0 <= value <= MAX_DURATION:
            raise InvalidFieldError(
                f"{name} must be between 0 s and {MAX_DURATION:.0f} s (got {value:g} s).", field=name
            )


def _limits(requested: Limits, defaults: Limits, ceilings: Limits) -> Limits:
    """Return the limits of a run: the requested ones, else the defaults, within the ceilings."""
    chosen = {}
    for one in fields(Limits):
        value, ceiling = getattr(requested, one.name), getattr(ceilings, one.name)
        name = LIMIT_FIELDS[one.name]
        if value < 0:
            raise InvalidFieldError(f"{name} must not be negative (got {value:g}).", field=name)
        if ceiling and value > ceiling:
            raise InvalidFieldError(
                f"{name} must be at most {ceiling:.16g} on this server (got {value:.16g}).",
                field=name,
                ceiling=f"{ceiling:g}",
            )
        chosen[one.name] = value or getattr(defaults, one.name)
    return Limits(**chosen)


def _check_retry(policy: RetryPolicy) -> None:
    if not 1 <= policy.max_retries <= MAX_RETRIES:
        raise InvalidFieldError(
            f"retry.max_retries must be between 1 and {MAX_RETRIES} (got {policy.max_retries}). To repeat no "
            "run, leave out retry.",
            field="retry.max_retries",
        )
    if refused := [state.name for state in policy.states if state not in RETRYABLE]:
        raise InvalidFieldError(
            f"retry.states must be among {', '.join(state.name for state in RETRYABLE)} (got "
            f"{', '.join(refused)}).",
            field="retry.states",
        )
