"""The vault: a store whose objects are sealed with a key, or a plain one; the only door to a store outside this package.

A layer over any store of `history.store`, with the same guarantees. A sealed object stands in the store under its name and `.sealed`, so
the listing tells which are and how large they are. Plain objects from before encryption was turned on are read as they are, until
`history.encryption_required` forbids it. Without a key a store with sealed objects is refused at its first listing: it would look empty.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from history.seal import CHUNK_BYTES, HEADER_BYTES, SEALED_BYTES, KeyRing, Seal, opened_size, parse_keys, stored_at
from history.store import Store, StoredObject, open_existing, open_store
from stream.config import HistoryConfig
from stream.errors import ConfigError, IntegrityError
from stream.secret import from_command, from_file

SUFFIX = ".sealed"
SEALS_MAX = 4096
_FILE, _COMMAND = "history.encryption_key_file", "history.encryption_key_command"


def load_keys(config: HistoryConfig) -> KeyRing:
    """Return the keys that the config names, none if it names none. Raises ConfigError."""
    if config.encryption_key_file and config.encryption_key_command:
        raise ConfigError(f"{_FILE} and {_COMMAND} are set", hint="Leave out one.")
    if config.encryption_key_file:
        return parse_keys(from_file(_FILE, config.encryption_key_file), _FILE)
    if config.encryption_key_command:
        return parse_keys(from_command(_COMMAND, config.encryption_key_command), _COMMAND)
    if config.encryption_required:
        raise ConfigError("history.encryption_required is set, and there is no key", hint=f"Set {_FILE} or {_COMMAND}.")
    return KeyRing()


def open_vault(url: str, config: HistoryConfig) -> Vault:
    """Open the store at a path or a URL, made if it is a local folder. Raises ConfigError."""
    keys = load_keys(config)
    return Vault(open_store(url), keys, required=config.encryption_required)


def open_existing_vault(url: str, config: HistoryConfig) -> Vault | None:
    """Open a store for reading: a local folder that is not there is not made, but None. Raises ConfigError."""
    store = open_existing(url)
    return Vault(store, load_keys(config), required=config.encryption_required) if store is not None else None


class Vault:
    """A store (`history.store.Store`) whose objects are sealed if there are keys. Thread-safe as the store below is."""

    def __init__(self, store: Store, keys: KeyRing, *, required: bool = False) -> None:
        self.url = store.url
        self._store = store
        self._keys = keys
        self._required = required
        self._seals: OrderedDict[str, Seal] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, name: str, parts: Iterable[bytes]) -> bool:
        """Write an object as `Store.put` does; a plain one of that name counts as there."""
        if not self._keys:
            return self._store.put(name, parts)
        if not self._required and self._has_plain(name):
            return False
        return self._store.put(name + SUFFIX, self._keys.new_seal(name).sealed(parts))

    def get(self, name: str) -> bytes:
        """Return an object, proved if it is sealed. Raises IntegrityError, ConfigError if its key is not here."""
        stored = self._sealed(name, 0, None)
        return self._store.get(self._plain(name)) if stored is None else stored

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return bytes `[start, end)`, each of them proved if the object is sealed; else as `get`.

        What was cut off a sealed object is seen by whoever reads up to the cut; a range beyond it is empty, as behind an end.
        """
        if start >= end:
            return b""
        stored = self._sealed(name, start, end)
        return self._store.get_range(self._plain(name), start, end) if stored is None else stored

    def list(self, prefix: str = "") -> list[StoredObject]:
        """Return the objects, by the names and sizes that they have inside."""
        found: dict[str, StoredObject] = {}
        for one in self._store.list(prefix):
            if not one.name.endswith(SUFFIX):
                found.setdefault(self._plain(one.name), one)
                continue
            if not self._keys:
                raise ConfigError("The store is encrypted, and no key is here", hint=f"Set {_FILE} or {_COMMAND}.", name=one.name)
            name = one.name.removesuffix(SUFFIX)
            found[name] = StoredObject(name, opened_size(one.size_bytes))
        return sorted(found.values(), key=lambda one: one.name)

    def delete(self, name: str) -> None:
        """Remove an object, sealed or not."""
        with self._lock:
            self._seals.pop(name, None)
        if self._keys:
            self._store.delete(name + SUFFIX)
        self._store.delete(name)

    def _sealed(self, name: str, start: int, end: int | None) -> bytes | None:
        """Return bytes of a sealed object, to its end if `end` is None; None if there is no sealed object of that name."""
        if not self._keys:
            return None
        try:
            seal = self._seal(name)
        except IntegrityError as error:
            if "store" in error.facts and self._has_plain(name):  # the store below says that it is not there
                return None
            error.facts |= {"name": name} if "name" in error.facts else {}
            raise
        try:
            return self._open(seal, name, start, end)
        except IntegrityError:
            with self._lock:  # it may have been deleted and made anew since its header was read
                self._seals.pop(name, None)
            again = self._seal(name)
            if again.header == seal.header:
                raise
            return self._open(again, name, start, end)

    def _open(self, seal: Seal, name: str, start: int, end: int | None) -> bytes:
        first = start // CHUNK_BYTES
        if end is None:
            data = memoryview(self._store.get(name + SUFFIX))[HEADER_BYTES:]
            behind = -(-len(data) // SEALED_BYTES)
        else:
            behind = -(-end // CHUNK_BYTES)
            data = memoryview(self._store.get_range(name + SUFFIX, stored_at(first), stored_at(behind) + 1))  # one more: is it the last?
        out = []
        for number in range(first, behind):
            at = (number - first) * SEALED_BYTES
            chunk = data[at : at + SEALED_BYTES]
            if chunk:
                out.append(seal.opened(number, chunk, last=at + SEALED_BYTES >= len(data)))
        opened = out[0] if len(out) == 1 else b"".join(out)
        from_byte = start - first * CHUNK_BYTES
        return opened[from_byte:] if end is None else opened[from_byte : end - first * CHUNK_BYTES]

    def _seal(self, name: str) -> Seal:
        """Return the seal of an object, from its header or from the last time."""
        with self._lock:
            seal = self._seals.get(name)
            if seal is not None:
                self._seals.move_to_end(name)
                return seal
        seal = self._keys.seal_of(self._store.get_range(name + SUFFIX, 0, HEADER_BYTES), name)
        with self._lock:
            self._seals[name] = seal
            while len(self._seals) > SEALS_MAX:
                self._seals.popitem(last=False)
        return seal

    def _plain(self, name: str) -> str:
        """Return the name of a plain object if one may be there."""
        if self._required:
            raise ConfigError(
                "The store has an object without a seal, and history.encryption_required is set",
                hint="Look where it comes from; one from before encryption was turned on is read when that key is off.",
                name=name,
            )
        return name

    def _has_plain(self, name: str) -> bool:
        try:
            self._store.get_range(name, 0, 1)
        except IntegrityError:
            return False
        return True
