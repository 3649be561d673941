"""`python -m nbd FILE --socket PATH`: serve one file or block device over NBD until interrupted.

A tiny server for benchmarks, tests and a look at an image; protection is the agent's.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading

from nbd.exports import ExportTable
from nbd.filedevice import FileDevice
from nbd.listen import listen_tcp, listen_unix
from nbd.server import Server
from nbd.uri import format_uri


class _MeasuredTable(ExportTable):
    """A table whose files are measured again for each new client, because they may have been resized."""

    def find(self, name: str) -> FileDevice | None:
        device = super().find(name)
        if device is not None:
            device.refresh()
        return device


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; print a URI for each socket. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nbd", description="Serve a file or block device over NBD.")
    parser.add_argument("file", help="regular file or block device")
    parser.add_argument("--socket", metavar="PATH", help="listen at this unix socket")
    parser.add_argument("--port", type=int, metavar="N", help="listen at this TCP port of --host (0: a free one)")
    parser.add_argument("--host", default="127.0.0.1", help="address for --port (default %(default)s)")
    parser.add_argument("--export", default="", metavar="NAME", help="name of the export (default: the nameless one)")
    parser.add_argument("--read-only", action="store_true", help="refuse every change")
    parser.add_argument("--verbose", action="store_true", help="log each connection")
    options = parser.parse_args(arguments)
    if options.socket is None and options.port is None:
        parser.error("say where to listen: --socket PATH or --port N")
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        device = FileDevice(options.file, read_only=options.read_only)
        sockets, uris = _listen(options)
    except OSError as error:
        print(f"can't serve {options.file}: {error}", file=sys.stderr)
        return 3
    server = Server(_MeasuredTable({options.export: device}), sockets)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    server.start()
    print("\n".join(uris), flush=True)
    done.wait()
    return 0 if server.stop() else 1


def _listen(options: argparse.Namespace) -> tuple[list, list[str]]:
    """Return listening sockets and the URIs that lead to them."""
    sockets, uris = [], []
    if options.socket is not None:
        sockets.append(listen_unix(options.socket))
        uris.append(format_uri(options.export, options.socket))
    if options.port is not None:
        sockets.append(listen_tcp(options.host, options.port))
        uris.append(format_uri(options.export, sockets[-1].getsockname()[:2]))
    return sockets, uris


if __name__ == "__main__":
    sys.exit(main())
