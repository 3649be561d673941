"""The systemd units of deploy/, read by a few lines of Python: sections of key and value, comments left out (systemd.syntax(7))."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
PROGRAM = "/usr/bin/hostoffload"
STATE, RUN, CONFIG = Path("/var/lib/hostoffload"), Path("/run/hostoffload"), Path("/etc/hostoffload/hostoffload.toml")
SERVICES = ("hostoffload-publisher", "hostoffload-capture", "hostoffload-cx", "hostoffload-target")


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit file."""

    name: str
    lines: tuple[tuple[str, str, str], ...]

    def all(self, section: str, key: str) -> list[str]:
        return [value for in_section, name, value in self.lines if (in_section, name) == (section, key)]

    def one(self, section: str, key: str) -> str:
        (value,) = self.all(section, key)
        return value

    def keys(self, section: str) -> set[str]:
        return {name for in_section, name, _ in self.lines if in_section == section}

    @property
    def command(self) -> list[str]:
        """Return what ExecStart runs, specifiers filled in; the first word is the program."""
        return shlex.split(self.one("Service", "ExecStart").replace("%l", "host"))

    @property
    def environment(self) -> dict[str, str]:
        words = [word for value in self.all("Service", "Environment") for word in shlex.split(value)]
        return dict(word.split("=", 1) for word in words)


def unit(name: str) -> Unit:
    """Read a unit of deploy/systemd/."""
    section, lines = "", []
    for line in (DEPLOY / "systemd" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert section and equals, f"{name}: {line!r} is no line of a unit"
            lines.append((section, key, value))
    return Unit(name, tuple(lines))


def services() -> list[Unit]:
    """Return the service units in the order in which they start."""
    return [unit(f"{name}.service") for name in SERVICES]
