"""`replay NAME --from POINT --to POINT --into PATH`: a range of a topic applied again, to test recovery by Kafka alone."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hostoffload.cli.progress import Progress
from hostoffload.context import Context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbd.blockfile import BlockFile
    from recovery.topic_range import TopicRange
    from stream.config import Config
    from stream.consumer import StoredMessage
    from stream.extent import Extent

BEGINNING = "beginning"
FULL_SPEED = "max"
EXTENTS_SHOWN_MAX = 64


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    replay = commands.add_parser(
        "replay",
        help="apply a range of a volume's topic to a scratch volume",
        description="Apply a range of a volume's topic, not of the store, to a scratch volume, and compare it with the store's image at "
        "the same point if the store has it. Exit 1 when they differ.",
    )
    replay.add_argument("name", metavar="NAME", help="the volume")
    replay.add_argument("--from", metavar="POINT", dest="start", default=BEGINNING, help="begin behind this (default: beginning)")
    replay.add_argument("--to", metavar="POINT", dest="end", default="latest", help="end with this (default: latest)")
    replay.add_argument("--into", metavar="PATH", type=Path, required=True, help="scratch file or device; an image of --from if it exists")
    replay.add_argument("--topic", choices=("writes", "journal"), default="writes", help="which topic (default: writes)")
    replay.add_argument("--speed", metavar="N", type=_speed, default=None, help="1x: as it was captured, 10x; default: as fast as it goes")
    replay.set_defaults(run=_run)


def _speed(text: str) -> float | None:
    if text == FULL_SPEED:
        return None
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no speed, such as 1x or 0.5x")
    return speed


def _run(context: Context, options: argparse.Namespace) -> int:
    from recovery.point import AtPosition, format_time, parse_point
    from recovery.replay import Replay
    from stream.position import ZERO

    start = None if options.start == BEGINNING else parse_point(options.start)
    if start == AtPosition(ZERO):
        start = None
    end = parse_point(options.end)
    config = context.config_with_broker()
    with Progress(context, options.name) as progress, _Topic(config, options.name, options.topic, progress) as topic:
        replay = Replay(options.name, options.topic, topic.messages)
        found = replay.find(start, end, time.time_ns())
        file, made = _prepare(context, options, found)
        topic.doing = "applied"
        try:
            done = replay.apply(found, file, speed=options.speed)
        except BaseException:
            if made:
                options.into.unlink(missing_ok=True)
            raise
        else:
            different, why_not = _compare(context, options.name, found, file, progress)
        finally:
            file.close()
    compared = "nothing to compare with" if different is None else "differs" if different else "equal"
    facts = {
        "volume": options.name,
        "topic": options.topic,
        "from": str(done.start),
        "to": str(done.end),
        "time": format_time(done.end_time_ns),
        "path": str(options.into),
        "size_bytes": done.size_bytes,
        "records": done.records,
        "written_bytes": done.written_bytes,
        "zeroed_bytes": done.zeroed_bytes,
        "captured_s": round(done.captured_s, 3),
        "applied_s": round(done.applied_s, 3),
        "compared": compared,
        "not_compared_because": why_not or None,
        "different": [[one.offset_bytes, one.length_bytes] for one in different or ()],
    }
    context.answer(facts, f"{options.name}: {done.records} records of its {options.topic} topic, up to {done.end}: {compared}")
    if why_not:
        context.say(f"{options.name}: not compared: {why_not}")
    for one in (different or [])[:EXTENTS_SHOWN_MAX]:
        context.say(f"{options.name}: differs at offset {one.offset_bytes}, {one.length_bytes} bytes")
    return 1 if different else 0


class _Topic:
    """The topic as it was when the command began; read as often as wanted, to the same end. A context manager."""

    def __init__(self, config: Config, volume: str, kind: str, progress: Progress) -> None:
        from stream.consumer import PartitionReader
        from stream.errors import ConfigError
        from stream.topics import Topics, check_volume_name, journal_topic, writes_topic

        self._name = writes_topic(check_volume_name(volume)) if kind == "writes" else journal_topic(check_volume_name(volume))
        if Topics(config.kafka).topic_id(self._name) is None:
            raise ConfigError(f"There is no topic {self._name}", hint="See `hostoffload volume list`.")
        self._reader = PartitionReader(config.kafka, self._name)
        self._bounds = self._reader.bounds()
        self._progress = progress
        self.doing = "looked at"

    def __enter__(self) -> _Topic:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def messages(self, kafka_offset: int | None) -> Iterator[StoredMessage]:
        """Yield the messages from a kafka_offset on, None: from the first."""
        low, end = self._bounds
        start = low if kafka_offset is None else kafka_offset
        for count, message in enumerate(self._reader.read_range(start, end)):
            if count % 16 == 0:
                done = message.kafka_offset - low
                self._progress.show(f"{done} of {end - low} messages {self.doing}", 100.0 * done / max(end - low, 1))
            yield message


def _prepare(context: Context, options: argparse.Namespace, found: TopicRange) -> tuple[BlockFile, bool]:
    """Open PATH, for this replay alone, as what the range begins with: empty, or an image of its begin. Return whether it was made, too.
    Raises ConfigError, RecoveryError, RetryError: in use."""
    from recovery.comparison import reads_as_zero
    from recovery.restore_target import open_alone
    from stream.errors import ConfigError
    from stream.position import ZERO

    path: Path = options.into
    absent = not path.exists()
    if found.start > ZERO and absent:
        _restore(context, options.name, found, path)
    elif found.start > ZERO:
        context.say(f"{options.name}: {path} is taken for an image at {found.start}")
    elif absent:
        path.touch(0o600)
    file = open_alone(path)
    if found.start == ZERO and not absent and not reads_as_zero(file):
        file.close()
        raise ConfigError(f"{path} is not empty", hint="A replay from the beginning needs a path that is free, or an empty device.")
    return file, absent


def _restore(context: Context, name: str, found: TopicRange, path: Path) -> None:
    from hostoffload.history_access import history_of
    from recovery.restore import Restore
    from recovery.restore_target import RestoreTarget

    with history_of(context, name) as opener, opener.open_at(found.start, "replay") as opened:
        target = RestoreTarget(path, opened.image.size_bytes, force=False)
        try:
            Restore(opened.image, target).run()
        finally:
            target.close()


def _compare(context: Context, name: str, found: TopicRange, file, progress: Progress) -> tuple[list[Extent] | None, str]:
    """Return where the scratch volume differs from the store's image, None if there is none to compare with, and why."""
    from hostoffload.history_access import history_of
    from recovery.comparison import different_extents
    from stream.errors import HostoffloadError

    def watch(done_bytes: int, of_bytes: int) -> None:
        progress.show(f"{done_bytes >> 20} of {of_bytes >> 20} MiB compared", 100.0 * done_bytes / max(of_bytes, 1))

    try:
        with history_of(context, name) as opener, opener.open_at(found.end, "replay") as opened:
            return different_extents(file, opened.image, watch), ""
    except HostoffloadError as error:
        return None, error.sentence
