"""NBD URIs: nbd://host:port/export, nbds:// for the same over TLS, and nbd+unix:///export?socket=/path.

Source of the format: the NBD project's doc/uri.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

PORT = 10809

Address = str | os.PathLike[str] | tuple[str, int]
"""A unix socket's path, or host and port."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URI leads: an export at a unix socket or at host and port."""

    export: str
    address: str | tuple[str, int]


def format_uri(export: str, address: Address, *, tls: bool = False) -> str:
    """Return the URI of `export` at a unix socket's path or (host, port), there over TLS if `tls`."""
    name = quote(export, safe="")
    if isinstance(address, tuple):
        host, port = address
        host = f"[{host}]" if ":" in host else host
        return f"{'nbds' if tls else 'nbd'}://{host}:{port}/{name}"
    return f"nbd+unix:///{name}?socket={quote(os.path.abspath(os.fspath(address)), safe='/')}"


def parse_uri(uri: str) -> Target:
    """Parse a URI. Raises ValueError with a sentence for everything that is none, and for TLS, which the client here does not speak."""
    parts = urlsplit(uri)
    export = unquote(parts.path[1:] if parts.path.startswith("/") else parts.path)
    if parts.scheme == "nbd":
        if not parts.hostname:
            raise ValueError(f"no host in {uri!r}")
        return Target(export, (parts.hostname, parts.port or PORT))
    if parts.scheme == "nbd+unix":
        paths = parse_qs(parts.query.replace("+", "%2B")).get("socket", [])
        if len(paths) != 1 or parts.netloc:
            raise ValueError(f"exactly one socket=PATH is needed in {uri!r}")
        return Target(export, paths[0])
    if parts.scheme in ("nbds", "nbds+unix"):
        raise ValueError(f"this client speaks no TLS: {uri!r}")
    raise ValueError(f"not an NBD URI: {uri!r}")
