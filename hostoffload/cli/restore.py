"""`restore NAME --at POINT --to PATH`: a volume as it was, written to a file or a block device, and proved."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hostoffload import layout
from hostoffload.cli.progress import Progress
from hostoffload.context import Context

if TYPE_CHECKING:
    from recovery.restore import Restored

DOING = {"write": "written", "zero": "zeroed", "verify": "read back"}
SHARES = {"write": (0.0, 70.0), "zero": (0.0, 70.0), "verify": (70.0, 30.0)}  # where each step begins and how much of all it is, in percent
RATE_S_MIN = 0.5


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    restore = commands.add_parser(
        "restore",
        help="write a volume as it was at a point to a file or device",
        description="Write a volume as it was at a point to a file or block device. Every byte is read back and compared. A file gets its "
        "name when all of it is proved, so an existing one is replaced as a whole or not at all. Killed in the middle, the same command "
        "goes on where it was.",
    )
    restore.add_argument("name", metavar="NAME", help="the volume")
    restore.add_argument("--at", metavar="POINT", required=True, help="latest, a bookmark, a position, a time, or -30s (before now)")
    restore.add_argument("--to", metavar="PATH", type=Path, required=True, help="file that is made, or block device")
    restore.add_argument("--force", action="store_true", help="replace an existing file; overwrite a device")
    restore.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.history_access import history_of
    from recovery.point import parse_point
    from recovery.restore import Restore
    from recovery.restore_target import RestoreTarget
    from stream.errors import IntegrityError

    wanted = parse_point(options.at)
    with history_of(context, options.name) as opener, opener.open(wanted, "restore") as opened:
        if opened.note:
            context.say(f"{options.name}: {opened.note}")
        target = RestoreTarget(options.to, opened.image.size_bytes, force=options.force, journal_dir=layout.run_dir(context.state_dir))
        try:
            with Progress(context, options.name) as progress:
                done = Restore(opened.image, target, watch=Watch(progress)).run()
        except IntegrityError as error:
            raise opened.explain(error) from error
        except KeyboardInterrupt:
            context.say(f"{options.name}: interrupted; the same command goes on where it was")
            raise
        finally:
            target.close()
    context.answer(_facts(options.name, opened.capture_time_ns, done), str(done.path))
    return 0


def _facts(name: str, capture_time_ns: int, done: Restored) -> dict[str, object]:
    from recovery.point import format_time

    seconds = done.write_s + done.verify_s
    return {
        "volume": name,
        "position": str(done.position),
        "time": format_time(capture_time_ns),
        "path": str(done.path),
        "size_bytes": done.size_bytes,
        "data_bytes": done.data_bytes,
        "written_bytes": done.written_bytes,
        "kept_bytes": done.kept_bytes,
        "verified_bytes": done.verified_bytes,
        "past_page_cache": done.direct,
        "seconds": round(seconds, 3),
        "bytes_per_s": round(done.size_bytes / max(seconds, 1e-9)),
    }


class Watch:
    """Turns what a restore tells into progress: how much, how fast, how long still."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._what = ""
        self._began_s = 0.0
        self._began_bytes = 0

    def __call__(self, what: str, done_bytes: int, of_bytes: int) -> None:
        now_s = time.monotonic()
        if what != self._what:
            self._what, self._began_s, self._began_bytes = what, now_s, done_bytes
        told = f"{done_bytes >> 20} of {of_bytes >> 20} MiB {DOING[what]}"
        taken_s = now_s - self._began_s
        rate = (done_bytes - self._began_bytes) / taken_s if taken_s > RATE_S_MIN else 0.0
        if rate > 0:
            told += f", {rate / 1e6:.0f} MB/s, {(of_bytes - done_bytes) / rate:.0f} s to go"
        begin, share = SHARES[what]
        self._progress.show(told, begin + share * done_bytes / max(of_bytes, 1))
