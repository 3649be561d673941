"""Traces of other programs: their form is found out, their lines are read, and what can't be read is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostoffload.capacity.overwrites import BLOCK_BYTES
from hostoffload.capacity.trace import Trace, Wanted, read_trace
from hostoffload.capacity.workload import Overwrite
from stream.errors import ConfigError

BLKPARSE = """\
  8,0    3        1     0.000000000   697  Q   W 8 + 8 [kjournald]
  8,0    3        2     0.000001829   697  G   W 8 + 8 [kjournald]
  8,0    3        3     0.000002197   697  P   N [kjournald]
  8,0    3        4     0.000022000   697  D   W 8 + 8 [kjournald]
  8,0    3        5     0.004000000     0  C   W 8 + 8 [0]
  8,0    1        6     1.250000000   700  Q  WS 8 + 16 [dd]
  8,0    1        7     1.300000000   700  Q   R 800 + 8 [dd]
  8,0    1        8     2.500000000   700  Q FWFS 80 + 8 [jbd2/sda]
  8,0    1        9     2.600000000   700  Q  FWS [jbd2/sda]
  8,0    1       10     2.700000000   701  Q  DS 4096 + 2048 [fstrim]
  8,0    1        0     2.800000000     0  m   N cfq workload slice
CPU0 (8,0):
 Reads Queued:           1,        4KiB	 Writes Queued:           3,       16KiB
Total (8,0):
 Throughput (R/W): 0KiB/s / 0KiB/s
"""
IOSTAT = """\
Linux 6.1.0 (host) \t11/26/2026 \t_x86_64_\t(2 CPU)

11/26/2026 07:00:00 AM
avg-cpu:  %user   %nice %system %iowait  %steal   %idle
           1.00    0.00    1.00    0.00    0.00   98.00

Device            r/s     rkB/s     w/s     wkB/s   d/s     dkB/s  %util
sda              1.00      4.00  999.00   9999.00  0.00      0.00   1.00

11/26/2026 07:00:05 AM
avg-cpu:  %user   %nice %system %iowait  %steal   %idle
           1.00    0.00    1.00    0.00    0.00   98.00

Device            r/s     rkB/s     w/s     wkB/s   d/s     dkB/s  %util
sda              1.00      4.00   10.00    100.00  1.00      8.00   1.00

11/26/2026 07:00:10 AM
Device            r/s     rkB/s     w/s     wkB/s   d/s     dkB/s  %util
sda              1.00      4.00   20.00    300.00  0.00      0.00   1.00
"""
DISKSTATS = """\
1700000000.00
   7       0 loop0 5 0 40 1 0 0 0 0 0 4 1 0 0 0 0
   8       0 sda 100 0 800 5 1000 2 80000 50 0 60 55 10 0 2000 1 0 0
1700000001.00
   7       0 loop0 5 0 40 1 0 0 0 0 0 4 1 0 0 0 0
   8       0 sda 100 0 800 5 1010 2 80160 50 0 60 55 10 0 2000 1 0 0
1700000002.50
   7       0 loop0 5 0 40 1 0 0 0 0 0 4 1 0 0 0 0
   8       0 sda 120 0 900 5 1010 2 80160 50 0 60 55 12 0 2016 1 0 0
