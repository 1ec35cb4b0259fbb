"""Checks the whole configuration before the server starts anything."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from jupyter_core.paths import jupyter_path

from notebook_runner_server.api import tls_files
from notebook_runner_server.api.oidc_options import scopes_file
from notebook_runner_server.api.shares_file import shares_file
from notebook_runner_server.api.tokens import Tokens
from notebook_runner_server.audit import check_path
from notebook_runner_server.config.settings import ENVIRONMENT_PREFIX, PROCESS, Settings, limit_names
from notebook_runner_server.confinement.policy import DEVICES, caches
from notebook_runner_server.execution.options import WarmKernels, resolve_kernel_name
from notebook_runner_server.export.formats import HTML_INTERACTIVE
from notebook_runner_server.webhooks.receivers_file import receivers_file

_OTHER_VARIABLES = (
    *("TARGET", "TOKEN", "TOKEN_FILE", "TLS_CA", "OIDC_CLIENT_ID"),  # of the client
    *("RUN_ID", "RUN_DIR"),  # of notebooks, which may start a server
    *("NEW_TOKEN", "CHECK"),  # of options that are not settings
)

_SERVICE_VARIABLE = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""Variables that Kubernetes adds for each Service of the namespace whose name begins with notebook-runner."""

_FOR_POSTGRES = ("psycopg", "psycopg_pool", "alembic")
_FOR_WEBHOOKS = ("aiohttp", "cloudevents", "standardwebhooks")

# jupyter_client lists other names in lower case.
_KERNEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class ConfigurationError(ValueError):
    """The configuration is invalid.

    Attributes:
        errors: A sentence for each error.
    """

    def __init__(self, errors: list[str]) -> None:
        lines = errors if len(errors) == 1 else [f"The configuration has {len(errors)} errors:", *errors]
        super().__init__("\n  ".join(lines))
        self.errors = errors


def check(settings: Settings, environment: Mapping[str, str]) -> None:
    """Refuse an invalid configuration.

    Args:
        settings: The settings.
        environment: The environment variables of this process.

    Raises:
        ConfigurationError: The configuration is invalid; lists all errors.
    """
    found = [
        *settings.errors(),
        *_variables(environment),
        *_home(environment),
        *_state_dir(settings),
        *_notebooks(settings),
        *_limits(settings),
        *_formats(settings),
        *_access(settings),
        *_webhooks(settings),
        *_audit(settings),
        *_packages(settings),
        *_store(settings, environment),
        *_archive_folder(settings),
        *_kernels(settings),
    ]
    if found:
        raise ConfigurationError(found)


def warnings(settings: Settings) -> Iterator[str]:
    """Yield what is valid, but unsafe or out of order now; blocks."""
    if settings.tls_key and tls_files.is_world_readable(Path(settings.tls_key)):
        path = settings.tls_key
        yield f"Warning: every user of this machine can read --tls-key {path}. Run: chmod o-r {path}"
    if settings.audit_file is not None and not settings.sandbox_options.is_on:
        yield (
            f"Warning: with --sandbox off, notebooks can change --audit-log {settings.audit_file}. "
            "Use the sandbox, or --audit-log log."
        )
    if options := settings.oidc_options:
        from notebook_runner_server.api import oidc_keys  # noqa: PLC0415 - brings cryptography

        try:
            oidc_keys.fetch_keys(options)
        except oidc_keys.IssuerError as error:
            yield f"Warning: {error} The server refuses JWTs until it can fetch the keys of --oidc-issuer."


def _variables(environment: Mapping[str, str]) -> Iterator[str]:
    known = [one.name.upper() for one in fields(Settings)]
    prefix = f"{ENVIRONMENT_PREFIX}_"
    for variable in sorted(environment):
        name = variable.removeprefix(prefix)
        if name == variable or name in known or name in _OTHER_VARIABLES or _SERVICE_VARIABLE.fullmatch(name):
            continue
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {prefix}{near[0]}?" if near else ""
        yield f"Unknown setting {variable}.{hint}"


def _home(environment: Mapping[str, str]) -> Iterator[str]:
    home = environment.get("HOME", "")
    if not home:
        yield "HOME is not set. Set it to a folder that the server's user can write to."
    elif not Path(home).is_dir():
        yield f"HOME must be an existing folder (got {home})."


