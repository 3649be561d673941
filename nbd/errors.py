"""What can go wrong between two NBD peers, and the few errno values that the protocol knows.

    ProtocolError      the peer broke the protocol: that connection is closed, nobody else is harmed
    └── RefusedError   the peer speaks well and said no (unknown export, too many connections, TLS wanted)

A device's OSError is no error of the protocol: it goes to the client as its errno (`wire_errno`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from nbd.notices import log

WIRE_ERRNOS = frozenset(
    (
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.ENOTSUP,
        errno.ESHUTDOWN,
    )
)

_NEAREST = {
    errno.EROFS: errno.EPERM,
    errno.EACCES: errno.EPERM,
    errno.EFBIG: errno.ENOSPC,
    errno.EDQUOT: errno.ENOSPC,
    errno.ENOSYS: errno.ENOTSUP,
}


class ProtocolError(Exception):
    """The peer broke the protocol: close this connection.

    Carries one sentence, and the facts behind it as keyword arguments.
    """

    def __init__(self, sentence: str, **facts: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.facts = facts

    def __str__(self) -> str:
        told = " ".join(f"{key}={value}" for key, value in self.facts.items() if value is not None)
        return f"{self.sentence} [{told}]" if told else self.sentence


class RefusedError(ProtocolError):
    """The peer kept the protocol and refused what was asked of it."""


def wire_errno(error: OSError) -> int:
    """Return the errno that the protocol has for a device's error: its own, its nearest relative, or EIO."""
    if error.errno in WIRE_ERRNOS:
        return error.errno
    return _NEAREST.get(error.errno, errno.EIO)


def attempt(operation: Callable[[], None]) -> int:
    """Run a device's operation on a thread that must survive it; return 0, or the errno for the client.

    Whatever is no OSError is a bug of the device: it is logged with its traceback, and EIO.
    """
    try:
        operation()
    except OSError as error:
        return wire_errno(error)
    except Exception:
        log.exception("device_crashed")
        return errno.EIO
    return 0
