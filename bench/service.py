"""`python -m bench.service KIND STATE RING`: run one process of the product as its command line would, or the discarding publisher.

Started by `bench.processes`; config comes from the environment, listening sockets as `--listen-fd`. It ends with the process that
started it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

from stream.config import load
from stream.errors import HostoffloadError
from stream.log import configure

KINDS = ("capture", "publisher", "discard", "cx", "target")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """Run until SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("state", type=Path)
    parser.add_argument("ring", type=Path)
    parser.add_argument("--listen-fd", type=int, action="append", default=[])
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        return 1
    config = load(None)
    configure(config.log, options.kind)
    try:
        return _run(options, config)
    except HostoffloadError as error:
        print(f"{options.kind}: {error} {error.hint}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace, config) -> int:
    if options.kind == "capture":
        from agent.capture import run

        return run(config, options.state, options.ring, options.listen_fd)
    if options.kind == "publisher":
        from agent.publisher import run

        return run(config, options.state, options.ring)
    if options.kind == "cx":
        from cx_consumers.app import run

        return run(config, options.state, "bench")
    if options.kind == "target":
        from cx_consumers.target import run

        return run(config, options.state)
    from bench.discard import DiscardingPublisher

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    DiscardingPublisher(options.ring).serve(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
