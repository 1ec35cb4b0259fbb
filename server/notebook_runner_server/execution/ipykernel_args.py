"""What ipykernel is told before anything of the notebook: its output shall arrive whole, soon and bounded."""

from __future__ import annotations

MESSAGES_ON_THE_WAY = 16
"""How many messages each side of a kernel's output holds; ZeroMQ's own default is 1000."""

FLUSH_SECONDS = 0.02
"""When printed text that is not flushed is sent; ipykernel's own interval is 0.2 s."""

FLUSH_CHARACTERS = 1024 * 1024
"""How much printed text may wait to be sent before the one who prints has to wait."""

# A kernel that prints faster than it is read drops what its socket cannot hold; with XPUB_NODROP it waits.
# But what it has not sent yet it keeps without a bound, as one message of any size, for which everybody has
# to wait when the run is ended. (Its write() cannot be replaced: IPython does that itself, for each cell, and
# undoes it.) A message with text that is no Unicode (a lone surrogate) cannot be encoded: printed text is
# lost, and an exception is told as another one; as an escape of JSON it can be.
# A cell's file, which warnings name, would be in the run's folder for temporary files, which is the server's
# and says nothing to a reader: it is named as Jupyter names it. No such file exists there either.
#
# `%run` of a script that raises shows the traceback and reports success; of a notebook it raises. A script
# is as a notebook here, so that no cell goes on with what half a script has left. `exit()` makes the kernel
# end by itself 0.1 s after the cell, in the middle of the next one: the server ends it.
_SOURCE = f"""
import json
import os
import sys
import zmq
import ipykernel.compiler
from jupyter_client.jsonutil import json_default
shell = get_ipython()
kernel = shell.kernel
kernel.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)
kernel.iopub_thread.socket.setsockopt(zmq.SNDHWM, {MESSAGES_ON_THE_WAY})
pack = kernel.session.pack
def pack_any(message):
    try:
        return pack(message)
    except UnicodeEncodeError:
        return json.dumps(message, default=json_default).encode()
kernel.session.pack = pack_any
def bound(stream):
    schedule = stream._schedule_flush
    def schedule_or_wait():
        with stream._buffer_lock:
            waiting = sum(one.tell() for one in stream._buffers.values())
        if waiting > {FLUSH_CHARACTERS}:
            stream.flush()
        else:
            schedule()
    stream._schedule_flush = schedule_or_wait
    stream.flush_interval = {FLUSH_SECONDS}
bound(sys.stdout)
bound(sys.stderr)
ipykernel.compiler.get_tmp_directory = lambda: f"/tmp/ipykernel_{{os.getpid()}}"
execute_file = shell.safe_execfile
def execute_file_or_raise(name, *where, exit_ignore=False, **options):
    __tracebackhide__ = True
    try:
        return execute_file(name, *where, **{{**options, "raise_exceptions": True}})
    except SystemExit:
        if not exit_ignore:
            raise
shell.safe_execfile = execute_file_or_raise
shell.unobserve_all("exit_now")
"""

ARGUMENTS = [
    # As nbclient does: no run finds the history of another.
    "--HistoryManager.hist_file=:memory:",
    # In a namespace of its own: the notebook's stays empty.
    f"--IPKernelApp.exec_lines=exec({_SOURCE!r}, {{'get_ipython': get_ipython}})",
]
"""For ipykernel's command line."""
