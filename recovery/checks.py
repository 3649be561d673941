"""Checks: shell lines that say whether a volume at a point is good, and what of the machine they need.

`{device}`, `{uri}` and `{mount}` in a line stand for the volume as a block device (a file without root), as an NBD URI, and as a mounted
filesystem; only what a line names is set up. `fsck` and `mount` alone are built in. A line's exit code: 0 good, 125 nobody can tell,
anything else bad. Pure but for `find_tools`.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from stream.errors import ConfigError

CANT_TELL = 125  # as for `git bisect run`
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

_FSCK = """type=$(blkid -p -o value -s TYPE {device}) || { echo 'no filesystem is found on the volume'; exit 8; }
case "$type" in
ext2|ext3|ext4)
  e2fsck -fp {device}; code=$?
  [ $code -le 1 ] || exit $code
  exec e2fsck -fn {device} ;;
vfat|exfat) exec fsck.$type -n {device} ;;
*) echo "fsck does not know how to check $type: name a command of your own"; exit 125 ;;
esac"""
_MOUNT = "ls -A {mount} > /dev/null"
BUILT_IN: Mapping[str, str] = {"fsck": _FSCK, "mount": _MOUNT}


class Need(StrEnum):
    """What a check is given."""

    URI = "uri"
    DEVICE = "device"
    MOUNT = "mount"


TOOLS: Mapping[Need, Mapping[str, str]] = {
    Need.URI: {},
    Need.DEVICE: {"nbdfuse": "nbdfuse", "fusermount3": "fuse3"},
    Need.MOUNT: {"nbdfuse": "nbdfuse", "fusermount3": "fuse3", "losetup": "mount", "mount": "mount", "umount": "mount"},
}
"""The programs behind each need, and the Debian packages that bring them."""

BUILT_IN_TOOLS: Mapping[str, Mapping[str, str]] = {"fsck": {"blkid": "util-linux", "e2fsck": "e2fsprogs"}, "mount": {}}


@dataclass(frozen=True, slots=True)
class Check:
    """A check as it was given, the line that is run, and what that names."""

    text: str
    line: str
    needs: frozenset[Need]

    @classmethod
    def parse(cls, text: str) -> Check:
        """Read a `--check`. Raises ConfigError for an empty one."""
        if not text.strip():
            raise ConfigError("A check is empty", hint="Give a shell line, or one of: " + ", ".join(BUILT_IN))
        line = BUILT_IN.get(text.strip(), text)
        return cls(text.strip(), line, frozenset(need for need in Need if f"{{{need}}}" in line))

    def command(self, places: Mapping[Need, str]) -> str:
        """Return the shell line with what it names put in, quoted."""
        line = self.line
        for need in self.needs:
            line = line.replace(f"{{{need}}}", shlex.quote(places[need]))
        return line


def search_path(environment: Mapping[str, str] = os.environ) -> str:
    """Return PATH with the folders of system programs, which a user's own may lack."""
    return os.pathsep.join(dict.fromkeys((*environment.get("PATH", "").split(os.pathsep), *SYSTEM_FOLDERS)))


def find_tools(checks: Iterable[Check], *, is_root: bool, path: str) -> None:
    """Raise ConfigError that names what this machine lacks for these checks, and how to get it."""
    checks = list(checks)
    needs = frozenset(need for check in checks for need in check.needs)
    if Need.MOUNT in needs and not is_root:
        raise ConfigError(
            "Only root may mount a volume, which a check with {mount} asks for", hint="Run it as root, or use {device} or {uri}."
        )
    wanted = {program: package for need in needs for program, package in TOOLS[need].items()}
    if is_root and Need.DEVICE in needs:
        wanted |= {"losetup": "mount"}
    for check in checks:
        wanted |= BUILT_IN_TOOLS.get(check.text, {})
    missing = {program: package for program, package in wanted.items() if shutil.which(program, path=path) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise ConfigError(f"{', '.join(sorted(missing))} can't be found, which the checks need", hint=f"apt-get install {packages}")
    devices = ["/dev/fuse"] if Need.DEVICE in needs or Need.MOUNT in needs else []
    if is_root and devices:
        devices.append("/dev/loop-control")
    absent = [name for name in devices if not os.path.exists(name)]
    if absent:
        raise ConfigError(
            f"{' and '.join(absent)} is not there, which the checks need",
            hint="Load the kernel's modules (modprobe fuse loop); give a container these devices. A check with {uri} needs neither.",
        )
