"""The bench of a drill: points exported from scratch overlays over a private socket, and a keeper that shows them to checks.

Used by `drill`. One server, one keeper, one point at a time. Leaving the bench takes everything down, in an order in which nothing hangs:
what stands over the export first, then the export.
"""

from __future__ import annotations

from history.image import Image
from nbd.exports import ExportTable
from nbd.listen import listen_unix
from nbd.server import Server
from nbd.uri import format_uri
from recovery.check_run import CheckRun
from recovery.checks import Need
from recovery.image_device import ImageDevice
from recovery.keeper_line import KeeperLine
from recovery.overlay import Base, Overlay, open_unnamed
from stream.errors import HostoffloadError

SOCKET = "nbd.sock"


class DrillBench:
    """A context manager. `failures` are errors of the image that is shown, as its readers met them."""

    def __init__(self) -> None:
        self.failures: list[HostoffloadError] = []
        self._line = KeeperLine()
        try:
            self._path = self._line.folder / SOCKET
            self._listener = listen_unix(self._path)
        except BaseException:
            self._line.close()
            raise
        self._exports = ExportTable()
        self._server = Server(self._exports, [self._listener])
        self._server.start()
        self._name = ""
        self._shown = 0
        self._overlay: Overlay | None = None

    def __enter__(self) -> DrillBench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, image: Image) -> None:
        """Export an image, writable; what was shown before is gone."""
        self.clear()
        self.failures = []
        self._shown += 1
        self._name = f"point-{self._shown}"  # a name of its own: nobody who still knows the one before sees this one
        self._overlay = open_unnamed(image, Base.of(image.volume, image.position, image.size_bytes), self._line.folder)
        self._exports.add(self._name, ImageDevice(image, self._overlay, failed=self.failures.append))
        self._line.show(format_uri(self._name, self._path))

    @property
    def places(self) -> dict[Need, str]:
        return self._line.places

    def place(self, need: Need) -> str:
        """Set up what is needed; raises StageError."""
        return self._line.place(need)

    def unmount(self) -> None:
        """Unmount the filesystem, if it is mounted; raises StageError."""
        self._line.unmount()

    def check(self, line: str, timeout_s: float, environment: dict[str, str]) -> CheckRun:
        """Run a shell line to its end and that of all it started."""
        return self._line.check(line, timeout_s, environment)

    def clear(self) -> list[str]:
        """Take down what is shown; return what went wrong."""
        if self._overlay is None:
            return []
        overlay, self._overlay = self._overlay, None
        problems = self._line.clear()
        self._exports.remove(self._name)
        if not self._server.disconnect(self._name):
            problems.append(f"connections to {self._name} did not end")
        overlay.close()
        return problems

    def close(self) -> None:
        """Take down everything. May be called twice."""
        self._line.close()
        self._server.stop()
        self._listener.close()
        if self._overlay is not None:
            self._overlay.close()
        self._overlay = None
