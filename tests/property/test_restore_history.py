"""Any history: what is restored at a moment, what is replayed up to it and the oracle are the same bytes, killed in between or not."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from history.catalog import Catalog
from history.image import Image
from history.store import open_store
from nbd.blockfile import BlockFile
from recovery.comparison import different_extents
from recovery.point import AtPosition
from recovery.replay import Replay
from recovery.restore import Restore
from recovery.restore_target import RestoreTarget
from stream.position import Position
from tests.history_story import journals, moments, oracle, store_all
from tests.journal_maker import JournalMaker


class Killed(BaseException):
    """Stands for SIGKILL."""


def restored(image: Image, path: Path, *, killed_at: str) -> bytes:
    """Restore, after a first try that is killed at a step."""

    def kill(what: str, *_: int) -> None:
        if what == killed_at:
            raise Killed

    for watch in (kill, lambda *_: None):
        target = RestoreTarget(path, image.size_bytes, force=True)
        try:
            Restore(image, target, watch=watch).run()
            break
        except Killed:
            assert not path.exists()
        finally:
            target.close()
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    return path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(journals(), st.sets(st.integers(0, 80)), st.data())
def test_restored_and_replayed_are_what_was_written(maker: JournalMaker, seal_at: set[int], data: st.DataObject) -> None:
    store = open_store("memory:///")
    reached = store_all(maker, store, seal_at)
    points = moments(maker, reached)
    if not points:
        return
    position = data.draw(st.sampled_from(points))
    expected = oracle(maker, position)
    with tempfile.TemporaryDirectory() as folder:
        image = Catalog(store, maker.volume).image(position)
        path = Path(folder, "volume")
        assert restored(image, path, killed_at=data.draw(st.sampled_from(["", "write", "verify"]))) == expected
        replay = Replay("v1", "journal", lambda kafka_offset: maker.messages[kafka_offset or 0 :])
        start = data.draw(st.sampled_from([Position(1, 0), *[one for one in points if one <= position]]))
        path.write_bytes(oracle(maker, start) if start.sequence else b"")
        file = BlockFile(path)
        try:
            replay.apply(replay.find(AtPosition(start), AtPosition(position), 0), file)
            assert path.read_bytes() == expected
            assert different_extents(file, image) == []
        finally:
            file.close()
