"""The seal of an object: AES-256-GCM in chunks, so that any range of it is opened, and proved, by itself.

    object = header · chunk · chunk ... · last chunk
    header = "HOSEAL1\\n" (8) · key id (8) · salt (32)
    chunk  = ciphertext (65,536 bytes; the last one 0 to 65,536) · tag (16)

Each object has a key of its own, HKDF-SHA256(key, salt, "hostoffload object"); a chunk's nonce is its number (11 bytes, big-endian) and a
byte that is 1 for the last one, its associated data the header and the object's name. So no nonce is used twice, and a chunk that was
altered, moved, cut off or put under another name does not open. The key id is the beginning of a digest of the key: it tells which key
it was, and nothing about it. Pure; used by `history.vault`.
Source: the construction of Tink's AES-GCM-HKDF streaming; NIST SP 800-38D; RFC 5869.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stream.errors import ConfigError, IntegrityError

MAGIC = b"HOSEAL1\n"
KEY_BYTES = 32
KEY_ID_BYTES = 8
SALT_BYTES = 32
HEADER_BYTES = len(MAGIC) + KEY_ID_BYTES + SALT_BYTES
CHUNK_BYTES = 64 << 10
TAG_BYTES = 16
SEALED_BYTES = CHUNK_BYTES + TAG_BYTES
_INFO = b"hostoffload object"


class KeyRing:
    """The keys at hand: the first seals, all open. False if there are none. Its repr tells ids only."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = {key_id(key): key for key in keys}
        self._newest = key_id(keys[0]) if keys else b""

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self.ids())})"

    def ids(self) -> list[str]:
        """Return the ids of the keys, the one that seals first."""
        return [one.hex() for one in self._keys]

    def new_seal(self, name: str) -> Seal:
        """Return a seal for an object that is made now."""
        header = MAGIC + self._newest + os.urandom(SALT_BYTES)
        return Seal(self._keys[self._newest], header, name)

    def seal_of(self, header: bytes, name: str) -> Seal:
        """Return the seal of an object by its header. Raises IntegrityError if that is none, ConfigError if its key is not here."""
        if len(header) != HEADER_BYTES or not header.startswith(MAGIC):
            raise _broken("An object of the store has no seal where one must be", name, 0)
        found = header[len(MAGIC) : len(MAGIC) + KEY_ID_BYTES]
        if found not in self._keys:
            here = ", ".join(self.ids()) or "none"
            raise ConfigError(
                f"The store has objects that are sealed with the key {found.hex()}, and that key is not here",
                hint=f"history.encryption_key_file or _command gives: {here}. Add the missing key below the first.",
                name=name,
            )
        return Seal(self._keys[found], header, name)


class Seal:
    """Seal or open one object."""

    def __init__(self, key: bytes, header: bytes, name: str) -> None:
        self.header = header
        self._name = name
        self._bound = header + name.encode()
        derived = HKDF(SHA256(), KEY_BYTES, header[-SALT_BYTES:], _INFO).derive(key)
        self._cipher = AESGCM(derived)

    def sealed(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the object for these bytes, part by part: memory holds a chunk and a part."""
        yield self.header
        number, before = 0, None
        for piece in _pieces(parts):
            if before is not None:
                yield self._cipher.encrypt(_nonce(number, last=False), before, self._bound)
                number += 1
            before = piece
        yield self._cipher.encrypt(_nonce(number, last=True), before or b"", self._bound)

    def opened(self, number: int, chunk: memoryview, *, last: bool) -> bytes:
        """Return the bytes of a chunk. Raises IntegrityError that names the object if it is not what was sealed."""
        try:
            return self._cipher.decrypt(_nonce(number, last=last), chunk, self._bound)
        except (InvalidTag, ValueError) as error:
            raise _broken("An object of the store is not what was sealed", self._name, number * CHUNK_BYTES) from error


def key_id(key: bytes) -> bytes:
    """Return the name that a key has in an object."""
    return hashlib.sha256(b"hostoffload key id" + key).digest()[:KEY_ID_BYTES]


def parse_keys(lines: Iterable[str], where: str) -> KeyRing:
    """Return the keys of some lines; empty ones and those that begin with # are passed over. Raises ConfigError that tells no key."""
    keys = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            try:
                key = base64.b64decode(line.strip(), validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if len(key) != KEY_BYTES:
                hint = f"A key is {KEY_BYTES} random bytes in base64: openssl rand -base64 {KEY_BYTES}"
                raise ConfigError(f"Line {number} of {where} is no key", hint=hint)
            keys.append(key)
    if not keys:
        raise ConfigError(f"{where} has no key", hint=f"Make one: openssl rand -base64 {KEY_BYTES}")
    return KeyRing(keys)


def opened_size(stored_bytes: int) -> int:
    """Return how many bytes are in an object that takes so many in the store."""
    body = max(0, stored_bytes - HEADER_BYTES)
    return body - TAG_BYTES * -(-body // SEALED_BYTES)


def stored_at(number: int) -> int:
    """Return where a chunk begins in the stored object."""
    return HEADER_BYTES + number * SEALED_BYTES


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """Cut a stream of bytes into full chunks and, if something is left, one that is not."""
    pending = bytearray()
    for part in parts:
        view, at = memoryview(part), 0
        while len(pending) + len(view) - at >= CHUNK_BYTES:
            take = CHUNK_BYTES - len(pending)
            if pending:
                pending += view[at : at + take]
                yield bytes(pending)
                pending.clear()
            else:
                yield view[at : at + take]
            at += take
        pending += view[at:]
    if pending:
        yield bytes(pending)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\1" if last else b"\0")


def _broken(sentence: str, name: str, at_bytes: int) -> IntegrityError:
    hint = "Keep the file as it is; restore it from another copy of the store, or let the volume be copied again."
    return IntegrityError(sentence, path=name, at_bytes=at_bytes, hint=hint)
