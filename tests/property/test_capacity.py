"""Rates, bounds and overwrites of any workload, against sets and sums that look at every write."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.pool import pool_chunks
from hostoffload.capacity import needs
from hostoffload.capacity.events import EventCount
from hostoffload.capacity.overwrites import BLOCK_BYTES
from hostoffload.capacity.trace import Wanted, read_trace
from stream.config import AgentConfig, Config
from stream.errors import ConfigError

Write = tuple[float, int, int]  # when, where, how many bytes
WRITES = st.lists(
    st.tuples(
        st.integers(0, 400).map(lambda tenths: tenths / 10),
        st.integers(0, 3000).map(lambda block: block * 1024),
        st.integers(1, 3 * BLOCK_BYTES),
    ),
    max_size=60,
).map(sorted)


def counted(writes: list[Write], windows: set[int] = frozenset()) -> EventCount:
    count = EventCount(windows)
    for at_s, offset, length in writes:
        assert count.write(at_s, offset, length)
    return count


@given(WRITES, st.integers(1, 30), st.integers(0, 400))
def test_no_stretch_of_time_has_more_than_the_bound(writes: list[Write], window_s: int, begin_tenths: int) -> None:
    seen = counted(writes).workload("test")
    most = seen.most(window_s)
    if most is None:
        assert seen.seconds < window_s
        return
    begin_s = begin_tenths / 10
    inside = [length for at_s, _, length in writes if begin_s <= at_s < begin_s + window_s]
    assert sum(inside) <= most[0] and len(inside) <= most[1]
    assert most[0] <= seen.payload_bytes and most[1] <= len(writes)


@given(WRITES)
def test_rates_are_in_order(writes: list[Write]) -> None:
    seen = counted(writes).workload("test")
    second, ten = seen.busiest(1), seen.busiest(10)
    assert second is not None and seen.bytes_per_s <= second + 1e-6 and seen.quantile() <= second
    assert seen.payload_bytes == sum(length for *_, length in writes)
    if ten is not None:
        assert seen.bytes_per_s - 1e-6 <= ten * (1 + 10 / seen.seconds) and ten <= second + 1e-6
    else:
        assert seen.seconds < 10


@given(WRITES, st.sets(st.integers(1, 30), min_size=1, max_size=4))
def test_overwrites_are_what_sets_of_blocks_say(writes: list[Write], windows: set[int]) -> None:
    seen = counted(writes, windows).workload("test")
    told = {one.window_s: one for one in seen.overwrites or ()}
    for window_s in windows:
        whole = int(seen.seconds) // window_s
        if not whole:
            assert window_s not in told
            continue
        written = unique = 0
        for index in range(whole):
            inside = [one for one in writes if index * window_s <= int(one[0]) < (index + 1) * window_s]
            blocks = {block for _, offset, length in inside for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))}
            written += sum(length for *_, length in inside)
            unique += min(len(blocks) * BLOCK_BYTES, sum(length for *_, length in inside))
        assert (told[window_s].windows, told[window_s].written_bytes, told[window_s].unique_bytes) == (whole, written, unique)


@given(st.integers(0, 1 << 36), st.integers(0, 1 << 24))
def test_the_buffer_is_the_least_whose_pool_has_the_chunks(payload: int, writes: int) -> None:
    size = needs.buffer_bytes(payload, writes)
    wanted = payload * 8 / 7 + writes * 28 + (writes + payload / (7 * 32768)) * 64  # a chunk is 262144 bytes, 7/8 of it 7 * 32768
    assert pool_chunks(size) * 262144 >= wanted + 10 * 262144
    assert pool_chunks(size - (1 << 20)) * 262144 < wanted + 11 * 262144
    assert size % (1 << 20) == 0
    assert needs.buffer_bytes(payload + 262144, writes) >= size <= needs.buffer_bytes(payload, writes + 1)


@given(WRITES, st.integers(0, 40))
def test_what_the_buffer_bridges_is_what_fits_it(writes: list[Write], scale: int) -> None:
    seen = counted([(at_s, offset, length << 13) for at_s, offset, length in writes]).workload("test")
    config = Config(agent=AgentConfig(buffer_bytes_max=(96 << 20) + (scale << 20)))
    told = needs.buffer(seen, config, None)
    assert told.bridged_all == (told.bridged_s == int(seen.seconds))
    for outage_s in range(1, int(seen.seconds) + 1):
        fits = needs.buffer_bytes(*(seen.most(outage_s) or (0, 0))) <= config.agent.buffer_bytes_max
        assert fits == (outage_s <= told.bridged_s)


LINES = st.one_of(
    st.text(max_size=60),
    st.builds(
        "  8,0 {} {} {}.{:09d} {} {} {} {} + {} [x]".format,
        st.integers(0, 3),
        st.integers(0, 99),
        st.one_of(st.integers(0, 500), st.just(10**12)),
        st.integers(0, 999_999_999),
        st.integers(0, 99),
        st.sampled_from(["Q", "C", "D", "I"]),
        st.sampled_from(["W", "WS", "R", "D", "FWFS", "N"]),
        st.integers(0, 10**14),
        st.integers(0, 10**6),
    ),
    st.builds("   8  0 sda {} {} {} {} {} {} {} {} {} {} {}".format, *[st.integers(0, 1 << 40)] * 11),
    st.sampled_from(["Device r/s w/s wkB/s", "sda 1 2 3", "sda 1 x 3", "1700000000.5", "avg-cpu: %user", "Total (8,0):"]),
)


@given(st.lists(LINES, max_size=30), st.sampled_from([None, 1.0]), st.sampled_from([None, "sda", "8,0"]))
def test_any_text_is_read_or_refused_in_a_sentence(lines: list[str], interval_s: float | None, device: str | None) -> None:
    try:
        trace = read_trace(lines, "text", Wanted(device, interval_s, (10,)))
    except ConfigError as error:
        assert error.sentence and error.hint
        return
    assert trace.workload.seconds > 0
    assert trace.lines == len(lines) and len(trace.bad) == min(trace.bad_lines, 5)
    assert all(1 <= bad.number <= len(lines) and bad.why for bad in trace.bad)
