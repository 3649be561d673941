"""A served volume out of service: sources that shrink, fencing, requests, wrong sources."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent import ring as layout
from agent.activity_log import ActivityLog, path_of
from agent.declared import Resync
from agent.modes import Event
from agent.ring import VolumeRing
from agent.served import ServedVolume
from agent.source import Source, SourceIdentity
from stream.config import AgentConfig
from stream.errors import ConfigError, FencedError
from tests.served_parts import SIZE, Host, Killed, owed


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.kill()


class TestShrink:
    def test_takes_the_volume_out_of_service(self, host: Host) -> None:
        served = host.start()
        host.until_data()
        os.truncate(host.source, SIZE - 1)
        served.tend(time.monotonic(), 1000)
        facts = served.facts()[1]
        assert (facts["mode"], facts["serving"]) == ("OFFLINE", False)
        assert "shrank" in facts["error"]
        with pytest.raises(OSError, match="shrank"):
            served.device.open_session()

    def test_is_not_forgotten_when_the_source_is_put_back(self, host: Host) -> None:
        """What stands in a file that was cut and brought back is anybody's guess."""
        served = host.start()
        host.until_data()
        content = host.source.read_bytes()
        os.truncate(host.source, SIZE // 4)
        served.tend(time.monotonic(), 1000)
        host.served.stop(time.monotonic() + 1)
        with host.source.open("r+b") as file:
            file.write(content)
        served = host.start()
        assert owed(served)[0] == "RESYNC"

    def test_a_device_that_is_gone_does_not_end_the_process(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        served = host.start()
        host.until_data()

        def gone() -> int:
            raise OSError(6, "no such device")

        monkeypatch.setattr(served.source.file, "measure", gone)
        served.tend(time.monotonic(), 1000)
        assert served.facts()[1]["mode"] == "OFFLINE"


class TestFenced:
    def test_stops_and_frees_its_memory(self, host: Host) -> None:
        served = host.start()
        host.until_data()
        served.volume.flush()
        served.ring.words[layout.W_FENCED] = 1
        served.tend(time.monotonic(), 1000)
        assert served.facts()[1]["mode"] == "OFFLINE"
        assert served.volume.log.used_bytes() == 0

    def test_stays_out_of_service_over_restarts(self, host: Host) -> None:
        served = host.start()
        host.until_data()
        served.ring.words[layout.W_FENCED] = 1
        host.kill()
        with pytest.raises(FencedError, match="newer epoch"):
            host.bring_up()  # killed before it could write that down anywhere but in the ring
        with pytest.raises(FencedError, match="newer epoch"):
            host.bring_up()

    def test_never_stops_clean(self, host: Host) -> None:
        served = host.start()
        host.until_data()
        served.ring.words[layout.W_FENCED] = 1
        served.tend(time.monotonic(), 1000)
        facts = served.facts()[1]
        assert (facts["mode"], facts["serving"]) == ("OFFLINE", False)
        assert "fenced" in facts["error"]
        assert served.outdated(host.declaration), "it is taken down: clients end, the source is let go"
        assert not host.stop()
        found = ActivityLog.open(path_of(host.state, "v"), "v", SourceIdentity(os.stat(host.source).st_ino, SIZE, 0))
        assert found is not None and found.clean() is None

    def test_stays_fenced_when_the_memory_is_lost_too(self, host: Host) -> None:
        """Until it is declared for this host again, which is the operator's word."""
        served = host.start()
        host.until_data()
        served.ring.words[layout.W_FENCED] = 1
        served.tend(time.monotonic(), 1000)
        host.kill()
        host.lose_memory()
        with pytest.raises(FencedError, match="newer epoch"):
            host.bring_up()
        host.declaration = replace(host.declaration, declared_at_ns=host.declaration.declared_at_ns + 1)
        host.start()
        assert owed(host.served) == ("RESYNC", SIZE)

    def test_is_taken_back_as_a_whole(self, host: Host) -> None:
        """What the other agent wrote meanwhile stands in no activity log of this host; killed in between, it is no other."""
        _fence_in_order(host)
        host.declaration = replace(host.declaration, declared_at_ns=host.declaration.declared_at_ns + 1)
        host.bring_up()
        host.kill()
        host.start()
        assert owed(host.served) == ("RESYNC", SIZE)

    def test_is_taken_back_when_the_other_agent_has_let_go(self, host: Host) -> None:
        """Not before: until then it is refused as held, and nothing of the operator's word is used up."""
        _fence_in_order(host)
        host.declaration = replace(host.declaration, declared_at_ns=host.declaration.declared_at_ns + 1)
        other = Source(str(host.source))
        with pytest.raises(ConfigError, match="is held by"):
            host.bring_up()
        other.close()
        host.start()
        assert owed(host.served) == ("RESYNC", SIZE)


def _fence_in_order(host: Host) -> None:
    """Fence a volume whose activity log names nothing, its ring being there."""
    served = host.start()
    host.until_data()
    for now_s in range(0, 600, 10):
        served.sweep(now_s)
    assert served.activity.regions() == []
    served.ring.words[layout.W_FENCED] = 1
    served.tend(time.monotonic(), 1000)
    host.kill()


class TestRequests:
    def test_each_is_carried_out_once(self, host: Host) -> None:
        served = host.start()
        host.until_data()
        one, two = Resync("one", "asked", ""), Resync("two", "asked", "00000001-0000000000000009")
        served.request_sync(one)
        served.request_sync(two)
        host.until_data()
        before = served.ring.words[layout.W_RESYNC_BYTES]
        for _ in range(3):
            served.request_sync(one)
            served.request_sync(two)
        assert owed(served) == ("DATA", 0)
        assert served.ring.words[layout.W_RESYNC_BYTES] == before
        assert served.ring.listed("handled") == ["one", "two"]

    def test_a_kill_before_it_is_handled_repeats_it(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        served = host.start()
        host.until_data()
        with monkeypatch.context() as patch:
            patch.setattr(VolumeRing, "add_listed", lambda *_: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                served.request_sync(Resync("one", "asked", ""))
        assert "one" not in served.ring.listed("handled")

    def test_many_do_not_leave_a_part_of_a_name(self, host: Host) -> None:
        served = host.start()
        names = [f"resync-volume-{number:020d}" for number in range(100)]
        for name in names:
            served.ring.add_listed("handled", name)
        listed = served.ring.listed("handled")
        assert len(listed) > 10
        assert listed == names[-len(listed) :]


def test_a_source_is_served_once(host: Host) -> None:
    host.start()
    with pytest.raises(ConfigError, match=f"is held by process {os.getpid()}"):
        ServedVolume(host.declaration, host.state, host.rings, lambda ring: None, AgentConfig())


@pytest.mark.parametrize("what", ["missing", "folder", "empty", "unreadable"])
def test_a_wrong_source_is_one_sentence(host: Host, tmp_path: Path, what: str) -> None:
    host.start()
    path = tmp_path / "other"
    if what == "folder":
        path.mkdir()
    elif what == "empty":
        path.touch()
    elif what == "unreadable":
        path = Path("/dev/null")
    with pytest.raises(ConfigError) as refused:
        ServedVolume(replace(host.declaration, source=str(path)), host.state, host.rings, lambda ring: None, AgentConfig())
    assert str(path) in refused.value.sentence
    assert refused.value.hint


def test_mode_reason_may_have_any_length(host: Host) -> None:
    served = host.start()
    served.volume.modes.happen(Event.RESYNC_OWED, "ü" * 300)
    assert served.facts()[1]["mode_reason"].startswith("üü")


def test_a_lost_stream_begins_anew(host: Host) -> None:
    """Its topic was made anew: the volume is brought up again over a new ring, and copied whole."""
    served = host.start()
    host.until_data()
    assert not served.outdated(host.declaration)
    served.ring.words[layout.W_LOST] = 1
    assert served.outdated(host.declaration)
    assert not host.stop(), "nothing that is lost stops clean"
    served = host.start()
    assert owed(served)[0] == "RESYNC"
    assert host.epoch == 2
    assert not served.outdated(host.declaration)
