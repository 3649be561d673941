"""Objects sealed at rest: what comes back is what was put, with the right key, whole, under its name, or there is a clear sentence."""

from __future__ import annotations

import base64
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from history.seal import CHUNK_BYTES, HEADER_BYTES, SEALED_BYTES, TAG_BYTES, KeyRing, key_id, parse_keys
from history.store import LocalStore, StoredObject
from history.vault import SUFFIX, Vault, load_keys, open_existing_vault, open_vault
from stream.config import HistoryConfig
from stream.errors import ConfigError, IntegrityError

NAME = "v1/L0/a.avro"
OLD, NEW = os.urandom(32), os.urandom(32)
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 17]


@pytest.fixture
def plain(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def vault(plain: LocalStore) -> Vault:
    return Vault(plain, KeyRing([OLD]))


@pytest.mark.parametrize("size", SIZES)
def test_any_range_comes_back_and_the_listing_tells_the_size(vault: Vault, plain: LocalStore, size: int) -> None:
    data, rng = os.urandom(size), random.Random(size)
    cuts = sorted(rng.randrange(size + 1) for _ in range(5))
    parts = [data[start:end] for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
    assert vault.put(NAME, parts)
    assert vault.get(NAME) == data
    assert vault.list("v1/L0/") == [StoredObject(NAME, size)]
    edges = {0, 1, size, size + 5, *(edge + step for edge in range(0, size + 1, CHUNK_BYTES) for step in (-1, 0, 1) if edge + step >= 0)}
    for start in edges:
        for end in edges:
            assert vault.get_range(NAME, start, end) == data[start:end], (start, end)
    stored = plain.get(NAME + SUFFIX)
    assert not size or data[:64] not in stored or size < 16
    assert len(stored) == HEADER_BYTES + size + TAG_BYTES * max(1, -(-size // CHUNK_BYTES))


def test_the_same_bytes_are_sealed_otherwise_each_time(vault: Vault, plain: LocalStore) -> None:
    for name in ("v1/a", "v1/b"):
        vault.put(name, [bytes(1000)])
    assert plain.get("v1/a" + SUFFIX)[HEADER_BYTES:] != plain.get("v1/b" + SUFFIX)[HEADER_BYTES:]


@pytest.mark.parametrize("whole", [True, False])
def test_a_bit_that_turns_anywhere_is_seen(vault: Vault, plain: LocalStore, whole: bool) -> None:
    size = CHUNK_BYTES + 100
    vault.put(NAME, [os.urandom(size)])
    stored = plain.get(NAME + SUFFIX)
    places = [*range(HEADER_BYTES), *random.Random(7).sample(range(HEADER_BYTES, len(stored)), 60), len(stored) - 1]
    for place in places:
        _replace(plain, stored[:place] + bytes([stored[place] ^ 1 << place % 8]) + stored[place + 1 :])
        fresh = Vault(plain, KeyRing([OLD]))
        with pytest.raises((IntegrityError, ConfigError)) as caught:
            fresh.get(NAME) if whole else fresh.get_range(NAME, 0, size)
        assert (caught.value.facts.get("path") or caught.value.facts.get("name")) == NAME
        if not len(b"HOSEAL1\n") <= place < len(b"HOSEAL1\n") + 8:  # there it is another key's
            assert isinstance(caught.value, IntegrityError)


@pytest.mark.parametrize("left", [1, HEADER_BYTES, HEADER_BYTES + 5, HEADER_BYTES + SEALED_BYTES, HEADER_BYTES + 2 * SEALED_BYTES])
def test_what_is_cut_off_is_seen_at_a_chunks_border_too(vault: Vault, plain: LocalStore, left: int) -> None:
    vault.put(NAME, [os.urandom(3 * CHUNK_BYTES)])
    _replace(plain, plain.get(NAME + SUFFIX)[:left])
    fresh = Vault(plain, KeyRing([OLD]))
    if left != HEADER_BYTES:  # nothing of a chunk is left: that reads as an end, and the listing tells another size
        with pytest.raises(IntegrityError):
            fresh.get(NAME)
        with pytest.raises(IntegrityError):
            fresh.get_range(NAME, 0, 3 * CHUNK_BYTES)
    assert fresh.list()[0].size_bytes < 3 * CHUNK_BYTES


def test_an_object_under_another_name_does_not_open(vault: Vault, plain: LocalStore) -> None:
    vault.put(NAME, [b"one"])
    plain.put("v1/L0/b.avro" + SUFFIX, [plain.get(NAME + SUFFIX)])
    with pytest.raises(IntegrityError, match="is not what was sealed"):
        vault.get("v1/L0/b.avro")


def test_chunks_that_changed_places_do_not_open(vault: Vault, plain: LocalStore) -> None:
    vault.put(NAME, [os.urandom(3 * CHUNK_BYTES)])
    stored = plain.get(NAME + SUFFIX)
    first, second = HEADER_BYTES, HEADER_BYTES + SEALED_BYTES
    _replace(plain, stored[:first] + stored[second : second + SEALED_BYTES] + stored[first:second] + stored[second + SEALED_BYTES :])
    with pytest.raises(IntegrityError):
        vault.get_range(NAME, 0, 10)


def test_after_a_rotation_old_and_new_are_read(vault: Vault, plain: LocalStore) -> None:
    vault.put("v1/old", [b"old"])
    both = Vault(plain, KeyRing([NEW, OLD]))
    both.put("v1/new", [b"new"])
    assert (both.get("v1/old"), both.get("v1/new")) == (b"old", b"new")
    assert key_id(NEW) in plain.get("v1/new" + SUFFIX)[:HEADER_BYTES]
    assert Vault(plain, KeyRing([NEW])).get("v1/new") == b"new"


def test_a_wrong_key_is_told_as_one(vault: Vault, plain: LocalStore) -> None:
    vault.put(NAME, [b"one"])
    for read in (lambda store: store.get(NAME), lambda store: store.get_range(NAME, 0, 3)):
        with pytest.raises(ConfigError) as caught:
            read(Vault(plain, KeyRing([NEW])))
        sentence = f"The store has objects that are sealed with the key {key_id(OLD).hex()}, and that key is not here"
        assert caught.value.sentence == sentence and key_id(NEW).hex() in caught.value.hint


def test_without_a_key_a_sealed_store_is_refused_and_not_empty(vault: Vault, plain: LocalStore) -> None:
    vault.put(NAME, [b"one"])
    with pytest.raises(ConfigError) as caught:
        Vault(plain, KeyRing()).list()
    assert caught.value.sentence == "The store is encrypted, and no key is here"


def test_plain_objects_from_before_are_read_until_a_seal_is_required(vault: Vault, plain: LocalStore) -> None:
    plain.put(NAME, [b"plain"])
    assert not vault.put(NAME, [b"other"]), "an object is never replaced"
    assert (vault.get(NAME), vault.get_range(NAME, 1, 3)) == (b"plain", b"la")
    assert vault.list() == [StoredObject(NAME, 5)]
    strict = Vault(plain, KeyRing([OLD]), required=True)
    for read in (lambda: strict.get(NAME), lambda: strict.get_range(NAME, 0, 1), lambda: strict.list()):
        with pytest.raises(ConfigError, match="without a seal"):
            read()
    vault.delete(NAME)
    assert vault.list() == []


def test_an_object_made_anew_under_its_name_is_read_anew(vault: Vault, plain: LocalStore) -> None:
    vault.put(NAME, [b"first"])
    assert vault.get(NAME) == b"first"
    other = Vault(plain, KeyRing([OLD]))
    other.delete(NAME)
    other.put(NAME, [b"second"])
    assert vault.get_range(NAME, 0, 9) == b"second"


def test_keys_come_by_file_and_by_command(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{_text(NEW)}\n# before the summer:\n{_text(OLD)}\n")
    ids = [key_id(NEW).hex(), key_id(OLD).hex()]
    assert load_keys(HistoryConfig(encryption_key_file=str(path))).ids() == ids
    assert load_keys(HistoryConfig(encryption_key_command=f"cat '{path}'")).ids() == ids
    assert not load_keys(HistoryConfig())
    vault = open_vault(str(tmp_path / "store"), HistoryConfig(encryption_key_file=str(path)))
    vault.put(NAME, [b"x"])
    assert (tmp_path / "store" / (NAME + SUFFIX)).exists()
    assert open_existing_vault(str(tmp_path / "store"), HistoryConfig(encryption_key_command=f"cat '{path}'")).get(NAME) == b"x"
    assert open_existing_vault(str(tmp_path / "none"), HistoryConfig()) is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"encryption_key_file": "a", "encryption_key_command": "b"},
            "history.encryption_key_file and history.encryption_key_command are set",
        ),
        ({"encryption_key_file": "/nowhere/x"}, "history.encryption_key_file can't be read: No such file or directory"),
        ({"encryption_key_command": "false"}, "history.encryption_key_command gives nothing"),
        ({"encryption_required": True}, "history.encryption_required is set, and there is no key"),
    ],
)
def test_keys_that_cant_be_had_are_told_by_the_config_key(changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_keys(replace(HistoryConfig(), **changed))
    assert caught.value.sentence == sentence and caught.value.hint


@pytest.mark.parametrize("line", ["short", base64.b64encode(b"x" * 31).decode(), "not base64 at all, but of some length ......."])
def test_what_is_no_key_is_told_without_its_text(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys([_text(OLD), line], "the file")
    assert caught.value.sentence == "Line 2 of the file is no key"
    assert line not in repr(caught.value) + caught.value.hint


def test_a_key_ring_shows_ids_and_no_keys() -> None:
    shown = repr(KeyRing([OLD]))
    assert key_id(OLD).hex() in shown and OLD.hex() not in shown and repr(OLD) not in shown


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _replace(store: LocalStore, stored: bytes) -> None:
    store.delete(NAME + SUFFIX)
    store.put(NAME + SUFFIX, [stored])
