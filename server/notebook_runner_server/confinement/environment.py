"""The environment of kernels: an allowlist of the server's variables."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

OWN_PREFIX = "NOTEBOOK_RUNNER_"
"""Prefix of the server's own variables."""

PASSED = """
PATH HOME USER LOGNAME SHELL LANG LANGUAGE LC_* TZ TZDIR TMPDIR TERM COLUMNS LINES
LD_LIBRARY_PATH VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV CONDA_EXE CONDA_PYTHON_EXE CONDA_SHLVL
PYTHONPATH PYTHONHOME PYTHONHASHSEED PYTHONWARNINGS PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONIOENCODING
PYTHONUTF8 PYTHONNOUSERSITE PYTHONUSERBASE PYTHONOPTIMIZE PYTHONFAULTHANDLER PYTHONPYCACHEPREFIX
JUPYTER_PATH JUPYTER_CONFIG_DIR JUPYTER_CONFIG_PATH JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR JUPYTER_PLATFORM_DIRS
JUPYTER_PREFER_ENV_PATH IPYTHONDIR XDG_CACHE_HOME XDG_CONFIG_HOME XDG_CONFIG_DIRS XDG_DATA_HOME XDG_DATA_DIRS
MPLCONFIGDIR MPLBACKEND OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS
NUMEXPR_MAX_THREADS NUMEXPR_NUM_THREADS MALLOC_ARENA_MAX CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES
NVIDIA_DRIVER_CAPABILITIES SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
JAVA_HOME R_HOME R_LIBS R_LIBS_USER R_LIBS_SITE JULIA_DEPOT_PATH JULIA_PROJECT JULIA_NUM_THREADS
"""
"""Names of variables to pass, as patterns with `*`: locations of programs, modules and languages, and numbers
of
processors to use. None of them is meant for secrets."""


def allowed(environment: Mapping[str, str], more: Iterable[str]) -> dict[str, str]:
    """Return the variables that a kernel may have.

    Args:
        environment: All variables.
        more: Further names, as patterns with `*`.
    """
    patterns = (*PASSED.split(), *more)
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def scrub_environ(more: Iterable[str]) -> None:
    """Remove all variables from this process's environment that its kernels may not have."""
    kept = allowed(os.environ, more)
    for name in [name for name in os.environ if name not in kept]:
        del os.environ[name]


@contextlib.contextmanager
def scrubbed_environ(more: Iterable[str]) -> Iterator[None]:
    """Do the same temporarily; no other thread may read the environment meanwhile."""
    before = dict(os.environ)
    scrub_environ(more)
    try:
        yield
    finally:
        os.environ.update(before)


def inherited() -> dict[str, str]:
    """Return the environment of every kernel: this process's without the server's own variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIX)}
