"""Secrets by file or by command, as lines of text: passwords and keys stand in no config, no argument and no environment that way.

What was read is returned and nothing else: no error, no cause of one and no log line holds it.
"""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

from stream.errors import ConfigError

COMMAND_S_MAX = 30.0
COMMAND_KEPT_S = 60.0
_told: dict[str, tuple[float, list[str]]] = {}
_telling = threading.Lock()


def from_file(key: str, path: str) -> list[str]:
    """Return the lines of a file, the first of them not empty. `key` is what the config calls it. Raises ConfigError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{key} can't be read: {error.strerror}", hint="See docs/security.md.", path=path) from error
    except UnicodeDecodeError:
        raise ConfigError(f"{key} is not text", hint="Its first line is the secret.", path=path) from None
    if not lines or not lines[0]:
        raise ConfigError(f"{key} is empty", hint="Its first line is the secret.", path=path)
    return lines


def from_command(key: str, line: str) -> list[str]:
    """Return the lines that a shell line prints, or printed less than a minute ago: a service makes many clients.

    It may take `COMMAND_S_MAX`. Raises ConfigError.
    """
    with _telling:
        kept_until_s, lines = _told.get(line, (0.0, []))
        if time.monotonic() < kept_until_s:
            return lines
        hint = f"{key} is a shell line that prints the secret and exits with 0."
        try:
            done = subprocess.run(
                line, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=COMMAND_S_MAX, check=False, text=True
            )
        except (subprocess.TimeoutExpired, UnicodeDecodeError):
            raise ConfigError(f"{key} gives nothing", hint=hint) from None  # the cause may hold what it said
        lines = done.stdout.splitlines()
        if done.returncode or not lines or not lines[0]:
            raise ConfigError(f"{key} gives nothing", hint=hint, exit_code=done.returncode)
        _told[line] = (time.monotonic() + COMMAND_KEPT_S, lines)
        return lines
