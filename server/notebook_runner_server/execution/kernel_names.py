"""Which kernelspec a kernel's name means."""

from __future__ import annotations


def resolve(name: str) -> str:
    """Return the kernelspec that jupyter_client starts for a name; empty for an empty one.

    `python` is its native kernelspec, upper and lower case are the same. Whether there is such a kernelspec
    is not asked here.
    """
    if not name or (name.islower() and name != "python"):
        return name
    # It takes 0.1 s to import, and few names need it.
    from jupyter_client.manager import KernelManager  # noqa: PLC0415 - the reason above

    return KernelManager(kernel_name=name).kernel_name.lower()
