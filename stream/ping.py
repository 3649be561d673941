"""Ask a broker whether it answers, without a Kafka client and within a time: for who must not wait for one that is away.

Nothing here changes anything on the broker. A listening socket is not enough: a frozen broker's kernel still accepts. Over TLS nothing is
proved either way: who must know whether the broker is the right one, and takes this client, asks `stream.access`.
"""

from __future__ import annotations

import socket
import struct
import threading
import time

PING_TIMEOUT_S = 0.1
API_VERSIONS = 18
CORRELATION_ID = 0x686F
REQUEST = struct.pack(">ihhih", 10, API_VERSIONS, 0, CORRELATION_ID, -1)


def ping(bootstrap: str, timeout_s: float = PING_TIMEOUT_S, *, tls: bool = False) -> bool:
    """Tell whether one of the `bootstrap` servers answers Kafka's first request (ApiVersions, version 0) within `timeout_s`.

    With `tls`: whether one answers a TLS handshake. Names are looked up in a thread of their own, because a resolver has time-outs of
    seconds.
    """
    answered = threading.Event()

    def ask(server: str) -> None:
        if (_shakes_hands if tls else _answers)(server, timeout_s):
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


def address(server: str) -> tuple[str, int]:
    """Return host and port of one bootstrap server. Raises ValueError."""
    host, _, port = server.strip().rpartition(":")
    return host.strip("[]"), int(port)


def _answers(server: str, timeout_s: float) -> bool:
    try:
        with socket.create_connection(address(server), timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(REQUEST)
            answer = connection.recv(8, socket.MSG_WAITALL)
    except (OSError, ValueError, OverflowError):
        return False
    return len(answer) == 8 and struct.unpack(">ii", answer)[1] == CORRELATION_ID


def _shakes_hands(server: str, timeout_s: float) -> bool:
    import ssl  # 10 ms, which plain connections are spared

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(address(server), timeout_s) as connection:
            connection.settimeout(timeout_s)
            context.wrap_socket(connection, server_hostname=address(server)[0]).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True