def _state_dir(settings: Settings) -> Iterator[str]:
    folder = settings.state_folder
    # The server creates the folder with its parents.
    existing = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    if not existing.is_dir():
        yield f"--state-dir {folder} cannot be used: {existing} is not a folder. Choose another folder."
    elif not os.access(existing, os.W_OK | os.X_OK) and not _is_closed_to_owner(folder):
        yield (
            f"--state-dir {folder} cannot be used: no permission to write to {existing}. "
            "Choose another folder, or change its permissions."
        )


def _is_closed_to_owner(folder: Path) -> bool:
    """Return whether only the mode of this user's folder denies access, which the server then restores."""
    about = folder.stat() if folder.exists() else None
    return about is not None and about.st_uid == os.geteuid() and about.st_mode & stat.S_IRWXU != stat.S_IRWXU


def _notebooks(settings: Settings) -> Iterator[str]:
    if not settings.notebook_root:
        return
    root = Path(settings.notebook_root)
    if not root.is_dir():
        yield f"--notebook-root {root} is not an existing folder."
    elif settings.default_notebook and not (root / settings.default_notebook).is_file():
        yield f"--default-notebook {settings.default_notebook} is not a file under --notebook-root {root}."


def _limits(settings: Settings) -> Iterator[str]:
    for name in limit_names():
        value, most = getattr(settings, name), getattr(settings, f"max_{name}")
        flag = name.replace("_", "-")
        if most and value > most:
            yield f"--{flag} {value:g} exceeds --max-{flag} {most:g}."


def _formats(settings: Settings) -> Iterator[str]:
    if settings.export_formats == Settings.export_formats:
        # nbconvert's own, without the time to look at every installed distribution.
        return
    from importlib.metadata import entry_points  # noqa: PLC0415 - for other formats only

    known = {HTML_INTERACTIVE, *(one.name for one in entry_points(group="nbconvert.exporters"))}
    for name in settings.formats:
        # nbconvert takes the name of a class as well.
        if name not in known and "." not in name:
            yield f"--export-formats: unknown exporter {name!r}. Available: {', '.join(sorted(known))}."


def _access(settings: Settings) -> Iterator[str]:
    if settings.tokens_file:
        try:
            Tokens(Path(settings.tokens_file))
        except (OSError, ValueError) as error:
            yield f"--tokens-file {settings.tokens_file} cannot be used: {_why(error)}"
    if settings.oidc_scopes_file:
        try:
            scopes_file(Path(settings.oidc_scopes_file))
        except (OSError, ValueError) as error:
            yield f"--oidc-scopes-file {settings.oidc_scopes_file} cannot be used: {_why(error)}"
    if settings.shares_file:
        try:
            shares_file(Path(settings.shares_file), settings.default_share)
        except (OSError, ValueError) as error:
            yield f"--shares-file {settings.shares_file} cannot be used: {_why(error)}"
    if settings.tls_cert and settings.tls_key and (files := settings.tls_files):
        try:
            tls_files.read_valid(files)
        except (OSError, ValueError) as error:
            flags = (
                "--tls-cert, --tls-key or --tls-client-ca" if files.client_ca else "--tls-cert or --tls-key"
            )
            yield f"{flags} cannot be used: {_why(error)}"


def _webhooks(settings: Settings) -> Iterator[str]:
    if settings.webhooks_file:
        try:
            receivers_file(Path(settings.webhooks_file))
        except (OSError, ValueError) as error:
            yield f"--webhooks-file {settings.webhooks_file} cannot be used: {_why(error)}"


def _audit(settings: Settings) -> Iterator[str]:
    path = settings.audit_file
    if path is None:
        return
    for name, folder in _changeable(settings):
        if path.parent.resolve().joinpath(path.name).is_relative_to(folder.resolve()):
            why = f"it must not be in {name} ({folder}), where runs can change files. Choose another folder."
            yield f"--audit-log {path} cannot be used: {why}"
            return
    try:
        check_path(path)
    except (OSError, ValueError) as error:
        yield f"--audit-log {path} cannot be used: {_why(error)}"


