"""An application: writes at random places of a volume at a steady pace, and connects again whenever its server went away."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

from nbd.client import Client
from nbd.errors import ProtocolError, RefusedError

WRITE_BYTES = 32 << 10
WRITES_A_FLUSH = 64
AWAY = (OSError, ProtocolError, RefusedError)
BROKEN = (ConnectionError, TimeoutError, ProtocolError)  # any other errno of a write is a failure
RECONNECT_S_MAX = 90
PAUSE_S = 0.2


class Load:
    """`bytes_per_s` may be changed while it runs; `failure` is what it could not bear; `longest_s` is the longest that one write took."""

    def __init__(self, uri_of: Callable[[], str], bytes_per_s: float, seed: int = 1) -> None:
        self.bytes_per_s = bytes_per_s
        self.written_bytes = 0
        self.connects = 0
        self.longest_s = 0.0
        self.failure: BaseException | None = None
        self._uri_of = uri_of
        self._dice = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it; raise what it could not bear."""
        self._over.set()
        self._thread.join(RECONNECT_S_MAX + 30)
        if self.failure is not None:
            raise self.failure
        assert self.written_bytes > 0, "the load wrote nothing"

    def _run(self) -> None:
        try:
            while (client := self._connected()) is not None:
                with contextlib.suppress(*BROKEN), client:
                    self._write(client)
        except BaseException as error:
            self.failure = error

    def _connected(self) -> Client | None:
        """Return a connection, however often it must be asked for; None when the load is to end."""
        ends_s = time.monotonic() + RECONNECT_S_MAX
        while not self._over.is_set():
            try:
                client = Client(self._uri_of(), timeout_s=RECONNECT_S_MAX)
                self.connects += 1
                return client
            except AWAY:
                if time.monotonic() > ends_s:
                    raise
                self._over.wait(PAUSE_S)
        return None

    def _write(self, client: Client) -> None:
        blocks = client.size_bytes // WRITE_BYTES
        while not self._over.is_set():
            for _ in range(WRITES_A_FLUSH):
                began_s = time.monotonic()
                client.write(self._dice.randrange(blocks) * WRITE_BYTES, self._dice.randbytes(WRITE_BYTES))
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)
                self.written_bytes += WRITE_BYTES
                if self._over.wait(WRITE_BYTES / self.bytes_per_s):
                    return
            client.flush()


@contextlib.contextmanager
def load(uri_of: Callable[[], str], bytes_per_s: float = 2 << 20) -> Iterator[Load]:
    """Write meanwhile."""
    one = Load(uri_of, bytes_per_s)
    one.start()
    try:
        yield one
    finally:
        one.stop()
