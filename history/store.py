"""The object store: immutable objects by name, in a local folder or wherever a URL points.

Used through `history.vault` by persist to write segments and by recovery to read them; knows nothing of what is in them. A local folder
is the default; `s3://`, `gs://`, `az://` and `memory://` go through the library obstore, with its environment variables for credentials.

Guarantees of `put`, the same for every store (tests/contract/test_store.py): an object is there whole or not at all, under no circumstance
is one replaced, and when `put` returns it is durable. obstore's own local store renames but never fsyncs (traced), so a local put is
written here.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions as foreign
from obstore import store as stores

from stream.errors import ConfigError, HostoffloadError, IntegrityError, RetryError

DEBRIS_AGE_S = 3600.0
PARTS_MAX = 512  # of one writev
PARTS_BYTES_MAX = 8 << 20
SINGLE_PUT_BYTES_MAX = 64 << 20  # a larger object goes up in pieces, and appears when the last one is there
_NEW = ".new"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One line of a listing."""

    name: str
    size_bytes: int


class Store(Protocol):
    """What a store promises. Every method may raise RetryError (infrastructure: try again) and ConfigError (rights, address)."""

    url: str

    def put(self, name: str, parts: Iterable[bytes]) -> bool:
        """Write an object, part after part, atomic, durable on return; return False, and write nothing, if the name exists.

        Parts are taken as they are written: memory does not grow with the object.
        """
        ...

    def get(self, name: str) -> bytes:
        """Return an object. Raises IntegrityError when it is not there."""
        ...

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return bytes `[start, end)`, fewer where the object ends. Raises IntegrityError when it is not there."""
        ...

    def list(self, prefix: str = "") -> list[StoredObject]:
        """Return the objects below a prefix that ends with a slash, or all, sorted by name. Objects half written are never among them."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is passed over."""
        ...


def open_store(url: str) -> Store:
    """Open the store at a path or a URL; a local folder is made. Raises ConfigError for one that can't be."""
    scheme = urlsplit(url).scheme if "://" in url else ""
    if not url or ("://" in url and not scheme):
        raise ConfigError(f"{url!r} is no address of a store", hint=_HINT_URL)
    if scheme in ("", "file"):
        parsed = urlsplit(url)
        if scheme and parsed.netloc not in ("", "localhost"):
            raise ConfigError(f"{url} names a host", hint="A file URL has three slashes: file:///var/lib/hostoffload/store.")
        return LocalStore(Path(unquote(parsed.path) if scheme else url))
    try:
        return ObjectStore(stores.from_url(url), url)
    except Exception as error:  # obstore raises what its parsers raise
        raise ConfigError(f"{url} is no store: {_first_line(error)}", hint=_HINT_URL) from error


def open_existing(url: str) -> Store | None:
    """Open a store for reading: a local folder that is not there is not made, but None. Raises ConfigError."""
    local = "://" not in url or url.startswith("file:")
    if local and url and not Path(unquote(urlsplit(url).path) if "://" in url else url).is_dir():
        return None
    return open_store(url)


