"""How ipykernel is started: the arguments of each kernel, and the code that it executes first."""

MESSAGES_ON_THE_WAY = 16
"""Messages of output that each side queues; ZeroMQ's default is 1000."""

FLUSH_SECONDS = 0.02
"""Seconds until printed text is sent that is not flushed; ipykernel's default is 0.2 s."""

FLUSH_CHARACTERS = 1024 * 1024
"""Characters of printed text that may wait to be sent before printing blocks."""

WRITES_PER_CHECK = 8
"""Writes between two counts of the waiting characters: to count at each took a fifth of the write's time."""

# A kernel that prints faster than it is read drops what its socket cannot hold; with XPUB_NODROP it waits.
# But it buffers unsent text without a bound, as one message of any size, which delays the end of the run.
# (Its write() cannot be replaced, because IPython does that for each cell, and undoes it.) A message with a
# lone surrogate cannot be encoded: printed text is lost, and an exception becomes a UnicodeEncodeError; as
# an escape of JSON it can be sent. ipykernel sleeps 0.5 ms before each reply, so that output arrives before
# it; the server waits for the output. Warnings name a cell's file, which would be in the run's TMPDIR: it
# gets the name that Jupyter uses. The file does not exist in Jupyter either.
#
# `%run` of a script that raises shows the traceback and reports success; `%run` of a notebook raises. Here
# both raise, so that no cell continues after half a script. `exit()` would end the kernel 0.1 s after the
# cell, in the middle of the next one: the server ends it.
SETUP = f"""
import json
import os
import sys
import threading
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
kernel._execute_sleep = 0
def bound(stream):
    flush = stream.flush
    timer_runs = False
    writes = 0
    def flush_later():
        nonlocal timer_runs
        timer_runs = False
        stream._flush()
    def flush_or_schedule():
        nonlocal timer_runs, writes
        writes += 1
        if timer_runs and writes % {WRITES_PER_CHECK}:
            return
        waiting = 0
        try:
            for buffer in list(stream._buffers.values()):
                waiting += buffer.tell()
        except ValueError:
            # It was sent meanwhile, and closed.
            pass
        if waiting > {FLUSH_CHARACTERS}:
            stream.flush()
        elif not timer_runs:
            timer_runs = True
            stream.pub_thread.schedule(lambda: stream._io_loop.call_later({FLUSH_SECONDS}, flush_later))
    def flush_and_wait():
        thread = stream.pub_thread and stream.pub_thread.thread
        if not thread or not thread.is_alive() or thread is threading.current_thread():
            flush()
            return
        sent = threading.Event()
        def send():
            try:
                stream._flush()
            finally:
                sent.set()
        stream.pub_thread.schedule(send)
        if not sent.wait(stream.flush_timeout):
            print("IOStream.flush timed out", file=sys.__stderr__)
    stream._schedule_flush = flush_or_schedule
    stream.flush = flush_and_wait
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
"""What a kernel executes before anything of the user's."""

ARGUMENTS = [
    # As nbclient does: no run finds the history of another.
    "--HistoryManager.hist_file=:memory:",
    # In a namespace of its own: the notebook's stays empty.
    f"--IPKernelApp.exec_lines=exec({SETUP!r}, {{'get_ipython': get_ipython}})",
]
"""For ipykernel's command line."""
