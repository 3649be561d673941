"""Whatever stands in a request for a bookmark, the publisher answers it with a sentence or hands over what is in order."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.bookmark_desk import BookmarkDesk
from agent.bookmarks import BookmarkFile
from stream.control import Answer, Entry, Request, VolumeDeclaration

NOW_NS = time.time_ns()
TEXT = st.text(max_size=200) | st.sampled_from(("a", "b", "a,b", "b,,a", ",", "x", "latest", "g", "²", "9" * 5000, str(NOW_NS + 10**10)))
ATTRIBUTES = st.fixed_dictionaries({}, optional={name: TEXT for name in ("label", "group", "members", "until_ns")})


@settings(max_examples=300, deadline=None)
@given(name=TEXT.filter(bool), volume=TEXT, told=ATTRIBUTES)
def test_no_request_stops_the_publisher(name: str, volume: str, told: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        entries: dict[str, Entry] = {}

        def put(entry: Entry) -> None:
            entries[entry.key] = entry

        def reply(request: Request, *, done: bool, **attributes: str) -> None:
            put(Answer(request.id, done, attributes))

        for one in ("a", "b"):
            put(VolumeDeclaration(one, "me", "/source", 1 << 20))
        put(Request(name, "bookmark", volume, told))
        desk = BookmarkDesk(BookmarkFile(Path(folder)), "me", lambda _: None, reply, put)
        desk.look(entries)
        answer = entries.get(f"answer/{name}")
        if volume not in ("a", "b"):
            assert answer is None and not desk.asked
        elif answer is not None:
            assert not answer.done and answer.attributes["error"] and not desk.asked
        else:
            (asked,) = desk.asked
            assert asked.label == told["label"] and volume in asked.volumes and set(asked.volumes) <= {"a", "b"}
