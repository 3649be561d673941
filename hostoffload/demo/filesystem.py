"""A real ext4 filesystem for the demo: made with files in it, changed by real files, checked by e2fsck.

Uses the programs of e2fsprogs (mkfs.ext4, debugfs, e2fsck), which every Debian has.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

from stream.errors import ConfigError, IntegrityError

PROGRAMS = ("mkfs.ext4", "debugfs", "e2fsck")
FILE_BYTES_MAX = 256 << 10
SEED = 42
COMPARE_BYTES = 1 << 20


def find_programs() -> dict[str, str]:
    """Return where the programs are. Raises ConfigError that says how to get them."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    missing = [name for name, place in found.items() if place is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} can't be found", hint="Install the package e2fsprogs.")
    return {name: str(place) for name, place in found.items()}


def make_files(folder: Path, count: int, seed: int) -> int:
    """Fill a folder with files such as people have: text, binary, nested; return their bytes."""
    rng = random.Random(seed)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 10))) for _ in range(2000)]
    total = 0
    for number in range(count):
        place = folder / f"{number % 7}" / f"{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        size = rng.randrange(100, FILE_BYTES_MAX)
        body = b" ".join(rng.choices(words, k=size // 6)) if number % 3 else rng.randbytes(size)
        (place / f"file-{number:04d}").write_bytes(body)
        total += len(body)
    return total


def make_filesystem(programs: dict[str, str], image: Path, size_bytes: int, files: Path) -> None:
    """Make an ext4 filesystem with the files in it."""
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    _run([programs["mkfs.ext4"], "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", str(files), str(image)])


def change_offline(programs: dict[str, str], image: Path, folder: Path, names: list[str]) -> None:
    """Write new files into an unmounted filesystem, and remove some, by debugfs."""
    commands = ["mkdir demo"]
    commands += [f"write {folder / name} demo/{Path(name).name}" for name in names]
    commands += ["rm 0/0/file-0000", "rm 1/1/file-0001"]
    _run([programs["debugfs"], "-w", "-f", "-", str(image)], "\n".join(commands) + "\n")


def check_filesystem(programs: dict[str, str], image: Path) -> None:
    """Check a filesystem read-only. Raises IntegrityError with e2fsck's own words when anything is wrong."""
    done = subprocess.run([programs["e2fsck"], "-fn", str(image)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise IntegrityError(f"e2fsck finds the replica damaged: {(done.stdout + done.stderr).strip()[-300:]}", path=image)


def first_difference(one: Path, other: Path) -> int | None:
    """Return the first offset at which two files differ, None if they are equal in every byte and in length."""
    if one.stat().st_size != other.stat().st_size:
        return min(one.stat().st_size, other.stat().st_size)
    with open(one, "rb") as left, open(other, "rb") as right:
        at = 0
        while True:
            first, second = left.read(COMPARE_BYTES), right.read(COMPARE_BYTES)
            if first != second:
                return at + next(index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
            if not first:
                return None
            at += len(first)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, to show."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: list[str], text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-300:]}", hint="See what it says; is the disk full?")
