"""Executes a command, and all that it starts, as on a system without Landlock: seccomp answers ENOSYS."""

import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, ANSWER = 0x7FFF0000, 0x00050000
LOAD_WORD, JUMP_IF_LEAST, JUMP_IF_MORE, RETURN = 0x20, 0x35, 0x25, 0x06
# landlock_create_ruleset, _add_rule and _restrict_self, on every architecture of today.
FIRST, LAST = 444, 446

PROGRAM = [
    (LOAD_WORD, 0, 0, 0),  # the number of the system call
    (JUMP_IF_LEAST, 0, 2, FIRST),
    (JUMP_IF_MORE, 1, 0, LAST),
    (RETURN, 0, 0, ANSWER | errno.ENOSYS),
    (RETURN, 0, 0, ALLOW),
]


def forbid() -> None:
    """Has the filter hold for this process from now on."""
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in PROGRAM))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(PROGRAM), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0),
    ):
        if libc.prctl(*map(ctypes.c_ulong, arguments)) != 0:
            raise OSError(ctypes.get_errno(), "prctl failed")


if __name__ == "__main__":
    forbid()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - the command that it was given
