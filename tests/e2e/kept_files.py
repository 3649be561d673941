"""A check for drills, run as `kept_files.py MOUNT LOG`: files that were fsynced before the point (DRILL_TIME) exist there.

LOG has a JSON object a line: `name`, `digest` (SHA-256), `synced_ns` when fsync had returned.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path


def time_ns(text: str) -> int:
    """Return the ns since 1970 of DRILL_TIME."""
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(seconds).replace(tzinfo=UTC).timestamp()) * 10**9 + int(fraction)


def main() -> int:
    mount, log = Path(sys.argv[1]), Path(sys.argv[2])
    at_ns = time_ns(os.environ["DRILL_TIME"])
    wrong, looked_at = [], 0
    for line in log.read_text().splitlines():
        told = json.loads(line)
        if told["synced_ns"] > at_ns:
            continue
        looked_at += 1
        path = mount / told["name"]
        if not path.exists():
            wrong.append(f"{told['name']} is not there")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != told["digest"]:
            wrong.append(f"{told['name']} has other bytes")
    print(f"{looked_at} files fsynced before were looked at", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
