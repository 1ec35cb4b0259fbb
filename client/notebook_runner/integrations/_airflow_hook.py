"""The hook: what a connection of Airflow says about a server, as a client of that server."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from notebook_runner import AccessDenied, AsyncClient, Client, InvalidRequest, NotebookRunnerError
from notebook_runner._connection import DEFAULT_TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.sdk import Connection

__all__ = ["NotebookRunnerHook", "airflow_errors", "patient"]

ClientT = TypeVar("ClientT", Client, AsyncClient)

_DEFAULT_PORT = DEFAULT_TARGET.rpartition(":")[2]
# The extra of a connection: files, by the names that the client has for them.
_FILES = ("token_file", "tls_ca", "tls_cert", "tls_key")


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Raise the errors of the client as Airflow's own.

    Raises:
        AirflowFailException: A retry cannot help, because the same request would be refused again.
        AirflowException: A retry may help.
    """
    try:
        yield
    except (InvalidRequest, AccessDenied, TypeError, ValueError) as error:
        raise AirflowFailException(str(error)) from error
    except (NotebookRunnerError, OSError) as error:
        raise AirflowException(str(error)) from error


def patient(client: ClientT) -> ClientT:
    """Let a client that follows a run wait for the server from its first call on.

    A new client soon takes a server that does not answer for a wrong address. But the run was started there.
    """
    client._transport.reached = True  # noqa: SLF001 - the client's own
    return client


class NotebookRunnerHook(BaseHook):  # type: ignore[misc] # Airflow is not installed where types are checked
    """Connects to the server of a connection of type `notebook_runner`.

    Host and port are the server's address, and the password is the token. The extra may have `token_file`,
    `tls_ca`, `tls_cert` and `tls_key`: paths of files where tasks and triggers run. What the connection
    leaves empty comes from the environment variables of the client.

    Args:
        notebook_runner_conn_id: The id of the connection.
    """

    conn_name_attr = "notebook_runner_conn_id"
    default_conn_name = "notebook_runner_default"
    conn_type = "notebook_runner"
    hook_name = "notebook-runner"

    def __init__(self, notebook_runner_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.notebook_runner_conn_id = notebook_runner_conn_id
        self._arguments: dict[str, Any] | None = None

    def get_conn(self) -> Client:
        """Return a new client, which the caller closes, for example with `with`.

        Raises:
            AirflowNotFoundException: The connection does not exist.
            ValueError: The connection has an unknown extra, or a setting of it is invalid.
            OSError: A file that the connection names cannot be read.
        """
        if self._arguments is None:
            # Read once, so that a task that is being killed needs nothing of Airflow to reach the server.
            self._arguments = _arguments(self.get_connection(self.notebook_runner_conn_id))
        return Client(**self._arguments)

    async def aget_conn(self) -> AsyncClient:
        """Return a new asyncio client, which the caller closes; errors are those of `get_conn`."""
        return AsyncClient(**_arguments(await self.aget_connection(self.notebook_runner_conn_id)))

    def test_connection(self) -> tuple[bool, str]:
        """Return whether the server answers and accepts the token, and a sentence for the form."""
        try:
            with self.get_conn() as client:
                info = client.info()
                return True, f"notebook-runner {info.version} answers at {client.target}."
        except (NotebookRunnerError, ValueError, OSError) as error:
            return False, str(error)


def _arguments(connection: Connection) -> dict[str, Any]:
    """Return the arguments of a client.

    Raises:
        ValueError: The extra has a name that means nothing here.
    """
    extra = connection.extra_dejson
    if unknown := sorted(set(extra) - set(_FILES)):
        raise ValueError(
            f"Connection {connection.conn_id!r} has the unknown extra {unknown[0]!r}. "
            f"Available: {', '.join(_FILES)}."
        )
    host, port = connection.host, connection.port
    if host and (port or ":" not in host):
        host = f"{host}:{port or _DEFAULT_PORT}"
    return {
        "target": host or None,
        "token": connection.password or None,
        **{name: extra[name] or None for name in _FILES if name in extra},
    }
