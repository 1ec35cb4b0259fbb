"""Programs that some tests need: a machine may lack them, but CI installs all (`.ci/run`)."""

import os
import shutil

import pytest

IS_CI = os.environ.get("CI") == "true"


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips a test where one of these programs is not installed; in CI, it runs and fails."""
    lacking = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(lacking) and not IS_CI, reason=f"not installed: {', '.join(lacking)}")
