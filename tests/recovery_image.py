"""An image over bytes in memory, in the place of one that history puts together; it can be damaged, and counts what is read."""

from __future__ import annotations

from itertools import groupby

from stream.errors import HostoffloadError


class BytesImage:
    """`damaged` is raised by every read while it is set."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size_bytes = len(content)
        self.damaged: HostoffloadError | None = None
        self.read_bytes = 0

    def read(self, offset_bytes: int, into: memoryview) -> None:
        if self.damaged is not None:
            raise self.damaged
        assert offset_bytes + len(into) <= self.size_bytes
        into[:] = self.content[offset_bytes : offset_bytes + len(into)]
        self.read_bytes += len(into)

    def extents(self, offset_bytes: int, length_bytes: int, limit: int = 4096) -> list[tuple[int, bool]]:
        runs = groupby(self.content[offset_bytes : offset_bytes + length_bytes], key=lambda byte: byte == 0)
        return [(len(list(run)), zero) for zero, run in runs][:limit]
