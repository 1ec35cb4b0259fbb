"""Executes the cells of a notebook with nbclient, and emits events as they happen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import zmq
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode, from_dict
from nbformat.validator import NotebookValidationError

from notebook_runner_server.execution import notebook as notebooks
from notebook_runner_server.execution import output_limiter
from notebook_runner_server.execution.displays import display_event, unicode
from notebook_runner_server.execution.failures import MAX_NAME, CellError, cut, plain
from notebook_runner_server.execution.interface import (
    MAX_TEXT_BYTES,
    CellFinished,
    CellOutcome,
    CellStarted,
    ClearOutput,
    ErrorOutput,
    ExecutionEvent,
    Limits,
    OutputCut,
    SegmentChunk,
    StreamOutput,
)
from notebook_runner_server.execution.kernel_client import KernelClient
from notebook_runner_server.execution.output_limiter import OutputLimiter
from notebook_runner_server.execution.segments import TAIL

_OUTPUTS = {"stream", "display_data", "execute_result", "update_display_data", "error", "clear_output"}
# nbclient's errors for messages with missing fields, fields of wrong types, or values nested too deep.
_MALFORMED = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    RecursionError,
    NotebookValidationError,
)
MAX_FIRST_LINE = 200
MAX_COUNT = 2**31 - 1  # what the contract can carry
FOR_EVER = 2**31
CHUNK_BYTES = 512 * 1024


class StreamingNotebookClient(NotebookClient):
    """An nbclient that emits events, and the bytes of each cell when it has ended.

    The caller owns kernel and signals: pass `km` and set `kc` before `async_execute`.

    Attributes:
        error: The error of the last cell; None: it did not fail.

    Args:
        notebook: The notebook to execute in place.
        emit: Called with each event.
        on_output: Called for each output of the kernel, kept or not.
        before_cell: Called before each cell; its exceptions end the execution.
        after_cell: Called after each cell, however it ended; returns whether the run is being stopped.
        explain: Called with an error's text; returns an explanation or an empty text.
        limits: The run's limits; output beyond them is cut.
        content_bytes: Maximum size of a representation whose content its event has; zero: none.
    """

    def __init__(
        self,
        notebook: NotebookNode,
        *,
        emit: Callable[[ExecutionEvent], None],
        on_output: Callable[[], None],
        before_cell: Callable[[int, str], None],
        after_cell: Callable[[], bool],
        explain: Callable[[str], str],
        limits: Limits,
        content_bytes: int = 0,
        **traits: Any,
    ) -> None:
        super().__init__(notebook, **traits)
        self._emit = emit
        self._on_output = on_output
        self._before_cell = before_cell
        self._after_cell = after_cell
        self._explain = explain
        self._limiter = OutputLimiter(limits)
        self._content_bytes = content_bytes
        self._cut = self._raised = self._error_allowed = False
        self.error: CellError | None = None
        # The last error that the kernel published in the cell.
        self._shown: CellError | None = None
        # The text output that further text of its stream is added to, and its pieces, joined once at the end.
        self._text: NotebookNode | None = None
        self._pieces: list[str] = []
        # The notebook has called exit().
        self._exited = False
        self._messages = 0
        self.quiet_seconds, self.iopub_timeout = self.iopub_timeout, FOR_EVER
        # Cells that ended earlier and were changed since, by an update of their display.
        self._changed: set[int] = set()
        self.on_cell_error = self._note_error

    @asynccontextmanager
    async def async_setup_kernel(self, **_: Any) -> AsyncGenerator[None, None]:
        """Leave kernel and signal handlers alone, which nbclient would take over."""
        yield

    async def async_execute_cell(
        self, cell: NotebookNode, cell_index: int, *arguments: Any, **options: Any
    ) -> NotebookNode:
        """Execute a cell as nbclient does, and emit its start and end."""
        if self._exited:
            return cell
        if not self._is_executed(cell):
            return await super().async_execute_cell(cell, cell_index, *arguments, **options)
        self._before_cell(cell_index, cell.get("id", ""))
        self._cut = self._raised = self._error_allowed = False
        self.error = self._shown = None
        self._limiter.start_cell()
        self._emit(CellStarted(cell_index, cell.get("id", ""), _first_line(cell.source)))
        start = time.monotonic()
        outcome = CellOutcome.STOPPED
        try:
            await super().async_execute_cell(cell, cell_index, *arguments, **options)
            outcome = CellOutcome.ERROR_ALLOWED if self._error_allowed else CellOutcome.SUCCEEDED
        except CellExecutionError:
            outcome = CellOutcome.FAILED
            raise
        finally:
            if self._after_cell():
                outcome = CellOutcome.STOPPED
            self._finish(cell, cell_index, time.monotonic() - start, outcome)
        return cell

    async def async_wait_for_reply(self, msg_id: str, cell: NotebookNode | None = None) -> Any:
        """Return the `kernel_info_reply` that made the kernel ready, or wait for a reply as nbclient does."""
        known = self.kc.known_info_reply(msg_id) if isinstance(self.kc, KernelClient) else None
        return known or await super().async_wait_for_reply(msg_id, cell)

    async def _async_poll_for_reply(
        self, msg_id: str, cell: NotebookNode, limit: int | None, output: Any, alive: Any
    ) -> Any:
        """Wait for the end of a cell as nbclient does, and for its output as long as some comes.

        nbclient waits for it only 4 s (`iopub_timeout`) after the kernel's reply, and drops the rest: 32 of
        300 MB were missing.
        """
        rest: Any = self._rest_of(output)
        try:
            return await super()._async_poll_for_reply(msg_id, cell, limit, rest, alive)
        finally:
            # It was never awaited if the kernel did not reply.
            rest.close()

    async def _rest_of(self, output: asyncio.Future[Any]) -> None:
        while not output.done():
            messages = self._messages
            await asyncio.wait({output}, timeout=self.quiet_seconds)
            if not output.done() and self._messages == messages:
                output.cancel()
                raise TimeoutError
        output.result()

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> Any:
        """Process a message of the kernel as nbclient does, within the limits, and emit its events."""
        self._messages += 1
        kind = msg["msg_type"]
        is_output, is_comm = kind in _OUTPUTS, kind.startswith("comm_")
        content = output_limiter.sound(kind, msg["content"])
        if content is None:
            return None
        msg = {**msg, "content": content}
        if is_output:
            self._on_output()
        elif not is_comm:
            return self._process(msg, cell, cell_index)
        if kind == "error":
            msg["content"] = self._annotated(content)
        if kind == "error" and not self._raised:
            # The error that ended the cell is never cut.
            self._raised = True
            return self._process(msg, cell, cell_index)
        if self._cut:
            # Not even a clear_output, which would remove the mark.
            return None
        room = self._limiter.left()
        wanted = self._limiter.cost(msg["content"]) + sum(map(len, msg.get("buffers") or ()))
        self._limiter.take(wanted)
        if wanted <= room:
            return self._process(msg, cell, cell_index)
        return self._cut_off(msg, int(room), cell, cell_index)

    def _cut_off(self, msg: dict[str, Any], room: int, cell: NotebookNode, cell_index: int) -> Any:
        """Keep what the limit allows of a message, and mark the cut."""
        self._cut = True
        if content := output_limiter.shortened(msg["msg_type"], msg["content"], room):
            self._process({**msg, "content": content}, cell, cell_index)
        limit, whole_run = self._limiter.reached()
        whose = "run" if whole_run else "cell"
        text = f"\n[output cut: this {whose} reached its limit of {limit} bytes]\n"
        mark = {**msg, "msg_type": "stream", "content": {"name": "stderr", "text": text}}
        mark["header"] = {**msg["header"], "msg_type": "stream"}
        output = super().process_message(mark, cell, cell_index)
        self._emit(OutputCut(cell_index, limit, whole_run))
        return output

    def _process(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> Any:
        try:
            output = super().process_message(msg, cell, cell_index)
            events = _events(msg, cell_index, self._content_bytes)
        except _MALFORMED:
            self.log.warning("malformed message of the kernel ignored", exc_info=True)
            return None
        if msg["msg_type"].startswith("comm") and self.kc is not None:
            # An output widget makes nbclient send on the shell socket while the reply is awaited there, past
            # pyzmq's asyncio layer, which can lose the signal that the reply has come. Reading the socket's
            # events makes pyzmq check again.
            self.kc.shell_channel.socket.get(zmq.EVENTS)
        for event in events:
            self._emit(event)
        return output

    def emit_tail(self) -> None:
        """Emit the part of the notebook that is not a cell: its metadata and widgets as they are now."""
        self.set_widgets_metadata()
        self._emit_segment(TAIL, notebooks.encode_tail(self.nb))

    def _is_executed(self, cell: NotebookNode) -> bool:
        return (
            cell.cell_type == "code"
            and bool(cell.source.strip())
            and self.skip_cells_with_tag not in cell.metadata.get("tags", [])
        )

    def _finish(self, cell: NotebookNode, index: int, duration: float, outcome: CellOutcome) -> None:
        for number in sorted(self._changed - {index}):
            self._emit_segment(number, notebooks.encode_cell(self.nb.cells[number]))
        self._changed.clear()
        self._join_text()
        self._emit_segment(index, notebooks.encode_cell(cell))
        count = min(max(0, cell.get("execution_count") or 0), MAX_COUNT)
        self._emit(CellFinished(index, cell.get("id", ""), count, duration, outcome))

    def _emit_segment(self, segment: int, encoded: bytes) -> None:
        for start in range(0, len(encoded), CHUNK_BYTES):
            piece = encoded[start : start + CHUNK_BYTES]
            self._emit(SegmentChunk(segment, piece, last=start + CHUNK_BYTES >= len(encoded)))

    def output(
        self, outs: list[NotebookNode], msg: dict[str, Any], display_id: str | None, cell_index: int
    ) -> NotebookNode | None:
        """Add an output as nbclient does, and join text to preceding text of the same stream.

        nbclient checks each output with the format's schema, which took a quarter of the time of a message.
        Here that is done only for outputs that the schema might refuse.
        """
        if self.output_hook_stack[msg["parent_header"].get("msg_id")]:
            self._join_text()
            return super().output(outs, msg, display_id, cell_index)
        content = msg["content"]
        if (
            msg["msg_type"] == "stream"
            and self._text is not None
            and bool(outs)
            and outs[-1] is self._text
            and self._text.name == content["name"]
            and not self.clear_before_next_output
        ):
            self._pieces.append(content["text"])
            return self._text
        self._join_text()
        output = output_node(msg)
        if output is None:
            return super().output(outs, msg, display_id, cell_index)
        if self.clear_before_next_output:
            outs.clear()
            self.clear_display_id_mapping(cell_index)
            self.clear_before_next_output = False
        if display_id:
            self._display_id_map.setdefault(display_id, {}).setdefault(cell_index, []).append(len(outs))
        outs.append(output)
        if output.output_type == "stream":
            self._text, self._pieces = output, [output.text]
        return output

    def _join_text(self) -> None:
        if self._text is not None:
            self._text["text"] = "".join(self._pieces)
        self._text, self._pieces = None, []

    async def _check_raise_for_error(
        self, cell: NotebookNode, cell_index: int, exec_reply: dict[str, Any] | None
    ) -> None:
        """Raise for a reply as nbclient does, unless the notebook has called exit()."""
        content = exec_reply["content"] if exec_reply else {}
        if _is_exit(content) and "raises-exception" not in cell.metadata.get("tags", []):
            self._exited = True
        else:
            await super()._check_raise_for_error(cell, cell_index, exec_reply)

    def _update_display_id(self, display_id: str, msg: dict[str, Any]) -> None:
        cells = self._display_id_map.get(display_id, {})
        output = output_node({**msg, "msg_type": "display_data"})
        if output is None:
            super()._update_display_id(display_id, msg)
        else:
            shown = [
                self.nb.cells[cell].outputs[number] for cell, numbers in cells.items() for number in numbers
            ]
            for one in shown:
                one["data"], one["metadata"] = output.data, output.metadata
        self._changed.update(cells)

    def _note_error(self, *, cell: NotebookNode, execute_reply: dict[str, Any], **_: Any) -> None:
        # Also called for errors that end the run, which raise next.
        self._error_allowed = True
        self._join_text()
        content = execute_reply["content"]
        name, message = str(content.get("ename", "")), str(content.get("evalue", ""))
        shown = self._shown
        # The reply to an error in the display of a result has only "NoneType: None".
        if shown is not None and (name in ("", "NoneType") or (name, message) == (shown.name, shown.message)):
            self.error = shown
            return
        # IPython prints errors that it cannot format (exception groups, its own UsageError); its reply has
        # the traceback of an earlier exception, or none.
        printed = [out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stderr"]
        traceback = plain(printed[-1]) if printed else ""
        if name not in traceback:
            traceback = plain("\n".join(content.get("traceback") or []))
        self.error = CellError(name, message, traceback, self._explain(f"{traceback}\n{message}"))

    def _annotated(self, content: dict[str, Any]) -> dict[str, Any]:
        """Note an error that the kernel publishes, and add the explanation to its traceback."""
        name, message = str(content.get("ename", "")), str(content.get("evalue", ""))
        lines = list(content.get("traceback", []))
        traceback = plain("\n".join(lines))
        if note := self._explain(f"{traceback}\n{message}"):
            lines, traceback = [*lines, f"\n{note}"], f"{traceback}\n\n{note}"
        self._shown = CellError(name, message, traceback, note)
        return {**content, "traceback": lines}


def _is_exit(reply: dict[str, Any]) -> bool:
    """Return whether a cell has called `sys.exit(0)`, `sys.exit()`, `exit()` or `quit()`."""
    if reply.get("status") == "error":
        return reply.get("ename") == "SystemExit" and reply.get("evalue") in ("", "0", "None")
    payload = [one for one in reply.get("payload", []) if isinstance(one, dict)]
    return any(one.get("source") == "ask_exit" and not one.get("keepkernel") for one in payload)


def output_node(msg: dict[str, Any]) -> NotebookNode | None:
    """Return a message's output if its types show that it obeys the format's schema; None: they do not."""
    kind, content = msg["msg_type"], msg["content"]
    match kind:
        # The types of these two are checked already (`output_limiter.sound`).
        case "stream":
            fields = {name: content[name] for name in ("name", "text")}
        case "error":
            fields = {name: content[name] for name in ("ename", "evalue", "traceback")}
        case "display_data" | "execute_result":
            fields = {name: content[name] for name in ("data", "metadata")}
            if not all(isinstance(value, str) for value in fields["data"].values()):
                return None
            if kind == "execute_result":
                count = fields["execution_count"] = content["execution_count"]
                if count is not None and (isinstance(count, bool) or count < 0):
                    return None
        case _:
            return None
    node: NotebookNode = from_dict({"output_type": kind, **fields})
    return node


def _first_line(source: str) -> str:
    return unicode(next(filter(str.strip, source.splitlines()), "").strip()[:MAX_FIRST_LINE])


def _events(msg: dict[str, Any], cell_index: int, content_bytes: int) -> list[ExecutionEvent]:
    content = msg["content"]
    match msg["msg_type"]:
        case "stream":
            text = unicode(content["text"])
            # A character has up to four bytes.
            step = MAX_TEXT_BYTES if text.isascii() else MAX_TEXT_BYTES // 4
            return [
                StreamOutput(cell_index, unicode(content["name"]), text[start : start + step])
                for start in range(0, len(text), step)
            ]
        case "display_data" | "execute_result" | "update_display_data" as kind:
            return [display_event(kind, content["data"], cell_index, content_bytes)]
        case "error":
            return [
                ErrorOutput(
                    cell_index, unicode(str(content["ename"])[:MAX_NAME]), cut(str(content["evalue"]))
                )
            ]
        case "clear_output":
            return [ClearOutput(cell_index, bool(content.get("wait")))]
    return []
