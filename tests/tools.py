"""What a test needs from the machine: skip by name where it is missing, fail in CI."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need(*programs: str, root: bool = False) -> None:
    """Skip, naming what is missing; in CI (CI=true) nothing may skip, so it fails."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    if missing:
        lacking(f"needs {', '.join(missing)}")


def lacking(reason: str) -> NoReturn:
    """Skip the test by `reason`; in CI (CI=true), where nothing may skip, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have everything: {reason}", pytrace=False)
    pytest.skip(reason)
