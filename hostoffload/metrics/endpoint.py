"""The HTTP server of one service: `/metrics`, `/healthz`, `/readyz`, and nothing else.

It answers from threads of its own, at most `REQUESTS_MAX` at once and `REQUEST_S_MAX` each; whoever comes beyond that is hung up on. Plain
HTTP without a password: the address should be one that only Prometheus and whoever starts the services can reach.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from hostoffload.metrics.collector import registry_of
from hostoffload.metrics.health import healthz, readyz
from hostoffload.metrics.scope import Scope
from stream.log import Repeats, event

REQUESTS_MAX = 8
REQUEST_S_MAX = 10.0
RETRY_S = 2.0
_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_log = logging.getLogger(__name__)

StartResponse = Callable[..., Any]
App = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Endpoint:
    """Serve one scope at one address, in the background."""

    def __init__(self, address: tuple[str, int], scope: Scope) -> None:
        self._address = address
        self._app = app_of(scope)
        self._server: WSGIServer | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin; an address that is taken is tried again until it is free."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and let go of the address."""
        self._stopped.set()
        if (server := self._server) is not None:
            server.shutdown()
        self._thread.join()

    def _run(self) -> None:
        repeats = Repeats()
        while not self._stopped.is_set():
            try:
                server = _Server(self._address, self._app)
            except OSError as error:
                told = {"address": "{}:{}".format(*self._address), "error": error.strerror}
                hint = "Services that share a config need addresses of their own: HOSTOFFLOAD_METRICS_<SERVICE>."
                repeats.event(_log, logging.ERROR, "metrics_not_served", **told, hint=hint)
                self._stopped.wait(RETRY_S)
                continue
            self._server = server
            event(_log, logging.INFO, "metrics_served", address="{}:{}".format(*self._address))
            with server:
                server.serve_forever()


def app_of(scope: Scope) -> App:
    """Return the WSGI application."""
    metrics = make_wsgi_app(registry_of(scope))

    def answer(environment: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        if environment.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            start("405 Method Not Allowed", [_TEXT, ("Allow", "GET, HEAD")])
            return [b"only GET\n"]
        if path == "/metrics":
            return metrics(environment, start)
        if path in _CHECKS:
            lacking = _CHECKS[path](scope)
            start("503 Service Unavailable" if lacking else "200 OK", [_TEXT])
            return ["".join(f"{line}\n" for line in lacking or ["ok"]).encode()]
        start("404 Not Found", [_TEXT])
        return [b"there are /metrics, /healthz and /readyz\n"]

    return answer


_CHECKS: dict[str, Callable[[Scope], list[str]]] = {"/healthz": healthz, "/readyz": readyz}


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_S_MAX

    def log_message(self, *_: object) -> None:
        """A scrape is no event."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], app: App) -> None:
        self._room = threading.BoundedSemaphore(REQUESTS_MAX)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which may take seconds.

        An address whose last connections are a minute from forgotten, as after a restart, is free; one that somebody listens at is not.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or is too slow, is no error of ours."""
        event(_log, logging.DEBUG, "metrics_request_failed", client=client_address[0])
