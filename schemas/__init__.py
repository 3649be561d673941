"""The published Avro schemas and their directory; the wire specification is `README.md` beside this file."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
