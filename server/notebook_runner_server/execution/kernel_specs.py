"""Finds kernelspecs in the folders in which jupyter_client looks."""

from __future__ import annotations

import os
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import jupyter_path


class KernelSpecs(KernelSpecManager):
    """The kernelspecs of this machine.

    jupyter_client imports all of IPython to learn where its folder is: a tenth of a worker's memory.
    """

    def _kernel_dirs_default(self) -> list[str]:
        ipython = Path(os.environ.get("IPYTHONDIR") or "~/.ipython").expanduser()
        return [*jupyter_path("kernels"), str(ipython / "kernels")]
