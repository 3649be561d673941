"""`ServedVolume`: what is owed at a start, whatever killed the agent before and wherever."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import ring as layout
from agent.ring import VolumeRing
from tests.agent_parts import MIB
from tests.served_parts import GAP_BEGIN, SIZE, Host, Killed, marks, owed, touch


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.kill()


def test_a_new_volume_is_copied(host: Host) -> None:
    served = host.start()
    assert owed(served)[0] == "SYNC"
    host.until_data()
    assert served.ring.words[layout.W_RESYNC_BYTES] == SIZE // 2


def test_a_kill_before_the_claim_forgets_no_copy(host: Host) -> None:
    """The ring is there, nothing is claimed: Kafka was away. The next capture must not take it for one in service."""
    host.bring_up()
    host.kill()
    served = host.bring_up()
    assert not served.step()
    host.claim()
    assert served.step()
    assert owed(served)[0] == "SYNC"
    host.until_data()
    assert served.ring.words[layout.W_RESYNC_BYTES] == SIZE // 2


def test_a_kill_between_the_claim_and_the_decision_forgets_no_copy(host: Host) -> None:
    host.bring_up()
    host.claim()
    host.kill()
    served = host.start()
    assert owed(served)[0] == "RESYNC"
    host.until_data()
    assert served.ring.words[layout.W_RESYNC_BYTES] == SIZE // 2


@pytest.mark.parametrize("place", ["add_listed", "owe", "set_text"])
def test_a_kill_inside_the_decision_forgets_no_copy(host: Host, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    served = host.bring_up()
    host.claim()

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(VolumeRing, place, die)
        with pytest.raises(Killed):
            served.step()
    host.kill()
    served = host.start()
    host.until_data()
    assert served.ring.words[layout.W_RESYNC_BYTES] == SIZE // 2


def test_a_killed_capture_goes_on_in_its_epoch(host: Host) -> None:
    host.start()
    host.until_data()
    host.kill()
    served = host.start()
    assert owed(served) == ("DATA", 0)
    assert host.epoch == 1


def test_a_capture_killed_in_the_copy_goes_on_with_it(host: Host) -> None:
    served = host.start()
    host.kill()
    left = served.volume.snapshot()[0]
    served = host.start()
    assert served.facts()[1]["mode"] == ("SYNC" if left else served.facts()[1]["mode"])
    host.until_data()
    assert host.epoch == 1


def test_an_orderly_stop_needs_no_copy(host: Host) -> None:
    host.start()
    host.until_data()
    assert host.stop()
    served = host.start()
    assert owed(served) == ("DATA", 0)
    assert host.epoch == 1


def test_an_orderly_stop_is_believed_after_a_reboot(host: Host) -> None:
    host.start()
    host.until_data()
    assert host.stop()
    host.lose_memory()
    served = host.start()
    assert owed(served) == ("DATA", 0)
    assert host.epoch == 2
    assert host.marker() is None, "a marker that was used may not be used again"


def test_a_marker_survives_a_start_that_comes_to_nothing(host: Host) -> None:
    """Booted while Kafka was away and stopped again: nothing was served, so the stop before is still clean."""
    host.start()
    host.until_data()
    assert host.stop()
    host.lose_memory()
    host.bring_up()
    host.kill()
    served = host.start()
    assert owed(served) == ("DATA", 0)


def test_a_source_touched_before_a_start_that_came_to_nothing_is_copied(host: Host) -> None:
    host.start()
    host.until_data()
    assert host.stop()
    host.lose_memory()
    host.bring_up()
    host.kill()
    touch(host)
    served = host.start()
    assert owed(served)[0] == "RESYNC"


@pytest.mark.parametrize("reboot", [False, True])
def test_a_source_touched_while_stopped_is_copied(host: Host, reboot: bool) -> None:
    host.start()
    host.until_data()
    assert host.stop()
    if reboot:
        host.lose_memory()
    touch(host)
    served = host.start()
    assert owed(served)[0] == "RESYNC"
    if not reboot:
        gap = marks(served, GAP_BEGIN)
        assert served.ring.text("closes") == f"00000001-{gap[0]:016d}"
    host.until_data()
    assert served.ring.words[layout.W_RESYNC_BYTES] >= SIZE // 2


def test_a_kill_while_a_touched_source_is_found_forgets_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.start()
    host.until_data()
    assert host.stop()
    touch(host)
    served = host.bring_up()

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(served.volume.log, "reserve_mark", die)
    with pytest.raises(Killed):
        served.step()
    host.kill()
    served = host.start()
    gap = marks(served, GAP_BEGIN)
    assert len(gap) == 1
    assert f"00000001-{gap[0]:016d}" in served.ring.text("closes")
    assert owed(served)[0] == "RESYNC"


def test_an_unclean_stop_and_a_lost_ring_copy_everything(host: Host) -> None:
    host.start()
    host.until_data()
    host.kill()
    host.lose_memory()
    served = host.start()
    assert owed(served)[0] == "RESYNC"
    assert host.epoch == 2
    assert served.ring.text("closes").endswith(f"{host.log_end:016d}") or served.ring.text("closes") == ""


def test_a_stop_with_records_that_kafka_lacks_is_not_clean(host: Host) -> None:
    host.start()
    host.until_data()
    host.served.volume.flush()
    assert not host.served.stop(time.monotonic())
    assert host.marker() is None


def test_a_stop_in_the_middle_of_the_copy_is_not_clean(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.start()
    host.served.volume.debts.owe(0, SIZE)
    host.served.copier._stop.set()
    host.served.copier._thread.join()
    host.served.volume.debts.owe(0, SIZE)
    assert not host.stop()
    monkeypatch.setattr("agent.first_copy.Copier._run", lambda copier: None)  # else it pays before the debt is seen
    served = host.start()
    assert owed(served)[1] == SIZE


def test_a_stop_before_it_ever_served_is_not_clean_and_harms_nothing(host: Host) -> None:
    host.bring_up()
    assert not host.served.stop(time.monotonic() + 1)
    assert host.marker() is None


def test_a_ring_of_another_source_is_not_gone_on_from(host: Host) -> None:
    host.start()
    host.until_data()
    host.kill()
    new = host.source.with_name("new")
    new.write_bytes(os.urandom(SIZE))
    new.rename(host.source)
    served = host.start()
    assert owed(served)[0] == "RESYNC"
    assert host.epoch == 2


def test_a_grown_source_is_copied_whole(host: Host) -> None:
    host.start()
    host.until_data()
    assert host.stop()
    os.truncate(host.source, SIZE + MIB)
    served = host.start()
    assert served.device.size_bytes == SIZE + MIB
    assert owed(served)[0] == "RESYNC"


def test_a_heart_beats_when_nothing_else_is_recorded(host: Host) -> None:
    """By the steady clock: the wall clock may stand anywhere."""
    served = host.start()
    host.until_data()
    head = served.volume.log.head
    served.tend(100.0, 1.0)
    served.ring.words[layout.W_CAPTURE_NS] = 1 << 62
    for now_s, beats in ((100.5, 0), (101.0, 1), (101.5, 1), (102.4, 1), (102.6, 2)):
        served.tend(now_s, 1.0)
        host.deliver()
        assert served.volume.log.head == head + beats, f"at {now_s}"


def test_a_heart_does_not_beat_while_kafka_is_away(host: Host) -> None:
    served = host.start()
    host.until_data()
    served.volume.flush()
    head = served.volume.log.head
    for now_s in (10.0, 20.0, 30.0):
        served.tend(now_s, 1.0)
    assert served.volume.log.head == head


def test_a_source_that_grows_is_followed(host: Host) -> None:
    """Design rule 16: growth is dirty, never assumed zero."""
    served = host.start()
    host.until_data()
    with host.source.open("ab") as file:
        file.write(b"not zero" * 1000)
    grown = host.source.stat().st_size
    served.tend(time.monotonic(), 1000)
    assert served.device.size_bytes == grown
    assert served.facts()[1]["mode"] == "RESYNC"
    before = served.ring.words[layout.W_RESYNC_BYTES]
    host.until_data()
    assert served.ring.words[layout.W_RESYNC_BYTES] == before + 8000
    assert served.ring.words[layout.W_GAPS] == 1
    assert served.activity.size_bytes == grown


def test_after_another_agent_had_it_everything_is_owed(host: Host) -> None:
    """A host that died, was stood in for, and has its volume back: its activity log is from before."""
    served = host.start()
    host.until_data()
    for step in range(40):
        served.sweep(1000.0 + step * 2)
    host.kill()
    host.lose_memory()
    host.claimed_as = layout.CLAIMED_ELSEWHERE
    served = host.start()
    assert owed(served) == ("RESYNC", SIZE)
    assert served.ring.words[layout.W_COMPARE] == layout.COMPARE_WANTED


def test_after_the_loss_of_the_host_only_the_regions_of_the_activity_log_are_owed(host: Host) -> None:
    served = host.start()
    host.until_data()
    for step in range(40):  # everything is old, durable and flushed: the log is clear
        served.sweep(1000.0 + step * 2)
    assert served.activity.regions() == []
    slot = served.volume.intents.open()
    served.volume.zero(slot, SIZE - 4096, 4096, punch=False, fast=False, durable=False)
    host.kill()
    host.lose_memory()
    served = host.start()
    assert served.facts()[1]["owed_bytes"] == 1 << 20
    assert served.ring.words[layout.W_COMPARE] == layout.COMPARE_WANTED
    host.until_data()
