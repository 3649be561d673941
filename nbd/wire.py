"""The NBD wire format: every constant and message of the fixed newstyle protocol, as pure functions.

Called by the handshake, the server's hot loop and the client. Source of all numbers: the NBD project's doc/proto.md.
All integers are big-endian. `refusal` is the only place where a request is judged.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import NamedTuple

from nbd.errors import ProtocolError

# Limits
REQUEST_BYTES_MAX = 32 << 20
REQUEST_BYTES_PREFERRED = 4096
REQUEST_BYTES_MIN = 1
OPTION_BYTES_MAX = 64 << 10
NAME_BYTES_MAX = 4096
EXTENTS_MAX = 4096
SIZE_BYTES_MAX = (1 << 63) - 1

# Handshake
NBD_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9

FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR = 1 << 31
REP_ERR_UNSUP = REP_ERROR | 1
REP_ERR_POLICY = REP_ERROR | 2
REP_ERR_INVALID = REP_ERROR | 3
REP_ERR_TLS_REQD = REP_ERROR | 5
REP_ERR_UNKNOWN = REP_ERROR | 6
REP_ERR_SHUTDOWN = REP_ERROR | 7
REP_ERR_TOO_BIG = REP_ERROR | 9

INFO_EXPORT = 0
INFO_NAME = 1
INFO_BLOCK_SIZE = 3

TRANSMIT_HAS_FLAGS = 1 << 0
TRANSMIT_READ_ONLY = 1 << 1
TRANSMIT_FLUSH = 1 << 2
TRANSMIT_FUA = 1 << 3
TRANSMIT_TRIM = 1 << 5
TRANSMIT_WRITE_ZEROES = 1 << 6
TRANSMIT_DF = 1 << 7
TRANSMIT_MULTI_CONN = 1 << 8
TRANSMIT_CACHE = 1 << 10
TRANSMIT_FAST_ZERO = 1 << 11

META_BASE_ALLOCATION = "base:allocation"
META_ID_BASE_ALLOCATION = 1

# Transmission
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

CMD_FLAG_FUA = 1 << 0
CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2
CMD_FLAG_REQ_ONE = 1 << 3
CMD_FLAG_FAST_ZERO = 1 << 4

CHUNK_FLAG_DONE = 1
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_ERROR = (1 << 15) | 1
CHUNK_ERROR_OFFSET = (1 << 15) | 2

STATE_HOLE = 1
STATE_ZERO = 2

GREETING = struct.Struct(">QQH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
EXPORT_INFO = struct.Struct(">QH")
REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")
CHUNK = struct.Struct(">IHHQI")
CHUNK_DATA = struct.Struct(">IHHQIQ")
"""Header of an OFFSET_DATA chunk with the offset that begins its payload."""

U16 = struct.Struct(">H")
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
BLOCK_SIZES = struct.Struct(">HIII")
_EXTENT = struct.Struct(">II")
_CHUNK_ERROR = struct.Struct(">IH")

OLDSTYLE_ZEROES = bytes(124)


class Request(NamedTuple):
    """One request header, as it stands in the stream."""

    magic: int
    flags: int
    command: int
    cookie: int
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What both sides agreed on for one connection."""

    export: str
    read_only: bool = False
    structured: bool = False
    block_status: bool = False

    def __post_init__(self) -> None:
        if self.block_status and not self.structured:
            raise ValueError("block status needs structured replies")


_FLAGS_ALLOWED = {
    # FUA is accepted everywhere: proto.md tells that clients set it on commands that write nothing.
    CMD_READ: CMD_FLAG_FUA | CMD_FLAG_DF,
    CMD_WRITE: CMD_FLAG_FUA,
    CMD_FLUSH: CMD_FLAG_FUA,
    CMD_TRIM: CMD_FLAG_FUA,
    CMD_CACHE: CMD_FLAG_FUA,
    CMD_WRITE_ZEROES: CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
    CMD_BLOCK_STATUS: CMD_FLAG_FUA | CMD_FLAG_REQ_ONE,
}
_CHANGES = frozenset((CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES))
_BEYOND_END = {CMD_WRITE: errno.ENOSPC, CMD_WRITE_ZEROES: errno.ENOSPC}


