"""The listening sockets of the NBD server: they belong to the supervisor and outlive the process that serves them.

So clients that reconnect wait in the backlog while capture is restarted, instead of being refused. Under systemd they may come from outside
(`LISTEN_FDS`, sd_listen_fds(3)); then nothing is bound here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from hostoffload.process import FIRST_LISTEN_FD
from nbd.listen import listen_tcp, listen_unix
from stream.errors import ConfigError, RetryError

GREETING = b"NBDMAGICIHAVEOPT"  # the first bytes of every NBD server, then two of flags (NBD protocol, "fixed newstyle negotiation")
FLAGS_BYTES = 2
GOODBYE = struct.pack(">I8sII", 1, b"IHAVEOPT", 2, 0)  # client flags: fixed newstyle; NBD_OPT_ABORT without data

GOODBYE_REPLY_BYTES = 20


class Listeners:
    """Open the sockets once they are needed, keep them open, close and remove them at the end."""

    def __init__(self, unix: Path, tcp: tuple[str, int] | None = None, given: tuple[int, ...] = ()) -> None:
        self._unix = unix
        self._tcp = tcp
        self._given = given
        self._sockets: list[tuple[str, socket.socket]] = []

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """Return the sockets with their names, listening. Idempotent. Raises RetryError when an address is taken."""
        if not self._sockets:
            self._sockets = self._open()
        return self._sockets

    def close(self) -> None:
        """Stop listening, and remove the unix socket if it was made here."""
        for _, one in self._sockets:
            one.close()
        if self._sockets and not self._given:
            self._unix.unlink(missing_ok=True)
        self._sockets = []

    def _open(self) -> list[tuple[str, socket.socket]]:
        if self._given:
            return [(f"nbd-{fd}", _handed_over(fd)) for fd in self._given]
        opened: list[tuple[str, socket.socket]] = []
        try:
            opened.append(("nbd", listen_unix(self._unix)))
            if self._tcp is not None:
                opened.append(("nbd-tcp", listen_tcp(*self._tcp)))
        except OSError as error:
            for _, one in opened:
                one.close()
            address = "{}:{}".format(*self._tcp) if opened and self._tcp else str(self._unix)
            raise RetryError(
                f"The NBD server can't listen at {address}: {error.strerror}", hint="See who listens there: ss -lxtp", address=address
            ) from error
        return opened


def _handed_over(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS names descriptor {fd}, which is no socket", hint="See sd_listen_fds(3).") from error


def parse_listen(text: str, key: str = "agent.listen", example: int = 10809) -> tuple[str, int] | None:
    """Return host and port of an address in the config, None if it is empty. Raises ConfigError that names the key."""
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{key} is {text!r}", hint=f"Use HOST:PORT, for example 127.0.0.1:{example} or [::1]:{example}.")
    return host.strip("[]"), int(port)


def given_fds(environment: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """Return the descriptors that were handed to this very process by LISTEN_FDS and LISTEN_PID; none if there are none."""
    try:
        if int(environment["LISTEN_PID"]) != os.getpid():
            return ()
        return tuple(range(FIRST_LISTEN_FD, FIRST_LISTEN_FD + int(environment["LISTEN_FDS"])))
    except (KeyError, ValueError):
        return ()


def listens(path: Path, timeout_s: float) -> bool:
    """Tell whether anybody has this unix socket open, whether or not he answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, contextlib.suppress(OSError):
        client.settimeout(timeout_s)
        client.connect(str(path))
        return True
    return False


def answers(path: Path, timeout_s: float) -> bool:
    """Tell whether an NBD server greets at this unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, contextlib.suppress(OSError):
        client.settimeout(timeout_s)
        client.connect(str(path))
        greeting = client.recv(len(GREETING) + FLAGS_BYTES, socket.MSG_WAITALL)
        client.sendall(GOODBYE)
        client.recv(GOODBYE_REPLY_BYTES, socket.MSG_WAITALL)
        return greeting.startswith(GREETING)
    return False
