"""`ClientHandshake`: the client's side of the fixed newstyle negotiation, as a pure state machine.

Bytes in, bytes out, no I/O: the client feeds exactly `wanted_bytes` at a time and sends what comes back, until `agreed` is set, or `names`
if it only asks for the list. Raises RefusedError if the server says no, ProtocolError if it does not speak the protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nbd import wire
from nbd.errors import ProtocolError, RefusedError

REPLY_BYTES_MAX = 64 << 10
REPLIES_MAX = 65536
"""Replies to one option; a server that sends more has not understood it."""

_WANTED_FLAGS = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES


@dataclass(frozen=True, slots=True)
class Agreed:
    """What server and client agreed on."""

    size_bytes: int
    flags: int
    structured: bool = False
    status_id: int | None = None
    request_bytes_max: int = wire.REQUEST_BYTES_MAX

    def __post_init__(self) -> None:
        if not self.flags & wire.TRANSMIT_HAS_FLAGS:
            raise ProtocolError("the server's transmission flags are invalid", got=hex(self.flags))
        if self.request_bytes_max < 512:
            raise ProtocolError("the server takes no request of any use", request_bytes_max=self.request_bytes_max)

    @property
    def read_only(self) -> bool:
        """Whether the server refuses changes."""
        return bool(self.flags & wire.TRANSMIT_READ_ONLY)


class ClientHandshake:
    """Ask for `export` with structured replies and block status if the server has them; with `listing`, ask for names only."""

    def __init__(self, export: str = "", *, listing: bool = False, structured: bool = True) -> None:
        self.wanted_bytes = wire.GREETING.size
        self.agreed: Agreed | None = None
        self.names: list[str] | None = None
        self._export = export
        self._listing = listing
        self._want_structured = structured
        self._structured = False
        self._status_id: int | None = None
        self._export_info: tuple[int, int] | None = None
        self._request_bytes_max = wire.REQUEST_BYTES_MAX
        self._found: list[str] = []
        self._state: Callable[[bytes], bytes] = self._greeting
        self._option = self._kind = self._replies = 0

    @property
    def over(self) -> bool:
        """Whether the negotiation has come to its end."""
        return self.agreed is not None or self.names is not None

    def feed(self, data: bytes) -> bytes:
        """Take exactly `wanted_bytes` from the server and return what to send. Raises RefusedError, ProtocolError."""
        assert len(data) == self.wanted_bytes, "the caller feeds exactly what is wanted"
        assert not self.over, "the negotiation has ended"
        return self._state(data)

    def _greeting(self, data: bytes) -> bytes:
        magic, option_magic, flags = wire.GREETING.unpack(data)
        if magic != wire.NBD_MAGIC or option_magic != wire.OPTION_MAGIC:
            raise ProtocolError("this is no NBD server of the newstyle protocol", got=data.hex())
        if not flags & wire.FLAG_FIXED_NEWSTYLE:
            raise ProtocolError("the server does not speak the fixed newstyle protocol")
        answer = wire.CLIENT_FLAGS.pack(flags & _WANTED_FLAGS)
        if self._listing:
            return answer + self._ask(wire.OPT_LIST)
        if self._want_structured:
            return answer + self._ask(wire.OPT_STRUCTURED_REPLY)
        return answer + self._ask_go()

    def _ask(self, option: int, data: bytes = b"") -> bytes:
        self._option, self._replies = option, 0
        self._state, self.wanted_bytes = self._reply_head, wire.OPTION_REPLY.size
        return wire.pack_option(option, data)

    def _ask_go(self) -> bytes:
        wanted = wire.U16.pack(1) + wire.U16.pack(wire.INFO_BLOCK_SIZE)
        return self._ask(wire.OPT_GO, wire.pack_name(self._export) + wanted)

    def _reply_head(self, data: bytes) -> bytes:
        magic, option, self._kind, length_bytes = wire.OPTION_REPLY.unpack(data)
        self._replies += 1
        if magic != wire.OPTION_REPLY_MAGIC or option != self._option:
            raise ProtocolError("the server answers something that was not asked", expected=self._option, got=option)
        if length_bytes > REPLY_BYTES_MAX or self._replies > REPLIES_MAX:
            raise ProtocolError("the server's answer is too long", length_bytes=length_bytes, replies=self._replies)
        self._state, self.wanted_bytes = self._reply_data, length_bytes
        return b"" if length_bytes else self._reply_data(b"")

    def _reply_data(self, data: bytes) -> bytes:
        self._state, self.wanted_bytes = self._reply_head, wire.OPTION_REPLY.size
        if self._kind & wire.REP_ERROR:
            return self._refused(data)
        if self._kind == wire.REP_ACK:
            return self._acknowledged()
        if self._kind == wire.REP_SERVER:
            self._found.append(wire.unpack_name(data, 0)[0])
        elif self._kind == wire.REP_META_CONTEXT:
            self._context(data)
        elif self._kind == wire.REP_INFO:
            self._info(data)
        else:
            raise ProtocolError("the server's answer is of an unknown kind", got=self._kind)
        return b""

    def _acknowledged(self) -> bytes:
        if self._option == wire.OPT_LIST:
            self.names = self._found
            return b""
        if self._option == wire.OPT_STRUCTURED_REPLY:
            self._structured = True
            query = wire.pack_name(self._export) + wire.U32.pack(1) + wire.pack_name(wire.META_BASE_ALLOCATION)
            return self._ask(wire.OPT_SET_META_CONTEXT, query)
        if self._option == wire.OPT_SET_META_CONTEXT:
            return self._ask_go()
        if self._export_info is None:
            raise ProtocolError("the server did not tell the size of the export")
        size_bytes, flags = self._export_info
        self.agreed = Agreed(size_bytes, flags, self._structured, self._status_id, self._request_bytes_max)
        return b""

    def _refused(self, data: bytes) -> bytes:
        """Go on without an extra; give up without what was asked for."""
        if self._option in (wire.OPT_STRUCTURED_REPLY, wire.OPT_SET_META_CONTEXT):
            return self._ask_go()
        said = data.decode(errors="replace") or "no reason given"
        raise RefusedError(f"the server refused: {said}", export=self._export, reply=hex(self._kind))

    def _context(self, data: bytes) -> None:
        if len(data) < 4:
            raise ProtocolError("a context without a number")
        if data[4:] == wire.META_BASE_ALLOCATION.encode():
            self._status_id = wire.U32.unpack_from(data)[0]

    def _info(self, data: bytes) -> None:
        """Note what is of use; kinds of information that nobody asked for are allowed."""
        if len(data) < 2:
            raise ProtocolError("information without a kind")
        kind = wire.U16.unpack_from(data)[0]
        if kind == wire.INFO_EXPORT:
            if len(data) != 2 + wire.EXPORT_INFO.size:
                raise ProtocolError("the export's information has an impossible length", got=len(data))
            self._export_info = wire.EXPORT_INFO.unpack_from(data, 2)
        elif kind == wire.INFO_BLOCK_SIZE:
            if len(data) != wire.BLOCK_SIZES.size:
                raise ProtocolError("the block sizes have an impossible length", got=len(data))
            self._request_bytes_max = min(wire.BLOCK_SIZES.unpack(data)[3], wire.REQUEST_BYTES_MAX)
