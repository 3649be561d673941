"""Cuts between a process and the broker, made on the sockets themselves: nothing stands in between, so what runs is what a user runs.

A process's socket is borrowed by pidfd_getfd(2) and shut down (`reset`), or given a filter that lets no packet in (`Drop`: socket(7),
SO_ATTACH_FILTER), so that the kernel behaves as if the cable had been pulled: no data, no acknowledgement, no answer to a new connection.
Needs the right to trace the process (its owner's or root's).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

PIDFD_GETFD = 438  # on every architecture
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
_NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET: accept 0 bytes of the packet
_FILTER = struct.pack("HL", 1, ctypes.addressof(_NOTHING))
_libc = ctypes.CDLL(None, use_errno=True)


def reset(pid: int, port: int) -> int:
    """Break off all connections between the process and the broker's port; return how many. Those of the broker itself: all clients'."""
    count = 0
    for one in _sockets(pid, port):
        with one, contextlib.suppress(OSError):  # one that has ended
            if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # who listens would never listen again
                one.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


class Drop:
    """Drop whatever is sent to the process through its sockets to the broker's port, until `heal`."""

    def __init__(self, pid: int, port: int) -> None:
        self._cut: list[socket.socket] = []
        for one in _sockets(pid, port):
            one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _FILTER)
            self._cut.append(one)

    def __len__(self) -> int:
        return len(self._cut)

    def heal(self) -> None:
        """Let packets in again. A process that died meanwhile left nothing to heal."""
        for one in self._cut:
            with one, contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        self._cut = []


def _sockets(pid: int, port: int) -> Iterator[socket.socket]:
    """Yield duplicates of the process's TCP sockets that have that port at one end. Raises PermissionError."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for entry in _socket_fds(pid):
            fd = _libc.syscall(PIDFD_GETFD, handle, entry, 0)
            if fd < 0:
                if ctypes.get_errno() in (1, 38):  # EPERM, ENOSYS
                    raise PermissionError(ctypes.get_errno(), f"the sockets of process {pid} can't be borrowed: run as root")
                continue
            try:
                one = socket.socket(fileno=fd)
            except OSError:  # it was closed since we looked, and its number is another file's now
                os.close(fd)
                continue
            if port in _ports(one):
                yield one
            else:
                one.close()
    finally:
        os.close(handle)


def _socket_fds(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(Path("/proc", str(pid), "fd", entry)).startswith("socket:"):
                    found.append(int(entry))
    return found


def _ports(one: socket.socket) -> set[int]:
    """Return the ports at both ends; none of what is no TCP."""
    if one.family not in (socket.AF_INET, socket.AF_INET6):
        return set()
    ports = set()
    for name in (one.getsockname, one.getpeername):
        with contextlib.suppress(OSError):
            ports.add(name()[1])
    return ports