def _changeable(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield the folders that runs can change, with what each is."""
    yield "the state folder", settings.state_folder
    sandbox = settings.sandbox_options
    if sandbox.root is not None:
        yield "--notebook-root", sandbox.root
    yield from (("--writable-folders", folder) for folder in sandbox.writable)
    with contextlib.suppress(ValueError):  # `Settings.errors` reports it
        yield from (("--uri-folders", Path(folder)) for folder in settings.uris.folders)
    yield from (("the folder of devices or caches", folder) for folder in (Path(DEVICES), *caches()))


def _packages(settings: Settings) -> Iterator[str]:
    if settings.http_listen and not all(importlib.util.find_spec(name) for name in ("starlette", "uvicorn")):
        yield (
            "--http-listen needs starlette and uvicorn. Install them with: "
            "pip install 'notebook-runner[server,http-api]'"
        )
    flag = "--webhooks-file" if settings.webhooks_file else "--notify-hosts" if settings.notify_hosts else ""
    if flag and not all(importlib.util.find_spec(name) for name in _FOR_WEBHOOKS):
        yield (
            f"{flag} needs aiohttp, cloudevents and standardwebhooks. Install them with: "
            "pip install 'notebook-runner[server,webhooks]'"
        )


def _store(settings: Settings, environment: Mapping[str, str]) -> Iterator[str]:
    if not settings.store:
        return
    if not all(importlib.util.find_spec(name) for name in _FOR_POSTGRES):
        yield (
            "--store needs psycopg, psycopg_pool and alembic. Install them with: "
            "pip install 'notebook-runner[server,postgres]'"
        )
        return
    yield from _database_url("--store", settings.store, environment)
    yield from _database_url("--store-listen", settings.store_listen, environment)


def _database_url(flag: str, url: str, environment: Mapping[str, str]) -> Iterator[str]:
    from psycopg import ProgrammingError, conninfo  # noqa: PLC0415 - an extra

    try:
        parts = conninfo.conninfo_to_dict(url)
    except ProgrammingError:
        # The error may quote a password.
        yield f"{flag} is not a URL that libpq can read. Encode special characters in it, such as %40 for @."
        return
    variable = ENVIRONMENT_PREFIX + flag.removeprefix("-").replace("-", "_").upper()
    if "password" in parts and environment.get(variable) != url:
        yield (
            f"{flag} must not have a password, which every user of this machine could see. "
            f"Set {variable}, PGPASSFILE or PGSERVICE instead."
        )


def _archive_folder(settings: Settings) -> Iterator[str]:
    if settings.archive_folder is None:
        return
    folder = settings.archive_folder.resolve()
    for name, other in _changeable(settings):
        if folder.is_relative_to(other.resolve()) or other.resolve().is_relative_to(folder):
            yield (
                f"--store-files-uri {settings.store_files_uri} must not overlap with {name} ({other}), where "
                "runs can read or change files. Choose another folder."
            )
            return


def _why(error: Exception) -> str:
    return (
        f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    )


def _kernels(settings: Settings) -> Iterator[str]:
    if settings.executor != PROCESS:
        # The kernels are on other machines.
        return
    try:
        warm = settings.warm
    except ValueError:
        warm = WarmKernels()  # `Settings.errors` has reported it
    named = {"--default-kernel": [settings.default_kernel], "--warm-kernels": [*warm.counts] * warm.required}
    if all(_is_installed(resolve_kernel_name(name)) for names in named.values() for name in names):
        return
    from notebook_runner_server.execution.kernel_specs import KernelSpecs  # noqa: PLC0415 - 0.1 s, and rarely needed

    found = KernelSpecs().find_kernel_specs()
    available = ", ".join(sorted(found)) or "none"
    for flag, names in named.items():
        for name in names:
            if resolve_kernel_name(name) not in found:
                yield f"{flag}: unknown kernelspec {name!r}. Available: {available}."


def _is_installed(name: str) -> bool:
    """Return whether a kernelspec is where Jupyter looks for it; if not, jupyter_client may still have it."""
    return bool(_KERNEL_NAME.fullmatch(name)) and any(
        Path(folder, name, "kernel.json").is_file() for folder in jupyter_path("kernels")
    )
