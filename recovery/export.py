"""An export: one point of a volume, served over NBD at a unix socket.

Made by the command line, in a process of its own. Replication is not touched: segments and the journal are read, nothing is written but
the overlay. What can't be read is EIO for the client that asked, and is told to `say` once, with the nearest points that are good.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from nbd.exports import ExportTable
from nbd.listen import listen_unix
from nbd.server import Server
from nbd.uri import format_uri
from recovery.image_device import ImageDevice
from recovery.opening import OpenedPoint
from recovery.overlay import Base, Overlay, open_named, open_unnamed
from stream.errors import HostoffloadError, IntegrityError, RetryError


class Export:
    """Serve `point` from `start` until `close`, which closes the point too."""

    def __init__(self, point: OpenedPoint, socket: Path, overlay: Overlay | None, say: Callable[[HostoffloadError], None]) -> None:
        self._point = point
        self._socket = socket
        self._overlay = overlay
        self._say = say
        self._told: set[str] = set()
        self._stack = ExitStack()
        self._stack.callback(point.close)
        if overlay is not None:
            self._stack.callback(overlay.close)
            self._stack.callback(self._settle)

    @property
    def uri(self) -> str:
        return format_uri(self._point.volume, self._socket)

    def __enter__(self) -> Export:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Listen and serve; clients may connect when it returns. Raises RetryError when the socket can't be had."""
        device = ImageDevice(self._point.image, self._overlay, failed=self._failed)
        try:
            listener = listen_unix(self._socket)
        except OSError as error:
            raise RetryError(f"The export can't listen at {self._socket}: {error.strerror}", path=self._socket) from error
        self._stack.callback(self._socket.unlink, missing_ok=True)
        self._stack.callback(listener.close)
        server = Server(ExportTable({self._point.volume: device}), [listener])
        server.start()
        self._stack.callback(server.stop)

    def close(self) -> None:
        """End all connections, and let go of socket, overlay and point, in this order. What a client has flushed is durable."""
        self._stack.close()

    def _settle(self) -> None:
        """Make the overlay durable at a clean end; a client that cared has flushed already."""
        with suppress(OSError):
            if self._overlay is not None:
                self._overlay.flush()

    def _failed(self, error: HostoffloadError) -> None:
        """Tell of what could not be read, each place once."""
        if error.sentence + str(error.facts.get("path")) in self._told:
            return
        self._told.add(error.sentence + str(error.facts.get("path")))
        self._say(self._point.explain(error) if isinstance(error, IntegrityError) else error)


def overlay_for(point: OpenedPoint, folder: Path | None, scratch: Path | None) -> Overlay:
    """Return the overlay in `folder`, or one without a name, over a point. Raises what `recovery.overlay` raises."""
    image = point.image
    base = Base.of(point.volume, point.position, image.size_bytes)
    return open_unnamed(image, base, scratch) if folder is None else open_named(image, base, folder)