class ObjectStore:
    """A store behind obstore."""

    def __init__(self, store: stores.ObjectStore, url: str) -> None:
        self.url = url
        self._store = store

    def put(self, name: str, parts: Iterable[bytes]) -> bool:
        taken, rest = _taken(iter(parts))
        try:
            if rest is None:
                obstore.put(self._store, name, b"".join(taken), mode="create", use_multipart=False)
            elif self._exists(name):
                return False
            else:  # no service takes pieces on condition: of two writers who look at once, the later one's bytes stay
                obstore.put(self._store, name, chain(taken, rest), use_multipart=True, chunk_size=PARTS_BYTES_MAX, max_concurrency=2)
        except foreign.AlreadyExistsError:
            return False
        except Exception as error:
            raise _translate(error, self.url, name) from error
        return True

    def get(self, name: str) -> bytes:
        try:
            return obstore.get(self._store, name).bytes().to_bytes()
        except Exception as error:
            raise _translate(error, self.url, name) from error

    def get_range(self, name: str, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        try:
            return obstore.get_range(self._store, name, start=start, end=end).to_bytes()
        except Exception as error:
            if "range" in str(error).lower() and start >= self._size(name):
                return b""
            raise _translate(error, self.url, name) from error

    def list(self, prefix: str = "") -> list[StoredObject]:
        try:
            found = [StoredObject(one["path"], one["size"]) for page in obstore.list(self._store, prefix or None) for one in page]
        except Exception as error:
            raise _translate(error, self.url, prefix) from error
        return sorted(found, key=lambda one: one.name)

    def delete(self, name: str) -> None:
        try:
            obstore.delete(self._store, name)
        except FileNotFoundError:
            return
        except Exception as error:
            raise _translate(error, self.url, name) from error

    def _exists(self, name: str) -> bool:
        try:
            obstore.head(self._store, name)
        except FileNotFoundError:
            return False
        return True

    def _size(self, name: str) -> int:
        try:
            return obstore.head(self._store, name)["size"]
        except Exception as error:
            raise _translate(error, self.url, name) from error


class LocalStore:
    """A store in a folder of this machine.

    A put: 1. the bytes into a new file in `.new/` · 2. fsync it · 3. link it to its name, which fails if the name is taken · 4. remove the
    first link · 5. fsync the folder; folders made for it were fsynced before. A kill in between leaves a file in `.new/`, which is removed
    after `DEBRIS_AGE_S`.
    """

    def __init__(self, folder: Path) -> None:
        self.url = str(folder.absolute())
        self._root = folder.absolute()
        self._new = self._root / _NEW
        with _translated(self.url, ""):
            self._make(self._new)
            self._remove_debris()

    def put(self, name: str, parts: Iterable[bytes]) -> bool:
        path = self._path(name)
        new = self._new / uuid.uuid4().hex
        with _translated(self.url, name):
            self._check_there()
            if path.exists():
                fsync_folder(path.parent)  # whoever made it may not have come that far
                return False
            try:
                _write_durably(new, parts)
                self._make(path.parent)
                made = _link(new, path)
            finally:
                with suppress(FileNotFoundError):
                    new.unlink()
            fsync_folder(path.parent)
            return made

    def get(self, name: str) -> bytes:
        with _translated(self.url, name):
            return self._path(name).read_bytes()

    def get_range(self, name: str, start: int, end: int) -> bytes:
        with _translated(self.url, name), self._path(name).open("rb", buffering=0) as file:
            out = []
            while start < end and (data := os.pread(file.fileno(), end - start, start)):
                out.append(data)
                start += len(data)
            return out[0] if len(out) == 1 else b"".join(out)

    def list(self, prefix: str = "") -> list[StoredObject]:
        found: list[StoredObject] = []
        with _translated(self.url, prefix):
            self._check_there()
            self._list(self._root / prefix, found)
        return sorted(found, key=lambda one: one.name)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _translated(self.url, name), suppress(FileNotFoundError):
            path.unlink()
            fsync_folder(path.parent)

    def _list(self, folder: Path, found: list[StoredObject]) -> None:
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir():
                if not (entry.name == _NEW and folder == self._root):
                    self._list(folder / entry.name, found)
            else:
                with suppress(FileNotFoundError):  # deleted since
                    found.append(StoredObject(str((folder / entry.name).relative_to(self._root)), entry.stat().st_size))

    def _path(self, name: str) -> Path:
        parts = name.split("/")
        assert name and not any(part in ("", ".", "..", _NEW) for part in parts), name
        return self._root.joinpath(*parts)

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, durably."""
        if folder.is_dir():
            return
        self._make(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir()
        fsync_folder(folder.parent)

    def _check_there(self) -> None:
        """Refuse a folder that is no longer what was opened: an empty mount point would look like an empty history."""
        if not self._new.is_dir():
            raise RetryError("The folder of the store is gone", store=self.url, hint="Mount it again; it goes on by itself.")

    def _remove_debris(self) -> None:
        for path in self._new.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > DEBRIS_AGE_S:
                    path.unlink()


def _taken(parts: Iterator[bytes]) -> tuple[list[bytes], Iterator[bytes] | None]:
    """Return the parts that one put takes, and the rest: None if that is all."""
    taken, size = [], 0
    for part in parts:
        taken.append(part)
        size += len(part)
        if size > SINGLE_PUT_BYTES_MAX:
            return taken, parts
    return taken, None


def _write_durably(path: Path, parts: Iterable[bytes]) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        waiting: list[memoryview] = []
        size = 0
        for part in parts:
            waiting.append(memoryview(part))
            size += len(part)
            if len(waiting) >= PARTS_MAX or size >= PARTS_BYTES_MAX:
                _write_all(file, waiting)
                waiting, size = [], 0
        _write_all(file, waiting)
        os.fsync(file)
    finally:
        os.close(file)


def _write_all(file: int, parts: list[memoryview]) -> None:
    waiting = [part for part in parts if part]
    while waiting:
        written = os.writev(file, waiting)
        done = 0
        while done < len(waiting) and written >= len(waiting[done]):
            written -= len(waiting[done])
            done += 1
        del waiting[:done]
        if written:
            waiting[0] = waiting[0][written:]


def _link(new: Path, path: Path) -> bool:
    """Give a file its name unless that is taken; tell whether it was given."""
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            return False
        os.rename(new, path)  # a file system without links: two writers of one name would both write a whole object
    return True


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


class _translated:
    """Turn what the operating system raises inside into our errors."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise _translate(error, self._url, self._name) from error


def _translate(error: Exception, url: str, name: str) -> HostoffloadError:
    facts = {"store": url, "name": name or None}
    if isinstance(error, FileNotFoundError):
        return IntegrityError(
            "An object of the store is gone", **facts, hint="Nothing but retention deletes objects; look for another copy."
        )
    text = _first_line(error)
    code = error.errno if isinstance(error, OSError) else None
    if code in _FULL or "No space left" in text:
        return RetryError(f"The store is full: {text}", **facts, hint="Make space where the store is; it goes on by itself.")
    if code in _DENIED or isinstance(error, foreign.PermissionDeniedError | foreign.UnauthenticatedError):
        return ConfigError(f"The store refuses access: {text}", **facts, hint="Check cx.store_url and the rights of this process there.")
    if isinstance(error, foreign.NotSupportedError | foreign.InvalidPathError | foreign.UnknownConfigurationKeyError):
        return ConfigError(f"The store can't be used: {text}", **facts, hint=_HINT_URL)
    return RetryError(f"The store does not answer: {text}", **facts, hint="Check that the store at cx.store_url can be reached.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


_HINT_URL = "Use a path, or a URL such as file:///var/lib/hostoffload/store or s3://bucket/path."
