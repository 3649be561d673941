"""Random batches for the property tests of codec, digest and cutting."""

from __future__ import annotations

from hypothesis import strategies as st

from stream.position import EPOCH_MAX, SEQUENCE_MAX
from stream.record import BATCH_RECORDS_MAX, FLAG_MORE, Batch, Kind

_text = st.text(max_size=12)
_attributes = st.dictionaries(_text, _text, max_size=3)


@st.composite
def batches(draw, records_max: int = 12) -> Batch:
    """A batch of any kinds and sizes."""
    kinds = draw(st.lists(st.sampled_from(list(Kind)), min_size=1, max_size=records_max))
    datas = [draw(st.binary(max_size=40)) if kind == Kind.WRITE else b"" for kind in kinds]
    lengths = [len(data) if kind == Kind.WRITE else draw(st.integers(0, 2**62)) for kind, data in zip(kinds, datas, strict=True)]
    return Batch(
        draw(st.text(min_size=1, max_size=63)),
        draw(st.integers(1, EPOCH_MAX)),
        draw(st.integers(1, SEQUENCE_MAX - BATCH_RECORDS_MAX)),
        draw(st.integers(0, 2**62)),
        bytes(kinds),
        bytes(draw(st.sampled_from([0, FLAG_MORE])) for _ in kinds),
        [draw(st.integers(0, 2**62)) for _ in kinds],
        lengths,
        sorted(draw(st.integers(0, 2**40)) for _ in kinds),
        b"".join(datas),
        {index: draw(_attributes) for index, kind in enumerate(kinds) if kind.is_mark and draw(st.booleans())},
    )