"""


def read(text: str, **wanted: object) -> Trace:
    return read_trace(text.splitlines(keepends=True), "trace", Wanted(**wanted))  # type: ignore[arg-type]


def refused(text: str, **wanted: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, **wanted)
    assert caught.value.hint
    return caught.value


def test_blkparse_counts_what_was_queued_once() -> None:
    trace = read(BLKPARSE, windows_s=(1, 3))
    seen = trace.workload
    assert trace.form == "blkparse text" and trace.bad_lines == 0 and trace.lines == 15
    assert seen.source == "blkparse text of 8,0"
    assert [(one.payload_bytes, one.writes) for one in seen.intervals] == [(4096, 1), (8192, 1), (4096, 1)]
    assert seen.trimmed_bytes == 1 << 20
    # Blocks 1; 1 and 2; 10: of four blocks written three are left after three seconds.
    assert seen.overwrites == (Overwrite(1, 3, 4 * BLOCK_BYTES, 4 * BLOCK_BYTES), Overwrite(3, 1, 4 * BLOCK_BYTES, 3 * BLOCK_BYTES))


def test_blkparse_without_queue_events_counts_completions() -> None:
    trace = read("".join(line for line in BLKPARSE.splitlines(keepends=True) if " Q " not in line))
    assert trace.workload.writes == 1 and trace.notes[0].startswith("action C is counted")


def test_an_excerpt_begins_with_its_first_event() -> None:
    trace = read("  8,0 1 6 100.250000000 700 Q W 8 + 8 [dd]\n  8,0 1 7 101.000000000 700 Q W 8 + 8 [dd]\n")
    assert trace.workload.seconds == 1.0


def test_an_event_before_the_latest_is_not_lost() -> None:
    trace = read("8,0 1 1 1.0 7 Q W 8 + 8 [dd]\n8,0 0 2 3.0 7 Q W 8 + 8 [dd]\n8,0 1 3 2.9 7 Q W 8 + 8 [dd]\n")
    assert [one.writes for one in trace.workload.intervals] == [1, 0, 2]


def test_bad_lines_are_counted_and_named_and_the_rest_is_read() -> None:
    lines = BLKPARSE.splitlines(keepends=True)
    trace = read("".join(["hello\n", *lines[:5], "  8,0 3 x 0.1 697 Q W\n", "8,0 1 1 99999999.0 7 Q W 8 + 8 [dd]\n", *lines[5:]]))
    assert trace.workload.writes == 3 and trace.bad_lines == 3
    assert [(bad.number, bad.why) for bad in trace.bad] == [
        (1, "it is no event of blkparse's"),
        (7, "it is no event of blkparse's"),
        (8, "its time is 99999999 s after the first event"),
    ]


def test_several_devices_are_asked_about() -> None:
    both = "  8,16    3        1     0.000000000   697  Q   W 8 + 8 [x]\n" + BLKPARSE
    assert "8,0 and 8,16" in refused(both).sentence
    assert read(both, device="8,0").workload.writes == 3
    assert "Nothing is left" in refused(both, device="9,9").sentence


def test_iostat_leaves_out_the_mean_since_the_boot() -> None:
    trace = read(IOSTAT)
    assert trace.form == "iostat -x" and trace.bad_lines == 0
    assert [(one.seconds, one.payload_bytes, one.writes) for one in trace.workload.intervals] == [
        (5.0, 5 * 102_400, 50),
        (5.0, 5 * 307_200, 100),
    ]
    assert trace.workload.trimmed_bytes == 5 * 8192
    assert trace.workload.overwrites is None and trace.workload.overwrites_unknown == "counters tell no extents"


def test_iostat_without_times_needs_an_interval() -> None:
    without = "".join(line for line in IOSTAT.splitlines(keepends=True) if not line.startswith("11/26"))
    assert "not told" in refused(without).sentence
    assert read(without, interval_s=2).workload.seconds == 4.0


@pytest.mark.parametrize(
    ("header", "row", "payload"),
    [
        ("Device: rrqm/s wrqm/s r/s w/s rsec/s wsec/s", "sda 0 0 0 1 0 8", 4096),
        ("Device r/s w/s rMB/s wMB/s", "sda 0 1 0 2.5", 2_621_440),
        ("Device r/s w/s rkB/s wkB/s", "sda 0,00 1,00 0,00 4,50", 4608),
    ],
)
def test_iostat_of_other_versions_and_languages(header: str, row: str, payload: int) -> None:
    assert read(f"{header}\n{row}\n\n{header}\n{row}\n", interval_s=1).workload.payload_bytes == payload


def test_iostat_names_its_bad_rows() -> None:
    trace = read(IOSTAT + "sdb 1 2\nsda a b c d e f g\nsda 1 4 -20 300 0 0 1\n", interval_s=5)
    assert [bad.why for bad in trace.bad] == ["3 columns stand under 8", "a column is no number", "a rate is below zero"]
    basic = refused("Device tps kB_wrtn/s\nsda 1.0 2.0\n")
    assert "2 of 2 lines can't be read, the first is line 1" in basic.sentence and "-x" in basic.sentence
    assert "mean since the boot" in refused("".join(IOSTAT.splitlines(keepends=True)[:8])).sentence
    two = IOSTAT + "sdb              1.00      4.00   20.00    300.00  0.00      0.00   1.00\n"
    assert "more than one device: sda, sdb" in refused(two).sentence
    assert "no device nvme0n1" in refused(two, device="nvme0n1").sentence


def test_diskstats_is_what_was_written_between_two_snapshots() -> None:
    trace = read(DISKSTATS)  # loop0 was not written to: no need to ask
    assert trace.form == "/proc/diskstats" and trace.workload.source == "/proc/diskstats of sda"
    assert [(one.seconds, one.payload_bytes, one.writes) for one in trace.workload.intervals] == [(1.0, 81_920, 10), (1.5, 0, 0)]
    assert trace.workload.trimmed_bytes == 16 * 512
    assert read(DISKSTATS, device="loop0").workload.writes == 0


def test_diskstats_without_times_needs_an_interval() -> None:
    without = "".join(line for line in DISKSTATS.splitlines(keepends=True) if not line.startswith("17"))
    assert "not told" in refused(without).sentence
    assert read(without, interval_s=10).workload.seconds == 20.0


def test_counters_that_went_back_are_a_bad_line() -> None:
    again = DISKSTATS + "1700000004.00\n   8       0 sda 1 0 8 5 3 2 24 50 0 60 55 0 0 0 1 0 0\n"
    again += "1700000004.00\n   8       0 sda 1 0 8 5 3 2 24 50 0 60 55 0 0 0 1 0 0\n"
    again += "1700000005.00\n   8       0 sda 1 0 8 5 4 2 32 50 0 60 55 0 0 0 1 0 0\n"
    trace = read(again)
    assert [bad.why for bad in trace.bad] == [
        "the counters went back: was the machine restarted?",
        "no time has passed since the snapshot before",
    ]
    assert [one.writes for one in trace.workload.intervals] == [10, 0, 1]


@pytest.mark.parametrize("back", ["9 0 80 0 0 0 0 0 0 16", "10 0 72 0 0 0 0 0 0 16", "10 0 80 0 0 0 0 0 0 8"])
def test_a_single_counter_that_went_back_is_one_too(back: str) -> None:
    snapshot = "   8 0 sda 0 0 0 0 {} 0 0".format
    lines = [snapshot("5 0 40 0 0 0 0 0 0 0"), snapshot("10 0 80 0 0 0 0 0 0 16"), snapshot(back)]
    trace = read("\n".join(lines), interval_s=1)
    assert trace.bad_lines == 1 and trace.workload.writes == 5


def test_one_snapshot_is_no_interval() -> None:
    assert "one snapshot alone" in refused("   8 0 sda 100 0 800 5 1000 2 80000 50 0 60 55\n").sentence


@pytest.mark.parametrize(("text", "told"), [("", "is empty"), ("\n \n", "is empty"), ("what is this\n", "has no form that is known")])
def test_what_is_no_trace_is_refused(text: str, told: str) -> None:
    assert told in refused(text).sentence


def test_this_machine_s_own_counters_are_read() -> None:
    text = Path("/proc/diskstats").read_text(encoding="ascii")
    names = [line.split()[2] for line in text.splitlines()]
    trace = read(text + text, device=names[0], interval_s=1)
    assert trace.bad_lines == 0 and trace.workload.writes == 0 and trace.workload.seconds == 1.0
