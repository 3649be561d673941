"""A stand-in for `pathlib.Path` and for `open`, over the simulated file system of the run."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from tests.simulation.disk import refuse
from tests.simulation.filesystem import FileSystem

_LOCKS = "/proc/locks"


class SimulatedPath(PurePosixPath):
    """What the product does with paths; `files` is the file system of the run."""

    files: FileSystem

    def exists(self) -> bool:
        path = str(self)
        return path in self.files.folders or path in self.files.volume(path).names

    def is_dir(self) -> bool:
        return str(self) in self.files.folders

    def stat(self) -> Any:
        return self.files.stat(self)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if self.exists():
            if exist_ok and self.is_dir():
                return
            raise refuse(errno.EEXIST, str(self))
        if str(self.parent) not in self.files.folders:
            if not parents:
                raise refuse(errno.ENOENT, str(self))
            self.parent.mkdir(mode, parents=True)
        self.files.folders.add(str(self))

    def rmdir(self) -> None:
        self.files.rmdir(self)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.files.unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: Any) -> None:
        self.files.rename(self, target)

    replace = rename

    def iterdir(self) -> Iterator[SimulatedPath]:
        yield from [type(self)(path) for path in self.files.listing(str(self))]

    def glob(self, pattern: str) -> Iterator[SimulatedPath]:
        yield from [path for path in self.iterdir() if fnmatchcase(path.name, pattern)]

    def read_bytes(self) -> bytes:
        return bytes(self.files.lookup(self).data)

    def read_text(self, encoding: str | None = None) -> str:
        return "" if str(self) == _LOCKS else self.read_bytes().decode(encoding or "utf-8")

    def write_text(self, data: str, encoding: str | None = None) -> None:
        with open_of(self.files)(self, "w") as file:
            file.write(data)


def open_of(files: FileSystem) -> Any:
    """Return what `open` is in the product in this run."""

    def simulated_open(path: Any, mode: str = "r", encoding: str | None = None) -> Any:
        if isinstance(path, int):
            return _Writing(files, path, text="b" not in mode)
        if "r" in mode and "+" not in mode:
            data = bytes(files.lookup(path).data)
            return io.BytesIO(data) if "b" in mode else io.StringIO(data.decode(encoding or "utf-8"))
        return _Writing(files, path, text="b" not in mode)

    return simulated_open


class _Writing:
    """A file that is written anew."""

    def __init__(self, files: FileSystem, path: Any, *, text: bool) -> None:
        self._files = files
        self._fd = path if isinstance(path, int) else files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._open = True
        self._text = text
        self._waiting = b""

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            self.flush()
            self._files.close(self._fd)

    def write(self, data: Any) -> int:
        self._waiting += data.encode() if self._text else bytes(data)
        return len(data)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, b""
        if waiting:
            self._files.write(self._fd, waiting)

    def fileno(self) -> int:
        return self._fd