def refusal(terms: Terms, size_bytes: int, command: int, flags: int, offset_bytes: int, length_bytes: int) -> int:
    """Judge a request against what was negotiated and the device's size; return 0, or the errno to refuse it with.

    Alignment is to 1 byte, so no offset is refused for it. CMD_DISC is no request in this sense. Precedence: unknown command or
    flag, read-only, length, range.
    """
    allowed = _FLAGS_ALLOWED.get(command)
    if allowed is None or flags & ~allowed:
        return errno.EINVAL
    if command == CMD_FLUSH:
        return errno.EINVAL if offset_bytes or length_bytes else 0
    if terms.read_only and command in _CHANGES:
        return errno.EPERM
    if not length_bytes or (length_bytes > REQUEST_BYTES_MAX and command <= CMD_WRITE):
        return errno.EINVAL
    if offset_bytes + length_bytes > size_bytes:
        return _BEYOND_END.get(command, errno.EINVAL)
    if (flags & CMD_FLAG_DF and not terms.structured) or (command == CMD_BLOCK_STATUS and not terms.block_status):
        return errno.EINVAL
    return 0


def transmission_flags(*, read_only: bool) -> int:
    """Return the flags of an export: what a client may send to it."""
    flags = TRANSMIT_HAS_FLAGS | TRANSMIT_FLUSH | TRANSMIT_FUA | TRANSMIT_DF | TRANSMIT_MULTI_CONN | TRANSMIT_CACHE
    if read_only:
        return flags | TRANSMIT_READ_ONLY
    return flags | TRANSMIT_TRIM | TRANSMIT_WRITE_ZEROES | TRANSMIT_FAST_ZERO


def pack_request(command: int, cookie: int, offset_bytes: int = 0, length_bytes: int = 0, flags: int = 0) -> bytes:
    """Serialize a request header."""
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset_bytes, length_bytes)


def unpack_request(header: bytes | memoryview, at: int = 0) -> Request:
    """Parse the request header at `at`. Raises ProtocolError if its magic is wrong."""
    request = Request._make(REQUEST.unpack_from(header, at))
    if request.magic != REQUEST_MAGIC:
        raise ProtocolError("a request does not begin with its magic number", got=hex(request.magic))
    return request


def pack_simple_reply(cookie: int, error: int = 0) -> bytes:
    """Serialize a simple reply; data of a read follows it."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def pack_error_chunk(cookie: int, error: int) -> bytes:
    """Serialize the last chunk of a structured reply that failed."""
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_FLAG_DONE, CHUNK_ERROR, cookie, 6) + _CHUNK_ERROR.pack(error, 0)


def unpack_error_chunk(payload: bytes | memoryview) -> int:
    """Return the errno of an ERROR or ERROR_OFFSET chunk's payload."""
    if len(payload) < _CHUNK_ERROR.size:
        raise ProtocolError("an error chunk is too short", got=len(payload))
    return _CHUNK_ERROR.unpack_from(payload)[0]


def pack_block_status(cookie: int, extents: list[tuple[int, int]]) -> bytes:
    """Serialize a whole block status reply for base:allocation: pairs of length and STATE_* flags."""
    body = b"".join(_EXTENT.pack(length_bytes, state) for length_bytes, state in extents)
    head = CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_FLAG_DONE, CHUNK_BLOCK_STATUS, cookie, 4 + len(body))
    return head + U32.pack(META_ID_BASE_ALLOCATION) + body


def unpack_block_status(payload: bytes | memoryview) -> tuple[int, list[tuple[int, int]]]:
    """Return context id and extents of a block status chunk's payload."""
    if len(payload) < 12 or (len(payload) - 4) % _EXTENT.size:
        raise ProtocolError("a block status chunk has an impossible length", got=len(payload))
    return U32.unpack_from(payload)[0], list(_EXTENT.iter_unpack(payload[4:]))


def pack_option(option: int, data: bytes = b"") -> bytes:
    """Serialize a client's option."""
    return OPTION.pack(OPTION_MAGIC, option, len(data)) + data


def pack_option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """Serialize one reply to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def pack_block_sizes(minimum: int, preferred: int, maximum: int) -> bytes:
    """Serialize the information about request sizes, as REP_INFO carries it."""
    return BLOCK_SIZES.pack(INFO_BLOCK_SIZE, minimum, preferred, maximum)


def pack_name(name: str) -> bytes:
    """Serialize a name as the options carry it: length, then UTF-8."""
    raw = name.encode()
    return U32.pack(len(raw)) + raw


def unpack_name(data: bytes, at: int) -> tuple[str, int]:
    """Return the name at `at` and the place behind it. Raises ProtocolError if it is cut short, too long or not UTF-8."""
    end = at + 4
    if end > len(data):
        raise ProtocolError("a name is cut short", got=len(data))
    length_bytes = U32.unpack_from(data, at)[0]
    if length_bytes > NAME_BYTES_MAX or end + length_bytes > len(data):
        raise ProtocolError("a name is too long", length_bytes=length_bytes)
    try:
        return data[end : end + length_bytes].decode(), end + length_bytes
    except UnicodeDecodeError as error:
        raise ProtocolError("a name is not UTF-8") from error
