"""The machine and the versions behind a result, so that two results can be compared."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any


def facts(folder: Path) -> dict[str, Any]:
    """Return what is known of this machine; `folder` is where the volumes lie. Unknown facts are null."""
    return {
        "kernel": platform.release(),
        "cpu": _read(lambda: _line("/proc/cpuinfo", "model name")),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_before": os.getloadavg(),
        "file_system": file_system(folder),
        "python": platform.python_version(),
        "fio": _version("fio"),
        "nbdkit": _version("nbdkit"),
        "commit": _read(lambda: _output(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"])),
    }


def file_system(folder: Path) -> str | None:
    """Return the type of the file system that a folder is on, as /proc/mounts names it."""
    best, kind = "", None
    wanted = str(folder.resolve())
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, found, *_ = line.split()
        if (wanted + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _version(tool: str) -> str | None:
    return _read(lambda: _output([tool, "--version"])) if shutil.which(tool) else None


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _line(path: str, name: str) -> str:
    return next(line.partition(":")[2].strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.startswith(name))


def _read(fact: Callable[[], str]) -> str | None:
    try:
        return fact()
    except (OSError, subprocess.CalledProcessError, StopIteration):
        return None
