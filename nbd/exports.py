"""`Exports`: what a server offers, by name. `ExportTable` is the plain table; anything with the same two methods will do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from nbd.device import BlockDevice


class Exports(Protocol):
    """A lookup that the server asks at every handshake, from many threads."""

    def find(self, name: str) -> BlockDevice | None:
        """Return the device of exactly this name, or None. May measure the device again."""

    def names(self) -> list[str]:
        """Return the names shown to a client that asks for a list."""


class ExportTable:
    """Named devices that come and go while the server runs."""

    def __init__(self, devices: Mapping[str, BlockDevice] | None = None) -> None:
        self._lock = threading.Lock()
        self._devices = dict(devices or {})

    def find(self, name: str) -> BlockDevice | None:
        """Return the device of this name, or None."""
        return self._devices.get(name)

    def names(self) -> list[str]:
        """Return all names, sorted."""
        with self._lock:
            return sorted(self._devices)

    def add(self, name: str, device: BlockDevice) -> None:
        """Offer `device` from now on. Raises ValueError if the name is taken."""
        with self._lock:
            if name in self._devices:
                raise ValueError(f"an export named {name!r} exists")
            self._devices[name] = device

    def remove(self, name: str) -> BlockDevice | None:
        """Offer it no longer; its connections stay until `Server.disconnect`. Return the device, None if there was none."""
        with self._lock:
            return self._devices.pop(name, None)


def resolve(exports: Exports, name: str) -> tuple[str, BlockDevice] | None:
    """Return name and device that a client means: "" is the only export if there is exactly one and none is named so."""
    device = exports.find(name)
    if device is None and not name:
        names = exports.names()
        if len(names) == 1:
            name, device = names[0], exports.find(names[0])
    return None if device is None else (name, device)
