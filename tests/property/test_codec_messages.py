"""Messages: whatever goes in comes out, and no damage goes unnoticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.codec import decode_journal, decode_writes, encode_journal, encode_writes, unpack
from stream.compression import CODECS, compress, decompress
from stream.errors import IntegrityError
from stream.journal import JournalBatch, JournalFence, JournalGap, JournalState, OpenGap
from stream.position import EPOCH_MAX, SEQUENCE_MAX, Position
from stream.record import Batch, Kind, chain_digest
from tests.property.batches import batches

_text = st.text(max_size=12)
_position = st.builds(Position, st.integers(0, EPOCH_MAX), st.integers(0, SEQUENCE_MAX))


@st.composite
def journal_batches(draw) -> tuple[JournalBatch, Batch]:
    batch = draw(batches())
    codec, packed = compress(draw(st.sampled_from(CODECS)), batch.payload)
    before = draw(st.binary(min_size=16, max_size=16))
    gaps = tuple(draw(st.lists(st.builds(OpenGap, _position, _text, st.integers(0, 2**62)), max_size=3)))
    incarnation = draw(st.binary(min_size=8, max_size=8))
    state = JournalState(draw(_text), draw(st.integers(0, 2**62)), batch.last, incarnation, chain_digest(before, batch), gaps)
    records = replace(batch, payload=b"")
    writer = draw(st.integers(0, 2**62))
    return JournalBatch(records, incarnation, codec, len(batch.payload), writer, draw(_position), before, state, packed), batch


@given(batches(), st.binary(min_size=8, max_size=8))
def test_writes_come_back(batch: Batch, incarnation: bytes) -> None:
    assert decode_writes(encode_writes(batch, incarnation)) == (batch, incarnation)


@given(journal_batches())
def test_journal_batches_come_back(pair: tuple[JournalBatch, Batch]) -> None:
    entry, batch = pair
    seen = decode_journal(encode_journal(entry))
    assert seen == entry
    assert unpack(seen) == batch


@given(_text, _text, st.integers(0, 2**62))
def test_fences_come_back(volume: str, worker: str, at_ns: int) -> None:
    fence = JournalFence(volume, worker, at_ns)
    assert decode_journal(encode_journal(fence)) == fence


@given(journal_batches(), _text, _text)
def test_gaps_come_back(pair: tuple[JournalBatch, Batch], reason: str, missing: str) -> None:
    entry, _ = pair
    gap = JournalGap(entry.volume, entry.writer, reason, missing, 7, entry.state)
    assert decode_journal(encode_journal(gap)) == gap


SMALL = Batch(
    "v",
    1,
    1,
    5,
    bytes([Kind.EPOCH_START, Kind.WRITE, Kind.ZERO]),
    bytes(3),
    [0, 8, 16],
    [0, 9, 4],
    [0, 1, 2],
    b"some data",
    {0: {"clean": "true"}},
)
_STATE = JournalState("t", 3, SMALL.last, bytes(8), chain_digest(bytes(16), SMALL), (OpenGap(Position(1, 1), "unclean_stop", 5),))
_ENTRY = JournalBatch(replace(SMALL, payload=b""), bytes(8), "none", 9, 0, Position(0, 0), bytes(16), _STATE, b"some data")
VALUES = {
    "writes": (encode_writes(SMALL, bytes(8)), decode_writes),
    "journal": (encode_journal(_ENTRY), decode_journal),
    "gap": (encode_journal(JournalGap("v", 0, "retention", "all", 7, _STATE)), decode_journal),
    "fence": (encode_journal(JournalFence("v", "w", 7)), decode_journal),
}


def assert_refused(decode, value: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        decode(value, topic="ho.v.x", kafka_offset=42)
    assert (caught.value.facts["topic"], caught.value.facts["kafka_offset"]) == ("ho.v.x", 42)


@pytest.mark.parametrize("name", VALUES)
def test_every_byte_flipped_is_found(name: str) -> None:
    value, decode = VALUES[name]
    for at in range(len(value)):
        assert_refused(decode, value[:at] + bytes([value[at] ^ 0xFF]) + value[at + 1 :])


@settings(max_examples=500)
@given(st.sampled_from(sorted(VALUES)), st.data())
def test_any_other_value_of_a_byte_is_found(name: str, data) -> None:
    value, decode = VALUES[name]
    at, change = data.draw(st.integers(0, len(value) - 1)), data.draw(st.integers(1, 255))
    assert_refused(decode, value[:at] + bytes([value[at] ^ change]) + value[at + 1 :])


@pytest.mark.parametrize("name", VALUES)
def test_a_truncation_anywhere_is_found(name: str) -> None:
    value, decode = VALUES[name]
    for size in range(len(value)):
        assert_refused(decode, value[:size])
    assert_refused(decode, value + b"\0")


def test_one_kind_of_message_is_not_taken_for_another() -> None:
    assert_refused(decode_journal, VALUES["writes"][0])
    assert_refused(decode_writes, VALUES["journal"][0])


@given(journal_batches().filter(lambda pair: len(pair[1].payload) > 0), st.data())
def test_a_journal_batch_whose_payload_was_exchanged_is_found(pair: tuple[JournalBatch, Batch], data) -> None:
    """Packed again with a checksum that fits: the running digest tells."""
    entry, batch = pair
    other = data.draw(st.binary(min_size=len(batch.payload), max_size=len(batch.payload)).filter(lambda one: one != batch.payload))
    with pytest.raises(IntegrityError):
        unpack(replace(entry, codec="none", packed=other))


def test_a_state_that_stands_elsewhere_is_found() -> None:
    with pytest.raises(IntegrityError, match="state stands"):
        unpack(replace(_ENTRY, state=replace(_STATE, position=Position(1, 9))))


@given(st.sampled_from(CODECS), st.binary(max_size=3000))
def test_blobs_come_back(codec: str, data: bytes) -> None:
    used, packed = compress(codec, data)
    assert used in (codec, "none")
    assert decompress(used, packed, len(data)) == data
    assert len(packed) <= len(data)


@given(st.sampled_from(CODECS), st.binary(max_size=200), st.integers(0, 300))
def test_a_blob_of_another_length_is_refused(codec: str, data: bytes, size: int) -> None:
    used, packed = compress(codec, data * 4)
    if size != len(data) * 4:
        with pytest.raises(IntegrityError):
            decompress(used, packed, size)


@given(st.sampled_from([codec for codec in CODECS if codec != "none"]), st.binary(max_size=200), st.integers(0, 300))
def test_garbage_is_refused_or_has_its_length(codec: str, garbage: bytes, size: int) -> None:
    try:
        assert len(decompress(codec, garbage, size)) == size
    except IntegrityError as error:
        assert error.facts["codec"] == codec
