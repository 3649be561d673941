"""The levels of a volume's history: as it was written, and folds of it.

A segment of level 0 holds every record, so every position of it that no split write is open at is a moment one may go back to. A fold holds
the last write of each extent of its range, and only its end is such a moment. A snapshot is a fold of everything up to its end.
"""

from __future__ import annotations

AS_WRITTEN = 0
FIVE_MINUTES = 1
HOUR = 2
DAY = 3
SNAPSHOT = 4
LEVELS = (AS_WRITTEN, FIVE_MINUTES, HOUR, DAY, SNAPSHOT)
