"""Cells whose processes are hard to end; each says "here" when it is what it means to be."""

HERE = 'import os, subprocess, sys, time\nmark = os.environ["NBR_RUN_MARK"]\n'
# Written at once: the end of a line may be a message of its own otherwise, which a Kill leaves behind.
SAY = 'print("here\\n", end="", flush=True)\n'
SLEEP = "while True:\n    time.sleep(1000)\n"
IGNORE = (
    "import signal\nfor number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
    "    signal.signal(number, signal.SIG_IGN)\n"
)
SAME_GROUP = 'subprocess.Popen(["sleep", mark])\n'
OWN_SESSION = 'subprocess.Popen(["sleep", mark], start_new_session=True)\n'
FORKED_TWICE = 'subprocess.run(["sh", "-c", "setsid sleep $NBR_RUN_MARK & "], check=True)\n'
SCRUBBED = 'subprocess.Popen(["sleep", mark], env={}, start_new_session=True)\n'
# A child that ignores what can be ignored and is stopped as well.
STUBBORN = """
child = subprocess.Popen(["sh", "-c", "trap '' INT TERM HUP; while :; do sleep $NBR_RUN_MARK; done"])
os.kill(child.pid, 19)
"""
# Chains of processes that fork and exit, each link in a session of its own: no list of them is ever true.
# The cell waits until all chains are forking.
STORM = """
LINK = '''
import os, sys, time
end, begun = time.monotonic() + 30, False
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    os.setsid()
    time.sleep(0.005)
    if not begun:
        begun = bool(os.write(int(sys.argv[2]), b"."))
'''
reader, writer = os.pipe()
os.set_inheritable(writer, True)
for _ in range({chains}):
    subprocess.Popen([sys.executable, "-c", LINK, mark, str(writer)], close_fds=False)
for _ in range({chains}):
    os.read(reader, 1)
"""
# So many processes whose parent is gone when they end: somebody has to reap them.
ORPHANS = """
subprocess.run(["sh", "-c", "for n in $(seq 500); do (true &) done"], check=True)
"""
# Text leaves a kernel on a thread that needs the interpreter: the cell waits until the test has seen it.
HOLD = """
import ctypes
os.read(os.open(os.environ["NBR_GATE"], os.O_RDONLY), 1)
ctypes.PyDLL(None).sleep(1000)
"""
# The main thread of a child has ended, which makes it look like a zombie, and another one goes on.
HEADLESS = """
LIVES = '''
import ctypes, os, sys, threading
threading.Thread(target=threading.Event().wait).start()
os.write(int(sys.argv[2]), b".")
ctypes.CDLL(None).pthread_exit(None)
'''
reader, writer = os.pipe()
os.set_inheritable(writer, True)
child = subprocess.Popen([sys.executable, "-c", LIVES, mark, str(writer)], close_fds=False)
os.read(reader, 1)
while b"State:\\tZ" not in open(f"/proc/{child.pid}/status", "rb").read():
    time.sleep(0.01)
"""
ALL = SAME_GROUP + OWN_SESSION + FORKED_TWICE + SCRUBBED + STUBBORN + HEADLESS

# The cell, and how many processes of it there are at the least, the kernel among them.
TREES: dict[str, tuple[str, int]] = {
    "sleeping": (HERE + SAY + SLEEP, 1),
    "busy": (HERE + SAY + "while True:\n    pass\n", 1),
    "holds the interpreter": (HERE + SAY + HOLD, 1),
    "ignores signals": (HERE + IGNORE + SAY + SLEEP, 1),
    "child": (HERE + SAME_GROUP + SAY + SLEEP, 2),
    "own session": (HERE + OWN_SESSION + SAY + SLEEP, 2),
    "forked twice": (HERE + FORKED_TWICE + SAY + SLEEP, 2),
    "scrubbed environment": (HERE + SCRUBBED + SAY + SLEEP, 2),
    "stopped and stubborn": (HERE + STUBBORN + SAY + SLEEP, 2),
    "main thread ended": (HERE + HEADLESS + SAY + SLEEP, 2),
    "all together": (HERE + IGNORE + ALL + SAY + HOLD, 7),
    "fork storm": (HERE + STORM.format(chains=20) + SAY + SLEEP, 2),
}
