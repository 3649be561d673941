"""A feed: what a server does to a session's lane, by the interface's text alone, for tests of devices."""

from __future__ import annotations

from nbd.device import Session

HEADER = bytes(28)
MOVED_BYTES_MAX = 32 << 10


class Feed:
    """Receives requests into a session's lane as a server does, and hands writes over."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.lane = session.lane

    def write(self, offset_bytes: int, payload: bytes, *, fua: bool = False) -> None:
        """Let a header and `payload` arrive at the lane's tail, then write."""
        lane, start = self.lane, self.lane.tail
        if len(lane.chunk) - start < len(HEADER):
            lane.turn(lane.chunk[:0])
            start = lane.tail
        body = start + len(HEADER)
        lane.chunk[start:body] = HEADER
        if body + len(payload) > len(lane.chunk) and len(payload) < MOVED_BYTES_MAX:
            lane.chunk[body:] = payload[: len(lane.chunk) - body]
            before = len(lane.chunk) - body
            lane.turn(lane.chunk[start:])
            assert lane.tail == 0
            assert bytes(lane.chunk[: len(HEADER)]) == HEADER
            assert bytes(lane.chunk[len(HEADER) : len(HEADER) + before]) == payload[:before], "the kept part was not moved"
            body = len(HEADER)
        if body + len(payload) <= len(lane.chunk):
            self._write_here(body, offset_bytes, payload, fua)
        else:
            self._write_long(body, offset_bytes, payload, fua)

    def write_at(self, start: int, offset_bytes: int, payload: bytes) -> None:
        """Let a long write's header arrive so that its payload begins `start` bytes before the end of the chunk."""
        body = len(self.lane.chunk) - start
        assert body - len(HEADER) >= self.lane.tail
        self._write_long(body, offset_bytes, payload, False)

    def _write_here(self, body: int, offset_bytes: int, payload: bytes, fua: bool) -> None:
        lane, tail = self.lane, self.lane.tail
        piece = lane.chunk[body : body + len(payload)]
        piece[:] = payload
        self.session.write(offset_bytes, piece, len(payload), fua)
        places = (tail, body + len(payload), len(lane.chunk))
        assert lane.tail in places, "the tail belongs where it was, behind the payload, or at the chunk's end"

    def _write_long(self, body: int, offset_bytes: int, payload: bytes, fua: bool) -> None:
        lane, tail = self.lane, self.lane.tail
        pieces = [lane.chunk[body:]]
        left = len(payload) - (len(lane.chunk) - body)
        reserved = lane.reserve(left)
        assert sum(map(len, reserved)) >= left
        assert sum(map(len, reserved[:-1])) < left, "more chunks than needed"
        for chunk in reserved:
            pieces.append(chunk[:left])
            left -= len(pieces[-1])
        at = 0
        for piece in pieces:
            piece[:] = payload[at : at + len(piece)]
            at += len(piece)
        self.session.write(offset_bytes, pieces, len(payload), fua)
        lane.adopt(reserved, len(pieces[-1]))
        assert lane.tail in (0, len(pieces[-1]), tail, len(lane.chunk))
