"""What a device of recovery is made of: bytes that never change. `history.image.Image` is one; tests have others."""

from __future__ import annotations

from typing import Protocol


class BaseImage(Protocol):
    """Any thread may call it. Raises what reading raises: IntegrityError, RetryError, OSError."""

    size_bytes: int

    def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill all of `into`, which lies inside."""
        ...

    def extents(self, offset_bytes: int, length_bytes: int, limit: int = 4096) -> list[tuple[int, bool]]:
        """Return `(length_bytes, is_zero)` from the start on; may end early, after at least one."""
        ...
