"""Listening sockets for a server: unix sockets that only the owner may use, and TCP."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

BACKLOG = 128


def listen_unix(path: str | os.PathLike[str]) -> socket.socket:
    """Listen at `path`, mode 0600. A socket that nobody listens at is replaced; raises OSError (EADDRINUSE) for a live one."""
    path = os.fspath(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        _remove_dead(path)
        sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def listen_tcp(host: str, port: int) -> socket.socket:
    """Listen at `host`:`port`; port 0 takes a free one (`getsockname` tells which)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _remove_dead(path: str) -> None:
    """Remove a socket that its owner left behind."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # bind says what is wrong.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
