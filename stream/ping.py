"""Ask a broker whether it answers, without a Kafka client and within a time: for who must not wait for one that is away.

Nothing here changes anything on the broker. A listening socket is not enough: a frozen broker's kernel still accepts.
"""

from __future__ import annotations

import socket
import struct
import threading
import time

PING_TIMEOUT_S = 0.1
API_VERSIONS = 18
CORRELATION_ID = 0x686F


def ping(bootstrap: str, timeout_s: float = PING_TIMEOUT_S) -> bool:
    """Tell whether one of the `bootstrap` servers answers Kafka's first request (ApiVersions, version 0) within `timeout_s`.

    Names are looked up in a thread of their own, because a resolver has time-outs of seconds.
    """
    answered = threading.Event()

    def ask(server: str) -> None:
        if _answers(server, timeout_s):
            answered.set()

    threads = [threading.Thread(target=ask, args=(server.strip(),), daemon=True) for server in bootstrap.split(",")]
    for thread in threads:
        thread.start()
    until = time.monotonic() + timeout_s
    while not answered.is_set() and any(thread.is_alive() for thread in threads):
        left_s = until - time.monotonic()
        if left_s <= 0:
            break
        answered.wait(min(left_s, 0.005))
    return answered.is_set()


def _answers(server: str, timeout_s: float) -> bool:
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(struct.pack(">ihhih", 10, API_VERSIONS, 0, CORRELATION_ID, -1))
            answer = connection.recv(8, socket.MSG_WAITALL)
    except (OSError, ValueError, OverflowError):
        return False
    return len(answer) == 8 and struct.unpack(">ii", answer)[1] == CORRELATION_ID
