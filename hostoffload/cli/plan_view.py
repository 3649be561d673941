"""A plan as text: each figure with the sum that it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

from hostoffload.capacity.figures import UNKNOWN, rate, size, span
from hostoffload.capacity.needs import Level
from hostoffload.capacity.plan import Plan
from stream.config import Config

COLUMNS = 120
_MARKS = {True: "ok ", False: "NO ", None: "?  "}


def view(plan: Plan, config: Config) -> str:
    """Return the whole text."""
    parts = (
        _workload(plan),
        _bandwidth(plan),
        _kafka(plan, config),
        _overwrites(plan),
        _store(plan),
        _buffer(plan),
        _config(plan),
        _unknown(plan),
    )
    return "\n".join(line for part in parts for line in part)


def _workload(plan: Plan) -> Iterator[str]:
    seen = plan.workload
    yield f"seen         {seen.source}, {span(round(seen.seconds))}: {seen.writes} writes, {size(seen.payload_bytes)}"
    if seen.writes:
        trimmed = f", {size(seen.trimmed_bytes)} trimmed or zeroed" if seen.trimmed_bytes else ""
        yield f"             {seen.writes_per_s:.4g} writes a second of {size(seen.payload_bytes / seen.writes)} each{trimmed}"


def _bandwidth(plan: Plan) -> Iterator[str]:
    told = plan.bandwidth
    yield f"bandwidth    mean {rate(told.mean)}, p95 {rate(told.p95)} (of intervals of {span(told.interval_s)})"
    yield f"             busiest second {rate(told.peak_1s)}, busiest 10 s {rate(told.peak_10s)}"


def _kafka(plan: Plan, config: Config) -> Iterator[str]:
    told, ratio = plan.kafka, plan.workload.ratio
    packed = f"compressed {ratio:.2f} times ({config.cx.codec})" if ratio is not None else "as if incompressible"
    yield f"Kafka        writes topic {size(told.writes_bytes_per_day)} a day: the mean rate, and what stands beside the payload"
    yield f"             journal topic {size(told.journal_bytes_per_day)} a day: the same, {packed}"
    limit = config.kafka.retention_bytes
    limited = f", at most {size(limit)} a topic" if limit >= 0 else ""
    kept = f"{size(told.writes_bytes)} + {size(told.journal_bytes)}" if told.disk_bytes is not None else "without end"
    yield f"             kept for {span(told.kept_s)}{limited}: {kept}, a log file of 1 GiB each included"
    if told.disk_bytes is not None:
        yield f"             on disk {size(told.disk_bytes)}: {config.kafka.replication_factor} of each (kafka.replication_factor)"


def _overwrites(plan: Plan) -> Iterator[str]:
    found = plan.workload.overwrites
    if found is None:
        yield f"overwrites   {UNKNOWN}: {plan.workload.overwrites_unknown}"
        return
    if not found:
        yield f"overwrites   {UNKNOWN}: watched for less than the shortest window"
    for number, one in enumerate(found):
        head = "overwrites   " if not number else " " * 13
        written, unique = size(one.written_bytes / one.windows), size(one.unique_bytes_each)
        times = "seen once" if one.windows == 1 else f"mean of {one.windows}"
        yield f"{head}in {span(one.window_s)} {written} are written to {unique}: folding saves {one.saved_share:.0%} ({times})"


def _store(plan: Plan) -> Iterator[str]:
    told = plan.store
    bound = "at most " if told.at_most else ""
    growth = f"{bound}{size(told.growth_bytes_per_day)}"
    yield f"store        as written {size(told.as_written_bytes_per_day)} a day; with folds it grows by {growth} a day at first"
    for one in told.levels:
        yield f"             L{one.level} {_level(one)}"
    full = f"{bound}{size(told.full_bytes)}" if told.full_bytes is not None else UNKNOWN
    yield f"             all levels full: {full}"


def _level(one: Level) -> str:
    bound = "at most " if one.at_most else ""
    if one.level == 0:
        kept = f"every write for {span(one.kept_s)}"
    elif one.span_s:
        kept = f"each {span(one.span_s)} for {span(one.kept_s)}, {bound}{size(one.each_bytes)} each"
    else:
        kept = "snapshot"
    if one.count is None:
        return f"{kept}: grows without end ({one.why})"
    return f"{kept}: {UNKNOWN if one.bytes is None else bound + size(one.bytes)} ({one.why})"


def _buffer(plan: Plan) -> Iterator[str]:
    told = plan.buffer
    lasts = f"{span(told.bridged_s)} or longer" if told.bridged_all else f"at least {span(told.bridged_s)}"
    yield f"buffer       {told.present_bytes >> 20} MiB keep order for {lasts} without Kafka, at the busiest that was seen"
    if told.needed_bytes is not None:
        most = f"in no {span(told.outage_s)} more than {size(told.payload_bytes)} in {told.writes} writes"
        yield f"             an outage of {span(told.outage_s)} needs {told.needed_bytes >> 20} MiB: {most}"


def _config(plan: Plan) -> Iterator[str]:
    yield "config"
    for one in plan.config:
        yield fill(f"{_MARKS[one.suffices]}{one.key}: {one.sentence}", COLUMNS, initial_indent="  ", subsequent_indent="     ")


def _unknown(plan: Plan) -> Iterator[str]:
    if plan.unknown:
        yield "not known"
    for one in plan.unknown:
        yield fill(one, COLUMNS, initial_indent="  - ", subsequent_indent="    ")
