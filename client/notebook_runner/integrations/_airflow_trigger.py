"""The trigger: follows a run in Airflow's triggerer, while the task holds no worker slot."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import BaseTrigger, TriggerEvent

from notebook_runner import NotebookRunnerError

from ._airflow_hook import NotebookRunnerHook, patient
from ._airflow_log import TaskLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["NotebookRunnerTrigger"]

# The XCom that says how far the task log has come.
_POSITION = "notebook_run_position"
# How often it is written, in seconds, if the log has grown. After a restart of the triggerer, so much of the
# log may come a second time.
_SAVE_SECONDS = 2.0


class NotebookRunnerTrigger(BaseTrigger):  # type: ignore[misc] # Airflow is not installed where types are checked
    """Fires when a run has ended, or can no longer be followed; logs its events until then.

    Args:
        notebook_runner_conn_id: The id of the connection.
        notebook_run_id: The run.
        reconnect_timeout: How long to try to reconnect to the server, in seconds.
    """

    def __init__(self, notebook_runner_conn_id: str, notebook_run_id: str, reconnect_timeout: float) -> None:
        super().__init__()
        self.notebook_runner_conn_id = notebook_runner_conn_id
        self.notebook_run_id = notebook_run_id
        self.reconnect_timeout = reconnect_timeout

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and the arguments of this trigger, for the triggerer."""
        names = ("notebook_runner_conn_id", "notebook_run_id", "reconnect_timeout")
        return f"{type(self).__module__}.{type(self).__qualname__}", {n: getattr(self, n) for n in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Follow the run to its end, after the last event that is in the task log."""
        error = ""
        try:
            await self._follow()
        except (NotebookRunnerError, ValueError, OSError) as failed:
            error = str(failed)
        yield TriggerEvent({"notebook_run_id": self.notebook_run_id, "error": error})

    async def on_kill(self) -> None:
        """Kill the run, because somebody cleared the task, or marked it as failed or as succeeded."""
        # A triggerer that was taken for dead gets this call too, after another one has taken over.
        if await asyncio.to_thread(self._is_deferred):
            self.log.info("Another triggerer follows run %s.", self.notebook_run_id)
            return
        self.log.info("Killing run %s.", self.notebook_run_id)
        hook = NotebookRunnerHook(self.notebook_runner_conn_id)
        async with await hook.aget_conn() as client:
            await client.kill(self.notebook_run_id, wait=False)

    async def _follow(self) -> None:
        hook = NotebookRunnerHook(self.notebook_runner_conn_id)
        log = TaskLog(self.log, await self._saved())
        async with patient(await hook.aget_conn()) as client:
            saving = asyncio.create_task(self._save_regularly(log))
            try:
                events = client.progress(
                    self.notebook_run_id,
                    after_sequence=log.sequence,
                    reconnect_timeout=self.reconnect_timeout,
                )
                async with contextlib.aclosing(events):
                    async for event in events:
                        log.add(event)
                        await asyncio.sleep(0)  # other triggers share this event loop
            finally:
                saving.cancel()
                await asyncio.gather(saving, return_exceptions=True)

    async def _saved(self) -> dict[str, Any] | None:
        """Return the position that an earlier triggerer has saved, if any."""
        if self.task_instance is None:
            return None
        position = await XCom.aget_value(ti_key=self.task_instance, key=_POSITION)
        # The trigger of an earlier try may have saved its last position after the XComs were cleared.
        if not position or position["notebook_run_id"] != self.notebook_run_id:
            return None
        self.log.info("Following run %s again, after event %d.", self.notebook_run_id, position["sequence"])
        return dict(position)

    async def _save_regularly(self, log: TaskLog) -> None:
        if self.task_instance is None:
            return  # `airflow dags test` follows the run in its own process, and once
        saved = log.position
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            position = log.position
            if position != saved:
                await self._save(position)
                saved = position

    async def _save(self, position: dict[str, Any]) -> None:
        ti = self.task_instance
        await XCom.aset(
            _POSITION,
            {"notebook_run_id": self.notebook_run_id, **position},
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            map_index=ti.map_index,
        )

    def _is_deferred(self) -> bool:
        """Return whether the task still waits for this trigger."""
        ti = self.task_instance
        states = RuntimeTaskInstance.get_task_states(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
        )
        return "deferred" in states.get(ti.run_id, {}).values()
