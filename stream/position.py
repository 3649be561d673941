"""Positions: where a record stands in the history of one volume.

A position is `(epoch, sequence)`. The sequence grows by one for every record and mark of a volume and goes on across epochs; a newer
epoch fences the older. Positions are totally ordered, and their printed form has a fixed width, so that names made of them
sort as the positions do.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream.errors import ConfigError

EPOCH_MAX = 10**8 - 1
SEQUENCE_MAX = 10**16 - 1
_TEXT_WIDTH = 8 + 1 + 16


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Name one record of a volume; `ZERO` stands before the first one."""

    epoch: int
    sequence: int

    def __post_init__(self) -> None:
        if not (0 <= self.epoch <= EPOCH_MAX and 0 <= self.sequence <= SEQUENCE_MAX):
            raise ValueError(f"position out of range: epoch {self.epoch}, sequence {self.sequence}")

    def __str__(self) -> str:
        return f"{self.epoch:08d}-{self.sequence:016d}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read the printed form. Raises ConfigError for anything else."""
        epoch, dash, sequence = text.partition("-")
        if len(text) != _TEXT_WIDTH or not dash or len(epoch) != 8 or not (epoch + sequence).isascii():
            raise _unreadable(text)
        if not (epoch.isdigit() and sequence.isdigit()):
            raise _unreadable(text)
        return cls(int(epoch), int(sequence))

    def next(self) -> Position:
        """Return the position that follows within the same epoch."""
        return Position(self.epoch, self.sequence + 1)


ZERO = Position(0, 0)


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is not a position",
        hint="A position looks like 00000001-0000000000000042: eight digits of epoch, a dash, sixteen of sequence.",
    )
