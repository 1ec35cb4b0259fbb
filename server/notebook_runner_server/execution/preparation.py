"""What ipykernel is told before anything of the notebook: its output shall arrive whole, soon and bounded."""

from __future__ import annotations

MESSAGES_ON_THE_WAY = 16
"""How many messages each side of a kernel's output holds; ZeroMQ's own default is 1000."""

FLUSH_SECONDS = 0.02
"""When printed text that is not flushed is sent; ipykernel's own interval is 0.2 s."""

FLUSH_CHARACTERS = 1024 * 1024
"""How much printed text may wait to be sent before the one who prints has to wait."""

# A kernel that prints faster than it is read drops what its socket cannot hold; with XPUB_NODROP it waits. What
# it printed and did not send it keeps without a bound, as one message of any size, for which everybody has to
# wait when the run is ended. A message with text that is no Unicode (a lone surrogate) cannot be encoded:
# printed text is lost, and an exception is told as another one; as an escape of JSON it can be.
_SOURCE = f"""
import json
import sys
import zmq
from jupyter_client.jsonutil import json_default
kernel = get_ipython().kernel
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
    write, held = stream.write, 0
    def write_and_wait(text):
        nonlocal held
        written = write(text)
        held += len(text)
        if held > {FLUSH_CHARACTERS}:
            held = 0
            stream.flush()
        return written
    stream.write = write_and_wait
    stream.flush_interval = {FLUSH_SECONDS}
bound(sys.stdout)
bound(sys.stderr)
"""

ARGUMENTS = [
    # As nbclient does: no run finds the history of another.
    "--HistoryManager.hist_file=:memory:",
    # In a namespace of its own: the notebook's stays empty.
    f"--IPKernelApp.exec_lines=exec({_SOURCE!r}, {{'get_ipython': get_ipython}})",
]
"""For ipykernel's command line."""
