"""`ServerHandshake`: the server's side of the fixed newstyle negotiation, as a pure state machine.

Bytes in, bytes out, no I/O: the server feeds exactly `wanted_bytes` at a time and sends what comes back, until `terms` is set (requests
follow) or `over` is true (close). Because nothing is read ahead, the first request stays in the socket. Raises ProtocolError for a
client that can't be talked to; everything else is answered politely. Source: the NBD project's doc/proto.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nbd import wire
from nbd.errors import ProtocolError

OPTIONS_MAX = 1024
"""Options in one handshake; a client that sends more is not negotiating."""

_FLAGS = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What a client is told about an export."""

    size_bytes: int
    read_only: bool

    def __post_init__(self) -> None:
        if not 0 <= self.size_bytes <= wire.SIZE_BYTES_MAX:
            raise ValueError(f"an export can't have {self.size_bytes} bytes")

    def pack(self) -> bytes:
        """Serialize size and transmission flags."""
        return wire.EXPORT_INFO.pack(self.size_bytes, wire.transmission_flags(read_only=self.read_only))


class ServerHandshake:
    """One client's negotiation.

    `find` returns the export of a name or None ("" is the default export); `names` those that LIST shows. With `refusal`, a
    sentence, every attempt to use an export is answered by it. With `tls` (the protocol's FORCEDTLS) a client learns and gets nothing
    before it has asked for TLS: `starts_tls` is then true until the caller, having sent the answer and shaken hands, calls `secured`.
    """

    def __init__(
        self, find: Callable[[str], ExportInfo | None], names: Callable[[], list[str]], *, refusal: str = "", tls: bool = False
    ) -> None:
        self.wanted_bytes = wire.CLIENT_FLAGS.size
        self.terms: wire.Terms | None = None
        self.over = False
        self.starts_tls = False
        self._tls = tls
        self._open = not tls
        self._find = find
        self._names = names
        self._refusal = refusal
        self._state: Callable[[bytes], bytes] = self._client_flags
        self._option = 0
        self._options = 0
        self._fixed = self._no_zeroes = self._structured = False
        self._context_export: str | None = None
        self._answers: dict[int, Callable[[bytes], bytes]] = {
            wire.OPT_EXPORT_NAME: self._export_name,
            wire.OPT_ABORT: self._abort,
            wire.OPT_LIST: self._list,
            wire.OPT_INFO: self._info,
            wire.OPT_GO: self._info,
            wire.OPT_STRUCTURED_REPLY: self._structured_reply,
            wire.OPT_LIST_META_CONTEXT: self._meta_context,
            wire.OPT_SET_META_CONTEXT: self._meta_context,
        }

    @staticmethod
    def greeting() -> bytes:
        """Return what the server says first."""
        return wire.GREETING.pack(wire.NBD_MAGIC, wire.OPTION_MAGIC, _FLAGS)

    def feed(self, data: bytes) -> bytes:
        """Take exactly `wanted_bytes` from the client and return what to send. Raises ProtocolError."""
        assert len(data) == self.wanted_bytes, "the caller feeds exactly what is wanted"
        assert not self.over and self.terms is None, "the negotiation has ended"
        return self._state(data)

    def retract(self, sentence: str) -> bytes:
        """Take back the terms just settled, because the export can't be opened; return what to send instead.

        Raises ProtocolError for a client whose option has no way to be refused.
        """
        self.terms = None
        if self._option == wire.OPT_EXPORT_NAME:
            raise ProtocolError(sentence)
        return self._next(self._reply(wire.REP_ERR_POLICY, sentence.encode()))

    def secured(self) -> None:
        """Go on inside TLS. Nothing was agreed outside of it, which the protocol would have us forget."""
        self.starts_tls, self._open = False, True

    def _client_flags(self, data: bytes) -> bytes:
        flags = wire.CLIENT_FLAGS.unpack(data)[0]
        if flags & ~_FLAGS:
            raise ProtocolError("the client wants handshake flags that nobody offered", got=hex(flags))
        self._fixed = bool(flags & wire.FLAG_FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & wire.FLAG_NO_ZEROES)
        return self._next(b"")

    def _next(self, answer: bytes) -> bytes:
        """Go on to the next option."""
        self._state, self.wanted_bytes = self._option_head, wire.OPTION.size
        return answer

    def _option_head(self, data: bytes) -> bytes:
        magic, self._option, length_bytes = wire.OPTION.unpack(data)
        self._options += 1
        if magic != wire.OPTION_MAGIC:
            raise ProtocolError("an option does not begin with its magic number", got=hex(magic))
        if length_bytes > wire.OPTION_BYTES_MAX:
            raise ProtocolError("an option is too long", option=self._option, length_bytes=length_bytes)
        if self._options > OPTIONS_MAX:
            raise ProtocolError("too many options", limit=OPTIONS_MAX)
        if not self._fixed and self._option != wire.OPT_EXPORT_NAME:
            raise ProtocolError("a client without fixed newstyle may only send an export name", option=self._option)
        self._state, self.wanted_bytes = self._option_data, length_bytes
        return b"" if length_bytes else self._option_data(b"")

    def _option_data(self, data: bytes) -> bytes:
        if self._option == wire.OPT_STARTTLS:
            return self._next(self._start_tls(data))
        if not self._open and self._option != wire.OPT_ABORT:
            if self._option == wire.OPT_EXPORT_NAME:
                raise ProtocolError("the client wants an export without TLS")
            return self._next(self._reply(wire.REP_ERR_TLS_REQD, b"TLS is required here"))
        answer = self._answers.get(self._option)
        if answer is None:
            return self._next(self._reply(wire.REP_ERR_UNSUP, b"not offered here"))
        try:
            reply = answer(data)
        except ProtocolError as error:
            if self._option == wire.OPT_EXPORT_NAME:
                raise  # This option has no way to say no.
            reply = self._reply(wire.REP_ERR_INVALID, error.sentence.encode())
        return reply if self.over or self.terms else self._next(reply)

    def _reply(self, kind: int, data: bytes = b"") -> bytes:
        return wire.pack_option_reply(self._option, kind, data)

    def _start_tls(self, data: bytes) -> bytes:
        if not self._tls:
            return self._reply(wire.REP_ERR_POLICY, b"not offered here")
        if data or self._open:
            return self._reply(wire.REP_ERR_INVALID, b"this option carries no data" if data else b"TLS is in use already")
        self.starts_tls = True
        return self._reply(wire.REP_ACK)

    def _abort(self, data: bytes) -> bytes:
        self.over = True
        return self._reply(wire.REP_ACK)

    def _export_name(self, data: bytes) -> bytes:
        name, _ = wire.unpack_name(wire.U32.pack(len(data)) + data, 0)
        export = None if self._refusal else self._find(name)
        if export is None:
            raise ProtocolError(self._refusal or "no such export", export=name)
        self._begin(name, export)
        return export.pack() + (b"" if self._no_zeroes else wire.OLDSTYLE_ZEROES)

    def _list(self, data: bytes) -> bytes:
        if data:
            raise ProtocolError("this option carries no data")
        servers = [self._reply(wire.REP_SERVER, wire.pack_name(name)) for name in self._names()]
        return b"".join(servers) + self._reply(wire.REP_ACK)

    def _info(self, data: bytes) -> bytes:
        name, at = wire.unpack_name(data, 0)
        if len(data) < at + 2 or len(data) != at + 2 + 2 * wire.U16.unpack_from(data, at)[0]:
            raise ProtocolError("the list of wanted information does not fit its option")
        wanted = {kind for (kind,) in wire.U16.iter_unpack(data[at + 2 :])}
        if self._refusal:
            return self._reply(wire.REP_ERR_POLICY, self._refusal.encode())
        export = self._find(name)
        if export is None:
            return self._reply(wire.REP_ERR_UNKNOWN, b"no such export")
        sizes = (wire.REQUEST_BYTES_MIN, wire.REQUEST_BYTES_PREFERRED, wire.REQUEST_BYTES_MAX)
        parts = [wire.U16.pack(wire.INFO_EXPORT) + export.pack(), wire.pack_block_sizes(*sizes)]
        if wire.INFO_NAME in wanted:
            parts.append(wire.U16.pack(wire.INFO_NAME) + name.encode())
        if self._option == wire.OPT_GO:
            self._begin(name, export)
        return b"".join(self._reply(wire.REP_INFO, part) for part in parts) + self._reply(wire.REP_ACK)

    def _begin(self, name: str, export: ExportInfo) -> None:
        """Settle the terms: the option phase is over. A context negotiated for another export is forgotten."""
        status = self._structured and self._context_export == name
        self.terms = wire.Terms(name, export.read_only, structured=self._structured, block_status=status)

    def _structured_reply(self, data: bytes) -> bytes:
        if data:
            raise ProtocolError("this option carries no data")
        self._structured = True
        return self._reply(wire.REP_ACK)

    def _meta_context(self, data: bytes) -> bytes:
        setting = self._option == wire.OPT_SET_META_CONTEXT
        if setting:
            self._context_export = None
        if not self._structured:
            raise ProtocolError("structured replies must be negotiated before")
        name, queries = unpack_meta_queries(data)
        if self._find(name) is None:
            return self._reply(wire.REP_ERR_UNKNOWN, b"no such export")
        if not setting:
            chosen = not queries or not {"base:", wire.META_BASE_ALLOCATION}.isdisjoint(queries)
        else:
            chosen = wire.META_BASE_ALLOCATION in queries
        if not chosen:
            return self._reply(wire.REP_ACK)
        if setting:
            self._context_export = name
        context = wire.U32.pack(wire.META_ID_BASE_ALLOCATION if setting else 0) + wire.META_BASE_ALLOCATION.encode()
        return self._reply(wire.REP_META_CONTEXT, context) + self._reply(wire.REP_ACK)


def unpack_meta_queries(data: bytes) -> tuple[str, list[str]]:
    """Return export name and queries of a meta context option. Raises ProtocolError."""
    name, at = wire.unpack_name(data, 0)
    if at + 4 > len(data):
        raise ProtocolError("the number of queries is missing")
    count, at = wire.U32.unpack_from(data, at)[0], at + 4
    if count > len(data) // 4:
        raise ProtocolError("more queries than fit their option", got=count)
    queries = []
    for _ in range(count):
        query, at = wire.unpack_name(data, at)
        queries.append(query)
    if at != len(data):
        raise ProtocolError("something follows the last query")
    return name, queries
